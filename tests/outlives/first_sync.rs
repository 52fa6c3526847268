//! Power is lost while the first copy of the program's memory is still on its way: the gasp completes the copy.
//!
//! `PMEMHA_SOAK_CUTS` cuts are made (4 in `make test`), each at another moment; `PMEMHA_CUT_SEED` makes them again.

use std::time::Duration;

use pmemha_testkit::chance::Chance;
use pmemha_testkit::load::{Files, Load};
use pmemha_testkit::node::{Pair, PairOptions};

use super::BINARIES;

/// Cuts in `make test`.
const CUTS: u64 = 4;

/// The copy of the files below takes about as long.
const COPYING: Duration = Duration::from_millis(250);

#[test]
fn power_lost_in_the_middle_of_the_first_sync_loses_nothing() {
    let mut chance = Chance::from_env("PMEMHA_CUT_SEED");
    let cuts = std::env::var("PMEMHA_SOAK_CUTS").map_or(CUTS, |n| n.parse().expect("a number"));
    let mut in_time = 0;
    for cut in 0..cuts {
        // Four threads: one of them is in the middle of a record at almost any moment.
        let mode = ["threads", "raw"][(cut % 2) as usize];
        in_time += u64::from(cut_in_first_sync(mode, &mut chance));
    }
    println!("{in_time} of {cuts} cuts came before the copy was complete");
    assert!(
        in_time * 2 >= cuts,
        "{in_time} of {cuts} cuts came in time: the copy has become too quick for this test"
    );
}

/// One cut; whether it came before the destination counted.
fn cut_in_first_sync(mode: &str, chance: &mut Chance) -> bool {
    let mut pair = Pair::prepare(
        BINARIES,
        &PairOptions { group: "log_size = \"1MiB\"".into(), ..PairOptions::default() },
    );
    // Without a destination the memory gets content that the log no longer holds.
    pair.alpha.start();
    let mut load = Load::start(&pair.alpha, mode);
    load.files.await_progress("before the destination is there", 2000);
    pair.beta.start();
    pair.alpha.await_group("the copy to begin", |g| {
        let row = &g["destinations"][0];
        (row["state"] == "syncing" && row["sync"].is_object() || row["state"] == "streaming").then_some(())
    });
    chance.pass(COPYING);
    let in_time = pair.alpha.status().expect("the agent answers")["groups"][0]["destinations"][0]["state"]
        != "streaming";
    pair.alpha.set_power(false);
    pair.beta.await_group("the heir to take over", |g| {
        let placed = ["starting", "running", "stopped"].iter().any(|s| g["state"] == **s);
        (g["role"] == "source" && placed).then_some(())
    });
    // Frozen since, so this is what it had done.
    let done = load.files.done();
    load.kill();
    let found = Files::of(&pair.beta.files()).check(mode).unwrap_or_else(|why| panic!("{mode}: {why}"));
    // An operation that has returned was published, and the gasp brings over all that was.
    assert!(found >= done, "{mode}: {done} were done, {found} found");
    in_time
}
