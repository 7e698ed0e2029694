//! Who may log in with a password: PgBouncer's `userlist.txt`.
//!
//! One user a line, `"name" "secret"`, a double quote inside written twice; the rest of the line is ignored,
//! and lines that begin with `;` are comments. The secret is a password, or what `pg_authid.rolpassword`
//! holds: `md5…` or `SCRAM-SHA-256$…`.

mod kinds;

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use super::md5;
use super::scram::Verifier;

use crate::permissions::{Distrust, read_secret};
pub use kinds::Kinds;

/// What a user must know.
#[derive(Clone, PartialEq, Eq)]
pub enum Secret {
    /// A password in clear text: good for every method.
    Password(String),
    /// `md5` and 32 digits: good for `md5` and `password`.
    Md5(String),
    /// A verifier: good for `scram-sha-256`, `md5` and `password`.
    Scram(Verifier),
}

/// Shows only the kind.
impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Secret::Password(_) => "Password(..)",
            Secret::Md5(_) => "Md5(..)",
            Secret::Scram(_) => "Scram(..)",
        })
    }
}

impl Secret {
    /// Told apart by its looks, as PostgreSQL does (`get_password_type`).
    pub fn classify(text: &str) -> Secret {
        match text.parse() {
            Ok(verifier) => Secret::Scram(verifier),
            Err(_) if md5::is_stored_hash(text) => Secret::Md5(text.to_owned()),
            Err(_) => Secret::Password(text.to_owned()),
        }
    }
}

/// The users of an `--auth-file`.
#[derive(Clone, Debug, Default)]
pub struct Users {
    /// `None` for a line without a password.
    secrets: HashMap<String, Option<Secret>>,
    kinds: Kinds,
}

/// The file cannot be used. Never shows what stands in it: that may be a password.
#[derive(Debug, thiserror::Error)]
pub enum UsersError {
    /// It cannot be read, or others could have read or changed it.
    #[error("authentication file \"{}\" {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: Distrust,
    },
    /// A line is not two quoted texts.
    #[error("{}:{line}: {problem}; write \"user\" \"secret\", a double quote inside as two", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What is wrong with the line.
        problem: &'static str,
    },
}

impl Users {
    /// Reads a file.
    pub fn load(path: &Path) -> Result<Users, UsersError> {
        let text = read_secret(path);
        Users::parse(path, &text.map_err(|source| UsersError::File { path: path.to_owned(), source })?)
    }

    /// Reads a file's content; `path` is for messages.
    pub fn parse(path: &Path, text: &str) -> Result<Users, UsersError> {
        let mut secrets = HashMap::new();
        for (n, line) in text.lines().enumerate() {
            let bad = |problem| UsersError::Line { path: path.to_owned(), line: n + 1, problem };
            let line = line.trim();
            if line.is_empty() || line.starts_with(';') {
                continue;
            }
            let (user, rest) = quoted(line).ok_or_else(|| bad("no user name in double quotes"))?;
            let (secret, _) = quoted(rest.trim_start()).ok_or_else(|| bad("no secret in double quotes"))?;
            if user.is_empty() {
                return Err(bad("empty user name"));
            }
            let secret = (!secret.is_empty()).then(|| Secret::classify(&secret));
            if secrets.insert(user, secret).is_some() {
                return Err(bad("the user appears for the second time"));
            }
        }
        let mut kinds = Kinds::default();
        secrets.values().flatten().for_each(|secret| kinds.add(secret));
        Ok(Users { secrets, kinds })
    }

    /// Whether there are passwords in clear text.
    pub fn has_passwords(&self) -> bool {
        self.secrets.values().flatten().any(|secret| matches!(secret, Secret::Password(_)))
    }

    /// What their secrets look like.
    pub fn kinds(&self) -> &Kinds {
        &self.kinds
    }

    /// Whether there is a line for `user`, be it without a password: who is let in by other means may be in the file too.
    pub fn has(&self, user: &str) -> bool {
        self.secrets.contains_key(user)
    }

    /// What `user` must know; `None` for strangers and for users without a password.
    pub fn get(&self, user: &str) -> Option<&Secret> {
        self.secrets.get(user)?.as_ref()
    }
}

/// A text in double quotes, and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut rest = text.strip_prefix('"')?;
    let mut value = String::new();
    loop {
        let (part, after) = rest.split_once('"')?;
        value.push_str(part);
        match after.strip_prefix('"') {
            Some(more) => {
                value.push('"');
                rest = more;
            }
            None => return Some((value, after)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Users, UsersError> {
        Users::parse(Path::new("userlist.txt"), text)
    }

    #[test]
    fn secrets_are_told_apart() {
        let verifier = "SCRAM-SHA-256$4096:AAECAwQFBgcICQoLDA0ODw==$\
                        AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
        let text = format!(
            "; comment\n\"plain\" \"pass\"\"word\" ignored\n\n  \"hash\" \"md57a9b9671d73d7f8f2a28a2ec5a3d0cd6\"\r\n\
             \"scram\"\t\"{verifier}\"\n\"none\" \"\"\n\"md5ish\" \"md5x\"\n"
        );
        let users = parse(&text).unwrap();
        assert_eq!(users.get("plain"), Some(&Secret::Password("pass\"word".into())));
        assert!(matches!(users.get("hash"), Some(Secret::Md5(_))));
        assert!(matches!(users.get("scram"), Some(Secret::Scram(_))));
        assert!(matches!(users.get("md5ish"), Some(Secret::Password(_))));
        assert_eq!((users.get("none"), users.get("Plain")), (None, None));
        assert!(users.has("none") && !users.has("Plain"));
        assert!(!parse("\"none\" \"\"\n").unwrap().has_passwords());
    }

    #[test]
    fn bad_lines_are_named_without_their_content() {
        let check = |text: &str, line, problem: &str| {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("userlist.txt:{line}: {problem}")), "{error}");
            assert!(!error.contains("hunter2"));
        };
        check("\"a\" \"b\"\nhunter2", 2, "no user name");
        check("\"hunter2", 1, "no user name");
        check("\"a\" hunter2", 1, "no secret");
        check("\"a\" \"hunter2", 1, "no secret");
        check("\"\" \"hunter2\"", 1, "empty user name");
        check("\"a\" \"b\"\n\"a\" \"hunter2\"", 2, "the user appears");
    }

    #[test]
    fn a_file_that_others_can_read_is_not_taken() {
        use std::os::unix::fs::PermissionsExt;

        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "\"a\" \"hunter2\"\n").unwrap();
        assert!(Users::load(file.path()).unwrap().get("a").is_some());
        std::fs::set_permissions(file.path(), PermissionsExt::from_mode(0o644)).unwrap();
        let error = Users::load(file.path()).unwrap_err().to_string();
        assert!(
            error.starts_with("authentication file \"") && error.contains("has group or world access"),
            "{error}"
        );
    }

    proptest! {
        #[test]
        fn any_name_and_password_can_be_written(user in "[^\r\n\0]{1,9}", password in "[^\r\n\0]{1,9}") {
            let quote = |text: &str| text.replace('"', "\"\"");
            let users = parse(&format!("\"{}\" \"{}\"", quote(&user), quote(&password))).unwrap();
            prop_assert_eq!(users.get(&user), Some(&Secret::Password(password)));
        }
    }
}
