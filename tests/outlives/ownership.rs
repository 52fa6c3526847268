//! Ownership moves once, with real processes: frozen, thawed, killed, cut off from each other, come back.

use std::time::{Duration, Instant};

use pmemha::agent::ownership::DurableFile;
use pmemha::failover::Standing;
use pmemha::session::wire::{Reply, Request};
use pmemha_testkit::chance::Chance;
use pmemha_testkit::load::{Files, Load, endless};
use pmemha_testkit::node::{Node, Pair, PairOptions};
use pmemha_testkit::process::{self, Process};
use pmemha_testkit::proxy::Proxy;
use pmemha_testkit::wait;
use serde_json::Value;

use super::{BINARIES, SOON};

/// A time in which a program that runs would do thousands of operations; the promise is of absence.
const LONG_ENOUGH: Duration = Duration::from_millis(300);

/// More than the time between two looks for files that nobody has opened.
const PAST_A_LOOK: Duration = Duration::from_secs(6);

/// By control group, and by signals where there is none.
const MEANS: [bool; 2] = [false, true];

fn start(options: &PairOptions) -> (Pair, Load) {
    load(Pair::start(BINARIES, options))
}

/// The source reaches the heir's control channel through `proxy`, and its data channel without.
fn start_by_way_of(proxy: &Proxy, no_cgroups: bool) -> (Pair, Load) {
    let options = PairOptions { way: Some(proxy.port()), ..plain(no_cgroups) };
    let mut pair = Pair::prepare(BINARIES, &options);
    proxy.lead_to(pair.beta.port);
    pair.beta.start();
    pair.alpha.start();
    load(pair)
}

fn load(pair: Pair) -> (Pair, Load) {
    let load = Load::start(&pair.alpha, "raw");
    pair.alpha.await_streaming();
    (pair, load)
}

fn plain(no_cgroups: bool) -> PairOptions {
    PairOptions { no_cgroups, ..PairOptions::default() }
}

fn await_state(node: &Node, wanted: &[&str]) {
    node.await_group(&format!("{wanted:?}"), |g| wanted.iter().any(|s| g["state"] == **s).then_some(()));
}

/// Until the program stays frozen whatever becomes of the agent: the trigger goes out behind the order.
fn await_held(node: &Node) {
    await_state(node, &["handing_over"]);
    node.await_event("saved");
}

fn group(node: &Node) -> Value {
    node.status().expect("the agent answers")["groups"][0].take()
}

/// What the program has done, once it does no more.
fn assert_frozen(files: &Files) -> u64 {
    let done = files.done();
    std::thread::sleep(LONG_ENOUGH);
    assert_eq!(files.done(), done, "the program runs although it is frozen");
    done
}

#[test]
fn power_back_before_the_trigger_thaws_and_nothing_moves() {
    for no_cgroups in MEANS {
        let (mut pair, mut load) = start(&plain(no_cgroups));
        let means = group(&pair.alpha)["supervision"].clone();
        assert_eq!(means == "signals", no_cgroups, "frozen by {means}");
        // Without a destination the tail cannot be saved, so no trigger is sent.
        pair.beta.kill();
        pair.alpha.set_power(false);
        await_state(&pair.alpha, &["saving"]);
        assert_frozen(&load.files);
        pair.alpha.set_power(true);
        load.files.await_progress("with the power back", 10);
        await_state(&pair.alpha, &["running"]);
        pair.beta.start();
        assert_eq!(pair.alpha.await_streaming()["generation"], 1);
        assert_eq!(group(&pair.beta)["role"], "destination");
        load.assert_alive();
    }
}

#[test]
fn an_agent_that_dies_before_the_trigger_leaves_the_program_running_and_its_successor_hands_over() {
    for no_cgroups in MEANS {
        let (mut pair, mut load) = start(&plain(no_cgroups));
        pair.beta.kill();
        pair.alpha.set_power(false);
        await_state(&pair.alpha, &["saving"]);
        assert_frozen(&load.files);
        pair.alpha.kill();
        // Its watchdog thaws.
        load.files.await_progress("after the death of the agent that had frozen it", 10);
        pair.alpha.start();
        await_state(&pair.alpha, &["saving"]);
        let done = assert_frozen(&load.files);
        pair.beta.start();
        await_state(&pair.beta, &["starting", "running", "stopped"]);
        assert_eq!(load.files.done(), done);
        load.kill();
        let found = Files::of(&pair.beta.files()).check("raw").expect("the program's invariants");
        assert!(found >= done, "{done} done, {found} taken over");
    }
}

#[test]
fn power_back_after_the_trigger_thaws_only_when_the_heir_has_cancelled() {
    let proxy = Proxy::start(Chance::from_env("PMEMHA_CUT_SEED"));
    let (pair, mut load) = start_by_way_of(&proxy, false);

    // The trigger does not get through; the data does, on a way of its own.
    proxy.stall();
    pair.alpha.set_power(false);
    await_state(&pair.alpha, &["handing_over"]);
    let done = assert_frozen(&load.files);
    pair.alpha.set_power(true);
    await_state(&pair.alpha, &["cancelling"]);
    assert_eq!(assert_frozen(&load.files), done, "thawed without the heir's word");
    assert_eq!(group(&pair.beta)["role"], "destination");

    proxy.pass();
    load.files.await_progress("after the heir has cancelled", 10);
    await_state(&pair.alpha, &["running"]);
    assert_eq!(group(&pair.beta)["role"], "destination");
    assert_eq!(pair.alpha.await_streaming()["generation"], 1);
    load.assert_alive();
}

#[test]
fn nothing_is_recorded_behind_the_end_that_the_heir_is_told_until_the_group_is_handed_back() {
    let proxy = Proxy::start(Chance::from_env("PMEMHA_CUT_SEED"));
    let (mut pair, mut load) = start_by_way_of(&proxy, false);
    proxy.stall();
    pair.alpha.set_power(false);
    await_held(&pair.alpha);
    // Nobody opens it, and another agent finds it as it starts.
    let unopened = pair.alpha.files().join("unopened");
    pair.alpha.kill();
    std::fs::write(&unopened, [7; 4096]).unwrap();
    pair.alpha.start();
    await_state(&pair.alpha, &["handing_over"]);
    let is_in = |group: &Value| {
        let regions = group["regions"].as_array().expect("regions");
        regions.iter().any(|region| unopened.to_str() == region["path"].as_str())
    };
    std::thread::sleep(PAST_A_LOOK);
    assert!(!is_in(&group(&pair.alpha)), "entered after the handover began");

    pair.alpha.set_power(true);
    await_state(&pair.alpha, &["cancelling"]);
    proxy.pass();
    pair.alpha.await_group("the file to be entered", |group| is_in(group).then_some(()));
    await_state(&pair.alpha, &["running"]);
    load.assert_alive();
}

#[test]
fn a_node_that_returns_after_the_handover_never_runs_a_second_writer() {
    for no_cgroups in MEANS {
        let (mut pair, mut load) = start(&plain(no_cgroups));
        pair.alpha.set_power(false);
        // The heir owns the group, and the old source's agent dies without having heard of it.
        pair.beta.await_group("the heir to own the group", |g| (g["role"] == "source").then_some(()));
        pair.alpha.kill();
        let done = load.files.done();
        await_state(&pair.beta, &["starting", "running", "stopped"]);
        // The dead agent's watchdog was told to leave it frozen.
        assert_eq!(assert_frozen(&load.files), done);
        let heir = Load::start(&pair.beta, "raw");

        pair.alpha.set_power(true);
        pair.alpha.start();
        wait::until("the old source to end its program", SOON, || load.has_ended().then_some(()));
        assert_eq!(load.files.done(), done, "it ran once more");
        await_state(&pair.alpha, &["demoted", "standby"]);
        heir.files.await_progress("at the heir all the while", 10);
        assert!(heir.files.done() >= done);
    }
}

#[test]
fn a_program_that_a_killed_agent_was_about_to_end_is_ended_by_the_next() {
    for no_cgroups in MEANS {
        let proxy = Proxy::start(Chance::from_env("PMEMHA_CUT_SEED"));
        let (mut pair, mut load) = start_by_way_of(&proxy, no_cgroups);
        proxy.stall();
        pair.alpha.set_power(false);
        await_held(&pair.alpha);
        let done = assert_frozen(&load.files);
        pair.alpha.kill();
        // What the agent would have stored on the word that another generation is owned by the heir, and died behind.
        let stored = DurableFile::new(pair.alpha.dir().join("state/groups/app/ownership"));
        let mut durable = stored.load().unwrap().expect("it has given the group up");
        durable.generation = durable.generation.next();
        durable.standing = Standing::Demoted { cancelled: None };
        stored.save(&durable).unwrap();
        pair.alpha.start();
        wait::until("the next agent to end the program", SOON, || load.has_ended().then_some(()));
        assert_eq!(load.files.done(), done, "it ran once more");
        await_state(&pair.alpha, &["demoted"]);
    }
}

#[test]
fn a_program_whose_group_was_taken_back_by_force_is_waited_for_by_the_next_agent() {
    let command = format!("command = [\"/bin/sh\", \"-c\", \"{}\"]", endless("raw"));
    for no_cgroups in MEANS {
        let proxy = Proxy::start(Chance::from_env("PMEMHA_CUT_SEED"));
        let options = PairOptions { way: Some(proxy.port()), group: command.clone(), ..plain(no_cgroups) };
        let mut pair = Pair::prepare(BINARIES, &options);
        proxy.lead_to(pair.beta.port);
        pair.beta.start();
        pair.alpha.start();
        pair.alpha.await_streaming();
        let files = Files::of(&pair.alpha.files());
        files.await_progress("at first", 10);
        let [program] = &process::users(&files.pool)[..] else { panic!("one program runs") };

        proxy.stall();
        pair.alpha.set_power(false);
        await_held(&pair.alpha);
        pair.alpha.set_power(true);
        let forced = Request::Promote { group: "app".into(), force: true };
        assert!(matches!(pair.alpha.ask(&forced), Some(Reply::Ok {})));
        files.await_progress("once it is taken back", 10);

        // Its log is of a generation before.
        proxy.pass();
        let users = || process::users(&files.pool).iter().map(Process::pid).collect::<Vec<_>>();
        for lives in 1..=2 {
            pair.alpha.kill();
            pair.alpha.start();
            let waits = |event: &Value| event["detail"]["what"] == "earlier_program";
            pair.alpha.await_event_that("the next agent to wait", waits);
            std::thread::sleep(LONG_ENOUGH);
            assert_eq!(users(), [program.pid()], "one writer, {lives}");
            assert_ne!(group(&pair.alpha)["state"], "running");
        }
        program.kill();
        wait::until("another program to run", SOON, || {
            matches!(users()[..], [other] if other != program.pid()).then_some(())
        });
        files.await_progress("in its place", 10);
    }
}

#[test]
fn lost_and_repeated_messages_move_the_group_exactly_once() {
    let chance = Chance::from_env("PMEMHA_CUT_SEED");
    for round in 0..3 {
        let proxy = Proxy::start(chance.lane(round));
        let (pair, mut load) = start_by_way_of(&proxy, false);

        // Asks and answers of the handover among them: what was answered in vain is asked again.
        proxy.lose(6);
        let began = Instant::now();
        pair.alpha.set_power(false);
        await_state(&pair.beta, &["starting", "running", "stopped"]);
        let done = assert_frozen(&load.files);
        await_state(&pair.alpha, &["demoted", "standby"]);
        println!("round {round}: moved in {:?}, {} losses left", began.elapsed(), proxy.left_to_lose());
        load.kill();
        assert_eq!(group(&pair.beta)["generation"], 2, "moved once");
        let found = Files::of(&pair.beta.files()).check("raw").expect("the program's invariants");
        assert!(found >= done, "{done} done, {found} taken over");
    }
}
