//! Promise 4, one writer: the state machine of a group, checked over every interleaving of two or three nodes, a network
//! that loses, repeats, delays and reorders, crashes of agents and machines at every action, and power that
//! comes and goes; and the tables of `docs/failover.md`, which are the machine's own.

mod bugs;
mod explore;
mod table;
mod world;

use pmemha::failover::{
    Action, Alarm, Answer, Cause, Event, NodeName, Note, OnDeath, Phase, Round, Saved, Standing, State,
    Trigger, step,
};
use pmemha::types::Lsn;

use explore::explore;
use world::{Budget, Setting};

/// More states than any setting here has: one that outgrows it fails. The search for a bug ends there.
const LIMIT: usize = 300_000;

fn settings() -> Vec<(&'static str, Setting)> {
    let setting = |trigger, on_death, budget| Setting { nodes: 2, trigger, on_death, budget };
    let three = |budget| Setting { nodes: 3, ..setting(Trigger::Saved, OnDeath::None, budget) };
    let none = Budget::default();
    vec![
        (
            "power comes and goes, agents crash",
            setting(Trigger::Saved, OnDeath::None, Budget { agent_crashes: 1, flips: 2, ..none.clone() }),
        ),
        (
            "power comes and goes, a machine and an agent crash",
            setting(
                Trigger::Saved,
                OnDeath::None,
                Budget { agent_crashes: 1, machine_crashes: 1, flips: 1, ..none.clone() },
            ),
        ),
        (
            "save-started is the trigger",
            setting(
                Trigger::SaveStarted,
                OnDeath::None,
                Budget { agent_crashes: 1, flips: 2, ..none.clone() },
            ),
        ),
        (
            "the application dies",
            setting(
                Trigger::Saved,
                OnDeath::Failover,
                Budget { agent_crashes: 1, flips: 1, deaths: 1, ..none.clone() },
            ),
        ),
        (
            "the application dies and is started here",
            setting(
                Trigger::Saved,
                OnDeath::Restart,
                Budget { agent_crashes: 1, flips: 1, deaths: 1, ..none.clone() },
            ),
        ),
        (
            "the application ends of its own will",
            setting(
                Trigger::Saved,
                OnDeath::Failover,
                Budget { agent_crashes: 1, flips: 1, exits: 1, ..none.clone() },
            ),
        ),
        (
            "machines die, the operator forces",
            setting(
                Trigger::Saved,
                OnDeath::None,
                Budget { machine_crashes: 2, flips: 1, force: 1, ..none.clone() },
            ),
        ),
        (
            "the operator hands over, calls off; images fail",
            setting(Trigger::Saved, OnDeath::None, Budget { operator: 2, bad_images: 1, ..none.clone() }),
        ),
        (
            "there and back again",
            setting(
                Trigger::Saved,
                OnDeath::None,
                Budget { flips: 1, flips_second: 1, syncs: 1, ..none.clone() },
            ),
        ),
        (
            "power is lost while nothing runs",
            setting(
                Trigger::Saved,
                OnDeath::Failover,
                Budget { flips: 1, flips_second: 1, exits: 1, starts: 1, ..none.clone() },
            ),
        ),
        (
            "power is lost while the operator hands over",
            setting(
                Trigger::Saved,
                OnDeath::None,
                Budget { flips: 1, operator: 2, bad_images: 1, ..none.clone() },
            ),
        ),
        ("three nodes, an agent crashes", three(Budget { agent_crashes: 1, flips: 1, ..none.clone() })),
        (
            "one of two heirs cannot take over, power comes and goes",
            three(Budget { flips: 2, bad_images: 1, ..none.clone() }),
        ),
        ("three machines, one dies", three(Budget { machine_crashes: 1, ..none })),
    ]
}

#[test]
fn no_two_nodes_ever_write_and_a_delivered_trigger_ends_with_a_running_heir() {
    for (name, setting) in settings() {
        let began = std::time::Instant::now();
        let found = explore(&setting, None, LIMIT, true);
        println!(
            "{name}: {} states, {} transitions, {} fair runs, {:.1} s",
            found.states,
            found.transitions,
            found.fair_runs,
            began.elapsed().as_secs_f64()
        );
        assert!(found.states < LIMIT, "{name}: not explored to its end");
        if let Some(violation) = found.violation {
            panic!("{name}: {violation}");
        }
    }
}

#[test]
fn every_planted_bug_is_found_and_without_it_nothing_is() {
    for bug in bugs::ALL {
        let setting = Setting {
            nodes: bug.nodes(),
            trigger: Trigger::Saved,
            on_death: bug.on_death(),
            budget: bug.budget(),
        };
        let found = explore(&setting, Some(bug), LIMIT, bug.is_of_liveness());
        let violation = found.violation.unwrap_or_else(|| panic!("{bug:?} was not found"));
        println!("{bug:?}: {}, at state {}", violation.lines().next().unwrap_or_default(), found.states);
        let sound = explore(&setting, None, LIMIT, bug.is_of_liveness());
        assert!(sound.violation.is_none(), "{bug:?}: the setting is at fault: {:?}", sound.violation);
    }
}

#[test]
fn an_operators_order_stands_when_the_program_ends_by_itself_meanwhile() {
    let (policy, mut state) = (table::policy(), table::state(Phase::Freezing));
    state.cause = Cause::Operator;
    let (next, actions) = step(&policy, &state, &Event::ApplicationExited);
    assert_eq!(next.phase, Phase::Saving);
    assert!(actions.iter().any(|a| matches!(a, Action::ShipTail { .. })), "{actions:?}");
    // Handed back, it is what the operator left: ended.
    let saved = Saved { lsn: Lsn(64), digest: 7 };
    let (next, _) = step(
        &policy,
        &next,
        &Event::TailDurable { round: state.round(), heir: policy.heirs[0].clone(), saved },
    );
    let (next, _) = step(&policy, &next, &Event::OperatorCancel);
    let (next, _) = step(&policy, &next, &Event::Answer(Answer::Cancelled { round: state.round() }));
    assert_eq!(next.phase, Phase::Stopped);
}

#[test]
fn the_group_is_given_up_to_who_holds_it_all_and_once_named_to_nobody_else() {
    let saved = Saved { lsn: Lsn(64), digest: 7 };
    let tail = |state: &State, heir: &str| Event::TailDurable {
        round: state.round(),
        heir: NodeName(heir.into()),
        saved,
    };
    let heir = |state: &State| match &state.durable.standing {
        Standing::GivenUp { heir, saved, .. } => Some((heir.0.clone(), saved.is_some())),
        _ => None,
    };
    let (mut policy, saving) = (table::policy(), table::state(Phase::Saving));
    let (next, _) = step(&policy, &saving, &tail(&saving, "elsewhere"));
    assert_eq!(heir(&next), Some(("elsewhere".into(), true)), "not the one that was preferred");

    policy.trigger = Trigger::SaveStarted;
    let freezing = table::state(Phase::Freezing);
    let (next, _) = step(&policy, &freezing, &Event::FreezeDone { round: freezing.round() });
    assert_eq!(heir(&next), Some(("there".into(), false)));
    let (same, actions) = step(&policy, &next, &tail(&next, "elsewhere"));
    assert!(same == next && actions.is_empty(), "{actions:?}");
    let (next, _) = step(&policy, &next, &tail(&next, "there"));
    assert_eq!(heir(&next), Some(("there".into(), true)));
}

#[test]
fn power_lost_before_the_application_runs_counts_when_it_does() {
    for phase in [Phase::Starting, Phase::Stopped] {
        let (next, _) = step(&table::policy(), &table::state(phase), &Event::ApplicationStarted);
        assert_eq!(next.phase, Phase::Running, "{phase}");
    }
    for phase in [Phase::Returned, Phase::Placing, Phase::Stopped] {
        let (state, _) = step(&table::policy(), &table::state(phase), &Event::PowerLost);
        let started = match phase {
            Phase::Returned => run(state, &[Event::Answer(Answer::Follows { life: 9 })]),
            Phase::Placing => run(state, &[Event::FilesPlaced]),
            _ => state,
        };
        let (next, actions) = step(&table::policy(), &started, &Event::ApplicationStarted);
        assert_eq!(next.phase, Phase::Freezing, "{phase}");
        assert!(actions.contains(&Action::Report(Note::GaspBegan(Cause::Power))), "{phase}: {actions:?}");
    }
}

/// Two nodes on one mains would hand it to each other until the batteries end.
#[test]
fn a_group_taken_over_on_battery_stays_until_power_comes_and_goes() {
    let verifying = run(table::state(Phase::Verifying), &[Event::PowerLost]);
    let round = verifying.round();
    let (placing, actions) =
        step(&table::policy(), &verifying, &Event::ImageVerified { round: Round { attempt: 3, ..round } });
    assert!(actions.contains(&Action::Alarm(Alarm::TakenOverOnBattery)), "{actions:?}");
    let running = run(placing, &[Event::FilesPlaced, Event::ApplicationStarted]);
    assert_eq!(running.phase, Phase::Running);
    // Nor does a program that ends and is started again go.
    let again = run(running, &[Event::ApplicationExited, Event::ApplicationStarted]);
    assert_eq!(again.phase, Phase::Running);
    assert_eq!(run(again, &[Event::PowerBack, Event::PowerLost]).phase, Phase::Freezing);
}

#[test]
fn a_program_that_starts_while_the_tail_is_shipped_and_ends_leaves_nothing_still() {
    let frozen_again = run(table::state(Phase::Saving), &[Event::ApplicationStarted]);
    assert_eq!(frozen_again.phase, Phase::Freezing);
    let (next, actions) = step(&table::policy(), &frozen_again, &Event::ApplicationExited);
    assert_eq!(next.phase, Phase::Stopped);
    assert!(actions.contains(&Action::CallOffTail), "{actions:?}");
}

fn run(state: State, events: &[Event]) -> State {
    events.iter().fold(state, |state, event| step(&table::policy(), &state, event).0)
}

/// `PMEMHA_UPDATE_DOCS=1` rewrites the tables.
#[test]
fn the_tables_of_the_documentation_are_the_machine_s() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/failover.md");
    let written = std::fs::read_to_string(path).unwrap();
    let mut made = written.clone();
    for (role, table) in table::tables() {
        let (begin, end) = (format!("<!-- table: {role} -->\n"), format!("<!-- end: {role} -->"));
        let (before, rest) = made.split_once(&begin).unwrap_or_else(|| panic!("no {begin:?} in {path}"));
        let (_, after) = rest.split_once(&end).unwrap_or_else(|| panic!("no {end:?} in {path}"));
        made = format!("{before}{begin}\n{table}\n{end}{after}");
    }
    if std::env::var_os("PMEMHA_UPDATE_DOCS").is_some() {
        std::fs::write(path, &made).unwrap();
    } else {
        assert!(
            made == written,
            "docs/failover.md has drifted from the machine: PMEMHA_UPDATE_DOCS=1 rewrites it"
        );
    }
}
