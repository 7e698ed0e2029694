//! MD5 password authentication, both sides (PostgreSQL: `md5_common.c`, `crypt.c`).
//!
//! Deprecated by PostgreSQL 18 and weak; here because servers with `md5...` in `pg_authid` are still about.

use md5::{Digest, Md5};
use subtle::ConstantTimeEq;

/// Length of `md5` plus 32 hexadecimal digits (PG: `MD5_PASSWD_LEN`).
const STORED_LEN: usize = 35;

/// What `pg_authid.rolpassword` holds for this password: `md5` and the hex digest of password and user name.
pub fn stored_hash(user: &str, password: &[u8]) -> String {
    hash(password, user.as_bytes())
}

/// What the client sends for the 4-byte salt of AuthenticationMD5Password, given the stored hash.
///
/// `None` if `stored` does not look like a stored MD5 hash, see [`is_stored_hash`].
pub fn response_from_stored(stored: &str, salt: [u8; 4]) -> Option<String> {
    is_stored_hash(stored).then(|| hash(&stored.as_bytes()[3..], &salt))
}

/// What the client sends for the 4-byte salt of AuthenticationMD5Password, given the password.
pub fn response_from_password(user: &str, password: &[u8], salt: [u8; 4]) -> String {
    hash(&stored_hash(user, password).as_bytes()[3..], &salt)
}

/// Whether `text` has the shape of a stored MD5 hash (PG: `get_password_type`).
pub fn is_stored_hash(text: &str) -> bool {
    let digits = |hex: &str| hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    text.len() == STORED_LEN && text.strip_prefix("md5").is_some_and(digits)
}

/// Whether the client's answer to `salt` proves that it knows the stored hash. Takes the same time for every
/// answer of the right length.
pub fn verify_response(stored: &str, salt: [u8; 4], response: &[u8]) -> bool {
    response_from_stored(stored, salt).is_some_and(|expected| bool::from(expected.as_bytes().ct_eq(response)))
}

/// Whether a password sent in clear text is the one behind the stored hash.
pub fn verify_password(stored: &str, user: &str, password: &[u8]) -> bool {
    is_stored_hash(stored) && bool::from(stored_hash(user, password).as_bytes().ct_eq(stored.as_bytes()))
}

fn hash(secret: &[u8], salt: &[u8]) -> String {
    let digest = Md5::new().chain_update(secret).chain_update(salt).finalize();
    let mut text = String::with_capacity(STORED_LEN);
    text.push_str("md5");
    for byte in digest {
        for nibble in [byte >> 4, byte & 15] {
            text.push(char::from(b"0123456789abcdef"[usize::from(nibble)]));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stored_hash_is_what_create_role_stores() {
        // PostgreSQL 15: SET password_encryption = md5; CREATE ROLE rep PASSWORD 'secret';
        assert_eq!(stored_hash("rep", b"secret"), "md5345dd60f5188c1a9c656482f63d77e69");
    }

    #[test]
    fn answers_agree_with_postgres_protocol() {
        for (user, password, salt) in [("rep", "secret", [1, 2, 3, 4]), ("ü", "päss", [0, 255, 7, 9])] {
            let theirs =
                postgres_protocol::authentication::md5_hash(user.as_bytes(), password.as_bytes(), salt);
            assert_eq!(response_from_password(user, password.as_bytes(), salt), theirs);
            let stored = stored_hash(user, password.as_bytes());
            assert_eq!(response_from_stored(&stored, salt).as_deref(), Some(theirs.as_str()));
            assert!(verify_response(&stored, salt, theirs.as_bytes()));
            assert!(!verify_response(&stored, [9; 4], theirs.as_bytes()));
            assert!(!verify_response(&stored, salt, &theirs.as_bytes()[..34]));
        }
    }

    #[test]
    fn only_the_right_password_matches() {
        let stored = stored_hash("rep", b"secret");
        assert!(verify_password(&stored, "rep", b"secret"));
        assert!(!verify_password(&stored, "rep", b"Secret"));
        assert!(!verify_password(&stored, "other", b"secret"));
        assert!(!verify_password("secret", "rep", b"secret"));
    }

    #[test]
    fn other_texts_are_no_stored_hash() {
        for text in [
            "",
            "md5",
            "md5123",
            "MD5345dd60f5188c1a9c656482f63d77e69",
            "md5345DD60F5188C1A9C656482F63D77E69",
        ] {
            assert!(!is_stored_hash(text), "{text}");
            assert_eq!(response_from_stored(text, [0; 4]), None);
        }
    }
}
