//! Figures of repeated measurements.

use std::fmt;

use hdrhistogram::Histogram;

/// Values of one figure over the rounds; shows median, smallest and largest.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Spread(Vec<f64>);

impl Spread {
    /// Adds a round's value.
    pub fn push(&mut self, value: f64) {
        let at = self.0.partition_point(|v| *v < value);
        self.0.insert(at, value);
    }

    /// The middle value; of an even number the upper one; not a number if there is none.
    pub fn median(&self) -> f64 {
        self.0.get(self.0.len() / 2).copied().unwrap_or(f64::NAN)
    }

    /// The smallest value; not a number if there is none.
    pub fn low(&self) -> f64 {
        self.0.first().copied().unwrap_or(f64::NAN)
    }

    /// The largest value; not a number if there is none.
    pub fn high(&self) -> f64 {
        self.0.last().copied().unwrap_or(f64::NAN)
    }

    /// How many rounds there were.
    pub fn rounds(&self) -> usize {
        self.0.len()
    }
}

impl FromIterator<f64> for Spread {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Spread {
        let mut spread = Spread::default();
        values.into_iter().for_each(|value| spread.push(value));
        spread
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} ({:.2}-{:.2})", self.median(), self.low(), self.high())
    }
}

/// Times of single operations in nanoseconds, round by round.
#[derive(Clone, Debug)]
pub struct Times {
    all: Histogram<u64>,
    medians: Vec<f64>,
}

/// Percentiles that a row names, as fractions.
pub const NAMED: [(&str, f64); 4] = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("p99.99", 0.9999)];

/// Longest time that is told apart, in nanoseconds: a minute.
const LONGEST: u64 = 60_000_000_000;

/// Decimal digits that are kept of a time.
const DIGITS: u8 = 3;

/// Microseconds of a time in nanoseconds.
pub fn micros(nanos: u64) -> f64 {
    nanos as f64 / 1e3
}

/// A histogram for the times of one round.
pub fn round_of_times() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST, DIGITS).expect("three digits of a minute are supported")
}

impl Default for Times {
    fn default() -> Times {
        Times { all: round_of_times(), medians: Vec::new() }
    }
}

impl Times {
    /// Adds a round.
    pub fn push(&mut self, round: &Histogram<u64>) {
        self.all.add(round).expect("both have the same bounds");
        self.medians.push(micros(round.value_at_quantile(0.5)));
    }

    /// Each round's median, in microseconds, in their order.
    pub fn medians(&self) -> &[f64] {
        &self.medians
    }

    /// Microseconds at a quantile (0 to 1) of all rounds together.
    pub fn at(&self, quantile: f64) -> f64 {
        micros(self.all.value_at_quantile(quantile))
    }

    /// How many operations there were.
    pub fn count(&self) -> u64 {
        self.all.len()
    }

    /// Points of the percentile curve, up to the last that the number of operations can tell: (one over the share of slower
    /// operations, microseconds).
    pub fn curve(&self) -> Vec<(f64, f64)> {
        let last = self.all.len().max(1) as f64;
        // A tenth of a decade apart, to five nines.
        let inverse = (0..=50).map(|i| 10f64.powf(f64::from(i) / 10.0)).take_while(|n| *n <= last.max(1.0));
        inverse.map(|n| (n, self.at(1.0 - 1.0 / n))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_sorted_whatever_the_order() {
        let spread: Spread = [3.0, 1.0, 2.0].into_iter().collect();
        assert_eq!((spread.low(), spread.median(), spread.high()), (1.0, 2.0, 3.0));
        assert_eq!(spread.to_string(), "2.00 (1.00-3.00)");
        assert!(Spread::default().median().is_nan());
    }

    #[test]
    fn a_percentile_curve_rises_and_claims_no_more_than_was_counted() {
        let (mut times, mut round) = (Times::default(), round_of_times());
        (1..=1000u64).for_each(|us| round.record(us * 1000).expect("in bounds"));
        times.push(&round);
        let curve = times.curve();
        assert!(curve.windows(2).all(|w| w[0].1 <= w[1].1), "{curve:?}");
        assert!(curve.last().is_some_and(|(n, us)| *n <= 1000.0 && *us >= 990.0), "{curve:?}");
        assert!((times.at(0.5) - 500.0).abs() < 1.0);
        assert_eq!(times.medians().len(), 1);
    }
}
