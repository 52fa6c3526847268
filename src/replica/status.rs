//! What a replica says of itself: plain data, true at `as_of`.

use super::applier::Applier;
use super::image::position::Stream;
use crate::log::region::wall_clock_ns;
use crate::types::{Durability, Generation, Lsn};

/// What the image is good for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ImageHealth {
    /// Nothing can be promoted.
    #[default]
    None,
    /// A sync is under way; what was there before it can still be promoted, if it was consistent.
    Syncing,
    /// A consistent image follows the stream.
    Consistent,
    /// A consistent image of an earlier moment, which does not follow the stream.
    Stale,
}

/// A replica at one moment.
#[derive(Clone, Debug)]
pub struct ReplicaStatus {
    /// Generation of the stream.
    pub generation: Generation,
    /// End of the valid records that landed.
    pub received: Lsn,
    /// End of those durable in the landing ring.
    pub durable: Lsn,
    /// End of those durable in the image.
    pub applied: Lsn,
    /// Chained digest of what was applied, at `cursor`.
    pub digest: u64,
    /// Where `digest` holds.
    pub cursor: Lsn,
    /// The stream.
    pub stream: Stream,
    /// The image.
    pub image: ImageHealth,
    /// What a promotion would yield at this instant: in the middle of a copy, and before one that is to come, what was there before it.
    pub promotable: Option<(Generation, Lsn)>,
    /// Of a sync under way: bytes brought, and bytes of the regions named so far (zero pages are never sent).
    pub sync_progress: Option<(u64, u64)>,
    /// What makes bytes survive here.
    pub durability: Durability,
    /// A source is connected.
    pub attached: bool,
    /// Why nothing is persisted at present, for a person.
    pub faulted: Option<String>,
    /// Trying again cannot help: the group needs a new sync.
    pub poisoned: bool,
    /// A landing ring that was set aside when the replica was opened.
    pub set_aside: Option<String>,
    /// When this was true, nanoseconds since 1970.
    pub as_of_ns: u64,
}

impl ReplicaStatus {
    /// Of which generation a promotion here would have the records, and up to where, once what landed is applied.
    pub fn would_have(&self) -> (Generation, Lsn) {
        match self.image {
            ImageHealth::Consistent => (self.generation, self.durable),
            _ => self.promotable.unwrap_or((Generation(0), Lsn(0))),
        }
    }

    /// The status of an applier that nothing is attached to.
    pub fn of(applier: &Applier) -> ReplicaStatus {
        let mut status = ReplicaStatus {
            generation: Generation(0),
            received: Lsn(0),
            durable: Lsn(0),
            applied: Lsn(0),
            digest: 0,
            cursor: Lsn(0),
            stream: Stream::default(),
            image: ImageHealth::None,
            promotable: None,
            sync_progress: None,
            durability: applier.config().durability,
            attached: false,
            faulted: None,
            poisoned: false,
            set_aside: None,
            as_of_ns: 0,
        };
        status.update(applier);
        status
    }

    /// Takes over what the applier can say.
    pub fn update(&mut self, applier: &Applier) {
        let images = applier.images();
        self.generation = applier.generation();
        self.received = applier.landed();
        self.durable = applier.durable();
        self.applied = applier.applied();
        self.digest = images.cursor().digest;
        self.cursor = images.cursor().lsn;
        self.stream = images.stored().stream;
        self.sync_progress = images.sync_progress();
        let promotable = images.promotable();
        self.promotable = promotable.as_ref().map(|p| (p.generation, p.lsn));
        self.image = match promotable {
            _ if self.sync_progress.is_some() => ImageHealth::Syncing,
            Some(p) if p.live => ImageHealth::Consistent,
            Some(_) => ImageHealth::Stale,
            None => ImageHealth::None,
        };
        self.as_of_ns = wall_clock_ns();
    }
}
