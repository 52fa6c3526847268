//! Memory that an adapter may touch: a protection domain per connection, and the registrations in it.
//!
//! A protection domain belongs to one peer, so a key that one peer was given means nothing to another. What a peer may
//! reach is deregistered when its last handle is dropped; memory that only our own requests use stays registered until
//! they have ended.

use std::collections::HashMap;
use std::ffi::c_int;
use std::fmt;
use std::io;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex};

use super::VerbsError;
use super::context::Context;
use super::ffi::{ibv_access_flags, ibv_mr, ibv_pd, ibv_sge};
use crate::fabric::{FabricError, Registration, RemoteAccess, RemoteKey};
use crate::locks::lock;
use crate::region::memory::SharedMem;

/// A protection domain.
pub struct Domain {
    context: Arc<Context>,
    raw: NonNull<ibv_pd>,
    /// Registrations, as [`name`] tells them apart.
    known: Mutex<HashMap<(u64, usize), Arc<Region>>>,
}

// SAFETY: see `Context`.
unsafe impl Send for Domain {}
// SAFETY: as above.
unsafe impl Sync for Domain {}

impl Domain {
    /// A domain of its own.
    pub fn new(context: Arc<Context>) -> Result<Arc<Domain>, VerbsError> {
        // SAFETY: the context is open.
        let raw = unsafe { (context.library().ibv_alloc_pd)(context.raw()) };
        let raw = NonNull::new(raw).ok_or_else(|| VerbsError::System {
            what: format!("{}: allocating a protection domain", context.device()),
            source: io::Error::last_os_error(),
        })?;
        Ok(Arc::new(Domain { context, raw, known: Mutex::default() }))
    }

    /// The adapter.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// For the functions of the library.
    pub fn raw(&self) -> *mut ibv_pd {
        self.raw.as_ptr()
    }

    /// Registers `memory` once, also if it is a ring that is mapped twice.
    pub fn register(
        self: &Arc<Self>,
        memory: Arc<SharedMem>,
        access: RemoteAccess,
    ) -> Result<VerbsRegistration, FabricError> {
        let flags = flags(access).0 as c_int;
        let (at, len) = (memory.addr(0).cast(), memory.len());
        // SAFETY: the range is mapped, and stays so: `Region` holds it longer than the registration.
        let raw = unsafe { (self.context.library().ibv_reg_mr)(self.raw(), at, len, flags) };
        let raw = NonNull::new(raw)
            .ok_or_else(|| refused(self.context.device(), len, io::Error::last_os_error()))?;
        // SAFETY: registered just now.
        let (lkey, rkey) = unsafe { (raw.as_ref().lkey, raw.as_ref().rkey) };
        // Without remote access there may be no remote key (0 for all); the local one opens nothing to a peer.
        let key = if access == RemoteAccess::Local { lkey } else { rkey };
        let key = RemoteKey { key: key.into(), addr: memory.addr(0) as u64, len: memory.len() as u64 };
        let raw = Mutex::new(Some(Raw(raw)));
        let region = Arc::new(Region { domain: self.clone(), raw, lkey, key, memory, access });
        lock(&self.known).insert(name(&key, &region.memory), region.clone());
        Ok(VerbsRegistration(region))
    }

    /// Deregisters everything, whoever holds it.
    pub fn deregister_all(&self) -> Result<(), VerbsError> {
        let known: Vec<_> = lock(&self.known).values().cloned().collect();
        for region in known {
            region.deregister().map_err(|source| VerbsError::System {
                what: format!("{}: deregistering memory", self.context.device()),
                source,
            })?;
        }
        Ok(())
    }

    /// What a local end of a request names, if it is registered here.
    pub fn find(&self, registration: &dyn Registration) -> Option<Arc<Region>> {
        lock(&self.known).get(&name(&registration.key(), registration.memory())).cloned()
    }
}

impl Drop for Domain {
    fn drop(&mut self) {
        // SAFETY: registrations and queue pairs held it, and are gone.
        let refused = unsafe { (self.context.library().ibv_dealloc_pd)(self.raw()) };
        if refused != 0 {
            tracing::warn!(device = self.context.device(), refused, "freeing a protection domain");
        }
    }
}

/// Registered memory.
pub struct Region {
    domain: Arc<Domain>,
    /// `None` once deregistered.
    raw: Mutex<Option<Raw>>,
    lkey: u32,
    key: RemoteKey,
    memory: Arc<SharedMem>,
    access: RemoteAccess,
}

struct Raw(NonNull<ibv_mr>);

// SAFETY: see `Context`; deregistered once, under the lock.
unsafe impl Send for Raw {}

impl Region {
    /// The memory.
    pub fn memory(&self) -> &Arc<SharedMem> {
        &self.memory
    }

    /// Scatter/gather entries for `len` bytes from `offset`, and how many are used: two where a ring's end lies between.
    pub fn pieces(&self, offset: usize, len: usize) -> ([ibv_sge; 2], usize) {
        let size = self.memory.len();
        let start = if offset < size { offset } else { offset - size };
        let first = len.min(size - start);
        let entry = |at: usize, len: usize| ibv_sge {
            addr: self.memory.addr(at) as u64,
            length: len as u32,
            lkey: self.lkey,
        };
        let used = if len == 0 { 0 } else { 1 + usize::from(first < len) };
        ([entry(start, first), entry(0, len - first)], used)
    }

    /// No adapter touches the memory after this, unless it fails; then it may be tried again.
    fn deregister(&self) -> io::Result<()> {
        let mut raw = lock(&self.raw);
        let Some(Raw(registered)) = &*raw else { return Ok(()) };
        // SAFETY: registered, and under the lock nobody else deregisters it; it stays as it is where the call refuses.
        match unsafe { (self.domain.context.library().ibv_dereg_mr)(registered.as_ptr()) } {
            0 => {
                *raw = None;
                Ok(())
            }
            errno => Err(io::Error::from_raw_os_error(errno.abs())),
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if let Err(error) = self.deregister() {
            let device = self.domain.context.device();
            tracing::error!(device, %error, "memory stays registered and mapped for good");
            // The adapter may still reach it, so nobody else may get these pages.
            std::mem::forget(self.memory.clone());
        }
    }
}

/// What tells registrations of a domain apart: local and remote keys may coincide, but not for the same memory.
fn name(key: &RemoteKey, memory: &Arc<SharedMem>) -> (u64, usize) {
    (key.key, Arc::as_ptr(memory).addr())
}

/// What [`crate::fabric::Endpoint::register`] returns.
pub struct VerbsRegistration(Arc<Region>);

impl Registration for VerbsRegistration {
    fn key(&self) -> RemoteKey {
        self.0.key
    }

    fn memory(&self) -> &Arc<SharedMem> {
        &self.0.memory
    }
}

impl Drop for VerbsRegistration {
    fn drop(&mut self) {
        // What the peer can reach ends here and now; what only our requests use ends with the last of them.
        if self.0.access != RemoteAccess::Local && self.0.deregister().is_err() {
            // Still known, so that a revocation tries again and does not take it for gone.
            return;
        }
        lock(&self.0.domain.known).remove(&name(&self.0.key, &self.0.memory));
    }
}

/// Never prints the key: it is a capability.
impl fmt::Debug for VerbsRegistration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerbsRegistration({} bytes)", self.0.key.len)
    }
}

/// The least that serves. Never relaxed ordering: a record's payload must be in place before what commits it.
fn flags(access: RemoteAccess) -> ibv_access_flags {
    let local = ibv_access_flags::IBV_ACCESS_LOCAL_WRITE;
    match access {
        RemoteAccess::Local => local,
        RemoteAccess::Read => local | ibv_access_flags::IBV_ACCESS_REMOTE_READ,
        RemoteAccess::Write => {
            local | ibv_access_flags::IBV_ACCESS_REMOTE_READ | ibv_access_flags::IBV_ACCESS_REMOTE_WRITE
        }
    }
}

fn refused(device: &str, len: usize, source: io::Error) -> FabricError {
    let what = format!("registering {len} bytes with {device}");
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
    match (source.raw_os_error(), limit) {
        (Some(libc::ENOMEM), Some(limit)) => {
            FabricError::System { what: format!("{what}: {}", memlock_remedy(limit)), source }
        }
        // fsdax, mappings of ordinary files, and what else cannot stay pinned.
        (Some(libc::EOPNOTSUPP | libc::EFAULT | libc::EINVAL | libc::ENOMEM), _) => {
            FabricError::NotRegistrable { what, source }
        }
        _ => FabricError::System { what, source },
    }
}

fn memlock_remedy(limit: u64) -> String {
    format!(
        "it must stay locked in memory, and RLIMIT_MEMLOCK is {limit} bytes: set LimitMEMLOCK=infinity in the agent's \
         unit, or `ulimit -l unlimited` before it is started"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_gets_the_least_access_that_serves() {
        let bits = |access| flags(access).0;
        let (write, read) =
            (ibv_access_flags::IBV_ACCESS_REMOTE_WRITE.0, ibv_access_flags::IBV_ACCESS_REMOTE_READ.0);
        assert_eq!(bits(RemoteAccess::Local) & (write | read), 0);
        assert_eq!(bits(RemoteAccess::Read) & (write | read), read);
        assert_eq!(bits(RemoteAccess::Write) & (write | read), write | read);
        let relaxed = ibv_access_flags::IBV_ACCESS_RELAXED_ORDERING.0;
        assert!(
            [RemoteAccess::Local, RemoteAccess::Read, RemoteAccess::Write]
                .map(bits)
                .iter()
                .all(|b| b & relaxed == 0)
        );
    }

    #[test]
    fn a_refusal_names_the_remedy() {
        let error = |errno| refused("rxe0", 4096, io::Error::from_raw_os_error(errno));
        let text = memlock_remedy(65_536);
        assert!(text.contains("RLIMIT_MEMLOCK is 65536") && text.contains("LimitMEMLOCK=infinity"), "{text}");
        for errno in [libc::EOPNOTSUPP, libc::EFAULT, libc::EINVAL] {
            assert!(matches!(error(errno), FabricError::NotRegistrable { .. }));
        }
        assert!(matches!(error(libc::EIO), FabricError::System { .. }));
    }
}
