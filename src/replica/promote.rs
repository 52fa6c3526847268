//! Promotion: the image becomes the application's files.
//!
//! Before it, the caller has taken the source's access away ([`crate::fabric::Endpoint::revoke`]): what landed by then is the
//! end of the stream. [`verify`] says whether that is what the source saved, [`check_places`] whether its files have places here; only
//! then does the group change hands, and [`promote`] puts the files in place: a sequence of steps of which each may be the last before a crash. A journal
//! (`promotion.json`) makes the next attempt go on. `docs/image-format.md` lists the steps.
//!
//! Hard rules: a file that is there already is never written over; it is set aside under a name of its own. A region for which
//! no place is configured holds nothing up: it is put beside the image, for a person to look at.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::applier::{Applier, ApplyError};
use super::image::set::Promotable;
use super::paths::PathError;
use super::place::{Placed, Spot, Step, already, prepare, put};
use super::recover;
use super::routes::{Route, Routes, routes};
use super::store::sealed::{seal, unseal};
use super::store::{Store, replace};
use crate::file_id::FileId;
use crate::remedy;
use crate::types::{Generation, Lsn};

/// File name of the journal in the replica's directory.
pub const JOURNAL: &str = "promotion.json";

/// Version of the journal.
const VERSION: u32 = 2;

/// Longest journal, as for a manifest.
const MAX_JOURNAL: u64 = super::image::manifest::MAX_BYTES * 2;

/// The source's word on where its stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SavedMark {
    /// Generation that ended.
    pub generation: Generation,
    /// End of the stream.
    pub lsn: Lsn,
    /// Chained digest there.
    pub digest: u64,
}

/// What is asked of a promotion.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// Where files go: source path or prefix of some, to local path.
    pub paths: &'a BTreeMap<PathBuf, PathBuf>,
    /// Owner of the files, if not this process: user and group.
    pub owner: Option<(u32, u32)>,
}

/// What a promotion did.
#[derive(Clone, Debug, Serialize)]
pub struct Promoted {
    /// What was promoted.
    pub image: Promotable,
    /// The files.
    pub files: Vec<Placed>,
    /// Regions that no place is configured for, and where they were put in the replica's directory.
    pub unplaced: Vec<Placed>,
    /// Applying what had landed.
    #[serde(rename = "applied_us", serialize_with = "micros")]
    pub applied_in: Duration,
    /// Putting the files in place.
    #[serde(rename = "placed_us", serialize_with = "micros")]
    pub placed_in: Duration,
}

/// As every duration of an event.
fn micros<S: Serializer>(duration: &Duration, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_u64(duration.as_micros() as u64)
}

/// Why nothing was promoted, or not everything yet.
#[derive(Debug, thiserror::Error)]
pub enum PromoteError {
    /// Applying what landed.
    #[error("what landed could not be applied: {0}")]
    Apply(#[from] ApplyError),
    /// No image.
    #[error("there is no consistent copy here: its first sync never completed, or its landing ring was lost")]
    NothingConsistent,
    /// The stream's end is not here.
    #[error(
        "the source saved up to {} of generation {}, but the copy here is of {have} of generation {have_generation}: \
         promoting it would lose what lies between (`--force` does so)",
        saved.lsn, saved.generation
    )]
    Incomplete {
        /// What the source said.
        saved: SavedMark,
        /// What is here.
        have: Lsn,
        /// Of which generation.
        have_generation: Generation,
    },
    /// The streams differ.
    #[error(
        "the copy at {lsn} has digest {have:016x}, the source's has {want:016x}: they are not the same bytes"
    )]
    Digest {
        /// Where.
        lsn: Lsn,
        /// Here.
        have: u64,
        /// At the source.
        want: u64,
    },
    /// A region has no place here.
    #[error(transparent)]
    Path(#[from] PathError),
    /// Two regions would be one file.
    #[error("{first:?} and {second:?} are both to be {}: give them separate places in `paths`", path.display())]
    Clash {
        /// A region's name.
        first: String,
        /// Another's.
        second: String,
        /// The file.
        path: PathBuf,
    },
    /// The journal of an earlier attempt.
    #[error("{} cannot be read ({what}): move it away to start the promotion again", path.display())]
    Journal {
        /// The journal.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The system refused; the promotion can be tried again.
    #[error("cannot {what} {}: {source}{}", path.display(), remedy::of(source))]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Journal {
    /// [`VERSION`]. The first field, so that of another version nothing else is read.
    #[serde(deserialize_with = "this_version")]
    version: u32,
    image: u64,
    generation: Generation,
    lsn: Lsn,
    digest: u64,
    /// By region: the file that is, or is about to be, at its place.
    prepared: BTreeMap<u16, FileId>,
    /// Set when all is in place.
    files: Option<Vec<Placed>>,
    /// Those of regions without a place; set together with `files`.
    #[serde(default)]
    unplaced: Vec<Placed>,
}

/// The promotion that `dir` has a journal of, and whether it is complete.
pub fn journalled(store: &dyn Store, dir: &Path) -> Result<Option<(Generation, bool)>, PromoteError> {
    Ok(load(store, dir)?.map(|j| (j.generation, j.files.is_some())))
}

/// What a promotion would yield, once everything that landed has been applied. With `saved`, an error unless it ends exactly
/// there, with the same digest.
pub fn verify(applier: &mut Applier, saved: Option<SavedMark>) -> Result<Promotable, PromoteError> {
    recover::drain(applier)?;
    let image = applier.images().promotable().ok_or(PromoteError::NothingConsistent)?;
    match saved {
        Some(saved) if (image.generation, image.lsn) != (saved.generation, saved.lsn) => {
            Err(PromoteError::Incomplete { saved, have: image.lsn, have_generation: image.generation })
        }
        Some(saved) if image.digest != saved.digest => {
            Err(PromoteError::Digest { lsn: image.lsn, have: image.digest, want: saved.digest })
        }
        _ => Ok(image),
    }
}

/// Whether each region of the image that is to be promoted has a place of its own by `paths`, or beside the image, which no link keeps
/// from being reached. To be called after [`verify`] and before the group changes hands: afterwards nobody can take it back.
pub fn check_places(applier: &Applier, paths: &BTreeMap<PathBuf, PathBuf>) -> Result<(), PromoteError> {
    let image = applier.images().promotable().ok_or(PromoteError::NothingConsistent)?;
    let Routes { placed, unplaced } =
        routes(applier.images().regions(), paths, &applier.config().dir, image.generation)?;
    placed.iter().chain(&unplaced).try_for_each(|route| Ok(route.place.check()?))
}

/// Promotes what is there; what must be there is for [`verify`]. `step` is called before each durable step with its name; an error of its ends the attempt there.
///
/// Repeated after a complete promotion it reports the same again.
pub fn promote(
    applier: &mut Applier,
    request: &Request<'_>,
    step: &mut Step<'_>,
) -> Result<Promoted, PromoteError> {
    let start = Instant::now();
    let (store, dir) = (applier.config().store.clone(), applier.config().dir.clone());
    let earlier = match load(&*store, &dir)? {
        Some(complete @ Journal { files: Some(_), .. }) => {
            applier.clear()?;
            return Ok(complete.told_again());
        }
        other => other,
    };
    let image = verify(applier, None)?;
    let applied_in = start.elapsed();
    let Routes { placed, unplaced } =
        routes(applier.images().regions(), request.paths, &dir, image.generation)?;

    let goes_on = |journal: &Journal| (journal.image, journal.lsn) == (image.image, image.lsn);
    let journal = earlier.filter(goes_on).unwrap_or_else(|| Journal::of(&image));
    let mut placing = Placing { store: &*store, dir: &dir, journal, step };
    placing.save()?;
    let files = placing.put_all(&placed, request.owner)?;
    // Whoever looks at these is an operator.
    let unplaced = placing.put_all(&unplaced, None)?;
    (placing.journal.files, placing.journal.unplaced) = (Some(files.clone()), unplaced.clone());
    placing.save()?;
    (placing.step)("clear").map_err(|source| PromoteError::Io {
        what: "clear",
        path: dir.clone(),
        source,
    })?;
    applier.clear()?;
    Ok(Promoted { image, files, unplaced, applied_in, placed_in: start.elapsed() - applied_in })
}

impl Journal {
    /// Of a promotion that begins.
    fn of(image: &Promotable) -> Journal {
        Journal {
            version: VERSION,
            image: image.image,
            generation: image.generation,
            lsn: image.lsn,
            digest: image.digest,
            prepared: BTreeMap::new(),
            files: None,
            unplaced: Vec::new(),
        }
    }

    /// What the promotion did, which is complete.
    fn told_again(self) -> Promoted {
        let Journal { image, generation, lsn, digest, .. } = self;
        Promoted {
            image: Promotable { image, generation, lsn, digest, live: false },
            files: self.files.unwrap_or_default(),
            unplaced: self.unplaced,
            applied_in: Duration::ZERO,
            placed_in: Duration::ZERO,
        }
    }
}

/// A promotion that puts files in place.
struct Placing<'a, 'b> {
    store: &'a dyn Store,
    dir: &'a Path,
    journal: Journal,
    step: &'a mut Step<'b>,
}

impl Placing<'_, '_> {
    /// Puts each region at its place, unless an earlier attempt has.
    fn put_all(&mut self, routes: &[Route], owner: Option<(u32, u32)>) -> Result<Vec<Placed>, PromoteError> {
        let mut files = Vec::new();
        for Route { region, place } in routes {
            let spot = Spot::new(place, self.journal.generation)?;
            let id = region.entry.id.0;
            if let Some(placed) = already(region, &spot, self.journal.prepared.get(&id))? {
                files.push(placed);
                continue;
            }
            let part = prepare(region, &spot, owner, self.step)?;
            self.journal.prepared.insert(id, part.id);
            self.save()?;
            files.push(put(region, &spot, part, self.step)?);
        }
        Ok(files)
    }

    /// Makes the journal durable.
    fn save(&mut self) -> Result<(), PromoteError> {
        let Placing { store, dir, journal, step } = self;
        let write = || replace(*store, dir, JOURNAL, seal(&serde_json::to_string(journal)?).as_bytes());
        step("journal").and_then(|()| write()).map_err(|source| PromoteError::Io {
            what: "write",
            path: dir.join(JOURNAL),
            source,
        })
    }
}

fn load(store: &dyn Store, dir: &Path) -> Result<Option<Journal>, PromoteError> {
    let path = dir.join(JOURNAL);
    let bytes = match store.read(&path, MAX_JOURNAL) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(PromoteError::Io { what: "read", path, source }),
    };
    let journal =
        unseal(&bytes).and_then(|json| serde_json::from_str::<Journal>(json).map_err(|e| e.to_string()));
    journal.map(Some).map_err(|what| PromoteError::Journal { path, what })
}

fn this_version<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    match u32::deserialize(from)? {
        VERSION => Ok(VERSION),
        other => Err(D::Error::custom(format!("it is of version {other}, not {VERSION}"))),
    }
}

/// Removes the journal of a promotion that a newer stream has overtaken.
pub fn forget(store: &dyn Store, dir: &Path) -> io::Result<()> {
    store.remove_file(&dir.join(JOURNAL))?;
    store.sync_dir(dir)
}
