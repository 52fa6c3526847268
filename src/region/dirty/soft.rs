//! Written pages by the kernel's soft-dirty bits, for kernels before 6.7 that are built with them.
//!
//! The bits are read and cleared in two steps, for the whole process at once. A store of another thread between the two
//! would be lost. So the bits are cleared and believed only while this process has one thread; otherwise digests decide. They
//! decide also of a page without a table entry: reclaim takes the bit along with the entry.

use std::io;
use std::os::fd::OwnedFd;
use std::ptr;

use rustix::fs::{Mode, OFlags, open, stat};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use super::{Digests, DirtyTracker, Kind, Ranges, Runs};
use crate::types::PAGE;

/// See the module.
pub struct SoftDirty {
    pagemap: OwnedFd,
    clear_refs: OwnedFd,
    watched: Ranges,
    /// Written pages of ranges that nobody asked for when the bits were cleared.
    pending: Ranges,
    /// Pages that had no table entry then.
    lost: Ranges,
    digests: Digests,
}

// Of a pagemap entry.
const SOFT_DIRTY: u64 = 1 << 55;
const SWAPPED: u64 = 1 << 62;
const PRESENT: u64 = 1 << 63;

/// Pagemap entries that are read at once.
const ENTRIES: usize = 512;

impl SoftDirty {
    /// Opens what it needs and tries it on a page of its own.
    pub fn new() -> io::Result<SoftDirty> {
        let pagemap = open("/proc/self/pagemap", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        let clear_refs = open("/proc/self/clear_refs", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        let soft = SoftDirty {
            pagemap,
            clear_refs,
            watched: Ranges::default(),
            pending: Ranges::default(),
            lost: Ranges::default(),
            digests: Digests::new(),
        };
        soft.try_out()?;
        Ok(soft)
    }

    fn try_out(&self) -> io::Result<()> {
        // SAFETY: a fresh anonymous page of ours, unmapped below.
        let page = unsafe {
            mmap_anonymous(ptr::null_mut(), PAGE, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)?
        };
        let at = page as usize;
        let outcome = (|| {
            // SAFETY: the page is mapped and ours.
            unsafe { page.cast::<u8>().write_volatile(1) };
            self.clear()?;
            let clean = self.pages(at, at + PAGE, is_written)?.is_empty();
            // SAFETY: as above.
            unsafe { page.cast::<u8>().write_volatile(2) };
            Ok::<_, io::Error>(clean && !self.pages(at, at + PAGE, is_written)?.is_empty())
        })();
        // SAFETY: mapped above.
        unsafe { munmap(page, PAGE)? };
        if outcome? { Ok(()) } else { Err(io::ErrorKind::Unsupported.into()) }
    }

    fn clear(&self) -> io::Result<()> {
        rustix::io::write(&self.clear_refs, b"4")?;
        Ok(())
    }

    /// Runs of pages of `[start, end)` whose entries are so.
    fn pages(&self, start: usize, end: usize, are: fn(u64) -> bool) -> io::Result<Vec<(usize, usize)>> {
        let mut runs: Vec<(usize, usize)> = Vec::new();
        let mut entries = [0u8; ENTRIES * 8];
        let mut at = start;
        while at < end {
            let n = ENTRIES.min((end - at) / PAGE);
            let got = rustix::io::pread(&self.pagemap, &mut entries[..n * 8], (at / PAGE * 8) as u64)?;
            if got != n * 8 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            for (i, entry) in entries[..got].chunks_exact(8).enumerate() {
                let entry = u64::from_le_bytes(entry.try_into().expect("eight bytes"));
                let page = at + i * PAGE;
                match runs.last_mut() {
                    _ if !are(entry) => {}
                    Some((_, end)) if *end == page => *end += PAGE,
                    _ => runs.push((page, page + PAGE)),
                }
            }
            at += n * PAGE;
        }
        Ok(runs)
    }

    /// Moves all bits of watched ranges into `pending`. For a process of one thread.
    fn collect(&mut self) -> io::Result<()> {
        for (s, e) in self.watched.0.clone() {
            self.pages(s, e, is_written)?.into_iter().for_each(|(s, e)| self.pending.add(s, e));
            self.pages(s, e, is_lost)?.into_iter().for_each(|(s, e)| self.lost.add(s, e));
        }
        self.clear()
    }

    fn report_all(&mut self, start: usize, end: usize, report: &mut dyn FnMut(usize, usize)) {
        self.digests.forget(start, end);
        report(start, end);
    }
}

impl DirtyTracker for SoftDirty {
    fn kind(&self) -> Kind {
        Kind::SoftDirty
    }

    fn watch(&mut self, start: usize, end: usize) -> io::Result<()> {
        // With more threads what the bits say from before is reported once more than need be.
        if one_thread() {
            self.collect()?;
            self.pending.remove(start, end);
        }
        self.watched.add(start, end);
        Ok(())
    }

    fn forget(&mut self, start: usize, end: usize) {
        self.watched.remove(start, end);
        self.pending.remove(start, end);
        self.lost.remove(start, end);
        self.digests.forget(start, end);
    }

    fn take(&mut self, start: usize, end: usize, report: &mut dyn FnMut(usize, usize)) {
        if !one_thread() {
            self.digests.take(start, end, report);
            return;
        }
        for (s, e, watched) in self.watched.parts(start, end) {
            if !watched {
                let _ = self.watch(s, e);
                self.report_all(s, e, report);
            }
        }
        if self.collect().is_err() {
            return self.report_all(start, end, report);
        }
        // The digests of what is reported are out of date from here on.
        let written: Vec<_> = self.pending.parts(start, end).into_iter().filter(|p| p.2).collect();
        self.pending.remove(start, end);
        let lost: Vec<_> = self.lost.parts(start, end).into_iter().filter(|p| p.2).collect();
        self.lost.remove(start, end);
        let mut runs = Runs::new(report);
        for (s, e, _) in &written {
            self.digests.forget(*s, *e);
            (*s..*e).step_by(PAGE).for_each(|page| runs.page(page));
        }
        runs.finish();
        for (s, e, _) in lost {
            self.digests.take(s, e, report);
        }
    }
}

fn is_written(entry: u64) -> bool {
    entry & SOFT_DIRTY != 0
}

fn is_lost(entry: u64) -> bool {
    entry & (PRESENT | SWAPPED | SOFT_DIRTY) == 0
}

/// A process's task directory has a link for each thread besides its own two.
fn one_thread() -> bool {
    stat("/proc/self/task").is_ok_and(|s| s.st_nlink == 3)
}
