//! stdio: streams on protected files.
//!
//! glibc's streams write by a call of its own that no hook sees. So a stream that can write to a protected file is made with
//! `fopencookie`: glibc keeps buffering and formatting, and what leaves the buffer comes through the hooks of this library.
//! A stream that is reopened by `freopen` must stay the same stream: what it wrote is read back from the file, the whole of it, at each
//! fsync and at exit. `fileno` of a cookie stream is the file's descriptor, as programs expect that fsync what they wrote.

use std::ffi::{CStr, c_char, c_int, c_void};

use libc::{FILE, off64_t, size_t, ssize_t};

use crate::real::hook;
use crate::report::error;
use crate::{fds, guard, names};

unsafe extern "C" {
    fn fopencookie(cookie: *mut c_void, mode: *const c_char, functions: CookieFunctions) -> *mut FILE;
}

#[repr(C)]
struct CookieFunctions {
    read: extern "C" fn(*mut c_void, *mut c_char, size_t) -> ssize_t,
    write: extern "C" fn(*mut c_void, *const c_char, size_t) -> ssize_t,
    seek: extern "C" fn(*mut c_void, *mut off64_t, c_int) -> c_int,
    close: extern "C" fn(*mut c_void) -> c_int,
}

hook!(Libc, [fopen, fopen64], (path: *const c_char, mode: *const c_char) -> *mut FILE, fopen_body);
hook!(Libc, [fdopen], (fd: c_int, mode: *const c_char) -> *mut FILE, fdopen_body);
hook!(Libc, [fclose], (stream: *mut FILE) -> c_int, fclose_body);
hook!(Libc, [freopen, freopen64],
    (path: *const c_char, mode: *const c_char, stream: *mut FILE) -> *mut FILE, freopen_body);

type Open = unsafe extern "C" fn(*const c_char, *const c_char) -> *mut FILE;

unsafe fn fopen_body(real: Open, path: *const c_char, mode: *const c_char) -> *mut FILE {
    // SAFETY: the program's own call; streams that only read are not our business.
    unsafe {
        let writes = !guard::inside() && !mode.is_null() && writing(CStr::from_ptr(mode).to_bytes());
        // The real call is the one that decides on permissions, truncation and errors.
        let empties = writes && CStr::from_ptr(mode).to_bytes().contains(&b'w');
        let (stream, recorded) = if empties {
            names::truncating(libc::AT_FDCWD, path, || real(path, mode), |stream| !stream.is_null())
        } else {
            (real(path, mode), false)
        };
        if stream.is_null() || !writes {
            return stream;
        }
        let fd = libc::fileno(stream);
        fds::forget(fd);
        let Some((file, borrowed, _)) = fds::file(fd) else { return stream };
        if empties && !recorded {
            file.record_emptied(borrowed);
        }
        replaced(stream, mode)
    }
}

unsafe fn fdopen_body(
    real: unsafe extern "C" fn(c_int, *const c_char) -> *mut FILE,
    fd: c_int,
    mode: *const c_char,
) -> *mut FILE {
    // SAFETY: the program's own call.
    unsafe {
        let ours = !guard::inside()
            && !mode.is_null()
            && writing(CStr::from_ptr(mode).to_bytes())
            && fds::file(fd).is_some();
        let stream = real(fd, mode);
        if ours && !stream.is_null() { replaced(stream, mode) } else { stream }
    }
}

/// glibc closes the descriptor by a call of its own: its number may be another file's next.
unsafe fn fclose_body(real: unsafe extern "C" fn(*mut FILE) -> c_int, stream: *mut FILE) -> c_int {
    if !stream.is_null() && !guard::inside() {
        // SAFETY: the program's own stream, open until the real call; that of a buffer in memory has no descriptor.
        let (errno, fd) = (guard::KeepErrno::new(), unsafe { libc::fileno(stream) });
        drop(errno);
        fds::closing(fd);
    }
    // SAFETY: the program's own call.
    unsafe { real(stream) }
}

unsafe fn freopen_body(
    real: unsafe extern "C" fn(*const c_char, *const c_char, *mut FILE) -> *mut FILE,
    path: *const c_char,
    mode: *const c_char,
    stream: *mut FILE,
) -> *mut FILE {
    // SAFETY: the program's own call.
    unsafe {
        let result = real(path, mode, stream);
        if !result.is_null() && !guard::inside() && writing(CStr::from_ptr(mode).to_bytes()) {
            let fd = libc::fileno(result);
            fds::forget(fd);
            if let Some((file, borrowed, _)) = fds::file(fd) {
                // The stream stays the one that the program holds, so no cookie can take its place.
                guard::slow(|| file.note_unseen(borrowed));
                if CStr::from_ptr(mode).to_bytes().contains(&b'w') {
                    file.record_emptied(borrowed);
                }
            }
        }
        result
    }
}

fn writing(mode: &[u8]) -> bool {
    mode.iter().any(|c| matches!(c, b'w' | b'a' | b'+'))
}

/// A cookie stream whose cookie is `stream`, which from here on only owns the descriptor; `stream` itself if that fails.
unsafe fn replaced(stream: *mut FILE, mode: *const c_char) -> *mut FILE {
    let functions =
        CookieFunctions { read: read_cookie, write: write_cookie, seek: seek_cookie, close: close_cookie };
    // SAFETY: both streams are glibc's own; the inner one has nothing in its buffer and is closed by the outer one.
    unsafe {
        let new = fopencookie(stream.cast(), mode, functions);
        if new.is_null() {
            error!("no memory for a stream: what it writes is not replicated");
            return stream;
        }
        set_fileno(new, libc::fileno(stream));
        new
    }
}

/// `fileno` reads a field of glibc's public `struct _IO_FILE`; cookie streams do not use it otherwise.
unsafe fn set_fileno(stream: *mut FILE, fd: c_int) {
    /// Offset of `_fileno`: part of glibc's ABI on x86-64 since 2.1.
    const FILENO: usize = 112;
    // SAFETY: the stream is glibc's own structure, larger than that.
    unsafe { stream.cast::<u8>().add(FILENO).cast::<c_int>().write(fd) };
}

fn descriptor(cookie: *mut c_void) -> c_int {
    // SAFETY: the cookie is the inner stream, open until `close_cookie`.
    unsafe { libc::fileno(cookie.cast()) }
}

extern "C" fn read_cookie(cookie: *mut c_void, to: *mut c_char, len: size_t) -> ssize_t {
    // SAFETY: glibc passes its own buffer.
    unsafe { libc::read(descriptor(cookie), to.cast(), len) }
}

extern "C" fn write_cookie(cookie: *mut c_void, from: *const c_char, len: size_t) -> ssize_t {
    // SAFETY: glibc passes its own buffer. This is the hooked write: it records.
    let n = unsafe { libc::write(descriptor(cookie), from.cast(), len) };
    // By its manual this function says 0 for an error, never a negative number.
    n.max(0)
}

extern "C" fn seek_cookie(cookie: *mut c_void, offset: *mut off64_t, whence: c_int) -> c_int {
    // SAFETY: glibc passes a variable of its own.
    unsafe {
        let at = libc::lseek64(descriptor(cookie), *offset, whence);
        if at < 0 {
            return -1;
        }
        *offset = at;
    }
    0
}

extern "C" fn close_cookie(cookie: *mut c_void) -> c_int {
    fds::closing(descriptor(cookie));
    // SAFETY: the outer stream is the only user of the inner one.
    unsafe { libc::fclose(cookie.cast()) }
}
