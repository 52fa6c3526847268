//! Two or three machines, the network between them, and everything that may happen to them.

use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use pmemha::fabric::Endpoint;
use pmemha::failover::{Event, Life, OnDeath, Phase, Request, Standing, Trigger};
use pmemha::locks::lock;
use pmemha::log::LogRegion;
use pmemha::replica::recover;
use pmemha::ship::commits::Over;
use pmemha::types::{Durability, Generation, Lsn};
use pmemha_testkit::chance::Chance;

use crate::agent::{self, Agent};
use crate::clock::{self, Home, after, below, one_in, say, spawn, spawn_on, up_to};
use crate::fabric::Pipe;
use crate::node::Node;
use crate::oracle::Oracle;
use crate::program::Disk;
use crate::standby;

pub struct World {
    pub nodes: Vec<Arc<Node>>,
    pub nodes_wanted: usize,
    pub over: Over,
    /// The ring is kept for those without whom no commit would go on, as where programs wait for commits.
    pub commit: bool,
    pub on_death: OnDeath,
    pub trigger: Trigger,
    pub oracle: Arc<Mutex<Oracle>>,
    /// The cables that are cut.
    cut: Mutex<Vec<(usize, usize)>>,
    /// Nothing goes wrong any more.
    calm: AtomicBool,
    /// The program stores nothing any more.
    at_rest: AtomicBool,
    over_all: AtomicBool,
    faults: Mutex<Vec<String>>,
}

/// How long things go wrong: mostly, and now and then.
const STORM: Duration = Duration::from_millis(120);
const LONG_STORM: Duration = Duration::from_millis(800);

/// Whom an operator has declared dead stays so for as long.
const WORD: Duration = Duration::from_millis(400);

/// How long the rest may take then.
const CALM: Duration = Duration::from_secs(60);

/// Runs one seed; what was found wrong, if anything.
pub fn run() -> Option<String> {
    let nodes_wanted = 2 + below(2) as usize;
    let mut world = World {
        nodes: Vec::new(),
        nodes_wanted,
        over: [Over::Any, Over::Quorum, Over::All][below(3) as usize],
        commit: one_in(2),
        on_death: if one_in(2) { OnDeath::Failover } else { OnDeath::Restart },
        trigger: agent::trigger(),
        oracle: Arc::default(),
        cut: Mutex::default(),
        calm: AtomicBool::new(false),
        at_rest: AtomicBool::new(false),
        over_all: AtomicBool::new(false),
        faults: Mutex::default(),
    };
    for index in 0..nodes_wanted {
        let durability = [Durability::Disk, Durability::Pmem, Durability::Battery, Durability::Eadr];
        let durability = durability[below(4) as usize];
        let disk = (index == 0).then(Disk::first);
        let mut node = Node::new(index, durability, agent::first(&world, &bare(index)), disk);
        node.inner().mains = true;
        node.index = index;
        world.nodes.push(Arc::new(node));
    }
    let world = Arc::new(world);
    world.begin();
    let storm = if one_in(12) { LONG_STORM } else { STORM };
    for _ in 0..2 + below(8) {
        let (world, at) = (world.clone(), up_to(storm));
        after(at, move || world.strike());
    }
    world.until(clock::now() + storm, || false);
    world.heal();
    let settled = world.until(clock::now() + CALM, || world.is_settled());
    if settled {
        world.compare_all();
    } else if lock(&world.faults).is_empty() {
        world.accuse(Some(format!("it does not come to rest: {}", world.describe())));
    }
    world.end();
    lock(&world.faults).first().cloned()
}

/// For a policy, before there is anything else.
fn bare(index: usize) -> Node {
    use pmemha::failover::{BootId, DURABLE_VERSION, Durable};
    let durable = Durable {
        version: DURABLE_VERSION,
        boot: BootId([1; 16]),
        generation: pmemha::types::Generation(1),
        standing: Standing::Demoted { cancelled: None },
    };
    Node::new(index, Durability::Disk, durable, None)
}

impl World {
    /// The first owner's program starts, and the agents.
    fn begin(self: &Arc<Self>) {
        let owner = self.nodes[0].clone();
        let log = {
            let spec = pmemha::log::LogSpec {
                group: standby::GROUP,
                id: pmemha::types::LogId(below(u64::MAX)),
                ring_bytes: pmemha::log::format::MIN_RING,
                bitmap_bytes: 4096,
                appenders: 16,
                regions: crate::program::REGIONS,
                ..Default::default()
            };
            let (fd, log) = LogRegion::create(&spec).expect("a log in memory");
            owner.inner().log = Some((fd, log.clone()));
            log
        };
        let files = owner.inner().disk.as_ref().expect("the first owner's").content();
        lock(&self.oracle).begins(log.spec().generation, 0, files);
        self.run_program(&owner, &log);
        self.nodes.iter().for_each(|node| self.start_agent(node));
    }

    /// Lets time pass until `done`, or something is found wrong.
    fn until(&self, limit: Duration, done: impl Fn() -> bool) -> bool {
        clock::drive(limit, || done() || !lock(&self.faults).is_empty())
    }

    /// Has the program run on a machine, as long as its number holds.
    pub fn run_program(self: &Arc<Self>, node: &Arc<Node>, log: &Arc<LogRegion>) {
        let number = {
            let mut inner = node.inner();
            if inner.program.life != Life::Gone {
                return;
            }
            inner.program.number += 1;
            inner.program.life = Life::Running;
            inner.program.number
        };
        say(|| format!("the program runs on {}, generation {}", node.name, log.spec().generation));
        self.check_writers();
        let (world, node, log) = (self.clone(), node.clone(), log.clone());
        spawn(Some(Home { node: node.index, agent: false }), "program".into(), move || {
            agent::run(&world, &node, &log, number)
        });
    }

    pub fn check_writers(&self) {
        let runs = |node: &&Arc<Node>| node.inner().program.life == Life::Running;
        let running: Vec<_> = self.nodes.iter().filter(runs).map(|node| node.name.clone()).collect();
        if running.len() > 1 {
            self.accuse(Some(format!("the program runs on {}", running.join(" and "))));
        }
    }

    pub fn accuse(&self, faults: impl IntoIterator<Item = String>) {
        for fault in faults {
            say(|| format!("FAULT: {fault}"));
            lock(&self.faults).push(fault);
        }
    }

    pub fn is_over(&self) -> bool {
        self.over_all.load(SeqCst)
    }

    /// Whether every destination has what was acknowledged.
    pub fn all_have_it(&self) -> bool {
        self.over == Over::All || self.nodes.len() == 2
    }

    /// The program stores nothing any more.
    pub fn is_at_rest(&self) -> bool {
        self.at_rest.load(SeqCst)
    }

    /// Nothing goes wrong any more.
    pub fn is_calm(&self) -> bool {
        self.calm.load(SeqCst)
    }

    pub fn is_cut(&self, a: usize, b: usize) -> bool {
        lock(&self.cut).contains(&(a.min(b), a.max(b)))
    }

    /// The agent on `to`, if `from` reaches it.
    pub fn reach(&self, from: usize, to: usize) -> Option<Arc<Agent>> {
        waits_a_little();
        (!self.is_cut(from, to)).then(|| self.nodes[to].agent()).flatten()
    }

    /// A connection of the fabric between two machines.
    pub fn connect(&self, from: usize, to: usize) -> Option<[Arc<dyn Endpoint>; 2]> {
        if self.is_cut(from, to) {
            return None;
        }
        let (source, destination) = (&self.nodes[from], &self.nodes[to]);
        let holds = destination.durability == Durability::Eadr;
        let (pipe, ends) = Pipe::between(&source.name, &destination.name, holds);
        for node in [source, destination] {
            let mut inner = node.inner();
            inner.agent.as_ref()?;
            inner.pipes.push(Arc::downgrade(&pipe));
        }
        Some(ends)
    }

    /// How often what is sent arrives.
    pub fn copies(&self) -> u64 {
        match below(16) {
            0 if !self.calm.load(SeqCst) => 0,
            1 => 2,
            _ => 1,
        }
    }

    /// How long it takes.
    pub fn delay(&self) -> Duration {
        up_to(if one_in(12) { Duration::from_millis(150) } else { Duration::from_micros(800) })
    }

    /// Sends a request of `agent`.
    pub fn send(self: &Arc<Self>, agent: &Arc<Agent>, to: usize, request: &Request) {
        for _ in 0..self.copies() {
            let (world, agent, request) = (self.clone(), agent.clone(), request.clone());
            after(self.delay(), move || {
                let reached = world.nodes[to].agent().filter(|_| !world.is_cut(agent.node.index, to));
                if let Some(heard) = reached {
                    heard.hear(&agent, request);
                }
            });
        }
    }

    /// Something goes wrong.
    fn strike(self: &Arc<Self>) {
        if self.calm.load(SeqCst) {
            return;
        }
        let node = self.nodes[below(self.nodes.len() as u64) as usize].clone();
        let a_while =
            Duration::from_millis(1) + up_to(Duration::from_millis(if one_in(4) { 150 } else { 15 }));
        match below(16) {
            0..2 => self.lose_machine(&node, a_while),
            2..4 => self.lose_agent(&node, a_while),
            4..6 => self.lose_cable(&node, a_while),
            6 => {
                say(|| format!("{} stalls", node.name));
                clock::stall(node.index, a_while);
            }
            7..10 => self.lose_mains(&node, a_while),
            10 => self.lose_program(&node),
            11 => node.agent().iter().for_each(|agent| agent.tell(Event::OperatorLastGasp)),
            12 => self.promote_by_force(),
            _ => self.look_at_copies(),
        }
    }

    fn lose_machine(self: &Arc<Self>, node: &Arc<Node>, a_while: Duration) {
        if !node.inner().on {
            return;
        }
        node.cut_power();
        let (world, node) = (self.clone(), node.clone());
        after(a_while, move || world.power_on(&node));
    }

    fn power_on(self: &Arc<Self>, node: &Arc<Node>) {
        {
            let mut inner = node.inner();
            if inner.on || self.is_over() {
                return;
            }
            if inner.off_until > clock::now() {
                let (world, again, node) = (self.clone(), inner.off_until - clock::now(), node.clone());
                return after(again, move || world.power_on(&node));
            }
            (inner.on, inner.boot) = (true, inner.boot + 1);
        }
        say(|| format!("{} has power again", node.name));
        self.start_agent(node);
    }

    /// Starts the agent of a node, again if it is killed meanwhile.
    fn start_agent(self: &Arc<Self>, node: &Arc<Node>) {
        if std::mem::replace(&mut node.inner().starts, true) {
            return;
        }
        let (world, node) = (self.clone(), node.clone());
        spawn_on(node.index, "start".into(), move || {
            while node.inner().on && node.agent().is_none() && !world.is_over() {
                Agent::start(&world, &node);
            }
            node.inner().starts = false;
        });
    }

    fn lose_agent(self: &Arc<Self>, node: &Arc<Node>, a_while: Duration) {
        if node.agent().is_none() {
            return;
        }
        node.kill_agent();
        self.check_writers();
        let (world, node) = (self.clone(), node.clone());
        after(a_while, move || world.start_agent(&node));
    }

    fn lose_cable(self: &Arc<Self>, node: &Arc<Node>, a_while: Duration) {
        let other = self.nodes[(node.index + 1) % self.nodes.len()].clone();
        let cable = (node.index.min(other.index), node.index.max(other.index));
        say(|| format!("the cable between {} and {} is cut", node.name, other.name));
        lock(&self.cut).push(cable);
        // Those of one of them, too, that lead elsewhere: a switch, say.
        let pipes = std::mem::take(&mut node.inner().pipes);
        pipes.iter().filter_map(std::sync::Weak::upgrade).for_each(|pipe| pipe.cut());
        let world = self.clone();
        after(a_while, move || {
            say(|| "a cable is whole again".to_owned());
            let cuts = &mut *lock(&world.cut);
            let one = cuts.iter().position(|cut| *cut == cable);
            one.into_iter().for_each(|at| _ = cuts.swap_remove(at));
        });
    }

    fn lose_mains(self: &Arc<Self>, node: &Arc<Node>, a_while: Duration) {
        if !std::mem::replace(&mut node.inner().mains, false) {
            return;
        }
        say(|| format!("{} loses external power", node.name));
        let (world, node, dies) = (self.clone(), node.clone(), one_in(4));
        after(a_while, move || {
            say(|| format!("{} has external power again", node.name));
            node.inner().mains = true;
            // The battery was empty before.
            if dies && !world.calm.load(SeqCst) {
                world.lose_machine(&node, up_to(Duration::from_millis(100)));
            }
        });
    }

    fn lose_program(&self, node: &Arc<Node>) {
        let mut inner = node.inner();
        if inner.program.life != Life::Running {
            return;
        }
        (inner.program.life, inner.program.number) = (Life::Gone, inner.program.number + 1);
        say(|| format!("the program dies on {}", node.name));
        inner.agent.iter().for_each(|agent| agent.tell(Event::ApplicationDied));
    }

    /// The operator's word that the owner is dead, given where that is so, to whom of all others has most.
    fn promote_by_force(&self) {
        let owns = |node: &&Arc<Node>| {
            matches!(node.inner().durable.standing, Standing::Owner { .. } | Standing::GivenUp { .. })
        };
        let newest = self.nodes.iter().filter(owns).max_by_key(|node| node.inner().durable.generation);
        let Some(owner) = newest.filter(|owner| !owner.inner().on) else { return };
        let others = self.nodes.iter().filter(|node| node.index != owner.index);
        let agents: Option<Vec<_>> = others.map(|node| node.agent()).collect();
        let Some(agents) = agents else { return };
        let has = |agent: &&Arc<Agent>| agent.standby.status().map(|status| status.would_have());
        // He sees that nobody has taken over whom this one has not heard of.
        let generation = owner.inner().durable.generation;
        let knows = |agent: &&Arc<Agent>| agent.state().durable.generation == generation;
        if let Some(best) = agents.iter().max_by_key(has).filter(knows) {
            // His word holds until it has been acted on.
            owner.inner().off_until = clock::now() + WORD;
            say(|| format!("the operator promotes {}", best.node.name));
            best.tell(Event::OperatorPromote { force: true });
        }
    }

    /// What would be found at each destination if the power went everywhere at this instant.
    fn look_at_copies(self: &Arc<Self>) {
        let told = lock(&self.oracle).told().filter(|_| self.all_have_it());
        for node in &self.nodes {
            let standing = node.inner().durable.standing.clone();
            if !matches!(standing, Standing::Standby { .. } | Standing::Demoted { .. }) {
                continue;
            }
            let told = told.filter(|told| told.is_at(node.index));
            self.look_at(node, move |_, found| match (found, told) {
                (Some((generation, lsn)), Some(told)) => told.lost(generation, lsn),
                (None, Some(told)) => Some(format!("nothing, and {told:?}")),
                _ => None,
            });
        }
    }

    /// Everybody has everything: what each destination would yield is what the program has stored, to the last record.
    fn compare_all(self: &Arc<Self>) {
        self.at_rest.store(true, SeqCst);
        // What the program has recorded and not drained, too.
        let sources = self.nodes.iter().filter_map(|node| node.agent()?.source());
        sources.for_each(|source| source.publish());
        self.until(clock::now() + CALM, || self.is_settled());
        let before = clock::living();
        let owner = self.nodes.iter().find(|node| node.inner().program.life != Life::Gone);
        let generation = owner.map(|owner| owner.inner().durable.generation);
        for node in self.nodes.iter().filter(|node| Some(node.index) != owner.map(|owner| owner.index)) {
            self.look_at(node, move |world, found| match found {
                Some((of, lsn)) if Some(of) == generation => lock(&world.oracle).lacks(of, lsn),
                found => Some(format!("{found:?} in place of all of {generation:?}")),
            });
        }
        self.until(clock::now() + CALM, || clock::living() <= before);
    }

    /// Opens what a node would find of its copy if its power went at this instant: what is wrong with it, as such or as `judge` says.
    fn look_at(
        self: &Arc<Self>,
        node: &Arc<Node>,
        judge: impl FnOnce(&World, Option<(Generation, Lsn)>) -> Option<String> + Send + 'static,
    ) {
        let mut chance = Chance::seeded(below(u64::MAX));
        let store = node.inner().store.after_crash(&mut chance, node.is_lossy());
        let (world, node) = (self.clone(), node.clone());
        spawn(None, "look".into(), move || {
            let (applier, _) =
                recover::open(standby::config(&store, node.durability)).expect("a copy can be opened");
            let found = standby::yields(&store, &applier);
            let place = found.as_ref().map(|(generation, lsn, _)| (*generation, *lsn));
            let fault =
                found.and_then(|(generation, lsn, files)| lock(&world.oracle).fault(generation, lsn, &files));
            let fault = fault.or_else(|| judge(&world, place));
            world.accuse(fault.map(|fault| format!("{} would yield: {fault}", node.name)));
        });
    }

    /// Nothing goes wrong from here on.
    fn heal(self: &Arc<Self>) {
        say(|| "calm".to_owned());
        self.calm.store(true, SeqCst);
        lock(&self.cut).clear();
        for node in &self.nodes {
            node.inner().mains = true;
            self.power_on(node);
            self.start_agent(node);
        }
    }

    /// One runs the program, the others have all of it.
    fn is_settled(self: &Arc<Self>) -> bool {
        let states: Option<Vec<_>> =
            self.nodes.iter().map(|node| Some((node.clone(), node.agent()?.state()))).collect();
        let Some(states) = states else { return false };
        let Some((owner, _)) = states.iter().find(|(_, state)| state.phase == Phase::Running) else {
            self.help(&states.into_iter().map(|(node, state)| (node, state.phase)).collect::<Vec<_>>());
            return false;
        };
        if let Some(source) = owner.agent().and_then(|agent| agent.source())
            && source.generation() < owner.inner().durable.generation
        {
            // After a promotion by force where it has run all the time, the program is to be started again.
            self.lose_program(owner);
            return false;
        }
        let follow = |(node, state): &(Arc<Node>, pmemha::failover::State)| {
            node.index == owner.index || state.phase == Phase::Standby
        };
        if !states.iter().all(follow) || owner.inner().program.life != Life::Running {
            return false;
        }
        let source = owner.agent().and_then(|agent| agent.source());
        source.is_some_and(|source| source.complete().len() + 1 == self.nodes.len())
    }

    /// What an operator would do where the machines wait for one.
    fn help(&self, phases: &[(Arc<Node>, Phase)]) {
        for (node, phase) in phases {
            if matches!(phase, Phase::Unable | Phase::Stopped) && one_in(200) {
                node.agent().iter().for_each(|agent| agent.tell(Event::OperatorPromote { force: false }));
            }
        }
    }

    fn describe(&self) -> String {
        let of = |node: &Arc<Node>| {
            let agent = node.agent();
            let state = agent.as_ref().map(|agent| (agent.state().phase, agent.state().durable.standing));
            let source = agent.and_then(|agent| agent.source()).map(|source| source.describe());
            format!("{}: {state:?} {:?} {source:?}", node.name, node.inner().program.life)
        };
        self.nodes.iter().map(of).collect::<Vec<_>>().join("\n  ")
    }

    /// Ends everything, and what is only just starting.
    fn end(self: &Arc<Self>) {
        self.over_all.store(true, SeqCst);
        let ended = clock::drive(clock::now() + Duration::from_secs(20), || {
            for node in &self.nodes {
                node.inner().program.number += 1;
                node.inner().program.life = Life::Gone;
                if let Some(agent) = node.agent() {
                    node.kill_agent();
                    spawn(None, "end".into(), move || agent.standby.end());
                }
            }
            clock::living() == 0
        });
        if !ended {
            self.accuse(Some(format!("{} threads do not end", clock::living())));
        }
    }
}

fn waits_a_little() {
    pmemha::waits::sleep(up_to(Duration::from_micros(400)));
}
