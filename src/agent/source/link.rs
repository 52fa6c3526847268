//! The link to the destination: made, used until it ends, made again.
//!
//! One thread keeps it. It opens the group at the destination, decides whether the stream resumes from the ring or begins
//! anew with a copy, runs the shipper, and pings meanwhile.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use serde_json::json;

use super::table::observe;
use super::{DESTINATION, Destination, Shared, spawn};
use crate::agent::clock::WallTime;
use crate::agent::control::message::{Answer, Ask, GroupOpened, ImageState, OpenGroup, ReplicaReport};
use crate::agent::control::{Client, ControlError, client::unexpected};
use crate::agent::events::Kind;
use crate::fabric::{FabricError, RemoteKey};
use crate::log::{Consumer, Owner, SleepDepth};
use crate::ship::backoff::Backoff;
use crate::ship::follower::Has;
use crate::ship::shipper::{Link, ShipError, Shipment, Shipper};
use crate::types::Durability;

/// What is known of the link at present.
#[derive(Clone, Default)]
pub(super) struct LinkInfo {
    pub(super) connected: bool,
    pub(super) refused: bool,
    pub(super) fabric: Option<&'static str>,
    pub(super) encrypted: Option<bool>,
    pub(super) durability: Option<Durability>,
    /// The stream went on where the destination's image ends.
    pub(super) resumed: Option<bool>,
    pub(super) last_error: Option<String>,
    /// Attempts that failed and links that ended, so far.
    pub(super) failures: u64,
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

impl Shared {
    pub(super) fn keep_link(&self) {
        let destination = self.setup.destination.as_ref().expect("the thread runs for a destination");
        let mut backoff = Backoff::default();
        while !self.stop.load(Ordering::Acquire) {
            let (began, before) = (Instant::now(), self.ship.view().applied);
            let error = self.run_link(destination);
            self.syncer.set_flowing(false);
            self.ship.disconnected();
            if self.stop.load(Ordering::Acquire) {
                return;
            }
            self.note(&error);
            // A link that got something done was a good one, however soon it ended.
            if began.elapsed() > CONNECT_WITHIN || self.ship.view().applied > before {
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
            failures: link.failures + 1,
            ..LinkInfo::default()
        };
        drop(link);
        if let LinkError::Control(ControlError::Refused { reason, generation, .. }) = error {
            (self.setup.refused)(*reason, *generation);
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
        let (mut client, opened) = self.open(to)?;
        let fabric = to.fabrics.for_offer(&opened.offer, opened.encrypt)?;
        let endpoint = fabric.connect(&opened.offer, Instant::now() + CONNECT_WITHIN)?;
        let encrypted = endpoint.encrypted();
        let link = Link::prepare(endpoint, log, opened.durability)?;
        let begin = self.begin(&opened.have);
        let from = begin.consumer.position();
        if begin.fresh {
            self.ship.begin_anew();
        }
        // Before the destination attaches: once it has, the next agent finds its position in this stream and goes on there.
        let has = match opened.have.image {
            _ if begin.fresh => Has::Nothing,
            ImageState::Consistent => Has::Image,
            ImageState::Syncing => Has::Part,
            _ => Has::Nothing,
        };
        if begin.fresh || (has != Has::Image && !self.syncer.is_active()) {
            self.syncer.request_for_newcomer();
        }
        let attach = Ask::Attach { ack: link.ack.key(), from, fresh: begin.fresh };
        let landing = self.attach(&mut client, &attach)?;
        let mut known = self.link();
        *known = LinkInfo {
            connected: true,
            refused: false,
            fabric: Some(fabric.kind()),
            encrypted: Some(encrypted),
            durability: Some(opened.durability),
            resumed: Some(!begin.fresh),
            last_error: None,
            failures: known.failures,
        };
        drop(known);
        tracing::info!(group = group.name(), peer = peer.name, %from, fresh = begin.fresh, "link up");
        let stop = Arc::new(AtomicBool::new(false));
        let (observed, shipped, sampler) = (group.clone(), group.clone(), self.sampler.clone());
        let shipment = Shipment {
            consumer: begin.consumer,
            digest: begin.digest,
            has,
            link,
            landing,
            space: (self.space.clone(), DESTINATION),
            status: self.ship.clone(),
            stop: stop.clone(),
            observe: Box::new(move |header| {
                sampler.observe(header);
                observe(&observed, header);
            }),
        };
        Ok((client, Shipper::new(shipped.log().clone(), shipment), stop))
    }

    /// Reaches the destination's agent and has it make the group ready.
    fn open(&self, to: &Destination) -> Result<(Client, GroupOpened), LinkError> {
        let (peer, group) = (&to.peer, &self.setup.group);
        let deadline = Instant::now() + CONNECT_WITHIN;
        let mut client = Client::connect(&peer.address, &to.identity, &peer.name, deadline)?;
        let open = Ask::OpenGroup(OpenGroup {
            group: group.name().to_owned(),
            id: group.id(),
            generation: group.generation(),
            ring_bytes: group.log().spec().ring_bytes,
        });
        match client.ask(&open, ANSWER_WITHIN)? {
            Answer::GroupOpened(opened) => Ok((client, opened)),
            other => Err(unexpected(&peer.name, other).into()),
        }
    }

    /// Has the destination take the stream; the landing ring, which mirrors ours.
    fn attach(&self, client: &mut Client, attach: &Ask) -> Result<RemoteKey, LinkError> {
        let landing = match client.ask(attach, ANSWER_WITHIN)? {
            Answer::Attached { landing } => landing,
            other => return Err(unexpected(client.peer(), other).into()),
        };
        let (theirs, ours) = (landing.len, self.setup.group.log().spec().ring_bytes);
        if theirs != ours {
            return Err(LinkError::Landing { peer: client.peer().to_owned(), theirs, ours });
        }
        Ok(landing)
    }

    /// Where the stream goes on at a destination that holds `have`.
    fn begin(&self, have: &ReplicaReport) -> Begin {
        let group = &self.setup.group;
        let log = group.log();
        let resumes = have.generation == group.generation()
            && have.image != ImageState::Poisoned
            && self.space.consumer(DESTINATION).holds(have.applied);
        if resumes {
            let consumer = Consumer::new(log.clone(), have.applied);
            return Begin { consumer, digest: have.digest, fresh: false };
        }
        let from = log.publish_filled(&Owner::confirmed_dead);
        // What the ring holds means nothing to a copy that begins after it.
        self.space.done(DESTINATION, from);
        Begin { consumer: Consumer::new(log.clone(), from), digest: 0, fresh: true }
    }

    /// Goes on looking for writes that pass the log by.
    fn sample(&self, client: &mut Client) -> Result<(), ControlError> {
        let (group, ship) = (&self.setup.group, self.ship.view());
        let log = group.log();
        let whole = log.is_whole();
        let applied = Some(ship.applied).filter(|_| ship.counts && whole && !self.syncer.is_active_for_all());
        let mut ask = |region, pages| match client.ask(&Ask::Digests { region, pages }, PONG_WITHIN)? {
            Answer::Digests { digests } => Ok(digests),
            other => Err(unexpected(client.peer(), other)),
        };
        self.sampler.tick(group, applied, &mut ask, &|region, pages| {
            tracing::warn!(group = group.name(), path = %region.path().display(), pages, "written to without a record");
            (self.setup.event)(
                Kind::UnprotectedWrites,
                json!({ "region": region.id(), "path": region.path(), "pages": pages }),
            );
        })
    }

    /// Ships until the link ends, pinging meanwhile.
    fn serve(&self, mut client: Client, shipper: Shipper, stop: &Arc<AtomicBool>) -> LinkError {
        self.syncer.set_flowing(true);
        let (running, ended) = mpsc::channel::<()>();
        let thread = spawn(format!("ship-{}", self.setup.group.name()), move || {
            // Dropped when the shipper has ended, however that was.
            let _running = running;
            shipper.run()
        });
        let thread = match thread {
            Ok(thread) => thread,
            Err(error) => return LinkError::Thread(error),
        };
        let mut lost = None;
        while lost.is_none() && !self.stop.load(Ordering::Acquire) {
            if let Err(RecvTimeoutError::Disconnected) = ended.recv_timeout(PING) {
                break;
            }
            match client.ask(&Ask::Ping {}, PONG_WITHIN) {
                Ok(Answer::Pong {}) => lost = self.sample(&mut client).err(),
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
}

struct Begin {
    consumer: Consumer,
    digest: u64,
    fresh: bool,
}

/// A connection must stand within this time.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// An ask must be answered within this time; `open_group` may have to apply what had landed first.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Time between pings.
const PING: Duration = Duration::from_secs(1);

/// A ping must be answered within this time.
const PONG_WITHIN: Duration = Duration::from_secs(5);
