//! Disks that are full under a running agent: the program goes on, the status says what is full and what to do, nothing that
//! was acknowledged is lost, and with room again everything goes on by itself.

use std::fs;
use std::process::Stdio;
use std::time::Duration;

use pmemha::session::wire::{Reply, Request};
use pmemha_testkit::image::Copy;
use pmemha_testkit::load::{Files, Load};
use pmemha_testkit::node::{Node, Pair, PairOptions};
use pmemha_testkit::small_disk::SmallDisk;
use pmemha_testkit::{dirs, wait};
use serde_json::Value;

use crate::BINARIES;
use crate::bench::Bench;
use crate::trouble::{await_not_protected, await_promotable, await_told, pour, tells};

/// For whatever a busy machine may delay.
const SOON: Duration = Duration::from_secs(60);

const FULL: &str = "No space left on device (os error 28); make room there";

const MIB: u64 = 1 << 20;

/// More than any of these tests needs.
const ROOMY: u64 = 64 * MIB;

/// Between two operations of the program, so that it does not outrun a log of a few megabytes on a busy machine.
const PAUSE_US: u32 = 2000;

const LOG_SIZE: &str = "log_size = \"1MiB\"\n";

fn pair(group: &str) -> Pair {
    Pair::prepare(BINARIES, &PairOptions { group: LOG_SIZE.to_owned() + group, ..PairOptions::default() })
}

fn await_no_error(node: &Node) {
    node.await_group("no error any more", |group| {
        group["destinations"][0]["last_error"].is_null().then_some(())
    });
}

#[test]
fn a_first_sync_waits_for_room_at_the_destination_while_the_program_goes_on() {
    let mut pair = pair("");
    let disk = SmallDisk::mount(&pair.beta.replica(), MIB);
    fs::write(pair.alpha.files().join("old"), vec![7; 4 << 20]).unwrap();
    pair.beta.start();
    pair.alpha.start();
    let mut load = Load::paced(&pair.alpha, "raw", PAUSE_US);

    // Not even the landing ring has room.
    await_told(&pair, &disk.path().join("landing"), FULL);
    pair.alpha
        .await_group("to be refused", |group| (group["destinations"][0]["state"] == "refused").then_some(()));
    load.files.await_progress("while the destination is full", 20);

    // Only the copy has not.
    disk.resize(2 * MIB);
    await_told(&pair, &disk.path().join("image-"), FULL);
    let row = pair.alpha.status().unwrap()["groups"][0]["destinations"][0].take();
    assert_eq!(row["state"], "syncing", "{row:#}");
    load.files.await_progress("while the destination is full", 20);
    let shown = pair.alpha.cli().arg("status").output().unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout);
    assert!(shown.lines().any(|l| l.contains("! beta cannot keep") && l.contains(FULL)), "{shown}");

    disk.resize(ROOMY);
    pair.alpha.await_streaming();
    await_no_error(&pair.alpha);
    await_no_error(&pair.beta);
    load.assert_alive();
    await_promotable(&pair, &load, "old");
}

#[test]
fn a_destination_that_gets_full_keeps_what_it_acknowledged_and_goes_on_with_room_also_after_a_restart() {
    let mut pair = pair("commit = \"durable\"\ncommit_timeout = \"200ms\"");
    let disk = SmallDisk::mount(&pair.beta.replica(), 16 * MIB);
    pair.beta.start();
    pair.alpha.start();
    let mut load = Load::paced(&pair.alpha, "raw", PAUSE_US);
    pair.alpha.await_streaming();
    let given_up = || {
        let status = pair.alpha.status().expect("the agent answers");
        status["groups"][0]["log"]["commits_given_up"].as_u64().expect("a number")
    };
    // From here on each operation that returns has waited for the destination, until the first that gives up.
    let (before, mut acknowledged) = wait::until("commits to wait for the destination", SOON, || {
        let before = given_up();
        load.files.await_progress("with a destination that counts", 5);
        let done = load.files.done();
        (given_up() == before).then_some((before, done))
    });
    disk.fill();
    pour(&pair.alpha, "new", 2 * MIB);
    wait::until("commits to be given up", SOON, || {
        let done = load.files.done();
        let waited = given_up() == before;
        acknowledged = if waited { done } else { acknowledged };
        (!waited).then_some(())
    });
    await_told(&pair, disk.path(), FULL);
    load.files.await_progress("while the destination is full", 20);

    pair.beta.kill();
    let mut kept = Copy::of(&pair.beta, &[&pair.alpha.files()]);
    let found =
        kept.promote().expect("the image still counts").check("raw").unwrap_or_else(|why| panic!("{why}"));
    assert!(found >= acknowledged, "{acknowledged} acknowledged, {found} found");

    pair.beta.start();
    await_told(&pair, disk.path(), FULL);
    disk.make_room();
    await_no_error(&pair.beta);
    pair.alpha.await_streaming();
    load.assert_alive();
    await_promotable(&pair, &load, "new");
}

#[test]
fn an_archive_that_is_full_costs_nobody_anything_and_a_replay_says_where_its_hole_is() {
    let mut pair = pair("");
    let archive = pair.alpha.archive();
    fs::create_dir(&archive).unwrap();
    let disk = SmallDisk::mount(&archive, 2 * MIB);
    pair.alpha.configure_more(&format!(
        "archive = {{ dir = \"{}\", keep_bytes = \"32MiB\" }}\n",
        archive.display()
    ));
    pair.beta.start();
    pair.alpha.start();
    let mut load = Load::paced(&pair.alpha, "raw", PAUSE_US);
    let lost = pair.alpha.await_group("the archive to be full", |group| {
        let row = &group["archive"];
        (row["lsn_durable"].is_null() && tells(&row["last_error"], &archive, FULL))
            .then(|| group["destinations"][0]["lsn_published"].as_u64().expect("an LSN"))
    });
    load.files.await_progress("while the archive is full", 20);
    pair.alpha.await_streaming();

    disk.resize(ROOMY);
    pair.alpha.await_group("the archive to go on", |group| group["archive"]["lsn_durable"].as_u64());
    load.pause();
    let out = dirs::in_memory();
    let replay = |to: u64, name: &str| {
        let out = out.path().join(name);
        fs::create_dir(&out).unwrap();
        let mut command = pair.alpha.cli();
        command.args(["log", "replay", "--to", &to.to_string(), "--out"]).args([&out, &archive]);
        (command.output().expect("pmemha runs"), out)
    };
    // Its first moments lie in the copy that it begins with.
    let mut attempts = 0..;
    let dir = wait::until("the newest moment to be one that can be had", SOON, || {
        let group = pair.alpha.status()?["groups"][0].take();
        let newest = group["destinations"][0]["lsn_published"].as_u64()?;
        let (replayed, dir) = replay(newest, &attempts.next()?.to_string());
        replayed.status.success().then_some(dir)
    });
    let files = Files::of(&dir.join(pair.alpha.files().strip_prefix("/").unwrap()));
    let found = files.check("raw").unwrap_or_else(|why| panic!("{why}"));
    assert!(found >= load.files.done(), "{} done, {found} found", load.files.done());
    load.assert_alive();

    let (refused, _) = replay(lost, "lost");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("is not in this archive, which has"), "{said}");
}

/// A program whose group is shipped, while the state directory of one of the nodes has become full.
fn streaming_with_full_state(full: fn(&Pair) -> &Node) -> (Pair, SmallDisk, Load) {
    let mut pair = pair("");
    let disk = SmallDisk::mount(&full(&pair).dir().join("state"), MIB);
    pair.beta.start();
    pair.alpha.start();
    let load = Load::paced(&pair.alpha, "raw", PAUSE_US);
    pair.alpha.await_streaming();
    disk.fill();
    (pair, disk, load)
}

#[test]
fn a_file_that_cannot_be_noted_in_a_full_state_directory_is_protected_once_there_is_room() {
    let (pair, disk, mut load) = streaming_with_full_state(|pair| &pair.alpha);
    let state = pair.alpha.dir().join("state");
    pour(&pair.alpha, "new", MIB / 4);
    await_not_protected(&pair.alpha, &state, FULL);
    // Nothing that rests on it is acknowledged.
    pair.alpha.await_group("the program to be ahead of the log", |group| {
        (group["log"]["times_ahead"].as_u64() > Some(0)).then_some(())
    });
    load.files.await_progress("while no state can be stored", 20);
    disk.make_room();
    pair.alpha.await_group("the file to be protected", |group| {
        let regions = group["regions"].as_array()?;
        regions.iter().any(|r| r["path"].as_str().is_some_and(|p| p.ends_with("/new"))).then_some(())
    });
    load.assert_alive();
    await_promotable(&pair, &load, "new");
}

#[test]
fn growth_that_could_not_be_stored_is_recorded_when_it_is_seen_next() {
    let bench = Bench::new();
    let state = bench.path("state");
    fs::create_dir(&state).unwrap();
    let disk = SmallDisk::mount(&state, MIB);
    let _agent = bench.start();
    let client = bench.connect();
    assert!(matches!(client.hello("db"), Reply::Welcome { .. }));
    let pool = bench.pool("a.pool", 4096);
    let protect = Request::Protect { len: 0, explicit: false };
    let Reply::Protected { lsn: created, .. } = client.ask_with(&protect, Some(&pool)) else { panic!() };
    pool.set_len(8192).unwrap();
    disk.fill();
    let Reply::Error { message } = client.ask_with(&protect, Some(&pool)) else { panic!("it was stored") };
    assert!(tells(&Value::from(message.clone()), &state, FULL), "{message}");
    disk.make_room();
    let Reply::Protected { lsn: grown, len, .. } = client.ask_with(&protect, Some(&pool)) else { panic!() };
    assert!(grown > created && len == 8192, "no record tells of the growth");
    assert_eq!(bench.connect().status()["groups"][0]["regions"][0]["len"], 8192);
}

/// The group is handed from alpha to beta while the state directory of one of both is full: nothing is done that was not stored.
fn handed_over_with_room_only(full: fn(&Pair) -> &Node) {
    let (pair, disk, mut load) = streaming_with_full_state(full);
    let state = full(&pair).dir().join("state");
    let owns = fs::read(state.join("groups/app/ownership")).ok();
    let mut gasp = pair
        .alpha
        .cli()
        .args(["last-gasp", "app"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    full(&pair).await_group("the state to be what cannot be stored", |group| {
        tells(&group["error"], &state, FULL).then_some(())
    });
    // It has been tried again and again.
    wait::eventually("more attempts to store the state", SOON, || {
        full(&pair).log().matches("state cannot be stored").count() > 2
    });
    let shown = full(&pair).cli().arg("status").output().unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout);
    assert!(shown.lines().any(|l| l.contains("! nothing is decided: ") && l.contains(FULL)), "{shown}");
    assert_eq!(fs::read(state.join("groups/app/ownership")).ok(), owns);
    let beta = pair.beta.status().unwrap()["groups"][0].take();
    assert_eq!((&beta["role"], &beta["generation"]), (&"destination".into(), &1.into()), "{beta:#}");
    assert_eq!(fs::read_dir(pair.beta.files()).unwrap().count(), 0, "files were placed");

    disk.make_room();
    pair.beta.await_group("the group", |group| (group["role"] == "source").then_some(()));
    assert!(gasp.wait().unwrap().success());
    wait::eventually("the program to be ended where it may run no more", SOON, || load.has_ended());
    let files = Files::of(&pair.beta.files());
    let found = files.check("raw").unwrap_or_else(|why| panic!("{why}"));
    assert!(found >= load.files.done(), "{} done, {found} found", load.files.done());
    full(&pair).await_group("no error any more", |group| group["error"].is_null().then_some(()));
}

#[test]
fn a_source_whose_state_directory_is_full_gives_nothing_up_before_it_has_room() {
    handed_over_with_room_only(|pair| &pair.alpha);
}

#[test]
fn an_heir_whose_state_directory_is_full_takes_nothing_over_before_it_has_room() {
    handed_over_with_room_only(|pair| &pair.beta);
}
