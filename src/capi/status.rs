//! What a call returns, and what it says about it.

use std::ffi::{c_char, c_int};

use super::guard::last_message;

/// What a call returns. Anything but #PMEMHA_OK leaves a message in pmemha_errormsg().
///
/// None of these means that the program should stop: its own persistent memory is as it was. They say how
/// far its protection goes.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum pmemha_rc {
    /// Done.
    PMEMHA_OK = 0,
    /// An argument is NULL or out of range. A mistake in the program.
    PMEMHA_E_INVAL = 1,
    /// The handle was closed, or never was one of this kind. A mistake in the program.
    PMEMHA_E_CLOSED = 2,
    /// The bytes are not within the region. A mistake in the program.
    PMEMHA_E_RANGE = 3,
    /// Header and library do not fit together.
    PMEMHA_E_VERSION = 4,
    /// No agent answers on this machine. Appending and draining go on without it.
    PMEMHA_E_NO_AGENT = 5,
    /// The agent refused; the message has its words.
    PMEMHA_E_REFUSED = 6,
    /// The memory is no shared mapping of a file, so there is nothing that another machine could open.
    PMEMHA_E_NOT_A_FILE = 7,
    /// The agent has made another log for the group: what this program appends is not protected any more.
    PMEMHA_E_REPLACED = 8,
    /// The time given is over.
    PMEMHA_E_TIMEOUT = 9,
    /// The log overflowed; destinations are being brought up to date by a copy, and the time given is over.
    PMEMHA_E_GAP = 10,
    /// The LSN is not published: pmemha_drain() has not returned it.
    PMEMHA_E_UNPUBLISHED = 11,
    /// The group has no destination: nothing can be acknowledged.
    PMEMHA_E_NO_DESTINATION = 12,
    /// A limit is reached; the message names it.
    PMEMHA_E_LIMIT = 13,
    /// The operating system refused; the message has its words.
    PMEMHA_E_SYSTEM = 14,
    /// A defect of libpmemha.
    PMEMHA_E_INTERNAL = 15,
}

/// How far a record has come. Each level implies those before it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum pmemha_level {
    /// Published in this machine's log: survives the program.
    PMEMHA_LEVEL_LOCAL = 0,
    /// Arrived at a destination.
    PMEMHA_LEVEL_RECEIVED = 1,
    /// Survives the loss of this machine.
    PMEMHA_LEVEL_DURABLE = 2,
    /// Part of the destination's image, persistently.
    PMEMHA_LEVEL_APPLIED = 3,
}

/// The name and meaning of a status, for example "PMEMHA_E_TIMEOUT: the time given is over".
///
/// For any number; unknown ones are named so. The string is static. Any thread, signal handlers too.
#[unsafe(no_mangle)]
pub extern "C" fn pmemha_strstatus(status: c_int) -> *const c_char {
    let text = STATUS_TEXTS.get(usize::try_from(status).unwrap_or(usize::MAX));
    text.copied().unwrap_or(c"unknown status: not one of enum pmemha_rc").as_ptr()
}

/// What the last call of this thread that failed had to say: what happened, to what, and what to do.
///
/// Never NULL; an empty string before the first failure. Valid until the next call of this thread that fails. Each
/// thread has its own.
#[unsafe(no_mangle)]
pub extern "C" fn pmemha_errormsg() -> *const c_char {
    last_message()
}

/// By number.
const STATUS_TEXTS: [&std::ffi::CStr; 16] = [
    c"PMEMHA_OK: done",
    c"PMEMHA_E_INVAL: an argument is NULL or out of range",
    c"PMEMHA_E_CLOSED: the handle was closed, or never was one of this kind",
    c"PMEMHA_E_RANGE: the bytes are not within the region",
    c"PMEMHA_E_VERSION: header and library do not fit together",
    c"PMEMHA_E_NO_AGENT: no agent answers on this machine",
    c"PMEMHA_E_REFUSED: the agent refused",
    c"PMEMHA_E_NOT_A_FILE: the memory is no shared mapping of a file",
    c"PMEMHA_E_REPLACED: the agent has made another log for the group",
    c"PMEMHA_E_TIMEOUT: the time given is over",
    c"PMEMHA_E_GAP: the log overflowed and a copy is under way",
    c"PMEMHA_E_UNPUBLISHED: the LSN is not published",
    c"PMEMHA_E_NO_DESTINATION: the group has no destination",
    c"PMEMHA_E_LIMIT: a limit is reached",
    c"PMEMHA_E_SYSTEM: the operating system refused",
    c"PMEMHA_E_INTERNAL: a defect of libpmemha",
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CStr;

    #[test]
    fn every_status_has_its_own_text() {
        let text = |n: c_int| {
            // SAFETY: the function returns static strings.
            unsafe { CStr::from_ptr(pmemha_strstatus(n)) }.to_str().unwrap()
        };
        for (number, name) in [
            (pmemha_rc::PMEMHA_OK as c_int, "PMEMHA_OK"),
            (pmemha_rc::PMEMHA_E_NO_AGENT as c_int, "PMEMHA_E_NO_AGENT"),
            (pmemha_rc::PMEMHA_E_UNPUBLISHED as c_int, "PMEMHA_E_UNPUBLISHED"),
            (pmemha_rc::PMEMHA_E_INTERNAL as c_int, "PMEMHA_E_INTERNAL"),
        ] {
            assert!(text(number).starts_with(&format!("{name}: ")), "{number}");
        }
        for number in [-1, 16, c_int::MAX, c_int::MIN] {
            assert!(text(number).starts_with("unknown status"));
        }
    }
}
