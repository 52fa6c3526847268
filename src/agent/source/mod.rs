//! A group's stream at its source: the links to its destinations, kept up; the copy of its regions; its pulse.
//!
//! A [`Source`] lives as long as the [`Group`] whose log it ships. One thread a destination keeps its link: it opens the group
//! there, decides whether the stream resumes from the ring or begins anew with a copy, runs the shipper, pings,
//! and starts again with growing pauses when anything fails. Another one beats, so that applications know that the
//! agent lives. Made by `agent::role`, and by `agent::local` for a group that is shipped nowhere.

mod archive;
mod base;
mod destination;
mod link;
mod report;
mod sampler;
mod suspects;
mod table;
mod verifier;
mod verify;

use std::io;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::json;

use super::config;
use super::control::message::Refusal;
use super::events::Kind;
use super::fabrics::Fabrics;
use super::group::{Group, Stuck};
use crate::fabric::tls::TlsIdentity;
use crate::failover::{NodeName, Trigger};
use crate::locks::lock;
use crate::log::region::{BEAT, boottime};
use crate::log::{LinkState, SleepDepth};
use crate::ship::archiver::Archiver;
use crate::ship::commits::Commits;
use crate::ship::gasp::{self, GaspError, HeldUp, Tail};
use crate::ship::space::Space;
use crate::ship::sync::{Requester, Syncer};
use crate::types::{Generation, Level};
use destination::{Destination, Left, Why, verdict};
use sampler::Sampler;
use table::{GroupRegions, Table};
use verifier::Verifier;
pub use verifier::Wish;

/// How often [`Source::finish`] looks.
const FINISH_LOOK: Duration = Duration::from_millis(2);

/// How often files are looked for that nobody has opened.
const SEEK: Duration = Duration::from_secs(5);

/// Looking takes at most one part in so many of the time.
const SEEK_SHARE: u32 = 400;

/// Emits an event of the group: its kind and its detail.
pub type Tell = Arc<dyn Fn(Kind, serde_json::Value) + Send + Sync>;

/// Hears which destination will not have the group's stream, why, and of the generation that it knows.
pub type Refused = Box<dyn Fn(&str, Refusal, Generation) + Send + Sync>;

/// What a source needs besides its group.
pub struct SourceSetup {
    /// The group.
    pub group: Arc<Group>,
    /// Its destinations, the one first that is preferred as the heir; without any the group is unprotected.
    pub destinations: Vec<config::Peer>,
    /// How they are reached; needed where there are any.
    pub way: Option<Way>,
    /// Takes events: kind and detail.
    pub event: Tell,
    /// See [`Refused`].
    pub refused: Refused,
    /// Number that spreads attempts to reconnect.
    pub chance: fn() -> u32,
}

/// How a node reaches others.
pub struct Way {
    /// Who this node is.
    pub identity: Arc<TlsIdentity>,
    /// What data travels over.
    pub fabrics: Arc<Fabrics>,
}

/// The stream of one group; stopped on drop.
pub struct Source {
    // First to be stopped: it takes what is published while the rest still runs.
    archiver: Option<Archiver>,
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    setup: SourceSetup,
    syncer: Syncer,
    space: Arc<Space>,
    commits: Arc<Commits>,
    destinations: Vec<Arc<Destination>>,
    sampler: Arc<Sampler>,
    table: Arc<Table>,
    flow: Mutex<()>,
    /// Held while a destination is paused or goes on.
    pausing: Mutex<()>,
    verifier: Verifier,
    stop: Mutex<bool>,
    stopped: Condvar,
}

impl Source {
    /// Starts to ship. The threads run until the source is dropped.
    pub fn start(setup: SourceSetup) -> io::Result<Source> {
        let (group, name) = (setup.group.clone(), setup.group.name().to_owned());
        let peers = setup.destinations.iter().cloned().enumerate();
        let destination = |(index, peer): (usize, config::Peer)| {
            let paused = group.is_paused(&peer.name);
            Arc::new(Destination::new(peer, index, paused))
        };
        let destinations: Vec<_> = peers.map(destination).collect();
        let over = group.config().commit_over;
        let waits = group.config().commit > Level::Local;
        let enough = if waits { over.of(destinations.len()) } else { 0 };
        let space = Space::new(
            group.log().clone(),
            (destinations.len(), usize::from(group.config().archive.is_some())),
            enough,
            !group.resumed(),
        );
        let regions = GroupRegions {
            group: group.clone(),
            destinations: destinations.clone(),
            space: space.clone(),
            identity: setup.way.as_ref().map(|way| way.identity.clone()),
        };
        let shared = Arc::new(Shared {
            syncer: Syncer::start(&name, Arc::new(regions))?,
            space,
            commits: Arc::new(Commits::new(group.log().clone(), over, destinations.len())),
            destinations,
            sampler: Arc::default(),
            table: Arc::new(Table::new(group.clone())),
            flow: Mutex::new(()),
            pausing: Mutex::new(()),
            verifier: Verifier::default(),
            stop: Mutex::new(false),
            stopped: Condvar::new(),
            setup,
        });
        let archiver = group.config().archive.as_ref().map(|config| shared.start_archiver(config));
        let archiver = archiver.transpose()?;
        let mut source = Source { archiver, shared: shared.clone(), threads: Vec::new() };
        let beat = shared.clone();
        source.threads.push(spawn(format!("beat-{name}"), move || beat.beat())?);
        if !shared.setup.group.patterns().is_empty() {
            let seek = shared.clone();
            source.threads.push(spawn(format!("seek-{name}"), move || seek.seek())?);
        }
        for to in &shared.destinations {
            let (shared, to) = (shared.clone(), to.clone());
            let thread = format!("link-{name}-{}", to.peer.name);
            source.threads.push(spawn(thread, move || shared.keep_link(&to))?);
        }
        Ok(source)
    }

    /// For whoever learns of regions with content: only a copy that begins then protects them.
    pub fn copies(&self) -> Requester {
        self.shared.syncer.requester()
    }

    /// Ships nothing to the destination of this name any more, or again: what it has it keeps, and it is brought up to date as one that
    /// was away.
    pub fn set_paused(&self, node: &str, paused: bool) -> Result<(), String> {
        let shared = &self.shared;
        let group = &shared.setup.group;
        let found = shared.destinations.iter().find(|to| to.peer.name == node);
        let to = found.ok_or_else(|| shared.no_destination(Some(node)))?;
        let _one_at_a_time = lock(&shared.pausing);
        if to.is_paused() == paused {
            return Ok(());
        }
        if paused && group.config().trigger == Trigger::SaveStarted {
            return Err(format!(
                "group `{}` has trigger = \"save-started\": a last gasp gives it to the first of its destinations before that has \
                 everything, which a paused one would never have",
                group.name()
            ));
        }
        group.set_paused(node, paused).map_err(|error| error.to_string())?;
        to.set_paused(paused);
        if paused && self.archiver.is_some() {
            // Nobody closes a gap while no destination is connected.
            shared.let_go(to.index, Why::Paused);
        }
        group.log().wake_agent(SleepDepth::Nap);
        let kind = if paused { Kind::DestinationPaused } else { Kind::DestinationResumed };
        (shared.setup.event)(kind, json!({ "node": node }));
        Ok(())
    }

    /// Begins to compare the group's regions with a destination's image, while the program runs; with whose, and the number of the
    /// comparison. The destination's row of the status tells the rest.
    pub fn verify(&self, wish: &Wish) -> Result<(String, u64), String> {
        self.shared.verifier.begin(&self.shared, wish)
    }

    /// The group is about to be handed over: a comparison that is under way ends, and repairs nothing.
    pub fn stop_comparing(&self) {
        self.shared.verifier.stop();
    }

    /// Waits until everything published is durable at each destination that counts; what is missing everywhere at the deadline, as
    /// a sentence. Where none counts, a link that is down is waited for while it may be made: until the destination refuses, or
    /// an attempt that began meanwhile fails. An archive that cannot be written is named, too; one that can takes what is
    /// published when it is dropped.
    pub fn finish(&self, deadline: Instant) -> Option<String> {
        let left = self.finish_shipping(deadline);
        let archive = self.archiver.as_ref().map(Archiver::view).filter(|view| view.durable.is_none());
        let fault = archive.and_then(|view| view.last_error).map(|why| format!("nothing is archived: {why}"));
        let all: Vec<_> = left.into_iter().chain(fault).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    fn finish_shipping(&self, deadline: Instant) -> Option<String> {
        let all = &self.shared.destinations;
        let published = self.shared.setup.group.log().published();
        let failures: Vec<u64> = all.iter().map(|to| to.link().failures).collect();
        loop {
            let left: Vec<Left> = all.iter().zip(&failures).map(|(to, f)| to.left(published, *f)).collect();
            if let Some(verdict) = verdict(&left, Instant::now() >= deadline) {
                return verdict;
            }
            self.shared.sleep(FINISH_LOOK);
        }
    }

    /// Brings everything published to the destinations, and says which of `heirs` holds it all first. The
    /// application must not run, and the group has to be [held still](Group::hold_still). Ends once `cancel` is set.
    pub fn ship_tail(
        &self,
        heirs: &[NodeName],
        cancel: &AtomicBool,
        deadline: Instant,
    ) -> Result<(NodeName, Tail), GaspError> {
        let shared = &self.shared;
        let group = &shared.setup.group;
        let find = |heir: &NodeName| shared.destinations.iter().find(|to| to.peer.name == heir.0);
        let (heirs, streams): (Vec<_>, Vec<_>) =
            heirs.iter().filter_map(|heir| Some((heir, find(heir)?.ship.clone()))).unzip();
        let ship =
            |copying| gasp::ship_tail(group.log(), &streams, &shared.syncer, copying, cancel, deadline);
        let (_, tail) = ship(true)?;
        // Not before anything was shipped: whoever is recording may be waiting for a disk.
        group.await_stillness();
        shared.syncer.await_stillness();
        let (heir, end) = ship(false)?;
        Ok((heirs[heir].clone(), Tail { lsn: end.lsn, digest: end.digest, ..tail }))
    }

    /// What a last gasp would wait for at this instant: of those that may be the heir, the one that is nearest to having all.
    pub fn held_up(&self, heirs: &[NodeName]) -> Option<HeldUp> {
        let shared = &self.shared;
        let held_up =
            |to: &Arc<Destination>| gasp::held_up(shared.setup.group.log(), &to.ship, &shared.syncer);
        let may = |to: &&Arc<Destination>| heirs.iter().any(|heir| heir.0 == to.peer.name);
        let all = shared.destinations.iter().filter(may).map(held_up).min_by_key(gasp::distance);
        all.unwrap_or(Some(HeldUp::NotCounting))
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        self.shared.verifier.stop();
        drop(self.archiver.take());
        *lock(&self.shared.stop) = true;
        self.shared.stopped.notify_all();
        self.shared.setup.group.log().wake_agent(SleepDepth::Nap);
        self.shared.verifier.end();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn beat(&self) {
        let log = self.setup.group.log();
        let mut before = LinkState::None;
        let mut stuck = Stuck::default();
        while !self.stops() {
            let now = self.link_state();
            log.beat(boottime(), std::process::id(), now);
            if stuck.is(log) {
                self.setup.group.bury_dead_appenders();
            }
            self.space
                .in_the_way(self.syncer.waits_for_room())
                .into_iter()
                .for_each(|who| self.let_go(who, Why::Slow));
            if self.destinations.is_empty() && !log.is_ahead() && log.has_open_gap() {
                // Nobody acknowledges, so nobody waits for the copy either.
                log.end_gap(log.tail());
            }
            if now != before {
                log.wake_waiters();
                before = now;
            }
            self.sleep(BEAT);
        }
    }

    /// Looks for files that come by ways that nobody hooks.
    fn seek(&self) {
        let mut pause = SEEK;
        loop {
            self.sleep(pause);
            if self.stops() {
                return;
            }
            let began = Instant::now();
            self.setup.group.look_for_files();
            pause = SEEK.max(began.elapsed() * SEEK_SHARE);
        }
    }

    fn link_state(&self) -> LinkState {
        let any = |is: fn(&Destination) -> bool| self.destinations.iter().any(|to| is(to));
        match self.destinations.is_empty() {
            true => LinkState::None,
            false if self.anyone_counts() => LinkState::Counting,
            false if any(|to| to.link().connected) => LinkState::Syncing,
            false => LinkState::Down,
        }
    }

    /// That there is no destination of this name, or none at all.
    fn no_destination(&self, node: Option<&str>) -> String {
        let known: Vec<_> = self.destinations.iter().map(|to| to.peer.name.as_str()).collect();
        let (group, node) =
            (self.setup.group.name(), node.map_or(String::new(), |node| format!(" `{node}`")));
        format!("group `{group}` has no destination{node}; known: {}", known.join(", "))
    }

    fn anyone_counts(&self) -> bool {
        self.destinations.iter().any(|to| to.ship.view().counts)
    }

    /// A link was made or lost: whether anybody takes records now.
    fn tell_flow(&self) {
        let _one_at_a_time = lock(&self.flow);
        self.syncer.set_flowing(self.destinations.iter().any(|to| to.link().connected));
    }

    fn stops(&self) -> bool {
        *lock(&self.stop)
    }

    /// Sleeps, unless told to stop.
    fn sleep(&self, time: Duration) {
        drop(self.stopped.wait_timeout_while(lock(&self.stop), time, |stop| !*stop));
    }
}

fn spawn<T: Send + 'static>(
    name: String,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    thread::Builder::new().name(name).spawn(body)
}
