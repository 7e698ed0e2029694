//! Sizes and times as PostgreSQL's configuration writes them (`guc.c`: `parse_int` with units).

use std::time::Duration;

/// `1GB`, `512MB`, `64kB`, `100B`; a bare number counts in megabytes, as `wal_keep_size` does.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let units = [("TB", 1u64 << 40), ("GB", 1 << 30), ("MB", 1 << 20), ("kB", 1 << 10), ("B", 1)];
    number_with_unit(text, &units, 1 << 20)
        .ok_or_else(|| format!("invalid size \"{text}\": expected a number with B, kB, MB, GB or TB"))
}

/// Like [`size`]; `-1` is no limit.
pub(super) fn size_or_unlimited(text: &str) -> Result<Option<u64>, String> {
    match text.trim() {
        "-1" => Ok(None),
        text => size(text).map(Some),
    }
}

/// Bytes per second: `100MB`; a bare number counts in kilobytes, as for `pg_basebackup --max-rate`.
pub(super) fn rate(text: &str) -> Result<u64, String> {
    let units =
        [("GB", 1u64 << 30), ("MB", 1 << 20), ("M", 1 << 20), ("kB", 1 << 10), ("k", 1 << 10), ("B", 1)];
    number_with_unit(text, &units, 1 << 10)
        .filter(|rate| *rate > 0)
        .ok_or_else(|| format!("invalid rate \"{text}\": expected a number above 0 with B, kB, MB or GB"))
}

/// `60s`, `1min`, `500ms`; a bare number counts in milliseconds, as `wal_sender_timeout` does.
pub(super) fn time(text: &str) -> Result<Duration, String> {
    let units = [("ms", 1), ("min", 60_000), ("s", 1000), ("h", 3_600_000), ("d", 86_400_000)];
    number_with_unit(text, &units, 1)
        .map(Duration::from_millis)
        .ok_or_else(|| format!("invalid time \"{text}\": expected a number with ms, s, min, h or d"))
}

/// Like [`time`]; `0` is "never", as for PostgreSQL's timeouts.
pub(crate) fn timeout(text: &str) -> Result<Option<Duration>, String> {
    time(text).map(|time| (!time.is_zero()).then_some(time))
}

fn number_with_unit(text: &str, units: &[(&str, u64)], bare: u64) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let factor = match unit.trim() {
        "" => bare,
        unit => units.iter().find(|(name, _)| *name == unit)?.1,
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("1GB", 1 << 30), ("64kB", 65536), ("16", 16 << 20), (" 2 MB ", 2 << 20), ("0", 0)]
        {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "GB", "1gb", "-1", "1.5GB", "99999999999TB", "1 0MB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
        assert_eq!(size_or_unlimited("-1"), Ok(None));
    }

    #[test]
    fn times() {
        assert_eq!(time("60s"), Ok(Duration::from_secs(60)));
        assert_eq!(time("1min"), Ok(Duration::from_secs(60)));
        assert_eq!(time("250"), Ok(Duration::from_millis(250)));
        assert_eq!(timeout("0"), Ok(None));
        for bad in ["", "s", "1m", "-1s", "1 hour"] {
            assert!(time(bad).is_err(), "{bad}");
        }
    }
}
