//! The C ABI of `libpmemha.so`: `include/pmemha.h` is generated from this room.
//!
//! It translates and checks; what happens is decided in `session`, `log` and `region`. It promises C callers that no
//! call crashes on NULL, on arguments out of range, or on a handle that was closed; that no panic crosses
//! the border; that every failure has a status and a message; and that a forked child may go on using what it inherited.
//!
//! Handles are numbers, never addresses, so that a stale one can be told from a live one (`handles`). The header's text is
//! the documentation of the functions, so it is written for C programmers.

#![allow(non_camel_case_types)] // Names as C has them.

mod guard;
mod handles;
mod order;
mod region;
mod session;
mod status;

use std::ffi::c_uint;

use guard::{Failure, guard};
pub use order::*;
pub use region::*;
pub use session::*;
pub use status::*;

/// The header as generated from this build; `include/pmemha.h` must equal it.
pub const HEADER: &str = include_str!(concat!(env!("OUT_DIR"), "/pmemha.h"));

/// Version of this header. Within one major version programs keep working, compiled or not.
pub const PMEMHA_MAJOR_VERSION: c_uint = 0;
/// Raised when something is added.
pub const PMEMHA_MINOR_VERSION: c_uint = 1;

/// Checks that the library found at run time fits the header compiled with.
///
/// Call as `pmemha_check_version(PMEMHA_MAJOR_VERSION, PMEMHA_MINOR_VERSION)`. Returns #PMEMHA_OK, or
/// #PMEMHA_E_VERSION when the library is of another major version or older than the header. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn pmemha_check_version(major: c_uint, minor: c_uint) -> pmemha_rc {
    guard(|| {
        if major == PMEMHA_MAJOR_VERSION && minor <= PMEMHA_MINOR_VERSION {
            return Ok(());
        }
        Err(Failure::new(
            pmemha_rc::PMEMHA_E_VERSION,
            format!(
                "the program was built for version {major}.{minor}, libpmemha.so is \
                 {PMEMHA_MAJOR_VERSION}.{PMEMHA_MINOR_VERSION}: install the library that fits"
            ),
        ))
    })
}
