//! A destination's side of a group: landing, apply, image, restore.
//!
//! The source writes records into the [`landing`] ring; the [`applier`] checks them, makes them durable there, applies
//! them to the [`image`] and acknowledges ([`ack`]), on a thread of its own ([`worker`]). It promises that at every
//! instant, whatever crashes, what a promotion would yield is a prefix of the source's records. `docs/image-format.md` gives
//! the bytes and the order of operations.
//!
//! Callers: the agent, through [`Replica`].

pub mod ack;
pub mod applier;
pub mod archive;
pub mod durability;
mod folder;
mod handle;
pub mod image;
pub mod landing;
pub mod paths;
pub mod peek;
pub mod place;
pub mod pmdk;
pub mod promote;
pub mod recover;
mod routes;
pub mod status;
pub mod store;
pub mod worker;

pub use applier::StreamStart;
pub use handle::{Replica, StatusWatch};
pub use status::{ImageHealth, ReplicaStatus};
pub use worker::Link;
