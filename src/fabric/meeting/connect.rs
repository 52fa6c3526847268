//! The connecting side: to the socket of an offer, through TLS where configured, and in with its token.

use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use zerocopy::IntoBytes;

use super::Place;
use super::dial::dial;
use super::hello::{Hello, WELCOME, Welcome};
use super::wire::Wire;
use crate::fabric::FabricError;
use crate::fabric::tls::{TlsIdentity, peer_node};

/// Connects to the offer that `to` describes.
pub fn connect(
    to: &Place,
    identity: Option<&TlsIdentity>,
    deadline: Instant,
) -> Result<(String, Wire), FabricError> {
    let named = to.node.clone().unwrap_or_else(|| format!("{}:{}", to.host, to.port));
    let protocol = |what: String| FabricError::Protocol { peer: named.clone(), what };
    let lost = |e: io::Error| FabricError::Disconnected { peer: named.clone(), reason: e.to_string() };
    let token = to.token().ok_or_else(|| protocol("its offer's token is malformed".to_owned()))?;
    if identity.is_some() != to.node.is_some() {
        let (theirs, ours) = if identity.is_some() { ("plain", "true") } else { ("encrypted", "false") };
        return Err(protocol(format!(
            "its offer is {theirs} and ours would be `encrypt = {ours}`: set `encrypt` to the same on both nodes"
        )));
    }

    let socket = dial((to.host.as_str(), to.port), deadline).map_err(lost)?;
    let session = identity.map(|id| id.connect().map_err(io::Error::other)).transpose().map_err(lost)?;
    let wire = Wire::new(socket, session.map(Into::into)).map_err(lost)?;
    until(deadline, &wire, PollFlags::IN, || wire.handshake().map(|over| over.then_some(())))
        .map_err(lost)?;
    let peer = match wire.with_session(|session| peer_node(session, to.node.as_deref())) {
        None => named.clone(),
        Some(node) => node.map_err(|e| protocol(e.to_string()))?,
    };

    // A fresh socket has room for 48 bytes.
    let hello = Hello::new(token);
    let sent = wire.send(hello.as_bytes(), None).map_err(lost)?;
    if sent < size_of::<Hello>() {
        return Err(lost(io::ErrorKind::WriteZero.into()));
    }
    let mut welcome = [0; WELCOME];
    receive_exact(&wire, &mut welcome, deadline).map_err(|e| match e.kind() {
        io::ErrorKind::UnexpectedEof => {
            protocol("it does not know this offer, or no longer: ask it for another".into())
        }
        _ => lost(e),
    })?;
    Welcome::judge(&welcome).map_err(protocol)?;
    Ok((peer, wire))
}

/// Receives until `into` is full.
pub fn receive_exact(wire: &Wire, into: &mut [u8], deadline: Instant) -> io::Result<()> {
    let mut have = 0;
    until(deadline, wire, PollFlags::IN, || {
        match wire.recv(&mut into[have..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => have += n,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(e) => return Err(e),
        }
        Ok((have == into.len()).then_some(()))
    })
}

/// Repeats `step` whenever the socket is ready, until it gives something.
fn until<T>(
    deadline: Instant,
    wire: &Wire,
    ready: PollFlags,
    mut step: impl FnMut() -> io::Result<Option<T>>,
) -> io::Result<T> {
    loop {
        if let Some(done) = step()? {
            return Ok(done);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
        match poll(&mut [PollFd::from_borrowed_fd(wire.as_fd(), ready)], Some(&timeout)) {
            Err(rustix::io::Errno::INTR) | Ok(_) => {}
            Err(e) => return Err(e.into()),
        }
    }
}
