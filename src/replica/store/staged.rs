//! A landing ring for adapters that cannot be given a file's memory: records land in memory of its own, and come into the
//! file when they are made durable.
//!
//! Files with DAX and files that are written back cannot stay in place for an adapter, so the peer writes to a memfd of
//! the same size. Nothing is acknowledged as durable before it is in the file, and nothing else is promised: what landed and
//! was not made durable is lost with the agent, and the source still has it.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::RingFile;
use super::disk::DiskRing;
use crate::region::memory::{Access, SharedMem};

pub(super) struct StagedRing {
    stage: Arc<SharedMem>,
    file: DiskRing,
}

impl StagedRing {
    /// Memory that holds what the file holds.
    pub(super) fn over(file: DiskRing) -> io::Result<StagedRing> {
        let bytes = file.memory().len();
        let memfd = memfd_create("pmemha-stage", MemfdFlags::CLOEXEC)?;
        ftruncate(&memfd, bytes as u64)?;
        let stage = SharedMem::map_ring(memfd.as_fd(), 0, bytes, Access::ReadWrite)?;
        file.memory().copy_to(0, &stage, 0, bytes);
        Ok(StagedRing { stage: Arc::new(stage), file })
    }
}

impl RingFile for StagedRing {
    fn memory(&self) -> &Arc<SharedMem> {
        &self.stage
    }

    fn sync(&self, offset: usize, len: usize, again: bool) -> io::Result<()> {
        // Both are mapped twice, so a range that runs past the end is one range here as well.
        self.stage.copy_to(offset, self.file.memory(), offset, len);
        self.file.sync(offset, len, again)
    }
}

#[cfg(test)]
mod tests {
    use crate::replica::store::Store;
    use crate::replica::store::disk::DiskStore;
    use crate::types::Durability;

    const RING: u64 = 64 << 10;

    #[test]
    fn only_what_was_synced_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let (store, file) = (DiskStore::staged(Durability::Disk), dir.path().join("ring"));
        store.create_ring(&file, b"header", RING).unwrap();
        let ring = store.open_ring(&file, RING).unwrap();
        ring.memory().write(RING as usize - 4, b"kept over the end");
        ring.memory().write(1000, b"landed only");
        ring.sync(RING as usize - 4, 17, false).unwrap();
        drop(ring);
        let again = store.open_ring(&file, RING).unwrap();
        let (mut kept, mut lost) = ([0; 17], [1; 11]);
        again.memory().read(RING as usize - 4, &mut kept);
        again.memory().read(1000, &mut lost);
        assert_eq!((&kept, lost), (b"kept over the end", [0; 11]));
        let plain = DiskStore::new(Durability::Disk).open_ring(&file, RING).unwrap();
        plain.memory().read(RING as usize - 4, &mut kept);
        assert_eq!(&kept, b"kept over the end");
    }
}
