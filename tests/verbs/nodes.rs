//! Nodes of the verbs fabric, all on this machine's adapter.

use std::path::Path;
use std::sync::{RwLock, RwLockReadGuard};

use pmemha::fabric::Fabric;
use pmemha::fabric::meeting::{Meeting, MeetingConfig};
use pmemha::fabric::verbs::{Choice, VerbsFabric};

use crate::rig::{Rig, identity};

/// Written by tests that need the adapter's network to themselves.
pub static NETWORK: RwLock<()> = RwLock::new(());

/// The network is not taken away meanwhile.
pub type Held = Option<RwLockReadGuard<'static, ()>>;

/// A node named `name`; `dir` holds the authority.
pub fn node(name: &str, _recipe: &str, dir: &Path) -> Box<dyn Fabric> {
    node_at(name, dir, Choice::default())
}

/// The same, at the adapter and address of `choice`.
pub fn node_at(name: &str, dir: &Path, choice: Choice) -> Box<dyn Fabric> {
    let listen = "127.0.0.1:0".parse().unwrap();
    let identity = Some(identity(name, dir));
    let meeting = Meeting::start(MeetingConfig { listen, advertise: None, identity }).unwrap();
    Box::new(VerbsFabric::over(meeting, choice))
}

pub fn verbs() -> Rig {
    Rig::new("verbs", Some(NETWORK.read().unwrap_or_else(|e| e.into_inner())))
}

/// For those who hold [`NETWORK`].
pub fn verbs_alone() -> Rig {
    Rig::new("verbs", None)
}
