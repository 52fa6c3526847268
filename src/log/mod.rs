//! The log region: a ring of records in shared memory, written by the application, read by the agent.
//!
//! It promises that every record prefix is a state in which the application's persistent memory could
//! have been found after a power cut, whatever process dies at whatever instruction. `docs/log-format.md`
//! draws the bytes, `docs/architecture.md` gives the protocol.
//!
//! | who | uses |
//! | --- | --- |
//! | application (`session`) | [`Appender`] |
//! | agent | [`LogRegion`] (space, acknowledgements, policy, beat, gaps), [`Consumer`], and an [`Appender`] for sync pages |
//! | destination, archive | [`scan`] |

#[cfg(feature = "agent")]
pub mod adopt;
pub mod appender;
#[cfg(feature = "agent")]
pub mod archive;
mod budget;
pub mod consumer;
mod debt;
#[cfg(feature = "agent")]
pub mod digest;
mod dirty;
pub(crate) mod eager;
mod forked;
pub mod format;
mod layout;
mod lines;
#[cfg(feature = "agent")]
pub mod mapped;
#[cfg(feature = "agent")]
mod mappings;
pub mod owner;
mod pace;
#[cfg(feature = "agent")]
pub mod patient;
mod protocol;
pub mod region;
pub mod scan;
mod slot;
pub mod threshold;
mod wait;

pub use appender::{Ahead, Appender};
pub use consumer::{Batch, Consumer, PoisonError};
pub use debt::Debt;
pub use dirty::RegionEntry;
pub use layout::{LogError, LogSpec};
pub use owner::Owner;
pub(crate) use owner::stat_field;
pub use pace::Pace;
pub use region::{Acks, Counters, Gap, LinkState, LogRegion, OnFull, Policy};
pub use scan::Scan;
pub use wait::{SleepDepth, WaitError};
