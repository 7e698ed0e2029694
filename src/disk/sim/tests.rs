//! Each rule of the simulated disk, one test.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::*;
use crate::disk::{Disk, DiskDir, DiskFile, Open, would_hang};

const SEEDS: std::ops::Range<u64> = 0..64;

fn path(name: &str) -> PathBuf {
    Path::new("/").join(name)
}

fn root(disk: &SimDisk) -> Box<dyn DiskDir> {
    disk.open_dir(Path::new("/")).unwrap()
}

/// A file that is there, with this content, for good.
fn durable(disk: &SimDisk, name: &str, content: &[u8]) -> Box<dyn DiskFile> {
    let file = disk.open(&path(name), Open::CreateEmpty).unwrap();
    file.write_all_at(content, 0).unwrap();
    file.sync_data().unwrap();
    root(disk).sync().unwrap();
    file
}

fn content(disk: &SimDisk, name: &str) -> Option<Vec<u8>> {
    disk.read(&path(name)).ok()
}

/// What is found after crashes with many seeds, each once.
fn found<T: Ord>(disk: &SimDisk, look: impl Fn(&SimDisk) -> T) -> std::collections::BTreeSet<T> {
    let state = disk.state().clone();
    let again = || SimDisk::with(state.clone(), false);
    SEEDS.map(|seed| look(&again().crash(seed))).collect()
}

#[test]
fn what_is_synced_is_there() {
    let disk = SimDisk::new();
    durable(&disk, "a", b"abc");
    assert_eq!(found(&disk, |disk| content(disk, "a")), [Some(b"abc".to_vec())].into());
    let crashed = disk.crash(1);
    assert_eq!(content(&crashed, "a"), Some(b"abc".to_vec()));
    assert!(disk.read(&path("a")).is_err(), "it has no power any more");
}

#[test]
fn a_new_file_vanishes_without_a_sync_of_its_directory() {
    let disk = SimDisk::new();
    let file = disk.open(&path("a"), Open::CreateEmpty).unwrap();
    file.write_all_at(b"abc", 0).unwrap();
    file.sync_all().unwrap();
    assert_eq!(found(&disk, |disk| content(disk, "a")), [None, Some(b"abc".to_vec())].into());
}

#[test]
fn a_directory_vanishes_with_all_in_it() {
    let disk = SimDisk::new();
    disk.make_dir(&path("d")).unwrap();
    let file = disk.open(&path("d/a"), Open::CreateEmpty).unwrap();
    file.sync_all().unwrap();
    disk.open_dir(&path("d")).unwrap().sync().unwrap();
    assert_eq!(found(&disk, |disk| disk.exists(&path("d/a"))), [false, true].into());
    root(&disk).sync().unwrap();
    assert_eq!(found(&disk, |disk| disk.exists(&path("d/a"))), [true].into());
}

#[test]
fn unsynced_blocks_are_old_new_or_torn_at_sectors() {
    let disk = SimDisk::new();
    let file = durable(&disk, "a", &[1; 8192]);
    file.write_all_at(&[2; 8192], 0).unwrap();
    let seen = found(&disk, |disk| content(disk, "a").unwrap());
    let is_whole = |content: &&Vec<u8>| content.chunks(512).all(|sector| sector == [sector[0]; 512]);
    assert_eq!(seen.iter().filter(is_whole).count(), seen.len(), "torn within a sector");
    let blocks = |content: &Vec<u8>| [0, 4096].map(|at| content[at..at + 4096].iter().max() == Some(&1));
    assert!(seen.contains(&vec![1; 8192]) && seen.contains(&vec![2; 8192]));
    assert!(seen.iter().any(|content| blocks(content) == [true, false]), "each for itself");
    assert!(seen.iter().any(|content| content[..4096].contains(&1) && content[..4096].contains(&2)), "torn");
}

#[test]
fn a_length_that_is_not_synced_may_be_the_old_one() {
    let disk = SimDisk::new();
    let file = durable(&disk, "a", &[1; 100]);
    file.allocate(8192).unwrap();
    assert_eq!(found(&disk, |disk| content(disk, "a").unwrap().len()), [100, 8192].into());
    file.sync_data().unwrap();
    assert_eq!(found(&disk, |disk| content(disk, "a").unwrap().len()), [8192].into());
}

#[test]
fn what_was_emptied_may_be_there_again() {
    let disk = SimDisk::new();
    durable(&disk, "a", b"abc");
    drop(disk.open(&path("a"), Open::CreateEmpty).unwrap());
    let seen = found(&disk, |disk| content(disk, "a").unwrap());
    assert!(seen.contains(&b"abc"[..]) && seen.contains(&b""[..]), "{seen:?}");
}

#[test]
fn a_rename_happens_whole_or_not_at_all() {
    let disk = SimDisk::new();
    durable(&disk, "a", b"new");
    durable(&disk, "b", b"old");
    disk.rename(&path("a"), &path("b")).unwrap();
    let both = |disk: &SimDisk| (content(disk, "a"), content(disk, "b").unwrap());
    let (before, after) = ((Some(b"new".to_vec()), b"old".to_vec()), (None, b"new".to_vec()));
    assert_eq!(found(&disk, both), [before, after.clone()].into());
    root(&disk).sync().unwrap();
    assert_eq!(found(&disk, both), [after].into());
}

#[test]
fn an_exchange_happens_whole_or_not_at_all() {
    let disk = SimDisk::new();
    durable(&disk, "a", b"1");
    durable(&disk, "b", b"2");
    root(&disk).exchange("a", "b").unwrap();
    let both = |disk: &SimDisk| ["a", "b"].map(|name| content(disk, name).unwrap()[0]);
    assert_eq!(found(&disk, both), [*b"12", *b"21"].into());
}

#[test]
fn between_directories_a_rename_is_two_changes() {
    let disk = SimDisk::new();
    disk.make_dir(&path("d")).unwrap();
    durable(&disk, "a", b"abc");
    disk.rename(&path("a"), &path("d/a")).unwrap();
    let both = |disk: &SimDisk| ["a", "d/a"].map(|name| disk.exists(&path(name)));
    assert_eq!(found(&disk, both).len(), 4, "none of them and both of them, too");
    disk.open_dir(&path("d")).unwrap().sync().unwrap();
    assert_eq!(found(&disk, both), [[true, true], [false, true]].into());
}

#[test]
fn of_several_changes_there_is_a_beginning_or_all_but_one_of_it() {
    let disk = SimDisk::new();
    for name in ["a", "b", "c"] {
        durable(&disk, name, b"x");
    }
    for name in ["a", "b", "c"] {
        disk.remove(&path(name)).unwrap();
    }
    let gone = |disk: &SimDisk| ["a", "b", "c"].map(|name| !disk.exists(&path(name)));
    let seen = found(&disk, gone);
    assert!(seen.contains(&[true, true, false]) && seen.contains(&[true, false, true]), "{seen:?}");
    assert!(seen.contains(&[false; 3]) && seen.contains(&[true; 3]));
}

#[test]
fn removed_content_is_there_for_who_has_it_open() {
    let disk = SimDisk::new();
    disk.set_free_space(Some(8192));
    let file = durable(&disk, "a", &[7; 8192]);
    disk.remove(&path("a")).unwrap();
    root(&disk).sync().unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 8191).unwrap();
    assert_eq!(byte, [7]);
    let other = disk.open(&path("b"), Open::CreateEmpty).unwrap();
    assert_eq!(other.write_all_at(b"x", 0).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    drop(file);
    other.write_all_at(b"x", 0).unwrap();
}

#[test]
fn a_full_disk_takes_what_has_its_blocks() {
    let disk = SimDisk::new();
    disk.set_free_space(Some(3 * 4096));
    let file = disk.open(&path("a"), Open::CreateEmpty).unwrap();
    assert_eq!(file.allocate(4 * 4096).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    file.allocate(3 * 4096).unwrap();
    file.write_all_at(&[1; 3 * 4096], 0).unwrap();
    assert_eq!(file.write_all_at(&[1], 3 * 4096).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
    disk.set_free_space(None);
    file.write_all_at(&[1], 3 * 4096).unwrap();
}

#[test]
fn a_failed_sync_says_so_once_and_writes_nothing_later() {
    let disk = SimDisk::new();
    let file = durable(&disk, "a", &[1; 4096]);
    file.write_all_at(&[2; 4096], 0).unwrap();
    disk.fail_next_sync();
    assert_eq!(file.sync_data().unwrap_err().raw_os_error(), Some(libc::EIO));
    file.sync_data().unwrap();
    let seen = found(&disk, |disk| content(disk, "a").unwrap());
    assert!(seen.contains(&vec![1; 4096]), "the second sync has written it");
    // What is written again is synced again.
    file.write_all_at(&[3], 0).unwrap();
    file.sync_data().unwrap();
    let whole: Vec<u8> = [3].into_iter().chain([2; 4095]).collect();
    assert_eq!(found(&disk, |disk| content(disk, "a").unwrap()), [whole].into());
}

#[test]
fn a_failed_sync_of_a_directory_loses_names_and_not_those_that_come_later() {
    let disk = SimDisk::new();
    durable(&disk, "a", b"1");
    durable(&disk, "b", b"2");
    let dir = root(&disk);
    disk.rename(&path("a"), &path("c")).unwrap();
    disk.fail_next_sync();
    dir.sync().unwrap_err();
    dir.sync().unwrap();
    let name = |disk: &SimDisk| ["a", "c"].map(|name| content(disk, name).is_some());
    assert_eq!(found(&disk, name), [[true, false], [false, true]].into());
    disk.rename(&path("b"), &path("c")).unwrap();
    dir.sync().unwrap();
    assert_eq!(found(&disk, |disk| content(disk, "c").unwrap()), [b"2".to_vec()].into());
}

#[test]
fn what_a_failed_sync_has_left_may_be_gone_for_the_next_process() {
    let disk = SimDisk::new();
    let file = durable(&disk, "a", &[1; 4096]);
    file.write_all_at(&[2; 4096], 0).unwrap();
    disk.fail_next_sync();
    file.sync_data().unwrap_err();
    let seen: std::collections::BTreeSet<_> = SEEDS
        .map(|seed| {
            let state = State { power: Power::On, ..disk.state().clone() };
            content(&SimDisk::with(state, false).restart(seed), "a").unwrap()[0]
        })
        .collect();
    assert_eq!(seen, [1, 2].into());
    let next = disk.restart(0);
    assert!(file.sync_data().is_err(), "the earlier process is gone");
    next.open(&path("a"), Open::Read).unwrap().try_lock().unwrap();
}

#[test]
fn one_process_has_the_lock() {
    let disk = SimDisk::new();
    let file = durable(&disk, "a", b"");
    file.try_lock().unwrap();
    let other = disk.open(&path("a"), Open::Read).unwrap();
    assert!(matches!(other.try_lock(), Err(std::fs::TryLockError::WouldBlock)));
    drop(file);
    other.try_lock().unwrap();
}

#[test]
fn bad_ranges_fail_until_they_are_healed() {
    let disk = SimDisk::new();
    let file = durable(&disk, "a", &[1; 8192]);
    disk.make_bad(&path("a"), 5000..5001, Bad::Reads).unwrap();
    let mut buffer = [0; 8192];
    assert_eq!(file.read_at(&mut buffer, 0).unwrap_err().raw_os_error(), Some(libc::EIO));
    file.read_exact_at(&mut buffer[..4096], 0).unwrap();
    file.write_all_at(&[2], 5000).unwrap();
    disk.make_bad(&path("a"), 0..1, Bad::Writes).unwrap();
    assert_eq!(file.write_all_at(&[2], 0).unwrap_err().raw_os_error(), Some(libc::EIO));
    disk.heal();
    file.read_exact_at(&mut buffer, 0).unwrap();
    assert_eq!((buffer[0], buffer[5000]), (1, 2));
}

#[test]
fn death_at_an_operation_keeps_it_and_all_after_it_from_being_durable() {
    let run = |at: u64| {
        let disk = SimDisk::new();
        disk.die_at(at);
        let done = disk.open(&path("a"), Open::CreateEmpty).and_then(|file| {
            file.write_all_at(b"abc", 0)?;
            file.sync_data()?;
            root(&disk).sync()?;
            disk.rename(&path("a"), &path("b"))
        });
        assert!(done.is_err() && disk.is_dead(), "{at}");
        disk
    };
    let names = |disk: &SimDisk| ["a", "b"].map(|name| content(disk, name));
    let abc = || Some(b"abc".to_vec());
    assert!(found(&run(3), names).contains(&[Some(Vec::new()), None]), "the sync did not happen");
    assert!(found(&run(4), names).contains(&[None, None]), "nor did that of the directory");
    assert_eq!(found(&run(5), names), [[abc(), None], [None, abc()]].into(), "the rename, or not");
}

#[test]
fn an_operation_fails_as_it_was_told() {
    let disk = SimDisk::new();
    disk.start_trace();
    disk.fail_at(2, libc::EIO);
    durable_fails(&disk);
    let kinds: Vec<_> = disk.trace().into_iter().map(|operation| operation.kind).collect();
    assert_eq!(kinds, [OperationKind::Create, OperationKind::Write]);
    assert_eq!(content(&disk, "a"), Some(Vec::new()), "nothing was written");
}

fn durable_fails(disk: &SimDisk) {
    let file = disk.open(&path("a"), Open::CreateEmpty).unwrap();
    assert_eq!(file.write_all_at(b"abc", 0).unwrap_err().raw_os_error(), Some(libc::EIO));
}

#[test]
fn who_is_stepped_is_told_that_a_call_would_hang() {
    let disk = SimDisk::new();
    let file = durable(&disk, "a", b"abc");
    let before = disk.operations();
    disk.hang();
    assert!(disk.is_hung());
    for result in [file.sync_data(), file.write_all_at(b"x", 0), disk.remove(&path("a")), root_sync(&disk)] {
        assert!(would_hang(&result.unwrap_err()));
    }
    assert_eq!(disk.operations(), before, "nothing has happened");
    assert!(disk.exists(&path("a")), "names are in memory");
    disk.release();
    file.sync_data().unwrap();
}

fn root_sync(disk: &SimDisk) -> io::Result<()> {
    disk.open_dir(Path::new("/")).and_then(|dir| dir.sync())
}

#[test]
fn threads_wait_until_the_disk_is_released() {
    let disk = SimDisk::for_threads();
    let file: Arc<dyn DiskFile> = durable(&disk, "a", b"abc").into();
    disk.hang();
    let (done, result) = std::sync::mpsc::channel();
    let waiting = file.clone();
    let thread = std::thread::spawn(move || done.send(waiting.sync_data().is_ok()));
    assert!(result.try_recv().is_err());
    disk.release();
    assert!(result.recv().unwrap());
    thread.join().unwrap().unwrap();
}

#[test]
fn everything_is_synced_by_a_sync_of_the_file_system() {
    let disk = SimDisk::new();
    let file = disk.open(&path("a"), Open::CreateEmpty).unwrap();
    file.write_all_at(b"abc", 0).unwrap();
    root(&disk).sync_file_system().unwrap();
    assert_eq!(found(&disk, |disk| content(disk, "a")), [Some(b"abc".to_vec())].into());
}

#[test]
fn the_same_seed_gives_the_same_disk() {
    let disk = SimDisk::new();
    let file = durable(&disk, "a", &[1; 40960]);
    file.write_all_at(&[2; 40960], 0).unwrap();
    let state = disk.state().clone();
    let crash = |seed| content(&SimDisk::with(state.clone(), false).crash(seed), "a");
    SEEDS.for_each(|seed| assert_eq!(crash(seed), crash(seed)));
}

#[test]
fn the_time_of_a_directory_tells_two_sets_of_names_apart() {
    let disk = SimDisk::new();
    durable(&disk, "a", b"1");
    durable(&disk, "b", b"1");
    let before = root(&disk).metadata().unwrap().changed;
    disk.remove(&path("a")).unwrap();
    disk.remove(&path("b")).unwrap();
    let after = root(&disk).metadata().unwrap().changed;
    let seen =
        found(&disk, |disk| (root(disk).metadata().unwrap().changed, disk.list(Path::new("/")).unwrap()));
    for (changed, names) in seen {
        assert_eq!((changed == before, changed == after), (names.len() == 2, names.is_empty()), "{names:?}");
    }
}
