//! The side that lets others log in (PG: `auth-scram.c`).
//!
//! ```text
//! ScramServer::new --client_first()--> ServerChallenged --client_final()--> Accepted
//! ```
//!
//! A user who does not exist, or has no usable secret, gets the same exchange as one who mistypes: a salt that
//! stays the same for that name, all the computing, and [`ServerError::InvalidProof`] at the end.

use super::{
    AuthMessage, BASE64, BINDING_HEADER, DEFAULT_ITERATIONS, Key, Keys, SALT_LEN, SCRAM_SHA_256,
    SCRAM_SHA_256_PLUS, Verifier, cut_at_comma, is_printable, new_nonce,
};
use std::num::NonZeroU32;

use base64::Engine;
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// Secret behind the salts of users who do not exist (PG: `mock_authentication_nonce`), and what else they look like.
#[derive(Clone)]
pub struct MockSecret {
    nonce: [u8; 32],
    iterations: NonZeroU32,
}

impl MockSecret {
    /// Fresh random bytes. Make one and keep it: a salt that changed between two attempts would tell that the
    /// user does not exist.
    ///
    /// # Errors
    /// The operating system gave no random bytes.
    pub fn random() -> Result<MockSecret, getrandom::Error> {
        let mut bytes = [0; 32];
        getrandom::fill(&mut bytes)?;
        Ok(MockSecret { nonce: bytes, iterations: DEFAULT_ITERATIONS })
    }

    /// What [`MockSecret::to_text`] gave; `None` for anything else.
    pub fn from_text(text: &str) -> Option<MockSecret> {
        let nonce = BASE64.decode(text).ok()?.try_into().ok()?;
        Some(MockSecret { nonce, iterations: DEFAULT_ITERATIONS })
    }

    /// To be kept where nobody else reads it.
    pub fn to_text(&self) -> String {
        BASE64.encode(self.nonce)
    }

    /// The same, with the iterations that those who exist have.
    pub fn with_iterations(&self, iterations: NonZeroU32) -> MockSecret {
        MockSecret { iterations, ..self.clone() }
    }

    fn salt(&self, user: &str, len: usize) -> Vec<u8> {
        Sha256::new().chain_update(user).chain_update(self.nonce).finalize()[..len].to_vec()
    }

    /// Takes as long as checking a password sent in clear text against a verifier, for users who have none. Never
    /// true.
    pub fn check_password(&self, user: &str, password: &[u8]) -> bool {
        // StoredKey of all zeroes belongs to no password that anybody could find.
        self.verifier(user).matches_password(password)
    }

    /// A verifier that no password fits: it is only used in a doomed exchange.
    fn verifier(&self, user: &str) -> Verifier {
        let key = Key::new([0; 32]);
        let salt = self.salt(user, SALT_LEN);
        Verifier { iterations: self.iterations, salt, stored_key: key, server_key: key }
    }
}

/// What the server knows about the user.
#[derive(Clone, Debug)]
pub enum ServerSecret {
    /// A stored verifier.
    Verifier(Verifier),
    /// Nothing usable: no such user, no password, an MD5 hash, an expired password. The exchange will fail.
    Unknown,
}

/// Why a login failed. The texts are PostgreSQL's, [`ServerError::detail`] has its DETAIL.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ServerError {
    /// The mechanism was not offered (protocol violation).
    #[error("client selected an invalid SASL authentication mechanism")]
    InvalidMechanism,
    /// The message breaks the grammar (protocol violation).
    #[error("malformed SCRAM message")]
    Malformed {
        /// DETAIL line, a sentence.
        detail: String,
    },
    /// Another binding than `tls-server-end-point` (protocol violation).
    #[error("unsupported SCRAM channel-binding type \"{name}\"")]
    UnsupportedBindingType {
        /// What was asked for, printable, at most 30 bytes.
        name: String,
    },
    /// An authorization identity was given (feature not supported).
    #[error("client uses authorization identity, but it is not supported")]
    AuthorizationIdentity,
    /// A mandatory extension was given (feature not supported).
    #[error("client requires an unsupported SCRAM extension")]
    MandatoryExtension,
    /// Somebody removed our offer of SCRAM-SHA-256-PLUS (invalid authorization specification).
    #[error("SCRAM channel binding negotiation error")]
    BindingDowngrade,
    /// The client is bound to another TLS channel (invalid authorization specification).
    #[error("SCRAM channel binding check failed")]
    BindingMismatch,
    /// The flag of the first message is not repeated in the last (protocol violation).
    #[error("unexpected SCRAM channel-binding attribute in client-final-message")]
    UnexpectedBinding,
    /// A nonce that RFC 5802 does not allow (protocol violation).
    #[error("non-printable characters in SCRAM nonce")]
    NonPrintableNonce,
    /// The nonce of the last message is not the one agreed (protocol violation).
    #[error("invalid SCRAM response")]
    NonceMismatch,
    /// Wrong password or unknown user, which must look the same: the caller says
    /// `password authentication failed for user "..."` (28P01).
    #[error("password authentication failed")]
    InvalidProof,
    /// The operating system gave no random bytes (internal error).
    #[error("could not generate random nonce")]
    Random(getrandom::Error),
}

impl ServerError {
    /// PostgreSQL's DETAIL for this error.
    pub fn detail(&self) -> Option<&str> {
        match self {
            ServerError::Malformed { detail } => Some(detail),
            ServerError::BindingDowngrade => Some(
                "The client supports SCRAM channel binding but thinks the server does not.  \
                 However, this server does support channel binding.",
            ),
            ServerError::NonceMismatch => Some("Nonce does not match."),
            _ => None,
        }
    }
}

/// The mechanisms to offer, best first. `can_bind`: over TLS, with the certificate's hash at hand.
pub fn mechanisms(can_bind: bool) -> &'static [&'static str] {
    if can_bind { &[SCRAM_SHA_256_PLUS, SCRAM_SHA_256] } else { &[SCRAM_SHA_256] }
}

/// First state: waiting for client-first-message.
#[derive(Debug)]
pub struct ScramServer {
    verifier: Verifier,
    doomed: bool,
    /// Hash of our certificate when SCRAM-SHA-256-PLUS was offered.
    end_point: Option<Vec<u8>>,
    plus: bool,
}

impl ScramServer {
    /// Starts an exchange for `user` with the mechanism that the client chose.
    ///
    /// `end_point` is the `tls-server-end-point` hash of our certificate, given exactly if SCRAM-SHA-256-PLUS was
    /// offered on this connection.
    ///
    /// # Errors
    /// [`ServerError::InvalidMechanism`].
    pub fn new(
        mechanism: &str,
        user: &str,
        secret: ServerSecret,
        end_point: Option<Vec<u8>>,
        mock: &MockSecret,
    ) -> Result<ScramServer, ServerError> {
        if !mechanisms(end_point.is_some()).contains(&mechanism) {
            return Err(ServerError::InvalidMechanism);
        }
        let (verifier, doomed) = match secret {
            ServerSecret::Verifier(verifier) => (verifier, false),
            ServerSecret::Unknown => (mock.verifier(user), true),
        };
        Ok(ScramServer { verifier, doomed, end_point, plus: mechanism == SCRAM_SHA_256_PLUS })
    }

    /// Starts an exchange from a password known in plain text, with a salt that is the same for the same user.
    ///
    /// Costs the whole key derivation, milliseconds. Parameters and errors as for [`ScramServer::new`].
    pub fn from_password(
        mechanism: &str,
        user: &str,
        password: &[u8],
        end_point: Option<Vec<u8>>,
        mock: &MockSecret,
    ) -> Result<ScramServer, ServerError> {
        let verifier = Verifier::from_password(password, &mock.salt(user, SALT_LEN), mock.iterations);
        ScramServer::new(mechanism, user, ServerSecret::Verifier(verifier), end_point, mock)
    }

    /// Takes client-first-message, the initial response of SASLInitialResponse. (Without one, the caller sends an
    /// empty challenge and passes the SASLResponse that follows.)
    ///
    /// # Errors
    /// The message is malformed, or its channel binding does not fit the mechanism.
    pub fn client_first(self, message: &[u8]) -> Result<ServerChallenged, ServerError> {
        let server_nonce = new_nonce().map_err(ServerError::Random)?;
        self.client_first_with_nonce(message, &server_nonce)
    }

    pub(super) fn client_first_with_nonce(
        self,
        message: &[u8],
        server_nonce: &str,
    ) -> Result<ServerChallenged, ServerError> {
        check_length(message)?;
        let (flag, bare) = self.read_gs2_header(message)?;
        let client_nonce = read_client_first_bare(bare)?;
        let nonce = [client_nonce, server_nonce.as_bytes()].concat();
        let salt = BASE64.encode(&self.verifier.salt);
        let parameters = format!(",s={salt},i={}", self.verifier.iterations);
        let server_first = [b"r=", &nonce[..], parameters.as_bytes()].concat();
        Ok(ServerChallenged { client_first_bare: bare.to_vec(), server_first, nonce, flag, server: self })
    }

    fn read_gs2_header<'a>(&self, message: &'a [u8]) -> Result<(Flag, &'a [u8]), ServerError> {
        let (flag, rest) = match message {
            [b'n' | b'y', ..] if self.plus => {
                return Err(malformed(
                    "The client selected SCRAM-SHA-256-PLUS, but the SCRAM message does not include channel binding data.",
                ));
            }
            [b'y', ..] if self.end_point.is_some() => return Err(ServerError::BindingDowngrade),
            [b'n', rest @ ..] => (Flag::Unsupported, skip_comma(rest)?),
            [b'y', rest @ ..] => (Flag::NotOffered, skip_comma(rest)?),
            [b'p', ..] if !self.plus => {
                return Err(malformed(
                    "The client selected SCRAM-SHA-256 without channel binding, but the SCRAM message includes channel binding data.",
                ));
            }
            [b'p', ..] => (Flag::Bound, skip_binding_type(message)?),
            _ => {
                return Err(malformed(format!(
                    "Unexpected channel-binding flag \"{}\".",
                    printable_byte(message.first().copied())
                )));
            }
        };
        match rest {
            [b',', bare @ ..] => Ok((flag, bare)),
            [b'a', ..] => Err(ServerError::AuthorizationIdentity),
            _ => Err(malformed(format!(
                "Unexpected attribute \"{}\" in client-first-message.",
                printable_byte(rest.first().copied())
            ))),
        }
    }
}

/// The gs2 flag the client sent first and must repeat in the end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Flag {
    Unsupported,
    NotOffered,
    Bound,
}

/// Second state: the challenge is made, waiting for client-final-message.
#[derive(Debug)]
pub struct ServerChallenged {
    server: ScramServer,
    flag: Flag,
    client_first_bare: Vec<u8>,
    server_first: Vec<u8>,
    nonce: Vec<u8>,
}

/// A successful login.
#[derive(Debug)]
pub struct Accepted {
    /// server-final-message, the body of AuthenticationSASLFinal.
    pub message: Vec<u8>,
    /// The user's keys: with them we can log in elsewhere in the user's name, if the verifier there is the same.
    pub keys: Keys,
}

impl ServerChallenged {
    /// server-first-message, the body of AuthenticationSASLContinue.
    pub fn message(&self) -> &[u8] {
        &self.server_first
    }

    /// Takes client-final-message, the body of SASLResponse.
    ///
    /// # Errors
    /// [`ServerError::InvalidProof`] for a wrong password or an unknown user; others if the message is malformed.
    pub fn client_final(self, message: &[u8]) -> Result<Accepted, ServerError> {
        check_length(message)?;
        let response = Response::parse(message)?;
        self.check_binding(response.binding)?;
        if response.nonce != self.nonce {
            return Err(ServerError::NonceMismatch);
        }
        let auth = AuthMessage {
            client_first_bare: self.client_first_bare,
            server_first: self.server_first,
            client_final_without_proof: response.without_proof.to_vec(),
        };
        let Verifier { stored_key, server_key, .. } = self.server.verifier;
        // The proof is checked in a doomed exchange too, so that it takes as long as any other.
        let client_key = response.proof.xor(&auth.sign(&stored_key));
        let proved = client_key.hashed().ct_eq(&stored_key);
        if !proved || self.server.doomed {
            return Err(ServerError::InvalidProof);
        }
        let message = format!("v={}", auth.sign(&server_key).to_base64()).into_bytes();
        Ok(Accepted { message, keys: Keys { client_key, server_key } })
    }

    fn check_binding(&self, attribute: &[u8]) -> Result<(), ServerError> {
        match (self.flag, &self.server.end_point) {
            (Flag::Bound, Some(hash)) => {
                let expected = BASE64.encode([BINDING_HEADER, hash].concat());
                let same = bool::from(expected.as_bytes().ct_eq(attribute));
                if same { Ok(()) } else { Err(ServerError::BindingMismatch) }
            }
            (Flag::Unsupported, _) if attribute == b"biws" => Ok(()),
            (Flag::NotOffered, _) if attribute == b"eSws" => Ok(()),
            _ => Err(ServerError::UnexpectedBinding),
        }
    }
}

struct Response<'a> {
    binding: &'a [u8],
    nonce: &'a [u8],
    proof: Key,
    without_proof: &'a [u8],
}

impl Response<'_> {
    fn parse(message: &[u8]) -> Result<Response<'_>, ServerError> {
        let (binding, rest) = read_attribute(message, b'c')?;
        let (nonce, mut rest) = read_attribute(rest, b'r')?;
        loop {
            // Optional extensions are part of what is signed; the proof is what follows the last comma.
            let without_proof = &message[..(message.len() - rest.len()).saturating_sub(1)];
            let (attribute, value, after) = read_any_attribute(rest)?;
            rest = after;
            if attribute == b'p' {
                let proof = Key::from_base64(value)
                    .ok_or_else(|| malformed("Malformed proof in client-final-message."))?;
                if !rest.is_empty() {
                    return Err(malformed("Garbage found at the end of client-final-message."));
                }
                return Ok(Response { binding, nonce, proof, without_proof });
            }
        }
    }
}

/// Returns the client's nonce.
fn read_client_first_bare(bare: &[u8]) -> Result<&[u8], ServerError> {
    if bare.first() == Some(&b'm') {
        return Err(ServerError::MandatoryExtension);
    }
    let (_user, rest) = read_attribute(bare, b'n')?;
    let (nonce, mut rest) = read_attribute(rest, b'r')?;
    if !is_printable(nonce) {
        return Err(ServerError::NonPrintableNonce);
    }
    while !rest.is_empty() {
        (_, _, rest) = read_any_attribute(rest)?;
    }
    Ok(nonce)
}

fn check_length(message: &[u8]) -> Result<(), ServerError> {
    match message {
        [] => Err(malformed("The message is empty.")),
        _ if message.contains(&0) => Err(malformed("Message length does not match input length.")),
        _ => Ok(()),
    }
}

fn skip_comma(input: &[u8]) -> Result<&[u8], ServerError> {
    match input {
        [b',', rest @ ..] => Ok(rest),
        _ => Err(malformed(format!(
            "Comma expected, but found character \"{}\".",
            printable_byte(input.first().copied())
        ))),
    }
}

fn skip_binding_type(input: &[u8]) -> Result<&[u8], ServerError> {
    match read_attribute(input, b'p')? {
        (b"tls-server-end-point", rest) => Ok(rest),
        (other, _) => Err(ServerError::UnsupportedBindingType { name: printable(other) }),
    }
}

fn read_attribute(input: &[u8], attribute: u8) -> Result<(&[u8], &[u8]), ServerError> {
    match input {
        [letter, rest @ ..] if *letter == attribute => read_value(rest, attribute),
        _ => Err(malformed(format!(
            "Expected attribute \"{}\" but found \"{}\".",
            char::from(attribute),
            printable_byte(input.first().copied())
        ))),
    }
}

fn read_any_attribute(input: &[u8]) -> Result<(u8, &[u8], &[u8]), ServerError> {
    match input {
        [] => Err(malformed("Attribute expected, but found end of string.")),
        [letter, rest @ ..] if letter.is_ascii_alphabetic() => {
            read_value(rest, *letter).map(|(value, rest)| (*letter, value, rest))
        }
        [other, ..] => Err(malformed(format!(
            "Attribute expected, but found invalid character \"{}\".",
            printable_byte(Some(*other))
        ))),
    }
}

fn read_value(input: &[u8], attribute: u8) -> Result<(&[u8], &[u8]), ServerError> {
    match input {
        [b'=', rest @ ..] => Ok(cut_at_comma(rest)),
        _ => Err(malformed(format!("Expected character \"=\" for attribute \"{}\".", char::from(attribute)))),
    }
}

fn malformed(detail: impl Into<String>) -> ServerError {
    ServerError::Malformed { detail: detail.into() }
}

/// PG: `sanitize_char`, where the end of the string is a zero byte.
fn printable_byte(byte: Option<u8>) -> String {
    let byte = byte.unwrap_or(0);
    if byte.is_ascii_graphic() { format!("'{}'", char::from(byte)) } else { format!("0x{byte:02x}") }
}

/// PG: `sanitize_str`.
fn printable(text: &[u8]) -> String {
    text.iter().take(30).map(|b| if b.is_ascii_graphic() { char::from(*b) } else { '?' }).collect()
}
