//! A word that a forked child finds zero, however it was forked: so no child ever takes its parent's cell for its own.

use std::io;
use std::ptr;
use std::sync::atomic::AtomicU32;

use crate::types::PAGE;

/// See the module.
pub(crate) struct WipedOnFork(*mut u8);

// SAFETY: the page is owned by the value and accessed through an atomic only.
unsafe impl Send for WipedOnFork {}
// SAFETY: as above.
unsafe impl Sync for WipedOnFork {}

impl WipedOnFork {
    /// A page of its own, since the kernel wipes whole pages.
    pub(crate) fn new() -> io::Result<WipedOnFork> {
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new anonymous page at a place of the kernel's choice touches nothing of ours.
        let page = unsafe { libc::mmap(ptr::null_mut(), PAGE, prot, flags, -1, 0) };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let word = WipedOnFork(page.cast());
        // SAFETY: the page is ours; the advice changes nothing in this process.
        match unsafe { libc::madvise(page, PAGE, libc::MADV_WIPEONFORK) } {
            0 => Ok(word),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The word.
    #[inline]
    pub(crate) fn word(&self) -> &AtomicU32 {
        // SAFETY: the page is mapped, aligned, and lives as long as `self`.
        unsafe { AtomicU32::from_ptr(self.0.cast()) }
    }
}

impl Drop for WipedOnFork {
    fn drop(&mut self) {
        // SAFETY: the page is ours and nothing borrows it.
        unsafe { libc::munmap(self.0.cast(), PAGE) };
    }
}
