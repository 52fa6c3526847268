//! A group at its source: one log region of one generation, what it protects, and who is attached.
//!
//! A [`Group`] lives as long as its generation. Sessions add regions and processes to it; the group's controller
//! ([`Controller`]) reads its log and hears of changes through [`Notice`]s. The log region's
//! descriptor is with the keeper and the table of regions on disk before anyone writes, so that the next agent
//! finds both after a SIGKILL ([`Group::open`]).
//!
//! Threads: all methods may be called from any thread. One lock guards regions and processes; it is held over the append of
//! a region's creation, so that the table and the log agree on the order.

mod controller;
mod members;
mod namespaces;
mod numbers;
mod open;
mod process;
mod protected;
mod reader;
mod region;
mod rest;
mod roster;
mod unopened;
mod walk;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

pub use controller::{Controller, Ending, Notice};
pub use members::Crowd;
pub use namespaces::Indoors;
pub use open::{GroupError, OpenGroup};
pub use process::{Process, ProcessId, Stuck, Writer};
pub use protected::Region;
pub use reader::Reader;
pub use region::ProtectError;
pub use rest::Rest;

use numbers::Numbers;
use roster::{Attached, Roster};
use unopened::Lookout;

use super::access::Access;
use super::config;
use super::state::{GroupState, RegionState, StateDir, VERSION};
use super::status::{LogStatus, RegionStatus, SessionStatus};
use crate::log::format::Kind;
use crate::log::mapped::LogFile;
use crate::log::{Appender, LogRegion, Owner};
use crate::region::kind::MemoryKind;
use crate::session::patterns::Patterns;
use crate::types::{Generation, GroupId, Level, Lsn, RegionId};

/// Session number of the agent's own appender.
pub const AGENT_SESSION: u32 = 0;

/// Unit of `st_blocks`, see `stat(2)`.
const STAT_BLOCK: u64 = 512;

/// How long records of the application that hold a place may take: one is made of a system call at most.
const LOWER_WITHIN: Duration = Duration::from_millis(50);

/// File of a group's directory that holds its [`GroupState`].
pub const STATE_FILE: &str = "group.json";

/// A group at its source, for one generation.
pub struct Group {
    config: config::Group,
    id: GroupId,
    generation: Generation,
    log_fd: OwnedFd,
    log_file: LogFile,
    access: Arc<Access>,
    appender: Appender,
    patterns: Patterns,
    states: Arc<StateDir>,
    notify: Box<dyn Fn(Notice) + Send + Sync>,
    origin: Origin,
    roster: Arc<Roster>,
    /// See [`Group::hold_still`].
    still: AtomicBool,
    apart: Vec<PathBuf>,
    lookout: Mutex<Lookout>,
    /// Held for a look.
    looking: Mutex<()>,
    inner: Mutex<Inner>,
}

/// How a group came by its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// None was found.
    Made,
    /// It is gone on with.
    Resumed,
    /// See [`Group::find_stale`].
    Stale,
}

struct Inner {
    regions: BTreeMap<RegionId, Arc<Region>>,
    numbers: Numbers,
    processes: Attached,
    /// Sessions with an earlier agent whose processes live on and have not come to this one.
    found: BTreeSet<u32>,
    next_session: u32,
    /// Session numbers below are this agent's to give out: the state on disk says so.
    reserved_sessions: u32,
    /// Destinations that an operator has paused.
    paused: BTreeSet<String>,
    /// See [`Group::close`].
    closed: bool,
}

impl Group {
    /// Name, as both configurations have it.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// The configuration.
    pub fn config(&self) -> &config::Group {
        &self.config
    }

    /// Identity.
    pub fn id(&self) -> GroupId {
        self.id
    }

    /// Generation of the log.
    pub fn generation(&self) -> Generation {
        self.generation
    }

    /// The log.
    pub fn log(&self) -> &Arc<LogRegion> {
        self.appender.log()
    }

    /// Descriptor of the log region, to be passed to applications.
    pub fn log_fd(&self) -> BorrowedFd<'_> {
        self.log_fd.as_fd()
    }

    /// The agent's own appender: creations of regions, sync pages.
    pub fn appender(&self) -> &Appender {
        &self.appender
    }

    /// Which paths are protected without being asked for.
    pub fn patterns(&self) -> &Patterns {
        &self.patterns
    }

    /// Nobody attaches any more. A session may have been shown the group just before it was given up here.
    pub fn close(&self) {
        self.lock().closed = true;
    }

    /// From here on the agent records nothing that nobody asked it to. The log is about to end at a place that the heir is told, and
    /// behind which nothing may land. Waits for nobody. When, `agent::role::gasp` knows.
    pub fn hold_still(&self) {
        self.still.store(true, SeqCst);
    }

    /// Takes back [`Group::hold_still`].
    pub fn go_on(&self) {
        self.still.store(false, SeqCst);
    }

    /// Waits for what the agent was recording when [`Group::hold_still`] was called.
    pub fn await_stillness(&self) {
        // Recording is done under the lock, by whoever has seen under it that nothing holds it back.
        drop(self.lock());
    }

    /// Whether [`Group::hold_still`] holds; to be asked under the lock by whoever records under it.
    pub fn is_still(&self) -> bool {
        self.origin == Origin::Stale || self.still.load(SeqCst)
    }

    /// Whether the log is one that was found, and is gone on with: an application may have been writing all along.
    pub fn resumed(&self) -> bool {
        self.origin == Origin::Resumed
    }

    /// A region.
    pub fn region(&self, id: RegionId) -> Option<Arc<Region>> {
        self.lock().regions.get(&id).cloned()
    }

    /// All regions, in order of their numbers.
    pub fn regions(&self) -> Vec<Arc<Region>> {
        self.lock().regions.values().cloned().collect()
    }

    /// A process was told of a region, and may append for it from here on.
    pub fn told(&self, id: RegionId, process: ProcessId) {
        self.lock().numbers.told(id, process.0);
    }

    /// A process appends nothing further for a region, whose end it has recorded.
    pub fn released(&self, id: RegionId, process: ProcessId) {
        self.lock().numbers.released(id, process.0);
    }

    /// Controller: the log says that a region has a new size.
    pub fn region_resized(&self, id: RegionId, len: u64) -> Result<(), GroupError> {
        let inner = self.lock();
        if let Some(region) = inner.regions.get(&id).filter(|region| region.len() != len) {
            region.set_len(len);
            self.save(&inner)?;
        }
        Ok(())
    }

    /// Controller: the log says that a region has a new name; another that had it ceases to be. The application says so, and what
    /// it names is looked for with the agent's rights one day: it is known by that name only where it is that file's.
    pub fn region_renamed(&self, id: RegionId, path: &str) -> Result<(), GroupError> {
        let mut inner = self.lock();
        let Some(region) = inner.regions.get(&id).cloned() else { return Ok(()) };
        match region.is_at(Path::new(path)) {
            true => region.set_path(path.into()),
            false => _ = region.is_named(),
        }
        // The record may be old news: a file that was moved on, or made under this name since, is still there.
        self.drop_regions(&mut inner, |r| r.id() != id && r.path().as_os_str() == path && !r.is_named())
    }

    /// Controller, before a copy: brings the table up to what the file system says of names and sizes. Changes whose records
    /// nobody reads, since the application was ahead or a fresh stream skips them, would be missed otherwise. What `see` makes of
    /// each region that is left and of its size, in order of their numbers: under the lock, since an older record that somebody
    /// reads late would put back what it says.
    pub fn follow_files<T>(&self, see: impl Fn(&Arc<Region>, u64) -> T) -> Result<Vec<T>, GroupError> {
        let mut inner = self.lock();
        let (still, mut changed) = (self.is_still(), false);
        let log = self.log();
        if !still && log.tail().since(log.free()) > log.spec().ring_bytes / 4 * 3 {
            // Under the lock nothing may wait for room, which whoever makes some may need the lock for.
            return Err(GroupError::Busy("the log is nearly full"));
        }
        let mut there = Vec::with_capacity(inner.regions.len());
        for region in inner.regions.values() {
            let at_rest = region.at_rest().is_some();
            if at_rest && !still {
                // Nobody has recorded it, and an image that follows has not heard of it.
                self.record_size(&inner, region)?;
            }
            let (known, path) = (region.len(), region.path());
            let Some(len) = region.follow() else {
                let gone = || region.follow().is_none();
                if !self.record_unless(still, Kind::RegionUnlink, region.id(), &[], gone) {
                    return Err(GroupError::Busy("a program holds a place in the log"));
                }
                continue;
            };
            // An image that follows the stream passes over the copy, and hears of it only so.
            if region.path() != path {
                let name = region.path();
                let bytes = name.as_os_str().as_encoded_bytes();
                let told =
                    self.record_unless(still, Kind::RegionRename, region.id(), bytes, || region.is_at(&name));
                if !told {
                    region.set_path(path);
                    return Err(GroupError::Busy("a program holds a place in the log"));
                }
            }
            if len != known && !at_rest && !still && region.is_whole() {
                let _ = self.appender().append_size(region.id(), region.file());
            }
            // Of a file at rest nothing may be recorded while the group is still, and it is not to be missed later.
            if !(at_rest && still) {
                region.set_len(len);
            }
            changed |= region.len() != known || region.path() != path;
            there.push((region.clone(), len));
        }
        if changed || there.len() < inner.regions.len() {
            let left: BTreeSet<_> = there.iter().map(|(region, _)| region.id()).collect();
            self.drop_regions(&mut inner, |r| !left.contains(&r.id()))?;
        }
        Ok(there.iter().map(|(region, len)| see(region, *len)).collect())
    }

    /// Records what the file system says and no record told of, if it still does when the record has its place and all before it
    /// have been done: a program that renames holds its place first. False if those take too long. While ahead, the copy says it.
    fn record_unless(
        &self,
        still: bool,
        kind: Kind,
        id: RegionId,
        name: &[u8],
        holds: impl FnOnce() -> bool,
    ) -> bool {
        let (log, mut in_time) = (self.log(), true);
        let end = Instant::now() + LOWER_WITHIN;
        let lower_are_done = |place: Lsn| {
            while log.publish_filled(&Owner::confirmed_dead) < place {
                if Instant::now() >= end {
                    return false;
                }
                thread::yield_now();
            }
            true
        };
        if !still {
            let _ = self.appender().append_at(kind, id, 0, name, |place| {
                in_time = place.is_none_or(lower_are_done);
                in_time && holds()
            });
        }
        in_time
    }

    /// Controller: the log says that a region ceased to be.
    pub fn region_unlinked(&self, id: RegionId) -> Result<(), GroupError> {
        self.drop_regions(&mut self.lock(), |r| r.id() == id)
    }

    /// The log's state for the status document.
    pub fn log_status(&self) -> LogStatus {
        let log = self.log();
        let counters = log.counters();
        let memory = rustix::fs::fstat(&self.log_fd).ok();
        LogStatus {
            memory: MemoryKind::Memfd,
            ring_bytes: log.spec().ring_bytes,
            memory_bytes: memory.as_ref().map_or(0, |m| m.st_blocks as u64 * STAT_BLOCK),
            memory_limit_bytes: memory.as_ref().map_or(0, |m| m.st_size as u64),
            used_bytes: log.tail().since(log.free()).min(log.spec().ring_bytes),
            times_ahead: counters.ahead,
            blocked_ms: counters.blocked_ns / 1_000_000,
            fillers: counters.fillers,
            torn_copies: counters.torn_copies,
            commit: self.config.commit,
            commits_wait: self.config.commit != Level::Local && log.commits_wait(),
            commits_given_up: counters.commits_given_up,
            unrecorded: counters.unrecorded,
            ahead: log.is_ahead(),
        }
    }

    /// The regions for the status document.
    pub fn region_status(&self) -> Vec<RegionStatus> {
        let status = |r: Arc<Region>| RegionStatus {
            region: r.id(),
            path: r.path().display().to_string(),
            len: r.len(),
            memory: MemoryKind::of(r.file()).ok(),
            mapped: r.is_mapped(),
        };
        self.regions().into_iter().map(status).collect()
    }

    /// The attached processes for the status document.
    pub fn session_status(&self) -> Vec<SessionStatus> {
        let status = |(session, p): (&u32, &Process)| SessionStatus {
            session: *session,
            pid: p.pid,
            uid: p.uid,
            program: p.program.clone(),
            tracker: p.tracks.map(|kind| kind.to_string()),
        };
        self.lock().processes.iter().map(status).collect()
    }

    fn drop_regions(&self, inner: &mut Inner, gone: impl Fn(&Region) -> bool) -> Result<(), GroupError> {
        let ids: Vec<RegionId> = inner.regions.values().filter(|r| gone(r)).map(|r| r.id()).collect();
        for id in ids {
            if let Some(region) = inner.regions.remove(&id) {
                inner.numbers.ended(&region);
            }
            self.log().set_region(id, None)?;
        }
        self.save(inner)
    }

    /// Whether an operator has paused the destination of this name.
    pub fn is_paused(&self, node: &str) -> bool {
        self.lock().paused.contains(node)
    }

    /// An operator pauses a destination, or has it go on; an agent after this one knows.
    pub fn set_paused(&self, node: &str, paused: bool) -> Result<(), GroupError> {
        let mut inner = self.lock();
        let before = inner.paused.clone();
        match paused {
            true => _ = inner.paused.insert(node.to_owned()),
            false => _ = inner.paused.remove(node),
        }
        self.save(&inner).inspect_err(|_| inner.paused = before)
    }

    fn save(&self, inner: &Inner) -> Result<(), GroupError> {
        let regions = inner.regions.values().map(|r| r.state()).collect::<Vec<RegionState>>();
        let state = GroupState {
            version: VERSION,
            id: self.id,
            generation: self.generation,
            next_region: inner.numbers.next(),
            next_session: inner.reserved_sessions,
            users: self.roster.users(),
            paused: inner.paused.clone(),
            regions,
        };
        Ok(self.states.save(self.name(), STATE_FILE, &state)?)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        tracing::debug!(group = self.name(), generation = %self.generation, tail = %Lsn(self.log().tail().0), "group closed");
    }
}

#[cfg(test)]
pub(super) mod tests;
