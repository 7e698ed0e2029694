//! [Ansible](https://docs.ansible.com), from Python packages, in a directory of our own.

use std::process::Command;

use crate::install::InstallError;
use crate::packages::Packages;

/// Distribution and version: `ansible-core`, without any collection, and what it needs.
const PACKAGES: [(&str, &str); 9] = [
    ("ansible-core", "2.19.14"),
    ("cffi", "2.1.1"),
    ("cryptography", "50.0.2"),
    ("jinja2", "3.1.6"),
    ("markupsafe", "3.0.4"),
    ("packaging", "26.4"),
    ("pycparser", "3.12"),
    ("pyyaml", "6.0.4"),
    ("resolvelib", "1.2.1"),
];

fn locate() -> Option<Packages> {
    Packages::locate("ansible", &PACKAGES)
}

/// Whether it is there: where it cannot be had, its story says so and does nothing.
pub fn is_here() -> bool {
    locate().is_some_and(|packages| packages.are_complete())
}

/// The text of a script `ansible-playbook`, for a directory of the `PATH`; `None` if it is not there.
pub fn playbook_script() -> Option<String> {
    locate().filter(Packages::are_complete).map(|packages| packages.program("ansible-playbook"))
}

/// A Python interpreter with PyYAML, which comes along; `None` if it is not there.
pub fn interpreter() -> Option<Command> {
    locate().filter(Packages::are_complete).map(|packages| packages.interpreter())
}

/// Finds Ansible, or installs it; tells which version.
///
/// # Errors
/// When it is neither there nor can be installed; the message says what to do.
pub fn ensure() -> Result<&'static str, InstallError> {
    let failed = |message| InstallError::Tool { name: "Ansible", message };
    let nobody = || failed("no Python that the servers' account can run".to_owned());
    locate().ok_or_else(nobody)?.ensure().map_err(failed)?;
    Ok(PACKAGES[0].1)
}
