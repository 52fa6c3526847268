//! The node's own resources: what makes pmemha's promises hold on a busy machine.
//!
//! | module | what it is for |
//! | --- | --- |
//! | [`placement`] | groups of threads over processor packages, to save power and to stretch hold-up |

pub mod placement;
