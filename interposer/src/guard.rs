//! Who is calling: the program, or we ourselves?
//!
//! Three things call hooked functions: the program, its signal handlers, and our own use of the Rust standard
//! library. The last must pass straight through. So the slow work of the library (attaching, protecting,
//! changing tables) runs inside [`slow`]: signals blocked, so that no handler of the program can be mistaken for
//! us, one lock for all of it, and hooks transparent for this thread. Capturing takes no lock and needs no
//! blocked signals; it only notes that it is under way, so that a handler's drain does not wait for the slot
//! that the interrupted code is filling: it is done when that code ends.
//!
//! The thread-local state is const and without destructors. The library is loaded at start, so it lies in the
//! static TLS block: no use of it allocates.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU32, Ordering, compiler_fence};

use pmemha::log::appender::wait_later;

use crate::report::error;

struct Marks {
    slow: Cell<u32>,
    capturing: Cell<u32>,
    owed: Cell<bool>,
    lines_recorded: Cell<u32>,
    forking: Cell<bool>,
}

thread_local! {
    static MARKS: Marks = const {
        Marks {
            slow: Cell::new(0),
            capturing: Cell::new(0),
            owed: Cell::new(false),
            lines_recorded: Cell::new(0),
            forking: Cell::new(false),
        }
    };
}

/// Whether this thread is inside [`slow`]: hooks must pass through.
#[inline]
pub fn inside() -> bool {
    MARKS.with(|m| m.slow.get() != 0)
}

/// Runs `work` with hooks transparent, signals blocked and the lock held, keeping `errno`. `None` if it panicked,
/// which is said and must not take the program with it, or if this thread is inside already.
pub fn slow<R>(work: impl FnOnce() -> R) -> Option<R> {
    if inside() {
        return None;
    }
    let _errno = KeepErrno::new();
    let result = locked(work);
    // As a capture would: with the program's signals, and with nothing of ours held.
    await_noted();
    result.map_err(|_| error!("an internal error was survived; what it was about may not be replicated")).ok()
}

fn locked<R>(work: impl FnOnce() -> R) -> std::thread::Result<R> {
    let _signals = BlockedSignals::new();
    let _inside = Inside::enter();
    let forking = MARKS.with(|m| m.forking.get());
    if forking {
        // A handler of the program's runs between ours, and the lock is this thread's.
        crate::process::settle_in_child();
    } else {
        lock();
    }
    let result = catch_unwind(AssertUnwindSafe(work));
    if !forking {
        unlock();
    }
    result
}

/// Takes the lock. Its holder never waits for another thread's slot, which that thread may be kept from filling by a handler
/// that waits for the lock: it does so after [`unlock`].
fn lock() {
    LOCK.lock();
    wait_later(true);
}

fn unlock() {
    wait_later(false);
    LOCK.unlock();
}

/// What was appended under the lock counts as captured once everything below is complete.
fn await_noted() {
    if !MARKS.with(|m| m.forking.get())
        && let Some(session) = crate::state::session()
    {
        session.appender().await_noted();
    }
}

/// Prepares, and has `act` do the call and record it, or does the call where there was nothing to prepare: in one step, under
/// the lock. Returns what the call returned, 0 for success; `errno` is the call's if it failed.
pub fn together<P>(
    call: impl Fn() -> i32,
    prepare: impl FnOnce() -> Option<P>,
    act: impl FnOnce(P, &dyn Fn() -> i32) -> i32,
) -> i32 {
    let failure = Cell::new(None);
    let noting = || {
        let result = call();
        if result != 0 {
            failure.set(Some(KeepErrno::new()));
        }
        result
    };
    let done = slow(|| match prepare() {
        Some(prepared) => {
            let result = act(prepared, &noting);
            // A refusal, instead of the call.
            if result != 0 {
                let refused = KeepErrno::new();
                failure.set(Some(failure.take().unwrap_or(refused)));
            }
            result
        }
        None => noting(),
    });
    // After `slow` has put back the errno from before the call.
    drop(failure);
    crate::state::drain_if_ending();
    done.unwrap_or_else(call)
}

/// Runs `work`, which appends, and then `owed` if a signal handler wanted a drain meanwhile.
#[inline]
pub fn capturing<R>(work: impl FnOnce() -> R, owed: impl FnOnce()) -> R {
    MARKS.with(|m| {
        let before = m.capturing.get();
        m.capturing.set(before + 1);
        // A handler's drain may come from here on, and looks at the mark.
        compiler_fence(Ordering::SeqCst);
        let result = work();
        compiler_fence(Ordering::SeqCst);
        m.capturing.set(before);
        if before == 0 && m.owed.get() && !m.forking.get() {
            m.owed.set(false);
            owed();
        }
        result
    })
}

/// Whether a drain must be left to the code that this signal handler interrupted, or to the end of a fork, during which this
/// thread holds the lock; notes that it is wanted.
#[inline]
pub fn drain_is_owed() -> bool {
    MARKS.with(|m| {
        let busy = m.capturing.get() != 0 || m.forking.get();
        if busy {
            m.owed.set(true);
        }
        busy
    })
}

/// While it lives, an msync on this thread is a library's way to flush lines that are recorded already.
pub struct LinesRecorded;

impl LinesRecorded {
    /// The lines are recorded; the real flush comes next.
    pub fn enter() -> LinesRecorded {
        MARKS.with(|m| m.lines_recorded.set(m.lines_recorded.get() + 1));
        LinesRecorded
    }

    /// Whether one lives on this thread.
    pub fn is_entered() -> bool {
        MARKS.with(|m| m.lines_recorded.get() != 0)
    }
}

impl Drop for LinesRecorded {
    fn drop(&mut self) {
        MARKS.with(|m| m.lines_recorded.set(m.lines_recorded.get() - 1));
    }
}

/// Takes the lock for the duration of a fork, so that the child does not inherit it from another thread. Handlers of the
/// program's that run meanwhile, on this thread, go through [`slow`] with it.
pub fn before_fork() {
    lock();
    MARKS.with(|m| m.forking.set(true));
}

/// The fork is over, in either process.
pub fn after_fork() {
    MARKS.with(|m| m.forking.set(false));
    unlock();
    await_noted();
    if MARKS.with(|m| m.capturing.get() == 0 && m.owed.replace(false)) {
        crate::state::drain();
    }
}

static LOCK: Lock = Lock(AtomicU32::new(0));

/// A futex lock that a fork's child may release although its parent took it. 0 free, 1 taken, 2 waited for.
struct Lock(AtomicU32);

impl Lock {
    fn lock(&self) {
        use rustix::thread::futex;
        let mut seen = match self.0.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed) {
            Ok(_) => return,
            Err(seen) => seen,
        };
        loop {
            if seen == 2 || self.0.swap(2, Ordering::Acquire) != 0 {
                // Woken, raced or interrupted: look again.
                let _ = futex::wait(&self.0, futex::Flags::PRIVATE, 2, None);
            } else {
                return;
            }
            seen = match self.0.compare_exchange(0, 2, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return,
                Err(seen) => seen,
            };
        }
    }

    fn unlock(&self) {
        if self.0.swap(0, Ordering::Release) == 2 {
            let _ = rustix::thread::futex::wake(&self.0, rustix::thread::futex::Flags::PRIVATE, 1);
        }
    }
}

struct Inside;

impl Inside {
    fn enter() -> Inside {
        MARKS.with(|m| m.slow.set(m.slow.get() + 1));
        Inside
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        MARKS.with(|m| m.slow.set(m.slow.get() - 1));
    }
}

/// `errno` as it was, whatever happens in between: a hook must not change it after a call that succeeded.
pub struct KeepErrno(i32);

impl KeepErrno {
    /// Notes `errno`.
    pub fn new() -> KeepErrno {
        // SAFETY: the thread's errno is always there.
        KeepErrno(unsafe { *libc::__errno_location() })
    }
}

impl Drop for KeepErrno {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { *libc::__errno_location() = self.0 }
    }
}

struct BlockedSignals(libc::sigset_t);

impl BlockedSignals {
    fn new() -> BlockedSignals {
        // SAFETY: sets of our own; blocking signals for a while changes nothing else.
        unsafe {
            let mut all: libc::sigset_t = std::mem::zeroed();
            let mut before: libc::sigset_t = std::mem::zeroed();
            libc::sigfillset(&mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
            BlockedSignals(before)
        }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        // SAFETY: the set that was in force before.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &self.0, std::ptr::null_mut()) };
    }
}
