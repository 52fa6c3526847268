//! Waiting later: what a thread appends under a lock must not wait there for the slots of other threads.
//!
//! A thread that is filling a slot may be interrupted by a signal handler that wants the lock. Whoever holds it would wait for
//! the slot, the slot for its handler, and the handler for the lock. So the holder notes how far it has to wait
//! ([`wait_later`]), and does so once it has given the lock up, before anything that it did can be built on
//! ([`Appender::await_noted`]). Waits outside of the lock have no such circle: a walk goes from low to high and ends at the
//! first open slot of a process that is itself interrupted, so that everyone waits for lower slots than their own.

use std::cell::Cell;

use super::Appender;

thread_local! {
    /// Whether this thread waits later.
    static LATER: Cell<bool> = const { Cell::new(false) };
    /// What it has to await then: every slot below.
    static NOTED: Cell<u64> = const { Cell::new(0) };
}

/// From here on this thread's appends return without waiting for lower slots (`true`), or wait as ever.
pub fn wait_later(later: bool) {
    LATER.set(later);
}

/// Whether this thread waits later.
pub(super) fn waits_later() -> bool {
    LATER.get()
}

/// Whether this thread waits later; notes that it has to, for all below `lsn`.
pub(super) fn noted(lsn: u64) -> bool {
    let later = waits_later();
    if later {
        NOTED.set(NOTED.get().max(lsn));
    }
    later
}

impl Appender {
    /// Waits for what this thread was to wait for later. To be called before what it did can be built on.
    pub fn await_noted(&self) {
        let noted = NOTED.replace(0);
        if noted != 0 {
            self.await_lower(noted, noted);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::format::Kind;
    use crate::log::{LogRegion, LogSpec};
    use crate::types::RegionId;
    use std::sync::Arc;
    use std::sync::mpsc::{RecvTimeoutError, channel};
    use std::thread;
    use std::time::Duration;

    #[test]
    fn lower_slots_are_awaited_once_the_lock_is_given_up_and_not_before() {
        let spec = LogSpec { ring_bytes: 1 << 16, bitmap_bytes: 4096, ..LogSpec::default() };
        let (_fd, log) = LogRegion::create(&spec).unwrap();
        let [interrupted, holder] = [1, 2].map(|session| Appender::attach(log.clone(), session).unwrap());
        let slot = interrupted.reserve(0).unwrap();
        let (tell, told) = channel();
        let holder = Arc::new(holder);
        let under_lock = holder.clone();
        let thread = thread::spawn(move || {
            wait_later(true);
            under_lock.append(Kind::RegionUnlink, RegionId(1), 0, &[]).unwrap();
            wait_later(false);
            tell.send("appended").unwrap();
            under_lock.await_noted();
            tell.send("awaited").unwrap();
        });
        assert_eq!(told.recv_timeout(Duration::from_secs(20)), Ok("appended"), "it waits under the lock");
        let soon = told.recv_timeout(Duration::from_millis(50));
        assert_eq!(soon, Err(RecvTimeoutError::Timeout), "a slot below is not complete");
        interrupted.give_up(&slot);
        assert_eq!(told.recv(), Ok("awaited"));
        thread.join().unwrap();
    }
}
