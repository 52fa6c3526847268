//! A folder that is gone when its owner is, however that ended: killed processes drop nothing.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::error::{Doing, RigError};

/// A folder for the files and sockets of one machine. Its path is short: a socket's may have 107 bytes.
pub struct RunDir {
    path: PathBuf,
    /// Reads until the other end of its stdin, which this process alone has, is closed; then removes the folder.
    remover: Child,
}

impl RunDir {
    /// Makes one in the folder for temporary files.
    pub fn new() -> Result<RunDir, RigError> {
        let dir = tempfile::Builder::new().prefix(PREFIX).tempdir();
        let dir = dir.doing(|| "making a folder for temporary files".into())?;
        let remover = Command::new("sh")
            .args(["-c", "read -r _; rm -rf -- \"$1\"", "sh"])
            .arg(dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A Ctrl-C for us is none for it.
            .process_group(0)
            .spawn()
            .doing(|| "starting sh".into())?;
        Ok(RunDir { path: dir.keep(), remover })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        drop(self.remover.stdin.take());
        // What is left if it fails is what a caller cannot change either.
        let _ = self.remover.wait();
    }
}

const PREFIX: &str = "pmemha-rig-";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_folder_and_all_in_it_are_gone_when_it_is_dropped() {
        let dir = RunDir::new().unwrap();
        let path = dir.path().to_owned();
        std::fs::write(path.join("file"), "content").unwrap();
        drop(dir);
        assert!(!path.exists());
    }
}
