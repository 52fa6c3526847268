//! The answering side of control channels: one listener, one thread a channel.
//!
//! A peer costs at most one thread, one frame of memory and its time limits, whatever it sends; it is heard
//! only after its certificate proved the name that it gives in Hello. Until then it is a stranger, and strangers have few
//! places of their own, of which the newest takes the oldest's: however many come, they take no peer's.

use std::collections::{BTreeMap, HashMap};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{io, thread};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::channel::{Channel, ControlError};
use super::message::{Answer, Ask, Refusal, refused};
use crate::agent::config::MAX_GROUPS;
use crate::fabric::tls::TlsIdentity;
use crate::locks::lock;
use crate::types::Generation;

/// Channels at a time, each of which costs a thread: a group takes one from each other node that may own it, and from its owner one
/// for the stream and one while a copy asks what is here; as many again may wait for their end to be seen. These are enough for as
/// many groups as there may be on six nodes.
const MAX_CHANNELS: usize = 16 * MAX_GROUPS;

/// Strangers at a time, each of which costs a thread: a peer is one for as long as a handshake takes.
const MAX_STRANGERS: usize = 128;

/// Pause after a connection could not be accepted: for want of descriptors, most likely, which only time brings.
const ACCEPT_PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// A peer must have proven who it is within this time, so that strangers cannot hold channels.
const HELLO_WITHIN: Duration = Duration::from_secs(5);

/// A peer that asks nothing for this long is gone; sources ping every second.
const IDLE_LIMIT: Duration = Duration::from_secs(30);

/// An answer must be with the system within this time.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);

/// Who answers: the agent.
pub trait Responder: Send + Sync {
    /// Node `peer`, proven by its certificate, opened a channel. A node that no configuration names is
    /// refused with a text for its operator.
    fn admit(&self, peer: &str) -> Result<Box<dyn PeerSession>, String>;
}

/// One peer's channel; dropped when it ends.
pub trait PeerSession: Send {
    /// Answers an ask. Anything but Hello arrives here, in order.
    fn answer(&mut self, ask: Ask) -> Answer;
}

/// A listener with its channels; dropped, it closes them all.
pub struct Server {
    shared: Arc<Shared>,
    address: SocketAddr,
    acceptor: Option<JoinHandle<()>>,
}

struct Shared {
    identity: Arc<TlsIdentity>,
    responder: Arc<dyn Responder>,
    stop: OwnedFd,
    channels: Mutex<Channels>,
}

#[derive(Default)]
struct Channels {
    next: u64,
    /// By number: the oldest first.
    strangers: BTreeMap<u64, TcpStream>,
    peers: HashMap<u64, TcpStream>,
    stopping: bool,
}

impl Server {
    /// Answers on `listener` as the node of `identity`.
    pub fn start(
        listener: TcpListener,
        identity: Arc<TlsIdentity>,
        responder: Arc<dyn Responder>,
    ) -> io::Result<Server> {
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let shared = Arc::new(Shared {
            identity,
            responder,
            stop: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            channels: Mutex::default(),
        });
        let for_thread = shared.clone();
        let acceptor = thread::Builder::new()
            .name("control-listen".into())
            .spawn(move || accept_until_stopped(&listener, &for_thread))?;
        Ok(Server { shared, address, acceptor: Some(acceptor) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let mut channels = self.shared.channels();
        channels.stopping = true;
        for tcp in channels.strangers.values().chain(channels.peers.values()) {
            // One that is closed already needs no closing.
            let _ = tcp.shutdown(Shutdown::Both);
        }
        drop(channels);
        // The counter of an eventfd that nobody reads cannot overflow from a single write.
        let _ = rustix::io::write(&self.shared.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.acceptor.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn channels(&self) -> std::sync::MutexGuard<'_, Channels> {
        lock(&self.channels)
    }

    /// A stranger's number; none if the agent is stopping. It takes the place of the oldest if there is no other.
    fn enter(&self, tcp: &TcpStream) -> io::Result<Option<u64>> {
        let mut channels = self.channels();
        if channels.stopping {
            return Ok(None);
        }
        let ours = tcp.try_clone()?;
        if channels.strangers.len() >= MAX_STRANGERS
            && let Some((_, oldest)) = channels.strangers.pop_first()
        {
            // Its thread finds the end of the stream, and ends.
            let _ = oldest.shutdown(Shutdown::Both);
        }
        channels.next += 1;
        let id = channels.next;
        channels.strangers.insert(id, ours);
        Ok(Some(id))
    }

    /// Stranger `id` has proven who it is; whether there is a place for it as a peer.
    fn is_known(&self, id: u64) -> bool {
        let mut channels = self.channels();
        if channels.peers.len() >= MAX_CHANNELS {
            return false;
        }
        let Some(tcp) = channels.strangers.remove(&id) else { return false };
        channels.peers.insert(id, tcp);
        true
    }

    fn leave(&self, id: u64) {
        let mut channels = self.channels();
        channels.strangers.remove(&id);
        channels.peers.remove(&id);
    }
}

fn accept_until_stopped(listener: &TcpListener, shared: &Arc<Shared>) {
    loop {
        let mut fds = [
            PollFd::from_borrowed_fd(listener.as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(shared.stop.as_fd(), PollFlags::IN),
        ];
        if let Err(error) = poll(&mut fds, None)
            && error != rustix::io::Errno::INTR
        {
            tracing::error!(%error, "the control listener cannot wait for peers and ends");
            return;
        }
        if shared.channels().stopping {
            return;
        }
        match listener.accept() {
            Ok((tcp, from)) => {
                if let Err(error) = spawn(tcp, shared) {
                    tracing::warn!(%from, %error, "control channel refused");
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::warn!(%error, "accepting a control channel failed");
                // Woken early when the agent stops, which is looked at next in any case.
                let _ = poll(
                    &mut [PollFd::from_borrowed_fd(shared.stop.as_fd(), PollFlags::IN)],
                    Some(&ACCEPT_PAUSE),
                );
            }
        }
    }
}

fn spawn(tcp: TcpStream, shared: &Arc<Shared>) -> io::Result<()> {
    tcp.set_nonblocking(false)?;
    let Some(id) = shared.enter(&tcp)? else {
        return Err(io::Error::other("the agent is stopping"));
    };
    let shared = shared.clone();
    let leave = shared.clone();
    let spawned = thread::Builder::new().name("control".into()).spawn(move || {
        match serve(tcp, id, &shared) {
            Ok(()) | Err(ControlError::Closed { .. }) => {}
            Err(error) => tracing::info!(%error, "control channel ended"),
        }
        shared.leave(id);
    });
    spawned.map(drop).inspect_err(|_| leave.leave(id))
}

fn serve(tcp: TcpStream, id: u64, shared: &Shared) -> Result<(), ControlError> {
    let until = Instant::now() + HELLO_WITHIN;
    let mut channel = Channel::server(tcp, &shared.identity, until)?;
    let ended = converse(&mut channel, id, shared, until);
    if let Err(error @ ControlError::Message { .. }) = &ended {
        // The peer learns once what was wrong; whether it listens does not matter, the channel ends.
        let last = refused(Refusal::Failed, Generation(0), error.to_string());
        let _ = channel.send(&last, Instant::now() + HELLO_WITHIN);
    }
    ended
}

fn converse(channel: &mut Channel, id: u64, shared: &Shared, until: Instant) -> Result<(), ControlError> {
    let mut session = match greet(channel, shared, until)? {
        Ok(greeted) => greeted,
        Err(refusal) => return channel.send(&refusal, until),
    };
    if !shared.is_known(id) {
        let text = format!("{MAX_CHANNELS} channels are open, the limit of this agent");
        return channel.send(&refused(Refusal::Failed, Generation(0), text), until);
    }
    let hello = Answer::HelloOk {
        node: shared.identity.node().to_owned(),
        agent: env!("CARGO_PKG_VERSION").to_owned(),
    };
    channel.send(&hello, until)?;
    loop {
        let answer = match channel.receive(Instant::now() + IDLE_LIMIT)? {
            Ask::Hello { .. } => refused(Refusal::OutOfOrder, Generation(0), "Hello comes once, and first"),
            ask => session.answer(ask),
        };
        channel.send(&answer, Instant::now() + ANSWER_WITHIN)?;
    }
}

type Greeted = Result<Box<dyn PeerSession>, Answer>;

fn greet(channel: &mut Channel, shared: &Shared, until: Instant) -> Result<Greeted, ControlError> {
    let no = |reason, text: String| Ok(Err(refused(reason, Generation(0), text)));
    match channel.receive(until)? {
        Ask::Hello { node, .. } if !node.eq_ignore_ascii_case(channel.peer()) => {
            let holder = channel.peer();
            no(Refusal::NotAdmitted, format!("{holder}'s certificate is not {node}'s: check `[tls]` there"))
        }
        Ask::Hello { .. } => match shared.responder.admit(channel.peer()) {
            Ok(session) => Ok(Ok(session)),
            Err(why) => no(Refusal::NotAdmitted, why),
        },
        _ => no(Refusal::OutOfOrder, "Hello comes first".to_owned()),
    }
}
