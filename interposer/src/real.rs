//! Finding the real functions, and the one shape of every exported one.
//!
//! A hook is an exported, unversioned symbol (a version node of our own would silently not be used) that hands
//! its arguments and the real function to a body. Real functions are looked up at their first call, so that a
//! hook works before any constructor of ours has run.

use std::ffi::{CStr, c_void};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

/// Where a real function lives.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Home {
    /// libc: always loaded, always after us.
    Libc,
    /// libpmem, perhaps loaded late and with RTLD_LOCAL.
    Pmem,
    /// libpmem2, likewise.
    Pmem2,
}

impl Home {
    fn library(self) -> Option<&'static CStr> {
        match self {
            Home::Libc => None,
            Home::Pmem => Some(c"libpmem.so.1"),
            Home::Pmem2 => Some(c"libpmem2.so.1"),
        }
    }
}

/// A real function, resolved at first use and for good.
pub struct Symbol {
    name: &'static CStr,
    home: Home,
    at: AtomicPtr<c_void>,
}

impl Symbol {
    /// The function `name`, which ends in a NUL, of `home`.
    pub const fn new(name: &'static str, home: Home) -> Symbol {
        let Ok(name) = CStr::from_bytes_with_nul(name.as_bytes()) else { panic!("no NUL") };
        Symbol { name, home, at: AtomicPtr::new(ptr::null_mut()) }
    }

    /// The function's address.
    #[inline]
    pub fn address(&self) -> *mut c_void {
        let p = self.at.load(Ordering::Relaxed);
        if p.is_null() { self.resolve() } else { p }
    }

    #[cold]
    fn resolve(&self) -> *mut c_void {
        // A library that was opened RTLD_LOCAL is not among those that RTLD_NEXT searches. The handle is kept:
        // it pins the library, so that a dlclose of the program's cannot leave our pointer behind.
        // SAFETY: NUL-terminated names; RTLD_NOLOAD never runs code of a library.
        let p = unsafe {
            let handle = self
                .home
                .library()
                .map_or(ptr::null_mut(), |l| libc::dlopen(l.as_ptr(), libc::RTLD_NOLOAD | libc::RTLD_LAZY));
            let next = libc::dlsym(libc::RTLD_NEXT, self.name.as_ptr());
            if next.is_null() && !handle.is_null() {
                crate::dynamic::real_dlsym(handle, self.name.as_ptr())
            } else {
                next
            }
        };
        if p.is_null() {
            crate::report::fatal(self.name);
        }
        self.at.store(p, Ordering::Relaxed);
        p
    }
}

/// Exports hooks: `hook!(Home, [name, twin…], (arg: type, …) -> type, body);` where
/// `unsafe fn body(real, arg…) -> type` does the work.
macro_rules! hook {
    ($home:ident, [$($name:ident),+ $(,)?], $args:tt -> $ret:ty, $body:path) => {
        $( hook!(@one $home, $name, $args -> $ret, $body); )+
    };
    (@one $home:ident, $name:ident, ($($arg:ident : $ty:ty),* $(,)?) -> $ret:ty, $body:path) => {
        /// Stands before the function of the same name.
        ///
        /// # Safety
        /// As for that function.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($arg: $ty),*) -> $ret {
            static SYMBOL: $crate::real::Symbol = $crate::real::Symbol::new(
                concat!(stringify!($name), "\0"),
                $crate::real::Home::$home,
            );
            // SAFETY: the symbol of this name has this type, by its manual; the caller keeps its contract.
            unsafe {
                let real = std::mem::transmute::<*mut std::ffi::c_void, unsafe extern "C" fn($($ty),*) -> $ret>(
                    SYMBOL.address(),
                );
                $body(real, $($arg),*)
            }
        }
    };
}
pub(crate) use hook;
