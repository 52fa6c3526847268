//! A group of threads: its load, what it waits, where it may run and what must be kept when it is moved.
//!
//! A group is a control group with a cpuset of its own, or the threads of some processes. The figures come from `cpu.stat` and
//! `cpu.pressure` where there are such, else from the threads' `schedstat`, which tells both.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::topology::Topology;
use super::{Roots, number};
use crate::node::placement::cpus::{self, CpuSet};
use crate::node::placement::policy::model::{Limits, PackageSet};

/// What makes up a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Members {
    /// The control group in this directory, of version 2 or of the cpuset hierarchy of version 1: moved by its `cpuset.cpus`.
    Cgroup(PathBuf),
    /// The threads of the processes that this file lists, as `cgroup.procs` does: moved one by one.
    Listed(PathBuf),
    /// The threads of a process whose names begin so; all if that is empty.
    Threads {
        /// The process.
        pid: u32,
        /// How their names begin.
        prefix: String,
    },
}

/// A group by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// What makes it up.
    pub members: Members,
}

/// Seconds since whatever start: differences count.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Processor time.
    pub busy: f64,
    /// Time in which something waited for a processor; none where nothing tells.
    pub waited: Option<f64>,
}

/// Most threads of a group that are looked at one by one.
pub const MAX_THREADS: usize = 4096;

impl Group {
    /// Its threads: process and thread.
    pub fn threads(&self, roots: &Roots) -> Vec<(u32, u32)> {
        let (pids, prefix) = match &self.members {
            Members::Cgroup(dir) => (listed(&dir.join("cgroup.procs")), ""),
            Members::Listed(file) => (listed(file), ""),
            Members::Threads { pid, prefix } => (vec![*pid], prefix.as_str()),
        };
        let of = |pid: u32| {
            let entries =
                fs::read_dir(roots.proc.join(format!("{pid}/task"))).into_iter().flatten().flatten();
            entries.filter_map(move |entry| Some((pid, entry.file_name().to_str()?.parse::<u32>().ok()?)))
        };
        let named = |&(pid, tid): &(u32, u32)| {
            prefix.is_empty()
                || fs::read_to_string(roots.proc.join(format!("{pid}/task/{tid}/comm")))
                    .is_ok_and(|name| name.starts_with(prefix))
        };
        pids.into_iter().flat_map(of).filter(named).take(MAX_THREADS).collect()
    }

    /// What it has used so far; none if it is not there.
    pub fn usage(&self, roots: &Roots) -> Option<Usage> {
        if let Members::Cgroup(dir) = &self.members {
            if !dir.is_dir() {
                return None;
            }
            let stat = fs::read_to_string(dir.join("cpu.stat")).unwrap_or_default();
            let usage =
                stat.lines().find_map(|line| line.strip_prefix("usage_usec ")?.trim().parse::<f64>().ok());
            if let Some(usage) = usage {
                let pressure = fs::read_to_string(dir.join("cpu.pressure")).ok();
                let waited = pressure.and_then(|text| pressure_total(&text));
                return Some(Usage { busy: usage * 1e-6, waited });
            }
        }
        let threads = self.threads(roots);
        let stats = threads.iter().filter_map(|(pid, tid)| {
            let text = fs::read_to_string(roots.proc.join(format!("{pid}/task/{tid}/schedstat"))).ok()?;
            let mut words = text.split_whitespace().map(|word| word.parse::<f64>().ok());
            Some((words.next()??, words.next()??))
        });
        let sum = stats.fold((0.0, 0.0), |sum, (busy, waited)| (sum.0 + busy, sum.1 + waited));
        (!threads.is_empty()).then_some(Usage { busy: sum.0 * 1e-9, waited: Some(sum.1 * 1e-9) })
    }

    /// The processors that it may use now.
    pub fn cpus(&self, roots: &Roots) -> CpuSet {
        let list = |path: PathBuf| fs::read_to_string(path).ok().and_then(|text| cpus::parse(&text));
        match &self.members {
            Members::Cgroup(dir) => {
                let effective = ["cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"];
                effective
                    .iter()
                    .find_map(|file| list(dir.join(file)).filter(|cpus| !cpus.is_empty()))
                    .unwrap_or_default()
            }
            _ => self.threads(roots).iter().flat_map(|(pid, tid)| allowed(roots, *pid, *tid)).collect(),
        }
    }

    /// Whether its control group is frozen.
    pub fn is_frozen(&self) -> bool {
        let dir = match &self.members {
            Members::Cgroup(dir) => Some(dir.as_path()),
            Members::Listed(file) => file.parent(),
            Members::Threads { .. } => None,
        };
        let read = |file: &str| fs::read_to_string(dir?.join(file)).ok();
        read("cgroup.events").is_some_and(|text| text.lines().any(|line| line == "frozen 1"))
            || read("freezer.state").is_some_and(|text| text.trim() == "FROZEN")
    }

    /// The packages that memory of its processes is bound to, if these are fewer than all. `numa_maps` walks the page tables of a
    /// process: to be asked rarely.
    pub fn bound(&self, roots: &Roots, topology: &Topology) -> Option<PackageSet> {
        let mut pids: Vec<u32> = self.threads(roots).iter().map(|(pid, _)| *pid).collect();
        pids.dedup();
        let bound = pids.into_iter().take(MAX_POLICIES).filter_map(|pid| {
            let maps = fs::read_to_string(roots.proc.join(format!("{pid}/numa_maps"))).ok()?;
            bound(topology, &bound_nodes(&maps))
        });
        bound.reduce(|all, one| &all & &one)
    }

    /// What must be kept when it is moved. `memory`: what [`Group::bound`] has told.
    pub fn limits(&self, roots: &Roots, topology: &Topology, memory: Option<&PackageSet>) -> Limits {
        let threads = self.threads(roots);
        let mut limits = Limits::default();
        if let Members::Cgroup(dir) = &self.members {
            limits.fixed = exclusive(dir);
            let mems = fs::read_to_string(dir.join("cpuset.mems")).ok().and_then(|text| cpus::parse(&text));
            if let Some(nodes) = mems {
                limits.within = bound(topology, &nodes);
            }
        }
        let own = self.cpus(roots);
        for (pid, tid) in &threads {
            let cpus = allowed(roots, *pid, *tid);
            // A thread that may not go everywhere where its group may was put there by somebody.
            if !cpus.is_empty() && cpus.len() < own.len() && !own.is_subset(&cpus) {
                limits
                    .fixed
                    .get_or_insert_with(|| format!("thread {tid} is pinned to {}", cpus::format(&cpus)));
            }
        }
        if let Some(memory) = memory {
            limits.within = Some(match limits.within {
                Some(before) => &before & memory,
                None => memory.clone(),
            });
        }
        if limits.within.as_ref().is_some_and(PackageSet::is_empty) {
            limits.fixed.get_or_insert_with(|| "its memory is bound to several packages".into());
        }
        limits
    }
}

/// Processes of a group whose memory policies are looked at.
const MAX_POLICIES: usize = 16;

fn listed(file: &Path) -> Vec<u32> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().filter_map(|line| line.trim().parse().ok()).collect()
}

/// The processors that a thread may use, from its `status`.
fn allowed(roots: &Roots, pid: u32, tid: u32) -> CpuSet {
    let text = fs::read_to_string(roots.proc.join(format!("{pid}/task/{tid}/status"))).unwrap_or_default();
    let list = text.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    list.and_then(cpus::parse).unwrap_or_default()
}

/// `some avg10=0.00 avg60=0.00 avg300=0.00 total=123`, in seconds.
fn pressure_total(text: &str) -> Option<f64> {
    let some = text.lines().find(|line| line.starts_with("some "))?;
    let total = some.split_whitespace().find_map(|word| word.strip_prefix("total="))?;
    Some(total.parse::<f64>().ok()? * 1e-6)
}

fn exclusive(dir: &Path) -> Option<String> {
    let partition = fs::read_to_string(dir.join("cpuset.cpus.partition")).unwrap_or_default();
    let taken = partition.starts_with("root") || partition.starts_with("isolated");
    let exclusive = number::<u8>(&dir.join("cpuset.cpu_exclusive")) == Some(1);
    (taken || exclusive).then(|| "its cpuset is exclusive".into())
}

/// The packages that `nodes` are behind, if these are fewer than all.
fn bound(topology: &Topology, nodes: &CpuSet) -> Option<PackageSet> {
    let all: CpuSet = topology.packages.values().flat_map(|package| &package.nodes).copied().collect();
    (!nodes.is_empty() && !all.is_subset(nodes)).then(|| topology.packages_of_nodes(nodes))
}

/// Nodes that parts of a process's memory are bound to: `7f… bind:1 anon=…` in `numa_maps`, or `bind=static:1`.
fn bound_nodes(maps: &str) -> CpuSet {
    let policy = |line: &str| {
        let (mode, nodes) = line.split_whitespace().nth(1)?.split_once(':')?;
        let bind = mode == "bind" || mode.starts_with("bind=");
        bind.then(|| cpus::parse(nodes)).flatten()
    };
    maps.lines().filter_map(policy).flatten().collect()
}

/// Load in processors and share of time waited, of each group that both samples have.
pub fn between(
    before: &BTreeMap<String, Usage>,
    after: &BTreeMap<String, Usage>,
    seconds: f64,
) -> BTreeMap<String, (f64, Option<f64>)> {
    let used = |(name, after): (&String, &Usage)| {
        let before = before.get(name)?;
        let waited = before.waited.zip(after.waited).map(|(b, a)| ((a - b) / seconds).clamp(0.0, 1.0));
        Some((name.clone(), (((after.busy - before.busy) / seconds).max(0.0), waited)))
    };
    after.iter().filter_map(used).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::placement::monitor::topology::tests::machine;
    use crate::node::placement::policy::model::PackageId;

    /// A process with a thread for each of `allowed`.
    fn process(roots: &Roots, pid: u32, allowed: &[&str], maps: &str) {
        for (thread, cpus) in allowed.iter().enumerate() {
            let dir = roots.proc.join(format!("{pid}/task/{}", pid + thread as u32));
            fs::create_dir_all(&dir).unwrap();
            fs::write(dir.join("status"), format!("Name:\tx\nCpus_allowed_list:\t{cpus}\n")).unwrap();
            fs::write(dir.join("schedstat"), "1000000000 500000000 3\n").unwrap();
            fs::write(dir.join("comm"), format!("worker{thread}\n")).unwrap();
        }
        fs::write(roots.proc.join(format!("{pid}/numa_maps")), maps).unwrap();
    }

    fn cgroup(dir: &Path, files: &[(&str, &str)]) -> Group {
        fs::create_dir_all(dir).unwrap();
        files.iter().for_each(|(name, text)| fs::write(dir.join(name), text).unwrap());
        Group { name: "g".into(), members: Members::Cgroup(dir.into()) }
    }

    #[test]
    fn load_and_waiting_come_from_the_cgroup_or_from_its_threads() {
        let dir = tempfile::tempdir().unwrap();
        let roots = machine(dir.path(), &["0", "1"]);
        let group = cgroup(
            &dir.path().join("v2"),
            &[
                ("cpu.stat", "usage_usec 2500000\nuser_usec 1\n"),
                ("cpu.pressure", "some avg10=0 total=500000\nfull total=1\n"),
            ],
        );
        assert_eq!(group.usage(&roots), Some(Usage { busy: 2.5, waited: Some(0.5) }));
        process(&roots, 70, &["0-1", "0-1"], "");
        let group = cgroup(&dir.path().join("v1"), &[("cgroup.procs", "70\n"), ("cpuset.cpus", "0-1\n")]);
        assert_eq!(group.usage(&roots), Some(Usage { busy: 2.0, waited: Some(1.0) }));
        let one = Group { name: "t".into(), members: Members::Threads { pid: 70, prefix: "worker1".into() } };
        assert_eq!((one.threads(&roots), one.usage(&roots).unwrap().busy), (vec![(70, 71)], 1.0));
        let gone = Group { name: "x".into(), members: Members::Cgroup(dir.path().join("none")) };
        assert_eq!(gone.usage(&roots), None);
    }

    #[test]
    fn pinned_threads_exclusive_cpusets_and_bound_memory_are_limits() {
        let dir = tempfile::tempdir().unwrap();
        let roots = machine(dir.path(), &["0", "0", "1", "1"]);
        let topology = Topology::read(&roots).unwrap();
        let files = |procs: &'static str| {
            vec![("cgroup.procs", procs), ("cpuset.cpus", "0-3\n"), ("cpuset.mems", "0-1\n")]
        };
        process(&roots, 10, &["0-3", "2"], "");
        let pinned = cgroup(&dir.path().join("pinned"), &files("10\n")).limits(&roots, &topology, None);
        assert!(pinned.fixed.unwrap().contains("thread 11"));
        for policy in ["bind:1", "bind=static:1", "bind=relative:1"] {
            process(&roots, 20, &["0-3"], &format!("7f00 default anon=1\n7f01 {policy} anon=1\n"));
            let bound = cgroup(&dir.path().join("bound"), &files("20\n"));
            let memory = bound.bound(&roots, &topology);
            assert_eq!(memory, Some([PackageId(1)].into()), "{policy}");
            let limits = bound.limits(&roots, &topology, memory.as_ref());
            assert_eq!((limits.fixed, limits.within), (None, memory));
        }
        process(&roots, 30, &["0-3"], "");
        let free = cgroup(&dir.path().join("free"), &files("30\n"));
        assert_eq!(free.limits(&roots, &topology, free.bound(&roots, &topology).as_ref()), Limits::default());
        fs::write(dir.path().join("free/cpuset.cpu_exclusive"), "1\n").unwrap();
        assert!(free.limits(&roots, &topology, None).fixed.is_some());
        assert!(!free.is_frozen());
        fs::write(dir.path().join("free/cgroup.events"), "populated 1\nfrozen 1\n").unwrap();
        assert!(free.is_frozen());
    }
}
