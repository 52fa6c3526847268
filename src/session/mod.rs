//! An application's side of its session with the agent.
//!
//! [`wire`] has the messages of the agent's Unix socket, [`socket`] their framing, [`peer`] the credentials of
//! whoever is at the other end and [`patterns`] the names of protected files: both sides use them. [`client`] is
//! what the C API and the preload library share: attaching to the log region, protecting files, finding the
//! agent again; [`local_flush`] whether lines are flushed besides. Nothing here fails or blocks for long because of a
//! dead agent: the application goes on.

pub mod client;
mod link;
pub mod local_flush;
pub mod patterns;
pub mod peer;
pub mod socket;
pub mod wire;

pub use client::{Options, Protection, Session, SessionError};
