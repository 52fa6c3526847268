//! What was changed: a small file that is durable before each change, so that whoever finds it can undo all of it.
//!
//! One entry a target, with what it held before the first change. The file is written anew, and replaced as a whole. It names the boot
//! in which it was written: a boot sets back all that it tells of, so what another one has left is dropped.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::change::Change;
use crate::node::placement::cpus::{self, CpuSet};
use crate::node::placement::monitor::Roots;
use crate::remedy;

/// Largest file that is read: entries are some hundred bytes, and there are as many as threads are moved.
const MAX_FILE: u64 = 16 << 20;

/// Version of the file's form.
const VERSION: u32 = 2;

/// The journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    /// None where the system does not tell it.
    boot: Option<String>,
    changes: Vec<Change>,
}

/// Why the journal cannot be used. Nothing is changed without it.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The system refused.
    #[error("the journal of placement {path} cannot be {what}: {source}{}", remedy::of(source))]
    System {
        /// Which file.
        path: String,
        /// What was attempted.
        what: &'static str,
        /// Its answer.
        source: io::Error,
    },
    /// It holds something else.
    #[error(
        "{path} is no journal of placement that this version reads: {why}; if no cpuset or affinity is to be set back, remove it"
    )]
    Malformed {
        /// Which file.
        path: String,
        /// What is wrong.
        why: String,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    version: u32,
    boot: Option<String>,
    changes: Vec<Change>,
}

impl Journal {
    /// The journal at `path`; an empty one if there is none, or one of another boot.
    pub fn open(roots: &Roots, path: &Path) -> Result<Journal, JournalError> {
        let boot = fs::read_to_string(roots.proc.join(BOOT)).ok().map(|id| id.trim().to_owned());
        let failed = |source| system(path, "read", source);
        let changes = match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(failed(error)),
            Ok(meta) if meta.len() > MAX_FILE => {
                return Err(malformed(path, format!("{} bytes", meta.len())));
            }
            Ok(_) => {
                let text = fs::read(path).map_err(failed)?;
                let content: Content =
                    serde_json::from_slice(&text).map_err(|e| malformed(path, e.to_string()))?;
                if content.version != VERSION {
                    return Err(malformed(path, format!("version {}", content.version)));
                }
                let other = content.boot.is_some() && boot.is_some() && content.boot != boot;
                if other { Vec::new() } else { content.changes }
            }
        };
        Ok(Journal { path: path.into(), boot, changes })
    }

    /// What is changed.
    pub fn changes(&self) -> &[Change] {
        &self.changes
    }

    /// Notes changes that are about to be made, durably. `online`: the processors that are, by which lists are compared.
    pub fn note(&mut self, changes: &[Change], online: &CpuSet) -> Result<(), JournalError> {
        let same = |a: &str, b: &str| cpus::same(a, b, online);
        for change in changes {
            match self.changes.iter_mut().find(|noted| noted.target == change.target) {
                Some(noted) if same(&noted.to, &change.from) || same(&noted.was, &change.from) => {
                    noted.was.clone_from(&change.from);
                    noted.to.clone_from(&change.to);
                }
                // Somebody else has changed it since: that is what is put back.
                Some(noted) => *noted = change.clone(),
                None => self.changes.push(change.clone()),
            }
        }
        self.store()
    }

    /// Everything but `left` is undone.
    pub fn keep(&mut self, left: Vec<Change>) -> Result<(), JournalError> {
        let before = std::mem::replace(&mut self.changes, left);
        if !self.changes.is_empty() {
            return if self.changes == before { Ok(()) } else { self.store() };
        }
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(system(&self.path, "removed", error))
            }
            _ => Ok(()),
        }
    }

    fn store(&self) -> Result<(), JournalError> {
        let content = Content { version: VERSION, boot: self.boot.clone(), changes: self.changes.clone() };
        let stored = (|| {
            let text = serde_json::to_vec(&content).map_err(io::Error::other)?;
            let new = self.path.with_extension("new");
            let mut file = File::create(&new)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&new, &self.path)?;
            let dir = self.path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
            File::open(dir)?.sync_all()
        })();
        stored.map_err(|source| system(&self.path, "written", source))
    }
}

/// The number of this boot, below `/proc`.
const BOOT: &str = "sys/kernel/random/boot_id";

fn system(path: &Path, what: &'static str, source: io::Error) -> JournalError {
    JournalError::System { path: path.display().to_string(), what, source }
}

fn malformed(path: &Path, why: String) -> JournalError {
    JournalError::Malformed { path: path.display().to_string(), why }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::placement::actuate::change::{Left, Target};

    fn change(target: &Path, from: &str, to: &str) -> Change {
        Change::new(Target::File(target.into()), from.into(), to.into())
    }

    #[test]
    fn whoever_opens_the_journal_can_put_back_what_was_first() {
        let dir = tempfile::tempdir().unwrap();
        let (path, cpuset) = (dir.path().join("journal"), dir.path().join("cpuset"));
        let (roots, online) = (Roots::below(dir.path()), (0..4).collect());
        let mut journal = Journal::open(&roots, &path).unwrap();
        fs::write(&cpuset, "0-3\n").unwrap();
        journal.note(&[change(&cpuset, "0-3", "0-1")], &online).unwrap();
        fs::write(&cpuset, "0-1\n").unwrap();
        journal.note(&[change(&cpuset, "0-1", "2")], &online).unwrap();
        // Killed before it was written: the file still holds what it was last given.
        let found = Journal::open(&roots, &path).unwrap();
        let [found] = found.changes() else { panic!("{found:?}") };
        assert_eq!((found.from.as_str(), found.to.as_str()), ("0-3", "2"));
        assert_eq!((found.undo(&online), fs::read_to_string(&cpuset).unwrap().as_str()), (Ok(()), "0-3"));
        fs::write(&cpuset, "3\n").unwrap();
        let Err(Left::Theirs(why)) = found.undo(&online) else { panic!("somebody else's is left") };
        assert!(why.contains("`3`"), "{why}");
        // A processor that goes offline vanishes from what is read, and from nothing else.
        fs::write(&cpuset, "2\n").unwrap();
        let wider = change(&cpuset, "0-3", "2-3");
        assert_eq!(
            (wider.undo(&[0, 1, 2].into()), fs::read_to_string(&cpuset).unwrap().as_str()),
            (Ok(()), "0-3")
        );
    }

    #[test]
    fn what_another_boot_has_left_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let (path, cpuset) = (dir.path().join("journal"), dir.path().join("cpuset"));
        let roots = Roots::below(dir.path());
        let id = roots.proc.join(BOOT);
        fs::create_dir_all(id.parent().unwrap()).unwrap();
        fs::write(&id, "one\n").unwrap();
        let online = CpuSet::new();
        Journal::open(&roots, &path).unwrap().note(&[change(&cpuset, "0-3", "0")], &online).unwrap();
        assert_eq!(Journal::open(&roots, &path).unwrap().changes().len(), 1);
        fs::write(&id, "two\n").unwrap();
        assert_eq!(Journal::open(&roots, &path).unwrap().changes(), []);
        fs::remove_file(&id).unwrap();
        assert_eq!(Journal::open(&roots, &path).unwrap().changes().len(), 1, "not known is not another");
    }

    #[test]
    fn a_file_that_is_no_journal_is_refused_and_not_taken_for_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        let roots = Roots::below(dir.path());
        let path = dir.path().join("journal");
        for text in
            ["", "{}", "{\"version\":9,\"changes\":[]}", "{\"version\":2,\"boot\":null,\"changes\":[{}]}"]
        {
            fs::write(&path, text).unwrap();
            assert!(matches!(Journal::open(&roots, &path), Err(JournalError::Malformed { .. })), "{text}");
        }
    }
}
