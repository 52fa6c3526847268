//! Which parts of a file a copy has to bring.

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use crate::types::PAGE;

/// The next stretch of data at or after `at` and below `len`. A file system that knows no holes has one stretch.
pub(super) fn extent(file: &OwnedFd, at: u64, len: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= len {
        return Ok(None);
    }
    let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(start) => start & !(PAGE as u64 - 1),
        Err(Errno::NXIO) => return Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::SPIPE) => return Ok(Some((at, len))),
        Err(error) => return Err(error.into()),
    };
    if start >= len {
        return Ok(None);
    }
    let start = start.max(at);
    let end = rustix::fs::seek(file, SeekFrom::Hole(start)).map_or(len, |end| end.min(len));
    Ok(Some((start, end.max(start + 1).next_multiple_of(PAGE as u64).min(len))))
}

/// First and length of each run of `true`.
pub(super) fn runs(flags: impl Iterator<Item = bool>) -> Vec<(usize, usize)> {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for (i, flag) in flags.enumerate() {
        match runs.last_mut() {
            Some((first, count)) if flag && *first + *count == i => *count += 1,
            _ if flag => runs.push((i, 1)),
            _ => {}
        }
    }
    runs
}
