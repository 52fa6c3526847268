//! Digests of pages of the live image, beside the thread that applies to it: for the source's search for writes that pass
//! the log by.
//!
//! Only reads, through files of its own, so it neither waits for the applier nor disturbs it. A page may be read in the middle
//! of a record's application; the asker believes only what it finds twice with no record between.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use super::image::manifest::{ImageState, Manifest};
use super::image::set::PREFIX;
use super::store::Store;
use crate::region::sampling;
use crate::types::{Generation, RegionId};

/// Digests of `pages` of `region` as the live image of `generation` in the replica's directory `dir` holds them; none if there
/// is no such image or region.
pub fn digests(
    store: &dyn Store,
    dir: &Path,
    generation: Generation,
    region: RegionId,
    pages: &[u64],
) -> Option<Vec<u64>> {
    let names = store.list(dir).ok()?;
    let live = names.iter().filter(|name| name.starts_with(PREFIX)).find_map(|name| {
        let image = dir.join(name);
        let manifest = Manifest::load(store, &image).ok()?;
        let follows = manifest.state == ImageState::Live && manifest.generation == generation;
        follows.then_some((image, manifest))
    });
    let (image, manifest) = live?;
    let file = File::open(image.join(manifest.region(region)?.file_name())).ok()?;
    sampling::digests(file.as_fd(), pages).ok()
}
