//! Which 2 MiB ranges are mapped large, in which order, and which are taken apart again: a pure decision.
//!
//! Each period, the access bits that are set in a range's lowest page table are counted: N. The range's current count value is
//! the mean of its last value and N: CCV <- (CCV + N) / 2. During the first phase, [`Settings::settle`] periods, the values
//! settle and nothing is mapped large. Afterwards ranges are ranked by CCV less what sparse writes would cost dirty tracking
//! once a single mark stands for 512 pages; the best that reach [`Settings::threshold`] are mapped first, a bounded number each period, for as long as
//! the process lives. A range that went cold is given back its small pages only when somebody asks for that.
//! `docs/largepages.md` has the table.

use std::collections::BTreeMap;

use serde::Serialize;

/// Pages of 4 KiB in a range.
pub const PAGES: u16 = 512;

/// A range of 2 MiB, named by its number: its first address divided by its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Range(pub u64);

impl Range {
    /// Bytes of a range.
    pub const BYTES: u64 = 2 << 20;

    /// Its first address.
    pub fn start(self) -> u64 {
        self.0 * Range::BYTES
    }

    /// The range in which an address lies.
    pub fn of(address: u64) -> Range {
        Range(address / Range::BYTES)
    }
}

/// How the policy decides.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Settings {
    /// Periods of the first phase, in which nothing is mapped large.
    pub settle: u32,
    /// Periods in a row in which a range's count must have reached `threshold`: one burst does not earn a copy of 2 MiB.
    pub steady: u32,
    /// Score, in pages, from which a range earns a large mapping. Demotion begins below half of it, so that no range goes to
    /// and fro.
    pub threshold: f64,
    /// Ranges mapped large in one period at most.
    pub budget: usize,
    /// What a page that is shipped in vain each period weighs beside a page that is accessed; 0 where writes are not tracked by
    /// page.
    pub write_weight: f64,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { settle: 4, steady: 2, threshold: 64.0, budget: 8, write_weight: 1.0 }
    }
}

impl Settings {
    /// Whether its use earns a range a large mapping.
    pub fn has_earned(&self, standing: &Standing) -> bool {
        standing.score >= self.threshold && standing.steady >= self.steady
    }
}

/// What was seen of a range in one period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// Which range.
    pub range: Range,
    /// Its access bits.
    pub bits: Bits,
    /// Its pages that were written in this period; none where nobody tracks writes.
    pub written: Option<u16>,
}

/// Access bits of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bits {
    /// Small pages: how many have theirs set, at most [`PAGES`].
    Small(u16),
    /// One large page has one bit: it tells whether, and no longer how much.
    Large(bool),
}

/// What is to be done with a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Map it large.
    Map(Range),
    /// Map it by small pages again.
    Demote(Range),
}

/// Large mappings that somebody would rather have small, each at most so many in this period. The agent and the command ask
/// for none: it is for whoever wants memory back or tracks by page, and nobody does so yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// For dirty tracking: those that are written sparsely.
    pub by_tracking: usize,
    /// For memory: those that went cold.
    pub by_memory: usize,
}

/// A range with its standing.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Standing {
    /// Which range.
    pub range: Range,
    /// Current count value, in pages.
    pub ccv: f64,
    /// Pages that a large mapping would have dirty tracking mark in vain, each period.
    pub in_vain: f64,
    /// CCV less the weighted cost of writes: what ranks.
    pub score: f64,
    /// Periods in a row in which its count reached the threshold.
    pub steady: u32,
    /// Whether it is mapped large.
    pub large: bool,
    /// Whether the system refused to map it large.
    pub refused: bool,
}

/// What is known of the ranges of one process.
#[derive(Clone, Debug, Default)]
pub struct Ranking {
    settings: Settings,
    periods: u32,
    ranges: BTreeMap<Range, Known>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Known {
    ccv: f64,
    /// Share of the periods in which it was written, halving as CCV does.
    writes: f64,
    /// Pages written a period, likewise.
    written: f64,
    steady: u32,
    large: bool,
    /// Whether it is large by a decision made here, and so is ours to take apart.
    ours: bool,
    refused: bool,
    /// Times in a row that the system put it off.
    busy: u32,
    /// The last period in which it is left alone for that.
    rests: u32,
    seen: u32,
}

impl Ranking {
    /// Nothing known yet.
    pub fn new(settings: Settings) -> Ranking {
        Ranking { settings, ..Ranking::default() }
    }

    /// Takes what one period showed. Ranges that were not looked at are gone: a process that maps something there later begins
    /// anew.
    pub fn observe(&mut self, looks: &[Look]) {
        self.periods = self.periods.saturating_add(1);
        for look in looks {
            let known = self.ranges.entry(look.range).or_default();
            known.seen = self.periods;
            known.count(look.bits, self.settings.threshold);
            if let (Bits::Small(_), Some(written)) = (look.bits, look.written) {
                known.written = mean(known.written, written.min(PAGES).into());
                known.writes = mean(known.writes, if written > 0 { 1.0 } else { 0.0 });
            }
        }
        self.ranges.retain(|_, known| known.seen == self.periods);
    }

    /// Whether the first phase is over.
    pub fn is_settled(&self) -> bool {
        self.periods >= self.settings.settle.max(1)
    }

    /// All ranges, the best first; of equals the lower address.
    pub fn standings(&self) -> Vec<Standing> {
        let mut all: Vec<Standing> = self.ranges.iter().map(|(range, k)| self.standing(*range, k)).collect();
        all.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.range.cmp(&b.range)));
        all
    }

    /// What is to be done now: the budget is for ranges that do not rest. Changes nothing: what was done is told by
    /// [`Ranking::done`], [`Ranking::busy`] and [`Ranking::refused`].
    pub fn decide(&self, asked: Asked) -> Vec<Action> {
        if !self.is_settled() {
            return Vec::new();
        }
        let mut standings = self.standings();
        standings.retain(|s| self.ranges.get(&s.range).is_none_or(|known| known.rests < self.periods));
        let earns = |s: &&Standing| !s.large && !s.refused && self.settings.has_earned(s);
        let maps = standings.iter().filter(earns).take(self.settings.budget).map(|s| Action::Map(s.range));
        self.demotions(&standings, asked).into_iter().map(Action::Demote).chain(maps).collect()
    }

    fn demotions(&self, standings: &[Standing], asked: Asked) -> Vec<Range> {
        let limit = self.settings.threshold / 2.0;
        let ours = |s: &&Standing| s.large && self.ranges.get(&s.range).is_some_and(|known| known.ours);
        let mut cold: Vec<&Standing> = standings.iter().filter(ours).filter(|s| s.ccv < limit).collect();
        cold.sort_by(|a, b| a.ccv.total_cmp(&b.ccv).then(a.range.cmp(&b.range)));
        let mut chosen: Vec<Range> = cold.iter().take(asked.by_memory).map(|s| s.range).collect();
        let mut sparse: Vec<&Standing> =
            standings.iter().filter(ours).filter(|s| s.in_vain > 0.0 && s.score < limit).collect();
        sparse.sort_by(|a, b| b.in_vain.total_cmp(&a.in_vain).then(a.range.cmp(&b.range)));
        let more = sparse.iter().map(|s| s.range).filter(|range| !chosen.contains(range));
        let more: Vec<Range> = more.take(asked.by_tracking).collect();
        chosen.extend(more);
        chosen
    }

    /// The system did it.
    pub fn done(&mut self, action: Action) {
        let (Action::Map(range) | Action::Demote(range)) = action;
        if let Some(known) = self.ranges.get_mut(&range) {
            known.large = matches!(action, Action::Map(_));
            known.ours = known.large;
            known.busy = 0;
        }
    }

    /// The system put it off: it is left alone for a period, each further time in a row for twice as many, 256 at
    /// most. What is registered with an adapter is put off for as long as it is that.
    pub fn busy(&mut self, range: Range) {
        if let Some(known) = self.ranges.get_mut(&range) {
            let rest = 1u32.checked_shl(known.busy).map_or(LONGEST_REST, |periods| periods.min(LONGEST_REST));
            known.busy = known.busy.saturating_add(1);
            known.rests = self.periods.saturating_add(rest);
        }
    }

    /// The system refuses for good to map it large, for as long as it is there.
    pub fn refused(&mut self, range: Range) {
        if let Some(known) = self.ranges.get_mut(&range) {
            known.refused = true;
        }
    }

    fn standing(&self, range: Range, known: &Known) -> Standing {
        let in_vain = (known.writes * f64::from(PAGES) - known.written).max(0.0);
        let score = known.ccv - self.settings.write_weight * in_vain;
        Standing {
            range,
            ccv: known.ccv,
            in_vain,
            score,
            steady: known.steady,
            large: known.large,
            refused: known.refused,
        }
    }
}

impl Known {
    fn count(&mut self, bits: Bits, threshold: f64) {
        match bits {
            Bits::Small(set) => {
                self.steady = if f64::from(set) >= threshold { self.steady.saturating_add(1) } else { 0 };
                self.ccv = mean(self.ccv, set.min(PAGES).into());
                (self.large, self.ours) = (false, false);
            }
            Bits::Large(touched) => {
                // Touched tells nothing of how many pages: the value stays. One that was large before it was looked at at all
                // counts as used to the full.
                self.ccv = match touched {
                    false => mean(self.ccv, 0.0),
                    true if self.large => self.ccv,
                    true => mean(self.ccv, PAGES.into()),
                };
                self.large = true;
            }
        }
    }
}

/// Periods that a range is left alone for at most: a minute of the shortest ones is soon enough for memory that is not pinned any
/// more.
const LONGEST_REST: u32 = 256;

fn mean(a: f64, b: f64) -> f64 {
    (a + b) / 2.0
}

#[cfg(test)]
#[path = "policy/tests.rs"]
mod tests;
