//! Copying cache lines so that each copy is the content of one instant.
//!
//! Stores within a line reach memory in order, so a copy made of small loads can show a line that never was. One
//! 64-byte load cannot (AVX-512); else the line is read again until two successive readings agree.

use std::arch::asm;

use crate::types::{LINE, PAGE};

/// Readings of a line before giving up on two that agree. A writer that changes one line every few nanoseconds
/// without pause is needed to get there.
const MAX_READINGS: u32 = 64;

/// How this processor copies a line; chosen once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LineCopy {
    /// One 64-byte load.
    Avx512,
    /// Two 32-byte loads, twice.
    Avx,
    /// Eight 8-byte loads, twice.
    Words,
}

impl LineCopy {
    /// The best that the processor has.
    pub(crate) fn detect() -> LineCopy {
        if std::is_x86_feature_detected!("avx512f") {
            LineCopy::Avx512
        } else if std::is_x86_feature_detected!("avx") {
            LineCopy::Avx
        } else {
            LineCopy::Words
        }
    }

    /// Copies `lines` whole lines; returns how many never read the same twice.
    ///
    /// # Safety
    /// `src` is readable and `dst` writable for that many lines, and they do not overlap. Others may write to `src`.
    #[inline]
    pub(crate) unsafe fn copy(self, src: *const u8, dst: *mut u8, lines: usize) -> u64 {
        let mut torn = 0;
        for i in 0..lines {
            let (from, to) = (src.wrapping_add(i * LINE), dst.wrapping_add(i * LINE));
            // SAFETY: within the ranges that the caller vouches for; the variant was detected.
            let settled = unsafe {
                match self {
                    LineCopy::Avx512 => copy_avx512(from, to),
                    LineCopy::Avx => copy_avx(from, to),
                    LineCopy::Words => copy_words(from, to),
                }
            };
            torn += u64::from(!settled);
        }
        torn
    }
}

/// Reads a byte of each page, so that a page fault happens here and not later.
///
/// # Safety
/// `len` bytes from `at` are readable.
#[inline]
pub(crate) unsafe fn touch(at: *const u8, len: usize) {
    let mut off = 0;
    while off < len {
        // SAFETY: within the range.
        unsafe { at.wrapping_add(off).read_volatile() };
        off += PAGE - (at.addr() + off) % PAGE;
    }
}

#[inline]
unsafe fn copy_avx512(src: *const u8, dst: *mut u8) -> bool {
    // SAFETY: the caller vouches for both lines and for the instruction.
    unsafe {
        asm!(
            "vmovdqu64 zmm0, [{s}]",
            "vmovdqu64 [{d}], zmm0",
            s = in(reg) src,
            d = in(reg) dst,
            out("xmm0") _,
            options(nostack, preserves_flags)
        );
    }
    true
}

#[inline]
unsafe fn copy_avx(src: *const u8, dst: *mut u8) -> bool {
    let mut left = MAX_READINGS;
    // ymm0/1 hold the previous reading, ymm2/3 the next one; equal when every bit of the differences is 0.
    // SAFETY: the caller vouches for both lines and for the instructions.
    unsafe {
        asm!(
            "vmovdqu ymm0, [{s}]",
            "vmovdqu ymm1, [{s} + 32]",
            "2:",
            "vmovdqu ymm2, [{s}]",
            "vmovdqu ymm3, [{s} + 32]",
            "vxorps ymm0, ymm0, ymm2",
            "vxorps ymm1, ymm1, ymm3",
            "vorps ymm0, ymm0, ymm1",
            "vptest ymm0, ymm0",
            "jz 3f",
            "vmovaps ymm0, ymm2",
            "vmovaps ymm1, ymm3",
            "dec {n:e}",
            "jnz 2b",
            "3:",
            "vmovdqu [{d}], ymm2",
            "vmovdqu [{d} + 32], ymm3",
            "vzeroupper",
            s = in(reg) src,
            d = in(reg) dst,
            n = inout(reg) left,
            out("xmm0") _, out("xmm1") _, out("xmm2") _, out("xmm3") _,
            options(nostack)
        );
    }
    left != 0
}

unsafe fn copy_words(src: *const u8, dst: *mut u8) -> bool {
    let read = || -> [u64; 8] {
        // SAFETY: the caller vouches for the line.
        std::array::from_fn(|i| unsafe { src.cast::<u64>().wrapping_add(i).read_volatile() })
    };
    let mut last = read();
    let mut settled = false;
    for _ in 0..MAX_READINGS {
        let next = read();
        settled = next == last;
        last = next;
        if settled {
            break;
        }
    }
    // SAFETY: the caller vouches for the line.
    unsafe { dst.cast::<[u64; 8]>().write_unaligned(last) };
    settled
}
