//! Addresses for nodes of tests.

use std::net::TcpListener;

/// First port that the kernel hands out by itself (ip_local_port_range): below it no connection of another test takes
/// a port while the node that it is meant for is not there.
const FIRST_EPHEMERAL: u16 = 32768;

/// A port of loopback that is free at this moment and that only somebody who asks for it by number takes.
pub fn free_port() -> u16 {
    loop {
        let port = fastrand::u16(10_000..FIRST_EPHEMERAL);
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
