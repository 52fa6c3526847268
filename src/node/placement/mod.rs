//! Power-aware placement of groups of threads over processor packages.
//!
//! | module | what it is for |
//! | --- | --- |
//! | [`sim`] | a model of a machine of several packages, to compare placements in |

pub mod sim;
