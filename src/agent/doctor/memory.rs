//! Memory that adapters work on: what may be locked, how large its pages are, and what stands between it and the adapter.

use super::{Finding, Host};

/// Bytes that registration locks for a group of the default `log_size` at either end: ring, landing ring, and room to spare.
const LOCKED: u64 = 256 << 20;

/// Limits, pages, IOMMU, DDIO.
pub fn findings(host: &Host) -> Vec<Finding> {
    [memlock(host), huge_pages(host), iommu(host), ddio(host)].into_iter().flatten().collect()
}

fn memlock(host: &Host) -> Option<Finding> {
    let limits = host.read("proc/self/limits")?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    let soft = line.split_whitespace().next()?;
    let found = format!("this shell may lock {} bytes", soft);
    let enough = soft == "unlimited" || soft.parse::<u64>().is_ok_and(|bytes| bytes >= LOCKED);
    Some(if enough {
        Finding::good("memlock", found, "RDMA locks the memory that it works on: logs and landing rings.")
    } else {
        Finding::advice(
            "memlock",
            found,
            "RDMA locks the memory that it works on; an agent that is started from here could not register a log.",
            "The unit pmemhad.service has LimitMEMLOCK=infinity. For agents started by hand: `ulimit -l unlimited` as root, or \
             limits.conf.",
        )
    })
}

fn huge_pages(host: &Host) -> Option<Finding> {
    let shmem = host.read("sys/kernel/mm/transparent_hugepage/shmem_enabled")?;
    let chosen = chosen(&shmem)?;
    let reserved = host.read("proc/meminfo").as_deref().and_then(reserved).unwrap_or(0);
    let found = format!("for shared memory: {chosen}; {reserved} pages reserved for hugetlbfs");
    const MEANS: &str = "Logs and landing rings in large pages cost an adapter fewer translations.";
    Some(match chosen {
        "never" | "deny" if reserved == 0 => Finding::advice(
            "huge_pages",
            found,
            MEANS,
            "echo advise >/sys/kernel/mm/transparent_hugepage/shmem_enabled, and a replica's dir on a tmpfs that is mounted \
             huge=advise or huge=always.",
        ),
        _ => Finding::good("huge_pages", found, MEANS),
    })
}

/// The word in brackets.
fn chosen(text: &str) -> Option<&str> {
    Some(text.split_once('[')?.1.split_once(']')?.0)
}

fn reserved(meminfo: &str) -> Option<u64> {
    meminfo.lines().find_map(|line| line.strip_prefix("HugePages_Total:"))?.trim().parse().ok()
}

fn iommu(host: &Host) -> Option<Finding> {
    let units = host.names("sys/class/iommu").len();
    let groups = host.names("sys/kernel/iommu_groups").len();
    if units == 0 && groups == 0 {
        let found = "off, or none";
        return Some(Finding::good("iommu", found, "Adapters reach memory directly."));
    }
    let line = host.read("proc/cmdline").unwrap_or_default();
    let pass = ["iommu=pt", "iommu.passthrough=1"].iter().any(|word| line.split(' ').any(|w| w == *word));
    let found =
        format!("{groups} groups; {}", if pass { "passes through (iommu=pt)" } else { "may translate" });
    Some(if pass {
        Finding::good("iommu", found, "Adapters reach memory without translation.")
    } else {
        Finding::advice(
            "iommu",
            found,
            "Every access of an adapter may be translated: small writes take longer.",
            "Boot with iommu=pt, unless this machine hands devices to virtual machines.",
        )
    })
}

/// Whether an adapter's writes stop in the processor's cache is a bit of the chip set that the kernel does not show.
fn ddio(host: &Host) -> Option<Finding> {
    let cpuinfo = host.read("proc/cpuinfo")?;
    let model = cpuinfo
        .lines()
        .find_map(|l| l.strip_prefix("model name")?.split_once(": "))
        .map(|(_, m)| m.to_owned())?;
    let found = format!("not visible ({model})");
    if model.contains("Xeon") {
        const MEANS: &str = "On by default: an adapter's writes stop in the cache, so a read after a write proves no durability. \
                             pmemha does not rely on it: with \"pmem\" the destination's processor flushes.";
        return Some(Finding::unknown("ddio", found, MEANS));
    }
    const MEANS: &str =
        "pmemha does not rely on DDIO being off: with \"pmem\" the destination's processor flushes.";
    Some(Finding::unknown("ddio", found, MEANS))
}
