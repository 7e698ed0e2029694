//! Profiles of the AWS tools: `~/.aws/credentials` and `~/.aws/config`, or where `AWS_SHARED_CREDENTIALS_FILE` and
//! `AWS_CONFIG_FILE` point.
//!
//! Taken are keys that stand in the files. What needs other services (`sso_*`, `credential_process`, `role_arn`)
//! is refused, so that nobody wonders whose credentials are used.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use object_store::aws::AmazonS3ConfigKey;

use super::OptionError;
use crate::permissions::{Distrust, check_shared_secret, read_rules};

/// What a section of such a file says.
type Section = BTreeMap<String, String>;

/// What the profile sets, if one is chosen by `given` or by `AWS_PROFILE`.
pub(super) fn settings(given: Option<&str>) -> Result<Vec<(AmazonS3ConfigKey, String)>, OptionError> {
    let chosen = given.map(str::to_owned).or_else(|| variable("AWS_PROFILE"));
    let Some(profile) = chosen else { return Ok(Vec::new()) };
    let fail = |reason: String| OptionError::Profile { profile: profile.clone(), reason };
    let credentials = read("AWS_SHARED_CREDENTIALS_FILE", "credentials").map_err(fail)?;
    let config = read("AWS_CONFIG_FILE", "config").map_err(fail)?;
    of_profile(&profile, &credentials, &config).map_err(fail)
}

fn of_profile(
    profile: &str,
    credentials: &str,
    config: &str,
) -> Result<Vec<(AmazonS3ConfigKey, String)>, String> {
    let long = format!("profile {profile}");
    let in_config = [long.as_str(), profile].into_iter().find_map(|name| section(config, name));
    let in_credentials = section(credentials, profile);
    if in_config.is_none() && in_credentials.is_none() {
        return Err("there is no such profile in the AWS credentials and config files".to_owned());
    }
    let mut found = in_config.unwrap_or_default();
    found.extend(in_credentials.unwrap_or_default());
    let elsewhere = |key: &&String| {
        key.starts_with("sso_")
            || ["credential_process", "role_arn", "source_profile"].contains(&key.as_str())
    };
    if let Some(key) = found.keys().find(elsewhere) {
        return Err(format!(
            "{key} is not supported; use aws_access_key_id and aws_secret_access_key, the environment or an instance role"
        ));
    }
    let known = [
        ("aws_access_key_id", AmazonS3ConfigKey::AccessKeyId),
        ("aws_secret_access_key", AmazonS3ConfigKey::SecretAccessKey),
        ("aws_session_token", AmazonS3ConfigKey::Token),
        ("region", AmazonS3ConfigKey::Region),
        ("endpoint_url", AmazonS3ConfigKey::Endpoint),
    ];
    Ok(known.into_iter().filter_map(|(name, key)| found.remove(name).map(|value| (key, value))).collect())
}

/// The named section of an INI file; `None` if there is none.
fn section(text: &str, name: &str) -> Option<Section> {
    let mut found = None;
    let mut inside = false;
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
        if let Some(title) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            inside = title.trim() == name;
            if inside {
                found.get_or_insert_with(Section::new);
            }
        } else if let (true, Some((key, value))) = (inside, line.split_once('=')) {
            found.get_or_insert_default().insert(key.trim().to_owned(), value.trim().to_owned());
        }
    }
    found
}

fn read(variable_name: &str, file: &str) -> Result<String, String> {
    let home = || variable("HOME").map(|home| PathBuf::from(home).join(".aws").join(file));
    let Some(path) = variable(variable_name).map(PathBuf::from).or_else(home) else {
        return Ok(String::new());
    };
    text_of(&path)
}

/// What stands in a file, which need not be there. One with keys must not be open to others, as the AWS tools write it.
fn text_of(path: &Path) -> Result<String, String> {
    let failed = |error: Distrust| format!("file \"{}\" {error}", path.display());
    let text = match read_rules(path) {
        Err(Distrust::Io(error)) if error.kind() == ErrorKind::NotFound => return Ok(String::new()),
        other => other.map_err(failed)?,
    };
    let holds_keys = |line: &str| {
        let key = line.split_once('=').map(|(key, _)| key.trim());
        matches!(key, Some("aws_secret_access_key" | "aws_session_token"))
    };
    if text.lines().any(holds_keys) {
        check_shared_secret(path).map_err(failed)?;
    }
    Ok(text)
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREDENTIALS: &str = "[default]\naws_access_key_id = no\n\n# the archive\n[wal]\naws_access_key_id=AK\n\
                               aws_secret_access_key = s=cret\n";

    #[test]
    fn keys_come_from_one_file_and_the_region_from_the_other() {
        let config = "[profile wal]\nregion = eu-central-1\naws_access_key_id = older\n";
        let found = of_profile("wal", CREDENTIALS, config).unwrap();
        let value = |key| found.iter().find(|(known, _)| *known == key).map(|(_, value)| value.as_str());
        assert_eq!(value(AmazonS3ConfigKey::AccessKeyId), Some("AK"));
        assert_eq!(value(AmazonS3ConfigKey::SecretAccessKey), Some("s=cret"));
        assert_eq!(value(AmazonS3ConfigKey::Region), Some("eu-central-1"));
    }

    #[test]
    fn what_cannot_be_used_is_refused() {
        assert!(of_profile("other", CREDENTIALS, "").unwrap_err().contains("no such profile"));
        let config = "[profile wal]\nsso_start_url = https://x\n";
        assert!(of_profile("wal", CREDENTIALS, config).unwrap_err().contains("sso_start_url"));
    }

    #[test]
    fn keys_that_others_can_read_are_refused() {
        use std::fs::{self, Permissions};
        use std::os::unix::fs::PermissionsExt;

        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("credentials");
        assert_eq!(text_of(&path), Ok(String::new()), "there need be none");
        let with_mode = |text: &str, mode| {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
            text_of(&path)
        };
        assert_eq!(with_mode(CREDENTIALS, 0o640).as_deref(), Ok(CREDENTIALS));
        let error = with_mode(CREDENTIALS, 0o644).unwrap_err();
        assert!(error.contains("credentials\" holds secrets and is open to others (0644)"), "{error}");
        let region = "[profile wal]\nregion = eu-central-1\n";
        assert_eq!(with_mode(region, 0o644).as_deref(), Ok(region));
        assert!(with_mode(region, 0o666).unwrap_err().contains("can be written by everybody (0666)"));
    }

    #[test]
    fn fuzz_profile() {
        bolero::check!().for_each(|bytes: &[u8]| {
            let Ok(text) = std::str::from_utf8(bytes) else { return };
            let _ = of_profile("wal", text, text);
        });
    }
}
