//! Pages under suspicion: what the log says of them while somebody looks.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard};

use crate::locks::lock;
use crate::log::format::{Kind, RecordHeader};
use crate::types::{Lsn, PAGE, RegionId};

/// What the log says of the pages under suspicion.
#[derive(Default)]
pub(super) struct Suspects {
    /// Whether `touched` holds anything: most of the time it does not, and nobody takes the lock.
    suspicious: AtomicBool,
    /// Pages under suspicion, and where the last record that touched each began.
    touched: Mutex<BTreeMap<(RegionId, u64), Lsn>>,
}

impl Suspects {
    pub(super) fn observe(&self, header: &RecordHeader) {
        // A page that comes under suspicion meanwhile is looked at twice more: missing it here once is harmless.
        if !self.suspicious.load(Relaxed) {
            return;
        }
        let (id, offset) = header.place();
        let end = match Kind::from_byte(header.kind) {
            Some(Kind::Data) => offset + u64::from(header.len),
            Some(Kind::Zero) => u64::MAX,
            _ => return,
        };
        let pages = (id, offset / PAGE as u64)..(id, end.div_ceil(PAGE as u64));
        self.lock().range_mut(pages).for_each(|(_, touched)| *touched = (*touched).max(Lsn(header.lsn)));
    }

    /// Forgets the suspicions of a region.
    pub(super) fn acquit(&self, id: RegionId) {
        let mut suspects = self.lock();
        suspects.retain(|place, _| place.0 != id);
        self.noted(&suspects);
    }

    pub(super) fn clear(&self) {
        self.lock().clear();
        self.suspicious.store(false, Relaxed);
    }

    /// Pages were put under suspicion, or taken from it.
    pub(super) fn noted(&self, suspects: &BTreeMap<(RegionId, u64), Lsn>) {
        self.suspicious.store(!suspects.is_empty(), Relaxed);
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, BTreeMap<(RegionId, u64), Lsn>> {
        lock(&self.touched)
    }
}
