//! S3, crash-consistent asynchronous replication: real agents, an unmodified program under the preload library.

use std::cell::Cell;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pmemha::log::format::{Kind, RECORD_HEADER};
use pmemha::log::{Consumer, LogRegion};
use pmemha::session::client::{Options, Session};
use pmemha_testkit::chance::Chance;
use pmemha_testkit::image::{Copy, Snapshot};
use pmemha_testkit::load::{Files, Load, endless};
use pmemha_testkit::node::{Pair, PairOptions};
use pmemha_testkit::wait;
use serde_json::Value;

use super::s1::{DRAIN, with_battery};
use super::{BINARIES, assert_nothing_lost, await_heir};

/// For whatever a busy machine may delay.
const SOON: Duration = Duration::from_secs(30);

fn start(group: &str, mode: &str) -> (Pair, Load) {
    start_paced(group, mode, 0)
}

/// As [`start`], with a pause after each of the program's operations.
fn start_paced(group: &str, mode: &str, pause_us: u32) -> (Pair, Load) {
    let pair = Pair::start(BINARIES, &PairOptions { group: group.into(), ..PairOptions::default() });
    let load = Load::paced(&pair.alpha, mode, pause_us);
    pair.alpha.await_streaming();
    (pair, load)
}

fn group(node: &pmemha_testkit::node::Node) -> Value {
    node.status().expect("the agent answers")["groups"][0].take()
}

/// S3.1: the application's write goes to the local store and to the local log region before it counts.
///
/// The agent stands still, so that nothing but the program itself can have written to either. Operations are
/// sampled as they return to the program; each one's content is looked up in the store (the file) and in the log's records.
#[test]
fn s3_1_a_write_is_in_the_store_and_in_the_log_before_it_counts() {
    // One that never pauses fills the ring before the agent stands still, where the machine is slow.
    let (pair, load) = start_paced("log_size = \"64MiB\"", "raw", 20);
    let pool = group(&pair.alpha)["regions"].as_array().expect("a list").iter().find_map(|r| {
        let is_pool = r["path"].as_str().is_some_and(|p| p.ends_with("/pool"));
        is_pool.then(|| r["region"].as_u64()).flatten()
    });
    let pool = pool.expect("the pool is protected") as u16;
    let log = log_of(&pair);
    pair.alpha.stand_still();
    let mut walk = Consumer::new(log.clone(), log.published());
    let (mut samples, mut logged) = (0, 0);
    let first = load.files.done();
    while samples < 200 && !log.is_ahead() {
        let counts = load.files.done();
        let stored = head_count(&load.files.pool);
        assert!(stored >= counts, "operation {counts} counts, the store is at {stored}");
        while let Some(batch) = walk.next_batch(1 << 20).expect("a sound log") {
            // The pool's first line carries the number of the last complete operation.
            for header in batch.headers.iter().filter(|h| h.kind == Kind::Data as u8) {
                let (region, offset) = header.place();
                if region.0 == pool && offset == 0 {
                    let at = (header.lsn & (log.spec().ring_bytes - 1)) as usize + RECORD_HEADER as usize;
                    let mut number = [0; 8];
                    log.ring().read(at, &mut number);
                    logged = u64::from_le_bytes(number);
                }
            }
        }
        // What returned before the walk began; without any since the agent stands still, nothing is logged yet.
        if counts > first + 1 {
            assert!(logged >= counts, "operation {counts} counts, the log is at {logged}");
            samples += 1;
        }
    }
    pair.alpha.go_on();
    println!("{samples} operations sampled");
    assert!(samples >= 20, "{samples} samples before the ring was full");
}

/// S3.2: copying to one or more destinations is asynchronous; the application never waits for it.
///
/// A destination and an archive are fed. Then the destination, and then the source's agent as well, stand still: the
/// program goes on for several rings' worth of records, at no less than a tenth of its pace. Afterwards both copies catch up.
#[test]
fn s3_2_the_application_never_waits_for_a_copy() {
    let archive = tempfile::tempdir_in("/dev/shm").expect("memory");
    let keep = format!("log_size = \"1MiB\"\narchive = {{ dir = \"{}\" }}", archive.path().display());
    // One that never pauses outruns the first copy for as long as the machine is busy with other things, and is not held.
    let (pair, load) = start_paced(&keep, "atomic", 50);
    let pace = |what: &str| {
        let (before, began) = (load.files.done(), Instant::now());
        std::thread::sleep(Duration::from_millis(400));
        let rate = (load.files.done() - before) as f64 / began.elapsed().as_secs_f64();
        println!("{what}: {rate:.0} operations a second");
        rate
    };
    let usual = pace("copied");
    pair.beta.stand_still();
    let alone = pace("the destination stands still");
    wait::until("the ring to be full", SOON, || (group(&pair.alpha)["log"]["ahead"] == true).then_some(()));
    pair.alpha.stand_still();
    let orphaned = pace("the agent stands still, too");
    assert!(alone > usual / 10.0 && orphaned > usual / 10.0, "{usual:.0}, {alone:.0}, {orphaned:.0}");
    pair.alpha.go_on();
    pair.beta.go_on();
    load.pause();
    // A program that is stopped in the middle of a record holds up a copy; a moment later it is somewhere else.
    wait::until("both copies to catch up", SOON, || {
        load.go_on();
        std::thread::sleep(Duration::from_millis(1));
        load.pause();
        let group = group(&pair.alpha);
        let end = group["destinations"][0]["lsn_published"].as_u64()?;
        let at = |v: &Value| v.as_u64().is_some_and(|lsn| lsn + (1 << 20) > end);
        let counts = group["destinations"][0]["state"] == "streaming" && group["log"]["ahead"] == false;
        (counts && at(&group["destinations"][0]["lsn_applied"]) && at(&group["archive"]["lsn_durable"]))
            .then_some(())
    });
    load.go_on();
}

/// S3.3: on a failure only the remainder of the log region is copied, on battery.
///
/// The last gasp's own account of its bytes is compared with what was not yet durable, and with the size of what is protected.
#[test]
fn s3_3_a_failure_copies_only_the_remainder_of_the_log() {
    let (pair, load) = start("log_size = \"4MiB\"\ncommit = \"received\"", "raw");
    let before = group(&pair.alpha);
    let images = images(&pair);
    // Something is to remain: the application is frozen while the destination takes nothing.
    pair.beta.stand_still();
    pair.alpha.await_group("something that has not arrived", |g| {
        let row = &g["destinations"][0];
        (row["lsn_published"].as_u64() > row["lsn_durable"].as_u64()).then_some(())
    });
    pair.alpha.set_power(false);
    pair.alpha.await_group("the application to be frozen", |g| (g["state"] == "saving").then_some(()));
    pair.beta.go_on();
    let tail = pair.alpha.await_event("tail_durable");
    let exposure = tail["exposure_bytes"].as_u64().expect("bytes");
    let protected: u64 =
        before["regions"].as_array().expect("a list").iter().filter_map(|r| r["len"].as_u64()).sum();
    // What was durable before the power went was not shipped again.
    let durable = before["destinations"][0]["lsn_durable"].as_u64().expect("an LSN");
    let end = tail["lsn"].as_u64().expect("an LSN");
    println!("{exposure} bytes remained of {protected} protected; the log went from {durable} to {end}");
    assert!(0 < exposure && exposure <= end - durable && exposure < 4 << 20, "{tail:#}");
    assert!(exposure * 4 < protected, "{exposure} of {protected} bytes is no remainder");
    await_heir(&pair);
    assert_eq!(images.len(), 1, "one image, made before the failure: {images:?}");
    assert_nothing_lost(&pair, load);
}

/// S3.3 on battery: what remains when the power goes is no more than the battery was said to carry, and is brought out.
#[test]
fn s3_3_what_remains_on_battery_is_what_the_budget_allowed() {
    let pair = with_battery("enforce", 0.22);
    let load = Load::start(&pair.alpha, "raw");
    pair.alpha.await_streaming();
    let budget = pair.alpha.await_group("a budget", |g| {
        let budget = g["budget"].clone();
        (budget["t2_bytes"].as_u64()? > DRAIN && budget["required_s"].is_number()).then_some(budget)
    });
    let most = Cell::new(budget["t2_bytes"].as_u64().expect("bytes"));
    load.files.await_progress("for a while", 1000);
    pair.alpha.await_group("another look at it", |g| {
        most.set(most.get().max(g["budget"]["t2_bytes"].as_u64()?));
        (g["budget"]["as_of"] != budget["as_of"]).then_some(())
    });
    // As much is to remain as may: the program is held while the destination takes nothing.
    pair.beta.stand_still();
    pair.alpha.await_group("more exposed than is delayed for", |g| {
        let t1 = g["budget"]["t1_bytes"].as_u64()?;
        (g["destinations"][0]["exposure_bytes"].as_u64()? > t1.max(DRAIN)).then_some(())
    });
    pair.alpha.set_power(false);
    pair.alpha.await_group("the application to be frozen", |g| (g["state"] == "saving").then_some(()));
    pair.beta.go_on();
    let tail = pair.alpha.await_event("tail_durable");
    let exposure = tail["exposure_bytes"].as_u64().expect("bytes");
    println!("{exposure} bytes remained; the budget carried {}; {tail}", most.get());
    assert!(0 < exposure && exposure <= most.get() + DRAIN, "{exposure} of {}", most.get());
    await_heir(&pair);
    assert_nothing_lost(&pair, load);
}

/// S3.4: the application starts elsewhere from the state derived from the copied entries.
///
/// The source's files are destroyed before the heir may start the program, which checks what it finds and goes on counting from there.
#[test]
fn s3_4_the_application_starts_elsewhere_from_what_was_copied() {
    let command = endless("atomic");
    let options = PairOptions {
        group: "commit = \"received\"\non_death = \"failover\"".into(),
        replica: format!("start = [\"/bin/sh\", \"-c\", \"sleep 0.2; {command}\"]"),
        ..PairOptions::default()
    };
    let pair = Pair::start(BINARIES, &options);
    let mut load = Load::start(&pair.alpha, "atomic");
    pair.alpha.await_streaming();
    load.files.await_progress("for a while", 1000);
    load.kill();
    let done = load.files.done();
    // Everything published is shipped from the log, which is no file.
    fs::remove_dir_all(pair.alpha.files()).expect("an own directory");
    let there = Files::of(&pair.beta.files());
    pair.beta.await_group("the program to run at the heir", |g| {
        (g["state"] == "running" && g["sessions"][0]["pid"].is_number()).then_some(())
    });
    assert!(there.done() >= done, "{done} done, {} at the heir", there.done());
    there.await_progress("at the heir", 100);
}

/// S3.5: every prefix of the log yields a consistent state; torn and out-of-order tails are refused.
///
/// An older state of the destination's image is joined with what landed after it, as a crash of the destination leaves it. Replayed whole
/// it is the newest state. With a word of a record changed, or a page missing while later bytes are there, it is the prefix before that
/// place, by the program's own invariants.
#[test]
fn s3_5_every_prefix_is_consistent_and_torn_tails_are_refused() {
    let mut chance = Chance::from_env("PMEMHA_CLAIMS_SEED");
    let (pair, load) = start("log_size = \"8MiB\"\ncommit = \"applied\"", "raw");
    let sources = [pair.alpha.files()];
    let sources: Vec<&Path> = sources.iter().map(AsRef::as_ref).collect();
    let snapshot = || {
        pair.beta.stand_still();
        let snapshot = Snapshot::of(&pair.beta);
        pair.beta.go_on();
        snapshot
    };
    let found = |copy: &mut Copy| copy.promote().expect("promotable").check("raw");
    let old = snapshot();
    load.files.await_progress("a little", 200);
    let new = snapshot();
    // A state that a cut before the last position was stored leaves: the image of then, the ring of now.
    fs::copy(new.replica().join("landing"), old.replica().join("landing")).expect("both are ours");
    let mut whole = old.again().open(&sources);
    let (from, to) = (whole.recovery().from, whole.recovery().to);
    let replayed = found(&mut whole).expect("the program's invariants");
    let newest = found(&mut new.open(&sources)).expect("the program's invariants");
    assert!(replayed == newest && to > from, "{newest} there, {replayed} replayed from {from} to {to}");

    let mut ends = std::collections::BTreeSet::new();
    for cut in 0..30 {
        let at = (from.0 + chance.below(to.0 - from.0)) & !7;
        let torn = old.again();
        let landing = torn.replica().join("landing");
        let file = OpenOptions::new().read(true).write(true).open(landing).expect("a landing ring");
        let ring = 8 << 20;
        let header = file.metadata().expect("a file").len() - ring;
        let place = header + at % ring;
        let mut word = [0; 8];
        file.read_exact_at(&mut word, place).expect("within the ring");
        // A torn word, or (in every third) the page as it was a lap ago.
        let missing = if cut % 3 == 0 { 4096.min(ring - at % ring) as usize } else { 8 };
        let stale = vec![!word[0]; missing];
        file.write_all_at(&stale, place).expect("within the ring");

        let mut copy = torn.open(&sources);
        let end = copy.recovery().to;
        assert!(end.0 <= at, "what lies at {at} is wrong and was taken: replayed up to {end}");
        let found = found(&mut copy);
        let found = found.unwrap_or_else(|why| panic!("the prefix up to {end}, torn at {at}: {why}"));
        assert!(found <= newest, "{found} found in a prefix of {newest}");
        ends.insert(end);
    }
    println!("{} different prefixes of {} bytes", ends.len(), to.since(from));
    assert!(ends.len() > 10, "prefixes of different lengths");
}

/// The source's log, as any of its programs sees it.
fn log_of(pair: &Pair) -> Arc<LogRegion> {
    let options =
        Options { socket: Some(pair.alpha.socket()), group: Some("app".into()), program: "witness".into() };
    Session::connect(options).expect("the agent admits us").log().clone()
}

/// The count in the head of the pool of mode `raw`.
fn head_count(pool: &Path) -> u64 {
    let mut number = [0; 8];
    fs::File::open(pool).and_then(|f| f.read_exact_at(&mut number, 0)).expect("the pool is there");
    u64::from_le_bytes(number)
}

fn images(pair: &Pair) -> Vec<String> {
    let entries = fs::read_dir(pair.beta.replica()).expect("the replica's directory").flatten();
    entries
        .map(|e| e.file_name().to_string_lossy().into_owned())
        .filter(|n| n.starts_with("image-"))
        .collect()
}
