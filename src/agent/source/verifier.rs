//! The comparison of a group with a destination's image that an operator asks for: one at a time, on a thread of its own.

use std::io;
use std::num::NonZeroU64;
use std::sync::atomic::{
    AtomicBool,
    Ordering::{Relaxed, SeqCst},
};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use serde_json::json;

use super::destination::{Destination, Why};
use super::link::CONNECT_WITHIN;
use super::verify::{Comparison, Cut, Image, Progress, SLOWEST, Source};
use super::{Shared, spawn};
use crate::agent::clock::WallTime;
use crate::agent::config::format_bytes;
use crate::agent::control::message::{Answer, Ask};
use crate::agent::control::{Client, client::unexpected};
use crate::agent::events::Kind;
use crate::agent::group::Region;
use crate::agent::status::{RangeStatus, SyncStatus, VerifyStatus};
use crate::locks::lock;
use crate::region::content::Content;
use crate::ship::limit::Limit;
use crate::types::{ByteRange, Lsn, RegionId};

/// What an operator wants compared.
#[derive(Clone, Debug)]
pub struct Wish {
    /// With which destination; the first one that counts if none is named.
    pub node: Option<String>,
    /// Bytes a second at most.
    pub rate: Option<NonZeroU64>,
    /// Where something is found, the destination is brought what differs.
    pub repair: bool,
}

/// The comparison of a source, if one was asked for.
#[derive(Default)]
pub(super) struct Verifier {
    /// Ends the present one.
    stop: Mutex<Arc<AtomicBool>>,
    last: Mutex<Last>,
}

#[derive(Default)]
struct Last {
    runs: u64,
    thread: Option<JoinHandle<()>>,
}

/// What is known of the comparisons with one destination.
#[derive(Default)]
pub(super) struct Verified {
    /// The last one, under way or over.
    run: Mutex<Option<Run>>,
    /// Up to where one found nothing that no record tells of.
    watermark: Mutex<Option<Lsn>>,
}

struct Run {
    began: Instant,
    progress: Arc<Progress>,
    status: VerifyStatus,
}

impl Verified {
    /// The destination begins anew: what was found says nothing of that.
    pub(super) fn forget(&self) {
        *lock(&self.watermark) = None;
    }

    pub(super) fn watermark(&self) -> Option<Lsn> {
        *lock(&self.watermark)
    }

    /// Of the last one. `counts_from`: where the copy ends that the destination has had since.
    pub(super) fn status(&self, counts_from: Option<Lsn>) -> Option<VerifyStatus> {
        let run = lock(&self.run);
        let Run { began, progress, status } = run.as_ref()?;
        let (done, total) = (progress.done.load(Relaxed), progress.total.load(Relaxed));
        let rate = done as f64 / began.elapsed().as_secs_f64().max(0.001);
        let under_way = status.ended.is_none();
        let progress = under_way.then(|| SyncStatus::at(done.min(total), total, rate as u64));
        let outdated = !under_way && counts_from.is_some_and(|from| from > status.lsn);
        Some(VerifyStatus { progress, outdated, ..status.clone() })
    }
}

impl Verifier {
    /// Begins a comparison; with whom, and its number.
    pub(super) fn begin(&self, shared: &Arc<Shared>, wish: &Wish) -> Result<(String, u64), String> {
        let mut last = lock(&self.last);
        if last.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return Err("a comparison is under way: `pmemha status` says how far it is".into());
        }
        if let Some(rate) = wish.rate.filter(|rate| rate.get() < SLOWEST) {
            return Err(format!(
                "{rate} bytes a second are too few: ask for {} or more",
                format_bytes(SLOWEST)
            ));
        }
        let to = choose(shared, wish.node.as_deref())?;
        if !to.ship.view().counts {
            let node = &to.peer.name;
            return Err(format!(
                "{node} holds no copy that counts at present: there is nothing to compare with"
            ));
        }
        last.runs += 1;
        let run = last.runs;
        let progress = Arc::<Progress>::default();
        let lsn = shared.setup.group.log().published();
        let status = VerifyStatus { run, lsn, ..VerifyStatus::default() };
        *lock(&to.verified.run) = Some(Run { began: Instant::now(), progress: progress.clone(), status });
        let (theirs, wish, stop, chosen) =
            (shared.clone(), wish.clone(), Arc::<AtomicBool>::default(), to.clone());
        *lock(&self.stop) = stop.clone();
        let name = format!("compare-{}", shared.setup.group.name());
        let thread = spawn(name, move || compare(&theirs, &chosen, &wish, &stop, &progress));
        let thread = thread.inspect_err(|_| *lock(&to.verified.run) = None);
        last.thread = Some(thread.map_err(|error| format!("a thread could not be started: {error}"))?);
        let node = to.peer.name.clone();
        Ok((node, run))
    }

    /// One that is under way is to end. When this returns it repairs nothing any more.
    pub(super) fn stop(&self) {
        lock(&self.stop).store(true, SeqCst);
    }

    /// Ends one that is under way, and waits for it.
    pub(super) fn end(&self) {
        self.stop();
        if let Some(thread) = lock(&self.last).thread.take() {
            let _ = thread.join();
        }
    }
}

fn choose(shared: &Shared, node: Option<&str>) -> Result<Arc<Destination>, String> {
    let mut all = shared.destinations.iter();
    let found = match node {
        Some(node) => all.find(|to| to.peer.name == node),
        None => all.find(|to| to.ship.view().counts).or(shared.destinations.first()),
    };
    found.cloned().ok_or_else(|| shared.no_destination(node))
}

fn compare(shared: &Shared, to: &Arc<Destination>, wish: &Wish, stop: &AtomicBool, progress: &Progress) {
    let group = &shared.setup.group;
    let regions = group.regions();
    progress.total.store(regions.iter().map(|region| region.len()).sum(), Relaxed);
    let mut image = Remote { shared, to, client: None };
    let mut comparison = Comparison {
        log: group.log(),
        still: &|| group.is_still(),
        image: &mut image,
        limit: wish.rate.map(|rate| Limit::new(rate.get(), Instant::now())),
        stop,
        progress,
    };
    let mut findings = Findings::default();
    let cut = regions.iter().find_map(|region| {
        let compared = one(&mut comparison, region, &mut findings);
        // One that is gone by now is no part of the group.
        compared.err().filter(|_| group.region(region.id()).is_some())
    });
    let error = cut.map(|cut| cut.to_string());
    let repair =
        wish.repair && error.is_none() && (findings.unrecorded_bytes > 0 || findings.unflushed_bytes > 0);
    let mut run = lock(&to.verified.run);
    let Some(Run { status, .. }) = &mut *run else { return };
    *status = VerifyStatus {
        ended: Some(WallTime::now().to_string()),
        compared_bytes: progress.done.load(Relaxed).min(progress.total.load(Relaxed)),
        unrecorded_bytes: findings.unrecorded_bytes,
        unflushed_bytes: findings.unflushed_bytes,
        ranges: findings.ranges,
        ranges_more: findings.ranges_more,
        repairs: repair,
        error,
        ..status.clone()
    };
    if status.error.is_none() && findings.unrecorded_bytes == 0 {
        *lock(&to.verified.watermark) = Some(status.lsn);
    }
    let detail = json!({
        "node": to.peer.name, "lsn": status.lsn, "compared_bytes": status.compared_bytes,
        "unrecorded_bytes": status.unrecorded_bytes, "unflushed_bytes": status.unflushed_bytes, "repairs": repair, "error": status.error,
    });
    drop(run);
    (shared.setup.event)(Kind::Verified, detail);
    if repair {
        // A last gasp that begins must not lose its heir.
        let _stop = lock(&shared.verifier.stop);
        if !stop.load(SeqCst) {
            shared.let_go(to.index, Why::Repair);
        }
    }
}

fn one(comparison: &mut Comparison<'_>, region: &Region, findings: &mut Findings) -> Result<(), Cut> {
    let unreadable = |error| Cut::Reading(region.id(), error);
    let file = region.file();
    let content = Content::of(&file).map_err(unreadable)?;
    let source = Source { id: region.id(), content, len: region.len() };
    comparison.region(&source, &mut |range| findings.add(region, range, region.is_mapped()))
}

#[derive(Default)]
struct Findings {
    unrecorded_bytes: u64,
    unflushed_bytes: u64,
    ranges: Vec<RangeStatus>,
    ranges_more: u64,
}

impl Findings {
    fn add(&mut self, region: &Region, range: ByteRange, unflushed: bool) {
        match unflushed {
            true => self.unflushed_bytes += range.len,
            false => self.unrecorded_bytes += range.len,
        }
        if self.ranges.len() == MAX_RANGES {
            self.ranges_more += 1;
            return;
        }
        let path = region.path().display().to_string();
        let ByteRange { offset, len } = range;
        self.ranges.push(RangeStatus { region: region.id(), path, offset, bytes: len, unflushed });
    }
}

/// Ranges that are told one by one.
const MAX_RANGES: usize = 64;

/// A destination's live image, asked on a control channel of its own.
struct Remote<'a> {
    shared: &'a Shared,
    to: &'a Destination,
    client: Option<Client>,
}

impl Image for Remote<'_> {
    fn applied(&self) -> Option<Lsn> {
        self.shared.image_at(self.to)
    }

    fn digests(&mut self, region: RegionId, block: usize, first: u64, count: usize) -> io::Result<Vec<u64>> {
        let group = &self.shared.setup.group;
        let ask = Ask::Image {
            group: group.name().to_owned(),
            id: group.id(),
            generation: group.generation(),
            region,
            block: block as u32,
            first,
            count: count as u32,
        };
        let peer = &self.to.peer;
        let client = match &mut self.client {
            Some(client) => client,
            none => {
                let (identity, deadline) = (&self.shared.way().identity, Instant::now() + CONNECT_WITHIN);
                let client = Client::connect(&peer.address, identity, &peer.name, deadline);
                none.insert(client.map_err(io::Error::other)?)
            }
        };
        match client.ask(&ask, CONNECT_WITHIN).map_err(io::Error::other)? {
            Answer::Image { digests } => Ok(digests),
            other => Err(io::Error::other(unexpected(&peer.name, other))),
        }
    }
}
