//! Time in which all processors of a package idle for longer than a target residency: where no counter of the hardware tells, on
//! AMD and in virtual machines.
//!
//! From the kernel's trace event `power:cpu_idle`, read as text through a trace instance of our own in tracefs. It is no BPF program:
//! it needs no compiler and no library, costs a line of text for each time that a processor idles, and says the same.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::topology::Topology;
use crate::node::placement::policy::model::PackageId;

/// A processor went idle, or stopped to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change {
    /// Seconds on the trace's clock.
    pub at: f64,
    /// Which.
    pub cpu: u32,
    /// Whether it idles from here on.
    pub idle: bool,
}

/// `<idle>-0 [001] d..1. 123.456789: cpu_idle: state=1 cpu_id=1`; state 4294967295 is the end of idling.
pub fn parse(line: &str) -> Option<Change> {
    let (before, event) = line.split_once(": cpu_idle: ")?;
    let at = before.split_whitespace().next_back()?.parse().ok()?;
    let field = |name: &str| event.split_whitespace().find_map(|word| word.strip_prefix(name));
    let cpu = field("cpu_id=")?.parse().ok()?;
    let state: u32 = field("state=")?.parse().ok()?;
    Some(Change { at, cpu, idle: state != u32::MAX })
}

/// Adds up the time in which whole packages idle.
#[derive(Clone, Debug)]
pub struct Quiet {
    /// Shortest that counts, in seconds.
    residency: f64,
    /// Since when each processor idles; none while it does not. Absent: not known yet, which counts as not idle.
    idle: BTreeMap<u32, Option<f64>>,
    total: BTreeMap<PackageId, f64>,
    package_of: BTreeMap<u32, PackageId>,
    cpus: BTreeMap<PackageId, Vec<u32>>,
}

impl Quiet {
    /// Nothing seen yet.
    pub fn new(topology: &Topology, residency: f64) -> Quiet {
        let cpus: BTreeMap<PackageId, Vec<u32>> = topology
            .packages
            .iter()
            .map(|(id, package)| (*id, package.cpus.iter().copied().collect()))
            .collect();
        let package_of = cpus.iter().flat_map(|(id, cpus)| cpus.iter().map(|cpu| (*cpu, *id))).collect();
        let total = cpus.keys().map(|id| (*id, 0.0)).collect();
        Quiet { residency, idle: BTreeMap::new(), total, package_of, cpus }
    }

    /// Takes a change, in the order of their times.
    pub fn take(&mut self, change: Change) {
        let Some(package) = self.package_of.get(&change.cpu).copied() else { return };
        if !change.idle
            && let Some(since) = self.quiet_since(package)
        {
            let quiet = (change.at - since).max(0.0);
            if quiet >= self.residency {
                *self.total.entry(package).or_default() += quiet;
            }
        }
        let idle = self.idle.entry(change.cpu).or_default();
        // A second beginning without an end changes nothing.
        *idle = change.idle.then(|| idle.unwrap_or(change.at));
    }

    /// Since when all processors of the package idle.
    fn quiet_since(&self, package: PackageId) -> Option<f64> {
        let since = self.cpus.get(&package)?.iter().map(|cpu| self.idle.get(cpu).copied().flatten());
        since.reduce(|latest, one| Some(latest?.max(one?)))?
    }

    /// Seconds of each package up to `now`.
    pub fn totals(&self, now: f64) -> BTreeMap<PackageId, f64> {
        let ongoing = |id: PackageId| {
            let quiet = self.quiet_since(id).map_or(0.0, |since| (now - since).max(0.0));
            if quiet >= self.residency { quiet } else { 0.0 }
        };
        self.total.iter().map(|(id, total)| (*id, total + ongoing(*id))).collect()
    }
}

/// A trace instance; removed on drop.
#[derive(Debug)]
pub struct Trace {
    instance: PathBuf,
    pipe: File,
    left: String,
}

impl Trace {
    /// Begins below `tracefs`, usually `/sys/kernel/tracing`, on the clock of `CLOCK_MONOTONIC`. `pid`: this process, whose the instance
    /// is.
    pub fn begin(tracefs: &Path, pid: u32) -> io::Result<Trace> {
        remove_left(tracefs, pid);
        let instance = tracefs.join(format!("instances/{PREFIX}{pid}"));
        fs::create_dir(&instance)?;
        let begun = (|| {
            fs::write(instance.join("trace_clock"), "mono")?;
            fs::write(instance.join("buffer_size_kb"), BUFFER_KIB)?;
            fs::write(instance.join("events/power/cpu_idle/enable"), "1")?;
            let nonblock = rustix::fs::OFlags::NONBLOCK.bits() as i32;
            File::options().read(true).custom_flags(nonblock).open(instance.join("trace_pipe"))
        })();
        match begun {
            Ok(pipe) => Ok(Trace { instance, pipe, left: String::new() }),
            Err(error) => {
                let _ = fs::remove_dir(&instance);
                Err(error)
            }
        }
    }

    /// What has happened since the last call, in the order of times.
    pub fn changes(&mut self) -> io::Result<Vec<Change>> {
        let mut buffer = vec![0; READ];
        for _ in 0..READS {
            match self.pipe.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => self.left.push_str(&String::from_utf8_lossy(&buffer[..n])),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let whole = self.left.rfind('\n').map_or(0, |at| at + 1);
        let mut changes: Vec<Change> = self.left[..whole].lines().filter_map(parse).collect();
        self.left.drain(..whole);
        changes.sort_by(|a, b| a.at.total_cmp(&b.at));
        Ok(changes)
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = fs::write(self.instance.join("events/power/cpu_idle/enable"), "0");
        // Closed first: an instance whose pipe is open is not removed. What is left all the same, the next agent removes.
        let _ = File::open("/dev/null").map(|null| self.pipe = null);
        let _ = fs::remove_dir(&self.instance);
    }
}

/// Removes the instances below `tracefs` of agents that are gone, and of an earlier one of our number, `own`. One that is in use stays.
pub fn remove_left(tracefs: &Path, own: u32) {
    for entry in fs::read_dir(tracefs.join("instances")).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.parse::<u32>().ok());
        if pid.is_some_and(|pid| pid == own || !Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// Where tracefs is mounted, below `/sys`.
pub const TRACEFS: &str = "kernel/tracing";

/// How the names of our instances begin.
const PREFIX: &str = "pmemha-";

/// Of each processor: some 15,000 events.
const BUFFER_KIB: &str = "512";

/// Bytes of a reading, and readings of a call at most: a busy machine's second.
const READ: usize = 64 << 10;
/// See [`READ`].
const READS: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::placement::monitor::topology::Package;

    fn topology() -> Topology {
        let package = |cpus: [u32; 2]| Package { cpus: cpus.into(), ..Package::default() };
        Topology { packages: [(PackageId(0), package([0, 1])), (PackageId(1), package([2, 3]))].into() }
    }

    #[test]
    fn a_line_of_the_trace_is_a_change() {
        let line = "          <idle>-0       [001] d..1.   123.456789: cpu_idle: state=1 cpu_id=1";
        assert_eq!(parse(line), Some(Change { at: 123.456789, cpu: 1, idle: true }));
        assert!(!parse("x [0] d 1.0: cpu_idle: state=4294967295 cpu_id=0").unwrap().idle);
        for line in ["", "# tracer: nop", "x 1.0: cpu_idle: state=a cpu_id=0", "CPU:0 [LOST 5 EVENTS]"] {
            assert_eq!(parse(line), None, "{line}");
        }
    }

    #[test]
    fn only_what_all_processors_of_a_package_idle_for_long_enough_counts() {
        let mut quiet = Quiet::new(&topology(), 0.5);
        let mut at = |at, cpu, idle| quiet.take(Change { at, cpu, idle });
        at(0.0, 0, true);
        at(1.0, 1, true);
        at(3.0, 1, false); // 2 s
        at(3.1, 1, true);
        at(3.2, 0, false); // too short
        at(4.0, 2, true); // 3 is not known to idle
        assert_eq!(quiet.totals(9.0), [(PackageId(0), 2.0), (PackageId(1), 0.0)].into());
        quiet.take(Change { at: 10.0, cpu: 3, idle: true });
        assert_eq!(quiet.totals(12.0)[&PackageId(1)], 2.0, "what goes on counts too");
        quiet.take(Change { at: 12.0, cpu: 77, idle: true });
    }
}
