//! Turns of the flusher that whoever has written takes itself.

use super::*;
use crate::disk::sim::SimDisk;

/// A store on a disk that is known to be quick, whose writer takes turns, and WAL of three segments.
struct Offering {
    disk: SimDisk,
    it: Stepped,
    wal: WalGenerator,
    taken: u64,
}

impl Offering {
    fn new() -> Offering {
        Offering::of(|wal| wal.fill(2_500_000))
    }

    fn of(write: impl FnOnce(&mut WalGenerator)) -> Offering {
        let disk = SimDisk::new();
        let config = config(Path::new("/relay"), WalWrite::Pwrite);
        let mut it = Store::open_on(Arc::new(disk.clone()), config).unwrap();
        it.store.attach(identity(), UpstreamParameters::default()).unwrap();
        it.writer.begin(identity(), TimelineHistory::first(), START);
        let mut wal = generator(71);
        write(&mut wal);
        it.store.offer_turns_to_writer(true);
        let mut offering = Offering { disk, it, wal, taken: 0 };
        offering.commit(10_000);
        assert!(!offering.it.store.has_turn_at_hand(), "nobody knows yet how long it takes");
        assert!(offering.it.flushing.step() && offering.is_durable());
        offering
    }

    /// Takes so many bytes more.
    fn commit(&mut self, len: u64) {
        let (at, to) = (START.advance(self.taken), self.taken + len);
        if self.taken > 0 {
            self.it.store.flush_queue.set_pace(Duration::from_micros(100));
        }
        self.it.writer.append(at, &self.wal.bytes()[self.taken as usize..to as usize]).unwrap();
        self.it.writer.commit();
        self.taken = to;
    }

    /// Takes what comes up to the end of a record.
    fn commit_record(&mut self) {
        let at = START.advance(self.taken);
        let end = self.wal.record_ends().iter().find(|end| **end > at).copied();
        self.commit(end.expect("there are enough").since(at));
    }

    fn is_durable(&self) -> bool {
        let tip = self.it.store.tip().unwrap();
        tip.flush_lsn == tip.write_lsn
    }
}

#[test]
fn what_is_offered_is_taken_by_the_writer_and_nothing_is_left() {
    let mut it = Offering::new();
    it.commit(20_000);
    assert!(it.it.store.has_turn_at_hand() && !it.is_durable());
    it.it.store.take_turn();
    assert!(it.is_durable() && !it.it.store.has_turn_at_hand());
    assert!(!it.it.flushing.step(), "nothing is left");
    // It survives a power cut.
    let end = it.it.store.tip().unwrap().flush_lsn;
    let config = config(Path::new("/relay"), WalWrite::Pwrite);
    let again = Store::open_on(Arc::new(it.disk.crash(3)), config).unwrap();
    assert_eq!(again.store.tip().unwrap().write_lsn, end);
}

#[test]
fn what_was_not_taken_before_more_comes_is_the_flushers() {
    let mut it = Offering::new();
    it.commit(20_000);
    it.commit(20_000);
    assert!(!it.it.store.has_turn_at_hand());
    it.it.store.take_turn();
    assert!(!it.is_durable(), "nothing was offered");
    assert!(it.it.flushing.step() && it.is_durable());
    it.commit(20_000);
    assert!(it.it.store.has_turn_at_hand(), "the next one is offered again");
}

#[test]
fn while_the_flusher_is_at_work_it_is_left_to_it() {
    let mut it = Offering::new();
    it.commit(20_000);
    // It was awake for some other reason.
    let turn = it.it.store.flush_queue.take().unwrap();
    it.it.store.take_turn();
    assert!(!it.is_durable());
    it.commit(20_000);
    assert!(!it.it.store.has_turn_at_hand());
    it.it.store.take_turn();
    assert!(it.it.store.flush_queue.take().is_none(), "one at a time");
    it.it.flushing.finish_turn(&turn);
    assert!(!it.is_durable());
    assert!(it.it.flushing.step() && it.is_durable());
}

#[test]
fn while_the_writer_is_at_work_the_flusher_waits() {
    let mut it = Offering::new();
    it.commit(20_000);
    let turn = it.it.store.flush_queue.take_offered().unwrap();
    it.commit(20_000);
    assert!(!it.it.store.has_turn_at_hand() && !it.it.flushing.step() && !it.is_durable());
    it.it.flushing.finish_turn(&turn);
    assert!(it.it.flushing.step() && it.is_durable());
}

#[test]
fn what_completes_a_segment_or_begins_one_is_the_flushers() {
    let mut it = Offering::new();
    it.commit(SEG);
    assert!(!it.it.store.has_turn_at_hand(), "a name is to be given");
    while it.it.flushing.step() {}
    assert!(
        it.it
            .store
            .has_wal_file(&WalFileName::new(TimelineId::FIRST, SegNo::new(3)).format(identity().seg_size))
    );
    it.commit(1000);
    assert!(it.it.store.has_turn_at_hand());
}

#[test]
fn who_does_not_take_turns_any_more_leaves_what_was_offered() {
    let mut it = Offering::new();
    it.commit(20_000);
    it.it.store.offer_turns_to_writer(false);
    assert!(!it.it.store.has_turn_at_hand());
    it.it.store.take_turn();
    assert!(!it.is_durable());
    assert!(it.it.flushing.step() && it.is_durable());
    it.commit(20_000);
    assert!(!it.it.store.has_turn_at_hand());
}

#[test]
fn a_sync_that_fails_in_the_writers_hands_ends_the_store_as_any_does() {
    let mut it = Offering::new();
    it.commit(20_000);
    it.disk.fail_next_sync();
    it.it.store.take_turn();
    assert!(!it.is_durable());
    let reason = it.it.store.failure().unwrap();
    assert!(reason.starts_with("could not sync WAL up to "), "{reason}");
    assert!(!it.it.flushing.step(), "nothing is synced any more");
    let at = it.it.writer.position().unwrap().lsn;
    assert!(matches!(it.it.writer.append(at, &[0]), Err(AppendError::Failed)));
}

/// While word of it is left for the next start, which may take seconds, nothing is confirmed by somebody else.
#[test]
fn from_a_failed_sync_on_nobody_confirms_anything() {
    for is_under_way in [false, true] {
        let mut it = Offering::new();
        it.commit(20_000);
        let confirmed = it.it.store.tip().unwrap().flush_lsn;
        let turn = is_under_way.then(|| it.it.store.flush_queue.take_offered().unwrap());
        assert!(it.it.store.flush_queue.begin_failing());
        match turn {
            Some(turn) => assert!(!it.it.flushing.tries_turn(&turn)),
            None => {
                it.it.store.take_turn();
                assert!(it.it.store.flush_queue.take().is_none());
                it.commit(20_000);
                assert!(!it.it.store.has_turn_at_hand());
            }
        }
        assert_eq!(it.it.store.tip().unwrap().flush_lsn, confirmed);
    }
}

#[test]
fn where_wal_waits_for_its_receivers_sync_the_next_turns_are_the_flushers() {
    let mut it = Offering::of(|wal| (0..6000).for_each(|_| _ = wal.record(40)));
    let later = || Instant::now() + Duration::from_secs(60);
    let long_ago = || Instant::now().checked_sub(Duration::from_secs(60)).unwrap_or_else(Instant::now);
    // Turns until the next one is offered again.
    let turns = |it: &mut Offering| {
        (1..2000).find(|_| {
            it.commit_record();
            let is_offered = it.it.store.has_turn_at_hand();
            assert!(is_offered || it.it.flushing.step());
            is_offered
        })
    };
    // A client waits for its commits.
    for _ in 0..10 {
        it.commit_record();
        assert!(it.it.store.has_turn_at_hand());
        it.it.store.take_turn();
        it.it.store.flush_queue.set_done(long_ago());
    }
    // What has come while it was synced is there as soon as it is done; each time more turns are the flusher's.
    for expected in [64, 128, 256, 512, 1024, 1024] {
        it.it.store.take_turn();
        it.it.store.flush_queue.set_done(later());
        assert_eq!(turns(&mut it), Some(expected));
    }
    // Until nothing waits any more.
    for _ in 0..20 {
        it.it.store.take_turn();
        it.it.store.flush_queue.set_done(long_ago());
        assert_eq!(turns(&mut it), Some(1));
    }
    it.it.store.take_turn();
    it.it.store.flush_queue.set_done(later());
    assert_eq!(turns(&mut it), Some(64));
}

/// A sync that took so long that somebody else went on receiving.
#[test]
fn what_comes_during_the_writers_sync_makes_the_next_turns_the_flushers() {
    let mut it = Offering::new();
    it.commit_record();
    let turn = it.it.store.flush_queue.take_offered().unwrap();
    it.commit_record();
    it.it.flushing.finish_turn(&turn);
    assert!(it.it.flushing.step());
    it.commit_record();
    assert!(!it.it.store.has_turn_at_hand());
}

/// With the store's threads: who takes which turn is open, and all is durable in the end.
#[test]
fn the_flusher_and_the_writer_take_turns() {
    let dir = crate::permissions::private_tempdir();
    let mut opened = Opened::open(dir.path());
    opened.store.offer_turns_to_writer(true);
    let mut wal = generator(72);
    wal.fill(3_500_000);
    for (index, piece) in wal.bytes().chunks(5003).enumerate() {
        opened.append(START.advance(index as u64 * 5003), piece);
        if index % 3 > 0 {
            opened.store.take_turn();
        }
    }
    opened.store.take_turn();
    opened.store.offer_turns_to_writer(false);
    opened.wait_flushed(*wal.record_ends().last().unwrap());
    opened.stop();
}
