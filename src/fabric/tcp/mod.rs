//! The fabric where there is no RDMA device: one-sided semantics over a socket.
//!
//! Every endpoint has a thread, its engine, that does what a NIC would: it lands the peer's writes in registered
//! memory, answers its reads and acknowledges both, without any thread of the rooms above. Callers send from
//! registered memory themselves where the socket takes it, and never wait for the network.
//!
//! | file | what it is for | knows sockets |
//! | --- | --- | --- |
//! | `frame`, `hello` | bytes on the wire | no |
//! | `registry` | what a peer may touch; the gate that revocation closes | no |
//! | `requests`, `exchange` | our requests, the peer's, what waits for the rooms above | no |
//! | `lander` | the receiving half: bytes into memory and state | no |
//! | `transmit` | the sending half: state into bytes | through `wire` |
//! | `wire` | a socket, plain or TLS | yes |
//! | `link`, `engine`, `endpoint` | a connection, its thread, its face | yes |
//! | `listen`, `dial`, `connect` | how connections come to be | yes |
//!
//! `docs/fabric.md` specifies the bytes and draws the states.

mod connect;
mod dial;
mod endpoint;
mod engine;
mod exchange;
pub mod frame;
pub mod hello;
mod lander;
mod link;
mod listen;
mod registry;
mod requests;
mod transmit;
mod wire;

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use serde::{Deserialize, Serialize};

use self::hello::TOKEN;
use self::listen::Listener;
use super::tls::TlsIdentity;
use super::{Endpoint, EndpointAddress, Fabric, FabricError, Offer};

pub use self::dial::dial;
pub use self::listen::{MAX_HALF_OPEN, OFFER_LIFETIME};

/// [`Fabric::kind`] of this fabric.
pub const KIND: &str = "tcp";

/// How a node uses the fabric.
#[derive(Clone, Debug)]
pub struct TcpConfig {
    /// Where to listen; port 0 takes any free one.
    pub listen: SocketAddr,
    /// Host name or address under which peers reach us. Needed when `listen` is an unspecified address.
    pub advertise: Option<String>,
    /// With an identity all bytes are encrypted and both nodes prove who they are; without one the token of the
    /// offer, which travelled over the control channel, is all that admits a peer.
    pub identity: Option<TlsIdentity>,
}

/// The tcp fabric of a node: one listener for all its offers.
pub struct TcpFabric {
    listener: Listener,
    host: String,
    identity: Option<TlsIdentity>,
}

impl TcpFabric {
    /// Starts to listen.
    pub fn new(config: TcpConfig) -> Result<TcpFabric, FabricError> {
        let host = match config.advertise {
            Some(host) => host,
            None if config.listen.ip().is_unspecified() => {
                let source = io::Error::new(io::ErrorKind::InvalidInput, "peers cannot connect to that");
                let what = format!("listening on {} without an address to advertise", config.listen.ip());
                return Err(FabricError::System { what, source });
            }
            None => config.listen.ip().to_string(),
        };
        let listener = Listener::start(config.listen, config.identity.clone())?;
        Ok(TcpFabric { listener, host, identity: config.identity })
    }

    /// Where it listens, with the port that was taken.
    pub fn listens_on(&self) -> SocketAddr {
        self.listener.address()
    }
}

impl Fabric for TcpFabric {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn offer(&self) -> Result<Box<dyn Offer>, FabricError> {
        let (waiting, token) = self.listener.offer()?;
        let detail = Detail {
            host: self.host.clone(),
            port: self.listener.address().port(),
            token: to_hex(&token),
            node: self.identity.as_ref().map(|identity| identity.node().to_owned()),
        };
        Ok(Box::new(TcpOffer { waiting, detail }))
    }

    fn connect(&self, to: &EndpointAddress, deadline: Instant) -> Result<Arc<dyn Endpoint>, FabricError> {
        let detail = Detail::from_address(to)?;
        let endpoint = connect::connect(&detail, self.identity.as_ref(), deadline)?;
        Ok(endpoint)
    }
}

/// [`EndpointAddress::detail`] of this fabric.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Detail {
    host: String,
    port: u16,
    /// The offer's token in hexadecimal.
    token: String,
    /// The node that offers, where TLS proves it; without it the connection is plain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<String>,
}

impl Detail {
    fn from_address(address: &EndpointAddress) -> Result<Detail, FabricError> {
        let bad = |what: String| FabricError::Protocol { peer: "the peer's offer".to_owned(), what };
        if address.kind != KIND {
            return Err(bad(format!("it is for the {:?} fabric, this is {KIND}", address.kind)));
        }
        Detail::deserialize(&address.detail).map_err(|e| bad(e.to_string()))
    }

    fn token(&self) -> Option<[u8; TOKEN]> {
        let mut token = [0; TOKEN];
        if self.token.len() != 2 * TOKEN || !self.token.is_ascii() {
            return None;
        }
        for (byte, digits) in token.iter_mut().zip(self.token.as_bytes().chunks(2)) {
            *byte = u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()?;
        }
        Some(token)
    }
}

struct TcpOffer {
    waiting: listen::Waiting,
    detail: Detail,
}

impl Offer for TcpOffer {
    fn address(&self) -> EndpointAddress {
        let detail = serde_json::to_value(&self.detail).expect("plain fields");
        EndpointAddress { kind: KIND.to_owned(), detail }
    }

    fn accept(self: Box<Self>, deadline: Instant) -> Result<Arc<dyn Endpoint>, FabricError> {
        let (peer, wire) = self.waiting.accept(deadline)?;
        Ok(endpoint::TcpEndpoint::start(peer, wire)?)
    }
}

fn to_hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string");
        text
    })
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

/// A panic elsewhere does not make the data wrong: each critical section leaves it whole.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|e| e.into_inner())
}
