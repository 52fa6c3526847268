//! One connection as its threads share it: the caller's, which post, poll and revoke, and the engine's, which sleeps
//! until the adapter or the peer has something to say.
//!
//! Locks, in this order: `sender` (whoever posts), `state` (bookkeeping and the completion queue), the queue pair's own. All
//! are held for moments.
//!
//! **Events are asked for only by those who sleep.** An adapter that raises an event for every completion costs a system
//! call and a context switch each, which a caller that polls anyway has no use for. So the completion queue is armed
//! by [`Link::wait`], and by the engine once nobody has polled for [`LULL`]; an event disarms it.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::VerbsError;
use super::chain::{Action, Chain, Request};
use super::ledger::{End, Ledger, Suspicion};
use super::memory::Region;
use super::pair::{Pair, RECEIVE};
use super::queue::Status;
use crate::fabric::connection::Signals;
use crate::fabric::meeting::Wire;
use crate::fabric::{Completion, FabricError, Wake};
use crate::locks::lock;

/// A caller that has not polled for so long is taken to sleep.
pub const LULL: Duration = Duration::from_millis(1);

/// Longest time for which a waiter polls before it sleeps: about a round trip, and less than waking up costs.
const SPIN_MOST: Duration = Duration::from_micros(20);

/// Shortest: what it costs to find out again whether polling pays.
const SPIN_LEAST: Duration = Duration::from_micros(1);

/// A connection.
pub struct Link {
    /// Who is at the other end.
    pub peer: String,
    /// The control connection.
    pub wire: Wire,
    /// Those who wait, and why the engine is to end the connection.
    pub signals: Signals<String>,
    pair: Pair,
    /// Longest message of the port.
    max_message: usize,
    limit: usize,
    sender: Mutex<Sender>,
    state: Mutex<State>,
}

/// Held by whoever posts.
struct Sender {
    chain: Chain,
    batch: Vec<Post>,
}

struct State {
    ledger: Ledger<Arc<Region>>,
    /// The adapter has been asked for an event, and it has not been taken.
    armed: bool,
    /// Calls of [`Link::poll`] so far.
    polls: u64,
    spin: Duration,
    /// Nothing can land any more.
    silent: bool,
}

/// A post's requests, which hold memory until it is over, however it ends.
struct Emptied<'a>(&'a mut Vec<Post>);

impl Drop for Emptied<'_> {
    fn drop(&mut self) {
        self.0.clear();
    }
}

/// A request as the endpoint checked it.
pub struct Post {
    /// Local memory.
    pub region: Arc<Region>,
    /// First byte in it.
    pub offset: usize,
    /// Number of bytes.
    pub len: usize,
    /// Address at the peer.
    pub remote: u64,
    /// The peer's key.
    pub rkey: u32,
    /// What is done.
    pub action: Action,
    /// The caller's number for the completion.
    pub signal: Option<u64>,
}

impl Link {
    /// A connection over a pair that is ready to send. `limit` requests may be posted, pieces of `max_message` bytes.
    pub fn new(peer: String, wire: Wire, pair: Pair, limit: usize, max_message: usize) -> io::Result<Link> {
        Ok(Link {
            peer,
            wire,
            signals: Signals::new()?,
            pair,
            max_message,
            limit,
            sender: Mutex::new(Sender { chain: Chain::new(), batch: Vec::new() }),
            state: Mutex::new(State {
                ledger: Ledger::new(limit),
                armed: false,
                polls: 0,
                spin: SPIN_MOST,
                silent: false,
            }),
        })
    }

    /// The queue pair.
    pub fn pair(&self) -> &Pair {
        &self.pair
    }

    /// See [`crate::fabric::Endpoint::limit`].
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Posts what `checked` gives, in order, or nothing of it.
    pub fn post(&self, checked: impl Iterator<Item = Result<Post, FabricError>>) -> Result<(), FabricError> {
        let mut sender = lock(&self.sender);
        let Sender { chain, batch } = &mut *sender;
        let batch = Emptied(batch);
        for post in checked {
            batch.0.push(post?);
        }
        let pieces = batch.0.iter().map(|p| self.pieces(p)).sum();
        let signalled = batch.0.iter().filter(|p| p.signal.is_some()).count();
        let (first, goes) = {
            let mut state = lock(&self.state);
            if let Some(end) = state.ledger.books.end() {
                return Err(end.error(&self.peer));
            }
            if state.ledger.books.room(pieces, signalled).is_err() {
                // What has completed makes room.
                self.drain(&mut state);
            }
            state
                .ledger
                .books
                .room(pieces, signalled)
                .map_err(|in_flight| FabricError::Busy { in_flight })?;
            let mut first = None;
            for post in batch.0.iter() {
                let number = state.ledger.post(self.pieces(post), post.signal, post.region.clone());
                first.get_or_insert(number);
            }
            (first.unwrap_or(0), state.ledger.takes_requests())
        };
        if goes {
            let requests = batch.0.iter().flat_map(|post| self.requests(post));
            let numbered = (first..).zip(requests).map(|(id, request)| Request { id, ..request });
            if let Err(e) = self.pair.post(chain, numbered) {
                // Some of it may have been posted: all of it completes with the connection's end. Nothing may be posted behind
                // it, since the completion of that would settle it.
                lock(&self.state).ledger.halt();
                self.signals.doom(End::Lost(format!("the adapter took no request: {e}")));
            }
        }
        Ok(())
    }

    fn pieces(&self, post: &Post) -> usize {
        post.len.div_ceil(self.max_message).max(1)
    }

    /// The pieces of a request, all but the last unsignalled and without immediate.
    fn requests<'a>(&'a self, post: &'a Post) -> impl Iterator<Item = Request> + 'a {
        let count = self.pieces(post);
        (0..count).map(move |i| {
            let from = i * self.max_message;
            let len = (post.len - from).min(self.max_message);
            let last = i + 1 == count;
            let action = match post.action {
                Action::WriteImmediate(_) if !last => Action::Write,
                action => action,
            };
            Request {
                id: 0,
                action,
                pieces: post.region.pieces(post.offset + from, len),
                remote: post.remote + from as u64,
                rkey: post.rkey,
                signalled: last && post.signal.is_some(),
                inline: action != Action::Read && len > 0 && len <= self.pair.inline(),
            }
        })
    }

    /// See [`crate::fabric::Endpoint::poll`].
    pub fn poll(&self, out: &mut Vec<Completion>) -> usize {
        let mut state = lock(&self.state);
        state.polls += 1;
        self.drain(&mut state);
        if state.ledger.books.has_news() {
            self.signals.wake();
        }
        state.ledger.books.poll(out)
    }

    /// See [`crate::fabric::Endpoint::take_immediate`].
    pub fn take_immediate(&self) -> Option<u32> {
        lock(&self.state).ledger.books.take_immediate()
    }

    /// See [`crate::fabric::Endpoint::wait`].
    pub fn wait(&self, timeout: Duration) -> Wake {
        let start = Instant::now();
        let until = start.checked_add(timeout);
        let mut state = lock(&self.state);
        self.drain(&mut state);
        let spin = state.spin.min(timeout);
        let mut spun = false;
        while state.ledger.books.expects_completions() && start.elapsed() < spin {
            if let Some(wake) = state.ledger.books.wake() {
                state.spin = if spun { (2 * state.spin).min(SPIN_MOST) } else { state.spin };
                return wake;
            }
            spun = true;
            drop(state);
            std::hint::spin_loop();
            state = lock(&self.state);
            self.drain(&mut state);
        }
        if spun {
            state.spin = (state.spin / 2).max(SPIN_LEAST);
        }
        loop {
            if let Some(wake) = state.ledger.books.wake() {
                return wake;
            }
            if !state.armed {
                self.arm(&mut state);
                continue;
            }
            let left = until.map_or(timeout, |until| until.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Wake::TimedOut;
            }
            state = self.signals.sleep(state, left);
        }
    }

    /// See [`crate::fabric::Endpoint::interrupt`].
    pub fn interrupt(&self) {
        let mut state = lock(&self.state);
        state.ledger.books.interrupt();
        self.signals.wake();
    }

    /// After this nothing of the peer's lands, and the adapter touches no memory for this connection. Repeatable. Doom it
    /// first, so that what fails by this has its reason.
    pub fn silence(&self) -> Result<(), VerbsError> {
        if lock(&self.state).silent {
            return Ok(());
        }
        // At once; then, when nobody posts and nothing is landing any more, for certain.
        self.pair.refuse();
        let mut state = lock(&self.state);
        // What has completed by now has completed.
        self.drain(&mut state);
        state.ledger.halt();
        if let Err(error) = self.pair.destroy() {
            // What cannot be silenced is left nothing to reach.
            tracing::warn!(peer = self.peer, %error, "deregistering the peer's memory instead");
            self.pair.domain().deregister_all()?;
        }
        state.silent = true;
        Ok(())
    }

    /// Ends the connection in the books. After [`Link::silence`].
    pub fn finish(&self, end: End) {
        let mut state = lock(&self.state);
        self.drain(&mut state);
        state.ledger.finish(end, &self.peer);
    }

    /// Takes what the adapter has completed, for the engine.
    pub fn collect(&self) {
        self.drain(&mut lock(&self.state));
    }

    /// Why the queue pair failed, as far as it is known.
    pub fn suspicion(&self) -> Option<Suspicion> {
        lock(&self.state).ledger.suspicion()
    }

    /// Tells the rooms above what is new, from the engine's thread.
    pub fn tell(&self) {
        self.signals.tell(&self.state, |state| state.ledger.books.news());
    }

    /// How long the engine may sleep: for ever if events will wake it; for a [`LULL`] while somebody polls, whose count
    /// `seen` remembers; not at all if something has come just now.
    pub fn rest(&self, seen: &mut u64) -> Option<Duration> {
        let mut state = lock(&self.state);
        if state.armed {
            return None;
        }
        if !self.signals.anyone_sleeps() && std::mem::replace(seen, state.polls) != state.polls {
            return Some(LULL);
        }
        self.arm(&mut state);
        if state.ledger.books.has_news() { Some(Duration::ZERO) } else { None }
    }

    /// Events of the completion queue were taken.
    pub fn disarmed(&self) {
        lock(&self.state).armed = false;
    }

    fn arm(&self, state: &mut State) {
        state.armed = true;
        if let Err(e) = self.pair.queue().arm() {
            self.signals.doom(End::Lost(format!("the adapter reports no completions: {e}")));
        }
        // What came before raises no event.
        self.drain(state);
    }

    fn drain(&self, state: &mut State) {
        let ledger = &mut state.ledger;
        if ledger.books.end().is_some() {
            return;
        }
        let suspected = ledger.suspicion().is_some();
        let (mut receives, mut overrun) = (0, None);
        let polled = self.pair.queue().poll(|ended| match (ended.id & RECEIVE != 0, ended.status) {
            (false, status) => ledger.ended(ended.id, status),
            (true, Status::Success) => {
                receives += 1;
                if let Some(Err(broken)) = ended.immediate.map(|value| ledger.books.immediate(value)) {
                    overrun = Some(broken);
                }
            }
            (true, _) => ledger.receive_flushed(),
        });
        if receives > 0
            && ledger.takes_requests()
            && let Err(e) = self.pair.post_receives(receives)
        {
            self.signals.doom(End::Lost(format!("the adapter took no receive: {e}")));
        }
        if let Some(broken) = overrun {
            self.signals.doom(End::Protocol(broken.to_owned()));
        }
        if let Err(e) = polled {
            self.signals.doom(End::Lost(e.to_string()));
        }
        if !suspected && ledger.suspicion().is_some() {
            self.signals.ring();
        }
    }
}
