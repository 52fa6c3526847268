//! Processes by signals: the way to freeze where no control group can be had.
//!
//! Weaker than a control group: a process whose parent has ended before it was first seen is missed, and anybody may send
//! SIGCONT. Status says so.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

use super::SuperviseError;
use crate::log::stat_field;
use crate::threads;

/// Pause between two readings of the process table.
pub(super) const RESCAN: Duration = Duration::from_millis(1);

/// A tree of processes.
#[derive(Debug, Default)]
pub(super) struct Tree {
    /// Every process ever seen to belong to it and not yet seen dead.
    known: BTreeSet<u32>,
}

impl Tree {
    pub fn add(&mut self, pid: u32) {
        self.known.insert(pid);
    }

    /// Stops all; false when some still run at the deadline. A fork that races with it is found by the next
    /// reading, since its parent is stopped by then.
    pub fn stop(&mut self, deadline: Instant) -> Result<bool, SuperviseError> {
        loop {
            self.extend(&parents());
            let running: Vec<u32> =
                self.known.iter().copied().filter(|pid| threads::any_runs(*pid)).collect();
            if running.is_empty() {
                return Ok(true);
            }
            for pid in running {
                send(pid, Signal::STOP)?;
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            std::thread::sleep(RESCAN);
        }
    }

    pub fn resume(&mut self) -> Result<(), SuperviseError> {
        self.extend(&parents());
        self.known.iter().try_for_each(|&pid| send(pid, Signal::CONT))
    }

    pub fn kill(&mut self) -> Result<(), SuperviseError> {
        self.extend(&parents());
        self.known.iter().try_for_each(|&pid| send(pid, Signal::KILL))
    }

    pub fn members(&self) -> Vec<u32> {
        let mut tree = Tree { known: self.known.clone() };
        tree.extend(&parents());
        tree.known.into_iter().filter(|pid| threads::any_lives(*pid)).collect()
    }

    pub fn is_stopped(&self) -> bool {
        let members = self.members();
        !members.is_empty() && !members.iter().any(|pid| threads::any_runs(*pid))
    }

    fn extend(&mut self, table: &BTreeMap<u32, u32>) {
        self.known.retain(|pid| table.contains_key(pid));
        loop {
            let before = self.known.len();
            self.known.extend(
                table
                    .iter()
                    .filter(|(_, parent)| self.known.contains(parent))
                    .map(|(&pid, _)| pid)
                    .collect::<Vec<_>>(),
            );
            if self.known.len() == before {
                return;
            }
        }
    }
}

/// The parent of every process.
fn parents() -> BTreeMap<u32, u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return BTreeMap::new() };
    let pids = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| Some((pid, stat_field(pid, 4)?))).collect()
}

/// Sends a signal; a process that is gone has got it.
pub(super) fn send(pid: u32, signal: Signal) -> Result<(), SuperviseError> {
    let Some(target) = Pid::from_raw(pid as i32) else { return Ok(()) };
    match kill_process(target, signal) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(e) => Err(SuperviseError::system(format!("sending {signal:?} to process {pid}"), e)),
    }
}
