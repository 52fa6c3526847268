//! The agent's configuration: one TOML file, read once at start.
//!
//! [`Config::load`] either returns a configuration that the rest of the agent may trust without another look
//! (names are unique, peers exist, sizes are in range, paths are absolute), or a [`ConfigError`] that lists
//! every problem with file, line, key, what is wrong and what to do. [`Config::check`] also looks whether the machine has
//! what the configuration names. `pmemhad.conf(5)` documents the keys.

mod check;
mod here;
mod keys;
mod message;
mod model;
mod power;
mod units;

use std::path::{Path, PathBuf};

pub use message::{ConfigError, Problem};
use message::{Fault, Source};
pub use model::{
    Archive, DurabilityChoice, FabricKind, Group, Keeper, LargePages, Metrics, Node, Peer, PlacedGroup,
    Placement, PlacementMode, Rdma, Replica, Tls, UserRef,
};
pub use power::{BudgetKeys, BudgetMode, LostWhen, Power, PowerKind, PowerSourceKeys, WhenUnknown};
pub use units::{format_bytes, parse_bytes, parse_duration, parse_rate};

/// Where the agent looks for its configuration when none is named.
pub const DEFAULT_FILE: &str = "/etc/pmemha/pmemhad.conf";

/// Most groups and replicas of a node together: each costs some ten threads and two channels to another node.
pub const MAX_GROUPS: usize = 128;

/// Largest configuration file that is read: [`MAX_GROUPS`] with long lists of patterns and comments.
pub const MAX_FILE: u64 = 4 << 20;

/// A checked configuration.
#[derive(Clone, Debug, PartialEq, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// This machine.
    pub node: Node,
    /// Certificates for the connections between agents. Present whenever a peer or replica is configured.
    pub tls: Option<Tls>,
    /// Where power events come from.
    pub power: Option<Power>,
    /// What the battery is reckoned with.
    #[serde(default)]
    pub budget: BudgetKeys,
    /// Where metrics are served; nowhere if absent.
    pub metrics: Option<Metrics>,
    /// Where groups of threads run; only while power is lost if absent.
    pub placement: Option<Placement>,
    /// Large pages for attached processes; none if absent.
    pub largepages: Option<LargePages>,
    /// Which adapter the verbs fabric uses.
    #[serde(default)]
    pub rdma: Rdma,
    /// Other nodes.
    #[serde(default, rename = "peer")]
    pub peers: Vec<Peer>,
    /// Groups whose applications run here.
    #[serde(default, rename = "group")]
    pub groups: Vec<Group>,
    /// Groups of other nodes that this node keeps an image of.
    #[serde(default, rename = "replica")]
    pub replicas: Vec<Replica>,
}

impl Config {
    /// Reads and checks `file` for an agent that is to start with it on this machine.
    pub fn load(file: &Path) -> Result<Config, ConfigError> {
        Config::examine(&read(file)?, file, here::needed)
    }

    /// Reads and checks `file`, and everything of this machine that it names.
    pub fn check(file: &Path) -> Result<Config, ConfigError> {
        Config::examine(&read(file)?, file, here::wanted)
    }

    /// Checks `text`, for whatever machine; `file` is for the messages.
    pub fn parse(text: &str, file: &Path) -> Result<Config, ConfigError> {
        Config::examine(text, file, |_| Vec::new())
    }

    fn examine(
        text: &str,
        file: &Path,
        machine: impl Fn(&Config) -> Vec<Fault>,
    ) -> Result<Config, ConfigError> {
        let source = Source::new(text, file)?;
        let mut keys = keys::read(&source);
        if let Some(config) = &keys.config {
            let found = check::faults(config).into_iter().chain(machine(config)).collect();
            keys.problems.extend(source.problems(keys.lost.without_consequences(found)));
        }
        match keys.config {
            Some(config) if keys.problems.is_empty() => Ok(config),
            _ => Err(ConfigError::wrong(keys.problems)),
        }
    }

    /// Control address of the peer `name`.
    pub fn address_of(&self, name: &str) -> Option<String> {
        self.peers.iter().find(|p| p.name == name).map(|p| p.address.clone())
    }

    /// The agent's Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.node.runtime_dir.join("pmemhad.sock")
    }
}

fn read(file: &Path) -> Result<String, ConfigError> {
    let read = || -> std::io::Result<String> {
        let len = std::fs::metadata(file)?.len();
        if len > MAX_FILE {
            return Err(std::io::Error::other(format!("{len} bytes; the limit is {MAX_FILE}")));
        }
        std::fs::read_to_string(file)
    };
    read().map_err(|source| ConfigError::Unreadable { file: file.to_path_buf(), source })
}

#[cfg(test)]
mod tests;
