//! One connection as its threads share it: the caller's, which post and send, and the engine's, which receives.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::time::{Duration, Instant};

use super::exchange::{End, Exchange, Refused};
use super::registry::Registry;
use super::transmit::{Progress, Transmitter};
use crate::fabric::Wake;
use crate::fabric::connection::Signals;
use crate::fabric::meeting::Wire;
use crate::locks::lock;

/// Bytes that a caller sends itself before it leaves the rest to the engine: more would make a post of bulk take as
/// long as the network does.
const INLINE: usize = 1 << 20;

/// Bytes that the engine sends before it looks at what has come in.
const ENGINE_TURN: usize = 4 << 20;

/// A connection.
pub struct Link {
    /// Who is at the other end.
    pub peer: String,
    /// The socket.
    pub wire: Wire,
    /// Memory.
    pub registry: Arc<Registry>,
    /// Those who wait, and why the engine is to end the connection.
    pub signals: Signals<Refused>,
    exchange: Mutex<Exchange>,
    transmitter: Mutex<Transmitter>,
    /// The socket took no more: the engine waits until it does. Changed with `transmitter` held.
    blocked: AtomicBool,
}

impl Link {
    /// A connection over `wire`, which is past its handshake.
    pub fn new(peer: String, wire: Wire) -> io::Result<Link> {
        Ok(Link {
            peer,
            wire,
            registry: Registry::new(),
            signals: Signals::new()?,
            exchange: Mutex::default(),
            transmitter: Mutex::default(),
            blocked: AtomicBool::new(false),
        })
    }

    /// The shared state.
    pub fn exchange(&self) -> &Mutex<Exchange> {
        &self.exchange
    }

    /// Whether the engine is to wait until the socket takes more.
    pub fn blocked(&self) -> bool {
        self.blocked.load(Ordering::Relaxed)
    }

    /// Sends what is posted, from a caller's thread, as far as that goes without waiting.
    pub fn pump_inline(&self) {
        // The engine goes on as soon as the socket takes more: trying would only cost a system call.
        if !self.blocked() && self.pump(INLINE) {
            self.signals.ring();
        }
    }

    /// Sends what is posted, from the engine's thread; whether it should be called again soon.
    pub fn pump_engine(&self) -> bool {
        self.pump(ENGINE_TURN)
    }

    /// One thread sends at a time. A thread that finds another one at it leaves: whoever sends looks for new work after it
    /// let go. Returns whether the engine has something to take over.
    fn pump(&self, budget: usize) -> bool {
        loop {
            let mut transmitter = match self.transmitter.try_lock() {
                Ok(held) => held,
                Err(TryLockError::WouldBlock) => return false,
                Err(TryLockError::Poisoned(held)) => held.into_inner(),
            };
            let progress = transmitter.run(&self.wire, &self.exchange, budget);
            let blocked = matches!(progress, Ok(Progress::Blocked));
            let was_blocked = self.blocked.swap(blocked, Ordering::Relaxed);
            drop(transmitter);
            match progress {
                Ok(Progress::Idle) if lock(&self.exchange).has_output() => {}
                Ok(Progress::Idle) => return false,
                Ok(Progress::Blocked) => return !was_blocked,
                Ok(Progress::More) => return true,
                Err(e) => {
                    self.signals.doom(End::Lost(e.to_string()));
                    return true;
                }
            }
        }
    }

    /// Runs `act` with the transmitter, waiting for whoever sends to let go of it.
    pub fn with_transmitter<T>(&self, act: impl FnOnce(&mut Transmitter) -> T) -> T {
        act(&mut lock(&self.transmitter))
    }

    /// Tells the rooms above what is new, from the engine's thread.
    pub fn tell(&self) {
        self.signals.tell(&self.exchange, |exchange| exchange.requests.books.news());
    }

    /// See [`crate::fabric::Endpoint::interrupt`].
    pub fn interrupt(&self) {
        let mut exchange = lock(&self.exchange);
        exchange.requests.books.interrupt();
        self.signals.wake();
    }

    /// See [`crate::fabric::Endpoint::wait`].
    pub fn wait(&self, timeout: Duration) -> Wake {
        let until = Instant::now().checked_add(timeout);
        let mut exchange = lock(&self.exchange);
        loop {
            if let Some(wake) = exchange.requests.books.wake() {
                return wake;
            }
            let left = until.map_or(timeout, |until| until.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Wake::TimedOut;
            }
            exchange = self.signals.sleep(exchange, left);
        }
    }
}
