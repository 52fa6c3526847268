//! The tables of `docs/failover.md`, made by asking the machine.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use pmemha::failover::{
    Action, Alarm, Answer, BootId, Cause, Durable, Event, Life, Mains, Mandate, NodeName, Note, OnDeath,
    Patience, Phase, Policy, Request, Round, Saved, Stage, Standing, State, Trigger, step,
};
use pmemha::types::{Generation, Lsn};

const GENERATION: Generation = Generation(5);
const ROUND: Round = Round { generation: GENERATION, attempt: 3 };
const SAVED: Saved = Saved { lsn: Lsn(64), digest: 7 };
const LIFE: u64 = 9;

pub fn policy() -> Policy {
    Policy {
        node: NodeName("here".into()),
        heirs: vec![NodeName("there".into())],
        on_death: OnDeath::Failover,
        trigger: Trigger::Saved,
        has_command: true,
        start_limit: 3,
        patience: Patience::default(),
        boot: BootId([1; 16]),
    }
}

/// Every phase with the standing, application and power that it usually has.
fn states() -> Vec<(Phase, State)> {
    let owner = Standing::Owner { attempt: 2, stage: Stage::Begun };
    let heir = NodeName("there".into());
    let given_up =
        Standing::GivenUp { attempt: 3, heir, cause: Cause::Power, saved: Some(SAVED), withdrawn: false };
    let standby = Standing::Standby { cancelled: None };
    let triggered = |mandate| Standing::Triggered { round: ROUND, mandate, cancelled: None };
    let by_saved = triggered(Mandate::Saved(SAVED));
    use Life::{Frozen, Gone, Running};
    let rows = [
        (Phase::Returned, &owner, Gone, Mains::Online),
        (Phase::Placing, &owner, Gone, Mains::Online),
        (Phase::Starting, &owner, Running, Mains::Online),
        (Phase::Running, &owner, Running, Mains::Online),
        (Phase::Stopped, &owner, Gone, Mains::Online),
        (Phase::Freezing, &owner, Running, Mains::Lost),
        (Phase::Saving, &owner, Frozen, Mains::Lost),
        (Phase::HandingOver, &given_up, Frozen, Mains::Lost),
        (Phase::HandedOver, &given_up, Frozen, Mains::Lost),
        (Phase::Refreezing, &given_up, Running, Mains::Online),
        (Phase::Cancelling, &given_up, Frozen, Mains::Online),
        (Phase::Standby, &standby, Gone, Mains::Online),
        (Phase::SaveStarted, &standby, Gone, Mains::Online),
        (Phase::AwaitingSaved, &triggered(Mandate::SaveStarted), Gone, Mains::Online),
        (Phase::Revoking, &by_saved, Gone, Mains::Online),
        (Phase::Verifying, &by_saved, Gone, Mains::Online),
        (Phase::Unable, &by_saved, Gone, Mains::Online),
        (Phase::Doubtful, &by_saved, Gone, Mains::Online),
        (Phase::Demoted, &Standing::Demoted { cancelled: None }, Gone, Mains::Online),
    ];
    let state = |(phase, standing, application, mains): (Phase, &Standing, _, _)| {
        let durable =
            Durable { version: 1, boot: BootId([1; 16]), generation: GENERATION, standing: standing.clone() };
        let gasp =
            matches!(standing, Standing::GivenUp { .. }) || matches!(phase, Phase::Freezing | Phase::Saving);
        let state = State {
            durable,
            phase,
            application,
            mains,
            holds_out: false,
            cause: Cause::Power,
            attempt: if gasp { 3 } else { 2 },
            log_lost: false,
            life: LIFE,
            start_ordered: phase == Phase::Starting,
            failed_starts: 0,
            passed_over: BTreeSet::new(),
        };
        (phase, state)
    };
    rows.into_iter().map(state).collect()
}

/// The state of `phase` in the table.
pub fn state(phase: Phase) -> State {
    states().into_iter().find(|row| row.0 == phase).expect("every phase has a row").1
}

fn events() -> Vec<(&'static str, Event)> {
    let heir = NodeName("here".into());
    let older = Round { generation: Generation(4), attempt: 3 };
    let ask = |generation| Event::Request(Request::Ask { generation, life: 1 });
    vec![
        ("application started", Event::ApplicationStarted),
        ("application failed to start", Event::ApplicationFailedToStart),
        ("application died", Event::ApplicationDied),
        ("application exited cleanly", Event::ApplicationExited),
        ("power lost", Event::PowerLost),
        ("power back", Event::PowerBack),
        ("operator: last gasp", Event::OperatorLastGasp),
        ("operator: cancel", Event::OperatorCancel),
        ("operator: promote", Event::OperatorPromote { force: false }),
        ("operator: promote --force", Event::OperatorPromote { force: true }),
        ("arbiter granted", Event::ArbiterGranted { generation: GENERATION }),
        ("frozen", Event::FreezeDone { round: ROUND }),
        ("freeze failed", Event::FreezeFailed { round: ROUND }),
        (
            "tail durable at the heir",
            Event::TailDurable { round: ROUND, heir: NodeName("there".into()), saved: SAVED },
        ),
        ("access revoked", Event::Revoked { round: ROUND }),
        ("revocation failed", Event::RevokeFailed { round: ROUND }),
        ("image verified", Event::ImageVerified { round: ROUND }),
        ("image failed", Event::ImageFailed { round: ROUND }),
        ("files placed", Event::FilesPlaced),
        ("placing failed", Event::PlacingFailed),
        ("synced", Event::Synced { generation: GENERATION }),
        (
            "asked: save-started",
            Event::Request(Request::SaveStarted { round: ROUND, heir: heir.clone(), trigger: false }),
        ),
        (
            "asked: save-started, the trigger",
            Event::Request(Request::SaveStarted { round: ROUND, heir: heir.clone(), trigger: true }),
        ),
        ("asked: saved", Event::Request(Request::Saved { round: ROUND, heir: heir.clone(), saved: SAVED })),
        (
            "asked: saved of an older generation",
            Event::Request(Request::Saved { round: older, heir, saved: SAVED }),
        ),
        ("asked: cancel", Event::Request(Request::Cancel { round: ROUND })),
        ("asked: confirm", Event::Request(Request::Confirm { round: ROUND, life: LIFE })),
        ("asked: ask", ask(GENERATION)),
        ("asked: ask of a newer generation", ask(Generation(6))),
        ("answer: accepted", Event::Answer(Answer::Accepted { round: ROUND })),
        ("answer: cancelled", Event::Answer(Answer::Cancelled { round: ROUND })),
        ("answer: unable", Event::Answer(Answer::Unable { round: ROUND })),
        ("answer: doubt", Event::Answer(Answer::Doubt { round: ROUND, life: LIFE })),
        ("answer: follows", Event::Answer(Answer::Follows { life: LIFE })),
        ("answer: fenced", Event::Answer(Answer::Fenced { generation: Generation(6), owned: true })),
        ("timeout", Event::Timeout),
    ]
}

/// One table a role: phase, event, next phase, actions; rows where nothing changes are left out. A row follows where it
/// matters that power is lost.
pub fn tables() -> BTreeMap<&'static str, String> {
    let mut tables = BTreeMap::new();
    for (phase, state) in states() {
        let table = tables
            .entry(if state.is_source() { "source" } else { "destination" })
            .or_insert_with(|| "| in | on | becomes | does |\n| --- | --- | --- | --- |\n".to_string());
        let without = State { mains: Mains::Lost, ..state.clone() };
        for (name, event) in events() {
            let row = outcome(&state, &event);
            if let Some(row) = &row {
                _ = writeln!(table, "| {} | {name} | {row} |", word(&format!("{phase:?}")));
            }
            if let Some(other) = outcome(&without, &event).filter(|other| Some(other) != row.as_ref()) {
                _ = writeln!(table, "| {}, power lost | {name} | {other} |", word(&format!("{phase:?}")));
            }
        }
    }
    tables
}

/// What becomes of `state` and what is done; none if nothing changes.
fn outcome(state: &State, event: &Event) -> Option<String> {
    let (next, actions) = step(&policy(), state, event);
    if actions.is_empty() && next.phase == state.phase {
        return None;
    }
    let becomes = if next.phase == state.phase { "·".into() } else { word(&format!("{:?}", next.phase)) };
    let does: Vec<String> = actions.iter().map(describe).collect();
    Some(format!("{becomes} | {}", does.join(", ")))
}

fn describe(action: &Action) -> String {
    match action {
        Action::Persist(d) => {
            let standing = match &d.standing {
                Standing::Owner { .. } => "owner",
                Standing::GivenUp { .. } => "given up",
                Standing::Standby { .. } => "standby",
                Standing::Triggered { .. } => "triggered",
                Standing::Demoted { .. } => "demoted",
            };
            format!("**store** {standing} {}", d.generation)
        }
        Action::Send(request) => format!("ask `{}`", tag(serde_json::to_value(request))),
        Action::Reply(answer) => format!("answer `{}`", tag(serde_json::to_value(answer))),
        Action::Report(note) => format!("report {}", note_word(note)),
        Action::Alarm(alarm) => format!("alarm {}", alarm_word(alarm)),
        other => {
            let text = format!("{other:?}");
            word(text.split(['(', ' ', '{']).next().unwrap_or_default())
        }
    }
}

fn tag(value: serde_json::Result<serde_json::Value>) -> String {
    value.unwrap()["type"].as_str().unwrap().to_string()
}

fn note_word(note: &Note) -> String {
    word(format!("{note:?}").split('(').next().unwrap_or_default())
}

fn alarm_word(alarm: &Alarm) -> String {
    word(&format!("{alarm:?}"))
}

/// `HandedOver` -> `handed over`.
fn word(camel: &str) -> String {
    let mut out = String::new();
    for (i, c) in camel.chars().enumerate() {
        if c.is_uppercase() && i > 0 {
            out.push(' ');
        }
        out.extend(c.to_lowercase());
    }
    out
}
