//! The asking side of a control channel.

use std::time::{Duration, Instant};

use super::channel::{Channel, ControlError};
use super::message::{Answer, Ask};
use crate::fabric::meeting::dial;
use crate::fabric::tls::TlsIdentity;

/// A channel to one peer, ready for asks after Hello. Any error ends it: drop it and connect again.
pub struct Client {
    channel: Channel,
}

impl Client {
    /// Connects to `address` (`host:port`) as the node of `identity`, and makes sure that `expected` is there.
    pub fn connect(
        address: &str,
        identity: &TlsIdentity,
        expected: &str,
        deadline: Instant,
    ) -> Result<Client, ControlError> {
        let io_error = |source| ControlError::Io { peer: format!("{expected} ({address})"), source };
        let tcp = dial(address, deadline).map_err(io_error)?;
        let mut channel = Channel::client(tcp, identity, expected, deadline)?;
        let hello =
            Ask::Hello { node: identity.node().to_owned(), agent: env!("CARGO_PKG_VERSION").to_owned() };
        channel.send(&hello, deadline)?;
        match channel.receive(deadline)? {
            Answer::HelloOk { .. } => Ok(Client { channel }),
            other => Err(unexpected(expected, other)),
        }
    }

    /// Asks and waits for the answer. A refusal is an answer.
    pub fn ask(&mut self, ask: &Ask, within: Duration) -> Result<Answer, ControlError> {
        let deadline = Instant::now() + within;
        self.channel.send(ask, deadline)?;
        self.channel.receive(deadline)
    }

    /// The node at the other end.
    pub fn peer(&self) -> &str {
        self.channel.peer()
    }
}

/// The error for an answer that is not the one asked for: a refusal, or one that makes no sense.
pub fn unexpected(peer: &str, answer: Answer) -> ControlError {
    let peer = peer.to_owned();
    match answer {
        Answer::Refused { reason, generation, message } => {
            ControlError::Refused { peer, reason, generation, message }
        }
        other => ControlError::Unexpected { peer, answer: format!("{other:?}") },
    }
}
