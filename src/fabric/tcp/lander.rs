//! The receiving half of a connection: takes the peer's bytes in pieces of any size, puts payloads into
//! registered memory and everything else into the [`Exchange`]. Knows no sockets, so that tests cut the stream
//! where they like.
//!
//! Whoever calls holds the registry's gate ([`Landing`]).

use std::sync::{Arc, Mutex};

use super::exchange::{End, Exchange, Refused};
use super::frame::{Decoder, Frame, Item, Refusal};
use super::registry::{Landing, Region, Registry, Wanted};
use super::requests::Unasked;
use crate::fabric::meeting::Payload;
use crate::locks::lock;
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
                lock(exchange).answers.read(seq, region, offset, len).map_err(broken)?;
            }
            Frame::Reply { seq, len, last } => {
                let into = lock(exchange).requests.reply(seq, len, last).map_err(unasked)?;
                self.place = Some(Place { kind: Kind::Reply { last }, memory: into.memory, at: into.offset });
            }
            Frame::Ack { seq } => lock(exchange).requests.acknowledged(seq).map_err(unasked)?,
            Frame::Revoked => return Err(End::RevokedByPeer),
            Frame::Refused { seq, reason } => return Err(End::RefusedByPeer(Refused { seq, reason })),
        }
        Ok(())
    }

    fn payload_complete(&mut self, exchange: &Mutex<Exchange>) -> Result<(), End> {
        match self.place.take().map(|place| place.kind) {
            Some(Kind::Write { seq, last: true, immediate, .. }) => {
                self.done = seq;
                let mut exchange = lock(exchange);
                exchange.answers.landed(seq);
                immediate.map_or(Ok(()), |value| exchange.requests.books.immediate(value)).map_err(broken)
            }
            Some(Kind::Reply { last: true }) => {
                lock(exchange).requests.reply_landed();
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
                Err(End::RefusedToPeer(Refused { seq: *seq, reason: Refusal::Key }))
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
            .map_err(|reason| End::RefusedToPeer(Refused { seq, reason }))
    }
}

fn broken(what: &'static str) -> End {
    End::Protocol(what.to_owned())
}

fn unasked(Unasked(what): Unasked) -> End {
    broken(what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fabric::tcp::frame::MAX_PAYLOAD;
    use crate::fabric::tcp::registry::TcpRegistration;
    use crate::fabric::tcp::requests::NewWrite;
    use crate::fabric::{Completion, RemoteAccess};
    use proptest::prelude::*;

    const OPEN: u64 = 11;
    const BYTES: usize = 4096;

    /// A node that has posted a write and a read of 100 bytes, and has memory open to its peer under key [`OPEN`].
    struct Node {
        registry: Arc<Registry>,
        exchange: Mutex<Exchange>,
        lander: Lander,
        open: TcpRegistration,
        into: Arc<SharedMem>,
    }

    /// Everything that the rooms above and the peer could see of a node.
    #[derive(Debug, PartialEq)]
    struct Outcome {
        open: Vec<u8>,
        into: Vec<u8>,
        /// Numbers of completions, and whether they succeeded.
        done: Vec<(u64, bool)>,
        immediates: Vec<u32>,
        frames: Vec<Frame>,
    }

    impl Node {
        fn new() -> Node {
            let memory = || Arc::new(SharedMem::anonymous(BYTES).unwrap());
            let registry = Registry::new();
            let open = registry.register(OPEN, memory(), RemoteAccess::Write).unwrap();
            let into = memory();
            let mut exchange = Exchange::default();
            let whole = |len| Payload { memory: into.clone(), offset: 0, len };
            exchange.requests.write(NewWrite {
                from: whole(8),
                key: 1,
                offset: 0,
                immediate: None,
                signal: Some(1),
            });
            exchange.requests.read(whole(100), 1, 0, 2);
            while exchange.next_frame().is_some() {}
            let lander = Lander::new(registry.clone());
            Node { registry, exchange: Mutex::new(exchange), lander, open, into }
        }

        fn feed(&mut self, bytes: &[u8]) -> Result<(), End> {
            let gate = self.registry.enter().unwrap();
            self.lander.feed(bytes, &self.exchange, &gate)
        }

        /// As [`Node::feed`], payload bytes as the engine receives them: straight into their place.
        fn feed_direct(&mut self, mut bytes: &[u8]) -> Result<(), End> {
            let gate = self.registry.enter().unwrap();
            if let Some(place) = self.lander.direct(&gate)? {
                let straight = place.len.min(bytes.len());
                place.memory.write(place.offset, &bytes[..straight]);
                self.lander.received(straight, &self.exchange)?;
                bytes = &bytes[straight..];
            }
            self.lander.feed(bytes, &self.exchange, &gate)
        }

        fn outcome(&self) -> Outcome {
            use crate::fabric::Registration;
            let bytes = |memory: &SharedMem| {
                let mut bytes = vec![0; BYTES];
                memory.read(0, &mut bytes);
                bytes
            };
            let mut exchange = lock(&self.exchange);
            let mut done: Vec<Completion> = Vec::new();
            exchange.requests.books.poll(&mut done);
            let done = done.into_iter().map(|c| (c.id, c.result.is_ok())).collect();
            let immediates = std::iter::from_fn(|| exchange.requests.books.take_immediate()).collect();
            let frames = std::iter::from_fn(|| exchange.next_frame()).map(|(frame, _)| frame).collect();
            Outcome { open: bytes(self.open.memory()), into: bytes(&self.into), done, immediates, frames }
        }
    }

    fn put(stream: &mut Vec<u8>, frame: Frame, byte: u8) {
        stream.extend_from_slice(&frame.encode());
        stream.extend((0..frame.payload()).map(|i| byte.wrapping_add(i as u8)));
    }

    /// A peer's whole repertoire: a write in two frames with an acknowledgement between them, a read, an empty
    /// write with an immediate, and the answer to our read in two frames.
    fn stream() -> Vec<u8> {
        let mut bytes = Vec::new();
        let write =
            |seq, offset, len, last, immediate| Frame::Write { seq, key: OPEN, offset, len, last, immediate };
        put(&mut bytes, write(1, 8, 60, false, None), 1);
        put(&mut bytes, Frame::Ack { seq: 1 }, 0);
        put(&mut bytes, write(1, 68, 30, true, Some(77)), 61);
        put(&mut bytes, Frame::Read { seq: 2, key: OPEN, offset: 0, len: 200 }, 0);
        put(&mut bytes, write(3, 0, 0, true, Some(78)), 0);
        put(&mut bytes, Frame::Reply { seq: 2, len: 60, last: false }, 100);
        put(&mut bytes, Frame::Reply { seq: 2, len: 40, last: true }, 160);
        bytes
    }

    #[test]
    fn what_a_stream_means_is_what_it_says() {
        let mut node = Node::new();
        node.feed(&stream()).unwrap();
        let Outcome { open, into, done, immediates, frames } = node.outcome();
        assert!(
            open[8..98].iter().copied().eq(1..=90)
                && open[..8] == [0; 8]
                && open[98..].iter().all(|b| *b == 0)
        );
        assert!(into[..100].iter().copied().eq(100..200) && into[100..].iter().all(|b| *b == 0));
        assert_eq!(done, [(1, true), (2, true)]);
        assert_eq!(immediates, [77, 78]);
        assert_eq!(frames, [Frame::Ack { seq: 3 }, Frame::Reply { seq: 2, len: 200, last: true }]);
    }

    #[test]
    fn cutting_the_stream_at_any_byte_changes_nothing() {
        let stream = stream();
        let mut whole = Node::new();
        whole.feed(&stream).unwrap();
        let expected = whole.outcome();
        for cut in 0..=stream.len() {
            let (mut copied, mut direct) = (Node::new(), Node::new());
            for piece in [&stream[..cut], &stream[cut..]] {
                copied.feed(piece).unwrap();
                direct.feed_direct(piece).unwrap();
            }
            assert_eq!(copied.outcome(), expected, "cut at {cut}");
            assert_eq!(direct.outcome(), expected, "cut at {cut}, straight into place");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_land_only_where_they_may(
            noise in prop::collection::vec(any::<u8>(), 0..200),
            at in any::<prop::sample::Index>(),
            pieces in prop::collection::vec((1usize..50, any::<bool>()), 1..30),
        ) {
            let mut bytes = stream();
            let at = at.index(bytes.len());
            let end = (at + noise.len()).min(bytes.len());
            bytes.splice(at..end, noise);
            let mut node = Node::new();
            let (mut rest, mut pieces) = (&bytes[..], pieces.iter().cycle());
            while !rest.is_empty() {
                let (len, direct) = *pieces.next().unwrap();
                let (piece, after) = rest.split_at(len.min(rest.len()));
                rest = after;
                let fed = if direct { node.feed_direct(piece) } else { node.feed(piece) };
                if fed.is_err() { break; }
            }
            let Outcome { into, done, .. } = node.outcome();
            prop_assert!(into[100..].iter().all(|b| *b == 0), "a reply landed past its read");
            prop_assert!(done.len() <= 2);
        }
    }

    fn refused(frames: &[Frame]) -> End {
        let mut bytes = Vec::new();
        frames.iter().for_each(|frame| put(&mut bytes, *frame, 1));
        Node::new().feed(&bytes).unwrap_err()
    }

    #[test]
    fn requests_out_of_sequence_end_the_connection() {
        let write = |seq, last| Frame::Write { seq, key: OPEN, offset: 0, len: 8, last, immediate: None };
        let read = |seq| Frame::Read { seq, key: OPEN, offset: 0, len: 8 };
        let protocol = |frames: &[Frame]| assert!(matches!(refused(frames), End::Protocol(_)), "{frames:?}");
        protocol(&[write(2, true)]);
        protocol(&[write(1, true), write(1, true)]);
        protocol(&[write(1, false), write(2, true)]);
        protocol(&[write(1, false), read(1)]);
        protocol(&[read(2)]);
        protocol(&[Frame::Ack { seq: 3 }]);
        protocol(&[Frame::Reply { seq: 1, len: 8, last: true }]);
        protocol(&[Frame::Reply { seq: 2, len: 101, last: true }]);
    }

    #[test]
    fn requests_outside_memory_are_refused_by_number() {
        let write = |key, offset, len| Frame::Write { seq: 1, key, offset, len, last: true, immediate: None };
        let because = |reason| End::RefusedToPeer(Refused { seq: 1, reason });
        assert_eq!(refused(&[write(OPEN + 1, 0, 8)]), because(Refusal::Key));
        assert_eq!(refused(&[write(OPEN, BYTES as u64 - 7, 8)]), because(Refusal::Bounds));
        assert_eq!(refused(&[write(OPEN, u64::MAX, 8)]), because(Refusal::Bounds));
        assert_eq!(refused(&[write(OPEN, 0, MAX_PAYLOAD)]), because(Refusal::Bounds));
        assert_eq!(
            refused(&[Frame::Read { seq: 1, key: OPEN, offset: 1, len: BYTES as u32 }]),
            because(Refusal::Bounds)
        );
    }

    #[test]
    fn a_peer_cannot_pile_up_reads_or_immediates() {
        let reads: Vec<_> = (1..2000).map(|seq| Frame::Read { seq, key: OPEN, offset: 0, len: 8 }).collect();
        assert!(matches!(refused(&reads), End::Protocol(_)));
        let wakes: Vec<_> = (1..2000)
            .map(|seq| Frame::Write { seq, key: OPEN, offset: 0, len: 0, last: true, immediate: Some(1) })
            .collect();
        assert!(matches!(refused(&wakes), End::Protocol(_)));
    }

    #[test]
    fn a_registration_dropped_in_the_middle_of_a_payload_gets_no_more_of_it() {
        let mut node = Node::new();
        let mut bytes = Vec::new();
        put(
            &mut bytes,
            Frame::Write { seq: 1, key: OPEN, offset: 0, len: 100, last: true, immediate: None },
            1,
        );
        node.feed(&bytes[..80]).unwrap();
        let memory = crate::fabric::Registration::memory(&node.open).clone();
        node.open = node.registry.register(OPEN + 1, memory.clone(), RemoteAccess::Write).unwrap();
        let late = node.feed(&bytes[80..]).unwrap_err();
        assert_eq!(late, End::RefusedToPeer(Refused { seq: 1, reason: Refusal::Key }));
        let mut landed = vec![0; 100];
        memory.read(0, &mut landed);
        assert!(landed[..40].iter().copied().eq(1..=40) && landed[40..].iter().all(|b| *b == 0));
    }
}
