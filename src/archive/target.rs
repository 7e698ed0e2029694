//! What an archive target is, as configured.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use url::Url;

use super::codec::Compression;
use super::layout::Layout;
use super::sidecar::Sha256;
use crate::redact::redact;

/// One target of the archive.
#[derive(Clone, PartialEq, Debug)]
pub struct Target {
    /// Its name in logs, state files and commands: letters, digits, `_` and `-`.
    pub name: String,
    /// Where it is.
    pub place: Place,
    /// How it arranges its objects.
    pub layout: Layout,
    /// How it compresses.
    pub compression: Compression,
    /// Keys to encrypt with; `None` for no encryption.
    pub key_file: Option<PathBuf>,
    /// Most bytes per second that are sent to it, on average; `None` for no limit.
    pub rate: Option<u64>,
    /// Most files that are sent at a time.
    pub concurrency: usize,
    /// How late the tail of the unfinished segment may be; `None` to send finished segments only.
    pub partial_interval: Option<Duration>,
    /// Most WAL that the relay keeps for this target without asking [`OnQuota`], in bytes.
    pub quota: Option<u64>,
    /// What happens when it needs more than that.
    pub on_quota: OnQuota,
    /// Age at which WAL in the target may be removed.
    pub keep_age: Option<Duration>,
    /// Size of the WAL in the target, bytes, beyond which the oldest may be removed.
    pub keep_size: Option<u64>,
}

/// Where a target is.
#[derive(Clone, PartialEq, Debug)]
pub enum Place {
    /// A directory or an object store.
    Objects(ObjectPlace),
    /// A command with the contract of `archive_command`.
    Command(String),
}

/// A directory or a prefix in a bucket.
#[derive(Clone, PartialEq, Debug)]
pub struct ObjectPlace {
    /// `file:`, `s3:`, `gs:` or `az:`.
    pub url: Url,
    /// Options of the object store, by the names of its configuration keys (`endpoint`, `region`, ...).
    pub options: BTreeMap<String, String>,
}

/// What happens when a target needs more WAL kept than its quota.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnQuota {
    /// It is kept nevertheless.
    #[default]
    Hold,
    /// It is let go, and the gap recorded.
    Drop,
}

/// A target cannot be understood.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// Not a URL at all.
    #[error(
        "\"{}\" is not a URL: {reason}; use file:///directory, s3://bucket/prefix, gs:// or az://",
        redact(url)
    )]
    Syntax {
        /// The text.
        url: String,
        /// Why not.
        reason: String,
    },
    /// A URL for something else.
    #[error(
        "\"{}\" is not an archive: use file:///directory, s3://bucket/prefix, gs:// or az://",
        redact(url)
    )]
    Scheme {
        /// The text.
        url: String,
    },
    /// The URL lacks a part or has one too many.
    #[error("\"{}\": {reason}", redact(url))]
    Part {
        /// The text.
        url: String,
        /// Which.
        reason: &'static str,
    },
}

impl Target {
    /// A target with all defaults; `memory:` is for tests. The name comes from the URL and stays the same.
    pub fn from_url(url: &str) -> Result<Target, TargetError> {
        let place = ObjectPlace::parse(url)?;
        Ok(Target::new(name_of(&place.url), Place::Objects(place)))
    }

    /// A target with all defaults.
    pub fn new(name: String, place: Place) -> Target {
        let concurrency = match place {
            Place::Objects(_) => 4,
            Place::Command(_) => 1,
        };
        Target {
            name,
            place,
            layout: Layout::default(),
            compression: Compression::default(),
            key_file: None,
            rate: None,
            concurrency,
            partial_interval: None,
            quota: None,
            on_quota: OnQuota::default(),
            keep_age: None,
            keep_size: None,
        }
    }

    /// Names of the settings, as they are written in a file, that are not the same in `other`.
    pub fn differences(&self, other: &Target) -> Vec<String> {
        let mut names = self.place.differences(&other.place);
        let compared = [
            ("layout", self.layout == other.layout),
            ("compression", self.compression == other.compression),
            ("encryption-key-file", self.key_file == other.key_file),
            ("rate", self.rate == other.rate),
            ("concurrency", self.concurrency == other.concurrency),
            ("partial-interval", self.partial_interval == other.partial_interval),
            ("quota", self.quota == other.quota),
            ("on-quota", self.on_quota == other.on_quota),
            ("keep-age", self.keep_age == other.keep_age),
            ("keep-size", self.keep_size == other.keep_size),
        ];
        names.extend(compared.into_iter().filter(|(_, same)| !same).map(|(name, _)| name.to_owned()));
        names
    }

    /// Whether objects are stored and read in the same way.
    pub fn has_objects_of(&self, other: &Target) -> bool {
        let way = |target: &Target| (target.layout, target.compression, target.key_file.clone());
        self.place == other.place && way(self) == way(other)
    }

    /// What tells whether progress made earlier still counts: the place, however it is spelled, and its layout.
    pub fn identity(&self) -> String {
        match &self.place {
            Place::Objects(place) => format!("{} {}", self.layout.as_str(), place.identity()),
            Place::Command(_) => "command".to_owned(),
        }
    }
}

/// Whether what was saved for `saved` was saved for this [`Target::identity`]. Earlier versions saved a URL as it was
/// spelled, and not which store it is in: that may be any.
pub(super) fn is_same_place(saved: &str, identity: &str) -> bool {
    let of_old = |saved: &str| {
        let (layout, url) = saved.split_once(' ')?;
        let place = ObjectPlace { url: Url::parse(url).ok()?, options: BTreeMap::new() };
        Some(format!("{layout} {}", place.spelling()))
    };
    let without_store = identity.split(STORE).next();
    saved == identity || (!saved.contains(STORE) && of_old(saved).as_deref() == without_store)
}

/// Comes between URL and store, and in neither.
const STORE: &str = " at ";

impl Place {
    fn differences(&self, other: &Place) -> Vec<String> {
        match (self, other) {
            (Place::Objects(one), Place::Objects(other)) => one.differences(other),
            (Place::Command(one), Place::Command(other)) if one == other => Vec::new(),
            (Place::Command(_), Place::Command(_)) => vec!["command".to_owned()],
            _ => vec!["url".to_owned(), "command".to_owned()],
        }
    }
}

impl ObjectPlace {
    /// The same for all ways to write the same place. What links and mounts make the same is found elsewhere.
    pub fn identity(&self) -> String {
        match self.url.scheme() {
            "file" | "memory" => self.spelling(),
            _ => format!("{}{STORE}{}", self.spelling(), self.store()),
        }
    }

    fn spelling(&self) -> String {
        let path = self.url.to_file_path().ok().filter(|_| self.url.scheme() == "file");
        // Its parts, without empty ones.
        let path = path.and_then(|path| Url::from_file_path(path.components().collect::<PathBuf>()).ok());
        path.unwrap_or_else(|| self.url.clone()).as_str().trim_end_matches('/').to_owned()
    }

    /// Which of the stores that could have such a bucket.
    fn store(&self) -> String {
        let option = |names: [&str; 4]| names.iter().find_map(|name| self.options.get(*name));
        let server = match self.url.scheme() {
            "s3" => option(["aws_endpoint_url_s3", "endpoint", "aws_endpoint", "endpoint_url"])
                .or_else(|| self.options.get("aws_endpoint_url")),
            "az" => option(["endpoint", "azure_endpoint", "azure_storage_endpoint", ""]),
            _ => option(["base_url", "google_base_url", "", ""]),
        };
        let account = option(["account_name", "azure_storage_account_name", "", ""]);
        // With or without TLS it is the same, and credentials are not to be saved.
        let server = server.map(|text| text.split_once("://").map_or(text.as_str(), |(_, rest)| rest));
        let server = server.map(|text| text.rsplit('@').next().unwrap_or(text).trim_end_matches('/'));
        let account = account.map(|account| format!(", account {account}")).unwrap_or_default();
        format!("{}{account}", server.unwrap_or("the provider's"))
    }

    /// Names only: there are secrets among the values.
    fn differences(&self, other: &ObjectPlace) -> Vec<String> {
        let url = (self.url != other.url).then(|| "url".to_owned());
        let names: BTreeSet<_> = self.options.keys().chain(other.options.keys()).collect();
        let differ = |name: &&&String| self.options.get(**name) != other.options.get(**name);
        url.into_iter().chain(names.iter().filter(differ).map(|name| name.replace('_', "-"))).collect()
    }

    /// Reads a URL without options.
    pub fn parse(text: &str) -> Result<ObjectPlace, TargetError> {
        let owned = || text.to_owned();
        let part = |reason| Err(TargetError::Part { url: owned(), reason });
        let url = Url::parse(text)
            .map_err(|error| TargetError::Syntax { url: owned(), reason: error.to_string() })?;
        if url.query().is_some() || url.fragment().is_some() {
            return part(
                "options do not belong in the URL; write them in [archive.NAME] of the --config file",
            );
        }
        if url.password().is_some() || (url.scheme() != "az" && !url.username().is_empty()) {
            return part("credentials do not belong in the URL; give them by environment or profile");
        }
        match url.scheme() {
            "file" if url.host_str().is_some() => part("use three slashes: file:///directory"),
            "file" if url.to_file_path().is_err() || url.path() == "/" => part("names no directory"),
            "s3" | "gs" | "az" if url.host_str().is_none_or(str::is_empty) => part("names no bucket"),
            "file" | "s3" | "gs" | "az" | "memory" => Ok(ObjectPlace { url, options: BTreeMap::new() }),
            _ => Err(TargetError::Scheme { url: owned() }),
        }
    }
}

/// Readable, and different for different URLs.
fn name_of(url: &Url) -> String {
    let text = format!("{}-{}{}", url.scheme(), url.host_str().unwrap_or(""), url.path());
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let words: String = text.trim_end_matches('/').chars().map(plain).collect();
    let parts: Vec<&str> = words.split('-').filter(|part| !part.is_empty()).collect();
    let readable: String = parts.join("-").chars().take(40).collect();
    format!("{readable}-{}", &Sha256::of(url.as_str().as_bytes()).short()[..8])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_become_targets_with_lasting_names() {
        let target = Target::from_url("s3://bucket/some/prefix").unwrap();
        assert!(target.name.starts_with("s3-bucket-some-prefix-"), "{}", target.name);
        assert_eq!(target, Target::from_url("s3://bucket/some/prefix").unwrap());
        assert_ne!(target.name, Target::from_url("s3://bucket/some-prefix").unwrap().name);
        let legal = |c: char| c.is_ascii_alphanumeric() || c == '-';
        let odd = Target::from_url("file:///var/lib/ä b/%41").unwrap();
        assert!(odd.name.chars().all(legal), "{}", odd.name);
    }

    #[test]
    fn what_differs_is_named_without_its_value() {
        let one = Target::from_url("s3://bucket/a").unwrap();
        assert_eq!(one.differences(&one), [""; 0]);
        let mut other = one.clone();
        let Place::Objects(place) = &mut other.place else { panic!("it is one") };
        place.options.insert("secret_access_key".to_owned(), "secret".to_owned());
        other.keep_size = Some(1);
        other.compression = Compression::Lz4;
        assert_eq!(one.differences(&other), ["secret-access-key", "compression", "keep-size"]);
        let elsewhere = Target { place: Target::from_url("s3://bucket/b").unwrap().place, ..one.clone() };
        assert_eq!(one.differences(&elsewhere), ["url"]);
    }

    #[test]
    fn a_place_is_the_same_however_it_is_spelled_and_another_in_another_store() {
        let target = |url: &str, options: &[(&str, &str)]| {
            let mut place = ObjectPlace::parse(url).unwrap();
            place.options =
                options.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            Target::new("x".to_owned(), Place::Objects(place)).identity()
        };
        assert_eq!(target("file:///a/b", &[]), "plain file:///a/b");
        for other in ["file:///a/b/", "file:///a//b", "file:///a/./b", "file:///%61/b//"] {
            assert_eq!(target(other, &[]), "plain file:///a/b", "{other}");
            assert!(is_same_place(&format!("plain {other}"), "plain file:///a/b"), "{other}");
        }
        let minio = ("endpoint", "https://u:hunter2@minio:9000/");
        let expected = "plain s3://bucket/wal at minio:9000";
        assert_eq!(target("s3://bucket/wal/", &[minio, ("region", "x")]), expected);
        assert_eq!(target("s3://bucket/wal", &[("aws_endpoint", "http://minio:9000")]), expected);
        let others = [
            target("s3://bucket/wal", &[]),
            target("s3://bucket/wal", &[("endpoint", "https://other:9000")]),
            target("s3://bucket/other", &[minio]),
        ];
        assert!(
            others.iter().all(|other| other != expected && !is_same_place(other, expected)),
            "{others:?}"
        );
        let account = |name| target("az://box/wal", &[("account_name", name)]);
        assert!(account("one") != account("two") && !is_same_place(&account("one"), &account("two")));
        // As it was saved before.
        for old in ["plain s3://bucket/wal", "plain s3://bucket/wal/"] {
            assert!(is_same_place(old, expected) && is_same_place(old, &others[0]), "{old}");
            assert!(!is_same_place(old, &others[2]), "{old}");
        }
        assert!(!is_same_place("barman s3://bucket/wal", expected));
        assert!(is_same_place("command", "command") && !is_same_place("command", expected));
    }

    #[test]
    fn mistakes_are_named() {
        let check = |url: &str, expected: &str| {
            let text = Target::from_url(url).unwrap_err().to_string();
            assert!(text.contains(expected), "{text}");
        };
        check("/var/archive", "is not a URL");
        check("ftp://host/x", "is not an archive");
        check("file://var/archive", "three slashes");
        check("file:///", "names no directory");
        check("s3:///x", "names no bucket");
        check("s3://bucket/x?region=a", "do not belong in the URL");
        check("s3://key:hunter2@bucket/x", "\"s3://key:***@bucket/x\": credentials do not belong in the URL");
        for url in [
            "s3://k:hunter2@b",
            "s3://b?secret_access_key=hunter2",
            "s3:/k:hunter2@b/%",
            "ftp://u:hunter2@h",
            "k:hunter2@b",
        ] {
            let text = Target::from_url(url).unwrap_err().to_string();
            assert!(!text.contains("hunter2"), "{text}");
        }
    }
}
