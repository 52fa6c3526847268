//! A group's image at its destination: admits one source at a time, and is promoted.
//!
//! A [`Standby`] is what a `[[replica]]` of the configuration describes. Peers' channels ask it to take a stream; the group's
//! state machine asks it to revoke, verify and place. Its image is opened when the group's identity is known:
//! from the first source that opens it, or from an earlier life. Made by `agent::role`; all methods from any thread.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

use serde::{Deserialize, Serialize};

use super::clock::WallTime;
use super::config::{self, FabricKind};
use super::control::message::{Answer, GroupOpened, OpenGroup, Refusal, refused};
use super::fabrics::Fabrics;
use super::state::{StateDir, StateError, check_usable};
use crate::fabric::{Endpoint, FabricError, Offer, Registration, RemoteAccess, RemoteKey};
use crate::failover::{Mandate, Round, Saved};
use crate::locks::lock;
use crate::region::kind::MemoryKind;
use crate::remedy;
use crate::replica::applier::{ApplierConfig, ApplyError};
use crate::replica::durability;
use crate::replica::peek::{self, BaseQuery};
use crate::replica::promote::{PromoteError, Promoted, Request, SavedMark};
use crate::replica::status::ReplicaStatus;
use crate::replica::store::disk::DiskStore;
use crate::replica::worker;
use crate::replica::{Replica, StatusWatch, StreamStart};
use crate::types::{Durability, Generation, GroupId, LogId, Lsn, RegionId};

mod report;

/// File of the group's directory that holds its identity, as the first source gave it.
const STATE_FILE: &str = "replica.json";

/// A source that was made an offer must connect within this time.
const ACCEPT_WITHIN: Duration = Duration::from_secs(10);

/// A group's image here.
pub struct Standby {
    config: config::Replica,
    states: Arc<StateDir>,
    fabrics: Arc<Fabrics>,
    durability: Durability,
    /// What the replica's files are in.
    memory: MemoryKind,
    /// Records land in memory beside the replica's files, which the adapter cannot be given.
    staged: bool,
    inner: Mutex<Inner>,
    /// Number of the newest turn; what an older one opens or opened is void.
    newest: AtomicU64,
    last_error: Mutex<Option<String>>,
}

struct Inner {
    id: Option<GroupId>,
    replica: Option<Replica>,
    watch: Option<StatusWatch>,
    link: Option<Connected>,
}

/// A source that is attached.
struct Connected {
    endpoint: Arc<dyn Endpoint>,
    peer: String,
    /// Keeps the landing ring reachable.
    _landing: Arc<dyn Registration>,
    /// It has ended by itself, and was to be let go.
    ended: bool,
}

/// A source's turn to open the stream, from [`Standby::turn`]; void once another one was drawn or access was revoked.
#[derive(Debug)]
pub struct Turn(u64);

/// A stream that was opened and waits for its `attach`.
pub struct Opened {
    turn: Turn,
    generation: Generation,
    log: LogId,
    ring_bytes: u64,
    peer: String,
    accepted: Receiver<Result<Arc<dyn Endpoint>, FabricError>>,
}

impl Opened {
    fn start(&self, from: Lsn, fresh: Option<u32>) -> StreamStart {
        let &Opened { generation, log, ring_bytes, .. } = self;
        StreamStart { generation, log, ring_bytes, from, fresh }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Known {
    id: GroupId,
}

/// Why a standby cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum StandbyError {
    /// Its directory cannot be used.
    #[error(
        "cannot use the replica's directory {} (`dir` in [[replica]]): {source}{}", dir.display(), remedy::of(source)
    )]
    Dir {
        /// The directory.
        dir: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Its configuration promises what it cannot keep.
    #[error("`durability = \"{declared}\"` cannot be kept for the replica in {}: {why}", dir.display())]
    Durability {
        /// The directory.
        dir: PathBuf,
        /// The declaration.
        declared: String,
        /// What stands against it, and what to write instead.
        why: &'static str,
    },
    /// Its state cannot be read or stored.
    #[error(transparent)]
    State(#[from] StateError),
    /// Something of the source's may still land.
    #[error(
        "{peer} could not be kept from writing here ({source}): restart pmemhad on this node, which ends its access for \
         certain"
    )]
    Revoke {
        /// The source.
        peer: String,
        /// What the fabric said.
        source: FabricError,
    },
    /// Its image cannot be opened.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// Its image cannot be promoted.
    #[error(transparent)]
    Promote(#[from] PromoteError),
}

impl StandbyError {
    /// Whether the next attempt ends in the same way, unless somebody mends something.
    pub fn lasts(&self) -> bool {
        match self {
            StandbyError::Durability { .. } | StandbyError::Dir { .. } => true,
            StandbyError::Apply(error) => !error.is_temporary(),
            StandbyError::State(error) => error.lasts(),
            StandbyError::Revoke { .. } | StandbyError::Promote(_) => false,
        }
    }
}

impl Standby {
    /// Opens the image that is there, if any. One that cannot be opened for a cause that passes, such as a full disk, is opened as soon
    /// as it is wanted and can be: the agent's other groups need it meanwhile.
    pub fn open(
        config: config::Replica,
        states: Arc<StateDir>,
        fabrics: Arc<Fabrics>,
    ) -> Result<Standby, StandbyError> {
        let dir = |source| StandbyError::Dir { dir: config.dir.clone(), source };
        fs::create_dir_all(&config.dir).map_err(dir)?;
        check_usable(&config.dir).map_err(dir)?;
        let found = durability::detect(&config.dir).map_err(dir)?;
        let staged =
            config.fabric == FabricKind::Verbs && !durability::stays_in_place(&config.dir).map_err(dir)?;
        let durability = durability::settle(config.durability.declared(), found, staged).map_err(|why| {
            let declared = config.durability.declared().map_or("auto".to_owned(), |d| d.to_string());
            StandbyError::Durability { dir: config.dir.clone(), declared, why }
        })?;
        let known = states.load::<Known>(&config.group, STATE_FILE)?;
        let standby = Standby {
            states,
            fabrics,
            durability,
            memory: durability::memory(found),
            staged,
            config,
            inner: Mutex::new(Inner { id: None, replica: None, watch: None, link: None }),
            newest: AtomicU64::new(0),
            last_error: Mutex::default(),
        };
        if let Some(known) = known {
            let mut inner = standby.lock();
            inner.id = Some(known.id);
            match standby.adopt(&mut inner, known.id) {
                Err(error) if !error.lasts() => standby.note(&error.to_string()),
                opened => opened?,
            }
        }
        Ok(standby)
    }

    /// The configuration.
    pub fn config(&self) -> &config::Replica {
        &self.config
    }

    /// The group's identity, once a source has given it.
    pub fn id(&self) -> Option<GroupId> {
        self.lock().id
    }

    /// A turn to open the stream. Drawn *before* the state machine is asked whether the source is admitted: a revocation that
    /// the machine orders after its answer then voids the turn, however long the opening takes.
    pub fn turn(&self) -> Turn {
        Turn(self.newest.fetch_add(1, Ordering::SeqCst) + 1)
    }

    /// Answers `open_group` of `peer`, which the configuration and, since `turn` was drawn, the state machine admit. An earlier
    /// link ends first.
    pub fn open_group(
        &self,
        peer: &str,
        open: &OpenGroup,
        turn: Turn,
    ) -> Result<(Opened, GroupOpened), Answer> {
        let failed = |what: String| {
            self.note(&what);
            refused(Refusal::Failed, open.generation, what)
        };
        let mut inner = self.lock();
        if !self.holds(&turn) {
            return Err(refused(Refusal::OutOfOrder, open.generation, VOID));
        }
        if inner.id.is_some_and(|id| id != open.id) {
            let text = format!("{} is another group of the same name here", open.group);
            return Err(refused(Refusal::WrongGroup, open.generation, text));
        }
        self.disconnect(&mut inner).map_err(|e| failed(e.to_string()))?;
        self.adopt(&mut inner, open.id).map_err(|e| failed(e.to_string()))?;
        let replica = inner.replica.as_mut().expect("just adopted");
        // What landed is applied first, so that the stream goes on where the image ends.
        if let Err(error) = replica.applier() {
            self.note(&error.to_string());
        }
        let have = report::of(&replica.status());
        let encrypt = self.config.encrypted();
        let fabric = self.fabrics.choose(self.config.fabric, encrypt);
        let offer = fabric.and_then(|fabric| fabric.offer()).map_err(|e| failed(e.to_string()))?;
        let address = offer.address();
        let accepted = accept(offer).map_err(|e| failed(e.to_string()))?;
        let answer = GroupOpened {
            have,
            durability: self.durability,
            encrypt,
            memory: self.memory,
            staged: self.staged,
            offer: address,
        };
        let &OpenGroup { generation, log, ring_bytes, .. } = open;
        Ok((Opened { turn, generation, log, ring_bytes, peer: peer.to_owned(), accepted }, answer))
    }

    /// Answers `attach`: from here on the source may write.
    pub fn attach(&self, opened: Opened, ack: RemoteKey, from: Lsn, fresh: Option<u32>) -> Answer {
        let no = |reason, text: String| {
            self.note(&text);
            refused(reason, opened.generation, text)
        };
        let endpoint = match opened.accepted.recv_timeout(ACCEPT_WITHIN) {
            Ok(Ok(endpoint)) => endpoint,
            Ok(Err(error)) => return no(Refusal::Failed, error.to_string()),
            Err(_) => return no(Refusal::OutOfOrder, "the fabric is not connected".into()),
        };
        let mut inner = self.lock();
        if !self.holds(&opened.turn) {
            return no(Refusal::OutOfOrder, VOID.into());
        }
        let Some(replica) = inner.replica.as_mut() else {
            return no(Refusal::OutOfOrder, "the group is not open".into());
        };
        let StreamLinked { landing, registration } =
            match link(replica, &endpoint, &opened, opened.start(from, fresh), ack) {
                Ok(linked) => linked,
                Err(error) => return no(Refusal::Failed, error),
            };
        inner.link = Some(Connected { endpoint, peer: opened.peer, _landing: registration, ended: false });
        *lock(&self.last_error) = None;
        Answer::Attached { landing }
    }

    /// The image's status.
    pub fn status(&self) -> Option<ReplicaStatus> {
        let watch = self.lock().watch.clone();
        watch.map(|w| w.status())
    }

    /// Digests of pages of the live image; empty if there is none of the region.
    pub fn digests(&self, region: RegionId, pages: &[u64]) -> Vec<u64> {
        let Some(status) = self.status() else { return Vec::new() };
        let store = DiskStore::new(self.durability);
        peek::digests(&store, &self.config.dir, status.generation, region, pages).unwrap_or_default()
    }

    /// See [`peek::blocks`]; empty if there is no live image of this generation or of the region.
    pub fn blocks(&self, generation: Generation, region: RegionId, asked: (usize, u64, usize)) -> Vec<u64> {
        let store = DiskStore::new(self.durability);
        peek::blocks(&store, &self.config.dir, generation, region, asked).unwrap_or_default()
    }

    /// See [`peek::base`].
    pub fn base(&self, query: BaseQuery<'_>) -> Option<peek::Base> {
        peek::base(&DiskStore::new(self.durability), &self.config.dir, query)
    }

    /// Takes the source's access away: when this has succeeded, nothing of its can land any more. Whatever was opened is
    /// void in any case. After a failure the image must not be promoted; it may be called again.
    pub fn revoke(&self) -> Result<(), StandbyError> {
        self.newest.fetch_add(1, Ordering::SeqCst);
        self.disconnect(&mut self.lock())
    }

    /// Whether the image holds what `mandate` of `round` names, after everything that landed has been applied, and its files have
    /// places here.
    pub fn verify(&self, round: Round, mandate: Mandate) -> Result<(), String> {
        let saved = match mandate {
            Mandate::Saved(Saved { lsn, digest }) => {
                Some(SavedMark { generation: round.generation, lsn, digest })
            }
            Mandate::SaveStarted | Mandate::Arbiter | Mandate::Force => None,
        };
        let mut inner = self.lock();
        let verified = match self.replica(&mut inner) {
            Ok(Some(replica)) => {
                replica.verify(saved, &self.config.paths).map(drop).map_err(|e| e.to_string())
            }
            Ok(None) => Err("there is no image of the group here".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        verified.inspect_err(|why| self.note(why))
    }

    /// Why nothing that lands becomes durable in the image at present, if so.
    pub fn fault(&self) -> Option<String> {
        self.status()?.faulted
    }

    /// What went wrong last, and when.
    pub fn last_error(&self) -> Option<String> {
        lock(&self.last_error).clone()
    }

    /// Puts the image's files where the application opens them. May be repeated.
    pub fn place(&self, owner: Option<(u32, u32)>) -> Result<Promoted, StandbyError> {
        let mut inner = self.lock();
        let replica = self.replica(&mut inner)?.ok_or(PromoteError::NothingConsistent)?;
        // What must be there was checked when the group became ours.
        Ok(replica.promote(&Request { paths: &self.config.paths, owner })?)
    }

    /// The source that is attached.
    pub fn source(&self) -> Option<String> {
        self.lock().link.as_ref().map(|l| l.peer.clone())
    }

    /// Lets go of a link whose connection has ended by itself: as long as it is held, its adapter cannot be removed. Once: where that
    /// fails, whoever needs it done tries again.
    pub fn release_ended(&self) {
        let mut inner = self.lock();
        let ended = inner.replica.as_ref().is_some_and(Replica::has_ended);
        if ended && inner.link.as_mut().is_some_and(|link| !std::mem::replace(&mut link.ended, true)) {
            // What could not be done is noted.
            let _ = self.disconnect(&mut inner);
        }
    }

    /// Whether nothing has voided `turn`. Under the lock it stays so until the lock is released: whoever voids it takes the
    /// lock afterwards, to end what the turn's link may have become.
    fn holds(&self, turn: &Turn) -> bool {
        self.newest.load(Ordering::SeqCst) == turn.0
    }

    /// Ends the link, if there is one. A link that cannot be silenced stays, so that the next attempt is made on it, and
    /// what lands is still applied.
    fn disconnect(&self, inner: &mut Inner) -> Result<(), StandbyError> {
        let Some(link) = &inner.link else { return Ok(()) };
        if let Err(source) = link.endpoint.revoke() {
            let error = StandbyError::Revoke { peer: link.peer.clone(), source };
            self.note(&error.to_string());
            return Err(error);
        }
        inner.link = None;
        if let Some(replica) = &mut inner.replica {
            replica.detach();
        }
        Ok(())
    }

    /// The image, opened now if it could not be when the agent was started; none if there is none of a known group.
    fn replica<'a>(&self, inner: &'a mut Inner) -> Result<Option<&'a mut Replica>, StandbyError> {
        if let Some(id) = inner.id {
            self.adopt(inner, id)?;
        }
        Ok(inner.replica.as_mut())
    }

    /// Opens the image of group `id`; stores the identity first if it is new.
    fn adopt(&self, inner: &mut Inner, id: GroupId) -> Result<(), StandbyError> {
        if inner.replica.is_some() {
            return Ok(());
        }
        if inner.id.is_none() {
            self.states.save(&self.config.group, STATE_FILE, &Known { id })?;
            inner.id = Some(id);
        }
        let (replica, recovery) = Replica::open(ApplierConfig {
            store: Arc::new(match self.staged {
                true => DiskStore::staged(self.durability),
                false => DiskStore::new(self.durability),
            }),
            dir: self.config.dir.clone(),
            group: id,
            durability: self.durability,
        })?;
        if recovery.to > recovery.from {
            tracing::info!(group = self.config.group, from = %recovery.from, to = %recovery.to, "replayed what had landed");
        }
        inner.watch = Some(replica.watch());
        inner.replica = Some(replica);
        Ok(())
    }

    fn note(&self, error: &str) {
        tracing::warn!(group = self.config.group, error, "replica");
        *lock(&self.last_error) = Some(format!("{} {error}", WallTime::now()));
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }
}

/// Told to a source whose turn is over.
const VOID: &str = "the group has been opened anew, or closed, since";

struct StreamLinked {
    landing: RemoteKey,
    registration: Arc<dyn Registration>,
}

fn link(
    replica: &mut Replica,
    endpoint: &Arc<dyn Endpoint>,
    opened: &Opened,
    start: StreamStart,
    ack: RemoteKey,
) -> Result<StreamLinked, String> {
    let ring = replica.take_stream(start).map_err(|e| e.to_string())?;
    let registration = endpoint.register(ring, RemoteAccess::Write).map_err(|e| e.to_string())?;
    let mut landing = registration.key();
    // The ring is mapped twice; the source sees it once.
    landing.len = landing.len.min(opened.ring_bytes);
    let link = worker::Link { endpoint: endpoint.clone(), ack, notify: true };
    replica.attach(link).map_err(|e| e.to_string())?;
    Ok(StreamLinked { landing, registration })
}

/// Accepts beside the channel: the source connects before it asks anything more.
fn accept(offer: Box<dyn Offer>) -> io::Result<Receiver<Result<Arc<dyn Endpoint>, FabricError>>> {
    let (sender, accepted) = mpsc::channel();
    let deadline = Instant::now() + ACCEPT_WITHIN;
    thread::Builder::new().name("fabric-accept".into()).spawn(move || {
        // Nobody waits any more if the channel ended; the endpoint is dropped then.
        let _ = sender.send(offer.accept(deadline));
    })?;
    Ok(accepted)
}

#[cfg(test)]
mod tests;
