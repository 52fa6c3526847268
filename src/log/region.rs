//! The log region itself: making it, attaching to it, and the cells that agent and application share.
//!
//! A sealed memfd, so that a holder process keeps it when application and agent die, and nobody can truncate it under
//! another. All methods may be called from any thread. The agent distrusts what stands here: geometry is copied
//! at attach and never read again, positions are checked where they are used (`consumer`).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU64, fence};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::fs::{MemfdFlags, SealFlags};
use serde::Deserialize;
use zerocopy::IntoBytes;

use super::eager::Eager;
use super::format::{Kind, RecordHeader, StaticHeader, cell};
use super::layout::{ENTRY, LogError, LogSpec};
use super::owner::{INFLIGHT, Owner};
use super::protocol::{self, Blocked, Cells, Word};
use super::slot::SlotCodec;
use crate::region::memory::{Access, SharedMem, Words};
use crate::types::{Level, Lsn};

/// An agent that has not beaten for this long counts as dead: ten beats, so that a busy host
/// does not look like a dead agent, and short enough that a program in a commit hardly notices a real one.
pub const AGENT_TIMEOUT: Duration = BEAT.saturating_mul(10);

/// How often the agent says that it lives.
pub const BEAT: Duration = Duration::from_millis(100);

/// A log region, mapped.
pub struct LogRegion {
    control: Arc<SharedMem>,
    slots: Words,
    ring: Arc<SharedMem>,
    spec: LogSpec,
    header: StaticHeader,
    codec: SlotCodec,
    /// What waits for acknowledgements take in this process.
    pub(super) eager: Eager,
    /// Up to where this process has been held for its budget.
    pub(super) paid: AtomicU64,
    /// Threads of this process in [`LogRegion::sleep_until_work`].
    sleepers: Mutex<u32>,
}

/// How far destinations have acknowledged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Acks {
    /// Every record below has landed at a destination that counts.
    pub received: Lsn,
    /// Every record below survives the loss of the source.
    pub durable: Lsn,
    /// Every record below is in the destination's image, persistently.
    pub applied: Lsn,
}

/// A stretch of the stream that the ring could not take: what happened in it is known only from the regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Records end here; positions past it belong to the gap until its end.
    pub start: Lsn,
    /// Where the copy that makes it good was complete; `None` while it is open.
    pub end: Option<Lsn>,
}

/// Events counted since the log was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Lines whose readings never agreed, copied as last seen.
    pub torn_copies: u64,
    /// Slots of dead owners that became fillers.
    pub fillers: u64,
    /// Times that the application went ahead of the log.
    pub ahead: u64,
    /// Commits that returned without their level: they did not wait, not long enough, or of what was not recorded.
    pub commits_given_up: u64,
    /// Nanoseconds that appenders were held back by a full ring under [`OnFull::Block`].
    pub blocked_ns: u64,
    /// Captures lost because a forked child found no appender cell, what was written could not be read back, or a file could not
    /// be entered with the agent. Each put the application ahead of the log: a new copy of the regions makes them good. Also
    /// processes that were refused a cell before they captured anything.
    pub unrecorded: u64,
}

/// One of the [`Counters`].
#[derive(Clone, Copy, Debug)]
pub(crate) enum Counter {
    TornCopies,
    Fillers,
    Ahead,
    CommitsGivenUp,
    BlockedNs,
    Unrecorded,
}

/// The state of the way to the destinations, as the agent sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum LinkState {
    /// No destination is configured.
    None = 0,
    /// A destination is configured; none is connected.
    Down = 1,
    /// A destination is connected; it does not hold a complete image yet and counts for no level.
    Syncing = 2,
    /// A destination counts.
    Counting = 3,
}

/// What an appender does when the ring is full, as the configuration has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[repr(u32)]
pub enum OnFull {
    /// Go on without the log; the destination is brought up to date by a copy.
    #[default]
    Ahead = 0,
    /// Wait for room, up to the limit, whoever keeps it from becoming free; then as `Ahead`.
    Block = 1,
}

/// Commit level of a group without one whose drains may have to wait all the same: an older library takes it for none.
const LOCAL_ENFORCED: u32 = 4;

/// What the operator configured for the group's appenders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy {
    /// How far a record must have come before a drain returns.
    pub commit: Level,
    /// Whether drains hold their programs for the battery budget.
    pub enforced: bool,
    /// How long a drain waits for that level; [`Duration::MAX`]: until it is so.
    pub commit_timeout: Duration,
    /// What to do without room.
    pub on_full: OnFull,
    /// How long `OnFull::Block` holds a program back.
    pub block_limit: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            commit: Level::Local,
            enforced: false,
            commit_timeout: Duration::from_secs(1),
            on_full: OnFull::Ahead,
            block_limit: Duration::from_secs(1),
        }
    }
}

impl LogRegion {
    /// Makes a log region. The descriptor keeps it alive and is what others attach to.
    pub fn create(spec: &LogSpec) -> Result<(OwnedFd, Arc<LogRegion>), LogError> {
        let header = spec.layout(wall_clock_ns())?;
        let fd = rustix::fs::memfd_create(MEMFD_NAME, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)
            .map_err(LogError::system("memfd_create for the log region"))?;
        rustix::fs::ftruncate(&fd, header.total_bytes).map_err(LogError::system("sizing the log region"))?;
        rustix::fs::fcntl_add_seals(&fd, SEALS).map_err(LogError::system("sealing the log region"))?;
        let region = LogRegion::map(fd.as_fd(), *spec, header)?;
        for position in [cell::TAIL, cell::PUBLISHED, cell::FREE] {
            region.control.u64(position).store(header.first_lsn, Release);
        }
        region.set_policy(Policy::default());
        // The magic number comes with the header, last: a half-made region is not attached to.
        region.control.write(0, header.as_bytes());
        Ok((fd, Arc::new(region)))
    }

    /// Attaches to a log region that another process made. Everything in its header is checked and copied.
    pub fn attach(fd: BorrowedFd<'_>) -> Result<Arc<LogRegion>, LogError> {
        let seals = rustix::fs::fcntl_get_seals(fd).map_err(LogError::system("reading the log's seals"))?;
        if !seals.contains(SEALS) {
            return Err(LogError::Unsealed(seals.bits()));
        }
        let size = rustix::fs::fstat(fd).map_err(LogError::system("fstat of the log region"))?.st_size as u64;
        let mut bytes = [0u8; size_of::<StaticHeader>()];
        let read =
            rustix::io::pread(fd, &mut bytes, 0).map_err(LogError::system("reading the log's header"))?;
        if read < bytes.len() {
            return Err(LogError::Format(format!("only {size} bytes long")));
        }
        let (spec, header) = LogSpec::parse(&bytes)?;
        if header.total_bytes != size {
            return Err(LogError::Format(format!("{size} bytes long, header says {}", header.total_bytes)));
        }
        Ok(Arc::new(LogRegion::map(fd, spec, header)?))
    }

    fn map(fd: BorrowedFd<'_>, spec: LogSpec, header: StaticHeader) -> Result<LogRegion, LogError> {
        let system = |source| LogError::System { what: "mapping the log region", source };
        let control = SharedMem::map(fd, 0, header.ring_off as usize, Access::ReadWrite).map_err(system)?;
        let ring = SharedMem::map_ring(fd, header.ring_off, spec.ring_bytes as usize, Access::ReadWrite)
            .map_err(system)?;
        let (control, codec) = (Arc::new(control), SlotCodec::new(spec.ring_bytes));
        let slots = Words::new(&control, header.slots_off as usize, codec.slots());
        let (eager, paid, sleepers) = (Eager::default(), AtomicU64::new(0), Mutex::new(0));
        Ok(LogRegion { control, slots, ring: Arc::new(ring), spec, header, codec, eager, paid, sleepers })
    }

    /// What it was made from.
    pub fn spec(&self) -> &LogSpec {
        &self.spec
    }

    /// The ring, mapped twice in succession: byte `lsn % ring_bytes` begins the record at `lsn`.
    pub fn ring(&self) -> &Arc<SharedMem> {
        &self.ring
    }

    /// Where the next record begins.
    pub fn tail(&self) -> Lsn {
        Lsn(protocol::tail(self).0)
    }

    /// Every record below is complete and in its place.
    pub fn published(&self) -> Lsn {
        Lsn(self.control.u64(cell::PUBLISHED).load(Acquire))
    }

    /// Ring space below may be reused.
    pub fn free(&self) -> Lsn {
        Lsn(self.control.u64(cell::FREE).load(Acquire))
    }

    /// Agent: nobody needs records below `lsn` any more. Never beyond what is published, since a slot that is
    /// not complete is still being written; never backwards.
    pub fn set_free(&self, lsn: Lsn) {
        self.control.u64(cell::FREE).fetch_max(lsn.min(self.published()).0, AcqRel);
    }

    /// Whether the application runs ahead of the log.
    pub fn is_ahead(&self) -> bool {
        protocol::tail(self).1
    }

    /// The newest gap.
    pub fn gap(&self) -> Option<Gap> {
        protocol::gap(self).map(|(start, end)| Gap { start: Lsn(start), end: end.map(Lsn) })
    }

    /// Whether the copy that the newest gap asks for is still to come.
    pub fn has_open_gap(&self) -> bool {
        self.gap().is_some_and(|gap| gap.end.is_none())
    }

    /// Whether records tell everything: the application is not ahead, and no copy is to come for a time when it was.
    pub fn is_whole(&self) -> bool {
        !self.is_ahead() && !self.has_open_gap()
    }

    /// Agent: lets appends resume after the application went ahead. The ring must be free up to the tail (consumers have
    /// forgotten what they lack: [`LogRegion::publish_filled`], then [`LogRegion::set_free`] to the tail). Returns
    /// whether the log is no longer ahead.
    ///
    /// The record at the gap is a [`Kind::SyncBegin`]: no record after the gap must ever reach an image that lacks what happened
    /// in the gap, and the application appends again before the agent gets to append anything.
    ///
    /// Then: wait until [`LogRegion::bits_in_flight`] is false, [`LogRegion::take_dirty`] or [`LogRegion::clear_dirty`] once more, and only then
    /// read pages for the copy; when the destination has switched to that copy durably, [`LogRegion::end_gap`].
    pub fn close_gap(&self) -> bool {
        let begin = |lsn: u64| {
            let header = RecordHeader::unowned(Kind::SyncBegin, lsn, 0);
            self.ring.write(self.ring_offset(lsn), header.as_bytes());
        };
        protocol::close_gap(self, begin) || !self.is_ahead()
    }

    /// Agent: the destination's durable image holds everything below `end`, so the gap is made good. Until then no
    /// acknowledgement passes its start, whatever [`LogRegion::set_acks`] is told.
    pub fn end_gap(&self, end: Lsn) {
        protocol::end_gap(self, end.0);
    }

    /// Publishes, without waiting, every complete slot up to the tail, turning slots of owners that `is_dead` confirms into fillers.
    /// Stops at the first slot of a living owner that is not complete. Returns how far the log is published.
    pub fn publish_filled(&self, is_dead: &dyn Fn(&Owner) -> bool) -> Lsn {
        let (published, _) = protocol::publish(self, 0, self.tail().0, |_, claim| {
            if self.owner(claim.owner).is_none_or(|owner| is_dead(&owner)) {
                self.count(Counter::Fillers, 1);
                Blocked::OwnerDead
            } else {
                Blocked::Stop
            }
        });
        Lsn(published)
    }

    /// Agent: sets what appenders obey.
    pub fn set_policy(&self, policy: Policy) {
        let level = match policy.commit {
            // Not 0, by which a drain knows that it need not look any further.
            Level::Local if policy.enforced => LOCAL_ENFORCED,
            Level::Local => 0,
            Level::Received => 1,
            Level::Durable => 2,
            Level::Applied => 3,
        };
        let ns = |d: Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        self.control.u32(cell::POLICY).store(level, Relaxed);
        self.control.u32(cell::POLICY + 4).store(policy.on_full as u32, Relaxed);
        self.control.u64(cell::POLICY + 8).store(ns(policy.commit_timeout), Relaxed);
        self.control.u64(cell::POLICY + 16).store(ns(policy.block_limit), Relaxed);
    }

    /// What appenders obey. Each word is read by itself: a policy that is being changed may be seen half.
    pub fn policy(&self) -> Policy {
        Policy {
            commit: self.commit_level(),
            enforced: self.control.u32(cell::POLICY).load(Relaxed) == LOCAL_ENFORCED,
            commit_timeout: Duration::from_nanos(self.control.u64(cell::POLICY + 8).load(Relaxed)),
            on_full: match self.control.u32(cell::POLICY + 4).load(Relaxed) {
                1 => OnFull::Block,
                _ => OnFull::Ahead,
            },
            block_limit: Duration::from_nanos(self.control.u64(cell::POLICY + 16).load(Relaxed)),
        }
    }

    /// Whether a drain may have to wait for anything at all.
    #[inline]
    pub fn drains_wait(&self) -> bool {
        self.control.u32(cell::POLICY).load(Relaxed) != 0
    }

    #[inline]
    pub(crate) fn commit_level(&self) -> Level {
        match self.control.u32(cell::POLICY).load(Relaxed) {
            1 => Level::Received,
            2 => Level::Durable,
            3 => Level::Applied,
            _ => Level::Local,
        }
    }

    /// Agent: says that it lives, every 100 ms. `now` is [`boottime`].
    pub fn beat(&self, now: Duration, pid: u32, link: LinkState) {
        self.control.u32(cell::AGENT + 8).store(pid, Relaxed);
        self.control.u32(cell::AGENT + 12).store(link as u32, Relaxed);
        self.control.u64(cell::AGENT).store(now.as_nanos() as u64, Release);
    }

    /// Whether the agent has beaten within [`AGENT_TIMEOUT`] before `now` ([`boottime`]).
    pub fn agent_alive(&self, now: Duration) -> bool {
        let beat = self.control.u64(cell::AGENT).load(Acquire);
        beat != 0 && now < Duration::from_nanos(beat) + AGENT_TIMEOUT
    }

    /// What the agent last said of the way to the destinations.
    pub fn link(&self) -> LinkState {
        match self.control.u32(cell::AGENT + 12).load(Relaxed) {
            1 => LinkState::Down,
            2 => LinkState::Syncing,
            3 => LinkState::Counting,
            _ => LinkState::None,
        }
    }

    /// Events counted so far.
    pub fn counters(&self) -> Counters {
        let read = |c: Counter| self.control.u64(cell::COUNTERS + 8 * c as usize).load(Relaxed);
        Counters {
            torn_copies: read(Counter::TornCopies),
            fillers: read(Counter::Fillers),
            ahead: read(Counter::Ahead),
            commits_given_up: read(Counter::CommitsGivenUp),
            blocked_ns: read(Counter::BlockedNs),
            unrecorded: read(Counter::Unrecorded),
        }
    }

    pub(crate) fn count(&self, counter: Counter, by: u64) {
        self.control.u64(cell::COUNTERS + 8 * counter as usize).fetch_add(by, Relaxed);
    }

    pub(super) fn sleepers(&self) -> &Mutex<u32> {
        &self.sleepers
    }

    pub(crate) fn control(&self) -> &SharedMem {
        &self.control
    }

    pub(crate) fn appenders_off(&self) -> usize {
        self.header.appenders_off as usize
    }

    pub(crate) fn regions_off(&self) -> usize {
        self.header.regions_off as usize
    }

    pub(crate) fn bitmap_off(&self) -> usize {
        self.header.bitmap_off as usize
    }

    /// Offset in the ring of the byte at `lsn`.
    #[inline]
    pub(crate) fn ring_offset(&self, lsn: u64) -> usize {
        (lsn & (self.spec.ring_bytes - 1)) as usize
    }
}

/// What the kernel shows a log region as.
pub(crate) const MEMFD_NAME: &str = "pmemha-log";

/// The clock of [`LogRegion::beat`]: CLOCK_BOOTTIME, which all processes of the machine share.
pub fn boottime() -> Duration {
    clock(libc::CLOCK_BOOTTIME)
}

/// Nanoseconds since 1970, as this machine's clock has it.
pub(crate) fn wall_clock_ns() -> u64 {
    clock(libc::CLOCK_REALTIME).as_nanos() as u64
}

/// By libc: rustix calls the vDSO behind its back, which crashes programs that run under valgrind.
fn clock(id: libc::clockid_t) -> Duration {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the kernel writes one timespec; both clocks exist on every Linux that we run on.
    unsafe { libc::clock_gettime(id, &raw mut t) };
    Duration::new(t.tv_sec as u64, t.tv_nsec as u32)
}

const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

impl Word for AtomicU64 {
    #[inline]
    fn load(&self) -> u64 {
        AtomicU64::load(self, Acquire)
    }
    #[inline]
    fn store(&self, value: u64) {
        AtomicU64::store(self, value, Release);
    }
    #[inline]
    fn swap_if(&self, old: u64, new: u64) -> bool {
        self.compare_exchange(old, new, SeqCst, Acquire).is_ok()
    }
    #[inline]
    fn raise(&self, value: u64) -> bool {
        AtomicU64::load(self, Acquire) < value && self.fetch_max(value, SeqCst) < value
    }
    #[inline]
    fn add(&self, delta: u64) {
        self.fetch_add(delta, SeqCst);
    }
    #[inline]
    fn sub(&self, delta: u64) {
        self.fetch_sub(delta, SeqCst);
    }
}

impl Cells for LogRegion {
    type W = AtomicU64;
    #[inline]
    fn tail(&self) -> &AtomicU64 {
        self.control.u64(cell::TAIL)
    }
    #[inline]
    fn published(&self) -> &AtomicU64 {
        self.control.u64(cell::PUBLISHED)
    }
    #[inline]
    fn free(&self) -> &AtomicU64 {
        self.control.u64(cell::FREE)
    }
    fn gap_start(&self) -> &AtomicU64 {
        self.control.u64(cell::GAP)
    }
    fn gap_end(&self) -> &AtomicU64 {
        self.control.u64(cell::GAP + 8)
    }
    #[inline]
    fn slot(&self, index: usize) -> &AtomicU64 {
        self.slots.at(index)
    }
    fn inflight(&self, owner: u16) -> &AtomicU64 {
        self.control.u64(self.appenders_off() + usize::from(owner) * ENTRY + INFLIGHT)
    }
    #[inline]
    fn codec(&self) -> &SlotCodec {
        &self.codec
    }
    #[inline]
    fn ring_bytes(&self) -> u64 {
        self.spec.ring_bytes
    }
    fn fence(&self) {
        fence(SeqCst);
    }
}
