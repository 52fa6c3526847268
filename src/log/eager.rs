//! How long a wait looks before it sleeps: sleeping and being woken takes longer than an acknowledgement that is close by.
//!
//! A wait looks for up to [`LONGEST`] where such waits have been over within it of late, and one in [`PROBE`] does where they have
//! not, since a wait that slept took longer than it had to. Where a processor is short, waits take longer, and the looking ends by
//! itself. Who looks gives its processor away at each look: whoever is to end the wait may need it. Callers: `wait`, in the application; `ship::shipper`, in the agent.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

/// What it takes to wake four threads one after the other where each wakes an idle virtual processor (43 us measured): the agents and
/// the program that a wait would send to sleep. To look for as long as sleeping costs takes at most twice what the better of the two
/// would have (Karlin et al., "Competitive snoopy caching", Algorithmica 3, 1988).
const LONGEST: Duration = Duration::from_micros(200);

/// One wait in so many looks whatever the others took.
const PROBE: u64 = 32;

/// Weight of the newest wait: one in so many.
const SHARE: u64 = 8;

/// What waits have taken of late. One that takes very long counts as one that did not pay to look.
#[derive(Debug, Default)]
pub struct Eager {
    /// Mean, in nanoseconds. Relaxed, and threads may overwrite each other's: it is a guess.
    mean: AtomicU64,
    waits: AtomicU64,
}

impl Eager {
    /// How long the wait that begins now is to look.
    pub fn begin(&self) -> Duration {
        let waits = self.waits.load(Relaxed);
        self.waits.store(waits.wrapping_add(1), Relaxed);
        let pays = self.mean.load(Relaxed) <= LONGEST.as_nanos() as u64;
        if pays || waits % PROBE == PROBE - 1 { LONGEST } else { Duration::ZERO }
    }

    /// A wait has come to its end; `looked`: it was to look.
    pub fn took(&self, took: Duration, looked: bool) {
        let mean = match self.mean.load(Relaxed) {
            // Of one that slept nobody knows what looking would have brought: one that looked is believed.
            _ if looked && took <= LONGEST => took.as_nanos() as u64,
            mean => mean - mean / SHARE + took.min(LONGEST * SHARE as u32).as_nanos() as u64 / SHARE,
        };
        self.mean.store(mean, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_look_as_long_as_that_pays_and_one_in_many_tries_again() {
        let eager = Eager::default();
        // Whoever sleeps takes 300 us, whoever looks takes as long as the destination does; how many of so many looked.
        let looks = |waits: u64, destination: Duration| {
            let wait = |_: &u64| {
                let looks = eager.begin() == LONGEST;
                eager.took(if looks { destination } else { destination + Duration::from_micros(300) }, looks);
                looks
            };
            (0..waits).filter(wait).count()
        };
        assert_eq!(looks(100, Duration::from_micros(20)), 100);
        assert!(looks(320, Duration::from_millis(5)) < 20, "it does not pay");
        assert!(looks(320, Duration::from_micros(20)) > 280, "it does again, and only a probe could tell");
        eager.took(Duration::from_secs(3600), false);
        assert!(looks(320, Duration::from_micros(20)) > 280, "after one that stalled");
    }
}
