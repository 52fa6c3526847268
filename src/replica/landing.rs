//! The landing ring: where a source's records land by one-sided writes, and the redo log of the image.
//!
//! A file of one header page and the ring, of the size of the source's ring and with the same offsets. It belongs to
//! one log of one group. A file that does not fit is never used: it is set aside under another name and said so.
//! `docs/image-format.md` draws the header.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::store::{RingFile, Store};
use crate::log::format::{MAX_RING, MIN_RING, RecordHeader};
use crate::log::scan::{Scan, scan_ring};
use crate::region::memory::SharedMem;
use crate::remedy;
use crate::types::{Generation, GroupId, LogId, Lsn};

/// File name in the replica's directory.
pub const FILE: &str = "landing";

const MAGIC: [u8; 8] = *b"PMHALND\x01";

/// Most set-aside files kept of one name, so that a fault that repeats does not fill the disk.
const MAX_ASIDE: u32 = 8;

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    group: [u8; 16],
    generation: u32,
    reserved: [u8; 16],
    ring_bytes: [u8; 8],
    log: [u8; 8],
    crc: u32,
}

const HEADER: usize = size_of::<Header>();
const _: () = assert!(HEADER == 64);

/// Why there is no ring to be used.
#[derive(Debug, thiserror::Error)]
pub enum LandingError {
    /// The system refused.
    #[error("cannot {what} {}: {source}{}", path.display(), remedy::of(source))]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("{} {what}; it was not used and is now {}", path.display(), aside.display())]
    SetAside {
        /// The file's place.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
        /// Where it is now.
        aside: PathBuf,
    },
    /// The ring's size cannot be mirrored.
    #[error("a ring of {bytes} bytes cannot be mirrored: a power of two from {MIN_RING} to {MAX_RING} can")]
    Size {
        /// What was asked for.
        bytes: u64,
    },
}

/// An open landing ring.
pub struct Landing {
    ring: Arc<dyn RingFile>,
    of: Of,
    ring_bytes: u64,
}

/// Whose records a ring takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Of {
    /// Generation of the log.
    pub generation: Generation,
    /// Its identity.
    pub log: LogId,
}

impl Landing {
    /// Creates the ring, in place of any other. The new one appears whole or not at all.
    pub fn create(
        store: &dyn Store,
        dir: &Path,
        group: GroupId,
        of: Of,
        ring_bytes: u64,
    ) -> Result<Landing, LandingError> {
        if !fits(ring_bytes) {
            return Err(LandingError::Size { bytes: ring_bytes });
        }
        let Of { generation, log } = of;
        let mut header = Header {
            magic: MAGIC,
            group: group.0,
            generation: generation.0,
            reserved: [0; 16],
            ring_bytes: ring_bytes.to_le_bytes(),
            log: log.0.to_le_bytes(),
            crc: 0,
        };
        header.crc = crc32c::crc32c(&header.as_bytes()[..HEADER - 4]);
        let (path, temp) = (dir.join(FILE), dir.join(format!("{FILE}.new")));
        let io = |what| move |source| LandingError::Io { what, path: dir.join(FILE), source };
        if let Err(source) = store.create_ring(&temp, header.as_bytes(), ring_bytes) {
            // What it got of a full disk, others need.
            let _ = store.remove_file(&temp);
            return Err(io("allocate")(source));
        }
        store.rename(&temp, &path).map_err(io("put in place"))?;
        store.sync_dir(dir).map_err(io("make durable"))?;
        let ring = store.open_ring(&path, ring_bytes).map_err(io("map"))?;
        Ok(Landing { ring, of, ring_bytes })
    }

    /// Opens the ring that is there; `None` if there is none. One that is damaged or another group's is set aside.
    pub fn open(store: &dyn Store, dir: &Path, group: GroupId) -> Result<Option<Landing>, LandingError> {
        let path = dir.join(FILE);
        let io = |what| move |source| LandingError::Io { what, path: dir.join(FILE), source };
        let names = store.list(dir).map_err(io("look for"))?;
        if !names.iter().any(|n| n == FILE) {
            return Ok(None);
        }
        let head = store.read_head(&path, HEADER).map_err(io("read"))?;
        let header = match check(&head, group) {
            Ok(header) => header,
            Err(what) => return Err(set_aside(store, dir, what)),
        };
        let ring_bytes = u64::from_le_bytes(header.ring_bytes);
        let of = Of { generation: Generation(header.generation), log: LogId(u64::from_le_bytes(header.log)) };
        match store.open_ring(&path, ring_bytes) {
            Ok(ring) => Ok(Some(Landing { ring, of, ring_bytes })),
            Err(e) if e.kind() == std::io::ErrorKind::InvalidData => {
                Err(set_aside(store, dir, "is shorter than its header says"))
            }
            Err(e) => Err(io("map")(e)),
        }
    }

    /// The memory that a source is to write to; offset 0 is the ring's.
    pub fn memory(&self) -> &Arc<SharedMem> {
        self.ring.memory()
    }

    /// Whose records it takes.
    pub fn of(&self) -> Of {
        self.of
    }

    /// Bytes of the ring.
    pub fn ring_bytes(&self) -> u64 {
        self.ring_bytes
    }

    /// Offset of `lsn` in the ring.
    pub fn offset(&self, lsn: Lsn) -> usize {
        (lsn.0 & (self.ring_bytes - 1)) as usize
    }

    /// The record at `lsn`, if all of it has landed. The header is a private copy: what the peer does to the ring
    /// afterwards changes nothing that is decided by it.
    pub fn record(&self, lsn: Lsn) -> Option<RecordHeader> {
        match scan_ring(self.ring.memory(), self.of.generation, lsn) {
            // Positions near the end of their range are nothing that a source comes to.
            Scan::Record(header) if header.lsn.checked_add(self.ring_bytes).is_some() => Some(header),
            _ => None,
        }
    }

    /// Makes the records from `from` to `to` durable.
    pub fn sync(&self, from: Lsn, to: Lsn, again: bool) -> std::io::Result<()> {
        match to.since(from) {
            0 => Ok(()),
            len => self.ring.sync(self.offset(from), len as usize, again),
        }
    }
}

fn fits(ring_bytes: u64) -> bool {
    ring_bytes.is_power_of_two() && (MIN_RING..=MAX_RING).contains(&ring_bytes)
}

fn check(head: &[u8], group: GroupId) -> Result<Header, &'static str> {
    let header = Header::read_from_bytes(head).map_err(|_| "is cut off")?;
    if header.magic != MAGIC || header.crc != crc32c::crc32c(&head[..HEADER - 4]) {
        return Err("is not a landing ring or its header is damaged");
    }
    if header.group != group.0 {
        return Err("belongs to another group");
    }
    if !fits(u64::from_le_bytes(header.ring_bytes)) {
        return Err("has an impossible size");
    }
    Ok(header)
}

fn set_aside(store: &dyn Store, dir: &Path, what: &'static str) -> LandingError {
    let path = dir.join(FILE);
    let names = store.list(dir).unwrap_or_default();
    let free = (1..MAX_ASIDE).map(|n| format!("{FILE}.set-aside-{n}")).find(|n| !names.contains(n));
    let aside = dir.join(free.unwrap_or_else(|| format!("{FILE}.set-aside-{MAX_ASIDE}")));
    match store.rename(&path, &aside).and_then(|()| store.sync_dir(dir)) {
        Ok(()) => LandingError::SetAside { path, what, aside },
        Err(source) => LandingError::Io { what: "set aside the damaged ring", path, source },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::store::disk::DiskStore;
    use crate::types::Durability;

    #[test]
    fn the_header_is_golden() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let store = DiskStore::new(Durability::Battery);
        let of = Of { generation: Generation(7), log: LogId(9) };
        Landing::create(&store, dir.path(), GroupId([3; 16]), of, MIN_RING).unwrap();
        let bytes = store.read_head(&dir.path().join(FILE), HEADER).unwrap();
        let mut golden = b"PMHALND\x01".to_vec();
        golden.extend([3; 16]);
        golden.extend(b"\x07\0\0\0");
        golden.extend([0; 16]);
        golden.extend(MIN_RING.to_le_bytes());
        golden.extend(b"\x09\0\0\0\0\0\0\0");
        golden.extend(crc32c::crc32c(&golden).to_le_bytes());
        assert_eq!(bytes, golden);
    }
}
