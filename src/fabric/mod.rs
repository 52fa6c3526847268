//! One-sided memory fabric: the contract, and its implementations.
//!
//! A peer writes into and reads from memory that we registered for it, without any thread of the rooms
//! above taking part. `tcp` emulates this over a socket; `verbs` is RDMA. Both pass one conformance suite
//! (`tests/conformance/`), which states the contract as tests; `docs/fabric.md` states it as prose.
//!
//! # Contract
//! - Writes posted on one endpoint land in the order in which they were posted; the bytes of one write
//!   land in no particular order. A completion of a write means that every byte of it and of all writes
//!   posted before it stands in the peer's memory; it says nothing of persistence.
//! - A failed or closed endpoint completes everything that was posted, with an error.
//! - After [`Endpoint::revoke`] returned, no byte of the peer's lands any more, whatever was in flight,
//!   and the peer's posts complete with an error.
//! - A peer reaches registered memory only through a [`RemoteKey`] of a live registration on the same
//!   endpoint and only with the access it was registered for; anything else ends the connection.
//! - All methods may be called from any thread.

mod connection;
pub mod meeting;
pub mod tcp;
pub mod tls;
#[cfg(feature = "verbs")]
pub mod verbs;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::region::memory::SharedMem;

/// What a peer may do to a registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoteAccess {
    /// None: the memory is only the local end of our own writes and reads.
    Local,
    /// Read.
    Read,
    /// Write (and, since a write's placement is proven by reading it back, read).
    Write,
}

/// Names a registration to the peer. Travels over the control channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RemoteKey {
    /// Unguessable token (tcp) or rkey (verbs).
    pub key: u64,
    /// Address that offset 0 has on the wire.
    pub addr: u64,
    /// Bytes registered.
    pub len: u64,
}

impl RemoteKey {
    /// Refuses bytes that lie outside it; the peer's fabric looks again.
    fn check(&self, offset: u64, len: usize) -> Result<(), FabricError> {
        match offset.checked_add(len as u64) {
            Some(end) if end <= self.len => Ok(()),
            _ => Err(FabricError::Access(format!(
                "remote bytes {offset}+{len} outside a registration of {} bytes",
                self.len
            ))),
        }
    }
}

/// Where an endpoint can be reached; opaque to everyone but the fabric that made it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EndpointAddress {
    /// [`Fabric::kind`] of the maker.
    pub kind: String,
    /// What the maker needs to connect.
    pub detail: serde_json::Value,
}

/// A piece of registered local memory.
#[derive(Clone, Copy, Debug)]
pub struct Local<'a> {
    /// The registration.
    pub memory: &'a Arc<dyn Registration>,
    /// First byte; for a ring it may run past the end into the second mapping.
    pub offset: usize,
    /// Number of bytes.
    pub len: usize,
}

impl Local<'_> {
    /// Refuses bytes that lie outside `memory`, which is what the registration stands for.
    fn check(&self, memory: &SharedMem) -> Result<(), FabricError> {
        let &Local { offset, len, .. } = self;
        if memory.contains(offset, len) {
            return Ok(());
        }
        Err(FabricError::Access(format!(
            "local bytes {offset}+{len} outside memory of {} bytes",
            memory.len()
        )))
    }
}

/// A write into the peer's memory.
#[derive(Clone, Copy, Debug)]
pub struct Write<'a> {
    /// Source of the bytes; must not be changed until completion (the log's published records are not).
    pub local: Local<'a>,
    /// Target registration.
    pub remote: RemoteKey,
    /// Offset in it.
    pub remote_offset: u64,
    /// Raises an event at the peer after the bytes have landed: wakes one that sleeps.
    pub immediate: Option<u32>,
    /// Asks for a completion with this number.
    pub signal: Option<u64>,
}

/// The end of a signalled request.
#[derive(Debug)]
pub struct Completion {
    /// The number it was posted with.
    pub id: u64,
    /// How it ended.
    pub result: Result<(), FabricError>,
}

/// What [`Endpoint::wait`] saw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wake {
    /// Completions can be polled, or an immediate arrived, or [`Endpoint::interrupt`] was called.
    Ready,
    /// The time is over.
    TimedOut,
    /// The endpoint is dead; poll what is left and drop it.
    Closed,
}

/// Why a fabric refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum FabricError {
    /// The connection is gone.
    #[error("connection to {peer} lost: {reason}")]
    Disconnected {
        /// Who was at the other end.
        peer: String,
        /// What the system said.
        reason: String,
    },
    /// The peer took our access away.
    #[error("{peer} revoked our access: another node has been promoted, or the group was closed there")]
    Revoked {
        /// Who was at the other end.
        peer: String,
    },
    /// A request named memory out of bounds or not registered.
    #[error("request outside registered memory: {0}")]
    Access(String),
    /// Too much in flight; poll first.
    #[error("{in_flight} requests in flight, the limit of this endpoint: poll completions first")]
    Busy {
        /// Requests posted and not completed.
        in_flight: usize,
    },
    /// The adapter cannot be given this memory: register other memory, and copy.
    #[error("{what}: {source}; this kind of memory cannot stay in place for the adapter")]
    NotRegistrable {
        /// What was attempted.
        what: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// This node cannot use this kind of network.
    #[error("{kind} is off here: {reason}")]
    Unavailable {
        /// [`Fabric::kind`].
        kind: &'static str,
        /// Why, and what to do.
        reason: String,
    },
    /// The system refused a resource.
    #[error("{what}: {source}")]
    System {
        /// What was attempted.
        what: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The peer spoke another language.
    #[error("protocol error from {peer}: {what}")]
    Protocol {
        /// Who was at the other end.
        peer: String,
        /// What was wrong.
        what: String,
    },
}

/// A kind of network.
pub trait Fabric: Send + Sync {
    /// `tcp`, `verbs`.
    fn kind(&self) -> &'static str;
    /// The passive half of a connection: reserves an endpoint whose address goes to the peer.
    fn offer(&self) -> Result<Box<dyn Offer>, FabricError>;
    /// The active half: connects to an offer's address.
    fn connect(&self, to: &EndpointAddress, deadline: Instant) -> Result<Arc<dyn Endpoint>, FabricError>;
}

/// An endpoint that waits for its peer. Dropped, it is withdrawn.
pub trait Offer: Send {
    /// What the peer needs.
    fn address(&self) -> EndpointAddress;
    /// Waits for the peer.
    fn accept(self: Box<Self>, deadline: Instant) -> Result<Arc<dyn Endpoint>, FabricError>;
}

/// Registered memory; deregistered when the last clone is dropped.
pub trait Registration: Send + Sync + std::fmt::Debug {
    /// What a peer needs to reach it.
    fn key(&self) -> RemoteKey;
    /// The memory.
    fn memory(&self) -> &Arc<SharedMem>;
}

/// One end of a connection; both ends can do everything.
pub trait Endpoint: Send + Sync {
    /// Name of the peer for messages.
    fn peer(&self) -> &str;
    /// Whether the bytes are encrypted on the wire.
    fn encrypted(&self) -> bool;
    /// Makes memory usable on this endpoint. For a ring the remote sees it once, without the second mapping.
    fn register(
        &self,
        memory: Arc<SharedMem>,
        access: RemoteAccess,
    ) -> Result<Arc<dyn Registration>, FabricError>;
    /// Posts writes in order. Nothing was posted when it returns an error.
    fn write(&self, writes: &[Write<'_>]) -> Result<(), FabricError>;
    /// Posts a read of the peer's memory into `into`; ordered after all writes posted before.
    fn read(
        &self,
        into: Local<'_>,
        remote: RemoteKey,
        remote_offset: u64,
        signal: u64,
    ) -> Result<(), FabricError>;
    /// Moves completions to `out`; returns how many.
    fn poll(&self, out: &mut Vec<Completion>) -> usize;
    /// Takes the oldest immediate that the peer sent.
    fn take_immediate(&self) -> Option<u32>;
    /// Sleeps until something happens. Edge-free: returns at once while something can be taken.
    fn wait(&self, timeout: Duration) -> Wake;
    /// Makes one `wait` (a present or the next one) return.
    fn interrupt(&self);
    /// A function to be called, from a thread of the fabric's, whenever a completion or immediate arrives or
    /// the endpoint dies; must be quick and must not call back into the endpoint. Also called once soon after
    /// it was set, lest something be missed that came before. Replaces one set earlier. What arrives while a caller
    /// keeps polling may be left to its polls; who stops polling says so by `wait`, with no time if need be, and is
    /// called from then on (without it, a moment later).
    fn on_event(&self, notify: Box<dyn Fn() + Send + Sync>);
    /// Takes the peer's access away and waits until nothing of its can land. The endpoint is dead then, for our
    /// own requests as well.
    fn revoke(&self) -> Result<(), FabricError>;
    /// How many requests may be posted and not settled, and how many signalled ones not polled. An unsignalled
    /// request counts until a later signalled one completes.
    fn limit(&self) -> usize;
}

/// `N` bytes that nobody can guess.
fn random<const N: usize>() -> Result<[u8; N], FabricError> {
    let mut bytes = [0; N];
    rustls::crypto::ring::default_provider().secure_random.fill(&mut bytes).map_err(|_| {
        FabricError::System {
            what: "drawing random bytes".to_owned(),
            source: io::Error::other("the system's random source failed"),
        }
    })?;
    Ok(bytes)
}
