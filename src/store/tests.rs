//! The store as a whole: what was appended is there, durable, and there again after a crash.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use walrelay_proto::generate::WalGenerator;
use walrelay_proto::{SegNo, SlotName, SystemId, WalIdentity};

use super::*;

mod ahead;
mod bad_sectors;
mod gathered;
mod going_back;
mod holding;
mod lost_files;
mod turns;

const SEG: u64 = 1 << 20;
const START: Lsn = Lsn::new(3 * SEG);

fn identity() -> Identity {
    Identity { system_id: SystemId(77), seg_size: SegSize::new(SEG).unwrap() }
}

fn generator(seed: u64) -> WalGenerator {
    let Identity { system_id, seg_size } = identity();
    WalGenerator::new(WalIdentity { system_id, seg_size }, TimelineId::FIRST, START, seed)
}

fn config(dir: &Path, wal_write: WalWrite) -> StoreConfig {
    StoreConfig {
        data_dir: dir.to_owned(),
        wal_write,
        wal_keep_size: 1 << 40,
        max_slot_wal_keep_size: None,
        max_replication_slots: 10,
    }
}

struct Opened {
    store: Arc<Store>,
    writer: Writer,
    background: Background,
}

impl Opened {
    fn open(dir: &Path) -> Opened {
        Opened::with(config(dir, WalWrite::Pwrite))
    }

    fn with(config: StoreConfig) -> Opened {
        let (store, mut writer, background) = Store::open(config).unwrap();
        store.attach(identity(), UpstreamParameters::default()).unwrap();
        if writer.position().is_none() {
            writer.begin(identity(), TimelineHistory::first(), START);
        }
        Opened { store, writer, background }
    }

    fn append(&mut self, at: Lsn, bytes: &[u8]) {
        self.writer.append(at, bytes).unwrap();
        self.writer.commit();
    }

    fn wait_flushed(&self, lsn: Lsn) {
        wait("flush", || self.store.tip().is_some_and(|tip| tip.flush_lsn >= lsn));
    }

    /// Ends it in order.
    fn stop(self) {
        drop(self.writer);
        assert!(self.background.stop().is_none());
    }

    /// Ends it as a crash does: all that is written is in the page cache, and nothing says that it is on the disk.
    fn crash(self) {
        let state = self.store.data_dir().join("last-run.toml");
        self.stop();
        let said = fs::read_to_string(&state).unwrap();
        fs::write(state, said.replace("\"stopped\"", "\"running\"")).unwrap();
    }
}

fn wait(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "timed out waiting for {what}");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

/// All published bytes from START on, through the maps.
fn read_back(store: &Store, tli: TimelineId, to: Lsn) -> Vec<u8> {
    let mut out = Vec::new();
    let size = identity().seg_size;
    let mut at = START;
    while at < to {
        let segment = store.segment(tli, at.seg_at(size)).unwrap();
        let len = segment.end().min(to).since(at);
        out.extend_from_slice(segment.bytes(at.offset_in_seg(size), len as usize));
        at = at.advance(len);
    }
    out
}

#[test]
fn what_is_appended_is_visible_then_durable_then_a_finished_file() {
    for how in [WalWrite::Pwrite, WalWrite::Mmap] {
        let dir = crate::permissions::private_tempdir();
        let mut wal = generator(1);
        wal.fill(2_500_000);
        let mut opened = Opened::with(config(dir.path(), how));
        for (index, piece) in wal.bytes().chunks(100_003).enumerate() {
            opened.append(START.advance(index as u64 * 100_003), piece);
        }
        let end = *wal.record_ends().last().unwrap();
        assert_eq!(opened.store.tip().unwrap().write_lsn, end);
        opened.wait_flushed(end);
        let expected = &wal.bytes()[..end.since(START) as usize];
        assert!(read_back(&opened.store, TimelineId::FIRST, end) == expected);
        let finished = dir.path().join("pg_wal/000000010000000000000003");
        wait("rename", || finished.exists());
        assert!(fs::read(finished).unwrap() == wal.bytes()[..SEG as usize]);
        assert!(dir.path().join("pg_wal/000000010000000000000005.partial").exists());
    }
}

#[test]
fn the_start_is_shown_while_nothing_comes_and_claims_no_wal() {
    let dir = crate::permissions::private_tempdir();
    let mut opened = Opened::open(dir.path());
    assert_eq!(opened.store.tip(), None);
    opened.writer.show_start();
    let tip = Tip { tli: TimelineId::FIRST, write_lsn: START, flush_lsn: START };
    assert_eq!(opened.store.tip(), Some(tip));
    assert_eq!((opened.store.oldest(), opened.store.oldest_kept()), (Some(START), Some(START)));
    let name = SlotName::new("s").unwrap();
    opened.store.create_reserving_slot(&name, SlotPersistence::Persistent).unwrap();
    assert_eq!(opened.store.slots().get("s").unwrap().restart_lsn, Some(START));
    opened.stop();
    // The next start does not look for WAL up to there.
    let noted = fs::read_to_string(dir.path().join("last-run.toml")).unwrap();
    assert!(noted.contains("running"), "{noted}");

    let mut opened = Opened::open(dir.path());
    opened.writer.show_start();
    let mut wal = generator(3);
    wal.fill(1_500_000);
    opened.append(START, wal.bytes());
    let end = *wal.record_ends().last().unwrap();
    opened.writer.show_start();
    opened.wait_flushed(end);
    assert_eq!(opened.store.tip().unwrap().write_lsn, end);
    assert_eq!((opened.store.oldest(), opened.store.begun_at()), (Some(START), Some(START)));
    assert!(read_back(&opened.store, TimelineId::FIRST, end) == wal.bytes()[..end.since(START) as usize]);
    opened.stop();
    let noted = fs::read_to_string(dir.path().join("last-run.toml")).unwrap();
    assert!(noted.contains("stopped"), "{noted}");
}

/// The verifier of the new timeline has seen no record then.
/// It was decided what the slot keeps, and then WAL begins elsewhere, before it.
#[test]
fn a_slot_that_is_made_while_wal_begins_anew_keeps_nothing_of_before() {
    let dir = crate::permissions::private_tempdir();
    let mut opened = Opened::open(dir.path());
    opened.writer.show_start();
    let store = opened.store.clone();
    let (decided, start) = (store.wal_to_reserve(), Lsn::new(SEG));
    assert_eq!(decided, Some(START));
    let make = |name: &str| {
        let end = || store.tip().map(|tip| tip.write_lsn);
        let name = name.parse().unwrap();
        store.slots().create_reserving(&name, SlotPersistence::Persistent, decided, end).unwrap();
        store.slots().get(name.as_str()).unwrap().restart_lsn
    };
    opened.writer.begin(identity(), TimelineHistory::first(), start);
    assert_eq!(make("between"), None);
    opened.writer.show_start();
    assert_eq!(make("behind"), Some(start));
}

/// What cannot be read cannot be compared, and may be another history's.
#[test]
fn wal_is_not_taken_behind_what_cannot_be_compared() {
    let dir = crate::permissions::private_tempdir();
    let mut wal = generator(16);
    wal.fill(1_500_000);
    let mut opened = Opened::open(dir.path());
    opened.append(START, wal.bytes());
    let first = dir.path().join("pg_wal/000000010000000000000003");
    wait("the name", || first.exists());
    // Nobody has it open any more, and somebody has truncated it.
    fs::File::options().write(true).open(&first).unwrap().set_len(4096).unwrap();
    wait("its map to go", || opened.store.mapped_segment(TimelineId::FIRST, SegNo::new(3)).is_none());
    let error = opened.writer.append(START, wal.bytes()).unwrap_err();
    assert!(matches!(error, AppendError::Disk { action: "read", .. }), "{error}");
    // One that retention has removed is no longer anybody's.
    fs::remove_file(&first).unwrap();
    opened.append(START, wal.bytes());
}

/// Somebody has taken all WAL away and left the slots.
#[test]
fn slots_come_back_to_where_wal_begins() {
    let dir = crate::permissions::private_tempdir();
    let opened = Opened::open(dir.path());
    let beyond = START.advance(7 * SEG);
    opened.store.slots().create(&"s".parse().unwrap(), SlotPersistence::Persistent, Some(beyond)).unwrap();
    opened.stop();
    let opened = Opened::open(dir.path());
    assert_eq!(opened.store.slots().get("s").unwrap().restart_lsn, Some(START));
}

/// What was removed before is not what has come since.
#[test]
fn where_wal_begins_anew_a_timeline_may_fork_off_before_the_earlier_beginning() {
    let dir = crate::permissions::private_tempdir();
    let mut opened = Opened::with(StoreConfig { wal_keep_size: 0, ..config(dir.path(), WalWrite::Pwrite) });
    opened.writer.show_start();
    opened.store.remove_old_wal().unwrap();
    let (Identity { system_id, seg_size }, start) = (identity(), Lsn::new(SEG));
    let mut wal = WalGenerator::new(WalIdentity { system_id, seg_size }, TimelineId::FIRST, start, 15);
    wal.fill(300_000);
    opened.writer.begin(identity(), TimelineHistory::first(), start);
    opened.append(start, wal.bytes());
    opened.wait_flushed(*wal.record_ends().last().unwrap());
    let second = TimelineId::new(2).unwrap();
    let content = format!("1\t{}\tx\n", wal.record_ends().last().unwrap());
    opened.store.save_history_file(second, content.as_bytes()).unwrap();
    let history = TimelineHistory::parse(second, content.as_bytes()).unwrap();
    opened.writer.switch_timeline(history).unwrap();
    let name = "s".parse().unwrap();
    opened.store.create_reserving_slot(&name, SlotPersistence::Persistent).unwrap();
    assert_eq!(opened.store.slots().get("s").unwrap().restart_lsn, Some(start));
}

#[test]
fn a_fork_at_the_start_of_a_segment_makes_no_beginning_of_what_is_held() {
    let dir = crate::permissions::private_tempdir();
    let mut opened = Opened::open(dir.path());
    assert!(opened.writer.is_bare());
    let mut wal = generator(45);
    wal.fill(300_000);
    wal.switch_segment();
    wal.fill(200_000);
    opened.append(START, wal.bytes());
    opened.wait_flushed(*wal.record_ends().last().unwrap());
    let fork = START.advance(SEG);
    let second = TimelineId::new(2).unwrap();
    let content = format!("1\t{fork}\tx\n");
    opened.store.save_history_file(second, content.as_bytes()).unwrap();
    let history = TimelineHistory::parse(second, content.as_bytes()).unwrap();
    opened.writer.switch_timeline(history).unwrap();
    assert_eq!(opened.writer.position(), Some(TimelinePosition { tli: second, lsn: fork }));
    assert!(!opened.writer.is_bare(), "the segment before it is held");
    opened.stop();
    assert!(!Opened::open(dir.path()).writer.is_bare());
}

/// As PostgreSQL's slots do.
#[test]
fn a_slot_reserves_from_where_the_newest_checkpoint_begins() {
    let dir = crate::permissions::private_tempdir();
    let mut wal = generator(4);
    wal.fill(1_200_000);
    let redo = wal.position();
    wal.fill(300_000);
    wal.checkpoint(redo);
    wal.fill(2_500_000);
    let mut opened = Opened::open(dir.path());
    let reserved = |opened: &Opened, name: &str| {
        let name = SlotName::new(name).unwrap();
        opened.store.create_reserving_slot(&name, SlotPersistence::Persistent).unwrap();
        opened.store.slots().get(name.as_str()).unwrap().restart_lsn
    };
    let before = &wal.bytes()[..1_400_000];
    opened.append(START, before);
    assert_eq!(reserved(&opened, "early"), Some(START), "no checkpoint was seen");
    opened.append(START.advance(before.len() as u64), &wal.bytes()[before.len()..]);
    assert_eq!(reserved(&opened, "now"), Some(redo));
    opened.stop();
    // The checkpoint lies before the segments that a start reads.
    let opened = Opened::open(dir.path());
    assert_eq!(reserved(&opened, "again"), Some(redo));
    // A standby's backups may begin at a checkpoint before that.
    let status = vec![("in_hot_standby".to_owned(), "on".to_owned())];
    let standby = UpstreamParameters { status, ..UpstreamParameters::default() };
    opened.store.attach(identity(), standby).unwrap();
    assert_eq!(reserved(&opened, "standby"), Some(START));
}

#[test]
fn bad_wal_is_refused_with_its_position_and_can_be_fetched_again() {
    let dir = crate::permissions::private_tempdir();
    let mut wal = generator(2);
    wal.fill(300_000);
    let mut opened = Opened::open(dir.path());
    let mut bad = wal.bytes().to_vec();
    bad[200_000] ^= 1;
    let error = opened.writer.append(START, &bad).unwrap_err();
    assert!(matches!(error, AppendError::Bad(_)), "{error}");
    opened.writer.commit();
    opened.writer.rewind();
    let position = opened.writer.position().unwrap().lsn;
    assert!(position.since(START) <= 200_000 && wal.record_ends().contains(&position));
    assert_eq!(opened.store.tip().unwrap().write_lsn, position, "what came before the bad record counts");
    opened.append(position, &wal.bytes()[position.since(START) as usize..]);
    assert_eq!(opened.store.tip().unwrap().write_lsn, *wal.record_ends().last().unwrap());
}

#[test]
fn overlap_is_compared_and_a_gap_refused() {
    let dir = crate::permissions::private_tempdir();
    let mut wal = generator(3);
    wal.fill(1_300_000);
    let mut opened = Opened::open(dir.path());
    opened.append(START, wal.bytes());
    let end = opened.store.tip().unwrap().write_lsn;
    opened.writer.rewind();
    opened.append(START.advance(900_000), &wal.bytes()[900_000..]);
    assert_eq!(opened.store.tip().unwrap().write_lsn, end);
    let mut other = wal.bytes()[900_000..].to_vec();
    // XLP_BKP_REMOVABLE of the page at 909312: nothing says which is right, and nobody reads it.
    other[9312 + 2] ^= 4;
    opened.append(START.advance(900_000), &other);
    opened.writer.rewind();
    other[150_000] ^= 1;
    let error = opened.writer.append(START.advance(900_000), &other).unwrap_err();
    let AppendError::Diverged { lsn, .. } = error else { panic!("{error}") };
    assert_eq!(lsn, START.advance(1_050_000));
    let gap = opened.writer.append(end.advance(1 << 20), b"x").unwrap_err();
    assert!(matches!(gap, AppendError::Gap { .. }), "{gap}");
}

#[test]
fn recovery_finds_the_last_complete_record() {
    let dir = crate::permissions::private_tempdir();
    let mut wal = generator(4);
    wal.fill(1_500_000);
    wal.record(3_500_000);
    let cut = wal.bytes().len() - 700_000;
    let mut opened = Opened::open(dir.path());
    opened.append(START, &wal.bytes()[..cut]);
    let end = opened.store.tip().unwrap().write_lsn;
    opened.crash();

    let mut opened = Opened::open(dir.path());
    assert_eq!(opened.store.tip().unwrap().write_lsn, end);
    assert_eq!(opened.writer.position().unwrap().lsn, end);
    opened.append(end, &wal.bytes()[end.since(START) as usize..]);
    let last = *wal.record_ends().last().unwrap();
    assert_eq!(opened.store.tip().unwrap().write_lsn, last);
    assert!(read_back(&opened.store, TimelineId::FIRST, last) == wal.bytes()[..last.since(START) as usize]);
}

/// All but the end of a long record was durable, and its segments had their names.
#[test]
fn finished_segments_of_a_record_that_does_not_end_come_again() {
    let dir = crate::permissions::private_tempdir();
    let mut wal = generator(4);
    wal.fill(1_500_000);
    let end = *wal.record_ends().last().unwrap();
    wal.record(3_500_000);
    let last = *wal.record_ends().last().unwrap();
    let mut opened = Opened::open(dir.path());
    opened.append(START, wal.bytes());
    opened.wait_flushed(last);
    opened.crash();
    let in_wal = |name: &str| dir.path().join("pg_wal").join(name);
    let tail = last.seg_at(identity().seg_size).as_u64();
    fs::remove_file(in_wal(&format!("00000001000000000000000{tail}.partial"))).unwrap();
    assert!(in_wal("000000010000000000000005").exists() && in_wal("000000010000000000000006").exists());

    let rest = &wal.bytes()[end.since(START) as usize..];
    for received in [rest.len() - 1_000_000, rest.len() - 1_000_000, rest.len()] {
        let mut opened = Opened::open(dir.path());
        assert_eq!(opened.store.tip().unwrap().flush_lsn, end);
        opened.append(end, &rest[..received]);
        opened.crash();
    }
    let opened = Opened::open(dir.path());
    assert_eq!(opened.store.tip().unwrap().flush_lsn, last);
    assert!(read_back(&opened.store, TimelineId::FIRST, last) == wal.bytes()[..last.since(START) as usize]);
}

#[test]
fn recovery_drops_what_a_power_cut_tore() {
    let dir = crate::permissions::private_tempdir();
    let mut wal = generator(5);
    wal.fill(2_200_000);
    let mut opened = Opened::open(dir.path());
    opened.append(START, wal.bytes());
    opened.wait_flushed(*wal.record_ends().last().unwrap());
    opened.crash();
    // The first block of the last segment never reached the disk: a record that began before it is lost.
    let tail = dir.path().join("pg_wal/000000010000000000000005.partial");
    let mut bytes = fs::read(&tail).unwrap();
    bytes[..4096].fill(0);
    fs::write(&tail, bytes).unwrap();

    let opened = Opened::open(dir.path());
    let end = opened.store.tip().unwrap().write_lsn;
    let boundary = START.advance(2 * SEG);
    let expected = wal.record_ends().iter().copied().filter(|&end| end <= boundary).max().unwrap();
    assert_eq!(end, expected);
}

/// The kernel may have taken the pages of a failed sync for clean: a new file has pages of its own.
#[test]
fn what_is_not_known_to_be_durable_is_written_into_new_files() {
    let dir = crate::permissions::private_tempdir();
    let in_wal = |name: &str| dir.path().join("pg_wal").join(name);
    let mut wal = generator(11);
    wal.fill(2_500_000);
    let end = *wal.record_ends().last().unwrap();
    let mut opened = Opened::open(dir.path());
    opened.append(START, wal.bytes());
    opened.wait_flushed(end);
    let second = TimelineId::new(2).unwrap();
    opened.store.save_history_file(second, b"1\t0/5000000\tx\n").unwrap();
    wait("rename", || in_wal("000000010000000000000004").exists());
    let files = ["000000010000000000000004.partial", "000000010000000000000005.partial", "00000002.history"];
    let inodes = || files.map(|name| fs::metadata(in_wal(name)).map(|file| file.ino()).ok());
    let before = inodes();
    opened.stop();

    let opened = Opened::open(dir.path());
    assert_eq!(
        (inodes(), opened.store.tip().unwrap().flush_lsn),
        (before, end),
        "the last run ended in order"
    );
    opened.crash();
    // A crash may also have come before a complete segment got its name.
    fs::rename(in_wal("000000010000000000000004"), in_wal(files[0])).unwrap();
    let before = inodes();
    let opened = Opened::open(dir.path());
    assert_eq!(opened.store.tip().unwrap().flush_lsn, end);
    assert!(!in_wal(files[0]).exists());
    fs::rename(in_wal("000000010000000000000004"), in_wal(files[0])).unwrap();
    for (before, after) in before.iter().zip(inodes()) {
        assert!(before.is_some() && after.is_some() && *before != after);
    }
    fs::rename(in_wal(files[0]), in_wal("000000010000000000000004")).unwrap();
    assert!(read_back(&opened.store, TimelineId::FIRST, end) == wal.bytes()[..end.since(START) as usize]);
}

#[test]
fn an_orderly_stop_counts_only_once_and_only_where_it_was() {
    let dir = crate::permissions::private_tempdir();
    let mut wal = generator(12);
    wal.fill(300_000);
    let mut opened = Opened::open(dir.path());
    opened.append(START, &wal.take());
    opened.stop();
    let state = |dir: &DataDir| LastRun::load(dir).0.durable();
    let kept = fs::read(dir.path().join("last-run.toml")).unwrap();
    let opened = Opened::open(dir.path());
    assert_eq!(state(&opened.store.dir), None, "it is over as soon as another run has begun");
    opened.crash();
    // Another position than that of the record: not this directory's end.
    let text = String::from_utf8(kept).unwrap().replace("0/3", "0/2");
    fs::write(dir.path().join("last-run.toml"), text).unwrap();
    let tail = dir.path().join("pg_wal/000000010000000000000003.partial");
    let before = fs::metadata(&tail).unwrap().ino();
    drop(Opened::open(dir.path()));
    assert_ne!(fs::metadata(&tail).unwrap().ino(), before);
}

/// `cp -a`, rsync, a restored snapshot: it reads as the original does, and nobody has synced it.
#[test]
fn a_copy_of_a_directory_that_was_stopped_in_order_is_written_again() {
    let (dir, copies) = (crate::permissions::private_tempdir(), crate::permissions::private_tempdir());
    let mut wal = generator(20);
    wal.fill(1_500_000);
    let end = *wal.record_ends().last().unwrap();
    let mut opened = Opened::open(dir.path());
    opened.append(START, wal.bytes());
    wait("names", || dir.path().join("pg_wal/000000010000000000000003").exists());
    opened.stop();
    let copy = copies.path().join("copy");
    let copied = std::process::Command::new("cp").arg("-a").args([dir.path(), &copy]).status();
    assert!(copied.unwrap().success());
    let tail = "pg_wal/000000010000000000000004.partial";
    for (root, is_written_again) in [(dir.path(), false), (&copy, true), (&copy, false)] {
        let inode = || fs::metadata(root.join(tail)).unwrap().ino();
        let before = inode();
        let _held = fs::File::open(root.join(tail)).unwrap();
        let opened = Opened::open(root);
        assert_eq!(inode() != before, is_written_again, "{}", root.display());
        assert_eq!(opened.store.tip().unwrap().flush_lsn, end);
        opened.stop();
    }
}

/// The kernel takes the pages of a failed sync for clean, so the next sync says yes.
#[test]
fn where_all_could_not_be_synced_every_segment_is_written_again_once() {
    let dir = crate::permissions::private_tempdir();
    let in_wal = |name: &str| dir.path().join("pg_wal").join(name);
    let mut wal = generator(22);
    wal.fill(2_500_000);
    let end = *wal.record_ends().last().unwrap();
    let mut opened = Opened::open(dir.path());
    opened.append(START, wal.bytes());
    wait("names", || in_wal("000000010000000000000004").exists());
    opened.stop();
    // Put there by hand, of a timeline that is not followed.
    fs::copy(in_wal("000000010000000000000003"), in_wal("000000020000000000000003.partial")).unwrap();
    let locked = DataDir::lock(Arc::new(OsDisk), dir.path()).unwrap();
    let (last, files) = LastRun::load(&locked);
    assert_eq!(files, Files::Others);
    let failed = sync_others(&locked, &last, |_| Err(io::Error::from_raw_os_error(libc::EIO)));
    assert_eq!(failed.unwrap(), Files::Unsynced);
    drop(locked);
    let files = ["3", "4", "5.partial"].map(|end| format!("00000001000000000000000{end}"));
    let files = files.into_iter().chain(["000000020000000000000003.partial".to_owned()]);
    let files: Vec<_> = files.map(|name| in_wal(&name)).collect();
    let inodes = || files.iter().map(|file| fs::metadata(file).unwrap().ino()).collect::<Vec<_>>();
    let timeline = "timeline = 1\nnewest = 1\n";
    fs::write(dir.path().join("timeline.toml"), timeline).unwrap();
    for is_written_again in [true, false] {
        let before = inodes();
        // As long as they are open nobody else gets their numbers.
        let _held: Vec<_> = files.iter().map(|file| fs::File::open(file).unwrap()).collect();
        let opened = Opened::open(dir.path());
        for (before, after) in before.iter().zip(inodes()).take(2) {
            assert_eq!(*before != after, is_written_again);
        }
        // Unfinished ones of other timelines at every start that does not come behind an end in order.
        assert_ne!(before[3], inodes()[3], "of another timeline");
        assert_eq!(opened.store.tip().unwrap().flush_lsn, end);
        assert!(read_back(&opened.store, TimelineId::FIRST, end) == wal.bytes()[..end.since(START) as usize]);
        opened.crash();
    }
}

#[test]
fn a_failed_sync_ends_everything_and_leaves_word() {
    let dir = crate::permissions::private_tempdir();
    let mut wal = generator(13);
    wal.fill(300_000);
    let mut opened = Opened::open(dir.path());
    opened.append(START, wal.bytes());
    let end = *wal.record_ends().last().unwrap();
    opened.wait_flushed(end);
    opened.store.fail_sync("could not sync WAL up to 0/9", &io::Error::from_raw_os_error(libc::EIO));
    assert!(matches!(opened.writer.append(end, b"x"), Err(AppendError::Failed)));
    let store = opened.store.clone();
    drop(opened.writer);
    opened.background.stop();
    let (LastRun::Failed { confirmed, what, .. }, _) = LastRun::load(&store.dir) else {
        panic!("no word was left")
    };
    assert_eq!(confirmed, Some(TimelinePosition { tli: TimelineId::FIRST, lsn: end }));
    assert!(what.contains("up to 0/9") && what.contains("os error 5"), "{what}");
}

#[test]
fn unfinished_segments_of_no_use_are_put_aside() {
    let dir = crate::permissions::private_tempdir();
    let in_wal = |name: &str| dir.path().join("pg_wal").join(name);
    let mut wal = generator(14);
    wal.fill(1_500_000);
    let end = *wal.record_ends().last().unwrap();
    let mut opened = Opened::open(dir.path());
    opened.append(START, wal.bytes());
    opened.wait_flushed(end);
    wait("rename", || in_wal("000000010000000000000003").exists());
    opened.crash();
    // Its size never reached the disk; its name did. And one that came twice.
    let of_no_use = [
        ("000000010000000000000005.partial", vec![7; 100]),
        ("000000010000000000000003.partial", vec![0; SEG as usize]),
    ];
    for (name, content) in of_no_use {
        fs::write(in_wal(name), content).unwrap();
        for _ in 0..2 {
            let opened = Opened::open(dir.path());
            assert_eq!(opened.store.tip().unwrap().flush_lsn, end);
            opened.crash();
        }
    }
    let aside = |name: &str| fs::metadata(dir.path().join("aside").join(name)).unwrap().len();
    assert_eq!(aside("000000010000000000000005.partial"), 100);
    assert_eq!(aside("000000010000000000000003.partial"), SEG);
    assert!(fs::read(in_wal("000000010000000000000003")).unwrap() == wal.bytes()[..SEG as usize]);
}

/// After a power cut the name of a new segment may be there and its size not: nothing in it was confirmed.
#[test]
fn a_short_unfinished_segment_behind_the_last_whole_one_is_put_aside() {
    let dir = crate::permissions::private_tempdir();
    let in_wal = |name: &str| dir.path().join("pg_wal").join(name);
    let mut wal = generator(21);
    wal.fill(300_000);
    wal.switch_segment();
    let mut opened = Opened::open(dir.path());
    opened.append(START, &wal.bytes()[..SEG as usize]);
    let end = START.advance(SEG);
    opened.wait_flushed(end);
    wait("rename", || in_wal("000000010000000000000003").exists());
    opened.crash();
    fs::write(in_wal("000000010000000000000004.partial"), [7; 100]).unwrap();
    let opened = Opened::open(dir.path());
    assert_eq!(opened.store.tip().unwrap().flush_lsn, end);
    assert_eq!(fs::read(dir.path().join("aside/000000010000000000000004.partial")).unwrap(), [7; 100]);
}

/// No checksum covers it, and where it is compared later, the upstream would be taken for another one.
#[test]
fn a_bit_flipped_behind_a_switch_is_not_kept() {
    let dir = crate::permissions::private_tempdir();
    let mut wal = generator(22);
    wal.record(100);
    wal.switch_segment();
    wal.record(60);
    let mut flipped = wal.bytes().to_vec();
    flipped[500_000] ^= 8;
    let mut opened = Opened::open(dir.path());
    let error = opened.writer.append(START, &flipped).unwrap_err();
    assert!(error.to_string().contains("expected zeros behind XLOG_SWITCH, got 08"), "{error}");
    opened.writer.commit();
    opened.writer.rewind();
    let at = opened.writer.position().unwrap().lsn;
    assert!(at <= START.advance(500_000) && opened.store.tip().unwrap().write_lsn <= at);
    opened.append(at, &wal.bytes()[at.since(START) as usize..]);
    assert_eq!(opened.store.tip().unwrap().write_lsn, wal.position());
    assert!(read_back(&opened.store, TimelineId::FIRST, wal.position()) == wal.bytes());
}

/// A line that breaks before the segment's end brings it all the same, and what has not come twice is in no file.
#[test]
fn what_is_no_zero_behind_a_switch_comes_over_a_line_that_breaks() {
    let dir = crate::permissions::private_tempdir();
    let mut wal = generator(23);
    wal.record(100);
    wal.switch_segment();
    wal.record(60);
    let mut stale = wal.bytes().to_vec();
    stale[300_000..900_000].fill(0xAA);
    let mut opened = Opened::open(dir.path());
    let partial = dir.path().join("pg_wal/000000010000000000000003.partial");
    let mut attempts = 0;
    while opened.writer.position().unwrap().lsn < START.advance(SEG) {
        let at = opened.writer.position().unwrap().lsn;
        let from = at.since(START) as usize;
        let mut came = stale[from..stale.len().min(from + 290_000)].to_vec();
        if attempts % 3 == 1
            && let Some(byte) = came.get_mut(100_000)
        {
            *byte ^= 4;
        }
        for (number, piece) in came.chunks(5000).enumerate() {
            if opened.writer.append(at.advance(number as u64 * 5000), piece).is_err() {
                break;
            }
            opened.writer.commit();
            let held = fs::read(&partial).unwrap_or_default();
            let is_right = |(ours, theirs): (&u8, &u8)| *ours == 0 || ours == theirs;
            assert!(held.iter().zip(&stale).all(is_right), "a flipped bit is in the file");
        }
        opened.writer.rewind();
        attempts += 1;
        assert!(attempts < 15, "{:?}", opened.writer.position());
    }
    let end = opened.writer.position().unwrap().lsn;
    opened.append(end, &stale[end.since(START) as usize..]);
    assert!(read_back(&opened.store, TimelineId::FIRST, wal.position()) == stale);
}

/// A server that lost power behind an XLOG_SWITCH sends whatever its file had before.
#[test]
fn recovery_never_ends_before_what_was_confirmed_of_padding() {
    let dir = crate::permissions::private_tempdir();
    let mut wal = generator(15);
    wal.fill(300_000);
    wal.switch_segment();
    wal.fill(200_000);
    let mut bytes = wal.bytes().to_vec();
    bytes[350_000..900_000].fill(0xAA);
    for received in [600_000, bytes.len()] {
        let mut opened = Opened::open(dir.path());
        // It counts when it has come twice.
        for _ in 0..2 {
            let at = opened.writer.position().unwrap().lsn;
            let _ = opened.writer.append(at, &bytes[at.since(START) as usize..received]);
            opened.writer.commit();
            opened.writer.rewind();
        }
        let confirmed = opened.store.tip().unwrap().write_lsn;
        let least = if received == bytes.len() { SEG } else { 340_000 };
        assert!(confirmed > START.advance(least), "{confirmed}");
        opened.wait_flushed(confirmed);
        opened.crash();
        let opened = Opened::open(dir.path());
        assert!(opened.store.tip().unwrap().flush_lsn >= confirmed);
        opened.crash();
    }
}

#[test]
fn errors_before_a_sync_are_waited_out() {
    let dir = crate::permissions::private_tempdir();
    let in_wal = |name: &str| dir.path().join("pg_wal").join(name);
    let mut wal = generator(16);
    wal.fill(2_300_000);
    let mut opened = Opened::open(dir.path());
    // What has the name of the second segment in the making, or made ahead, and that of the first when it is finished.
    let in_the_way = in_wal("walrelay-new.000000010000000000000004");
    fs::create_dir(&in_the_way).unwrap();
    for number in 1..10 {
        fs::create_dir(in_wal(&format!("walrelay-new.ahead-{number}"))).unwrap();
    }
    fs::create_dir(in_wal("000000010000000000000003")).unwrap();
    for _ in 0..2 {
        let at = opened.writer.position().unwrap().lsn;
        let error = opened.writer.append(at, &wal.bytes()[at.since(START) as usize..]).unwrap_err();
        assert!(matches!(error, AppendError::Disk { action: "allocate", .. }), "{error}");
        opened.writer.commit();
        opened.writer.rewind();
    }
    fs::remove_dir(&in_the_way).unwrap();
    let at = opened.writer.position().unwrap().lsn;
    opened.append(at, &wal.bytes()[at.since(START) as usize..]);
    let end = *wal.record_ends().last().unwrap();
    opened.wait_flushed(end);
    assert!(in_wal("000000010000000000000003.partial").exists());
    fs::remove_dir(in_wal("000000010000000000000003")).unwrap();
    wait("the name", || in_wal("000000010000000000000003").is_file());
    assert!(!opened.store.has_failed());
    assert!(read_back(&opened.store, TimelineId::FIRST, end) == wal.bytes()[..end.since(START) as usize]);
}

/// Descriptors that lead to files of a directory.
fn open_below(dir: &Path) -> usize {
    let links =
        fs::read_dir("/proc/self/fd").unwrap().filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    links.filter(|to| to.starts_with(dir)).count()
}

#[test]
fn a_long_record_needs_few_descriptors() {
    let dir = crate::permissions::private_tempdir();
    let mut wal = generator(17);
    wal.fill(300_000);
    wal.record(40_000_000);
    wal.fill(300_000);
    let mut bad = wal.bytes().to_vec();
    let broken = bad.len() - 400_000;
    bad[broken] ^= 1;
    let mut opened = Opened::open(dir.path());
    let mut most = 0;
    let mut receive = |opened: &mut Opened, bytes: &[u8]| {
        let from = opened.writer.position().unwrap().lsn;
        let rest = &bytes[from.since(START) as usize..];
        for (index, piece) in rest.chunks(500_000).enumerate() {
            if let Err(error) = opened.writer.append(from.advance(index as u64 * 500_000), piece) {
                assert!(matches!(error, AppendError::Bad(_)), "{error}");
                break;
            }
            opened.writer.commit();
            most = most.max(open_below(dir.path()));
        }
        opened.writer.commit();
        opened.writer.rewind();
    };
    receive(&mut opened, &bad);
    assert!(opened.store.tip().unwrap().write_lsn < START.advance(SEG));
    receive(&mut opened, wal.bytes());
    let end = *wal.record_ends().last().unwrap();
    opened.wait_flushed(end);
    assert!(most < 30, "{most} files are open at once");
    assert!(read_back(&opened.store, TimelineId::FIRST, end) == wal.bytes()[..end.since(START) as usize]);
    wait("names", || open_below(dir.path()) < 18);
    opened.crash();
    assert_eq!(Opened::open(dir.path()).store.tip().unwrap().flush_lsn, end);
}

#[test]
fn holes_are_found_and_filled_with_what_fits() {
    let dir = crate::permissions::private_tempdir();
    let in_wal = |name: &str| dir.path().join("pg_wal").join(name);
    let name = |segment| WalFileName::new(TimelineId::FIRST, SegNo::new(segment));
    let mut wal = generator(18);
    wal.fill(5_500_000);
    let end = *wal.record_ends().last().unwrap();
    let mut opened = Opened::open(dir.path());
    opened.append(START, wal.bytes());
    wait("names", || in_wal("000000010000000000000007").exists());
    assert!(opened.store.missing_segments().unwrap().is_empty());
    opened.stop();
    for lost in ["000000010000000000000004", "000000010000000000000006"] {
        fs::remove_file(in_wal(lost)).unwrap();
    }
    let opened = Opened::open(dir.path());
    let store = &opened.store;
    store.report_missing_wal();
    assert_eq!(store.tip().unwrap().flush_lsn, end, "what was confirmed stays confirmed");
    assert_eq!(store.missing_segments().unwrap(), [name(4), name(6)]);
    let content = |segment: u64| &wal.bytes()[((segment - 3) * SEG) as usize..((segment - 2) * SEG) as usize];
    let fill = |name, mut wal: &[u8]| store.fill_segment(name, &mut wal);
    let mut other = generator(19);
    other.fill(5_500_000);
    let strange = &other.bytes()[SEG as usize..2 * SEG as usize];
    assert!(matches!(fill(name(4), strange), Err(FillError::Invalid { .. })));
    assert!(matches!(fill(name(4), content(6)), Err(FillError::Invalid { .. })));
    assert!(matches!(fill(name(4), &content(4)[..500_000]), Err(FillError::Length { .. })));
    let second = WalFileName::new(TimelineId::new(2).unwrap(), SegNo::new(4));
    for not_missing in [name(5), name(2), name(8), second] {
        let error = fill(not_missing, content(5)).unwrap_err();
        assert!(matches!(error, FillError::NotMissing(_)), "{error}");
    }
    assert_eq!(store.missing_segments().unwrap(), [name(4), name(6)]);
    fill(name(4), content(4)).unwrap();
    assert_eq!(store.missing_segments().unwrap(), [name(6)]);
    let mut more = [content(6), content(7)].concat();
    // Neither in one piece, nor all that comes is this segment's.
    let mut pieces = io::Cursor::new(&mut more[..300_000 + SEG as usize]).take(u64::MAX);
    store.fill_segment(name(6), &mut pieces).unwrap();
    assert_eq!(pieces.into_inner().position(), SEG);
    let left =
        store.wal_path("").read_dir().unwrap().filter(|entry| {
            entry.as_ref().unwrap().file_name().to_string_lossy().starts_with("walrelay-new")
        });
    assert_eq!(left.count(), 0);
    assert!(store.missing_segments().unwrap().is_empty());
    assert!(read_back(store, TimelineId::FIRST, end) == wal.bytes()[..end.since(START) as usize]);
}

#[test]
fn damage_in_a_finished_segment_stops_the_start() {
    let dir = crate::permissions::private_tempdir();
    let mut wal = generator(6);
    wal.fill(1_200_000);
    let mut opened = Opened::open(dir.path());
    opened.append(START, wal.bytes());
    let finished = dir.path().join("pg_wal/000000010000000000000003");
    wait("rename", || finished.exists());
    opened.crash();
    let mut bytes = fs::read(&finished).unwrap();
    bytes[500_000] ^= 1;
    fs::write(&finished, bytes).unwrap();
    let error = Store::open(config(dir.path(), WalWrite::Pwrite)).unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
}

#[test]
fn a_new_timeline_begins_with_the_old_ones_bytes_in_a_file_of_its_own() {
    for behind in [0, 400_000] {
        let dir = crate::permissions::private_tempdir();
        let mut wal = generator(7);
        wal.fill(1_400_000);
        let fork = wal.position();
        let old = wal.bytes().to_vec();
        let mut longer = wal.clone();
        longer.fill(behind);
        let mut opened = Opened::open(dir.path());
        opened.append(START, longer.bytes());

        let second = TimelineId::new(2).unwrap();
        let content = format!("1\t{fork}\tno recovery target specified\n");
        opened.store.save_history_file(second, content.as_bytes()).unwrap();
        let history = TimelineHistory::parse(second, content.as_bytes()).unwrap();
        opened.writer.switch_timeline(history).unwrap();
        wal.switch_timeline(second);
        wal.fill(900_000);
        opened.append(fork, &wal.bytes()[old.len()..]);
        let end = *wal.record_ends().last().unwrap();
        opened.wait_flushed(end);
        assert_eq!(opened.store.tip().unwrap().tli, second);
        // Both the old timeline up to the fork and the new one from its first segment on can be read.
        let old_read = read_back(&opened.store, TimelineId::FIRST, fork);
        assert!(old_read == old);
        let at = fork.seg_start(identity().seg_size);
        let segment = opened.store.segment(second, at.seg_at(identity().seg_size)).unwrap();
        let from = at.since(START) as usize;
        assert!(segment.bytes(0, SEG as usize) == &wal.bytes()[from..from + SEG as usize]);
        opened.crash();

        let opened = Opened::open(dir.path());
        let tip = opened.store.tip().unwrap();
        assert_eq!((tip.tli, tip.write_lsn), (second, end));
    }
}

/// Forks off at a segment's boundary, with more than that of the old timeline at hand, and dies.
/// Whoever begins with the newest of them has one file of that segment, and all their WAL in it.
#[test]
fn timelines_that_were_left_in_one_segment_are_read_from_the_file_of_the_last() {
    let dir = crate::permissions::private_tempdir();
    let mut wal = generator(14);
    let tli = |number| TimelineId::new(number).unwrap();
    let mut content = String::new();
    for number in 1..=3 {
        wal.fill(100_000);
        content.push_str(&format!("{number}\t{}\tx\n", wal.position()));
        wal.switch_timeline(tli(number + 1));
    }
    wal.fill(1_500_000);
    let history = TimelineHistory::parse(tli(4), content.as_bytes()).unwrap();
    let (store, mut writer, _background) = Store::open(config(dir.path(), WalWrite::Pwrite)).unwrap();
    store.attach(identity(), UpstreamParameters::default()).unwrap();
    writer.begin(identity(), history.clone(), START);
    writer.append(START, wal.bytes()).unwrap();
    writer.commit();
    let segno = START.seg_at(identity().seg_size);
    for number in 1..=4 {
        assert!(store.holds_segment(tli(number), segno), "{number}");
        let segment = store.segment(tli(number), segno).unwrap();
        assert_eq!(segment.name().tli, tli(4));
        assert!(Arc::ptr_eq(&store.mapped_segment(tli(number), segno).unwrap(), &segment));
        let left_at = history.switch_point(tli(number)).map_or(segment.end(), |(at, _)| at);
        let len = left_at.since(START) as usize;
        assert!(segment.bytes(0, len) == &wal.bytes()[..len]);
    }
}

#[test]
fn a_fork_is_remembered_before_its_first_byte() {
    let dir = crate::permissions::private_tempdir();
    let in_wal = |name: &str| dir.path().join("pg_wal").join(name);
    let mut wal = generator(9);
    wal.fill(900_000);
    wal.switch_segment();
    let (fork, old) = (wal.position(), wal.bytes().to_vec());
    assert_eq!(fork, START.advance(SEG));
    let mut abandoned = wal.clone();
    abandoned.fill(1_500_000);
    let mut opened = Opened::open(dir.path());
    opened.append(START, abandoned.bytes());
    let second = TimelineId::new(2).unwrap();
    let content = format!("1\t{fork}\tno recovery target specified\n");
    opened.store.save_history_file(second, content.as_bytes()).unwrap();
    opened.writer.switch_timeline(TimelineHistory::parse(second, content.as_bytes()).unwrap()).unwrap();
    opened.crash();
    let tail = "000000010000000000000005.partial";
    let before = ["000000010000000000000004", tail].map(|name| fs::read(in_wal(name)).unwrap());

    // A crash may also have come before a complete segment got its name.
    fs::rename(in_wal("000000010000000000000003"), in_wal("000000010000000000000003.partial")).unwrap();
    for _ in 0..2 {
        let opened = Opened::open(dir.path());
        let tip = opened.store.tip().unwrap();
        assert_eq!((tip.tli, tip.write_lsn, tip.flush_lsn), (second, fork, fork));
        assert!(fs::read(in_wal("000000010000000000000003")).unwrap() == old);
        opened.crash();
    }

    let mut opened = Opened::open(dir.path());
    wal.switch_timeline(second);
    wal.fill(1_200_000);
    opened.append(fork, &wal.bytes()[old.len()..]);
    let end = *wal.record_ends().last().unwrap();
    opened.wait_flushed(end);
    assert!(read_back(&opened.store, TimelineId::FIRST, fork) == old);
    opened.crash();
    let after = ["000000010000000000000004", tail].map(|name| fs::read(in_wal(name)).unwrap());
    assert!(before == after, "the abandoned branch is untouched");
}

#[test]
fn what_is_durable_on_a_new_timeline_was_durable_on_the_old() {
    let dir = crate::permissions::private_tempdir();
    let mut wal = generator(10);
    wal.fill(300_000);
    let fork = wal.position();
    let mut longer = wal.clone();
    longer.fill(100_000);
    let mut opened = Opened::open(dir.path());
    opened.append(START, longer.bytes());
    opened.wait_flushed(*longer.record_ends().last().unwrap());
    let flushed = *opened.store.flushed.borrow();
    let second = TimelineId::new(2).unwrap();
    let content = format!("1\t{fork}\tno recovery target specified\n");
    let history = TimelineHistory::parse(second, content.as_bytes()).unwrap();
    opened.writer.switch_timeline(history).unwrap();
    opened.wait_flushed(fork);
    for (durable, expected) in [(flushed, fork), (None, Lsn::INVALID)] {
        opened.store.flushed.send_replace(durable);
        assert_eq!(opened.store.tip().unwrap().flush_lsn, expected);
    }
    opened.store.flushed.send_replace(flushed.map(|at| TimelinePosition { lsn: START, ..at }));
    assert_eq!(opened.store.tip().unwrap().flush_lsn, START);
}

#[test]
fn retention_keeps_what_slots_need_and_marks_those_beyond_the_limit() {
    let dir = crate::permissions::private_tempdir();
    let mut wal = generator(8);
    wal.fill(6_100_000);
    let mut opened = Opened::with(StoreConfig {
        wal_keep_size: 0,
        max_slot_wal_keep_size: Some(4 * SEG),
        ..config(dir.path(), WalWrite::Pwrite)
    });
    let slot = |name: &str, segment: u64| {
        let at = SegNo::new(segment).start(identity().seg_size);
        opened.store.slots().create(&name.parse().unwrap(), SlotPersistence::Persistent, Some(at)).unwrap();
    };
    slot("old", 3);
    slot("young", 6);
    opened.append(START, wal.bytes());
    let first = dir.path().join("pg_wal/000000010000000000000003");
    let kept = dir.path().join("pg_wal/000000010000000000000006");
    wait("removal", || opened.store.oldest() == Some(Lsn::new(6 * SEG)));
    assert!(!first.exists() && kept.exists());
    assert!(opened.store.slots().get("old").unwrap().invalidated);
    assert!(!opened.store.slots().get("young").unwrap().invalidated);
    let gone = opened.store.segment(TimelineId::FIRST, SegNo::new(3)).unwrap_err();
    assert_eq!(gone.to_string(), "requested WAL segment 000000010000000000000003 has already been removed");
}

#[test]
fn slots_whose_wal_is_archived_hold_nothing_and_are_not_lost() {
    let dir = crate::permissions::private_tempdir();
    let mut wal = generator(9);
    let mut opened = Opened::with(StoreConfig {
        wal_keep_size: 0,
        max_slot_wal_keep_size: Some(SEG),
        ..config(dir.path(), WalWrite::Pwrite)
    });
    let slot = |name: &str, segment: u64| {
        let at = SegNo::new(segment).start(identity().seg_size);
        opened.store.slots().create(&name.parse().unwrap(), SlotPersistence::Persistent, Some(at)).unwrap();
    };
    slot("before", 3);
    slot("archived", 4);
    opened.store.expect_archive();
    wal.fill(5 * SEG as usize);
    opened.append(START, &wal.take());
    opened.wait_flushed(wal.position());
    wait("removal", || opened.store.oldest() >= Some(Lsn::new(6 * SEG)));
    let lost = |name: &str| opened.store.slots().get(name).unwrap().invalidated;
    assert!(!lost("before") && !lost("archived"), "the archive has not said yet what it has");
    assert!(opened.store.recallable().is_some_and(|wal| wal.from == Lsn::INVALID));
    let archived = ArchivedWal { from: Lsn::new(4 * SEG), to: Lsn::new(9 * SEG) };
    opened.store.set_archived(Some(archived));
    opened.store.remove_old_wal().unwrap();
    assert!(lost("before") && !lost("archived"));
    opened.store.set_archived(None);
    opened.store.remove_old_wal().unwrap();
    assert!(lost("archived"));
}

#[test]
fn retention_keeps_what_the_archive_has_not_got() {
    let dir = crate::permissions::private_tempdir();
    let mut wal = generator(8);
    wal.fill(6_100_000);
    let config = StoreConfig { wal_keep_size: 0, ..config(dir.path(), WalWrite::Pwrite) };
    let mut opened = Opened::with(config);
    let target = opened.store.holds().register(HoldKind::ArchiveTarget, "main");
    let mut named = opened.store.wal_files_changed();
    opened.append(START, wal.bytes());
    let finished = |segment: u64| {
        let name = format!("0000000100000000000000{segment:02X}");
        opened.store.wal_files().unwrap().contains(&name)
    };
    wait("names", || finished(7));
    wait("word of them", || named.has_changed().unwrap());
    named.mark_unchanged();
    opened.store.remove_old_wal().unwrap();
    assert!(finished(3));
    target.set(Some(Lsn::new(5 * SEG + 1)));
    opened.store.remove_old_wal().unwrap();
    assert!(!finished(4) && finished(5));
    let exact = |segment| WalFileName::new(TimelineId::FIRST, SegNo::new(segment));
    assert_eq!(opened.store.finished_segment(exact(5)).unwrap().published(), SEG);
    assert!(matches!(opened.store.finished_segment(exact(4)), Err(ReadError::Removed(_))));
    drop(target);
    opened.store.remove_old_wal().unwrap();
    assert!(!finished(5));
}

/// Freeing a file's blocks may take the disk long; whoever reads it last must not wait for that.
#[test]
fn what_is_removed_while_it_is_read_is_let_go_by_retention() {
    let dir = crate::permissions::private_tempdir();
    let mut wal = generator(12);
    wal.fill(3_300_000);
    let mut opened = Opened::with(StoreConfig { wal_keep_size: 0, ..config(dir.path(), WalWrite::Pwrite) });
    let at = Some(START);
    opened.store.slots().create(&"s".parse().unwrap(), SlotPersistence::Persistent, at).unwrap();
    opened.append(START, wal.bytes());
    let path = |segment: u64| dir.path().join(format!("pg_wal/0000000100000000000000{segment:02X}"));
    wait("names", || path(5).exists());
    let read = opened.store.segment(TimelineId::FIRST, SegNo::new(3)).unwrap();
    opened.store.drop_slot("s", 1).unwrap();
    wait("removal", || !path(3).exists());
    wait("retention", || Arc::strong_count(&read) == 2);
    assert_eq!(read.bytes(0, 100), &wal.bytes()[..100]);
    let held = Arc::downgrade(&read);
    drop(read);
    wait("retention to let go", || {
        opened.store.remove_old_wal().unwrap();
        held.upgrade().is_none()
    });
}

#[test]
fn a_file_that_cannot_be_removed_does_not_keep_the_others() {
    let dir = crate::permissions::private_tempdir();
    let mut wal = generator(11);
    wal.fill(5_100_000);
    let mut opened = Opened::with(StoreConfig { wal_keep_size: 0, ..config(dir.path(), WalWrite::Pwrite) });
    let at = Some(START);
    opened.store.slots().create(&"s".parse().unwrap(), SlotPersistence::Persistent, at).unwrap();
    opened.append(START, wal.bytes());
    let path = |segment: u64| dir.path().join(format!("pg_wal/0000000100000000000000{segment:02X}"));
    wait("names", || path(7).exists());
    fs::create_dir(path(2)).unwrap();
    opened.store.drop_slot("s", 1).unwrap();
    wait("removal", || !path(6).exists());
    let error = opened.store.remove_old_wal().unwrap_err().to_string();
    assert!(error.starts_with("could not remove old WAL: file \"") && error.contains("02\": "), "{error}");
    fs::remove_dir(path(2)).unwrap();
    opened.store.remove_old_wal().unwrap();
    assert_eq!(opened.store.oldest_kept(), opened.store.oldest());
}

/// Each round the two meet anew: one removes two segments, the other reserves the oldest there is.
#[test]
fn wal_reserved_for_a_slot_is_not_removed_meanwhile() {
    let dir = crate::permissions::private_tempdir();
    let mut wal = generator(9);
    let mut opened = Opened::with(StoreConfig { wal_keep_size: 0, ..config(dir.path(), WalWrite::Pwrite) });
    let (store, name) = (opened.store.clone(), "s".parse().unwrap());
    for round in 0..60 {
        // Keeps the retention thread off the new segments until both are at the start.
        store.slots().create(&name, SlotPersistence::Persistent, Some(START)).unwrap();
        for _ in 0..2 {
            let at = wal.position();
            wal.record(1000);
            wal.switch_segment();
            opened.append(at, &wal.take());
        }
        opened.wait_flushed(wal.position());
        store.slots().drop_slot("s", 1).unwrap();
        let start = std::sync::Barrier::new(2);
        std::thread::scope(|threads| {
            threads.spawn(|| {
                start.wait();
                store.remove_old_wal().unwrap();
            });
            start.wait();
            store.create_reserving_slot(&name, SlotPersistence::Persistent).unwrap();
        });
        let reserved = store.slots().get("s").unwrap().restart_lsn.unwrap();
        let oldest = store.oldest().unwrap();
        assert!(oldest <= reserved, "round {round}: the slot keeps {reserved}, the oldest is {oldest}");
        store.slots().drop_slot("s", 1).unwrap();
    }
}

#[test]
fn an_upstream_changes_nothing_until_it_is_attached() {
    let dir = crate::permissions::private_tempdir();
    let opened = Opened::open(dir.path());
    let status = vec![("server_version".to_owned(), "18.1".to_owned())];
    let parameters = UpstreamParameters { status, ..UpstreamParameters::default() };
    let kept = || fs::read_to_string(dir.path().join("cluster.toml")).unwrap();
    let before = kept();
    opened.store.check(identity()).unwrap();
    assert_eq!((kept(), opened.store.upstream_parameters().status.len()), (before, 0));
    opened.store.attach(identity(), parameters).unwrap();
    assert!(kept().contains("18.1"));
    assert_eq!(opened.store.upstream_parameters().status("server_version"), Some("18.1"));
}

#[test]
fn another_clusters_upstream_is_refused() {
    let dir = crate::permissions::private_tempdir();
    let opened = Opened::open(dir.path());
    let other = Identity { system_id: SystemId(78), ..identity() };
    let error = opened.store.attach(other, UpstreamParameters::default()).unwrap_err();
    assert!(matches!(error, StoreError::OtherCluster { .. }));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// However WAL is cut and wherever the process dies, what comes back is a prefix that ends with a
    /// record, and receiving the rest gives the same bytes. It may be a record more than was published:
    /// one of which only zeros had not come yet, which the file has already, mostly its alignment padding.
    #[test]
    fn any_cut_any_crash(seed: u64, cuts in prop::collection::vec(1usize..400_000, 1..8), crash_at in 0usize..8) {
        let dir = crate::permissions::private_tempdir();
        let mut wal = generator(seed);
        wal.fill(2_000_000);
        let mut opened = Opened::open(dir.path());
        let mut at = 0;
        for (index, cut) in cuts.iter().cycle().enumerate() {
            let end = (at + cut).min(wal.bytes().len());
            opened.append(START.advance(at as u64), &wal.bytes()[at..end]);
            at = end;
            if index == crash_at {
                let published = opened.store.tip().map(|tip| tip.write_lsn);
                opened.crash();
                opened = Opened::open(dir.path());
                prop_assert!(opened.store.tip().map(|tip| tip.write_lsn) >= published);
                let received = at;
                at = opened.writer.position().unwrap().lsn.since(START) as usize;
                let not_received = &wal.bytes()[received.min(at)..at];
                prop_assert!(not_received.iter().all(|byte| *byte == 0));
            }
            if at == wal.bytes().len() {
                break;
            }
        }
        let end = *wal.record_ends().last().unwrap();
        prop_assert_eq!(opened.store.tip().unwrap().write_lsn, end);
        prop_assert!(read_back(&opened.store, TimelineId::FIRST, end) == wal.bytes()[..end.since(START) as usize]);
    }
}
