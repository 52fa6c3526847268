//! How long an append is delayed for what is exposed, where the operator has the battery budget enforced. Pure.
//!
//! The agent reckons the thresholds (`power::budget`) and puts them into the log's header; drains keep them (`log::budget`).

use std::time::Duration;

/// The first threshold as a part of the second.
const T1_PART: u64 = 2;

/// How many bytes of a group may be exposed. Both thresholds follow bandwidth and battery, up and down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Thresholds {
    /// Above this, appends are delayed.
    pub t1: u64,
    /// Above this, the battery would not carry them.
    pub t2: u64,
    /// Bytes a second that drain; 0: not known.
    pub drain: u64,
}

/// How long an append is delayed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delay {
    /// Not at all.
    None,
    /// So long.
    For(Duration),
    /// Until less is exposed.
    UntilLess,
}

impl Thresholds {
    /// Of what the battery can carry.
    pub fn of(t2: u64, drain: u64) -> Thresholds {
        Thresholds { t1: t2 / T1_PART, t2, drain }
    }

    /// How long an append of `bytes` is delayed while `exposed` bytes are.
    ///
    /// With x the way from T1 to T2, as long as it takes to drain x / (1 - x) times as much as was appended. So n writers that do
    /// nothing else come to rest at x = n / (n + 1), where they append as fast as it drains: below T2, however many they are.
    pub fn delay(&self, bytes: u64, exposed: u64) -> Delay {
        if exposed <= self.t1 {
            return Delay::None;
        }
        if exposed >= self.t2 || self.drain == 0 {
            return Delay::UntilLess;
        }
        let x = (exposed - self.t1) as f64 / (self.t2 - self.t1) as f64;
        let seconds = bytes as f64 / self.drain as f64 * x / (1.0 - x);
        // Whoever would sleep for longer than it all takes to drain looks again by then.
        let longest = exposed as f64 / self.drain as f64;
        Delay::For(Duration::try_from_secs_f64(seconds.min(longest)).unwrap_or(Duration::MAX))
    }
}
