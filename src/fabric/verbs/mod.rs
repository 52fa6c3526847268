//! The fabric over RDMA: reliable connected queue pairs, one-sided writes and reads by the adapters themselves.
//!
//! libibverbs is opened at run time: where it or an adapter is missing, [`VerbsFabric::probe`] says so and everything else
//! works as ever. Every connection has an opened adapter, a protection domain and a queue pair of its own, so a peer's
//! keys mean nothing to another, and an adapter's failure ends connections one by one. Data is not encrypted; the
//! control connection over which the queue pairs are introduced is, and it stays: it notices a peer's end and carries
//! the word why.
//!
//! | file | what it is for | `unsafe` |
//! | --- | --- | --- |
//! | `ffi` | libibverbs, opened at run time | yes |
//! | `context`, `memory`, `queue`, `pair`, `chain` | the adapter's objects, each freed by its owner | yes |
//! | `adapter` | the rule that chooses adapter, port and address | no |
//! | `card`, `words` | bytes on the control connection | no |
//! | `ledger` | what is posted and what has ended | no |
//! | `connect` | how queue pairs are introduced | no |
//! | `link`, `engine`, `endpoint` | a connection, its thread, its face | no |
//!
//! `docs/fabric.md` draws the states and gives the reasons.

mod adapter;
mod card;
mod chain;
mod connect;
mod context;
mod endpoint;
mod engine;
mod ffi;
mod ledger;
mod link;
mod memory;
mod pair;
mod queue;
mod words;

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Instant;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use self::connect::Side;
use super::meeting::{Meeting, Place, Waiting};
use super::{Endpoint, EndpointAddress, Fabric, FabricError, Offer};

pub use self::adapter::{Choice, Gid, GidKind, Selected};

/// [`Fabric::kind`] of this fabric.
pub const KIND: &str = "verbs";

/// The verbs fabric of a node.
pub struct VerbsFabric {
    meeting: Arc<Meeting>,
    choice: Choice,
}

impl VerbsFabric {
    /// A fabric whose peers come through `meeting` and whose data goes through what `choice` names.
    pub fn over(meeting: Arc<Meeting>, choice: Choice) -> VerbsFabric {
        VerbsFabric { meeting, choice }
    }

    /// What a connection would use at this moment, to a peer of which nothing is known; else why verbs is off.
    pub fn probe(choice: &Choice) -> Result<Selected, VerbsError> {
        connect::probe(choice)
    }
}

impl Fabric for VerbsFabric {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn offer(&self) -> Result<Box<dyn Offer>, FabricError> {
        // Said here rather than when the peer has come.
        VerbsFabric::probe(&self.choice)?;
        let (waiting, place) = self.meeting.offer()?;
        Ok(Box::new(VerbsOffer { waiting, place, choice: self.choice.clone() }))
    }

    fn connect(&self, to: &EndpointAddress, deadline: Instant) -> Result<Arc<dyn Endpoint>, FabricError> {
        let place = Place::from_address(to, KIND)?;
        VerbsFabric::probe(&self.choice)?;
        let (peer, wire) = self.meeting.connect(&place, deadline)?;
        Ok(connect::establish(&self.choice, Side::Connecting, peer, wire, deadline)?)
    }
}

struct VerbsOffer {
    waiting: Waiting,
    place: Place,
    choice: Choice,
}

impl Offer for VerbsOffer {
    fn address(&self) -> EndpointAddress {
        self.place.address(KIND)
    }

    fn accept(self: Box<Self>, deadline: Instant) -> Result<Arc<dyn Endpoint>, FabricError> {
        let (peer, wire) = self.waiting.accept(deadline)?;
        Ok(connect::establish(&self.choice, Side::Offering, peer, wire, deadline)?)
    }
}

/// Why verbs is off, or what an adapter refused.
#[derive(Debug, thiserror::Error)]
pub enum VerbsError {
    /// libibverbs cannot be used.
    #[error("libibverbs cannot be used: {reason}")]
    Library {
        /// What the loader said, and what to do.
        reason: &'static str,
    },
    /// There is no adapter.
    #[error(
        "this node has no RDMA adapter (/sys/class/infiniband is empty): load its driver, or make a software one by \
         `rdma link add rxe0 type rxe netdev DEVICE`"
    )]
    NoDevice,
    /// The configuration names what is not there.
    #[error("[rdma] names an adapter or port that is not there; there are: {known}")]
    UnknownPort {
        /// What there is.
        known: String,
    },
    /// No packets pass.
    #[error("{device} port {port} is not active: check cable, switch and `ip link`")]
    PortDown {
        /// The adapter.
        device: String,
        /// The port.
        port: u8,
    },
    /// The port has no address.
    #[error("{device} port {port} has no GID: give its network interface an address")]
    NoAddress {
        /// The adapter.
        device: String,
        /// The port.
        port: u8,
    },
    /// The configured address is not there.
    #[error(
        "{device} port {port} has no GID at index {index}, which gid_index in [rdma] names: `rdma link` and /sys/class/infiniband/{device}/ports/{port}/gids list them"
    )]
    NoGid {
        /// The adapter.
        device: String,
        /// The port.
        port: u8,
        /// The index.
        index: u8,
    },
    /// The adapter or the system refused.
    #[error("{what}: {source}")]
    System {
        /// What was attempted, with what.
        what: String,
        /// The answer.
        source: io::Error,
    },
}

impl From<VerbsError> for FabricError {
    fn from(error: VerbsError) -> FabricError {
        match error {
            VerbsError::System { what, source } => FabricError::System { what, source },
            other => FabricError::Unavailable { kind: KIND, reason: other.to_string() },
        }
    }
}

fn never_block(fd: impl AsFd) -> io::Result<()> {
    let flags = fcntl_getfl(&fd)?;
    Ok(fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?)
}
