//! Launchers (`pmemha run`): they know how the program that they started ended, and tell.
//!
//! A process that vanishes without a word looks the same whether it called `_exit(0)` or was killed. Where a
//! launcher is attached to its group, its word is waited for, briefly.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::agent::group::Ending;
use crate::locks::lock;

/// Program name by which a launcher says in its Hello that it is one.
pub const LAUNCHER: &str = "pmemha run";

/// A launcher reaps its program within microseconds of its death; on a busy host it may be slow to run.
const WORD_WITHIN: Duration = Duration::from_secs(1);

/// Endings remembered of a group's launchers: one a launcher, and a few more for good measure.
const REMEMBERED: usize = 64;

/// The launchers that are attached, by group.
#[derive(Debug, Default)]
pub(super) struct Launchers {
    groups: Mutex<BTreeMap<String, Known>>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Known {
    attached: usize,
    endings: BTreeMap<u32, Ending>,
}

impl Launchers {
    pub fn attached(&self, group: &str) {
        self.lock().entry(group.into()).or_default().attached += 1;
    }

    pub fn left(&self, group: &str) {
        let mut groups = self.lock();
        if let Some(known) = groups.get_mut(group) {
            known.attached = known.attached.saturating_sub(1);
            if known.attached == 0 {
                groups.remove(group);
            }
        }
        self.changed.notify_all();
    }

    /// A launcher tells how `pid` ended.
    pub fn tell(&self, group: &str, pid: u32, ending: Ending) {
        if let Some(known) = self.lock().get_mut(group)
            && known.endings.len() < REMEMBERED
        {
            known.endings.insert(pid, ending);
        }
        self.changed.notify_all();
    }

    /// What a launcher of `group` says of `pid`; nothing if there is none or it does not speak in time.
    pub fn word_on(&self, group: &str, pid: u32) -> Option<Ending> {
        let deadline = Instant::now() + WORD_WITHIN;
        let mut groups = self.lock();
        loop {
            let known = groups.get_mut(group)?;
            if let Some(ending) = known.endings.remove(&pid) {
                return Some(ending);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            groups = self.changed.wait_timeout(groups, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Known>> {
        lock(&self.groups)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_for_a_launcher_that_is_not_there() {
        let launchers = Launchers::default();
        launchers.tell("db", 7, Ending::Exited);
        assert_eq!(launchers.word_on("db", 7), None);
    }

    #[test]
    fn a_launchers_word_is_waited_for_and_its_leaving_ends_the_wait() {
        let launchers = Launchers::default();
        launchers.attached("db");
        std::thread::scope(|s| {
            let (first, second) =
                (s.spawn(|| launchers.word_on("db", 7)), s.spawn(|| launchers.word_on("db", 8)));
            launchers.tell("db", 7, Ending::Exited);
            assert_eq!(first.join().unwrap(), Some(Ending::Exited));
            launchers.left("db");
            assert_eq!(second.join().unwrap(), None);
        });
    }
}
