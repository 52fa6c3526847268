//! The figures that the simulator runs on, and where each comes from. Fixed before the policy was tuned; the policy is
//! tuned to them, never they to it.
//!
//! Three kinds of figures, told apart in each doc comment:
//! - **cited**: stands in a public document, which is named;
//! - **derived**: arithmetic on cited figures, which is shown;
//! - **assumed**: nobody has published it for this machine; chosen so that it does not flatter the policy, and why.
//!
//! Sources:
//! - *intel_idle*: Linux, `drivers/idle/intel_idle.c`, table `skx_cstates` (Skylake-SP): exit latencies and target residencies.
//! - *AgilePkgC*: Antoniou et al., "AgilePkgC: An Agile System Idle State Architecture for Energy Proportional Datacenter
//!   Servers", MICRO 2022 (arXiv 2204.10466), table 1: power of a Xeon Silver 4114 (10 cores, 85 W) and its DRAM by package
//!   state. Its abstract's "up to 41 %" is 1 - (27.5 + 1.6) / (44 + 5.5) of that table.
//! - *AgileWatts*: Yahya et al., "AgileWatts: An Energy-Efficient CPU Core Idle-State Architecture for Latency-Sensitive
//!   Server Applications", MICRO 2022, table 1: power of a Skylake-SP core by core state.
//! - *lpmd*: intel-lpmd, `data/intel_lpmd_config.xml` and intel_lpmd_config.xml(5): the thresholds of that daemon.
//!
//! The model has four such packages. A Silver 4114 itself goes into machines of two: what a bigger machine's packages draw
//! beyond it is left out, asleep and awake.

/// An idle state of a core.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CoreState {
    /// The kernel's name.
    pub name: &'static str,
    /// Seconds from a wake-up to the first instruction.
    pub exit: f64,
    /// Idle time in seconds from which on the state is worth entering.
    pub residency: f64,
    /// Watts.
    pub power: f64,
}

/// Cited: exit latency and target residency from *intel_idle*, power from *AgileWatts*. Shallowest first.
pub const CORE_STATES: [CoreState; 3] = [
    CoreState { name: "C1", exit: 2e-6, residency: 2e-6, power: 1.44 },
    CoreState { name: "C1E", exit: 10e-6, residency: 20e-6, power: 0.88 },
    CoreState { name: "C6", exit: 133e-6, residency: 600e-6, power: 0.1 },
];

/// Watts of a core that executes. Cited: *AgileWatts*, C0 at the base frequency.
pub const CORE_BUSY: f64 = 4.0;

/// Cores of a package. Cited: *AgilePkgC*, a Xeon Silver 4114.
pub const CORES: usize = 10;

/// Packages of the model.
pub const PACKAGES: usize = 4;

/// Watts of a package that is awake beside its cores: caches, mesh, memory controllers, links.
/// Derived: *AgilePkgC* gives 44 W with all ten cores in C1; 44 - 10 * 1.44.
pub const UNCORE_AWAKE: f64 = 29.6;

/// Watts of the package's DRAM while it is accessible and nobody uses it. Cited: *AgilePkgC*, PC0 idle.
pub const DRAM_IDLE: f64 = 5.5;

/// Watts of the package's DRAM while all cores are busy. Cited: *AgilePkgC*, PC0.
pub const DRAM_BUSY: f64 = 7.0;

/// Watts of a package in PC6 beside its cores. Derived: *AgilePkgC* gives 12 W for the whole; 12 - 10 * 0.1.
pub const UNCORE_ASLEEP: f64 = 11.0;

/// Watts of the package's DRAM in PC6 (self refresh). Cited: *AgilePkgC*.
pub const DRAM_ASLEEP: f64 = 0.5;

/// Seconds that leaving PC6 takes beyond the core's own exit. Cited: *AgilePkgC*, "more than 50 us"; the lower bound.
pub const PACKAGE_EXIT: f64 = 50e-6;

/// Seconds for which all cores must idle before PC6 is worth it. Derived: no core is in C6, which PC6 needs, before
/// *intel_idle*'s target residency of C6.
pub const PACKAGE_RESIDENCY: f64 = 600e-6;

/// Times a second that the system's own business wakes a package although nothing runs there, and for how many seconds it
/// runs. Assumed: an idle tickless Linux has a few timers and interrupts a second and package; more would favour nobody.
pub const HOUSEKEEPING: (f64, f64) = (20.0, 30e-6);

/// Seconds after a move during which a group's requests take longer, and by which factor. Assumed: refilling 10 MiB of second
/// level and 14 MiB of shared cache takes milliseconds at memory speed; 20 ms is several times that.
pub const COLD: (f64, f64) = (0.02, 1.25);

/// Seconds after a move during which the package that was left is held awake, since the group's memory follows. Assumed: 2 GiB
/// at 1 GiB/s, below what page migration of 4 KiB pages is reported to reach.
pub const MEMORY_FOLLOWS: f64 = 2.0;

/// Seconds of an epoch of the policy.
pub const EPOCH: f64 = 1.0;

/// Seconds between two looks of the guard, which only ever relieves. Assumed: reading `/proc/stat` and PSI costs 0.1 ms.
pub const GUARD: f64 = 0.05;

/// A service: a group of threads with a latency target.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Service {
    /// Its name.
    pub name: &'static str,
    /// Mean service time in seconds; service times are exponential.
    pub mean: f64,
    /// Share of the machine's load.
    pub weight: f64,
    /// What 99 % of its requests should be answered in, in seconds.
    pub target: f64,
}

/// The services. Assumed: stores in persistent memory answer in tenths of milliseconds; the rest of a machine is slower.
/// No service is so big that repacking could not move it.
pub const SERVICES: [Service; 8] = [
    Service { name: "kv-a", mean: 0.2e-3, weight: 0.20, target: 2e-3 },
    Service { name: "kv-b", mean: 0.2e-3, weight: 0.15, target: 2e-3 },
    Service { name: "db-a", mean: 0.5e-3, weight: 0.15, target: 5e-3 },
    Service { name: "db-b", mean: 0.5e-3, weight: 0.12, target: 5e-3 },
    Service { name: "queue", mean: 0.3e-3, weight: 0.12, target: 3e-3 },
    Service { name: "web", mean: 0.5e-3, weight: 0.10, target: 5e-3 },
    Service { name: "index", mean: 0.4e-3, weight: 0.10, target: 4e-3 },
    Service { name: "rest", mean: 0.5e-3, weight: 0.06, target: 10e-3 },
];

/// How much a service's load wanders from one second to the next, as a share of it: steps of this standard deviation, and
/// the share of a deviation that lasts into the next second. Assumed.
pub const WANDER: (f64, f64) = (0.10, 0.7);

/// Loads, as shares of the machine, of the constant traces.
pub const CONSTANT: [f64; 6] = [0.02, 0.05, 0.10, 0.20, 0.40, 0.60];

/// The trace of a day: lowest and highest load, and the seconds that the day is squeezed into. Assumed: the range is what
/// published cluster traces show for user-facing services.
pub const DIURNAL: (f64, f64, f64) = (0.05, 0.45, 300.0);

/// The bursty trace: load between bursts, in one, mean seconds between bursts, shortest and longest burst. Assumed.
pub const BURSTY: (f64, f64, f64, f64, f64) = (0.08, 0.50, 30.0, 2.0, 5.0);

/// The adversary that knows hysteresis and cool-down: load low, load high, seconds of each.
pub const SQUARE: (f64, f64, f64, f64) = (0.08, 0.60, 4.0, 3.0);

/// The adversary that watches: load while every package is in use, load once the policy has drained one, seconds that it keeps
/// that up.
pub const BAIT: (f64, f64, f64) = (0.08, 0.60, 2.0);

/// Seconds of a trace.
pub const TRACE: f64 = 600.0;

/// Cited: *lpmd*, `util_entry_threshold`, as a share of the machine, and `util_exit_threshold`, of the busiest of the processors
/// that are left.
pub const LPMD: (f64, f64) = (0.10, 0.95);

/// Share of a package that repacking every epoch, and the policy, fill it to at most. Assumed: with ten cores the wait for one
/// moves the 99th percentile of exponential service times by less than 1 % up to here.
pub const FILL: f64 = 0.6;

/// The last gasp: bytes a second of the NIC (100 Gb/s), cores that shipping keeps busy, bytes dirty behind each package, and the
/// load of what is not frozen, as a share of the machine. Assumed.
pub const GASP: (f64, usize, f64, f64) = (12.5e9, 2, 32e9, 0.02);
