//! The archive of a group: a base image and the segments that follow on it, for point-in-time restore.
//!
//! `<dir>/era-<n>/base/` is an image set, `<dir>/era-<n>/seg-<lsn>` are segments. An era is a stretch without a gap; what
//! follows on a gap, or a new generation, is a new era, whose base is empty until its stream's sync is complete. Retention folds
//! the oldest segment into the base: applied, made durable, then removed, so that a crash in between applies it again to no effect.
//!
//! [`ArchiveWriter`] is the source agent's second consumer; [`list`], [`replay`] and [`Replayer`] read.

mod list;
mod replay;
mod writer;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};

use crate::log::archive::{SegmentError, SegmentId};
use crate::remedy;
use crate::replica::image::ImageError;
use crate::replica::image::set::ImageSet;
use crate::replica::store::disk::DiskStore;
use crate::types::{Durability, Generation, GroupId, Lsn};

pub use list::{Entry, list};
pub use replay::{Out, Replayed, Replayer, Restored, replay};
pub use writer::{ArchiveConfig, ArchiveStatus, ArchiveWriter};

/// File that is locked, exclusively while a base changes, shared while one is read.
const LOCK: &str = "lock";

const ERA: &str = "era-";
const BASE: &str = "base";

/// Why an archive could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// A segment.
    #[error(transparent)]
    Segment(#[from] SegmentError),
    /// A base, or the image that a replay builds.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The system refused.
    #[error("cannot {what} {}: {source}{}", path.display(), remedy::of(source))]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Not an archive.
    #[error("{} is not an archive: it holds no `{ERA}…` directory with a base", path.display())]
    NotAnArchive {
        /// The directory.
        path: PathBuf,
    },
    /// Records are missing in the middle.
    #[error("{} begins at {found} where {expected} was expected: a segment is missing or damaged", path.display())]
    Hole {
        /// The segment after the hole.
        path: PathBuf,
        /// What follows on the one before.
        expected: Lsn,
        /// Where it begins.
        found: Lsn,
    },
    /// No such moment.
    #[error("LSN {want} is not in this archive, which has {have}")]
    OutOfRange {
        /// What was asked for.
        want: Lsn,
        /// Ranges, for a person.
        have: String,
    },
    /// A moment without a consistent image.
    #[error(
        "at LSN {want} a sync was under way, so that no consistent state is known; choose one \
         {}", earlier.map_or("after its end".to_owned(), |e| format!("after its end, or {e}, before its beginning"))
    )]
    NotConsistent {
        /// What was asked for.
        want: Lsn,
        /// The last consistent moment before.
        earlier: Option<Lsn>,
    },
    /// A single file was asked for.
    #[error("the group has {regions} regions at that moment: give a directory instead of the file {}", path.display())]
    NotOneRegion {
        /// How many.
        regions: usize,
        /// The file.
        path: PathBuf,
    },
    /// A region's name is no path.
    #[error("region {name:?} has a name that is no plain absolute path; its bytes were not written")]
    Unfit {
        /// The name.
        name: String,
    },
}

impl ArchiveError {
    fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ArchiveError {
        let path = path.to_owned();
        move |source| ArchiveError::Io { what, path, source }
    }
}

/// A stretch without a gap.
#[derive(Clone, Debug)]
struct Era {
    number: u64,
    dir: PathBuf,
}

impl Era {
    /// The eras in `dir`, oldest first.
    fn all(dir: &Path) -> Result<Vec<Era>, ArchiveError> {
        let mut made = Vec::new();
        for era in Era::found(dir)? {
            if era.is_made()? {
                made.push(era);
            }
        }
        Ok(made)
    }

    /// Whether all of the owner's mark is there: it is written last, and where the disk is full it is not.
    fn is_made(&self) -> Result<bool, ArchiveError> {
        let mark = self.dir.join(OWNER);
        match fs::metadata(&mark) {
            Ok(found) => Ok(found.len() == size_of::<GroupId>() as u64),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(ArchiveError::io("look at", &mark)(e)),
        }
    }

    /// As [`Era::all`], with those that are not made yet, or never will be.
    fn found(dir: &Path) -> Result<Vec<Era>, ArchiveError> {
        let fail = ArchiveError::io("list", dir);
        let mut eras: Vec<Era> = names(dir)
            .map_err(fail)?
            .iter()
            .filter_map(|name| name.strip_prefix(ERA)?.parse().ok())
            .map(|number| Era { number, dir: dir.join(format!("{ERA}{number}")) })
            .collect();
        eras.sort_by_key(|era| era.number);
        Ok(eras)
    }

    fn base_dir(&self) -> PathBuf {
        self.dir.join(BASE)
    }

    fn open_base(&self, group: GroupId) -> Result<ImageSet, ArchiveError> {
        let store = Arc::new(DiskStore::new(Durability::Disk));
        Ok(ImageSet::open(store, &self.base_dir(), group)?)
    }

    /// The segments, oldest first, with where they begin.
    fn segments(&self) -> Result<Vec<(Lsn, PathBuf)>, ArchiveError> {
        let names = names(&self.dir).map_err(ArchiveError::io("list", &self.dir))?;
        let mut found: Vec<_> =
            names.iter().filter_map(|n| Some((SegmentId::parse_name(n)?, self.dir.join(n)))).collect();
        found.sort();
        Ok(found)
    }
}

/// Opens the lock file.
fn lock_file(dir: &Path) -> Result<File, ArchiveError> {
    let path = dir.join(LOCK);
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
    file.map_err(ArchiveError::io("open", &path))
}

/// Keeps bases and segments as they are until the lock is dropped; the writer appends meanwhile.
fn lock_shared(dir: &Path) -> Result<File, ArchiveError> {
    let file = lock_file(dir)?;
    flock(&file, FlockOperation::LockShared).map_err(|e| ArchiveError::io("lock", dir)(e.into()))?;
    Ok(file)
}

/// The group that an archive is of, as its newest base says.
fn group_of(dir: &Path) -> Result<GroupId, ArchiveError> {
    let not = || ArchiveError::NotAnArchive { path: dir.to_owned() };
    let eras = Era::all(dir)?;
    let owner = eras.last().ok_or_else(not)?.dir.join(OWNER);
    let bytes = fs::read(&owner).map_err(ArchiveError::io("read", &owner))?;
    Ok(GroupId(bytes.try_into().map_err(|_| not())?))
}

/// File in an era's directory with the 16 bytes of the group's identity.
const OWNER: &str = "group";

fn names(dir: &Path) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        names.extend(entry?.file_name().into_string().ok());
    }
    Ok(names)
}

/// A place in the streams of an archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
pub struct Place {
    /// Generation of the stream.
    pub generation: Generation,
    /// Position in it.
    pub lsn: Lsn,
}
