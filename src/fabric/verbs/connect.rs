//! From a control connection to a connected pair of queues.
//!
//! The offering side's queue pair can receive before its card leaves, and the connecting side's before its word does,
//! so neither end ever sends to one that is not ready.

use std::io;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::Instant;

use zerocopy::IntoBytes;

use super::adapter::{self, Choice, GidKind, SYSFS, Selected};
use super::card::{CARD, Card, Facts, Path};
use super::context::Context;
use super::endpoint::VerbsEndpoint;
use super::link::Link;
use super::memory::Domain;
use super::pair::{Pair, RECEIVES};
use super::queue::Queue;
use super::words::{WORD, Word};
use super::{VerbsError, ffi};
use crate::fabric::connection::LIMIT;
use crate::fabric::meeting::{Wire, receive_exact};
use crate::fabric::{FabricError, random};

/// Reads open at a time: more than any room above posts.
const MAX_READS: i32 = 16;

/// Longest piece of a request; adapters allow 2 GiB, and a shorter piece frees its place in the queue sooner.
const MAX_MESSAGE: u32 = 1 << 30;

/// Which side of the control connection we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// We made the offer.
    Offering,
    /// We took it up.
    Connecting,
}

/// Connects queue pairs over `wire`, on which the peer has shown its token.
pub fn establish(
    choice: &Choice,
    side: Side,
    peer: String,
    wire: Wire,
    deadline: Instant,
) -> Result<Arc<VerbsEndpoint>, FabricError> {
    let selected = select(choice, &wire)?;
    let Opened { pair, facts, limit, max_message } = open(selected)?;
    introduce(&pair, &facts, side, &peer, &wire, deadline)?;
    let system = |source: io::Error| FabricError::System {
        what: "starting a connection of the verbs fabric".to_owned(),
        source,
    };
    let link = Link::new(peer, wire, pair, limit, max_message).map_err(system)?;
    VerbsEndpoint::start(link).map_err(system)
}

fn select(choice: &Choice, wire: &Wire) -> Result<Selected, VerbsError> {
    adapter::select(&list()?, choice, wire.local_address())
}

/// What would be used for a peer that is not known yet; else why verbs is off.
pub fn probe(choice: &Choice) -> Result<Selected, VerbsError> {
    ffi::library().map_err(|reason| VerbsError::Library { reason })?;
    adapter::select(&list()?, choice, None)
}

fn list() -> Result<Vec<adapter::Port>, VerbsError> {
    adapter::ports(FilePath::new(SYSFS))
        .map_err(|source| VerbsError::System { what: format!("reading {SYSFS}"), source })
}

struct Opened {
    pair: Pair,
    facts: Facts,
    limit: usize,
    max_message: usize,
}

/// A queue pair of its own context, domain and queue, that can receive immediates once it is connected.
fn open(selected: Selected) -> Result<Opened, FabricError> {
    let context = Context::open(&selected.device)?;
    let limits = context.limits()?;
    let port = context.port(selected.port)?;
    let domain = Domain::new(context.clone())?;
    let room = limits.max_cqe.max(0) as usize;
    let slots = LIMIT.min(limits.max_qp_wr.max(0) as usize).min(room.saturating_sub(RECEIVES + 1));
    let queue = Arc::new(Queue::new(context, slots + RECEIVES + 1)?);
    let gid = selected.gid;
    let pair = Pair::new(domain, queue, slots, selected)?;
    pair.post_receives(RECEIVES).map_err(|source| FabricError::System {
        what: "posting receives to a queue pair".to_owned(),
        source,
    })?;
    let facts = Facts {
        qpn: pair.number(),
        psn: u32::from_le_bytes(random()?) >> 8,
        lid: port.lid,
        ethernet: port.link_layer == ffi::IBV_LINK_LAYER_ETHERNET,
        v2: gid.kind == GidKind::V2,
        mtu: port.active_mtu as u8,
        reads_out: limits.max_qp_init_rd_atom.clamp(0, MAX_READS) as u8,
        reads_in: limits.max_qp_rd_atom.clamp(0, MAX_READS) as u8,
        global: port.flags & ffi::IBV_QPF_GRH_REQUIRED != 0,
        gid: gid.address,
    };
    let max_message = port.max_msg_sz.min(MAX_MESSAGE) as usize;
    Ok(Opened { pair, facts, limit: slots, max_message })
}

fn introduce(
    pair: &Pair,
    ours: &Facts,
    side: Side,
    peer: &str,
    wire: &Wire,
    deadline: Instant,
) -> Result<(), FabricError> {
    let lost = |e: io::Error| FabricError::Disconnected {
        peer: peer.to_owned(),
        reason: match e.kind() {
            io::ErrorKind::UnexpectedEof => {
                "it gave up while the queue pairs were being connected; its log says why".to_owned()
            }
            _ => e.to_string(),
        },
    };
    let protocol = |what: String| FabricError::Protocol { peer: peer.to_owned(), what };
    // A fresh socket has room for the few bytes that are ever sent on it.
    let say = |bytes: &[u8]| match wire.send(bytes, None) {
        Ok(n) if n == bytes.len() => Ok(()),
        Ok(_) => Err(lost(io::ErrorKind::WriteZero.into())),
        Err(e) => Err(lost(e)),
    };
    let card = Card::new(ours);
    if side == Side::Connecting {
        say(card.as_bytes())?;
    }
    let mut theirs = [0; CARD];
    receive_exact(wire, &mut theirs, deadline).map_err(lost)?;
    let theirs = Card::read(&theirs).map_err(protocol)?;
    let path = Path::between(ours, &theirs).map_err(protocol)?;
    pair.connect(&path, ours.psn)?;
    if side == Side::Connecting {
        return say(&Word::Ready.encode());
    }
    say(card.as_bytes())?;
    let mut word = [0; WORD];
    receive_exact(wire, &mut word, deadline).map_err(lost)?;
    match Word::decode(word) {
        Some(Word::Ready) => Ok(()),
        _ => Err(protocol("it spoke out of turn".to_owned())),
    }
}
