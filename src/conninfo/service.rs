//! Connection service files (PG: `parseServiceInfo`).

use std::io;
use std::path::{Path, PathBuf};

use super::options::{Keyword, Settings};
use super::{ConnInfoError, Environment, is_space};

/// Longest line of a service file, as libpq's buffer allows it.
const MAX_LINE: usize = 1022;
/// Where packages put the system-wide file when `PGSYSCONFDIR` does not say.
const SYSTEM_DIRECTORY: &str = "/etc/postgresql-common";

/// Fills in what the service named in `settings`, or by `PGSERVICE`, says and `settings` does not.
pub(super) fn apply(settings: &mut Settings, environment: &Environment) -> Result<(), ConnInfoError> {
    let name = settings.get(Keyword::Service).or_else(|| environment.variable("PGSERVICE"));
    let Some(service) = name.map(str::to_owned) else {
        return Ok(());
    };
    for file in files(environment) {
        let Some(text) = file.read()? else { continue };
        if read_section(&file.path, &text, &service, settings)? {
            return Ok(());
        }
    }
    Err(ConnInfoError::ServiceNotFound { service })
}

struct ServiceFile {
    path: PathBuf,
    /// Named by the operator, so that it must exist.
    named: bool,
}

impl ServiceFile {
    fn read(&self) -> Result<Option<String>, ConnInfoError> {
        match crate::permissions::read_limited(&self.path) {
            Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).into_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound && !self.named => Ok(None),
            Err(source) => Err(ConnInfoError::ServiceFile { path: self.path.clone(), source }),
        }
    }
}

/// The user's file, then the system's.
fn files(environment: &Environment) -> Vec<ServiceFile> {
    let named =
        environment.variable("PGSERVICEFILE").map(|path| ServiceFile { path: path.into(), named: true });
    let user = named.or_else(|| {
        let path = environment.home()?.join(".pg_service.conf");
        Some(ServiceFile { path, named: false })
    });
    let directory = environment.variable("PGSYSCONFDIR").unwrap_or(SYSTEM_DIRECTORY);
    let system = ServiceFile { path: Path::new(directory).join("pg_service.conf"), named: false };
    user.into_iter().chain([system]).collect()
}

/// Whether `text` has the section; its settings are added then.
fn read_section(
    path: &Path,
    text: &str,
    service: &str,
    settings: &mut Settings,
) -> Result<bool, ConnInfoError> {
    let mut found = false;
    for (index, line) in text.lines().enumerate() {
        let at = |problem| ConnInfoError::ServiceLine { path: path.to_owned(), line: index + 1, problem };
        if line.len() > MAX_LINE {
            return Err(at("too long"));
        }
        let line = line.trim_matches(is_space);
        match line.strip_prefix('[') {
            _ if line.is_empty() || line.starts_with('#') => {}
            Some(_) if found => return Ok(true),
            Some(section) => found = section.strip_prefix(service).is_some_and(|rest| rest.starts_with(']')),
            None if found => {
                let (name, value) = line.split_once('=').ok_or_else(|| at("no \"=\""))?;
                match Keyword::find(name).ok_or_else(|| at("unknown connection option"))? {
                    Keyword::Service => return Err(at("nested service specifications are not supported")),
                    keyword => settings.set_if_missing(keyword, value.to_owned()),
                }
            }
            None => {}
        }
    }
    Ok(found)
}
