//! ftruncate, fallocate and their families: the size of a protected file, and holes in it.
//!
//! The real call and its record are one step under the library's lock, so that sizes stand in the log in the order in
//! which the file had them.

use std::ffi::{c_char, c_int};

use libc::off_t;

use crate::file::File;
use crate::real::hook;
use crate::report::error;
use crate::{fds, guard, names};

hook!(Libc, [ftruncate, ftruncate64], (fd: c_int, size: off_t) -> c_int, ftruncate_body);
hook!(Libc, [truncate, truncate64], (path: *const c_char, size: off_t) -> c_int, truncate_body);
hook!(Libc, [fallocate, fallocate64], (fd: c_int, mode: c_int, at: off_t, len: off_t) -> c_int, fallocate_body);
hook!(Libc, [posix_fallocate, posix_fallocate64],
    (fd: c_int, at: off_t, len: off_t) -> c_int, posix_fallocate_body);

fn protected(fd: c_int) -> Option<(&'static File, std::os::fd::BorrowedFd<'static>)> {
    if guard::inside() {
        return None;
    }
    fds::file(fd).map(|(file, fd, _)| (file, fd))
}

/// Does `call`, and `then` if it succeeded, in one step.
fn together(call: impl Fn() -> c_int, then: impl FnOnce()) -> c_int {
    guard::together(call, || Some(()), |()| then())
}

unsafe fn ftruncate_body(real: unsafe extern "C" fn(c_int, off_t) -> c_int, fd: c_int, size: off_t) -> c_int {
    match protected(fd) {
        // SAFETY: the program's own call, as everywhere in this file.
        Some((file, _)) => together(|| unsafe { real(fd, size) }, || file.record_truncation(size as u64)),
        // SAFETY: see above.
        None => unsafe { real(fd, size) },
    }
}

unsafe fn truncate_body(
    real: unsafe extern "C" fn(*const c_char, off_t) -> c_int,
    path: *const c_char,
    size: off_t,
) -> c_int {
    match names::find(libc::AT_FDCWD, path, true) {
        // SAFETY: see `ftruncate_body`.
        Some(file) => together(|| unsafe { real(path, size) }, || file.record_truncation(size as u64)),
        // SAFETY: see `ftruncate_body`.
        None => unsafe { real(path, size) },
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
        error!("taking bytes out of the middle of a protected file, or putting them in, is refused");
        // SAFETY: the thread's errno is always there.
        unsafe { *libc::__errno_location() = libc::EOPNOTSUPP };
        return -1;
    }
    let (start, count) = (at as u64, len as u64);
    // SAFETY: see `ftruncate_body`.
    let call = || unsafe { real(fd, mode, at, len) };
    together(call, || {
        file.record_size_locked(borrowed);
        let end = (start + count).min(file.logged_size());
        if mode & (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) != 0 && start < end {
            file.record_zeros_locked(borrowed, start, end);
        }
    })
}

unsafe fn posix_fallocate_body(
    real: unsafe extern "C" fn(c_int, off_t, off_t) -> c_int,
    fd: c_int,
    at: off_t,
    len: off_t,
) -> c_int {
    match protected(fd) {
        Some((file, borrowed)) => {
            // SAFETY: see `ftruncate_body`.
            together(|| unsafe { real(fd, at, len) }, || file.record_size_locked(borrowed))
        }
        // SAFETY: see `ftruncate_body`.
        None => unsafe { real(fd, at, len) },
    }
}
