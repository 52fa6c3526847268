//! Was a move any good: R of the package that was drained must have risen, and no group must wait for it.

use std::collections::BTreeMap;

use super::model::{GroupView, Move, PackageId, PackageSet, Reason, View};
use super::settings::Settings;

/// A draining that is still to be judged.
#[derive(Clone, Debug)]
pub struct Trial {
    /// The package that was drained.
    pub package: PackageId,
    /// Epoch at which it is judged.
    pub judged_at: u64,
    /// R of the package before.
    before: f64,
    /// And in the last two epochs.
    after: [Option<f64>; 2],
    /// Where each group that was moved had been, and was put.
    moved: BTreeMap<String, (PackageSet, PackageSet)>,
    /// Pressure and p99 of every group before.
    waits: BTreeMap<String, (Option<f64>, Option<f64>)>,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// It stays.
    Good,
    /// It is undone.
    Bad(Reason),
}

impl Trial {
    /// `before`: R of the package; `view`: what was seen before the moves.
    pub fn new(package: PackageId, before: f64, moves: &[Move], view: &View, judged_at: u64) -> Trial {
        Trial {
            package,
            judged_at,
            before,
            after: [None; 2],
            moved: moves.iter().map(|m| (m.group.clone(), (m.from.clone(), m.to.clone()))).collect(),
            waits: view.groups.iter().map(|group| (group.id.clone(), (group.pressure, group.p99))).collect(),
        }
    }

    /// Another epoch has been seen.
    pub fn watch(&mut self, view: &View) {
        let seen = view.packages.iter().find(|package| package.id == self.package);
        self.after = [self.after[1], seen.and_then(|package| package.residency)];
    }

    /// What came of it, as of the last epoch seen.
    pub fn verdict(&self, view: &View, settings: &Settings) -> Verdict {
        let package = self.package;
        if let Some(group) = view.groups.iter().find(|group| self.hurt(group, settings)) {
            return Verdict::Bad(Reason::Hurt { package, group: group.id.clone() });
        }
        let seen: Vec<f64> = self.after.iter().flatten().copied().collect();
        let after = seen.iter().sum::<f64>() / seen.len().max(1) as f64;
        // A package that slept almost always cannot sleep much more.
        if after >= (self.before + settings.gain).min(ALWAYS) {
            return Verdict::Good;
        }
        Verdict::Bad(Reason::NoGain { package, before: self.before, after })
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
