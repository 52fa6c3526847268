//! A group's stream at its source: the link to its destination, kept up; the copy of its regions; its pulse.
//!
//! A [`Source`] lives as long as the [`Group`] whose log it ships. One thread keeps the link: it opens the group
//! at the destination, decides whether the stream resumes from the ring or begins anew with a copy, runs the shipper, pings,
//! and starts again with growing pauses when anything fails. Another one beats, so that applications know that the
//! agent lives. Made by `agent::role`, and by `agent::local` for a group that is shipped nowhere.

mod archive;
mod link;
mod report;
mod sampler;
mod table;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::config;
use super::control::message::Refusal;
use super::events::Kind;
use super::fabrics::Fabrics;
use super::group::{Group, Stuck};
use crate::fabric::tls::TlsIdentity;
use crate::log::region::{BEAT, boottime};
use crate::log::{LinkState, SleepDepth};
use crate::ship::archiver::Archiver;
use crate::ship::gasp::{self, GaspError, HeldUp, Tail};
use crate::ship::space::Space;
use crate::ship::status::ShipStatus;
use crate::ship::sync::{Requester, Syncer};
use crate::types::Generation;
use archive::consumers;
use link::LinkInfo;
use sampler::Sampler;
use table::GroupRegions;

/// How often [`Source::finish`] looks.
const FINISH_LOOK: Duration = Duration::from_millis(2);

/// What [`Source::finish`] says without a link.
const NO_DESTINATION: &str = "no destination is connected: what the log holds is on this machine only";

/// How often files are looked for that nobody has opened.
const SEEK: Duration = Duration::from_secs(5);

/// Looking takes at most one part in so many of the time.
const SEEK_SHARE: u32 = 400;

/// Which consumer of the ring the destination is.
const DESTINATION: usize = 0;

/// Emits an event of the group: its kind and its detail.
pub type Tell = Arc<dyn Fn(Kind, serde_json::Value) + Send + Sync>;

/// What a source needs besides its group.
pub struct SourceSetup {
    /// The group.
    pub group: Arc<Group>,
    /// Its destination; without one the group is unprotected.
    pub destination: Option<Destination>,
    /// Takes events: kind and detail.
    pub event: Tell,
    /// Hears why the destination will not have the group's stream, and of the generation that it knows.
    pub refused: Box<dyn Fn(Refusal, Generation) + Send + Sync>,
    /// Number that spreads attempts to reconnect.
    pub chance: fn() -> u32,
}

/// Where a group is shipped to.
pub struct Destination {
    /// The node.
    pub peer: config::Peer,
    /// Who this node is.
    pub identity: Arc<TlsIdentity>,
    /// How it reaches others.
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
    ship: Arc<ShipStatus>,
    sampler: Arc<Sampler>,
    stop: AtomicBool,
    link: Mutex<LinkInfo>,
    changed: Condvar,
}
impl Source {
    /// Starts to ship. The threads run until the source is dropped.
    pub fn start(setup: SourceSetup) -> io::Result<Source> {
        let (group, name) = (setup.group.clone(), setup.group.name().to_owned());
        let shared = Arc::new(Shared {
            syncer: Syncer::start(&name, Arc::new(GroupRegions(group.clone())))?,
            space: Space::new(group.log().clone(), consumers(&setup)),
            ship: Arc::default(),
            sampler: Arc::default(),
            stop: AtomicBool::new(false),
            link: Mutex::default(),
            changed: Condvar::new(),
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
        if shared.setup.destination.is_some() {
            source.threads.push(spawn(format!("link-{name}"), move || shared.keep_link())?);
        }
        Ok(source)
    }

    /// For whoever learns of regions with content: only a copy that begins then protects them.
    pub fn copies(&self) -> Requester {
        self.shared.syncer.requester()
    }

    /// Waits until everything published is durable at the destination; what is missing at the deadline, as a sentence. A link
    /// that is down is waited for while it may be made: until the destination refuses, or an attempt that began meanwhile fails.
    pub fn finish(&self, deadline: Instant) -> Option<String> {
        let published = self.shared.setup.group.log().published();
        let failures = self.shared.link().failures;
        loop {
            let ship = self.shared.ship.view();
            if ship.counts && ship.durable >= published {
                return None;
            }
            let link = self.shared.link().clone();
            // The first of the failures may be that of an attempt which had begun before.
            if link.refused || !link.connected && link.failures >= failures + 2 {
                return Some(NO_DESTINATION.into());
            }
            if Instant::now() >= deadline {
                if !link.connected {
                    return Some(NO_DESTINATION.into());
                }
                let missing = published.since(ship.durable);
                return Some(format!("{missing} bytes of the log are not durable at the destination"));
            }
            self.shared.sleep(FINISH_LOOK);
        }
    }

    /// Brings everything published to the destination. The application must not run, and the group has to be
    /// [held still](Group::hold_still). Ends once `cancel` is set.
    pub fn ship_tail(&self, cancel: &AtomicBool, deadline: Instant) -> Result<Tail, GaspError> {
        let shared = &self.shared;
        let group = &shared.setup.group;
        let ship = || gasp::ship_tail(group.log(), &shared.ship, &shared.syncer, cancel, deadline);
        let tail = ship()?;
        // Not before anything was shipped: whoever is recording may be waiting for a disk.
        group.await_stillness();
        let end = ship()?;
        Ok(Tail { lsn: end.lsn, digest: end.digest, ..tail })
    }

    /// What a last gasp would wait for at this instant.
    pub fn held_up(&self) -> Option<HeldUp> {
        let shared = &self.shared;
        gasp::held_up(shared.setup.group.log(), &shared.ship, &shared.syncer)
    }
}

impl Drop for Source {
    fn drop(&mut self) {
        drop(self.archiver.take());
        self.shared.stop.store(true, Ordering::Release);
        // Under the lock, so that nobody is between looking at the flag and sleeping.
        drop(self.shared.link());
        self.shared.changed.notify_all();
        self.shared.setup.group.log().wake_agent(SleepDepth::Nap);
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
        while !self.stop.load(Ordering::Acquire) {
            let now = self.link_state();
            log.beat(boottime(), std::process::id(), now);
            if stuck.is(log) {
                self.setup.group.bury_dead_appenders();
            }
            if self.setup.destination.is_none() && !log.is_ahead() && log.has_open_gap() {
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
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            let began = Instant::now();
            self.setup.group.look_for_files();
            pause = SEEK.max(began.elapsed() * SEEK_SHARE);
        }
    }

    fn link_state(&self) -> LinkState {
        match &self.setup.destination {
            None => LinkState::None,
            Some(_) if self.ship.view().counts => LinkState::Counting,
            Some(_) if self.link().connected => LinkState::Syncing,
            Some(_) => LinkState::Down,
        }
    }

    /// Sleeps, unless told to stop.
    fn sleep(&self, time: Duration) {
        let link = self.link();
        drop(self.changed.wait_timeout_while(link, time, |_| !self.stop.load(Ordering::Acquire)));
    }

    fn link(&self) -> MutexGuard<'_, LinkInfo> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn spawn<T: Send + 'static>(
    name: String,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    thread::Builder::new().name(name).spawn(body)
}
