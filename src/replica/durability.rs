//! What makes bytes in a directory survive: found out, or declared and checked.

use std::fs;
use std::io;
use std::path::Path;

use crate::types::Durability;

/// What was found, with the sentence for status and logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detected {
    /// The durability to declare.
    pub durability: Durability,
    /// What it rests on, and what it does not survive.
    pub because: String,
}

/// Looks at the file system of `dir`, which exists. Memory counts as `battery` (the operator says that this machine has
/// one by using it), a DAX mount as `pmem`, everything else as `disk`.
pub fn detect(dir: &Path) -> io::Result<Detected> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let dir = dir.canonicalize()?;
    let found = detect_in(&mounts, &dir).unwrap_or_else(|| Detected {
        durability: Durability::Disk,
        because: format!("the mount of {} is not listed; taken for a disk", dir.display()),
    });
    Ok(found)
}

fn detect_in(mountinfo: &str, dir: &Path) -> Option<Detected> {
    let mounts = mountinfo.lines().filter_map(Mount::parse).filter(|m| dir.starts_with(&m.point));
    // The longest mount point, and of equal ones the last mounted, is the one that is seen.
    let mount = mounts.enumerate().max_by_key(|(i, m)| (m.point.len(), *i))?.1;
    let at = format!("{} on {}", mount.kind, mount.point);
    Some(match mount.kind {
        "tmpfs" | "ramfs" | "devtmpfs" | "hugetlbfs" => Detected {
            durability: Durability::Battery,
            because: format!(
                "{at} is memory: it survives the loss of the source, and of power only with a battery; \
                 a crash of this machine's system loses it"
            ),
        },
        _ if mount.dax => {
            Detected { durability: Durability::Pmem, because: format!("{at} is mounted with DAX") }
        }
        _ => {
            Detected { durability: Durability::Disk, because: format!("{at} is written back to its device") }
        }
    })
}

struct Mount<'a> {
    point: String,
    kind: &'a str,
    dax: bool,
}

impl<'a> Mount<'a> {
    /// `36 35 98:0 /root /mnt rw,noatime master:1 - ext3 /dev/root rw,dax=always`
    fn parse(line: &'a str) -> Option<Mount<'a>> {
        let (left, right) = line.split_once(" - ")?;
        let point = unescape(left.split(' ').nth(4)?);
        let mut right = right.split(' ');
        let kind = right.next()?;
        let options = right.nth(1).unwrap_or("");
        let dax = options.split(',').any(|o| o == "dax" || o == "dax=always");
        Some(Mount { point, kind, dax })
    }
}

/// Blanks, tabs, newlines and backslashes stand as three octal digits.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |t, (from, to)| t.replace(from, to))
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
        let kind = |p: &str| detect_in(MOUNTS, Path::new(p)).unwrap().durability;
        assert_eq!(kind("/var/lib/x"), Durability::Disk);
        assert_eq!(kind("/dev/shm/x"), Durability::Battery);
        assert_eq!(kind("/mnt/p m/x"), Durability::Pmem);
        assert_eq!(kind("/mnt/inode"), Durability::Disk);
        assert_eq!(kind("/data/x"), Durability::Battery);
        assert!(detect_in(MOUNTS, Path::new("/dev/shm")).unwrap().because.contains("memory"));
    }

    #[test]
    fn a_real_directory_is_recognised() {
        let shm = tempfile::tempdir_in("/dev/shm").unwrap();
        assert_eq!(detect(shm.path()).unwrap().durability, Durability::Battery);
    }
}
