//! Which authentication methods the server may ask for (`require_auth`).

use std::collections::BTreeSet;
use std::fmt;

use super::ConnInfoError;
use super::options::Keyword;

/// How a server asks who we are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum AuthMethod {
    /// Not at all: trust, a client certificate.
    None,
    /// The password in clear text.
    Password,
    /// Salted MD5.
    Md5,
    /// GSSAPI; never spoken here.
    Gss,
    /// SSPI; never spoken here.
    Sspi,
    /// SCRAM-SHA-256, with or without channel binding.
    ScramSha256,
    /// OAuth; never spoken here.
    Oauth,
}

impl AuthMethod {
    const ALL: [AuthMethod; 7] = [
        AuthMethod::None,
        AuthMethod::Password,
        AuthMethod::Md5,
        AuthMethod::Gss,
        AuthMethod::Sspi,
        AuthMethod::ScramSha256,
        AuthMethod::Oauth,
    ];

    /// As typed in `require_auth`.
    pub const fn name(self) -> &'static str {
        match self {
            AuthMethod::None => "none",
            AuthMethod::Password => "password",
            AuthMethod::Md5 => "md5",
            AuthMethod::Gss => "gss",
            AuthMethod::Sspi => "sspi",
            AuthMethod::ScramSha256 => "scram-sha-256",
            AuthMethod::Oauth => "oauth",
        }
    }

    const fn is_spoken(self) -> bool {
        !matches!(self, AuthMethod::Gss | AuthMethod::Sspi | AuthMethod::Oauth)
    }
}

/// The methods allowed, and the text they were given by.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RequireAuth {
    text: String,
    allowed: BTreeSet<AuthMethod>,
}

impl RequireAuth {
    /// Whether the server may use this method.
    pub fn allows(&self, method: AuthMethod) -> bool {
        self.allowed.contains(&method)
    }

    /// PG: the part of `pqConnectOptions2` about `require_auth`.
    pub(super) fn parse(text: &str) -> Result<RequireAuth, ConnInfoError> {
        let negated = text.starts_with('!');
        let mut allowed: BTreeSet<_> =
            if negated || text.is_empty() { AuthMethod::ALL.into() } else { BTreeSet::new() };
        for part in text.split(',').filter(|_| !text.is_empty()) {
            let method = find(part, negated)?;
            let news = if negated { allowed.remove(&method) } else { allowed.insert(method) };
            if !news {
                return Err(ConnInfoError::RequireAuthTwice { method: part.to_owned() });
            }
        }
        if !allowed.iter().any(|method| method.is_spoken()) {
            return Err(ConnInfoError::Unsupported { keyword: Keyword::RequireAuth, value: text.to_owned() });
        }
        Ok(RequireAuth { text: text.to_owned(), allowed })
    }
}

/// As typed.
impl fmt::Display for RequireAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn find(part: &str, negated: bool) -> Result<AuthMethod, ConnInfoError> {
    let name = match (negated, part.strip_prefix('!')) {
        (true, Some(name)) => name,
        (false, None) => part,
        (false, Some(_)) => return Err(ConnInfoError::RequireAuthNegative { method: part.to_owned() }),
        (true, None) => return Err(ConnInfoError::RequireAuthPositive { method: part.to_owned() }),
    };
    AuthMethod::ALL
        .into_iter()
        .find(|method| method.name() == name)
        .ok_or_else(|| ConnInfoError::InvalidValue { keyword: Keyword::RequireAuth, value: name.to_owned() })
}
