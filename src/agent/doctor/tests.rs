//! The checks against machines that are written down.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use super::{Diagnosis, Finding, Host, Verdict, examine};
use crate::region::dirty;

/// Files of a machine below a root of their own.
struct Machine(TempDir);

impl Machine {
    fn with(files: &[(&str, &str)]) -> Machine {
        let machine = Machine(tempfile::tempdir().expect("a temporary directory"));
        files.iter().for_each(|(file, text)| machine.write(file, text));
        machine
    }

    fn write(&self, file: &str, text: &str) {
        let path = self.0.path().join(file);
        fs::create_dir_all(path.parent().expect("below the root")).expect("own directory");
        fs::write(path, text).expect("own directory");
    }

    fn host(&self) -> Host {
        Host::below(self.0.path())
    }

    fn find(&self, check: &str) -> Vec<Finding> {
        examine(&self.host()).findings.into_iter().filter(|f| f.check == check).collect()
    }

    /// The only finding of a check.
    fn one(&self, check: &str) -> Finding {
        let mut found = self.find(check);
        assert_eq!(found.len(), 1, "{check}: {found:#?}");
        found.remove(0)
    }
}

const PORT: &str = "sys/class/infiniband/mlx5_0/ports/1";

fn adapter() -> Machine {
    let at = |file: &str| format!("{PORT}/{file}");
    let machine = Machine::with(&[
        ("sys/class/infiniband/mlx5_0/device/vendor", "0x15b3"),
        ("sys/class/net/ens1/mtu", "9000"),
    ]);
    for (file, text) in [
        ("state", "4: ACTIVE\n"),
        ("link_layer", "Ethernet\n"),
        ("rate", "100 Gb/sec (4X EDR)\n"),
        ("gids/0", "fe80:0000:0000:0000:0000:00ff:fe00:0001\n"),
        ("gids/1", "0000:0000:0000:0000:0000:ffff:0a00:0001\n"),
        ("gids/2", "0000:0000:0000:0000:0000:0000:0000:0000\n"),
        ("gid_attrs/types/0", "RoCE v2\n"),
        ("gid_attrs/types/1", "RoCE v2\n"),
        ("gid_attrs/ndevs/1", "ens1\n"),
    ] {
        machine.write(&at(file), text);
    }
    machine
}

#[test]
fn an_active_port_with_a_global_address_and_large_frames_is_good() {
    let machine = adapter();
    for check in ["rdma_port", "rdma_gid", "rdma_mtu"] {
        assert_eq!(machine.one(check).verdict, Verdict::Good, "{check}");
    }
    assert!(machine.one("rdma_gid").found.contains("1: 10.0.0.1 RoCE v2"), "{:?}", machine.one("rdma_gid"));
    let losses = machine.one("rdma_losses");
    assert_eq!(losses.verdict, Verdict::Unknown);
    assert!(losses.remedy.is_some(), "what the kernel does not tell can be asked elsewhere");
}

#[test]
fn a_port_that_is_down_or_without_address_or_with_small_frames_is_said_to_be_so() {
    let machine = adapter();
    machine.write("sys/class/net/ens1/mtu", "1500\n");
    assert_eq!(machine.one("rdma_mtu").verdict, Verdict::Advice);
    machine.write(&format!("{PORT}/gid_attrs/types/1"), "IB/RoCE v1\n");
    assert_eq!(machine.one("rdma_gid").verdict, Verdict::Advice);
    fs::remove_dir_all(machine.0.path().join(PORT).join("gids")).expect("there");
    assert_eq!(machine.one("rdma_gid").verdict, Verdict::Trouble);
    machine.write(&format!("{PORT}/state"), "1: DOWN\n");
    let port = machine.one("rdma_port");
    assert_eq!(port.verdict, Verdict::Trouble);
    assert!(port.found.contains("DOWN") && port.remedy.is_some_and(|r| r.contains("ip link")), "{port:?}");
}

#[test]
fn soft_roce_is_advice_and_ecn_is_counted_where_the_driver_tells() {
    let machine = adapter();
    machine.write("sys/class/net/ens1/ecn/roce_np/enable/0", "0\n");
    assert_eq!(machine.one("rdma_losses").verdict, Verdict::Advice);
    machine.write("sys/class/net/ens1/ecn/roce_np/enable/3", "1\n");
    assert!(machine.one("rdma_losses").found.contains("1 of 2"));
    fs::remove_dir_all(machine.0.path().join("sys/class/infiniband/mlx5_0/device")).expect("there");
    assert_eq!(machine.one("rdma_port").verdict, Verdict::Advice);
    assert!(machine.find("rdma_losses").is_empty(), "a software adapter has no PFC");
}

#[test]
fn counters_of_losses_are_told_with_their_names_and_without_any_nothing_is_said() {
    let machine = adapter();
    assert!(machine.find("rdma_counters").is_empty(), "no counter is no news");
    machine.write(&format!("{PORT}/hw_counters/out_of_sequence"), "0\n");
    machine.write(&format!("{PORT}/hw_counters/lifespan"), "10\n");
    machine.write(&format!("{PORT}/counters/port_xmit_discards"), "0\n");
    machine.write("sys/class/net/ens1/statistics/rx_missed_errors", "0\n");
    machine.write("sys/class/net/ens1/statistics/rx_dropped", "9\n");
    let counters = machine.one("rdma_counters");
    assert_eq!(counters.verdict, Verdict::Good);
    assert!(counters.found.contains("3 counters of losses, all 0"), "{counters:?}");
    machine.write(&format!("{PORT}/hw_counters/out_of_sequence"), "12\n");
    machine.write("sys/class/net/ens1/statistics/rx_missed_errors", "3\n");
    let counters = machine.one("rdma_counters");
    assert_eq!(counters.verdict, Verdict::Advice);
    assert!(counters.found.ends_with(": out_of_sequence 12, rx_missed_errors 3"), "{counters:?}");
}

#[test]
fn marks_and_pauses_are_told_where_adapter_or_driver_counts_them() {
    let machine = adapter();
    assert!(machine.find("rdma_ecn").is_empty() && machine.find("rdma_pauses").is_empty());
    machine.write(&format!("{PORT}/hw_counters/np_ecn_marked_roce_packets"), "0\n");
    assert_eq!(machine.one("rdma_ecn").verdict, Verdict::Unknown);
    machine.write(&format!("{PORT}/hw_counters/rp_cnp_handled"), "5\n");
    assert_eq!(machine.one("rdma_ecn").verdict, Verdict::Good);

    let pauses = |drivers: fn(&str) -> Vec<(String, u64)>| {
        let found = examine(&Host { drivers: Some(drivers), ..machine.host() }).findings;
        found.into_iter().find(|f| f.check == "rdma_pauses")
    };
    assert!(
        pauses(|_| vec![("rx_packets".into(), 7), ("tx_pause_storm_warning_events".into(), 1)]).is_none()
    );
    let quiet = pauses(|_| vec![("rx_prio3_pause".into(), 0)]).expect("it counts");
    assert_eq!(quiet.verdict, Verdict::Unknown);
    let pfc = |device: &str| {
        vec![("rx_prio3_pause".into(), u64::from(device == "ens1")), ("rx_prio3_pause_duration".into(), 9)]
    };
    let pfc = pauses(pfc).expect("it counts");
    assert_eq!((pfc.verdict, pfc.found.contains("ens1: rx_prio3_pause 1")), (Verdict::Good, true), "{pfc:?}");
    let global =
        pauses(|_| vec![("rx_prio3_pause".into(), 0), ("rx_pause_ctrl_phy".into(), 4)]).expect("it counts");
    assert_eq!(global.verdict, Verdict::Advice, "{global:?}");
}

#[test]
fn an_adapter_that_the_fabric_cannot_use_is_trouble_and_without_any_it_is_not() {
    let machine = adapter();
    let with = |verbs| examine(&Host { verbs: Some(verbs), ..machine.host() });
    assert_eq!(with(Err("libibverbs cannot be used".into())).verdict, Verdict::Trouble);
    assert_eq!(with(Ok("mlx5_0 port 1".into())).findings.iter().filter(|f| f.check == "verbs").count(), 1);
    let bare = Machine::with(&[]);
    assert_eq!(bare.one("rdma").verdict, Verdict::Unknown);
    let host = Host { verbs: Some(Err("no adapter".into())), ..bare.host() };
    assert!(examine(&host).findings.iter().all(|f| f.check != "verbs"));
}

#[test]
fn a_limit_on_locked_memory_is_judged_by_what_a_log_takes() {
    for (limit, verdict) in
        [("unlimited", Verdict::Good), ("8388608", Verdict::Advice), ("268435456", Verdict::Good)]
    {
        let text = format!(
            "Limit                     Soft Limit           Hard Limit           Units     \n\
             Max locked memory         {limit}              unlimited            bytes     \n"
        );
        assert_eq!(Machine::with(&[("proc/self/limits", &text)]).one("memlock").verdict, verdict, "{limit}");
    }
}

#[test]
fn the_limit_of_the_agent_that_runs_is_told_besides_that_of_the_caller() {
    let limits = |bytes: &str| {
        format!("Max locked memory         {bytes}              unlimited            bytes     \n")
    };
    let machine = Machine::with(&[
        ("proc/self/limits", &limits("unlimited")),
        ("proc/11/comm", "pmemhad\n"),
        ("proc/11/cmdline", "/usr/bin/pmemhad\0hold\0"),
        ("proc/11/limits", &limits("8388608")),
        ("proc/12/comm", "postgres\n"),
        ("proc/12/limits", &limits("8388608")),
    ]);
    assert!(machine.find("memlock_agent").is_empty(), "no agent runs");
    machine.write("proc/13/comm", "pmemhad\n");
    machine.write("proc/13/cmdline", "/usr/bin/pmemhad\0--config\0/etc/pmemha/pmemhad.conf\0");
    machine.write("proc/13/limits", &limits("8388608"));
    machine.write("proc/13/status", "Name:\tpmemhad\nCapEff:\t0000000000000000\n");
    let agent = machine.one("memlock_agent");
    assert_eq!(agent.verdict, Verdict::Advice);
    assert!(agent.found.contains("process 13) may lock 8388608 bytes"), "{agent:?}");
    assert_eq!(machine.one("memlock").verdict, Verdict::Good);
    machine.write("proc/13/status", "Name:\tpmemhad\nCapEff:\t0000000000004000\n");
    assert_eq!(machine.one("memlock_agent").verdict, Verdict::Good, "CAP_IPC_LOCK knows no limit");
    machine.write("proc/13/status", "CapEff:\t0000000000000000\n");
    machine.write("proc/13/limits", &limits("unlimited"));
    assert_eq!(machine.one("memlock_agent").verdict, Verdict::Good);
}

#[test]
fn large_pages_and_the_iommu_are_read_as_the_kernel_writes_them() {
    let enabled = "sys/kernel/mm/transparent_hugepage/shmem_enabled";
    let machine = Machine::with(&[(enabled, "always within_size advise [never] deny force\n")]);
    assert_eq!(machine.one("huge_pages").verdict, Verdict::Advice);
    machine.write("proc/meminfo", "MemTotal: 1 kB\nHugePages_Total:      64\n");
    assert_eq!(machine.one("huge_pages").verdict, Verdict::Good);
    assert_eq!(machine.one("iommu").verdict, Verdict::Good);
    machine.write("sys/kernel/iommu_groups/0/type", "DMA\n");
    machine.write("proc/cmdline", "quiet intel_iommu=on\n");
    assert_eq!(machine.one("iommu").verdict, Verdict::Advice);
    machine.write("proc/cmdline", "quiet intel_iommu=on iommu=pt\n");
    assert_eq!(machine.one("iommu").verdict, Verdict::Good);
}

#[test]
fn persistence_domains_alignments_and_mounts_are_told_apart() {
    let machine = Machine::with(&[
        ("sys/bus/nd/devices/region0/persistence_domain", "cpu_cache\n"),
        ("sys/bus/nd/devices/region1/persistence_domain", "memory_controller\n"),
        ("sys/bus/nd/devices/region2/persistence_domain", "\n"),
        ("sys/bus/nd/devices/pfn0.0/align", "4096\n"),
        ("sys/bus/nd/devices/pfn0.0/size", "534773760\n"),
        ("sys/bus/nd/devices/dax1.0/align", "2097152\n"),
        ("sys/bus/nd/devices/dax1.0/size", "534773760\n"),
        ("sys/bus/nd/devices/dax1.1/align", "4096\n"),
        ("sys/bus/nd/devices/dax1.1/size", "0\n"),
        ("proc/self/mountinfo", "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"),
    ]);
    let verdicts = |check: &str| machine.find(check).iter().map(|f| f.verdict).collect::<Vec<_>>();
    assert_eq!(verdicts("persistence_domain"), [Verdict::Good, Verdict::Good, Verdict::Advice]);
    assert!(machine.find("persistence_domain")[0].found.contains("eADR"));
    assert_eq!(verdicts("alignment"), [Verdict::Good, Verdict::Advice], "a seed has no alignment");
    assert_eq!(verdicts("dax"), [Verdict::Advice]);
    machine.write("proc/self/mountinfo", "36 1 259:0 / /pmem rw - ext4 /dev/pmem0 rw,dax=always\n");
    assert_eq!(machine.one("dax").found, "/pmem (ext4)");
}

#[test]
fn the_kernel_is_asked_for_what_replication_and_handover_need() {
    let machine = Machine::with(&[
        ("proc/self/mountinfo", "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n"),
        ("proc/sys/kernel/perf_event_paranoid", "3\n"),
        ("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave\n"),
    ]);
    for check in ["freezer", "perf", "frequency"] {
        assert_eq!(machine.one(check).verdict, Verdict::Advice, "{check}");
    }
    machine.write("proc/self/mountinfo", "1 0 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n");
    assert_eq!(machine.one("freezer").verdict, Verdict::Good);
    for (kind, verdict) in [
        (dirty::Kind::Scan, Verdict::Good),
        (dirty::Kind::SoftDirty, Verdict::Good),
        (dirty::Kind::Digest, Verdict::Advice),
    ] {
        let found = examine(&Host { tracker: Some(kind), ..machine.host() }).findings;
        let found = found.iter().find(|f| f.check == "dirty_pages").expect("it was tried");
        assert_eq!(found.verdict, verdict, "{kind}");
    }
}

#[test]
fn the_text_names_every_finding_and_what_to_do() {
    let Diagnosis { findings, .. } = examine(&adapter().host());
    let text = examine(&adapter().host()).text();
    for finding in findings {
        assert!(
            text.contains(finding.check) && finding.remedy.is_none_or(|r| text.contains(r)),
            "{finding:?}"
        );
    }
}

#[test]
fn every_check_is_in_the_page_of_hardware() {
    let docs = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/hardware.md"))
        .expect("docs/hardware.md");
    let mut checks = Vec::new();
    for file in ["kernel", "memory", "pmem", "rdma"] {
        let path = format!("{}/src/agent/doctor/{file}.rs", env!("CARGO_MANIFEST_DIR"));
        let code = fs::read_to_string(path).expect("own source");
        for call in ["good(", "unknown(", "advice(", "trouble("] {
            let call = format!("Finding::{call}");
            let names = code.split(&call).skip(1);
            checks.extend(
                names.filter_map(|rest| {
                    Some(rest.trim_start().strip_prefix('"')?.split_once('"')?.0.to_owned())
                }),
            );
        }
    }
    assert!(checks.len() > 20, "{checks:?}");
    for check in checks {
        assert!(docs.contains(&format!("| `{check}` |")), "docs/hardware.md has no row for `{check}`");
    }
}
