//! Putting one region's file at its place, in steps that may be cut anywhere.
//!
//! 1. beside its place, under a name of ours: a second link to the image's file, or a synced copy of it where the
//!    place is on another file system; access bits, owner, and a PMDK pool's shutdown state are set there;
//! 2. its identity goes to the journal;
//! 3. what is at the place is set aside; 4. the file is renamed to it, never over anything.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, SeekFrom, renameat_with, seek};
use serde::{Deserialize, Serialize};

use super::image::set::RegionFilePath;
use super::pmdk;
use super::promote::PromoteError;
use crate::types::{Generation, RegionId};

/// Access bits when the source's record says none.
const DEFAULT_MODE: u32 = 0o600;

/// Most files set aside at one place: more means that something promotes in a loop.
const MAX_ASIDE: u32 = 1000;

/// Bytes copied at a time. (`copy_file_range` refuses to cross file systems.)
const COPY_BYTES: usize = 1 << 20;

/// How a file came to its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// Without copying.
    Linked,
    /// Copied, since the place is on another file system.
    Copied,
    /// An earlier attempt had put it there.
    Already,
}

/// A region's file at its place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Placed {
    /// The region.
    pub region: RegionId,
    /// Its name at the source.
    pub name: String,
    /// Where it is now.
    pub path: PathBuf,
    /// Bytes.
    pub bytes: u64,
    /// How it got there.
    pub how: How,
    /// Where the file is that had been there.
    pub aside: Option<PathBuf>,
    /// What was done to a PMDK pool's header, or why not.
    pub pmdk: Option<String>,
}

/// A file, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    fn of(meta: &fs::Metadata) -> FileId {
        FileId { device: meta.dev(), inode: meta.ino() }
    }
}

/// Called before each durable step with its name; an error of its ends the attempt there.
pub type Step<'a> = dyn FnMut(&'static str) -> io::Result<()> + 'a;

/// A file of ours beside its place, durable.
pub(super) struct Part {
    path: PathBuf,
    pub(super) id: FileId,
    how: How,
    pmdk: Option<String>,
}

/// What an earlier attempt put at `path`: the file whose identity it had noted.
pub(super) fn already(
    region: &RegionFilePath,
    path: &Path,
    generation: Generation,
    known: Option<&FileId>,
) -> Result<Option<Placed>, PromoteError> {
    let Some(known) = known else { return Ok(None) };
    if identity(path).map_err(fail("look at", path))? != Some(*known) {
        return Ok(None);
    }
    let pmdk = open_same(path, *known).and_then(|file| clear(&file)).map_err(fail("prepare", path))?;
    Ok(Some(placed(region, path, How::Already, newest_aside(path, generation), pmdk)))
}

/// Makes the file beside its place.
pub(super) fn prepare(
    region: &RegionFilePath,
    path: &Path,
    generation: Generation,
    owner: Option<(u32, u32)>,
    step: &mut Step<'_>,
) -> Result<Part, PromoteError> {
    let part = parent(path).join(format!(".pmemha-{generation}-{}.part", region.entry.id));
    step("part").and_then(|()| gone_is_fine(fs::remove_file(&part))).map_err(fail("prepare", path))?;
    let (how, id) = link_or_copy(&region.path, &part).map_err(fail("copy to", path))?;
    let file = open_same(&part, id).map_err(fail("prepare", path))?;
    let pmdk = dress(&file, region.entry.mode, owner).map_err(fail("prepare", path))?;
    Ok(Part { path: part, id, how, pmdk })
}

/// Sets aside what is at the place, and puts the file there.
pub(super) fn put(
    region: &RegionFilePath,
    path: &Path,
    generation: Generation,
    part: Part,
    step: &mut Step<'_>,
) -> Result<Placed, PromoteError> {
    let aside = set_aside(path, generation, step).map_err(fail("set aside", path))?;
    step("rename").and_then(|()| rename_new(&part.path, path)).map_err(fail("put in place", path))?;
    step("sync").and_then(|()| File::open(parent(path))?.sync_all()).map_err(fail("make durable", path))?;
    Ok(placed(region, path, part.how, aside, part.pmdk))
}

fn placed(
    region: &RegionFilePath,
    path: &Path,
    how: How,
    aside: Option<PathBuf>,
    pmdk: Option<String>,
) -> Placed {
    let entry = &region.entry;
    let (name, path) = (entry.name.clone(), path.to_owned());
    Placed { region: entry.id, name, path, bytes: entry.size, how, aside, pmdk }
}

fn parent(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

fn fail(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PromoteError {
    let path = path.to_owned();
    move |source| PromoteError::Io { what, path, source }
}

fn link_or_copy(from: &Path, to: &Path) -> io::Result<(How, FileId)> {
    match fs::hard_link(from, to) {
        Ok(()) => Ok((How::Linked, FileId::of(&fs::symlink_metadata(from)?))),
        Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {
            Ok((How::Copied, FileId::of(&copy_sparse(from, to)?.metadata()?)))
        }
        Err(e) => Err(e),
    }
}

/// Copies the allocated parts of a file into a new one that only its owner can open, and syncs it.
pub fn copy_sparse(from: &Path, to: &Path) -> io::Result<File> {
    let from = File::open(from)?;
    let to = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    let size = from.metadata()?.len();
    to.set_len(size)?;
    let mut buf = vec![0; COPY_BYTES.min(size.max(1) as usize)];
    let mut at = 0;
    while at < size {
        let start = match seek(&from, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => break,
            Err(e) => return Err(e.into()),
        };
        at = start;
        let end = seek(&from, SeekFrom::Hole(start))?;
        while at < end {
            let n = buf.len().min((end - at) as usize);
            from.read_exact_at(&mut buf[..n], at)?;
            to.write_all_at(&buf[..n], at)?;
            at += n as u64;
        }
    }
    to.sync_all()?;
    Ok(to)
}

/// Opens the file at `path`, which must be that one: the directory may belong to a user who puts a link in its place, and
/// what follows is done with our rights.
fn open_same(path: &Path, id: FileId) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
    if FileId::of(&file.metadata()?) != id {
        return Err(io::Error::other("somebody put another file in its place"));
    }
    Ok(file)
}

/// Access bits, owner, shutdown state; durable.
fn dress(part: &File, mode: u32, owner: Option<(u32, u32)>) -> io::Result<Option<String>> {
    let mode = if mode & 0o777 == 0 { DEFAULT_MODE } else { mode & 0o777 };
    let pmdk = clear(part)?;
    part.set_permissions(fs::Permissions::from_mode(mode))?;
    if let Some((user, group)) = owner {
        fchown(part, Some(user), Some(group))?;
    }
    part.sync_all()?;
    Ok(pmdk)
}

fn clear(file: &File) -> io::Result<Option<String>> {
    match pmdk::clear_shutdown_state(file) {
        Ok(None) => Ok(None),
        Ok(Some(pool)) if pool.has_shutdown_state && pool.set => {
            file.sync_all()?;
            Ok(Some(format!("{} pool: shutdown state cleared", pool.library)))
        }
        Ok(Some(pool)) => Ok(Some(format!("{} pool: no shutdown state to clear", pool.library))),
        Err(pmdk::PmdkError::Io(e)) => Err(e),
        Err(e) => Ok(Some(e.to_string())),
    }
}

fn set_aside(path: &Path, generation: Generation, step: &mut Step<'_>) -> io::Result<Option<PathBuf>> {
    match fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(newest_aside(path, generation)),
        Err(e) => return Err(e),
        Ok(meta) if meta.is_dir() => {
            return Err(io::Error::new(io::ErrorKind::IsADirectory, "a directory is in the file's place"));
        }
        Ok(meta) if !meta.is_file() && !meta.is_symlink() => {
            return Err(io::Error::other("a device is in the file's place: name a file in `paths`"));
        }
        Ok(_) => {}
    }
    for n in 1..=MAX_ASIDE {
        let aside = aside_name(path, generation, n);
        step("aside")?;
        match rename_new(path, &aside) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            done => return done.map(|()| Some(aside)),
        }
    }
    Err(io::Error::other(format!("{MAX_ASIDE} files were set aside there before: remove some")))
}

fn aside_name(path: &Path, generation: Generation, n: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".before-{generation}-{n}"));
    name.into()
}

/// What an attempt that was cut short may have set aside.
fn newest_aside(path: &Path, generation: Generation) -> Option<PathBuf> {
    let there = |p: &PathBuf| fs::symlink_metadata(p).is_ok();
    (1..=MAX_ASIDE).map(|n| aside_name(path, generation, n)).take_while(there).last()
}

/// Renames, unless something has that name.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    Ok(renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?)
}

fn identity(path: &Path) -> io::Result<Option<FileId>> {
    match fs::symlink_metadata(path) {
        Ok(meta) => Ok(Some(FileId::of(&meta))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

fn gone_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
