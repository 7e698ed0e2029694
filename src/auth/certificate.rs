//! What is read out of certificates: names for logins, the hash for channel binding
//! (PostgreSQL: `be-secure-openssl.c`).

mod names;

use sha2::{Digest, Sha256, Sha384, Sha512};
use x509_parser::asn1_rs::{Any, Tag, ToDer};
use x509_parser::prelude::{AttributeTypeAndValue, FromDer, X509Certificate, X509Name};

use names::short_name;

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
    /// Its number among those of who has issued it, in decimal; `None` if it has more than 38 digits.
    pub serial: Option<String>,
    /// Who has issued it, written like the name.
    pub issuer: String,
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
        // PG takes the bytes as they are (X509_NAME_get_text_by_NID).
        let common_name = first.and_then(|name| str::from_utf8(name.as_slice()).ok()).map(str::to_owned);
        if first.is_some_and(|name| name.as_slice().contains(&0)) {
            return Err(ClientCertificateError::EmbeddedNul);
        }
        Ok(ClientCertificate {
            common_name,
            distinguished_name: distinguished_name(subject),
            serial: Some(certificate.tbs_certificate.serial.to_string()).filter(|serial| serial.len() <= 38),
            issuer: distinguished_name(certificate.issuer()),
        })
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

/// One `type=value`, as OpenSSL prints it with `XN_FLAG_RFC2253`: of a type without a name, and of what is no text, the
/// whole encoding in hexadecimal.
fn type_and_value(attribute: &AttributeTypeAndValue<'_>) -> String {
    let oid = attribute.attr_type().to_id_string();
    let name = short_name(&oid);
    let text = name.and_then(|_| text(attribute.attr_value()));
    let value = text.map_or_else(|| format!("#{}", encoding(attribute.attr_value())), |text| escaped(&text));
    format!("{}={value}", name.unwrap_or(&oid))
}

/// The characters, with as many bytes each as OpenSSL takes for the string's type (its `ASN1_STRING_print_ex`).
fn text(value: &Any<'_>) -> Option<String> {
    let latin = || value.data.iter().copied().map(char::from).collect();
    match value.tag() {
        Tag::Utf8String => str::from_utf8(value.data).ok().map(str::to_owned),
        Tag::NumericString
        | Tag::PrintableString
        | Tag::T61String
        | Tag::Ia5String
        | Tag::UtcTime
        | Tag::GeneralizedTime
        | Tag::VisibleString => Some(latin()),
        Tag::BmpString => wide(value.data, |[high, low]| u32::from(u16::from_be_bytes([high, low]))),
        Tag::UniversalString => wide(value.data, u32::from_be_bytes),
        _ => None,
    }
}

fn wide<const N: usize>(data: &[u8], number: impl Fn([u8; N]) -> u32) -> Option<String> {
    let (characters, rest) = data.as_chunks::<N>();
    if rest.is_empty() {
        characters.iter().map(|&bytes| char::from_u32(number(bytes))).collect()
    } else {
        None
    }
}

fn encoding(value: &Any<'_>) -> String {
    let der = value.to_der_vec().unwrap_or_else(|_| value.data.to_vec());
    der.iter().map(|byte| format!("{byte:02X}")).collect()
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
    use rcgen::{CertificateParams, DistinguishedName, DnType, DnValue, KeyPair};

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

    /// As OpenSSL 3.0 prints them.
    #[test]
    fn every_kind_of_attribute_and_string_is_written_as_openssl_writes_it() {
        let check = |oid: &[u64], value: DnValue, expected: &str| {
            let mut params = CertificateParams::default();
            params.distinguished_name = DistinguishedName::new();
            params.distinguished_name.push(DnType::CustomDnType(oid.to_vec()), value);
            let certificate = params.self_signed(&KeyPair::generate().unwrap()).unwrap();
            let subject = ClientCertificate::parse(certificate.der()).unwrap();
            assert_eq!(subject.distinguished_name, expected);
        };
        let text = |text: &str| DnValue::Utf8String(text.to_owned());
        for (number, name) in [
            (13, "description"),
            (17, "postalCode"),
            (43, "initials"),
            (46, "dnQualifier"),
            (65, "pseudonym"),
            (44, "generationQualifier"),
            (97, "organizationIdentifier"),
        ] {
            check(&[2, 5, 4, number], text("DE"), &format!("{name}=DE"));
        }
        check(&[0, 9, 2342, 19200300, 100, 1, 44], text("x"), "uid=x");
        check(&[2, 3, 4, 5], text("xé"), "2.3.4.5=#0C0378C3A9");
        let wide = DnValue::BmpString("xé€".try_into().unwrap());
        check(&[2, 5, 4, 13], wide, "description=x\\C3\\A9\\E2\\82\\AC");
        check(&[2, 3, 4, 5], DnValue::BmpString("xé".try_into().unwrap()), "2.3.4.5=#1E04007800E9");
        let wide = DnValue::UniversalString("é".try_into().unwrap());
        check(&[2, 5, 4, 13], wide, "description=\\C3\\A9");
        check(&[2, 5, 4, 13], DnValue::TeletexString("a+b".try_into().unwrap()), "description=a\\+b");
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
