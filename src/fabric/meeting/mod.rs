//! How two nodes come to have a connection: one listener for all offers of a node, tokens, and TLS.
//!
//! Every fabric begins here. `tcp` then sends its frames over the [`Wire`]; `verbs` exchanges what the adapters must
//! know over it, and keeps it to notice a peer's end and to say why a connection ended. `docs/fabric.md` specifies the
//! messages.

mod connect;
mod dial;
pub mod hello;
mod listen;
mod wire;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use self::hello::TOKEN;
use self::listen::Listener;
use super::tls::TlsIdentity;
use super::{EndpointAddress, FabricError};

pub use self::connect::receive_exact;
pub use self::dial::dial;
pub use self::listen::{MAX_HALF_OPEN, OFFER_LIFETIME, Waiting};
pub use self::wire::{Payload, Wire};

/// Where a node meets its peers.
#[derive(Clone, Debug)]
pub struct MeetingConfig {
    /// Where to listen; port 0 takes any free one.
    pub listen: SocketAddr,
    /// Host name or address under which peers reach us. Needed when `listen` is an unspecified address.
    pub advertise: Option<String>,
    /// With an identity all bytes are encrypted and both nodes prove who they are; without one the token of the
    /// offer, which travelled over the control channel, is all that admits a peer.
    pub identity: Option<TlsIdentity>,
}

/// A node's listening socket, and its way to others'.
pub struct Meeting {
    listener: Listener,
    host: String,
    identity: Option<TlsIdentity>,
}

impl Meeting {
    /// Starts to listen.
    pub fn start(config: MeetingConfig) -> Result<Arc<Meeting>, FabricError> {
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
        Ok(Arc::new(Meeting { listener, host, identity: config.identity }))
    }

    /// Where it listens, with the port that was taken.
    pub fn listens_on(&self) -> SocketAddr {
        self.listener.address()
    }

    /// Opens an offer: its waiting end, and what the peer needs to take it up.
    pub fn offer(&self) -> Result<(Waiting, Place), FabricError> {
        let (waiting, token) = self.listener.offer()?;
        let place = Place {
            host: self.host.clone(),
            port: self.listener.address().port(),
            token: to_hex(&token),
            node: self.identity.as_ref().map(|identity| identity.node().to_owned()),
        };
        Ok((waiting, place))
    }

    /// Takes an offer up: the peer's name, and the connection to it.
    pub fn connect(&self, to: &Place, deadline: Instant) -> Result<(String, Wire), FabricError> {
        connect::connect(to, self.identity.as_ref(), deadline)
    }
}

/// Where an offer is taken up: [`EndpointAddress::detail`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Place {
    host: String,
    port: u16,
    /// The offer's token in hexadecimal.
    token: String,
    /// The node that offers, where TLS proves it; without it the connection is plain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<String>,
}

impl Place {
    /// The address of an offer of the fabric `kind`.
    pub fn address(&self, kind: &str) -> EndpointAddress {
        let detail = serde_json::to_value(self).expect("plain fields");
        EndpointAddress { kind: kind.to_owned(), detail }
    }

    /// The place that an address of the fabric `kind` names.
    pub fn from_address(address: &EndpointAddress, kind: &str) -> Result<Place, FabricError> {
        let bad = |what: String| FabricError::Protocol { peer: "the peer's offer".to_owned(), what };
        if address.kind != kind {
            return Err(bad(format!("it is for the {:?} fabric, this is {kind}", address.kind)));
        }
        Place::deserialize(&address.detail).map_err(|e| bad(e.to_string()))
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

fn to_hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string");
        text
    })
}
