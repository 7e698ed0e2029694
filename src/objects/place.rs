//! Where objects are, as configured: a URL and what else a store's client has to know.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use url::Url;

use crate::redact::redact;

/// A directory or a prefix in a bucket.
#[derive(Clone, PartialEq, Debug)]
pub struct ObjectPlace {
    /// `file:`, `s3:`, `gs:` or `az:`.
    pub url: Url,
    /// Options of the object store, by the names of its configuration keys (`endpoint`, `region`, ...).
    pub options: BTreeMap<String, String>,
}

/// A place cannot be understood.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
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
    pub(crate) fn differences(&self, other: &ObjectPlace) -> Vec<String> {
        let url = (self.url != other.url).then(|| "url".to_owned());
        let names: BTreeSet<_> = self.options.keys().chain(other.options.keys()).collect();
        let differ = |name: &&&String| self.options.get(**name) != other.options.get(**name);
        url.into_iter().chain(names.iter().filter(differ).map(|name| name.replace('_', "-"))).collect()
    }

    /// Reads a URL without options.
    pub fn parse(text: &str) -> Result<ObjectPlace, PlaceError> {
        let owned = || text.to_owned();
        let part = |reason| Err(PlaceError::Part { url: owned(), reason });
        let url = Url::parse(text)
            .map_err(|error| PlaceError::Syntax { url: owned(), reason: error.to_string() })?;
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
            _ => Err(PlaceError::Scheme { url: owned() }),
        }
    }
}

/// Whether what was saved as the place `saved` is the one with this [`ObjectPlace::identity`]. Earlier versions saved a
/// URL as it was spelled, and not which store it is in: that may be any.
pub(crate) fn is_same(saved: &str, identity: &str) -> bool {
    let of_old = |saved: &str| {
        let place = ObjectPlace { url: Url::parse(saved).ok()?, options: BTreeMap::new() };
        Some(place.spelling())
    };
    let without_store = identity.split(STORE).next();
    saved == identity || (!saved.contains(STORE) && of_old(saved).as_deref() == without_store)
}

/// Comes between URL and store, and in neither.
const STORE: &str = " at ";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mistakes_are_named() {
        let check = |url: &str, expected: &str| {
            let text = ObjectPlace::parse(url).unwrap_err().to_string();
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
            let text = ObjectPlace::parse(url).unwrap_err().to_string();
            assert!(!text.contains("hunter2"), "{text}");
        }
    }
}
