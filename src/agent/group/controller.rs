//! What the daemon asks of whoever controls a group, and what a source's controller hears from its group.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use super::{Group, Region};
use crate::agent::events::Kind;
use crate::agent::source::Wish;
use crate::agent::status::{DestinationStatus, GroupStatus};
use crate::log::threshold::Thresholds;

/// Controls one group on this node, in whichever role (`agent::role`, `agent::local`). Called by sessions
/// and the daemon from any thread; no call but [`Controller::finish`] blocks for longer than a disk write.
pub trait Controller: Send + Sync {
    /// Name of the group.
    fn name(&self) -> &str;

    /// The group that an application may attach to at present, or why none may: the text goes to its user.
    fn attach(&self) -> Result<Arc<Group>, String>;

    /// How the group is at this instant.
    fn report(&self) -> GroupStatus;

    /// The node that this one has given the group up to, if it has.
    fn handed_over(&self) -> Option<String> {
        None
    }

    /// Operator: the last gasp, now. Returns once it has begun.
    fn last_gasp(&self) -> Result<(), String>;

    /// Operator: this node is to own the group. `force`: the operator's word that the source is dead. Returns once the
    /// promotion has begun.
    fn promote(&self, force: bool) -> Result<(), String>;

    /// Operator: the last gasp is called off. Returns once that has begun; before the start trigger was sent the application
    /// runs on at once, afterwards only when the heir has durably given the group back.
    fn cancel(&self) -> Result<(), String>;

    /// Operator: nothing is shipped to the destination of this name any more, or again. Of no effect if it is so already.
    fn set_paused(&self, node: &str, paused: bool) -> Result<(), String>;

    /// Operator: the group's regions are to be compared with a destination's image; with whose, and the number of the comparison. Returns
    /// once it has begun.
    fn verify(&self, wish: &Wish) -> Result<(String, u64), String>;

    /// External power came or went.
    fn power(&self, online: bool);

    /// Where its group is shipped from here: the destinations' rows of the status.
    fn streams(&self) -> Option<Vec<DestinationStatus>> {
        None
    }

    /// How much the group may expose to a loss of power; `None`: nobody is held to that.
    fn set_budget(&self, _thresholds: Option<Thresholds>) {}

    /// The agent is about to end: bring what is published to the destinations, or as much of it as `deadline` allows,
    /// and stop. What is left undone is returned as a sentence.
    fn finish(&self, deadline: Instant) -> Option<String>;
}

/// What happened in a [`Group`]. Handed to its controller on the thread where it happened, under the group's lock:
/// the receiver takes note and returns.
#[derive(Clone, Debug)]
pub enum Notice {
    /// A region was added: its creation is in the log. Unless `whole`, the file holds bytes that the log does not, so it is
    /// protected only once a sync has begun after this.
    RegionAdded {
        /// The region.
        region: Arc<Region>,
        /// Whether the log has all of the file: every byte was zero, or its content was appended there and then.
        whole: bool,
    },
    /// A file matches the group's patterns, and is not protected. Not told under the lock.
    NotProtected {
        /// The file, or a directory that could not be looked into.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// A process attached.
    ProcessAttached {
        /// Its process, if it can be seen from here.
        pid: Option<u32>,
    },
    /// A process ended while others go on.
    ProcessEnded {
        /// Its process, if it could be seen from here.
        pid: Option<u32>,
        /// How.
        ending: Ending,
    },
    /// The last process ended.
    ApplicationEnded(Ending),
}

impl Notice {
    /// What subscribers are told of it: kind and detail.
    pub fn event(&self) -> (Kind, Value) {
        match self {
            Notice::RegionAdded { region, .. } => (
                Kind::RegionProtected,
                json!({ "region": region.id(), "path": region.path(), "bytes": region.len() }),
            ),
            Notice::NotProtected { path, why } => {
                (Kind::NotProtected, json!({ "pid": null, "path": path, "reason": why }))
            }
            Notice::ProcessAttached { pid } => (Kind::ProcessAttached, json!({ "pid": pid })),
            Notice::ProcessEnded { pid, ending } => {
                (Kind::ProcessEnded, json!({ "pid": pid, "how": ending.word() }))
            }
            Notice::ApplicationEnded(ending) => (Kind::ApplicationEnded, json!({ "how": ending.word() })),
        }
    }
}

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ending {
    /// Of its own will.
    Exited,
    /// It died: what its launcher said of it, or that it vanished without a word.
    Died(String),
}

impl Ending {
    /// For events and messages.
    pub fn word(&self) -> &str {
        match self {
            Ending::Exited => "exited",
            Ending::Died(how) => how,
        }
    }
}
