//! Does it fit: the load that packages will have after moves.
//!
//! A plan begins as things are and takes moves one by one; what it yields is all of them or none.

use std::collections::BTreeMap;

use super::model::{GroupView, PackageId, PackageSet, View};

/// Loads as they will be.
#[derive(Clone, Debug)]
pub struct Plan<'a> {
    /// Processors in use.
    used: BTreeMap<PackageId, f64>,
    cpus: BTreeMap<PackageId, f64>,
    groups: Vec<(&'a GroupView, f64, PackageSet)>,
}

impl<'a> Plan<'a> {
    /// As things are. `demand`: what is reckoned with for a group, in processors.
    pub fn new(view: &'a View, demand: impl Fn(&GroupView) -> f64) -> Plan<'a> {
        let ids = view.ids();
        let mut used: BTreeMap<PackageId, f64> = view
            .packages
            .iter()
            .map(|package| (package.id, package.load * f64::from(package.cpus)))
            .collect();
        let mut groups = Vec::new();
        for group in &view.groups {
            let on: PackageSet = group.on.intersection(&ids).copied().collect();
            let demand = demand(group).max(group.load);
            // What is not a group's own stays where it is: only the difference is added.
            let more = (demand - group.load) / on.len().max(1) as f64;
            on.iter().for_each(|package| *used.get_mut(package).expect("among the packages") += more);
            groups.push((group, demand, on));
        }
        let cpus = view.packages.iter().map(|package| (package.id, f64::from(package.cpus))).collect();
        Plan { used, cpus, groups }
    }

    /// Share of the package that will be in use.
    pub fn load(&self, package: PackageId) -> f64 {
        let used = self.used.get(&package).copied().unwrap_or(0.0).max(0.0);
        self.cpus.get(&package).map_or(f64::INFINITY, |cpus| used / cpus.max(1.0))
    }

    /// Load that a package would have with `more` processors in use.
    pub fn load_with(&self, package: PackageId, more: f64) -> f64 {
        self.load(package) + self.cpus.get(&package).map_or(f64::INFINITY, |cpus| more / cpus.max(1.0))
    }

    /// Groups that lie on the package, the biggest first: index, share of it there.
    pub fn on(&self, package: PackageId) -> Vec<(usize, f64)> {
        let mut found: Vec<(usize, f64)> = self
            .groups
            .iter()
            .enumerate()
            .filter(|(_, (_, _, on))| on.contains(&package))
            .map(|(index, (_, demand, on))| (index, demand / on.len() as f64))
            .collect();
        found.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        found
    }

    /// The group, and where it will be.
    pub fn group(&self, index: usize) -> (&'a GroupView, &PackageSet) {
        let (group, _, on) = &self.groups[index];
        (group, on)
    }

    /// What is reckoned with for the group.
    pub fn demand(&self, index: usize) -> f64 {
        self.groups[index].1
    }

    /// The group will be on `to`, which is not empty.
    pub fn put(&mut self, index: usize, to: PackageSet) {
        let (_, demand, on) = &mut self.groups[index];
        for (set, sign) in [(&*on, -1.0), (&to, 1.0)] {
            let share = sign * *demand / set.len().max(1) as f64;
            set.iter().for_each(|package| *self.used.entry(*package).or_default() += share);
        }
        *on = to;
    }

    /// Whether no package of `packages` is fuller than `fill`.
    pub fn fits(&self, packages: &PackageSet, fill: f64) -> bool {
        packages.iter().all(|package| self.load(*package) <= fill)
    }

    /// What became of each group that will lie elsewhere: name, from, to.
    pub fn changes(&self) -> Vec<(String, PackageSet, PackageSet)> {
        let changed = self.groups.iter().filter(|(group, _, on)| group.on != *on);
        changed.map(|(group, _, on)| (group.id.clone(), group.on.clone(), on.clone())).collect()
    }
}
