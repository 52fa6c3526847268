//! What kind of machine figures were measured on.

use std::fs;

use serde_json::{Value, json};

use crate::fabric::adapters;

/// What a reader must know of the machine to compare figures with others.
pub fn gather() -> Value {
    let cpuinfo = read("/proc/cpuinfo");
    let field = |name: &str| {
        let line = cpuinfo.lines().find(|l| l.starts_with(name))?;
        Some(line.split_once(": ")?.1.to_owned())
    };
    let uname = rustix::system::uname();
    let processor = field("model name").unwrap_or_default();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "build": if cfg!(debug_assertions) { "development" } else { "release" },
        "processor": processor,
        "processors": std::thread::available_parallelism().map_or(1, usize::from),
        "emulated": processor.contains("QEMU TCG"),
        "virtual": field("flags").is_some_and(|flags| flags.split(' ').any(|f| f == "hypervisor")),
        "kernel": uname.release().to_string_lossy(),
        "governor": fs::read_to_string("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").ok().map(|g| g.trim().to_owned()),
        "memory_kib": memory_kib(),
        "adapters": adapters().into_iter().map(|a| json!({ "name": a.name, "software": a.software })).collect::<Vec<_>>(),
    })
}

fn memory_kib() -> Option<u64> {
    let text = read("/proc/meminfo");
    text.lines().next()?.split_whitespace().nth(1)?.parse().ok()
}

/// What a file of the kernel's says; nothing where it is not there.
fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}
