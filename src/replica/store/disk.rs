//! The real store: a directory of this machine.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{FallocateFlags, fallocate, fstatfs};

use super::mapped::MappedRegion;
use super::staged::StagedRing;
use super::{RegionFile, RingFile, Store};
use crate::region::content::Content;
use crate::region::memory::{Access, SharedMem};
use crate::region::sampling;
use crate::types::{Durability, PAGE};

/// Offset of the ring in its file: the header has a page of its own.
pub const RING_OFFSET: u64 = PAGE as u64;

const TMPFS: i64 = 0x0102_1994;
const EXT: i64 = 0xef53;
const XFS: i64 = 0x5846_5342;

/// A directory of this machine, whose durability is declared.
#[derive(Clone, Debug)]
pub struct DiskStore {
    durability: Durability,
    staged: bool,
}

impl DiskStore {
    /// A store whose `sync` does what `durability` needs.
    pub fn new(durability: Durability) -> DiskStore {
        DiskStore { durability, staged: false }
    }

    /// The same with rings that land in memory and come into their files when they are made durable: for an adapter that
    /// cannot be given a file's memory. Not where landing alone must be enough.
    pub fn staged(durability: Durability) -> DiskStore {
        let lasts = matches!(durability, Durability::Pmem | Durability::Disk);
        assert!(lasts, "what is staged is lost with the agent");
        DiskStore { durability, staged: true }
    }

    fn syncs(&self) -> bool {
        !matches!(self.durability, Durability::Battery)
    }
}

impl Store for DiskStore {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        match fs::create_dir(dir) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => Ok(()),
            other => other,
        }
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            names.extend(entry?.file_name().into_string().ok());
        }
        Ok(names)
    }

    fn read(&self, file: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(file)?.take(limit + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > limit {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("longer than {limit} bytes")));
        }
        Ok(bytes)
    }

    fn read_head(&self, file: &Path, len: usize) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(file)?.take(len as u64).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn write(&self, file: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut f = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(file)?;
        f.write_all(bytes)?;
        if self.syncs() { f.sync_all() } else { Ok(()) }
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove_file(&self, file: &Path) -> io::Result<()> {
        gone_is_fine(fs::remove_file(file))
    }

    fn remove_dir(&self, dir: &Path) -> io::Result<()> {
        gone_is_fine(fs::remove_dir_all(dir))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        if self.syncs() { File::open(dir)?.sync_all() } else { Ok(()) }
    }

    fn region(&self, file: &Path, size: u64, fresh: bool) -> io::Result<Box<dyn RegionFile>> {
        let f = OpenOptions::new()
            .read(true)
            .write(true)
            .create(fresh)
            .truncate(fresh)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(file)?;
        let may_map = matches!(fstatfs(&f)?.f_type, TMPFS | EXT | XFS);
        Ok(Box::new(MappedRegion::new(f, size, may_map, self.syncs())?))
    }

    fn block_digests(&self, file: &Path, block: usize, first: u64, count: usize) -> io::Result<Vec<u64>> {
        sampling::block_digests(&Content::of(&File::open(file)?)?, block, first, count)
    }

    fn create_ring(&self, file: &Path, header: &[u8], ring_bytes: u64) -> io::Result<()> {
        let mut f = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(file)?;
        fallocate(&f, FallocateFlags::empty(), 0, RING_OFFSET + ring_bytes)?;
        if !matches!(fstatfs(&f)?.f_type, TMPFS) {
            // Written once, so that a later write through the mapping finds initialised blocks: nothing is
            // left to be allocated or converted while the application's records land.
            zero_fill(&mut f, RING_OFFSET + ring_bytes)?;
        }
        std::os::unix::fs::FileExt::write_all_at(&f, header, 0)?;
        if self.syncs() { f.sync_all() } else { Ok(()) }
    }

    fn open_ring(&self, file: &Path, ring_bytes: u64) -> io::Result<Arc<dyn RingFile>> {
        let f = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(file)?;
        if f.metadata()?.len() < RING_OFFSET + ring_bytes {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "shorter than its header says"));
        }
        let memory = SharedMem::map_ring(f.as_fd(), RING_OFFSET, ring_bytes as usize, Access::ReadWrite)?;
        let ring = DiskRing { memory: Arc::new(memory), durability: self.durability };
        if self.staged { Ok(Arc::new(StagedRing::over(ring)?)) } else { Ok(Arc::new(ring)) }
    }
}

/// A ring in its file.
pub(super) struct DiskRing {
    memory: Arc<SharedMem>,
    durability: Durability,
}

impl RingFile for DiskRing {
    fn memory(&self) -> &Arc<SharedMem> {
        &self.memory
    }

    fn sync(&self, offset: usize, len: usize, again: bool) -> io::Result<()> {
        match self.durability {
            Durability::Battery | Durability::Eadr => Ok(()),
            Durability::Pmem => {
                self.memory.persist(offset, len);
                Ok(())
            }
            Durability::Disk => {
                if again {
                    redirty(&self.memory, offset, len);
                }
                // One file behind both mappings: its pages are written back whichever mapping made them dirty.
                self.memory.msync(offset, len)
            }
        }
    }
}

/// After a failed write-back the kernel takes pages for clean that never reached the device. An atomic change of
/// nothing makes them dirty again without disturbing a writer.
fn redirty(memory: &SharedMem, offset: usize, len: usize) {
    for page in (offset & !(PAGE - 1)..offset + len).step_by(PAGE) {
        // Relaxed: only the page's dirty bit matters.
        memory.u8(page).fetch_or(0, Ordering::Relaxed);
    }
}

fn zero_fill(f: &mut File, len: u64) -> io::Result<()> {
    let zeros = vec![0; 1 << 20];
    let mut left = len;
    while left > 0 {
        let n = left.min(zeros.len() as u64);
        f.write_all(&zeros[..n as usize])?;
        left -= n;
    }
    Ok(())
}

fn gone_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
