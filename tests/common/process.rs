//! Processes of this machine, found by what the kernel tells of them.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::process::{Pid, Signal, kill_process};

/// A process, by its directory in procfs. What is asked of one that has ended is nothing.
pub struct Process {
    pid: Pid,
    dir: PathBuf,
}

/// The process with this number.
pub fn of(pid: u32) -> Process {
    let raw = Pid::from_raw(pid as i32).expect("a process's number");
    Process { pid: raw, dir: PathBuf::from(format!("/proc/{pid}")) }
}

/// All that there are.
pub fn all() -> impl Iterator<Item = Process> {
    let entries = fs::read_dir("/proc").expect("procfs").flatten();
    entries.filter_map(|entry| {
        let pid = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?;
        Some(Process { pid, dir: entry.path() })
    })
}

/// Those that were told to use `file`, and are no zombies.
pub fn users(file: &Path) -> Vec<Process> {
    all().filter(|process| process.arguments().iter().any(|a| a == file)).collect()
}

impl Process {
    /// Its number.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get() as u32
    }

    /// The program that it runs.
    pub fn program(&self) -> Option<PathBuf> {
        fs::read_link(self.dir.join("exe")).ok()
    }

    /// Its program's arguments; none of a zombie.
    pub fn arguments(&self) -> Vec<OsString> {
        self.strings("cmdline")
    }

    /// Whether its program was started with this variable.
    pub fn has_variable(&self, name: &str, value: &Path) -> bool {
        let wanted = [name.as_bytes(), b"=", value.as_os_str().as_bytes()].concat();
        self.strings("environ").iter().any(|variable| variable.as_bytes() == wanted)
    }

    /// Whether it has `file` mapped with `MAP_SYNC`, which the kernel grants for DAX alone: `sf` among a mapping's flags.
    pub fn maps_synchronously(&self, file: &Path) -> bool {
        let text = fs::read_to_string(self.dir.join("smaps")).unwrap_or_default();
        let mut here = false;
        text.lines().any(|line| match line.split_once(':') {
            Some(("VmFlags", flags)) => here && flags.split(' ').any(|flag| flag == "sf"),
            // What else is told of a mapping is a word and a colon; its first line has a range of addresses.
            Some((word, _)) if !word.contains('-') => false,
            _ => {
                here = line.splitn(6, ' ').nth(5).is_some_and(|name| Path::new(name.trim_start()) == file);
                false
            }
        })
    }

    /// Kills it as `kill -9` does.
    pub fn kill(&self) {
        // It may have ended since.
        let _ = kill_process(self.pid, Signal::KILL);
    }

    fn strings(&self, file: &str) -> Vec<OsString> {
        let bytes = fs::read(self.dir.join(file)).unwrap_or_default();
        bytes.split(|b| *b == 0).map(|s| OsString::from_vec(s.to_vec())).collect()
    }
}
