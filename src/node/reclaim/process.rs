//! A process as a tenant: the very one that was named, also when its number is given to another one, and whether it runs a
//! machine whose use of memory its page tables do not tell.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// See the module.
pub struct Process {
    pid: u32,
    handle: OwnedFd,
    proc: PathBuf,
}

impl Process {
    /// The process that has number `pid` now.
    pub fn open(pid: u32) -> io::Result<Process> {
        let number = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or_else(|| gone(pid))?;
        let handle = pidfd_open(number, PidfdFlags::empty()).map_err(|e| match e {
            rustix::io::Errno::SRCH => gone(pid),
            other => other.into(),
        })?;
        Ok(Process { pid, handle, proc: "/proc".into() })
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// For advice on it.
    pub fn handle(&self) -> BorrowedFd<'_> {
        self.handle.as_fd()
    }

    /// Clears its access bits: what is used from here on has its bit set.
    pub fn begin_interval(&self) -> io::Result<()> {
        // Of another process that has the number by now, bits are cleared in vain, and nothing else is done to it.
        fs::write(self.proc.join(format!("{}/clear_refs", self.pid)), "1")?;
        self.still()
    }

    /// An error once it has ended. As long as it has not, all that was read by its number was of it.
    pub fn still(&self) -> io::Result<()> {
        let mut fds = [PollFd::new(&self.handle, PollFlags::IN)];
        match poll(&mut fds, Some(&Timespec::default()))? {
            0 => Ok(()),
            _ => Err(gone(self.pid)),
        }
    }

    /// Whether it runs a virtual machine with hardware assist (KVM). The guest's accesses set bits in the hypervisor's nested
    /// tables, which Linux shows to nobody: what this process's own tables call unused may be in use all the time.
    pub fn runs_kvm(&self) -> io::Result<bool> {
        has_kvm(&self.proc.join(format!("{}/fd", self.pid)))
    }
}

/// Whether a directory of descriptors has one of a virtual machine.
fn has_kvm(fds: &Path) -> io::Result<bool> {
    for entry in fs::read_dir(fds)? {
        // One that was closed meanwhile is none.
        if fs::read_link(entry?.path()).is_ok_and(|to| to == Path::new("anon_inode:kvm-vm")) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn gone(pid: u32) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("process {pid} has ended"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn a_process_that_has_ended_is_said_so_whoever_has_its_number() {
        let mut child =
            std::process::Command::new("cat").stdin(std::process::Stdio::piped()).spawn().unwrap();
        let process = Process::open(child.id()).unwrap();
        process.begin_interval().unwrap();
        assert!(!process.runs_kvm().unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        assert_eq!(process.still().unwrap_err().kind(), io::ErrorKind::NotFound);
        assert!(process.begin_interval().is_err());
        assert_eq!(Process::open(child.id()).err().unwrap().kind(), io::ErrorKind::NotFound);
        // The number's new owner has files, too; what is asked of it is an error all the same.
        let proc = tempfile::tempdir().unwrap();
        fs::create_dir(proc.path().join(child.id().to_string())).unwrap();
        let reused = Process { proc: proc.path().into(), ..process };
        assert_eq!(reused.begin_interval().unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    impl Process {
        /// Process `pid` as one that runs a machine with KVM; the directory stands for what procfs says of that.
        pub fn with_kvm(pid: u32) -> (Process, tempfile::TempDir) {
            let proc = tempfile::tempdir().unwrap();
            let fds = proc.path().join(pid.to_string()).join("fd");
            fs::create_dir_all(&fds).unwrap();
            symlink("anon_inode:kvm-vm", fds.join("9")).unwrap();
            (Process { proc: proc.path().into(), ..Process::open(pid).unwrap() }, proc)
        }
    }

    #[test]
    fn a_machine_with_hardware_assist_is_told_by_its_descriptor() {
        let fds = tempfile::tempdir().unwrap();
        symlink("/dev/kvm", fds.path().join("3")).unwrap();
        symlink("anon_inode:[eventfd]", fds.path().join("4")).unwrap();
        assert!(!has_kvm(fds.path()).unwrap(), "asking whether there is KVM makes no machine");
        symlink("anon_inode:kvm-vm", fds.path().join("5")).unwrap();
        assert!(has_kvm(fds.path()).unwrap());
        assert!(has_kvm(&fds.path().join("none")).is_err());
    }
}
