//! The kernel's word that a power supply has changed: uevents on a netlink socket.
//!
//! They only wake: what is so is read from sysfs. So one that was forged, lost or repeated does no harm.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};

/// The multicast group of the kernel's own uevents; udev's are in another.
const KERNEL: u32 = 1;

/// Longest uevent, as the kernel bounds it.
const MAX_UEVENT: usize = 8192;

/// How a uevent of a power supply says so.
const MARK: &[u8] = b"SUBSYSTEM=power_supply";

/// A socket on which uevents arrive.
#[derive(Debug)]
pub struct Uevents {
    socket: OwnedFd,
    /// The socket gives nothing but errors.
    broken: bool,
}

impl From<OwnedFd> for Uevents {
    /// Of a datagram socket that does as the kernel's does.
    fn from(socket: OwnedFd) -> Uevents {
        Uevents { socket, broken: false }
    }
}

impl Uevents {
    /// The kernel's.
    pub fn of_kernel() -> io::Result<Uevents> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(KOBJECT_UEVENT))?;
        bind(&socket, &SocketAddrNetlink::new(0, KERNEL))?;
        Ok(Uevents::from(socket))
    }

    /// Waits until a power supply has changed, for at most `timeout`.
    pub fn wait(&mut self, timeout: Duration) {
        let end = Instant::now() + timeout;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || self.take() {
                return;
            }
            if self.broken {
                return std::thread::sleep(left);
            }
            let left = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
            // Interrupted or failed: the time is looked at again.
            _ = poll(&mut [PollFd::from_borrowed_fd(self.socket.as_fd(), PollFlags::IN)], Some(&left));
        }
    }

    /// Forgets what has arrived.
    pub fn drain(&mut self) {
        self.take();
    }

    /// Takes all that has arrived; whether any of it is of a power supply.
    fn take(&mut self) -> bool {
        let (mut any, mut bytes) = (false, [0; MAX_UEVENT]);
        loop {
            match recv(&self.socket, &mut bytes, RecvFlags::DONTWAIT) {
                Ok((0, _)) => {
                    self.broken = true;
                    return any;
                }
                Ok((len, _)) => {
                    any |= bytes[..len.min(MAX_UEVENT)].split(|b| *b == 0).any(|field| field == MARK);
                }
                // More came than the socket holds: what was lost may have been of one.
                Err(rustix::io::Errno::NOBUFS) => any = true,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return any,
                Err(_) => {
                    self.broken = true;
                    return any;
                }
            }
        }
    }
}
