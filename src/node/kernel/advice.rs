//! `process_madvise`: advice on the memory of another process.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// What is advised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Hint {
    /// The range is not used (`MADV_COLD`); splits a large page of which it is a part.
    Cold = 20,
    /// Write the range out and free it (`MADV_PAGEOUT`).
    PageOut = 21,
    /// Map the range large (`MADV_COLLAPSE`).
    Collapse = 25,
}

/// Ranges that one call takes at most (`UIO_MAXIOV`).
pub const MOST_RANGES: usize = 1024;

/// Gives `hint` on ranges `(address, bytes)`, at most [`MOST_RANGES`], of the process of a pidfd; bytes that the kernel went over.
/// None of these changes content.
pub fn advise(process: BorrowedFd<'_>, ranges: &[(u64, usize)], hint: Hint) -> io::Result<usize> {
    let vectors: Vec<libc::iovec> =
        ranges.iter().map(|(at, len)| libc::iovec { iov_base: *at as *mut _, iov_len: *len }).collect();
    // SAFETY: the vectors live through the call and name addresses of another process, which the kernel checks; no memory of
    // ours is read or written.
    let n = unsafe {
        libc::syscall(
            libc::SYS_process_madvise,
            process.as_raw_fd(),
            vectors.as_ptr(),
            vectors.len(),
            hint as i32,
            0,
        )
    };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}
