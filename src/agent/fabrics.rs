//! The networks of this node: tcp, encrypted and plain, and verbs.

use std::net::SocketAddr;
use std::sync::Arc;

use super::config::{Config, FabricKind, Rdma};
use super::status::RdmaStatus;
use crate::fabric::meeting::{Meeting, MeetingConfig};
use crate::fabric::tcp::TcpFabric;
use crate::fabric::tls::TlsIdentity;
use crate::fabric::{EndpointAddress, Fabric, FabricError};

/// What data travels over. A destination chooses for its groups (`fabric`, `encrypt`), the source follows.
pub struct Fabrics {
    encrypted: Arc<dyn Fabric>,
    plain: Arc<dyn Fabric>,
    verbs: Option<Arc<dyn Fabric>>,
}

impl Fabrics {
    /// The fabrics of a node that peers reach at `listen`. Connections of the encrypted tcp fabric and of verbs begin at
    /// one port, which is the one that `listen` names, if it does; plain ones at a free port.
    pub fn start(
        listen: SocketAddr,
        advertise: Option<String>,
        identity: &TlsIdentity,
        rdma: &Rdma,
    ) -> Result<Fabrics, FabricError> {
        let config = |listen, identity| MeetingConfig { listen, advertise: advertise.clone(), identity };
        let secure = Meeting::start(config(listen, Some(identity.clone())))?;
        let free = SocketAddr::new(listen.ip(), 0);
        Ok(Fabrics {
            plain: Arc::new(TcpFabric::new(config(free, None))?),
            verbs: verbs(&secure, rdma),
            encrypted: Arc::new(TcpFabric::over(secure)),
        })
    }

    /// The fabric for a group.
    pub fn choose(&self, kind: FabricKind, encrypt: bool) -> Result<&Arc<dyn Fabric>, FabricError> {
        match kind {
            FabricKind::Tcp if encrypt => Ok(&self.encrypted),
            FabricKind::Tcp => Ok(&self.plain),
            FabricKind::Verbs => self.verbs.as_ref().ok_or_else(|| FabricError::Unavailable {
                kind: FabricKind::Verbs.name(),
                reason: NOT_BUILT.to_owned(),
            }),
        }
    }

    /// The fabric that an offer is of; one of an unknown kind is left to tcp to refuse.
    pub fn for_offer(&self, offer: &EndpointAddress, encrypt: bool) -> Result<&Arc<dyn Fabric>, FabricError> {
        let verbs = offer.kind == FabricKind::Verbs.name();
        self.choose(if verbs { FabricKind::Verbs } else { FabricKind::Tcp }, encrypt)
    }
}

/// Why a program that was built without the feature has no verbs.
const NOT_BUILT: &str = "this program was built without the feature `verbs`";

#[cfg(feature = "verbs")]
fn verbs(meeting: &Arc<Meeting>, rdma: &Rdma) -> Option<Arc<dyn Fabric>> {
    Some(Arc::new(crate::fabric::verbs::VerbsFabric::over(meeting.clone(), choice(rdma))))
}

/// What verbs would use at this moment, or why it is off.
pub fn rdma_status(config: &Config) -> RdmaStatus {
    let replicas = config.replicas.iter().any(|r| r.fabric == FabricKind::Verbs);
    RdmaStatus { wanted: replicas || config.rdma != Rdma::default(), ..probe(&config.rdma) }
}

#[cfg(feature = "verbs")]
fn probe(rdma: &Rdma) -> RdmaStatus {
    match crate::fabric::verbs::VerbsFabric::probe(&choice(rdma)) {
        Ok(found) => RdmaStatus {
            wanted: false,
            device: Some(found.device),
            port: Some(found.port),
            address: Some(std::net::Ipv6Addr::from(found.gid.address).to_canonical().to_string()),
            off: None,
        },
        Err(why) => RdmaStatus { off: Some(why.to_string()), ..RdmaStatus::default() },
    }
}

#[cfg(feature = "verbs")]
fn choice(rdma: &Rdma) -> crate::fabric::verbs::Choice {
    let Rdma { device, port, gid_index } = rdma.clone();
    crate::fabric::verbs::Choice { device, port, gid_index }
}

#[cfg(not(feature = "verbs"))]
fn verbs(_meeting: &Arc<Meeting>, _rdma: &Rdma) -> Option<Arc<dyn Fabric>> {
    None
}

#[cfg(not(feature = "verbs"))]
fn probe(_rdma: &Rdma) -> RdmaStatus {
    RdmaStatus { off: Some(NOT_BUILT.to_owned()), ..RdmaStatus::default() }
}
