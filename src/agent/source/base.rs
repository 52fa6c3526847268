//! What a destination's image from before a copy holds, asked of its agent on a control channel of its own: the stream's is
//! busy with pings, and asks of the sync's thread must not wait for those.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::destination::Destination;
use super::link::CONNECT_WITHIN;
use crate::agent::control::message::{Answer, Ask};
use crate::agent::control::{Client, client::unexpected};
use crate::agent::group::Group;
use crate::fabric::tls::TlsIdentity;
use crate::ship::sync::base::{Base, Found};
use crate::types::{Lsn, RegionId};

/// How long a destination that has been sent the beginning of a copy may make no progress before the copy begins there.
const BEGUN_WITHIN: Duration = Duration::from_secs(1);

/// How long a destination may take to say what some megabytes of its image hold. The ring fills meanwhile.
const SAID_WITHIN: Duration = Duration::from_secs(2);

/// From then on a destination that compares more slowly than this, in bytes a second, is brought everything: the others wait for it.
const SLOW_AFTER: Duration = Duration::from_secs(3);
const SLOWEST: f64 = 16e6;

/// The image of one destination.
pub(super) struct RemoteBase {
    pub(super) to: Arc<Destination>,
    pub(super) group: Arc<Group>,
    pub(super) identity: Arc<TlsIdentity>,
    /// Where the `SyncBegin` of the copy ends.
    pub(super) begin: Lsn,
    /// Since when it is waited for the copy to begin there, and how far it had come then.
    pub(super) waits_since: Option<(Instant, Lsn)>,
    /// What the asks of this copy took so far, and how many bytes they were about.
    pub(super) asked: (Duration, u64),
    pub(super) client: Option<Client>,
}

impl Base for RemoteBase {
    fn digests(&mut self, name: &str, block: usize, first: u64, count: usize) -> io::Result<Found> {
        if !self.to.link().connected {
            let text = format!("the link to {} is down", self.to.peer.name);
            return Err(io::Error::new(io::ErrorKind::NotConnected, text));
        }
        let ask = Ask::Base {
            group: self.group.name().to_owned(),
            id: self.group.id(),
            generation: self.group.generation(),
            begin: self.begin,
            name: name.to_owned(),
            block: block as u32,
            first,
            count: count as u32,
        };
        let began = Instant::now();
        let answer = self.client().and_then(|client| client.ask(&ask, SAID_WITHIN).map_err(io::Error::other));
        let bytes = block as u64 * count as u64;
        self.asked = (self.asked.0 + began.elapsed(), self.asked.1 + bytes);
        if self.asked.0 > SLOW_AFTER && (self.asked.1 as f64) < self.asked.0.as_secs_f64() * SLOWEST {
            let text = format!("{} takes long to say what it holds", self.to.peer.name);
            return Err(self.give_up(io::Error::other(text)));
        }
        match answer.map_err(|error| self.give_up(error))? {
            Answer::Base { begun: false, .. } => self.not_begun(),
            Answer::Base { region: None, .. } => Ok(Found::Nothing),
            Answer::Base { region: Some(region), digests, .. } => Ok(Found::Digests(region, digests)),
            other => Err(io::Error::other(unexpected(&self.to.peer.name, other))),
        }
    }
}

/// The images of several destinations, where all take a copy: what one record refers to has to be in each, as a region of one number.
pub(super) struct EveryBase(pub(super) Vec<RemoteBase>);

impl Base for EveryBase {
    fn digests(&mut self, name: &str, block: usize, first: u64, count: usize) -> io::Result<Found> {
        let mut every: Option<(RegionId, Vec<u64>)> = None;
        for base in &mut self.0 {
            let (region, theirs) = match base.digests(name, block, first, count)? {
                Found::Digests(region, theirs) => (region, theirs),
                found => return Ok(found),
            };
            match &mut every {
                None => every = Some((region, theirs)),
                Some((known, digests)) if *known == region && digests.len() == theirs.len() => {
                    for (digest, theirs) in digests.iter_mut().zip(theirs).filter(|(d, t)| **d != *t) {
                        // What the source holds is that of one of them at most.
                        *digest ^= theirs.rotate_left(1) | 1;
                    }
                }
                Some(_) => return Ok(Found::Nothing),
            }
        }
        Ok(every.map_or(Found::Nothing, |(region, digests)| Found::Digests(region, digests)))
    }
}

impl RemoteBase {
    /// The others must not be kept from counting by one whose disk is full, say.
    fn not_begun(&mut self) -> io::Result<Found> {
        let applied = self.to.ship.view().applied;
        match &mut self.waits_since {
            Some((since, before)) if *before == applied => {
                if since.elapsed() >= BEGUN_WITHIN {
                    let text = format!("{} makes no progress and has not begun the copy", self.to.peer.name);
                    return Err(self.give_up(io::Error::new(io::ErrorKind::TimedOut, text)));
                }
            }
            waits => *waits = Some((Instant::now(), applied)),
        }
        Ok(Found::NotBegun)
    }

    /// The copy goes on without what the destination has.
    fn give_up(&self, error: io::Error) -> io::Error {
        tracing::info!(group = self.group.name(), %error, "not asked again before it has all of a copy");
        self.to.ask_no_more(self.begin);
        error
    }

    fn client(&mut self) -> io::Result<&mut Client> {
        let peer = &self.to.peer;
        let connect = || {
            let deadline = Instant::now() + CONNECT_WITHIN;
            Client::connect(&peer.address, &self.identity, &peer.name, deadline).map_err(io::Error::other)
        };
        match &mut self.client {
            Some(client) => Ok(client),
            none => Ok(none.insert(connect()?)),
        }
    }
}
