//! Which kind of memory a file gives: whether its lines need flushing, how an adapter may reach it (`docs/fabric.md`, section 11).

use std::os::fd::{AsFd, BorrowedFd};
use std::{fmt, io, ptr};

use rustix::fs::fstatfs;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use serde::{Deserialize, Serialize};

use super::identity::{Facts, Sort};
use crate::types::PAGE;

/// A kind of memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemoryKind {
    /// A DAX device: persistent memory without a file system.
    Devdax,
    /// A file on a file system with DAX: persistent memory, mapped with `MAP_SYNC`.
    Fsdax,
    /// A file of a memory file system: DRAM, behind a battery where it is to last.
    Tmpfs,
    /// The same in huge pages.
    Hugetlbfs,
    /// Anonymous memory behind a descriptor.
    Memfd,
    /// A file behind the page cache.
    File,
}

impl MemoryKind {
    /// That of an open file, by a trial mapping where nothing else tells. A memfd counts as what it is made of.
    pub fn of(file: impl AsFd) -> io::Result<MemoryKind> {
        let file = file.as_fd();
        if Facts::of(file)?.sort == Sort::Devdax {
            return Ok(MemoryKind::Devdax);
        }
        Ok(match fstatfs(file)?.f_type as i64 {
            TMPFS | RAMFS => MemoryKind::Tmpfs,
            HUGETLBFS => MemoryKind::Hugetlbfs,
            _ if maps_sync(file) => MemoryKind::Fsdax,
            _ => MemoryKind::File,
        })
    }

    /// Whether flushing its lines makes nothing more durable: plain DRAM, where a battery keeps the caches too, and without one
    /// nothing lasts.
    pub fn is_dram(self) -> bool {
        matches!(self, MemoryKind::Tmpfs | MemoryKind::Hugetlbfs | MemoryKind::Memfd)
    }

    /// The word in the status.
    pub fn word(self) -> &'static str {
        match self {
            MemoryKind::Devdax => "devdax",
            MemoryKind::Fsdax => "fsdax",
            MemoryKind::Tmpfs => "tmpfs",
            MemoryKind::Hugetlbfs => "hugetlbfs",
            MemoryKind::Memfd => "memfd",
            MemoryKind::File => "file",
        }
    }
}

impl fmt::Display for MemoryKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Whether the kernel grants `MAP_SYNC`, which it does for DAX alone.
fn maps_sync(file: BorrowedFd<'_>) -> bool {
    let flags = MapFlags::SHARED_VALIDATE | MapFlags::SYNC;
    // SAFETY: a mapping at an address of the kernel's choice, never touched and taken away at once.
    unsafe {
        match mmap(ptr::null_mut(), PAGE, ProtFlags::READ, flags, file, 0) {
            Ok(p) => munmap(p, PAGE).is_ok(),
            Err(_) => false,
        }
    }
}

const TMPFS: i64 = 0x0102_1994;
const RAMFS: i64 = 0x8584_58f6;
const HUGETLBFS: i64 = 0x9584_58f6;

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, memfd_create};

    #[test]
    fn files_are_of_the_kind_of_what_they_lie_on() {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        assert_eq!(MemoryKind::of(&file).unwrap(), MemoryKind::Tmpfs);
        let table = std::fs::File::open("/proc/self/maps").unwrap();
        assert_eq!(MemoryKind::of(&table).unwrap(), MemoryKind::File);
        let large = memfd_create("large", MemfdFlags::CLOEXEC | MemfdFlags::HUGETLB).unwrap();
        assert_eq!(MemoryKind::of(&large).unwrap(), MemoryKind::Hugetlbfs);
    }

    #[test]
    fn words_are_those_of_the_document() {
        for kind in [MemoryKind::Devdax, MemoryKind::Fsdax, MemoryKind::Hugetlbfs, MemoryKind::Memfd] {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.word());
        }
    }
}
