//! Where a replica keeps its bytes: the seam between what is done and what it is done to.
//!
//! Every durable step of a replica goes through [`Store`], so that a test can count the steps, cut the power at any
//! of them and lose what was not yet durable. [`disk::DiskStore`] is the real one.
//!
//! Durability: nothing is durable before the matching `sync` returned. A failed `sync` leaves it unknown which
//! bytes are durable: callers write them again.

mod bitmap;
pub mod disk;
mod mapped;
pub mod sealed;
mod staged;

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::region::memory::SharedMem;

/// Bytes to be written: ours, or in memory that a peer may write.
#[derive(Clone, Copy)]
pub enum Bytes<'a> {
    /// Private bytes.
    Slice(&'a [u8]),
    /// `len` bytes from `offset` of shared memory.
    Shared {
        /// The memory.
        memory: &'a SharedMem,
        /// First byte.
        offset: usize,
        /// Number of bytes.
        len: usize,
    },
}

impl<'a> Bytes<'a> {
    /// Number of bytes.
    pub fn len(&self) -> usize {
        match self {
            Bytes::Slice(b) => b.len(),
            Bytes::Shared { len, .. } => *len,
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// `len` of these bytes from `at`.
    pub fn part(&self, at: usize, len: usize) -> Bytes<'a> {
        match *self {
            Bytes::Slice(b) => Bytes::Slice(&b[at..at + len]),
            Bytes::Shared { memory, offset, len: whole } => {
                assert!(at + len <= whole);
                Bytes::Shared { memory, offset: offset + at, len }
            }
        }
    }

    /// Copies them out; `dst` is as long as they are.
    pub fn copy_to(&self, dst: &mut [u8]) {
        match self {
            Bytes::Slice(b) => dst.copy_from_slice(b),
            Bytes::Shared { memory, offset, .. } => memory.read(*offset, dst),
        }
    }

    /// Copies them into shared memory.
    pub fn copy_into(&self, dst: &SharedMem, at: usize) {
        match self {
            Bytes::Slice(b) => dst.write(at, b),
            Bytes::Shared { memory, offset, len } => memory.copy_to(*offset, dst, at, *len),
        }
    }
}

/// A file system as a replica uses it. Paths come from the replica, never from a record.
pub trait Store: Send + Sync + fmt::Debug {
    /// Makes a directory; fine if it exists.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// Names in a directory; those that are not UTF-8 are not ours and left out.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// A small file's content; an error if it is longer than `limit` bytes.
    fn read(&self, file: &Path, limit: u64) -> io::Result<Vec<u8>>;
    /// The first `len` bytes of a file, fewer if it is shorter.
    fn read_head(&self, file: &Path, len: usize) -> io::Result<Vec<u8>>;
    /// Creates or replaces a small file in place and makes its content durable.
    fn write(&self, file: &Path, bytes: &[u8]) -> io::Result<()>;
    /// Renames; durable after `sync_dir`.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a file; fine if there is none.
    fn remove_file(&self, file: &Path) -> io::Result<()>;
    /// Removes a directory with all it holds; fine if there is none.
    fn remove_dir(&self, dir: &Path) -> io::Result<()>;
    /// Makes a directory's entries durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Opens a file, cutting or extending it (with zeros) to `size`. `fresh` creates or empties it; otherwise it must be
    /// there.
    fn region(&self, file: &Path, size: u64, fresh: bool) -> io::Result<Box<dyn RegionFile>>;
    /// XXH3 of `count` blocks of a region file from number `first` on, each of `block` bytes; zeros behind its end. Beside whoever
    /// writes it.
    fn block_digests(&self, file: &Path, block: usize, first: u64, count: usize) -> io::Result<Vec<u64>>;
    /// Creates a ring file: `header` in its first page, then `ring_bytes` zero bytes, all of it allocated and durable.
    fn create_ring(&self, file: &Path, header: &[u8], ring_bytes: u64) -> io::Result<()>;
    /// Maps the ring of a file that `create_ring` made.
    fn open_ring(&self, file: &Path, ring_bytes: u64) -> io::Result<Arc<dyn RingFile>>;
}

/// A region's bytes in an image. Sparse: bytes never written are zero.
pub trait RegionFile: Send {
    /// Writes within the size. Running out of space is an error, never a signal.
    fn write(&mut self, offset: u64, bytes: Bytes<'_>) -> io::Result<()>;
    /// A hint that the byte at `offset` is about to be written.
    fn expect(&self, _offset: u64) {}
    /// Makes `len` bytes zero, within the size.
    fn zero(&mut self, offset: u64, len: u64) -> io::Result<()>;
    /// Cuts, or extends with zeros.
    fn resize(&mut self, size: u64) -> io::Result<()>;
    /// Reads within the size.
    fn read(&mut self, offset: u64, into: &mut [u8]) -> io::Result<()>;
    /// Makes everything done so far durable.
    fn sync(&mut self) -> io::Result<()>;
}

/// The landing ring's bytes, mapped twice in succession.
pub trait RingFile: Send + Sync {
    /// The ring.
    fn memory(&self) -> &Arc<SharedMem>;
    /// Makes `len` bytes from `offset` durable; may run past the end into the second mapping. `again`: an earlier
    /// attempt failed, so the system may have forgotten that they are not.
    fn sync(&self, offset: usize, len: usize, again: bool) -> io::Result<()>;
}

/// Replaces a small file atomically: after a crash the old or the new content is there, never a mixture.
pub fn replace(store: &dyn Store, dir: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temp = dir.join(format!("{name}.new"));
    store.write(&temp, bytes)?;
    store.rename(&temp, &dir.join(name))?;
    store.sync_dir(dir)
}
