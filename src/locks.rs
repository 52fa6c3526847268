//! Taking a lock, whatever became of those who held it before.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks `mutex`. A panic under a lock fails what panicked and not everybody after it: the data behind our locks is whole
/// between any two statements that change it.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
