//! What every fabric must do, as tests: the contract of `pmemha::fabric`, one suite for all implementations.
//!
//! A fabric joins by a function that makes a [`rig::Rig`] and one line at the end of this file. verbs, which needs a
//! device, joins in `tests/verbs/`.

#[macro_use]
mod suite;

mod access;
mod bulk;
mod events;
mod failure;
mod nodes;
mod reads;
mod revoke;
mod rig;
mod tcp_only;
mod writes;

conforms!(tcp, crate::nodes::plain);
conforms!(tcp_tls, crate::nodes::tls);
