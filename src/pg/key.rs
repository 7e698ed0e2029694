//! Private keys in the forms that OpenSSL reads for libpq: PEM, also with a passphrase, and DER.

use base64::Engine;
use pkcs8::EncryptedPrivateKeyInfoRef;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;

use crate::conninfo::Secret;

const BEGIN: &str = "-----BEGIN ENCRYPTED PRIVATE KEY-----";
const END: &str = "-----END ENCRYPTED PRIVATE KEY-----";
/// How a key gets into a form that is read here.
const CONVERT: &str = "convert it with: openssl pkcs8 -topk8 -v2 aes-256-cbc -in OLD -out NEW";

/// A key from a file's content; `password` is `sslpassword`.
///
/// # Errors
/// What is wrong, with what to do about it where that is known.
pub(super) fn parse(content: &[u8], password: Option<&Secret>) -> Result<PrivateKeyDer<'static>, String> {
    let Ok(text) = std::str::from_utf8(content) else { return from_der(content) };
    if let Some(encrypted) = text.split_once(BEGIN).and_then(|(_, rest)| rest.split_once(END)) {
        return decrypt(encrypted.0, password);
    }
    if text.contains("Proc-Type: 4,ENCRYPTED") {
        return Err(format!("it is encrypted in the old form of OpenSSL, which is not read here; {CONVERT}"));
    }
    match text.contains("-----BEGIN ") {
        true => PrivateKeyDer::from_pem_slice(content).map_err(|error| error.to_string()),
        false => from_der(content),
    }
}

fn from_der(content: &[u8]) -> Result<PrivateKeyDer<'static>, String> {
    let key = PrivateKeyDer::try_from(content).map(|key| key.clone_key());
    key.map_err(|_| "it is neither a PEM nor a DER file with a private key".to_owned())
}

/// PKCS #8 with PBES2 (RFC 8018).
fn decrypt(base64: &str, password: Option<&Secret>) -> Result<PrivateKeyDer<'static>, String> {
    let Some(password) = password else {
        return Err("it has a passphrase; give it with sslpassword".to_owned());
    };
    let text: String = base64.split_ascii_whitespace().collect();
    let der = base64::engine::general_purpose::STANDARD.decode(text).map_err(|error| error.to_string())?;
    let encrypted = EncryptedPrivateKeyInfoRef::try_from(&der[..])
        .map_err(|error| format!("it is encrypted in a way that is not read here ({error}); {CONVERT}"))?;
    let opened = encrypted.decrypt(password.expose());
    let opened = opened.map_err(|error| format!("it cannot be decrypted with sslpassword: {error}"))?;
    from_der(opened.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    // openssl ecparam -name prime256v1 -genkey -noout | openssl pkcs8 -topk8 ...
    const PLAIN: &str = include_str!("testdata/key.pem");
    // ... -v2 aes-256-cbc -passout pass:hush
    const AES: &str = include_str!("testdata/key-aes.pem");
    // ... -v2 des3 -v2prf hmacWithSHA1 -passout pass:hush, what OpenSSL 1.0 made
    const DES3: &str = include_str!("testdata/key-des3.pem");
    // openssl ec -aes256 -passout pass:hush
    const OLD: &str = include_str!("testdata/key-old.pem");

    fn parsed(content: &[u8], password: &str) -> Result<Vec<u8>, String> {
        parse(content, Some(&Secret::new(password))).map(|key| key.secret_der().to_vec())
    }

    #[test]
    fn keys_are_read_in_every_form() {
        let plain = parse(PLAIN.as_bytes(), None).unwrap();
        let der = plain.secret_der().to_vec();
        assert_eq!(parsed(&der, "not needed"), Ok(der.clone()));
        for encrypted in [AES, DES3] {
            assert_eq!(parsed(encrypted.as_bytes(), "hush"), Ok(der.clone()));
            let before = format!("Bag Attributes: <No Attributes>\r\n{encrypted}");
            assert_eq!(parsed(before.replace('\n', "\r\n").as_bytes(), "hush"), Ok(der.clone()));
        }
    }

    #[test]
    fn what_cannot_be_read_says_why() {
        let why = |content: &[u8], password| parse(content, password).unwrap_err();
        assert!(why(AES.as_bytes(), None).contains("give it with sslpassword"));
        let wrong = Secret::new("wrong");
        assert!(why(AES.as_bytes(), Some(&wrong)).contains("cannot be decrypted with sslpassword"));
        assert!(why(OLD.as_bytes(), Some(&wrong)).contains("openssl pkcs8 -topk8"));
        assert!(why(b"\x30\x03\xff\xfe\xfd", None).contains("neither a PEM nor a DER"));
        assert!(why(b"", None).contains("neither a PEM nor a DER"));
        let cut = AES.replace('A', "!");
        assert!(!why(cut.as_bytes(), Some(&wrong)).is_empty());
    }
}
