//! How fast a link drains: bytes completed over the time in which something was in flight.
//!
//! Idle time does not count, so the figure says what the link can do, not what the application happened to
//! write. Pure; the clock comes from the caller.

use std::time::Duration;

/// Busy time over which a figure is formed: long enough to even out single completions.
const SAMPLE: Duration = Duration::from_millis(20);

/// Weight of the newest sample.
const WEIGHT: f64 = 0.25;

/// Measures one link.
#[derive(Debug, Default)]
pub struct DrainRate {
    bytes: u64,
    busy: Duration,
    rate: f64,
}

impl DrainRate {
    /// `bytes` completed, after `busy` in which something was in flight.
    pub fn add(&mut self, bytes: u64, busy: Duration) {
        self.bytes += bytes;
        self.busy += busy;
        if self.busy < SAMPLE || self.bytes == 0 {
            return;
        }
        let sample = self.bytes as f64 / self.busy.as_secs_f64();
        self.rate = if self.rate == 0.0 { sample } else { self.rate + WEIGHT * (sample - self.rate) };
        (self.bytes, self.busy) = (0, Duration::ZERO);
    }

    /// Bytes a second; 0 while too little has been shipped to say.
    pub fn bytes_per_s(&self) -> u64 {
        self.rate as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_steady_link_is_measured_and_too_little_says_nothing() {
        let mut rate = DrainRate::default();
        rate.add(1000, Duration::from_micros(10));
        assert_eq!(rate.bytes_per_s(), 0);
        for _ in 0..1000 {
            rate.add(1_000_000, Duration::from_millis(1));
        }
        let measured = rate.bytes_per_s();
        assert!((990_000_000..1_010_000_000).contains(&measured), "{measured}");
    }

    #[test]
    fn a_change_is_followed() {
        let mut rate = DrainRate::default();
        rate.add(1 << 30, Duration::from_secs(1));
        for _ in 0..40 {
            rate.add(1 << 20, Duration::from_secs(1));
        }
        assert!(rate.bytes_per_s() < 2 << 20, "{}", rate.bytes_per_s());
    }
}
