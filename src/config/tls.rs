//! `--ssl-*`: which go together.

use super::cli::{Settings, Switch};
use super::{ConfigError, value};
use crate::conninfo::TlsVersion;
use crate::wire::TlsFiles;

/// TLS is on when there are a certificate and its key.
pub(super) fn files(settings: &Settings) -> Result<Option<TlsFiles>, ConfigError> {
    let needs = |name, other: &str| Err(value(name, &format!("needs --{other}")));
    let min_version = version("ssl-min-protocol-version", settings.ssl_min_protocol_version.as_deref())?;
    let max_version = version("ssl-max-protocol-version", settings.ssl_max_protocol_version.as_deref())?;
    let (min_version, max_version) =
        (min_version.unwrap_or(TlsVersion::V12), max_version.unwrap_or(TlsVersion::V13));
    if max_version < min_version {
        return Err(value("ssl-max-protocol-version", &"is older than --ssl-min-protocol-version"));
    }
    let (ca, crl) = (settings.ssl_ca_file.clone(), settings.ssl_crl_file.clone());
    if crl.is_some() && ca.is_none() {
        return needs("ssl-crl-file", "ssl-ca-file");
    }
    if settings.http_ssl == Some(Switch::On) && settings.ssl_cert_file.is_none() {
        return needs("http-ssl", "ssl-cert-file");
    }
    match (settings.ssl_cert_file.clone(), settings.ssl_key_file.clone()) {
        (Some(cert), Some(key)) => Ok(Some(TlsFiles { cert, key, ca, crl, min_version, max_version })),
        (Some(_), None) => needs("ssl-cert-file", "ssl-key-file"),
        (None, Some(_)) => needs("ssl-key-file", "ssl-cert-file"),
        (None, None) if ca.is_some() => needs("ssl-ca-file", "ssl-cert-file"),
        (None, None) => Ok(None),
    }
}

fn version(name: &'static str, given: Option<&str>) -> Result<Option<TlsVersion>, ConfigError> {
    match given {
        None => Ok(None),
        Some(text) if text.eq_ignore_ascii_case("TLSv1.2") => Ok(Some(TlsVersion::V12)),
        Some(text) if text.eq_ignore_ascii_case("TLSv1.3") => Ok(Some(TlsVersion::V13)),
        Some(text) => Err(value(name, &format!("\"{text}\" is not known, expected TLSv1.2 or TLSv1.3"))),
    }
}
