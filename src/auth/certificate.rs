//! What is read out of certificates: names for logins, the hash for channel binding
//! (PostgreSQL: `be-secure-openssl.c`).

use sha2::{Digest, Sha256, Sha384, Sha512};
use x509_parser::prelude::{AttributeTypeAndValue, FromDer, X509Certificate, X509Name};

/// The `tls-server-end-point` hash of a certificate (RFC 5929): by the hash of its signature, SHA-256 instead of
/// weaker ones. `None` for signatures without a hash of their own, such as Ed25519.
pub fn end_point_hash(der: &[u8]) -> Option<Vec<u8>> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    match certificate.signature_algorithm.algorithm.to_id_string().as_str() {
        // RSA with MD5, SHA-1, SHA-256; ECDSA with SHA-1, SHA-256.
        "1.2.840.113549.1.1.4"
        | "1.2.840.113549.1.1.5"
        | "1.2.840.113549.1.1.11"
        | "1.2.840.10045.4.1"
        | "1.2.840.10045.4.3.2" => Some(Sha256::digest(der).to_vec()),
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => Some(Sha384::digest(der).to_vec()),
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => Some(Sha512::digest(der).to_vec()),
        _ => None,
    }
}

/// The subject of a client's certificate, whose chain has been checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientCertificate {
    /// The first common name; `None` if there is none, or none that is text.
    pub common_name: Option<String>,
    /// The whole name as RFC 2253 writes it, last component first: `CN=standby,O=Example`.
    pub distinguished_name: String,
}

/// A certificate whose names cannot be trusted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ClientCertificateError {
    /// It is no X.509.
    #[error("client certificate cannot be parsed")]
    Malformed,
    /// A name that is longer than it looks to some.
    #[error("SSL certificate's common name contains embedded null")]
    EmbeddedNul,
}

impl ClientCertificate {
    /// Reads the subject.
    ///
    /// # Errors
    /// See [`ClientCertificateError`].
    pub fn parse(der: &[u8]) -> Result<ClientCertificate, ClientCertificateError> {
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|_| ClientCertificateError::Malformed)?;
        let subject = certificate.subject();
        let first = subject.iter_common_name().next();
        let common_name = first.and_then(|name| name.as_str().ok()).map(str::to_owned);
        if first.is_some_and(|name| name.as_slice().contains(&0)) {
            return Err(ClientCertificateError::EmbeddedNul);
        }
        Ok(ClientCertificate { common_name, distinguished_name: distinguished_name(subject) })
    }
}

/// Last component first; those that belong together are joined by `+`.
fn distinguished_name(subject: &X509Name<'_>) -> String {
    let mut text = String::new();
    let components: Vec<_> = subject.iter_rdn().collect();
    for component in components.into_iter().rev() {
        let attributes: Vec<_> = component.iter().collect();
        for (n, attribute) in attributes.into_iter().rev().enumerate() {
            let separator = if text.is_empty() {
                ""
            } else if n > 0 {
                "+"
            } else {
                ","
            };
            text.push_str(separator);
            text.push_str(&type_and_value(attribute));
        }
    }
    text
}

/// One `type=value`, as OpenSSL prints it with `XN_FLAG_RFC2253`.
fn type_and_value(attribute: &AttributeTypeAndValue<'_>) -> String {
    let oid = attribute.attr_type().to_id_string();
    match (short_name(&oid), attribute.as_str()) {
        (Some(name), Ok(value)) => format!("{name}={}", escaped(value)),
        _ => {
            let hex: String = attribute.as_slice().iter().map(|byte| format!("{byte:02X}")).collect();
            format!("{oid}=#{hex}")
        }
    }
}

fn short_name(oid: &str) -> Option<&'static str> {
    Some(match oid {
        "2.5.4.3" => "CN",
        "2.5.4.4" => "SN",
        "2.5.4.5" => "serialNumber",
        "2.5.4.6" => "C",
        "2.5.4.7" => "L",
        "2.5.4.8" => "ST",
        "2.5.4.9" => "street",
        "2.5.4.10" => "O",
        "2.5.4.11" => "OU",
        "2.5.4.12" => "title",
        "2.5.4.42" => "GN",
        "1.2.840.113549.1.9.1" => "emailAddress",
        "0.9.2342.19200300.100.1.1" => "UID",
        "0.9.2342.19200300.100.1.25" => "DC",
        _ => return None,
    })
}

/// RFC 2253 section 2.4; control characters and what is not ASCII as hexadecimal bytes, as OpenSSL does.
fn escaped(value: &str) -> String {
    let last = value.len().saturating_sub(1);
    let mut text = String::with_capacity(value.len());
    for (at, &byte) in value.as_bytes().iter().enumerate() {
        match byte {
            b',' | b'+' | b'"' | b'\\' | b'<' | b'>' | b';' => text.extend(['\\', char::from(byte)]),
            b'#' | b' ' if at == 0 => text.extend(['\\', char::from(byte)]),
            b' ' if at == last => text.push_str("\\ "),
            b' '..=b'~' => text.push(char::from(byte)),
            _ => text.push_str(&format!("\\{byte:02X}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};

    use super::*;

    fn subject(names: &[(DnType, &str)]) -> Result<ClientCertificate, ClientCertificateError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        for (kind, value) in names {
            params.distinguished_name.push(kind.clone(), *value);
        }
        let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
        ClientCertificate::parse(certificate.der())
    }

    #[test]
    fn names_are_written_as_openssl_writes_them() {
        let check = |names: &[(DnType, &str)], expected: &str| {
            assert_eq!(subject(names).unwrap().distinguished_name, expected);
        };
        let organization = DnType::OrganizationName;
        check(&[(organization.clone(), "Example"), (DnType::CommonName, "standby")], "CN=standby,O=Example");
        check(&[(DnType::CommonName, "a,b+c\\d ")], "CN=a\\,b\\+c\\\\d\\ ");
        check(&[(DnType::CommonName, "#ü")], "CN=\\#\\C3\\BC");
        check(&[(organization, "only")], "O=only");
        check(&[], "");
    }

    #[test]
    fn a_common_name_may_be_missing_and_hides_nothing() {
        assert_eq!(subject(&[]).unwrap().common_name, None);
        assert_eq!(subject(&[(DnType::CommonName, "rep")]).unwrap().common_name.as_deref(), Some("rep"));
        let hiding = subject(&[(DnType::CommonName, "rep\0.evil")]);
        assert_eq!(hiding, Err(ClientCertificateError::EmbeddedNul));
        assert_eq!(ClientCertificate::parse(b"nonsense"), Err(ClientCertificateError::Malformed));
    }
}
