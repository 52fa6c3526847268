//! The socket to the agent, made when it is needed and made again when the agent was restarted.
//!
//! It lives inside programs that know nothing of it. So its descriptor is close-on-exec and sits above those that
//! programs expect to be given; a program that closes all its descriptors takes ours along, and
//! whatever it then opens under the same number is neither used nor closed by us. Requests are bounded in
//! time, and while the agent is unreachable they fail at once instead of making the program wait each time.
//!
//! Threads: requests of several threads take turns.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::client::SessionError;
use super::socket::{Connection, SocketError};
use super::wire::{Reply, Request, VERSION};
use crate::locks::lock;
use crate::region::dirty::Kind;
use crate::types::{Generation, GroupId, Level, RegionId};

/// What an agent says to a new session.
#[derive(Debug)]
pub(super) struct Welcome {
    pub group: String,
    pub session: u32,
    pub protect: Vec<String>,
    pub commit: Level,
    pub identity: Identity,
    /// The log region's memfd.
    pub log: OwnedFd,
}

/// What must be the same for a log region to go on after the agent was restarted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub group: GroupId,
    pub generation: Generation,
    /// Of the memfd.
    pub log: FileId,
}

/// Which file a descriptor means: device and inode.
pub(super) type FileId = (u64, u64);

/// A session's socket to the agent. See the module.
#[derive(Debug)]
pub(super) struct Link {
    socket: PathBuf,
    group: Option<String>,
    program: String,
    /// What this process maps: every new session is told.
    maps: Mutex<BTreeMap<RegionId, Kind>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    up: Option<Guarded>,
    /// Agents of another log are refused once this is known.
    expected: Option<Identity>,
    /// Until then the agent is taken for unreachable without asking.
    down_until: Option<Instant>,
    /// No further connection: the session has said goodbye.
    over: bool,
}

impl Link {
    /// A link that is not connected yet. `expected` is the log that is already attached, if one is.
    pub fn new(socket: PathBuf, group: Option<String>, program: String, expected: Option<Identity>) -> Link {
        let state = Mutex::new(State { expected, ..State::default() });
        Link { socket, group, program, maps: Mutex::default(), state }
    }

    /// Tells the agent that a region is being mapped: the present one, once, and each that follows it.
    pub fn maps(&self, region: RegionId, by: Kind) {
        let new = lock(&self.maps).insert(region, by).is_none();
        if new && self.lock().up.is_some() {
            // An agent that is gone is told when there is one again.
            let _ = self.request(&Request::Maps { region, by }, None, TELL_WAIT);
        }
    }

    /// The region's number may mean another file from here on.
    pub fn unmaps(&self, region: RegionId) {
        lock(&self.maps).remove(&region);
    }

    /// A link to the same agent and group for the child of a fork, not connected.
    pub fn for_child(&self, expected: Identity) -> Link {
        Link::new(self.socket.clone(), self.group.clone(), self.program.clone(), Some(expected))
    }

    /// Connects now and returns what the agent said.
    pub fn connect(&self, wait: Duration) -> Result<Welcome, SessionError> {
        self.connect_locked(&mut self.lock(), Instant::now() + wait)
    }

    /// Asks, connecting if need be, and returns the answer. An agent's refusal is an error.
    pub fn request(
        &self,
        request: &Request,
        fd: Option<BorrowedFd<'_>>,
        wait: Duration,
    ) -> Result<Reply, SessionError> {
        let deadline = Instant::now() + wait;
        let mut state = self.lock();
        for fresh in [false, true] {
            if state.up.as_ref().is_none_or(|up| !up.intact()) {
                state.up = None;
                self.connect_locked(&mut state, deadline)?;
            }
            let connection = state.up.as_ref().expect("connected just now").connection();
            let answer = connection
                .send(request, fd, Some(deadline))
                .and_then(|()| connection.recv::<Reply>(Some(deadline)));
            match answer {
                Ok((Reply::Error { message }, _)) => return Err(SessionError::Refused { message }),
                Ok((reply, _)) => return Ok(reply),
                // The socket was left over from an agent that is gone: its successor gets the request.
                Err(SocketError::Closed) if !fresh => state.up = None,
                // An answer that comes late must not be taken for that of a later request.
                Err(e) => return Err(self.lost(&mut state, e)),
            }
        }
        Err(self.lost(&mut state, SocketError::Closed))
    }

    /// Reconnects if the agent was restarted; returns the new session's number if so. Never waits for
    /// another thread, and for the agent no longer than `wait`.
    pub fn tend(&self, wait: Duration) -> Option<u32> {
        let mut state = match self.state.try_lock() {
            Ok(state) => state,
            Err(std::sync::TryLockError::Poisoned(p)) => p.into_inner(),
            Err(std::sync::TryLockError::WouldBlock) => return None,
        };
        if state.up.as_ref().is_some_and(|up| up.intact() && !up.hung_up()) {
            return None;
        }
        state.up = None;
        self.connect_locked(&mut state, Instant::now() + wait).ok().map(|w| w.session)
    }

    /// Sends `request` if connected, waits for its answer, and never connects again.
    pub fn finish(&self, request: &Request, wait: Duration) -> Result<(), SessionError> {
        let up = self.lock().up.is_some();
        let answer = if up { self.request(request, None, wait).map(drop) } else { Ok(()) };
        let mut state = self.lock();
        state.up = None;
        state.over = true;
        answer
    }

    /// In the child of a fork: closes the child's copy of the descriptor, unless a thread that does not exist
    /// here held the lock.
    pub fn drop_inherited(&self) {
        if let Ok(mut state) = self.state.try_lock() {
            state.up = None;
        }
    }

    fn connect_locked(&self, state: &mut State, deadline: Instant) -> Result<Welcome, SessionError> {
        if state.over {
            return Err(SessionError::Over);
        }
        let unreachable = |source| SessionError::NoAgent { socket: self.socket.clone(), source };
        if state.down_until.is_some_and(|until| Instant::now() < until) {
            return Err(unreachable(SocketError::Closed));
        }
        let result = hello(&self.socket, &self.group, &self.program, deadline);
        let (connection, welcome) = match result {
            Ok(pair) => pair,
            Err(Hello::Socket(e)) => return Err(self.lost(state, e)),
            Err(Hello::Session(e)) => return Err(e),
        };
        if let Some(expected) = state.expected.filter(|e| *e != welcome.identity) {
            // Knocking again would change nothing and cost the program time.
            state.down_until = Some(Instant::now() + RETRY_PAUSE);
            return Err(SessionError::Replaced {
                group: welcome.group,
                ours: expected.generation,
                theirs: welcome.identity.generation,
            });
        }
        let maps = lock(&self.maps).clone();
        for (region, by) in maps {
            let told = connection
                .send(&Request::Maps { region, by }, None, Some(deadline))
                .and_then(|()| connection.recv::<Reply>(Some(deadline)));
            told.map_err(|e| self.lost(state, e))?;
        }
        state.expected = Some(welcome.identity);
        state.up = Some(Guarded::new(connection).map_err(unreachable)?);
        state.down_until = None;
        Ok(welcome)
    }

    fn lost(&self, state: &mut State, source: SocketError) -> SessionError {
        state.up = None;
        state.down_until = Some(Instant::now() + RETRY_PAUSE);
        SessionError::NoAgent { socket: self.socket.clone(), source }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic of another thread leaves at worst a connection with an answer pending, which `finish` and
        // `lost` would have dropped; the next answer would then be of the wrong kind and is refused.
        lock(&self.state)
    }
}

enum Hello {
    Socket(SocketError),
    Session(SessionError),
}

fn hello(
    socket: &Path,
    group: &Option<String>,
    program: &str,
    deadline: Instant,
) -> Result<(Connection, Welcome), Hello> {
    let connection = Connection::connect(socket, deadline).map_err(Hello::Socket)?;
    let hello = Request::Hello { version: VERSION, group: group.clone(), program: program.to_owned() };
    connection.send(&hello, None, Some(deadline)).map_err(Hello::Socket)?;
    match connection.recv(Some(deadline)).map_err(Hello::Socket)? {
        (Reply::Welcome { agent: _, group, group_id, generation, session, protect, commit }, Some(log)) => {
            let file = file_id(log.as_fd()).map_err(Hello::Socket)?;
            let identity = Identity { group: group_id, generation, log: file };
            Ok((connection, Welcome { group, session, protect, commit, identity, log }))
        }
        (Reply::Welcome { .. }, None) => {
            Err(Hello::Session(SessionError::Unexpected { reply: "a welcome without a log region".into() }))
        }
        (Reply::Error { message }, _) => Err(Hello::Session(SessionError::Refused { message })),
        (other, _) => Err(Hello::Session(SessionError::unexpected(&other))),
    }
}

/// A connection whose descriptor number the program may close and reuse behind our back.
#[derive(Debug)]
struct Guarded {
    /// None only while being dropped.
    connection: Option<Connection>,
    id: FileId,
}

impl Guarded {
    fn new(connection: Connection) -> Result<Guarded, SocketError> {
        let low = connection.into_fd();
        // Fails where the limit of open files is lower still: then the low number has to do.
        let fd = rustix::io::fcntl_dupfd_cloexec(&low, LOWEST_FD).unwrap_or(low);
        let id = file_id(fd.as_fd())?;
        Ok(Guarded { connection: Some(Connection::from_fd(fd)), id })
    }

    fn connection(&self) -> &Connection {
        self.connection.as_ref().expect("taken only by drop")
    }

    /// Whether the descriptor still is our socket.
    fn intact(&self) -> bool {
        file_id(self.connection().as_fd()).is_ok_and(|id| id == self.id)
    }

    /// Whether the agent has closed its end.
    fn hung_up(&self) -> bool {
        let mut fds = [PollFd::new(self.connection(), PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        !matches!(poll(&mut fds, Some(&now)), Ok(0))
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        if !self.intact() {
            // The number belongs to the program now, or to nobody: closing it is not ours to do.
            let _ = self.connection.take().map(|c| c.into_fd().into_raw_fd());
        }
    }
}

fn file_id(fd: BorrowedFd<'_>) -> Result<FileId, SocketError> {
    let stat = rustix::fs::fstat(fd)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Descriptors below are left to the program: shells and daemons close or expect low numbers.
const LOWEST_FD: i32 = 500;

/// Longest wait for a word that changes nothing for the program.
const TELL_WAIT: Duration = Duration::from_millis(100);

/// For so long after a failure the agent is taken for unreachable, so that a program which opens many files
/// does not pay the wait for each.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
