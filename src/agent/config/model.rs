//! The keys of the configuration file as plain data.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer};

use super::power::BudgetMode;
use super::units;
use crate::failover::{OnDeath, Trigger};
use crate::log::OnFull;
use crate::ship::commits::Over;
use crate::types::{Durability, Level};

/// `[node]`: this machine.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    /// Name that other nodes know this one by; the name in its certificate.
    pub name: String,
    /// Where groups' durable state is kept.
    #[serde(default = "state_dir")]
    pub state_dir: PathBuf,
    /// Where the socket is; emptied at reboot.
    #[serde(default = "runtime_dir")]
    pub runtime_dir: PathBuf,
    /// Who keeps log regions while the agent is down.
    #[serde(default)]
    pub keeper: Keeper,
    /// Address of the control channel.
    pub listen: Option<SocketAddr>,
    /// Address at which a fabric's connections begin; the control channel's address and a free port if absent.
    pub data_listen: Option<SocketAddr>,
    /// Host that other nodes reach the data address at; needed if that is all of the node's addresses (`0.0.0.0`).
    pub advertise: Option<String>,
}

impl Node {
    /// Where the fabrics listen; `None` without `listen`.
    pub fn data_address(&self) -> Option<SocketAddr> {
        self.data_listen.or_else(|| Some((self.listen?.ip(), 0).into()))
    }
}

/// Who keeps log regions while the agent is down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Keeper {
    /// A process of our own, `pmemhad hold`.
    #[default]
    Holder,
    /// systemd's file descriptor store.
    Systemd,
}

/// `[tls]`: PEM files that `pmemha init` makes.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// Certificate of the authority that all nodes trust.
    pub ca: PathBuf,
    /// This node's certificate.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// `[metrics]`: what Prometheus fetches.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Metrics {
    /// Address that `GET /metrics` is answered at, by HTTP and to whoever can reach it.
    pub listen: SocketAddr,
}

/// `[largepages]`: large pages for attached processes.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LargePages {
    /// Pages of a range's 512 that must be in use.
    #[serde(default = "large_threshold")]
    pub threshold: u16,
    /// Ranges of a process that are mapped large in a period at most.
    #[serde(default = "large_budget")]
    pub budget: u16,
    /// Shortest time from one count to the next.
    #[serde(default = "large_period", deserialize_with = "units::duration")]
    pub period: Duration,
}

/// `[placement]`: where groups of threads run.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Placement {
    /// When they are placed.
    #[serde(default)]
    pub mode: PlacementMode,
    /// The network adapter whose package is kept, and where all gathers on battery; the one of `[rdma]` if absent.
    pub nic: Option<String>,
    /// Groups beside the applications that the agent starts, and the agent itself.
    #[serde(default, rename = "group")]
    pub groups: Vec<PlacedGroup>,
}

/// When groups of threads are placed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PlacementMode {
    /// Never.
    Off,
    /// While external power is lost.
    #[default]
    LastGasp,
    /// Always.
    On,
}

/// `[[placement.group]]`: a group of threads.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlacedGroup {
    /// Its name.
    pub name: String,
    /// The directory of its control group, with a cpuset of its own.
    pub cgroup: PathBuf,
}

/// `[[peer]]`: another node.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// The name in its certificate.
    pub name: String,
    /// `host:port` of its control channel.
    pub address: String,
}

/// `[[group]]`: the persistent memory of one application.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Group {
    /// Name, also on the destinations.
    pub name: String,
    /// Glob patterns of the absolute paths to protect, also of files that do not exist yet.
    #[serde(default)]
    pub protect: Vec<String>,
    /// Who may attach besides root and the agent's own user.
    #[serde(default)]
    pub users: Vec<UserRef>,
    /// Bytes of the log ring, a power of two.
    #[serde(default = "log_size", deserialize_with = "units::bytes")]
    pub log_size: u64,
    /// What an application does when the ring is full.
    #[serde(default)]
    pub on_full: OnFull,
    /// How long `on_full = "block"` blocks at most.
    #[serde(default = "block_limit", deserialize_with = "units::duration")]
    pub block_limit: Duration,
    /// Level that every drain waits for.
    #[serde(default = "local")]
    pub commit: Level,
    /// How long a drain waits for `commit` at most; [`Duration::MAX`], written "forever": until it is so.
    #[serde(default = "commit_timeout", deserialize_with = "units::duration_or_forever")]
    pub commit_timeout: Duration,
    /// Over how many destinations a record must have come that far.
    #[serde(default)]
    pub commit_over: Over,
    /// Names of the nodes that receive the group; the first is preferred as the heir.
    #[serde(default)]
    pub destinations: Vec<String>,
    /// Bytes a second that a copy of the regions may bring at most; no limit if absent.
    #[serde(default, deserialize_with = "units::some_rate")]
    pub sync_rate: Option<u64>,
    /// A local archive for point-in-time restore.
    pub archive: Option<Archive>,
    /// What follows an application's death.
    #[serde(default)]
    pub on_death: OnDeath,
    /// What happens when more is exposed than the battery can carry.
    #[serde(default)]
    pub budget: BudgetMode,
    /// Signal that hands the group over to the heir.
    #[serde(default)]
    pub trigger: Trigger,
    /// How long freezing the application may take before it is killed.
    #[serde(default = "freeze_deadline", deserialize_with = "units::duration")]
    pub freeze_deadline: Duration,
    /// The application, if the agent is to start and supervise it.
    #[serde(default)]
    pub command: Vec<String>,
    /// Whom the command runs as; the agent's user if absent.
    pub user: Option<UserRef>,
    /// Where the command runs.
    pub working_dir: Option<PathBuf>,
    /// Environment added for the command.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
}

impl Group {
    /// A group of which only the name is given.
    pub fn named(name: &str) -> Group {
        let keys = toml::Table::from_iter([("name".to_owned(), name.into())]);
        keys.try_into().expect("all other keys have a default")
    }
}

/// `archive = { … }`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Archive {
    /// Where base images and segments go.
    pub dir: PathBuf,
    /// Bytes kept at most.
    #[serde(default = "keep_bytes", deserialize_with = "units::bytes")]
    pub keep_bytes: u64,
    /// Age of the oldest segment kept; no limit if absent.
    #[serde(default, deserialize_with = "units::some_duration")]
    pub keep_age: Option<Duration>,
}

/// `[[replica]]`: a group of another node, kept here.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replica {
    /// The group's name.
    pub group: String,
    /// Nodes that may ship it.
    pub from: Vec<String>,
    /// Where landing ring and images are kept.
    pub dir: PathBuf,
    /// What makes bytes survive here.
    #[serde(default)]
    pub durability: DurabilityChoice,
    /// Where a promotion puts the files: a source path, or the prefix of some, and its local counterpart.
    #[serde(default)]
    pub paths: BTreeMap<PathBuf, PathBuf>,
    /// The application's start after a promotion: program and arguments.
    #[serde(default)]
    pub start: Vec<String>,
    /// Whom it runs as; the agent's user if absent.
    pub user: Option<UserRef>,
    /// Where it runs.
    pub working_dir: Option<PathBuf>,
    /// Environment added for it.
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// What the group's data travels over.
    #[serde(default)]
    pub fabric: FabricKind,
    /// Whether a tcp fabric's data travels inside TLS: yes unless this says no. RDMA has no such thing.
    pub encrypt: Option<bool>,
}

impl Replica {
    /// Whether data travels inside TLS.
    pub fn encrypted(&self) -> bool {
        self.fabric == FabricKind::Tcp && self.encrypt.unwrap_or(true)
    }
}

/// What data travels over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FabricKind {
    /// Sockets.
    #[default]
    Tcp,
    /// RDMA.
    Verbs,
}

impl FabricKind {
    /// The word in the configuration, on the wire and in the status: [`crate::fabric::Fabric::kind`].
    pub fn name(self) -> &'static str {
        match self {
            FabricKind::Tcp => "tcp",
            FabricKind::Verbs => "verbs",
        }
    }
}

/// `[rdma]`: which adapter the verbs fabric uses, where the rule is not to choose.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rdma {
    /// Adapter, as `ibv_devices` names it.
    pub device: Option<String>,
    /// Port, from 1.
    pub port: Option<u8>,
    /// Index in the port's table of GIDs.
    pub gid_index: Option<u8>,
}

/// A user by number or name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserRef {
    /// uid
    Id(u32),
    /// Login name.
    Name(String),
}

/// By hand, since what serde says of an untagged enum names neither the value nor its place.
impl<'de> Deserialize<'de> for UserRef {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Written;
        impl Visitor<'_> for Written {
            type Value = UserRef;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a user, written as a name in quotes or as a uid")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<UserRef, E> {
                Ok(UserRef::Name(name.into()))
            }

            fn visit_i64<E: de::Error>(self, uid: i64) -> Result<UserRef, E> {
                let wrong = |_| E::invalid_value(de::Unexpected::Signed(uid), &self);
                uid.try_into().map(UserRef::Id).map_err(wrong)
            }

            fn visit_u64<E: de::Error>(self, uid: u64) -> Result<UserRef, E> {
                let wrong = |_| E::invalid_value(de::Unexpected::Unsigned(uid), &self);
                uid.try_into().map(UserRef::Id).map_err(wrong)
            }
        }
        d.deserialize_any(Written)
    }
}

/// `durability`: declared, or found out from the file system of `dir`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DurabilityChoice {
    /// `pmem` on a DAX file system, `disk` elsewhere.
    #[default]
    Auto,
    /// [`Durability::Battery`].
    Battery,
    /// [`Durability::Eadr`].
    Eadr,
    /// [`Durability::Pmem`].
    Pmem,
    /// [`Durability::Disk`].
    Disk,
}

impl DurabilityChoice {
    /// The declaration, unless it is to be found out.
    pub fn declared(self) -> Option<Durability> {
        match self {
            DurabilityChoice::Auto => None,
            DurabilityChoice::Battery => Some(Durability::Battery),
            DurabilityChoice::Eadr => Some(Durability::Eadr),
            DurabilityChoice::Pmem => Some(Durability::Pmem),
            DurabilityChoice::Disk => Some(Durability::Disk),
        }
    }
}

fn state_dir() -> PathBuf {
    "/var/lib/pmemha".into()
}

fn runtime_dir() -> PathBuf {
    "/run/pmemha".into()
}

fn log_size() -> u64 {
    64 << 20
}

fn block_limit() -> Duration {
    Duration::from_secs(1)
}

fn commit_timeout() -> Duration {
    Duration::from_secs(5)
}

fn freeze_deadline() -> Duration {
    Duration::from_millis(500)
}

fn large_threshold() -> u16 {
    64
}

fn large_budget() -> u16 {
    8
}

fn large_period() -> Duration {
    Duration::from_secs(1)
}

fn keep_bytes() -> u64 {
    10 << 30
}

fn local() -> Level {
    Level::Local
}
