//! Writes that nobody records, found by sampling: raw system calls, io_uring, static binaries, inlined flushes.
//!
//! The agent looks at some pages of a region every now and then: a digest of what the memory or file holds, one of what the
//! image holds, and the LSN of the last record that touched the page. A page that differs from the image in two looks with no
//! record in between is written by something that the hooks do not see (or by a program that never flushes what it
//! stores, which a power cut would lose as well). One look proves nothing: a record may be on its way.
//!
//! Pure: whoever samples reads, keeps the looks and decides how often.

use std::collections::BTreeMap;

use crate::types::{ByteRange, Lsn, PAGE};

/// One page, looked at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Digest of what the source holds.
    pub source: u64,
    /// Digest of what the image holds, with every record below `last_record` applied.
    pub image: u64,
    /// Where the last record that touched the page ended when it was looked at.
    pub last_record: Lsn,
}

impl Look {
    fn differs(&self) -> bool {
        self.source != self.image
    }
}

/// The latest look at each sampled page of one region.
#[derive(Clone, Debug, Default)]
pub struct Samples {
    looks: BTreeMap<u64, Look>,
}

/// Pages that are remembered: with more, the oldest in the region's order are looked at afresh. Bounds memory to a few
/// megabytes a region.
pub const MAX_PAGES: usize = 1 << 16;

impl Samples {
    /// Enters a new look at page number `page`; returns the page's bytes if it has now been found differing from the image
    /// twice with no record in between.
    pub fn enter(&mut self, page: u64, look: Look) -> Option<ByteRange> {
        let before = self.looks.insert(page, look);
        if self.looks.len() > MAX_PAGES {
            self.looks.pop_first();
        }
        let silent = |before: Look| before.differs() && before.last_record == look.last_record;
        (look.differs() && before.is_some_and(silent)).then(|| bytes_of(page))
    }

    /// Forgets everything: after a gap or a sync, records no longer tell what the image holds.
    pub fn clear(&mut self) {
        self.looks.clear();
    }
}

fn bytes_of(page: u64) -> ByteRange {
    ByteRange::new(page * PAGE as u64, PAGE as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn look(source: u64, image: u64, last_record: u64) -> Look {
        Look { source, image, last_record: Lsn(last_record) }
    }

    #[test]
    fn two_differing_looks_without_a_record_between_are_a_finding() {
        let mut samples = Samples::default();
        assert_eq!(samples.enter(3, look(1, 2, 10)), None);
        assert_eq!(samples.enter(3, look(7, 2, 10)), Some(ByteRange::new(3 * 4096, 4096)));
    }

    #[test]
    fn a_record_between_or_an_equal_page_clears_the_suspicion() {
        let mut samples = Samples::default();
        samples.enter(3, look(1, 2, 10));
        assert_eq!(samples.enter(3, look(5, 2, 20)), None, "a record was on its way");
        assert_eq!(samples.enter(3, look(5, 5, 20)), None, "it arrived");
        assert_eq!(samples.enter(3, look(6, 5, 20)), None, "the first look since");
        samples.clear();
        assert_eq!(samples.enter(3, look(6, 5, 20)), None, "nothing is remembered");
    }

    proptest! {
        #[test]
        fn a_region_whose_every_write_is_recorded_is_never_accused(
            steps in prop::collection::vec((0u64..4, any::<bool>()), 1..200)
        ) {
            // Each step writes a page and records it at once; a look may fall before the image has caught up.
            let mut samples = Samples::default();
            let (mut source, mut image, mut lsn) = ([0u64; 4], [0u64; 4], 0);
            let mut last = [0u64; 4];
            for (page, lagging) in steps {
                let p = page as usize;
                lsn += 1;
                (source[p], last[p]) = (lsn, lsn);
                if !lagging {
                    image = source;
                }
                prop_assert_eq!(samples.enter(page, look(source[p], image[p], last[p])), None);
            }
        }
    }
}
