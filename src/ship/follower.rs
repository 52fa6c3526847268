//! What a destination makes of the copies in the stream: known from what was posted, before it says so itself.
//!
//! It and the destination decide by the same rule what a `SyncBegin` means there (`replica::image`). Pure bookkeeping of one
//! link, for the shipper.

use super::acks::Acked;
use crate::log::Acks;
use crate::log::format::{CopyFor, Kind, RecordHeader};
use crate::types::Lsn;

/// What a destination has that the stream goes on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Has {
    /// Nothing, or an image that stays as it is.
    Nothing,
    /// An image that a copy fills.
    Part,
    /// A complete image that follows the stream.
    Image,
}

/// The destination of one link.
#[derive(Debug)]
pub struct Follower {
    has: Has,
    /// The newest copy posted on this link that it takes: what follows counts only once the image of that copy does.
    from: Option<Lsn>,
}

impl Follower {
    /// One that has `has` where the link begins.
    pub fn new(has: Has) -> Follower {
        Follower { has, from: None }
    }

    /// A record was posted.
    pub fn posted(&mut self, header: &RecordHeader) {
        match Kind::from_byte(header.kind) {
            Some(Kind::SyncBegin)
                if self.has == Has::Image && CopyFor::of(header) == Some(CopyFor::Newcomers) => {}
            Some(Kind::SyncBegin) => {
                self.has = Has::Part;
                self.from = Some(Lsn(header.lsn));
            }
            Some(Kind::SyncEnd) if self.has == Has::Part => self.has = Has::Image,
            _ => {}
        }
    }

    /// Whether the image that the newest copy began is the one that counts. Until the destination has applied its beginning, it
    /// may still say that it counts: of the image before.
    pub fn is_copied(&self, acked: &Acked) -> bool {
        self.from.is_none_or(|begin| acked.counts && acked.counts_from > begin)
    }

    /// What may be believed while a copy is under way: nothing from its beginning on, since a promotion would yield the image
    /// before, which has none of it.
    pub fn up_to_copy(&self, acks: Acks) -> Acks {
        let limit = |lsn: Lsn| self.from.map_or(lsn, |begin| begin.min(lsn));
        Acks { received: limit(acks.received), durable: limit(acks.durable), applied: limit(acks.applied) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::RegionId;

    fn record(lsn: u64, kind: Kind, whom: CopyFor) -> RecordHeader {
        let place = RecordHeader::pack_place(RegionId(0), whom as u64);
        RecordHeader { place, ..RecordHeader::unowned(kind, lsn, 0) }
    }

    fn after(has: Has, records: &[(u64, Kind, CopyFor)]) -> Follower {
        let mut follower = Follower::new(has);
        records.iter().for_each(|(lsn, kind, whom)| follower.posted(&record(*lsn, *kind, *whom)));
        follower
    }

    #[test]
    fn nothing_past_the_beginning_of_a_copy_counts_before_its_end() {
        let none = after(Has::Image, &[]);
        let follower = after(Has::Image, &[(640, Kind::SyncBegin, CopyFor::All)]);
        let old = Acked { counts: true, counts_from: Lsn(96), ..Acked::default() };
        assert!(none.is_copied(&old));
        assert!(!follower.is_copied(&old), "it still speaks of the image before");
        assert!(!follower.is_copied(&Acked { counts: false, ..old }));
        assert!(follower.is_copied(&Acked { counts_from: Lsn(960), ..old }));
        let acks = Acks { received: Lsn(960), durable: Lsn(800), applied: Lsn(320) };
        let limited = follower.up_to_copy(acks);
        assert_eq!((limited.received, limited.durable, limited.applied), (Lsn(640), Lsn(640), Lsn(320)));
    }

    #[test]
    fn one_that_has_an_image_passes_over_a_copy_for_newcomers() {
        use CopyFor::{All, Newcomers};
        use Kind::{SyncBegin, SyncEnd};
        let from = |has, records: &[_]| after(has, records).from.map(|lsn| lsn.0);
        assert_eq!(from(Has::Image, &[(64, SyncBegin, Newcomers), (96, SyncEnd, All)]), None);
        assert_eq!(from(Has::Part, &[(64, SyncBegin, Newcomers)]), Some(64));
        assert_eq!(from(Has::Nothing, &[(64, SyncBegin, Newcomers)]), Some(64));
        let second = [(64, SyncBegin, Newcomers), (96, SyncEnd, All), (128, SyncBegin, Newcomers)];
        assert_eq!(from(Has::Nothing, &second), Some(64), "it has one by then");
        assert_eq!(from(Has::Part, &second[1..]), None, "the copy of an earlier link was complete");
        assert_eq!(from(Has::Nothing, &second[1..]), Some(128), "the end of a copy that it has not begun");
        assert_eq!(from(Has::Image, &[(64, SyncBegin, All), (96, SyncBegin, Newcomers)]), Some(96));
    }
}
