//! Frames of the control channel: a fixed head and a bounded body.
//!
//! Pure: bytes in, values out. `docs/protocol.md` draws them; [`super::channel`] moves them.

/// First bytes of every frame.
pub const MAGIC: [u8; 4] = *b"PMHC";

/// Version of frames and messages; a peer of another version is refused.
pub const VERSION: u16 = 4;

/// Bytes of a frame's head.
pub const HEAD: usize = 12;

/// Largest body: the largest message is a list of names, and nothing that a peer says may cost more memory.
pub const MAX_BODY: usize = 64 << 10;

/// Which way a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Way {
    /// From the side that connected.
    Ask = 1,
    /// From the side that listens.
    Answer = 2,
}

/// The head of a frame, checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Which way it goes.
    pub way: Way,
    /// Bytes of the body, at most [`MAX_BODY`].
    pub len: usize,
}

/// Why bytes are not a frame of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not our protocol at all.
    #[error("the peer does not speak pmemha's control protocol (first bytes {0:02x?}): check the port")]
    Magic([u8; 4]),
    /// Another version.
    #[error(
        "the peer speaks version {theirs} of the control protocol, this node version {VERSION}: install the same pmemha on both"
    )]
    Version {
        /// What the peer's frame said.
        theirs: u16,
    },
    /// A type that version 1 does not have, or one that goes the other way.
    #[error("frame type {0} is not what this side of a channel receives")]
    Type(u16),
    /// A body over the limit.
    #[error("a message of {0} bytes, the limit is {MAX_BODY}")]
    Length(usize),
}

/// The frame that carries `body`.
pub fn encode(way: Way, body: &[u8]) -> Result<Vec<u8>, FrameError> {
    let len = u32::try_from(body.len()).ok().filter(|_| body.len() <= MAX_BODY);
    let len = len.ok_or(FrameError::Length(body.len()))?;
    let mut frame = Vec::with_capacity(HEAD + body.len());
    frame.extend_from_slice(&MAGIC);
    frame.extend_from_slice(&VERSION.to_le_bytes());
    frame.extend_from_slice(&(way as u16).to_le_bytes());
    frame.extend_from_slice(&len.to_le_bytes());
    frame.extend_from_slice(body);
    Ok(frame)
}

/// Checks a head.
pub fn decode(head: &[u8; HEAD]) -> Result<Head, FrameError> {
    let [m0, m1, m2, m3, v0, v1, t0, t1, l0, l1, l2, l3] = *head;
    if [m0, m1, m2, m3] != MAGIC {
        return Err(FrameError::Magic([m0, m1, m2, m3]));
    }
    let theirs = u16::from_le_bytes([v0, v1]);
    if theirs != VERSION {
        return Err(FrameError::Version { theirs });
    }
    let way = match u16::from_le_bytes([t0, t1]) {
        1 => Way::Ask,
        2 => Way::Answer,
        other => return Err(FrameError::Type(other)),
    };
    let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if len > MAX_BODY {
        return Err(FrameError::Length(len));
    }
    Ok(Head { way, len })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn frame_bytes_are_golden() {
        let frame = encode(Way::Answer, b"{}").unwrap();
        assert_eq!(frame, [b'P', b'M', b'H', b'C', 4, 0, 2, 0, 2, 0, 0, 0, b'{', b'}']);
    }

    #[test]
    fn what_is_not_a_frame_is_named() {
        let good: [u8; HEAD] = encode(Way::Ask, b"").unwrap().try_into().unwrap();
        let with = |at: usize, byte: u8| {
            let mut head = good;
            head[at] = byte;
            decode(&head)
        };
        assert_eq!(with(0, b'G'), Err(FrameError::Magic(*b"GMHC")));
        assert_eq!(with(4, 9), Err(FrameError::Version { theirs: 9 }));
        assert_eq!(with(6, 3), Err(FrameError::Type(3)));
        assert_eq!(with(10, 2), Err(FrameError::Length(2 << 16)));
        assert_eq!(with(11, 1), Err(FrameError::Length(1 << 24)));
        assert_eq!(encode(Way::Ask, &vec![0; MAX_BODY + 1]), Err(FrameError::Length(MAX_BODY + 1)));
    }

    proptest! {
        #[test]
        fn what_is_accepted_is_what_was_encoded(head: [u8; HEAD]) {
            if let Ok(h) = decode(&head) {
                let body = vec![0; h.len];
                prop_assert_eq!(&encode(h.way, &body).unwrap()[..HEAD], &head[..]);
            }
        }

        #[test]
        fn a_head_near_a_right_one_is_decoded_or_named(at in 0..HEAD, byte: u8, len in 0u32..70_000) {
            let mut head = [0; HEAD];
            head[..4].copy_from_slice(&MAGIC);
            head[4] = VERSION as u8;
            head[6] = 1;
            head[8..].copy_from_slice(&len.to_le_bytes());
            head[at] = byte;
            if let Ok(h) = decode(&head) {
                prop_assert!(h.len <= MAX_BODY);
            }
        }
    }
}
