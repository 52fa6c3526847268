//! The shipping loop: published records from the ring to one destination's landing ring, and its acknowledgements back.
//!
//! One thread a group with a destination, for as long as the link lives. Bytes go by one-sided writes from the
//! log's own ring, at the same offsets, several in flight; nothing is copied. What the destination acknowledges is believed only
//! after [`AckGate`], and then raises the log's acknowledgement cells and frees its ring. A destination that stalls or
//! dies stops this loop, never the application: the ring fills, and appenders go ahead by themselves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::acks::{AckError, AckGate, Acked};
use super::commits::Commits;
use super::follower::{Follower, Has};
use super::proof::{PROOF, PROOF_BYTES, Proof};
use super::rate::DrainRate;
use super::space::Space;
use super::status::{ShipStatus, ShipView};
use super::window::Window;
use crate::fabric::{
    Completion, Endpoint, FabricError, Local, Registration, RemoteAccess, RemoteKey, Wake, Write,
};
use crate::log::digest::chain;
use crate::log::eager::Eager;
use crate::log::format::RecordHeader;
use crate::log::region::boottime;
use crate::log::{Acks, Batch, Consumer, LogRegion, PoisonError, SleepDepth};
use crate::region::memory::SharedMem;
use crate::replica::ack::ACK_BYTES;
use crate::types::{Durability, PAGE};
use crate::waits;

/// Largest batch: big enough that the cost of a request vanishes, small enough that several fill a link.
const MAX_BATCH: u64 = 1 << 20;

/// How long an empty log is looked at before the first nap where nobody waits: about a round trip.
const SPIN: Duration = Duration::from_micros(20);

/// Nap while traffic flows or acknowledgements are due.
const NAP: Duration = Duration::from_micros(200);

/// Nap once nothing has moved for [`DOZE_AFTER`] although acknowledgements are due: the destination stalls.
const DOZE: Duration = Duration::from_millis(5);

/// See [`DOZE`].
const DOZE_AFTER: Duration = Duration::from_millis(50);

/// With nothing due and nothing new for this long, the next publish has to wake us.
const DEEP_AFTER: Duration = Duration::from_millis(10);

/// Longest deep sleep.
const DEEP: Duration = Duration::from_secs(1);

/// A connected destination, before anything has been shipped on this link.
pub struct Link {
    /// The connection.
    pub endpoint: Arc<dyn Endpoint>,
    /// The log's ring as registered on it.
    pub ring: Arc<dyn Registration>,
    /// Memory that the destination writes its acknowledgements to.
    pub ack: Arc<dyn Registration>,
    /// What makes bytes survive there.
    pub durability: Durability,
    /// Where reads that prove placement leave what they found, which nobody looks at.
    scratch: Arc<dyn Registration>,
}

impl Link {
    /// Registers what a link needs on a fresh endpoint.
    pub fn prepare(
        endpoint: Arc<dyn Endpoint>,
        log: &LogRegion,
        durability: Durability,
    ) -> Result<Link, FabricError> {
        let page = || SharedMem::anonymous(PAGE).map(Arc::new);
        let system = |source| FabricError::System { what: "memory for acknowledgements".into(), source };
        let ack = endpoint.register(page().map_err(system)?, RemoteAccess::Write)?;
        let scratch = endpoint.register(page().map_err(system)?, RemoteAccess::Local)?;
        let ring = endpoint.register(log.ring().clone(), RemoteAccess::Local)?;
        Ok(Link { endpoint, ring, ack, durability, scratch })
    }
}

/// Why a link ended.
#[derive(Debug, thiserror::Error)]
pub enum ShipError {
    /// It was told to.
    #[error("the link was closed")]
    Stopped,
    /// The fabric failed or refused.
    #[error(transparent)]
    Fabric(#[from] FabricError),
    /// The destination acknowledges what cannot be.
    #[error("the destination's acknowledgements cannot be true: {0}")]
    Ack(#[from] AckError),
    /// The application damaged its log. No link can go on with it.
    #[error(transparent)]
    Poison(#[from] PoisonError),
}

/// Ships one log over one link.
pub struct Shipper {
    log: Arc<LogRegion>,
    consumer: Consumer,
    link: Link,
    landing: RemoteKey,
    window: Window,
    gate: AckGate,
    acked: Acked,
    digest: u64,
    follower: Follower,
    rate: DrainRate,
    space: Arc<Space>,
    who: usize,
    commits: (Arc<Commits>, usize),
    shed: Box<dyn Fn(usize) + Send>,
    status: Arc<ShipStatus>,
    stop: Arc<AtomicBool>,
    completions: Vec<Completion>,
    busy_since: Option<Instant>,
    /// What the fabric or the next record took to come, where somebody waits.
    eager: Eager,
    observe: Box<dyn Fn(&RecordHeader) + Send>,
    /// The sleeping destination has been sent an immediate since it said so.
    woken: bool,
    proof: Proof,
}

/// What a [`Shipper`] is made of.
pub struct Shipment {
    /// A reader of the log that stands where the stream goes on.
    pub consumer: Consumer,
    /// Chained digest there.
    pub digest: u64,
    /// What the destination has there.
    pub has: Has,
    /// Number of the stream, as the destination was told.
    pub stream: u32,
    /// The connection.
    pub link: Link,
    /// The destination's landing ring.
    pub landing: RemoteKey,
    /// Where this consumer reports what it no longer needs, and as which.
    pub space: (Arc<Space>, usize),
    /// Where what the destination has is reported, and as which.
    pub commits: (Arc<Commits>, usize),
    /// Is told of a consumer that is in this one's way.
    pub shed: Box<dyn Fn(usize) + Send>,
    /// Where positions are published.
    pub status: Arc<ShipStatus>,
    /// Ends the link when set; wake the log afterwards.
    pub stop: Arc<AtomicBool>,
    /// Sees the header of every record shipped.
    pub observe: Box<dyn Fn(&RecordHeader) + Send>,
}

impl Shipper {
    /// A shipper of `log`.
    pub fn new(log: Arc<LogRegion>, shipment: Shipment) -> Shipper {
        let Shipment {
            consumer,
            digest,
            has,
            link,
            landing,
            space,
            commits,
            shed,
            status,
            stop,
            observe,
            stream,
        } = shipment;
        let (space, who) = space;
        let from = consumer.position();
        Shipper {
            window: Window::new(from, log.spec().ring_bytes, link.endpoint.limit()),
            gate: AckGate::new(log.spec().generation),
            acked: Acked::default(),
            digest,
            follower: Follower::new(stream, has),
            rate: DrainRate::default(),
            completions: Vec::new(),
            busy_since: None,
            eager: Eager::default(),
            observe,
            woken: false,
            proof: Proof::new(from),
            log,
            consumer,
            link,
            landing,
            space,
            who,
            commits,
            shed,
            status,
            stop,
        }
    }

    /// Ships until told to stop or the link ends. Whatever happens in the fabric wakes the log's sleeper meanwhile.
    pub fn run(mut self) -> ShipError {
        let log = self.log.clone();
        self.link.endpoint.on_event(Box::new(move || log.wake_agent(SleepDepth::Nap)));
        self.status.set_digest(self.digest, self.consumer.position());
        self.publish();
        let mut quiet_since = waits::now();
        let mut looks_for = SPIN;
        let error = loop {
            if self.stop.load(Ordering::Acquire) {
                break ShipError::Stopped;
            }
            match self.step() {
                Ok(true) => {
                    let now = waits::now();
                    looks_for = self.looks_for(now - quiet_since, looks_for);
                    quiet_since = now;
                }
                Ok(false) => match self.rest(waits::since(quiet_since), looks_for) {
                    Ok(()) => {}
                    Err(error) => break error,
                },
                Err(error) => break error,
            }
        };
        self.status.disconnected();
        error
    }

    /// One round; whether anything moved.
    fn step(&mut self) -> Result<bool, ShipError> {
        let mut moved = self.reap()?;
        moved |= self.read_ack()?;
        if moved {
            self.publish();
        }
        moved |= self.ship()?;
        self.prove()?;
        Ok(moved)
    }

    fn reap(&mut self) -> Result<bool, ShipError> {
        self.link.endpoint.poll(&mut self.completions);
        let before = self.window.received();
        let (mut failed, mut proven) = (None, false);
        for completion in self.completions.drain(..) {
            match completion.result {
                Ok(()) if completion.id == PROOF => {
                    self.proof.completed();
                    proven = true;
                }
                Ok(()) => drop(self.window.completed(completion.id)),
                Err(error) => failed = Some(error),
            }
        }
        if let Some(error) = failed {
            return Err(error.into());
        }
        while self.link.endpoint.take_immediate().is_some() {}
        let bytes = self.window.received().since(before);
        if bytes > 0 {
            let now = waits::now();
            if let Some(since) = self.busy_since {
                self.rate.add(bytes, now - since);
            }
            self.busy_since = (!self.window.is_idle()).then_some(now);
        }
        Ok(bytes > 0 || proven)
    }

    fn read_ack(&mut self) -> Result<bool, ShipError> {
        let mut bytes = [0; ACK_BYTES];
        self.link.ack.memory().read(0, &mut bytes);
        let Some(acked) = self.gate.check(&bytes, self.window.shipped())? else { return Ok(false) };
        // Each announcement of sleep is followed by a sleep, so each is owed an immediate of its own.
        self.woken = false;
        self.acked = acked;
        self.window.applied(acked.applied);
        Ok(true)
    }

    /// Tells everyone what the destination has: waiters, the ring's writers, status.
    fn publish(&mut self) {
        let received = self.window.received();
        // Where the whole machine has a battery, what has landed survives.
        let durable = match self.link.durability {
            Durability::Battery if self.acked.counts => self.acked.durable.max(received),
            // Where caches do, what was read back has left the adapter.
            Durability::Eadr if self.acked.counts => self.acked.durable.max(self.proof.placed()),
            _ => self.acked.durable,
        };
        let copied = self.follower.is_copied(&self.acked);
        let counts = self.acked.counts && copied;
        // Before its first word it has what it had when it was last heard.
        let unheard = !self.acked.syncing && copied;
        if self.acked.counts {
            if let Some(gap) = self.log.gap()
                && gap.end.is_none()
                && self.acked.counts_from > gap.start
            {
                self.log.end_gap(self.acked.counts_from);
            }
            let all = Acks { received, durable, applied: self.acked.applied };
            let (commits, who) = &self.commits;
            commits.acknowledge(*who, self.follower.limit(all, &self.acked));
        }
        self.space.done(self.who, self.acked.applied);
        self.space.set_counts(self.who, counts);
        self.space.in_the_way(false).into_iter().for_each(&self.shed);
        self.status.set(ShipView {
            shipped: self.window.shipped(),
            received,
            durable,
            applied: self.acked.applied,
            drain: self.rate.bytes_per_s(),
            counts,
            counts_from: self.acked.counts_from,
            syncing: self.acked.syncing || !copied,
            faulted: self.acked.faulted,
            holds: counts || unheard && self.status.view().holds,
        });
    }

    /// Posts what may be posted.
    fn ship(&mut self) -> Result<bool, ShipError> {
        let most = MAX_BATCH.min(self.log.spec().ring_bytes / 4);
        let mut moved = false;
        while self.window.room() > 0 {
            let at = self.consumer.position();
            let Some(batch) = self.consumer.next_batch(most.min(self.window.room()))? else { break };
            if batch.end.since(at) > self.window.room() {
                // A record larger than the room left: it comes again when the destination has applied more.
                self.consumer.skip_to(at);
                break;
            }
            if !self.post(&batch)? {
                self.consumer.skip_to(at);
                break;
            }
            moved = true;
        }
        self.wake_destination()?;
        Ok(moved)
    }

    /// Posts one batch; `false` if the endpoint takes no more at present.
    fn post(&mut self, batch: &Batch) -> Result<bool, ShipError> {
        let ring = self.log.spec().ring_bytes;
        let len = batch.end.since(batch.start);
        let offset = batch.start.0 & (ring - 1);
        let first = len.min(ring - offset);
        let wakes = self.acked.sleeping && !self.woken;
        let piece = |from: u64, len: u64| Write {
            local: Local { memory: &self.link.ring, offset: from as usize, len: len as usize },
            remote: self.landing,
            remote_offset: from,
            immediate: None,
            signal: None,
        };
        let mut writes = [piece(offset, first), piece(0, len - first)];
        let parts = if first < len { &mut writes[..] } else { &mut writes[..1] };
        let last = parts.last_mut().expect("at least one");
        last.immediate = wakes.then_some(0);
        last.signal = Some(self.window.next_id());
        match self.link.endpoint.write(parts) {
            Ok(()) => {}
            Err(FabricError::Busy { .. }) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        self.status.posted(|| boottime().as_nanos() as u64);
        if self.window.is_idle() {
            self.busy_since = Some(waits::now());
        }
        self.window.post(batch.end);
        self.woken |= wakes;
        batch.headers.iter().for_each(&self.observe);
        batch.headers.iter().for_each(|header| self.follower.posted(header));
        self.digest = batch.headers.iter().fold(self.digest, chain);
        self.status.set_digest(self.digest, batch.end);
        Ok(true)
    }

    /// Reads back the end of what was shipped, where that makes it durable and nobody has done so yet.
    fn prove(&mut self) -> Result<(), ShipError> {
        let shipped = self.window.shipped();
        if self.link.durability != Durability::Eadr || !self.proof.is_due(shipped) {
            return Ok(());
        }
        // Records begin and end at multiples of more than this, so it does not run past the ring's end.
        let at = (shipped.0 - PROOF_BYTES as u64) & (self.log.spec().ring_bytes - 1);
        let into = Local { memory: &self.link.scratch, offset: 0, len: PROOF_BYTES };
        match self.link.endpoint.read(into, self.landing, at, PROOF) {
            Ok(()) => {
                self.proof.posted(shipped);
                Ok(())
            }
            Err(FabricError::Busy { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// A destination that said that it sleeps, after we had shipped more than it had seen, must be woken.
    fn wake_destination(&mut self) -> Result<(), ShipError> {
        let due = self.acked.sleeping && !self.woken && self.acked.durable < self.window.shipped();
        if !due {
            return Ok(());
        }
        let write = Write {
            local: Local { memory: &self.link.ring, offset: 0, len: 0 },
            remote: self.landing,
            remote_offset: 0,
            immediate: Some(0),
            signal: Some(self.window.next_id()),
        };
        match self.link.endpoint.write(&[write]) {
            Ok(()) => {
                self.window.post(self.window.shipped());
                self.woken = true;
                Ok(())
            }
            Err(FabricError::Busy { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// How long to look for what comes next, after it was quiet for `quiet` and was looked for as long as `before`: a program that
    /// waits is not to wait for us to be woken.
    fn looks_for(&self, quiet: Duration, before: Duration) -> Duration {
        if !self.log.is_waited_for() {
            return SPIN;
        }
        self.eager.took(quiet, before > SPIN);
        self.eager.begin().max(SPIN)
    }

    /// Nothing to do right now: sleeps until there may be.
    fn rest(&self, quiet: Duration, looks_for: Duration) -> Result<(), ShipError> {
        let seen = self.consumer.position();
        if quiet < looks_for {
            // The fabric, the destination and the program may need this processor.
            waits::yield_now();
            return Ok(());
        }
        let endpoint = &self.link.endpoint;
        let in_flight = !self.window.is_idle() || self.proof.is_under_way();
        let due = self.acked.applied < self.window.shipped() || in_flight;
        let (depth, most) = match due {
            true if quiet > DOZE_AFTER => (SleepDepth::Nap, DOZE),
            true => (SleepDepth::Nap, NAP),
            false if quiet > DEEP_AFTER => (SleepDepth::Deep, DEEP),
            false => (SleepDepth::Nap, NAP),
        };
        let blocked = self.log.is_ahead() || self.log.published() > seen;
        // Where the log has work that the destination has no room for, only the destination can change that.
        match endpoint.wait(if blocked { most } else { Duration::ZERO }) {
            Wake::TimedOut => {}
            Wake::Ready => return Ok(()),
            Wake::Closed => {
                return Err(ShipError::Fabric(FabricError::Disconnected {
                    peer: endpoint.peer().to_owned(),
                    reason: "the endpoint was closed".into(),
                }));
            }
        }
        if !blocked {
            self.log.sleep_until_work(seen, depth, most);
        }
        Ok(())
    }
}
