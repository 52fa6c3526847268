//! A file system that gets full: a small tmpfs, whose size can be changed while it is in use.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::statvfs;

/// What space is given out in.
pub const PAGE: u64 = 4096;

/// What takes the room that [`SmallDisk::fill`] leaves none of. A dot file, which nobody looks for.
const FILLER: &str = ".filler";

/// A file system mounted at a directory; unmounted on drop.
pub struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Mounts one of `bytes` over the directory `at`.
    pub fn mount(at: &Path, bytes: u64) -> SmallDisk {
        mount(&format!("size={bytes}"), at);
        SmallDisk(at.to_owned())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Gives it another size.
    pub fn resize(&self, bytes: u64) {
        mount(&format!("remount,size={bytes}"), &self.0);
    }

    /// Takes all the room that there is.
    pub fn fill(&self) {
        self.fill_but(0);
    }

    /// Takes all the room that there is but for so many pages.
    pub fn fill_but(&self, pages: u64) {
        let mut filler = File::options().append(true).create(true).open(self.filler()).expect("an own mount");
        while self.free() > pages {
            match filler.write_all(&[1; PAGE as usize]) {
                // Somebody else took the page.
                Err(error) if error.kind() == ErrorKind::StorageFull => {}
                written => written.expect("an own mount"),
            }
        }
    }

    /// Gives back what [`SmallDisk::fill`] took.
    pub fn make_room(&self) {
        fs::remove_file(self.filler()).expect("it was filled");
    }

    /// Free pages.
    pub fn free(&self) -> u64 {
        statvfs(&self.0).expect("an own mount").f_bavail
    }

    fn filler(&self) -> PathBuf {
        self.0.join(FILLER)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily, since whoever uses it may end later.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn mount(options: &str, at: &Path) {
    let mut command = Command::new("mount");
    let done = command.args(["-t", "tmpfs", "-o", options, "none"]).arg(at).status().expect("mount is there");
    assert!(done.success(), "{command:?}: tests that mount a tmpfs run as root");
}
