//! Certificates of X.509 version 1: what `openssl x509 -req` makes without extensions, as PostgreSQL's manual has had people do.
//!
//! webpki, which reads certificates for rustls, does not take them. OpenSSL does, so they are read here. Where they are to be
//! checked, a trusted certificate has to have issued them directly, and TLS has to be 1.3.

use tokio_rustls::rustls::crypto::CryptoProvider;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{CertificateError, Error, InconsistentKeys};
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate, X509Version};

/// A certificate to show, with its key.
///
/// # Errors
/// They do not belong together, or one of them cannot be read.
pub fn certified_key(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, Error> {
    match chain.first().map(parse) {
        Some(Ok(own)) if own.version() == X509Version::V1 => {
            let spki = own.public_key().raw.to_vec();
            let key = provider.key_provider.load_private_key(key)?;
            match key.public_key() {
                Some(of_key) if of_key.as_ref() != spki => Err(InconsistentKeys::KeyMismatch.into()),
                _ => Ok(CertifiedKey::new(chain, key)),
            }
        }
        _ => CertifiedKey::from_der(chain, key, provider),
    }
}

/// Whether the certificate is of version 1.
pub fn is_version_1(certificate: &CertificateDer<'_>) -> bool {
    parse(certificate).is_ok_and(|certificate| certificate.version() == X509Version::V1)
}

/// Issued by one of the trusted certificates itself, and both valid now.
///
/// # Errors
/// It cannot be read, is not valid now, or nobody who is trusted has issued it.
pub fn check(
    certificate: &CertificateDer<'_>,
    trusted: &[CertificateDer<'static>],
    now: UnixTime,
) -> Result<(), Error> {
    let certificate = parse(certificate)?;
    check_dates(&certificate, now)?;
    let issued = |issuer: &X509Certificate<'_>| {
        issuer.subject().as_raw() == certificate.issuer().as_raw()
            && (issuer.is_ca() || issuer.version() == X509Version::V1)
            && check_dates(issuer, now).is_ok()
            && certificate.verify_signature(Some(issuer.public_key())).is_ok()
    };
    let mut trusted = trusted.iter().filter_map(|trusted| parse(trusted).ok());
    if trusted.any(|issuer| issued(&issuer)) { Ok(()) } else { Err(CertificateError::UnknownIssuer.into()) }
}

/// Reads a certificate of whatever version.
///
/// # Errors
/// It is none.
pub fn parse<'a>(certificate: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Error> {
    match X509Certificate::from_der(certificate) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(CertificateError::BadEncoding.into()),
    }
}

/// Whether a certificate is valid now.
///
/// # Errors
/// Not yet, or no more.
pub fn check_dates(certificate: &X509Certificate<'_>, now: UnixTime) -> Result<(), Error> {
    let now = i64::try_from(now.as_secs()).ok().and_then(|now| ASN1Time::from_timestamp(now).ok());
    let now = now.ok_or(CertificateError::BadEncoding)?;
    if now < certificate.validity().not_before {
        return Err(CertificateError::NotValidYet.into());
    }
    if now > certificate.validity().not_after {
        return Err(CertificateError::Expired.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio_rustls::rustls::crypto::ring;
    use tokio_rustls::rustls::pki_types::pem::PemObject;

    use super::*;

    const ROOT: &str = include_str!("../../tests/kit/version-1/root.crt");
    const SERVER: &str = include_str!("../../tests/kit/version-1/server.crt");
    const KEY: &str = include_str!("../../tests/kit/version-1/server.key");
    const OTHER_KEY: &str = include_str!("../../tests/kit/version-1/client.key");

    fn certificate(pem: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
    }

    #[test]
    fn a_certificate_goes_with_its_key_only() {
        let certified = |pem: &str| {
            let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).unwrap();
            certified_key(vec![certificate(SERVER)], key, &ring::default_provider())
        };
        assert!(is_version_1(&certificate(SERVER)) && !is_version_1(&certificate(ROOT)));
        assert!(certified(KEY).is_ok());
        assert_eq!(certified(OTHER_KEY).unwrap_err(), InconsistentKeys::KeyMismatch.into());
    }

    #[test]
    fn one_is_trusted_that_a_trusted_one_has_issued() {
        let (own, root) = (certificate(SERVER), certificate(ROOT));
        let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let now = u64::try_from(parse(&own).unwrap().validity().not_before.timestamp()).unwrap() + 1;
        assert_eq!(check(&own, std::slice::from_ref(&root), at(now)), Ok(()));
        assert_eq!(check(&own, &[], at(now)), Err(CertificateError::UnknownIssuer.into()));
        assert_eq!(
            check(&own, std::slice::from_ref(&own), at(now)),
            Err(CertificateError::UnknownIssuer.into())
        );
        assert_eq!(
            check(&own, std::slice::from_ref(&root), at(0)),
            Err(CertificateError::NotValidYet.into())
        );
    }
}
