//! The applier: from the landing ring into the image, in the order that makes every crash repairable.
//!
//! 1. [`Applier::receive`]: records that have landed whole are made durable in the ring (then: DURABLE);
//! 2. [`Applier::apply`]: they are applied to the image;
//! 3. [`Applier::persist`]: the image is made durable, then the position (then: APPLIED).
//!
//! Nothing is applied before it is durable in the ring, and nothing is acknowledged as applied before it is durable in the
//! image. No thread of its own: [`super::worker`] drives it, recovery and promotion call it directly, and so do tests.

use std::path::PathBuf;
use std::sync::Arc;

use super::image::ImageError;
use super::image::position::Stream;
use super::image::set::ImageSet;
use super::landing::{Landing, LandingError, Of};
use super::promote::{self, PromoteError};
use super::store::{Bytes, Store};
use crate::log::format::{RECORD_HEADER, RecordHeader};
use crate::region::memory::SharedMem;
use crate::types::{Durability, Generation, GroupId, LogId, Lsn};

/// Bytes received at a time where durability costs nothing: what has been checked is still in the cache when applied.
const HOT_BATCH: u64 = 256 << 10;

/// Bytes received at a time where every batch waits for a device.
const COLD_BATCH: u64 = 8 << 20;

/// Records from the one that is being applied to the one whose place is fetched: places are scattered, and a miss in the
/// TLB and the caches takes as long as applying several records.
const AHEAD: usize = 8;

/// The image is made durable at the latest when this part of the ring waits for it, so that the source never runs
/// out of room for that reason.
const RING_SHARE: u64 = 8;

/// What an applier works on.
#[derive(Clone, Debug)]
pub struct ApplierConfig {
    /// Where its bytes are.
    pub store: Arc<dyn Store>,
    /// Its directory, of its own.
    pub dir: PathBuf,
    /// The group.
    pub group: GroupId,
    /// What makes its bytes survive.
    pub durability: Durability,
}

/// Why it stopped.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The image.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The landing ring.
    #[error(transparent)]
    Landing(#[from] LandingError),
    /// The journal of a promotion.
    #[error(transparent)]
    Promotion(#[from] Box<PromoteError>),
    /// The stream does not continue what is here.
    #[error(
        "the source would go on at {from} of generation {generation}, but what is here ends at {have} of generation \
         {have_generation}: it must begin a new sync"
    )]
    Gap {
        /// Where it would go on.
        from: Lsn,
        /// Of which generation.
        generation: Generation,
        /// Where the stream here ends.
        have: Lsn,
        /// Of which generation.
        have_generation: Generation,
    },
    /// A source that has been superseded.
    #[error("the source is of generation {generation}, superseded here by {have}: it must step down")]
    Stale {
        /// The source's.
        generation: Generation,
        /// Ours.
        have: Generation,
    },
}

impl ApplyError {
    /// Whether trying again can help, once the cause is mended.
    pub fn is_temporary(&self) -> bool {
        match self {
            ApplyError::Image(e) => e.is_temporary(),
            ApplyError::Landing(LandingError::Io { .. }) => true,
            _ => false,
        }
    }
}

/// A group's replica, opened.
pub struct Applier {
    config: ApplierConfig,
    set: ImageSet,
    landing: Option<Landing>,
    /// Checked, durable in the ring, not yet applied.
    pending: Vec<RecordHeader>,
    /// End of what was checked; below it everything is durable in the ring or `unsynced`.
    landed: Lsn,
    synced: Lsn,
    /// The highest position ever acknowledged as durable; opening again must not take it back.
    durable: Lsn,
    /// Up to here the ring's pages may be taken for written although they are not: making them durable may have failed,
    /// in this life or in one before. They are made dirty again before they are synced.
    doubtful: Lsn,
}

/// What a source asks for when it attaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamStart {
    /// Its generation.
    pub generation: Generation,
    /// Its log.
    pub log: LogId,
    /// Bytes of its ring.
    pub ring_bytes: u64,
    /// First position that it will write.
    pub from: Lsn,
    /// A new image begins there, in a stream of this number, which a copy for it alone names.
    pub fresh: Option<u32>,
}

impl Applier {
    /// Opens what is in the directory; does not replay yet: see [`super::recover`]. A ring that could not be used
    /// is reported beside the applier, which then has none.
    pub fn open(config: ApplierConfig) -> Result<(Applier, Option<LandingError>), ApplyError> {
        let set = ImageSet::open(config.store.clone(), &config.dir, config.group)?;
        let (landing, refused) = match Landing::open(&*config.store, &config.dir, config.group) {
            Ok(landing) => (landing, None),
            Err(e @ LandingError::SetAside { .. }) => (None, Some(e)),
            Err(e) => return Err(e.into()),
        };
        let at = set.cursor().lsn;
        let doubtful = at.advance(landing.as_ref().map_or(0, |l| l.ring_bytes()));
        let of = Of { generation: set.cursor().generation, log: set.stored().stream.log };
        let landing = landing.filter(|l| l.of() == of);
        let pending = Vec::new();
        let applier =
            Applier { config, set, landing, pending, landed: at, synced: at, durable: at, doubtful };
        Ok((applier, refused))
    }

    /// Takes the stream of a source. Returns the memory that it is to write to. Everything that landed must have been applied
    /// ([`super::recover::drain`]).
    pub fn take_stream(&mut self, start: StreamStart) -> Result<Arc<SharedMem>, ApplyError> {
        let StreamStart { generation, log, ring_bytes, from, fresh } = start;
        let at = self.set.cursor();
        if generation < at.generation {
            return Err(ApplyError::Stale { generation, have: at.generation });
        }
        self.leave_promotion(generation)?;
        // One that is to begin anew leaves what it has even where that ends just there: copies for newcomers are for it, too.
        let goes_on =
            generation == at.generation && log == self.set.stored().stream.log && from <= self.landed;
        if fresh.is_some() || !goes_on {
            let Some(number) = fresh else {
                let (have, have_generation) = (self.landed, at.generation);
                return Err(ApplyError::Gap { from, generation, have, have_generation });
            };
            // The position first, the ring second: a ring of another generation than the position's is not used.
            self.set.restart(generation, from, Stream { log, number })?;
            self.rewind();
            self.durable = from;
        }
        let of = Of { generation, log };
        let fits = |l: &Landing| l.of() == of && l.ring_bytes() == ring_bytes;
        if !self.landing.as_ref().is_some_and(fits) {
            let (config, group) = (&self.config, self.config.group);
            self.landing = None;
            self.landing = Some(Landing::create(&*config.store, &config.dir, group, of, ring_bytes)?);
        }
        let landing = self.landing.as_ref().expect("just made");
        Ok(landing.memory().clone())
    }

    /// What was promoted here takes records of a later generation only: then its journal has had its time.
    fn leave_promotion(&self, generation: Generation) -> Result<(), ApplyError> {
        let (store, dir) = (&*self.config.store, &*self.config.dir);
        match promote::journalled(store, dir).map_err(Box::new)? {
            Some((have, _)) if generation <= have => Err(ApplyError::Stale { generation, have: have.next() }),
            Some(_) => Ok(promote::forget(store, dir).map_err(|source| LandingError::Io {
                what: "clear the journal of a promotion in",
                path: dir.to_owned(),
                source,
            })?),
            None => Ok(()),
        }
    }

    /// Checks what has landed and makes it durable in the ring. Returns whether there was anything.
    pub fn receive(&mut self) -> Result<bool, ApplyError> {
        let Some(landing) = &self.landing else { return Ok(false) };
        let limit = self.synced.advance(self.batch());
        while self.landed < limit {
            let Some(header) = landing.record(self.landed) else { break };
            self.landed = header.next();
            self.pending.push(header);
        }
        if self.landed == self.synced {
            return Ok(false);
        }
        if let Err(source) = landing.sync(self.synced, self.landed, self.synced < self.doubtful) {
            let path = self.config.dir.join(super::landing::FILE);
            return Err(LandingError::Io { what: "make durable", path, source }.into());
        }
        self.synced = self.landed;
        self.durable = self.durable.max(self.synced);
        Ok(true)
    }

    /// Whether a record waits to be received.
    pub fn has_next(&self) -> bool {
        self.landing.as_ref().is_some_and(|l| l.record(self.landed).is_some())
    }

    /// Applies what was received.
    pub fn apply(&mut self) -> Result<(), ApplyError> {
        let Some(landing) = &self.landing else { return Ok(()) };
        if self.pending.is_empty() {
            return Ok(());
        }
        self.set.announce(self.synced)?;
        for (i, header) in self.pending.iter().enumerate() {
            if let Some(soon) = self.pending.get(i + AHEAD) {
                self.set.expect(soon);
            }
            let payload = Bytes::Shared {
                memory: landing.memory(),
                offset: landing.offset(Lsn(header.lsn)) + RECORD_HEADER as usize,
                len: header.len as usize,
            };
            if let Err(e) = self.set.apply(header, payload) {
                self.pending.clear();
                if !e.is_temporary() {
                    self.set.retract()?;
                }
                return Err(e.into());
            }
        }
        self.pending.clear();
        Ok(())
    }

    /// Whether so much waits for [`Applier::persist`] that it should not be put off until the stream pauses.
    pub fn must_persist(&self) -> bool {
        let waiting = self.set.cursor().lsn.since(self.applied());
        let share = self.landing.as_ref().map_or(0, |l| l.ring_bytes() / RING_SHARE);
        // An image that has just become whole counts once that is durable, and commits wait for it.
        let counts_late = self.set.numbers().1 > self.applied();
        waiting >= share || counts_late || matches!(self.config.durability, Durability::Battery)
    }

    /// Makes the image durable up to what was applied, and the position.
    pub fn persist(&mut self) -> Result<(), ApplyError> {
        Ok(self.set.persist()?)
    }

    /// After an error: opens everything again as after a crash, so that what failed is repeated from the stored position.
    pub fn reopen(&mut self) -> Result<(), ApplyError> {
        self.doubtful = self.doubtful.max(self.landed);
        self.set = ImageSet::open(self.config.store.clone(), &self.config.dir, self.config.group)?;
        self.rewind();
        Ok(())
    }

    fn rewind(&mut self) {
        self.pending.clear();
        self.landed = self.set.cursor().lsn;
        self.synced = self.landed;
    }

    /// Everything as it is now.
    pub fn images(&self) -> &ImageSet {
        &self.set
    }

    /// Removes images and ring: their bytes now belong to an application, or are of no use.
    pub fn clear(&mut self) -> Result<(), ApplyError> {
        self.set.clear()?;
        self.landing = None;
        let path = self.config.dir.join(super::landing::FILE);
        let store = &self.config.store;
        let done = store.remove_file(&path).and_then(|()| store.sync_dir(&self.config.dir));
        Ok(done.map_err(|source| LandingError::Io { what: "remove", path, source })?)
    }

    /// What it works on.
    pub fn config(&self) -> &ApplierConfig {
        &self.config
    }

    /// Generation of the stream.
    pub fn generation(&self) -> Generation {
        self.set.cursor().generation
    }

    /// End of the valid records that landed.
    pub fn landed(&self) -> Lsn {
        self.landed.max(self.durable)
    }

    /// End of those that are durable in the ring.
    pub fn durable(&self) -> Lsn {
        self.durable
    }

    /// End of those that are durable in the image.
    pub fn applied(&self) -> Lsn {
        self.set.stored().at.lsn
    }

    fn batch(&self) -> u64 {
        match self.config.durability {
            Durability::Battery | Durability::Eadr => HOT_BATCH,
            Durability::Pmem | Durability::Disk => COLD_BATCH,
        }
    }
}
