//! How placement is, as `pmemha placement` shows it.

use std::fmt::Write;

use serde::{Deserialize, Serialize};

use super::policy::model::{Class, Move, PackageId};

/// The document.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PlacementStatus {
    /// Whether groups are moved: not where there is one package only.
    pub active: bool,
    /// Whether all has gathered since power is lost.
    pub gathered: bool,
    /// What tells R; none while nothing does, and then nothing is drained.
    pub residency_source: Option<String>,
    /// Why not.
    pub without_residency: Vec<String>,
    /// The network adapter's package.
    pub nic_package: Option<PackageId>,
    /// Power of all packages; none where nothing tells.
    pub watts: Option<f64>,
    /// Every package.
    pub packages: Vec<PackageStatus>,
    /// Every group that is there.
    pub groups: Vec<GroupStatus>,
    /// Groups that were moved since the agent started.
    pub moves: u64,
    /// The last of them, the newest last.
    pub last_moves: Vec<Moved>,
}

/// A package in the last epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PackageStatus {
    /// Its number.
    pub package: PackageId,
    /// Its processors that are online.
    pub cpus: String,
    /// L, 0 to 1.
    pub load: f64,
    /// R, 0 to 1.
    pub residency: Option<f64>,
    /// Its class.
    pub class: Option<Class>,
}

/// A group in the last epoch.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupStatus {
    /// Its name.
    pub name: String,
    /// Processors that it kept busy.
    pub load: f64,
    /// Share of the epoch in which something of it waited for a processor.
    pub pressure: Option<f64>,
    /// The packages that it may use.
    pub on: Vec<PackageId>,
    /// Why it is not moved; none if it may be.
    pub fixed: Option<String>,
}

/// A move.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Moved {
    /// What was to be done, and why.
    #[serde(flatten)]
    pub moved: Move,
    /// Microseconds that it took.
    pub took_us: u64,
    /// Why it was not done; none if it was.
    pub failed: Option<String>,
    /// Whether it was only thought.
    pub dry: bool,
}

impl Moved {
    /// A line for a person.
    pub fn line(&self) -> String {
        let list = |set: &super::policy::model::PackageSet| {
            super::cpus::format(&set.iter().map(|package| package.0).collect())
        };
        let Moved { moved: Move { group, from, to, reason }, took_us, failed, dry } = self;
        let outcome = match failed {
            Some(why) => format!("! {why}"),
            None if *dry => "not done: dry run".into(),
            None => format!("{took_us} us"),
        };
        format!("{group}: package {} -> {}  {reason}  ({outcome})", list(from), list(to))
    }
}

impl PlacementStatus {
    /// For a person, ending with a newline.
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a string does not fail.
        let mut push = |line: String| _ = writeln!(out, "{line}");
        push(match (self.active, self.gathered) {
            (_, true) => "placement  all has gathered, power is lost".into(),
            (true, _) => "placement  on".to_owned(),
            (false, _) => "placement  moves nothing".into(),
        });
        match &self.residency_source {
            Some(source) => push(format!("R by {source}")),
            None => push(format!(
                "! R is not known, so nothing is drained: {}",
                self.without_residency.join("; ")
            )),
        }
        if let Some(watts) = self.watts {
            push(format!("{watts:.1} W"));
        }
        for package in &self.packages {
            let residency = package.residency.map_or("?".into(), |r| format!("{:.0} %", r * 100.0));
            let class = package.class.map_or("?".into(), |class| class.to_string());
            let nic = if self.nic_package == Some(package.package) { "  network adapter" } else { "" };
            push(format!(
                "package {:<3} cpus {:<12} L {:>3.0} %  R {residency:>5}  {class}{nic}",
                package.package,
                package.cpus,
                package.load * 100.0
            ));
        }
        for group in &self.groups {
            let on = super::cpus::format(&group.on.iter().map(|package| package.0).collect());
            let fixed = group.fixed.as_ref().map_or(String::new(), |why| format!("  stays: {why}"));
            let waits = group.pressure.map_or(String::new(), |p| format!("  waits {:.0} %", p * 100.0));
            push(format!("group {:<20} {:>6.2} cpus  on {on}{waits}{fixed}", group.name, group.load));
        }
        self.last_moves.iter().for_each(|moved| push(format!("move  {}", moved.line())));
        out
    }
}
