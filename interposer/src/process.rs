//! Birth and death of processes: fork, exec, exit.
//!
//! A forked child has a session of its own, opened when it first needs one; what it shares with its parent is the log. vfork and
//! posix_spawn run in the parent's memory and are left alone. A program that ends of its own will says goodbye, after
//! the pages that it stored to are recorded, so that its end is no failure.

use std::arch::naked_asm;
use std::ffi::{c_char, c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};

use crate::real::{Home, Symbol, hook};
use crate::{file, guard, mapping, state};

/// The process that attached; another one in the same memory is a vfork's child. 0: none.
static OWNER: AtomicI32 = AtomicI32::new(0);

/// The process that forks, or the child that knows that it is one. Only its one thread looks, under the lock.
static FORKING: AtomicI32 = AtomicI32::new(0);

/// Exit status, once exit was called. `i32::MIN`: not known.
static STATUS: AtomicI32 = AtomicI32::new(i32::MIN);

static REGISTERED: AtomicBool = AtomicBool::new(false);

unsafe extern "C" {
    fn on_exit(function: extern "C" fn(c_int, *mut c_void), arg: *mut c_void) -> c_int;
}

/// There is a session: from here on deaths matter.
pub fn on_attach() {
    OWNER.store(pid(), Ordering::Relaxed);
    if !REGISTERED.swap(true, Ordering::Relaxed) {
        // SAFETY: a handler that lives as long as the process: the library is never unloaded.
        unsafe { on_exit(note_status, std::ptr::null_mut()) };
    }
}

/// Before the program's own handlers are registered: so its own run outside of ours, and may wait for threads that wait for us.
extern "C" fn at_start() {
    // SAFETY: handlers that live as long as the process. If there is no memory for them, a child that is forked while
    // another thread holds the lock records nothing.
    unsafe { libc::pthread_atfork(Some(before_fork), Some(after_fork_parent), Some(after_fork_child)) };
}

#[used]
#[unsafe(link_section = ".init_array")]
static AT_START: extern "C" fn() = at_start;

fn pid() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

unsafe extern "C" fn before_fork() {
    guard::before_fork();
    FORKING.store(pid(), Ordering::Relaxed);
}

unsafe extern "C" fn after_fork_parent() {
    guard::after_fork();
}

unsafe extern "C" fn after_fork_child() {
    guard::slow(|| {});
    guard::after_fork();
}

/// What a child does before anything else, be it in our own handler or in an older one. Only within [`guard::slow`], while the
/// fork is under way.
pub fn settle_in_child() {
    if FORKING.load(Ordering::Relaxed) != pid() {
        FORKING.store(pid(), Ordering::Relaxed);
        OWNER.store(pid(), Ordering::Relaxed);
        mapping::after_fork_child();
        state::after_fork_child();
    }
}

extern "C" fn note_status(status: c_int, _: *mut c_void) {
    STATUS.store(status, Ordering::Relaxed);
}

/// Runs after the program's own exit handlers, but before stdio empties its buffers: what comes after is published
/// as it is recorded.
extern "C" fn at_end() {
    if file::any_unseen() && state::session().is_some() {
        // Those streams' bytes pass no hook, then or later: they are read back once they are in the file.
        // SAFETY: null means all streams.
        unsafe { libc::fflush(std::ptr::null_mut()) };
    }
    let status = STATUS.load(Ordering::Relaxed);
    farewell((status != i32::MIN).then_some(status));
}

#[used]
#[unsafe(link_section = ".fini_array")]
static AT_END: extern "C" fn() = at_end;

fn farewell(status: Option<i32>) {
    let Some(session) = state::session().filter(|_| OWNER.load(Ordering::Relaxed) == pid()) else { return };
    mapping::record_all_written();
    file::record_all_unseen();
    state::set_ending();
    state::drain();
    file::keep_nothing_back(session);
    guard::slow(|| {
        // The agent may be gone; then there is nobody to tell.
        let _ = session.goodbye(status);
    });
}

hook!(Libc, [_exit, _Exit, quick_exit], (status: c_int) -> (), exit_now);

unsafe fn exit_now(real: unsafe extern "C" fn(c_int), status: c_int) {
    if !guard::inside() {
        farewell(Some(status));
    }
    // SAFETY: the program's own call.
    unsafe { real(status) }
}

type Argv = *const *const c_char;

hook!(Libc, [execv, execvp], (path: *const c_char, argv: Argv) -> c_int, exec);
hook!(Libc, [execve, execvpe], (path: *const c_char, argv: Argv, envp: Argv) -> c_int, exec_env);
hook!(Libc, [fexecve], (fd: c_int, argv: Argv, envp: Argv) -> c_int, exec_fd);
hook!(Libc, [execveat],
    (dir: c_int, path: *const c_char, argv: Argv, envp: Argv, flags: c_int) -> c_int, exec_at);

/// Exports hooks of the forms with a list of arguments, which only their caller and the real function can count: what is in
/// registers is kept while we prepare, and the real function is jumped to, so that it finds the list where it was left.
macro_rules! hook_list {
    ($($name:ident),+) => { $(
        /// Stands before the function of the same name.
        ///
        /// # Safety
        /// As for that function.
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name() {
            extern "C" fn prepare() -> *mut c_void {
                static SYMBOL: Symbol = Symbol::new(concat!(stringify!($name), "\0"), Home::Libc);
                before_exec();
                SYMBOL.address()
            }
            naked_asm!(
                "push rax",
                "push rdi",
                "push rsi",
                "push rdx",
                "push rcx",
                "push r8",
                "push r9",
                "call {prepare}",
                "mov r11, rax",
                "pop r9",
                "pop r8",
                "pop rcx",
                "pop rdx",
                "pop rsi",
                "pop rdi",
                "pop rax",
                "jmp r11",
                prepare = sym prepare,
            )
        }
    )+ };
}

hook_list!(execl, execlp, execle);

/// The process's memory is about to be replaced: its mappings go, their written pages stay in the page cache.
/// What runs in this process afterwards is another program, whose end says nothing of this one.
fn before_exec() {
    let Some(session) = state::session().filter(|_| OWNER.load(Ordering::Relaxed) == pid()) else { return };
    if !guard::inside() {
        mapping::record_all_written();
        file::record_all_unseen();
        state::drain();
        guard::slow(|| session.exec());
    }
}

unsafe fn exec(
    real: unsafe extern "C" fn(*const c_char, Argv) -> c_int,
    path: *const c_char,
    argv: Argv,
) -> c_int {
    before_exec();
    // SAFETY: the program's own call.
    unsafe { real(path, argv) }
}

unsafe fn exec_env(
    real: unsafe extern "C" fn(*const c_char, Argv, Argv) -> c_int,
    path: *const c_char,
    argv: Argv,
    envp: Argv,
) -> c_int {
    before_exec();
    // SAFETY: the program's own call.
    unsafe { real(path, argv, envp) }
}

unsafe fn exec_at(
    real: unsafe extern "C" fn(c_int, *const c_char, Argv, Argv, c_int) -> c_int,
    dir: c_int,
    path: *const c_char,
    argv: Argv,
    envp: Argv,
    flags: c_int,
) -> c_int {
    before_exec();
    // SAFETY: the program's own call.
    unsafe { real(dir, path, argv, envp, flags) }
}

unsafe fn exec_fd(
    real: unsafe extern "C" fn(c_int, Argv, Argv) -> c_int,
    fd: c_int,
    argv: Argv,
    envp: Argv,
) -> c_int {
    before_exec();
    // SAFETY: the program's own call.
    unsafe { real(fd, argv, envp) }
}
