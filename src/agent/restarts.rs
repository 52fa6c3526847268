//! How soon and how often an application that keeps dying is started again. Pure; the clock comes from the caller.

use std::time::{Duration, Instant};

/// Pause before the second start in a row; doubled from one to the next.
const FIRST_PAUSE: Duration = Duration::from_millis(500);

/// Longest pause.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Starts in a row before giving up: the pauses of all of them last about a minute.
const LIMIT: u32 = 8;

/// After so long without a start the row is over: the application ran steadily, or an operator has had time to mend it.
const STEADY: Duration = Duration::from_secs(60);

/// The row of starts so far.
#[derive(Clone, Debug, Default)]
pub struct Restarts {
    made: u32,
    last: Option<Instant>,
}

impl Restarts {
    /// A start is wanted at `now`: when to make it, which counts as made. None: it has been tried often enough.
    pub fn next(&mut self, now: Instant) -> Option<Instant> {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) >= STEADY) {
            self.made = 0;
        }
        if self.made >= LIMIT {
            return None;
        }
        let pause = match self.made {
            0 => Duration::ZERO,
            n => FIRST_PAUSE.saturating_mul(1 << (n - 1)).min(LONGEST_PAUSE),
        };
        self.made += 1;
        self.last = Some(now + pause);
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_until_it_is_given_up_and_a_steady_run_starts_anew() {
        let mut now = Instant::now();
        let mut restarts = Restarts::default();
        let mut pauses = Vec::new();
        // It dies the moment that it is started.
        while let Some(at) = restarts.next(now) {
            pauses.push((at - now).as_millis());
            now = at;
        }
        assert_eq!(pauses, [0, 500, 1000, 2000, 4000, 8000, 16_000, 30_000]);
        assert_eq!(restarts.next(now + STEADY - Duration::from_secs(1)), None);
        assert_eq!(restarts.next(now + STEADY), Some(now + STEADY));
        assert_eq!(restarts.next(now + STEADY), Some(now + STEADY + FIRST_PAUSE));
    }
}
