//! An application's control group: version 2 (`cgroup.freeze`) where it is mounted, else the freezer of version 1.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{SuperviseError, signals};
use crate::{mounts, threads};

/// Directory below the hierarchy's root that holds the groups of all applications.
const PARENT: &str = "pmemha";

/// How often the version 1 freezer, which has no events, is asked.
const V1_POLL: Duration = Duration::from_micros(500);

/// A mounted hierarchy that can freeze.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hierarchy {
    /// cgroup2, at this directory.
    V2(PathBuf),
    /// The freezer controller of cgroup, at this directory.
    V1(PathBuf),
}

/// The usable hierarchies among the mounts of `mountinfo` (see [`mounts::read`]), best first.
pub fn hierarchies(mountinfo: &str) -> Vec<Hierarchy> {
    let mut found = Vec::new();
    for mount in mounts::parse(mountinfo) {
        match mount.kind {
            "cgroup2" => found.push((0, Hierarchy::V2(mount.point))),
            "cgroup" if mount.root == "/" && mount.has_option("freezer") => {
                found.push((1, Hierarchy::V1(mount.point)))
            }
            _ => {}
        }
    }
    found.sort_by_key(|(rank, _)| *rank);
    found.into_iter().map(|(_, hierarchy)| hierarchy).collect()
}

/// One application's group; whoever created it removes the directory when it is empty by then.
#[derive(Debug)]
pub(super) struct Cgroup {
    dir: PathBuf,
    v2: bool,
    created: bool,
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if self.created {
            // Refused while processes are inside, which is right: the next agent finds them there.
            _ = fs::remove_dir(&self.dir);
        }
    }
}

impl Cgroup {
    pub fn create(hierarchy: &Hierarchy, name: &str) -> Result<Self, SuperviseError> {
        let (root, v2) = match hierarchy {
            Hierarchy::V2(root) => (root, true),
            Hierarchy::V1(root) => (root, false),
        };
        let dir = root.join(PARENT).join(name);
        fs::create_dir_all(&dir)
            .map_err(|e| SuperviseError::system(format!("creating control group {}", dir.display()), e))?;
        Ok(Self { dir, v2, created: true })
    }

    /// The group that a watchdog was told of.
    pub fn existing(dir: &Path, v2: bool) -> Self {
        Self { dir: dir.into(), v2, created: false }
    }

    pub fn kind(&self) -> &'static str {
        if self.v2 { "cgroup2" } else { "cgroup1" }
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn procs_file(&self) -> PathBuf {
        self.dir.join("cgroup.procs")
    }

    pub fn add(&self, pid: u32) -> Result<(), SuperviseError> {
        self.write("cgroup.procs", &pid.to_string())
    }

    pub fn members(&self) -> Result<Vec<u32>, SuperviseError> {
        let text = self.read("cgroup.procs")?;
        Ok(text.lines().filter_map(|l| l.parse().ok()).filter(|&pid| threads::any_lives(pid)).collect())
    }

    /// Freezes; false when it is not complete by the deadline.
    pub fn freeze(&self, deadline: Instant) -> Result<bool, SuperviseError> {
        if !self.v2 {
            self.write("freezer.state", "FROZEN")?;
            while !self.is_frozen()? {
                if Instant::now() >= deadline {
                    return Ok(false);
                }
                std::thread::sleep(V1_POLL);
            }
            return Ok(true);
        }
        let path = self.dir.join("cgroup.events");
        let failed = |e: io::Error| SuperviseError::system(format!("watching {}", path.display()), e);
        let events = File::open(&path).map_err(failed)?;
        self.write("cgroup.freeze", "1")?;
        while !self.is_frozen()? {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            poll(&mut [PollFd::from_borrowed_fd(events.as_fd(), PollFlags::PRI)], Some(&timeout))
                .map_err(|e| failed(e.into()))?;
        }
        Ok(true)
    }

    pub fn thaw(&self) -> Result<(), SuperviseError> {
        if self.v2 { self.write("cgroup.freeze", "0") } else { self.write("freezer.state", "THAWED") }
    }

    pub fn is_frozen(&self) -> Result<bool, SuperviseError> {
        Ok(if self.v2 {
            self.read("cgroup.events")?.lines().any(|l| l == "frozen 1")
        } else {
            self.read("freezer.state")?.trim() == "FROZEN"
        })
    }

    /// Kills everything inside. A frozen process of version 1 takes the signal when it is thawed, before it
    /// executes anything.
    pub fn kill(&self) -> Result<(), SuperviseError> {
        if self.v2 && self.dir.join("cgroup.kill").exists() {
            self.write("cgroup.kill", "1")?;
        }
        // Where there is no such file, and of a process whose first thread has exited also where there is one: the kernel then
        // signals that thread alone.
        for pid in self.members()? {
            signals::send(pid, rustix::process::Signal::KILL)?;
        }
        self.thaw()
    }

    fn read(&self, file: &str) -> Result<String, SuperviseError> {
        let path = self.dir.join(file);
        fs::read_to_string(&path)
            .map_err(|e| SuperviseError::system(format!("reading {}", path.display()), e))
    }

    fn write(&self, file: &str, text: &str) -> Result<(), SuperviseError> {
        let path = self.dir.join(file);
        fs::write(&path, text)
            .map_err(|e| SuperviseError::system(format!("writing {text} to {}", path.display()), e))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_found_by_the_mount_table_best_first() {
        let mounts = "37 31 0:34 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n\
                      39 31 0:36 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
                      41 31 0:38 / /sys/fs/cg\\040two rw shared:1 - cgroup2 none rw,nsdelegate\n";
        assert_eq!(
            hierarchies(mounts),
            [Hierarchy::V2("/sys/fs/cg two".into()), Hierarchy::V1("/sys/fs/cgroup/freezer".into())]
        );
        assert!(hierarchies("nonsense\n1 2 - cgroup2").is_empty());
    }
}
