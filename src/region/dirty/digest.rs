//! Written pages by comparing digests: works everywhere, reads everything.

use std::collections::BTreeMap;
use std::io;

use xxhash_rust::xxh3::xxh3_64;

use super::{DirtyTracker, Kind, Runs};
use crate::types::PAGE;

/// The digest of each watched page as it was when it last counted as clean. See the parent module.
#[derive(Default)]
pub struct Digests {
    pages: BTreeMap<usize, u64>,
}

impl Digests {
    /// Watches nothing yet.
    pub fn new() -> Digests {
        Digests::default()
    }
}

impl DirtyTracker for Digests {
    fn kind(&self) -> Kind {
        Kind::Digest
    }

    fn watch(&mut self, start: usize, end: usize) -> io::Result<()> {
        self.pages.extend((start..end).step_by(PAGE).map(|page| (page, digest(page))));
        Ok(())
    }

    fn forget(&mut self, start: usize, end: usize) {
        self.pages.retain(|page, _| !(start..end).contains(page));
    }

    fn take(&mut self, start: usize, end: usize, report: &mut dyn FnMut(usize, usize)) {
        let mut runs = Runs::new(report);
        for page in (start..end).step_by(PAGE) {
            // Taken before the page is reported and copied: a store in between shows next time.
            let now = digest(page);
            if self.pages.insert(page, now) != Some(now) {
                runs.page(page);
            }
        }
        runs.finish();
    }
}

/// Digest of the mapped page at `addr`.
fn digest(addr: usize) -> u64 {
    let mut copy = [0u8; PAGE];
    // SAFETY: the contract of the trait is that ranges are mapped, in whole pages; racing stores can only tear
    // the copy, whose digest then differs from the next one.
    unsafe { std::ptr::copy_nonoverlapping(addr as *const u8, copy.as_mut_ptr(), PAGE) };
    xxh3_64(&copy)
}
