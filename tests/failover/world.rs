//! Nodes, two or three, their machines and disks, the network between them: everything the state machine runs in.
//!
//! The network is the strongest adversary that stays finite: a message once sent may arrive at any later time, any
//! number of times, in any order, or never.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;

use pmemha::failover::{
    Action, Answer, BootId, Durable, Event, Life, Mains, Mandate, NodeName, OnDeath, Patience, Phase, Policy,
    Request, Round, Saved, Standing, State, Trigger, step,
};
use pmemha::types::{Generation, Lsn};

use crate::bugs::Bug;

/// What may still go wrong in a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Budget {
    /// Agent processes killed, between any two actions.
    pub agent_crashes: u8,
    /// Machines cut from power, between any two actions.
    pub machine_crashes: u8,
    /// Changes of external power at the first node.
    pub flips: u8,
    /// The same at the second.
    pub flips_second: u8,
    /// Deaths of the application.
    pub deaths: u8,
    /// Its clean ends.
    pub exits: u8,
    /// Its starts by hand, where it has ended.
    pub starts: u8,
    /// Operator's commands.
    pub operator: u8,
    /// Promotions by force, given only while the other machine is off.
    pub force: u8,
    /// Images found wrong.
    pub bad_images: u8,
    /// Syncs of a demoted node.
    pub syncs: u8,
}

/// Everything that does not change in a run.
#[derive(Clone, Debug)]
pub struct Setting {
    /// How many; all but the first may be its heir.
    pub nodes: usize,
    pub trigger: Trigger,
    pub on_death: OnDeath,
    pub budget: Budget,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Packet {
    Request(Request),
    Answer(Answer),
}

/// An operation that an action began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pending {
    Freeze(Round),
    Kill,
    /// To that node.
    Ship(Round, usize),
    Revoke(Round),
    Verify(Round),
    Place,
    Start,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// The machine has power.
    pub on: bool,
    /// Counts boots.
    pub boot: u8,
    /// Counts lives of the agent.
    pub life: u64,
    /// The disk.
    pub stored: Durable,
    /// The agent's memory, while it lives.
    pub state: Option<State>,
    /// What the application really does.
    pub application: Life,
    /// The watchdog leaves it frozen.
    pub held: bool,
    pub pending: BTreeSet<Pending>,
    /// Rounds whose tail that node holds completely: the application has not run since.
    pub complete: BTreeSet<(Round, usize)>,
    /// The agent's envoys: who has yet to say that it follows, in the life of the agent that asked, and whom the group was given
    /// up to.
    pub silent: (u64, BTreeSet<usize>),
    pub heir: Option<usize>,
    /// The agent records nothing that no program asked for, in logs up to this generation.
    pub still: Option<Generation>,
    /// The agent has heard of a clean end, and nobody wants the application to run since.
    pub ended: bool,
    pub mains: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    pub nodes: Vec<Node>,
    /// Everything ever sent, with its addressee and its sender.
    pub sent: BTreeSet<Sent>,
    pub budget: Budget,
}

pub type Sent = (usize, usize, Packet);

/// Something that may happen next.
#[derive(Clone, Debug)]
pub enum Move {
    /// An event at a node's agent.
    Event(usize, Event),
    /// The same, and so many of the actions it leads to are done before the cut. `asker`: whose request it is, if it is one.
    Halfway {
        at: usize,
        event: Event,
        asker: usize,
        done: usize,
        cut: Cut,
    },
    Finish(usize, Pending),
    Deliver(Sent),
    Flip(usize),
    Death(usize),
    Exit(usize),
    Crash(usize, Cut),
    PowerOn(usize),
    Restart(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    Agent,
    Machine,
}

const NAMES: [&str; 3] = ["alpha", "beta", "gamma"];

fn name(node: usize) -> NodeName {
    NodeName(NAMES[node].into())
}

fn number(name: &NodeName) -> usize {
    NAMES.iter().position(|n| *n == name.0).expect("one of them")
}

pub fn policy(setting: &Setting, node: usize, boot: u8) -> Policy {
    Policy {
        node: name(node),
        heirs: (0..setting.nodes).filter(|i| *i != node).map(name).collect(),
        on_death: setting.on_death,
        trigger: setting.trigger,
        has_command: true,
        start_limit: 2,
        patience: Patience::default(),
        boot: BootId([boot; 16]),
    }
}

impl World {
    /// The first node runs the application, the others follow with complete images.
    pub fn new(setting: &Setting) -> Self {
        let node = |i: usize, stored: Durable, application| {
            Node {
                on: true,
                boot: 1,
                life: 0,
                stored,
                state: None,
                application,
                held: false,
                pending: BTreeSet::new(),
                complete: BTreeSet::new(),
                silent: (0, BTreeSet::new()),
                heir: None,
                still: None,
                ended: false,
                mains: true,
            }
            .started(setting, i)
        };
        let owner = Durable::first_owner(&policy(setting, 0, 1), Generation(1));
        let mut standby = Durable::first_standby(&policy(setting, 1, 1), Generation(1));
        standby.standing = Standing::Standby { cancelled: None };
        let others = (1..setting.nodes).map(|i| node(i, standby.clone(), Life::Gone));
        let nodes = [node(0, owner, Life::Running)].into_iter().chain(others).collect();
        World { nodes, sent: BTreeSet::new(), budget: setting.budget.clone() }
    }

    /// Everything that may happen now.
    pub fn moves(&self) -> Vec<Move> {
        let mut moves = Vec::new();
        for i in 0..self.nodes.len() {
            let node = &self.nodes[i];
            if !node.on {
                moves.push(Move::PowerOn(i));
                continue;
            }
            if node.application == Life::Running && self.budget.deaths > 0 {
                moves.push(Move::Death(i));
            }
            let owns = matches!(node.stored.standing, Standing::Owner { .. });
            let heard = node.state.is_some() && !node.is_starting();
            if node.application == Life::Running && self.budget.exits > 0 && owns && heard {
                moves.push(Move::Exit(i));
            }
            if self.flips(i) > 0 {
                moves.push(Move::Flip(i));
            }
            self.push_crashes(&mut moves, i);
            let Some(state) = &node.state else {
                moves.push(Move::Restart(i));
                continue;
            };
            moves.extend(node.pending.iter().map(|&p| Move::Finish(i, p)));
            moves.extend(self.sent.iter().filter(|(to, ..)| *to == i).cloned().map(Move::Deliver));
            for event in self.spontaneous(i, state) {
                moves.push(Move::Event(i, event));
            }
        }
        let mut cuts = Vec::new();
        for m in &moves {
            let Some((at, event, asker)) = self.event_of(m) else { continue };
            let mut kinds = Vec::new();
            if self.budget.agent_crashes > 0 {
                kinds.push(Cut::Agent);
            }
            if self.budget.machine_crashes > 0 {
                kinds.push(Cut::Machine);
            }
            // A cut before any action is a crash without the event.
            let actions = self.actions(at, &event).1.len();
            for done in 1..actions {
                let halfway = |&cut| Move::Halfway { at, event: event.clone(), asker, done, cut };
                cuts.extend(kinds.iter().map(halfway));
            }
        }
        moves.extend(cuts);
        moves
    }

    fn push_crashes(&self, moves: &mut Vec<Move>, i: usize) {
        if self.budget.agent_crashes > 0 && self.nodes[i].state.is_some() {
            moves.push(Move::Crash(i, Cut::Agent));
        }
        if self.budget.machine_crashes > 0 {
            moves.push(Move::Crash(i, Cut::Machine));
        }
    }

    fn flips(&self, i: usize) -> u8 {
        [self.budget.flips, self.budget.flips_second, 0][i]
    }

    fn spontaneous(&self, i: usize, state: &State) -> Vec<Event> {
        let mut events = Vec::new();
        let node = &self.nodes[i];
        let mut others = self.nodes.iter().enumerate().filter(|(j, _)| *j != i).map(|(_, node)| node);
        match (node.mains, state.mains) {
            (true, Mains::Online) | (false, Mains::Lost) => {}
            (true, _) => events.push(Event::PowerBack),
            (false, _) => events.push(Event::PowerLost),
        }
        if patient(state.phase) {
            events.push(Event::Timeout);
        }
        if self.budget.starts > 0 && state.phase == Phase::Stopped {
            events.push(Event::ApplicationStarted);
        }
        if self.budget.operator > 0 {
            events.push(Event::OperatorLastGasp);
            events.push(Event::OperatorCancel);
            events.push(Event::OperatorPromote { force: false });
        }
        if self.budget.force > 0 && others.clone().all(|other| !other.on) {
            events.push(Event::OperatorPromote { force: true });
        }
        if self.budget.bad_images > 0 {
            events.extend(node.pending.iter().filter_map(|p| match *p {
                Pending::Revoke(round) => Some(Event::RevokeFailed { round }),
                Pending::Verify(round) => Some(Event::ImageFailed { round }),
                _ => None,
            }));
        }
        let runs = |other: &&Node| other.state.as_ref().is_some_and(|s| s.phase == Phase::Running);
        if state.phase == Phase::Demoted
            && self.budget.syncs > 0
            && let Some(owner) = others.find(runs)
        {
            events.push(Event::Synced { generation: owner.stored.generation });
        }
        events
    }

    /// The event that a move hands to an agent, without what happens around it, and whose request it is, if it is one.
    fn event_of(&self, m: &Move) -> Option<(usize, Event, usize)> {
        match m {
            Move::Event(i, event) => Some((*i, event.clone(), *i)),
            Move::Finish(i, pending) => Some((*i, Self::finished(*pending), *i)),
            Move::Deliver((i, from, Packet::Request(r))) => Some((*i, Event::Request(r.clone()), *from)),
            Move::Deliver((i, from, Packet::Answer(a))) => {
                let heard = self.nodes[*i].clone().hears(*from, a);
                heard.then(|| (*i, Event::Answer(a.clone()), *i))
            }
            _ => None,
        }
    }

    fn finished(pending: Pending) -> Event {
        match pending {
            Pending::Freeze(round) => Event::FreezeDone { round },
            Pending::Kill => Event::ApplicationDied,
            Pending::Ship(round, to) => {
                Event::TailDurable { round, heir: name(to), saved: Saved { lsn: Lsn(64), digest: 7 } }
            }
            Pending::Revoke(round) => Event::Revoked { round },
            Pending::Verify(round) => Event::ImageVerified { round },
            Pending::Place => Event::FilesPlaced,
            Pending::Start => Event::ApplicationStarted,
        }
    }

    fn actions(&self, i: usize, event: &Event) -> (State, Vec<Action>) {
        let node = &self.nodes[i];
        let setting = setting();
        let bug = BUG.get();
        let state = node.state.as_ref().expect("only living agents hear events");
        let policy = policy(&setting, i, node.boot);
        match bug {
            None => step(&policy, state, event),
            Some(bug) => bug.step(&policy, state, event),
        }
    }

    /// The world after `m`; None if the move cannot happen (a tail cannot reach a dead heir).
    pub fn after(&self, m: &Move) -> Option<World> {
        let mut world = self.clone();
        match m {
            Move::Event(i, event) => {
                world.spend(event);
                world.prepare(*i, event);
                world.handle(*i, event);
            }
            Move::Halfway { at, event, asker, done, cut } => {
                world.spend(event);
                world.prepare(*at, event);
                let (_, actions) = world.actions(*at, event);
                actions.into_iter().take(*done).for_each(|a| world.perform(*at, a, *asker));
                world.crash(*at, *cut);
            }
            Move::Finish(i, pending) => {
                if matches!(pending, Pending::Ship(_, to) if world.nodes[*to].state.is_none()) {
                    return None;
                }
                let event = Self::finished(*pending);
                world.prepare(*i, &event);
                world.handle(*i, &event);
            }
            Move::Deliver((i, from, Packet::Request(request))) => {
                world.handle_of(*i, &Event::Request(request.clone()), *from);
            }
            Move::Deliver((i, from, Packet::Answer(answer))) => {
                if world.nodes[*i].hears(*from, answer) {
                    world.handle(*i, &Event::Answer(answer.clone()));
                }
            }
            Move::Flip(i) => {
                let left = if *i == 0 { &mut world.budget.flips } else { &mut world.budget.flips_second };
                *left -= 1;
                world.nodes[*i].mains ^= true;
            }
            Move::Death(i) => {
                world.budget.deaths -= 1;
                world.nodes[*i].application = Life::Gone;
                // Of one that dies before its start is told, that comes first: see `prepare`.
                if world.nodes[*i].state.is_some() && !world.nodes[*i].is_starting() {
                    world.handle(*i, &Event::ApplicationDied);
                }
            }
            Move::Exit(i) => {
                world.budget.exits -= 1;
                world.nodes[*i].application = Life::Gone;
                world.nodes[*i].ended = true;
                world.handle(*i, &Event::ApplicationExited);
            }
            Move::Crash(i, cut) => world.crash(*i, *cut),
            Move::PowerOn(i) => {
                world.nodes[*i].ended = false;
                world.nodes[*i].on = true;
                world.nodes[*i].boot += 1;
            }
            Move::Restart(i) => world.restart(*i),
        }
        world.forget();
        Some(world)
    }

    /// Answers that nobody heeds any more, by numbers that only grow, are dropped: fewer worlds, none of them lost.
    /// A machine with a planted bug may heed them.
    fn forget(&mut self) {
        if BUG.get().is_some() {
            return;
        }
        let nodes = &self.nodes;
        self.sent.retain(|(to, _, packet)| {
            let node = &nodes[*to];
            let attempt = match node.stored.standing {
                Standing::GivenUp { attempt, .. } => attempt,
                // Given up again, it will be under a higher number.
                Standing::Owner { attempt, .. } => attempt + 1,
                _ => 0,
            };
            let present = Round { generation: node.stored.generation, attempt };
            match packet {
                Packet::Answer(
                    Answer::Accepted { round }
                    | Answer::Cancelled { round }
                    | Answer::Unable { round }
                    | Answer::Refused { round }
                    | Answer::Doubt { round, .. },
                ) => *round >= present,
                Packet::Answer(Answer::Follows { life }) => *life >= node.life,
                Packet::Answer(Answer::Fenced { generation, .. }) => *generation >= present.generation,
                _ => true,
            }
        });
    }

    fn spend(&mut self, event: &Event) {
        if matches!(event, Event::OperatorLastGasp | Event::OperatorCancel | Event::OperatorPromote { .. }) {
            self.nodes.iter_mut().for_each(|n| n.ended = false);
        }
        let left = match event {
            Event::OperatorPromote { force: true } => &mut self.budget.force,
            Event::OperatorLastGasp | Event::OperatorCancel | Event::OperatorPromote { .. } => {
                &mut self.budget.operator
            }
            Event::RevokeFailed { .. } | Event::ImageFailed { .. } => &mut self.budget.bad_images,
            Event::Synced { .. } => &mut self.budget.syncs,
            _ => return,
        };
        *left -= 1;
    }

    /// What an operation has done to the world by the time it is reported.
    fn prepare(&mut self, i: usize, event: &Event) {
        let node = &mut self.nodes[i];
        match event {
            Event::FreezeDone { round } => {
                node.pending.remove(&Pending::Freeze(*round));
                if node.application == Life::Running {
                    node.application = Life::Frozen;
                }
            }
            Event::ApplicationDied => {
                node.pending.retain(|p| !matches!(p, Pending::Kill | Pending::Freeze(_)));
                // What was ordered to start since is not what was killed.
                if !node.is_starting() {
                    node.application = Life::Gone;
                    node.held = false;
                }
            }
            Event::TailDurable { round, heir, .. } => {
                // The first that holds it is told, and no other one.
                node.pending.retain(|p| !matches!(p, Pending::Ship(of, _) if of == round));
                if node.application != Life::Running {
                    node.complete.insert((*round, number(heir)));
                }
            }
            Event::Revoked { round } | Event::RevokeFailed { round } => {
                _ = node.pending.remove(&Pending::Revoke(*round))
            }
            Event::ImageVerified { round } | Event::ImageFailed { round } => {
                node.pending.remove(&Pending::Verify(*round));
            }
            Event::FilesPlaced => _ = node.pending.remove(&Pending::Place),
            Event::ApplicationStarted => {
                if !node.pending.remove(&Pending::Start) {
                    // Somebody started it by hand; ours runs from its order on.
                    self.budget.starts -= 1;
                    node.ended = false;
                    node.run();
                } else if node.application == Life::Gone {
                    // It died before its start was told: its end is told next.
                    node.pending.insert(Pending::Kill);
                } else {
                    // The start has waited for whoever was to be killed.
                    node.pending.remove(&Pending::Kill);
                }
            }
            _ => {}
        }
    }

    pub fn handle(&mut self, i: usize, event: &Event) {
        self.handle_of(i, event, i);
    }

    /// `asker`: whose request it is, if it is one.
    fn handle_of(&mut self, i: usize, event: &Event, asker: usize) {
        let (next, actions) = self.actions(i, event);
        actions.into_iter().for_each(|a| self.perform(i, a, asker));
        self.nodes[i].state = Some(next);
    }

    fn perform(&mut self, i: usize, action: Action, asker: usize) {
        let nodes = self.nodes.len();
        let node = &mut self.nodes[i];
        match action {
            Action::Persist(durable) => {
                self.check_promotion(i, &durable);
                self.nodes[i].stored = durable;
            }
            Action::Freeze { round } => {
                node.held = false;
                node.pending.retain(|p| !matches!(p, Pending::Freeze(_)));
                node.pending.insert(Pending::Freeze(round));
            }
            Action::Thaw { .. } => {
                node.held = false;
                node.pending.retain(|p| !matches!(p, Pending::Freeze(_)));
                if node.application == Life::Frozen {
                    node.run();
                }
            }
            Action::HoldFrozen => node.held = true,
            Action::Kill => {
                node.pending.remove(&Pending::Start);
                node.pending.insert(Pending::Kill);
            }
            Action::ShipTail { round, to } => {
                node.pending.extend(to.iter().map(|to| Pending::Ship(round, number(to))));
                node.still = Some(round.generation);
            }
            // One that is complete by then may still be reported.
            Action::CallOffTail => node.still = None,
            // Ignored by whoever hears it.
            Action::Reply(Answer::Noted { .. }) => {}
            Action::Send(request) => {
                let to = node.addressees(i, nodes, &request);
                // No connection to a machine that is off.
                for to in to.into_iter().filter(|to| self.nodes[*to].on) {
                    self.sent.insert((to, i, Packet::Request(request.clone())));
                }
            }
            Action::Reply(answer) => _ = self.sent.insert((asker, i, Packet::Answer(answer))),
            Action::Revoke { round } => _ = node.pending.insert(Pending::Revoke(round)),
            Action::Verify { round, .. } => _ = node.pending.insert(Pending::Verify(round)),
            Action::PlaceFiles => _ = node.pending.insert(Pending::Place),
            Action::StartApplication { .. } => {
                node.run();
                node.pending.insert(Pending::Start);
            }
            Action::Prepare | Action::Report(_) | Action::Alarm(_) => {}
        }
    }

    /// A promotion by `saved` holds everything: the source's application has not run since its tail was shipped.
    fn check_promotion(&self, i: usize, durable: &Durable) {
        if let Standing::Triggered { round, mandate: Mandate::Saved(_), .. } = self.nodes[i].stored.standing
            && matches!(durable.standing, Standing::Owner { .. })
            && !self.nodes.iter().any(|node| node.complete.contains(&(round, i)))
        {
            VIOLATION.set(Some("promoted an image that lacks what the source wrote later"));
        }
    }

    pub fn crash(&mut self, i: usize, cut: Cut) {
        let node = &mut self.nodes[i];
        node.state = None;
        node.pending.clear();
        node.still = None;
        match cut {
            Cut::Agent => {
                self.budget.agent_crashes = self.budget.agent_crashes.saturating_sub(1);
                if !node.held && node.application == Life::Frozen {
                    node.run();
                }
            }
            Cut::Machine => {
                self.budget.machine_crashes = self.budget.machine_crashes.saturating_sub(1);
                node.on = false;
                node.application = Life::Gone;
                node.held = false;
                // Connections to a machine end with it, and a request never changes to a new one. (Nor do
                // answers; they are left to come late, which is stricter.)
                self.sent.retain(|(to, _, packet)| *to != i || !matches!(packet, Packet::Request(_)));
            }
        }
    }

    pub fn restart(&mut self, i: usize) {
        let setting = setting();
        self.nodes[i].fresh_agent(&setting, i);
        let stored = &self.nodes[i].stored;
        self.nodes[i].still =
            matches!(stored.standing, Standing::GivenUp { .. }).then_some(stored.generation);
        let event = Event::Recovered { application: self.nodes[i].application, life: self.nodes[i].life };
        self.handle(i, &event);
    }

    /// What is wrong with this world, if anything.
    pub fn violation(&self) -> Option<&'static str> {
        if let Some(found) = VIOLATION.take() {
            return Some(found);
        }
        let several = |is: &dyn Fn(&Node) -> bool| self.nodes.iter().filter(|n| is(n)).count() > 1;
        if several(&|n| n.application == Life::Running) {
            return Some("two writers");
        }
        if several(&|n| n.state.as_ref().is_some_and(State::admits_application)) {
            return Some("two nodes admit the application");
        }
        let forgets = |s: &State| s.phase == Phase::Running && s.mains == Mains::Lost && !s.holds_out;
        if self.nodes.iter().any(|n| n.state.as_ref().is_some_and(forgets)) {
            return Some("power is lost, and the application runs on as if it were not");
        }
        let unseen = |n: &Node| {
            n.state.as_ref().is_some_and(|s| s.admits_application() && n.still >= Some(s.durable.generation))
        };
        if self.nodes.iter().any(unseen) {
            return Some("the application may run, and files that come to it are not recorded");
        }
        let told = |n: &Node| {
            let saved =
                matches!(n.stored.standing, Standing::GivenUp { saved: Some(_), withdrawn: false, .. });
            saved && n.state.is_some() && n.still < Some(n.stored.generation)
        };
        if self.nodes.iter().any(told) {
            return Some("the heir was told where the log ends, and it may grow");
        }
        let away = |n: &Node| !matches!(n.stored.standing, Standing::Owner { .. });
        if self.nodes.iter().any(|n| n.ended && (n.application == Life::Running || away(n))) {
            return Some("ended of its own will, and was started or handed over by nobody's");
        }
        if BUG.get().is_some() {
            // A bug has to be found by what it leads to.
            return None;
        }
        let diverged = |n: &Node| n.state.as_ref().is_some_and(|s| s.durable != n.stored);
        self.nodes.iter().any(diverged).then_some("an agent acts on a state that is not stored")
    }
}

impl Node {
    /// A start is ordered and not told yet; until it is, no end is.
    fn is_starting(&self) -> bool {
        self.pending.contains(&Pending::Start)
    }

    fn started(mut self, setting: &Setting, i: usize) -> Self {
        self.fresh_agent(setting, i);
        let event = Event::Recovered { application: self.application, life: self.life };
        let state = self.state.take().expect("just made");
        let (next, _) = step(&policy(setting, i, self.boot), &state, &event);
        self.state = Some(next);
        self
    }

    /// Where the agent's envoys take a request; what they remember of it.
    fn addressees(&mut self, i: usize, nodes: usize, request: &Request) -> Vec<usize> {
        match request {
            Request::Ask { life, .. } => {
                let others: Vec<usize> = (0..nodes).filter(|other| *other != i).collect();
                if self.silent.0 != *life {
                    self.silent = (*life, others.iter().copied().collect());
                }
                others
            }
            Request::SaveStarted { heir, trigger: false, .. } => {
                self.heir = None;
                vec![number(heir)]
            }
            Request::SaveStarted { heir, .. } | Request::Saved { heir, .. } => {
                self.heir = Some(number(heir));
                vec![number(heir)]
            }
            Request::Cancel { .. } | Request::Confirm { .. } => self.heir.into_iter().collect(),
        }
    }

    /// Whether the agent's envoys let the machine hear what `from` answers.
    fn hears(&mut self, from: usize, answer: &Answer) -> bool {
        match answer {
            Answer::Follows { life } if *life == self.silent.0 || BUG.get() == Some(Bug::LifeIgnored) => {
                self.silent.1.remove(&from);
                self.silent.1.is_empty()
            }
            Answer::Follows { .. } => false,
            Answer::Fenced { .. } => true,
            _ => self.heir == Some(from),
        }
    }

    fn fresh_agent(&mut self, setting: &Setting, i: usize) {
        self.life += 1;
        self.silent = (0, BTreeSet::new());
        self.heir = match &self.stored.standing {
            Standing::GivenUp { heir, .. } => Some(number(heir)),
            _ => None,
        };
        let machine = pmemha::failover::Machine::new(policy(setting, i, self.boot), self.stored.clone());
        self.state = Some(machine.state().clone());
    }

    fn run(&mut self) {
        self.application = Life::Running;
        self.complete.clear();
    }
}

/// Whether a timeout can be due in `phase`.
pub fn patient(phase: Phase) -> bool {
    let setting = setting();
    policy(&setting, 0, 1).patience(phase).is_some()
}

thread_local! {
    /// The setting under exploration.
    pub static SETTING: RefCell<Option<Rc<Setting>>> = const { RefCell::new(None) };
    /// The planted bug, if any.
    pub static BUG: Cell<Option<Bug>> = const { Cell::new(None) };
    static VIOLATION: Cell<Option<&'static str>> = const { Cell::new(None) };
}

/// The setting under exploration.
pub fn setting() -> Rc<Setting> {
    SETTING.with(|s| s.borrow().clone()).expect("set by the explorer")
}
