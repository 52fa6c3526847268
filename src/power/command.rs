//! Power as a command of the operator's says it: run again and again, each run with a deadline.
//!
//! A run that ends with status 0 and prints something is read as a watched [`mod@super::file`] is. One that prints nothing says by its
//! status: 0 there is power, 1 it is lost. Everything else is unknown: another status or a signal, output that is too long or means
//! nothing, a run past its deadline. Such a one is killed with its children, as is whatever a run leaves behind in its process group.

use std::io::{self, ErrorKind, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process_group, waitid};

use super::{PowerSource, PowerState, file};

/// Longest output, as a watched file's.
const MAX_OUTPUT: usize = 4096;

/// How often a run is looked at: at first, well below what it takes to start a program; then more and more seldom.
const LOOK: Duration = Duration::from_millis(1);
const LONGEST_LOOK: Duration = Duration::from_millis(50);

/// What is run, and when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandSetup {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Pause between the end of a run and the next.
    pub every: Duration,
    /// How long a run may take.
    pub deadline: Duration,
}

/// A command.
#[derive(Debug)]
pub struct CommandSource {
    setup: CommandSetup,
    name: String,
    /// Once it is set a run is killed, whatever its deadline.
    stop: Arc<AtomicBool>,
    due: Instant,
    said: PowerState,
}

impl CommandSource {
    /// Runs the command when it is first asked.
    pub fn new(setup: CommandSetup, stop: Arc<AtomicBool>) -> CommandSource {
        let name = format!("command {}", setup.command.first().map_or("", String::as_str));
        let now = Instant::now();
        CommandSource { setup, name, stop, due: now, said: PowerState::unknown("not run yet", now) }
    }

    fn run(&self) -> PowerState {
        let said = Run::start(&self.setup.command).and_then(|run| run.end(self.setup.deadline, &self.stop));
        let now = Instant::now();
        match said {
            Ok((status, output)) => meaning(status, &output, now),
            Err(error) => PowerState::unknown(error.to_string(), now),
        }
    }
}

impl PowerSource for CommandSource {
    fn name(&self) -> &str {
        &self.name
    }

    fn poll(&mut self) -> PowerState {
        if Instant::now() >= self.due {
            self.said = self.run();
            self.due = Instant::now() + self.setup.every;
        }
        self.said.clone()
    }

    fn wait(&mut self, timeout: Duration) -> PowerState {
        std::thread::sleep(timeout.min(self.due.saturating_duration_since(Instant::now())));
        self.poll()
    }
}

/// What a run says by its status and output. Pure.
fn meaning(status: ExitStatus, output: &[u8], now: Instant) -> PowerState {
    let unknown = |why: String| PowerState::unknown(why, now);
    let text = match str::from_utf8(output) {
        Ok(text) => text.trim(),
        Err(_) => return unknown("it printed what is no text".into()),
    };
    match (status.code(), text) {
        (Some(0), "") => PowerState { online: Some(true), ..PowerState::silent(now) },
        (Some(1), "") => PowerState { online: Some(false), ..PowerState::silent(now) },
        (Some(0), text) => file::parse(text, now).unwrap_or_else(|why| unknown(format!("its output: {why}"))),
        _ => unknown(format!("it ended with {status}")),
    }
}

/// Why a run says nothing.
#[derive(Debug, thiserror::Error)]
enum RunError {
    #[error("cannot be run: {0}")]
    System(#[from] io::Error),
    #[error("took longer than {0:?} and was killed")]
    Late(Duration),
    #[error("printed more than {MAX_OUTPUT} bytes and was killed")]
    TooMuch,
    #[error("the agent is ending")]
    Stopped,
}

/// One run; what is left of it and of its process group is killed when it is dropped.
struct Run {
    child: Child,
    pid: Pid,
    buried: bool,
}

impl Run {
    fn start(command: &[String]) -> Result<Run, RunError> {
        let (program, arguments) =
            command.split_first().ok_or_else(|| io::Error::other("no program is named"))?;
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .process_group(0)
            // That is the agent's.
            .env_remove("NOTIFY_SOCKET")
            .spawn()?;
        let pid = Pid::from_child(&child);
        Ok(Run { child, pid, buried: false })
    }

    /// Its status and what it printed by then.
    fn end(mut self, within: Duration, stop: &AtomicBool) -> Result<(ExitStatus, Vec<u8>), RunError> {
        let began = Instant::now();
        let mut stdout = self.child.stdout.take().ok_or_else(|| io::Error::other("no output"))?;
        let flags = fcntl_getfl(&stdout).map_err(io::Error::from)?;
        fcntl_setfl(&stdout, flags | OFlags::NONBLOCK).map_err(io::Error::from)?;
        let (mut output, mut look) = (Vec::new(), LOOK);
        loop {
            // Its end before its output: what it printed is in the pipe by then.
            let ended = self.has_ended()?;
            read_some(&mut stdout, &mut output)?;
            if ended {
                return Ok((self.bury()?, output));
            }
            if began.elapsed() >= within {
                return Err(RunError::Late(within));
            }
            if stop.load(Ordering::Acquire) {
                return Err(RunError::Stopped);
            }
            std::thread::sleep(look);
            look = LONGEST_LOOK.min(look * 2);
        }
    }
}

impl Run {
    /// Whether it has ended; it is not waited for.
    fn has_ended(&self) -> io::Result<bool> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        Ok(waitid(WaitId::Pid(self.pid), options)?.is_some())
    }

    /// Kills what is left and waits for the end of the run itself.
    fn bury(&mut self) -> io::Result<ExitStatus> {
        // Not waited for yet, so that its number, which is its group's, cannot be another's.
        let _ = kill_process_group(self.pid, Signal::KILL);
        self.buried = true;
        self.child.wait()
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        if !self.buried {
            let _ = self.bury();
        }
    }
}

/// Reads what is there.
fn read_some(from: &mut impl Read, output: &mut Vec<u8>) -> Result<(), RunError> {
    let mut bytes = [0; 1024];
    loop {
        match from.read(&mut bytes) {
            Ok(0) => return Ok(()),
            Ok(n) => output.extend_from_slice(&bytes[..n]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
        if output.len() > MAX_OUTPUT {
            return Err(RunError::TooMuch);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(script: &str, deadline: Duration) -> CommandSource {
        let command = ["/bin/sh", "-c", script].map(str::to_owned).to_vec();
        let setup = CommandSetup { command, every: Duration::ZERO, deadline };
        CommandSource::new(setup, Arc::default())
    }

    fn says(script: &str) -> PowerState {
        source(script, Duration::from_secs(20)).poll()
    }

    #[test]
    fn output_or_status_says_how_power_is() {
        let full = says("echo online=0; echo battery_runtime_s=30; echo battery_charge=0.5");
        assert_eq!(
            (full.online, full.runtime, full.charge),
            (Some(false), Some(Duration::from_secs(30)), Some(0.5))
        );
        assert_eq!(says("echo online").online, Some(true));
        assert_eq!(says("exit 0").online, Some(true));
        assert_eq!(says("exit 1").online, Some(false));
    }

    #[test]
    fn everything_else_is_unknown_and_says_why() {
        for (script, why) in [
            ("exit 2", "exit status: 2"),
            ("echo online; exit 1", "exit status: 1"),
            ("kill -9 $$", "signal: 9"),
            ("echo perhaps", "expected"),
            ("printf '\\377'", "no text"),
            ("head -c 5000 /dev/zero", "more than 4096"),
        ] {
            let state = says(script);
            assert!(state.online.is_none(), "{script}");
            let fault = state.fault.unwrap();
            assert!(fault.contains(why), "{script}: {fault}");
        }
        let none = CommandSetup {
            command: vec!["/does/not/exist".into()],
            every: Duration::ZERO,
            deadline: Duration::from_secs(1),
        };
        assert!(CommandSource::new(none, Arc::default()).poll().fault.unwrap().contains("cannot be run"));
    }

    /// Whether somebody still holds the file's lock.
    fn is_locked(path: &std::path::Path) -> bool {
        std::fs::File::open(path).unwrap().try_lock().is_err()
    }

    #[test]
    fn one_that_is_late_is_killed_with_its_children_and_so_is_what_a_run_leaves_behind() {
        let dir = tempfile::tempdir().unwrap();
        let lock = dir.path().join("lock");
        std::fs::write(&lock, "").unwrap();
        // A child holds the lock for as long as it lives; once it does, the script goes on.
        let child = format!("flock {0} sleep 1000 & while flock -n {0} true; do :; done; ", lock.display());
        let state = source(&format!("{child} sleep 1000"), Duration::from_secs(3)).poll();
        assert!(state.fault.unwrap().contains("killed"));
        wait_for(|| !is_locked(&lock));
        let state = says(&format!("{child} echo online"));
        assert_eq!(state.online, Some(true));
        wait_for(|| !is_locked(&lock));
    }

    #[test]
    fn an_agent_that_ends_waits_for_no_command() {
        let source = source("sleep 1000", Duration::from_secs(1000));
        source.stop.store(true, Ordering::Release);
        let state = { source }.poll();
        assert!(state.fault.unwrap().contains("ending"));
    }

    fn wait_for(done: impl Fn() -> bool) {
        let began = Instant::now();
        while !done() {
            assert!(began.elapsed() < Duration::from_secs(20), "a child lives on");
            std::thread::yield_now();
        }
    }
}
