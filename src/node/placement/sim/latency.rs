//! Latencies of requests, and their percentiles to a third of a percent.

/// Buckets a factor of e.
const FINE: f64 = 300.0;

/// The shortest that is told apart, in seconds.
const SHORTEST: f64 = 1e-6;

/// Up to some 60 s.
const BUCKETS: usize = 5400;

/// How many requests took how long.
#[derive(Clone, Debug)]
pub struct Latencies {
    counts: Vec<u64>,
    total: u64,
}

impl Default for Latencies {
    fn default() -> Latencies {
        Latencies { counts: vec![0; BUCKETS], total: 0 }
    }
}

impl Latencies {
    /// A request took `seconds`.
    pub fn record(&mut self, seconds: f64) {
        let at = ((seconds / SHORTEST).max(1.0).ln() * FINE) as usize;
        self.counts[at.min(BUCKETS - 1)] += 1;
        self.total += 1;
    }

    /// Adds what another has counted.
    pub fn add(&mut self, other: &Latencies) {
        self.counts.iter_mut().zip(&other.counts).for_each(|(mine, theirs)| *mine += theirs);
        self.total += other.total;
    }

    /// How many.
    pub fn count(&self) -> u64 {
        self.total
    }

    /// Seconds that the share `quantile` (0 to 1) took at most; 0 where there is none.
    pub fn at(&self, quantile: f64) -> f64 {
        let wanted = quantile * self.total as f64;
        let mut seen = 0.0;
        for (at, count) in self.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            seen += *count as f64;
            if seen >= wanted {
                // Within the bucket as if its requests lay evenly in it.
                let within = 1.0 - (seen - wanted) / *count as f64;
                return SHORTEST * ((at as f64 + within) / FINE).exp();
            }
        }
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::placement::sim::chance::Chance;

    #[test]
    fn percentiles_are_those_of_what_was_recorded() {
        let (mut latencies, mut chance) = (Latencies::default(), Chance::new(1));
        (0..200_000).for_each(|_| latencies.record(chance.exponential(1e-3)));
        let p99 = latencies.at(0.99);
        assert!((p99 / (1e-3 * 100f64.ln()) - 1.0).abs() < 0.02, "{p99}");
        assert_eq!((Latencies::default().at(0.5), latencies.count()), (0.0, 200_000));
    }
}
