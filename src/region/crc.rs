//! CRC32C of what is short: a record's header, the payload of most records.
//!
//! The crate `crc32c` computes long runs in three streams at once; below [`SHORT`] it has one, and its calls, its search for
//! alignment and a private copy of shared bytes cost several times what the checksum itself does. Here the processor's instruction
//! reads words where they are.

use std::arch::x86_64::{_mm_crc32_u8, _mm_crc32_u32, _mm_crc32_u64};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed};

/// From so many bytes on the crate has three streams.
pub(super) const SHORT: usize = 768;

/// Whether the processor has the instruction: SSE 4.2, which x86-64 does not promise.
#[inline]
pub(super) fn has_instruction() -> bool {
    is_x86_feature_detected!("sse4.2")
}

/// CRC32C of `first` and then `words`, little-endian.
#[inline]
pub(crate) fn of_words(first: u32, words: [u64; 4]) -> u32 {
    if has_instruction() {
        // SAFETY: the processor has the instruction.
        return unsafe { words_by_instruction(first, words) };
    }
    words.iter().fold(crc32c::crc32c(&first.to_le_bytes()), |crc, word| {
        crc32c::crc32c_append(crc, &word.to_le_bytes())
    })
}

#[target_feature(enable = "sse4.2")]
fn words_by_instruction(first: u32, words: [u64; 4]) -> u32 {
    let begun = u64::from(_mm_crc32_u32(!0, first));
    !(words.into_iter().fold(begun, |crc, word| _mm_crc32_u64(crc, word)) as u32)
}

/// Continues `crc` over `len` bytes that others may write meanwhile.
///
/// # Safety
/// The processor [has the instruction](has_instruction); `from` is a multiple of 8, and `len` bytes from it are mapped readable.
#[target_feature(enable = "sse4.2")]
pub(super) unsafe fn continued(crc: u32, from: *mut u8, len: usize) -> u32 {
    let mut crc = u64::from(!crc);
    let words = from.cast::<u64>();
    for i in 0..len / 8 {
        // SAFETY: the caller vouches for range and alignment; a word is read whole, whoever writes it.
        let word = unsafe { AtomicU64::from_ptr(words.add(i)) }.load(Relaxed);
        crc = _mm_crc32_u64(crc, word);
    }
    for i in len / 8 * 8..len {
        // SAFETY: as above.
        let byte = unsafe { AtomicU8::from_ptr(from.add(i)) }.load(Relaxed);
        crc = u64::from(_mm_crc32_u8(crc as u32, byte));
    }
    !(crc as u32)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn checksums_are_those_of_the_crate(
            seed: u32,
            words in prop::collection::vec(any::<u64>(), SHORT / 8 + 1),
            len in 0..=SHORT,
        ) {
            prop_assume!(has_instruction());
            let mut bytes = words.clone();
            let whole: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
            // SAFETY: words are aligned, and there are more of them than `len` asks for.
            let ours = unsafe { continued(seed, bytes.as_mut_ptr().cast(), len) };
            prop_assert_eq!(ours, crc32c::crc32c_append(seed, &whole[..len]));
            let four = [words[0], words[1], words[2], words[3]];
            let head = crc32c::crc32c_append(crc32c::crc32c(&seed.to_le_bytes()), &whole[..32]);
            prop_assert_eq!(of_words(seed, four), head);
        }
    }
}
