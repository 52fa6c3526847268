//! The battery budget: is what the battery gives enough for what is exposed, and what is done where it is not. Pure.
//!
//! [`assess`] takes what is exposed of every group at every destination, how fast that drains ([`drain`]) and how long the battery lasts
//! ([`hold_up`]), and says for each group how many seconds a last gasp takes, how many there are, and how many bytes may be exposed at
//! most ([`Thresholds`]). [`Thresholds::delay`] is by how much an append is delayed under `budget = "enforce"`; [`Verdict`] turns ratios
//! into the events that are told. The agent's `budget_watch` feeds it; `docs/power.md` has the formulae.

pub mod drain;
pub mod hold_up;
#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use std::time::Duration;

pub use crate::log::threshold::{Delay, Thresholds};
use crate::types::RegionId;

/// From the last byte durable to the heir's being told and believing it: reserved in every budget.
pub const HAND_OVER: Duration = Duration::from_millis(100);

/// A budget is low from this ratio on, so that it is said before the ratio passes 1.
pub const LOW_AT: f64 = 0.8;

/// It is in order again below this one.
pub const OK_BELOW: f64 = 0.6;

/// What is not known counts as low once so many looks in a row have found it so: a link that is made anew is no alarm.
const UNKNOWN_LOOKS: u32 = 8;

/// What a budget is reckoned with, for all groups of the node.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Means {
    /// How long the battery lasts from this instant, if external power is or would be away; none: nobody knows.
    pub hold_up: Option<Duration>,
    /// How long it takes until a loss is seen. Also once it was: what is reserved for that must not be given to the application
    /// in the moment in which it is frozen.
    pub detect: Duration,
    /// By how much longer everything is reckoned than known or measured; at least 1.
    pub safety: f64,
}

/// What one group exposes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GroupLoad {
    /// The group.
    pub name: String,
    /// Whether its application is slowed down.
    pub enforced: bool,
    /// How long it may take to freeze the application.
    pub freeze: Duration,
    /// What it exposes at each of its destinations.
    pub destinations: Vec<DestinationLoad>,
}

/// What a group exposes at one destination.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct DestinationLoad {
    /// The node.
    pub node: String,
    /// Whether it has an image that counts: only such a one can be the heir.
    pub counts: bool,
    /// Bytes that would be lost with the source, by region; without one: of the log, whose records are of all regions.
    pub exposed: Vec<(Option<RegionId>, u64)>,
    /// Bytes a second that were measured to drain there; none: not yet.
    pub drain: Option<u64>,
}

impl DestinationLoad {
    /// All that is exposed.
    pub fn bytes(&self) -> u64 {
        self.exposed.iter().fold(0, |sum, (_, bytes)| sum.saturating_add(*bytes))
    }

    /// How long that takes to ship; none where something is exposed and nobody knows how fast it drains.
    fn seconds(&self) -> Option<f64> {
        match (self.bytes(), self.drain) {
            (0, _) => Some(0.0),
            (_, None | Some(0)) => None,
            (bytes, Some(drain)) => Some(bytes as f64 / drain as f64),
        }
    }
}

/// How it is with one group.
#[derive(Clone, Debug, PartialEq)]
pub struct Assessment {
    /// How long a last gasp takes from the loss of power, with safety; none where that is not known.
    pub required: Option<Duration>,
    /// How long the battery lasts; none where that is not known.
    pub available: Option<Duration>,
    /// The destination that both are about, which has the least to be brought.
    pub destination: Option<String>,
    /// How much may be exposed there.
    pub thresholds: Thresholds,
    /// What is exposed there.
    pub exposed: u64,
    /// What is to be done.
    pub action: Action,
}

impl Assessment {
    /// `required` by `available`: above 1 the battery is not enough. None where either is not known.
    pub fn ratio(&self) -> Option<f64> {
        let (required, available) = (self.required?.as_secs_f64(), self.available?.as_secs_f64());
        Some(if available > 0.0 { required / available } else { f64::INFINITY })
    }
}

/// What is to be done about a group, the mildest first. Each includes those before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Nothing.
    None,
    /// What is copied ahead of a loss is copied faster.
    CopyFaster,
    /// Appends are delayed, the more the nearer to the second threshold.
    Delay,
    /// A person is wanted.
    Alarm,
}

/// How it is with every group, in their order.
pub fn assess(means: &Means, groups: &[GroupLoad]) -> Vec<Assessment> {
    groups.iter().enumerate().map(|(at, _)| assess_one(means, groups, at)).collect()
}

fn assess_one(means: &Means, groups: &[GroupLoad], at: usize) -> Assessment {
    let group = &groups[at];
    let fixed = means.detect + group.freeze + HAND_OVER;
    let shipping = |to: &DestinationLoad| {
        // The link to a node is shared: what others ship there is shipped beside it.
        let beside = beside(groups, at, &to.node);
        Some((fixed.as_secs_f64() + to.seconds()? + beside?) * means.safety)
    };
    let heirs = group.destinations.iter().filter(|to| to.counts);
    // Where nobody knows of one how long it takes, another may be the heir.
    let best = heirs.min_by(|a, b| {
        let seconds = |to| shipping(to).unwrap_or(f64::INFINITY);
        seconds(a).total_cmp(&seconds(b))
    });
    let required = best.and_then(shipping).and_then(|s| Duration::try_from_secs_f64(s).ok());
    let thresholds = best.map(|to| thresholds(means, groups, at, to, fixed)).unwrap_or_default();
    let exposed = best.map_or(0, DestinationLoad::bytes);
    let mut assessment = Assessment {
        required,
        available: means.hold_up,
        destination: best.map(|to| to.node.clone()),
        thresholds,
        exposed,
        action: Action::None,
    };
    assessment.action = match assessment.ratio() {
        Some(ratio) if ratio < LOW_AT => match exposed {
            _ if group.enforced && exposed > thresholds.t1 => Action::Delay,
            // Half of the way there.
            _ if exposed > thresholds.t1 / 2 => Action::CopyFaster,
            _ => Action::None,
        },
        _ => Action::Alarm,
    };
    assessment
}

/// Seconds, without safety, that what others expose at `node` takes.
fn beside(groups: &[GroupLoad], at: usize, node: &str) -> Option<f64> {
    others(groups, at, node).map(|(_, to)| to.seconds()).sum()
}

/// What other groups expose at `node`, where that counts.
fn others<'g>(
    groups: &'g [GroupLoad],
    at: usize,
    node: &str,
) -> impl Iterator<Item = (&'g GroupLoad, &'g DestinationLoad)> {
    let there =
        move |g: &'g GroupLoad| Some((g, g.destinations.iter().find(|to| to.node == node && to.counts)?));
    groups.iter().enumerate().filter(move |(i, _)| *i != at).filter_map(move |(_, g)| there(g))
}

/// What may be exposed at `to`: what drains in the time that is left, by equal parts where several groups are held to it.
fn thresholds(
    means: &Means,
    groups: &[GroupLoad],
    at: usize,
    to: &DestinationLoad,
    fixed: Duration,
) -> Thresholds {
    let drain = to.drain.unwrap_or(0);
    let left = means.hold_up.unwrap_or_default().as_secs_f64() / means.safety - fixed.as_secs_f64();
    // Those that nobody holds back take what they take.
    let (mut free, mut held) = (0.0, 1.0);
    for (group, to) in others(groups, at, &to.node) {
        match group.enforced {
            true => held += 1.0,
            false => free += to.seconds().unwrap_or(f64::INFINITY),
        }
    }
    let seconds = ((left - free) / held).max(0.0);
    // Rounded down; what does not fit is more than there can be.
    Thresholds::of((seconds * drain as f64) as u64, drain)
}

/// What is told of a group's budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// It is, or will soon be, too small, or is not known.
    Low,
    /// It is enough again.
    Ok,
}

/// Turns ratios into what is told, each change once.
#[derive(Clone, Copy, Debug, Default)]
pub struct Verdict {
    low: bool,
    /// Looks in a row that found nothing known.
    unknown: u32,
}

impl Verdict {
    /// What to tell of a group whose ratio is this.
    pub fn tell(&mut self, ratio: Option<f64>) -> Option<Told> {
        self.unknown = if ratio.is_none() { self.unknown.saturating_add(1) } else { 0 };
        let low = match ratio {
            None => self.low || self.unknown >= UNKNOWN_LOOKS,
            Some(ratio) if self.low => ratio >= OK_BELOW,
            Some(ratio) => ratio >= LOW_AT,
        };
        let told = (low != self.low).then_some(if low { Told::Low } else { Told::Ok });
        self.low = low;
        told
    }

    /// Whether it was said that it is low.
    pub fn is_low(&self) -> bool {
        self.low
    }
}
