//! The rows of the status document that a source answers for.

use super::destination::Destination;
use super::{Shared, Source};
use crate::agent::clock::WallTime;
use crate::agent::status::{ArchiveStatus, DestinationState, DestinationStatus, Role, SyncStatus};

impl Source {
    /// The destinations' rows of the status document.
    pub fn status(&self) -> Vec<DestinationStatus> {
        self.shared.destinations.iter().map(|to| self.shared.status(to)).collect()
    }

    /// The archive's row of the status document.
    pub fn archive_status(&self) -> Option<ArchiveStatus> {
        let view = self.archiver.as_ref()?.view();
        let group = &self.shared.setup.group;
        Some(ArchiveStatus {
            dir: group.config().archive.as_ref()?.dir.display().to_string(),
            lsn_durable: view.durable,
            last_error: view.last_error,
            as_of: WallTime::now().to_string(),
        })
    }
}

impl Shared {
    fn status(&self, to: &Destination) -> DestinationStatus {
        let (link, ship, sync) = (to.link().clone(), to.ship.view(), self.syncer.view());
        let group = &self.setup.group;
        let published = group.log().published();
        let log = group.log();
        // After the end of what was published: a gap that opens later lies behind that.
        let whole = log.is_whole();
        let state = match link.connected {
            true if ship.counts && whole && !sync.for_all => DestinationState::Streaming,
            true => DestinationState::Syncing,
            false if to.is_paused() => DestinationState::Paused,
            false if link.refused => DestinationState::Refused,
            false => DestinationState::Connecting,
        };
        let regions: u64 = group.regions().iter().map(|r| r.len()).sum();
        // One that is away keeps what it has; one that refuses may have lost it, and a copy that is owed is missing there.
        let away = ship.holds && !link.connected && !link.refused && ship.durable >= sync.end_for_all;
        let holds = ship.counts || away && !sync.for_all;
        let uncopied = if holds && whole { 0 } else { regions };
        DestinationStatus {
            node: to.peer.name.clone(),
            role: Role::Source,
            generation: group.generation(),
            state,
            lsn_published: published,
            lsn_received: ship.received,
            lsn_durable: ship.durable,
            lsn_applied: ship.applied,
            exposure_bytes: published.since(ship.durable) + uncopied,
            drain_bytes_per_s: Some(ship.drain).filter(|d| *d > 0),
            fabric: link.fabric.map(str::to_owned),
            durability: link.durability.map(|d| d.to_string()),
            encrypted: link.encrypted,
            memory: link.memory,
            staged: link.staged,
            resumed: link.resumed,
            unprotected_writes: self.sampler.found(),
            unprotected_writes_recorded: self.sampler.recorded(),
            sync: (sync.for_all || sync.active && !ship.counts).then_some(SyncStatus::at(
                sync.done,
                sync.total,
                sync.bytes_per_s,
            )),
            lsn_verified: to.verified.watermark(),
            verify: to.verified.status(Some(ship.counts_from).filter(|_| ship.counts)),
            last_error: link
                .fault
                .map(|why| format!("{} cannot keep what it is sent: {why}", to.peer.name))
                .or(link.last_error)
                .or(sync.error),
            as_of: WallTime::now().to_string(),
        }
    }
}
