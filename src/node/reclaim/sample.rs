//! Classes of a process's pages, from a sample of them: what a page is by `/proc/kpageflags`, whether it was used by its access bit.
//!
//! Of a virtual machine this sees what its QEMU does: guest memory is anonymous or shared memory, whatever the guest uses it for. Its caches
//! and free pages are not told apart from its programs' memory: that takes somebody inside the guest. With KVM the guest's accesses are not
//! seen at all, so that all anonymous memory of such a process counts as used.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::classes::{Class, Estimate, PerClass, estimate};
use super::process::Process;
use crate::node::kernel::tables::{Page, PageTables};
use crate::node::largepage::mappings::{self, Mapping};
use crate::types::PAGE;

/// Bits of `/proc/kpageflags`, from linux/kernel-page-flags.h.
pub mod flags {
    /// Free, in the page allocator.
    pub const BUDDY: u64 = 1 << 10;
    /// Anonymous.
    pub const ANON: u64 = 1 << 12;
    /// Goes to swap: anonymous or shared memory.
    pub const SWAPBACKED: u64 = 1 << 14;
    /// Of hugetlbfs.
    pub const HUGE: u64 = 1 << 17;
    /// Not to be evicted.
    pub const UNEVICTABLE: u64 = 1 << 18;
    /// The page of zeros.
    pub const ZERO_PAGE: u64 = 1 << 24;
    /// Reserved by the kernel.
    pub const RESERVED: u64 = 1 << 32;
    /// Locked.
    pub const MLOCKED: u64 = 1 << 33;
}

/// The class of a page, by the kernel's flags and whether it was used in the interval. A page that is registered with an adapter has no
/// flag of its own: whoever registered it says so.
pub fn classify(bits: u64, used: bool, registered: bool) -> Class {
    use flags::*;
    if registered || bits & (HUGE | UNEVICTABLE | MLOCKED | RESERVED) != 0 {
        Class::Unreclaimable
    } else if bits & BUDDY != 0 {
        Class::Free
    } else {
        match (bits & (ANON | SWAPBACKED) != 0, used) {
            (true, true) => Class::ActiveAnonymous,
            (true, false) => Class::InactiveAnonymous,
            (false, true) => Class::ActiveBuffer,
            (false, false) => Class::InactiveBuffer,
        }
    }
}

/// What a sample told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Sampled {
    /// Bytes that the process has of the host's memory.
    pub resident: u64,
    /// Pages that were looked at and there.
    pub pages: u64,
    /// What they are, of all.
    pub classes: PerClass<Estimate>,
}

/// Samples up to `count` pages of a process whose access bits were cleared at the beginning of the interval. `registered` are
/// ranges of addresses that are registered with an adapter. `chance` yields numbers at random. An error if it has ended.
pub fn sample(
    tables: &mut PageTables,
    process: &Process,
    count: usize,
    registered: &[(u64, u64)],
    mut chance: impl FnMut() -> u64,
) -> io::Result<Sampled> {
    let (pid, kvm) = (process.pid(), process.runs_kvm()?);
    let mappings: Vec<Mapping> =
        mappings::of(Path::new("/proc"), pid)?.into_iter().filter(|m| m.resident > 0).collect();
    let resident = mappings.iter().map(|m| m.resident).sum();
    let kpageflags = File::open("/proc/kpageflags")?;
    let mut classes = PerClass::default();
    let mut pages = 0;
    // Of a mapping that is resident in part, places that are not there are drawn as well.
    for _ in 0..ROUNDS {
        let wanted = count.saturating_sub(pages as usize);
        if wanted == 0 || mappings.is_empty() {
            break;
        }
        let places: Vec<u64> = (0..wanted).map(|_| draw(&mappings, resident, &mut chance)).collect();
        for (address, page) in places.iter().zip(tables.pages(pid, &places)?) {
            let registered = registered.iter().any(|(from, to)| (*from..*to).contains(address));
            let (Page::Small { frame, accessed } | Page::Large { frame, accessed }) = page else { continue };
            let Some(bits) = flags_of(&kpageflags, frame)?.filter(|bits| bits & flags::ZERO_PAGE == 0) else {
                continue;
            };
            let class =
                classify(bits, accessed || kvm && bits & (flags::ANON | flags::SWAPBACKED) != 0, registered);
            classes[class] += 1;
            pages += 1;
        }
    }
    process.still()?;
    Ok(Sampled { resident, pages, classes: estimate(resident, &classes) })
}

/// A page's address: mappings by what they have resident, pages within one evenly.
fn draw(mappings: &[Mapping], resident: u64, chance: &mut impl FnMut() -> u64) -> u64 {
    let mut at = chance() % resident.max(1);
    let mapping = mappings.iter().find(|m| {
        let inside = at < m.resident;
        at = at.saturating_sub(m.resident);
        inside
    });
    let Mapping { start, end, .. } = mapping.unwrap_or(&mappings[0]);
    start + chance() % ((end - start) / PAGE as u64) * PAGE as u64
}

/// Flags of a frame; none of one that is beyond all memory, as an entry that changed while it was read may name.
fn flags_of(kpageflags: &File, frame: u64) -> io::Result<Option<u64>> {
    let mut word = [0; 8];
    match kpageflags.read_exact_at(&mut word, frame * 8) {
        Ok(()) => Ok(Some(u64::from_ne_bytes(word))),
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(e) => Err(e),
    }
}

/// Draws for those that were not there, at most.
const ROUNDS: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_classed_by_what_they_are_and_whether_they_were_used() {
        use flags::*;
        let table = [
            (ANON | SWAPBACKED, true, false, Class::ActiveAnonymous),
            (ANON | SWAPBACKED, false, false, Class::InactiveAnonymous),
            (SWAPBACKED, false, false, Class::InactiveAnonymous),
            (0, true, false, Class::ActiveBuffer),
            (0, false, false, Class::InactiveBuffer),
            (BUDDY, false, false, Class::Free),
            (ANON | MLOCKED, true, false, Class::Unreclaimable),
            (UNEVICTABLE, false, false, Class::Unreclaimable),
            (HUGE, false, false, Class::Unreclaimable),
            (ANON | SWAPBACKED, false, true, Class::Unreclaimable),
        ];
        for (bits, used, registered, class) in table {
            assert_eq!(classify(bits, used, registered), class, "{bits:#x}");
        }
    }
}
