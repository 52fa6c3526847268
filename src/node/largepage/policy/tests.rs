//! What the policy promises, on any input; and what it gains in a simulated process.

use proptest::prelude::*;

use super::*;

#[path = "simulator.rs"]
mod simulator;

use simulator::{Run, Use, gained, in_vain, mixture, oracle};

fn small(range: u64, set: u16) -> Look {
    Look { range: Range(range), bits: Bits::Small(set), written: None }
}

fn ccv(ranking: &Ranking, range: u64) -> f64 {
    ranking.standings().iter().find(|s| s.range == Range(range)).expect("it is known").ccv
}

#[test]
fn the_current_count_value_is_the_mean_of_its_last_and_the_new_count() {
    let mut ranking = Ranking::new(Settings::default());
    let values: Vec<f64> = [512, 0, 256, 512]
        .into_iter()
        .map(|set| {
            ranking.observe(&[small(1, set)]);
            ccv(&ranking, 1)
        })
        .collect();
    assert_eq!(values, [256.0, 128.0, 192.0, 352.0]);
}

#[test]
fn nothing_is_mapped_large_in_the_first_phase_whatever_was_identified() {
    let mut ranking = Ranking::new(Settings { settle: 3, ..Settings::default() });
    for period in 1..=5 {
        ranking.observe(&[small(1, 512), small(2, 512)]);
        let actions = ranking.decide(Asked { by_tracking: 9, by_memory: 9 });
        assert_eq!(actions.is_empty(), period < 3, "period {period}: {actions:?}");
    }
}

#[test]
fn one_burst_earns_nothing() {
    let mut ranking = Ranking::new(Settings::default());
    for set in [0, 0, 0, 0, 512, 0, 512, 0, 0] {
        ranking.observe(&[small(1, set)]);
        assert_eq!(ranking.decide(Asked::default()), [], "a CCV of {}", ccv(&ranking, 1));
    }
    for _ in 0..2 {
        ranking.observe(&[small(1, 512)]);
    }
    assert_eq!(ranking.decide(Asked::default()), [Action::Map(Range(1))]);
}

#[test]
fn what_the_system_refuses_is_not_asked_for_again_until_it_is_mapped_anew() {
    let mut ranking = Ranking::new(Settings { settle: 1, steady: 1, ..Settings::default() });
    let see = |ranking: &mut Ranking| {
        ranking.observe(&[small(1, 512), small(2, 500)]);
        ranking.decide(Asked::default())
    };
    assert_eq!(see(&mut ranking), [Action::Map(Range(1)), Action::Map(Range(2))]);
    ranking.refused(Range(1));
    assert_eq!(see(&mut ranking), [Action::Map(Range(2))]);
    ranking.observe(&[small(2, 500)]);
    assert_eq!(see(&mut ranking), [Action::Map(Range(2)), Action::Map(Range(1))], "it was gone meanwhile");
}

#[test]
fn a_sparsely_written_range_costs_tracking_more_than_it_gains() {
    let mut ranking = Ranking::new(Settings::default());
    for _ in 0..8 {
        let written = |range, written| Look { written: Some(written), ..small(range, 512) };
        ranking.observe(&[written(1, 1), written(2, 0), written(3, 512)]);
    }
    let maps = ranking.decide(Asked::default());
    assert_eq!(maps, [Action::Map(Range(2)), Action::Map(Range(3))], "each page of 3 is shipped anyway");
    assert!(ranking.standings()[2].score < 10.0, "{:?}", ranking.standings());
    let mut untracked = ranking;
    untracked.settings.write_weight = 0.0;
    assert_eq!(untracked.decide(Asked::default()).len(), 3, "where writes are not tracked by page");
}

#[test]
fn what_went_cold_is_demoted_only_when_asked_for_and_only_if_it_is_ours() {
    let mut ranking = Ranking::new(Settings { settle: 1, steady: 1, ..Settings::default() });
    ranking.observe(&[small(1, 512), small(2, 512)]);
    ranking.done(Action::Map(Range(1)));
    ranking.done(Action::Map(Range(2)));
    let large = |range, touched| Look { bits: Bits::Large(touched), ..small(range, 0) };
    // 3 was large before anybody looked.
    for _ in 0..8 {
        ranking.observe(&[large(1, true), large(2, false), large(3, false)]);
    }
    assert_eq!(ccv(&ranking, 1), 256.0, "one bit that is set tells nothing of how many pages");
    assert_eq!(ranking.decide(Asked::default()), []);
    assert_eq!(ranking.decide(Asked { by_memory: 5, by_tracking: 0 }), [Action::Demote(Range(2))]);
}

#[test]
fn what_was_written_sparsely_when_it_was_mapped_is_demoted_when_tracking_asks() {
    let settings = Settings { settle: 1, steady: 1, write_weight: 0.0, ..Settings::default() };
    let mut ranking = Ranking::new(settings);
    ranking.observe(&[Look { written: Some(1), ..small(1, 512) }, small(2, 512)]);
    ranking.done(Action::Map(Range(1)));
    ranking.done(Action::Map(Range(2)));
    let cold = |range| Look { bits: Bits::Large(false), ..small(range, 0) };
    for _ in 0..8 {
        ranking.observe(&[cold(1), cold(2)]);
    }
    let asked = Asked { by_memory: 0, by_tracking: 5 };
    assert_eq!(ranking.decide(asked), [Action::Demote(Range(1))], "nothing was written to the other");
}

#[test]
fn what_the_system_puts_off_rests_for_a_bounded_time() {
    let mut ranking = Ranking::new(Settings { settle: 1, steady: 1, ..Settings::default() });
    let mut rests = Vec::new();
    let mut rested = 0;
    for _ in 0..2000 {
        ranking.observe(&[small(1, 512)]);
        if ranking.decide(Asked::default()).is_empty() {
            rested += 1;
        } else {
            ranking.busy(Range(1));
            rests.push(std::mem::take(&mut rested));
        }
    }
    assert_eq!(rests[..9], [0, 1, 2, 4, 8, 16, 32, 64, 128]);
    assert!(rests[9..].iter().all(|rest| *rest == LONGEST_REST), "{rests:?}");
}

#[test]
fn in_the_simulated_process_a_fifth_of_the_ranges_gains_what_the_oracle_does_and_address_order_does_not() {
    for seed in 0..20 {
        let plan = mixture(200);
        let mut run = Run::new(200, Settings::default(), seed);
        run.live(&plan, 12, Asked::default());
        let (large, all) = (run.large(), (0..200).collect::<Vec<_>>());
        assert!(large.len() * 5 <= 200, "{} ranges", large.len());
        let by_address: Vec<usize> = (0..large.len()).collect();
        let best = gained(&plan, &oracle(&plan, large.len()));
        let ours = gained(&plan, &large);
        assert!(ours >= 0.9 * best && ours >= 0.7 * gained(&plan, &all), "{ours} of {best}");
        assert!(ours > 5.0 * gained(&plan, &by_address), "{ours} beside {}", gained(&plan, &by_address));
        assert_eq!(in_vain(&plan, &large), 0.0);
        assert!(
            in_vain(&plan, &all) > 10_000.0,
            "mapping all large would have tracking mark so much in vain"
        );
    }
}

#[test]
fn in_the_simulated_process_the_ranking_follows_when_the_hot_part_moves() {
    let plan = mixture(200);
    let moved: Vec<Use> = plan.iter().rev().copied().collect();
    let mut run = Run::new(200, Settings::default(), 7);
    run.live(&plan, 12, Asked::default());
    run.live(&moved, 12, Asked { by_memory: 8, by_tracking: 0 });
    let large = run.large();
    let share = gained(&moved, &large) / gained(&moved, &oracle(&moved, large.len()));
    assert!(share >= 0.9, "{share}");
    let before = large.iter().filter(|i| **i >= 170).count();
    assert!(before <= 2, "what was hot before has its small pages again: {large:?}");
}

fn looks() -> impl Strategy<Value = Vec<Look>> {
    let bits = prop_oneof![3 => (0u16..700).prop_map(Bits::Small), 1 => any::<bool>().prop_map(Bits::Large)];
    let one = (0u64..12, bits, prop::option::of(0u16..700)).prop_map(|(range, bits, written)| Look {
        range: Range(range),
        bits,
        written,
    });
    prop::collection::vec(one, 0..20)
}

fn settings() -> impl Strategy<Value = Settings> {
    let numbers = (0u32..6, 0u32..3, 1.0..600.0f64, 0usize..6, 0.0..2.0f64);
    numbers.prop_map(|(settle, steady, threshold, budget, write_weight)| Settings {
        settle,
        steady,
        threshold,
        budget,
        write_weight,
    })
}

proptest! {
    /// Whatever is seen, done and refused: nothing early, nothing beyond the budget or below the threshold, the best first,
    /// nothing twice, only what is ours is taken apart.
    #[test]
    fn every_decision_keeps_to_the_rules(
        settings in settings(),
        periods in prop::collection::vec((looks(), 0usize..4, 0usize..4, any::<u8>()), 1..30),
    ) {
        let mut ranking = Ranking::new(settings);
        for (i, (looks, by_tracking, by_memory, outcome)) in periods.into_iter().enumerate() {
            ranking.observe(&looks);
            let standings = ranking.standings();
            prop_assert!(standings.iter().all(|s| (0.0..=512.0).contains(&s.ccv) && s.score <= s.ccv && s.in_vain >= 0.0));
            let of = |range: Range| *standings.iter().find(|s| s.range == range).expect("known");
            let actions = ranking.decide(Asked { by_tracking, by_memory });
            prop_assert!(actions.is_empty() || i as u32 + 1 >= settings.settle);
            let (mut maps, mut demotes) = (Vec::new(), Vec::new());
            for action in &actions {
                match action {
                    Action::Map(range) => maps.push(of(*range)),
                    Action::Demote(range) => demotes.push(of(*range)),
                }
            }
            prop_assert!(maps.len() <= settings.budget && demotes.len() <= by_tracking + by_memory);
            prop_assert!(maps.iter().all(|s| !s.large && !s.refused && settings.has_earned(s)));
            prop_assert!(maps.is_sorted_by(|a, b| a.score >= b.score));
            let rests = |s: &Standing| ranking.ranges[&s.range].rests >= ranking.periods;
            prop_assert!(!maps.iter().chain(&demotes).any(rests));
            // Nothing that earned it more was passed over.
            let passed = standings.iter().filter(|s| !s.large && !s.refused && !rests(s) && !maps.contains(s));
            let least = maps.last().map_or(f64::INFINITY, |s| s.score);
            let mut earned = passed.into_iter().filter(|s| settings.has_earned(s));
            prop_assert!(earned.all(|s| s.score <= least || settings.budget == 0));
            prop_assert!(demotes.iter().all(|s| s.large && s.score.min(s.ccv) < settings.threshold / 2.0));
            prop_assert!(demotes.iter().all(|s| ranking.ranges[&s.range].ours));
            let mut ranges: Vec<Range> = maps.iter().chain(&demotes).map(|s| s.range).collect();
            ranges.sort();
            let count = ranges.len();
            ranges.dedup();
            prop_assert_eq!(ranges.len(), count);
            for (n, action) in actions.into_iter().enumerate() {
                match (outcome >> (n % 4 * 2) & 3, action) {
                    (0, Action::Map(range)) => ranking.refused(range),
                    (1, Action::Map(range) | Action::Demote(range)) => ranking.busy(range),
                    _ => ranking.done(action),
                }
            }
        }
    }

    /// A range whose count is never below another's never ranks below it.
    #[test]
    fn more_use_never_ranks_lower(counts in prop::collection::vec((0u16..=512, 0u16..=512), 1..20)) {
        let mut ranking = Ranking::new(Settings::default());
        for (a, b) in counts {
            ranking.observe(&[small(1, a.max(b)), small(0, a.min(b))]);
        }
        prop_assert!(ccv(&ranking, 1) >= ccv(&ranking, 0));
    }
}
