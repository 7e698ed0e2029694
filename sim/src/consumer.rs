//! A consumer: a standby or a pg_receivewal that follows a relay, compares each byte with the truth, and reports what it
//! has, honestly, late, or absurdly.

use walrelay_proto::{
    FeedbackHorizon, FullXid, HotStandbyFeedback, Lsn, ServerMessage, StandbyStatusUpdate, TimelineHistory,
    TimelineId,
};

use crate::context::{Context, Event, NodeId};
use crate::frames::{Garbage, Input, code_of, frame, query};
use crate::model::{BranchId, Place, identity};
use crate::net::{ConnId, Side};

/// What it tells.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Manner {
    /// All it has is durable.
    Honest,
    /// What it has becomes durable much later.
    Slow,
    /// Anything.
    Absurd,
}

const LIMIT: u64 = 4_000_000;
const INTERVAL: u64 = 300_000;

#[derive(Debug)]
pub(crate) struct Consumer {
    pub(crate) id: NodeId,
    pub(crate) host: NodeId,
    pub(crate) slot: Option<String>,
    pub(crate) manner: Manner,
    /// Whether it asks for whole segments, as pg_receivewal does.
    by_segment: bool,
    conn: Option<ConnId>,
    input: Input,
    is_closed: bool,
    doing: Doing,
    /// Where it is; `None` before its base backup.
    at: Option<At>,
    /// Nothing came for so many connections in a row.
    in_vain: u32,
    /// What it has asked for last.
    asked: Option<(TimelineId, Lsn)>,
    next_report: u64,
    /// Its slot keeps nothing that is of use.
    drops_slot: bool,
    /// Where its base backup begins.
    begins_at: Lsn,
    /// Whether it tells what its queries need (`hot_standby_feedback`), and what it has told last.
    feeds_back: bool,
    needs: FeedbackHorizon,
}

#[derive(Clone, Debug)]
struct At {
    tli: TimelineId,
    /// End of what has come.
    lsn: Lsn,
    /// End of what would be there after a crash of its own.
    flushed: Lsn,
    /// Branches that all of it may be of.
    branches: Vec<BranchId>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Doing {
    Pausing {
        until: u64,
    },
    Connecting {
        until: u64,
    },
    Introducing {
        until: u64,
    },
    MakingSlot {
        until: u64,
    },
    DroppingSlot {
        until: u64,
    },
    History {
        tli: TimelineId,
        until: u64,
    },
    Streaming {
        heard: u64,
    },
    /// Both have said CopyDone.
    Leaving {
        until: u64,
    },
}

/// It has to connect again.
enum Over {
    Again,
    /// Its WAL is of no use any more: another base backup.
    Rebuild,
}

impl From<Garbage> for Over {
    fn from(_: Garbage) -> Over {
        Over::Again
    }
}

impl Consumer {
    pub(crate) fn new(
        id: NodeId,
        host: NodeId,
        slot: Option<String>,
        manner: Manner,
        by_segment: bool,
        feeds_back: bool,
    ) -> Consumer {
        Consumer {
            id,
            host,
            slot,
            manner,
            by_segment,
            conn: None,
            input: Input::default(),
            is_closed: false,
            doing: Doing::Pausing { until: 0 },
            at: None,
            in_vain: 0,
            asked: None,
            next_report: 0,
            drops_slot: false,
            begins_at: Lsn::INVALID,
            feeds_back,
            needs: FeedbackHorizon::default(),
        }
    }

    /// Its name, if what it tells is so.
    pub(crate) fn named(&self) -> Option<&str> {
        self.slot.as_deref().filter(|_| self.manner != Manner::Absurd)
    }

    /// What the relay has to know of its needs, if it tells them.
    pub(crate) fn needs(&self) -> Option<FeedbackHorizon> {
        self.feeds_back.then_some(self.needs)
    }

    /// Where it is.
    pub(crate) fn place(&self) -> Option<Place> {
        let at = self.at.as_ref()?;
        at.branches.first().map(|branch| Place { branch: *branch, lsn: at.lsn })
    }

    /// Is somebody else from now on, with nothing.
    pub(crate) fn begin_anew(&mut self, cx: &mut Context) {
        self.hang_up(cx, false);
        self.at = None;
        self.pause(cx);
    }

    /// Loses what it has not synced.
    pub(crate) fn crash(&mut self, cx: &mut Context) {
        self.hang_up(cx, true);
        if let Some(at) = &mut self.at {
            at.lsn = at.flushed;
        }
        self.pause(cx);
    }

    /// Gives its slot up, and makes another of that name.
    pub(crate) fn drop_slot(&mut self, cx: &mut Context) {
        if let (Some(conn), Some(slot)) = (self.conn, &self.slot)
            && matches!(self.doing, Doing::Introducing { .. } | Doing::Leaving { .. })
        {
            cx.note("drops its slot", self.id as u64, 0);
            cx.write(conn, Side::Client, &query(&format!("DROP_REPLICATION_SLOT {slot}")));
            self.doing = Doing::DroppingSlot { until: cx.now + LIMIT };
        }
    }

    fn hang_up(&mut self, cx: &mut Context, silently: bool) {
        if let Some(conn) = self.conn.take() {
            match silently {
                true => cx.lines.vanish(conn, Side::Client),
                false => cx.lines.close(conn, Side::Client),
            }
        }
        (self.input, self.is_closed) = (Input::default(), false);
    }

    fn pause(&mut self, cx: &mut Context) {
        let until = cx.now + cx.chance.between(20_000, 200_000);
        self.doing = Doing::Pausing { until };
        cx.wake(self.id, until);
    }

    pub(crate) fn connected(&mut self, conn: ConnId, cx: &mut Context) {
        if self.conn == Some(conn) && matches!(self.doing, Doing::Connecting { .. }) {
            let text = format!("INTRODUCE {}", self.slot.as_deref().unwrap_or("-"));
            self.ask(&text, cx);
            self.doing = Doing::Introducing { until: cx.now + LIMIT };
        }
    }

    pub(crate) fn take(&mut self, conn: ConnId, bytes: Vec<u8>, cx: &mut Context) {
        if self.conn == Some(conn) {
            self.input.push_all(bytes);
            self.run(cx);
        }
    }

    pub(crate) fn closed(&mut self, conn: ConnId, cx: &mut Context) {
        self.is_closed |= self.conn == Some(conn);
        self.run(cx);
    }

    pub(crate) fn run(&mut self, cx: &mut Context) {
        if let Err(over) = self.step(cx) {
            self.hang_up(cx, false);
            if matches!(over, Over::Rebuild) {
                cx.counts.rebuilt += 1;
                cx.note("is rebuilt", self.id as u64, 0);
                (self.at, self.drops_slot) = (None, self.slot.is_some());
            }
            self.pause(cx);
        }
        let due = match self.doing {
            Doing::Pausing { until }
            | Doing::Connecting { until }
            | Doing::Introducing { until }
            | Doing::MakingSlot { until }
            | Doing::DroppingSlot { until }
            | Doing::History { until, .. }
            | Doing::Leaving { until } => until,
            Doing::Streaming { heard } => self.next_report.min(heard + LIMIT),
        };
        cx.wake(self.id, due);
    }

    fn ask(&self, text: &str, cx: &mut Context) {
        cx.say(|| format!("consumer {} asks {text}", self.id));
        if let Some(conn) = self.conn {
            cx.write(conn, Side::Client, &query(text));
        }
    }

    fn step(&mut self, cx: &mut Context) -> Result<(), Over> {
        loop {
            match self.doing {
                Doing::Pausing { until } if cx.now >= until => return self.connect(cx),
                Doing::Pausing { .. } => return Ok(()),
                Doing::Streaming { .. } => match self.input.next_range()? {
                    Some((b'd', body)) => {
                        // What is heard of WAL does not touch what has come behind it.
                        let input = std::mem::take(&mut self.input);
                        let heard = self.hear(b'd', input.at(body), cx);
                        self.input = input;
                        heard?;
                    }
                    Some((kind, body)) => {
                        let body = self.input.at(body).to_vec();
                        self.hear(kind, &body, cx)?;
                    }
                    None => return self.wait(cx),
                },
                Doing::Connecting { until } => return self.check_wait(until, cx),
                Doing::Introducing { until }
                | Doing::MakingSlot { until }
                | Doing::DroppingSlot { until }
                | Doing::History { until, .. }
                | Doing::Leaving { until } => {
                    let mut whole = self.input.clone();
                    let (mut row, mut failure, mut is_whole) = (Vec::new(), None, false);
                    while let Some((kind, body)) = whole.next()? {
                        match kind {
                            b'D' => row = body,
                            b'E' => failure = Some(code_of(&body)),
                            b'Z' => {
                                is_whole = true;
                                break;
                            }
                            _ => {}
                        }
                    }
                    if !is_whole {
                        return self.check_wait(until, cx);
                    }
                    self.input = whole;
                    self.answered(&row, failure.as_deref(), cx)?;
                }
            }
        }
    }

    fn check_wait(&self, until: u64, cx: &Context) -> Result<(), Over> {
        if self.is_closed || cx.now >= until { Err(Over::Again) } else { Ok(()) }
    }

    fn connect(&mut self, cx: &mut Context) -> Result<(), Over> {
        let delay = cx.chance.between(50, 3000);
        let conn = cx.lines.open(self.id, self.host, delay, 0);
        self.conn = Some(conn);
        cx.after(delay, Event::Connect(conn));
        self.doing = Doing::Connecting { until: cx.now + LIMIT };
        Ok(())
    }

    fn answered(&mut self, row: &[u8], failure: Option<&str>, cx: &mut Context) -> Result<(), Over> {
        match self.doing {
            Doing::Introducing { .. } => {
                if failure.is_some() {
                    return Err(Over::Again);
                }
                self.introduced(row, cx)
            }
            Doing::MakingSlot { .. } | Doing::DroppingSlot { .. } => {
                // Where it begins is asked anew.
                self.ask(&format!("INTRODUCE {}", self.slot.as_deref().unwrap_or("-")), cx);
                self.doing = Doing::Introducing { until: cx.now + LIMIT };
                Ok(())
            }
            Doing::History { tli, .. } => {
                let history = TimelineHistory::parse(tli, row).map_err(|_| Over::Again)?;
                self.go_on(&history, cx)
            }
            Doing::Leaving { .. } => self.left(row, failure, cx),
            Doing::Pausing { .. } | Doing::Connecting { .. } | Doing::Streaming { .. } => Ok(()),
        }
    }

    fn introduced(&mut self, row: &[u8], cx: &mut Context) -> Result<(), Over> {
        let text = String::from_utf8_lossy(row).into_owned();
        let mut words = text.split(' ');
        let tli = words.next().and_then(|word| TimelineId::new(word.parse().ok()?)).ok_or(Over::Again)?;
        let end: Lsn = words.next().and_then(|word| word.parse().ok()).ok_or(Over::Again)?;
        let state = words.next();
        let is_missing = state == Some("missing");
        if state == Some("lost") {
            (self.at, self.drops_slot) = (None, true);
        }
        let restart: Option<Lsn> = words.next().and_then(|word| word.parse().ok()).and_then(Lsn::valid);
        if let Some(slot) = self.slot.as_ref().filter(|_| is_missing) {
            // What it had is kept by nobody now.
            let text = format!("CREATE_REPLICATION_SLOT {slot}");
            self.ask(&text, cx);
            self.doing = Doing::MakingSlot { until: cx.now + LIMIT };
            return Ok(());
        }
        if std::mem::take(&mut self.drops_slot) {
            self.ask(&format!("DROP_REPLICATION_SLOT {}", self.slot.as_deref().unwrap_or("-")), cx);
            self.doing = Doing::DroppingSlot { until: cx.now + LIMIT };
            return Ok(());
        }
        match &self.at {
            None => {
                self.begins_at = restart.unwrap_or(end).seg_start(identity().seg_size);
                if tli == TimelineId::FIRST {
                    return self.go_on(&TimelineHistory::first(), cx);
                }
                self.ask(&format!("TIMELINE_HISTORY {tli}"), cx);
                self.doing = Doing::History { tli, until: cx.now + LIMIT };
                Ok(())
            }
            Some(at) if at.tli == tli => {
                let (from, tli) = (at.lsn, at.tli);
                self.start(from, tli, cx)
            }
            // It has gone back, or has not come to it yet.
            Some(at) if at.tli > tli => self.give_up_later(),
            Some(_) => {
                self.ask(&format!("TIMELINE_HISTORY {tli}"), cx);
                self.doing = Doing::History { tli, until: cx.now + LIMIT };
                Ok(())
            }
        }
    }

    fn give_up_later(&mut self) -> Result<(), Over> {
        self.in_vain += 1;
        if self.in_vain > 20 {
            self.in_vain = 0;
            return Err(Over::Rebuild);
        }
        Err(Over::Again)
    }

    /// Goes on along the history of the server's timeline.
    fn go_on(&mut self, history: &TimelineHistory, cx: &mut Context) -> Result<(), Over> {
        let Some(at) = self.at.clone() else {
            let from = self.begins_at;
            let tli = history.timeline_at(from);
            let branches = cx.model.of_timeline(tli).collect();
            self.at = Some(At { tli, lsn: from, flushed: from, branches });
            return self.start(from, tli, cx);
        };
        match history.switch_point(at.tli) {
            Some((left, _)) if left >= at.lsn => self.start(at.lsn, at.tli, cx),
            // What it has is not on the way.
            _ => Err(Over::Rebuild),
        }
    }

    fn start(&mut self, lsn: Lsn, tli: TimelineId, cx: &mut Context) -> Result<(), Over> {
        let from = if self.by_segment { lsn.seg_start(identity().seg_size) } else { lsn.page_start() };
        let text = match &self.slot {
            Some(slot) => format!("START_REPLICATION {slot} {from} {tli}"),
            None => format!("START_REPLICATION {from} {tli}"),
        };
        self.asked = Some((tli, from));
        if let Some(at) = &mut self.at {
            // Another may have been promoted to a timeline of this number meanwhile.
            let known = at.branches.clone();
            let may_be =
                |branch: &BranchId| known.iter().any(|known| cx.model.common(*known, *branch) >= lsn);
            at.branches = cx.model.of_timeline(tli).filter(may_be).collect();
            at.tli = tli;
        }
        self.ask(&text, cx);
        self.doing = Doing::Streaming { heard: cx.now };
        self.next_report = cx.now + INTERVAL;
        Ok(())
    }

    fn hear(&mut self, kind: u8, body: &[u8], cx: &mut Context) -> Result<(), Over> {
        self.doing = Doing::Streaming { heard: cx.now };
        match kind {
            b'd' => match ServerMessage::decode(body).map_err(|_| Over::Again)? {
                ServerMessage::XLogData(header, wal) => self.take_wal(header.start, wal, cx),
                ServerMessage::Keepalive(keepalive) => {
                    if keepalive.reply_requested {
                        self.report(cx);
                    }
                    Ok(())
                }
            },
            b'c' => {
                if let Some(conn) = self.conn {
                    cx.write(conn, Side::Client, &frame(b'c', b""));
                }
                self.doing = Doing::Leaving { until: cx.now + LIMIT };
                Ok(())
            }
            // The timeline ends where it was asked for.
            b'D' => {
                self.input = prepend(&frame(b'D', body), &mut self.input);
                self.doing = Doing::Leaving { until: cx.now + LIMIT };
                Ok(())
            }
            b'E' => self.refused(&code_of(body), cx),
            b'W' => Ok(()),
            _ => Err(Over::Again),
        }
    }

    fn refused(&mut self, code: &str, cx: &mut Context) -> Result<(), Over> {
        cx.say(|| format!("consumer {} is refused: {code}", self.id));
        match code {
            // Without a slot nothing is promised.
            "58P01" if self.slot.is_none() || self.manner == Manner::Absurd => Err(Over::Rebuild),
            "55000" => Err(Over::Rebuild),
            "XX000" | "58P01" => self.give_up_later(),
            _ => Err(Over::Again),
        }
    }

    fn left(&mut self, row: &[u8], failure: Option<&str>, cx: &mut Context) -> Result<(), Over> {
        if failure.is_some() {
            return Err(Over::Again);
        }
        let Some((next, at)) = walrelay_proto::receiver::next_timeline(row) else { return Err(Over::Again) };
        match self.at.as_ref().map(|here| here.lsn) {
            Some(here) if here == at => self.start(at, next, cx),
            Some(here) if here > at => Err(Over::Rebuild),
            _ => self.give_up_later(),
        }
    }

    fn take_wal(&mut self, start: Lsn, wal: &[u8], cx: &mut Context) -> Result<(), Over> {
        let Some(at) = &mut self.at else { return Err(Over::Again) };
        if self.asked.take().is_some_and(|(_, from)| from != start) || start > at.lsn {
            let (id, expected) = (self.id, at.lsn);
            cx.fail(|| format!("consumer {id} was sent WAL at {start}, and has come to {expected}"));
            return Err(Over::Again);
        }
        let end = start.advance(wal.len() as u64);
        let before = at.branches.clone();
        at.branches.retain(|branch| cx.model.is(*branch, start, wal));
        if at.branches.is_empty() {
            let (id, tli) = (self.id, at.tli);
            let differs: Vec<_> = before.iter().map(|branch| cx.model.differs(*branch, start, wal)).collect();
            cx.fail(|| {
                format!(
                    "consumer {id} was sent WAL of timeline {tli} at {start} to {end} that none of {before:?} has: {differs:?}"
                )
            });
            return Err(Over::Again);
        }
        cx.counts.compared += wal.len() as u64;
        if end > at.lsn {
            at.lsn = end;
            self.in_vain = 0;
        }
        cx.note("gets", self.id as u64, end.as_u64());
        let at_once = cx.chance.percent(40);
        if at_once {
            self.report(cx);
        }
        Ok(())
    }

    fn report(&mut self, cx: &mut Context) {
        self.next_report = cx.now + INTERVAL;
        let (Some(at), Some(conn)) = (&mut self.at, self.conn) else { return };
        let chance = &mut cx.chance;
        at.flushed = match self.manner {
            Manner::Slow if at.lsn > at.flushed => {
                at.flushed.advance(chance.below(at.lsn.since(at.flushed) / 2 + 1))
            }
            _ => at.lsn,
        };
        let (write, flush) = match self.manner {
            Manner::Absurd => {
                let any = |chance: &mut crate::random::Random| match chance.below(6) {
                    0 => Lsn::new(u64::MAX),
                    1 => Lsn::INVALID,
                    2 => at.lsn.advance(chance.below(3 << 20)),
                    3 => at.lsn.rewind(chance.below(1 << 20)),
                    _ => at.lsn,
                };
                (any(chance), any(chance))
            }
            _ => (at.lsn, at.flushed),
        };
        if let (Some(slot), Some(branch)) = (&self.slot, at.branches.first()) {
            let told =
                Place { branch: *branch, lsn: if self.manner == Manner::Absurd { at.lsn } else { flush } };
            cx.tell_slot(self.host, slot, told);
        }
        if let Some(slot) = self.slot.as_ref().filter(|_| self.manner != Manner::Absurd) {
            let told = at.branches.iter().map(|branch| Place { branch: *branch, lsn: flush });
            cx.tell_durable(self.host, slot, told);
        }
        let send_time = cx.wall(self.id);
        let (write, flush) = (write.valid(), flush.valid());
        let status = StandbyStatusUpdate { write, flush, apply: flush, send_time, reply_requested: false };
        cx.write(conn, Side::Client, &status.frame());
        if self.feeds_back {
            self.feed_back(conn, cx);
        }
    }

    fn feed_back(&mut self, conn: ConnId, cx: &mut Context) {
        if !cx.is_healed && cx.chance.percent(40) {
            // A query that has been running for some time, or none at all.
            let oldest = |cx: &mut Context| {
                let ago = cx.chance.below(60) as u32;
                FullXid::new(0, 3 + (cx.now / 100_000) as u32 + 60 - ago)
            };
            let xmin = cx.chance.percent(85).then(|| oldest(cx)).flatten();
            let catalog_xmin = cx.chance.percent(20).then(|| oldest(cx)).flatten();
            self.needs = FeedbackHorizon { xmin, catalog_xmin };
        }
        let FeedbackHorizon { xmin, catalog_xmin } = self.needs;
        let feedback = HotStandbyFeedback { send_time: cx.wall(self.id), xmin, catalog_xmin };
        cx.write(conn, Side::Client, &feedback.frame());
    }

    /// Nothing more has come.
    fn wait(&mut self, cx: &mut Context) -> Result<(), Over> {
        let Doing::Streaming { heard } = self.doing else { return Ok(()) };
        if self.is_closed || cx.now >= heard + LIMIT {
            return Err(Over::Again);
        }
        if cx.now >= self.next_report {
            self.report(cx);
        }
        Ok(())
    }
}

fn prepend(bytes: &[u8], input: &mut Input) -> Input {
    let mut whole = Input::default();
    whole.push(bytes);
    whole.push(&input.take_rest());
    whole
}
