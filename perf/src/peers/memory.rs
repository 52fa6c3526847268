//! Memory itself: what a copy costs that goes nowhere, and one that is flushed.

use std::arch::asm;
use std::arch::x86_64::_mm_sfence;
use std::hint::black_box;
use std::io;
use std::time::{Duration, Instant};

use pmemha::region::memory::SharedMem;

/// Names in rows.
pub const MEMCPY: &str = "memcpy";
/// See [`copy_and_flush`].
pub const MEMCPY_CLWB: &str = "memcpy+clwb";

/// Copies.
///
/// # Safety
/// `src` is readable and `dst` writable for `len` bytes, and they do not overlap.
pub unsafe fn copy(src: *const u8, dst: *mut u8, len: usize) {
    // SAFETY: as the caller vouches.
    unsafe { std::ptr::copy_nonoverlapping(black_box(src), black_box(dst), len) };
}

/// Copies, flushes each line, and fences.
///
/// # Safety
/// As for [`copy`].
pub unsafe fn copy_and_flush(src: *const u8, dst: *mut u8, len: usize) {
    // SAFETY: as the caller vouches; CLWB changes no content.
    unsafe {
        std::ptr::copy_nonoverlapping(black_box(src), dst, len);
        for line in (0..len).step_by(64) {
            asm!("clwb [{}]", in(reg) dst.wrapping_add(line), options(nostack, preserves_flags));
        }
        _mm_sfence();
    }
}

/// Bytes a second of copies in pieces from one buffer to another, each of `buffer` bytes, which is a multiple of `piece`.
pub fn bandwidth(flushed: bool, piece: usize, buffer: usize, time: Duration) -> io::Result<f64> {
    let (src, dst) = (pages(buffer)?, pages(buffer)?);
    let (start, mut moved, mut at) = (Instant::now(), 0u64, 0);
    let one = if flushed { copy_and_flush } else { copy };
    while start.elapsed() < time {
        for _ in 0..CLOCKED {
            // SAFETY: both buffers hold `buffer` bytes, `at + piece` is within them, and they are two.
            unsafe { one(src.addr(at), dst.addr(at), piece) };
            at = (at + piece) % buffer;
        }
        moved += (piece * CLOCKED) as u64;
    }
    Ok(moved as f64 / start.elapsed().as_secs_f64())
}

/// Copies between two looks at the clock.
const CLOCKED: usize = 8;

/// Page-aligned memory, every page touched.
pub fn pages(len: usize) -> io::Result<SharedMem> {
    let memory = SharedMem::anonymous(len)?;
    (0..len).step_by(PAGE).for_each(|at| memory.write(at, &[0x5a; PAGE]));
    Ok(memory)
}

const PAGE: usize = 4096;
