//! Which file lies behind a range of our own addresses.
//!
//! The C API protects a mapping by its address: the kernel knows the file, and the descriptor that the agent
//! needs is opened here. Only shared mappings of files qualify; for anything else the error says why.
//!
//! Reads `/proc/self/maps`; costs a pass over it a call. Any thread; the caller keeps the range mapped.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, fstat, major, minor, open};

use super::kind::MemoryKind;

/// The file behind a range.
#[derive(Debug)]
pub struct MappedFile {
    /// Opened anew: the descriptor that was mapped may be closed long since.
    pub file: File,
    /// Its path as the kernel shows it.
    pub path: PathBuf,
    /// Offset in the file of the range's first byte.
    pub offset: u64,
    /// How stores to the mapping become persistent.
    pub flush: FlushKind,
}

/// How stores to a mapping become persistent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FlushKind {
    /// By flushing cache lines: DAX and devdax.
    Lines,
    /// They need nothing: memory file systems ([`MemoryKind::is_dram`]).
    Dram,
    /// By `msync`: pages of the page cache.
    Msync,
}

/// Why no file can be named.
#[derive(Debug, thiserror::Error)]
pub enum MappingError {
    /// Nothing is mapped somewhere in the range.
    #[error("nothing is mapped at {0:#x}: give a range within one mapping")]
    Unmapped(usize),
    /// Memory without a file.
    #[error(
        "the memory at {0:#x} is anonymous: only mappings of files can be protected, since only they can be opened on another machine"
    )]
    Anonymous(usize),
    /// Stores do not reach the file.
    #[error("{} is mapped privately at {at:#x}: stores never reach the file; map it with MAP_SHARED", path.display())]
    Private {
        /// The file.
        path: PathBuf,
        /// Where.
        at: usize,
    },
    /// More than one file, or not in file order.
    #[error("the range continues at {at:#x} with another file or another part of {}: protect each piece by itself", path.display())]
    Pieces {
        /// The file at the range's start.
        path: PathBuf,
        /// Where it ends.
        at: usize,
    },
    /// The path does not lead to the mapped file any more.
    #[error("{} is mapped but has been removed or replaced: create it again and map that", path.display())]
    Gone {
        /// The path as the kernel shows it.
        path: PathBuf,
    },
    /// The system refused.
    #[error("{what}: {source}")]
    System {
        /// What was attempted.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
}

impl MappedFile {
    /// Finds and opens the file behind `range`, which is not empty.
    pub fn behind(range: Range<usize>) -> Result<MappedFile, MappingError> {
        let maps = std::fs::read("/proc/self/maps")
            .map_err(|source| MappingError::System { what: "read /proc/self/maps".into(), source })?;
        let first = covering(&parse_maps(&maps), &range)?;
        let file = open_mapped(&first)?;
        let flush = flush_kind(&file, &first, range.start)?;
        let offset = first.offset + (range.start - first.range.start) as u64;
        Ok(MappedFile { file, path: first.path, offset, flush })
    }
}

/// A line of `/proc/self/maps`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Mapping {
    range: Range<usize>,
    shared: bool,
    offset: u64,
    device: (u32, u32),
    inode: u64,
    path: PathBuf,
}

/// The mapping at the start of `range`, if it and its neighbours map one file consecutively up to the range's end.
fn covering(maps: &[Mapping], range: &Range<usize>) -> Result<Mapping, MappingError> {
    let mut at = range.start;
    let mut first: Option<&Mapping> = None;
    while at < range.end {
        let m = maps.iter().find(|m| m.range.contains(&at)).ok_or(MappingError::Unmapped(at))?;
        let start = *first.get_or_insert(m);
        // Shared anonymous memory has a nameless file of the kernel's.
        if m.inode == 0 || m.path == Path::new("/dev/zero (deleted)") {
            return Err(MappingError::Anonymous(at));
        }
        let expected = start.offset.wrapping_add((m.range.start.wrapping_sub(start.range.start)) as u64);
        if (m.device, m.inode, m.offset) != (start.device, start.inode, expected) {
            return Err(MappingError::Pieces { path: start.path.clone(), at });
        }
        if !m.shared {
            return Err(MappingError::Private { path: m.path.clone(), at });
        }
        at = m.range.end;
    }
    first.cloned().ok_or(MappingError::Unmapped(range.start))
}

fn open_mapped(mapping: &Mapping) -> Result<File, MappingError> {
    // By address where we may: it finds files that were renamed. Else by name, and then it must be the same file.
    let by_address = format!("/proc/self/map_files/{:x}-{:x}", mapping.range.start, mapping.range.end);
    let opened = open_either(Path::new(&by_address)).or_else(|_| open_either(&mapping.path));
    let gone = || MappingError::Gone { path: mapping.path.clone() };
    let file = opened.map_err(|e| match e {
        rustix::io::Errno::NOENT => gone(),
        e => MappingError::System { what: format!("open {}", mapping.path.display()), source: e.into() },
    })?;
    let what = || format!("look at {}", mapping.path.display());
    let stat = fstat(&file).map_err(|e| MappingError::System { what: what(), source: e.into() })?;
    let device = (major(stat.st_dev), minor(stat.st_dev));
    // By address a file is found that has no name any more: no other machine could open that.
    // Some file systems (btrfs, overlayfs) show another device in maps than in stat: the inode must do there.
    if stat.st_nlink == 0 || stat.st_ino != mapping.inode || (device != mapping.device && device.0 != 0) {
        return Err(gone());
    }
    Ok(file)
}

fn open_either(path: &Path) -> Result<File, rustix::io::Errno> {
    let flags = OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK;
    open(path, flags | OFlags::RDWR, Mode::empty())
        .or_else(|_| open(path, flags | OFlags::RDONLY, Mode::empty()))
        .map(File::from)
}

fn flush_kind(file: &File, mapping: &Mapping, at: usize) -> Result<FlushKind, MappingError> {
    let failed =
        |source| MappingError::System { what: format!("look at {}", mapping.path.display()), source };
    if file.metadata().map_err(failed)?.file_type().is_char_device() {
        return Ok(FlushKind::Lines);
    }
    if MemoryKind::of(file).map_err(failed)?.is_dram() {
        return Ok(FlushKind::Dram);
    }
    let smaps = std::fs::read("/proc/self/smaps").map_err(failed)?;
    Ok(if mapped_sync(&smaps, at) { FlushKind::Lines } else { FlushKind::Msync })
}

/// Whether the mapping at `at` was made with MAP_SYNC: only DAX grants it, and only then are flushed lines safe
/// without `msync`.
fn mapped_sync(smaps: &[u8], at: usize) -> bool {
    let mut here = false;
    for line in smaps.split(|b| *b == b'\n') {
        if let Some(range) = parse_range(line.split(|b| *b == b' ').next().unwrap_or_default()) {
            here = range.contains(&at);
        } else if here && let Some(flags) = line.strip_prefix(b"VmFlags:") {
            return flags.split(|b| *b == b' ').any(|flag| flag == b"sf");
        }
    }
    false
}

fn parse_maps(maps: &[u8]) -> Vec<Mapping> {
    maps.split(|b| *b == b'\n').filter_map(parse_line).collect()
}

/// `start-end perms offset major:minor inode path`, the path after any number of spaces.
fn parse_line(line: &[u8]) -> Option<Mapping> {
    let mut rest = line;
    let mut field = || {
        rest = rest.trim_ascii_start();
        let end = rest.iter().position(|b| *b == b' ').unwrap_or(rest.len());
        let (field, more) = rest.split_at(end);
        rest = more;
        std::str::from_utf8(field).ok()
    };
    let range = parse_range(field()?.as_bytes())?;
    let shared = field()?.as_bytes().get(3) == Some(&b's');
    let offset = u64::from_str_radix(field()?, 16).ok()?;
    let (major, minor) = field()?.split_once(':')?;
    let device = (u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?);
    let inode = field()?.parse().ok()?;
    Some(Mapping { range, shared, offset, device, inode, path: unescape(rest.trim_ascii_start()) })
}

fn parse_range(field: &[u8]) -> Option<Range<usize>> {
    let (start, end) = std::str::from_utf8(field).ok()?.split_once('-')?;
    Some(usize::from_str_radix(start, 16).ok()?..usize::from_str_radix(end, 16).ok()?)
}

/// The kernel escapes only the newline, as `\012`.
fn unescape(path: &[u8]) -> PathBuf {
    let mut plain = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&byte, more)) = rest.split_first() {
        let (byte, more) = rest.strip_prefix(b"\\012").map_or((byte, more), |after| (b'\n', after));
        plain.push(byte);
        rest = more;
    }
    PathBuf::from(OsString::from_vec(plain))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::region::memory::{Access, SharedMem};
    use proptest::prelude::*;
    use std::fs::OpenOptions;
    use std::os::unix::fs::MetadataExt;

    fn file_of(dir: &Path, name: &str, len: u64) -> File {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(dir.join(name))
            .unwrap();
        file.set_len(len).unwrap();
        file
    }

    fn range(mem: &SharedMem, from: usize, len: usize) -> Range<usize> {
        let start = mem.addr(from) as usize;
        start..start + len
    }

    #[test]
    fn the_file_behind_a_mapping_is_found_after_a_rename_and_a_newline() {
        let dir = tempfile::tempdir().unwrap();
        let file = file_of(dir.path(), "a pool", 1 << 16);
        let mem = SharedMem::map(file.as_fd(), 8192, 1 << 15, Access::ReadWrite).unwrap();
        std::fs::rename(dir.path().join("a pool"), dir.path().join("re\nnamed")).unwrap();
        let found = MappedFile::behind(range(&mem, 100, 5000)).unwrap();
        assert_eq!(found.offset, 8292);
        assert_eq!(found.path, dir.path().join("re\nnamed"));
        assert_eq!(found.file.metadata().unwrap().ino(), file.metadata().unwrap().ino());
    }

    #[test]
    fn a_memory_file_system_needs_no_msync() {
        let shm = tempfile::tempdir_in("/dev/shm").unwrap();
        let file = file_of(shm.path(), "pool", 4096);
        let mem = SharedMem::map(file.as_fd(), 0, 4096, Access::ReadWrite).unwrap();
        assert_eq!(MappedFile::behind(range(&mem, 0, 4096)).unwrap().flush, FlushKind::Dram);
    }

    #[test]
    fn what_is_no_shared_file_mapping_is_refused_with_the_reason() {
        let none = SharedMem::anonymous(4096).unwrap();
        // The kernel backs shared anonymous memory by a nameless file, "/dev/zero (deleted)".
        assert!(matches!(MappedFile::behind(range(&none, 0, 10)), Err(MappingError::Anonymous(_))));
        let local = [0u8; 64];
        let at = local.as_ptr() as usize;
        assert!(matches!(MappedFile::behind(at..at + 64), Err(MappingError::Anonymous(_))));
        assert!(matches!(MappedFile::behind(16..32), Err(MappingError::Unmapped(16))));
    }

    #[test]
    fn a_range_over_two_files_is_refused() {
        let maps = parse_maps(
            b"1000-2000 rw-s 00000000 08:01 7 /a\n2000-3000 rw-s 00001000 08:01 7 /a\n3000-4000 rw-s 00002000 08:01 8 /b\n5000-6000 rw-p 00000000 08:01 7 /a\n",
        );
        assert_eq!(covering(&maps, &(0x1100..0x2900)).unwrap().path, Path::new("/a"));
        assert!(matches!(covering(&maps, &(0x1100..0x3001)), Err(MappingError::Pieces { at: 0x3000, .. })));
        assert!(matches!(covering(&maps, &(0x3000..0x4001)), Err(MappingError::Unmapped(0x4000))));
        assert!(matches!(covering(&maps, &(0x5000..0x5001)), Err(MappingError::Private { .. })));
    }

    #[test]
    fn map_sync_is_read_from_the_right_mapping() {
        let smaps = b"1000-2000 rw-s 0 08:01 7 /a\nSize: 4 kB\nVmFlags: rd wr sh sf \n2000-3000 rw-s 0 08:01 8 /b\nVmFlags: rd wr sh \n";
        assert!(mapped_sync(smaps, 0x1800));
        assert!(!mapped_sync(smaps, 0x2800));
    }

    proptest! {
        #[test]
        fn no_line_of_maps_panics(line: Vec<u8>) {
            let _ = parse_line(&line);
        }
    }
}
