//! The battery budget of a log: drains hold their programs so that no more is exposed than the battery can carry.
//!
//! Only where the operator chose `budget = "enforce"`: then the agent says how much may be exposed, and follows bandwidth and battery with
//! it. A drain that has published waits: a little above the first threshold, the longer the nearer to the second, and at
//! that one until less is exposed. As long as there is an agent that says so and a destination that counts: without, nothing
//! that a program waits for would make its data any safer. Callers: the agent's `budget_watch` sets it, `log::wait` keeps it.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use std::time::{Duration, Instant};

use super::format::cell;
use super::region::{LinkState, LogRegion, boottime};
use super::threshold::{Delay, Thresholds};
use super::wait::SleepDepth;
use crate::types::Lsn;

/// Longest sleep between two looks at thresholds, link and agent.
const LOOK: Duration = Duration::from_millis(20);

/// Shortest one, where it is not known how long it takes.
const NAP: Duration = Duration::from_micros(200);

impl LogRegion {
    /// Agent: sets how much may be exposed; `None`: nobody is held.
    pub fn set_budget(&self, thresholds: Option<Thresholds>) {
        let control = self.control();
        control.u64(cell::BUDGET + 8).store(thresholds.map_or(0, |t| t.drain), Relaxed);
        // 0 is no budget, so that one of nothing is one byte, which comes to the same.
        let t2 = thresholds.map_or(0, |t| t.t2.max(1));
        // Each word is read by itself: whoever sees half of it looks again in a moment.
        control.u64(cell::BUDGET).swap(t2, AcqRel);
    }

    /// Agent: a destination has made everything below `lsn` durable, whatever commits ask of the others. May go back, where that one
    /// begins anew. Not past an open gap, as acknowledgements.
    pub fn set_durable_somewhere(&self, lsn: Lsn) {
        let limit = self.gap().filter(|gap| gap.end.is_none()).map_or(lsn, |gap| gap.start);
        self.control().u64(cell::BUDGET + 16).store(lsn.min(limit).0, Relaxed);
    }

    fn durable_somewhere(&self) -> Lsn {
        Lsn(self.control().u64(cell::BUDGET + 16).load(Relaxed))
    }

    /// How much may be exposed.
    pub fn budget(&self) -> Option<Thresholds> {
        match self.control().u64(cell::BUDGET).load(Acquire) {
            0 => None,
            t2 => Some(Thresholds::of(t2, self.control().u64(cell::BUDGET + 8).load(Relaxed))),
        }
    }

    /// Holds its caller, who has published everything up to `lsn`, for as long as what is exposed demands.
    pub(super) fn keep_budget(&self, lsn: Lsn) {
        let Some(thresholds) = self.budget() else { return };
        // What this process has published since it last came here, by whichever thread.
        let before = self.paid.fetch_max(lsn.0, Relaxed);
        let bytes = lsn.0.saturating_sub(before.max(self.durable_somewhere().0));
        let (mut thresholds, began) = (thresholds, Instant::now());
        loop {
            let durable = self.durable_somewhere();
            // What this drain was about is safe, whatever others expose.
            if durable >= lsn {
                return;
            }
            let exposed = self.published().since(durable);
            let left = match thresholds.delay(bytes, exposed) {
                Delay::None => return,
                Delay::For(time) => time.saturating_sub(began.elapsed()),
                Delay::UntilLess => (began.elapsed() / 8).max(NAP),
            };
            if left.is_zero() || self.link() != LinkState::Counting || !self.agent_alive(boottime()) {
                return;
            }
            self.wake_agent(SleepDepth::Nap);
            std::thread::sleep(left.min(LOOK));
            match self.budget() {
                Some(now) => thresholds = now,
                None => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Appender, LogSpec, Policy};
    use super::*;
    use crate::log::format::{Kind, MIN_RING};
    use crate::log::region::AGENT_TIMEOUT;
    use crate::types::RegionId;
    use std::sync::Arc;

    const PIECE: usize = MIN_RING as usize / 8;

    /// A log whose agent lives and has a destination that counts, with `pieces` appended and published.
    fn log(pieces: u32) -> (Arc<LogRegion>, Appender) {
        let spec = LogSpec { ring_bytes: MIN_RING, ..LogSpec::default() };
        let (_fd, log) = LogRegion::create(&spec).unwrap();
        log.set_policy(Policy { enforced: true, ..log.policy() });
        let appender = Appender::attach(log.clone(), 1).unwrap();
        for _ in 0..pieces {
            appender.append(Kind::Filler, RegionId(0), 0, &[0; PIECE]).unwrap();
        }
        log.beat(boottime(), std::process::id(), LinkState::Counting);
        (log, appender)
    }

    /// Whether a drain is held: still, a while after it has published, with `done` called again and again meanwhile. One that is not
    /// may take its time.
    fn is_held_while(log: &Arc<LogRegion>, appender: &Appender, mut done: impl FnMut(u32)) -> bool {
        std::thread::scope(|s| {
            let program = s.spawn(|| appender.commit(appender.drain()));
            let mut times = 0;
            let deadline = Instant::now() + Duration::from_secs(20);
            while !program.is_finished() && times < 40 && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(2));
                log.beat(boottime(), std::process::id(), LinkState::Counting);
                done(times);
                times += u32::from(log.published() == log.tail());
            }
            let held = !program.is_finished();
            log.set_budget(None);
            program.join().unwrap();
            held
        })
    }

    /// The same where it is not to be held: waits for its end.
    fn ends(log: &Arc<LogRegion>, appender: &Appender, mut done: impl FnMut(u32)) {
        std::thread::scope(|s| {
            let program = s.spawn(|| appender.commit(appender.drain()));
            let deadline = Instant::now() + Duration::from_secs(20);
            for times in 0.. {
                if program.is_finished() {
                    return;
                }
                assert!(Instant::now() < deadline, "it is held");
                log.beat(boottime(), std::process::id(), LinkState::Counting);
                done(times);
                std::thread::sleep(Duration::from_millis(2));
            }
        });
    }

    #[test]
    fn nobody_is_held_below_the_first_threshold_nor_without_a_budget() {
        let (log, appender) = log(3);
        ends(&log, &appender, |_| {});
        log.set_budget(Some(Thresholds::of(8 * PIECE as u64, 1 << 20)));
        ends(&log, &appender, |_| {});
    }

    #[test]
    fn at_the_second_threshold_a_drain_is_held_until_less_is_exposed() {
        let (log, appender) = log(3);
        log.set_budget(Some(Thresholds::of(2 * PIECE as u64, 1 << 30)));
        assert!(is_held_while(&log, &appender, |_| {}), "it exposes more than the battery carries");
        log.set_budget(Some(Thresholds::of(2 * PIECE as u64, 1 << 30)));
        ends(&log, &appender, |_| log.set_durable_somewhere(log.published()));
    }

    #[test]
    fn a_budget_that_grows_or_goes_lets_programs_go_on() {
        let (log, appender) = log(3);
        for then in [Some(Thresholds::of(1 << 30, 1 << 20)), None] {
            log.set_budget(Some(Thresholds::of(1, 0)));
            ends(&log, &appender, |times| {
                if times > 3 {
                    log.set_budget(then);
                }
            });
        }
    }

    #[test]
    fn what_an_agent_has_left_behind_holds_nobody_nor_does_a_destination_that_does_not_count() {
        let (log, appender) = log(3);
        log.set_budget(Some(Thresholds::of(1, 0)));
        log.beat(boottime(), std::process::id(), LinkState::Syncing);
        appender.commit(appender.drain());
        log.beat(boottime() - AGENT_TIMEOUT, std::process::id(), LinkState::Counting);
        appender.commit(appender.drain());
        assert!(log.budget().is_some());
    }

    #[test]
    fn a_drain_whose_records_are_safe_goes_on_whatever_others_expose() {
        let (log, appender) = log(3);
        let mine = appender.drain();
        appender.append(Kind::Filler, RegionId(0), 0, &[0; PIECE]).unwrap();
        appender.drain();
        log.set_budget(Some(Thresholds::of(1, 1 << 20)));
        log.set_durable_somewhere(mine);
        std::thread::scope(|s| {
            let program = s.spawn(|| appender.commit(mine));
            let deadline = Instant::now() + Duration::from_secs(20);
            while !program.is_finished() {
                assert!(Instant::now() < deadline, "it is held for another's records");
                log.beat(boottime(), std::process::id(), LinkState::Counting);
                std::thread::sleep(Duration::from_millis(2));
            }
        });
    }

    #[test]
    fn between_the_thresholds_a_drain_waits_as_long_as_its_bytes_take() {
        let (log, appender) = log(3);
        // In the middle between them: as long as three pieces take to drain.
        let exposed = log.tail().since(log.spec().first_lsn);
        let began = Instant::now();
        log.set_budget(Some(Thresholds::of(exposed * 4 / 3, exposed * 50)));
        appender.commit(appender.drain());
        assert!(began.elapsed() >= Duration::from_millis(18), "{:?}", began.elapsed());
        // Nothing was appended since.
        appender.commit(appender.drain());
    }
}
