//! mmap and its kin: which addresses show protected bytes, and whose pages are watched for stores.
//!
//! Shared, writable mappings of protected files enter the table; private ones never do, whatever is flushed in them. What
//! `MAP_FIXED` lays over a mapping replaces that part of it. Before a mapping goes, its written pages are recorded: the
//! page cache keeps them, and no later msync can name them. Programs that flush lines themselves are left out of
//! that: there, what was not flushed is lost in a power cut as well.

use std::ffi::{c_int, c_void};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use libc::{off_t, size_t};
use pmemha::region::dirty::{self, DirtyTracker};
use pmemha::region::identity::Facts;
use pmemha::region::table::Span;
use pmemha::types::{PAGE, RegionId};
use rustix::fs::OFlags;

use crate::file::{self, File};
use crate::real::hook;
use crate::report::{error, info, warn};
use crate::state::{self, TABLE};
use crate::{fds, guard};

/// Watches stores. Used only within [`guard::slow`], so never locked when a process forks.
static TRACKER: Mutex<Option<Box<dyn DirtyTracker>>> = Mutex::new(None);

fn tracker() -> MutexGuard<'static, Option<Box<dyn DirtyTracker>>> {
    TRACKER.lock().unwrap_or_else(PoisonError::into_inner)
}

fn with_tracker<R>(f: impl FnOnce(&mut dyn DirtyTracker) -> R) -> R {
    let mut tracker = tracker();
    let tracker = tracker.get_or_insert_with(|| {
        let best = dirty::best();
        info!("stores to mapped files are found by {}", best.kind());
        best
    });
    f(&mut **tracker)
}

type Mmap = unsafe extern "C" fn(*mut c_void, size_t, c_int, c_int, c_int, off_t) -> *mut c_void;

hook!(Libc, [mmap, mmap64],
    (addr: *mut c_void, len: size_t, prot: c_int, flags: c_int, fd: c_int, offset: off_t) -> *mut c_void, map);

unsafe fn map(
    real: Mmap,
    addr: *mut c_void,
    len: size_t,
    prot: c_int,
    flags: c_int,
    fd: c_int,
    offset: off_t,
) -> *mut c_void {
    let replaces =
        flags & libc::MAP_FIXED != 0 && flags & libc::MAP_FIXED_NOREPLACE != libc::MAP_FIXED_NOREPLACE;
    let gone = if replaces { leave(addr as usize, len) } else { Vec::new() };
    // SAFETY: the program's own call.
    let at = unsafe { real(addr, len, prot, flags, fd, offset) };
    if at == libc::MAP_FAILED {
        come_back(gone);
        return at;
    }
    stay_away(&gone);
    if matches!(flags & libc::MAP_TYPE, libc::MAP_SHARED | libc::MAP_SHARED_VALIDATE)
        && flags & libc::MAP_ANONYMOUS == 0
        && len > 0
        && let Some((file, fd, _)) = looked_at_again(fd)
        && rustix::fs::fcntl_getfl(fd).is_ok_and(|f| f & OFlags::RWMODE == OFlags::RDWR)
    {
        guard::slow(|| enter(file, at as usize, len, offset as u64));
    }
    at
}

fn looked_at_again(fd: c_int) -> Option<(&'static File, BorrowedFd<'static>, Facts)> {
    fds::forget_if_plain(fd);
    fds::file(fd)
}

/// A mapping of `file` is there.
fn enter(file: &File, start: usize, len: usize, offset: u64) {
    let span = Span {
        start,
        end: start + len.next_multiple_of(PAGE),
        offset,
        region: file.region,
        tag: u32::from(file.region.0),
    };
    tell(file);
    TABLE.insert(span);
    watch(&span);
}

/// The agent must know before the first store.
fn tell(file: &File) {
    file.note_mapped();
    let kind = with_tracker(|t| t.kind());
    if let Some(session) = state::session() {
        session.maps(file.region, kind);
    }
}

fn watch(span: &Span) {
    // A mapping that cannot be watched is recorded whole at each msync; `take` says so of itself.
    if let Err(e) = with_tracker(|t| t.watch(span.start, span.end)) {
        info!("stores to region {} cannot be watched ({e}): each msync records its whole range", span.region);
    }
}

type Munmap = unsafe extern "C" fn(*mut c_void, size_t) -> c_int;

hook!(Libc, [munmap], (addr: *mut c_void, len: size_t) -> c_int, unmap);

unsafe fn unmap(real: Munmap, addr: *mut c_void, len: size_t) -> c_int {
    let gone = leave(addr as usize, len);
    // SAFETY: the program's own call.
    let result = unsafe { real(addr, len) };
    if result != 0 {
        come_back(gone);
    } else {
        stay_away(&gone);
    }
    result
}

type Mremap = unsafe extern "C" fn(*mut c_void, size_t, size_t, c_int, *mut c_void) -> *mut c_void;

// The fifth argument is there only with MREMAP_FIXED; passing on a register that means nothing is harmless.
hook!(Libc, [mremap],
    (old: *mut c_void, old_len: size_t, new_len: size_t, flags: c_int, new: *mut c_void) -> *mut c_void, remap);

unsafe fn remap(
    real: Mremap,
    old: *mut c_void,
    old_len: size_t,
    new_len: size_t,
    flags: c_int,
    new: *mut c_void,
) -> *mut c_void {
    let covered = if flags & libc::MREMAP_FIXED != 0 { leave(new as usize, new_len) } else { Vec::new() };
    // The watch does not move with the mapping, so what was written is recorded first.
    let moved = leave(old as usize, old_len);
    // SAFETY: the program's own call.
    let at = unsafe { real(old, old_len, new_len, flags, new) };
    if at == libc::MAP_FAILED {
        come_back(covered);
        come_back(moved);
        return at;
    }
    if !moved.is_empty() {
        guard::slow(|| {
            let (start, end) = (at as usize, at as usize + new_len.next_multiple_of(PAGE));
            let last = moved.len() - 1;
            for (i, span) in moved.iter().enumerate() {
                let from = start + (span.start - old as usize);
                // Growth extends what the old mapping ended with.
                let to = if i == last { end } else { from + (span.end - span.start) };
                if from < to.min(end) {
                    let span = Span { start: from, end: to.min(end), ..*span };
                    TABLE.insert(span);
                    watch(&span);
                }
                const DONTUNMAP: c_int = 4;
                if flags & DONTUNMAP != 0 {
                    TABLE.insert(moved[i]);
                    watch(&moved[i]);
                }
            }
        });
    }
    stay_away(&covered);
    stay_away(&moved);
    at
}

/// `[start, start + len)` is about to lose its mapping: records what was written there and forgets it. Returns what was known,
/// for [`come_back`].
fn leave(start: usize, len: size_t) -> Vec<Span> {
    if TABLE.untouched() || guard::inside() {
        return Vec::new();
    }
    let end = start.saturating_add(len).checked_next_multiple_of(PAGE).unwrap_or(usize::MAX);
    let mut any = false;
    TABLE.for_each(start, end, |_| any = true);
    if !any {
        return Vec::new();
    }
    let gone = guard::slow(|| {
        let mut gone = Vec::new();
        TABLE.for_each(start, end, |span| gone.push(span));
        for span in &gone {
            if file::by_region(span.region).is_some_and(|f| !f.is_flushed()) {
                record_written(span);
            }
            with_tracker(|t| t.forget(span.start, span.end));
        }
        TABLE.remove(start, end);
        gone
    });
    state::drain_if_ending();
    gone.unwrap_or_default()
}

/// The mapping was not replaced after all.
fn come_back(gone: Vec<Span>) {
    if !gone.is_empty() {
        guard::slow(|| {
            for span in &gone {
                TABLE.insert(*span);
                watch(span);
            }
        });
    }
}

/// The mappings are gone, and what was stored there is recorded: where they were a file's last ones, nothing of it is kept back.
fn stay_away(gone: &[Span]) {
    if !gone.is_empty() {
        guard::slow(|| {
            for file in gone.iter().filter_map(|span| file::by_region(span.region)) {
                if TABLE.select(|s| s.region == file.region).is_empty() {
                    file.keep_nothing_back();
                }
            }
        });
    }
}

/// `region` ceased to be: its mappings show nobody's bytes. Only within [`guard::slow`].
pub fn forget(region: RegionId) {
    for span in TABLE.select(|s| s.region == region) {
        with_tracker(|t| t.forget(span.start, span.end));
        TABLE.remove(span.start, span.end);
    }
}

/// Records the pages of `span` that were written since they were last recorded. Only within [`guard::slow`].
fn record_written(span: &Span) {
    if file::by_region(span.region).is_none_or(|f| !f.is_live()) {
        return;
    }
    with_tracker(|t| {
        t.take(span.start, span.end, &mut |start, end| {
            if let Some(part) = span.clipped(start, end) {
                state::capture_span(&part);
            }
        });
    });
}

/// Records what was stored through any mapping to the bytes that `[start, start + len)` shows.
pub fn record_written_at(start: usize, len: usize) {
    if TABLE.untouched() {
        return;
    }
    let end = start.saturating_add(len);
    let mut any = false;
    TABLE.for_each(start, end, |_| any = true);
    if any {
        guard::slow(|| TABLE.for_each(start, end, |asked| record_written_of(&asked)));
    }
}

/// The pages of `asked`'s bytes, in whatever mapping they were stored to.
fn record_written_of(asked: &Span) {
    let (from, to) = (asked.offset, asked.offset + (asked.end - asked.start) as u64);
    for span in TABLE.select(|s| s.region == asked.region) {
        let start =
            span.start + from.saturating_sub(span.offset).min((span.end - span.start) as u64) as usize;
        let end = span.start + to.saturating_sub(span.offset).min((span.end - span.start) as u64) as usize;
        if let Some(part) = span.clipped(start & !(PAGE - 1), end.next_multiple_of(PAGE)) {
            record_written(&part);
        }
    }
}

/// Records what was stored through mappings of `file`.
pub fn record_written_to(file: &File) {
    if !TABLE.untouched() {
        guard::slow(|| TABLE.select(|s| s.region == file.region).iter().for_each(record_written));
    }
}

/// Records what was stored to any file by programs that do not flush lines: at sync(2), exec and exit.
pub fn record_all_written() {
    if !TABLE.untouched() {
        guard::slow(|| {
            let watched = |s: &Span| file::by_region(s.region).is_some_and(|f| !f.is_flushed());
            TABLE.select(watched).iter().for_each(record_written);
        });
    }
}

/// Finds the mappings that were made before there was a session. Only within [`guard::slow`].
///
/// Each is watched before its file is protected: a store is seen either by the watch or by the first sync.
pub fn adopt_existing() {
    let Ok(maps) = std::fs::read_to_string("/proc/self/maps") else {
        return warn!("/proc is not mounted: mappings that are older than the session are not protected");
    };
    for line in maps.lines() {
        if let Some((start, end, offset, path)) = shared_mapping(line)
            && state::session().is_some_and(|s| s.protects(path.as_ref()))
        {
            adopt(start, end, offset, path);
        }
    }
}

fn adopt(start: usize, end: usize, offset: u64, path: &str) {
    let opened = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, rustix::fs::Mode::empty());
    let (Ok(fd), true) = (&opened, end > start) else {
        return error!("{path} was mapped before the session and cannot be opened: it is not replicated");
    };
    let watched = with_tracker(|t| t.watch(start, end));
    if let Err(e) = watched {
        info!("stores to {path} cannot be watched: {e}");
    }
    if let Ok(facts) = Facts::of(fd)
        && let Some(file) = state::protect(fd.as_fd(), &facts, Some(path.as_ref()), false).file()
    {
        tell(file);
        TABLE.insert(Span { start, end, offset, region: file.region, tag: u32::from(file.region.0) });
    }
    if let Ok(fd) = opened {
        fds::put_away(fd);
    }
    fds::forget_plain();
}

/// Start, end, offset and path of a line of `/proc/self/maps` that is a writable shared mapping of a file.
fn shared_mapping(line: &str) -> Option<(usize, usize, u64, &str)> {
    let mut words = line.splitn(6, ' ');
    let (range, flags, offset) = (words.next()?, words.next()?, words.next()?);
    let path = words.nth(2)?.trim_start();
    if !flags.starts_with("rw")
        || !flags.ends_with('s')
        || !path.starts_with('/')
        || path.ends_with(" (deleted)")
    {
        return None;
    }
    let (start, end) = range.split_once('-')?;
    let hex = |s| usize::from_str_radix(s, 16).ok();
    Some((hex(start)?, hex(end)?, hex(offset)? as u64, path))
}

/// In the child of a fork: the parent's watch does not reach here.
pub fn after_fork_child() {
    if let Some(old) = tracker().take() {
        // Its descriptors act on the parent's memory; they are left open rather than used.
        std::mem::forget(old);
    }
}
