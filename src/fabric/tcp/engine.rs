//! The thread of one connection: lands what comes, answers reads, sends what callers could not, and ends the
//! connection in an orderly way.
//!
//! It always reads, whatever the state of its own sending: two peers that send bulk to each other never wait in a circle.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::exchange::{End, farewell};
use super::lander::Lander;
use super::link::Link;
use crate::locks::lock;

/// Received through a buffer: headers, and payloads of small frames.
const BUFFER: usize = 64 << 10;

/// Behind a payload that goes straight to its place: headers of the frames after it. Small, since payload bytes that
/// land here are copied once more.
const TAIL: usize = 4 << 10;

/// Payloads with this much left are received straight into their place.
const DIRECT: usize = 8 << 10;

/// Bytes landed before they are acknowledged and what waits to be sent is looked at.
const RECEIVE_TURN: usize = 1 << 20;

/// How long the other side gets to read why its access ended, while what it still sends is thrown away. A close
/// at once would reset the connection and take the reason with it.
const LINGER: Duration = Duration::from_secs(1);

/// Runs the connection until it ends.
pub fn run(link: Arc<Link>) {
    let mut engine =
        Engine { lander: Lander::new(link.registry.clone()), buffer: vec![0; BUFFER], link, drained: false };
    let end = engine.serve();
    // From here on nothing lands, whatever comes.
    engine.link.registry.close();
    lock(engine.link.exchange()).finish(end.clone(), &engine.link.peer);
    engine.link.tell();
    tracing::debug!(peer = engine.link.peer, ?end, "fabric connection ended");
    engine.part(&end);
    engine.link.wire.shut();
}

struct Engine {
    link: Arc<Link>,
    lander: Lander,
    buffer: Vec<u8>,
    /// The socket had nothing more when it was last read, as far as is known.
    drained: bool,
}

impl Engine {
    fn serve(&mut self) -> End {
        loop {
            if let Err(end) = self.receive_turn() {
                return self.reason(end);
            }
            let more = self.link.pump_engine();
            self.link.tell();
            if let Some(doom) = self.link.signals.doomed() {
                return self.reason(doom);
            }
            if self.drained
                && let Err(e) = self.sleep(!more)
            {
                return lost(&e);
            }
        }
    }

    /// What to say when several reasons meet: ours come first, but where only sending failed, the peer may have said
    /// why before it closed.
    fn reason(&mut self, end: End) -> End {
        let end = match self.link.signals.doomed() {
            Some(doom) if !matches!(doom, End::Lost(_)) => return doom,
            _ => end,
        };
        if !matches!(end, End::Lost(_)) {
            return end;
        }
        loop {
            match self.receive_turn() {
                Err(End::Lost(_)) => return end,
                Err(said) => return said,
                Ok(0) => return end,
                Ok(_) => {}
            }
        }
    }

    /// Lands what has come, up to a turn's worth; returns how many bytes that was.
    fn receive_turn(&mut self) -> Result<usize, End> {
        let mut landed = 0;
        self.drained = false;
        while landed < RECEIVE_TURN {
            match self.receive() {
                Ok(Received { bytes, drained }) => {
                    landed += bytes;
                    self.drained = drained;
                    if drained {
                        break;
                    }
                }
                Err(end) => return Err(end),
            }
        }
        Ok(landed)
    }

    fn receive(&mut self) -> Result<Received, End> {
        let Some(gate) = self.link.registry.enter() else { return Err(End::RevokedHere) };
        let exchange = self.link.exchange();
        if let Some(place) = self.lander.direct(&gate)?.filter(|p| p.len >= DIRECT)
            && let Some(result) = self.link.wire.recv_direct(&place, &mut self.buffer[..TAIL])
        {
            let n = arrived(result)?;
            if n == 0 {
                return Ok(Received { bytes: 0, drained: true });
            }
            let straight = n.min(place.len);
            self.lander.received(straight, exchange)?;
            self.lander.feed(&self.buffer[..n - straight], exchange, &gate)?;
            return Ok(Received { bytes: n, drained: n < place.len + TAIL });
        }
        // In the middle of bulk the next payload is better received in place, too.
        let room =
            if self.lander.frame_bytes() >= DIRECT && !self.link.wire.encrypted() { TAIL } else { BUFFER };
        let n = arrived(self.link.wire.recv(&mut self.buffer[..room]))?;
        self.lander.feed(&self.buffer[..n], exchange, &gate)?;
        // TLS keeps decrypted bytes that poll(2) knows nothing of: only "nothing there" means that there is nothing.
        let drained = n == 0 || (n < room && !self.link.wire.encrypted());
        Ok(Received { bytes: n, drained })
    }

    /// Waits for the socket or the bell.
    fn sleep(&self, may_block: bool) -> io::Result<()> {
        let timeout = if may_block { None } else { Some(Duration::ZERO) };
        self.poll(self.link.blocked(), timeout)
    }

    fn poll(&self, for_sending: bool, timeout: Option<Duration>) -> io::Result<()> {
        let (wire, bell) = (&self.link.wire, self.link.signals.bell());
        let interest = if for_sending { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let mut fds = [PollFd::new(wire, interest), PollFd::new(bell, PollFlags::IN)];
        let timeout =
            timeout.map(|t| Timespec { tv_sec: t.as_secs() as i64, tv_nsec: t.subsec_nanos().into() });
        match poll(&mut fds, timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => return Ok(()),
            other => other?,
        };
        if fds[1].revents().contains(PollFlags::IN) {
            self.link.signals.hush();
        }
        Ok(())
    }

    /// Tells the peer why, if it is to be told, and lets it read that.
    fn part(&mut self, end: &End) {
        let mut farewell = farewell(end);
        if farewell.is_none() {
            return;
        }
        let until = Instant::now() + LINGER;
        let mut told = false;
        while Instant::now() < until {
            if !told {
                match self.link.with_transmitter(|t| t.finish(&self.link.wire, &mut farewell)) {
                    Ok(true) => {
                        told = true;
                        self.link.wire.finish_sending();
                    }
                    Ok(false) => {}
                    Err(_) => return,
                }
            }
            match self.link.wire.recv(&mut self.buffer) {
                Ok(1..) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    if self.poll(!told, Some(until.saturating_duration_since(Instant::now()))).is_err() {
                        return;
                    }
                }
                Ok(0) | Err(_) => return,
            }
        }
    }
}

struct Received {
    bytes: usize,
    /// The socket had less than was asked for: ask poll(2) before asking it again.
    drained: bool,
}

/// 0: nothing there. The end of the stream is an end of the connection.
fn arrived(result: io::Result<usize>) -> Result<usize, End> {
    match result {
        Ok(0) => Err(End::Lost("the peer closed it".to_owned())),
        Ok(n) => Ok(n),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(0),
        Err(e) => Err(lost(&e)),
    }
}

fn lost(e: &io::Error) -> End {
    End::Lost(e.to_string())
}
