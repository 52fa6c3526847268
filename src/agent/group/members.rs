//! Which processes are the application's, by the kernel's word: nothing is done to any other.
//!
//! A log's cells name pids too, but the application writes them as it likes, and the agent may do more to a process than whoever
//! wrote there. Nor does it prove consent that a process has the log mapped: some map what is passed to them. One that has it
//! mapped and is nobody's is left alone, and counts as one that may write: while there is such a process, the application is
//! neither at rest nor gone.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Group;
use crate::log::mapped::{processes, user_of};
use crate::log::patient::{Question, ask_each};
use crate::log::stat_field;

/// Processes that have to do with a group's log; never the agent, or the first process of the machine.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Crowd {
    /// The application's ([`Group::owns`]).
    pub own: Vec<u32>,
    /// They may store to the log, and nothing says that they are the application's.
    pub strangers: Vec<u32>,
    /// They run as a user of the application's, and the kernel does not say in time what they have mapped.
    pub silent: Vec<u32>,
}

impl Crowd {
    /// Whether there is nobody.
    pub fn is_empty(&self) -> bool {
        self.lists().iter().all(|list| list.is_empty())
    }

    /// Everybody.
    pub fn all(&self) -> Vec<u32> {
        self.lists().concat()
    }

    /// Leaves out whom `keep` is false of.
    pub fn retain(&mut self, keep: impl Fn(u32) -> bool) {
        for list in [&mut self.own, &mut self.strangers, &mut self.silent] {
            list.retain(|pid| keep(*pid));
        }
    }

    /// Takes in what is seen of another log.
    pub fn extend(&mut self, other: Crowd) {
        self.own.extend(other.own);
        self.strangers.extend(other.strangers);
        self.silent.extend(other.silent);
    }

    fn lists(&self) -> [&[u32]; 3] {
        [&self.own, &self.strangers, &self.silent]
    }
}

impl Group {
    /// Whether process `pid` is the application's at this instant: it is attached; or it may store to the log, which it has
    /// mapped, and runs as a user of the application's or descends from an attached process.
    pub fn owns(&self, pid: u32) -> bool {
        self.crowd_of(&[pid], Instant::now() + SAID_WITHIN).own.contains(&pid)
    }

    /// Every process that has to do with the log and can be seen from here. Takes no lock that is held for long, and returns by
    /// `deadline`.
    pub fn everyone(&self, deadline: Instant) -> Crowd {
        let mut pids = self.roster.pids();
        pids.extend(processes());
        pids.sort_unstable();
        pids.dedup();
        self.crowd_of(&pids, deadline)
    }

    /// Those of `pids` that have to do with the log.
    pub(super) fn crowd_of(&self, pids: &[u32], deadline: Instant) -> Crowd {
        let (own, others): (Vec<u32>, Vec<u32>) = pids.iter().partition(|pid| self.roster.is_attached(**pid));
        let mut crowd = Crowd { own, ..Crowd::default() };
        let log_file = self.log_file;
        let question: Question<_> = Arc::new(move |pid| log_file.stored_to_by(pid));
        for (pid, user) in ask_each(&others, deadline, &question) {
            match user {
                Some(None) => {}
                // A child of the application's is its own whatever it has become.
                Some(Some(user)) if self.is_users(user) || self.descends(pid) => crowd.own.push(pid),
                Some(Some(_)) => crowd.strangers.push(pid),
                None if self.descends(pid) => crowd.own.push(pid),
                None if user_of(pid).is_some_and(|user| self.is_users(user)) => crowd.silent.push(pid),
                None => {}
            }
        }
        crowd.retain(|pid| !is_apart(pid));
        crowd
    }

    /// Whether the application runs as this user: the configuration names it, or a process has attached as it. That it may
    /// attach does not suffice: root may, whose processes have nothing to do with the group as a rule.
    fn is_users(&self, uid: u32) -> bool {
        self.access.is_member(uid, self.name()) || self.roster.has_run_as(uid)
    }

    /// Whether the process descends from an attached one. What this process has started is its own.
    fn descends(&self, pid: u32) -> bool {
        let up = |pid: &u32| stat_field(*pid, 4).filter(|up| *up > FIRST && *up != std::process::id());
        let ancestors = std::iter::successors(up(&pid), up);
        ancestors.take(DEEPEST).any(|ancestor| self.roster.is_attached(ancestor))
    }
}

/// Whether a process is none of any application, whatever it has mapped. A child of this one that has not yet become another
/// program has mapped what this one has.
fn is_apart(pid: u32) -> bool {
    let me = std::process::id();
    pid == FIRST || pid == me || (stat_field(pid, 4) == Some(me) && image(pid) == image(me))
}

/// The file that a process executes.
fn image(pid: u32) -> Option<(u64, u64)> {
    fs::metadata(format!("/proc/{pid}/exe")).map(|meta| (meta.dev(), meta.ino())).ok()
}

/// Everything is its child, and the machine ends with it.
const FIRST: u32 = 1;

/// Ancestors that are looked at.
const DEEPEST: usize = 64;

/// How long it may take to hear what a few processes have mapped: microseconds each, unless one does not answer.
pub(super) const SAID_WITHIN: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::super::tests::Bench;
    use super::*;
    use crate::agent::group::{Notice, Process};
    use std::io::{BufRead, BufReader};
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command, Stdio};

    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    /// Ends with the test.
    struct Running(Child);

    impl Drop for Running {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    impl Running {
        fn pid(&self) -> u32 {
            self.0.id()
        }

        /// It attaches, as user `uid`.
        fn attaches(&self, group: &Group, uid: u32) {
            let pidfd = pidfd_open(Pid::from_child(&self.0), PidfdFlags::empty()).unwrap();
            group.enters(Process {
                pid: Some(self.pid()),
                uid,
                program: "db".into(),
                tracks: None,
                indoors: None,
                pidfd: Some(Arc::new(pidfd)),
            });
        }
    }

    /// What a process does with the log on its standard input.
    const MAPS: &str = "m = mmap.mmap(0, 0)";
    const ONLY_READS: &str = "m = mmap.mmap(0, 0, prot=mmap.PROT_READ)";
    const COPIES: &str = "m = mmap.mmap(0, 0, flags=mmap.MAP_PRIVATE)";
    const NOTHING: &str = "pass";

    /// A process of user `uid` that has the log on its standard input, and does `what` with it.
    fn with_log(group: &Group, uid: u32, what: &str) -> Running {
        let script = format!(
            "import mmap, os, sys, time\n{what}\nprint('ready', os.getpid(), flush=True)\ntime.sleep(1000)"
        );
        let mut command = Command::new("python3");
        command.args(["-c", &script]).uid(uid).stdin(group.log_fd().try_clone_to_owned().unwrap());
        ready(&mut command).0
    }

    /// Starts a process that says when it is ready, and its number or its child's.
    fn ready(command: &mut Command) -> (Running, u32) {
        let mut child = Running(command.stdout(Stdio::piped()).spawn().unwrap());
        let mut line = String::new();
        BufReader::new(child.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let number = line.strip_prefix("ready ").expect("it is ready").trim().parse();
        (child, number.unwrap())
    }

    fn everyone(group: &Group) -> Crowd {
        group.everyone(Instant::now() + Duration::from_secs(20))
    }

    /// What the agent believes of a cell that names `pid`.
    fn believed(group: &Group, pid: u32) -> bool {
        group.log().forge_cell(pid, 99);
        let believed = group.appending().iter().any(|writer| writer.pid == Some(pid));
        assert_eq!(believed, group.owns(pid));
        believed
    }

    #[test]
    fn a_cell_is_believed_only_of_a_process_of_the_applications_users_that_can_store_to_the_log() {
        let bench = Bench::new();
        let (group, _notices) = bench.open(1);
        let attached = with_log(&group, 0, NOTHING);
        attached.attaches(&group, 0);
        let child = with_log(&group, 0, MAPS);
        assert!(everyone(&group).own.contains(&child.pid()), "also before it appends");
        assert!(believed(&group, child.pid()), "a fork's child, say");
        for passer_by in [NOTHING, ONLY_READS, COPIES] {
            let passer_by = with_log(&group, 0, passer_by);
            assert!(!believed(&group, passer_by.pid()), "it cannot store to the log");
        }
        let mut own = vec![attached.pid(), child.pid()];
        own.sort_unstable();
        assert_eq!(everyone(&group), Crowd { own, ..Crowd::default() });
    }

    #[test]
    fn who_maps_what_is_passed_to_it_is_left_alone_and_counts_as_one_that_may_write() {
        let bench = Bench::new();
        let (group, _notices) = bench.open(1);
        let program = with_log(&group, NOBODY, NOTHING);
        program.attaches(&group, NOBODY);
        let [roots, others] = [0, OTHER].map(|uid| with_log(&group, uid, MAPS));
        assert!(!believed(&group, roots.pid()), "root may attach, and never did");
        assert!(!believed(&group, others.pid()));
        let mut strangers = vec![roots.pid(), others.pid()];
        strangers.sort_unstable();
        assert_eq!(everyone(&group), Crowd { own: vec![program.pid()], strangers, ..Crowd::default() });
    }

    #[test]
    fn a_worker_that_has_changed_its_user_is_the_applications_like_its_parent() {
        let bench = Bench::new();
        let (group, _notices) = bench.open(1);
        let script = format!(
            "import mmap, os, time\nm = mmap.mmap(0, 0)\nif os.fork():\n  time.sleep(1000)\n\
             os.setuid({NOBODY})\nprint('ready', os.getpid(), flush=True)\ntime.sleep(1000)"
        );
        let mut command = Command::new("python3");
        command.args(["-c", &script]).stdin(group.log_fd().try_clone_to_owned().unwrap());
        let (server, worker) = ready(&mut command);
        assert_eq!(everyone(&group).strangers.len(), 2, "nobody knows them yet");
        server.attaches(&group, 0);
        assert!(believed(&group, worker));
        let crowd = everyone(&group);
        assert!(crowd.own.contains(&worker) && crowd.strangers.is_empty(), "{crowd:?}");
        let orphan = Pid::from_raw(worker as i32).unwrap();
        rustix::process::kill_process(orphan, rustix::process::Signal::KILL).unwrap();
    }

    #[test]
    fn an_agent_after_this_one_knows_the_users_that_attached() {
        let bench = Bench::new();
        let (group, _notices) = bench.open(1);
        with_log(&group, 0, NOTHING).attaches(&group, 0);
        let left = with_log(&group, 0, MAPS);
        drop(group);
        let (group, _notices) = bench.open(1);
        assert!(group.owns(left.pid()));
    }

    #[test]
    fn an_attached_process_is_believed_as_long_as_it_lives() {
        let bench = Bench::new();
        let (group, notices) = bench.open(1);
        let mut child = with_log(&group, NOBODY, NOTHING);
        child.attaches(&group, NOBODY);
        assert!(matches!(notices.recv().unwrap(), Notice::ProcessAttached { .. }));
        assert!(believed(&group, child.pid()));
        child.0.kill().unwrap();
        child.0.wait().unwrap();
        assert!(!group.owns(child.pid()), "another process may have its number");
    }

    #[test]
    fn who_is_attached_is_known_while_the_group_is_busy() {
        let bench = Bench::new();
        let (group, _notices) = bench.open(1);
        let child = with_log(&group, NOBODY, NOTHING);
        child.attaches(&group, NOBODY);
        // A file is being protected, say, whose entry is on its way to the disk.
        let _busy = group.lock();
        assert_eq!(everyone(&group).own, [child.pid()]);
        assert!(group.owns(child.pid()) && group.has_processes());
    }

    #[test]
    fn neither_the_agent_nor_its_children_nor_the_first_process_is_ever_the_applications() {
        let bench = Bench::new();
        let (group, _notices) = bench.open(1);
        // This process has the log mapped, as every agent.
        assert!(!believed(&group, std::process::id()));
        assert!(!believed(&group, 1) && is_apart(1));
        let mut command = Command::new(std::env::current_exe().unwrap());
        let itself = command.arg("--list").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let itself = Running(itself);
        assert!(is_apart(itself.pid()) || image(itself.pid()).is_none());
        let mut command = Command::new("/bin/sh");
        let (other, _) = ready(command.args(["-c", "echo ready $$; read end", "hold"]).stdin(Stdio::piped()));
        assert!(!is_apart(other.pid()), "whatever it calls itself");
    }

    /// Prints what a look at everybody takes, which is a part of every last gasp, among PMEMHA_CROWD more processes.
    #[test]
    fn a_crowd_that_maps_nothing_is_nobodys() {
        let crowd = std::env::var("PMEMHA_CROWD").map_or(8, |n| n.parse().unwrap());
        let bench = Bench::new();
        let (group, _notices) = bench.open(1);
        let _crowd: Vec<Running> = (0..crowd).map(|_| with_log(&group, 0, NOTHING)).collect();
        let mut took: Vec<Duration> = (0..21)
            .map(|_| {
                let began = Instant::now();
                assert_eq!(everyone(&group), Crowd::default());
                began.elapsed()
            })
            .collect();
        took.sort();
        println!("{} processes: {:?} median, {:?} most", processes().count(), took[10], took[20]);
    }

    const NOBODY: u32 = 65534;
    const OTHER: u32 = 65533;
}
