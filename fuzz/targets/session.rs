//! What an application may send to the agent's socket: any bytes are a request or are refused.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pmemha::session::wire::{Reply, Request};

fuzz_target!(|data: &[u8]| {
    if let Ok(request) = serde_json::from_slice::<Request>(data) {
        let again = serde_json::to_vec(&request).expect("a request can be written");
        serde_json::from_slice::<Request>(&again).expect("and read again");
    }
    let _ = serde_json::from_slice::<Reply>(data);
});
