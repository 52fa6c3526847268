//! The watchdog: a small process that thaws the application if the agent dies while it is frozen.
//!
//! It shares a pipe with the agent. A line sets its duty (`armed`, `held`, `idle`), the end of the pipe means that the
//! agent is gone. Lines and the end arrive in order, so an agent that wrote `held` and then died has been
//! understood: nothing needs an answer.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::cgroup::Cgroup;
use super::signals::Tree;
use super::{Means, SuperviseError};

/// How to run this program's helpers: a command to which `watchdog …` or `exec-in …` is appended, usually `pmemhad`.
#[derive(Clone, Debug)]
pub struct Helper {
    /// Program and leading arguments.
    pub argv: Vec<OsString>,
    /// A file that a watchdog holds a lock on while it lives. One of an agent that is gone may be about to thaw: it is
    /// waited for, so that nobody takes for frozen what is not going to stay so. None: nothing was there before.
    pub lock: Option<PathBuf>,
}

impl Helper {
    pub(super) fn command(&self) -> Command {
        let mut argv = self.argv.iter();
        let mut command = Command::new(argv.next().map_or(std::ffi::OsStr::new("pmemhad"), |p| p));
        command.args(argv);
        command
    }
}

#[derive(Debug)]
pub(super) struct Watchdog {
    helper: Helper,
    child: Child,
}

impl Watchdog {
    pub fn start(helper: Helper, means: &Means) -> Result<Self, SuperviseError> {
        let child = Self::spawn(&helper, means)?;
        Ok(Self { helper, child })
    }

    pub fn helper(&self) -> &Helper {
        &self.helper
    }

    /// From here on the agent's death thaws. Replaces a watchdog that somebody has killed.
    pub fn arm(&mut self, means: &Means) -> Result<(), SuperviseError> {
        if !matches!(self.child.try_wait(), Ok(None)) {
            self.child = Self::spawn(&self.helper, means)?;
        }
        self.tell("armed")
    }

    pub fn tell(&mut self, line: &str) -> Result<(), SuperviseError> {
        let Some(pipe) = &mut self.child.stdin else { return Ok(()) };
        pipe.write_all(format!("{line}\n").as_bytes())
            .map_err(|e| SuperviseError::system("telling the watchdog of a frozen application", e))
    }

    /// Calls it off its duty. One that is dead has none: nobody is left who would thaw, and the next freeze replaces it.
    pub fn tell_if_it_lives(&mut self, line: &str) -> Result<(), SuperviseError> {
        match self.tell(line) {
            Err(SuperviseError::System { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => {
                Ok(())
            }
            told => told,
        }
    }

    fn spawn(helper: &Helper, means: &Means) -> Result<Child, SuperviseError> {
        let mut command = helper.command();
        command.arg("watchdog");
        match means {
            Means::Cgroup(cgroup) => command.arg(cgroup.kind()).arg(cgroup.dir()),
            Means::Tree(_) => command.arg("signals").arg("-"),
        };
        // A group of its own: what ends the agent's group must not end this.
        // The lock goes with the descriptor that only the child keeps.
        let lock = helper.lock.as_deref().map(take_over).transpose()?;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(lock.map_or_else(Stdio::null, Stdio::from))
            .process_group(0)
            .spawn()
            .map_err(|e| SuperviseError::system(format!("starting the watchdog ({command:?})"), e))?;
        if let (Means::Tree(tree), Some(pipe)) = (means, &mut child.stdin) {
            for pid in tree.members() {
                writeln!(pipe, "pid {pid}").map_err(|e| SuperviseError::system("telling the watchdog", e))?;
            }
        }
        Ok(child)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        // The end of the pipe ends the child; waiting leaves no zombie.
        drop(self.child.stdin.take());
        if let Err(e) = self.child.wait() {
            tracing::warn!("waiting for the watchdog of a frozen application: {e}");
        }
    }
}

/// Locks `path` once no earlier watchdog holds it.
fn take_over(path: &Path) -> Result<File, SuperviseError> {
    let failed = |e: io::Error| {
        let what = "waiting for the watchdog of an earlier agent, which holds";
        SuperviseError::system(format!("{what} {}", path.display()), e)
    };
    let file = File::create(path).map_err(failed)?;
    let deadline = Instant::now() + EARLIER_ENDS_WITHIN;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => std::thread::sleep(LOOK),
            Err(e) => return Err(failed(e.into())),
        }
    }
}

/// A watchdog ends at once when its agent does; a machine that is busy may keep it from running.
const EARLIER_ENDS_WITHIN: Duration = Duration::from_secs(10);

/// How often an earlier watchdog is looked for.
const LOOK: Duration = Duration::from_millis(2);

/// What the process `HELPER watchdog KIND DIR` does with its standard input; returns when the agent is gone.
pub fn watch(kind: &str, dir: &Path, agent: impl BufRead) -> io::Result<()> {
    let mut armed = false;
    let mut tree = Tree::default();
    for line in agent.lines() {
        match line?.as_str() {
            "armed" => armed = true,
            "held" | "idle" => armed = false,
            other => {
                if let Some(pid) = other.strip_prefix("pid ").and_then(|p| p.parse().ok()) {
                    tree.add(pid);
                }
            }
        }
    }
    if !armed {
        return Ok(());
    }
    match kind {
        "signals" => tree.resume(),
        kind => Cgroup::existing(dir, kind == "cgroup2").thaw(),
    }
    .map_err(io::Error::other)
}
