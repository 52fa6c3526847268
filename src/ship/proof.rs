//! Reads after writes, where these make bytes survive: which is under way, and what has been proven.
//!
//! Where a destination's memory and caches survive a power cut and its adapter does not, a write's completion says too little:
//! the bytes may still be in the adapter. A read over the same connection comes after the write and pushes it out. One read
//! at a time proves everything that was shipped before it. Pure bookkeeping of one link, for the shipper.

use crate::types::Lsn;

/// Number of a proof's completion among those of writes, which count from 1.
pub const PROOF: u64 = 1 << 63;

/// Bytes read: the least that an adapter does not answer by itself.
pub const PROOF_BYTES: usize = 8;

/// What is proven of one link.
#[derive(Debug)]
pub struct Proof {
    placed: Lsn,
    asked: Option<Lsn>,
}

impl Proof {
    /// Everything below `from` is no concern of this link's.
    pub fn new(from: Lsn) -> Proof {
        Proof { placed: from, asked: None }
    }

    /// Everything below is in its place.
    pub fn placed(&self) -> Lsn {
        self.placed
    }

    /// Whether a read is under way.
    pub fn is_under_way(&self) -> bool {
        self.asked.is_some()
    }

    /// Whether a read is to be posted now that everything up to `shipped` was.
    pub fn is_due(&self, shipped: Lsn) -> bool {
        self.asked.is_none() && self.placed < shipped
    }

    /// A read was posted behind everything up to `shipped`.
    pub fn posted(&mut self, shipped: Lsn) {
        self.asked = Some(shipped);
    }

    /// It has completed.
    pub fn completed(&mut self) {
        self.placed = self.asked.take().unwrap_or(self.placed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_proves_what_was_shipped_before_it_and_nothing_after() {
        let mut proof = Proof::new(Lsn(96));
        assert!(!proof.is_due(Lsn(96)) && proof.is_due(Lsn(128)));
        proof.posted(Lsn(128));
        assert!(proof.is_under_way() && !proof.is_due(Lsn(192)), "one at a time");
        assert_eq!(proof.placed(), Lsn(96), "nothing is proven before it completes");
        proof.completed();
        assert_eq!(proof.placed(), Lsn(128));
        assert!(proof.is_due(Lsn(192)), "what was shipped meanwhile is not proven");
        proof.completed();
        assert_eq!(proof.placed(), Lsn(128), "a completion that nobody asked for proves nothing");
    }
}
