//! `pmemha-perf scale`: what grows with threads of an application, with destinations, and with the size of regions.
//!
//! Threads append to a log that nobody reads, beside threads that copy and flush the same bytes: the log is the only thing that
//! ours share. With destinations a thread's appends are timed while agents ship them, in time of that thread on a processor: agents
//! on this machine take processors from it, as those of other machines would not. A region's first copy is timed from its
//! protection until the destination counts.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use clap::Args;
use pmemha::log::{Appender, LogRegion, LogSpec};
use pmemha::region::memory::SharedMem;
use pmemha::types::{LINE, Level, RegionId};
use rustix::time::{ClockId, clock_gettime};

use crate::Outcome;
use crate::app::App;
use crate::fabric::{Kind, Lane, open};
use crate::pair::{MOST_DESTINATIONS, Pair, Spec};
use crate::peers::memory::{self, copy_and_flush, pages};
use crate::report::{Output, Report, Row};

/// Options of `pmemha-perf scale`.
#[derive(Args, Debug)]
pub struct Options {
    /// What a first copy travels over
    #[arg(long, value_enum, default_value_t)]
    fabric: Kind,
    /// Threads that append, several numbers in turn
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4, 8])]
    threads: Vec<usize>,
    /// Bytes of a capture
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    bytes: u32,
    /// Captures of a thread in each round
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// Destinations that a thread's captures are shipped to, several numbers in turn; the first is the peer of the others
    #[arg(long, value_delimiter = ',', default_values_t = [1, 2], value_parser = clap::value_parser!(u8).range(1..=MOST_DESTINATIONS as i64))]
    destinations: Vec<u8>,
    /// MiB of a region, several sizes in turn
    #[arg(long, value_delimiter = ',', default_values_t = [16, 64, 256])]
    region_mib: Vec<usize>,
    /// Rounds; each measures every contestant once
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    #[command(flatten)]
    output: Output,
}

/// Measures, and tells a row for each number of threads and each size.
pub fn run(options: &Options) -> Outcome<()> {
    let each = options.threads.len() + options.destinations.len() + options.region_mib.len();
    let steps = options.rounds * each;
    let mut report = Report::new("scale", &options.output, steps);
    for &threads in &options.threads {
        let (mut ours, mut peer) = (Vec::new(), Vec::new());
        for round in 1..=options.rounds {
            report.step(format!("{threads} threads, round {round}"));
            ours.push(append(threads, options)? / 1e6);
            peer.push(copy(threads, options)? / 1e6);
        }
        let what = format!("append, {threads} threads");
        report.push(
            Row::new(what, Some(options.bytes.into()), "M/s", ours.into())
                .beside(memory::MEMCPY_CLWB, peer.into()),
        );
    }
    to_destinations(options, &mut report)?;
    let lane = Lane::open(&*open(options.fabric, false)?, LANE)?;
    for &mib in &options.region_mib {
        let (mut ours, mut peer) = (Vec::new(), Vec::new());
        for round in 1..=options.rounds {
            report.step(format!("{mib} MiB, round {round}"));
            ours.push(first_copy(options.fabric, mib << 20)? / 1e6);
            peer.push(lane.bandwidth(BATCH, DEPTH, Duration::from_millis(500))? / 1e6);
        }
        let row = Row::new("first copy", Some((mib << 20) as u64), "MB/s", ours.into());
        report.push(row.beside("own fabric write", peer.into()));
    }
    report.note(
        "An append to destinations is a store, its capture and a drain, in time of that thread on a processor. Shipping counts from \
         the first append until everything is applied at all destinations, which share this machine.",
    );
    report.note("A first copy counts from the file's protection until the destination's image counts, applied and durable.");
    report.finish()
}

/// Ring of the network's part, its batches, and how many of them are in flight.
const LANE: usize = 16 << 20;
const BATCH: usize = 1 << 20;
const DEPTH: usize = 8;

/// Captures between two looks at the room in the ring.
const ROUND: usize = 100;

/// Pages that a thread stores to, in turn.
const PLACES: usize = 64;

/// Captures and drains a second, of all threads together. A thread that finds less than half of the ring free frees what is
/// published: nobody else reads this log.
fn append(threads: usize, options: &Options) -> Outcome<f64> {
    let ring_bytes = 64 << 20;
    let (_fd, log) = LogRegion::create(&LogSpec { ring_bytes, ..LogSpec::default() })?;
    let app = Appender::attach(log.clone(), 1)?;
    let len = options.bytes as usize;
    // One lap, so that no page is touched for the first time under the clock.
    let laps = [ring_bytes as usize / len.next_multiple_of(64) / threads, options.count as usize];
    let mut rate = 0.0;
    for count in laps {
        rate = together(threads, count, |memory: &SharedMem, i| {
            let at = i % PLACES * 4096;
            // SAFETY: `at` is a page of the thread's memory, and `len` at most a page.
            unsafe { app.capture(RegionId(1), at as u64, memory.addr(at), len) };
            let published = app.drain();
            if i % ROUND == 0 && log.tail().since(log.free()) > ring_bytes / 4 {
                log.set_free(published);
            }
        })?;
    }
    if log.is_ahead() { Err("the ring was full: fewer threads, or fewer captures".into()) } else { Ok(rate) }
}

/// Copies and flushes a second, of all threads together.
fn copy(threads: usize, options: &Options) -> Outcome<f64> {
    let len = options.bytes as usize;
    together(threads, options.count as usize, |memory: &SharedMem, i| {
        let at = i % PLACES * 4096;
        // SAFETY: both are pages of the thread's memory, two different ones, and `len` is at most a page.
        unsafe { copy_and_flush(memory.addr(PLACES * 4096), memory.addr(at), len) };
    })
}

/// Operations a second of `threads` that begin together.
fn together(threads: usize, count: usize, one: impl Fn(&SharedMem, usize) + Sync) -> Outcome<f64> {
    let memory: Vec<SharedMem> =
        (0..threads).map(|_| pages((PLACES + 1) * 4096)).collect::<Result<_, _>>()?;
    let begin = Barrier::new(threads);
    let run = |memory: &SharedMem| {
        begin.wait();
        let start = Instant::now();
        (0..count).for_each(|i| one(memory, i));
        (start, Instant::now())
    };
    let times: Vec<(Instant, Instant)> = std::thread::scope(|scope| {
        let run = &run;
        let all: Vec<_> = memory.iter().map(|memory| scope.spawn(move || run(memory))).collect();
        all.into_iter().map(|thread| thread.join().expect("does not panic")).collect()
    });
    let (first, last) = (times.iter().map(|t| t.0).min(), times.iter().map(|t| t.1).max());
    let took = first.zip(last).map_or(Duration::ZERO, |(first, last)| last - first);
    Ok((threads * count) as f64 / took.as_secs_f64())
}

/// What so many destinations are called.
fn name(destinations: usize) -> &'static str {
    const NAMES: [&str; MOST_DESTINATIONS] = ["1 destination", "2 destinations", "3 destinations"];
    NAMES[destinations - 1]
}

/// A group with so many destinations, and what each round found.
struct Group {
    destinations: usize,
    app: App,
    /// Only has to live.
    _pair: Pair,
    /// Nanoseconds of the thread an append.
    appends: Vec<f64>,
    /// MB of log a second.
    shipped: Vec<f64>,
}

/// Rows for each number of destinations.
fn to_destinations(options: &Options, report: &mut Report) -> Outcome<()> {
    let start = |number: &u8| Group::start(options.fabric, usize::from(*number));
    let mut groups: Vec<Group> = options.destinations.iter().map(start).collect::<Result<_, _>>()?;
    for round in 1..=options.rounds {
        for group in &mut groups {
            report.step(format!("{}, round {round}", name(group.destinations)));
            group.ship(options.bytes as usize, options.count as usize)?;
        }
    }
    let Some((first, others)) = groups.split_first() else { return Ok(()) };
    let size = Some(options.bytes.into());
    let rows = |group: &Group| {
        let what = |does: &str| format!("{does}, {}", name(group.destinations));
        [
            Row::new(what("append"), size, "ns", group.appends.clone().into()),
            Row::new(what("shipping"), size, "MB/s", group.shipped.clone().into()),
        ]
    };
    rows(first).into_iter().for_each(|row| report.push(row));
    let peer = name(first.destinations);
    for [append, shipping] in others.iter().map(rows) {
        report.push(append.beside(peer, first.appends.clone().into()));
        report.push(shipping.beside(peer, first.shipped.clone().into()));
    }
    groups.into_iter().try_for_each(|group| group.app.leave())
}

impl Group {
    fn start(fabric: Kind, destinations: usize) -> Outcome<Group> {
        let pair = Pair::start(&Spec { destinations, ..Spec::new(fabric, RING) })?;
        let app = App::attach(&pair.alpha, REGION)?;
        pair.await_streaming();
        Ok(Group { destinations, app, _pair: pair, appends: Vec::new(), shipped: Vec::new() })
    }

    /// Appends, in pieces of a quarter of the ring: whoever waited for room would measure shipping.
    fn ship(&mut self, bytes: usize, count: usize) -> Outcome<()> {
        let piece = (RING / 4) as usize / (bytes + 2 * LINE);
        let (begun, before) = (Instant::now(), self.app.drain());
        let (mut appending, mut last) = (Duration::ZERO, before);
        for from in (0..count).step_by(piece) {
            let on_processor = thread_time();
            for i in from..count.min(from + piece) {
                last = self.app.persist(i, bytes);
            }
            appending += thread_time() - on_processor;
            self.app.wait(last, Level::Applied)?;
        }
        self.appends.push(appending.as_nanos() as f64 / count as f64);
        self.shipped.push(last.since(before) as f64 / begun.elapsed().as_secs_f64() / 1e6);
        Ok(())
    }
}

/// Of a group with destinations.
const RING: u64 = 64 << 20;
const REGION: usize = 1 << 20;

/// Time that this thread has had on processors.
fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Bytes of a region a second.
fn first_copy(fabric: Kind, bytes: usize) -> Outcome<f64> {
    let pair = Pair::start(&Spec::new(fabric, RING))?;
    pair.await_streaming();
    let start = Instant::now();
    let app = App::attach(&pair.alpha, bytes)?;
    let took = start.elapsed();
    app.leave()?;
    Ok(bytes as f64 / took.as_secs_f64())
}
