//! Images: the destination's copies of a group's regions, built by applying records in order.
//!
//! [`set::ImageSet`] is what callers use: the applier, the archive's base and its replay. It promises that after a
//! crash at any step, applying again from its [`position::Cursor`] gives the same bytes as if nothing had happened. The
//! order of operations that keeps the promise is in `docs/image-format.md`.

pub mod manifest;
mod one;
pub mod position;
mod record;
pub mod set;

use std::path::{Path, PathBuf};

use crate::remedy;
use crate::types::{Generation, Lsn};

/// Why an image could not be opened or a record not be applied.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The system refused; may be tried again once it is mended (disk full, permissions).
    #[error("cannot {what} {}: {source}{}", path.display(), remedy::of(source))]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A file of ours does not say what it should.
    #[error("{} is damaged ({what}): this copy cannot be trusted; move the directory aside and let it sync again", path.display())]
    Damaged {
        /// Which.
        path: PathBuf,
        /// In what way.
        what: String,
    },
    /// An image that was here is not.
    #[error(
        "{} is gone, though the copy was in it: mount or restore it, and it goes on; to give it up, empty the \
         directory that it was in, and it syncs again", path.display()
    )]
    Missing {
        /// The image's directory.
        path: PathBuf,
    },
    /// Belongs to another group.
    #[error("{} holds the copy of another group: give this group a directory of its own", path.display())]
    Foreign {
        /// The directory or file.
        path: PathBuf,
    },
    /// A record does not follow on what was applied.
    #[error(
        "record {got} of generation {generation} does not follow on {want} of generation {want_generation}"
    )]
    OutOfOrder {
        /// Where it stands.
        got: Lsn,
        /// Its generation.
        generation: Generation,
        /// What would follow.
        want: Lsn,
        /// Of which generation.
        want_generation: Generation,
    },
    /// A record with a valid checksum and impossible content: a fault of the source. Only a new sync helps.
    #[error("record {lsn} is impossible ({what}): the source is faulty; this copy needs a new sync")]
    Impossible {
        /// The record.
        lsn: Lsn,
        /// What is wrong with it.
        what: &'static str,
    },
}

impl ImageError {
    pub(crate) fn io(what: &'static str, path: &Path, source: std::io::Error) -> ImageError {
        ImageError::Io { what, path: path.to_owned(), source }
    }

    /// Whether trying again can help.
    pub fn is_temporary(&self) -> bool {
        matches!(self, ImageError::Io { .. } | ImageError::Missing { .. })
    }
}
