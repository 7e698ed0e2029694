//! The course alone: no socket, no disk, no clock.

mod promotions;

use super::*;
use crate::lsn::Lsn;
use crate::segment::SegSize;
use crate::timeline::{SystemId, TimelineHistory, TimelineId, TimelinePosition};
use crate::walk::WalError;

const SEG: u64 = 1 << 20;

/// What a step of the tests fails with.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Failure {
    Own(CourseError),
    /// It may pass.
    Passing(&'static str),
    Permanent(&'static str),
    Fatal,
}

impl From<CourseError> for Failure {
    fn from(error: CourseError) -> Failure {
        Failure::Own(error)
    }
}

impl Cause for Failure {
    fn is_permanent(&self) -> bool {
        matches!(self, Failure::Permanent(_))
    }

    fn is_fatal(&self) -> bool {
        *self == Failure::Fatal
    }
}

fn tli(number: u32) -> TimelineId {
    TimelineId::new(number).unwrap()
}

fn history(number: u32, ancestors: &[(u32, u64)]) -> TimelineHistory {
    let lines: String = ancestors.iter().map(|(tli, end)| format!("{tli}\t0/{end:X}\treason\n")).collect();
    TimelineHistory::parse(tli(number), lines.as_bytes()).unwrap()
}

fn at(number: u32, lsn: u64) -> TimelinePosition {
    TimelinePosition { tli: tli(number), lsn: Lsn::new(lsn) }
}

fn identified(number: u32, xlogpos: u64) -> Identified {
    Identified { system_id: SystemId(9), tli: tli(number), xlogpos: Lsn::new(xlogpos) }
}

const THERE: Slot = Slot::There { reserved: None };

fn introduced(number: u32, xlogpos: u64, slot: Slot) -> Fact<Failure> {
    let seg_size = SegSize::new(SEG).unwrap();
    Fact::Introduced(Introduced { identified: identified(number, xlogpos), seg_size, slot })
}

/// On this timeline, with the files of these as well.
fn standing(ours: &TimelineHistory, held: u64, here: &[&TimelineHistory]) -> Standing {
    let here = here.iter().chain([&ours]).map(|&one| (one.tli(), Some(one.clone()))).collect();
    Standing { ours: ours.clone(), held: Lsn::new(held), is_bare: false, newest: None, here }
}

fn seam(from: u64, end: u64) -> Fact<Failure> {
    Fact::Seam(Ok(Seam { from: Lsn::new(from), end: Lsn::new(end) }))
}

fn streamed(came: bool, verified: u64, end: StreamEnd<Failure>) -> Fact<Failure> {
    Fact::Streamed(Streamed { came, verified: Some(Lsn::new(verified)), end })
}

fn stream(number: u32, from: u64, until: u64, compares: bool) -> Step<Failure> {
    Step::Stream(Stream { tli: tli(number), from: Lsn::new(from), until: Lsn::new(until), compares })
}

/// A course whose steps are compared one by one.
struct Script(Course<Failure>);

impl Script {
    fn new(hosts: usize, prefers_standby: bool, empty: bool) -> Script {
        Script(Course::new(CourseSetup { hosts, prefers_standby, empty }))
    }

    /// The only host, connected to.
    fn connected(empty: bool, first: Fact<Failure>) -> (Script, Step<Failure>) {
        let mut script = Script::new(1, false, empty);
        script.check(Fact::Done, Step::Connect { host: 0, standby: false });
        let step = script.0.step(first);
        (script, step)
    }

    #[track_caller]
    fn check(&mut self, fact: Fact<Failure>, expected: Step<Failure>) {
        assert_eq!(self.0.step(fact), expected);
    }

    /// What the next host, or none, is left for.
    #[track_caller]
    fn refused(&mut self, fact: Fact<Failure>, expected: &Failure) {
        self.check(fact, Step::HangUp);
        assert_eq!(self.0.failure(), Some(expected));
    }

    /// The only host's round is over.
    #[track_caller]
    fn rests(&mut self, expected: Failure) {
        let Step::Pause { error, .. } = self.0.step(Fact::Done) else { panic!("no pause") };
        assert_eq!(error, expected);
    }

    /// Up to what is to be read at the seam.
    fn judged(theirs: &TimelineHistory, xlogpos: u64, slot: Slot, held: Standing) -> (Script, Step<Failure>) {
        let number = theirs.tli().as_u32();
        let (mut script, step) = Script::connected(false, introduced(number, xlogpos, slot));
        assert_eq!(step, Step::FetchHistory { tli: theirs.tli() });
        script.check(Fact::History(theirs.clone()), Step::Look);
        let step = script.0.step(Fact::Held(Some(held)));
        (script, step)
    }
}

#[test]
fn where_the_slot_is_there_the_comparison_is_the_streams_first_part() {
    let one = TimelineHistory::first();
    let (mut script, step) = Script::judged(&one, 0x500000, THERE, standing(&one, 0x412348, &[]));
    assert_eq!(step, Step::ReadSeam { at: Lsn::new(0x412348), found: false });
    script.check(seam(0x410000, 0x412348), Step::FetchHistories);
    script.check(Fact::Done, Step::NoteFollowed);
    script.check(Fact::Done, stream(1, 0x410000, 0x412348, true));
    script.refused(streamed(true, 0x500000, StreamEnd::ServerStopped), &CourseError::ServerStopped.into());
}

#[test]
fn where_the_slot_is_missing_nothing_is_made_before_the_comparison() {
    let one = TimelineHistory::first();
    let (mut script, step) = Script::judged(&one, 0x500000, Slot::Missing, standing(&one, 0x412348, &[]));
    assert_eq!(step, Step::ReadSeam { at: Lsn::new(0x412348), found: false });
    script.check(seam(0x410000, 0x412348), Step::FetchHistories);
    script.check(Fact::Done, Step::Compare { tli: tli(1), from: Lsn::new(0x410000) });
    script.check(Fact::Compared(Compared::Idle), Step::Accept);
    script.check(Fact::Done, Step::CreateSlot);
    script.check(Fact::Done, Step::NoteFollowed);
    script.check(Fact::Done, stream(1, 0x412000, 0x412348, false));
    // It says that the slot which was just made is not there: nobody asks it for ever.
    let error = Failure::Passing("no such slot");
    script.refused(streamed(false, 0x412348, StreamEnd::NoSlot(error.clone())), &error);
}

#[test]
fn a_slot_that_is_missed_only_when_it_is_used_is_made_then() {
    let one = TimelineHistory::first();
    let held = || standing(&one, 0x412348, &[]);
    let (mut script, _) = Script::judged(&one, 0x500000, Slot::Unknown, held());
    script.check(seam(0x410000, 0x412348), Step::FetchHistories);
    script.check(Fact::Done, Step::NoteFollowed);
    script.check(Fact::Done, stream(1, 0x410000, 0x412348, true));
    script.check(streamed(false, 0x412348, StreamEnd::NoSlot(Failure::Passing("none"))), Step::Look);
    // Nothing was compared yet.
    script.check(Fact::Held(Some(held())), Step::ReadSeam { at: Lsn::new(0x412348), found: false });
    script.check(seam(0x410000, 0x412348), Step::FetchHistories);
    script.check(Fact::Done, Step::Compare { tli: tli(1), from: Lsn::new(0x410000) });
    script.check(Fact::Compared(Compared::Idle), Step::Accept);
    script.check(Fact::Done, Step::CreateSlot);
}

#[test]
fn zeros_that_are_many_are_not_fetched_along() {
    let one = TimelineHistory::first();
    let (mut script, _) = Script::judged(&one, 0x500000, THERE, standing(&one, 0x500000, &[]));
    script.check(seam(0x478000, 0x47A120), Step::FetchHistories);
    script.check(Fact::Done, Step::Compare { tli: tli(1), from: Lsn::new(0x478000) });
    script.check(Fact::Compared(Compared::Idle), Step::Accept);
    script.check(Fact::Done, Step::NoteFollowed);
    script.check(Fact::Done, stream(1, 0x500000, 0x500000, false));
}

#[test]
fn what_is_removed_at_a_boundary_is_decided_by_the_first_new_record() {
    let one = TimelineHistory::first();
    let gone = || StreamEnd::Removed(Failure::Passing("removed"));
    let (mut script, _) = Script::judged(&one, 0x600000, THERE, standing(&one, 0x500000, &[]));
    script.check(seam(0x4FC000, 0x4FFFF0), Step::FetchHistories);
    script.check(Fact::Done, Step::NoteFollowed);
    script.check(Fact::Done, stream(1, 0x4FC000, 0x500000, true));
    script.check(streamed(false, 0x500000, gone()), Step::Look);
    script.check(Fact::Held(Some(standing(&one, 0x500000, &[]))), Step::FetchHistories);
    script.check(Fact::Done, Step::Accept);
    script.check(Fact::Done, Step::NoteFollowed);
    script.check(Fact::Done, stream(1, 0x500000, 0x500000, false));
    let source = WalError::UnknownMagic { lsn: Lsn::new(0x500000), found: 0 };
    let seam = CourseError::Seam { tli: tli(1), held: Lsn::new(0x500000), source };
    script.refused(streamed(false, 0x500000, StreamEnd::Bad(source)), &seam.into());

    // What is needed next is another matter.
    let (mut script, _) = Script::judged(&one, 0x600000, THERE, standing(&one, 0x512340, &[]));
    script.check(self::seam(0x50C000, 0x512340), Step::FetchHistories);
    script.check(Fact::Done, Step::NoteFollowed);
    script.check(Fact::Done, stream(1, 0x50C000, 0x512340, true));
    script.refused(streamed(false, 0x512340, gone()), &Failure::Passing("removed"));
}

#[test]
fn bad_wal_behind_good_is_no_matter_of_the_seam() {
    let one = TimelineHistory::first();
    let (mut script, _) = Script::judged(&one, 0x600000, THERE, standing(&one, 0x412348, &[]));
    script.check(seam(0x410000, 0x412348), Step::FetchHistories);
    script.check(Fact::Done, Step::NoteFollowed);
    script.check(Fact::Done, stream(1, 0x410000, 0x412348, true));
    let source = WalError::UnknownMagic { lsn: Lsn::new(0x500000), found: 0 };
    script.refused(streamed(true, 0x500000, StreamEnd::Bad(source)), &CourseError::BadWal(source).into());
}

#[test]
fn a_promotion_is_followed_when_its_end_is_here() {
    let (one, two) = (TimelineHistory::first(), history(2, &[(1, 0x480000)]));
    let (mut script, _) = Script::judged(&two, 0x600000, THERE, standing(&one, 0x412348, &[]));
    script.check(seam(0x410000, 0x412348), Step::FetchHistories);
    script.check(Fact::Done, Step::NoteFollowed);
    script.check(Fact::Done, stream(1, 0x410000, 0x412348, true));
    script.check(streamed(true, 0x480000, StreamEnd::Timeline), Step::Identify);
    // What was streamed is known to be the same, and the history of the same timeline is the same.
    script.check(Fact::Identified(identified(2, 0x600000)), Step::Look);
    script.check(Fact::Held(Some(standing(&one, 0x480000, &[]))), Step::FetchHistories);
    script.check(Fact::Done, Step::Accept);
    script.check(Fact::Done, Step::WaitDurable);
    script.check(Fact::Done, Step::Switch { to: tli(2), at: Lsn::new(0x480000) });
    script.check(Fact::Done, Step::Look);
    script.check(Fact::Held(Some(standing(&two, 0x480000, &[&one]))), Step::FetchHistories);
    script.check(Fact::Done, Step::Accept);
    script.check(Fact::Done, Step::NoteFollowed);
    script.check(Fact::Done, stream(2, 0x480000, 0x480000, false));
}

#[test]
fn a_switch_before_the_end_is_compared_in_the_file_of_the_newer_timeline() {
    let one = TimelineHistory::first();
    for (left_at, read) in [(0x480000, 2), (0x500000, 1)] {
        let two = history(2, &[(1, left_at)]);
        let (mut script, step) = Script::judged(&two, 0x600000, THERE, standing(&one, 0x512348, &[]));
        assert_eq!(step, Step::ReadSeam { at: Lsn::new(left_at), found: false });
        script.check(seam(left_at - 9000, left_at), Step::FetchHistories);
        script.check(Fact::Done, Step::Compare { tli: tli(read), from: Lsn::new(left_at - 9000) });
        script.check(Fact::Compared(Compared::Idle), Step::Accept);
        script.check(Fact::Done, Step::WaitDurable);
    }
}

#[test]
fn a_sibling_is_followed_from_what_is_common() {
    let (one, two) = (TimelineHistory::first(), history(2, &[(1, 0x380000)]));
    let three = history(3, &[(1, 0x480000)]);
    let held = || standing(&two, 0x512340, &[&one]);
    let (mut script, step) = Script::judged(&three, 0x600000, THERE, held());
    assert_eq!(step, Step::WaitDurable);
    script.check(Fact::Done, Step::Find { history: one.clone() });
    script
        .check(Fact::Found(Some(Lsn::new(0x390000))), Step::ReadSeam { at: Lsn::new(0x390000), found: true });
    script.check(seam(0x38C000, 0x390000), Step::FetchHistories);
    script.check(Fact::Done, Step::Compare { tli: tli(1), from: Lsn::new(0x38C000) });
    script.check(Fact::Compared(Compared::Idle), Step::Accept);
    script.check(Fact::Done, Step::TakeUp { newest: tli(3) });
    script.check(Fact::Done, Step::Look);
    // Compared just now.
    script.check(Fact::Held(Some(standing(&one, 0x390000, &[&two]))), Step::FetchHistories);
    script.check(Fact::Done, Step::Accept);
    script.check(Fact::Done, Step::NoteFollowed);
    script.check(Fact::Done, stream(1, 0x390000, 0x390000, false));

    // Retention was here first.
    let (mut script, _) = Script::judged(&three, 0x600000, THERE, held());
    script.check(Fact::Done, Step::Find { history: one.clone() });
    let reason = "nothing of timeline 1 is held here any more".to_owned();
    let fork = CourseError::Fork { tli: tli(3), at: Lsn::new(0x480000), reason };
    script.refused(Fact::Found(None), &fork.into());
}

/// After a crash in a switch the timeline's first file is there, and a server that is on that timeline comes first.
#[test]
fn a_server_on_the_way_does_not_make_the_newest_timeline_forgotten() {
    let (one, two) = (TimelineHistory::first(), history(2, &[(1, 0x480000)]));
    let newest = Some(history(5, &[(1, 0x480000), (2, 0x580000)]));
    let (mut script, _) =
        Script::judged(&two, 0x500000, THERE, Standing { newest, ..standing(&one, 0x480000, &[&two]) });
    script.check(Fact::Done, Step::Find { history: two.clone() });
    let seam_at = Lsn::new(0x480000);
    script.check(Fact::Found(Some(seam_at)), Step::ReadSeam { at: seam_at, found: true });
    script.check(seam(0x47C000, 0x480000), Step::FetchHistories);
    script.check(Fact::Done, Step::Compare { tli: tli(2), from: Lsn::new(0x47C000) });
    script.check(Fact::Compared(Compared::Idle), Step::Accept);
    script.check(Fact::Done, Step::TakeUp { newest: tli(5) });
}

#[test]
fn what_is_held_by_nobody_is_no_common_ground() {
    let (one, two) = (TimelineHistory::first(), history(2, &[(1, 0x280000)]));
    let (mut script, step) = Script::judged(&two, 0x600000, THERE, standing(&one, 0x412348, &[]));
    assert_eq!(step, Step::ReadSeam { at: Lsn::new(0x280000), found: false });
    let reason = "requested WAL segment 000000010000000000000002 has already been removed".to_owned();
    let fork = CourseError::Fork { tli: tli(2), at: Lsn::new(0x280000), reason: reason.clone() };
    script.refused(Fact::Seam(Err(reason.clone())), &fork.into());
    // Where we begin there is nothing to compare.
    let (mut script, _) = Script::judged(&one, 0x600000, THERE, standing(&one, 0x300000, &[]));
    script.check(Fact::Seam(Err(reason)), Step::FetchHistories);
    script.check(Fact::Done, Step::Accept);
}

#[test]
fn the_only_host_is_waited_for_and_others_are_asked() {
    let one = TimelineHistory::first();
    let held = || Fact::Held(Some(standing(&one, 0x412348, &[])));
    let behind = |xlogpos: u64, first: bool| Step::WaitBehind {
        ours: at(1, 0x412348),
        theirs: Lsn::new(xlogpos),
        first,
    };
    let (mut script, step) = Script::judged(&one, 0x400000, THERE, standing(&one, 0x412348, &[]));
    assert_eq!(step, behind(0x400000, true));
    script.check(Fact::Done, Step::Identify);
    script.check(Fact::Identified(identified(1, 0x410000)), behind(0x410000, false));
    script.check(Fact::Done, Step::Identify);
    script.check(Fact::Identified(identified(1, 0x412348)), Step::Look);
    script.check(held(), Step::ReadSeam { at: Lsn::new(0x412348), found: false });

    // It was promoted meanwhile.
    let (mut script, _) = Script::judged(&one, 0x400000, THERE, standing(&one, 0x412348, &[]));
    script.check(Fact::Done, Step::Identify);
    script.check(Fact::Identified(identified(2, 0x400100)), Step::FetchHistory { tli: tli(2) });

    let mut script = Script::new(2, false, false);
    script.check(Fact::Done, Step::Connect { host: 0, standby: false });
    script.check(introduced(1, 0x400000, THERE), Step::FetchHistory { tli: tli(1) });
    script.check(Fact::History(one.clone()), Step::Look);
    let behind = CourseError::Behind { tli: tli(1), theirs: Lsn::new(0x400000), ours: Lsn::new(0x412348) };
    script.refused(held(), &behind.into());
    script.check(Fact::Done, Step::Connect { host: 1, standby: false });
}

#[test]
fn a_server_that_sends_more_is_connected_to_once_more() {
    let one = TimelineHistory::first();
    let held = || Fact::Held(Some(standing(&one, 0x412348, &[])));
    let (mut script, _) = Script::judged(&one, 0x900000, Slot::Missing, standing(&one, 0x412348, &[]));
    script.check(seam(0x410000, 0x412348), Step::FetchHistories);
    script.check(Fact::Done, Step::Compare { tli: tli(1), from: Lsn::new(0x410000) });
    script.check(Fact::Compared(Compared::MoreFollows), Step::HangUp);
    assert_eq!(script.0.failure(), None);
    script.check(Fact::Done, Step::Connect { host: 0, standby: false });
    script.check(introduced(1, 0x900100, Slot::Missing), Step::FetchHistory { tli: tli(1) });
    script.check(Fact::History(one.clone()), Step::Look);
    // It is the same server, and known.
    script.check(held(), Step::FetchHistories);
    script.check(Fact::Done, Step::Accept);

    // Another one answers there now: it is compared, but not for ever.
    let (mut script, _) = Script::judged(&one, 0x900000, Slot::Missing, standing(&one, 0x412348, &[]));
    script.check(seam(0x410000, 0x412348), Step::FetchHistories);
    script.check(Fact::Done, Step::Compare { tli: tli(1), from: Lsn::new(0x410000) });
    script.check(Fact::Compared(Compared::MoreFollows), Step::HangUp);
    script.check(Fact::Done, Step::Connect { host: 0, standby: false });
    script.check(introduced(2, 0x900100, Slot::Missing), Step::FetchHistory { tli: tli(2) });
    script.check(Fact::History(history(2, &[(1, 0x500000)])), Step::Look);
    script.check(held(), Step::ReadSeam { at: Lsn::new(0x412348), found: false });
    script.check(seam(0x410000, 0x412348), Step::FetchHistories);
    script.check(Fact::Done, Step::Compare { tli: tli(1), from: Lsn::new(0x410000) });
    script.refused(Fact::Compared(Compared::MoreFollows), &CourseError::SendsMore.into());
}

#[test]
fn a_server_that_ends_what_it_says_to_go_on_is_left() {
    let (one, two) = (TimelineHistory::first(), history(2, &[(1, 0x480000)]));
    let held = || standing(&one, 0x412348, &[]);
    let begun = || {
        let (mut script, _) = Script::judged(&two, 0x600000, THERE, held());
        script.check(seam(0x410000, 0x412348), Step::FetchHistories);
        script.check(Fact::Done, Step::NoteFollowed);
        script.check(Fact::Done, stream(1, 0x410000, 0x412348, true));
        script.check(streamed(false, 0x412348, StreamEnd::Timeline), Step::Identify);
        script
    };
    let mut script = begun();
    script.refused(Fact::Identified(identified(1, 0x412348)), &CourseError::StreamEnded.into());
    // Its history says that more is to come.
    let mut script = begun();
    script.check(Fact::Identified(identified(2, 0x600000)), Step::Look);
    script.check(Fact::Held(Some(held())), Step::FetchHistories);
    script.check(Fact::Done, Step::Accept);
    script.check(Fact::Done, Step::NoteFollowed);
    script.refused(Fact::Done, &CourseError::StreamEnded.into());
}

#[test]
fn wal_begins_where_the_slots_does() {
    let two = history(2, &[(1, 0x480000)]);
    let begins = |slot: Slot, asked: &[(Step<Failure>, Slot)], expected: TimelinePosition| {
        let (mut script, step) = Script::connected(true, introduced(2, 0x600000, slot));
        assert_eq!(step, Step::FetchHistory { tli: tli(2) });
        let mut step = script.0.step(Fact::History(two.clone()));
        for (ask, told) in asked {
            if step == Step::CreateSlot {
                step = script.0.step(Fact::Done);
            }
            assert_eq!(step, *ask);
            step = script.0.step(Fact::Slot(*told));
        }
        assert_eq!(step, Step::FetchHistories);
        script.check(Fact::Done, Step::Begin { at: expected.lsn, tli: expected.tli });
        script.check(Fact::Done, Step::Look);
        // From now on there is something to lose.
        script.refused(Fact::Failed(Failure::Permanent("gone")), &Failure::Permanent("gone"));
        script.rests(Failure::Permanent("gone"));
    };
    let reserved = |lsn: u64, number: Option<u32>| Slot::There {
        reserved: Some(Reserved { lsn: Lsn::new(lsn), tli: number.map(tli) }),
    };
    begins(reserved(0x412340, Some(1)), &[], at(1, 0x412340));
    begins(THERE, &[], at(2, 0x600000));
    begins(Slot::Missing, &[(Step::ReadSlot, reserved(0x5FFF00, Some(2)))], at(2, 0x5FFF00));
    begins(Slot::Missing, &[(Step::ReadSlot, Slot::Missing)], at(2, 0x600000));
    begins(Slot::Unknown, &[(Step::ReadSlotInSql, reserved(0x412340, None))], at(1, 0x412340));
    begins(Slot::Unknown, &[(Step::ReadSlotInSql, reserved(0x480000, None))], at(2, 0x480000));
    begins(Slot::Unknown, &[(Step::ReadSlotInSql, THERE)], at(2, 0x600000));
}

#[test]
fn what_was_begun_where_nothing_comes_from_is_begun_anew_once() {
    let (one, two) = (TimelineHistory::first(), history(2, &[(1, 0x480000)]));
    let bare = || Some(Standing { is_bare: true, ..standing(&one, 0x500000, &[]) });
    let slot = Slot::There { reserved: Some(Reserved { lsn: Lsn::new(0x490000), tli: Some(tli(2)) }) };
    let (mut script, step) = Script::judged(&two, 0x600000, slot, bare().unwrap());
    assert_eq!(step, Step::WaitDurable);
    script.check(Fact::Done, Step::FetchHistories);
    script.check(Fact::Done, Step::Begin { at: Lsn::new(0x490000), tli: tli(2) });
    script.check(Fact::Done, Step::Look);
    script.check(Fact::Held(bare()), Step::ReadSeam { at: Lsn::new(0x480000), found: false });
}

#[test]
fn hosts_are_tried_in_turn_for_standbys_first_and_one_that_may_come_back_makes_it_pass() {
    let failed = |text| Fact::Failed(Failure::Passing(text));
    let denied = |text| Fact::Failed(Failure::Permanent(text));
    let mut script = Script::new(2, true, true);
    let mut fact = Fact::Done;
    for (host, standby, next) in
        [(0, true, denied("a")), (1, true, failed("b")), (0, false, denied("c")), (1, false, failed("d"))]
    {
        script.check(fact, Step::Connect { host, standby });
        script.check(next, Step::HangUp);
        fact = Fact::Done;
    }
    script.rests(Failure::Passing("b"));
    script.check(Fact::Done, Step::Connect { host: 0, standby: true });

    // All of them permanently.
    for empty in [true, false] {
        let mut script = Script::new(2, false, empty);
        script.check(Fact::Done, Step::Connect { host: 0, standby: false });
        script.check(denied("a"), Step::HangUp);
        script.check(Fact::Done, Step::Connect { host: 1, standby: false });
        script.check(denied("b"), Step::HangUp);
        match empty {
            true => script.check(Fact::Done, Step::Give(Failure::Permanent("b"))),
            false => script.rests(Failure::Permanent("b")),
        }
    }
}

#[test]
fn pauses_grow_until_something_comes() {
    let one = TimelineHistory::first();
    let mut script = Script::new(1, false, false);
    let rest = |script: &mut Script, fact: Fact<Failure>| {
        script.check(fact, Step::HangUp);
        let Step::Pause { pause, .. } = script.0.step(Fact::Done) else { panic!("no pause") };
        script.check(Fact::Done, Step::Connect { host: 0, standby: false });
        pause.length(u32::MAX).as_millis()
    };
    script.check(Fact::Done, Step::Connect { host: 0, standby: false });
    let grown: Vec<_> = (0..6).map(|_| rest(&mut script, Fact::Failed(Failure::Passing("down")))).collect();
    assert_eq!(grown, [100, 200, 400, 750, 750, 750]);
    for (came, expected) in [(false, 750), (true, 100)] {
        script.check(introduced(1, 0x500000, THERE), Step::FetchHistory { tli: tli(1) });
        script.check(Fact::History(one.clone()), Step::Look);
        let held = Fact::Held(Some(standing(&one, 0x412348, &[])));
        script.check(held, Step::ReadSeam { at: Lsn::new(0x412348), found: false });
        script.check(seam(0x410000, 0x412348), Step::FetchHistories);
        script.check(Fact::Done, Step::NoteFollowed);
        script.check(Fact::Done, stream(1, 0x410000, 0x412348, true));
        assert_eq!(rest(&mut script, streamed(came, 0x412348, StreamEnd::ServerStopped)), expected);
    }
}

#[test]
fn what_is_fatal_or_ordered_ends_it_wherever_it_is() {
    let one = TimelineHistory::first();
    let facts = || -> Vec<Fact<Failure>> {
        vec![
            Fact::Done,
            introduced(1, 0x500000, THERE),
            Fact::History(one.clone()),
            Fact::Held(Some(standing(&one, 0x412348, &[]))),
            seam(0x410000, 0x412348),
            Fact::Done,
            Fact::Done,
        ]
    };
    for len in 1..=facts().len() {
        for (last, expected) in
            [(Fact::Failed(Failure::Fatal), Step::Give(Failure::Fatal)), (Fact::Stopped, Step::Over)]
        {
            let mut script = Script::new(3, false, false);
            for fact in facts().into_iter().take(len) {
                let _ = script.0.step(fact);
            }
            script.check(last, expected);
            script.check(Fact::Done, Step::Over);
        }
    }
}

#[test]
fn a_fact_out_of_turn_is_told_and_not_believed() {
    let (mut script, _) = Script::connected(false, introduced(1, 0x500000, THERE));
    let error = CourseError::OutOfTurn { fact: "seam" };
    script.refused(seam(0x410000, 0x412348), &error.clone().into());
    script.rests(error.into());
}
