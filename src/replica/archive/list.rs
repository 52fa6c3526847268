//! What is in an archive, record by record.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::{ArchiveError, Era, group_of, lock_shared};
use crate::log::archive::SegmentReader;
use crate::log::format::Kind;
use crate::types::{Generation, GroupId, Lsn, RegionId};

/// A record of an archive, without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// Generation of its stream.
    pub generation: Generation,
    /// Where it stands.
    pub lsn: Lsn,
    /// When its batch was archived, nanoseconds since 1970.
    pub time: u64,
    /// Bytes of its payload.
    pub bytes: u32,
    /// Its region; `None` for records of the group as a whole.
    pub region: Option<RegionId>,
    /// What it says.
    #[serde(serialize_with = "kind_name")]
    pub kind: Kind,
    /// Where the next record stands: a moment to replay to, with this record included.
    pub next: Lsn,
}

impl Entry {
    /// The word for its kind, as in the document.
    pub fn word(&self) -> &'static str {
        word(self.kind)
    }
}

/// The records of the archive in `dir`, oldest first.
pub fn list(dir: &Path) -> Result<impl Iterator<Item = Result<Entry, ArchiveError>> + use<>, ArchiveError> {
    let group = group_of(dir)?;
    let lock = lock_shared(dir)?;
    let mut files = Vec::new();
    for era in Era::all(dir)? {
        files.extend(era.segments()?.into_iter().map(|(_, path)| path));
    }
    Ok(Entries { group, files: files.into_iter(), reader: None, _lock: lock })
}

struct Entries {
    group: GroupId,
    files: std::vec::IntoIter<PathBuf>,
    reader: Option<SegmentReader>,
    /// Keeps the files where they are.
    _lock: File,
}

impl Entries {
    fn advance(&mut self) -> Result<Option<Entry>, ArchiveError> {
        loop {
            if let Some(reader) = &mut self.reader
                && let Some(record) = reader.next_record()?
            {
                let header = record.header;
                let kind = Kind::from_byte(header.kind).expect("checked by the reader");
                let whole = matches!(kind, Kind::Filler | Kind::SyncBegin | Kind::SyncEnd);
                return Ok(Some(Entry {
                    generation: Generation(header.generation),
                    lsn: Lsn(header.lsn),
                    time: record.time_ns,
                    bytes: header.len,
                    region: (!whole).then_some(header.place().0),
                    kind,
                    next: header.next(),
                }));
            }
            let Some(path) = self.files.next() else { return Ok(None) };
            self.reader = Some(SegmentReader::open(&path, self.group)?);
        }
    }
}

impl Iterator for Entries {
    type Item = Result<Entry, ArchiveError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.advance().transpose()
    }
}

fn kind_name<S: serde::Serializer>(kind: &Kind, out: S) -> Result<S::Ok, S::Error> {
    out.serialize_str(word(*kind))
}

fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Data => "data",
        Kind::Zero => "zero",
        Kind::Filler => "filler",
        Kind::RegionCreate => "create",
        Kind::RegionResize => "resize",
        Kind::RegionRename => "rename",
        Kind::RegionUnlink => "unlink",
        Kind::SyncBegin => "sync_begin",
        Kind::SyncEnd => "sync_end",
        Kind::CopyData => "copy_data",
        Kind::CopyCreate => "copy_create",
        Kind::CopyUnlink => "copy_unlink",
        Kind::CopySame => "copy_same",
    }
}
