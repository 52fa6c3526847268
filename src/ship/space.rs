//! Which part of the ring may be reused: everything below the slowest consumer that holds it.
//!
//! A destination that lags behind another one lets the ring go and begins anew with a copy, since it would cost the application
//! its log otherwise, and every destination a copy. Whether it does is decided by `Holder::is_in_the_way`, always before half of
//! the ring is in use: from there on programs with a commit level are held ([`crate::log::Pace`]). A copy that several
//! destinations share takes a quarter, so that none is in the way for what it is being sent. Its shipper ends first, as
//! its requests read the ring.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::locks::lock;
use crate::log::{Consumer, LogRegion};
use crate::types::Lsn;

/// Parts that the ring is thought of in.
const PARTS: u64 = 8;

/// One that has been away for [`GRACE`] may keep so many parts beside one that counts.
const ABSENT_KEEPS: u64 = 2;

/// Whatever it is, one may keep so many parts beside another one that is further: less than half.
const MOST: u64 = 3;

/// And it is behind if it is so many parts behind: not where the other one is hardly better.
const BEHIND: u64 = 1;

/// A link that is lost, or an agent that starts, is mostly back within this time.
const GRACE: Duration = Duration::from_secs(3);

/// One that is connected and takes nothing for so long, though there is something, stalls: a full disk, say.
const STALLS: Duration = Duration::from_secs(5);

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
    /// It counts for commit levels.
    counts: bool,
    /// When it came, went, or moved last.
    since: Instant,
}

impl Holder {
    /// Whether it is to let a ring of `ring` bytes that is written up to `tail` go for the sake of `other`, which is connected;
    /// `overflowed`: a gap cannot be closed before the ring is free.
    fn is_in_the_way(&self, other: &Holder, tail: Lsn, ring: u64, overflowed: bool) -> bool {
        let (Some(at), Some(ahead)) = (self.at, other.at) else { return false };
        let part = ring / PARTS;
        let (kept, behind) = (tail.since(at), Lsn(ahead.0.max(at.0)).since(at));
        match self.present {
            false if overflowed => true,
            false if behind == 0 => false,
            false => {
                kept > MOST * part
                    || kept > ABSENT_KEEPS * part && other.counts && self.since.elapsed() > GRACE
            }
            true if self.since.elapsed() > STALLS => !self.counts && behind > BEHIND * part,
            true => other.counts && kept > MOST * part && behind > BEHIND * part,
        }
    }
}

impl Space {
    /// So many destinations of `log`, and `others` after them. All still need everything that the ring holds, except that
    /// destinations of a log that is `fresh` need nothing before they begin: one that is never there would hold it for ever. A
    /// single one has nobody to hold it for, and the program goes ahead as it does when that one is lost later.
    pub fn new(log: Arc<LogRegion>, destinations: usize, others: usize, fresh: bool) -> Arc<Space> {
        let free = Some(log.free());
        let since = Instant::now();
        let at = free.filter(|_| !fresh || destinations == 1);
        let destination = Holder { at, present: false, counts: false, since };
        let other = Holder { at: free, present: true, ..destination };
        let holders = [vec![destination; destinations], vec![other; others]].concat();
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
        let holder = &mut holders[who];
        if let Some(at) = holder.at.as_mut().filter(|at| **at < lsn) {
            *at = lsn;
            holder.since = Instant::now();
            self.free(&holders);
        }
    }

    /// Whether destination `who` counts.
    pub fn set_counts(&self, who: usize, counts: bool) {
        lock(&self.holders)[who].counts = counts;
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
        let mut holders = lock(&self.holders);
        let holder = &mut holders[who];
        if holder.present != present {
            (holder.present, holder.counts, holder.since) = (present, false, Instant::now());
        }
    }

    /// Consumer `who`, which does not read the ring, holds nothing until it begins anew.
    pub fn let_go(&self, who: usize) {
        let mut holders = lock(&self.holders);
        holders[who].at = None;
        self.free(&holders);
    }

    /// Destinations that are to let the ring go for the sake of one that is connected: to be asked whenever one has moved, and
    /// now and then.
    pub fn in_the_way(&self) -> Vec<usize> {
        let holders = lock(&self.holders);
        let destinations = &holders[..self.destinations];
        let (tail, ring, ahead) = (self.log.tail(), self.log.spec().ring_bytes, self.log.is_ahead());
        let blocks = |holder: &Holder| {
            let others = destinations.iter().filter(|other| other.present && !std::ptr::eq(*other, holder));
            others.into_iter().any(|other| holder.is_in_the_way(other, tail, ring, ahead))
        };
        (0..self.destinations).filter(|who| blocks(&destinations[*who])).collect()
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

    /// Two destinations, the second of which is in this state and ends at 0; whether it is in the way of the first, which ends at
    /// so many parts of a ring that is written up to so many.
    fn blocks(second: Holder, counts: bool, first: u64, tail: u64, overflowed: bool) -> bool {
        let at = |parts| Lsn(parts * 1000);
        let first = Holder { at: Some(at(first)), present: true, counts, since: Instant::now() };
        second.is_in_the_way(&first, at(tail), PARTS * 1000, overflowed)
    }

    #[test]
    fn who_is_in_the_way_of_whom() {
        let now = Instant::now();
        let long_ago = now.checked_sub(Duration::from_secs(60)).expect("the machine has run for a minute");
        let away = Holder { at: Some(Lsn(0)), present: false, counts: false, since: long_ago };
        let gone_just_now = Holder { since: now, ..away };
        let slow = Holder { present: true, counts: true, ..gone_just_now };
        let stalled = Holder { counts: false, since: long_ago, ..slow };
        let table = [
            ("away, and not in the way yet", blocks(away, true, 2, 2, false), false),
            ("away for long", blocks(away, true, 3, 3, false), true),
            ("away for long, beside one that does not count", blocks(away, false, 3, 3, false), false),
            ("gone just now", blocks(gone_just_now, true, 3, 3, false), false),
            ("gone just now, and too much is kept", blocks(gone_just_now, false, 4, 4, false), true),
            ("away, though no further behind", blocks(away, true, 0, 7, false), false),
            ("away, and a gap is to be closed", blocks(gone_just_now, false, 0, 1, true), true),
            ("slow", blocks(slow, true, 4, 4, false), true),
            ("slow, beside one that is hardly better", blocks(slow, true, 1, 4, false), false),
            ("slow, beside one that does not count", blocks(slow, false, 4, 4, false), false),
            ("slow, with room enough", blocks(slow, true, 3, 3, false), false),
            ("stalled", blocks(stalled, false, 2, 2, false), true),
            (
                "counts and has nothing to take",
                blocks(Holder { counts: true, ..stalled }, true, 2, 2, false),
                false,
            ),
            ("holds nothing", blocks(Holder { at: None, ..away }, true, 7, 7, true), false),
        ];
        for (what, is, wanted) in table {
            assert_eq!(is, wanted, "{what}");
        }
    }

    #[test]
    fn one_that_has_let_go_holds_nothing_until_it_begins_anew() {
        let (log, [first, _, end], space) = two_records();
        space.set_present(0, true);
        space.done(0, end);
        assert!(space.in_the_way().is_empty() && log.free() == first);
        space.let_go(1);
        assert_eq!((log.free(), space.consumer(1).is_none()), (end, true));
        space.done(1, first);
        assert!(space.consumer(1).is_none(), "late news of what it had");
        let from = space.begin_at(1, || log.published());
        assert!(space.consumer(1).unwrap().holds(from));
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
