//! A reliable connected queue pair: made, connected, posted to, and ended for good.
//!
//! Threads: one posts at a time, and one posts receives, by locks of the caller's. Everything may be called from any thread
//! at any time besides; [`Pair::destroy`] waits for posts in progress, [`Pair::refuse`] does not.
//!
//! **Why a connection ends with its queue pair destroyed, not reset.** By the book a reset is enough. But under Soft-RoCE
//! (Linux 6.1) we have seen bytes land after it, packets freed twice, and the device unusable in the end; `docs/fabric.md`,
//! section 10, says why, and from which of its sources.

use std::ffi::c_int;
use std::io;
use std::mem::zeroed;
use std::ptr::{self, NonNull};
use std::sync::{Arc, RwLock};

use super::VerbsError;
use super::adapter::Selected;
use super::card::Path;
use super::chain::{Chain, Request};
use super::ffi::{
    ibv_access_flags, ibv_gid, ibv_global_route, ibv_post_recv, ibv_qp, ibv_qp_attr,
    ibv_qp_attr_mask as mask, ibv_qp_cap, ibv_qp_init_attr, ibv_qp_state, ibv_qp_type, ibv_recv_wr,
};
use super::memory::Domain;
use super::queue::Queue;

/// Receives that wait for immediates. A peer sends one only when we said that we sleep, so a few would do; more cost
/// nothing, and spare it a pause where several fall together.
pub const RECEIVES: usize = 256;

/// Bytes that may travel inside a request, the most that the adapter has room for: an acknowledgement cell and a small record at
/// best, a cell at least.
const INLINE: [u32; 3] = [256, 128, 64];

/// Unanswered packets are sent again after `4.096 us << TIMEOUT`, here 268 ms: far above what a loaded machine needs to
/// answer, since an early repetition of bulk costs more than a late one.
const TIMEOUT: u8 = 16;

/// Times a packet is sent again, in a field of three bits. Not 7: Soft-RoCE takes that as for ever. So a peer that is gone
/// is known to be after seven times [`TIMEOUT`], 1.9 s, where adapters keep to it, and 7.5 s where they take up to four
/// times as long, as the InfiniBand specification lets them: in the order of what tcp needs.
const RETRIES: u8 = 6;

/// Times that a request is sent again when the peer has no receive posted for its immediate. 7 would mean for ever, by the
/// specification. Receives are posted again as immediates come, by whoever polls or the engine, so one that finds none
/// for a quarter of a second, six times [`RNR_PAUSE`], has met a peer that does not run: it sleeps through nothing by
/// being woken a connection later.
const RNR_RETRIES: u8 = 6;

/// Code of the pause between these: 40.96 ms, a few time slices of a loaded machine.
const RNR_PAUSE: u8 = 24;

/// Scatter/gather entries of a request: two, since a ring's end may lie between.
const PIECES: u32 = 2;

/// How far packets travel: RoCE v2 is routed, within a site.
const HOPS: u8 = 64;

/// Marks a receive among numbers of requests.
pub const RECEIVE: u64 = 1 << 63;

/// A queue pair.
pub struct Pair {
    /// Freed after the pair: it is destroyed first.
    queue: Arc<Queue>,
    domain: Arc<Domain>,
    /// `None` once destroyed.
    raw: RwLock<Option<NonNull<ibv_qp>>>,
    number: u32,
    port: Selected,
    inline: usize,
}

// SAFETY: libibverbs may be called from any thread; what is not to be called at the same time takes `&mut` parts.
unsafe impl Send for Pair {}
// SAFETY: as above.
unsafe impl Sync for Pair {}

impl Pair {
    /// A pair that sends up to `slots` requests at a time, with its completions going to `queue`.
    pub fn new(
        domain: Arc<Domain>,
        queue: Arc<Queue>,
        slots: usize,
        port: Selected,
    ) -> Result<Pair, VerbsError> {
        let with = |inline: u32| {
            // SAFETY: all zeros is a valid value of this plain structure.
            let mut attr: ibv_qp_init_attr = unsafe { zeroed() };
            (attr.send_cq, attr.recv_cq) = (queue.raw(), queue.raw());
            attr.qp_type = ibv_qp_type::IBV_QPT_RC;
            attr.cap = ibv_qp_cap {
                max_send_wr: slots as u32,
                max_recv_wr: RECEIVES as u32,
                max_send_sge: PIECES,
                max_recv_sge: 1,
                max_inline_data: inline,
            };
            // SAFETY: domain and queue are alive, and the pair holds them.
            let raw = unsafe { (domain.context().library().ibv_create_qp)(domain.raw(), &mut attr) };
            NonNull::new(raw).ok_or_else(io::Error::last_os_error).map(|raw| (raw, inline))
        };
        // Adapters refuse to make more room inside requests than they have.
        let made = INLINE.into_iter().find_map(|inline| with(inline).ok()).map_or_else(|| with(0), Ok);
        let (raw, inline) = made.map_err(|source| VerbsError::System {
            what: format!("{}: creating a queue pair", domain.context().device()),
            source,
        })?;
        // SAFETY: alive.
        let number = unsafe { raw.as_ref().qp_num };
        let raw = RwLock::new(Some(raw));
        let pair = Pair { queue, domain, raw, number, port, inline: inline as usize };
        pair.initialise()?;
        Ok(pair)
    }

    /// Its number.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Bytes of a write that may travel inside the request.
    pub fn inline(&self) -> usize {
        self.inline
    }

    /// Where its completions go.
    pub fn queue(&self) -> &Queue {
        &self.queue
    }

    /// The memory it may touch.
    pub fn domain(&self) -> &Arc<Domain> {
        &self.domain
    }

    fn initialise(&self) -> Result<(), VerbsError> {
        let mut attr = attributes(ibv_qp_state::IBV_QPS_INIT);
        attr.port_num = self.port.port;
        attr.qp_access_flags = remote_access().0;
        let set =
            mask::IBV_QP_STATE | mask::IBV_QP_PKEY_INDEX | mask::IBV_QP_PORT | mask::IBV_QP_ACCESS_FLAGS;
        self.modify(&mut attr, set).map_err(self.failed("initialising a queue pair"))
    }

    /// Makes it receive from the peer, then send to it. `psn` is the number that our card gave.
    pub fn connect(&self, path: &Path, psn: u32) -> Result<(), VerbsError> {
        let mut attr = attributes(ibv_qp_state::IBV_QPS_RTR);
        attr.path_mtu = path.mtu.into();
        attr.dest_qp_num = path.peer.qpn;
        attr.rq_psn = path.peer.psn;
        attr.max_dest_rd_atomic = path.reads_in;
        attr.min_rnr_timer = RNR_PAUSE;
        attr.ah_attr.dlid = path.peer.lid;
        attr.ah_attr.port_num = self.port.port;
        if path.global {
            attr.ah_attr.is_global = 1;
            attr.ah_attr.grh = ibv_global_route {
                dgid: ibv_gid { raw: path.peer.gid },
                flow_label: 0,
                sgid_index: self.port.gid.index,
                hop_limit: HOPS,
                traffic_class: 0,
            };
        }
        let set = mask::IBV_QP_STATE
            | mask::IBV_QP_AV
            | mask::IBV_QP_PATH_MTU
            | mask::IBV_QP_DEST_QPN
            | mask::IBV_QP_RQ_PSN
            | mask::IBV_QP_MAX_DEST_RD_ATOMIC
            | mask::IBV_QP_MIN_RNR_TIMER;
        let peer = std::net::Ipv6Addr::from(path.peer.gid).to_canonical();
        let to = format!("connecting a queue pair to {peer} (from GID {})", self.port.gid.index);
        self.modify(&mut attr, set).map_err(self.failed(&to))?;

        let mut attr = attributes(ibv_qp_state::IBV_QPS_RTS);
        attr.sq_psn = psn;
        attr.timeout = TIMEOUT;
        attr.retry_cnt = RETRIES;
        attr.rnr_retry = RNR_RETRIES;
        attr.max_rd_atomic = path.reads_out;
        let set = mask::IBV_QP_STATE
            | mask::IBV_QP_SQ_PSN
            | mask::IBV_QP_TIMEOUT
            | mask::IBV_QP_RETRY_CNT
            | mask::IBV_QP_RNR_RETRY
            | mask::IBV_QP_MAX_QP_RD_ATOMIC;
        self.modify(&mut attr, set).map_err(self.failed("making a queue pair ready to send"))
    }

    /// Posts requests, in order; nowhere if the pair is destroyed. On an error some may have been posted: the connection is
    /// to be ended.
    pub fn post(&self, chain: &mut Chain, requests: impl Iterator<Item = Request>) -> io::Result<()> {
        // SAFETY: the pair is alive meanwhile. The chain holds what the requests point to until the adapter has copied it; the
        // memory that they name is registered, and registrations end before mappings do.
        self.alive(|raw| unsafe { chain.post(raw, requests) }).unwrap_or(Ok(()))
    }

    /// Posts `count` receives for immediates.
    pub fn post_receives(&self, count: usize) -> io::Result<()> {
        // SAFETY: all zeros is a receive without memory, which is what an immediate needs.
        let mut receive: ibv_recv_wr = unsafe { zeroed() };
        receive.wr_id = RECEIVE;
        let post = |raw| {
            for _ in 0..count {
                let mut bad = ptr::null_mut();
                // SAFETY: the pair is alive meanwhile; the request is copied by the call.
                match unsafe { ibv_post_recv(raw, &mut receive, &mut bad) } {
                    0 => {}
                    errno => return Err(io::Error::from_raw_os_error(errno.abs())),
                }
            }
            Ok(())
        };
        self.alive(post).unwrap_or(Ok(()))
    }

    /// Takes the peer's access away, which is quick and stops what has not begun, and makes the pair fail: what is posted
    /// is flushed. What is landing may still be landing when this returns; [`Pair::destroy`] waits for it.
    pub fn refuse(&self) {
        // A pair that failed by itself refuses the first; its end is what counts then.
        let mut attr = attributes(ibv_qp_state::IBV_QPS_RTS);
        let _ = self.modify(&mut attr, mask::IBV_QP_ACCESS_FLAGS);
        let _ = self.modify(&mut attributes(ibv_qp_state::IBV_QPS_ERR), mask::IBV_QP_STATE);
    }

    /// After this nothing of the peer's lands, and the adapter touches no memory for us. Repeatable.
    pub fn destroy(&self) -> Result<(), VerbsError> {
        let mut raw = self.raw.write().unwrap_or_else(|e| e.into_inner());
        let Some(alive) = *raw else { return Ok(()) };
        // SAFETY: alive, and nobody uses it while the lock is held for writing; events of its queue are acknowledged as
        // they are taken.
        match unsafe { (self.domain.context().library().ibv_destroy_qp)(alive.as_ptr()) } {
            0 => {
                *raw = None;
                Ok(())
            }
            errno => Err(self.failed("destroying a queue pair")(io::Error::from_raw_os_error(errno.abs()))),
        }
    }

    /// Acts on the pair, unless it is destroyed; it is not destroyed meanwhile.
    fn alive<T>(&self, act: impl FnOnce(*mut ibv_qp) -> T) -> Option<T> {
        let raw = self.raw.read().unwrap_or_else(|e| e.into_inner());
        Some(act((*raw)?.as_ptr()))
    }

    fn modify(&self, attr: &mut ibv_qp_attr, set: mask) -> io::Result<()> {
        let library = self.domain.context().library();
        // SAFETY: the pair is alive meanwhile; the structure is read by the call only.
        match self.alive(|raw| unsafe { (library.ibv_modify_qp)(raw, attr, set.0 as c_int) }) {
            Some(0) => Ok(()),
            Some(errno) => Err(io::Error::from_raw_os_error(errno.abs())),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    fn failed(&self, what: &str) -> impl FnOnce(io::Error) -> VerbsError {
        let what = format!("{}: {what}", self.domain.context().device());
        move |source| VerbsError::System { what, source }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        if let Err(error) = self.destroy() {
            tracing::warn!(%error, "an adapter keeps a queue pair");
        }
    }
}

fn attributes(state: u32) -> ibv_qp_attr {
    // SAFETY: all zeros is a valid value of this plain structure; what is not in a call's mask is not read.
    let mut attr: ibv_qp_attr = unsafe { zeroed() };
    attr.qp_state = state;
    attr
}

/// What the peer may do at all; what it may do where, its keys say.
fn remote_access() -> ibv_access_flags {
    ibv_access_flags::IBV_ACCESS_REMOTE_WRITE | ibv_access_flags::IBV_ACCESS_REMOTE_READ
}
