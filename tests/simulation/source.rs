//! What a machine does for a group that it owns: copies, ships, commits, lets go of those that are in the way, brings the tail over.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use pmemha::failover::{Answer, NodeName, Request, Round, Saved};
use pmemha::locks::lock;
use pmemha::log::format::CopyFor;
use pmemha::log::{Appender, LogRegion, SleepDepth};
use pmemha::replica::StreamStart;
use pmemha::replica::peek::{self, BaseQuery};
use pmemha::ship::backoff::Backoff;
use pmemha::ship::commits::Commits;
use pmemha::ship::gasp;
use pmemha::ship::join::Joining;
use pmemha::ship::shipper::{Link, Shipment, Shipper};
use pmemha::ship::space::Space;
use pmemha::ship::status::ShipStatus;
use pmemha::ship::sync::base::{Base, Found};
use pmemha::ship::sync::{SyncRegion, SyncSource, Syncer};
use pmemha::types::{Generation, Lsn};
use pmemha::waits;

use crate::agent::Agent;
use crate::clock::{below, say, spawn_on, up_to};
use crate::node::number;
use crate::program::Disk;
use crate::standby::directory;
use crate::world::World;

/// How often it is looked who is in the way of others.
const BEAT: Duration = Duration::from_millis(100);

/// A destination that has been sent the beginning of a copy may take so long to begin it.
const BEGUN_WITHIN: Duration = Duration::from_millis(200);

/// An owned group.
pub struct Source {
    world: Arc<World>,
    node: usize,
    pub log: Arc<LogRegion>,
    syncer: Syncer,
    space: Arc<Space>,
    commits: Arc<Commits>,
    destinations: Arc<Vec<Destination>>,
    still: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    gasp: Mutex<Arc<AtomicBool>>,
}

struct Destination {
    node: usize,
    ship: Arc<ShipStatus>,
    stream: Mutex<Option<u32>>,
    connected: AtomicBool,
    reads: Mutex<Reading>,
}

/// Whether the ring is read for a destination.
#[derive(Default)]
enum Reading {
    #[default]
    Nothing,
    /// It is about to be, unless it had to be let go.
    Joins { left: bool },
    /// It is, until the flag is set; then the ring is let go if it `leaves`.
    Reads { stop: Arc<AtomicBool>, leaves: bool },
}

/// What is copied, and for whom.
struct Feed {
    world: Arc<World>,
    appender: Appender,
    disk: Arc<Disk>,
    destinations: Arc<Vec<Destination>>,
    space: Arc<Space>,
    still: Arc<AtomicBool>,
}

impl SyncSource for Feed {
    fn appender(&self) -> &Appender {
        &self.appender
    }

    fn regions(&self) -> io::Result<Vec<SyncRegion>> {
        Ok(self.disk.regions())
    }

    fn is_still(&self) -> bool {
        self.still.load(SeqCst)
    }

    fn destinations(&self) -> usize {
        self.destinations.len()
    }

    fn reader(&self, stream: u32) -> Option<bool> {
        let to = self.destinations.iter().find(|to| *lock(&to.stream) == Some(stream))?;
        Some(to.connected.load(SeqCst))
    }

    fn taken_to(&self, whom: CopyFor) -> Option<Lsn> {
        let takes = |to: &Destination| match whom {
            CopyFor::One(stream) => *lock(&to.stream) == Some(stream),
            CopyFor::All => true,
            CopyFor::Newcomers => !to.ship.view().counts,
        };
        let readers = self.destinations.iter().enumerate().filter(|(_, to)| takes(to));
        readers.filter_map(|(who, _)| self.space.taken_to(who)).min()
    }

    fn base(&self, whom: CopyFor, begin: Lsn) -> Option<Box<dyn Base>> {
        let takes = |(who, to): &(usize, &Destination)| match whom {
            CopyFor::All => self.space.holds(*who),
            CopyFor::One(stream) => *lock(&to.stream) == Some(stream),
            CopyFor::Newcomers => false,
        };
        let mut readers = self.destinations.iter().enumerate().filter(takes);
        let (Some((_, to)), None) = (readers.next(), readers.next()) else { return None };
        to.connected.load(SeqCst).then(|| {
            Box::new(Before {
                world: self.world.clone(),
                node: to.node,
                begin,
                log: self.appender.log().clone(),
                asked: None,
            }) as Box<dyn Base>
        })
    }
}

/// The image that a destination had before a copy.
struct Before {
    world: Arc<World>,
    node: usize,
    log: Arc<LogRegion>,
    begin: Lsn,
    asked: Option<Instant>,
}

impl Base for Before {
    fn digests(&mut self, name: &str, block: usize, first: u64, count: usize) -> io::Result<Found> {
        waits::sleep(up_to(Duration::from_micros(300)));
        let gone = || io::Error::other("the destination's agent is gone");
        let agent = self.world.nodes[self.node].agent().ok_or_else(gone)?;
        let query = BaseQuery {
            generation: self.log.spec().generation,
            begin: self.begin,
            name,
            block,
            first,
            count,
        };
        match peek::base(agent.standby.store(), directory(), query) {
            None if waits::since(*self.asked.get_or_insert_with(waits::now)) > BEGUN_WITHIN => {
                Err(io::Error::other("it does not begin the copy"))
            }
            None => Ok(Found::NotBegun),
            Some(None) => Ok(Found::Nothing),
            Some(Some((region, digests))) => Ok(Found::Digests(region, digests)),
        }
    }
}

impl Source {
    /// Ships `log` of the files on `disk`. `fresh`: nobody has read of it.
    pub fn start(
        world: &Arc<World>,
        node: usize,
        log: &Arc<LogRegion>,
        disk: &Arc<Disk>,
        fresh: bool,
        still: bool,
    ) -> Arc<Source> {
        let others = (0..world.nodes.len()).filter(|other| *other != node);
        let destination = |node| Destination {
            node,
            ship: Arc::default(),
            stream: Mutex::default(),
            connected: AtomicBool::new(false),
            reads: Mutex::default(),
        };
        let destinations: Arc<Vec<_>> = Arc::new(others.map(destination).collect());
        let count = destinations.len();
        let enough = if world.commit { world.over.of(count) } else { 0 };
        let space = Space::new(log.clone(), (count, 0), enough, fresh);
        let (still, stop) = (Arc::new(AtomicBool::new(still)), Arc::new(AtomicBool::new(false)));
        let feed = Feed {
            world: world.clone(),
            appender: Appender::for_agent(log.clone(), 2).expect("a cell of the log"),
            disk: disk.clone(),
            destinations: destinations.clone(),
            space: space.clone(),
            still: still.clone(),
        };
        let source = Arc::new(Source {
            world: world.clone(),
            node,
            log: log.clone(),
            syncer: Syncer::start("simulated", Arc::new(feed)).expect("a simulated thread"),
            space,
            commits: Arc::new(Commits::new(log.clone(), world.over, count)),
            destinations,
            still,
            stop,
            gasp: Mutex::default(),
        });
        for who in 0..count {
            let source = source.clone();
            spawn_on(node, format!("link-{who}"), move || source.keep_link(who));
        }
        let beats = source.clone();
        spawn_on(node, "beat".into(), move || beats.beat());
        source
    }

    /// Ends what was started.
    pub fn end(&self) {
        self.stop.store(true, SeqCst);
        lock(&self.gasp).store(true, SeqCst);
        for to in self.destinations.iter() {
            if let Reading::Reads { stop, .. } = &*lock(&to.reads) {
                stop.store(true, SeqCst);
            }
        }
        self.log.wake_agent(SleepDepth::Nap);
    }

    fn stops(&self) -> bool {
        self.stop.load(SeqCst)
    }

    fn beat(&self) {
        while !self.stops() {
            waits::sleep(BEAT);
            let in_the_way = self.space.in_the_way(self.syncer.waits_for_room());
            in_the_way.into_iter().for_each(|who| self.let_go(who));
            for to in self.destinations.iter().filter(|to| to.ship.view().counts) {
                lock(&to.stream).iter().for_each(|stream| self.syncer.has_all(*stream));
            }
        }
    }

    /// A destination that is in the way leaves the ring.
    fn let_go(&self, who: usize) {
        let to = &self.destinations[who];
        match &mut *lock(&to.reads) {
            Reading::Reads { stop, leaves } => {
                *leaves = true;
                stop.store(true, SeqCst);
            }
            Reading::Joins { left } => {
                self.space.let_go(who);
                *left = true;
            }
            Reading::Nothing => {
                self.space.let_go(who);
                *lock(&to.stream) = None;
            }
        }
        self.log.wake_agent(SleepDepth::Nap);
    }

    fn keep_link(self: &Arc<Self>, who: usize) {
        let mut backoff = Backoff::default();
        while !self.stops() {
            let before = self.destinations[who].ship.view().applied;
            self.run_link(who);
            let to = &self.destinations[who];
            self.space.set_present(who, false);
            match std::mem::take(&mut *lock(&to.reads)) {
                Reading::Reads { leaves: true, .. } => {
                    self.space.let_go(who);
                    *lock(&to.stream) = None;
                }
                Reading::Joins { left: true } => *lock(&to.stream) = None,
                _ => {}
            }
            to.connected.store(false, SeqCst);
            to.ship.disconnected();
            self.tell_flow();
            if to.ship.view().applied > before {
                backoff.succeeded();
            }
            waits::sleep(backoff.failed(below(1 << 32) as u32));
        }
    }

    fn tell_flow(&self) {
        self.syncer.set_flowing(self.destinations.iter().any(|to| to.connected.load(SeqCst)));
    }

    /// One connection from its beginning to its end.
    fn run_link(self: &Arc<Self>, who: usize) -> Option<()> {
        let to = &self.destinations[who];
        let agent = self.world.reach(self.node, to.node)?;
        let turn = agent.standby.turn();
        let spec = *self.log.spec();
        let question = Request::Ask { generation: spec.generation, life: 0 };
        match agent.asked(question)? {
            Answer::Follows { .. } => {}
            fenced @ Answer::Fenced { .. } => {
                let mine = self.world.nodes[self.node].agent();
                mine.iter().for_each(|mine| mine.tell_answer(fenced.clone()));
                return None;
            }
            _ => return None,
        }
        let [mine, theirs] = self.world.connect(self.node, to.node)?;
        let have = agent.standby.have(&turn)?;
        let link = Link::prepare(mine, &self.log, self.world.nodes[to.node].durability).ok()?;
        *lock(&to.reads) = Reading::Joins { left: false };
        let joining = Joining::of(&self.log, &self.space, who, &have, || below(1 << 32) as u32);
        if joining.fresh {
            to.ship.begin_anew();
        }
        joining.settle(&self.commits, who, &have);
        *lock(&to.stream) = Some(joining.stream);
        let (from, fresh) = (joining.consumer.position(), joining.fresh.then_some(joining.stream));
        let start = StreamStart {
            generation: spec.generation,
            log: spec.id,
            ring_bytes: spec.ring_bytes,
            from,
            fresh,
        };
        let landing = agent.standby.attach(&turn, start, theirs, link.ack.key())?;
        to.connected.store(true, SeqCst);
        let takes_it = |(other, to): (usize, &Destination)| {
            let reads = self.space.holds(other) || to.connected.load(SeqCst);
            other != who && reads && !to.ship.view().counts
        };
        let alone = !self.destinations.iter().enumerate().any(takes_it);
        joining.request(&self.syncer, &have, alone);
        say(|| format!("{} ships to {} from {from}, fresh {fresh:?}", self.node, to.node));
        let stop = Arc::new(AtomicBool::new(self.stops()));
        self.tell_flow();
        match &mut *lock(&to.reads) {
            Reading::Joins { left: true } => return None,
            reads => {
                self.space.set_present(who, true);
                *reads = Reading::Reads { stop: stop.clone(), leaves: false };
            }
        }
        let me = Arc::downgrade(self);
        let shipment = Shipment {
            consumer: joining.consumer,
            digest: joining.digest,
            has: joining.has,
            stream: joining.stream,
            link,
            landing,
            space: (self.space.clone(), who),
            commits: (self.commits.clone(), who),
            shed: Box::new(move |who| Weak::upgrade(&me).iter().for_each(|me: &Arc<Source>| me.let_go(who))),
            status: to.ship.clone(),
            stop,
            observe: Box::new(|_| ()),
        };
        let error = Shipper::new(self.log.clone(), shipment).run();
        say(|| format!("{} ships no more to {}: {error}", self.node, to.node));
        Some(())
    }

    /// The program has been frozen or has ended: brings its tail over, and tells whoever has it.
    pub fn ship_tail(self: &Arc<Self>, agent: &Arc<Agent>, round: Round, heirs: Vec<NodeName>) {
        let over = Arc::new(AtomicBool::new(false));
        std::mem::replace(&mut *lock(&self.gasp), over.clone()).store(true, SeqCst);
        self.still.store(true, SeqCst);
        let (me, agent) = (self.clone(), agent.clone());
        spawn_on(self.node, "gasp".into(), move || {
            let find = |heir: &NodeName| me.destinations.iter().find(|to| to.node == number(&heir.0));
            let streams: Vec<_> = heirs.iter().filter_map(|heir| Some(find(heir)?.ship.clone())).collect();
            let deadline = waits::now() + Duration::from_secs(3600);
            let ship = |copying| gasp::ship_tail(&me.log, &streams, &me.syncer, copying, &over, deadline);
            let Ok(_) = ship(true) else { return };
            me.syncer.await_stillness();
            let Ok((heir, tail)) = ship(false) else { return };
            let saved = Saved { lsn: tail.lsn, digest: tail.digest };
            agent.tell(pmemha::failover::Event::TailDurable { round, heir: heirs[heir].clone(), saved });
        });
    }

    /// Nobody wants it any more.
    pub fn call_off(&self) {
        lock(&self.gasp).store(true, SeqCst);
        self.still.store(false, SeqCst);
    }

    /// Destinations that count and have everything.
    pub fn complete(&self) -> BTreeSet<usize> {
        if !self.log.is_whole() || self.syncer.is_active_for_all() {
            return BTreeSet::new();
        }
        let published = self.log.published();
        let complete = |to: &&Destination| to.ship.view().counts && to.ship.view().applied >= published;
        self.destinations.iter().filter(complete).map(|to| to.node).collect()
    }

    /// Publishes what is complete, as a last gasp does.
    pub fn publish(&self) {
        self.log.publish_filled(&|_| false);
        self.log.wake_agent(SleepDepth::Deep);
    }

    /// Generation of the log.
    pub fn generation(&self) -> Generation {
        self.log.spec().generation
    }

    /// Of each destination whether it counts, and how far it is.
    pub fn describe(&self) -> String {
        let of = |to: &Destination| {
            let view = to.ship.view();
            let connected = to.connected.load(SeqCst);
            format!(
                "{}: connected {connected}, counts {}, syncing {}, {} of {}",
                to.node,
                view.counts,
                view.syncing,
                view.applied,
                self.log.published()
            )
        };
        let all: Vec<_> = self.destinations.iter().map(of).collect();
        format!("{}; ahead {}, {:?}", all.join("; "), self.log.is_ahead(), self.syncer.view())
    }
}
