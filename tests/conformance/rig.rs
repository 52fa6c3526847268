//! Two nodes of a fabric, a connection between them, and shorthand for what tests do on it.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pmemha::fabric::tls::{TlsIdentity, make_authority, make_node_certificate};
use pmemha::fabric::{
    Completion, Endpoint, EndpointAddress, Fabric, FabricError, Local, Registration, RemoteAccess, RemoteKey,
    Wake, Write,
};
use pmemha::region::memory::{Access, SharedMem};

use crate::nodes::{Held, node};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

/// Longer than anything here takes on a busy machine; reached only when a test fails.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Two nodes.
pub struct Rig {
    pub left: Box<dyn Fabric>,
    pub right: Box<dyn Fabric>,
    /// What a process that plays a third node calls this kind of node: see `failure`.
    pub recipe: &'static str,
    /// What the rig needs as long as it lasts.
    pub _held: Held,
}

impl Rig {
    /// Nodes as [`node`] makes them.
    pub fn new(recipe: &'static str, held: Held) -> Rig {
        let node = |name| node(name, recipe, authority_dir());
        Rig { left: node("left"), right: node("right"), recipe, _held: held }
    }
}

/// One authority for all tests of the process.
pub fn authority_dir() -> &'static Path {
    static DIR: std::sync::OnceLock<tempfile::TempDir> = std::sync::OnceLock::new();
    DIR.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let authority = make_authority().unwrap();
        authority.write(&dir.path().join("ca.pem"), &dir.path().join("ca.key")).unwrap();
        dir
    })
    .path()
}

/// A node of that name, of the cluster whose `ca.pem` and `ca.key` are in `authority`.
pub fn identity(name: &str, authority: &Path) -> TlsIdentity {
    let text = |file: &str| std::fs::read_to_string(authority.join(file)).unwrap();
    let ca = pmemha::fabric::tls::Pem { certificate: text("ca.pem"), key: text("ca.key") };
    let own = tempfile::tempdir().unwrap();
    let (cert, key) = (own.path().join("node.pem"), own.path().join("node.key"));
    make_node_certificate(&ca, name).unwrap().write(&cert, &key).unwrap();
    TlsIdentity::load(&authority.join("ca.pem"), &cert, &key).unwrap()
}

impl Rig {
    /// A fresh connection, `left` having connected to `right`.
    pub fn pair(&self) -> (Node, Node) {
        let offer = self.right.offer().unwrap();
        let address = travelled(&offer.address());
        std::thread::scope(|scope| {
            let accepting = scope.spawn(|| offer.accept(soon()).unwrap());
            let left = self.left.connect(&address, soon()).unwrap();
            (Node { end: left }, Node { end: accepting.join().unwrap() })
        })
    }
}

/// An address as it arrives at the peer.
pub fn travelled(address: &EndpointAddress) -> EndpointAddress {
    serde_json::from_str(&serde_json::to_string(address).unwrap()).unwrap()
}

pub fn soon() -> Instant {
    Instant::now() + PATIENCE
}

/// One end of a connection.
#[derive(Clone)]
pub struct Node {
    pub end: Arc<dyn Endpoint>,
}

/// Registered memory.
pub type Memory = Arc<dyn Registration>;

impl Node {
    pub fn memory(&self, bytes: usize, access: RemoteAccess) -> Memory {
        self.end.register(Arc::new(SharedMem::anonymous(bytes).unwrap()), access).unwrap()
    }

    /// Memory that is mapped twice in succession, as the log and the landing ring are.
    pub fn ring(&self, bytes: usize, access: RemoteAccess) -> Memory {
        let fd = memfd_create("ring", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, bytes as u64).unwrap();
        let ring = SharedMem::map_ring(fd.as_fd(), 0, bytes, Access::ReadWrite).unwrap();
        self.end.register(Arc::new(ring), access).unwrap()
    }

    /// Posts one write.
    pub fn write(
        &self,
        from: (&Memory, usize, usize),
        to: (RemoteKey, u64),
        signal: Option<u64>,
    ) -> Result<(), FabricError> {
        self.end.write(&[write(from, to, signal)])
    }

    /// Posts one write, polling for room where the endpoint is full; returns completions seen on the way.
    pub fn write_patiently(
        &self,
        from: (&Memory, usize, usize),
        to: (RemoteKey, u64),
        signal: u64,
    ) -> Vec<Completion> {
        let (mut seen, until) = (Vec::new(), soon());
        loop {
            match self.write(from, to, Some(signal)) {
                Err(FabricError::Busy { .. }) => {
                    assert!(Instant::now() < until, "no room after {PATIENCE:?}");
                    self.end.wait(Duration::from_millis(100));
                    self.end.poll(&mut seen);
                }
                other => {
                    other.unwrap();
                    return seen;
                }
            }
        }
    }

    /// Polls until `count` completions have come.
    pub fn completions(&self, count: usize) -> Vec<Completion> {
        let (mut seen, until) = (Vec::new(), soon());
        while seen.len() < count {
            self.end.poll(&mut seen);
            if seen.len() < count {
                assert!(Instant::now() < until, "{} of {count} completions after {PATIENCE:?}", seen.len());
                self.end.wait(Duration::from_millis(100));
            }
        }
        assert_eq!(seen.len(), count, "more completions than signals");
        seen
    }

    /// As [`Node::completions`], all successful; their numbers.
    pub fn successes(&self, count: usize) -> Vec<u64> {
        let ended = self.completions(count);
        ended.into_iter().map(|c| c.result.map(|()| c.id).unwrap()).collect()
    }

    /// As [`Node::completions`] for one that fails.
    pub fn failure(&self) -> FabricError {
        self.completions(1).remove(0).result.expect_err("it should have failed")
    }

    /// Waits until the endpoint says that it is dead.
    pub fn closed(&self) {
        let until = soon();
        while self.end.wait(Duration::from_millis(100)) != Wake::Closed {
            self.end.poll(&mut Vec::new());
            while self.end.take_immediate().is_some() {}
            assert!(Instant::now() < until, "still open after {PATIENCE:?}");
        }
    }
}

/// A write of `from` (memory, offset, length) to `to`.
pub fn write<'a>(from: (&'a Memory, usize, usize), to: (RemoteKey, u64), signal: Option<u64>) -> Write<'a> {
    let (memory, offset, len) = from;
    let local = Local { memory, offset, len };
    Write { local, remote: to.0, remote_offset: to.1, immediate: None, signal }
}

/// Fills memory with bytes that differ from place to place and from seed to seed.
pub fn fill(memory: &Memory, seed: u64) {
    let bytes = pattern(memory.memory().len(), seed);
    memory.memory().write(0, &bytes);
}

/// What [`fill`] writes.
pub fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        bytes.extend_from_slice(&next());
    }
    bytes.truncate(len);
    bytes
}

/// What memory holds.
pub fn content(memory: &Memory) -> Vec<u8> {
    let mut bytes = vec![0; memory.memory().len()];
    memory.memory().read(0, &mut bytes);
    bytes
}
