//! A file that is there whole or not at all.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use super::InitError;

/// Written under another name. Gone when it is dropped before it is [published](Prepared::publish).
#[derive(Debug)]
pub(super) struct Prepared {
    new: PathBuf,
    path: PathBuf,
}

impl Prepared {
    /// Writes it, readable for the owner and the group of the directory: under a packaged unit that is the relay's.
    pub(super) fn write(path: &Path, text: &str) -> Result<Prepared, InitError> {
        let failed = |source| InitError::Write { path: path.to_owned(), source };
        let dir = dir_of(path);
        DirBuilder::new().recursive(true).mode(0o750).create(dir).map_err(failed)?;
        let (file, new) = create(dir, path).map_err(failed)?;
        let prepared = Prepared { new, path: path.to_owned() };
        fill(file, dir, text).map_err(failed)?;
        Ok(prepared)
    }

    /// Where it is until then.
    pub(super) fn place(&self) -> &Path {
        &self.new
    }

    /// Gives it its name, which nobody else has, unless it may be `forced`.
    pub(super) fn publish(self, forced: bool) -> Result<PathBuf, InitError> {
        let published = match forced {
            true => fs::rename(&self.new, &self.path),
            // Unlike a rename, it leaves what somebody has put there meanwhile.
            false => fs::hard_link(&self.new, &self.path),
        };
        match published.and_then(|()| File::open(dir_of(&self.path))?.sync_all()) {
            Ok(()) => Ok(self.path.clone()),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {
                Err(InitError::Exists(self.path.clone()))
            }
            Err(source) => Err(InitError::Write { path: self.path.clone(), source }),
        }
    }
}

/// A new file beside it, whose name nobody can foresee: the directory may be one where others write, too, and put something in
/// the way.
fn create(dir: &Path, path: &Path) -> io::Result<(File, PathBuf)> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    loop {
        let random = getrandom::u64().map_err(io::Error::other)?;
        let new = dir.join(format!(".{name}.{random:016x}"));
        // O_EXCL: a symbolic link is something that exists.
        match OpenOptions::new().write(true).create_new(true).mode(0o640).open(&new) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            created => return created.map(|file| (file, new)),
        }
    }
}

fn fill(mut file: File, dir: &Path, text: &str) -> io::Result<()> {
    let group = dir.metadata()?.gid();
    if group != file.metadata()?.gid() {
        // Only root, or a member of it, may.
        let _ = fchown(&file, None, Some(group));
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

impl Drop for Prepared {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.new);
    }
}

/// One that was published.
pub(super) fn remove(path: PathBuf) {
    let _ = fs::remove_file(path);
}

fn dir_of(path: &Path) -> &Path {
    path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_stays_unless_it_is_forced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep").join("walrelay.toml");
        let publish = |text: &str, forced| Prepared::write(&path, text).unwrap().publish(forced);
        publish("one", false).unwrap();
        assert!(matches!(publish("two", false), Err(InitError::Exists(_))));
        assert_eq!(fs::read_to_string(&path).unwrap(), "one");
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o640);
        publish("three", true).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "three");
        drop(Prepared::write(&path, "four").unwrap());
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing else is left");
    }
}
