//! Making authorities and node certificates, and writing them to files.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};

use super::{MAX_NODE_NAME, TlsError};

/// A certificate and its secret key, as PEM text.
#[derive(Clone)]
pub struct Pem {
    /// The certificate.
    pub certificate: String,
    /// Its key, PKCS#8.
    pub key: String,
}

/// Makes a cluster's authority: what every node trusts, and what issues their certificates.
pub fn make_authority() -> Result<Pem, TlsError> {
    let key = KeyPair::generate()?;
    let certificate = authority_params()?.self_signed(&key)?.pem();
    Ok(Pem { certificate, key: key.serialize_pem() })
}

/// Issues a certificate that says that its holder is the node `name`.
pub fn make_node_certificate(authority: &Pem, name: &str) -> Result<Pem, TlsError> {
    check_name(name)?;
    let unusable = |reason: String| TlsError::Authority { reason };
    let authority_key = KeyPair::from_pem(&authority.key).map_err(|e| unusable(e.to_string()))?;
    let issuer_params = authority_params()?;
    let issuer = Issuer::from_params(&issuer_params, authority_key);

    let mut params = CertificateParams::new(vec![name.to_owned()])?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // Every node asks and answers.
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate()?;
    let certificate = params.signed_by(&key, &issuer)?;
    verify_issued(certificate.der(), &authority.certificate).map_err(unusable)?;
    Ok(Pem { certificate: certificate.pem(), key: key.serialize_pem() })
}

impl Pem {
    /// Writes both files anew, the key readable by its owner alone; existing files are an error, since replacing
    /// an authority by mistake cuts off every node.
    pub fn write(&self, certificate: &Path, key: &Path) -> Result<(), TlsError> {
        write_new(key, 0o600, &self.key)?;
        write_new(certificate, 0o644, &self.certificate)
    }
}

/// Never prints the key.
impl std::fmt::Debug for Pem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pem").finish_non_exhaustive()
    }
}

fn write_new(path: &Path, mode: u32, text: &str) -> Result<(), TlsError> {
    let write = || -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        match path.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => File::open(dir)?.sync_all(),
            _ => Ok(()),
        }
    };
    write().map_err(|source| {
        let remedy = match source.kind() {
            io::ErrorKind::AlreadyExists => "move it away first if it is to be replaced",
            _ => "check that the directory exists, is writable and has room",
        };
        TlsError::File { what: "cannot write", path: path.to_owned(), source, remedy }
    })
}

/// The same for every authority but for the key, so that a certificate can be issued from the key alone.
fn authority_params() -> Result<CertificateParams, TlsError> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, "pmemha authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    Ok(params)
}

fn verify_issued(node: &CertificateDer<'_>, authority_pem: &str) -> Result<(), String> {
    let authority = CertificateDer::from_pem_slice(authority_pem.as_bytes()).map_err(|e| e.to_string())?;
    let anchor = webpki::anchor_from_trusted_cert(&authority).map_err(|e| e.to_string())?;
    let node = webpki::EndEntityCert::try_from(node).map_err(|e| e.to_string())?;
    let provider = rustls::crypto::ring::default_provider();
    node.verify_for_usage(
        provider.signature_verification_algorithms.all,
        &[anchor],
        &[],
        UnixTime::now(),
        webpki::KeyUsage::server_auth(),
        None,
        None,
    )
    .map(drop)
    .map_err(|e| e.to_string())
}

fn check_name(name: &str) -> Result<(), TlsError> {
    let fits = (1..=MAX_NODE_NAME).contains(&name.len())
        && rustls_pki_types::DnsName::try_from(name).is_ok()
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.');
    if fits { Ok(()) } else { Err(TlsError::Name { name: name.to_owned() }) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn names_that_no_certificate_can_hold_are_refused() {
        let ca = make_authority().unwrap();
        for name in ["", "a b", "*.x", "a/b", "ü", &"x".repeat(64), "-", "a..b"] {
            assert!(matches!(make_node_certificate(&ca, name), Err(TlsError::Name { .. })), "{name:?}");
        }
        for name in ["a", "node-1", "db1.example.org", "10-0-0-1"] {
            make_node_certificate(&ca, name).unwrap();
        }
    }

    #[test]
    fn a_key_of_another_authority_issues_nothing() {
        let (one, two) = (make_authority().unwrap(), make_authority().unwrap());
        let mixed = Pem { certificate: one.certificate, key: two.key };
        assert!(matches!(make_node_certificate(&mixed, "a"), Err(TlsError::Authority { .. })));
    }

    #[test]
    fn keys_are_private_and_nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = (dir.path().join("ca.pem"), dir.path().join("ca.key"));
        let ca = make_authority().unwrap();
        ca.write(&cert, &key).unwrap();
        assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
        let again = make_authority().unwrap().write(&cert, &key).unwrap_err().to_string();
        assert!(again.contains("ca.key") && again.contains("move it away"), "{again}");
        assert_eq!(std::fs::read_to_string(&key).unwrap(), ca.key);
    }
}
