//! Where access bits come from: three sources behind one trait. Each says how fine it is; none guesses finer.
//!
//! | source | tells | of | needs |
//! | --- | --- | --- | --- |
//! | [`Tables`] | the access bits of each page | any process; of a virtual machine without hardware assist, by the page tables of its QEMU | BPF, root |
//! | [`Referenced`] | how much of a whole mapping was accessed | any process | root, or its user |
//! | [`WriteLog`] | the pages of each range that were *written*, as a shadow of their accesses | this process | userfaultfd or soft-dirty bits |
//!
//! With hardware assist (KVM), a guest's accesses set bits in the nested tables of the hypervisor. Linux shows these to nobody, and
//! there the bits of QEMU's own tables tell only what QEMU itself touched.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::mappings::{self, Mapping};
use super::policy::{Bits, PAGES, Range};
use crate::node::kernel::tables::{Entry, PageTables};
use crate::region::dirty::DirtyTracker;
use crate::types::PAGE;

/// How a source sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The access bit of each page.
    PageTables,
    /// Bytes referenced of each mapping, taken as spread evenly over its ranges.
    ReferencedOfMapping,
    /// Pages written.
    WriteLog,
}

/// Counts accesses between two looks.
pub trait AccessBits {
    /// How it sees.
    fn kind(&self) -> Kind;

    /// What was set of each of the ranges since the last [`AccessBits::clear`], in their order. Ranges ascend.
    fn count(&mut self, ranges: &[Range]) -> io::Result<Vec<Bits>>;

    /// Begins a new period.
    fn clear(&mut self) -> io::Result<()>;

    /// A range is mapped large from here on, or no longer: for sources that cannot tell.
    fn now(&mut self, _range: Range, _large: bool) {}
}

/// The best source for process `pid` that this machine has; the reason if it is not the finest one.
pub fn best(pid: u32) -> (Box<dyn AccessBits>, Option<io::Error>) {
    match PageTables::open() {
        Ok(tables) => (Box::new(Tables { pid, tables }), None),
        Err(why) => (Box::new(Referenced::new(Path::new("/proc"), pid)), Some(why)),
    }
}

/// See the module.
pub struct Tables {
    pid: u32,
    tables: PageTables,
}

impl Tables {
    /// Of process `pid`.
    pub fn open(pid: u32) -> io::Result<Tables> {
        Ok(Tables { pid, tables: PageTables::open()? })
    }
}

impl AccessBits for Tables {
    fn kind(&self) -> Kind {
        Kind::PageTables
    }

    fn count(&mut self, ranges: &[Range]) -> io::Result<Vec<Bits>> {
        let starts: Vec<u64> = ranges.iter().map(|range| range.start()).collect();
        let entries = self.tables.look(self.pid, &starts)?;
        let bits = |entry| match entry {
            Entry::Absent => Bits::Small(0),
            Entry::Table { accessed, .. } => Bits::Small(accessed),
            Entry::Large { accessed } => Bits::Large(accessed),
        };
        Ok(entries.into_iter().map(bits).collect())
    }

    fn clear(&mut self) -> io::Result<()> {
        clear_refs(Path::new("/proc"), self.pid)
    }
}

/// See the module.
pub struct Referenced {
    proc: PathBuf,
    pid: u32,
    large: Vec<Range>,
}

impl Referenced {
    /// Of process `pid` below `proc`.
    pub fn new(proc: &Path, pid: u32) -> Referenced {
        Referenced { proc: proc.into(), pid, large: Vec::new() }
    }
}

impl AccessBits for Referenced {
    fn kind(&self) -> Kind {
        Kind::ReferencedOfMapping
    }

    fn count(&mut self, ranges: &[Range]) -> io::Result<Vec<Bits>> {
        let mappings = mappings::of(&self.proc, self.pid)?;
        let bits = |range: &Range| {
            let share = share_of(&mappings, *range);
            if self.large.contains(range) { Bits::Large(share > 0) } else { Bits::Small(share) }
        };
        Ok(ranges.iter().map(bits).collect())
    }

    fn clear(&mut self) -> io::Result<()> {
        clear_refs(&self.proc, self.pid)
    }

    fn now(&mut self, range: Range, large: bool) {
        self.large.retain(|r| *r != range);
        if large {
            self.large.push(range);
        }
    }
}

/// Pages of a range that were accessed if its mapping was accessed evenly, rounded up: one that was accessed at all has some.
fn share_of(mappings: &[Mapping], range: Range) -> u16 {
    let at = mappings.partition_point(|m| m.end <= range.start());
    let Some(m) = mappings.get(at).filter(|m| m.contains(range.start())) else { return 0 };
    let pages = (u128::from(PAGES) * u128::from(m.referenced)).div_ceil(u128::from(m.end - m.start));
    pages.min(PAGES.into()) as u16
}

/// Clears the access bits of all pages of a process. The kernel also forgets that these pages were referenced, which its own
/// reclaim goes by.
fn clear_refs(proc: &Path, pid: u32) -> io::Result<()> {
    fs::write(proc.join(format!("{pid}/clear_refs")), "1")
}

/// See the module.
pub struct WriteLog {
    tracker: Box<dyn DirtyTracker>,
    start: usize,
    end: usize,
}

impl WriteLog {
    /// Of the pages `[start, end)` of this process.
    pub fn of(mut tracker: Box<dyn DirtyTracker>, start: usize, end: usize) -> io::Result<WriteLog> {
        tracker.watch(start, end)?;
        Ok(WriteLog { tracker, start, end })
    }
}

impl AccessBits for WriteLog {
    fn kind(&self) -> Kind {
        Kind::WriteLog
    }

    /// Counting collects, and so begins a new period by itself. Of ranges that are not watched nothing is known: none.
    fn count(&mut self, ranges: &[Range]) -> io::Result<Vec<Bits>> {
        let mut written = vec![0u16; ranges.len()];
        self.tracker.take(self.start, self.end, &mut |from, to| {
            for page in (from..to).step_by(PAGE) {
                if let Ok(i) = ranges.binary_search(&Range::of(page as u64)) {
                    written[i] += 1;
                }
            }
        });
        Ok(written.into_iter().map(Bits::Small).collect())
    }

    fn clear(&mut self) -> io::Result<()> {
        self.count(&[]).map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::region::dirty;
    use crate::region::memory::SharedMem;

    #[test]
    fn what_a_mapping_has_of_accesses_is_spread_over_its_ranges() {
        let mapping = |start, end, referenced| Mapping { start, end, referenced, ..Mapping::default() };
        let all =
            [mapping(0, 4 << 20, 1 << 20), mapping(8 << 20, 10 << 20, 0), mapping(10 << 20, 14 << 20, 4096)];
        let shares = [0, 1, 3, 4, 5, 9].map(|n| share_of(&all, Range(n)));
        assert_eq!(shares, [128, 128, 0, 0, 1, 0]);
    }

    #[test]
    fn a_write_log_counts_the_written_pages_of_each_range_once() {
        let memory = SharedMem::anonymous(3 * Range::BYTES as usize).unwrap();
        let base = memory.addr(0) as usize;
        let first = Range((base as u64).div_ceil(Range::BYTES));
        let at = |page: usize| first.start() as usize - base + page * PAGE;
        (0..600).for_each(|page| memory.write(at(page), b"before"));
        let end = base + memory.len();
        let mut log = WriteLog::of(dirty::best(), base, end).unwrap();
        log.clear().unwrap();
        for page in [3, 4, 5, 513] {
            memory.write(at(page), b"x");
        }
        let ranges = [first, Range(first.0 + 1)];
        assert_eq!(log.count(&ranges).unwrap(), [Bits::Small(3), Bits::Small(1)]);
        assert_eq!(log.count(&ranges).unwrap(), [Bits::Small(0), Bits::Small(0)]);
    }
}
