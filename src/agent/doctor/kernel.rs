//! What the kernel offers: finding dirty pages, freezing applications, counting instructions, steady clocks.

use super::{Finding, Host};
use crate::failover::supervise::{Hierarchy, hierarchies};
use crate::region::dirty;

/// `perf_event_paranoid` up to which a process may count its own instructions without privileges.
const PERF_OWN: i32 = 2;

/// Dirty tracking, freezer, perf, frequency.
pub fn findings(host: &Host) -> Vec<Finding> {
    [tracking(host), freezer(host), perf(host), governor(host)].into_iter().flatten().collect()
}

fn tracking(host: &Host) -> Option<Finding> {
    let release = host.read("proc/sys/kernel/osrelease").unwrap_or_else(|| "unknown kernel".into());
    let kind = host.tracker?;
    let found = format!("{kind} ({release})");
    Some(match kind {
        dirty::Kind::Scan => Finding::good(
            "dirty_pages",
            found,
            "PAGEMAP_SCAN: stores to mapped files are found without a fault each.",
        ),
        dirty::Kind::SoftDirty => Finding::good(
            "dirty_pages",
            found,
            "Soft-dirty bits: stores to mapped files are found page by page.",
        ),
        dirty::Kind::Digest => Finding::advice(
            "dirty_pages",
            found,
            "Programs that call msync have every page of the range compared each time.",
            "Linux 6.7 or later (PAGEMAP_SCAN with userfaultfd), or a kernel with CONFIG_MEM_SOFT_DIRTY.",
        ),
    })
}

fn freezer(host: &Host) -> Option<Finding> {
    let text = host.read("proc/self/mountinfo")?;
    const MEANS: &str = "An application is frozen as a whole when its group is handed over.";
    Some(match hierarchies(&text).first() {
        Some(Hierarchy::V2(at)) => Finding::good("freezer", format!("cgroup2 at {}", at.display()), MEANS),
        Some(Hierarchy::V1(at)) => Finding::good("freezer", format!("cgroup at {}", at.display()), MEANS),
        None => Finding::advice(
            "freezer",
            "no control group that can freeze",
            "Applications are stopped by signals, process by process; one that forks quickly may escape until it is killed.",
            "Mount cgroup2 at /sys/fs/cgroup.",
        ),
    })
}

fn perf(host: &Host) -> Option<Finding> {
    let level: i32 = host.read("proc/sys/kernel/perf_event_paranoid")?.parse().ok()?;
    let found = format!("perf_event_paranoid is {level}");
    Some(if level <= PERF_OWN {
        Finding::good("perf", found, "Programs may count their own instructions.")
    } else {
        Finding::advice(
            "perf",
            found,
            "`perf` needs privileges; nothing else of pmemha does.",
            "sysctl kernel.perf_event_paranoid=2, if you want to profile.",
        )
    })
}

fn governor(host: &Host) -> Option<Finding> {
    let governor = host.read("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")?;
    let found = format!("governor {governor}");
    Some(if governor == "performance" {
        Finding::good("frequency", found, "The processor does not slow down while it waits for the network.")
    } else {
        Finding::advice(
            "frequency",
            found,
            "A processor that slows down while it waits answers later; a last gasp takes longer.",
            "cpupower frequency-set -g performance, where latency matters more than power.",
        )
    })
}
