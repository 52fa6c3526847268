//! What a capture costs the application: one record of a few lines, from the call to its return, then a drain.
//!
//! The peer is what the application pays anyway: memcpy to the same place, CLWB, SFENCE. Nobody reads the log meanwhile;
//! the ring is freed between batches, outside the clock. Operations follow each other at once: nothing is due here.

use std::arch::x86_64::_rdtsc;
use std::hint::black_box;
use std::time::{Duration, Instant};

use clap::Args;
use hdrhistogram::Histogram;
use pmemha::log::{Appender, LogRegion, LogSpec};
use pmemha::region::memory::SharedMem;
use pmemha::types::RegionId;

use crate::Outcome;
use crate::figures::{Times, round_of_times};
use crate::peers::memory::{MEMCPY, MEMCPY_CLWB, copy, copy_and_flush, pages};
use crate::report::{Aim, Output, Report, Row, Series};

/// Appends before the ring is freed: few enough that they fit the ring, many enough that freeing does not show.
const BATCH: usize = 1000;

/// Options of `pmemha-perf append`.
#[derive(Args, Debug)]
pub struct Options {
    /// Bytes of a capture, several sizes in turn
    #[arg(long, value_delimiter = ',', default_values_t = [64, 256, 1024, 4096], value_parser = clap::value_parser!(u32).range(1..=4096))]
    bytes: Vec<u32>,
    /// Captures of a round
    #[arg(long, default_value_t = 200_000)]
    count: usize,
    /// Rounds; each measures every contestant once
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Size of the ring in MiB, a power of two
    #[arg(long, default_value_t = 16)]
    ring_mib: u64,
    #[command(flatten)]
    output: Output,
}

/// Measures, and tells rows for each size.
pub fn run(options: &Options) -> Outcome<()> {
    let mut report = Report::new("append", &options.output, options.bytes.len() * options.rounds);
    let bench = Bench::new(options)?;
    for &bytes in &options.bytes {
        let mut seen = Seen::default();
        for round in 1..=options.rounds {
            report.step(format!("{bytes} B, round {round}"));
            bench.round(bytes as usize, options.count, &mut seen);
        }
        let row = |what, times: &Times| Row::new(what, Some(bytes.into()), "us", Series::of_times(times));
        for (what, ours, aim) in
            [("append", &seen.append, aim(bytes)), ("append and drain", &seen.drained, None)]
        {
            for (name, peer) in [(MEMCPY, &seen.memcpy), (MEMCPY_CLWB, &seen.flushed)] {
                report.push(row(what, ours).beside(name, Series::of_times(peer)).aiming(aim));
            }
        }
        report.push(row("reading the clock", &seen.clock));
        let mean = Row::new("append, mean of many", Some(bytes.into()), "us", seen.mean.into());
        report.push(mean.beside(MEMCPY, seen.memcpy_mean.into()));
    }
    report.note(
        "Operations follow each other at once. Every time but a mean includes one reading of the clock, which does not wait for \
         what is under way, and on some machines goes in steps of 10 ns: the mean is what an operation takes.",
    );
    report.finish()
}

/// A capture of a line is to take less than 100 ns.
fn aim(bytes: u32) -> Option<Aim> {
    (bytes as usize == LINE).then_some(Aim::OursBelow(0.1))
}

/// Times of one size.
#[derive(Default)]
struct Seen {
    append: Times,
    drained: Times,
    memcpy: Times,
    flushed: Times,
    clock: Times,
    /// Microseconds an operation, a figure a round.
    mean: Vec<f64>,
    memcpy_mean: Vec<f64>,
}

struct Bench {
    app: Appender,
    memory: SharedMem,
    source: SharedMem,
    clock: Clock,
}

impl Bench {
    fn new(options: &Options) -> Outcome<Bench> {
        let ring_bytes = options.ring_mib << 20;
        let (_fd, log) = LogRegion::create(&LogSpec { ring_bytes, ..LogSpec::default() })?;
        let app = Appender::attach(log, 1)?;
        let bench =
            Bench { app, memory: pages(PLACES * PAGE)?, source: pages(PAGE)?, clock: Clock::calibrate() };
        // A first lap of the ring takes its page faults.
        bench.times((options.ring_mib as usize) << 14, &|i| bench.capture(i, LINE), true);
        Ok(bench)
    }

    fn round(&self, len: usize, count: usize, seen: &mut Seen) {
        let capture_drain = |i: usize| {
            self.capture(i, len);
            self.app.drain();
        };
        // SAFETY: both are a page of ours, two different ones, and `len` is at most a page.
        let copied = |i: usize| unsafe { copy(self.source.addr(0), self.memory.addr(place(i)), len) };
        // SAFETY: as above.
        let flushed =
            |i: usize| unsafe { copy_and_flush(self.source.addr(0), self.memory.addr(place(i)), len) };
        seen.mean.push(self.mean(count, &|i| self.capture(i, len), true));
        seen.memcpy_mean.push(self.mean(count, &copied, false));
        seen.append.push(&self.times(count, &|i| self.capture(i, len), true));
        seen.drained.push(&self.times(count, &capture_drain, true));
        seen.memcpy.push(&self.times(count, &copied, false));
        seen.flushed.push(&self.times(count, &flushed, false));
        seen.clock.push(&self.times(count, &|i| _ = black_box(i), false));
    }

    /// Microseconds an operation, of `count` that are timed by the batch; the ring is freed between batches if they append.
    fn mean(&self, count: usize, work: &impl Fn(usize), appends: bool) -> f64 {
        let mut took = Duration::ZERO;
        for first in (0..count).step_by(BATCH) {
            if appends {
                self.free_ring();
            }
            let start = Instant::now();
            (first..count.min(first + BATCH)).for_each(work);
            took += start.elapsed();
        }
        took.as_secs_f64() * 1e6 / count as f64
    }

    fn free_ring(&self) {
        self.app.drain();
        self.app.log().set_free(self.app.log().published());
    }

    fn capture(&self, i: usize, len: usize) {
        let at = place(i);
        // SAFETY: `at` is a page of ours, and `len` is at most a page.
        unsafe { self.app.capture(RegionId(1), at as u64, self.memory.addr(at), len) };
    }

    /// Nanoseconds of `count` operations; the ring is freed now and then if they append.
    fn times(&self, count: usize, work: &impl Fn(usize), appends: bool) -> Histogram<u64> {
        let mut times = round_of_times();
        for i in 0..count {
            if appends && i % BATCH == 0 {
                self.free_ring();
            }
            // SAFETY: reading the counter changes nothing.
            let start = unsafe { _rdtsc() };
            work(i);
            // SAFETY: as above.
            let ticks = unsafe { _rdtsc() } - start;
            times.saturating_record(self.clock.ns(ticks));
        }
        times
    }
}

/// Where the `i`th operation stores.
fn place(i: usize) -> usize {
    i % PLACES * PAGE
}

/// Pages that are stored to, in turn.
const PLACES: usize = 256;
const PAGE: usize = 4096;
const LINE: usize = 64;

/// The time stamp counter in nanoseconds.
struct Clock {
    ns_per_tick: f64,
}

impl Clock {
    fn calibrate() -> Clock {
        // SAFETY: reading the counter changes nothing.
        let (begin, ticks) = (Instant::now(), unsafe { _rdtsc() });
        while begin.elapsed().as_millis() < 50 {}
        // SAFETY: as above.
        let ticks = unsafe { _rdtsc() } - ticks;
        Clock { ns_per_tick: begin.elapsed().as_nanos() as f64 / ticks as f64 }
    }

    fn ns(&self, ticks: u64) -> u64 {
        (ticks as f64 * self.ns_per_tick) as u64
    }
}
