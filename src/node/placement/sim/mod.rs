//! A model of a machine of several packages, to compare placements in: simulated, since no machine here has two packages.
//!
//! | module | what it is for |
//! | --- | --- |
//! | [`parameters`] | the figures and where each comes from |

pub mod parameters;
