//! Where physical memory is, and where the kernel maps it: [`super::tables`] reads nowhere else.
//!
//! What a page table says may be nonsense by the time it is followed, and behind an address that is not memory there may be a
//! device, which a read can upset. So frames are held against what `/proc/iomem` calls "System RAM", and structures of the
//! kernel's against that and the place of its image.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

use super::memory::KernelMemory;
use crate::region::memory::SharedMem;
use crate::types::PAGE;

/// Ranges of physical memory, each its first byte and the one behind the last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ram(Vec<(u64, u64)>);

impl Ram {
    /// Of this machine.
    pub fn of_machine() -> io::Result<Ram> {
        let ram = Ram::parse(&fs::read_to_string(IOMEM)?);
        if ram.0.is_empty() {
            return Err(unsupported("/proc/iomem does not tell where memory is (CAP_SYS_ADMIN)"));
        }
        Ok(ram)
    }

    /// By the text of `/proc/iomem`. Whoever may not know reads zeros there, which are no ranges.
    pub fn parse(text: &str) -> Ram {
        let range = |line: &str| {
            let (place, name) = line.trim_start().split_once(" : ")?;
            let (from, last) = place.split_once('-')?;
            let (from, last) = (u64::from_str_radix(from, 16).ok()?, u64::from_str_radix(last, 16).ok()?);
            let end = last.checked_add(1)?;
            (name.starts_with("System RAM") && from < last).then_some((from, end))
        };
        Ram(text.lines().filter_map(range).collect())
    }

    /// Whether all of these bytes are memory.
    pub fn holds(&self, from: u64, len: u64) -> bool {
        let Some(end) = from.checked_add(len) else { return false };
        self.0.iter().any(|(a, b)| *a <= from && end <= *b)
    }
}

/// The kernel's map of physical memory.
pub struct Direct {
    ram: Ram,
    /// Address at which byte 0 is mapped.
    base: u64,
}

impl Direct {
    /// Finds it, by looking for a page of ours there: its place is chosen at boot, and a multiple of 1 GiB.
    pub fn find(memory: &KernelMemory) -> io::Result<Direct> {
        let ram = Ram::of_machine()?;
        let page = SharedMem::anonymous(PAGE)?;
        let mark: Vec<u8> = mark().concat();
        page.write(0, &mark);
        for _ in 0..ATTEMPTS {
            let frame = frame_of(page.addr(0) as u64)?;
            let found = probe(memory, &page, frame, &mark)?;
            // A page that the kernel moved meanwhile is looked for where it is now.
            if let Some(base) = found
                && frame_of(page.addr(0) as u64)? == frame
            {
                return Ok(Direct { ram, base });
            }
        }
        Err(unsupported("the kernel's map of physical memory was not found"))
    }

    /// Where the page of memory that a table's entry points to is mapped; none if that is no memory. An entry that has more
    /// bits than those of a frame, as memory encryption sets, is none.
    pub fn address_of(&self, physical: u64) -> Option<u64> {
        self.ram.holds(physical, PAGE as u64).then(|| self.base.checked_add(physical)).flatten()
    }

    /// Whether structures of the kernel's can lie at an address: in memory, or in its image.
    pub fn may_hold(&self, address: u64, len: u64) -> bool {
        let in_memory = address.checked_sub(self.base).is_some_and(|physical| self.ram.holds(physical, len));
        let in_image = address >= IMAGE.0 && address.checked_add(len).is_some_and(|end| end <= IMAGE.1);
        in_memory || in_image
    }
}

/// Looks for the mark of `page`, which has a frame, from the lowest place on. Ends at the first hit, since behind the map other
/// things are mapped, and where the page is not in its frame any more.
fn probe(memory: &KernelMemory, page: &SharedMem, frame: u64, mark: &[u8]) -> io::Result<Option<u64>> {
    let offset = frame.checked_mul(PAGE as u64).ok_or_else(|| unsupported("a page has no frame"))?;
    for first in (0..MOST_GIB).step_by(PROBED) {
        if first.is_multiple_of(CHECKED) && frame_of(page.addr(0) as u64)? != frame {
            return Ok(None);
        }
        let bases = (first..first + PROBED as u64).map(|gib| LOWEST_DIRECT_MAP + (gib << 30));
        let (bases, at): (Vec<u64>, Vec<u64>) =
            bases.filter_map(|base| Some((base, base.checked_add(offset)?))).unzip();
        let mut found = None;
        memory.read(&at, mark.len(), |i, bytes| {
            if bytes == Some(mark) {
                found.get_or_insert(bases[i]);
            }
        })?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// Bytes that stand nowhere else by chance.
fn mark() -> [[u8; 8]; 4] {
    use std::hash::{BuildHasher, RandomState};
    std::array::from_fn(|i| RandomState::new().hash_one(i).to_ne_bytes())
}

/// Number of the physical page at `address` of this process.
pub fn frame_of(address: u64) -> io::Result<u64> {
    let mut entry = [0; 8];
    File::open("/proc/self/pagemap")?.read_exact_at(&mut entry, address / PAGE as u64 * 8)?;
    let entry = u64::from_ne_bytes(entry);
    let frame = entry & ((1 << 55) - 1);
    if entry >> 63 == 1 && frame != 0 {
        Ok(frame)
    } else {
        Err(unsupported("page frames are not told (CAP_SYS_ADMIN)"))
    }
}

/// What this machine does not let us do.
pub fn unsupported(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, what)
}

const IOMEM: &str = "/proc/iomem";

// From arch/x86/include/asm/page_64_types.h and pgtable_64_types.h, and Documentation/arch/x86/x86_64/mm.rst.
const LOWEST_DIRECT_MAP: u64 = 0xffff_8880_0000_0000;
const IMAGE: (u64, u64) = (0xffff_ffff_8000_0000, 0xffff_ffff_c000_0000);

/// The map begins within 32 TiB from its lowest place: at random, it has a third of what the kernel's addresses leave free.
const MOST_GIB: u64 = 32 << 10;

/// Places that are looked at in one go. The kernel leaves more than that free behind its map.
const PROBED: usize = 8;

/// GiB after which it is made sure that the page is where it was.
const CHECKED: u64 = 256;

/// A page is moved now and then, and not each time.
const ATTEMPTS: usize = 5;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str = "\
00000000-00000fff : Reserved
00001000-0009fbff : System RAM
00100000-bfffffff : System RAM
  01000000-01ffffff : Kernel code
c0000000-fdffffff : PCI Bus 0000:00
100000000-13fffffff : Persistent Memory
  100000000-13fffffff : dax0.0
    100000000-13fffffff : System RAM (kmem)
";

    #[test]
    fn only_what_is_called_memory_is_memory() {
        let ram = Ram::parse(TEXT);
        assert_eq!(ram.0, [(0x1000, 0x9fc00), (0x10_0000, 0xc000_0000), (0x1_0000_0000, 0x1_4000_0000)]);
        assert!(ram.holds(0x1000, 4096) && ram.holds(0xbfff_f000, 4096));
        assert!(!ram.holds(0, 4096) && !ram.holds(0xbfff_f000, 4097) && !ram.holds(0xc000_0000, 4096));
        assert!(!ram.holds(u64::MAX - 4095, 4096), "it overflows");
        assert_eq!(Ram::parse("00000000-00000000 : System RAM\n"), Ram::default(), "hidden from this user");
    }

    #[test]
    fn nothing_but_memory_and_the_image_is_read() {
        let direct = Direct { ram: Ram::parse(TEXT), base: LOWEST_DIRECT_MAP };
        assert_eq!(direct.address_of(0x10_0000), Some(LOWEST_DIRECT_MAP + 0x10_0000));
        assert_eq!(direct.address_of(0xc000_0000), None, "a device");
        assert_eq!(direct.address_of(1 << 51 | 0x10_0000), None, "encrypted");
        assert!(direct.may_hold(LOWEST_DIRECT_MAP + 0x10_0008, 8) && direct.may_hold(IMAGE.0 + 8, 8));
        assert!(!direct.may_hold(IMAGE.1 - 4, 8) && !direct.may_hold(8, 8) && !direct.may_hold(u64::MAX, 8));
        assert!(!direct.may_hold(LOWEST_DIRECT_MAP + 0xc000_0000, 8));
    }

    proptest! {
        #[test]
        fn nonsense_is_no_memory_and_does_not_panic(text in ".{0,200}", from: u64, len: u64) {
            _ = Ram::parse(&text).holds(from, len);
            let direct = Direct { ram: Ram::parse(TEXT), base: LOWEST_DIRECT_MAP };
            let address = direct.address_of(from);
            prop_assert_eq!(address.is_some(), direct.ram.holds(from, PAGE as u64));
            _ = direct.may_hold(from, len);
        }
    }
}
