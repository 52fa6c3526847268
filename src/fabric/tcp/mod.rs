//! The fabric where there is no RDMA device: one-sided semantics over a socket.
//!
//! Every endpoint has a thread, its engine, that does what a NIC would: it lands the peer's writes in registered
//! memory, answers its reads and acknowledges both, without any thread of the rooms above. Callers send from
//! registered memory themselves where the socket takes it, and never wait for the network.
//!
//! | file | what it is for | knows sockets |
//! | --- | --- | --- |
//! | `frame` | bytes on the wire | no |
//! | `registry` | what a peer may touch; the gate that revocation closes | no |
//! | `requests`, `exchange` | our requests, the peer's, what waits for the rooms above | no |
//! | `lander` | the receiving half: bytes into memory and state | no |
//! | `transmit` | the sending half: state into bytes | through its wire |
//! | `link`, `engine`, `endpoint` | a connection, its thread, its face | yes |
//!
//! How connections come to be is [`super::meeting`]'s.
//!
//! `docs/fabric.md` specifies the bytes and draws the states.

mod endpoint;
mod engine;
mod exchange;
pub mod frame;
mod lander;
mod link;
mod registry;
mod requests;
mod transmit;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use self::endpoint::TcpEndpoint;
use super::meeting::{Meeting, MeetingConfig, Place, Waiting};
use super::{Endpoint, EndpointAddress, Fabric, FabricError, Offer};

/// [`Fabric::kind`] of this fabric.
pub const KIND: &str = "tcp";

/// The tcp fabric of a node.
pub struct TcpFabric {
    meeting: Arc<Meeting>,
}

impl TcpFabric {
    /// Starts to listen.
    pub fn new(config: MeetingConfig) -> Result<TcpFabric, FabricError> {
        Ok(TcpFabric::over(Meeting::start(config)?))
    }

    /// A fabric whose peers come through `meeting`.
    pub fn over(meeting: Arc<Meeting>) -> TcpFabric {
        TcpFabric { meeting }
    }

    /// Where it listens, with the port that was taken.
    pub fn listens_on(&self) -> SocketAddr {
        self.meeting.listens_on()
    }
}

impl Fabric for TcpFabric {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn offer(&self) -> Result<Box<dyn Offer>, FabricError> {
        let (waiting, place) = self.meeting.offer()?;
        Ok(Box::new(TcpOffer { waiting, place }))
    }

    fn connect(&self, to: &EndpointAddress, deadline: Instant) -> Result<Arc<dyn Endpoint>, FabricError> {
        let (peer, wire) = self.meeting.connect(&Place::from_address(to, KIND)?, deadline)?;
        Ok(TcpEndpoint::start(peer, wire)?)
    }
}

struct TcpOffer {
    waiting: Waiting,
    place: Place,
}

impl Offer for TcpOffer {
    fn address(&self) -> EndpointAddress {
        self.place.address(KIND)
    }

    fn accept(self: Box<Self>, deadline: Instant) -> Result<Arc<dyn Endpoint>, FabricError> {
        let (peer, wire) = self.waiting.accept(deadline)?;
        Ok(TcpEndpoint::start(peer, wire)?)
    }
}
