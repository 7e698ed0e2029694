//! Files of `pg_wal` that are lost: nothing that was confirmed behind them goes with them.

use super::*;

const SECOND: u32 = 2;

fn second() -> TimelineId {
    TimelineId::new(SECOND).unwrap()
}

fn name(tli: u32, segment: u64) -> WalFileName {
    WalFileName::new(TimelineId::new(tli).unwrap(), SegNo::new(segment))
}

fn path(dir: &Path, tli: u32, segment: u64, suffix: &str) -> std::path::PathBuf {
    dir.join("pg_wal").join(format!("{tli:08X}{:016X}{suffix}", segment))
}

/// The bytes of a segment on the way.
fn content(wal: &WalGenerator, segment: u64) -> &[u8] {
    &wal.bytes()[((segment - 3) * SEG) as usize..][..SEG as usize]
}

fn last_end(wal: &WalGenerator) -> Lsn {
    *wal.record_ends().last().unwrap()
}

/// Timeline 2 left 1 in segment 4, with `behind` bytes more on 1, and has come `on` bytes further.
fn forked(dir: &Path, behind: usize, on: usize) -> WalGenerator {
    let mut wal = generator(31);
    wal.fill(1_400_000);
    let fork = wal.position();
    let mut longer = wal.clone();
    longer.fill(behind);
    let mut opened = Opened::open(dir);
    opened.append(START, longer.bytes());
    let content = format!("1\t{fork}\tno recovery target specified\n");
    opened.store.save_history_file(second(), content.as_bytes()).unwrap();
    let history = TimelineHistory::parse(second(), content.as_bytes()).unwrap();
    opened.writer.switch_timeline(history).unwrap();
    wal.switch_timeline(second());
    wal.fill(on);
    opened.append(fork, &wal.bytes()[fork.since(START) as usize..]);
    opened.wait_flushed(last_end(&wal));
    opened.stop();
    wal
}

/// A hand or a disk may take any file; with its predecessor's file of the same number beside it the gap is easily
/// taken for filled.
#[test]
fn the_first_segment_of_a_timeline_is_missed_although_its_predecessor_has_one_of_that_number() {
    // How far 1 went on in its own file, how far 2 has come, and whether 1's end has its final name.
    for (behind, on, finished) in
        [(0, 900_000, false), (400_000, 900_000, false), (400_000, 3_500_000, false), (0, 3_500_000, true)]
    {
        let dir = crate::permissions::private_tempdir();
        let wal = forked(dir.path(), behind, on);
        let end = last_end(&wal);
        fs::remove_file(path(dir.path(), 2, 4, "")).unwrap();
        if finished {
            fs::rename(path(dir.path(), 1, 4, ".partial"), path(dir.path(), 1, 4, "")).unwrap();
        }
        for in_order in [true, false] {
            let opened = Opened::open(dir.path());
            let tip = opened.store.tip().unwrap();
            assert_eq!((tip.tli, tip.write_lsn, tip.flush_lsn), (second(), end, end));
            assert_eq!(opened.store.missing_segments().unwrap(), [name(2, 4)]);
            assert_eq!(opened.store.oldest(), Some(Lsn::new(5 * SEG)), "what leads to the tip without a gap");
            if in_order { opened.stop() } else { opened.crash() }
        }
        let opened = Opened::open(dir.path());
        opened.store.fill_segment(name(2, 4), &mut content(&wal, 4)).unwrap();
        assert!(opened.store.missing_segments().unwrap().is_empty());
        assert_eq!(opened.store.oldest(), Some(START));
        let from = 4 * SEG;
        let read = opened.store.segment(second(), SegNo::new(4)).unwrap();
        assert!(read.bytes(0, SEG as usize) == content(&wal, 4) && read.start() == Lsn::new(from));
        opened.stop();
    }
}

/// A crash may have come before the last whole segment of the old timeline got its name.
#[test]
fn what_lies_behind_a_hole_at_the_switch_stays_whatever_lies_before_it() {
    for on in [900_000, 3_500_000] {
        let dir = crate::permissions::private_tempdir();
        let wal = forked(dir.path(), 0, on);
        fs::remove_file(path(dir.path(), 2, 4, "")).unwrap();
        fs::rename(path(dir.path(), 1, 3, ""), path(dir.path(), 1, 3, ".partial")).unwrap();
        for _ in 0..2 {
            let opened = Opened::open(dir.path());
            let tip = opened.store.tip().unwrap();
            assert_eq!((tip.tli, tip.flush_lsn), (second(), last_end(&wal)));
            assert_eq!(opened.store.missing_segments().unwrap(), [name(2, 4)]);
            assert!(fs::read(path(dir.path(), 1, 3, "")).unwrap() == content(&wal, 3));
            opened.crash();
        }
    }
}

/// A power cut has left the names of two segments that were begun, the length of the second one, and some of what was in it.
#[test]
fn what_was_begun_behind_a_segment_that_was_not_written_does_not_count() {
    for kept in [0, 300_000] {
        let dir = crate::permissions::private_tempdir();
        let mut wal = generator(33);
        wal.fill(2 * SEG as usize - 100_000);
        let end = wal.position();
        let mut opened = Opened::open(dir.path());
        opened.append(START, wal.bytes());
        opened.wait_flushed(end);
        opened.crash();
        wal.fill(2_500_000);
        // 4 is the tail: it was confirmed up to `end`. 5 and 6 are what nobody had synced.
        fs::write(path(dir.path(), 1, 5, ".partial"), []).unwrap();
        let mut begun = content(&wal, 6)[..kept].to_vec();
        begun.resize(SEG as usize, 0);
        fs::write(path(dir.path(), 1, 6, ".partial"), begun).unwrap();
        for _ in 0..2 {
            let opened = Opened::open(dir.path());
            let tip = opened.store.tip().unwrap();
            assert_eq!((tip.write_lsn, tip.flush_lsn), (end, end), "{kept}");
            assert!(opened.store.missing_segments().unwrap().is_empty());
            assert!(!path(dir.path(), 1, 6, ".partial").exists());
            opened.crash();
        }
    }
}

/// A finished segment was durable, and everything before it.
#[test]
fn what_lies_behind_a_hole_and_is_finished_stays() {
    let dir = crate::permissions::private_tempdir();
    let mut wal = generator(32);
    wal.fill(5_500_000);
    let mut opened = Opened::open(dir.path());
    opened.append(START, wal.bytes());
    wait("names", || path(dir.path(), 1, 7, "").exists());
    opened.crash();
    fs::rename(path(dir.path(), 1, 4, ""), path(dir.path(), 1, 4, ".partial")).unwrap();
    fs::remove_file(path(dir.path(), 1, 5, "")).unwrap();
    let opened = Opened::open(dir.path());
    assert_eq!(opened.store.tip().unwrap().flush_lsn, last_end(&wal));
    assert_eq!(opened.store.missing_segments().unwrap(), [name(1, 5)]);
    opened.store.fill_segment(name(1, 5), &mut content(&wal, 5)).unwrap();
    let to = last_end(&wal);
    assert!(read_back(&opened.store, TimelineId::FIRST, to) == wal.bytes()[..to.since(START) as usize]);
}

/// Only unfinished segments behind a hole: nobody knows whether they were confirmed. They are received again, and kept.
#[test]
fn unfinished_segments_behind_a_hole_are_put_aside() {
    let dir = crate::permissions::private_tempdir();
    let mut wal = generator(33);
    wal.fill(3_500_000);
    let mut opened = Opened::open(dir.path());
    opened.append(START, wal.bytes());
    wait("names", || path(dir.path(), 1, 5, "").exists());
    opened.crash();
    fs::rename(path(dir.path(), 1, 4, ""), path(dir.path(), 1, 4, ".partial")).unwrap();
    fs::remove_file(path(dir.path(), 1, 5, "")).unwrap();
    let before = fs::read(path(dir.path(), 1, 6, ".partial")).unwrap();
    let mut opened = Opened::open(dir.path());
    let at = opened.store.tip().unwrap().flush_lsn;
    assert!(at < Lsn::new(5 * SEG) && wal.record_ends().contains(&at));
    assert!(fs::read(dir.path().join("aside/000000010000000000000006.partial")).unwrap() == before);
    opened.append(at, &wal.bytes()[at.since(START) as usize..]);
    let to = last_end(&wal);
    opened.wait_flushed(to);
    assert!(read_back(&opened.store, TimelineId::FIRST, to) == wal.bytes()[..to.since(START) as usize]);
}

/// The last record of a finished segment may have reached into the one that is lost. So WAL comes again from within the
/// finished segment, what it holds before that must not go.
#[test]
fn a_lost_tail_takes_nothing_of_the_finished_segment_before_it() {
    for in_order in [true, false] {
        let dir = crate::permissions::private_tempdir();
        let mut wal = generator(34);
        wal.fill(2_500_000);
        let mut opened = Opened::open(dir.path());
        opened.append(START, wal.bytes());
        wait("names", || path(dir.path(), 1, 4, "").exists());
        if in_order {
            opened.stop()
        } else {
            opened.crash()
        }
        fs::remove_file(path(dir.path(), 1, 5, ".partial")).unwrap();
        let mut opened = Opened::open(dir.path());
        let at = opened.store.tip().unwrap().flush_lsn;
        assert!(Lsn::new(4 * SEG) < at && at < Lsn::new(5 * SEG), "{at}");
        let from = at.since(START) as usize;
        assert!(read_back(&opened.store, TimelineId::FIRST, at) == wal.bytes()[..from]);
        opened.append(at, &wal.bytes()[from..]);
        let to = last_end(&wal);
        opened.wait_flushed(to);
        wait("the name", || path(dir.path(), 1, 4, "").exists());
        assert!(fs::read(path(dir.path(), 1, 4, "")).unwrap() == content(&wal, 4));
        assert!(read_back(&opened.store, TimelineId::FIRST, to) == wal.bytes()[..to.since(START) as usize]);
    }
}

/// Nothing at all is left of the timeline that was followed: its ancestor is gone on with, never a dead sibling.
#[test]
fn without_a_file_of_the_followed_timeline_its_last_ancestor_is_followed() {
    let dir = crate::permissions::private_tempdir();
    let wal = forked(dir.path(), 300_000, 100_000);
    fs::remove_file(path(dir.path(), 2, 4, ".partial")).unwrap();
    // A sibling with a higher number that was left.
    fs::copy(path(dir.path(), 1, 4, ".partial"), path(dir.path(), 3, 4, ".partial")).unwrap();
    fs::write(dir.path().join("pg_wal/00000003.history"), "1\t0/400000\tx\n").unwrap();
    let mut opened = Opened::open(dir.path());
    let tip = opened.store.tip().unwrap();
    assert_eq!(tip.tli, TimelineId::FIRST);
    let history = opened.store.history_file(second()).unwrap().unwrap();
    let history = TimelineHistory::parse(second(), &history).unwrap();
    let fork = history.begin();
    assert!(tip.write_lsn >= fork);
    opened.writer.switch_timeline(history).unwrap();
    opened.append(fork, &wal.bytes()[fork.since(START) as usize..]);
    opened.wait_flushed(last_end(&wal));
}

/// On timeline 2 a record has begun in its first segment and reaches into the third, where it is not complete.
fn forked_in_a_long_record(dir: &Path) -> WalGenerator {
    let mut wal = forked(dir, 0, 100_000);
    wal.record(3_000_000);
    let mut opened = Opened::open(dir);
    let at = opened.writer.position().unwrap().lsn;
    opened.append(at, &wal.bytes()[at.since(START) as usize..wal.bytes().len() - 500_000]);
    opened.crash();
    assert!(path(dir, 2, 5, ".partial").exists() && path(dir, 2, 6, ".partial").exists());
    wal
}

/// The beginning of the record was never confirmed: whoever went on behind it would confirm it with its end.
#[test]
fn the_middle_of_a_record_whose_beginning_is_lost_does_not_count() {
    let dir = crate::permissions::private_tempdir();
    let wal = forked_in_a_long_record(dir.path());
    fs::remove_file(path(dir.path(), 2, 4, ".partial")).unwrap();
    let mut opened = Opened::open(dir.path());
    let content = opened.store.history_file(second()).unwrap().unwrap();
    let history = TimelineHistory::parse(second(), &content).unwrap();
    let fork = history.begin();
    let tip = opened.store.tip().unwrap();
    assert_eq!((tip.tli, tip.write_lsn, tip.flush_lsn), (TimelineId::FIRST, fork, fork));
    for name in ["000000020000000000000005.partial", "000000020000000000000006.partial"] {
        assert!(dir.path().join("aside").join(name).exists(), "{name}");
    }
    opened.writer.switch_timeline(history).unwrap();
    opened.append(fork, &wal.bytes()[fork.since(START) as usize..]);
    opened.wait_flushed(last_end(&wal));
    assert!(opened.store.missing_segments().unwrap().is_empty());
}

/// More is lost than the upstream has to have: it is gone on with, and nothing claimed before a whole record is here. Nor
/// is anything begun anew while another timeline's unfinished segment holds records that were confirmed.
#[test]
fn no_position_is_shown_behind_a_hole_before_a_record_has_come() {
    for nothing_finished in [false, true] {
        let dir = crate::permissions::private_tempdir();
        let wal = forked_in_a_long_record(dir.path());
        for segment in [4, 5] {
            fs::remove_file(path(dir.path(), 2, segment, ".partial")).unwrap();
        }
        if nothing_finished {
            fs::remove_file(path(dir.path(), 1, 3, "")).unwrap();
        }
        let before = fs::read(path(dir.path(), 1, 4, ".partial")).unwrap();
        let mut opened = Opened::open(dir.path());
        let at = Lsn::new(6 * SEG);
        assert_eq!(opened.writer.position(), Some(TimelinePosition { tli: second(), lsn: at }));
        opened.writer.show_start();
        assert_eq!((opened.store.tip(), opened.writer.is_bare()), (None, false));
        opened.append(at, &wal.bytes()[at.since(START) as usize..]);
        opened.wait_flushed(last_end(&wal));
        let missing: &[_] = if nothing_finished { &[] } else { &[name(2, 4), name(2, 5)] };
        assert_eq!(opened.store.missing_segments().unwrap(), missing);
        assert!(fs::read(path(dir.path(), 1, 4, ".partial")).unwrap() == before);
    }
}

/// Nothing can be made of it here, and it may be the only copy of what was confirmed.
#[test]
fn a_beginning_that_is_damaged_is_put_aside_with_what_lies_behind_it() {
    let dir = crate::permissions::private_tempdir();
    let mut wal = generator(47);
    wal.fill(500_000);
    let mut opened = Opened::open(dir.path());
    opened.append(START, wal.bytes());
    opened.wait_flushed(last_end(&wal));
    opened.stop();
    let partial = path(dir.path(), 1, START.as_u64() / SEG, ".partial");
    let mut damaged = fs::read(&partial).unwrap();
    damaged[..8192].fill(7);
    fs::write(&partial, &damaged).unwrap();
    let mut opened = Opened::open(dir.path());
    assert_eq!((opened.writer.is_bare(), opened.store.tip()), (true, None));
    assert!(!partial.exists());
    let aside = dir.path().join("aside").join(partial.file_name().unwrap());
    assert!(fs::read(aside).unwrap() == damaged);
    // It is begun anew as if none were held.
    opened.append(START, wal.bytes());
    opened.wait_flushed(last_end(&wal));
}

fn aside(dir: &Path, name: &str) -> std::path::PathBuf {
    dir.join("aside").join(name)
}

/// Nobody can tell what a damaged page cuts off from what was never confirmed.
#[test]
fn what_lies_behind_a_damaged_page_is_put_aside() {
    let dir = crate::permissions::private_tempdir();
    let mut wal = generator(48);
    wal.fill(3_500_000);
    let mut opened = Opened::open(dir.path());
    opened.append(START, wal.bytes());
    wait("names", || path(dir.path(), 1, 5, "").exists());
    opened.crash();
    // A crash may have come before they had their names.
    for segment in [4, 5] {
        fs::rename(path(dir.path(), 1, segment, ""), path(dir.path(), 1, segment, ".partial")).unwrap();
    }
    let damaged = path(dir.path(), 1, 4, ".partial");
    let mut bytes = fs::read(&damaged).unwrap();
    bytes[500_000] ^= 1;
    fs::write(&damaged, bytes).unwrap();
    let names = [4, 5, 6].map(|segment| format!("00000001{segment:016X}.partial"));
    let before = names.clone().map(|name| fs::read(dir.path().join("pg_wal").join(name)).unwrap());
    // The first of them is received again, and what is there is a copy.
    let names = [format!("{}.torn", names[0]), names[1].clone(), names[2].clone()];

    let mut opened = Opened::open(dir.path());
    let at = opened.store.tip().unwrap().flush_lsn;
    assert!(Lsn::new(4 * SEG) < at && at <= Lsn::new(4 * SEG + 500_000), "{at}");
    for (name, before) in names.iter().zip(before) {
        assert!(fs::read(aside(dir.path(), name)).unwrap() == before, "{name}");
    }
    opened.append(at, &wal.bytes()[at.since(START) as usize..]);
    let to = last_end(&wal);
    opened.wait_flushed(to);
    assert!(read_back(&opened.store, TimelineId::FIRST, to) == wal.bytes()[..to.since(START) as usize]);
    opened.crash();
    assert_eq!(Opened::open(dir.path()).store.tip().unwrap().flush_lsn, to);
    assert_eq!(fs::read_dir(dir.path().join("aside")).unwrap().count(), 3);
}

/// The end of a long record is lost. Its segments had their names, or the run has ended in order behind it.
#[test]
fn what_is_known_to_have_been_confirmed_is_put_aside() {
    for is_finished in [true, false] {
        let dir = crate::permissions::private_tempdir();
        let mut wal = generator(51);
        wal.fill(1_500_000);
        let end = last_end(&wal);
        wal.record(3_500_000);
        let last = last_end(&wal);
        let mut opened = Opened::open(dir.path());
        opened.append(START, wal.bytes());
        opened.wait_flushed(last);
        wait("names", || path(dir.path(), 1, 6, "").exists());
        if is_finished {
            opened.crash();
        } else {
            opened.stop();
            for segment in [5, 6] {
                let to = path(dir.path(), 1, segment, ".partial");
                fs::rename(path(dir.path(), 1, segment, ""), to).unwrap();
            }
        }
        fs::remove_file(path(dir.path(), 1, last.seg_at(identity().seg_size).as_u64(), ".partial")).unwrap();
        let mut opened = Opened::open(dir.path());
        assert_eq!(opened.store.tip().unwrap().flush_lsn, end);
        for segment in [5, 6] {
            let name = format!("00000001{segment:016X}{}", if is_finished { "" } else { ".partial" });
            assert!(fs::read(aside(dir.path(), &name)).unwrap() == content(&wal, segment), "{name}");
        }
        opened.append(end, &wal.bytes()[end.since(START) as usize..]);
        opened.wait_flushed(last);
        let to = last.since(START) as usize;
        assert!(read_back(&opened.store, TimelineId::FIRST, last) == wal.bytes()[..to]);
    }
}

/// A record fills two finished segments, and was confirmed; then a bit of it goes bad, in the file where it begins, or where it
/// ends and more was confirmed behind it. All of it comes again, and what is bad is never shown.
#[test]
fn a_long_record_that_went_bad_is_not_passed_over() {
    for segment in [4, 7] {
        let dir = crate::permissions::private_tempdir();
        let mut wal = generator(52);
        wal.fill(1_500_000);
        let end = last_end(&wal);
        wal.record(3_000_000);
        wal.fill(200_000);
        let last = last_end(&wal);
        assert_eq!(last.seg_at(identity().seg_size), SegNo::new(7));
        let mut opened = Opened::open(dir.path());
        opened.append(START, wal.bytes());
        opened.wait_flushed(last);
        wait("names", || path(dir.path(), 1, 6, "").exists());
        opened.crash();
        let (suffix, offset) = if segment == 4 { ("", SEG - 100) } else { (".partial", 100_000) };
        let file = path(dir.path(), 1, segment, suffix);
        let mut bytes = fs::read(&file).unwrap();
        assert!(4 * SEG + SEG - 100 > end.as_u64());
        bytes[offset as usize] ^= 1;
        fs::write(&file, bytes).unwrap();
        let mut opened = Opened::open(dir.path());
        assert_eq!(opened.store.tip().unwrap().write_lsn, end, "{segment}");
        assert!((5..8).all(|number| aside(dir.path(), &format!("00000001{number:016X}")).exists()
            || aside(dir.path(), &format!("00000001{number:016X}.partial")).exists()));
        assert!(opened.store.missing_segments().unwrap().is_empty());
        opened.append(end, &wal.bytes()[end.since(START) as usize..]);
        opened.wait_flushed(last);
        let to = last.since(START) as usize;
        assert!(read_back(&opened.store, TimelineId::FIRST, last) == wal.bytes()[..to], "{segment}");
        opened.stop();
    }
}

/// A small record, cut where it may be: in its header, in its body, in the header of a page.
#[test]
fn what_a_crash_has_cut_off_within_a_page_is_not_put_aside() {
    let dir = crate::permissions::private_tempdir();
    let mut wal = generator(53);
    wal.fill(1_200_000);
    let end = last_end(&wal);
    let at_page = (8192 - end.as_u64() % 8192) as usize;
    wal.record(90);
    wal.fill(20_000);
    for cut in [3, 4, 10, 23, 24, 60, at_page + 10, at_page + 8192 + 20] {
        let mut opened = Opened::open(dir.path());
        let from = opened.writer.position().map_or(0, |at| at.lsn.since(START) as usize);
        opened.append(START.advance(from as u64), &wal.bytes()[from..end.since(START) as usize + cut]);
        opened.writer.commit();
        opened.crash();
        let opened = Opened::open(dir.path());
        assert!(!dir.path().join("aside").exists(), "{cut}");
        opened.stop();
    }
}

/// A bit flipped on the way behind an XLOG_SWITCH: no start may find it, whoever ends before it has come again.
#[test]
fn what_is_no_zero_behind_a_switch_is_not_kept_until_it_came_twice() {
    for (ends_in_order, len) in
        [(true, SEG as usize - 1000), (false, SEG as usize - 1000), (true, SEG as usize)]
    {
        let dir = crate::permissions::private_tempdir();
        let mut wal = generator(54);
        wal.fill(300_000);
        wal.switch_segment();
        wal.record(100);
        let mut flipped = wal.bytes()[..len].to_vec();
        flipped[500_000] ^= 1;
        let mut opened = Opened::open(dir.path());
        assert_eq!(opened.writer.append(START, &flipped).is_ok(), len < SEG as usize);
        opened.writer.commit();
        if ends_in_order {
            opened.stop()
        } else {
            opened.crash()
        }
        let mut opened = Opened::open(dir.path());
        let from = opened.writer.position().unwrap().lsn;
        opened.append(from, &wal.bytes()[from.since(START) as usize..]);
        opened.wait_flushed(last_end(&wal));
        let to = last_end(&wal).since(START) as usize;
        assert!(read_back(&opened.store, TimelineId::FIRST, last_end(&wal)) == wal.bytes()[..to]);
        opened.stop();
    }
}

/// Its beginning is here, and nobody has confirmed it.
#[test]
fn the_middle_of_a_record_that_a_crash_has_cut_off_is_not_put_aside() {
    let dir = crate::permissions::private_tempdir();
    let mut wal = generator(49);
    wal.fill(1_300_000);
    let end = last_end(&wal);
    wal.record(3_000_000);
    // In the middle of it, where it fills its segment, and of its last part.
    for cut in [700_000, (wal.position().since(START) % SEG) as usize, 10_000] {
        let mut opened = Opened::open(dir.path());
        let from = opened.writer.position().unwrap().lsn.since(START) as usize;
        opened.append(START.advance(from as u64), &wal.bytes()[from..wal.bytes().len() - cut]);
        opened.wait_flushed(end);
        opened.crash();
        assert!(path(dir.path(), 1, 6, ".partial").exists());
        let opened = Opened::open(dir.path());
        assert_eq!(opened.store.tip().unwrap().flush_lsn, end, "{cut}");
        assert!((5..8).all(|segment| !path(dir.path(), 1, segment, ".partial").exists()));
        assert!(!dir.path().join("aside").exists(), "{cut}");
        opened.stop();
    }
}

/// The first record of all reaches over more than two segments, and one of them is lost. Nothing says whether it was whole, and
/// confirmed.
#[test]
fn nothing_is_begun_anew_where_the_middle_of_the_first_record_is_lost() {
    for is_whole in [true, false] {
        let dir = crate::permissions::private_tempdir();
        let Identity { system_id, seg_size } = identity();
        let id = WalIdentity { system_id, seg_size };
        let mut wal = WalGenerator::new(id, TimelineId::FIRST, Lsn::new(2 * SEG), 50);
        wal.record(1_300_000);
        let first = last_end(&wal);
        assert_eq!(first.seg_at(seg_size), START.seg_at(seg_size));
        wal.record(3_000_000);
        let bytes = &wal.bytes()[SEG as usize..];
        let mut opened = Opened::open(dir.path());
        opened.append(START, if is_whole { bytes } else { &bytes[..bytes.len() - 500_000] });
        if is_whole {
            opened.wait_flushed(last_end(&wal));
            wait("names", || path(dir.path(), 1, 5, "").exists());
        }
        opened.crash();
        for segment in if is_whole { 3..6 } else { 0..0 } {
            fs::rename(path(dir.path(), 1, segment, ""), path(dir.path(), 1, segment, ".partial")).unwrap();
        }
        fs::remove_file(path(dir.path(), 1, 4, ".partial")).unwrap();
        let mut opened = Opened::open(dir.path());
        assert!(!opened.writer.is_bare(), "{is_whole}");
        let at = opened.writer.position().unwrap();
        assert_eq!(at, TimelinePosition { tli: TimelineId::FIRST, lsn: first });
        assert!(aside(dir.path(), "000000010000000000000005.partial").exists());
        opened.append(first, &bytes[first.since(START) as usize..]);
        opened.wait_flushed(last_end(&wal));
    }
}

/// What was given up may still hang on the disk when the next one comes with the same segment.
#[test]
fn a_hole_is_filled_once_however_many_fill_it() {
    let dir = crate::permissions::private_tempdir();
    let mut wal = generator(35);
    wal.fill(3_500_000);
    let mut opened = Opened::open(dir.path());
    opened.append(START, wal.bytes());
    wait("names", || path(dir.path(), 1, 5, "").exists());
    fs::remove_file(path(dir.path(), 1, 4, "")).unwrap();
    let store = &opened.store;
    let start = std::sync::Barrier::new(4);
    let filled = std::thread::scope(|threads| {
        let fill = || {
            start.wait();
            store.fill_segment(name(1, 4), &mut content(&wal, 4))
        };
        let all: Vec<_> = (0..4).map(|_| threads.spawn(fill)).collect();
        all.into_iter()
            .map(|one| one.join().unwrap())
            .filter(|filled| match filled {
                Ok(()) => true,
                Err(error) => !matches!(error, FillError::NotMissing(_)),
            })
            .collect::<Vec<_>>()
    });
    assert!(matches!(filled[..], [Ok(())]), "{filled:?}");
    assert!(fs::read(path(dir.path(), 1, 4, "")).unwrap() == content(&wal, 4));
}

/// With its neighbours lost as well, only the version of the server tells.
#[test]
fn a_hole_is_not_filled_with_wal_of_another_version() {
    let dir = crate::permissions::private_tempdir();
    let mut wal = generator(52).with_magic(0xD110);
    wal.fill(4_500_000);
    let mut other = generator(52).with_magic(0xD113);
    other.fill(4_500_000);
    let mut opened = Opened::open(dir.path());
    let parameters = UpstreamParameters { wal_magic: Some(0xD110), ..UpstreamParameters::default() };
    opened.store.attach(identity(), parameters).unwrap();
    opened.store.slots().create(&"s".parse().unwrap(), SlotPersistence::Persistent, Some(START)).unwrap();
    opened.append(START, wal.bytes());
    wait("names", || path(dir.path(), 1, 6, "").exists());
    for segment in [3, 4, 5] {
        fs::remove_file(path(dir.path(), 1, segment, "")).unwrap();
    }
    assert_eq!(opened.store.missing_segments().unwrap(), [name(1, 3), name(1, 4), name(1, 5)]);
    let error = opened.store.fill_segment(name(1, 4), &mut content(&other, 4)).unwrap_err();
    assert!(matches!(error, FillError::Invalid { .. }), "{error}");
    opened.store.fill_segment(name(1, 4), &mut content(&wal, 4)).unwrap();
}

/// A source that fails in the middle leaves the hole, and nothing else.
#[test]
fn a_fill_that_breaks_off_leaves_the_hole() {
    let dir = crate::permissions::private_tempdir();
    let mut wal = generator(36);
    wal.fill(3_500_000);
    let mut opened = Opened::open(dir.path());
    opened.append(START, wal.bytes());
    wait("names", || path(dir.path(), 1, 5, "").exists());
    fs::remove_file(path(dir.path(), 1, 4, "")).unwrap();
    let files = || {
        let mut names: Vec<_> =
            dir.path().join("pg_wal").read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
        // Segments are made ahead meanwhile.
        names.retain(|name| !name.to_string_lossy().starts_with("walrelay-new.ahead-"));
        names.sort();
        names
    };
    let before = files();
    let mut torn = content(&wal, 4).to_vec();
    torn[900_000] ^= 1;
    for (source, expected) in
        [(&content(&wal, 4)[..600_000], "ended after 600000 bytes"), (&torn, "does not belong")]
    {
        let error = opened.store.fill_segment(name(1, 4), &mut &source[..]).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert_eq!((files(), opened.store.missing_segments().unwrap()), (before.clone(), vec![name(1, 4)]));
    }
}

/// No checksum covers what lies there: what is no zero has to come twice, as from the stream.
#[test]
fn what_is_no_zero_behind_a_switch_fills_a_hole_when_it_comes_again() {
    let dir = crate::permissions::private_tempdir();
    let mut wal = generator(38);
    wal.fill(1_200_000);
    wal.switch_segment();
    wal.fill(1_500_000);
    let mut stale = wal.bytes()[SEG as usize..2 * SEG as usize].to_vec();
    stale[400_000..].fill(0xAA);
    let mut opened = Opened::open(dir.path());
    opened.append(START, wal.bytes());
    wait("its name", || path(dir.path(), 1, 4, "").exists());
    opened.stop();
    fs::remove_file(path(dir.path(), 1, 4, "")).unwrap();
    let opened = Opened::open(dir.path());
    let fill = |content: &[u8]| {
        let filled = opened.store.fill_segment(name(1, 4), &mut &content[..]);
        filled.map_err(|error| error.is_doubtful())
    };
    let mut flipped = stale.clone();
    flipped[500_000] ^= 4;
    assert_eq!([fill(&flipped), fill(&stale), fill(&stale)], [Err(true), Err(true), Ok(())]);
    assert!(fs::read(path(dir.path(), 1, 4, "")).unwrap() == stale);
    opened.stop();
}
