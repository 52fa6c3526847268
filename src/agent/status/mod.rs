//! What the agent knows of itself and its groups at an instant: the document of `pmemha status --json`.
//!
//! Plain data, gathered at the moment of the question. Every number that was not measured at that moment has
//! its own `as_of`. [`text`] renders it for a person, [`metrics`] for Prometheus.

#[cfg(test)]
mod guide;
pub mod metrics;
mod power;
#[cfg(test)]
mod sample;
pub mod text;

pub use power::{BudgetStatus, PowerSourceStatus, PowerStatus};
use serde::{Deserialize, Serialize};

use crate::node::placement::status::PlacementStatus;
use crate::region::kind::MemoryKind;
use crate::types::{Generation, Level, Lsn, RegionId};

/// The document.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// When it was gathered, RFC 3339.
    pub as_of: String,
    /// This machine.
    pub node: NodeStatus,
    /// External power; none if no source is configured.
    pub power: Option<PowerStatus>,
    /// Where groups of threads run; none if that is off.
    #[serde(default)]
    pub placement: Option<PlacementStatus>,
    /// Every group that this node has a part in.
    pub groups: Vec<GroupStatus>,
}

impl Status {
    /// Shortens its lists of files and ranges until the document takes at most `limit` bytes of JSON, if that can be reached by it.
    pub fn shortened(mut self, limit: usize) -> Status {
        while serde_json::to_vec(&self).is_ok_and(|bytes| bytes.len() > limit) {
            let ranges = |d: &DestinationStatus| d.verify.as_ref().map_or(0, |verify| verify.ranges.len());
            let files = |g: &GroupStatus| {
                g.regions.len() + g.unprotected_files.len() + g.destinations.iter().map(ranges).sum::<usize>()
            };
            let Some(longest) = self.groups.iter_mut().max_by_key(|g| files(g)).filter(|g| files(g) > 0)
            else {
                break;
            };
            longest.halve_lists();
        }
        self
    }
}

impl GroupStatus {
    /// How many files are protected.
    pub fn region_count(&self) -> u64 {
        self.regions.len() as u64 + self.regions_more
    }

    /// Bytes of all protected files.
    pub fn region_bytes(&self) -> u64 {
        self.regions.iter().map(|r| r.len).sum::<u64>() + self.regions_more_bytes
    }

    fn halve_lists(&mut self) {
        for verify in self.destinations.iter_mut().filter_map(|d| d.verify.as_mut()) {
            verify.ranges_more += verify.ranges.drain(verify.ranges.len() / 2..).count() as u64;
        }
        for region in self.regions.drain(self.regions.len() / 2..) {
            self.regions_more += 1;
            self.regions_more_bytes += region.len;
        }
        let left = self.unprotected_files.len() / 2;
        self.unprotected_files_more += self.unprotected_files.drain(left..).len() as u64;
    }
}

/// This machine and its agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Name.
    pub name: String,
    /// Version of pmemha.
    pub version: String,
    /// Process id of the agent.
    pub pid: u32,
    /// Seconds since the agent started.
    pub uptime_s: u64,
    /// Where the control channel listens.
    pub listen: Option<String>,
    /// Sessions open, of applications and operators.
    pub sessions: u32,
    /// What the verbs fabric would use.
    pub rdma: RdmaStatus,
}

/// The adapter of the verbs fabric.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RdmaStatus {
    /// Whether the configuration speaks of RDMA: in a replica's `fabric` or in `[rdma]`.
    pub wanted: bool,
    /// Adapter; none while verbs is off.
    pub device: Option<String>,
    /// Its port.
    pub port: Option<u8>,
    /// The port's address for a peer of which nothing is known.
    pub address: Option<String>,
    /// Why verbs is off; none while it is not.
    pub off: Option<String>,
}

/// Which part a node has in a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Its application writes here.
    Source,
    /// An image is kept here.
    Destination,
}

/// A group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupStatus {
    /// Name.
    pub name: String,
    /// This node's part.
    pub role: Role,
    /// Generation known here.
    pub generation: Generation,
    /// One word for how it is: the phase of the group's state machine, or `opening` before that stands, or `unprotected` for a
    /// group without destinations, or `unusable` for one that could not be opened. `docs/guide.md` lists them.
    pub state: String,
    /// What the application is frozen by: `cgroup2`, `cgroup1`, or `signals` (SIGSTOP); none if nothing here would.
    pub supervision: Option<String>,
    /// Why the group could not be opened; in one without destinations, why its command could not be started, or is not started again;
    /// in another one, why what it decides cannot be stored at present, so that it decides nothing.
    pub error: Option<String>,
    /// The application's processes that are attached.
    pub sessions: Vec<SessionStatus>,
    /// What is protected.
    pub regions: Vec<RegionStatus>,
    /// How many more protected files there are than are listed: a document that is answered on the socket has a limit.
    pub regions_more: u64,
    /// Bytes of these.
    pub regions_more_bytes: u64,
    /// What matches `protect` at the source and is not protected, as of the last look.
    pub unprotected_files: Vec<UnprotectedFile>,
    /// How many more of these there are than are listed.
    pub unprotected_files_more: u64,
    /// The log at the source.
    pub log: Option<LogStatus>,
    /// A row for each destination at the source; at a destination the one row that is its own.
    pub destinations: Vec<DestinationStatus>,
    /// The archive at the source.
    pub archive: Option<ArchiveStatus>,
    /// At the source: whether the battery is enough for what is exposed; none where power is not watched and no battery configured.
    #[serde(default)]
    pub budget: Option<BudgetStatus>,
}

/// An archive.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ArchiveStatus {
    /// Its directory.
    pub dir: String,
    /// End of what is durable in it; none while it is not written.
    pub lsn_durable: Option<Lsn>,
    /// Why it was last given up.
    pub last_error: Option<String>,
    /// When this was true, RFC 3339.
    pub as_of: String,
}

/// An attached process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionStatus {
    /// Its number in the group.
    pub session: u32,
    /// Its process, if it can be seen from here.
    pub pid: Option<u32>,
    /// Its user.
    pub uid: u32,
    /// What it calls itself.
    pub program: String,
    /// How it finds its stores to mapped files: `scan` (PAGEMAP_SCAN), `soft-dirty` or `digest`; none if it never had to.
    pub tracker: Option<String>,
}

/// A protected file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RegionStatus {
    /// Number in the group.
    pub region: RegionId,
    /// Path at the source.
    pub path: String,
    /// Bytes.
    pub len: u64,
    /// What the file is; none if the kernel does not tell.
    pub memory: Option<MemoryKind>,
    /// Whether a process has mapped it at some time: such a file is searched for unprotected writes only once no program has it
    /// open any more and its time of modification moves.
    pub mapped: bool,
}

/// A file that matches `protect` and is not protected, or a directory that could not be looked into.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct UnprotectedFile {
    /// Path at the source.
    pub path: String,
    /// Why.
    pub why: String,
}

/// The log region.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LogStatus {
    /// What the ring is. Every record is shipped from there, and every adapter takes it as it is: a source stages nothing.
    pub memory: MemoryKind,
    /// Bytes of the ring.
    pub ring_bytes: u64,
    /// Bytes of memory that the log region takes at present: ring, slot table, dirty bitmap, region table.
    pub memory_bytes: u64,
    /// Bytes of memory that it takes at most.
    pub memory_limit_bytes: u64,
    /// Bytes of the ring that hold what some consumer still needs.
    pub used_bytes: u64,
    /// Times that the application outran the ring.
    pub times_ahead: u64,
    /// Milliseconds that its threads were held by a full ring, with `on_full = "block"`.
    pub blocked_ms: u64,
    /// Slots whose writer died in the middle.
    pub fillers: u64,
    /// Lines whose writer never paused for a consistent reading.
    pub torn_copies: u64,
    /// Level that the configuration has every drain wait for.
    pub commit: Level,
    /// Whether drains wait for it at present: not with `local`, and not from one that gave up until what it drained has come
    /// that far.
    pub commits_wait: bool,
    /// Drains that returned to the program although their level was not reached.
    pub commits_given_up: u64,
    /// Captures of processes that found no place among the log's writers. The destination has what they stored once a copy that
    /// began after it is complete.
    pub unrecorded: u64,
    /// Whether the application is ahead of the log right now.
    pub ahead: bool,
}

/// A group at one destination. Positions are those known to the node that answers, as of `as_of`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DestinationStatus {
    /// The destination's node.
    pub node: String,
    /// Part of the node that answers.
    pub role: Role,
    /// Generation.
    pub generation: Generation,
    /// One word for how it is.
    pub state: DestinationState,
    /// End of what the application published.
    pub lsn_published: Lsn,
    /// End of what has landed at the destination.
    pub lsn_received: Lsn,
    /// End of what survives the loss of the source.
    pub lsn_durable: Lsn,
    /// End of what is in the image.
    pub lsn_applied: Lsn,
    /// Bytes that would be lost with the source at this instant: published and not durable, and what a gap or an
    /// unfinished first sync leaves out. All of the regions while it is not known what the destination has.
    pub exposure_bytes: u64,
    /// Rate at which the tail was last seen to drain; none before anything was shipped.
    pub drain_bytes_per_s: Option<u64>,
    /// `tcp`, `verbs`; none while unconnected.
    pub fabric: Option<String>,
    /// What makes bytes survive there: `battery`, `pmem`, `disk`; none before it was declared.
    pub durability: Option<String>,
    /// Whether the data travels encrypted; none while unconnected.
    pub encrypted: Option<bool>,
    /// What the landing ring at the destination lies on; at the source none while unconnected.
    pub memory: Option<MemoryKind>,
    /// Whether records land in memory beside the destination's files first, since its adapter cannot be given memory of
    /// these; false: they land where they stay. At the source none while unconnected.
    pub staged: Option<bool>,
    /// At the source: whether the present connection went on where the image ended, from the log's ring; false: it began
    /// with a copy of everything. None while unconnected.
    pub resumed: Option<bool>,
    /// Pages of 4 KiB that were found changed without a record in the log, by sampling, since the agent started.
    pub unprotected_writes: u64,
    /// Of these, pages of files that no program had open: the agent has recorded them since, and the destination gets them.
    pub unprotected_writes_recorded: u64,
    /// A first sync or resync that is under way.
    pub sync: Option<SyncStatus>,
    /// Up to where a comparison of all regions with the image found nothing that no record tells of; none since the agent started.
    pub lsn_verified: Option<Lsn>,
    /// The last such comparison, under way or over.
    pub verify: Option<VerifyStatus>,
    /// The last thing that went wrong, with its time in front.
    pub last_error: Option<String>,
    /// When these numbers were true, RFC 3339.
    pub as_of: String,
}

/// How a destination is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DestinationState {
    /// No connection yet, or none any more: tried again and again. The group is unprotected.
    Connecting,
    /// It answered, and said no: see `last_error`. The group is unprotected until an operator acts.
    Refused,
    /// An operator wants nothing shipped there: it keeps what it has.
    Paused,
    /// A copy is under way or to come: its first one, or one of what the application did while it was ahead of the log. Nothing of that
    /// counts until the copy is complete.
    Syncing,
    /// Records flow and count, and tell everything.
    Streaming,
    /// Everything has been handed over: the destination has durably accepted the group.
    HandedOver,
    /// At a destination: no source is connected; the image stands still.
    Waiting,
    /// At a destination: the image cannot go on; see `last_error`.
    Poisoned,
}

impl DestinationState {
    /// The word in the document.
    pub fn word(self) -> &'static str {
        match self {
            DestinationState::Connecting => "connecting",
            DestinationState::Refused => "refused",
            DestinationState::Paused => "paused",
            DestinationState::Syncing => "syncing",
            DestinationState::Streaming => "streaming",
            DestinationState::HandedOver => "handed_over",
            DestinationState::Waiting => "waiting",
            DestinationState::Poisoned => "poisoned",
        }
    }
}

/// A comparison of all regions with a destination's image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyStatus {
    /// Its number since the agent started.
    pub run: u64,
    /// What was published when it began.
    pub lsn: Lsn,
    /// How far it is; none once it is over.
    pub progress: Option<SyncStatus>,
    /// When it was over, RFC 3339.
    pub ended: Option<String>,
    /// Bytes compared.
    pub compared_bytes: u64,
    /// Of these, bytes in cache lines that differ and that no record tells of.
    pub unrecorded_bytes: u64,
    /// And in cache lines of files that were ever mapped: what was stored there need not have been flushed.
    pub unflushed_bytes: u64,
    /// The first of what was found.
    pub ranges: Vec<RangeStatus>,
    /// How many more ranges there are.
    pub ranges_more: u64,
    /// Whether the destination is brought what differs.
    pub repairs: bool,
    /// Whether the destination has been brought a copy since, so that this says nothing of what it has.
    pub outdated: bool,
    /// Why it ended early.
    pub error: Option<String>,
}

/// A range that differs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RangeStatus {
    /// The region.
    pub region: RegionId,
    /// Its path.
    pub path: String,
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub bytes: u64,
    /// Whether a program may have stored and not flushed it; otherwise no record tells of it.
    pub unflushed: bool,
}

/// Progress of a copy or a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncStatus {
    /// Bytes looked at.
    pub done_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
    /// Bytes looked at in a second, since it began; none before that can be said, and at a destination.
    pub bytes_per_s: Option<u64>,
    /// Seconds that the rest takes at that rate.
    pub eta_s: Option<u64>,
}

impl SyncStatus {
    /// So much is done of so much, at this rate; 0: it is not known.
    pub fn at(done_bytes: u64, total_bytes: u64, bytes_per_s: u64) -> SyncStatus {
        let rate = Some(bytes_per_s).filter(|rate| *rate > 0);
        let eta_s = rate.map(|rate| total_bytes.saturating_sub(done_bytes).div_ceil(rate));
        SyncStatus { done_bytes, total_bytes, bytes_per_s: rate, eta_s }
    }
}
