//! The copy of every region into the stream: first sync, and what closes a gap.
//!
//! `SyncBegin`, a creation a region, the pages that are not zero, `SyncEnd`, all as records among the application's own
//! (`docs/architecture.md`, section 1). One thread a group does it whenever a destination needs it: it is told so by
//! [`Requester::request`], sees for itself that the application runs ahead of the log, and finds what an earlier agent still
//! owed ([`Debt`]). It never takes more than half of the ring, and starts anew when told to while it runs.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::locks::lock;
use crate::log::appender::AppendError;
use crate::log::format::{Kind, RegionPayload};
use crate::log::{Ahead, Appender, Debt, LogRegion, Owner, SleepDepth};
use crate::region::content::Content;
use crate::types::{Lsn, PAGE, RegionId};
use stretches::{extent, runs};

mod pace;
mod stretches;

/// Bytes looked at together: few records where no page of them is zero.
const CHUNK: usize = 64 << 10;

/// A chunk is at most this part of the ring, so that one fits whenever less than half is in use.
const RING_SHARE: u64 = 8;

/// How often the thread looks whether the application went ahead.
const LOOK: Duration = Duration::from_millis(10);

/// Pause while the ring is half full or in-flight marks are awaited.
const PAUSE: Duration = Duration::from_micros(200);

/// Times that the regions are looked at before a copy begins: a look is short, and hardly a program changes names or sizes in each.
const MAX_LOOKS: u32 = 1000;

/// Pause after a copy failed.
const AGAIN: Duration = Duration::from_secs(1);

/// What a group gives to be copied.
pub trait SyncSource: Send + Sync {
    /// The agent's appender of the group's log.
    fn appender(&self) -> &Appender;
    /// The regions as of now. One that is added later is told of by its own record, or by [`Requester::request`].
    fn regions(&self) -> io::Result<Vec<SyncRegion>>;
}

/// A region to be copied.
pub struct SyncRegion {
    /// Its number.
    pub id: RegionId,
    /// Payload of the record that creates it.
    pub creation: Vec<u8>,
    /// Bytes protected.
    pub len: u64,
    /// The file.
    pub file: OwnedFd,
    /// Kept until it is copied, so that its number is not another file's meanwhile.
    pub held: Arc<dyn Send + Sync>,
}

impl SyncRegion {
    fn name(&self) -> &[u8] {
        self.creation.get(size_of::<RegionPayload>()..).unwrap_or_default()
    }
}

/// How a copy is coming along.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SyncView {
    /// Bytes of regions looked at.
    pub done: u64,
    /// Bytes of regions to be looked at.
    pub total: u64,
    /// Whether one is under way or wanted.
    pub active: bool,
    /// LSN just past the last complete copy; 0 if none was made since the agent started.
    pub end: Lsn,
    /// Why the last attempt failed.
    pub error: Option<String>,
}

/// The thread; stopped on drop.
pub struct Syncer {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// Asks a [`Syncer`] for copies; never blocks, and may be dropped anywhere.
pub struct Requester(Arc<Shared>);

impl Requester {
    /// Every region is to be copied, beginning after this call; one under way starts anew. When this returns, the next agent
    /// would make the copy, should this one end before it is in the log.
    pub fn request(&self) {
        let mut wanted = lock(&self.0.wanted);
        *wanted += 1;
        // Both under the lock: a copy that ends just now must find neither taken back behind it.
        self.0.log().owe(Debt::Copy);
        self.0.busy.store(true, SeqCst);
        drop(wanted);
        self.0.asked.notify_all();
    }
}

struct Shared {
    source: Arc<dyn SyncSource>,
    /// Copies asked for so far; one that began earlier is of no use.
    wanted: Mutex<u64>,
    asked: Condvar,
    /// A destination or archive takes records at present.
    flowing: AtomicBool,
    stop: AtomicBool,
    busy: AtomicBool,
    done: AtomicU64,
    total: AtomicU64,
    end: AtomicU64,
    error: Mutex<Option<String>>,
}

/// Why a copy ended early.
#[derive(Debug, thiserror::Error)]
enum Cut {
    /// Told to stop, or to start anew.
    #[error("superseded")]
    Superseded,
    /// The application went ahead of the log: what was copied so far is of no use.
    #[error(transparent)]
    Ahead(#[from] Ahead),
    /// A region could not be read.
    #[error("region {0} cannot be read: {1}")]
    Read(RegionId, io::Error),
    /// The regions could not be listed.
    #[error("the regions cannot be listed: {0}")]
    List(io::Error),
    /// Their names or sizes changed with each look.
    #[error("the application renames and resizes its files faster than they are looked at")]
    Restless,
}

impl Syncer {
    /// A syncer of `source`, idle until something is wanted; a copy that an earlier agent owed is.
    pub fn start(name: &str, source: Arc<dyn SyncSource>) -> io::Result<Syncer> {
        let owed = source.appender().log().owes(Debt::Copy);
        let shared = Arc::new(Shared {
            source,
            wanted: Mutex::new(0),
            asked: Condvar::new(),
            flowing: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            busy: AtomicBool::new(owed),
            done: AtomicU64::new(0),
            total: AtomicU64::new(0),
            end: AtomicU64::new(0),
            error: Mutex::default(),
        });
        let theirs = shared.clone();
        let thread = thread::Builder::new().name(format!("sync-{name}")).spawn(move || theirs.run())?;
        Ok(Syncer { shared, thread: Some(thread) })
    }

    /// See [`Requester::request`].
    pub fn request(&self) {
        self.requester().request();
    }

    /// For whoever asks for copies without keeping the thread alive.
    pub fn requester(&self) -> Requester {
        Requester(self.shared.clone())
    }

    /// Whether records are being taken: without, a gap cannot be closed.
    pub fn set_flowing(&self, flowing: bool) {
        self.shared.flowing.store(flowing, SeqCst);
        self.shared.keep_room();
    }

    /// Whether a copy is under way or wanted.
    pub fn is_active(&self) -> bool {
        self.shared.busy.load(SeqCst)
    }

    /// How it is coming along.
    pub fn view(&self) -> SyncView {
        SyncView {
            done: self.shared.done.load(Relaxed),
            total: self.shared.total.load(Relaxed),
            active: self.is_active(),
            end: Lsn(self.shared.end.load(Relaxed)),
            error: lock(&self.shared.error).clone(),
        }
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        self.shared.asked.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self) {
        let mut served = 0;
        while let Some(wanted) = self.next(served) {
            self.busy.store(true, SeqCst);
            // Before there is a `SyncBegin`, which nothing but a complete copy takes back.
            self.log().owe(Debt::Copy);
            match self.close_gap(wanted).and_then(|begun| self.copy(begun, wanted)) {
                Ok(end) => {
                    self.end.store(end.0, Relaxed);
                    *lock(&self.error) = None;
                    served = wanted;
                    // Unless asked for again meanwhile. Idle only once an agent that comes after us would be, too.
                    let asked = lock(&self.wanted);
                    if *asked == served {
                        self.log().settle(Debt::Copy);
                        self.busy.store(false, SeqCst);
                    }
                }
                Err(Cut::Superseded) => {}
                Err(Cut::Ahead(_)) => *lock(&self.wanted) += 1,
                Err(error) => {
                    tracing::error!(%error, "a copy of the regions failed and starts anew");
                    *lock(&self.error) = Some(error.to_string());
                    *lock(&self.wanted) += 1;
                    self.keep_room();
                    self.pause(AGAIN);
                }
            }
            self.keep_room();
        }
    }

    /// Waits until more copies are wanted than were served, one is owed, or the application is ahead; the number wanted then.
    fn next(&self, served: u64) -> Option<u64> {
        let (mut wanted, mut free) = (lock(&self.wanted), self.log().free());
        loop {
            if self.stop.load(SeqCst) {
                return None;
            }
            let log = self.log();
            let due = *wanted > served || log.owes(Debt::Copy);
            if due || (log.is_ahead() && self.flowing.load(SeqCst)) {
                return Some(*wanted);
            }
            self.keep_room_again(&mut free);
            wanted = self.asked.wait_timeout(wanted, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Brings the application back onto the log if it is ahead. Whether it was: then a `SyncBegin` stands in the log.
    fn close_gap(&self, wanted: u64) -> Result<bool, Cut> {
        let log = self.log();
        if !log.is_ahead() {
            return Ok(false);
        }
        loop {
            log.publish_filled(&Owner::confirmed_dead);
            // The application appends again at once.
            self.keep_beside(0);
            if log.free() == log.tail() && log.close_gap() {
                break;
            }
            self.check(wanted)?;
            thread::sleep(PAUSE);
        }
        // Pages may be read only when nobody sets bits for stores that came before the flag was cleared.
        while log.bits_in_flight(&Owner::confirmed_dead) {
            self.check(wanted)?;
            thread::sleep(PAUSE);
        }
        for id in 0..log.spec().regions.min(u32::from(u16::MAX)) {
            // Everything is copied, so what the bits say is of no further use.
            log.clear_dirty(RegionId(id as u16));
        }
        Ok(true)
    }

    fn copy(&self, begun: bool, wanted: u64) -> Result<Lsn, Cut> {
        let appender = self.source.appender();
        if !begun {
            self.room(wanted)?;
            appender.append(Kind::SyncBegin, RegionId(0), 0, &[])?;
        }
        self.keep_beside(0);
        let regions = self.create_regions(wanted)?;
        self.done.store(0, Relaxed);
        self.total.store(regions.iter().map(|r| r.len).sum(), Relaxed);
        for region in &regions {
            self.copy_region(region, wanted)?;
        }
        self.room(wanted)?;
        let end = appender.append(Kind::SyncEnd, RegionId(0), 0, &[])?;
        self.push();
        Ok(end)
    }

    /// Creates every region in the new image, as it is by then. After SyncBegin: what is added later is told of by a record
    /// behind it.
    ///
    /// The program's own record of a change may lie between the look at a region and the record that creates it, where the
    /// new image knows nothing of the region yet: so it is looked again until nothing that was created here has changed.
    fn create_regions(&self, wanted: u64) -> Result<Vec<SyncRegion>, Cut> {
        let appender = self.source.appender();
        let mut created = BTreeMap::<RegionId, SyncRegion>::new();
        for look in 0..MAX_LOOKS {
            let listed = self.source.regions().map_err(Cut::List)?;
            let gone: Vec<_> =
                created.keys().copied().filter(|id| listed.iter().all(|r| r.id != *id)).collect();
            // Ours may have taken the name of one that was added meanwhile.
            let is_due = |r: &SyncRegion| match created.get(&r.id) {
                Some(c) => c.creation != r.creation,
                None => look == 0 || created.values().any(|c| c.name() == r.name()),
            };
            let due: Vec<_> = listed.into_iter().filter(is_due).collect();
            if gone.is_empty() && due.is_empty() {
                return Ok(created.into_values().collect());
            }
            for id in gone {
                self.room(wanted)?;
                appender.append(Kind::RegionUnlink, id, 0, &[])?;
                created.remove(&id);
            }
            for region in due {
                self.room(wanted)?;
                appender.append(Kind::RegionCreate, region.id, 0, &region.creation)?;
                created.insert(region.id, region);
            }
        }
        Err(Cut::Restless)
    }

    fn copy_region(&self, region: &SyncRegion, wanted: u64) -> Result<(), Cut> {
        let before = self.done.load(Relaxed);
        let read = |e: io::Error| Cut::Read(region.id, e);
        let mut at = 0;
        let chunk = CHUNK.min((self.log().spec().ring_bytes / RING_SHARE) as usize);
        let mut buf = vec![0; chunk];
        let content = Content::of(&region.file).map_err(read)?;
        let stretch = |at| match content.is_device() {
            true => Ok((at < region.len).then_some((at, region.len))),
            false => extent(&region.file, at, region.len),
        };
        while let Some((start, end)) = stretch(at).map_err(read)? {
            at = start;
            while at < end {
                let len = chunk.min((end - at) as usize);
                self.copy_chunk(region, &content, at, &mut buf[..len], wanted)?;
                at += len as u64;
                self.done.store(before + at, Relaxed);
            }
        }
        self.done.store(before + region.len, Relaxed);
        Ok(())
    }

    /// Appends the runs of pages that are not zero. A page that is zero now and is stored to later is in the log by that
    /// store's own record, or was never flushed.
    fn copy_chunk(
        &self,
        region: &SyncRegion,
        content: &Content<'_>,
        at: u64,
        buf: &mut [u8],
        wanted: u64,
    ) -> Result<(), Cut> {
        let read = |e: io::Error| Cut::Read(region.id, e);
        let got = content.read_at(buf, at).map_err(read)?;
        let pages = buf[..got].chunks(PAGE).map(|page| page.iter().any(|b| *b != 0));
        let mut copied = 0;
        for (first, count) in runs(pages) {
            let (from, len) = (first * PAGE, (count * PAGE).min(got - first * PAGE));
            self.room(wanted)?;
            let appender = self.source.appender();
            match appender.append_from_file(region.id, at + from as u64, len, region.file.as_fd(), true) {
                Ok(_) => {}
                Err(AppendError::Ahead(ahead)) => return Err(ahead.into()),
                Err(AppendError::Read(e)) => return Err(read(e)),
                Err(e @ AppendError::TooLarge) => return Err(read(io::Error::other(e))),
            }
            copied += len as u64;
        }
        self.keep_beside(copied);
        self.push();
        Ok(())
    }

    /// Waits until less than half of the ring is in use, so that the copy never pushes the application ahead.
    fn room(&self, wanted: u64) -> Result<(), Cut> {
        let log = self.log();
        loop {
            self.check(wanted)?;
            if log.is_ahead() {
                return Err(Cut::Ahead(Ahead(log.tail())));
            }
            if log.tail().since(log.free()) < log.spec().ring_bytes / 2 {
                return Ok(());
            }
            self.push();
            thread::sleep(PAUSE);
        }
    }

    /// Publishes without waiting for anyone: the application may be frozen in the middle of a record.
    fn push(&self) {
        self.log().publish_filled(&Owner::confirmed_dead);
        self.log().wake_agent(SleepDepth::Deep);
    }

    fn check(&self, wanted: u64) -> Result<(), Cut> {
        let superseded = *lock(&self.wanted) != wanted || self.stop.load(SeqCst);
        if superseded { Err(Cut::Superseded) } else { Ok(()) }
    }

    fn pause(&self, time: Duration) {
        let wanted = lock(&self.wanted);
        drop(self.asked.wait_timeout_while(wanted, time, |_| !self.stop.load(SeqCst)));
    }

    fn log(&self) -> &LogRegion {
        self.source.appender().log()
    }
}

#[cfg(test)]
mod tests;
