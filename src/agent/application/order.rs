//! What an application's thread is asked to do, and what it asks of others.

use std::sync::mpsc::Sender;
use std::time::Instant;

use crate::agent::group::Crowd;
use crate::failover::{Life, Round};

/// What is to be done to the application.
pub enum Order {
    /// A process of it that attached by itself: it belongs to what is frozen and killed.
    Adopt(u32),
    /// Freeze; reported by the round.
    Freeze(Round, Halfway),
    /// Let it run.
    Thaw,
    /// Keep it frozen whatever becomes of the agent.
    Hold,
    /// End it.
    Kill,
    /// Start the command, if one is configured and nothing of it runs; after a pause if it keeps dying, and at last not any more.
    /// Void if it was ended since the ticket was drawn; if it was only frozen, the start waits until it is thawed.
    Start(Ticket),
    /// Take in what an earlier agent supervised, also what never attached; answered by what it is found to be.
    Found(Vec<u32>, Sender<Life>),
    /// Nothing is attached any more. The application has ended if nothing else is left of it, unless a command of ours is it,
    /// whose end is seen here.
    Over {
        /// Whether the last to end did so of its own will.
        clean: bool,
    },
    /// To be done once every order before has been carried out; not if it rests on an application being held frozen that is not.
    Then(Deed),
}

/// The moment at which a start was decided on: what is ordered later may reach the application before it.
#[derive(Clone, Copy, Debug)]
pub struct Ticket(pub(super) u64);

/// What the group knows of the application.
#[derive(Debug, Default)]
pub struct Present {
    /// Something is attached, whose end will be told by [`Order::Over`].
    pub attached: bool,
    /// Processes that may append, attached or not: a fork's child is not before its first request.
    pub writers: Vec<u32>,
    /// Living processes that the log names as its writers, too, and that are not the application's for certain: nothing is done
    /// to them.
    pub doubtful: Vec<u32>,
}

/// Looks at the application's processes; called on the application's thread.
pub trait Look: Send {
    /// What there is of them.
    fn present(&self) -> Present;

    /// Every process that is attached or may store to the group's log: a fork's child may before it appends. Looked for no longer
    /// than until `deadline`.
    fn everyone(&self, deadline: Instant) -> Crowd;

    /// Whether process `pid` is the application's at this instant, by the kernel's word. Nothing is done to one that is not, even
    /// if it was a moment ago: its number may have been given out anew.
    fn owns(&self, pid: u32) -> bool;
}

/// See [`Order::Then`].
pub struct Deed(pub Box<dyn FnOnce() + Send>);

/// Says whether a frozen application stands in the middle of something that it has to finish before the group can be
/// handed over.
pub struct Halfway(pub Box<dyn Fn() -> bool + Send>);

impl Order {
    /// Whether it forbids the starts that were decided on before it.
    pub(super) fn halts(&self) -> bool {
        matches!(self, Order::Freeze(..) | Order::Hold | Order::Kill)
    }

    /// For messages.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Order::Adopt(_) => "adopt",
            Order::Freeze(..) => "freeze",
            Order::Thaw => "thaw",
            Order::Hold => "hold frozen",
            Order::Kill => "kill",
            Order::Start(_) => "start",
            Order::Found(..) => "find",
            Order::Over { .. } => "see the end",
            Order::Then(_) => "go on",
        }
    }
}
