//! What an archive target is, as configured.

use std::path::PathBuf;
use std::time::Duration;

use url::Url;

use super::codec::Compression;
use super::layout::Layout;
use super::sidecar::Sha256;
use crate::objects::{ObjectPlace, PlaceError, place};

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

/// What happens when a target needs more WAL kept than its quota.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OnQuota {
    /// It is kept nevertheless.
    #[default]
    Hold,
    /// It is let go, and the gap recorded.
    Drop,
}

impl Target {
    /// A target with all defaults; `memory:` is for tests. The name comes from the URL and stays the same.
    pub fn from_url(url: &str) -> Result<Target, PlaceError> {
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

/// Whether what was saved for `saved` was saved for this [`Target::identity`].
pub(crate) fn is_same_place(saved: &str, identity: &str) -> bool {
    let parts = || saved.split_once(' ').zip(identity.split_once(' '));
    saved == identity
        || parts()
            .is_some_and(|((layout, place), (other, now))| layout == other && place::is_same(place, now))
}

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
}
