//! TLS as libpq does it with OpenSSL, on rustls (PG: `fe-secure-openssl.c`, `fe-secure-common.c`).
//!
//! webpki, which checks chains for rustls, is stricter than OpenSSL. Two kinds of certificate that operators do have
//! are therefore treated here: a self-signed one that is itself the trusted one, and those of X.509 version 1, which
//! PostgreSQL's own manual has had people make. The latter need TLS 1.3 and, if they are to be checked, a trusted
//! certificate that issued them directly.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls;
use tokio_rustls::rustls::client::WebPkiServerVerifier;
use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls12_signature,
    verify_tls13_signature_with_raw_key,
};
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{
    CertificateDer, CertificateRevocationListDer, PrivateKeyDer, ServerName, SubjectPublicKeyInfoDer,
    UnixTime,
};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use x509_parser::prelude::{GeneralName, X509Version};

use super::aside::Files;
use super::error::ConnectError;
use super::key;
use crate::auth::certificate::end_point_hash;
use crate::auth::version_1::{self, certified_key, check_dates, parse};
use crate::conninfo::{
    HostAddress, HostSpec, RootCert, Secret, SslCertMode, SslMode, TlsOptions, TlsVersion,
};

/// The protocol name both sides agree on, mandatory for direct TLS.
const ALPN: &[u8] = b"postgresql";

/// Everything prepared for handshakes with one host.
pub(super) struct Tls {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    client: Arc<ClientCertificate>,
    cert_mode: SslCertMode,
}

impl Tls {
    /// Reads certificates and keys.
    pub(super) fn prepare(options: &TlsOptions, host: &HostSpec, files: &Files) -> Result<Tls, ConnectError> {
        let provider = Arc::new(ring::default_provider());
        let verifier = ServerVerifier::new(options, host, &provider, files)?;
        let client = Arc::new(ClientCertificate::load(options, &provider, files)?);
        let versions: Vec<_> =
            [(TlsVersion::V12, &rustls::version::TLS12), (TlsVersion::V13, &rustls::version::TLS13)]
                .into_iter()
                .filter(|(version, _)| (options.min_version..=options.max_version).contains(version))
                .map(|(_, version)| version)
                .collect();
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions)
            .map_err(|error| configuration(format!("could not create SSL context: {error}")))?;
        let mut config = builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(client.clone());
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.enable_sni = options.sni;
        // Each connection proves everything anew, so that a changed configuration takes effect.
        config.resumption = rustls::client::Resumption::disabled();
        Ok(Tls { config: Arc::new(config), name: server_name(host), client, cert_mode: options.cert_mode })
    }

    /// Shakes hands.
    pub(super) async fn handshake(
        &self,
        stream: TcpStream,
        alpn_required: bool,
    ) -> Result<TlsStream<TcpStream>, ConnectError> {
        let connector = TlsConnector::from(self.config.clone());
        let stream = connector.connect(self.name.clone(), stream).await.map_err(handshake_error)?;
        let alpn = stream.get_ref().1.alpn_protocol();
        if alpn.is_some_and(|name| name != ALPN) || alpn_required && alpn.is_none() {
            return Err(ConnectError::NoAlpn);
        }
        if self.cert_mode == SslCertMode::Require && !self.client.asked.load(Ordering::Relaxed) {
            return Err(ConnectError::CertificateNotRequested);
        }
        Ok(stream)
    }
}

/// See [`end_point_hash`].
pub(super) fn server_end_point(stream: &TlsStream<TcpStream>) -> Option<Vec<u8>> {
    end_point_hash(stream.get_ref().1.peer_certificates()?.first()?)
}

fn handshake_error(error: io::Error) -> ConnectError {
    match error.downcast::<rustls::Error>() {
        Ok(error) => ConnectError::Tls(error),
        Err(error) => ConnectError::TlsIo(error),
    }
}

fn configuration(problem: String) -> ConnectError {
    ConnectError::TlsConfiguration { problem }
}

/// The name for SNI, or an address when the host has none that could be sent. Checking the name is
/// [`ServerVerifier`]'s.
fn server_name(host: &HostSpec) -> ServerName<'static> {
    let name = host.name.clone().and_then(|name| ServerName::try_from(name).ok());
    let address = match &host.address {
        HostAddress::Ip(address) => *address,
        HostAddress::Name(_) | HostAddress::UnixDirectory(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
    };
    name.unwrap_or_else(|| ServerName::IpAddress(address.into()))
}

/// Checks the server's certificate as far as `sslmode` and the certificates at hand say.
#[derive(Debug)]
struct ServerVerifier {
    algorithms: WebPkiSupportedAlgorithms,
    chain: Option<Chain>,
    /// The host name to check, `sslmode=verify-full`.
    name: Option<String>,
}

#[derive(Debug)]
struct Chain {
    webpki: Arc<WebPkiServerVerifier>,
    trusted: Vec<CertificateDer<'static>>,
    /// Whether revocation lists are given, which only webpki reads.
    has_crls: bool,
}

impl ServerVerifier {
    fn new(
        options: &TlsOptions,
        host: &HostSpec,
        provider: &Arc<CryptoProvider>,
        files: &Files,
    ) -> Result<ServerVerifier, ConnectError> {
        let trusted = trusted_certificates(options, files)?;
        let name = match (options.mode, &host.name) {
            (SslMode::VerifyFull, None) => {
                let problem = "host name must be specified for a verified SSL connection";
                return Err(configuration(problem.to_owned()));
            }
            (SslMode::VerifyFull, Some(name)) => Some(name.clone()),
            _ => None,
        };
        let chain = trusted.map(|trusted| Chain::new(trusted, options, provider, files)).transpose()?;
        Ok(ServerVerifier { algorithms: provider.signature_verification_algorithms, chain, name })
    }
}

impl Chain {
    fn new(
        trusted: Vec<CertificateDer<'static>>,
        options: &TlsOptions,
        provider: &Arc<CryptoProvider>,
        files: &Files,
    ) -> Result<Chain, ConnectError> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(trusted.iter().cloned());
        let crls = revocation_lists(options, files)?;
        let has_crls = !crls.is_empty();
        let builder =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone()).with_crls(crls);
        let webpki = builder.build().map_err(|error| {
            configuration(format!("could not use root certificates or revocation lists: {error}"))
        })?;
        Ok(Chain { webpki, trusted, has_crls })
    }

    fn check(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        // webpki refuses a CA's certificate as a server's. When exactly this one is trusted, nobody else's
        // signature matters.
        if self.trusted.iter().any(|trusted| trusted.as_ref() == certificate.as_ref()) {
            return check_dates(&parse(certificate)?, now);
        }
        if parse(certificate)?.version() == X509Version::V1 && !self.has_crls {
            return version_1::check(certificate, &self.trusted, now);
        }
        // The name is checked later by libpq's rules, so any will do and its mismatch is no fault.
        let name = ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into());
        match self.webpki.verify_server_cert(certificate, intermediates, &name, &[], now) {
            Ok(_) => Ok(()),
            Err(rustls::Error::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Some(chain) = &self.chain {
            chain.check(end_entity, intermediates, now)?;
        }
        if let Some(name) = &self.name {
            check_name(end_entity, name)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        // By the key alone: webpki would not even parse a certificate of version 1.
        let certificate = parse(cert)?;
        let key = SubjectPublicKeyInfoDer::from(certificate.public_key().raw);
        verify_tls13_signature_with_raw_key(message, &key, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// PG: `pgtls_verify_peer_name_matches_certificate_guts`: alternative names first, and the common name if there is
/// none of the host's kind.
fn check_name(certificate: &CertificateDer<'_>, host: &str) -> Result<(), rustls::Error> {
    let certificate = parse(certificate)?;
    let address = host.parse::<std::net::IpAddr>().ok();
    let alternatives = certificate.subject_alternative_name().map_err(|_| CertificateError::BadEncoding)?;
    let alternatives = alternatives.map(|extension| &extension.value.general_names[..]).unwrap_or_default();
    let same_kind = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(_) => address.is_none(),
        GeneralName::IPAddress(_) => address.is_some(),
        _ => false,
    };
    let matches = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => name_matches(name, host),
        GeneralName::IPAddress(bytes) => address.is_some_and(|address| address_matches(bytes, address)),
        _ => false,
    };
    let by_common_name = || {
        let name = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        name.is_some_and(|name| name_matches(name, host))
    };
    if alternatives.iter().any(matches) || !alternatives.iter().any(same_kind) && by_common_name() {
        return Ok(());
    }
    Err(CertificateError::NotValidForName.into())
}

fn address_matches(bytes: &[u8], address: std::net::IpAddr) -> bool {
    match address {
        std::net::IpAddr::V4(address) => bytes == address.octets(),
        std::net::IpAddr::V6(address) => bytes == address.octets(),
    }
}

/// PG: `wildcard_certificate_match`: `*.` stands for one label, nothing else is special.
fn name_matches(pattern: &str, host: &str) -> bool {
    if pattern.eq_ignore_ascii_case(host) {
        return true;
    }
    match (pattern.strip_prefix("*."), host.split_once('.')) {
        (Some(suffix), Some((label, rest))) => {
            !suffix.is_empty() && !label.is_empty() && suffix.eq_ignore_ascii_case(rest)
        }
        _ => false,
    }
}

/// `None` if nothing is to be checked.
fn trusted_certificates(
    options: &TlsOptions,
    files: &Files,
) -> Result<Option<Vec<CertificateDer<'static>>>, ConnectError> {
    let advice = "either provide the file, use the system's trusted roots with sslrootcert=system, or change \
                  sslmode to disable server certificate verification";
    let path = match &options.root_cert {
        Some(RootCert::System) => return system_certificates(files).map(Some),
        Some(RootCert::File(path)) => path,
        None if options.mode >= SslMode::VerifyCa => {
            let problem = format!("could not get home directory to locate root certificate file; {advice}");
            return Err(configuration(problem));
        }
        None => return Ok(None),
    };
    let unreadable = |reason: String| {
        configuration(format!("could not read root certificate file \"{}\": {reason}", path.display()))
    };
    // One in a directory that may not be entered counts as none.
    if !files.is_there("root certificate file", path) {
        if options.mode >= SslMode::VerifyCa {
            let path = path.display();
            return Err(configuration(format!("root certificate file \"{path}\" does not exist; {advice}")));
        }
        return Ok(None);
    }
    let text = files.read("root certificate file", path).map_err(|error| unreadable(error.to_string()))?;
    let certificates = CertificateDer::pem_slice_iter(&text).collect::<Result<Vec<_>, _>>();
    match certificates.map_err(|error| unreadable(error.to_string()))? {
        none if none.is_empty() => Err(unreadable("no certificate in it".to_owned())),
        certificates => Ok(Some(certificates)),
    }
}

fn system_certificates(files: &Files) -> Result<Vec<CertificateDer<'static>>, ConnectError> {
    files.at("the system's root certificates");
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let reason = found.errors.first().map_or_else(|| "there are none".to_owned(), ToString::to_string);
        return Err(configuration(format!("could not load system root certificate paths: {reason}")));
    }
    Ok(found.certs)
}

fn revocation_lists(
    options: &TlsOptions,
    files: &Files,
) -> Result<Vec<CertificateRevocationListDer<'static>>, ConnectError> {
    let mut lists = Vec::new();
    if let Some(path) = options.crl.as_ref().filter(|path| files.is_there("revocation list", path)) {
        lists.extend(revocation_lists_in(path, files)?);
    }
    if let Some(dir) = &options.crl_dir {
        let unreadable = |reason: String| {
            configuration(format!("could not read revocation list directory \"{}\": {reason}", dir.display()))
        };
        files.at(&format!("revocation list directory \"{}\"", dir.display()));
        let entries = std::fs::read_dir(dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let entries = entries.map_err(|error| unreadable(error.to_string()))?;
        let before = lists.len();
        for entry in entries.iter().filter(|entry| is_hashed_list(&entry.file_name())) {
            lists.extend(revocation_lists_in(&entry.path(), files)?);
        }
        if lists.len() == before {
            // With OpenSSL no certificate would do then.
            return Err(unreadable("there is no list in it named as by \"openssl rehash\"".to_owned()));
        }
    }
    Ok(lists)
}

fn revocation_lists_in(
    path: &Path,
    files: &Files,
) -> Result<Vec<CertificateRevocationListDer<'static>>, ConnectError> {
    let unreadable = |reason: String| {
        configuration(format!("could not read revocation list \"{}\": {reason}", path.display()))
    };
    let text = files.read("revocation list", path).map_err(|error| unreadable(error.to_string()))?;
    CertificateRevocationListDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|error| unreadable(error.to_string()))
}

/// `0123abcd.r0`: the issuer's hash, and a number.
fn is_hashed_list(name: &std::ffi::OsStr) -> bool {
    let parts = name.to_str().and_then(|name| name.split_once(".r"));
    parts.is_some_and(|(hash, number)| {
        let is_hash = hash.len() == 8 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
        is_hash && !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
    })
}

/// Our certificate, if we have one, and whether the server asked.
#[derive(Debug)]
struct ClientCertificate {
    certified: Option<Arc<CertifiedKey>>,
    asked: AtomicBool,
}

impl ClientCertificate {
    fn load(
        options: &TlsOptions,
        provider: &CryptoProvider,
        files: &Files,
    ) -> Result<ClientCertificate, ConnectError> {
        let certified = match (options.cert_mode, &options.cert) {
            (SslCertMode::Allow | SslCertMode::Require, Some(path)) => {
                load_certified(path, options, provider, files)?
            }
            _ => None,
        };
        Ok(ClientCertificate { certified: certified.map(Arc::new), asked: AtomicBool::new(false) })
    }
}

impl rustls::client::ResolvesClientCert for ClientCertificate {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.asked.store(true, Ordering::Relaxed);
        self.certified.clone()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn load_certified(
    path: &Path,
    options: &TlsOptions,
    provider: &CryptoProvider,
    files: &Files,
) -> Result<Option<CertifiedKey>, ConnectError> {
    let unreadable = |reason: String| {
        configuration(format!("could not read certificate file \"{}\": {reason}", path.display()))
    };
    let text = files.read_if_present("certificate file", path);
    let Some(text) = text.map_err(|error| unreadable(error.to_string()))? else {
        return Ok(None);
    };
    let chain = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| unreadable(error.to_string()))?;
    if chain.is_empty() {
        return Err(unreadable("no certificate in it".to_owned()));
    }
    let Some(key_path) = &options.key else {
        let problem = format!("certificate present, but no private key for \"{}\"", path.display());
        return Err(configuration(problem));
    };
    let key = load_key(key_path, options.key_password.as_ref(), files)?;
    let certified = certified_key(chain, key, provider).map_err(|error| {
        let key_path = key_path.display();
        configuration(format!("could not load private key file \"{key_path}\": {error}"))
    })?;
    Ok(Some(certified))
}

/// PG: the checks of `initialize_SSL`; root may share its keys with a group.
fn load_key(
    path: &Path,
    password: Option<&Secret>,
    files: &Files,
) -> Result<PrivateKeyDer<'static>, ConnectError> {
    let shown = path.display();
    let unreadable =
        |reason: String| configuration(format!("could not load private key file \"{shown}\": {reason}"));
    files.at(&format!("private key file \"{shown}\""));
    let metadata = std::fs::metadata(path).map_err(|error| unreadable(error.to_string()))?;
    if !metadata.is_file() {
        return Err(configuration(format!("private key file \"{shown}\" is not a regular file")));
    }
    let shared = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    if metadata.mode() & shared != 0 {
        return Err(configuration(format!(
            "private key file \"{shown}\" has group or world access; file must have permissions u=rw (0600) or less \
             if owned by the current user, or permissions u=rw,g=r (0640) or less if owned by root"
        )));
    }
    let text = files.read("private key file", path).map_err(|error| unreadable(error.to_string()))?;
    key::parse(&text, password).map_err(unreadable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_match_by_libpqs_rules() {
        for (pattern, host, matches) in [
            ("db.example.com", "db.example.com", true),
            ("DB.example.com", "db.EXAMPLE.com", true),
            ("db.example.com", "db2.example.com", false),
            ("*.example.com", "db.example.com", true),
            ("*.example.com", "a.db.example.com", false),
            ("*.example.com", "example.com", false),
            ("*.example.com", ".example.com", false),
            ("d*.example.com", "db.example.com", false),
            ("*", "db", false),
            ("*.", "db.", false),
        ] {
            assert_eq!(name_matches(pattern, host), matches, "{pattern} {host}");
        }
    }
}
