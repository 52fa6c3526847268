//! The images of one group in one directory: the one that counts and, during a sync, the one being built.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

use super::ImageError;
use super::manifest::{ImageState, Manifest, RegionEntry};
use super::one::Image;
use super::position::{Cursor, Position, PositionFile, Stream};
use super::record::{Change, decode};
use crate::log::digest::chain;
use crate::log::format::{Kind, RecordHeader};
use crate::replica::store::{Bytes, Store};
use crate::types::{Generation, GroupId, Lsn, PAGE, RegionId};

/// Name of an image's directory begins with this.
pub const PREFIX: &str = "image-";

/// Images of one group, and how far the stream has been applied to them.
///
/// One thread applies. After an error nothing is lost, but the set must be opened again before it is used further:
/// the failed operation is repeated from the stored position then.
pub struct ImageSet {
    store: Arc<dyn Store>,
    dir: PathBuf,
    group: GroupId,
    position: PositionFile,
    /// The complete image.
    current: Option<Image>,
    /// The one that a sync fills.
    building: Option<Image>,
    cursor: Cursor,
    /// The images hold exactly the records below the cursor: nothing of later ones, nothing half.
    exact: bool,
    sync_bytes: u64,
}

/// What a promotion would yield.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Promotable {
    /// Number of the image.
    pub image: u64,
    /// Generation of the stream that built it.
    pub generation: Generation,
    /// Every record below is in it, and none above.
    pub lsn: Lsn,
    /// Chained digest at `lsn`.
    pub digest: u64,
    /// It follows the stream; otherwise it stays as it is until the next sync is complete.
    pub live: bool,
}

/// A region of an image and the file that holds its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionFilePath {
    /// What the manifest says.
    pub entry: RegionEntry,
    /// Where the bytes are.
    pub path: PathBuf,
}

impl ImageSet {
    /// Opens or creates the set in `dir`, and clears away what a crash left half done.
    pub fn open(store: Arc<dyn Store>, dir: &Path, group: GroupId) -> Result<ImageSet, ImageError> {
        let parent = dir.parent().unwrap_or(Path::new("/"));
        let made = store.create_dir(dir).and_then(|()| store.sync_dir(parent));
        made.map_err(|e| ImageError::io("create", dir, e))?;
        let (position, found) = PositionFile::open(&*store, dir)?;
        let mut set = ImageSet {
            store,
            dir: dir.to_owned(),
            group,
            position,
            current: None,
            building: None,
            cursor: found.unwrap_or_default().at,
            exact: true,
            sync_bytes: 0,
        };
        set.open_images(found.as_ref())?;
        if found.is_none() && (set.current.is_some() || set.building.is_some()) {
            let path = dir.join(super::position::FILE);
            return Err(ImageError::Damaged { path, what: "no valid slot although there are images".into() });
        }
        let named = found.unwrap_or_default().image;
        if set.newest() < named {
            return Err(ImageError::Missing { path: dir.join(format!("{PREFIX}{named}")) });
        }
        let ahead = set.images().map(|image| at_manifest(image.manifest()));
        let ahead = ahead.filter(|at| at.generation == set.cursor.generation).max_by_key(|at| at.lsn);
        set.cursor = ahead.filter(|at| at.lsn > set.cursor.lsn).unwrap_or(set.cursor);
        set.exact = set.cursor.lsn >= set.position.now().redo_end;
        Ok(set)
    }

    fn images(&self) -> impl Iterator<Item = &Image> {
        self.current.iter().chain(&self.building)
    }

    /// Number of the newest image; 0: none.
    fn newest(&self) -> u64 {
        self.images().map(|image| image.manifest().image).max().unwrap_or(0)
    }

    /// The newest complete image and a newer one being built are kept; the rest is left over from a crash. So is one being built that
    /// a restart had taken leave of: the position does not name it and is past its beginning.
    fn open_images(&mut self, position: Option<&Position>) -> Result<(), ImageError> {
        let mut found = Vec::new();
        for name in self.store.list(&self.dir).map_err(|e| ImageError::io("list", &self.dir, e))? {
            let Some(number) = name.strip_prefix(PREFIX).and_then(|n| n.parse::<u64>().ok()) else {
                continue;
            };
            let dir = self.dir.join(&name);
            match Manifest::load(&*self.store, &dir) {
                Ok(manifest) if manifest.group != self.group => {
                    return Err(ImageError::Foreign { path: dir });
                }
                Ok(manifest) if manifest.image != number => {
                    return Err(ImageError::Damaged {
                        path: dir,
                        what: "holds the manifest of another".into(),
                    });
                }
                Ok(manifest) => found.push((dir, manifest)),
                // Its creation was cut short before it meant anything.
                Err(ImageError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                    self.remove_image(&dir)?;
                }
                Err(e) => return Err(e),
            }
        }
        found.sort_by_key(|(_, manifest)| manifest.image);
        let complete = found.iter().rposition(|(_, m)| m.state != ImageState::Building);
        let building = found.len().checked_sub(1).filter(|&last| complete != Some(last));
        for (i, (dir, manifest)) in found.into_iter().enumerate() {
            if Some(i) == complete {
                self.current = Some(Image::open(&*self.store, dir, manifest)?);
            } else if Some(i) == building && !position.is_some_and(|p| is_abandoned(&manifest, p)) {
                self.building = Some(Image::open(&*self.store, dir, manifest)?);
            } else {
                self.remove_image(&dir)?;
            }
        }
        Ok(())
    }

    /// Where the next record must stand.
    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    /// What is durable of it.
    pub fn stored(&self) -> Position {
        self.position.now()
    }

    /// Prepares for a stream that does not continue the one so far: of a new generation, or past a gap. It goes on at
    /// `from` with a sync, as this stream. The image stays as it is until that is complete.
    pub fn restart(&mut self, generation: Generation, from: Lsn, stream: Stream) -> Result<(), ImageError> {
        let now = self.cursor;
        if (generation, from) < (now.generation, now.lsn) {
            return Err(ImageError::OutOfOrder {
                got: from,
                generation,
                want: now.lsn,
                want_generation: now.generation,
            });
        }
        let state = if self.is_whole() { ImageState::Frozen } else { ImageState::Torn };
        self.settle(state, now)?;
        let abandoned = self.building.take();
        let at = Cursor { generation, lsn: from, digest: 0 };
        // The position first: it must not name an image that is gone.
        self.position.store(Position { at, redo_end: from, image: self.newest(), stream })?;
        self.cursor = at;
        self.exact = true;
        match abandoned {
            Some(image) => self.remove_image(image.dir()),
            None => Ok(()),
        }
    }

    /// The live image stays as it is from here on. Its records below `at` become durable first.
    fn settle(&mut self, state: ImageState, at: Cursor) -> Result<(), ImageError> {
        match self.current.as_mut().filter(|i| i.manifest().state == ImageState::Live) {
            Some(image) => image.set_state(&*self.store, state, at),
            None => Ok(()),
        }
    }

    /// Applies the record at the cursor. Its checksum and generation have been checked.
    pub fn apply(&mut self, header: &RecordHeader, payload: Bytes<'_>) -> Result<(), ImageError> {
        let after = self.after(header)?;
        let was_exact = std::mem::replace(&mut self.exact, false);
        let done = match header.place() {
            // Nearly every record, and it needs no decoding.
            (id, offset) if header.kind == Kind::Data as u8 && payload.len() == header.len as usize => {
                self.write(id, offset, payload)
            }
            _ => self.change(header, payload, after),
        };
        if let Err(e) = done {
            // A refused record has changed nothing; a failed one may have been done in part.
            self.exact = was_exact && !e.is_temporary();
            return Err(e);
        }
        self.cursor = after;
        self.exact = was_exact || after.lsn >= self.position.now().redo_end;
        Ok(())
    }

    fn change(&mut self, header: &RecordHeader, payload: Bytes<'_>, after: Cursor) -> Result<(), ImageError> {
        let (change, of_copy) = decode(header, payload)?;
        match change {
            Change::SyncBegin(whom) if whom.is_for(self.stored().stream.number, self.follows()) => {
                self.begin_sync(self.cursor, after)
            }
            Change::SyncBegin(_) if self.follows() => Ok(()),
            Change::SyncBegin(_) => self.abandon_sync(),
            Change::SyncEnd => self.end_sync(after),
            _ if of_copy && !self.builds() => Ok(()),
            Change::Same { id, offset, pages, base } => self.take_same(id, offset, pages, base),
            change => self.change_target(change, after),
        }
    }

    /// A hint that this record is soon to be applied: its place in the image is fetched into the cache meanwhile.
    pub fn expect(&mut self, header: &RecordHeader) {
        if Kind::from_byte(header.kind).is_some_and(Kind::is_content)
            && let Some(image) = self.target()
        {
            let (id, offset) = header.place();
            image.expect(id, offset);
        }
    }

    fn after(&self, header: &RecordHeader) -> Result<Cursor, ImageError> {
        let at = self.cursor;
        if header.generation != at.generation.0 || header.lsn != at.lsn.0 {
            return Err(ImageError::OutOfOrder {
                got: Lsn(header.lsn),
                generation: Generation(header.generation),
                want: at.lsn,
                want_generation: at.generation,
            });
        }
        Ok(Cursor { lsn: header.next(), digest: chain(at.digest, header), ..at })
    }

    /// Content, as any record: see [`ImageSet::change_target`].
    fn write(&mut self, id: RegionId, offset: u64, bytes: Bytes<'_>) -> Result<(), ImageError> {
        if let Some(image) = target(&mut self.current, &mut self.building, self.cursor.generation) {
            self.sync_bytes += image.write(id, offset, bytes)?;
        }
        Ok(())
    }

    /// Records that come while no image follows the stream have no effect: the sync that is bound to come reads
    /// later content.
    fn change_target(&mut self, change: Change<'_>, after: Cursor) -> Result<(), ImageError> {
        let created = self.cursor.lsn;
        if let Change::Data(id, offset, bytes) = change {
            return self.write(id, offset, bytes);
        }
        let ImageSet { store, current, building, .. } = self;
        let Some(image) = target(current, building, after.generation) else { return Ok(()) };
        let store = &**store;
        match change {
            Change::Zero(id, offset, len) => image.zero(id, offset, len)?,
            Change::Create { id, name, size, mode } => {
                let entry = RegionEntry { id, name, size, mode, created };
                image.create_region(store, entry, after)?;
            }
            Change::Resize(id, size) => image.resize_region(store, id, size, after)?,
            Change::Rename(id, name) => image.rename_region(store, id, name, after)?,
            Change::Unlink(id) => image.unlink_region(store, id, after)?,
            Change::Filler
            | Change::Data(..)
            | Change::SyncBegin(_)
            | Change::SyncEnd
            | Change::Same { .. } => {}
        }
        Ok(())
    }

    fn target(&mut self) -> Option<&mut Image> {
        target(&mut self.current, &mut self.building, self.cursor.generation)
    }

    /// Whether a complete image follows the stream.
    fn follows(&self) -> bool {
        let live = |i: &Image| i.manifest().state == ImageState::Live && self.is_of_stream(i);
        !self.builds() && self.current.as_ref().is_some_and(live)
    }

    /// Whether one is being built from the stream.
    fn builds(&self) -> bool {
        self.building.as_ref().is_some_and(|i| self.is_of_stream(i))
    }

    fn is_of_stream(&self, image: &Image) -> bool {
        image.manifest().generation == self.cursor.generation
    }

    fn begin_sync(&mut self, at: Cursor, after: Cursor) -> Result<(), ImageError> {
        // Whole by construction: records from here on never go to this image, not even in part.
        self.settle(ImageState::Frozen, at)?;
        let number = 1 + self.newest();
        let image = Image::create(&*self.store, &self.dir, self.group, number, after)?;
        self.sync_bytes = 0;
        if let Some(abandoned) = self.building.replace(image) {
            self.remove_image(abandoned.dir())?;
        }
        Ok(())
    }

    /// The copy that was being built ends here: the one that begins is another's.
    fn abandon_sync(&mut self) -> Result<(), ImageError> {
        let Some(abandoned) = self.building.take_if(|i| i.manifest().generation == self.cursor.generation)
        else {
            return Ok(());
        };
        // The position first: it must not name an image that is gone.
        self.position.store(Position { image: self.newest(), ..self.position.now() })?;
        self.remove_image(abandoned.dir())
    }

    /// Takes pages from the image before, which stays as it is until the new one is complete.
    fn take_same(&mut self, id: RegionId, offset: u64, pages: u64, base: RegionId) -> Result<(), ImageError> {
        let (at, frozen) = (self.cursor.lsn, |i: &&mut Image| i.manifest().state == ImageState::Frozen);
        let impossible = || ImageError::Impossible { lsn: at, what: "a part of an image that is not here" };
        let ImageSet { current, building, sync_bytes, .. } = self;
        let before = current.as_mut().filter(frozen).ok_or_else(impossible)?;
        let size = before.size_of(base).ok_or_else(impossible)?;
        let Some(image) = building else { return Ok(()) };
        for number in (0..u64::from(u64::BITS)).filter(|number| pages >> number & 1 == 1) {
            let from = offset + number * PAGE as u64;
            // Behind the end of the region there it is zero, and an earlier record may have left something here.
            let (mut page, len) = ([0; PAGE], size.saturating_sub(from).min(PAGE as u64) as usize);
            if len > 0 {
                before.read(base, from, &mut page[..len])?;
                *sync_bytes += image.write(id, from, Bytes::Slice(&page))?;
            }
        }
        Ok(())
    }

    fn end_sync(&mut self, after: Cursor) -> Result<(), ImageError> {
        let generation = self.cursor.generation;
        let Some(mut image) = self.building.take_if(|i| i.manifest().generation == generation) else {
            return Ok(());
        };
        // The switch: one atomic replacement of the new image's manifest, whose files were made durable first.
        image.set_state(&*self.store, ImageState::Live, after)?;
        if let Some(old) = self.current.replace(image) {
            self.remove_image(old.dir())?;
        }
        Ok(())
    }

    /// Notes, durably, that records up to `end` are about to be applied.
    pub fn announce(&mut self, end: Lsn) -> Result<(), ImageError> {
        let now = self.position.now();
        if end <= now.redo_end {
            return Ok(());
        }
        self.position.store(Position { redo_end: end, ..now })
    }

    /// Makes what was applied durable and stores the position.
    pub fn persist(&mut self) -> Result<(), ImageError> {
        let at = self.cursor;
        if let Some(image) = self.target() {
            image.sync()?;
        }
        let now = self.position.now();
        let redo_end = now.redo_end.max(at.lsn);
        let position = Position { at, redo_end, image: self.newest(), ..now };
        if now == position {
            return Ok(());
        }
        self.position.store(position)
    }

    /// Takes back what was announced and will not be applied, since a record before it is impossible: the image
    /// stays good up to that record.
    pub fn retract(&mut self) -> Result<(), ImageError> {
        if !self.exact {
            return Ok(());
        }
        let at = self.cursor;
        if let Some(image) = self.target() {
            image.sync()?;
        }
        self.position.store(Position { at, redo_end: at.lsn, image: self.newest(), ..self.position.now() })
    }

    /// Whether everything that may have been applied in part has been applied whole.
    pub fn is_whole(&self) -> bool {
        self.exact
    }

    /// What a promotion would yield now; `None`: nothing that the source could have shown.
    pub fn promotable(&self) -> Option<Promotable> {
        let m = self.current.as_ref()?.manifest();
        let live = m.state == ImageState::Live;
        let at = match m.state {
            ImageState::Live if !self.is_whole() => return None,
            ImageState::Live if m.generation == self.cursor.generation => self.cursor,
            ImageState::Live | ImageState::Frozen => at_manifest(m),
            ImageState::Torn | ImageState::Building => return None,
        };
        Some(Promotable { image: m.image, generation: at.generation, lsn: at.lsn, digest: at.digest, live })
    }

    /// The regions of what [`ImageSet::promotable`] names.
    pub fn regions(&self) -> Vec<RegionFilePath> {
        self.current.as_ref().map(files_of).unwrap_or_default()
    }

    /// Bytes that the sync under way has brought, and the size of the regions that it has named so far.
    pub fn sync_progress(&self) -> Option<(u64, u64)> {
        let m = self.building.as_ref()?.manifest();
        Some((self.sync_bytes, m.regions.iter().map(|r| r.size).sum()))
    }

    /// Number of the image that records are applied to, and LSN from which the live one counts; 0: none.
    pub fn numbers(&self) -> (u64, Lsn) {
        let live = self.current.as_ref().map(|i| i.manifest()).filter(|m| m.state == ImageState::Live);
        let target = self.building.as_ref().map(|i| i.manifest()).or(live);
        (target.map_or(0, |m| m.image), live.map_or(Lsn(0), |m| m.counts_from))
    }

    /// Removes every image: after a promotion has given the bytes to the application.
    pub fn clear(&mut self) -> Result<(), ImageError> {
        self.position.store(Position { image: 0, ..self.position.now() })?;
        for image in [self.building.take(), self.current.take()].into_iter().flatten() {
            self.remove_image(image.dir())?;
        }
        self.store.sync_dir(&self.dir).map_err(|e| ImageError::io("sync", &self.dir, e))
    }

    /// The manifest goes first: a directory without one is never taken for an image, however much of it is left.
    fn remove_image(&self, dir: &Path) -> Result<(), ImageError> {
        let store = &*self.store;
        let unmade = match store.remove_file(&dir.join(super::manifest::FILE)) {
            Ok(()) => store.sync_dir(dir),
            Err(e) => Err(e),
        };
        unmade.and_then(|()| store.remove_dir(dir)).map_err(|e| ImageError::io("remove", dir, e))
    }
}

/// The image that records change: the one being built, else the live one; of this generation.
fn target<'a>(
    current: &'a mut Option<Image>,
    building: &'a mut Option<Image>,
    generation: Generation,
) -> Option<&'a mut Image> {
    let mine = |image: &&mut Image| image.manifest().generation == generation;
    let live = current.as_mut().filter(|i| i.manifest().state == ImageState::Live);
    building.as_mut().filter(mine).or(live.filter(mine))
}

/// Whether [`ImageSet::restart`] stored `position` without `building`: a sync that begins stores none, so that its image lies behind
/// the one stored.
fn is_abandoned(building: &Manifest, position: &Position) -> bool {
    let (at, begun) = (position.at, at_manifest(building));
    building.image > position.image && (at.generation != begun.generation || at.lsn >= begun.lsn)
}

fn at_manifest(m: &Manifest) -> Cursor {
    Cursor { generation: m.generation, lsn: m.lsn, digest: m.digest }
}

fn files_of(image: &Image) -> Vec<RegionFilePath> {
    let regions = image.manifest().regions.iter();
    regions
        .map(|entry| RegionFilePath { entry: entry.clone(), path: image.dir().join(entry.file_name()) })
        .collect()
}
