//! Nodes of the tcp fabric, plain and inside TLS.

use std::path::Path;

use pmemha::fabric::Fabric;
use pmemha::fabric::meeting::MeetingConfig;
use pmemha::fabric::tcp::TcpFabric;

use crate::rig::{Rig, identity};

pub const PLAIN: &str = "tcp";
pub const TLS: &str = "tcp_tls";

/// Nothing but the nodes.
pub type Held = ();

/// A node named `name`; `dir` holds the authority.
pub fn node(name: &str, recipe: &str, dir: &Path) -> Box<dyn Fabric> {
    let identity = (recipe == TLS).then(|| identity(name, dir));
    let listen = "127.0.0.1:0".parse().unwrap();
    Box::new(TcpFabric::new(MeetingConfig { listen, advertise: None, identity }).unwrap())
}

pub fn plain() -> Rig {
    Rig::new(PLAIN, ())
}

pub fn tls() -> Rig {
    Rig::new(TLS, ())
}
