//! Room on the host for what fails over to it: which memory of which tenant is given up, and how.
//!
//! Replicas are pinned memory on hosts that also run virtual machines and other programs. Pages are put into classes of use; totals are
//! estimated from samples; what harms least goes first. `docs/reclaim.md` tells the whole.
//!
//! | room | what it is for |
//! | --- | --- |
//! | [`classes`] | classes of pages, and estimates of their totals from samples (pure) |
//! | [`decision`] | who gives up what, by which technique (pure) |
//! | [`room`] | a plan carried out, its effects measured |
//! | [`process`] | processes as tenants |
//! | [`sample`] | classes of a process's pages, from a sample |
//! | [`group`] | control groups as tenants |
//! | [`page_out`] | page-out of exactly the unused pages |
//! | [`balloon`] | a guest's balloon, over QMP |

pub mod balloon;
pub mod classes;
pub mod decision;
pub mod group;
pub mod page_out;
pub mod process;
pub mod room;
pub mod sample;
