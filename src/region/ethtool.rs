//! What the driver of a network interface counts, as `ethtool -S` shows it: no file of the kernel has these counters.
//!
//! Stands in this room because `unsafe` does; called by `agent::doctor`.

use std::ffi::c_char;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketType, socket};

/// Names and counts.
pub type Counters = Vec<(String, u64)>;

/// All of them, in the driver's order.
pub fn statistics(interface: &str) -> io::Result<Counters> {
    let socket = socket(AddressFamily::INET, SocketType::DGRAM, None)?;
    // struct ethtool_sset_info: command, reserved, mask of sets (64 bits), then a count for each set in the mask.
    let mut info = [0u64; 3];
    info[0] = u64::from(GSSET_INFO);
    info[1] = 1 << STATISTICS;
    ask(&socket, interface, &mut info)?;
    let count = match info[1] {
        0 => 0,
        // The first 32 bits behind the mask.
        _ => (info[2] as u32) as usize,
    };
    if count == 0 {
        return Ok(Vec::new());
    }
    if count > MOST {
        return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{count} counters")));
    }
    // struct ethtool_gstrings: command, set, count, then the names. Room for twelve bytes, in words.
    let mut names = vec![0u64; HEAD_WORDS + MOST * NAME / 8];
    names[0] = pair(GSTRINGS, STATISTICS);
    names[1] = count as u64;
    ask(&socket, interface, &mut names)?;
    // struct ethtool_stats: command, count, then the numbers.
    let mut numbers = vec![0u64; 1 + MOST];
    numbers[0] = pair(GSTATS, count as u32);
    ask(&socket, interface, &mut numbers)?;

    let bytes: Vec<u8> = names.iter().flat_map(|word| word.to_le_bytes()).skip(GSTRINGS_HEAD).collect();
    let named = bytes.chunks_exact(NAME).map(|name| {
        let end = name.iter().position(|byte| *byte == 0).unwrap_or(NAME);
        String::from_utf8_lossy(&name[..end]).into_owned()
    });
    Ok(named.zip(numbers.into_iter().skip(1)).take(count).collect())
}

/// Two 32-bit fields that follow each other, on a little-endian machine.
fn pair(first: u32, second: u32) -> u64 {
    u64::from(first) | u64::from(second) << 32
}

/// Has the driver fill `data`, which begins with the command, and has room for [`MOST`] entries where the command yields entries.
fn ask(socket: &OwnedFd, interface: &str, data: &mut [u64]) -> io::Result<()> {
    if interface.is_empty() || interface.len() >= libc::IFNAMSIZ || interface.contains('\0') {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let mut name = [0 as c_char; libc::IFNAMSIZ];
    for (to, from) in name.iter_mut().zip(interface.bytes()) {
        *to = from as c_char;
    }
    let mut request = libc::ifreq {
        ifr_name: name,
        ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_data: data.as_mut_ptr().cast() },
    };
    // SAFETY: the request is read. What is written to `data` is its head and an entry for each counter that the driver has at this
    // moment, whatever was asked for; there is room for more than any driver has. Any bytes are numbers.
    match unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) } {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Commands of `linux/ethtool.h`.
const GSTRINGS: u32 = 0x1b;
const GSTATS: u32 = 0x1d;
const GSSET_INFO: u32 = 0x37;

/// `ETH_SS_STATS`: the set of the driver's statistics.
const STATISTICS: u32 = 1;

/// `ETH_GSTRING_LEN`: bytes of a name.
const NAME: usize = 32;

/// Bytes in front of the names.
const GSTRINGS_HEAD: usize = 12;

/// Words that they fit into.
const HEAD_WORDS: usize = 2;

/// More than any driver has; some have thousands, a few for each queue.
const MOST: usize = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_has_no_counters_or_does_not_exist_says_so() {
        assert!(
            statistics("lo")
                .map_or_else(|e| e.raw_os_error() == Some(libc::EOPNOTSUPP), |all| all.is_empty())
        );
        assert_eq!(statistics("nosuch0").unwrap_err().raw_os_error(), Some(libc::ENODEV));
        assert_eq!(statistics("a-name-that-is-too-long").unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
