//! How fast bulk work may be, a copy or a comparison, where its operator limits that.

use std::time::{Duration, Instant};

use crate::waits;

/// A sleep that took longer than it was to is made up for as far as this: what was not used is not saved up.
const SLACK: Duration = Duration::from_millis(20);

/// How often one that waits looks whether it is still to wait.
const LOOK: Duration = Duration::from_millis(10);

/// Bytes a second, kept to over many pieces.
#[derive(Debug)]
pub(crate) struct Limit {
    bytes_per_s: u64,
    /// When the next piece is due.
    due: Instant,
}

impl Limit {
    /// A limit of so many bytes a second, more than 0, from `now` on.
    pub(crate) fn new(bytes_per_s: u64, now: Instant) -> Limit {
        Limit { bytes_per_s, due: now }
    }

    /// The limit.
    pub(crate) fn bytes_per_s(&self) -> u64 {
        self.bytes_per_s
    }

    /// A piece of so many bytes is done: waits until the next one is due. Now and then `goes_on` is asked: it may have the rest not
    /// waited for, or fail.
    pub(crate) fn wait<E>(&mut self, bytes: u64, goes_on: impl Fn() -> Result<bool, E>) -> Result<(), E> {
        let due = self.next(bytes, waits::now());
        loop {
            let left = due.saturating_duration_since(waits::now());
            if left.is_zero() || !goes_on()? {
                return Ok(());
            }
            waits::sleep(left.min(LOOK));
        }
    }

    /// A piece of so many bytes was done by `now`; when the next one is due.
    fn next(&mut self, bytes: u64, now: Instant) -> Instant {
        let begun = now.checked_sub(SLACK).map_or(self.due, |earliest| self.due.max(earliest));
        self.due = begun + Duration::from_secs_f64(bytes as f64 / self.bytes_per_s as f64);
        self.due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// When a copy of so many pieces of 1 MB is done whose every piece takes `piece` and whose sleeps take `late` longer than asked.
    fn takes(pieces: u32, piece: Duration, late: Duration) -> Duration {
        let begin = Instant::now();
        let (mut limit, mut now) = (Limit::new(100_000_000, begin), begin);
        for _ in 0..pieces {
            now += piece;
            let due = limit.next(1_000_000, now);
            if due > now {
                now = due + late;
            }
        }
        now - begin
    }

    #[test]
    fn pieces_are_as_far_apart_as_the_limit_says_even_where_sleeps_are_long() {
        let [quick, late] = [0, 3].map(|ms| takes(1000, Duration::from_millis(1), Duration::from_millis(ms)));
        assert!((9.9..10.1).contains(&quick.as_secs_f64()), "{quick:?}");
        assert!((9.9..10.1).contains(&late.as_secs_f64()), "{late:?}");
    }

    #[test]
    fn one_that_is_slower_waits_for_nothing_and_saves_nothing_up() {
        let slow = Duration::from_millis(40);
        assert_eq!(takes(100, slow, Duration::ZERO), slow * 100);
        let begin = Instant::now();
        let mut limit = Limit::new(1_000_000, begin);
        let later = begin + Duration::from_secs(3600);
        assert!(
            limit.next(1_000_000, later) >= later + Duration::from_millis(980),
            "an hour is not made up for"
        );
    }
}
