//! An application's side of its session with the agent.
//!
//! [`wire`] has the messages of the agent's Unix socket, [`socket`] their framing and [`peer`] the credentials
//! of whoever is at the other end: both sides use them. The rest is what the C API and the preload library
//! share: attaching to the log region, protecting regions, capture, drain and wait. Nothing here blocks on
//! or fails because of a dead agent: the application goes on.

pub mod peer;
pub mod socket;
pub mod wire;
