//! What a promotion would yield: done on a copy of a destination's replica, by the code that does it in earnest.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use pmemha::replica::Replica;
use pmemha::replica::applier::ApplierConfig;
use pmemha::replica::promote::Request;
use pmemha::replica::recover::Recovery;
use pmemha::replica::status::ReplicaStatus;
use pmemha::replica::store::disk::DiskStore;
use pmemha::types::{Durability, GroupId};
use tempfile::TempDir;

use crate::dirs;
use crate::load::Files;
use crate::node::Node;

/// The replica's directory as it was at one instant, not opened.
pub struct Snapshot {
    dir: TempDir,
    group: GroupId,
}

impl Snapshot {
    /// Of `node`'s replica of the group `app`; its agent must not run, or stand still.
    pub fn of(node: &Node) -> Snapshot {
        let group = identity(&node.dir().join("state/groups/app/replica.json"));
        Snapshot::copy(&node.replica(), group)
    }

    /// Of a destination on another machine: `tar`, compressed by gzip, has its folder `replica` and the file `replica.json` of its
    /// group's state.
    pub fn of_archive(tar: &[u8]) -> Snapshot {
        let dir = dirs::in_memory();
        let mut child = Command::new("tar")
            .args(["-xzSf", "-", "-C"])
            .arg(dir.path())
            .stdin(Stdio::piped())
            .spawn()
            .expect("tar is there");
        child.stdin.take().expect("piped").write_all(tar).expect("tar reads it all");
        assert!(child.wait().expect("our own child").success(), "an archive of {} bytes is bad", tar.len());
        let group = identity(&dir.path().join("replica.json"));
        Snapshot { dir, group }
    }

    /// Another one of the same.
    pub fn again(&self) -> Snapshot {
        Snapshot::copy(&self.replica(), self.group)
    }

    fn copy(replica: &Path, group: GroupId) -> Snapshot {
        let dir = dirs::in_memory();
        let status = Command::new("cp")
            .args(["-a", "--sparse=always"])
            .args([replica, &dir.path().join("replica")])
            .status()
            .expect("cp is there");
        assert!(status.success(), "the replica cannot be copied");
        Snapshot { dir, group }
    }

    /// Its directory.
    pub fn replica(&self) -> PathBuf {
        self.dir.path().join("replica")
    }

    /// Opens it as an agent does after a crash. `sources`: where the files may be at the source.
    pub fn open(self, sources: &[&Path]) -> Copy {
        fs::create_dir(self.dir.path().join("files")).expect("an own directory");
        let config = ApplierConfig {
            store: Arc::new(DiskStore::new(Durability::Battery)),
            dir: self.replica(),
            group: self.group,
            durability: Durability::Battery,
        };
        let (replica, recovery) = Replica::open(config).expect("a replica opens after any crash");
        let sources = sources.iter().map(|s| s.to_path_buf()).collect();
        Copy { dir: self.dir, replica, recovery, sources }
    }
}

/// The group's identity, in the file in which a destination keeps it.
fn identity(file: &Path) -> GroupId {
    let known = fs::read_to_string(file).expect("the destination has been given the group's identity");
    let known: serde_json::Value = serde_json::from_str(&known).expect("JSON");
    serde_json::from_value(known["id"].clone()).expect("an identity")
}

/// A copy of a replica, opened.
pub struct Copy {
    dir: TempDir,
    replica: Replica,
    recovery: Recovery,
    sources: Vec<PathBuf>,
}

impl Copy {
    /// See [`Snapshot::of`] and [`Snapshot::open`].
    pub fn of(node: &Node, sources: &[&Path]) -> Copy {
        Snapshot::of(node).open(sources)
    }

    /// What had landed and was applied when it was opened.
    pub fn recovery(&self) -> &Recovery {
        &self.recovery
    }

    /// How far it is, after whatever had landed has been applied.
    pub fn status(&self) -> ReplicaStatus {
        self.replica.status()
    }

    /// Promotes the copy; where the files are then.
    pub fn promote(&mut self) -> Result<Files, String> {
        let files = self.dir.path().join("files");
        let paths: BTreeMap<_, _> = self.sources.iter().map(|s| (s.clone(), files.clone())).collect();
        let request = Request { paths: &paths, owner: None };
        self.replica.promote(&request).map_err(|e| e.to_string())?;
        Ok(Files::of(&files))
    }
}
