//! The destination's scanner: any bytes are records or are not, without a panic, and no record lies outside them.
//!
//! Twice: the bytes as they are, and with every checksum made right, since no mutation finds one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pmemha::log::format::{RECORD_HEADER, RecordHeader};
use pmemha::log::scan::{Scan, scan_bytes};
use pmemha::types::{Generation, Lsn};
use zerocopy::{FromBytes, IntoBytes};

const BASE: Lsn = Lsn(4096);
const GENERATION: Generation = Generation(1);

fuzz_target!(|data: &[u8]| {
    walk(data);
    for skip in 0..data.len().min(64) as u64 {
        let _ = scan_bytes(data, BASE, Generation(data[skip as usize].into()), BASE.advance(skip));
    }
    walk(&sealed(data));
});

fn walk(bytes: &[u8]) {
    let mut at = BASE;
    while let Scan::Record(header) = scan_bytes(bytes, BASE, GENERATION, at) {
        assert_eq!(Lsn(header.lsn), at);
        at = header.next();
        assert!(at.since(BASE) <= bytes.len() as u64);
    }
}

/// The same bytes, in which each header that the scanner comes to has the place, generation and checksum that it wants.
fn sealed(bytes: &[u8]) -> Vec<u8> {
    let (mut bytes, mut at) = (bytes.to_vec(), 0);
    while let Some(head) = bytes.get(at..at + RECORD_HEADER as usize) {
        let mut header = RecordHeader::read_from_bytes(head).expect("its size");
        (header.lsn, header.generation, header.owner) = (BASE.0 + at as u64, GENERATION.0, 0);
        let payload = at + RECORD_HEADER as usize;
        let Some(content) = bytes.get(payload..payload + header.len as usize) else { break };
        header.crc = crc32c::crc32c_append(header.crc_seed(GENERATION), content);
        bytes[at..payload].copy_from_slice(header.as_bytes());
        at += header.span() as usize;
    }
    bytes
}
