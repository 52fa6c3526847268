//! What has been posted to a destination and not completed, and how much more may be.
//!
//! Pure bookkeeping of one link, for the shipper.

use std::collections::VecDeque;

use crate::types::Lsn;

/// Positions of one link.
#[derive(Debug)]
pub struct Window {
    ring: u64,
    limit: usize,
    shipped: Lsn,
    received: Lsn,
    applied: Lsn,
    next_id: u64,
    in_flight: VecDeque<(u64, Lsn)>,
}

impl Window {
    /// A link that begins at `from`, to a landing ring of `ring` bytes, with at most `limit` (at least one)
    /// signalled requests in flight.
    pub fn new(from: Lsn, ring: u64, limit: usize) -> Window {
        Window {
            ring,
            limit: limit.max(1),
            shipped: from,
            received: from,
            applied: from,
            next_id: 1,
            in_flight: VecDeque::new(),
        }
    }

    /// End of what was posted.
    pub fn shipped(&self) -> Lsn {
        self.shipped
    }

    /// End of what has completed.
    pub fn received(&self) -> Lsn {
        self.received
    }

    /// Bytes that may be posted now: 0 if the landing ring is full of unapplied records or the endpoint's limit
    /// is reached.
    pub fn room(&self) -> u64 {
        if self.in_flight.len() >= self.limit { 0 } else { self.ring - self.shipped.since(self.applied) }
    }

    /// Whether nothing is in flight.
    pub fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// The number that the next [`Window::post`] will use.
    pub fn next_id(&self) -> u64 {
        self.next_id
    }

    /// Notes that a signalled write up to `end` was posted, with [`Window::next_id`]. What is between must be
    /// within [`Window::room`]; a write of nothing needs none.
    pub fn post(&mut self, end: Lsn) -> u64 {
        let bytes = end.since(self.shipped);
        assert!(bytes == 0 || bytes <= self.room(), "posting past the landing ring's room");
        let id = self.next_id;
        self.next_id += 1;
        self.shipped = end;
        self.in_flight.push_back((id, end));
        id
    }

    /// Request `id` completed, and with it all posted before it. `false` if it was none of ours.
    pub fn completed(&mut self, id: u64) -> bool {
        let known = self.in_flight.iter().any(|(posted, _)| *posted == id);
        while known && let Some((posted, end)) = self.in_flight.pop_front() {
            self.received = end;
            if posted == id {
                break;
            }
        }
        known
    }

    /// The destination has applied up to `applied`, which is at most what was shipped.
    pub fn applied(&mut self, applied: Lsn) {
        self.applied = self.applied.max(applied.min(self.shipped));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_completion_covers_everything_posted_before_it() {
        let mut window = Window::new(Lsn(100), 1000, 8);
        let first = window.post(Lsn(200));
        let second = window.post(Lsn(300));
        assert!(window.completed(second));
        assert_eq!(window.received(), Lsn(300));
        assert!(window.is_idle() && !window.completed(first));
    }

    #[test]
    fn a_write_of_nothing_goes_to_a_full_ring_too() {
        let mut window = Window::new(Lsn(0), 1000, 8);
        window.post(Lsn(1000));
        let id = window.post(Lsn(1000));
        assert_eq!(window.room(), 0);
        assert!(window.completed(id) && window.is_idle());
    }

    #[test]
    fn the_landing_ring_and_the_endpoint_bound_what_is_posted() {
        let mut window = Window::new(Lsn(0), 1000, 2);
        let id = window.post(Lsn(600));
        assert_eq!(window.room(), 400);
        window.post(Lsn(1000));
        assert_eq!(window.room(), 0);
        window.applied(Lsn(600));
        assert_eq!(window.room(), 0, "two are in flight");
        window.completed(id);
        assert_eq!(window.room(), 600);
    }

    proptest! {
        #[test]
        fn unapplied_bytes_never_exceed_the_ring(steps in prop::collection::vec((0u8..3, 1u64..500), 1..200)) {
            let mut window = Window::new(Lsn(0), 1000, 4);
            let (mut posted, mut applied) = (VecDeque::new(), 0);
            for (what, n) in steps {
                match what {
                    0 if window.room() > 0 => {
                        let end = window.shipped().advance(n.min(window.room()));
                        posted.push_back(window.post(end));
                    }
                    1 => if let Some(id) = posted.pop_front() {
                        prop_assert!(window.completed(id));
                    },
                    2 => {
                        applied = window.received().0.min(applied + n);
                        window.applied(Lsn(applied));
                    }
                    _ => {}
                }
                prop_assert!(window.shipped().0 - applied <= 1000);
                prop_assert!(posted.len() <= 4);
                prop_assert!(window.received() <= window.shipped());
            }
        }
    }
}
