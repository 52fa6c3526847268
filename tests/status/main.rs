//! Honest status: what `pmemha status --json` says is so at that instant, or says how old it is.

mod idle;
mod metrics;
mod unseen;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::Duration;

use pmemha::agent::clock::WallTime;
use pmemha_testkit::node::{Binaries, Node, Pair, PairOptions};
use pmemha_testkit::wait;
use serde_json::Value;

const BINARIES: Binaries =
    Binaries { agent: env!("CARGO_BIN_EXE_pmemhad"), cli: env!("CARGO_BIN_EXE_pmemha") };

/// For whatever a busy machine may delay.
const SOON: Duration = Duration::from_secs(30);

/// A Python program under the preload library that does what its standard input says, a statement a line, and says `done`
/// after each.
struct Program {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Program {
    fn start(node: &Node) -> Program {
        let mut child = node
            .preloaded(Path::new("/usr/bin/python3"))
            .args(["-c", "import sys, os, mmap, ctypes\nfor line in sys.stdin:\n exec(line)\n print('done', flush=True)"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3 is installed");
        let input = child.stdin.take().expect("piped");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        Program { child, input, output }
    }

    fn does(&mut self, statement: &str) {
        writeln!(self.input, "{statement}").expect("the program runs");
        let mut answer = String::new();
        self.output.read_line(&mut answer).expect("the program runs");
        assert_eq!(answer.trim(), "done", "{statement}");
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn group(node: &Node) -> Option<Value> {
    Some(node.try_status()?["groups"][0].clone())
}

fn row(node: &Node) -> Option<Value> {
    Some(group(node)?["destinations"][0].clone())
}

fn await_streaming(pair: &Pair) {
    wait::until("the destination to count", SOON, || {
        (row(&pair.alpha)?["state"] == "streaming").then_some(())
    });
}

/// Waits until everything is copied and applied; the status that says so, and when it was asked for.
fn await_quiet(pair: &Pair) -> (WallTime, Value) {
    wait::until("everything to be copied and applied", SOON, || {
        let asked = WallTime::now();
        let status = pair.alpha.try_status()?;
        let row = &status["groups"][0]["destinations"][0];
        let quiet = row["state"] == "streaming" && row["lsn_applied"] == row["lsn_published"];
        let quiet = quiet && row["exposure_bytes"] == 0 && row["sync"].is_null();
        quiet.then(|| (asked, status.clone()))
    })
}

/// Checks a time of the document: it must lie between two others.
fn between(before: WallTime, time: &Value, what: &str) {
    let time = WallTime::parse(time.as_str().expect(what)).expect(what);
    assert!(before <= time && time <= WallTime::now(), "{what}: {time}");
}

#[test]
fn every_field_says_what_is_so() {
    let pair = Pair::start(BINARIES, &PairOptions { encrypt: true, ..PairOptions::default() });
    let mut program = Program::start(&pair.alpha);
    let file = pair.alpha.files().join("data");
    program.does(&format!("f = open({file:?}, 'w+b'); f.truncate(1 << 20)"));
    assert_eq!(group(&pair.alpha).unwrap()["sessions"][0]["tracker"], Value::Null, "nothing is mapped yet");
    program.does("m = mmap.mmap(f.fileno(), 0); m[5000] = 1; m.flush()");
    await_streaming(&pair);
    wait::until("a drain rate", SOON, || {
        program.does("f.seek(0); f.write(os.urandom(1 << 20)); f.flush()");
        row(&pair.alpha)?["drain_bytes_per_s"].as_u64()
    });
    let (asked, status) = await_quiet(&pair);
    between(asked, &status["as_of"], "as_of");
    assert_eq!(status["power"]["online"], true);
    assert!(status["power"]["source"].as_str().unwrap().contains("ac_online"), "{}", status["power"]);
    between(WallTime(asked.0 - Duration::from_secs(2)), &status["power"]["as_of"], "as_of of power");
    let group = &status["groups"][0];
    assert!(["cgroup2", "cgroup1", "signals"].contains(&group["supervision"].as_str().unwrap()), "{group}");
    let tracker = group["sessions"][0]["tracker"].as_str().unwrap_or_default();
    assert!(["scan", "soft-dirty", "digest"].contains(&tracker), "{group}");
    let row = &group["destinations"][0];
    for (field, value) in [
        ("role", Value::from("source")),
        ("generation", 1.into()),
        ("state", "streaming".into()),
        ("exposure_bytes", 0.into()),
        ("fabric", "tcp".into()),
        ("durability", "battery".into()),
        ("encrypted", true.into()),
        ("memory", "tmpfs".into()),
        ("staged", false.into()),
        ("unprotected_writes", 0.into()),
        ("last_error", Value::Null),
    ] {
        assert_eq!(row[field], value, "{field} of {row}");
    }
    let memory = (&group["regions"][0]["memory"], &group["log"]["memory"]);
    assert_eq!(memory, (&"tmpfs".into(), &"memfd".into()), "{group}");
    let there = self::row(&pair.beta).expect("the destination answers");
    assert_eq!((&there["memory"], &there["staged"]), (&row["memory"], &row["staged"]), "{there}");
    let published = row["lsn_published"].as_u64().expect("a number");
    for lsn in ["lsn_received", "lsn_durable", "lsn_applied"] {
        assert_eq!(row[lsn].as_u64(), Some(published), "{lsn} of {row}");
    }
    assert!(row["drain_bytes_per_s"].as_u64().unwrap() > 0, "{row}");
    between(asked, &row["as_of"], "as_of of the row");

    fs::remove_file(pair.alpha.power()).unwrap();
    wait::until("power to be unknown", SOON, || {
        let power = pair.alpha.try_status()?["power"].clone();
        (power["online"].is_null() && power["error"].is_string()).then_some(())
    });
}

#[test]
fn what_a_destination_has_is_not_exposed_while_it_is_away() {
    const SIZE: u64 = 8 << 20;
    let mut pair = Pair::start(BINARIES, &PairOptions::default());
    let mut program = Program::start(&pair.alpha);
    let file = pair.alpha.files().join("data");
    program
        .does(&format!("f = open({file:?}, 'w+b'); f.write(b'x' * {SIZE}); f.flush(); os.fsync(f.fileno())"));
    await_quiet(&pair);
    pair.beta.kill();
    let away = wait::until("the destination to be missed", SOON, || {
        row(&pair.alpha).filter(|row| row["state"] == "connecting")
    });
    assert_eq!(away["exposure_bytes"], 0, "{away}");
    let told = pair.alpha.cli().arg("status").output().expect("pmemha runs");
    assert!(String::from_utf8_lossy(&told.stdout).contains("! UNPROTECTED"), "{told:?}");
    program.does("f.seek(0); f.write(b'y' * 4096); f.flush(); os.fsync(f.fileno())");
    let exposed = row(&pair.alpha).expect("the agent runs")["exposure_bytes"].as_u64().expect("a number");
    assert!((4096..SIZE / 2).contains(&exposed), "{exposed}");
    // The next agent cannot know.
    pair.alpha.kill();
    pair.alpha.start();
    let exposed = row(&pair.alpha).expect("the agent runs")["exposure_bytes"].as_u64().expect("a number");
    assert!(exposed >= SIZE, "{exposed}");
}

#[test]
fn a_watched_status_outlives_the_agent_and_says_that_it_is_gone() {
    let mut pair = Pair::start(BINARIES, &PairOptions::default());
    let mut watching =
        pair.alpha.cli().args(["status", "--watch"]).stdout(Stdio::piped()).spawn().expect("it runs");
    let mut lines = BufReader::new(watching.stdout.take().expect("piped")).lines().map(|l| l.expect("text"));
    let mut until = |what: &str| assert!(lines.any(|line| line.contains(what)), "it ended before: {what}");
    until("app  source");
    pair.alpha.kill();
    until("asking again");
    pair.alpha.start();
    until("app  source");
    watching.kill().expect("our own child");
    watching.wait().expect("our own child");
}
