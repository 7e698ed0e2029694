//! When the certificates and revocation lists end that the settings name: what shuts clients out, or the relay, at one moment.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, CertificateRevocationListDer};
use x509_parser::prelude::{CertificateRevocationList, FromDer};

use crate::archive::Place;
use crate::auth::version_1;
use crate::config::Config;
use crate::conninfo::SslMode;
use crate::status::CertificateEnd;

/// In a file with more trusted certificates than these some have always ended: those of a whole system.
const FEW: usize = 8;

/// What a file holds.
#[derive(Clone, Copy)]
enum Kind {
    /// A certificate, and those between it and the root: all have to be good.
    Chain,
    /// Certificates of which one has to be good.
    Trusted,
    /// Revoked certificates. A list that is over shuts out everybody.
    Revoked,
}

/// Reads the files. What cannot be read is left out: who needs it says so. Blocks.
pub(super) fn ends(config: &Config) -> Vec<CertificateEnd> {
    let file = |file: &str, kind, path: Option<&PathBuf>| {
        let path = path?;
        let ends_at = end_in(kind, path)?;
        Some(CertificateEnd {
            file: file.to_owned(),
            path: path.display().to_string(),
            ends_at: ends_at.into(),
        })
    };
    let mut found = Vec::new();
    if let Some(tls) = &config.tls {
        found.extend(file("cert", Kind::Chain, Some(&tls.cert)));
        found.extend(file("ca", Kind::Trusted, tls.ca.as_ref()));
        found.extend(file("crl", Kind::Revoked, tls.crl.as_ref()));
    }
    let upstream = &config.upstream.tls;
    if upstream.mode != SslMode::Disable {
        found.extend(file("upstream_cert", Kind::Chain, upstream.cert.as_ref()));
    }
    let targets = config.archive.iter().filter_map(|target| match &target.place {
        Place::Objects(place) => place.options.get("ca_file").map(PathBuf::from),
        _ => None,
    });
    let targets = targets.filter_map(|path| file("archive_ca", Kind::Trusted, Some(&path)));
    found.extend(targets.min_by_key(|end| end.ends_at));
    found
}

fn end_in(kind: Kind, path: &Path) -> Option<SystemTime> {
    let text = std::fs::read(path).ok()?;
    let certificates = || {
        let certificates = CertificateDer::pem_slice_iter(&text).filter_map(Result::ok);
        certificates.filter_map(|der| Some(version_1::parse(&der).ok()?.validity().not_after.timestamp()))
    };
    let seconds = match kind {
        Kind::Chain => certificates().min(),
        Kind::Trusted if certificates().count() > FEW => certificates().max(),
        Kind::Trusted => certificates().min(),
        Kind::Revoked => CertificateRevocationListDer::pem_slice_iter(&text)
            .filter_map(Result::ok)
            .filter_map(|der| {
                Some(CertificateRevocationList::from_der(&der).ok()?.1.next_update()?.timestamp())
            })
            .min(),
    }?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(u64::try_from(seconds).ok()?))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use clap::Parser;
    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, IsCa,
        KeyIdMethod, KeyPair, KeyUsagePurpose, SerialNumber, date_time_ymd,
    };

    use super::*;

    /// Good until the first of January.
    fn certificate(key: &KeyPair, year: i32) -> String {
        let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
        params.not_after = date_time_ymd(year, 1, 1);
        params.self_signed(key).unwrap().pem()
    }

    fn list(year: i32) -> String {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let list = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(year, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: Vec::new(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        list.signed_by(&issuer).unwrap().pem().unwrap()
    }

    fn year(end: &CertificateEnd) -> (String, String) {
        (end.file.clone(), end.ends_at.to_string()[..4].to_owned())
    }

    #[test]
    fn of_each_file_what_ends_first_is_known() {
        let (dir, key) = (crate::permissions::private_tempdir(), KeyPair::generate().unwrap());
        let put = |name: &str, text: String| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
            path.display().to_string()
        };
        let cert = put("cert", certificate(&key, 2090) + &certificate(&key, 2050));
        let ca = put("ca", certificate(&key, 2060));
        let own = put("own", certificate(&key, 2070));
        let secret = put("key", key.serialize_pem());
        let crl = put("crl", list(2040) + &list(2041));
        let upstream = format!("host=primary sslcert={own} sslkey={secret}");
        let data = dir.path().join("data").display().to_string();
        let cli = crate::config::Cli::try_parse_from([
            "walrelay",
            "--upstream",
            &upstream,
            "--data-dir",
            &data,
            "--ssl-cert-file",
            &cert,
            "--ssl-key-file",
            &secret,
            "--ssl-ca-file",
            &ca,
            "--ssl-crl-file",
            &crl,
        ]);
        let environment = crate::conninfo::Environment::of_user("tester");
        let config = Config::resolve(cli.unwrap(), &environment).unwrap();
        let found: Vec<_> = ends(&config).iter().map(year).collect();
        let expected = [("cert", "2050"), ("ca", "2060"), ("crl", "2040"), ("upstream_cert", "2070")];
        let expected = expected.map(|(file, year)| (file.to_owned(), year.to_owned()));
        assert_eq!(found, expected);
        // Of those of a whole system some have always ended.
        let many: String =
            (2001..2020).map(|year| certificate(&KeyPair::generate().unwrap(), year)).collect();
        put("ca", many);
        assert_eq!(year(&ends(&config)[1]), ("ca".to_owned(), "2019".to_owned()));
        put("ca", String::new());
        assert!(ends(&config).iter().all(|end| end.file != "ca"));
    }
}
