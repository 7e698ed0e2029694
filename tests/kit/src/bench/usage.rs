//! What processes use, from `/proc`: those that somebody has started, with all that these have started.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

/// CPU time of a process and of all below it, also of those that have ended and been waited for, user and system.
pub(crate) fn cpu_of_tree(root: u32) -> Duration {
    let processes = all();
    let known = tree(root, &processes).into_iter().filter_map(|pid| Some((pid, processes.get(&pid)?)));
    known.map(|(pid, stat)| ticks(stat.own).max(scheduled(pid)) + ticks(stat.ended)).sum()
}

fn ticks(count: u64) -> Duration {
    Duration::from_millis(count * 1000 / rustix::param::clock_ticks_per_second())
}

/// To the nanosecond, but without threads that have ended. Ticks are rounded down for each process: of a thousand that do
/// little each they would show nothing.
fn scheduled(pid: u32) -> Duration {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let texts = threads.filter_map(|thread| fs::read_to_string(thread.path().join("schedstat")).ok());
    Duration::from_nanos(texts.filter_map(|text| text.split(' ').next()?.parse::<u64>().ok()).sum())
}

/// Memory of a process and of all below it that is no file's, bytes. What several of them share counts once.
pub(crate) fn anonymous_of_tree(root: u32) -> u64 {
    tree(root, &all()).into_iter().map(anonymous).sum()
}

fn anonymous(pid: u32) -> u64 {
    // It may have ended just now.
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    kilobytes(&text, "Pss_Anon:").unwrap_or_default() << 10
}

fn kilobytes(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// A line of `/proc/PID/stat`.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    parent: u32,
    /// Clock ticks of its own.
    own: u64,
    /// Those of children that have ended.
    ended: u64,
}

fn all() -> HashMap<u32, Stat> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| Some((pid, parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?)))
        .collect()
}

fn parse(stat: &str) -> Option<Stat> {
    // The name before may hold anything. What follows begins with field 3; the parent is 4, the four times are 14 to 17.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let times: Vec<u64> = fields.get(11..15)?.iter().map_while(|field| field.parse().ok()).collect();
    let &[user, system, ended_user, ended_system] = &times[..] else { return None };
    Some(Stat { parent: fields.get(1)?.parse().ok()?, own: user + system, ended: ended_user + ended_system })
}

fn tree(root: u32, processes: &HashMap<u32, Stat>) -> Vec<u32> {
    let mut found = vec![root];
    let mut next = 0;
    while let Some(&parent) = found.get(next) {
        found.extend(processes.iter().filter(|(_, stat)| stat.parent == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_stat() {
        let line = "7 (a) b) R 3 7 7 0 -1 0 1 2 3 4 100 20 3 1 20 0 1 0 5";
        assert_eq!(parse(line), Some(Stat { parent: 3, own: 120, ended: 4 }));
        assert_eq!(parse("7 (a) R 3"), None);
    }

    #[test]
    fn all_below_a_process() {
        let stat = |parent| Stat { parent, own: 1, ended: 0 };
        let processes = HashMap::from([(1, stat(0)), (2, stat(1)), (3, stat(2)), (4, stat(1)), (9, stat(0))]);
        let mut found = tree(1, &processes);
        found.sort_unstable();
        assert_eq!(found, [1, 2, 3, 4]);
        assert_eq!(tree(5, &processes), [5]);
    }

    #[test]
    fn we_use_something() {
        let pid = std::process::id();
        assert!(anonymous_of_tree(pid) > 100_000);
        let began = cpu_of_tree(pid);
        crate::wait_until("some work to be counted", || {
            let _ = std::hint::black_box((0..1_000_000_u64).fold(0, u64::wrapping_add));
            cpu_of_tree(pid) > began
        });
    }

    #[test]
    fn a_line_of_smaps() {
        assert_eq!(kilobytes("Rss:  12 kB\nPss_Anon:      34 kB\n", "Pss_Anon:"), Some(34));
        assert_eq!(kilobytes("Rss:  12 kB\n", "Pss_Anon:"), None);
    }
}
