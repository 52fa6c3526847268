//! The endpoint that the rooms above hold: checks what they post, and hands it to the connection.

use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::engine;
use super::exchange::End;
use super::frame::MAX_READ;
use super::link::Link;
use super::requests::{NewWrite, Requests};
use super::transmit::Transmitter;
use crate::fabric::connection::LIMIT;
use crate::fabric::meeting::Payload;
use crate::fabric::meeting::Wire;
use crate::fabric::random;
use crate::fabric::{
    Completion, Endpoint, FabricError, Local, Registration, RemoteAccess, RemoteKey, Wake, Write,
};
use crate::locks::lock;
use crate::region::memory::SharedMem;

/// One end of a tcp connection. Dropped, it closes the connection.
pub struct TcpEndpoint {
    link: Arc<Link>,
}

impl TcpEndpoint {
    /// An endpoint over a wire that is past its handshake.
    pub fn start(peer: String, wire: Wire) -> Result<Arc<TcpEndpoint>, FabricError> {
        let system = |what: &str, source: io::Error| FabricError::System { what: what.to_owned(), source };
        let link = Arc::new(Link::new(peer, wire).map_err(|e| system("eventfd", e))?);
        let engine = link.clone();
        thread::Builder::new()
            .name("pmemha-tcp".to_owned())
            .spawn(move || engine::run(engine))
            .map_err(|e| system("starting a thread of the tcp fabric", e))?;
        Ok(Arc::new(TcpEndpoint { link }))
    }

    fn local(&self, local: &Local<'_>) -> Result<Payload, FabricError> {
        let memory = local.memory.memory();
        if !self.link.registry.knows(local.memory.key().key, memory) {
            return Err(FabricError::Access("local memory is not registered on this endpoint".to_owned()));
        }
        local.check(memory)?;
        Ok(Payload { memory: memory.clone(), offset: local.offset, len: local.len })
    }

    /// Posts under the lock if there is room, then sends what can be sent at once.
    fn post(
        &self,
        requests: usize,
        signalled: usize,
        add: impl FnOnce(&mut Requests),
    ) -> Result<(), FabricError> {
        {
            let mut exchange = lock(self.link.exchange());
            if let Some(end) = exchange.requests.books.end() {
                return Err(end.error(&self.link.peer));
            }
            let room = exchange.requests.books.room(requests, signalled);
            room.map_err(|in_flight| FabricError::Busy { in_flight })?;
            add(&mut exchange.requests);
        }
        self.link.pump_inline();
        Ok(())
    }
}

impl Endpoint for TcpEndpoint {
    fn peer(&self) -> &str {
        &self.link.peer
    }

    fn encrypted(&self) -> bool {
        self.link.wire.encrypted()
    }

    fn register(
        &self,
        memory: Arc<SharedMem>,
        access: RemoteAccess,
    ) -> Result<Arc<dyn Registration>, FabricError> {
        loop {
            let key = u64::from_le_bytes(random()?);
            if let Some(registration) = self.link.registry.register(key, memory.clone(), access) {
                return Ok(Arc::new(registration));
            }
        }
    }

    fn write(&self, writes: &[Write<'_>]) -> Result<(), FabricError> {
        let mut checked = Vec::with_capacity(writes.len());
        for write in writes {
            write.remote.check(write.remote_offset, write.local.len)?;
            checked.push(NewWrite {
                from: self.local(&write.local)?,
                key: write.remote.key,
                offset: write.remote_offset,
                immediate: write.immediate,
                signal: write.signal,
            });
        }
        let signalled = writes.iter().filter(|w| w.signal.is_some()).count();
        self.post(writes.len(), signalled, |requests| checked.into_iter().for_each(|w| requests.write(w)))
    }

    fn read(
        &self,
        into: Local<'_>,
        remote: RemoteKey,
        remote_offset: u64,
        signal: u64,
    ) -> Result<(), FabricError> {
        remote.check(remote_offset, into.len)?;
        if into.len > MAX_READ as usize {
            return Err(FabricError::Access(format!(
                "a read takes at most {MAX_READ} bytes, not {}",
                into.len
            )));
        }
        let into = self.local(&into)?;
        self.post(1, 1, |requests| requests.read(into, remote.key, remote_offset, signal))
    }

    fn poll(&self, out: &mut Vec<Completion>) -> usize {
        lock(self.link.exchange()).requests.books.poll(out)
    }

    fn take_immediate(&self) -> Option<u32> {
        lock(self.link.exchange()).requests.books.take_immediate()
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
        // The reason first, so that the engine never finds a closed gate without one.
        self.link.signals.doom(End::RevokedHere);
        self.link.registry.close();
        Ok(())
    }

    fn limit(&self) -> usize {
        LIMIT
    }
}

impl Drop for TcpEndpoint {
    fn drop(&mut self) {
        self.link.signals.doom(End::Closed);
        self.link.registry.close();
        // Whoever sends just now reads the caller's memory, which may be something else's from here on.
        lock(self.link.exchange()).finish(End::Closed, &self.link.peer);
        self.link.with_transmitter(Transmitter::abandon);
    }
}
