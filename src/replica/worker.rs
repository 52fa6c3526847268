//! The thread that follows the landing ring of an attached source and acknowledges.
//!
//! It polls while records come. When none has come for `POLL`, it announces in the acknowledgement cell that it sleeps,
//! looks once more, and sleeps in [`Endpoint::wait`]. A source that sees the bit and has shipped more than the cell's
//! `durable` sends an immediate; so whichever of the two writes is seen first, nobody waits for ever.
//!
//! An error stops it from acknowledging, never from trying again: the ring still holds what was not applied, and the
//! source keeps what was not acknowledged.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use super::ack::{ACK_BYTES, AckCell, COUNTS, FAULTED, SLEEPING, SYNCING};
use super::applier::{Applier, ApplyError};
use super::status::{ImageHealth, ReplicaStatus};
use crate::fabric::{
    Completion, Endpoint, FabricError, Local, Registration, RemoteAccess, RemoteKey, Wake, Write,
};
use crate::locks::lock;
use crate::region::memory::SharedMem;
use crate::types::Lsn;
use crate::waits;

/// How long an idle ring is polled before sleeping: longer than a round trip, shorter than a time slice.
const POLL: Duration = Duration::from_micros(50);

/// Longest sleep: an idle destination looks around this often, which costs nothing to speak of.
const SLEEP: Duration = Duration::from_secs(1);

/// Pause between attempts while faulted.
const RETRY: Duration = Duration::from_millis(500);

/// Acknowledgements in flight; the newest supersedes the older, so a few are enough.
const ACKS_IN_FLIGHT: usize = 8;

/// A connected source.
pub struct Link {
    /// The connection. The landing ring must have been registered on it by the caller.
    pub endpoint: Arc<dyn Endpoint>,
    /// Where the source wants its [`AckCell`].
    pub ack: RemoteKey,
    /// Raise an event at the source with every acknowledgement (a fabric on which that costs nothing to speak of).
    pub notify: bool,
}

/// What the worker shares with the handle.
pub(super) struct Shared {
    pub(super) stop: AtomicBool,
    status: Mutex<ReplicaStatus>,
}

impl Shared {
    pub(super) fn new(status: ReplicaStatus) -> Shared {
        Shared { stop: AtomicBool::new(false), status: Mutex::new(status) }
    }

    pub(super) fn status(&self) -> MutexGuard<'_, ReplicaStatus> {
        // Plain data: a panic elsewhere cannot have left it half written in a way that matters.
        lock(&self.status)
    }
}

/// Runs until told to stop or the connection ends; everything that landed by then has been applied, unless faulted.
pub(super) fn run(mut applier: Box<Applier>, link: Link, shared: &Shared) -> Box<Applier> {
    let mut acks = match Acks::new(link) {
        Ok(acks) => acks,
        Err(e) => {
            shared.status().faulted = Some(e.to_string());
            return applier;
        }
    };
    shared.status().attached = true;
    let mut idle_since = None;
    loop {
        // Acquire: pairs with the release in `Replica::detach`; what was revoked before cannot land later.
        let stopping = shared.stop.load(Ordering::Acquire);
        match step(&mut applier, &mut acks, shared) {
            Ok(true) => idle_since = None,
            Ok(false) if stopping || acks.is_closed() => break,
            Ok(false) => {
                let since = *idle_since.get_or_insert_with(waits::now);
                if waits::since(since) < POLL {
                    waits::yield_now();
                    continue;
                }
                acks.send(&applier, shared, SLEEPING);
                if !applier.has_next() && !shared.stop.load(Ordering::Acquire) {
                    acks.wait(SLEEP);
                }
                idle_since = None;
            }
            Err(e) => {
                let again = fault(&mut applier, &mut acks, shared, e);
                if !again {
                    acks.close();
                }
                if stopping || acks.is_closed() {
                    break;
                }
                acks.wait(RETRY);
            }
        }
    }
    let mut status = shared.status();
    status.update(&applier);
    status.attached = false;
    drop(status);
    applier
}

/// One round; whether anything had landed.
fn step(applier: &mut Applier, acks: &mut Acks, shared: &Shared) -> Result<bool, ApplyError> {
    let mending = shared.status().faulted.is_some();
    // The fault stands until everything that failed has been done.
    let flags = if mending { FAULTED } else { 0 };
    if mending {
        applier.reopen()?;
    }
    let more = applier.receive()?;
    if more {
        acks.send(applier, shared, flags);
        applier.apply()?;
    }
    if !more || mending || applier.must_persist() {
        applier.persist()?;
        if mending {
            let mut status = shared.status();
            (status.faulted, status.poisoned) = (None, false);
        }
        acks.send(applier, shared, 0);
    }
    Ok(more)
}

/// Says what is wrong; whether trying again can help.
fn fault(applier: &mut Applier, acks: &mut Acks, shared: &Shared, e: ApplyError) -> bool {
    let again = e.is_temporary();
    let mut status = shared.status();
    if status.faulted.is_none() {
        tracing::error!(dir = %applier.config().dir.display(), "{e}");
    }
    status.faulted = Some(e.to_string());
    status.poisoned = !again;
    drop(status);
    acks.send(applier, shared, FAULTED);
    again
}

/// Writes acknowledgements; the newest counts, so none waits for an older one longer than a slot is free.
struct Acks {
    link: Link,
    slots: Arc<dyn Registration>,
    in_flight: usize,
    seq: u64,
    last: Option<AckCell>,
    done: Vec<Completion>,
    closed: bool,
}

impl Acks {
    fn new(link: Link) -> Result<Acks, FabricError> {
        let memory = SharedMem::anonymous(crate::types::PAGE).map_err(|source| FabricError::System {
            what: "allocate memory for acknowledgements".into(),
            source,
        })?;
        let slots = link.endpoint.register(Arc::new(memory), RemoteAccess::Local)?;
        let done = Vec::new();
        Ok(Acks { link, slots, in_flight: 0, seq: 0, last: None, done, closed: false })
    }

    fn is_closed(&self) -> bool {
        self.closed
    }

    /// Ends the connection, once what was said has arrived: the source is to connect again and begin anew.
    fn close(&mut self) {
        while self.in_flight > 0 && !self.closed {
            self.wait(SLEEP);
        }
        if let Err(e) = self.link.endpoint.revoke() {
            tracing::info!(peer = self.link.endpoint.peer(), "the connection could not be ended: {e}");
        }
        self.closed = true;
    }

    fn wait(&mut self, timeout: Duration) {
        match self.link.endpoint.wait(timeout) {
            Wake::Ready => {
                while self.link.endpoint.take_immediate().is_some() {}
                self.reap();
            }
            Wake::TimedOut => {}
            Wake::Closed => {
                self.reap();
                self.closed = true;
            }
        }
    }

    fn reap(&mut self) {
        self.link.endpoint.poll(&mut self.done);
        for completion in self.done.drain(..) {
            self.in_flight -= 1;
            self.closed |= completion.result.is_err();
        }
    }

    /// Sends what the applier has reached, unless the source knows it already.
    fn send(&mut self, applier: &Applier, shared: &Shared, flags: u32) {
        shared.status().update(applier);
        let cell = cell(applier, &shared.status(), flags);
        self.reap();
        while self.in_flight >= ACKS_IN_FLIGHT && !self.closed {
            self.wait(SLEEP);
        }
        // That it is awake again needs no word of its own: it would wake it again, for ever.
        let asleep = AckCell { flags: cell.flags | SLEEPING, ..cell };
        if self.closed || self.last == Some(cell) || self.last == Some(asleep) {
            return;
        }
        self.seq += 1;
        let slot = (self.seq % ACKS_IN_FLIGHT as u64) as usize * ACK_BYTES;
        self.slots.memory().write(slot, &AckCell { seq: self.seq, ..cell }.encode());
        let write = Write {
            local: Local { memory: &self.slots, offset: slot, len: ACK_BYTES },
            remote: self.link.ack,
            remote_offset: 0,
            immediate: self.link.notify.then_some(0),
            signal: Some(self.seq),
        };
        match self.link.endpoint.write(&[write]) {
            Ok(()) => {
                self.in_flight += 1;
                self.last = Some(cell);
            }
            Err(FabricError::Busy { .. }) => {}
            Err(e) => {
                tracing::info!(peer = self.link.endpoint.peer(), "no acknowledgement sent: {e}");
                self.closed = true;
            }
        }
    }
}

fn cell(applier: &Applier, status: &ReplicaStatus, flags: u32) -> AckCell {
    let (image, counts_from) = applier.images().numbers();
    let (state, counts_from) = match status.poisoned {
        // What cannot be applied must not count, however durable it is in the ring.
        true => (0, Lsn(0)),
        false => state(status.image, status.applied, counts_from),
    };
    AckCell {
        seq: 0,
        generation: status.generation.0,
        flags: flags | state,
        durable: status.durable.0,
        applied: status.applied.0,
        image,
        counts_from: counts_from.0,
        digest: applier.images().stored().at.digest,
        reserved: 0,
        crc: 0,
    }
}

/// What the image is good for, and from where on.
fn state(image: ImageHealth, applied: Lsn, counts_from: Lsn) -> (u32, Lsn) {
    match image {
        // Until the position at which it became whole is durable, a power cut brings its copying back.
        ImageHealth::Consistent if counts_from > applied => (SYNCING, Lsn(0)),
        ImageHealth::Consistent => (COUNTS, counts_from),
        ImageHealth::Syncing => (SYNCING, counts_from),
        ImageHealth::None | ImageHealth::Stale => (0, counts_from),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_counts_once_the_position_at_which_it_became_whole_is_durable() {
        let from = Lsn(640);
        assert_eq!(state(ImageHealth::Consistent, Lsn(608), from), (SYNCING, Lsn(0)));
        assert_eq!(state(ImageHealth::Consistent, from, from), (COUNTS, from));
        // The image before stays the one that counted while the next is built.
        assert_eq!(state(ImageHealth::Syncing, Lsn(960), from), (SYNCING, from));
    }
}
