//! Which pages of this process's mappings were written: for programs that store through a mapping and then msync it.
//!
//! Three ways, tried in this order, behind one trait. All of them watch this process only: each process of a group
//! watches its own stores.
//!
//! | way | needs | cost |
//! | --- | --- | --- |
//! | [`Kind::Scan`] | userfaultfd with asynchronous write protection and PAGEMAP_SCAN (Linux 6.7) | a minor fault a page and round |
//! | [`Kind::SoftDirty`] | soft-dirty bits; one thread, else digests | clearing walks the whole process |
//! | [`Kind::Digest`] | nothing | reads every page at every round |
//!
//! Threads: a tracker is used by one thread at a time; the stores that it watches come from any.

mod digest;
mod scan;
mod soft;

use std::fmt;
use std::io;

use crate::types::PAGE;

pub use digest::Digests;
pub use scan::Scan;
pub use soft::SoftDirty;

/// The way in which writes are found; readable for status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Asynchronous write protection by userfaultfd, collected by PAGEMAP_SCAN.
    Scan,
    /// The kernel's soft-dirty bits.
    SoftDirty,
    /// Digests of every page.
    Digest,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Scan => "scan",
            Kind::SoftDirty => "soft-dirty",
            Kind::Digest => "digest",
        })
    }
}

/// Finds written pages. Addresses are page-aligned.
///
/// What is not being watched counts as written: an implementation never says that a page is clean unless it has watched it since
/// it last reported it. Pages may be reported that hold what they held; none is left out.
pub trait DirtyTracker: Send {
    /// How it works.
    fn kind(&self) -> Kind;

    /// Watches `[start, end)` from here on; what is there now counts as clean.
    fn watch(&mut self, start: usize, end: usize) -> io::Result<()>;

    /// Stops watching, before the range is unmapped or moved.
    fn forget(&mut self, start: usize, end: usize);

    /// Reports the runs of pages of `[start, end)` written since they were watched or last reported, and watches them
    /// again *before* reporting: a store after that is seen next time. On an error everything is reported.
    fn take(&mut self, start: usize, end: usize, report: &mut dyn FnMut(usize, usize));
}

/// The best tracker that this kernel has, found by trying it on a page of ours.
pub fn best() -> Box<dyn DirtyTracker> {
    if let Ok(scan) = Scan::new() {
        return Box::new(scan);
    }
    match SoftDirty::new() {
        Ok(soft) => Box::new(soft),
        Err(_) => Box::new(Digests::new()),
    }
}

/// Sorted, disjoint ranges of addresses.
#[derive(Default, Debug)]
struct Ranges(Vec<(usize, usize)>);

impl Ranges {
    fn add(&mut self, start: usize, end: usize) {
        self.remove(start, end);
        let at = self.0.partition_point(|r| r.0 < start);
        self.0.insert(at, (start, end));
    }

    fn remove(&mut self, start: usize, end: usize) {
        let kept = self.0.iter().flat_map(|&(s, e)| [(s, e.min(start)), (s.max(end), e)]);
        self.0 = kept.filter(|r| r.0 < r.1).collect();
    }

    /// Parts of `[start, end)` and whether they are in the set.
    fn parts(&self, start: usize, end: usize) -> Vec<(usize, usize, bool)> {
        let mut parts = Vec::new();
        let mut at = start;
        for &(s, e) in self.0.iter().filter(|r| r.0 < end && start < r.1) {
            if at < s {
                parts.push((at, s, false));
            }
            parts.push((s.max(start), e.min(end), true));
            at = e;
        }
        if at < end {
            parts.push((at, end, false));
        }
        parts
    }
}

/// Joins neighbouring pages into runs.
struct Runs<'a> {
    report: &'a mut dyn FnMut(usize, usize),
    run: Option<(usize, usize)>,
}

impl<'a> Runs<'a> {
    fn new(report: &'a mut dyn FnMut(usize, usize)) -> Runs<'a> {
        Runs { report, run: None }
    }

    fn page(&mut self, addr: usize) {
        match &mut self.run {
            Some((_, end)) if *end == addr => *end += PAGE,
            _ => {
                self.finish();
                self.run = Some((addr, addr + PAGE));
            }
        }
    }

    fn finish(&mut self) {
        if let Some((start, end)) = self.run.take() {
            (self.report)(start, end);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::memory::{Access, SharedMem};
    use rustix::mm::{Advice, madvise};
    use std::os::fd::AsFd;

    fn mapped(dir: &str, pages: usize) -> (SharedMem, usize) {
        let file = tempfile::tempfile_in(dir).unwrap();
        file.set_len((pages * PAGE) as u64).unwrap();
        let memory = SharedMem::map(file.as_fd(), 0, pages * PAGE, Access::ReadWrite).unwrap();
        let at = memory.addr(0) as usize;
        (memory, at)
    }

    fn taken(tracker: &mut dyn DirtyTracker, start: usize, pages: usize) -> Vec<usize> {
        let mut found = Vec::new();
        tracker.take(start, start + pages * PAGE, &mut |s, e| {
            found.extend((s..e).step_by(PAGE).map(|a| (a - start) / PAGE));
        });
        found
    }

    fn trackers() -> Vec<Box<dyn DirtyTracker>> {
        let mut all: Vec<Box<dyn DirtyTracker>> = vec![Box::new(Digests::new())];
        all.extend(Scan::new().ok().map(|t| Box::new(t) as Box<dyn DirtyTracker>));
        all.extend(SoftDirty::new().ok().map(|t| Box::new(t) as Box<dyn DirtyTracker>));
        all
    }

    #[test]
    fn written_pages_are_found_once_and_no_other() {
        for mut tracker in trackers() {
            for dir in ["/dev/shm", "."] {
                let (memory, at) = mapped(dir, 64);
                memory.write(5 * PAGE, b"before");
                tracker.watch(at, at + 64 * PAGE).unwrap();
                memory.write(7 * PAGE + 9, b"x");
                memory.write(8 * PAGE, b"y");
                memory.write(63 * PAGE, b"z");
                let mut byte = [0];
                memory.read(20 * PAGE, &mut byte);
                let kind = tracker.kind();
                let found = taken(&mut *tracker, at, 64);
                if kind == Kind::SoftDirty {
                    // Digests decide of what was never touched, and of all where the harness has threads; they know nothing yet.
                    assert!([7, 8, 63].iter().all(|p| found.contains(p)));
                } else {
                    assert_eq!(found, [7, 8, 63], "{kind} in {dir}");
                }
                assert_eq!(taken(&mut *tracker, at, 64), [0usize; 0], "{kind} in {dir}");
                memory.write(8 * PAGE, b"again");
                assert_eq!(taken(&mut *tracker, at, 8), [0usize; 0], "{kind}: the range is kept to");
                assert_eq!(taken(&mut *tracker, at, 64), [8], "{kind} in {dir}");
                tracker.forget(at, at + 64 * PAGE);
            }
        }
    }

    #[test]
    fn a_written_page_that_lost_its_table_entry_is_still_found() {
        for mut tracker in trackers() {
            let (memory, at) = mapped("/dev/shm", 16);
            tracker.watch(at, at + 16 * PAGE).unwrap();
            for round in 0..2 {
                memory.write(3 * PAGE, &[round + 1]);
                // SAFETY: a shared mapping of a file: only its page table entries go, not its content.
                unsafe { madvise(at as *mut _, 16 * PAGE, Advice::LinuxDontNeed) }.unwrap();
                assert!(taken(&mut *tracker, at, 16).contains(&3), "{}", tracker.kind());
            }
        }
    }

    #[test]
    fn what_is_not_watched_counts_as_written() {
        for mut tracker in trackers() {
            let (_memory, at) = mapped("/dev/shm", 8);
            tracker.watch(at + 2 * PAGE, at + 8 * PAGE).unwrap();
            assert!(taken(&mut *tracker, at, 8).starts_with(&[0, 1]), "{}", tracker.kind());
            assert_eq!(taken(&mut *tracker, at, 8), [0usize; 0], "{}", tracker.kind());
        }
    }

    #[test]
    fn racing_stores_are_in_this_round_or_the_next() {
        for mut tracker in trackers() {
            let (memory, at) = mapped("/dev/shm", 32);
            tracker.watch(at, at + 32 * PAGE).unwrap();
            let mut copy = vec![0u8; 32 * PAGE];
            std::thread::scope(|scope| {
                let writer = scope.spawn(|| {
                    for i in 0..20_000usize {
                        memory.write((i * 7 % 32) * PAGE + i % PAGE, &[i as u8]);
                    }
                });
                while !writer.is_finished() {
                    tracker.take(at, at + 32 * PAGE, &mut |s, e| {
                        memory.read(s - at, &mut copy[s - at..e - at]);
                    });
                }
            });
            tracker.take(at, at + 32 * PAGE, &mut |s, e| memory.read(s - at, &mut copy[s - at..e - at]));
            let mut now = vec![0u8; 32 * PAGE];
            memory.read(0, &mut now);
            assert!(copy == now, "{}: a store was lost", tracker.kind());
        }
    }
}
