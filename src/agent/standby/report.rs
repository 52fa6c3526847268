//! What a standby says of its image: to the source, and in the status document.

use super::Standby;
use crate::agent::clock::WallTime;
use crate::agent::control::message::{ImageState, ReplicaReport};
use crate::agent::status::{DestinationState, DestinationStatus, Role, SyncStatus};
use crate::locks::lock;
use crate::replica::status::{ImageHealth, ReplicaStatus};
use crate::types::{Generation, Lsn};

impl Standby {
    /// The row of the status document.
    pub fn destination_status(&self, node: &str, generation: Generation) -> DestinationStatus {
        let status = self.status();
        let inner = self.lock();
        let link = inner.link.as_ref();
        let at = |f: fn(&ReplicaStatus) -> Lsn| status.as_ref().map_or(Lsn(0), f);
        let state = match &status {
            Some(s) if s.poisoned => DestinationState::Poisoned,
            Some(s) if s.attached && s.image == ImageHealth::Consistent => DestinationState::Streaming,
            Some(s) if s.attached => DestinationState::Syncing,
            _ => DestinationState::Waiting,
        };
        DestinationStatus {
            node: node.to_owned(),
            role: Role::Destination,
            generation: status.as_ref().map_or(generation, |s| s.generation),
            state,
            lsn_published: at(|s| s.received),
            lsn_received: at(|s| s.received),
            // In the middle of a copy what has landed since is worth nothing to who wants to promote this one.
            lsn_durable: at(|s| match s.would_have() {
                (generation, lsn) if generation == s.generation => lsn,
                _ => Lsn(0),
            }),
            lsn_applied: at(|s| s.applied),
            exposure_bytes: 0,
            drain_bytes_per_s: None,
            fabric: link.map(|_| self.config.fabric.name().to_owned()),
            durability: Some(self.durability.to_string()),
            encrypted: link.map(|l| l.endpoint.encrypted()),
            memory: Some(self.memory),
            staged: Some(self.staged),
            resumed: None,
            unprotected_writes: 0,
            unprotected_writes_recorded: 0,
            sync: status
                .as_ref()
                .and_then(|s| s.sync_progress)
                .map(|(done, total)| SyncStatus::at(done, total, 0)),
            lsn_verified: None,
            verify: None,
            last_error: status
                .as_ref()
                .and_then(|s| s.faulted.clone().or_else(|| s.set_aside.clone()))
                .or_else(|| lock(&self.last_error).clone()),
            // The figures of a connection are as its worker left them; without one nothing moves.
            as_of: status
                .filter(|s| s.attached)
                .map_or_else(WallTime::now, |s| WallTime::from_ns(s.as_of_ns))
                .to_string(),
        }
    }
}

/// For the source.
pub(super) fn of(status: &ReplicaStatus) -> ReplicaReport {
    ReplicaReport {
        generation: status.generation,
        landed: status.received,
        durable: status.durable,
        applied: status.cursor,
        digest: status.digest,
        log: status.stream.log,
        stream: status.stream.number,
        image: match status.image {
            _ if status.poisoned => ImageState::Poisoned,
            ImageHealth::None => ImageState::None,
            ImageHealth::Syncing => ImageState::Syncing,
            ImageHealth::Consistent => ImageState::Consistent,
            ImageHealth::Stale => ImageState::Stale,
        },
    }
}
