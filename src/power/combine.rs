//! One view of several sources. Pure.
//!
//! A [`Rule`] says how many sources must say that external power is lost. Unknown never counts as online: where what is unknown could
//! make the difference, the whole is unknown, unless the operator has it count as lost. What the battery holds is the least that any says.

use std::time::{Duration, Instant};

use super::PowerState;

/// How views of several sources become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// So many sources must say that power is lost: 1 for any, their number for all. At least 1.
    pub lost_at: usize,
    /// Whether a source of which nothing is known counts as one that says that power is lost.
    pub unknown_is_lost: bool,
}

/// What one source said last.
#[derive(Clone, Debug)]
pub struct View {
    /// The source.
    pub name: String,
    /// What it said.
    pub state: PowerState,
    /// For how long that is worth anything.
    pub good_for: Duration,
}

impl View {
    /// What is known of it at `now`: nothing, once it has not spoken for too long.
    pub fn at(&self, now: Instant) -> PowerState {
        let age = now.saturating_duration_since(self.state.as_of);
        if age <= self.good_for {
            return self.state.clone();
        }
        PowerState::unknown(format!("not heard of for {} s", age.as_secs()), self.state.as_of)
    }
}

/// The view of all at `now`, whose time is that of the oldest.
pub fn combine(rule: Rule, views: &[View], now: Instant) -> PowerState {
    let states: Vec<PowerState> = views.iter().map(|view| view.at(now)).collect();
    let count = |is: fn(&PowerState) -> bool| states.iter().filter(|s| is(s)).count();
    let (lost, unknown) = (count(|s| s.online == Some(false)), count(|s| s.online.is_none()));
    let needed = rule.lost_at.max(1);
    let surely = if rule.unknown_is_lost { lost + unknown } else { lost };
    let online = match () {
        () if surely >= needed => Some(false),
        () if lost + unknown >= needed || states.is_empty() => None,
        () => Some(true),
    };
    let several = views.len() > 1;
    let faults: Vec<String> = views
        .iter()
        .zip(&states)
        .filter_map(|(view, state)| {
            let fault = state.fault.as_ref()?;
            Some(if several { format!("{}: {fault}", view.name) } else { fault.clone() })
        })
        .collect();
    PowerState {
        online,
        runtime: states.iter().filter_map(|s| s.runtime).min(),
        charge: states.iter().filter_map(|s| s.charge).min_by(f32::total_cmp),
        low: states.iter().any(|s| s.low),
        fault: (!faults.is_empty()).then(|| faults.join("; ")),
        as_of: states.iter().map(|s| s.as_of).min().unwrap_or(now),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn views(states: &[Option<bool>], now: Instant) -> Vec<View> {
        let view = |(i, online): (usize, &Option<bool>)| View {
            name: format!("s{i}"),
            state: PowerState { online: *online, ..PowerState::silent(now) },
            good_for: Duration::from_secs(1),
        };
        states.iter().enumerate().map(view).collect()
    }

    fn rule(lost_at: usize) -> Rule {
        Rule { lost_at, unknown_is_lost: false }
    }

    #[test]
    fn any_all_and_a_quorum_decide_as_far_as_what_is_unknown_lets_them() {
        let (on, lost, unknown) = (Some(true), Some(false), None);
        let now = Instant::now();
        for (states, any, two, all) in [
            ([on, on, on], on, on, on),
            ([lost, on, on], lost, on, on),
            ([lost, lost, on], lost, lost, on),
            ([lost, lost, lost], lost, lost, lost),
            ([unknown, on, on], unknown, on, on),
            ([unknown, lost, on], lost, unknown, on),
            ([unknown, unknown, on], unknown, unknown, on),
            ([unknown, lost, lost], lost, lost, unknown),
            ([unknown, unknown, unknown], unknown, unknown, unknown),
        ] {
            let views = views(&states, now);
            let says = [1, 2, 3].map(|n| combine(rule(n), &views, now).online);
            assert_eq!(says, [any, two, all], "{states:?}");
        }
        assert_eq!(combine(rule(1), &[], now).online, None);
    }

    #[test]
    fn the_least_of_what_batteries_hold_and_every_fault_with_its_source() {
        let now = Instant::now();
        let mut views = views(&[Some(true), Some(true)], now);
        views[0].state.runtime = Some(Duration::from_secs(9));
        views[1].state.runtime = Some(Duration::from_secs(7));
        views[0].state.charge = Some(0.5);
        views[1].state.fault = Some("bypassed".into());
        let all = combine(rule(2), &views, now);
        assert_eq!((all.runtime, all.charge), (Some(Duration::from_secs(7)), Some(0.5)));
        assert_eq!(all.fault.as_deref(), Some("s1: bypassed"));
    }

    #[test]
    fn what_was_said_too_long_ago_is_unknown() {
        let now = Instant::now();
        let views = views(&[Some(true)], now);
        assert_eq!(combine(rule(1), &views, now + Duration::from_secs(1)).online, Some(true));
        let late = combine(rule(1), &views, now + Duration::from_millis(1001));
        assert!(late.online.is_none() && late.fault.is_some());
    }

    fn states() -> impl Strategy<Value = Vec<Option<bool>>> {
        prop::collection::vec(prop::option::of(any::<bool>()), 1..6)
    }

    proptest! {
        #[test]
        fn a_verdict_stands_whatever_the_unknown_ones_would_have_said(states in states(), lost_at in 1usize..6, fill: u32) {
            let now = Instant::now();
            let verdict = combine(rule(lost_at), &views(&states, now), now).online;
            let told = |(i, s): (usize, &Option<bool>)| Some(s.unwrap_or(fill >> i & 1 == 1));
            let filled: Vec<_> = states.iter().enumerate().map(told).collect();
            let whole = combine(rule(lost_at), &views(&filled, now), now).online;
            prop_assert!(verdict.is_none() || verdict == whole, "{states:?} {filled:?}");
        }

        #[test]
        fn nothing_known_is_never_power(n in 1usize..6, lost_at in 1usize..6, unknown_is_lost: bool) {
            let now = Instant::now();
            let lost_at = lost_at.min(n);
            let all = combine(Rule { lost_at, unknown_is_lost }, &views(&vec![None; n], now), now);
            prop_assert_eq!(all.online, unknown_is_lost.then_some(false));
        }
    }
}
