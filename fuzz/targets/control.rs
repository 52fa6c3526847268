//! The control protocol: any bytes are frames and messages, or are refused; what is accepted is bounded and means the
//! same when it is sent on.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pmemha::agent::control::frame::{self, HEAD, MAX_BODY};
use pmemha::agent::control::message::{self, Answer, Ask, Message};

fuzz_target!(|data: &[u8]| {
    if let Some((head, body)) = data.split_first_chunk::<HEAD>() {
        if let Ok(head) = frame::decode(head) {
            assert!(head.len <= MAX_BODY);
        }
        both_ways(body);
    }
    both_ways(data);
});

fn both_ways(body: &[u8]) {
    means_the_same::<Ask>(body);
    means_the_same::<Answer>(body);
}

fn means_the_same<M: Message + PartialEq + std::fmt::Debug>(body: &[u8]) {
    let Ok(message) = message::decode::<M>(body) else { return };
    let frame = message::encode(&message).expect("what was accepted can be sent");
    let again: M = message::decode(&frame[HEAD..]).expect("what was sent is accepted");
    assert_eq!(message, again);
}
