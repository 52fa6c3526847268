//! ftruncate, fallocate and their families: the size of a protected file, and holes in it.
//!
//! The place of a new size in the log is taken before the real call, and the size that came of it is recorded after it
//! (`File::resize_within`): so the last size in the log is the file's, whatever other processes did to it at the same time.

use std::ffi::{c_char, c_int};
use std::os::fd::BorrowedFd;

use libc::off_t;
use pmemha::log::format::MAX_REGION_BYTES;

use crate::file::File;
use crate::real::hook;
use crate::report::refuse;
use crate::{fds, guard, names};

hook!(Libc, [ftruncate, ftruncate64], (fd: c_int, size: off_t) -> c_int, ftruncate_body);
hook!(Libc, [truncate, truncate64], (path: *const c_char, size: off_t) -> c_int, truncate_body);
hook!(Libc, [fallocate, fallocate64], (fd: c_int, mode: c_int, at: off_t, len: off_t) -> c_int, fallocate_body);
hook!(Libc, [posix_fallocate, posix_fallocate64],
    (fd: c_int, at: off_t, len: off_t) -> c_int, posix_fallocate_body);

/// What `fd` was known to be may be of a file that was closed out of sight: it is looked at anew.
fn protected(fd: c_int) -> Option<(&'static File, BorrowedFd<'static>)> {
    if guard::inside() {
        return None;
    }
    fds::forget_if_plain(fd);
    fds::file(fd).map(|(file, fd, _)| (file, fd))
}

/// Whether no destination would take a file of that size.
fn is_too_large(size: off_t) -> bool {
    u64::try_from(size).is_ok_and(|size| size > MAX_REGION_BYTES)
}

fn refuse_size() -> c_int {
    let limit = MAX_REGION_BYTES >> 40;
    refuse(libc::EFBIG, format_args!("a protected file larger than {limit} TiB cannot be replicated"))
}

unsafe fn ftruncate_body(real: unsafe extern "C" fn(c_int, off_t) -> c_int, fd: c_int, size: off_t) -> c_int {
    // SAFETY: the program's own call, as everywhere in this file.
    let call = || unsafe { real(fd, size) };
    match protected(fd) {
        Some(_) if is_too_large(size) => refuse_size(),
        Some((file, fd)) if size >= 0 => {
            let record_size = || {
                file.record_size_locked(fd);
            };
            guard::together(
                call,
                || Some(file),
                |file, call| file.resize_within(size as u64, call, record_size),
            )
        }
        _ => call(),
    }
}

unsafe fn truncate_body(
    real: unsafe extern "C" fn(*const c_char, off_t) -> c_int,
    path: *const c_char,
    size: off_t,
) -> c_int {
    // SAFETY: see `ftruncate_body`.
    let call = || unsafe { real(path, size) };
    match names::find(libc::AT_FDCWD, path, true) {
        Some(_) if is_too_large(size) => refuse_size(),
        Some(file) if size >= 0 => names::resizing(file, libc::AT_FDCWD, path, size as u64, call),
        _ => call(),
    }
}

unsafe fn fallocate_body(
    real: unsafe extern "C" fn(c_int, c_int, off_t, off_t) -> c_int,
    fd: c_int,
    mode: c_int,
    at: off_t,
    len: off_t,
) -> c_int {
    let Some((file, borrowed)) = protected(fd) else {
        // SAFETY: see `ftruncate_body`.
        return unsafe { real(fd, mode, at, len) };
    };
    if mode & (libc::FALLOC_FL_COLLAPSE_RANGE | libc::FALLOC_FL_INSERT_RANGE) != 0 {
        // No sequence of records says it at one instant, as the file system does it.
        let what = "taking bytes out of the middle of a protected file, or putting them in";
        return refuse(libc::EOPNOTSUPP, format_args!("{what}"));
    }
    if mode & libc::FALLOC_FL_KEEP_SIZE == 0 && is_too_large(at.saturating_add(len)) {
        return refuse_size();
    }
    let (start, count) = (at as u64, len as u64);
    // SAFETY: see `ftruncate_body`.
    let call = || unsafe { real(fd, mode, at, len) };
    guard::together(
        call,
        || Some(file),
        |file, call| {
            let result = call();
            if result == 0 {
                let size = file.record_size_locked(borrowed);
                let end = (start + count).min(size);
                if mode & (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) != 0 && start < end {
                    file.record_zeros_locked(borrowed, start, end);
                }
            }
            result
        },
    )
}

unsafe fn posix_fallocate_body(
    real: unsafe extern "C" fn(c_int, off_t, off_t) -> c_int,
    fd: c_int,
    at: off_t,
    len: off_t,
) -> c_int {
    // SAFETY: see `ftruncate_body`.
    let call = || unsafe { real(fd, at, len) };
    let Some((file, borrowed)) = protected(fd) else { return call() };
    if is_too_large(at.saturating_add(len)) {
        refuse_size();
        return libc::EFBIG; // This one returns it.
    }
    let act = |file: &File, call: &dyn Fn() -> c_int| {
        let result = call();
        if result == 0 {
            file.record_size_locked(borrowed);
        }
        result
    };
    guard::together(call, || Some(file), act)
}
