//! Where completions arrive: a completion queue, and the channel that tells of them when asked to.

use std::ffi::c_int;
use std::io;
use std::mem::zeroed;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use super::VerbsError;
use super::context::Context;
use super::ffi::{
    self, ibv_comp_channel, ibv_cq, ibv_poll_cq, ibv_req_notify_cq, ibv_wc, ibv_wc_opcode, ibv_wc_status,
};

/// Completions fetched at a time: enough to empty what one round trip brings, small enough for the stack.
const BATCH: usize = 16;

/// A completion queue with its channel.
pub struct Queue {
    context: Arc<Context>,
    channel: NonNull<ibv_comp_channel>,
    cq: NonNull<ibv_cq>,
}

// SAFETY: see `Context`; polling is serialised by the caller's lock.
unsafe impl Send for Queue {}
// SAFETY: as above.
unsafe impl Sync for Queue {}

/// A request's end as the adapter reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// The number that it was posted with.
    pub id: u64,
    /// Success, or why not.
    pub status: Status,
    /// The immediate of the peer's that consumed a receive.
    pub immediate: Option<u32>,
}

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Done.
    Success,
    /// The queue pair had failed already.
    Flushed,
    /// The peer's adapter refused it: key, bounds, access, or no access at all any more.
    RefusedByPeer(u32),
    /// The peer's adapter does not answer.
    NoAnswer(u32),
    /// Anything else.
    Failed(u32),
}

impl Queue {
    /// A queue for `entries` completions.
    pub fn new(context: Arc<Context>, entries: usize) -> Result<Queue, VerbsError> {
        let library = context.library();
        let failed = |what: &str| VerbsError::System {
            what: format!("{}: {what}", context.device()),
            source: io::Error::last_os_error(),
        };
        // SAFETY: the context is open.
        let channel = unsafe { (library.ibv_create_comp_channel)(context.raw()) };
        let channel = NonNull::new(channel).ok_or_else(|| failed("creating a completion channel"))?;
        // SAFETY: as above; the channel was created just now.
        let cq = unsafe {
            (library.ibv_create_cq)(context.raw(), entries as c_int, ptr::null_mut(), channel.as_ptr(), 0)
        };
        let Some(cq) = NonNull::new(cq) else {
            let error = failed("creating a completion queue");
            // SAFETY: nothing uses the channel.
            unsafe { (library.ibv_destroy_comp_channel)(channel.as_ptr()) };
            return Err(error);
        };
        let queue = Queue { context, channel, cq };
        super::never_block(queue.as_fd()).map_err(|source| VerbsError::System {
            what: "making a descriptor non-blocking".to_owned(),
            source,
        })?;
        Ok(queue)
    }

    /// For the functions of the library.
    pub fn raw(&self) -> *mut ibv_cq {
        self.cq.as_ptr()
    }

    /// Hands completions to `take`, oldest first; how many there were. One thread at a time.
    pub fn poll(&self, mut take: impl FnMut(Ended)) -> io::Result<usize> {
        let mut total = 0;
        loop {
            // SAFETY: a completion is plain numbers; the call fills as many as it returns.
            let mut batch: [ibv_wc; BATCH] = unsafe { zeroed() };
            // SAFETY: the queue is alive, and the caller polls from one thread at a time.
            let n = unsafe { ibv_poll_cq(self.raw(), BATCH as i32, batch.as_mut_ptr()) };
            let n = usize::try_from(n).map_err(|_| io::Error::other("the completion queue failed"))?;
            batch[..n].iter().map(ended).for_each(&mut take);
            total += n;
            if n < BATCH {
                return Ok(total);
            }
        }
    }

    /// Asks for an event at the next completion. Poll once more afterwards: what came before raises none.
    pub fn arm(&self) -> io::Result<()> {
        // SAFETY: the queue is alive.
        match unsafe { ibv_req_notify_cq(self.raw(), 0) } {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno.abs())),
        }
    }

    /// Takes the events that came; whether there were any.
    pub fn take_events(&self) -> bool {
        let library = self.context.library();
        let (mut cq, mut any) = (ptr::null_mut(), ptr::null_mut());
        let mut count = 0;
        // SAFETY: the channel is alive and never blocks; each event is acknowledged, so that the queue can be destroyed.
        unsafe {
            while (library.ibv_get_cq_event)(self.channel.as_ptr(), &mut cq, &mut any) == 0 {
                count += 1;
            }
            if count > 0 {
                (library.ibv_ack_cq_events)(self.raw(), count);
            }
        }
        count > 0
    }

    /// What a status that the adapter gave is called.
    pub fn describe(&self, status: u32) -> String {
        // SAFETY: the function gives static strings.
        unsafe { ffi::owned((self.context.library().ibv_wc_status_str)(status)) }
    }
}

impl AsFd for Queue {
    /// Readable when there are events.
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor is open as long as the channel.
        unsafe { BorrowedFd::borrow_raw(self.channel.as_ref().fd) }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let library = self.context.library();
        // SAFETY: queue pairs held it, and are gone; all events were acknowledged.
        let refused = unsafe {
            (library.ibv_destroy_cq)(self.raw()) | (library.ibv_destroy_comp_channel)(self.channel.as_ptr())
        };
        if refused != 0 {
            tracing::warn!(device = self.context.device(), refused, "freeing a completion queue");
        }
    }
}

fn ended(wc: &ibv_wc) -> Ended {
    let status = Status::of(wc.status);
    // The other fields mean nothing where the status is an error.
    let received = status == Status::Success && wc.opcode == ibv_wc_opcode::IBV_WC_RECV_RDMA_WITH_IMM;
    // SAFETY: an immediate is what the union holds for this opcode.
    let immediate = received.then(|| u32::from_be(unsafe { wc.imm_data_invalidated_rkey_union.imm_data }));
    Ended { id: wc.wr_id, status, immediate }
}

impl Status {
    fn of(status: u32) -> Status {
        match status {
            ibv_wc_status::IBV_WC_SUCCESS => Status::Success,
            ibv_wc_status::IBV_WC_WR_FLUSH_ERR => Status::Flushed,
            // A revocation shows as one or the other, depending on adapter and moment.
            ibv_wc_status::IBV_WC_REM_ACCESS_ERR
            | ibv_wc_status::IBV_WC_REM_INV_REQ_ERR
            | ibv_wc_status::IBV_WC_REM_OP_ERR => Status::RefusedByPeer(status),
            ibv_wc_status::IBV_WC_RETRY_EXC_ERR
            | ibv_wc_status::IBV_WC_RNR_RETRY_EXC_ERR
            | ibv_wc_status::IBV_WC_RESP_TIMEOUT_ERR
            | ibv_wc_status::IBV_WC_REM_ABORT_ERR => Status::NoAnswer(status),
            other => Status::Failed(other),
        }
    }
}
