//! Finds writes to protected files that no record tells of, by comparing pages with the destination's image.
//!
//! The link's thread calls [`Sampler::tick`] after each ping, about once a second. A tick looks at each file's time of
//! modification; only a file that gives a reason ([`Motive`]) is searched, so an idle group costs a
//! `stat` a file and second, and a search a few megabytes of reading a second on either node. A page that differs is
//! looked at twice more ([`Samples`]), each time against an image that has everything that was in the log when the page
//! was read. `unprotected_writes` is the number of pages that were found so.
//!
//! A file that was ever mapped is searched only at rest, and only once it is no longer as it was left. What is found in
//! a file at rest is recorded there and then; in another one it stays a finding, since a late copy of a page would break the order
//! of what a program stores meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::mem;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::fstat;

use super::suspects::Suspects;
use crate::agent::control::message::MAX_PAGES;
use crate::agent::group::{Group, Region, Rest};
use crate::log::format::RecordHeader;
use crate::region::sampling::{self, Look, Motive, Samples};
use crate::types::{Lsn, PAGE, RegionId};

/// Asks the destination for digests of pages of a region.
pub(super) type AskDigests<'a, E> = dyn FnMut(RegionId, Vec<u64>) -> Result<Vec<u64>, E> + 'a;

/// One group's. Records come in on the shipper's thread, ticks on the link's.
#[derive(Default)]
pub(super) struct Sampler {
    records: Suspects,
    eyes: Mutex<Eyes>,
    found: AtomicU64,
    recorded: AtomicU64,
}

/// What the ticks remember.
#[derive(Default)]
struct Eyes {
    motives: BTreeMap<RegionId, Watched>,
    searches: BTreeMap<RegionId, Search>,
    samples: BTreeMap<RegionId, Samples>,
    /// Pages found, and not recorded since.
    found: BTreeSet<(RegionId, u64)>,
    reading: Option<Reading>,
    /// The file to be looked at next, where there are more than fit into a tick.
    turn: usize,
}

/// A file that is looked at.
struct Watched {
    motive: Motive,
    /// How it was left, if that is why it may be searched.
    rest: Option<Rest>,
    /// What it was like when the search that is under way or over began.
    searched: Option<Rest>,
}

/// A file being searched.
#[derive(Default)]
struct Search {
    /// The next page.
    next: u64,
    /// It was written to meanwhile, perhaps behind `next`: from the beginning again.
    again: bool,
}

/// Pages as they were read, to be compared once the image has everything that the log had then.
struct Reading {
    tail: Lsn,
    at: Instant,
    pages: BTreeMap<RegionId, Vec<Page>>,
}

struct Page {
    number: u64,
    digest: u64,
    /// Where the last record that touched it began; none if it is not under suspicion yet.
    touched: Option<Lsn>,
}

impl Sampler {
    /// How many pages were found.
    pub fn found(&self) -> u64 {
        self.found.load(Relaxed)
    }

    /// How many of them were recorded since.
    pub fn recorded(&self) -> u64 {
        self.recorded.load(Relaxed)
    }

    /// A record has been shipped.
    pub fn observe(&self, header: &RecordHeader) {
        self.records.observe(header);
    }

    /// Goes on looking. `applied`: up to where records are in the image; none while it does not follow the stream. `tell` hears
    /// of every region in which something is found.
    pub fn tick<E>(
        &self,
        group: &Group,
        applied: Option<Lsn>,
        ask: &mut AskDigests<'_, E>,
        tell: &dyn Fn(&Region, u64),
    ) -> Result<(), E> {
        let mut eyes = self.eyes.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(applied) = applied else {
            // The copy that is bound to come holds whatever was written until then.
            *eyes = Eyes::default();
            self.records.clear();
            return Ok(());
        };
        for region in eyes.glimpse(group, &self.records) {
            if group.record_rest_size(region.id()) {
                // What was cut off differs no more; the page in which the file ends by now stands for it.
                self.found.fetch_add(1, Relaxed);
                self.recorded.fetch_add(1, Relaxed);
                tell(&region, 1);
            }
        }
        match eyes.reading.take() {
            Some(reading) if applied >= reading.tail => {
                for (&id, pages) in &reading.pages {
                    // One that has been opened or mapped meanwhile may hold stores that nobody need flush.
                    let Some(region) = group.region(id).filter(|r| eyes.may_search(r)) else {
                        self.records.acquit(id);
                        continue;
                    };
                    let image = ask(id, pages.iter().map(|p| p.number).collect());
                    let image = image.inspect_err(|_| eyes.put_back(&reading))?;
                    let new = eyes.compare(id, pages, &image, &self.records);
                    if new > 0 {
                        self.found.fetch_add(new, Relaxed);
                        tell(&region, new);
                    }
                }
            }
            Some(reading) if reading.at.elapsed() < APPLIED_WITHIN => eyes.reading = Some(reading),
            Some(reading) => eyes.put_back(&reading),
            None => {}
        }
        self.recorded.fetch_add(eyes.record_found(group), Relaxed);
        eyes.settle(group, &self.records);
        if eyes.reading.is_none() {
            eyes.reading = eyes.read(group, &self.records);
        }
        Ok(())
    }
}

impl Eyes {
    /// Looks at every file's time of modification. Returns the files that were written to.
    fn glimpse(&mut self, group: &Group, records: &Suspects) -> Vec<Arc<Region>> {
        let regions: Vec<_> = group.regions().into_iter().filter(|r| may_compare(r)).collect();
        let ids: BTreeSet<_> = regions.iter().map(|r| r.id()).collect();
        self.motives.retain(|id, _| ids.contains(id));
        let (first, count) = (self.turn, regions.len().min(MAX_FILES));
        self.turn = (first + count) % regions.len().max(1);
        let mut written = Vec::new();
        for region in regions.iter().cycle().skip(first).take(count) {
            let id = region.id();
            if self.motives.get(&id).is_some_and(|watched| watched.rest != reason_to_compare(region)) {
                // A program had it open since: what was thought of it means nothing any more.
                self.forget(id, records);
            }
            let Ok(stat) = fstat(region.file()) else { continue };
            let modified = (stat.st_mtime, stat.st_mtime_nsec as i64);
            let watched = self.motives.entry(id).or_insert_with(|| Watched::begin(region));
            if watched.motive.look(modified) {
                let under_way = self.searches.contains_key(&id);
                self.searches.entry(id).or_default().again |= under_way;
                watched.searched = Rest::of(region);
                written.push(region.clone());
            }
        }
        written
    }

    /// Whether a page that differs means something: no program has had the file open since it is watched, if that matters.
    fn may_search(&self, region: &Region) -> bool {
        let watched = self.motives.get(&region.id());
        may_compare(region) && watched.is_some_and(|watched| watched.rest == reason_to_compare(region))
    }

    fn forget(&mut self, id: RegionId, records: &Suspects) {
        self.motives.remove(&id);
        self.searches.remove(&id);
        self.samples.remove(&id);
        if let Some(reading) = &mut self.reading {
            reading.pages.remove(&id);
        }
        records.acquit(id);
    }

    /// Has what was found in files at rest recorded; how many pages were.
    fn record_found(&mut self, group: &Group) -> u64 {
        let mut wanted: BTreeMap<RegionId, Vec<u64>> = BTreeMap::new();
        self.found.iter().for_each(|&(id, page)| wanted.entry(id).or_default().push(page));
        let mut recorded = 0;
        for (id, pages) in wanted {
            for page in &pages[..group.record_pages(id, &pages)] {
                self.found.remove(&(id, *page));
                recorded += 1;
            }
        }
        recorded
    }

    /// Files at rest in which nothing is left to be found are at rest as they are now.
    fn settle(&mut self, group: &Group, records: &Suspects) {
        let within = |id: RegionId| (id, 0)..=(id, u64::MAX);
        let suspected = |id| records.lock().range(within(id)).next().is_some();
        for (&id, watched) in &mut self.motives {
            let Some(searched) = watched.searched else { continue };
            let open = self.searches.contains_key(&id)
                || self.reading.as_ref().is_some_and(|reading| reading.pages.contains_key(&id))
                || self.found.range(within(id)).next().is_some()
                || suspected(id);
            if !open {
                watched.searched = None;
                if group.rests_as(id, searched) && watched.rest.is_some() {
                    watched.rest = Some(searched);
                }
            }
        }
    }

    /// Reads the pages under suspicion, and some more of what is being searched.
    fn read(&mut self, group: &Group, records: &Suspects) -> Option<Reading> {
        let mut wanted: BTreeMap<RegionId, Vec<(u64, Option<Lsn>)>> = BTreeMap::new();
        for (&(id, page), &touched) in records.lock().iter() {
            // The others' turn comes when these have been decided.
            if wanted.len() < MAX_ASKS || wanted.contains_key(&id) {
                wanted.entry(id).or_default().push((page, Some(touched)));
            }
        }
        let mut left = MAX_READ;
        self.searches.retain(|&id, search| {
            let Some(region) = group.region(id).filter(|r| may_compare(r)) else { return false };
            if wanted.len() >= MAX_ASKS && !wanted.contains_key(&id) {
                return true;
            }
            let end = region.len_now().div_ceil(PAGE as u64);
            let pages = wanted.entry(id).or_default();
            while search.next < end && pages.len() < MAX_PAGES && left > 0 {
                if !pages.iter().any(|p| p.0 == search.next) {
                    pages.push((search.next, None));
                    left -= 1;
                }
                search.next += 1;
            }
            if search.next >= end && mem::take(&mut search.again) {
                search.next = 0;
            }
            search.next < end
        });
        wanted.retain(|_, pages| !pages.is_empty());
        if wanted.is_empty() {
            return None;
        }
        let read = |id: RegionId, pages: Vec<(u64, Option<Lsn>)>| -> io::Result<(RegionId, Vec<Page>)> {
            let region = group.region(id).ok_or(io::ErrorKind::NotFound)?;
            let numbers: Vec<u64> = pages.iter().map(|p| p.0).collect();
            let digests = sampling::digests(region.file().as_fd(), &numbers)?;
            let page = |((number, touched), digest)| Page { number, digest, touched };
            Ok((id, pages.into_iter().zip(digests).map(page).collect()))
        };
        // What cannot be read (a device, a file that vanished) is not searched.
        let ids: Vec<_> = wanted.keys().copied().collect();
        let pages: BTreeMap<_, _> =
            wanted.into_iter().filter_map(|(id, pages)| read(id, pages).ok()).collect();
        for unread in ids.iter().filter(|id| !pages.contains_key(id)) {
            self.motives.entry(*unread).and_modify(|watched| watched.searched = None);
        }
        // After the reading: whatever was recorded of these pages before lies below.
        Some(Reading { tail: group.log().tail(), at: Instant::now(), pages })
    }

    /// Pages that were read in vain are searched anew; those under suspicion are, whatever happens.
    fn put_back(&mut self, reading: &Reading) {
        for (&id, pages) in &reading.pages {
            if let Some(first) = pages.iter().filter(|p| p.touched.is_none()).map(|p| p.number).min() {
                let search = self.searches.entry(id).or_insert(Search { next: first, again: false });
                search.next = search.next.min(first);
            }
        }
    }

    /// Compares pages with the image's; how many were found for the first time.
    fn compare(&mut self, id: RegionId, pages: &[Page], image: &[u64], records: &Suspects) -> u64 {
        let mut suspects = records.lock();
        let mut new = 0;
        for (page, &image) in pages.iter().zip(image) {
            let place = (id, page.number);
            let look = |last_record| Look { source: page.digest, image, last_record };
            match page.touched {
                None if page.digest == image || self.found.contains(&place) => {}
                None if suspects.len() < MAX_PAGES => {
                    suspects.insert(place, Lsn(0));
                }
                None => self.searches.entry(id).or_default().again = true,
                Some(before) if page.digest != image && suspects.get(&place) == Some(&before) => {
                    let twice =
                        self.samples.entry(id).or_default().enter(page.number, look(before)).is_some();
                    if twice {
                        suspects.remove(&place);
                        new += u64::from(self.found.len() < sampling::MAX_PAGES && self.found.insert(place));
                    }
                }
                // Equal, or a record was on its way.
                Some(_) => {
                    suspects.remove(&place);
                    self.samples.entry(id).or_default().forget(page.number);
                }
            }
        }
        records.noted(&suspects);
        new
    }
}

impl Watched {
    fn begin(region: &Region) -> Watched {
        let rest = reason_to_compare(region);
        Watched {
            motive: rest.map_or_else(Motive::default, |rest| Motive::since(rest.modified)),
            rest,
            searched: None,
        }
    }
}

/// How a file was left that may be compared for that reason only: once mapped, it may differ by right as long as nobody else
/// has written to it.
fn reason_to_compare(region: &Region) -> Option<Rest> {
    region.at_rest().filter(|_| region.is_mapped())
}

/// Whether a file's content may be compared with the image.
fn may_compare(region: &Region) -> bool {
    !region.is_mapped() || region.at_rest().is_some()
}

/// Files that are looked at: a tick must stay short.
const MAX_FILES: usize = 1024;

/// Regions that the destination is asked about in a tick.
const MAX_ASKS: usize = 4;

/// Pages of searches that are read in a tick: 4 MiB, a millisecond or two on either node.
const MAX_READ: usize = 4 * MAX_PAGES;

/// A destination that lags by more is busy enough: the pages are read anew.
const APPLIED_WITHIN: Duration = Duration::from_secs(10);
