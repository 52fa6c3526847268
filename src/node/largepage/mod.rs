//! Large pages for the ranges of a process that earn them.
//!
//! A 2 MiB range mapped by one large page needs one translation where it needed 512, and so does an adapter that it is registered
//! with. But memory is copied for it, and one store marks 512 pages dirty. So the ranges that are used the most come first.
//! `docs/largepages.md` tells the whole.
//!
//! | room | what it is for |
//! | --- | --- |
//! | [`policy`] | which ranges, in which order (pure) |
//! | [`period`] | how often their access bits are counted (pure) |
//! | [`source`] | where access bits come from |
//! | [`mappings`] | a process's mappings |
//! | [`actuator`] | mapping a range large, taking it apart |
//! | [`governor`] | all of it for one process |

pub mod actuator;
pub mod governor;
pub mod mappings;
pub mod period;
pub mod policy;
pub mod source;
