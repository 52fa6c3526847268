//! PMDK pools: their shutdown state, which names the memory of the machine that failed.
//!
//! A pool that was open when its machine died carries a dirty shutdown state with that machine's DIMM identity and unsafe
//! shutdown count. Opened elsewhere, libpmemobj takes the difference for lost stores ("an ADR failure was detected") and
//! refuses. Here nothing was lost: the image is a record prefix. So a promotion zeroes the state, which libpmemobj then sets
//! up anew, as `pmempool feature` does.
//!
//! A pool header is the first 4096 bytes of a pool file, and of every part of a poolset that has one (parts
//! after the first of a pool with SINGLEHDR have none). With CKSUM_2K, without which there is no shutdown state, its checksum
//! covers the first 2048 bytes, so that zeroing the state leaves it valid.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

/// Bytes of a pool header.
const HEADER: usize = 4096;

const SIGNATURE: Range<usize> = 0..8;
const MAJOR: usize = 8;
const INCOMPAT: usize = 16;
const MACHINE_CLASS: usize = 136;
const MACHINE: usize = 142;
const CHECKED_2K: usize = 2048;
const SHUTDOWN_STATE: Range<usize> = 4024..4088;
const CHECKSUM: usize = 4088;

/// Which kinds there are, and the layout's major version that this program knows.
const KINDS: [(&[u8; 8], &str, u32); 3] =
    [(b"PMEMOBJ\0", "libpmemobj", 6), (b"PMEMBLK\0", "libpmemblk", 1), (b"PMEMLOG\0", "libpmemlog", 1)];

const FEATURE_SINGLEHDR: u32 = 1;
const FEATURE_CKSUM_2K: u32 = 2;
const FEATURE_SHUTDOWN_STATE: u32 = 4;
const KNOWN_FEATURES: u32 = FEATURE_SINGLEHDR | FEATURE_CKSUM_2K | FEATURE_SHUTDOWN_STATE;

/// ELF numbers of x86-64 and of PMDK's class for 64 bit.
const X86_64: u16 = 62;
const CLASS_64: u8 = 2;

/// A pool header that was recognised.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolHeader {
    /// The library whose pool it is.
    pub library: &'static str,
    /// Whether it keeps a shutdown state at all.
    pub has_shutdown_state: bool,
    /// Whether that state is other than zero.
    pub set: bool,
}

/// Why a pool will not open here, or why its header was left alone.
#[derive(Debug, thiserror::Error)]
pub enum PmdkError {
    /// A later or damaged layout.
    #[error("a {library} pool whose header {what}: left as it is, and its library may refuse to open it")]
    Unknown {
        /// The library.
        library: &'static str,
        /// What was found.
        what: String,
    },
    /// The system refused.
    #[error("cannot read or write the pool header: {0}")]
    Io(#[from] io::Error),
}

/// Looks at the first bytes of a file: no pool, a pool, or a pool that this program does not know.
pub fn inspect(header: &[u8]) -> Option<Result<PoolHeader, PmdkError>> {
    let signature = header.get(SIGNATURE)?;
    let (_, library, major) = *KINDS.iter().find(|(s, ..)| *s == signature)?;
    if header.len() < HEADER {
        return Some(Err(PmdkError::Unknown { library, what: "is cut off".into() }));
    }
    Some(check(&header[..HEADER], library, major))
}

/// Zeroes the shutdown state of the pool in `file`, if it is one and has one. Says what it found; `None`: no pool. Safe to
/// repeat.
pub fn clear_shutdown_state(file: &File) -> Result<Option<PoolHeader>, PmdkError> {
    let mut header = vec![0; HEADER];
    let len = read_up_to(file, &mut header)?;
    let Some(found) = inspect(&header[..len]) else { return Ok(None) };
    let found = found?;
    if found.has_shutdown_state && found.set {
        file.write_all_at(&[0; SHUTDOWN_STATE.end - SHUTDOWN_STATE.start], SHUTDOWN_STATE.start as u64)?;
    }
    Ok(Some(found))
}

fn check(header: &[u8], library: &'static str, known_major: u32) -> Result<PoolHeader, PmdkError> {
    let unknown = |what: String| Err(PmdkError::Unknown { library, what });
    let major = u32_at(header, MAJOR);
    if major != known_major {
        return unknown(format!("has layout version {major} where {known_major} is known"));
    }
    let features = u32_at(header, INCOMPAT);
    if features & !KNOWN_FEATURES != 0 {
        return unknown(format!("has features {features:#x}, of which {KNOWN_FEATURES:#x} are known"));
    }
    let has_shutdown_state = features & FEATURE_SHUTDOWN_STATE != 0;
    if has_shutdown_state && features & FEATURE_CKSUM_2K == 0 {
        return unknown("has a shutdown state within its checksum".into());
    }
    let covered = if features & FEATURE_CKSUM_2K != 0 { CHECKED_2K } else { HEADER };
    if checksum(header, covered) != u64::from_le_bytes(header[CHECKSUM..].try_into().expect("8 bytes")) {
        return unknown("does not fit its checksum".into());
    }
    let machine = u16::from_le_bytes([header[MACHINE], header[MACHINE + 1]]);
    if (header[MACHINE_CLASS], machine) != (CLASS_64, X86_64) {
        return unknown(format!("was made on another kind of machine ({machine})"));
    }
    let set = header[SHUTDOWN_STATE].iter().any(|b| *b != 0);
    Ok(PoolHeader { library, has_shutdown_state, set })
}

/// Fletcher's checksum of a header's 32-bit words, in which those from `covered` on and the field that holds it count
/// as zero.
fn checksum(header: &[u8], covered: usize) -> u64 {
    let (mut low, mut high) = (0u32, 0u32);
    for (i, word) in header.chunks_exact(4).enumerate() {
        if 4 * i < covered.min(CHECKSUM) {
            low = low.wrapping_add(u32::from_le_bytes(word.try_into().expect("4 bytes")));
        }
        high = high.wrapping_add(low);
    }
    u64::from(high) << 32 | u64::from(low)
}

fn u32_at(header: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(header[at..at + 4].try_into().expect("4 bytes"))
}

fn read_up_to(file: &File, into: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < into.len() {
        match file.read_at(&mut into[done..], done as u64)? {
            0 => break,
            n => done += n,
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(features: u32) -> Vec<u8> {
        let mut h = vec![0; HEADER];
        h[SIGNATURE].copy_from_slice(b"PMEMOBJ\0");
        h[MAJOR] = 6;
        h[INCOMPAT..INCOMPAT + 4].copy_from_slice(&features.to_le_bytes());
        h[MACHINE_CLASS] = CLASS_64;
        h[MACHINE] = X86_64 as u8;
        h[SHUTDOWN_STATE.start] = 9;
        let covered = if features & FEATURE_CKSUM_2K != 0 { CHECKED_2K } else { HEADER };
        let sum = checksum(&h, covered);
        h[CHECKSUM..].copy_from_slice(&sum.to_le_bytes());
        h
    }

    fn file(bytes: &[u8]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file
    }

    #[test]
    fn only_the_shutdown_state_of_a_known_pool_is_zeroed() {
        let f = file(&header(7));
        assert!(clear_shutdown_state(&f).unwrap().unwrap().set);
        assert!(!clear_shutdown_state(&f).unwrap().unwrap().set);
        let mut want = header(7);
        want[SHUTDOWN_STATE].fill(0);
        let mut got = vec![0; HEADER];
        f.read_exact_at(&mut got, 0).unwrap();
        assert!(got == want);
    }

    #[test]
    fn what_is_not_known_is_left_alone_and_named() {
        let says = |bytes: &[u8]| clear_shutdown_state(&file(bytes)).unwrap_err().to_string();
        let mut bad = header(7);
        bad[100] ^= 1;
        assert!(says(&bad).contains("checksum"));
        let mut newer = header(7);
        newer[MAJOR] = 7;
        assert!(says(&newer).contains("layout version 7"));
        assert!(says(&header(15)).contains("0xf"));
        assert!(says(&header(4)).contains("within its checksum"));
        assert!(says(&header(7)[..100]).contains("cut off"));
        assert_eq!(clear_shutdown_state(&file(b"no pool")).unwrap(), None);
        assert_eq!(clear_shutdown_state(&file(&[0; HEADER])).unwrap(), None);
    }
}
