//! dlsym: functions that a program looks up by hand, in a library that it opened itself.
//!
//! A look-up in the global scope finds our hooks first, as the linker does. One by a library's handle (a plugin that opens
//! libpmem, Python's ctypes) finds the real function; it is answered with our hook where there is one. Left alone are
//! `dlvsym` and libraries opened with `RTLD_DEEPBIND`: what they reach past us, sampling finds.

use std::arch::naked_asm;
use std::ffi::{CStr, c_char, c_void};
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use crate::guard::{self, KeepErrno};

type Dlsym = unsafe extern "C" fn(*mut c_void, *const c_char) -> *mut c_void;

/// Stands before the function of the same name.
///
/// `RTLD_DEFAULT` (0) and `RTLD_NEXT` (-1) mean something only to the caller's own place in the search order, which the real
/// function finds by its return address: so it is jumped to, not called.
///
/// # Safety
/// As for that function.
#[unsafe(no_mangle)]
#[unsafe(naked)]
pub unsafe extern "C" fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void {
    naked_asm!(
        "lea rax, [rdi + 1]",
        "cmp rax, 1",
        "ja {by_handle}",
        "push rdi",
        "push rsi",
        "sub rsp, 8",
        "call {real}",
        "add rsp, 8",
        "pop rsi",
        "pop rdi",
        "jmp rax",
        by_handle = sym by_handle,
        real = sym real_address,
    )
}

/// The real `dlsym`, for look-ups of ours.
///
/// # Safety
/// As for `dlsym`. `handle` is a library's: see there.
pub unsafe fn real_dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void {
    // SAFETY: the symbol has this type; the rest is the caller's.
    unsafe { std::mem::transmute::<*mut c_void, Dlsym>(real_address())(handle, name) }
}

extern "C" fn real_address() -> *mut c_void {
    static REAL: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());
    let known = REAL.load(Ordering::Relaxed);
    if !known.is_null() {
        return known;
    }
    // By the version that every glibc has, since looking it up without one would need the function itself.
    // SAFETY: NUL-terminated names.
    let real = unsafe { libc::dlvsym(libc::RTLD_NEXT, c"dlsym".as_ptr(), c"GLIBC_2.2.5".as_ptr()) };
    if real.is_null() {
        crate::report::fatal(c"dlsym");
    }
    REAL.store(real, Ordering::Relaxed);
    real
}

unsafe extern "C" fn by_handle(handle: *mut c_void, name: *const c_char) -> *mut c_void {
    // SAFETY: the program's own call.
    let found = unsafe { real_dlsym(handle, name) };
    if found.is_null() || guard::inside() {
        return found;
    }
    let _errno = KeepErrno::new();
    hook_of(found, name).unwrap_or(found)
}

/// Our hook for the real function `found`, which is called `name`.
fn hook_of(found: *mut c_void, name: *const c_char) -> Option<*mut c_void> {
    if !Object::of(found)?.is_hooked() {
        return None;
    }
    let this = Object::of(dlsym as Dlsym as *mut c_void)?;
    // SAFETY: the name is the dynamic linker's own; the library is loaded, so nothing of it runs.
    let handle = unsafe { libc::dlopen(this.file.as_ptr(), libc::RTLD_NOLOAD | libc::RTLD_LAZY) };
    if handle.is_null() {
        return None;
    }
    // SAFETY: a good handle, and the name that was found just now.
    let hook = unsafe { real_dlsym(handle, name) };
    if hook.is_null() {
        // The program's look-up succeeded: no error of ours may stand behind it.
        // SAFETY: takes nothing.
        unsafe { libc::dlerror() };
        return None;
    }
    // A handle's search goes on into libc.
    (Object::of(hook)?.base == this.base).then_some(hook)
}

/// A loaded library.
struct Object {
    base: *mut c_void,
    file: &'static CStr,
}

impl Object {
    /// The one that `address` lies in.
    fn of(address: *mut c_void) -> Option<Object> {
        let mut info = MaybeUninit::<libc::Dl_info>::uninit();
        // SAFETY: the dynamic linker fills the structure in if it returns other than 0; file names stay as long as the library,
        // and libraries that matter here are never unloaded.
        unsafe {
            if libc::dladdr(address, info.as_mut_ptr()) == 0 {
                return None;
            }
            let info = info.assume_init();
            (!info.dli_fname.is_null())
                .then(|| Object { base: info.dli_fbase, file: CStr::from_ptr(info.dli_fname) })
        }
    }

    /// Whether it is one of those that hooks stand before. A plugin's own function may well be called `write`.
    fn is_hooked(&self) -> bool {
        let path = self.file.to_bytes();
        let name = path.rsplit(|b| *b == b'/').next().unwrap_or(path);
        HOOKED.iter().any(|hooked| name.starts_with(hooked))
    }
}

/// Names of the libraries whose functions have hooks.
const HOOKED: [&[u8]; 3] = [b"libc.so", b"libpmem.so", b"libpmem2.so"];
