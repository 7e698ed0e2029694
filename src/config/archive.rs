//! `--archive URL` and `[archive.NAME]`.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use toml::Spanned;

use super::{ConfigError, units};
use crate::archive::{Compression, Layout, OnQuota, Place, Target, command_placeholders};
use crate::objects::ObjectPlace;
use crate::redact::holds_secret;

/// One target as it was typed.
#[derive(Clone, Debug)]
pub(super) struct ArchiveSetting {
    /// `None` for a bare URL.
    name: Option<String>,
    table: Table,
    /// Where in its file it begins.
    span: Option<Range<usize>>,
    /// The same for people: file and line, with a colon behind.
    place: String,
}

impl ArchiveSetting {
    fn new(name: Option<String>, table: Table) -> ArchiveSetting {
        ArchiveSetting { name, table, span: None, place: String::new() }
    }

    /// Finds out in which line of this file it is.
    pub(super) fn note_place(&mut self, file: &Path, line: impl Fn(Range<usize>) -> usize) {
        let line = self.span.clone().map(|span| format!(", line {}", line(span))).unwrap_or_default();
        self.place = format!("configuration file \"{}\"{line}: ", file.display());
    }
}

/// `[archive.NAME]`. What each key means stands in docs/REFERENCE.md as it does here, its default as in docs/ARCHIVING.md.
#[derive(Deserialize, Clone, Debug, Default)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Table {
    /// `file:///directory`, `s3://bucket/prefix`, `gs://bucket/prefix`, `az://container/prefix`; this or `command`
    url: Option<String>,
    /// A shell command that is given each file, as `archive_command` is
    command: Option<String>,
    /// How files are named: `plain`, `barman` or `barman-cloud` [default: plain]
    layout: Option<String>,
    /// `none`, `lz4`, `zstd` or `gzip` [default: none]
    compression: Option<String>,
    /// `zstd` 1 to 22, `gzip` 1 to 9 [default: 3, 6]
    compression_level: Option<i64>,
    /// A file of age keys [default: none]
    encryption_key_file: Option<PathBuf>,
    /// Bytes per second after compression, on average [default: no limit]
    #[serde(default, deserialize_with = "super::cli::text")]
    rate: Option<String>,
    /// Files at a time, 1 to 64 [default: 4; commands 1]
    concurrency: Option<usize>,
    /// How late the tail of the unfinished segment may be [default: off]
    #[serde(default, deserialize_with = "super::cli::text")]
    partial_interval: Option<String>,
    /// How much WAL the relay keeps for this target before on-quota decides [default: none]
    #[serde(default, deserialize_with = "super::cli::text")]
    quota: Option<String>,
    /// What happens then: `hold` (keep it nevertheless) or `drop` (let the oldest go) [default: hold]
    on_quota: Option<String>,
    /// How old the WAL in the target may become [default: for ever]
    #[serde(default, deserialize_with = "super::cli::text")]
    keep_age: Option<String>,
    /// How much WAL stays in the target [default: for ever]
    #[serde(default, deserialize_with = "super::cli::text")]
    keep_size: Option<String>,
    /// Another server than the provider's; `http://` means no TLS [default: the provider's]
    endpoint: Option<String>,
    /// S3 only: the region of the bucket
    region: Option<String>,
    /// S3 only: bucket names in the path; with an endpoint that is the default
    path_style: Option<bool>,
    /// S3 only: the profile of the AWS credentials and config files
    profile: Option<String>,
    /// Authorities for the server's certificate (PEM) [default: the provider's]
    ca_file: Option<PathBuf>,
    /// Further options of the object_store crate, by its configuration keys, with - for _
    #[serde(default)]
    options: BTreeMap<String, String>,
}

impl FromStr for ArchiveSetting {
    type Err = std::convert::Infallible;

    fn from_str(url: &str) -> Result<ArchiveSetting, Self::Err> {
        Ok(ArchiveSetting::new(None, Table { url: Some(url.to_owned()), ..Table::default() }))
    }
}

/// `archive = "URL"`, `archive = ["URL", ...]` or tables `[archive.NAME]`.
pub(super) fn settings<'de, D: Deserializer<'de>>(input: D) -> Result<Vec<ArchiveSetting>, D::Error> {
    struct Visitor;
    impl<'de> serde::de::Visitor<'de> for Visitor {
        type Value = Vec<ArchiveSetting>;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a URL, a list of URLs, or tables [archive.NAME]")
        }

        fn visit_str<E>(self, url: &str) -> Result<Self::Value, E> {
            let Ok(setting) = url.parse();
            Ok(vec![setting])
        }

        fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut urls: A) -> Result<Self::Value, A::Error> {
            let mut settings = Vec::new();
            while let Some(url) = urls.next_element::<String>()? {
                let Ok(setting) = url.parse();
                settings.push(setting);
            }
            Ok(settings)
        }

        fn visit_map<A: serde::de::MapAccess<'de>>(self, mut tables: A) -> Result<Self::Value, A::Error> {
            let mut settings = Vec::new();
            while let Some(name) = tables.next_key::<Spanned<String>>()? {
                let span = Some(name.span());
                let setting = ArchiveSetting::new(Some(name.into_inner()), tables.next_value()?);
                settings.push(ArchiveSetting { span, ..setting });
            }
            Ok(settings)
        }
    }
    input.deserialize_any(Visitor)
}

/// Checks what was typed.
pub(super) fn targets(settings: &[ArchiveSetting]) -> Result<Vec<Target>, ConfigError> {
    let mut targets: Vec<Target> = Vec::new();
    for setting in settings {
        let shown = setting.name.clone().or_else(|| setting.table.url.clone()).unwrap_or_default();
        let fail = |reason: String| {
            let (place, target) = (setting.place.clone(), shown.clone());
            ConfigError::Archive { place, target, reason }
        };
        let target = target(setting.clone()).map_err(fail)?;
        let same = |other: &&Target| match (&target.place, &other.place) {
            (Place::Objects(one), Place::Objects(other)) => one.identity() == other.identity(),
            _ => false,
        };
        if let Some(other) = targets.iter().find(same) {
            return Err(fail(format!("has the same URL as \"{}\"", other.name)));
        }
        targets.push(target);
    }
    Ok(targets)
}

/// The targets of a configuration file, for commands that need nothing else of it.
pub fn archive_targets(file: &Path) -> Result<Vec<Target>, ConfigError> {
    targets(&super::read_file(file)?.archive)
}

fn target(setting: ArchiveSetting) -> Result<Target, String> {
    let table = setting.table;
    let mut target = match (&table.url, &table.command) {
        (Some(_), None) => of_url(&table)?,
        (None, Some(command)) => of_command(command, &table)?,
        _ => return Err("needs either url or command".to_owned()),
    };
    if let Some(name) = setting.name {
        let legal = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.is_empty() || name.len() > 63 || !name.chars().all(legal) {
            return Err("names consist of up to 63 letters, digits, - and _".to_owned());
        }
        target.name = name;
    }
    let named = |name: &str, reason: String| format!("{name}: {reason}");
    target.rate = optional("rate", table.rate.as_deref(), units::rate)?;
    target.quota = optional("quota", table.quota.as_deref(), units::size)?;
    target.on_quota = match (table.on_quota.as_deref(), target.quota) {
        (None | Some("hold"), _) => OnQuota::Hold,
        (Some("drop"), Some(_)) => OnQuota::Drop,
        (Some("drop"), None) => return Err("on-quota = \"drop\" needs quota".to_owned()),
        (Some(other), _) => return Err(format!("on-quota: \"{other}\" is not one of hold, drop")),
    };
    match table.concurrency {
        Some(number @ 1..=64) => target.concurrency = number,
        Some(number) => return Err(named("concurrency", format!("{number} is not in 1 to 64"))),
        None => {}
    }
    Ok(target)
}

fn optional<T>(
    name: &str,
    given: Option<&str>,
    read: impl Fn(&str) -> Result<T, String>,
) -> Result<Option<T>, String> {
    given.map(read).transpose().map_err(|reason| format!("{name}: {reason}"))
}

fn of_url(table: &Table) -> Result<Target, String> {
    let mut target =
        Target::from_url(table.url.as_deref().unwrap_or_default()).map_err(|error| error.to_string())?;
    let Place::Objects(place) = &mut target.place else { return Err("needs a URL".to_owned()) };
    let scheme = place.url.scheme().to_owned();
    add_options(place, table)?;
    target.layout = layout(table.layout.as_deref(), scheme != "file")?;
    target.compression = compression(table.compression.as_deref(), table.compression_level)?;
    target.key_file = table.encryption_key_file.clone();
    if target.key_file.is_some() && target.layout != Layout::Plain {
        return Err("encryption-key-file: Barman cannot decrypt; use layout = \"plain\"".to_owned());
    }
    let interval = optional("partial-interval", table.partial_interval.as_deref(), units::timeout)?.flatten();
    if interval.is_some_and(|time| time < Duration::from_millis(100)) {
        return Err("partial-interval: the least is 100ms; 0 is off".to_owned());
    }
    target.partial_interval = interval;
    target.keep_age = optional("keep-age", table.keep_age.as_deref(), units::timeout)?.flatten();
    target.keep_size = optional("keep-size", table.keep_size.as_deref(), units::size)?;
    Ok(target)
}

fn add_options(place: &mut ObjectPlace, table: &Table) -> Result<(), String> {
    let scheme = place.url.scheme().to_owned();
    let text = |path: &PathBuf| path.display().to_string();
    let given = [
        ("endpoint", table.endpoint.clone()),
        ("region", table.region.clone()),
        ("path_style", table.path_style.map(|on| on.to_string())),
        ("profile", table.profile.clone()),
        ("ca_file", table.ca_file.as_ref().map(text)),
    ];
    for (name, value) in given {
        let Some(value) = value else { continue };
        let only_s3 = ["region", "path_style", "profile"].contains(&name);
        if scheme == "file" || (only_s3 && scheme != "s3") {
            return Err(format!("{} does not apply to {scheme}: URLs", name.replace('_', "-")));
        }
        if name == "endpoint" && holds_secret(&value) {
            return Err(
                "endpoint: credentials do not belong in the URL; give them by environment or profile"
                    .to_owned(),
            );
        }
        place.options.insert(name.to_owned(), value);
    }
    for (name, value) in &table.options {
        let key = name.to_ascii_lowercase().replace('-', "_");
        if place.options.insert(key, value.clone()).is_some() {
            return Err(format!("option \"{name}\" is given twice"));
        }
    }
    Ok(())
}

fn layout(given: Option<&str>, is_store: bool) -> Result<Layout, String> {
    match given {
        None | Some("plain") => Ok(Layout::Plain),
        Some("barman-cloud") => Ok(Layout::BarmanCloud),
        Some("barman") if is_store => Ok(Layout::BarmanCloud),
        Some("barman") => Ok(Layout::Barman),
        Some(other) => Err(format!("layout: \"{other}\" is not one of plain, barman, barman-cloud")),
    }
}

fn compression(given: Option<&str>, level: Option<i64>) -> Result<Compression, String> {
    let within = |least: i64, most: i64, default: i64| match level.unwrap_or(default) {
        level if (least..=most).contains(&level) => Ok(level),
        level => Err(format!("compression-level: {level} is not in {least} to {most}")),
    };
    match (given.unwrap_or("none"), level) {
        ("none" | "lz4", Some(_)) => {
            Err("compression-level needs compression = \"zstd\" or \"gzip\"".to_owned())
        }
        ("none", None) => Ok(Compression::None),
        ("lz4", None) => Ok(Compression::Lz4),
        ("zstd", _) => Ok(Compression::Zstd(within(1, 22, 3)? as i32)),
        ("gzip", _) => Ok(Compression::Gzip(within(1, 9, 6)? as u32)),
        (other, _) => Err(format!("compression: \"{other}\" is not one of none, lz4, zstd, gzip")),
    }
}

fn of_command(command: &str, table: &Table) -> Result<Target, String> {
    let foreign = [
        ("layout", table.layout.is_some()),
        ("compression", table.compression.is_some()),
        ("compression-level", table.compression_level.is_some()),
        ("encryption-key-file", table.encryption_key_file.is_some()),
        ("partial-interval", table.partial_interval.is_some()),
        ("keep-age", table.keep_age.is_some()),
        ("keep-size", table.keep_size.is_some()),
        ("endpoint", table.endpoint.is_some()),
        ("region", table.region.is_some()),
        ("path-style", table.path_style.is_some()),
        ("profile", table.profile.is_some()),
        ("ca-file", table.ca_file.is_some()),
        ("options", !table.options.is_empty()),
    ];
    if let Some((name, _)) = foreign.into_iter().find(|(_, given)| *given) {
        return Err(format!("{name} does not apply to a command; let the command do it"));
    }
    if command.trim().is_empty() {
        return Err("command is empty".to_owned());
    }
    command_placeholders(command, "p", "f").map_err(|reason| format!("command: {reason}"))?;
    Ok(Target::new("command".to_owned(), Place::Command(command.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Target>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("walrelay.toml");
        std::fs::write(&path, text).unwrap();
        archive_targets(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn everything_that_can_be_set() {
        let targets = read(
            "[archive.one]\nurl = \"s3://bucket/x\"\ncompression = \"zstd\"\ncompression-level = 9\nrate = \"5MB\"\n\
             encryption-key-file = \"/etc/key\"\nconcurrency = 8\npartial-interval = \"1s\"\nquota = \"10GB\"\n\
             on-quota = \"drop\"\nkeep-age = \"30d\"\nkeep-size = \"1TB\"\nendpoint = \"http://127.0.0.1:1\"\n\
             region = \"eu-central-1\"\npath-style = true\nprofile = \"p\"\noptions = { unsigned-payload = \"true\" }\n\
             [archive.two]\ncommand = \"cp %p /x/%f\"\n",
        )
        .unwrap();
        let [one, two] = &targets[..] else { panic!("{targets:?}") };
        assert_eq!((one.name.as_str(), two.name.as_str()), ("one", "two"));
        assert_eq!(one.compression, Compression::Zstd(9));
        assert_eq!((one.rate, one.quota), (Some(5 << 20), Some(10 << 30)));
        assert_eq!((one.concurrency, two.concurrency), (8, 1));
        assert_eq!(one.on_quota, OnQuota::Drop);
        assert_eq!(one.partial_interval, Some(Duration::from_secs(1)));
        assert_eq!(one.keep_age, Some(Duration::from_secs(30 * 86400)));
        let Place::Objects(place) = &one.place else { panic!("{one:?}") };
        assert_eq!(place.options.get("unsigned_payload").map(String::as_str), Some("true"));
        assert_eq!(place.options.len(), 5);
        assert_eq!(two.place, Place::Command("cp %p /x/%f".to_owned()));
    }

    #[test]
    fn urls_alone_will_do() {
        assert_eq!(read("archive = \"file:///a\"\n").unwrap().len(), 1);
        assert_eq!(read("archive = [\"file:///a\", \"gs://b\"]\n").unwrap().len(), 2);
        assert_eq!(read("").unwrap(), []);
    }

    #[test]
    fn barmans_layout_depends_on_the_place() {
        let layout = |url: &str| {
            read(&format!("[archive.a]\nurl = \"{url}\"\nlayout = \"barman\"\n")).unwrap()[0].layout
        };
        assert_eq!(layout("file:///var/lib/barman/main"), Layout::Barman);
        assert_eq!(layout("s3://bucket/main"), Layout::BarmanCloud);
    }

    #[test]
    fn mistakes_are_named() {
        let check = |lines: &str, expected: &str| {
            let text = read(&format!("[archive.a]\n{lines}\n")).unwrap_err();
            assert!(text.contains(expected), "{text}");
        };
        check("", "archive target \"a\": needs either url or command");
        check("url = \"file:///a\"\ncommand = \"true\"", "needs either url or command");
        check("url = \"file:///a\"\nno-such = 1", "unknown field `no-such`");
        check("url = \"file:///a\"\nregion = \"x\"", "region does not apply to file: URLs");
        check("url = \"file:///a\"\ncompression-level = 3", "needs compression");
        check("url = \"file:///a\"\ncompression = \"gzip\"\ncompression-level = 10", "not in 1 to 9");
        check("url = \"file:///a\"\ncompression = \"bz2\"", "is not one of none, lz4, zstd, gzip");
        check("url = \"file:///a\"\non-quota = \"drop\"", "needs quota");
        check("url = \"file:///a\"\nquota = \"1\"\non-quota = \"stop\"", "is not one of hold, drop");
        check("url = \"file:///a\"\nconcurrency = 0", "not in 1 to 64");
        check("url = \"file:///a\"\npartial-interval = \"1ms\"", "the least is 100ms");
        check("url = \"file:///a\"\nlayout = \"wal-g\"", "is not one of plain, barman");
        check("url = \"s3://a\"\nlayout = \"barman\"\nencryption-key-file = \"k\"", "Barman cannot decrypt");
        check("command = \"cp %p %x\"", "%x");
        check("command = \"true\"\ncompression = \"lz4\"", "does not apply to a command");
        let text = read("[archive.\"a b\"]\nurl = \"file:///a\"\n").unwrap_err();
        assert!(text.contains("letters, digits"), "{text}");
        for other in ["file:///a", "file:///a/", "file:///b/../a", "file:///.//a"] {
            let text = read(&format!("archive = [\"file:///a\", \"{other}\"]\n")).unwrap_err();
            assert!(text.contains("has the same URL as"), "{text}");
        }
        read("archive = [\"s3://a/b\", \"s3://a/b/c\"]\n").unwrap();
        let text = read("archive = [\"s3://a/b\", \"s3://a/b/\"]\n").unwrap_err();
        assert!(text.contains("has the same URL as"), "{text}");
    }

    #[test]
    fn keys_are_written_with_dashes_or_underscores() {
        let targets = read(
            "[archive.my_target]\nurl = \"file:///a\"\npartial_interval = \"1s\"\nkeep_size = \"1GB\"\n",
        )
        .unwrap();
        assert_eq!((targets[0].name.as_str(), targets[0].keep_size), ("my_target", Some(1 << 30)));
        assert_eq!(targets[0].partial_interval, Some(Duration::from_secs(1)));
        assert!(read("wal_keep_size = 64\nmax-slot_wal_keep-size = -1\n").is_ok());
        let check = |text: &str, expected: &str| {
            let error = read(text).unwrap_err();
            assert!(error.contains(expected), "{error}");
        };
        check(
            "[archive.a]\nurl = \"file:///a\"\npartial_intervall = \"1s\"\n",
            "line 3, key \"partial_intervall\": unknown field `partial-intervall`; the nearest known one is `partial-interval`",
        );
        check(
            "\nwal_keep_sise = 1\n",
            "line 2, key \"wal_keep_sise\": unknown field `wal-keep-sise`; the nearest known one is `wal-keep-size`",
        );
        check("wal_keep_size = 1\nwal-keep-size = 1\n", "is given twice");
    }
}
