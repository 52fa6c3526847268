//! How a destination joins the stream: where its image ends, if the ring still holds what it lacks; else anew, with a copy.
//!
//! Decides from what the destination says it has; the connection is the caller's to make.

use std::sync::Arc;

use super::commits::Commits;
use super::follower::Has;
use super::space::Space;
use super::sync::Syncer;
use crate::log::{Acks, Consumer, LogRegion, Owner};
use crate::replica::{ImageHealth, ReplicaStatus};
use crate::types::{Generation, LogId, Lsn};

/// What a destination says it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Have {
    /// Generation of its landing ring's records; 0 if it holds none.
    pub generation: Generation,
    /// The log that its stream is of.
    pub log: LogId,
    /// Number of the stream, as the source gave it.
    pub stream: u32,
    /// End of the valid records that landed.
    pub landed: Lsn,
    /// End of those that are durable.
    pub durable: Lsn,
    /// End of those that are in an image: a stream goes on here.
    pub applied: Lsn,
    /// Chained digest at `applied`.
    pub digest: u64,
    /// The image that follows the stream.
    pub has: Has,
    /// There is an image of some moment, to which a copy may refer.
    pub any: bool,
}

impl Have {
    /// What the replica of this status has.
    pub fn of(status: &ReplicaStatus) -> Have {
        Have {
            generation: status.generation,
            log: status.stream.log,
            stream: status.stream.number,
            landed: status.received,
            durable: status.durable,
            applied: status.cursor,
            digest: status.digest,
            has: match status.image {
                _ if status.poisoned => Has::Nothing,
                ImageHealth::Consistent => Has::Image,
                ImageHealth::Syncing => Has::Part,
                ImageHealth::None | ImageHealth::Stale => Has::Nothing,
            },
            any: status.poisoned || status.image != ImageHealth::None,
        }
    }
}

/// Where the stream goes on for a destination.
pub struct Joining {
    /// A reader of the log that stands there.
    pub consumer: Consumer,
    /// Chained digest there.
    pub digest: u64,
    /// What the destination has there.
    pub has: Has,
    /// It begins anew.
    pub fresh: bool,
    /// Number of the stream.
    pub stream: u32,
}

impl Joining {
    /// Where destination `who` of `log`, which has `have`, goes on. What it held of the ring it gives free if it begins anew. `chance`
    /// draws the number of a new stream.
    pub fn of(
        log: &Arc<LogRegion>,
        space: &Space,
        who: usize,
        have: &Have,
        chance: impl Fn() -> u32,
    ) -> Joining {
        let resumes = (have.generation, have.log) == (log.spec().generation, log.spec().id)
            && have.has != Has::Nothing
            && space.consumer(who).is_some_and(|consumer| consumer.holds(have.applied));
        if resumes {
            let consumer = Consumer::new(log.clone(), have.applied);
            return Joining {
                consumer,
                digest: have.digest,
                has: have.has,
                fresh: false,
                stream: have.stream,
            };
        }
        // What the ring holds means nothing to a copy that begins after it.
        let from = space.begin_at(who, || log.publish_filled(&Owner::confirmed_dead));
        // Another one than before, and none that a record of a copy named.
        let stream = Some(chance()).filter(|number| *number != have.stream).unwrap_or(!have.stream);
        Joining {
            consumer: Consumer::new(log.clone(), from),
            digest: 0,
            has: Has::Nothing,
            fresh: true,
            stream,
        }
    }

    /// Takes back what `who` is believed to have acknowledged and does not have any more.
    pub fn settle(&self, commits: &Commits, who: usize, have: &Have) {
        match self.fresh {
            true => commits.begins_anew(who),
            false => commits
                .resumes(who, Acks { received: have.landed, durable: have.durable, applied: have.applied }),
        }
    }

    /// Asks for the copy that it lacks, if it lacks one and none is under way that it takes. `alone`: nobody else takes one that is.
    pub fn request(&self, syncer: &Syncer, have: &Have, alone: bool) {
        // In the middle of a copy that has been given up since, it would wait for ever for one that is for another.
        if !self.fresh && (self.has == Has::Image || syncer.is_for(self.stream)) {
            return;
        }
        match have.any {
            false => syncer.request_for_newcomer(alone),
            true => syncer.request_for_one(self.stream, alone),
        }
    }
}
