//! How the last run ended: `last-run.toml`, the difference between WAL that is known to be on the disk and WAL that
//! is only known to have been written.
//!
//! After a failed sync Linux takes the pages for clean, and a later sync reports success without writing them. So a
//! start believes nothing that it reads back: it writes it again ([`recovery`](super::recovery)), unless this file
//! says that the last run ended in order and had everything synced up to a position.
//!
//! It says so of one directory, `pg_wal` as it was left: a copy of it that nobody has synced reads the same. So the
//! file also says which one: its device and inode, and when files were put into it or taken out last. Where that is not
//! so (copied, moved to another disk, restored, filled by hand), or a run did not end in order, behind which nobody knows
//! who has put files there, nothing in it counts before its file system was synced, and the end of the WAL is written
//! again. Devices may get other numbers at a boot; then this is done for nothing.
//!
//! Where that sync fails, the next one would say yes. So the file says that, too, until all segments were written again.
//!
//! ```text
//!   start: what the file says is read ── recovery ── "running", durably ── WAL is taken
//!   end:   everything synced ── "stopped" with the position        a sync fails ── "failed", as far as that goes
//! ```

use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use walrelay_proto::{TimelineHistory, TimelineId};

use super::TimelinePosition;
use super::dir::DataDir;

pub(super) const FILE: &str = "last-run.toml";
/// Longest error text that is kept.
const MOST_TEXT: usize = 200;

/// How the last run ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum LastRun {
    /// There was none, or it was killed, or its machine went down; or nobody knows.
    NotInOrder,
    /// In order; all WAL up to here is durable.
    Stopped(TimelinePosition),
    /// A sync failed.
    Failed {
        /// What was confirmed as durable before.
        confirmed: Option<TimelinePosition>,
        /// What failed, in words.
        what: String,
        /// When.
        at: SystemTime,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Running,
    Stopped,
    Failed,
}

#[derive(Serialize, Deserialize)]
struct Saved {
    state: State,
    timeline: Option<u32>,
    flush_lsn: Option<String>,
    what: Option<String>,
    /// Seconds since 1970.
    at: Option<u64>,
    /// Which directory `pg_wal` is.
    place: Option<String>,
    /// When its entries have changed last, as the run ended in order.
    changed: Option<String>,
    /// A sync of all that is there has failed since.
    #[serde(default)]
    unsynced: bool,
}

/// Whether the files are those of the last run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Files {
    /// As it has left them.
    AsLeft,
    /// Somebody has put files there since, or all of them, or may have: nobody knows whether they are durable.
    Others,
    /// The same, and a sync of them has failed: no later one tells whether they are.
    Unsynced,
}

impl LastRun {
    /// What the last run has left, and whether that is what is here. What cannot be read says nothing.
    pub(super) fn load(dir: &DataDir) -> (LastRun, Files) {
        let saved = match dir.read(FILE) {
            Ok(Some(text)) => toml::from_str::<Saved>(&text).ok(),
            Ok(None) => None,
            Err(error) => {
                tracing::warn!("could not read {FILE}: {error}");
                None
            }
        };
        let Some(saved) = saved else { return (LastRun::NotInOrder, Files::Others) };
        let files = saved.files(dir);
        (LastRun::from_saved(saved), files)
    }

    fn from_saved(saved: Saved) -> LastRun {
        let position = || {
            let (tli, lsn) = (TimelineId::new(saved.timeline?)?, saved.flush_lsn.as_ref()?.parse().ok()?);
            Some(TimelinePosition { tli, lsn })
        };
        match saved.state {
            State::Running => LastRun::NotInOrder,
            State::Stopped => position().map_or(LastRun::NotInOrder, LastRun::Stopped),
            State::Failed => LastRun::Failed {
                confirmed: position(),
                at: SystemTime::UNIX_EPOCH + Duration::from_secs(saved.at.unwrap_or_default()),
                what: saved.what.unwrap_or_default(),
            },
        }
    }

    /// What it says is durable without a doubt, if the files are as it left them.
    pub(super) fn durable(&self) -> Option<TimelinePosition> {
        match self {
            LastRun::Stopped(durable) => Some(*durable),
            LastRun::NotInOrder | LastRun::Failed { .. } => None,
        }
    }

    /// What was confirmed to the upstream as durable, if that is known.
    pub(super) fn confirmed(&self) -> Option<TimelinePosition> {
        match self {
            LastRun::NotInOrder => None,
            LastRun::Stopped(durable) => Some(*durable),
            LastRun::Failed { confirmed, .. } => *confirmed,
        }
    }

    /// Compares it with what recovery has found, and says what does not fit.
    pub(super) fn report(&self, found: Option<(TimelinePosition, &TimelineHistory)>) {
        if let LastRun::Failed { what, at, .. } = self {
            tracing::warn!(
                "the last run ended {} s ago because of a failed sync ({what}); what it had written was not trusted: it was \
                 verified and written again, look at the disk",
                at.elapsed().unwrap_or_default().as_secs()
            );
        }
        let Some(confirmed) = self.confirmed() else { return };
        let Some((end, history)) = found else {
            return tracing::error!(
                "WAL up to {} on timeline {} was confirmed to the upstream as durable, and there is none in the data \
                 directory, where somebody may have moved it away",
                confirmed.lsn,
                confirmed.tli
            );
        };
        // On a branch that was left since.
        if !history.contains(confirmed.tli) {
            return;
        }
        // What lies beyond the point where its timeline was left is not on the way any more.
        let needed = match history.switch_point(confirmed.tli) {
            Some((left_at, _)) => left_at.min(confirmed.lsn),
            None => confirmed.lsn,
        };
        if end.lsn < needed {
            tracing::error!(
                "WAL up to {} on timeline {} was confirmed to the upstream as durable, but the data directory holds it only up \
                 to {}: {} bytes are lost here, and come back only if the upstream still has them; look at the disk",
                needed,
                confirmed.tli,
                end.lsn,
                needed.since(end.lsn)
            );
        }
    }
}

/// What the file's content says was confirmed as durable when the run ended; `None` if it does not say, or goes on.
pub(super) fn confirmed_in(text: &str) -> std::io::Result<Option<TimelinePosition>> {
    let saved = toml::from_str::<Saved>(text);
    let saved = saved.map_err(|error| {
        std::io::Error::new(std::io::ErrorKind::InvalidData, format!("{FILE}: {}", error.message()))
    })?;
    Ok(LastRun::from_saved(saved).confirmed())
}

impl Saved {
    fn files(&self, dir: &DataDir) -> Files {
        if self.unsynced {
            return Files::Unsynced;
        }
        let (place, changed) = match (dir.place(), dir.changed()) {
            (Ok(place), Ok(changed)) => (place, changed),
            (Err(error), _) | (_, Err(error)) => {
                tracing::warn!("could not look at pg_wal: {error}");
                return Files::Others;
            }
        };
        let as_left = self.state == State::Stopped
            && self.place.as_ref() == Some(&place)
            && self.changed.as_ref() == Some(&changed);
        if as_left { Files::AsLeft } else { Files::Others }
    }
}

/// Says durably that a run has begun: from now on nothing is known to be durable.
pub(super) fn begin(dir: &DataDir) -> std::io::Result<()> {
    save(dir, State::Running, None, None, false)
}

/// Says durably that a run has ended in order, with everything up to `durable` synced.
pub(super) fn end_in_order(dir: &DataDir, durable: TimelinePosition) -> std::io::Result<()> {
    save(dir, State::Stopped, Some(durable), None, false)
}

/// Leaves word of a failed sync, as far as the disk takes it.
pub(super) fn end_with_failure(
    dir: &DataDir,
    confirmed: Option<TimelinePosition>,
    what: &str,
) -> std::io::Result<()> {
    save(dir, State::Failed, confirmed, Some(what.chars().take(MOST_TEXT).collect()), false)
}

/// Says durably that a sync of all that `last` has left, or others, has failed.
pub(super) fn files_are_unsynced(dir: &DataDir, last: &LastRun, what: &str) -> std::io::Result<()> {
    save(dir, State::Failed, last.confirmed(), Some(what.chars().take(MOST_TEXT).collect()), true)
}

fn save(
    dir: &DataDir,
    state: State,
    position: Option<TimelinePosition>,
    what: Option<String>,
    unsynced: bool,
) -> std::io::Result<()> {
    let at = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok().map(|at| at.as_secs());
    let saved = Saved {
        state,
        at,
        timeline: position.map(|position| position.tli.as_u32()),
        flush_lsn: position.map(|position| position.lsn.to_string()),
        what,
        place: dir.place().ok(),
        changed: dir.changed().ok(),
        unsynced,
    };
    dir.replace(FILE, &toml::to_string(&saved).map_err(std::io::Error::other)?)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use walrelay_proto::Lsn;

    use super::*;
    use crate::disk::OsDisk;

    fn lock(root: &Path) -> DataDir {
        DataDir::lock(Arc::new(OsDisk), root).unwrap()
    }

    #[test]
    fn what_is_left_is_found_again() {
        let temp = crate::permissions::private_tempdir();
        let dir = lock(temp.path());
        let load = || LastRun::load(&dir);
        assert_eq!(load(), (LastRun::NotInOrder, Files::Others));
        let at = TimelinePosition { tli: TimelineId::new(3).unwrap(), lsn: Lsn::new(0x5000028) };
        end_in_order(&dir, at).unwrap();
        assert_eq!((load(), load().0.durable()), ((LastRun::Stopped(at), Files::AsLeft), Some(at)));
        begin(&dir).unwrap();
        assert_eq!(load(), (LastRun::NotInOrder, Files::Others), "killed: who knows what came then");
        end_with_failure(&dir, Some(at), &"fdatasync: \"EIO\"\n".repeat(100)).unwrap();
        let (LastRun::Failed { confirmed, what, at: when }, Files::Others) = load() else { panic!() };
        assert_eq!(confirmed, Some(at));
        assert!(when.elapsed().unwrap() < Duration::from_secs(600));
        assert!(what.starts_with("fdatasync: \"EIO\"") && what.len() < 300, "{what}");
        files_are_unsynced(&dir, &load().0, "syncfs").unwrap();
        let (LastRun::Failed { confirmed, .. }, Files::Unsynced) = load() else { panic!() };
        assert_eq!(confirmed, Some(at), "what was confirmed stays known");
        begin(&dir).unwrap();
        assert_eq!(load().1, Files::Others);
        std::fs::write(temp.path().join(FILE), "state = \"stop").unwrap();
        assert_eq!(load(), (LastRun::NotInOrder, Files::Others));
    }

    #[test]
    fn files_that_come_between_two_runs_are_noticed() {
        let temp = crate::permissions::private_tempdir();
        let dir = lock(temp.path());
        let file = temp.path().join("pg_wal/000000010000000000000003");
        let at = TimelinePosition { tli: TimelineId::FIRST, lsn: Lsn::new(0x5000028) };
        end_in_order(&dir, at).unwrap();
        // The clock of the file system may stand still for some milliseconds.
        let before = dir.changed().unwrap();
        while dir.changed().unwrap() == before {
            std::fs::write(&file, "x").unwrap();
            std::fs::remove_file(&file).unwrap();
        }
        assert_eq!(LastRun::load(&dir), (LastRun::Stopped(at), Files::Others));
        // Behind a run that was killed, or whose sync failed, they may have come after it.
        begin(&dir).unwrap();
        assert_eq!(LastRun::load(&dir).1, Files::Others);
        end_with_failure(&dir, Some(at), "fdatasync").unwrap();
        assert_eq!(LastRun::load(&dir).1, Files::Others);
        begin(&dir).unwrap();
        drop(dir);
        // A copy, as `cp -a` makes it.
        let copy = crate::permissions::private_tempdir();
        std::fs::copy(temp.path().join(FILE), copy.path().join(FILE)).unwrap();
        std::fs::copy(temp.path().join("walrelay.lock"), copy.path().join("walrelay.lock")).unwrap();
        std::fs::create_dir(copy.path().join("pg_wal")).unwrap();
        let dir = lock(copy.path());
        assert_eq!(LastRun::load(&dir), (LastRun::NotInOrder, Files::Others));
    }
}
