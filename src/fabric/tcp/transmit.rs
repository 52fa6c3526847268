//! The sending half of a connection: gathers frames and hands them to the wire.
//!
//! Small payloads are copied behind their headers, so that many small writes leave in one system call; large ones
//! are sent from registered memory as they stand.

use std::io;
use std::sync::Mutex;

use super::exchange::Exchange;
use super::frame::{Frame, HEADER};
use crate::fabric::meeting::Payload;
use crate::fabric::meeting::Wire;
use crate::locks::lock;

/// Up to here copying is cheaper than another piece in a system call.
const COPIED: usize = 4 << 10;

/// Bytes gathered before they are sent.
const GATHERED: usize = 64 << 10;

/// What is on its way to the socket.
#[derive(Default)]
pub struct Transmitter {
    /// Headers and small payloads; `gathered[sent..]` is still to go.
    gathered: Vec<u8>,
    sent: usize,
    /// Follows `gathered`.
    bulk: Option<Payload>,
    /// A frame was left unfinished: nothing may follow it.
    broken: bool,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing is left to send.
    Idle,
    /// The socket takes no more for now.
    Blocked,
    /// The budget is used up.
    More,
}

impl Transmitter {
    /// Sends frames until there are none, the socket is full, or `budget` bytes have gone.
    pub fn run(&mut self, wire: &Wire, exchange: &Mutex<Exchange>, budget: usize) -> io::Result<Progress> {
        let mut gone = 0;
        loop {
            if self.at_boundary() {
                self.gather(exchange);
            }
            if self.at_boundary() {
                return blocked_is_progress(wire.flush().map(|()| Progress::Idle));
            }
            if gone >= budget {
                return Ok(Progress::More);
            }
            match self.send(wire) {
                Ok(n) => gone += n,
                other => return blocked_is_progress(other.map(|_| Progress::More)),
            }
        }
    }

    /// Finishes the frame that is on its way and sends `farewell` after it; whether it has gone.
    pub fn finish(&mut self, wire: &Wire, farewell: &mut Option<Frame>) -> io::Result<bool> {
        loop {
            if self.at_boundary() {
                match farewell.take() {
                    Some(frame) => {
                        self.clear();
                        self.gathered.extend_from_slice(&frame.encode());
                    }
                    None => return would_block_is_false(wire.flush().map(|()| true)),
                }
            }
            match self.send(wire) {
                Ok(_) => {}
                other => return would_block_is_false(other.map(|_| false)),
            }
        }
    }

    /// Lets go of the caller's memory, whatever is unfinished.
    pub fn abandon(&mut self) {
        self.broken = self.bulk.take().is_some();
    }

    fn at_boundary(&self) -> bool {
        self.sent == self.gathered.len() && self.bulk.is_none()
    }

    fn clear(&mut self) {
        self.gathered.clear();
        self.sent = 0;
    }

    fn gather(&mut self, exchange: &Mutex<Exchange>) {
        self.clear();
        while self.gathered.len() < GATHERED - COPIED - HEADER {
            let Some((frame, payload)) = lock(exchange).next_frame() else { break };
            self.gathered.extend_from_slice(&frame.encode());
            match payload {
                Some(p) if p.len > COPIED => {
                    self.bulk = Some(p);
                    break;
                }
                Some(p) => {
                    let start = self.gathered.len();
                    self.gathered.resize(start + p.len, 0);
                    p.memory.read(p.offset, &mut self.gathered[start..]);
                }
                None => {}
            }
        }
    }

    fn send(&mut self, wire: &Wire) -> io::Result<usize> {
        if self.broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let head = &self.gathered[self.sent..];
        let taken = wire.send(head, self.bulk.as_ref())?;
        let of_head = taken.min(head.len());
        self.sent += of_head;
        if let Some(bulk) = &mut self.bulk {
            bulk.offset += taken - of_head;
            bulk.len -= taken - of_head;
            if bulk.len == 0 {
                self.bulk = None;
            }
        }
        Ok(taken)
    }
}

fn blocked_is_progress(result: io::Result<Progress>) -> io::Result<Progress> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(Progress::Blocked),
        other => other,
    }
}

fn would_block_is_false(result: io::Result<bool>) -> io::Result<bool> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(false),
        other => other,
    }
}
