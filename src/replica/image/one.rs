//! One image: a directory with a manifest and a file a region.

use std::path::{Path, PathBuf};

use super::ImageError;
use super::manifest::{ImageState, MAX_REGIONS, Manifest, RegionEntry, VERSION};
use super::position::Cursor;
use crate::replica::store::{Bytes, RegionFile, Store};
use crate::types::{GroupId, Lsn, RegionId};

/// An open image. Data goes to its files at once; metadata by way of [`Image::commit`].
pub(super) struct Image {
    dir: PathBuf,
    manifest: Manifest,
    /// By region number.
    files: Vec<Option<OpenRegion>>,
    /// Numbers of the regions written since the last sync.
    unsynced: Vec<usize>,
}

struct OpenRegion {
    file: Box<dyn RegionFile>,
    size: u64,
    unsynced: bool,
}

impl Image {
    pub(super) fn dir_name(number: u64) -> String {
        format!("image-{number}")
    }

    /// A new, empty image, being built from `at`.
    pub(super) fn create(
        store: &dyn Store,
        parent: &Path,
        group: GroupId,
        number: u64,
        at: Cursor,
    ) -> Result<Image, ImageError> {
        let dir = parent.join(Image::dir_name(number));
        let manifest = Manifest {
            version: VERSION,
            group,
            generation: at.generation,
            image: number,
            state: ImageState::Building,
            lsn: at.lsn,
            digest: at.digest,
            counts_from: Lsn(0),
            regions: Vec::new(),
        };
        // Leftovers of an attempt that a crash cut short.
        store.remove_dir(&dir).map_err(|e| ImageError::io("remove", &dir, e))?;
        store.create_dir(&dir).map_err(|e| ImageError::io("create", &dir, e))?;
        manifest.store(store, &dir).map_err(|e| ImageError::io("write the manifest of", &dir, e))?;
        store.sync_dir(parent).map_err(|e| ImageError::io("sync", parent, e))?;
        Ok(Image { dir, manifest, files: Vec::new(), unsynced: Vec::new() })
    }

    /// Opens an image and removes what changes that a crash cut short left beside it.
    pub(super) fn open(store: &dyn Store, dir: PathBuf, manifest: Manifest) -> Result<Image, ImageError> {
        let mut image = Image { dir, manifest, files: Vec::new(), unsynced: Vec::new() };
        let names: Vec<String> = image.manifest.regions.iter().map(RegionEntry::file_name).collect();
        for entry in image.manifest.regions.clone() {
            let file = image.open_file(store, &entry, false)?;
            image.place(&entry, file);
        }
        for name in store.list(&image.dir).map_err(|e| ImageError::io("list", &image.dir, e))? {
            if name.starts_with("region-") && !names.contains(&name) {
                let path = image.dir.join(name);
                store.remove_file(&path).map_err(|e| ImageError::io("remove", &path, e))?;
            }
        }
        Ok(image)
    }

    pub(super) fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes what of `bytes` lies within the region; a region that is not (or not yet) here takes nothing.
    pub(super) fn write(&mut self, id: RegionId, offset: u64, bytes: Bytes<'_>) -> Result<u64, ImageError> {
        let Some(region) = self.touch(id) else { return Ok(0) };
        let len = region.size.saturating_sub(offset).min(bytes.len() as u64);
        if len == 0 {
            return Ok(0);
        }
        let done = region.file.write(offset, bytes.part(0, len as usize));
        done.map_err(|e| self.region_error("write", id, e))?;
        Ok(len)
    }

    /// Bytes of a region, if it is here.
    pub(super) fn size_of(&self, id: RegionId) -> Option<u64> {
        Some(self.files.get(usize::from(id.0))?.as_ref()?.size)
    }

    /// Reads within the size of a region that is here.
    pub(super) fn read(&mut self, id: RegionId, offset: u64, into: &mut [u8]) -> Result<(), ImageError> {
        let Some(Some(region)) = self.files.get_mut(usize::from(id.0)) else { return Ok(()) };
        let done = region.file.read(offset, into);
        done.map_err(|e| self.region_error("read", id, e))
    }

    /// A hint that a write there is to come.
    pub(super) fn expect(&self, id: RegionId, offset: u64) {
        if let Some(Some(region)) = self.files.get(usize::from(id.0)) {
            region.file.expect(offset);
        }
    }

    /// Zeros, clipped likewise.
    pub(super) fn zero(&mut self, id: RegionId, offset: u64, len: u64) -> Result<(), ImageError> {
        let Some(region) = self.touch(id) else { return Ok(()) };
        let len = region.size.saturating_sub(offset).min(len);
        if len == 0 {
            return Ok(());
        }
        let done = region.file.zero(offset, len);
        done.map_err(|e| self.region_error("zero part of", id, e))
    }

    /// Makes everything written durable.
    pub(super) fn sync(&mut self) -> Result<(), ImageError> {
        while let Some(&id) = self.unsynced.last() {
            if let Some(region) = self.files[id].as_mut() {
                if let Err(e) = region.file.sync() {
                    return Err(self.region_error("sync", RegionId(id as u16), e));
                }
                region.unsynced = false;
            }
            self.unsynced.pop();
        }
        Ok(())
    }

    /// A region of that number and name, empty, replaces what had either.
    pub(super) fn create_region(
        &mut self,
        store: &dyn Store,
        entry: RegionEntry,
        at: Cursor,
    ) -> Result<(), ImageError> {
        if self.manifest.regions.len() >= MAX_REGIONS && self.manifest.region(entry.id).is_none() {
            return Err(ImageError::Impossible {
                lsn: entry.created,
                what: "more regions than a group may have",
            });
        }
        let mut file = self.open_file(store, &entry, true)?;
        file.sync().map_err(|e| ImageError::io("sync", &self.dir.join(entry.file_name()), e))?;
        store.sync_dir(&self.dir).map_err(|e| ImageError::io("sync", &self.dir, e))?;
        let mut next = self.manifest.clone();
        next.regions.retain(|r| r.name != entry.name && r.id != entry.id);
        next.put(entry.clone());
        self.commit(store, next, at)?;
        self.place(&entry, file);
        Ok(())
    }

    /// A new size. Growth is durable before the manifest promises it; a cut is repeated at opening if a crash undid it.
    pub(super) fn resize_region(
        &mut self,
        store: &dyn Store,
        id: RegionId,
        size: u64,
        at: Cursor,
    ) -> Result<(), ImageError> {
        let mut next = self.manifest.clone();
        let Some(entry) = next.regions.iter_mut().find(|r| r.id == id) else { return Ok(()) };
        // The file's size, not the manifest's: an attempt that failed half-way is completed by the next one.
        let old = self.files[usize::from(id.0)].as_ref().map_or(size, |r| r.size);
        if entry.size == size && old == size {
            // Several processes may tell the same.
            return Ok(());
        }
        entry.size = size;
        if size > old {
            self.resize_file(id, size)?;
        }
        self.commit(store, next, at)?;
        if size < old {
            self.resize_file(id, size)?;
        }
        Ok(())
    }

    /// A new name; what had it ceases to be.
    pub(super) fn rename_region(
        &mut self,
        store: &dyn Store,
        id: RegionId,
        name: String,
        at: Cursor,
    ) -> Result<(), ImageError> {
        let mut next = self.manifest.clone();
        if next.region(id).is_none() {
            return Ok(());
        }
        next.regions.retain(|r| r.id == id || r.name != name);
        next.regions.iter_mut().filter(|r| r.id == id).for_each(|r| r.name.clone_from(&name));
        self.commit(store, next, at)
    }

    /// The region ceases to be.
    pub(super) fn unlink_region(
        &mut self,
        store: &dyn Store,
        id: RegionId,
        at: Cursor,
    ) -> Result<(), ImageError> {
        let mut next = self.manifest.clone();
        next.regions.retain(|r| r.id != id);
        if next.regions.len() == self.manifest.regions.len() {
            return Ok(());
        }
        self.commit(store, next, at)
    }

    /// Another state.
    pub(super) fn set_state(
        &mut self,
        store: &dyn Store,
        state: ImageState,
        at: Cursor,
    ) -> Result<(), ImageError> {
        let mut next = self.manifest.clone();
        if state == ImageState::Live {
            next.counts_from = at.lsn;
        }
        next.state = state;
        self.commit(store, next, at)
    }

    /// Replaces the manifest: everything below `at` is in the image from here on. Files that it no longer names
    /// go afterwards; a crash in between leaves them to the next opening.
    fn commit(&mut self, store: &dyn Store, mut next: Manifest, at: Cursor) -> Result<(), ImageError> {
        self.sync()?;
        next.lsn = at.lsn;
        next.digest = at.digest;
        next.store(store, &self.dir).map_err(|e| ImageError::io("write the manifest of", &self.dir, e))?;
        let old = std::mem::replace(&mut self.manifest, next);
        for gone in old.regions {
            if self.manifest.region(gone.id).is_none_or(|r| r.created != gone.created) {
                self.files[usize::from(gone.id.0)] = None;
                let path = self.dir.join(gone.file_name());
                store.remove_file(&path).map_err(|e| ImageError::io("remove", &path, e))?;
            }
        }
        Ok(())
    }

    fn touch(&mut self, id: RegionId) -> Option<&mut OpenRegion> {
        let index = usize::from(id.0);
        let region = self.files.get_mut(index)?.as_mut()?;
        if !region.unsynced {
            region.unsynced = true;
            self.unsynced.push(index);
        }
        Some(region)
    }

    fn resize_file(&mut self, id: RegionId, size: u64) -> Result<(), ImageError> {
        let Some(region) = self.touch(id) else { return Ok(()) };
        match region.file.resize(size) {
            Ok(()) => region.size = size,
            Err(e) => return Err(self.region_error("resize", id, e)),
        }
        self.sync()
    }

    fn open_file(
        &self,
        store: &dyn Store,
        entry: &RegionEntry,
        fresh: bool,
    ) -> Result<Box<dyn RegionFile>, ImageError> {
        let path = self.dir.join(entry.file_name());
        store.region(&path, entry.size, fresh).map_err(|e| ImageError::io("open", &path, e))
    }

    fn place(&mut self, entry: &RegionEntry, file: Box<dyn RegionFile>) {
        let index = usize::from(entry.id.0);
        if self.files.len() <= index {
            self.files.resize_with(index + 1, || None);
        }
        // Opening may have cut or extended it: to be synced with the rest.
        self.files[index] = Some(OpenRegion { file, size: entry.size, unsynced: true });
        self.unsynced.push(index);
    }

    fn region_error(&self, what: &'static str, id: RegionId, e: std::io::Error) -> ImageError {
        let name = self.manifest.region(id).map_or_else(|| format!("region {id}"), RegionEntry::file_name);
        ImageError::io(what, &self.dir.join(name), e)
    }
}
