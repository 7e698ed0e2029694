//! Sectors that cannot be read, met by a start that is not in order.

use super::*;
use crate::disk::sim::{Bad, SimDisk};

const DIR: &str = "/data";

fn open(disk: &SimDisk) -> Result<Stepped, StoreError> {
    Store::open_on(Arc::new(disk.clone()), config(Path::new(DIR), WalWrite::Pwrite))
}

fn wal_file(name: &str) -> std::path::PathBuf {
    Path::new(DIR).join("pg_wal").join(name)
}

fn take(it: &mut Stepped, wal: &WalGenerator) {
    let at = it.writer.position().unwrap().lsn;
    it.writer.append(at, &wal.bytes()[at.since(START) as usize..]).unwrap();
    it.writer.commit();
    while it.flushing.step() {}
}

/// Timeline 2 left 1 in segment 4. What 1 has behind that is in a file that nobody is on the way through.
fn left(disk: &SimDisk) -> WalGenerator {
    let mut it = open(disk).unwrap();
    it.store.attach(identity(), UpstreamParameters::default()).unwrap();
    it.writer.begin(identity(), TimelineHistory::first(), START);
    it.writer.note_followed().unwrap();
    let mut wal = generator(61);
    wal.fill(1_400_000);
    let fork = wal.position();
    let mut longer = wal.clone();
    longer.fill(300_000);
    take(&mut it, &longer);
    let second = TimelineId::new(2).unwrap();
    let content = format!("1\t{fork}\tno recovery target specified\n");
    it.store.save_history_file(second, content.as_bytes()).unwrap();
    it.writer.switch_timeline(TimelineHistory::parse(second, content.as_bytes()).unwrap()).unwrap();
    wal.switch_timeline(second);
    wal.fill(900_000);
    take(&mut it, &wal);
    wal
}

#[test]
fn of_a_timeline_that_was_left_they_stop_no_start() {
    let disk = SimDisk::new();
    let wal = left(&disk);
    let left = "000000010000000000000004.partial";
    disk.make_bad(&wal_file(left), 500_000..500_001, Bad::Reads).unwrap();
    let disk = disk.restart(1);
    let mut it = open(&disk).unwrap();
    let end = *wal.record_ends().last().unwrap();
    assert_eq!(it.store.tip().map(|tip| (tip.tli.as_u32(), tip.flush_lsn)), Some((2, end)));
    assert!(!disk.exists(&wal_file(left)) && disk.exists(&Path::new(DIR).join("aside").join(left)));
    let mut more = wal.clone();
    more.fill(1_000_000);
    take(&mut it, &more);
    // What was put aside is not asked for any more, and not lost.
    drop(it);
    let disk = disk.restart(2);
    open(&disk).unwrap();
    assert!(disk.exists(&Path::new(DIR).join("aside").join(left)));
}

#[test]
fn of_a_timeline_that_is_followed_they_stop_it() {
    for (name, at) in [("000000020000000000000004", 20_000), ("000000020000000000000005.partial", 5000)] {
        let disk = SimDisk::new();
        left(&disk);
        disk.make_bad(&wal_file(name), at..at + 1, Bad::Reads).unwrap();
        let error = open(&disk.restart(1)).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("could not read WAL segment") && error.contains(name), "{error}");
        let disk = disk.restart(2);
        disk.heal();
        open(&disk).unwrap();
    }
}
