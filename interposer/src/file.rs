//! Protected files, and the records that concern a file as a whole.
//!
//! A [`File`] lives for ever once the agent has given it a region: a hook in another thread may hold it. A region's number may be
//! that of a later file once this process has let go of it. Found by region on the flush path, by identity elsewhere.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use pmemha::log::appender::{Ahead, AppendError};
use pmemha::log::format::{Kind, MAX_REGION_BYTES};
use pmemha::region::identity::{Facts, Identity};
use pmemha::session::Session;
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
    /// Its lines are recorded, and not flushed here.
    pub record_only: bool,
    /// Its lines are flushed by libpmem calls.
    flushed: AtomicBool,
    /// It is mapped, and counts among the files that this process keeps stores to back.
    kept_back: AtomicBool,
    /// What the log knows of the file's size. Written within [`guard::slow`].
    logged: Logged,
    /// Streams write to it that pass no hook.
    unseen: AtomicBool,
    /// A descriptor of ours for reading back what went through a write-only one; -1 if none. Closing it would
    /// drop the program's POSIX locks on the file, so it is closed when the program closes one itself.
    reader: AtomicI32,
    /// Whether the person was told that it cannot be read back.
    told_unread: AtomicBool,
}

/// A size that this process recorded. Other processes grow the file, which they record themselves, and cut it, which they
/// count ([`LogRegion::shrinks`](pmemha::log::LogRegion::shrinks)): so the log has at least this size while the count stands.
#[derive(Default)]
struct Logged {
    size: AtomicU64,
    /// Cuts counted before the size was read.
    shrinks: AtomicU64,
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
pub fn add(facts: &Facts, region: RegionId, record_only: bool) -> &'static File {
    let file: &File = Box::leak(Box::new(File {
        identity: facts.identity,
        region,
        live: AtomicBool::new(true),
        record_only,
        flushed: AtomicBool::new(false),
        kept_back: AtomicBool::new(false),
        unseen: AtomicBool::new(false),
        // Nothing of it is ours: another process may have recorded another one meanwhile.
        logged: Logged::default(),
        told_unread: AtomicBool::new(false),
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

/// Everything that was stored to any file is recorded, and the process ends of its own will.
pub fn keep_nothing_back(session: &Session) {
    // So that nobody counts down afterwards what is not counted any more.
    guard::slow(|| identities().values().for_each(|file| file.kept_back.store(false, Ordering::SeqCst)));
    session.appender().keep_nothing_back();
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
            self.flushed.store(true, Ordering::SeqCst);
            self.keep_nothing_back();
        }
    }

    /// It is about to be mapped: until its program flushes lines, what it stores is recorded no earlier than at an msync. Should
    /// this process be killed before, whoever buries it has to know.
    pub fn note_mapped(&self) {
        if let Some(session) = state::session()
            && !self.is_flushed()
            && !self.kept_back.swap(true, Ordering::SeqCst)
        {
            session.appender().keep_back(1);
            // Pairs with `note_flushed`, which may have looked just before.
            if self.flushed.load(Ordering::SeqCst) {
                self.keep_nothing_back();
            }
        }
    }

    /// The last mapping of it that could be stored to is gone, and what was stored there is recorded. Only within
    /// [`guard::slow`], as is the entering of a mapping: one that is made meanwhile is noted anew.
    pub fn keep_nothing_back(&self) {
        if let Some(session) = state::session()
            && self.kept_back.swap(false, Ordering::SeqCst)
        {
            session.appender().keep_back(-1);
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

    /// Records the file's size.
    pub fn record_size(&self, fd: BorrowedFd<'_>) {
        guard::slow(|| self.record_size_locked(fd));
    }

    /// As [`File::record_size`], within [`guard::slow`]; the size, as far as it is known.
    pub fn record_size_locked(&self, fd: BorrowedFd<'_>) -> u64 {
        let Some(session) = state::session() else { return 0 };
        let shrinks = session.log().shrinks(self.region);
        let append = || session.appender().append_size(self.region, fd);
        let size = match guard::capturing(append, state::drain) {
            Ok(size) => size,
            // The copy that closes the gap says it, or whatever later size this process would have to tell of.
            Err(AppendError::Ahead(_)) => Facts::of(fd).map_or(0, |facts| facts.size),
            Err(AppendError::Read(e)) => {
                self.not_recorded(&format_args!("its size: {e}"));
                0
            }
            Err(AppendError::TooLarge) => {
                self.outgrown();
                0
            }
        };
        self.logged.shrinks.store(shrinks, Ordering::Relaxed);
        // Pairs with `size_is_logged`.
        self.logged.size.store(size, Ordering::Release);
        size
    }

    /// Whether the log knows that the file reaches up to `end`. After the write that made it so.
    fn size_is_logged(&self, session: &Session, end: u64) -> bool {
        // Pairs with `record_size_locked`: a count that is newer than the size only records once too often.
        end <= self.logged.size.load(Ordering::Acquire)
            && session.log().shrinks(self.region) == self.logged.shrinks.load(Ordering::Relaxed)
    }

    /// Has `call` cut the file to `size`, or extend it, and records it; `call` returns 0 if it did. `record_size` records what
    /// size there is then. Only within [`guard::slow`].
    ///
    /// The record's place is taken before: what others write to the file as it is then comes later. What they wrote before it
    /// was cut may come later as well, so the size that it has got is recorded once more.
    pub fn resize_within(&self, size: u64, call: &dyn Fn() -> i32, record_size: impl FnOnce()) -> i32 {
        let Some(session) = state::session().filter(|_| self.is_live()) else { return call() };
        session.log().shrinking(self.region);
        let (result, recorded) = self.around(session, Kind::RegionResize, size, &[], call);
        if result == 0 {
            if recorded.is_err() {
                // The gap may have been closed meanwhile; else the copy that closes it says this as well.
                self.record(Kind::RegionResize, size, &[]);
            }
            record_size();
        }
        result
    }

    /// The file was emptied when it was opened as `fd`, and recorded before by others only: what has been written since is
    /// recorded as well, since the others' records of it may lie below.
    pub fn record_emptied(&self, fd: BorrowedFd<'_>) {
        let size = guard::slow(|| {
            if let Some(session) = state::session() {
                session.log().shrinking(self.region);
            }
            self.record(Kind::RegionResize, 0, &[]);
            self.record_size_locked(fd)
        });
        self.record_range(fd, 0, size.unwrap_or_default());
    }

    /// Has `call` rename the file to `name`, and records it; `call` returns 0 if it did. A region that had the name ceases to
    /// be, `replaced` if this process knows it. Only within [`guard::slow`].
    ///
    /// As for [`File::resize_within`]: a new file that another process makes under the old name comes later.
    pub fn rename_within(&self, name: &[u8], replaced: Option<&File>, call: &dyn Fn() -> i32) -> i32 {
        let Some(session) = state::session() else { return call() };
        let (result, recorded) = self.around(session, Kind::RegionRename, 0, name, call);
        if result == 0 {
            if recorded.is_err() {
                self.record(Kind::RegionRename, 0, name);
            }
            if let Some(other) = replaced.filter(|other| other.is_live()) {
                other.let_go();
            }
        }
        result
    }

    fn around(
        &self,
        session: &Session,
        kind: Kind,
        offset: u64,
        payload: &[u8],
        call: &dyn Fn() -> i32,
    ) -> (i32, Result<(), Ahead>) {
        let mut result = 0;
        let act = || {
            result = call();
            result == 0
        };
        let append = || session.appender().append_around(kind, self.region, offset, payload, act);
        let recorded = guard::capturing(append, state::drain);
        (result, recorded)
    }

    /// Records `[start, end)` as the file holds it now, after a write through `fd`; `end` is clipped to the file's end.
    pub fn record_range(&self, fd: BorrowedFd<'_>, start: u64, end: u64) {
        let Some(session) = state::session().filter(|_| self.is_live()) else { return };
        if start >= end {
            return;
        }
        let _errno = guard::KeepErrno::new();
        if end > MAX_REGION_BYTES {
            guard::slow(|| self.outgrown());
            return;
        }
        if !self.size_is_logged(session, end) {
            self.record_size(fd);
        }
        let Some(reader) = self.readable(fd) else {
            return self
                .not_recorded(&format_args!("bytes {start} to {end}: it cannot be opened for reading"));
        };
        let len = (end - start) as usize;
        let result = guard::capturing(
            || session.appender().append_from_file(self.region, start, len, reader, true),
            state::drain,
        );
        if let Err(AppendError::Read(e)) = result {
            self.not_recorded(&format_args!("bytes {start} to {end}: {e}"));
        }
    }

    /// Something of this file is in no record: no drain may be acknowledged before a copy has it.
    pub fn not_recorded(&self, what: &dyn Display) {
        if let Some(session) = state::session() {
            session.appender().unrecorded();
        }
        if !self.told_unread.swap(true, Ordering::Relaxed) {
            error!("region {} cannot be read back, so only copies of it are replicated: {what}", self.region);
        }
    }

    /// Records that `[start, end)` was made zero, and what others have stored there since. Only within [`guard::slow`].
    pub fn record_zeros_locked(&self, fd: BorrowedFd<'_>, start: u64, end: u64) {
        let Some(session) = state::session() else { return };
        let Some(reader) = self.own_reader(fd) else {
            return self.not_recorded(&format_args!("a hole from {start} to {end}"));
        };
        let append = || session.appender().append_zeros(self.region, start, end - start, reader);
        if let Err(AppendError::Read(e)) = guard::capturing(append, state::drain) {
            self.not_recorded(&format_args!("a hole from {start} to {end}: {e}"));
        }
    }

    /// `fd` if any byte can be read through it, else a descriptor of ours.
    fn readable<'a>(&self, fd: BorrowedFd<'a>) -> Option<BorrowedFd<'a>> {
        let flags = rustix::fs::fcntl_getfl(fd).ok()?;
        if flags & OFlags::RWMODE != OFlags::WRONLY && !flags.contains(OFlags::DIRECT) {
            return Some(fd);
        }
        if self.reader.load(Ordering::Acquire) < 0 {
            guard::slow(|| self.own_reader(fd));
        }
        self.reader()
    }

    /// Our descriptor, opened if need be through `fd`. Only within [`guard::slow`].
    fn own_reader<'a>(&self, fd: BorrowedFd<'_>) -> Option<BorrowedFd<'a>> {
        if self.reader.load(Ordering::Acquire) < 0 {
            self.open_reader(fd);
        }
        self.reader()
    }

    fn reader<'a>(&self) -> Option<BorrowedFd<'a>> {
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
            Err(e) => self.not_recorded(&format_args!("it cannot be opened for reading: {e}")),
        }
    }

    /// From here on a stream writes to the file that passes no hook; `fd` is its descriptor. Only within [`guard::slow`].
    pub fn note_unseen(&self, fd: BorrowedFd<'_>) {
        self.own_reader(fd);
        self.unseen.store(true, Ordering::Relaxed);
        ANY_UNSEEN.store(true, Ordering::Relaxed);
    }

    /// Records the whole file as it is now, if [`File::note_unseen`] was ever called.
    pub fn record_unseen(&self) {
        if !self.unseen.load(Ordering::Relaxed) {
            return;
        }
        // Never closed, for such a file.
        let Some(reader) = self.reader() else { return self.not_recorded(&"what a stream wrote") };
        let size = guard::slow(|| self.record_size_locked(reader)).unwrap_or_default();
        self.record_range(reader, 0, size);
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

    /// The file has become larger than any destination takes: it ceases to be a region. Only within [`guard::slow`].
    fn outgrown(&self) {
        let limit = MAX_REGION_BYTES >> 40;
        error!("region {} is not replicated any more: it is larger than {limit} TiB", self.region);
        self.record_unlink();
    }

    /// Nothing further is recorded for this region, which the agent may then give to another file.
    fn let_go(&self) {
        self.live.store(false, Ordering::Release);
        identities().remove(&self.identity);
        mapping::forget(self.region);
        self.keep_nothing_back();
        if let Some(session) = state::session() {
            session.release(self.region);
        }
    }
}
