//! Supervision of a group's application: started, frozen, thawed, stopped, its end noticed.
//!
//! What it promises: after [`Supervisor::freeze`] returned `Ok` no process of the application executes an
//! instruction until [`Supervisor::thaw`]; an agent that dies before [`Supervisor::hold_frozen`] leaves a running
//! application behind, one that dies after it a frozen one. `agent::application` uses it.

mod cgroup;
mod signals;
mod start;
mod watchdog;

use std::path::PathBuf;
use std::time::Instant;

pub use cgroup::{Hierarchy, hierarchies};
pub use start::{Exit, ExitWatch, StartCommand, Started, exec_in};
pub use watchdog::{Helper, watch};

use cgroup::Cgroup;
use signals::Tree;
use watchdog::Watchdog;

/// Why supervision failed.
#[derive(Debug, thiserror::Error)]
pub enum SuperviseError {
    /// The system refused.
    #[error("{what}: {source}")]
    System {
        /// What was attempted, on what.
        what: String,
        /// Its answer.
        source: std::io::Error,
    },
    /// Not frozen in time.
    #[error("{name}: not frozen by the deadline (processes {pids:?}); kill or thaw it")]
    Deadline {
        /// The application.
        name: String,
        /// Its processes.
        pids: Vec<u32>,
    },
    /// Processes may write to its log, and nothing may be done to them.
    #[error(
        "{name}: processes {pids:?} have its log mapped and are not known to be its own: end them, or name their users in `users`; \
         until then it is not at rest"
    )]
    Strangers {
        /// The application.
        name: String,
        /// The processes.
        pids: Vec<u32>,
    },
    /// Processes of the application were not killed.
    #[error(
        "{name}: processes {pids:?} of it could not be taken in and were not killed: end them; until then it has not ended"
    )]
    Escaped {
        /// The application.
        name: String,
        /// Its processes.
        pids: Vec<u32>,
    },
    /// Processes were left after killing.
    #[error("{name}: processes {pids:?} do not end although killed; they may wait for a device")]
    Undying {
        /// The application.
        name: String,
        /// Its processes.
        pids: Vec<u32>,
    },
    /// A name that cannot be a directory's.
    #[error("{0:?} cannot name a control group: use letters, digits, '-', '_' and '.'")]
    Name(String),
}

impl SuperviseError {
    fn system(what: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        Self::System { what: what.into(), source: source.into() }
    }
}

/// What stops the processes of an application.
#[derive(Debug)]
enum Means {
    Cgroup(Cgroup),
    Tree(Tree),
}

/// Starts, freezes, thaws and ends the processes of an application, which are in a control group of their own, or a tree of
/// processes where there is none. Used by one thread at a time.
#[derive(Debug)]
pub struct Supervisor {
    name: String,
    means: Means,
    watchdog: Watchdog,
}

impl Supervisor {
    /// Supervises an application called `name`: in a control group below `hierarchy`, else by signals to the
    /// processes that are [added](Self::add) and their descendants. `helper` starts this program's watchdog.
    pub fn new(name: &str, hierarchy: Option<&Hierarchy>, helper: Helper) -> Result<Self, SuperviseError> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty() || name.starts_with('.') || !name.chars().all(plain) {
            return Err(SuperviseError::Name(name.into()));
        }
        let means = match hierarchy {
            Some(hierarchy) => Means::Cgroup(Cgroup::create(hierarchy, name)?),
            None => Means::Tree(Tree::default()),
        };
        let watchdog = Watchdog::start(helper, &means)?;
        Ok(Self { name: name.into(), means, watchdog })
    }

    /// Takes in a process that runs already. Its present children are moved only if it is a tree.
    pub fn add(&mut self, pid: u32) -> Result<(), SuperviseError> {
        match &mut self.means {
            Means::Cgroup(cgroup) => cgroup.add(pid),
            Means::Tree(tree) => {
                tree.add(pid);
                self.watchdog.tell(&format!("pid {pid}"))
            }
        }
    }

    /// Takes in processes that an agent before us supervised; whether all of them are frozen. One that it had not taken in
    /// yet runs.
    pub fn found(&mut self, pids: &[u32]) -> Result<bool, SuperviseError> {
        // Looked at first: joining a frozen control group freezes.
        let frozen = match &self.means {
            Means::Cgroup(cgroup) => {
                let members = cgroup.members()?;
                cgroup.is_frozen()? && pids.iter().all(|pid| members.contains(pid))
            }
            Means::Tree(_) => true,
        };
        pids.iter().try_for_each(|pid| self.add(*pid))?;
        Ok(frozen && self.is_frozen()?)
    }

    /// Starts `command` as a part of the application: it is inside before its first instruction.
    pub fn start(&mut self, command: &StartCommand) -> Result<Started, SuperviseError> {
        let started = command.spawn(self.watchdog.helper(), self.procs_file())?;
        if matches!(self.means, Means::Tree(_)) {
            self.add(started.pid())?;
        }
        Ok(started)
    }

    /// The file that a process's pid is written to in order to join.
    pub fn procs_file(&self) -> Option<PathBuf> {
        match &self.means {
            Means::Cgroup(cgroup) => Some(cgroup.procs_file()),
            Means::Tree(_) => None,
        }
    }

    /// `cgroup2`, `cgroup1`, `signals`: for status.
    pub fn means(&self) -> &'static str {
        match &self.means {
            Means::Cgroup(cgroup) => cgroup.kind(),
            Means::Tree(_) => "signals",
        }
    }

    /// Whether everything is frozen, as an agent finds it after a restart.
    pub fn is_frozen(&self) -> Result<bool, SuperviseError> {
        match &self.means {
            Means::Cgroup(cgroup) => cgroup.is_frozen(),
            Means::Tree(tree) => Ok(tree.is_stopped()),
        }
    }

    /// Stops every process from executing. On an error some may still run: kill them, or thaw.
    pub fn freeze(&mut self, deadline: Instant) -> Result<(), SuperviseError> {
        // First the watchdog: a death of ours in the middle of freezing must thaw, too.
        self.watchdog.arm(&self.means)?;
        let frozen = match &mut self.means {
            Means::Cgroup(cgroup) => cgroup.freeze(deadline)?,
            Means::Tree(tree) => tree.stop(deadline)?,
        };
        if frozen {
            return Ok(());
        }
        Err(SuperviseError::Deadline { name: self.name.clone(), pids: self.members()? })
    }

    /// Undoes a freeze, also one that failed half-way.
    pub fn thaw(&mut self) -> Result<(), SuperviseError> {
        match &mut self.means {
            Means::Cgroup(cgroup) => cgroup.thaw()?,
            Means::Tree(tree) => tree.resume()?,
        }
        self.watchdog.tell_if_it_lives("idle")
    }

    /// From here on the death of the agent leaves the application frozen.
    pub fn hold_frozen(&mut self) -> Result<(), SuperviseError> {
        self.watchdog.tell_if_it_lives("held")
    }

    /// Kills every process, frozen or not.
    pub fn kill(&mut self) -> Result<(), SuperviseError> {
        let deadline = Instant::now() + KILL_PATIENCE;
        while Instant::now() < deadline {
            match &mut self.means {
                Means::Cgroup(cgroup) => cgroup.kill()?,
                Means::Tree(tree) => tree.kill()?,
            }
            // Again after a while: a process may have forked between listing and killing.
            if self.wait_empty(deadline.min(Instant::now() + KILL_PATIENCE / 10))? {
                // Nothing is left to thaw. A watchdog that is dead is replaced at the next freeze.
                _ = self.watchdog.tell("idle");
                return Ok(());
            }
        }
        match self.members()? {
            pids if pids.is_empty() => Ok(()),
            pids => Err(SuperviseError::Undying { name: self.name.clone(), pids }),
        }
    }

    /// Processes that exist, by pid.
    pub fn members(&self) -> Result<Vec<u32>, SuperviseError> {
        match &self.means {
            Means::Cgroup(cgroup) => cgroup.members(),
            Means::Tree(tree) => Ok(tree.members()),
        }
    }

    fn wait_empty(&self, deadline: Instant) -> Result<bool, SuperviseError> {
        loop {
            let members = self.members()?;
            let Some(&first) = members.first() else { return Ok(true) };
            if Instant::now() >= deadline {
                return Ok(false);
            }
            match ExitWatch::open(first)? {
                Some(watch) if !watch.wait(deadline)? => return Ok(false),
                // A zombie that its parent has not reaped counts as gone for the tree, not for a control group.
                _ => std::thread::sleep(signals::RESCAN),
            }
        }
    }
}

/// How long killed processes may take to end before we say so: an exit of a process with gigabytes of shared
/// memory takes a few hundred milliseconds.
const KILL_PATIENCE: std::time::Duration = std::time::Duration::from_secs(5);
