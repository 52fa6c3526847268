//! The policy: which group goes where, from what was seen of packages and groups. Pure: no clock, no system.
//!
//! [`Policy::step`] is asked once an epoch, [`Policy::guard`] many times in one. Both answer with moves; whoever asks
//! carries them out and shows where groups lie in the next [`View`], whether that came about or not. `docs/placement.md`
//! has the rules as tables.
//!
//! | module | what it is for |
//! | --- | --- |
//! | [`model`] | what the policy sees and says |
//! | [`settings`] | its numbers |
//! | [`class`] | the five classes |
//! | [`fit`] | the load that packages will have after moves |
//! | [`feedback`] | was a move any good |

pub mod class;
pub mod feedback;
pub mod fit;
pub mod model;
pub mod settings;

use std::collections::{BTreeMap, VecDeque};

use class::classify;
use feedback::{Trial, Verdict};
use fit::Plan;
use model::{Class, GroupView, Move, PackageId, PackageSet, PackageView, Reason, View};
use settings::Settings;

/// What is remembered of a package.
#[derive(Clone, Debug)]
struct Known {
    class: Class,
    /// Epochs for which it has been of this class.
    stable: u64,
    cool_until: u64,
    /// Not drained before, and how long the next back-off will be.
    retry_at: u64,
    back_off: u64,
    /// R of the epoch before.
    residency: Option<f64>,
    /// L of the last epoch.
    load: f64,
}

/// What is remembered of a group.
#[derive(Clone, Debug, Default)]
struct Seen {
    loads: VecDeque<f64>,
    cool_until: u64,
}

/// The policy's state.
#[derive(Clone, Debug)]
pub struct Policy {
    settings: Settings,
    epoch: u64,
    packages: BTreeMap<PackageId, Known>,
    groups: BTreeMap<String, Seen>,
    trial: Option<Trial>,
    calm_until: u64,
    calm: u64,
}

impl Policy {
    /// A policy that has seen nothing.
    pub fn new(settings: Settings) -> Policy {
        let calm = settings.calm;
        Policy {
            settings,
            epoch: 0,
            packages: BTreeMap::new(),
            groups: BTreeMap::new(),
            trial: None,
            calm_until: 0,
            calm,
        }
    }

    /// Each package's class, as of the last epoch.
    pub fn classes(&self) -> BTreeMap<PackageId, Class> {
        self.packages.iter().map(|(id, known)| (*id, known.class)).collect()
    }

    /// An epoch is over.
    pub fn step(&mut self, view: &View) -> Vec<Move> {
        self.epoch += 1;
        self.note(view);
        if let Some(moves) = self.judge(view) {
            return moves;
        }
        let relief = self.relieve(view);
        if !relief.is_empty() {
            self.trial = None;
            return relief;
        }
        if self.trial.is_some() || self.epoch < self.calm_until {
            return Vec::new();
        }
        self.drain(view, Class::Inefficient)
            .or_else(|| self.settings.drain_medium.then(|| self.drain(view, Class::Medium)).flatten())
            .unwrap_or_default()
    }

    /// Between two epochs: spreads what lies on a package that is too full, over all that it may use. `view` is of the time since
    /// the last look.
    pub fn guard(&mut self, view: &View) -> Vec<Move> {
        let ids = view.ids();
        let jumped = |package: &PackageView| {
            let before = self.packages.get(&package.id).map_or(package.load, |known| known.load);
            package.load >= self.settings.rising && package.load >= before + self.settings.jump
        };
        let full = |package: &&PackageView| jumped(package) || package.load >= self.settings.urgent;
        let surprised = view.packages.iter().any(jumped);
        let full: BTreeMap<PackageId, f64> =
            view.packages.iter().filter(full).map(|package| (package.id, package.load)).collect();
        let mut moves = Vec::new();
        for group in &view.groups {
            let Some((package, load)) = group.on.iter().find_map(|id| Some((*id, *full.get(id)?))) else {
                continue;
            };
            let allowed = group.allowed(&ids);
            let to = if group.limits.whole && group.on.len() > 1 {
                continue;
            } else if group.limits.whole {
                emptiest(view, &allowed).filter(|to| !full.contains_key(to)).into_iter().collect()
            } else {
                group.on.intersection(&ids).copied().chain(allowed).collect::<PackageSet>()
            };
            if !to.is_empty() && to != group.on {
                moves.push(to_move(group, to, Reason::Overload { package, load }));
            }
        }
        if !moves.is_empty() {
            self.trial = None;
            if surprised {
                self.calm_until = self.epoch + self.calm;
                self.calm = (self.calm * self.settings.calmer).min(self.settings.longest);
            } else {
                self.calm_until = self.calm_until.max(self.epoch + self.settings.rest);
            }
            self.cool(&moves);
        }
        moves
    }

    /// Remembers what this epoch showed.
    fn note(&mut self, view: &View) {
        let (epoch, back_off) = (self.epoch, self.settings.back_off);
        let ids = view.ids();
        self.packages.retain(|id, _| ids.contains(id));
        for package in &view.packages {
            let has_groups = view.groups.iter().any(|group| group.on.contains(&package.id));
            let class = classify(package, has_groups, &self.settings);
            let known = self.packages.entry(package.id).or_insert(Known {
                class,
                stable: 0,
                cool_until: epoch,
                retry_at: epoch,
                back_off,
                residency: None,
                load: package.load,
            });
            known.load = package.load;
            known.stable = if known.class == class { known.stable + 1 } else { 1 };
            known.class = class;
        }
        self.groups.retain(|id, _| view.groups.iter().any(|group| group.id == *id));
        for group in &view.groups {
            let seen = self.groups.entry(group.id.clone()).or_default();
            seen.loads.push_back(group.load);
            while seen.loads.len() > self.settings.memory {
                seen.loads.pop_front();
            }
        }
        let gone = |trial: &Trial| !ids.contains(&trial.package);
        if self.trial.as_ref().is_some_and(gone) {
            self.trial = None;
        }
    }

    /// Whether the last draining was any good, once that can be told.
    fn judge(&mut self, view: &View) -> Option<Vec<Move>> {
        let trial = self.trial.take_if(|trial| {
            trial.watch(view);
            self.epoch >= trial.judged_at
        });
        let Some(trial) = trial else {
            self.remember_residency(view);
            return None;
        };
        self.remember_residency(view);
        let known = self.packages.get_mut(&trial.package)?;
        match trial.verdict(view, &self.settings) {
            Verdict::Good => {
                known.back_off = self.settings.back_off;
                None
            }
            Verdict::Bad(reason) => {
                known.retry_at = self.epoch + known.back_off;
                known.back_off = (known.back_off * 2).min(self.settings.longest);
                let moves = trial.undo(view, &reason);
                self.cool(&moves);
                Some(moves)
            }
        }
    }

    fn remember_residency(&mut self, view: &View) {
        for package in &view.packages {
            if let Some(known) = self.packages.get_mut(&package.id) {
                known.residency = package.residency;
            }
        }
    }

    fn demand(&self, group: &GroupView) -> f64 {
        let seen = self.groups.get(&group.id).map(|seen| &seen.loads);
        seen.into_iter().flatten().copied().fold(group.load, f64::max)
    }

    /// Brings packages that have been high for long enough down, a package at a time, the fullest first.
    fn relieve(&mut self, view: &View) -> Vec<Move> {
        let mut high: Vec<_> = view
            .packages
            .iter()
            .filter(|package| {
                self.is(package.id, Class::High) && self.packages[&package.id].stable >= self.settings.stable
            })
            .collect();
        high.sort_by(|a, b| b.load.total_cmp(&a.load));
        for package in high {
            let plan = self.relief(view, package.id);
            let reason = Reason::Relieve { package: package.id, load: package.load };
            let moves = self.moves(view, &plan, &reason);
            if !moves.is_empty() {
                self.cool(&moves);
                return moves;
            }
        }
        Vec::new()
    }

    /// The biggest groups first: moved whole to where they fit best, or laid over one package more.
    fn relief<'a>(&self, view: &'a View, package: PackageId) -> Plan<'a> {
        let mut plan = Plan::new(view, |group| group.load);
        for (index, share) in plan.on(package) {
            if plan.load(package) <= self.settings.relieved {
                break;
            }
            let (group, on) = plan.group(index);
            if !group.movable() {
                continue;
            }
            let mut others = group.allowed(&view.ids());
            others.retain(|id| !on.contains(id) && !self.is(*id, Class::High));
            let on = on.clone();
            if on.len() == 1
                && let Some(to) = self.best_fit(&plan, &others, share, self.settings.fill)
            {
                plan.put(index, [to].into());
            } else if !group.limits.whole
                && let Some(to) = self.best_fit(
                    &plan,
                    &others,
                    plan.demand(index) / (on.len() + 1) as f64,
                    self.settings.fill,
                )
            {
                plan.put(index, on.into_iter().chain([to]).collect());
            }
        }
        plan
    }

    /// Of `packages`, the one that is fullest with `share` processors more in use and no fuller than `fill`; one that is in use
    /// rather than a parked one.
    fn best_fit(&self, plan: &Plan<'_>, packages: &PackageSet, share: f64, fill: f64) -> Option<PackageId> {
        let rank = |id: PackageId| (!self.is(id, Class::Parked), plan.load_with(id, share));
        let fitting = packages.iter().copied().filter(|id| plan.load_with(*id, share) <= fill);
        fitting
            .max_by(|a, b| rank(*a).0.cmp(&rank(*b).0).then(rank(*a).1.total_cmp(&rank(*b).1)).then(b.cmp(a)))
    }

    /// Empties one package of `class`, the least used that can be: all that lies on it must fit elsewhere. One at a time, so that a load
    /// that was not foreseen finds the others awake.
    fn drain(&mut self, view: &View, class: Class) -> Option<Vec<Move>> {
        let in_use = view
            .packages
            .iter()
            .filter(|package| view.groups.iter().any(|group| group.on.contains(&package.id)));
        if in_use.count() <= 2 && self.epoch < self.settings.lone {
            return None;
        }
        let mut candidates: Vec<_> =
            view.packages.iter().filter(|p| self.may_drain(view, p.id, class)).collect();
        candidates.sort_by(|a, b| a.load.total_cmp(&b.load).then(b.id.cmp(&a.id)));
        let (drained, plan) =
            candidates.into_iter().find_map(|package| Some((package, self.emptied(view, package.id)?)))?;
        let package = drained.id;
        let reason = match class {
            Class::Inefficient => Reason::DrainInefficient { package },
            _ => Reason::DrainMedium { package },
        };
        let now = drained.residency?;
        let before = self.packages[&package].residency.map_or(now, |last| (last + now) / 2.0);
        let moves = self.moves(view, &plan, &reason);
        self.cool(&moves);
        self.trial = Some(Trial::new(package, before, &moves, view, self.epoch + self.settings.cool_down));
        Some(moves)
    }

    fn may_drain(&self, view: &View, id: PackageId, class: Class) -> bool {
        let known = &self.packages[&id];
        let settled =
            known.stable >= self.settings.stable && self.epoch >= known.cool_until.max(known.retry_at);
        let on = view.groups.iter().filter(|group| group.on.contains(&id));
        let measured = view.packages.iter().any(|package| package.id == id && package.residency.is_some());
        known.class == class && settled && measured && view.keep != Some(id) && on.count() > 0
    }

    /// Everything on the package elsewhere, if it fits: all or nothing.
    fn emptied<'a>(&self, view: &'a View, package: PackageId) -> Option<Plan<'a>> {
        let takes = |id: &PackageId| {
            *id != package && matches!(self.packages[id].class, Class::Medium | Class::Inefficient)
        };
        let takers: PackageSet = view.ids().into_iter().filter(takes).collect();
        let plan = Plan::new(view, |group| self.demand(group));
        let mut emptied = plan.clone();
        for (index, share) in plan.on(package) {
            let (group, on) = emptied.group(index);
            let cooling = self.groups.get(&group.id).is_some_and(|seen| self.epoch < seen.cool_until);
            if !group.movable() || cooling {
                return None;
            }
            let rest: PackageSet = on.iter().copied().filter(|id| *id != package).collect();
            let to = if rest.is_empty() {
                let takers = takers.intersection(&group.allowed(&view.ids())).copied().collect();
                [self.best_fit(&emptied, &takers, share, self.settings.fill)?].into()
            } else {
                rest
            };
            emptied.put(index, to);
        }
        let grown = |id: &PackageId| emptied.load(*id) > plan.load(*id) + EPSILON;
        let grown: PackageSet = view.ids().into_iter().filter(grown).collect();
        emptied.fits(&grown, self.settings.fill).then_some(emptied)
    }

    fn moves(&self, view: &View, plan: &Plan<'_>, reason: &Reason) -> Vec<Move> {
        let known = |(group, from, to): (String, PackageSet, PackageSet)| Move {
            group,
            from,
            to,
            reason: reason.clone(),
        };
        let ids = view.ids();
        // A group that lies on packages which have gone is not moved for that alone.
        let real = |(_, from, to): &(String, PackageSet, PackageSet)| from.intersection(&ids).ne(to.iter());
        plan.changes().into_iter().filter(real).map(known).collect()
    }

    fn cool(&mut self, moves: &[Move]) {
        let until = self.epoch + self.settings.cool_down;
        for Move { group, from, to, .. } in moves {
            self.groups.entry(group.clone()).or_default().cool_until = until;
            for id in from.iter().chain(to) {
                if let Some(known) = self.packages.get_mut(id) {
                    known.cool_until = until;
                    // What it will carry comes of the move, and is no surprise.
                    known.load = 1.0;
                }
            }
        }
    }

    fn is(&self, id: PackageId, class: Class) -> bool {
        self.packages.get(&id).is_some_and(|known| known.class == class)
    }
}

/// Loads that differ by less are the same.
const EPSILON: f64 = 1e-9;

fn emptiest(view: &View, among: &PackageSet) -> Option<PackageId> {
    let of = view.packages.iter().filter(|package| among.contains(&package.id));
    of.min_by(|a, b| a.load.total_cmp(&b.load)).map(|package| package.id)
}

fn to_move(group: &GroupView, to: PackageSet, reason: Reason) -> Move {
    Move { group: group.id.clone(), from: group.on.clone(), to, reason }
}

#[cfg(test)]
mod tests;
