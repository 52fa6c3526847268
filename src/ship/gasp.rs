//! The last gasp of a log: everything that the application published, durable at the destinations.
//!
//! Called when nothing of the application can run any more (frozen or dead) and while the shipper runs. Whatever is
//! complete is published, an open gap is closed and copied, and the end of the stream is named with its digest.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::status::ShipStatus;
use super::sync::Syncer;
use crate::log::region::boottime;
use crate::log::{LogRegion, Owner, SleepDepth};
use crate::types::Lsn;
use crate::waits;

/// How often the positions are looked at: well below what a battery counts in, well above a cache miss.
const LOOK: Duration = Duration::from_micros(100);

/// How much longer one that is preferred may take than one that is not.
const GRACE: Duration = Duration::from_millis(10);

/// How long a gasp may look in vain before it says again that everything complete is to be published.
const PUBLISH_AGAIN: Duration = Duration::from_millis(5);

/// What a last gasp brought over, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tail {
    /// End of the stream: every record below is durable at the destination.
    pub lsn: Lsn,
    /// Chained digest there.
    pub digest: u64,
    /// Bytes that were not yet durable at the destination when it began.
    pub exposure: u64,
    /// From its beginning to the first bytes handed to the fabric; none if there were none to ship.
    pub first_byte: Option<Duration>,
    /// From its beginning to the last byte durable.
    pub took: Duration,
}

/// What a last gasp waits for at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeldUp {
    /// A copy of the regions is outstanding, and its end cannot be published.
    #[error(
        "a process of the application is halted in the middle of a record, behind which no copy of the regions can be \
         completed; the destination has no complete copy, so it cannot take over"
    )]
    Halfway,
    /// Nothing is acknowledged.
    #[error("no destination is connected that counts")]
    NotCounting,
    /// A first sync, or one that closes a gap.
    #[error(
        "the copy of the regions is at {done} of {total} bytes; until it is complete the destination cannot take over"
    )]
    Copying {
        /// Bytes looked at.
        done: u64,
        /// Bytes to be looked at.
        total: u64,
    },
    /// The rest of the log.
    #[error("{missing} bytes of the log are not durable at the destination")]
    Shipping {
        /// Bytes.
        missing: u64,
    },
}

/// How far from its end a last gasp is: less is nearer.
pub fn distance(held_up: &Option<HeldUp>) -> u8 {
    match held_up {
        None => 0,
        Some(HeldUp::Shipping { .. }) => 1,
        Some(HeldUp::Halfway) => 2,
        Some(HeldUp::Copying { .. }) => 3,
        Some(HeldUp::NotCounting) => 4,
    }
}

/// What the last gasp of `log` would wait for if it began now; `None` where everything is there.
pub fn held_up(log: &LogRegion, status: &ShipStatus, syncer: &Syncer) -> Option<HeldUp> {
    let (view, sync) = (status.view(), syncer.view());
    let copy = !log.is_whole() || sync.for_all || sync.active && !view.counts;
    if (copy || !view.counts) && log.halfway(&Owner::confirmed_dead) {
        return Some(HeldUp::Halfway);
    }
    if copy {
        return Some(HeldUp::Copying { done: sync.done, total: sync.total });
    }
    if !view.counts {
        return Some(HeldUp::NotCounting);
    }
    let missing = log.published().since(view.durable);
    (missing > 0).then_some(HeldUp::Shipping { missing })
}

/// Why the tail is not at the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GaspError {
    /// Called off.
    #[error("the last gasp was called off")]
    Cancelled,
    /// Not in time.
    #[error("{missing} bytes of the log were not durable at the destination in time")]
    TimedOut {
        /// Bytes missing.
        missing: u64,
    },
}

/// Brings the tail to the destinations, whose `streams` are in order of preference, until `deadline` or until `cancel` is set. Says
/// which holds it all: the first one that does, unless one before it has it, too, in not much more than that time. `copying`: a copy
/// for newcomers goes on for as long as nobody counts, since there is no heir without it.
pub fn ship_tail(
    log: &LogRegion,
    streams: &[Arc<ShipStatus>],
    syncer: &Syncer,
    copying: bool,
    cancel: &AtomicBool,
    deadline: Instant,
) -> Result<(usize, Tail), GaspError> {
    let began = waits::now();
    let began_ns = boottime().as_nanos() as u64;
    streams.iter().for_each(|status| status.mark());
    let missing = |target: Lsn| streams.iter().map(|s| target.since(s.view().durable)).min().unwrap_or(0);
    let mut target = log.publish_filled(&Owner::confirmed_dead);
    log.wake_agent(SleepDepth::Nap);
    let mut published_at = waits::now();
    let exposure = missing(target);
    let anyone_counts = || streams.iter().any(|status| status.view().counts);
    syncer.set_needed(copying && !anyone_counts());
    let mut grace = None;
    loop {
        let complete = |status| complete(log, status, syncer, target);
        if let Some((which, digest)) = streams.iter().enumerate().find_map(|(i, s)| Some((i, complete(s)?))) {
            let end = *grace.get_or_insert_with(|| waits::now() + waits::since(began) + GRACE);
            if waits::now() >= end || !streams[..which].iter().any(|before| before.view().counts) {
                syncer.set_needed(false);
                let first = streams.iter().filter_map(|status| status.first_post()).min();
                let first_byte = first.map(|at| Duration::from_nanos(at.saturating_sub(began_ns)));
                return Ok((
                    which,
                    Tail { lsn: target, digest, exposure, first_byte, took: waits::since(began) },
                ));
            }
        }
        if cancel.load(Ordering::Acquire) {
            return Err(GaspError::Cancelled);
        }
        if waits::now() >= deadline {
            return Err(GaspError::TimedOut { missing: missing(target) });
        }
        waits::sleep(LOOK);
        if waits::since(published_at) > PUBLISH_AGAIN {
            syncer.set_needed(copying && !anyone_counts());
            target = log.publish_filled(&Owner::confirmed_dead);
            log.wake_agent(SleepDepth::Nap);
            published_at = waits::now();
        }
    }
}

/// The digest at `target`, if the destination holds everything up to there and nothing is missing.
fn complete(log: &LogRegion, status: &ShipStatus, syncer: &Syncer, target: Lsn) -> Option<u64> {
    let view = status.view();
    let whole = view.counts && view.durable >= target && target == log.published();
    if !whole || !log.is_whole() || syncer.is_active_for_all() {
        return None;
    }
    status.digest(target)
}
