//! What a file is: its identity beyond names and descriptors.
//!
//! Inode numbers are used again after a file is deleted, so the time of birth belongs to the identity where the
//! file system keeps one.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::PathBuf;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatxFlags, makedev, statx};

use super::content::device_size;

/// Which file, on this machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity {
    /// Device of the file system.
    pub dev: u64,
    /// Inode number.
    pub ino: u64,
    /// Birth in nanoseconds since 1970; 0 where the file system does not keep it.
    pub born: i64,
}

/// What sort of object an open descriptor is, as far as protection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// A regular file.
    Regular,
    /// A devdax character device.
    Devdax,
    /// A directory: its fsync makes names durable.
    Directory,
    /// Nothing that could be protected: pipes, sockets, terminals.
    Other,
}

/// What is known of an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Which file.
    pub identity: Identity,
    /// What sort.
    pub sort: Sort,
    /// Size in bytes.
    pub size: u64,
    /// Number of names.
    pub links: u32,
}

impl Facts {
    /// Asks the kernel about an open descriptor.
    pub fn of(fd: impl AsFd) -> io::Result<Facts> {
        let fd = fd.as_fd();
        facts(fd, c"", AtFlags::EMPTY_PATH)
    }

    /// Asks the kernel about the file that `path`, relative to `dir`, names; a symbolic link is itself.
    pub fn at(dir: BorrowedFd<'_>, path: &std::ffi::CStr) -> io::Result<Facts> {
        facts(dir, path, AtFlags::SYMLINK_NOFOLLOW)
    }
}

fn facts(dir: BorrowedFd<'_>, path: &std::ffi::CStr, flags: AtFlags) -> io::Result<Facts> {
    let s = statx(dir, path, flags, StatxFlags::BASIC_STATS | StatxFlags::BTIME)?;
    let born = if s.stx_mask & StatxFlags::BTIME.bits() != 0 {
        s.stx_btime.tv_sec * 1_000_000_000 + i64::from(s.stx_btime.tv_nsec)
    } else {
        0
    };
    let sort = match FileType::from_raw_mode(u32::from(s.stx_mode)) {
        FileType::RegularFile => Sort::Regular,
        FileType::Directory => Sort::Directory,
        FileType::CharacterDevice if is_devdax(s.stx_rdev_major, s.stx_rdev_minor) => Sort::Devdax,
        _ => Sort::Other,
    };
    let size = match sort {
        Sort::Devdax => device_size(s.stx_rdev_major, s.stx_rdev_minor).unwrap_or_default(),
        _ => s.stx_size,
    };
    Ok(Facts {
        identity: Identity { dev: makedev(s.stx_dev_major, s.stx_dev_minor), ino: s.stx_ino, born },
        sort,
        size,
        links: s.stx_nlink,
    })
}

/// Terminals, /dev/null and the like have major numbers that are fixed; sysfs is asked about the others only.
fn is_devdax(major: u32, minor: u32) -> bool {
    const FIXED_MAJORS: [u32; 5] = [1, 4, 5, 10, 136];
    if FIXED_MAJORS.contains(&major) {
        return false;
    }
    rustix::fs::readlink(format!("/sys/dev/char/{major}:{minor}/subsystem"), Vec::new())
        .is_ok_and(|link| link.to_bytes().ends_with(b"/dax"))
}

/// The path under which a descriptor was opened, or that its file has been given since. `None` for what has
/// no name (any more).
pub fn path_of(fd: impl AsFd) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStringExt;
    let link = format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd());
    let bytes = rustix::fs::readlink(link, Vec::with_capacity(256)).ok()?.into_bytes();
    let named = bytes.starts_with(b"/") && !bytes.ends_with(b" (deleted)");
    named.then(|| PathBuf::from(std::ffi::OsString::from_vec(bytes)))
}

/// Opens the file behind `path` again for `access`, for a helper that must not disturb the program's descriptor.
///
/// Closing such a descriptor drops the POSIX locks that this process holds on the file: it is for processes
/// that hold none.
pub fn open_again(path: &std::path::Path, access: OFlags) -> io::Result<std::os::fd::OwnedFd> {
    Ok(rustix::fs::open(path, access | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{File, remove_file};

    #[test]
    fn a_file_keeps_its_identity_over_names_and_descriptors() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        let first = File::create(&a).unwrap();
        let before = Facts::of(&first).unwrap();
        assert_eq!(path_of(&first).as_deref(), Some(a.as_path()));
        std::fs::rename(&a, &b).unwrap();
        assert_eq!(Facts::of(File::open(&b).unwrap()).unwrap().identity, before.identity);
        assert_eq!(path_of(&first).as_deref(), Some(b.as_path()));
        remove_file(&b).unwrap();
        assert_eq!(path_of(&first), None);
    }

    #[test]
    fn sorts_are_told_apart() {
        let shm = tempfile::tempfile_in("/dev/shm").unwrap();
        assert_eq!(Facts::of(&shm).unwrap().sort, Sort::Regular);
        assert_eq!(Facts::of(File::open("/").unwrap()).unwrap().sort, Sort::Directory);
        assert_eq!(Facts::of(File::open("/dev/null").unwrap()).unwrap().sort, Sort::Other);
    }
}
