//! One group, two destinations: each in its own state, the trouble of one no trouble of the other.

use std::time::Duration;

use pmemha_testkit::load::{Files, Load};
use pmemha_testkit::node::{Binaries, Node, Trio};
use pmemha_testkit::wait;
use serde_json::Value;

const BINARIES: Binaries =
    Binaries { agent: env!("CARGO_BIN_EXE_pmemhad"), cli: env!("CARGO_BIN_EXE_pmemha") };

/// For whatever a busy machine may delay.
const SOON: Duration = Duration::from_secs(30);

const BETA: usize = 0;
const GAMMA: usize = 1;

fn row(source: &Node, which: usize) -> Value {
    source.status().expect("the agent answers")["groups"][0]["destinations"][which].take()
}

/// Waits until both destinations of `source` count, with everything applied that was published until now.
fn await_both(source: &Node) {
    for which in [BETA, GAMMA] {
        source.await_streaming_to(which);
    }
}

/// Waits until `heir` owns the group and has placed its files.
fn await_owner(heir: &Node) {
    heir.await_group("it takes over", |g| {
        let placed = ["starting", "running", "stopped"].iter().any(|s| g["state"] == **s);
        (g["role"] == "source" && placed).then_some(())
    });
}

/// The files at `node` keep the program's invariants and hold what was done.
fn check(node: &Node, done: u64) {
    let found = Files::of(&node.files()).check("tx").expect("the program's invariants");
    assert!(found >= done, "{done} were done, {found} found at {}", node.name);
}

#[test]
fn a_newcomer_is_copied_to_while_the_other_counts_all_along() {
    let mut trio = Trio::prepare(BINARIES, "log_size = \"1MiB\"\ncommit = \"durable\"");
    // Several times what the ring holds.
    std::fs::write(trio.alpha.files().join("ballast"), vec![7; 4 << 20]).expect("own directory");
    trio.beta.start();
    trio.alpha.start();
    let program = Load::paced(&trio.alpha, "tx", 200);
    program.files.await_progress("meanwhile", 100);
    trio.alpha.await_streaming_to(BETA);
    let before = row(&trio.alpha, BETA);
    trio.gamma.start();
    wait::until("gamma to count", SOON, || {
        let [beta, gamma] = [BETA, GAMMA].map(|which| row(&trio.alpha, which));
        assert_eq!(beta["state"], "streaming", "{beta:#}");
        assert_eq!(beta["sync"], Value::Null, "{beta:#}");
        (gamma["state"] == "streaming").then_some(())
    });
    program.files.await_progress("meanwhile", 100);
    let image = |node: &Node| node.status().expect("it answers")["groups"][0]["destinations"][0].take();
    wait::until("both to have what was published before", SOON, || {
        let both = [&trio.beta, &trio.gamma].map(|node| image(node)["lsn_applied"].as_u64());
        (both.iter().all(|lsn| *lsn > before["lsn_published"].as_u64())).then_some(())
    });
}

#[test]
fn what_all_must_have_waits_for_each_and_what_any_must_have_for_one() {
    for (over, waits) in [("all", true), ("any", false)] {
        let group = format!("commit = \"durable\"\ncommit_timeout = \"200ms\"\ncommit_over = \"{over}\"");
        let mut trio = Trio::start(BINARIES, &group);
        let program = Load::paced(&trio.alpha, "tx", 200);
        program.files.await_progress("meanwhile", 50);
        await_both(&trio.alpha);
        let given_up = || {
            let group = &trio.alpha.status().expect("it answers")["groups"][0];
            group["log"]["commits_given_up"].as_u64().expect("a number")
        };
        // Commits that were given up before both counted are past.
        wait::until("commits that are kept", SOON, || {
            let before = given_up();
            program.files.await_progress("meanwhile", 20);
            (given_up() == before).then_some(())
        });
        let before = given_up();
        trio.gamma.kill();
        program.files.await_progress("meanwhile", 200);
        assert_eq!(given_up() > before, waits, "over {over}: {before}, then {}", given_up());
        drop(program);
    }
}

#[test]
fn the_first_destination_takes_over_and_the_other_two_follow_it() {
    let mut trio = Trio::start(BINARIES, "commit = \"durable\"");
    let program = Load::paced(&trio.alpha, "tx", 200);
    program.files.await_progress("meanwhile", 100);
    await_both(&trio.alpha);
    trio.alpha.set_power(false);
    await_owner(&trio.beta);
    let done = program.files.done();
    drop(program);
    check(&trio.beta, done);
    trio.alpha.kill();
    trio.alpha.set_power(true);
    trio.alpha.start();
    await_both(&trio.beta);
    let owner = trio.beta.status().expect("it answers")["groups"][0]["generation"].take();
    for node in [&trio.alpha, &trio.gamma] {
        node.await_group("it follows", |g| {
            (g["state"] == "standby" && g["generation"] == owner).then_some(())
        });
    }
}

#[test]
fn where_the_first_is_away_the_second_takes_over() {
    let mut trio = Trio::start(BINARIES, "commit = \"durable\"");
    let program = Load::paced(&trio.alpha, "tx", 200);
    program.files.await_progress("meanwhile", 100);
    await_both(&trio.alpha);
    trio.beta.kill();
    program.files.await_progress("meanwhile", 50);
    trio.alpha.set_power(false);
    await_owner(&trio.gamma);
    let done = program.files.done();
    drop(program);
    check(&trio.gamma, done);
    // Whoever comes back finds that another node runs the program.
    trio.beta.start();
    trio.gamma.await_streaming_to(1);
}

#[test]
fn one_that_stands_still_costs_the_other_nothing_and_begins_anew() {
    let trio = Trio::start(BINARIES, "log_size = \"1MiB\"\ncommit = \"received\"");
    let program = Load::paced(&trio.alpha, "tx", 0);
    program.files.await_progress("meanwhile", 100);
    await_both(&trio.alpha);
    let log = || trio.alpha.status().expect("it answers")["groups"][0]["log"].take();
    let (published, ahead) =
        (|| row(&trio.alpha, BETA)["lsn_published"].as_u64().unwrap(), log()["times_ahead"].clone());
    let before = published();
    trio.gamma.stand_still();
    wait::until("several rings of records", 4 * SOON, || {
        let beta = row(&trio.alpha, BETA);
        assert_eq!(beta["state"], "streaming", "{beta:#}");
        (published() > before + (8 << 20)).then_some(())
    });
    assert_eq!(log()["times_ahead"], ahead, "the application lost its log");
    trio.gamma.go_on();
    trio.alpha.await_group("gamma to count again", |g| {
        (g["destinations"][GAMMA]["state"] == "streaming").then_some(())
    });
    assert_eq!(row(&trio.alpha, GAMMA)["resumed"], false);
    assert_eq!(log()["times_ahead"], ahead, "the application lost its log");
}

#[test]
fn one_that_was_never_there_holds_up_neither_copy_nor_gap() {
    let mut trio = Trio::prepare(BINARIES, "log_size = \"1MiB\"");
    trio.alpha.start();
    let program = Load::paced(&trio.alpha, "tx", 100);
    // More than the ring holds, before there is anybody who takes it.
    program.files.await_progress("alone", 3000);
    trio.beta.start();
    trio.alpha.await_streaming_to(BETA);
    // And again: the log overflows, and only a copy makes that good.
    let ahead = || trio.alpha.status().expect("it answers")["groups"][0]["log"]["times_ahead"].as_u64();
    let before = ahead();
    trio.beta.stand_still();
    wait::until("the log to overflow", 2 * SOON, || (ahead() > before).then_some(()));
    trio.beta.go_on();
    trio.alpha.await_streaming_to(BETA);
    trio.alpha.set_power(false);
    await_owner(&trio.beta);
    let done = program.files.done();
    drop(program);
    check(&trio.beta, done);
}

/// Has an operator pause or resume a destination of the group; what the command says if it fails.
fn operate(source: &Node, what: &str, node: &str) -> Result<(), String> {
    let said = source.cli().args([what, "app", node]).output().expect("the command starts");
    if said.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&said.stderr).into_owned()) }
}

#[test]
fn one_that_is_paused_keeps_what_it_has_also_under_another_agent_and_is_brought_the_rest() {
    let mut trio = Trio::start(BINARIES, "log_size = \"256KiB\"\ncommit = \"durable\"");
    let program = Load::paced(&trio.alpha, "tx", 200);
    program.files.await_progress("meanwhile", 50);
    await_both(&trio.alpha);
    let refused = operate(&trio.alpha, "pause", "delta").unwrap_err();
    assert!(refused.contains("no destination `delta`") && refused.contains("beta, gamma"), "{refused}");
    operate(&trio.alpha, "pause", "gamma").unwrap();
    operate(&trio.alpha, "pause", "gamma").unwrap();
    assert_eq!(trio.alpha.await_event("destination_paused")["node"], "gamma");
    let paused = || {
        trio.alpha.await_group("gamma to be paused", |g| {
            let row = &g["destinations"][GAMMA];
            (row["state"] == "paused").then(|| row.clone())
        })
    };
    let before = paused()["lsn_durable"].clone();
    // More than the ring holds: the program keeps its log all the same, and beta counts.
    let ahead = |node: &Node| node.status().expect("it answers")["groups"][0]["log"]["times_ahead"].clone();
    let times = ahead(&trio.alpha);
    let published = row(&trio.alpha, BETA)["lsn_published"].as_u64().unwrap();
    wait::until("several rings of records", 2 * SOON, || {
        let beta = row(&trio.alpha, BETA);
        assert_eq!(beta["state"], "streaming", "{beta:#}");
        (beta["lsn_published"].as_u64().unwrap() > published + (1 << 20)).then_some(())
    });
    assert_eq!(ahead(&trio.alpha), times, "the application lost its log");
    assert_eq!(paused()["lsn_durable"], before);
    assert_eq!(trio.gamma.status().expect("it answers")["groups"][0]["destinations"][0]["state"], "waiting");
    trio.alpha.kill();
    trio.alpha.start();
    trio.alpha.await_streaming_to(BETA);
    trio.alpha.await_group("gamma to be paused still", |g| {
        assert_ne!(g["destinations"][GAMMA]["state"], "streaming");
        (g["destinations"][GAMMA]["state"] == "paused").then_some(())
    });
    operate(&trio.alpha, "resume", "gamma").unwrap();
    await_both(&trio.alpha);
    let done = program.files.done();
    trio.beta.kill();
    trio.alpha.set_power(false);
    await_owner(&trio.gamma);
    drop(program);
    check(&trio.gamma, done);
}

#[test]
fn destinations_are_added_and_removed_while_the_program_runs() {
    let mut trio = Trio::prepare(BINARIES, "log_size = \"1MiB\"\ncommit = \"durable\"");
    let ship_to = |node: &Node, names: &str| {
        let text = std::fs::read_to_string(node.config()).expect("configured");
        let line = |line: &str| match line.starts_with("destinations") {
            true => format!("destinations = [{names}]\n"),
            false => format!("{line}\n"),
        };
        std::fs::write(node.config(), text.lines().map(line).collect::<String>()).expect("own directory");
    };
    ship_to(&trio.alpha, "\"beta\"");
    trio.beta.start();
    trio.gamma.start();
    trio.alpha.start();
    let program = Load::paced(&trio.alpha, "tx", 200);
    program.files.await_progress("at first", 100);
    trio.alpha.await_streaming_to(0);
    ship_to(&trio.alpha, "\"beta\", \"gamma\"");
    trio.alpha.kill();
    trio.alpha.start();
    await_both(&trio.alpha);
    assert_eq!(row(&trio.alpha, BETA)["resumed"], true, "it needs no copy");
    program.files.await_progress("with both", 50);
    ship_to(&trio.alpha, "\"gamma\"");
    trio.alpha.kill();
    trio.alpha.start();
    trio.alpha.await_streaming_to(0);
    let group = trio.alpha.status().expect("it answers")["groups"][0].take();
    let rows = group["destinations"].as_array().expect("rows");
    assert!(rows.len() == 1 && rows[0]["node"] == "gamma" && rows[0]["resumed"] == true, "{group:#}");
    program.files.await_progress("with the other one", 50);
    trio.alpha.set_power(false);
    await_owner(&trio.gamma);
    let done = program.files.done();
    drop(program);
    check(&trio.gamma, done);
}
