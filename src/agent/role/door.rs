//! Who may still open the group: an opening takes its time, and the group may have been given up meanwhile. And whether it is of
//! any use to wait for an opening.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::locks::lock;

/// The door of a group.
#[derive(Debug, Default)]
pub(in crate::agent) struct Door {
    /// How often the group was ordered to be closed. Sequentially consistent throughout: the order to close comes before
    /// the lock under which what is open is taken out, and whoever opens looks here under the same lock.
    shut: AtomicU64,
    /// Why the newest opening failed.
    jammed: Mutex<Option<String>>,
}

/// The moment at which an opening was decided on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::agent) struct Entry(u64);

impl Door {
    /// For an opening that is decided on now.
    pub(in crate::agent) fn entry(&self) -> Entry {
        *lock(&self.jammed) = None;
        self.now()
    }

    /// Voids every entry so far; those from here on are not below the one that is returned.
    pub(in crate::agent) fn shut(&self) -> Entry {
        *lock(&self.jammed) = None;
        Entry(self.shut.fetch_add(1, Ordering::SeqCst) + 1)
    }

    /// Whether the group was not ordered to be closed since.
    pub(in crate::agent) fn admits(&self, entry: Entry) -> bool {
        entry == self.now()
    }

    /// An opening failed.
    pub(in crate::agent) fn jam(&self, why: String) {
        *lock(&self.jammed) = Some(why);
    }

    /// Why the group could not be opened, until another opening is decided on.
    pub(in crate::agent) fn jammed(&self) -> Option<String> {
        lock(&self.jammed).clone()
    }

    fn now(&self) -> Entry {
        Entry(self.shut.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_opening_is_void_after_a_close_and_a_close_takes_nothing_that_was_opened_later() {
        let door = Door::default();
        let early = door.entry();
        assert!(door.admits(early));
        let shut = door.shut();
        assert!(!door.admits(early) && early < shut);
        let late = door.entry();
        assert!(door.admits(late) && late >= shut);
    }

    #[test]
    fn a_failure_stands_until_another_opening_is_decided_on() {
        let door = Door::default();
        let entry = door.entry();
        door.jam("the disk is full".into());
        assert!(door.admits(entry), "looking decides nothing");
        assert_eq!(door.jammed().as_deref(), Some("the disk is full"));
        door.entry();
        assert_eq!(door.jammed(), None);
    }
}
