//! The memory that one endpoint may touch: registrations by key, and the gate that everything which lands
//! passes through.
//!
//! The gate is what makes two promises exact. Whoever lands bytes holds it while it does; so once
//! [`Registry::close`] or the deregistration of a region has held it, nothing can land there any more.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::thread;

use super::frame::Refusal;
use crate::fabric::{Registration, RemoteAccess, RemoteKey};
use crate::locks::lock;
use crate::region::memory::SharedMem;

/// All registrations of one endpoint.
pub struct Registry {
    regions: RwLock<HashMap<u64, Arc<Region>>>,
    gate: Mutex<GateState>,
    /// Threads that want the gate and are not the one that lands: it lets them pass between two pieces.
    wanting: AtomicUsize,
}

struct GateState {
    open: bool,
}

/// Held while bytes land.
pub struct Landing<'a> {
    _guard: MutexGuard<'a, GateState>,
}

/// Memory known to an endpoint.
pub struct Region {
    memory: Arc<SharedMem>,
    access: RemoteAccess,
    /// Cleared before the gate is passed by the thread that deregisters; read with the gate held.
    live: AtomicBool,
}

/// What a peer wants to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// Write.
    Write,
    /// Read.
    Read,
}

impl Registry {
    /// No registrations, gate open.
    pub fn new() -> Arc<Registry> {
        Arc::new(Registry {
            regions: RwLock::default(),
            gate: Mutex::new(GateState { open: true }),
            wanting: AtomicUsize::new(0),
        })
    }

    /// Makes `memory` known as `key`, which the caller drew at random; `None` if the key is taken.
    pub fn register(
        self: &Arc<Self>,
        key: u64,
        memory: Arc<SharedMem>,
        access: RemoteAccess,
    ) -> Option<TcpRegistration> {
        let region = Arc::new(Region { memory: memory.clone(), access, live: AtomicBool::new(true) });
        let mut regions = self.regions.write().unwrap_or_else(|e| e.into_inner());
        if regions.contains_key(&key) {
            return None;
        }
        regions.insert(key, region);
        Some(TcpRegistration { registry: self.clone(), key, memory })
    }

    /// What a peer's request for `len` bytes from `offset` of `key` reaches.
    pub fn resolve(&self, key: u64, offset: u64, len: u64, wanted: Wanted) -> Result<Arc<Region>, Refusal> {
        let region = self.find(key).ok_or(Refusal::Key)?;
        let allowed = match region.access {
            RemoteAccess::Local => false,
            RemoteAccess::Read => wanted == Wanted::Read,
            RemoteAccess::Write => true,
        };
        if !allowed {
            return Err(Refusal::Access);
        }
        // A ring is seen once: its second mapping is for its owner's convenience.
        let end = offset.checked_add(len).ok_or(Refusal::Bounds)?;
        if end > region.memory.len() as u64 { Err(Refusal::Bounds) } else { Ok(region) }
    }

    /// Whether `key` is registered here with this very memory: what local ends of requests must be.
    pub fn knows(&self, key: u64, memory: &Arc<SharedMem>) -> bool {
        self.find(key).is_some_and(|region| Arc::ptr_eq(&region.memory, memory))
    }

    /// Enters the gate to land bytes; `None` once it is closed.
    pub fn enter(&self) -> Option<Landing<'_>> {
        while self.wanting.load(Ordering::Relaxed) > 0 {
            thread::yield_now();
        }
        let guard = lock(&self.gate);
        guard.open.then_some(Landing { _guard: guard })
    }

    /// Nothing lands after this returned.
    pub fn close(&self) {
        self.pass(|gate| gate.open = false);
    }

    fn deregister(&self, key: u64) {
        let removed = self.regions.write().unwrap_or_else(|e| e.into_inner()).remove(&key);
        if let Some(region) = removed {
            // Ordered by the gate, which is passed next.
            region.live.store(false, Ordering::Relaxed);
            self.pass(|_| {});
        }
    }

    /// Holds the gate for `act`, ahead of the landing thread.
    fn pass(&self, act: impl FnOnce(&mut GateState)) {
        self.wanting.fetch_add(1, Ordering::Relaxed);
        let mut gate = lock(&self.gate);
        self.wanting.fetch_sub(1, Ordering::Relaxed);
        act(&mut gate);
    }

    fn find(&self, key: u64) -> Option<Arc<Region>> {
        self.regions.read().unwrap_or_else(|e| e.into_inner()).get(&key).cloned()
    }
}

impl Region {
    /// The memory.
    pub fn memory(&self) -> &Arc<SharedMem> {
        &self.memory
    }

    /// Whether it is registered still.
    pub fn live(&self) -> bool {
        self.live.load(Ordering::Relaxed)
    }
}

/// What [`crate::fabric::Endpoint::register`] returns; deregisters on drop.
pub struct TcpRegistration {
    registry: Arc<Registry>,
    key: u64,
    memory: Arc<SharedMem>,
}

impl Registration for TcpRegistration {
    fn key(&self) -> RemoteKey {
        RemoteKey { key: self.key, addr: 0, len: self.memory.len() as u64 }
    }

    fn memory(&self) -> &Arc<SharedMem> {
        &self.memory
    }
}

impl Drop for TcpRegistration {
    fn drop(&mut self) {
        self.registry.deregister(self.key);
    }
}

/// Never prints the key: it is a capability.
impl fmt::Debug for TcpRegistration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TcpRegistration({} bytes)", self.memory.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(len: usize) -> Arc<SharedMem> {
        Arc::new(SharedMem::anonymous(len).unwrap())
    }

    #[test]
    fn requests_stay_within_a_live_registration_and_its_access() {
        let registry = Registry::new();
        let write = registry.register(1, memory(4096), RemoteAccess::Write).unwrap();
        let _read = registry.register(2, memory(4096), RemoteAccess::Read).unwrap();
        let _local = registry.register(3, memory(4096), RemoteAccess::Local).unwrap();
        let ask = |key, offset, len, wanted| registry.resolve(key, offset, len, wanted).err();
        assert_eq!(ask(1, 0, 4096, Wanted::Write), None);
        assert_eq!(ask(1, 4096, 0, Wanted::Write), None);
        assert_eq!(ask(1, 0, 4096, Wanted::Read), None);
        assert_eq!(ask(1, 1, 4096, Wanted::Write), Some(Refusal::Bounds));
        assert_eq!(ask(1, u64::MAX, 2, Wanted::Write), Some(Refusal::Bounds));
        assert_eq!(ask(2, 0, 1, Wanted::Read), None);
        assert_eq!(ask(2, 0, 1, Wanted::Write), Some(Refusal::Access));
        assert_eq!(ask(3, 0, 1, Wanted::Read), Some(Refusal::Access));
        assert_eq!(ask(4, 0, 1, Wanted::Read), Some(Refusal::Key));
        drop(write);
        assert_eq!(ask(1, 0, 1, Wanted::Write), Some(Refusal::Key));
    }

    #[test]
    fn a_closed_gate_lets_nothing_land() {
        let registry = Registry::new();
        assert!(registry.enter().is_some());
        registry.close();
        assert!(registry.enter().is_none());
    }

    #[test]
    fn closing_waits_for_what_is_landing() {
        let registry = Registry::new();
        let landing = registry.enter().unwrap();
        let closer = thread::spawn({
            let registry = registry.clone();
            move || registry.close()
        });
        while registry.wanting.load(Ordering::Relaxed) == 0 {
            thread::yield_now();
        }
        assert!(!closer.is_finished());
        drop(landing);
        closer.join().unwrap();
        assert!(registry.enter().is_none());
    }

    #[test]
    fn a_key_names_one_registration() {
        let registry = Registry::new();
        let one = memory(4096);
        let _held = registry.register(1, one.clone(), RemoteAccess::Local).unwrap();
        assert!(registry.register(1, memory(4096), RemoteAccess::Local).is_none());
        assert!(registry.knows(1, &one) && !registry.knows(1, &memory(4096)) && !registry.knows(2, &one));
    }
}
