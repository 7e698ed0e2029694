use walrelay_proto::generate::WalGenerator;
use walrelay_proto::{Lsn, SegNo, TimelineId, WalFileName, WalIdentity};

use std::fs;

use super::*;
use crate::archive::back::memory::Memory;
use crate::archive::back::spool;

const SEG: usize = 1 << 20;
/// Stands for the places that a worker asks.
const KEY: &str = "key";
/// A segment in the middle of what there is, and the one that is not finished.
const MIDDLE: &str = "000000010000000000000005";
const LAST: &str = "000000010000000000000009";

fn wal() -> Vec<u8> {
    let id = WalIdentity { system_id: SystemId(77), seg_size: SegSize::new(SEG as u64).unwrap() };
    let mut wal = WalGenerator::new(id, TimelineId::FIRST, Lsn::new(3 * SEG as u64), 5);
    wal.fill(6 * SEG + 300_000);
    wal.take()
}

fn name(segno: u64) -> String {
    let name = WalFileName::new(TimelineId::FIRST, SegNo::new(segno));
    name.format(SegSize::new(SEG as u64).unwrap())
}

/// Finished segments 3 to 8, and the beginning of 9.
fn source(wal: &[u8]) -> Arc<Memory> {
    let source = Arc::new(Memory::new("memory"));
    for (segno, segment) in (3..).zip(wal.chunks_exact(SEG)) {
        source.put(&name(segno), segment.to_vec());
    }
    source.put(&format!("{LAST}.partial"), wal[6 * SEG..].to_vec());
    source
}

struct Setting {
    dir: tempfile::TempDir,
    wal: Vec<u8>,
    source: Arc<Memory>,
}

impl Setting {
    fn new() -> Setting {
        let wal = wal();
        Setting { dir: tempfile::tempdir().unwrap(), source: source(&wal), wal }
    }

    fn target(&self) -> PathBuf {
        self.dir.path().join("RECOVERYXLOG")
    }

    fn restore(&self, file: &str) -> Restore {
        let sources = vec![self.source.clone() as Arc<dyn Source>];
        Restore {
            sources,
            file: file.to_owned(),
            target: self.target(),
            spool: None,
            background: None,
            patience: Duration::from_millis(50),
            wait: Some(Duration::from_millis(50)),
            strict: None,
            branch: None,
        }
    }

    fn files(&self) -> usize {
        fs::read_dir(self.dir.path()).unwrap().count()
    }
}

#[tokio::test]
async fn a_segment_appears_whole() {
    let setting = Setting::new();
    assert_eq!(setting.restore(MIDDLE).run().await.unwrap(), Restored::Done);
    assert!(fs::read(setting.target()).unwrap() == setting.wal[2 * SEG..3 * SEG]);
    assert_eq!(setting.files(), 1);
}

#[tokio::test]
async fn what_is_missing_leaves_no_trace() {
    let setting = Setting::new();
    for file in ["00000002.history", "00000001000000000000000A"] {
        assert_eq!(setting.restore(file).run().await.unwrap(), Restored::Missing, "{file}");
    }
    assert_eq!(setting.files(), 0);
}

#[tokio::test]
async fn the_unfinished_segment_is_filled_up_with_zeros() {
    let setting = Setting::new();
    assert_eq!(setting.restore(LAST).run().await.unwrap(), Restored::Done);
    let restored = fs::read(setting.target()).unwrap();
    let good = setting.wal.len() - 6 * SEG;
    assert_eq!(restored.len(), SEG);
    assert!(restored[..good] == setting.wal[6 * SEG..]);
    assert!(restored[good..].iter().all(|&byte| byte == 0));
}

/// Timeline 1 was left in the middle of segment 9, of which a relay has more, and the next one.
#[tokio::test]
async fn a_branch_is_given_to_who_asks_for_it() {
    let setting = Setting::new();
    let (next, left_at) = (name(10), 9 * SEG + 100_000);
    setting.source.put("00000002.history", format!("1\t0/{left_at:X}\tx\n"));
    let of_segment = &setting.wal[6 * SEG..];
    setting.source.put(&format!("{LAST}.branch"), of_segment.to_vec());
    // A standby gets what is on the way to timeline 2, wherever it was told to put it.
    fs::write(setting.dir.path().join("standby.signal"), "").unwrap();
    for restore in [setting.restore(LAST), Restore { branch: TimelineId::new(2), ..setting.restore(LAST) }] {
        assert_eq!(restore.run().await.unwrap(), Restored::Done);
        let restored = fs::read(setting.target()).unwrap();
        assert!(restored[100_000..].iter().all(|&byte| byte == 0), "WAL that was left");
        assert!(restored[..90_000] == of_segment[..90_000]);
        assert_eq!(Restore { file: next.clone(), ..restore }.run().await.unwrap(), Restored::Missing);
    }
    assert_eq!(setting.source.asked(&format!("{LAST}.branch")), 0);
    // All of it for who asks for that.
    let named = Restore { branch: Some(TimelineId::FIRST), ..setting.restore(LAST) };
    assert_eq!(named.run().await.unwrap(), Restored::Done);
    let mut expected = of_segment.to_vec();
    expected.resize(SEG, 0);
    assert!(fs::read(setting.target()).unwrap() == expected);
    // So does pg_rewind, and does not say so.
    let data = setting.dir.path().join("data");
    fs::create_dir_all(data.join("pg_wal")).unwrap();
    fs::write(data.join("PG_VERSION"), "18\n").unwrap();
    let target = data.join("pg_wal").join(LAST);
    let rewind = Restore { target: target.clone(), ..setting.restore(LAST) };
    assert_eq!(rewind.run().await.unwrap(), Restored::Done);
    assert!(fs::read(&target).unwrap() == expected);
    // Behind the end of it there is nothing.
    let target = data.join("pg_wal").join(&next);
    let rewind = Restore { target, ..setting.restore(&next) };
    assert_eq!(rewind.run().await.unwrap(), Restored::Missing);
}

#[tokio::test]
async fn what_a_standby_has_is_not_replaced_by_less() {
    let setting = Setting::new();
    let own = setting.dir.path().join(LAST);
    let mut more = setting.wal[6 * SEG..].to_vec();
    more.resize(SEG, 0);
    fs::write(&own, &more).unwrap();
    assert_eq!(setting.restore(LAST).run().await.unwrap(), Restored::Missing);
    more[100_000..].fill(0);
    fs::write(&own, &more).unwrap();
    assert_eq!(setting.restore(LAST).run().await.unwrap(), Restored::Done);
}

#[tokio::test]
async fn a_hole_and_a_source_that_is_down_stop_recovery() {
    let setting = Setting::new();
    setting.source.remove(MIDDLE);
    let error = setting.restore(MIDDLE).run().await.unwrap_err();
    assert!(matches!(error, RestoreError::Fetch(Failure::Hole { .. })), "{error}");
    assert!(setting.source.asked(MIDDLE) > 1, "it may still be on its way");
    // A recycled file of this name is of no use; what pg_wal really has is used from there.
    let local = setting.dir.path().join(MIDDLE);
    fs::write(&local, &setting.wal[..SEG]).unwrap();
    let error = setting.restore(MIDDLE).run().await.unwrap_err();
    assert!(matches!(error, RestoreError::Fetch(Failure::Hole { .. })), "{error}");
    // Nor is its beginning, as a base backup from a standby has it: recovery would end in the middle of the segment.
    let mut beginning = setting.wal[2 * SEG..2 * SEG + SEG / 2].to_vec();
    beginning.resize(SEG, 0);
    fs::write(&local, beginning).unwrap();
    let error = setting.restore(MIDDLE).run().await.unwrap_err();
    assert!(matches!(error, RestoreError::Fetch(Failure::Hole { .. })), "{error}");
    fs::write(&local, &setting.wal[2 * SEG..3 * SEG]).unwrap();
    assert_eq!(setting.restore(MIDDLE).run().await.unwrap(), Restored::Missing);
    setting.source.set_down(true);
    let error = setting.restore("00000002.history").run().await.unwrap_err();
    assert!(error.to_string().contains("memory cannot be reached"), "{error}");
    assert_eq!(setting.files(), 1);
}

/// A data directory of its own, for a standby or a recovery.
fn server(setting: &Setting, signal: &str) -> PathBuf {
    let data = setting.dir.path().join("data");
    fs::create_dir_all(data.join("pg_wal")).unwrap();
    fs::write(data.join("PG_VERSION"), "18\n").unwrap();
    fs::write(data.join(signal), "").unwrap();
    data.join("pg_wal/RECOVERYXLOG")
}

#[tokio::test]
async fn a_standby_is_told_at_once_and_a_hole_is_nothing_to_it() {
    let setting = Setting::new();
    let target = server(&setting, "standby.signal");
    let restore = |file: &str| Restore { target: target.clone(), wait: None, ..setting.restore(file) };
    setting.source.remove(MIDDLE);
    assert_eq!(restore(MIDDLE).run().await.unwrap(), Restored::Missing);
    assert_eq!(setting.source.asked(MIDDLE), 1);
    setting.source.set_down(true);
    let error = restore(MIDDLE).run().await.unwrap_err();
    assert!(error.to_string().contains("cannot be reached"), "{error}");
    // One that does not answer at all is not waited for either.
    setting.source.set_open(false);
    let error = restore(LAST).run().await.unwrap_err();
    assert!(error.to_string().contains("nothing has come from it"), "{error}");
    assert_eq!(Role::of(&data_dir(&target)).broken(), NOT_NOW);
}

/// Of a standby that waits for the first source.
fn strict(timeout: Option<Duration>, on_timeout: OnTimeout) -> Option<Strict> {
    let required = Required { named: vec![0], ..Required::default() };
    Some(Strict { required, timeout, on_timeout })
}

#[tokio::test]
async fn a_standby_waits_for_who_is_required() {
    let setting = Setting::new();
    let target = server(&setting, "standby.signal");
    // Another one has less.
    let other = Arc::new(Memory::new("other"));
    other.put(&format!("{LAST}.partial"), setting.wal[6 * SEG..][..100_000].to_vec());
    let sources = vec![setting.source.clone() as Arc<dyn Source>, other.clone()];
    let strict = strict(None, OnTimeout::Stop);
    let restore = Restore { sources, target: target.clone(), strict, ..setting.restore(LAST) };
    for ask in [LAST, "00000002.history"] {
        setting.source.set_down(true);
        let restore = Restore { file: ask.to_owned(), ..restore.clone() };
        let running = tokio::spawn(async move { restore.run().await });
        let source = setting.source.clone();
        until("asked again and again", || source.asked(ask) > 20).await;
        assert!(!running.is_finished(), "{ask}");
        setting.source.set_down(false);
        let expected = if ask == LAST { Restored::Done } else { Restored::Missing };
        assert_eq!(running.await.unwrap().unwrap(), expected, "{ask}");
    }
    let good = setting.wal.len() - 6 * SEG;
    assert!(fs::read(&target).unwrap()[..good] == setting.wal[6 * SEG..]);
    // One that is not required is not waited for, and a whole segment is whole whoever has it.
    other.set_down(true);
    let began = restore.clone();
    assert_eq!(began.run().await.unwrap(), Restored::Done);
    setting.source.set_down(true);
    other.set_down(false);
    other.put(MIDDLE, setting.wal[2 * SEG..3 * SEG].to_vec());
    assert_eq!(Restore { file: MIDDLE.to_owned(), ..restore }.run().await.unwrap(), Restored::Done);
}

#[tokio::test]
async fn what_was_given_up_is_not_waited_for_with_the_next_file() {
    let setting = Setting::new();
    let target = server(&setting, "standby.signal");
    let release = target.with_file_name("walrelay-restore.given-up");
    let strict = strict(Some(Duration::from_millis(300)), OnTimeout::Continue);
    let restore =
        |file: &str| Restore { target: target.clone(), strict: strict.clone(), ..setting.restore(file) };
    setting.source.set_down(true);
    assert_eq!(restore("00000002.history").run().await.unwrap(), Restored::Missing);
    assert!(setting.source.asked("00000002.history") > 2 && release.exists());
    assert_eq!(restore(LAST).run().await.unwrap(), Restored::Missing);
    assert_eq!(setting.source.asked(LAST), 1);
    // Once it has answered it is waited for again.
    setting.source.set_down(false);
    assert_eq!(restore(LAST).run().await.unwrap(), Restored::Done);
    assert!(!release.exists());
    setting.source.set_down(true);
    let stop =
        Restore { strict: self::strict(Some(Duration::from_millis(300)), OnTimeout::Stop), ..restore(LAST) };
    assert_eq!(stop.run().await.unwrap(), Restored::Stop);
    assert!(!release.exists());
}

/// It is used from there when nobody gives it, and nothing of it can be lost: not even somebody who had it once and has removed
/// it is waited for.
#[tokio::test]
async fn nobody_is_waited_for_with_what_pg_wal_has_whole() {
    let setting = Setting::new();
    let target = server(&setting, "standby.signal");
    setting.source.set_down(true);
    let strict = strict(Some(Duration::from_secs(3600)), OnTimeout::Stop);
    fs::write(target.with_file_name(MIDDLE), &setting.wal[2 * SEG..3 * SEG]).unwrap();
    let restore = Restore { target, strict, ..setting.restore(MIDDLE) };
    assert_eq!(restore.run().await.unwrap(), Restored::Missing);
}

/// What was left to the background is not what the time is for.
#[tokio::test]
async fn the_spool_takes_nothing_of_the_time_for_answers() {
    let setting = Setting::new();
    let target = server(&setting, "standby.signal");
    let (spool, _dir) = with_spool(&setting, 1);
    setting.source.set_open(false);
    // Less than what a standby that is not strict waits for the spool.
    let (patience, limit) = (Duration::from_secs(5), Duration::from_secs(10));
    let (strict, background) = (strict(Some(limit), OnTimeout::Continue), Some(spool.clone()));
    let restore = Restore { target, strict, background, patience, ..setting.restore(LAST) };
    spool.leave(LAST, SegSize::new(SEG as u64).unwrap()).unwrap();
    let source = setting.source.clone();
    until("the worker has asked", || source.asked(LAST) == 1).await;
    let running = tokio::spawn(async move { restore.run().await });
    until("the command has asked itself", || source.asked(LAST) == 2).await;
    source.set_down(true);
    source.set_open(true);
    until("and asks again", || source.asked(LAST) > 3).await;
    source.set_down(false);
    assert_eq!(running.await.unwrap().unwrap(), Restored::Done);
}

/// A relay that is frozen takes the connection, and says nothing. Given up once, it holds up the files that follow no more; and
/// it is not waited for beyond the time.
#[tokio::test]
async fn a_silent_one_that_is_required_takes_no_longer_than_it_may() {
    let setting = Setting::new();
    let target = server(&setting, "standby.signal");
    let other = Arc::new(Memory::new("other"));
    other.put(&format!("{LAST}.partial"), setting.wal[6 * SEG..].to_vec());
    setting.source.set_open(false);
    let patience = Duration::from_secs(5);
    let limit = Duration::from_millis(300);
    let restore = |file: &str| {
        let sources = vec![setting.source.clone() as Arc<dyn Source>, other.clone()];
        let strict = strict(Some(limit), OnTimeout::Continue);
        Restore { sources, target: target.clone(), patience, strict, ..setting.restore(file) }
    };
    let begun = std::time::Instant::now();
    assert_eq!(restore("00000002.history").run().await.unwrap(), Restored::Missing);
    assert!(begun.elapsed() >= limit && begun.elapsed() < patience, "{:?}", begun.elapsed());
    assert!(target.with_file_name("walrelay-restore.given-up").exists());
    let begun = std::time::Instant::now();
    assert_eq!(restore(LAST).run().await.unwrap(), Restored::Done);
    assert!(begun.elapsed() < patience, "{:?}", begun.elapsed());
    assert_eq!(setting.source.asked(LAST), 1);
    // At its very end a promotion asks for a history that it has.
    fs::remove_file(data_dir(&target).join("standby.signal")).unwrap();
    fs::write(target.with_file_name("00000003.history"), "1\t0/400000\tx\n").unwrap();
    let begun = std::time::Instant::now();
    let end = Restore { wait: None, ..restore("00000003.history") };
    assert_eq!(end.run().await.unwrap(), Restored::Missing);
    assert!(begun.elapsed() < patience, "{:?}", begun.elapsed());
}

#[tokio::test]
async fn somebody_can_end_the_waiting() {
    let setting = Setting::new();
    let target = server(&setting, "standby.signal");
    setting.source.set_down(true);
    let strict = strict(None, OnTimeout::Stop);
    let restore = Restore { target: target.clone(), strict, ..setting.restore(LAST) };
    let running = tokio::spawn(async move { restore.run().await });
    let source = setting.source.clone();
    until("waiting", || source.asked(LAST) > 3).await;
    fs::write(target.with_file_name("walrelay-restore.release"), "").unwrap();
    assert_eq!(running.await.unwrap().unwrap(), Restored::Missing);
}

/// Where there is no place for it. The server would take the failure for "there is none".
#[tokio::test]
async fn a_full_disk_is_waited_for_as_an_answer_is() {
    let setting = Setting::new();
    let target = server(&setting, "standby.signal");
    let in_the_way = |is_there: bool| match is_there {
        true => fs::create_dir_all(target.join("not empty")).unwrap(),
        false => fs::remove_dir_all(&target).unwrap(),
    };
    in_the_way(true);
    let soft = Restore { target: target.clone(), ..setting.restore(LAST) };
    assert!(soft.run().await.unwrap_err().to_string().starts_with("could not write"));
    // What comes meanwhile belongs to it: a server that is promoted does not ask again.
    let whole = setting.wal[6 * SEG..].to_vec();
    let partial = format!("{LAST}.partial");
    setting.source.put(&partial, whole[..whole.len() - 8192].to_vec());
    let restore = Restore { strict: strict(None, OnTimeout::Stop), ..soft.clone() };
    let running = tokio::spawn(async move { restore.run().await });
    let source = setting.source.clone();
    until("asked again and again", || source.asked(LAST) > 3).await;
    assert!(!running.is_finished());
    setting.source.put(&partial, whole.clone());
    let before = setting.source.asked(LAST);
    until("asked again", || source.asked(LAST) > before + 1).await;
    in_the_way(false);
    assert_eq!(running.await.unwrap().unwrap(), Restored::Done);
    assert!(fs::read(&target).unwrap()[..whole.len()] == whole);
    let files = ["walrelay-restore.release", "walrelay-restore.given-up", "walrelay-restore.full"];
    assert!(files.iter().all(|name| !target.with_file_name(name).exists()));
    fs::remove_file(&target).unwrap();
    in_the_way(true);
    let limit = Some(Duration::from_millis(300));
    let stop = Restore { strict: strict(limit, OnTimeout::Stop), ..soft.clone() };
    assert_eq!(stop.run().await.unwrap(), Restored::Stop);
    let go_on = Restore { strict: strict(limit, OnTimeout::Continue), ..soft };
    assert!(go_on.run().await.unwrap_err().to_string().starts_with("could not write"));
    assert!(
        files.iter().all(|name| !target.with_file_name(name).exists()),
        "who is away is still waited for"
    );
}

/// What was acknowledged between the answer and the promotion is not in the answer, and the server does not ask again.
#[tokio::test]
async fn a_promotion_meanwhile_has_the_sources_asked_again() {
    let setting = Setting::new();
    let target = server(&setting, "standby.signal");
    let promote = data_dir(&target).join("promote");
    let restore = Restore { target, ..setting.restore(LAST) };
    setting.source.set_open(false);
    let asking = restore.clone();
    let running = tokio::spawn(async move { asking.run().await });
    let source = setting.source.clone();
    until("asked", || source.asked(LAST) == 1).await;
    fs::write(promote, "").unwrap();
    setting.source.set_open(true);
    assert_eq!(running.await.unwrap().unwrap(), Restored::Done);
    assert_eq!(setting.source.asked(LAST), 2);
    // One that was wanted before is no reason.
    assert_eq!(restore.run().await.unwrap(), Restored::Done);
    assert_eq!(setting.source.asked(LAST), 3);
}

#[tokio::test]
async fn a_beginning_of_another_history_is_not_taken() {
    let setting = Setting::new();
    let target = server(&setting, "standby.signal");
    let restore = Restore { target: target.clone(), ..setting.restore(LAST) };
    let id = WalIdentity { system_id: SystemId(77), seg_size: SegSize::new(SEG as u64).unwrap() };
    let mut other = WalGenerator::new(id, TimelineId::FIRST, Lsn::new(9 * SEG as u64), 6);
    other.fill(10_000);
    let mut own = other.take();
    own.resize(SEG, 0);
    fs::write(target.with_file_name(LAST), own).unwrap();
    assert_eq!(restore.run().await.unwrap(), Restored::Missing);
    fs::remove_file(target.with_file_name(LAST)).unwrap();
    assert_eq!(restore.run().await.unwrap(), Restored::Done);
}

/// Two were promoted to timeline 2, in different places. A standby of the one is promoted, and asks both: with the other one's
/// segment, whole as it is, the server would end recovery before what the one has.
#[tokio::test]
async fn a_whole_segment_of_another_history_is_not_taken() {
    let setting = Setting::new();
    let target = server(&setting, "standby.signal");
    let file = LAST.replacen('1', "2", 1);
    let id = WalIdentity { system_id: SystemId(77), seg_size: SegSize::new(SEG as u64).unwrap() };
    let wal = |seed: u64, bytes: usize| {
        let mut wal = WalGenerator::new(id, TimelineId::new(2).unwrap(), Lsn::new(9 * SEG as u64), seed);
        wal.fill(bytes);
        wal.take()
    };
    let longest = wal(6, 300_000);
    let (ours, theirs) = (Arc::new(Memory::new("r1")), Arc::new(Memory::new("r2")));
    ours.put("00000002.history", "1\t0/8E0000\tx\n");
    ours.put(&format!("{file}.partial"), longest.clone());
    theirs.put("00000002.history", "1\t0/8F0000\tx\n");
    theirs.put(&file, wal(7, SEG)[..SEG].to_vec());
    fs::write(target.with_file_name("00000002.history"), "1\t0/8E0000\tno matter\n").unwrap();
    let required = Required { relays: vec![0, 1], of_relays: 2, ..Required::default() };
    let strict = Some(Strict { required, timeout: None, on_timeout: OnTimeout::Stop });
    for strict in [None, strict] {
        let sources = vec![theirs.clone() as Arc<dyn Source>, ours.clone()];
        let restore = Restore { sources, target: target.clone(), strict, ..setting.restore(&file) };
        assert_eq!(restore.run().await.unwrap(), Restored::Done);
        assert!(fs::read(&target).unwrap()[..longest.len()] == longest);
        fs::remove_file(&target).unwrap();
        // Theirs alone is nothing, and their history does not take the place of ours, if that was ever more than a beginning.
        let alone = Restore { sources: vec![theirs.clone()], strict: None, ..restore };
        assert_eq!(alone.run().await.unwrap(), Restored::Missing);
        let history = Restore { file: "00000002.history".to_owned(), ..alone };
        for (tli, expected) in [(2u32, Restored::Missing), (1, Restored::Done)] {
            let control = [&77u64.to_ne_bytes()[..], &[0; 40], &tli.to_ne_bytes()].concat();
            fs::create_dir_all(data_dir(&target).join("global")).unwrap();
            fs::write(data_dir(&target).join("global/pg_control"), control).unwrap();
            assert_eq!(history.run().await.unwrap(), expected, "{tli}");
        }
    }
}

#[tokio::test]
async fn a_recovery_waits_for_a_source_that_is_away() {
    let setting = Setting::new();
    let target = server(&setting, "recovery.signal");
    setting.source.set_down(true);
    let restore = Restore { target: target.clone(), wait: None, ..setting.restore(MIDDLE) };
    let running = tokio::spawn(async move { restore.run().await });
    let source = setting.source.clone();
    until("asked again and again", || source.asked(MIDDLE) > 20).await;
    assert!(!running.is_finished());
    setting.source.set_down(false);
    assert_eq!(running.await.unwrap().unwrap(), Restored::Done);
    assert!(target.exists());
}

/// A promotion has removed `standby.signal` when it asks for the history of the timeline that it leaves.
#[tokio::test]
async fn the_end_of_a_promotion_waits_for_nobody() {
    let setting = Setting::new();
    let target = server(&setting, "standby.signal");
    fs::remove_file(data_dir(&target).join("standby.signal")).unwrap();
    setting.source.set_down(true);
    let restore = |file: &str| Restore { target: target.clone(), wait: None, ..setting.restore(file) };
    assert_eq!(restore("00000001.history").run().await.unwrap(), Restored::Missing);
    fs::write(target.with_file_name("00000003.history"), "1\t0/400000\tx\n").unwrap();
    assert_eq!(restore("00000003.history").run().await.unwrap(), Restored::Missing);
    // Who knows of the next one is waited for.
    let restore = Restore { wait: Some(Duration::from_millis(50)), ..restore("00000004.history") };
    assert!(restore.run().await.is_err());
}

#[tokio::test]
async fn a_hole_is_waited_for_whatever_came_before_it() {
    let setting = Setting::new();
    setting.source.remove(MIDDLE);
    setting.source.set_down(true);
    let restore = Restore { wait: None, ..setting.restore(MIDDLE) };
    let running = tokio::spawn(async move { restore.run().await });
    // Longer than a hole is waited for.
    let source = setting.source.clone();
    until("asked again and again", || source.asked(MIDDLE) > 20).await;
    setting.source.set_down(false);
    let before = setting.source.asked(MIDDLE);
    let error = running.await.unwrap().unwrap_err();
    assert!(matches!(error, RestoreError::Fetch(Failure::Hole { .. })), "{error}");
    assert!(setting.source.asked(MIDDLE) > before + 1, "it may still be on its way");
}

#[tokio::test]
async fn swapped_arguments_are_a_wrong_call() {
    let setting = Setting::new();
    for file in ["pg_wal/RECOVERYXLOG", "RECOVERYXLOG", "00000001.HISTORY", "", "000000010000000000000003.gz"]
    {
        let restore = Restore { target: setting.dir.path().join(MIDDLE), ..setting.restore(file) };
        let error = restore.run().await.unwrap_err().to_string();
        assert!(error.contains("%f %p"), "{error}");
    }
    assert_eq!(setting.files(), 0);
}

/// A spool whose worker runs in this process, once, and its directory.
fn with_spool(setting: &Setting, ahead: usize) -> (Spool, PathBuf) {
    with_spool_of(setting, &setting.source, KEY, ahead)
}

fn with_spool_of(setting: &Setting, source: &Arc<Memory>, key: &str, ahead: usize) -> (Spool, PathBuf) {
    let top = spool_of(setting);
    let (source, path, own) = (source.clone(), top.clone(), key.to_owned());
    let start = move || {
        let (dir, fetcher) = (path.clone(), Fetcher::new(vec![source.clone() as Arc<dyn Source>], None));
        let key = own.clone();
        tokio::spawn(async move { spool::work(&dir, &key, fetcher, ahead, spool::LINGER).await.unwrap() });
        Ok(())
    };
    (Spool::new(&top, key, Arc::new(start)), top.join(key))
}

fn spool_of(setting: &Setting) -> PathBuf {
    setting.dir.path().join("spool")
}

/// The directory of [`KEY`].
fn made_spool_of(setting: &Setting) -> PathBuf {
    let dir = spool_of(setting).join(KEY);
    fs::create_dir_all(&dir).unwrap();
    dir
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let begun = std::time::Instant::now();
    while !condition() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn segments_are_fetched_ahead_once_and_in_bounds() {
    let setting = Setting::new();
    let (spool, dir) = with_spool(&setting, 2);
    for segno in 3..=8 {
        let restore = Restore { spool: Some(spool.clone()), ..setting.restore(&name(segno)) };
        assert_eq!(restore.run().await.unwrap(), Restored::Done);
        let at = (segno as usize - 3) * SEG;
        assert!(fs::read(setting.target()).unwrap() == setting.wal[at..at + SEG], "segment {segno}");
        for ahead in (segno + 1..=segno + 2).filter(|ahead| *ahead <= 8) {
            until("fetched ahead", || dir.join(name(ahead)).exists()).await;
        }
        let held = fs::read_dir(&dir).unwrap().flatten();
        let held = held.filter(|entry| fetch::is_segment(&entry.file_name().to_string_lossy())).count();
        assert!(held <= 2, "{held} segments");
    }
    assert!((3..=8).all(|segno| setting.source.asked(&name(segno)) == 1), "each is fetched once");
}

/// Shows signs of life of a source, as if something came.
fn beat(setting: &Setting) -> tokio::task::JoinHandle<()> {
    let source = setting.source.clone();
    tokio::spawn(async move {
        loop {
            source.pulse().beat();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
}

#[tokio::test]
async fn what_is_slow_is_fetched_for_a_standby_in_the_background_and_once() {
    let setting = Setting::new();
    let target = server(&setting, "standby.signal");
    let (background, dir) = with_spool(&setting, 1);
    let restore = |file: &str| {
        let (background, target) = (Some(background.clone()), target.clone());
        Restore { target, background, patience: Duration::from_millis(400), ..setting.restore(file) }
    };
    setting.source.set_open(false);
    let beating = beat(&setting);
    for _ in 0..2 {
        let error = restore(MIDDLE).run().await.unwrap_err();
        assert!(matches!(error, RestoreError::Slow { .. }), "{error}");
    }
    // Who asked first gave it up for the worker, which goes on whatever becomes of those who ask.
    assert_eq!(setting.source.asked(MIDDLE), 2);
    assert_eq!(setting.source.asked(&name(6)), 0, "the line is for what is waited for");
    setting.source.set_open(true);
    until("fetched in the background", || dir.join(MIDDLE).exists()).await;
    beating.abort();
    assert_eq!(restore(MIDDLE).run().await.unwrap(), Restored::Done);
    assert!(fs::read(&target).unwrap() == setting.wal[2 * SEG..3 * SEG]);
    assert_eq!(setting.source.asked(MIDDLE), 2);
    // And then the next one.
    until("fetched ahead", || dir.join(name(6)).exists()).await;
    assert_eq!(restore(&name(6)).run().await.unwrap(), Restored::Done);
    assert_eq!(setting.source.asked(&name(6)), 1);
}

#[tokio::test]
async fn what_cannot_be_left_to_the_background_goes_on_coming() {
    use std::sync::atomic::{AtomicBool, Ordering};

    let setting = Setting::new();
    let target = server(&setting, "standby.signal");
    let tried = Arc::new(AtomicBool::new(false));
    let start = {
        let tried = tried.clone();
        move || {
            tried.store(true, Ordering::Relaxed);
            Err(io::ErrorKind::OutOfMemory.into())
        }
    };
    let background = Some(Spool::new(&spool_of(&setting), KEY, Arc::new(start)));
    let patience = Duration::from_secs(3);
    let restore = Restore { target: target.clone(), background, patience, ..setting.restore(MIDDLE) };
    setting.source.set_open(false);
    let beating = beat(&setting);
    let running = tokio::spawn(async move { restore.run().await });
    until("left to a worker", || tried.load(Ordering::Relaxed)).await;
    setting.source.set_open(true);
    assert_eq!(running.await.unwrap().unwrap(), Restored::Done);
    beating.abort();
    assert_eq!(setting.source.asked(MIDDLE), 1);
    assert!(fs::read(&target).unwrap() == setting.wal[2 * SEG..3 * SEG]);
}

#[tokio::test]
async fn workers_of_other_places_do_not_meet() {
    let setting = Setting::new();
    let (old, new) = (source(&setting.wal), source(&setting.wal));
    let restore = async |segno, source: &Arc<Memory>, key| {
        let (spool, dir) = with_spool_of(&setting, source, key, 1);
        let restore = Restore { spool: Some(spool), ..setting.restore(&name(segno)) };
        assert_eq!(restore.run().await.unwrap(), Restored::Done);
        dir.join(name(segno + 1))
    };
    old.set_open(false);
    let late = restore(3, &old, "old").await;
    until("on its way", || old.asked(&name(4)) == 1).await;
    // What comes from the old place, or does not, is not waited for.
    let ahead = restore(4, &new, "new").await;
    assert_eq!(setting.source.asked(&name(4)), 1);
    until("fetched ahead", || ahead.exists()).await;
    old.set_open(true);
    until("fetched late", || late.exists()).await;
    assert!(ahead.exists() && late.parent() != ahead.parent());
    let ahead = restore(6, &old, "old").await;
    until("fetched ahead", || ahead.exists()).await;
    let asked = |source: &Memory| [4, 5, 6, 7, 8].map(|segno| source.asked(&name(segno)));
    assert_eq!((asked(&old), asked(&new)), ([1, 0, 0, 1, 0], [0, 1, 0, 0, 0]));
}

#[tokio::test]
async fn a_worker_removes_what_nobody_uses_and_nothing_else() {
    let setting = Setting::new();
    let (spool, dir) = with_spool(&setting, 1);
    let top = dir.parent().unwrap();
    let long_ago = std::time::SystemTime::now() - Duration::from_secs(3600);
    let make = |below: &str, old: bool| {
        let dir = top.join(below);
        fs::create_dir_all(&dir).unwrap();
        for file in ["wanted", "worker.lock", "worker.log", MIDDLE, "000000010000000000000006.unfinished"] {
            fs::write(dir.join(file), "").unwrap();
            let file = fs::File::options().write(true).open(dir.join(file)).unwrap();
            file.set_modified(if old { long_ago } else { std::time::SystemTime::now() }).unwrap();
        }
        dir
    };
    let (unused, fresh, busy, foreign) =
        (make("unused", true), make("fresh", false), make("busy", true), make("foreign", true));
    make("", true);
    let lock = fs::File::open(busy.join("worker.lock")).unwrap();
    lock.lock().unwrap();
    // Of another's directory that happens to be there nothing is known.
    fs::remove_file(foreign.join("worker.lock")).unwrap();
    fs::write(top.join("notes"), "").unwrap();
    let restore = Restore { spool: Some(spool), ..setting.restore(MIDDLE) };
    assert_eq!(restore.run().await.unwrap(), Restored::Done);
    until("fetched ahead", || dir.join(name(6)).exists()).await;
    let left = fs::read_dir(top).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut left: Vec<_> = left.collect();
    left.sort();
    assert_eq!(left, ["busy", "foreign", "fresh", KEY, "notes", "spool.lock"]);
    assert!(!unused.exists());
    for (dir, files) in [(fresh, 5), (busy, 5), (foreign, 4)] {
        assert_eq!(fs::read_dir(&dir).unwrap().count(), files, "{}", dir.display());
    }
}

#[tokio::test]
async fn a_slow_beginning_is_fetched_in_the_background_too() {
    let setting = Setting::new();
    let target = server(&setting, "standby.signal");
    let (background, dir) = with_spool(&setting, 1);
    let restore = || {
        let (background, target) = (Some(background.clone()), target.clone());
        Restore { target, background, patience: Duration::from_millis(400), ..setting.restore(LAST) }
    };
    setting.source.set_open(false);
    let beating = beat(&setting);
    let error = restore().run().await.unwrap_err();
    assert!(matches!(error, RestoreError::Slow { .. }), "{error}");
    setting.source.set_open(true);
    let beginning = dir.join(format!("{LAST}.unfinished"));
    until("fetched in the background", || beginning.exists()).await;
    beating.abort();
    assert_eq!(restore().run().await.unwrap(), Restored::Done);
    let good = setting.wal.len() - 6 * SEG;
    let restored = fs::read(&target).unwrap();
    assert!(restored.len() == SEG && restored[..good] == setting.wal[6 * SEG..]);
    assert!(!beginning.exists(), "more may have come until it is asked for again");
}

#[tokio::test]
async fn a_silent_source_is_no_reason_to_leave_anything_to_the_background() {
    let setting = Setting::new();
    let target = server(&setting, "standby.signal");
    let (background, dir) = with_spool(&setting, 1);
    setting.source.set_open(false);
    // Another one, from which something comes, has not got it.
    let other = Arc::new(Memory::new("other"));
    other.pulse().beat();
    let sources = vec![setting.source.clone() as Arc<dyn Source>, other];
    let patience = Duration::from_millis(200);
    let restore =
        Restore { sources, target, background: Some(background), patience, ..setting.restore(MIDDLE) };
    let error = restore.run().await.unwrap_err().to_string();
    assert!(error.contains("nothing has come from it"), "{error}");
    assert!(!dir.exists());
}

#[tokio::test]
async fn a_beginning_left_in_the_spool_is_for_a_standby_of_its_cluster() {
    let setting = Setting::new();
    let (spool, dir) = (Spool::new(&spool_of(&setting), KEY, Arc::new(|| Ok(()))), made_spool_of(&setting));
    let left = dir.join(format!("{MIDDLE}.unfinished"));
    let beginning = |segno: usize| {
        let mut bytes = setting.wal[(segno - 3) * SEG..][..SEG / 2].to_vec();
        bytes.resize(SEG, 0);
        bytes
    };
    let take = async |bytes: Vec<u8>, system: u64, role| {
        fs::write(&left, bytes).unwrap();
        let taken = spool.take(MIDDLE, &setting.target(), Some(SystemId(system)), role).await;
        assert!(!left.exists());
        taken
    };
    assert!(matches!(take(beginning(5), 77, Role::Standby).await, Some(Taken::Unfinished(_))));
    assert_eq!(take(beginning(5), 78, Role::Standby).await, None, "another cluster's");
    assert_eq!(take(beginning(4), 77, Role::Standby).await, None, "another segment's");
    assert_eq!(take(beginning(5), 77, Role::Recovery).await, None);
    // A recovery gets what there is now.
    fs::write(&left, beginning(5)).unwrap();
    let restore = Restore { spool: Some(spool), ..setting.restore(MIDDLE) };
    assert_eq!(restore.run().await.unwrap(), Restored::Done);
    assert!(fs::read(setting.target()).unwrap() == setting.wal[2 * SEG..3 * SEG]);
    assert!(!left.exists());
}

#[tokio::test]
async fn a_spoiled_segment_in_the_spool_is_fetched_again() {
    let setting = Setting::new();
    let (spool, dir) = (Spool::new(&spool_of(&setting), KEY, Arc::new(|| Ok(()))), made_spool_of(&setting));
    let mut spoiled = setting.wal[2 * SEG..3 * SEG].to_vec();
    spoiled[400_000] ^= 1;
    fs::write(dir.join(MIDDLE), spoiled).unwrap();
    let restore = Restore { spool: Some(spool), ..setting.restore(MIDDLE) };
    assert_eq!(restore.run().await.unwrap(), Restored::Done);
    assert!(fs::read(setting.target()).unwrap() == setting.wal[2 * SEG..3 * SEG]);
}

#[tokio::test]
async fn a_spool_that_others_can_write_is_left_alone_and_recovery_goes_on() {
    use std::os::unix::fs::{PermissionsExt, symlink};

    let setting = Setting::new();
    let (top, dir) = (spool_of(&setting), made_spool_of(&setting));
    // What somebody else wants recovery to read, and a link of theirs.
    let theirs = setting.wal[2 * SEG..3 * SEG].to_vec();
    fs::write(dir.join(MIDDLE), &theirs).unwrap();
    let precious = setting.dir.path().join("precious");
    fs::write(&precious, "content").unwrap();
    symlink(&precious, dir.join("worker.lock")).unwrap();
    let open = |dir: &PathBuf, mode| fs::set_permissions(dir, fs::Permissions::from_mode(mode)).unwrap();
    // Who can write the one can put another in the place of the other.
    open(&top, 0o777);
    let started = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let start = started.clone();
    let start_worker = move || {
        start.store(true, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    };
    let spool = Spool::new(&top, KEY, Arc::new(start_worker));
    let restore = Restore { spool: Some(spool), ..setting.restore(MIDDLE) };
    assert_eq!(restore.run().await.unwrap(), Restored::Done);
    assert_eq!(setting.source.asked(MIDDLE), 1, "fetched, not taken from there");
    assert!(!started.load(std::sync::atomic::Ordering::Relaxed));
    let fetcher = || Fetcher::new(vec![setting.source.clone() as Arc<dyn Source>], None);
    let work = async || spool::work(&top, KEY, fetcher(), 3, Duration::from_secs(1)).await;
    for (opened, other) in [(&top, &dir), (&dir, &top)] {
        open(other, 0o700);
        open(opened, 0o777);
        let error = work().await.unwrap_err().to_string();
        assert!(
            error.contains("can be written by others (0777)") && error.contains("--spool-dir"),
            "{error}"
        );
    }
    // Nor is a link followed in a directory that looks well now.
    open(&dir, 0o700);
    assert!(work().await.is_err());
    assert!(spool::worker_log(&top, KEY).is_ok());
    fs::remove_file(dir.join(spool::LOG)).unwrap();
    symlink(&precious, dir.join(spool::LOG)).unwrap();
    assert!(spool::worker_log(&top, KEY).is_err());
    assert_eq!(fs::read_to_string(&precious).unwrap(), "content");
    assert!(fs::read(dir.join(MIDDLE)).unwrap() == theirs);
}

/// Between the last look at what is wanted and the end of the worker somebody may want something, and see a worker.
#[tokio::test]
async fn a_worker_ends_only_when_nobody_can_have_relied_on_it() {
    let setting = Setting::new();
    let dir = made_spool_of(&setting);
    let (spool, _) = with_spool(&setting, 1);
    let gate = fs::File::create(spool_of(&setting).join("spool.lock")).unwrap();
    gate.lock_shared().unwrap();
    let fetcher = Fetcher::new(vec![setting.source.clone() as Arc<dyn Source>], None);
    let top = spool_of(&setting);
    let worker = tokio::spawn(async move { spool::work(&top, KEY, fetcher, 1, Duration::ZERO).await });
    until("the worker to be there", || dir.join("worker.lock").exists()).await;
    // It has nothing to do, and stays: somebody may be saying what is wanted.
    spool.leave(MIDDLE, SegSize::new(SEG as u64).unwrap()).unwrap();
    drop(gate);
    worker.await.unwrap().unwrap();
    assert_eq!(setting.source.asked(MIDDLE), 1, "by this one");
}

/// Who removes what nobody has used, and whoever wants to use it, do not come between each other's steps.
#[tokio::test]
async fn what_is_wanted_is_not_removed_as_unused() {
    let setting = Setting::new();
    let (top, unused) = (spool_of(&setting), spool_of(&setting).join("unused"));
    let dir = made_spool_of(&setting);
    fs::create_dir(&unused).unwrap();
    fs::write(unused.join("worker.lock"), "").unwrap();
    let gate = fs::File::create(top.join("spool.lock")).unwrap();
    gate.lock_shared().unwrap();
    let fetcher = || Fetcher::new(vec![setting.source.clone() as Arc<dyn Source>], None);
    let work = || tokio::spawn(spool_work(top.clone(), fetcher()));
    let worker = work();
    until("a worker", || dir.join("worker.lock").exists()).await;
    assert!(unused.exists(), "somebody may be about to use it");
    drop(gate);
    worker.await.unwrap().unwrap();
    work().await.unwrap().unwrap();
    assert!(!unused.exists());
    // And the other way round: who wants something waits for whoever removes, and makes anew what he has removed.
    let gate = fs::File::open(top.join("spool.lock")).unwrap();
    gate.lock().unwrap();
    let (started, start) = std::sync::mpsc::channel();
    let spool = Spool::new(&top, "unused", Arc::new(move || started.send(()).map_err(io::Error::other)));
    let (say, said) = std::sync::mpsc::channel();
    let wants = std::thread::spawn(move || {
        say.send(()).unwrap();
        spool.leave(MIDDLE, SegSize::new(SEG as u64).unwrap())
    });
    said.recv().unwrap();
    let _ = fs::remove_dir(&unused);
    assert!(!unused.join("wanted").exists());
    drop(gate);
    wants.join().unwrap().unwrap();
    start.try_recv().expect("a worker is started");
    assert!(unused.join("wanted").exists());
}

async fn spool_work(top: PathBuf, fetcher: Fetcher) -> io::Result<()> {
    spool::work(&top, KEY, fetcher, 1, Duration::ZERO).await
}

#[tokio::test]
async fn an_idle_worker_leaves_no_segments() {
    let setting = Setting::new();
    let dir = made_spool_of(&setting);
    fs::write(dir.join("wanted"), format!("{} {SEG}\n", name(3))).unwrap();
    fs::write(dir.join(name(2)), "old").unwrap();
    fs::write(dir.join(format!("{}.fetching", name(4))), "left over").unwrap();
    let fetcher = Fetcher::new(vec![setting.source.clone() as Arc<dyn Source>], None);
    spool::work(&spool_of(&setting), KEY, fetcher, 3, Duration::from_secs(1)).await.unwrap();
    assert_eq!(setting.source.asked(&name(6)), 1);
    let left = fs::read_dir(&dir).unwrap().flatten().map(|entry| entry.file_name().into_string().unwrap());
    let mut left: Vec<_> = left.collect();
    left.sort();
    assert_eq!(left, ["wanted", "worker.lock"]);
}
