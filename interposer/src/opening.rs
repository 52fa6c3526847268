//! open, close, dup and their families: descriptors come and go.
//!
//! A file that is opened for writing is looked at there and then, so that one that is created under a protected name is
//! protected from its first byte, and a truncation by `O_TRUNC` takes its place in the log.

use std::ffi::{c_char, c_int, c_uint, c_void};

use libc::{mode_t, ssize_t};

use crate::real::hook;
use crate::{fds, guard, names};

// open(2) and fcntl(2) take their last argument only with some flags; passing on a register that means nothing
// is harmless.
hook!(Libc, [open, open64], (path: *const c_char, flags: c_int, mode: mode_t) -> c_int, open_body);
hook!(Libc, [openat, openat64],
    (dir: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int, openat_body);
hook!(Libc, [__open_2, __open64_2], (path: *const c_char, flags: c_int) -> c_int, open_2_body);
hook!(Libc, [__openat_2, __openat64_2], (dir: c_int, path: *const c_char, flags: c_int) -> c_int, openat_2_body);
hook!(Libc, [creat, creat64], (path: *const c_char, mode: mode_t) -> c_int, creat_body);
hook!(Libc, [mkstemp, mkstemp64], (template: *mut c_char) -> c_int, mkstemp_body);
hook!(Libc, [mkostemp, mkostemp64, mkstemps, mkstemps64],
    (template: *mut c_char, more: c_int) -> c_int, mkstemp_with_body);
hook!(Libc, [mkostemps, mkostemps64],
    (template: *mut c_char, suffix: c_int, flags: c_int) -> c_int, mkostemps_body);
hook!(Libc, [shm_open], (name: *const c_char, flags: c_int, mode: mode_t) -> c_int, shm_open_body);
hook!(Libc, [close], (fd: c_int) -> c_int, close_body);
hook!(Libc, [close_range], (first: c_uint, last: c_uint, flags: c_int) -> c_int, close_range_body);
hook!(Libc, [closefrom], (first: c_int) -> (), closefrom_body);
hook!(Libc, [dup], (fd: c_int) -> c_int, dup_body);
hook!(Libc, [dup2], (fd: c_int, to: c_int) -> c_int, dup2_body);
hook!(Libc, [dup3], (fd: c_int, to: c_int, flags: c_int) -> c_int, dup3_body);
hook!(Libc, [fcntl, fcntl64], (fd: c_int, command: c_int, arg: *mut c_void) -> c_int, fcntl_body);
hook!(Libc, [recvmsg], (socket: c_int, message: *mut libc::msghdr, flags: c_int) -> ssize_t, recvmsg_body);

/// `fd` was opened with `flags`.
fn opened(fd: c_int, flags: c_int) -> c_int {
    if fd < 0 || guard::inside() {
        return fd;
    }
    fds::forget(fd);
    let truncates = flags & libc::O_TRUNC != 0;
    let writes = flags & libc::O_ACCMODE != libc::O_RDONLY || truncates || flags & libc::O_CREAT != 0;
    if writes
        && flags & libc::O_PATH == 0
        && let Some((file, borrowed, _)) = fds::file(fd)
        && truncates
    {
        file.record_emptied(borrowed);
    }
    fd
}

/// Has `call` open `path` with `flags`.
fn opening(dir: c_int, path: *const c_char, flags: c_int, call: impl Fn() -> c_int) -> c_int {
    if flags & libc::O_TRUNC == 0 {
        return opened(call(), flags);
    }
    let (fd, recorded) = names::truncating(dir, path, call, |fd| *fd >= 0);
    opened(fd, if recorded { flags & !libc::O_TRUNC } else { flags })
}

unsafe fn open_body(
    real: unsafe extern "C" fn(*const c_char, c_int, mode_t) -> c_int,
    path: *const c_char,
    flags: c_int,
    mode: mode_t,
) -> c_int {
    // SAFETY: the program's own call, as everywhere in this file.
    opening(libc::AT_FDCWD, path, flags, || unsafe { real(path, flags, mode) })
}

unsafe fn openat_body(
    real: unsafe extern "C" fn(c_int, *const c_char, c_int, mode_t) -> c_int,
    dir: c_int,
    path: *const c_char,
    flags: c_int,
    mode: mode_t,
) -> c_int {
    // SAFETY: see `open_body`.
    opening(dir, path, flags, || unsafe { real(dir, path, flags, mode) })
}

unsafe fn open_2_body(
    real: unsafe extern "C" fn(*const c_char, c_int) -> c_int,
    path: *const c_char,
    flags: c_int,
) -> c_int {
    // SAFETY: see `open_body`.
    opening(libc::AT_FDCWD, path, flags, || unsafe { real(path, flags) })
}

unsafe fn openat_2_body(
    real: unsafe extern "C" fn(c_int, *const c_char, c_int) -> c_int,
    dir: c_int,
    path: *const c_char,
    flags: c_int,
) -> c_int {
    // SAFETY: see `open_body`.
    opening(dir, path, flags, || unsafe { real(dir, path, flags) })
}

unsafe fn creat_body(
    real: unsafe extern "C" fn(*const c_char, mode_t) -> c_int,
    path: *const c_char,
    mode: mode_t,
) -> c_int {
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_TRUNC;
    // SAFETY: see `open_body`.
    opening(libc::AT_FDCWD, path, flags, || unsafe { real(path, mode) })
}

/// glibc opens the file by a call of its own, in the directory where the kernel's tmpfs for it is.
unsafe fn shm_open_body(
    real: unsafe extern "C" fn(*const c_char, c_int, mode_t) -> c_int,
    name: *const c_char,
    flags: c_int,
    mode: mode_t,
) -> c_int {
    // SAFETY: see `open_body`.
    let call = || unsafe { real(name, flags, mode) };
    match names::of_shared_memory(name) {
        Some(path) => opening(libc::AT_FDCWD, path.as_ptr(), flags, call),
        None => opened(call(), flags),
    }
}

unsafe fn mkstemp_body(real: unsafe extern "C" fn(*mut c_char) -> c_int, template: *mut c_char) -> c_int {
    // SAFETY: see `open_body`.
    opened(unsafe { real(template) }, libc::O_RDWR | libc::O_CREAT)
}

unsafe fn mkstemp_with_body(
    real: unsafe extern "C" fn(*mut c_char, c_int) -> c_int,
    template: *mut c_char,
    more: c_int,
) -> c_int {
    // SAFETY: see `open_body`.
    opened(unsafe { real(template, more) }, libc::O_RDWR | libc::O_CREAT)
}

unsafe fn mkostemps_body(
    real: unsafe extern "C" fn(*mut c_char, c_int, c_int) -> c_int,
    template: *mut c_char,
    suffix: c_int,
    flags: c_int,
) -> c_int {
    // SAFETY: see `open_body`.
    opened(unsafe { real(template, suffix, flags) }, libc::O_RDWR | libc::O_CREAT)
}

unsafe fn close_body(real: unsafe extern "C" fn(c_int) -> c_int, fd: c_int) -> c_int {
    fds::closing(fd);
    // SAFETY: see `open_body`.
    unsafe { real(fd) }
}

unsafe fn close_range_body(
    real: unsafe extern "C" fn(c_uint, c_uint, c_int) -> c_int,
    first: c_uint,
    last: c_uint,
    flags: c_int,
) -> c_int {
    const CLOSE_RANGE_CLOEXEC: c_int = 1 << 2;
    if flags & CLOSE_RANGE_CLOEXEC == 0 {
        fds::closing_range(first, last);
    }
    // SAFETY: see `open_body`.
    unsafe { real(first, last, flags) }
}

unsafe fn closefrom_body(real: unsafe extern "C" fn(c_int), first: c_int) {
    fds::closing_range(first.max(0) as c_uint, c_uint::MAX);
    // SAFETY: see `open_body`.
    unsafe { real(first) }
}

unsafe fn dup_body(real: unsafe extern "C" fn(c_int) -> c_int, fd: c_int) -> c_int {
    // SAFETY: see `open_body`.
    let new = unsafe { real(fd) };
    fds::forget(new);
    new
}

unsafe fn dup2_body(real: unsafe extern "C" fn(c_int, c_int) -> c_int, fd: c_int, to: c_int) -> c_int {
    if fd != to {
        fds::closing(to);
    }
    // SAFETY: see `open_body`.
    unsafe { real(fd, to) }
}

unsafe fn dup3_body(
    real: unsafe extern "C" fn(c_int, c_int, c_int) -> c_int,
    fd: c_int,
    to: c_int,
    flags: c_int,
) -> c_int {
    if fd != to {
        fds::closing(to);
    }
    // SAFETY: see `open_body`.
    unsafe { real(fd, to, flags) }
}

unsafe fn fcntl_body(
    real: unsafe extern "C" fn(c_int, c_int, *mut c_void) -> c_int,
    fd: c_int,
    command: c_int,
    arg: *mut c_void,
) -> c_int {
    // SAFETY: see `open_body`.
    let result = unsafe { real(fd, command, arg) };
    if matches!(command, libc::F_DUPFD | libc::F_DUPFD_CLOEXEC) {
        fds::forget(result);
    }
    result
}

unsafe fn recvmsg_body(
    real: unsafe extern "C" fn(c_int, *mut libc::msghdr, c_int) -> ssize_t,
    socket: c_int,
    message: *mut libc::msghdr,
    flags: c_int,
) -> ssize_t {
    // SAFETY: see `open_body`; after success the kernel has filled in the control messages.
    unsafe {
        let result = real(socket, message, flags);
        if result >= 0 && !(*message).msg_control.is_null() {
            forget_received(message);
        }
        result
    }
}

unsafe fn forget_received(message: *const libc::msghdr) {
    // SAFETY: the macros walk control messages that the kernel wrote, within the lengths that it wrote.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let data = libc::CMSG_DATA(header).cast::<c_int>();
                let bytes = (*header).cmsg_len - (data as usize - header as usize);
                for i in 0..bytes / size_of::<c_int>() {
                    fds::forget(data.add(i).read_unaligned());
                }
            }
            header = libc::CMSG_NXTHDR(message, header);
        }
    }
}
