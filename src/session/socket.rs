//! Framing of the agent's Unix socket: one JSON message a packet, at most one descriptor beside it.
//!
//! Shared by [`client`](super::client), the agent's server side and the tests. It promises that a message is
//! handed on whole or not at all, that no call blocks past its deadline, that a dead peer is an error and
//! never a signal, and that descriptors which nobody asked for are closed. Messages are checked for size
//! on both sides: [`MAX_MESSAGE`] holds whatever the peer does.
//!
//! Threads: `send` and `recv` may be called from any thread; each is one system call, so messages never
//! interleave. Pairing a reply with its request is the caller's business.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, connect,
    listen, recvmsg, sendmsg, socket_with,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::wire::MAX_MESSAGE;

/// One end of a session's socket.
#[derive(Debug)]
pub struct Connection {
    fd: OwnedFd,
}

/// A socket that waits for applications and operators.
#[derive(Debug)]
pub struct Listener {
    fd: OwnedFd,
    path: PathBuf,
}

/// Why a message could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The other end is gone.
    #[error("the other end of the session's socket is gone")]
    Closed,
    /// The deadline passed.
    #[error("no answer on the session's socket within the time given")]
    TimedOut,
    /// The other end answers nobody.
    #[error("the agent, process {0}, is stopped: `kill -CONT {0}` lets it go on")]
    Stopped(u32),
    /// A message larger than [`MAX_MESSAGE`], ours or the peer's.
    #[error("a session message of {0} bytes or more; at most {MAX_MESSAGE} are allowed")]
    TooLong(usize),
    /// The peer attached more descriptors than a message may have.
    #[error("more descriptors on a session message than the one that is allowed")]
    TooManyDescriptors,
    /// Bytes that are no message of this protocol.
    #[error("not a session message: {0}")]
    Malformed(String),
    /// The socket cannot be reached or made.
    #[error("{what} {path}: {source}")]
    Path {
        /// What was attempted.
        what: &'static str,
        /// The socket's path.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The system refused.
    #[error("session socket: {0}")]
    System(#[from] io::Error),
}

impl From<Errno> for SocketError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::PIPE | Errno::CONNRESET | Errno::NOTCONN => SocketError::Closed,
            other => SocketError::System(other.into()),
        }
    }
}

impl Connection {
    /// Connects to the socket at `path`, by `deadline` even if the listener's queue is full.
    pub fn connect(path: &Path, deadline: Instant) -> Result<Connection, SocketError> {
        let at = |source: Errno| SocketError::Path {
            what: "cannot connect to",
            path: path.to_owned(),
            source: source.into(),
        };
        let address = SocketAddrUnix::new(path).map_err(at)?;
        let fd = seqpacket().map_err(at)?;
        // A Unix connect waits for room in the listener's queue for as long as the send timeout says.
        let left = deadline.saturating_duration_since(Instant::now()).max(SHORTEST_WAIT);
        set_socket_timeout(&fd, Timeout::Send, Some(left)).map_err(at)?;
        loop {
            match connect(&fd, &address) {
                Ok(()) => return Ok(Connection { fd }),
                Err(Errno::INTR) if Instant::now() < deadline => {}
                Err(Errno::AGAIN | Errno::INTR) => return Err(SocketError::TimedOut),
                Err(e) => return Err(at(e)),
            }
        }
    }

    /// Takes over a connected `SOCK_SEQPACKET` socket, as `accept`, `socketpair` or systemd hand it out.
    pub fn from_fd(fd: OwnedFd) -> Connection {
        Connection { fd }
    }

    /// Gives the socket back.
    pub fn into_fd(self) -> OwnedFd {
        self.fd
    }

    /// Sends one message, with a descriptor if given; waits until `deadline` (none: for ever) for room.
    pub fn send<T: Serialize>(
        &self,
        message: &T,
        fd: Option<BorrowedFd<'_>>,
        deadline: Option<Instant>,
    ) -> Result<(), SocketError> {
        let bytes = serde_json::to_vec(message).map_err(|e| SocketError::Malformed(e.to_string()))?;
        if bytes.len() > MAX_MESSAGE {
            return Err(SocketError::TooLong(bytes.len()));
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if let Some(fd) = &fd {
            let pushed = control.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(fd)));
            assert!(pushed, "the buffer is made for one descriptor");
        }
        // NOSIGNAL: SIGPIPE would kill an application for the death of its agent.
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        loop {
            match sendmsg(&self.fd, &[IoSlice::new(&bytes)], &mut control, flags) {
                Ok(_) => return Ok(()),
                Err(Errno::AGAIN) => self.ready(PollFlags::OUT, deadline)?,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Receives one message and the descriptor beside it, if any; waits until `deadline` (none: for ever).
    pub fn recv<T: DeserializeOwned>(
        &self,
        deadline: Option<Instant>,
    ) -> Result<(T, Option<OwnedFd>), SocketError> {
        let mut buf = vec![0u8; MAX_MESSAGE];
        // Room for a second descriptor, so that a peer which sends two is seen and both are closed.
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let got = loop {
            // Emptied for the next try: what a failed call left there would be handed out again.
            control.drain().for_each(drop);
            let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
            match recvmsg(&self.fd, &mut [IoSliceMut::new(&mut buf)], &mut control, flags) {
                Ok(got) => break got,
                Err(Errno::AGAIN) => self.ready(PollFlags::IN, deadline)?,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        };
        let mut fds: Vec<OwnedFd> = control
            .drain()
            .filter_map(|m| match m {
                RecvAncillaryMessage::ScmRights(rights) => Some(rights),
                _ => None,
            })
            .flatten()
            .collect();
        if got.flags.contains(ReturnFlags::TRUNC) {
            return Err(SocketError::TooLong(MAX_MESSAGE + 1));
        }
        if got.flags.contains(ReturnFlags::CTRUNC) || fds.len() > 1 {
            return Err(SocketError::TooManyDescriptors);
        }
        if got.bytes == 0 {
            return Err(SocketError::Closed);
        }
        let message =
            serde_json::from_slice(&buf[..got.bytes]).map_err(|e| SocketError::Malformed(e.to_string()))?;
        Ok((message, fds.pop()))
    }

    fn ready(&self, events: PollFlags, deadline: Option<Instant>) -> Result<(), SocketError> {
        wait_ready(self.fd.as_fd(), events, deadline)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Listener {
    /// Listens at `path`, which only `mode` may open. A socket that a dead agent left behind is replaced; a
    /// live one's is an error, and so is any other file there.
    pub fn bind(path: &Path, mode: u32) -> Result<Listener, SocketError> {
        let at = |source: Errno| SocketError::Path {
            what: "cannot listen at",
            path: path.to_owned(),
            source: source.into(),
        };
        let address = SocketAddrUnix::new(path).map_err(at)?;
        let fd = seqpacket().map_err(at)?;
        if let Err(e) = bind(&fd, &address) {
            if e != Errno::ADDRINUSE || !abandoned(path) {
                return Err(at(e));
            }
            rustix::fs::unlink(path).map_err(at)?;
            bind(&fd, &address).map_err(at)?;
        }
        // Nobody can connect before `listen`, so the default mode is never in force.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(|source| {
            SocketError::Path { what: "cannot set the mode of", path: path.to_owned(), source }
        })?;
        listen(&fd, BACKLOG).map_err(at)?;
        Ok(Listener { fd, path: path.to_owned() })
    }

    /// The next connection, or [`SocketError::TimedOut`] at `deadline` (none: waits for ever).
    pub fn accept(&self, deadline: Option<Instant>) -> Result<Connection, SocketError> {
        loop {
            wait_ready(self.fd.as_fd(), PollFlags::IN, deadline)?;
            match accept_with(&self.fd, SocketFlags::CLOEXEC) {
                Ok(fd) => return Ok(Connection { fd }),
                Err(Errno::AGAIN | Errno::INTR | Errno::CONNABORTED) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Waits until `fd` is ready for `events` or broken; [`SocketError::TimedOut`] at `deadline`.
pub fn wait_ready(
    fd: BorrowedFd<'_>,
    events: PollFlags,
    deadline: Option<Instant>,
) -> Result<(), SocketError> {
    loop {
        let left = deadline.map(|d| d.saturating_duration_since(Instant::now()));
        let timeout = left.map(|l| Timespec::try_from(l).expect("a deadline is within i64 seconds"));
        match poll(&mut [PollFd::new(&fd, events)], timeout.as_ref()) {
            Ok(0) => return Err(SocketError::TimedOut),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

fn seqpacket() -> Result<OwnedFd, Errno> {
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

/// Whether `path` is a socket that nobody listens at. Connecting to an ordinary file is refused too.
fn abandoned(path: &Path) -> bool {
    if !std::fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_socket()) {
        return false;
    }
    let Ok(address) = SocketAddrUnix::new(path) else { return false };
    seqpacket().is_ok_and(|fd| connect(&fd, &address) == Err(Errno::CONNREFUSED))
}

/// Connections that may wait for `accept`; applications of a machine start together at boot.
const BACKLOG: i32 = 128;

/// A socket timeout of zero means for ever, so an expired deadline waits this long instead.
const SHORTEST_WAIT: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::wire::{Reply, Request};
    use rustix::fs::{MemfdFlags, memfd_create};
    use rustix::net::socketpair;

    fn pair() -> (Connection, Connection) {
        let (a, b) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        (Connection::from_fd(a), Connection::from_fd(b))
    }

    fn soon() -> Option<Instant> {
        Some(Instant::now() + Duration::from_millis(20))
    }

    #[test]
    fn a_message_arrives_whole_with_its_descriptor() {
        let (a, b) = pair();
        let file = memfd_create("carried", MemfdFlags::CLOEXEC).unwrap();
        rustix::io::write(&file, b"content").unwrap();
        a.send(&Request::Protect { len: 7, explicit: true }, Some(file.as_fd()), None).unwrap();
        let (message, fd) = b.recv::<Request>(None).unwrap();
        assert_eq!(message, Request::Protect { len: 7, explicit: true });
        let mut content = [0; 7];
        rustix::io::pread(fd.expect("the descriptor"), &mut content, 0).unwrap();
        assert_eq!(&content, b"content");
    }

    #[test]
    fn a_dead_peer_is_an_error_and_no_signal() {
        let (a, b) = pair();
        drop(b);
        assert!(matches!(a.send(&Reply::Ok {}, None, None), Err(SocketError::Closed)));
        assert!(matches!(a.recv::<Reply>(None), Err(SocketError::Closed)));
    }

    #[test]
    fn a_silent_peer_costs_no_more_than_the_deadline() {
        let (a, _b) = pair();
        assert!(matches!(a.recv::<Reply>(soon()), Err(SocketError::TimedOut)));
        let big = Reply::Error { message: "x".repeat(MAX_MESSAGE / 2) };
        let full = (0..1000).find_map(|_| a.send(&big, None, soon()).err());
        assert!(matches!(full, Some(SocketError::TimedOut)));
    }

    #[test]
    fn long_messages_are_refused_on_both_sides() {
        let (a, b) = pair();
        let long = Reply::Error { message: "x".repeat(MAX_MESSAGE) };
        assert!(matches!(a.send(&long, None, None), Err(SocketError::TooLong(_))));
        let raw = vec![b' '; MAX_MESSAGE + 1];
        rustix::net::send(&a.fd, &raw, SendFlags::empty()).unwrap();
        assert!(matches!(b.recv::<Reply>(None), Err(SocketError::TooLong(_))));
    }

    #[test]
    fn stray_descriptors_are_refused_and_closed() {
        let (a, b) = pair();
        let file = memfd_create("stray", MemfdFlags::CLOEXEC).unwrap();
        for count in [2, 3, 40] {
            let fds = vec![file.as_fd(); count];
            let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(64))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
            sendmsg(&a.fd, &[IoSlice::new(b"{\"type\":\"ok\"}")], &mut control, SendFlags::empty()).unwrap();
            let carried = || {
                let fds = std::fs::read_dir("/proc/self/fd").unwrap();
                fds.filter_map(|e| std::fs::read_link(e.unwrap().path()).ok())
                    .filter(|p| p.to_string_lossy().contains("memfd:stray"))
                    .count()
            };
            assert!(matches!(b.recv::<Reply>(None), Err(SocketError::TooManyDescriptors)));
            assert_eq!(carried(), 1, "only the one that the test holds is open");
        }
    }

    #[test]
    fn garbage_is_refused() {
        let (a, b) = pair();
        for bytes in [&b"{"[..], b"\0\xff", b"{\"type\":\"nonsense\"}", b"{\"type\":\"ok\",\"more\":1}"] {
            rustix::net::send(&a.fd, bytes, SendFlags::empty()).unwrap();
            assert!(matches!(b.recv::<Reply>(None), Err(SocketError::Malformed(_))));
        }
    }

    #[test]
    fn a_dead_agents_socket_is_replaced_and_a_live_ones_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        drop(Listener::bind(&path, 0o600).unwrap());
        let live = Listener::bind(&path, 0o660).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        assert!(matches!(Listener::bind(&path, 0o600), Err(SocketError::Path { .. })));
        let client = Connection::connect(&path, Instant::now() + Duration::from_secs(5)).unwrap();
        // The first in the queue is the probe that found the socket alive.
        drop(live.accept(soon()).unwrap());
        let served = live.accept(soon()).unwrap();
        client.send(&Request::Status {}, None, None).unwrap();
        assert_eq!(served.recv::<Request>(None).unwrap().0, Request::Status {});
        let file = dir.path().join("file");
        std::fs::write(&file, "precious").unwrap();
        assert!(Listener::bind(&file, 0o600).is_err());
        assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    }

    #[test]
    fn a_full_queue_costs_no_more_than_the_deadline() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.sock");
        let _deaf = Listener::bind(&path, 0o600).unwrap();
        let mut waiting = Vec::new();
        let end = loop {
            match Connection::connect(&path, Instant::now() + Duration::from_millis(20)) {
                Ok(c) => waiting.push(c),
                Err(e) => break e,
            }
            assert!(waiting.len() < 1000);
        };
        assert!(matches!(end, SocketError::TimedOut), "{end}");
    }
}
