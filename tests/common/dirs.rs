//! Directories for tests.

use std::path::Path;

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

/// The repository's top folder.
pub fn repo() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .and_then(Path::parent)
        .expect("tests/common is two folders down")
}
