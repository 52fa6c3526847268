//! Power-aware placement of groups of threads over processor packages.
//!
//! | module | what it is for |
//! | --- | --- |
//! | [`policy`] | which group goes where: pure |
//! | [`sim`] | a model of a machine of several packages, to compare placements in |

pub mod policy;
pub mod sim;
