//! One connection as its threads share it: the caller's, which post and send, and the engine's, which receives.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, TryLockError};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, eventfd};

use super::exchange::{End, Exchange};
use super::registry::Registry;
use super::transmit::{Progress, Transmitter};
use crate::fabric::Wake;
use crate::fabric::locked;
use crate::fabric::meeting::Wire;

/// Bytes that a caller sends itself before it leaves the rest to the engine: more would make a post of bulk take as
/// long as the network does.
const INLINE: usize = 1 << 20;

/// Bytes that the engine sends before it looks at what has come in.
const ENGINE_TURN: usize = 4 << 20;

/// What the rooms above gave to [`crate::fabric::Endpoint::on_event`].
pub type Notify = Box<dyn Fn() + Send + Sync>;

/// A connection.
pub struct Link {
    /// Who is at the other end.
    pub peer: String,
    /// The socket.
    pub wire: Wire,
    /// Memory.
    pub registry: Arc<Registry>,
    exchange: Mutex<Exchange>,
    changed: Condvar,
    transmitter: Mutex<Transmitter>,
    /// The socket took no more: the engine waits until it does. Changed with `transmitter` held.
    blocked: AtomicBool,
    /// Why the engine is to end the connection, once some thread knows it.
    doom: Mutex<Option<End>>,
    /// Wakes the engine.
    bell: OwnedFd,
    /// Threads in `wait`. Changed with `exchange` held.
    waiting: AtomicUsize,
    notify: Mutex<Option<Arc<Notify>>>,
    notify_anew: AtomicBool,
}

impl Link {
    /// A connection over `wire`, which is past its handshake.
    pub fn new(peer: String, wire: Wire) -> io::Result<Link> {
        Ok(Link {
            peer,
            wire,
            registry: Registry::new(),
            exchange: Mutex::default(),
            changed: Condvar::new(),
            transmitter: Mutex::default(),
            blocked: AtomicBool::new(false),
            doom: Mutex::new(None),
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            waiting: AtomicUsize::new(0),
            notify: Mutex::new(None),
            notify_anew: AtomicBool::new(false),
        })
    }

    /// The shared state.
    pub fn exchange(&self) -> &Mutex<Exchange> {
        &self.exchange
    }

    /// The engine's doorbell.
    pub fn bell(&self) -> &OwnedFd {
        &self.bell
    }

    /// Wakes the engine.
    pub fn ring(&self) {
        // It fails only when the counter is at its end, and then the bell rings already.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    /// Whether the engine is to wait until the socket takes more.
    pub fn blocked(&self) -> bool {
        self.blocked.load(Ordering::Relaxed)
    }

    /// Sends what is posted, from a caller's thread, as far as that goes without waiting.
    pub fn pump_inline(&self) {
        // The engine goes on as soon as the socket takes more: trying would only cost a system call.
        if !self.blocked() && self.pump(INLINE) {
            self.ring();
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
                Ok(Progress::Idle) if locked(&self.exchange).has_output() => {}
                Ok(Progress::Idle) => return false,
                Ok(Progress::Blocked) => return !was_blocked,
                Ok(Progress::More) => return true,
                Err(e) => {
                    self.doom(End::Lost(e.to_string()));
                    return true;
                }
            }
        }
    }

    /// Runs `act` with the transmitter, waiting for whoever sends to let go of it.
    pub fn with_transmitter<T>(&self, act: impl FnOnce(&mut Transmitter) -> T) -> T {
        act(&mut locked(&self.transmitter))
    }

    /// Has the engine end the connection; the first reason stays.
    pub fn doom(&self, end: End) {
        locked(&self.doom).get_or_insert(end);
        self.ring();
    }

    /// Why the engine is to end the connection.
    pub fn doomed(&self) -> Option<End> {
        locked(&self.doom).clone()
    }

    /// Tells the rooms above what is new, from the engine's thread.
    pub fn tell(&self) {
        let anew = self.notify_anew.swap(false, Ordering::Relaxed);
        {
            let mut exchange = locked(&self.exchange);
            if !exchange.news() && !anew {
                return;
            }
            // Whoever starts to wait after this sees the news itself; a call for nobody would cost a system call.
            if self.waiting.load(Ordering::Relaxed) > 0 {
                self.changed.notify_all();
            }
        }
        let notify = locked(&self.notify).clone();
        if let Some(notify) = notify {
            notify();
        }
    }

    /// See [`crate::fabric::Endpoint::on_event`]. What happened before is told again, lest it be missed.
    pub fn on_event(&self, notify: Notify) {
        *locked(&self.notify) = Some(Arc::new(notify));
        self.notify_anew.store(true, Ordering::Relaxed);
        self.ring();
    }

    /// See [`crate::fabric::Endpoint::interrupt`].
    pub fn interrupt(&self) {
        locked(&self.exchange).interrupt();
        self.changed.notify_all();
    }

    /// See [`crate::fabric::Endpoint::wait`].
    pub fn wait(&self, timeout: Duration) -> Wake {
        let until = Instant::now().checked_add(timeout);
        let mut exchange = locked(&self.exchange);
        loop {
            if let Some(wake) = exchange.wake() {
                return wake;
            }
            let left = until.map_or(timeout, |until| until.saturating_duration_since(Instant::now()));
            if left.is_zero() {
                return Wake::TimedOut;
            }
            self.waiting.fetch_add(1, Ordering::Relaxed);
            exchange = self.changed.wait_timeout(exchange, left).unwrap_or_else(|e| e.into_inner()).0;
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Link {
    /// The socket and the bell, for `poll(2)`.
    pub fn descriptors(&self) -> (impl AsFd + '_, impl AsFd + '_) {
        (&self.wire, &self.bell)
    }
}
