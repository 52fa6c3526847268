//! Which processes have a log mapped, by the kernel's word: nobody else can write to it.
//!
//! The log's own cells are the application's to write, so a pid in them proves nothing. `agent::group` asks here before anything
//! is done to a process.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Timespec, fstat, major, minor};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::mappings::{Mapped, stores_to};
use crate::threads;

/// A log's file as mappings show it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogFile(Mapped);

impl LogFile {
    /// That of an open log.
    pub fn of(log: BorrowedFd<'_>) -> io::Result<LogFile> {
        let stat = fstat(log)?;
        Ok(LogFile((major(stat.st_dev), minor(stat.st_dev), stat.st_ino)))
    }

    /// The user that process `pid` runs as, if it has the log mapped so that what it stores there is seen by others. May wait
    /// for ever: see `log::patient`.
    pub fn stored_to_by(&self, pid: u32) -> Option<u32> {
        let stores = || of_a_thread(pid, |thread| stores_to(&directory(thread), self.0)) == Some(true);
        // Of nearly everybody that is all there is to ask.
        let process = stores().then(|| Pid::from_raw(pid as i32)).flatten()?;
        let process = pidfd_open(process, PidfdFlags::empty()).ok()?;
        let user = user_of(pid)?;
        // The descriptor holds on to whatever process had the number first. If that lives, all of this was said of it.
        (stores() && lives(process.as_fd())).then_some(user)
    }
}

/// Whether the process of a pidfd has not ended.
pub fn lives(pidfd: BorrowedFd<'_>) -> bool {
    // Readable once every thread has exited, reaped or not.
    let mut fds = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
    matches!(poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(0))
}

/// The processes that can be seen from here.
pub fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// The effective user of process `pid`.
pub fn user_of(pid: u32) -> Option<u32> {
    fs::metadata(directory(pid)).ok().map(|meta| meta.uid())
}

/// What process `pid` has mapped, a line a mapping, and which of its threads shows it. May wait for ever: see `log::patient`.
pub(super) fn maps_of(pid: u32) -> Option<(u32, String)> {
    of_a_thread(pid, |thread| {
        // One that ends meanwhile writes no more; one that may not be looked at belongs to somebody else.
        let maps = fs::read(directory(thread).join("maps")).ok().filter(|maps| !maps.is_empty())?;
        // Names of files may be anything.
        Some((thread, String::from_utf8_lossy(&maps).into_owned()))
    })
}

/// What the first thread of process `pid` shows that shows anything. One that has exited does not.
fn of_a_thread<T>(pid: u32, shown: impl Fn(u32) -> Option<T>) -> Option<T> {
    let others = || threads::of(pid).into_iter().filter(|thread| *thread != pid).find_map(&shown);
    shown(pid).or_else(others)
}

pub(super) fn directory(pid: u32) -> PathBuf {
    Path::new("/proc").join(pid.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{LogRegion, LogSpec};
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    #[test]
    fn who_has_a_log_mapped_is_known_by_the_file_and_not_by_its_name() {
        let (fd, log) = LogRegion::create(&LogSpec::default()).unwrap();
        let (other, _other_log) = LogRegion::create(&LogSpec::default()).unwrap();
        let file = LogFile::of(fd.as_fd()).unwrap();
        let me = std::process::id();
        let user = Some(rustix::process::geteuid().as_raw());
        assert_eq!(file.stored_to_by(me), user);
        assert!(processes().any(|pid| pid == me));
        drop(log);
        assert_eq!(file.stored_to_by(me), None, "a log of the same name is mapped");
        assert_eq!(LogFile::of(other.as_fd()).unwrap().stored_to_by(me), user);
    }

    #[test]
    fn a_process_whose_first_thread_has_exited_has_the_log_mapped_as_long_as_another_lives() {
        let (fd, _log) = LogRegion::create(&LogSpec::default()).unwrap();
        let file = LogFile::of(fd.as_fd()).unwrap();
        // System call 60 ends the thread that makes it.
        let script = "import ctypes, mmap, threading, time\nm = mmap.mmap(0, 0)\n\
                      threading.Thread(target=time.sleep, args=[1000]).start()\nctypes.CDLL(None).syscall(60, 0)";
        let mut child = Command::new("python3").args(["-c", script]).stdin(fd).spawn().unwrap();
        let end = Instant::now() + Duration::from_secs(20);
        while crate::log::stat_field(child.id(), 3) != Some('Z') && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(fs::read(directory(child.id()).join("maps")).unwrap(), b"", "what the first thread shows");
        assert_eq!(file.stored_to_by(child.id()), user_of(child.id()));
        assert!(threads::any_lives(child.id()) && threads::any_runs(child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!threads::any_lives(child.id()));
    }

    #[test]
    fn a_process_that_has_ended_maps_nothing() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
        assert!(lives(pidfd.as_fd()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!lives(pidfd.as_fd()));
        let (fd, _log) = LogRegion::create(&LogSpec::default()).unwrap();
        assert_eq!(LogFile::of(fd.as_fd()).unwrap().stored_to_by(child.id()), None);
    }
}
