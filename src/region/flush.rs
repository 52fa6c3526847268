//! Local persistence of lines, as libpmem does it: CLWB, else CLFLUSHOPT, else CLFLUSH.
//!
//! For the C API, whose callers have no libpmem in between, and for a destination's own mappings. What the processor offers is asked once, at run time, so
//! that the same library runs on old machines and under emulators that know fewer instructions.

use std::arch::asm;
use std::arch::x86_64::{__cpuid, __cpuid_count, _mm_clflush, _mm_sfence};
use std::io;
use std::ops::Range;
use std::sync::OnceLock;

use crate::types::{LINE, PAGE};

/// Starts writing back the lines that hold `range`; [`fence`] waits for them.
///
/// # Safety
/// The range is mapped readable.
pub unsafe fn flush_lines(range: Range<usize>) {
    let instruction = *BEST.get_or_init(best);
    for line in ((range.start & !(LINE - 1))..range.end).step_by(LINE) {
        let line = line as *const u8;
        // SAFETY: the line is mapped, as the caller promises; writing it back changes no content, and the
        // instruction was found in CPUID.
        unsafe {
            match instruction {
                Instruction::Clwb => asm!("clwb [{}]", in(reg) line, options(nostack, preserves_flags)),
                Instruction::Clflushopt => {
                    asm!("clflushopt [{}]", in(reg) line, options(nostack, preserves_flags))
                }
                Instruction::Clflush => _mm_clflush(line),
            }
        }
    }
}

/// Waits until flushed lines are in the persistence domain and orders later stores after them.
pub fn fence() {
    // SAFETY: a fence has no operands; every x86-64 processor has it.
    unsafe { _mm_sfence() }
}

/// Writes the pages that hold `range` back to their file and waits. An error also when part of the range is not mapped.
pub fn msync(range: Range<usize>) -> io::Result<()> {
    let start = range.start & !(PAGE - 1);
    // SAFETY: msync changes no memory, whatever the range; the kernel checks it.
    match unsafe { libc::msync(start as *mut libc::c_void, range.end - start, libc::MS_SYNC) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[derive(Clone, Copy, Debug)]
enum Instruction {
    /// Writes back and keeps the line in the cache.
    Clwb,
    /// Evicts, in any order.
    Clflushopt,
    /// Evicts, one after the other.
    Clflush,
}

static BEST: OnceLock<Instruction> = OnceLock::new();

fn best() -> Instruction {
    if __cpuid(0).eax < 7 {
        return Instruction::Clflush;
    }
    let features = __cpuid_count(7, 0).ebx;
    match (features & CLWB != 0, features & CLFLUSHOPT != 0) {
        (true, _) => Instruction::Clwb,
        (false, true) => Instruction::Clflushopt,
        (false, false) => Instruction::Clflush,
    }
}

/// CPUID leaf 7, EBX.
const CLFLUSHOPT: u32 = 1 << 23;
/// CPUID leaf 7, EBX.
const CLWB: u32 = 1 << 24;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flushing_leaves_the_content_alone() {
        let content = vec![7u8; 1000];
        let at = content.as_ptr() as usize;
        // SAFETY: the vector is mapped.
        unsafe { flush_lines(at..at + 1000) };
        fence();
        assert!(content.iter().all(|b| *b == 7));
    }

    #[test]
    fn msync_of_nothing_mapped_is_an_error() {
        assert!(msync(PAGE..2 * PAGE).is_err());
        let page = [0u8; 1];
        let at = page.as_ptr() as usize;
        msync(at..at + 1).unwrap();
    }
}
