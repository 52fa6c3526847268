//! Failover: the state machine of a group, supervision of its application, the timeline of what happened.
//!
//! The machine is pure: [`step`] takes a state and an event and yields the next state and actions. It
//! promises that two nodes never run the application on the same group, that ownership moves once, and that
//! a handover whose trigger arrived ends with the application running at the heir. `tests/failover/` checks
//! that over every interleaving of two nodes, a network that loses, repeats and reorders, crashes and power cuts;
//! `docs/failover.md` has its tables. The agent's group controllers drive it through [`Machine`]: they store what
//! it wants stored, do what it wants done, and tell it what happened.

mod destination;
mod event;
mod machine;
mod source;
mod state;
pub mod supervise;
pub mod timeline;

pub use event::{Action, Alarm, Answer, Cause, Event, Note, Request};
pub use machine::{Hands, Machine, step};
pub use state::{
    BootId, DURABLE_VERSION, Durable, Life, Mains, Mandate, NodeName, OnDeath, Patience, Phase, Policy,
    Round, Saved, Stage, Standing, State, Trigger, UNTRIGGERED,
};
