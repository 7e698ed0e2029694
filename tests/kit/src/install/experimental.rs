//! PostgreSQL 19 from Debian's experimental distribution, in a private root.
//!
//! Its libraries are newer than the system's, so programs and libraries are made to use those unpacked beside them,
//! the dynamic loader included. Nothing of the system is touched: apt works in directories of its own.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::process::output;

const MAJOR: &str = "19";
/// Packages that are needed only to install or administer a server, by how their names begin.
const LEFT_OUT: [&str; 3] = ["libperl", "libpython", "libllvm"];

type Result<T> = std::result::Result<T, String>;

/// Unpacks it into `dir`: programs in `dir/bin`.
///
/// # Errors
/// What the failing step said.
pub(super) fn unpack_into(dir: &Path) -> Result<()> {
    println!("installing PostgreSQL {MAJOR} from Debian experimental");
    let root = dir.join("root");
    fs::create_dir_all(&root).map_err(|error| format!("{}: {error}", root.display()))?;
    let apt = Apt::in_dir(&dir.join("apt"))?;
    for file in apt.download(&apt.packages()?)? {
        output(Command::new("dpkg").arg("-x").arg(file).arg(&root))?;
    }
    let _ = fs::remove_dir_all(&apt.dir);
    output(Command::new("chmod").args(["-R", "a+rX"]).arg(dir))?;
    Root { dir: root }.make_its_own(&dir.join("bin"))
}

/// An apt with state, cache and sources of its own.
struct Apt {
    dir: PathBuf,
}

impl Apt {
    fn in_dir(dir: &Path) -> Result<Apt> {
        let mirror = mirror().ok_or("this system gets its packages from no Debian mirror")?;
        let keys = "/usr/share/keyrings/debian-archive-keyring.gpg";
        let sources =
            ["experimental", "sid"].map(|suite| format!("deb [signed-by={keys}] {mirror} {suite} main\n"));
        let made = (|| {
            for part in ["lists/partial", "archives/partial", "preferences.d"] {
                fs::create_dir_all(dir.join(part))?;
            }
            fs::write(dir.join("status"), "")?;
            fs::write(dir.join("sources.list"), sources.concat())
        })();
        made.map_err(|error| format!("{}: {error}", dir.display()))?;
        let apt = Apt { dir: dir.to_owned() };
        output(apt.command("apt-get").args(["-q", "update"]))?;
        Ok(apt)
    }

    fn command(&self, program: &str) -> Command {
        let at = |option: &str, name: &str| format!("{option}={}", self.dir.join(name).display());
        let options = [
            at("Dir::State", ""),
            at("Dir::State::status", "status"),
            at("Dir::Cache", ""),
            at("Dir::Etc::sourcelist", "sources.list"),
            "Dir::Etc::sourceparts=-".to_owned(),
            at("Dir::Etc::preferencesparts", "preferences.d"),
            "APT::Get::List-Cleanup=0".to_owned(),
            "APT::Sandbox::User=root".to_owned(),
            "Acquire::Languages=none".to_owned(),
            "Acquire::Retries=3".to_owned(),
        ];
        let mut command = Command::new(program);
        for option in options {
            command.arg("-o").arg(option);
        }
        command
    }

    /// The server, its clients, and all libraries that they need.
    fn packages(&self) -> Result<Vec<String>> {
        let (server, client) = (format!("postgresql-{MAJOR}"), format!("postgresql-client-{MAJOR}"));
        let depends =
            ["depends", "--recurse", "--no-recommends", "--no-suggests", "--no-conflicts", "--no-breaks"];
        let more = ["--no-replaces", "--no-enhances", &server, &client];
        let listed = output(self.command("apt-cache").args(depends).args(more))?;
        let wanted = |name: &&str| {
            let is_name = name.starts_with(|c: char| c.is_ascii_lowercase()) && !name.contains(':');
            let is_part = name.starts_with("lib")
                || *name == "zlib1g"
                || [&server, &client].iter().any(|it| it == name);
            is_name && is_part && !LEFT_OUT.iter().any(|left_out| name.starts_with(left_out))
        };
        let mut names: Vec<String> = listed.lines().filter(wanted).map(str::to_owned).collect();
        names.sort();
        names.dedup();
        match names.contains(&server) {
            true => Ok(names),
            false => Err(format!("the mirror has no {server}")),
        }
    }

    fn download(&self, names: &[String]) -> Result<Vec<PathBuf>> {
        let archives = self.dir.join("archives");
        for name in names {
            let mut download = self.command("apt-get");
            download.args(["-q", "-t", "experimental", "download", name]).current_dir(&archives);
            // Names that only stand for others cannot be had.
            if let Err(said) = output(&mut download)
                && name.starts_with("postgresql")
            {
                return Err(said);
            }
        }
        let entries = fs::read_dir(&archives).map_err(|error| error.to_string())?;
        let files = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
        Ok(files.filter(|path| path.extension().is_some_and(|extension| extension == "deb")).collect())
    }
}

/// Where this system gets Debian's packages from.
fn mirror() -> Option<String> {
    let parts =
        fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten().map(|entry| entry.path());
    let files = std::iter::once(PathBuf::from("/etc/apt/sources.list")).chain(parts);
    files.filter_map(|path| fs::read_to_string(path).ok()).find_map(|text| {
        let lines = text.lines().filter(|line| line.starts_with("URIs:") || line.starts_with("deb "));
        let mut words = lines.flat_map(str::split_whitespace);
        let is_mirror = |word: &&str| word.contains("://") && word.trim_end_matches('/').ends_with("/debian");
        words.find(is_mirror).map(str::to_owned)
    })
}

/// A directory with what lies in `/` elsewhere.
struct Root {
    dir: PathBuf,
}

impl Root {
    /// Makes programs and libraries use this root's loader and libraries, and links the programs into `bin`.
    fn make_its_own(&self, bin: &Path) -> Result<()> {
        let failed = |error: std::io::Error| format!("{}: {error}", self.dir.display());
        let home = self.dir.join("usr/lib/postgresql").join(MAJOR);
        let libraries = self.dir.join("usr/lib/x86_64-linux-gnu");
        let loader = ["usr/lib64/ld-linux-x86-64.so.2", "usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"];
        let loader = loader.map(|path| self.dir.join(path)).into_iter().find(|path| path.exists());
        let loader = loader.ok_or("there is no dynamic loader among the packages")?;
        fs::create_dir_all(bin).map_err(failed)?;
        let (ours, theirs) = (libraries.display(), home.join("lib"));
        for program in files_in(&home.join("bin"))? {
            let path = format!("{ours}:{}", theirs.display());
            let mut patch = Command::new("patchelf");
            patch.arg("--set-interpreter").arg(&loader).args(["--force-rpath", "--set-rpath", &path]);
            // Scripts are none of its business.
            let _ = output(patch.arg(&program));
            symlink(&program, bin.join(program.file_name().unwrap_or_default())).map_err(failed)?;
        }
        for library in files_in(&libraries)?.into_iter().chain(files_in(&theirs)?) {
            let name = library.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let is_link = fs::symlink_metadata(&library).is_ok_and(|meta| meta.is_symlink());
            if name.contains(".so")
                && !is_link
                && !name.starts_with("ld-linux")
                && !name.starts_with("libc.so")
            {
                let patch = ["--force-rpath", "--set-rpath", &ours.to_string()];
                let _ = output(Command::new("patchelf").args(patch).arg(&library));
            }
        }
        Ok(())
    }
}

fn files_in(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    let paths = entries.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    Ok(paths.filter(|path| path.is_file()).collect())
}
