//! Memory that another process, a device or a remote machine writes while we look at it.
//!
//! No reference or slice to such memory is ever made: it is read and written through bounds-checked
//! copies and atomics only, so that every room above can stay free of `unsafe`. The model is vm-memory's
//! volatile slices.
//!
//! Threads: all methods may be called from any thread; concurrent writers can tear what a plain copy
//! reads. Callers that need more say so (`read_lines`) or check what they read (CRC).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64};
use std::{ptr, slice};

use super::{crc, flush};

/// Bytes looked at at once by a checksum: a part of the first-level cache.
const BOUNCE: usize = 4096;

/// A mapping, unmapped on drop. Offsets and lengths are in bytes; out-of-range ones panic, since they are
/// bugs of ours: whoever takes an offset from outside checks it with [`SharedMem::contains`] first.
pub struct SharedMem {
    base: *mut u8,
    /// Bytes that may be addressed; for a ring twice its size.
    reach: usize,
    len: usize,
}

// SAFETY: the mapping is owned by the value and accessed only through raw copies and atomics, which are
// sound from any thread.
unsafe impl Send for SharedMem {}
// SAFETY: as above.
unsafe impl Sync for SharedMem {}

/// What a mapping may be used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read only.
    Read,
    /// Read and write.
    ReadWrite,
}

impl SharedMem {
    /// Maps `len` bytes of `fd` from `offset`, shared.
    pub fn map(fd: BorrowedFd<'_>, offset: u64, len: usize, access: Access) -> io::Result<SharedMem> {
        let base = map_at(ptr::null_mut(), len, access, 0, fd.as_raw_fd(), offset)?;
        Ok(SharedMem { base, reach: len, len })
    }

    /// Maps `len` bytes of `fd` from `offset` twice, one after the other, so that whatever starts within
    /// the first copy can be accessed without a thought for the wrap. `len` is a multiple of the page size.
    pub fn map_ring(fd: BorrowedFd<'_>, offset: u64, len: usize, access: Access) -> io::Result<SharedMem> {
        // Reserve the whole span first, so that the two halves are neighbours.
        // SAFETY: an anonymous reservation at an address of the kernel's choice touches nothing of ours.
        let span = unsafe {
            libc::mmap(
                ptr::null_mut(),
                2 * len,
                libc::PROT_NONE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if span == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let ring = SharedMem { base: span.cast(), reach: 2 * len, len };
        for half in [0, len] {
            // The reservation is ours, so MAP_FIXED replaces nothing else.
            let at = ring.base.wrapping_add(half);
            map_at(at, len, access, libc::MAP_FIXED, fd.as_raw_fd(), offset)?;
        }
        Ok(ring)
    }

    /// Anonymous shared memory, zeroed.
    pub fn anonymous(len: usize) -> io::Result<SharedMem> {
        let base = map_at(ptr::null_mut(), len, Access::ReadWrite, libc::MAP_ANONYMOUS, -1, 0)?;
        Ok(SharedMem { base, reach: len, len })
    }

    /// Bytes mapped; of a ring, its size once.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is mapped.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether `len` bytes from `off` can be accessed.
    #[inline]
    pub fn contains(&self, off: usize, len: usize) -> bool {
        off.checked_add(len).is_some_and(|end| end <= self.reach)
    }

    /// The address of byte `off`, for registration with a device or a kernel call. Not to be dereferenced.
    #[inline]
    pub fn addr(&self, off: usize) -> *mut u8 {
        if off > self.reach {
            outside(off, 0, self.reach);
        }
        self.base.wrapping_add(off)
    }

    #[inline]
    fn at(&self, off: usize, len: usize) -> *mut u8 {
        if !self.contains(off, len) {
            outside(off, len, self.reach);
        }
        self.base.wrapping_add(off)
    }

    /// Copies bytes out.
    pub fn read(&self, off: usize, dst: &mut [u8]) {
        let src = self.at(off, dst.len());
        // SAFETY: `at` checked the range; `dst` is ours alone. Racing writers can only tear the bytes.
        unsafe { ptr::copy_nonoverlapping(src, dst.as_mut_ptr(), dst.len()) }
    }

    /// Copies bytes in.
    pub fn write(&self, off: usize, src: &[u8]) {
        let dst = self.at(off, src.len());
        // SAFETY: `at` checked the range; the mapping is never borrowed.
        unsafe { ptr::copy_nonoverlapping(src.as_ptr(), dst, src.len()) }
    }

    /// Copies `len` bytes from here to `dst`; the two ranges do not overlap.
    pub fn copy_to(&self, off: usize, dst: &SharedMem, dst_off: usize, len: usize) {
        let (src, to) = (self.at(off, len), dst.at(dst_off, len));
        // SAFETY: both ranges were checked; callers pass distinct mappings or disjoint ranges.
        unsafe { ptr::copy(src, to, len) }
    }

    /// Asks the processor to fetch the line at `off`, which is about to be written. Changes nothing.
    #[inline]
    pub fn prefetch(&self, off: usize) {
        let line = self.at(off, 1).cast_const().cast::<i8>();
        // SAFETY: a prefetch has no effect but on caches, whatever the address.
        unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_ET0 }>(line) }
    }

    /// Sets `len` bytes to zero.
    pub fn zero(&self, off: usize, len: usize) {
        let dst = self.at(off, len);
        // SAFETY: `at` checked the range.
        unsafe { ptr::write_bytes(dst, 0, len) }
    }

    /// CRC32C of `len` bytes, continuing `seed`.
    pub fn crc32c(&self, seed: u32, off: usize, len: usize) -> u32 {
        if len < crc::SHORT && off.is_multiple_of(size_of::<u64>()) && crc::has_instruction() {
            let from = self.at(off, len);
            // SAFETY: the instruction is there; `at` checked the range, and a mapping begins with a page.
            return unsafe { crc::continued(seed, from, len) };
        }
        self.crc32c_of_copies(seed, off, len)
    }

    /// Not inlined: its buffer would cost every short piece the probing of the stack.
    #[inline(never)]
    fn crc32c_of_copies(&self, seed: u32, off: usize, len: usize) -> u32 {
        // Through a bounce buffer in the first-level cache: a slice of memory that others write must not exist. Zeroing it first
        // would cost more than a small record's checksum.
        let mut bounce = MaybeUninit::<[u8; BOUNCE]>::uninit();
        let mut crc = seed;
        let mut done = 0;
        while done < len {
            let n = BOUNCE.min(len - done);
            let src = self.at(off + done, n);
            let dst = bounce.as_mut_ptr().cast::<u8>();
            // SAFETY: `at` checked the source, `n` fits the buffer, which is ours alone. Racing writers can only tear the bytes.
            unsafe { ptr::copy_nonoverlapping(src, dst, n) };
            // SAFETY: the first `n` bytes were written just now.
            crc = crc32c::crc32c_append(crc, unsafe { slice::from_raw_parts(dst, n) });
            done += n;
        }
        crc
    }

    /// The `u64` at `off`, which is a multiple of 8.
    #[inline]
    pub fn u64(&self, off: usize) -> &AtomicU64 {
        assert!(off.is_multiple_of(8));
        let p = self.at(off, 8).cast::<u64>();
        // SAFETY: in range, aligned (mappings are page-aligned), and lives as long as `self`.
        unsafe { AtomicU64::from_ptr(p) }
    }

    /// The `u32` at `off`, which is a multiple of 4.
    #[inline]
    pub fn u32(&self, off: usize) -> &AtomicU32 {
        assert!(off.is_multiple_of(4));
        let p = self.at(off, 4).cast::<u32>();
        // SAFETY: as for `u64`.
        unsafe { AtomicU32::from_ptr(p) }
    }

    /// The byte at `off`.
    pub fn u8(&self, off: usize) -> &AtomicU8 {
        let p = self.at(off, 1);
        // SAFETY: as for `u64`.
        unsafe { AtomicU8::from_ptr(p) }
    }

    /// `recv(2)` into the mapping: returns the bytes received, 0 at the end of the stream.
    pub fn recv(&self, sock: BorrowedFd<'_>, off: usize, len: usize, flags: i32) -> io::Result<usize> {
        let dst = self.at(off, len);
        // SAFETY: the kernel writes at most `len` bytes to a range that `at` checked.
        let n = unsafe { libc::recv(sock.as_raw_fd(), dst.cast(), len, flags) };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    /// `recvmsg(2)` into `len` bytes of the mapping and then, once they are full, into `tail`: returns the bytes
    /// received, 0 at the end of the stream.
    pub fn recv_then(
        &self,
        sock: BorrowedFd<'_>,
        off: usize,
        len: usize,
        tail: &mut [u8],
        flags: i32,
    ) -> io::Result<usize> {
        let iov = [
            libc::iovec { iov_base: self.at(off, len).cast(), iov_len: len },
            libc::iovec { iov_base: tail.as_mut_ptr().cast(), iov_len: tail.len() },
        ];
        // SAFETY: an all-zero msghdr is a valid one; the kernel writes only to the two ranges named, one checked
        // by `at` and one borrowed exclusively.
        let n = unsafe {
            let mut msg: libc::msghdr = std::mem::zeroed();
            msg.msg_iov = iov.as_ptr().cast_mut();
            msg.msg_iovlen = iov.len();
            libc::recvmsg(sock.as_raw_fd(), &mut msg, flags)
        };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    /// `sendmsg(2)` of `head` followed by `len` bytes of the mapping: returns the bytes sent.
    pub fn send(
        &self,
        sock: BorrowedFd<'_>,
        head: &[u8],
        off: usize,
        len: usize,
        flags: i32,
    ) -> io::Result<usize> {
        let iov = [
            libc::iovec { iov_base: head.as_ptr().cast_mut().cast(), iov_len: head.len() },
            libc::iovec { iov_base: self.at(off, len).cast(), iov_len: len },
        ];
        // SAFETY: an all-zero msghdr is a valid one; the kernel only reads the two ranges named.
        let n = unsafe {
            let mut msg: libc::msghdr = std::mem::zeroed();
            msg.msg_iov = iov.as_ptr().cast_mut();
            msg.msg_iovlen = iov.len();
            libc::sendmsg(sock.as_raw_fd(), &msg, flags)
        };
        usize::try_from(n).map_err(|_| io::Error::last_os_error())
    }

    /// Writes the range back to its file and waits: `msync(MS_SYNC)`.
    pub fn msync(&self, off: usize, len: usize) -> io::Result<()> {
        let start = off & !4095;
        let p = self.at(start, off + len - start);
        // SAFETY: msync changes no memory.
        match unsafe { libc::msync(p.cast(), off + len - start, libc::MS_SYNC) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Flushes the range's cache lines to persistent memory and fences: CLWB, or what the processor has instead, and SFENCE.
    pub fn persist(&self, off: usize, len: usize) {
        let start = self.at(off, len) as usize;
        // SAFETY: the range is mapped, and stays so as long as we are borrowed.
        unsafe { flush::flush_lines(start..start + len) };
        flush::fence();
    }
}

/// Apart, and with its arguments by value: what a message borrows would be stored at each look.
#[cold]
#[inline(never)]
fn outside(off: usize, len: usize, reach: usize) -> ! {
    panic!("bytes {off}+{len} outside a mapping of {reach}");
}

impl Drop for SharedMem {
    fn drop(&mut self) {
        // SAFETY: the span was mapped by us and nothing borrows it.
        unsafe { libc::munmap(self.base.cast(), self.reach) };
    }
}

/// A table of `u64`s in a mapping, looked up without a check: its length is a power of two, and indices are taken modulo that.
pub struct Words {
    first: *mut u64,
    mask: usize,
    _memory: Arc<SharedMem>,
}

// SAFETY: as for the mapping, which lives as long as the value.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Words {
    /// The `count` words from byte `off` of `memory`: a multiple of 8, and a power of two.
    pub fn new(memory: &Arc<SharedMem>, off: usize, count: usize) -> Words {
        assert!(off.is_multiple_of(8) && count.is_power_of_two(), "{count} words from {off}");
        Words { first: memory.at(off, 8 * count).cast(), mask: count - 1, _memory: memory.clone() }
    }

    /// Word `index`, modulo their number.
    #[inline]
    pub fn at(&self, index: usize) -> &AtomicU64 {
        // SAFETY: `new` checked the range and the alignment, the mask keeps within it, and the mapping is held.
        unsafe { AtomicU64::from_ptr(self.first.add(index & self.mask)) }
    }
}

fn map_at(
    at: *mut u8,
    len: usize,
    access: Access,
    flags: i32,
    fd: RawFd,
    offset: u64,
) -> io::Result<*mut u8> {
    let prot = match access {
        Access::Read => libc::PROT_READ,
        Access::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
    };
    // SAFETY: without MAP_FIXED the kernel chooses a free place; with it the caller owns the place.
    let p = unsafe { libc::mmap(at.cast(), len, prot, libc::MAP_SHARED | flags, fd, offset as libc::off_t) };
    if p == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(p.cast()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
    use std::os::fd::AsFd;

    #[test]
    fn a_ring_continues_past_its_end() {
        let fd = memfd_create("t", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&fd, 8192).unwrap();
        let ring = SharedMem::map_ring(fd.as_fd(), 0, 8192, Access::ReadWrite).unwrap();
        ring.write(8190, b"wrap");
        let mut front = [0; 2];
        ring.read(0, &mut front);
        assert_eq!(&front, b"ap");
    }

    #[test]
    #[should_panic(expected = "outside a mapping")]
    fn out_of_range_is_refused() {
        SharedMem::anonymous(4096).unwrap().read(4090, &mut [0; 7]);
    }
}
