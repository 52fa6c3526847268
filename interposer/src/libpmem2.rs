//! libpmem2: functions that are got as pointers.
//!
//! `pmem2_get_*_fn` return a trampoline of ours for each distinct real function; a trampoline finds its real one by its own
//! place in a table. libpmem2's asynchronous forms get their functions by the same calls, through the PLT, so they are
//! covered with nothing further.

use std::ffi::{c_int, c_uint, c_void};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use libc::size_t;
use pmemha::region::flush::fence;

use crate::libpmem::{self, Copy, Drain, Flush, Real, Set};
use crate::real::{Home, Symbol, hook};
use crate::state::Rest;
use crate::{guard, state};

/// Distinct real functions of one kind that libpmem2 can have: it has at most three a granularity.
const PLACES: usize = 8;

/// The real functions of one kind, by trampoline.
struct Places([AtomicPtr<c_void>; PLACES]);

impl Places {
    const fn new() -> Places {
        Places([const { AtomicPtr::new(ptr::null_mut()) }; PLACES])
    }

    /// The trampoline for `real`; `real` itself, unrecorded, should there ever be more than [`PLACES`].
    fn trampoline(&self, real: *mut c_void, trampolines: &[*mut c_void; PLACES]) -> *mut c_void {
        for (place, trampoline) in self.0.iter().zip(trampolines) {
            match place.compare_exchange(ptr::null_mut(), real, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return *trampoline,
                Err(there) if there == real => return *trampoline,
                Err(_) => {}
            }
        }
        crate::report::error!("libpmem2 has more functions of a kind than {PLACES}: one is not replicated");
        real
    }

    #[inline]
    fn real(&self, place: usize) -> *mut c_void {
        self.0[place].load(Ordering::Relaxed)
    }
}

static PERSIST: Places = Places::new();
static FLUSH: Places = Places::new();
static DRAIN: Places = Places::new();
static MEMCPY: CopyPlaces = CopyPlaces::new();
static MEMMOVE: CopyPlaces = CopyPlaces::new();
static MEMSET: CopyPlaces = CopyPlaces::new();

/// The trampolines `$f::<N>`.
macro_rules! each_place {
    ($f:ident, $ty:ty) => {
        [
            $f::<0> as $ty as *mut c_void,
            $f::<1> as $ty as *mut c_void,
            $f::<2> as $ty as *mut c_void,
            $f::<3> as $ty as *mut c_void,
            $f::<4> as $ty as *mut c_void,
            $f::<5> as $ty as *mut c_void,
            $f::<6> as $ty as *mut c_void,
            $f::<7> as $ty as *mut c_void,
        ]
    };
}

/// Copying functions, each with the flush and the drain of the map that it was got for: they go by granularity, as it does.
struct CopyPlaces {
    copy: Places,
    flush: Places,
    drain: Places,
}

impl CopyPlaces {
    const fn new() -> CopyPlaces {
        CopyPlaces { copy: Places::new(), flush: Places::new(), drain: Places::new() }
    }

    unsafe fn trampoline(
        &self,
        real: *mut c_void,
        map: *mut c_void,
        trampolines: &[*mut c_void; PLACES],
    ) -> *mut c_void {
        let trampoline = self.copy.trampoline(real, trampolines);
        if let Some(place) = trampolines.iter().position(|t| *t == trampoline) {
            // SAFETY: the map is one that the program just passed to a get of its own.
            let (flush, drain) = unsafe { (real_get(&GET_FLUSH)(map), real_get(&GET_DRAIN)(map)) };
            self.flush.0[place].store(flush, Ordering::Release);
            self.drain.0[place].store(drain, Ordering::Release);
        }
        trampoline
    }

    #[inline]
    fn real(&self, place: usize) -> Real {
        // SAFETY: a trampoline is handed out only after `trampoline` stored both, which have these types.
        unsafe {
            Real {
                flush: std::mem::transmute::<*mut c_void, Flush>(self.flush.real(place)),
                drain: std::mem::transmute::<*mut c_void, Drain>(self.drain.real(place)),
            }
        }
    }
}

static GET_FLUSH: Symbol = Symbol::new("pmem2_get_flush_fn\0", Home::Pmem2);
static GET_DRAIN: Symbol = Symbol::new("pmem2_get_drain_fn\0", Home::Pmem2);

fn real_get(symbol: &Symbol) -> GetFn {
    // SAFETY: both symbols that this is called with have this type, by libpmem2.h.
    unsafe { std::mem::transmute::<*mut c_void, GetFn>(symbol.address()) }
}

type GetFn = unsafe extern "C" fn(*mut c_void) -> *mut c_void;

hook!(Pmem2, [pmem2_get_persist_fn], (map: *mut c_void) -> *mut c_void, get_persist);
hook!(Pmem2, [pmem2_get_flush_fn], (map: *mut c_void) -> *mut c_void, get_flush);
hook!(Pmem2, [pmem2_get_drain_fn], (map: *mut c_void) -> *mut c_void, get_drain);
hook!(Pmem2, [pmem2_get_memcpy_fn], (map: *mut c_void) -> *mut c_void, get_memcpy);
hook!(Pmem2, [pmem2_get_memmove_fn], (map: *mut c_void) -> *mut c_void, get_memmove);
hook!(Pmem2, [pmem2_get_memset_fn], (map: *mut c_void) -> *mut c_void, get_memset);
hook!(Pmem2, [pmem2_deep_flush], (map: *mut c_void, addr: *mut c_void, len: size_t) -> c_int, deep_flush);

unsafe fn get_persist(real: GetFn, map: *mut c_void) -> *mut c_void {
    // SAFETY: the program's own call.
    PERSIST.trampoline(unsafe { real(map) }, &each_place!(persist, Flush))
}

unsafe fn get_flush(real: GetFn, map: *mut c_void) -> *mut c_void {
    // SAFETY: the program's own call.
    FLUSH.trampoline(unsafe { real(map) }, &each_place!(flush, Flush))
}

unsafe fn get_drain(real: GetFn, map: *mut c_void) -> *mut c_void {
    // SAFETY: the program's own call.
    DRAIN.trampoline(unsafe { real(map) }, &each_place!(drain, Drain))
}

unsafe fn get_memcpy(real: GetFn, map: *mut c_void) -> *mut c_void {
    // SAFETY: the program's own call.
    unsafe { MEMCPY.trampoline(real(map), map, &each_place!(memcpy, Copy)) }
}

unsafe fn get_memmove(real: GetFn, map: *mut c_void) -> *mut c_void {
    // SAFETY: the program's own call.
    unsafe { MEMMOVE.trampoline(real(map), map, &each_place!(memmove, Copy)) }
}

unsafe fn get_memset(real: GetFn, map: *mut c_void) -> *mut c_void {
    // SAFETY: the program's own call.
    unsafe { MEMSET.trampoline(real(map), map, &each_place!(memset, Set)) }
}

/// # Safety
/// As for the real function, like all trampolines here.
unsafe extern "C" fn persist<const N: usize>(addr: *const c_void, len: size_t) {
    if state::capture(addr, len) == Rest::Flush {
        let _lines = guard::LinesRecorded::enter();
        // SAFETY: trampoline N is handed out only after place N was filled, with a function of this type.
        unsafe { std::mem::transmute::<*mut c_void, Flush>(PERSIST.real(N))(addr, len) };
    } else {
        // The one that the real persist would have made.
        fence();
    }
    state::drain();
}

unsafe extern "C" fn flush<const N: usize>(addr: *const c_void, len: size_t) {
    if state::capture(addr, len) == Rest::Flush {
        let _lines = guard::LinesRecorded::enter();
        // SAFETY: as in `persist`.
        unsafe { std::mem::transmute::<*mut c_void, Flush>(FLUSH.real(N))(addr, len) };
    } else {
        // Where the map's granularity is the page, the drain that comes next is none: the msync here would have been it.
        fence();
    }
}

unsafe extern "C" fn drain<const N: usize>() {
    // SAFETY: as in `persist`.
    unsafe { libpmem::fence_and_publish(std::mem::transmute::<*mut c_void, Drain>(DRAIN.real(N))) };
}

unsafe extern "C" fn memcpy<const N: usize>(
    dst: *mut c_void,
    src: *const c_void,
    len: size_t,
    flags: c_uint,
) -> *mut c_void {
    // SAFETY: as in `persist`.
    unsafe { copy_with(&MEMCPY, N, dst, src, len, flags) }
}

unsafe extern "C" fn memmove<const N: usize>(
    dst: *mut c_void,
    src: *const c_void,
    len: size_t,
    flags: c_uint,
) -> *mut c_void {
    // SAFETY: as in `persist`.
    unsafe { copy_with(&MEMMOVE, N, dst, src, len, flags) }
}

unsafe fn copy_with(
    places: &CopyPlaces,
    place: usize,
    dst: *mut c_void,
    src: *const c_void,
    len: size_t,
    flags: c_uint,
) -> *mut c_void {
    let real = places.real(place);
    // SAFETY: as in `persist`.
    unsafe {
        let copy = std::mem::transmute::<*mut c_void, Copy>(places.copy.real(place));
        libpmem::copy(real, copy, dst, src, len, flags);
        libpmem::finish(real, flags);
    }
    dst
}

unsafe extern "C" fn memset<const N: usize>(
    dst: *mut c_void,
    c: c_int,
    len: size_t,
    flags: c_uint,
) -> *mut c_void {
    let real = MEMSET.real(N);
    // SAFETY: as in `persist`.
    unsafe {
        let set = std::mem::transmute::<*mut c_void, Set>(MEMSET.copy.real(N));
        libpmem::set(real, set, dst, c, len, flags);
        libpmem::finish(real, flags);
    }
    dst
}

type DeepFlush = unsafe extern "C" fn(*mut c_void, *mut c_void, size_t) -> c_int;

unsafe fn deep_flush(real: DeepFlush, map: *mut c_void, addr: *mut c_void, len: size_t) -> c_int {
    // It answers for the range as well, so it is asked in any case.
    let _ = state::capture(addr, len);
    let _lines = guard::LinesRecorded::enter();
    // SAFETY: the program's own call.
    let result = unsafe { real(map, addr, len) };
    if result == 0 {
        state::drain();
    }
    result
}
