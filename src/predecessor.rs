//! Outlasting a predecessor: what an agent that has just ended still holds for a moment.
//!
//! A program that the agent starts is, until its `execve`, a process with all of the agent's descriptors, close-on-exec
//! or not (fork(2), open(2)). An agent that ends in that moment leaves behind the lock of its state directory and its
//! listening sockets, until the child has got on. A successor that comes at once would find them taken, and give up.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

/// For how long something taken may be a predecessor's. A child between fork and exec is there for microseconds; on a
/// machine with more to run than processors, for some tens of milliseconds.
pub const GRACE: Duration = Duration::from_secs(1);

/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(5);

/// Attempts until it succeeds, fails by something that `taken` does not call taken, or [`GRACE`] is over; then the
/// last attempt's error is returned. Blocks the thread.
pub fn outlast<T, E>(taken: impl Fn(&E) -> bool, mut attempt: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    let end = Instant::now() + GRACE;
    loop {
        match attempt() {
            Err(e) if taken(&e) && Instant::now() < end => thread::sleep(PAUSE),
            done => return done,
        }
    }
}

/// Listens at an address that a predecessor may have listened at.
pub fn listen_at(at: SocketAddr) -> io::Result<TcpListener> {
    outlast(|e: &io::Error| e.kind() == io::ErrorKind::AddrInUse, || TcpListener::bind(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Taken for so many attempts.
    fn attempts(taken: u32) -> (Result<(), &'static str>, u32) {
        let mut count = 0;
        let result = outlast(
            |e| *e == "taken",
            || {
                count += 1;
                if count <= taken { Err("taken") } else { Ok(()) }
            },
        );
        (result, count)
    }

    #[test]
    fn what_is_let_go_of_is_taken_over() {
        assert_eq!(attempts(0), (Ok(()), 1));
        assert_eq!(attempts(3), (Ok(()), 4));
    }

    #[test]
    fn what_is_held_on_to_is_said() {
        let (result, count) = attempts(u32::MAX);
        assert_eq!(result, Err("taken"));
        assert!(count > 1);
    }

    #[test]
    fn another_error_is_said_at_once() {
        let mut count = 0;
        let result: Result<(), &str> = outlast(
            |e| *e == "taken",
            || {
                count += 1;
                Err("not allowed")
            },
        );
        assert_eq!((result, count), (Err("not allowed"), 1));
    }
}
