//! Waiting for a condition: bounded, and with a message that says what did not come.

use std::thread;
use std::time::{Duration, Instant};

/// Between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(5);

/// For so long there is no pause: what is about to come is seen at once.
const EAGER: Duration = Duration::from_millis(2);

/// Calls `probe` until it yields something. Panics, naming `what`, after `limit`.
pub fn until<T>(what: &str, limit: Duration, probe: impl FnMut() -> Option<T>) -> T {
    attempt(limit, probe).unwrap_or_else(|| panic!("waited {limit:?} in vain for: {what}"))
}

/// Repeats `look` until it is true. Panics, naming `what`, after `limit`.
pub fn eventually(what: &str, limit: Duration, mut look: impl FnMut() -> bool) {
    until(what, limit, || look().then_some(()));
}

/// As [`until`]; `None` after `limit`.
pub fn attempt<T>(limit: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = probe() {
            return Some(found);
        }
        match start.elapsed() {
            waited if waited >= limit => return None,
            waited if waited < EAGER => thread::yield_now(),
            _ => thread::sleep(PAUSE),
        }
    }
}
