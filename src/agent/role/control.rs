//! What sessions, operators and the daemon ask of a role.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use super::Role;
use crate::agent::group::{Controller, Group};
use crate::agent::ownership::Ownership;
use crate::agent::source::{Source, Wish};
use crate::agent::status::{DestinationState, DestinationStatus, GroupStatus, Role as Part};
use crate::failover::{Event, Phase, Standing, State};
use crate::log::threshold::Thresholds;
use crate::types::Generation;

impl Controller for Arc<Role> {
    fn name(&self) -> &str {
        &self.name
    }

    fn attach(&self) -> Result<Arc<Group>, String> {
        let deadline = Instant::now() + OPENED_WITHIN;
        loop {
            // A program that is refused runs on unprotected, and may well have been started together with the agent.
            if self.known_state().is_ok() {
                self.admitting()?;
            }
            if let Some(open) = self.open().as_ref() {
                return Ok(open.group.clone());
            }
            // Whoever attaches may hold up threads of its program for as long.
            if let Some(why) = self.door.jammed() {
                return Err(format!("group `{}` could not be opened: {why}", self.name));
            }
            if Instant::now() >= deadline {
                return Err(self.opening());
            }
            thread::sleep(OPENING_LOOK);
        }
    }

    fn report(&self) -> GroupStatus {
        let state = self.known_state().ok();
        let generation = state.as_ref().map_or(Generation(0), |s| s.durable.generation);
        let phase = state.as_ref().map(|s| s.phase);
        let source = state.as_ref().is_some_and(State::is_source);
        let open = self.open().as_ref().map(|o| (o.group.clone(), o.source.clone()));
        let group = open.as_ref().map(|(group, _)| group);
        // Before the destinations: who reads that the program is on the log again finds the copy under way that brought it there.
        let log = group.map(|g| g.log_status());
        let mut streams = open.as_ref().map(|(_, source)| source.status()).unwrap_or_default();
        if let (Some(Phase::HandedOver), Some(heir)) = (phase, self.handed_over()) {
            let to = |stream: &&mut DestinationStatus| stream.node == heir;
            streams.iter_mut().filter(to).for_each(|stream| stream.state = DestinationState::HandedOver);
        }
        let image = match (&self.standby, source) {
            (Some(standby), false) => Some(standby.destination_status(self.identity.node(), generation)),
            _ => None,
        };
        let (unprotected_files, unprotected_files_more) =
            group.map(|g| g.unprotected_files()).unwrap_or_default();
        GroupStatus {
            name: self.name.clone(),
            role: if source { Part::Source } else { Part::Destination },
            generation,
            state: phase.map_or(OPENING, Phase::word).to_owned(),
            supervision: Some(self.application.means().to_owned()),
            // Of a group that is handed over an alarm says so: it may run elsewhere by now.
            error: self.ownership.get().and_then(Ownership::fault),
            sessions: group.map(|g| g.session_status()).unwrap_or_default(),
            regions: group.map(|g| g.region_status()).unwrap_or_default(),
            budget: None,
            regions_more: 0,
            regions_more_bytes: 0,
            unprotected_files,
            unprotected_files_more,
            log,
            destinations: streams.into_iter().chain(image).collect(),
            archive: open.as_ref().and_then(|(_, source)| source.archive_status()),
        }
    }

    fn handed_over(&self) -> Option<String> {
        match self.ownership.get()?.state().durable.standing {
            Standing::Owner { .. } => None,
            Standing::GivenUp { heir, .. } => Some(heir.0),
            // An earlier agent may have given it up.
            _ => self.envoys.heir().map(|heir| heir.0).or_else(|| match &*self.destinations {
                [only] => Some(only.name.clone()),
                _ => None,
            }),
        }
    }

    fn last_gasp(&self) -> Result<(), String> {
        if self.destinations.is_empty() {
            return Err(format!(
                "group `{}` has no destination to save to: name one in `destinations`",
                self.name
            ));
        }
        self.admitting()?;
        self.teller.tell(Event::OperatorLastGasp);
        Ok(())
    }

    fn promote(&self, force: bool) -> Result<(), String> {
        self.known_state()?;
        // A sync that has just been completed counts.
        self.look_at_image();
        let state = self.teller.state(SETTLED_WITHIN).ok_or_else(|| {
            format!("group `{}` cannot be promoted at present: {}", self.name, self.fault())
        })?;
        if let Some(why) = state.refuses_promotion(force) {
            return Err(format!("group `{}`: {}", self.name, why.message()));
        }
        match (&state.durable.standing, state.phase) {
            (Standing::Owner { .. }, Phase::Running) => {
                Err(format!("group `{}` runs here already", self.name))
            }
            (Standing::Owner { .. }, Phase::Freezing | Phase::Saving) => Err(format!(
                "group `{}` is being handed over by this node ({}): `pmemha cancel` calls it off",
                self.name, state.phase
            )),
            _ => {
                self.teller.tell(Event::OperatorPromote { force });
                Ok(())
            }
        }
    }

    fn cancel(&self) -> Result<(), String> {
        match self.known_state()?.phase {
            Phase::Freezing | Phase::Saving | Phase::HandingOver | Phase::HandedOver | Phase::Cancelling => {
                self.teller.tell(Event::OperatorCancel);
                Ok(())
            }
            phase => Err(format!(
                "group `{}` is not being handed over by this node ({phase}): there is nothing to cancel",
                self.name
            )),
        }
    }

    fn set_paused(&self, node: &str, paused: bool) -> Result<(), String> {
        if paused {
            return self.shipping()?.set_paused(node, true);
        }
        // Also in a last gasp, which may wait for just this one.
        self.shipped()?.set_paused(node, false)
    }

    fn verify(&self, wish: &Wish) -> Result<(String, u64), String> {
        self.shipping()?.verify(wish)
    }

    fn power(&self, online: bool) {
        self.teller.tell(if online { Event::PowerBack } else { Event::PowerLost });
    }

    fn streams(&self) -> Option<Vec<DestinationStatus>> {
        self.known_state().ok().filter(State::is_source)?;
        Some(self.source()?.status())
    }

    fn set_budget(&self, thresholds: Option<Thresholds>) {
        let group = self.open().as_ref().map(|open| open.group.clone());
        group.iter().for_each(|group| group.log().set_budget(thresholds));
    }

    fn finish(&self, deadline: Instant) -> Option<String> {
        self.stop.store(true, Ordering::Release);
        let left = self.source().and_then(|source| source.finish(deadline));
        self.close_group(self.door.shut());
        if let Some(standby) = &self.standby
            && let Err(error) = standby.revoke()
        {
            // The end of this process, which follows, takes the adapter's access with it.
            tracing::warn!(group = self.name, %error, "ending");
        }
        left.map(|why| format!("group `{}`: {why}", self.name))
    }
}

impl Role {
    /// What ships the group from here, unless it is about to be handed over.
    fn shipping(&self) -> Result<Arc<Source>, String> {
        self.admitting()?;
        self.shipped()
    }

    fn shipped(&self) -> Result<Arc<Source>, String> {
        self.source().ok_or_else(|| format!("group `{}` is not shipped from this node", self.name))
    }

    /// Where the group stands, or that it is too early to say.
    /// The machine's state, once it has heard what was found of an earlier agent: before that it says nothing of the group.
    fn known_state(&self) -> Result<State, String> {
        let state = self.ownership.get().map(Ownership::state);
        state.filter(|state| state.life != UNHEARD).ok_or_else(|| self.opening())
    }

    fn opening(&self) -> String {
        format!("group `{}` is being opened: ask again in a moment", self.name)
    }

    /// Why this node's machine does not answer at present, for a person who may sit at the other node.
    pub(in crate::agent) fn fault(&self) -> String {
        let fault = self.ownership.get().and_then(Ownership::fault);
        fault.unwrap_or_else(|| "it is busy with an earlier step; what is asked is asked again".into())
    }

    /// Whether the application may run here; if not, the sentence that says so.
    fn admitting(&self) -> Result<(), String> {
        let state = self.known_state()?;
        if state.admits_application() {
            return Ok(());
        }
        Err(format!(
            "group `{}` does not run on this node at present ({}); `pmemha status` on the other node says where it runs, \
             `pmemha promote` moves it here",
            self.name, state.phase
        ))
    }
}

/// The life of a machine that has heard nothing yet.
const UNHEARD: u64 = 0;

/// How long a program that attaches waits for its group: a log of many GiB is found and looked through well within it, and it is
/// less than what the program waits for an answer.
const OPENED_WITHIN: Duration = Duration::from_secs(3);

/// How often it is looked whether the group has been opened; programs attach once.
const OPENING_LOOK: Duration = Duration::from_millis(5);

/// How long an operator's order waits for what was told before it: several slow writes of the group's state.
const SETTLED_WITHIN: Duration = Duration::from_secs(5);

/// The group's word before its machine stands.
const OPENING: &str = "opening";
