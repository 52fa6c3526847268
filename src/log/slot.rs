//! The slot table's words: which record begins at each place of the ring, and how far it has come.
//!
//! One `u64` for every [`RECORD_ALIGN`] bytes of the ring, apart from the ring itself, so that no word is ever
//! overwritten by a payload. A claim is one compare-and-swap of the word at the tail from that of an earlier lap;
//! since a word carries its lap, a stalled claimer's late swap fails whatever happened meanwhile.
//!
//! ```text
//!   63            span bits + 14        14          2       0
//!   | lap          | span in units of 32 | owner     | state |
//! ```
//!
//! The lap is `lsn / ring` cut to the bits that are left (50 less the span's). So it repeats after
//! 2^56 bytes of log, and then only misleads at a place where no record began in all that time.

use super::format::{RECORD_ALIGN, SlotState};

const STATE_BITS: u32 = 2;
const OWNER_BITS: u32 = 12;
const STATE_MASK: u64 = (1 << STATE_BITS) - 1;
const SPAN_SHIFT: u32 = STATE_BITS + OWNER_BITS;

/// Appender cells that a slot word can name.
pub const MAX_OWNERS: u64 = 1 << OWNER_BITS;

/// Encodes and decodes slot words for one size of ring.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SlotCodec {
    ring: u64,
    /// Its logarithm: a division takes longer than the rest of a claim.
    ring_shift: u32,
    lap_shift: u32,
}

/// A slot word seen from an LSN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum View {
    /// Of an earlier lap, or never used: no record begins at the LSN yet.
    Older,
    /// The claim of the record at the LSN.
    Current(Claim),
    /// Of a later lap: the LSN was published and freed long ago.
    Newer,
}

/// What a slot word of the current lap says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    /// How far it has come.
    pub state: SlotState,
    /// Appender cell of its owner.
    pub owner: u16,
    /// Bytes up to the next record; 0 marks the place where the application went ahead of the log.
    pub span: u64,
}

impl SlotCodec {
    /// For a ring of `ring` bytes, a power of two between [`super::format::MIN_RING`] and `MAX_RING`.
    pub(crate) fn new(ring: u64) -> SlotCodec {
        // A span is at most a quarter of the ring: ring / 128 units, and that number itself must fit.
        let span_bits = (ring / 4 / RECORD_ALIGN).ilog2() + 1;
        SlotCodec { ring, ring_shift: ring.ilog2(), lap_shift: SPAN_SHIFT + span_bits }
    }

    /// How many words there are: a power of two.
    pub(crate) fn slots(&self) -> usize {
        (self.ring / RECORD_ALIGN) as usize
    }

    /// Index of the word for `lsn`.
    #[inline]
    pub(crate) fn index(&self, lsn: u64) -> usize {
        ((lsn & (self.ring - 1)) / RECORD_ALIGN) as usize
    }

    /// The word of a claim at `lsn`.
    #[inline]
    pub(crate) fn pack(&self, lsn: u64, claim: Claim) -> u64 {
        let lap = (lsn >> self.ring_shift) << self.lap_shift;
        let units = claim.span / RECORD_ALIGN;
        lap | (units << SPAN_SHIFT) | (u64::from(claim.owner) << STATE_BITS) | claim.state as u64
    }

    /// What `word` says of `lsn`.
    #[inline]
    pub(crate) fn view(&self, word: u64, lsn: u64) -> View {
        if self.is_older(word, lsn) {
            return View::Older;
        }
        if self.laps_ahead(word, lsn) > 0 {
            return View::Newer;
        }
        View::Current(Claim {
            state: match word & STATE_MASK {
                1 => SlotState::Reserved,
                2 => SlotState::Filled,
                _ => SlotState::Filler,
            },
            owner: ((word >> STATE_BITS) & (MAX_OWNERS - 1)) as u16,
            span: ((word & ((1 << self.lap_shift) - 1)) >> SPAN_SHIFT) * RECORD_ALIGN,
        })
    }

    /// Whether `word` is of an earlier lap than `lsn`, or was never used.
    #[inline]
    pub(crate) fn is_older(&self, word: u64, lsn: u64) -> bool {
        word & STATE_MASK == 0 || self.laps_ahead(word, lsn) < 0
    }

    /// The distance between the laps of `word` and `lsn`, modulo the bits kept, as a signed number of some unit.
    #[inline]
    fn laps_ahead(&self, word: u64, lsn: u64) -> i64 {
        ((word >> self.lap_shift).wrapping_sub(lsn >> self.ring_shift) << self.lap_shift) as i64
    }
}

#[cfg(test)]
mod tests {
    use super::super::format::{MAX_RING, MIN_RING};
    use super::*;

    fn claim(state: SlotState, owner: u16, span: u64) -> Claim {
        Claim { state, owner, span }
    }

    #[test]
    fn a_word_is_current_in_its_own_lap_only() {
        for ring in [MIN_RING, 64 << 20, MAX_RING] {
            let codec = SlotCodec::new(ring);
            for lap in [0, 1, 77, 1 << 20] {
                let lsn = lap * ring + 4096;
                for c in [claim(SlotState::Reserved, 0, ring / 4), claim(SlotState::Filler, 4095, 32)] {
                    let word = codec.pack(lsn, c);
                    assert_eq!(codec.view(word, lsn), View::Current(c));
                    assert_eq!(codec.view(word, lsn + ring), View::Older);
                    if lap > 0 {
                        assert_eq!(codec.view(word, lsn - ring), View::Newer);
                    }
                }
            }
        }
    }

    #[test]
    fn a_word_never_used_is_older_in_every_lap() {
        let codec = SlotCodec::new(MIN_RING);
        for lap in [0u64, 1, 1 << 38, 1 << 39] {
            assert_eq!(codec.view(0, lap.wrapping_mul(MIN_RING)), View::Older);
        }
    }

    #[test]
    fn the_lap_repeats_after_two_to_the_56_bytes_only() {
        let codec = SlotCodec::new(64 << 20);
        let c = claim(SlotState::Filled, 3, 96);
        let word = codec.pack(64, c);
        assert_eq!(codec.view(word, 64 + (1 << 54)), View::Older);
        assert_eq!(codec.view(word, 64 + (1 << 56)), View::Current(c));
    }
}
