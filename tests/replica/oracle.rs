//! What the image is to be after each record: a model in memory that shares no code with the replica.

use std::collections::BTreeMap;

use pmemha::log::format::{Kind, RecordHeader};
use pmemha::types::Lsn;

use super::stream::STREAM;

/// Regions by number: name and bytes.
pub type Regions = BTreeMap<u16, (String, Vec<u8>)>;

/// What a promotion would yield: where, and the bytes.
pub type Promotable = Option<(Lsn, Regions)>;

#[derive(Clone, Default)]
struct Model {
    stream: u32,
    live: bool,
    complete: Promotable,
    building: Option<Regions>,
}

/// For each record boundary of the stream, what is promotable there. The first entry is before any record.
pub fn prefixes(first: Lsn, records: &[(RecordHeader, Vec<u8>)]) -> Vec<(Lsn, Promotable)> {
    prefixes_as(STREAM, first, records)
}

/// The same at a reader whose stream has another number.
pub fn prefixes_as(stream: u32, first: Lsn, records: &[(RecordHeader, Vec<u8>)]) -> Vec<(Lsn, Promotable)> {
    let mut model = Model { stream, ..Model::default() };
    let mut all = vec![(first, None)];
    for (header, payload) in records {
        model.apply(header, payload);
        all.push((header.next(), model.complete.clone()));
    }
    all
}

impl Model {
    fn apply(&mut self, header: &RecordHeader, payload: &[u8]) {
        let next = header.next();
        match Kind::from_byte(header.kind).unwrap() {
            // For those without an image that follows.
            Kind::SyncBegin if header.place().1 != 0 && self.live && self.building.is_none() => {
                return self.pass(next);
            }
            Kind::SyncBegin
                if header.place().1 & 3 == 2 && header.place().1 >> 2 != u64::from(self.stream) =>
            {
                self.building = None;
                return;
            }
            Kind::SyncBegin => {
                self.building = Some(Regions::new());
                self.live = false;
                return;
            }
            Kind::SyncEnd => {
                if let Some(regions) = self.building.take() {
                    self.complete = Some((next, regions));
                    self.live = true;
                }
                return self.pass(next);
            }
            Kind::CopyData | Kind::CopyCreate | Kind::CopyUnlink | Kind::CopySame
                if self.building.is_none() =>
            {
                return self.pass(next);
            }
            Kind::CopySame => {
                let (id, offset) = header.place();
                let pages = u64::from_le_bytes(payload[..8].try_into().unwrap());
                let base = u16::from_le_bytes(payload[8..10].try_into().unwrap());
                let before = &self.complete.as_ref().unwrap().1[&base].1;
                let Some((_, bytes)) = self.building.as_mut().unwrap().get_mut(&id.0) else { return };
                for page in (0..64).filter(|page| pages & (1 << page) != 0) {
                    let at = offset as usize + page * 4096;
                    overlay(bytes, at, &before[before.len().min(at)..before.len().min(at + 4096)]);
                }
                return;
            }
            _ => {}
        }
        match (&mut self.building, &mut self.complete) {
            (Some(regions), _) => change(regions, header, payload),
            (None, Some((at, regions))) if self.live => {
                change(regions, header, payload);
                *at = next;
            }
            _ => {}
        }
    }
}

impl Model {
    /// A record that changes no byte.
    fn pass(&mut self, next: Lsn) {
        if let (true, Some((at, _))) = (self.live, &mut self.complete) {
            *at = next;
        }
    }
}

fn change(regions: &mut Regions, header: &RecordHeader, payload: &[u8]) {
    let (id, offset) = header.place();
    let (id, offset) = (id.0, offset as usize);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    match Kind::from_byte(header.kind).unwrap() {
        Kind::RegionCreate | Kind::CopyCreate => {
            let size = u64::from_le_bytes(payload[..8].try_into().unwrap()) as usize;
            let name = text(&payload[16..]);
            regions.retain(|_, (n, _)| *n != name);
            regions.insert(id, (name, vec![0; size]));
        }
        Kind::RegionUnlink | Kind::CopyUnlink => {
            regions.remove(&id);
        }
        Kind::RegionRename if regions.contains_key(&id) => {
            let name = text(payload);
            regions.retain(|i, (n, _)| *i == id || *n != name);
            regions.get_mut(&id).unwrap().0 = name;
        }
        kind => {
            let Some((_, bytes)) = regions.get_mut(&id) else { return };
            match kind {
                Kind::RegionResize => bytes.resize(offset, 0),
                Kind::Data | Kind::CopyData => overlay(bytes, offset, payload),
                Kind::Zero => {
                    let len = u64::from_le_bytes(payload.try_into().unwrap()) as usize;
                    overlay(bytes, offset, &vec![0; len]);
                }
                _ => {}
            }
        }
    }
}

fn overlay(bytes: &mut [u8], offset: usize, new: &[u8]) {
    if let Some(rest) = bytes.get_mut(offset..) {
        let n = rest.len().min(new.len());
        rest[..n].copy_from_slice(&new[..n]);
    }
}
