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
use change::{Change, Left, Target};
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
        let journal = Journal::open(&roots, path)?;
        let mut actuator = Actuator { roots, journal };
        let left = actuator.restore(&[])?;
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
            Members::Cgroup(dir) => self.change(&group.name, &[Target::File(dir.join("cpuset.cpus"))], &cpus),
            Members::Listed(_) | Members::Threads { .. } => self.place_threads(group, &cpus),
        }
    }

    /// A thread that a thread starts meanwhile inherits: looked for again until there is no new one.
    fn place_threads(&mut self, group: &Group, cpus: &CpuSet) -> Result<(), MoveError> {
        let mut done = BTreeSet::new();
        for _ in 0..ROUNDS {
            let threads = group.threads(&self.roots).into_iter();
            let new: Vec<(u32, u32)> = threads.filter(|thread| !done.contains(thread)).collect();
            if new.is_empty() {
                break;
            }
            let targets: Vec<Target> =
                new.iter().filter_map(|(pid, tid)| Target::thread(*pid, *tid)).collect();
            done.extend(new);
            self.change(&group.name, &targets, cpus)?;
        }
        Ok(())
    }

    /// Has the interrupts of a network adapter served by `packages` only; how many were moved. One that is served there already keeps
    /// its own processors, and one that the system keeps where it is stays there. Without another package nothing is to be done.
    pub fn place_interrupts(
        &mut self,
        device: &str,
        packages: &PackageSet,
        topology: &Topology,
    ) -> Result<usize, MoveError> {
        let cpus = topology.cpus(packages);
        if topology.packages.len() < 2 || cpus.is_empty() {
            return Ok(0);
        }
        let to = cpus::format(&cpus);
        let elsewhere = |irq: u32| {
            let target = Target::File(self.roots.proc.join(format!("irq/{irq}/smp_affinity_list")));
            let from = target.read().ok()?;
            let here = cpus::parse(&from).is_some_and(|now| !now.is_empty() && now.is_subset(&cpus));
            (!here).then(|| Change::new(target, from, to.clone()))
        };
        let changes: Vec<Change> = irq::of(&self.roots, device).into_iter().filter_map(elsewhere).collect();
        if changes.is_empty() {
            return Ok(0);
        }
        self.journal.note(&changes, &self.online())?;
        let written = |change: &&Change| {
            let result = change.target.write(&to);
            if let Err(error) = &result {
                tracing::debug!(device, target = %change.target, %error, "an interrupt stays where it is");
            }
            result.is_ok()
        };
        Ok(changes.iter().filter(written).count())
    }

    /// Has targets hold `cpus`. One that is gone by now is passed over.
    fn change(&mut self, group: &str, targets: &[Target], cpus: &CpuSet) -> Result<(), MoveError> {
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
            return Ok(());
        }
        self.journal.note(&changes, &self.online())?;
        for Change { target, .. } in &changes {
            match target.write(&to) {
                Err(error) if change::is_gone(&error) && targets.len() > 1 => {}
                Err(error) => return Err(refused(format!("writing {to} to {target}"), error)),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Undoes everything, the last change first. Says, a sentence each, what could not be; what the system refused stays in the journal.
    /// `groups`: whose threads may have been started since, and have inherited what was set.
    pub fn restore(&mut self, groups: &[Group]) -> Result<Vec<String>, JournalError> {
        let online = self.online();
        let (mut kept, mut why) = (Vec::new(), Vec::new());
        for change in self.journal.changes().iter().rev() {
            let Err(left) = change.undo(&online) else { continue };
            if matches!(left, Left::Failed(_)) {
                kept.push(change.clone());
            }
            why.push(left.into_text());
        }
        self.restore_inherited(groups, &online);
        kept.reverse();
        self.journal.keep(kept)?;
        Ok(why)
    }

    /// Sets back threads that were started since by threads that were moved: those of the same group or process with the mask that was
    /// set. Looked for again until there is none.
    fn restore_inherited(&self, groups: &[Group], online: &CpuSet) {
        let noted = self.journal.changes();
        let pids: BTreeSet<u32> = noted.iter().filter_map(|change| change.target.process()).collect();
        let process = |pid: &u32| Group {
            name: String::new(),
            members: Members::Threads { pid: *pid, prefix: String::new() },
        };
        let moved = groups.iter().filter(|group| !matches!(group.members, Members::Cgroup(_))).cloned();
        for group in moved.chain(pids.iter().map(process)) {
            for _ in 0..ROUNDS {
                if !inherited(&group.threads(&self.roots), noted, online) {
                    break;
                }
            }
        }
    }

    /// Processors that are online; empty where that cannot be read.
    fn online(&self) -> CpuSet {
        let text = fs::read_to_string(self.roots.sys.join("devices/system/cpu/online")).unwrap_or_default();
        cpus::parse(&text).unwrap_or_default()
    }
}

/// Sets back those of `threads` that are not noted and have the mask that was set for noted ones; whether there was any.
fn inherited(threads: &[(u32, u32)], noted: &[Change], online: &CpuSet) -> bool {
    // A number may be another process's by now: a noted thread of it must still live.
    let theirs = |change: &&Change| {
        change.target.process().is_some_and(|pid| threads.iter().any(|(of, _)| *of == pid))
            && change.from != change.to
            && change.target.is_there()
    };
    let Some(change) = noted.iter().find(theirs) else { return false };
    let is_noted = |thread: &Target| noted.iter().any(|change| change.target == *thread);
    let new = threads.iter().filter_map(|(pid, tid)| Target::thread(*pid, *tid));
    let narrow = new.filter(|thread| {
        !is_noted(thread) && thread.read().is_ok_and(|now| cpus::same(&now, &change.to, online))
    });
    // One that ends meanwhile, or that the system keeps, is not looked for again.
    narrow.filter(|thread| thread.write(&change.from).is_ok()).count() > 0
}

/// Looks for threads that were started meanwhile.
const ROUNDS: usize = 16;

/// Writes a file of the kernel's in one piece.
pub(crate) fn write(path: &Path, text: &str) -> io::Result<()> {
    // An empty cpuset is written as an empty line: a write of no bytes does not reach the kernel.
    fs::write(path, if text.is_empty() { "\n" } else { text })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::placement::monitor::topology::tests::machine;
    use crate::node::placement::policy::model::PackageId;

    #[test]
    fn interrupts_go_only_where_there_is_a_choice_and_only_if_they_are_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        for (packages, moved) in [(["0", "0", "1", "1"], 2), (["1", "1", "1", "1"], 0)] {
            let root = dir.path().join(moved.to_string());
            let (roots, journal) = (machine(&root, &packages), root.join("journal"));
            let topology = Topology::read(&roots).unwrap();
            let affinity = |irq: &str| roots.proc.join(format!("irq/{irq}/smp_affinity_list"));
            let spread = [("40", "0"), ("41", "0-3"), ("42", "2"), ("43", "3")];
            for (irq, list) in spread {
                let msi = roots.sys.join("class/net/eth0/device/msi_irqs");
                fs::create_dir_all(&msi).unwrap();
                fs::write(msi.join(irq), "msix\n").unwrap();
                fs::create_dir_all(affinity(irq).parent().unwrap()).unwrap();
                fs::write(affinity(irq), list).unwrap();
            }
            let lists = || spread.map(|(irq, _)| fs::read_to_string(affinity(irq)).unwrap());
            let (mut actuator, _) = Actuator::open(roots.clone(), &journal).unwrap();
            let placed = actuator.place_interrupts("eth0", &[PackageId(1)].into(), &topology);
            assert_eq!((placed.unwrap(), journal.exists()), (moved, moved > 0));
            assert_eq!(lists(), if moved > 0 { ["2-3", "2-3", "2", "3"] } else { ["0", "0-3", "2", "3"] });
            assert_eq!(actuator.restore(&[]).unwrap(), Vec::<String>::new());
            assert_eq!(lists(), spread.map(|(_, list)| list));
        }
    }

    #[test]
    fn what_the_system_refuses_to_set_back_stays_in_the_journal() {
        let dir = tempfile::tempdir().unwrap();
        let (roots, path) = (machine(dir.path(), &["0"]), dir.path().join("journal"));
        let tid = rustix::thread::gettid().as_raw_nonzero().get() as u32;
        let thread = Target::thread(std::process::id(), tid).unwrap();
        let now = thread.read().unwrap();
        // No machine has that processor.
        let wrong = Change::new(thread, "1023".into(), now.clone());
        let file = dir.path().join("cpuset");
        fs::write(&file, "7").unwrap();
        let theirs = Change::new(Target::File(file), "0".into(), "1".into());
        let (mut actuator, _) = Actuator::open(roots.clone(), &path).unwrap();
        actuator.journal.note(&[wrong.clone(), theirs], &CpuSet::new()).unwrap();
        assert_eq!(actuator.restore(&[]).unwrap().len(), 2);
        assert_eq!(Journal::open(&roots, &path).unwrap().changes(), [wrong]);
    }
}
