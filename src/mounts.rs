//! The mounts that this process sees, for whoever goes by what a directory lies on.
//!
//! `failover` looks for control groups, `replica` for what makes bytes in a directory survive. The text comes from outside,
//! so that a test can own it.

use std::fs;
use std::io;
use std::path::PathBuf;

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount<'a> {
    /// Which directory of the file system is mounted; `/` is all of it.
    pub root: &'a str,
    /// Where.
    pub point: PathBuf,
    /// Kind of file system, such as `ext4`.
    pub kind: &'a str,
    options: &'a str,
}

impl Mount<'_> {
    /// Whether the file system, not only this mount of it, has the option.
    pub fn has_option(&self, wanted: &str) -> bool {
        self.options.split(',').any(|option| option == wanted)
    }
}

/// The kernel's list, for [`parse`].
pub fn read() -> io::Result<String> {
    fs::read_to_string("/proc/self/mountinfo")
}

/// The mounts of `mountinfo`, in the order in which they were mounted. A line that makes no sense is passed over.
pub fn parse(mountinfo: &str) -> impl Iterator<Item = Mount<'_>> {
    mountinfo.lines().filter_map(parse_line)
}

/// `36 35 98:0 /root /mnt rw,noatime master:1 - ext3 /dev/root rw,dax=always`
fn parse_line(line: &str) -> Option<Mount<'_>> {
    let (mount, file_system) = line.split_once(" - ")?;
    let mut mount = mount.split(' ').skip(3);
    let (root, point) = (mount.next()?, PathBuf::from(unescape(mount.next()?)));
    let mut file_system = file_system.split(' ');
    let kind = file_system.next()?;
    Some(Mount { root, point, kind, options: file_system.nth(1).unwrap_or_default() })
}

/// Blanks, tabs, newlines and backslashes stand as three octal digits.
fn unescape(text: &str) -> String {
    // The backslash last: what it makes must not be taken for another one's beginning.
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_mount_and_nonsense_is_none() {
        let text = "36 35 98:0 /sub /mnt/p\\040m\\134040 rw,noatime master:1 - ext4 /dev/pmem0 rw,dax=always\n\
                    1 2 - cgroup2\nnonsense\n";
        let mounts: Vec<Mount> = parse(text).collect();
        let [mount] = mounts.as_slice() else { panic!("{mounts:?}") };
        assert_eq!((mount.root, mount.kind), ("/sub", "ext4"));
        assert_eq!(mount.point, PathBuf::from("/mnt/p m\\040"));
        assert!(mount.has_option("dax=always") && !mount.has_option("dax") && !mount.has_option("noatime"));
    }
}
