//! Who is at the other end of a session's socket: credentials that the kernel vouches for.
//!
//! The agent decides by them who may do what, and learns of a process's death through the pidfd. This is the
//! one file of the room with `unsafe`: rustix does not know `SO_PEERPIDFD`, and its credentials cannot hold the
//! pid 0 by which the kernel names a peer of another pid namespace.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// The process that connected, as it was at that moment.
#[derive(Debug)]
pub struct Peer {
    /// Its process; none when it lives in a pid namespace that we cannot see.
    pub pid: Option<u32>,
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
    /// Readable once the process has died; none when there is no pid, or the process is gone already.
    pub pidfd: Option<OwnedFd>,
}

impl Peer {
    /// Asks the kernel about the peer of a connected Unix socket.
    pub fn of(socket: impl AsFd) -> io::Result<Peer> {
        let fd = socket.as_fd().as_raw_fd();
        let cred: libc::ucred = option(fd, libc::SO_PEERCRED, libc::ucred { pid: 0, uid: 0, gid: 0 })?;
        let pid = u32::try_from(cred.pid).ok().filter(|pid| *pid != 0);
        let pidfd = match option::<RawFd>(fd, SO_PEERPIDFD, -1) {
            // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
            Ok(raw) if raw >= 0 => Some(unsafe { OwnedFd::from_raw_fd(raw) }),
            Err(e) if e.raw_os_error() == Some(libc::ENOPROTOOPT) => {
                // Before Linux 6.5: by number. A pid that was given out anew since the connect is the price.
                Pid::from_raw(cred.pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
            }
            _ => None,
        };
        Ok(Peer { pid, uid: cred.uid, gid: cred.gid, pidfd })
    }
}

/// `getsockopt(SOL_SOCKET, name)` of a plain C type; a shorter answer leaves the rest of `value` as it is.
fn option<T: PlainC>(fd: RawFd, name: i32, mut value: T) -> io::Result<T> {
    let mut len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to `value`, and any bytes are a valid `T`.
    let rc = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, name, (&raw mut value).cast(), &raw mut len) };
    if rc == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

/// Types of which any bytes are a value.
trait PlainC {}
impl PlainC for libc::ucred {}
impl PlainC for RawFd {}

/// Linux 6.5; not in every libc's headers.
const SO_PEERPIDFD: i32 = 77;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::socket::{SocketError, wait_ready};
    use rustix::event::PollFlags;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    #[test]
    fn the_kernel_names_us() {
        let (a, _b) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let peer = Peer::of(&a).unwrap();
        assert_eq!(peer.pid, Some(std::process::id()));
        assert_eq!(peer.uid, rustix::process::geteuid().as_raw());
        assert!(peer.pidfd.is_some());
    }

    #[test]
    fn the_pidfd_tells_of_the_peers_death() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let mut child = Command::new("python3")
            .arg("-c")
            .arg("import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); s.recv(1)")
            .arg(&path)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let (socket, _): (UnixStream, _) = listener.accept().unwrap();
        let peer = Peer::of(&socket).unwrap();
        assert_eq!(peer.pid, Some(child.id()));
        let pidfd = peer.pidfd.unwrap();
        let alive = wait_ready(pidfd.as_fd(), PollFlags::IN, Some(Instant::now()));
        assert!(matches!(alive, Err(SocketError::TimedOut)));
        child.kill().unwrap();
        wait_ready(pidfd.as_fd(), PollFlags::IN, Some(Instant::now() + Duration::from_secs(10))).unwrap();
        child.wait().unwrap();
    }
}
