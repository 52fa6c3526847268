//! The thread of one connection: wakes those who wait, hears what the peer and the adapter have to say, and ends the
//! connection in an orderly way.
//!
//! It sleeps in `poll(2)` on four descriptors: the completion channel, the adapter's own events, the control connection,
//! and a bell. Once a second it looks whether the adapter is being removed; otherwise an idle connection costs nothing.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::context::AsyncEvent;
use super::ledger::{End, Suspicion};
use super::link::Link;
use super::queue::Status;
use super::words::{WORD, Word};

/// How long a failed request waits for the peer to say why: a revocation and a wrong key look alike to an adapter, and the
/// peer's word may come later than its adapter's.
const WORD_WITHIN: Duration = Duration::from_millis(500);

/// Time between two looks whether the adapter is being removed: not every adapter reports that.
const LOOK: Duration = Duration::from_secs(1);

/// How long the other side gets to read why its access ended.
const LINGER: Duration = Duration::from_secs(1);

/// Runs the connection until it ends.
pub fn run(link: Arc<Link>) {
    let mut engine =
        Engine { link, word: [0; WORD], have: 0, polls: 0, patience: None, looked: Instant::now() };
    let end = engine.serve();
    let link = &engine.link;
    // From here on nothing lands, whatever comes.
    if let Err(error) = link.silence() {
        tracing::error!(peer = link.peer, %error, "a connection could not be silenced");
    }
    link.finish(end.clone());
    link.tell();
    tracing::debug!(peer = link.peer, ?end, "verbs connection ended");
    engine.part(&end);
    engine.link.wire.shut();
}

struct Engine {
    link: Arc<Link>,
    /// A word of the peer's, as far as it has come.
    word: [u8; WORD],
    have: usize,
    /// See [`Link::rest`].
    polls: u64,
    /// Until when a failure waits for the peer's word.
    patience: Option<Instant>,
    /// When it was last looked whether the adapter is being removed.
    looked: Instant,
}

impl Engine {
    fn serve(&mut self) -> End {
        loop {
            self.link.collect();
            self.link.tell();
            if let Some(doom) = self.link.signals.doomed() {
                return match doom {
                    // The peer may have said why before it was gone.
                    End::Lost(_) => self.hear().unwrap_or(doom),
                    doom => doom,
                };
            }
            if let Some(end) = self.hear().or_else(|| self.adapter()).or_else(|| self.failure()) {
                return end;
            }
            if let Err(e) = self.sleep() {
                return End::Lost(e.to_string());
            }
        }
    }

    /// What the peer said last, or that it is gone.
    fn hear(&mut self) -> Option<End> {
        while self.have < WORD {
            match self.link.wire.recv(&mut self.word[self.have..]) {
                Ok(0) => return Some(End::Lost("the peer closed it".to_owned())),
                Ok(n) => self.have += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return None,
                Err(e) => return Some(End::Lost(e.to_string())),
            }
        }
        Some(match Word::decode(self.word) {
            Some(Word::Revoked) => End::RevokedByPeer,
            Some(Word::Refused) => End::RefusedByPeer(match self.link.suspicion() {
                Some(Suspicion::Ours(Status::RefusedByPeer(status))) => self.refused(status),
                _ => "a request: key, bounds or access".to_owned(),
            }),
            Some(Word::Ready) | None => End::Protocol("it spoke out of turn".to_owned()),
        })
    }

    /// What the adapter reports by itself.
    fn adapter(&mut self) -> Option<End> {
        let context = self.link.pair().domain().context();
        if self.looked.elapsed() >= LOOK {
            self.looked = Instant::now();
            if context.is_being_removed() {
                return Some(End::Lost(format!("the adapter {} is being removed", context.device())));
            }
        }
        while let Some(event) = context.async_event() {
            match event {
                AsyncEvent::PeerRefused => return Some(refused_to_peer()),
                AsyncEvent::Fatal(what) => return Some(End::Lost(what)),
                AsyncEvent::Note(what) => {
                    tracing::debug!(
                        peer = self.link.peer,
                        device = context.device(),
                        what,
                        "the adapter reports"
                    )
                }
            }
        }
        None
    }

    /// The end that a failed queue pair leads to, once the peer has had time to say more.
    fn failure(&mut self) -> Option<End> {
        let suspicion = self.link.suspicion()?;
        let until = *self.patience.get_or_insert_with(|| Instant::now() + WORD_WITHIN);
        match suspicion {
            Suspicion::Theirs => Some(refused_to_peer()),
            Suspicion::Ours(_) if Instant::now() < until => None,
            Suspicion::Ours(Status::RefusedByPeer(status)) => Some(End::RefusedByPeer(self.refused(status))),
            Suspicion::Ours(Status::NoAnswer(status)) => {
                Some(End::Lost(format!("the peer's adapter does not answer: {}", self.describe(status))))
            }
            Suspicion::Ours(Status::Failed(status)) => {
                Some(End::Lost(format!("a request failed: {}", self.describe(status))))
            }
            Suspicion::Ours(Status::Flushed | Status::Success) => {
                Some(End::Lost("the queue pair failed".to_owned()))
            }
        }
    }

    fn refused(&self, status: u32) -> String {
        format!("a request, as its adapter says: {}", self.describe(status))
    }

    fn describe(&self, status: u32) -> String {
        self.link.pair().queue().describe(status)
    }

    /// Waits for something to happen.
    fn sleep(&mut self) -> io::Result<()> {
        let rest = self.link.rest(&mut self.polls);
        let word = self.patience.map(|until| until.saturating_duration_since(Instant::now()));
        let look = LOOK.saturating_sub(self.looked.elapsed());
        let timeout = timespec(rest.into_iter().chain(word).fold(look, Duration::min));
        let link = &self.link;
        let (queue, adapter, bell) =
            (link.pair().queue(), link.pair().domain().context(), link.signals.bell());
        let mut fds = [
            PollFd::new(queue, PollFlags::IN),
            PollFd::new(&**adapter, PollFlags::IN),
            PollFd::new(&link.wire, PollFlags::IN),
            PollFd::new(bell, PollFlags::IN),
        ];
        match poll(&mut fds, Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => return Ok(()),
            other => other?,
        };
        if fds[..2].iter().any(|fd| fd.revents().intersects(PollFlags::ERR | PollFlags::NVAL)) {
            // Else it would say so for ever, and nobody would sleep.
            return Err(io::Error::other("the adapter was taken away"));
        }
        let [events, .., rung] = fds.map(|fd| fd.revents().contains(PollFlags::IN));
        if events && queue.take_events() {
            link.disarmed();
        }
        if rung {
            link.signals.hush();
        }
        Ok(())
    }

    /// Tells the peer why, if it is to be told, and lets it read that.
    fn part(&mut self, end: &End) {
        let word = match end {
            End::RevokedHere => Word::Revoked,
            End::RefusedToPeer(_) => Word::Refused,
            _ => return,
        };
        let wire = &self.link.wire;
        // Eight bytes after nothing else: a socket that does not take them is as good as closed.
        if wire.send(&word.encode(), None).is_err() {
            return;
        }
        wire.finish_sending();
        let until = Instant::now() + LINGER;
        // Closed with bytes unread, the connection would be reset, and the word lost with it.
        loop {
            match wire.recv(&mut [0; WORD]) {
                Ok(1..) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && Instant::now() < until => {
                    let left = timespec(until.saturating_duration_since(Instant::now()));
                    let _ = poll(&mut [PollFd::new(wire, PollFlags::IN)], Some(&left));
                }
                Ok(0) | Err(_) => return,
            }
        }
    }
}

/// Which request it was the adapter does not say.
fn refused_to_peer() -> End {
    End::RefusedToPeer("memory that it may not reach, or not in that way".to_owned())
}

fn timespec(left: Duration) -> Timespec {
    Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() }
}
