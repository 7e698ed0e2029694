//! What became of acknowledged WAL when a timeline was left: judged when the relay goes over to another one, and kept in a
//! small file for whoever asks later.

use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};
use walrelay_proto::ack::Positions;
use walrelay_proto::{Lsn, PgTimestamp, TimelineId};

use super::{Store, dir};
use crate::disk::OsDisk;

const FILE: &str = "failovers.toml";
/// So many are kept.
const MOST: usize = 100;

/// A timeline that was left for another one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Failover {
    /// When the relay saw it.
    pub seen: PgTimestamp,
    /// The timeline that was left.
    pub from: TimelineId,
    /// The one that was begun, or is followed instead.
    pub to: TimelineId,
    /// Where their ways part.
    pub switch_point: Lsn,
    /// End of what is held of the timeline that was left.
    pub held: Lsn,
    /// What the upstream was told of it at most.
    pub acknowledged: Lsn,
    /// Whether it was told so by this process; else it may have been told less.
    pub is_certain: bool,
    /// Whether the upstream had this relay in its `synchronous_standby_names` at any time that it was asked.
    pub was_awaited: bool,
    /// When it was asked last; `None` if that was before this process began, or is not known.
    pub asked: Option<PgTimestamp>,
    /// Commits that were left behind although they were acknowledged; `None` if they could not be counted.
    pub commits: Option<u64>,
    /// When the first and the last of them were made.
    pub span: Option<(PgTimestamp, PgTimestamp)>,
    /// Whether somebody has said that it was looked at.
    pub is_dismissed: bool,
}

/// Whether everything acknowledged is on the new timeline.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// It is.
    Kept,
    /// Some of it is not.
    Left,
    /// What is left may have been acknowledged.
    Doubtful,
}

impl Verdict {
    /// One word.
    pub fn as_str(self) -> &'static str {
        match self {
            Verdict::Kept => "kept",
            Verdict::Left => "left",
            Verdict::Doubtful => "doubtful",
        }
    }
}

impl Failover {
    /// Whether somebody who committed was told that it is safe, and it is not, or may not be; nobody has looked at that yet.
    pub fn is_open(&self) -> bool {
        self.verdict() != Verdict::Kept && self.was_awaited && !self.is_dismissed
    }

    /// What came of it.
    pub fn verdict(&self) -> Verdict {
        match (self.acknowledged <= self.switch_point, self.is_certain) {
            (true, _) => Verdict::Kept,
            (false, true) => Verdict::Left,
            (false, false) => Verdict::Doubtful,
        }
    }
}

/// What the upstream was told of the timeline that is received.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Told {
    /// The furthest of the positions that were reported.
    pub acknowledged: Lsn,
    /// Whether they were reported for certain.
    pub is_certain: bool,
}

impl Told {
    /// By what was reported of a timeline that is held up to here, and by what the start of this process has found of it: an
    /// earlier one may have reported all that it had.
    pub fn of(reported: Option<Positions>, found: Option<Lsn>, held: Lsn) -> Told {
        let Some(at) = reported else { return Told { acknowledged: held, is_certain: false } };
        let reported = at.write.max(at.flush).max(at.apply).unwrap_or_default();
        let found = found.unwrap_or_default();
        Told { acknowledged: reported.max(found).min(held), is_certain: found <= reported }
    }
}

#[derive(Serialize, Deserialize, Default)]
struct Saved {
    #[serde(default)]
    failover: Vec<SavedFailover>,
}

#[derive(Serialize, Deserialize)]
struct SavedFailover {
    /// Microseconds since 2000, as all times here.
    seen: i64,
    from: u32,
    to: u32,
    switch_point: String,
    held: String,
    acknowledged: String,
    certain: bool,
    awaited: bool,
    asked: Option<i64>,
    commits: Option<u64>,
    first_commit: Option<i64>,
    last_commit: Option<i64>,
    #[serde(default)]
    dismissed: bool,
}

/// Understands the file's content.
fn parse(text: &str) -> io::Result<Vec<Failover>> {
    let bad = |what: String| {
        let text = format!("{FILE} in the data directory: {what}; move it away, and a new one is begun");
        io::Error::new(io::ErrorKind::InvalidData, text)
    };
    let saved: Saved = toml::from_str(text).map_err(|error| bad(error.message().replace('\n', " ")))?;
    let time = |micros: Option<i64>| micros.map(PgTimestamp::from_micros);
    let failover = |saved: SavedFailover| {
        Some(Failover {
            seen: PgTimestamp::from_micros(saved.seen),
            from: TimelineId::new(saved.from)?,
            to: TimelineId::new(saved.to)?,
            switch_point: saved.switch_point.parse().ok()?,
            held: saved.held.parse().ok()?,
            acknowledged: saved.acknowledged.parse().ok()?,
            is_certain: saved.certain,
            was_awaited: saved.awaited,
            asked: saved.asked.map(PgTimestamp::from_micros),
            commits: saved.commits,
            span: time(saved.first_commit).zip(time(saved.last_commit)),
            is_dismissed: saved.dismissed,
        })
    };
    let all: Option<Vec<Failover>> = saved.failover.into_iter().map(failover).collect();
    all.ok_or_else(|| bad("a timeline or a position is none".to_owned()))
}

/// What a data directory says; a relay may be running on it. `None` if it is none of a relay: nothing there would look like
/// nothing left behind.
pub fn read(data_dir: &Path) -> io::Result<Option<Vec<Failover>>> {
    let content = dir::read_if_present(&OsDisk, &data_dir.join(FILE))?;
    let is_relays = || ["cluster.toml", "walrelay.lock"].iter().any(|name| data_dir.join(name).exists());
    if content.is_none() && !is_relays() {
        return Ok(None);
    }
    let text = content.map(String::from_utf8).transpose().map_err(io::Error::other)?;
    parse(&text.unwrap_or_default()).map(Some)
}

/// All of them, as they are in the file. Waits for the disk.
pub(super) fn load(store: &Store) -> io::Result<Vec<Failover>> {
    parse(&store.read_state(FILE)?.unwrap_or_default())
}

/// Notes of all of them, and of those that are known besides, that somebody has looked at them, durably. Waits for the disk.
pub(super) fn dismiss(store: &Store, known: &[Failover]) -> io::Result<Vec<Failover>> {
    let mut all = load_with(store, known)?;
    all.iter_mut().for_each(|failover| failover.is_dismissed = true);
    save(store, &all)?;
    Ok(all)
}

/// What is in the file, and what is known besides: it could not be saved when it came.
fn load_with(store: &Store, known: &[Failover]) -> io::Result<Vec<Failover>> {
    let mut all = load(store)?;
    let unsaved = known.iter().filter(|it| !all.iter().any(|saved| key(saved) == key(it)));
    let unsaved: Vec<Failover> = unsaved.cloned().collect();
    all.extend(unsaved);
    Ok(all)
}

fn key(it: &Failover) -> (TimelineId, TimelineId, Lsn) {
    (it.from, it.to, it.switch_point)
}

fn save(store: &Store, all: &[Failover]) -> io::Result<()> {
    let saved = Saved { failover: all.iter().map(SavedFailover::of).collect() };
    store.replace_state(FILE, &toml::to_string(&saved).map_err(io::Error::other)?)
}

/// Adds one, durably; all there are then, with those that are `known` and could not be saved before. Waits for the disk.
pub(super) fn add(store: &Store, failover: &Failover, known: &[Failover]) -> io::Result<Vec<Failover>> {
    let all = with(load_with(store, known)?, failover);
    save(store, &all)?;
    Ok(all)
}

/// These and one more, the newest. The same one again, after a crash or another attempt, replaces what was said of it before,
/// unless that was certain.
pub(super) fn with(mut all: Vec<Failover>, failover: &Failover) -> Vec<Failover> {
    let is_same = |before: &Failover| key(before) == key(failover);
    if !failover.is_certain && all.iter().any(|before| before.is_certain && is_same(before)) {
        return all;
    }
    all.retain(|before| !is_same(before));
    all.push(failover.clone());
    all.drain(..all.len().saturating_sub(MOST));
    all
}

impl SavedFailover {
    fn of(failover: &Failover) -> SavedFailover {
        SavedFailover {
            seen: failover.seen.as_micros(),
            from: failover.from.as_u32(),
            to: failover.to.as_u32(),
            switch_point: failover.switch_point.to_string(),
            held: failover.held.to_string(),
            acknowledged: failover.acknowledged.to_string(),
            certain: failover.is_certain,
            awaited: failover.was_awaited,
            asked: failover.asked.map(PgTimestamp::as_micros),
            commits: failover.commits,
            first_commit: failover.span.map(|span| span.0.as_micros()),
            last_commit: failover.span.map(|span| span.1.as_micros()),
            dismissed: failover.is_dismissed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreConfig;
    use crate::store::WalWrite;

    fn failover(to: u32, switch_point: u64) -> Failover {
        let at = PgTimestamp::from_micros;
        Failover {
            seen: at(7),
            from: TimelineId::FIRST,
            to: TimelineId::new(to).unwrap(),
            switch_point: Lsn::new(switch_point),
            held: Lsn::new(900),
            acknowledged: Lsn::new(500),
            is_certain: true,
            was_awaited: true,
            asked: Some(at(3)),
            commits: Some(3),
            span: Some((at(1), at(2))),
            is_dismissed: false,
        }
    }

    fn store(dir: &std::path::Path) -> std::sync::Arc<Store> {
        let config = StoreConfig {
            data_dir: dir.to_owned(),
            wal_write: WalWrite::Pwrite,
            wal_keep_size: 0,
            max_slot_wal_keep_size: None,
            max_replication_slots: 1,
        };
        Store::open_on(std::sync::Arc::new(crate::disk::OsDisk), config).unwrap().store
    }

    #[test]
    fn what_was_told_decides() {
        let at = |lsn: u64| Lsn::new(lsn).valid();
        let reported = Positions { write: at(600), flush: at(500), apply: None };
        let told = |reported, held| Told::of(reported, None, Lsn::new(held));
        assert_eq!(told(Some(reported), 900), Told { acknowledged: Lsn::new(600), is_certain: true });
        assert_eq!(told(Some(reported), 550), Told { acknowledged: Lsn::new(550), is_certain: true });
        let after = |found: u64| Told::of(Some(reported), at(found), Lsn::new(900));
        assert_eq!(after(550), Told { acknowledged: Lsn::new(600), is_certain: true });
        let doubtful = Told { acknowledged: Lsn::new(700), is_certain: false };
        assert_eq!(after(700), doubtful, "the process before may have reported that");
        assert_eq!(told(None, 900), Told { acknowledged: Lsn::new(900), is_certain: false });
        let check = |switch: u64, is_certain, expected| {
            let failover = Failover { is_certain, ..failover(2, switch) };
            assert_eq!(failover.verdict(), expected, "{switch}");
        };
        check(500, true, Verdict::Kept);
        check(499, true, Verdict::Left);
        check(500, false, Verdict::Kept);
        check(499, false, Verdict::Doubtful);
    }

    #[test]
    fn the_last_ones_are_kept_and_each_once() {
        let scratch = crate::permissions::private_tempdir();
        let store = store(scratch.path());
        assert_eq!(super::read(&scratch.path().join("pg_wal")).unwrap(), None, "no relay's directory");
        let read = || read(scratch.path()).unwrap().expect("a relay's directory");
        assert_eq!(read(), []);
        add(&store, &failover(2, 100), &[]).unwrap();
        add(&store, &failover(3, 200), &[]).unwrap();
        let again =
            Failover { seen: PgTimestamp::from_micros(9), commits: None, span: None, ..failover(2, 100) };
        add(&store, &again, &[]).unwrap();
        assert_eq!(read(), [failover(3, 200), again.clone()]);
        // A crash came before the other timeline was followed, and nothing is known for certain any more.
        add(&store, &Failover { is_certain: false, ..failover(2, 100) }, &[]).unwrap();
        assert_eq!(read(), [failover(3, 200), again]);
        for to in 10..10 + MOST as u32 {
            add(&store, &failover(to, 300), &[]).unwrap();
        }
        assert_eq!((read().len(), read()[0].to.as_u32()), (MOST, 10));
    }

    #[test]
    fn who_has_looked_at_them_says_so_and_what_comes_later_is_open_again() {
        let scratch = crate::permissions::private_tempdir();
        let open = |store: &Store| store.failovers().iter().filter(|it| it.is_open()).count();
        let asynchronous = Failover { was_awaited: false, ..failover(4, 100) };
        let first = store(scratch.path());
        first.add_failover(&failover(2, 100)).unwrap();
        first.add_failover(&failover(3, 700)).unwrap();
        first.add_failover(&asynchronous).unwrap();
        assert_eq!(open(&first), 1, "of the others everything was kept, or nobody waited");
        drop(first);
        let second = store(scratch.path());
        assert_eq!(open(&second), 0, "not read yet");
        second.load_failovers();
        assert_eq!(open(&second), 1);
        assert_eq!(second.dismiss_failovers().unwrap(), 1);
        assert_eq!(open(&second), 0);
        second.add_failover(&failover(5, 100)).unwrap();
        assert_eq!(open(&second), 1);
        drop(second);
        let third = store(scratch.path());
        third.load_failovers();
        assert_eq!((open(&third), third.failovers().len()), (1, 4));
    }

    #[test]
    fn what_is_no_list_is_an_error_and_stays() {
        let scratch = crate::permissions::private_tempdir();
        let store = store(scratch.path());
        for bad in ["failover = 1\n", "[[failover]]\nseen = 1\n"] {
            store.replace_state(FILE, bad).unwrap();
            let error = add(&store, &failover(2, 100), &[]).unwrap_err().to_string();
            assert!(error.contains("move it away"), "{error}");
            assert!(read(scratch.path()).is_err());
            assert_eq!(store.read_state(FILE).unwrap().as_deref(), Some(bad));
        }
    }

    /// A change of timeline that is refused is tried again, and each time its verdict comes first.
    #[test]
    fn what_cannot_be_saved_is_known_once_and_saved_with_the_next() {
        let scratch = crate::permissions::private_tempdir();
        let store = store(scratch.path());
        store.replace_state(FILE, "failover = 1\n").unwrap();
        store.load_failovers();
        for _ in 0..3 {
            store.add_failover(&failover(2, 100)).unwrap_err();
        }
        assert_eq!(*store.failovers(), [failover(2, 100)]);
        for to in 10..10 + MOST as u32 {
            store.add_failover(&failover(to, 300)).unwrap_err();
        }
        assert_eq!((store.failovers().len(), store.failovers()[0].to.as_u32()), (MOST, 10));
        store.dismiss_failovers().unwrap_err();
        std::fs::rename(scratch.path().join(FILE), scratch.path().join("away")).unwrap();
        assert_eq!(store.dismiss_failovers().unwrap(), MOST);
        store.add_failover(&failover(2, 100)).unwrap();
        assert_eq!(read(scratch.path()).unwrap().unwrap(), *store.failovers());
        let open: Vec<u32> =
            store.failovers().iter().filter(|it| it.is_open()).map(|it| it.to.as_u32()).collect();
        assert_eq!((store.failovers().len(), open), (MOST, vec![2]));
    }
}
