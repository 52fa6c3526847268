//! A life of the agent on one machine: the state machine, and what it orders.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pmemha::failover::{
    Action, Answer, BootId, Durable, Event, Hands, Life, Machine, Mandate, Note, Patience, Policy, Request,
    Round, Standing, State, Trigger,
};
use pmemha::locks::lock;
use pmemha::log::{LogRegion, LogSpec};
use pmemha::replica::ImageHealth;
use pmemha::types::{Generation, LogId};
use pmemha::waits;

use crate::clock::{self, after, below, one_in, say, spawn_on, up_to};
use crate::node::{Node, number};
use crate::program::{Disk, Program, REGIONS};
use crate::source::Source;
use crate::standby::{GROUP, Standby};
use crate::world::World;

/// How often it looks at its image and at external power.
const LOOK: Duration = Duration::from_millis(20);

pub struct Agent {
    world: Arc<World>,
    pub node: Arc<Node>,
    alive: AtomicBool,
    /// Orders that concern freezing, so far.
    freezes: AtomicU64,
    inbox: Mutex<VecDeque<Input>>,
    state: Mutex<State>,
    pub standby: Standby,
    source: Mutex<Option<Arc<Source>>>,
    envoys: Mutex<Envoys>,
    /// External power, as it was last told of.
    mains: Mutex<Option<bool>>,
}

enum Input {
    Event(Event),
    Request(Request, Box<dyn FnOnce(Answer) + Send>),
}

/// Whose answers are awaited.
struct Envoys {
    life: u64,
    silent: BTreeSet<usize>,
    heir: Option<usize>,
}

/// What a machine of the group is to do.
pub fn policy(world: &World, node: &Node, boot: u8) -> Policy {
    let heirs = (0..world.nodes_wanted).filter(|other| *other != node.index);
    Policy {
        node: pmemha::failover::NodeName(node.name.clone()),
        heirs: heirs.map(|heir| pmemha::failover::NodeName(crate::node::name(heir))).collect(),
        on_death: world.on_death,
        trigger: world.trigger,
        has_command: true,
        start_limit: 3,
        patience: Patience {
            freeze: Duration::from_millis(60),
            save: Duration::from_millis(600),
            answer: Duration::from_millis(80),
            saved: Duration::from_millis(500),
        },
        boot: BootId([boot; 16]),
    }
}

impl Agent {
    /// Starts an agent on `node`, which has power.
    pub fn start(world: &Arc<World>, node: &Arc<Node>) {
        // In a process that is killed nobody finishes anything: so nobody of the last life is left when the next begins.
        let last_is_gone = || clock::living_on(node.index) == 1;
        clock::wait_for(waits::now() + Duration::from_secs(10), &last_is_gone);
        if !last_is_gone() {
            world.accuse(Some(format!("threads of the agent of {} do not end", node.name)));
        }
        let (policy, durable, life, ends, store) = {
            let mut inner = node.inner();
            if !inner.on {
                return;
            }
            inner.lives += 1;
            let policy = policy(world, node, inner.boot);
            let (life, ends) = (inner.lives, inner.ends);
            (policy, inner.durable.clone(), life, ends, inner.store.clone())
        };
        say(|| format!("the agent of {} starts, {:?}", node.name, durable.standing));
        let heir = match &durable.standing {
            Standing::GivenUp { heir, .. } => Some(number(&heir.0)),
            _ => None,
        };
        let standby = Standby::open(&store, node.durability);
        let machine = Machine::new(policy, durable.clone());
        let agent = Arc::new(Agent {
            world: world.clone(),
            node: node.clone(),
            alive: AtomicBool::new(true),
            freezes: AtomicU64::new(0),
            inbox: Mutex::default(),
            state: Mutex::new(machine.state().clone()),
            standby,
            source: Mutex::default(),
            envoys: Mutex::new(Envoys { life: 0, silent: BTreeSet::new(), heir }),
            mains: Mutex::default(),
        });
        // The power may have gone while the image was opened.
        let replaced = {
            let mut inner = node.inner();
            let same = inner.on && inner.ends == ends;
            same.then(|| inner.agent = Some(agent.clone())).is_none()
        };
        let program = node.inner().program.life;
        if replaced {
            return agent.standby.end();
        }
        let log = node.inner().log.as_ref().map(|(_, log)| log.clone());
        let owned = matches!(durable.standing, Standing::Owner { .. } | Standing::GivenUp { .. });
        if let Some(log) = log.filter(|_| owned) {
            let still = matches!(durable.standing, Standing::GivenUp { .. });
            agent.ship(&log, false, still);
        }
        agent.tell(Event::Recovered { application: program, life });
        let controls = agent.clone();
        spawn_on(node.index, "machine".into(), move || controls.control(machine));
        let looks = agent.clone();
        spawn_on(node.index, "look".into(), move || looks.look());
    }

    /// The agent is dead: whatever of it still runs comes to its end.
    pub fn end(&self) {
        self.alive.store(false, SeqCst);
        lock(&self.source).take().iter().for_each(|source| source.end());
    }

    pub fn lives(&self) -> bool {
        self.alive.load(SeqCst)
    }

    pub fn state(&self) -> State {
        lock(&self.state).clone()
    }

    pub fn source(&self) -> Option<Arc<Source>> {
        lock(&self.source).clone()
    }

    pub fn tell(&self, event: Event) {
        lock(&self.inbox).push_back(Input::Event(event));
    }

    /// A node's answer, which the envoys let through or not.
    pub fn tell_answer(&self, answer: Answer) {
        self.tell(Event::Answer(answer));
    }

    /// Asks the machine, and waits for its answer; none if the agent dies.
    pub fn asked(&self, request: Request) -> Option<Answer> {
        let answer = Arc::new(Mutex::new(None));
        let theirs = answer.clone();
        self.look_at_image();
        let reply = Box::new(move |answer| *lock(&theirs) = Some(answer));
        lock(&self.inbox).push_back(Input::Request(request, reply));
        let deadline = waits::now() + Duration::from_millis(200);
        clock::wait_for(deadline, &|| lock(&answer).is_some() || !self.lives());
        lock(&answer).take()
    }

    fn control(self: &Arc<Self>, mut machine: Machine) {
        let mut since = (machine.state().phase, waits::now());
        while self.lives() {
            let due = machine.policy().patience(since.0).map(|patience| since.1 + patience);
            let deadline = due.unwrap_or(waits::now() + Duration::from_millis(50));
            clock::wait_for(deadline, &|| !lock(&self.inbox).is_empty() || !self.lives());
            let input = lock(&self.inbox).pop_front();
            if !self.lives() {
                return;
            }
            let (event, reply) = match input {
                Some(Input::Event(event)) => (event, None),
                Some(Input::Request(request, reply)) => (Event::Request(request), Some(reply)),
                None if due.is_some_and(|due| due <= waits::now()) => {
                    since.1 = waits::now();
                    (Event::Timeout, None)
                }
                None => continue,
            };
            let before = machine.state().clone();
            let mut hands = OwnHands { agent: self, orders: Vec::new(), reply };
            // A machine without power stores nothing, and nothing of it is done.
            if machine.handle(&event, &mut hands).is_err() {
                return;
            }
            let state = machine.state().clone();
            if state != before {
                say(|| format!("{}: {event:?}: {:?} {:?}", self.node.name, state.phase, state.durable));
            }
            *lock(&self.state) = state;
            std::mem::take(&mut hands.orders).into_iter().for_each(|order| self.perform(order));
            if machine.state().phase != since.0 {
                since = (machine.state().phase, waits::now());
            }
        }
    }

    fn look(&self) {
        while self.lives() {
            waits::sleep(LOOK);
            self.look_at_image();
            let mains = self.node.inner().mains;
            let mut told = lock(&self.mains);
            // A UPS that is polled says it late.
            if *told != Some(mains) && !one_in(3) {
                *told = Some(mains);
                drop(told);
                self.tell(if mains { Event::PowerBack } else { Event::PowerLost });
            }
        }
    }

    fn look_at_image(&self) {
        let durable = self.state().durable;
        if let (Standing::Demoted { .. }, Some(status)) = (&durable.standing, self.standby.status())
            && status.image == ImageHealth::Consistent
            && status.generation == durable.generation
        {
            self.tell(Event::Synced { generation: status.generation });
        }
    }

    fn perform(self: &Arc<Self>, order: Action) {
        match order {
            Action::Persist(_) | Action::Reply(_) => unreachable!("done by its hands"),
            Action::Freeze { round } => {
                let order = self.freezes.fetch_add(1, SeqCst) + 1;
                self.beside("freeze", move |agent| {
                    waits::sleep(up_to(Duration::from_millis(if one_in(10) { 90 } else { 3 })));
                    if agent.freezes.load(SeqCst) != order {
                        return;
                    }
                    agent.of_program(|program| {
                        if program.life == Life::Running {
                            program.life = Life::Frozen;
                        }
                    });
                    // Also where there is nothing to be frozen any more.
                    agent.tell(Event::FreezeDone { round });
                });
            }
            Action::Thaw { .. } => {
                // Also one that is under way.
                self.freezes.fetch_add(1, SeqCst);
                self.of_program(|program| {
                    program.held = false;
                    if program.life == Life::Frozen {
                        program.life = Life::Running;
                    }
                });
                self.world.check_writers();
            }
            Action::HoldFrozen => self.of_program(|program| program.held = true),
            Action::Kill => {
                self.freezes.fetch_add(1, SeqCst);
                self.of_program(|program| {
                    program.life = Life::Gone;
                    program.held = false;
                    program.number += 1;
                });
                self.tell(Event::ApplicationDied);
            }
            Action::ShipTail { round, to } => {
                if let Some(source) = self.source() {
                    source.ship_tail(self, round, to);
                }
            }
            Action::CallOffTail => self.source().iter().for_each(|source| source.call_off()),
            Action::Send(request) => self.send(request),
            Action::Prepare => {}
            Action::Revoke { round } => self.beside("revoke", move |agent| {
                agent.standby.revoke();
                agent.tell(Event::Revoked { round });
            }),
            Action::Verify { round, mandate } => {
                self.beside("verify", move |agent| agent.verify(round, mandate));
            }
            Action::PlaceFiles => self.beside("place", |agent| agent.place()),
            Action::StartApplication { generation } => {
                // What was to be frozen before has ended.
                self.freezes.fetch_add(1, SeqCst);
                self.beside("start", move |agent| agent.start_program(generation));
            }
            Action::Report(note) => {
                say(|| format!("{}: {note:?}", self.node.name));
                if note == Note::Demoted {
                    lock(&self.source).take().iter().for_each(|source| source.end());
                    self.node.inner().log = None;
                }
            }
            Action::Alarm(alarm) => say(|| format!("{}: alarm {alarm:?}", self.node.name)),
        }
    }

    fn beside(self: &Arc<Self>, what: &str, body: impl FnOnce(&Arc<Agent>) + Send + 'static) {
        let agent = self.clone();
        spawn_on(self.node.index, what.to_owned(), move || {
            if agent.lives() {
                body(&agent);
            }
        });
    }

    /// The program of this machine, if it is this agent's to touch; else nothing is done.
    fn of_program<T: Default>(&self, change: impl FnOnce(&mut crate::node::Program) -> T) -> T {
        if self.lives() { change(&mut self.node.inner().program) } else { T::default() }
    }

    fn send(self: &Arc<Self>, request: Request) {
        let to: Vec<usize> = {
            let mut envoys = lock(&self.envoys);
            let others: BTreeSet<_> = (0..self.world.nodes.len()).filter(|i| *i != self.node.index).collect();
            match &request {
                Request::Ask { life, .. } => {
                    if envoys.life != *life {
                        (envoys.life, envoys.silent) = (*life, others.clone());
                    }
                    others.into_iter().collect()
                }
                Request::SaveStarted { heir, trigger: false, .. } => {
                    envoys.heir = None;
                    vec![number(&heir.0)]
                }
                Request::SaveStarted { heir, .. } | Request::Saved { heir, .. } => {
                    envoys.heir = Some(number(&heir.0));
                    vec![number(&heir.0)]
                }
                Request::Cancel { .. } | Request::Confirm { .. } => envoys.heir.into_iter().collect(),
            }
        };
        to.into_iter().for_each(|to| self.world.send(self, to, &request));
    }

    /// A request comes over the network; the answer goes back.
    pub fn hear(self: &Arc<Self>, from: &Arc<Agent>, request: Request) {
        let (me, from) = (self.clone(), from.clone());
        self.look_at_image();
        let reply = Box::new(move |answer: Answer| {
            let number = me.node.index;
            for _ in 0..me.world.copies() {
                let (from, answer) = (from.clone(), answer.clone());
                after(me.world.delay(), move || from.hear_answer(number, answer));
            }
        });
        lock(&self.inbox).push_back(Input::Request(request, reply));
    }

    fn hear_answer(&self, node: usize, answer: Answer) {
        if self.world.is_cut(node, self.node.index) {
            return;
        }
        let mut envoys = lock(&self.envoys);
        let passes = match &answer {
            Answer::Follows { life } if *life == envoys.life => {
                envoys.silent.remove(&node);
                envoys.silent.is_empty()
            }
            Answer::Follows { .. } => false,
            Answer::Fenced { .. } => true,
            _ => envoys.heir == Some(node),
        };
        drop(envoys);
        if passes && self.lives() {
            self.tell_answer(answer);
        }
    }

    fn verify(self: &Arc<Self>, round: Round, mandate: Mandate) {
        let found = self.standby.verify(round, mandate);
        if !self.lives() {
            return;
        }
        let Some((generation, lsn, files)) = found else {
            return self.tell(Event::ImageFailed { round });
        };
        let oracle = lock(&self.world.oracle);
        let mut faults = vec![oracle.fault(generation, lsn, &files)];
        match mandate {
            Mandate::Saved(saved) if (generation, lsn) != (round.generation, saved.lsn) => {
                faults.push(Some(format!("{lsn} of {generation} is promoted for {saved:?} of {round}")));
            }
            Mandate::Saved(_) => faults.push(oracle.lacks(generation, lsn)),
            // Of all who are left, the operator has chosen the one that has most.
            Mandate::Force => faults.push(oracle.told().and_then(|told| told.lost(generation, lsn))),
            Mandate::SaveStarted | Mandate::Arbiter if self.world.all_have_it() => {
                faults.push(oracle.told().and_then(|told| told.lost(generation, lsn)));
            }
            Mandate::SaveStarted | Mandate::Arbiter => {}
        }
        drop(oracle);
        self.world.accuse(faults.into_iter().flatten());
        self.node.inner().verified = Some((generation, lsn));
        self.tell(Event::ImageVerified { round });
    }

    fn place(self: &Arc<Self>) {
        let generation = self.state().durable.generation;
        if self.node.inner().placed == Some(generation) {
            return self.tell(Event::FilesPlaced);
        }
        let round = Round { generation, attempt: 0 };
        let found = self.standby.verify(round, Mandate::Force);
        if !self.lives() {
            return;
        }
        let Some((of, lsn, files)) = found else { return self.tell(Event::PlacingFailed) };
        let other = self.node.inner().verified != Some((of, lsn));
        self.world.accuse(other.then(|| format!("{lsn} of {of} is put in place, and another was promoted")));
        self.world.accuse(lock(&self.world.oracle).fault(of, lsn, &files));
        {
            let mut inner = self.node.inner();
            inner.disk = Some(Arc::new(Disk::with(&files)));
            inner.placed = Some(generation);
        }
        self.standby.clear();
        self.tell(Event::FilesPlaced);
    }

    fn start_program(self: &Arc<Self>, generation: Generation) {
        waits::sleep(up_to(Duration::from_millis(5)));
        let held = self.node.inner().log.as_ref().map(|(_, log)| log.clone());
        let (log, fresh) = match held.filter(|log| log.spec().generation == generation) {
            Some(log) => (log, false),
            None => {
                let spec = LogSpec {
                    group: GROUP,
                    generation,
                    id: LogId(below(u64::MAX)),
                    ring_bytes: pmemha::log::format::MIN_RING,
                    bitmap_bytes: 4096,
                    appenders: 16,
                    regions: REGIONS,
                    ..LogSpec::default()
                };
                let (fd, log) = LogRegion::create(&spec).expect("a log in memory");
                lock(&self.source).take().iter().for_each(|source| source.end());
                let mut inner = self.node.inner();
                if !self.lives() {
                    return;
                }
                // Region numbers are those of a log.
                let files = inner.disk.as_ref().expect("files to run on").content();
                inner.disk = Some(Arc::new(Disk::with(&files)));
                inner.log = Some((fd, log.clone()));
                drop(inner);
                lock(&self.world.oracle).begins(generation, self.node.index, files);
                (log, true)
            }
        };
        if !self.lives() {
            return;
        }
        if self.source().is_none() {
            self.ship(&log, fresh, false);
        }
        if self.state().admits_application() {
            self.world.run_program(&self.node, &log);
        }
        self.tell(Event::ApplicationStarted);
        // One that died before its start was told: its end is told next.
        if self.node.inner().program.life == Life::Gone {
            self.tell(Event::ApplicationDied);
        }
    }

    fn ship(self: &Arc<Self>, log: &Arc<LogRegion>, fresh: bool, still: bool) {
        let Some(disk) = self.node.inner().disk.clone() else { return };
        let source = Source::start(&self.world, self.node.index, log, &disk, fresh, still);
        *lock(&self.source) = Some(source.clone());
        if !self.lives() {
            source.end();
        }
    }
}

struct OwnHands<'a> {
    agent: &'a Arc<Agent>,
    orders: Vec<Action>,
    reply: Option<Box<dyn FnOnce(Answer) + Send>>,
}

impl Hands for OwnHands<'_> {
    type Error = ();

    fn persist(&mut self, durable: &Durable) -> Result<(), ()> {
        // It may die before, and between what is stored and what is done on it.
        waits::sleep(up_to(Duration::from_micros(200)));
        if self.agent.lives() {
            self.agent.node.inner().durable = durable.clone();
            waits::sleep(up_to(Duration::from_micros(200)));
        }
        if self.agent.lives() { Ok(()) } else { Err(()) }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Reply(answer) => self.reply.take().into_iter().for_each(|reply| reply(answer.clone())),
            order => self.orders.push(order),
        }
    }
}

/// What starts the group on the machine of this number.
pub fn first(world: &World, node: &Node) -> Durable {
    let policy = policy(world, node, 1);
    match node.index {
        0 => Durable::first_owner(&policy, Generation(1)),
        _ => Durable::first_standby(&policy, Generation(1)),
    }
}

/// A trigger that lets an heir go on without everything, now and then.
pub fn trigger() -> Trigger {
    if one_in(8) { Trigger::SaveStarted } else { Trigger::Saved }
}

/// One life of the program.
pub fn run(world: &Arc<World>, node: &Arc<Node>, log: &Arc<LogRegion>, number: u64) {
    let Some(disk) = node.inner().disk.clone() else { return };
    let program = Program::new(disk, log, world.oracle.clone());
    let (here, there, everywhere) = (node.clone(), node.clone(), world.clone());
    let ended = move || {
        let program = &here.inner().program;
        program.number != number || program.life == Life::Gone || everywhere.is_over()
    };
    let rests = world.clone();
    let frozen = move || there.inner().program.life == Life::Frozen || rests.is_at_rest();
    let idle = || world.is_calm();
    program.run(ended, frozen, idle);
}
