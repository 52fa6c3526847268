//! What the decision promises on any input, and its table.

use proptest::prelude::*;

use super::*;

#[path = "simulator.rs"]
mod simulator;

const MIB: u64 = 1 << 20;

/// Megabytes of each class, in the order of [`Class::ALL`].
fn tenant(name: &str, classes: [u64; 6], means: Means) -> Tenant {
    let mib = |class: Class| classes[Class::ALL.iter().position(|c| *c == class).expect("one of them")] * MIB;
    let size = classes.iter().sum::<u64>() * MIB;
    let classes = PerClass::of(|class| Estimate::exactly(mib(class)));
    Tenant { name: name.into(), size, entitlement: size, classes, means }
}

fn all_means() -> Means {
    Means { balloon: Some(400 * MIB), balloon_stalled: false, limit: None, page_out: Some(800 * MIB) }
}

const PLENTY: Host = Host { available: 1000 * MIB, threshold: 500 * MIB };

fn need(mib: u64) -> Need {
    Need { bytes: mib * MIB, within: None, depth: Depth::Inactive }
}

fn told(plan: &Plan) -> Vec<(Class, Technique, u64, Option<Instead>)> {
    plan.takes.iter().map(|t| (t.class, t.technique, t.bytes / MIB, t.instead)).collect()
}

#[test]
fn classes_are_taken_in_order_each_by_its_technique() {
    let t = tenant("a", [50, 60, 70, 80, 90, 100], all_means());
    let plan = plan(PLENTY, &[t], Need { depth: Depth::ActiveAnonymous, ..need(1000) });
    let expected = [
        (Class::Free, Technique::Balloon, 100, None),
        (Class::InactiveBuffer, Technique::Balloon, 90, None),
        (Class::InactiveAnonymous, Technique::PageOut, 13, None),
        (Class::InactiveAnonymous, Technique::PageOut, 67, None),
        (Class::ActiveBuffer, Technique::Balloon, 70, None),
        (Class::ActiveAnonymous, Technique::PageOut, 60, None),
    ];
    assert_eq!(told(&plan).len(), expected.len(), "{plan:?}");
    assert_eq!(told(&plan)[..2], expected[..2]);
    assert_eq!(told(&plan)[4..], expected[4..]);
    assert_eq!(plan.short, (1000 - 400) * MIB, "what is unreclaimable stays");
}

#[test]
fn a_machine_in_full_use_is_refused_and_by_how_much_is_said() {
    let t = tenant("hot", [50, 400, 50, 0, 0, 0], all_means());
    let plan = plan(PLENTY, &[t], need(256));
    assert_eq!((plan.takes.len(), plan.short), (0, 256 * MIB));
}

#[test]
fn swapping_takes_the_balloons_place_for_each_of_its_reasons() {
    let cache = |means| tenant("cache", [50, 50, 50, 0, 300, 0], means);
    let ask = |host, means, within| told(&plan(host, &[cache(means)], Need { within, ..need(200) }));
    let all = |technique, instead| vec![(Class::InactiveBuffer, technique, 200, instead)];
    assert_eq!(ask(PLENTY, all_means(), None), all(Technique::Balloon, None));
    let short = Host { available: 100 * MIB, ..PLENTY };
    assert_eq!(ask(short, all_means(), None), all(Technique::PageOut, Some(Instead::BelowThreshold)));
    let stalled = Means { balloon_stalled: true, ..all_means() };
    assert_eq!(ask(PLENTY, stalled, None), all(Technique::PageOut, Some(Instead::Stalled)));
    let none = Means { balloon: None, ..all_means() };
    assert_eq!(ask(PLENTY, none, None), all(Technique::PageOut, Some(Instead::Absent)));
    let soon = Some(Duration::from_millis(300));
    assert_eq!(ask(PLENTY, all_means(), soon), all(Technique::PageOut, Some(Instead::Deadline)));
    let no_swap = Means { page_out: None, ..all_means() };
    assert_eq!(ask(short, no_swap, None), all(Technique::Balloon, None), "there is nothing else");
    assert_eq!(ask(PLENTY, Means { balloon_stalled: true, ..no_swap }, None), []);
}

#[test]
fn who_is_short_of_the_allotment_gives_last() {
    // Both have 100 MiB that nobody uses; the second was promised far more than it has.
    let rich = tenant("rich", [100, 100, 0, 100, 0, 0], all_means());
    let mut poor = tenant("poor", [100, 100, 0, 100, 0, 0], all_means());
    poor.entitlement = 4000 * MIB;
    let both = [poor, rich];
    let from = |mib, i| plan(PLENTY, &both, need(mib)).of(i, Technique::PageOut) / MIB;
    assert_eq!((from(60, 0), from(60, 1)), (0, 60));
    assert_eq!((from(150, 0), from(150, 1)), (50, 100), "only when the other has nothing left");
}

#[test]
fn a_control_group_is_limited() {
    let means = Means { limit: Some(100 * MIB), page_out: Some(MIB), ..Means::default() };
    let plan = plan(PLENTY, &[tenant("g", [0, 10, 10, 50, 50, 0], means)], need(60));
    assert!(told(&plan).iter().any(|t| t.0 == Class::InactiveBuffer && t.1 == Technique::Limit), "{plan:?}");
}

fn tenants() -> impl Strategy<Value = Vec<Tenant>> {
    let speed = || prop::option::of(1u64..2000);
    let means =
        (speed(), any::<bool>(), speed(), speed()).prop_map(|(balloon, balloon_stalled, limit, page_out)| {
            let mib = |speed: Option<u64>| speed.map(|s| s * MIB);
            Means { balloon: mib(balloon), balloon_stalled, limit: mib(limit), page_out: mib(page_out) }
        });
    let one = (prop::array::uniform6(0u64..500), 0u64..3000, 0u64..100, means).prop_map(
        |(classes, entitlement, loose, means)| {
            let mut t = tenant("t", classes, means);
            t.entitlement = entitlement * MIB;
            for class in Class::ALL {
                t.classes[class].least = t.classes[class].bytes * (100 - loose) / 100;
            }
            t
        },
    );
    prop::collection::vec(one, 0..5)
}

fn hosts() -> impl Strategy<Value = Host> {
    (0u64..2000, 0u64..2000).prop_map(|(a, t)| Host { available: a * MIB, threshold: t * MIB })
}

fn needs() -> impl Strategy<Value = Need> {
    let depth = prop_oneof![Just(Depth::Inactive), Just(Depth::ActiveBuffer), Just(Depth::ActiveAnonymous)];
    (0u64..4000, prop::option::of(0u64..5000), depth).prop_map(|(bytes, within, depth)| Need {
        bytes: bytes * MIB,
        within: within.map(Duration::from_millis),
        depth,
    })
}

proptest! {
    #[test]
    fn a_plan_takes_no_more_than_there_is_and_nothing_that_is_pinned(
        host in hosts(), tenants in tenants(), need in needs()
    ) {
        let plan = plan(host, &tenants, need);
        prop_assert_eq!(plan.total() + plan.short, need.bytes);
        for (i, t) in tenants.iter().enumerate() {
            for class in Class::ALL {
                let taken: u64 = plan.takes.iter().filter(|x| x.tenant == i && x.class == class).map(|x| x.bytes).sum();
                prop_assert!(taken <= t.classes[class].least);
                let allowed = match class {
                    Class::Unreclaimable => false,
                    Class::ActiveBuffer => need.depth >= Depth::ActiveBuffer,
                    Class::ActiveAnonymous => need.depth >= Depth::ActiveAnonymous,
                    _ => true,
                };
                prop_assert!(taken == 0 || allowed, "{:?}", class);
            }
        }
        for take in &plan.takes {
            let means = tenants[take.tenant].means;
            let speed = match take.technique {
                Technique::Balloon => means.balloon,
                Technique::Limit => means.limit,
                Technique::PageOut => means.page_out,
            };
            prop_assert!(take.bytes > 0 && speed.is_some(), "by what does not work: {:?}", take);
            prop_assert!(take.technique != Technique::Balloon || !means.balloon_stalled);
        }
    }

    #[test]
    fn who_needs_more_takes_no_less(host in hosts(), tenants in tenants(), need in needs(), more in 0u64..2000) {
        let less = plan(host, &tenants, need);
        let more = plan(host, &tenants, Need { bytes: need.bytes + more * MIB, ..need });
        prop_assert!(more.total() >= less.total(), "{:?} {:?}", less, more);
        if need.within.is_none() {
            for i in 0..tenants.len() {
                let of = |plan: &Plan| plan.takes.iter().filter(|t| t.tenant == i).map(|t| t.bytes).sum::<u64>();
                prop_assert!(of(&more) >= of(&less));
            }
        }
    }

    #[test]
    fn nothing_in_use_is_taken_while_something_idle_is_left(host in hosts(), tenants in tenants(), need in needs()) {
        let plan = plan(host, &tenants, Need { within: None, ..need });
        let in_use = plan.takes.iter().any(|t| matches!(t.class, Class::ActiveBuffer | Class::ActiveAnonymous));
        for (i, t) in tenants.iter().enumerate().filter(|(_, t)| in_use && t.means.page_out.is_some()) {
            for class in IDLE {
                let taken: u64 = plan.takes.iter().filter(|x| x.tenant == i && x.class == class).map(|x| x.bytes).sum();
                prop_assert_eq!(taken, t.classes[class].least);
            }
        }
    }
}
