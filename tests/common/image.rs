//! What a promotion would yield: done on a copy of a destination's replica, by the code that does it in earnest.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use pmemha::replica::Replica;
use pmemha::replica::applier::ApplierConfig;
use pmemha::replica::promote::Request;
use pmemha::replica::status::ReplicaStatus;
use pmemha::replica::store::disk::DiskStore;
use pmemha::types::{Durability, GroupId};
use tempfile::TempDir;

use crate::dirs;
use crate::load::Files;
use crate::node::Node;

/// A copy of a replica as it was at one instant.
pub struct Copy {
    dir: TempDir,
    replica: Replica,
    sources: Vec<std::path::PathBuf>,
}

impl Copy {
    /// Of `node`'s replica of the group `app`; its agent must not run, or stand still. `sources`: where the files may be at
    /// the source.
    pub fn of(node: &Node, sources: &[&Path]) -> Copy {
        let known = fs::read_to_string(node.dir().join("state/groups/app/replica.json"));
        let known = known.expect("the destination has been given the group's identity");
        let known: serde_json::Value = serde_json::from_str(&known).expect("JSON");
        let id: GroupId = serde_json::from_value(known["id"].clone()).expect("an identity");
        let dir = dirs::in_memory();
        let status = Command::new("cp")
            .args(["-a", "--sparse=always"])
            .args([node.replica().as_path(), &dir.path().join("replica")])
            .status()
            .expect("cp is there");
        assert!(status.success(), "the replica cannot be copied");
        fs::create_dir(dir.path().join("files")).expect("an own directory");
        let config = ApplierConfig {
            store: Arc::new(DiskStore::new(Durability::Battery)),
            dir: dir.path().join("replica"),
            group: id,
            durability: Durability::Battery,
        };
        let (replica, _) = Replica::open(config).expect("a replica opens after any crash");
        Copy { dir, replica, sources: sources.iter().map(|s| s.to_path_buf()).collect() }
    }

    /// How far it is, after whatever had landed has been applied.
    pub fn status(&self) -> ReplicaStatus {
        self.replica.status()
    }

    /// Promotes the copy; where the files are then.
    pub fn promote(&mut self) -> Result<Files, String> {
        let files = self.dir.path().join("files");
        let paths: BTreeMap<_, _> = self.sources.iter().map(|s| (s.clone(), files.clone())).collect();
        let request = Request { saved: None, force: true, paths: &paths, owner: None };
        self.replica.promote(&request).map_err(|e| e.to_string())?;
        Ok(Files::of(&files))
    }
}
