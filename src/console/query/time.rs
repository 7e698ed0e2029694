//! Points in time and intervals: reading, writing, calculating (PostgreSQL: `timestamp.c`, `datetime.c`).

use std::cmp::Ordering;
use std::time::SystemTime;

pub(super) const SECOND: i64 = 1_000_000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;

/// Days from 0000-03-01 to 1970-01-01.
const DAYS_TO_1970: i64 = 719_468;

/// Microseconds since 1970, in UTC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Timestamp(pub(super) i64);

/// Months, days and microseconds, which are not the same everywhere.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Interval {
    pub(super) months: i32,
    pub(super) days: i32,
    pub(super) micros: i64,
}

/// What a point in time is made of.
pub(super) struct Fields {
    pub(super) year: i64,
    pub(super) month: i64,
    pub(super) day: i64,
    /// Microseconds of the day.
    pub(super) of_day: i64,
    /// Days since 1970.
    pub(super) days: i64,
}

impl Timestamp {
    pub(super) fn now() -> Timestamp {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Timestamp(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }

    /// `2026-12-01 10:20:30.5+00`; without a zone it is UTC.
    pub(super) fn parse(text: &str) -> Option<Timestamp> {
        let text = text.trim_ascii();
        if text.eq_ignore_ascii_case("epoch") {
            return Some(Timestamp(0));
        }
        let (date, rest) = text.split_at_checked(10)?;
        let mut parts = date.split('-');
        let mut part = |digits: usize| parts.next().filter(|it| it.len() == digits).and_then(number);
        let (year, month, day) = (part(4)?, part(2)?, part(2)?);
        if year == 0 || !(1..=12).contains(&month) || !(1..=days_of(year, month)).contains(&day) {
            return None;
        }
        let midnight = days_since_1970(year, month, day) * DAY;
        let rest = rest.strip_prefix(['T', 't']).unwrap_or(rest).trim_ascii_start();
        let end = rest.find(['+', '-', 'Z', 'z', 'U', 'u', ' ']).unwrap_or(rest.len());
        let (time, zone) = rest.split_at(end);
        let of_day = if time.is_empty() { 0 } else { clock(time).filter(|time| *time <= DAY)? };
        Some(Timestamp(midnight + of_day - offset(zone.trim_ascii())?))
    }

    pub(super) fn fields(self) -> Fields {
        let (days, of_day) = (self.0.div_euclid(DAY), self.0.rem_euclid(DAY));
        // In years that begin in March, so that a leap day is the last one.
        let since = days + DAYS_TO_1970;
        let (era, of_era) = (since.div_euclid(146_097), since.rem_euclid(146_097));
        let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year + year / 4 - year / 100);
        let month = (5 * of_year + 2) / 153;
        let day = of_year - (153 * month + 2) / 5 + 1;
        let (month, next) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
        Fields { year: era * 400 + year + next, month, day, of_day, days }
    }

    /// As the server's output function writes it in UTC.
    pub(super) fn text(self) -> String {
        let Fields { year, month, day, of_day, .. } = self.fields();
        let (shown, era) = if year > 0 { (year, "") } else { (1 - year, " BC") };
        format!("{shown:04}-{month:02}-{day:02} {}+00{era}", clock_text(of_day))
    }

    /// `None` where PostgreSQL says that it is out of range.
    fn in_range(micros: i64) -> Option<Timestamp> {
        // From 4714 BC on, to the end of the numbers, in the year 294247.
        let is_fine = micros >= -210_866_803_200 * SECOND;
        is_fine.then_some(Timestamp(micros))
    }

    /// PG: `timestamptz_pl_interval`
    pub(super) fn add(self, interval: Interval) -> Option<Timestamp> {
        let mut micros = self.0;
        if interval.months != 0 {
            let Fields { year, month, day, of_day, .. } = self.fields();
            let months = year * 12 + (month - 1) + i64::from(interval.months);
            let (year, month) = (months.div_euclid(12), months.rem_euclid(12) + 1);
            let day = day.min(days_of(year, month));
            micros = days_since_1970(year, month, day).checked_mul(DAY)?.checked_add(of_day)?;
        }
        let days = i64::from(interval.days).checked_mul(DAY)?;
        Timestamp::in_range(micros.checked_add(days)?.checked_add(interval.micros)?)
    }

    /// PG: `timestamp_mi`: in days and less.
    pub(super) fn since(self, other: Timestamp) -> Interval {
        let micros = self.0.saturating_sub(other.0);
        let days = i32::try_from(micros / DAY).unwrap_or(i32::MAX);
        Interval { months: 0, days, micros: micros % DAY }
    }

    /// The start of the hour, day, or whatever it is in (PG: `timestamptz_trunc`).
    pub(super) fn trunc(self, field: &str) -> Option<Timestamp> {
        let Fields { year, month, days, of_day, .. } = self.fields();
        let first = |year: i64, month: i64| days_since_1970(year, month, 1) * DAY;
        let micros = match field {
            "microsecond" | "microseconds" => self.0,
            "millisecond" | "milliseconds" => self.0 - self.0.rem_euclid(1000),
            "second" => self.0 - self.0.rem_euclid(SECOND),
            "minute" => self.0 - self.0.rem_euclid(MINUTE),
            "hour" => self.0 - self.0.rem_euclid(HOUR),
            "day" => self.0 - of_day,
            // 1970-01-01 was a Thursday.
            "week" => (days - (days + 3).rem_euclid(7)) * DAY,
            "month" => first(year, month),
            "quarter" => first(year, (month - 1) / 3 * 3 + 1),
            "year" => first(year, 1),
            _ => return None,
        };
        Some(Timestamp(micros))
    }
}

impl Interval {
    pub(super) fn of_micros(micros: i64) -> Interval {
        Interval { micros, ..Interval::default() }
    }

    /// `1 day 02:03:04`, `5 minutes ago`, `1.5 hours`.
    pub(super) fn parse(text: &str) -> Option<Interval> {
        let mut words = text.split_ascii_whitespace().peekable();
        words.peek()?;
        let mut total = Interval::default();
        while let Some(word) = words.next() {
            if word.eq_ignore_ascii_case("ago") && words.peek().is_none() {
                return total.neg();
            }
            let (is_negative, plain) = match word.strip_prefix('-') {
                Some(plain) => (true, plain),
                None => (false, word.strip_prefix('+').unwrap_or(word)),
            };
            let part = if plain.contains(':') {
                Interval::of_micros(clock(plain)?)
            } else {
                // The unit may stand at the number.
                let digits = plain.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(plain.len());
                let (number, unit) = plain.split_at(digits);
                let unit = if unit.is_empty() { words.next().unwrap_or("s") } else { unit };
                Interval::of(number, unit)?
            };
            total = total.add(if is_negative { part.neg()? } else { part })?;
        }
        Some(total)
    }

    fn of(number: &str, unit: &str) -> Option<Interval> {
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let whole: i64 = if whole.is_empty() && !fraction.is_empty() { 0 } else { number_of(whole)? };
        let fraction = if fraction.is_empty() { 0.0 } else { format!("0.{fraction}").parse::<f64>().ok()? };
        let small = |unit: i64| {
            let micros = whole.checked_mul(unit)?.checked_add((fraction * unit as f64).round() as i64)?;
            Some(Interval::of_micros(micros))
        };
        let days = |each: i64| {
            let rest = fraction * each as f64;
            let days = i32::try_from(whole.checked_mul(each)?.checked_add(rest.trunc() as i64)?).ok()?;
            Some(Interval { months: 0, days, micros: (rest.fract() * DAY as f64).round() as i64 })
        };
        let months = |each: i64| {
            let months = whole.checked_mul(each)?;
            match each {
                1 => {
                    let rest = fraction * 30.0;
                    let micros = (rest.fract() * DAY as f64).round() as i64;
                    Some(Interval { months: i32::try_from(months).ok()?, days: rest.trunc() as i32, micros })
                }
                _ => {
                    let months = months.checked_add((fraction * each as f64).round() as i64)?;
                    Some(Interval { months: i32::try_from(months).ok()?, ..Interval::default() })
                }
            }
        };
        match unit.to_ascii_lowercase().as_str() {
            "us" | "usec" | "usecs" | "microsecond" | "microseconds" => small(1),
            "ms" | "msec" | "msecs" | "millisecond" | "milliseconds" => small(1000),
            "s" | "sec" | "secs" | "second" | "seconds" => small(SECOND),
            "m" | "min" | "mins" | "minute" | "minutes" => small(MINUTE),
            "h" | "hr" | "hrs" | "hour" | "hours" => small(HOUR),
            "d" | "day" | "days" => days(1),
            "w" | "week" | "weeks" => days(7),
            "mon" | "mons" | "month" | "months" => months(1),
            "y" | "yr" | "yrs" | "year" | "years" => months(12),
            _ => None,
        }
    }

    pub(super) fn neg(self) -> Option<Interval> {
        let Interval { months, days, micros } = self;
        Some(Interval {
            months: months.checked_neg()?,
            days: days.checked_neg()?,
            micros: micros.checked_neg()?,
        })
    }

    pub(super) fn add(self, other: Interval) -> Option<Interval> {
        Some(Interval {
            months: self.months.checked_add(other.months)?,
            days: self.days.checked_add(other.days)?,
            micros: self.micros.checked_add(other.micros)?,
        })
    }

    /// What is no whole month becomes days, and what is no whole day hours (PG: `interval_mul`).
    pub(super) fn mul(self, by: f64) -> Option<Interval> {
        let months = f64::from(self.months) * by;
        let days = f64::from(self.days) * by;
        let rest_days = (months.fract() * 30.0 * 1e6).round() / 1e6;
        let of_day = (rest_days.fract() + days.fract()) * DAY as f64;
        let micros = (self.micros as f64).mul_add(by, of_day).round_ties_even();
        let whole = |value: f64| (value.abs() < 2_147_483_648.0).then_some(value.trunc() as i32);
        if micros.is_nan() || micros.abs() >= 9.2e18 {
            return None;
        }
        let days = whole(days)?.checked_add(whole(rest_days)?)?;
        Some(Interval { months: whole(months)?, days, micros: micros as i64 })
    }

    /// PG: `interval_cmp_value`
    fn size(self) -> i128 {
        let days = i128::from(self.months) * 30 + i128::from(self.days);
        days * i128::from(DAY) + i128::from(self.micros)
    }

    /// Microseconds as `extract(epoch …)` counts them.
    pub(super) fn epoch(self) -> i128 {
        let (years, months) = (i128::from(self.months / 12), i128::from(self.months % 12));
        let quarter_days = years * 1461 + (months * 30 + i128::from(self.days)) * 4;
        quarter_days * i128::from(DAY / 4) + i128::from(self.micros)
    }

    /// As in `IntervalStyle` `postgres` (PG: `EncodeInterval`).
    pub(super) fn text(self) -> String {
        let mut text = String::new();
        let mut was_negative = false;
        for (value, unit) in [(self.months / 12, "year"), (self.months % 12, "mon"), (self.days, "day")] {
            if value == 0 {
                continue;
            }
            let space = if text.is_empty() { "" } else { " " };
            let sign = if was_negative && value > 0 { "+" } else { "" };
            let plural = if value == 1 { "" } else { "s" };
            text += &format!("{space}{sign}{value} {unit}{plural}");
            was_negative = value < 0;
        }
        if text.is_empty() || self.micros != 0 {
            let sign = match self.micros {
                ..0 => "-",
                _ if was_negative => "+",
                _ => "",
            };
            let space = if text.is_empty() { "" } else { " " };
            text += &format!("{space}{sign}{}", clock_text_of(self.micros.unsigned_abs()));
        }
        text
    }

    /// A part of it, in microseconds of what it is (PG: `interval_part`).
    pub(super) fn field(self, field: &str) -> Option<(i128, u32)> {
        let of_hour = i128::from(self.micros % HOUR);
        Some(match field {
            "epoch" => (self.epoch(), 6),
            "microsecond" | "microseconds" => (i128::from(self.micros % MINUTE), 0),
            "millisecond" | "milliseconds" => (i128::from(self.micros % MINUTE), 3),
            "second" | "seconds" => (i128::from(self.micros % MINUTE), 6),
            "minute" | "minutes" => (of_hour / i128::from(MINUTE), 0),
            "hour" | "hours" => (i128::from(self.micros / HOUR), 0),
            "day" | "days" => (self.days.into(), 0),
            "month" | "months" => ((self.months % 12).into(), 0),
            "year" | "years" => ((self.months / 12).into(), 0),
            _ => return None,
        })
    }
}

impl Timestamp {
    /// A part of it: digits, and how many of them are behind the point (PG: `timestamptz_part`).
    pub(super) fn field(self, field: &str) -> Option<(i128, u32)> {
        let Fields { year, month, day, of_day, days } = self.fields();
        let whole = |value: i64| (i128::from(value), 0);
        Some(match field {
            "epoch" => (self.0.into(), 6),
            "microsecond" | "microseconds" => whole(of_day % MINUTE),
            "millisecond" | "milliseconds" => ((of_day % MINUTE).into(), 3),
            "second" | "seconds" => ((of_day % MINUTE).into(), 6),
            "minute" | "minutes" => whole(of_day % HOUR / MINUTE),
            "hour" | "hours" => whole(of_day / HOUR),
            "day" | "days" => whole(day),
            "dow" => whole((days + 4).rem_euclid(7)),
            "isodow" => whole((days + 3).rem_euclid(7) + 1),
            "doy" => whole(days - days_since_1970(year, 1, 1) + 1),
            "week" | "weeks" => whole(week(year, days)),
            "month" | "months" => whole(month),
            "quarter" => whole((month - 1) / 3 + 1),
            "year" | "years" => whole(if year > 0 { year } else { year - 1 }),
            "timezone" | "timezone_hour" | "timezone_minute" => whole(0),
            _ => return None,
        })
    }
}

impl Ord for Interval {
    fn cmp(&self, other: &Interval) -> Ordering {
        self.size().cmp(&other.size())
    }
}

impl PartialOrd for Interval {
    fn partial_cmp(&self, other: &Interval) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Interval {
    fn eq(&self, other: &Interval) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Interval {}

fn number(digits: &str) -> Option<i64> {
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

fn number_of(digits: &str) -> Option<i64> {
    if digits.is_empty() { None } else { number(digits) }
}

/// `hh:mm[:ss[.ffffff]]` in microseconds; hours may be many.
fn clock(text: &str) -> Option<i64> {
    let mut parts = text.split(':');
    let (hours, minutes) = (number_of(parts.next()?)?, number_of(parts.next()?)?);
    let third = parts.next().unwrap_or("0");
    let (seconds, fraction) = third.split_once('.').unwrap_or((third, ""));
    let seconds = number_of(seconds)?;
    if parts.next().is_some()
        || minutes > 59
        || seconds > 60
        || !fraction.bytes().all(|it| it.is_ascii_digit())
    {
        return None;
    }
    let micros: i64 = format!("{:0<6}", &fraction[..fraction.len().min(6)]).parse().ok()?;
    let seconds = hours.checked_mul(3600)?.checked_add(minutes * 60 + seconds)?;
    seconds.checked_mul(SECOND)?.checked_add(micros)
}

fn clock_text(of_day: i64) -> String {
    clock_text_of(of_day.unsigned_abs())
}

fn clock_text_of(micros: u64) -> String {
    let (seconds, micros) = (micros / 1_000_000, micros % 1_000_000);
    let whole = format!("{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60);
    if micros == 0 { whole } else { whole + format!(".{micros:06}").trim_end_matches('0') }
}

/// Of a zone, in microseconds.
fn offset(zone: &str) -> Option<i64> {
    if ["", "z", "utc", "gmt"].contains(&zone.to_ascii_lowercase().as_str()) {
        return Some(0);
    }
    let (is_negative, digits) = match zone.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, zone.strip_prefix('+')?),
    };
    let (hours, minutes) = match (digits.split_once(':'), digits.len()) {
        (Some((hours, minutes)), _) => (hours, minutes),
        (None, 4) => digits.split_at_checked(2)?,
        _ => (digits, "0"),
    };
    let (hours, minutes) = (number_of(hours)?, number_of(minutes)?);
    let offset = (hours <= 15 && minutes <= 59).then_some(hours * HOUR + minutes * MINUTE)?;
    Some(if is_negative { -offset } else { offset })
}

/// The number of the week, counted from the first that has four days in the year (ISO 8601).
fn week(year: i64, days: i64) -> i64 {
    // The Thursday decides whose week it is.
    let thursday = days - (days + 3).rem_euclid(7) + 3;
    let first = |year: i64| days_since_1970(year, 1, 1);
    let of = match () {
        () if thursday < first(year) => year - 1,
        () if thursday >= first(year + 1) => year + 1,
        () => year,
    };
    (thursday - first(of)) / 7 + 1
}

fn days_of(year: i64, month: i64) -> i64 {
    match month {
        4 | 6 | 9 | 11 => 30,
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        _ => 31,
    }
}

fn days_since_1970(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * month + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - DAYS_TO_1970
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a server of version 17 has them, in UTC.
    #[test]
    fn times_are_read_and_written_as_postgresql_does() {
        let check = |text: &str, expected: Option<&str>| {
            assert_eq!(Timestamp::parse(text).map(Timestamp::text).as_deref(), expected, "{text}");
        };
        check("2026-12-01 10:20:30.5+00", Some("2026-12-01 10:20:30.5+00"));
        check("2026-12-01T10:20:30Z", Some("2026-12-01 10:20:30+00"));
        check("2026-12-01 10:20:30+02", Some("2026-12-01 08:20:30+00"));
        check("2026-12-01 10:20-05:30", Some("2026-12-01 15:50:00+00"));
        check("2000-02-29", Some("2000-02-29 00:00:00+00"));
        check("1999-12-31 23:59:59.123456 UTC", Some("1999-12-31 23:59:59.123456+00"));
        check("epoch", Some("1970-01-01 00:00:00+00"));
        for bad in
            ["", "2026", "2026-13-01", "2026-02-30", "2026-12-01 25:00:00", "2026-12-01 x", "é2026-12-01"]
        {
            check(bad, None);
        }
    }

    #[test]
    fn intervals_are_read_and_written_as_postgresql_does() {
        let check = |text: &str, expected: Option<&str>| {
            assert_eq!(Interval::parse(text).map(Interval::text).as_deref(), expected, "{text}");
        };
        check("5 minutes", Some("00:05:00"));
        check("1 day 02:03:04.5", Some("1 day 02:03:04.5"));
        check("-1 day 02:03:04", Some("-1 days +02:03:04"));
        check("1.5 hours", Some("01:30:00"));
        check("1.5 days", Some("1 day 12:00:00"));
        check("25:00:00", Some("25:00:00"));
        check("14 mons -3 days", Some("1 year 2 mons -3 days"));
        check("2 weeks ago", Some("-14 days"));
        check("90s", Some("00:01:30"));
        check("10", Some("00:00:10"));
        check("0", Some("00:00:00"));
        for bad in ["", "day", "5 parsecs", "1:2:3:4", "ago x", "99999999999999999999 s"] {
            check(bad, None);
        }
    }

    #[test]
    fn months_are_as_long_as_they_are() {
        let add = |from: &str, interval: &str| {
            let from = Timestamp::parse(from).unwrap();
            from.add(Interval::parse(interval).unwrap()).unwrap().text()
        };
        assert_eq!(add("2024-01-31", "1 month"), "2024-02-29 00:00:00+00");
        assert_eq!(add("2024-03-31 12:00:00", "-1 month"), "2024-02-29 12:00:00+00");
        assert_eq!(add("2024-02-29", "1 year -1 day"), "2025-02-27 00:00:00+00");
        let since =
            |a: &str, b: &str| Timestamp::parse(a).unwrap().since(Timestamp::parse(b).unwrap()).text();
        assert_eq!(since("2024-03-02 01:00:00", "2024-02-29"), "2 days 01:00:00");
        assert_eq!(since("2024-02-29", "2024-03-02 01:00:00"), "-2 days -01:00:00");
        assert!(Timestamp(0).add(Interval { months: i32::MAX, days: 0, micros: 0 }).is_none());
    }
}
