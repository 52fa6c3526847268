//! Chance that can be had again: a campaign says its seed, and the same seed makes the same choices.

use std::time::Duration;

/// A sequence of numbers that a seed determines (SplitMix64).
pub struct Chance(u64);

impl Chance {
    /// From the environment variable `name`, else from the clock; says which it is.
    pub fn from_env(name: &str) -> Chance {
        let set = std::env::var(name).ok();
        let seed = match &set {
            Some(text) => text.parse().unwrap_or_else(|_| panic!("{name} is no number: {text}")),
            None => {
                let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
                now.expect("the clock is past 1970").as_nanos() as u64
            }
        };
        println!("seed {seed}: run it again with {name}={seed}");
        Chance(seed)
    }

    /// The sequence of this seed.
    pub fn from_seed(seed: u64) -> Chance {
        Chance(seed)
    }

    /// A sequence of its own for `lane`.
    pub fn lane(&self, lane: u64) -> Chance {
        let mut own = Chance(self.0 ^ lane.wrapping_mul(0xd1b5_4a32_d192_ed03));
        own.number();
        own
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: u64) -> u64 {
        self.number() % end.max(1)
    }

    /// Lets a time of at most `most` pass: the moment at which something is to strike is what is random here.
    pub fn pass(&mut self, most: Duration) {
        std::thread::sleep(Duration::from_micros(self.below(most.as_micros() as u64)));
    }
}
