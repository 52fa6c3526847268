//! Directories for tests.

use std::env;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// Where tests keep "persistent memory": DRAM, which a battery would back on a real machine.
pub const MEMORY: &str = "/dev/shm";

/// A directory in memory, removed on drop.
pub fn in_memory() -> TempDir {
    tempfile::Builder::new()
        .prefix("pmemha-")
        .tempdir_in(MEMORY)
        .unwrap_or_else(|e| panic!("cannot make a directory in {MEMORY}: {e}"))
}

/// Names the directory in which nodes keep their files, in place of [`MEMORY`]: on a file system that is mounted with DAX.
pub const PMEM: &str = "PMEMHA_TEST_PMEM";

/// Whether nodes keep their files on DAX.
pub fn on_dax() -> bool {
    env::var_os(PMEM).is_some()
}

/// A directory for a node, removed on drop: where [`PMEM`] says, else in memory.
pub fn for_a_node() -> TempDir {
    let under = env::var_os(PMEM).map_or_else(|| MEMORY.into(), PathBuf::from);
    tempfile::Builder::new()
        .prefix("pmemha-")
        .tempdir_in(&under)
        .unwrap_or_else(|e| panic!("cannot make a directory in {}: {e}", under.display()))
}

/// The repository's top folder.
pub fn repo() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .and_then(Path::parent)
        .expect("tests/common is two folders down")
}
