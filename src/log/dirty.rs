//! The region table and the dirty bitmap: where pages are noted that change while the application runs ahead.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use super::layout::{ENTRY, LogError};
use super::region::LogRegion;
use crate::types::{ByteRange, RegionId};

const BITS: u64 = 64;

/// A region's share of the dirty bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionEntry {
    /// Bytes of the region.
    pub size: u64,
    /// Its first bit in the bitmap: a multiple of 64, so that no two regions share a word.
    pub first_bit: u64,
    /// A bit stands for `1 << page_shift` bytes; 12 or more.
    pub page_shift: u32,
}

impl RegionEntry {
    /// Bits that the region takes, in whole words.
    pub fn bits(&self) -> u64 {
        self.size.div_ceil(1 << self.page_shift).next_multiple_of(BITS)
    }
}

impl LogRegion {
    /// Agent: sets or clears a region's entry. An entry that grows keeps its bits if `first_bit` and `page_shift` stay.
    pub fn set_region(&self, id: RegionId, entry: Option<RegionEntry>) -> Result<(), LogError> {
        let at = self.entry_at(id).ok_or_else(|| {
            LogError::Geometry(format!("region {id}; the table holds {}", self.spec().regions))
        })?;
        let Some(entry) = entry else {
            self.control().u64(at).store(0, Release);
            return Ok(());
        };
        self.check(&entry)?;
        let before = self.region(id);
        if before.is_none_or(|b| (b.first_bit, b.page_shift) != (entry.first_bit, entry.page_shift)) {
            // No appender may use half an entry: it is taken out first, and put in last.
            self.control().u64(at).store(0, Release);
        }
        self.control().u64(at + 8).store(entry.first_bit, Release);
        self.control().u64(at + 16).store(u64::from(entry.page_shift), Release);
        // Size 0 would read as no entry; an empty region has no pages either.
        self.control().u64(at).store(entry.size, Release);
        Ok(())
    }

    /// A region's entry, if it has one that fits.
    pub fn region(&self, id: RegionId) -> Option<RegionEntry> {
        let at = self.entry_at(id)?;
        let size = self.control().u64(at).load(Acquire);
        let first_bit = self.control().u64(at + 8).load(Acquire);
        let page_shift = self.control().u64(at + 16).load(Acquire) as u32;
        let entry = RegionEntry { size, first_bit, page_shift };
        // Anyone in the group can write here, so it is checked at every use.
        (size != 0 && self.check(&entry).is_ok()).then_some(entry)
    }

    /// Notes that the pages under `range` changed. What lies outside the entry is not noted: the copy that closes a
    /// gap covers regions that are new or have grown as a whole.
    pub(crate) fn set_dirty(&self, id: RegionId, range: ByteRange) {
        let Some(entry) = self.region(id) else { return };
        if range.len == 0 || range.offset >= entry.size {
            return;
        }
        let last = (range.end().min(entry.size) - 1) >> entry.page_shift;
        for bit in (range.offset >> entry.page_shift)..=last {
            let (word, mask) = self.bit(entry.first_bit + bit);
            // The caller's fence stands between its stores and this load, so a bit that we find set is taken after
            // them; pairs with the swap in `take_dirty`.
            if word.load(Relaxed) & mask == 0 {
                word.fetch_or(mask, AcqRel);
            }
        }
    }

    /// Agent: takes the region's bits out and returns the ranges that they stood for, neighbours joined. Read the
    /// pages after this, never before.
    pub fn take_dirty(&self, id: RegionId) -> impl Iterator<Item = ByteRange> + use<> {
        let mut ranges: Vec<ByteRange> = Vec::new();
        if let Some(entry) = self.region(id) {
            let page = 1u64 << entry.page_shift;
            for first in (0..entry.bits()).step_by(BITS as usize) {
                let mut set = self.take_word(&entry, first);
                while set != 0 {
                    let offset = (first + u64::from(set.trailing_zeros())) * page;
                    set &= set - 1;
                    match ranges.last_mut() {
                        Some(last) if last.end() == offset => last.len += page,
                        _ => ranges.push(ByteRange::new(offset, page)),
                    }
                }
            }
            if let Some(last) = ranges.last_mut() {
                last.len = last.end().min(entry.size) - last.offset;
            }
        }
        ranges.into_iter()
    }

    /// Agent: takes the region's bits out unread. Costs no memory, whatever a hostile application has set.
    pub fn clear_dirty(&self, id: RegionId) {
        if let Some(entry) = self.region(id) {
            for first in (0..entry.bits()).step_by(BITS as usize) {
                self.take_word(&entry, first);
            }
        }
    }

    /// Takes out the bits of a region from its bit `first` on, as many as a word has.
    fn take_word(&self, entry: &RegionEntry, first: u64) -> u64 {
        let (word, _) = self.bit(entry.first_bit + first);
        if word.load(Acquire) == 0 { 0 } else { word.swap(0, AcqRel) }
    }

    fn bit(&self, bit: u64) -> (&std::sync::atomic::AtomicU64, u64) {
        let word = self.bitmap_off() + (bit / BITS * 8) as usize;
        (self.control().u64(word), 1 << (bit % BITS))
    }

    fn entry_at(&self, id: RegionId) -> Option<usize> {
        (u32::from(id.0) < self.spec().regions).then(|| self.regions_off() + usize::from(id.0) * ENTRY)
    }

    fn check(&self, entry: &RegionEntry) -> Result<(), LogError> {
        let fits = (12..=40).contains(&entry.page_shift)
            && entry.size <= 1 << super::format::OFFSET_BITS
            && entry.first_bit.is_multiple_of(BITS)
            && entry
                .first_bit
                .checked_add(entry.bits())
                .is_some_and(|end| end <= self.spec().bitmap_bytes * 8);
        if fits {
            return Ok(());
        }
        Err(LogError::Geometry(format!(
            "{entry:?} does not fit a bitmap of {} bytes",
            self.spec().bitmap_bytes
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::super::layout::LogSpec;
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;

    const ID: RegionId = RegionId(3);

    fn region(size: u64, page_shift: u32) -> Arc<LogRegion> {
        let (_fd, log) =
            LogRegion::create(&LogSpec { ring_bytes: 1 << 16, bitmap_bytes: 4096, ..LogSpec::default() })
                .unwrap();
        log.set_region(ID, Some(RegionEntry { size, first_bit: 128, page_shift })).unwrap();
        log
    }

    proptest! {
        #[test]
        fn what_is_taken_covers_what_was_noted_once(notes in prop::collection::vec((0u64..1 << 20, 1u64..9000), 0..20)) {
            let size = 1_000_000;
            let log = region(size, 12);
            let mut pages = std::collections::BTreeSet::new();
            for &(offset, len) in &notes {
                log.set_dirty(ID, ByteRange::new(offset, len));
                pages.extend((offset..(offset + len).min(size)).map(|b| b >> 12));
            }
            let taken: Vec<_> = log.take_dirty(ID).collect();
            let covered: std::collections::BTreeSet<u64> =
                taken.iter().flat_map(|r| (r.offset..r.end()).map(|b| b >> 12)).collect();
            prop_assert_eq!(covered, pages);
            prop_assert!(taken.iter().all(|r| r.end() <= size));
            prop_assert!(taken.windows(2).all(|w| w[0].end() < w[1].offset));
            prop_assert_eq!(log.take_dirty(ID).count(), 0);
            log.set_dirty(ID, ByteRange::new(0, size));
            log.clear_dirty(ID);
            prop_assert_eq!(log.take_dirty(ID).count(), 0);
        }
    }

    #[test]
    fn an_entry_outside_the_bitmap_is_refused() {
        let log = region(4096, 12);
        for entry in [
            RegionEntry { size: 1 << 40, first_bit: 0, page_shift: 12 },
            RegionEntry { size: 4096, first_bit: 1, page_shift: 12 },
            RegionEntry { size: 4096, first_bit: 4096 * 8, page_shift: 12 },
            RegionEntry { size: 4096, first_bit: 0, page_shift: 70 },
        ] {
            assert!(log.set_region(ID, Some(entry)).is_err(), "{entry:?}");
        }
        assert!(log.set_region(RegionId(u16::MAX), None).is_err());
    }
}
