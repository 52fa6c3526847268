//! Ordering what was recorded, and waiting for its journey.

use std::ffi::c_int;
use std::time::Duration;

use super::guard::{Failure, guard, put};
use super::session::{find, pmemha_session};
use super::status::pmemha_level::{self, *};
use super::status::pmemha_rc;
use crate::region::flush::fence;
use crate::session::Session;
use crate::types::{Level, Lsn};

/// Orders what was flushed and publishes what was recorded: what pmem_drain() does, and the publication.
///
/// @session the session
/// @lsn     if not NULL: is set to the LSN that pmemha_wait() takes
///
/// To be called *instead of* pmem_drain(). Everything that was flushed or appended before, by any thread whose call had
/// returned, is below the LSN: it survives this program at once, and the loss of this machine as soon as
/// pmemha_wait() says so. A failover shows all of it or, in the order of the records, a first part of it.
///
/// Does not wait for a network, unless the group's configuration sets a commit level: then it waits for
/// that level, no longer than the configured time, and returns #PMEMHA_OK in either case.
///
/// Returns #PMEMHA_OK, #PMEMHA_E_CLOSED, #PMEMHA_E_INVAL. Any thread.
///
/// # Safety
/// As in C: `lsn` is NULL or valid.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pmemha_drain(session: *mut pmemha_session, lsn: *mut u64) -> pmemha_rc {
    guard(|| {
        let session = find(session)?;
        let published = publish(&session);
        // SAFETY: NULL or valid, as the caller promises.
        unsafe { put(lsn, published.0) };
        Ok(())
    })
}

/// Waits until everything below an LSN has come as far as a level.
///
/// @session    the session
/// @lsn        of pmemha_drain() or pmemha_persist()
/// @level      one of enum pmemha_level
/// @timeout_ms milliseconds; 0: only look; negative: without a limit
///
/// Where it cannot succeed it does not wait: #PMEMHA_E_NO_AGENT while the agent has no pulse, #PMEMHA_E_NO_DESTINATION,
/// #PMEMHA_E_UNPUBLISHED for an LSN that nobody drained. Otherwise #PMEMHA_OK, #PMEMHA_E_TIMEOUT, #PMEMHA_E_GAP, #PMEMHA_E_CLOSED,
/// #PMEMHA_E_INVAL. After a failure the data is as safe as before the call, and waiting again is fine. Any thread; a
/// session that is closed meanwhile is waited for to the end.
#[unsafe(no_mangle)]
pub extern "C" fn pmemha_wait(
    session: *mut pmemha_session,
    lsn: u64,
    level: c_int,
    timeout_ms: c_int,
) -> pmemha_rc {
    guard(|| {
        let session = find(session)?;
        let level = [
            (PMEMHA_LEVEL_LOCAL, Level::Local),
            (PMEMHA_LEVEL_RECEIVED, Level::Received),
            (PMEMHA_LEVEL_DURABLE, Level::Durable),
            (PMEMHA_LEVEL_APPLIED, Level::Applied),
        ]
        .into_iter()
        .find_map(|(number, meaning): (pmemha_level, Level)| (number as c_int == level).then_some(meaning))
        .ok_or_else(|| Failure::invalid(format!("level {level} is not one of enum pmemha_level")))?;
        let timeout = u64::try_from(timeout_ms).ok().map(Duration::from_millis);
        Ok(session.appender().wait(Lsn(lsn), level, timeout)?)
    })
}

/// The fence that a drain stands for, then the publication, then what the configuration asks for.
pub(super) fn publish(session: &Session) -> Lsn {
    fence();
    let lsn = session.appender().drain();
    // Not reached in time: counted in the log and shown by the agent's status.
    session.appender().commit(lsn);
    lsn
}
