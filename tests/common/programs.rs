//! C programs of `tests/programs`, compiled once a run; the preload library, built once a run.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::dirs::repo;

/// The workload program, see `tests/programs/workload.h`.
pub fn workload() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let sources = ["workload.c", "workload_obj.c", "workload_raw.c"];
        compile("workload", &sources, &["-lpmemobj", "-lpmem", "-lpmem2", "-lpthread"])
    })
}

/// Describes a pool of two parts in `dir` to libpmemobj. Its transactions' logs fill the first one, the objects lie in the second.
pub fn write_poolset(set: &Path, dir: &Path) -> [PathBuf; 2] {
    let parts = ["one", "two"].map(|name| dir.join(name));
    let text = format!("PMEMPOOLSET\n2M {}\n14M {}\n", parts[0].display(), parts[1].display());
    std::fs::write(set, text).expect("the set's directory is writable");
    parts
}

/// Compiles sources of `tests/programs` into the target folder with every warning an error.
pub fn compile(name: &str, sources: &[&str], libs: &[&str]) -> PathBuf {
    let from = repo().join("tests/programs");
    let out_dir = target().join("test-programs");
    std::fs::create_dir_all(&out_dir).expect("target folder is writable");
    // Two test binaries may run at once: compile aside, then rename.
    let (out, aside) = (out_dir.join(name), out_dir.join(format!("{name}.{}", std::process::id())));
    let status = Command::new("cc")
        .args(["-std=gnu11", "-O2", "-g", "-Wall", "-Wextra", "-Werror", "-o"])
        .arg(&aside)
        .args(sources.iter().map(|s| from.join(s)))
        .args(libs)
        .status()
        .expect("cc is installed by scripts/setup");
    assert!(status.success(), "{name} does not compile");
    std::fs::rename(&aside, &out).expect("rename within one folder");
    out
}

/// Names the preload library, for a machine that has nothing to build it with.
const PRELOAD: &str = "PMEMHA_PRELOAD";

/// `libpmemha_preload.so`: where `PMEMHA_PRELOAD` says, else built by a cargo command of its own so that features stay apart.
pub fn preload() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        if let Some(built) = std::env::var_os(PRELOAD) {
            return built.into();
        }
        let status = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "-p", "pmemha-preload"])
            .current_dir(repo())
            .stdin(Stdio::null())
            .status()
            .expect("cargo runs");
        assert!(status.success(), "the preload library does not build");
        target().join("debug/libpmemha_preload.so")
    })
}

/// Cargo's target folder.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repo().join("target"), PathBuf::from)
}
