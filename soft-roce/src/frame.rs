//! What the host and a machine say to each other on one port: bounded binary frames, one command at a time.
//!
//! | offset | bytes | what |
//! | --- | --- | --- |
//! | 0 | 1 | [`Kind`] |
//! | 1 | 4 | number of the command, little-endian, counted by the host; 0 in `Hello` |
//! | 5 | 4 | length of the payload, little-endian, at most [`MAX_PAYLOAD`] |
//! | 9 | | payload |
//!
//! The machine sends `Hello` once it can take commands. The host sends `Start`, the machine answers with any number of
//! `Stdout` and `Stderr`, and one `Ended` or `NotStarted`. `Kill` may come at any time; of a command that has ended it
//! means nothing. Frames of an earlier command may follow its `Ended`, if a process that it left behind still writes.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

/// The longest payload: the environment of a command fits, and a broken length is noticed.
pub const MAX_PAYLOAD: usize = 1 << 20;

/// A frame's meaning, and what its payload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// To the host: commands can come.
    Hello = 1,
    /// To the machine: start this; a [`Start`] as JSON.
    Start = 2,
    /// To the machine: kill the command's process group.
    Kill = 3,
    /// To the host: bytes of its stdout.
    Stdout = 4,
    /// To the host: bytes of its stderr.
    Stderr = 5,
    /// To the host: it ended; an [`Ended`] as JSON.
    Ended = 6,
    /// To the host: it could not be started; why, as text.
    NotStarted = 7,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Kind> {
        use Kind::*;
        [Hello, Start, Kill, Stdout, Stderr, Ended, NotStarted].into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it means.
    pub kind: Kind,
    /// The command that it is about.
    pub command: u32,
    /// See [`Kind`].
    pub payload: Vec<u8>,
}

/// What to start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// Working directory.
    pub dir: String,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ended {
    /// With this exit status.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl Frame {
    /// A frame whose payload is `payload` as it is.
    pub fn new(kind: Kind, command: u32, payload: impl Into<Vec<u8>>) -> Frame {
        Frame { kind, command, payload: payload.into() }
    }

    /// A frame whose payload is `value` as JSON.
    pub fn json(kind: Kind, command: u32, value: &impl Serialize) -> io::Result<Frame> {
        Ok(Frame::new(kind, command, serde_json::to_vec(value)?))
    }

    /// The payload of a frame made by [`Frame::json`].
    pub fn parse<'a, T: Deserialize<'a>>(&'a self) -> io::Result<T> {
        Ok(serde_json::from_slice(&self.payload)?)
    }

    /// Reads one. `UnexpectedEof` when the other side is gone, `InvalidData` for what is no frame.
    pub fn read(from: &mut impl Read) -> io::Result<Frame> {
        let mut header = [0; HEADER];
        from.read_exact(&mut header)?;
        let [kind, a, b, c, d, e, f, g, h] = header;
        let kind = Kind::from_byte(kind).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{kind} is no kind of frame"))
        })?;
        let length = u32::from_le_bytes([e, f, g, h]) as usize;
        within_limit(length)?;
        let mut payload = vec![0; length];
        from.read_exact(&mut payload)?;
        Ok(Frame { kind, command: u32::from_le_bytes([a, b, c, d]), payload })
    }

    /// Writes it in one piece.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        within_limit(self.payload.len())?;
        let mut bytes = Vec::with_capacity(HEADER + self.payload.len());
        bytes.push(self.kind as u8);
        bytes.extend(self.command.to_le_bytes());
        bytes.extend((self.payload.len() as u32).to_le_bytes());
        bytes.extend(&self.payload);
        to.write_all(&bytes)
    }
}

fn within_limit(length: usize) -> io::Result<()> {
    if length <= MAX_PAYLOAD {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidData,
        format!("a frame of {length} bytes; {MAX_PAYLOAD} is the most"),
    ))
}

const HEADER: usize = 9;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_read_as_it_was_written() {
        let start =
            Start { argv: vec!["true".into()], env: vec![("A".into(), "b c".into())], dir: "/".into() };
        let frames = [
            Frame::new(Kind::Hello, 0, []),
            Frame::json(Kind::Start, 7, &start).unwrap(),
            Frame::new(Kind::Stderr, 0x0102_0304, *b"text"),
        ];
        let mut bytes = Vec::new();
        frames.iter().for_each(|frame| frame.write(&mut bytes).unwrap());
        let mut from = &bytes[..];
        let read: Vec<_> = frames.iter().map(|_| Frame::read(&mut from).unwrap()).collect();
        assert_eq!(read, frames);
        assert_eq!(read[1].parse::<Start>().unwrap(), start);
        assert_eq!(Frame::read(&mut from).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn the_layout_is_as_documented() {
        let mut bytes = Vec::new();
        Frame::new(Kind::Kill, 0x0102_0304, *b"x").write(&mut bytes).unwrap();
        assert_eq!(bytes, [3, 4, 3, 2, 1, 1, 0, 0, 0, b'x']);
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        for bytes in [[99, 0, 0, 0, 0, 0, 0, 0, 0], [4, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]] {
            assert_eq!(Frame::read(&mut &bytes[..]).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
        let long = Frame::new(Kind::Stdout, 1, vec![0; MAX_PAYLOAD + 1]);
        assert_eq!(long.write(&mut Vec::new()).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
