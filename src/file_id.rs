//! Which file it is, whatever its name: for whoever looks for a file again where others may have put another one.

use std::ffi::OsStr;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Statx, StatxFlags, makedev, statx};
use serde::{Deserialize, Serialize};

/// A file, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileId {
    /// Device of its file system.
    pub device: u64,
    /// Its number there, which another file gets once it is gone.
    pub inode: u64,
    /// When it was made, which tells those two apart: seconds and nanoseconds. None if the file system does not know, and for what
    /// is no regular file: a device's node is made anew with each boot.
    pub born: Option<(i64, u32)>,
}

impl FileId {
    /// An open file.
    pub fn of(file: impl AsFd) -> io::Result<FileId> {
        FileId::look(&file, "".as_ref(), AtFlags::EMPTY_PATH)
    }

    /// What is at `path`; a link there is followed.
    pub fn at(path: &Path) -> io::Result<FileId> {
        FileId::look(CWD, path.as_os_str(), AtFlags::empty())
    }

    /// What is at `path`, a link being a link.
    pub fn at_itself(path: &Path) -> io::Result<FileId> {
        FileId::within(CWD, path.as_os_str())
    }

    /// What is called `name` in an open directory, a link being a link.
    pub fn within(folder: impl AsFd, name: &OsStr) -> io::Result<FileId> {
        FileId::look(folder, name, AtFlags::SYMLINK_NOFOLLOW)
    }

    fn look(from: impl AsFd, name: &OsStr, how: AtFlags) -> io::Result<FileId> {
        let found = statx(from, name, how, StatxFlags::BASIC_STATS | StatxFlags::BTIME)?;
        Ok(FileId {
            device: makedev(found.stx_dev_major, found.stx_dev_minor),
            inode: found.stx_ino,
            born: born(&found),
        })
    }
}

fn born(found: &Statx) -> Option<(i64, u32)> {
    let known = found.stx_mask & StatxFlags::BTIME.bits() != 0;
    let regular = FileType::from_raw_mode(found.stx_mode.into()) == FileType::RegularFile;
    (known && regular).then_some((found.stx_btime.tv_sec, found.stx_btime.tv_nsec))
}

#[cfg(test)]
mod tests {
    use std::fs::{File, hard_link, rename};

    use super::*;

    #[test]
    fn a_file_is_the_same_by_each_of_its_names_and_another_never_is() {
        let dir = tempfile::tempdir().unwrap();
        let [a, b, link] = ["a", "b", "link"].map(|name| dir.path().join(name));
        let file = File::create(&a).unwrap();
        let id = FileId::of(&file).unwrap();
        hard_link(&a, &b).unwrap();
        std::os::unix::fs::symlink(&a, &link).unwrap();
        assert_eq!([&a, &b, &link].map(|path| FileId::at(path).unwrap()), [id; 3]);
        assert_ne!(FileId::at_itself(&link).unwrap(), id);
        rename(&a, dir.path().join("c")).unwrap();
        assert_eq!(FileId::at_itself(&b).unwrap(), id);
        // Its number may be given to the next file, as soon as nobody has it open.
        std::fs::remove_file(&b).unwrap();
        std::fs::remove_file(dir.path().join("c")).unwrap();
        drop(file);
        assert_ne!(FileId::of(File::create(&a).unwrap()).unwrap(), id);
    }
}
