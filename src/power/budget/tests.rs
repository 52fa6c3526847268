//! What a budget promises, in small numbers.

use proptest::prelude::*;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn means(hold_up: u32) -> Means {
    Means { hold_up: Some(SECOND * hold_up), detect: SECOND, safety: 2.0 }
}

fn to(node: &str, exposed: u64, drain: u64) -> DestinationLoad {
    DestinationLoad {
        node: node.into(),
        counts: true,
        exposed: vec![(None, exposed)],
        drain: Some(drain).filter(|d| *d > 0),
    }
}

fn group(destinations: Vec<DestinationLoad>) -> GroupLoad {
    GroupLoad { name: "db".into(), enforced: true, freeze: SECOND, destinations }
}

#[test]
fn what_is_required_is_detection_freezing_shipping_with_safety_and_the_hand_over() {
    let a = &assess(&means(100), &[group(vec![to("beta", 10_000, 1000)])])[0];
    assert_eq!(a.required, Some((SECOND * 12 + HAND_OVER) * 2));
    assert_eq!(a.available, Some(SECOND * 100));
    // 100 s / 2, less 2.1 s, at 1000 B/s.
    assert_eq!(a.thresholds, Thresholds { t1: 23_950, t2: 47_900, drain: 1000 });
    assert_eq!((a.action, a.exposed), (Action::None, 10_000));
}

#[test]
fn what_is_done_grows_with_what_is_exposed() {
    let action = |exposed, enforced| {
        let group = GroupLoad { enforced, ..group(vec![to("beta", exposed, 1000)]) };
        assess(&means(100), &[group])[0].action
    };
    assert_eq!(action(11_000, true), Action::None);
    assert_eq!(action(13_000, true), Action::CopyFaster);
    assert_eq!(action(25_000, true), Action::Delay);
    assert_eq!(action(25_000, false), Action::CopyFaster);
    assert_eq!(action(40_000, true), Action::Alarm);
}

#[test]
fn the_heir_that_has_the_least_to_come_counts_and_none_that_does_not_count() {
    let mut away = to("gamma", 0, 1 << 30);
    away.counts = false;
    let a =
        &assess(&means(100), &[group(vec![to("beta", 5000, 1000), to("delta", 5000, 5000), away.clone()])])
            [0];
    assert_eq!(a.destination.as_deref(), Some("delta"));
    let none = &assess(&means(100), &[group(vec![away])])[0];
    assert_eq!((none.required, none.ratio(), none.action), (None, None, Action::Alarm));
}

#[test]
fn what_is_not_known_is_alarmed_at() {
    let unknown = Means { hold_up: None, ..means(0) };
    assert_eq!(assess(&unknown, &[group(vec![to("beta", 0, 1000)])])[0].action, Action::Alarm);
    assert_eq!(assess(&means(100), &[group(vec![to("beta", 1, 0)])])[0].action, Action::Alarm);
    // Nothing to ship: how fast does not matter.
    assert_eq!(assess(&means(100), &[group(vec![to("beta", 0, 0)])])[0].action, Action::None);
    assert_eq!(assess(&means(0), &[group(vec![to("beta", 0, 0)])])[0].ratio(), Some(f64::INFINITY));
}

#[test]
fn a_link_that_groups_share_is_reckoned_once() {
    let other = GroupLoad { name: "web".into(), enforced: false, ..group(vec![to("beta", 3000, 1000)]) };
    let all = assess(&means(100), &[group(vec![to("beta", 1000, 1000)]), other]);
    assert_eq!(all[0].required, all[1].required);
    assert_eq!(all[0].required, Some((SECOND * 6 + HAND_OVER) * 2));
    // What the one that nobody holds back takes is not there for the other.
    assert_eq!(all[0].thresholds.t2, 47_900 - 3000);
    let enforced = assess(&means(100), &vec![group(vec![to("beta", 0, 1000)]); 2]);
    assert_eq!(enforced[0].thresholds.t2, 23_950);
}

#[test]
fn writers_come_to_rest_below_the_second_threshold_however_many_they_are() {
    for writers in [1u64, 2, 10, 100] {
        let thresholds = Thresholds::of(100_000_000, 1_000_000);
        let (append, mut exposed) = (10_000u64, 0f64);
        // All append at once; then each waits as it is told.
        for _ in 0..100_000 {
            exposed += (writers * append) as f64;
            let wait = match thresholds.delay(append, exposed as u64) {
                Delay::None => Duration::ZERO,
                Delay::For(wait) => wait,
                Delay::UntilLess => panic!("{writers} writers reached T2: {exposed}"),
            };
            exposed = (exposed - wait.as_secs_f64() * 1e6).max(0.0);
        }
        let rest = 50e6 + 50e6 * writers as f64 / (writers + 1) as f64;
        assert!((exposed - rest).abs() < 2e6, "{writers} writers rest at {exposed}, not {rest}");
    }
}

#[test]
fn a_verdict_is_told_once_and_not_taken_back_at_once() {
    let mut verdict = Verdict::default();
    let told: Vec<_> = [0.5, 0.79, 0.8, 1.2, 0.7, 0.6, 0.59, 0.7].map(|r| verdict.tell(Some(r))).into();
    assert_eq!(told, [None, None, Some(Told::Low), None, None, None, Some(Told::Ok), None]);
    let told: Vec<_> = (0..UNKNOWN_LOOKS + 2).filter_map(|_| verdict.tell(None)).collect();
    assert_eq!(told, [Told::Low]);
    assert_eq!(verdict.tell(Some(0.1)), Some(Told::Ok));
    assert_eq!((verdict.tell(None), verdict.tell(Some(0.1))), (None, None));
}

fn load() -> impl Strategy<Value = GroupLoad> {
    let to = (0..3usize, any::<bool>(), 0u64..1 << 40, prop::option::of(1u64..1 << 34));
    let destinations = prop::collection::vec(to, 0..3);
    (any::<bool>(), 0u64..5000, destinations).prop_map(|(enforced, freeze, destinations)| GroupLoad {
        name: String::new(),
        enforced,
        freeze: Duration::from_millis(freeze),
        destinations: destinations
            .into_iter()
            .map(|(node, counts, bytes, drain)| DestinationLoad {
                node: ["a", "b", "c"][node].into(),
                counts,
                exposed: vec![(None, bytes)],
                drain,
            })
            .collect(),
    })
}

proptest! {
    #[test]
    fn who_stays_within_t2_can_be_carried(
        group in load(), hold_up in 0u64..1 << 20, detect in 0u64..10_000, safety in 1.0f64..4.0,
    ) {
        let means = Means {
            hold_up: Some(Duration::from_millis(hold_up)),
            detect: Duration::from_millis(detect),
            safety,
        };
        let a = &assess(&means, std::slice::from_ref(&group))[0];
        prop_assert!(a.thresholds.t1 <= a.thresholds.t2);
        if let (Some(required), true) = (a.required, a.exposed > 0 && a.exposed <= a.thresholds.t2) {
            prop_assert!(required <= a.available.unwrap() + Duration::from_micros(1), "{a:?}");
        }
    }

    #[test]
    fn thresholds_move_with_bandwidth_and_hold_up_both_ways(
        drain in 1u64..1 << 34, more in 1u64..1 << 34, hold_up in 5u32..10_000, longer in 1u32..10_000,
    ) {
        let t2 = |drain, hold_up| assess(&means(hold_up), &[group(vec![to("beta", 0, drain)])])[0].thresholds.t2;
        let base = t2(drain, hold_up);
        prop_assert!(t2(drain + more, hold_up) >= base && t2(drain, hold_up + longer) >= base);
        prop_assert!(t2(drain + more, hold_up + longer) > base);
    }

    #[test]
    fn a_delay_grows_with_what_is_exposed(
        t2 in 2u64..1 << 40, drain in 1u64..1 << 34, bytes in 1u64..1 << 20, a: u64, b: u64,
    ) {
        let thresholds = Thresholds::of(t2, drain);
        let (a, b) = ((a % (t2 * 2)).min(b % (t2 * 2)), (a % (t2 * 2)).max(b % (t2 * 2)));
        let order = |delay| match delay {
            Delay::None => -1.0,
            Delay::For(time) => time.as_secs_f64(),
            Delay::UntilLess => f64::INFINITY,
        };
        let [a, b] = [a, b].map(|exposed| order(thresholds.delay(bytes, exposed)));
        prop_assert!(a <= b + 1e-9);
    }

    #[test]
    fn more_of_anything_to_ship_never_takes_less(loads in prop::collection::vec(load(), 1..4), extra in 1u64..1 << 30) {
        let before = assess(&means(100), &loads);
        let mut more = loads.clone();
        more[0].destinations.iter_mut().for_each(|to| to.exposed.push((Some(RegionId(1)), extra)));
        for (a, b) in before.iter().zip(assess(&means(100), &more)) {
            if let (Some(a), Some(b)) = (a.required, b.required) {
                prop_assert!(a <= b);
            }
        }
    }
}
