//! What a record asks of an image: decoded and bounds-checked, before anything is touched.

use super::ImageError;
use crate::log::format::{
    CopyFor, Kind, MAX_NAME, MAX_REGION_BYTES, RecordHeader, RegionPayload, SamePayload, region_name,
};
use crate::replica::store::Bytes;
use crate::types::{Lsn, PAGE, RegionId};
use zerocopy::FromBytes;

/// One record's meaning.
pub(super) enum Change<'a> {
    /// Bytes at an offset.
    Data(RegionId, u64, Bytes<'a>),
    /// That many zeros at an offset.
    Zero(RegionId, u64, u64),
    /// Nothing.
    Filler,
    /// A new region.
    Create { id: RegionId, name: String, size: u64, mode: u32 },
    /// A new size.
    Resize(RegionId, u64),
    /// A new name.
    Rename(RegionId, String),
    /// The end of a region.
    Unlink(RegionId),
    /// A sync begins.
    SyncBegin(CopyFor),
    /// A sync is complete.
    SyncEnd,
    /// Pages from an offset on, by bits, are as in region `base` of the image before.
    Same { id: RegionId, offset: u64, pages: u64, base: RegionId },
}

/// Reads `header` and its payload; whether it is a part of a copy, too.
pub(super) fn decode<'a>(
    header: &RecordHeader,
    payload: Bytes<'a>,
) -> Result<(Change<'a>, bool), ImageError> {
    let impossible = |what| ImageError::Impossible { lsn: Lsn(header.lsn), what };
    let (id, offset) = header.place();
    if payload.len() as u64 != u64::from(header.len) {
        return Err(impossible("payload of another length"));
    }
    let kind = Kind::from_byte(header.kind).ok_or_else(|| impossible("unknown kind"))?;
    let change = match kind.copied().unwrap_or(kind) {
        Kind::Data => Change::Data(id, offset, payload),
        Kind::Zero => {
            if payload.len() != 8 {
                return Err(impossible("zero record without a length"));
            }
            let mut len = [0; 8];
            payload.copy_to(&mut len);
            Change::Zero(id, offset, u64::from_le_bytes(len))
        }
        Kind::Filler => Change::Filler,
        Kind::RegionCreate => {
            const HEAD: usize = size_of::<RegionPayload>();
            if payload.len() < HEAD {
                return Err(impossible("creation record too short"));
            }
            let mut head = [0; HEAD];
            payload.part(0, HEAD).copy_to(&mut head);
            let head =
                RegionPayload::read_from_bytes(&head).map_err(|_| impossible("creation record too short"))?;
            if head.size > MAX_REGION_BYTES {
                return Err(impossible("region larger than any file"));
            }
            let name =
                name(payload.part(HEAD, payload.len() - HEAD)).ok_or_else(|| impossible("bad name"))?;
            Change::Create { id, name, size: head.size, mode: head.mode }
        }
        Kind::RegionResize if offset > MAX_REGION_BYTES => {
            return Err(impossible("region larger than any file"));
        }
        Kind::RegionResize => Change::Resize(id, offset),
        Kind::RegionRename => Change::Rename(id, name(payload).ok_or_else(|| impossible("bad name"))?),
        Kind::RegionUnlink => Change::Unlink(id),
        Kind::SyncBegin => {
            let whom = CopyFor::of(header).ok_or_else(|| impossible("a copy for nobody that is known"))?;
            Change::SyncBegin(whom)
        }
        Kind::SyncEnd => Change::SyncEnd,
        Kind::CopySame => {
            if payload.len() != size_of::<SamePayload>() {
                return Err(impossible("a part of the image before of another length"));
            }
            let mut same = [0; size_of::<SamePayload>()];
            payload.copy_to(&mut same);
            let SamePayload { pages, base, reserved } = zerocopy::transmute!(same);
            if reserved != [0; 3] || offset % PAGE as u64 != 0 {
                return Err(impossible("a part of the image before that is no pages"));
            }
            Change::Same { id, offset, pages, base: RegionId(base) }
        }
        Kind::CopyData | Kind::CopyCreate | Kind::CopyUnlink => {
            unreachable!("what is copied is no copy")
        }
    };
    Ok((change, kind.is_copied()))
}

fn name(bytes: Bytes<'_>) -> Option<String> {
    // Before memory is taken for it.
    if bytes.len() > MAX_NAME {
        return None;
    }
    let mut name = vec![0; bytes.len()];
    bytes.copy_to(&mut name);
    region_name(&name).map(str::to_owned)
}
