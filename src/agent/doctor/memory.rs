//! Memory that adapters work on: what may be locked, how large its pages are, and what stands between it and the adapter.

use super::{Finding, Host};

/// Bytes that registration locks for a group of the default `log_size` at either end: ring, landing ring, and room to spare.
const LOCKED: u64 = 256 << 20;

/// Limits, pages, IOMMU, DDIO.
pub fn findings(host: &Host) -> Vec<Finding> {
    let mut found: Vec<Finding> = memlock(host).into_iter().chain(agents(host)).collect();
    found.extend([huge_pages(host), iommu(host), ddio(host)].into_iter().flatten());
    found
}

fn memlock(host: &Host) -> Option<Finding> {
    let soft = may_lock(host, "self")?;
    let found = format!("this shell may lock {soft} bytes");
    Some(if is_enough(&soft) {
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

/// Those of this machine that run: their limit is what counts, whoever asks.
fn agents(host: &Host) -> Vec<Finding> {
    let processes = host.names("proc").into_iter().filter(|name| name.parse::<u32>().is_ok());
    let agents = processes.filter(|pid| {
        let says = |file: &str| host.read(&format!("proc/{pid}/{file}")).unwrap_or_default();
        // The process that keeps logs for an agent is of the same program, and registers nothing.
        says("comm") == AGENT && says("cmdline").split('\0').nth(1) != Some("hold")
    });
    agents.filter_map(|pid| agent(host, &pid)).collect()
}

fn agent(host: &Host, pid: &str) -> Option<Finding> {
    let soft = may_lock(host, pid)?;
    let free = has_capability(host, pid, CAP_IPC_LOCK);
    let bound = if free {
        "is bound by no limit: it has CAP_IPC_LOCK".into()
    } else {
        format!("may lock {soft} bytes")
    };
    let found = format!("the agent (process {pid}) {bound}");
    Some(if free || is_enough(&soft) {
        Finding::good("memlock_agent", found, AGENT_LOCKS)
    } else {
        Finding::advice(
            "memlock_agent",
            found,
            "The agent locks what adapters work on; beyond this, registration fails, and with it `fabric = \"verbs\"`.",
            "LimitMEMLOCK=infinity in its unit, as pmemhad.service has it, then `systemctl daemon-reload` and restart pmemhad. At \
             once: `prlimit --memlock=unlimited --pid` and its process.",
        )
    })
}

/// The bytes, or `unlimited`, that a process may lock.
fn may_lock(host: &Host, process: &str) -> Option<String> {
    let limits = host.read(&format!("proc/{process}/limits"))?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    line.split_whitespace().next().map(str::to_owned)
}

fn is_enough(soft: &str) -> bool {
    soft == "unlimited" || soft.parse::<u64>().is_ok_and(|bytes| bytes >= LOCKED)
}

fn has_capability(host: &Host, process: &str, number: u32) -> bool {
    let status = host.read(&format!("proc/{process}/status")).unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
    bits.is_some_and(|bits| bits >> number & 1 == 1)
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

/// What the limit of an agent is for.
const AGENT_LOCKS: &str = "The agent locks what adapters work on: a log for a group that it ships, a landing ring for one that it keeps.";

/// Name of the agent's processes.
const AGENT: &str = "pmemhad";

/// Whoever has it may lock whatever there is.
const CAP_IPC_LOCK: u32 = 14;
