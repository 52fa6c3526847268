//! What a destination makes of the copies in the stream: known from what was posted, before it says so itself.
//!
//! It and the destination decide by the same rule what a `SyncBegin` means there ([`CopyFor::is_for`]). Pure bookkeeping of one
//! link, for the shipper.

use super::acks::Acked;
use super::begun::Begun;
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
    /// Number of its stream.
    stream: u32,
    has: Has,
    /// Copies posted on this link that it takes.
    begun: Begun,
}

impl Follower {
    /// One that has `has` where the link of this stream begins.
    pub fn new(stream: u32, has: Has) -> Follower {
        Follower { stream, has, begun: Begun::default() }
    }

    /// A record was posted.
    pub fn posted(&mut self, header: &RecordHeader) {
        match Kind::from_byte(header.kind) {
            Some(Kind::SyncBegin) => match CopyFor::of(header) {
                Some(whom) if whom.is_for(self.stream, self.has == Has::Image) => {
                    self.has = Has::Part;
                    self.begun.posted(Lsn(header.lsn));
                }
                _ if self.has == Has::Image => {}
                _ => self.has = Has::Nothing,
            },
            Some(Kind::SyncEnd) if self.has == Has::Part => self.has = Has::Image,
            _ => {}
        }
    }

    /// See [`Begun::is_copied`].
    pub fn is_copied(&self, acked: &Acked) -> bool {
        self.begun.is_copied(acked)
    }

    /// See [`Begun::limit`].
    pub fn limit(&mut self, acks: Acks, acked: &Acked) -> Acks {
        self.begun.limit(acks, acked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::RegionId;

    fn record(lsn: u64, kind: Kind, whom: CopyFor) -> RecordHeader {
        let place = RecordHeader::pack_place(RegionId(0), whom.offset());
        RecordHeader { place, ..RecordHeader::unowned(kind, lsn, 0) }
    }

    fn after(has: Has, records: &[(u64, Kind, CopyFor)]) -> Follower {
        let mut follower = Follower::new(7, has);
        records.iter().for_each(|(lsn, kind, whom)| follower.posted(&record(*lsn, *kind, *whom)));
        follower
    }

    #[test]
    fn one_that_has_an_image_passes_over_a_copy_for_newcomers() {
        use CopyFor::{All, Newcomers};
        use Kind::{SyncBegin, SyncEnd};
        // Where what may be believed of everything ends.
        let from = |has, records: &[_]| {
            let all = Acks { received: Lsn(9999), durable: Lsn(9999), applied: Lsn(9999) };
            let limited = after(has, records).limit(all, &Acked { counts: true, ..Acked::default() });
            Some(limited.durable.0).filter(|lsn| *lsn != 9999)
        };
        assert_eq!(from(Has::Image, &[(64, SyncBegin, Newcomers), (96, SyncEnd, All)]), None);
        assert_eq!(from(Has::Part, &[(64, SyncBegin, Newcomers)]), Some(64));
        assert_eq!(from(Has::Nothing, &[(64, SyncBegin, Newcomers)]), Some(64));
        let second = [(64, SyncBegin, Newcomers), (96, SyncEnd, All), (128, SyncBegin, Newcomers)];
        assert_eq!(from(Has::Nothing, &second), Some(64), "it has one by then");
        assert_eq!(from(Has::Part, &second[1..]), None, "the copy of an earlier link was complete");
        assert_eq!(from(Has::Nothing, &second[1..]), Some(128), "the end of a copy that it has not begun");
        let all_then = [(64, SyncBegin, All), (96, SyncBegin, Newcomers)];
        assert_eq!(from(Has::Image, &all_then), Some(64));
        assert_eq!(from(Has::Image, &all_then[1..]), None);
    }

    #[test]
    fn a_copy_for_one_is_taken_by_that_one_alone_and_ends_what_another_had_of_an_earlier_copy() {
        use CopyFor::{All, Newcomers, One};
        use Kind::{SyncBegin, SyncEnd};
        let has = |has, records: &[_]| after(has, records).has;
        let (ours, anothers) = ([(64, SyncBegin, One(7))], [(64, SyncBegin, One(8))]);
        assert_eq!([Has::Nothing, Has::Image].map(|before| has(before, &ours)), [Has::Part, Has::Image]);
        assert_eq!(
            [Has::Nothing, Has::Image].map(|before| has(before, &anothers)),
            [Has::Nothing, Has::Image]
        );
        let cut = [(64, SyncBegin, Newcomers), (96, SyncBegin, One(8)), (128, SyncEnd, All)];
        assert_eq!(has(Has::Nothing, &cut), Has::Nothing, "that end is not of its copy");
    }
}
