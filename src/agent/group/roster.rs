//! The attached processes, and what whoever freezes and kills has to know of them: under a lock of its own, held over nothing that
//! takes time.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};

use super::Process;
use crate::locks::lock;
use crate::log::mapped::lives;
use crate::region::dirty::Kind;

/// Who is attached.
#[derive(Default)]
pub(super) struct Roster(Mutex<Entries>);

#[derive(Default)]
struct Entries {
    /// By session: the process, and what holds on to it if the kernel vouched for it.
    processes: BTreeMap<u32, (Option<u32>, Option<Arc<OwnedFd>>)>,
    /// Users that a process has attached as in the life of this log.
    users: BTreeSet<u32>,
}

impl Roster {
    /// One whose processes have run as `users`.
    pub fn of(users: &[u32]) -> Roster {
        let users = users.iter().copied().collect();
        Roster(Mutex::new(Entries { users, ..Entries::default() }))
    }

    /// Whether process `pid` is attached, by the kernel's word, and lives.
    pub fn is_attached(&self, pid: u32) -> bool {
        let entries = lock(&self.0);
        let mut of_it = entries.processes.values().filter(|(of, _)| *of == Some(pid));
        of_it.any(|(_, pidfd)| pidfd.as_ref().is_some_and(|pidfd| lives(pidfd.as_fd())))
    }

    /// Numbers of the attached processes, dead ones among them.
    pub fn pids(&self) -> Vec<u32> {
        lock(&self.0).processes.values().filter_map(|(pid, _)| *pid).collect()
    }

    /// Whether nothing is attached.
    pub fn is_empty(&self) -> bool {
        lock(&self.0).processes.is_empty()
    }

    /// Notes that a process attaches as user `uid`; whether that is new.
    pub fn runs_as(&self, uid: u32) -> bool {
        lock(&self.0).users.insert(uid)
    }

    /// Whether a process has attached as user `uid`.
    pub fn has_run_as(&self, uid: u32) -> bool {
        lock(&self.0).users.contains(&uid)
    }

    /// The users that processes have attached as.
    pub fn users(&self) -> Vec<u32> {
        lock(&self.0).users.iter().copied().collect()
    }
}

/// The attached processes by session. What changes here shows in the roster.
pub(super) struct Attached {
    by_session: BTreeMap<u32, Process>,
    roster: Arc<Roster>,
}

impl Attached {
    pub fn new(roster: Arc<Roster>) -> Attached {
        Attached { by_session: BTreeMap::new(), roster }
    }

    pub fn insert(&mut self, session: u32, process: Process) {
        lock(&self.roster.0).processes.insert(session, (process.pid, process.pidfd.clone()));
        self.by_session.insert(session, process);
    }

    pub fn remove(&mut self, session: &u32) -> Option<Process> {
        lock(&self.roster.0).processes.remove(session);
        self.by_session.remove(session)
    }

    /// How the process of a session finds its stores.
    pub fn tracks(&mut self, session: u32, by: Kind) {
        if let Some(process) = self.by_session.get_mut(&session) {
            process.tracks = Some(by);
        }
    }
}

impl Deref for Attached {
    type Target = BTreeMap<u32, Process>;

    fn deref(&self) -> &Self::Target {
        &self.by_session
    }
}
