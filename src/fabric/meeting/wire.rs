//! A connected socket, plain or inside TLS. Never blocks: what cannot be done now is `WouldBlock`.

use std::io::{self, Read, Write};
use std::net::{IpAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::net::sockopt;
use rustls::Connection;

use crate::locks::lock;
use crate::region::memory::SharedMem;

/// Plaintext taken per send inside TLS: eight records, so that the session's lock is passed often enough for
/// the receiving thread, and the system call still pays.
const TLS_BATCH: usize = 128 << 10;

/// Ciphertext read per system call.
const TLS_READ: usize = 256 << 10;

/// Piece in which memory is copied for encryption: a TLS record's plaintext.
const TLS_PIECE: usize = 16 << 10;

/// After so long without an answer to data or to a probe the peer counts as dead. Failing over is decided
/// elsewhere; this only bounds how long requests stay in flight without an end.
const DEAD_AFTER: Duration = Duration::from_secs(5);

/// A piece of memory to be sent or received into.
#[derive(Clone)]
pub struct Payload {
    /// The memory.
    pub memory: Arc<SharedMem>,
    /// First byte.
    pub offset: usize,
    /// Number of bytes.
    pub len: usize,
}

/// One connection.
pub struct Wire {
    socket: TcpStream,
    tls: Option<Mutex<Session>>,
}

struct Session {
    tls: Connection,
    /// Ciphertext received and not yet taken by `tls`: `cipher[start..end]`.
    cipher: Vec<u8>,
    start: usize,
    end: usize,
    bounce: Vec<u8>,
}

impl Wire {
    /// Takes over a connected socket; with `session` everything goes through TLS, whose handshake
    /// [`Wire::handshake`] does.
    pub fn new(socket: TcpStream, session: Option<Connection>) -> io::Result<Wire> {
        set_options(&socket)?;
        let tls = session.map(|mut tls| {
            // A batch and the records' overhead always fit, so what is accepted is never cut short.
            tls.set_buffer_limit(Some(4 * TLS_BATCH));
            Mutex::new(Session {
                tls,
                cipher: vec![0; TLS_READ],
                start: 0,
                end: 0,
                bounce: vec![0; TLS_PIECE],
            })
        });
        Ok(Wire { socket, tls })
    }

    /// Our address on it.
    pub fn local_address(&self) -> Option<IpAddr> {
        self.socket.local_addr().ok().map(|address| address.ip())
    }

    /// Whether bytes are encrypted.
    pub fn encrypted(&self) -> bool {
        self.tls.is_some()
    }

    /// Goes on with the TLS handshake; whether it is over. At once for a plain socket.
    pub fn handshake(&self) -> io::Result<bool> {
        let Some(session) = &self.tls else { return Ok(true) };
        let mut session = lock(session);
        loop {
            match session.push(&self.socket) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                other => other?,
            }
            if !session.tls.is_handshaking() {
                return Ok(true);
            }
            match session.pull(&self.socket) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && !session.tls.wants_write() => {
                    return Ok(false);
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                other => other?,
            }
            if session.end == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    /// Looks at the TLS session, if there is one.
    pub fn with_session<T>(&self, look: impl FnOnce(&Connection) -> T) -> Option<T> {
        self.tls.as_ref().map(|session| look(&lock(session).tls))
    }

    /// Sends from `head` and then from `bulk`; returns how many bytes of both together were taken. What was
    /// taken may wait inside for [`Wire::flush`].
    pub fn send(&self, head: &[u8], bulk: Option<&Payload>) -> io::Result<usize> {
        match (&self.tls, bulk) {
            (Some(session), _) => lock(session).send(&self.socket, head, bulk),
            (None, Some(p)) => {
                let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
                retried(|| p.memory.send(self.socket.as_fd(), head, p.offset, p.len, flags))
            }
            (None, None) => retried(|| (&self.socket).write(head)),
        }
    }

    /// Pushes out what was taken and not sent.
    pub fn flush(&self) -> io::Result<()> {
        self.tls.as_ref().map_or(Ok(()), |session| lock(session).push(&self.socket))
    }

    /// Receives into `into`; 0 is the end of the stream.
    pub fn recv(&self, into: &mut [u8]) -> io::Result<usize> {
        match &self.tls {
            None => retried(|| (&self.socket).read(into)),
            Some(session) => lock(session).recv(&self.socket, into),
        }
    }

    /// Receives into registered memory and then into `tail`, where the socket is plain; else `None`.
    pub fn recv_direct(&self, place: &Payload, tail: &mut [u8]) -> Option<io::Result<usize>> {
        if self.tls.is_some() {
            return None;
        }
        let Payload { memory, offset, len } = place;
        Some(retried(|| memory.recv_then(self.socket.as_fd(), *offset, *len, tail, libc::MSG_DONTWAIT)))
    }

    /// Says that nothing more will be sent.
    pub fn finish_sending(&self) {
        if let Some(session) = &self.tls {
            let mut session = lock(session);
            session.tls.send_close_notify();
            // Without it the peer sees the end of the socket all the same.
            let _ = session.push(&self.socket);
        }
        let _ = self.socket.shutdown(std::net::Shutdown::Write);
    }

    /// Ends both directions.
    pub fn shut(&self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Session {
    fn send(&mut self, socket: &TcpStream, head: &[u8], bulk: Option<&Payload>) -> io::Result<usize> {
        self.push(socket)?;
        let mut taken = self.tls.writer().write(head)?;
        if let Some(p) = bulk.filter(|_| taken == head.len()) {
            let mut done = 0;
            while done < p.len.min(TLS_BATCH) {
                let n = self.bounce.len().min(p.len - done);
                p.memory.read(p.offset + done, &mut self.bounce[..n]);
                let accepted = self.tls.writer().write(&self.bounce[..n])?;
                done += accepted;
                if accepted < n {
                    break;
                }
            }
            taken += done;
        }
        match self.push(socket) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && taken > 0 => Ok(taken),
            Err(e) => Err(e),
            Ok(()) => Ok(taken),
        }
    }

    fn push(&mut self, mut socket: &TcpStream) -> io::Result<()> {
        while self.tls.wants_write() {
            retried(|| self.tls.write_tls(&mut socket))?;
        }
        Ok(())
    }

    fn recv(&mut self, socket: &TcpStream, into: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.tls.reader().read(into) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => self.pull(socket)?,
                // The socket's end without TLS's own is an end too: nothing is inferred from a connection's length.
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                other => return other,
            }
        }
    }

    /// Takes more ciphertext, from the socket if need be, and decrypts what is whole.
    fn pull(&mut self, mut socket: &TcpStream) -> io::Result<()> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            self.end = retried(|| socket.read(&mut self.cipher))?;
        }
        let mut waiting = &self.cipher[self.start..self.end];
        let before = waiting.len();
        self.tls.read_tls(&mut waiting)?;
        self.start += before - waiting.len();
        self.tls.process_new_packets().map(drop).map_err(|e| {
            // The peer's log should say why as well; whether it can be told changes nothing here.
            let _ = self.push(socket);
            io::Error::other(e)
        })
    }
}

fn retried(mut act: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match act() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Buffer sizes are left alone: the kernel grows them with the bandwidth-delay product, and a size set by hand
/// ends that and is capped lower than where it would go.
fn set_options(socket: &TcpStream) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    // A record waits for nobody: frames are gathered before they are sent, never by the kernel.
    sockopt::set_tcp_nodelay(socket, true)?;
    // A peer whose power went answers nothing: data in flight finds that out by itself, an idle connection asks.
    sockopt::set_tcp_user_timeout(socket, DEAD_AFTER.as_millis() as u32)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, Duration::from_secs(1))?;
    sockopt::set_tcp_keepintvl(socket, Duration::from_secs(1))?;
    sockopt::set_tcp_keepcnt(socket, DEAD_AFTER.as_secs() as u32)?;
    Ok(())
}
