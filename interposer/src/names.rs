//! rename, unlink and link: the names of protected files.
//!
//! A file that is renamed to a protected name is protected before it gets it, so that replacing a file by rename is one
//! record and as atomic at the destination as here. A protected file that gets an unprotected name stays a region.

use std::cell::Cell;
use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_uint};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use pmemha::log::format::region_path;
use pmemha::region::identity::{Facts, Sort, open_again, path_of};
use rustix::fs::OFlags;

use crate::file::{self, File};
use crate::real::hook;
use crate::report::refuse;
use crate::{fds, guard, state};

hook!(Libc, [rename], (old: *const c_char, new: *const c_char) -> c_int, rename_body);
hook!(Libc, [renameat],
    (old_dir: c_int, old: *const c_char, new_dir: c_int, new: *const c_char) -> c_int, renameat_body);
hook!(Libc, [renameat2],
    (old_dir: c_int, old: *const c_char, new_dir: c_int, new: *const c_char, flags: c_uint) -> c_int,
    renameat2_body);
hook!(Libc, [unlink, remove], (path: *const c_char) -> c_int, unlink_body);
hook!(Libc, [shm_unlink], (name: *const c_char) -> c_int, shm_unlink_body);
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
    let text = CString::new(name.as_os_str().as_bytes()).ok()?;
    let facts = Facts::at(rustix::fs::CWD, &text).ok()?;
    if let Some(known) = file::by_identity(&facts.identity) {
        return Some(known);
    }
    if facts.sort != Sort::Regular || !(explicit || state::session()?.protects(name)) {
        return None;
    }
    // The agent takes only descriptors that may write as the right to protect.
    let opened = open_again(name, OFlags::RDWR).ok()?;
    let file = state::protect(opened.as_fd(), &facts, Some(name), explicit).file();
    fds::put_away(opened);
    if file.is_some() {
        fds::forget_plain();
    }
    file
}

/// Has `call` give `file`, which is at `path`, the size; `call` returns 0 if it did.
pub fn resizing(
    file: &'static File,
    dir: c_int,
    path: *const c_char,
    size: u64,
    call: impl Fn() -> c_int,
) -> c_int {
    let opened = || {
        let name = std::fs::canonicalize(absolute(dir, path)?).ok()?;
        open_again(&name, OFlags::RDONLY).ok()
    };
    let record_size = || match opened() {
        Some(fd) => {
            file.record_size_locked(fd.as_fd());
            fds::put_away(fd);
        }
        None => file.not_recorded(&"its size: it cannot be opened"),
    };
    guard::together(call, || Some(file), |file, call| file.resize_within(size, call, record_size))
}

/// Has `call` open the file at `path` so that nothing of what it holds remains (`O_TRUNC`); `done` says of the result whether
/// it did. Also whether that is recorded: a file that this process did not know is looked at only when it is open.
pub fn truncating<R>(
    dir: c_int,
    path: *const c_char,
    call: impl Fn() -> R,
    done: impl Fn(&R) -> bool,
) -> (R, bool) {
    let Some(file) = known(dir, path) else { return (call(), false) };
    let result = Cell::new(None);
    let noting = || {
        let made = call();
        let failed = !done(&made);
        result.set(Some(made));
        -c_int::from(failed)
    };
    resizing(file, dir, path, 0, noting);
    (result.into_inner().unwrap_or_else(call), true)
}

/// Where `shm_open` finds what is called so; none if it would refuse the name.
pub fn of_shared_memory(name: *const c_char) -> Option<CString> {
    if name.is_null() {
        return None;
    }
    // SAFETY: the program passes a name to a call that takes one.
    let name = unsafe { CStr::from_ptr(name) }.to_bytes();
    let first = name.iter().position(|c| *c != b'/')?;
    CString::new([b"/dev/shm/", &name[first..]].concat()).ok()
}

/// The file at `path`, if this process has met it as a protected one.
fn known(dir: c_int, path: *const c_char) -> Option<&'static File> {
    if guard::inside() || path.is_null() {
        return None;
    }
    state::session()?;
    let find = || {
        let name = std::fs::canonicalize(absolute(dir, path)?).ok()?;
        let text = CString::new(name.as_os_str().as_bytes()).ok()?;
        file::by_identity(&Facts::at(rustix::fs::CWD, &text).ok()?.identity)
    };
    guard::slow(find).flatten()
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
    /// Whether a record can have that name.
    nameable: bool,
    moved: Option<&'static File>,
    replaced: Option<&'static File>,
}

impl Renaming {
    /// `None` if it concerns no protected file. Only within [`guard::slow`].
    fn prepare(old_dir: c_int, old: *const c_char, new_dir: c_int, new: *const c_char) -> Option<Renaming> {
        let session = state::session_or_attach()?;
        let (source, target) = (absolute(old_dir, old)?, absolute(new_dir, new)?);
        // A file with a name that no record can have is not protected, as when it is made under such a name.
        let nameable = region_path(target.as_os_str().as_bytes()).is_some();
        let moved = look(&source, nameable && session.protects(&target));
        let replaced = look(&target, false).filter(|r| moved.is_none_or(|m| m.region != r.region));
        (moved.is_some() || replaced.is_some()).then_some(Renaming { target, nameable, moved, replaced })
    }

    fn carry_out(self, call: &dyn Fn() -> c_int) -> c_int {
        match (self.moved, self.replaced) {
            (Some(_), _) if !self.nameable => {
                let name = self.target.display();
                refuse(
                    libc::EINVAL,
                    format_args!("a protected file cannot be called {name}, too long or not UTF-8"),
                )
            }
            (Some(moved), replaced) => {
                moved.rename_within(self.target.as_os_str().as_bytes(), replaced, call)
            }
            (None, Some(replaced)) => unlink_within(replaced, call),
            (None, None) => call(),
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
    guard::together(call, || Renaming::prepare(old_dir, old, new_dir, new), Renaming::carry_out)
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
        let what = "exchanging two names of which one is protected cannot be replicated";
        return refuse(libc::EINVAL, format_args!("{what}"));
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
        let text = CString::new(name.as_os_str().as_bytes()).ok()?;
        let facts = Facts::at(rustix::fs::CWD, &text).ok()?;
        if facts.links == 1 { look(&name, false) } else { None }
    };
    guard::together(call, last_name, unlink_within)
}

/// Its record may come after the call, and after a successor's creation: then it is of a region that is gone.
fn unlink_within(file: &'static File, call: &dyn Fn() -> c_int) -> c_int {
    let result = call();
    if result == 0 {
        file.record_unlink();
    }
    result
}

unsafe fn unlink_body(real: unsafe extern "C" fn(*const c_char) -> c_int, path: *const c_char) -> c_int {
    // SAFETY: see `rename_body`.
    unlinking(libc::AT_FDCWD, path, || unsafe { real(path) })
}

unsafe fn shm_unlink_body(real: unsafe extern "C" fn(*const c_char) -> c_int, name: *const c_char) -> c_int {
    // SAFETY: see `rename_body`.
    let call = || unsafe { real(name) };
    match of_shared_memory(name) {
        Some(path) => unlinking(libc::AT_FDCWD, path.as_ptr(), call),
        None => call(),
    }
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
