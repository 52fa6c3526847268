//! A fixed schedule of arrivals. Whoever measures one operation after the other lets a stall delay the operations behind it
//! and counts it once (coordinated omission). Here every operation is due at a moment that was fixed beforehand, and its time
//! counts from that moment, whether or not it could begin then.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use crate::Outcome;
use crate::figures::round_of_times;

/// Pauses at least so long are slept through but for their last part, which is spun.
const SLEEP_OVER: Duration = Duration::from_micros(300);

/// The part that is spun: a timer's lateness.
const SPIN: Duration = Duration::from_micros(120);

/// Operations that are timed to find how long one takes.
pub const PROBES: usize = 50;

/// Nanoseconds of `count` operations, one due every `interval`, each from the moment at which it was due.
pub fn run(
    count: usize,
    interval: Duration,
    mut one: impl FnMut(usize) -> Outcome<()>,
) -> Outcome<Histogram<u64>> {
    let mut times = round_of_times();
    let start = Instant::now();
    for i in 0..count {
        let due = start + interval * i as u32;
        pause_until(due);
        one(i)?;
        times.saturating_record(due.elapsed().as_nanos() as u64);
    }
    Ok(times)
}

/// An interval that keeps whatever runs the operations busy for half of the time: twice the mean of some that follow each other
/// at once.
pub fn interval(mut one: impl FnMut(usize) -> Outcome<()>) -> Outcome<Duration> {
    let start = Instant::now();
    (0..PROBES).try_for_each(&mut one)?;
    Ok(2 * start.elapsed() / PROBES as u32)
}

fn pause_until(due: Instant) {
    let left = due.saturating_duration_since(Instant::now());
    if left > SLEEP_OVER {
        std::thread::sleep(left - SPIN);
    }
    while Instant::now() < due {
        std::hint::spin_loop();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stall_counts_for_everything_that_was_due_meanwhile() {
        let stall = Duration::from_millis(50);
        let times = run(50, Duration::from_millis(1), |i| {
            if i == 0 {
                std::thread::sleep(stall);
            }
            Ok(())
        })
        .expect("the operation does not fail");
        // The first is late by the stall, the one due 25 ms later by half of it; one after the other, 49 of 50 were quick.
        assert!(times.value_at_quantile(0.5) >= 20_000_000, "{} ns", times.value_at_quantile(0.5));
    }
}
