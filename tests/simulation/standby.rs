//! What a machine does for a group that another one owns: takes the stream, says what it has, lets go of the source, promotes.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use pmemha::fabric::{Endpoint, Registration, RemoteAccess, RemoteKey};
use pmemha::failover::{Mandate, Round, Saved};
use pmemha::locks::lock;
use pmemha::replica::applier::{Applier, ApplierConfig};
use pmemha::replica::promote::{self, SavedMark};
use pmemha::replica::{Link, Replica, ReplicaStatus, StreamStart};
use pmemha::ship::join::Have;
use pmemha::types::{Durability, Generation, GroupId, Lsn};
use pmemha_testkit::sim_store::SimStore;

use crate::clock::Baton;
use crate::oracle::Files;

pub const GROUP: GroupId = GroupId([5; 16]);

/// Of every replica, in a store of its own.
pub fn directory() -> &'static Path {
    Path::new("/replica")
}

/// What a replica in `store` is.
pub fn config(store: &SimStore, durability: Durability) -> ApplierConfig {
    ApplierConfig { store: Arc::new(store.clone()), dir: directory().into(), group: GROUP, durability }
}

/// What a promotion would yield, and what is in it.
pub fn yields(store: &SimStore, applier: &Applier) -> Option<(Generation, Lsn, Files)> {
    let promotable = applier.images().promotable()?;
    let files = applier.images().regions().into_iter();
    let content = |path: &PathBuf, size: u64| {
        let mut bytes = store.content(path);
        bytes.resize(size as usize, 0);
        bytes
    };
    let files = files.map(|file| (file.entry.name.clone(), content(&file.path, file.entry.size))).collect();
    Some((promotable.generation, promotable.lsn, files))
}

pub struct Standby {
    store: SimStore,
    replica: Baton<Option<Replica>>,
    link: Mutex<Option<Connected>>,
    watch: Mutex<Option<pmemha::replica::StatusWatch>>,
    /// The newest turn to open the stream; a revocation voids those before.
    newest: AtomicU64,
}

struct Connected {
    endpoint: Arc<dyn Endpoint>,
    _landing: Arc<dyn Registration>,
}

/// A turn to open the stream.
pub struct Turn(u64);

impl Standby {
    pub fn open(store: &SimStore, durability: Durability) -> Standby {
        // One whose power is cut meanwhile has none.
        let replica = Replica::open(config(store, durability)).ok().map(|(replica, _)| replica);
        let watch = Mutex::new(replica.as_ref().map(Replica::watch));
        let (store, newest) = (store.clone(), AtomicU64::new(0));
        Standby { store, replica: Baton::new(replica), link: Mutex::default(), watch, newest }
    }

    pub fn status(&self) -> Option<ReplicaStatus> {
        lock(&self.watch).as_ref().map(|watch| watch.status())
    }

    pub fn store(&self) -> &SimStore {
        &self.store
    }

    pub fn turn(&self) -> Turn {
        Turn(self.newest.fetch_add(1, SeqCst) + 1)
    }

    fn holds(&self, turn: &Turn) -> bool {
        self.newest.load(SeqCst) == turn.0
    }

    /// What is here for a source to go on with, once everything that landed has been applied.
    pub fn have(&self, turn: &Turn) -> Option<Have> {
        let mut replica = self.replica.take();
        if !self.holds(turn) {
            return None;
        }
        let replica = replica.as_mut()?;
        self.disconnect(replica);
        // What cannot be applied is reported by the status.
        let _ = replica.applier();
        Some(Have::of(&replica.status()))
    }

    /// From here on the source may write; where.
    pub fn attach(
        &self,
        turn: &Turn,
        start: StreamStart,
        endpoint: Arc<dyn Endpoint>,
        ack: RemoteKey,
    ) -> Option<RemoteKey> {
        let mut replica = self.replica.take();
        if !self.holds(turn) {
            return None;
        }
        let replica = replica.as_mut()?;
        let ring = replica.take_stream(start).ok()?;
        let registration = endpoint.register(ring, RemoteAccess::Write).ok()?;
        let mut landing = registration.key();
        landing.len = landing.len.min(start.ring_bytes);
        replica.attach(Link { endpoint: endpoint.clone(), ack, notify: true }).ok()?;
        *lock(&self.link) = Some(Connected { endpoint, _landing: registration });
        Some(landing)
    }

    fn disconnect(&self, replica: &mut Replica) {
        let link = lock(&self.link).take();
        if let Some(Connected { endpoint, .. }) = link {
            endpoint.revoke().expect("a simulated fabric revokes");
            replica.detach();
        }
    }

    /// Takes the source's access away.
    pub fn revoke(&self) {
        self.newest.fetch_add(1, SeqCst);
        if let Some(replica) = self.replica.take().as_mut() {
            self.disconnect(replica);
        }
    }

    /// What `mandate` of `round` entitles to promote, if that is here.
    pub fn verify(&self, round: Round, mandate: Mandate) -> Option<(Generation, Lsn, Files)> {
        let saved = match mandate {
            Mandate::Saved(Saved { lsn, digest }) => {
                Some(SavedMark { generation: round.generation, lsn, digest })
            }
            Mandate::SaveStarted | Mandate::Arbiter | Mandate::Force => None,
        };
        let mut replica = self.replica.take();
        let applier = replica.as_mut()?.applier().ok()?;
        promote::verify(applier, saved).ok()?;
        yields(&self.store, applier)
    }

    /// Gives the image's bytes away.
    pub fn clear(&self) -> bool {
        let mut replica = self.replica.take();
        let applier = replica.as_mut().and_then(|replica| replica.applier().ok());
        applier.is_some_and(|applier| applier.clear().is_ok())
    }

    /// The agent ends: its threads do.
    pub fn end(&self) {
        self.newest.fetch_add(1, SeqCst);
        let replica = self.replica.take().take();
        drop(replica);
    }
}
