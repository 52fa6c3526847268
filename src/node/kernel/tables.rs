//! The page tables of any process, read in place.
//!
//! What is read may change meanwhile: a table that its process gives back is read as whatever it became. So an answer is a
//! sample, good for counting and never for deciding what may be freed. Only what is memory is followed. Four levels of tables
//! only (no `la57`), and none whose entries have bits of memory encryption.

use std::collections::HashMap;
use std::fs;
use std::io;

use super::btf::Btf;
use super::memory::{KernelMemory, word};
use super::physical::{Direct, frame_of, unsupported};
use crate::region::memory::SharedMem;
use crate::types::PAGE;

/// Bytes that a table of the lowest level maps.
pub const SPAN: u64 = 2 << 20;

/// What a 2 MiB range of addresses is mapped by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Nothing, or what cannot be read.
    Absent,
    /// A table of 512 entries.
    Table {
        /// Entries that map a page.
        present: u16,
        /// Of these, those with their access bit set.
        accessed: u16,
    },
    /// One large page.
    Large {
        /// Whether its access bit is set.
        accessed: bool,
    },
}

/// What one address is mapped by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Page {
    /// Nothing, or what cannot be read.
    Absent,
    /// A page of 4 KiB.
    Small {
        /// Number of its frame in physical memory.
        frame: u64,
        /// Whether its access bit is set.
        accessed: bool,
    },
    /// A part of a large page.
    Large {
        /// Number of this part's frame in physical memory.
        frame: u64,
        /// Whether that one's access bit is set.
        accessed: bool,
    },
}

/// See the module.
pub struct PageTables {
    memory: KernelMemory,
    fields: Fields,
    direct: Direct,
    /// Where tasks were found, by process number; looked at again each time.
    tasks: HashMap<u32, u64>,
}

/// Offsets in the kernel's structures.
struct Fields {
    leader: u64,
    tasks: u64,
    pid: u64,
    mm: u64,
    pgd: u64,
}

impl PageTables {
    /// Loads the reader, and finds its way about this kernel. The error says what is missing.
    pub fn open() -> io::Result<PageTables> {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo")?;
        if cpuinfo.split_whitespace().any(|flag| flag == "la57") {
            return Err(unsupported("this kernel has page tables of five levels"));
        }
        let fields = Fields::of(&fs::read(BTF).map_err(|e| told(BTF, &e))?)?;
        let memory = KernelMemory::open().map_err(|e| told("BPF (CAP_BPF and CAP_PERFMON, or root)", &e))?;
        let direct = Direct::find(&memory)?;
        let mut tables = PageTables { memory, fields, direct, tasks: HashMap::new() };
        tables.prove()?;
        Ok(tables)
    }

    /// Looks up a page of this process, whose frame is known.
    fn prove(&mut self) -> io::Result<()> {
        let page = SharedMem::anonymous(PAGE)?;
        page.write(0, b"x");
        let address = page.addr(0) as u64;
        // The kernel moves a page now and then, and not each time.
        for _ in 0..PROOFS {
            let expected = frame_of(address)?;
            if let [Page::Small { frame, .. } | Page::Large { frame, .. }] =
                self.pages(std::process::id(), &[address])?[..]
                && frame == expected
            {
                return Ok(());
            }
        }
        Err(unsupported("page tables do not say what the kernel does of the same page (memory encryption?)"))
    }

    /// How each 2 MiB range that begins at one of `starts` is mapped in process `pid`, in their order. `starts` are multiples of
    /// [`SPAN`] that ascend.
    pub fn look(&mut self, pid: u32, starts: &[u64]) -> io::Result<Vec<Entry>> {
        let root = self.root_of(pid)?;
        let mut directories = Directories { root, ..Directories::default() };
        let mut entries = vec![Entry::Absent; starts.len()];
        let (mut tables, mut whose) = (Vec::new(), Vec::new());
        for (i, start) in starts.iter().enumerate() {
            match self.lowest(&mut directories, *start)? {
                Lowest::Absent => {}
                Lowest::Large { accessed, .. } => entries[i] = Entry::Large { accessed },
                Lowest::Table(at) => {
                    tables.push(at);
                    whose.push(i);
                }
            }
        }
        self.memory.read(&tables, PAGE, |n, table| {
            if let Some(table) = table {
                entries[whose[n]] = counted(table);
            }
        })?;
        Ok(entries)
    }

    /// The pages at `addresses`, in their order. Each is looked for by itself: for samples.
    pub fn pages(&mut self, pid: u32, addresses: &[u64]) -> io::Result<Vec<Page>> {
        let root = self.root_of(pid)?;
        let mut directories = Directories { root, ..Directories::default() };
        let mut pages = vec![Page::Absent; addresses.len()];
        let (mut entries, mut whose) = (Vec::new(), Vec::new());
        for (i, address) in addresses.iter().enumerate() {
            match self.lowest(&mut directories, address / SPAN * SPAN)? {
                Lowest::Absent => {}
                Lowest::Large { frame, accessed } => {
                    pages[i] = Page::Large { frame: frame + (address >> 12 & 511), accessed };
                }
                Lowest::Table(at) => {
                    entries.push(at + (address >> 12 & 511) * 8);
                    whose.push(i);
                }
            }
        }
        self.memory.read(&entries, 8, |n, entry| {
            let entry = entry.map_or(0, word);
            if entry & PRESENT != 0 {
                let (frame, accessed) = ((entry & FRAME) >> 12, entry & ACCESSED != 0);
                pages[whose[n]] = Page::Small { frame, accessed };
            }
        })?;
        Ok(pages)
    }

    /// Gives the runs of pages, as first address and the one behind the last, that are mapped by small pages and whose access bit is not
    /// set, within the 2 MiB ranges that begin at `starts`.
    pub fn unused(&mut self, pid: u32, starts: &[u64], mut each: impl FnMut(u64, u64)) -> io::Result<()> {
        let root = self.root_of(pid)?;
        let mut directories = Directories { root, ..Directories::default() };
        let (mut tables, mut whose) = (Vec::new(), Vec::new());
        for start in starts {
            if let Lowest::Table(at) = self.lowest(&mut directories, *start)? {
                tables.push(at);
                whose.push(*start);
            }
        }
        self.memory.read(&tables, PAGE, |n, table| {
            let mut run: Option<(u64, u64)> = None;
            for (page, entry) in table.unwrap_or_default().chunks_exact(8).map(word).enumerate() {
                let at = whose[n] + (page * PAGE) as u64;
                if entry & (PRESENT | ACCESSED) != PRESENT {
                    continue;
                }
                run = match run {
                    Some((from, to)) if to == at => Some((from, at + PAGE as u64)),
                    before => {
                        before.into_iter().for_each(|(from, to)| each(from, to));
                        Some((at, at + PAGE as u64))
                    }
                };
            }
            run.into_iter().for_each(|(from, to)| each(from, to));
        })
    }

    /// What maps the 2 MiB at `start`: the directories on the way are kept in `known`.
    fn lowest(&self, known: &mut Directories, start: u64) -> io::Result<Lowest> {
        let index = |level: u32| (start >> (12 + 9 * level) & 511) as usize;
        let upper = known.entry_at(&self.memory, 0, known.root, index(3))?;
        let Some(upper) = self.next(upper) else { return Ok(Lowest::Absent) };
        let middle = known.entry_at(&self.memory, 1, upper, index(2))?;
        if middle & PRESENT != 0 && middle & HUGE != 0 {
            // A page of 1 GiB: nothing here to be mapped large.
            let frame = (middle & FRAME & !(GIB - 1) | start & (GIB - 1)) >> 12;
            return Ok(Lowest::Large { frame, accessed: middle & ACCESSED != 0 });
        }
        let Some(middle) = self.next(middle) else { return Ok(Lowest::Absent) };
        let entry = known.entry_at(&self.memory, 2, middle, index(1))?;
        if entry & PRESENT != 0 && entry & HUGE != 0 {
            let frame = (entry & FRAME & !(SPAN - 1)) >> 12;
            return Ok(Lowest::Large { frame, accessed: entry & ACCESSED != 0 });
        }
        Ok(self.next(entry).map_or(Lowest::Absent, Lowest::Table))
    }

    /// The address of the table that a present entry points to; none where no memory is.
    fn next(&self, entry: u64) -> Option<u64> {
        (entry & PRESENT != 0).then(|| self.direct.address_of(entry & FRAME)).flatten()
    }

    /// The word at an offset of a structure of the kernel's; nothing where there can be none.
    fn field(&self, of: u64, offset: u64) -> io::Result<Option<u64>> {
        match of.checked_add(offset).filter(|at| self.direct.may_hold(*at, 8)) {
            Some(at) => self.memory.word_at(at),
            None => Ok(None),
        }
    }

    /// The address of the highest table of process `pid`.
    fn root_of(&mut self, pid: u32) -> io::Result<u64> {
        let known = self.tasks.get(&pid).copied();
        let mut task = match known {
            Some(task) if self.number_of(task)? == Some(pid) => Some(task),
            _ => None,
        };
        if task.is_none() {
            self.list_tasks()?;
            task = self.tasks.get(&pid).copied();
        }
        let gone = || io::Error::new(io::ErrorKind::NotFound, format!("there is no process {pid}"));
        let mm = self.field(task.ok_or_else(gone)?, self.fields.mm)?.filter(|mm| *mm != 0);
        let root = self.field(mm.ok_or_else(gone)?, self.fields.pgd)?;
        root.filter(|root| self.direct.may_hold(*root, PAGE as u64)).ok_or_else(gone)
    }

    /// Walks the list of all processes.
    fn list_tasks(&mut self) -> io::Result<()> {
        self.tasks.clear();
        let mine = self.memory.current_task()?;
        let first = self.field(mine, self.fields.leader)?.ok_or_else(|| unsupported("no task"))?;
        if self.number_of(first)? != Some(std::process::id()) {
            return Err(unsupported(
                "process numbers differ from the kernel's: this runs in a PID namespace",
            ));
        }
        let mut task = first;
        for _ in 0..MOST_TASKS {
            let (next, pid) = (self.field(task, self.fields.tasks)?, self.number_of(task)?);
            let (Some(next), Some(pid)) = (next, pid) else { break };
            self.tasks.insert(pid, task);
            task = next.wrapping_sub(self.fields.tasks);
            if task == first {
                return Ok(());
            }
        }
        // Somebody on the way has ended: what was found is found, and the rest is looked for next time.
        Ok(())
    }

    fn number_of(&self, task: u64) -> io::Result<Option<u32>> {
        Ok(self.field(task, self.fields.pid)?.map(|word| word as u32))
    }
}

enum Lowest {
    Absent,
    /// A large page: the frame that this range begins with.
    Large {
        frame: u64,
        accessed: bool,
    },
    Table(u64),
}

/// The tables above the lowest ones that were read last: neighbours share them.
#[derive(Default)]
struct Directories {
    root: u64,
    read: [Option<(u64, Vec<u8>)>; 3],
}

impl Directories {
    /// Entry `index` of the table at address `at`; nothing where it cannot be read.
    fn entry_at(&mut self, memory: &KernelMemory, level: usize, at: u64, index: usize) -> io::Result<u64> {
        if self.read[level].as_ref().is_none_or(|(of, _)| *of != at) {
            let mut table = vec![0; PAGE];
            memory.read(&[at], PAGE, |_, bytes| {
                if let Some(bytes) = bytes {
                    table.copy_from_slice(bytes);
                }
            })?;
            self.read[level] = Some((at, table));
        }
        Ok(self.read[level].as_ref().map_or(0, |(_, table)| word(&table[8 * index..])))
    }
}

fn counted(table: &[u8]) -> Entry {
    let (mut present, mut accessed) = (0, 0);
    for entry in table.chunks_exact(8).map(word) {
        present += (entry & PRESENT) as u16;
        accessed += (entry & PRESENT != 0 && entry & ACCESSED != 0) as u16;
    }
    Entry::Table { present, accessed }
}

impl Fields {
    fn of(bytes: &[u8]) -> io::Result<Fields> {
        let btf = Btf::parse(bytes)
            .ok_or_else(|| unsupported("the kernel's description of its types is not readable"))?;
        let find = |name: &str, field: &str| {
            let found = btf.offset_of(name, field).map(|offset| offset as u64);
            found.ok_or_else(|| unsupported(&format!("this kernel has no {name}.{field}")))
        };
        Ok(Fields {
            leader: find("task_struct", "group_leader")?,
            tasks: find("task_struct", "tasks")?,
            pid: find("task_struct", "pid")?,
            mm: find("task_struct", "mm")?,
            pgd: find("mm_struct", "pgd")?,
        })
    }
}

fn told(what: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

const BTF: &str = "/sys/kernel/btf/vmlinux";

// From arch/x86/include/asm/pgtable_types.h and page_64_types.h.
const PRESENT: u64 = 1;
const ACCESSED: u64 = 1 << 5;
const HUGE: u64 = 1 << 7;
const FRAME: u64 = 0x000f_ffff_ffff_f000;
const GIB: u64 = 1 << 30;

/// Looks at a page of ours before it is said that tables tell something else.
const PROOFS: usize = 5;

/// Processes that are walked over at most.
const MOST_TASKS: usize = 1 << 17;

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// Ours, or nothing where this machine does not let us; said so.
    fn tables() -> Option<PageTables> {
        let said = |e: &io::Error| _ = writeln!(io::stderr(), "\nskipped: page tables: {e}");
        PageTables::open().inspect_err(said).ok()
    }

    #[test]
    fn entries_and_access_bits_are_counted_as_they_are_made() {
        let Some(mut tables) = tables() else { return };
        let memory = SharedMem::anonymous(4 * SPAN as usize).unwrap();
        let first = (memory.addr(0) as u64).next_multiple_of(SPAN);
        let at =
            |range: u64, page: usize| (first - memory.addr(0) as u64 + range * SPAN) as usize + page * PAGE;
        let touch = |range, pages: usize| (0..pages).for_each(|page| memory.write(at(range, page), b"x"));
        touch(0, 512);
        touch(1, 7);
        let starts = [first, first + SPAN, first + 2 * SPAN];
        let seen = tables.look(std::process::id(), &starts).unwrap();
        let table = |present, accessed| Entry::Table { present, accessed };
        assert_eq!(seen[..2], [table(512, 512), table(7, 7)]);
        // The harness's other threads have pages of their own.
        fs::write("/proc/self/clear_refs", "1").unwrap();
        // Uses of translations that the processors remember would set no bit: they forget all when many pages are unmapped.
        let many = SharedMem::anonymous(PAGE * 256).unwrap();
        many.zero(0, many.len());
        drop(many);
        touch(0, 100);
        let seen = tables.look(std::process::id(), &starts).unwrap();
        assert_eq!(seen[..2], [table(512, 100), table(7, 0)]);
        assert!(matches!(seen[2], Entry::Absent | Entry::Table { present: 0, .. }), "{seen:?}");
        let mut runs = Vec::new();
        let place = |address: u64| (address - first) / PAGE as u64;
        tables.unused(std::process::id(), &starts, |from, to| runs.push((place(from), place(to)))).unwrap();
        assert_eq!(runs, [(100, 512), (512, 519)]);
        let frame = frame_of(first).unwrap();
        let pages =
            tables.pages(std::process::id(), &[first, first + 511 * PAGE as u64, first + 2 * SPAN]).unwrap();
        assert_eq!(pages[0], Page::Small { frame, accessed: true });
        assert!(
            matches!(pages[1], Page::Small { accessed: false, .. }) && pages[2] == Page::Absent,
            "{pages:?}"
        );
    }

    #[test]
    fn a_process_that_is_not_there_is_said_so() {
        let Some(mut tables) = tables() else { return };
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        let error = tables.look(child.id(), &[0x40_0000]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound, "{error}");
    }
}
