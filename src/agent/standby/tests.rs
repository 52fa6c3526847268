use std::sync::atomic::AtomicBool;

use super::*;
use crate::fabric::tls::{TlsIdentity, make_authority, make_node_certificate};
use crate::fabric::{Completion, Local, Wake, Write};
use crate::region::memory::SharedMem;

fn standby(dir: &std::path::Path) -> Standby {
    let path = |name: &str| dir.join(name);
    let authority = make_authority().unwrap();
    authority.write(&path("ca"), &path("ca-key")).unwrap();
    make_node_certificate(&authority, "heir").unwrap().write(&path("cert"), &path("key")).unwrap();
    let identity = TlsIdentity::load(&path("ca"), &path("cert"), &path("key")).unwrap();
    let fabrics =
        Fabrics::start("127.0.0.1:0".parse().unwrap(), None, &identity, &Default::default()).unwrap();
    let text = format!(
        "group = \"db\"\nfrom = [\"source\"]\ndir = \"{}/replica\"\ndurability = \"battery\"\nencrypt = false\n",
        dir.display()
    );
    let config = toml::from_str(&text).unwrap();
    let states = Arc::new(StateDir::open(&path("state")).unwrap());
    Standby::open(config, states, Arc::new(fabrics)).unwrap()
}

fn open() -> OpenGroup {
    OpenGroup {
        group: "db".into(),
        id: GroupId([7; 16]),
        generation: Generation(1),
        log: LogId(1),
        ring_bytes: 64 << 10,
    }
}

#[test]
fn a_revocation_voids_every_stream_whose_admission_was_asked_for_before_it() {
    let dir = tempfile::tempdir().unwrap();
    let standby = standby(dir.path());
    // Admitted before the revocation, opened only after it.
    let turn = standby.turn();
    standby.revoke().unwrap();
    let late = standby.open_group("source", &open(), turn);
    assert!(matches!(late, Err(Answer::Refused { reason: Refusal::OutOfOrder, .. })));
    // Opened before the revocation, attached after it, with its endpoint connected.
    let turn = standby.turn();
    let Ok((opened, answer)) = standby.open_group("source", &open(), turn) else {
        panic!("a turn that nothing voided is refused");
    };
    let fabric = standby.fabrics.for_offer(&answer.offer, false).unwrap().clone();
    let _endpoint = fabric.connect(&answer.offer, Instant::now() + ACCEPT_WITHIN).unwrap();
    standby.revoke().unwrap();
    let attached = standby.attach(opened, RemoteKey { key: 1, addr: 0, len: 4096 }, Lsn(0), Some(1));
    assert!(matches!(attached, Answer::Refused { reason: Refusal::OutOfOrder, .. }), "{attached:?}");
    assert_eq!(standby.source(), None);
}

/// A real connection that cannot be silenced while `stuck`.
struct Stubborn {
    inner: Arc<dyn Endpoint>,
    stuck: Arc<AtomicBool>,
}

impl Endpoint for Stubborn {
    fn revoke(&self) -> Result<(), FabricError> {
        if self.stuck.load(Ordering::Relaxed) {
            let source = io::Error::from_raw_os_error(libc::EBUSY);
            return Err(FabricError::System { what: "destroying a queue pair".into(), source });
        }
        self.inner.revoke()
    }

    fn peer(&self) -> &str {
        self.inner.peer()
    }

    fn encrypted(&self) -> bool {
        self.inner.encrypted()
    }

    fn register(
        &self,
        memory: Arc<SharedMem>,
        access: RemoteAccess,
    ) -> Result<Arc<dyn Registration>, FabricError> {
        self.inner.register(memory, access)
    }

    fn write(&self, writes: &[Write<'_>]) -> Result<(), FabricError> {
        self.inner.write(writes)
    }

    fn read(&self, into: Local<'_>, key: RemoteKey, offset: u64, signal: u64) -> Result<(), FabricError> {
        self.inner.read(into, key, offset, signal)
    }

    fn poll(&self, out: &mut Vec<Completion>) -> usize {
        self.inner.poll(out)
    }

    fn take_immediate(&self) -> Option<u32> {
        self.inner.take_immediate()
    }

    fn wait(&self, timeout: Duration) -> Wake {
        self.inner.wait(timeout)
    }

    fn interrupt(&self) {
        self.inner.interrupt();
    }

    fn on_event(&self, notify: Box<dyn Fn() + Send + Sync>) {
        self.inner.on_event(notify);
    }

    fn limit(&self) -> usize {
        self.inner.limit()
    }
}

#[test]
fn a_source_that_cannot_be_kept_from_writing_is_not_revoked_and_nothing_is_opened_beside_it() {
    let dir = tempfile::tempdir().unwrap();
    let standby = standby(dir.path());
    let Ok((opened, answer)) = standby.open_group("source", &open(), standby.turn()) else {
        panic!("a turn that nothing voided is refused");
    };
    let fabric = standby.fabrics.for_offer(&answer.offer, false).unwrap().clone();
    let source = fabric.connect(&answer.offer, Instant::now() + ACCEPT_WITHIN).unwrap();
    let acks = Arc::new(SharedMem::anonymous(4096).unwrap());
    let acks = source.register(acks, RemoteAccess::Write).unwrap();
    let attached = standby.attach(opened, acks.key(), Lsn(0), Some(1));
    assert!(matches!(attached, Answer::Attached { .. }), "{attached:?}");
    let stuck = Arc::new(AtomicBool::new(true));
    {
        let mut inner = standby.lock();
        let link = inner.link.as_mut().unwrap();
        link.endpoint = Arc::new(Stubborn { inner: link.endpoint.clone(), stuck: stuck.clone() });
    }

    let error = standby.revoke().unwrap_err().to_string();
    assert!(error.contains("source could not be kept") && error.contains("restart pmemhad"), "{error}");
    assert!(error.contains("destroying a queue pair"), "{error}");
    assert_eq!(standby.source().as_deref(), Some("source"), "the link is kept for the next attempt");
    let Err(Answer::Refused { reason, message, .. }) = standby.open_group("source", &open(), standby.turn())
    else {
        panic!("a stream is opened although the one before it may still land");
    };
    assert_eq!(reason, Refusal::Failed);
    assert!(message.contains("restart pmemhad"), "{message}");

    stuck.store(false, Ordering::Relaxed);
    standby.revoke().unwrap();
    assert_eq!(standby.source(), None);
}
