//! `pmemha run`: ends as its program does, passes signals on, and with `--protect` needs no agent; `pmemha log` reads its archive.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use pmemha::agent::clock::WallTime;
use pmemha_testkit::node::{Node, Pair, PairOptions, archiving};
use pmemha_testkit::{dirs, process, programs, wait};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::{BINARIES, said};

/// For a shell to start or to end on a busy machine.
const SOON: Duration = Duration::from_secs(30);

/// `pmemha run … -- /bin/sh -c SCRIPT`, at the agent of `node`.
fn shell(node: &Node, script: &str) -> Command {
    let mut command = node.cli();
    command.env("PMEMHA_PRELOAD", programs::preload()).args(["run", "--", "/bin/sh", "-c", script]);
    command
}

/// `run`, by way of a program that becomes it.
fn through(mut outer: Command, run: &Command) -> Command {
    outer.arg(run.get_program()).args(run.get_args());
    outer.envs(run.get_envs().filter_map(|(name, value)| Some((name, value?)))).stdin(Stdio::null());
    outer
}

fn start() -> Node {
    let mut node = archiving(BINARIES, "");
    node.start();
    node
}

#[test]
fn the_exit_code_is_the_programs() {
    let node = start();
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("exit 255", 255), ("kill -KILL $$", 128 + 9)] {
        let out = shell(&node, script).output().expect("pmemha runs");
        assert_eq!(out.status.code(), Some(code), "{script}: {}", said(&out));
    }
    let file = node.dir().join("no-program");
    fs::write(&file, "").expect("an own directory");
    for (program, code) in [(file.as_path(), 126), (Path::new("/nonexistent/program"), 127)] {
        let mut command = node.cli();
        command.env("PMEMHA_PRELOAD", programs::preload()).args(["run", "--"]).arg(program);
        let out = command.output().expect("pmemha runs");
        assert_eq!(out.status.code(), Some(code), "{}: {}", program.display(), said(&out));
        assert!(String::from_utf8_lossy(&out.stderr).contains(&*program.to_string_lossy()), "{}", said(&out));
    }
}

#[test]
fn signals_reach_the_program_and_its_end_is_what_counts() {
    let node = start();
    let ready = node.dir().join("ready");
    let forever = format!("touch {}; while :; do sleep 0.01; done", ready.display());
    let handles = |signal: &str| format!("trap 'exit 42' {signal}; {forever}");
    for (signal, script, code) in [
        (Signal::TERM, handles("TERM"), 42),
        (Signal::HUP, handles("HUP"), 42),
        (Signal::INT, handles("INT"), 42),
        (Signal::USR1, handles("USR1"), 42),
        (Signal::USR2, handles("USR2"), 42),
        (Signal::TERM, forever.clone(), 128 + 15),
    ] {
        // Whoever runs the tests in the background has an interrupt ignored, which would stay so.
        let mut none_ignored = Command::new("env");
        none_ignored.arg("--default-signal");
        let mut run = through(none_ignored, &shell(&node, &script)).spawn().expect("pmemha runs");
        wait::eventually("the program to handle signals", SOON, || ready.exists());
        kill_process(Pid::from_child(&run), signal).expect("our own child");
        let ended = wait::until("pmemha to end", SOON, || run.try_wait().expect("our own child"));
        assert_eq!(ended.code(), Some(code), "{signal:?}");
        fs::remove_file(&ready).expect("an own directory");
    }
}

#[test]
fn what_is_ignored_stays_ignored_in_the_program() {
    let node = start();
    let run = shell(&node, "kill -HUP $$; exit 7");
    let mut outer = Command::new("/bin/sh");
    outer.args(["-c", "trap '' HUP; exec \"$@\"", "sh"]);
    let out = through(outer, &run).output().expect("pmemha runs");
    assert_eq!(out.status.code(), Some(7), "{}", said(&out));
}

#[test]
fn a_private_run_leaves_a_copy_and_an_archive_that_log_lists_and_replays() {
    let dir = dirs::in_memory();
    let [files, copy, archive] = ["files", "copy", "archive"].map(|d| dir.path().join(d));
    fs::create_dir(&files).expect("an own directory");
    let file = files.join("notes");
    let script = format!("printf 'remember this' | dd of={} conv=fsync status=none; exit 3", file.display());
    let out = Command::new(BINARIES.cli)
        .env("PMEMHA_PRELOAD", programs::preload())
        .env("PMEMHA_SOCKET", dir.path().join("nobody.sock"))
        .args(["run", "--commit", "durable", "--protect"])
        .arg(&files)
        .arg("--to")
        .arg(&copy)
        .arg("--archive")
        .arg(&archive)
        .args(["--", "/bin/sh", "-c", &script])
        .stdin(Stdio::null())
        .output()
        .expect("pmemha runs");
    assert_eq!(out.status.code(), Some(3), "{}", said(&out));
    let copies: Vec<PathBuf> = below(&copy);
    let whole = |path: &PathBuf| fs::read(path).is_ok_and(|bytes| bytes == b"remember this");
    assert!(copies.iter().any(whole), "none of {copies:?} is the copy");

    let log = |arguments: &[&str]| {
        let out = Command::new(BINARIES.cli).arg("log").args(arguments).output().expect("pmemha runs");
        assert!(out.status.success(), "{}", said(&out));
        String::from_utf8(out.stdout).expect("text")
    };
    let archive = archive.to_str().expect("a plain path");
    let listed = log(&["list", archive]);
    let mut lines = listed.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    assert_eq!(lines.next().expect("a header"), ["lsn", "end", "bytes", "region", "kind", "archived"]);
    let rows: Vec<_> = lines.collect();
    for row in &rows {
        assert!(row.len() == 6 && WallTime::parse(row[5]).is_some(), "{row:?} of\n{listed}");
    }
    let kinds: Vec<&str> = rows.iter().map(|row| row[4]).collect();
    assert!(kinds.contains(&"create") && kinds.contains(&"data"), "{listed}");
    let json = log(&["list", archive, "--json"]);
    assert_eq!(json.lines().count(), rows.len(), "a line a record:\n{json}");

    let last: Value = serde_json::from_str(json.lines().last().expect("records")).expect("JSON");
    let restored = dir.path().join("restored");
    let end = rows.last().expect("records")[1];
    assert_eq!(end, last["next"].to_string(), "the table shows where to replay to, too");
    let (to, out) = (end, restored.to_str().expect("a plain path"));
    log(&["replay", archive, "--to", to, "--out", out]);
    assert_eq!(fs::read(&restored).expect("the restored file"), b"remember this");
}

/// `pmemha run --protect FILES … -- /bin/sh -c SCRIPT`, under agents of its own that live below `dir`.
fn private(dir: &Path, options: &[&str], script: &str) -> Command {
    private_run(dir, options, &["/bin/sh", "-c", script])
}

fn private_run(dir: &Path, options: &[&str], program: &[&str]) -> Command {
    let files = dir.join("files");
    fs::create_dir_all(&files).expect("an own directory");
    let mut command = Command::new(BINARIES.cli);
    command
        .env("PMEMHA_PRELOAD", programs::preload())
        .env("PMEMHA_SOCKET", dir.join("nobody.sock"))
        .env("TMPDIR", dir)
        .current_dir(dir)
        .args(["run", "--protect", "files"])
        .args(options)
        .arg("--")
        .args(program)
        .stdin(Stdio::null());
    command
}

/// What `run` says of a program that exits with 0.
fn complaint(mut run: Command) -> String {
    let out = run.output().expect("pmemha runs");
    assert_eq!(out.status.code(), Some(0), "{}", said(&out));
    String::from_utf8_lossy(&out.stderr).into_owned()
}

/// Writes one protected file and exits.
const WRITE: &str = "printf 'remember this' | dd of=files/notes conv=fsync status=none";

#[test]
fn a_program_that_is_over_at_once_leaves_a_complete_copy() {
    let dir = dirs::in_memory();
    for round in ["1", "2", "3", "4"] {
        let script = format!("printf 'remember {round}' | dd of=files/notes conv=fsync status=none");
        let complained = complaint(private(dir.path(), &["--to", round], &script));
        let copy = dir.path().join(round);
        assert!(complained.contains(&format!("the copy is in {}, complete", copy.display())), "{complained}");
        let copies = below(&copy);
        let whole =
            |path: &PathBuf| fs::read(path).is_ok_and(|b| b == format!("remember {round}").as_bytes());
        assert!(copies.iter().any(whole), "none of {copies:?} is the copy:\n{complained}");
        fs::remove_file(dir.path().join("files/notes")).expect("what the program wrote");
    }
}

#[test]
fn a_pool_that_libpmemobj_makes_is_protected_by_agents_that_are_not_root() {
    let dir = dirs::in_memory();
    let workload = programs::workload().to_str().expect("a plain path");
    let program = [workload, "run", "tx", "files/pool", "files/acks", "10"];
    // What lets root read a file without a right to.
    let rights = "-dac_override,-dac_read_search";
    let mut without = Command::new("setpriv");
    without.args(["--bounding-set", rights, "--inh-caps", rights, "--"]).current_dir(dir.path());
    let complained = complaint(through(without, &private_run(dir.path(), &["--to", "copy"], &program)));
    let copies = below(&dir.path().join("copy"));
    let is_pool = |path: &PathBuf| fs::read(path).is_ok_and(|bytes| bytes.starts_with(b"PMEMOBJ"));
    assert!(copies.iter().any(is_pool), "none of {copies:?} is the pool:\n{complained}");
    let mode = fs::metadata(dir.path().join("files/pool")).expect("the pool").permissions().mode();
    assert_eq!(mode & 0o7777, 0o600, "the rights that the program asked for");
}

#[test]
fn a_run_that_protected_nothing_says_so_and_leaves_nothing() {
    let dir = dirs::in_memory();
    fs::create_dir(dir.path().join("archive")).expect("an own directory");
    let options = ["--to", "copy", "--archive", "archive"];
    let complained = complaint(private(dir.path(), &options, "true"));
    assert!(complained.contains("nothing was protected") && complained.contains("files/**"), "{complained}");
    let complained = complaint(private(dir.path(), &[], "printf x > files/gone; rm files/gone"));
    assert!(complained.contains("complete"), "what was protected and removed was protected:\n{complained}");
    assert!(!dir.path().join("copy").exists() && below(&dir.path().join("archive")).is_empty());
}

#[test]
fn a_program_that_does_not_exist_leaves_nothing_of_its_run() {
    let dir = dirs::in_memory();
    let out = private_run(dir.path(), &[], &["/nonexistent/program"]).output().expect("pmemha runs");
    assert_eq!(out.status.code(), Some(127), "{}", said(&out));
    let left: Vec<_> = fs::read_dir(dir.path()).expect("an own directory").flatten().collect();
    assert!(left.len() == 1 && left[0].file_name() == "files", "{left:?}");
}

#[test]
fn the_status_of_a_private_run_can_be_asked_for_as_it_says() {
    let dir = dirs::in_memory();
    let script = format!("printf x > files/f; {} --socket $PMEMHA_SOCKET status > seen", BINARIES.cli);
    let complained = complaint(private(dir.path(), &[], &script));
    let command = complained.lines().find_map(|line| line.strip_prefix("pmemha: status of this run: "));
    let socket = command.and_then(|c| c.split(' ').nth(2)).unwrap_or_else(|| panic!("{complained}"));
    assert!(socket.starts_with(&*dir.path().to_string_lossy()), "{socket}");
    let seen = fs::read_to_string(dir.path().join("seen")).expect("the status");
    assert!(seen.contains("run") && seen.contains("source"), "{seen}");
}

#[test]
fn a_preload_library_that_is_not_there_is_named_before_anything_starts() {
    let dir = dirs::in_memory();
    let mut run = private(dir.path(), &[], "touch ran");
    let out = run.env("PMEMHA_PRELOAD", "/nonexistent/lib.so").output().expect("pmemha runs");
    assert_eq!(out.status.code(), Some(70), "{}", said(&out));
    assert!(String::from_utf8_lossy(&out.stderr).contains("/nonexistent/lib.so"), "{}", said(&out));
    assert!(!dir.path().join("ran").exists());
}

#[test]
fn the_agents_of_a_run_that_is_killed_complete_the_copy_and_end() {
    let dir = dirs::in_memory();
    let script = format!("{WRITE}; touch ready; exec sleep 1000");
    let mut run = private(dir.path(), &["--to", "copy"], &script);
    let mut run = run.stderr(Stdio::null()).spawn().expect("pmemha runs");
    wait::eventually("the program to run", SOON, || dir.path().join("ready").exists());
    let own = dir.path().join(format!("pmemha-run-{}", run.id()));
    assert!(own.join("source/node.key").exists());
    run.kill().and_then(|()| run.wait()).expect("our own child");
    let of_run = |p: &process::Process| p.arguments().iter().any(|a| Path::new(a).starts_with(&own));
    wait::eventually("agents and holders to end", SOON, || !process::all().any(|p| of_run(&p)));
    for process in
        process::all().filter(|p| p.has_variable("PMEMHA_SOCKET", &own.join("source/run/pmemhad.sock")))
    {
        process.kill();
    }
    assert!(!own.exists(), "keys are left in {}", own.display());
    let copies = below(&dir.path().join("copy"));
    let whole = |path: &PathBuf| fs::read(path).is_ok_and(|bytes| bytes == b"remember this");
    assert!(copies.iter().any(whole), "none of {copies:?} is the copy");
}

#[test]
fn a_run_that_cannot_start_its_agents_leaves_nothing() {
    let dir = dirs::in_memory();
    fs::write(dir.path().join("file"), "").expect("an own directory");
    let mut run = private(dir.path(), &["--archive", "archive", "--to", "file/copy"], "touch files/ran");
    let out = run.output().expect("pmemha runs");
    assert_ne!(out.status.code(), Some(0), "{}", said(&out));
    let left: Vec<_> =
        fs::read_dir(dir.path()).expect("an own directory").flatten().map(|e| e.file_name()).collect();
    assert!(left.len() == 2 && below(&dir.path().join("files")).is_empty(), "{left:?}\n{}", said(&out));
}

#[test]
fn a_program_that_is_killed_by_a_handover_is_told_of() {
    let Pair { mut alpha, mut beta } = Pair::prepare(BINARIES, &PairOptions::default());
    beta.start();
    alpha.start();
    let script = format!("exec 3>{}/f; while :; do sleep 0.01; done", alpha.files().display());
    let run = shell(&alpha, &script).stderr(Stdio::piped()).spawn().expect("pmemha runs");
    alpha.await_streaming();
    alpha.await_group("the program", |g| (g["sessions"][0]["pid"].is_u64()).then_some(()));
    let out = alpha.cli().args(["last-gasp", "app"]).output().expect("pmemha runs");
    assert!(out.status.success(), "{}", said(&out));
    let out = run.wait_with_output().expect("our own child");
    assert_eq!(out.status.code(), Some(128 + 9), "{}", said(&out));
    let complained = String::from_utf8_lossy(&out.stderr);
    assert!(complained.contains("group `app` was handed over to beta"), "{complained}");
}

#[test]
fn what_does_not_fit_a_run_is_said_as_it_is() {
    let node = start();
    for (arguments, code, remedy) in [
        (["--to", "copy"], 64, "need --protect"),
        (["--archive", "archive"], 64, "need --protect"),
        (["--group", "nope"], 77, "this node has no group `nope`"),
    ] {
        let mut command = node.cli();
        command.env("PMEMHA_PRELOAD", programs::preload()).arg("run").args(arguments);
        let out = command.args(["--", "true"]).output().expect("pmemha runs");
        assert_eq!(out.status.code(), Some(code), "{arguments:?}: {}", said(&out));
        assert!(String::from_utf8_lossy(&out.stderr).contains(remedy), "{arguments:?}: {}", said(&out));
    }
}

#[test]
fn what_a_run_left_is_no_place_for_another_ones_copy_or_archive() {
    let dir = dirs::in_memory();
    complaint(private(dir.path(), &["--to", "copy", "--archive", "archive"], WRITE));
    for option in ["--to", "--archive"] {
        let taken = &option["--".len()..].replace("to", "copy");
        let out = private(dir.path(), &[option, taken], "touch ran").output().expect("pmemha runs");
        let complained = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(73), "{}", said(&out));
        assert!(complained.contains(option) && complained.contains("not empty"), "{}", said(&out));
        assert!(!dir.path().join("ran").exists(), "nothing is run whose copy has no place");
    }
}

/// All files in `dir` and below.
fn below(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { below(&path) } else { vec![path] }).collect()
}
