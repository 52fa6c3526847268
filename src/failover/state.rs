//! The state of one group on one node: what must outlive the agent, and what it is doing right now.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::event::{Alarm, Cause};
use crate::types::{Generation, Lsn};

/// Version of [`Durable`] as it is stored.
pub const DURABLE_VERSION: u32 = 1;

/// Attempt number of a promotion that no trigger asked for (operator, arbiter). No source ever counts this
/// far, so a cancel never matches it.
pub const UNTRIGGERED: u32 = u32::MAX;

/// Name of a node, as the configuration has it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeName(pub String);

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Identity of a machine's boot (`/proc/sys/kernel/random/boot_id`), so that a returned machine is told from a
/// restarted agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootId(pub [u8; 16]);

impl BootId {
    /// Parses the kernel's text form (a UUID).
    pub fn parse(text: &str) -> Option<Self> {
        let digits: Vec<u8> = text
            .trim()
            .chars()
            .filter(|c| *c != '-')
            .map(|c| c.to_digit(16).map(|d| d as u8))
            .collect::<Option<_>>()?;
        let mut id = [0; 16];
        if digits.len() != 2 * id.len() {
            return None;
        }
        for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = pair[0] << 4 | pair[1];
        }
        Some(Self(id))
    }
}

/// One attempt of a source to hand its group over. Ordered; never used twice for a trigger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Round {
    /// Generation of the source.
    pub generation: Generation,
    /// Number of the attempt within the generation, from 1.
    pub attempt: u32,
}

impl fmt::Display for Round {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.attempt {
            UNTRIGGERED => write!(f, "{}.-", self.generation),
            attempt => write!(f, "{}.{attempt}", self.generation),
        }
    }
}

/// What the last gasp brought to the heir.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Saved {
    /// End of the log: every record below it is durable at the heir.
    pub lsn: Lsn,
    /// Digest chained over the records up to `lsn`.
    pub digest: u64,
}

/// What entitles a destination to become the owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Mandate {
    /// `saved` named this node.
    Saved(Saved),
    /// `save-started` named this node, and `saved` has not come yet.
    SaveStarted,
    /// The arbiter says that the source is gone and fenced.
    Arbiter,
    /// The operator says that the source is dead.
    Force,
}

/// How far an owner has come with the application of its generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The image is not yet where the application opens it.
    Promoted,
    /// It is, and the application has not written yet as far as we know.
    Placed,
    /// The application has run here.
    Begun,
    /// It has run, and ended of its own will or the operator's: nothing is to start it, nor to take its absence for a death.
    Ended,
}

/// Where the node stands with the group; survives agent and machine.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Standing {
    /// The group is ours: source.
    Owner {
        /// Last attempt that gave the group up in this generation; 0 if none.
        attempt: u32,
        /// How far the application has come.
        stage: Stage,
    },
    /// The group was ours; the heir may run it at any moment. Nothing here may write.
    GivenUp {
        /// The attempt.
        attempt: u32,
        /// Who may run it.
        heir: NodeName,
        /// What made us give it up.
        cause: Cause,
        /// None until the tail is at the heir (only where `save-started` is the trigger).
        saved: Option<Saved>,
        /// The application was found running afterwards, so the trigger was never sent, and never may be: what
        /// the heir holds is no longer all. The group is to be taken back.
        withdrawn: bool,
    },
    /// Another node owns the group, our image follows it.
    Standby {
        /// Highest round that we promised never to act on.
        cancelled: Option<Round>,
    },
    /// We are entitled to own the group and are about to.
    Triggered {
        /// The source's attempt, or [`UNTRIGGERED`].
        round: Round,
        /// By what.
        mandate: Mandate,
        /// Highest round that we promised never to act on.
        cancelled: Option<Round>,
    },
    /// We owned an older generation. What is here is no image of the present one until it has been synced.
    Demoted {
        /// Highest round that we promised never to act on.
        cancelled: Option<Round>,
    },
}

/// The part of the state that is stored before anything that rests on it is done.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Durable {
    /// [`DURABLE_VERSION`].
    pub version: u32,
    /// Boot of the machine that stored it.
    pub boot: BootId,
    /// Highest generation that this node knows to exist.
    pub generation: Generation,
    /// Where we stand.
    pub standing: Standing,
}

/// What the node is doing with the group right now; lost with the agent. One word each, shown in status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Owner after a reboot: nothing is started before the peer or the operator has said that the group is still ours.
    Returned,
    /// Owner: the image is being placed where the application opens it.
    Placing,
    /// Owner: the application may run and has not reported yet.
    Starting,
    /// Owner: the application runs.
    Running,
    /// Owner: the application ended and is not to be restarted by us; it may come back by itself.
    Stopped,
    /// Owner: the application is being frozen (or killed, past the deadline).
    Freezing,
    /// Frozen or dead, the log's tail is on its way. Owner, or given up where `save-started` is the trigger.
    Saving,
    /// Given up: the trigger is out and not answered.
    HandingOver,
    /// Given up: the heir has durably accepted.
    HandedOver,
    /// Given up, and the application was found running (the agent died before the trigger was sent): being frozen.
    Refreezing,
    /// Given up: we want it back and have asked the heir.
    Cancelling,
    /// Standby: our image follows.
    Standby,
    /// Standby: the source says that its last gasp has begun.
    SaveStarted,
    /// Triggered by `save-started`: waiting for `saved`.
    AwaitingSaved,
    /// Triggered: taking the source's access away.
    Revoking,
    /// Triggered: applying what landed and verifying the image.
    Verifying,
    /// Triggered or owner: the image could not be verified or placed; an operator is needed.
    Unable,
    /// Triggered, after a reboot: the source or the operator must say that the trigger still holds.
    Doubtful,
    /// Demoted: waiting to be synced.
    Demoted,
}

impl Phase {
    /// The word in status, documents and messages: the one that serde writes.
    pub fn word(self) -> &'static str {
        match self {
            Phase::Returned => "returned",
            Phase::Placing => "placing",
            Phase::Starting => "starting",
            Phase::Running => "running",
            Phase::Stopped => "stopped",
            Phase::Freezing => "freezing",
            Phase::Saving => "saving",
            Phase::HandingOver => "handing_over",
            Phase::HandedOver => "handed_over",
            Phase::Refreezing => "refreezing",
            Phase::Cancelling => "cancelling",
            Phase::Standby => "standby",
            Phase::SaveStarted => "save_started",
            Phase::AwaitingSaved => "awaiting_saved",
            Phase::Revoking => "revoking",
            Phase::Verifying => "verifying",
            Phase::Unable => "unable",
            Phase::Doubtful => "doubtful",
            Phase::Demoted => "demoted",
        }
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// The application of the group on this node, as last known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Life {
    /// At least one process may write.
    Running,
    /// Processes exist, none can run.
    Frozen,
    /// No process exists.
    Gone,
}

/// External power, as last heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mains {
    /// Nothing heard since the agent started.
    Unknown,
    /// On mains.
    Online,
    /// On battery.
    Lost,
}

/// State of one group on one node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct State {
    /// What is stored (or is being stored: see [`super::Action::Persist`]).
    pub durable: Durable,
    /// What is going on.
    pub phase: Phase,
    /// The application here.
    pub application: Life,
    /// External power.
    pub mains: Mains,
    /// The group stays here for as long as power is lost: it was taken over so, or the operator said so.
    pub holds_out: bool,
    /// What the present attempt is for; meaningful from [`Phase::Freezing`] to [`Phase::Cancelling`].
    pub cause: Cause,
    /// The present or last attempt; never behind the durable one.
    pub attempt: u32,
    /// The log region in memory did not survive: the next start makes a new one, and with it a generation.
    pub log_lost: bool,
    /// Unrepeatable number of this life of the agent: answers to earlier lives are told by it.
    pub life: u64,
    /// From the order to start until it is done, has failed, or is made void by a kill. An end that is heard meanwhile is of what
    /// ran before.
    pub start_ordered: bool,
    /// Starts in a row that failed.
    pub failed_starts: u32,
    /// Heirs that could not take the group over, until power or an operator gives reason to ask them again.
    pub passed_over: BTreeSet<NodeName>,
}

impl State {
    /// Whether a process of the application may write to the group's regions on this node.
    pub fn admits_application(&self) -> bool {
        matches!(self.durable.standing, Standing::Owner { .. })
            && matches!(self.phase, Phase::Starting | Phase::Running | Phase::Stopped)
    }

    /// Why an operator's word to promote is refused in this state. None: it is heeded, or asks for what is so already.
    pub fn refuses_promotion(&self, force: bool) -> Option<Alarm> {
        match (&self.durable.standing, self.phase) {
            (Standing::Demoted { .. }, _) => Some(Alarm::NoImage),
            _ if force => None,
            (Standing::GivenUp { .. } | Standing::Standby { .. }, _) => Some(Alarm::NoMandate),
            (Standing::Owner { .. }, Phase::Returned) => Some(Alarm::NoMandate),
            (Standing::Triggered { .. }, Phase::AwaitingSaved | Phase::Doubtful) => Some(Alarm::NoMandate),
            (Standing::Owner { .. } | Standing::Triggered { .. }, _) => None,
        }
    }

    /// Which of `all` may be the heir now: given up to one, nobody else.
    pub fn heirs(&self, all: &[NodeName]) -> Vec<NodeName> {
        match &self.durable.standing {
            Standing::GivenUp { heir, .. } => vec![heir.clone()],
            _ => all.iter().filter(|heir| !self.passed_over.contains(heir)).cloned().collect(),
        }
    }

    /// The round of the present attempt.
    pub fn round(&self) -> Round {
        Round { generation: self.durable.generation, attempt: self.attempt }
    }

    /// Whether this node is the group's source, as status has it; else it is a destination.
    pub fn is_source(&self) -> bool {
        match self.durable.standing {
            Standing::Owner { .. } | Standing::GivenUp { .. } => true,
            Standing::Standby { .. } | Standing::Triggered { .. } | Standing::Demoted { .. } => false,
        }
    }
}

/// What to do when the application dies (a clean exit is no death), as the configuration has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnDeath {
    /// Hand the group over to the heir.
    Failover,
    /// Start it here again.
    Restart,
    /// Report it; what was published is shipped as ever, and nothing is started.
    #[default]
    None,
}

/// Which signal gives up ownership, as the configuration has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trigger {
    /// `saved`: the heir holds everything.
    #[default]
    Saved,
    /// `save-started`: the heir may go on with what it has if `saved` does not come in time.
    SaveStarted,
}

/// How long phases may last before [`super::Event::Timeout`] is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Patience {
    /// Freezing, before the application is killed.
    pub freeze: Duration,
    /// Bringing the tail to the heir.
    pub save: Duration,
    /// Waiting for an answer of the other node before asking again.
    pub answer: Duration,
    /// A destination's wait for `saved` after `save-started`.
    pub saved: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            freeze: Duration::from_secs(2),
            save: Duration::from_secs(30),
            answer: Duration::from_millis(500),
            saved: Duration::from_secs(60),
        }
    }
}

/// The configuration of a group as far as it decides something here.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Policy {
    /// This node.
    pub node: NodeName,
    /// Whom we may name when we give up the group, the preferred one first; none: no failover from here.
    pub heirs: Vec<NodeName>,
    /// What the death of the application means.
    pub on_death: OnDeath,
    /// What gives up ownership.
    pub trigger: Trigger,
    /// Whether there is a command that starts the application; without, somebody does so by hand.
    pub has_command: bool,
    /// Starts of the application in a row that may fail.
    pub start_limit: u32,
    /// Time limits.
    pub patience: Patience,
    /// The machine's present boot.
    pub boot: BootId,
}

impl Policy {
    /// How long `phase` may last before a timeout event is due; none: for ever.
    pub fn patience(&self, phase: Phase) -> Option<Duration> {
        match phase {
            Phase::Freezing | Phase::Refreezing => Some(self.patience.freeze),
            Phase::Saving => Some(self.patience.save),
            Phase::Returned | Phase::HandingOver | Phase::HandedOver | Phase::Cancelling => {
                Some(self.patience.answer)
            }
            Phase::SaveStarted | Phase::AwaitingSaved => Some(self.patience.saved),
            Phase::Placing
            | Phase::Starting
            | Phase::Running
            | Phase::Stopped
            | Phase::Standby
            | Phase::Revoking
            | Phase::Verifying
            | Phase::Unable
            | Phase::Doubtful
            | Phase::Demoted => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_phase_has_the_same_word_in_messages_and_in_documents() {
        for word in words() {
            let phase: Phase = serde_json::from_value(word.clone().into()).unwrap();
            assert_eq!(phase.to_string(), word);
        }
    }

    /// Every word that serde takes for a phase, as its complaint about another one has them.
    fn words() -> Vec<String> {
        let complaint = serde_json::from_str::<Phase>("\"?\"").unwrap_err().to_string();
        let words: Vec<_> = complaint.split('`').skip(3).step_by(2).map(str::to_owned).collect();
        assert!(words.len() > 10, "{complaint}");
        words
    }
}
