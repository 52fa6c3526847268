//! What a machine's packages and groups do: read from files below roots that a test can own.
//!
//! | module | what it is for |
//! | --- | --- |
//! | [`topology`] | which processors and memory nodes make up each package |
//! | [`load`] | processors in use, by package |
//! | [`residency`] | time in package states: perf's counters, model specific registers, or the trace of idle processors |
//! | [`idle_trace`] | time in which all processors of a package idle, from the kernel's trace |
//! | [`energy`] | joules, by package |
//! | [`group`] | load, pressure and limits of a group of threads |

pub mod energy;
pub mod group;
pub mod idle_trace;
pub mod load;
pub mod residency;
pub mod topology;

use std::path::{Path, PathBuf};

/// Where the files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Roots {
    /// `/sys`
    pub sys: PathBuf,
    /// `/proc`
    pub proc: PathBuf,
    /// `/dev`
    pub dev: PathBuf,
}

impl Default for Roots {
    fn default() -> Roots {
        Roots { sys: "/sys".into(), proc: "/proc".into(), dev: "/dev".into() }
    }
}

impl Roots {
    /// All three below `root`.
    pub fn below(root: &Path) -> Roots {
        Roots { sys: root.join("sys"), proc: root.join("proc"), dev: root.join("dev") }
    }
}

/// The number that a file holds; none if it holds anything else, or cannot be read.
pub(crate) fn number<T: std::str::FromStr>(path: &Path) -> Option<T> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}
