//! Control groups as tenants: classes by their `memory.stat`, and making them smaller.
//!
//! The kernel's lists stand for use here: a page is active if it is on an active list, which says less than an access bit of a known interval
//! does.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::classes::{Class, Estimate, PerClass};
use super::page_out::Effect;

/// A control group's directory in the memory hierarchy, of either version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    dir: PathBuf,
    version: Version,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl Group {
    /// Of a directory that has the files of one.
    pub fn at(dir: &Path) -> io::Result<Group> {
        let has = |file: &str| dir.join(file).exists();
        let version = match (has("memory.current"), has("memory.usage_in_bytes")) {
            (true, _) => Version::Two,
            (_, true) => Version::One,
            _ => {
                let why = format!("{}: no control group with memory accounting", dir.display());
                return Err(io::Error::new(io::ErrorKind::NotFound, why));
            }
        };
        Ok(Group { dir: dir.into(), version })
    }

    /// Bytes that it has of the host's memory.
    pub fn usage(&self) -> io::Result<u64> {
        self.number(match self.version {
            Version::One => "memory.usage_in_bytes",
            Version::Two => "memory.current",
        })
    }

    /// Its classes.
    pub fn classes(&self) -> io::Result<PerClass<Estimate>> {
        let text = fs::read_to_string(self.dir.join("memory.stat"))?;
        Ok(classes(&text, self.usage()?))
    }

    /// Whether the kernel can be asked to take memory from it: version 2, Linux 5.19.
    pub fn can_reclaim(&self) -> bool {
        self.version == Version::Two && self.dir.join(RECLAIM).exists()
    }

    /// Has the kernel take `bytes` from it, what it holds to be used least first; what that did. Its limits are not touched.
    ///
    /// Version 1 has no file for that. Lowering its limit for a moment would do the same, but whoever is killed in between
    /// leaves it there, and the group is short of memory for good: refused.
    pub fn reclaim(&self, bytes: u64) -> io::Result<Effect> {
        if !self.can_reclaim() {
            let why = format!(
                "{}: this control group has no {RECLAIM} (version 2, Linux 5.19), and its limit is not lowered instead",
                self.dir.display()
            );
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        }
        let before = self.usage()?;
        let asked = bytes.min(before);
        let outcome = fs::write(self.dir.join(RECLAIM), asked.to_string());
        let moved = before.saturating_sub(self.usage()?);
        match outcome {
            // All that could be had was less than was asked for: the effect says so.
            Err(e) if !matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY)) => Err(e),
            _ => Ok(Effect { asked, moved }),
        }
    }

    fn number(&self, file: &str) -> io::Result<u64> {
        let path = self.dir.join(file);
        let text = fs::read_to_string(&path)?;
        let nonsense = || {
            io::Error::new(io::ErrorKind::InvalidData, format!("{}: {text:?} is no number", path.display()))
        };
        text.trim().parse().map_err(|_| nonsense())
    }
}

/// Classes by a `memory.stat` of either version, of a group that uses `usage` bytes. Of version 1 the totals of the whole subtree count. What is on no
/// list (the kernel's own for it) is unreclaimable.
pub fn classes(stat: &str, usage: u64) -> PerClass<Estimate> {
    let of = |name: &str| {
        let value = |wanted: &str| {
            let mut lines = stat.lines().filter_map(|line| line.split_once(' '));
            lines.find(|(key, _)| *key == wanted).and_then(|(_, n)| n.trim().parse::<u64>().ok())
        };
        value(&format!("total_{name}")).or_else(|| value(name)).unwrap_or(0)
    };
    let mut bytes = PerClass {
        unreclaimable: 0,
        active_anonymous: of("active_anon"),
        active_buffer: of("active_file"),
        inactive_anonymous: of("inactive_anon"),
        inactive_buffer: of("inactive_file"),
        free: 0,
    };
    let listed: u64 = Class::ALL.iter().map(|class| bytes[*class]).sum();
    bytes.unreclaimable = usage.saturating_sub(listed).max(of("unevictable"));
    PerClass::of(|class| Estimate::exactly(bytes[class]))
}

/// Takes a number of bytes.
const RECLAIM: &str = "memory.reclaim";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_read_from_either_version() {
        let two = "anon 300\nfile 500\ninactive_anon 100\nactive_anon 200\ninactive_file 350\nactive_file 150\nunevictable 0\n";
        let found = classes(two, 1000);
        let expected = [
            (Class::ActiveAnonymous, 200),
            (Class::InactiveBuffer, 350),
            (Class::Unreclaimable, 200),
            (Class::Free, 0),
        ];
        for (class, bytes) in expected {
            assert_eq!(found[class], Estimate::exactly(bytes), "{class:?}");
        }
        let one = "inactive_anon 1\nactive_anon 2\ntotal_inactive_anon 10\ntotal_active_anon 20\ntotal_inactive_file 30\ntotal_active_file 40\n";
        let found = classes(one, 100);
        assert_eq!(
            (found.inactive_anonymous.bytes, found.active_buffer.bytes),
            (10, 40),
            "the subtree counts"
        );
        assert_eq!(classes("nonsense\n\nactive_anon x\n", 7).unreclaimable, Estimate::exactly(7));
    }

    #[test]
    fn version_one_is_looked_at_and_its_limit_never_touched() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Group::at(dir.path()).is_err());
        let write = |file: &str, text: &str| fs::write(dir.path().join(file), text).unwrap();
        write("memory.usage_in_bytes", "1000\n");
        write("memory.limit_in_bytes", "5000\n");
        let group = Group::at(dir.path()).unwrap();
        assert_eq!((group.usage().unwrap(), group.can_reclaim()), (1000, false));
        let error = group.reclaim(400).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
        assert!(error.to_string().contains("version 2"), "{error}");
        assert_eq!(fs::read_to_string(dir.path().join("memory.limit_in_bytes")).unwrap(), "5000\n");
        write("memory.usage_in_bytes", "much");
        assert!(group.usage().unwrap_err().to_string().contains("much"));
    }

    #[test]
    fn of_version_two_the_kernel_is_asked_and_the_effect_measured() {
        let dir = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| fs::write(dir.path().join(file), text).unwrap();
        write("memory.current", "1000\n");
        let group = Group::at(dir.path()).unwrap();
        assert!(group.reclaim(400).is_err(), "a kernel that is too old");
        write(RECLAIM, "");
        let effect = group.reclaim(4000).unwrap();
        assert_eq!(effect, Effect { asked: 1000, moved: 0 }, "nothing moved, whatever the kernel answered");
        assert!(effect.is_in_vain());
        assert_eq!(fs::read_to_string(dir.path().join(RECLAIM)).unwrap(), "1000");
    }
}
