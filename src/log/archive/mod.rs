//! Archive segments: a stretch of the stream in a file, as it was shipped, with the time of each batch.
//!
//! Written by [`SegmentWriter`], read by [`SegmentReader`]. Both trust a file only as far as its checksums: what a crash cut
//! short at the end is cut off when writing goes on, and ends a reading. Bases, retention and replay need images and are in
//! `replica::archive`; `docs/image-format.md` draws the bytes.

mod reader;
mod writer;

use std::io;
use std::path::{Path, PathBuf};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::remedy;
use crate::types::{Generation, GroupId, Lsn};

pub use reader::{ArchivedRecord, SegmentReader};
pub use writer::SegmentWriter;

/// Largest batch: a record may be a quarter of the largest ring, and a reader holds one batch in memory.
pub const MAX_BATCH: u64 = super::format::MAX_RING / 4 + 4096;

const MAGIC: [u8; 8] = *b"PMHASEG\x01";
const BATCH_MAGIC: u32 = u32::from_le_bytes(*b"PHB\x01");
const PREFIX: &str = "seg-";

/// Why a segment could not be written or read.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
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
    /// Not a segment of this group.
    #[error("{} {what}", path.display())]
    Unfit {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// A batch that does not consist of whole records, each following on the one before.
    #[error("a batch from {lsn} is not a sequence of whole records; nothing was written")]
    BadBatch {
        /// Where it should begin.
        lsn: Lsn,
    },
}

impl SegmentError {
    fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SegmentError {
        let path = path.to_owned();
        move |source| SegmentError::Io { what, path, source }
    }
}

/// What a segment is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentId {
    /// The group.
    pub group: GroupId,
    /// Generation of its records.
    pub generation: Generation,
    /// Where its first record begins.
    pub first: Lsn,
}

impl SegmentId {
    /// The file's name; names sort as positions do.
    pub fn file_name(first: Lsn) -> String {
        format!("{PREFIX}{:020}", first.0)
    }

    /// The first position that a file's name says; `None`: no segment.
    pub fn parse_name(name: &str) -> Option<Lsn> {
        name.strip_prefix(PREFIX)?.parse().ok().map(Lsn)
    }
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct FileHeader {
    magic: [u8; 8],
    group: [u8; 16],
    first: u64,
    created_ns: u64,
    generation: u32,
    reserved: [u32; 4],
    crc: u32,
}

const FILE_HEADER: usize = size_of::<FileHeader>();
const _: () = assert!(FILE_HEADER == 64);

impl FileHeader {
    fn new(id: SegmentId, created_ns: u64) -> FileHeader {
        let mut header = FileHeader {
            magic: MAGIC,
            group: id.group.0,
            first: id.first.0,
            created_ns,
            generation: id.generation.0,
            reserved: [0; 4],
            crc: 0,
        };
        header.crc = crc32c::crc32c(&header.as_bytes()[..FILE_HEADER - 4]);
        header
    }

    fn check(bytes: &[u8; FILE_HEADER], group: GroupId) -> Result<SegmentId, &'static str> {
        let header = FileHeader::read_from_bytes(bytes).expect("the sizes are equal");
        if header.magic != MAGIC || header.crc != crc32c::crc32c(&bytes[..FILE_HEADER - 4]) {
            return Err("is not an archive segment or its header is damaged");
        }
        if header.group != group.0 {
            return Err("belongs to another group");
        }
        Ok(SegmentId { group, generation: Generation(header.generation), first: Lsn(header.first) })
    }
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct BatchHeader {
    magic: u32,
    /// CRC32C of this header with 0 here.
    crc: u32,
    lsn: u64,
    /// Bytes of records that follow.
    len: u64,
    time_ns: u64,
}

const BATCH_HEADER: usize = size_of::<BatchHeader>();
const _: () = assert!(BATCH_HEADER == 32);

impl BatchHeader {
    fn new(lsn: Lsn, len: u64, time_ns: u64) -> BatchHeader {
        let header = BatchHeader { magic: BATCH_MAGIC, crc: 0, lsn: lsn.0, len, time_ns };
        BatchHeader { crc: crc32c::crc32c(header.as_bytes()), ..header }
    }

    /// The header, if it is that of a batch that begins at `lsn`.
    fn check(bytes: &[u8; BATCH_HEADER], lsn: Lsn) -> Option<BatchHeader> {
        let header = BatchHeader::read_from_bytes(bytes).expect("the sizes are equal");
        let fits = header.magic == BATCH_MAGIC
            && header.lsn == lsn.0
            && (1..=MAX_BATCH).contains(&header.len)
            && header.crc == BatchHeader::new(lsn, header.len, header.time_ns).crc;
        fits.then_some(header)
    }
}
