//! A destination that comes back: it is brought what differs, from what it has.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use pmemha_testkit::chance::Chance;
use pmemha_testkit::image::Copy;
use pmemha_testkit::load::Load;
use pmemha_testkit::node::{Binaries, Node, Pair, PairOptions, Trio};
use serde_json::Value;

const BINARIES: Binaries =
    Binaries { agent: env!("CARGO_BIN_EXE_pmemhad"), cli: env!("CARGO_BIN_EXE_pmemha") };

const PAGE: u64 = 4096;

/// Bytes of the file, many times what the ring holds: `PMEMHA_RESYNC_MIB`, 64 if unset.
fn bytes() -> u64 {
    std::env::var("PMEMHA_RESYNC_MIB").map_or(64, |n| n.parse().expect("a number")) << 20
}

/// Writes to pages of a file: path, seed, pages of the file, how many to write, microseconds between two. With a pause each is
/// durable before the next.
const WRITER: &str = "
import os, random, sys, time
path, seed, pages, count, pause_us = sys.argv[1], *map(int, sys.argv[2:])
chance = random.Random(seed)
file = os.open(path, os.O_RDWR | os.O_CREAT | (os.O_DSYNC if pause_us else 0))
for page in sorted(chance.sample(range(pages), count)):
    os.pwrite(file, chance.randbytes(4096), page * 4096)
    time.sleep(pause_us / 1e6)
os.fsync(file)
";

fn write(node: &Node, seed: u64, count: u64) {
    write_paced(node, seed, count, 0);
}

fn write_paced(node: &Node, seed: u64, count: u64, pause_us: u64) {
    let path = node.files().join("large");
    let numbers = [seed, bytes() / PAGE, count, pause_us].map(|n| n.to_string());
    let mut program = node.preloaded(Path::new("/usr/bin/python3"));
    program.args(["-c", WRITER]).arg(path).args(numbers).stdin(Stdio::null());
    assert!(program.status().expect("python3 is installed").success());
}

/// Waits until every destination has everything, also what the program did when it was ahead of the log; where the log ends.
fn await_all(node: &Node) -> u64 {
    node.await_group("its destinations to have all", |group| {
        let whole = |row: &Value| {
            let streaming = row["sync"].is_null() && row["state"] == "streaming";
            streaming && row["lsn_applied"] == row["lsn_published"]
        };
        let rows = group["destinations"].as_array().expect("rows");
        (group["log"]["ahead"] == false && rows.iter().all(whole)).then(|| published(group))
    })
}

fn published(group: &Value) -> u64 {
    group["destinations"][0]["lsn_published"].as_u64().expect("a number")
}

fn published_now(node: &Node) -> u64 {
    published(&node.status().expect("it answers")["groups"][0])
}

/// The copy at `destination`, whose agent is ended, is what `source` has.
fn assert_same(source: &Node, destination: &mut Node) {
    destination.kill();
    let mut copy = Copy::of(destination, &[&source.files()]);
    let files = copy.promote().expect("a complete image");
    let [ours, theirs] = [source.files(), files.pool.parent().expect("a directory").to_owned()]
        .map(|dir| std::fs::read(dir.join("large")).expect("the file"));
    let differs = |number: &usize| ours.chunks(4096).nth(*number) != theirs.chunks(4096).nth(*number);
    let wrong: Vec<_> = (0..ours.len().max(theirs.len()) / 4096).filter(differs).collect();
    assert!(wrong.is_empty(), "pages {wrong:?} of {} and {} bytes", ours.len(), theirs.len());
}

/// What the stream brings to a destination that has been away while pages were changed; and then it has all.
fn moved(pair: &mut Pair, seed: u64, changed: u64) -> u64 {
    pair.beta.kill();
    let before = published_now(&pair.alpha);
    write(&pair.alpha, seed, changed);
    pair.beta.start();
    await_all(&pair.alpha) - before
}

#[test]
fn one_that_was_away_for_more_than_the_ring_holds_is_brought_what_changed() {
    let options = PairOptions { group: "log_size = \"256KiB\"\n".into(), ..PairOptions::default() };
    let mut pair = Pair::start(BINARIES, &options);
    let mut chance = Chance::from_env("PMEMHA_RESYNC_SEED");
    write(&pair.alpha, chance.number(), bytes() / PAGE);
    await_all(&pair.alpha);
    // One page in a hundred.
    let changed = bytes() / PAGE / 100;
    let moved = moved(&mut pair, chance.number(), changed);
    println!("{changed} pages changed, {} KiB; the stream brought {} KiB", changed * 4, moved / 1024);
    assert!(moved <= changed * PAGE * 12 / 10, "{moved} bytes for {}", changed * PAGE);
    assert_same(&pair.alpha, &mut pair.beta);
}

#[test]
fn one_of_two_that_was_away_is_brought_what_changed_while_the_other_counts() {
    let mut trio = Trio::start(BINARIES, "log_size = \"1MiB\"\n");
    let mut chance = Chance::from_env("PMEMHA_RESYNC_SEED");
    write(&trio.alpha, chance.number(), bytes() / PAGE);
    let before = await_all(&trio.alpha);
    trio.gamma.kill();
    // Several times what the ring keeps for one that is away, at a pace at which beta keeps up.
    let changed = 1000;
    write_paced(&trio.alpha, chance.number(), changed, 2000);
    trio.alpha.await_streaming_to(0);
    trio.gamma.start();
    let moved = await_all(&trio.alpha) - before;
    // Beta has been brought them once, and passes over what gamma is brought.
    println!("{changed} pages changed; the stream brought {} KiB", moved / 1024);
    assert!(moved <= 2 * changed * PAGE * 12 / 10, "{moved} bytes for {}", changed * PAGE);
    assert_same(&trio.alpha, &mut trio.beta);
    assert_same(&trio.alpha, &mut trio.gamma);
}

/// `PMEMHA_RESYNC_CUTS` says how often.
#[test]
fn whenever_the_destination_is_killed_in_a_resync_it_has_an_image() {
    let options = PairOptions {
        group: "log_size = \"256KiB\"\ncommit = \"durable\"\n".into(),
        ..PairOptions::default()
    };
    let mut pair = Pair::start(BINARIES, &options);
    let mut chance = Chance::from_env("PMEMHA_RESYNC_SEED");
    write(&pair.alpha, chance.number(), bytes() / PAGE);
    let load = Load::paced(&pair.alpha, "tx", 200);
    load.files.await_progress("at first", 50);
    let cuts: u32 = std::env::var("PMEMHA_RESYNC_CUTS").map_or(10, |n| n.parse().expect("a number"));
    let mut syncing = 0;
    for _ in 0..cuts {
        await_all(&pair.alpha);
        let done = load.files.done();
        pair.beta.kill();
        write(&pair.alpha, chance.number(), 2000);
        pair.beta.start();
        pair.alpha.await_group("the link", |g| (g["destinations"][0]["fabric"].is_string()).then_some(()));
        std::thread::sleep(Duration::from_millis(chance.below(400)));
        let row = pair.alpha.status().expect("it answers")["groups"][0]["destinations"][0].take();
        syncing += u32::from(row["state"] == "syncing");
        pair.beta.kill();
        let mut copy = Copy::of(&pair.beta, &[&pair.alpha.files()]);
        let files = copy.promote().expect("a complete image");
        let found = files.check("tx").expect("the program's invariants");
        assert!(found >= done, "{done} done when all was there, {found} found");
        pair.beta.start();
    }
    println!("{cuts} cuts, {syncing} of them in a resync");
    assert!(syncing > 0, "no cut fell into a resync");
    await_all(&pair.alpha);
    drop(load);
    await_all(&pair.alpha);
    assert_same(&pair.alpha, &mut pair.beta);
}

#[test]
fn a_copy_that_began_before_anyone_was_there_is_not_made_twice() {
    let options = PairOptions { group: "log_size = \"256KiB\"\n".into(), ..PairOptions::default() };
    let mut pair = Pair::start(BINARIES, &options);
    let before = await_all(&pair.alpha);
    pair.beta.kill();
    std::fs::remove_dir_all(pair.beta.replica()).expect("its image");
    let content: Vec<u8> = (0..bytes()).map(|i| (i / PAGE % 255 + 1) as u8).collect();
    std::fs::write(pair.alpha.files().join("large"), content).expect("an own directory");
    pair.alpha.await_group("a copy that waits for a reader", |group| {
        (group["log"]["used_bytes"].as_u64().is_some_and(|used| used > 64 << 10)).then_some(())
    });
    pair.beta.start();
    let moved = await_all(&pair.alpha) - before;
    println!("the stream brought {} KiB", moved / 1024);
    assert!(moved <= bytes() * 12 / 10, "{moved} bytes for {}", bytes());
    assert_same(&pair.alpha, &mut pair.beta);
}

#[test]
fn a_gap_is_closed_at_both_with_what_changed() {
    let trio = Trio::start(BINARIES, "log_size = \"1MiB\"\n");
    let mut chance = Chance::from_env("PMEMHA_RESYNC_SEED");
    write(&trio.alpha, chance.number(), bytes() / PAGE);
    let before = await_all(&trio.alpha);
    let times_ahead = || {
        trio.alpha.status().expect("it answers")["groups"][0]["log"]["times_ahead"]
            .as_u64()
            .expect("a number")
    };
    let ahead_before = times_ahead();
    // Faster than any of them takes it.
    let changed = 4000;
    write(&trio.alpha, chance.number(), changed);
    let moved = await_all(&trio.alpha) - before;
    assert!(times_ahead() > ahead_before, "the log did not overflow: nothing was to be closed");
    println!("{changed} pages changed; the stream brought {} KiB", moved / 1024);
    // What is stored while the copy runs is in it and recorded, too.
    assert!(moved <= 2 * changed * PAGE * 12 / 10, "{moved} bytes for {}", changed * PAGE);
    let Trio { alpha, mut beta, mut gamma } = trio;
    assert_same(&alpha, &mut beta);
    assert_same(&alpha, &mut gamma);
}

#[test]
fn a_copy_keeps_to_the_limit_of_its_operator_and_says_how_long_it_takes() {
    let options = PairOptions {
        group: "log_size = \"1MiB\"\nsync_rate = \"32MiB/s\"\n".into(),
        ..PairOptions::default()
    };
    let mut pair = Pair::start(BINARIES, &options);
    await_all(&pair.alpha);
    pair.beta.kill();
    std::fs::remove_dir_all(pair.beta.replica()).expect("its image");
    let content: Vec<u8> = (0..bytes()).map(|i| (i / PAGE % 255 + 1) as u8).collect();
    std::fs::write(pair.alpha.files().join("large"), content).expect("an own directory");
    let began = Instant::now();
    pair.beta.start();
    let (rate, eta) = pair.alpha.await_group("progress", |group| {
        let sync = &group["destinations"][0]["sync"];
        Some((sync["bytes_per_s"].as_u64()?, sync["eta_s"].as_u64()?))
    });
    assert!(rate <= 40 << 20 && eta <= bytes() / rate + 1, "{rate} bytes a second, {eta} s left");
    await_all(&pair.alpha);
    // All but what may be outstanding.
    let least = Duration::from_secs_f64(0.95 * bytes() as f64 / (32 << 20) as f64);
    assert!(began.elapsed() >= least, "{:?} instead of {least:?}", began.elapsed());
    assert_same(&pair.alpha, &mut pair.beta);
}
