//! When to try again: exponentially later, bounded, spread by chance.

use std::time::Duration;

/// First pause: long enough that a peer that refuses at once is not hammered.
const FIRST: Duration = Duration::from_millis(50);

/// Longest pause: a destination that is back waits no longer than this to be found.
const LONGEST: Duration = Duration::from_secs(2);

/// Pauses between attempts to reach one peer.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// An attempt failed: how long to wait. `chance` is uniform in `0..=u32::MAX` and spreads sources that lost
    /// the same peer at the same moment over half of the pause.
    pub fn failed(&mut self, chance: u32) -> Duration {
        let full = FIRST.saturating_mul(1 << self.failures.min(16)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        full / 2 + (full / 2).mul_f64(f64::from(chance) / f64::from(u32::MAX))
    }

    /// An attempt succeeded.
    pub fn succeeded(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pauses_grow_to_the_limit_and_start_anew_after_a_success() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.failed(u32::MAX), FIRST);
        assert_eq!(backoff.failed(u32::MAX), FIRST * 2);
        for _ in 0..100 {
            backoff.failed(0);
        }
        assert_eq!(backoff.failed(u32::MAX), LONGEST);
        backoff.succeeded();
        assert_eq!(backoff.failed(u32::MAX), FIRST);
    }

    proptest! {
        #[test]
        fn every_pause_is_between_half_and_whole(failures in 0u32..200, chance: u32) {
            let mut backoff = Backoff { failures };
            let whole = Backoff { failures }.failed(u32::MAX);
            let pause = backoff.failed(chance);
            prop_assert!(pause >= whole / 2 && pause <= whole && whole <= LONGEST);
        }
    }
}
