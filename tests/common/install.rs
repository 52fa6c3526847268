//! What `make install` installs, in a directory of the test's own: libraries, header, pkg-config file, C examples.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::dirs::repo;
use crate::programs::{preload, target};

/// `libpmemha.so` with the C API, built once a run.
pub fn library() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let status = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "-p", "pmemha", "--lib", "--bins"])
            .current_dir(repo())
            .stdin(Stdio::null())
            .status()
            .expect("cargo runs");
        assert!(status.success(), "libpmemha.so does not build");
        target().join("debug/libpmemha.so")
    })
}

/// An installed tree.
pub struct Installed {
    prefix: TempDir,
}

impl Installed {
    /// `make install PREFIX=…` of what cargo has built.
    pub fn new() -> Installed {
        let build = library().parent().expect("the library is in a folder");
        preload();
        let prefix = tempfile::tempdir().expect("a temporary directory");
        run(Command::new("make")
            .args(["-s", "-f", "mk/install.mk", "install"])
            .arg(format!("PREFIX={}", prefix.path().display()))
            .arg(format!("BUILD={}", build.display()))
            .current_dir(repo()));
        Installed { prefix }
    }

    /// Where it is.
    pub fn prefix(&self) -> &Path {
        self.prefix.path()
    }

    /// `LD_LIBRARY_PATH` for programs that link with it.
    pub fn lib(&self) -> PathBuf {
        self.prefix.path().join("lib")
    }

    /// Builds the installed examples with the installed headers, as a user would; returns the folder of the programs.
    pub fn build_examples(&self) -> PathBuf {
        let out = self.prefix.path().join("built");
        std::fs::create_dir(&out).expect("a folder in a directory of ours");
        run(Command::new("make")
            .arg("-s")
            .arg(format!("OUT={}", out.display()))
            .env("PKG_CONFIG_PATH", self.lib().join("pkgconfig"))
            .current_dir(self.prefix.path().join("share/doc/pmemha/examples")));
        out
    }
}

impl Default for Installed {
    fn default() -> Self {
        Installed::new()
    }
}

fn run(command: &mut Command) {
    let out = command.stdin(Stdio::null()).output().expect("make is installed by scripts/setup");
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{command:?}:\n{}{said}", String::from_utf8_lossy(&out.stdout));
}
