//! A group's stream at its source: the link to its destination, kept up; the copy of its regions; its pulse.
//!
//! A [`Source`] lives as long as the [`Group`] whose log it ships. One thread keeps the link: it opens the group
//! at the destination, decides whether the stream resumes from the ring or begins anew with a copy, runs the shipper, pings,
//! and starts again with growing pauses when anything fails. Another one beats, so that applications know that the
//! agent lives. Made by `agent::role`.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::fs::FileType;
use serde_json::json;

use super::clock::WallTime;
use super::config;
use super::control::message::{Answer, Ask, ImageState, OpenGroup, Refusal, ReplicaReport};
use super::control::{Client, ControlError, client::unexpected};
use super::fabrics::Fabrics;
use super::group::Group;
use super::status::{ArchiveStatus, DestinationState, DestinationStatus, Role, SyncStatus};
use crate::fabric::FabricError;
use crate::fabric::tls::TlsIdentity;
use crate::log::format::{Kind, MAX_NAME, RECORD_HEADER, RecordHeader};
use crate::log::region::boottime;
use crate::log::{Appender, Consumer, LinkState, Owner, SleepDepth};
use crate::replica::archive::ArchiveConfig;
use crate::ship::archiver::{Archiver, Archiving, News};
use crate::ship::backoff::Backoff;
use crate::ship::gasp::{self, GaspError, Tail};
use crate::ship::shipper::{Link, ShipError, Shipment, Shipper};
use crate::ship::space::Space;
use crate::ship::status::ShipStatus;
use crate::ship::sync::{Requester, SyncRegion, SyncSource, Syncer};
use crate::types::{Durability, Generation};

/// A connection must stand within this time.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// An ask must be answered within this time; `open_group` may have to apply what had landed first.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Time between pings.
const PING: Duration = Duration::from_secs(1);

/// A ping must be answered within this time.
const PONG_WITHIN: Duration = Duration::from_secs(5);

/// Time between beats; the log's readers take ten times that for death.
const BEAT: Duration = Duration::from_millis(100);

/// How often [`Source::finish`] looks.
const FINISH_LOOK: Duration = Duration::from_millis(2);

/// Which consumer of the ring the destination is.
const DESTINATION: usize = 0;

/// Emits an event of the group: its kind and its detail.
pub type Tell = Arc<dyn Fn(&str, serde_json::Value) + Send + Sync>;

/// What a source needs besides its group.
pub struct SourceSetup {
    /// The group.
    pub group: Arc<Group>,
    /// Its destination; without one the group is unprotected.
    pub destination: Option<Destination>,
    /// Takes events: kind and detail.
    pub event: Tell,
    /// Hears that the destination knows of a generation that ours is not above, and whether it owns it.
    pub superseded: Box<dyn Fn(Generation, bool) + Send + Sync>,
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
    stop: AtomicBool,
    link: Mutex<LinkInfo>,
    changed: Condvar,
}

#[derive(Clone, Default)]
struct LinkInfo {
    connected: bool,
    refused: bool,
    fabric: Option<&'static str>,
    encrypted: Option<bool>,
    durability: Option<Durability>,
    last_error: Option<String>,
}

/// Why a link was not made or ended.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Fabric(#[from] FabricError),
    #[error(transparent)]
    Ship(#[from] ShipError),
    #[error("{peer} offers a landing ring of {theirs} bytes for a log of {ours}")]
    Landing { peer: String, theirs: u64, ours: u64 },
    #[error("a thread could not be started: {0}")]
    Thread(io::Error),
}

impl Source {
    /// Starts to ship. The threads run until the source is dropped.
    pub fn start(setup: SourceSetup) -> io::Result<Source> {
        let (group, name) = (setup.group.clone(), setup.group.name().to_owned());
        let shared = Arc::new(Shared {
            syncer: Syncer::start(&name, Arc::new(GroupRegions(group.clone())))?,
            space: Space::new(group.log().clone(), consumers(&setup)),
            ship: Arc::default(),
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
        if shared.setup.destination.is_some() {
            source.threads.push(spawn(format!("link-{name}"), move || shared.keep_link())?);
        }
        Ok(source)
    }

    /// For whoever learns of regions with content: only a copy that begins then protects them.
    pub fn copies(&self) -> Requester {
        self.shared.syncer.requester()
    }

    /// Waits until everything published is durable at the destination; what is missing at the deadline, as a sentence.
    pub fn finish(&self, deadline: Instant) -> Option<String> {
        let published = self.shared.setup.group.log().published();
        loop {
            let ship = self.shared.ship.view();
            if ship.counts && ship.durable >= published {
                return None;
            }
            if !self.shared.link().connected {
                return Some(
                    "no destination is connected: what the log holds is on this machine only".into(),
                );
            }
            if Instant::now() >= deadline {
                let missing = published.since(ship.durable);
                return Some(format!("{missing} bytes of the log are not durable at the destination"));
            }
            self.shared.sleep(FINISH_LOOK);
        }
    }

    /// Brings everything published to the destination. The application must not run.
    pub fn ship_tail(&self, cancel: &AtomicBool, deadline: Instant) -> Result<Tail, GaspError> {
        let shared = &self.shared;
        gasp::ship_tail(shared.setup.group.log(), &shared.ship, &shared.syncer, cancel, deadline)
    }

    /// Whether a destination counts, so that a handover could begin.
    pub fn counts(&self) -> bool {
        self.shared.ship.view().counts
    }

    /// The destination's row of the status document.
    pub fn status(&self) -> Option<DestinationStatus> {
        Some(self.shared.status(&self.shared.setup.destination.as_ref()?.peer))
    }

    /// The archive's row of the status document.
    pub fn archive_status(&self) -> Option<ArchiveStatus> {
        let view = self.archiver.as_ref()?.view();
        let group = &self.shared.setup.group;
        Some(ArchiveStatus {
            dir: group.config().archive.as_ref()?.dir.display().to_string(),
            lsn_durable: view.durable,
            last_error: view.last_error,
            as_of: WallTime::now().to_string(),
        })
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
    fn start_archiver(&self, config: &config::Archive) -> io::Result<Archiver> {
        let (group, event) = (self.setup.group.clone(), self.setup.event.clone());
        let alone = self.setup.destination.is_none();
        // With a destination, gaps are closed while it is connected, since it holds the ring meanwhile.
        self.syncer.set_flowing(alone);
        let dir = config.dir.display().to_string();
        let archiving = Archiving {
            log: group.log().clone(),
            config: ArchiveConfig {
                dir: config.dir.clone(),
                group: group.id(),
                keep_bytes: config.keep_bytes,
                keep_age: config.keep_age,
            },
            resumes: group.resumed(),
            space: (self.space.clone(), usize::from(!alone)),
            copies: self.syncer.requester(),
            tell: Box::new(move |news| match news {
                News::Begun(lsn) => event("archive_begun", json!({ "dir": dir, "lsn": lsn })),
                News::Failed(error, pause) => event(
                    "archive_failed",
                    json!({ "dir": dir, "why": error.to_string(), "again_in_s": pause.as_secs() }),
                ),
                News::Ended(poison) => {
                    event("archive_ended", json!({ "dir": dir, "why": poison.to_string() }))
                }
            }),
            // One reader is enough to keep the table.
            observe: Box::new(move |header| {
                if alone {
                    observe(&group, header);
                }
            }),
        };
        Archiver::start(self.setup.group.name(), archiving)
    }

    fn beat(&self) {
        let log = self.setup.group.log();
        let mut before = LinkState::None;
        while !self.stop.load(Ordering::Acquire) {
            let now = self.link_state();
            log.beat(boottime(), std::process::id(), now);
            if self.setup.destination.is_none()
                && !log.is_ahead()
                && log.gap().is_some_and(|gap| gap.end.is_none())
            {
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

    fn link_state(&self) -> LinkState {
        match &self.setup.destination {
            None => LinkState::None,
            Some(_) if self.ship.view().counts => LinkState::Counting,
            Some(_) if self.link().connected => LinkState::Syncing,
            Some(_) => LinkState::Down,
        }
    }

    fn keep_link(&self) {
        let destination = self.setup.destination.as_ref().expect("the thread runs for a destination");
        let mut backoff = Backoff::default();
        while !self.stop.load(Ordering::Acquire) {
            let began = Instant::now();
            let error = self.run_link(destination);
            self.syncer.set_flowing(false);
            self.ship.disconnected();
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            self.note(&error);
            if began.elapsed() > CONNECT_WITHIN {
                backoff.succeeded();
            }
            self.sleep(backoff.failed((self.setup.chance)()));
        }
    }

    fn note(&self, error: &LinkError) {
        tracing::info!(group = self.setup.group.name(), %error, "link down");
        let mut link = self.link();
        *link = LinkInfo {
            refused: matches!(error, LinkError::Control(ControlError::Refused { .. })),
            last_error: Some(format!("{} {error}", WallTime::now())),
            ..LinkInfo::default()
        };
        drop(link);
        if let LinkError::Control(ControlError::Refused {
            reason: reason @ (Refusal::StaleGeneration | Refusal::Active),
            generation,
            ..
        }) = error
        {
            (self.setup.superseded)(*generation, *reason == Refusal::Active);
        }
    }

    /// One link from its first connection to its end.
    fn run_link(&self, destination: &Destination) -> LinkError {
        match self.connect(destination) {
            Ok((client, shipper, stop)) => self.serve(client, shipper, &stop),
            Err(error) => error,
        }
    }

    fn connect(&self, to: &Destination) -> Result<(Client, Shipper, Arc<AtomicBool>), LinkError> {
        let peer = &to.peer;
        let (group, log) = (&self.setup.group, self.setup.group.log());
        let deadline = Instant::now() + CONNECT_WITHIN;
        let mut client = Client::connect(&peer.address, &to.identity, &peer.name, deadline)?;
        let regions = group.regions();
        let open = Ask::OpenGroup(OpenGroup {
            group: group.name().to_owned(),
            id: group.id(),
            generation: group.generation(),
            ring_bytes: log.spec().ring_bytes,
            free: log.free(),
            published: log.published(),
            regions: regions.len() as u32,
            region_bytes: regions.iter().map(|r| r.len()).sum(),
        });
        let opened = match client.ask(&open, ANSWER_WITHIN)? {
            Answer::GroupOpened(opened) => opened,
            other => return Err(unexpected(&peer.name, other).into()),
        };
        let fabric = to.fabrics.choose(opened.encrypt);
        let endpoint = fabric.connect(&opened.offer, Instant::now() + CONNECT_WITHIN)?;
        let encrypted = endpoint.encrypted();
        let link = Link::prepare(endpoint, log, opened.durability)?;
        let begin = self.begin(&opened.have);
        let from = begin.consumer.position();
        let attach = Ask::Attach { ack: link.ack.key(), from, fresh: begin.fresh };
        let landing = match client.ask(&attach, ANSWER_WITHIN)? {
            Answer::Attached { landing } => landing,
            other => return Err(unexpected(&peer.name, other).into()),
        };
        let ours = log.spec().ring_bytes;
        if landing.len != ours {
            return Err(LinkError::Landing { peer: peer.name.clone(), theirs: landing.len, ours });
        }
        if begin.fresh || (opened.have.image != ImageState::Consistent && !self.syncer.is_active()) {
            self.syncer.request();
        }
        *self.link() = LinkInfo {
            connected: true,
            refused: false,
            fabric: Some(fabric.kind()),
            encrypted: Some(encrypted),
            durability: Some(opened.durability),
            last_error: None,
        };
        tracing::info!(group = group.name(), peer = peer.name, %from, fresh = begin.fresh, "link up");
        let stop = Arc::new(AtomicBool::new(false));
        let (observed, shipped) = (group.clone(), group.clone());
        let shipment = Shipment {
            consumer: begin.consumer,
            digest: begin.digest,
            link,
            landing,
            space: (self.space.clone(), DESTINATION),
            status: self.ship.clone(),
            stop: stop.clone(),
            observe: Box::new(move |header| observe(&observed, header)),
        };
        Ok((client, Shipper::new(shipped.log().clone(), shipment), stop))
    }

    /// Where the stream goes on at a destination that holds `have`.
    fn begin(&self, have: &ReplicaReport) -> Begin {
        let group = &self.setup.group;
        let log = group.log();
        let resumes = have.generation == group.generation()
            && have.image != ImageState::Poisoned
            && Consumer::new(log.clone(), log.free()).holds(have.applied);
        if resumes {
            let consumer = Consumer::new(log.clone(), have.applied);
            return Begin { consumer, digest: have.digest, fresh: false };
        }
        let from = log.publish_filled(&Owner::confirmed_dead);
        // What the ring holds means nothing to a copy that begins after it.
        self.space.done(DESTINATION, from);
        Begin { consumer: Consumer::new(log.clone(), from), digest: 0, fresh: true }
    }

    /// Ships until the link ends, pinging meanwhile.
    fn serve(&self, mut client: Client, shipper: Shipper, stop: &Arc<AtomicBool>) -> LinkError {
        self.syncer.set_flowing(true);
        let ended = Arc::new((Mutex::new(false), Condvar::new()));
        let theirs = ended.clone();
        let thread = spawn(format!("ship-{}", self.setup.group.name()), move || {
            let error = shipper.run();
            *theirs.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
            theirs.1.notify_all();
            error
        });
        let thread = match thread {
            Ok(thread) => thread,
            Err(error) => return LinkError::Thread(error),
        };
        let mut lost = None;
        while lost.is_none() && !self.stop.load(Ordering::Acquire) {
            let guard = ended.0.lock().unwrap_or_else(PoisonError::into_inner);
            let (over, _) = ended
                .1
                .wait_timeout_while(guard, PING, |over| !*over && !self.stop.load(Ordering::Acquire))
                .unwrap_or_else(PoisonError::into_inner);
            if *over {
                break;
            }
            drop(over);
            match client.ask(&Ask::Ping {}, PONG_WITHIN) {
                Ok(Answer::Pong(_)) => {}
                Ok(other) => lost = Some(unexpected(client.peer(), other)),
                Err(error) => lost = Some(error),
            }
        }
        stop.store(true, Ordering::Release);
        self.setup.group.log().wake_agent(SleepDepth::Nap);
        let error = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match lost {
            Some(lost) => lost.into(),
            None => error.into(),
        }
    }

    fn status(&self, peer: &config::Peer) -> DestinationStatus {
        let (link, ship, sync) = (self.link().clone(), self.ship.view(), self.syncer.view());
        let group = &self.setup.group;
        let published = group.log().published();
        let state = match link.connected {
            true if ship.counts => DestinationState::Streaming,
            true => DestinationState::Syncing,
            false if link.refused => DestinationState::Refused,
            false => DestinationState::Connecting,
        };
        let log = group.log();
        let whole = !log.is_ahead() && log.gap().is_none_or(|gap| gap.end.is_some());
        let regions: u64 = group.regions().iter().map(|r| r.len()).sum();
        let uncopied = if ship.counts && whole { 0 } else { regions };
        DestinationStatus {
            node: peer.name.clone(),
            role: Role::Source,
            generation: group.generation(),
            state,
            lsn_published: published,
            lsn_received: ship.received,
            lsn_durable: ship.durable,
            lsn_applied: ship.applied,
            exposure_bytes: published.since(ship.durable) + uncopied,
            drain_bytes_per_s: Some(ship.drain).filter(|d| *d > 0),
            fabric: link.fabric.map(str::to_owned),
            durability: link.durability.map(|d| d.to_string()),
            encrypted: link.encrypted,
            unprotected_writes: 0,
            sync: sync.active.then_some(SyncStatus { done_bytes: sync.done, total_bytes: sync.total }),
            last_error: link.last_error.or(sync.error),
            as_of: WallTime::now().to_string(),
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

/// Who reads the ring: destination, archive.
fn consumers(setup: &SourceSetup) -> usize {
    usize::from(setup.destination.is_some()) + usize::from(setup.group.config().archive.is_some())
}

struct Begin {
    consumer: Consumer,
    digest: u64,
    fresh: bool,
}

/// Keeps the group's table up with what the log says of its regions.
fn observe(group: &Group, header: &RecordHeader) {
    let (id, offset) = header.place();
    let done = match Kind::from_byte(header.kind) {
        Some(Kind::RegionResize) => group.region_resized(id, offset),
        Some(Kind::RegionUnlink) => group.region_unlinked(id),
        Some(Kind::RegionRename) if header.len as usize <= MAX_NAME => {
            let log = group.log();
            let mut name = vec![0; header.len as usize];
            let at = (header.lsn & (log.spec().ring_bytes - 1)) as usize + RECORD_HEADER as usize;
            log.ring().read(at, &mut name);
            match String::from_utf8(name) {
                Ok(name) => group.region_renamed(id, &name),
                Err(_) => Ok(()),
            }
        }
        _ => Ok(()),
    };
    if let Err(error) = done {
        tracing::warn!(group = group.name(), region = %id, %error, "the change of a region was not stored");
    }
}

/// The group's regions, to be copied.
struct GroupRegions(Arc<Group>);

impl SyncSource for GroupRegions {
    fn appender(&self) -> &Appender {
        self.0.appender()
    }

    fn regions(&self) -> io::Result<Vec<SyncRegion>> {
        let region = |r: Arc<super::group::Region>| {
            let file: OwnedFd = r.file().try_clone_to_owned()?;
            // Its size as of now: the record of a change may still be on its way to whoever keeps the table, or have been
            // passed over, and a copy of the old size would cut off what was written since.
            let stat = rustix::fs::fstat(&file)?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
                && stat.st_size as u64 != r.len()
            {
                self.0.region_resized(r.id(), stat.st_size as u64).map_err(io::Error::other)?;
            }
            Ok(SyncRegion { id: r.id(), creation: r.creation(), len: r.len(), file })
        };
        self.0.regions().into_iter().map(region).collect()
    }
}

fn spawn<T: Send + 'static>(
    name: String,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    thread::Builder::new().name(name).spawn(body)
}
