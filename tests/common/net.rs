//! Addresses for nodes of tests.

use std::net::TcpListener;

/// A port of loopback that is free at this moment.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback is there");
    listener.local_addr().expect("bound").port()
}
