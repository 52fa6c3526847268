//! Large pages for one process, period by period: count, rank, act, see what came of it, clear.
//!
//! A governor has no clock and no thread: whoever runs it calls [`Governor::step`] and then waits for [`Governor::pause`].

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use super::actuator::{Actuator, Outcome};
use super::mappings;
use super::period::Period;
use super::policy::{Action, Asked, Bits, Look, Range, Ranking, Settings, Standing};
use super::source::{AccessBits, Kind};

/// Ranges of a process that are looked at, 256 GiB: those beyond, by address, are left alone.
pub const MOST_RANGES: usize = 1 << 17;

/// Large pages of one process.
pub struct Governor {
    proc: PathBuf,
    pid: u32,
    bits: Box<dyn AccessBits>,
    actuator: Box<dyn Actuator>,
    ranking: Ranking,
    period: Period,
    cleared: bool,
    totals: Totals,
}

/// What was done since the beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Periods counted.
    pub periods: u64,
    /// Ranges that the system mapped large.
    pub mapped: u64,
    /// Ranges that were given their small pages again.
    pub demoted: u64,
    /// Tries that the system put off.
    pub busy: u64,
    /// Ranges that it refused.
    pub refused: u64,
    /// Processor time of counting, microseconds.
    pub counting_us: u64,
    /// Processor time of mapping and demoting, microseconds.
    pub acting_us: u64,
}

/// What one period brought.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// How access bits are seen.
    pub source: Kind,
    /// Ranges looked at.
    pub ranges: usize,
    /// Whether the first phase is over.
    pub settled: bool,
    /// What was to be done, and how it ended; none where the caller only looks.
    pub actions: Vec<(Action, Option<Outcome>)>,
    /// Bytes mapped large before the actions and after them, as the process's mappings tell.
    pub large_bytes: (u64, u64),
    /// Processor time of counting in this period, microseconds.
    pub counting_us: u64,
}

impl Governor {
    /// Of process `pid`, by `bits` and `actuator`; `proc` is where procfs is.
    pub fn new(
        proc: &Path,
        pid: u32,
        bits: Box<dyn AccessBits>,
        actuator: Box<dyn Actuator>,
        settings: Settings,
        shortest: Duration,
    ) -> Governor {
        Governor {
            proc: proc.into(),
            pid,
            bits,
            actuator,
            ranking: Ranking::new(settings),
            period: Period::new(shortest),
            cleared: false,
            totals: Totals::default(),
        }
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Until the next step: counting stays within its share of a processor.
    pub fn pause(&self) -> Duration {
        self.period.length()
    }

    /// All ranges, the best first.
    pub fn standings(&self) -> Vec<Standing> {
        self.ranking.standings()
    }

    /// What was done since the beginning.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// One period. Acts only if `act` says so. An error means that the process has ended, or may not be looked at.
    pub fn step(&mut self, act: bool, asked: Asked) -> io::Result<Step> {
        let begin = processor_time();
        if !self.cleared {
            // What was set before anybody counted tells of no period.
            self.bits.clear()?;
            self.cleared = true;
            self.period = self.period.after(processor_time().saturating_sub(begin));
            return Ok(self.report(0, Vec::new(), (0, 0), Duration::ZERO));
        }
        let mappings = mappings::of(&self.proc, self.pid)?;
        let mut ranges: Vec<Range> = mappings.iter().flat_map(|m| m.ranges()).collect();
        ranges.truncate(MOST_RANGES);
        let bits = self.bits.count(&ranges)?;
        let written = self.written(&bits);
        let looks = ranges.iter().zip(bits).zip(written);
        let looks: Vec<Look> =
            looks.map(|((range, bits), written)| Look { range: *range, bits, written }).collect();
        self.ranking.observe(&looks);
        self.totals.periods += 1;
        let large = |mappings: &[mappings::Mapping]| mappings.iter().map(|m| m.large).sum::<u64>();
        let before = large(&mappings);
        let counted = processor_time();

        let wanted = self.ranking.decide(asked);
        let mut actions = Vec::new();
        for action in wanted {
            let outcome = if act { Some(self.act(action)?) } else { None };
            actions.push((action, outcome));
        }
        let did = actions.iter().any(|(_, outcome)| outcome == &Some(Outcome::Done));
        let after = if did { large(&mappings::of(&self.proc, self.pid)?) } else { before };
        let acted = processor_time();
        self.totals.acting_us += micros(acted.saturating_sub(counted));

        self.bits.clear()?;
        let cost = processor_time().saturating_sub(acted) + counted.saturating_sub(begin);
        self.period = self.period.after(cost);
        Ok(self.report(ranges.len(), actions, (before, after), cost))
    }

    /// Of a source that sees writes, every count is one of them as well.
    fn written(&self, bits: &[Bits]) -> Vec<Option<u16>> {
        let of = |bits: &Bits| match (self.bits.kind(), bits) {
            (Kind::WriteLog, Bits::Small(n)) => Some(*n),
            _ => None,
        };
        bits.iter().map(of).collect()
    }

    fn act(&mut self, action: Action) -> io::Result<Outcome> {
        let outcome = self.actuator.act(action)?;
        match (&outcome, action) {
            (Outcome::Done, Action::Map(range)) => {
                self.totals.mapped += 1;
                self.bits.now(range, true);
                self.ranking.done(action);
            }
            (Outcome::Done, Action::Demote(range)) => {
                self.totals.demoted += 1;
                self.bits.now(range, false);
                self.ranking.done(action);
            }
            (Outcome::Busy(_), Action::Map(range) | Action::Demote(range)) => {
                self.totals.busy += 1;
                self.ranking.busy(range);
            }
            (Outcome::Refused(_), Action::Map(range) | Action::Demote(range)) => {
                self.totals.refused += 1;
                self.ranking.refused(range);
            }
        }
        Ok(outcome)
    }

    fn report(
        &mut self,
        ranges: usize,
        actions: Vec<(Action, Option<Outcome>)>,
        large_bytes: (u64, u64),
        cost: Duration,
    ) -> Step {
        self.totals.counting_us += micros(cost);
        let settled = self.ranking.is_settled();
        Step { source: self.bits.kind(), ranges, settled, actions, large_bytes, counting_us: micros(cost) }
    }
}

/// What this thread has used of a processor.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn micros(time: Duration) -> u64 {
    time.as_micros() as u64
}

#[cfg(test)]
#[path = "governor/tests.rs"]
mod tests;
