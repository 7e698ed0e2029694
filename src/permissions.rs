//! Owner and mode of what decides who gets in, or holds secrets: looked at before it is believed or written to
//! (PostgreSQL: `checkDataDir`, `check_ssl_key_file_permissions`).

use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};

/// Bytes of the largest file that is read whole. A list of a hundred thousand users has a quarter of it.
const LARGEST: u64 = 64 << 20;

/// Why a file or directory is not believed: what is wrong, and what to do. Follows its name in a message.
#[derive(Debug, thiserror::Error)]
pub enum Distrust {
    /// It cannot be looked at.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// Its owner or mode is wrong.
    #[error("{0}")]
    Wrong(String),
}

fn wrong<T>(problem: impl Into<String>) -> Result<T, Distrust> {
    Err(Distrust::Wrong(problem.into()))
}

/// Whose file we take: our own, and root's.
fn is_trusted(uid: u32) -> bool {
    uid == 0 || uid == rustix::process::geteuid().as_raw()
}

fn mode(metadata: &Metadata) -> u32 {
    metadata.mode() & 0o7777
}

/// Reads a file that holds secrets: ours with mode 0600, or root's with 0640 (PostgreSQL's rule for keys).
///
/// # Errors
/// It cannot be read, is no regular file or pipe, or others than its owner and root could have read or changed it.
pub fn read_secret(path: &Path) -> Result<String, Distrust> {
    // What is opened is what is looked at. A pipe may come from a program that knows the secret.
    let mut file = File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() && !metadata.file_type().is_fifo() {
        return wrong("is not a regular file");
    }
    if !is_trusted(metadata.uid()) {
        return wrong(format!(
            "must be owned by the relay's user or root, and belongs to user ID {}; chown it",
            metadata.uid()
        ));
    }
    let shared = if metadata.uid() == 0 { 0o037 } else { 0o077 };
    if metadata.mode() & shared != 0 {
        return wrong(format!(
            "has group or world access ({:04o}); it must have permissions u=rw (0600) or less if owned by the relay's \
             user, or u=rw,g=r (0640) or less if owned by root",
            mode(&metadata)
        ));
    }
    Ok(content(&mut file)?)
}

/// Reads a file that decides something: nobody may change it but its owner and group.
///
/// # Errors
/// It cannot be read, or everybody may write it.
pub fn read_rules(path: &Path) -> Result<String, Distrust> {
    let mut file = File::open(path)?;
    let metadata = file.metadata()?;
    // A pipe has the mode that whoever made it happened to have, and was given to us by whoever gave the path.
    if metadata.is_file() && metadata.mode() & 0o002 != 0 {
        return wrong(format!("can be written by everybody ({:04o}); run chmod o-w", mode(&metadata)));
    }
    Ok(content(&mut file)?)
}

/// Like [`read_rules`], for secrets that more than one account has to know: its group may read it too.
///
/// # Errors
/// It cannot be read, or others than its owner and group could have read it, or others than its owner changed it.
pub fn read_shared_secret(path: &Path) -> Result<String, Distrust> {
    let content = read_rules(path)?;
    check_shared_secret(path)?;
    Ok(content)
}

/// The same for a file that turned out to hold secrets.
///
/// # Errors
/// As [`read_shared_secret`].
pub fn check_shared_secret(path: &Path) -> Result<(), Distrust> {
    let metadata = fs::metadata(path)?;
    if metadata.is_file() && metadata.mode() & 0o037 != 0 {
        return wrong(format!(
            "holds secrets and is open to others ({:04o}); it must have permissions u=rw,g=r (0640) or less",
            mode(&metadata)
        ));
    }
    Ok(())
}

/// A whole file that somebody else has named: a device or a pipe may go on for ever.
///
/// # Errors
/// It cannot be read, or is larger than such files are.
pub fn read_limited(path: &Path) -> io::Result<Vec<u8>> {
    limited(&mut File::open(path)?, LARGEST)
}

fn content(file: &mut File) -> io::Result<String> {
    let text = limited(file, LARGEST)?;
    String::from_utf8(text).map_err(|_| io::Error::new(ErrorKind::InvalidData, "it is not UTF-8"))
}

fn limited(file: &mut impl Read, largest: u64) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    file.take(largest + 1).read_to_end(&mut content)?;
    if content.len() as u64 > largest {
        let text = format!("it is larger than {} MB, which no such file is", largest >> 20);
        return Err(io::Error::new(ErrorKind::FileTooLarge, text));
    }
    Ok(content)
}

/// A data directory that exists: ours, with mode 0700 or 0750, as PostgreSQL wants its own.
///
/// # Errors
/// It is another user's, or others may look into it.
pub fn check_data_dir(dir: &Path) -> Result<(), Distrust> {
    let metadata = fs::metadata(dir)?;
    if metadata.uid() != rustix::process::geteuid().as_raw() {
        return wrong(format!(
            "has wrong ownership: it belongs to user ID {}; the relay must be started by the user that owns it",
            metadata.uid()
        ));
    }
    if metadata.mode() & 0o027 != 0 {
        return wrong(format!(
            "has invalid permissions ({:04o}): they should be u=rwx (0700) or u=rwx,g=rx (0750); run chmod 0700",
            mode(&metadata)
        ));
    }
    Ok(())
}

/// A directory whose names only we and root may change. A symbolic link counts if one of us has made it.
///
/// # Errors
/// Somebody else could have put there what is found, or could put there something else at any time.
pub fn check_private_dir(dir: &Path) -> Result<(), Distrust> {
    let link = fs::symlink_metadata(dir)?;
    if !is_trusted(link.uid()) {
        let what = if link.is_symlink() { "is a symbolic link of" } else { "belongs to" };
        return wrong(format!("{what} another user (ID {}); use a directory of one's own", link.uid()));
    }
    let metadata = fs::metadata(dir)?;
    if !metadata.is_dir() {
        return wrong("is not a directory");
    }
    if !is_trusted(metadata.uid()) {
        return wrong(format!(
            "belongs to another user (ID {}); use a directory of one's own",
            metadata.uid()
        ));
    }
    if metadata.mode() & 0o022 != 0 {
        return wrong(format!("can be written by others ({:04o}); run chmod go-w", mode(&metadata)));
    }
    Ok(())
}

/// What is wrong with the directories by way of which a file is found, if anything: where everybody may write, anybody can put
/// another file, directory or symbolic link in the place of what is there. A sticky bit is enough but for links
/// of strangers. Of what cannot be looked at nothing is said, nor of pipes.
pub fn parent_problem(path: &Path) -> Option<String> {
    /// PG: as the system, `MAXSYMLINKS`.
    const MOST_LINKS: usize = 40;
    let mut links = 0;
    let mut at = PathBuf::from("/");
    let path = std::path::absolute(path).ok()?;
    let mut names: Vec<_> = reversed(&path);
    let mut problem = None;
    while let Some(name) = names.pop() {
        match Path::new(&name).components().next()? {
            Component::Normal(_) => {}
            Component::ParentDir => {
                at.pop();
                continue;
            }
            _ => continue,
        }
        let entry = at.join(&name);
        let found = fs::symlink_metadata(&entry).ok()?;
        problem = problem.or_else(|| replaceable(&at, &entry, &found));
        if found.is_symlink() {
            links += 1;
            if links > MOST_LINKS {
                return None;
            }
            let target = fs::read_link(&entry).ok()?;
            if target.is_absolute() {
                at = PathBuf::from("/");
            }
            names.extend(reversed(&target));
        } else {
            at = entry;
        }
    }
    problem
}

fn reversed(path: &Path) -> Vec<OsString> {
    path.components().rev().map(|part| part.as_os_str().to_owned()).collect()
}

/// Why anybody could put something else in the place of what is found in a directory.
fn replaceable(dir: &Path, entry: &Path, found: &Metadata) -> Option<String> {
    let parent = fs::metadata(dir).ok()?;
    if parent.mode() & 0o002 == 0 {
        return None;
    }
    if parent.mode() & 0o1000 == 0 {
        return Some(format!(
            "is found by way of \"{}\", where everybody can put another in its place; run chmod o-w on that directory",
            dir.display()
        ));
    }
    // Who has made a directory or file here is who was to be believed; a link may lead anywhere.
    (found.is_symlink() && !is_trusted(found.uid())).then(|| {
        format!(
            "is found by way of \"{}\", a symbolic link of another user (ID {}); use a directory of one's own",
            entry.display(),
            found.uid()
        )
    })
}

/// A directory for sockets: `None` if nobody but we and root can put another socket in the place of ours, else what is wrong.
/// A sticky bit is enough, as `/tmp` has it.
pub fn socket_dir_problem(dir: &Path) -> Option<String> {
    let metadata = fs::metadata(dir).ok()?;
    if !is_trusted(metadata.uid()) {
        return Some(format!("belongs to another user (ID {})", metadata.uid()));
    }
    let is_open = metadata.mode() & 0o002 != 0 && metadata.mode() & 0o1000 == 0;
    is_open.then(|| format!("can be written by everybody and has no sticky bit ({:04o})", mode(&metadata)))
}

/// A directory that may be a data directory, whatever the umask.
#[cfg(test)]
pub(crate) fn private_tempdir() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;

    tempfile::Builder::new().permissions(fs::Permissions::from_mode(0o700)).tempdir().unwrap()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::*;

    fn set(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    /// For tests that need another owner.
    fn is_root() -> bool {
        rustix::process::geteuid().is_root()
    }

    #[track_caller]
    fn refused<T: std::fmt::Debug>(result: Result<T, Distrust>, problem: &str) {
        let text = result.unwrap_err().to_string();
        assert!(text.contains(problem), "{text}");
    }

    #[test]
    fn where_everybody_may_write_a_files_name_says_little() {
        let dir = tempfile::tempdir().unwrap();
        let (open, inner) = (dir.path().join("open"), dir.path().join("open/inner"));
        fs::create_dir_all(&inner).unwrap();
        let file = inner.join("walrelay.toml");
        fs::write(&file, "").unwrap();
        let link = dir.path().join("link");
        symlink(&file, &link).unwrap();
        assert_eq!(parent_problem(&file), None);
        set(&open, 0o1777);
        assert_eq!(parent_problem(&file), None, "as /tmp is");
        set(&open, 0o777);
        let by_way_of_open = format!("is found by way of \"{}\", where", open.display());
        for path in [&file, &link, &dir.path().join("open/../link")] {
            let problem = parent_problem(path).unwrap();
            assert!(problem.starts_with(&by_way_of_open), "{problem}");
        }
        // It lies where only we write, and the way there leads through a link that anybody can replace.
        let (safe, way) = (dir.path().join("safe"), open.join("way"));
        fs::create_dir(&safe).unwrap();
        fs::write(safe.join("rules"), "").unwrap();
        symlink("../safe", &way).unwrap();
        let links = dir.path().join("links");
        symlink("open/way", &links).unwrap();
        for path in [way.join("rules"), links.join("rules")] {
            let problem = parent_problem(&path).unwrap();
            assert!(problem.starts_with(&by_way_of_open), "{problem}");
            set(&open, 0o1777);
            assert_eq!(parent_problem(&path), None, "the link is ours");
            set(&open, 0o777);
        }
        assert_eq!(parent_problem(&safe.join("rules")), None);
        let circle = dir.path().join("circle");
        symlink("circle", &circle).unwrap();
        assert_eq!(parent_problem(&circle), None);
        if is_root() {
            set(&open, 0o1777);
            std::os::unix::fs::lchown(&way, Some(1234), None).unwrap();
            let problem = parent_problem(&links.join("rules")).unwrap();
            assert!(problem.contains("/way\", a symbolic link of another user (ID 1234)"), "{problem}");
        }
        assert_eq!(parent_problem(&inner.join("nosuch")), None);
        assert_eq!(parent_problem(Path::new("/dev/fd/0")), None);
    }

    #[test]
    fn what_never_ends_is_not_read_for_ever() {
        for error in [
            read_limited(Path::new("/dev/zero")).unwrap_err().to_string(),
            read_rules(Path::new("/dev/zero")).unwrap_err().to_string(),
        ] {
            assert!(error.ends_with("it is larger than 64 MB, which no such file is"), "{error}");
        }
        assert_eq!(limited(&mut &b"12"[..], 2).unwrap(), b"12");
        assert!(limited(&mut &b"123"[..], 2).is_err());
    }

    #[test]
    fn secrets_are_read_where_nobody_else_can() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("users");
        fs::write(&path, "secret").unwrap();
        set(&path, 0o600);
        assert_eq!(read_secret(&path).unwrap(), "secret");
        for mode in [0o604, 0o602, 0o620, 0o610, 0o644, 0o666] {
            set(&path, mode);
            refused(read_secret(&path), "has group or world access");
        }
        set(&path, 0o640);
        assert_eq!(read_secret(&path).is_ok(), is_root());
        refused(read_secret(dir.path()), "is not a regular file");
        if is_root() {
            set(&path, 0o600);
            chown(&path, Some(1234), None).unwrap();
            refused(
                read_secret(&path),
                "must be owned by the relay's user or root, and belongs to user ID 1234",
            );
        }
    }

    #[test]
    fn rules_are_read_where_not_everybody_writes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hba");
        fs::write(&path, "rules").unwrap();
        set(&path, 0o664);
        assert_eq!(read_rules(&path).unwrap(), "rules");
        set(&path, 0o646);
        refused(read_rules(&path), "can be written by everybody (0646)");
    }

    #[test]
    fn a_group_may_share_a_secret() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), "secret").unwrap();
        for mode in [0o600, 0o640] {
            set(file.path(), mode);
            assert_eq!(read_shared_secret(file.path()).unwrap(), "secret");
        }
        for mode in [0o644, 0o660, 0o604] {
            set(file.path(), mode);
            refused(read_shared_secret(file.path()), "holds secrets and is open to others");
        }
    }

    #[test]
    fn data_directories_are_ours_alone() {
        let dir = tempfile::tempdir().unwrap();
        for mode in [0o700, 0o750, 0o2750] {
            set(dir.path(), mode);
            check_data_dir(dir.path()).unwrap();
        }
        for mode in [0o777, 0o755, 0o770, 0o701] {
            set(dir.path(), mode);
            refused(check_data_dir(dir.path()), "0700) or u=rwx,g=rx (0750)");
        }
        if is_root() {
            set(dir.path(), 0o700);
            chown(dir.path(), Some(1234), None).unwrap();
            refused(check_data_dir(dir.path()), "has wrong ownership");
        }
    }

    #[test]
    fn directories_and_links_of_others_are_not_private() {
        let parent = tempfile::tempdir().unwrap();
        let (dir, link) = (parent.path().join("dir"), parent.path().join("link"));
        fs::create_dir(&dir).unwrap();
        symlink(&dir, &link).unwrap();
        set(&dir, 0o755);
        check_private_dir(&dir).unwrap();
        check_private_dir(&link).unwrap();
        for mode in [0o777, 0o1777, 0o775] {
            set(&dir, mode);
            refused(check_private_dir(&dir), "can be written by others");
            refused(check_private_dir(&link), "can be written by others");
        }
        if is_root() {
            set(&dir, 0o700);
            std::os::unix::fs::lchown(&link, Some(1234), None).unwrap();
            refused(check_private_dir(&link), "is a symbolic link of another user (ID 1234)");
            chown(&dir, Some(1234), None).unwrap();
            refused(check_private_dir(&dir), "belongs to another user (ID 1234)");
        }
    }

    #[test]
    fn sockets_need_a_directory_that_keeps_them() {
        let dir = tempfile::tempdir().unwrap();
        for (mode, good) in [(0o700, true), (0o775, true), (0o1777, true), (0o777, false)] {
            set(dir.path(), mode);
            assert_eq!(socket_dir_problem(dir.path()).is_none(), good, "{mode:o}");
        }
    }
}
