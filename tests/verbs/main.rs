//! The fabric's suite over RDMA, and what only RDMA has. Needs an adapter: `soft-roce/run` brings one.
//!
//! Left out of a plain `cargo test`, since a machine without an adapter would fail it; without one it fails with the
//! reason, and never passes for nothing.

#[macro_use]
#[path = "../conformance/suite.rs"]
mod suite;

#[path = "../conformance/access.rs"]
mod access;
#[path = "../conformance/bulk.rs"]
mod bulk;
#[path = "../conformance/events.rs"]
mod events;
#[path = "../conformance/failure.rs"]
mod failure;
#[path = "../conformance/reads.rs"]
mod reads;
#[path = "../conformance/revoke.rs"]
mod revoke;
#[path = "../conformance/rig.rs"]
mod rig;
#[path = "../conformance/writes.rs"]
mod writes;

mod adapter;
mod agents;
mod cable;
mod cut;
mod memory;
mod nodes;

conforms!(verbs, crate::nodes::verbs);
