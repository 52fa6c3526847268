//! What a capture costs the application: one record of a few lines, from the call to its return, then a drain.
//!
//! The peer is what the application pays anyway: memcpy to the same place, CLWB, SFENCE. Nobody reads the log meanwhile;
//! the ring is freed between rounds, outside the clock.

use std::arch::asm;
use std::arch::x86_64::{_mm_sfence, _rdtsc};
use std::hint::black_box;
use std::time::Instant;

use clap::Args;
use hdrhistogram::Histogram;
use pmemha::log::{Appender, LogRegion, LogSpec};
use pmemha::types::RegionId;

/// Appends before the ring is freed: few enough that they fit the ring, many enough that freeing does not show.
const ROUND: usize = 1000;

/// Longest time that is told apart, in nanoseconds.
const LONGEST_NS: u64 = 1_000_000_000;

/// Options of `pmemha-perf append`.
#[derive(Args)]
pub struct Options {
    /// Bytes of a capture
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    bytes: u32,
    /// Captures measured
    #[arg(long, default_value_t = 1_000_000)]
    count: usize,
    /// Size of the ring in MiB, a power of two
    #[arg(long, default_value_t = 16)]
    ring_mib: u64,
}

/// Prints one JSON line.
pub fn run(options: &Options) -> Result<(), Box<dyn std::error::Error>> {
    let (_fd, log) =
        LogRegion::create(&LogSpec { ring_bytes: options.ring_mib << 20, ..LogSpec::default() })?;
    let app = Appender::attach(log.clone(), 1)?;
    let memory = pages(1 << 20);
    let len = options.bytes as usize;
    let places = memory.len() / 4096;
    let place = |i: usize| memory[i * 4096 % (places * 4096)..].as_ptr();
    let clock = Clock::calibrate();

    let capture = |i: usize| {
        // SAFETY: `place` is page-aligned with a page's bytes after it, and `len` is at most a page.
        unsafe { app.capture(RegionId(1), (i % places * 4096) as u64, place(i), len) };
    };
    let free = || {
        app.drain();
        log.set_free(log.published());
    };
    let capture_drain = |i: usize| {
        capture(i);
        app.drain();
    };
    let source = pages(4096);
    let flush = |i: usize| {
        // SAFETY: as above; the lines are ours to overwrite.
        unsafe { copy_and_flush(source.as_ptr(), place(i).cast_mut(), len) };
    };
    measure(&clock, (options.ring_mib as usize) << 14, &capture, &free); // First lap: page faults.
    let append = measure(&clock, options.count, &capture, &free);
    let drained = measure(&clock, options.count, &capture_drain, &free);
    let peer = measure(&clock, options.count, &flush, &|| {});
    let empty = measure(&clock, options.count, &|i| _ = black_box(i), &|| {});
    let line = serde_json::json!({
        "bench": "append", "bytes": len, "count": options.count,
        "append_p50_ns": append.value_at_quantile(0.5), "append_p99_ns": append.value_at_quantile(0.99),
        "append_drain_p50_ns": drained.value_at_quantile(0.5),
        "append_drain_p99_ns": drained.value_at_quantile(0.99),
        "memcpy_clwb_p50_ns": peer.value_at_quantile(0.5), "memcpy_clwb_p99_ns": peer.value_at_quantile(0.99),
        "clock_p50_ns": empty.value_at_quantile(0.5),
    });
    println!("{line}");
    Ok(())
}

fn measure(clock: &Clock, count: usize, work: &impl Fn(usize), between: &impl Fn()) -> Histogram<u64> {
    let mut times = Histogram::new_with_max(LONGEST_NS, 3).expect("three digits are supported");
    for i in 0..count {
        if i % ROUND == 0 {
            between();
        }
        // SAFETY: reading the counter changes nothing.
        let start = unsafe { _rdtsc() };
        work(i);
        // SAFETY: as above.
        let ticks = unsafe { _rdtsc() } - start;
        times.saturating_record(clock.ns(ticks));
    }
    times
}

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

/// Page-aligned memory, every page touched.
fn pages(len: usize) -> &'static mut [u8] {
    let layout = std::alloc::Layout::from_size_align(len, 4096).expect("a power of two");
    // SAFETY: a non-zero size; the memory is leaked, so it lives for ever, and it is initialised here.
    unsafe {
        let at = std::alloc::alloc(layout);
        assert!(!at.is_null(), "out of memory");
        at.write_bytes(0x5a, len);
        std::slice::from_raw_parts_mut(at, len)
    }
}

/// # Safety
/// `src` is readable and `dst` writable for `len` bytes, and they do not overlap.
unsafe fn copy_and_flush(src: *const u8, dst: *mut u8, len: usize) {
    // SAFETY: as the caller vouches; CLWB changes no content.
    unsafe {
        std::ptr::copy_nonoverlapping(black_box(src), dst, len);
        for line in (0..len).step_by(64) {
            asm!("clwb [{}]", in(reg) dst.wrapping_add(line), options(nostack, preserves_flags));
        }
        _mm_sfence();
    }
}
