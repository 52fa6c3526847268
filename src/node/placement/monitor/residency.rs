//! Time in package states, from whichever source the machine has, best first: perf's `cstate_pkg` counters, the model specific
//! registers behind them, the trace of idle processors.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::Instant;

use super::Roots;
use super::idle_trace::{Quiet, TRACEFS, Trace};
use super::topology::Topology;
use crate::node::placement::policy::model::PackageId;

/// Share of the time since the last sample that each package spent in each state, by the state's name.
pub type Shares = BTreeMap<PackageId, BTreeMap<String, f64>>;

/// Something that knows how long packages sleep.
pub trait Residency: Send {
    /// For status and messages: what it is, honestly.
    fn name(&self) -> &'static str;
    /// Shares since the last call; empty at the first.
    fn sample(&mut self) -> io::Result<Shares>;
}

/// The best source that works here; what was wrong with each that does not, if none does.
pub fn find(roots: &Roots, topology: &Topology) -> Result<Box<dyn Residency>, Vec<String>> {
    let mut wrong = Vec::new();
    let mut note = |what: &str, error: io::Error| wrong.push(format!("{what}: {error}"));
    match Counters::perf(roots, topology) {
        Ok(source) => return Ok(Box::new(source)),
        Err(error) => note(PERF, error),
    }
    match Counters::msr(roots, topology) {
        Ok(source) => return Ok(Box::new(source)),
        Err(error) => note(MSR, error),
    }
    match IdleTrace::begin(roots, topology) {
        Ok(source) => Ok(Box::new(source)),
        Err(error) => {
            note(TRACE, error);
            Err(wrong)
        }
    }
}

/// The states' numbers in perf's events and the registers that count them (Intel's Software Developer's Manual, volume 4:
/// `MSR_PKG_Cn_RESIDENCY`).
const STATES: [(&str, u64); 7] = [
    ("c2", 0x60d),
    ("c3", 0x3f8),
    ("c6", 0x3f9),
    ("c7", 0x3fa),
    ("c8", 0x630),
    ("c9", 0x631),
    ("c10", 0x632),
];

const PERF: &str = "perf cstate_pkg";
const MSR: &str = "model specific registers";
const TRACE: &str = "trace of idle processors";

/// Counters that advance with the time stamp counter while a package is in a state.
struct Counters {
    name: &'static str,
    counters: Vec<Counter>,
    /// Time stamp and counts of the last sample.
    last: Option<(u64, Vec<u64>)>,
}

struct Counter {
    package: PackageId,
    state: &'static str,
    file: File,
    /// Where in the file; perf's have no place.
    register: Option<u64>,
}

impl Counter {
    fn read(&self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        match self.register {
            Some(register) => self.file.read_exact_at(&mut bytes, register)?,
            None => io::Read::read_exact(&mut &self.file, &mut bytes)?,
        }
        Ok(u64::from_le_bytes(bytes))
    }
}

impl Counters {
    fn perf(roots: &Roots, topology: &Topology) -> io::Result<Counters> {
        let root = roots.sys.join("bus/event_source/devices/cstate_pkg");
        let kind = fs::read_to_string(root.join("type"))?;
        let kind: u32 =
            kind.trim().parse().map_err(|_| io::Error::other(format!("type is `{}`", kind.trim())))?;
        let mut counters = Vec::new();
        for (event, (state, _)) in STATES.into_iter().enumerate() {
            if !root.join(format!("events/{state}-residency")).exists() {
                continue;
            }
            for (&package, cpus) in &topology.packages {
                let Some(&cpu) = cpus.cpus.first() else { continue };
                let file = File::from(perf_open(kind, event as u64, cpu)?);
                counters.push(Counter { package, state, file, register: None });
            }
        }
        Counters::new(PERF, counters)
    }

    fn msr(roots: &Roots, topology: &Topology) -> io::Result<Counters> {
        let mut counters = Vec::new();
        for (&package, cpus) in &topology.packages {
            let Some(cpu) = cpus.cpus.first() else { continue };
            let path = roots.dev.join(format!("cpu/{cpu}/msr"));
            for (state, register) in STATES {
                let counter = Counter { package, state, file: File::open(&path)?, register: Some(register) };
                // A processor without the state refuses to read its register.
                if counter.read().is_ok() {
                    counters.push(counter);
                }
            }
        }
        Counters::new(MSR, counters)
    }

    fn new(name: &'static str, counters: Vec<Counter>) -> io::Result<Counters> {
        if counters.is_empty() {
            return Err(io::Error::other("counts no package state of this processor"));
        }
        Ok(Counters { name, counters, last: None })
    }
}

impl Residency for Counters {
    fn name(&self) -> &'static str {
        self.name
    }

    fn sample(&mut self) -> io::Result<Shares> {
        let now = time_stamp();
        let counts: Vec<u64> = self.counters.iter().map(Counter::read).collect::<io::Result<_>>()?;
        let last = self.last.replace((now, counts.clone()));
        let mut shares = Shares::new();
        if let Some((then, before)) = last {
            for ((counter, before), after) in self.counters.iter().zip(before).zip(counts) {
                let share = share(after.wrapping_sub(before), now.wrapping_sub(then));
                shares.entry(counter.package).or_default().insert(counter.state.into(), share);
            }
        }
        Ok(shares)
    }
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { (part as f64 / whole as f64).clamp(0.0, 1.0) }
}

/// Packages' quiet time from the trace.
struct IdleTrace {
    trace: Trace,
    quiet: Quiet,
    last: Option<(f64, BTreeMap<PackageId, f64>)>,
    clock: Instant,
    /// The trace's clock when `clock` began.
    began: f64,
}

/// Shortest idling of a whole package that counts, in seconds: the target residency of C6 in Linux' table for servers.
const TARGET: f64 = 600e-6;

impl IdleTrace {
    fn begin(roots: &Roots, topology: &Topology) -> io::Result<IdleTrace> {
        let trace = Trace::begin(&roots.sys.join(TRACEFS), std::process::id())?;
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
        let began = time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9;
        Ok(IdleTrace { trace, quiet: Quiet::new(topology, TARGET), last: None, clock: Instant::now(), began })
    }
}

impl Residency for IdleTrace {
    fn name(&self) -> &'static str {
        TRACE
    }

    fn sample(&mut self) -> io::Result<Shares> {
        let now = self.began + self.clock.elapsed().as_secs_f64();
        self.trace.changes()?.into_iter().for_each(|change| self.quiet.take(change));
        let totals = self.quiet.totals(now);
        let last = self.last.replace((now, totals.clone()));
        let Some((then, before)) = last else { return Ok(Shares::new()) };
        let window = (now - then).max(1e-9);
        let slept = |id: &PackageId, total: f64| {
            let before = before.get(id).copied().unwrap_or(0.0);
            [("idle".to_owned(), ((total - before) / window).clamp(0.0, 1.0))].into()
        };
        Ok(totals.into_iter().map(|(id, total)| (id, slept(&id, total))).collect())
    }
}

fn time_stamp() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and it touches no memory.
    unsafe { std::arch::x86_64::_rdtsc() }
}

/// `struct perf_event_attr` in its first version.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    kind: u32,
    size: u32,
    config: u64,
    sample: [u64; 3],
    flags: u64,
    wakeup: [u32; 2],
    config1: u64,
}

const _: () = assert!(size_of::<Attributes>() == 64);

/// `PERF_FLAG_FD_CLOEXEC`
const CLOSE_ON_EXEC: libc::c_ulong = 8;

/// Counts an event on a processor, for whatever runs there.
fn perf_open(kind: u32, config: u64, cpu: u32) -> io::Result<OwnedFd> {
    let attributes =
        Attributes { kind, size: size_of::<Attributes>() as u32, config, ..Attributes::default() };
    let cpu = i32::try_from(cpu).map_err(io::Error::other)?;
    let (pid, group, flags) = (-1i32, -1i32, CLOSE_ON_EXEC);
    // SAFETY: the kernel reads `size` bytes of `attributes`, which live through the call, and keeps no pointer.
    let fd =
        unsafe { libc::syscall(libc::SYS_perf_event_open, &raw const attributes, pid, cpu, group, flags) };
    let fd = i32::try_from(fd).map_err(io::Error::other)?;
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor, and nobody else knows it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    debug_assert!(fd.as_raw_fd() >= 0);
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::placement::monitor::topology::tests::machine;

    #[test]
    fn registers_are_read_by_package_and_their_growth_is_a_share_of_time() {
        let dir = tempfile::tempdir().unwrap();
        let roots = machine(dir.path(), &["0", "1"]);
        let topology = Topology::read(&roots).unwrap();
        for cpu in 0..2 {
            let dir = roots.dev.join(format!("cpu/{cpu}"));
            fs::create_dir_all(&dir).unwrap();
            let file = File::create(dir.join("msr")).unwrap();
            file.write_all_at(&7u64.to_le_bytes(), 0x3f9).unwrap();
        }
        let mut source = Counters::msr(&roots, &topology).unwrap();
        assert!(source.sample().unwrap().is_empty());
        let register = File::options().write(true).open(roots.dev.join("cpu/1/msr")).unwrap();
        register.write_all_at(&u64::MAX.to_le_bytes(), 0x3f9).unwrap();
        let shares = source.sample().unwrap();
        assert_eq!((shares[&PackageId(0)]["c6"], shares[&PackageId(1)]["c6"]), (0.0, 1.0));
        assert!(!shares[&PackageId(0)].contains_key("c7"), "beyond the end of the file");
    }

    #[test]
    fn a_machine_without_any_source_says_what_is_wrong_with_each() {
        let dir = tempfile::tempdir().unwrap();
        let roots = machine(dir.path(), &["0", "1"]);
        let wrong = find(&roots, &Topology::read(&roots).unwrap()).err().unwrap();
        assert_eq!(wrong.len(), 3, "{wrong:?}");
    }

    #[test]
    fn perf_counts_what_the_kernel_counts() {
        // The software clock of the processor: the one event that every machine has.
        match perf_open(1, 0, 0) {
            Ok(fd) => {
                let counter =
                    Counter { package: PackageId(0), state: "c6", file: File::from(fd), register: None };
                let first = counter.read().unwrap();
                assert!(counter.read().unwrap() > first);
            }
            Err(error) => println!("not permitted here: {error}"),
        }
    }
}
