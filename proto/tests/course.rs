//! Whatever servers and disks say, in whatever order: the course neither panics nor does anything before what has to come
//! before it. A fuzz target, as those of `fuzz.rs`.

use bolero::check;
use walrelay_proto::course::{
    Cause, Compared, Course, CourseError, CourseSetup, Fact, Identified, Introduced, Reserved, Seam, Slot,
    Standing, Step, StreamEnd, Streamed,
};
use walrelay_proto::{Lsn, SegSize, SystemId, TimelineHistory, TimelineId, WalError};

#[derive(Clone, PartialEq, Eq, Debug)]
enum Failure {
    Own(CourseError),
    Passing,
    Permanent,
    Fatal,
}

impl From<CourseError> for Failure {
    fn from(error: CourseError) -> Failure {
        Failure::Own(error)
    }
}

impl Cause for Failure {
    fn is_permanent(&self) -> bool {
        *self == Failure::Permanent
    }

    fn is_fatal(&self) -> bool {
        *self == Failure::Fatal
    }
}

/// Where facts come from.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn next(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    /// Few positions, so that they meet.
    fn lsn(&mut self) -> Option<Lsn> {
        Some(Lsn::new((3 << 20) + u64::from(self.next()? % 16) * (1 << 18)))
    }

    fn tli(&mut self) -> Option<TimelineId> {
        TimelineId::new(1 + u32::from(self.next()? % 5))
    }

    fn history(&mut self, tli: TimelineId) -> Option<TimelineHistory> {
        let mut lines = String::new();
        let mut at = 12;
        for ancestor in 1..tli.as_u32() {
            let byte = self.next()?;
            if ancestor == 1 || byte & 1 == 1 {
                at += u64::from(byte >> 1) % 4;
                lines += &format!("{ancestor}\t{}\n", Lsn::new(at << 18));
            }
        }
        TimelineHistory::parse(tli, lines.as_bytes()).ok()
    }

    fn any_history(&mut self) -> Option<TimelineHistory> {
        let tli = self.tli()?;
        self.history(tli)
    }

    fn identified(&mut self) -> Option<Identified> {
        Some(Identified { system_id: SystemId(9), tli: self.tli()?, xlogpos: self.lsn()? })
    }

    fn slot(&mut self) -> Option<Slot> {
        Some(match self.next()? % 4 {
            0 => Slot::Missing,
            1 => Slot::Unknown,
            2 => Slot::There { reserved: None },
            _ => Slot::There { reserved: Some(Reserved { lsn: self.lsn()?, tli: self.tli() }) },
        })
    }

    fn held(&mut self) -> Option<Option<Standing>> {
        let kind = self.next()?;
        if kind == 0 {
            return Some(None);
        }
        let ours = self.any_history()?;
        let mut here = vec![(ours.tli(), Some(ours.clone()))];
        for _ in 0..kind % 3 {
            let other = self.any_history()?;
            here.push((other.tli(), (kind & 4 == 0).then_some(other)));
        }
        let newest = if kind & 8 == 0 { None } else { self.any_history() };
        Some(Some(Standing { ours, held: self.lsn()?, is_bare: kind & 16 != 0, newest, here }))
    }

    fn streamed(&mut self) -> Option<Streamed<Failure>> {
        let kind = self.next()?;
        let end = match kind % 8 {
            0 => StreamEnd::ServerStopped,
            1 => StreamEnd::Stopped,
            2 => StreamEnd::NoSlot(Failure::Passing),
            3 => StreamEnd::Removed(Failure::Passing),
            4 => StreamEnd::Bad(WalError::UnknownMagic { lsn: self.lsn()?, found: 0 }),
            5 => StreamEnd::Failed(Failure::Passing),
            _ => StreamEnd::Timeline,
        };
        Some(Streamed { came: kind & 8 != 0, verified: self.lsn(), end })
    }

    /// Mostly one that answers the step.
    fn fact(&mut self, step: &Step<Failure>) -> Option<Fact<Failure>> {
        match self.next()? {
            0 => return Some(Fact::Done),
            1 => return Some(Fact::Failed(Failure::Permanent)),
            2 => return Some(Fact::Failed(Failure::Fatal)),
            3 => return Some(Fact::Stopped),
            4 => return Some(Fact::Held(self.held()?)),
            5 => return Some(Fact::Streamed(self.streamed()?)),
            6..12 => return Some(Fact::Failed(Failure::Passing)),
            _ => {}
        }
        Some(match step {
            Step::Connect { .. } => {
                let seg_size = SegSize::new(1 << 20).unwrap();
                Fact::Introduced(Introduced { identified: self.identified()?, seg_size, slot: self.slot()? })
            }
            Step::Identify => Fact::Identified(self.identified()?),
            Step::FetchHistory { tli } => Fact::History(self.history(*tli)?),
            Step::Look => Fact::Held(self.held()?),
            Step::ReadSlot | Step::ReadSlotInSql => Fact::Slot(self.slot()?),
            Step::Find { .. } => Fact::Found(if self.next()? == 0 { None } else { self.lsn() }),
            Step::ReadSeam { at, .. } => {
                let seam = Seam { from: at.rewind(9000), end: at.rewind(u64::from(self.next()?) << 10) };
                Fact::Seam(if self.next()? == 0 { Err("gone".to_owned()) } else { Ok(seam) })
            }
            Step::Compare { .. } => {
                Fact::Compared(if self.next()? < 64 { Compared::MoreFollows } else { Compared::Idle })
            }
            Step::Stream(_) => Fact::Streamed(self.streamed()?),
            _ => Fact::Done,
        })
    }
}

/// What has been done on a connection, as far as something else depends on it.
#[derive(Default)]
struct Done {
    /// Nothing is held. That is no matter of the connection.
    bare: bool,
    accepted: bool,
    found: bool,
    seam: bool,
    durable: bool,
    noted: bool,
}

impl Done {
    #[track_caller]
    fn check(&self, step: &Step<Failure>) {
        match step {
            Step::Begin { .. } => assert!(self.bare),
            Step::Compare { .. } => assert!(self.seam),
            Step::TakeUp { .. } => assert!(self.found && self.accepted),
            Step::Switch { .. } => assert!(self.durable && self.accepted),
            Step::Find { .. } => assert!(self.durable),
            Step::Stream(stream) => {
                assert!(self.noted && stream.from <= stream.until);
                assert!(if stream.compares { self.seam } else { self.accepted });
            }
            _ => {}
        }
    }

    fn note(&mut self, step: &Step<Failure>, fact: &Fact<Failure>) {
        match (step, fact) {
            (Step::Connect { .. }, _) => *self = Done { bare: self.bare, ..Done::default() },
            (Step::Look, Fact::Held(Some(held))) => {
                *self = Done { bare: held.is_bare, found: false, seam: false, ..*self };
            }
            (Step::Accept, Fact::Done) => self.accepted = true,
            (Step::Find { .. }, Fact::Found(found)) => self.found = found.is_some(),
            (Step::ReadSeam { .. }, Fact::Seam(seam)) => self.seam = seam.is_ok(),
            _ => {}
        }
        self.durable = *step == Step::WaitDurable;
        self.noted = *step == Step::NoteFollowed;
    }
}

#[test]
fn fuzz_course() {
    check!().with_iterations(5000).with_max_len(400).for_each(play);
}

fn play(bytes: &[u8]) {
    let Some((&setup, bytes)) = bytes.split_first() else { return };
    let hosts = usize::from(setup % 4);
    let setup = CourseSetup { hosts, prefers_standby: setup & 4 != 0, empty: setup & 8 != 0 };
    let mut course = Course::new(setup);
    let (mut bytes, mut done) = (Bytes(bytes), Done { bare: setup.empty, ..Done::default() });
    let (mut step, mut tried) = (course.step(Fact::Done), 0);
    while let Some(fact) = bytes.fact(&step) {
        done.check(&step);
        match &step {
            Step::Connect { host, .. } => {
                assert!(*host < hosts.max(1));
                tried += 1;
            }
            // Whoever answers something else may have no connection at all.
            Step::HangUp if matches!(course.failure(), Some(Failure::Own(CourseError::OutOfTurn { .. }))) => {
                tried = hosts;
            }
            Step::Pause { .. } => {
                assert!(tried >= hosts);
                tried = 0;
            }
            Step::Give(_) | Step::Over => {
                assert_eq!(course.step(fact), Step::Over);
                return;
            }
            _ => {}
        }
        done.note(&step, &fact);
        step = course.step(fact);
    }
}
