//! An image's manifest: which regions it has, and up to where that is known.
//!
//! One line of JSON and one line with its CRC32C, replaced atomically. Every change of metadata is committed by
//! the replacement, so that after a crash it happened or it did not. `docs/image-format.md` specifies it.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::ImageError;
use crate::log::format::MAX_NAME;
use crate::replica::store::sealed::{seal, unseal};
use crate::replica::store::{Store, replace};
use crate::types::{Generation, GroupId, Lsn, RegionId};

/// Version of the layout; others are refused.
pub const VERSION: u32 = 1;

/// File name in the image's directory.
pub const FILE: &str = "manifest.json";

/// Most regions of a group: each holds a descriptor and a mapping.
pub const MAX_REGIONS: usize = 4096;

/// Longest manifest: every region with the longest name, escaped.
pub const MAX_BYTES: u64 = (MAX_REGIONS * (6 * MAX_NAME + 256)) as u64;

/// What an image is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageState {
    /// A sync fills it; it means nothing yet.
    Building,
    /// Complete; records are applied to it.
    Live,
    /// Complete at `lsn`, and stays so: a newer image is being built, or the stream ended.
    Frozen,
    /// Was live when records that it may hold parts of were lost: only a new sync helps.
    Torn,
}

/// Content of the manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// [`VERSION`].
    pub version: u32,
    /// The group.
    pub group: GroupId,
    /// Generation of the stream.
    pub generation: Generation,
    /// Number of the image, as in the directory's name.
    pub image: u64,
    /// What it is good for.
    pub state: ImageState,
    /// Every record below is in the image (see the position file for how much more is).
    pub lsn: Lsn,
    /// Chained digest at `lsn`.
    pub digest: u64,
    /// LSN just past the `SyncEnd` that completed it; 0 before.
    pub counts_from: Lsn,
    /// Its regions, by number.
    pub regions: Vec<RegionEntry>,
}

/// One region.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegionEntry {
    /// Number in the group.
    pub id: RegionId,
    /// Name at the source: data, never a path here.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Access bits at the source.
    pub mode: u32,
    /// LSN of the record that created it; with `id` it names the file.
    pub created: Lsn,
}

impl RegionEntry {
    /// Name of the file with the region's bytes in the image's directory.
    pub fn file_name(&self) -> String {
        format!("region-{}-{}", self.id, self.created)
    }
}

impl Manifest {
    /// The region of that number.
    pub fn region(&self, id: RegionId) -> Option<&RegionEntry> {
        self.regions.binary_search_by_key(&id.0, |r| r.id.0).ok().map(|i| &self.regions[i])
    }

    /// Puts a region in, in place of one of the same number.
    pub fn put(&mut self, entry: RegionEntry) {
        match self.regions.binary_search_by_key(&entry.id.0, |r| r.id.0) {
            Ok(i) => self.regions[i] = entry,
            Err(i) => self.regions.insert(i, entry),
        }
    }

    /// Writes it, atomically and durably.
    pub fn store(&self, store: &dyn Store, dir: &Path) -> std::io::Result<()> {
        let text = seal(&serde_json::to_string(self)?);
        replace(store, dir, FILE, text.as_bytes())
    }

    /// Reads and checks it.
    pub fn load(store: &dyn Store, dir: &Path) -> Result<Manifest, ImageError> {
        let path = dir.join(FILE);
        let bytes = store.read(&path, MAX_BYTES).map_err(|e| ImageError::io("read", &path, e))?;
        Manifest::parse(&bytes).map_err(|what| ImageError::Damaged { path, what })
    }

    /// Reads it from bytes; says what is wrong with them.
    pub fn parse(bytes: &[u8]) -> Result<Manifest, String> {
        let json = unseal(bytes)?;
        let manifest: Manifest = serde_json::from_str(json).map_err(|e| e.to_string())?;
        if manifest.version != VERSION {
            return Err(format!("version {} where this program knows {VERSION}", manifest.version));
        }
        if !manifest.regions.is_sorted_by(|a, b| a.id.0 < b.id.0) || manifest.regions.len() > MAX_REGIONS {
            return Err("regions out of order".to_owned());
        }
        Ok(manifest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replica::store::disk::DiskStore;
    use crate::types::Durability;

    fn manifest() -> Manifest {
        Manifest {
            version: VERSION,
            group: GroupId([1; 16]),
            generation: Generation(2),
            image: 3,
            state: ImageState::Live,
            lsn: Lsn(64),
            digest: u64::MAX,
            counts_from: Lsn(32),
            regions: vec![RegionEntry {
                id: RegionId(1),
                name: "/a\n../\u{1F600}".into(),
                size: 5,
                mode: 0o600,
                created: Lsn(32),
            }],
        }
    }

    #[test]
    fn it_comes_back_as_it_was_and_any_changed_byte_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let store = DiskStore::new(Durability::Disk);
        manifest().store(&store, dir.path()).unwrap();
        assert_eq!(Manifest::load(&store, dir.path()).unwrap(), manifest());
        let bytes = std::fs::read(dir.path().join(FILE)).unwrap();
        for i in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[i] ^= 1;
            assert!(Manifest::parse(&bad).is_err(), "byte {i}");
            assert!(Manifest::parse(&bytes[..i]).is_err(), "cut at {i}");
        }
    }

    #[test]
    fn unknown_fields_and_versions_are_refused() {
        let json = serde_json::to_string(&manifest()).unwrap();
        assert!(Manifest::parse(seal(&json).as_bytes()).is_ok());
        let newer = json.replacen("\"version\":1", "\"version\":2", 1);
        assert!(Manifest::parse(seal(&newer).as_bytes()).unwrap_err().contains("version 2"));
        let extra = json.replacen('{', "{\"more\":1,", 1);
        assert!(Manifest::parse(seal(&extra).as_bytes()).unwrap_err().contains("more"));
    }
}
