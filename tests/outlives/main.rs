//! The main job, end to end: an unmodified program under the preload library, two agents, power loss.

mod first_sync;
mod large;
mod ownership;

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use pmemha_testkit::node::{self, Binaries, Node, Pair, PairOptions};
use pmemha_testkit::{dirs, process, programs, wait};

const BINARIES: Binaries =
    Binaries { agent: env!("CARGO_BIN_EXE_pmemhad"), cli: env!("CARGO_BIN_EXE_pmemha") };

/// For whatever a busy machine may delay.
const SOON: Duration = Duration::from_secs(30);

/// Runs `mode`, cuts the power in the middle, and checks the files where the heir put them.
fn outlives(mode: &str, commit: &str) {
    let pair = Pair::start(
        BINARIES,
        &PairOptions { group: format!("commit = \"{commit}\""), ..PairOptions::default() },
    );
    let last = work_until_power_fails(mode, ["pool", "acks"], &pair.alpha, &pair.beta);
    check(mode, ["pool", "acks"], &pair.beta, last);
}

/// Runs `mode` at one node until it has acknowledged something, cuts the power there, and waits for the heir to take over.
/// What was acknowledged.
fn work_until_power_fails(mode: &str, [pool, acks]: [&str; 2], at: &Node, heir: &Node) -> u64 {
    let files = at.files();
    let mut program = at
        .preloaded(programs::workload())
        .args(["run", mode])
        .args([files.join(pool), files.join(acks)])
        .arg("1000000")
        .stdout(Stdio::piped())
        .spawn()
        .expect("the workload starts");
    let mut said = BufReader::new(program.stdout.take().expect("piped")).lines();
    let acked = |line: &str| line.strip_prefix("ack ").and_then(|n| n.parse::<u64>().ok());
    wait::until("3 acknowledgements", SOON, || {
        let line = said.next().expect("the program runs").expect("a line");
        acked(&line).filter(|n| *n >= 300)
    });

    let row = wait::until("the destination to count", SOON, || {
        let row = at.try_status()?["groups"][0]["destinations"][0].take();
        (row["state"] == "streaming").then_some(row)
    });
    assert_eq!(row["fabric"], node::fabric(), "{row:#}");
    if dirs::on_dax() {
        assert!(process::of(program.id()).maps_synchronously(&files.join(pool)), "MAP_SYNC is granted");
    }
    at.set_power(false);
    wait::until("the heir to take over", SOON, || {
        // It owns the group before it has placed the files; these states follow after.
        let group = &heir.try_status()?["groups"][0];
        let placed = ["starting", "running", "stopped"].iter().any(|s| group["state"] == **s);
        (group["role"] == "source" && placed && heir.files().join(pool).exists()).then_some(())
    });
    // Whatever the program said before it was frozen was acknowledged.
    program.kill().expect("our own child");
    program.wait().expect("our own child");
    said.map_while(Result::ok).filter_map(|l| acked(&l)).last().unwrap_or(300)
}

/// Checks the files at `node` by the program's own invariants, and that nothing acknowledged is missing.
fn check(mode: &str, [pool, acks]: [&str; 2], node: &Node, last: u64) {
    let there = node.files();
    let check = Command::new(programs::workload())
        .args(["check", mode])
        .args([there.join(pool), there.join(acks)])
        .output()
        .expect("the checker runs");
    let said =
        format!("{}{}", String::from_utf8_lossy(&check.stdout), String::from_utf8_lossy(&check.stderr));
    assert!(check.status.success(), "{mode}: {said}");
    let bytes = fs::read(there.join(acks)).expect("placed by the heir");
    let recovered = u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes"));
    assert!(recovered >= last, "{mode}: acknowledged {last}, recovered {recovered}");
}

#[test]
fn transactions_with_commit_received() {
    outlives("tx", "received");
}

#[test]
fn transactions_without_waiting() {
    outlives("tx", "local");
}

#[test]
fn libpmem_alone() {
    outlives("raw", "durable");
}

#[test]
fn four_threads() {
    outlives("threads", "received");
}

#[test]
fn a_pool_in_several_files() {
    let pair = Pair::start(
        BINARIES,
        &PairOptions { group: "commit = \"received\"".into(), ..PairOptions::default() },
    );
    // Beside the directory of the protected files: each node has a set with the paths that the parts have there.
    let set = "../pool.set";
    let [_, parts] =
        [&pair.alpha, &pair.beta].map(|node| programs::write_poolset(&node.files().join(set), &node.files()));
    let last = work_until_power_fails("tx", [set, "acks"], &pair.alpha, &pair.beta);
    check("tx", [set, "acks"], &pair.beta, last);
    for part in parts {
        let bytes = fs::read(&part).expect("placed by the heir");
        // Behind the header, which each part has.
        assert!(bytes[4096..].iter().any(|b| *b != 0), "there is nothing in {}", part.display());
    }
}

#[test]
fn there_and_back_again() {
    let mut pair = Pair::start(
        BINARIES,
        &PairOptions { group: "commit = \"received\"".into(), both_ways: true, ..PairOptions::default() },
    );
    let first = work_until_power_fails("tx", ["pool", "acks"], &pair.alpha, &pair.beta);
    check("tx", ["pool", "acks"], &pair.beta, first);
    let before = pair.beta.try_status().expect("beta runs")["groups"][0]["generation"].clone();

    pair.alpha.kill();
    // What is left at the old source is of the past, and must not be taken for the present.
    fs::write(pair.alpha.files().join("pool"), "stale").expect("own directory");
    pair.alpha.set_power(true);
    pair.alpha.start();
    wait::until("the old source to follow", SOON, || {
        (pair.alpha.try_status()?["groups"][0]["state"] == "standby").then_some(())
    });
    let second = work_until_power_fails("raw", ["pool2", "acks2"], &pair.beta, &pair.alpha);
    // The first program's files came back although nobody has opened them at the other node.
    check("tx", ["pool", "acks"], &pair.alpha, first);
    check("raw", ["pool2", "acks2"], &pair.alpha, second);
    let after = pair.alpha.try_status().expect("alpha runs")["groups"][0]["generation"].clone();
    assert!(after.as_u64() > before.as_u64(), "{before} and then {after}");
}
