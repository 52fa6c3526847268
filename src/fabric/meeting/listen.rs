//! The listening side: one socket for all offers of a fabric, and the thread that leads newcomers through
//! handshake and token to the offer they mean.
//!
//! A newcomer costs a slot and some memory until it has shown a token, so slots are few, and short of life; when they are all
//! taken the oldest goes, since an honest peer needs milliseconds and only others linger.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use zerocopy::IntoBytes;

use super::hello::{HELLO, Heard, Hello, TOKEN, Welcome, same_token};
use super::wire::Wire;
use crate::fabric::tls::{TlsIdentity, peer_node};
use crate::fabric::{FabricError, random};
use crate::locks::lock;
use crate::predecessor::listen_at;

/// An offer that nobody took up by then is void.
pub const OFFER_LIFETIME: Duration = Duration::from_secs(60);

/// Connections that have not shown a token yet.
pub const MAX_HALF_OPEN: usize = 64;

/// A newcomer shows its token by then or is dropped.
const TOKEN_BY: Duration = Duration::from_secs(5);

/// Offers open at a time: a node has a few peers with a few groups each.
const MAX_OFFERS: usize = 1024;

/// A listening socket and its thread.
pub struct Listener {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    offers: Mutex<Vec<OpenOffer>>,
    bell: OwnedFd,
    stop: AtomicBool,
}

struct OpenOffer {
    token: [u8; TOKEN],
    expires: Instant,
    taker: SyncSender<(String, Wire)>,
}

/// The offering side's end of an offer; withdrawn on drop.
pub struct Waiting {
    shared: Arc<Shared>,
    token: [u8; TOKEN],
    expires: Instant,
    taken: Receiver<(String, Wire)>,
}

impl Listener {
    /// Binds and starts the thread.
    pub fn start(at: SocketAddr, identity: Option<TlsIdentity>) -> Result<Listener, FabricError> {
        let system = |what: String| move |source: io::Error| FabricError::System { what, source };
        let socket = listen_at(at).map_err(system(format!("listening on {at} for the fabric")))?;
        let address = socket.local_addr().map_err(system("asking for the address listened on".to_owned()))?;
        socket.set_nonblocking(true).map_err(system("making a socket non-blocking".to_owned()))?;
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| system("eventfd".to_owned())(e.into()))?;
        let shared = Arc::new(Shared { offers: Mutex::default(), bell, stop: AtomicBool::new(false) });
        let mut doorman = Doorman { socket, identity, shared: shared.clone(), newcomers: VecDeque::new() };
        let thread = thread::Builder::new()
            .name("pmemha-listen".to_owned())
            .spawn(move || doorman.serve())
            .map_err(system("starting the thread that listens for peers".to_owned()))?;
        Ok(Listener { address, shared, thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Opens an offer: its waiting end, and the token that a peer must show.
    pub fn offer(&self) -> Result<(Waiting, [u8; TOKEN]), FabricError> {
        let token = random()?;
        let expires = Instant::now() + OFFER_LIFETIME;
        let (taker, taken) = sync_channel(1);
        let mut offers = lock(&self.shared.offers);
        offers.retain(|offer| offer.expires > Instant::now());
        if offers.len() == MAX_OFFERS {
            return Err(FabricError::Busy { in_flight: MAX_OFFERS });
        }
        offers.push(OpenOffer { token, expires, taker });
        Ok((Waiting { shared: self.shared.clone(), token, expires, taken }, token))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Pairs with the load in `serve`: the bell orders them, the flag only has to be seen after it.
        self.shared.stop.store(true, Ordering::Release);
        let _ = rustix::io::write(&self.shared.bell, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // It holds nothing that a panic of its could leave half done.
            let _ = thread.join();
        }
    }
}

impl Waiting {
    /// Waits for the peer until `deadline` or the offer's end.
    pub fn accept(&self, deadline: Instant) -> Result<(String, Wire), FabricError> {
        let until = deadline.min(self.expires);
        let lost =
            |reason: String| FabricError::Disconnected { peer: "the expected peer".to_owned(), reason };
        match self.taken.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(taken) => Ok(taken),
            Err(RecvTimeoutError::Timeout) => Err(lost(
                "it did not connect in time: check that it reaches the advertised address".to_owned(),
            )),
            Err(RecvTimeoutError::Disconnected) => Err(lost("the fabric stopped listening".to_owned())),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        lock(&self.shared.offers).retain(|offer| offer.token != self.token);
    }
}

impl Shared {
    /// Takes the offer that `token` is for. All are compared, each in constant time.
    fn claim(&self, token: &[u8; TOKEN]) -> Option<OpenOffer> {
        let mut offers = lock(&self.offers);
        let now = Instant::now();
        let mut found = None;
        for (i, offer) in offers.iter().enumerate() {
            if same_token(&offer.token, token) && offer.expires > now {
                found = Some(i);
            }
        }
        found.map(|i| offers.swap_remove(i))
    }
}

/// The thread behind the listening socket.
struct Doorman {
    socket: TcpListener,
    identity: Option<TlsIdentity>,
    shared: Arc<Shared>,
    newcomers: VecDeque<Newcomer>,
}

struct Newcomer {
    wire: Wire,
    from: SocketAddr,
    hello: [u8; HELLO],
    have: usize,
    until: Instant,
}

impl Doorman {
    fn serve(&mut self) {
        // Pairs with the store in `drop`.
        while !self.shared.stop.load(Ordering::Acquire) {
            self.sleep();
            self.admit();
            self.advance();
        }
    }

    fn sleep(&self) {
        let mut fds =
            vec![PollFd::new(&self.socket, PollFlags::IN), PollFd::new(&self.shared.bell, PollFlags::IN)];
        fds.extend(self.newcomers.iter().map(|n| PollFd::from_borrowed_fd(n.wire.as_fd(), PollFlags::IN)));
        let next = self.newcomers.iter().map(|n| n.until).min();
        let timeout = next.map(|until| {
            let left = until.saturating_duration_since(Instant::now());
            Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() }
        });
        // Interrupted or refused memory: looking at every socket is right in any case.
        let _ = poll(&mut fds, timeout.as_ref());
    }

    fn admit(&mut self) {
        while let Ok((socket, from)) = self.socket.accept() {
            if self.newcomers.len() == MAX_HALF_OPEN {
                let oldest = self.newcomers.pop_front();
                tracing::warn!(from = ?oldest.map(|n| n.from), "too many connections without a token, dropped the oldest");
            }
            match self.newcomer(socket, from) {
                Ok(newcomer) => self.newcomers.push_back(newcomer),
                Err(error) => tracing::warn!(%from, %error, "cannot take a connection"),
            }
        }
    }

    fn newcomer(&self, socket: TcpStream, from: SocketAddr) -> io::Result<Newcomer> {
        let session = self.identity.as_ref().map(|id| id.accept().map_err(io::Error::other)).transpose()?;
        let wire = Wire::new(socket, session.map(Into::into))?;
        Ok(Newcomer { wire, from, hello: [0; HELLO], have: 0, until: Instant::now() + TOKEN_BY })
    }

    fn advance(&mut self) {
        let now = Instant::now();
        for _ in 0..self.newcomers.len() {
            let Some(mut newcomer) = self.newcomers.pop_front() else { break };
            match newcomer.advance() {
                Ok(false) if newcomer.until > now => self.newcomers.push_back(newcomer),
                Ok(false) => tracing::warn!(from = %newcomer.from, "no token in time, dropped"),
                Ok(true) => self.welcome(newcomer),
                Err(error) => {
                    tracing::warn!(from = %newcomer.from, %error, "connection dropped before its token")
                }
            }
        }
    }

    fn welcome(&self, newcomer: Newcomer) {
        let Newcomer { wire, from, hello, .. } = newcomer;
        let offer = match Hello::hear(&hello) {
            Heard::Token(token) => self.shared.claim(&token),
            Heard::OtherVersion(version) => {
                tracing::warn!(%from, version, "peer speaks another version of the fabric");
                // It is closed in any case; the answer only makes its message better.
                let _ = wire.send(Welcome::other_version().as_bytes(), None);
                wire.finish_sending();
                return;
            }
            Heard::Noise => None,
        };
        let Some(offer) = offer else {
            tracing::warn!(%from, "connection without a valid token, dropped");
            return;
        };
        let peer = match wire.with_session(|session| peer_node(session, None)) {
            None => from.to_string(),
            Some(Ok(node)) => node,
            Some(Err(error)) => {
                tracing::warn!(%from, %error, "peer without a name, dropped");
                return;
            }
        };
        // A fresh socket has room for 16 bytes; the taker may have gone, and then so does the wire.
        if matches!(wire.send(Welcome::accepted().as_bytes(), None), Ok(n) if n == size_of::<Welcome>()) {
            let _ = offer.taker.try_send((peer, wire));
        }
    }
}

impl Newcomer {
    /// Whether its hello is complete.
    fn advance(&mut self) -> io::Result<bool> {
        if !self.wire.handshake()? {
            return Ok(false);
        }
        while self.have < HELLO {
            match self.wire.recv(&mut self.hello[self.have..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => self.have += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) => return Err(e),
            }
        }
        Ok(true)
    }
}
