//! Carrying moves out, so that every change can be undone: on exit, and at the next start after a crash.
//!
//! | module | what it is for |
//! | --- | --- |
//! | [`change`] | one change: a cpuset, a thread's affinity, an interrupt's affinity |
//! | [`journal`] | what was changed, durable before the change |
//! | [`irq`] | the interrupts of a network adapter |

pub mod change;
pub mod irq;
pub mod journal;

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::Path;

use super::cpus::{self, CpuSet};
use super::monitor::Roots;
use super::monitor::group::{Group, Members};
use super::monitor::topology::Topology;
use super::policy::model::PackageSet;
use change::{Change, Target};
use journal::{Journal, JournalError};

/// Carries moves out and keeps the journal.
#[derive(Debug)]
pub struct Actuator {
    roots: Roots,
    journal: Journal,
}

/// Why a group could not be moved.
#[derive(Debug, thiserror::Error)]
pub enum MoveError {
    /// Nothing was changed, since it could not have been undone.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The system refused.
    #[error("`{group}` cannot be moved: {what}: {source}")]
    Refused {
        /// The group.
        group: String,
        /// What was attempted.
        what: String,
        /// Its answer.
        source: io::Error,
    },
    /// The group is on no processor of those packages.
    #[error("`{group}` cannot be moved: no processor of packages {packages:?} is online")]
    NoProcessor {
        /// The group.
        group: String,
        /// Where it was to go.
        packages: Vec<u32>,
    },
}

impl Actuator {
    /// Takes the journal at `path`, and undoes what an earlier agent has left in it. Says what could not be undone.
    pub fn open(roots: Roots, path: &Path) -> Result<(Actuator, Vec<String>), JournalError> {
        let journal = Journal::open(path)?;
        let mut actuator = Actuator { roots, journal };
        let left = actuator.restore()?;
        Ok((actuator, left))
    }

    /// Has a group run on `packages` only.
    pub fn place(
        &mut self,
        group: &Group,
        packages: &PackageSet,
        topology: &Topology,
    ) -> Result<(), MoveError> {
        let cpus = topology.cpus(packages);
        if cpus.is_empty() {
            let packages = packages.iter().map(|package| package.0).collect();
            return Err(MoveError::NoProcessor { group: group.name.clone(), packages });
        }
        match &group.members {
            Members::Cgroup(dir) => {
                self.change(&group.name, &[Target::File(dir.join("cpuset.cpus"))], &cpus).map(drop)
            }
            Members::Listed(_) | Members::Threads { .. } => self.place_threads(group, &cpus),
        }
    }

    /// A thread that a thread starts meanwhile inherits: looked for again until there is no new one.
    fn place_threads(&mut self, group: &Group, cpus: &CpuSet) -> Result<(), MoveError> {
        let mut done = BTreeSet::new();
        for _ in 0..ROUNDS {
            let threads = group.threads(&self.roots).into_iter().map(|(_, tid)| tid);
            let new: Vec<u32> = threads.filter(|tid| !done.contains(tid)).collect();
            if new.is_empty() {
                break;
            }
            let targets: Vec<Target> = new.iter().filter_map(|tid| Target::thread(*tid)).collect();
            done.extend(new);
            self.change(&group.name, &targets, cpus)?;
        }
        Ok(())
    }

    /// Has the interrupts of a network adapter served by `packages` only; how many were moved. One that the system keeps where it is
    /// stays there.
    pub fn place_interrupts(
        &mut self,
        device: &str,
        packages: &PackageSet,
        topology: &Topology,
    ) -> Result<usize, MoveError> {
        let cpus = topology.cpus(packages);
        let mut moved = 0;
        for irq in irq::of(&self.roots, device) {
            let target = Target::File(self.roots.proc.join(format!("irq/{irq}/smp_affinity_list")));
            match self.change(device, &[target], &cpus) {
                Ok(changed) => moved += changed,
                Err(MoveError::Refused { what, source, .. }) => {
                    tracing::debug!(device, irq, what, %source, "an interrupt stays where it is");
                }
                Err(other) => return Err(other),
            }
        }
        Ok(moved)
    }

    /// Has targets hold `cpus`; how many did not before. One that is gone by now is passed over.
    fn change(&mut self, group: &str, targets: &[Target], cpus: &CpuSet) -> Result<usize, MoveError> {
        let refused = |what: String, source| MoveError::Refused { group: group.to_owned(), what, source };
        let to = cpus::format(cpus);
        let mut changes = Vec::new();
        for target in targets {
            match target.read() {
                Ok(from) if from == to => {}
                Ok(from) => changes.push(Change::new(target.clone(), from, to.clone())),
                Err(error) if change::is_gone(&error) && targets.len() > 1 => {}
                Err(error) => return Err(refused(format!("reading {target}"), error)),
            }
        }
        if changes.is_empty() {
            return Ok(0);
        }
        self.journal.note(&changes)?;
        for Change { target, .. } in &changes {
            match target.write(&to) {
                Err(error) if change::is_gone(&error) && targets.len() > 1 => {}
                Err(error) => return Err(refused(format!("writing {to} to {target}"), error)),
                Ok(()) => {}
            }
        }
        Ok(changes.len())
    }

    /// Undoes everything, the last change first. Says, a sentence each, what could not be; the journal is empty then.
    pub fn restore(&mut self) -> Result<Vec<String>, JournalError> {
        let left = self.journal.changes().iter().rev().filter_map(|change| change.undo().err()).collect();
        self.journal.clear()?;
        Ok(left)
    }

    /// Undoes what `wanted` names.
    pub fn restore_some(&mut self, wanted: impl Fn(&Target) -> bool) -> Result<Vec<String>, JournalError> {
        let undone: Vec<Change> =
            self.journal.changes().iter().rev().filter(|change| wanted(&change.target)).cloned().collect();
        let left = undone.iter().filter_map(|change| change.undo().err()).collect();
        self.journal.forget(&undone)?;
        Ok(left)
    }

    /// What is changed at present.
    pub fn changes(&self) -> &[Change] {
        self.journal.changes()
    }
}

/// Looks for threads that were started meanwhile.
const ROUNDS: usize = 16;

/// Writes a file of the kernel's in one piece.
pub(crate) fn write(path: &Path, text: &str) -> io::Result<()> {
    // An empty cpuset is written as an empty line: a write of no bytes does not reach the kernel.
    fs::write(path, if text.is_empty() { "\n" } else { text })
}
