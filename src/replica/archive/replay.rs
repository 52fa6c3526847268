//! Point-in-time restore: the image as it was at an LSN, built from base and segments.

use std::fs::{self, File};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::{ArchiveError, Era, Place, group_of, lock_shared};
use crate::log::archive::SegmentReader;
use crate::log::format::RecordHeader;
use crate::replica::image::set::{ImageSet, RegionFilePath};
use crate::replica::place::copy_sparse;
use crate::replica::store::Bytes;
use crate::replica::store::disk::DiskStore;
use crate::types::{Durability, GroupId, Lsn, RegionId};

/// Where a replay puts what it built. Nothing that exists is written over.
#[derive(Clone, Debug)]
pub enum Out {
    /// One file, for a group with one region.
    File(PathBuf),
    /// A directory, in which each region gets its own path without the leading slash.
    Dir(PathBuf),
}

/// A region that was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Restored {
    /// Its number.
    pub region: RegionId,
    /// Its name at the source.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// Bytes.
    pub bytes: u64,
}

/// What a replay did.
#[derive(Clone, Debug, Serialize)]
pub struct Replayed {
    /// The moment: every record below is in it.
    pub at: Place,
    /// Chained digest there.
    pub digest: u64,
    /// Records applied to the base.
    pub records: u64,
    /// The regions.
    pub regions: Vec<Restored>,
}

/// Builds the image at `to`: all records that end at or below it. `progress` gets bytes of the stream done and in all, now
/// and then. A scratch directory is made beside `out` and removed again.
pub fn replay(
    archive: &Path,
    to: Lsn,
    out: &Out,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Replayed, ArchiveError> {
    let (Out::File(path) | Out::Dir(path)) = out;
    let scratch = sibling(path, "replay");
    let made = fs::create_dir_all(scratch.parent().unwrap_or(Path::new("/")));
    made.and_then(|()| fs::create_dir(&scratch)).map_err(ArchiveError::io("create", &scratch))?;
    let result = replay_in(archive, to, out, &scratch, progress);
    let removed = fs::remove_dir_all(&scratch).map_err(ArchiveError::io("remove", &scratch));
    result.and_then(|done| removed.map(|()| done))
}

fn replay_in(
    archive: &Path,
    to: Lsn,
    out: &Out,
    scratch: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Replayed, ArchiveError> {
    let mut replayer = Replayer::open_at(archive, &scratch.join("image"), Some(to))?;
    let start = replayer.position().lsn;
    let total = to.since(start);
    let mut reported = start;
    while replayer.next_end()?.is_some_and(|end| end <= to) {
        replayer.step()?;
        let at = replayer.position().lsn;
        if at.since(reported) >= PROGRESS_BYTES {
            progress(at.since(start), total);
            reported = at;
        }
    }
    progress(total, total);
    let regions = match out {
        Out::Dir(dir) => replayer.materialise(dir)?,
        Out::File(path) => vec![replayer.materialise_one(path)?],
    };
    let at = replayer.position();
    Ok(Replayed { at, digest: replayer.set.cursor().digest, records: replayer.records, regions })
}

/// Stream bytes between two reports of progress.
const PROGRESS_BYTES: u64 = 4 << 20;

/// Steps through an archive record by record; the image of any moment can be had on the way.
pub struct Replayer {
    group: GroupId,
    set: ImageSet,
    files: std::vec::IntoIter<(Lsn, PathBuf)>,
    reader: Option<SegmentReader>,
    /// The next record, already read.
    next: Option<(RecordHeader, Vec<u8>)>,
    records: u64,
    /// Holds off the folding of segments.
    _lock: File,
}

impl Replayer {
    /// Opens the newest stretch without a gap of the archive in `dir`, from its base. `scratch` is a directory that does not
    /// exist yet, best on tmpfs; the caller removes it.
    pub fn open(dir: &Path, scratch: &Path) -> Result<Replayer, ArchiveError> {
        Replayer::open_at(dir, scratch, None)
    }

    /// The same for the newest stretch that contains `at`.
    pub fn open_at(dir: &Path, scratch: &Path, at: Option<Lsn>) -> Result<Replayer, ArchiveError> {
        let group = group_of(dir)?;
        let lock = lock_shared(dir)?;
        let mut have = Vec::new();
        for era in Era::all(dir)?.iter().rev() {
            let base = copy_base(era, scratch, group)?;
            let files = era.segments()?;
            let end = end_of(&files, group)?.unwrap_or(base.cursor().lsn);
            let range = base.cursor().lsn..=end;
            if at.is_none_or(|lsn| range.contains(&lsn)) {
                let files = files.into_iter();
                return Ok(Replayer {
                    group,
                    set: base,
                    files,
                    reader: None,
                    next: None,
                    records: 0,
                    _lock: lock,
                });
            }
            have.push(format!("{}..={} of generation {}", range.start(), end, base.cursor().generation));
            fs::remove_dir_all(scratch).map_err(ArchiveError::io("remove", scratch))?;
        }
        match at {
            Some(want) => Err(ArchiveError::OutOfRange { want, have: have.join(", ") }),
            None => Err(ArchiveError::NotAnArchive { path: dir.to_owned() }),
        }
    }

    /// Every record below has been applied.
    pub fn position(&self) -> Place {
        let at = self.set.cursor();
        Place { generation: at.generation, lsn: at.lsn }
    }

    /// The next record's header; `None` at the archive's end.
    pub fn peek(&mut self) -> Result<Option<RecordHeader>, ArchiveError> {
        while self.next.is_none() {
            if let Some(reader) = &mut self.reader
                && let Some(record) = reader.next_record()?
            {
                if Lsn(record.header.lsn) >= self.set.cursor().lsn {
                    self.next = Some((record.header, record.payload.to_vec()));
                }
                continue;
            }
            let Some((found, path)) = self.files.next() else { return Ok(None) };
            let expected = self.set.cursor().lsn;
            if found > expected {
                return Err(ArchiveError::Hole { path, expected, found });
            }
            self.reader = Some(SegmentReader::open(&path, self.group)?);
        }
        Ok(self.next.as_ref().map(|(header, _)| *header))
    }

    fn next_end(&mut self) -> Result<Option<Lsn>, ArchiveError> {
        Ok(self.peek()?.map(|header| header.next()))
    }

    /// Applies one record; `None` at the archive's end.
    pub fn step(&mut self) -> Result<Option<RecordHeader>, ArchiveError> {
        self.peek()?;
        let Some((header, payload)) = self.next.take() else { return Ok(None) };
        self.set.apply(&header, Bytes::Slice(&payload))?;
        self.records += 1;
        Ok(Some(header))
    }

    /// Applies all records that end at or below `lsn`; returns how far that is.
    pub fn advance_to(&mut self, lsn: Lsn) -> Result<Lsn, ArchiveError> {
        while self.next_end()?.is_some_and(|end| end <= lsn) {
            self.step()?;
        }
        Ok(self.position().lsn)
    }

    /// Whether the image of this moment is consistent: a sync has been completed, and none is under way.
    pub fn is_consistent(&self) -> bool {
        self.set.promotable().is_some_and(|p| p.live)
    }

    /// The regions of this moment, with the files that hold their bytes: to be read, not to be changed.
    pub fn regions(&self) -> Result<Vec<RegionFilePath>, ArchiveError> {
        match self.set.promotable() {
            Some(p) if p.live => Ok(self.set.regions()),
            other => Err(ArchiveError::NotConsistent {
                want: self.set.cursor().lsn,
                earlier: other.map(|p| p.lsn),
            }),
        }
    }

    /// Copies the regions of this moment into `dir`, each at its own path without the leading slash.
    pub fn materialise(&self, dir: &Path) -> Result<Vec<Restored>, ArchiveError> {
        self.regions()?.iter().map(|region| restore(region, &inside(dir, &region.entry.name)?)).collect()
    }

    /// Copies the only region of this moment to `path`.
    pub fn materialise_one(&self, path: &Path) -> Result<Restored, ArchiveError> {
        match self.regions()?.as_slice() {
            [region] => restore(region, path),
            many => Err(ArchiveError::NotOneRegion { regions: many.len(), path: path.to_owned() }),
        }
    }
}

fn restore(region: &RegionFilePath, path: &Path) -> Result<Restored, ArchiveError> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    let copied = fs::create_dir_all(parent).and_then(|()| copy_sparse(&region.path, path));
    copied.map_err(ArchiveError::io("write", path))?;
    let entry = &region.entry;
    Ok(Restored { region: entry.id, name: entry.name.clone(), path: path.to_owned(), bytes: entry.size })
}

/// `name` below `dir`: names come from the source, and none leads out.
fn inside(dir: &Path, name: &str) -> Result<PathBuf, ArchiveError> {
    let mut path = dir.to_owned();
    for part in Path::new(name).components() {
        match part {
            Component::RootDir => {}
            Component::Normal(part) => path.push(part),
            _ => return Err(ArchiveError::Unfit { name: name.to_owned() }),
        }
    }
    match path == dir {
        true => Err(ArchiveError::Unfit { name: name.to_owned() }),
        false => Ok(path),
    }
}

fn end_of(files: &[(Lsn, PathBuf)], group: GroupId) -> Result<Option<Lsn>, ArchiveError> {
    let Some((first, path)) = files.last() else { return Ok(None) };
    let (mut reader, mut end) = (SegmentReader::open(path, group)?, *first);
    while let Some(record) = reader.next_record()? {
        end = record.header.next();
    }
    Ok(Some(end))
}

/// A copy of the era's base to go on from: the base itself belongs to the writer.
fn copy_base(era: &Era, scratch: &Path, group: GroupId) -> Result<ImageSet, ArchiveError> {
    copy_tree(&era.base_dir(), scratch).map_err(ArchiveError::io("copy the base to", scratch))?;
    // Scratch files need not survive anything.
    Ok(ImageSet::open(Arc::new(DiskStore::new(Durability::Battery)), scratch, group)?)
}

fn copy_tree(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &target)?;
        } else {
            copy_sparse(&entry.path(), &target)?;
        }
    }
    Ok(())
}

fn sibling(path: &Path, what: &str) -> PathBuf {
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or(std::ffi::OsStr::new("out")));
    name.push(format!(".{what}-{}", std::process::id()));
    path.with_file_name(name)
}
