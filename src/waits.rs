//! Time, waiting and threads: the system's, or a simulation's.
//!
//! The rooms that ship, land and apply wait through here alone. So a simulation can run their very code on a clock of its own, a
//! thread at a time, in an order that a seed gives (`tests/simulation/`). Outside of one, every function is the system's.

use std::cell::Cell;
use std::io;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::fs::Timespec;
use rustix::thread::futex;

use crate::locks::lock;

/// What stands in for the system on a thread that simulates.
pub trait Simulation {
    /// Its clock.
    fn now(&self) -> Instant;
    /// Has others run for so long.
    fn sleep(&self, time: Duration);
    /// Has others run until `deadline`, or until `ready` says so.
    fn wait(&self, deadline: Instant, ready: &dyn Fn() -> bool);
    /// Has `body` run among the others.
    fn spawn(&self, name: String, body: Box<dyn FnOnce() + Send>);
}

thread_local! {
    static SIMULATION: Cell<Option<&'static dyn Simulation>> = const { Cell::new(None) };
}

/// How long a thread gives the processor away for, where a simulation counts that.
const YIELD: Duration = Duration::from_micros(10);

/// From here on everything on the calling thread is simulated.
pub fn simulate(by: &'static dyn Simulation) {
    SIMULATION.set(Some(by));
}

/// As [`Instant::now`].
pub fn now() -> Instant {
    SIMULATION.get().map_or_else(Instant::now, |simulation| simulation.now())
}

/// As [`Instant::elapsed`].
pub fn since(then: Instant) -> Duration {
    now().saturating_duration_since(then)
}

/// As [`thread::sleep`].
pub fn sleep(time: Duration) {
    match SIMULATION.get() {
        None => thread::sleep(time),
        Some(simulation) => simulation.sleep(time),
    }
}

/// As [`thread::yield_now`].
pub fn yield_now() {
    match SIMULATION.get() {
        None => thread::yield_now(),
        Some(simulation) => simulation.sleep(YIELD),
    }
}

/// As [`Condvar::wait_timeout`], whose `guard` is of `mutex`; a simulation lets the whole time pass.
pub fn wait_timeout<'a, T>(
    condvar: &Condvar,
    mutex: &'a Mutex<T>,
    guard: MutexGuard<'a, T>,
    time: Duration,
) -> MutexGuard<'a, T> {
    if SIMULATION.get().is_none() {
        return condvar.wait_timeout(guard, time).unwrap_or_else(PoisonError::into_inner).0;
    }
    drop(guard);
    sleep(time);
    lock(mutex)
}

/// As `FUTEX_WAIT` (futex(2)), for as long as `word` is `expected` and at most `timeout`; may return sooner.
pub fn futex_wait(word: &AtomicU32, expected: u32, timeout: Duration) {
    let Some(simulation) = SIMULATION.get() else {
        let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos().into() };
        let _ = futex::wait(word, futex::Flags::empty(), expected, Some(&timeout));
        return;
    };
    simulation.wait(simulation.now() + timeout, &|| word.load(SeqCst) != expected);
}

/// As [`thread::Builder::spawn`].
pub fn spawn<T: Send + 'static>(
    name: String,
    body: impl FnOnce() -> T + Send + 'static,
) -> io::Result<Thread<T>> {
    let Some(simulation) = SIMULATION.get() else {
        return thread::Builder::new().name(name).spawn(body).map(Thread::System);
    };
    let result = Arc::new(Mutex::new(None));
    let theirs = result.clone();
    simulation.spawn(name, Box::new(move || *lock(&theirs) = Some(body())));
    Ok(Thread::Simulated(result))
}

/// A thread that was spawned here.
#[derive(Debug)]
pub enum Thread<T> {
    /// The system's.
    System(JoinHandle<T>),
    /// A simulation's, and what it returned.
    Simulated(Arc<Mutex<Option<T>>>),
}

impl<T> Thread<T> {
    /// As [`JoinHandle::is_finished`].
    pub fn is_finished(&self) -> bool {
        match self {
            Thread::System(thread) => thread.is_finished(),
            Thread::Simulated(result) => lock(result).is_some(),
        }
    }

    /// As [`JoinHandle::join`]; a simulation ends with the first of its threads that panics.
    pub fn join(self) -> thread::Result<T> {
        match self {
            Thread::System(thread) => thread.join(),
            Thread::Simulated(result) => loop {
                if let Some(result) = lock(&result).take() {
                    return Ok(result);
                }
                yield_now();
            },
        }
    }
}
