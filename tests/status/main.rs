//! Honest status: what `pmemha status --json` says is so at that instant, or says how old it is.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use pmemha::agent::clock::WallTime;
use pmemha_testkit::node::{Binaries, Node, Pair, PairOptions};
use pmemha_testkit::{programs, wait};
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
    let (asked, status) = wait::until("everything to be copied and applied", SOON, || {
        let asked = WallTime::now();
        let status = pair.alpha.try_status()?;
        let row = &status["groups"][0]["destinations"][0];
        let quiet = row["state"] == "streaming" && row["lsn_applied"] == row["lsn_published"];
        let quiet = quiet && row["exposure_bytes"] == 0 && row["sync"].is_null();
        quiet.then(|| (asked, status.clone()))
    });
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
        ("unprotected_writes", 0.into()),
        ("last_error", Value::Null),
    ] {
        assert_eq!(row[field], value, "{field} of {row}");
    }
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
fn writes_that_pass_the_log_by_are_found_and_no_other() {
    let pair = Pair::start(BINARIES, &PairOptions::default());
    let files = pair.alpha.files();
    // A PMDK program beside it stores what it never flushes, and must not be blamed.
    let mut pmdk = pair.alpha.preloaded(programs::workload());
    pmdk.args(["run", "tx"]).args([files.join("pool"), files.join("acks")]).arg("1000000");
    let mut pmdk = pmdk.stdout(Stdio::null()).spawn().expect("the workload starts");
    let mut program = Program::start(&pair.alpha);
    program.does(&format!(
        "f = open({:?}, 'w+b', 0); f.truncate(1 << 20); f.write(b'recorded')",
        files.join("data")
    ));
    await_streaming(&pair);
    // pwrite64, by its number: no library sees it.
    program.does("raw = ctypes.CDLL(None).syscall; b = b'x' * 9000");
    program.does("assert raw(18, f.fileno(), b, ctypes.c_size_t(9000), ctypes.c_size_t(65536)) == 9000");
    wait::until("the writes to be found", SOON, || {
        (row(&pair.alpha)?["unprotected_writes"] == 3).then_some(())
    });
    program.does("f.seek(1 << 19); f.write(b'y' * 9000); os.fsync(f.fileno())");
    let told = Command::new(env!("CARGO_BIN_EXE_pmemha"))
        .env("PMEMHA_SOCKET", pair.alpha.socket())
        .args(["status"])
        .output()
        .expect("pmemha runs");
    assert!(String::from_utf8_lossy(&told.stdout).contains("3 writes passed pmemha by"), "{told:?}");
    pmdk.kill().expect("our own child");
    pmdk.wait().expect("our own child");
    assert_eq!(row(&pair.alpha).unwrap()["unprotected_writes"], 3, "{}", pair.alpha.log());
}
