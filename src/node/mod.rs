//! The host that pmemha shares with virtual machines and other tenants. Each room is a policy (pure, simulated, property-tested) with
//! real sources and actuators behind small traits.
//!
//! | room | what it is for |
//! | --- | --- |
//! | [`kernel`] | probes: the kernel's own structures, read from outside |
//! | [`largepage`] | large pages for the ranges that earn them, by access bits |
//! | [`placement`] | groups of threads over processor packages, to save power and to stretch hold-up |
//! | [`reclaim`] | room for what fails over to here, by classes of use |

pub mod kernel;
pub mod largepage;
pub mod placement;
pub mod reclaim;
