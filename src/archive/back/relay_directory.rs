//! A relay's data directory as a source: read as it lies there, whether a relay runs on it or not.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use walrelay_proto::{SegSize, SystemId, TimelineId, WalIdentity};

use super::source::{FetchError, Fetching, Look, Source};
use crate::archive::repo::name::{FileKind, FileName};
use crate::lane::Lane;
use crate::objects::buffer;
use crate::objects::limit::{self, Limit};
use crate::pulse::Pulse;

/// The WAL in a relay's data directory.
#[derive(Debug)]
pub struct RelayDirectory {
    name: String,
    at: Arc<At>,
    lane: Lane,
    pulse: Pulse,
}

/// "It is not there" has to be the word of a directory that would know.
#[derive(Clone, Copy, Debug)]
struct Vouch {
    /// The cluster that is asked about, if that is known.
    system_id: Option<SystemId>,
}

/// Where it is, and what is known of that.
#[derive(Debug)]
struct At {
    data_dir: PathBuf,
    wal: PathBuf,
    /// It need not be on this machine.
    optional: bool,
    /// It is not.
    absent: AtomicBool,
    vouch: Option<Vouch>,
}

impl RelayDirectory {
    /// Of the directory that is a relay's `--data-dir`.
    pub fn new(data_dir: &Path) -> RelayDirectory {
        RelayDirectory::made(data_dir, false)
    }

    /// Of the directory that a configuration file names: the relay may be on another machine. Then it has no files, and
    /// [`Source::caveat`] says so.
    pub fn if_here(data_dir: &Path) -> RelayDirectory {
        RelayDirectory::made(data_dir, true)
    }

    fn made(data_dir: &Path, optional: bool) -> RelayDirectory {
        let (wal, absent) = (data_dir.join("pg_wal"), AtomicBool::new(false));
        let lane = Lane::default();
        RelayDirectory {
            name: format!("\"{}\"", data_dir.display()),
            at: Arc::new(At { data_dir: data_dir.to_owned(), wal, optional, absent, vouch: None }),
            pulse: lane.pulse(),
            lane,
        }
    }

    /// Gives no answer where it cannot know: where no relay is, where it has no WAL yet, or that of another cluster than
    /// `system_id`, or has removed what is asked for.
    pub fn vouching(self, system_id: Option<SystemId>) -> RelayDirectory {
        let At { data_dir, wal, optional, .. } = &*self.at;
        let (data_dir, wal, optional) = (data_dir.clone(), wal.clone(), *optional);
        let at =
            At { data_dir, wal, optional, absent: AtomicBool::new(false), vouch: Some(Vouch { system_id }) };
        RelayDirectory { at: Arc::new(at), ..self }
    }

    /// Gives up each call after so long a silence; 30 seconds if this is not called.
    #[cfg(test)]
    fn patient_for(self, patience: std::time::Duration) -> RelayDirectory {
        RelayDirectory { lane: Lane::new("test", patience), ..self }
    }

    /// The cluster whose WAL it is; `None` if that cannot be read, or not in time.
    pub async fn identity(&self) -> Option<WalIdentity> {
        let at = self.at.clone();
        self.lane.run_alive(&self.pulse, move |_| identity(&at.data_dir)).await.ok()?
    }

    async fn get(&self, file: String) -> Result<Option<Bytes>, FetchError> {
        let limit = match TimelineId::from_history_file_name(&file) {
            Some(_) => Limit::most(limit::TEXT),
            None => Limit::segment(),
        };
        self.open(file, move |file, pulse| buffer::read_to_end(file, &limit, pulse)).await
    }

    async fn shown(&self, file: String, size: u64, look: Look) -> Result<bool, FetchError> {
        let limit = Limit::most(size);
        let show = move |file, pulse: &Pulse| buffer::read_through(file, &limit, pulse, |from| look(from));
        Ok(self.open(file, show).await?.is_some())
    }

    /// Opens a file and reads it; `None` if it is certainly not there.
    async fn open<T: Send + 'static>(
        &self,
        file: String,
        read: impl FnOnce(File, &Pulse) -> io::Result<T> + Send + 'static,
    ) -> Result<Option<T>, FetchError> {
        let (at, place) = (self.at.clone(), self.name.clone());
        let path = file.clone();
        let work = move |pulse: &Pulse| {
            let open = File::open(at.wal.join(path));
            pulse.beat();
            let unknown = |reason| Err(FetchError::Unreachable { place: place.clone(), reason });
            if let Some(reason) = at.of_others() {
                return unknown(reason);
            }
            match open.and_then(|file| read(file, pulse)) {
                Ok(content) => Ok(Some(content)),
                // A directory that is not mounted proves nothing about what is in it.
                Err(error) if error.kind() == io::ErrorKind::NotFound && at.wal.is_dir() => {
                    at.has_removed(&file).map_or(Ok(None), unknown)
                }
                Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                    Err(FetchError::Damaged { place, file, reason: error.to_string() })
                }
                Err(error) => at
                    .unless_absent(&error)
                    .map_or(Ok(None), |reason| Err(FetchError::Unreachable { place, reason })),
            }
        };
        self.run(work).await
    }

    async fn after(&self, segment: String) -> Result<Vec<FileName>, FetchError> {
        let (at, place) = (self.at.clone(), self.name.clone());
        let work = move |pulse: &Pulse| {
            let named = |entry: fs::DirEntry| {
                pulse.beat();
                let name = entry.file_name().into_string().ok()?;
                FileName::parse(name.strip_suffix(".partial").unwrap_or(&name))
            };
            let list =
                || fs::read_dir(&at.wal)?.map(|entry| Ok(named(entry?))).collect::<io::Result<Vec<_>>>();
            let listed = match list().map_err(|error| at.unless_absent(&error)) {
                Ok(listed) => listed,
                Err(None) => Vec::new(),
                Err(Some(reason)) => return Err(FetchError::Unreachable { place, reason }),
            };
            Ok(listed.into_iter().flatten().filter(|file| file.as_str() > segment.as_str()).collect())
        };
        self.run(work).await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Pulse) -> Result<T, FetchError> + Send + 'static,
    ) -> Result<T, FetchError> {
        let done = self.lane.run_alive(&self.pulse, work).await;
        done.unwrap_or_else(|reason| Err(FetchError::Unreachable { place: self.name.clone(), reason }))
    }
}

impl At {
    /// Why it would not know of the WAL that is asked about, if it has to.
    fn of_others(&self) -> Option<String> {
        let vouch = self.vouch?;
        // Of a directory that is not there the system says more.
        if !self.wal.is_dir() {
            return None;
        }
        let Some(theirs) = identity(&self.data_dir).map(|id| id.system_id) else {
            return Some("it has no WAL yet, so it does not know what there was".to_owned());
        };
        let ours = vouch.system_id.filter(|ours| *ours != theirs)?;
        Some(format!("it is of another cluster: its system identifier is {theirs}, ours is {ours}"))
    }

    /// Why a segment that is not here may have been, if that matters: only what comes after it is.
    fn has_removed(&self, file: &str) -> Option<String> {
        self.vouch?;
        let asked = segment_of(file)?;
        let named =
            |entry: io::Result<fs::DirEntry>| segment_of(&entry.ok()?.file_name().into_string().ok()?);
        // In the order of positions, whatever the timelines are.
        let number = |file: &FileName| file.segment_digits().map(|digits| digits[8..].to_owned());
        let oldest =
            fs::read_dir(&self.wal).ok()?.filter_map(named).filter_map(|file| number(&file)).min()?;
        let is_behind = number(&asked).is_some_and(|asked| asked < oldest);
        is_behind.then(|| format!("it has WAL behind \"{asked}\", and not that any more"))
    }

    /// What an error says; `None` if it means that no relay is on this machine.
    fn unless_absent(&self, error: &io::Error) -> Option<String> {
        if self.optional && error.kind() == io::ErrorKind::NotFound && is_absent(&self.data_dir) {
            self.absent.store(true, Ordering::Relaxed);
            return self.vouch.map(|_| format!("\"{}\" is not on this machine", self.data_dir.display()));
        }
        let hint = match error.kind() {
            io::ErrorKind::PermissionDenied => {
                "; let this user read it, or name the places to ask with --from"
            }
            io::ErrorKind::NotFound => {
                "; is its file system mounted? If the relay is on another machine, name the places to ask with --from"
            }
            _ => "",
        };
        Some(format!("could not read \"{}\": {error}{hint}", self.wal.display()))
    }
}

/// Whether a directory is not there, and is not hidden by a mount point without its file system: the directory above it,
/// or the nearest above that which is there, has something in it. One that cannot be read proves nothing.
fn is_absent(dir: &Path) -> bool {
    let is_missing =
        |dir: &&Path| fs::metadata(dir).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    let missing = dir.ancestors().take_while(|above| !above.as_os_str().is_empty() && is_missing(above));
    let Some(highest) = missing.last() else { return false };
    if fs::symlink_metadata(highest).is_ok() {
        // A link to where nothing is mounted.
        return false;
    }
    let above = match highest.parent() {
        Some(above) if !above.as_os_str().is_empty() => above,
        _ => Path::new("."),
    };
    fs::read_dir(above).is_ok_and(|mut entries| entries.any(|entry| entry.is_ok()))
}

/// The segment that a file is, or the beginning of.
fn segment_of(file: &str) -> Option<FileName> {
    let file = FileName::parse(file.strip_suffix(".partial").unwrap_or(file))?;
    (file.kind() == FileKind::Segment).then_some(file)
}

fn identity(data_dir: &Path) -> Option<WalIdentity> {
    let text = fs::read_to_string(data_dir.join("cluster.toml")).ok()?;
    let state: toml::Table = text.parse().ok()?;
    let system_id = state.get("system_identifier")?.as_str()?.parse().ok()?;
    let size = u64::try_from(state.get("wal_segment_size")?.as_integer()?).ok()?;
    Some(WalIdentity { system_id, seg_size: SegSize::new(size).ok()? })
}

impl Source for RelayDirectory {
    fn name(&self) -> &str {
        &self.name
    }

    fn pulse(&self) -> &Pulse {
        &self.pulse
    }

    fn caveat(&self) -> Option<String> {
        let text = || {
            format!(
                "the relay's data directory {}, which the configuration file names, is not on this machine",
                self.name
            )
        };
        self.at.absent.load(Ordering::Relaxed).then(text)
    }

    fn read<'a>(&'a self, file: &'a str) -> Fetching<'a, Option<Bytes>> {
        Box::pin(self.get(file.to_owned()))
    }

    fn show<'a>(&'a self, file: &'a str, size: u64, look: Look) -> Fetching<'a, bool> {
        Box::pin(self.shown(file.to_owned(), size, look))
    }

    fn read_unfinished<'a>(&'a self, segment: &'a str) -> Fetching<'a, Vec<Bytes>> {
        Box::pin(async move {
            let beginning = self.get(format!("{segment}.partial")).await?;
            // It may have got its name since it was asked for as a whole one.
            let found = match beginning {
                None => self.get(segment.to_owned()).await?,
                beginning => beginning,
            };
            Ok(found.into_iter().collect())
        })
    }

    fn later<'a>(&'a self, segment: &'a str) -> Fetching<'a, Vec<FileName>> {
        Box::pin(self.after(segment.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn files_are_read_and_a_missing_directory_is_no_answer() {
        let dir = tempfile::tempdir().unwrap();
        let source = RelayDirectory::new(dir.path());
        assert!(matches!(source.read("00000002.history").await, Err(FetchError::Unreachable { .. })));
        let state = "system_identifier = \"77\"\nwal_segment_size = 1048576\n[parameters]\n";
        assert_eq!(source.identity().await, None);
        fs::write(dir.path().join("cluster.toml"), state).unwrap();
        assert_eq!(source.identity().await.unwrap().system_id.0, 77);
        fs::create_dir(dir.path().join("pg_wal")).unwrap();
        assert_eq!(source.read("00000002.history").await, Ok(None));
        fs::write(dir.path().join("pg_wal/00000002.history"), "x").unwrap();
        fs::write(dir.path().join("pg_wal/000000010000000000000001.partial"), "y").unwrap();
        assert_eq!(source.read("00000002.history").await, Ok(Some(Bytes::from("x"))));
        let segment = "000000010000000000000001";
        assert_eq!(source.read(segment).await, Ok(None));
        assert_eq!(source.read_unfinished(segment).await, Ok(vec![Bytes::from("y")]));
        let later = source.later(segment).await.unwrap();
        assert_eq!(later.iter().map(FileName::as_str).collect::<Vec<_>>(), ["00000002.history"]);
        fs::write(dir.path().join("pg_wal/000000010000000000000002.partial"), "y").unwrap();
        assert_eq!(source.later(segment).await.unwrap().len(), 2);
        let huge = File::create(dir.path().join("pg_wal/000000010000000000000003")).unwrap();
        huge.set_len(1 << 40).unwrap();
        let read = source.read("000000010000000000000003").await;
        assert!(matches!(read, Err(FetchError::Damaged { .. })), "{read:?}");
    }

    #[tokio::test]
    async fn what_cannot_be_read_is_not_what_is_not_there() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("relay");
        let (segment, own) = ("000000010000000000000001", RelayDirectory::if_here(&data));
        // A mount point without its file system, in which the data directory is.
        for data in [data.clone(), data.join("one/two")] {
            let own = RelayDirectory::if_here(&data);
            for error in [own.read(segment).await.unwrap_err(), own.later(segment).await.unwrap_err()] {
                assert!(error.to_string().contains("is its file system mounted?"), "{error}");
            }
            assert_eq!(own.caveat(), None);
        }
        fs::create_dir(dir.path().join("other")).unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path().join("nothing"), &link).unwrap();
        assert!(RelayDirectory::if_here(&link).read(segment).await.is_err());
        // Of a relay on another machine nothing is known, and that is said when it matters.
        assert_eq!((own.read(segment).await, own.read_unfinished(segment).await), (Ok(None), Ok(Vec::new())));
        assert_eq!(own.later(segment).await, Ok(Vec::new()));
        assert!(own.caveat().unwrap().contains("is not on this machine"));
        assert!(RelayDirectory::new(&data).read(segment).await.is_err());
        // One that is the data directory.
        fs::create_dir(&data).unwrap();
        let own = RelayDirectory::if_here(&data);
        for error in [own.read(segment).await.unwrap_err(), own.later(segment).await.unwrap_err()] {
            assert!(error.to_string().contains("is its file system mounted?"), "{error}");
        }
        assert_eq!(own.caveat(), None);
        let error = own.at.unless_absent(&io::ErrorKind::PermissionDenied.into()).unwrap();
        assert!(error.contains("let this user read it"), "{error}");
        fs::create_dir(data.join("pg_wal")).unwrap();
        assert_eq!(own.read(segment).await, Ok(None));
    }

    #[tokio::test]
    async fn a_segment_that_was_finished_meanwhile_is_what_there_is_of_it() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("pg_wal")).unwrap();
        let segment = "000000010000000000000001";
        fs::write(dir.path().join("pg_wal").join(segment), "whole").unwrap();
        let found = RelayDirectory::new(dir.path()).read_unfinished(segment).await;
        assert_eq!(found, Ok(vec![Bytes::from("whole")]));
    }

    #[tokio::test]
    async fn one_that_would_not_know_has_not_answered() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("relay");
        fs::create_dir(dir.path().join("other")).unwrap();
        let (segment, ours) = ("000000010000000000000003", Some(SystemId(77)));
        let own = || RelayDirectory::if_here(&data);
        let check = async |expected: &str| {
            let error = own().vouching(ours).read(segment).await.unwrap_err();
            assert!(
                matches!(&error, FetchError::Unreachable { reason, .. } if reason.contains(expected)),
                "{error}"
            );
            assert_eq!(own().read(segment).await, Ok(None), "{expected}");
        };
        check("is not on this machine").await;
        fs::create_dir_all(data.join("pg_wal")).unwrap();
        check("it has no WAL yet").await;
        let state =
            |id: u64| format!("system_identifier = \"{id}\"\nwal_segment_size = 1048576\n[parameters]\n");
        fs::write(data.join("cluster.toml"), state(78)).unwrap();
        check("its system identifier is 78, ours is 77").await;
        fs::write(data.join("cluster.toml"), state(77)).unwrap();
        assert_eq!(own().vouching(ours).read(segment).await, Ok(None));
        fs::write(data.join("pg_wal/000000020000000000000004.partial"), "").unwrap();
        check("it has WAL behind").await;
        fs::write(data.join("pg_wal/000000010000000000000002"), "").unwrap();
        assert_eq!(own().vouching(ours).read(segment).await, Ok(None));
        assert_eq!(own().vouching(ours).read("00000002.history").await, Ok(None));
    }

    #[tokio::test]
    async fn one_that_hangs_is_given_up_after_a_silence() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("pg_wal")).unwrap();
        let fifo = dir.path().join("pg_wal/000000010000000000000001");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let source = RelayDirectory::new(dir.path()).patient_for(std::time::Duration::from_millis(50));
        let error = source.read("000000010000000000000001").await.unwrap_err();
        assert!(error.to_string().contains("no answer in"), "{error}");
        // Nobody is left behind in it.
        drop(File::options().write(true).open(&fifo).unwrap());
    }
}
