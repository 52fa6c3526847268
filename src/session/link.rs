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
use super::peer;
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
    /// Messages on `up` whose answers have not come yet and mean nothing.
    unanswered: u32,
    /// Our number with the agent that answered last. It watches us until it hears a goodbye.
    session: Option<u32>,
    /// How often in succession the agent let us wait in vain.
    timeouts: u32,
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
        if new {
            // An agent that is gone is told when there is one again.
            self.tell(&Request::Maps { region, by }, TELL_WAIT);
        }
    }

    /// Tells the agent that this process records nothing further for a region, whose number may mean another file from here
    /// on. Does not wait. An agent that does not hear of it keeps the number for this process.
    pub fn release(&self, region: RegionId) {
        lock(&self.maps).remove(&region);
        self.tell(&Request::Release { region }, Duration::ZERO);
    }

    /// Tells the agent that the program is about to become another one. Does not wait. An agent that does not hear of it takes
    /// the end of the process for a death.
    pub fn exec(&self) {
        self.tell(&Request::Exec {}, Duration::ZERO);
    }

    /// Says a word if connected. Its answer means nothing: one that takes longer than `wait` is read before the next request's.
    fn tell(&self, word: &Request, wait: Duration) {
        let mut state = self.lock();
        let Some(up) = state.up.take().filter(|up| up.intact()) else { return };
        let now = Instant::now();
        let mut unanswered = state.unanswered;
        let mut told = up.read_answers(&mut unanswered, now);
        if unanswered < MAX_UNANSWERED {
            told = up.connection().send(word, None, Some(now));
            if told.is_ok() {
                unanswered += 1;
                told = up.read_answers(&mut unanswered, now + wait);
            }
        }
        match told {
            Ok(()) | Err(SocketError::TimedOut | SocketError::Stopped(_)) => {
                state.up = Some(up);
                state.unanswered = unanswered;
            }
            Err(e) => drop(self.lost(&mut state, e)),
        }
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
        let mut state = self.lock();
        // Whoever has waited in vain does not wait as long again.
        let wait = if state.timeouts > 0 { wait.min(PROBE_WAIT) } else { wait };
        let deadline = Instant::now() + wait;
        for fresh in [false, true] {
            if state.up.as_ref().is_none_or(|up| !up.intact()) {
                state.up = None;
                self.connect_locked(&mut state, deadline)?;
            }
            let mut unanswered = state.unanswered;
            let up = state.up.as_ref().expect("connected just now");
            let answered = up
                .read_answers(&mut unanswered, deadline)
                .and_then(|()| up.connection().send(request, fd, Some(deadline)))
                .and_then(|()| answer(up.connection(), deadline));
            state.unanswered = unanswered;
            if answered.is_ok() {
                state.timeouts = 0;
            }
            match answered {
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

    /// Says `goodbye`, the last word, to an agent that knows of this process, even if the connection was lost meanwhile: it
    /// would take the end of the process for a death. Whatever log it has now.
    pub fn finish(&self, goodbye: &Request, wait: Duration) -> Result<(), SessionError> {
        let deadline = Instant::now() + wait;
        let up = self.lock().up.is_some();
        let said = up.then(|| self.request(goodbye, None, wait).map(drop));
        let mut state = self.lock();
        let known = state.session.is_some() && !state.over;
        let answer = match said {
            Some(Ok(())) => Ok(()),
            _ if known => self.finish_anew(&mut state, goodbye, deadline),
            said => said.unwrap_or(Ok(())),
        };
        state.up = None;
        state.over = true;
        answer
    }

    fn finish_anew(
        &self,
        state: &mut State,
        goodbye: &Request,
        deadline: Instant,
    ) -> Result<(), SessionError> {
        let connection = match greet(&self.socket, &self.hello(state), deadline) {
            Ok((connection, _)) => connection,
            Err(Hello::Socket(e)) => return Err(self.lost(state, e)),
            Err(Hello::Session(e)) => return Err(e),
        };
        let said = connection
            .send(goodbye, None, Some(deadline))
            .and_then(|()| answer(&connection, deadline).map(drop));
        said.map_err(|e| self.lost(state, e))
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
        let result = greet(&self.socket, &self.hello(state), deadline);
        let (connection, welcome) = match result {
            Ok(pair) => pair,
            Err(Hello::Socket(e)) => return Err(self.lost(state, e)),
            Err(Hello::Session(e)) => return Err(e),
        };
        state.session = Some(welcome.session);
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
                .and_then(|()| answer(&connection, deadline));
            told.map_err(|e| self.lost(state, e))?;
        }
        state.expected = Some(welcome.identity);
        state.up = Some(Guarded::new(connection).map_err(unreachable)?);
        state.unanswered = 0;
        state.down_until = None;
        Ok(welcome)
    }

    fn hello(&self, state: &State) -> Request {
        Request::Hello {
            version: VERSION,
            group: self.group.clone(),
            program: self.program.clone(),
            after: state.session,
        }
    }

    fn lost(&self, state: &mut State, source: SocketError) -> SessionError {
        state.up = None;
        if matches!(source, SocketError::TimedOut | SocketError::Stopped(_)) {
            state.timeouts += 1;
        }
        state.down_until = Some(Instant::now() + pause_after(state.timeouts));
        SessionError::NoAgent { socket: self.socket.clone(), source }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic of another thread leaves at worst a connection with an answer pending, which `finish` and
        // `lost` would have dropped; the next answer would then be of the wrong kind and is refused.
        lock(&self.state)
    }
}

/// How long an agent is taken for unreachable that has let us wait in vain so often.
fn pause_after(timeouts: u32) -> Duration {
    let doubled = 1 << timeouts.saturating_sub(1).min(u32::BITS - 1);
    RETRY_PAUSE.saturating_mul(doubled).min(LONGEST_PAUSE)
}

enum Hello {
    Socket(SocketError),
    Session(SessionError),
}

fn greet(socket: &Path, hello: &Request, deadline: Instant) -> Result<(Connection, Welcome), Hello> {
    let connection = Connection::connect(socket, deadline).map_err(Hello::Socket)?;
    connection.send(hello, None, Some(deadline)).map_err(Hello::Socket)?;
    match answer(&connection, deadline).map_err(Hello::Socket)? {
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

/// The agent's next answer, if it comes by `deadline`. An agent that is seen to be stopped is not waited for so long: a slow one
/// may answer yet, that one will not.
fn answer(connection: &Connection, deadline: Instant) -> Result<(Reply, Option<OwnedFd>), SocketError> {
    let mut stopped = None;
    loop {
        match connection.recv(Some(deadline.min(Instant::now() + LOOK))) {
            Err(SocketError::TimedOut) if Instant::now() < deadline => {}
            answered => return answered,
        }
        let before = std::mem::replace(&mut stopped, peer::stopped(connection));
        if let (Some(_), Some(pid)) = (before, stopped) {
            return Err(SocketError::Stopped(pid));
        }
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

    /// Reads the answers that mean nothing, and counts down what is still to come.
    fn read_answers(&self, unanswered: &mut u32, deadline: Instant) -> Result<(), SocketError> {
        while *unanswered > 0 {
            answer(self.connection(), deadline)?;
            *unanswered -= 1;
        }
        Ok(())
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

/// How often the agent that is waited for is looked at; stopped twice in succession, it is given up.
const LOOK: Duration = Duration::from_millis(50);

/// Longest wait for a word that changes nothing for the program.
const TELL_WAIT: Duration = Duration::from_millis(100);

/// Words whose answers are still to come: as many small answers as a socket's buffer holds with ease.
const MAX_UNANSWERED: u32 = 64;

/// For so long after a failure the agent is taken for unreachable, so that a program which opens many files
/// does not pay the wait for each. Doubled with each wait in vain up to [`LONGEST_PAUSE`].
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// An agent that is stopped or stuck costs a program [`PROBE_WAIT`] in this time at most; one that is back is found within it.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Longest wait for an agent's answer after one that came in vain.
const PROBE_WAIT: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_that_lets_us_wait_in_vain_is_asked_less_and_less() {
        let seconds: Vec<u64> = [0, 1, 2, 3, 5, 6, 1000].map(|n| pause_after(n).as_secs()).to_vec();
        assert_eq!(seconds, [1, 1, 2, 4, 16, 30, 30]);
    }
}
