//! A protected file: its number in the log, its present name and size, and where it is found again.

use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use rustix::fs::{FileType, Mode, OFlags, Stat, fstat, open};
use zerocopy::IntoBytes;

use super::region::ProtectError;
use super::rest::Rest;
use crate::agent::state::RegionState;
use crate::file_id::FileId;
use crate::locks::lock;
use crate::log::format::{ARRIVING, MAX_REGION_BYTES, RegionPayload, region_path};
use crate::types::{Lsn, RegionId};

/// A protected file.
#[derive(Debug)]
pub struct Region {
    pub(super) id: RegionId,
    pub(super) id_of_file: FileId,
    pub(super) since: AtomicU64,
    pub(super) mode: u32,
    pub(super) file: OwnedFd,
    pub(super) path: Mutex<PathBuf>,
    pub(super) len: AtomicU64,
    /// Only the file's beginning is protected, not what lies or grows behind it.
    pub(super) partial: AtomicBool,
    /// A process that records what it does has mapped it: what is in no record may be stores that nobody flushed, by right.
    pub(super) mapped: AtomicBool,
    /// How the file was left by the last process that had it open; none while one may have it open.
    pub(super) rest: Mutex<Option<Rest>>,
}

/// Where a region's file is by now.
#[derive(Debug, PartialEq, Eq)]
enum Whereabouts {
    /// It has this name.
    At(PathBuf),
    /// It has no name any more.
    Gone,
    /// The name cannot be looked up from here, or no record can have it.
    Unknown,
}

impl Region {
    /// Number in the log.
    pub fn id(&self) -> RegionId {
        self.id
    }

    /// The path it was protected by, or renamed to since.
    pub fn path(&self) -> PathBuf {
        lock(&self.path).clone()
    }

    /// Bytes protected.
    pub fn len(&self) -> u64 {
        self.len.load(Relaxed)
    }

    /// Bytes protected by what the file system says of the file, ahead of the records that tell of its size.
    pub fn len_now(&self) -> u64 {
        match fstat(&self.file) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile => self.len(),
            Ok(stat) if self.partial.load(Relaxed) => self.len().min(stat.st_size as u64),
            Ok(stat) => stat.st_size as u64,
            Err(_) => self.len(),
        }
    }

    /// Whether all of a file is protected, however large it gets.
    pub(super) fn is_whole(&self) -> bool {
        self.is_regular() && !self.partial.load(Relaxed)
    }

    /// Whether no byte is protected.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Access bits as of `stat(2)` when it was protected.
    pub fn mode(&self) -> u32 {
        self.mode
    }

    /// Whether a process that records what it does may have mapped it at some time.
    pub fn is_mapped(&self) -> bool {
        self.mapped.load(Relaxed)
    }

    /// How the file was left; none while a process that records what it does may have it open.
    pub fn at_rest(&self) -> Option<Rest> {
        *lock(&self.rest)
    }

    pub(super) fn is_regular(&self) -> bool {
        fstat(&self.file).is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::RegularFile)
    }

    /// The file, open for reading.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Payload of the record that creates it, with its present name and `len` bytes.
    pub fn creation(&self, len: u64) -> Vec<u8> {
        let mut payload = RegionPayload { size: len, mode: self.mode, reserved: 0 }.as_bytes().to_vec();
        payload.extend(self.path().as_os_str().as_encoded_bytes());
        payload
    }

    /// As [`Region::creation`] under a name that no program asks for: no image may show the file's own name with less than its
    /// content.
    pub(super) fn arrival(&self) -> Vec<u8> {
        let mut payload = self.creation(self.len());
        payload.extend(ARRIVING.as_bytes());
        payload
    }

    /// Records below mean an earlier region of this number.
    pub fn since(&self) -> Lsn {
        Lsn(self.since.load(Relaxed))
    }

    pub(super) fn set_len(&self, len: u64) {
        self.len.store(len, Relaxed);
    }

    pub(super) fn set_path(&self, path: PathBuf) {
        *lock(&self.path) = path;
    }

    pub(super) fn set_rest(&self, rest: Option<Rest>) {
        *lock(&self.rest) = rest;
    }

    pub(super) fn take_rest(&self) -> Option<Rest> {
        lock(&self.rest).take()
    }

    pub(super) fn state(&self) -> RegionState {
        RegionState {
            region: self.id,
            path: self.path(),
            file: self.id_of_file,
            len: self.len(),
            partial: self.partial.load(Relaxed),
            mapped: self.is_mapped(),
            rest: self.at_rest(),
        }
    }

    /// Follows the file to its present name. Its present size; none if it has no name any more or can be no region.
    pub(super) fn follow(&self) -> Option<u64> {
        match self.whereabouts() {
            Whereabouts::Gone => return None,
            Whereabouts::At(path) => self.set_path(path),
            Whereabouts::Unknown => {}
        }
        let len = self.len_now();
        if len > MAX_REGION_BYTES {
            // No destination takes it, so no copy would ever end.
            let (path, limit) = (self.path(), MAX_REGION_BYTES >> 40);
            tracing::error!(path = %path.display(), len, "not protected any more: larger than {limit} TiB");
            return None;
        }
        Some(len)
    }

    /// Whether `path` leads to the file.
    pub(super) fn is_at(&self, path: &Path) -> bool {
        FileId::at_itself(path).is_ok_and(|found| found == self.id_of_file)
    }

    /// Whether the file has a name; it is then known by its present one.
    pub(super) fn is_named(&self) -> bool {
        match self.whereabouts() {
            Whereabouts::At(now) => {
                self.set_path(now);
                true
            }
            Whereabouts::Gone | Whereabouts::Unknown => false,
        }
    }

    fn whereabouts(&self) -> Whereabouts {
        let Ok(path) = fs::read_link(format!("/proc/self/fd/{}", self.file.as_raw_fd())) else {
            return Whereabouts::Unknown;
        };
        match FileId::at(&path) {
            Ok(found) if found == self.id_of_file => match region_path(path.as_os_str().as_encoded_bytes()) {
                Some(_) => Whereabouts::At(path),
                None => {
                    let known = self.path();
                    let (known, path) = (known.display(), path.display());
                    tracing::warn!(%known, %path, "replicated under its former name: the new one is too long or not UTF-8");
                    Whereabouts::Unknown
                }
            },
            _ if path.as_os_str().as_encoded_bytes().ends_with(DELETED) => Whereabouts::Gone,
            _ => Whereabouts::Unknown,
        }
    }

    /// Finds the file of an earlier agent's region again; an error says what stands in its place.
    pub(super) fn reopen(state: &RegionState) -> Result<Region, ProtectError> {
        let unfit = |why: String| ProtectError::Unfit { what: state.path.display().to_string(), why };
        let (file, stat) = open_itself(&state.path, state.file).map_err(unfit)?;
        Ok(Region {
            id: state.region,
            id_of_file: state.file,
            since: AtomicU64::new(0),
            mode: stat.st_mode & 0o7777,
            file,
            path: Mutex::new(state.path.clone()),
            len: AtomicU64::new(state.len),
            partial: AtomicBool::new(state.partial),
            mapped: AtomicBool::new(state.mapped),
            rest: Mutex::new(state.rest),
        })
    }
}

/// Opens for reading what is at `path` if it is file `id`, else says what stands there. Its directory may be an
/// application's, which could have put a link there to a file that only the agent may read.
pub(super) fn open_itself(path: &Path, id: FileId) -> Result<(OwnedFd, Stat), String> {
    // A pipe, which could be there too, must not keep us waiting for its other end.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = open(path, flags, Mode::empty()).map_err(|e| e.to_string())?;
    let stat = fstat(&file).map_err(|e| e.to_string())?;
    let itself = FileId::of(&file).map_err(|e| e.to_string())? == id;
    itself.then_some((file, stat)).ok_or_else(|| "another file has taken its place".into())
}

/// What the kernel adds to the name of a file that has none any more.
const DELETED: &[u8] = b" (deleted)";
