//! The endpoint that the rooms above hold: checks what they post, and hands it to the connection.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::chain::Action;
use super::engine;
use super::ledger::End;
use super::link::{Link, Post};
use crate::fabric::{
    Completion, Endpoint, FabricError, Local, Registration, RemoteAccess, RemoteKey, Wake, Write,
};
use crate::region::memory::SharedMem;

/// One end of a verbs connection. Dropped, it closes the connection.
pub struct VerbsEndpoint {
    link: Arc<Link>,
}

impl VerbsEndpoint {
    /// An endpoint over a link whose queue pair is ready.
    pub fn start(link: Link) -> io::Result<Arc<VerbsEndpoint>> {
        let link = Arc::new(link);
        let engine = link.clone();
        let run = move || engine::run(engine);
        thread::Builder::new().name("pmemha-verbs".to_owned()).spawn(run)?;
        Ok(Arc::new(VerbsEndpoint { link }))
    }

    fn checked(
        &self,
        local: &Local<'_>,
        remote: &RemoteKey,
        remote_offset: u64,
        action: Action,
        signal: Option<u64>,
    ) -> Result<Post, FabricError> {
        let &Local { memory, offset, len } = local;
        remote.check(remote_offset, len)?;
        let region = self.link.pair().domain().find(&**memory).ok_or_else(|| {
            FabricError::Access("local memory is not registered on this endpoint".to_owned())
        })?;
        local.check(region.memory())?;
        // No adapter has keys of more bits, so what does not fit was forged, and no key has all of them set.
        let rkey = remote.key.try_into().unwrap_or(u32::MAX);
        let remote = remote.addr.wrapping_add(remote_offset);
        Ok(Post { region, offset, len, remote, rkey, action, signal })
    }
}

impl Endpoint for VerbsEndpoint {
    fn peer(&self) -> &str {
        &self.link.peer
    }

    /// Never: what travels between adapters is plain, and only the control connection is not.
    fn encrypted(&self) -> bool {
        false
    }

    fn register(
        &self,
        memory: Arc<SharedMem>,
        access: RemoteAccess,
    ) -> Result<Arc<dyn Registration>, FabricError> {
        Ok(Arc::new(self.link.pair().domain().register(memory, access)?))
    }

    fn write(&self, writes: &[Write<'_>]) -> Result<(), FabricError> {
        self.link.post(writes.iter().map(|write| {
            let action = write.immediate.map_or(Action::Write, Action::WriteImmediate);
            self.checked(&write.local, &write.remote, write.remote_offset, action, write.signal)
        }))
    }

    fn read(
        &self,
        into: Local<'_>,
        remote: RemoteKey,
        remote_offset: u64,
        signal: u64,
    ) -> Result<(), FabricError> {
        let post = self.checked(&into, &remote, remote_offset, Action::Read, Some(signal));
        self.link.post(std::iter::once(post))
    }

    fn poll(&self, out: &mut Vec<Completion>) -> usize {
        self.link.poll(out)
    }

    fn take_immediate(&self) -> Option<u32> {
        self.link.take_immediate()
    }

    fn wait(&self, timeout: Duration) -> Wake {
        self.link.wait(timeout)
    }

    fn interrupt(&self) {
        self.link.interrupt();
    }

    fn on_event(&self, notify: Box<dyn Fn() + Send + Sync>) {
        self.link.signals.on_event(notify);
    }

    fn revoke(&self) -> Result<(), FabricError> {
        // The reason first, so that the engine never finds a failed pair without one.
        self.link.signals.doom(End::RevokedHere);
        Ok(self.link.silence()?)
    }

    fn limit(&self) -> usize {
        self.link.limit()
    }
}

impl Drop for VerbsEndpoint {
    fn drop(&mut self) {
        self.link.signals.doom(End::Closed);
        if let Err(error) = self.link.silence() {
            tracing::error!(peer = self.link.peer, %error, "a connection could not be silenced");
        }
    }
}
