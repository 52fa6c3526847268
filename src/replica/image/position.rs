//! The position file: how far the stream has been applied, durably.
//!
//! Two 64-byte slots, written in turn, so that a write torn by a power cut leaves the one before. The newest slot whose
//! checksum fits counts. `docs/image-format.md` draws it.

use std::path::{Path, PathBuf};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::ImageError;
use crate::replica::store::{Bytes, RegionFile, Store};
use crate::types::{Generation, LogId, Lsn};

/// File name in the replica's directory.
pub const FILE: &str = "position";

const MAGIC: [u8; 4] = *b"PHP\x01";
const SLOT: usize = 64;

/// A place in a stream with the digest of everything before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// Generation of the stream.
    pub generation: Generation,
    /// Everything below has been done.
    pub lsn: Lsn,
    /// Chained digest there.
    pub digest: u64,
}

/// What the position file says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Every record below is durably applied.
    pub at: Cursor,
    /// Records up to here may have been applied in part: a crash is mended by applying them again.
    pub redo_end: Lsn,
    /// Number of the newest image there was: without one at least as new, the directory is not whole. 0: none.
    pub image: u64,
    /// The stream.
    pub stream: Stream,
}

/// Which stream an image follows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stream {
    /// The log that it is of.
    pub log: LogId,
    /// Its number, as the source gave it, which a copy for it alone names.
    pub number: u32,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Slot {
    magic: [u8; 4],
    generation: u32,
    seq: u64,
    lsn: u64,
    digest: u64,
    redo_end: u64,
    image: u64,
    stream: u32,
    log: [u8; 8],
    crc: u32,
}

const _: () = assert!(size_of::<Slot>() == SLOT);

impl Slot {
    fn offset(&self) -> u64 {
        self.seq % 2 * SLOT as u64
    }
}

/// The open file.
pub struct PositionFile {
    path: PathBuf,
    file: Box<dyn RegionFile>,
    seq: u64,
    now: Position,
}

impl PositionFile {
    /// Opens or creates it in `dir`. No valid slot: `None` in place of a position.
    pub fn open(store: &dyn Store, dir: &Path) -> Result<(PositionFile, Option<Position>), ImageError> {
        let path = dir.join(FILE);
        let fail = |e| ImageError::io("open", &path, e);
        let is_new = !store.list(dir).map_err(fail)?.iter().any(|name| name == FILE);
        let mut file = store.region(&path, 2 * SLOT as u64, is_new).map_err(fail)?;
        if is_new {
            file.sync().and_then(|()| store.sync_dir(dir)).map_err(fail)?;
        }
        let mut bytes = [0; 2 * SLOT];
        file.read(0, &mut bytes).map_err(fail)?;
        let newest = bytes.chunks_exact(SLOT).filter_map(decode).max_by_key(|s| s.seq);
        let found = newest.map(|s| Position {
            at: Cursor { generation: Generation(s.generation), lsn: Lsn(s.lsn), digest: s.digest },
            redo_end: Lsn(s.redo_end),
            image: s.image,
            stream: Stream { log: LogId(u64::from_le_bytes(s.log)), number: s.stream },
        });
        let seq = newest.map_or(0, |s| s.seq);
        if let Some(slot) = &newest {
            // It may be in the cache only: writing it may have failed. In place, so that the other slot stays good.
            let again = file.write(slot.offset(), Bytes::Slice(slot.as_bytes())).and_then(|()| file.sync());
            again.map_err(fail)?;
        }
        Ok((PositionFile { path, file, seq, now: found.unwrap_or_default() }, found))
    }

    /// What was last written.
    pub fn now(&self) -> Position {
        self.now
    }

    /// Writes a position, durably.
    pub fn store(&mut self, position: Position) -> Result<(), ImageError> {
        // The sequence moves on also when this fails, but the slot does not: the other one stays the good one.
        let seq = self.seq + 1;
        let slot = Slot {
            magic: MAGIC,
            generation: position.at.generation.0,
            seq,
            lsn: position.at.lsn.0,
            digest: position.at.digest,
            redo_end: position.redo_end.0,
            image: position.image,
            stream: position.stream.number,
            log: position.stream.log.0.to_le_bytes(),
            crc: 0,
        };
        let crc = crc32c::crc32c(&slot.as_bytes()[..SLOT - 4]);
        let slot = Slot { crc, ..slot };
        let done =
            self.file.write(slot.offset(), Bytes::Slice(slot.as_bytes())).and_then(|()| self.file.sync());
        done.map_err(|e| ImageError::io("write", &self.path, e))?;
        self.seq = seq;
        self.now = position;
        Ok(())
    }
}

fn decode(bytes: &[u8]) -> Option<Slot> {
    let slot = Slot::read_from_bytes(bytes).ok()?;
    let fits = slot.magic == MAGIC && slot.crc == crc32c::crc32c(&bytes[..SLOT - 4]);
    fits.then_some(slot)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::store::disk::DiskStore;
    use crate::types::Durability;

    fn at(lsn: u64) -> Position {
        Position {
            at: Cursor { generation: Generation(7), lsn: Lsn(lsn), digest: 9 },
            redo_end: Lsn(lsn + 32),
            image: 5,
            stream: Stream { log: LogId(4), number: 3 },
        }
    }

    #[test]
    fn a_torn_slot_leaves_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let store = DiskStore::new(Durability::Disk);
        let (mut file, none) = PositionFile::open(&store, dir.path()).unwrap();
        assert_eq!(none, None);
        file.store(at(32)).unwrap();
        file.store(at(64)).unwrap();
        let path = dir.path().join(FILE);
        let whole = std::fs::read(&path).unwrap();
        assert_eq!(PositionFile::open(&store, dir.path()).unwrap().1, Some(at(64)));
        for i in 0..SLOT {
            let mut torn = whole.clone();
            torn[i] ^= 0x10;
            std::fs::write(&path, torn).unwrap();
            assert_eq!(PositionFile::open(&store, dir.path()).unwrap().1, Some(at(32)), "byte {i}");
        }
    }

    #[test]
    fn slot_bytes_are_golden() {
        let dir = tempfile::tempdir().unwrap();
        let store = DiskStore::new(Durability::Disk);
        PositionFile::open(&store, dir.path()).unwrap().0.store(at(0x1020)).unwrap();
        let bytes = std::fs::read(dir.path().join(FILE)).unwrap();
        let mut golden =
            b"PHP\x01\x07\0\0\0\x01\0\0\0\0\0\0\0\x20\x10\0\0\0\0\0\0\x09\0\0\0\0\0\0\0".to_vec();
        golden.extend(b"\x40\x10\0\0\0\0\0\0\x05\0\0\0\0\0\0\0");
        golden.extend(b"\x03\0\0\0");
        golden.extend(b"\x04\0\0\0\0\0\0\0");
        golden.extend(crc32c::crc32c(&golden).to_le_bytes());
        assert_eq!(&bytes[SLOT..], golden);
    }
}
