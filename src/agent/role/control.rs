//! What sessions, operators and the daemon ask of a role.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::Role;
use crate::agent::group::{Controller, Group};
use crate::agent::ownership::Ownership;
use crate::agent::status::{GroupStatus, Role as Part};
use crate::failover::{Event, Phase};
use crate::types::Generation;

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
            supervision: Some(self.application.means().to_owned()),
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

    fn cancel(&self) -> Result<(), String> {
        let state = self.ownership.get().map(Ownership::state);
        match state.map(|s| s.phase) {
            Some(
                Phase::Freezing | Phase::Saving | Phase::HandingOver | Phase::HandedOver | Phase::Cancelling,
            ) => {
                self.teller.tell(Event::OperatorCancel);
                Ok(())
            }
            phase => Err(format!(
                "group `{}` is not being handed over by this node ({phase:?}): there is nothing to cancel",
                self.name
            )),
        }
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
