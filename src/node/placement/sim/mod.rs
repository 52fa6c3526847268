//! A model of a machine of several packages, to compare placements in: simulated, since no machine here has two packages.
//!
//! | module | what it is for |
//! | --- | --- |
//! | [`chance`] | numbers by chance from a seed |
//! | [`gasp`] | bytes shipped per joule |
//! | [`latency`] | percentiles |
//! | [`machine`] | packages of cores that serve, sleep and draw power |
//! | [`parameters`] | the figures and where each comes from |
//! | [`peers`] | the placements that are compared |
//! | [`run`] | a placement on a trace |
//! | [`traces`] | how much is asked, and when |

pub mod chance;
pub mod gasp;
pub mod latency;
pub mod machine;
pub mod parameters;
pub mod peers;
pub mod run;
pub mod traces;
