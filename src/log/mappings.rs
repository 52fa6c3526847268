//! The files that a process can store to for others to see: one question to the kernel, where it takes questions (Linux 6.11),
//! else its list of everything that is mapped, which takes it a hundred times as long to write.
//!
//! Either may wait for ever for the process's memory: see `log::patient`.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

/// A file as mappings show it: its device's major and minor number, and its inode.
pub type Mapped = (u32, u32, u64);

/// Whether the thread whose directory in `/proc` is `thread` can store to `file` by a shared mapping. Nothing if it shows no memory:
/// it has exited, or may not be looked at.
pub fn stores_to(thread: &Path, file: Mapped) -> Option<bool> {
    let maps = File::open(thread.join("maps")).ok()?;
    let mut from = 0;
    loop {
        match next_shared(&maps, from) {
            Ok(found) if (found.dev_major, found.dev_minor, found.inode) == file => return Some(true),
            Ok(found) if found.vma_end > from => from = found.vma_end,
            Ok(_) => return Some(false),
            Err(error) => match error.raw_os_error() {
                Some(libc::ENOENT) => return Some(false),
                Some(libc::ESRCH) => return None,
                _ => return listed(thread, file),
            },
        }
    }
}

fn listed(thread: &Path, file: Mapped) -> Option<bool> {
    // Names of files may be anything.
    let maps = fs::read(thread.join("maps")).ok().filter(|maps| !maps.is_empty())?;
    Some(String::from_utf8_lossy(&maps).lines().any(|line| shared_in(line) == Some(file)))
}

/// The file of a line of `/proc/PID/maps`, if it is mapped shared and writable.
fn shared_in(line: &str) -> Option<Mapped> {
    let mut fields = line.split_ascii_whitespace().skip(1);
    // Neither a copy of its own nor one that it only reads makes a process a writer.
    fields.next().filter(|may| may.as_bytes().get(1) == Some(&b'w') && may.ends_with('s'))?;
    let (major, minor) = fields.nth(1)?.split_once(':')?;
    let number = |hex| u32::from_str_radix(hex, 16).ok();
    Some((number(major)?, number(minor)?, fields.next()?.parse().ok()?))
}

/// The first shared, writable mapping of a file that does not end before `from`.
fn next_shared(maps: &File, from: u64) -> io::Result<Query> {
    let mut query = Query {
        size: size_of::<Query>() as u64,
        query_flags: WRITABLE | SHARED | COVERING_OR_NEXT | FILE_BACKED,
        query_addr: from,
        ..Query::default()
    };
    // SAFETY: the kernel reads and writes `size` bytes of `query`, and nothing else: no buffers are named.
    let asked = unsafe { libc::ioctl(maps.as_raw_fd(), PROCMAP_QUERY as _, &raw mut query) };
    if asked < 0 { Err(io::Error::last_os_error()) } else { Ok(query) }
}

/// `struct procmap_query` of linux/fs.h.
#[repr(C)]
#[derive(Default)]
struct Query {
    size: u64,
    query_flags: u64,
    query_addr: u64,
    vma_start: u64,
    vma_end: u64,
    vma_flags: u64,
    vma_page_size: u64,
    vma_offset: u64,
    inode: u64,
    dev_major: u32,
    dev_minor: u32,
    vma_name_size: u32,
    build_id_size: u32,
    vma_name_addr: u64,
    build_id_addr: u64,
}

/// `_IOWR('f', 17, struct procmap_query)`.
const PROCMAP_QUERY: u32 = 3 << 30 | (size_of::<Query>() as u32) << 16 | (b'f' as u32) << 8 | 17;

const WRITABLE: u64 = 0x02;
const SHARED: u64 = 0x08;
const COVERING_OR_NEXT: u64 = 0x10;
const FILE_BACKED: u64 = 0x20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::{LogRegion, LogSpec};
    use std::os::fd::AsFd;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_question_and_the_list_say_the_same() {
        assert_eq!(PROCMAP_QUERY, 0xC068_6611);
        let me = Path::new("/proc/self");
        let (fd, log) = LogRegion::create(&LogSpec::default()).unwrap();
        let meta = File::from(fd.as_fd().try_clone_to_owned().unwrap()).metadata().unwrap();
        let (major, minor) = (rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev()));
        let file = (major, minor, meta.ino());
        assert_eq!((stores_to(me, file), listed(me, file)), (Some(true), Some(true)));
        drop(log);
        assert_eq!((stores_to(me, file), listed(me, file)), (Some(false), Some(false)));
    }

    #[test]
    fn only_a_shared_and_writable_line_names_its_file() {
        let line = |may: &str| format!("7f00-7f10 {may} 00000000 00:1f 4711 /memfd:pmemha log (deleted)");
        assert_eq!(shared_in(&line("rw-s")), Some((0, 0x1f, 4711)));
        for may in ["r--s", "rw-p", "---s"] {
            assert_eq!(shared_in(&line(may)), None, "{may}");
        }
    }
}
