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
            let table = processes();
            self.extend(&table);
            let running: Vec<u32> = self
                .known
                .iter()
                .copied()
                .filter(|pid| table.get(pid).is_some_and(|p| !p.halted()))
                .collect();
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
        self.extend(&processes());
        self.known.iter().try_for_each(|&pid| send(pid, Signal::CONT))
    }

    pub fn kill(&mut self) -> Result<(), SuperviseError> {
        self.extend(&processes());
        self.known.iter().try_for_each(|&pid| send(pid, Signal::KILL))
    }

    pub fn members(&self) -> Vec<u32> {
        let table = processes();
        let mut tree = Tree { known: self.known.clone() };
        tree.extend(&table);
        tree.known.into_iter().filter(|pid| table.get(pid).is_some_and(|p| p.state != 'Z')).collect()
    }

    pub fn is_stopped(&self) -> bool {
        let table = processes();
        let members = self.members();
        !members.is_empty() && members.iter().all(|pid| table.get(pid).is_none_or(Process::halted))
    }

    fn extend(&mut self, table: &BTreeMap<u32, Process>) {
        self.known.retain(|pid| table.contains_key(pid));
        loop {
            let before = self.known.len();
            self.known.extend(
                table
                    .iter()
                    .filter(|(_, p)| self.known.contains(&p.parent))
                    .map(|(&pid, _)| pid)
                    .collect::<Vec<_>>(),
            );
            if self.known.len() == before {
                return;
            }
        }
    }
}

struct Process {
    parent: u32,
    state: char,
}

impl Process {
    fn halted(&self) -> bool {
        matches!(self.state, 'T' | 't' | 'Z' | 'X')
    }
}

fn processes() -> BTreeMap<u32, Process> {
    let Ok(entries) = fs::read_dir("/proc") else { return BTreeMap::new() };
    let pids = entries.flatten().filter_map(|e| e.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| Some((pid, process(pid)?))).collect()
}

fn process(pid: u32) -> Option<Process> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in parentheses may hold anything; the fields follow its last one.
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    Some(Process { state: fields.next()?.chars().next()?, parent: fields.next()?.parse().ok()? })
}

/// Whether the process exists and is no zombie.
pub(super) fn alive(pid: u32) -> bool {
    process(pid).is_some_and(|p| !matches!(p.state, 'Z' | 'X'))
}

/// Sends a signal; a process that is gone has got it.
pub(super) fn send(pid: u32, signal: Signal) -> Result<(), SuperviseError> {
    let Some(target) = Pid::from_raw(pid as i32) else { return Ok(()) };
    match kill_process(target, signal) {
        Ok(()) | Err(Errno::SRCH) => Ok(()),
        Err(e) => Err(SuperviseError::system(format!("sending {signal:?} to process {pid}"), e)),
    }
}
