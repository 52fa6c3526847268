//! Numbers by chance: identities of groups and of lives, and what spreads attempts.

use std::fs::File;
use std::io::{self, Read};

/// Bytes that nobody else has.
pub fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// A number that spreads attempts; the lowest where there is no chance.
pub fn number() -> u32 {
    bytes().map_or(0, u32::from_ne_bytes)
}
