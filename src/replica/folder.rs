//! A directory that files are put into, held open, so that nothing done there follows a link that appeared since.
//!
//! The directories of a promotion may belong to the application's user, who can swap a link into any of them at any moment, while
//! the agent works there with its own rights. So each directory is reached once, descriptor by descriptor, and everything
//! else is done to a name in it. Links are followed in the configured part of the path only where the operator made them
//! (root, or the agent's own user), and below it only as far as they stay below. Called by `paths` and `place`.

use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, ResolveFlags, Stat, fstat, fsync, linkat, mkdirat,
    openat, openat2, readlinkat, renameat_with, statat, unlinkat,
};
use rustix::io::Errno;

use crate::file_id::FileId;

/// A directory, open, and the path that it was reached by.
#[derive(Debug)]
pub(super) struct Folder {
    fd: OwnedFd,
    path: PathBuf,
}

impl Folder {
    /// The directory `below` of the configured one `root`; makes what is not there, and makes that durable.
    ///
    /// `EXDEV` if a link in `below` leads out of `root`.
    pub fn make(root: &Path, below: &Path) -> io::Result<Folder> {
        let top = walk(root, Missing::Make)?.expect("made");
        let mut at = top.try_clone()?;
        let mut reached = PathBuf::new();
        for step in below.components() {
            reached.push(step);
            at = match beneath(&top, &reached) {
                Err(Errno::NOENT) => {
                    make_one(&at, step.as_os_str())?;
                    beneath(&top, &reached)
                }
                other => other,
            }?;
        }
        // The others are good for reaching things only; this one is synced.
        let fd = openat(&at, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Folder { fd, path: root.join(below) })
    }

    /// Whether [`Folder::make`] would find or could make it, as far as what is there by now decides. Makes nothing.
    pub fn check(root: &Path, below: &Path) -> io::Result<()> {
        let Some(top) = walk(root, Missing::Leave)? else { return Ok(()) };
        let mut at = top.try_clone()?;
        let mut reached = PathBuf::new();
        for step in below.components() {
            reached.push(step);
            at = match beneath(&top, &reached) {
                // A link that leads nowhere is in the way of the directory.
                Err(Errno::NOENT) => match statat(&at, step.as_os_str(), AtFlags::SYMLINK_NOFOLLOW) {
                    Err(Errno::NOENT) => return Ok(()),
                    _ => Err(Errno::NOENT),
                },
                other => other,
            }?;
        }
        Ok(())
    }

    /// The path of `name` in it, for messages.
    pub fn path_of(&self, name: &OsStr) -> PathBuf {
        self.path.join(name)
    }

    /// What `name` is, a link being a link; `None` if there is nothing.
    pub fn stat(&self, name: &OsStr) -> io::Result<Option<Stat>> {
        match statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Which file `name` is, a link being a link; `None` if there is nothing.
    pub fn identity(&self, name: &OsStr) -> io::Result<Option<FileId>> {
        match FileId::within(&self.fd, name) {
            Ok(id) => Ok(Some(id)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Opens the file `name` for reading and writing. `ELOOP` if it is a link.
    pub fn open(&self, name: &OsStr) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(openat(&self.fd, name, flags, Mode::empty())?.into())
    }

    /// Makes the file `name`, which only its owner can open. `EEXIST` if anything has that name.
    pub fn create(&self, name: &OsStr) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(openat(&self.fd, name, flags, Mode::RUSR | Mode::WUSR)?.into())
    }

    /// Gives the file at `from`, a path that nobody else can change, the name `name` as well.
    pub fn link(&self, from: &Path, name: &OsStr) -> io::Result<()> {
        Ok(linkat(CWD, from, &self.fd, name, AtFlags::empty())?)
    }

    /// Takes the name `name` away, if it is there.
    pub fn remove(&self, name: &OsStr) -> io::Result<()> {
        match unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Renames within it, unless something has that name.
    pub fn rename(&self, from: &OsStr, to: &OsStr) -> io::Result<()> {
        Ok(renameat_with(&self.fd, from, &self.fd, to, RenameFlags::NOREPLACE)?)
    }

    /// Makes its names durable.
    pub fn sync(&self) -> io::Result<()> {
        Ok(fsync(&self.fd)?)
    }
}

/// What to do about directories that are not there.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Make,
    Leave,
}

const REACH: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Reaches `path` from the root step by step, following links that are the operator's. `None` if it is not there and was to
/// be left so.
fn walk(path: &Path, missing: Missing) -> io::Result<Option<OwnedFd>> {
    let start = |path: &Path| openat(CWD, if path.is_absolute() { c"/" } else { c"." }, REACH, Mode::empty());
    let mut at = start(path)?;
    let mut left: VecDeque<OsString> = steps(path).collect();
    let mut links = 0;
    while let Some(step) = left.pop_front() {
        let look = || openat(&at, &*step, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
        let next = match look() {
            Err(Errno::NOENT) if missing == Missing::Leave => return Ok(None),
            Err(Errno::NOENT) => {
                make_one(&at, &step)?;
                look()?
            }
            other => other?,
        };
        let stat = fstat(&next)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => at = next,
            FileType::Symlink => {
                trust(path, &step, &stat)?;
                links += 1;
                if links > MAX_LINKS {
                    return Err(Errno::LOOP.into());
                }
                let target = readlinkat(&next, c"", Vec::new())?;
                let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                if target.is_absolute() {
                    at = start(&target)?;
                }
                steps(&target).collect::<Vec<_>>().into_iter().rev().for_each(|step| left.push_front(step));
            }
            _ => return Err(Errno::NOTDIR.into()),
        }
    }
    Ok(Some(at))
}

fn steps(path: &Path) -> impl Iterator<Item = OsString> + '_ {
    path.components().filter_map(|c| match c {
        Component::Normal(step) => Some(step.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

/// Whoever made a link decides where it leads: an error unless that is somebody who may decide where files go.
fn trust(path: &Path, step: &OsStr, link: &Stat) -> io::Result<()> {
    if [0, rustix::process::geteuid().as_raw()].contains(&link.st_uid) {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "{:?} in {} is a symbolic link of user {}, who could have it lead anywhere: remove it, name where it leads in `paths`, or \
         have it made by root",
        step,
        path.display(),
        link.st_uid
    )))
}

fn make_one(at: impl AsFd, name: &OsStr) -> io::Result<()> {
    match mkdirat(&at, name, Mode::from_raw_mode(0o777)) {
        // Somebody else has made it; or a link that leads nowhere is there, which whoever looks next finds.
        Err(Errno::EXIST) => return Ok(()),
        made => made?,
    }
    let at = openat(&at, c".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    Ok(fsync(at)?)
}

/// Reaches `path` from `top` without leaving that.
fn beneath(top: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    for _ in 1..MAX_RACES {
        match openat2(top, path, REACH, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => {}
            other => return other,
        }
    }
    openat2(top, path, REACH, Mode::empty(), resolve)
}

/// Links in a path: the kernel's own limit.
const MAX_LINKS: u32 = 40;

/// Times that the kernel may be unsure, because something was renamed meanwhile, whether a `..` has led out.
const MAX_RACES: u32 = 100;
