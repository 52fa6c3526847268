//! One destination of a group, as its source knows it.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::agent::config;
use crate::locks::lock;
use crate::ship::status::ShipStatus;
use crate::types::{Durability, Lsn};

/// A destination; one thread keeps its link, everyone looks at it.
pub(super) struct Destination {
    pub(super) peer: config::Peer,
    /// Which of the group's destinations, and which consumer of the ring.
    pub(super) index: usize,
    pub(super) ship: Arc<ShipStatus>,
    link: Mutex<LinkInfo>,
    stream: Mutex<Stream>,
}

/// Whether the ring is read for a destination.
#[derive(Default)]
pub(super) enum Stream {
    /// It is not.
    #[default]
    None,
    /// It is about to be, unless it has had to let the ring go.
    Joins { shed: bool },
    /// It is, until `stop` is set.
    Reads {
        stop: Arc<AtomicBool>,
        /// It is to let the ring go then.
        shed: bool,
    },
}

/// What is known of the link at present.
#[derive(Clone, Default)]
pub(super) struct LinkInfo {
    pub(super) connected: bool,
    pub(super) refused: bool,
    pub(super) fabric: Option<&'static str>,
    pub(super) encrypted: Option<bool>,
    pub(super) durability: Option<Durability>,
    /// The stream went on where the destination's image ends.
    pub(super) resumed: Option<bool>,
    pub(super) last_error: Option<String>,
    /// Attempts that failed and links that ended, so far.
    pub(super) failures: u64,
}

/// What a destination lacks when the agent ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

impl Destination {
    pub(super) fn new(peer: config::Peer, index: usize) -> Destination {
        Destination { peer, index, ship: Arc::default(), link: Mutex::default(), stream: Mutex::default() }
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
            false if link.refused || link.failures >= failures + 2 => Left::Everything,
            false => Left::Hope,
        }
    }

    /// Held by whoever begins or ends to read the ring, or takes it away.
    pub(super) fn stream(&self) -> MutexGuard<'_, Stream> {
        lock(&self.stream)
    }
}
