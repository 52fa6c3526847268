//! What the policy sees and says, as plain data.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

/// A processor package, by the number that the kernel gives it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PackageId(pub u32);

impl fmt::Display for PackageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Some packages.
pub type PackageSet = BTreeSet<PackageId>;

/// A package in a window of time.
#[derive(Clone, Debug, PartialEq)]
pub struct PackageView {
    /// Which.
    pub id: PackageId,
    /// Processors that are online.
    pub cpus: u32,
    /// L: share of the window in use, 0 to 1, over its processors.
    pub load: f64,
    /// R: share of the window in a state that the package enters whatever the others do, 0 to 1; none where nothing tells.
    pub residency: Option<f64>,
}

/// What must be kept when a group is moved.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// It stays where it is, for this reason: pinned threads, or a cpuset that is exclusively another's.
    pub fixed: Option<String>,
    /// The packages that it may use, if not all: those whose memory its policy binds it to, or its cpuset's.
    pub within: Option<PackageSet>,
    /// It is not to lie on more packages than it does. Nothing that is read of a real group tells that; the policy keeps to it.
    pub whole: bool,
}

/// A group of threads in a window of time.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupView {
    /// Its name.
    pub id: String,
    /// Processors that it kept busy: 1.5 is one and a half.
    pub load: f64,
    /// Where it may run.
    pub on: PackageSet,
    /// What must be kept.
    pub limits: Limits,
    /// Share of the window in which some thread of it waited for a processor (PSI); none where nothing tells.
    pub pressure: Option<f64>,
    /// Seconds that 99 % of its requests took at most; none where nothing tells, as of every real group so far.
    pub p99: Option<f64>,
}

impl GroupView {
    /// Of `packages`, those that it may be moved to.
    pub fn allowed(&self, packages: &PackageSet) -> PackageSet {
        match (&self.limits.fixed, &self.limits.within) {
            (Some(_), _) => self.on.intersection(packages).copied().collect(),
            (None, Some(within)) => within.intersection(packages).copied().collect(),
            (None, None) => packages.clone(),
        }
    }

    /// Whether it may be moved at all.
    pub fn movable(&self) -> bool {
        self.limits.fixed.is_none()
    }
}

/// Everything in a window of time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct View {
    /// Every package that has a processor online.
    pub packages: Vec<PackageView>,
    /// Every group that may be moved or is to be reckoned with.
    pub groups: Vec<GroupView>,
    /// The package that is drained last: the NIC's.
    pub keep: Option<PackageId>,
}

impl View {
    /// All packages.
    pub fn ids(&self) -> PackageSet {
        self.packages.iter().map(|package| package.id).collect()
    }
}

/// How a package is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// Too full: it is relieved.
    High,
    /// Well used.
    Medium,
    /// Used, and asleep most of the time all the same: left alone.
    Efficient,
    /// Little used and hardly ever asleep: drained.
    Inefficient,
    /// No group has it.
    Parked,
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Class::High => "high",
            Class::Medium => "medium",
            Class::Efficient => "efficient",
            Class::Inefficient => "inefficient",
            Class::Parked => "parked",
        })
    }
}

/// A group goes from some packages to others.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Move {
    /// The group.
    pub group: String,
    /// Where it was.
    pub from: PackageSet,
    /// Where it goes.
    pub to: PackageSet,
    /// Why.
    pub reason: Reason,
}

/// Why a group is moved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "why", rename_all = "snake_case")]
pub enum Reason {
    /// The package is too full.
    Relieve {
        /// Which.
        package: PackageId,
        /// Its load.
        load: f64,
    },
    /// The package was found too full between two epochs.
    Overload {
        /// Which.
        package: PackageId,
        /// Its load.
        load: f64,
    },
    /// The package is little used and hardly ever asleep.
    DrainInefficient {
        /// Which.
        package: PackageId,
    },
    /// Everything on the package fits on the others.
    DrainMedium {
        /// Which.
        package: PackageId,
    },
    /// Draining the package did not let it sleep.
    NoGain {
        /// Which.
        package: PackageId,
        /// R before.
        before: f64,
        /// R after.
        after: f64,
    },
    /// Draining the package made a group wait.
    Hurt {
        /// Which package.
        package: PackageId,
        /// The group.
        group: String,
    },
    /// Power is lost: everything gathers where the NIC is.
    Gather {
        /// The NIC's package.
        package: PackageId,
    },
    /// Power is back.
    Return,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Relieve { package, load } => {
                write!(f, "relieves package {package}, {:.0} % in use", load * 100.0)
            }
            Reason::Overload { package, load } => {
                write!(f, "relieves package {package} at once, {:.0} % in use", load * 100.0)
            }
            Reason::DrainInefficient { package } => {
                write!(f, "drains package {package}, little used and not asleep")
            }
            Reason::DrainMedium { package } => {
                write!(f, "drains package {package}, since everything fits elsewhere")
            }
            Reason::NoGain { package, before, after } => write!(
                f,
                "undone: package {package} slept {:.0} % of the time before and {:.0} % after",
                before * 100.0,
                after * 100.0
            ),
            Reason::Hurt { package, group } => {
                write!(f, "undone: draining package {package} made `{group}` wait")
            }
            Reason::Gather { package } => write!(f, "gathers on package {package} while power is lost"),
            Reason::Return => f.write_str("returns, power is back"),
        }
    }
}
