//! Whether a directory is the relay's to write in: looked at before anything in it is touched.

use std::io;
use std::path::{Path, PathBuf};

use walrelay_proto::TimelineId;

use super::StoreError;
use crate::disk::Disk;
use crate::permissions::{check_data_dir, check_private_dir};

/// What a relay has made, whatever it has done since.
const LOCK: &str = "walrelay.lock";
/// What a relay has as soon as it has WAL.
const CLUSTER: &str = "cluster.toml";
/// What only a PostgreSQL server's data directory has.
const SERVER_FILES: [&str; 4] = ["PG_VERSION", "global", "postmaster.pid", "base"];
/// What only a server's `pg_wal` has.
const SERVER_WAL: [&str; 2] = ["archive_status", "summaries"];

/// Refuses a directory that is somebody else's, or that holds WAL of which nobody says whose it is.
pub(super) fn check(disk: &dyn Disk, root: &Path) -> Result<(), StoreError> {
    let shown = disk.canonicalize(root).unwrap_or_else(|_| root.to_owned());
    let wal = root.join("pg_wal");
    let server = server_file(disk, root, &SERVER_FILES)
        .or_else(|| server_file(disk, &wal, &SERVER_WAL))
        .or_else(|| server_file(disk, &wal, &SERVER_FILES))
        .or_else(|| server_file(disk, disk.canonicalize(&wal).ok()?.parent()?, &SERVER_FILES));
    if let Some(found) = server {
        return Err(StoreError::Server { dir: shown, found });
    }
    check_permissions(disk, root, &wal)?;
    let names = names(disk, root).map_err(failed(root))?;
    let has = |name: &str| names.iter().any(|found| found == name);
    if has(CLUSTER) {
        return Ok(());
    }
    if let Some(found) = self::names(disk, &wal).map_err(failed(&wal))?.into_iter().find(|name| is_wal(name))
    {
        return Err(StoreError::NoState { dir: shown, found });
    }
    match names.into_iter().find(|name| !is_nobodys(name)) {
        Some(found) if !disk.exists(&root.join(LOCK)) => Err(StoreError::Foreign { dir: shown, found }),
        _ => Ok(()),
    }
}

/// Refuses what others could have put there, `roles.toml` for one, or WAL. What does not exist yet is made well.
pub(super) fn check_permissions(disk: &dyn Disk, root: &Path, wal: &Path) -> Result<(), StoreError> {
    if !disk.has_owners() {
        return Ok(());
    }
    let distrust = |dir: &Path| {
        let dir = dir.to_owned();
        move |source| StoreError::Distrust { dir, source }
    };
    if disk.has_name(root) {
        check_data_dir(root).map_err(distrust(root))?;
    }
    // It may be a link to another disk.
    if disk.has_name(wal) {
        check_private_dir(wal).map_err(distrust(wal))?;
    }
    Ok(())
}

fn failed(path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { action: "could not look into data directory", path, source }
}

fn server_file(disk: &dyn Disk, dir: &Path, known: &[&str]) -> Option<PathBuf> {
    known.iter().map(|name| dir.join(name)).find(|path| disk.has_name(path))
}

/// What lies in a directory; nothing if there is none.
fn names(disk: &dyn Disk, dir: &Path) -> io::Result<Vec<String>> {
    let names = match disk.list(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    Ok(names.into_iter().map(|name| name.to_string_lossy().into_owned()).collect())
}

/// What a new file system or an account's home has, and an empty `pg_wal`, which may lead to another disk.
fn is_nobodys(name: &str) -> bool {
    name.starts_with('.') || name == "lost+found" || name == "pg_wal"
}

/// A segment or a history file, whatever the segment size.
fn is_wal(name: &str) -> bool {
    let stem = name.strip_suffix(".partial").unwrap_or(name);
    let is_segment = stem.len() == 24 && stem.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'A'..=b'F'));
    is_segment || TimelineId::from_history_file_name(name).is_some()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use super::super::dir::DataDir;
    use super::*;
    use crate::disk::OsDisk;

    fn lock(root: &Path) -> Result<DataDir, StoreError> {
        DataDir::lock(Arc::new(OsDisk), root)
    }

    const SEGMENT: &str = "pg_wal/000000010000000000000003";

    /// A directory with these files and directories (ending with a slash).
    fn directory(entries: &[&str]) -> tempfile::TempDir {
        let dir = crate::permissions::private_tempdir();
        for entry in entries {
            let path = dir.path().join(entry);
            match entry.ends_with('/') {
                true => fs::create_dir_all(path).unwrap(),
                false => {
                    fs::create_dir_all(path.parent().unwrap()).unwrap();
                    fs::write(path, "17\n").unwrap();
                }
            }
        }
        dir
    }

    fn all_files(dir: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && !path.is_symlink() {
                found.extend(all_files(&path));
            }
            found.push(path);
        }
        found.sort();
        found
    }

    #[test]
    fn what_is_not_the_relays_is_refused_and_left_as_it_is() {
        let cases: [(&[&str], &str); 12] = [
            (&["PG_VERSION", "global/pg_control", SEGMENT], "PG_VERSION"),
            // Not even with a relay's files in it.
            (&["PG_VERSION", "cluster.toml", "walrelay.lock", SEGMENT], "PG_VERSION"),
            (&["postmaster.pid"], "postmaster.pid"),
            (&["global/"], "global"),
            (&["cluster.toml", "pg_wal/archive_status/"], "archive_status"),
            (&["pg_wal/summaries/", SEGMENT], "summaries"),
            (&[SEGMENT], "000000010000000000000003"),
            (&["walrelay.lock", "slots.toml", "pg_wal/00000002.history"], "00000002.history"),
            (
                &["walrelay.lock", "pg_wal/000000010000000000000003.partial"],
                "000000010000000000000003.partial",
            ),
            // Somebody's pg_wal itself.
            (&["000000010000000000000003"], "000000010000000000000003"),
            (&["photos/1.jpg"], "photos"),
            (&["slots.toml"], "slots.toml"),
        ];
        for (entries, named) in cases {
            let dir = directory(entries);
            let before = all_files(dir.path());
            let error = lock(dir.path()).unwrap_err();
            let foreign = matches!(
                error,
                StoreError::Server { .. } | StoreError::NoState { .. } | StoreError::Foreign { .. }
            );
            assert!(foreign && error.to_string().contains(named), "{entries:?}: {error}");
            assert_eq!(all_files(dir.path()), before, "{entries:?}");
        }
    }

    #[test]
    fn what_others_may_write_is_refused_before_anything_is_written() {
        let set = |dir: &Path, mode: u32| {
            fs::set_permissions(dir, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        };
        let dir = directory(&["cluster.toml", "roles.toml", SEGMENT]);
        let before = all_files(dir.path());
        for (name, mode, problem) in [
            ("", 0o777, "has invalid permissions (0777)"),
            ("", 0o755, "has invalid permissions (0755)"),
            ("pg_wal", 0o777, "pg_wal\" can be written by others (0777)"),
        ] {
            set(&dir.path().join(name), mode);
            let error = lock(dir.path()).unwrap_err();
            assert!(error.to_string().contains(problem), "{error}");
            assert_eq!(all_files(dir.path()), before);
            set(&dir.path().join(name), 0o700);
        }
        for mode in [0o750, 0o700] {
            set(dir.path(), mode);
            drop(lock(dir.path()).unwrap());
        }
    }

    #[test]
    fn new_empty_and_own_directories_are_taken() {
        let cases: [&[&str]; 6] = [
            &[],
            &["lost+found/", ".pgpass"],
            &["pg_wal/"],
            &["walrelay.lock", "roles.toml", "pg_wal/"],
            &["cluster.toml", "walrelay.lock", "aside/x", SEGMENT, "pg_wal/notes"],
            &["cluster.toml"],
        ];
        for entries in cases {
            let dir = directory(entries);
            lock(dir.path()).unwrap_or_else(|error| panic!("{entries:?}: {error}"));
        }
        let parent = crate::permissions::private_tempdir();
        lock(&parent.path().join("a/b")).unwrap();
    }

    #[test]
    fn links_are_seen_through() {
        let server = directory(&["PG_VERSION", SEGMENT]);
        let parent = crate::permissions::private_tempdir();
        let link = parent.path().join("data");
        std::os::unix::fs::symlink(server.path(), &link).unwrap();
        let error = lock(&link).unwrap_err();
        let resolved = server.path().canonicalize().unwrap();
        assert!(error.to_string().contains(&resolved.display().to_string()), "{error}");

        let own = directory(&["cluster.toml"]);
        std::os::unix::fs::symlink(server.path().join("pg_wal"), own.path().join("pg_wal")).unwrap();
        assert!(matches!(lock(own.path()), Err(StoreError::Server { .. })));
    }
}
