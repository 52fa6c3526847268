//! Page-out of exactly the pages of a process that were not used, and what came of it.
//!
//! The kernel's answer says how much it went over, not how much it moved: it reports success for memory that is pinned and stays where it
//! is. So the effect is what the process has less than before.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::Serialize;

use crate::node::kernel::advice::{Hint, MOST_RANGES, advise};
use crate::node::kernel::tables::PageTables;
use crate::node::largepage::mappings;

/// What a page-out was asked for and what it did, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Effect {
    /// Asked for, of pages that were chosen.
    pub asked: u64,
    /// Less that the process has of the host's memory.
    pub moved: u64,
}

impl Effect {
    /// Whether it did next to nothing: then these pages are pinned or the swap is full, and trying again is of no use.
    pub fn is_in_vain(&self) -> bool {
        self.moved < self.asked / 10
    }
}

/// Writes out up to `bytes` of pages of process `pid`'s anonymous and shared memory whose access bits are not set. They were cleared an
/// interval ago. What lies in `registered` is left alone.
pub fn page_out(
    tables: &mut PageTables,
    pid: u32,
    bytes: u64,
    registered: &[(u64, u64)],
) -> io::Result<Effect> {
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw);
    let process = pidfd_open(number.ok_or(io::ErrorKind::NotFound)?, PidfdFlags::empty())?;
    let proc = Path::new("/proc");
    let before = mappings::of(proc, pid)?;
    let resident = |all: &[mappings::Mapping]| all.iter().map(|m| m.resident).sum::<u64>();
    let starts: Vec<u64> = before
        .iter()
        .filter(|m| m.is_ordinary && (!m.is_file || is_memory(&m.path)))
        .flat_map(|m| m.ranges().map(|range| range.start()))
        .collect();
    let mut chosen: Vec<(u64, usize)> = Vec::new();
    let mut asked = 0;
    tables.unused(pid, &starts, |from, to| {
        let clear = |(a, b): &(u64, u64)| to <= *a || *b <= from;
        if asked < bytes && registered.iter().all(clear) {
            let len = (to - from).min((bytes - asked).next_multiple_of(4096));
            chosen.push((from, len as usize));
            asked += len;
        }
    })?;
    for ranges in chosen.chunks(MOST_RANGES) {
        advise(process.as_fd(), ranges, Hint::PageOut)?;
    }
    let after = mappings::of(proc, pid)?;
    Ok(Effect { asked, moved: resident(&before).saturating_sub(resident(&after)) })
}

/// Whether a mapped file is memory, and goes to swap.
fn is_memory(path: &str) -> bool {
    ["/dev/shm/", "/memfd:", "/SYSV", "/dev/zero"].iter().any(|at| path.starts_with(at))
}
