//! What the state machine orders of a role: each order is begun here, and its result told to the machine.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::json;

use super::{Entry, PLACED_FILE, Role};
use crate::agent::application::{Deed, Halfway, Order};
use crate::agent::events::Kind;
use crate::agent::group::GroupError;
use crate::agent::ownership::Deeds;
use crate::agent::state::PlacedFile;
use crate::failover::{Action, Alarm, Event, Mandate, NodeName, Note, Request, Round, Saved};
use crate::locks::lock;
use crate::log::region::boottime;
use crate::replica::place::Placed;
use crate::ship::gasp::HeldUp;
use crate::types::Generation;

/// The machine's hands. Weak, since the role owns the machine.
pub(in crate::agent) struct RoleDeeds(pub(in crate::agent) Weak<Role>);

impl Deeds for RoleDeeds {
    fn act(&mut self, action: Action) {
        let Some(role) = &self.0.upgrade() else { return };
        match action {
            Action::Persist(_) | Action::Reply(_) => unreachable!("done by the machine's driver"),
            Action::Freeze { round } => {
                role.source().iter().for_each(|source| source.stop_comparing());
                role.application.order(Order::Freeze(round, role.halfway()));
            }
            Action::Thaw { .. } => role.application.order(Order::Thaw),
            Action::HoldFrozen => role.application.order(Order::Hold),
            Action::Kill => {
                role.application.order(Order::Kill);
                role.application.order(Order::Then(role.letting_go_of_stale()));
            }
            Action::ShipTail { round, to } => role.ship_tail(round, to),
            Action::CallOffTail => {
                role.gasp.call_off(&role.sight);
                role.beside("look", |role| role.look_at_files());
            }
            // Behind the orders before it: what is sent rests on the application being held frozen.
            Action::Send(request) => {
                role.envoys.prepare(&request);
                role.application.order(Order::Then(role.sending(request)));
            }
            Action::Prepare => role.event(Kind::SourceIsSaving, json!({})),
            Action::Revoke { round } => role.revoke(round),
            Action::Verify { round, mandate } => role.verify(round, mandate),
            Action::PlaceFiles => role.place(),
            Action::StartApplication { generation } => role.start_application(generation),
            Action::Report(note) => {
                let boot_us = boottime().as_micros() as u64;
                role.event(Kind::Milestone, json!({ "what": note, "boottime_us": boot_us }));
                if note == Note::Demoted {
                    // Its thread would keep the stream from its end.
                    role.gasp.end();
                    // Another node's stream is to be taken: ours ends. Behind the kill, which finds by the open group whom to end.
                    let shut = role.door.shut();
                    role.application.order(Order::Then(role.closing(shut)));
                }
            }
            Action::Alarm(alarm) => {
                let why = match alarm {
                    Alarm::ImageFailed => role.standby.as_ref().and_then(|standby| standby.last_error()),
                    Alarm::TailNotSaved => role.held_up().map(|why| why.to_string()),
                    Alarm::HeirUnable => role.envoys.heir().map(|heir| heir.0),
                    _ => None,
                };
                role.alarm(alarm, why);
            }
        }
    }
}

impl Role {
    fn halfway(self: &Arc<Self>) -> Halfway {
        let role = Arc::downgrade(self);
        Halfway(Box::new(move || role.upgrade().is_some_and(|role| role.held_up() == Some(HeldUp::Halfway))))
    }

    /// What a last gasp would wait for at this instant.
    fn held_up(&self) -> Option<HeldUp> {
        let all: Vec<_> = self.destinations.iter().map(|to| NodeName(to.name.clone())).collect();
        let heirs = self.ownership.get()?.state().heirs(&all);
        self.source()?.held_up(&heirs)
    }

    fn sending(self: &Arc<Self>, request: Request) -> Deed {
        let role = Arc::downgrade(self);
        Deed(Box::new(move || {
            let Some(role) = role.upgrade() else { return };
            if let Request::Saved { round, saved, .. } = &request {
                role.event(Kind::Saved, json!({ "round": round.to_string(), "lsn": saved.lsn }));
            }
            role.envoys.send(&request);
        }))
    }

    /// Behind a kill, which finds by its log whom to end.
    fn letting_go_of_stale(self: &Arc<Self>) -> Deed {
        let role = Arc::downgrade(self);
        Deed(Box::new(move || {
            let Some(role) = role.upgrade() else { return };
            let mut stale = lock(&role.stale);
            if stale.as_ref().is_some_and(|group| group.everyone(Instant::now() + LOOK_WITHIN).is_empty()) {
                drop(stale.take());
            }
        }))
    }

    fn closing(self: &Arc<Self>, shut: Entry) -> Deed {
        let role = Arc::downgrade(self);
        Deed(Box::new(move || {
            if let Some(role) = role.upgrade() {
                role.beside("close", move |role| role.close_group(shut));
            }
        }))
    }

    fn ship_tail(self: &Arc<Self>, round: Round, heirs: Vec<NodeName>) {
        let (over, entry) = (self.gasp.begin(), self.door.entry());
        self.beside("gasp", move |role| {
            // A gasp that overtakes the start of the application has to open the group itself.
            if !role.opened(round.generation, entry) {
                return;
            }
            let Some(source) = role.source() else { return };
            role.look_at_files();
            if !role.gasp.hold_still(&over, round.generation, &role.sight) {
                return;
            }
            match source.ship_tail(&heirs, &over, Instant::now() + GASP_LIMIT) {
                Ok((heir, tail)) => {
                    role.event(
                        Kind::TailDurable,
                        json!({
                            "round": round.to_string(),
                            "heir": &heir,
                            "lsn": tail.lsn,
                            "exposure_bytes": tail.exposure,
                            "first_byte_us": tail.first_byte.map(|d| d.as_micros() as u64),
                            "took_us": tail.took.as_micros() as u64,
                        }),
                    );
                    let saved = Saved { lsn: tail.lsn, digest: tail.digest };
                    role.teller.tell(Event::TailDurable { round, heir, saved });
                }
                Err(error) => tracing::info!(group = role.name, %error, "last gasp"),
            }
        });
    }

    fn revoke(self: &Arc<Self>, round: Round) {
        self.beside("revoke", move |role| {
            let revoked = role.standby.as_ref().map_or(Ok(()), |standby| standby.revoke());
            role.teller.tell(match revoked {
                Ok(()) => {
                    role.event(Kind::Revoked, json!({ "round": round.to_string() }));
                    Event::Revoked { round }
                }
                Err(why) => {
                    role.event(Kind::RevokeFailed, json!({ "why": why.to_string() }));
                    Event::RevokeFailed { round }
                }
            });
        });
    }

    fn verify(self: &Arc<Self>, round: Round, mandate: Mandate) {
        self.beside("verify", move |role| {
            let Some(standby) = &role.standby else { return };
            role.teller.tell(match standby.verify(round, mandate) {
                Ok(()) => Event::ImageVerified { round },
                Err(why) => {
                    role.event(Kind::ImageFailed, json!({ "why": why }));
                    Event::ImageFailed { round }
                }
            });
        });
    }

    fn place(self: &Arc<Self>) {
        self.beside("place", |role| {
            let Some(standby) = &role.standby else { return role.teller.tell(Event::FilesPlaced) };
            let placed = standby.place(role.owner).map_err(|e| e.to_string()).and_then(|promoted| {
                let placed = |f: &Placed| PlacedFile { path: f.path.clone(), file: f.file };
                let files: Vec<_> = promoted.files.iter().map(placed).collect();
                role.context.states.save(&role.name, PLACED_FILE, &files).map_err(|e| e.to_string())?;
                Ok(promoted)
            });
            role.teller.tell(match placed {
                Ok(promoted) => {
                    if !promoted.unplaced.is_empty() {
                        let where_to = promoted.unplaced.iter().map(|f| f.path.display().to_string());
                        role.alarm(Alarm::RegionsUnplaced, Some(where_to.collect::<Vec<_>>().join(", ")));
                    }
                    role.event(Kind::FilesPlaced, json!(promoted));
                    Event::FilesPlaced
                }
                Err(why) => {
                    role.event(Kind::PlacingFailed, json!({ "why": why }));
                    Event::PlacingFailed
                }
            });
        });
    }

    fn start_application(self: &Arc<Self>, generation: Generation) {
        let (ticket, entry) = (self.application.ticket(), self.door.entry());
        if lock(&self.stale).is_some() {
            // A watchdog may have held it, and it could not end. Here, where no freeze that is ordered later is undone.
            self.application.order(Order::Thaw);
        }
        self.beside("start", move |role| {
            role.await_end_of_stale(entry);
            match role.open_group(generation, entry) {
                Ok(opened) => {
                    role.look_at_files();
                    if opened && !role.config.command.is_empty() {
                        role.application.order(Order::Start(ticket));
                    }
                }
                Err(error) => {
                    role.open_failed(&error);
                    role.teller.tell(Event::ApplicationFailedToStart);
                }
            }
        });
    }

    /// Waits until nobody writes to a log that is lost to this owner any more, unless the group is closed meanwhile. Before the new log
    /// is opened: that would be shipped as if it held what the program stores.
    fn await_end_of_stale(&self, entry: Entry) {
        let mut told = false;
        while !self.stop.load(Ordering::Acquire) && self.door.admits(entry) {
            let Some(stale) = lock(&self.stale).clone() else { return };
            let left = stale.everyone(Instant::now() + LOOK_WITHIN);
            if left.is_empty() {
                drop(lock(&self.stale).take());
                return;
            }
            if !told {
                self.alarm(Alarm::EarlierProgram, Some(format!("processes {:?}", left.all())));
                told = true;
            }
            thread::sleep(LOOK_WITHIN);
        }
    }

    /// Enters the files that came while the group was held still as it was opened: before a program runs, and before another end of
    /// the log is told.
    fn look_at_files(&self) {
        self.sight.groups().iter().for_each(|group| group.look_at_first());
    }

    fn opened(self: &Arc<Self>, generation: Generation, entry: Entry) -> bool {
        self.open_group(generation, entry).unwrap_or_else(|error| {
            self.open_failed(&error);
            false
        })
    }

    fn open_failed(&self, error: &GroupError) {
        self.event(Kind::OpenFailed, json!({ "why": error.to_string() }));
        self.door.jam(error.to_string());
    }
}

/// How long it may take to see who writes to a log, and the pause between two looks.
const LOOK_WITHIN: Duration = Duration::from_millis(500);

/// A gasp goes on for as long as the machine wants it; this only bounds a thread that was forgotten.
const GASP_LIMIT: Duration = Duration::from_secs(3600);
