//! The socket options of a Unix socket's peer that rustix cannot read: it does not know `SO_PEERPIDFD`, and its credentials
//! cannot hold the pid 0 by which the kernel names a peer of another pid namespace.
//!
//! Stands in this room because `unsafe` does; called by `session::peer`, which says what the answers mean.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// The peer's process (0: of a pid namespace that we cannot see), effective user and effective group, as of its connect.
pub fn peer_credentials(socket: BorrowedFd<'_>) -> io::Result<libc::ucred> {
    option(socket, libc::SO_PEERCRED, libc::ucred { pid: 0, uid: 0, gid: 0 })
}

/// The peer's supplementary groups, as of its connect.
pub fn peer_groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut groups = vec![0u32; MAX_GROUPS];
    let mut len = size_of_val(&groups[..]) as libc::socklen_t;
    let (fd, at) = (socket.as_raw_fd(), groups.as_mut_ptr().cast());
    // SAFETY: the kernel writes at most `len` bytes to `groups`, and any bytes are numbers.
    let rc = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, SO_PEERGROUPS, at, &raw mut len) };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    groups.truncate(len as usize / size_of::<u32>());
    Ok(groups)
}

/// A pidfd of the peer. `ENOPROTOOPT`: a kernel before Linux 6.5.
pub fn peer_pidfd(socket: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let raw = option::<RawFd>(socket, SO_PEERPIDFD, -1)?;
    if raw < 0 {
        return Err(io::ErrorKind::InvalidData.into());
    }
    // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(raw) })
}

/// `getsockopt(SOL_SOCKET, name)` of a plain C type; a shorter answer leaves the rest of `value` as it is.
fn option<T: PlainC>(socket: BorrowedFd<'_>, name: i32, mut value: T) -> io::Result<T> {
    let mut len = size_of::<T>() as libc::socklen_t;
    let (fd, at) = (socket.as_raw_fd(), (&raw mut value).cast());
    // SAFETY: the kernel writes at most `len` bytes to `value`, and any bytes are a valid `T`.
    let rc = unsafe { libc::getsockopt(fd, libc::SOL_SOCKET, name, at, &raw mut len) };
    if rc == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}

/// Types of which any bytes are a value.
trait PlainC {}
impl PlainC for libc::ucred {}
impl PlainC for RawFd {}

/// The kernel's `NGROUPS_MAX`: nobody has more.
const MAX_GROUPS: usize = 65536;

/// Linux 4.13; not in every libc's headers.
const SO_PEERGROUPS: i32 = 59;

/// Linux 6.5; not in every libc's headers.
const SO_PEERPIDFD: i32 = 77;
