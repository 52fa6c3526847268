//! write and its family: bytes that reach a protected file through a descriptor.
//!
//! After a call has succeeded, and for the count that it returned, the range is read back from the file and recorded; it is
//! published by the next fsync, or at once where the descriptor or the call is synchronous. Where threads share a
//! file offset the range that is recorded may be larger than what was written, never smaller.

use std::ffi::{c_int, c_uint, c_void};
use std::os::fd::BorrowedFd;

use libc::{iovec, loff_t, off_t, size_t, ssize_t};
use rustix::fs::{OFlags, SeekFrom, fcntl_getfl, seek};

use crate::fds::{self, Meaning};
use crate::file::File;
use crate::guard::{self, KeepErrno};
use crate::real::hook;
use crate::state;

hook!(Libc, [write], (fd: c_int, from: *const c_void, len: size_t) -> ssize_t, write_body);
hook!(Libc, [writev], (fd: c_int, iov: *const iovec, count: c_int) -> ssize_t, writev_body);
hook!(Libc, [pwrite, pwrite64],
    (fd: c_int, from: *const c_void, len: size_t, offset: off_t) -> ssize_t, pwrite_body);
hook!(Libc, [pwritev, pwritev64],
    (fd: c_int, iov: *const iovec, count: c_int, offset: off_t) -> ssize_t, pwritev_body);
hook!(Libc, [pwritev2, pwritev64v2],
    (fd: c_int, iov: *const iovec, count: c_int, offset: off_t, flags: c_int) -> ssize_t, pwritev2_body);
hook!(Libc, [sendfile, sendfile64],
    (to: c_int, from: c_int, offset: *mut off_t, count: size_t) -> ssize_t, sendfile_body);
hook!(Libc, [copy_file_range, splice],
    (from: c_int, from_at: *mut loff_t, to: c_int, to_at: *mut loff_t, len: size_t, flags: c_uint) -> ssize_t,
    copy_body);

/// Writes are durable when they return: O_DSYNC, which is a part of O_SYNC. Not [`OFlags::DSYNC`], which is O_SYNC whole on Linux.
const DSYNC: OFlags = OFlags::from_bits_retain(libc::O_DSYNC as u32);

/// A write to a protected file, before it happens.
struct Writing {
    file: &'static File,
    fd: BorrowedFd<'static>,
    flags: OFlags,
    /// Where the call says that the bytes go; else they go to the descriptor's offset.
    given: Option<u64>,
    /// The descriptor's offset.
    at: u64,
    /// The file's size.
    size: u64,
}

impl Writing {
    /// Looks at `fd`; `None` if what is written there is nobody's business.
    #[inline]
    fn begin(fd: c_int, given: Option<u64>) -> Option<Writing> {
        match fds::known(fd) {
            Meaning::Plain | Meaning::Directory => None,
            Meaning::Unknown | Meaning::File(_) => Writing::look(fd, given),
        }
    }

    #[cold]
    fn look(fd: c_int, given: Option<u64>) -> Option<Writing> {
        if guard::inside() {
            return None;
        }
        let (file, fd, facts) = fds::file(fd)?;
        let flags = fcntl_getfl(fd).ok()?;
        let at = if given.is_none() { offset_of(fd) } else { 0 };
        Some(Writing { file, fd, flags, given, at, size: facts.size })
    }

    /// The call returned `count`; `more` are flags of the call itself.
    fn end(self, count: ssize_t, more: OFlags) {
        if count <= 0 {
            return;
        }
        let _errno = KeepErrno::new();
        let (flags, count) = (self.flags | more, count as u64);
        let (start, end) = if flags.contains(OFlags::APPEND) {
            // Even pwrite appends there. Others may have appended as well since we looked.
            let size = pmemha::region::identity::Facts::of(self.fd).map_or(self.size + count, |f| f.size);
            (self.size.min(size.saturating_sub(count)), size)
        } else if let Some(given) = self.given {
            (given, given + count)
        } else {
            let now = offset_of(self.fd);
            (self.at.min(now.saturating_sub(count)), now)
        };
        self.file.record_range(self.fd, start, end);
        if flags.contains(DSYNC) {
            state::drain();
        } else {
            state::drain_if_ending();
        }
    }
}

fn offset_of(fd: BorrowedFd<'_>) -> u64 {
    seek(fd, SeekFrom::Current(0)).unwrap_or(0)
}

fn written(writing: Option<Writing>, count: ssize_t) -> ssize_t {
    if let Some(writing) = writing {
        writing.end(count, OFlags::empty());
    }
    count
}

unsafe fn write_body(
    real: unsafe extern "C" fn(c_int, *const c_void, size_t) -> ssize_t,
    fd: c_int,
    from: *const c_void,
    len: size_t,
) -> ssize_t {
    let writing = Writing::begin(fd, None);
    // SAFETY: the program's own call, as everywhere in this file.
    written(writing, unsafe { real(fd, from, len) })
}

unsafe fn writev_body(
    real: unsafe extern "C" fn(c_int, *const iovec, c_int) -> ssize_t,
    fd: c_int,
    iov: *const iovec,
    count: c_int,
) -> ssize_t {
    let writing = Writing::begin(fd, None);
    // SAFETY: see `write_body`.
    written(writing, unsafe { real(fd, iov, count) })
}

unsafe fn pwrite_body(
    real: unsafe extern "C" fn(c_int, *const c_void, size_t, off_t) -> ssize_t,
    fd: c_int,
    from: *const c_void,
    len: size_t,
    offset: off_t,
) -> ssize_t {
    let writing = Writing::begin(fd, u64::try_from(offset).ok());
    // SAFETY: see `write_body`.
    written(writing, unsafe { real(fd, from, len, offset) })
}

unsafe fn pwritev_body(
    real: unsafe extern "C" fn(c_int, *const iovec, c_int, off_t) -> ssize_t,
    fd: c_int,
    iov: *const iovec,
    count: c_int,
    offset: off_t,
) -> ssize_t {
    let writing = Writing::begin(fd, u64::try_from(offset).ok());
    // SAFETY: see `write_body`.
    written(writing, unsafe { real(fd, iov, count, offset) })
}

unsafe fn pwritev2_body(
    real: unsafe extern "C" fn(c_int, *const iovec, c_int, off_t, c_int) -> ssize_t,
    fd: c_int,
    iov: *const iovec,
    count: c_int,
    offset: off_t,
    flags: c_int,
) -> ssize_t {
    let writing = Writing::begin(fd, u64::try_from(offset).ok());
    // SAFETY: see `write_body`.
    let result = unsafe { real(fd, iov, count, offset, flags) };
    if let Some(writing) = writing {
        let mut more = OFlags::empty();
        more.set(DSYNC, flags & (libc::RWF_DSYNC | libc::RWF_SYNC) != 0);
        more.set(OFlags::APPEND, flags & libc::RWF_APPEND != 0);
        writing.end(result, more);
    }
    result
}

unsafe fn sendfile_body(
    real: unsafe extern "C" fn(c_int, c_int, *mut off_t, size_t) -> ssize_t,
    to: c_int,
    from: c_int,
    offset: *mut off_t,
    count: size_t,
) -> ssize_t {
    let writing = Writing::begin(to, None);
    // SAFETY: see `write_body`.
    written(writing, unsafe { real(to, from, offset, count) })
}

unsafe fn copy_body(
    real: unsafe extern "C" fn(c_int, *mut loff_t, c_int, *mut loff_t, size_t, c_uint) -> ssize_t,
    from: c_int,
    from_at: *mut loff_t,
    to: c_int,
    to_at: *mut loff_t,
    len: size_t,
    flags: c_uint,
) -> ssize_t {
    // SAFETY: null or the program's own variable.
    let given = unsafe { to_at.as_ref() }.and_then(|at| u64::try_from(*at).ok());
    let writing = Writing::begin(to, given);
    // SAFETY: see `write_body`.
    written(writing, unsafe { real(from, from_at, to, to_at, len, flags) })
}
