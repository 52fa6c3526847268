//! Power-aware placement of groups of threads over processor packages.
//!
//! A package sleeps only when all of its cores do, so load that is spread keeps every package awake. Here groups of threads are
//! moved together onto as few packages as take them, while nobody waits for it; when power is lost, onto the one where the network
//! adapter is. `docs/placement.md` has the rules and what they bring.
//!
//! | module | what it is for |
//! | --- | --- |
//! | [`actuate`] | carrying moves out, journaled and undone |
//! | [`cpus`] | sets of processors as the kernel writes them |
//! | [`gasp`] | the last gasp: who gathers, what is shipped first: pure |
//! | [`independent`] | which package states are independent: pure |
//! | [`keeper`] | watches, decides, moves |
//! | [`monitor`] | what packages and groups do |
//! | [`policy`] | which group goes where: pure |
//! | [`sim`] | a model of a machine of several packages, to compare placements in |
//! | [`status`] | how placement is |

pub mod actuate;
pub mod cpus;
pub mod gasp;
pub mod independent;
pub mod keeper;
pub mod monitor;
pub mod policy;
pub mod sim;
pub mod status;
