//! A process whose ranges are used as a plan says, under the policy: what it gained, beside orders that know less or more.
//!
//! A small range costs a translation for each of its pages that is used in a period, a large one a single one. So what a large mapping
//! gains is the number of pages used, less one; what it costs is the pages that tracking marks in vain.

use super::super::*;

/// How one range is used: each of its pages, in each period.
#[derive(Clone, Copy, Debug)]
pub struct Use {
    /// Pages that may be used.
    pub pages: u16,
    /// Chance in percent that the range is used at all in a period.
    pub often: u8,
    /// Pages written when it is used.
    pub written: u16,
}

/// Dense and hot, sparse and hot, warm, cold: in percent of the ranges; `dense` lie at the end of the addresses, where an order by address comes last.
pub fn mixture(ranges: usize) -> Vec<Use> {
    let of = |i: usize| match i * 100 / ranges {
        0..50 => Use { pages: 512, often: 2, written: 0 },
        50..70 => Use { pages: 16, often: 100, written: 0 },
        70..85 => Use { pages: 40, often: 100, written: 1 },
        _ => Use { pages: 500, often: 100, written: 0 },
    };
    (0..ranges).map(of).collect()
}

/// A run of the policy over so many periods.
pub struct Run {
    /// The policy, afterwards.
    pub ranking: Ranking,
    /// Actions of each period.
    pub actions: Vec<Vec<Action>>,
    dice: Dice,
    large: Vec<bool>,
}

impl Run {
    pub fn new(ranges: usize, settings: Settings, seed: u64) -> Run {
        let ranking = Ranking::new(settings);
        Run { ranking, actions: Vec::new(), dice: Dice(seed), large: vec![false; ranges] }
    }

    /// Lives through `periods` of a plan.
    pub fn live(&mut self, plan: &[Use], periods: usize, asked: Asked) {
        for _ in 0..periods {
            let looks: Vec<Look> = plan.iter().enumerate().map(|(i, u)| self.look(i, *u)).collect();
            self.ranking.observe(&looks);
            let actions = self.ranking.decide(asked);
            for action in &actions {
                self.ranking.done(*action);
                let (Action::Map(range) | Action::Demote(range)) = *action;
                self.large[range.0 as usize] = matches!(action, Action::Map(_));
            }
            self.actions.push(actions);
        }
    }

    fn look(&mut self, i: usize, u: Use) -> Look {
        let used = self.dice.percent() < u64::from(u.often);
        let (pages, written) = if used { (u.pages, u.written) } else { (0, 0) };
        let bits = if self.large[i] { Bits::Large(used) } else { Bits::Small(pages) };
        Look { range: Range(i as u64), bits, written: (!self.large[i]).then_some(written) }
    }

    /// Ranges that are large now.
    pub fn large(&self) -> Vec<usize> {
        (0..self.large.len()).filter(|i| self.large[*i]).collect()
    }
}

/// Translations saved each period by having these large.
pub fn gained(plan: &[Use], large: &[usize]) -> f64 {
    large.iter().map(|i| f64::from(plan[*i].often) / 100.0 * f64::from(plan[*i].pages - 1)).sum()
}

/// Pages that tracking marks in vain each period.
pub fn in_vain(plan: &[Use], large: &[usize]) -> f64 {
    let one =
        |u: Use| f64::from(u.often) / 100.0 * if u.written > 0 { f64::from(PAGES - u.written) } else { 0.0 };
    large.iter().map(|i| one(plan[*i])).sum()
}

/// The best `count` ranges, for whoever knows the plan.
pub fn oracle(plan: &[Use], count: usize) -> Vec<usize> {
    let mut all: Vec<usize> = (0..plan.len()).collect();
    all.sort_by(|a, b| gained(plan, &[*b]).total_cmp(&gained(plan, &[*a])));
    all.truncate(count);
    all
}

/// Numbers that a seed determines (SplitMix64).
struct Dice(u64);

impl Dice {
    fn percent(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % 100
    }
}
