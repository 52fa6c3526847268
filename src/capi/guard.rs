//! The border between C and Rust: every entry runs inside [`guard`].

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::status::pmemha_rc::{self, *};
use crate::log::{LogError, WaitError};
use crate::region::mapped_file::MappingError;
use crate::session::SessionError;
use crate::session::local_flush::UnknownLocalFlush;

/// Why a call failed: the status for the program, the message for a person.
#[derive(Debug)]
pub(super) struct Failure {
    rc: pmemha_rc,
    message: String,
}

/// Runs the body of a C function: a failure becomes its status and message, and so does a panic.
pub(super) fn guard(body: impl FnOnce() -> Result<(), Failure>) -> pmemha_rc {
    // What a panic may leave half done is the library's own state, which is written to be read by other processes at
    // any instruction.
    let failure = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(())) => return PMEMHA_OK,
        Ok(Err(failure)) => failure,
        Err(panic) => Failure::new(PMEMHA_E_INTERNAL, format!("defect of libpmemha: {}", text_of(&*panic))),
    };
    // At thread exit the message may be gone already; the status says enough then.
    let _ = MESSAGE.try_with(|m| {
        let bytes: Vec<u8> = failure.message.into_bytes().into_iter().filter(|b| *b != 0).collect();
        *m.borrow_mut() = CString::new(bytes).unwrap_or_default();
    });
    failure.rc
}

/// The message of this thread's last failure.
pub(super) fn last_message() -> *const c_char {
    MESSAGE.try_with(|m| m.borrow().as_ptr()).unwrap_or(c"".as_ptr())
}

/// The string at `text`, if there is one.
///
/// # Safety
/// `text` is NULL or points to a string that stays as it is for `'a`.
pub(super) unsafe fn optional_str<'a>(what: &str, text: *const c_char) -> Result<Option<&'a str>, Failure> {
    if text.is_null() {
        return Ok(None);
    }
    // SAFETY: not NULL, and a string as the caller promises.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map(Some).map_err(|_| Failure::invalid(format!("{what} is not UTF-8")))
}

/// Writes a result through a pointer of the caller's, if it is not NULL.
///
/// # Safety
/// `out` is NULL or points to a `T` that may be written.
pub(super) unsafe fn put<T>(out: *mut T, value: T) {
    if !out.is_null() {
        // SAFETY: not NULL, so writable as the caller promises; `T` here is plain data without a destructor.
        unsafe { out.write_unaligned(value) }
    }
}

impl Failure {
    pub fn new(rc: pmemha_rc, message: impl Into<String>) -> Failure {
        Failure { rc, message: message.into() }
    }

    pub fn invalid(message: impl Into<String>) -> Failure {
        Failure::new(PMEMHA_E_INVAL, message)
    }

    /// Refuses NULL where a result is to be written.
    pub fn unless_null<T>(what: &str, pointer: *const T) -> Result<(), Failure> {
        if pointer.is_null() { Err(Failure::invalid(format!("{what} is NULL"))) } else { Ok(()) }
    }
}

impl From<UnknownLocalFlush> for Failure {
    fn from(e: UnknownLocalFlush) -> Failure {
        Failure::invalid(e.to_string())
    }
}

impl From<SessionError> for Failure {
    fn from(e: SessionError) -> Failure {
        let rc = match &e {
            SessionError::NoAgent { .. } => PMEMHA_E_NO_AGENT,
            SessionError::NotProtected { .. } | SessionError::Refused { .. } => PMEMHA_E_REFUSED,
            SessionError::Replaced { .. } => PMEMHA_E_REPLACED,
            SessionError::Unexpected { .. } => PMEMHA_E_VERSION,
            SessionError::Log { source: LogError::NoCell(_), .. } => PMEMHA_E_LIMIT,
            SessionError::Log { .. } => PMEMHA_E_SYSTEM,
            SessionError::Over => PMEMHA_E_CLOSED,
        };
        Failure::new(rc, e.to_string())
    }
}

impl From<WaitError> for Failure {
    fn from(e: WaitError) -> Failure {
        let rc = match e {
            WaitError::Unpublished { .. } => PMEMHA_E_UNPUBLISHED,
            WaitError::Timeout => PMEMHA_E_TIMEOUT,
            WaitError::Gap => PMEMHA_E_GAP,
            WaitError::AgentDead => PMEMHA_E_NO_AGENT,
            WaitError::NoDestination => PMEMHA_E_NO_DESTINATION,
        };
        Failure::new(rc, e.to_string())
    }
}

impl From<MappingError> for Failure {
    fn from(e: MappingError) -> Failure {
        let rc = match &e {
            MappingError::Unmapped(_) | MappingError::Pieces { .. } => PMEMHA_E_RANGE,
            MappingError::Anonymous(_) | MappingError::Private { .. } | MappingError::Gone { .. } => {
                PMEMHA_E_NOT_A_FILE
            }
            MappingError::System { .. } => PMEMHA_E_SYSTEM,
        };
        Failure::new(rc, e.to_string())
    }
}

fn text_of(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("a panic without a text")
}

thread_local! {
    static MESSAGE: RefCell<CString> = RefCell::default();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message() -> String {
        // SAFETY: the pointer is valid until the next failure on this thread.
        unsafe { CStr::from_ptr(last_message()) }.to_str().unwrap().to_owned()
    }

    #[test]
    fn a_panic_becomes_a_status() {
        let rc = guard(|| panic!("the roof is on fire"));
        assert_eq!(rc, PMEMHA_E_INTERNAL);
        assert!(message().contains("the roof is on fire"));
    }

    #[test]
    fn a_message_stays_until_the_next_failure_of_this_thread() {
        guard(|| Err(Failure::invalid("first\0with a zero")));
        guard(|| Ok(()));
        std::thread::scope(|s| {
            s.spawn(|| {
                assert_eq!(message(), "");
                guard(|| Err(Failure::invalid("elsewhere")));
            });
        });
        assert_eq!(message(), "firstwith a zero");
    }
}
