//! What agents say to each other over the control channel.
//!
//! The source asks, the destination answers each ask once. Every ask may be repeated on a new connection
//! when its answer was lost: the second answer says what the first one said. `docs/protocol.md` has the
//! tables, the order of asks, and what each refusal means.

use serde::{Deserialize, Serialize};

use crate::fabric::{EndpointAddress, RemoteKey};
use crate::failover;
use crate::types::{Durability, Generation, GroupId, Lsn, RegionId};

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
    Pong {},
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
                let whole = block.is_power_of_two() && (BLOCKS.0..=BLOCKS.1).contains(block);
                let limit = if whole { MAX_BLOCKS.min((MAX_ASKED / block) as usize) } else { 0 };
                match *count as usize {
                    len if len <= limit => Ok(()),
                    len => Err(MessageError::Bounds { what: "the blocks asked for", len, limit }),
                }
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
            Answer::Digests { digests } => many("the digests", digests),
            Answer::Base { digests, .. } if digests.len() > MAX_BLOCKS => {
                Err(MessageError::Bounds { what: "the digests", len: digests.len(), limit: MAX_BLOCKS })
            }
            Answer::Base { .. } => Ok(()),
            Answer::GroupOpened(_) | Answer::Attached { .. } | Answer::Pong {} | Answer::Ownership { .. } => {
                Ok(())
            }
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
    let mut message = message.into();
    let mut end = message.len().min(MAX_TEXT);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    message.truncate(end);
    Answer::Refused { reason, generation, message }
}

fn bounded(what: &'static str, text: &str, limit: usize) -> Result<(), MessageError> {
    match text.len() {
        len if (1..=limit).contains(&len) => Ok(()),
        len => Err(MessageError::Bounds { what, len, limit }),
    }
}

fn many(what: &'static str, pages: &[u64]) -> Result<(), MessageError> {
    match pages.len() {
        len if len <= MAX_PAGES => Ok(()),
        len => Err(MessageError::Bounds { what, len, limit: MAX_PAGES }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failover::{NodeName, Request, Round, Saved};
    use proptest::prelude::*;

    fn report() -> ReplicaReport {
        ReplicaReport {
            generation: Generation(3),
            landed: Lsn(96),
            durable: Lsn(64),
            applied: Lsn(32),
            digest: 7,
            stream: 9,
            image: ImageState::Consistent,
        }
    }

    #[test]
    fn messages_are_golden() {
        let ask = Ask::Attach { ack: RemoteKey { key: 1, addr: 2, len: 64 }, from: Lsn(5), fresh: Some(9) };
        let text = r#"{"ask":"attach","ack":{"key":1,"addr":2,"len":64},"from":5,"fresh":9}"#;
        assert_eq!(serde_json::to_string(&ask).unwrap(), text);
        assert_eq!(decode::<Ask>(text.as_bytes()).unwrap(), ask);

        let text = r#"{"answer":"pong"}"#;
        assert_eq!(serde_json::to_string(&Answer::Pong {}).unwrap(), text);
        assert_eq!(decode::<Answer>(text.as_bytes()).unwrap(), Answer::Pong {});

        let text = r#"{"generation":3,"landed":96,"durable":64,"applied":32,"digest":7,"stream":9,"image":"consistent"}"#;
        assert_eq!(serde_json::to_string(&report()).unwrap(), text);
        assert_eq!(serde_json::from_str::<ReplicaReport>(text).unwrap(), report());
    }

    #[test]
    fn unknown_fields_and_kinds_are_refused() {
        for text in [
            r#"{"ask":"ping","more":1}"#,
            r#"{"ask":"pong"}"#,
            r#"{"ask":"attach","ack":{"key":1,"addr":2,"len":64},"from":-5,"fresh":9}"#,
            r#"{"ask":"attach","ack":{"key":1,"addr":2,"len":64,"rights":7},"from":5,"fresh":9}"#,
            r#"[]"#,
            "",
        ] {
            assert!(decode::<Ask>(text.as_bytes()).is_err(), "accepted {text}");
        }
    }

    #[test]
    fn names_are_bounded() {
        let hello = |node: String| Ask::Hello { node, agent: "1".into() };
        assert!(encode(&hello("n".repeat(MAX_NAME))).is_ok());
        assert!(encode(&hello("n".repeat(MAX_NAME + 1))).is_err());
        assert!(encode(&hello(String::new())).is_err());
    }

    #[test]
    fn pages_asked_for_at_once_are_bounded() {
        let ask = |pages: usize| Ask::Digests { region: RegionId(1), pages: vec![u64::MAX; pages] };
        assert!(encode(&ask(MAX_PAGES)).is_ok());
        assert!(encode(&ask(MAX_PAGES + 1)).is_err());
        assert!(encode(&Answer::Digests { digests: vec![0; MAX_PAGES + 1] }).is_err());
    }

    #[test]
    fn a_long_refusal_is_cut_at_a_character() {
        let Answer::Refused { message, .. } = refused(Refusal::Failed, Generation(1), "é".repeat(MAX_TEXT))
        else {
            unreachable!()
        };
        assert_eq!(message.len(), MAX_TEXT);
        assert!(encode(&refused(Refusal::Failed, Generation(1), "é".repeat(2 * MAX_TEXT + 1))).is_ok());
    }

    fn asks() -> impl Strategy<Value = Ask> {
        let key = (any::<u64>(), any::<u64>(), any::<u64>()).prop_map(|(key, addr, len)| RemoteKey {
            key,
            addr,
            len,
        });
        prop_oneof![
            ("[a-z]{1,255}", ".{1,40}").prop_map(|(node, agent)| Ask::Hello { node, agent }),
            ("[a-z]{1,255}", any::<[u8; 16]>(), any::<u32>(), any::<u64>()).prop_map(
                |(group, id, generation, ring_bytes)| {
                    Ask::OpenGroup(OpenGroup {
                        group,
                        id: GroupId(id),
                        generation: Generation(generation),
                        ring_bytes,
                    })
                }
            ),
            (key, any::<u64>(), any::<Option<u32>>()).prop_map(|(ack, from, fresh)| Ask::Attach {
                ack,
                from: Lsn(from),
                fresh
            }),
            Just(Ask::Ping {}),
            ("[a-z]{1,255}", any::<[u8; 16]>(), requests()).prop_map(|(group, id, request)| Ask::Ownership {
                group,
                id: GroupId(id),
                request
            }),
        ]
    }

    fn requests() -> impl Strategy<Value = Request> {
        let round = (any::<u32>(), any::<u32>())
            .prop_map(|(g, attempt)| Round { generation: Generation(g), attempt });
        let heir = "[a-z]{1,255}".prop_map(NodeName);
        prop_oneof![
            (round.clone(), heir.clone(), any::<bool>())
                .prop_map(|(round, heir, trigger)| { Request::SaveStarted { round, heir, trigger } }),
            (round.clone(), heir, any::<u64>(), any::<u64>()).prop_map(|(round, heir, lsn, digest)| {
                Request::Saved { round, heir, saved: Saved { lsn: Lsn(lsn), digest } }
            }),
            round.clone().prop_map(|round| Request::Cancel { round }),
            (round, any::<u64>()).prop_map(|(round, life)| Request::Confirm { round, life }),
            (any::<u32>(), any::<u64>())
                .prop_map(|(g, life)| Request::Ask { generation: Generation(g), life }),
        ]
    }

    proptest! {
        #[test]
        fn every_ask_comes_back(ask in asks()) {
            let frame = encode(&ask).unwrap();
            let head = frame::decode(frame[..frame::HEAD].try_into().unwrap()).unwrap();
            prop_assert_eq!(head.way, Way::Ask);
            prop_assert_eq!(head.len, frame.len() - frame::HEAD);
            prop_assert_eq!(decode::<Ask>(&frame[frame::HEAD..]).unwrap(), ask);
        }

        #[test]
        fn garbage_is_never_a_panic(body in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode::<Ask>(&body);
            let _ = decode::<Answer>(&body);
        }

        #[test]
        fn a_damaged_ask_is_refused_or_a_bounded_ask(ask in asks(), at: prop::sample::Index, byte: u8) {
            let mut frame = encode(&ask).unwrap();
            let at = frame::HEAD + at.index(frame.len() - frame::HEAD);
            frame[at] = byte;
            if let Ok(other) = decode::<Ask>(&frame[frame::HEAD..]) {
                prop_assert!(other.check().is_ok());
            }
        }
    }
}
