//! One change, and its undoing.

use std::fmt;
use std::fs;
use std::io;
use std::path::PathBuf;

use rustix::process::Pid;
use rustix::thread::{CpuSet as Mask, sched_getaffinity, sched_setaffinity};
use serde::{Deserialize, Serialize};

use super::write;
use crate::log::stat_field;
use crate::node::placement::cpus::{self, CpuSet};

/// What holds a set of processors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// A file with a list of them: a cpuset, or an interrupt's affinity.
    File(PathBuf),
    /// A thread's affinity.
    Thread {
        /// Its process.
        pid: u32,
        /// Its number.
        tid: u32,
        /// When it was started, in ticks since boot: numbers are used again.
        started: u64,
    },
}

impl Target {
    /// A living thread of a process.
    pub fn thread(pid: u32, tid: u32) -> Option<Target> {
        Some(Target::Thread { pid, tid, started: stat_field(tid, STARTED)? })
    }

    /// The process that a thread is of.
    pub fn process(&self) -> Option<u32> {
        match self {
            Target::File(_) => None,
            Target::Thread { pid, .. } => Some(*pid),
        }
    }

    /// Whether what was meant is still there.
    pub fn is_there(&self) -> bool {
        match self {
            Target::File(path) => path.exists(),
            Target::Thread { .. } => self.pid().is_ok(),
        }
    }

    /// What it holds, as a list.
    pub fn read(&self) -> io::Result<String> {
        match self {
            Target::File(path) => Ok(fs::read_to_string(path)?.trim().to_owned()),
            Target::Thread { .. } => {
                let mask = sched_getaffinity(Some(self.pid()?))?;
                let cpus: CpuSet =
                    (0..Mask::MAX_CPU).filter(|cpu| mask.is_set(*cpu)).map(|cpu| cpu as u32).collect();
                Ok(cpus::format(&cpus))
            }
        }
    }

    /// Has it hold `list`.
    pub fn write(&self, list: &str) -> io::Result<()> {
        match self {
            Target::File(path) => write(path, list),
            Target::Thread { .. } => {
                let cpus =
                    cpus::parse(list).ok_or_else(|| io::Error::other(format!("`{list}` is no list")))?;
                let mut mask = Mask::new();
                cpus.iter()
                    .filter(|cpu| (**cpu as usize) < Mask::MAX_CPU)
                    .for_each(|cpu| mask.set(*cpu as usize));
                Ok(sched_setaffinity(Some(self.pid()?), &mask)?)
            }
        }
    }

    /// Of the thread that was meant, if that still lives.
    fn pid(&self) -> io::Result<Pid> {
        let gone = || io::Error::from(rustix::io::Errno::SRCH);
        match self {
            Target::Thread { tid, started, .. } => {
                let same = stat_field(*tid, STARTED) == Some(*started);
                let pid = i32::try_from(*tid).ok().and_then(Pid::from_raw);
                pid.filter(|_| same).ok_or_else(gone)
            }
            Target::File(_) => Err(gone()),
        }
    }
}

/// The time of a thread's start in its `stat`.
const STARTED: usize = 22;

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::File(path) => path.display().fmt(f),
            Target::Thread { tid, .. } => write!(f, "the affinity of thread {tid}"),
        }
    }
}

/// A change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Of what.
    pub target: Target,
    /// What it held before pmemha first changed it.
    pub from: String,
    /// What it held when the last change was noted: a kill may have come before that was made.
    pub was: String,
    /// What pmemha last had it hold, or was about to.
    pub to: String,
}

impl Change {
    /// From what it holds now to something else.
    pub fn new(target: Target, from: String, to: String) -> Change {
        Change { target, was: from.clone(), from, to }
    }

    /// Puts back what was there. One that is gone needs nothing; one that somebody else has changed since is left to them.
    /// `online`: the processors that are, by which lists are compared; empty where that is not known.
    pub fn undo(&self, online: &CpuSet) -> Result<(), Left> {
        let now = match self.target.read() {
            Ok(now) => now,
            Err(error) if is_gone(&error) => return Ok(()),
            Err(error) => return Err(Left::Failed(format!("{} cannot be read: {error}", self.target))),
        };
        let is = |list: &str| cpus::same(&now, list, online);
        if now == self.from {
            Ok(())
        } else if is(&self.to) || is(&self.was) {
            match self.target.write(&self.from) {
                Err(error) if !is_gone(&error) => Err(Left::Failed(format!(
                    "{} cannot be set back to `{}`: {error}",
                    self.target, self.from
                ))),
                _ => Ok(()),
            }
        } else if is(&self.from) {
            Ok(())
        } else {
            Err(Left::Theirs(format!(
                "{} was changed by others to `{now}` and is left so; before pmemha it was `{}`",
                self.target, self.from
            )))
        }
    }
}

/// Why a change was not undone, in a sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Left {
    /// It is somebody else's now: for good.
    Theirs(String),
    /// The system refused: it may be tried again.
    Failed(String),
}

impl Left {
    /// The sentence.
    pub fn into_text(self) -> String {
        let (Left::Theirs(why) | Left::Failed(why)) = self;
        why
    }
}

/// Whether a target is not there any more.
pub(super) fn is_gone(error: &io::Error) -> bool {
    let ended = [rustix::io::Errno::SRCH, rustix::io::Errno::NODEV].map(rustix::io::Errno::raw_os_error);
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error().is_some_and(|errno| ended.contains(&errno))
}
