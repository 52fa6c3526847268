//! Putting one region's file at its place, in steps that may be cut anywhere.
//!
//! 1. beside its place, under a name of ours: a second link to the image's file, or a synced copy of it where the
//!    place is on another file system; access bits, owner, and a PMDK pool's shutdown state are set there;
//! 2. its identity goes to the journal;
//! 3. what is at the place is set aside; 4. the file is renamed to it, never over anything.
//!
//! Everything goes by names in an open directory, and each file is known by its identity: whoever owns the directory may
//! swap what is in it between any two steps, and gets a refusal for it.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, SeekFrom, seek};
use serde::{Deserialize, Serialize};

use super::folder::Folder;
use super::image::set::RegionFilePath;
use super::paths::{PathError, Place};
use super::pmdk;
use super::promote::PromoteError;
use crate::file_id::FileId;
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
    /// Which file that is.
    pub file: FileId,
    /// Bytes.
    pub bytes: u64,
    /// How it got there.
    pub how: How,
    /// Where the file is that had been there.
    pub aside: Option<PathBuf>,
    /// What was done to a PMDK pool's header, or why not.
    pub pmdk: Option<String>,
}

/// Called before each durable step with its name; an error of its ends the attempt there.
pub type Step<'a> = dyn FnMut(&'static str) -> io::Result<()> + 'a;

/// Whether a file of this name lies beside its place: what was set aside there, or was to be put there.
pub fn is_beside(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    let numbers = |text: &str| {
        text.split_once('-').is_some_and(|(a, b)| [a, b].iter().all(|n| n.parse::<u32>().is_ok()))
    };
    let part = name.strip_prefix(".pmemha-").and_then(|rest| rest.strip_suffix(".part"));
    part.is_some_and(numbers) || name.rsplit_once(".before-").is_some_and(|(_, rest)| numbers(rest))
}

/// Where a region's file is to be: a name in a directory, whatever becomes of the directory's own path.
pub(super) struct Spot {
    folder: Folder,
    name: OsString,
    generation: Generation,
}

impl Spot {
    pub fn new(place: &Place, generation: Generation) -> Result<Spot, PathError> {
        let name = place.path.file_name().unwrap_or_default().to_owned();
        Ok(Spot { folder: place.prepare()?, name, generation })
    }

    fn fail(&self, what: &'static str) -> impl FnOnce(io::Error) -> PromoteError {
        let path = self.folder.path_of(&self.name);
        move |source| PromoteError::Io { what, path, source }
    }

    fn aside(&self, n: u32) -> OsString {
        let mut name = self.name.clone();
        name.push(format!(".before-{}-{n}", self.generation));
        name
    }

    /// What an attempt that was cut short may have set aside.
    fn newest_aside(&self) -> Option<PathBuf> {
        let there = |name: &OsString| matches!(self.folder.stat(name), Ok(Some(_)));
        (1..=MAX_ASIDE).map(|n| self.aside(n)).take_while(there).last().map(|name| self.folder.path_of(&name))
    }
}

/// A file of ours beside its place, durable.
pub(super) struct Part {
    name: OsString,
    pub(super) id: FileId,
    how: How,
    pmdk: Option<String>,
}

/// What an earlier attempt put there: the file whose identity it had noted.
pub(super) fn already(
    region: &RegionFilePath,
    spot: &Spot,
    known: Option<&FileId>,
) -> Result<Option<Placed>, PromoteError> {
    let Some(known) = known else { return Ok(None) };
    if spot.folder.identity(&spot.name).map_err(spot.fail("look at"))? != Some(*known) {
        return Ok(None);
    }
    let same = open_same(&spot.folder, &spot.name, *known);
    let pmdk = same.and_then(|file| clear(&file)).map_err(spot.fail("prepare"))?;
    Ok(Some(placed((region, *known), spot, How::Already, spot.newest_aside(), pmdk)))
}

/// Makes the file beside its place.
pub(super) fn prepare(
    region: &RegionFilePath,
    spot: &Spot,
    owner: Option<(u32, u32)>,
    step: &mut Step<'_>,
) -> Result<Part, PromoteError> {
    let name = OsString::from(format!(".pmemha-{}-{}.part", spot.generation, region.entry.id));
    step("part").and_then(|()| spot.folder.remove(&name)).map_err(spot.fail("prepare"))?;
    let (how, id) = link_or_copy(&region.path, &spot.folder, &name).map_err(spot.fail("copy to"))?;
    let dressed = step("dress")
        .and_then(|()| open_same(&spot.folder, &name, id))
        .and_then(|file| dress(&file, region.entry.mode, owner));
    let pmdk = dressed.map_err(spot.fail("prepare"))?;
    Ok(Part { name, id, how, pmdk })
}

/// Sets aside what is at the place, and puts the file there.
pub(super) fn put(
    region: &RegionFilePath,
    spot: &Spot,
    part: Part,
    step: &mut Step<'_>,
) -> Result<Placed, PromoteError> {
    let aside = set_aside(spot, step).map_err(spot.fail("set aside"))?;
    step("rename")
        .and_then(|()| spot.folder.rename(&part.name, &spot.name))
        // Whoever owns the directory may have exchanged the part; the image is not given up for that.
        .and_then(|()| check_same(spot.folder.identity(&spot.name)?, part.id))
        .map_err(spot.fail("put in place"))?;
    step("sync").and_then(|()| spot.folder.sync()).map_err(spot.fail("make durable"))?;
    Ok(placed((region, part.id), spot, part.how, aside, part.pmdk))
}

fn placed(
    (region, file): (&RegionFilePath, FileId),
    spot: &Spot,
    how: How,
    aside: Option<PathBuf>,
    pmdk: Option<String>,
) -> Placed {
    let entry = &region.entry;
    let (name, path) = (entry.name.clone(), spot.folder.path_of(&spot.name));
    Placed { region: entry.id, name, path, file, bytes: entry.size, how, aside, pmdk }
}

fn link_or_copy(from: &Path, folder: &Folder, name: &OsStr) -> io::Result<(How, FileId)> {
    match folder.link(from, name) {
        Ok(()) => Ok((How::Linked, FileId::at_itself(from)?)),
        Err(e) if e.kind() == io::ErrorKind::CrossesDevices => {
            let to = folder.create(name)?;
            fill_sparse(from, &to)?;
            Ok((How::Copied, FileId::of(&to)?))
        }
        Err(e) => Err(e),
    }
}

/// Copies the allocated parts of a file into a new one that only its owner can open, and syncs it.
pub fn copy_sparse(from: &Path, to: &Path) -> io::Result<File> {
    let to = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    fill_sparse(from, &to)?;
    Ok(to)
}

/// Fills an empty file with the allocated parts of another one, and syncs it.
fn fill_sparse(from: &Path, to: &File) -> io::Result<()> {
    let from = File::open(from)?;
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
    to.sync_all()
}

/// Opens the file `name`, which must be that one: the directory may belong to a user who puts another in its place, and what
/// follows is done with our rights.
fn open_same(folder: &Folder, name: &OsStr, id: FileId) -> io::Result<File> {
    check_same(folder.identity(name)?, id)?;
    let file = folder.open(name)?;
    check_same(Some(FileId::of(&file)?), id)?;
    Ok(file)
}

fn check_same(found: Option<FileId>, id: FileId) -> io::Result<()> {
    if found == Some(id) {
        return Ok(());
    }
    Err(io::Error::other(
        "somebody put another file or a link in its place, or took it away: see who writes to that directory; the copy is kept, \
         and the promotion can be tried again",
    ))
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

fn set_aside(spot: &Spot, step: &mut Step<'_>) -> io::Result<Option<PathBuf>> {
    let Some(there) = spot.folder.stat(&spot.name)? else { return Ok(spot.newest_aside()) };
    match FileType::from_raw_mode(there.st_mode) {
        FileType::RegularFile | FileType::Symlink => {}
        FileType::Directory => {
            return Err(io::Error::new(io::ErrorKind::IsADirectory, "a directory is in the file's place"));
        }
        _ => return Err(io::Error::other("a device is in the file's place: name a file in `paths`")),
    }
    for n in 1..=MAX_ASIDE {
        let aside = spot.aside(n);
        step("aside")?;
        match spot.folder.rename(&spot.name, &aside) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            done => return done.map(|()| Some(spot.folder.path_of(&aside))),
        }
    }
    Err(io::Error::other(format!("{MAX_ASIDE} files were set aside there before: remove some")))
}
