//! The networks of this node: encrypted and plain.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::fabric::tcp::{TcpConfig, TcpFabric};
use crate::fabric::tls::TlsIdentity;
use crate::fabric::{Fabric, FabricError};

/// What data travels over. A destination chooses for its groups (`encrypt`), the source follows.
pub struct Fabrics {
    encrypted: Arc<dyn Fabric>,
    plain: Arc<dyn Fabric>,
}

impl Fabrics {
    /// The tcp fabrics of a node that peers reach at `listen`; both take a free port unless it names one, which the
    /// encrypted one gets.
    pub fn tcp(
        listen: SocketAddr,
        advertise: Option<String>,
        identity: &TlsIdentity,
    ) -> Result<Fabrics, FabricError> {
        let config = |listen, identity| TcpConfig { listen, advertise: advertise.clone(), identity };
        let free = SocketAddr::new(listen.ip(), 0);
        Ok(Fabrics {
            encrypted: Arc::new(TcpFabric::new(config(listen, Some(identity.clone())))?),
            plain: Arc::new(TcpFabric::new(config(free, None))?),
        })
    }

    /// The fabric for a group.
    pub fn choose(&self, encrypt: bool) -> &Arc<dyn Fabric> {
        if encrypt { &self.encrypted } else { &self.plain }
    }
}
