//! What a protected file holds, read alike from files and from DAX devices, which `read(2)` does not give and of which `stat(2)` does
//! not tell the size.
//!
//! Called by whoever copies a region: the log's appender, the sync. Any thread.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::PathBuf;

use rustix::fs::{FileType, fstat, major, minor};

use super::memory::{Access, SharedMem};

/// A file or a DAX device, open for reading. The descriptor's offset does not move.
pub enum Content<'a> {
    /// A file, of so many bytes when it was asked.
    File(BorrowedFd<'a>, u64),
    /// A device, mapped as a whole: so its alignment, which may be 1 GiB, does not matter, and what nobody touches costs nothing.
    Device(SharedMem),
}

impl<'a> Content<'a> {
    /// Asks the kernel what `fd` is.
    pub fn of(fd: &'a impl AsFd) -> io::Result<Content<'a>> {
        let fd = fd.as_fd();
        let stat = fstat(fd)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::CharacterDevice {
            return Ok(Content::File(fd, stat.st_size as u64));
        }
        let not_dax = || io::Error::new(io::ErrorKind::Unsupported, "a device that is no DAX device");
        let size = device_size(major(stat.st_rdev), minor(stat.st_rdev)).ok_or_else(not_dax)?;
        Ok(Content::Device(SharedMem::map(fd, 0, size as usize, Access::Read)?))
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        match self {
            Content::File(_, size) => *size,
            Content::Device(memory) => memory.len() as u64,
        }
    }

    /// Whether it is a device, which has no holes.
    pub fn is_device(&self) -> bool {
        matches!(self, Content::Device(_))
    }

    /// Reads from `offset` on; how many bytes there were.
    pub fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        // SAFETY: the slice is writable for its length.
        unsafe { self.read_part(offset, into.as_mut_ptr(), into.len()) }
    }

    /// As [`Content::read_at`]; what the file does not have, since it has just been truncated, is zero, as it would read if the file
    /// grew again.
    ///
    /// # Safety
    /// `to` is writable for `len` bytes and nobody else's.
    pub unsafe fn read_to(&self, offset: u64, to: *mut u8, len: usize) -> io::Result<()> {
        // SAFETY: as ours.
        let done = unsafe { self.read_part(offset, to, len)? };
        // SAFETY: within the range.
        unsafe { to.wrapping_add(done).write_bytes(0, len - done) };
        Ok(())
    }

    /// # Safety
    /// `to` is writable for `len` bytes.
    unsafe fn read_part(&self, offset: u64, to: *mut u8, len: usize) -> io::Result<usize> {
        match self {
            Content::Device(memory) => {
                let there = len.min(memory.len().saturating_sub(offset as usize));
                // SAFETY: within the range, which is the caller's alone.
                memory.read(offset as usize, unsafe { std::slice::from_raw_parts_mut(to, there) });
                Ok(there)
            }
            // SAFETY: as ours.
            Content::File(fd, _) => unsafe { pread(*fd, offset, to, len) },
        }
    }
}

/// Bytes of the DAX device of this number; none if it is another device.
pub fn device_size(major: u32, minor: u32) -> Option<u64> {
    let sys = PathBuf::from(format!("/sys/dev/char/{major}:{minor}"));
    let subsystem = fs::canonicalize(sys.join("subsystem")).ok()?;
    if subsystem.file_name()? != "dax" {
        return None;
    }
    fs::read_to_string(sys.join("size")).ok()?.trim().parse().ok()
}

/// `pread(2)` up to `len` bytes or the end of the file.
///
/// # Safety
/// `to` is writable for `len` bytes.
unsafe fn pread(file: BorrowedFd<'_>, offset: u64, to: *mut u8, len: usize) -> io::Result<usize> {
    let mut done = 0;
    while done < len {
        let at = to.wrapping_add(done);
        let from = (offset + done as u64) as libc::off_t;
        // SAFETY: the kernel writes at most `len - done` bytes there.
        match unsafe { libc::pread(file.as_raw_fd(), at.cast(), len - done, from) } {
            0 => break,
            n @ 1.. => done += n as usize,
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    #[test]
    fn a_file_is_read_to_its_end_and_behind_it_zeros() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"held", 2).unwrap();
        let content = Content::of(&file).unwrap();
        assert_eq!((content.size(), content.is_device()), (6, false));
        let mut read = [1; 8];
        assert_eq!(content.read_at(&mut read, 2).unwrap(), 4);
        assert_eq!(&read, b"held\x01\x01\x01\x01");
        // SAFETY: an array of that length.
        unsafe { content.read_to(2, read.as_mut_ptr(), read.len()).unwrap() };
        assert_eq!(&read, b"held\0\0\0\0");
    }

    #[test]
    fn another_device_is_refused() {
        let null = std::fs::File::open("/dev/null").unwrap();
        let refused = Content::of(&null).err().expect("/dev/null holds nothing");
        assert!(refused.to_string().contains("no DAX device"), "{refused}");
    }
}
