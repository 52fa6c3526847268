//! Which pages of a sparse file are allocated.

/// One bit a page. Zeroed memory of this size costs nothing until it is touched.
pub(super) struct PageBits(Vec<u64>);

impl PageBits {
    pub(super) fn new(pages: u64) -> PageBits {
        PageBits(vec![0; pages.div_ceil(64) as usize])
    }

    pub(super) fn get(&self, page: u64) -> bool {
        self.0[(page / 64) as usize] >> (page % 64) & 1 == 1
    }

    pub(super) fn set(&mut self, pages: std::ops::Range<u64>, value: bool) {
        let mut at = pages.start;
        while at < pages.end {
            let (word, bit) = ((at / 64) as usize, at % 64);
            let n = (64 - bit).min(pages.end - at);
            let mask = if n == 64 { u64::MAX } else { ((1 << n) - 1) << bit };
            if value {
                self.0[word] |= mask;
            } else {
                self.0[word] &= !mask;
            }
            at += n;
        }
    }

    /// The end of the run of pages from `from` that are all as `from` is, at most `end`.
    pub(super) fn run(&self, from: u64, end: u64) -> u64 {
        let value = self.get(from);
        let mut at = from + 1;
        while at < end {
            let word = self.0[(at / 64) as usize];
            let uniform = if value { u64::MAX } else { 0 };
            if at.is_multiple_of(64) && word == uniform {
                at += 64;
            } else if self.get(at) == value {
                at += 1;
            } else {
                break;
            }
        }
        at.min(end)
    }

    pub(super) fn resize(&mut self, pages: u64) {
        self.0.resize(pages.div_ceil(64) as usize, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_end_where_the_value_changes() {
        let mut bits = PageBits::new(300);
        bits.set(10..200, true);
        bits.set(70..71, false);
        assert_eq!(bits.run(0, 300), 10);
        assert_eq!(bits.run(10, 300), 70);
        assert_eq!(bits.run(70, 300), 71);
        assert_eq!(bits.run(71, 300), 200);
        assert_eq!(bits.run(71, 150), 150);
        assert_eq!(bits.run(200, 300), 300);
    }
}
