//! Live handles, lock-free: what a C caller holds is a number that names a slot and the slot's generation.
//!
//! So a handle that was closed, made up, or of the other kind is an error and never an access to freed memory; a
//! handle may be closed while other threads are inside calls with it (the last one out drops the value);
//! and a fork at any moment leaves nothing locked in the child.

use std::cell::UnsafeCell;
use std::ops::Deref;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};

/// A table of at most `N` live values.
pub(super) struct Handles<T, const N: usize> {
    slots: [Slot<T>; N],
    /// In the lowest byte of each handle: tells the kinds apart, and is odd, so that no handle is an object's address.
    tag: u8,
}

/// What the caller holds, as a number.
pub(super) type Handle = usize;

/// A value in use. Its slot is not reused before this is dropped.
pub(super) struct InUse<'a, T> {
    slot: &'a Slot<T>,
}

struct Slot<T> {
    /// Generation in the upper half; then [`OCCUPIED`], [`LIVE`] and the number of users.
    state: AtomicU64,
    value: UnsafeCell<Option<T>>,
}

/// The slot holds a value or is about to: only who set this bit may write the value, until it is cleared.
const OCCUPIED: u64 = 1 << 31;
/// The value may be used.
const LIVE: u64 = 1 << 30;
/// More threads than a process can have.
const USERS: u64 = LIVE - 1;
const GENERATION_SHIFT: u32 = 32;

/// Bits of a handle: tag, slot, generation.
const SLOT_SHIFT: u32 = 8;
const HANDLE_GENERATION_SHIFT: u32 = 24;

// SAFETY: a value is written only by the one thread that set OCCUPIED and dropped by the one that counted the users down to
// none; in between it is shared, which `T: Sync` allows, and it moves between threads, which `T: Send` allows.
unsafe impl<T: Send + Sync, const N: usize> Sync for Handles<T, N> {}

impl<T, const N: usize> Handles<T, N> {
    /// An empty table.
    pub const fn new(tag: u8) -> Self {
        assert!(tag & 1 == 1 && N < 1 << (HANDLE_GENERATION_SHIFT - SLOT_SHIFT));
        let slots = [const { Slot { state: AtomicU64::new(0), value: UnsafeCell::new(None) } }; N];
        Handles { slots, tag }
    }

    /// Takes a value in; none if the table is full.
    pub fn insert(&self, value: T) -> Option<Handle> {
        self.slots
            .iter()
            .enumerate()
            .find_map(|(index, slot)| {
                let state = slot.state.load(Relaxed);
                let generation = (state >> GENERATION_SHIFT).wrapping_add(1) & u64::from(u32::MAX);
                let claimed = (generation << GENERATION_SHIFT) | OCCUPIED;
                // Acquire: pairs with the release in the drop of `InUse`, so that the old value's drop is over.
                if state & OCCUPIED != 0
                    || slot.state.compare_exchange(state, claimed, AcqRel, Relaxed).is_err()
                {
                    return None;
                }
                Some((index, slot, generation))
            })
            .map(|(index, slot, generation)| {
                // SAFETY: OCCUPIED without LIVE, set by us: nobody else touches the value.
                unsafe { *slot.value.get() = Some(value) };
                // Pairs with the acquire in `get`: whoever sees LIVE sees the value.
                slot.state.fetch_or(LIVE, AcqRel);
                self.handle(index, generation)
            })
    }

    /// The value that `handle` names, if it is live.
    pub fn get(&self, handle: Handle) -> Option<InUse<'_, T>> {
        let (slot, generation) = self.find(handle)?;
        let mut state = slot.state.load(Acquire);
        while state >> GENERATION_SHIFT == generation && state & LIVE != 0 {
            match slot.state.compare_exchange_weak(state, state + 1, AcqRel, Acquire) {
                Ok(_) => return Some(InUse { slot }),
                Err(now) => state = now,
            }
        }
        None
    }

    /// Ends the handle. The value is dropped when its last user is done. Whether it was live.
    pub fn close(&self, handle: Handle) -> bool {
        let Some((slot, generation)) = self.find(handle) else { return false };
        let mut state = slot.state.load(Acquire);
        while state >> GENERATION_SHIFT == generation && state & LIVE != 0 {
            // Count ourselves among the users, so that the value is dropped in one place.
            match slot.state.compare_exchange_weak(state, (state & !LIVE) + 1, AcqRel, Acquire) {
                Ok(_) => {
                    drop(InUse { slot });
                    return true;
                }
                Err(now) => state = now,
            }
        }
        false
    }

    /// Every handle that is live.
    pub fn live(&self) -> impl Iterator<Item = Handle> {
        self.slots.iter().enumerate().filter_map(|(index, slot)| {
            let state = slot.state.load(Acquire);
            (state & LIVE != 0).then(|| self.handle(index, state >> GENERATION_SHIFT))
        })
    }

    fn handle(&self, index: usize, generation: u64) -> Handle {
        (generation as usize) << HANDLE_GENERATION_SHIFT | index << SLOT_SHIFT | usize::from(self.tag)
    }

    fn find(&self, handle: Handle) -> Option<(&Slot<T>, u64)> {
        let index = handle >> SLOT_SHIFT & ((1 << (HANDLE_GENERATION_SHIFT - SLOT_SHIFT)) - 1);
        let slot = self.slots.get(index).filter(|_| handle as u8 == self.tag)?;
        Some((slot, (handle >> HANDLE_GENERATION_SHIFT) as u64))
    }
}

impl<T> Deref for InUse<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: counted among the users, so the value stays and is only shared.
        unsafe { (*self.slot.value.get()).as_ref() }.expect("a live slot holds a value")
    }
}

impl<T> Drop for InUse<'_, T> {
    fn drop(&mut self) {
        let before = self.slot.state.fetch_sub(1, AcqRel);
        if before & USERS == 1 && before & LIVE == 0 {
            // SAFETY: no users, not live, still OCCUPIED: nobody else touches the value.
            drop(unsafe { (*self.slot.value.get()).take() });
            // Pairs with the acquire in `insert`.
            self.slot.state.fetch_and(!OCCUPIED, AcqRel);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn a_closed_handle_stays_dead_when_its_slot_lives_again() {
        let table: Handles<u32, 1> = Handles::new(1);
        let first = table.insert(1).unwrap();
        assert_eq!(table.insert(2), None, "the table is full");
        assert!(table.close(first));
        assert!(!table.close(first) && table.get(first).is_none());
        let second = table.insert(2).unwrap();
        assert_ne!(first, second);
        assert!(table.get(first).is_none());
        assert_eq!(*table.get(second).unwrap(), 2);
    }

    #[test]
    fn what_was_never_a_handle_is_none() {
        let table: Handles<u32, 4> = Handles::new(3);
        let other: Handles<u32, 4> = Handles::new(5);
        let handle = other.insert(1).unwrap();
        table.insert(1).unwrap();
        for made_up in [0, 1, 3, usize::MAX, handle, &raw const table as usize] {
            assert!(table.get(made_up).is_none() && !table.close(made_up), "{made_up:#x}");
        }
    }

    #[test]
    fn a_value_lives_until_its_last_user_is_done() {
        let table: Handles<Arc<()>, 1> = Handles::new(1);
        let value = Arc::new(());
        let handle = table.insert(value.clone()).unwrap();
        let user = table.get(handle).unwrap();
        assert!(table.close(handle));
        assert_eq!((Arc::strong_count(&user), table.insert(value.clone())), (2, None));
        drop(user);
        assert_eq!(Arc::strong_count(&value), 1);
        assert!(table.insert(value).is_some());
    }

    #[test]
    fn threads_that_open_use_and_close_never_meet_a_value_that_is_gone() {
        struct Counted<'a>(&'a AtomicUsize, usize);
        impl Drop for Counted<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
                self.1 = usize::MAX;
            }
        }
        let alive = AtomicUsize::new(0);
        let table: Handles<Counted<'_>, 2> = Handles::new(1);
        let newest = AtomicUsize::new(0);
        std::thread::scope(|s| {
            for _ in 0..3 {
                s.spawn(|| {
                    for i in 0..3000 {
                        alive.fetch_add(1, Ordering::Relaxed);
                        if let Some(h) = table.insert(Counted(&alive, i)) {
                            newest.store(h, Ordering::Relaxed);
                        }
                        let handle = newest.load(Ordering::Relaxed);
                        if let Some(value) = table.get(handle) {
                            assert!(value.1 < 3000);
                            table.close(handle);
                            assert!(value.1 < 3000);
                        }
                    }
                });
            }
        });
        table.live().for_each(|h| assert!(table.close(h)));
        assert_eq!(alive.load(Ordering::Relaxed), 0);
    }
}
