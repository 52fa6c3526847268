//! The bytes on the wire: frames, their encoding, and a decoder that takes them in pieces of any size.
//!
//! `docs/fabric.md` draws this file. Little-endian (as is the only machine we run on), fixed layout; any change
//! raises [`VERSION`]. A frame is a header of [`HEADER`] bytes and, for writes and replies, a payload. Nothing
//! here knows sockets or memory, so tests and fuzzers drive it with plain bytes.

use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// Version of the frames; a connection begins by comparing it (see `hello`), and every header repeats it.
pub const VERSION: u8 = 1;

/// Bytes of a header.
pub const HEADER: usize = size_of::<RawHeader>();

/// Largest payload of one frame. Longer requests travel as several frames, so that an acknowledgement or a
/// reply waits for a quarter of a mebibyte at most, while the header still costs less than 0.02 %.
pub const MAX_PAYLOAD: u32 = 256 << 10;

/// Longest read: its length is 32 bit on the wire, and a peer must not ask for more than a ring at once.
pub const MAX_READ: u32 = 1 << 30;

/// The header as it stands on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RawHeader {
    version: u8,
    kind: u8,
    flags: u16,
    len: u32,
    seq: u64,
    key: u64,
    offset: u64,
    immediate: u32,
    reserved: u32,
}

const _: () = assert!(HEADER == 40);

const WRITE: u8 = 1;
const READ: u8 = 2;
const REPLY: u8 = 3;
const ACK: u8 = 4;
const REVOKED: u8 = 5;
const REFUSED: u8 = 6;

/// The last frame of its request.
const LAST: u16 = 1;
/// `immediate` means something.
const IMMEDIATE: u16 = 2;

/// What a frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// `len` bytes follow, for `offset` of the receiver's registration `key`.
    Write {
        /// Number of the request: 1 for the first request of a connection, up by one with each.
        seq: u64,
        /// Registration.
        key: u64,
        /// First byte in it.
        offset: u64,
        /// Bytes that follow.
        len: u32,
        /// No more frames of this request.
        last: bool,
        /// Raised at the receiver once the request has landed; only on the last frame.
        immediate: Option<u32>,
    },
    /// Asks for `len` bytes from `offset` of the receiver's registration `key`.
    Read {
        /// Number of the request, in one sequence with the writes.
        seq: u64,
        /// Registration.
        key: u64,
        /// First byte in it.
        offset: u64,
        /// Bytes wanted.
        len: u32,
    },
    /// `len` bytes follow, the next ones of the answer to read `seq`.
    Reply {
        /// The read.
        seq: u64,
        /// Bytes that follow.
        len: u32,
        /// The answer is complete.
        last: bool,
    },
    /// Every write up to and including `seq` has landed.
    Ack {
        /// The newest request that is done.
        seq: u64,
    },
    /// The sender has taken the receiver's access away; nothing follows.
    Revoked,
    /// Request `seq` broke the rules of access; nothing follows.
    Refused {
        /// The request.
        seq: u64,
        /// Why.
        reason: Refusal,
    },
}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Refusal {
    /// No live registration has that key.
    Key = 1,
    /// The bytes lie outside the registration.
    Bounds = 2,
    /// The registration does not allow it.
    Access = 3,
}

/// Why bytes are not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Another version.
    #[error("frame version {0}, expected {VERSION}")]
    Version(u8),
    /// No such kind.
    #[error("unknown frame kind {0}")]
    Kind(u8),
    /// Longer than allowed.
    #[error("frame of {0} bytes, longer than allowed")]
    Length(u32),
    /// A field that this kind does not have is not zero, or a value has no meaning.
    #[error("meaningless field in a frame of kind {0}")]
    Field(u8),
}

impl Frame {
    /// The frame's header.
    pub fn encode(&self) -> [u8; HEADER] {
        let mut raw = RawHeader::new_zeroed();
        raw.version = VERSION;
        match *self {
            Frame::Write { seq, key, offset, len, last, immediate } => {
                (raw.kind, raw.seq, raw.key, raw.offset, raw.len) = (WRITE, seq, key, offset, len);
                raw.flags = if last { LAST } else { 0 } | if immediate.is_some() { IMMEDIATE } else { 0 };
                raw.immediate = immediate.unwrap_or(0);
            }
            Frame::Read { seq, key, offset, len } => {
                (raw.kind, raw.seq, raw.key, raw.offset, raw.len) = (READ, seq, key, offset, len);
            }
            Frame::Reply { seq, len, last } => {
                (raw.kind, raw.seq, raw.len) = (REPLY, seq, len);
                raw.flags = if last { LAST } else { 0 };
            }
            Frame::Ack { seq } => (raw.kind, raw.seq) = (ACK, seq),
            Frame::Revoked => raw.kind = REVOKED,
            Frame::Refused { seq, reason } => {
                (raw.kind, raw.seq, raw.immediate) = (REFUSED, seq, reason as u32);
            }
        }
        raw.as_bytes().try_into().expect("a header's size")
    }

    /// The frame that a header stands for.
    pub fn decode(bytes: &[u8; HEADER]) -> Result<Frame, FrameError> {
        let raw = RawHeader::read_from_bytes(bytes).expect("a header's size");
        if raw.version != VERSION {
            return Err(FrameError::Version(raw.version));
        }
        let last = raw.flags & LAST != 0;
        let frame = match raw.kind {
            WRITE => Frame::Write {
                seq: raw.seq,
                key: raw.key,
                offset: raw.offset,
                len: raw.len,
                last,
                immediate: (raw.flags & IMMEDIATE != 0).then_some(raw.immediate),
            },
            READ => Frame::Read { seq: raw.seq, key: raw.key, offset: raw.offset, len: raw.len },
            REPLY => Frame::Reply { seq: raw.seq, len: raw.len, last },
            ACK => Frame::Ack { seq: raw.seq },
            REVOKED => Frame::Revoked,
            REFUSED => Frame::Refused {
                seq: raw.seq,
                reason: Refusal::from_code(raw.immediate).ok_or(FrameError::Field(REFUSED))?,
            },
            other => return Err(FrameError::Kind(other)),
        };
        let longest = if raw.kind == READ { MAX_READ } else { MAX_PAYLOAD };
        if raw.len > longest {
            return Err(FrameError::Length(raw.len));
        }
        // An empty frame that is not the last moves nothing, and only the last may raise an event.
        let idle = matches!(frame, Frame::Write { last: false, len, immediate, .. } if len == 0 || immediate.is_some())
            || matches!(frame, Frame::Reply { last: false, len: 0, .. });
        // What the kind has no use for is zero: exactly the bytes that we would have sent.
        if idle || frame.encode() != *bytes {
            return Err(FrameError::Field(raw.kind));
        }
        Ok(frame)
    }

    /// Bytes that follow the header.
    pub fn payload(&self) -> u32 {
        match *self {
            Frame::Write { len, .. } | Frame::Reply { len, .. } => len,
            _ => 0,
        }
    }
}

impl Refusal {
    fn from_code(code: u32) -> Option<Refusal> {
        [Refusal::Key, Refusal::Bounds, Refusal::Access].into_iter().find(|r| *r as u32 == code)
    }

    /// For a message.
    pub fn as_str(self) -> &'static str {
        match self {
            Refusal::Key => "no registration has this key",
            Refusal::Bounds => "bytes outside the registration",
            Refusal::Access => "the registration does not allow this access",
        }
    }
}

/// What a decoder found next.
#[derive(Debug, PartialEq, Eq)]
pub enum Item<'a> {
    /// A header; its payload follows as items of its own.
    Frame(Frame),
    /// The next bytes of the payload of the frame found last.
    Payload(&'a [u8]),
}

/// Cuts a stream into frames. Holds at most one partial header; payloads pass through.
#[derive(Debug)]
pub struct Decoder {
    header: [u8; HEADER],
    have: usize,
    payload_left: usize,
}

impl Default for Decoder {
    fn default() -> Self {
        Decoder { header: [0; HEADER], have: 0, payload_left: 0 }
    }
}

impl Decoder {
    /// Takes the next item from the front of `input`; `None` when `input` is used up. After an error the stream
    /// means nothing any more.
    pub fn next<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Item<'a>>, FrameError> {
        if self.payload_left > 0 {
            let n = self.payload_left.min(input.len());
            let (payload, rest) = input.split_at(n);
            *input = rest;
            self.payload_left -= n;
            return Ok((n > 0).then_some(Item::Payload(payload)));
        }
        let n = (HEADER - self.have).min(input.len());
        let (part, rest) = input.split_at(n);
        self.header[self.have..self.have + n].copy_from_slice(part);
        self.have += n;
        *input = rest;
        if self.have < HEADER {
            return Ok(None);
        }
        let frame = Frame::decode(&self.header)?;
        self.have = 0;
        self.payload_left = frame.payload() as usize;
        Ok(Some(Item::Frame(frame)))
    }

    /// Bytes of the current payload that have not passed yet.
    pub fn payload_left(&self) -> usize {
        self.payload_left
    }

    /// Says that `n` bytes of the current payload went from the socket to their place without passing here.
    pub fn bypassed(&mut self, n: usize) {
        assert!(n <= self.payload_left, "{n} bytes past a payload's end");
        self.payload_left -= n;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frames() -> impl Strategy<Value = Frame> {
        let len = 0..=MAX_PAYLOAD;
        prop_oneof![
            (any::<[u64; 3]>(), len.clone(), any::<bool>(), any::<Option<u32>>()).prop_map(
                |([seq, key, offset], len, last, immediate)| {
                    let last = last || len == 0;
                    Frame::Write { seq, key, offset, len, last, immediate: immediate.filter(|_| last) }
                }
            ),
            (any::<[u64; 3]>(), 0..=MAX_READ).prop_map(|([seq, key, offset], len)| Frame::Read {
                seq,
                key,
                offset,
                len
            }),
            (any::<u64>(), len, any::<bool>()).prop_map(|(seq, len, last)| Frame::Reply {
                seq,
                len,
                last: last || len == 0
            }),
            any::<u64>().prop_map(|seq| Frame::Ack { seq }),
            Just(Frame::Revoked),
            (any::<u64>(), 1u32..=3)
                .prop_map(|(seq, code)| Frame::Refused { seq, reason: Refusal::from_code(code).unwrap() }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(frame in frames()) {
            prop_assert_eq!(Frame::decode(&frame.encode()), Ok(frame));
        }

        #[test]
        fn whatever_is_decoded_is_what_would_be_encoded(bytes in any::<[u8; HEADER]>(), kind in 0u8..8, small in any::<bool>()) {
            let mut bytes = bytes;
            (bytes[0], bytes[1]) = (VERSION, kind);
            if small { bytes[6..8].fill(0); bytes[3] = 0; bytes[36..].fill(0); }
            if let Ok(frame) = Frame::decode(&bytes) {
                prop_assert_eq!(frame.encode(), bytes);
            }
        }

        #[test]
        fn cutting_the_stream_anywhere_changes_nothing(
            frames in prop::collection::vec(frames(), 1..6),
            cuts in prop::collection::vec(1usize..200, 1..40),
        ) {
            let mut stream = Vec::new();
            let mut expected = Vec::new();
            for frame in frames {
                let frame = shortened(frame);
                stream.extend_from_slice(&frame.encode());
                stream.extend((0..frame.payload()).map(|i| i as u8));
                expected.push(frame);
            }
            let (mut decoder, mut seen, mut payload) = (Decoder::default(), Vec::new(), 0);
            let (mut rest, mut cut) = (&stream[..], cuts.iter().cycle());
            while !rest.is_empty() {
                let (mut piece, after) = rest.split_at((*cut.next().unwrap()).min(rest.len()));
                rest = after;
                while let Some(item) = decoder.next(&mut piece).unwrap() {
                    match item {
                        Item::Frame(frame) => { seen.push(frame); payload = 0; }
                        Item::Payload(bytes) => for byte in bytes {
                            prop_assert_eq!(*byte, payload as u8);
                            payload += 1;
                        }
                    }
                }
            }
            prop_assert_eq!(seen, expected);
            prop_assert_eq!(decoder.payload_left(), 0);
        }
    }

    fn shortened(frame: Frame) -> Frame {
        match frame {
            Frame::Write { seq, key, offset, len, last, immediate } => {
                Frame::Write { seq, key, offset, len: len.min(1 + len % 600), last, immediate }
            }
            Frame::Reply { seq, len, last } => Frame::Reply { seq, len: len.min(1 + len % 600), last },
            other => other,
        }
    }

    #[test]
    fn a_write_has_golden_bytes() {
        let frame = Frame::Write {
            seq: 0x0102030405060708,
            key: 0x1112131415161718,
            offset: 0x2122232425262728,
            len: 0x00012345,
            last: true,
            immediate: Some(0xa1a2a3a4),
        };
        assert_eq!(
            frame.encode(),
            [
                1, 1, 3, 0, 0x45, 0x23, 1, 0, 8, 7, 6, 5, 4, 3, 2, 1, 0x18, 0x17, 0x16, 0x15, 0x14, 0x13,
                0x12, 0x11, 0x28, 0x27, 0x26, 0x25, 0x24, 0x23, 0x22, 0x21, 0xa4, 0xa3, 0xa2, 0xa1, 0, 0, 0,
                0
            ]
        );
    }

    #[test]
    fn the_other_kinds_have_golden_bytes() {
        let head = |frame: Frame| {
            let bytes = frame.encode();
            assert!(bytes[36..].iter().all(|b| *b == 0));
            (bytes[..4].to_vec(), bytes[4], bytes[8], bytes[16], bytes[24], bytes[32])
        };
        let read = Frame::Read { seq: 9, key: 8, offset: 7, len: 6 };
        assert_eq!(head(read), (vec![1, 2, 0, 0], 6, 9, 8, 7, 0));
        assert_eq!(head(Frame::Reply { seq: 9, len: 6, last: true }), (vec![1, 3, 1, 0], 6, 9, 0, 0, 0));
        assert_eq!(head(Frame::Ack { seq: 9 }), (vec![1, 4, 0, 0], 0, 9, 0, 0, 0));
        assert_eq!(head(Frame::Revoked), (vec![1, 5, 0, 0], 0, 0, 0, 0, 0));
        let refused = Frame::Refused { seq: 9, reason: Refusal::Access };
        assert_eq!(head(refused), (vec![1, 6, 0, 0], 0, 9, 0, 0, 3));
    }

    #[test]
    fn what_means_nothing_is_rejected() {
        let good = Frame::Write { seq: 1, key: 2, offset: 3, len: 4, last: true, immediate: None }.encode();
        let broken = |at: usize, value: u8| {
            let mut bytes = good;
            bytes[at] = value;
            Frame::decode(&bytes)
        };
        assert_eq!(broken(0, 2), Err(FrameError::Version(2)));
        assert_eq!(broken(1, 0), Err(FrameError::Kind(0)));
        assert_eq!(broken(1, 7), Err(FrameError::Kind(7)));
        assert_eq!(broken(2, 4), Err(FrameError::Field(WRITE)), "unknown flag");
        assert_eq!(broken(7, 1), Err(FrameError::Length(0x0100_0004)));
        assert_eq!(broken(32, 1), Err(FrameError::Field(WRITE)), "immediate without its flag");
        assert_eq!(broken(36, 1), Err(FrameError::Field(WRITE)), "reserved");
        let ack = Frame::Ack { seq: 1 };
        let mut bytes = ack.encode();
        bytes[16] = 1;
        assert_eq!(Frame::decode(&bytes), Err(FrameError::Field(ACK)), "an acknowledgement has no key");
        let mut bytes = Frame::Refused { seq: 1, reason: Refusal::Key }.encode();
        bytes[32] = 9;
        assert_eq!(Frame::decode(&bytes), Err(FrameError::Field(REFUSED)), "unknown reason");
    }
}
