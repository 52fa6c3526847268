//! The application's processes: who is attached, and how each one ended.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use std::{fs, thread};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::members::SAID_WITHIN;
use super::namespaces::{Everyone, Indoors};
use super::{AGENT_SESSION, Ending, Group, Inner, Notice};
use crate::log::mapped::user_of;
use crate::log::{Debt, LogRegion, Owner};
use crate::region::dirty::Kind;
use crate::types::{Lsn, RegionId};

/// An attached process.
#[derive(Clone, Debug)]
pub struct Process {
    /// Its process, if it can be seen from here.
    pub pid: Option<u32>,
    /// Its user.
    pub uid: u32,
    /// What it calls itself.
    pub program: String,
    /// How it finds its stores to mapped files, once it has said so.
    pub tracks: Option<Kind>,
    /// What it is in its own pid namespace; none unless its death is seen for certain.
    pub indoors: Option<Indoors>,
    /// The process itself, by the kernel's credentials of its session.
    pub pidfd: Option<Arc<OwnedFd>>,
}

/// A process that holds an appender cell and is not known to be dead.
#[derive(Clone, Copy, Debug)]
pub struct Writer {
    /// As the cell has it.
    pub owner: Owner,
    /// Its number here, if it can be seen from here and is one of the application for certain ([`Group::owns`]).
    pub pid: Option<u32>,
    /// Its number here, if it can be seen from here, whosesoever it is.
    pub seen: Option<u32>,
}

/// Names a process within its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcessId(pub u32);

impl Group {
    /// A process attaches; its session number goes into its appender cells. What dead ones stored without a record is to be copied
    /// before anything is acknowledged that this one builds on it. `after`: its session whose connection it lost, of which
    /// nothing is heard any more. Nothing if the group has been closed.
    pub fn attach(&self, process: Process, after: Option<u32>) -> Option<ProcessId> {
        self.bury(|log, index, owner| log.kept_back(index) != 0 && owner.confirmed_dead());
        let mut inner = self.lock();
        if inner.closed {
            return None;
        }
        self.make_good_remains();
        let own = |before: &Process| process.pid.is_some() && before.pid == process.pid;
        if let Some(before) = after.filter(|s| inner.processes.get(s).is_some_and(own)) {
            inner.processes.remove(&before);
        }
        let session = inner.next_session;
        inner.next_session = session.checked_add(1).unwrap_or(AGENT_SESSION + 1);
        let new_user = self.roster.runs_as(process.uid);
        if session >= inner.reserved_sessions || new_user {
            inner.reserved_sessions = session.saturating_add(SESSION_BLOCK);
            if let Err(error) = self.save(&inner) {
                // The number is still new; it might be given out again only after a restart.
                tracing::warn!(group = self.name(), %error, "session numbers could not be reserved");
            }
        }
        let pid = process.pid;
        inner.forget_found(pid);
        inner.processes.insert(session, process);
        (self.notify)(Notice::ProcessAttached { pid });
        Some(ProcessId(session))
    }

    /// A process maps a region, and finds its stores so.
    pub fn maps(&self, id: ProcessId, region: RegionId, by: Kind) {
        let mut inner = self.lock();
        inner.processes.tracks(id.0, by);
        self.mark_mapped(&inner, region);
    }

    /// A process is dead for certain, and how it ended is known as far as it ever will be. Its unfinished slots become
    /// fillers, so that nobody waits for it.
    pub fn ended(&self, id: ProcessId, ending: Ending) {
        let indoors = self.lock().processes.get(&id.0).and_then(|p| p.indoors);
        self.bury(|_, _, owner| {
            owner.confirmed_dead() || indoors.is_some_and(|indoors| indoors.is(owner, id.0))
        });
        let mut inner = self.lock();
        inner.numbers.process_ended(id.0);
        let Some(process) = inner.processes.remove(&id.0) else { return };
        if !inner.processes.is_empty() {
            // They may build on what it stored without a record. Without them it concerns whoever attaches next; a handover
            // need not wait for it, since nobody was promised any of it.
            self.make_good_remains();
        }
        self.tell_end(&inner, process.pid, ending);
        drop(inner);
        self.come_to_rest();
    }

    /// A process gave its session up and lives on without protection, or is about to exit.
    pub fn detached(&self, id: ProcessId) {
        let mut inner = self.lock();
        let Some(process) = inner.processes.remove(&id.0) else { return };
        self.tell_end(&inner, process.pid, Ending::Exited);
    }

    /// Whether the process of session `id` has attached anew since.
    pub fn has_newer_session(&self, id: ProcessId) -> bool {
        let inner = self.lock();
        let pid = inner.processes.get(&id.0).and_then(|p| p.pid);
        pid.is_some() && inner.processes.range(id.0 + 1..).any(|(_, p)| p.pid == pid)
    }

    /// A process has attached anew: its older session is forgotten without a word.
    pub fn superseded(&self, id: ProcessId) {
        self.lock().processes.remove(&id.0);
    }

    /// Processes that hold appender cells and are not known to be dead: after an agent's restart, those that were attached
    /// to its predecessor and may go on writing before they attach anew. Never this one.
    pub fn appending(&self) -> Vec<Writer> {
        let me = std::process::id();
        let living = self.living_owners().filter(|owner| !(owner.is_of_our_namespace() && owner.pid == me));
        let living: Vec<Owner> = living.collect();
        let abroad = living.iter().any(|owner| !owner.is_of_our_namespace());
        let everyone = abroad.then(Everyone::look).flatten();
        let number = |owner: &Owner| match owner.is_of_our_namespace() {
            true => Some(owner.pid),
            // The number of a process of another namespace means another one here.
            false => everyone.as_ref().and_then(|all| all.find(owner)),
        };
        let seen: Vec<u32> = living.iter().filter_map(number).collect();
        let crowd = self.crowd_of(&seen, Instant::now() + SAID_WITHIN);
        let writer = |owner: Owner| {
            let seen = number(&owner);
            Writer { owner, pid: seen.filter(|pid| crowd.own.contains(pid)), seen }
        };
        living.into_iter().map(writer).collect()
    }

    /// Whether a process is attached, or counted among the attached.
    pub fn has_processes(&self) -> bool {
        !self.roster.is_empty()
    }

    /// Counts `writers`, which [`Group::appending`] found, among the attached processes, and hears of their end: a program that
    /// maps its memory once and never asks anything again would not come to us by itself. One that has ended since is told of
    /// at once. One that cannot be seen from here is not counted before it comes by itself.
    pub fn watch_found(self: &Arc<Self>, writers: &[Writer]) {
        for &Writer { owner, pid, .. } in writers {
            let Some(pid) = pid else { continue };
            let process = Process {
                pid: Some(pid),
                uid: user_of(pid).unwrap_or_default(),
                program: fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().into(),
                tracks: None,
                indoors: Indoors::of(pid),
                pidfd: None,
            };
            let mut inner = self.lock();
            inner.processes.insert(owner.session, process);
            inner.found.insert(owner.session);
            drop(inner);
            let group = Arc::downgrade(self);
            let body = move || await_end(&group, &owner, pid);
            if let Err(error) = thread::Builder::new().name(format!("watch-{pid}")).spawn(body) {
                tracing::error!(group = self.name(), pid, %error, "the end of a process will not be seen");
            }
        }
    }

    /// Frees the cells of appenders that are dead beyond doubt, also of those that lived in a namespace below ours.
    pub fn bury_dead_appenders(&self) {
        let abroad = self.owners().any(|(_, owner)| !owner.is_of_our_namespace());
        let everyone = abroad.then(Everyone::look).flatten();
        self.bury(|_, _, owner| match owner.is_of_our_namespace() {
            true => owner.confirmed_dead(),
            // Nobody whose namespace is unknown can be missed.
            false => owner.namespace != 0 && everyone.as_ref().is_some_and(|all| all.find(owner).is_none()),
        });
    }

    fn bury(&self, is_dead: impl Fn(&LogRegion, u16, &Owner) -> bool) {
        for (index, owner) in self.owners().filter(|(index, owner)| is_dead(self.log(), *index, owner)) {
            self.log().reclaim_cell(index, &owner);
        }
    }

    /// What the dead stored without a record is in the regions only: the application runs ahead until a copy has it.
    pub(super) fn make_good_remains(&self) {
        if self.log().owes(Debt::Remains) {
            self.appender().run_ahead();
            self.log().settle(Debt::Remains);
        }
    }

    pub(super) fn living_owners(&self) -> impl Iterator<Item = Owner> {
        self.owners().map(|(_, owner)| owner).filter(|owner| !owner.confirmed_dead())
    }

    fn owners(&self) -> impl Iterator<Item = (u16, Owner)> {
        let cells = u16::try_from(self.log().spec().appenders).unwrap_or(u16::MAX);
        let owner = |index| Some((index, self.log().owner(index)?));
        (0..cells).filter_map(owner).filter(|(_, owner)| owner.session != AGENT_SESSION)
    }

    fn tell_end(&self, inner: &Inner, pid: Option<u32>, ending: Ending) {
        let notice = match inner.processes.is_empty() {
            true => Notice::ApplicationEnded(ending),
            false => Notice::ProcessEnded { pid, ending },
        };
        (self.notify)(notice);
    }
}

/// Looks whether nothing gets published although records are waiting: their owner is slow, or has died in a namespace that
/// appenders cannot look into. Kept by whoever says that the agent lives, for [`Group::bury_dead_appenders`].
#[derive(Debug)]
pub struct Stuck {
    published: Lsn,
    since: Instant,
}

impl Default for Stuck {
    fn default() -> Self {
        Stuck { published: Lsn(0), since: Instant::now() }
    }
}

impl Stuck {
    /// Whether `log` stands still for long, told once each time that it has been so for `STUCK`.
    pub fn is(&mut self, log: &LogRegion) -> bool {
        let published = log.published();
        let stands = published == self.published && published < log.tail();
        let told = stands && self.since.elapsed() >= STUCK;
        if told || !stands {
            *self = Stuck { published, since: Instant::now() };
        }
        told
    }
}

/// A slot that is not complete for so long is of somebody who is stopped or dead: it takes microseconds.
const STUCK: Duration = Duration::from_secs(1);

impl Inner {
    /// A process that was found has come by itself, and speaks for itself from here on.
    fn forget_found(&mut self, pid: Option<u32>) {
        let of_it = |s: &u32| pid.is_some() && self.processes.get(s).and_then(|p| p.pid) == pid;
        let sessions: Vec<u32> = self.found.iter().copied().filter(of_it).collect();
        for session in sessions {
            self.found.remove(&session);
            self.processes.remove(&session);
        }
    }
}

/// Waits for the end of a process that was found, unless it comes by itself or the group is closed before.
fn await_end(group: &Weak<Group>, owner: &Owner, pid: u32) {
    // The descriptor holds on to whatever process has the number now; only then look whose it is.
    let watch = Pid::from_raw(pid as i32).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    let watch = watch.filter(|_| {
        let itself =
            owner.is_of_our_namespace() || Indoors::of(pid).is_some_and(|i| i.is(owner, owner.session));
        itself && !owner.confirmed_dead()
    });
    loop {
        let ended = watch.as_ref().is_none_or(|watch| {
            let mut fds = [PollFd::new(watch, PollFlags::IN)];
            poll(&mut fds, Some(&LOOK)).is_ok_and(|n| n > 0)
        });
        let Some(group) = group.upgrade() else { return };
        if !group.lock().found.contains(&owner.session) {
            return;
        }
        if ended {
            group.lock().found.remove(&owner.session);
            let how = "it vanished without a goodbye".to_owned();
            return group.ended(ProcessId(owner.session), Ending::Died(how));
        }
    }
}

/// How often the thread that waits for a found process looks whether it is still needed.
const LOOK: Timespec = Timespec { tv_sec: 0, tv_nsec: 500_000_000 };

/// Session numbers that an agent reserves on disk at a time, so that no number is given out twice in a log's life and
/// attaching seldom writes.
pub(super) const SESSION_BLOCK: u32 = 1 << 12;
