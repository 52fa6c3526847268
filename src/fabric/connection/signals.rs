//! What the threads of a connection wake each other by: callers that wait, the callback of the room above, and the
//! connection's own thread, the engine.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};

use super::End;
use crate::locks::lock;

/// What the rooms above gave to [`crate::fabric::Endpoint::on_event`].
pub type Notify = Box<dyn Fn() + Send + Sync>;

/// See the module. Beside the connection's lock, never held over it.
pub struct Signals<R> {
    /// Of the connection's lock.
    changed: Condvar,
    /// Threads in [`Signals::sleep`]. Changed with the connection's lock held, hence relaxed.
    waiting: AtomicUsize,
    /// Why the engine is to end the connection, once some thread knows it.
    doom: Mutex<Option<End<R>>>,
    /// Wakes the engine.
    bell: OwnedFd,
    notify: Mutex<Option<Arc<Notify>>>,
    /// A callback was set and has not been called. Relaxed: the bell orders it.
    notify_anew: AtomicBool,
}

impl<R: Clone> Signals<R> {
    /// Signals of a connection that stands.
    pub fn new() -> io::Result<Signals<R>> {
        Ok(Signals {
            changed: Condvar::new(),
            waiting: AtomicUsize::new(0),
            doom: Mutex::new(None),
            bell: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            notify: Mutex::new(None),
            notify_anew: AtomicBool::new(false),
        })
    }

    /// Has the engine end the connection; the first reason stays.
    pub fn doom(&self, end: End<R>) {
        lock(&self.doom).get_or_insert(end);
        self.ring();
    }

    /// Why the engine is to end the connection.
    pub fn doomed(&self) -> Option<End<R>> {
        lock(&self.doom).clone()
    }

    /// Wakes the engine.
    pub fn ring(&self) {
        // It fails only when the counter is at its end, and then the bell rings already.
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
    }

    /// Readable while it rings.
    pub fn bell(&self) -> &OwnedFd {
        &self.bell
    }

    /// Makes the bell silent again; how often it rang does not matter.
    pub fn hush(&self) {
        let _ = rustix::io::read(&self.bell, &mut [0; 8]);
    }

    /// Sleeps without the connection's lock until something changed, at most for `left`.
    pub fn sleep<'a, T>(&self, state: MutexGuard<'a, T>, left: Duration) -> MutexGuard<'a, T> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let state = self.changed.wait_timeout(state, left).unwrap_or_else(|e| e.into_inner()).0;
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        state
    }

    /// Whether threads sleep. Asked with the connection's lock held: whoever starts to wait afterwards sees the news.
    pub fn anyone_sleeps(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// Wakes those who sleep.
    pub fn wake(&self) {
        // A call for nobody would cost a system call.
        if self.anyone_sleeps() {
            self.changed.notify_all();
        }
    }

    /// See [`crate::fabric::Endpoint::on_event`]. What happened before is told again, lest it be missed.
    pub fn on_event(&self, notify: Notify) {
        *lock(&self.notify) = Some(Arc::new(notify));
        self.notify_anew.store(true, Ordering::Relaxed);
        self.ring();
    }

    /// Tells the rooms above, from the engine's thread, if `news` of the connection's state says that there are any.
    pub fn tell<T>(&self, state: &Mutex<T>, news: impl FnOnce(&mut T) -> bool) {
        let anew = self.notify_anew.swap(false, Ordering::Relaxed);
        {
            let mut state = lock(state);
            if !news(&mut state) && !anew {
                return;
            }
            self.wake();
        }
        let notify = lock(&self.notify).clone();
        if let Some(notify) = notify {
            notify();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn the_first_reason_stays_and_rings() {
        let signals = Signals::<&str>::new().unwrap();
        assert_eq!(signals.doomed(), None);
        signals.doom(End::RevokedHere);
        signals.doom(End::Closed);
        assert_eq!(signals.doomed(), Some(End::RevokedHere));
        assert_eq!(rustix::io::read(signals.bell(), &mut [0; 8]).unwrap(), 8, "it rang");
        signals.ring();
        signals.hush();
        assert!(rustix::io::read(signals.bell(), &mut [0; 8]).is_err(), "it is silent");
    }

    #[test]
    fn a_callback_is_called_once_after_it_was_set_and_then_for_news() {
        let (signals, state) = (Signals::<&str>::new().unwrap(), Mutex::new(()));
        let (told, heard) = mpsc::channel();
        signals.on_event(Box::new(move || told.send(()).unwrap()));
        for (news, calls) in [(false, 1), (false, 0), (true, 1)] {
            signals.tell(&state, |()| news);
            assert_eq!(heard.try_iter().count(), calls);
        }
    }

    #[test]
    fn news_wake_a_sleeper() {
        let (signals, state) = (Signals::<&str>::new().unwrap(), Mutex::new(false));
        std::thread::scope(|scope| {
            let sleeper = scope.spawn(|| {
                let mut come = lock(&state);
                while !*come {
                    come = signals.sleep(come, Duration::from_secs(3600));
                }
            });
            signals.tell(&state, |come| std::mem::replace(come, true) || *come);
            sleeper.join().unwrap();
        });
        assert!(!signals.anyone_sleeps());
    }
}
