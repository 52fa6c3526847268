//! What this process knows: its session, its protected files, its protected addresses.
//!
//! Nothing is protected until the first call that could concern a protected file: then the agent is asked. If none
//! answers, the program runs unprotected, is told so once, and slow calls try again at bounded intervals; what it
//! wrote meanwhile is part of the first sync once its file is protected.

use std::ffi::c_void;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, Ordering};
use std::time::Duration;

use pmemha::log::region::boottime;
use pmemha::region::identity::Facts;
use pmemha::region::kind::MemoryKind;
use pmemha::region::table::{MapTable, Span};
use pmemha::session::local_flush::LocalFlush;
use pmemha::session::{Options, Session, SessionError};

use crate::file::File;
use crate::report::{error, info, warn};
use crate::{file, guard, mapping};

/// The protected addresses.
pub static TABLE: MapTable = MapTable::new();

/// The session, once there is one; never freed.
static SESSION: AtomicPtr<Session> = AtomicPtr::new(ptr::null_mut());

/// When to look for the agent again, milliseconds of [`boottime`].
static NEXT_TRY: AtomicU64 = AtomicU64::new(0);
/// When to ask for a file to be protected again, after the agent has failed to; as above.
static NEXT_PROTECT: AtomicU64 = AtomicU64::new(0);
static WAIT: AtomicU64 = AtomicU64::new(FIRST_WAIT.as_millis() as u64);
static TOLD: AtomicBool = AtomicBool::new(false);

/// Set once the process is past its last hook that could publish later: captures publish at once.
static ENDING: AtomicBool = AtomicBool::new(false);

/// Set in a forked child until it publishes for the first time: only then is it worth a session of its own.
static CHILD: AtomicBool = AtomicBool::new(false);

/// Pause after the first failed attempt to attach; doubled each time.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// Longest pause between attempts: an agent that comes back is found within it.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// The session, if there is one.
#[inline]
pub fn session() -> Option<&'static Session> {
    // Pairs with the release in `attach`.
    // SAFETY: only `attach` stores here, a pointer that is never freed.
    unsafe { SESSION.load(Ordering::Acquire).as_ref() }
}

/// The session; attaches if it is time to try. Only within [`guard::slow`].
pub fn session_or_attach() -> Option<&'static Session> {
    session().or_else(|| if due() { attach() } else { None })
}

/// Whether it is worth entering [`guard::slow`] for something that needs a session.
pub fn session_likely() -> bool {
    session().is_some() || due()
}

fn due() -> bool {
    now_ms() >= NEXT_TRY.load(Ordering::Relaxed)
}

fn attach() -> Option<&'static Session> {
    match Session::connect(Options { program: program(), ..Options::default() }) {
        Ok(session) => {
            let session = Arc::into_raw(session).cast_mut();
            SESSION.store(session, Ordering::Release);
            // SAFETY: just made, never freed.
            let session = unsafe { &*session };
            info!("attached to group \"{}\", generation {}", session.group(), session.generation());
            crate::process::on_attach();
            mapping::adopt_existing();
            Some(session)
        }
        Err(e) => {
            let wait = WAIT.load(Ordering::Relaxed);
            NEXT_TRY.store(now_ms() + wait, Ordering::Relaxed);
            WAIT.store((wait * 2).min(LONGEST_WAIT.as_millis() as u64), Ordering::Relaxed);
            if !TOLD.swap(true, Ordering::Relaxed) {
                warn!("running unprotected: {e}");
            }
            None
        }
    }
}

fn program() -> String {
    let exe = std::env::current_exe().unwrap_or_default();
    exe.file_name().map_or_else(|| "?".into(), |n| n.to_string_lossy().into_owned())
}

fn now_ms() -> u64 {
    boottime().as_millis() as u64
}

/// What came of asking for a file to be protected.
pub enum Protected {
    /// It is.
    Is(&'static File),
    /// It is not to be.
    Not,
    /// There is no session to ask in.
    Unasked,
    /// It is to be and is not, which puts the application ahead: to be asked again when the file is used next.
    Failed,
}

impl Protected {
    /// The file, if it is protected.
    pub fn file(self) -> Option<&'static File> {
        if let Protected::Is(file) = self { Some(file) } else { None }
    }
}

/// Protects the file behind `fd` if the configuration names it or `explicit` says so. Only within [`guard::slow`].
pub fn protect(fd: BorrowedFd<'_>, facts: &Facts, path: Option<&Path>, explicit: bool) -> Protected {
    if let Some(known) = file::by_identity(&facts.identity) {
        return Protected::Is(known);
    }
    let Some(session) = session_or_attach() else { return Protected::Unasked };
    if !explicit && !path.is_some_and(|p| session.protects(p)) {
        return Protected::Not;
    }
    let failed = |why: Option<SessionError>| {
        // What is recorded from here on may rest on this file's content, which is in no record.
        session.appender().unrecorded();
        if let Some(why) = why {
            NEXT_PROTECT.store(now_ms() + FIRST_WAIT.as_millis() as u64, Ordering::Relaxed);
            error!("{} is not replicated for now: {why}", path.unwrap_or(Path::new("a file")).display());
        }
        Protected::Failed
    };
    if now_ms() < NEXT_PROTECT.load(Ordering::Relaxed) {
        return failed(None);
    }
    match session.protect(fd, 0, explicit) {
        Ok(protection) => Protected::Is(file::add(facts, protection.region, is_record_only(fd))),
        Err(SessionError::NotProtected { .. }) => Protected::Not,
        Err(why) => failed(Some(why)),
    }
}

/// Whether this file's lines are to be recorded, and not flushed.
fn is_record_only(fd: BorrowedFd<'_>) -> bool {
    let local_flush = LocalFlush::from_env().unwrap_or_else(|why| {
        warn!("{why}; taken for \"always\"");
        LocalFlush::Always
    });
    MemoryKind::of(fd).is_ok_and(|memory| local_flush.leaves_out(memory))
}

/// What is left to do with lines once they are recorded.
#[must_use]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Rest {
    /// Flush them.
    Flush,
    /// Nothing: every byte of the range lies in files whose lines are recorded only.
    Nothing,
}

/// Whether any of the `len` bytes at `addr` are protected.
#[inline]
pub fn any_protected(addr: *const c_void, len: usize) -> bool {
    if TABLE.untouched() {
        return false;
    }
    let answer = TABLE.find(addr as usize);
    // What is not protected ends where something protected begins.
    answer.span.is_some() || (addr as usize).saturating_add(len) > answer.end
}

/// Records the lines of `[addr, addr + len)` that are protected, before they are flushed.
#[inline]
pub fn capture(addr: *const c_void, len: usize) -> Rest {
    if TABLE.untouched() || len == 0 {
        return Rest::Flush;
    }
    capture_lines(addr as usize, len, None)
}

/// As [`capture`] for bytes at `dst` that were just copied there from `src`, around the cache.
#[inline]
pub fn capture_copied(dst: *const c_void, src: *const c_void, len: usize) {
    if TABLE.untouched() || len == 0 {
        return;
    }
    // They are on their way around the cache.
    let _ = capture_lines(dst as usize, len, Some(src as usize));
}

fn capture_lines(addr: usize, len: usize, src: Option<usize>) -> Rest {
    let Some(session) = session() else { return Rest::Flush };
    let appender = session.appender();
    let mut record_only_bytes = 0;
    guard::capturing(
        || {
            TABLE.for_each(addr, addr.saturating_add(len), |span| {
                let (at, n) = (span.start as *const u8, span.end - span.start);
                if let Some(file) = file::by_region(span.region) {
                    file.note_flushed();
                    record_only_bytes += if file.record_only { n } else { 0 };
                }
                // SAFETY: the program flushes these bytes, so they are mapped, in whole pages, at offsets that are
                // equal to the addresses modulo a page; a copy's operands are disjoint and the program's not to
                // change before its call returns.
                unsafe {
                    match src {
                        Some(src) => {
                            let from = (src + (span.start - addr)) as *const u8;
                            appender.capture_from(span.region, span.offset, at, from, n);
                        }
                        None => appender.capture(span.region, span.offset, at, n),
                    }
                }
            });
        },
        publish,
    );
    if record_only_bytes < len { Rest::Flush } else { Rest::Nothing }
}

/// Records `span` as it is now: for dirty pages, whose program says nothing of lines.
pub fn capture_span(span: &Span) {
    let Some(session) = session() else { return };
    guard::capturing(
        || {
            let at = span.start as *const u8;
            // SAFETY: the span stands in the table, so its pages are mapped.
            unsafe { session.appender().capture(span.region, span.offset, at, span.end - span.start) };
        },
        publish,
    );
}

/// Publishes what was recorded so far, and waits if the configuration has drains wait. After the real fence.
#[inline]
pub fn drain() {
    if session().is_some() && !guard::drain_is_owed() {
        publish();
    }
}

#[cold]
fn publish() {
    let Some(session) = session() else { return };
    if CHILD.load(Ordering::Relaxed) && CHILD.swap(false, Ordering::Relaxed) {
        // From here on the agent watches over this process as well: its parent may be gone long before it.
        guard::slow(|| session.tend());
    }
    let lsn = session.appender().drain();
    if session.drains_wait() {
        session.appender().commit(lsn);
    }
}

/// As [`drain`], for records that no later call may publish: those of a program that is ending.
pub fn drain_if_ending() {
    if ENDING.load(Ordering::Relaxed) {
        drain();
    }
}

/// From here on captures publish at once.
pub fn set_ending() {
    ENDING.store(true, Ordering::Relaxed);
}

/// In the child of a fork, whose threads are gone.
pub fn after_fork_child() {
    TABLE.after_fork();
    ENDING.store(false, Ordering::Relaxed);
    let Some(session) = session() else { return };
    CHILD.store(true, Ordering::Relaxed);
    if let Err(e) = session.after_fork_child() {
        // Its captures are counted, for the status, and not recorded.
        error!("this forked process is not replicated: {e}");
    }
}
