//! Controls a group that two nodes share, in whichever role this node has in it at the moment.
//!
//! A [`Role`] joins the parts: the state machine's thread (`ownership`), the open group and its stream while this node owns
//! it (`source`), the image while another one does (`standby`), the application, and the way to the other node. It carries out
//! what the machine orders and tells it what happened; decisions are the machine's alone. Made by `agent::roles`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::application::{Application, Order};
use super::config;
use super::context::Context;
use super::fabrics::Fabrics;
use super::group::{Controller, Ending, Group, GroupError, Notice, OpenGroup};
use super::messenger::Messenger;
use super::ownership::{Deeds, Ownership, Teller};
use super::source::{Destination, Source, SourceSetup};
use super::standby::Standby;
use super::status::{GroupStatus, Role as Part};
use crate::fabric::tls::TlsIdentity;
use crate::failover::{
    Action, Answer, Application as Life, Event, Mandate, Note, Request, Round, Saved, Standing,
};
use crate::log::region::boottime;
use crate::replica::ImageHealth;
use crate::ship::sync::Requester;
use crate::types::{Generation, GroupId};

/// How often a destination's image is looked at for a completed sync.
const LOOK: Duration = Duration::from_millis(50);

/// A gasp goes on for as long as the machine wants it; this only bounds a thread that was forgotten.
const GASP_LIMIT: Duration = Duration::from_secs(3600);

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
    /// The node that the group is shipped and handed over to.
    pub(super) heir: Option<config::Peer>,
    pub(super) standby: Option<Standby>,
    pub(super) owner: Option<(u32, u32)>,
    pub(super) teller: Teller,
    pub(super) messenger: Option<Messenger>,
    pub(super) application: Application,
    pub(super) ownership: OnceLock<Ownership>,
    pub(super) open: Mutex<Option<Open>>,
    /// Asks for copies of the open group's regions. A lock of its own, since notices come under the group's.
    pub(super) copies: Mutex<Option<Requester>>,
    pub(super) gasp: Mutex<Arc<AtomicBool>>,
    /// A command of ours has been started in this life: its end is reported by whoever waits for it.
    pub(super) commanded: AtomicBool,
    pub(super) stop: AtomicBool,
    pub(super) chance: fn() -> u32,
}

/// The group while this node owns it. The stream is dropped before the group.
pub(super) struct Open {
    pub(super) source: Arc<Source>,
    pub(super) group: Arc<Group>,
}

impl Role {
    /// Opens the group in `generation` or a later one, and ships it. Nothing happens if it is open in that generation.
    pub(super) fn open_group(self: &Arc<Self>, generation: Generation) -> Result<(), GroupError> {
        let mut open = self.open();
        if open.as_ref().is_some_and(|o| o.group.generation() >= generation) {
            return Ok(());
        }
        if let Some(old) = open.take() {
            drop(open);
            drop(old);
            open = self.open();
        }
        let role = Arc::downgrade(self);
        let group = Group::open(OpenGroup {
            config: &self.config,
            states: &self.context.states,
            keeper: &*self.context.keeper,
            generation,
            notify: Box::new(move |notice| {
                if let Some(role) = role.upgrade() {
                    role.notice(&notice);
                }
            }),
        })?;
        let teller = self.teller.clone();
        let (context, name) = (self.context.clone(), self.name.clone());
        let setup = SourceSetup {
            group: group.clone(),
            destination: self.heir.clone().map(|peer| Destination {
                peer,
                identity: self.identity.clone(),
                fabrics: self.fabrics.clone(),
            }),
            event: Arc::new(move |kind, detail| context.events.emit(Some(&name), kind, detail)),
            superseded: Box::new(move |generation, owned| {
                teller.tell(Event::Answer(Answer::Fenced { generation, owned }))
            }),
            chance: self.chance,
        };
        let source = Source::start(setup)
            .map_err(|source| GroupError::System { what: "starting the group's threads", source })?;
        if group.resumed() {
            self.event("log_resumed", json!({ "generation": group.generation() }));
        }
        *self.copies.lock().unwrap_or_else(PoisonError::into_inner) = Some(source.copies());
        *open = Some(Open { source: Arc::new(source), group });
        Ok(())
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

    /// The application as this agent finds it at its start.
    pub(super) fn running(&self) -> Life {
        let open = self.open().as_ref().map(|o| o.group.clone());
        let mut processes = open.map(|g| g.appending()).unwrap_or_default();
        // An agent never freezes or kills the process that it is part of.
        processes.retain(|p| p.pid != std::process::id());
        for process in &processes {
            self.application.order(Order::Adopt(process.pid));
        }
        let stopped = |pid: u32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
        };
        match processes.len() {
            0 => Life::Gone,
            _ if processes.iter().all(|p| stopped(p.pid)) => Life::Frozen,
            _ => Life::Running,
        }
    }

    /// What happened in the open group. Called under the group's lock.
    fn notice(&self, notice: &Notice) {
        match notice {
            Notice::RegionAdded { region, empty } => {
                self.event(
                    "region_protected",
                    json!({ "region": region.id(), "path": region.path(), "bytes": region.len() }),
                );
                if !empty && let Some(copies) = &*self.copies.lock().unwrap_or_else(PoisonError::into_inner) {
                    copies.request();
                }
            }
            Notice::ProcessAttached { pid } => {
                self.event("process_attached", json!({ "pid": pid }));
                if let Some(pid) = pid.filter(|pid| *pid != std::process::id()) {
                    self.application.order(Order::Adopt(pid));
                }
                self.teller.tell(Event::ApplicationStarted);
            }
            Notice::ProcessEnded { pid, ending } => {
                self.event("process_ended", json!({ "pid": pid, "how": ending.word() }));
            }
            Notice::ApplicationEnded(ending) => {
                self.event("application_ended", json!({ "how": ending.word() }));
                if !self.commanded.load(Ordering::Acquire) {
                    self.teller.tell(match ending {
                        Ending::Exited => Event::ApplicationExited,
                        Ending::Died(_) => Event::ApplicationDied,
                    });
                }
            }
        }
    }

    /// Looks at the image now and then, until told to stop.
    pub(super) fn watch_image(&self) {
        while !self.stop.load(Ordering::Acquire) {
            thread::park_timeout(LOOK);
            self.look_at_image();
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
            self.event("synced", json!({ "generation": status.generation, "lsn": status.applied }));
            self.teller.tell(Event::Synced { generation: status.generation });
        }
    }

    pub(super) fn event(&self, kind: &str, detail: serde_json::Value) {
        self.context.events.emit(Some(&self.name), kind, detail);
    }

    pub(super) fn open(&self) -> MutexGuard<'_, Option<Open>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the stream; the log stays with its keeper.
    fn close_group(&self) {
        // Not under the lock: the threads that end here may wait for the group's lock, whose holder waits for ours.
        let open = self.open().take();
        drop(open);
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

    fn cancel_gasp(&self) -> Arc<AtomicBool> {
        let fresh = Arc::new(AtomicBool::new(false));
        let mut gasp = self.gasp.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *gasp, fresh.clone()).store(true, Ordering::Release);
        fresh
    }

    fn ship_tail(self: &Arc<Self>, round: Round) {
        let cancel = self.cancel_gasp();
        self.beside("gasp", move |role| {
            let Some(source) = role.source() else { return };
            match source.ship_tail(&cancel, Instant::now() + GASP_LIMIT) {
                Ok(tail) => {
                    role.event(
                        "tail_durable",
                        json!({
                            "round": round.to_string(),
                            "lsn": tail.lsn,
                            "exposure_bytes": tail.exposure,
                            "first_byte_us": tail.first_byte.map(|d| d.as_micros() as u64),
                            "took_us": tail.took.as_micros() as u64,
                        }),
                    );
                    let saved = Saved { lsn: tail.lsn, digest: tail.digest };
                    role.teller.tell(Event::TailDurable { round, saved });
                }
                Err(error) => tracing::info!(group = role.name, %error, "last gasp"),
            }
        });
    }

    fn verify(self: &Arc<Self>, round: Round, mandate: Mandate) {
        self.beside("verify", move |role| {
            let Some(standby) = &role.standby else { return };
            role.teller.tell(match standby.verify(round, mandate) {
                Ok(()) => Event::ImageVerified { round },
                Err(why) => {
                    role.event("image_failed", json!({ "why": why }));
                    Event::ImageFailed { round }
                }
            });
        });
    }

    fn place(self: &Arc<Self>) {
        self.beside("place", |role| {
            let Some(standby) = &role.standby else { return role.teller.tell(Event::FilesPlaced) };
            let placed = standby.place(role.owner).map_err(|e| e.to_string()).and_then(|promoted| {
                let paths: Vec<_> = promoted.files.iter().map(|f| f.path.clone()).collect();
                role.context.states.save(&role.name, PLACED_FILE, &paths).map_err(|e| e.to_string())?;
                Ok(promoted)
            });
            role.teller.tell(match placed {
                Ok(promoted) => {
                    role.event("files_placed", json!(promoted));
                    Event::FilesPlaced
                }
                Err(why) => {
                    role.event("placing_failed", json!({ "why": why }));
                    Event::PlacingFailed
                }
            });
        });
    }

    fn start_application(self: &Arc<Self>, generation: Generation) {
        self.beside("start", move |role| {
            if let Err(error) = role.open_group(generation) {
                role.event("open_failed", json!({ "why": error.to_string() }));
                return role.teller.tell(Event::ApplicationFailedToStart);
            }
            if !role.config.command.is_empty() {
                role.commanded.store(true, Ordering::Release);
                role.application.order(Order::Start);
            }
        });
    }
}

/// The machine's hands. Weak, since the role owns the machine.
pub(super) struct RoleDeeds(pub(super) Weak<Role>);

impl Deeds for RoleDeeds {
    fn act(&mut self, action: Action) {
        let Some(role) = &self.0.upgrade() else { return };
        match action {
            Action::Persist(_) | Action::Reply(_) => unreachable!("done by the machine's driver"),
            Action::Freeze { round } => role.application.order(Order::Freeze(round)),
            Action::Thaw { .. } => {
                role.cancel_gasp();
                role.application.order(Order::Thaw);
            }
            Action::HoldFrozen => role.application.order(Order::Hold),
            Action::Kill => role.application.order(Order::Kill),
            Action::ShipTail { round } => role.ship_tail(round),
            Action::Send(request) => {
                if let Some(messenger) = &role.messenger {
                    if let Request::Saved { round, saved, .. } = &request {
                        role.event("saved", json!({ "round": round.to_string(), "lsn": saved.lsn }));
                    }
                    messenger.send(request);
                }
            }
            Action::Prepare => role.event("source_is_saving", json!({})),
            Action::Revoke { round } => role.beside("revoke", move |role| {
                if let Some(standby) = &role.standby {
                    standby.revoke();
                }
                role.event("revoked", json!({ "round": round.to_string() }));
                role.teller.tell(Event::Revoked { round });
            }),
            Action::Verify { round, mandate } => role.verify(round, mandate),
            Action::Readmit => {}
            Action::PlaceFiles => role.place(),
            Action::StartApplication { generation } => role.start_application(generation),
            Action::Report(note) => {
                let boot_us = boottime().as_micros() as u64;
                role.event("milestone", json!({ "what": note, "boottime_us": boot_us }));
                if note == Note::Demoted {
                    // Another node's stream is to be taken: ours ends.
                    role.beside("close", |role| role.close_group());
                }
            }
            Action::Alarm(alarm) => {
                tracing::error!(group = role.name, alarm = ?alarm, "{}", alarm.message());
                role.event("alarm", json!({ "what": alarm, "message": alarm.message() }));
            }
        }
    }
}

impl Controller for Arc<Role> {
    fn name(&self) -> &str {
        &self.name
    }

    fn attach(&self) -> Result<Arc<Group>, String> {
        let state = self.ownership.get().map(Ownership::state);
        if !state.as_ref().is_some_and(|s| s.admits_application()) {
            let phase = state.map_or_else(|| "starting".into(), |s| format!("{:?}", s.phase));
            return Err(format!("group `{}` does not run on this node at present ({phase})", self.name));
        }
        let open = self.open();
        open.as_ref().map(|o| o.group.clone()).ok_or_else(|| format!("group `{}` is being opened", self.name))
    }

    fn report(&self) -> GroupStatus {
        let state = self.ownership.get().map(Ownership::state);
        let generation = state.as_ref().map_or(Generation(0), |s| s.durable.generation);
        let word = state.as_ref().and_then(|s| serde_json::to_value(s.phase).ok());
        let source = matches!(state.as_ref().map(|s| s.role()), Some("source"));
        let open = self.open().as_ref().map(|o| (o.group.clone(), o.source.clone()));
        let group = open.as_ref().map(|(group, _)| group);
        let stream = open.as_ref().and_then(|(_, source)| source.status());
        let image = match (&self.standby, source) {
            (Some(standby), false) => Some(standby.destination_status(self.identity.node(), generation)),
            _ => None,
        };
        GroupStatus {
            name: self.name.clone(),
            role: if source { Part::Source } else { Part::Destination },
            generation,
            state: word.as_ref().and_then(|w| w.as_str()).unwrap_or("starting").to_owned(),
            sessions: group.map(|g| g.session_status()).unwrap_or_default(),
            regions: group.map(|g| g.region_status()).unwrap_or_default(),
            log: group.map(|g| g.log_status()),
            destinations: stream.into_iter().chain(image).collect(),
            archive: open.as_ref().and_then(|(_, source)| source.archive_status()),
        }
    }

    fn last_gasp(&self) -> Result<(), String> {
        if self.heir.is_none() {
            return Err(format!("group `{}` has no destination to save to", self.name));
        }
        match self.ownership.get().map(Ownership::state) {
            Some(state) if state.admits_application() => {
                self.teller.tell(Event::OperatorLastGasp);
                Ok(())
            }
            state => Err(format!(
                "group `{}` does not run on this node at present ({:?})",
                self.name,
                state.map(|s| s.phase)
            )),
        }
    }

    fn promote(&self, force: bool) -> Result<(), String> {
        self.teller.tell(Event::OperatorPromote { force });
        Ok(())
    }

    fn power(&self, online: bool) {
        self.teller.tell(if online { Event::PowerBack } else { Event::PowerLost });
    }

    fn finish(&self, deadline: Instant) -> Option<String> {
        self.stop.store(true, Ordering::Release);
        let left = self.source().and_then(|source| source.finish(deadline));
        self.close_group();
        if let Some(standby) = &self.standby {
            standby.revoke();
        }
        left.map(|why| format!("group `{}`: {why}", self.name))
    }
}
