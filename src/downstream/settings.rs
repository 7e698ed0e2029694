//! Settings that a client may give when it connects, and how they look afterwards (PostgreSQL: `guc.c`).
//!
//! A walsender has no use for most of them; they are checked as far as their names, kept, and shown again.

use std::collections::{BTreeMap, HashMap};
use std::sync::LazyLock;
use std::time::Duration;

use walrelay_proto::NEWEST_MAJOR;

use crate::store::UpstreamParameters;
use crate::wire::{PgError, sqlstate};

/// PostgreSQL's settings, versions 15 to 19, with who may set them.
static NAMES: LazyLock<HashMap<String, (&'static str, &'static str)>> = LazyLock::new(|| {
    let lines = include_str!("settings/names.txt").lines().filter_map(|line| line.split_once(' '));
    lines.map(|(name, class)| (name.to_ascii_lowercase(), (name, class))).collect()
});

/// How PostgreSQL spells a setting's name; `None` if it has no such setting.
pub(super) fn canonical_name(name: &str) -> Option<&'static str> {
    NAMES.get(&name.to_ascii_lowercase()).map(|(name, _)| *name)
}

/// All names PostgreSQL knows, in its order.
pub(super) fn all_names() -> impl Iterator<Item = &'static str> {
    include_str!("settings/names.txt").lines().filter_map(|line| Some(line.split_once(' ')?.0))
}

/// What a session has set, by canonical name.
#[derive(Clone, Debug, Default)]
pub(super) struct Settings {
    values: BTreeMap<String, String>,
    wal_sender_timeout: Option<Option<Duration>>,
    wal_sender_shutdown_timeout: Option<Duration>,
}

impl Settings {
    /// The value the client gave, in PostgreSQL's spelling.
    pub(super) fn get(&self, canonical: &str) -> Option<&str> {
        self.values.get(canonical).map(String::as_str)
    }

    /// `wal_sender_timeout` if the client gave one.
    pub(super) fn wal_sender_timeout(&self) -> Option<Option<Duration>> {
        self.wal_sender_timeout
    }

    /// `wal_sender_shutdown_timeout` if the client gave one that is a limit.
    pub(super) fn wal_sender_shutdown_timeout(&self) -> Option<Duration> {
        self.wal_sender_shutdown_timeout
    }

    /// Sets a parameter of the start-up packet.
    pub(super) fn set(
        &mut self,
        name: &str,
        value: &[u8],
        upstream: &UpstreamParameters,
    ) -> Result<(), PgError> {
        let text = String::from_utf8_lossy(value);
        let Some((canonical, class)) = NAMES.get(&name.to_ascii_lowercase()) else {
            return self.set_unknown(name, &text, upstream);
        };
        check_class(canonical, class)?;
        let invalid = || {
            let message = format!("invalid value for parameter \"{canonical}\": \"{text}\"");
            PgError::fatal(sqlstate::INVALID_PARAMETER_VALUE, message)
        };
        let value = match *canonical {
            "application_name" => clean_name(value, upstream),
            "client_encoding" => encoding(&text).ok_or_else(invalid)?.to_owned(),
            "DateStyle" => date_style(&text, upstream).ok_or_else(invalid)?,
            "wal_sender_timeout" => {
                let timeout = timeout(&text).ok_or_else(invalid)?;
                self.wal_sender_timeout = Some(timeout);
                show_timeout(timeout)
            }
            "wal_sender_shutdown_timeout" if text.trim() == "-1" => {
                self.wal_sender_shutdown_timeout = None;
                "-1".to_owned()
            }
            "wal_sender_shutdown_timeout" => {
                let timeout = timeout(&text).ok_or_else(invalid)?;
                self.wal_sender_shutdown_timeout = Some(timeout.unwrap_or_default());
                show_timeout(timeout)
            }
            _ => text.into_owned(),
        };
        self.values.insert((*canonical).to_owned(), value);
        Ok(())
    }

    /// A name with a dot may belong to an extension, another one to an upstream newer than what is known here.
    fn set_unknown(&mut self, name: &str, value: &str, upstream: &UpstreamParameters) -> Result<(), PgError> {
        let may_be_new = upstream.major_version() > NEWEST_MAJOR && is_plain_name(name);
        if !may_be_new && !is_extension_name(name) {
            let message = format!("unrecognized configuration parameter \"{name}\"");
            return Err(PgError::fatal(sqlstate::UNDEFINED_OBJECT, message));
        }
        self.values.insert(name.to_ascii_lowercase(), value.to_owned());
        Ok(())
    }
}

/// What only a superuser may set is taken: whether the client is one is the upstream's knowledge.
fn check_class(name: &str, class: &str) -> Result<(), PgError> {
    const CANT_CHANGE_RUNTIME_PARAM: &str = "55P02";
    let when = match class {
        "file" => " now",
        "start" => " without restarting the server",
        "internal" => "",
        _ => return Ok(()),
    };
    Err(PgError::fatal(CANT_CHANGE_RUNTIME_PARAM, format!("parameter \"{name}\" cannot be changed{when}")))
}

fn is_extension_name(name: &str) -> bool {
    name.contains('.') && name.split('.').all(is_plain_name)
}

fn is_plain_name(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes.next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_' || b >= 0x80)
        && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'$') || b >= 0x80)
}

/// At most 63 bytes, printable ASCII only (PostgreSQL: `check_application_name`, `pg_clean_ascii`).
fn clean_name(value: &[u8], upstream: &UpstreamParameters) -> String {
    let escape = server_version_num(upstream) >= 160_000;
    let mut clean = String::new();
    for &byte in value.iter().take(63) {
        match byte {
            b' '..=b'~' => clean.push(char::from(byte)),
            _ if escape => clean.push_str(&format!("\\x{byte:02x}")),
            _ => clean.push('?'),
        }
    }
    clean
}

/// `server_version_num` of the upstream, from its `server_version`: `170010` for `17.10`, 0 if it is unknown.
pub(super) fn server_version_num(upstream: &UpstreamParameters) -> u32 {
    let number =
        |text: &str| text.chars().take_while(char::is_ascii_digit).collect::<String>().parse::<u32>().ok();
    let version = upstream.status("server_version").unwrap_or_default();
    let major = number(version).unwrap_or(0);
    let minor = version.split_once('.').and_then(|(_, minor)| number(minor)).unwrap_or(0);
    major.saturating_mul(10_000).saturating_add(minor)
}

/// PostgreSQL's spelling of an encoding's name (`pg_encname_tbl`): case and punctuation do not matter.
fn encoding(name: &str) -> Option<&'static str> {
    const ENCODINGS: &[&str] = &[
        "SQL_ASCII",
        "EUC_JP",
        "EUC_CN",
        "EUC_KR",
        "EUC_TW",
        "EUC_JIS_2004",
        "UTF8",
        "MULE_INTERNAL",
        "LATIN1",
        "LATIN2",
        "LATIN3",
        "LATIN4",
        "LATIN5",
        "LATIN6",
        "LATIN7",
        "LATIN8",
        "LATIN9",
        "LATIN10",
        "WIN1256",
        "WIN1258",
        "WIN866",
        "WIN874",
        "KOI8R",
        "WIN1251",
        "WIN1252",
        "ISO_8859_5",
        "ISO_8859_6",
        "ISO_8859_7",
        "ISO_8859_8",
        "WIN1250",
        "WIN1253",
        "WIN1254",
        "WIN1255",
        "WIN1257",
        "KOI8U",
        "SJIS",
        "BIG5",
        "GBK",
        "UHC",
        "GB18030",
        "JOHAB",
        "SHIFT_JIS_2004",
    ];
    const ALIASES: &[(&str, &str)] = &[
        ("unicode", "UTF8"),
        ("abc", "WIN1258"),
        ("tcvn", "WIN1258"),
        ("tcvn5712", "WIN1258"),
        ("vscii", "WIN1258"),
        ("alt", "WIN866"),
        ("win", "WIN1251"),
        ("koi8", "KOI8R"),
        ("iso88591", "LATIN1"),
        ("iso88592", "LATIN2"),
        ("iso88593", "LATIN3"),
        ("iso88594", "LATIN4"),
        ("iso88599", "LATIN5"),
        ("iso885910", "LATIN6"),
        ("iso885913", "LATIN7"),
        ("iso885914", "LATIN8"),
        ("iso885915", "LATIN9"),
        ("iso885916", "LATIN10"),
        ("mskanji", "SJIS"),
        ("shiftjis", "SJIS"),
        ("win932", "SJIS"),
        ("windows932", "SJIS"),
        ("win936", "GBK"),
        ("windows936", "GBK"),
        ("win949", "UHC"),
        ("windows949", "UHC"),
        ("win950", "BIG5"),
        ("windows950", "BIG5"),
        ("windows866", "WIN866"),
        ("windows874", "WIN874"),
        ("windows1250", "WIN1250"),
        ("windows1251", "WIN1251"),
        ("windows1252", "WIN1252"),
        ("windows1253", "WIN1253"),
        ("windows1254", "WIN1254"),
        ("windows1255", "WIN1255"),
        ("windows1256", "WIN1256"),
        ("windows1257", "WIN1257"),
        ("windows1258", "WIN1258"),
    ];
    let plain = |name: &str| {
        name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect::<String>()
    };
    let wanted = plain(name);
    let alias = ALIASES.iter().find(|(alias, _)| *alias == wanted).map(|(_, name)| *name);
    alias.or_else(|| ENCODINGS.iter().copied().find(|name| plain(name) == wanted))
}

/// A style and an order of day, month and year; what is not given stays as it is (`check_datestyle`).
fn date_style(text: &str, upstream: &UpstreamParameters) -> Option<String> {
    let default = upstream.status("DateStyle").unwrap_or("ISO, MDY");
    let (mut style, mut order) = default.split_once(", ").unwrap_or(("ISO", "MDY"));
    let (mut seen_style, mut seen_order) = (None, None);
    for word in text.split(',') {
        let word = word.trim().to_ascii_lowercase();
        match word.as_str() {
            "iso" => seen_style = Some("ISO"),
            "sql" => seen_style = Some("SQL"),
            _ if word.starts_with("postgres") => seen_style = Some("Postgres"),
            "german" => (seen_style, seen_order) = (Some("German"), seen_order.or(Some("DMY"))),
            "ymd" => seen_order = Some("YMD"),
            "dmy" => seen_order = Some("DMY"),
            _ if word.starts_with("euro") => seen_order = Some("DMY"),
            "mdy" | "us" => seen_order = Some("MDY"),
            _ if word.starts_with("noneuro") => seen_order = Some("MDY"),
            "default" => (seen_style, seen_order) = (seen_style.or(Some(style)), seen_order.or(Some(order))),
            _ => return None,
        }
    }
    (style, order) = (seen_style.unwrap_or(style), seen_order.unwrap_or(order));
    Some(format!("{style}, {order}"))
}

/// Milliseconds unless there is a unit; 0 is never (`parse_int` with `GUC_UNIT_MS`).
fn timeout(text: &str) -> Option<Option<Duration>> {
    const UNITS: &[(&str, f64)] =
        &[("", 1.0), ("us", 0.001), ("ms", 1.0), ("s", 1e3), ("min", 6e4), ("h", 3.6e6), ("d", 8.64e7)];
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = UNITS.iter().find(|(name, _)| *name == unit.trim())?.1;
    let millis = (number.parse::<f64>().ok()? * factor).round();
    let in_range = (0.0..=f64::from(i32::MAX)).contains(&millis);
    in_range.then(|| Some(Duration::from_millis(millis as u64)).filter(|timeout| !timeout.is_zero()))
}

/// As SHOW writes it: in the largest unit that leaves no rest.
pub(super) fn show_timeout(timeout: Option<Duration>) -> String {
    let millis = timeout.map_or(0, |timeout| timeout.as_millis());
    let units = [("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1000), ("ms", 1)];
    let fitting = units.into_iter().find(|(_, size)| millis != 0 && millis.is_multiple_of(*size));
    fitting.map_or_else(|| "0".to_owned(), |(unit, size)| format!("{}{unit}", millis / size))
}

/// As SHOW writes a setting that counts megabytes: `-1`, `0`, `512MB`, `1GB`.
pub(super) fn show_megabytes(bytes: Option<u64>) -> String {
    let Some(megabytes) = bytes.map(|bytes| bytes.div_ceil(1 << 20)) else { return "-1".to_owned() };
    let units = [("TB", 1 << 20), ("GB", 1 << 10), ("MB", 1)];
    let fitting = units.into_iter().find(|(_, size)| megabytes != 0 && megabytes.is_multiple_of(*size));
    fitting.map_or_else(|| "0".to_owned(), |(unit, size)| format!("{}{unit}", megabytes / size))
}

/// Splits the start-up parameter `options` into words: blanks separate, a backslash takes the next character
/// as it is (`pg_split_opts`).
fn split_options(options: &[u8]) -> Vec<Vec<u8>> {
    let mut words = vec![];
    let mut word: Option<Vec<u8>> = None;
    let mut bytes = options.iter().copied();
    while let Some(byte) = bytes.next() {
        match byte {
            _ if byte.is_ascii_whitespace() || byte == 0x0B => words.extend(word.take()),
            b'\\' => word.get_or_insert_default().extend(bytes.next()),
            _ => word.get_or_insert_default().push(byte),
        }
    }
    words.extend(word);
    words
}

/// The settings in the start-up parameter `options`: `-c name=value`, `-cname=value`, `--name=value`
/// (`process_postgres_switches`).
pub(super) fn options(options: &[u8]) -> Result<Vec<(String, Vec<u8>)>, PgError> {
    let mut settings = vec![];
    let mut words = split_options(options).into_iter();
    while let Some(word) = words.next() {
        let setting = match &word[..] {
            b"-c" => words.next(),
            [b'-', b'c' | b'-', rest @ ..] if !rest.is_empty() => Some(rest.to_vec()),
            _ => None,
        };
        let setting = setting.ok_or_else(|| {
            let message = format!("invalid command-line argument for server process: {}", lossy(&word));
            PgError::fatal(sqlstate::SYNTAX_ERROR, message).with_hint("Options are given as -c name=value.")
        })?;
        settings.push(name_and_value(&setting, word.starts_with(b"--"))?);
    }
    Ok(settings)
}

fn name_and_value(setting: &[u8], long: bool) -> Result<(String, Vec<u8>), PgError> {
    let Some(at) = setting.iter().position(|&b| b == b'=') else {
        let dashes = if long { "--" } else { "-c " };
        let message = format!("{dashes}{} requires a value", lossy(setting));
        return Err(PgError::fatal(sqlstate::SYNTAX_ERROR, message));
    };
    Ok((lossy(&setting[..at]).replace('-', "_"), setting[at + 1..].to_vec()))
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// PostgreSQL's booleans: unique prefixes of true, false, yes, no, on, off in any case, and 1 and 0
/// (`parse_bool`).
pub(super) fn parse_bool(text: &[u8]) -> Option<bool> {
    let text = text.to_ascii_lowercase();
    let prefix_of =
        |word: &str, at_least: usize| text.len() >= at_least && word.as_bytes().starts_with(&text);
    let yes = prefix_of("true", 1) || prefix_of("yes", 1) || prefix_of("on", 2) || text == b"1";
    let no = prefix_of("false", 1) || prefix_of("no", 1) || prefix_of("off", 2) || text == b"0";
    (yes || no).then_some(yes)
}

#[cfg(test)]
mod tests;
