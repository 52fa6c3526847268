//! Page classes of a tenant (a virtual machine, or a control group), and their estimation from a sample. Pure.
//!
//! A total is estimated as the class's share of the sampled pages, with Wilson's score interval (E. B. Wilson, "Probable
//! inference, the law of succession, and statistical inference", JASA 22, 1927) around it: unlike the normal
//! approximation it stays within 0 and 1 and holds for shares near either end, which classes of a few pages have.

use std::ops::{Index, IndexMut};

use serde::Serialize;

/// What a page is used for, over the last interval.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Class {
    /// The kernel's own, locked, or registered with an adapter: nobody can take it.
    Unreclaimable,
    /// Anonymous memory that was used.
    ActiveAnonymous,
    /// Pages of files that were used.
    ActiveBuffer,
    /// Anonymous memory that was not used.
    InactiveAnonymous,
    /// Pages of files that were not used.
    InactiveBuffer,
    /// Not used for anything.
    Free,
}

impl Class {
    /// All of them.
    pub const ALL: [Class; 6] = [
        Class::Unreclaimable,
        Class::ActiveAnonymous,
        Class::ActiveBuffer,
        Class::InactiveAnonymous,
        Class::InactiveBuffer,
        Class::Free,
    ];

    /// Whether its pages belong to the working set.
    pub fn is_working_set(self) -> bool {
        matches!(self, Class::Unreclaimable | Class::ActiveAnonymous | Class::ActiveBuffer)
    }
}

/// A value for each class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PerClass<T> {
    /// Of [`Class::Unreclaimable`].
    pub unreclaimable: T,
    /// Of [`Class::ActiveAnonymous`].
    pub active_anonymous: T,
    /// Of [`Class::ActiveBuffer`].
    pub active_buffer: T,
    /// Of [`Class::InactiveAnonymous`].
    pub inactive_anonymous: T,
    /// Of [`Class::InactiveBuffer`].
    pub inactive_buffer: T,
    /// Of [`Class::Free`].
    pub free: T,
}

impl<T> PerClass<T> {
    /// By a function of the class.
    pub fn of(value: impl FnMut(Class) -> T) -> PerClass<T> {
        let [unreclaimable, active_anonymous, active_buffer, inactive_anonymous, inactive_buffer, free] =
            Class::ALL.map(value);
        PerClass { unreclaimable, active_anonymous, active_buffer, inactive_anonymous, inactive_buffer, free }
    }
}

impl<T> Index<Class> for PerClass<T> {
    type Output = T;

    fn index(&self, class: Class) -> &T {
        match class {
            Class::Unreclaimable => &self.unreclaimable,
            Class::ActiveAnonymous => &self.active_anonymous,
            Class::ActiveBuffer => &self.active_buffer,
            Class::InactiveAnonymous => &self.inactive_anonymous,
            Class::InactiveBuffer => &self.inactive_buffer,
            Class::Free => &self.free,
        }
    }
}

impl<T> IndexMut<Class> for PerClass<T> {
    fn index_mut(&mut self, class: Class) -> &mut T {
        match class {
            Class::Unreclaimable => &mut self.unreclaimable,
            Class::ActiveAnonymous => &mut self.active_anonymous,
            Class::ActiveBuffer => &mut self.active_buffer,
            Class::InactiveAnonymous => &mut self.inactive_anonymous,
            Class::InactiveBuffer => &mut self.inactive_buffer,
            Class::Free => &mut self.free,
        }
    }
}

/// Bytes of a class: what it most likely has, and within what bounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Estimate {
    /// The share of the sample, of all bytes.
    pub bytes: u64,
    /// Lower bound.
    pub least: u64,
    /// Upper bound.
    pub most: u64,
}

impl Estimate {
    /// Known, not estimated.
    pub fn exactly(bytes: u64) -> Estimate {
        Estimate { bytes, least: bytes, most: bytes }
    }
}

/// Totals of each class, of a tenant of `total` bytes, of which the sampled pages were of these classes. The bounds hold with a
/// confidence of 95 % for each class by itself. Nothing sampled: nothing is known, and the bounds are 0 and all.
pub fn estimate(total: u64, sampled: &PerClass<u64>) -> PerClass<Estimate> {
    let n: u64 = Class::ALL.iter().map(|class| sampled[*class]).sum();
    PerClass::of(|class| {
        let (low, high) = wilson(sampled[class], n);
        let of = |share: f64| ((share * total as f64) as u64).min(total);
        let bytes =
            if n == 0 { 0 } else { (u128::from(total) * u128::from(sampled[class]) / u128::from(n)) as u64 };
        Estimate { bytes, least: of(low).min(bytes), most: of(high).max(bytes) }
    })
}

/// Wilson's interval for `hits` of `n`.
pub fn wilson(hits: u64, n: u64) -> (f64, f64) {
    if n == 0 {
        return (0.0, 1.0);
    }
    let (n, share) = (n as f64, hits as f64 / n as f64);
    let z2 = Z * Z;
    let centre = (share + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = Z / (1.0 + z2 / n) * (share * (1.0 - share) / n + z2 / (4.0 * n * n)).sqrt();
    ((centre - half).clamp(0.0, share), (centre + half).clamp(share, 1.0))
}

/// Of the normal distribution: 95 % lie within.
const Z: f64 = 1.959_964;

/// Pages to sample so that an estimate is within `error` (of the whole) with a confidence of 95 %, whatever the share is: by the
/// normal approximation at a half, where it is widest. For 5 %: 385; for 2.5 %: 1,537.
pub fn samples_for(error: f64) -> u64 {
    (Z * Z / 4.0 / (error * error)).ceil() as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn bounds_are_those_of_the_literature() {
        // Newcombe, Statistics in Medicine 17 (1998), table I, method 3: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
        for (hits, n, low, high) in [
            (81, 263, 0.2553, 0.3662),
            (15, 148, 0.0624, 0.1605),
            (0, 20, 0.0, 0.1611),
            (1, 29, 0.0061, 0.1718),
        ] {
            let (a, b) = wilson(hits, n);
            assert!((a - low).abs() < 1e-4 && (b - high).abs() < 1e-4, "{hits} of {n}: {a} {b}");
        }
        assert_eq!((samples_for(0.05), samples_for(0.025)), (385, 1537));
    }

    /// Draws a sample of a known mixture, again and again: at most 1,500 pages, within 5 % of all memory, at least 95 times of 100.
    #[test]
    fn fifteen_hundred_samples_are_within_five_percent_of_memory() {
        let truth = PerClass {
            unreclaimable: 8u64,
            active_anonymous: 22,
            active_buffer: 10,
            inactive_anonymous: 30,
            inactive_buffer: 20,
            free: 10,
        };
        let mut seed = 1u64;
        let mut draw = || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            let mut at = seed % 100;
            *Class::ALL
                .iter()
                .find(|class| {
                    let inside = at < truth[**class];
                    at = at.saturating_sub(truth[**class]);
                    inside
                })
                .expect("they make 100")
        };
        let (mut close, mut within) = (0, 0);
        for _ in 0..100 {
            let mut sampled = PerClass::default();
            (0..1500).for_each(|_| sampled[draw()] += 1);
            let found = estimate(100_000, &sampled);
            let off = |class: &Class| found[*class].bytes.abs_diff(1000 * truth[*class]);
            close += Class::ALL.iter().all(|class| off(class) <= 5000) as u32;
            let bounded = |class: &&Class| {
                (found[**class].least..=found[**class].most).contains(&(1000 * truth[**class]))
            };
            within += Class::ALL.iter().filter(bounded).count();
        }
        assert!(close >= 95, "{close} of 100");
        assert!((540..=596).contains(&within), "{within} of 600: the bounds are of 95 %");
    }

    proptest! {
        #[test]
        fn estimates_are_bounded_by_their_bounds_and_by_what_there_is(
            total in 0u64..1 << 50, counts in prop::array::uniform6(0u64..10_000)
        ) {
            let sampled = PerClass::of(|class| counts[Class::ALL.iter().position(|c| *c == class).expect("one of them")]);
            let found = estimate(total, &sampled);
            let mut sum = 0;
            for class in Class::ALL {
                let Estimate { bytes, least, most } = found[class];
                prop_assert!(least <= bytes && bytes <= most && most <= total);
                sum += bytes;
            }
            prop_assert!(sum <= total);
        }
    }
}
