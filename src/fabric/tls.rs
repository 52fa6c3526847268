//! Who a node is, and TLS between nodes: identities, their files, and the rustls configurations made of them.
//!
//! A cluster has one authority. Every node holds the authority's certificate, and a certificate with a key of its
//! own that names the node as a DNS name. Two nodes trust each other when both certificates come from the same
//! authority; *which* node is at the other end is read from its certificate and handed to the caller, who compares
//! it with what the configuration says. TLS 1.3 only, always mutual, never resumed.
//!
//! Used by the control channel between agents and by the tcp fabric; `pmemha init` makes the files.
//!
//! Certificates carry no end date that anyone alive will meet: a cluster that exists to survive failures must not
//! fail of a date, least of all on a node whose clock came up wrong. A node is excluded by a new authority.

mod identity;
mod issue;

use std::io;
use std::path::PathBuf;

pub use identity::{TlsIdentity, peer_node};
pub use issue::{Pem, make_authority, make_node_certificate};

/// Longest name of a node: what a single DNS label may hold, so that every tool that reads certificates agrees.
pub const MAX_NODE_NAME: usize = 63;

/// Why an identity could not be made, loaded or believed.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The name cannot stand in a certificate.
    #[error(
        "{name:?} cannot name a node: use 1 to {MAX_NODE_NAME} letters, digits, '-' or '.', as in a host name"
    )]
    Name {
        /// The name asked for.
        name: String,
    },
    /// The key does not sign what the authority's certificate would verify.
    #[error(
        "the authority's key does not belong to its certificate, or `pmemha init` did not make them: {reason}; \
         make a new authority, or issue the node's certificate with the tool that made this one"
    )]
    Authority {
        /// What failed.
        reason: String,
    },
    /// A certificate could not be made.
    #[error("making a certificate failed: {0}")]
    Make(#[from] rcgen::Error),
    /// A file could not be read or written.
    #[error("{what} {path}: {source}; {remedy}")]
    File {
        /// What was attempted, with the file's role.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
        /// What to do.
        remedy: &'static str,
    },
    /// A file does not hold what it should.
    #[error("{path} is not a usable {what}: {reason}; {remedy}")]
    Content {
        /// The file's role.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The key's file can be read by others.
    #[error("{path} holds a secret key and has mode {mode:04o}: run `chmod 600 {path}`", path = path.display())]
    KeyExposed {
        /// The file.
        path: PathBuf,
        /// Its access bits.
        mode: u32,
    },
    /// The peer's certificate does not name exactly one node.
    #[error("the peer's certificate does not name one node: {reason}; have `pmemha init` make one for it")]
    Peer {
        /// What is wrong with it.
        reason: String,
    },
    /// The peer is another node than the one expected.
    #[error(
        "connected to node {found:?} where {expected:?} was expected: check the peer's name and address in the configuration"
    )]
    WrongPeer {
        /// The node that the configuration or the offer names.
        expected: String,
        /// The node that answered.
        found: String,
    },
}
