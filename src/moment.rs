//! Points in time as people and programs are shown them, in UTC, and how long ago something was.
//!
//! The system's clock may be set while the relay runs. So what only this process remembers is noted by a clock that nobody sets
//! ([`Past`]), and shown as the system's clock would have had it as it is set now ([`Clock`]): differences between what is shown
//! at one moment are what has passed, whatever happened to the clock in between. Lines of the log, and what is kept in files,
//! have the time that the clock told then.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Microseconds since 1970, UTC. What is before that is 1970. Shown as PostgreSQL shows a `timestamptz` in ISO format; in
/// JSON as in RFC 3339.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Moment(u64);

/// The text is no point in time as [`Moment`] writes it in JSON.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not a time like 2026-01-31T23:59:59.123456Z")]
pub struct ParseMomentError;

impl Moment {
    /// Now, by the system's clock.
    pub fn now() -> Moment {
        SystemTime::now().into()
    }

    /// From what [`as_micros`](Self::as_micros) has told; 0 stands for "never".
    pub fn from_micros(micros: u64) -> Option<Moment> {
        (micros != 0).then_some(Moment(micros))
    }

    /// Microseconds since 1970.
    pub fn as_micros(self) -> u64 {
        self.0
    }

    /// Seconds since 1970.
    pub fn as_seconds(self) -> f64 {
        self.0 as f64 / 1e6
    }

    /// How long after the other one it is; nothing if the clock was set back.
    pub fn since(self, earlier: Moment) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }

    fn text(self, between: char, zone: &str) -> String {
        let (days, seconds) = (self.0 / 1_000_000 / 86_400, self.0 / 1_000_000 % 86_400);
        let (year, month, day) = date(days);
        let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        let fraction = fraction((self.0 % 1_000_000) as u32);
        format!("{year:04}-{month:02}-{day:02}{between}{hour:02}:{minute:02}:{second:02}{fraction}{zone}")
    }
}

/// When something was, by a clock that nobody sets: microseconds from when the process first asked. Never 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Past(i64);

/// How the system's clock was set against that one when it was looked at. Takes part in no lock, and costs two looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Clock {
    now: Past,
    /// What the system's clock told, or would have told, when the other one was at 0; wraps.
    offset: u64,
}

/// Where [`Past`] counts from.
static BEGINNING: OnceLock<Duration> = OnceLock::new();
/// The offset that is shown with: the same until the clock is set, so that what is shown does not tremble. 0 before the first look.
static OFFSET: AtomicU64 = AtomicU64::new(0);
/// Who differs by less was not set, but looked at a little later than the other one.
const SET: u64 = 100_000;
/// A look at both clocks that took longer tells too little.
const QUICK: i64 = 10_000;

/// How long ago the machine was started. Nobody sets this clock, and it goes on while the machine sleeps, which
/// [`Instant`](std::time::Instant) does not: what was before would move towards now.
pub fn since_boot() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}

impl Past {
    /// Now.
    pub fn now() -> Past {
        let beginning = *BEGINNING.get_or_init(since_boot);
        let elapsed = since_boot().saturating_sub(beginning);
        Past(i64::try_from(elapsed.as_micros()).unwrap_or(i64::MAX).max(1))
    }

    /// From what [`to_bits`](Self::to_bits) has told; 0 stands for "never".
    pub fn from_bits(bits: u64) -> Option<Past> {
        (bits != 0).then_some(Past(bits as i64))
    }

    /// For an atomic.
    pub fn to_bits(self) -> u64 {
        self.0 as u64
    }

    /// As the system's clock would have had it as it is set now.
    pub fn moment(self) -> Moment {
        Clock::now().moment(self)
    }

    /// How long ago it was.
    pub fn elapsed(self) -> Duration {
        let micros = Past::now().0.saturating_sub(self.0);
        Duration::from_micros(u64::try_from(micros).unwrap_or_default())
    }
}

/// By the system's clock as it is set now.
impl From<SystemTime> for Past {
    fn from(time: SystemTime) -> Past {
        Past(Moment::from(time).0.wrapping_sub(Clock::now().offset) as i64)
    }
}

impl Clock {
    /// Looks at both.
    pub fn now() -> Clock {
        let before = Past::now();
        let wall = Moment::now();
        Clock::look(&OFFSET, before, wall, Past::now())
    }

    /// The system's clock told `wall` between two looks at the other one.
    fn look(known: &AtomicU64, before: Past, wall: Moment, now: Past) -> Clock {
        let (found, offset) = (wall.0.wrapping_sub(before.to_bits()), known.load(Ordering::Relaxed));
        let differs = (found.wrapping_sub(offset) as i64).unsigned_abs();
        let is_sure = now.0.saturating_sub(before.0) <= QUICK;
        if offset != 0 && (differs < SET || !is_sure) {
            return Clock { now, offset };
        }
        if is_sure {
            known.store(found, Ordering::Relaxed);
        }
        Clock { now, offset: found }
    }

    /// When it was looked at.
    pub fn at(self) -> Moment {
        self.moment(self.now)
    }

    /// As the system's clock would have had it as it was set then.
    pub fn moment(self, past: Past) -> Moment {
        Moment(self.offset.wrapping_add(past.to_bits()))
    }
}

impl From<SystemTime> for Moment {
    fn from(time: SystemTime) -> Moment {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Moment(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
    }
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text(' ', "+00"))
    }
}

impl FromStr for Moment {
    type Err = ParseMomentError;

    fn from_str(text: &str) -> Result<Moment, ParseMomentError> {
        let bad = ParseMomentError;
        let number = |from: usize, to: usize| -> Result<u64, ParseMomentError> {
            text.get(from..to).and_then(|digits| digits.parse().ok()).ok_or(bad)
        };
        let separators = [(4, "-"), (7, "-"), (10, "T"), (13, ":"), (16, ":")];
        if separators.iter().any(|(at, sign)| text.get(*at..at + 1) != Some(*sign)) {
            return Err(bad);
        }
        let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
        let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
        let fraction = text.get(19..).and_then(|rest| rest.strip_suffix('Z')).ok_or(bad)?;
        let micros = match fraction.strip_prefix('.') {
            None if fraction.is_empty() => 0,
            Some(digits) if (1..=6).contains(&digits.len()) => {
                format!("{digits:0<6}").parse().map_err(|_| bad)?
            }
            _ => return Err(bad),
        };
        let in_range = (1970..=9999).contains(&year) && (1..=12).contains(&month) && (1..=31).contains(&day);
        if !in_range || hour > 23 || minute > 59 || second > 60 {
            return Err(bad);
        }
        let seconds = days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second;
        Ok(Moment(seconds * 1_000_000 + micros))
    }
}

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.text('T', "Z"))
    }
}

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Moment, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// `hh:mm:ss` with microseconds where there are any; hours may be many.
pub(crate) fn interval(time: Duration) -> String {
    let seconds = time.as_secs();
    let whole = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    whole + &fraction(time.subsec_micros())
}

/// `.123`, without zeros at the end; nothing for none.
fn fraction(micros: u32) -> String {
    match micros {
        0 => String::new(),
        _ => format!(".{micros:06}").trim_end_matches('0').to_owned(),
    }
}

const DAYS_IN_400_YEARS: u64 = 146_097;
const DAYS_FROM_MARCH_OF_YEAR_0: u64 = 719_468;

/// The date so many days after 1970-01-01, in the Gregorian calendar: counted in years that begin in March, whose
/// leap day is the last one.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + DAYS_FROM_MARCH_OF_YEAR_0;
    let (era, day) = (days / DAYS_IN_400_YEARS, days % DAYS_IN_400_YEARS);
    let year = (day - day / 1460 + day / 36_524 - day / (DAYS_IN_400_YEARS - 1)) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + next, month, day)
}

/// The way back: days from 1970-01-01 to a date after it.
fn days(year: u64, month: u64, day: u64) -> u64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, of_era) = (year / 400, year % 400);
    let day_of_year = (153 * month + 2) / 5 + day - 1;
    let day_of_era = of_era * 365 + of_era / 4 - of_era / 100 + day_of_year;
    era * DAYS_IN_400_YEARS + day_of_era - DAYS_FROM_MARCH_OF_YEAR_0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let check = |seconds: u64, micros: u64, expected: &str| {
            let moment = Moment(seconds * 1_000_000 + micros);
            assert_eq!(moment.to_string(), expected);
            let json = serde_json::to_string(&moment).unwrap();
            assert_eq!(serde_json::from_str::<Moment>(&json).unwrap(), moment, "{json}");
        };
        check(0, 0, "1970-01-01 00:00:00+00");
        check(951_782_399, 999_999, "2000-02-28 23:59:59.999999+00");
        check(951_868_799, 0, "2000-02-29 23:59:59+00");
        check(1_709_164_800, 500_000, "2024-02-29 00:00:00.5+00");
        check(4_107_542_400, 0, "2100-03-01 00:00:00+00");
    }

    #[test]
    fn a_clock_that_is_set_changes_when_something_was_and_not_how_long_ago() {
        let (known, begun) = (AtomicU64::new(0), Past(1_000_000));
        let look = |wall: u64, at: i64| Clock::look(&known, Past(at), Moment(wall), Past(at + 5));
        let failing = Past(3_000_000);
        let clock = look(1_700_000_000_000_000, 5_000_000);
        assert_eq!(clock.at().since(clock.moment(failing)), Duration::from_micros(2_000_005));
        let shown = clock.moment(failing);
        // A look that was a little late shows the same.
        assert_eq!(look(1_700_000_001_000_900, 6_000_000).moment(failing), shown);
        // An hour forward, and ten years back.
        for wall in [1_700_003_602_000_000, 1_400_000_000_000_000] {
            let clock = look(wall, 7_000_000);
            assert_eq!(clock.at().0, wall + 5);
            assert_eq!(clock.at().since(clock.moment(failing)), Duration::from_micros(4_000_005));
            assert_eq!(clock.moment(failing).since(clock.moment(begun)), Duration::from_secs(2));
        }
    }

    #[test]
    fn a_look_that_was_interrupted_is_no_clock_that_was_set() {
        let known = AtomicU64::new(0);
        let first = Clock::look(&known, Past(10), Moment(1_000_000_010), Past(12));
        let slow = Clock::look(&known, Past(20), Moment(1_000_500_020), Past(500_030));
        assert_eq!(slow.moment(Past(10)), first.moment(Past(10)));
    }

    #[test]
    fn what_is_past_is_now_by_the_systems_clock() {
        let before = Moment::now();
        let moment = Past::now().moment();
        assert!(
            moment.since(before) < Duration::from_secs(10) && before.since(moment) < Duration::from_secs(1)
        );
        assert_eq!(Past::from_bits(0), None);
        assert_eq!(Past::from(SystemTime::UNIX_EPOCH).moment(), Moment(0));
    }

    /// CLOCK_BOOTTIME is what `/proc/uptime` tells.
    #[test]
    fn the_clock_that_nobody_sets_is_the_one_that_goes_on_in_sleep() {
        let uptime = || -> f64 {
            let text = std::fs::read_to_string("/proc/uptime").unwrap();
            text.split_whitespace().next().unwrap().parse().unwrap()
        };
        let (before, clock, after) = (uptime(), since_boot().as_secs_f64(), uptime());
        // It tells hundredths.
        assert!(before - 0.02 <= clock && clock <= after + 0.02, "{before} {clock} {after}");
        let (past, boot) = (Past::now(), since_boot());
        let beginning = *BEGINNING.get().unwrap();
        let told = Duration::from_micros(past.to_bits());
        assert!(beginning + told <= boot + Duration::from_micros(1), "{beginning:?} {told:?} {boot:?}");
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "2026-01-31",
            "2026-01-31 00:00:00Z",
            "2026-13-31T00:00:00Z",
            "2026-01-31T00:00:00.Z",
            "2026-01-31T00:00:00.1234567Z",
        ] {
            assert_eq!(text.parse::<Moment>(), Err(ParseMomentError), "{text}");
        }
        let text: Result<Moment, _> = "1969-12-31T00:00:00Z".parse();
        assert_eq!(text, Err(ParseMomentError));
    }
}
