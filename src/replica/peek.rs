//! Digests of images, beside the thread that applies to them: of pages of the live one, for the source's search for writes that
//! pass the log by, and of the one before, from which the one being built is completed.
//!
//! Only reads, through files of its own, so it neither waits for the applier nor disturbs it. A page may be read in the middle
//! of a record's application; the asker believes only what it finds twice with no record between.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use super::image::manifest::{ImageState, Manifest};
use super::image::set::PREFIX;
use super::store::Store;
use crate::region::sampling;
use crate::types::{Generation, Lsn, RegionId};

/// Digests of `pages` of `region` as the live image of `generation` in the replica's directory `dir` holds them; none if there
/// is no such image or region.
pub fn digests(
    store: &dyn Store,
    dir: &Path,
    generation: Generation,
    region: RegionId,
    pages: &[u64],
) -> Option<Vec<u64>> {
    sampling::digests(File::open(live(store, dir, generation, region)?).ok()?.as_fd(), pages).ok()
}

/// Digests of `count` blocks of `block` bytes, from number `first` on, as [`digests`].
pub fn blocks(
    store: &dyn Store,
    dir: &Path,
    generation: Generation,
    region: RegionId,
    (block, first, count): (usize, u64, usize),
) -> Option<Vec<u64>> {
    store.block_digests(&live(store, dir, generation, region)?, block, first, count).ok()
}

/// The file of `region` in the live image.
fn live(store: &dyn Store, dir: &Path, generation: Generation, region: RegionId) -> Option<PathBuf> {
    let follows = |m: &Manifest| m.state == ImageState::Live && m.generation == generation;
    let (image, manifest) = images(store, dir).into_iter().find(|(_, manifest)| follows(manifest))?;
    Some(image.join(manifest.region(region)?.file_name()))
}

/// What the asker of [`base`] wants to know.
#[derive(Clone, Copy, Debug)]
pub struct BaseQuery<'a> {
    /// Generation of the stream.
    pub generation: Generation,
    /// Just past the `SyncBegin` of the copy.
    pub begin: Lsn,
    /// Name of the region.
    pub name: &'a str,
    /// Bytes of a block.
    pub block: usize,
    /// Number of the first block.
    pub first: u64,
    /// How many.
    pub count: usize,
}

/// The region of the image before that a copy may refer to, and digests of its blocks; none if there is none of the name, or no
/// image before that could be promoted.
pub type Base = Option<(RegionId, Vec<u64>)>;

/// Asks the image before the one that the copy fills. None if that copy has not begun in the replica's directory `dir`: what is
/// there may change until then.
pub fn base(store: &dyn Store, dir: &Path, query: BaseQuery<'_>) -> Option<Base> {
    let images = images(store, dir);
    let newest = images.iter().map(|(_, manifest)| manifest).max_by_key(|m| m.image)?;
    let begun = newest.state == ImageState::Building && newest.generation == query.generation;
    if !begun || newest.lsn < query.begin {
        return None;
    }
    let complete =
        images.iter().filter(|(_, m)| m.state != ImageState::Building).max_by_key(|(_, m)| m.image);
    let digests = || {
        let (image, manifest) = complete.filter(|(_, m)| m.state == ImageState::Frozen)?;
        let region = manifest.regions.iter().find(|region| region.name == query.name)?;
        let file = image.join(region.file_name());
        let digests = store.block_digests(&file, query.block, query.first, query.count).ok()?;
        Some((region.id, digests))
    };
    Some(digests())
}

fn images(store: &dyn Store, dir: &Path) -> Vec<(PathBuf, Manifest)> {
    let names = store.list(dir).unwrap_or_default();
    let image = |name: &String| {
        let image = dir.join(name);
        let manifest = Manifest::load(store, &image).ok()?;
        Some((image, manifest))
    };
    names.iter().filter(|name| name.starts_with(PREFIX)).filter_map(image).collect()
}
