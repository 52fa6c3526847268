//! Which pages of a sparse file are allocated.

use std::ops::Range;

/// One bit a page. Takes memory for what was set, a page for 128 MiB of the file and eight bytes for each 128 MiB before the last
/// page, not for the file's size: that is the source's word, and a hostile one says anything.
pub(super) struct PageBits(Vec<Option<Box<Chunk>>>);

/// Bits of pages in a row; one that is not there has none set.
type Chunk = [u64; CHUNK_WORDS];

/// A page of memory for 128 MiB of a file.
const CHUNK_WORDS: usize = 512;

const CHUNK_BITS: u64 = CHUNK_WORDS as u64 * 64;

impl PageBits {
    pub(super) fn new() -> PageBits {
        PageBits(Vec::new())
    }

    pub(super) fn get(&self, page: u64) -> bool {
        self.word(page) >> (page % 64) & 1 == 1
    }

    pub(super) fn set(&mut self, pages: Range<u64>, value: bool) {
        let mut at = pages.start;
        while at < pages.end {
            let bit = at % 64;
            let n = (64 - bit).min(pages.end - at);
            let mask = if n == 64 { u64::MAX } else { ((1 << n) - 1) << bit };
            let word = (at % CHUNK_BITS / 64) as usize;
            if value {
                let chunk = (at / CHUNK_BITS) as usize;
                if self.0.len() <= chunk {
                    self.0.resize_with(chunk + 1, || None);
                }
                self.0[chunk].get_or_insert_with(|| Box::new([0; CHUNK_WORDS]))[word] |= mask;
            } else if let Some(Some(chunk)) = self.0.get_mut((at / CHUNK_BITS) as usize) {
                chunk[word] &= !mask;
            } else {
                at = self.next_chunk(at).min(pages.end);
                continue;
            }
            at += n;
        }
    }

    /// The end of the run of pages from `from` that are all as `from` is, at most `end`.
    pub(super) fn run(&self, from: u64, end: u64) -> u64 {
        let value = self.get(from);
        let mut at = from + 1;
        while at < end {
            let uniform = if value { u64::MAX } else { 0 };
            if !value && self.chunk(at).is_none() {
                at = self.next_chunk(at);
            } else if at.is_multiple_of(64) && self.word(at) == uniform {
                at += 64;
            } else if self.get(at) == value {
                at += 1;
            } else {
                break;
            }
        }
        at.min(end)
    }

    /// Forgets the pages from `pages` on.
    pub(super) fn truncate(&mut self, pages: u64) {
        self.0.truncate(pages.div_ceil(CHUNK_BITS) as usize);
        self.set(pages..pages.next_multiple_of(CHUNK_BITS), false);
    }

    fn word(&self, page: u64) -> u64 {
        self.chunk(page).map_or(0, |chunk| chunk[(page % CHUNK_BITS / 64) as usize])
    }

    fn chunk(&self, page: u64) -> Option<&Chunk> {
        self.0.get((page / CHUNK_BITS) as usize)?.as_deref()
    }

    /// First page of the next chunk that is there, after that of `page`.
    fn next_chunk(&self, page: u64) -> u64 {
        let from = (page / CHUNK_BITS) as usize + 1;
        let next = self.0.iter().skip(from).position(Option::is_some);
        next.map_or(u64::MAX, |n| (from + n) as u64 * CHUNK_BITS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn runs_end_where_the_value_changes() {
        let mut bits = PageBits::new();
        bits.set(10..200, true);
        bits.set(70..71, false);
        assert_eq!(bits.run(0, 300), 10);
        assert_eq!(bits.run(10, 300), 70);
        assert_eq!(bits.run(70, 300), 71);
        assert_eq!(bits.run(71, 300), 200);
        assert_eq!(bits.run(71, 150), 150);
        assert_eq!(bits.run(200, 300), 300);
    }

    #[test]
    fn a_file_of_any_size_takes_memory_for_its_pages_only() {
        let mut bits = PageBits::new();
        let last = (16 << 40) / 4096 - 1;
        bits.set(0..last, false);
        bits.set(last..last + 1, true);
        assert_eq!((bits.run(0, last + 1), bits.0.iter().flatten().count()), (last, 1));
        bits.truncate(last);
        assert!(!bits.get(last));
    }

    proptest! {
        #[test]
        fn it_is_as_a_list_of_bits(
            sets in prop::collection::vec((0u64..3 * CHUNK_BITS, 0u64..2 * CHUNK_BITS, any::<bool>()), 0..12),
            cut in 0u64..4 * CHUNK_BITS,
        ) {
            let (mut bits, mut list) = (PageBits::new(), vec![false; 5 * CHUNK_BITS as usize]);
            for (from, len, value) in sets {
                bits.set(from..from + len, value);
                list[from as usize..(from + len) as usize].fill(value);
            }
            bits.truncate(cut);
            list[cut as usize..].fill(false);
            let mut at = 0;
            while at < list.len() {
                prop_assert_eq!(bits.get(at as u64), list[at]);
                let end = list[at..].iter().position(|bit| *bit != list[at]).map_or(list.len(), |n| at + n);
                prop_assert_eq!(bits.run(at as u64, list.len() as u64), end as u64);
                at = end;
            }
        }
    }
}
