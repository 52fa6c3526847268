//! The source's side of replication: shipping loop, first sync, last gasp, archive.
//!
//! | module | what it is for |
//! | --- | --- |
//! | [`window`] | what is in flight to a destination, and how much more may be |
//! | [`rate`] | how fast a link drains |
//! | [`backoff`] | when to try a lost destination again |

pub mod backoff;
pub mod rate;
pub mod window;
