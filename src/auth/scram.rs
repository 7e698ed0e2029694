//! SCRAM-SHA-256 and SCRAM-SHA-256-PLUS (RFC 5802, RFC 7677) as PostgreSQL speaks them.
//!
//! [`client`] and [`server`] are two state machines without I/O: the caller carries the messages between SASL
//! frames and them. Here is what both share: keys, stored verifiers, the attribute grammar.
//!
//! PG: `scram-common.c`, `auth-scram.c`, `fe-auth-scram.c`.

use std::borrow::Cow;
use std::fmt;
use std::num::NonZeroU32;
use std::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

pub mod client;
pub mod server;

#[cfg(test)]
mod tests;

/// Mechanism without channel binding.
pub const SCRAM_SHA_256: &str = "SCRAM-SHA-256";
/// Mechanism bound to the TLS channel by the server's certificate (`tls-server-end-point`, RFC 5929).
pub const SCRAM_SHA_256_PLUS: &str = "SCRAM-SHA-256-PLUS";

/// Iterations for new verifiers (PG: `SCRAM_SHA_256_DEFAULT_ITERATIONS`).
pub const DEFAULT_ITERATIONS: NonZeroU32 = NonZeroU32::new(4096).unwrap();
/// Bytes of salt in new verifiers (PG: `SCRAM_DEFAULT_SALT_LEN`).
const SALT_LEN: usize = 16;
/// Random bytes behind a nonce, before base64 (PG: `SCRAM_RAW_NONCE_LEN`).
const RAW_NONCE_LEN: usize = 18;
/// gs2 header of a client that binds to the channel; base64 of it and the certificate hash is the `c` attribute.
const BINDING_HEADER: &[u8] = b"p=tls-server-end-point,,";

/// One of the 32-byte keys of an exchange. Its `Debug` shows nothing.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key([u8; 32]);

impl Key {
    /// The key with these bytes.
    pub const fn new(bytes: [u8; 32]) -> Key {
        Key(bytes)
    }

    /// The bytes. Secret: whoever has a ClientKey can log in.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// `H(key)`: StoredKey when this is ClientKey.
    fn hashed(&self) -> Key {
        Key(Sha256::digest(self.0).into())
    }

    fn hmac(&self, parts: &[&[u8]]) -> Key {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes keys of any length");
        parts.iter().for_each(|part| mac.update(part));
        Key(mac.finalize().into_bytes().into())
    }

    fn xor(&self, other: &Key) -> Key {
        Key(std::array::from_fn(|i| self.0[i] ^ other.0[i]))
    }

    fn ct_eq(&self, other: &Key) -> bool {
        self.0.ct_eq(&other.0).into()
    }

    fn from_base64(text: &[u8]) -> Option<Key> {
        BASE64.decode(text).ok()?.try_into().ok().map(Key)
    }

    fn to_base64(self) -> String {
        BASE64.encode(self.0)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// The two keys that stand for a password in one salt and iteration count.
///
/// Enough to log in as the user at any server that stores the same verifier (libpq 18: `scram_client_key` and
/// `scram_server_key`), so a server that has learnt them can forward a login.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Keys {
    /// What the client proves to have.
    pub client_key: Key,
    /// What the server proves to have.
    pub server_key: Key,
}

impl Keys {
    /// Keys of `password`, which goes through SASLprep. Costs `iterations` HMACs, milliseconds for the default.
    pub fn derive(password: &[u8], salt: &[u8], iterations: NonZeroU32) -> Keys {
        let mut salted = [0; 32];
        #[cfg(test)]
        DERIVED.with(|derived| derived.set(derived.get() + 1));
        pbkdf2::pbkdf2_hmac::<Sha256>(&saslprep(password), salt, iterations.get(), &mut salted);
        let salted = Key(salted);
        Keys { client_key: salted.hmac(&[b"Client Key"]), server_key: salted.hmac(&[b"Server Key"]) }
    }
}

#[cfg(test)]
thread_local! {
    static DERIVED: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
}

/// How many keys this thread has derived, which is what takes time.
#[cfg(test)]
pub(crate) fn derivations() -> u64 {
    DERIVED.with(std::cell::Cell::get)
}

/// What a server stores instead of the password: `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    iterations: NonZeroU32,
    salt: Vec<u8>,
    stored_key: Key,
    server_key: Key,
}

impl Verifier {
    /// The verifier of `password` with this salt.
    pub fn from_password(password: &[u8], salt: &[u8], iterations: NonZeroU32) -> Verifier {
        let keys = Keys::derive(password, salt, iterations);
        Verifier {
            iterations,
            salt: salt.to_vec(),
            stored_key: keys.client_key.hashed(),
            server_key: keys.server_key,
        }
    }

    /// A verifier of `password` with a random salt and the default iteration count.
    ///
    /// # Errors
    /// The operating system gave no random bytes.
    pub fn generate(password: &[u8]) -> Result<Verifier, getrandom::Error> {
        let mut salt = [0; SALT_LEN];
        getrandom::fill(&mut salt)?;
        Ok(Verifier::from_password(password, &salt, DEFAULT_ITERATIONS))
    }

    /// What it costs to derive the keys.
    pub fn iterations(&self) -> NonZeroU32 {
        self.iterations
    }

    /// Whether a password sent in clear text belongs to this verifier (PG: `scram_verify_plain_password`).
    pub fn matches_password(&self, password: &[u8]) -> bool {
        Keys::derive(password, &self.salt, self.iterations).server_key.ct_eq(&self.server_key)
    }
}

/// As stored in `pg_authid.rolpassword`; not a password, but not for logs either.
impl fmt::Display for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (salt, stored, server) =
            (BASE64.encode(&self.salt), self.stored_key.to_base64(), self.server_key.to_base64());
        write!(f, "{SCRAM_SHA_256}${}:{salt}${stored}:{server}", self.iterations)
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Verifier({SCRAM_SHA_256}${}:..)", self.iterations)
    }
}

/// A text that is no stored SCRAM-SHA-256 verifier. Carries nothing of the text, which may be a password.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("invalid SCRAM secret")]
pub struct ParseVerifierError;

impl FromStr for Verifier {
    type Err = ParseVerifierError;

    /// PG: `parse_scram_secret`.
    fn from_str(text: &str) -> Result<Verifier, ParseVerifierError> {
        parse_verifier(text).ok_or(ParseVerifierError)
    }
}

fn parse_verifier(text: &str) -> Option<Verifier> {
    let (iterations, rest) = text.strip_prefix(SCRAM_SHA_256)?.strip_prefix('$')?.split_once(':')?;
    let (salt, keys) = rest.split_once('$')?;
    let (stored_key, server_key) = keys.split_once(':')?;
    Some(Verifier {
        iterations: iterations.parse().ok()?,
        salt: BASE64.decode(salt).ok()?,
        stored_key: Key::from_base64(stored_key.as_bytes())?,
        server_key: Key::from_base64(server_key.as_bytes())?,
    })
}

/// What both sides sign: the three messages without the proof.
struct AuthMessage {
    client_first_bare: Vec<u8>,
    server_first: Vec<u8>,
    client_final_without_proof: Vec<u8>,
}

impl AuthMessage {
    /// ClientSignature with StoredKey, ServerSignature with ServerKey.
    fn sign(&self, key: &Key) -> Key {
        key.hmac(&[&self.client_first_bare, b",", &self.server_first, b",", &self.client_final_without_proof])
    }
}

/// The password as it enters the key derivation. What SASLprep cannot treat (no UTF-8, prohibited or unassigned
/// characters, nothing left) is used as it is, which PostgreSQL's two sides agree on.
fn saslprep(password: &[u8]) -> Cow<'_, [u8]> {
    let prepared = str::from_utf8(password).ok().and_then(|text| stringprep::saslprep(text).ok());
    match prepared {
        Some(text) if !text.is_empty() => Cow::Owned(text.into_owned().into_bytes()),
        _ => Cow::Borrowed(password),
    }
}

fn new_nonce() -> Result<String, getrandom::Error> {
    let mut raw = [0; RAW_NONCE_LEN];
    getrandom::fill(&mut raw)?;
    Ok(BASE64.encode(raw))
}

/// Printable ASCII except the comma (RFC 5802 `printable`).
fn is_printable(value: &[u8]) -> bool {
    value.iter().all(|byte| byte.is_ascii_graphic() && *byte != b',')
}

/// Cuts `input` at the first comma; the comma goes, and a missing one means the rest is empty.
fn cut_at_comma(input: &[u8]) -> (&[u8], &[u8]) {
    let end = input.iter().position(|byte| *byte == b',').unwrap_or(input.len());
    (&input[..end], input.get(end + 1..).unwrap_or_default())
}
