//! Two adapters of this machine with a cable between them: `rxe0` on one end of the rig's cable, and one of our own on the
//! other. Their link-local addresses keep packets from taking the short way through the machine.

use std::path::Path;
use std::process::Command;
use std::sync::RwLockWriteGuard;

use pmemha::fabric::verbs::Choice;
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
    pub fn lay() -> Cable {
        let alone = NETWORK.write().unwrap_or_else(|e| e.into_inner());
        let [_, (interface, adapter)] = ENDS;
        assert!(
            Path::new("/sys/class/net").join(interface).exists(),
            "both ends of a cable, rdma0 and rdma1: soft-roce/run brings them"
        );
        run("modprobe", &["sch_netem"]);
        run("rdma", &["link", "add", adapter, "type", "rxe", "netdev", interface]);
        let cable = Cable { _alone: alone };
        for (interface, adapter) in ENDS {
            eventually("the link-local address is there", PATIENCE, || {
                let args = ["-6", "address", "show", "dev", interface, "scope", "link", "-tentative"];
                let gid = format!("/sys/class/infiniband/{adapter}/ports/1/gids/0");
                let known = std::fs::read_to_string(gid).is_ok_and(|gid| gid.starts_with("fe80"));
                known && !Command::new("ip").args(args).output().unwrap().stdout.is_empty()
            });
        }
        cable
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

impl Drop for Cable {
    fn drop(&mut self) {
        for (interface, _) in ENDS {
            // Refused where it is whole.
            let _ = Command::new("tc").args(["qdisc", "delete", "dev", interface, "root"]).output();
        }
        run("rdma", &["link", "delete", ENDS[1].1]);
    }
}

fn run(program: &str, args: &[&str]) {
    let done = Command::new(program).args(args).output().unwrap();
    assert!(done.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&done.stderr));
}
