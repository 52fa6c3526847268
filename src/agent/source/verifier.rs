//! The comparison of a group with a destination's image that an operator asks for: one at a time, on a thread of its own.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Instant;

use serde_json::json;

use super::destination::Destination;
use super::link::CONNECT_WITHIN;
use super::verify::{Comparison, Cut, Image, Progress};
use super::{Shared, spawn};
use crate::agent::clock::WallTime;
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
    pub rate: Option<u64>,
    /// Where something is found, the destination is brought what differs.
    pub repair: bool,
}

/// The comparison of a source, if one was asked for.
#[derive(Default)]
pub(super) struct Verifier {
    stop: Arc<AtomicBool>,
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
    pub(super) fn watermark(&self) -> Option<Lsn> {
        *lock(&self.watermark)
    }

    pub(super) fn status(&self) -> Option<VerifyStatus> {
        let run = lock(&self.run);
        let Run { began, progress, status } = run.as_ref()?;
        let (done, total) = (progress.done.load(Relaxed), progress.total.load(Relaxed));
        let rate = done as f64 / began.elapsed().as_secs_f64().max(0.001);
        let under_way = status.ended.is_none();
        let progress = under_way.then(|| SyncStatus::at(done.min(total), total, rate as u64));
        Some(VerifyStatus { progress, ..status.clone() })
    }
}

impl Verifier {
    /// Begins a comparison; with whom, and its number.
    pub(super) fn begin(&self, shared: &Arc<Shared>, wish: &Wish) -> Result<(String, u64), String> {
        let mut last = lock(&self.last);
        if last.thread.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return Err("a comparison is under way: `pmemha status` says how far it is".into());
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
        let (shared, wish, stop, node) =
            (shared.clone(), wish.clone(), self.stop.clone(), to.peer.name.clone());
        let name = format!("verify-{}", shared.setup.group.name());
        let thread = spawn(name, move || compare(&shared, &to, &wish, &stop, &progress));
        last.thread = Some(thread.map_err(|error| format!("a thread could not be started: {error}"))?);
        Ok((node, run))
    }

    /// Ends one that is under way.
    pub(super) fn end(&self) {
        self.stop.store(true, Relaxed);
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
        image: &mut image,
        suspects: &to.suspects,
        limit: wish.rate.map(|rate| Limit::new(rate, Instant::now())),
        stop,
        progress,
    };
    let mut findings = Findings::default();
    let cut = regions.iter().find_map(|region| {
        let compared = one(&mut comparison, region, &mut findings);
        // One that is gone by now is no part of the group.
        compared.err().filter(|_| group.region(region.id()).is_some())
    });
    to.suspects.clear();
    let error = cut.map(|cut| cut.to_string());
    let unrecorded = findings.differing_bytes > 0;
    let repair = wish.repair && error.is_none() && (unrecorded || findings.unflushed_bytes > 0);
    let mut run = lock(&to.verified.run);
    let Some(Run { status, .. }) = &mut *run else { return };
    *status = VerifyStatus {
        ended: Some(WallTime::now().to_string()),
        compared_bytes: progress.done.load(Relaxed).min(progress.total.load(Relaxed)),
        differing_bytes: findings.differing_bytes,
        unflushed_bytes: findings.unflushed_bytes,
        undecided_pages: findings.undecided_pages,
        ranges: findings.ranges,
        ranges_more: findings.ranges_more,
        repairs: repair,
        error,
        ..status.clone()
    };
    if status.error.is_none() && !unrecorded {
        *lock(&to.verified.watermark) = Some(status.lsn);
    }
    let detail = json!({
        "node": to.peer.name, "lsn": status.lsn, "compared_bytes": status.compared_bytes,
        "differing_bytes": status.differing_bytes, "unflushed_bytes": status.unflushed_bytes,
        "undecided_pages": status.undecided_pages, "repairs": repair, "error": status.error,
    });
    drop(run);
    (shared.setup.event)(Kind::Verified, detail);
    if repair {
        to.repair();
        shared.shed(to.index);
    }
}

fn one(comparison: &mut Comparison<'_>, region: &Region, findings: &mut Findings) -> Result<(), Cut> {
    let unreadable = |error| Cut::Reading(region.id(), error);
    let file = region.file();
    let content = Content::of(&file).map_err(unreadable)?;
    let found = comparison.region(region.id(), &content, region.len())?;
    let unflushed = region.is_mapped();
    findings.undecided_pages += found.undecided;
    found.ranges.iter().for_each(|range| findings.add(region, *range, unflushed));
    Ok(())
}

#[derive(Default)]
struct Findings {
    differing_bytes: u64,
    unflushed_bytes: u64,
    undecided_pages: u64,
    ranges: Vec<RangeStatus>,
    ranges_more: u64,
}

impl Findings {
    fn add(&mut self, region: &Region, range: ByteRange, unflushed: bool) {
        match unflushed {
            true => self.unflushed_bytes += range.len,
            false => self.differing_bytes += range.len,
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
const MAX_RANGES: usize = 256;

/// A destination's live image, asked on a control channel of its own.
struct Remote<'a> {
    shared: &'a Shared,
    to: &'a Destination,
    client: Option<Client>,
}

impl Image for Remote<'_> {
    fn applied(&self) -> Option<Lsn> {
        let ship = self.to.ship.view();
        // What happened while the application was ahead of the log no record tells.
        let told = self.shared.setup.group.log().is_whole() && !self.shared.syncer.is_active_for_all();
        (ship.counts && told).then_some(ship.applied)
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
