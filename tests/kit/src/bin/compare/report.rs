//! Medians, ratios, and whether they are what walrelay promises.

use crate::drain::Work;
use crate::usage::Memory;

/// Promised: bytes per second of the standby's, and CPU of the standby's, both per byte delivered.
const SPEED: f64 = 1.5;
const CPU: f64 = 0.40;
/// Promised: memory without consumers and for each, kB.
const BASE_KB: u64 = 64 << 10;
const CONSUMER_KB: u64 = 64;

#[derive(Default)]
pub(crate) struct Report {
    measured: Vec<(&'static str, usize, Work)>,
}

impl Report {
    pub(crate) fn add(&mut self, name: &'static str, consumers: usize, work: Work) {
        self.measured.push((name, consumers, work));
    }

    pub(crate) fn show_speed(&self, consumers: &[usize]) {
        println!("\n{:9}  {:<17}  {:>7}  {:>9}", "consumers", "served by", "MB/s", "CPU s/GiB");
        for &consumers in consumers {
            let mut names: Vec<_> = self.measured.iter().map(|(name, ..)| *name).collect();
            names.sort_unstable();
            names.dedup();
            let rows: Vec<_> = names.into_iter().map(|name| (name, self.medians(name, consumers))).collect();
            for (name, (speed, cpu)) in &rows {
                println!("{consumers:9}  {name:<17}  {speed:>7.0}  {cpu:>9.3}");
            }
            if let [(_, theirs), (_, ours)] = rows[..] {
                let (speed, cpu) = (ours.0 / theirs.0, ours.1 / theirs.1);
                let met = if speed >= SPEED && cpu <= CPU { "" } else { "   (promised: 1.5 and 0.40)" };
                println!("{:9}  {:<17}  {speed:>6.2}x  {cpu:>8.2}x{met}", "", "walrelay/standby");
            }
        }
        println!();
    }

    /// MB/s and CPU seconds per GiB.
    fn medians(&self, name: &str, consumers: usize) -> (f64, f64) {
        let of = |value: fn(&Work) -> f64| {
            let wanted = self.measured.iter().filter(|known| known.0 == name && known.1 == consumers);
            median(wanted.map(|(.., work)| value(work)).collect())
        };
        (
            of(|work| work.bytes as f64 / work.took.as_secs_f64() / 1e6),
            of(|work| work.cpu.as_secs_f64() / (work.bytes as f64 / (1_u64 << 30) as f64)),
        )
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

pub(crate) fn show_memory(name: &str, consumers: usize, memory: Memory) {
    let promised = BASE_KB + CONSUMER_KB * consumers as u64;
    let mb = |kb: u64| kb as f64 / 1024.0;
    println!(
        "memory of {name:<33} RssAnon {:6.1} MB, PSS {:7.1} MB (walrelay's limit: {:.1} MB)",
        mb(memory.rss_anon),
        mb(memory.pss),
        mb(promised)
    );
}
