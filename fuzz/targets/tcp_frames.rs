//! Frames of the tcp fabric: any bytes, cut in any pieces, are the same frames, or the same error.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pmemha::fabric::tcp::frame::{Decoder, Frame, HEADER, Item, MAX_PAYLOAD};

fuzz_target!(|data: &[u8]| {
    let Some((&piece, stream)) = data.split_first() else { return };
    let whole = decode(stream, stream.len().max(1));
    assert_eq!(whole, decode(stream, usize::from(piece).max(1)));
    for frame in &whole.0 {
        assert!(frame.payload() <= MAX_PAYLOAD);
        let header: [u8; HEADER] = frame.encode();
        assert_eq!(Frame::decode(&header), Ok(*frame));
    }
});

/// Frames, payload bytes, and how it ended.
fn decode(stream: &[u8], piece: usize) -> (Vec<Frame>, usize, Option<String>) {
    let (mut decoder, mut frames, mut payload) = (Decoder::default(), Vec::new(), 0);
    for mut input in stream.chunks(piece) {
        loop {
            match decoder.next(&mut input) {
                Ok(Some(Item::Frame(frame))) => frames.push(frame),
                Ok(Some(Item::Payload(bytes))) => payload += bytes.len(),
                Ok(None) => break,
                Err(e) => return (frames, payload, Some(e.to_string())),
            }
        }
    }
    (frames, payload, None)
}
