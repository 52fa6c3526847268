//! Whether a test that needs a machine of the rig runs in one.
//!
//! Tests over verbs also run where a real adapter is, with `soft-roce/run` or without. What some of them do, nobody wants done
//! to a real machine, or it does not have what they need; there they are skipped, which is said. Where there is neither a
//! machine of the rig nor a real adapter they fail for want of one, and never pass for nothing.

use std::fs;
use std::io::Write;
use std::path::Path;

/// What a program runs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Host {
    /// A machine of the rig.
    Machine,
    /// A machine with a real adapter that has an active port.
    Adapter(String),
    /// Neither.
    Neither,
}

impl Host {
    /// By the kernel's command line, on which the rig's settings stand, and its list of adapters.
    pub fn of(cmdline: &str, adapters: &Path) -> Host {
        let setting = |word: &str| word.trim_start_matches('"').starts_with("rig_name=");
        if cmdline.split_whitespace().any(setting) {
            return Host::Machine;
        }
        let names = |dir: &Path| {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            let mut names: Vec<_> = entries.map(|entry| entry.file_name()).collect();
            names.sort();
            names
        };
        let active = |adapter: &Path| {
            let ports = adapter.join("ports");
            names(&ports).iter().any(|port| {
                let state = fs::read_to_string(ports.join(port).join("state"));
                state.is_ok_and(|state| state.contains("ACTIVE"))
            })
        };
        let adapter = names(adapters).into_iter().find(|name| active(&adapters.join(name)));
        adapter.map_or(Host::Neither, |name| Host::Adapter(name.to_string_lossy().into_owned()))
    }

    /// This one. `SOFT_ROCE_DEVICES` names another list of adapters, as for `soft-roce/run`.
    pub fn this() -> Host {
        let cmdline = fs::read_to_string("/proc/cmdline").unwrap_or_default();
        let adapters = std::env::var_os(DEVICES).unwrap_or_else(|| "/sys/class/infiniband".into());
        Host::of(&cmdline, Path::new(&adapters))
    }
}

/// Whether the test of the calling thread is to be skipped since it may run in a machine of the rig alone and this is a host with
/// a real adapter: says so, naming the test, and `why` it may.
pub fn skipped(why: &str) -> bool {
    let Host::Adapter(adapter) = Host::this() else { return false };
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("a test");
    // Past what the test harness captures: who reads that the tests passed is to read that this one did not run.
    let line = format!(
        "\nskipped: {name}: this host has the adapter {adapter}, and only a machine of the rig will do: {why}\n"
    );
    let _ = std::io::stderr().write_all(line.as_bytes());
    true
}

/// Where `soft-roce/run` and the tests look for adapters instead of where the kernel lists them.
const DEVICES: &str = "SOFT_ROCE_DEVICES";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_host_with_an_active_adapter_that_is_no_machine_of_the_rig_skips() {
        let adapters = tempfile::tempdir().expect("a folder");
        let of = |cmdline: &str| Host::of(cmdline, adapters.path());
        assert_eq!(of("quiet"), Host::Neither);
        let port = adapters.path().join("mlx5_0/ports/1");
        fs::create_dir_all(&port).expect("own folder");
        fs::write(port.join("state"), "1: DOWN\n").expect("own folder");
        assert_eq!(of("quiet"), Host::Neither);
        fs::write(port.join("state"), "4: ACTIVE\n").expect("own folder");
        assert_eq!(of("quiet"), Host::Adapter("mlx5_0".into()));
        assert_eq!(of("quiet \"rig_name=alpha\" \"rig_mtu=9000\""), Host::Machine);
        assert_eq!(of("console=ttyS0 norig_name=alpha"), Host::Adapter("mlx5_0".into()));
        assert_eq!(Host::of("", &adapters.path().join("none")), Host::Neither);
    }
}
