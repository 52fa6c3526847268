//! Which processes are the application's, by the kernel's word: nothing is done to any other.
//!
//! A log's cells name pids too, but the application writes them as it likes, and the agent may do more to a process than whoever
//! wrote there.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::Group;
use crate::log::mapped::lives;

impl Group {
    /// Whether process `pid` is the application's at this instant: it is attached, or has the log mapped and runs as a user that
    /// may attach. Never the agent, a keeper of logs, or the first process of the machine.
    pub fn owns(&self, pid: u32) -> bool {
        (self.is_attached(pid) || self.log_file.is_mapped_by(pid, &|uid| self.may_attach(uid)))
            && !is_apart(pid)
    }

    /// Every process that [`Group::owns`] is true of and that can be seen from here.
    pub fn everyone(&self) -> Vec<u32> {
        let attached: Vec<u32> = self.lock().processes.values().filter_map(|process| process.pid).collect();
        let mut all = self.log_file.mapped_by(&|uid| self.may_attach(uid));
        all.extend(attached.into_iter().filter(|pid| self.is_attached(*pid)));
        all.retain(|pid| !is_apart(*pid));
        all.sort_unstable();
        all.dedup();
        all
    }

    fn is_attached(&self, pid: u32) -> bool {
        let inner = self.lock();
        let mut of_it = inner.processes.values().filter(|process| process.pid == Some(pid));
        of_it.any(|process| process.pidfd.as_ref().is_some_and(|pidfd| lives(pidfd.as_fd())))
    }

    fn may_attach(&self, uid: u32) -> bool {
        self.access.may_attach(uid, self.name())
    }
}

/// Whether a process is none of any application, whatever it has mapped.
fn is_apart(pid: u32) -> bool {
    pid == FIRST || pid == std::process::id() || holds(pid, Path::new("/proc/self/exe"))
}

/// Whether a process runs `program` as `program hold`.
fn holds(pid: u32, program: &Path) -> bool {
    let image = |path: &Path| fs::metadata(path).map(|m| (m.dev(), m.ino())).ok();
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let word = arguments.split(|byte| *byte == 0).nth(1);
    word == Some(b"hold") && image(Path::new(&format!("/proc/{pid}/exe"))) == image(program)
}

/// Everything is its child, and the machine ends with it.
const FIRST: u32 = 1;

#[cfg(test)]
mod tests {
    use super::super::tests::Bench;
    use super::*;
    use crate::agent::group::{Notice, Process};
    use std::io::{BufRead, BufReader};
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command, Stdio};
    use std::sync::Arc;

    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    /// Ends with the test.
    struct Running(Child);

    impl Drop for Running {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    /// A process of user `uid` that has the log on its standard input, and has mapped it if so told.
    fn with_log(group: &Group, uid: u32, maps: bool) -> Running {
        let map = if maps { "m = mmap.mmap(0, 0)" } else { "" };
        let script = format!("import mmap, time\n{map}\nprint('ready', flush=True)\ntime.sleep(1000)");
        let mut command = Command::new("python3");
        command.args(["-c", &script]).uid(uid).stdin(group.log_fd().try_clone_to_owned().unwrap());
        ready(&mut command)
    }

    /// Starts a process that says when it is ready.
    fn ready(command: &mut Command) -> Running {
        let mut child = Running(command.stdout(Stdio::piped()).spawn().unwrap());
        let mut line = String::new();
        BufReader::new(child.0.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        child
    }

    /// What the agent believes of a cell that names `pid`.
    fn believed(group: &Group, pid: u32) -> bool {
        group.log().forge_cell(pid, 99);
        let believed = group.appending().iter().any(|writer| writer.pid == Some(pid));
        assert_eq!(believed, group.owns(pid));
        believed
    }

    #[test]
    fn a_cell_is_believed_only_of_a_process_that_may_write_to_the_log_and_can() {
        let bench = Bench::new();
        let (group, _notices) = bench.open(1);
        let child = with_log(&group, 0, true);
        let pid = child.0.id();
        assert!(group.everyone().contains(&pid), "also before it appends");
        assert!(believed(&group, pid), "a fork's child, say");
        let passer_by = with_log(&group, 0, false);
        assert!(!believed(&group, passer_by.0.id()), "it cannot write to the log");
        let foreign = with_log(&group, NOBODY, true);
        assert!(!believed(&group, foreign.0.id()), "its user may not attach");
        assert_eq!(group.everyone(), [pid]);
    }

    #[test]
    fn an_attached_process_is_believed_as_long_as_it_lives() {
        let bench = Bench::new();
        let (group, notices) = bench.open(1);
        let mut child = with_log(&group, NOBODY, false);
        let pid = child.0.id();
        let pidfd = pidfd_open(Pid::from_child(&child.0), PidfdFlags::empty()).unwrap();
        let program = "db".into();
        let uid = NOBODY;
        let pidfd = Some(Arc::new(pidfd));
        group.enters(Process { pid: Some(pid), uid, program, tracks: None, indoors: None, pidfd });
        assert!(matches!(notices.recv().unwrap(), Notice::ProcessAttached { .. }));
        assert!(believed(&group, pid));
        child.0.kill().unwrap();
        child.0.wait().unwrap();
        assert!(!group.owns(pid), "another process may have its number");
    }

    #[test]
    fn neither_the_agent_nor_a_keeper_nor_the_first_process_is_ever_the_applications() {
        let bench = Bench::new();
        let (group, _notices) = bench.open(1);
        // This process has the log mapped, as every agent.
        assert!(!believed(&group, std::process::id()));
        assert!(!believed(&group, 1) && is_apart(1));
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("hold"), "echo ready; read end").unwrap();
        let mut command = Command::new("/bin/sh");
        let holder = ready(command.arg("hold").current_dir(&dir).stdin(Stdio::piped()));
        assert!(holds(holder.0.id(), Path::new("/bin/sh")));
        assert!(!holds(holder.0.id(), Path::new("/bin/false")), "what the application calls so");
    }

    const NOBODY: u32 = 65534;
}
