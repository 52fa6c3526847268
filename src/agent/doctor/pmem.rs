//! Persistent memory: what a power cut leaves of caches, how the processor flushes, namespaces, and mounts with DAX.

use super::{Finding, Host};
use crate::mounts;

/// Where the kernel lists regions and namespaces.
const DEVICES: &str = "sys/bus/nd/devices";

/// A large page.
const LARGE: u64 = 2 << 20;

/// Instructions, persistence domain, alignment, mounts.
pub fn findings(host: &Host) -> Vec<Finding> {
    let mut found = Vec::from_iter(flush(host));
    let devices = host.names(DEVICES);
    let regions: Vec<&String> = devices.iter().filter(|name| name.starts_with("region")).collect();
    if regions.is_empty() {
        found.push(Finding::unknown(
            "pmem",
            "no persistent memory",
            "Files lie on tmpfs or disks: `durability` of a replica is \"battery\", if a battery keeps this machine, or \"disk\".",
        ));
    }
    found.extend(regions.iter().map(|region| domain(host, region)));
    found.extend(devices.iter().filter_map(|device| alignment(host, device)));
    found.extend(dax(host, !regions.is_empty()));
    found
}

fn flush(host: &Host) -> Option<Finding> {
    let cpuinfo = host.read("proc/cpuinfo")?;
    let flags = cpuinfo.lines().find_map(|line| line.strip_prefix("flags")?.split_once(": "))?.1;
    let has = |name: &str| flags.split(' ').any(|flag| flag == name);
    let best = ["clwb", "clflushopt", "clflush"].into_iter().find(|name| has(name));
    let copies = if has("avx512f") {
        "AVX-512: a line is copied at once"
    } else {
        "lines are read twice until both agree"
    };
    let found = format!("flushes by {}; {copies}", best.unwrap_or("nothing"));
    Some(match best {
        Some("clwb" | "clflushopt") => Finding::good("processor", found, "Flushes run beside each other."),
        _ => Finding::advice(
            "processor",
            found,
            "CLFLUSH waits for each line: persistent memory is slow on this processor.",
            "Nothing in software; in a virtual machine, choose a processor model that has CLWB.",
        ),
    })
}

fn domain(host: &Host, region: &str) -> Finding {
    let domain = host.read(&format!("{DEVICES}/{region}/persistence_domain")).unwrap_or_default();
    match domain.as_str() {
        "cpu_cache" => Finding::good(
            "persistence_domain",
            format!("{region}: processor caches (eADR)"),
            "A power cut keeps what stands in caches; \"pmem\" flushes all the same, which costs little there.",
        ),
        "memory_controller" => Finding::good(
            "persistence_domain",
            format!("{region}: memory controller (ADR)"),
            "A power cut keeps what was flushed: \"pmem\" is the durability of replicas here.",
        ),
        other => Finding::advice(
            "persistence_domain",
            format!("{region}: {}", if other.is_empty() { "not told" } else { other }),
            "The platform does not promise that flushed lines survive a power cut (usual in virtual machines).",
            "Believe the machine's maker, not this; emulated NVDIMMs keep what a backing file keeps.",
        ),
    }
}

/// Of a namespace whose pages the kernel maps: devices named `pfn` and `dax`.
fn alignment(host: &Host, device: &str) -> Option<Finding> {
    if !(device.starts_with("pfn") || device.starts_with("dax")) {
        return None;
    }
    let bytes: u64 = host.read(&format!("{DEVICES}/{device}/align"))?.parse().ok()?;
    // A seed for a namespace that is not there has neither size nor backing.
    host.read(&format!("{DEVICES}/{device}/size"))?.parse::<u64>().ok().filter(|size| *size > 0)?;
    let found = format!("{device}: {bytes} bytes");
    Some(if bytes >= LARGE {
        Finding::good("alignment", found, "Large pages are mapped: fewer faults, fewer translations.")
    } else {
        Finding::advice(
            "alignment",
            found,
            "Only pages of 4 KiB are mapped: more faults, and more translations for adapters.",
            "Make the namespace anew with `ndctl create-namespace --align 2M` (its content is lost).",
        )
    })
}

fn dax(host: &Host, has_pmem: bool) -> Option<Finding> {
    let text = host.read("proc/self/mountinfo")?;
    let mut points = Vec::new();
    for mount in mounts::parse(&text) {
        if ["dax", "dax=always", "dax=inode"].iter().any(|option| mount.has_option(option)) {
            points.push(format!("{} ({})", mount.point.display(), mount.kind));
        }
    }
    if !points.is_empty() {
        return Some(Finding::good(
            "dax",
            points.join(", "),
            "Files there are mapped directly; MAP_SYNC works.",
        ));
    }
    has_pmem.then(|| {
        Finding::advice(
            "dax",
            "no mount",
            "Files on persistent memory go through the page cache: flushes do not reach it, and programs fall back to msync.",
            "mkfs.ext4 -b 4096 (or xfs without reflink) on an fsdax namespace, then mount -o dax=always.",
        )
    })
}
