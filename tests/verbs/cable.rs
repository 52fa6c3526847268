//! Two adapters of this machine with a cable between them: `rxe0` on one end of the rig's cable, and one of our own on the
//! other. Their link-local addresses keep packets from taking the short way through the machine.

use std::path::Path;
use std::process::Command;
use std::sync::RwLockWriteGuard;

use pmemha::fabric::verbs::Choice;
use pmemha_rig::skipped;
use pmemha_testkit::wait::eventually;

use crate::nodes::{NETWORK, node_at};
use crate::rig::{PATIENCE, Rig, authority_dir};

/// Interface and adapter of either end.
pub const ENDS: [(&str, &str); 2] = [("rdma0", "rxe0"), ("rdma1", "rxe1")];

/// The cable; nobody else uses the network meanwhile. Whole again, and the second adapter gone, once dropped.
pub struct Cable {
    _alone: RwLockWriteGuard<'static, ()>,
}

impl Cable {
    /// None where it cannot be: the calling test is skipped, which is said.
    pub fn lay() -> Option<Cable> {
        if skipped("it makes adapters on both ends of the rig's cable, cuts it and removes them") {
            return None;
        }
        let alone = NETWORK.write().unwrap_or_else(|e| e.into_inner());
        let [_, (interface, adapter)] = ENDS;
        assert!(
            Path::new("/sys/class/net").join(interface).exists(),
            "both ends of a cable, rdma0 and rdma1: soft-roce/run brings them"
        );
        run("modprobe", &["sch_netem"]);
        add(interface, adapter);
        let cable = Cable { _alone: alone };
        ENDS.into_iter().for_each(await_address);
        Some(cable)
    }

    /// A node at either end.
    pub fn rig(&self) -> Rig {
        let [left, right] = ENDS.map(|(_, adapter)| Choice {
            device: Some(adapter.to_owned()),
            gid_index: Some(0),
            ..Choice::default()
        });
        let node = |name, choice| node_at(name, authority_dir(), choice);
        Rig { left: node("left", left), right: node("right", right), recipe: "verbs", _held: None }
    }

    /// From now on nothing passes, while either end's interface stays up.
    pub fn cut(&self) {
        for (interface, _) in ENDS {
            run("tc", &["qdisc", "add", "dev", interface, "root", "netem", "loss", "100%"]);
        }
    }

    /// Everything passes again.
    pub fn heal(&self) {
        for (interface, _) in ENDS {
            run("tc", &["qdisc", "delete", "dev", interface, "root"]);
        }
    }
}

/// An adapter of the cable's that was taken out; back again once dropped.
pub struct Removed((&'static str, &'static str));

impl Removed {
    /// Takes it out under whoever uses it.
    pub fn from(_: &Cable, end: (&'static str, &'static str)) -> Removed {
        let mut command = Command::new("rdma").args(["link", "delete", end.1]).spawn().unwrap();
        let removed = Removed(end);
        let mut ended = None;
        // The kernel takes it from nobody: the command waits until the last user has closed it.
        eventually("all to let the adapter go", PATIENCE, || {
            ended = command.try_wait().unwrap();
            ended.is_some()
        });
        assert!(ended.is_some_and(|ended| ended.success()), "{end:?} is not removed: {ended:?}");
        removed
    }
}

impl Drop for Removed {
    fn drop(&mut self) {
        let (interface, adapter) = self.0;
        if std::thread::panicking() {
            // It may be there still, held by whoever did not let it go.
            let _ = Command::new("rdma").args(adding(interface, adapter)).output();
            return;
        }
        add(interface, adapter);
        await_address(self.0);
    }
}

fn add(interface: &str, adapter: &str) {
    run("rdma", &adding(interface, adapter));
}

fn adding<'a>(interface: &'a str, adapter: &'a str) -> [&'a str; 7] {
    ["link", "add", adapter, "type", "rxe", "netdev", interface]
}

fn await_address((interface, adapter): (&str, &str)) {
    eventually("the link-local address is there", PATIENCE, || {
        let args = ["-6", "address", "show", "dev", interface, "scope", "link", "-tentative"];
        let gid = format!("/sys/class/infiniband/{adapter}/ports/1/gids/0");
        let known = std::fs::read_to_string(gid).is_ok_and(|gid| gid.starts_with("fe80"));
        known && !Command::new("ip").args(args).output().unwrap().stdout.is_empty()
    });
}

impl Drop for Cable {
    fn drop(&mut self) {
        for (interface, _) in ENDS {
            // Refused where it is whole.
            let _ = Command::new("tc").args(["qdisc", "delete", "dev", interface, "root"]).output();
        }
        let deleting = ["link", "delete", ENDS[1].1];
        if std::thread::panicking() {
            let _ = Command::new("rdma").args(deleting).output();
        } else {
            run("rdma", &deleting);
        }
    }
}

fn run(program: &str, args: &[&str]) {
    let done = Command::new(program).args(args).output().unwrap();
    assert!(done.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&done.stderr));
}
