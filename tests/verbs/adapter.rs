//! The adapter: what is chosen, what is said of it, and what happens when it goes away.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use pmemha::fabric::verbs::{Choice, VerbsFabric};
use pmemha::fabric::{FabricError, RemoteAccess};
use pmemha_rig::skipped;
use pmemha_testkit::wait::eventually;

use crate::nodes::{NETWORK, verbs, verbs_alone};
use crate::rig::{PATIENCE, soon};

#[test]
fn data_is_plain_and_peers_are_known_by_their_certificates() {
    let (left, right) = verbs().pair();
    assert!(!left.end.encrypted() && !right.end.encrypted());
    assert_eq!((left.end.peer(), right.end.peer()), ("right", "left"));
}

#[test]
fn a_choice_that_is_not_there_is_refused_with_what_is() {
    let found = VerbsFabric::probe(&Choice::default()).unwrap();
    let device = Choice { device: Some("nosuch0".into()), ..Choice::default() };
    let refused = VerbsFabric::probe(&device).unwrap_err().to_string();
    assert!(refused.contains(&format!("{} port {}", found.device, found.port)), "{refused}");
    let index = Choice { gid_index: Some(200), ..Choice::default() };
    let refused = VerbsFabric::probe(&index).unwrap_err().to_string();
    assert!(refused.contains("200") && refused.contains(&found.device), "{refused}");
}

#[test]
fn an_idle_connection_takes_no_processor_time() {
    let _alone = NETWORK.write().unwrap_or_else(|e| e.into_inner());
    let (left, right) = verbs_alone().pair();
    let from = left.memory(4096, RemoteAccess::Local);
    let to = right.memory(4096, RemoteAccess::Write);
    left.write((&from, 0, 8), (to.key(), 0), Some(1)).unwrap();
    assert_eq!(left.successes(1), [1]);
    let engines = engines();
    assert_eq!(engines.len(), 2);
    // Once nobody has polled for a moment, the threads sleep until something happens.
    let mut before = switches(&engines);
    eventually("the threads rest for a tenth of a second", PATIENCE, || {
        std::thread::park_timeout(Duration::from_millis(100));
        let now = switches(&engines);
        std::mem::replace(&mut before, now) == now
    });
}

/// The threads of this process's connections.
fn engines() -> Vec<PathBuf> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let named = |task: &PathBuf| {
        std::fs::read_to_string(task.join("comm")).is_ok_and(|name| name.trim() == "pmemha-verbs")
    };
    tasks.map(|task| task.unwrap().path()).filter(named).collect()
}

/// How often the threads have gone to sleep.
fn switches(tasks: &[PathBuf]) -> u64 {
    let of = |task: &PathBuf| -> Option<u64> {
        let status = std::fs::read_to_string(task.join("status")).ok()?;
        let line = status.lines().find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"))?;
        line.trim().parse().ok()
    };
    tasks.iter().filter_map(of).sum()
}

/// Takes the interface below the adapter down and up again.
struct Interface(String);

impl Interface {
    fn of_the_adapter() -> Interface {
        let found = VerbsFabric::probe(&Choice::default()).unwrap();
        let ports = format!("/sys/class/infiniband/{}/ports/{}", found.device, found.port);
        let path = format!("{ports}/gid_attrs/ndevs/{}", found.gid.index);
        Interface(std::fs::read_to_string(path).unwrap().trim().to_owned())
    }

    fn set(&self, state: &str) {
        let done = Command::new("ip").args(["link", "set", &self.0, state]).status().unwrap();
        assert!(done.success(), "ip link set {} {state}", self.0);
    }
}

impl Drop for Interface {
    fn drop(&mut self) {
        self.set("up");
    }
}

#[test]
fn a_port_that_goes_down_ends_connections_and_up_again_admits_new_ones() {
    if skipped("it takes the network interface below the adapter down") {
        return;
    }
    let _alone = NETWORK.write().unwrap_or_else(|e| e.into_inner());
    let rig = verbs_alone();
    let (left, right) = rig.pair();
    let from = left.memory(4096, RemoteAccess::Local);
    let to = right.memory(4096, RemoteAccess::Write);
    let interface = Interface::of_the_adapter();
    interface.set("down");
    left.write((&from, 0, 8), (to.key(), 0), Some(1)).ok();
    left.closed();
    right.closed();
    let refused = left.write((&from, 0, 8), (to.key(), 0), Some(2)).unwrap_err();
    assert!(matches!(refused, FabricError::Disconnected { .. }), "{refused}");
    let off = rig.right.offer().err().map(|e| e.to_string());
    assert!(off.as_ref().is_some_and(|e| e.contains("not active")), "{off:?}");
    drop(interface);
    let mut again = None;
    eventually("the port is up", PATIENCE, || {
        again = rig.right.offer().ok();
        again.is_some()
    });
    let offer = again.unwrap();
    let address = offer.address();
    std::thread::scope(|scope| {
        let accepting = scope.spawn(|| offer.accept(soon()).unwrap());
        rig.left.connect(&address, soon()).unwrap();
        accepting.join().unwrap();
    });
}
