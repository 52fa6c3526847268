//! The application dies: it is started again where it was, or the heir takes over with everything that it published.

use pmemha::session::wire::Request;
use pmemha_testkit::chance::Chance;
use pmemha_testkit::load::{Files, endless};
use pmemha_testkit::node::{Node, Pair, PairOptions};
use pmemha_testkit::process;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::BINARIES;
use super::rig::{moment, prove};

/// `on_death = "restart"`.
pub fn restarts(mode: &'static str, kills: u64, chance: &mut Chance) {
    let pair = start(mode, "restart");
    let files = Files::of(&pair.alpha.files());
    for _ in 0..kills {
        let pid = pair.alpha.await_group("the program to run", running);
        let claim = moment(&pair.alpha, &files, chance);
        kill(pid);
        pair.beta.stand_still();
        prove(&claim, mode, &pair.beta, &pair);
        pair.beta.go_on();
        pair.alpha.await_group("another program to run", |g| running(g).filter(|now| *now != pid));
        assert_eq!(process::users(&files.pool).len(), 1, "one writer");
        // It checks what it finds before it goes on.
        files.await_progress("after its restart", 10);
        assert!(files.done() >= claim.done);
    }
    println!("application, restarted: {kills} kills");
}

/// `on_death = "failover"`, and back by the operator's order.
pub fn failovers(mode: &'static str, kills: u64, chance: &mut Chance) {
    let pair = start(mode, "failover");
    let (here, there) = (Files::of(&pair.alpha.files()), Files::of(&pair.beta.files()));
    for _ in 0..kills {
        let pid = pair.alpha.await_group("the program to run", running);
        await_standby(&pair.beta);
        let claim = moment(&pair.alpha, &here, chance);
        kill(pid);
        moved(&pair.alpha, &pair.beta, &claim.group);
        // The program is dead, so what its memory shows had been stored when it died.
        assert_taken_over(&there, here.done());
        assert_eq!(process::users(&here.pool).len(), 0, "one writer");
        there.await_progress("at the heir", 10);

        await_standby(&pair.alpha);
        let claim = moment(&pair.beta, &there, chance);
        let answer = pair.beta.ask(&Request::LastGasp { group: Some("app".into()) });
        assert!(matches!(answer, Some(pmemha::session::wire::Reply::Ok {})), "{answer:?}");
        moved(&pair.beta, &pair.alpha, &claim.group);
        assert_taken_over(&here, claim.done);
        here.await_progress("back again", 10);
    }
    println!("application, taken over by the heir: {kills} kills");
}

/// The heir has what its program, which checks what it finds, had acknowledged at the source when its memory said `done`. That
/// number itself may have been stored and not flushed yet.
fn assert_taken_over(files: &Files, done: u64) {
    let found = files.done();
    assert!(found + 1 >= done, "{done} done, {found} taken over");
}

/// Waits until the group of `before` at `from` is owned by `to` in the next generation and the program runs there.
fn moved(from: &Node, to: &Node, before: &Value) {
    let generation = before["generation"].as_u64().expect("a number");
    to.await_group("the heir to run the program", |g| {
        (g["generation"].as_u64() > Some(generation)).then(|| running(g)).flatten()
    });
    let group = &from.status().expect("the agent answers")["groups"][0];
    let over = ["handing_over", "handed_over", "demoted", "standby"].iter().any(|s| group["state"] == **s);
    assert!(over, "one writer: {group:#}");
    from.await_group("the source to step down", |g| {
        (g["role"] == "destination" && g["sessions"].as_array().is_none_or(Vec::is_empty)).then_some(())
    });
}

/// A node that a trigger would find ready.
fn await_standby(node: &Node) {
    node.await_group("a standby", |g| (g["state"] == "standby").then_some(()));
}

/// A pair in which each node runs the program when it owns the group.
fn start(mode: &str, on_death: &str) -> Pair {
    let command = format!("[\"/bin/sh\", \"-c\", \"{}\"]", endless(mode));
    let options = PairOptions {
        group: format!(
            "log_size = \"8MiB\"\ncommit = \"received\"\ncommit_timeout = \"200ms\"\non_death = \"{on_death}\"\ncommand = {command}"
        ),
        replica: format!("start = {command}"),
        both_ways: true,
        ..PairOptions::default()
    };
    Pair::start(BINARIES, &options)
}

/// The process that runs, if one does.
fn running(group: &Value) -> Option<u32> {
    let attached = group["sessions"].as_array()?.iter().find_map(|s| s["pid"].as_u64());
    attached.filter(|_| group["state"] == "running").map(|pid| pid as u32)
}

fn kill(pid: u32) {
    kill_process(Pid::from_raw(pid as i32).expect("a process id"), Signal::KILL).expect("the program runs");
}
