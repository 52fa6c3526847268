//! Controls a group that two nodes share, in whichever role this node has in it at the moment.
//!
//! A [`Role`] joins the parts: the state machine's thread (`ownership`), the open group and its stream while this node owns
//! it (`source`), the image while another one does (`standby`), the application, and the way to the other node. It carries out
//! what the machine orders and tells it what happened; decisions are the machine's alone. Made by `agent::roles`.

mod control;
mod deeds;
mod door;
mod gasp;
mod look;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::application::{Application, Order};
use super::chance;
use super::config;
use super::context::Context;
use super::control::message::Refusal;
use super::envoys::Envoys;
use super::events::Kind;
use super::fabrics::Fabrics;
use super::group::{Ending, Group, GroupError, Notice, OpenGroup, Writer};
use super::ownership::{Ownership, Teller};
use super::source::{Source, SourceSetup, Way};
use super::standby::Standby;
use super::state::PlacedFile;
use crate::fabric::tls::TlsIdentity;
use crate::failover::{Alarm, Answer, Event, Life, Standing};
use crate::locks::lock;
use crate::replica::ImageHealth;
use crate::ship::sync::Requester;
use crate::types::{Generation, GroupId};
pub(super) use deeds::RoleDeeds;
pub(super) use door::{Door, Entry};
pub(super) use gasp::Gasp;
pub(super) use look::{RoleLook, Sight};

/// How often a destination's image is looked at for a completed sync.
const LOOK: Duration = Duration::from_millis(50);

/// How long it may take to see who has a log mapped: tens of milliseconds, unless a process does not answer.
const SEEN_WITHIN: Duration = Duration::from_secs(1);

/// File of the group's directory that names the files placed by a promotion.
pub(super) const PLACED_FILE: &str = "placed.json";

/// A group on this node. Everything here may be used from any thread.
pub struct Role {
    pub(super) name: String,
    pub(super) context: Arc<Context>,
    pub(super) identity: Arc<TlsIdentity>,
    pub(super) fabrics: Arc<Fabrics>,
    /// How this node runs the group when it owns it.
    pub(super) config: config::Group,
    /// Nodes that may open the group here or ask who owns it.
    pub(super) peers: Vec<String>,
    /// The nodes that the group is shipped to; the first is preferred as the heir.
    pub(super) destinations: Vec<config::Peer>,
    pub(super) standby: Option<Standby>,
    pub(super) owner: Option<(u32, u32)>,
    pub(super) teller: Teller,
    pub(super) envoys: Envoys,
    pub(super) application: Application,
    pub(super) ownership: OnceLock<Ownership>,
    pub(super) open: Mutex<Option<Open>>,
    /// A log that this node has given up, until what writes to it has been ended.
    pub(super) stale: Mutex<Option<Arc<Group>>>,
    pub(super) door: Door,
    pub(super) sight: Arc<Sight>,
    /// Asks for copies of the open group's regions. A lock of its own, since notices come under the group's.
    pub(super) copies: Mutex<Option<Requester>>,
    pub(super) gasp: Gasp,
    pub(super) stop: AtomicBool,
    /// That another node claims the group, or its name, has been told of.
    pub(super) contested: AtomicBool,
}

/// The group while this node owns it. The stream is dropped before the group.
pub(super) struct Open {
    pub(super) source: Arc<Source>,
    pub(super) group: Arc<Group>,
    entry: Entry,
}

impl Role {
    /// Opens the group in `generation`, and ships it. Nothing happens if it is open in that generation. A log of another one is
    /// refused: the machine's rounds and the stream would name different generations, and each fence off the other. False if
    /// the group has been closed since `entry`: it stays so.
    pub(super) fn open_group(
        self: &Arc<Self>,
        generation: Generation,
        entry: Entry,
    ) -> Result<bool, GroupError> {
        let mut open = self.open();
        while let Some(old) = open.take_if(|o| o.group.generation() < generation) {
            drop(open);
            old.group.close();
            drop(old);
            open = self.open();
        }
        if open.is_some() || !self.door.admits(entry) {
            return Ok(self.door.admits(entry));
        }
        let group = self.open_log(generation)?;
        let source = Source::start(self.source_setup(&group))
            .map_err(|source| GroupError::System { what: "starting the group's threads", source })?;
        if !self.door.admits(entry) {
            // Given up meanwhile; and whoever closes it finds nothing.
            drop(open);
            drop(source);
            return Ok(false);
        }
        if group.resumed() {
            self.event(Kind::LogResumed, json!({ "generation": group.generation() }));
        }
        *lock(&self.copies) = Some(source.copies());
        *open = Some(Open { source: Arc::new(source), group, entry });
        Ok(true)
    }

    /// Finds or makes the log of `generation`.
    fn open_log(self: &Arc<Self>, generation: Generation) -> Result<Arc<Group>, GroupError> {
        let placed: Vec<PlacedFile> = self.context.states.load(&self.name, PLACED_FILE)?.unwrap_or_default();
        let group = Group::open(self.to_open(generation, &placed))?;
        self.gasp.takes_in(&group, &self.sight);
        if group.generation() != generation {
            return Err(GroupError::Generation { found: group.generation(), owned: generation });
        }
        // Before any program attaches: one that has ended by the next look has all its files in the log. Of a group that is given up,
        // once it is handed back.
        group.look_for_files();
        Ok(group)
    }

    /// Has the processes be seen that may still write to a log which this node has given up, or goes on without, if there is one.
    pub(super) fn see_stale(self: &Arc<Self>) -> Result<(), GroupError> {
        let group = Group::find_stale(self.to_open(Generation(0), &[]))?;
        group.iter().for_each(|group| self.sight.add(group));
        *lock(&self.stale) = group;
        Ok(())
    }

    fn to_open<'a>(self: &'a Arc<Self>, generation: Generation, placed: &'a [PlacedFile]) -> OpenGroup<'a> {
        let role = Arc::downgrade(self);
        OpenGroup {
            config: &self.config,
            states: &self.context.states,
            access: &self.context.access,
            keeper: &*self.context.keeper,
            generation,
            id: self.standby.as_ref().and_then(Standby::id),
            placed,
            apart: self.context.own_dirs(),
            notify: Box::new(move |notice| {
                if let Some(role) = role.upgrade() {
                    role.notice(&notice);
                }
            }),
        }
    }

    /// What ships `group`, and tells the machine why a destination will not have it.
    fn source_setup(self: &Arc<Self>, group: &Arc<Group>) -> SourceSetup {
        let (teller, role) = (self.teller.clone(), Arc::downgrade(self));
        let (context, name) = (self.context.clone(), self.name.clone());
        SourceSetup {
            group: group.clone(),
            destinations: self.destinations.clone(),
            way: Some(Way { identity: self.identity.clone(), fabrics: self.fabrics.clone() }),
            event: Arc::new(move |kind, detail| context.events.emit(Some(&name), kind, detail)),
            refused: Box::new(move |node, reason, generation| match reason {
                Refusal::StaleGeneration | Refusal::Active => {
                    let owned = reason == Refusal::Active;
                    if owned {
                        role.upgrade().iter().for_each(|role| role.hear_of_another_owner(node, generation));
                    }
                    teller.tell(Event::Answer(Answer::Fenced { generation, owned }));
                }
                Refusal::WrongGroup => role.upgrade().iter().for_each(|role| role.is_another_group()),
                _ => {}
            }),
            chance: chance::number,
        }
    }

    /// The group's identity, if it is known here.
    pub(super) fn id(&self) -> Option<GroupId> {
        let open = self.open().as_ref().map(|o| o.group.id());
        open.or_else(|| self.standby.as_ref()?.id()).or_else(|| {
            let state: Option<super::state::GroupState> =
                self.context.states.load(&self.name, super::group::STATE_FILE).ok()?;
            state.map(|s| s.id)
        })
    }

    /// The application as this agent finds it at its start, and its processes, whose end is to be heard of
    /// ([`Group::watch_found`]) once the machine has been told.
    pub(super) fn running(&self) -> (Life, Vec<Writer>) {
        let processes: Vec<Writer> = self.sight.groups().iter().flat_map(|group| group.appending()).collect();
        let (answer, life) = mpsc::channel();
        self.application.order(Order::Found(processes.iter().filter_map(|p| p.pid).collect(), answer));
        // No answer: what could not be looked at is taken for running, which is to be frozen before anything else.
        let life = life.recv().unwrap_or(Life::Running);
        // So is a writer that lives, and that may not be touched; and whoever has a log mapped that was given up.
        let mapped = |stale: &Arc<Group>| !stale.everyone(Instant::now() + SEEN_WITHIN).is_empty();
        let doubtful = processes.iter().any(|writer| writer.pid.is_none())
            || lock(&self.stale).as_ref().is_some_and(mapped);
        (if doubtful { Life::Running } else { life }, processes)
    }

    /// What happened in the open group. Called under the group's lock.
    fn notice(&self, notice: &Notice) {
        let (kind, detail) = notice.event();
        self.event(kind, detail);
        match notice {
            Notice::RegionAdded { whole, .. } => {
                if !whole && let Some(copies) = &*lock(&self.copies) {
                    copies.request();
                }
            }
            Notice::ProcessAttached { pid } => {
                if let Some(pid) = pid.filter(|pid| *pid != std::process::id()) {
                    self.application.order(Order::Adopt(pid));
                }
                self.teller.tell(Event::ApplicationStarted);
            }
            Notice::NotProtected { .. } | Notice::ProcessEnded { .. } => {}
            Notice::ApplicationEnded(ending) => {
                self.application.order(Order::Over { clean: *ending == Ending::Exited });
            }
        }
    }

    /// Looks at the image now and then, until told to stop.
    pub(super) fn watch_image(&self) {
        while !self.stop.load(Ordering::Acquire) {
            thread::park_timeout(LOOK);
            self.look_at_image();
            self.standby.iter().for_each(Standby::release_ended);
        }
    }

    /// Tells the machine if a sync has made this node one that could be promoted. Also called before a request of the other
    /// node is handed in: it may know of the completed sync already.
    pub(super) fn look_at_image(&self) {
        let (Some(standby), Some(ownership)) = (&self.standby, self.ownership.get()) else { return };
        let durable = ownership.state().durable;
        if !matches!(durable.standing, Standing::Demoted { .. }) {
            return;
        }
        if let Some(status) = standby.status()
            && status.image == ImageHealth::Consistent
            && status.generation == durable.generation
        {
            self.event(Kind::Synced, json!({ "generation": status.generation, "lsn": status.applied }));
            self.teller.tell(Event::Synced { generation: status.generation });
        }
    }

    /// A node that shares the group has one of this name that is another one. Told once, however often it asks.
    pub(super) fn is_another_group(&self) {
        if !self.contested.swap(true, Ordering::Relaxed) {
            self.alarm(Alarm::AnotherGroup, None);
        }
    }

    /// `node` says that it owns the group in `generation`, which is no news where that is a later one. Told once.
    fn hear_of_another_owner(&self, node: &str, generation: Generation) {
        let Some(state) = self.ownership.get().map(Ownership::state) else { return };
        if state.admits_application()
            && state.durable.generation == generation
            && !self.contested.swap(true, Ordering::Relaxed)
        {
            self.alarm(Alarm::TwoOwners, Some(format!("{node} owns generation {generation}")));
        }
    }

    /// Raises `alarm`; `why` makes its message more precise.
    fn alarm(&self, alarm: Alarm, why: Option<String>) {
        let message = why.iter().fold(alarm.message().to_owned(), |m, why| format!("{m}: {why}"));
        tracing::error!(group = self.name, alarm = ?alarm, "{message}");
        self.event(Kind::Alarm, json!({ "what": alarm, "message": message }));
    }

    pub(super) fn event(&self, kind: Kind, detail: serde_json::Value) {
        self.context.events.emit(Some(&self.name), kind, detail);
    }

    pub(super) fn open(&self) -> MutexGuard<'_, Option<Open>> {
        lock(&self.open)
    }

    /// Ends the stream of what was opened before the door was `shut`; the log stays with its keeper.
    fn close_group(&self, shut: Entry) {
        // Not under the lock: the threads that end here may wait for the group's lock, whose holder waits for ours.
        let open = self.open().take_if(|open| open.entry < shut);
        if let Some(open) = open {
            open.group.close();
        }
    }

    fn source(&self) -> Option<Arc<Source>> {
        self.open().as_ref().map(|o| o.source.clone())
    }

    /// Runs `body` beside the machine; what it finds out it tells.
    fn beside(self: &Arc<Self>, what: &str, body: impl FnOnce(&Arc<Role>) + Send + 'static) {
        let role = self.clone();
        let spawned = thread::Builder::new().name(format!("{what}-{}", self.name)).spawn(move || body(&role));
        if let Err(error) = spawned {
            // The machine asks again when its patience is over.
            tracing::error!(group = self.name, what, %error, "no thread could be started");
        }
    }
}
