//! rename, unlink and link: the names of protected files.
//!
//! A file that is renamed to a protected name is protected before it gets it, so that replacing a file by rename is one
//! record and as atomic at the destination as here. A protected file that gets an unprotected name stays a region.

use std::ffi::{CStr, OsStr, c_char, c_int, c_uint};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use pmemha::region::identity::{Facts, Sort, open_again, path_of};
use rustix::fs::OFlags;

use crate::file::{self, File};
use crate::real::hook;
use crate::report::error;
use crate::{fds, guard, state};

hook!(Libc, [rename], (old: *const c_char, new: *const c_char) -> c_int, rename_body);
hook!(Libc, [renameat],
    (old_dir: c_int, old: *const c_char, new_dir: c_int, new: *const c_char) -> c_int, renameat_body);
hook!(Libc, [renameat2],
    (old_dir: c_int, old: *const c_char, new_dir: c_int, new: *const c_char, flags: c_uint) -> c_int,
    renameat2_body);
hook!(Libc, [unlink, remove], (path: *const c_char) -> c_int, unlink_body);
hook!(Libc, [unlinkat], (dir: c_int, path: *const c_char, flags: c_int) -> c_int, unlinkat_body);
hook!(Libc, [link], (old: *const c_char, new: *const c_char) -> c_int, link_body);
hook!(Libc, [linkat],
    (old_dir: c_int, old: *const c_char, new_dir: c_int, new: *const c_char, flags: c_int) -> c_int, linkat_body);

/// The protected file that `path` names now; `follow` symbolic links or take them as themselves.
pub fn find(dir: c_int, path: *const c_char, follow: bool) -> Option<&'static File> {
    if guard::inside() || path.is_null() || !state::session_likely() {
        return None;
    }
    guard::slow(|| {
        state::session_or_attach()?;
        let mut name = absolute(dir, path)?;
        if follow {
            name = std::fs::canonicalize(name).ok()?;
        }
        look(&name, false)
    })
    .flatten()
}

/// The protected file that is called `name`; any regular file is made one if `explicit`. Only within [`guard::slow`].
fn look(name: &Path, explicit: bool) -> Option<&'static File> {
    let text = std::ffi::CString::new(name.as_os_str().as_bytes()).ok()?;
    let facts = Facts::at(rustix::fs::CWD, &text).ok()?;
    if let Some(known) = file::by_identity(&facts.identity) {
        return Some(known);
    }
    if facts.sort != Sort::Regular || !(explicit || state::session()?.protects(name)) {
        return None;
    }
    // The agent takes only descriptors that may write as the right to protect.
    let opened = open_again(name, OFlags::RDWR).ok()?;
    let file = state::protect(opened.as_fd(), &facts, Some(name), explicit);
    fds::put_away(opened);
    if file.is_some() {
        fds::forget_plain();
    }
    file
}

/// `path` without symbolic links, except that its last part is left alone. Only within [`guard::slow`].
fn absolute(dir: c_int, path: *const c_char) -> Option<PathBuf> {
    // SAFETY: the program passes a path to a call that takes one.
    let path = Path::new(OsStr::from_bytes(unsafe { CStr::from_ptr(path) }.to_bytes()));
    let base = match dir {
        libc::AT_FDCWD => std::env::current_dir().ok()?,
        _ if path.is_absolute() => PathBuf::new(),
        _ => path_of(fds::borrow(dir)?)?,
    };
    let whole = base.join(path);
    Some(std::fs::canonicalize(whole.parent()?).ok()?.join(whole.file_name()?))
}

/// A rename that may concern protected files, before it happens.
struct Renaming {
    target: PathBuf,
    moved: Option<&'static File>,
    replaced: Option<&'static File>,
}

impl Renaming {
    /// `None` if it concerns no protected file. Only within [`guard::slow`].
    fn prepare(old_dir: c_int, old: *const c_char, new_dir: c_int, new: *const c_char) -> Option<Renaming> {
        let session = state::session_or_attach()?;
        let (source, target) = (absolute(old_dir, old)?, absolute(new_dir, new)?);
        let moved = look(&source, session.protects(&target));
        let replaced = look(&target, false).filter(|r| moved.is_none_or(|m| m.region != r.region));
        (moved.is_some() || replaced.is_some()).then_some(Renaming { target, moved, replaced })
    }

    fn record(&self) {
        match (self.moved, self.replaced) {
            (Some(moved), replaced) => moved.record_rename(self.target.as_os_str().as_bytes(), replaced),
            (None, Some(replaced)) => replaced.record_unlink(),
            (None, None) => {}
        }
    }
}

/// `call` renames; both steps under the library's lock.
fn renaming(
    old_dir: c_int,
    old: *const c_char,
    new_dir: c_int,
    new: *const c_char,
    call: impl Fn() -> c_int,
) -> c_int {
    if guard::inside() || old.is_null() || new.is_null() || !state::session_likely() {
        return call();
    }
    guard::together(call, || Renaming::prepare(old_dir, old, new_dir, new), |r| r.record())
}

unsafe fn rename_body(
    real: unsafe extern "C" fn(*const c_char, *const c_char) -> c_int,
    old: *const c_char,
    new: *const c_char,
) -> c_int {
    // SAFETY: the program's own call, as everywhere in this file.
    renaming(libc::AT_FDCWD, old, libc::AT_FDCWD, new, || unsafe { real(old, new) })
}

unsafe fn renameat_body(
    real: unsafe extern "C" fn(c_int, *const c_char, c_int, *const c_char) -> c_int,
    old_dir: c_int,
    old: *const c_char,
    new_dir: c_int,
    new: *const c_char,
) -> c_int {
    // SAFETY: see `rename_body`.
    renaming(old_dir, old, new_dir, new, || unsafe { real(old_dir, old, new_dir, new) })
}

unsafe fn renameat2_body(
    real: unsafe extern "C" fn(c_int, *const c_char, c_int, *const c_char, c_uint) -> c_int,
    old_dir: c_int,
    old: *const c_char,
    new_dir: c_int,
    new: *const c_char,
    flags: c_uint,
) -> c_int {
    if flags & libc::RENAME_EXCHANGE != 0
        && (find(old_dir, old, false).is_some() || find(new_dir, new, false).is_some())
    {
        error!(
            "exchanging two names of which one is protected cannot be replicated: refused as not supported"
        );
        // SAFETY: the thread's errno is always there.
        unsafe { *libc::__errno_location() = libc::EINVAL };
        return -1;
    }
    // SAFETY: see `rename_body`.
    renaming(old_dir, old, new_dir, new, || unsafe { real(old_dir, old, new_dir, new, flags) })
}

fn unlinking(dir: c_int, path: *const c_char, call: impl Fn() -> c_int) -> c_int {
    if guard::inside() || path.is_null() || !state::session_likely() {
        return call();
    }
    let last_name = || {
        state::session_or_attach()?;
        let name = absolute(dir, path)?;
        let text = std::ffi::CString::new(name.as_os_str().as_bytes()).ok()?;
        let facts = Facts::at(rustix::fs::CWD, &text).ok()?;
        if facts.links == 1 { look(&name, false) } else { None }
    };
    guard::together(call, last_name, File::record_unlink)
}

unsafe fn unlink_body(real: unsafe extern "C" fn(*const c_char) -> c_int, path: *const c_char) -> c_int {
    // SAFETY: see `rename_body`.
    unlinking(libc::AT_FDCWD, path, || unsafe { real(path) })
}

unsafe fn unlinkat_body(
    real: unsafe extern "C" fn(c_int, *const c_char, c_int) -> c_int,
    dir: c_int,
    path: *const c_char,
    flags: c_int,
) -> c_int {
    // SAFETY: see `rename_body`.
    unlinking(dir, path, || unsafe { real(dir, path, flags) })
}

/// A new name: if it is a protected one, the file becomes protected under it.
fn linking(new_dir: c_int, new: *const c_char, result: c_int) -> c_int {
    if result == 0 {
        let _errno = guard::KeepErrno::new();
        find(new_dir, new, false);
    }
    result
}

unsafe fn link_body(
    real: unsafe extern "C" fn(*const c_char, *const c_char) -> c_int,
    old: *const c_char,
    new: *const c_char,
) -> c_int {
    // SAFETY: see `rename_body`.
    linking(libc::AT_FDCWD, new, unsafe { real(old, new) })
}

unsafe fn linkat_body(
    real: unsafe extern "C" fn(c_int, *const c_char, c_int, *const c_char, c_int) -> c_int,
    old_dir: c_int,
    old: *const c_char,
    new_dir: c_int,
    new: *const c_char,
    flags: c_int,
) -> c_int {
    // SAFETY: see `rename_body`.
    linking(new_dir, new, unsafe { real(old_dir, old, new_dir, new, flags) })
}
