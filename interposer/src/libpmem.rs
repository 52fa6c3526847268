//! libpmem: flush, drain and the copying functions.
//!
//! Real functions are called in such a way that they call no other exported one: libpmem reaches itself through its
//! PLT, and everything would be counted twice. So `persist` is flush and drain, and copies are told `NODRAIN`. That
//! leaves nothing to guard against, and a signal handler's flush in the middle of ours is captured like any other.
//!
//! Captures come before the real flush, which may evict the lines from the cache.

use std::ffi::{c_int, c_uint, c_void};

use libc::size_t;

use crate::real::{Home, Symbol, hook};
use crate::state::Rest;
use crate::{guard, state};

/// `PMEM_F_MEM_NODRAIN`.
pub const NODRAIN: c_uint = 1 << 0;
/// `PMEM_F_MEM_NOFLUSH`.
pub const NOFLUSH: c_uint = 1 << 5;
/// `PMEM_F_MEM_TEMPORAL` and `PMEM_F_MEM_WB`: the caller wants the bytes in the cache.
pub const CACHED: c_uint = 1 << 2 | 1 << 4;

/// Copies from this size on go around the cache, as libpmem itself decides by default.
pub const NONTEMPORAL_FROM: usize = 256;

/// `flush(addr, len)`.
pub type Flush = unsafe extern "C" fn(*const c_void, size_t);
/// `drain()`.
pub type Drain = unsafe extern "C" fn();
/// `memcpy` and `memmove` with flags.
pub type Copy = unsafe extern "C" fn(*mut c_void, *const c_void, size_t, c_uint) -> *mut c_void;
/// `memset` with flags.
pub type Set = unsafe extern "C" fn(*mut c_void, c_int, size_t, c_uint) -> *mut c_void;

static FLUSH: Symbol = Symbol::new("pmem_flush\0", Home::Pmem);
static DRAIN: Symbol = Symbol::new("pmem_drain\0", Home::Pmem);
static DEEP_FLUSH: Symbol = Symbol::new("pmem_deep_flush\0", Home::Pmem);
static MEMCPY: Symbol = Symbol::new("pmem_memcpy\0", Home::Pmem);
static MEMMOVE: Symbol = Symbol::new("pmem_memmove\0", Home::Pmem);
static MEMSET: Symbol = Symbol::new("pmem_memset\0", Home::Pmem);

/// The real functions that a program's flush or copy ends in: libpmem's, or one map's of libpmem2.
#[derive(Clone, Copy)]
pub struct Real {
    /// Flushes lines.
    pub flush: Flush,
    /// The fence.
    pub drain: Drain,
}

fn real() -> Real {
    // SAFETY: the types are those of libpmem.h.
    unsafe {
        Real {
            flush: std::mem::transmute::<*mut c_void, Flush>(FLUSH.address()),
            drain: std::mem::transmute::<*mut c_void, Drain>(DRAIN.address()),
        }
    }
}

fn real_copy(symbol: &Symbol) -> Copy {
    // SAFETY: both symbols that this is called with have this type, by libpmem.h.
    unsafe { std::mem::transmute::<*mut c_void, Copy>(symbol.address()) }
}

fn real_set() -> Set {
    // SAFETY: the type is that of libpmem.h.
    unsafe { std::mem::transmute::<*mut c_void, Set>(MEMSET.address()) }
}

/// The real fence, then what was captured is published.
///
/// # Safety
/// As for the real drain.
#[inline]
pub unsafe fn fence_and_publish(drain: Drain) {
    // SAFETY: the caller's.
    unsafe { drain() };
    state::drain();
}

/// Copies for the program, captures, flushes: all but the drain.
///
/// # Safety
/// As for `copy`.
pub unsafe fn copy(
    real: Real,
    copy: Copy,
    dst: *mut c_void,
    src: *const c_void,
    len: size_t,
    flags: c_uint,
) -> *mut c_void {
    if flags & NOFLUSH != 0 || !state::any_protected(dst, len) {
        // Not to be recorded, or not ours: the real thing, but for its drain, which would come back to us.
        // SAFETY: the program's own call.
        return unsafe { copy(dst, src, len, flags | NODRAIN) };
    }
    let disjoint = (dst as usize).abs_diff(src as usize) >= len;
    if len >= NONTEMPORAL_FROM && disjoint && flags & CACHED == 0 {
        // SAFETY: the program's own call.
        unsafe { copy(dst, src, len, flags | NODRAIN) };
        state::capture_copied(dst, src, len);
    } else {
        // SAFETY: the program's own call, its flush done by the next one.
        unsafe { copy(dst, src, len, NOFLUSH | NODRAIN) };
        // SAFETY: as above.
        unsafe { flush(real.flush, dst, len) };
    }
    dst
}

/// As [`copy`] for memset.
///
/// # Safety
/// As for `set`.
pub unsafe fn set(
    real: Real,
    set: Set,
    dst: *mut c_void,
    c: c_int,
    len: size_t,
    flags: c_uint,
) -> *mut c_void {
    if flags & NOFLUSH != 0 || !state::any_protected(dst, len) {
        // SAFETY: the program's own call.
        return unsafe { set(dst, c, len, flags | NODRAIN) };
    }
    // Large areas too: their content must be read back, so it had better be in the cache.
    // SAFETY: the program's own call, its flush done below.
    unsafe { set(dst, c, len, NOFLUSH | NODRAIN) };
    // SAFETY: as above.
    unsafe { flush(real.flush, dst, len) };
    dst
}

/// The drain that ends a copy, unless its flags say otherwise.
///
/// # Safety
/// As for the real drain.
#[inline]
pub unsafe fn finish(real: Real, flags: c_uint) {
    if flags & (NODRAIN | NOFLUSH) == 0 {
        // SAFETY: the caller's.
        unsafe { fence_and_publish(real.drain) };
    }
}

hook!(Pmem, [pmem_flush], (addr: *const c_void, len: size_t) -> (), flush);
hook!(Pmem, [pmem_deep_flush], (addr: *const c_void, len: size_t) -> (), flush);
hook!(Pmem, [pmem_drain], () -> (), fence_and_publish);
hook!(Pmem, [pmem_persist], (addr: *const c_void, len: size_t) -> (), persist);
hook!(Pmem, [pmem_deep_drain], (addr: *const c_void, len: size_t) -> c_int, deep_drain);
hook!(Pmem, [pmem_deep_persist], (addr: *const c_void, len: size_t) -> c_int, deep_persist);
hook!(Pmem, [pmem_msync], (addr: *const c_void, len: size_t) -> c_int, msync);

#[inline]
unsafe fn flush(real: Flush, addr: *const c_void, len: size_t) {
    if state::capture(addr, len) == Rest::Flush {
        // SAFETY: the program's own call.
        unsafe { real(addr, len) }
    }
}

unsafe fn persist(_real: Flush, addr: *const c_void, len: size_t) {
    let real = real();
    // SAFETY: flush and drain are what persist is.
    unsafe {
        flush(real.flush, addr, len);
        fence_and_publish(real.drain);
    }
}

type Deep = unsafe extern "C" fn(*const c_void, size_t) -> c_int;

unsafe fn deep_drain(deep: Deep, addr: *const c_void, len: size_t) -> c_int {
    // SAFETY: the program's own call.
    let result = unsafe { deep(addr, len) };
    state::drain();
    result
}

unsafe fn deep_persist(_real: Deep, addr: *const c_void, len: size_t) -> c_int {
    static DEEP_DRAIN: Symbol = Symbol::new("pmem_deep_drain\0", Home::Pmem);
    // SAFETY: deep flush and deep drain are what deep persist is; the types are those of libpmem.h.
    unsafe {
        flush(std::mem::transmute::<*mut c_void, Flush>(DEEP_FLUSH.address()), addr, len);
        deep_drain(std::mem::transmute::<*mut c_void, Deep>(DEEP_DRAIN.address()), addr, len)
    }
}

/// Lines of the range and no more: that is what the program asks for, though the kernel's unit is the page. The real
/// function's msync comes by our own hook.
unsafe fn msync(real: Deep, addr: *const c_void, len: size_t) -> c_int {
    // The kernel decides what there is to do.
    let _ = state::capture(addr, len);
    let _lines = guard::LinesRecorded::enter();
    // SAFETY: the program's own call.
    let result = unsafe { real(addr, len) };
    if result == 0 {
        state::drain();
    }
    result
}

type PlainCopy = unsafe extern "C" fn(*mut c_void, *const c_void, size_t) -> *mut c_void;
type PlainSet = unsafe extern "C" fn(*mut c_void, c_int, size_t) -> *mut c_void;

/// The three forms of a copying function: with flags, `_persist` and `_nodrain`.
macro_rules! forms {
    ($arg:ident: $ty:ty, $plain:ty, $flagged:ty, $real:expr, $work:path, $name:ident, $persist:ident, $nodrain:ident) => {
        hook!(Pmem, [$name],
            (dst: *mut c_void, $arg: $ty, len: size_t, flags: c_uint) -> *mut c_void, Bodies::$name);
        hook!(Pmem, [$persist], (dst: *mut c_void, $arg: $ty, len: size_t) -> *mut c_void, Bodies::$persist);
        hook!(Pmem, [$nodrain], (dst: *mut c_void, $arg: $ty, len: size_t) -> *mut c_void, Bodies::$nodrain);

        impl Bodies {
            unsafe fn $name(
                _real: $flagged,
                dst: *mut c_void,
                $arg: $ty,
                len: size_t,
                flags: c_uint,
            ) -> *mut c_void {
                // SAFETY: the program's own call.
                unsafe {
                    $work(real(), $real, dst, $arg, len, flags);
                    finish(real(), flags);
                }
                dst
            }

            unsafe fn $persist(_real: $plain, dst: *mut c_void, $arg: $ty, len: size_t) -> *mut c_void {
                // SAFETY: as above.
                unsafe {
                    $work(real(), $real, dst, $arg, len, 0);
                    finish(real(), 0);
                }
                dst
            }

            unsafe fn $nodrain(_real: $plain, dst: *mut c_void, $arg: $ty, len: size_t) -> *mut c_void {
                // SAFETY: as above.
                unsafe { $work(real(), $real, dst, $arg, len, NODRAIN) }
            }
        }
    };
}

/// Where `forms` puts the bodies of its hooks.
struct Bodies;

forms!(src: *const c_void, PlainCopy, Copy, real_copy(&MEMCPY), copy, pmem_memcpy, pmem_memcpy_persist, pmem_memcpy_nodrain);
forms!(src: *const c_void, PlainCopy, Copy, real_copy(&MEMMOVE), copy, pmem_memmove, pmem_memmove_persist, pmem_memmove_nodrain);
forms!(c: c_int, PlainSet, Set, real_set(), set, pmem_memset, pmem_memset_persist, pmem_memset_nodrain);
