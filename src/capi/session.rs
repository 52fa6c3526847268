//! Opening, closing and asking about a session.

use std::ffi::c_char;
use std::path::PathBuf;
use std::sync::{Arc, Once};

use super::guard::{Failure, guard, optional_str, put};
use super::handles::{Handle, Handles, InUse};
use super::region::close_regions_of;
use super::status::pmemha_rc::{self, *};
use crate::log::region::boottime;
use crate::log::{LinkState, LogRegion};
use crate::session::{Options, Session};

/// A session with the agent of this machine: one group, one log. Opaque.
///
/// May be used by all threads at once. A child of fork() may go on using it: it then is a session of the child's own
/// (vfork() and posix_spawn() children must not). Not for signal handlers.
pub struct pmemha_session;

/// What pmemha_status() tells. LSNs are positions in the group's log, as pmemha_drain() returns them.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct pmemha_info {
    /// Every record below this LSN is published: it survives this program.
    pub published: u64,
    /// Every record below has arrived at the destination.
    pub received: u64,
    /// Every record below survives the loss of this machine.
    pub durable: u64,
    /// Every record below is part of the destination's image.
    pub applied: u64,
    /// The group's generation: one more after each failover.
    pub generation: u32,
    /// 1 while the agent shows a pulse, else 0.
    pub agent_alive: u32,
    /// One of enum pmemha_link.
    pub link: u32,
    /// 1 while the log has overflowed and destinations are not yet brought up to date by a copy, else 0.
    pub gap: u32,
}

/// The way to the destinations, as the agent sees it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum pmemha_link {
    /// No destination is configured.
    PMEMHA_LINK_NONE = 0,
    /// A destination is configured, and not connected.
    PMEMHA_LINK_DOWN = 1,
    /// A destination is connected and does not hold a complete image yet.
    PMEMHA_LINK_SYNCING = 2,
    /// A destination counts: the program is protected.
    PMEMHA_LINK_COUNTING = 3,
}

/// Opens a session with the agent of this machine.
///
/// @socket  path of the agent's socket; NULL: environment variable PMEMHA_SOCKET, else /run/pmemha/pmemhad.sock
/// @group   name of the group; NULL: PMEMHA_GROUP, else the one that the agent's configuration has for this user
/// @session where the handle goes; set to NULL on failure
///
/// Waits for the agent no longer than five seconds. A process needs one session; each takes address space for the
/// whole log. The environment is ignored in set-user-ID programs.
///
/// Returns #PMEMHA_OK, #PMEMHA_E_NO_AGENT, #PMEMHA_E_REFUSED, #PMEMHA_E_LIMIT (64 sessions a process; writers of one log),
/// #PMEMHA_E_INVAL, #PMEMHA_E_VERSION, #PMEMHA_E_SYSTEM. Any thread.
///
/// # Safety
/// As in C: pointers are NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pmemha_open(
    socket: *const c_char,
    group: *const c_char,
    session: *mut *mut pmemha_session,
) -> pmemha_rc {
    guard(|| {
        Failure::unless_null("session", session)?;
        // SAFETY: not NULL, so valid as the caller promises; likewise the strings.
        let (socket, group) = unsafe {
            put(session, std::ptr::null_mut());
            (optional_str("socket", socket)?, optional_str("group", group)?)
        };
        follow_forks();
        let options = Options {
            socket: socket.map(PathBuf::from),
            group: group.map(str::to_owned),
            program: program_name(),
        };
        let live = Session::connect(options)?;
        let handle = SESSIONS.insert(live.clone()).ok_or_else(|| {
            // The agent counts it by now, and would take the end of this program for a death.
            let _ = live.goodbye(None);
            Failure::new(PMEMHA_E_LIMIT, format!("{MAX_SESSIONS} sessions are open already: close one"))
        })?;
        // SAFETY: as above.
        unsafe { put(session, std::ptr::without_provenance_mut(handle)) };
        Ok(())
    })
}

/// Closes a session and all its regions, and tells the agent that this is no failure.
///
/// @session address of the handle, which is set to NULL; NULL, or the address of NULL, is fine
///
/// What was appended before is still shipped, what was not drained included. Threads inside calls with the handle finish
/// them. A program that ends without closing counts as dead: where the configuration says so, that
/// means failover. Copies of the handle are refused from here on with #PMEMHA_E_CLOSED.
///
/// Returns #PMEMHA_OK; #PMEMHA_E_NO_AGENT when the agent could not be told (the session is closed all the same);
/// #PMEMHA_E_CLOSED. Waits no longer than a second. Any thread; not in a handler of atexit() that may run while
/// other threads go on.
///
/// # Safety
/// As in C: the pointer is NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pmemha_close(session: *mut *mut pmemha_session) -> pmemha_rc {
    guard(|| {
        if session.is_null() {
            return Ok(());
        }
        // SAFETY: not NULL, so valid as the caller promises.
        let handle = unsafe { session.read_unaligned() };
        if handle.is_null() {
            return Ok(());
        }
        let live = find(handle)?;
        if !SESSIONS.close(handle.addr()) {
            return Err(closed());
        }
        close_regions_of(handle.addr());
        // SAFETY: as above.
        unsafe { put(session, std::ptr::null_mut()) };
        // Any prefix of the records is a legal state, so the last ones need no drain of the program's.
        live.appender().drain();
        Ok(live.goodbye(None)?)
    })
}

/// Tells how far the group's protection has come, from shared memory: no agent is asked, nothing waits.
///
/// @session the session
/// @info    is filled
/// @size    sizeof(struct pmemha_info): a library that is newer fills no more than that
///
/// Returns #PMEMHA_OK, #PMEMHA_E_INVAL, #PMEMHA_E_CLOSED. Any thread.
///
/// # Safety
/// As in C: `info` is NULL or has `size` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pmemha_status(
    session: *mut pmemha_session,
    info: *mut pmemha_info,
    size: usize,
) -> pmemha_rc {
    guard(|| {
        let session = find(session)?;
        Failure::unless_null("info", info)?;
        if size == 0 {
            return Err(Failure::invalid("size is 0: pass sizeof(struct pmemha_info)"));
        }
        let now = info_of(session.log());
        let len = size.min(size_of::<pmemha_info>());
        // SAFETY: `info` has `size` bytes as the caller promises, and the copy is no longer than either.
        unsafe { std::ptr::copy_nonoverlapping((&raw const now).cast::<u8>(), info.cast(), len) };
        Ok(())
    })
}

/// Asks the agent for its status: the JSON document that `pmemha status --json` prints, zero-terminated.
///
/// @session the session
/// @buffer  where it goes; may be NULL if size is 0
/// @size    bytes of the buffer
/// @needed  if not NULL: is set to the bytes that the document takes, its final zero included
///
/// Returns #PMEMHA_OK; #PMEMHA_E_RANGE when the buffer is too small (it then holds as much as fits, terminated);
/// #PMEMHA_E_NO_AGENT, #PMEMHA_E_REPLACED, #PMEMHA_E_REFUSED, #PMEMHA_E_INVAL, #PMEMHA_E_CLOSED. Waits for the agent no
/// longer than five seconds. Any thread.
///
/// # Safety
/// As in C: `buffer` has `size` bytes; `needed` is NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pmemha_status_json(
    session: *mut pmemha_session,
    buffer: *mut c_char,
    size: usize,
    needed: *mut usize,
) -> pmemha_rc {
    guard(|| {
        let session = find(session)?;
        if size > 0 {
            Failure::unless_null("buffer", buffer)?;
        }
        let document = session.status()?.to_string();
        // SAFETY: NULL or valid, as the caller promises.
        unsafe { put(needed, document.len() + 1) };
        if size > 0 {
            let len = document.len().min(size - 1);
            // SAFETY: `buffer` has `size` bytes as the caller promises, and `len` is less.
            unsafe {
                std::ptr::copy_nonoverlapping(document.as_ptr(), buffer.cast(), len);
                buffer.add(len).write(0);
            }
        }
        if document.len() < size {
            return Ok(());
        }
        let text = format!("the status takes {} bytes, the buffer has {size}", document.len() + 1);
        Err(Failure::new(PMEMHA_E_RANGE, text))
    })
}

/// Starts the last gasp of the session's group; returns once it has begun.
///
/// The application, the caller included, is frozen; everything that is published goes to the destination, which then takes
/// over. For a program that knows of a failure before the agent does. `pmemha events` tells how it goes on.
///
/// Returns #PMEMHA_OK, #PMEMHA_E_NO_AGENT, #PMEMHA_E_REFUSED (the agent's words say why), #PMEMHA_E_REPLACED, #PMEMHA_E_CLOSED,
/// #PMEMHA_E_INVAL. Waits for the agent no longer than five seconds. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn pmemha_last_gasp(session: *mut pmemha_session) -> pmemha_rc {
    guard(|| Ok(find(session)?.last_gasp()?))
}

/// The session that a handle names.
pub(super) fn find(session: *mut pmemha_session) -> Result<InUse<'static, Arc<Session>>, Failure> {
    Failure::unless_null("session", session)?;
    SESSIONS.get(session.addr()).ok_or_else(closed)
}

/// Whether the handle is live.
pub(super) fn is_open(session: Handle) -> bool {
    SESSIONS.get(session).is_some()
}

fn closed() -> Failure {
    Failure::new(
        PMEMHA_E_CLOSED,
        "the session is closed, or the pointer never was a session of pmemha_open()",
    )
}

fn info_of(log: &LogRegion) -> pmemha_info {
    let acks = log.acks();
    let link = match log.link() {
        LinkState::None => pmemha_link::PMEMHA_LINK_NONE,
        LinkState::Down => pmemha_link::PMEMHA_LINK_DOWN,
        LinkState::Syncing => pmemha_link::PMEMHA_LINK_SYNCING,
        LinkState::Counting => pmemha_link::PMEMHA_LINK_COUNTING,
    };
    pmemha_info {
        published: log.published().0,
        received: acks.received.0,
        durable: acks.durable.0,
        applied: acks.applied.0,
        generation: log.spec().generation.0,
        agent_alive: log.agent_alive(boottime()).into(),
        link: link as u32,
        gap: (!log.is_whole()).into(),
    }
}

fn program_name() -> String {
    let path = std::env::current_exe().unwrap_or_default();
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// From the first session on, children of fork get sessions of their own.
fn follow_forks() {
    extern "C" fn child() {
        guard(|| {
            for session in SESSIONS.live().filter_map(|handle| SESSIONS.get(handle)) {
                // A failure shows at the child's first use: `Session::records` is false then.
                let _ = session.after_fork_child();
            }
            Ok(())
        });
    }
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the handler touches only this library's own state, which is free of locks for this purpose.
        unsafe { libc::pthread_atfork(None, None, Some(child)) };
    });
}

/// A process needs one; a few more for several groups.
const MAX_SESSIONS: usize = 64;

static SESSIONS: Handles<Arc<Session>, MAX_SESSIONS> = Handles::new(0x51);
