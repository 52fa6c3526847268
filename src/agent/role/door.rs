//! Who may still open the group: an opening takes its time, and the group may have been given up meanwhile.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts how often the group was ordered to be closed. Sequentially consistent throughout: the order to close comes before
/// the lock under which what is open is taken out, and whoever opens looks here under the same lock.
#[derive(Debug, Default)]
pub(in crate::agent) struct Door(AtomicU64);

/// The moment at which an opening was decided on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::agent) struct Entry(u64);

impl Door {
    /// For an opening that is decided on now.
    pub(in crate::agent) fn entry(&self) -> Entry {
        Entry(self.0.load(Ordering::SeqCst))
    }

    /// Voids every entry so far; those from here on are not below the one that is returned.
    pub(in crate::agent) fn shut(&self) -> Entry {
        Entry(self.0.fetch_add(1, Ordering::SeqCst) + 1)
    }

    /// Whether the group was not ordered to be closed since.
    pub(in crate::agent) fn admits(&self, entry: Entry) -> bool {
        entry == self.entry()
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
}
