//! Connection URIs, `postgresql://[user[:password]@][host][:port][,...][/dbname][?keyword=value&...]`
//! (PG: `conninfo_uri_parse_options`), and the bare `host:port` form of walrelay's own.

use super::ConnInfoError;
use super::options::{Keyword, Settings};

/// The text after the scheme, if `text` is a connection URI.
pub(super) fn strip_scheme(text: &str) -> Option<&str> {
    ["postgresql://", "postgres://"].iter().find_map(|scheme| text.strip_prefix(scheme))
}

/// Reads a URI without its scheme into `settings`.
pub(super) fn parse(text: &str, settings: &mut Settings) -> Result<(), ConnInfoError> {
    let (credentials, rest) = split_credentials(text);
    if let Some(credentials) = credentials {
        let (user, password) = credentials.split_once(':').unwrap_or((credentials, ""));
        store_decoded(settings, Keyword::User, user)?;
        store_decoded(settings, Keyword::Password, password)?;
    }
    let (hosts, ports, rest) = read_hosts(rest)?;
    store_decoded(settings, Keyword::Host, &hosts)?;
    store_decoded(settings, Keyword::Port, &ports)?;
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    store_decoded(settings, Keyword::Dbname, path.strip_prefix('/').unwrap_or(path))?;
    parse_query(query, settings)
}

/// Reads walrelay's short form, one or more `host`, `host:port` or `[v6]:port` with commas between.
///
/// `None` if `text` is none, so that the caller can treat it as keywords and values.
pub(super) fn parse_bare(text: &str, settings: &mut Settings) -> Option<()> {
    let allowed = |c: char| c.is_alphanumeric() || "._-:/[]%,".contains(c);
    if text.is_empty() || !text.chars().all(allowed) {
        return None;
    }
    let (hosts, ports): (Vec<_>, Vec<_>) = text.split(',').map(split_bare).collect::<Option<_>>()?;
    settings.set(Keyword::Host, hosts.join(","));
    if ports.iter().any(|port| !port.is_empty()) {
        settings.set(Keyword::Port, ports.join(","));
    }
    Some(())
}

fn split_bare(text: &str) -> Option<(&str, &str)> {
    if let Some(bracketed) = text.strip_prefix('[') {
        let (host, rest) = bracketed.split_once(']')?;
        return if rest.is_empty() { Some((host, "")) } else { Some((host, rest.strip_prefix(':')?)) };
    }
    // Slashes belong to socket directories only; a scheme of another kind is no host.
    if text.contains('/') && !text.starts_with('/') {
        return None;
    }
    match text.split_once(':') {
        // Two colons and no brackets: an IPv6 address.
        Some((_, port)) if port.contains(':') => Some((text, "")),
        Some((host, port)) => Some((host, port)),
        None => Some((text, "")),
    }
}

/// Whether a URI without credentials has an `@` in its path: a password with a slash in it, most likely, whose beginning counts
/// as a port.
pub(super) fn has_stray_at(text: &str) -> bool {
    let Some(rest) = strip_scheme(text) else { return false };
    split_credentials(rest).0.is_none() && rest.split('?').next().is_some_and(|path| path.contains('@'))
}

/// Credentials end at the first `@`, unless a slash comes before it.
fn split_credentials(text: &str) -> (Option<&str>, &str) {
    match text.find(['@', '/']) {
        Some(end) if text[end..].starts_with('@') => (Some(&text[..end]), &text[end + 1..]),
        _ => (None, text),
    }
}

/// The lists of hosts and ports, still encoded, and the rest from `/` or `?` on.
fn read_hosts(text: &str) -> Result<(String, String, &str), ConnInfoError> {
    let (mut hosts, mut ports, mut rest) = (String::new(), String::new(), text);
    loop {
        let (host, after) = read_host(rest)?;
        hosts.push_str(host);
        rest = after;
        if let Some(after) = rest.strip_prefix(':') {
            let end = after.find(['/', '?', ',']).unwrap_or(after.len());
            ports.push_str(&after[..end]);
            rest = &after[end..];
        }
        let Some(next) = rest.strip_prefix(',') else {
            return Ok((hosts, ports, rest));
        };
        hosts.push(',');
        ports.push(',');
        rest = next;
    }
}

fn read_host(text: &str) -> Result<(&str, &str), ConnInfoError> {
    let Some(bracketed) = text.strip_prefix('[') else {
        return Ok(text.split_at(text.find([':', '/', '?', ',']).unwrap_or(text.len())));
    };
    let (host, rest) = bracketed.split_once(']').ok_or(ConnInfoError::UriBracket)?;
    match rest.chars().next() {
        _ if host.is_empty() => Err(ConnInfoError::UriEmptyAddress),
        None | Some(':' | '/' | '?' | ',') => Ok((host, rest)),
        Some(character) => Err(ConnInfoError::UriAfterBracket { character }),
    }
}

fn parse_query(query: &str, settings: &mut Settings) -> Result<(), ConnInfoError> {
    if query.is_empty() {
        return Ok(());
    }
    // One `&` after the last parameter is allowed, an empty parameter elsewhere is not.
    let query = query.strip_suffix('&').filter(|rest| !rest.is_empty()).unwrap_or(query);
    query.split('&').try_for_each(|parameter| parse_parameter(parameter, settings))
}

fn parse_parameter(parameter: &str, settings: &mut Settings) -> Result<(), ConnInfoError> {
    let Some((name, value)) = parameter.split_once('=') else {
        return Err(ConnInfoError::UriMissingEquals);
    };
    if value.contains('=') {
        return Err(ConnInfoError::UriExtraEquals { name: name.to_owned() });
    }
    let name = decode(name, "a keyword")?;
    let part = Keyword::find(&name).map_or("a parameter", Keyword::name);
    match (&*name, decode(value, part)?) {
        ("ssl", value) if value == "true" => settings.set(Keyword::Sslmode, "require".to_owned()),
        (name, value) => {
            settings.store(name, value).map_err(|_| ConnInfoError::UriParameter { name: name.to_owned() })?;
        }
    }
    Ok(())
}

/// Stores a part of the URI proper; an empty one counts as absent.
fn store_decoded(settings: &mut Settings, keyword: Keyword, text: &str) -> Result<(), ConnInfoError> {
    if !text.is_empty() {
        settings.set(keyword, decode(text, keyword.name())?);
    }
    Ok(())
}

/// PG: `conninfo_uri_decode`. Blanks around the text are dropped, blanks within must be encoded.
fn decode(text: &str, part: &'static str) -> Result<String, ConnInfoError> {
    let text = text.trim_matches(' ');
    if text.contains(' ') {
        return Err(ConnInfoError::UriSpaces { part });
    }
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [byte, tail @ ..] = rest {
        (decoded, rest) = match (byte, tail) {
            (b'%', [high, low, tail @ ..]) => {
                let byte = hex(*high).zip(hex(*low)).map(|(high, low)| high << 4 | low);
                match byte.ok_or(ConnInfoError::UriEncoding { part })? {
                    0 => return Err(ConnInfoError::UriZero { part }),
                    byte => (push(decoded, byte), tail),
                }
            }
            (b'%', _) => return Err(ConnInfoError::UriEncoding { part }),
            (byte, tail) => (push(decoded, *byte), tail),
        };
    }
    String::from_utf8(decoded).map_err(|_| ConnInfoError::UriNotUtf8 { part })
}

fn push(mut bytes: Vec<u8>, byte: u8) -> Vec<u8> {
    bytes.push(byte);
    bytes
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}
