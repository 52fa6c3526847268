//! A connection to a host by any of its addresses, by a deadline. The control channel of `agent` uses it, too.

use std::io;
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Instant;

/// Tries the host's addresses in turn; the last one's error if none answers.
pub fn dial(host: impl ToSocketAddrs, deadline: Instant) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for address in host.to_socket_addrs()? {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match TcpStream::connect_timeout(&address, left) {
            Ok(socket) => return Ok(socket),
            Err(e) => last = e,
        }
    }
    Err(last)
}
