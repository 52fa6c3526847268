//! Which part of the ring may be reused: everything below the slowest consumer that holds it.
//!
//! A destination that lags behind another one lets the ring go and begins anew with a copy, since it would cost the application
//! its log otherwise, and every destination a copy: one that is not connected when it keeps a quarter of the ring, one that is
//! when it keeps three eighths and one that counts is an eighth ahead. Both before half of the ring is in use, from where on
//! copies wait for room and programs with a commit level are held ([`crate::log::Pace`]). Its shipper ends first, as its
//! requests read the ring.

use std::sync::{Arc, Mutex};

use crate::locks::lock;
use crate::log::{Consumer, LogRegion};
use crate::types::Lsn;

/// One that is away may keep one in so many parts of the ring: it may be back in a moment, and half of the ring is to stay free.
const ABSENT_KEEPS: u64 = 4;

/// One that is connected may keep so many of so many parts: less than half, as well.
const SLOW_KEEPS: (u64, u64) = (3, 8);

/// And is slow if it is one in so many parts behind: not where the other one is hardly better.
const SLOW_BEHIND: u64 = 8;

/// The consumers of one log and how far each has come.
pub struct Space {
    log: Arc<LogRegion>,
    /// The destinations come first.
    holders: Mutex<Vec<Holder>>,
    destinations: usize,
}

#[derive(Clone, Copy, Debug)]
struct Holder {
    /// What it still needs begins here; none if it needs nothing.
    at: Option<Lsn>,
    /// It reads the ring.
    present: bool,
}

impl Space {
    /// So many destinations of `log`, and `others` after them. All still need everything that the ring holds, except that
    /// destinations of a log that is `fresh` need nothing before they begin: one that is never there would hold it for ever. A
    /// single one has nobody to hold it for, and the program goes ahead as it does when that one is lost later.
    pub fn new(log: Arc<LogRegion>, destinations: usize, others: usize, fresh: bool) -> Arc<Space> {
        let free = Some(log.free());
        let destination = Holder { at: free.filter(|_| !fresh || destinations == 1), present: false };
        let mut holders = vec![destination; destinations];
        holders.extend(vec![Holder { at: free, present: true }; others]);
        Arc::new(Space { log, holders: Mutex::new(holders), destinations })
    }

    /// A reader of what `who` still holds, from its first byte on; none if that is nothing. Below that the ring may be used
    /// again at any time, even while a slower consumer still keeps it.
    pub fn consumer(&self, who: usize) -> Option<Consumer> {
        let at = lock(&self.holders)[who].at?;
        Some(Consumer::new(self.log.clone(), at))
    }

    /// Consumer `who` needs nothing below `lsn` any more.
    pub fn done(&self, who: usize, lsn: Lsn) {
        let mut holders = lock(&self.holders);
        if let Some(at) = holders[who].at.as_mut().filter(|at| **at < lsn) {
            *at = lsn;
            self.free(&holders);
        }
    }

    /// Consumer `who` begins anew where the log is published up to, as `published` says; what it held means nothing to it.
    /// Returns where that is.
    pub fn begin_at(&self, who: usize, published: impl FnOnce() -> Lsn) -> Lsn {
        let mut holders = lock(&self.holders);
        let from = published();
        holders[who].at = Some(from);
        self.free(&holders);
        from
    }

    /// Whether consumer `who` reads the ring.
    pub fn set_present(&self, who: usize, present: bool) {
        lock(&self.holders)[who].present = present;
    }

    /// Consumer `who`, which does not read the ring, holds nothing until it begins anew.
    pub fn let_go(&self, who: usize) {
        let mut holders = lock(&self.holders);
        holders[who].at = None;
        self.free(&holders);
    }

    /// A destination that is to let the ring go for the sake of `of`, which is connected and `counts` or does not yet.
    pub fn in_the_way(&self, of: usize, counts: bool) -> Option<usize> {
        let holders = lock(&self.holders);
        let (ahead, tail, ring) = (holders[of].at?, self.log.tail(), self.log.spec().ring_bytes);
        let keeps = |holder: &Holder| {
            let Some(at) = holder.at.filter(|at| *at < ahead) else { return false };
            let (kept, behind) = (tail.since(at), ahead.since(at));
            match holder.present {
                false => kept > ring / ABSENT_KEEPS,
                true => counts && kept > ring / SLOW_KEEPS.1 * SLOW_KEEPS.0 && behind > ring / SLOW_BEHIND,
            }
        };
        holders[..self.destinations].iter().position(keeps)
    }

    /// Destinations that hold the ring and are not connected although another one is.
    pub fn absent(&self) -> Vec<usize> {
        let holders = lock(&self.holders);
        let destinations = &holders[..self.destinations];
        let absent = |(_, holder): &(usize, &Holder)| !holder.present && holder.at.is_some();
        match destinations.iter().any(|holder| holder.present) {
            true => destinations.iter().enumerate().filter(absent).map(|(who, _)| who).collect(),
            false => Vec::new(),
        }
    }

    fn free(&self, holders: &[Holder]) {
        if let Some(slowest) = holders.iter().filter_map(|holder| holder.at).min() {
            self.log.set_free(slowest);
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
        let space = Space::new(log.clone(), 2, 0, false);
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

    /// A log of two destinations, the first of which is connected, and its appender.
    fn eighths(present: bool) -> (Arc<LogRegion>, Appender, Arc<Space>) {
        let spec = LogSpec { ring_bytes: MIN_RING, ..LogSpec::default() };
        let (_fd, log) = LogRegion::create(&spec).unwrap();
        let space = Space::new(log.clone(), 2, 0, false);
        space.set_present(0, true);
        space.set_present(1, present);
        (log.clone(), Appender::attach(log, 1).unwrap(), space)
    }

    fn eighth(appender: &Appender) -> Lsn {
        for _ in 0..2 {
            appender.append(Kind::Data, RegionId(1), 0, &[1; MIN_RING as usize / 16 - 32]).unwrap();
        }
        appender.drain()
    }

    #[test]
    fn one_that_is_away_is_in_the_way_of_one_that_is_there_from_a_quarter_on() {
        let (log, appender, space) = eighths(false);
        let first = eighth(&appender);
        eighth(&appender);
        space.done(0, first);
        assert_eq!(space.in_the_way(0, false), None, "it may well be back in a moment");
        space.done(0, eighth(&appender));
        assert_eq!(space.in_the_way(0, false), Some(1));
        assert_eq!((space.in_the_way(1, true), space.absent()), (None, vec![1]), "it is behind itself");
        space.let_go(1);
        assert_eq!((log.free(), space.consumer(1).is_none()), (log.published(), true));
        space.done(1, first);
        assert!(space.consumer(1).is_none() && space.absent().is_empty(), "late news of what it had");
        let from = space.begin_at(1, || log.published());
        assert!(space.consumer(1).unwrap().holds(from));
        space.set_present(0, false);
        assert!(space.absent().is_empty(), "nobody is there");
    }

    #[test]
    fn one_that_is_slow_is_in_the_way_of_one_that_counts_from_three_eighths_on() {
        let (_log, appender, space) = eighths(true);
        for _ in 0..3 {
            space.done(0, eighth(&appender));
        }
        assert_eq!(space.in_the_way(0, true), None);
        space.done(0, eighth(&appender));
        assert_eq!((space.in_the_way(0, true), space.in_the_way(0, false)), (Some(1), None));
        assert!(space.absent().is_empty());
    }

    #[test]
    fn destinations_of_a_fresh_log_hold_nothing_before_they_begin_unless_there_is_but_one() {
        let (_fd, log) = LogRegion::create(&LogSpec::default()).unwrap();
        let holds =
            |destinations, fresh| Space::new(log.clone(), destinations, 1, fresh).consumer(0).is_some();
        assert_eq!([holds(1, true), holds(2, true), holds(2, false)], [true, false, true]);
        assert!(Space::new(log.clone(), 2, 1, true).consumer(2).is_some(), "an archive does");
    }
}
