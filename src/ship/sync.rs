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
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::locks::lock;
use crate::log::appender::AppendError;
use crate::log::format::{CopyFor, Kind, RECORD_HEADER, RegionPayload, SamePayload};
use crate::log::{Ahead, Appender, Debt, LogRegion, Owner, SleepDepth};
use crate::region::content::Content;
use crate::types::{Lsn, PAGE, RegionId};
use base::{Base, Compared, Comparison, UNIT};
use stretches::{extent, runs};
use zerocopy::IntoBytes;

pub mod base;
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
    /// How many destinations there are.
    fn destinations(&self) -> usize;
    /// What the readers of a copy that has begun have already, if all have the same: so for a single one. `begin`: where its
    /// `SyncBegin` ends.
    fn base(&self, whom: CopyFor, begin: Lsn) -> Option<Box<dyn Base>>;
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

    /// As [`Requester::request_for_newcomer`], for the reader whose stream has this number, which has an image from before; `before`:
    /// its earlier stream's, which has ended.
    pub fn request_for_one(&self, stream: u32, before: Option<u32>) {
        let mut wanted = lock(&self.0.wanted);
        if let Some(before) = before {
            wanted.ones.remove(&before);
        }
        wanted.ones.insert(stream);
        self.owe(CopyFor::One(stream), wanted);
    }

    fn ask(&self, whom: CopyFor, alone: bool) {
        let mut wanted = lock(&self.0.wanted);
        match whom {
            CopyFor::All => wanted.asked.for_all += 1,
            CopyFor::Newcomers | CopyFor::One(_) => {
                wanted.asked.for_newcomers += 1;
                wanted.asked.alone += u64::from(alone);
            }
        }
        self.owe(whom, wanted);
    }

    fn owe(&self, whom: CopyFor, wanted: MutexGuard<'_, Wanted>) {
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
        CopyFor::Newcomers | CopyFor::One(_) => Debt::Newcomer,
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
    /// A copy waits for room in the ring.
    waits: AtomicBool,
    stop: AtomicBool,
    busy: AtomicBool,
    done: AtomicU64,
    total: AtomicU64,
    end: AtomicU64,
    end_for_all: AtomicU64,
    error: Mutex<Option<String>>,
}

/// Copies asked for.
#[derive(Debug, Default)]
struct Wanted {
    asked: Asked,
    /// Up to this number, those for newcomers have been made.
    made_for_newcomers: u64,
    /// Streams of readers that have an image from before, and lack a copy.
    ones: BTreeSet<u32>,
}

/// Those for which any reader will do that takes them: how many so far.
#[derive(Clone, Copy, Debug, Default)]
struct Asked {
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
    asked: Asked,
    whom: CopyFor,
}

/// A complete copy.
struct Made {
    /// Just past it.
    end: Lsn,
    /// Whoever had asked by its beginning has it, if it is for them.
    asked: Asked,
    ones: BTreeSet<u32>,
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
        let owed_newcomers = log.owes(Debt::Newcomer);
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

    /// See [`Requester::request_for_one`].
    pub fn request_for_one(&self, stream: u32, before: Option<u32>) {
        self.requester().request_for_one(stream, before);
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
        while let Some((mut errand, ones)) = self.next() {
            self.busy.store(true, SeqCst);
            let log = self.log();
            // Before there is a `SyncBegin`, which nothing but a complete copy takes back.
            log.owe(debt(errand.whom));
            let made = self.close_gap(errand).and_then(|gap| {
                if gap.is_some() {
                    // The application may have gone ahead just now.
                    log.owe(Debt::Copy);
                    errand.whom = CopyFor::All;
                }
                self.copy(gap, &mut errand, ones)
            });
            match made {
                Ok(made) => self.settle(errand.whom, &made),
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

    /// Takes note of a complete copy; what has been asked for meanwhile stays owed. Idle only once an agent that comes after us would
    /// be, too.
    fn settle(&self, whom: CopyFor, made: &Made) {
        self.end.store(made.end.0, Relaxed);
        *lock(&self.error) = None;
        let mut wanted = lock(&self.wanted);
        if whom == CopyFor::All {
            self.end_for_all.store(made.end.0, Relaxed);
            if wanted.asked.for_all == made.asked.for_all {
                self.log().settle(Debt::Copy);
            }
        }
        match whom {
            CopyFor::One(stream) => _ = wanted.ones.remove(&stream),
            // Newcomers take whichever copy comes.
            CopyFor::All | CopyFor::Newcomers => {
                wanted.made_for_newcomers = made.asked.for_newcomers;
                wanted.ones.retain(|stream| !made.ones.contains(stream));
            }
        }
        self.settle_newcomers(&wanted);
    }

    /// Takes note of it if no newcomer lacks a copy any more.
    fn settle_newcomers(&self, wanted: &Wanted) {
        if wanted.ones.is_empty() && wanted.asked.for_newcomers == wanted.made_for_newcomers {
            self.log().settle(Debt::Newcomer);
        }
        let owes = self.log().owes(Debt::Copy) || self.log().owes(Debt::Newcomer);
        self.busy.store(owes, SeqCst);
    }

    /// Waits until a copy is owed that may be made, or the application is ahead; and whose copies were asked for by then.
    fn next(&self) -> Option<(Errand, BTreeSet<u32>)> {
        let (mut wanted, mut free) = (lock(&self.wanted), self.log().free());
        loop {
            if self.stop.load(SeqCst) {
                return None;
            }
            let log = self.log();
            let newcomers = log.owes(Debt::Newcomer) && !self.puts_off();
            if log.owes(Debt::Copy) || newcomers || (log.is_ahead() && self.flowing.load(SeqCst)) {
                let one = wanted.ones.first().map(|stream| CopyFor::One(*stream));
                let whom = match log.is_ahead() || log.owes(Debt::Copy) {
                    true => CopyFor::All,
                    false => one.unwrap_or(CopyFor::Newcomers),
                };
                return Some((Errand { asked: wanted.asked, whom }, wanted.ones.clone()));
            }
            self.keep_room_again(&mut free);
            wanted = self.asked.wait_timeout(wanted, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Brings the application back onto the log if it is ahead: then a `SyncBegin` stands there, and it is said where that ends.
    fn close_gap(&self, errand: Errand) -> Result<Option<Lsn>, Cut> {
        let log = self.log();
        if !log.is_ahead() {
            return Ok(None);
        }
        let begin = loop {
            log.publish_filled(&Owner::confirmed_dead);
            // The application appends again at once.
            self.keep_beside(0);
            let tail = log.tail();
            if log.free() == tail && log.close_gap() {
                break tail.advance(RECORD_HEADER);
            }
            self.check(errand)?;
            thread::sleep(PAUSE);
        };
        // Pages may be read only when nobody sets bits for stores that came before the flag was cleared.
        while log.bits_in_flight(&Owner::confirmed_dead) {
            self.check(errand)?;
            thread::sleep(PAUSE);
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
        let mut base = self.source.base(errand.whom, begin);
        for region in &regions {
            self.copy_region(region, errand, &mut base)?;
        }
        let may = self.room(errand)?;
        let end = appender.append(Kind::SyncEnd, RegionId(0), 0, &[])?;
        self.push();
        drop(may);
        Ok(Made { end, asked: errand.asked, ones })
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

    fn copy_region(
        &self,
        region: &SyncRegion,
        errand: Errand,
        base: &mut Option<Box<dyn Base>>,
    ) -> Result<(), Cut> {
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
        let mut comparison = base.as_deref_mut().map(|base| Comparison::new(base, region.name()));
        let mut lost = None;
        while let Some((start, end)) = stretch(at).map_err(read)? {
            at = start;
            while at < end {
                let unit = at / UNIT;
                let part = (at, end.min((unit + 1) * UNIT));
                let same = match self.refer(region, &content, part, &mut comparison, errand)? {
                    Ok(same) => same,
                    Err(error) => {
                        (comparison, lost) = (None, Some(error));
                        0
                    }
                };
                while at < part.1 {
                    let len = chunk.min((part.1 - at) as usize);
                    let same = same >> ((at - unit * UNIT) / PAGE as u64);
                    self.copy_chunk(region, &content, at, &mut buf[..len], same, errand)?;
                    at += len as u64;
                    self.done.store(before + at, Relaxed);
                }
            }
        }
        if let Some(error) = lost {
            tracing::info!(%error, "copied whole from here on");
            *base = None;
        }
        self.done.store(before + region.len, Relaxed);
        Ok(())
    }

    /// Refers to those pages of a part of one unit which the reader has already and that are not zero; which these are. Waits until
    /// the reader says what it has.
    fn refer(
        &self,
        region: &SyncRegion,
        content: &Content<'_>,
        part: (u64, u64),
        compared: &mut Option<Comparison<'_>>,
        errand: Errand,
    ) -> Result<io::Result<u64>, Cut> {
        let Some(comparison) = compared else { return Ok(Ok(0)) };
        let unit = part.0 / UNIT;
        let (base, same) = loop {
            match comparison.unit(content, unit) {
                Ok(Compared::Pages(base, same)) => break (base, same),
                Ok(Compared::Nothing) => {
                    *compared = None;
                    return Ok(Ok(0));
                }
                Ok(Compared::NotBegun) => {}
                Err(error) => return Ok(Err(error)),
            }
            // What it does not see yet may not have been shipped.
            self.check(errand)?;
            self.push();
            thread::sleep(PAUSE);
        };
        let pages = same & self.pages_with_content(region, content, part)?;
        if pages == 0 {
            return Ok(Ok(0));
        }
        let payload = SamePayload { pages, base: base.0, reserved: [0; 3] };
        let _may = self.room(errand)?;
        let mut still = Ok(false);
        // A record of what is stored to them meanwhile may come before ours: so in its place.
        self.source.appender().append_around(
            Kind::CopySame,
            region.id,
            unit * UNIT,
            payload.as_bytes(),
            || {
                still = comparison.still(content, unit, pages);
                matches!(still, Ok(true))
            },
        )?;
        let still = still.map_err(|error| Cut::Read(region.id, error))?;
        Ok(Ok(if still { pages } else { 0 }))
    }

    /// A bit for each page of a part of one unit that is not zero.
    fn pages_with_content(
        &self,
        region: &SyncRegion,
        content: &Content<'_>,
        (from, to): (u64, u64),
    ) -> Result<u64, Cut> {
        let mut bytes = vec![0; (to - from) as usize];
        let got = content.read_at(&mut bytes, from).map_err(|e| Cut::Read(region.id, e))?;
        let first = (from % UNIT) as usize / PAGE;
        let pages = bytes[..got].chunks(PAGE).enumerate();
        Ok(pages.map(|(i, page)| u64::from(page.iter().any(|b| *b != 0)) << (first + i)).sum())
    }

    /// Appends the runs of pages that are not zero, but for those that have a bit in `same`. A page that is zero now and is stored to
    /// later is in the log by that store's own record, or was never flushed.
    fn copy_chunk(
        &self,
        region: &SyncRegion,
        content: &Content<'_>,
        at: u64,
        buf: &mut [u8],
        same: u64,
        errand: Errand,
    ) -> Result<(), Cut> {
        let read = |e: io::Error| Cut::Read(region.id, e);
        let got = content.read_at(buf, at).map_err(read)?;
        let pages = buf[..got].chunks(PAGE).enumerate();
        let is_due = pages.map(|(i, page)| same >> i & 1 == 0 && page.iter().any(|b| *b != 0));
        let mut copied = 0;
        for (first, count) in runs(is_due) {
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
            thread::sleep(PAUSE);
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
        let cut = match errand.whom {
            CopyFor::All => false,
            CopyFor::Newcomers => now.alone != began.alone,
            CopyFor::One(stream) => !wanted.ones.contains(&stream),
        };
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
