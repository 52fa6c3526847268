//! msync, fsync and the rest: what was stored through mappings is recorded, the real call follows, and everything
//! recorded so far is published.

use std::ffi::{c_int, c_uint, c_void};

use libc::{off64_t, size_t};

use crate::fds::{self, Meaning};
use crate::guard::{self, LinesRecorded};
use crate::real::hook;
use crate::{file, mapping, state};

type Msync = unsafe extern "C" fn(*mut c_void, size_t, c_int) -> c_int;
type Fd = unsafe extern "C" fn(c_int) -> c_int;

hook!(Libc, [msync], (addr: *mut c_void, len: size_t, flags: c_int) -> c_int, msync_body);
hook!(Libc, [fsync, fdatasync], (fd: c_int) -> c_int, fsync_body);
hook!(Libc, [sync_file_range],
    (fd: c_int, offset: off64_t, len: off64_t, flags: c_uint) -> c_int, sync_file_range_body);
hook!(Libc, [syncfs], (fd: c_int) -> c_int, syncfs_body);
hook!(Libc, [sync], () -> (), sync_body);

unsafe fn msync_body(real: Msync, addr: *mut c_void, len: size_t, flags: c_int) -> c_int {
    let ours = !guard::inside() && !LinesRecorded::is_entered();
    if ours {
        mapping::record_written_at(addr as usize, len);
    }
    // SAFETY: the program's own call.
    let result = unsafe { real(addr, len, flags) };
    if ours && result == 0 && flags & libc::MS_SYNC != 0 {
        drain_keeping_errno();
    }
    result
}

unsafe fn fsync_body(real: Fd, fd: c_int) -> c_int {
    let concerns_us = !guard::inside()
        && match fds::meaning(fd) {
            Meaning::File(_) => {
                if let Some((file, _, _)) = fds::file(fd) {
                    mapping::record_written_to(file);
                    file.record_unseen();
                }
                true
            }
            // Names may have changed in it.
            Meaning::Directory => true,
            Meaning::Plain | Meaning::Unknown => false,
        };
    // SAFETY: the program's own call.
    let result = unsafe { real(fd) };
    if concerns_us && result == 0 {
        drain_keeping_errno();
    }
    result
}

type SyncFileRange = unsafe extern "C" fn(c_int, off64_t, off64_t, c_uint) -> c_int;

/// By its manual it promises nothing about durability; programs use it as if it did, so the careful reading counts.
unsafe fn sync_file_range_body(
    real: SyncFileRange,
    fd: c_int,
    offset: off64_t,
    len: off64_t,
    flags: c_uint,
) -> c_int {
    let file = if guard::inside() { None } else { fds::file(fd) };
    if let Some((file, _, _)) = file {
        mapping::record_written_to(file);
    }
    // SAFETY: the program's own call.
    let result = unsafe { real(fd, offset, len, flags) };
    if file.is_some() && result == 0 && flags & libc::SYNC_FILE_RANGE_WAIT_AFTER != 0 {
        drain_keeping_errno();
    }
    result
}

unsafe fn syncfs_body(real: Fd, fd: c_int) -> c_int {
    mapping::record_all_written();
    file::record_all_unseen();
    // SAFETY: the program's own call.
    let result = unsafe { real(fd) };
    if result == 0 {
        drain_keeping_errno();
    }
    result
}

unsafe fn sync_body(real: unsafe extern "C" fn()) {
    mapping::record_all_written();
    file::record_all_unseen();
    // SAFETY: the program's own call.
    unsafe { real() };
    drain_keeping_errno();
}

fn drain_keeping_errno() {
    let _errno = guard::KeepErrno::new();
    state::drain();
}
