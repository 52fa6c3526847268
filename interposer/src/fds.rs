//! What the program's descriptors mean, one word each, so that a write to an unprotected one costs a load.
//!
//! A descriptor is unknown until it is used for something that matters, so those that were opened before the
//! library was loaded, inherited or received are found out like any other. Descriptors can be closed behind our back
//! (glibc's own calls do not pass through hooks): so what is believed of a protected one is checked against the
//! kernel at each use, and every hooked way to make a descriptor of a file forgets what was known of its number.

use std::ffi::c_int;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use pmemha::region::identity::{Facts, Identity, Sort, path_of};
use pmemha::types::RegionId;

use crate::file::{self, File};
use crate::state::Protected;
use crate::{guard, state};

/// What a descriptor is.
#[derive(Clone, Copy)]
pub enum Meaning {
    /// Not looked at since it was opened.
    Unknown,
    /// Nothing to us.
    Plain,
    /// A directory.
    Directory,
    /// A protected file.
    File(&'static File),
}

const UNKNOWN: u32 = 0;
const PLAIN: u32 = 1;
const DIRECTORY: u32 = 2;
/// Plus the region's number.
const FILE: u32 = 3;

/// Descriptors are kept in chunks of this many, made as they come into use.
const CHUNK: usize = 1024;

/// Chunks: enough for the kernel's largest default `fs.nr_open` of 2^20. Higher descriptors are never protected.
const CHUNKS: usize = 1024;

type Chunk = [AtomicU32; CHUNK];

/// The first chunk is there from the start, so that common descriptors never allocate.
static FIRST: Chunk = [const { AtomicU32::new(UNKNOWN) }; CHUNK];
static OTHERS: [AtomicPtr<Chunk>; CHUNKS] = [const { AtomicPtr::new(ptr::null_mut()) }; CHUNKS];

fn word(fd: c_int) -> Option<&'static AtomicU32> {
    let fd = usize::try_from(fd).ok()?;
    if fd < CHUNK {
        return Some(&FIRST[fd]);
    }
    // SAFETY: only `make_chunk` stores here, chunks that are never freed.
    let chunk = unsafe { OTHERS.get(fd / CHUNK)?.load(Ordering::Acquire).as_ref() }?;
    Some(&chunk[fd % CHUNK])
}

fn make_chunk(fd: c_int) {
    let Some(place) = usize::try_from(fd).ok().and_then(|fd| OTHERS.get(fd / CHUNK)) else { return };
    let new = Box::into_raw(Box::new([const { AtomicU32::new(UNKNOWN) }; CHUNK]));
    if place.compare_exchange(ptr::null_mut(), new, Ordering::AcqRel, Ordering::Acquire).is_err() {
        // SAFETY: nobody else has seen it.
        drop(unsafe { Box::from_raw(new) });
    }
}

/// What is known of `fd`, without asking anyone.
#[inline]
pub fn known(fd: c_int) -> Meaning {
    match word(fd).map_or(UNKNOWN, |w| w.load(Ordering::Relaxed)) {
        UNKNOWN => Meaning::Unknown,
        PLAIN => Meaning::Plain,
        DIRECTORY => Meaning::Directory,
        n => file::by_region(RegionId((n - FILE) as u16)).map_or(Meaning::Unknown, Meaning::File),
    }
}

/// Forgets what was known of `fd`: its number means something new.
#[inline]
pub fn forget(fd: c_int) {
    if let Some(w) = word(fd) {
        w.store(UNKNOWN, Ordering::Relaxed);
    }
}

/// Forgets that `fd` is nothing to us, before a call that is worth another look: its number may have been closed and given to
/// another file by calls that no hook sees.
pub fn forget_if_plain(fd: c_int) {
    if let Some(w) = word(fd) {
        // Fails where it has another meaning, which is checked at each use.
        let _ = w.compare_exchange(PLAIN, UNKNOWN, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// A file became protected that the program may have open already: what was found to be nothing to us is looked at again.
pub fn forget_plain() {
    let chunk = |chunk: &Chunk| {
        for word in chunk {
            // Fails where the number has got another meaning meanwhile, which is newer than ours.
            let _ = word.compare_exchange(PLAIN, UNKNOWN, Ordering::Relaxed, Ordering::Relaxed);
        }
    };
    chunk(&FIRST);
    for other in &OTHERS {
        // SAFETY: as in `word`.
        if let Some(other) = unsafe { other.load(Ordering::Acquire).as_ref() } {
            chunk(other);
        }
    }
}

fn note(fd: c_int, meaning: u32) {
    if word(fd).is_none() {
        make_chunk(fd);
    }
    if let Some(w) = word(fd) {
        w.store(meaning, Ordering::Relaxed);
    }
}

/// The program closes `fd`, or gives its number to another file.
pub fn closing(fd: c_int) {
    if let Meaning::File(file) = known(fd) {
        file.close_reader();
    }
    forget(fd);
}

/// Borrows a descriptor that the program passed to a call. It may be none at all: the kernel says so then.
pub fn borrow<'a>(fd: c_int) -> Option<BorrowedFd<'a>> {
    // SAFETY: borrowed for the duration of a call that the program makes with it; -1 is the one forbidden value.
    (fd >= 0).then(|| unsafe { BorrowedFd::borrow_raw(fd) })
}

/// Closes a descriptor that we opened, unless the program has one of the same file: closing any drops the POSIX locks that
/// the process has on the file, all of them. Ours then stays open, which is the lesser harm. Only within [`guard::slow`].
pub fn put_away(own: OwnedFd) {
    let shared = Facts::of(&own).is_ok_and(|facts| has_another(own.as_raw_fd(), &facts.identity));
    if shared {
        let _ = own.into_raw_fd();
    }
}

/// Whether a descriptor of this process other than `own` is open on the file. If that cannot be found out, it is.
fn has_another(own: c_int, file: &Identity) -> bool {
    let Ok(entries) = std::fs::read_dir("/proc/self/fd") else { return true };
    entries.flatten().any(|entry| {
        let fd = entry.file_name().to_str().and_then(|name| name.parse::<c_int>().ok());
        fd.is_some_and(|fd| {
            fd != own && borrow(fd).is_some_and(|fd| Facts::of(fd).is_ok_and(|f| f.identity == *file))
        })
    })
}

/// What `fd` means, asking the kernel and the agent where that is not known.
#[inline]
pub fn meaning(fd: c_int) -> Meaning {
    match known(fd) {
        Meaning::Unknown => find_out(fd),
        known => known,
    }
}

/// The protected file that `fd` is open on, if it is, and what the kernel says of it now.
#[inline]
pub fn file(fd: c_int) -> Option<(&'static File, BorrowedFd<'static>, Facts)> {
    let Meaning::File(file) = meaning(fd) else { return None };
    checked(file, fd)
}

#[cold]
fn checked(file: &'static File, fd: c_int) -> Option<(&'static File, BorrowedFd<'static>, Facts)> {
    let borrowed = borrow(fd)?;
    let facts = Facts::of(borrowed).ok()?;
    if facts.identity == file.identity {
        return file.is_live().then_some((file, borrowed, facts));
    }
    // The number was closed and used again without our knowing.
    forget(fd);
    match find_out(fd) {
        Meaning::File(file) if file.identity == facts.identity => Some((file, borrowed, facts)),
        _ => None,
    }
}

#[cold]
fn find_out(fd: c_int) -> Meaning {
    if guard::inside() {
        return Meaning::Plain;
    }
    let _errno = guard::KeepErrno::new();
    let Some(borrowed) = borrow(fd) else { return Meaning::Plain };
    let Ok(facts) = Facts::of(borrowed) else { return Meaning::Unknown };
    let word = match facts.sort {
        Sort::Other => PLAIN,
        Sort::Directory => DIRECTORY,
        Sort::Regular | Sort::Devdax => {
            if facts.links == 0 || !state::session_likely() {
                return Meaning::Unknown;
            }
            if reads_only(borrowed) {
                // Of interest only if the file is protected by another descriptor, which may come later.
                let known = guard::slow(|| file::by_identity(&facts.identity)).flatten();
                return known.map_or(Meaning::Unknown, Meaning::File);
            }
            match guard::slow(|| state::protect(borrowed, &facts, path_of(borrowed).as_deref(), false)) {
                Some(Protected::Is(file)) => FILE + u32::from(file.region.0),
                Some(Protected::Not) => PLAIN,
                // Must be looked at again later.
                Some(Protected::Unasked | Protected::Failed) | None => return Meaning::Unknown,
            }
        }
    };
    note(fd, word);
    known(fd)
}

fn reads_only(fd: BorrowedFd<'_>) -> bool {
    use rustix::fs::OFlags;
    rustix::fs::fcntl_getfl(fd).is_ok_and(|flags| flags & OFlags::RWMODE == OFlags::RDONLY)
}

/// The program closes all descriptors of a range.
pub fn closing_range(first: u32, last: u32) {
    let top = (CHUNK * CHUNKS) as u32 - 1;
    for chunk in first / CHUNK as u32..=last.min(top) / CHUNK as u32 {
        let start = chunk * CHUNK as u32;
        if word(start as c_int).is_some() {
            let end = start + CHUNK as u32 - 1;
            (start.max(first)..=end.min(last)).for_each(|fd| closing(fd as c_int));
        }
    }
}
