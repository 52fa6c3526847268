//! Loading an identity and making rustls configurations of it.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{
    ClientConfig, ClientConnection, CommonState, DigitallySignedStruct, RootCertStore, ServerConfig,
    ServerConnection, SignatureScheme,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use super::TlsError;

/// A node's proof of who it is, and whom it trusts. Cheap to clone.
#[derive(Clone, Debug)]
pub struct TlsIdentity {
    node: Arc<str>,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl TlsIdentity {
    /// Reads the authority's certificate and this node's certificate and key, PEM files as `pmemha init` makes them.
    pub fn load(ca: &Path, certificate: &Path, key: &Path) -> Result<TlsIdentity, TlsError> {
        let authority = read_certificates(ca, "authority certificate")?;
        let chain = read_certificates(certificate, "node certificate")?;
        let secret = read_key(key)?;
        let node = node_name(&chain[0]).map_err(|reason| TlsError::Content {
            what: "node certificate",
            path: certificate.to_owned(),
            reason,
            remedy: REMAKE,
        })?;

        let mut roots = RootCertStore::empty();
        for cert in authority {
            roots.add(cert).map_err(|e| TlsError::Content {
                what: "authority certificate",
                path: ca.to_owned(),
                reason: e.to_string(),
                remedy: REMAKE,
            })?;
        }
        let trust = Arc::new(Trust { roots: Arc::new(roots), provider: provider() });
        // What a peer would say of our certificate, said before any peer does.
        trust.check_chain(&chain[0], &chain[1..], UnixTime::now()).map_err(|e| TlsError::Content {
            what: "node certificate",
            path: certificate.to_owned(),
            reason: format!("the authority in {} did not issue it ({e})", ca.display()),
            remedy: "copy ca.pem, node.pem and node.key from one run of `pmemha init`",
        })?;
        let mismatch = |e: rustls::Error| TlsError::Content {
            what: "node key",
            path: key.to_owned(),
            reason: format!("it does not belong to {} ({e})", certificate.display()),
            remedy: "copy node.pem and node.key from one run of `pmemha init`",
        };
        Ok(TlsIdentity {
            node: node.into(),
            client: client_config(&trust, &chain, &secret).map_err(mismatch)?,
            server: server_config(&trust, chain, secret).map_err(mismatch)?,
        })
    }

    /// This node's name, from its certificate.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Configuration of the side that connects. Any node of the cluster is accepted: see [`peer_node`].
    pub fn client_config(&self) -> &Arc<ClientConfig> {
        &self.client
    }

    /// Configuration of the side that listens. Any node of the cluster is accepted: see [`peer_node`].
    pub fn server_config(&self) -> &Arc<ServerConfig> {
        &self.server
    }

    /// The connecting side of a new TLS session.
    pub fn connect(&self) -> Result<ClientConnection, rustls::Error> {
        // Nodes are named by their certificates alone; the name sent would be a guess, so none is (SNI is off).
        let unnamed = ServerName::try_from("node").expect("a DNS name");
        ClientConnection::new(self.client.clone(), unnamed)
    }

    /// The listening side of a new TLS session.
    pub fn accept(&self) -> Result<ServerConnection, rustls::Error> {
        ServerConnection::new(self.server.clone())
    }
}

/// The node at the other end of a session whose handshake is over; `expected` is refused if it is another.
///
/// Handshakes prove that the peer belongs to the cluster, this says which member it is: whoever lets a peer do
/// something that not every node may do must look here.
pub fn peer_node(session: &CommonState, expected: Option<&str>) -> Result<String, TlsError> {
    let unnamed = |reason: &str| TlsError::Peer { reason: reason.to_owned() };
    let chain = session.peer_certificates().ok_or_else(|| unnamed("none was shown yet"))?;
    let first = chain.first().ok_or_else(|| unnamed("the chain is empty"))?;
    let found = node_name(first).map_err(|reason| TlsError::Peer { reason })?;
    match expected {
        Some(name) if !name.eq_ignore_ascii_case(&found) => {
            Err(TlsError::WrongPeer { expected: name.to_owned(), found })
        }
        _ => Ok(found),
    }
}

/// The one DNS name in a certificate.
fn node_name(cert: &CertificateDer<'_>) -> Result<String, String> {
    let cert = webpki::EndEntityCert::try_from(cert).map_err(|e| e.to_string())?;
    let mut names = cert.valid_dns_names();
    match (names.next(), names.next()) {
        (Some(name), None) if !name.contains('*') => Ok(name.to_owned()),
        (None, _) => Err("it holds no DNS name".to_owned()),
        (Some(_), None) => Err("its DNS name has a wildcard".to_owned()),
        _ => Err("it holds several DNS names".to_owned()),
    }
}

/// Accepts certificates that the authority issued, whatever node they name.
#[derive(Debug)]
struct Trust {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
}

impl Trust {
    fn check_chain(
        &self,
        cert: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let algorithms = self.provider.signature_verification_algorithms.all;
        let cert = ParsedCertificate::try_from(cert)?;
        verify_server_cert_signed_by_trust_anchor(&cert, &self.roots, intermediates, now, algorithms)
    }
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        cert: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check_chain(cert, intermediates, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn client_config(
    trust: &Arc<Trust>,
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
) -> Result<Arc<ClientConfig>, rustls::Error> {
    let mut config = ClientConfig::builder_with_provider(trust.provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(trust.clone())
        .with_client_auth_cert(chain.to_vec(), key.clone_key())?;
    config.resumption = Resumption::disabled();
    config.enable_sni = false;
    Ok(Arc::new(config))
}

fn server_config(
    trust: &Arc<Trust>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let clients = WebPkiClientVerifier::builder_with_provider(trust.roots.clone(), trust.provider.clone())
        .build()
        .map_err(|e| rustls::Error::General(e.to_string()))?;
    let mut config = ServerConfig::builder_with_provider(trust.provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(clients)
        .with_single_cert(chain, key)?;
    // Sessions last for days and are made anew after a failure: tickets would only be bytes on the wire.
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// Named here and passed everywhere: nothing depends on a provider that some other code of the process installed.
fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn read_certificates(path: &Path, what: &'static str) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read_file(path, what)?;
    let content = |reason: String| TlsError::Content { what, path: path.to_owned(), reason, remedy: REMAKE };
    let certs: Vec<_> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|e| content(e.to_string()))?;
    if certs.is_empty() { Err(content("it holds no PEM certificate".to_owned())) } else { Ok(certs) }
}

fn read_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let text = read_file(path, "node key")?;
    let mode = std::fs::metadata(path).map_or(0, |m| m.permissions().mode() & 0o777);
    if mode & 0o077 != 0 {
        return Err(TlsError::KeyExposed { path: path.to_owned(), mode });
    }
    PrivateKeyDer::from_pem_slice(&text).map_err(|e| TlsError::Content {
        what: "node key",
        path: path.to_owned(),
        reason: e.to_string(),
        remedy: REMAKE,
    })
}

fn read_file(path: &Path, what: &'static str) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::File {
        what,
        path: path.to_owned(),
        source,
        remedy: REMAKE,
    })
}

const REMAKE: &str = "`pmemha init` makes the files; the configuration's [tls] section names them";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fabric::tls::{Pem, make_authority, make_node_certificate};
    use rustls::Connection;
    use std::path::PathBuf;

    struct Files {
        _dir: tempfile::TempDir,
        ca: PathBuf,
        cert: PathBuf,
        key: PathBuf,
    }

    fn files(ca: &Pem, node: &str) -> Files {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        ca.write(&at("ca.pem"), &at("ca.key")).unwrap();
        make_node_certificate(ca, node).unwrap().write(&at("node.pem"), &at("node.key")).unwrap();
        Files { ca: at("ca.pem"), cert: at("node.pem"), key: at("node.key"), _dir: dir }
    }

    fn load(f: &Files) -> Result<TlsIdentity, TlsError> {
        TlsIdentity::load(&f.ca, &f.cert, &f.key)
    }

    fn shake(client: &TlsIdentity, server: &TlsIdentity) -> Result<(Connection, Connection), rustls::Error> {
        let mut c = Connection::from(client.connect().unwrap());
        let mut s = Connection::from(server.accept().unwrap());
        while c.is_handshaking() || s.is_handshaking() || c.wants_write() || s.wants_write() {
            carry(&mut c, &mut s)?;
            carry(&mut s, &mut c)?;
        }
        Ok((c, s))
    }

    fn carry(from: &mut Connection, to: &mut Connection) -> Result<(), rustls::Error> {
        let mut wire = Vec::new();
        while from.wants_write() {
            from.write_tls(&mut wire).unwrap();
        }
        let mut wire = &wire[..];
        while !wire.is_empty() {
            to.read_tls(&mut wire).unwrap();
            to.process_new_packets()?;
        }
        Ok(())
    }

    #[test]
    fn two_nodes_of_a_cluster_learn_each_others_names() {
        let ca = make_authority().unwrap();
        let (a, b) = (load(&files(&ca, "alpha")).unwrap(), load(&files(&ca, "beta")).unwrap());
        assert_eq!((a.node(), b.node()), ("alpha", "beta"));
        let (c, s) = shake(&a, &b).unwrap();
        assert_eq!(c.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
        assert_eq!(peer_node(&c, Some("Beta")).unwrap(), "beta");
        assert_eq!(peer_node(&s, None).unwrap(), "alpha");
        let wrong = peer_node(&c, Some("gamma")).unwrap_err().to_string();
        assert!(wrong.contains("beta") && wrong.contains("gamma"), "{wrong}");
    }

    #[test]
    fn a_stranger_is_refused_on_either_side() {
        let (ours, theirs) = (make_authority().unwrap(), make_authority().unwrap());
        let (a, x) = (load(&files(&ours, "a")).unwrap(), load(&files(&theirs, "b")).unwrap());
        assert!(shake(&a, &x).is_err());
        assert!(shake(&x, &a).is_err());
    }

    #[test]
    fn a_client_without_a_certificate_is_refused() {
        let ca = make_authority().unwrap();
        let a = load(&files(&ca, "a")).unwrap();
        let mut bare = a.clone();
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.certificate.as_bytes()).unwrap()).unwrap();
        let trust = Arc::new(Trust { roots: Arc::new(roots), provider: provider() });
        bare.client = Arc::new(
            ClientConfig::builder_with_provider(provider())
                .with_protocol_versions(&[&rustls::version::TLS13])
                .unwrap()
                .dangerous()
                .with_custom_certificate_verifier(trust)
                .with_no_client_auth(),
        );
        assert!(shake(&bare, &a).is_err());
    }

    #[test]
    fn each_unusable_file_is_named_with_a_remedy() {
        let ca = make_authority().unwrap();
        let says = |f: &Files, path: &Path, remedy: &str| {
            let text = load(f).unwrap_err().to_string();
            assert!(text.contains(path.to_str().unwrap()) && text.contains(remedy), "{text}");
        };
        let f = files(&ca, "a");
        std::fs::remove_file(&f.ca).unwrap();
        says(&f, &f.ca, "pmemha init");
        let f = files(&ca, "a");
        std::fs::write(&f.cert, "nothing").unwrap();
        says(&f, &f.cert, "pmemha init");
        let f = files(&ca, "a");
        std::fs::set_permissions(&f.key, std::fs::Permissions::from_mode(0o640)).unwrap();
        says(&f, &f.key, "chmod 600");
        let f = files(&ca, "a");
        std::fs::copy(&files(&ca, "a").key, &f.key).unwrap();
        says(&f, &f.key, "one run");
        let f = files(&ca, "a");
        std::fs::copy(&files(&make_authority().unwrap(), "a").ca, &f.ca).unwrap();
        says(&f, &f.cert, "one run");
    }
}
