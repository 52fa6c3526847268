//! Whether what was taken came back, and what follows from it: a tenant that wants its memory is let alone, longer each time. Pure.

use std::time::Duration;

use serde::Serialize;

/// What was seen of a tenant a while after memory was taken from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct After {
    /// Bytes that were taken.
    pub moved: u64,
    /// Bytes that it read back since.
    pub refaulted: u64,
    /// Share of the time that it stood still for memory, in hundredths of a percent (PSI, `full`), before and after.
    pub pressure: (u32, u32),
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Nothing: it did no harm.
    Fine,
    /// It harmed a little: take no more for a while.
    BackOff,
    /// It harmed: give back what it was made smaller by (deflate the balloon, raise the limit), and take no more for a while.
    Undo,
}

/// How a tenant bears what is taken from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Feedback {
    harmed: u32,
}

impl Feedback {
    /// Judges one look; what the tenant is left alone for from now.
    pub fn judge(&mut self, after: After) -> (Verdict, Duration) {
        let more_pressure = after.pressure.1.saturating_sub(after.pressure.0);
        let refaults = |percent: u64| after.refaulted > after.moved / 100 * percent;
        let verdict = if refaults(UNDO_PERCENT) || more_pressure > UNDO_PRESSURE {
            Verdict::Undo
        } else if refaults(HARM_PERCENT) || more_pressure > HARM_PRESSURE {
            Verdict::BackOff
        } else {
            Verdict::Fine
        };
        self.harmed = if verdict == Verdict::Fine { self.harmed / 2 } else { (self.harmed + 1).min(MOST) };
        (verdict, if self.harmed == 0 { Duration::ZERO } else { FIRST * 2u32.pow(self.harmed - 1) })
    }
}

/// Of what was taken: more than this that is read back is harm, and more than that is undone.
const HARM_PERCENT: u64 = 1;
const UNDO_PERCENT: u64 = 10;

/// Hundredths of a percent of time stood still, likewise.
const HARM_PRESSURE: u32 = 100;
const UNDO_PRESSURE: u32 = 1000;

/// Left alone for, at first; doubled each time, up to about ten minutes.
const FIRST: Duration = Duration::from_secs(10);
const MOST: u32 = 7;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn after(refaulted: u64, pressure: u32) -> After {
        After { moved: 10_000, refaulted, pressure: (50, 50 + pressure) }
    }

    #[test]
    fn harm_is_told_by_refaults_and_by_pressure_and_rests_grow() {
        let seconds = Duration::from_secs;
        let mut f = Feedback::default();
        assert_eq!(f.judge(after(100, 100)), (Verdict::Fine, seconds(0)));
        assert_eq!(f.judge(after(101, 0)), (Verdict::BackOff, seconds(10)));
        assert_eq!(f.judge(after(1001, 0)), (Verdict::Undo, seconds(20)));
        assert_eq!(f.judge(after(0, 101)), (Verdict::BackOff, seconds(40)));
        assert_eq!(f.judge(after(0, 1001)), (Verdict::Undo, seconds(80)));
        assert_eq!(f.judge(after(0, 0)), (Verdict::Fine, seconds(20)), "it is forgiven by halves");
        assert_eq!(
            After { moved: 0, ..after(1, 0) }.judged(),
            Verdict::Undo,
            "what was not taken cannot come back"
        );
    }

    impl After {
        fn judged(self) -> Verdict {
            Feedback::default().judge(self).0
        }
    }

    proptest! {
        #[test]
        fn more_harm_is_never_judged_milder(
            moved in 0u64..1 << 40, a in 0u64..1 << 40, b in 0u64..1 << 40, p in 0u32..10_000, q in 0u32..10_000
        ) {
            let rank = |v| [Verdict::Fine, Verdict::BackOff, Verdict::Undo].iter().position(|x| *x == v);
            let judge = |refaulted, pressure| After { moved, refaulted, pressure: (0, pressure) }.judged();
            prop_assert!(rank(judge(a.max(b), p.max(q))) >= rank(judge(a.min(b), p.min(q))));
        }

        #[test]
        fn rests_are_bounded(looks in prop::collection::vec((0u64..20_000, 0u32..2000), 0..50)) {
            let mut f = Feedback::default();
            for (refaulted, pressure) in looks {
                let (verdict, rest) = f.judge(after(refaulted, pressure));
                prop_assert!(rest <= FIRST * 64 && (verdict == Verdict::Fine || rest >= FIRST));
            }
        }
    }
}
