//! Pace: how far programs may append before their drains wait, where the operator lets them pay for being shipped at all.
//!
//! The commit level alone does not keep a program on its log. A drain whose level was given up returns at once, and one
//! whose level is a landing says nothing of whether the destination has applied it, which is what frees the ring. A program that
//! is faster than its destination would fill the ring, go ahead, fill it again beside the copy that is to make that good, which
//! is of no use then, and so on for ever. So drains hold it: while the regions are copied where the agent says, so
//! that the copy comes to its end, and otherwise while more than half of the ring is in use.
//!
//! It is advice for those who keep it, as the commit level is: no promise to a destination rests on it. Callers: `ship::sync`
//! sets it, `log::wait` keeps it.

use std::sync::atomic::Ordering::{AcqRel, Acquire};
use std::time::{Duration, Instant};

use super::format::cell;
use super::region::{LinkState, LogRegion, boottime};
use super::wait::SleepDepth;
use crate::types::Lsn;

/// How far the log may reach before drains that may be held are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// As far as it likes.
    Free,
    /// As long as half of the ring is free.
    Room,
    /// Up to here: the regions are being copied.
    Upto(Lsn),
}

/// Values of the cell that are no LSN: no log ends this early but an empty one, whose drains need not be held.
const FREE: u64 = 0;
const ROOM: u64 = 1;

/// Between two looks, the shortest and the longest.
const NAPS: (Duration, Duration) = (Duration::from_micros(50), Duration::from_millis(5));

impl LogRegion {
    /// Agent: sets how far the log may reach.
    pub fn set_pace(&self, pace: Pace) {
        let word = match pace {
            Pace::Free => FREE,
            Pace::Room => ROOM,
            Pace::Upto(lsn) => lsn.0,
        };
        // Nothing is read on the strength of it.
        self.control().u64(cell::PACE).swap(word, AcqRel);
    }

    /// How far the log may reach.
    pub fn pace(&self) -> Pace {
        match self.control().u64(cell::PACE).load(Acquire) {
            FREE => Pace::Free,
            ROOM => Pace::Room,
            lsn => Pace::Upto(Lsn(lsn)),
        }
    }

    /// Whether at least half of the ring is free.
    pub fn has_room(&self) -> bool {
        self.tail().since(self.free()) <= self.spec().ring_bytes / 2
    }

    /// Holds its caller while the log reaches too far, for at most `limit`, and as long as there is somebody who set the pace for a
    /// destination: an agent may be killed while it holds everyone, and its successor may have none.
    pub(super) fn keep_pace(&self, limit: Duration) {
        let mut held: Option<(Instant, Lsn)> = None;
        while self.is_too_far() && self.link() != LinkState::None && self.agent_alive(boottime()) {
            let (since, free) = *held.get_or_insert_with(|| (Instant::now(), self.free()));
            let waited = since.elapsed();
            if waited >= limit {
                self.hold_nobody_if_stalled(free);
                return;
            }
            self.wake_agent(SleepDepth::Nap);
            std::thread::sleep((waited / 8).clamp(NAPS.0, NAPS.1));
        }
    }

    /// To be called by who has waited for as long as it may, with what was free when it began: where nothing has moved since, the
    /// destination stalls or the agent is dead. That costs a thread one wait and not one a drain, so nobody is
    /// held any more until the agent sees something move.
    pub(super) fn hold_nobody_if_stalled(&self, free: Lsn) {
        if self.free() == free {
            self.set_pace(Pace::Free);
        }
    }

    fn is_too_far(&self) -> bool {
        match self.pace() {
            Pace::Free => false,
            Pace::Room => !self.has_room(),
            Pace::Upto(lsn) => self.tail() > lsn,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Appender, LogSpec};
    use super::*;
    use crate::log::format::{Kind, MIN_RING};
    use crate::log::region::AGENT_TIMEOUT;
    use crate::types::RegionId;
    use std::sync::Arc;

    const LIMIT: Duration = Duration::from_millis(20);

    /// A log with three quarters of its ring in use.
    fn log() -> Arc<LogRegion> {
        let spec = LogSpec { ring_bytes: MIN_RING, ..LogSpec::default() };
        let (_fd, log) = LogRegion::create(&spec).unwrap();
        let appender = Appender::attach(log.clone(), 1).unwrap();
        for _ in 0..6 {
            appender.append(Kind::Filler, RegionId(0), 0, &[0; MIN_RING as usize / 8]).unwrap();
        }
        appender.drain();
        beat(&log, LinkState::Syncing);
        log
    }

    /// The agent lives and says this of its link.
    fn beat(log: &LogRegion, link: LinkState) {
        log.beat(boottime(), std::process::id(), link);
    }

    /// Whether a drain is held for as long as it may.
    fn holds(log: &LogRegion) -> bool {
        let began = Instant::now();
        log.keep_pace(LIMIT);
        began.elapsed() >= LIMIT
    }

    #[test]
    fn a_program_is_held_while_the_log_reaches_too_far_and_once_where_nothing_moves() {
        let log = log();
        let too_far = [Pace::Room, Pace::Upto(log.free())];
        assert!(!holds(&log), "nobody has said anything");
        for pace in too_far {
            log.set_pace(pace);
            assert!(holds(&log), "{pace:?}");
            assert!(!holds(&log) && log.pace() == Pace::Free, "{pace:?}: a stall costs once");
        }
        log.set_pace(Pace::Upto(log.tail()));
        assert!(!holds(&log));
        log.set_free(log.tail());
        log.set_pace(Pace::Room);
        assert!(!holds(&log));
    }

    #[test]
    fn what_an_agent_has_left_behind_holds_nobody() {
        let log = log();
        log.set_pace(Pace::Room);
        beat(&log, LinkState::None);
        assert!(!holds(&log), "there is no destination any more");
        log.beat(boottime() - AGENT_TIMEOUT, std::process::id(), LinkState::Syncing);
        assert!(!holds(&log), "there is no agent");
        beat(&log, LinkState::Syncing);
        assert!(holds(&log));
    }

    #[test]
    fn a_destination_that_is_slow_goes_on_holding() {
        let log = log();
        log.set_pace(Pace::Room);
        std::thread::scope(|s| {
            let program = s.spawn(|| log.keep_pace(LIMIT));
            while !program.is_finished() {
                log.set_free(log.free().advance(1));
                std::thread::yield_now();
            }
        });
        assert!(log.pace() == Pace::Room || log.has_room());
    }

    #[test]
    fn a_program_goes_on_when_the_agent_says_so() {
        let log = log();
        for then in [Pace::Upto(log.tail()), Pace::Free] {
            log.set_pace(Pace::Room);
            std::thread::scope(|s| {
                beat(&log, LinkState::Syncing);
                let program = s.spawn(|| log.keep_pace(Duration::MAX));
                log.set_pace(then);
                program.join().unwrap();
            });
        }
    }
}
