//! Who is at the other end of a session's socket: credentials that the kernel vouches for.
//!
//! The agent decides by them who may do what, and learns of a process's death through the pidfd.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::log::stat_field;
use crate::region::sockopt;

/// The process that connected, as it was at that moment.
#[derive(Debug)]
pub struct Peer {
    /// Its process; none when it lives in a pid namespace that we cannot see.
    pub pid: Option<u32>,
    /// Its effective user.
    pub uid: u32,
    /// Its effective group.
    pub gid: u32,
    /// Its further groups; none where the kernel does not tell.
    pub groups: Vec<u32>,
    /// Readable once the process has died; none when there is no pid, or the process is gone already.
    pub pidfd: Option<Arc<OwnedFd>>,
}

impl Peer {
    /// Asks the kernel about the peer of a connected Unix socket.
    pub fn of(socket: impl AsFd) -> io::Result<Peer> {
        let cred = sockopt::peer_credentials(socket.as_fd())?;
        let pid = u32::try_from(cred.pid).ok().filter(|pid| *pid != 0);
        let pidfd = match sockopt::peer_pidfd(socket.as_fd()) {
            Ok(pidfd) => Some(Arc::new(pidfd)),
            Err(e) if e.raw_os_error() == Some(libc::ENOPROTOOPT) => {
                // Before Linux 6.5: by number. A pid that was given out anew since the connect is the price.
                Pid::from_raw(cred.pid)
                    .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
                    .map(Arc::new)
            }
            Err(_) => None,
        };
        let groups = sockopt::peer_groups(socket.as_fd()).unwrap_or_default();
        Ok(Peer { pid, uid: cred.uid, gid: cred.gid, groups, pidfd })
    }
}

/// The process at the other end of a connected Unix socket, if it is stopped (SIGSTOP): it answers nobody before it is
/// continued. `None` also where that cannot be seen.
pub fn stopped(socket: impl AsFd) -> Option<u32> {
    let pid = u32::try_from(sockopt::peer_credentials(socket.as_fd()).ok()?.pid).ok()?;
    // Not `t`: whoever traces it lets it go on in a moment.
    (stat_field(pid, 3) == Some('T')).then_some(pid)
}

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
        let own = std::fs::read_to_string("/proc/self/status").unwrap();
        let own = own.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap();
        assert_eq!(peer.groups, own.split_whitespace().map(|g| g.parse().unwrap()).collect::<Vec<u32>>());
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
