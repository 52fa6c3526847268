//! Which part of the ring may be reused: everything below the slowest consumer that holds it.
//!
//! A destination that lags far behind another one is *shed*: it lets the ring go and begins anew, since it would cost the
//! application its log otherwise, and every destination a new copy. Its shipper ends first, as its requests read the ring.

use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Release, SeqCst};
use std::sync::atomic::{AtomicU64, fence};

use crate::log::{Consumer, LogRegion};
use crate::types::Lsn;

/// In place of a position: the consumer holds nothing.
const NOTHING: u64 = u64::MAX;

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

    /// A reader of what `who` still holds, from its first byte on; none if that is nothing. Below that the ring may be used
    /// again at any time, even while a slower consumer still keeps it.
    pub fn consumer(&self, who: usize) -> Option<Consumer> {
        let at = self.done[who].load(Acquire);
        (at != NOTHING).then(|| Consumer::new(self.log.clone(), Lsn(at)))
    }

    /// Consumer `who` needs nothing below `lsn` any more.
    pub fn done(&self, who: usize, lsn: Lsn) {
        if self.done[who].fetch_max(lsn.0, AcqRel) < lsn.0 {
            self.free();
        }
    }

    /// Consumer `who` begins anew where the log is published up to, as `published` says; what it held means nothing to it.
    /// Returns where that is.
    pub fn begin_at(&self, who: usize, published: impl Fn() -> Lsn) -> Lsn {
        loop {
            let from = published();
            self.done[who].store(from.0, Release);
            // Others may have freed what is behind it before it was held.
            fence(SeqCst);
            if self.log.free() <= from {
                self.free();
                return from;
            }
        }
    }

    /// Consumer `who`, which reads the ring no longer, holds nothing until it begins anew.
    pub fn let_go(&self, who: usize) {
        self.done[who].store(NOTHING, Release);
        self.free();
    }

    /// A consumer among the first `among` that keeps most of the ring although `of`, another one, is far ahead of it.
    pub fn in_the_way(&self, of: usize, among: usize) -> Option<usize> {
        let at = |who: usize| self.done[who].load(Acquire);
        let (ahead, tail, ring) = (at(of), self.log.tail().0, self.log.spec().ring_bytes);
        let keeps = |who: &usize| {
            let behind = at(*who);
            behind < ahead && tail.saturating_sub(behind) > ring / 4 * 3 && ahead - behind > ring / 4
        };
        (0..among).find(keeps).filter(|_| ahead != NOTHING)
    }

    fn free(&self) {
        let slowest = self.done.iter().map(|d| d.load(Acquire)).filter(|at| *at != NOTHING).min();
        if let Some(slowest) = slowest {
            self.log.set_free(Lsn(slowest));
        }
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
        let consumer = |who| space.consumer(who).unwrap();
        for place in [first, middle, end] {
            assert!(consumer(0).holds(place), "{place}");
        }
        assert!(!consumer(0).holds(middle.advance(32)), "no record starts there");
        assert!(!consumer(0).holds(end.advance(96)), "nothing is published there");
        space.done(0, middle);
        assert_eq!(log.free(), first, "the other one still holds it");
        assert!(!consumer(0).holds(first), "what it gave free may be used again at any time");
        assert!(consumer(0).holds(middle) && consumer(0).holds(end));
        assert!(consumer(1).holds(first));
    }

    #[test]
    fn what_is_used_again_meanwhile_is_not_found() {
        let (log, [_, middle, end], space) = two_records();
        let consumer = space.consumer(0).unwrap();
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
        assert!(space.consumer(0).unwrap().holds(end));
        assert!(before == contents(), "a header was sealed");
    }

    #[test]
    fn one_that_lags_behind_another_is_in_the_way_and_holds_nothing_once_it_has_let_go() {
        let spec = LogSpec { ring_bytes: MIN_RING, ..LogSpec::default() };
        let (_fd, log) = LogRegion::create(&spec).unwrap();
        let appender = Appender::attach(log.clone(), 1).unwrap();
        let space = Space::new(log.clone(), 3);
        let quarter = || {
            for _ in 0..4 {
                appender.append(Kind::Data, RegionId(1), 0, &[1; MIN_RING as usize / 16 - 32]).unwrap();
            }
            appender.drain()
        };
        let first = quarter();
        space.done(0, first);
        assert_eq!(space.in_the_way(0, 2), None, "much room is left");
        quarter();
        let end = quarter();
        appender.append(Kind::Data, RegionId(1), 0, &[1; 64]).unwrap();
        assert_eq!(space.in_the_way(0, 2), None, "it is not so far ahead itself");
        space.done(0, end);
        assert_eq!(space.in_the_way(0, 2), Some(1));
        assert_eq!(
            (space.in_the_way(0, 1), space.in_the_way(1, 2)),
            (None, None),
            "not itself, nor one that is ahead"
        );
        space.let_go(1);
        assert!(space.consumer(1).is_none() && log.free() < end, "the third holds it all");
        space.let_go(2);
        assert_eq!((log.free(), space.in_the_way(0, 2), space.in_the_way(1, 2)), (end, None, None));
        space.done(1, first);
        assert!(space.consumer(1).is_none(), "late news of what it had");
        let from = space.begin_at(1, || log.published());
        assert!(space.consumer(1).unwrap().holds(from));
    }
}
