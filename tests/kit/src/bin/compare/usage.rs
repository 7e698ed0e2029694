//! What processes use, from `/proc`.

use std::fs;
use std::ops::Add;
use std::time::Duration;

/// CPU time of a process since its start, user and system.
pub(crate) fn cpu_time(pid: u32) -> Duration {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process is there");
    // The name before may hold anything. What follows begins with field 3; utime is 14, stime 15.
    let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second())
}

/// Memory of processes, kB.
#[derive(Clone, Copy, Default)]
pub(crate) struct Memory {
    /// Anonymous: what they have allocated.
    pub(crate) rss_anon: u64,
    /// With their part of shared pages, mapped WAL among them.
    pub(crate) pss: u64,
}

impl Memory {
    pub(crate) fn of(pid: u32) -> Memory {
        Memory {
            rss_anon: field(&format!("/proc/{pid}/status"), "RssAnon:"),
            pss: field(&format!("/proc/{pid}/smaps_rollup"), "Pss:"),
        }
    }

    pub(crate) fn max(self, other: Memory) -> Memory {
        Memory { rss_anon: self.rss_anon.max(other.rss_anon), pss: self.pss.max(other.pss) }
    }
}

impl Add for Memory {
    type Output = Memory;

    fn add(self, other: Memory) -> Memory {
        Memory { rss_anon: self.rss_anon + other.rss_anon, pss: self.pss + other.pss }
    }
}

fn field(path: &str, name: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
    line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or_default()
}
