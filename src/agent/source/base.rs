//! What a destination's image from before a copy holds, asked of its agent on a control channel of its own: the stream's is
//! busy with pings, and asks of the sync's thread must not wait for those.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use super::destination::Destination;
use super::link::{ANSWER_WITHIN, CONNECT_WITHIN};
use crate::agent::control::message::{Answer, Ask};
use crate::agent::control::{Client, client::unexpected};
use crate::agent::group::Group;
use crate::fabric::tls::TlsIdentity;
use crate::ship::sync::base::{Base, Found};
use crate::types::{Lsn, RegionId};

/// The image of one destination.
pub(super) struct RemoteBase {
    pub(super) to: Arc<Destination>,
    pub(super) group: Arc<Group>,
    pub(super) identity: Arc<TlsIdentity>,
    /// Where the `SyncBegin` of the copy ends.
    pub(super) begin: Lsn,
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
        match self.client()?.ask(&ask, ANSWER_WITHIN).map_err(io::Error::other)? {
            Answer::Base { begun: false, .. } => Ok(Found::NotBegun),
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
