//! Certificates for TLS.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DistinguishedName, DnType, IsCa, KeyPair,
    KeyUsagePurpose,
};

use crate::account;
use crate::scratch::Scratch;

/// An authority of its own, in a directory of its own: `root.crt` is its certificate, `server.crt` and `server.key`
/// are for a server named `localhost`.
#[derive(Debug)]
pub struct Certificates {
    issuer: CertifiedIssuer<'static, KeyPair>,
    scratch: Scratch,
}

impl Certificates {
    /// Makes the authority and the server's certificate.
    pub fn new() -> Certificates {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, "test authority");
        let key = KeyPair::generate().expect("keys can be made");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("the parameters are valid");
        let certificates = Certificates { issuer, scratch: Scratch::new("certificates") };
        certificates.write("root.crt", &certificates.issuer.pem(), 0o644);
        certificates.renew();
        certificates
    }

    /// Gives the server another certificate and key, from the same authority.
    pub fn renew(&self) {
        let key = self.issue("server", &["localhost"]);
        // The relay runs as ourselves.
        self.write("server.key", &key, 0o600);
    }

    /// Makes `NAME.crt` and `NAME.key` for a client; the common name is the name.
    pub fn client(&self, name: &str) {
        let key = self.issue(name, &[]);
        self.write(&format!("{name}.key"), &key, 0o600);
        account::give(&self.scratch.join(&format!("{name}.key"))).expect("root may give files away");
    }

    /// Path of one of the files.
    pub fn file(&self, name: &str) -> String {
        self.scratch.join(name).display().to_string()
    }

    fn issue(&self, name: &str, hosts: &[&str]) -> String {
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut params = CertificateParams::new(hosts).expect("the names are valid");
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("keys can be made");
        let certificate = params.signed_by(&key, &self.issuer).expect("the parameters are valid");
        self.write(&format!("{name}.crt"), &certificate.pem(), 0o644);
        key.serialize_pem()
    }

    fn write(&self, name: &str, pem: &str, mode: u32) {
        let path = self.scratch.join(name);
        fs::write(&path, pem).expect("the directory is ours");
        fs::set_permissions(&path, Permissions::from_mode(mode)).expect("the file is ours");
    }
}

impl Default for Certificates {
    fn default() -> Certificates {
        Certificates::new()
    }
}
