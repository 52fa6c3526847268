//! Written pages by userfaultfd's asynchronous write protection and PAGEMAP_SCAN (Linux 6.7).
//!
//! The kernel lifts the protection of a page at its first store, without waking anybody; the scan reports pages that
//! lack it and puts it back in the same step.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

use rustix::fs::{Mode, OFlags, open};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use super::{DirtyTracker, Kind, Ranges};
use crate::types::PAGE;

/// See the module.
pub struct Scan {
    uffd: OwnedFd,
    pagemap: OwnedFd,
    watched: Ranges,
}

impl Scan {
    /// Opens what it needs and tries it on a page of its own.
    pub fn new() -> io::Result<Scan> {
        let pagemap = open("/proc/self/pagemap", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let mut scan = Scan { uffd: userfaultfd()?, pagemap, watched: Ranges::default() };
        scan.try_out()?;
        Ok(scan)
    }

    fn try_out(&mut self) -> io::Result<()> {
        // SAFETY: a fresh anonymous page of ours, unmapped below.
        let page = unsafe {
            mmap_anonymous(ptr::null_mut(), PAGE, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)?
        };
        let at = page as usize;
        let mut written = 0;
        let outcome = self.watch(at, at + PAGE).and_then(|()| {
            // SAFETY: the page is mapped and ours.
            unsafe { page.cast::<u8>().write_volatile(1) };
            self.scan(at, at + PAGE, WRITTEN, 0, &mut |_, _| written += 1)
        });
        self.forget(at, at + PAGE);
        // SAFETY: mapped above.
        unsafe { munmap(page, PAGE)? };
        outcome?;
        if written == 1 { Ok(()) } else { Err(io::ErrorKind::Unsupported.into()) }
    }

    /// Reports pages that have all of `mask`, inverted for those in `inverted`, and write-protects them.
    fn scan(
        &self,
        start: usize,
        end: usize,
        mask: u64,
        inverted: u64,
        report: &mut dyn FnMut(usize, usize),
    ) -> io::Result<()> {
        let mut found = [PageRegion { start: 0, end: 0, categories: 0 }; FOUND];
        let mut at = start;
        while at < end {
            let mut arg = ScanArg {
                size: size_of::<ScanArg>() as u64,
                flags: SCAN_WP_MATCHING | SCAN_CHECK_WPASYNC,
                start: at as u64,
                end: end as u64,
                walk_end: 0,
                vec: found.as_mut_ptr() as u64,
                vec_len: FOUND as u64,
                max_pages: 0,
                category_inverted: inverted,
                category_mask: mask,
                category_anyof_mask: 0,
                return_mask: mask,
            };
            let n = ioctl(&self.pagemap, PAGEMAP_SCAN, &mut arg)?;
            for run in &found[..n] {
                report(run.start as usize, run.end as usize);
            }
            let reached = arg.walk_end as usize;
            if reached <= at {
                return Err(io::Error::other("PAGEMAP_SCAN makes no progress"));
            }
            at = reached;
        }
        Ok(())
    }
}

impl DirtyTracker for Scan {
    fn kind(&self) -> Kind {
        Kind::Scan
    }

    fn watch(&mut self, start: usize, end: usize) -> io::Result<()> {
        let range = Range { start: start as u64, len: (end - start) as u64 };
        ioctl(&self.uffd, UFFDIO_REGISTER, &mut Register { range, mode: REGISTER_MODE_WP, ioctls: 0 })?;
        ioctl(&self.uffd, UFFDIO_WRITEPROTECT, &mut WriteProtect { range, mode: WRITEPROTECT_MODE_WP })?;
        self.watched.add(start, end);
        Ok(())
    }

    fn forget(&mut self, start: usize, end: usize) {
        for (s, e, watched) in self.watched.parts(start, end) {
            if watched {
                let mut range = Range { start: s as u64, len: (e - s) as u64 };
                // Fails only for what the program has unmapped already, which ended the watch.
                let _ = ioctl(&self.uffd, UFFDIO_UNREGISTER, &mut range);
            }
        }
        self.watched.remove(start, end);
    }

    fn take(&mut self, start: usize, end: usize, report: &mut dyn FnMut(usize, usize)) {
        for (s, e, watched) in self.watched.parts(start, end) {
            if !watched {
                // What cannot be watched is reported every time.
                let _ = self.watch(s, e);
                report(s, e);
                continue;
            }
            // A page that was written and then lost its table entry to reclaim has no mark at all; one that is
            // protected keeps a marker even then. So what has neither content nor marker counts as written.
            let lost = PRESENT | SWAPPED;
            let outcome =
                self.scan(s, e, WRITTEN, 0, report).and_then(|()| self.scan(s, e, lost, lost, report));
            if outcome.is_err() {
                self.watched.remove(s, e);
                let _ = self.watch(s, e);
                report(s, e);
            }
        }
    }
}

fn userfaultfd() -> io::Result<OwnedFd> {
    const USER_MODE_ONLY: i32 = 1;
    let flags = libc::O_CLOEXEC | libc::O_NONBLOCK | USER_MODE_ONLY;
    // SAFETY: the call returns a new descriptor or -1.
    let uffd = unsafe {
        match libc::syscall(libc::SYS_userfaultfd, flags) {
            n if n >= 0 => OwnedFd::from_raw_fd(n as i32),
            _ => return Err(io::Error::last_os_error()),
        }
    };
    let features = FEATURE_WP_HUGETLBFS_SHMEM | FEATURE_WP_UNPOPULATED | FEATURE_WP_ASYNC;
    ioctl(&uffd, UFFDIO_API, &mut Api { api: UFFD_API, features, ioctls: 0 })?;
    Ok(uffd)
}

fn ioctl<T>(fd: &OwnedFd, request: libc::c_ulong, arg: &mut T) -> io::Result<usize> {
    // SAFETY: every request here is paired with the structure that the kernel defines for it, which lives through
    // the call; what it points to does too.
    let n = unsafe { libc::syscall(libc::SYS_ioctl, fd.as_raw_fd(), request, ptr::from_mut(arg)) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Runs of pages that one call reports at most.
const FOUND: usize = 512;

#[repr(C)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

#[repr(C)]
struct Api {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Range {
    start: u64,
    len: u64,
}

#[repr(C)]
struct Register {
    range: Range,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct WriteProtect {
    range: Range,
    mode: u64,
}

// From linux/fs.h and linux/userfaultfd.h.
const PAGEMAP_SCAN: libc::c_ulong = 0xc060_6610;
const SCAN_WP_MATCHING: u64 = 1;
const SCAN_CHECK_WPASYNC: u64 = 2;
const WRITTEN: u64 = 1 << 1;
const PRESENT: u64 = 1 << 3;
const SWAPPED: u64 = 1 << 4;
const UFFD_API: u64 = 0xaa;
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const UFFDIO_UNREGISTER: libc::c_ulong = 0x8010_aa01;
const UFFDIO_WRITEPROTECT: libc::c_ulong = 0xc018_aa06;
const FEATURE_WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
const FEATURE_WP_UNPOPULATED: u64 = 1 << 13;
const FEATURE_WP_ASYNC: u64 = 1 << 15;
const REGISTER_MODE_WP: u64 = 1 << 1;
const WRITEPROTECT_MODE_WP: u64 = 1;
