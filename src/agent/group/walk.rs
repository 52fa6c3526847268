//! Which existing files match a group's patterns: a walk along real directories, never through a link, since a program's file
//! is known by its real path, too.
//!
//! Reads directories and nothing else. Bounded in names and depth; says what it could not look into. Called by
//! `agent::group::unopened`.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use glob::Pattern;
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, FsWord, Mode, OFlags, PROC_SUPER_MAGIC, Stat, fstat, fstatfs, getxattr,
    openat, statat,
};
use rustix::io::{self, Errno};

use super::reader::{Owner, Reader, Right};
use crate::session::patterns::OPTIONS;

/// A file whose path matches.
pub(super) struct Sighting<'a> {
    /// Its directory.
    pub folder: BorrowedFd<'a>,
    /// Its name there.
    pub name: &'a OsStr,
    /// Its path, without links.
    pub path: PathBuf,
    /// Which of the users get as far as its directory.
    pub reach: &'a [bool],
}

/// A walk; `hear` is told of every file.
pub(super) struct Walk<'a> {
    patterns: Vec<Vec<Part>>,
    users: &'a [Reader],
    apart: &'a [PathBuf],
    left: usize,
    hear: &'a mut dyn FnMut(Sighting<'_>),
    troubles: Vec<(PathBuf, String)>,
}

/// A component of a pattern.
#[derive(Debug, PartialEq)]
enum Part {
    Literal(OsString),
    Pattern(Pattern),
    /// `**`: any number of directories; as the last one, whatever is below.
    Any,
}

/// Of pattern number `.0` all components before `.1` have been matched.
type Place = (usize, usize);

struct Folder {
    fd: OwnedFd,
    path: PathBuf,
    device: u64,
    reach: Vec<bool>,
}

impl<'a> Walk<'a> {
    /// Of `patterns`, for `users`; nothing in the directories `apart` is told of.
    pub fn new(
        patterns: &[String],
        users: &'a [Reader],
        apart: &'a [PathBuf],
        hear: &'a mut dyn FnMut(Sighting<'_>),
    ) -> Walk<'a> {
        let patterns = patterns.iter().map(|pattern| parts(pattern)).collect();
        Walk { patterns, users, apart, left: MAX_NAMES, hear, troubles: Vec::new() }
    }

    /// Walks. What could not be looked into, and why.
    pub fn walk(mut self) -> Vec<(PathBuf, String)> {
        let root = Folder {
            fd: match open_folder(CWD, "/".as_ref()) {
                Ok(fd) => fd,
                Err(error) => return vec![("/".into(), error.to_string())],
            },
            path: "/".into(),
            device: 0,
            reach: vec![true; self.users.len()],
        };
        let places: Vec<Place> = (0..self.patterns.len()).map(|pattern| (pattern, 0)).collect();
        self.look_into(&root, &places, 0);
        self.troubles
    }

    fn look_into(&mut self, folder: &Folder, places: &[Place], depth: usize) {
        if depth > MAX_DEPTH {
            return self
                .trouble(&folder.path, format!("more than {MAX_DEPTH} directories deep: not looked into"));
        }
        let places = self.with_no_directory_between(places);
        let literal = |&(pattern, at): &Place| match &self.patterns[pattern][at] {
            Part::Literal(name) => Some(name.clone()),
            Part::Pattern(_) | Part::Any => None,
        };
        if let Some(mut names) = places.iter().map(literal).collect::<Option<Vec<_>>>() {
            names.sort();
            names.dedup();
            for name in names {
                self.look_at(folder, &name, FileType::Unknown, &places, depth);
            }
            return;
        }
        let read = || -> io::Result<Dir> {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            Dir::new(openat(&folder.fd, ".", flags, Mode::empty())?)
        };
        let entries = match read() {
            Ok(entries) => entries,
            Err(error) => return self.trouble(&folder.path, error.to_string()),
        };
        for entry in entries {
            let entry = match entry {
                Ok(entry) => entry,
                Err(error) => return self.trouble(&folder.path, error.to_string()),
            };
            let name = entry.file_name().to_bytes();
            if self.left == 0 {
                return self.trouble(
                    &folder.path,
                    format!("`protect` matches too wide a tree: what comes after the first {MAX_NAMES} names is not looked for"),
                );
            }
            if name != b"." && name != b".." {
                self.left -= 1;
                self.look_at(folder, OsStr::from_bytes(name), entry.file_type(), &places, depth);
            }
        }
    }

    fn look_at(&mut self, folder: &Folder, name: &OsStr, kind: FileType, places: &[Place], depth: usize) {
        let (mut matches, mut below) = (false, Vec::new());
        for &(pattern, at) in places {
            let last = at + 1 == self.patterns[pattern].len();
            match &self.patterns[pattern][at] {
                Part::Any => below.push((pattern, at)),
                part if !part.fits(name) => continue,
                _ if last => {}
                _ => below.push((pattern, at + 1)),
            }
            matches |= last;
        }
        if !matches && below.is_empty() {
            return;
        }
        let kind = match kind {
            FileType::Unknown => match statat(&folder.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                Err(_) => return,
            },
            known => known,
        };
        let path = folder.path.join(name);
        match kind {
            FileType::RegularFile if matches => {
                (self.hear)(Sighting { folder: folder.fd.as_fd(), name, path, reach: &folder.reach });
            }
            FileType::Directory if !below.is_empty() && !self.apart.contains(&path) => {
                match self.enter(folder, name, path.clone()) {
                    Ok(Some(folder)) => self.look_into(&folder, &below, depth + 1),
                    Ok(None) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                    Err(error) => self.trouble(&path, error.to_string()),
                }
            }
            _ => {}
        }
    }

    /// Opens a directory; none for one that holds no files of anybody's.
    fn enter(&self, from: &Folder, name: &OsStr, path: PathBuf) -> io::Result<Option<Folder>> {
        let fd = open_folder(from.fd.as_fd(), name)?;
        let stat = fstat(&fd)?;
        if stat.st_dev != from.device && NOT_FILES.contains(&fstatfs(&fd)?.f_type) {
            return Ok(None);
        }
        let listed = is_listed(fd.as_fd());
        let passes = |(user, reach): (&Reader, &bool)| *reach && may(user, Right::Enter, &stat, listed);
        let reach = self.users.iter().zip(&from.reach).map(passes).collect();
        Ok(Some(Folder { device: stat.st_dev, fd, path, reach }))
    }

    /// `**` may stand for no directory at all.
    fn with_no_directory_between(&self, places: &[Place]) -> Vec<Place> {
        let mut all = places.to_vec();
        let mut seen = 0;
        while let Some(&(pattern, at)) = all.get(seen) {
            seen += 1;
            let next = (pattern, at + 1);
            if self.patterns[pattern][at] == Part::Any
                && next.1 < self.patterns[pattern].len()
                && !all.contains(&next)
            {
                all.push(next);
            }
        }
        all
    }

    fn trouble(&mut self, path: &Path, why: String) {
        if self.troubles.len() < MAX_TROUBLES {
            self.troubles.push((path.to_owned(), why));
        }
    }
}

/// Whether `user` has a right to what has this `stat`.
pub(super) fn may(user: &Reader, right: Right, stat: &Stat, listed: bool) -> bool {
    user.may(right, stat.st_mode, Owner { uid: stat.st_uid, gid: stat.st_gid }, listed)
}

/// Whether a file, which may be open as a mere path, has an access control list, or may have one.
pub(super) fn is_listed(fd: BorrowedFd<'_>) -> bool {
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    match getxattr(link, "system.posix_acl_access", &mut [0u8; 0]) {
        Ok(len) => len > 0,
        Err(Errno::NODATA | Errno::OPNOTSUPP) => false,
        Err(_) => true,
    }
}

fn open_folder(from: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(from, name, flags, Mode::empty())
}

impl Part {
    fn fits(&self, name: &OsStr) -> bool {
        match self {
            Part::Any => true,
            Part::Literal(literal) => literal == name,
            // A name that is not UTF-8 comes near enough to be spoken of.
            Part::Pattern(pattern) => pattern.matches_with(&name.to_string_lossy(), OPTIONS),
        }
    }
}

/// The components of an absolute pattern; a slash within brackets ends none.
fn parts(pattern: &str) -> Vec<Part> {
    let mut parts = vec![String::new()];
    let mut set: Option<usize> = None;
    for c in pattern.chars().skip(1) {
        set = match (set, c) {
            (None, '/') => {
                parts.push(String::new());
                continue;
            }
            (None, '[') => Some(0),
            // Neither as the first of the set nor behind the mark that negates it.
            (Some(0), '!') => Some(0),
            (Some(n), ']') if n > 0 => None,
            (Some(n), _) => Some(n + 1),
            (None, _) => None,
        };
        parts.last_mut().expect("it never empties").push(c);
    }
    let part = |text: String| match text.as_str() {
        "**" => Part::Any,
        text if !text.contains(['*', '?', '[']) => Part::Literal(text.into()),
        // What cannot be a pattern by itself may match anything: the whole one decides.
        text => Pattern::new(text).map_or(Part::Any, Part::Pattern),
    };
    parts.into_iter().filter(|part| !part.is_empty()).map(part).collect()
}

/// File systems that show the kernel's state: proc and sysfs, below which there are others of that kind.
const NOT_FILES: [FsWord; 2] = [PROC_SUPER_MAGIC, 0x6265_6572];

/// Names that are looked at: more is a pattern that nobody means, and half a second of looking.
const MAX_NAMES: usize = 1 << 18;

/// Directories within each other, each of which is held open.
const MAX_DEPTH: usize = 64;

/// Directories that are named as not looked into.
const MAX_TROUBLES: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{create_dir_all, write};
    use std::os::unix::fs::symlink;

    fn seen(patterns: &[String], apart: &[PathBuf]) -> Vec<PathBuf> {
        let mut seen = Vec::new();
        let mut hear = |sighting: Sighting<'_>| seen.push(sighting.path);
        let troubles = Walk::new(patterns, &[], apart, &mut hear).walk();
        assert_eq!(troubles, []);
        seen.sort();
        seen
    }

    #[test]
    fn what_a_walk_finds_is_what_the_patterns_match() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        for file in ["a.pool", ".b.pool", "c", "sub/a.pool", "sub/deep/a.pool", "sub/[x]", "other/a.pool"] {
            create_dir_all(dir.join(file).parent().unwrap()).unwrap();
            write(dir.join(file), "").unwrap();
        }
        symlink("sub", dir.join("link")).unwrap();
        symlink("c", dir.join("link.pool")).unwrap();
        let all = seen(&[format!("{}/**", dir.display())], &[]);
        assert_eq!(all.len(), 7, "{all:?}");
        for patterns in [
            &["/*.pool"][..],
            &["/**/a.pool"],
            &["/sub/**/a.pool"],
            &["/s?b/*"],
            &["/sub/[[]x[]]"],
            &["/*/d*/**"],
            &["/c", "/sub/deep/a.pool", "/none/x"],
            &["/**", "/c"],
            &["/link/a.pool"],
            &["/[!/]"],
        ] {
            let patterns: Vec<_> = patterns.iter().map(|p| format!("{}{p}", dir.display())).collect();
            let matching = crate::session::patterns::Patterns::new(&patterns).unwrap();
            let expected: Vec<_> = all.iter().filter(|path| matching.matches(path)).cloned().collect();
            assert_eq!(seen(&patterns, &[]), expected, "{patterns:?}");
        }
        let others = seen(&[format!("{}/**", dir.display())], &[dir.join("sub")]);
        assert_eq!(others.len(), 4, "{others:?}");
    }

    #[test]
    fn a_tree_too_wide_or_deep_is_said_so() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        create_dir_all(dir.join("d/".repeat(MAX_DEPTH + 1))).unwrap();
        let patterns = [format!("{}/**", dir.display())];
        let troubles = Walk::new(&patterns, &[], &[], &mut |_| {}).walk();
        assert!(troubles[0].1.contains("64 directories deep"), "{troubles:?}");
        let mut deaf = |_: Sighting<'_>| {};
        let few = Walk { left: 10, ..Walk::new(&patterns, &[], &[], &mut deaf) };
        let troubles = few.walk();
        assert!(troubles[0].1.contains("too wide"), "{troubles:?}");
    }
}
