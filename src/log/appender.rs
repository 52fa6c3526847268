//! Appending: an application's captures, and the agent's own records.
//!
//! Promises: every record's content is taken after its place in the stream; a capture or drain returns only when each record
//! below is complete; nothing here waits for a network or a dead agent; no allocation, and no system call unless the
//! ring is full, a slower appender is in the way, or the agent sleeps. Callers: `session`, and the agent for sync pages.
//!
//! Threads: all methods from any thread. Signal handlers: a capture or drain may interrupt another one of the same thread;
//! such a drain publishes what is complete and does not wait for what it interrupted. A thread must not be
//! cancelled asynchronously inside.

use std::cell::Cell;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Release, SeqCst};
use std::sync::atomic::{AtomicU64, fence};
use std::time::{Duration, Instant};

use super::forked::WipedOnFork;
use super::format::{Kind, OFFSET_BITS, RECORD_HEADER, RecordHeader, SlotState, max_payload, record_span};
use super::layout::LogError;
use super::lines::{LineCopy, touch};
use super::protocol::{self, Blocked, Claimed};
use super::region::{Counter, LogRegion};
use super::slot::Claim;
use super::wait::{SleepDepth, WaitError};
use crate::types::{ByteRange, LINE, Level, Lsn, RegionId};

mod file;
mod kept_back;
mod later;
mod room;
#[cfg(test)]
mod tests;
mod within;

pub use file::AppendError;
pub use later::wait_later;

/// Looks at an incomplete slot before the processor is given away: longer than a copy of a page takes.
const SPINS: u32 = 1000;

/// Times that the processor is given away before sleeping: a preempted owner on a busy machine comes back within these.
const YIELDS: u32 = 20;

/// Sleep between looks after that, and the shortest between looks for room in a full ring.
const NAP: Duration = Duration::from_micros(50);

/// An incomplete slot's owner is looked up after this long: a lookup takes system calls.
const SUSPECT_AFTER: Duration = Duration::from_millis(2);

thread_local! {
    /// How many slots this thread is filling: more than none where a signal handler came in between.
    static FILLING: Cell<u32> = const { Cell::new(0) };
}

/// The application runs ahead of the log: what was to be recorded stands in the dirty bitmap instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the log is full; the record is part of the gap after {}", .0.0 - 1)]
pub struct Ahead(
    /// What a drain would return: one past the end of the log, which no record reaches before the gap is closed.
    pub Lsn,
);

/// A process's means of appending to one log.
pub struct Appender {
    log: Arc<LogRegion>,
    session: u32,
    /// One more than the index of the process's appender cell; 0 in a forked child; [`NO_CELL`] in one that found none.
    cell: WipedOnFork,
    copy: LineCopy,
    max_payload: usize,
    /// Every slot below is complete: where a capture begins to look for lower ones that are not. Always true, seldom newest.
    settled: AtomicU64,
    /// Whether captures and drains wait for slower appenders.
    waits: bool,
    /// See [`Appender::keep_back`].
    kept_back: AtomicU64,
}

const NO_CELL: u32 = u32::MAX;

/// Owner of a stop that a process without a cell sets: nobody asks who set one.
const NOBODY: u16 = 0;

/// Times that the ring may look full, and not become ahead, before an appender gives up: each means that others took what
/// became free, so that many only happen where the words are forged.
const MAX_ATTEMPTS: u32 = 1000;

impl Appender {
    /// Takes an appender cell of `log` for this process; `session` is the number that the agent gave it.
    pub fn attach(log: Arc<LogRegion>, session: u32) -> Result<Appender, LogError> {
        Appender::new(log, session, true)
    }

    /// As [`Appender::attach`], for the agent: it never waits for an application that is slow or hostile, since it makes no stores
    /// of its own whose order matters. Its [`Appender::drain`] publishes what is complete.
    pub fn for_agent(log: Arc<LogRegion>, session: u32) -> Result<Appender, LogError> {
        Appender::new(log, session, false)
    }

    fn new(log: Arc<LogRegion>, session: u32, waits: bool) -> Result<Appender, LogError> {
        let appenders = log.spec().appenders;
        let cell = WipedOnFork::new()
            .map_err(|source| LogError::System { what: "a page that is wiped on fork", source })?;
        let index = log.acquire_cell(session).ok_or_else(|| {
            log.count(Counter::Unrecorded, 1);
            LogError::NoCell(appenders.into())
        })?;
        cell.word().store(u32::from(index) + 1, Release);
        let max_payload = max_payload(log.spec().ring_bytes) as usize;
        let settled = AtomicU64::new(log.published().0);
        let (copy, kept_back) = (LineCopy::detect(), AtomicU64::new(0));
        Ok(Appender { cell, session, copy, max_payload, settled, waits, kept_back, log })
    }

    /// The log.
    pub fn log(&self) -> &Arc<LogRegion> {
        &self.log
    }

    /// Records the lines that hold `len` bytes at `src`, which is byte `offset` of `region`, as they are now. To be called
    /// after the stores and before the real flush. The range is widened to whole lines, so a record may reach up to
    /// 63 bytes past the region's end: whoever applies it clips.
    ///
    /// # Safety
    /// The lines are readable until this returns. `src` and `offset` are equal modulo 64.
    #[inline]
    pub unsafe fn capture(&self, region: RegionId, offset: u64, src: *const u8, len: usize) {
        let lead = offset as usize % LINE;
        let (src, offset) = (src.wrapping_sub(lead), offset - lead as u64);
        let total = (lead + len).next_multiple_of(LINE);
        let mut done = 0;
        while done < total {
            let n = (total - done).min(self.max_payload);
            let from = src.wrapping_add(done);
            // SAFETY: the caller vouches for the lines.
            unsafe { touch(from, n) };
            let copied = self.record(Kind::Data, region, offset + done as u64, n, |slot| {
                // SAFETY: the caller vouches for the source, the claim for the slot.
                self.count_torn(unsafe { self.copy.copy(from, slot, n / LINE) });
            });
            match copied {
                Ok(_) => done += n,
                Err(_) if self.note(region, offset + done as u64, total - done) => return,
                Err(_) => {} // The gap was closed meanwhile: record it after all.
            }
        }
    }

    /// As [`Appender::capture`] of `len` bytes at `dst`, byte `offset` of `region`, that were just copied there from `src`
    /// bypassing the cache: lines wholly inside the range are taken from `src`, the two at its edges from `dst`.
    ///
    /// # Safety
    /// As for `capture` with `dst`; and `len` bytes at `src` are readable, do not overlap `dst` and do not change until this
    /// returns.
    pub unsafe fn capture_from(
        &self,
        region: RegionId,
        offset: u64,
        dst: *const u8,
        src: *const u8,
        len: usize,
    ) {
        let head = (LINE - offset as usize % LINE) % LINE;
        let inner = len.saturating_sub(head) & !(LINE - 1);
        if inner == 0 {
            // SAFETY: as the caller vouches.
            return unsafe { self.capture(region, offset, dst, len) };
        }
        if head > 0 {
            // SAFETY: as the caller vouches.
            unsafe { self.capture(region, offset, dst, head) };
        }
        let mut done = head;
        while done < head + inner {
            let n = (head + inner - done).min(self.max_payload);
            let from = src.wrapping_add(done);
            // SAFETY: the caller vouches for the source.
            unsafe { touch(from, n) };
            let at = offset + done as u64;
            let copied = self.record(Kind::Data, region, at, n, |slot| {
                // SAFETY: the caller vouches for the source, the claim for the slot; they cannot overlap.
                unsafe { ptr::copy_nonoverlapping(from, slot, n) };
            });
            if copied.is_err() {
                // SAFETY: as the caller vouches. The lines stand in `dst` as well, whichever way they get recorded.
                return unsafe { self.capture(region, at, dst.wrapping_add(done), len - done) };
            }
            done += n;
        }
        if done < len {
            // SAFETY: as the caller vouches.
            unsafe { self.capture(region, offset + done as u64, dst.wrapping_add(done), len - done) };
        }
    }

    /// Appends a record that is not captured memory. Returns where the next one starts.
    ///
    /// While the application is ahead nothing is recorded: the copy that closes the gap carries what metadata would say.
    ///
    /// # Panics
    /// If the payload is longer than [`max_payload`] of the ring.
    pub fn append(&self, kind: Kind, region: RegionId, offset: u64, payload: &[u8]) -> Result<Lsn, Ahead> {
        assert!(payload.len() <= self.max_payload, "payload of {} bytes", payload.len());
        self.record(kind, region, offset, payload.len(), |slot| {
            // SAFETY: the slot is ours and as long as the payload.
            unsafe { ptr::copy_nonoverlapping(payload.as_ptr(), slot, payload.len()) };
        })
    }

    /// Publishes every record whose place was taken before this call, waiting until each is complete. To be called after
    /// the real fence. Returns the LSN that [`LogRegion::wait`] takes: everything this process captured lies below.
    #[inline]
    pub fn drain(&self) -> Lsn {
        let (tail, ahead) = protocol::tail(&*self.log);
        let mut patience = Patience::new();
        let settled = self.settled.load(Acquire);
        let (_, moved) =
            protocol::publish(&*self.log, settled, tail, |_, claim| self.blocked(&mut patience, claim));
        if moved {
            self.log.wake_agent(SleepDepth::Deep);
        }
        Lsn(tail + u64::from(ahead))
    }

    /// See [`LogRegion::wait`].
    pub fn wait(&self, lsn: Lsn, level: Level, timeout: Option<Duration>) -> Result<(), WaitError> {
        self.log.wait(lsn, level, timeout)
    }

    /// See [`LogRegion::commit`]. Never reached by a process that records nothing: see [`Appender::after_fork_child`].
    #[inline]
    pub fn commit(&self, lsn: Lsn) -> bool {
        if self.cell().is_none() && self.log.commit_level() != Level::Local {
            self.log.commit_given_up();
            return false;
        }
        self.log.commit(lsn)
    }

    /// Puts the application ahead of the log, as if that were full: what was stored up to now is in the regions and not in every
    /// record that it should be in. No drain that ends after this is acknowledged before a copy that begins after it.
    pub fn run_ahead(&self) {
        // Pairs with the end of the gap: the copy that follows the flag that we see next reads what was stored before.
        fence(SeqCst);
        let (mut tail, mut ahead) = protocol::tail(&*self.log);
        for _ in 0..MAX_ATTEMPTS {
            if ahead {
                break;
            }
            if protocol::go_ahead(&*self.log, tail, NOBODY) {
                self.log.count(Counter::Ahead, 1);
            }
            (tail, ahead) = protocol::tail(&*self.log);
        }
        self.log.wake_agent(SleepDepth::Nap);
    }

    /// To be called in the child of a fork: takes a cell of its own. A child that was not told takes one at its first
    /// append. On an error it records nothing, which [`super::Counters::unrecorded`] counts, and each capture puts the
    /// application ahead of the log; it should say so too.
    pub fn after_fork_child(&self) -> Result<(), LogError> {
        FILLING.set(0);
        self.cell().map(drop).ok_or(LogError::NoCell(self.log.spec().appenders.into()))
    }

    /// This process's appender cell.
    #[inline]
    fn cell(&self) -> Option<u16> {
        match self.cell.word().load(Acquire) {
            0 => self.cell_in_child(),
            NO_CELL => None,
            index => Some((index - 1) as u16),
        }
    }

    #[cold]
    fn cell_in_child(&self) -> Option<u16> {
        let index = self.log.acquire_cell(self.session);
        if let Some(index) = index {
            self.tell_kept_back(index);
        }
        let word = index.map_or(NO_CELL, |index| u32::from(index) + 1);
        match self.cell.word().compare_exchange(0, word, AcqRel, Acquire) {
            Ok(_) => index,
            Err(_) => {
                // Another thread of the child was quicker.
                index.inspect(|index| {
                    self.log.set_kept_back(*index, 0);
                    self.log.release_cell(*index);
                });
                self.cell()
            }
        }
    }

    /// Claims a slot, has `fill` write the payload, marks the slot complete. Returns where the next record starts.
    #[inline]
    fn record(
        &self,
        kind: Kind,
        region: RegionId,
        offset: u64,
        len: usize,
        fill: impl FnOnce(*mut u8),
    ) -> Result<Lsn, Ahead> {
        // Checked before the claim: a panic after it would leave the slot to nobody.
        assert!(offset >> OFFSET_BITS == 0, "offset {offset} is beyond the largest region");
        let slot = self.reserve(len)?;
        let (header, payload) = self.slot_addr(&slot);
        fill(payload);
        self.finish(&slot, header, kind, region, offset);
        self.await_lower(slot.lsn, slot.lsn + slot.span);
        Ok(Lsn(slot.lsn + slot.span))
    }

    #[inline]
    fn reserve(&self, len: usize) -> Result<Slot, Ahead> {
        let Some(cell) = self.cell() else { return Err(self.unrecorded()) };
        let span = record_span(len as u32);
        // Before the claim: a signal handler that comes right after it must know.
        FILLING.set(FILLING.get() + 1);
        let claimed = match protocol::claim(&*self.log, span, cell) {
            Claimed::Full(_) => self.make_room(span, cell),
            claimed => claimed,
        };
        match claimed {
            Claimed::Slot(lsn) => Ok(Slot { lsn, span, len: len as u32, cell }),
            Claimed::Ahead(tail) | Claimed::Full(tail) => {
                FILLING.set(FILLING.get() - 1);
                Err(Ahead(Lsn(tail + 1)))
            }
        }
    }

    /// What this process stored or wrote before is in no record and cannot be marked: so the log ends here, as if it were full.
    /// Only a copy that begins after this has it, and until then no drain is acknowledged.
    #[cold]
    pub fn unrecorded(&self) -> Ahead {
        self.log.count(Counter::Unrecorded, 1);
        self.run_ahead();
        Ahead(Lsn(self.log.tail().0 + 1))
    }

    #[inline]
    fn slot_addr(&self, slot: &Slot) -> (*mut RecordHeader, *mut u8) {
        let at = self.log.ring().addr(self.log.ring_offset(slot.lsn));
        (at.cast(), at.wrapping_add(RECORD_HEADER as usize))
    }

    #[inline]
    fn finish(&self, slot: &Slot, at: *mut RecordHeader, kind: Kind, region: RegionId, offset: u64) {
        let header = RecordHeader {
            lsn: slot.lsn,
            len: slot.len,
            owner: slot.cell,
            state: SlotState::Filled as u8,
            kind: kind as u8,
            place: RecordHeader::pack_place(region, offset),
            generation: 0,
            crc: 0,
        };
        // SAFETY: the slot is ours, in the ring, and aligned to the header's size.
        unsafe { at.write(header) };
        protocol::fill(&*self.log, slot.lsn, slot.span, slot.cell);
        FILLING.set(FILLING.get() - 1);
    }

    /// Waits until every slot below `lsn` is complete, or notes it ([`wait_later`]); `end` is what is complete then. See
    /// [`protocol::walk`].
    #[inline]
    fn await_lower(&self, lsn: u64, end: u64) {
        if !self.waits {
            return;
        }
        let from = self.settled.load(Acquire);
        if from == lsn || self.walk_to(from, lsn) >= lsn {
            // Threads may overwrite each other's; each value is true.
            self.settled.store(end, Release);
        }
    }

    #[inline(never)]
    fn walk_to(&self, from: u64, upto: u64) -> u64 {
        let mut patience = Patience::new();
        let from = from.max(self.log.published().0);
        protocol::walk(&*self.log, from, upto, |_, claim| match later::noted(upto) {
            true => Blocked::Stop,
            false => self.blocked(&mut patience, claim),
        })
    }

    /// Notes in the dirty bitmap what could not be recorded, if the application is (still) ahead. Whether that is all
    /// that can be done about it.
    #[cold]
    fn note(&self, region: RegionId, offset: u64, len: usize) -> bool {
        let range = ByteRange::new(offset, len as u64);
        let set_bits = || self.log.set_dirty(region, range);
        let noted = self.cell().is_none_or(|cell| protocol::while_ahead(&*self.log, cell, set_bits));
        // What the program does next may not get into a record below the gap either.
        let tail = self.log.tail().0;
        self.await_lower(tail, tail);
        noted
    }

    /// What a drain does about a slot that is not complete.
    #[cold]
    fn blocked(&self, patience: &mut Patience, claim: Claim) -> Blocked {
        if !self.waits {
            return if self.fill_if_dead(claim) { Blocked::OwnerDead } else { Blocked::Stop };
        }
        if FILLING.get() > 0 && self.cell() == Some(claim.owner) {
            return Blocked::Stop;
        }
        if patience.suspects() && self.fill_if_dead(claim) { Blocked::OwnerDead } else { Blocked::Retry }
    }

    fn fill_if_dead(&self, claim: Claim) -> bool {
        // No owner: its cell was reclaimed and its slots with it; or it gave up the cell, having completed them.
        let dead = self.log.owner(claim.owner).is_some_and(|owner| owner.confirmed_dead());
        if dead {
            self.log.count(Counter::Fillers, 1);
        }
        dead
    }

    fn count_torn(&self, lines: u64) {
        if lines > 0 {
            self.log.count(Counter::TornCopies, lines);
        }
    }
}

#[cfg(test)]
impl Appender {
    /// Claims a slot and does nothing more, as a process that is killed there.
    pub(crate) fn leave_half_made(&self) {
        self.reserve(0).expect("there is room");
        FILLING.set(0);
    }
}

impl Drop for Appender {
    fn drop(&mut self) {
        match self.cell.word().load(Acquire) {
            0 | NO_CELL => {}
            index => self.log.release_cell((index - 1) as u16),
        }
    }
}

/// A claimed slot.
struct Slot {
    lsn: u64,
    span: u64,
    len: u32,
    cell: u16,
}

/// How long someone has waited for a slot: spins, yields, then sleeps.
struct Patience {
    looks: u32,
    since: Option<Instant>,
}

impl Patience {
    fn new() -> Patience {
        Patience { looks: 0, since: None }
    }

    /// Waits a little; whether it has been long enough to suspect that the owner is dead.
    fn suspects(&mut self) -> bool {
        self.looks += 1;
        if self.looks < SPINS {
            std::hint::spin_loop();
            return false;
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        if self.looks < SPINS + YIELDS {
            std::thread::yield_now();
        } else {
            std::thread::sleep(NAP);
        }
        since.elapsed() > SUSPECT_AFTER
    }
}
