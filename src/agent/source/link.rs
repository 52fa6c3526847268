//! The link to a destination: made, used until it ends, made again.
//!
//! One thread a destination keeps it. It opens the group at the destination, decides whether the stream resumes from the ring or begins
//! anew with a copy, runs the shipper, and pings meanwhile.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use serde_json::json;

use super::destination::{Destination, LinkInfo, Stream, Why};
use super::{Shared, Way, spawn};
use crate::agent::clock::WallTime;
use crate::agent::control::message::{Answer, Ask, GroupOpened, ImageState, OpenGroup, ReplicaReport};
use crate::agent::control::{Client, ControlError, client::unexpected};
use crate::agent::events::Kind;
use crate::fabric::{FabricError, RemoteKey};
use crate::log::SleepDepth;
use crate::ship::backoff::Backoff;
use crate::ship::follower::Has;
use crate::ship::join::{Have, Joining};
use crate::ship::shipper::{Link, ShipError, Shipment, Shipper};
use crate::types::Lsn;

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
    #[error(
        "it kept so much of the log, behind another destination, that it begins anew with a copy; if that comes again, its link or \
         node is slower than the application writes: make it faster, or enlarge `log_size`"
    )]
    Shed,
    #[error("an operator wants its image repaired: it is brought what differs")]
    Repair,
    #[error("an operator has paused it: `pmemha resume` has it go on")]
    Paused,
    #[error("a thread could not be started: {0}")]
    Thread(io::Error),
}

impl Shared {
    pub(super) fn keep_link(self: &Arc<Self>, to: &Destination) {
        let mut backoff = Backoff::default();
        while !self.stops() {
            if to.is_paused() {
                self.sleep(PAUSED_LOOK);
                continue;
            }
            let (began, before) = (Instant::now(), to.ship.view().applied);
            let error = self.run_link(to);
            to.ship.disconnected();
            self.note(to, &error);
            self.tell_flow();
            if self.stops() {
                return;
            }
            if to.is_paused() {
                continue;
            }
            // A link that got something done was a good one, however soon it ended.
            if began.elapsed() > CONNECT_WITHIN || to.ship.view().applied > before {
                backoff.succeeded();
            }
            self.sleep(backoff.failed((self.setup.chance)()));
        }
    }

    fn note(&self, to: &Destination, error: &LinkError) {
        let mut link = to.link();
        *link = LinkInfo {
            refused: matches!(error, LinkError::Control(ControlError::Refused { .. })),
            last_error: Some(format!("{} {error}", WallTime::now())),
            failures: link.failures + 1,
            ..LinkInfo::default()
        };
        drop(link);
        if self.stops() {
            return;
        }
        tracing::info!(group = self.setup.group.name(), to = to.peer.name, %error, "link down");
        if let LinkError::Control(ControlError::Refused { reason, generation, .. }) = error {
            (self.setup.refused)(&to.peer.name, *reason, *generation);
        }
    }

    /// What the destination says of its image, which the status repeats for as long as it says so.
    fn note_fault(&self, to: &Destination, fault: Option<String>) {
        let mut link = to.link();
        if let Some(fault) = fault.as_ref().filter(|_| link.fault.is_none()) {
            tracing::warn!(
                group = self.setup.group.name(),
                at = to.peer.name,
                fault,
                "nothing becomes durable there"
            );
        }
        link.fault = fault;
    }

    /// One link from its first connection to its end.
    fn run_link(self: &Arc<Self>, to: &Destination) -> LinkError {
        let error = match self.connect(to) {
            Ok((client, shipper, stop)) => self.serve(to, client, shipper, &stop),
            Err(error) => error,
        };
        match self.ring_is_left(to) {
            Some(Why::Slow) => LinkError::Shed,
            Some(Why::Repair) => LinkError::Repair,
            Some(Why::Paused) => LinkError::Paused,
            None => error,
        }
    }

    /// Nothing reads the ring for this destination any more; why it had to let it go, if so.
    fn ring_is_left(&self, to: &Destination) -> Option<Why> {
        let mut stream = to.stream();
        self.space.set_present(to.index, false);
        match std::mem::take(&mut *stream) {
            Stream::Reads { leaves: Some(why), .. } => {
                self.space.let_go(to.index);
                to.set_stream_number(None);
                *stream = Stream::Joins { left: Some(why) };
                Some(why)
            }
            Stream::Joins { left: Some(why) } => {
                to.set_stream_number(None);
                Some(why)
            }
            _ => None,
        }
    }

    /// Destination `who` is to let the ring go, and to begin anew. One that is in the way: so that the application keeps its log and
    /// the others need no copy.
    pub(super) fn let_go(&self, who: usize, why: Why) {
        let Some(to) = self.destinations.get(who) else { return };
        match &mut *to.stream() {
            Stream::None => {
                self.space.let_go(who);
                to.set_stream_number(None);
            }
            Stream::Joins { left } => {
                self.space.let_go(who);
                *left = Some(why);
            }
            Stream::Reads { stop, leaves } => {
                *leaves = Some(why);
                stop.store(true, Ordering::Release);
            }
        }
        self.setup.group.log().wake_agent(SleepDepth::Nap);
    }

    /// Up to where records are in the image at `to`, if records tell all that happened to it.
    pub(super) fn image_at(&self, to: &Destination) -> Option<Lsn> {
        let ship = to.ship.view();
        let told = self.setup.group.log().is_whole() && !self.syncer.is_active_for_all();
        (ship.counts && told).then_some(ship.applied)
    }

    fn connect(self: &Arc<Self>, to: &Destination) -> Result<(Client, Shipper, Arc<AtomicBool>), LinkError> {
        let peer = &to.peer;
        let (group, log) = (&self.setup.group, self.setup.group.log());
        let (mut client, opened) = self.open(to)?;
        let fabric = self.way().fabrics.for_offer(&opened.offer, opened.encrypt)?;
        let endpoint = fabric.connect(&opened.offer, Instant::now() + CONNECT_WITHIN)?;
        let encrypted = endpoint.encrypted();
        let link = Link::prepare(endpoint, log, opened.durability)?;
        let stop = Arc::new(AtomicBool::new(false));
        let have = have_of(&opened.have);
        let joining = self.join(to, &have);
        let (from, fresh) = (joining.consumer.position(), joining.fresh.then_some(joining.stream));
        if joining.fresh {
            to.ship.begin_anew();
            to.verified.forget();
        }
        joining.settle(&self.commits, to.index, &have);
        to.set_stream_number(Some(joining.stream));
        let attach = Ask::Attach { ack: link.ack.key(), from, fresh };
        let landing = self.attach(&mut client, &attach)?;
        let mut known = to.link();
        *known = LinkInfo {
            connected: true,
            refused: false,
            fabric: Some(fabric.kind()),
            encrypted: Some(encrypted),
            durability: Some(opened.durability),
            memory: Some(opened.memory),
            staged: Some(opened.staged),
            resumed: Some(!joining.fresh),
            last_error: None,
            fault: None,
            failures: known.failures,
        };
        drop(known);
        // Not before it is connected: one that cannot attach would have everybody's link carry copies for nothing, and what its
        // image holds could not be asked. If this agent ends here, the next one finds a destination without an image.
        joining.request(&self.syncer, &have, self.is_alone(to));
        tracing::info!(group = group.name(), peer = peer.name, %from, ?fresh, "link up");
        let me = Arc::downgrade(self);
        let (table, shipped, sampler) = (self.table.clone(), group.clone(), self.sampler.clone());
        let shipment = Shipment {
            consumer: joining.consumer,
            digest: joining.digest,
            has: joining.has,
            stream: joining.stream,
            link,
            landing,
            space: (self.space.clone(), to.index),
            commits: (self.commits.clone(), to.index),
            shed: Box::new(move |who| me.upgrade().iter().for_each(|shared| shared.let_go(who, Why::Slow))),
            status: to.ship.clone(),
            stop: stop.clone(),
            observe: Box::new(move |header| {
                sampler.observe(header);
                table.observe(header);
            }),
        };
        Ok((client, Shipper::new(shipped.log().clone(), shipment), stop))
    }

    /// Reaches the destination's agent and has it make the group ready.
    fn open(&self, to: &Destination) -> Result<(Client, GroupOpened), LinkError> {
        let (peer, group) = (&to.peer, &self.setup.group);
        let deadline = Instant::now() + CONNECT_WITHIN;
        let mut client = Client::connect(&peer.address, &self.way().identity, &peer.name, deadline)?;
        let open = Ask::OpenGroup(OpenGroup {
            group: group.name().to_owned(),
            id: group.id(),
            generation: group.generation(),
            log: group.log().spec().id,
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

    /// How destinations are reached.
    pub(super) fn way(&self) -> &Way {
        self.setup.way.as_ref().expect("whoever has destinations has a way to them")
    }

    /// Where the stream goes on at a destination that has `have`.
    fn join(&self, to: &Destination, have: &Have) -> Joining {
        let mut stream = to.stream();
        // It reads nothing yet, and may never: nobody has to let the ring go for it.
        *stream = Stream::Joins { left: None };
        Joining::of(self.setup.group.log(), &self.space, to.index, have, self.setup.chance)
    }

    /// Whether nobody else takes a copy that is under way. One that is away for a moment goes on in the middle of one.
    fn is_alone(&self, to: &Destination) -> bool {
        let takes_it = |other: &Arc<Destination>| {
            let reads = self.space.holds(other.index) || other.link().connected;
            reads && !other.ship.view().counts
        };
        let mut others = self.destinations.iter().filter(|other| other.index != to.index);
        self.setup.group.config().archive.is_none() && !others.any(takes_it)
    }

    /// Goes on looking for writes that pass the log by.
    fn sample(&self, to: &Destination, client: &mut Client) -> Result<(), ControlError> {
        let (group, ship) = (&self.setup.group, to.ship.view());
        // One image is compared with, that of the first destination that counts.
        let earlier = if ship.counts { &self.destinations[..to.index] } else { &self.destinations[..] };
        if earlier.iter().any(|other| other.ship.view().counts) {
            return Ok(());
        }
        let applied = self.image_at(to);
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
    fn serve(
        self: &Arc<Self>,
        to: &Destination,
        mut client: Client,
        shipper: Shipper,
        stop: &Arc<AtomicBool>,
    ) -> LinkError {
        self.tell_flow();
        let (running, ended) = mpsc::channel::<()>();
        match &mut *to.stream() {
            Stream::Joins { left: Some(_) } => return LinkError::Shed,
            _ if to.is_paused() => return LinkError::Paused,
            stream => {
                self.space.set_present(to.index, true);
                *stream = Stream::Reads { stop: stop.clone(), leaves: None };
            }
        }
        let (me, index) = (self.clone(), to.index);
        let thread = spawn(format!("ship-{}-{}", self.setup.group.name(), to.peer.name), move || {
            // Dropped when the shipper has ended, however that was.
            let _running = running;
            let error = shipper.run();
            me.ring_is_left(&me.destinations[index]);
            error
        });
        let thread = match thread {
            Ok(thread) => thread,
            Err(error) => return LinkError::Thread(error),
        };
        let mut lost = None;
        while lost.is_none() && !self.stops() && !to.is_paused() {
            if let Err(RecvTimeoutError::Disconnected) = ended.recv_timeout(PING) {
                break;
            }
            match client.ask(&Ask::Ping {}, PONG_WITHIN) {
                Ok(Answer::Pong { fault }) => {
                    self.note_fault(to, fault);
                    if to.ship.view().counts {
                        to.stream_number().into_iter().for_each(|stream| self.syncer.has_all(stream));
                    }
                    lost = self.sample(to, &mut client).err();
                }
                Ok(other) => lost = Some(unexpected(client.peer(), other)),
                Err(error) => lost = Some(error),
            }
        }
        stop.store(true, Ordering::Release);
        self.setup.group.log().wake_agent(SleepDepth::Nap);
        let error = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        match lost {
            Some(lost) => lost.into(),
            None if to.is_paused() => LinkError::Paused,
            None => error.into(),
        }
    }
}

/// What a destination reports, for whoever decides where its stream goes on.
fn have_of(report: &ReplicaReport) -> Have {
    Have {
        generation: report.generation,
        log: report.log,
        stream: report.stream,
        landed: report.landed,
        durable: report.durable,
        applied: report.applied,
        digest: report.digest,
        has: match report.image {
            ImageState::Consistent => Has::Image,
            ImageState::Syncing => Has::Part,
            ImageState::None | ImageState::Stale | ImageState::Poisoned => Has::Nothing,
        },
        any: report.image != ImageState::None,
    }
}

/// A connection must stand within this time.
pub(super) const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// An ask must be answered within this time; `open_group` may have to apply what had landed first.
pub(super) const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// How often it is looked whether a paused destination is to go on.
const PAUSED_LOOK: Duration = Duration::from_millis(50);

/// Time between pings.
const PING: Duration = Duration::from_secs(1);

/// A ping must be answered within this time.
const PONG_WITHIN: Duration = Duration::from_secs(5);
