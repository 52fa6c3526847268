//! The channel between agents: who is who, what is held, where the fabric connects, and the few messages
//! that move ownership of a group.
//!
//! Everything urgent and frequent (records, acknowledgements) goes over the fabric instead. The source
//! asks and the destination answers ([`message`]), in bounded frames ([`frame`]), over TLS 1.3 with
//! certificates on both ends and a deadline on every message ([`channel`]). `docs/protocol.md` specifies it.
//! Called by `agent::source` ([`Client`]) and `agent::standby` (behind [`Server`]).

pub mod channel;
pub mod client;
pub mod frame;
pub mod message;
pub mod server;

pub use channel::ControlError;
pub use client::Client;
pub use server::{PeerSession, Responder, Server};

#[cfg(test)]
mod tests;
