//! Certificates, keys and what may be spoken, from files (PostgreSQL: `be_tls_init`,
//! `check_ssl_key_file_permissions`).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use tokio_rustls::rustls::server::danger::ClientCertVerifier;
use tokio_rustls::rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use tokio_rustls::rustls::sign::SingleCertAndKey;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use super::verifier::ClientVerifier;
use super::{ALPN, HTTP_ALPN, TlsSession};
use crate::auth::certificate::end_point_hash;
use crate::auth::version_1::certified_key;
use crate::conninfo::TlsVersion;
use crate::permissions::{Distrust, read_rules, read_secret};

/// Where everything stands that TLS for clients needs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsFiles {
    /// `--ssl-cert-file`: our certificate, then those between it and the root.
    pub cert: PathBuf,
    /// `--ssl-key-file`
    pub key: PathBuf,
    /// `--ssl-ca-file`: who may have issued the certificates of clients; without it they are not asked for one.
    pub ca: Option<PathBuf>,
    /// `--ssl-crl-file`
    pub crl: Option<PathBuf>,
    /// `--ssl-min-protocol-version`
    pub min_version: TlsVersion,
    /// `--ssl-max-protocol-version`
    pub max_version: TlsVersion,
}

/// A file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// It cannot be read.
    #[error("could not load {what} \"{}\": {source}", path.display())]
    Io {
        /// What it should hold.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It does not hold what it should.
    #[error("could not load {what} \"{}\": {reason}", path.display())]
    Content {
        /// What it should hold.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it. Nothing of a key.
        reason: String,
    },
    /// Others could have read the key, or changed it or another file.
    #[error("{what} \"{}\" {problem}", path.display())]
    Distrust {
        /// What it should hold.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong and how it should be.
        problem: String,
    },
    /// The pieces do not fit together.
    #[error("could not set up TLS for clients: {0}")]
    Setup(rustls::Error),
}

/// Everything prepared for handshakes with clients.
#[derive(Clone)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    /// The same for who speaks HTTP.
    http: Arc<ServerConfig>,
    end_point: Option<Vec<u8>>,
    verifies_clients: bool,
}

impl std::fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerTls").field("verifies_clients", &self.verifies_clients).finish_non_exhaustive()
    }
}

impl ServerTls {
    /// Reads the files.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn load(files: &TlsFiles) -> Result<ServerTls, TlsError> {
        let provider = Arc::new(ring::default_provider());
        let chain = certificates("server certificate file", &files.cert)?;
        let end_point = chain.first().and_then(|own| end_point_hash(own));
        let key = private_key(&files.key)?;
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&versions(files))
            .map_err(TlsError::Setup)?;
        let builder = match client_verifier(files, provider.clone())? {
            Some(verifier) => builder.with_client_cert_verifier(verifier),
            None => builder.with_no_client_auth(),
        };
        let certified = certified_key(chain, key, &provider).map_err(|error| TlsError::Content {
            what: "private key file",
            path: files.key.clone(),
            reason: format!("{error}; does it belong to the certificate \"{}\"?", files.cert.display()),
        })?;
        let mut config = builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(certified)));
        config.alpn_protocols = vec![ALPN.to_vec()];
        // Each connection proves everything anew, so that a revoked certificate is refused at once.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        let verifies_clients = files.ca.is_some();
        let mut http = config.clone();
        http.alpn_protocols = vec![HTTP_ALPN.to_vec()];
        let (config, http) = (Arc::new(config), Arc::new(http));
        Ok(ServerTls { config, http, end_point, verifies_clients })
    }

    /// Shakes hands with those who speak HTTP: the same certificate, versions and authorities.
    pub fn for_http(&self) -> TlsAcceptor {
        self.http.clone().into()
    }

    /// Whether clients are asked for a certificate.
    pub fn verifies_clients(&self) -> bool {
        self.verifies_clients
    }

    /// Shakes hands on a socket; see [`TlsSession::accept`].
    pub(in crate::wire) async fn accept(&self, socket: &TcpStream) -> io::Result<TlsSession> {
        TlsSession::accept(socket, self.config.clone(), self.end_point.clone()).await
    }
}

fn versions(files: &TlsFiles) -> Vec<&'static rustls::SupportedProtocolVersion> {
    let known = [(TlsVersion::V12, &rustls::version::TLS12), (TlsVersion::V13, &rustls::version::TLS13)];
    let wanted = |(version, _): &(TlsVersion, _)| (files.min_version..=files.max_version).contains(version);
    known.into_iter().filter(wanted).map(|(_, version)| version).collect()
}

/// Asks for a certificate without insisting: whether one is needed, the hba line says. A bad one ends the handshake.
fn client_verifier(
    files: &TlsFiles,
    provider: Arc<CryptoProvider>,
) -> Result<Option<Arc<dyn ClientCertVerifier>>, TlsError> {
    const WHAT: &str = "root certificate file";
    let Some(path) = &files.ca else { return Ok(None) };
    let unusable = |reason: String| TlsError::Content { what: WHAT, path: path.clone(), reason };
    let mut roots = RootCertStore::empty();
    let trusted = certificates(WHAT, path)?;
    for certificate in &trusted {
        roots.add(certificate.clone()).map_err(|error| unusable(error.to_string()))?;
    }
    let algorithms = provider.signature_verification_algorithms;
    let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    if let Some(crl) = &files.crl {
        // PG: X509_V_FLAG_CRL_CHECK | X509_V_FLAG_CRL_CHECK_ALL: each certificate needs a list, and a current one.
        builder = builder.with_crls(revocation_lists(crl)?).enforce_revocation_expiration();
    }
    let webpki = builder.allow_unauthenticated().build().map_err(|error| unusable(error.to_string()))?;
    Ok(Some(Arc::new(ClientVerifier { webpki, trusted, has_crls: files.crl.is_some(), algorithms })))
}

/// Whoever may write a certificate of an authority lets in whom they like.
fn read(what: &'static str, path: &Path) -> Result<Vec<u8>, TlsError> {
    read_rules(path).map(String::into_bytes).map_err(|error| trusted(what, path, error))
}

fn trusted(what: &'static str, path: &Path, error: Distrust) -> TlsError {
    let path = path.to_owned();
    match error {
        Distrust::Io(source) => TlsError::Io { what, path, source },
        Distrust::Wrong(problem) => TlsError::Distrust { what, path, problem },
    }
}

fn certificates(what: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bad = |reason: String| TlsError::Content { what, path: path.to_owned(), reason };
    let text = read(what, path)?;
    let chain = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    let chain = chain.map_err(|error| bad(error.to_string()))?;
    if chain.is_empty() { Err(bad("no certificate in it".to_owned())) } else { Ok(chain) }
}

fn revocation_lists(path: &Path) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    const WHAT: &str = "certificate revocation list file";
    let bad = |reason: String| TlsError::Content { what: WHAT, path: path.to_owned(), reason };
    let text = read(WHAT, path)?;
    let lists = CertificateRevocationListDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    let lists = lists.map_err(|error| bad(error.to_string()))?;
    // None at all would mean that nothing is checked.
    if lists.is_empty() { Err(bad("no revocation list in it".to_owned())) } else { Ok(lists) }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    const WHAT: &str = "private key file";
    let text = read_secret(path).map_err(|error| trusted(WHAT, path, error))?;
    PrivateKeyDer::from_pem_slice(text.as_bytes()).map_err(|error| TlsError::Content {
        what: WHAT,
        path: path.to_owned(),
        reason: format!("{error}; keys with a passphrase are not supported"),
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use rcgen::{CertificateParams, KeyPair};

    use super::*;

    struct Files {
        dir: tempfile::TempDir,
        files: TlsFiles,
    }

    fn files() -> Files {
        let dir = tempfile::tempdir().unwrap();
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new(["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("cert"), certificate.pem()).unwrap();
        std::fs::write(path("key"), key.serialize_pem()).unwrap();
        std::fs::set_permissions(path("key"), PermissionsExt::from_mode(0o600)).unwrap();
        let files = TlsFiles {
            cert: path("cert"),
            key: path("key"),
            ca: None,
            crl: None,
            min_version: TlsVersion::V12,
            max_version: TlsVersion::V13,
        };
        Files { dir, files }
    }

    #[track_caller]
    fn refused(files: &TlsFiles, problem: &str) {
        let error = ServerTls::load(files).unwrap_err().to_string();
        assert!(error.contains(problem), "{error}");
    }

    #[test]
    fn a_key_that_others_can_read_is_refused() {
        let Files { files, dir: _dir } = files();
        assert!(!ServerTls::load(&files).unwrap().verifies_clients());
        for mode in [0o604, 0o620, 0o610, 0o644] {
            std::fs::set_permissions(&files.key, PermissionsExt::from_mode(mode)).unwrap();
            refused(&files, "has group or world access");
        }
        std::fs::set_permissions(&files.key, PermissionsExt::from_mode(0o640)).unwrap();
        assert_eq!(ServerTls::load(&files).is_ok(), rustix::process::geteuid().is_root());
    }

    #[test]
    fn files_that_hold_something_else_are_named() {
        let Files { files, dir } = files();
        let path = |name: &str| dir.path().join(name);
        std::fs::write(path("noise"), "noise").unwrap();
        refused(&TlsFiles { cert: path("none"), ..files.clone() }, "could not load server certificate file");
        refused(&TlsFiles { cert: path("noise"), ..files.clone() }, "no certificate in it");
        refused(&TlsFiles { key: path("none"), ..files.clone() }, "could not load private key file");
        refused(&TlsFiles { key: dir.path().to_owned(), ..files.clone() }, "is not a regular file");
        refused(&TlsFiles { ca: Some(path("noise")), ..files.clone() }, "root certificate file");
        let ca = Some(files.cert.clone());
        refused(&TlsFiles { ca, crl: Some(path("noise")), ..files.clone() }, "no revocation list in it");
        let other = KeyPair::generate().unwrap().serialize_pem();
        std::fs::write(&files.key, other).unwrap();
        refused(&files, "could not load private key file");
    }
}
