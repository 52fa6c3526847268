//! Waiting for a condition: bounded, and with a message that says what did not come.

use std::time::{Duration, Instant};

/// Between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(5);

/// Calls `probe` until it yields something. Panics, naming `what`, after `limit`.
pub fn until<T>(what: &str, limit: Duration, probe: impl FnMut() -> Option<T>) -> T {
    attempt(limit, probe).unwrap_or_else(|| panic!("waited {limit:?} in vain for: {what}"))
}

/// As [`until`]; `None` after `limit`.
pub fn attempt<T>(limit: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + limit;
    loop {
        if let Some(found) = probe() {
            return Some(found);
        }
        if Instant::now() >= end {
            return None;
        }
        std::thread::sleep(PAUSE);
    }
}
