//! How often access bits are counted: as often as their cost allows, which is a share of one processor. Pure.

use std::time::Duration;

/// Share of a processor that counting may take: a hundredth.
pub const SHARE: u32 = 100;

/// Shortest period: what is touched in less is not told apart from what is touched always.
pub const SHORTEST: Duration = Duration::from_millis(200);

/// Longest period that is still a sample of what a process does now.
pub const LONGEST: Duration = Duration::from_secs(60);

/// The time from one count to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Period {
    length: Duration,
    shortest: Duration,
}

impl Period {
    /// Begins with `shortest`, and never goes below it.
    pub fn new(shortest: Duration) -> Period {
        let shortest = shortest.clamp(SHORTEST, LONGEST);
        Period { length: shortest, shortest }
    }

    /// From the beginning of the last count to that of the next.
    pub fn length(self) -> Duration {
        self.length
    }

    /// A count took `cost` of a processor's time. The period grows to what that allows at once, and shrinks by at most half, so
    /// that one cheap count among dear ones is not followed.
    pub fn after(self, cost: Duration) -> Period {
        let wanted = cost.saturating_mul(SHARE);
        Period { length: wanted.max(self.length / 2).clamp(self.shortest, LONGEST), ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_dear_count_is_followed_by_a_long_period_and_cheap_ones_shorten_it_by_halves() {
        let period = Period::new(SHORTEST).after(30 * MS);
        assert_eq!(period.length(), 3000 * MS);
        assert_eq!(period.after(MS).length(), 1500 * MS);
        assert_eq!(period.after(MS).after(MS).after(MS).after(MS).length(), SHORTEST);
    }

    proptest! {
        #[test]
        fn counting_never_takes_more_than_its_share(
            costs in prop::collection::vec(0u64..2_000_000, 1..40), shortest in 0u64..100_000
        ) {
            let mut period = Period::new(Duration::from_millis(shortest));
            for cost in costs.into_iter().map(Duration::from_micros) {
                period = period.after(cost);
                prop_assert!((SHORTEST..=LONGEST).contains(&period.length()));
                prop_assert!(cost * SHARE <= period.length() || cost * SHARE > LONGEST);
            }
        }
    }
}
