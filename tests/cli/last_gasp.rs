//! `pmemha last-gasp`: it tells what happens, and whether the group was handed over.

use std::process::{Output, Stdio};

use pmemha_testkit::node::{Node, Pair, PairOptions};

use super::{BINARIES, said};

/// Of `pmemha(1)`: the group stays.
const KEPT: i32 = 1;

fn last_gasp(node: &Node, arguments: &[&str]) -> Output {
    node.cli().arg("last-gasp").args(arguments).output().expect("pmemha runs")
}

fn await_begun(pair: &Pair) {
    pair.alpha.await_group("a group that admits", |g| (g["state"] == "starting").then_some(()));
}

#[test]
fn its_steps_are_told_until_the_heir_has_accepted() {
    let pair = Pair::start(BINARIES, &PairOptions::default());
    await_begun(&pair);
    pair.alpha.await_streaming();
    let out = last_gasp(&pair.alpha, &["app"]);
    assert!(out.status.success(), "{}", said(&out));
    let told = String::from_utf8_lossy(&out.stdout).into_owned();
    let at = |step: &str| {
        told.lines().position(|l| l.contains(step)).unwrap_or_else(|| panic!("no {step}: {told}"))
    };
    let steps =
        ["begins", "everything durably", "gives the group up", "told to take over", "accepted"].map(at);
    assert!(steps.is_sorted(), "{told}");
    assert!(told.lines().next().is_some_and(|first| first.trim_start().starts_with("0 ")), "{told}");
}

#[test]
fn one_that_is_called_off_ends_with_another_code() {
    let mut pair = Pair::start(BINARIES, &PairOptions::default());
    await_begun(&pair);
    pair.alpha.await_streaming();
    pair.beta.kill();
    let mut command = pair.alpha.cli();
    command.args(["last-gasp", "app"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let waiting = command.spawn().expect("pmemha runs");
    pair.alpha.await_group("the tail to wait for its way out", |g| (g["state"] == "saving").then_some(()));
    let cancelled = pair.alpha.cli().args(["cancel", "app"]).output().expect("pmemha runs");
    assert!(cancelled.status.success(), "{}", said(&cancelled));
    let out = waiting.wait_with_output().expect("our own child");
    assert_eq!(out.status.code(), Some(KEPT), "{}", said(&out));
    assert!(String::from_utf8_lossy(&out.stdout).contains("called off"), "{}", said(&out));
    assert!(String::from_utf8_lossy(&out.stderr).contains("not handed over"), "{}", said(&out));

    let begun = last_gasp(&pair.alpha, &["--no-wait", "app"]);
    assert!(begun.status.success() && begun.stdout.is_empty(), "{}", said(&begun));
}
