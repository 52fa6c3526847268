use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;

use rustix::process::{Pid, Signal, kill_process};

use super::*;
use crate::agent::group::Crowd;
use crate::agent::ownership::Inbox;
use crate::failover::Round;
use crate::failover::supervise::{Helper, Hierarchy, hierarchies};
use crate::mounts;

/// Long enough for any step on a loaded machine; nothing waits this long when all is well.
const PATIENCE: Duration = Duration::from_secs(20);

/// Plays both helpers: the watchdog, which nobody needs here, and `exec-in PROCS USER -- CMD…`.
const HELPER: &str = r#"
    if [ "$1" = watchdog ]; then exec cat >/dev/null; fi
    echo $$ > "$2"; shift 4; exec "$@""#;

/// Whatever it sees is the application's.
struct Sees<F>(F);

impl<F: Fn() -> Present + Send> Look for Sees<F> {
    fn present(&self) -> Present {
        (self.0)()
    }

    fn everyone(&self, _: Instant) -> Crowd {
        Crowd { own: self.present().writers, ..Crowd::default() }
    }

    fn owns(&self, pid: u32) -> bool {
        self.present().writers.contains(&pid)
    }
}

fn nothing() -> Box<dyn Look> {
    Box::new(Sees(Present::default))
}

struct Bench {
    dir: tempfile::TempDir,
    inbox: Inbox,
}

impl Bench {
    fn new() -> Bench {
        Bench { dir: tempfile::tempdir().unwrap(), inbox: Inbox::new() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A shell with a child that runs until the file `end` exists; both leave their numbers. `then` is what the shell goes on with.
    fn start(&self, hierarchy: Option<&Hierarchy>, then: &str, look: Box<dyn Look>) -> Application {
        let script = format!(
            "(while [ -d \"$PWD\" ] && [ ! -e end ]; do sleep 0.01; done) & echo $! > child.new; mv child.new child; \
             echo $$ > main.new; mv main.new main; {then}"
        );
        let command = StartCommand {
            argv: ["/bin/sh", "-c", &script].map(Into::into).to_vec(),
            directory: Some(self.dir.path().into()),
            ..StartCommand::default()
        };
        self.application(hierarchy, Some(command), look)
    }

    fn application(
        &self,
        hierarchy: Option<&Hierarchy>,
        command: Option<StartCommand>,
        look: Box<dyn Look>,
    ) -> Application {
        let unit = format!("test{}", self.dir.path().file_name().unwrap().to_str().unwrap().replace('.', ""));
        let argv = ["/bin/sh", "-c", HELPER, "helper"].map(Into::into).to_vec();
        let means = Supervisor::new(&unit, hierarchy, Helper { argv, lock: None }).unwrap();
        Application::start("db", means, command, PATIENCE, None, look, self.hear()).unwrap()
    }

    fn hear(&self) -> Hear {
        let teller = self.inbox.teller();
        Arc::new(move |event| teller.tell(event))
    }

    fn number(&self, name: &str) -> u32 {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if let Some(pid) = number(&self.path(name)) {
                return pid;
            }
            thread::sleep(Duration::from_millis(2));
        }
        panic!("{name} has not started");
    }

    fn told(&self) -> Event {
        self.inbox.next(PATIENCE).expect("something is told")
    }
}

fn number(path: &Path) -> Option<u32> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// A control group where there is one, and the tree of processes, to which the group's log must name what it cannot see.
fn all_means() -> Vec<Option<Hierarchy>> {
    hierarchies(&mounts::read().unwrap()).into_iter().take(1).map(Some).chain([None]).collect()
}

fn alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

fn kill(pid: u32) {
    kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
}

/// The child may append; nothing is attached.
fn child_appends(bench: &Bench) -> Box<dyn Look> {
    let child = bench.path("child");
    Box::new(Sees(move || Present {
        attached: false,
        writers: number(&child).into_iter().filter(|pid| alive(*pid)).collect(),
        ..Present::default()
    }))
}

#[test]
fn a_command_that_is_killed_has_died_only_when_nothing_of_it_is_left() {
    for means in all_means() {
        let bench = Bench::new();
        let look = if means.is_some() { nothing() } else { child_appends(&bench) };
        let application = bench.start(means.as_ref(), "wait", look);
        application.order(Order::Start(application.ticket()));
        assert_eq!(bench.told(), Event::ApplicationStarted);
        let (main, child) = (bench.number("main"), bench.number("child"));
        kill(main);
        assert_eq!(bench.told(), Event::ApplicationDied);
        assert!(!alive(child), "{means:?}: a process goes on");
    }
}

/// A process that is a stranger at every other question: each time that it is to be taken in.
struct Elusive {
    pid: u32,
    is_own: AtomicBool,
}

impl Look for Elusive {
    fn present(&self) -> Present {
        Present::default()
    }

    fn everyone(&self, _: Instant) -> Crowd {
        Crowd { own: Some(self.pid).into_iter().filter(|pid| alive(*pid)).collect(), ..Crowd::default() }
    }

    fn owns(&self, _: u32) -> bool {
        self.is_own.fetch_xor(true, Ordering::Relaxed)
    }
}

#[test]
fn what_was_not_killed_has_not_ended() {
    for means in all_means() {
        let bench = Bench::new();
        let mut other = Command::new("sleep").arg("1000").spawn().unwrap();
        let application = bench.application(
            means.as_ref(),
            None,
            Box::new(Elusive { pid: other.id(), is_own: false.into() }),
        );
        application.order(Order::Kill);
        assert_eq!(bench.inbox.next(Duration::from_millis(300)), None, "{means:?}");
        other.kill().unwrap();
        assert_eq!(bench.told(), Event::ApplicationDied);
        other.wait().unwrap();
    }
}

#[test]
fn what_ran_before_a_start_ends_without_being_told() {
    for clean in [true, false] {
        let bench = Bench::new();
        let mut before = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = before.id();
        let look = Box::new(Sees(move || Present {
            writers: [pid].into_iter().filter(|pid| alive(*pid)).collect(),
            ..Present::default()
        }));
        let application = bench.start(None, "wait", look);
        application.order(Order::Start(application.ticket()));
        assert_eq!(bench.inbox.next(Duration::from_millis(300)), None, "two writers");
        // Of one that died the rest is killed.
        if clean {
            before.kill().unwrap();
        }
        application.order(Order::Over { clean });
        assert_eq!(bench.told(), Event::ApplicationStarted);
        assert!(!alive(pid));
        before.wait().unwrap();
        application.order(Order::Kill);
        assert_eq!(bench.told(), Event::ApplicationDied);
    }
}

#[test]
fn a_command_that_ends_cleanly_goes_on_in_what_it_leaves_behind() {
    for means in all_means() {
        let bench = Bench::new();
        let look = if means.is_some() { nothing() } else { child_appends(&bench) };
        let application = bench.start(means.as_ref(), "exit 0", look);
        application.order(Order::Start(application.ticket()));
        assert_eq!(bench.told(), Event::ApplicationStarted);
        let child = bench.number("child");
        assert_eq!(bench.inbox.next(Duration::from_millis(200)), None, "{means:?}");
        assert!(alive(child));
        fs::write(bench.path("end"), "").unwrap();
        assert_eq!(bench.told(), Event::ApplicationExited);
        assert!(!alive(child), "{means:?}: a process goes on");
    }
}

#[test]
fn an_application_that_nobody_is_attached_for_is_over_only_without_writers() {
    for clean in [true, false] {
        let bench = Bench::new();
        let mut other = Command::new("sleep").arg("1000").spawn().unwrap();
        fs::write(bench.path("child"), other.id().to_string()).unwrap();
        let application = bench.application(None, None, child_appends(&bench));
        application.order(Order::Over { clean });
        if clean {
            assert_eq!(bench.inbox.next(Duration::from_millis(200)), None);
            kill(other.id());
        }
        let end = if clean { Event::ApplicationExited } else { Event::ApplicationDied };
        assert_eq!(bench.told(), end);
        assert!(!alive(other.id()));
        other.wait().unwrap();
    }
}

#[test]
fn a_process_that_is_not_the_applications_any_more_is_neither_taken_in_nor_killed() {
    /// The number was the application's when it was looked at.
    struct Late(u32);
    impl Look for Late {
        fn present(&self) -> Present {
            Present { writers: vec![self.0], ..Present::default() }
        }
        fn everyone(&self, _: Instant) -> Crowd {
            Crowd { own: vec![self.0], ..Crowd::default() }
        }
        fn owns(&self, _: u32) -> bool {
            false
        }
    }
    for means in all_means() {
        let bench = Bench::new();
        let mut stranger = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = stranger.id();
        let application = bench.application(means.as_ref(), None, Box::new(Late(pid)));
        let (answer, life) = mpsc::channel();
        application.order(Order::Adopt(pid));
        application.order(Order::Found(vec![pid], answer));
        life.recv_timeout(PATIENCE).unwrap();
        application.order(Order::Kill);
        assert_eq!(bench.told(), Event::ApplicationDied);
        assert!(alive(pid), "{means:?}");
        stranger.kill().unwrap();
        stranger.wait().unwrap();
    }
}

#[test]
fn a_freeze_takes_in_who_is_outside_or_has_failed() {
    for means in all_means() {
        let bench = Bench::new();
        let mut worker = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = worker.id();
        let present = move || Present { attached: true, writers: vec![pid], ..Present::default() };
        let application = bench.application(means.as_ref(), None, Box::new(Sees(present)));
        application.order(Order::Freeze(round(), Halfway(Box::new(|| false))));
        assert_eq!(bench.told(), Event::FreezeDone { round: round() });
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let cgroup = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        assert!(if means.is_some() { cgroup.contains("/pmemha/test") } else { stat.contains(") T ") });
        application.order(Order::Kill);
        assert_eq!(bench.told(), Event::ApplicationDied);
        worker.wait().unwrap();
    }
    let Some(means) = all_means().remove(0) else { return };
    let bench = Bench::new();
    let present = || Present { attached: true, writers: vec![REFUSED], ..Present::default() };
    let application = bench.application(Some(&means), None, Box::new(Sees(present)));
    application.order(Order::Freeze(round(), Halfway(Box::new(|| false))));
    assert_eq!(bench.told(), Event::FreezeFailed { round: round() });
}

/// A process that the look knows as it is told to.
fn somebody() -> (std::process::Child, u32) {
    let process = Command::new("sleep").arg("1000").spawn().unwrap();
    let pid = process.id();
    (process, pid)
}

#[test]
fn who_is_nobodys_fails_a_freeze_and_holds_the_end_back() {
    /// A process that is not known to be the application's has the log mapped.
    struct Mapped(u32);
    impl Look for Mapped {
        fn present(&self) -> Present {
            Present::default()
        }
        fn everyone(&self, _: Instant) -> Crowd {
            Crowd {
                strangers: Some(self.0).into_iter().filter(|pid| alive(*pid)).collect(),
                ..Crowd::default()
            }
        }
        fn owns(&self, _: u32) -> bool {
            false
        }
    }
    for means in all_means() {
        let bench = Bench::new();
        let (mut stranger, pid) = somebody();
        let application = bench.application(means.as_ref(), None, Box::new(Mapped(pid)));
        application.order(Order::Freeze(round(), Halfway(Box::new(|| false))));
        assert_eq!(bench.told(), Event::FreezeFailed { round: round() });
        application.order(Order::Kill);
        assert_eq!(bench.inbox.next(Duration::from_millis(200)), None, "it may write");
        assert!(alive(pid), "{means:?}: nothing is done to it");
        stranger.kill().unwrap();
        assert_eq!(bench.told(), Event::ApplicationDied);
        stranger.wait().unwrap();
    }
}

#[test]
fn a_writer_that_may_not_be_touched_is_found_running_until_it_ends() {
    let bench = Bench::new();
    let (mut writer, pid) = somebody();
    let doubtful = move || Some(pid).into_iter().filter(|pid| alive(*pid)).collect();
    let present = move || Present { doubtful: doubtful(), ..Present::default() };
    let application = bench.application(None, None, Box::new(Sees(present)));
    let (answer, life) = mpsc::channel();
    application.order(Order::Found(vec![pid], answer));
    assert_eq!(life.recv_timeout(PATIENCE).unwrap(), Life::Running);
    assert_eq!(bench.inbox.next(Duration::from_millis(200)), None);
    writer.kill().unwrap();
    assert_eq!(bench.told(), Event::ApplicationDied);
    writer.wait().unwrap();
}

#[test]
fn what_is_started_after_nothing_was_frozen_runs() {
    for means in all_means() {
        let bench = Bench::new();
        let application = bench.start(means.as_ref(), "wait", nothing());
        application.order(Order::Freeze(round(), Halfway(Box::new(|| false))));
        assert_eq!(bench.told(), Event::FreezeDone { round: round() });
        application.order(Order::Start(application.ticket()));
        assert_eq!(bench.told(), Event::ApplicationStarted);
        bench.number("main");
        fs::write(bench.path("end"), "").unwrap();
        assert_eq!(bench.told(), Event::ApplicationExited);
    }
}

#[test]
fn whom_a_process_forked_before_it_attached_is_taken_in_with_it() {
    for means in all_means() {
        let bench = Bench::new();
        let script = "(sh -c 'echo $$ >worker.new; mv worker.new worker; exec sleep 1000' & wait) & wait";
        let mut command = Command::new("/bin/sh");
        let mut parent = command.args(["-c", script]).current_dir(bench.dir.path()).spawn().unwrap();
        let (worker, pid) = (bench.number("worker"), parent.id());
        let present = move || Present { attached: true, writers: vec![pid, worker], ..Present::default() };
        let application = bench.application(means.as_ref(), None, Box::new(Sees(present)));
        application.order(Order::Adopt(pid));
        let (done, adopted) = mpsc::channel();
        application.order(Order::Then(Deed(Box::new(move || done.send(()).unwrap()))));
        adopted.recv_timeout(PATIENCE).unwrap();
        let cgroup = fs::read_to_string(format!("/proc/{worker}/cgroup")).unwrap();
        assert!(means.is_none() || cgroup.contains("/pmemha/test"), "{cgroup}");
        application.order(Order::Kill);
        assert_eq!(bench.told(), Event::ApplicationDied);
        parent.wait().unwrap();
        assert!(!alive(worker));
    }
}

/// No control group takes it in: it is above all numbers of processes.
const REFUSED: u32 = i32::MAX as u32;

#[test]
fn a_new_agent_finds_what_has_started_and_never_attached() {
    let Some(means) = all_means().remove(0) else { return };
    let bench = Bench::new();
    let first = bench.start(Some(&means), "wait", nothing());
    first.order(Order::Start(first.ticket()));
    assert_eq!(bench.told(), Event::ApplicationStarted);
    let (main, child) = (bench.number("main"), bench.number("child"));
    for frozen in [false, true] {
        let next = bench.application(Some(&means), None, nothing());
        if frozen {
            first.order(Order::Freeze(round(), Halfway(Box::new(|| false))));
            assert_eq!(bench.told(), Event::FreezeDone { round: round() });
        }
        let (answer, life) = mpsc::channel();
        next.order(Order::Found(vec![], answer));
        let found = life.recv_timeout(PATIENCE).unwrap();
        assert_eq!(found, if frozen { Life::Frozen } else { Life::Running });
        if frozen {
            // The first one sees its command's end, this one that of what it found.
            drop(first);
            next.order(Order::Kill);
            assert_eq!(bench.told(), Event::ApplicationDied);
            assert!(!alive(main) && !alive(child));
            let (answer, life) = mpsc::channel();
            next.order(Order::Found(vec![], answer));
            assert_eq!(life.recv_timeout(PATIENCE).unwrap(), Life::Gone);
            return;
        }
    }
}

#[test]
fn a_start_that_a_freeze_overtook_waits_for_the_thaw() {
    for halted in [Order::Freeze(round(), Halfway(Box::new(|| false))), Order::Hold] {
        let bench = Bench::new();
        let application = bench.start(None, "wait", nothing());
        let ticket = application.ticket();
        let (what, frozen) = (halted.word(), matches!(halted, Order::Freeze(..)));
        application.order(halted);
        application.order(Order::Start(ticket));
        if frozen {
            assert_eq!(bench.told(), Event::FreezeDone { round: round() });
        }
        assert_eq!(bench.inbox.next(Duration::from_millis(200)), None, "{what}");
        application.order(Order::Thaw);
        assert_eq!(bench.told(), Event::ApplicationStarted, "{what}");
        fs::write(bench.path("end"), "").unwrap();
        assert_eq!(bench.told(), Event::ApplicationExited, "{what}");
    }
}

#[test]
fn a_start_that_a_kill_overtook_is_void() {
    let bench = Bench::new();
    let application = bench.start(None, "wait", nothing());
    let ticket = application.ticket();
    application.order(Order::Kill);
    assert_eq!(bench.told(), Event::ApplicationDied);
    application.order(Order::Start(ticket));
    application.order(Order::Thaw);
    assert_eq!(bench.inbox.next(Duration::from_millis(200)), None);
    application.order(Order::Start(application.ticket()));
    assert_eq!(bench.told(), Event::ApplicationStarted);
    fs::write(bench.path("end"), "").unwrap();
    assert_eq!(bench.told(), Event::ApplicationExited);
}

fn round() -> Round {
    Round { generation: crate::types::Generation(1), attempt: 1 }
}
