//! The agent's Unix socket: applications and operators of this machine.
//!
//! Anyone may connect; who may do what is decided by the credentials that the kernel vouches for ([`Access`]).
//! Each session costs one thread, one message of memory and its share of [`MAX_SESSIONS`], whatever its client
//! sends: garbage ends it, silence before the first request and a full receive queue end it after a time limit. A client passes descriptors,
//! never paths. Used by the daemon.

mod events;
mod launcher;
mod session;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{io, mem};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

pub use launcher::LAUNCHER;

use super::access::Access;
use super::events::Events;
use super::group::Controller;
use super::status::Status;
use crate::locks::lock;
use crate::session::peer::Peer;
use crate::session::socket::{Connection, Listener, SocketError};
use crate::session::wire::Reply;

/// Sessions at a time: each costs a thread. The largest servers of our users run a few hundred processes.
pub const MAX_SESSIONS: usize = 1024;

/// Sessions of one user at a time, so that no user can keep the others out. Operators are not limited.
pub const MAX_SESSIONS_PER_USER: usize = 256;

/// A client must take an answer within this time.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// What sessions need of the node; implemented by the daemon.
pub trait Node: Send + Sync {
    /// Who may do what.
    fn access(&self) -> &Access;
    /// The groups of this node, those with applications here first.
    fn controllers(&self) -> &[Arc<dyn Controller>];
    /// The event stream.
    fn events(&self) -> &Events;
    /// The status document; `sessions` is the number that are open.
    fn status(&self, sessions: usize) -> Status;
    /// An operator asked the agent to finish and exit.
    fn shutdown(&self);
}

/// The socket's server; dropped, it ends all sessions.
pub struct Sessions {
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

/// What all sessions share.
struct Shared {
    node: Arc<dyn Node>,
    stop: OwnedFd,
    stopping: AtomicBool,
    open: Mutex<BTreeMap<u32, usize>>,
    changed: Condvar,
    launchers: launcher::Launchers,
}

impl Sessions {
    /// Serves `listener` until dropped.
    pub fn start(listener: Listener, node: Arc<dyn Node>) -> io::Result<Sessions> {
        let shared = Arc::new(Shared {
            node,
            stop: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            stopping: AtomicBool::new(false),
            open: Mutex::default(),
            changed: Condvar::new(),
            launchers: launcher::Launchers::default(),
        });
        let for_thread = shared.clone();
        let acceptor = thread::Builder::new()
            .name("sessions".into())
            .spawn(move || accept_until_stopped(&listener, &for_thread))?;
        Ok(Sessions { shared, acceptor: Some(acceptor) })
    }

    /// Sessions that are open.
    pub fn count(&self) -> usize {
        self.shared.count()
    }
}

impl Drop for Sessions {
    fn drop(&mut self) {
        // Pairs with the loads in the threads that the eventfd wakes.
        self.shared.stopping.store(true, Ordering::Release);
        // The counter of an eventfd that nobody reads cannot overflow from a single write.
        let _ = rustix::io::write(&self.shared.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.acceptor.take() {
            let _ = thread.join();
        }
        let deadline = Instant::now() + ANSWER_WITHIN;
        let mut open = self.shared.lock();
        while !open.is_empty() && Instant::now() < deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            open = self.shared.changed.wait_timeout(open, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Shared {
    fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    fn count(&self) -> usize {
        self.lock().values().sum()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, usize>> {
        lock(&self.open)
    }

    /// A place for a session of `uid`; given back when the place is dropped.
    fn enter(self: &Arc<Self>, uid: u32) -> Result<Place, String> {
        let mut open = self.lock();
        let (all, own) = (open.values().sum::<usize>(), open.get(&uid).copied().unwrap_or(0));
        if !self.node.access().is_operator(uid) {
            if own >= MAX_SESSIONS_PER_USER {
                return Err(format!("{own} sessions of user {uid} are open, the limit of one user"));
            }
            if all >= MAX_SESSIONS {
                return Err(format!("{all} sessions are open, the limit of this agent"));
            }
        }
        *open.entry(uid).or_default() += 1;
        Ok(Place { shared: self.clone(), uid })
    }
}

/// A session's share of the limits.
struct Place {
    shared: Arc<Shared>,
    uid: u32,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.shared.lock();
        if let Some(own) = open.get_mut(&self.uid) {
            *own -= 1;
            if *own == 0 {
                open.remove(&self.uid);
            }
        }
        self.shared.changed.notify_all();
    }
}

fn accept_until_stopped(listener: &Listener, shared: &Arc<Shared>) {
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(shared.stop.as_fd(), PollFlags::IN),
        ];
        let polled = poll(&mut fds, None);
        if shared.stopping() {
            return;
        }
        if polled.is_err() {
            continue; // Interrupted: look again.
        }
        match listener.accept(Some(Instant::now())) {
            Ok(connection) => admit(connection, shared),
            Err(SocketError::TimedOut) => {}
            Err(error) => {
                tracing::warn!(%error, "accepting a session failed");
                wait_for_room(shared);
            }
        }
    }
}

/// Accepting fails for want of descriptors or memory: only the end of a session makes room, so wait for one, and
/// look again at times in case somebody else made room.
fn wait_for_room(shared: &Shared) {
    let open = shared.lock();
    drop(shared.changed.wait_timeout(open, LOOK_AGAIN).unwrap_or_else(PoisonError::into_inner));
}

fn admit(connection: Connection, shared: &Arc<Shared>) {
    let peer = match Peer::of(&connection) {
        Ok(peer) => peer,
        Err(error) => {
            return tracing::warn!(%error, "a session whose client cannot be identified was refused");
        }
    };
    let place = match shared.enter(peer.uid) {
        Ok(place) => place,
        Err(message) => {
            tracing::warn!(uid = peer.uid, message, "session refused");
            // The refusal is a courtesy: a client that does not take it at once does not get it.
            let _ = connection.send(&Reply::Error { message }, None, Some(Instant::now()));
            return;
        }
    };
    let shared = shared.clone();
    let run = move || {
        session::run(&connection, &peer, &shared);
        mem::drop(place);
    };
    if let Err(error) = thread::Builder::new().name("session".into()).stack_size(STACK).spawn(run) {
        tracing::warn!(%error, "no thread for a session: refused");
    }
}

/// Stack of a session's thread: messages are on the heap.
const STACK: usize = 256 << 10;

/// See [`wait_for_room`].
const LOOK_AGAIN: Duration = Duration::from_millis(100);
