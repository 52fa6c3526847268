//! How fast a destination's stream drains, as a budget may reckon with it: the least of the last while. Pure.
//!
//! The shipper's own figure ([`crate::ship::rate`]) follows what the link did when it last carried something. Here it is joined with what the
//! destination's durable position shows while there is a backlog, which also sees a destination that takes bytes and keeps none, or
//! nothing at all; and the least of the last minute counts, since a last gasp cannot wait for better times.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::types::Lsn;

/// For so long a bad figure counts.
const MEMORY: Duration = Duration::from_secs(60);

/// Figures that are remembered, one for each of so many parts of [`MEMORY`].
const PARTS: u32 = 60;

/// A backlog is watched for so long before it says anything: several round trips, and several looks.
const WATCHED: Duration = Duration::from_secs(1);

/// Follows one stream.
#[derive(Clone, Debug, Default)]
pub struct Drain {
    /// The least figure of each part of the last while, and when that part began.
    least: VecDeque<(Instant, u64)>,
    /// Since when there was a backlog at each look, and where durable stood then.
    backlog: Option<(Instant, Lsn)>,
}

/// What a look at a stream finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Look {
    /// End of what is published.
    pub published: Lsn,
    /// End of what is durable at the destination.
    pub durable: Lsn,
    /// The shipper's own figure, bytes a second; 0: none yet.
    pub measured: u64,
}

impl Drain {
    /// Takes in what `look` finds at `now`; bytes a second to reckon with, none before anything was seen to drain.
    pub fn take(&mut self, look: &Look, now: Instant) -> Option<u64> {
        if look.measured > 0 {
            self.note(look.measured, now);
        }
        if look.published <= look.durable {
            self.backlog = None;
        } else {
            let (since, from) = *self.backlog.get_or_insert((now, look.durable));
            let watched = now.saturating_duration_since(since);
            if watched >= WATCHED {
                let bytes = look.durable.0.saturating_sub(from.0);
                // What is left is behind it, so that the link had work all the time.
                let seen = (bytes as f64 / watched.as_secs_f64()) as u64;
                self.note(seen, now);
                self.backlog = Some((now, look.durable));
            }
        }
        while self.least.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) > MEMORY) {
            self.least.pop_front();
        }
        self.least.iter().map(|(_, rate)| *rate).min()
    }

    /// Another stream begins: what was seen of this one says nothing of it.
    pub fn begin_anew(&mut self) {
        *self = Drain::default();
    }

    fn note(&mut self, rate: u64, now: Instant) {
        match self.least.back_mut() {
            Some((at, least)) if now.saturating_duration_since(*at) < MEMORY / PARTS => {
                *least = rate.min(*least);
            }
            _ => self.least.push_back((now, rate)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICK: Duration = Duration::from_millis(250);

    fn look(published: u64, durable: u64, measured: u64) -> Look {
        Look { published: Lsn(published), durable: Lsn(durable), measured }
    }

    #[test]
    fn the_least_of_the_last_minute_counts_and_no_longer() {
        let (mut drain, start) = (Drain::default(), Instant::now());
        assert_eq!(drain.take(&look(0, 0, 0), start), None);
        for i in 0..4000 {
            let now = start + TICK * i;
            let measured = if i == 100 { 10 } else { 1000 };
            let rate = drain.take(&look(0, 0, measured), now);
            let bad = (100..=340).contains(&i);
            assert!(rate == Some(if bad { 10 } else { 1000 }) || (341..350).contains(&i), "{i}: {rate:?}");
            assert!(drain.least.len() <= PARTS as usize + 2);
        }
    }

    #[test]
    fn a_destination_that_keeps_nothing_drains_nothing_whatever_the_link_carried() {
        let (mut drain, start) = (Drain::default(), Instant::now());
        let rates: Vec<_> = (0..8).map(|i| drain.take(&look(1 << 20, 0, 1000), start + TICK * i)).collect();
        assert_eq!((rates[3], rates[4]), (Some(1000), Some(0)));
        // It goes on, at a byte each 4 ms.
        let mut drain = Drain::default();
        let rate =
            (0..9).filter_map(|i| drain.take(&look(1 << 20, i * 62, 1000), start + TICK * i as u32)).last();
        assert!((240..260).contains(&rate.unwrap()), "{rate:?}");
    }

    #[test]
    fn what_is_idle_between_is_no_backlog() {
        let (mut drain, start) = (Drain::default(), Instant::now());
        for i in 0..100u32 {
            let at = u64::from(i);
            // Each second look finds everything durable.
            let look = look(at + u64::from(i % 2), at, 1000);
            assert_eq!(drain.take(&look, start + TICK * i), Some(1000));
        }
    }
}
