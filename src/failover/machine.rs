//! The step function, and the small driver that keeps "persist before acting".

use std::collections::BTreeSet;

use super::event::{Action, Alarm, Answer, Cause, Event, Note, Request};
use super::state::{DURABLE_VERSION, Durable, Life, Mains, Phase, Policy, Stage, Standing, State};
use crate::types::Generation;

/// What a group's controller lends the machine: a disk and hands.
pub trait Hands {
    /// Why storing failed.
    type Error;
    /// Stores `durable` so that it survives a power cut the moment this returns.
    fn persist(&mut self, durable: &Durable) -> Result<(), Self::Error>;
    /// Begins `action`; its result comes back as an event. Never [`Action::Persist`].
    fn act(&mut self, action: Action);
}

/// The state machine of one group on one node.
///
/// Owned by the one thread that controls the group; events are handed to it one at a time.
#[derive(Clone, Debug)]
pub struct Machine {
    policy: Policy,
    state: State,
}

impl Machine {
    /// The machine as it stands before [`Event::Recovered`], which must be its first event.
    pub fn new(policy: Policy, durable: Durable) -> Self {
        let state = State {
            phase: resting_phase(&durable.standing),
            durable,
            application: Life::Gone,
            mains: Mains::Unknown,
            holds_out: false,
            cause: Cause::Power,
            attempt: 0,
            log_lost: false,
            life: 0,
            start_ordered: false,
            failed_starts: 0,
            passed_over: BTreeSet::new(),
        };
        Self { policy, state }
    }

    /// Handles one event: stores what must be stored, then acts. When storing fails nothing has happened, neither
    /// here nor outside: hand the event in again, or end the agent.
    pub fn handle<H: Hands>(&mut self, event: &Event, hands: &mut H) -> Result<(), H::Error> {
        let (next, actions) = step(&self.policy, &self.state, event);
        let mut actions = actions.into_iter().peekable();
        if let Some(Action::Persist(durable)) = actions.next_if(|a| matches!(a, Action::Persist(_))) {
            hands.persist(&durable)?;
        }
        self.state = next;
        actions.for_each(|action| hands.act(action));
        Ok(())
    }

    /// The present state, for status.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The policy.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }
}

impl Durable {
    /// The first state of the node on which a group's application is to run.
    pub fn first_owner(policy: &Policy, generation: Generation) -> Self {
        let standing = Standing::Owner { attempt: 0, stage: Stage::Begun };
        Self { version: DURABLE_VERSION, boot: policy.boot, generation, standing }
    }

    /// The first state of a node that follows a group.
    pub fn first_standby(policy: &Policy, generation: Generation) -> Self {
        let standing = Standing::Demoted { cancelled: None };
        Self { version: DURABLE_VERSION, boot: policy.boot, generation, standing }
    }
}

/// The machine itself: what becomes of `state` at `event`, and what is to be done.
///
/// Pure and total: an event that means nothing in a state changes nothing. When the durable part changes, the first
/// action is [`Action::Persist`], and every other action waits for it.
pub fn step(policy: &Policy, state: &State, event: &Event) -> (State, Vec<Action>) {
    let mut turn = Turn { policy, next: state.clone(), actions: Vec::new() };
    turn.apply(event);
    let Turn { mut next, mut actions, .. } = turn;
    if next.durable != state.durable {
        next.durable.boot = policy.boot;
        actions.insert(0, Action::Persist(next.durable.clone()));
    }
    (next, actions)
}

/// The phase in which a standing is entered from storage.
fn resting_phase(standing: &Standing) -> Phase {
    match standing {
        Standing::Owner { .. } => Phase::Returned,
        Standing::GivenUp { .. } => Phase::HandingOver,
        Standing::Standby { .. } => Phase::Standby,
        Standing::Triggered { .. } => Phase::Doubtful,
        Standing::Demoted { .. } => Phase::Demoted,
    }
}

/// One step in the making.
pub(super) struct Turn<'a> {
    pub policy: &'a Policy,
    pub next: State,
    pub actions: Vec<Action>,
}

impl Turn<'_> {
    fn apply(&mut self, event: &Event) {
        // Of what ran before.
        if self.next.start_ordered && matches!(event, Event::ApplicationDied | Event::ApplicationExited) {
            return;
        }
        self.observe(event);
        match event {
            Event::Recovered { life, .. } => self.recover(*life),
            Event::Request(request) => self.requested(request),
            _ if matches!(self.next.durable.standing, Standing::Owner { .. } | Standing::GivenUp { .. }) => {
                self.as_source(event)
            }
            _ => self.as_destination(event),
        }
    }

    /// Takes in what an event says of the world, whatever it leads to.
    fn observe(&mut self, event: &Event) {
        let next = &mut self.next;
        match event {
            Event::Recovered { application, .. } => next.application = *application,
            Event::ApplicationStarted => (next.application, next.start_ordered) = (Life::Running, false),
            Event::ApplicationDied | Event::ApplicationExited | Event::ApplicationFailedToStart => {
                (next.application, next.start_ordered) = (Life::Gone, false)
            }
            Event::PowerLost => (next.mains, next.holds_out) = (Mains::Lost, false),
            Event::PowerBack => (next.mains, next.holds_out) = (Mains::Online, false),
            _ => {}
        }
        if matches!(
            event,
            Event::PowerLost
                | Event::PowerBack
                | Event::OperatorLastGasp
                | Event::OperatorCancel
                | Event::OperatorPromote { .. }
        ) {
            next.passed_over.clear();
        }
    }

    /// A new life of the agent. What was under way is gone; what is stored decides.
    fn recover(&mut self, life: u64) {
        self.next.life = life;
        self.next.phase = resting_phase(&self.next.durable.standing);
        let rebooted = self.next.durable.boot != self.policy.boot;
        self.next.log_lost = rebooted;
        match self.next.durable.standing.clone() {
            Standing::Owner { attempt, stage } => {
                self.next.attempt = attempt;
                self.recover_owner(stage, rebooted);
            }
            Standing::GivenUp { attempt, cause, saved, withdrawn, .. } => {
                self.next.attempt = attempt;
                self.next.cause = cause;
                self.recover_given_up(saved.is_some(), withdrawn);
            }
            Standing::Triggered { .. } if !rebooted => self.proceed(),
            Standing::Triggered { .. } | Standing::Standby { .. } | Standing::Demoted { .. } => {}
        }
        if !matches!(self.next.durable.standing, Standing::Owner { .. } | Standing::GivenUp { .. })
            && self.next.application != Life::Gone
        {
            self.kill();
        }
    }

    /// The standing of someone who may not own anything now, under `generation`.
    pub fn demote(&mut self, generation: Generation) {
        let cancelled = self.cancelled();
        let was_source =
            matches!(self.next.durable.standing, Standing::Owner { .. } | Standing::GivenUp { .. });
        self.next.durable.generation = generation;
        self.next.durable.standing = Standing::Demoted { cancelled };
        self.next.phase = Phase::Demoted;
        if self.next.application == Life::Running {
            self.alarm(Alarm::SplitBrain);
        }
        if self.next.application != Life::Gone {
            self.kill();
        }
        if was_source {
            self.report(Note::Demoted);
        }
    }

    /// Has the application ended, which makes an ordered start void: the end that follows is to be heard.
    pub fn kill(&mut self) {
        self.next.start_ordered = false;
        self.act(Action::Kill);
    }

    pub fn act(&mut self, action: Action) {
        self.actions.push(action);
    }

    pub fn send(&mut self, request: Request) {
        self.actions.push(Action::Send(request));
    }

    pub fn reply(&mut self, answer: Answer) {
        self.actions.push(Action::Reply(answer));
    }

    pub fn report(&mut self, note: Note) {
        self.actions.push(Action::Report(note));
    }

    pub fn alarm(&mut self, alarm: Alarm) {
        self.actions.push(Action::Alarm(alarm));
    }
}
