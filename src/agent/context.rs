//! What every part of the agent shares: made once at start by the daemon, handed to the groups' controllers.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use super::access::Access;
use super::config::Config;
use super::events::Events;
use super::holder::FdKeeper;
use super::state::StateDir;
use crate::fabric::tls::TlsIdentity;

/// The agent's common ground. Immutable; its parts synchronise themselves.
pub struct Context {
    /// The checked configuration.
    pub config: Config,
    /// Who may do what.
    pub access: Arc<Access>,
    /// What must outlive the agent.
    pub states: Arc<StateDir>,
    /// Who keeps log regions.
    pub keeper: Box<dyn FdKeeper>,
    /// The event stream.
    pub events: Events,
    /// This node's certificates; present whenever the configuration has a peer to talk to.
    pub tls: Option<TlsIdentity>,
    /// The `pmemhad` program, for helper processes.
    pub program: PathBuf,
    /// When the agent started.
    pub started: Instant,
}

impl Context {
    /// Directories that the agent fills, by their real paths: nothing in there is any application's.
    pub fn own_dirs(&self) -> Vec<PathBuf> {
        let node = [&self.config.node.state_dir, &self.config.node.runtime_dir];
        let archives = self.config.groups.iter().filter_map(|group| Some(&group.archive.as_ref()?.dir));
        let dirs =
            node.into_iter().chain(archives).chain(self.config.replicas.iter().map(|replica| &replica.dir));
        dirs.map(|dir| dir.canonicalize().unwrap_or_else(|_| dir.clone())).collect()
    }
}
