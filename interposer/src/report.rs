//! What the library tells a person: single lines on stderr, written by one system call.
//!
//! `PMEMHA_LOG_LEVEL` = `off`, `error`, `warn` (default), `info`; `PMEMHA_LOG_FILE` names a file to append to instead.

use std::ffi::{CStr, OsStr, c_int};
use std::fmt;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::OnceLock;

use pmemha::session::client::variable;

/// How much a line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Data are not replicated that should be.
    Error,
    /// The program runs unprotected, or something is done with less than full care.
    Warn,
    /// Good to know.
    Info,
}

struct Settings {
    level: Option<Level>,
    file: Option<PathBuf>,
}

fn settings() -> &'static Settings {
    static SETTINGS: OnceLock<Settings> = OnceLock::new();
    SETTINGS.get_or_init(|| Settings {
        level: match variable("PMEMHA_LOG_LEVEL").as_deref().and_then(OsStr::to_str) {
            Some("off") => None,
            Some("error") => Some(Level::Error),
            Some("info") => Some(Level::Info),
            _ => Some(Level::Warn),
        },
        file: variable("PMEMHA_LOG_FILE").map(PathBuf::from),
    })
}

/// Writes one line, unless the settings silence it. Allocates: not for the flush path.
pub fn say(level: Level, what: fmt::Arguments<'_>) {
    let settings = settings();
    if settings.level.is_none_or(|most| level > most) {
        return;
    }
    let line = format!("pmemha[{}]: {what}\n", std::process::id());
    use rustix::fs::{Mode, OFlags};
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::CREATE | OFlags::CLOEXEC;
    // Raw system calls of rustix: they do not pass through the hooks. A line that cannot be written is
    // dropped, since there is nowhere left to say so.
    let _ = match settings.file.as_deref().map(|f| rustix::fs::open(f, flags, Mode::from_raw_mode(0o644))) {
        Some(Ok(file)) => rustix::io::write(file.as_fd(), line.as_bytes()),
        _ => rustix::io::write(rustix::stdio::stderr(), line.as_bytes()),
    };
}

/// Says `what` and fails the program's call with `errno`: a change that no record can say is not made at all.
pub fn refuse(errno: c_int, what: fmt::Arguments<'_>) -> c_int {
    say(Level::Error, format_args!("{what}: refused"));
    // SAFETY: the thread's errno is always there.
    unsafe { *libc::__errno_location() = errno };
    -1
}

/// A function that was called does not exist anywhere: as the dynamic linker would, this ends the program.
pub fn fatal(name: &CStr) -> ! {
    say(Level::Error, format_args!("{} is called, but no loaded library has it", name.to_string_lossy()));
    // SAFETY: abort takes nothing and never returns.
    unsafe { libc::abort() }
}

/// `error!("…")`, `warn!("…")`, `info!("…")`.
macro_rules! error { ($($t:tt)*) => { $crate::report::say($crate::report::Level::Error, format_args!($($t)*)) } }
macro_rules! warn_ { ($($t:tt)*) => { $crate::report::say($crate::report::Level::Warn, format_args!($($t)*)) } }
macro_rules! info { ($($t:tt)*) => { $crate::report::say($crate::report::Level::Info, format_args!($($t)*)) } }
pub(crate) use {error, info, warn_ as warn};
