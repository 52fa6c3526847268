//! The source's side of replication: shipping loop, first sync, last gasp, archive.
//!
//! | module | what it is for |
//! | --- | --- |
//! | [`shipper`] | the loop that ships one log over one link |
//! | [`sync`] | the copy of every region into the stream |
//! | [`join`] | where a destination's stream goes on |
//! | [`gasp`] | the last gasp: the tail, durable at the destination |
//! | [`archiver`] | the thread that feeds an archive |
//! | [`commits`] | over how many destinations records are acknowledged |
//! | [`follower`] | what a destination makes of the copies in the stream |
//! | [`acks`] | what to believe of a destination's acknowledgements |
//! | [`begun`] | what of them to believe while a copy is under way |
//! | [`proof`] | reads that prove where written bytes are |
//! | [`window`] | what is in flight to a destination, and how much more may be |
//! | [`space`] | which part of the ring may be reused |
//! | [`status`] | where a destination's stream stands, as plain atomics |
//! | [`rate`] | how fast a link drains |
//! | [`backoff`] | when to try a lost destination again |

pub mod acks;
pub mod archiver;
pub mod backoff;
pub mod begun;
pub mod commits;
pub mod follower;
pub mod gasp;
pub mod join;
pub(crate) mod limit;
pub mod proof;
pub mod rate;
pub mod shipper;
pub mod space;
pub mod status;
pub mod sync;
pub mod window;
