//! Where a promotion puts a region: from its name at the source to a path here, by this node's configuration alone.
//!
//! A name comes from the source and is data: it chooses among configured places and can never lead outside them.

use std::collections::BTreeMap;
use std::io;
use std::path::{Component, Path, PathBuf};

use super::folder::Folder;

/// Why a region has no place here.
#[derive(Debug, thiserror::Error)]
pub enum PathError {
    /// Nothing is configured for it.
    #[error(
        "no place is configured for {name:?}: add it, or a directory above it, to `paths` of this replica"
    )]
    Unmapped {
        /// The region's name.
        name: String,
    },
    /// A name that no file has.
    #[error("{name:?} is not the plain absolute path of a file: the source is faulty")]
    Unfit {
        /// The region's name.
        name: String,
    },
    /// A symbolic link leads out.
    #[error(
        "{} leads outside {} by a symbolic link, or by one that is not relative: remove it",
        path.display(), root.display()
    )]
    Outside {
        /// The path.
        path: PathBuf,
        /// The configured place.
        root: PathBuf,
    },
    /// The system refused.
    #[error("cannot reach or make {}: {source}", path.display())]
    Io {
        /// The directory.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
}

/// A place for a region.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// The file's path.
    pub path: PathBuf,
    /// The configured directory that it must stay in.
    pub root: PathBuf,
}

/// The place of the region called `name`: `paths` maps a source path, or the prefix of some, to its counterpart here; the
/// longest fitting one counts.
pub fn place(paths: &BTreeMap<PathBuf, PathBuf>, name: &str) -> Result<Place, PathError> {
    let plain = |c: &Component<'_>| matches!(c, Component::RootDir | Component::Normal(_));
    let path = Path::new(name);
    let fits = path.is_absolute()
        && path.file_name().is_some()
        && path.components().all(|c| plain(&c))
        && !name.contains('\0')
        && name.split('/').skip(1).all(|part| !matches!(part, "" | "." | ".."));
    if !fits {
        return Err(PathError::Unfit { name: name.to_owned() });
    }
    let rule = paths
        .iter()
        .filter(|(from, _)| path.starts_with(from))
        .max_by_key(|(from, _)| from.components().count());
    let (from, to) = rule.ok_or_else(|| PathError::Unmapped { name: name.to_owned() })?;
    let rest = path.strip_prefix(from).expect("filtered by it");
    if rest.as_os_str().is_empty() {
        let root = to.parent().unwrap_or(Path::new("/")).to_owned();
        return Ok(Place { path: to.clone(), root });
    }
    Ok(Place { path: to.join(rest), root: to.clone() })
}

impl Place {
    /// Makes the directories down to the file, and opens the last one; no link leads out of the configured one on the way.
    pub(super) fn prepare(&self) -> Result<Folder, PathError> {
        Folder::make(&self.root, self.below()).map_err(|e| self.unreachable(e))
    }

    /// Whether what is there by now keeps [`Place::prepare`] from it; makes nothing.
    pub(super) fn check(&self) -> Result<(), PathError> {
        Folder::check(&self.root, self.below()).map_err(|e| self.unreachable(e))
    }

    fn parent(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("/"))
    }

    /// The file's directory, from the configured one.
    fn below(&self) -> &Path {
        self.parent().strip_prefix(&self.root).unwrap_or(Path::new(""))
    }

    fn unreachable(&self, source: io::Error) -> PathError {
        match source.kind() {
            io::ErrorKind::CrossesDevices => {
                PathError::Outside { path: self.path.clone(), root: self.root.clone() }
            }
            _ => PathError::Io { path: self.parent().to_owned(), source },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use proptest::prelude::*;

    fn paths() -> BTreeMap<PathBuf, PathBuf> {
        let rules = [("/mnt/pmem", "/local"), ("/mnt/pmem/deep", "/other"), ("/data/one.pool", "/one/pool")];
        rules.iter().map(|(a, b)| (a.into(), b.into())).collect()
    }

    #[test]
    fn the_longest_rule_counts() {
        let at = |name: &str| place(&paths(), name).unwrap().path;
        assert_eq!(at("/mnt/pmem/a/b"), Path::new("/local/a/b"));
        assert_eq!(at("/mnt/pmem/deep/b"), Path::new("/other/b"));
        assert_eq!(at("/mnt/pmem/deeper"), Path::new("/local/deeper"));
        assert_eq!(at("/data/one.pool"), Path::new("/one/pool"));
        assert!(matches!(place(&paths(), "/data/two.pool"), Err(PathError::Unmapped { .. })));
    }

    #[test]
    fn a_name_never_leads_elsewhere() {
        for name in [
            "",
            "/",
            "x",
            "/mnt/pmem/../../etc/shadow",
            "/mnt/pmem//x",
            "/mnt/pmem/./x",
            "/mnt/pmem/x/",
            "/mnt/pmem/a\0b",
        ] {
            assert!(matches!(place(&paths(), name), Err(PathError::Unfit { .. })), "{name:?}");
        }
    }

    #[test]
    fn a_link_that_leads_out_is_refused() {
        let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::os::unix::fs::symlink(outside.path(), root.path().join("link")).unwrap();
        let rules = BTreeMap::from([(PathBuf::from("/s"), root.path().to_owned())]);
        assert!(matches!(place(&rules, "/s/link/x/f").unwrap().prepare(), Err(PathError::Outside { .. })));
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
        place(&rules, "/s/a/b/f").unwrap().prepare().unwrap();
        assert!(root.path().join("a/b").is_dir());
    }

    proptest! {
        #[test]
        fn whatever_the_name_the_path_is_below_a_configured_one(name in "(/mnt/pmem)?(/(\\.\\.|\\.|[a-z]{0,2}))*") {
            if let Ok(place) = place(&paths(), &name) {
                let below = place.path.starts_with("/local") || place.path.starts_with("/other");
                prop_assert!(below && !place.path.components().any(|c| c == Component::ParentDir));
            }
        }
    }
}
