//! The main job, end to end: an unmodified program under the preload library, two agents, power loss.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use pmemha_testkit::node::{Binaries, Pair, PairOptions};
use pmemha_testkit::{programs, wait};

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
    let files = pair.alpha.files();
    let mut program = pair
        .alpha
        .preloaded(programs::workload())
        .args(["run", mode])
        .args([files.join("pool"), files.join("acks")])
        .arg("1000000")
        .stdout(Stdio::piped())
        .spawn()
        .expect("the workload starts");
    let mut acks = BufReader::new(program.stdout.take().expect("piped")).lines();
    let acked = |line: &str| line.strip_prefix("ack ").and_then(|n| n.parse::<u64>().ok());
    wait::until("3 acknowledgements", SOON, || {
        let line = acks.next().expect("the program runs").expect("a line");
        acked(&line).filter(|n| *n >= 300)
    });

    wait::until("the destination to count", SOON, || {
        (pair.alpha.try_status()?["groups"][0]["destinations"][0]["state"] == "streaming").then_some(())
    });
    pair.alpha.set_power(false);
    let there = pair.beta.files();
    wait::until("the heir to take over", SOON, || {
        // It owns the group before it has placed the files; these states follow after.
        let group = &pair.beta.try_status()?["groups"][0];
        let placed = ["starting", "running", "stopped"].iter().any(|s| group["state"] == **s);
        (group["role"] == "source" && placed && there.join("pool").exists()).then_some(())
    });
    // Whatever the program said before it was frozen was acknowledged.
    program.kill().expect("our own child");
    program.wait().expect("our own child");
    let last = acks.map_while(Result::ok).filter_map(|l| acked(&l)).last().unwrap_or(300);

    let check = Command::new(programs::workload())
        .args(["check", mode])
        .args([there.join("pool"), there.join("acks")])
        .output()
        .expect("the checker runs");
    let said =
        format!("{}{}", String::from_utf8_lossy(&check.stdout), String::from_utf8_lossy(&check.stderr));
    assert!(check.status.success(), "{mode}: {said}");
    let bytes = fs::read(there.join("acks")).expect("placed by the heir");
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
