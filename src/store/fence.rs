//! The fence: from some moment on nothing more is confirmed upstream, and only a timeline is followed that is newer than the
//! one of that moment. A small file keeps it over restarts.
//!
//! ```text
//!            order                      close                        pass: a newer timeline is followed
//! (none) ──────────────> in force ──────────────> in force ──────────────────────────────────────> passed
//!   ^                    without a position       with (timeline, position)                           │
//!   │                                                  │ lift                                         │
//!   └── a higher number ── lifted <────────────────────┘            a higher number <─────────────────┘
//! ```
//!
//! What is shown in memory holds for the upstream side at once, whatever the disk does: *order* shows the fence, then it is
//! saved. The upstream side ends its connection, has all that was received synced, and *closes* the fence: with its position,
//! durably. Only then whoever ordered it is answered. What a crash leaves, step by step:
//! - before the fence is saved: none; nobody was told of one.
//! - between saving and closing: one without a position. The next start gives it that of what it has recovered, which is all
//!   that was ever confirmed, before anything is connected to.
//! - behind that: the fence as it was answered.
//!
//! A server on a newer timeline may have to stream much of ours first. It is followed, so the fence keeps nothing from it any
//! more, but until its timeline is reached it keeps those away that are not newer: it is *being passed*. That is no state of
//! its own: the [heading](Fencing::heading) is beyond the fence's timeline. Whoever orders a fence then means one that keeps
//! that server away, too, and gets a new one.
//!
//! The timeline of a fence is never below that of the one before, nor below the heading: what was to be fenced off stays so,
//! whatever the relay itself has reached, and whatever crashes.
//!
//! Lifting is the other way round: it is saved first, and then shown, so that nothing is confirmed behind a fence that a crash
//! brings back. A fence that is ordered again meanwhile, or after the lifting was ordered, stays: whoever has ordered it was, or
//! will be, told that it is in force, and whoever lifts it may have been given up long ago, on a disk that hangs. So is the number of a fence: it stays when the fence is lifted or passed, and the next one has a higher one.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use walrelay_proto::{Lsn, PgTimestamp, TimelineId, TimelinePosition};

use super::dir::DataDir;
use super::{Store, lock};

const FILE: &str = "fence.toml";
/// Characters of a reason that are kept.
const MOST_OF_REASON: usize = 1000;

/// A fence, in force or not any more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fence {
    /// Its number, at least 1: the highest wins.
    pub epoch: u64,
    /// What has become of it.
    pub state: FenceState,
    /// A server on this timeline or an older one is not followed.
    pub timeline: TimelineId,
    /// The end of what was held on the way to that timeline, all of it durable: nothing beyond was ever confirmed. `None` while
    /// the fence is being closed.
    pub position: Option<Lsn>,
    /// Why it was ordered, in somebody's words.
    pub reason: String,
    /// When it was ordered.
    pub since: PgTimestamp,
    /// Who has ordered it.
    pub by: FencedBy,
}

/// What has become of a fence.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FenceState {
    /// It is in force.
    InForce,
    /// Somebody has lifted it.
    Lifted,
    /// A newer timeline is followed.
    Passed {
        /// That one.
        to: TimelineId,
    },
}

impl FenceState {
    /// A word or two.
    pub fn as_str(self) -> &'static str {
        match self {
            FenceState::InForce => "in force",
            FenceState::Lifted => "lifted",
            FenceState::Passed { .. } => "passed",
        }
    }
}

/// Who orders, or lifts, a fence.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FencedBy {
    /// The role.
    pub role: String,
    /// Where it has connected from.
    pub address: String,
}

impl std::fmt::Display for FencedBy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "role \"{}\" from {}", self.role, self.address)
    }
}

impl Fence {
    /// Whether it is in force.
    pub fn is_in_force(&self) -> bool {
        self.state == FenceState::InForce
    }

    /// Whether it is in force, and where WAL has ended was not settled yet.
    pub fn is_open(&self) -> bool {
        self.is_in_force() && self.position.is_none()
    }

    /// Whether a server on this timeline may be followed.
    pub fn admits(&self, tli: TimelineId) -> bool {
        !self.is_in_force() || (self.position.is_some() && tli > self.timeline)
    }
}

/// `fence of epoch 3 (timeline 1 at 0/3000060)`
impl std::fmt::Display for Fence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "fence of epoch {} (timeline {}", self.epoch, self.timeline)?;
        match self.position {
            Some(position) => write!(f, " at {position})"),
            None => write!(f, ", being closed)"),
        }
    }
}

/// A fence that is to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Order {
    /// Its number; the next one, or that of the fence in force, if `None`.
    pub epoch: Option<u64>,
    /// Why.
    pub reason: String,
    /// Who orders it.
    pub by: FencedBy,
}

/// A fence is not ordered or lifted.
#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    /// Another one has a higher number.
    #[error("epoch {epoch} is lower than that of the {there}, which is {}", there.state.as_str())]
    Lower {
        /// The number that was given.
        epoch: u64,
        /// The one that is there.
        there: Box<Fence>,
    },
    /// That number was used.
    #[error("the {there} is {} already; the next one takes a higher epoch", there.state.as_str())]
    Used {
        /// The one that has it.
        there: Box<Fence>,
    },
    /// It is not the one that is in force.
    #[error("the {there} is in force, and not one of epoch {epoch}")]
    Other {
        /// The number that was given.
        epoch: u64,
        /// The one that is in force.
        there: Box<Fence>,
    },
    /// It does not keep the server away that is followed now.
    #[error(
        "the {there} is being passed: a server on timeline {to} is followed already; the next one takes a higher epoch"
    )]
    BeingPassed {
        /// The one that has that number.
        there: Box<Fence>,
        /// The timeline that is gone to.
        to: TimelineId,
    },
    /// Somebody has ordered it once more since it was to be lifted.
    #[error("the {there} was ordered again meanwhile, and stays in force")]
    Again {
        /// The one that stays.
        there: Box<Fence>,
    },
    /// There is nothing to be fenced.
    #[error("the relay holds no WAL yet")]
    Empty,
    /// There is no higher number.
    #[error("no epoch is left")]
    NoEpoch,
    /// It could not be saved.
    #[error("could not save the fence in the data directory: {0}")]
    Io(#[from] io::Error),
}

/// What there is to see.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Fencing {
    /// The last fence; `None` if there was never one.
    pub last: Option<Fence>,
    /// Whether it is on the disk as it is.
    pub is_saved: bool,
    /// The newest timeline of the servers that were ever followed, where that is known: ours may not have come so far.
    pub heading: Option<TimelineId>,
}

impl Fencing {
    /// The one that is in force.
    pub fn in_force(&self) -> Option<&Fence> {
        self.last.as_ref().filter(|fence| fence.is_in_force())
    }

    /// The newer timeline that is gone to, while the fence in force is being passed.
    pub fn passing(&self) -> Option<TimelineId> {
        let fence = self.in_force().filter(|fence| !fence.is_open())?;
        self.heading.filter(|heading| *heading > fence.timeline)
    }

    /// What has become of the last one, in a word or two.
    pub fn state(&self) -> &'static str {
        match &self.last {
            None => "none",
            Some(_) if self.passing().is_some() => "being passed",
            Some(fence) => fence.state.as_str(),
        }
    }

    /// The timeline of a fence of what is received on this one.
    fn least(&self, received: TimelineId) -> TimelineId {
        let before = self.last.as_ref().map(|fence| fence.timeline);
        before.max(self.heading).map_or(received, |least| least.max(received))
    }

    /// Whether the fence of this number is in force and closed, durably: it can be told.
    pub fn is_settled(&self, epoch: u64) -> bool {
        let is_settled = |fence: &Fence| fence.epoch == epoch && fence.is_in_force() && !fence.is_open();
        self.is_saved && self.last.as_ref().is_some_and(is_settled)
    }
}

/// The fence of a data directory.
#[derive(Debug)]
pub struct Fences {
    dir: Arc<DataDir>,
    /// Held over the disk by who writes the file.
    saving: Mutex<()>,
    shown: watch::Sender<Fencing>,
    /// How many orders there were, those of the same fence again included. Changes with what is shown.
    orders: AtomicU64,
    /// What the file says may be its end already. Changes with what is shown.
    is_ending: AtomicBool,
}

/// What somebody knows of the orders who wants to lift a fence: what was ordered after that is not meant.
#[derive(Clone, Copy, Debug)]
pub struct OrdersSeen(u64);

impl Fences {
    /// What the data directory says. Where a fence has no position, it gets that of what was recovered, `end`; where a newer
    /// timeline than the fence's is received, it is passed. `heading` is the newest timeline of the servers that were followed.
    ///
    /// # Errors
    /// It cannot be read: nobody knows whether the relay is fenced.
    pub(super) fn load(
        dir: Arc<DataDir>,
        end: Option<TimelinePosition>,
        heading: Option<TimelineId>,
    ) -> io::Result<Fences> {
        let text = dir.read(FILE)?;
        if let Some(text) = &text {
            dir.reserve(FILE, text);
        }
        let last = text.as_deref().map(parse).transpose()?;
        let fences = Fences {
            dir,
            saving: Mutex::default(),
            shown: watch::Sender::new(Fencing { last, is_saved: true, heading }),
            orders: AtomicU64::new(0),
            is_ending: AtomicBool::new(false),
        };
        fences.settle(end);
        Ok(fences)
    }

    fn settle(&self, end: Option<TimelinePosition>) {
        let Some(fence) = self.now().in_force().cloned() else { return };
        let saved = match end {
            Some(end) if fence.is_open() => self.close(end).map(drop),
            Some(end) if end.tli > fence.timeline => self.pass(end.tli).map(drop),
            _ => Ok(()),
        };
        if let Err(error) = saved {
            tracing::warn!("could not save the fence in the data directory: {error}; will try again");
        }
        if let Some(fence) = self.now().in_force() {
            tracing::warn!(
                "the relay is fenced since {} by {}{}: {fence} is in force, only a newer timeline is followed",
                fence.since.to_text(),
                fence.by,
                because(&fence.reason)
            );
        }
    }

    /// What there is.
    pub fn now(&self) -> Fencing {
        self.shown.borrow().clone()
    }

    /// Watches it.
    pub fn watch(&self) -> watch::Receiver<Fencing> {
        self.shown.subscribe()
    }

    /// The fence that keeps a server on this timeline from being followed.
    pub fn against(&self, tli: TimelineId) -> Option<Fence> {
        self.shown.borrow().last.as_ref().filter(|fence| !fence.admits(tli)).cloned()
    }

    /// The newest timeline of the servers that were ever followed, where that is known.
    pub fn heading(&self) -> Option<TimelineId> {
        self.shown.borrow().heading
    }

    /// A server on this timeline is followed, and that was noted durably.
    pub fn heads_for(&self, tli: TimelineId) {
        self.shown.send_if_modified(|shown| {
            let is_news = shown.heading.is_none_or(|heading| heading < tli);
            let was_passing = shown.passing().is_some();
            shown.heading = shown.heading.max(Some(tli));
            if let Some(fence) = shown.in_force().filter(|_| !was_passing && shown.passing().is_some()) {
                tracing::info!("{fence} is being passed: a server on timeline {tli} is followed");
            }
            is_news
        });
    }

    /// What was ordered up to now.
    pub fn orders(&self) -> OrdersSeen {
        let _shown = self.shown.borrow();
        OrdersSeen(self.orders.load(Ordering::Relaxed))
    }

    /// Orders a fence: it holds for the upstream side at once, and has to be [saved](Self::save). The same one again is the same
    /// one. The second value tells whether it is another than before.
    ///
    /// # Errors
    /// There is a better one.
    pub fn order(&self, order: Order, timeline: TimelineId) -> Result<(Fence, bool), FenceError> {
        let mut outcome = Err(FenceError::NoEpoch);
        self.shown.send_if_modified(|shown| {
            outcome = decide(shown, &order).map(|epoch| match epoch {
                Some(epoch) => (Fence::ordered(epoch, &order, shown.least(timeline)), true),
                None => (shown.last.clone().expect("it is in force"), false),
            });
            let Ok((fence, is_new)) = &outcome else { return false };
            self.orders.fetch_add(1, Ordering::Relaxed);
            if *is_new {
                shown.last = Some(fence.clone());
            } else if !self.is_ending.load(Ordering::Relaxed) {
                return false;
            }
            // What is on the disk may be its end by now.
            shown.is_saved = false;
            true
        });
        outcome
    }

    /// Saves what there is, unless it was. Waits for the disk.
    ///
    /// # Errors
    /// The disk does not take it; it holds all the same, until the relay ends.
    pub fn save(&self) -> io::Result<()> {
        let _saving = lock(&self.saving);
        self.save_now()
    }

    /// With `saving` held.
    fn save_now(&self) -> io::Result<()> {
        let Fencing { last: Some(fence), is_saved: false, .. } = self.now() else { return Ok(()) };
        self.dir.replace(FILE, &text_of(&fence)?)?;
        self.shown.send_if_modified(|shown| {
            shown.is_saved = shown.last.as_ref() == Some(&fence);
            shown.is_saved
        });
        Ok(())
    }

    /// The upstream's connection has ended and all that was received is durable: the end of it. Nothing if no fence waits for
    /// that. Waits for the disk.
    ///
    /// # Errors
    /// As [`save`](Self::save)'s.
    pub fn close(&self, end: TimelinePosition) -> io::Result<Option<Fence>> {
        let mut closed = None;
        self.shown.send_if_modified(|shown| {
            let timeline = shown.least(end.tli);
            let Some(fence) = shown.last.as_mut().filter(|fence| fence.is_open()) else { return false };
            fence.timeline = timeline;
            fence.position = Some(end.lsn);
            closed = Some(fence.clone());
            shown.is_saved = false;
            true
        });
        if let Some(fence) = &closed {
            tracing::warn!("{fence}: the upstream is left, all that was received is durable");
        }
        self.save().map(|()| closed)
    }

    /// Lifts the fence in force, if it is the one of this number where one is given, and was not ordered since `seen`; the last
    /// fence as it is then. Durable before it is shown. Waits for the disk.
    ///
    /// # Errors
    /// It is another one, was ordered again, or cannot be saved.
    pub fn lift(
        &self,
        epoch: Option<u64>,
        by: &FencedBy,
        seen: OrdersSeen,
    ) -> Result<Option<Fence>, FenceError> {
        let lifted = |fence: &Fence| Fence { state: FenceState::Lifted, ..fence.clone() };
        self.end(epoch, lifted, seen, |fence| tracing::warn!("{fence} was lifted by {by}"))
    }

    /// This timeline is followed: a fence before it is over. Waits for the disk.
    ///
    /// # Errors
    /// It could not be saved; it stays in force, which keeps nobody on a newer timeline away.
    pub fn pass(&self, to: TimelineId) -> io::Result<Option<Fence>> {
        let is_before =
            |fence: &Fence| fence.is_in_force() && fence.position.is_some() && to > fence.timeline;
        if !self.shown.borrow().last.as_ref().is_some_and(is_before) {
            return Ok(None);
        }
        let passed = |fence: &Fence| match is_before(fence) {
            true => Fence { state: FenceState::Passed { to }, ..fence.clone() },
            false => fence.clone(),
        };
        let tell = |fence: &Fence| tracing::info!("{fence} is passed: timeline {to} is followed");
        let ended = self.end(None, passed, self.orders(), tell);
        ended.map_err(|error| match error {
            FenceError::Io(error) => error,
            other => io::Error::other(other.to_string()),
        })
    }

    fn end(
        &self,
        epoch: Option<u64>,
        ended: impl Fn(&Fence) -> Fence,
        seen: OrdersSeen,
        tell: impl Fn(&Fence),
    ) -> Result<Option<Fence>, FenceError> {
        let _saving = lock(&self.saving);
        let mut last = None;
        self.shown.send_if_modified(|shown| {
            last = shown.last.clone();
            self.is_ending.store(true, Ordering::Relaxed);
            false
        });
        let result = self.end_now(epoch, ended, seen, tell, last);
        self.shown.send_if_modified(|_| {
            self.is_ending.store(false, Ordering::Relaxed);
            false
        });
        result
    }

    /// With `saving` held, and while it is known that the fence may be ending.
    fn end_now(
        &self,
        epoch: Option<u64>,
        ended: impl Fn(&Fence) -> Fence,
        seen: OrdersSeen,
        tell: impl Fn(&Fence),
        last: Option<Fence>,
    ) -> Result<Option<Fence>, FenceError> {
        let Some(fence) = last.as_ref().filter(|fence| fence.is_in_force()) else { return Ok(last) };
        let other = |epoch, there: &Fence| FenceError::Other { epoch, there: Box::new(there.clone()) };
        if let Some(epoch) = epoch.filter(|epoch| *epoch != fence.epoch) {
            return Err(other(epoch, fence));
        }
        let is_ordered_again = || self.orders.load(Ordering::Relaxed) != seen.0;
        let again = |there: &Fence| FenceError::Again { there: Box::new(there.clone()) };
        let ended = ended(fence);
        if ended == *fence {
            return Ok(last);
        }
        if is_ordered_again() {
            return Err(again(fence));
        }
        let replaced = text_of(&ended).and_then(|text| self.dir.replace(FILE, &text));
        let mut there = None;
        self.shown.send_if_modified(|shown| {
            // Another one may have been ordered meanwhile, or the same one again, and waits to be saved.
            let is_same = shown.last.as_ref().is_some_and(|there| there.epoch == ended.epoch);
            match is_same && !is_ordered_again() {
                true if replaced.is_ok() => (shown.last, shown.is_saved) = (Some(ended.clone()), true),
                true => return false,
                false => (there, shown.is_saved) = (shown.last.clone(), false),
            }
            true
        });
        if there.is_some() {
            // What the file says now is not so: whoever waits for the order may have been given up.
            self.save_now()?;
        }
        replaced?;
        match there {
            Some(there) if there.epoch == ended.epoch => Err(again(&there)),
            Some(there) => Err(other(ended.epoch, &there)),
            None => {
                tell(fence);
                Ok(Some(ended))
            }
        }
    }
}

/// ` (maintenance)`, or nothing.
pub fn because(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(" ({reason})") }
}

impl Fence {
    fn ordered(epoch: u64, order: &Order, timeline: TimelineId) -> Fence {
        // What is typed elsewhere is shown in logs and on terminals.
        let shown = order.reason.chars().map(|c| if c.is_control() { ' ' } else { c });
        Fence {
            epoch,
            state: FenceState::InForce,
            timeline,
            position: None,
            reason: shown.take(MOST_OF_REASON).collect::<String>().trim().to_owned(),
            since: PgTimestamp::from_system_time(std::time::SystemTime::now()),
            by: order.by.clone(),
        }
    }
}

/// The number of the fence that is to be; `None` if it is the one that is in force.
fn decide(shown: &Fencing, order: &Order) -> Result<Option<u64>, FenceError> {
    let Some(last) = &shown.last else { return Ok(Some(order.epoch.unwrap_or(1))) };
    let there = || Box::new(last.clone());
    let passing = shown.passing();
    match order.epoch {
        None if last.is_in_force() && passing.is_none() => Ok(None),
        None => match last.epoch.checked_add(1).filter(|epoch| i64::try_from(*epoch).is_ok()) {
            Some(next) => Ok(Some(next)),
            None => Err(FenceError::NoEpoch),
        },
        Some(epoch) if epoch > last.epoch => Ok(Some(epoch)),
        Some(epoch) if epoch < last.epoch => Err(FenceError::Lower { epoch, there: there() }),
        Some(_) => match passing {
            Some(to) => Err(FenceError::BeingPassed { there: there(), to }),
            None if last.is_in_force() => Ok(None),
            None => Err(FenceError::Used { there: there() }),
        },
    }
}

impl Store {
    /// The fence.
    pub fn fences(&self) -> &Fences {
        &self.fences
    }

    /// Orders a fence of what is held, see [`Fences::order`].
    ///
    /// # Errors
    /// There is a better one, or nothing to be fenced.
    pub fn order_fence(&self, order: Order) -> Result<(Fence, bool), FenceError> {
        let tip = self.tip().ok_or(FenceError::Empty)?;
        self.fences.order(order, tip.tli)
    }
}

#[derive(Serialize, Deserialize)]
struct Saved {
    epoch: u64,
    state: String,
    timeline: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    position: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    passed_to: Option<u32>,
    reason: String,
    /// Microseconds since 2000.
    since: i64,
    role: String,
    address: String,
}

fn text_of(fence: &Fence) -> io::Result<String> {
    let saved = Saved {
        epoch: fence.epoch,
        state: fence.state.as_str().to_owned(),
        timeline: fence.timeline.as_u32(),
        position: fence.position.map(|position| position.to_string()),
        passed_to: match fence.state {
            FenceState::Passed { to } => Some(to.as_u32()),
            FenceState::InForce | FenceState::Lifted => None,
        },
        reason: fence.reason.clone(),
        since: fence.since.as_micros(),
        role: fence.by.role.clone(),
        address: fence.by.address.clone(),
    };
    toml::to_string(&saved).map_err(io::Error::other)
}

/// Understands the file's content.
fn parse(text: &str) -> io::Result<Fence> {
    let bad = |what: String| io::Error::new(io::ErrorKind::InvalidData, format!("{FILE}: {what}"));
    let saved: Saved = toml::from_str(text).map_err(|error| bad(error.message().replace('\n', " ")))?;
    let fence = (|| {
        let timeline = TimelineId::new(saved.timeline)?;
        let state = match (saved.state.as_str(), saved.passed_to.and_then(TimelineId::new)) {
            ("in force", _) => FenceState::InForce,
            ("lifted", _) => FenceState::Lifted,
            ("passed", Some(to)) => FenceState::Passed { to },
            _ => return None,
        };
        let position = match &saved.position {
            Some(text) => Some(text.parse().ok()?),
            None => None,
        };
        let by = FencedBy { role: saved.role, address: saved.address };
        let since = PgTimestamp::from_micros(saved.since);
        Some(Fence { epoch: saved.epoch, state, timeline, position, reason: saved.reason, since, by })
    })();
    fence.ok_or_else(|| bad("a state, a timeline or a position is none".to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Disk;
    use crate::disk::sim::SimDisk;

    fn open(disk: &SimDisk, end: Option<TimelinePosition>) -> io::Result<Fences> {
        let disk: Arc<dyn Disk> = Arc::new(disk.clone());
        let dir = DataDir::lock(disk, std::path::Path::new("/relay")).map_err(io::Error::other)?;
        Fences::load(Arc::new(dir), end, None)
    }

    /// A start of a relay that has followed a server on this timeline.
    fn open_headed(disk: &SimDisk, end: TimelinePosition, heading: u32) -> Fences {
        let disk: Arc<dyn Disk> = Arc::new(disk.clone());
        let dir = DataDir::lock(disk, std::path::Path::new("/relay")).unwrap();
        Fences::load(Arc::new(dir), Some(end), Some(tli(heading))).unwrap()
    }

    fn tli(number: u32) -> TimelineId {
        TimelineId::new(number).unwrap()
    }

    fn at(tli: u32, lsn: u64) -> TimelinePosition {
        TimelinePosition { tli: TimelineId::new(tli).unwrap(), lsn: Lsn::new(lsn) }
    }

    fn order(epoch: Option<u64>) -> Order {
        Order { epoch, reason: "be\nsafe ".to_owned(), by: by() }
    }

    fn by() -> FencedBy {
        FencedBy { role: "admin".to_owned(), address: "192.0.2.1".to_owned() }
    }

    /// Orders and closes one.
    fn fence(fences: &Fences, epoch: Option<u64>) -> Fence {
        let (fence, _) = fences.order(order(epoch), tli(1)).unwrap();
        fences.save().unwrap();
        fences.close(at(1, 500)).unwrap();
        assert!(fences.now().is_settled(fence.epoch));
        fences.now().last.unwrap()
    }

    fn refused(fences: &Fences, epoch: u64) -> String {
        fences.order(order(Some(epoch)), tli(1)).unwrap_err().to_string()
    }

    #[test]
    fn the_highest_epoch_wins_and_the_same_one_is_the_same() {
        let fences = open(&SimDisk::new(), None).unwrap();
        assert_eq!(fences.now(), Fencing { last: None, is_saved: true, heading: None });
        assert_eq!(fences.now().state(), "none");
        let first = fence(&fences, None);
        assert_eq!((first.epoch, first.position, first.reason.as_str()), (1, Some(Lsn::new(500)), "be safe"));
        for again in [None, Some(1)] {
            assert_eq!(fences.order(order(again), tli(1)).unwrap(), (first.clone(), false));
        }
        let second = fence(&fences, Some(7));
        assert_eq!(second.epoch, 7);
        assert_eq!(
            refused(&fences, 6),
            "epoch 6 is lower than that of the fence of epoch 7 (timeline 1 at 0/1F4), which is in force"
        );
        let other = fences.lift(Some(6), &by(), fences.orders()).unwrap_err().to_string();
        assert!(other.ends_with("is in force, and not one of epoch 6"), "{other}");
        let lifted = fences.lift(Some(7), &by(), fences.orders()).unwrap().unwrap();
        assert_eq!((lifted.state, fences.now().in_force()), (FenceState::Lifted, None));
        assert_eq!(fences.lift(None, &by(), fences.orders()).unwrap(), Some(lifted));
        assert!(refused(&fences, 7).ends_with("is lifted already; the next one takes a higher epoch"));
        assert_eq!(fence(&fences, None).epoch, 8);
    }

    #[test]
    fn only_a_newer_timeline_is_admitted_and_then_it_is_passed() {
        let fences = open(&SimDisk::new(), None).unwrap();
        assert_eq!(fences.against(tli(1)), None);
        fences.order(order(None), tli(1)).unwrap();
        // Before it is closed nobody knows what is newer.
        assert!(fences.against(tli(9)).is_some());
        assert_eq!(fences.pass(tli(9)).unwrap(), None);
        // On the way to a timeline that is newer than the one that is received.
        fences.heads_for(tli(3));
        fences.close(at(1, 500)).unwrap();
        let against = |number| fences.against(tli(number)).is_some();
        assert_eq!([1, 2, 3, 4].map(against), [true, true, true, false]);
        assert_eq!(fences.pass(tli(3)).unwrap(), None);
        let passed = fences.pass(tli(4)).unwrap().unwrap();
        assert_eq!(passed.state, FenceState::Passed { to: tli(4) });
        assert!(!against(1));
        assert_eq!(fences.pass(tli(5)).unwrap(), None);
        assert_eq!(fence(&fences, None).epoch, 2);
    }

    /// It streams what is missing up to its own timeline.
    #[test]
    fn a_fence_that_is_being_passed_is_no_answer_and_the_next_one_keeps_the_newer_server_away() {
        let fences = open(&SimDisk::new(), None).unwrap();
        let first = fence(&fences, Some(7));
        assert_eq!((fences.now().passing(), fences.now().state()), (None, "in force"));
        fences.heads_for(tli(2));
        assert_eq!((fences.now().passing(), fences.now().state()), (Some(tli(2)), "being passed"));
        // The old primary is kept away all the same.
        assert!(fences.against(tli(1)).is_some() && fences.against(tli(2)).is_none());
        let said = "the fence of epoch 7 (timeline 1 at 0/1F4) is being passed: a server on timeline 2 is followed already; the \
                    next one takes a higher epoch";
        assert_eq!(refused(&fences, 7), said);
        assert!(refused(&fences, 6).starts_with("epoch 6 is lower"));
        let (second, is_new) = fences.order(order(None), tli(1)).unwrap();
        assert!(is_new && second.is_open() && second != first);
        assert_eq!((second.epoch, second.timeline), (8, tli(2)));
        fences.close(at(1, 600)).unwrap();
        assert_eq!(fences.now().state(), "in force");
        assert!(fences.against(tli(2)).is_some() && fences.against(tli(3)).is_none());
        assert_eq!(fences.order(order(None), tli(1)).unwrap(), (fences.now().last.unwrap(), false));
    }

    #[test]
    fn the_timeline_of_a_fence_never_falls() {
        let disk = SimDisk::new();
        let fences = open(&disk, None).unwrap();
        fences.heads_for(tli(2));
        let first = fence(&fences, None);
        assert_eq!(first.timeline, tli(2));
        drop(fences);
        // Nothing but the fence itself tells it now.
        let fences = open(&disk, Some(at(1, 500))).unwrap();
        assert_eq!(fence(&fences, Some(2)).timeline, tli(2));
        fences.lift(None, &by(), fences.orders()).unwrap();
        let last = fences.order(order(None), tli(1)).unwrap().0;
        assert_eq!((last.epoch, last.timeline), (3, tli(2)));
    }

    #[test]
    fn a_start_closes_a_fence_with_the_timeline_that_was_gone_to() {
        let disk = SimDisk::new();
        let fences = open(&disk, None).unwrap();
        fences.order(order(None), tli(1)).unwrap();
        fences.save().unwrap();
        drop(fences);
        let fences = open_headed(&disk.crash(1), at(1, 700), 2);
        assert_eq!(fences.now().last.map(|fence| fence.timeline), Some(tli(2)));
        assert!(fences.now().is_settled(1) && fences.now().passing().is_none());
        assert!(fences.against(tli(2)).is_some());
    }

    #[test]
    fn it_survives_and_a_start_closes_it() {
        let disk = SimDisk::new();
        let before = fence(&open(&disk, None).unwrap(), Some(3));
        assert_eq!(open(&disk, Some(at(1, 900))).unwrap().now().last, Some(before.clone()));
        // A newer timeline was followed, and a crash came before that was noted.
        let passed = open(&disk, Some(at(2, 900))).unwrap().now();
        assert_eq!(passed.last.map(|fence| fence.state), Some(FenceState::Passed { to: tli(2) }));

        let fences = open(&disk, None).unwrap();
        fences.order(order(None), tli(1)).unwrap();
        fences.save().unwrap();
        drop(fences);
        let closed = open(&disk.crash(1), Some(at(2, 700))).unwrap().now();
        let fence = closed.last.clone().unwrap();
        assert_eq!((fence.epoch, fence.timeline, fence.position), (4, tli(2), Some(Lsn::new(700))));
        assert!(closed.is_settled(4));
    }

    /// The power goes at each operation of: order, save, close; then of: lift.
    #[test]
    fn a_cut_at_any_operation_leaves_what_was_told_or_what_was_under_way() {
        for operation in 1.. {
            let disk = SimDisk::new();
            let fences = open(&disk, None).unwrap();
            let before = disk.operations();
            disk.die_at(before + operation);
            let ordered = fences.order(order(None), tli(1)).unwrap().0;
            let is_saved = fences.save().is_ok();
            let is_closed = fences.close(at(1, 500)).is_ok();
            let is_lifted = fences.lift(None, &by(), fences.orders()).is_ok();
            let was_cut = disk.is_dead();
            drop(fences);
            let now = open(&disk.crash(operation), Some(at(1, 500))).unwrap().now();
            let found = now.last.as_ref();
            if is_saved {
                assert_eq!(found.map(|fence| fence.epoch), Some(ordered.epoch), "{operation}");
            }
            if let Some(found) = found {
                assert_eq!(found.position, Some(Lsn::new(500)), "{operation}");
                let may_be_lifted = is_closed;
                assert!(found.is_in_force() != is_lifted || may_be_lifted, "{operation}");
                assert!(may_be_lifted || found.is_in_force(), "{operation}");
            }
            if is_lifted {
                assert_eq!(found.map(|fence| fence.state), Some(FenceState::Lifted));
            }
            if !was_cut {
                break;
            }
        }
    }

    #[test]
    fn on_a_disk_that_fails_it_holds_and_is_saved_later() {
        let disk = SimDisk::new();
        let fences = open(&disk, None).unwrap();
        fences.order(order(None), tli(1)).unwrap();
        disk.fail_at(disk.operations() + 1, libc::EIO);
        assert!(fences.save().is_err());
        assert!(fences.against(tli(1)).is_some() && !fences.now().is_saved);
        disk.fail_at(disk.operations() + 1, libc::EIO);
        assert!(fences.close(at(1, 500)).is_err());
        assert!(!fences.now().is_settled(1));
        fences.save().unwrap();
        assert!(fences.now().is_settled(1));
        // What cannot be saved is not lifted.
        disk.fail_at(disk.operations() + 1, libc::EIO);
        assert!(matches!(fences.lift(None, &by(), fences.orders()), Err(FenceError::Io(_))));
        assert!(fences.against(tli(1)).is_some());
    }

    /// Whoever was told that it is in force relies on that, whatever becomes of an order to lift it of before.
    #[test]
    fn who_orders_it_again_is_not_undone_by_an_older_order_to_lift_it() {
        let disk = SimDisk::for_threads();
        let fences = open(&disk, None).unwrap();
        let there = fence(&fences, None);
        // It was on its way when the other one came.
        let seen = fences.orders();
        assert!(!fences.order(order(None), tli(1)).unwrap().1);
        let error = fences.lift(None, &by(), seen).unwrap_err();
        assert!(matches!(error, FenceError::Again { .. }), "{error}");
        assert!(fences.now().is_settled(1));
        // It hangs in the disk, and nobody waits for it any more.
        disk.hang();
        std::thread::scope(|scope| {
            let lifting = scope.spawn(|| fences.lift(None, &by(), fences.orders()));
            while !fences.is_ending.load(Ordering::Relaxed) {
                assert!(!lifting.is_finished());
                std::thread::yield_now();
            }
            assert_eq!(fences.order(order(Some(1)), tli(1)).unwrap(), (there.clone(), false));
            assert!(!fences.now().is_settled(1), "the file may say that it is lifted");
            disk.release();
            assert!(matches!(lifting.join().unwrap(), Err(FenceError::Again { .. })));
        });
        assert!(fences.now().is_settled(1));
        drop(fences);
        assert_eq!(open(&disk, None).unwrap().now().last, Some(there));
    }

    #[test]
    fn a_fence_that_was_lifted_is_not_settled() {
        let fences = open(&SimDisk::new(), None).unwrap();
        fence(&fences, None);
        fences.lift(None, &by(), fences.orders()).unwrap();
        assert!(!fences.now().is_settled(1));
    }

    #[test]
    fn what_cannot_be_understood_is_an_error() {
        let disk = SimDisk::new();
        let fences = open(&disk, None).unwrap();
        let good = text_of(&fence(&fences, None)).unwrap();
        let bad = |from: &str, to: &str| good.replace(from, to);
        for text in [
            bad("in force", "perhaps"),
            bad("in force", "passed"),
            bad("timeline = 1", "timeline = 0"),
            bad("0/1F4", "here"),
            String::new(),
        ] {
            fences.dir.replace(FILE, &text).unwrap();
            assert!(parse(&text).is_err(), "{text}");
        }
        drop(fences);
        assert!(open(&disk, None).is_err());
    }
}
