//! What a reader's image from before a copy holds already: found by digests, and not copied again.
//!
//! Blocks are compared first, and the pages of those that differ. A page that was the same then may be stored to since: so it is looked
//! at once more when the record that refers to it has its place in the log (`Comparison::still`).

use std::collections::VecDeque;
use std::io;

use xxhash_rust::xxh3::xxh3_64;

use crate::region::content::Content;
use crate::region::sampling::{block_digests, read_block};
use crate::types::{Lsn, PAGE, RegionId};

/// The image that a reader had before the copy; the copy may refer to it ([`crate::log::format::Kind::CopySame`]).
pub trait Base: Send {
    /// XXH3 of `count` blocks of `block` bytes each, from number `first` on, of the region called `name`; zeros behind its end.
    fn digests(&mut self, name: &str, block: usize, first: u64, count: usize) -> io::Result<Found>;
}

/// What a [`Base`] says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// The copy has not begun there: ask again.
    NotBegun,
    /// There is no such region.
    Nothing,
    /// Its number there, and the digests.
    Digests(RegionId, Vec<u64>),
}

/// Bytes of a block. With one page in a hundred changed, by chance, the digests of blocks and those of the pages of blocks that
/// differ take about as much of the network.
const BLOCK: usize = 64 << 10;

/// Blocks compared at a time.
const BLOCKS: usize = 256;

const PAGES: usize = BLOCK / PAGE;

/// Pages that one record refers to: as many as it has bits for. While it is looked at whether they are the same, others' drains may
/// wait.
pub(super) const UNIT_PAGES: usize = 64;

/// Bytes of these.
pub(super) const UNIT: u64 = (UNIT_PAGES * PAGE) as u64;

const UNIT_BLOCKS: usize = UNIT as usize / BLOCK;

/// One region's pages beside those of the image before.
pub(super) struct Comparison<'a> {
    base: &'a mut dyn Base,
    name: &'a str,
    /// What was compared last.
    window: Option<Window>,
}

/// What readers have yet to take from their images before: a record of some bytes stands for much work there.
#[derive(Default)]
pub(super) struct Backlog {
    /// Where each record ends, and the bytes that it refers to.
    records: VecDeque<(Lsn, u64)>,
    bytes: u64,
}

impl Backlog {
    /// A record that ends at `end` refers to so many pages.
    pub(super) fn add(&mut self, end: Lsn, pages: u32) {
        let bytes = u64::from(pages) * PAGE as u64;
        self.records.push_back((end, bytes));
        self.bytes += bytes;
    }

    /// What is outstanding is not waited for any longer.
    pub(super) fn forget(&mut self) {
        *self = Backlog::default();
    }

    /// Bytes that are referred to by records which end above `taken`.
    pub(super) fn above(&mut self, taken: Lsn) -> u64 {
        while let Some((_, bytes)) = self.records.front().filter(|(end, _)| *end <= taken) {
            self.bytes -= bytes;
            self.records.pop_front();
        }
        self.bytes
    }
}

struct Window {
    number: u64,
    region: RegionId,
    blocks: Vec<Block>,
}

enum Block {
    /// It is the same, and has this digest.
    Same(u64),
    /// Digests of those of its pages that are.
    Pages(Box<[Option<u64>; PAGES]>),
}

/// How far a comparison has come.
pub(super) enum Compared {
    /// The copy has not begun there: compare again.
    NotBegun,
    /// The image before has nothing of the region.
    Nothing,
    /// A bit for each page of the unit that is as in the region there.
    Pages(RegionId, u64),
}

impl<'a> Comparison<'a> {
    pub(super) fn new(base: &'a mut dyn Base, name: &'a str) -> Comparison<'a> {
        Comparison { base, name, window: None }
    }

    /// Compares the unit of this number. Gives up, with an error, once `goes_on` says no: readers may take their time.
    pub(super) fn unit(
        &mut self,
        content: &Content<'_>,
        unit: u64,
        goes_on: &dyn Fn() -> bool,
    ) -> io::Result<Compared> {
        let number = unit * UNIT_BLOCKS as u64 / BLOCKS as u64;
        if self.window.as_ref().is_none_or(|window| window.number != number) {
            match self.compare(content, number, goes_on)? {
                Ok(window) => self.window = Some(window),
                Err(Found::NotBegun) => return Ok(Compared::NotBegun),
                Err(_) => return Ok(Compared::Nothing),
            }
        }
        let region = self.window.as_ref().expect("just compared").region;
        let bits = self.blocks(unit).enumerate().map(|(i, block)| block.bits() << (i * PAGES));
        Ok(Compared::Pages(region, bits.sum()))
    }

    /// Whether those of the unit's `pages` are still what they were when it was compared.
    pub(super) fn still(&self, content: &Content<'_>, unit: u64, pages: u64) -> io::Result<bool> {
        let mut bytes = vec![0; BLOCK];
        for (i, block) in self.blocks(unit).enumerate() {
            let bits = pages >> (i * PAGES) & ((1 << PAGES) - 1);
            if bits == 0 {
                continue;
            }
            read_block(content, &mut bytes, unit * UNIT_BLOCKS as u64 + i as u64)?;
            if !block.is_still(&bytes, bits) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn blocks(&self, unit: u64) -> impl Iterator<Item = &Block> {
        let first = (unit * UNIT_BLOCKS as u64 % BLOCKS as u64) as usize;
        self.window.iter().flat_map(move |window| &window.blocks[first..first + UNIT_BLOCKS])
    }

    fn compare(
        &mut self,
        content: &Content<'_>,
        number: u64,
        goes_on: &dyn Fn() -> bool,
    ) -> io::Result<Result<Window, Found>> {
        let first = number * BLOCKS as u64;
        let (region, theirs) = match self.base.digests(self.name, BLOCK, first, BLOCKS)? {
            Found::Digests(region, digests) if digests.len() == BLOCKS => (region, digests),
            Found::Digests(..) => return Err(other("digests of another number of blocks")),
            found => return Ok(Err(found)),
        };
        let ours = block_digests(content, BLOCK, first, BLOCKS)?;
        let mut blocks = Vec::with_capacity(BLOCKS);
        for (number, (ours, theirs)) in (first..).zip(ours.iter().zip(&theirs)) {
            if !goes_on() {
                return Err(io::ErrorKind::Interrupted.into());
            }
            blocks.push(match ours == theirs {
                true => Block::Same(*ours),
                false => self.pages(content, number, region)?,
            });
        }
        Ok(Ok(Window { number, region, blocks }))
    }

    fn pages(&mut self, content: &Content<'_>, block: u64, region: RegionId) -> io::Result<Block> {
        let first = block * PAGES as u64;
        let Found::Digests(again, theirs) = self.base.digests(self.name, PAGE, first, PAGES)? else {
            return Err(other("a region that is gone from an image that stays as it is"));
        };
        if again != region || theirs.len() != PAGES {
            return Err(other("digests of other pages"));
        }
        let ours = block_digests(content, PAGE, first, PAGES)?;
        let mut pages = [None; PAGES];
        for (page, (ours, theirs)) in pages.iter_mut().zip(ours.iter().zip(&theirs)) {
            *page = (ours == theirs).then_some(*ours);
        }
        Ok(Block::Pages(Box::new(pages)))
    }
}

impl Block {
    /// A bit for each page that is the same.
    fn bits(&self) -> u64 {
        match self {
            Block::Same(_) => (1 << PAGES) - 1,
            Block::Pages(pages) => {
                pages.iter().enumerate().map(|(i, page)| u64::from(page.is_some()) << i).sum()
            }
        }
    }

    /// Whether those of its pages that have a bit are in `bytes` as they were.
    fn is_still(&self, bytes: &[u8], bits: u64) -> bool {
        match self {
            Block::Same(digest) => xxh3_64(bytes) == *digest,
            Block::Pages(pages) => (pages.iter().zip(bytes.chunks(PAGE)).enumerate())
                .filter(|(i, _)| bits >> i & 1 == 1)
                .all(|(_, (page, bytes))| *page == Some(xxh3_64(bytes))),
        }
    }
}

fn other(what: &str) -> io::Error {
    io::Error::other(format!("the destination answered with {what}"))
}
