//! Work requests, linked to each other once: a post fills in what it needs and cuts the list behind the last.

use std::io;
use std::ptr;

use super::ffi::{ibv_post_send, ibv_qp, ibv_send_flags, ibv_send_wr, ibv_sge, ibv_wr_opcode};

/// Requests handed to the adapter by one doorbell; more are posted in several turns.
const LINKS: usize = 64;

/// A request as the adapter takes it.
#[derive(Clone, Copy)]
pub struct Request {
    /// Number that its completion carries.
    pub id: u64,
    /// What it does.
    pub action: Action,
    /// Local memory, and how many of the entries are used.
    pub pieces: ([ibv_sge; 2], usize),
    /// Address at the peer.
    pub remote: u64,
    /// The peer's key.
    pub rkey: u32,
    /// Asks for a completion.
    pub signalled: bool,
    /// The bytes travel inside the request.
    pub inline: bool,
}

/// What a [`Request`] does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Writes.
    Write,
    /// Writes, and raises this at the peer.
    WriteImmediate(u32),
    /// Reads.
    Read,
}

/// A list of work requests in memory that does not move.
pub struct Chain {
    requests: *mut [ibv_send_wr],
    pieces: *mut [[ibv_sge; 2]],
}

// SAFETY: it owns what it points to, and changes it only through `&mut`.
unsafe impl Send for Chain {}

impl Chain {
    /// A list in which every request names its successor and its pieces.
    pub fn new() -> Chain {
        let requests = (0..LINKS).map(|_| {
            // SAFETY: all zeros is a valid value of this plain structure.
            unsafe { std::mem::zeroed::<ibv_send_wr>() }
        });
        let requests = Box::into_raw(requests.collect::<Box<[_]>>());
        let empty = ibv_sge { addr: 0, length: 0, lkey: 0 };
        let pieces = Box::into_raw(vec![[empty; 2]; LINKS].into_boxed_slice());
        let chain = Chain { requests, pieces };
        for i in 0..LINKS {
            // SAFETY: `i` and the successor are within the two lists, which only this value reaches.
            unsafe {
                let request = chain.request(i);
                (*request).sg_list = chain.pieces.cast::<ibv_sge>().add(2 * i);
                (*request).next = chain.successor(i);
            }
        }
        chain
    }

    /// Posts to `pair`, in order. On an error some may have been posted.
    ///
    /// # Safety
    /// The pair is alive. What `requests` name is registered memory of its domain.
    pub unsafe fn post(
        &mut self,
        pair: *mut ibv_qp,
        requests: impl Iterator<Item = Request>,
    ) -> io::Result<()> {
        let mut filled = 0;
        for request in requests {
            self.fill(filled, &request);
            filled += 1;
            if filled == LINKS {
                // SAFETY: the caller's promise; `filled` requests were filled in.
                unsafe { self.ring(pair, filled)? };
                filled = 0;
            }
        }
        if filled > 0 {
            // SAFETY: as above.
            unsafe { self.ring(pair, filled)? };
        }
        Ok(())
    }

    fn fill(&mut self, at: usize, request: &Request) {
        let (pieces, used) = request.pieces;
        let flags = flags(request);
        let (opcode, immediate) = match request.action {
            Action::Write => (ibv_wr_opcode::IBV_WR_RDMA_WRITE, 0),
            Action::WriteImmediate(value) => (ibv_wr_opcode::IBV_WR_RDMA_WRITE_WITH_IMM, value.to_be()),
            Action::Read => (ibv_wr_opcode::IBV_WR_RDMA_READ, 0),
        };
        // SAFETY: `at` is below LINKS, and only this value reaches the two lists.
        unsafe {
            *self.pieces.cast::<[ibv_sge; 2]>().add(at) = pieces;
            let wr = self.request(at);
            (*wr).wr_id = request.id;
            (*wr).num_sge = used as i32;
            (*wr).opcode = opcode;
            (*wr).send_flags = flags;
            (*wr).imm_data_invalidated_rkey_union.imm_data = immediate;
            (*wr).wr.rdma.remote_addr = request.remote;
            (*wr).wr.rdma.rkey = request.rkey;
        }
    }

    /// # Safety
    /// As [`Chain::post`]; the first `filled` requests, from 1 to LINKS, are filled in.
    unsafe fn ring(&mut self, pair: *mut ibv_qp, filled: usize) -> io::Result<()> {
        let mut bad = ptr::null_mut();
        // SAFETY: the list ends at its last filled request for the time of the call, which copies it.
        let refused = unsafe {
            (*self.request(filled - 1)).next = ptr::null_mut();
            let refused = ibv_post_send(pair, self.request(0), &mut bad);
            (*self.request(filled - 1)).next = self.successor(filled - 1);
            refused
        };
        if refused == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(refused.abs())) }
    }

    fn request(&self, at: usize) -> *mut ibv_send_wr {
        self.requests.cast::<ibv_send_wr>().wrapping_add(at)
    }

    fn successor(&self, at: usize) -> *mut ibv_send_wr {
        if at + 1 < LINKS { self.request(at + 1) } else { ptr::null_mut() }
    }
}

impl Drop for Chain {
    fn drop(&mut self) {
        // SAFETY: both came from boxes, and nothing points to them any more.
        unsafe {
            drop(Box::from_raw(self.requests));
            drop(Box::from_raw(self.pieces));
        }
    }
}

fn flags(request: &Request) -> u32 {
    let mut flags = ibv_send_flags(0);
    if request.signalled {
        flags |= ibv_send_flags::IBV_SEND_SIGNALED;
    }
    if request.inline {
        flags |= ibv_send_flags::IBV_SEND_INLINE;
    }
    flags.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(id: u64, action: Action) -> Request {
        let entry = ibv_sge { addr: id, length: 8, lkey: 3 };
        Request {
            id,
            action,
            pieces: ([entry; 2], 1),
            remote: 9,
            rkey: 4,
            signalled: id == 2,
            inline: id == 1,
        }
    }

    #[test]
    fn every_request_names_its_successor_and_its_own_pieces() {
        let mut chain = Chain::new();
        (0..3).for_each(|i| chain.fill(i, &request(i as u64, Action::WriteImmediate(0x0102_0304))));
        let (mut at, mut seen) = (chain.request(0), 0);
        while !at.is_null() {
            // SAFETY: the list is the chain's own, and ends with null.
            let wr = unsafe { &*at };
            if seen < 3 {
                assert_eq!(wr.wr_id, seen);
                // SAFETY: filled above: one piece, an immediate, an RDMA target.
                unsafe {
                    assert_eq!((*wr.sg_list).addr, seen);
                    assert_eq!(wr.imm_data_invalidated_rkey_union.imm_data.to_ne_bytes(), [1, 2, 3, 4]);
                    assert_eq!((wr.wr.rdma.remote_addr, wr.wr.rdma.rkey), (9, 4));
                }
                let expected = [0, ibv_send_flags::IBV_SEND_INLINE.0, ibv_send_flags::IBV_SEND_SIGNALED.0];
                assert_eq!(wr.send_flags, expected[seen as usize]);
            }
            seen += 1;
            at = wr.next;
        }
        assert_eq!(seen, LINKS as u64);
    }
}
