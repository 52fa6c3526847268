//! The receiving half of a connection: takes the peer's bytes in pieces of any size, puts payloads into
//! registered memory and everything else into the [`Exchange`]. Knows no sockets, so that tests cut the stream
//! where they like.
//!
//! Whoever calls holds the registry's gate ([`Landing`]).

use std::sync::{Arc, Mutex};

use super::exchange::{End, Exchange};
use super::frame::{Decoder, Frame, Item};
use super::locked;
use super::registry::{Landing, Region, Registry, Wanted};
use super::requests::{Payload, Unasked};
use crate::region::memory::SharedMem;

/// Where the stream stands.
pub struct Lander {
    registry: Arc<Registry>,
    decoder: Decoder,
    place: Option<Place>,
    /// The newest request of the peer's that is complete here.
    done: u64,
    /// Whether request `done + 1` is a write of which frames are still to come.
    in_write: bool,
    /// Payload bytes of the newest frame.
    frame_bytes: usize,
}

/// Where the current payload goes, and what follows when it has.
struct Place {
    kind: Kind,
    memory: Arc<SharedMem>,
    at: usize,
}

enum Kind {
    Write { seq: u64, region: Arc<Region>, last: bool, immediate: Option<u32> },
    Reply { last: bool },
}

impl Lander {
    /// A lander at the start of a stream.
    pub fn new(registry: Arc<Registry>) -> Lander {
        Lander {
            registry,
            decoder: Decoder::default(),
            place: None,
            done: 0,
            in_write: false,
            frame_bytes: 0,
        }
    }

    /// Takes the next bytes of the stream. An error is the end of the connection.
    pub fn feed(
        &mut self,
        mut input: &[u8],
        exchange: &Mutex<Exchange>,
        gate: &Landing<'_>,
    ) -> Result<(), End> {
        let unreadable = |e: super::frame::FrameError| End::Protocol(e.to_string());
        while let Some(item) = self.decoder.next(&mut input).map_err(unreadable)? {
            match item {
                Item::Frame(frame) => self.frame(frame, exchange)?,
                Item::Payload(bytes) => {
                    let place = self.checked_place(gate)?;
                    place.memory.write(place.at, bytes);
                    place.at += bytes.len();
                }
            }
            if self.decoder.payload_left() == 0 {
                self.payload_complete(exchange)?;
            }
        }
        Ok(())
    }

    /// Memory that the next bytes of the stream may be received into directly; then call [`Lander::received`].
    pub fn direct(&mut self, gate: &Landing<'_>) -> Result<Option<Payload>, End> {
        let len = self.decoder.payload_left();
        if len == 0 {
            return Ok(None);
        }
        let place = self.checked_place(gate)?;
        Ok(Some(Payload { memory: place.memory.clone(), offset: place.at, len }))
    }

    /// `n` bytes went straight to where [`Lander::direct`] said.
    pub fn received(&mut self, n: usize, exchange: &Mutex<Exchange>) -> Result<(), End> {
        self.decoder.bypassed(n);
        if let Some(place) = &mut self.place {
            place.at += n;
        }
        if self.decoder.payload_left() == 0 { self.payload_complete(exchange) } else { Ok(()) }
    }

    /// Payload bytes of the newest frame: tells bulk from chatter.
    pub fn frame_bytes(&self) -> usize {
        self.frame_bytes
    }

    fn frame(&mut self, frame: Frame, exchange: &Mutex<Exchange>) -> Result<(), End> {
        self.frame_bytes = frame.payload() as usize;
        match frame {
            Frame::Write { seq, key, offset, len, last, immediate } => {
                self.expect(seq)?;
                self.in_write = !last;
                let region = self.resolve(seq, key, offset, len, Wanted::Write)?;
                let memory = region.memory().clone();
                let kind = Kind::Write { seq, region, last, immediate };
                self.place = Some(Place { kind, memory, at: offset as usize });
            }
            Frame::Read { seq, key, offset, len } => {
                if self.in_write {
                    return Err(broken("it began a read in the middle of a write"));
                }
                self.expect(seq)?;
                let region = self.resolve(seq, key, offset, len, Wanted::Read)?;
                self.done = seq;
                locked(exchange).answers.read(seq, region, offset, len).map_err(broken)?;
            }
            Frame::Reply { seq, len, last } => {
                let into = locked(exchange).requests.reply(seq, len, last).map_err(unasked)?;
                self.place = Some(Place { kind: Kind::Reply { last }, memory: into.memory, at: into.offset });
            }
            Frame::Ack { seq } => locked(exchange).requests.acknowledged(seq).map_err(unasked)?,
            Frame::Revoked => return Err(End::RevokedByPeer),
            Frame::Refused { seq, reason } => return Err(End::RefusedByPeer { seq, reason }),
        }
        Ok(())
    }

    fn payload_complete(&mut self, exchange: &Mutex<Exchange>) -> Result<(), End> {
        match self.place.take().map(|place| place.kind) {
            Some(Kind::Write { seq, last: true, immediate, .. }) => {
                self.done = seq;
                let mut exchange = locked(exchange);
                exchange.answers.landed(seq);
                immediate.map_or(Ok(()), |value| exchange.immediate(value)).map_err(broken)
            }
            Some(Kind::Reply { last: true }) => {
                locked(exchange).requests.reply_landed();
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The current payload's place, if it may still be written.
    fn checked_place(&mut self, _gate: &Landing<'_>) -> Result<&mut Place, End> {
        let place = self.place.as_mut().ok_or(broken("a payload without a frame"))?;
        match &place.kind {
            Kind::Write { seq, region, .. } if !region.live() => {
                Err(End::RefusedToPeer { seq: *seq, reason: super::frame::Refusal::Key })
            }
            _ => Ok(place),
        }
    }

    fn expect(&self, seq: u64) -> Result<(), End> {
        if seq == self.done + 1 { Ok(()) } else { Err(broken("its requests are out of sequence")) }
    }

    fn resolve(&self, seq: u64, key: u64, offset: u64, len: u32, wanted: Wanted) -> Result<Arc<Region>, End> {
        self.registry
            .resolve(key, offset, len.into(), wanted)
            .map_err(|reason| End::RefusedToPeer { seq, reason })
    }
}

fn broken(what: &'static str) -> End {
    End::Protocol(what.to_owned())
}

fn unasked(Unasked(what): Unasked) -> End {
    broken(what)
}
