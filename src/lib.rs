//! pmemha: replication and failover for persistent memory.
//!
//! An application keeps its state in persistent memory; pmemha ships a crash-consistent log of what it
//! made persistent to other machines and, when power or application fail, copies the small rest on
//! battery and starts the application there on the same bytes.
//!
//! The house, lowest floor first; imports go down, never up:
//!
//! | room | what it is for |
//! | --- | --- |
//! | [`types`] | the words of pmemha as types |
//! | [`locks`] | taking a lock |
//! | `mounts` | what a directory lies on |
//! | `remedy` | what a person does about a refusal of the system |
//! | `threads` | the threads of a process |
//! | [`waits`] | time, waiting and threads: the system's, or a simulation's |
//! | `predecessor` | outlasting what an agent that has just ended still holds |
//! | [`region`] | what is protected: mapping, identity, dirty tracking; safe access to shared memory |
//! | [`log`] | the log region: format, append, publish, scan, archive |
//! | [`session`] | an application's side of its session with the agent, and the messages of that socket; shared by `capi` and the preload library |
//! | `fabric` | one-sided memory fabric: the trait and its implementations |
//! | `replica` | destination: landing, apply, image, restore |
//! | `ship` | source: shipping loop, first sync, last gasp |
//! | `power` | power events |
//! | `failover` | group state machine (pure), supervision of applications |
//! | `node` | the host's resources: placement over packages, memory, large pages |
//! | `agent` | pmemhad: configuration, sessions, control protocol, status |
//! | `capi` | the C ABI |
//!
//! Beside it stand `interposer/` (the preload library), `perf/` (benchmarks), `soft-roce/` (machines with RDMA for tests),
//! `fuzz/` (libFuzzer targets for what strangers can send), `c-examples/`, `demo/` and `contrib/`.
//!
//! x86-64 Linux only: the capture rules rest on that memory model.

#[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
compile_error!("pmemha is for x86-64 Linux: its capture rules rest on that memory model");

#[cfg(feature = "agent")]
pub mod file_id;
pub mod locks;
pub mod log;
#[cfg(feature = "agent")]
pub mod mounts;
#[cfg(feature = "agent")]
mod predecessor;
pub mod region;
#[cfg(feature = "agent")]
mod remedy;
pub mod session;
#[cfg(feature = "agent")]
mod threads;
pub mod types;
pub mod waits;

#[cfg(feature = "agent")]
pub mod agent;
#[cfg(feature = "agent")]
pub mod fabric;
#[cfg(feature = "agent")]
pub mod failover;
#[cfg(feature = "agent")]
pub mod node;
#[cfg(feature = "agent")]
pub mod power;
#[cfg(feature = "agent")]
pub mod replica;
#[cfg(feature = "agent")]
pub mod ship;

#[cfg(feature = "capi")]
pub mod capi;
