//! Supervision of real processes: nothing of a frozen application executes, a dead agent leaves it running unless
//! ownership was given up, and no process escapes.
//!
//! This program is its own helper: the tests start it again as watchdog, `exec-in` and agent.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use pmemha::failover::supervise::{
    Exit, Helper, Hierarchy, StartCommand, Supervisor, exec_in, hierarchies, watch,
};
use pmemha::mounts;

/// Long enough for any step on a loaded machine; nothing waits this long when all is well.
const PATIENCE: Duration = Duration::from_secs(20);

/// Carries the arguments of a helper to the test `helper`, which plays it.
const ROLE: &str = "PMEMHA_TEST_HELPER";

fn deadline() -> Instant {
    Instant::now() + PATIENCE
}

/// A shell that turns the helper's arguments into an environment variable for this program.
fn helper_command() -> Helper {
    helper_that(":")
}

/// One that does something before.
fn helper_that(first: &str) -> Helper {
    let exe = std::env::current_exe().unwrap();
    let script = format!(
        "{first}; {ROLE}=$(printf '%s\\n' \"$@\") exec {} --exact helper --nocapture --quiet",
        exe.display()
    );
    Helper { argv: ["/bin/sh", "-c", &script, "sh"].map(OsString::from).to_vec(), lock: None }
}

#[test]
fn helper() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let args: Vec<&str> = role.lines().collect();
    match args[0] {
        "watchdog" => watch(args[1], Path::new(args[2]), std::io::stdin().lock()).unwrap(),
        "exec-in" => {
            let argv: Vec<OsString> = args[4..].iter().map(OsString::from).collect();
            panic!("{}", exec_in(Path::new(args[1]), args[2], &argv));
        }
        "agent" => agent(&args[1..]),
        other => panic!("unknown role {other}"),
    }
}

/// Plays an agent that freezes the process given to it, perhaps gives up ownership, and waits to be killed.
fn agent(args: &[&str]) {
    let [means, name, pid, hold] = args else { panic!("{args:?}") };
    let mut application = Supervisor::new(name, hierarchy(means).as_ref(), helper_command()).unwrap();
    application.add(pid.parse().unwrap()).unwrap();
    application.freeze(deadline()).unwrap();
    if *hold == "held" {
        application.hold_frozen().unwrap();
    }
    println!("frozen");
    std::io::stdin().lock().read_to_end(&mut Vec::new()).unwrap();
}

fn hierarchy(means: &str) -> Option<Hierarchy> {
    let fits = |h: &Hierarchy| match h {
        Hierarchy::V2(_) => means == "cgroup2",
        Hierarchy::V1(_) => means == "cgroup1",
    };
    hierarchies(&mounts::read().unwrap()).into_iter().find(fits)
}

/// Every means that this machine has; signals always.
fn all_means() -> Vec<&'static str> {
    ["cgroup2", "cgroup1", "signals"]
        .into_iter()
        .filter(|m| *m == "signals" || hierarchy(m).is_some())
        .collect()
}

fn unique(test: &str, means: &str) -> String {
    format!("test-{test}-{means}-{}", std::process::id())
}

/// A program that forks all the time, each child counting in a file of its own.
fn forker(dir: &Path) -> StartCommand {
    let script = "i=0; while [ $i -lt 100000 ]; do i=$((i+1)); \
                  (j=0; while [ $j -lt 50 ]; do j=$((j+1)); echo x >>$0/beat; done) & \
                  [ $((i % 8)) = 0 ] && wait; done; wait";
    StartCommand {
        argv: ["/bin/sh", "-c", script, dir.to_str().unwrap()].map(OsString::from).to_vec(),
        ..StartCommand::default()
    }
}

fn beats(dir: &Path) -> u64 {
    std::fs::metadata(dir.join("beat")).map_or(0, |m| m.len())
}

/// Waits until the program has done more.
fn beats_past(dir: &Path, before: u64) -> bool {
    let end = deadline();
    while Instant::now() < end {
        if beats(dir) > before {
            return true;
        }
        std::thread::yield_now();
    }
    false
}

#[test]
fn nothing_executes_while_frozen_though_it_forks_and_all_goes_on_when_thawed() {
    for means in all_means() {
        let dir = tempfile::tempdir().unwrap();
        let mut application =
            Supervisor::new(&unique("forks", means), hierarchy(means).as_ref(), helper_command()).unwrap();
        assert_eq!(application.means(), means);
        let mut started = application.start(&forker(dir.path())).unwrap();
        let mut slowest = Duration::ZERO;
        for _ in 0..20 {
            assert!(beats_past(dir.path(), beats(dir.path())), "{means}: does not run");
            let began = Instant::now();
            application.freeze(deadline()).unwrap();
            slowest = slowest.max(began.elapsed());
            assert!(application.is_frozen().unwrap());
            let before = beats(dir.path());
            // The time in which a process that escaped would show itself; the promise is of absence.
            std::thread::sleep(Duration::from_millis(10));
            assert_eq!(beats(dir.path()), before, "{means}: something wrote while frozen");
            application.thaw().unwrap();
        }
        println!("{means}: frozen within {slowest:?}");
        application.freeze(deadline()).unwrap();
        application.kill().unwrap();
        assert!(application.members().unwrap().is_empty());
        assert_eq!(started.wait().unwrap(), Exit::Killed(9));
    }
}

/// Leaves no process behind, even if the test fails.
struct Killed(u32);

impl Drop for Killed {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_raw(self.0 as i32).expect("a process");
        _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
}

#[test]
fn a_program_whose_first_thread_has_exited_is_frozen_and_killed_like_any_other() {
    // System call 60 ends the thread that makes it.
    let script = "import ctypes, os, sys, threading, time\n\
                  def beat():\n  out = os.open(sys.argv[1] + '/beat', os.O_CREAT | os.O_WRONLY | os.O_APPEND)\n  \
                  while os.write(out, b'x'): time.sleep(0.0005)\n\
                  threading.Thread(target=beat).start()\nctypes.CDLL(None).syscall(60, 0)";
    for means in all_means() {
        let dir = tempfile::tempdir().unwrap();
        let (program, at) = (dir.path().join("program"), dir.path().to_str().unwrap());
        std::fs::write(&program, script).unwrap();
        let argv = ["python3", program.to_str().unwrap(), at].map(OsString::from).to_vec();
        let mut application =
            Supervisor::new(&unique("thread", means), hierarchy(means).as_ref(), helper_command()).unwrap();
        let mut started = application.start(&StartCommand { argv, ..StartCommand::default() }).unwrap();
        let (pid, end) = (started.pid(), deadline());
        let ends = Killed(pid);
        let has_exited =
            || std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| stat.contains(") Z "));
        // Not before it runs: the helper's first thread is seen to have exited while another becomes the program.
        assert!(beats_past(dir.path(), 0), "{means}: does not run");
        while !has_exited() {
            assert!(Instant::now() < end, "{means}: the first thread goes on");
            std::thread::yield_now();
        }
        assert_eq!(application.members().unwrap(), [pid], "{means}");
        for _ in 0..20 {
            assert!(beats_past(dir.path(), beats(dir.path())), "{means}: does not run");
            application.freeze(deadline()).unwrap();
            let before = beats(dir.path());
            // As above: the promise is of absence.
            std::thread::sleep(Duration::from_millis(10));
            assert_eq!(beats(dir.path()), before, "{means}: something wrote while frozen");
            application.thaw().unwrap();
        }
        application.kill().unwrap();
        assert!(application.members().unwrap().is_empty());
        assert_eq!(started.wait().unwrap(), Exit::Killed(9));
        // The number may be another's from here on.
        std::mem::forget(ends);
    }
}

#[test]
fn a_dead_agent_leaves_the_application_running_unless_ownership_was_given_up() {
    for (means, hold) in all_means().into_iter().flat_map(|m| [(m, "armed"), (m, "held")]) {
        let dir = tempfile::tempdir().unwrap();
        let command = forker(dir.path());
        // Not a descendant of the agent, so that only the freezer decides.
        let mut child =
            Command::new(&command.argv[0]).args(&command.argv[1..]).process_group(0).spawn().unwrap();
        assert!(beats_past(dir.path(), 0));
        let name = unique(hold, means);
        let helper = helper_command();
        let mut agent = Command::new(&helper.argv[0])
            .args(&helper.argv[1..])
            .args(["agent", means, &name, &child.id().to_string(), hold])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let told = BufReader::new(agent.stdout.take().unwrap()).lines().map_while(Result::ok);
        assert!(told.into_iter().any(|l| l.contains("frozen")), "{means}: the agent froze nothing");
        let before = beats(dir.path());
        agent.kill().unwrap();
        agent.wait().unwrap();
        let mut after = Supervisor::new(&name, hierarchy(means).as_ref(), helper_command()).unwrap();
        after.add(child.id()).unwrap();
        if hold == "armed" {
            assert!(beats_past(dir.path(), before), "{means}: not thawed after the agent's death");
        } else {
            std::thread::sleep(Duration::from_millis(100));
            assert!(after.is_frozen().unwrap(), "{means}: thawed although ownership was given up");
        }
        after.kill().unwrap();
        child.wait().unwrap();
    }
}

#[test]
fn a_command_starts_inside_its_group_with_its_directory_and_environment() {
    let dir = tempfile::tempdir().unwrap();
    for means in all_means() {
        let mut application =
            Supervisor::new(&unique("start", means), hierarchy(means).as_ref(), helper_command()).unwrap();
        let out = dir.path().join(means);
        let command = StartCommand {
            argv: ["/bin/sh", "-c", "pwd >$OUT; cat /proc/self/cgroup >>$OUT"].map(OsString::from).to_vec(),
            env: vec![("OUT".into(), out.clone().into())],
            directory: Some(PathBuf::from("/usr")),
            ..StartCommand::default()
        };
        let mut started = application.start(&command).unwrap();
        assert_eq!(started.wait().unwrap(), Exit::Clean);
        let said = std::fs::read_to_string(out).unwrap();
        assert!(said.starts_with("/usr\n"), "{said}");
        assert!(means == "signals" || said.contains(&unique("start", means)), "{said}");
    }
}

#[test]
fn what_the_loader_obeys_reaches_the_application_and_not_the_helper_that_becomes_it() {
    let dir = tempfile::tempdir().unwrap();
    for means in all_means() {
        let [by_helper, by_application] =
            ["helper", "application"].map(|who| dir.path().join(format!("{means}-{who}")));
        let helper = helper_that(&format!("echo \"$LD_TEST\" >>{}", by_helper.display()));
        let mut application =
            Supervisor::new(&unique("loader", means), hierarchy(means).as_ref(), helper).unwrap();
        let command = StartCommand {
            argv: ["/bin/sh", "-c", "echo \"$LD_TEST $(env | grep -c ^PMEMHA_KEPT)\" >$OUT"]
                .map(OsString::from)
                .to_vec(),
            env: vec![
                ("OUT".into(), by_application.clone().into()),
                ("LD_TEST".into(), "for the program".into()),
            ],
            ..StartCommand::default()
        };
        assert_eq!(application.start(&command).unwrap().wait().unwrap(), Exit::Clean);
        assert_eq!(std::fs::read_to_string(by_application).unwrap().trim(), "for the program 0", "{means}");
        assert_eq!(std::fs::read_to_string(by_helper).unwrap().trim(), "", "{means}");
    }
}
