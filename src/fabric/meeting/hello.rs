//! How a connection begins: the connecting side shows the offer's token, the other says that it may stay.
//!
//! Both messages are of fixed size, so that nothing is ever read beyond them and what the fabric says can follow at once.

use std::hint::black_box;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of an offer's token.
pub const TOKEN: usize = 32;

/// Bytes of [`Hello`].
pub const HELLO: usize = size_of::<Hello>();

/// Bytes of [`Welcome`].
pub const WELCOME: usize = size_of::<Welcome>();

/// Version of these messages and of what follows them.
const VERSION: u32 = 1;

const MAGIC: [u8; 8] = *b"PMHAFABR";

/// First message of the connecting side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Hello {
    magic: [u8; 8],
    version: u32,
    reserved: u32,
    token: [u8; TOKEN],
}

/// The answer. A wrong token gets none: the connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Welcome {
    magic: [u8; 8],
    version: u32,
    /// 0: the connection may begin; 1: we do not speak the version asked for.
    status: u32,
}

const _: () = assert!(HELLO == 48 && WELCOME == 16);

/// What a listener thinks of a [`Hello`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// It presents this token.
    Token([u8; TOKEN]),
    /// A pmemha of another version; it is told so.
    OtherVersion(u32),
    /// Not one of ours.
    Noise,
}

impl Hello {
    /// Presents `token`.
    pub fn new(token: [u8; TOKEN]) -> Hello {
        Hello { magic: MAGIC, version: VERSION, reserved: 0, token }
    }

    /// Judges what came.
    pub fn hear(bytes: &[u8; HELLO]) -> Heard {
        let hello = Hello::read_from_bytes(bytes).expect("a hello's size");
        match hello {
            Hello { magic, .. } if magic != MAGIC => Heard::Noise,
            Hello { version, .. } if version != VERSION => Heard::OtherVersion(version),
            Hello { reserved: 0, token, .. } => Heard::Token(token),
            _ => Heard::Noise,
        }
    }
}

impl Welcome {
    /// Come in.
    pub fn accepted() -> Welcome {
        Welcome { magic: MAGIC, version: VERSION, status: 0 }
    }

    /// Not in this language.
    pub fn other_version() -> Welcome {
        Welcome { status: 1, ..Welcome::accepted() }
    }

    /// `Err` says why the connection cannot go on.
    pub fn judge(bytes: &[u8; WELCOME]) -> Result<(), String> {
        let welcome = Welcome::read_from_bytes(bytes).expect("a welcome's size");
        if welcome.magic != MAGIC {
            return Err("what answers there is not pmemha".to_owned());
        }
        if welcome == Welcome::accepted() {
            return Ok(());
        }
        Err(format!(
            "the peer speaks version {} of the fabric, we speak {}: install the same version on both",
            welcome.version, VERSION
        ))
    }
}

/// Whether two tokens are equal, in a time that does not depend on where they differ.
pub fn same_token(a: &[u8; TOKEN], b: &[u8; TOKEN]) -> bool {
    let difference = a.iter().zip(b).fold(0u8, |acc, (x, y)| black_box(acc | (x ^ y)));
    black_box(difference) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hello_and_welcome_have_golden_bytes() {
        let hello = Hello::new([7; TOKEN]);
        assert_eq!(&hello.as_bytes()[..16], b"PMHAFABR\x01\0\0\0\0\0\0\0");
        assert_eq!(hello.as_bytes()[16..], [7; 32]);
        assert_eq!(Welcome::accepted().as_bytes(), b"PMHAFABR\x01\0\0\0\0\0\0\0");
        assert_eq!(Welcome::other_version().as_bytes(), b"PMHAFABR\x01\0\0\0\x01\0\0\0");
    }

    #[test]
    fn strangers_and_other_versions_are_told_apart() {
        let mut bytes: [u8; HELLO] = Hello::new([7; TOKEN]).as_bytes().try_into().unwrap();
        assert_eq!(Hello::hear(&bytes), Heard::Token([7; TOKEN]));
        bytes[8] = 9;
        assert_eq!(Hello::hear(&bytes), Heard::OtherVersion(9));
        bytes[0] = b'G';
        assert_eq!(Hello::hear(&bytes), Heard::Noise);
        let told: [u8; WELCOME] = Welcome::other_version().as_bytes().try_into().unwrap();
        assert!(Welcome::judge(&told).unwrap_err().contains("same version"));
        assert!(Welcome::judge(b"HTTP/1.1 400 Bad").unwrap_err().contains("not pmemha"));
    }

    #[test]
    fn tokens_differ_in_any_bit() {
        for bit in 0..TOKEN * 8 {
            let mut other = [0x5a; TOKEN];
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(!same_token(&[0x5a; TOKEN], &other));
        }
        assert!(same_token(&[0x5a; TOKEN], &[0x5a; TOKEN]));
    }
}
