//! Machines that break one rule each: the check is worth something only if it finds every one of them.

use pmemha::failover::{
    Action, Answer, Event, Life, OnDeath, Phase, Policy, Request, Round, Stage, Standing, State, step,
};

use crate::world::Budget;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// AC back after the trigger: thaws without the heir's word.
    ThawsWithoutCancelled,
    /// The heir answers `cancelled` and does not store it.
    CancelledNotDurable,
    /// The heir promotes on a `saved` of a round that it has cancelled.
    ForgetsCancelled,
    /// Triggers of older generations are taken for present ones.
    IgnoresGeneration,
    /// The trigger goes out before giving up is stored.
    TriggerBeforePersist,
    /// The application is not held frozen when the trigger goes out.
    NotHeld,
    /// A rebooted owner starts at once.
    ReturnedStartsAtOnce,
    /// A rebooted heir goes on with its old mandate.
    RebootedHeirGoesOn,
    /// Answers to an earlier life of the agent count.
    LifeIgnored,
    /// An agent that finds the application running after giving up sends the trigger as it is stored.
    TriggersWhileRunning,
    /// A tail reported for an earlier attempt counts for the present one.
    LateTailCounts,
    /// The heir grants a cancel although it has been promoted.
    CancelAfterPromotion,
    /// A new life of the agent takes an application that has ended for one that died.
    EndForgotten,
    /// Power that was lost while the application did not run is not thought of when it does.
    PowerForgotten,
    /// A tail that nobody wants any more keeps the group still.
    KeptStill,
    /// Asked for the group back, the agent records again before the heir has answered.
    CalledOffEarly,
    /// An heir that cannot take over is waited for on battery, whoever else could.
    WaitsForUnable,
}

pub const ALL: [Bug; 17] = [
    Bug::ThawsWithoutCancelled,
    Bug::CancelledNotDurable,
    Bug::ForgetsCancelled,
    Bug::IgnoresGeneration,
    Bug::TriggerBeforePersist,
    Bug::NotHeld,
    Bug::ReturnedStartsAtOnce,
    Bug::RebootedHeirGoesOn,
    Bug::LifeIgnored,
    Bug::TriggersWhileRunning,
    Bug::LateTailCounts,
    Bug::CancelAfterPromotion,
    Bug::EndForgotten,
    Bug::PowerForgotten,
    Bug::KeptStill,
    Bug::CalledOffEarly,
    Bug::WaitsForUnable,
];

impl Bug {
    /// The least that has to go wrong for the bug to show.
    pub fn budget(self) -> Budget {
        let none = Budget::default();
        match self {
            Bug::ThawsWithoutCancelled
            | Bug::ForgetsCancelled
            | Bug::CancelAfterPromotion
            | Bug::KeptStill
            | Bug::CalledOffEarly => Budget { flips: 2, ..none },
            Bug::NotHeld => Budget { agent_crashes: 1, flips: 1, ..none },
            Bug::CancelledNotDurable | Bug::TriggerBeforePersist | Bug::TriggersWhileRunning => {
                Budget { agent_crashes: 1, flips: 2, ..none }
            }
            Bug::LateTailCounts => Budget { flips: 3, ..none },
            Bug::WaitsForUnable => Budget { flips: 1, bad_images: 1, ..none },
            Bug::EndForgotten => Budget { agent_crashes: 1, exits: 1, ..none },
            Bug::PowerForgotten => Budget { flips: 1, exits: 1, starts: 1, ..none },
            Bug::IgnoresGeneration
            | Bug::ReturnedStartsAtOnce
            | Bug::RebootedHeirGoesOn
            | Bug::LifeIgnored => Budget { machine_crashes: 2, flips: 1, force: 1, ..none },
        }
    }

    /// How many nodes it takes.
    pub fn nodes(self) -> usize {
        if self == Bug::WaitsForUnable { 3 } else { 2 }
    }

    /// Whether it shows only in what never happens.
    pub fn is_of_liveness(self) -> bool {
        self == Bug::WaitsForUnable
    }

    /// What the death of the application means where the bug shows.
    pub fn on_death(self) -> OnDeath {
        if self == Bug::EndForgotten { OnDeath::Failover } else { OnDeath::None }
    }

    pub fn step(self, policy: &Policy, state: &State, event: &Event) -> (State, Vec<Action>) {
        let mut state = state.clone();
        let mut event = event.clone();
        let mut policy = policy.clone();
        self.distort(&mut policy, &mut state, &mut event);
        let (mut next, mut actions) = step(&policy, &state, &event);
        match self {
            Bug::CancelledNotDurable
                if actions.iter().any(|a| matches!(a, Action::Reply(Answer::Cancelled { .. }))) =>
            {
                // The memory says cancelled, the disk does not: pretend that it was stored.
                actions.retain(|a| !matches!(a, Action::Persist(_)));
            }
            Bug::TriggerBeforePersist => {
                if let [Action::Persist(_), ..] = actions.as_slice()
                    && actions.iter().any(|a| matches!(a, Action::Send(Request::Saved { .. })))
                {
                    actions.rotate_left(1);
                }
            }
            Bug::PowerForgotten => next.holds_out = false,
            Bug::KeptStill => actions.retain(|a| *a != Action::CallOffTail),
            Bug::CalledOffEarly
                if actions.iter().any(|a| matches!(a, Action::Send(Request::Cancel { .. }))) =>
            {
                actions.push(Action::CallOffTail);
            }
            Bug::NotHeld => actions.retain(|a| *a != Action::HoldFrozen),
            Bug::CancelAfterPromotion => {
                if let Event::Request(Request::Cancel { round }) = &event
                    && state.durable.generation == round.generation.next()
                {
                    actions = vec![Action::Reply(Answer::Cancelled { round: *round })];
                    next = state;
                }
            }
            _ => {}
        }
        (next, actions)
    }

    fn distort(self, policy: &mut Policy, state: &mut State, event: &mut Event) {
        match self {
            Bug::ThawsWithoutCancelled
                if *event == Event::PowerBack
                    && matches!(state.phase, Phase::HandingOver | Phase::HandedOver | Phase::Cancelling) =>
            {
                *event = Event::Answer(Answer::Cancelled { round: state.round() });
            }
            Bug::ForgetsCancelled => {
                if let Standing::Standby { cancelled } = &mut state.durable.standing {
                    *cancelled = None;
                }
            }
            Bug::IgnoresGeneration => {
                let generation = state.durable.generation;
                if let Event::Request(Request::Saved { round, .. }) = event
                    && round.generation < generation
                {
                    *round = Round { generation, attempt: round.attempt };
                }
            }
            Bug::ReturnedStartsAtOnce
                if matches!(event, Event::Recovered { .. })
                    && matches!(state.durable.standing, Standing::Owner { .. }) =>
            {
                if let Standing::Owner { stage, .. } = &mut state.durable.standing {
                    *stage = Stage::Placed;
                }
                state.durable.boot = policy.boot;
            }
            Bug::RebootedHeirGoesOn
                if matches!(event, Event::Recovered { .. })
                    && matches!(state.durable.standing, Standing::Triggered { .. }) =>
            {
                state.durable.boot = policy.boot;
            }
            Bug::EndForgotten => {
                if let (Event::Recovered { .. }, Standing::Owner { stage, .. }) =
                    (&*event, &mut state.durable.standing)
                    && *stage == Stage::Ended
                {
                    *stage = Stage::Begun;
                }
            }
            Bug::LifeIgnored => {
                if let Event::Answer(Answer::Follows { life }) = event {
                    *life = state.life;
                }
            }
            Bug::TriggersWhileRunning => {
                if let Event::Recovered { application, .. } = event
                    && matches!(state.durable.standing, Standing::GivenUp { .. })
                    && *application == Life::Running
                {
                    *application = Life::Frozen;
                }
            }
            Bug::LateTailCounts => {
                if let Event::TailDurable { round, .. } = event {
                    *round = state.round();
                }
            }
            Bug::WaitsForUnable => policy.heirs.truncate(1),
            Bug::PowerForgotten if *event == Event::ApplicationStarted => state.holds_out = true,
            _ => {}
        }
    }
}
