//! The copy of every region into the stream: first sync, and what closes a gap.
//!
//! `SyncBegin`, a creation a region, the pages that are not zero, `SyncEnd`, all as records among the application's own
//! (`docs/architecture.md`, section 1). One thread a group does it whenever a destination needs it: it is told so by
//! [`Requester::request`], sees for itself that the application runs ahead of the log, and finds what an earlier agent still
//! owed ([`Debt`]). It never takes more than half of the ring, and starts anew when told to while it runs.
//!
//! A copy is for all readers of the log, where no record tells what they lack, or for newcomers alone: an image that follows
//! the stream passes over it ([`CopyFor`]). One for newcomers waits while the log is held still, unless a last gasp needs it: what
//! the heir has is all, and nothing is appended behind that. It is not begun anew for whoever joins meanwhile, who gets another.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::locks::lock;
use crate::log::appender::AppendError;
use crate::log::format::{CopyFor, Kind, RegionPayload};
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
    /// Whether the log is about to end, and only what everyone needs may still be appended.
    fn is_still(&self) -> bool;
    /// Whether some destination counts.
    fn anyone_counts(&self) -> bool;
    /// How many destinations there are.
    fn destinations(&self) -> usize;
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
    /// Whether one is under way or wanted, for whomever.
    pub active: bool,
    /// Whether one for all is.
    pub for_all: bool,
    /// LSN just past the last complete copy; 0 if none was made since the agent started.
    pub end: Lsn,
    /// The same of one for all.
    pub end_for_all: Lsn,
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
        self.ask(CopyFor::All, true);
    }

    /// As [`Requester::request`], for a reader with no image that follows the stream: one with such an image goes on. `alone`: nobody
    /// else takes a copy for newcomers that is under way, which is of no use then.
    pub fn request_for_newcomer(&self, alone: bool) {
        self.ask(CopyFor::Newcomers, alone);
    }

    fn ask(&self, whom: CopyFor, alone: bool) {
        let mut wanted = lock(&self.0.wanted);
        match whom {
            CopyFor::All => wanted.for_all += 1,
            CopyFor::Newcomers => {
                wanted.for_newcomers += 1;
                wanted.alone += u64::from(alone);
            }
        }
        // Both under the lock: a copy that ends just now must find neither taken back behind it.
        self.0.log().owe(debt(whom));
        self.0.busy.store(true, SeqCst);
        drop(wanted);
        self.0.asked.notify_all();
    }
}

/// How it is noted that a copy is owed.
fn debt(whom: CopyFor) -> Debt {
    match whom {
        CopyFor::All => Debt::Copy,
        CopyFor::Newcomers => Debt::Newcomer,
    }
}

struct Shared {
    source: Arc<dyn SyncSource>,
    wanted: Mutex<Wanted>,
    asked: Condvar,
    /// A last gasp needs the copy for newcomers.
    needed: AtomicBool,
    /// Held while something is appended for newcomers.
    for_newcomers: Mutex<()>,
    /// A destination or archive takes records at present.
    flowing: AtomicBool,
    stop: AtomicBool,
    busy: AtomicBool,
    done: AtomicU64,
    total: AtomicU64,
    end: AtomicU64,
    end_for_all: AtomicU64,
    error: Mutex<Option<String>>,
}

/// Copies asked for so far.
#[derive(Clone, Copy, Debug, Default)]
struct Wanted {
    /// One that began earlier is of no use.
    for_all: u64,
    /// One that began earlier is of no use to who asked.
    for_newcomers: u64,
    /// Of these, those for which one that is under way is given up.
    alone: u64,
}

/// What the thread is at.
#[derive(Clone, Copy, Debug)]
struct Errand {
    /// When it began.
    wanted: Wanted,
    whom: CopyFor,
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
        let log = source.appender().log();
        let owed = log.owes(Debt::Copy) || log.owes(Debt::Newcomer);
        let shared = Arc::new(Shared {
            source,
            wanted: Mutex::default(),
            needed: AtomicBool::new(false),
            asked: Condvar::new(),
            for_newcomers: Mutex::new(()),
            flowing: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            busy: AtomicBool::new(owed),
            done: AtomicU64::new(0),
            total: AtomicU64::new(0),
            end: AtomicU64::new(0),
            end_for_all: AtomicU64::new(0),
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

    /// See [`Requester::request_for_newcomer`].
    pub fn request_for_newcomer(&self, alone: bool) {
        self.requester().request_for_newcomer(alone);
    }

    /// Whether a copy for newcomers goes on although the source is still.
    pub fn set_needed(&self, needed: bool) {
        self.shared.needed.store(needed, SeqCst);
    }

    /// Waits for what was being appended for newcomers when the source became still.
    pub fn await_stillness(&self) {
        drop(lock(&self.shared.for_newcomers));
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

    /// Whether one for all is under way or wanted: until it is complete no reader has everything.
    pub fn is_active_for_all(&self) -> bool {
        self.shared.log().owes(Debt::Copy)
    }

    /// How it is coming along.
    pub fn view(&self) -> SyncView {
        SyncView {
            done: self.shared.done.load(Relaxed),
            total: self.shared.total.load(Relaxed),
            active: self.is_active(),
            for_all: self.is_active_for_all(),
            end: Lsn(self.shared.end.load(Relaxed)),
            end_for_all: Lsn(self.shared.end_for_all.load(Relaxed)),
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
        while let Some(wanted) = self.next() {
            self.busy.store(true, SeqCst);
            let log = self.log();
            let whom = match log.is_ahead() || log.owes(Debt::Copy) {
                true => CopyFor::All,
                false => CopyFor::Newcomers,
            };
            // Before there is a `SyncBegin`, which nothing but a complete copy takes back.
            log.owe(debt(whom));
            let mut errand = Errand { wanted, whom };
            let made = self.close_gap(errand).and_then(|begun| {
                if begun {
                    // The application may have gone ahead just now.
                    log.owe(Debt::Copy);
                    errand.whom = CopyFor::All;
                }
                self.copy(begun, &mut errand)
            });
            match made {
                Ok(end) => {
                    self.end.store(end.0, Relaxed);
                    *lock(&self.error) = None;
                    // Unless asked for again meanwhile. Idle only once an agent that comes after us would be, too.
                    let asked = lock(&self.wanted);
                    if errand.whom == CopyFor::All {
                        self.end_for_all.store(end.0, Relaxed);
                        if asked.for_all == errand.wanted.for_all {
                            log.settle(Debt::Copy);
                        }
                    }
                    // Newcomers take whichever copy comes.
                    if asked.for_newcomers == errand.wanted.for_newcomers {
                        log.settle(Debt::Newcomer);
                    }
                    let owes = log.owes(Debt::Copy) || log.owes(Debt::Newcomer);
                    self.busy.store(owes, SeqCst);
                }
                // It is still owed.
                Err(Cut::Superseded | Cut::Ahead(_)) => {}
                Err(error) => {
                    tracing::error!(%error, "a copy of the regions failed and starts anew");
                    *lock(&self.error) = Some(error.to_string());
                    self.keep_room();
                    self.pause(AGAIN);
                }
            }
            self.keep_room();
        }
    }

    /// Waits until a copy is owed that may be made, or the application is ahead; what was wanted then.
    fn next(&self) -> Option<Wanted> {
        let (mut wanted, mut free) = (lock(&self.wanted), self.log().free());
        loop {
            if self.stop.load(SeqCst) {
                return None;
            }
            let log = self.log();
            let newcomers = log.owes(Debt::Newcomer) && !self.puts_off();
            if log.owes(Debt::Copy) || newcomers || (log.is_ahead() && self.flowing.load(SeqCst)) {
                return Some(*wanted);
            }
            self.keep_room_again(&mut free);
            wanted = self.asked.wait_timeout(wanted, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Brings the application back onto the log if it is ahead. Whether it was: then a `SyncBegin` stands in the log.
    fn close_gap(&self, errand: Errand) -> Result<bool, Cut> {
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
            self.check(errand)?;
            thread::sleep(PAUSE);
        }
        // Pages may be read only when nobody sets bits for stores that came before the flag was cleared.
        while log.bits_in_flight(&Owner::confirmed_dead) {
            self.check(errand)?;
            thread::sleep(PAUSE);
        }
        for id in 0..log.spec().regions.min(u32::from(u16::MAX)) {
            // Everything is copied, so what the bits say is of no further use.
            log.clear_dirty(RegionId(id as u16));
        }
        Ok(true)
    }

    fn copy(&self, begun: bool, errand: &mut Errand) -> Result<Lsn, Cut> {
        let appender = self.source.appender();
        if !begun {
            let _may = self.room(*errand)?;
            // Whoever has asked by now finds the beginning behind its own.
            errand.wanted = *lock(&self.wanted);
            appender.append(Kind::SyncBegin, RegionId(0), errand.whom as u64, &[])?;
        }
        self.keep_beside(0);
        let errand = *errand;
        let regions = self.create_regions(errand)?;
        self.done.store(0, Relaxed);
        self.total.store(regions.iter().map(|r| r.len).sum(), Relaxed);
        for region in &regions {
            self.copy_region(region, errand)?;
        }
        let may = self.room(errand)?;
        let end = appender.append(Kind::SyncEnd, RegionId(0), 0, &[])?;
        self.push();
        drop(may);
        Ok(end)
    }

    /// Creates every region in the new image, as it is by then. After SyncBegin: what is added later is told of by a record
    /// behind it.
    ///
    /// The program's own record of a change may lie between the look at a region and the record that creates it, where the
    /// new image knows nothing of the region yet: so it is looked again until nothing that was created here has changed.
    fn create_regions(&self, errand: Errand) -> Result<Vec<SyncRegion>, Cut> {
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
                let _may = self.room(errand)?;
                appender.append(Kind::CopyUnlink, id, 0, &[])?;
                created.remove(&id);
            }
            for region in due {
                let _may = self.room(errand)?;
                appender.append(Kind::CopyCreate, region.id, 0, &region.creation)?;
                created.insert(region.id, region);
            }
        }
        Err(Cut::Restless)
    }

    fn copy_region(&self, region: &SyncRegion, errand: Errand) -> Result<(), Cut> {
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
                self.copy_chunk(region, &content, at, &mut buf[..len], errand)?;
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
        errand: Errand,
    ) -> Result<(), Cut> {
        let read = |e: io::Error| Cut::Read(region.id, e);
        let got = content.read_at(buf, at).map_err(read)?;
        let pages = buf[..got].chunks(PAGE).map(|page| page.iter().any(|b| *b != 0));
        let mut copied = 0;
        for (first, count) in runs(pages) {
            let (from, len) = (first * PAGE, (count * PAGE).min(got - first * PAGE));
            let _may = self.room(errand)?;
            let appender = self.source.appender();
            match appender.copy_from_file(region.id, at + from as u64, len, region.file.as_fd()) {
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

    /// Waits until less than half of the ring is in use, or a quarter where several share it, so that the copy never pushes the application ahead. While what is
    /// returned is held, one record may be appended.
    fn room(&self, errand: Errand) -> Result<Option<MutexGuard<'_, ()>>, Cut> {
        let log = self.log();
        loop {
            let may = matches!(errand.whom, CopyFor::Newcomers).then(|| lock(&self.for_newcomers));
            self.check(errand)?;
            if log.is_ahead() {
                return Err(Cut::Ahead(Ahead(log.tail())));
            }
            // See `ship::space` for why not as much where several share the ring.
            let share = if self.source.destinations() > 1 { 4 } else { 2 };
            if log.tail().since(log.free()) < log.spec().ring_bytes / share {
                return Ok(may);
            }
            drop(may);
            self.push();
            thread::sleep(PAUSE);
        }
    }

    /// Publishes without waiting for anyone: the application may be frozen in the middle of a record.
    fn push(&self) {
        self.log().publish_filled(&Owner::confirmed_dead);
        self.log().wake_agent(SleepDepth::Deep);
    }

    fn check(&self, errand: Errand) -> Result<(), Cut> {
        let put_off = errand.whom == CopyFor::Newcomers && self.puts_off();
        let (began, now) = (errand.wanted, *lock(&self.wanted));
        let cut = errand.whom == CopyFor::Newcomers && now.alone != began.alone;
        let superseded = cut || now.for_all != began.for_all || self.stop.load(SeqCst);
        if superseded || put_off { Err(Cut::Superseded) } else { Ok(()) }
    }

    /// Whether newcomers have to wait.
    fn puts_off(&self) -> bool {
        self.source.is_still() && !self.needed.load(SeqCst)
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
