//! How long the relay can keep what a target does not take.

use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;
use walrelay_proto::Lsn;

/// How fast WAL has come since some moment.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    from: (Instant, Lsn),
}

impl Pace {
    pub(super) fn starting(now: Instant, end: Lsn) -> Pace {
        Pace { from: (now, end) }
    }

    /// When `room` more bytes will have come; `None` if none come.
    fn time_for(self, room: u64, now: Instant, end: Lsn) -> Option<Duration> {
        let (began, from) = self.from;
        let came = if end > from { end.since(from) } else { return None };
        let rate = came as f64 / now.duration_since(began).as_secs_f64().max(0.001);
        Duration::try_from_secs_f64(room as f64 / rate).ok()
    }
}

/// "its quota of 10 GB is reached in about 3 h", or the disk's end, or nothing where no end is in sight.
pub(super) fn outlook(pace: Pace, quota: Option<u64>, behind: u64, data_dir: &Path, end: Lsn) -> String {
    let now = Instant::now();
    let (room, what) = match quota {
        Some(quota) => (quota.saturating_sub(behind), format!("its quota of {}", bytes(quota))),
        None => match free_space(data_dir) {
            Some(free) => (free, format!("the disk's free space of {}", bytes(free))),
            None => return "without a quota".to_owned(),
        },
    };
    match pace.time_for(room, now, end) {
        Some(time) => format!("{what} is used up in about {}", span(time)),
        None => format!("{what} is not being used up at present"),
    }
}

fn free_space(dir: &Path) -> Option<u64> {
    let found = rustix::fs::statvfs(dir).ok()?;
    found.f_bavail.checked_mul(found.f_frsize)
}

/// A size for people.
pub(super) fn bytes(number: u64) -> String {
    let units = [("GB", 1u64 << 30), ("MB", 1 << 20), ("kB", 1 << 10)];
    let unit = units.into_iter().find(|(_, size)| number >= *size);
    unit.map_or_else(|| format!("{number} B"), |(name, size)| format!("{} {name}", number / size))
}

/// A time for people.
fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pace_tells_how_long_the_room_lasts() {
        let start = Instant::now();
        let pace = Pace::starting(start, Lsn::new(1000));
        let later = start + Duration::from_secs(10);
        assert_eq!(pace.time_for(500, later, Lsn::new(2000)), Some(Duration::from_secs(5)));
        assert_eq!(pace.time_for(500, later, Lsn::new(1000)), None);
    }

    #[test]
    fn figures_are_for_people() {
        assert_eq!([bytes(10), bytes(3 << 20), bytes(5 << 30)], ["10 B", "3 MB", "5 GB"]);
        let text = |seconds| span(Duration::from_secs(seconds));
        assert_eq!([text(5), text(600), text(10_000), text(200_000)], ["5 s", "10 min", "2 h", "2 days"]);
    }
}
