//! What makes bytes in a directory survive, found out from what it lies on.

use std::io;
use std::path::Path;

use crate::mounts;
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

fn detect_in(mountinfo: &str, dir: &Path) -> Durability {
    let mounts = mounts::parse(mountinfo).filter(|m| dir.starts_with(&m.point));
    // The longest mount point, and of equal ones the last mounted, is the one that is seen.
    let seen = mounts.enumerate().max_by_key(|(i, m)| (m.point.as_os_str().len(), *i));
    match seen.map(|(_, mount)| mount) {
        Some(m) if matches!(m.kind, "tmpfs" | "ramfs" | "devtmpfs" | "hugetlbfs") => Durability::Battery,
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
    fn a_real_directory_is_recognised() {
        let shm = tempfile::tempdir_in("/dev/shm").unwrap();
        assert_eq!(detect(shm.path()).unwrap(), Durability::Battery);
    }
}
