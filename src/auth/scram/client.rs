//! The side that logs in (PG: `fe-auth-scram.c`).
//!
//! ```text
//! ScramClient::new --message()--> server --server_first()--> ClientProved --server_final()--> Keys
//! ```

use std::num::NonZeroU32;

use super::{AuthMessage, BASE64, BINDING_HEADER, Key, Keys, cut_at_comma, is_printable, new_nonce};
use base64::Engine;

/// Most iterations a server may ask of us: seconds of work. PostgreSQL's `scram_iterations` has no such limit,
/// but a hostile server must not keep us busy for hours.
pub const MAX_ITERATIONS: u32 = 10_000_000;

/// What the client says about channel binding, its gs2 flag.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ClientBinding {
    /// `n`: not supported or switched off.
    Unsupported,
    /// `y`: over TLS, and supported here, but the server did not offer SCRAM-SHA-256-PLUS. A server that did offer
    /// it sees that somebody in the middle removed the offer.
    NotOffered,
    /// `p=tls-server-end-point`: bound to the hash of the server's certificate.
    ServerEndPoint(Vec<u8>),
}

impl ClientBinding {
    fn gs2_header(&self) -> &'static [u8] {
        match self {
            ClientBinding::Unsupported => b"n,,",
            ClientBinding::NotOffered => b"y,,",
            ClientBinding::ServerEndPoint(_) => BINDING_HEADER,
        }
    }

    fn attribute(&self) -> String {
        let mut input = self.gs2_header().to_vec();
        if let ClientBinding::ServerEndPoint(hash) = self {
            input.extend_from_slice(hash);
        }
        BASE64.encode(input)
    }
}

/// What the client knows.
#[derive(Clone)]
pub enum ClientSecret {
    /// The password as typed.
    Password(Vec<u8>),
    /// Keys learnt from an earlier exchange with a server that stores the same verifier.
    Keys(Keys),
}

/// Why the client gives up on the server. Texts as libpq's.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ClientError {
    /// No message where one must be.
    #[error("malformed SCRAM message (empty message)")]
    Empty,
    /// An attribute is missing or misplaced.
    #[error("malformed SCRAM message (attribute \"{attribute}\" expected)")]
    AttributeExpected {
        /// Its letter.
        attribute: char,
    },
    /// An attribute without `=`.
    #[error("malformed SCRAM message (expected character \"=\" for attribute \"{attribute}\")")]
    EqualsExpected {
        /// Its letter.
        attribute: char,
    },
    /// The server's nonce does not continue ours.
    #[error("invalid SCRAM response (nonce mismatch)")]
    NonceMismatch,
    /// The salt is not base64.
    #[error("malformed SCRAM message (invalid salt)")]
    InvalidSalt,
    /// The iteration count is not a number from 1 up.
    #[error("malformed SCRAM message (invalid iteration count)")]
    InvalidIterations,
    /// More iterations than [`MAX_ITERATIONS`].
    #[error("server asks for {iterations} SCRAM iterations, more than the {MAX_ITERATIONS} allowed")]
    TooManyIterations {
        /// What it asked for.
        iterations: u32,
    },
    /// Bytes after the last attribute of server-first-message.
    #[error("malformed SCRAM message (garbage at end of server-first-message)")]
    GarbageAfterFirst,
    /// Bytes after the last attribute of server-final-message.
    #[error("malformed SCRAM message (garbage at end of server-final-message)")]
    GarbageAfterFinal,
    /// The `v` attribute is not 32 bytes in base64.
    #[error("malformed SCRAM message (invalid server signature)")]
    InvalidSignature,
    /// The server does not know the verifier: not the server it claims to be.
    #[error("incorrect server signature")]
    WrongSignature,
    /// An `e` attribute.
    #[error("error received from server in SCRAM exchange: {text}")]
    Server {
        /// The error name of RFC 5802, printable.
        text: String,
    },
    /// The operating system gave no random bytes.
    #[error("could not generate nonce: {0}")]
    Random(getrandom::Error),
}

/// First state: client-first-message is made.
pub struct ScramClient {
    secret: ClientSecret,
    binding: ClientBinding,
    nonce: String,
    first_bare: Vec<u8>,
}

impl ScramClient {
    /// Starts an exchange with a fresh nonce.
    ///
    /// # Errors
    /// [`ClientError::Random`].
    pub fn new(secret: ClientSecret, binding: ClientBinding) -> Result<ScramClient, ClientError> {
        let nonce = new_nonce().map_err(ClientError::Random)?;
        Ok(ScramClient::with_nonce(secret, binding, "", nonce))
    }

    /// The user name stays empty in a real exchange: PostgreSQL takes it from the start-up packet.
    pub(super) fn with_nonce(
        secret: ClientSecret,
        binding: ClientBinding,
        user: &str,
        nonce: String,
    ) -> ScramClient {
        let first_bare = format!("n={user},r={nonce}").into_bytes();
        ScramClient { secret, binding, nonce, first_bare }
    }

    /// client-first-message, the initial response of SASLInitialResponse.
    pub fn message(&self) -> Vec<u8> {
        [self.binding.gs2_header(), &self.first_bare].concat()
    }

    /// Takes server-first-message (AuthenticationSASLContinue). With a password this costs as many HMACs as the
    /// server asks for, at most [`MAX_ITERATIONS`].
    ///
    /// # Errors
    /// The message is malformed or not an answer to ours.
    pub fn server_first(self, message: &[u8]) -> Result<ClientProved, ClientError> {
        let challenge = Challenge::parse(message, &self.nonce)?;
        let keys = match &self.secret {
            ClientSecret::Password(password) => Keys::derive(password, &challenge.salt, challenge.iterations),
            ClientSecret::Keys(keys) => *keys,
        };
        let without_proof = format!("c={},r={}", self.binding.attribute(), challenge.nonce);
        let auth = AuthMessage {
            client_first_bare: self.first_bare,
            server_first: message.to_vec(),
            client_final_without_proof: without_proof.into_bytes(),
        };
        Ok(ClientProved { keys, auth })
    }
}

/// Second state: the password is proved to the server, the server has yet to prove itself.
pub struct ClientProved {
    keys: Keys,
    auth: AuthMessage,
}

impl ClientProved {
    /// client-final-message, the body of SASLResponse.
    pub fn message(&self) -> Vec<u8> {
        let signature = self.auth.sign(&self.keys.client_key.hashed());
        let proof = self.keys.client_key.xor(&signature).to_base64();
        [&self.auth.client_final_without_proof[..], b",p=", proof.as_bytes()].concat()
    }

    /// Takes server-final-message (AuthenticationSASLFinal). Only after this returned `Ok` is the server known to
    /// be genuine; AuthenticationOk before it must be refused.
    ///
    /// # Errors
    /// The message is malformed, carries an error, or its signature is wrong.
    pub fn server_final(self, message: &[u8]) -> Result<Keys, ClientError> {
        if message.is_empty() {
            return Err(ClientError::Empty);
        }
        if message[0] == b'e' {
            let (text, _) = read_attribute(message, 'e')?;
            let text = String::from_utf8_lossy(text).chars().filter(|c| !c.is_control()).collect();
            return Err(ClientError::Server { text });
        }
        let (signature, rest) = read_attribute(message, 'v')?;
        if !rest.is_empty() {
            return Err(ClientError::GarbageAfterFinal);
        }
        let signature = Key::from_base64(signature).ok_or(ClientError::InvalidSignature)?;
        match signature.ct_eq(&self.auth.sign(&self.keys.server_key)) {
            true => Ok(self.keys),
            false => Err(ClientError::WrongSignature),
        }
    }
}

struct Challenge {
    nonce: String,
    salt: Vec<u8>,
    iterations: NonZeroU32,
}

impl Challenge {
    fn parse(message: &[u8], client_nonce: &str) -> Result<Challenge, ClientError> {
        if message.is_empty() {
            return Err(ClientError::Empty);
        }
        let (nonce, rest) = read_attribute(message, 'r')?;
        let (salt, rest) = read_attribute(rest, 's')?;
        let (iterations, rest) = read_attribute(rest, 'i')?;
        if !rest.is_empty() {
            return Err(ClientError::GarbageAfterFirst);
        }
        if !nonce.starts_with(client_nonce.as_bytes()) || !is_printable(nonce) {
            return Err(ClientError::NonceMismatch);
        }
        Ok(Challenge {
            nonce: str::from_utf8(nonce).map_err(|_| ClientError::NonceMismatch)?.to_owned(),
            salt: BASE64.decode(salt).map_err(|_| ClientError::InvalidSalt)?,
            iterations: parse_iterations(iterations)?,
        })
    }
}

fn parse_iterations(text: &[u8]) -> Result<NonZeroU32, ClientError> {
    let number = str::from_utf8(text).ok().and_then(|text| text.parse::<NonZeroU32>().ok());
    match number {
        Some(iterations) if iterations.get() <= MAX_ITERATIONS => Ok(iterations),
        Some(iterations) => Err(ClientError::TooManyIterations { iterations: iterations.get() }),
        None => Err(ClientError::InvalidIterations),
    }
}

/// Value of the attribute that must come next, and what follows its comma.
fn read_attribute(input: &[u8], attribute: char) -> Result<(&[u8], &[u8]), ClientError> {
    match input {
        [letter, b'=', rest @ ..] if char::from(*letter) == attribute => Ok(cut_at_comma(rest)),
        [letter, ..] if char::from(*letter) == attribute => Err(ClientError::EqualsExpected { attribute }),
        _ => Err(ClientError::AttributeExpected { attribute }),
    }
}
