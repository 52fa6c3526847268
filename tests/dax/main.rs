//! A libpmemobj pool on a DAX device outlives its machine: the device has no file system below it, and is read by mapping alone.
//!
//! For a machine with a DAX device that nobody uses: one of the Soft-RoCE rig.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use pmemha_rig::skipped;
use pmemha_testkit::load::Files;
use pmemha_testkit::node::{Binaries, Node, Pair, PairOptions};
use pmemha_testkit::{programs, wait};

const BINARIES: Binaries =
    Binaries { agent: env!("CARGO_BIN_EXE_pmemhad"), cli: env!("CARGO_BIN_EXE_pmemha") };

/// For the program's first transactions on an emulated processor.
const SOON: Duration = Duration::from_secs(60);

/// More operations than the test lets the program do.
const ENDLESS: &str = "1000000000";

#[test]
fn a_pool_on_a_dax_device_is_copied_and_followed_and_taken_over() {
    if skipped("it writes to a DAX device") {
        return;
    }
    let device = fs::canonicalize(pmemha_rig::DEVDAX).expect("a machine of the rig has a DAX device");
    let mut pair = Pair::prepare(BINARIES, &PairOptions::default());
    substitute(&pair.alpha, "protect = [", &format!("protect = [\"{}\", ", device.display()));
    let pool = pair.beta.files().join("pool");
    substitute(
        &pair.beta,
        "paths = {",
        &format!("paths = {{ \"{}\" = \"{}\",", device.display(), pool.display()),
    );

    // Without a destination the device gets content that the log no longer holds.
    pair.alpha.start();
    let here = Files { pool: device, ..Files::of(&pair.alpha.files()) };
    let mut program = pair
        .alpha
        .preloaded(programs::workload())
        .args(["run", "tx"])
        .args([&here.pool, &here.acks])
        .arg(ENDLESS)
        // As large as the device.
        .env("WORKLOAD_POOL_MIB", "0")
        // An emulated processor outruns an emulated network, which no real one does.
        .env("WORKLOAD_PAUSE_US", "2000")
        .stdout(Stdio::null())
        .spawn()
        .expect("the workload starts");
    await_done(&here, 300);
    pair.beta.start();
    let row = pair.alpha.await_streaming();
    let region = &pair.alpha.status().expect("the agent answers")["groups"][0]["regions"];
    let len = region.as_array().expect("regions").iter().find(|r| r["path"] == *here.pool.to_string_lossy());
    let device = len.expect("the device is a region");
    assert!(device["len"].as_u64() > Some(64 << 20), "{region:#}, {row:#}");
    assert_eq!(device["memory"], "devdax", "{device:#}");
    await_done(&here, here.done() + 100);

    pair.alpha.set_power(false);
    pair.beta.await_group("the heir to take over", |g| {
        let placed = ["starting", "running", "stopped"].iter().any(|s| g["state"] == **s);
        (g["role"] == "source" && placed).then_some(())
    });
    let done = here.done();
    program.kill().expect("our own child");
    program.wait().expect("our own child");
    let there = Files::of(&pair.beta.files());
    let found = there.check("tx").expect("the program's invariants");
    assert!(found >= done, "{done} were done, {found} found");
}

fn await_done(files: &Files, wanted: u64) {
    wait::until(&format!("{wanted} operations"), SOON, || (files.done() >= wanted).then_some(()));
}

fn substitute(node: &Node, what: &str, by: &str) {
    let text = fs::read_to_string(node.config()).expect("configured");
    assert!(text.contains(what), "{text}");
    fs::write(node.config(), text.replacen(what, by, 1)).expect("own directory");
}
