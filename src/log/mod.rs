//! The log region: a ring of records in shared memory, written by the application, read by the agent.
//!
//! It promises that every record prefix is a state in which the application's persistent memory could
//! have been found after a power cut, whatever process dies at whatever instruction. `docs/log-format.md`
//! draws the bytes, `docs/architecture.md` gives the protocol.

#[cfg(feature = "agent")]
pub mod digest;
pub mod format;
