//! A certificate authority for tests, and clients that trust it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType, IsCa,
    KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber, date_time_ymd,
};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use crate::conninfo::TlsVersion;
use crate::wire::TlsFiles;

pub(crate) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    dir: tempfile::TempDir,
}

#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) der: CertificateDer<'static>,
    pem: String,
    key: Arc<KeyPair>,
}

impl Authority {
    /// Its own certificate is in `root.crt`; the server's, for `localhost`, in `server.crt` and `server.key`.
    pub(crate) fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "test authority");
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let authority = Authority { issuer, dir: crate::permissions::private_tempdir() };
        std::fs::write(authority.path("root.crt"), authority.issuer.pem()).unwrap();
        authority.install(&authority.issue("server", 1));
        authority
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn issue(&self, common_name: &str, serial: u64) -> Identity {
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Example");
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.serial_number = Some(SerialNumber::from(serial));
        let key = Arc::new(KeyPair::generate().unwrap());
        let certificate = params.signed_by(&*key, &self.issuer).unwrap();
        Identity { der: certificate.der().clone(), pem: certificate.pem(), key }
    }

    /// Makes it the server's.
    pub(crate) fn install(&self, identity: &Identity) {
        std::fs::write(self.path("server.crt"), &identity.pem).unwrap();
        write_key(&self.path("server.key"), &identity.key.serialize_pem());
    }

    /// `root.crl`, with these serial numbers.
    pub(crate) fn revoke(&self, serials: &[u64]) {
        let revoked = |&serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(serial),
            revocation_time: date_time_ymd(2024, 1, 1),
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2024, 1, 1),
            next_update: date_time_ymd(2999, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.issuer).unwrap();
        std::fs::write(self.path("root.crl"), list.pem().unwrap()).unwrap();
    }

    /// TLS without client certificates.
    pub(crate) fn files(&self) -> TlsFiles {
        TlsFiles {
            cert: self.path("server.crt"),
            key: self.path("server.key"),
            ca: None,
            crl: None,
            min_version: TlsVersion::V12,
            max_version: TlsVersion::V13,
        }
    }

    /// TLS with client certificates of this authority.
    pub(crate) fn files_with_ca(&self) -> TlsFiles {
        TlsFiles { ca: Some(self.path("root.crt")), ..self.files() }
    }

    /// A client that trusts this authority.
    pub(crate) fn client(&self) -> ClientTls<'_> {
        ClientTls { authority: self, identity: None, alpn: &[b"postgresql"], version: TlsVersion::V13 }
    }
}

fn write_key(path: &Path, pem: &str) {
    std::fs::write(path, pem).unwrap();
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
}

/// How a client shakes hands.
pub(crate) struct ClientTls<'a> {
    pub(crate) authority: &'a Authority,
    pub(crate) identity: Option<Identity>,
    pub(crate) alpn: &'static [&'static [u8]],
    pub(crate) version: TlsVersion,
}

impl ClientTls<'_> {
    pub(crate) fn connector(&self) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.issuer.der().clone()).unwrap();
        let version = if self.version == TlsVersion::V12 { &TLS12 } else { &TLS13 };
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_protocol_versions(&[version]).unwrap().with_root_certificates(roots);
        let mut config = match &self.identity {
            Some(identity) => {
                let key = PrivateKeyDer::try_from(identity.key.serialize_der()).unwrap();
                builder.with_client_auth_cert(vec![identity.der.clone()], key).unwrap()
            }
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols = self.alpn.iter().map(|name| name.to_vec()).collect();
        TlsConnector::from(Arc::new(config))
    }
}
