//! One destination of a group, as its source knows it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use super::verifier::Verified;
use crate::agent::config;
use crate::locks::lock;
use crate::region::kind::MemoryKind;
use crate::ship::status::ShipStatus;
use crate::types::{Durability, Lsn};

/// A destination; one thread keeps its link, everyone looks at it.
pub(super) struct Destination {
    pub(super) peer: config::Peer,
    /// Which of the group's destinations, and which consumer of the ring.
    pub(super) index: usize,
    pub(super) ship: Arc<ShipStatus>,
    /// The number of its stream; none once that cannot go on.
    number: Mutex<Option<u32>>,
    /// The last copy whose reader did not say in time what its image holds: number of the stream, and where its `SyncBegin` ends.
    mute: Mutex<Option<(u32, Lsn)>>,
    link: Mutex<LinkInfo>,
    stream: Mutex<Stream>,
    /// An operator wants nothing shipped to it.
    paused: AtomicBool,
    pub(super) verified: Verified,
}

/// Whether the ring is read for a destination.
#[derive(Default)]
pub(super) enum Stream {
    /// It is not.
    #[default]
    None,
    /// It is about to be, unless it has had to let the ring go.
    Joins { left: Option<Why> },
    /// It is, until `stop` is set.
    Reads {
        stop: Arc<AtomicBool>,
        /// It is to let the ring go then.
        leaves: Option<Why>,
    },
}

/// Why a destination lets the ring go, and begins anew with a copy of what differs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// It keeps so much of the ring that it is in the way of others.
    Slow,
    /// An operator wants its image repaired.
    Repair,
    /// An operator wants nothing shipped to it, and an archive needs the ring.
    Paused,
}

/// What is known of the link at present.
#[derive(Clone, Default)]
pub(super) struct LinkInfo {
    pub(super) connected: bool,
    pub(super) refused: bool,
    pub(super) fabric: Option<&'static str>,
    pub(super) encrypted: Option<bool>,
    pub(super) durability: Option<Durability>,
    /// What its landing ring lies on.
    pub(super) memory: Option<MemoryKind>,
    pub(super) staged: Option<bool>,
    /// The stream went on where the destination's image ends.
    pub(super) resumed: Option<bool>,
    pub(super) last_error: Option<String>,
    /// Why the destination keeps nothing in its image at present, in its own words.
    pub(super) fault: Option<String>,
    /// Attempts that failed and links that ended, so far.
    pub(super) failures: u64,
}

/// What [`verdict`] says without a link.
const NO_DESTINATION: &str = "no destination is connected: what the log holds is on this machine only";

/// What it says where none has a complete copy yet.
const NO_COPY: &str =
    "no destination has a complete copy yet: what is protected is whole on this machine only";

/// What a destination lacks when the agent ends; the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Left {
    Nothing,
    Bytes(u64),
    /// The copy of the regions is not complete there.
    Copy,
    /// It is not connected, and may be in a moment.
    Hope,
    /// It is not connected.
    Everything,
}

/// What is missing everywhere, as a sentence, where so much is `left` at each; `over`: no longer is waited for. None while it is worth
/// waiting: for each that counts, or else for any that may have it all in a moment.
pub(super) fn verdict(left: &[Left], over: bool) -> Option<Option<String>> {
    let shipping = left.iter().any(|left| matches!(left, Left::Bytes(_)));
    Some(match left.iter().min() {
        None => None,
        Some(Left::Nothing) if over || !shipping => None,
        Some(Left::Bytes(n)) if over => {
            Some(format!("{n} bytes of the log are not durable at any destination"))
        }
        Some(Left::Copy) if over => Some(NO_COPY.into()),
        Some(Left::Hope) if over => Some(NO_DESTINATION.into()),
        Some(Left::Everything) => Some(NO_DESTINATION.into()),
        Some(_) => return None,
    })
}

impl Destination {
    pub(super) fn new(peer: config::Peer, index: usize, paused: bool) -> Destination {
        Destination {
            peer,
            index,
            ship: Arc::default(),
            number: Mutex::default(),
            mute: Mutex::default(),
            link: Mutex::default(),
            stream: Mutex::default(),
            paused: AtomicBool::new(paused),
            verified: Verified::default(),
        }
    }

    /// Number of its stream, if that may go on.
    pub(super) fn stream_number(&self) -> Option<u32> {
        *lock(&self.number)
    }

    pub(super) fn set_stream_number(&self, number: Option<u32>) {
        *lock(&self.number) = number;
    }

    /// Whether a copy may ask what its image holds.
    pub(super) fn says_what_it_holds(&self) -> bool {
        let Some((stream, begin)) = *lock(&self.mute) else { return true };
        let ship = self.ship.view();
        self.stream_number() != Some(stream) || (ship.counts && ship.counts_from >= begin)
    }

    /// It did not say so in time for the copy that `begin`s there, and is not asked again in its present stream before it has all
    /// of a copy.
    pub(super) fn ask_no_more(&self, begin: Lsn) {
        *lock(&self.mute) = self.stream_number().map(|stream| (stream, begin));
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::SeqCst)
    }

    /// Ends its link if it has one and is to be paused.
    pub(super) fn set_paused(&self, paused: bool) {
        self.paused.store(paused, Ordering::SeqCst);
        if let (true, Stream::Reads { stop, .. }) = (paused, &*self.stream()) {
            stop.store(true, Ordering::Release);
        }
    }

    pub(super) fn link(&self) -> MutexGuard<'_, LinkInfo> {
        lock(&self.link)
    }

    /// What is missing there of what is `published`. `failures`: as many attempts to connect had failed when that began to matter.
    pub(super) fn left(&self, published: Lsn, failures: u64) -> Left {
        let (ship, link) = (self.ship.view(), self.link().clone());
        match link.connected {
            _ if ship.counts && ship.durable >= published => Left::Nothing,
            true if ship.counts => Left::Bytes(published.since(ship.durable)),
            true => Left::Copy,
            // The first of the failures may be that of an attempt which had begun before.
            false if link.refused || self.is_paused() || link.failures >= failures + 2 => Left::Everything,
            false => Left::Hope,
        }
    }

    /// Held by whoever begins or ends to read the ring, or takes it away.
    pub(super) fn stream(&self) -> MutexGuard<'_, Stream> {
        lock(&self.stream)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ship::status::ShipView;

    #[test]
    fn one_that_was_silent_is_asked_again_once_it_has_all_of_a_copy_or_begins_anew() {
        let peer = config::Peer { name: "beta".into(), address: "localhost:1".into() };
        let to = Destination::new(peer, 0, false);
        to.set_stream_number(Some(7));
        assert!(to.says_what_it_holds());
        to.ask_no_more(Lsn(64));
        // Of an earlier copy.
        let view = ShipView { counts: true, counts_from: Lsn(32), ..ShipView::default() };
        to.ship.set(view);
        assert!(!to.says_what_it_holds());
        to.ship.set(ShipView { counts_from: Lsn(96), ..view });
        assert!(to.says_what_it_holds());
        to.ask_no_more(Lsn(128));
        assert!(!to.says_what_it_holds());
        to.set_stream_number(Some(8));
        assert!(to.says_what_it_holds());
    }

    #[test]
    fn an_agent_that_ends_waits_for_all_that_count_and_then_says_what_is_nowhere() {
        use Left::{Bytes, Copy, Everything, Hope, Nothing};
        let says = |left: &[Left], over| verdict(left, over).map(|missing| missing.unwrap_or_default());
        let done = Some(String::new());
        assert_eq!(says(&[], false), done);
        assert_eq!(says(&[Everything, Nothing], false), done);
        assert_eq!(says(&[Nothing, Bytes(5)], false), None, "the other one gets it, too, if there is time");
        assert_eq!(says(&[Nothing, Bytes(5)], true), done);
        assert_eq!(says(&[Everything, Everything], false).as_deref(), Some(NO_DESTINATION));
        for left in [Bytes(5), Copy, Hope] {
            assert_eq!(says(&[Everything, left], false), None);
        }
        assert!(says(&[Bytes(7), Bytes(5)], true).unwrap().starts_with("5 bytes"));
        assert_eq!(says(&[Copy, Everything], true).as_deref(), Some(NO_COPY));
        assert_eq!(says(&[Hope], true).as_deref(), Some(NO_DESTINATION));
    }
}
