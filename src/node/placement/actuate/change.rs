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
        /// Its number.
        tid: u32,
        /// When it was started, in ticks since boot: numbers are used again.
        started: u64,
    },
}

impl Target {
    /// A living thread.
    pub fn thread(tid: u32) -> Option<Target> {
        Some(Target::Thread { tid, started: stat_field(tid, STARTED)? })
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
            Target::Thread { tid, started } => {
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

    /// Puts back what was there. One that is gone needs nothing; one that somebody else has changed since is left to them. Says what
    /// could not be done.
    pub fn undo(&self) -> Result<(), String> {
        match self.target.read() {
            Ok(now) if now == self.from => Ok(()),
            Ok(now) if now != self.to && now != self.was => Err(format!(
                "{} was changed by others to `{now}` and is left so; before pmemha it was `{}`",
                self.target, self.from
            )),
            Ok(_) => match self.target.write(&self.from) {
                Err(error) if !is_gone(&error) => {
                    Err(format!("{} cannot be set back to `{}`: {error}", self.target, self.from))
                }
                _ => Ok(()),
            },
            Err(error) if is_gone(&error) => Ok(()),
            Err(error) => Err(format!("{} cannot be read: {error}", self.target)),
        }
    }
}

/// Whether a target is not there any more.
pub(super) fn is_gone(error: &io::Error) -> bool {
    let ended = [rustix::io::Errno::SRCH, rustix::io::Errno::NODEV].map(rustix::io::Errno::raw_os_error);
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error().is_some_and(|errno| ended.contains(&errno))
}
