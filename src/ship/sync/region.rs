//! The copy of one region: what its readers have already by reference, the rest of what is not zero by content.

use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use super::base::{Backlog, Base, Compared, Comparison, UNIT};
use super::stretches::{extent, runs};
use super::{CHUNK, Cut, Errand, PAUSE, RING_SHARE, Shared, SyncRegion};
use crate::log::appender::AppendError;
use crate::log::format::{Kind, SamePayload};
use crate::region::content::Content;
use crate::ship::limit::Limit;
use crate::types::PAGE;
use crate::waits;
use zerocopy::IntoBytes;

/// One copy, as it comes along.
pub(super) struct Copying {
    /// The images of its readers from before.
    base: Option<Box<dyn Base>>,
    backlog: Backlog,
    limit: Option<Limit>,
    /// Bytes whose content is in it.
    pub(super) sent: u64,
    /// Bytes that it refers to in the images from before.
    pub(super) referred: u64,
}

impl Copying {
    /// One that may refer to `base`, and may take so many bytes a second.
    pub(super) fn new(base: Option<Box<dyn Base>>, limit: Option<u64>) -> Copying {
        let limit = limit.map(|bytes_per_s| Limit::new(bytes_per_s, waits::now()));
        Copying { base, backlog: Backlog::default(), limit, sent: 0, referred: 0 }
    }
}

/// A reader that takes nothing for so long is not waited for.
const HANGS: Duration = Duration::from_secs(5);

impl Shared {
    pub(super) fn copy_region(
        &self,
        region: &SyncRegion,
        errand: Errand,
        copying: &mut Copying,
    ) -> Result<(), Cut> {
        let Copying { base, backlog, limit, sent, referred } = copying;
        let before = self.done.load(Relaxed);
        let read = |e: io::Error| Cut::Read(region.id, e);
        let mut at = 0;
        let chunk = CHUNK.min((self.log().spec().ring_bytes / RING_SHARE) as usize);
        let mut buf = vec![0; chunk];
        let content = Content::of(&region.file).map_err(read)?;
        let stretch = |at| match content.is_device() {
            true => Ok((at < region.len).then_some((at, region.len))),
            false => extent(&region.file, at, region.len),
        };
        let mut comparison = base.as_deref_mut().map(|base| Comparison::new(base, region.name()));
        let mut lost = None;
        while let Some((start, end)) = stretch(at).map_err(read)? {
            at = start;
            while at < end {
                let unit = at / UNIT;
                let part = (at, end.min((unit + 1) * UNIT));
                let same = match self.refer(region, &content, part, &mut comparison, backlog, errand)? {
                    Ok(same) => same,
                    Err(error) => {
                        (comparison, lost) = (None, Some(error));
                        0
                    }
                };
                *referred += u64::from(same.count_ones()) * PAGE as u64;
                while at < part.1 {
                    let len = chunk.min((part.1 - at) as usize);
                    let same = same >> ((at - unit * UNIT) / PAGE as u64);
                    let copied = self.copy_chunk(region, &content, at, &mut buf[..len], same, errand)?;
                    *sent += copied;
                    self.await_limit(limit.as_mut(), copied, errand)?;
                    at += len as u64;
                    self.done.store(before + at, Relaxed);
                }
            }
        }
        if let Some(error) = lost {
            tracing::info!(%error, "copied whole from here on");
            *base = None;
        }
        self.done.store(before + region.len, Relaxed);
        Ok(())
    }

    /// Refers to those pages of a part of one unit which the reader has already and that are not zero; which these are. Waits until
    /// the reader says what it has.
    fn refer(
        &self,
        region: &SyncRegion,
        content: &Content<'_>,
        part: (u64, u64),
        compared: &mut Option<Comparison<'_>>,
        backlog: &mut Backlog,
        errand: Errand,
    ) -> Result<io::Result<u64>, Cut> {
        // In a last gasp a reader that is silent must not cost the others their copy.
        let goes_on = || self.check(errand).is_ok() && !self.source.is_still();
        let Some(comparison) = compared.as_mut().filter(|_| goes_on()) else { return Ok(Ok(0)) };
        let unit = part.0 / UNIT;
        let (base, same) = loop {
            match comparison.unit(content, unit, &goes_on) {
                Ok(Compared::Pages(base, same)) => break (base, same),
                Ok(Compared::Nothing) => {
                    *compared = None;
                    return Ok(Ok(0));
                }
                Ok(Compared::NotBegun) => {}
                Err(error) => return Ok(Err(error)),
            }
            // What it does not see yet may not have been shipped.
            self.check(errand)?;
            self.push();
            waits::sleep(PAUSE);
        };
        let pages = same & self.pages_with_content(region, content, part)?;
        if pages == 0 {
            return Ok(Ok(0));
        }
        let payload = SamePayload { pages, base: base.0, reserved: [0; 3] };
        self.await_readers(backlog, errand)?;
        let _may = self.room(errand)?;
        let mut still = Ok(false);
        // A record of what is stored to them meanwhile may come before ours: so in its place.
        self.source.appender().append_around(
            Kind::CopySame,
            region.id,
            unit * UNIT,
            payload.as_bytes(),
            || {
                still = comparison.still(content, unit, pages);
                matches!(still, Ok(true))
            },
        )?;
        let still = still.map_err(|error| Cut::Read(region.id, error))?;
        if still {
            backlog.add(self.log().tail(), pages.count_ones());
        }
        Ok(Ok(if still { pages } else { 0 }))
    }

    /// Waits until the readers have taken most of what was referred to. One that hangs is not waited for long, and nobody in a last
    /// gasp.
    fn await_readers(&self, backlog: &mut Backlog, errand: Errand) -> Result<(), Cut> {
        let (log, began) = (self.log(), waits::now());
        let most = log.spec().ring_bytes / self.share();
        while self.source.taken_to(errand.whom).is_some_and(|taken| backlog.above(taken) > most) {
            self.check(errand)?;
            if waits::since(began) > HANGS || self.source.is_still() {
                backlog.forget();
                break;
            }
            self.push();
            waits::sleep(PAUSE);
        }
        Ok(())
    }

    /// Waits until the next piece is due, `sent` bytes having been sent. A last gasp keeps to no limit.
    fn await_limit(&self, limit: Option<&mut Limit>, sent: u64, errand: Errand) -> Result<(), Cut> {
        let Some(limit) = limit.filter(|_| sent > 0) else { return Ok(()) };
        limit.wait(sent, || {
            self.check(errand)?;
            // Programs are held to what the ring has room for, not to the pace of the copy.
            self.keep_beside(0);
            Ok(!self.source.is_still())
        })
    }

    /// A bit for each page of a part of one unit that is not zero.
    fn pages_with_content(
        &self,
        region: &SyncRegion,
        content: &Content<'_>,
        (from, to): (u64, u64),
    ) -> Result<u64, Cut> {
        let mut bytes = vec![0; (to - from) as usize];
        let got = content.read_at(&mut bytes, from).map_err(|e| Cut::Read(region.id, e))?;
        let first = (from % UNIT) as usize / PAGE;
        let pages = bytes[..got].chunks(PAGE).enumerate();
        Ok(pages.map(|(i, page)| u64::from(page.iter().any(|b| *b != 0)) << (first + i)).sum())
    }

    /// Appends the runs of pages that are not zero, and says how many bytes; but for those that have a bit in `same`. A page that is zero now and is stored to
    /// later is in the log by that store's own record, or was never flushed.
    fn copy_chunk(
        &self,
        region: &SyncRegion,
        content: &Content<'_>,
        at: u64,
        buf: &mut [u8],
        same: u64,
        errand: Errand,
    ) -> Result<u64, Cut> {
        let read = |e: io::Error| Cut::Read(region.id, e);
        let got = content.read_at(buf, at).map_err(read)?;
        let pages = buf[..got].chunks(PAGE).enumerate();
        let is_due = pages.map(|(i, page)| same >> i & 1 == 0 && page.iter().any(|b| *b != 0));
        let mut copied = 0;
        for (first, count) in runs(is_due) {
            let (from, len) = (first * PAGE, (count * PAGE).min(got - first * PAGE));
            let _may = self.room(errand)?;
            let appender = self.source.appender();
            match appender.copy_from_file(region.id, at + from as u64, len, region.file.as_fd()) {
                Ok(_) => {}
                Err(AppendError::Ahead(ahead)) => return Err(ahead.into()),
                Err(AppendError::Read(e)) => return Err(read(e)),
                Err(e @ AppendError::TooLarge) => return Err(read(io::Error::other(e))),
            }
            copied += len as u64;
        }
        self.keep_beside(copied);
        self.push();
        Ok(copied)
    }
}
