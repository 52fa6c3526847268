//! Writing an archive, and keeping it within its bounds.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::Serialize;

use super::{ArchiveError, BASE, ERA, Era, OWNER, Place, lock_file};
use crate::log::archive::{SegmentId, SegmentReader, SegmentWriter};
use crate::replica::image::position::Stream;
use crate::replica::store::Bytes;
use crate::types::{Generation, GroupId, Lsn};

/// Segments are at most this part of what is kept, so that folding one frees a fraction only.
const SEGMENT_SHARE: u64 = 8;

/// Bounds of a segment's size: small enough to fold quickly, large enough that files stay few.
const SEGMENT_BYTES: std::ops::RangeInclusive<u64> = 1 << 20..=256 << 20;

/// What an archive is to be.
#[derive(Clone, Debug)]
pub struct ArchiveConfig {
    /// Its directory, of its own.
    pub dir: PathBuf,
    /// The group.
    pub group: GroupId,
    /// Bytes of segments kept at most; the base comes on top, of the size of the regions.
    pub keep_bytes: u64,
    /// Age of the oldest segment kept; no limit if absent.
    pub keep_age: Option<Duration>,
}

/// An archive's extent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ArchiveStatus {
    /// The earliest moment, which is that of the oldest base.
    pub from: Option<Place>,
    /// The latest, durably.
    pub to: Option<Place>,
    /// Bytes of segments.
    pub bytes: u64,
    /// Number of segments.
    pub segments: usize,
}

/// The writing end of an archive. One thread.
pub struct ArchiveWriter {
    config: ArchiveConfig,
    current: Option<(Era, SegmentWriter)>,
    buffer: Vec<u8>,
    /// The oldest segment's newest batch: read once, not at every look.
    oldest: Option<(PathBuf, u64)>,
}

impl ArchiveWriter {
    /// Opens or creates it. What a crash cut short at the end is cut off.
    pub fn open(config: ArchiveConfig) -> Result<ArchiveWriter, ArchiveError> {
        fs::create_dir_all(&config.dir).map_err(ArchiveError::io("create", &config.dir))?;
        let mut current = None;
        for era in Era::found(&config.dir)? {
            let mut segments = era.segments()?;
            if !era.is_made()? {
                // Its creation was cut short before it held anything. What holds something is nobody's to remove.
                if segments.is_empty() {
                    fs::remove_dir_all(&era.dir).map_err(ArchiveError::io("remove", &era.dir))?;
                }
                continue;
            }
            let segment = segments.pop();
            let writer = segment.map(|(_, path)| SegmentWriter::open(&path, config.group)).transpose()?;
            current = writer.map(|w| (era, w));
        }
        Ok(ArchiveWriter { config, current, buffer: Vec::new(), oldest: None })
    }

    /// Where the archive ends, durably: the consumer goes on there.
    pub fn position(&self) -> Option<Place> {
        let (_, segment) = self.current.as_ref()?;
        Some(Place { generation: segment.id().generation, lsn: segment.durable() })
    }

    /// Prepares for batches from `from` on. What does not continue the archive begins a new era with an empty base; its
    /// stream must begin with a sync to be of use.
    pub fn begin(&mut self, generation: Generation, from: Lsn) -> Result<(), ArchiveError> {
        if let Some((_, segment)) = &mut self.current {
            if (segment.id().generation, segment.end()) == (generation, from) {
                return Ok(());
            }
            segment.sync()?;
        }
        let era = self.new_era(generation, from)?;
        let id = SegmentId { group: self.config.group, generation, first: from };
        let segment = SegmentWriter::create(&era.dir, id, 0)?;
        self.current = Some((era, segment));
        Ok(())
    }

    /// The owner's mark is written last: without all of it the era does not count.
    fn new_era(&self, generation: Generation, from: Lsn) -> Result<Era, ArchiveError> {
        let number = 1 + Era::found(&self.config.dir)?.last().map_or(0, |era| era.number);
        let era = Era { number, dir: self.config.dir.join(format!("{ERA}{number}")) };
        fs::create_dir(&era.dir).map_err(ArchiveError::io("create", &era.dir))?;
        era.open_base(self.config.group)?.restart(generation, from, Stream::default())?;
        let owner = era.dir.join(OWNER);
        let written = fs::write(&owner, self.config.group.0)
            .and_then(|()| File::open(&owner)?.sync_all())
            .and_then(|()| sync_dir(&era.dir))
            .and_then(|()| sync_dir(&self.config.dir));
        written.map_err(ArchiveError::io("write", &owner))?;
        Ok(era)
    }

    /// Appends a batch of sealed records that follows on the last one. Durable after [`ArchiveWriter::sync`].
    pub fn append(&mut self, batch: Bytes<'_>, time_ns: u64) -> Result<(), ArchiveError> {
        let full =
            *SEGMENT_BYTES.end().min(SEGMENT_BYTES.start().max(&(self.config.keep_bytes / SEGMENT_SHARE)));
        let Some((era, segment)) = &mut self.current else {
            return Err(ArchiveError::NotAnArchive { path: self.config.dir.clone() });
        };
        if segment.bytes() >= full {
            segment.sync()?;
            let id = SegmentId { first: segment.end(), ..segment.id() };
            *segment = SegmentWriter::create(&era.dir, id, time_ns)?;
        }
        match batch {
            Bytes::Slice(records) => Ok(segment.append(records, time_ns)?),
            shared => {
                self.buffer.resize(shared.len(), 0);
                shared.copy_to(&mut self.buffer);
                Ok(segment.append(&self.buffer, time_ns)?)
            }
        }
    }

    /// Makes everything appended durable; returns its end.
    pub fn sync(&mut self) -> Result<Option<Place>, ArchiveError> {
        if let Some((_, segment)) = &mut self.current {
            segment.sync()?;
        }
        Ok(self.position())
    }

    /// Folds segments into their base until the bounds are kept. The one being written stays. Returns how many went; none
    /// while somebody reads the archive.
    pub fn retain(&mut self, now_ns: u64) -> Result<usize, ArchiveError> {
        let lock = lock_file(&self.config.dir)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Ok(0),
            locked => locked.map_err(|e| ArchiveError::io("lock", &self.config.dir)(e.into()))?,
        }
        let mut folded = 0;
        let mut bytes = self.status()?.bytes;
        for era in Era::all(&self.config.dir)? {
            let is_current = self.current.as_ref().is_some_and(|(c, _)| c.number == era.number);
            let mut segments = era.segments()?;
            if is_current {
                segments.pop();
            }
            for (_, path) in &segments {
                let size = fs::metadata(path).map_err(ArchiveError::io("look at", path))?.len();
                if bytes <= self.config.keep_bytes && !self.is_old(path, now_ns)? {
                    return Ok(folded);
                }
                fold(&era, self.config.group, path)?;
                (bytes, folded) = (bytes - size, folded + 1);
            }
            if is_current {
                break;
            }
            // A stretch before a gap of which only the base is left: what follows does not build on it.
            fs::remove_dir_all(&era.dir).map_err(ArchiveError::io("remove", &era.dir))?;
        }
        Ok(folded)
    }

    fn is_old(&mut self, path: &Path, now_ns: u64) -> Result<bool, ArchiveError> {
        let Some(keep) = self.config.keep_age else { return Ok(false) };
        let newest = match &self.oldest {
            Some((known, newest)) if known == path => *newest,
            _ => newest_in(path, self.config.group)?,
        };
        self.oldest = Some((path.to_owned(), newest));
        Ok(u128::from(now_ns.saturating_sub(newest)) > keep.as_nanos())
    }

    /// Its extent.
    pub fn status(&self) -> Result<ArchiveStatus, ArchiveError> {
        let mut status = ArchiveStatus { from: None, to: self.position(), bytes: 0, segments: 0 };
        for era in Era::all(&self.config.dir)? {
            for (first, path) in era.segments()? {
                status.bytes += fs::metadata(&path).map_err(ArchiveError::io("look at", &path))?.len();
                status.segments += 1;
                if status.from.is_none() {
                    let generation = SegmentReader::open(&path, self.config.group)?.id().generation;
                    status.from = Some(Place { generation, lsn: first });
                }
            }
        }
        Ok(status)
    }
}

fn newest_in(path: &Path, group: GroupId) -> Result<u64, ArchiveError> {
    let mut reader = SegmentReader::open(path, group)?;
    let mut newest = 0;
    while let Some(record) = reader.next_record()? {
        newest = record.time_ns;
    }
    Ok(newest)
}

/// Applies a segment to its era's base, durably, then removes it. Repeated after a crash it skips what is applied.
fn fold(era: &Era, group: GroupId, path: &Path) -> Result<(), ArchiveError> {
    let mut base = era.open_base(group)?;
    let mut reader = SegmentReader::open(path, group)?;
    let found = reader.id().first;
    if found > base.cursor().lsn {
        return Err(ArchiveError::Hole { path: path.to_owned(), expected: base.cursor().lsn, found });
    }
    // A crash in the middle leaves records applied in part: announced as such, they are applied again.
    let mut end = reader.id().first;
    while let Some(record) = reader.next_record()? {
        end = record.header.next();
    }
    base.announce(end)?;
    let mut reader = SegmentReader::open(path, group)?;
    while let Some(record) = reader.next_record()? {
        if Lsn(record.header.lsn) >= base.cursor().lsn {
            base.apply(&record.header, Bytes::Slice(record.payload))?;
        }
    }
    base.persist()?;
    let removed = fs::remove_file(path).and_then(|()| sync_dir(&era.dir));
    removed.map_err(ArchiveError::io("remove", &era.dir.join(BASE)))
}

fn sync_dir(dir: &Path) -> std::io::Result<()> {
    File::open(dir)?.sync_all()
}
