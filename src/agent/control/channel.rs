//! One control channel: frames over TLS with a deadline on every message.
//!
//! A peer that sends a byte now and then gains nothing: the deadline is for the whole message. Used by
//! [`super::client`] and [`super::server`], each from one thread.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustls::StreamOwned;

use super::frame::{self, FrameError, HEAD};
use super::message::{self, Message, MessageError, Refusal};
use crate::fabric::tls::{TlsError, TlsIdentity, peer_node};
use crate::locks::lock;
use crate::types::Generation;

/// Why a channel ended.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The connection could not be made or broke.
    #[error("control channel with {peer}: {source}")]
    Io {
        /// Address or name of the peer.
        peer: String,
        /// What the system or TLS said.
        source: io::Error,
    },
    /// The peer did not answer in time.
    #[error("{peer} did not answer within its time: it is stalled, or the network loses packets")]
    TimedOut {
        /// Address or name of the peer.
        peer: String,
    },
    /// The peer closed the channel in order.
    #[error("{peer} closed the control channel")]
    Closed {
        /// Address or name of the peer.
        peer: String,
    },
    /// The peer sent what is not a message.
    #[error("from {peer}: {source}")]
    Message {
        /// Address or name of the peer.
        peer: String,
        /// What was wrong.
        source: MessageError,
    },
    /// The peer is not who it should be, by its certificate.
    #[error(transparent)]
    Identity(#[from] TlsError),
    /// The peer knows us and says no.
    #[error("{peer} refuses: {message}")]
    Refused {
        /// Address or name of the peer.
        peer: String,
        /// Why, for the machine.
        reason: Refusal,
        /// The generation that the peer knows; 0 if none.
        generation: Generation,
        /// Why, for a person.
        message: String,
    },
    /// A well-formed answer that does not belong to the ask.
    #[error("{peer} answered {answer} where that makes no sense")]
    Unexpected {
        /// Address or name of the peer.
        peer: String,
        /// The answer.
        answer: String,
    },
}

/// A channel on which the handshake is done.
pub struct Channel {
    stream: Box<dyn Duplex>,
    deadline: Arc<Mutex<Instant>>,
    peer: String,
}

impl Channel {
    /// The connecting side's handshake; node `name` must be at the other end.
    pub fn client(
        tcp: TcpStream,
        identity: &TlsIdentity,
        name: &str,
        deadline: Instant,
    ) -> Result<Channel, ControlError> {
        let io_error = |source| ControlError::Io { peer: name.to_owned(), source };
        let session = identity.connect().map_err(|e| io_error(io::Error::other(e)))?;
        let (timed, cell) = Timed::new(tcp, deadline).map_err(io_error)?;
        let mut stream = StreamOwned::new(session, timed);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).map_err(|e| classify(name, e))?;
        }
        let peer = peer_node(&stream.conn, Some(name))?;
        Ok(Channel { stream: Box::new(stream), deadline: cell, peer })
    }

    /// The listening side's handshake; [`Channel::peer`] says which node's certificate the peer has.
    pub fn server(
        tcp: TcpStream,
        identity: &TlsIdentity,
        deadline: Instant,
    ) -> Result<Channel, ControlError> {
        let from = tcp.peer_addr().map_or_else(|_| "unknown peer".to_owned(), |a| a.to_string());
        let io_error = |source| ControlError::Io { peer: from.clone(), source };
        let session = identity.accept().map_err(|e| io_error(io::Error::other(e)))?;
        let (timed, cell) = Timed::new(tcp, deadline).map_err(io_error)?;
        let mut stream = StreamOwned::new(session, timed);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock).map_err(|e| classify(&from, e))?;
        }
        let peer = peer_node(&stream.conn, None)?;
        Ok(Channel { stream: Box::new(stream), deadline: cell, peer })
    }

    /// The node at the other end, by its certificate.
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// Sends one message; all of it is with the system by `deadline`.
    pub fn send<M: Message>(&mut self, message: &M, deadline: Instant) -> Result<(), ControlError> {
        let frame = message::encode(message)
            .map_err(|source| ControlError::Message { peer: self.peer.clone(), source })?;
        self.until(deadline);
        self.stream.write_all(&frame).and_then(|()| self.stream.flush()).map_err(|e| classify(&self.peer, e))
    }

    /// Receives one message; all of it must be here by `deadline`.
    pub fn receive<M: Message>(&mut self, deadline: Instant) -> Result<M, ControlError> {
        self.until(deadline);
        let mut head = [0; HEAD];
        self.read_exact(&mut head)?;
        let wrong = |source| ControlError::Message { peer: self.peer.clone(), source };
        let head = frame::decode(&head).map_err(|e| wrong(e.into()))?;
        if head.way != M::WAY {
            return Err(wrong(FrameError::Type(head.way as u16).into()));
        }
        let mut body = vec![0; head.len];
        self.read_exact(&mut body)?;
        message::decode(&body).map_err(|source| ControlError::Message { peer: self.peer.clone(), source })
    }

    fn read_exact(&mut self, into: &mut [u8]) -> Result<(), ControlError> {
        self.stream.read_exact(into).map_err(|e| classify(&self.peer, e))
    }

    fn until(&self, deadline: Instant) {
        *lock(&self.deadline) = deadline;
    }
}

/// A TCP stream each of whose calls ends by a deadline that may be moved between calls.
struct Timed {
    tcp: TcpStream,
    deadline: Arc<Mutex<Instant>>,
}

impl Timed {
    fn new(tcp: TcpStream, deadline: Instant) -> io::Result<(Timed, Arc<Mutex<Instant>>)> {
        tcp.set_nodelay(true)?;
        let cell = Arc::new(Mutex::new(deadline));
        Ok((Timed { tcp, deadline: cell.clone() }, cell))
    }

    /// What is left, never zero: the socket option takes zero for no limit.
    fn left(&self) -> io::Result<Duration> {
        let deadline = *lock(&self.deadline);
        match deadline.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
            left => Ok(left.max(Duration::from_millis(1))),
        }
    }
}

impl Read for Timed {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.tcp.set_read_timeout(Some(self.left()?))?;
        self.tcp.read(buf)
    }
}

impl Write for Timed {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.tcp.set_write_timeout(Some(self.left()?))?;
        self.tcp.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

trait Duplex: Read + Write + Send {}

impl<T: Read + Write + Send> Duplex for T {}

fn classify(peer: &str, source: io::Error) -> ControlError {
    let peer = peer.to_owned();
    match source.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => ControlError::TimedOut { peer },
        io::ErrorKind::UnexpectedEof => ControlError::Closed { peer },
        _ => ControlError::Io { peer, source },
    }
}
