//! The threads of a process: its first one may have exited, and the process shows as a zombie without memory while the others run.

use std::fs;

use crate::log::stat_field;

/// Numbers of the threads of process `pid`, the first one's among them also when that has exited; none if there is no such process.
pub fn of(pid: u32) -> Vec<u32> {
    let entries = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Whether the process exists and any of its threads has not exited.
pub fn any_lives(pid: u32) -> bool {
    any(pid, |state| !matches!(state, 'Z' | 'X'))
}

/// Whether any of its threads may execute: is neither stopped nor has exited.
pub fn any_runs(pid: u32) -> bool {
    any(pid, |state| !matches!(state, 'T' | 't' | 'Z' | 'X'))
}

fn any(pid: u32, is: impl Fn(char) -> bool) -> bool {
    // A thread that is gone by now is in no state.
    of(pid).into_iter().filter_map(|thread| stat_field(thread, 3)).any(is)
}
