//! What agents say to each other over the control channel.
//!
//! The source asks, the destination answers each ask once. Every ask may be repeated on a new connection
//! when its answer was lost: the second answer says what the first one said. `docs/protocol.md` has the
//! tables, the order of asks, and what each refusal means.

use serde::{Deserialize, Serialize};

use crate::fabric::{EndpointAddress, RemoteKey};
use crate::failover;
use crate::region::kind::MemoryKind;
use crate::types::{Durability, Generation, GroupId, LINE, LogId, Lsn, RegionId};

use super::frame::{self, FrameError, Way};

/// Longest name of a node or a group, in bytes.
pub const MAX_NAME: usize = 255;

/// Longest text meant for a person, in bytes; a longer one is cut by its author.
pub const MAX_TEXT: usize = 2048;

/// Most pages that are asked for at once: a megabyte for the destination to read.
pub const MAX_PAGES: usize = 256;

/// Most blocks that are asked for at once: what their digests take as text fits a message.
pub const MAX_BLOCKS: usize = 1024;

/// Smallest and largest block.
const BLOCKS: (u32, u32) = (4 << 10, 1 << 20);

/// Most bytes that an asker has the destination read at once.
const MAX_ASKED: u32 = 16 << 20;

/// What the source's agent asks.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case", deny_unknown_fields)]
pub enum Ask {
    /// First on every channel.
    Hello {
        /// The asking node; must be the name in its certificate.
        node: String,
        /// Its version of pmemha, for status and messages only.
        agent: String,
    },
    /// Take this group's stream.
    OpenGroup(OpenGroup),
    /// The fabric endpoint is connected: name its memory and begin. Answered by [`Answer::Attached`].
    Attach {
        /// Where the destination writes its `AckCell`.
        ack: RemoteKey,
        /// Position of the next byte that the source will write; records follow from here without a gap.
        from: Lsn,
        /// The records from here on begin a new image, in a stream of this number, which a copy for it alone names; null: the stream
        /// that was goes on.
        fresh: Option<u32>,
    },
    /// Is the group still open on this channel?
    Ping {},
    /// What does the live image hold? To find what passes the log by; on the channel of an open group.
    Digests {
        /// Of which region.
        region: RegionId,
        /// Numbers of its pages of 4 KiB, at most [`MAX_PAGES`].
        pages: Vec<u64>,
    },
    /// What does the image before the one being built hold? For a copy that brings only what differs; on any channel after Hello.
    Base {
        /// The group's name.
        group: String,
        /// Its identity.
        id: GroupId,
        /// Its generation at the source.
        generation: Generation,
        /// Just past the `SyncBegin` of the copy.
        begin: Lsn,
        /// The region's name.
        name: String,
        /// Bytes of a block: a power of two from 4 KiB to 1 MiB.
        block: u32,
        /// Number of the first block.
        first: u64,
        /// How many, at most [`MAX_BLOCKS`] and at most 16 MiB.
        count: u32,
    },
    /// What does the live image hold? To compare all of it; on any channel after Hello.
    Image {
        /// The group's name.
        group: String,
        /// Its identity.
        id: GroupId,
        /// Its generation at the source.
        generation: Generation,
        /// Of which region.
        region: RegionId,
        /// Bytes of a block: a power of two from 64 B to 1 MiB.
        block: u32,
        /// Number of the first block.
        first: u64,
        /// How many, at most [`MAX_BLOCKS`] and at most 16 MiB.
        count: u32,
    },
    /// Who owns the group; on any channel after Hello.
    Ownership {
        /// The group's name.
        group: String,
        /// Its identity.
        id: GroupId,
        /// The state machine's request.
        request: failover::Request,
    },
}

/// What the destination's agent answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case", deny_unknown_fields)]
pub enum Answer {
    /// To Hello.
    HelloOk {
        /// The answering node; must be the name in its certificate.
        node: String,
        /// Its version of pmemha.
        agent: String,
    },
    /// To OpenGroup.
    GroupOpened(GroupOpened),
    /// To Attach: bytes may be written.
    Attached {
        /// The landing ring.
        landing: RemoteKey,
    },
    /// To Ping: the group is still open on this channel.
    Pong {
        /// Why nothing becomes durable in the image at present, for a person; null: it does.
        fault: Option<String>,
    },
    /// To Digests.
    Digests {
        /// XXH3 of each page asked for, zeros behind the region's end included; empty if there is no live image of the region.
        digests: Vec<u64>,
    },
    /// To Base.
    Base {
        /// Whether the copy has begun there; if not, ask again.
        begun: bool,
        /// The region of the image before, if it has one of that name.
        region: Option<RegionId>,
        /// XXH3 of each block, zeros behind the region's end included.
        digests: Vec<u64>,
    },
    /// To Image.
    Image {
        /// XXH3 of each block, zeros behind the region's end included; empty if there is no live image of the region.
        digests: Vec<u64>,
    },
    /// To Ownership; what it promises is durable.
    Ownership {
        /// The state machine's answer.
        reply: failover::Answer,
    },
    /// No.
    Refused {
        /// Why, for the machine.
        reason: Refusal,
        /// The generation that the answering node knows of this group; 0 if none.
        generation: Generation,
        /// Why, for a person.
        message: String,
    },
}

/// Body of [`Ask::OpenGroup`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenGroup {
    /// The group's name, as both configurations have it.
    pub group: String,
    /// Its identity.
    pub id: GroupId,
    /// Its generation at the source.
    pub generation: Generation,
    /// The log.
    pub log: LogId,
    /// Bytes of the log ring; the landing ring is of the same size.
    pub ring_bytes: u64,
}

/// Body of [`Answer::GroupOpened`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupOpened {
    /// What the destination holds.
    pub have: ReplicaReport,
    /// What makes bytes survive there.
    pub durability: Durability,
    /// Whether the data path is encrypted.
    pub encrypt: bool,
    /// What the landing ring lies on, for the status.
    pub memory: MemoryKind,
    /// Whether records land in memory beside it first, for the status.
    pub staged: bool,
    /// Where to connect the fabric.
    pub offer: EndpointAddress,
}

/// What a destination holds of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplicaReport {
    /// Generation of its landing ring's records; 0 if it holds none.
    pub generation: Generation,
    /// End of the valid records that landed.
    pub landed: Lsn,
    /// End of those that are durable.
    pub durable: Lsn,
    /// End of those that are in an image, persistently: a source that resumes goes on here.
    pub applied: Lsn,
    /// Chained digest at `applied`.
    pub digest: u64,
    /// The log that the stream is of.
    pub log: LogId,
    /// Number of the stream, as the source gave it.
    pub stream: u32,
    /// The image.
    pub image: ImageState,
}

/// What a destination's image is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageState {
    /// Nothing could be promoted.
    None,
    /// A sync is under way.
    Syncing,
    /// A consistent image follows the stream.
    Consistent,
    /// A consistent image of an earlier moment, which does not follow the stream.
    Stale,
    /// The destination cannot go on applying without a new sync; its status says why.
    Poisoned,
}

/// Why a destination said no.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// The certificate's node may not do this: not configured as a source of the group, or `node` differs.
    NotAdmitted,
    /// No such group is configured here.
    UnknownGroup,
    /// The group has another identity here: two groups of one name.
    WrongGroup,
    /// The generation here is higher: the asking node has been superseded and must step down.
    StaleGeneration,
    /// This node is the group's active source.
    Active,
    /// The heir has begun to start: its stream takes nothing more.
    Promoting,
    /// An ask without the one that must come before it.
    OutOfOrder,
    /// The node cannot: the message says what failed.
    Failed,
}

/// Why bytes are not a message.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// The frame is wrong.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The body is not a message of this protocol.
    #[error("not a message of the control protocol: {0}")]
    Body(#[from] serde_json::Error),
    /// A name or text is longer than allowed, or empty.
    #[error("{what} of {len} bytes, allowed are 1 to {limit}")]
    Bounds {
        /// Which.
        what: &'static str,
        /// How long it is.
        len: usize,
        /// How long it may be.
        limit: usize,
    },
}

/// A body that goes one way.
pub trait Message: Serialize + for<'de> Deserialize<'de> {
    /// Which.
    const WAY: Way;
    /// Checks what the types do not.
    fn check(&self) -> Result<(), MessageError>;
}

impl Message for Ask {
    const WAY: Way = Way::Ask;

    fn check(&self) -> Result<(), MessageError> {
        match self {
            Ask::Hello { node, agent } => {
                bounded("the name of a node", node, MAX_NAME)?;
                bounded("a version", agent, MAX_NAME)
            }
            Ask::OpenGroup(OpenGroup { group, .. }) => bounded("the name of a group", group, MAX_NAME),
            Ask::Ownership { group, request, .. } => {
                bounded("the name of a group", group, MAX_NAME)?;
                match request {
                    failover::Request::SaveStarted { heir, .. } | failover::Request::Saved { heir, .. } => {
                        bounded("the name of a node", &heir.0, MAX_NAME)
                    }
                    _ => Ok(()),
                }
            }
            Ask::Digests { pages, .. } => many("the pages asked for", pages),
            Ask::Base { group, name, block, count, .. } => {
                bounded("the name of a group", group, MAX_NAME)?;
                bounded("the name of a region", name, crate::log::format::MAX_NAME)?;
                blocks(*block, BLOCKS.0, *count)
            }
            Ask::Image { group, block, count, .. } => {
                bounded("the name of a group", group, MAX_NAME)?;
                blocks(*block, LINE as u32, *count)
            }
            Ask::Attach { .. } | Ask::Ping {} => Ok(()),
        }
    }
}

impl Message for Answer {
    const WAY: Way = Way::Answer;

    fn check(&self) -> Result<(), MessageError> {
        match self {
            Answer::HelloOk { node, agent } => {
                bounded("the name of a node", node, MAX_NAME)?;
                bounded("a version", agent, MAX_NAME)
            }
            Answer::Refused { message, .. } => bounded("the text of a refusal", message, MAX_TEXT),
            Answer::Pong { fault: Some(fault) } => bounded("the text of a fault", fault, MAX_TEXT),
            Answer::Digests { digests } => many("the digests", digests),
            Answer::Base { digests, .. } | Answer::Image { digests } if digests.len() > MAX_BLOCKS => {
                Err(MessageError::Bounds { what: "the digests", len: digests.len(), limit: MAX_BLOCKS })
            }
            Answer::Base { .. } | Answer::Image { .. } => Ok(()),
            Answer::GroupOpened(_)
            | Answer::Attached { .. }
            | Answer::Pong { fault: None }
            | Answer::Ownership { .. } => Ok(()),
        }
    }
}

/// The frame that carries `message`.
pub fn encode<M: Message>(message: &M) -> Result<Vec<u8>, MessageError> {
    message.check()?;
    Ok(frame::encode(M::WAY, &serde_json::to_vec(message)?)?)
}

/// The message in a frame's `body`.
pub fn decode<M: Message>(body: &[u8]) -> Result<M, MessageError> {
    let message: M = serde_json::from_slice(body)?;
    message.check()?;
    Ok(message)
}

/// A refusal; `message` is cut to [`MAX_TEXT`].
pub fn refused(reason: Refusal, generation: Generation, message: impl Into<String>) -> Answer {
    Answer::Refused { reason, generation, message: cut(message.into()) }
}

/// A pong; `fault` is cut to [`MAX_TEXT`].
pub fn pong(fault: Option<String>) -> Answer {
    Answer::Pong { fault: fault.map(cut) }
}

fn cut(mut text: String) -> String {
    let mut end = text.len().min(MAX_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
    text
}

fn bounded(what: &'static str, text: &str, limit: usize) -> Result<(), MessageError> {
    match text.len() {
        len if (1..=limit).contains(&len) => Ok(()),
        len => Err(MessageError::Bounds { what, len, limit }),
    }
}

/// So many blocks of so many bytes may be asked for, the smallest block being `least`.
fn blocks(block: u32, least: u32, count: u32) -> Result<(), MessageError> {
    let whole = block.is_power_of_two() && (least..=BLOCKS.1).contains(&block);
    let limit = if whole { MAX_BLOCKS.min((MAX_ASKED / block) as usize) } else { 0 };
    match count as usize {
        len if len <= limit => Ok(()),
        len => Err(MessageError::Bounds { what: "the blocks asked for", len, limit }),
    }
}

fn many(what: &'static str, pages: &[u64]) -> Result<(), MessageError> {
    match pages.len() {
        len if len <= MAX_PAGES => Ok(()),
        len => Err(MessageError::Bounds { what, len, limit: MAX_PAGES }),
    }
}

#[cfg(test)]
mod tests;
