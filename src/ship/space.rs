//! Which part of the ring may be reused: everything below the slowest consumer.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire};

use crate::log::{Consumer, LogRegion};
use crate::types::Lsn;

/// The consumers of one log and how far each has come.
pub struct Space {
    log: Arc<LogRegion>,
    done: Vec<AtomicU64>,
}

impl Space {
    /// `consumers` of `log`, all of which still need everything that the ring holds.
    pub fn new(log: Arc<LogRegion>, consumers: usize) -> Arc<Space> {
        let free = log.free().0;
        Arc::new(Space { log, done: (0..consumers).map(|_| AtomicU64::new(free)).collect() })
    }

    /// A reader of what `who` still holds, from its first byte on. Below that the ring may be used again at any time, even
    /// while a slower consumer still keeps it.
    pub fn consumer(&self, who: usize) -> Consumer {
        Consumer::new(self.log.clone(), Lsn(self.done[who].load(Acquire)))
    }

    /// Consumer `who` needs nothing below `lsn` any more.
    pub fn done(&self, who: usize, lsn: Lsn) {
        if self.done[who].fetch_max(lsn.0, AcqRel) >= lsn.0 {
            return;
        }
        let slowest = self.done.iter().map(|d| d.load(Acquire)).min().unwrap_or(lsn.0);
        self.log.set_free(Lsn(slowest));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::format::{Kind, MIN_RING};
    use crate::log::{Appender, LogSpec};
    use crate::types::RegionId;

    #[test]
    fn the_slowest_consumer_holds_the_ring() {
        let (log, [first, middle, end], space) = two_records();
        space.done(0, end);
        assert_eq!(log.free(), first);
        space.done(1, middle);
        assert_eq!(log.free(), middle);
        space.done(0, middle);
        space.done(1, end);
        assert_eq!(log.free(), end);
    }

    /// A log with two published records: the region, where they start and end, and the space of two consumers.
    fn two_records() -> (Arc<LogRegion>, [Lsn; 3], Arc<Space>) {
        let spec = LogSpec { ring_bytes: MIN_RING, ..LogSpec::default() };
        let (_fd, log) = LogRegion::create(&spec).unwrap();
        let appender = Appender::attach(log.clone(), 1).unwrap();
        let first = log.free();
        let middle = appender.append(Kind::Data, RegionId(1), 0, &[1; 64]).unwrap();
        appender.append(Kind::Data, RegionId(1), 64, &[2; 64]).unwrap();
        let end = appender.drain();
        let space = Space::new(log.clone(), 2);
        (log, [first, middle, end], space)
    }

    #[test]
    fn a_consumer_finds_again_what_it_holds_and_nothing_that_only_another_one_does() {
        let (log, [first, middle, end], space) = two_records();
        for place in [first, middle, end] {
            assert!(space.consumer(0).holds(place), "{place}");
        }
        assert!(!space.consumer(0).holds(middle.advance(32)), "no record starts there");
        assert!(!space.consumer(0).holds(end.advance(96)), "nothing is published there");
        space.done(0, middle);
        assert_eq!(log.free(), first, "the other one still holds it");
        assert!(!space.consumer(0).holds(first), "what it gave free may be used again at any time");
        assert!(space.consumer(0).holds(middle) && space.consumer(0).holds(end));
        assert!(space.consumer(1).holds(first));
    }

    #[test]
    fn what_is_used_again_meanwhile_is_not_found() {
        let (log, [_, middle, end], space) = two_records();
        let consumer = space.consumer(0);
        log.set_free(end);
        assert!(!consumer.holds(middle));
    }

    #[test]
    fn looking_for_a_record_writes_nothing() {
        let (log, [first, _, end], space) = two_records();
        let contents = || {
            let mut bytes = vec![0; end.since(first) as usize];
            log.ring().read(log.ring_offset(first.0), &mut bytes);
            bytes
        };
        let before = contents();
        assert!(space.consumer(0).holds(end));
        assert!(before == contents(), "a header was sealed");
    }
}
