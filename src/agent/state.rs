//! What must outlive the agent: a directory a group with small JSON files, replaced atomically.
//!
//! `state_dir/lock` is held for the agent's life, so that a second agent on the same directory is told of the
//! first. A file is either the old or the new one at any instant, also after a power cut; a full disk leaves the
//! old one and is reported.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, FlockOperation, accessat, flock};
use rustix::io::Errno;
use serde::de::{DeserializeOwned, Error};
use serde::{Deserialize, Deserializer, Serialize};

use super::group::Rest;
use crate::file_id::FileId;
use crate::predecessor::outlast;
use crate::remedy;
use crate::types::{Generation, GroupId, RegionId};

/// Largest state file that is read: 65,536 regions with long paths stay below it.
const MAX_FILE: u64 = 64 << 20;

/// Version of [`GroupState`].
pub const VERSION: u32 = 2;

/// The agent's state directory, locked.
#[derive(Debug)]
pub struct StateDir {
    dir: PathBuf,
    _lock: File,
}

/// What a source remembers of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupState {
    /// [`VERSION`]. The first field, so that of another version nothing else is read.
    #[serde(deserialize_with = "this_version")]
    pub version: u32,
    /// Identity, made once.
    pub id: GroupId,
    /// Generation of the newest log.
    pub generation: Generation,
    /// Next region number.
    pub next_region: u16,
    /// First session number that no agent has given out or reserved.
    pub next_session: u32,
    /// Users that processes have attached to this generation as.
    #[serde(default)]
    pub users: Vec<u32>,
    /// Destinations that an operator has paused.
    #[serde(default)]
    pub paused: BTreeSet<String>,
    /// The files that this generation protects.
    pub regions: Vec<RegionState>,
}

/// A protected file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegionState {
    /// Number in the log.
    pub region: RegionId,
    /// Path when it was protected: its name on the destination.
    pub path: PathBuf,
    /// Which file that was.
    pub file: FileId,
    /// Bytes protected.
    pub len: u64,
    /// Whether that is only the file's beginning.
    #[serde(default)]
    pub partial: bool,
    /// Whether a process that records what it does may have mapped it.
    #[serde(default)]
    pub mapped: bool,
    /// How the file was left by the last process that had it open.
    #[serde(default)]
    pub rest: Option<Rest>,
}

/// A file that a promotion put in place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlacedFile {
    /// Where.
    pub path: PathBuf,
    /// Which: its directory's owner may put another one there.
    pub file: FileId,
}

/// Why state could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another agent runs on this directory.
    #[error("{}: another pmemhad{} uses this directory; stop it, or give this one a state_dir of its own", dir.display(), holder)]
    Locked {
        /// The directory.
        dir: PathBuf,
        /// ` (pid 123)`, if it said so.
        holder: String,
    },
    /// The system refused.
    #[error("cannot {what} {}: {source}{}", path.display(), remedy::of(source))]
    System {
        /// What was attempted.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A file holds something else.
    #[error("{}: not a state file of this version: {why}; move it away to start the group anew", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

impl StateError {
    /// Whether the next attempt ends in the same way, unless somebody mends something.
    pub fn lasts(&self) -> bool {
        matches!(self, StateError::Damaged { .. })
    }
}

impl StateDir {
    /// Makes the directory if need be and locks it.
    pub fn open(dir: &Path) -> Result<StateDir, StateError> {
        make_dir(dir)?;
        let path = dir.join("lock");
        let open = File::options().read(true).write(true).create(true).truncate(false).open(&path);
        let mut lock = open.map_err(system("open", &path))?;
        let held = |e: &Errno| *e == Errno::WOULDBLOCK;
        if let Err(e) = outlast(held, || flock(&lock, FlockOperation::NonBlockingLockExclusive)) {
            if !held(&e) {
                return Err(system("lock", &path)(e.into()));
            }
            let mut holder = String::new();
            // The pid is a courtesy to the reader; the lock is the fact.
            let _ = lock.read_to_string(&mut holder);
            let holder = holder.trim().parse::<u32>().map_or(String::new(), |pid| format!(" (pid {pid})"));
            return Err(StateError::Locked { dir: dir.into(), holder });
        }
        lock.set_len(0)
            .and_then(|()| writeln!(lock, "{}", std::process::id()))
            .map_err(system("write", &path))?;
        Ok(StateDir { dir: dir.into(), _lock: lock })
    }

    /// The directory of a group, made if need be.
    pub fn group_dir(&self, group: &str) -> Result<PathBuf, StateError> {
        let dir = self.dir.join("groups").join(group);
        make_dir(&dir)?;
        Ok(dir)
    }

    /// Reads a file of a group; none if there is none.
    pub fn load<T: DeserializeOwned>(&self, group: &str, file: &str) -> Result<Option<T>, StateError> {
        let path = self.group_dir(group)?.join(file);
        let bytes = match File::open(&path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(system("open", &path)(e)),
            Ok(file) => {
                let mut bytes = Vec::new();
                file.take(MAX_FILE).read_to_end(&mut bytes).map_err(system("read", &path))?;
                bytes
            }
        };
        serde_json::from_slice(&bytes).map(Some).map_err(|e| StateError::Damaged { path, why: e.to_string() })
    }

    /// Replaces a file of a group; durable when it returns.
    pub fn save<T: Serialize>(&self, group: &str, file: &str, value: &T) -> Result<(), StateError> {
        let dir = self.group_dir(group)?;
        let path = dir.join(file);
        let bytes = serde_json::to_vec_pretty(value)
            .map_err(|e| StateError::Damaged { path: path.clone(), why: e.to_string() })?;
        replace(&dir, &path, &bytes).map_err(system("write", &path))
    }
}

fn this_version<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    match u32::deserialize(from)? {
        VERSION => Ok(VERSION),
        other => Err(D::Error::custom(format!("it is of version {other}, not {VERSION}"))),
    }
}

fn replace(dir: &Path, path: &Path, bytes: &[u8]) -> io::Result<()> {
    let beside = path.with_extension("new");
    let mut file = File::create(&beside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&beside, path)?;
    File::open(dir)?.sync_all()
}

fn make_dir(dir: &Path) -> Result<(), StateError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(system("make the directory", dir))
}

fn system(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.to_owned();
    move |source| StateError::System { what, path, source }
}

/// Whether this process may list a directory and make files in it.
pub(super) fn check_usable(dir: &Path) -> io::Result<()> {
    match accessat(CWD, dir, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS) {
        // A filter of system calls that is older than this one: nothing is known.
        Ok(()) | Err(Errno::PERM) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(generation: u32) -> GroupState {
        GroupState {
            version: VERSION,
            id: GroupId([7; 16]),
            generation: Generation(generation),
            next_region: 2,
            next_session: 1,
            users: vec![1000],
            paused: BTreeSet::from(["beta".into()]),
            regions: vec![RegionState {
                region: RegionId(1),
                path: "/mnt/pmem/a".into(),
                file: FileId { device: 1, inode: 2, born: Some((3, 4)) },
                len: 4096,
                partial: false,
                mapped: false,
                rest: None,
            }],
        }
    }

    #[test]
    fn state_survives_the_agent() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateDir::open(dir.path()).unwrap();
        assert_eq!(first.load::<GroupState>("db", "group.json").unwrap(), None);
        first.save("db", "group.json", &state(1)).unwrap();
        first.save("db", "group.json", &state(2)).unwrap();
        drop(first);
        let second = StateDir::open(dir.path()).unwrap();
        assert_eq!(second.load("db", "group.json").unwrap(), Some(state(2)));
    }

    #[test]
    fn a_second_agent_is_told_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let _first = StateDir::open(dir.path()).unwrap();
        let error = StateDir::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
    }

    #[test]
    fn a_damaged_file_is_refused_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let states = StateDir::open(dir.path()).unwrap();
        let file = states.group_dir("db").unwrap().join("group.json");
        fs::write(&file, b"{\"version\": 1, \"id\"").unwrap();
        assert!(matches!(states.load::<GroupState>("db", "group.json"), Err(StateError::Damaged { .. })));
        assert_eq!(fs::read(&file).unwrap(), b"{\"version\": 1, \"id\"");
    }

    #[test]
    fn a_file_of_another_version_is_refused_for_that() {
        let dir = tempfile::tempdir().unwrap();
        let states = StateDir::open(dir.path()).unwrap();
        let file = states.group_dir("db").unwrap().join("group.json");
        fs::write(&file, b"{\"version\": 1, \"shape\": \"old\"}").unwrap();
        let why = states.load::<GroupState>("db", "group.json").unwrap_err().to_string();
        assert!(why.contains("version 1, not 2") && why.contains("move it away"), "{why}");
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let states = StateDir::open(dir.path()).unwrap();
        states.save("db", "group.json", &state(1)).unwrap();
        // What is written beside cannot be made where a directory stands.
        fs::create_dir(states.group_dir("db").unwrap().join("group.new")).unwrap();
        assert!(matches!(states.save("db", "group.json", &state(2)), Err(StateError::System { .. })));
        assert_eq!(states.load("db", "group.json").unwrap(), Some(state(1)));
    }
}
