//! What the process brings along: variables, the user's name and home.

use std::collections::HashMap;
use std::path::PathBuf;

/// A copy of what libpq would ask the process and the operating system for. Tests make their own.
#[derive(Clone, Default)]
pub struct Environment {
    variables: HashMap<String, String>,
    user: Option<String>,
    home: Option<PathBuf>,
}

impl Environment {
    /// The environment of this process: `HOME`, `PG...`, and the passwd entry of the effective user.
    pub fn of_process() -> Environment {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        let variables =
            std::env::vars_os().filter_map(text).filter(|(name, _)| name == "HOME" || name.starts_with("PG"));
        let entry = nix::unistd::User::from_uid(nix::unistd::Uid::effective()).ok().flatten();
        Environment {
            variables: variables.collect(),
            user: entry.as_ref().map(|entry| entry.name.clone()),
            home: entry.map(|entry| entry.dir),
        }
    }

    /// An environment with this operating system user and nothing else.
    pub fn of_user(name: &str) -> Environment {
        Environment { user: Some(name.to_owned()), ..Environment::default() }
    }

    /// The same environment with one more variable.
    pub fn with(mut self, name: &str, value: &str) -> Environment {
        self.variables.insert(name.to_owned(), value.to_owned());
        self
    }

    /// The variable's value.
    pub(super) fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }

    /// Name of the operating system user.
    pub(super) fn user(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// Home directory, `$HOME` before the passwd entry (PG: `pqGetHomeDirectory`).
    pub(super) fn home(&self) -> Option<PathBuf> {
        let variable = self.variable("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
        variable.or_else(|| self.home.clone())
    }
}
