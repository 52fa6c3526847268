//! Where a destination's stream stands, mostly as plain atomics: written by the shipper, read by anyone at any time.

use std::sync::Mutex;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};

use crate::locks::lock;
use crate::types::Lsn;

/// Positions and marks of one destination. Each number is true by itself; together they may be a moment apart.
#[derive(Debug, Default)]
pub struct ShipStatus {
    shipped: AtomicU64,
    received: AtomicU64,
    durable: AtomicU64,
    applied: AtomicU64,
    drain: AtomicU64,
    counts: AtomicBool,
    counts_from: AtomicU64,
    syncing: AtomicBool,
    faulted: AtomicBool,
    /// As far as is known the destination has a complete image, up to `durable`: also while it is away.
    holds: AtomicBool,
    /// End of what was posted, and the chained digest there: one is worth nothing without the other.
    digest: Mutex<(Lsn, u64)>,
    /// [`crate::log::region::boottime`] nanoseconds of the first post since [`ShipStatus::mark`]; 0: none yet.
    first_post: AtomicU64,
    marked: AtomicBool,
}

/// [`ShipStatus`] read once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShipView {
    /// End of what was posted.
    pub shipped: Lsn,
    /// End of what landed.
    pub received: Lsn,
    /// End of what survives the loss of this node.
    pub durable: Lsn,
    /// End of what is in the image.
    pub applied: Lsn,
    /// Measured drain rate, bytes a second; 0: not known yet.
    pub drain: u64,
    /// Whether the destination counts for commit levels.
    pub counts: bool,
    /// LSN just past the `SyncEnd` from which its live image counts.
    pub counts_from: Lsn,
    /// Whether it builds an image.
    pub syncing: bool,
    /// Whether it cannot persist at present.
    pub faulted: bool,
    /// Whether it has, as far as is known, a complete image up to `durable`, connected or not. Less than `counts`.
    pub holds: bool,
}

impl ShipStatus {
    /// Reads it.
    pub fn view(&self) -> ShipView {
        ShipView {
            shipped: Lsn(self.shipped.load(Relaxed)),
            received: Lsn(self.received.load(Relaxed)),
            durable: Lsn(self.durable.load(Relaxed)),
            applied: Lsn(self.applied.load(Relaxed)),
            drain: self.drain.load(Relaxed),
            counts: self.counts.load(Relaxed),
            counts_from: Lsn(self.counts_from.load(Relaxed)),
            syncing: self.syncing.load(Relaxed),
            faulted: self.faulted.load(Relaxed),
            holds: self.holds.load(Relaxed),
        }
    }

    /// The chained digest at `lsn`, if the stream shipped so far ends there. For the last gasp, when nothing is appended
    /// any more.
    pub fn digest(&self, lsn: Lsn) -> Option<u64> {
        let (at, digest) = *lock(&self.digest);
        (at == lsn).then_some(digest)
    }

    /// From here on the next post is noted with its time.
    pub fn mark(&self) {
        self.first_post.store(0, Relaxed);
        self.marked.store(true, Relaxed);
    }

    /// When the first post since the mark was made, nanoseconds of CLOCK_BOOTTIME.
    pub fn first_post(&self) -> Option<u64> {
        Some(self.first_post.load(Relaxed)).filter(|t| *t != 0)
    }

    pub(super) fn posted(&self, now_ns: impl FnOnce() -> u64) {
        if self.marked.load(Relaxed) && self.marked.swap(false, Relaxed) {
            self.first_post.store(now_ns(), Relaxed);
        }
    }

    pub(super) fn set_digest(&self, digest: u64, at: Lsn) {
        *lock(&self.digest) = (at, digest);
    }

    pub(crate) fn set(&self, view: ShipView) {
        self.shipped.store(view.shipped.0, Relaxed);
        self.received.store(view.received.0, Relaxed);
        self.durable.store(view.durable.0, Relaxed);
        self.applied.store(view.applied.0, Relaxed);
        self.drain.store(view.drain, Relaxed);
        self.counts_from.store(view.counts_from.0, Relaxed);
        self.syncing.store(view.syncing, Relaxed);
        self.faulted.store(view.faulted, Relaxed);
        self.counts.store(view.counts, Relaxed);
        self.holds.store(view.holds, Relaxed);
    }

    /// The stream begins anew: what the destination has says nothing of it.
    pub fn begin_anew(&self) {
        self.holds.store(false, Relaxed);
    }

    /// The link is down: nothing counts. What the destination holds, it keeps.
    pub fn disconnected(&self) {
        self.counts.store(false, Relaxed);
        self.syncing.store(false, Relaxed);
    }
}
