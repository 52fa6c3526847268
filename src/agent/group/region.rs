//! Which descriptors become regions, and what the log is told of a new one.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::{io, slice};

use rustix::fs::{FileType, Mode, OFlags, fchmod, fcntl_getfl, fgetxattr, fstat, major, minor};

use super::reader::{Owner, Reader};
use super::{Group, GroupError, Inner, Notice, Region};
use crate::file_id::FileId;
use crate::log::appender::AppendError;
use crate::log::format::{Kind, MAX_REGION_BYTES, region_path};
use crate::log::{Debt, RegionEntry};
use crate::region::content::device_size;
use crate::types::{Lsn, PAGE, RegionId};

/// Why a descriptor is not protected. The text goes to the application.
#[derive(Debug, thiserror::Error)]
pub enum ProtectError {
    /// No pattern names it; not an error, the application goes on.
    #[error("{} is not among the paths that the group protects", .0.display())]
    NotNamed(PathBuf),
    /// It cannot be protected.
    #[error("{what} cannot be protected: {why}")]
    Unfit {
        /// The descriptor's path, as far as known.
        what: String,
        /// Why, and what to do.
        why: String,
    },
    /// The group cannot take it.
    #[error(transparent)]
    Group(#[from] GroupError),
}

/// What the kernel says of a descriptor that is to become a region.
pub(super) struct Candidate {
    path: PathBuf,
    id: FileId,
    mode: u32,
    owner: Owner,
    access: OFlags,
    size: u64,
}

/// A file that is about to become a region.
pub(super) struct Newcomer {
    region: Arc<Region>,
    /// No byte of it is other than zero.
    empty: bool,
    /// Its content may fit into the log at once.
    small: bool,
}

impl Newcomer {
    pub(super) fn region(&self) -> &Region {
        &self.region
    }

    /// Payload of the record that creates it.
    fn creation(&self) -> Vec<u8> {
        if self.small && !self.empty {
            self.region.arrival()
        } else {
            self.region.creation(self.region.len())
        }
    }
}

impl Group {
    /// Protects the file behind `fd`, which the caller got from a `client`: `len` bytes, or its size if 0. Returns the region
    /// and the LSN just past its creation. A file that is protected already keeps its number.
    ///
    /// `explicit`: also if no pattern names it. The client's right is its descriptor, which must be open for writing; and it must
    /// have the right to read, since the log, which it maps, gets the content.
    pub fn protect_for(
        &self,
        client: &Reader,
        fd: BorrowedFd<'_>,
        len: u64,
        explicit: bool,
    ) -> Result<(Arc<Region>, Lsn), ProtectError> {
        let candidate = Candidate::examine(fd)?;
        candidate.check_access(client, fd)?;
        if !explicit && !self.patterns().matches(&candidate.path) {
            return Err(ProtectError::NotNamed(candidate.path));
        }
        // Whoever names a file itself may have mapped it long ago.
        self.protect_candidate(fd, candidate, len, explicit)
    }

    /// `mapped`: a process that records what it does may have mapped it already.
    pub(super) fn protect_candidate(
        &self,
        fd: BorrowedFd<'_>,
        candidate: Candidate,
        len: u64,
        mapped: bool,
    ) -> Result<(Arc<Region>, Lsn), ProtectError> {
        let len = if len == 0 { candidate.size } else { len };
        let unfit = |why: String| candidate.unfit(why);
        if len > MAX_REGION_BYTES {
            return Err(unfit(format!("{len} bytes; the limit is {} TiB", MAX_REGION_BYTES >> 40)));
        }
        let mut inner = self.lock();
        let same = |r: &&Arc<Region>| r.id_of_file == candidate.id;
        let partial = len < candidate.size;
        if let Some(region) = inner.regions.values().find(same).cloned() {
            let (rest, was_partial) = (region.at_rest(), region.partial.fetch_and(partial, Relaxed));
            let saved = if self.rouse(&region) { self.save(&inner) } else { Ok(()) };
            if let Err(error) = saved.and_then(|()| self.grow(&inner, &region, len, was_partial)) {
                // Whoever asks next finds it as it was: what is still to be recorded, and how it was left.
                region.partial.store(was_partial, Relaxed);
                region.set_rest(rest);
                return Err(error.into());
            }
            return Ok((region, self.appender().drain()));
        }
        let file = candidate.open(fd).map_err(|e| unfit(format!("the agent may not read it: {e}")))?;
        let newcomer = self.newcomer(&mut inner, file.into(), &candidate, len, mapped)?;
        let lsn = self.admit(&mut inner, slice::from_ref(&newcomer))?;
        Ok((newcomer.region, lsn))
    }

    /// A region, not entered yet, of a file that has none: `len` bytes of it.
    pub(super) fn newcomer(
        &self,
        inner: &mut Inner,
        file: OwnedFd,
        candidate: &Candidate,
        len: u64,
        mapped: bool,
    ) -> Result<Newcomer, ProtectError> {
        let unfit = |why: String| candidate.unfit(why);
        if len > MAX_REGION_BYTES {
            return Err(unfit(format!("{len} bytes; the limit is {} TiB", MAX_REGION_BYTES >> 40)));
        }
        let limit = self.log().spec().regions;
        let id = inner.numbers.take(limit);
        let id = id.ok_or_else(|| unfit(format!("the group has {} files already, the limit", limit - 1)))?;
        let region = Arc::new(Region {
            id,
            since: AtomicU64::new(0),
            id_of_file: candidate.id,
            mode: candidate.mode & 0o7777,
            file,
            path: Mutex::new(candidate.path.clone()),
            len: AtomicU64::new(len),
            partial: AtomicBool::new(len < candidate.size),
            mapped: AtomicBool::new(mapped),
            rest: Mutex::default(),
        });
        let empty =
            candidate.size == 0 || (candidate.is_regular() && is_hole(region.file(), 0, candidate.size));
        let small = candidate.is_regular() && self.has_room_for(candidate.size.max(len));
        Ok(Newcomer { region, empty, small })
    }

    /// Enters regions, and as much of their content as the log takes at once. Returns the LSN just past that.
    pub(super) fn admit(&self, inner: &mut Inner, newcomers: &[Newcomer]) -> Result<Lsn, GroupError> {
        // An agent that finds a region in the table, while less than all that it has is in the log, has to copy it.
        self.log().owe(Debt::Entry);
        self.add(inner, newcomers)?;
        for newcomer in newcomers {
            let Newcomer { region, empty, small } = newcomer;
            let whole = *empty || (*small && self.has_room_for(region.len()) && self.append_content(region));
            self.entered(region, whole);
        }
        let lsn = self.appender().drain();
        self.log().settle(Debt::Entry);
        Ok(lsn)
    }

    /// All of a region is in the log, or a copy is to bring what is not.
    fn entered(&self, region: &Arc<Region>, whole: bool) {
        if !whole {
            // By whoever begins to ship this log, if nobody does yet.
            self.log().owe(Debt::Copy);
        }
        (self.notify)(Notice::RegionAdded { region: region.clone(), whole });
    }

    /// A process that records what it does maps a region.
    pub(super) fn mark_mapped(&self, inner: &Inner, id: RegionId) {
        let Some(region) = inner.regions.get(&id) else { return };
        if !region.mapped.swap(true, Relaxed)
            && let Err(error) = self.save(inner)
        {
            // Only an agent that comes after this one could forget it.
            tracing::warn!(group = self.name(), %error, "that a region is mapped could not be stored");
        }
    }

    /// Enters regions into the table on disk, the log's table, and the log. In this order: a number that was given out
    /// means no other file, and no record names a region that the table does not have.
    fn add(&self, inner: &mut Inner, newcomers: &[Newcomer]) -> Result<(), GroupError> {
        // A file of the same name that stood there before ceases to be with the new one's creation, unless it went elsewhere
        // and the record of that is still on its way.
        let paths: BTreeSet<_> = newcomers.iter().map(|newcomer| newcomer.region.path()).collect();
        let namesakes: Vec<Arc<Region>> =
            inner.regions.values().filter(|r| paths.contains(&r.path())).cloned().collect();
        let (moved, replaced): (Vec<_>, Vec<_>) =
            namesakes.into_iter().map(|r| (r.path(), r)).partition(|(_, r)| r.is_named());
        for (_, old) in &replaced {
            inner.regions.remove(&old.id());
        }
        inner
            .regions
            .extend(newcomers.iter().map(|newcomer| (newcomer.region.id(), newcomer.region.clone())));
        if let Err(error) = self.save(inner) {
            for Newcomer { region, .. } in newcomers {
                inner.regions.remove(&region.id());
                inner.numbers.ended(region);
            }
            inner.regions.extend(replaced.into_iter().map(|(_, old)| (old.id(), old)));
            return Err(error);
        }
        for (_, old) in &replaced {
            inner.numbers.ended(old);
            self.log().set_region(old.id(), None)?;
        }
        for newcomer in newcomers {
            let region = &newcomer.region;
            self.enter(inner, region)?;
            for (_, moved) in moved.iter().filter(|(before, _)| *before == region.path()) {
                // An image drops whatever has a new region's name. Whoever moved it may have died before it recorded that.
                let name = moved.path();
                let name = name.as_os_str().as_encoded_bytes();
                let _ = self.appender().append(Kind::RegionRename, moved.id(), 0, name);
            }
            region.since.store(self.log().tail().0, Relaxed);
            // While the application is ahead, the copy that closes the gap creates the region.
            let _ = self.appender().append(Kind::RegionCreate, region.id(), 0, &newcomer.creation());
        }
        Ok(())
    }

    /// Whether `bytes` of content fit into the log at once and leave the application most of it.
    pub(super) fn has_room_for(&self, bytes: u64) -> bool {
        let (log, ring) = (self.log(), self.log().spec().ring_bytes);
        bytes <= ring / CONTENT_SHARE && log.tail().since(log.free()) < ring / 2 && !log.is_ahead()
    }

    /// Pages that may be put into the log in a row, so that the application keeps most of it.
    pub(super) fn pages_at_once(&self) -> usize {
        (self.log().spec().ring_bytes / CONTENT_SHARE) as usize / PAGE
    }

    /// Appends the file's content, and then the name that it was kept from until it was whole. Whether all of that is in the
    /// log; else only a copy of all regions brings it.
    fn append_content(&self, region: &Region) -> bool {
        let name = region.path();
        let name = name.as_os_str().as_encoded_bytes();
        self.append_pages(region, 0)
            && self.appender().append(Kind::RegionRename, region.id(), 0, name).is_ok()
    }

    /// Appends what the file holds from the page of `from` on; whether all of it is in the log.
    fn append_pages(&self, region: &Region, from: u64) -> bool {
        let from = from & !(PAGE as u64 - 1);
        let len = (region.len() - from) as usize;
        self.appender().append_from_file(region.id(), from, len, region.file(), true).is_ok()
    }

    /// Gives a region its share of the log's dirty bitmap.
    pub(super) fn enter(&self, inner: &mut Inner, region: &Region) -> Result<(), GroupError> {
        let size = region.len().max(1);
        let mut shifts = PAGE.trailing_zeros()..=MAX_PAGE_SHIFT;
        let used = |shift: u32| inner.numbers.used_share(share(size, shift)).map(|share| (share, shift));
        let (bits, shift) = shifts.clone().find_map(used).unwrap_or_else(|| {
            let room = inner.numbers.fresh_bits(self.log().spec().bitmap_bytes * 8);
            let fits = |shift: &u32| share(size, *shift) <= room / 2;
            let shift = shifts.find(fits).unwrap_or(MAX_PAGE_SHIFT);
            (inner.numbers.fresh_share(share(size, shift)), shift)
        });
        inner.numbers.entered(region.id(), bits);
        let entry = RegionEntry { size, first_bit: bits.first, page_shift: shift };
        Ok(self.log().set_region(region.id(), Some(entry))?)
    }

    /// A region has another size from here on, unless that cannot be stored: then whoever sees the size next finds it new again, and
    /// records it.
    pub(super) fn store_len(&self, inner: &Inner, region: &Region, len: u64) -> Result<(), GroupError> {
        let before = region.len();
        region.set_len(len);
        self.save(inner).inspect_err(|_| region.set_len(before))
    }

    /// Protects a region up to `len`, if that is more than so far.
    pub(super) fn grow(
        &self,
        inner: &Inner,
        region: &Arc<Region>,
        len: u64,
        was_partial: bool,
    ) -> Result<(), GroupError> {
        let old = region.len();
        if len <= old {
            return Ok(());
        }
        self.log().owe(Debt::Entry);
        self.store_len(inner, region, len)?;
        if let Some(entry) = self.log().region(region.id()) {
            self.log().set_region(region.id(), Some(RegionEntry { size: len, ..entry }))?;
        }
        // As for creation: while ahead, the copy says it. Processes grow and cut the file all the time, so the size is looked at
        // once more, in its place; what the table has follows.
        let _ = match region.is_regular() && !region.partial.load(Relaxed) {
            true => self.appender().append_size(region.id(), region.file()).map(drop),
            false => {
                let done = self.appender().append(Kind::RegionResize, region.id(), len, &[]);
                done.map(drop).map_err(AppendError::Ahead)
            }
        };
        // What a whole file grew by was recorded when it was written. Behind a partial end nobody did.
        if was_partial && !is_hole(region.file(), old, len) {
            let small = region.is_regular() && self.has_room_for(len - old);
            self.entered(region, small && self.append_pages(region, old));
        }
        self.log().settle(Debt::Entry);
        Ok(())
    }
}

impl Candidate {
    /// The file, opened anew, since the client's descriptor may be write-only, and would hold on to the client's lock; the magic
    /// link leads to the same file.
    ///
    /// libpmemobj makes a pool with no rights at all, and gives it those that were asked for once it is complete. Until then only root
    /// could open it, so the owner's agent lets itself read it for the moment: the client waits for the answer.
    fn open(&self, fd: BorrowedFd<'_>) -> io::Result<File> {
        let open = || File::options().read(true).open(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        match open() {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied && self.mode & 0o7777 == 0 => {
                // Who gave it rights meanwhile shall have them, before and after.
                let has = |rights: Mode| fstat(fd).is_ok_and(|stat| stat.st_mode & 0o7777 == rights.bits());
                if !has(Mode::empty()) {
                    return open();
                }
                fchmod(fd, Mode::RUSR)?;
                let file = open();
                if has(Mode::RUSR) {
                    fchmod(fd, Mode::empty())?;
                }
                file
            }
            opened => opened,
        }
    }

    /// Asks the kernel about a client's descriptor; nothing that the client says is believed.
    pub(super) fn examine(fd: BorrowedFd<'_>) -> Result<Candidate, ProtectError> {
        let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
        let bad = |e: io::Error| ProtectError::Unfit { what: "the descriptor".into(), why: e.to_string() };
        let path = fs::read_link(link).map_err(bad)?;
        let stat = fstat(fd).map_err(|e| bad(e.into()))?;
        let flags = fcntl_getfl(fd).map_err(|e| bad(e.into()))?;
        let mut candidate = Candidate {
            path,
            id: FileId::of(fd).map_err(bad)?,
            mode: stat.st_mode,
            owner: Owner { uid: stat.st_uid, gid: stat.st_gid },
            access: flags & (OFlags::PATH | OFlags::RWMODE),
            size: stat.st_size as u64,
        };
        let unfit = |why: &str| Err(candidate.unfit(why.into()));
        if !candidate.path.is_absolute() || stat.st_nlink == 0 {
            return unfit("it has no name in the file system, so it could not be found again");
        }
        if region_path(candidate.path.as_os_str().as_encoded_bytes()).is_none() {
            return unfit("its path is longer than 4080 bytes or not UTF-8: give it another name");
        }
        if !FileId::at(&candidate.path).is_ok_and(|found| found == candidate.id) {
            return unfit(
                "the agent does not find it at this path (another mount namespace, or no permission)",
            );
        }
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {}
            FileType::CharacterDevice => match device_size(major(stat.st_rdev), minor(stat.st_rdev)) {
                Some(size) => candidate.size = size,
                None => return unfit("it is no DAX device"),
            },
            _ => return unfit("it is neither a regular file nor a DAX device"),
        }
        Ok(candidate)
    }

    /// Whether the client may have its content in a log that it maps.
    fn check_access(&self, client: &Reader, fd: BorrowedFd<'_>) -> Result<(), ProtectError> {
        if self.access == OFlags::RDWR {
            return Ok(());
        }
        if self.access != OFlags::WRONLY {
            return Err(self.unfit("the descriptor is not open for writing".into()));
        }
        // An entry of a list may take away what the bits grant. Without lists, asking for one fails.
        let listed = fgetxattr(fd, "system.posix_acl_access", &mut [0u8; 0]).is_ok_and(|len| len > 0);
        if client.may_read(self.mode, self.owner, listed) {
            return Ok(());
        }
        let who = client.uid;
        Err(self.unfit(format!(
            "user {who} may write it, but not read it, and the log shows its content: open it for reading as well, or \
             give {who} the right to read it by its mode"
        )))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn id(&self) -> FileId {
        self.id
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    fn unfit(&self, why: String) -> ProtectError {
        ProtectError::Unfit { what: self.path.display().to_string(), why }
    }

    fn is_regular(&self) -> bool {
        FileType::from_raw_mode(self.mode) == FileType::RegularFile
    }
}

/// Bits set aside for a region of `size` bytes at one bit per `1 << shift`: it may double, the bits keeping their meaning.
pub(super) fn share(size: u64, shift: u32) -> u64 {
    size.saturating_mul(2).max(GROWTH_ROOM).div_ceil(1 << shift).next_multiple_of(64)
}

/// Whether the file has no data from `from` to `to`: it was made or extended and nothing was written.
fn is_hole(file: BorrowedFd<'_>, from: u64, to: u64) -> bool {
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(from)) {
        Err(rustix::io::Errno::NXIO) => true,
        Ok(first) => first >= to,
        Err(_) => false,
    }
}

/// A file's content goes into the log with its creation if it takes no more than this part of the ring; else all regions are copied.
const CONTENT_SHARE: u64 = 8;

/// A region's share of the dirty bitmap allows for growth up to this size at least.
const GROWTH_ROOM: u64 = 64 << 20;

/// Coarsest page of the dirty bitmap that the log allows: 1 TiB.
const MAX_PAGE_SHIFT: u32 = 40;
