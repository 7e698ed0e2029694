//! Password files, `host:port:database:user:password` a line (PG: `passwordFromFile`).

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::Secret;

/// Why a password file that exists is not used. libpq warns and goes on without a password, and so should we.
#[derive(Debug, thiserror::Error)]
pub enum PassfileError {
    /// A directory, a device.
    #[error("password file \"{}\" is not a plain file", path.display())]
    NotPlain {
        /// The file.
        path: PathBuf,
    },
    /// Others could read it.
    #[error(
        "password file \"{}\" has group or world access; permissions should be u=rw (0600) or less",
        path.display()
    )]
    Permissions {
        /// The file.
        path: PathBuf,
    },
    /// It is there but cannot be read.
    #[error("could not read password file \"{}\": {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What is looked up. `host` is the name as typed, else the address; `localhost` for the default socket directory.
pub(super) struct Key<'a> {
    pub(super) host: &'a str,
    pub(super) port: u16,
    pub(super) database: &'a str,
    pub(super) user: &'a str,
}

/// The password of the first line that matches. A file that does not exist has none.
pub(super) fn look_up(path: &Path, key: &Key<'_>) -> Result<Option<Secret>, PassfileError> {
    let text = match read(path) {
        Err(PassfileError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Ok(None);
        }
        result => result?,
    };
    Ok(text.split(|byte| *byte == b'\n').find_map(|line| match_line(line, key)).map(Secret::new))
}

fn read(path: &Path) -> Result<Vec<u8>, PassfileError> {
    let fail = |source| PassfileError::Read { path: path.to_owned(), source };
    // The permissions are those of the file that is read, not of what the path names a moment later.
    let mut file = File::open(path).map_err(fail)?;
    let metadata = file.metadata().map_err(fail)?;
    if !metadata.is_file() {
        return Err(PassfileError::NotPlain { path: path.to_owned() });
    }
    if metadata.mode() & 0o077 != 0 {
        return Err(PassfileError::Permissions { path: path.to_owned() });
    }
    let mut text = Vec::new();
    file.read_to_end(&mut text).map_err(fail)?;
    Ok(text)
}

fn match_line(line: &[u8], key: &Key<'_>) -> Option<Vec<u8>> {
    let end = line.iter().rposition(|byte| !matches!(byte, b'\r' | b'\n'))?;
    let line = &line[..=end];
    if line.starts_with(b"#") {
        return None;
    }
    let rest = match_field(line, key.host)?;
    let rest = match_field(rest, &key.port.to_string())?;
    let rest = match_field(rest, key.database)?;
    let rest = match_field(rest, key.user)?;
    Some(read_field(rest).0)
}

/// What follows the field and its colon, if the field is `*` or `expected`.
fn match_field<'a>(line: &'a [u8], expected: &str) -> Option<&'a [u8]> {
    if let Some(rest) = line.strip_prefix(b"*:") {
        return Some(rest);
    }
    let (field, rest) = read_field(line);
    (field == expected.as_bytes()).then_some(rest).flatten()
}

/// The field up to an unescaped colon, unescaped, and what follows the colon, if there is one.
fn read_field(line: &[u8]) -> (Vec<u8>, Option<&[u8]>) {
    let mut field = Vec::new();
    let mut rest = line;
    loop {
        rest = match rest {
            [] => return (field, None),
            [b':', rest @ ..] => return (field, Some(rest)),
            [b'\\', byte, rest @ ..] | [byte, rest @ ..] => {
                field.push(*byte);
                rest
            }
        }
    }
}
