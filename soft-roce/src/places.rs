//! Where the rig finds what it is made of: the guest's kernel, the guest's scripts, the guest's program.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Doing, RigError};

/// The guest's kernel as `soft-roce/setup` unpacked it.
pub struct Kernel {
    /// The bootable file.
    pub image: PathBuf,
    /// The folder that becomes `/lib/modules` of a machine.
    pub modules: PathBuf,
    /// `uname -r` of a machine: the name of a folder in `modules`.
    pub version: String,
}

impl Kernel {
    /// Finds it.
    pub fn find() -> Result<Kernel, RigError> {
        let root = work().join("kernel");
        let modules = root.join("lib/modules");
        let version = fs::read_dir(&modules)
            .ok()
            .and_then(|mut dir| dir.next()?.ok()?.file_name().into_string().ok())
            .ok_or_else(|| RigError::Missing(format!("the guest's kernel in {}", root.display())))?;
        Ok(Kernel { image: root.join("boot").join(format!("vmlinuz-{version}")), modules, version })
    }
}

/// The folder `soft-roce` of the source tree, which a machine sees at the same place.
pub fn sources() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Where kernel logs are kept; created if need be.
pub fn logs() -> Result<PathBuf, RigError> {
    let dir = work().join("logs");
    fs::create_dir_all(&dir).doing(|| format!("creating {}", dir.display()))?;
    Ok(dir)
}

/// The program that runs commands in a machine: beside the running one, or in a folder above it, where cargo puts the
/// tests' programs.
pub fn guest_program() -> Result<PathBuf, RigError> {
    let here = std::env::current_exe().doing(|| "finding the running program".into())?;
    let beside = |dir: &Path| dir.join(GUEST_PROGRAM);
    let found = here.ancestors().skip(1).take(2).map(beside).find(|file| file.is_file());
    found.ok_or_else(|| RigError::NotBuilt(here.with_file_name(GUEST_PROGRAM)))
}

/// A program of the host.
pub fn program(name: &str) -> Result<PathBuf, RigError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/sbin", "/sbin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path)
        .chain(sbin)
        .map(|dir| dir.join(name))
        .find(|file| file.is_file())
        .ok_or_else(|| RigError::Missing(name.to_owned()))
}

/// The workspace's target folder, whatever cargo's own is: what lies here is not built by cargo.
fn work() -> PathBuf {
    sources().with_file_name("target").join("soft-roce")
}

const GUEST_PROGRAM: &str = "pmemha-rig-guest";
