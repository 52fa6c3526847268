//! Protected files, and the records that concern a file as a whole.
//!
//! A [`File`] lives for ever once the agent has given it a region: a hook in another thread may hold it. A region's number may be
//! that of a later file once this process has let go of it. Found by region on the flush path, by identity elsewhere.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use pmemha::log::format::Kind;
use pmemha::region::identity::{Facts, Identity};
use pmemha::types::RegionId;
use rustix::fs::{Mode, OFlags, open};

use crate::report::error;
use crate::{guard, mapping, state};

/// A file that is a region.
pub struct File {
    /// Which file.
    pub identity: Identity,
    /// Its region.
    pub region: RegionId,
    /// Until it loses its last name.
    live: AtomicBool,
    /// Its lines are flushed by libpmem calls.
    flushed: AtomicBool,
    /// Size that the log knows.
    size: AtomicU64,
    /// Streams write to it that pass no hook.
    unseen: AtomicBool,
    /// A descriptor of ours for reading back what went through a write-only one; -1 if none. Closing it would
    /// drop the program's POSIX locks on the file, so it is closed when the program closes one itself.
    reader: AtomicI32,
}

const REGIONS: usize = 1 << 16;

static BY_REGION: [AtomicPtr<File>; REGIONS] = [const { AtomicPtr::new(ptr::null_mut()) }; REGIONS];

/// Touched only within [`guard::slow`], so never locked when a process forks.
static BY_IDENTITY: Mutex<BTreeMap<Identity, &'static File>> = Mutex::new(BTreeMap::new());

fn identities() -> MutexGuard<'static, BTreeMap<Identity, &'static File>> {
    BY_IDENTITY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The file that is `region`.
#[inline]
pub fn by_region(region: RegionId) -> Option<&'static File> {
    // SAFETY: only `add` stores here, files that are never freed.
    unsafe { BY_REGION[usize::from(region.0)].load(Ordering::Acquire).as_ref() }
}

/// The protected file of this identity. Only within [`guard::slow`].
pub fn by_identity(identity: &Identity) -> Option<&'static File> {
    identities().get(identity).copied()
}

/// Notes that the file of these facts is `region`. Only within [`guard::slow`].
pub fn add(facts: &Facts, region: RegionId) -> &'static File {
    let file: &File = Box::leak(Box::new(File {
        identity: facts.identity,
        region,
        live: AtomicBool::new(true),
        flushed: AtomicBool::new(false),
        unseen: AtomicBool::new(false),
        size: AtomicU64::new(facts.size),
        reader: AtomicI32::new(-1),
    }));
    identities().insert(facts.identity, file);
    BY_REGION[usize::from(region.0)].store(ptr::from_ref(file).cast_mut(), Ordering::Release);
    file
}

/// Whether [`File::note_unseen`] was ever called for any file.
static ANY_UNSEEN: AtomicBool = AtomicBool::new(false);

/// Whether any file is written to by streams that pass no hook.
pub fn any_unseen() -> bool {
    ANY_UNSEEN.load(Ordering::Relaxed)
}

/// [`File::record_unseen`] of every file.
pub fn record_all_unseen() {
    if any_unseen() {
        let all = guard::slow(|| identities().values().copied().collect::<Vec<_>>());
        all.unwrap_or_default().into_iter().for_each(File::record_unseen);
    }
}

impl File {
    /// Whether the file still has its name.
    pub fn is_live(&self) -> bool {
        self.live.load(Ordering::Acquire)
    }

    /// Its lines are flushed by libpmem calls: the content that counts is what was flushed.
    #[inline]
    pub fn note_flushed(&self) {
        if !self.flushed.load(Ordering::Relaxed) {
            self.flushed.store(true, Ordering::Relaxed);
        }
    }

    /// Whether [`File::note_flushed`] was ever called.
    pub fn is_flushed(&self) -> bool {
        self.flushed.load(Ordering::Relaxed)
    }

    /// Records `kind` for this file. While the application is ahead the copy that closes the gap says it instead.
    pub fn record(&self, kind: Kind, offset: u64, payload: &[u8]) {
        let Some(session) = state::session() else { return };
        // Ahead is no error here: see above.
        let _ =
            guard::capturing(|| session.appender().append(kind, self.region, offset, payload), state::drain);
    }

    /// Records the file's size if the log knows another. Sizes are read and recorded under the lock of
    /// [`guard::slow`], so that their order in the log is the order in which the file had them.
    pub fn record_size(&self, fd: BorrowedFd<'_>) {
        guard::slow(|| self.record_size_locked(fd));
    }

    /// As [`File::record_size`], within [`guard::slow`].
    pub fn record_size_locked(&self, fd: BorrowedFd<'_>) {
        let Ok(facts) = Facts::of(fd) else { return };
        if self.size.swap(facts.size, Ordering::Relaxed) != facts.size {
            self.record(Kind::RegionResize, facts.size, &[]);
        }
    }

    /// Records a truncation to `size` even if the log knows that size: what lay beyond is gone.
    pub fn record_truncation(&self, size: u64) {
        self.size.store(size, Ordering::Relaxed);
        self.record(Kind::RegionResize, size, &[]);
    }

    /// The size that the log knows.
    pub fn logged_size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    /// Records `[start, end)` as the file holds it now, after a write through `fd`; `end` is clipped to the file's end.
    pub fn record_range(&self, fd: BorrowedFd<'_>, start: u64, end: u64) {
        let Some(session) = state::session().filter(|_| self.is_live()) else { return };
        if start >= end {
            return;
        }
        let _errno = guard::KeepErrno::new();
        if end > self.logged_size() {
            self.record_size(fd);
        }
        let Some(reader) = self.readable(fd) else { return };
        let len = (end - start) as usize;
        let result = guard::capturing(
            || session.appender().append_from_file(self.region, start, len, reader, true),
            state::drain,
        );
        if let Err(pmemha::log::appender::AppendError::Read(e)) = result {
            error!("bytes {start} to {end} of region {} could not be read back: {e}", self.region);
        }
    }

    /// Records that `[start, end)` was made zero, and what others have stored there since. Only within [`guard::slow`].
    pub fn record_zeros_locked(&self, fd: BorrowedFd<'_>, start: u64, end: u64) {
        let Some(session) = state::session() else { return };
        if self.reader.load(Ordering::Acquire) < 0 {
            self.open_reader(fd);
        }
        let reader = self.reader.load(Ordering::Acquire);
        if reader < 0 {
            return;
        }
        // SAFETY: as in `readable`.
        let reader = unsafe { BorrowedFd::borrow_raw(reader) };
        let append = || session.appender().append_zeros(self.region, start, end - start, reader);
        if let Err(pmemha::log::appender::AppendError::Read(e)) = guard::capturing(append, state::drain) {
            error!("the hole from {start} to {end} of region {} could not be read back: {e}", self.region);
        }
    }

    /// `fd` if it can be read from, else a descriptor of ours.
    fn readable<'a>(&self, fd: BorrowedFd<'a>) -> Option<BorrowedFd<'a>> {
        let access = rustix::fs::fcntl_getfl(fd).ok()? & OFlags::RWMODE;
        if access != OFlags::WRONLY {
            return Some(fd);
        }
        if self.reader.load(Ordering::Acquire) < 0 {
            guard::slow(|| self.open_reader(fd));
        }
        let reader = self.reader.load(Ordering::Acquire);
        // SAFETY: the descriptor stays open until the program closes one of its own for this file, which it
        // does not do during a call with one.
        (reader >= 0).then(|| unsafe { BorrowedFd::borrow_raw(reader) })
    }

    fn open_reader(&self, fd: BorrowedFd<'_>) {
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        match open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(own) => {
                let old = self.reader.swap(own.into_raw_fd(), Ordering::AcqRel);
                debug_assert!(old < 0, "opened under the lock, once");
            }
            Err(e) => {
                error!("region {} is written but cannot be read back: {e}; it is not replicated", self.region)
            }
        }
    }

    /// From here on a stream writes to the file that passes no hook; `fd` is its descriptor. Only within [`guard::slow`].
    pub fn note_unseen(&self, fd: BorrowedFd<'_>) {
        if self.reader.load(Ordering::Acquire) < 0 {
            self.open_reader(fd);
        }
        self.unseen.store(true, Ordering::Relaxed);
        ANY_UNSEEN.store(true, Ordering::Relaxed);
    }

    /// Records the whole file as it is now, if [`File::note_unseen`] was ever called.
    pub fn record_unseen(&self) {
        let reader = self.reader.load(Ordering::Acquire);
        if !self.unseen.load(Ordering::Relaxed) || reader < 0 {
            return;
        }
        // SAFETY: the reader of such a file is never closed.
        let reader = unsafe { BorrowedFd::borrow_raw(reader) };
        self.record_size(reader);
        self.record_range(reader, 0, self.logged_size());
    }

    /// The program closes a descriptor of this file: its POSIX locks go in any case, so ours can go too.
    pub fn close_reader(&self) {
        if self.unseen.load(Ordering::Relaxed) {
            return;
        }
        if self.reader.load(Ordering::Relaxed) >= 0 {
            let reader = self.reader.swap(-1, Ordering::AcqRel);
            // SAFETY: a raw system call on a descriptor that we opened and that was ours alone.
            unsafe { libc::syscall(libc::SYS_close, reader) };
        }
    }

    /// The file lost its last name: what happens to it from here on is nobody's. Only within [`guard::slow`].
    pub fn record_unlink(&self) {
        if self.is_live() {
            self.record(Kind::RegionUnlink, 0, &[]);
            self.let_go();
        }
    }

    /// The file has a new name; a region that had it ceases to be, `replaced` if this process knows it. Only within
    /// [`guard::slow`].
    pub fn record_rename(&self, name: &[u8], replaced: Option<&File>) {
        self.record(Kind::RegionRename, 0, name);
        if let Some(other) = replaced.filter(|other| other.is_live()) {
            other.let_go();
        }
    }

    /// Nothing further is recorded for this region, which the agent may then give to another file.
    fn let_go(&self) {
        self.live.store(false, Ordering::Release);
        identities().remove(&self.identity);
        mapping::forget(self.region);
        if let Some(session) = state::session() {
            // An agent that does not hear of it keeps the number for this process.
            let _ = session.release(self.region);
        }
    }
}
