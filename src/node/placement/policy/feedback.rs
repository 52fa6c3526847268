//! Was a move any good: R of the package that was drained must have risen, and no group must wait for it.

use std::collections::BTreeMap;

use super::model::{GroupView, Move, PackageId, PackageSet, Reason, View};
use super::settings::Settings;

/// A draining that is still to be judged.
#[derive(Clone, Debug)]
pub struct Trial {
    /// The packages that were drained, and their R.
    pub packages: BTreeMap<PackageId, Slept>,
    /// Epoch at which it is judged.
    pub judged_at: u64,
    /// Where each group that was moved had been, and was put.
    moved: BTreeMap<String, (PackageSet, PackageSet)>,
    /// Pressure and p99 of every group before.
    waits: BTreeMap<String, (Option<f64>, Option<f64>)>,
}

/// R of a drained package.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Slept {
    before: f64,
    /// In the last two epochs.
    after: [Option<f64>; 2],
}

/// What came of it.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// It stays.
    Good,
    /// It is undone, for what was found of this package.
    Bad(PackageId, Reason),
}

impl Trial {
    /// `drained`: R before of each package that was drained, of which there is one at least; `view`: what was seen before the moves.
    pub fn new(drained: &BTreeMap<PackageId, f64>, moves: &[Move], view: &View, judged_at: u64) -> Trial {
        Trial {
            packages: drained
                .iter()
                .map(|(id, before)| (*id, Slept { before: *before, after: [None; 2] }))
                .collect(),
            judged_at,
            moved: moves.iter().map(|m| (m.group.clone(), (m.from.clone(), m.to.clone()))).collect(),
            waits: view.groups.iter().map(|group| (group.id.clone(), (group.pressure, group.p99))).collect(),
        }
    }

    /// Another epoch has been seen.
    pub fn watch(&mut self, view: &View) {
        for (id, slept) in &mut self.packages {
            let seen = view.packages.iter().find(|package| package.id == *id);
            slept.after = [slept.after[1], seen.and_then(|package| package.residency)];
        }
    }

    /// What came of it, as of the last epoch seen.
    pub fn verdict(&self, view: &View, settings: &Settings) -> Verdict {
        let gain = |(id, slept): (&PackageId, &Slept)| {
            let seen: Vec<f64> = slept.after.iter().flatten().copied().collect();
            let after = seen.iter().sum::<f64>() / seen.len().max(1) as f64;
            // A package that slept almost always cannot sleep much more.
            let enough = after >= (slept.before + settings.gain).min(ALWAYS);
            (!enough).then_some((*id, slept.before, after))
        };
        if let Some(group) = view.groups.iter().find(|group| self.hurt(group, settings)) {
            let package = self.packages.keys().next().copied().unwrap_or(PackageId(0));
            return Verdict::Bad(package, Reason::Hurt { package, group: group.id.clone() });
        }
        match self.packages.iter().find_map(gain) {
            Some((package, before, after)) => {
                Verdict::Bad(package, Reason::NoGain { package, before, after })
            }
            None => Verdict::Good,
        }
    }

    fn hurt(&self, group: &GroupView, settings: &Settings) -> bool {
        let Some((pressure, p99)) = self.waits.get(&group.id) else { return false };
        let waits = matches!((pressure, group.pressure), (Some(before), Some(after)) if after > before + settings.pressure);
        waits || matches!((p99, group.p99), (Some(before), Some(after)) if after > before * settings.p99)
    }

    /// The moves back, of groups that still lie where they were put.
    pub fn undo(&self, view: &View, reason: &Reason) -> Vec<Move> {
        let ids = view.ids();
        let back = |group: &GroupView| {
            let (from, to) = self.moved.get(&group.id)?;
            let home: PackageSet = from.intersection(&ids).copied().collect();
            let allowed = group.allowed(&ids);
            let still = group.on == *to && group.movable() && !home.is_empty() && home.is_subset(&allowed);
            still.then(|| Move {
                group: group.id.clone(),
                from: group.on.clone(),
                to: home,
                reason: reason.clone(),
            })
        };
        view.groups.iter().filter_map(back).collect()
    }
}

/// R that no draining needs to raise further.
const ALWAYS: f64 = 0.9;
