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
use crate::waits;

/// Parts that the ring is thought of in.
const PARTS: u64 = 8;

/// One that has been away for [`GRACE`] may keep so many parts beside one that counts.
const ABSENT_KEEPS: u64 = 2;

/// And so many while a copy waits for room: less than what the copy may take.
const COPY_LEAVES: u64 = 1;

/// Whatever it is, one may keep so many parts beside another one that is further: less than half.
const MOST: u64 = 3;

/// And it is behind if it is so many parts behind: not where the other one is hardly better. A destination persists its image
/// every eighth of the ring, and moves by as much.
const BEHIND: u64 = 2;

/// For so long: two that are equally fast are behind each other for as long as the processors are somebody else's.
const SLOW_FOR: Duration = Duration::from_millis(100);

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
    /// So many have to count for commits to go on.
    enough: usize,
}

#[derive(Clone, Copy, Debug)]
struct Holder {
    /// What it still needs begins here; none if it needs nothing.
    at: Option<Lsn>,
    /// It reads the ring.
    present: bool,
    /// It counts for commit levels.
    counts: bool,
    /// When it moved last, or had nothing to take.
    since: Instant,
    /// When it began to read the ring.
    linked: Instant,
    /// Since when it has been behind one that counts, without a break.
    slow_since: Option<Instant>,
}

/// What the ring is wanted for.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    now: Instant,
    /// It is written up to here.
    tail: Lsn,
    /// Its bytes.
    ring: u64,
    /// A gap cannot be closed before it is free.
    overflowed: bool,
    /// A copy waits for room in it.
    copy_waits: bool,
}

impl Holder {
    /// Whether it is connected and takes nothing, though there is something.
    fn stalls(&self, now: Instant) -> bool {
        self.present && now.saturating_duration_since(self.since.max(self.linked)) > STALLS
    }

    /// Whether it keeps much of the ring, and is behind `other`.
    fn is_slow_beside(&self, other: &Holder, wanted: &Wanted) -> bool {
        let (Some(at), Some(ahead)) = (self.at, other.at) else { return false };
        let part = wanted.ring / PARTS;
        let (kept, behind) = (wanted.tail.since(at), ahead.max(at).since(at));
        other.counts && kept > MOST * part && behind > BEHIND * part
    }

    /// Whether it is to let the ring go for the sake of `other`, which is connected.
    fn is_in_the_way(&self, other: &Holder, wanted: &Wanted) -> bool {
        let (Some(at), Some(ahead)) = (self.at, other.at) else { return false };
        let part = wanted.ring / PARTS;
        let (kept, behind) = (wanted.tail.since(at), ahead.max(at).since(at));
        let rested = wanted.now.saturating_duration_since(self.since);
        let (away, stalls) = (rested > GRACE, self.stalls(wanted.now));
        let leaves_no_room = wanted.copy_waits && kept > COPY_LEAVES * part;
        match self.present {
            false if wanted.overflowed => at < wanted.tail,
            false if behind == 0 => false,
            false => {
                kept > MOST * part || away && (leaves_no_room || other.counts && kept > ABSENT_KEEPS * part)
            }
            true if behind == 0 => false,
            true if stalls && (wanted.overflowed || leaves_no_room) => true,
            true if stalls && !self.counts => behind > BEHIND * part,
            true => {
                let slow_for = self.slow_since.map(|since| wanted.now.saturating_duration_since(since));
                slow_for.is_some_and(|time| time >= SLOW_FOR) && self.is_slow_beside(other, wanted)
            }
        }
    }
}

impl Space {
    /// So many destinations of `log`, and `others` after them. All still need everything that the ring holds, except that
    /// destinations of a log that is `fresh` need nothing before they begin: one that is never there would hold it for ever. A
    /// single one has nobody to hold it for, and the program goes ahead as it does when that one is lost later. `enough`: for programs
    /// that wait for commits, so many have to count, and the slowest of them sets the pace.
    pub fn new(
        log: Arc<LogRegion>,
        (destinations, others): (usize, usize),
        enough: usize,
        fresh: bool,
    ) -> Arc<Space> {
        let free = Some(log.free());
        let since = waits::now();
        let at = free.filter(|_| !fresh || destinations == 1);
        let destination =
            Holder { at, present: false, counts: false, since, linked: since, slow_since: None };
        let other = Holder { at: free, present: true, ..destination };
        let holders = [vec![destination; destinations], vec![other; others]].concat();
        Arc::new(Space { log, holders: Mutex::new(holders), destinations, enough })
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
            holder.since = waits::now();
            self.free(&holders);
        }
    }

    /// Up to where destination `who`, which reads the ring, needs nothing any more.
    pub fn taken_to(&self, who: usize) -> Option<Lsn> {
        let holder = lock(&self.holders)[who];
        holder.at.filter(|_| holder.present)
    }

    /// Whether consumer `who` needs something of the ring.
    pub fn holds(&self, who: usize) -> bool {
        lock(&self.holders)[who].at.is_some()
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
        (holders[who].at, holders[who].since) = (Some(from), waits::now());
        self.free(&holders);
        from
    }

    /// Whether consumer `who` reads the ring.
    pub fn set_present(&self, who: usize, present: bool) {
        let mut holders = lock(&self.holders);
        let holder = &mut holders[who];
        if holder.present != present {
            (holder.present, holder.counts, holder.slow_since) = (present, false, None);
            holder.linked = waits::now();
        }
    }

    /// Consumer `who`, which does not read the ring, holds nothing until it begins anew.
    pub fn let_go(&self, who: usize) {
        let mut holders = lock(&self.holders);
        holders[who].at = None;
        self.free(&holders);
    }

    /// Destinations that are to let the ring go for the sake of one that is connected, or of a copy that waits for room: to be asked
    /// whenever one has moved, and now and then.
    pub fn in_the_way(&self, copy_waits: bool) -> Vec<usize> {
        let mut holders = lock(&self.holders);
        let (now, tail) = (waits::now(), self.log.tail());
        let destinations = &mut holders[..self.destinations];
        destinations.iter_mut().filter(|d| d.at == Some(tail)).for_each(|d| d.since = now);
        let (ring, overflowed) = (self.log.spec().ring_bytes, self.log.is_ahead());
        let wanted = Wanted { now, tail, ring, overflowed, copy_waits };
        let any_other = |who: usize, all: &[Holder], is: fn(&Holder, &Holder, &Wanted) -> bool| {
            let mut others = all.iter().enumerate().filter(|(i, other)| *i != who && other.present);
            others.any(|(_, other)| is(&all[who], other, &wanted))
        };
        for who in 0..self.destinations {
            let slow = any_other(who, destinations, Holder::is_slow_beside);
            let since = &mut destinations[who].slow_since;
            *since = slow.then(|| since.unwrap_or(now));
        }
        let mut counting = destinations.iter().filter(|d| d.counts).count();
        let is_let_go = |who: &usize| {
            let (counts, stalls) = (destinations[*who].counts, destinations[*who].stalls(now));
            let spared = counts && !stalls && counting <= self.enough && !overflowed;
            let is = !spared && any_other(*who, destinations, Holder::is_in_the_way);
            counting -= usize::from(is && counts);
            is
        };
        (0..self.destinations).filter(is_let_go).collect()
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
        let space = Space::new(log.clone(), (2, 0), 0, false);
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

    /// Two destinations, the second of which is in this state, has rested for so many seconds and ends at 0; whether it is in the
    /// way of the first, which ends at so many parts of a ring that is written up to so many. `wanted`: overflowed, a copy waits.
    fn blocks(second: (Holder, u64), counts: bool, first: u64, tail: u64, wanted: (bool, bool)) -> bool {
        let at = |parts| Lsn(parts * 1000);
        let (second, rested) = second;
        let first = Holder { at: Some(at(first)), present: true, counts, ..second };
        let second = Holder { slow_since: Some(second.since), ..second };
        let now = second.since + Duration::from_secs(rested);
        let (overflowed, copy_waits) = wanted;
        let wanted = Wanted { now, tail: at(tail), ring: PARTS * 1000, overflowed, copy_waits };
        second.is_in_the_way(&first, &wanted)
    }

    #[test]
    fn who_is_in_the_way_of_whom() {
        const NO: (bool, bool) = (false, false);
        const GAP: (bool, bool) = (true, false);
        const COPY: (bool, bool) = (false, true);
        let since = Instant::now();
        let absent = Holder {
            at: Some(Lsn(0)),
            present: false,
            counts: false,
            since,
            linked: since,
            slow_since: None,
        };
        let present = Holder { present: true, ..absent };
        let counting = Holder { counts: true, ..present };
        let (away, gone_just_now) = ((absent, 60), (absent, 1));
        let (slow, stalled, hung) = ((counting, 1), (present, 60), (counting, 60));
        let table = [
            ("away, and not in the way yet", blocks(away, true, 2, 2, NO), false),
            ("away for long", blocks(away, true, 3, 3, NO), true),
            ("away for long, beside one that does not count", blocks(away, false, 3, 3, NO), false),
            ("away for long, and a copy waits", blocks(away, false, 2, 2, COPY), true),
            ("gone just now, and a copy waits", blocks(gone_just_now, false, 2, 2, COPY), false),
            ("gone just now", blocks(gone_just_now, true, 3, 3, NO), false),
            ("gone just now, and too much is kept", blocks(gone_just_now, false, 4, 4, NO), true),
            ("away, though no further behind", blocks(away, true, 0, 7, NO), false),
            ("away, and a gap is to be closed", blocks(gone_just_now, false, 0, 1, GAP), true),
            ("slow", blocks(slow, true, 4, 4, NO), true),
            ("slow just now", blocks((counting, 0), true, 4, 4, NO), false),
            ("slow, beside one that is hardly better", blocks(slow, true, 2, 4, NO), false),
            ("slow, beside one that does not count", blocks(slow, false, 4, 4, NO), false),
            ("slow, with room enough", blocks(slow, true, 3, 3, NO), false),
            ("stalled", blocks(stalled, false, 3, 3, NO), true),
            ("hung, though it counts", blocks(hung, true, 4, 4, NO), true),
            ("hung, and in nobody's way", blocks(hung, true, 2, 2, NO), false),
            ("hung, and a gap is to be closed", blocks(hung, true, 1, 1, GAP), true),
            ("hung, and a copy waits", blocks(hung, false, 2, 2, COPY), true),
            ("slow, and a copy waits", blocks(slow, false, 2, 2, COPY), false),
            (
                "linked just now",
                blocks(
                    (Holder { linked: since + Duration::from_secs(59), ..present }, 60),
                    false,
                    3,
                    3,
                    COPY,
                ),
                false,
            ),
            ("holds nothing", blocks((Holder { at: None, ..absent }, 60), true, 7, 7, GAP), false),
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
        assert!(space.in_the_way(false).is_empty() && log.free() == first);
        space.let_go(1);
        assert_eq!((log.free(), space.consumer(1).is_none()), (end, true));
        space.done(1, first);
        assert!(space.consumer(1).is_none(), "late news of what it had");
        let from = space.begin_at(1, || log.published());
        assert!(space.consumer(1).unwrap().holds(from));
    }

    /// Both destinations count, the first ends where the log does, and the second has been slow and keeps half of the ring.
    fn slow_ones(enough: usize) -> Vec<usize> {
        let spec = LogSpec { ring_bytes: MIN_RING, ..LogSpec::default() };
        let (_fd, log) = LogRegion::create(&spec).unwrap();
        let appender = Appender::attach(log.clone(), 1).unwrap();
        let space = Space::new(log.clone(), (2, 0), enough, false);
        for who in 0..2 {
            space.set_present(who, true);
            space.set_counts(who, true);
        }
        while log.tail().since(log.free()) <= MIN_RING / 2 {
            appender.append(Kind::Data, RegionId(1), 0, &[1; 64]).unwrap();
        }
        space.done(0, appender.drain());
        space.in_the_way(false);
        std::thread::sleep(SLOW_FOR);
        space.in_the_way(false)
    }

    #[test]
    fn one_that_commits_rest_on_is_not_let_go_for_being_slow() {
        assert_eq!([slow_ones(0), slow_ones(1), slow_ones(2)], [vec![1], vec![1], vec![]]);
    }

    #[test]
    fn destinations_of_a_fresh_log_hold_nothing_before_they_begin_unless_there_is_but_one() {
        let (_fd, log) = LogRegion::create(&LogSpec::default()).unwrap();
        let holds =
            |destinations, fresh| Space::new(log.clone(), (destinations, 1), 0, fresh).consumer(0).is_some();
        assert_eq!([holds(1, true), holds(2, true), holds(2, false)], [true, false, true]);
        assert!(Space::new(log.clone(), (2, 1), 0, true).consumer(2).is_some(), "an archive does");
    }
}
