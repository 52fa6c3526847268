//! A process's mappings, by its `smaps`: where 2 MiB ranges could lie, how much was referenced, how much is mapped large.
//!
//! The kernel walks all page tables of the process for one reading; the caller counts that as cost.

use std::io;
use std::path::Path;
use std::{fs, str};

use super::policy::Range;

/// One mapping. Sizes in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// Behind its last.
    pub end: u64,
    /// Place in its file at which it begins.
    pub offset: u64,
    /// Whether it is of a file, or of shared memory, which is one to the kernel.
    pub is_file: bool,
    /// The file, or the kernel's name for what it is; empty for anonymous memory.
    pub path: String,
    /// Mapped by page tables.
    pub resident: u64,
    /// Of pages whose access bit is set.
    pub referenced: u64,
    /// Mapped by large pages.
    pub large: u64,
    /// Whether it is ordinary memory, that large pages could serve: no device, no hugetlbfs, nothing of the kernel's.
    pub is_ordinary: bool,
    /// Whether it is locked: nobody may page it out.
    pub is_locked: bool,
}

impl Mapping {
    /// Ranges that lie in it as a whole, and could be mapped large: of a file, those that begin at a multiple of their size there, too.
    pub fn ranges(&self) -> impl Iterator<Item = Range> + use<> {
        let aligned = !self.is_file || self.start.wrapping_sub(self.offset).is_multiple_of(Range::BYTES);
        let first = self.start.div_ceil(Range::BYTES);
        let end = if aligned && self.is_ordinary { self.end / Range::BYTES } else { first };
        (first..end.max(first)).map(Range)
    }

    /// Whether an address lies in it.
    pub fn contains(&self, address: u64) -> bool {
        (self.start..self.end).contains(&address)
    }
}

/// The mappings of process `pid` below `proc`, in order of their addresses.
pub fn of(proc: &Path, pid: u32) -> io::Result<Vec<Mapping>> {
    let text = fs::read(proc.join(format!("{pid}/smaps")))?;
    Ok(parse(&text))
}

/// Reads the text of `smaps`. Lines that make no sense are passed over.
pub fn parse(text: &[u8]) -> Vec<Mapping> {
    let mut all: Vec<Mapping> = Vec::new();
    for line in text.split(|b| *b == b'\n') {
        let line = String::from_utf8_lossy(line);
        if let Some(mapping) = head(&line) {
            all.push(mapping);
        } else if let (Some(mapping), Some((key, value))) = (all.last_mut(), line.split_once(':')) {
            mapping.enter(key, value);
        }
    }
    all
}

/// `start-end perms offset device inode path`
fn head(line: &str) -> Option<Mapping> {
    let mut words = line.splitn(6, ' ');
    let (start, end) = words.next()?.split_once('-')?;
    let hex = |word: &str| u64::from_str_radix(word, 16).ok();
    let (start, end) = (hex(start)?, hex(end)?);
    let _permissions = words.next()?;
    let offset = hex(words.next()?)?;
    let _device = words.next()?;
    let is_file = words.next()? != "0";
    let path = words.next().unwrap_or_default().trim_start().to_owned();
    let is_ordinary = !(path.starts_with("[v") || path == "[uprobes]");
    (start < end).then_some(Mapping { start, end, offset, is_file, path, is_ordinary, ..Mapping::default() })
}

impl Mapping {
    fn enter(&mut self, key: &str, value: &str) {
        let kib = || value.trim().strip_suffix("kB").and_then(|n| n.trim().parse::<u64>().ok()).unwrap_or(0);
        let bytes = || kib().saturating_mul(1024);
        match key {
            "Rss" => self.resident = bytes(),
            "Referenced" => self.referenced = bytes(),
            "AnonHugePages" | "ShmemPmdMapped" | "FilePmdMapped" => {
                self.large = self.large.saturating_add(bytes())
            }
            "KernelPageSize" => self.is_ordinary &= kib() == 4,
            "VmFlags" => {
                self.is_ordinary &= !value.split(' ').any(|flag| matches!(flag, "io" | "pf" | "ht"));
                self.is_locked = value.split(' ').any(|flag| flag == "lo");
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
7f0000001000-7f0000c00000 rw-s 00001000 00:01 42                         /memfd:a b (deleted)
Size:              12284 kB
KernelPageSize:        4 kB
Rss:                2048 kB
Referenced:          512 kB
AnonHugePages:         0 kB
ShmemPmdMapped:     2048 kB
VmFlags: rd wr sh mr
7f0000e00000-7f0001200000 rw-p 00000000 00:00 0
KernelPageSize:        4 kB
AnonHugePages:      4096 kB
7f0001200000-7f0001600000 rw-s 00000000 00:0f 9  /dev/hugepages/x
KernelPageSize:     2048 kB
nonsense
7fffffffffff-7f0000000000 rw-p 0 0 0
";

    #[test]
    fn mappings_are_read_with_what_large_pages_could_serve() {
        let all = parse(TEXT.as_bytes());
        assert_eq!(all.len(), 3);
        let [shared, anonymous, huge] = &all[..] else { unreachable!() };
        assert_eq!(
            (&*shared.path, shared.resident, shared.referenced, shared.large),
            ("/memfd:a b (deleted)", 2 << 20, 512 << 10, 2 << 20)
        );
        let numbers = |m: &Mapping| m.ranges().map(Range::start).collect::<Vec<_>>();
        assert_eq!(
            numbers(shared),
            [0x7f00_0020_0000, 0x7f00_0040_0000, 0x7f00_0060_0000, 0x7f00_0080_0000, 0x7f00_00a0_0000]
        );
        assert_eq!(numbers(anonymous), [0x7f00_00e0_0000, 0x7f00_0100_0000]);
        assert_eq!(numbers(huge), [0u64; 0], "it is large already");
        let shifted = Mapping { offset: 0, ..shared.clone() };
        assert_eq!(numbers(&shifted), [0u64; 0], "no range begins where one of the file does");
    }

    #[test]
    fn this_process_has_mappings() {
        let all = of(Path::new("/proc"), std::process::id()).unwrap();
        let here = TEXT.as_ptr() as u64;
        assert!(all.iter().any(|m| m.contains(here)) && all.iter().any(|m| m.referenced > 0));
        assert!(of(Path::new("/proc"), u32::MAX).is_err());
    }
}
