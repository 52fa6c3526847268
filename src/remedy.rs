//! What a person does about a refusal of the system: the end of every message on a file or directory of ours.

use std::io::{Error, ErrorKind};

/// The remedy, to be put behind the system's words; empty where these say all that is known.
pub(crate) fn of(error: &Error) -> &'static str {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "; make room there",
        ErrorKind::PermissionDenied => "; give it to the user that this program runs as",
        ErrorKind::ReadOnlyFilesystem => "; mount it so that it can be written, or name another directory",
        _ => "",
    }
}
