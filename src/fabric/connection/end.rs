//! Why a connection ended.

use std::fmt::Display;

use crate::fabric::FabricError;

/// Why a connection ended. `R` names a request that was refused, and why, as in "request 7: bytes outside the
/// registration".
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End<R> {
    /// The network, the adapter, or the peer's process.
    Lost(String),
    /// The peer revoked our access.
    RevokedByPeer,
    /// The peer refused a request of ours.
    RefusedByPeer(R),
    /// The peer broke the rules.
    Protocol(String),
    /// The peer asked for what it may not have; it is told so.
    RefusedToPeer(R),
    /// We revoked the peer's access; it is told so.
    RevokedHere,
    /// The endpoint was dropped here.
    Closed,
}

impl<R: Display> End<R> {
    /// As the rooms above see it.
    pub fn error(&self, peer: &str) -> FabricError {
        let peer = peer.to_owned();
        let lost = |reason: &str| FabricError::Disconnected { peer: peer.clone(), reason: reason.to_owned() };
        match self {
            End::Lost(reason) => lost(reason),
            End::RevokedByPeer => FabricError::Revoked { peer },
            End::RefusedByPeer(what) => FabricError::Access(format!("{peer} refused {what}")),
            End::Protocol(what) => FabricError::Protocol { peer, what: what.clone() },
            End::RefusedToPeer(what) => {
                FabricError::Protocol { peer, what: format!("it was refused {what}") }
            }
            End::RevokedHere => lost("this node revoked the peer's access"),
            End::Closed => lost("closed by this node"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_end_is_an_error_that_names_the_peer_or_the_request() {
        let text = |end: End<&str>| end.error("beta").to_string();
        assert!(text(End::Lost("no route".into())).contains("connection to beta lost: no route"));
        assert!(text(End::RefusedByPeer("request 7: a key")).contains("beta refused request 7: a key"));
        assert!(
            text(End::RefusedToPeer("request 7: a key")).contains("beta: it was refused request 7: a key")
        );
        assert!(matches!(End::<&str>::RevokedByPeer.error("beta"), FabricError::Revoked { .. }));
        assert!(matches!(End::<&str>::RevokedHere.error("beta"), FabricError::Disconnected { .. }));
    }
}
