//! What makes bytes in a directory survive, found out from what it lies on.

use std::io;
use std::path::Path;

use crate::mounts;
use crate::region::kind::MemoryKind;
use crate::types::Durability;

/// Looks at the file system of `dir`, which exists. Memory counts as `battery` (the operator says that this machine has
/// one by using it), a DAX mount as `pmem`, everything else as `disk`.
pub fn detect(dir: &Path) -> io::Result<Durability> {
    Ok(detect_in(&mounts::read()?, &dir.canonicalize()?))
}

/// Whether an adapter can be given memory of files in `dir`: the kernel keeps pages of memory file systems in place, and those
/// of no other.
pub fn stays_in_place(dir: &Path) -> io::Result<bool> {
    Ok(detect(dir)? == Durability::Battery)
}

/// What files in a directory are, of which [`detect`] says `found`.
pub fn memory(found: Durability) -> MemoryKind {
    match found {
        Durability::Battery => MemoryKind::Tmpfs,
        Durability::Pmem | Durability::Eadr => MemoryKind::Fsdax,
        Durability::Disk => MemoryKind::File,
    }
}

/// What the destination does and says, or why it cannot do what is `declared`. `found` is what [`detect`] says of its
/// directory; `staged`: records land in memory beside its files first. Never weaker than what is declared.
pub fn settle(
    declared: Option<Durability>,
    found: Durability,
    staged: bool,
) -> Result<Durability, &'static str> {
    match declared {
        // A battery keeps what has landed, but not beyond the life of the agent that stages it.
        Some(Durability::Battery) if staged => Ok(found),
        None => Ok(found),
        Some(Durability::Eadr) if staged => Err(
            "the adapter cannot be given these files, so records land in memory that no cache protects: write \"pmem\", \
             or `fabric = \"tcp\"`",
        ),
        Some(Durability::Eadr | Durability::Pmem) if found == Durability::Disk => Err(
            "it is neither on a file system that is mounted with dax nor in memory, so stores to it wait for a device: \
             write \"disk\", or mount it with `-o dax=always`",
        ),
        Some(declared) => Ok(declared),
    }
}

fn detect_in(mountinfo: &str, dir: &Path) -> Durability {
    let mounts = mounts::parse(mountinfo).filter(|m| dir.starts_with(&m.point));
    // The longest mount point, and of equal ones the last mounted, is the one that is seen.
    let seen = mounts.enumerate().max_by_key(|(i, m)| (m.point.as_os_str().len(), *i));
    match seen.map(|(_, mount)| mount) {
        Some(m) if matches!(m.kind, "tmpfs" | "ramfs" | "devtmpfs") => Durability::Battery,
        Some(m) if m.has_option("dax") || m.has_option("dax=always") => Durability::Pmem,
        _ => Durability::Disk,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
20 1 0:1 / / rw - ext4 /dev/vda rw
21 20 0:2 / /dev/shm rw,nosuid shared:3 - tmpfs tmpfs rw
22 20 0:3 / /mnt/p\\040m rw - ext4 /dev/pmem0 rw,dax=always
23 20 0:4 / /mnt/inode rw - xfs /dev/pmem1 rw,dax=inode
24 20 0:5 / /data rw - xfs /dev/sdb rw
25 24 0:6 / /data rw - tmpfs none rw
";

    #[test]
    fn each_mount_is_taken_for_what_it_is() {
        let kind = |p: &str| detect_in(MOUNTS, Path::new(p));
        assert_eq!(kind("/var/lib/x"), Durability::Disk);
        assert_eq!(kind("/dev/shm/x"), Durability::Battery);
        assert_eq!(kind("/mnt/p m/x"), Durability::Pmem);
        assert_eq!(kind("/mnt/inode"), Durability::Disk);
        assert_eq!(kind("/data/x"), Durability::Battery);
    }

    #[test]
    fn a_declaration_is_kept_or_refused_and_never_weakened() {
        use Durability::{Battery, Disk, Eadr, Pmem};
        for declared in [Battery, Eadr, Pmem, Disk] {
            assert_eq!(settle(Some(declared), Battery, false), Ok(declared));
            assert_eq!(settle(Some(declared), Pmem, false), Ok(declared));
        }
        assert_eq!(settle(Some(Battery), Disk, false), Ok(Battery));
        for declared in [Eadr, Pmem] {
            assert!(settle(Some(declared), Disk, false).unwrap_err().contains("\"disk\""));
        }
        // Landing in memory of the agent's own is never enough.
        for found in [Pmem, Disk] {
            assert_eq!(settle(Some(Battery), found, true), Ok(found));
            assert_eq!(settle(None, found, true), Ok(found));
            assert!(settle(Some(Eadr), found, true).unwrap_err().contains("\"pmem\""));
        }
        assert_eq!(settle(Some(Pmem), Pmem, true), Ok(Pmem));
        assert_eq!(settle(None, Battery, false), Ok(Battery));
    }

    #[test]
    fn a_real_directory_is_recognised() {
        let shm = tempfile::tempdir_in("/dev/shm").unwrap();
        assert_eq!(detect(shm.path()).unwrap(), Durability::Battery);
    }
}
