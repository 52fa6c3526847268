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

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::locks::lock;
use crate::log::format::{CopyFor, Kind, RECORD_HEADER, RegionPayload};
use crate::log::{Ahead, Appender, Debt, LogRegion, Owner, SleepDepth};
use crate::types::{Lsn, RegionId};
use crate::waits::{self, Thread};
use base::Base;
use region::Copying;

pub mod base;
mod pace;
mod region;
mod stretches;
mod wanted;

pub use wanted::Requester;
use wanted::{Asked, Errand, Made, Wanted, debt};

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

/// From then on it is said how fast a copy is.
const TELLS: Duration = Duration::from_millis(500);

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
    /// How many destinations there are.
    fn destinations(&self) -> usize;
    /// Bytes a second that a copy may send at most: no limit, unless said.
    fn limit(&self) -> Option<u64> {
        None
    }
    /// Whether the destination whose stream has this number is connected, if there is one: nobody, unless said.
    fn reader(&self, _stream: u32) -> Option<bool> {
        None
    }
    /// Up to where all that are connected and take this copy have taken the log: nobody does, unless said.
    fn taken_to(&self, _whom: CopyFor) -> Option<Lsn> {
        None
    }
    /// What the readers of a copy that has begun have already, if all have the same: so for a single one. `begin`: where its
    /// `SyncBegin` ends. Nothing, unless said.
    fn base(&self, _whom: CopyFor, _begin: Lsn) -> Option<Box<dyn Base>> {
        None
    }
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
    /// It was changed while no program had it open, and no record tells of that.
    pub changed: bool,
    /// Kept until it is copied, so that its number is not another file's meanwhile.
    pub held: Arc<dyn Send + Sync>,
}

impl SyncRegion {
    fn name(&self) -> &str {
        let name = self.creation.get(size_of::<RegionPayload>()..).unwrap_or_default();
        str::from_utf8(name).unwrap_or_default()
    }
}

/// How a copy is coming along.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SyncView {
    /// Bytes of regions looked at.
    pub done: u64,
    /// Bytes of regions to be looked at.
    pub total: u64,
    /// Bytes of regions looked at in a second, since it began; 0 while that says nothing.
    pub bytes_per_s: u64,
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
    thread: Option<Thread<()>>,
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
    /// A copy waits for room in the ring.
    waits: AtomicBool,
    stop: AtomicBool,
    busy: AtomicBool,
    done: AtomicU64,
    total: AtomicU64,
    /// Since when regions are looked at.
    began: Mutex<Option<Instant>>,
    end: AtomicU64,
    end_for_all: AtomicU64,
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
        let log = source.appender().log();
        let owed_newcomers = log.owes(Debt::Newcomer);
        let owed = owed_newcomers || log.owes(Debt::Copy);
        let shared = Arc::new(Shared {
            source,
            // Whom an earlier agent owed one is not known.
            wanted: Mutex::new(Wanted {
                asked: Asked { for_newcomers: u64::from(owed_newcomers), ..Asked::default() },
                ..Wanted::default()
            }),
            needed: AtomicBool::new(false),
            asked: Condvar::new(),
            for_newcomers: Mutex::new(()),
            flowing: AtomicBool::new(false),
            waits: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            busy: AtomicBool::new(owed),
            done: AtomicU64::new(0),
            total: AtomicU64::new(0),
            began: Mutex::default(),
            end: AtomicU64::new(0),
            end_for_all: AtomicU64::new(0),
            error: Mutex::default(),
        });
        let theirs = shared.clone();
        let thread = waits::spawn(format!("sync-{name}"), move || theirs.run())?;
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

    /// See [`Requester::request_for_one`].
    pub fn request_for_one(&self, stream: u32, alone: bool) {
        self.requester().request_for_one(stream, alone);
    }

    /// The reader whose stream has this number needs no copy of its own any more: what it had asked for is called off, since it
    /// passes over a copy whose beginning it does not wait for.
    pub fn has_all(&self, stream: u32) {
        let mut wanted = lock(&self.shared.wanted);
        if wanted.ones.remove(&stream) {
            self.shared.settle_newcomers(&wanted);
        }
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

    /// Whether a copy is held up by what others keep of the ring.
    pub fn waits_for_room(&self) -> bool {
        self.shared.waits.load(Relaxed)
    }

    /// Whether a copy is under way or wanted.
    pub fn is_active(&self) -> bool {
        self.shared.busy.load(SeqCst)
    }

    /// Whether a copy is under way or wanted that the reader of this stream takes, if it has no image that follows the stream.
    pub fn is_for(&self, stream: u32) -> bool {
        let wanted = lock(&self.shared.wanted);
        self.is_active_for_all()
            || wanted.ones.contains(&stream)
            || wanted.asked.for_newcomers != wanted.made_for_newcomers
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
            bytes_per_s: self.shared.bytes_per_s(),
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
        let mut attempts = 0;
        while let Some((mut errand, ones)) = self.next() {
            attempts += 1;
            let made = self.close_gap(errand).and_then(|gap| {
                if gap.is_some() {
                    // The application may have gone ahead just now.
                    errand.whom = CopyFor::All;
                }
                self.copy(gap, &mut errand, ones)
            });
            match made {
                Ok(made) => {
                    self.settle(errand.whom, &made);
                    let (Made { sent, referred, .. }, whom) = (&made, errand.whom);
                    tracing::info!(?whom, sent, referred, attempts, "regions copied");
                    attempts = 0;
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

    /// Waits until a copy is owed that may be made, or the application is ahead; and whose copies were asked for by then.
    fn next(&self) -> Option<(Errand, BTreeSet<u32>)> {
        let (mut wanted, mut free) = (lock(&self.wanted), self.log().free());
        loop {
            if self.stop.load(SeqCst) {
                return None;
            }
            let log = self.log();
            if log.owes(Debt::Newcomer) {
                // What a stream that has ended asked for, nobody would take.
                wanted.ones.retain(|stream| self.source.reader(*stream).is_some());
                self.settle_newcomers(&wanted);
            }
            let newcomers = log.owes(Debt::Newcomer) && !self.puts_off();
            if log.owes(Debt::Copy) || newcomers || (log.is_ahead() && self.flowing.load(SeqCst)) {
                let whom = match log.is_ahead() || log.owes(Debt::Copy) {
                    true => CopyFor::All,
                    false => self.first_of(&wanted),
                };
                // Under the lock, and before there is a `SyncBegin`, which nothing but a complete copy takes back.
                log.owe(debt(whom));
                self.busy.store(true, SeqCst);
                return Some((Errand { asked: wanted.asked, whom }, wanted.ones.clone()));
            }
            self.keep_room_again(&mut free);
            wanted = waits::wait_timeout(&self.asked, &self.wanted, wanted, LOOK);
        }
    }

    /// Whose copy comes first, where none is for all: that of who takes it now.
    fn first_of(&self, wanted: &Wanted) -> CopyFor {
        let connected = wanted.ones.iter().find(|stream| self.source.reader(**stream) == Some(true));
        match (connected, wanted.ones.first()) {
            (Some(stream), _) => CopyFor::One(*stream),
            (None, Some(stream)) if wanted.asked.for_newcomers == wanted.made_for_newcomers => {
                CopyFor::One(*stream)
            }
            _ => CopyFor::Newcomers,
        }
    }

    /// Brings the application back onto the log if it is ahead: then a `SyncBegin` stands there, and it is said where that ends.
    fn close_gap(&self, errand: Errand) -> Result<Option<Lsn>, Cut> {
        let log = self.log();
        if !log.is_ahead() {
            return Ok(None);
        }
        // Before there is a `SyncBegin` for all, whatever becomes of the copy that it begins.
        log.owe(Debt::Copy);
        let begin = loop {
            log.publish_filled(&Owner::confirmed_dead);
            // The application appends again at once.
            self.keep_beside(0);
            let tail = log.tail();
            if log.free() == tail && log.close_gap() {
                break tail.advance(RECORD_HEADER);
            }
            self.check(errand)?;
            waits::sleep(PAUSE);
        };
        // Pages may be read only when nobody sets bits for stores that came before the flag was cleared.
        while log.bits_in_flight(&Owner::confirmed_dead) {
            self.check(errand)?;
            waits::sleep(PAUSE);
        }
        for id in 0..log.spec().regions.min(u32::from(u16::MAX)) {
            // Everything is copied, so what the bits say is of no further use.
            log.clear_dirty(RegionId(id as u16));
        }
        Ok(Some(begin))
    }

    /// `gap`: where the `SyncBegin` of a gap ends, if that is what begins.
    fn copy(&self, gap: Option<Lsn>, errand: &mut Errand, mut ones: BTreeSet<u32>) -> Result<Made, Cut> {
        let appender = self.source.appender();
        let begin = match gap {
            Some(begin) => begin,
            None => {
                let _may = self.room(*errand)?;
                // Whoever has asked by now finds the beginning behind its own.
                let wanted = lock(&self.wanted);
                if errand.whom != CopyFor::All && wanted.asked.for_all != errand.asked.for_all {
                    return Err(Cut::Superseded);
                }
                errand.asked = wanted.asked;
                ones.clone_from(&wanted.ones);
                drop(wanted);
                appender.append(Kind::SyncBegin, RegionId(0), errand.whom.offset(), &[])?
            }
        };
        self.keep_beside(0);
        let errand = *errand;
        let regions = self.create_regions(errand)?;
        self.done.store(0, Relaxed);
        self.total.store(regions.iter().map(|r| r.len).sum(), Relaxed);
        *lock(&self.began) = Some(waits::now());
        let mut copying = Copying::new(self.source.base(errand.whom, begin), self.source.limit());
        for region in &regions {
            self.copy_region(region, errand, &mut copying)?;
        }
        let may = self.room(errand)?;
        let end = appender.append(Kind::SyncEnd, RegionId(0), 0, &[])?;
        self.push();
        drop(may);
        let Copying { sent, referred, .. } = copying;
        Ok(Made { end, asked: errand.asked, ones, sent, referred })
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
            // The look may find something to record, and holds up whoever reads the log meanwhile.
            drop(self.room(errand)?);
            let listed = self.source.regions().map_err(Cut::List)?;
            if errand.whom != CopyFor::All && listed.iter().any(|region| region.changed) {
                // Those that pass over a copy for others would never hear of it.
                lock(&self.wanted).asked.for_all += 1;
                self.log().owe(Debt::Copy);
                return Err(Cut::Superseded);
            }
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

    /// Waits until less than half of the ring is in use, or a quarter where several share it, so that the copy never pushes the application ahead. While what is
    /// returned is held, one record may be appended.
    fn room(&self, errand: Errand) -> Result<Option<MutexGuard<'_, ()>>, Cut> {
        let may = self.await_room(errand);
        self.waits.store(false, Relaxed);
        may
    }

    fn await_room(&self, errand: Errand) -> Result<Option<MutexGuard<'_, ()>>, Cut> {
        let log = self.log();
        loop {
            let may = (errand.whom != CopyFor::All).then(|| lock(&self.for_newcomers));
            self.check(errand)?;
            if log.is_ahead() {
                return Err(Cut::Ahead(Ahead(log.tail())));
            }
            if log.tail().since(log.free()) < log.spec().ring_bytes / self.share() {
                return Ok(may);
            }
            drop(may);
            self.waits.store(true, Relaxed);
            self.push();
            waits::sleep(PAUSE);
        }
    }

    /// A copy begins another record while less than one such part of the ring is in use. See `ship::space` for why less where several
    /// share it.
    fn share(&self) -> u64 {
        if self.source.destinations() > 1 { 4 } else { 2 }
    }

    /// Publishes without waiting for anyone: the application may be frozen in the middle of a record.
    fn push(&self) {
        self.log().publish_filled(&Owner::confirmed_dead);
        self.log().wake_agent(SleepDepth::Deep);
    }

    fn check(&self, errand: Errand) -> Result<(), Cut> {
        let put_off = errand.whom != CopyFor::All && self.puts_off();
        let wanted = lock(&self.wanted);
        let (began, now) = (errand.asked, wanted.asked);
        let is_called_off = |stream| !wanted.ones.contains(&stream) || self.source.reader(stream).is_none();
        let called_off = matches!(errand.whom, CopyFor::One(stream) if is_called_off(stream));
        let superseded =
            called_off || now.alone != began.alone || now.for_all != began.for_all || self.stop.load(SeqCst);
        if superseded || put_off { Err(Cut::Superseded) } else { Ok(()) }
    }

    /// Whether newcomers have to wait.
    fn puts_off(&self) -> bool {
        self.source.is_still() && !self.needed.load(SeqCst)
    }

    fn bytes_per_s(&self) -> u64 {
        let took = lock(&self.began).map(waits::since).filter(|took| *took >= TELLS);
        took.map_or(0, |took| (self.done.load(Relaxed) as f64 / took.as_secs_f64()) as u64)
    }

    fn pause(&self, time: Duration) {
        let (until, mut wanted) = (waits::now() + time, lock(&self.wanted));
        while !self.stop.load(SeqCst) && waits::now() < until {
            let left = until.saturating_duration_since(waits::now());
            wanted = waits::wait_timeout(&self.asked, &self.wanted, wanted, left);
        }
    }

    fn log(&self) -> &LogRegion {
        self.source.appender().log()
    }
}

#[cfg(test)]
mod tests;
