//! The directory that a target is: whether it is what it seems, and still the one it was.
//!
//! Names say little: one directory has many spellings, a mount point without its file system is an empty directory, and
//! somebody's `pg_wal` looks like an archive. So the root is looked at by device and inode, and holds a marker of its
//! own (`.walrelay-archive`), made at its first use.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::limit;
use super::sync::Syncs;

/// Name of the file that tells a target from the directory its file system is mounted on.
pub(super) const MARKER: &str = ".walrelay-archive";
const EXPLANATION: &str = "# walrelay archive: do not remove; without this file nothing is written here\n";

/// Device and inode.
type Id = (u64, u64);

/// Why a directory is no target: it never will be one. Inside of an [`io::Error`].
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Refused(String);

fn refused(reason: String) -> io::Error {
    io::Error::new(ErrorKind::InvalidInput, Refused(reason))
}

/// What the targets of one relay must not be: each other, its data directory, anybody's.
#[derive(Debug, Default)]
pub(crate) struct Places {
    data_dir: PathBuf,
    taken: Mutex<BTreeMap<String, Spot>>,
}

/// Where a directory is, or will be when somebody makes it: links are followed as far as it exists.
#[derive(Debug)]
struct Spot {
    path: PathBuf,
    id: Option<Id>,
    /// Those it lies in.
    above: Vec<Id>,
}

impl Spot {
    fn of(path: &Path) -> io::Result<Spot> {
        let (mut at, mut missing) = (path, Vec::new());
        let found = loop {
            match fs::canonicalize(at) {
                Err(error) if error.kind() == ErrorKind::NotFound => {
                    let (Some(parent), Some(name)) = (at.parent(), at.file_name()) else { return Err(error) };
                    missing.push(name);
                    at = parent;
                }
                found => break found?,
            }
        };
        let id = |dir: &Path| fs::metadata(dir).map(|found| id_of(&found));
        let mut above: Vec<_> = found.ancestors().filter_map(|dir| id(dir).ok()).collect();
        let own = id(&found)?;
        if missing.is_empty() {
            above.retain(|other| *other != own);
        }
        let path = missing.iter().rev().fold(found, |path, name| path.join(name));
        Ok(Spot { path, id: missing.is_empty().then_some(own), above })
    }

    fn is(&self, other: &Spot) -> bool {
        self.path == other.path || (self.id.is_some() && self.id == other.id)
    }

    fn lies_in(&self, other: &Spot) -> bool {
        self.path.starts_with(&other.path) || other.id.is_some_and(|id| self.above.contains(&id))
    }
}

impl Places {
    /// For the relay with this data directory.
    pub(crate) fn new(data_dir: &Path) -> Places {
        Places { data_dir: data_dir.to_owned(), taken: Mutex::default() }
    }

    /// The target `name` has no directory any more.
    pub(crate) fn release(&self, name: &str) {
        lock(&self.taken).remove(name);
    }

    /// Gives a directory, be it there or not, to the target `name`, or says why not.
    fn take(&self, spot: Spot, name: &str) -> io::Result<()> {
        let shown = spot.path.display();
        let own = Spot::of(&self.data_dir)?;
        if spot.is(&own) || spot.lies_in(&own) {
            return Err(refused(format!("directory \"{shown}\" is, or lies in, the relay's data directory")));
        }
        if own.lies_in(&spot) {
            return Err(refused(format!("directory \"{shown}\" contains the relay's data directory")));
        }
        refuse_foreign(&spot.path)?;
        let mut taken = lock(&self.taken);
        for (other, theirs) in taken.iter().filter(|(other, _)| *other != name) {
            let how = match () {
                () if spot.is(theirs) => format!("is archive target \"{other}\" already"),
                () if spot.lies_in(theirs) => format!("lies in that of archive target \"{other}\""),
                () if theirs.lies_in(&spot) => format!("contains that of archive target \"{other}\""),
                () => continue,
            };
            return Err(refused(format!("directory \"{shown}\" {how}")));
        }
        taken.insert(name.to_owned(), spot);
        Ok(())
    }
}

/// Refuses data directories of relays and of PostgreSQL, and what lies in their `pg_wal`. `root` is resolved.
fn refuse_foreign(root: &Path) -> io::Result<()> {
    let shown = root.display();
    if let Some(kind) = data_directory(root) {
        return Err(refused(format!("directory \"{shown}\" is a data directory of {kind}")));
    }
    // With a link from the data directory, only what the server puts there shows whose it is.
    if root.join("archive_status").is_dir() {
        return Err(refused(format!("directory \"{shown}\" is pg_wal of a PostgreSQL server")));
    }
    for dir in root.ancestors().filter(|dir| dir.file_name().is_some_and(|name| name == "pg_wal")) {
        if let Some(kind) = dir.parent().and_then(data_directory) {
            return Err(refused(format!("directory \"{shown}\" is, or lies in, pg_wal of {kind}")));
        }
    }
    Ok(())
}

fn data_directory(dir: &Path) -> Option<&'static str> {
    let has = |name: &str| dir.join(name).exists();
    if has("PG_VERSION") || has("global/pg_control") {
        return Some("a PostgreSQL server");
    }
    (has("walrelay.lock") || (has("cluster.toml") && has("pg_wal"))).then_some("a relay")
}

/// The root of a target.
#[derive(Debug)]
pub(super) struct Root {
    path: PathBuf,
    claim: Mutex<Option<Claim>>,
    syncs: Syncs,
}

/// Whose it is, and how it was when it was looked at last.
#[derive(Clone, Debug)]
struct Claim {
    places: Arc<Places>,
    name: String,
    marker: Option<String>,
    /// It was archived to before there were markers.
    used: bool,
    seen: Option<Id>,
}

/// What is to be done below a root.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Access {
    Read,
    Write,
}

impl Root {
    pub(super) fn new(path: PathBuf) -> Root {
        Root { path, claim: Mutex::default(), syncs: Syncs::default() }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// All syncs below it.
    pub(super) fn syncs(&self) -> &Syncs {
        &self.syncs
    }

    /// From now on it is the relay's target `name`, and must have this marker if one is known.
    ///
    /// One that was `used` and has no marker gets one only if something is there.
    pub(super) fn claim(&self, places: Arc<Places>, name: &str, marker: Option<String>, used: bool) {
        *lock(&self.claim) = Some(Claim { places, name: name.to_owned(), marker, used, seen: None });
    }

    /// Whether it may be the target `name`; an error only if it must not. One that is not there is told.
    pub(super) fn place(&self, places: &Places, name: &str) -> Result<(), String> {
        let take = || places.take(Spot::of(&self.path)?, name).and_then(|()| self.id().map(drop));
        match take() {
            Err(error) if error.get_ref().is_some_and(|inner| inner.is::<Refused>()) => {
                Err(error.to_string())
            }
            Err(error) => {
                tracing::warn!(
                    "archive target \"{name}\" cannot be used now: {error}; its WAL is kept until it can"
                );
                Ok(())
            }
            Ok(()) => Ok(()),
        }
    }

    /// The marker it was seen with.
    pub(super) fn marker(&self) -> Option<String> {
        lock(&self.claim).as_ref().and_then(|claim| claim.marker.clone())
    }

    /// Makes sure that the root is there, is a directory, and is the one it should be. A target that the relay claims
    /// gets its marker here.
    pub(super) fn admit(&self, access: Access) -> io::Result<()> {
        let id = self.id()?;
        let Some(claim) = lock(&self.claim).clone() else {
            return match access {
                Access::Read => Ok(()),
                Access::Write => refuse_foreign(&fs::canonicalize(&self.path)?),
            };
        };
        let is_known = claim.seen == Some(id);
        if !is_known {
            claim.places.take(Spot::of(&self.path)?, &claim.name)?;
        }
        if !is_known || access == Access::Write {
            if claim.used && claim.marker.is_none() {
                self.has_something()?;
            }
            let marker = self.checked_marker(claim.marker.as_deref())?;
            if let Some(claim) = lock(&self.claim).as_mut() {
                claim.marker = Some(marker);
                claim.seen = Some(id);
            }
        }
        Ok(())
    }

    /// After something was written: whether it went where it should.
    pub(super) fn is_unchanged(&self) -> io::Result<()> {
        let seen = lock(&self.claim).as_ref().and_then(|claim| claim.seen);
        match seen.is_none_or(|seen| self.id().is_ok_and(|id| id == seen)) {
            true => Ok(()),
            false => Err(self.changed("it has changed meanwhile")),
        }
    }

    /// Whether anything shows that this is an archive, and not a mount point without its file system.
    pub(super) fn looks_used(&self) -> io::Result<()> {
        self.admit(Access::Read)?;
        self.has_something()
    }

    /// Whether it is the one with this marker. Makes none.
    pub(super) fn is_marked(&self, expected: &str) -> io::Result<()> {
        self.id()?;
        self.checked_marker(Some(expected)).map(drop)
    }

    /// Whether it is there, and a directory.
    pub(super) fn is_there(&self) -> io::Result<()> {
        self.id().map(drop)
    }

    fn has_something(&self) -> io::Result<()> {
        if self.path.join(MARKER).exists() {
            return Ok(());
        }
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            if !name.to_string_lossy().starts_with('.') && name != "lost+found" {
                return Ok(());
            }
        }
        let text = format!(
            "directory \"{}\" is empty and has no {MARKER}: is its file system mounted?",
            self.path.display()
        );
        Err(io::Error::new(ErrorKind::NotFound, text))
    }

    fn id(&self) -> io::Result<Id> {
        match fs::metadata(&self.path) {
            Ok(found) if found.is_dir() => Ok(id_of(&found)),
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => {
                let text =
                    format!("directory \"{}\" does not exist; create or mount it", self.path.display());
                Err(io::Error::new(ErrorKind::NotFound, text))
            }
        }
    }

    /// The marker that is there, made if there is none and none is expected.
    fn checked_marker(&self, expected: Option<&str>) -> io::Result<String> {
        match (self.read_marker()?, expected) {
            (Some(found), Some(expected)) if found == expected => Ok(found),
            (Some(found), None) => Ok(found),
            (Some(found), Some(expected)) => Err(self.changed(&format!(
                "its {MARKER} says {found}, expected {expected}; if this directory shall go on in place of the old \
                 one, write {expected} into that file"
            ))),
            (None, Some(expected)) => Err(self.changed(&format!(
                "its {MARKER} is gone: is its file system mounted? If this directory shall go on in place of the old \
                 one, make the file with the text {expected}"
            ))),
            (None, None) => self.make_marker(),
        }
    }

    fn changed(&self, how: &str) -> io::Error {
        let text =
            format!("directory \"{}\" is not the one that was archived to: {how}", self.path.display());
        io::Error::new(ErrorKind::NotFound, text)
    }

    fn read_marker(&self) -> io::Result<Option<String>> {
        let mut text = String::new();
        match File::open(self.path.join(MARKER)) {
            Ok(file) => file.take(limit::LINE).read_to_string(&mut text)?,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        // Half a marker is none: it is made anew.
        Ok(lines.next().map(str::to_owned))
    }

    fn make_marker(&self) -> io::Result<String> {
        let id = format!("{:016x}", getrandom::u64().map_err(io::Error::other)?);
        let (path, new) = (self.path.join(MARKER), self.path.join(super::directory::new_file_name()));
        let mut file = File::options().write(true).create_new(true).mode(0o644).open(&new)?;
        let made = writeln!(file, "{EXPLANATION}{id}").and_then(|()| self.syncs.sync(&file)).and_then(|()| {
            match super::directory::rename(&new, &path, false)? {
                true => Ok(Some(id)),
                // Another relay was faster.
                false => self.read_marker(),
            }
        });
        let _ = fs::remove_file(&new);
        self.syncs.sync(&File::open(&self.path)?)?;
        made?.ok_or_else(|| self.changed(&format!("its {MARKER} is empty; remove it")))
    }
}

fn id_of(found: &Metadata) -> Id {
    (found.dev(), found.ino())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    struct Setting {
        dir: tempfile::TempDir,
        places: Arc<Places>,
    }

    impl Setting {
        fn new() -> Setting {
            let dir = tempfile::tempdir().unwrap();
            for name in ["relay/pg_wal", "archive", "other"] {
                fs::create_dir_all(dir.path().join(name)).unwrap();
            }
            fs::write(dir.path().join("relay/walrelay.lock"), "").unwrap();
            let places = Arc::new(Places::new(&dir.path().join("relay")));
            Setting { dir, places }
        }

        fn root(&self, path: &str, name: &str, marker: Option<&str>) -> Root {
            let root = Root::new(self.dir.path().join(path));
            root.claim(self.places.clone(), name, marker.map(str::to_owned), false);
            root
        }

        fn refuses(&self, path: &str, expected: &str) {
            let error = self.root(path, "new", None).admit(Access::Write).unwrap_err();
            assert!(error.get_ref().is_some_and(|inner| inner.is::<Refused>()), "{path}: {error}");
            assert!(error.to_string().contains(expected), "{path}: {error}");
        }
    }

    #[test]
    fn directories_that_are_somebody_elses_are_refused_before_anything_is_written() {
        let it = Setting::new();
        let path = |name: &str| it.dir.path().join(name);
        symlink(path("relay"), path("link")).unwrap();
        fs::create_dir_all(path("relay/archive/deep")).unwrap();
        for own in
            ["relay", "relay/", "other/../relay", "link", "relay/pg_wal", "relay/archive/deep", "link/pg_wal"]
        {
            it.refuses(own, "is, or lies in, the relay's data directory");
        }
        it.refuses("", "contains the relay's data directory");
        fs::create_dir_all(path("server/global")).unwrap();
        fs::create_dir_all(path("server/pg_wal/deep")).unwrap();
        fs::write(path("server/PG_VERSION"), "18\n").unwrap();
        it.refuses("server", "is a data directory of a PostgreSQL server");
        it.refuses("server/pg_wal", "pg_wal of a PostgreSQL server");
        it.refuses("server/pg_wal/deep", "pg_wal of a PostgreSQL server");
        // pg_wal that the server only links to.
        fs::create_dir_all(path("fast/wal/archive_status")).unwrap();
        it.refuses("fast/wal", "is pg_wal of a PostgreSQL server");
        fs::create_dir_all(path("relay2/pg_wal")).unwrap();
        fs::write(path("relay2/cluster.toml"), "").unwrap();
        it.refuses("relay2", "is a data directory of a relay");
        it.refuses("relay2/pg_wal", "pg_wal of a relay");
        for dir in ["relay", "server", "server/pg_wal", "fast/wal", "relay2", ""] {
            assert!(!path(dir).join(MARKER).exists(), "{dir}");
        }
        // Without a relay, nothing is written there either.
        let error = Root::new(path("server/pg_wal")).admit(Access::Write).unwrap_err();
        assert!(error.to_string().contains("PostgreSQL server"), "{error}");
        Root::new(path("server/pg_wal")).admit(Access::Read).unwrap();
    }

    #[test]
    fn one_directory_is_one_target_whatever_its_spelling() {
        let it = Setting::new();
        symlink(it.dir.path().join("archive"), it.dir.path().join("link")).unwrap();
        it.root("archive", "one", None).admit(Access::Write).unwrap();
        for spelling in ["archive/", "other/../archive", "link", "./archive"] {
            it.refuses(spelling, "is archive target \"one\" already");
        }
        it.root("link", "one", None).admit(Access::Write).unwrap();
        it.root("other", "two", None).admit(Access::Write).unwrap();
    }

    #[test]
    fn a_directory_that_is_not_there_yet_is_refused_for_where_it_would_be() {
        let it = Setting::new();
        let path = |name: &str| it.dir.path().join(name);
        symlink(path("relay/pg_wal"), path("link")).unwrap();
        symlink(path("archive"), path("other-way")).unwrap();
        fs::create_dir_all(path("server/pg_wal")).unwrap();
        fs::write(path("server/PG_VERSION"), "18\n").unwrap();
        let place = |name: &str, dir: &str| Root::new(path(dir)).place(&it.places, name);
        for dir in ["relay/archive", "relay/a/b/c", "link/x", "relay/pg_wal/x"] {
            let error = place("new", dir).unwrap_err();
            assert!(error.contains("lies in, the relay's data directory"), "{dir}: {error}");
        }
        let error = place("new", "server/pg_wal/x/y").unwrap_err();
        assert!(error.contains("pg_wal of a PostgreSQL server"), "{error}");
        // Not there yet is no mistake elsewhere.
        place("later", "later/deep").unwrap();
        place("one", "archive").unwrap();
        let inside = "lies in that of archive target";
        for (dir, expected) in [
            ("archive/deep/new", inside),
            ("other-way/new", inside),
            ("later/deep/er", inside),
            ("later/deep", "is archive target \"later\" already"),
            ("later", "contains that of archive target \"later\""),
        ] {
            let error = place("new", dir).unwrap_err();
            assert!(error.contains(expected), "{dir}: {error}");
        }
        fs::create_dir_all(path("archive/deep/there")).unwrap();
        it.refuses("archive/deep/there", inside);
        place("new", "archive-2").unwrap();
        assert!(!path("relay/archive").exists() && !path("later").exists());
    }

    #[test]
    fn a_root_that_has_lost_its_marker_is_not_written_to() {
        let it = Setting::new();
        let marker = it.dir.path().join("archive").join(MARKER);
        let first = it.root("archive", "one", None);
        first.admit(Access::Write).unwrap();
        let id = first.marker().unwrap();
        assert!(fs::read_to_string(&marker).unwrap().ends_with(&format!("{id}\n")));
        // Another process finds it, and its own again.
        let again = it.root("archive", "one", Some(&id));
        again.admit(Access::Write).unwrap();
        assert_eq!(again.marker(), Some(id.clone()));
        fs::remove_file(&marker).unwrap();
        let error = again.admit(Access::Write).unwrap_err().to_string();
        assert!(error.contains("is its file system mounted?") && error.contains(&id), "{error}");
        assert!(!marker.exists(), "it is not made again");
        fs::write(&marker, "0000\n").unwrap();
        assert!(again.admit(Access::Write).is_err());
        fs::write(&marker, format!("{id}\n")).unwrap();
        again.admit(Access::Write).unwrap();
        // Another directory in its place.
        fs::rename(it.dir.path().join("archive"), it.dir.path().join("away")).unwrap();
        fs::create_dir(it.dir.path().join("archive")).unwrap();
        assert!(again.is_unchanged().is_err());
        assert!(again.admit(Access::Read).is_err());
    }

    /// Archived to by a version without markers: an empty directory in its place may be a mount point.
    #[test]
    fn a_target_that_was_used_gets_its_marker_only_where_something_is() {
        let it = Setting::new();
        let (path, marker) = (it.dir.path().join("archive"), it.dir.path().join("archive").join(MARKER));
        let root = Root::new(path.clone());
        root.claim(it.places.clone(), "one", None, true);
        let error = root.admit(Access::Write).unwrap_err().to_string();
        assert!(error.contains("is its file system mounted?") && !marker.exists(), "{error}");
        fs::write(path.join("000000010000000000000001"), "").unwrap();
        root.admit(Access::Write).unwrap();
        assert!(marker.exists());
    }

    #[test]
    fn an_empty_directory_is_no_archive() {
        let it = Setting::new();
        let root = Root::new(it.dir.path().join("archive"));
        fs::create_dir(it.dir.path().join("archive/lost+found")).unwrap();
        let error = root.looks_used().unwrap_err().to_string();
        assert!(error.contains("is its file system mounted?"), "{error}");
        fs::write(it.dir.path().join("archive/000000010000000000000001"), "").unwrap();
        root.looks_used().unwrap();
        it.root("other", "one", None).admit(Access::Write).unwrap();
        Root::new(it.dir.path().join("other")).looks_used().unwrap();
    }
}
