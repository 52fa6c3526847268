//! The rules one by one, and what holds of every view.

use proptest::prelude::*;

use super::model::Limits;
use super::*;

fn set(ids: &[u32]) -> PackageSet {
    ids.iter().copied().map(PackageId).collect()
}

fn package(id: u32, load: f64, residency: f64) -> PackageView {
    PackageView { id: PackageId(id), cpus: 10, load, residency: Some(residency) }
}

fn group(id: &str, load: f64, on: &[u32]) -> GroupView {
    let on = set(on);
    GroupView { id: id.into(), load, on, limits: Limits::default(), pressure: Some(0.0), p99: None }
}

fn view(packages: Vec<PackageView>, groups: Vec<GroupView>) -> View {
    View { packages, groups, keep: None }
}

/// The first moves that come of seeing the same again and again.
fn settled(policy: &mut Policy, view: &View, epochs: usize) -> Vec<Move> {
    (0..epochs).map(|_| policy.step(view)).find(|moves| !moves.is_empty()).unwrap_or_default()
}

fn policy() -> Policy {
    Policy::new(Settings { lone: 0, ..Settings::default() })
}

/// Two packages that are little used, a group on each.
fn two_idle() -> View {
    view(
        vec![package(0, 0.10, 0.1), package(1, 0.08, 0.1)],
        vec![group("a", 1.0, &[0]), group("b", 0.8, &[1])],
    )
}

/// As [`two_idle`] once its second package was drained.
fn drained(residency: f64) -> View {
    view(
        vec![package(0, 0.18, 0.05), package(1, 0.0, residency)],
        vec![group("a", 1.0, &[0]), group("b", 0.8, &[0])],
    )
}

#[test]
fn each_class_is_told_by_l_and_r() {
    let settings = Settings::default();
    let class = |load, residency, groups| classify(&package(0, load, residency), groups, &settings);
    assert_eq!(class(0.0, 0.99, false), Class::Parked);
    assert_eq!(class(0.9, 0.0, true), Class::High);
    assert_eq!(class(0.1, 0.8, true), Class::Efficient);
    assert_eq!(class(0.1, 0.2, true), Class::Inefficient);
    assert_eq!(class(0.4, 0.0, true), Class::Medium);
    assert_eq!(class(0.4, 0.0, false), Class::Medium, "something runs there that is no group");
}

#[test]
fn an_inefficient_package_is_drained_once_it_has_been_so_for_two_epochs() {
    let mut policy = policy();
    assert!(policy.step(&two_idle()).is_empty());
    let moves = policy.step(&two_idle());
    let [moved] = &moves[..] else { panic!("{moves:?}") };
    assert_eq!((moved.group.as_str(), &moved.to), ("b", &set(&[0])));
    assert_eq!(moved.reason, Reason::DrainInefficient { package: PackageId(1) });
}

#[test]
fn what_pays_stays_and_what_does_not_is_undone_and_tried_again_later_each_time() {
    let mut policy = policy();
    assert_eq!(settled(&mut policy, &two_idle(), 2).len(), 1);
    assert!(settled(&mut policy, &drained(0.95), 50).is_empty(), "it pays");

    let mut policy = self::policy();
    let mut waits = Vec::new();
    let idle = View { keep: Some(PackageId(0)), ..two_idle() };
    for _ in 0..3 {
        let before = policy.epoch;
        assert_eq!(settled(&mut policy, &idle, 100)[0].to, set(&[0]));
        waits.push(policy.epoch - before);
        let undone = settled(&mut policy, &drained(0.1), 4);
        assert!(matches!(undone[0].reason, Reason::NoGain { .. }) && undone[0].to == set(&[1]), "{undone:?}");
    }
    assert!(waits[0] < waits[1] && waits[1] < waits[2], "{waits:?}");
}

#[test]
fn a_move_that_makes_a_group_wait_or_its_p99_grow_is_undone() {
    let worse: [fn(&mut GroupView); 2] = [|group| group.pressure = Some(0.3), |group| group.p99 = Some(2e-3)];
    for worsen in worse {
        let (mut policy, mut before, mut after) = (policy(), two_idle(), drained(0.95));
        before.groups[0].p99 = Some(1e-3);
        after.groups[0].p99 = Some(1e-3);
        assert_eq!(settled(&mut policy, &before, 2).len(), 1);
        worsen(&mut after.groups[0]);
        let undone = settled(&mut policy, &after, 4);
        assert_eq!(undone[0].reason, Reason::Hurt { package: PackageId(1), group: "a".into() });
    }
}

#[test]
fn an_efficient_package_is_neither_drained_nor_filled() {
    let mut policy = policy();
    let view = view(
        vec![package(0, 0.1, 0.9), package(1, 0.1, 0.1)],
        vec![group("a", 1.0, &[0]), group("b", 1.0, &[1])],
    );
    assert!(settled(&mut policy, &view, 50).is_empty());
}

#[test]
fn a_medium_package_is_drained_when_everything_fits_and_not_when_it_does_not() {
    let at = |load: f64| {
        let groups = vec![group("a", load * 10.0, &[0]), group("b", load * 10.0, &[1])];
        view(vec![package(0, load, 0.0), package(1, load, 0.0)], groups)
    };
    let moves = settled(&mut policy(), &at(0.25), 10);
    assert!(matches!(moves[0].reason, Reason::DrainMedium { .. }), "{moves:?}");
    assert!(settled(&mut policy(), &at(0.35), 50).is_empty());
    let alone = Settings { drain_medium: false, lone: 0, ..Settings::default() };
    assert!(
        settled(&mut Policy::new(alone), &at(0.25), 50).is_empty(),
        "the five classes alone save nothing here"
    );
}

#[test]
fn draining_is_all_or_nothing() {
    let mut view = view(
        vec![package(0, 0.45, 0.0), package(1, 0.14, 0.1)],
        vec![group("a", 4.5, &[0]), group("b", 0.7, &[1]), group("c", 0.7, &[1])],
    );
    view.keep = Some(PackageId(0));
    assert_eq!(settled(&mut policy(), &view, 10).len(), 2);
    view.groups[2].limits.fixed = Some("pinned".into());
    assert!(settled(&mut policy(), &view, 50).is_empty(), "the other one is not moved either");
}

#[test]
fn a_high_package_is_relieved_by_what_fits_best() {
    let view = view(
        vec![package(0, 0.9, 0.0), package(1, 0.30, 0.0), package(2, 0.2, 0.0)],
        vec![group("a", 6.0, &[0]), group("b", 3.0, &[0]), group("c", 3.0, &[1]), group("d", 2.0, &[2])],
    );
    let moves = settled(&mut policy(), &view, 3);
    assert!(
        moves.iter().all(|m| matches!(m.reason, Reason::Relieve { package: PackageId(0), .. })),
        "{moves:?}"
    );
    let loads = moves.iter().find(|m| m.group == "b").or(moves.first()).unwrap();
    assert!(!loads.to.is_empty() && loads.to != set(&[0]), "{moves:?}");
}

#[test]
fn the_guard_spreads_at_once_and_draining_rests_longer_each_time() {
    let (mut policy, mut rests) = (policy(), Vec::new());
    for _ in 0..3 {
        let from = policy.epoch;
        assert!(!settled(&mut policy, &two_idle(), 5000).is_empty());
        rests.push(policy.epoch - from);
        assert!(policy.step(&drained(0.95)).is_empty());
        let burst = view(
            vec![package(0, 1.0, 0.0), package(1, 0.0, 0.9)],
            vec![group("a", 5.0, &[0]), group("b", 5.0, &[0])],
        );
        let moves = policy.guard(&burst);
        assert!(moves.len() == 2 && moves.iter().all(|m| m.to == set(&[0, 1])), "{moves:?}");
    }
    assert!(rests[0] < rests[1] && rests[1] < rests[2], "{rests:?}");
}

#[test]
fn all_but_one_are_emptied_only_after_a_longer_look() {
    let mut policy = Policy::new(Settings { lone: 30, ..Settings::default() });
    assert!(settled(&mut policy, &two_idle(), 29).is_empty());
    assert_eq!(settled(&mut policy, &two_idle(), 2).len(), 1);
}

#[test]
fn without_a_measure_of_r_nothing_is_drained() {
    let mut view = two_idle();
    view.packages.iter_mut().for_each(|package| package.residency = None);
    assert!(settled(&mut policy(), &view, 50).is_empty());
}

#[test]
fn the_package_of_the_nic_is_drained_last() {
    let mut view = two_idle();
    view.keep = Some(PackageId(1));
    assert_eq!(settled(&mut policy(), &view, 3)[0].group, "a");
}

#[test]
fn a_package_that_vanishes_takes_its_trial_along() {
    let mut policy = policy();
    assert_eq!(settled(&mut policy, &two_idle(), 2).len(), 1);
    let alone = view(vec![package(0, 0.2, 0.0)], vec![group("a", 1.0, &[0]), group("b", 0.8, &[0, 1])]);
    assert!(settled(&mut policy, &alone, 20).is_empty());
    assert!(settled(&mut policy, &drained(0.9), 20).is_empty(), "and comes back");
}

fn any_group(packages: u32) -> impl Strategy<Value = GroupView> {
    let some = prop::collection::btree_set((0..packages).prop_map(PackageId), 1..=packages as usize);
    (0.0..4.0f64, some.clone(), prop::option::of(some), any::<bool>(), prop::bool::weighted(0.2), 0.0..0.2f64)
        .prop_map(|(load, on, within, whole, fixed, pressure)| {
            // Where it lies it may lie.
            let within = within.map(|within| &within | &on);
            let limits = Limits { fixed: fixed.then(|| "pinned".into()), within, whole };
            GroupView { id: String::new(), load, on, limits, pressure: Some(pressure), p99: None }
        })
}

/// Packages with the loads that their groups make, and R that falls with load.
fn loaded(packages: u32, mut groups: Vec<GroupView>) -> View {
    let mut used = vec![0.0; packages as usize];
    for (index, group) in groups.iter_mut().enumerate() {
        group.id = format!("g{index}");
        group.on.iter().for_each(|id| used[id.0 as usize] += group.load / group.on.len() as f64);
    }
    let packages = used
        .iter()
        .enumerate()
        .map(|(id, used): (usize, &f64)| package(id as u32, (used / 10.0).min(1.0), (0.9 - used).max(0.0)))
        .collect();
    view(packages, groups)
}

proptest! {
    #[test]
    fn moves_keep_every_limit_and_overfill_nothing(
        groups in prop::collection::vec(any_group(4), 1..8), loads in prop::collection::vec(0.2..2.0f64, 40),
    ) {
        let (mut policy, mut groups) = (policy(), groups);
        for factor in loads {
            let mut now = groups.clone();
            now.iter_mut().for_each(|group| group.load *= factor);
            let view = loaded(4, now);
            let guard = policy.guard(&view);
            let moves = if guard.is_empty() { policy.step(&view) } else { guard };
            for moved in &moves {
                let index: usize = moved.group[1..].parse().unwrap();
                let group = &view.groups[index];
                prop_assert_eq!(&moved.from, &group.on);
                prop_assert!(!moved.to.is_empty() && moved.to != moved.from, "{:?}", moved);
                prop_assert!(group.movable(), "fixed: {:?}", moved);
                prop_assert!(moved.to.is_subset(&group.allowed(&view.ids())), "{:?} {:?}", moved, group.limits);
                let split = group.limits.whole && moved.to.len() > moved.from.len().max(1);
                let undone = matches!(moved.reason, Reason::NoGain { .. } | Reason::Hurt { .. });
                prop_assert!(!split || undone, "split: {:?}", moved);
                groups[index].on = moved.to.clone();
            }
            let after = loaded(4, groups.iter().map(|group| GroupView { load: group.load * factor, ..group.clone() }).collect());
            let drained = moves.iter().any(|m| matches!(m.reason, Reason::DrainInefficient { .. } | Reason::DrainMedium { .. }));
            for (package, before) in after.packages.iter().zip(&view.packages) {
                let filled = package.load <= Settings::default().fill + 1e-9 || package.load <= before.load + 1e-9;
                prop_assert!(!drained || filled, "{:?} after {:?}", package, moves);
            }
        }
    }

    #[test]
    fn what_does_not_change_comes_to_rest(groups in prop::collection::vec(any_group(4), 1..8)) {
        let (mut policy, mut groups) = (policy(), groups);
        let mut last = 0;
        for epoch in 0..400u32 {
            // R of a package without groups is high: draining pays.
            let view = loaded(4, groups.clone());
            for moved in policy.step(&view) {
                groups[moved.group[1..].parse::<usize>().unwrap()].on = moved.to;
                last = epoch;
            }
        }
        prop_assert!(last < 200, "still moving at {last}");
    }

    #[test]
    fn no_view_however_odd_makes_it_panic(
        loads in prop::collection::vec((0u32..6, 0u32..3, prop::num::f64::ANY, prop::option::of(prop::num::f64::ANY)), 0..6),
        groups in prop::collection::vec((any_group(6), prop::num::f64::ANY), 0..6),
    ) {
        let mut policy = policy();
        let mut seen = PackageSet::new();
        let packages: Vec<PackageView> = loads.into_iter().filter(|(id, ..)| seen.insert(PackageId(*id)))
            .map(|(id, cpus, load, residency)| PackageView { id: PackageId(id), cpus, load, residency }).collect();
        let groups = groups.into_iter().enumerate()
            .map(|(index, (group, load))| GroupView { id: format!("g{index}"), load, ..group }).collect();
        let view = view(packages, groups);
        for _ in 0..8 {
            policy.guard(&view);
            policy.step(&view);
        }
    }
}
