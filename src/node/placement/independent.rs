//! Which package states are independent, found by observation (claim S4.2): a state that an idle package enters while another one
//! is busy does not depend on the others. Pure, over what was seen.

use std::collections::BTreeMap;

use super::policy::model::PackageId;

/// A window of time.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Window {
    /// L of each package.
    pub load: BTreeMap<PackageId, f64>,
    /// Share of the window that each package spent in each state, by the state's name.
    pub residency: BTreeMap<PackageId, BTreeMap<String, f64>>,
}

/// What is known of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dependence {
    /// A package enters it whatever the others do.
    Independent,
    /// It was entered, but never while another package was busy.
    Dependent,
    /// It has not been seen under conditions that would tell.
    Unknown,
}

/// Load from which on a package counts as busy, and below which as idle.
const BUSY: f64 = 0.5;
/// See [`BUSY`].
const IDLE: f64 = 0.02;

/// Share of a window from which on a state counts as entered.
const ENTERED: f64 = 0.05;

/// Windows with another package busy in which a state must not have been entered before it counts as dependent.
const ENOUGH: usize = 3;

/// What `windows` tell of each state that any package has.
pub fn dependence<'a>(windows: impl IntoIterator<Item = &'a Window>) -> BTreeMap<String, Dependence> {
    let mut seen: BTreeMap<String, Evidence> = BTreeMap::new();
    for window in windows {
        let load = |id: &PackageId| window.load.get(id).copied().unwrap_or(1.0);
        for (id, states) in window.residency.iter().filter(|(id, _)| load(id) < IDLE) {
            let exposed = window.load.iter().any(|(other, load)| other != id && *load >= BUSY);
            for (state, share) in states {
                let evidence = seen.entry(state.clone()).or_default();
                match (exposed, *share >= ENTERED) {
                    (true, true) => evidence.entered_exposed += 1,
                    (true, false) => evidence.missed_exposed += 1,
                    (false, entered) => evidence.entered_alone |= entered,
                }
            }
        }
    }
    seen.into_iter().map(|(state, evidence)| (state, evidence.verdict())).collect()
}

#[derive(Clone, Copy, Debug, Default)]
struct Evidence {
    /// Windows in which an idle package entered the state while another was busy, and in which it did not.
    entered_exposed: usize,
    missed_exposed: usize,
    /// Whether it was entered while no other was busy: without that, it may be one that this machine never enters.
    entered_alone: bool,
}

impl Evidence {
    fn verdict(self) -> Dependence {
        if self.entered_exposed > 0 {
            Dependence::Independent
        } else if self.entered_alone && self.missed_exposed >= ENOUGH {
            Dependence::Dependent
        } else {
            Dependence::Unknown
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn window(loads: [f64; 2], c2: [f64; 2], c6: [f64; 2]) -> Window {
        let package = |n: usize| PackageId(n as u32);
        let states = |n: usize| [("c2".to_owned(), c2[n]), ("c6".to_owned(), c6[n])].into();
        Window {
            load: [(package(0), loads[0]), (package(1), loads[1])].into(),
            residency: [(package(0), states(0)), (package(1), states(1))].into(),
        }
    }

    #[test]
    fn a_state_entered_beside_a_busy_package_is_independent_and_one_that_is_not_waits_for_it() {
        let busy = window([0.9, 0.0], [0.0, 0.9], [0.0, 0.0]);
        let idle = window([0.0, 0.0], [0.1, 0.1], [0.8, 0.8]);
        let found = dependence([&idle, &busy, &busy, &busy]);
        assert_eq!(found["c2"], Dependence::Independent);
        assert_eq!(found["c6"], Dependence::Dependent);
        assert_eq!(dependence([&idle, &busy])["c6"], Dependence::Unknown, "too little was seen");
        assert_eq!(dependence([&busy; 9])["c6"], Dependence::Unknown, "never entered at all");
    }
}
