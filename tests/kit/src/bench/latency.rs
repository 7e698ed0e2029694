//! Rows `latency-*` and `live`: how much later WAL comes to a consumer than to one at the primary itself.

use std::fs::File;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::park_timeout;
use std::time::{Duration, Instant};

use walrelay_proto::Lsn;

use super::Bench;
use super::client::Client;
use super::figures::{CASCADE, FAN, Figures, HAPROXY, WALRELAY};
use super::numbers::{at, micros};
use super::programs::{Fan, Haproxy};
use super::stage::{ALL, Middle, consumer, local};
use super::table::{BUSY, COLD, LOADED, P50, P99, QUIET};
use crate::{Consumer, Scratch};

/// Between two commits.
const PAUSE: Duration = Duration::from_millis(2);
/// A small commit's record.
pub(crate) const COMMIT: &str = "select pg_logical_emit_message(true, 'bench', repeat('x', 100))";

pub(crate) const FAN_IS: &str = "Bare fan-out: one thread, one connection to the primary, a plain `send` to each consumer; nothing is verified or stored.";

pub(crate) fn measure(bench: &mut Bench, row: &'static str, consumers: usize) {
    let haproxy = Haproxy::start(bench.stage.primary_address());
    for _ in 0..bench.settings.rounds {
        bench.stage.bring(Middle::Relay);
        let address = bench.stage.relay_address();
        added(bench, row, WALRELAY, address, consumers);
        if let Some(address) = bench.stage.standby_address() {
            bench.stage.bring(Middle::Cascade);
            added(bench, row, CASCADE, address, consumers);
        }
        if let Some(haproxy) = &haproxy {
            bench.stage.bring(Middle::Neither);
            added(bench, row, HAPROXY, haproxy.address(), consumers);
        }
        bench.stage.bring(Middle::Neither);
        let fan = Fan::start(&bench.stage.primary);
        added(bench, row, FAN, fan.address(), consumers);
    }
    bench.figures.remark(row, FAN_IS);
    if haproxy.is_none() {
        bench.figures.remark(row, "haproxy is not installed: not measured.");
    }
}

/// The same with the relay doing something else beside it.
pub(crate) fn measure_live(bench: &mut Bench) {
    for _ in 0..bench.settings.rounds {
        bench.stage.bring(Middle::Neither);
        bench.stage.bring(Middle::Relay);
        let address = bench.stage.relay_address();
        added(bench, "live", QUIET, address, 1);
        beside(bench, address, COLD);
        loaded(bench);
    }
    bench.figures.remark(
        "live",
        "Cold: the page cache of the relay's segments is dropped again and again while a consumer reads all of it. 20 MB/s of WAL: \
         written by one client; the second time the relay has an archive in a directory and `--wal-keep-size 64MB`.",
    );
}

/// Latency while a consumer reads what is on the disk only.
fn beside(bench: &mut Bench, address: SocketAddr, who: &'static str) {
    let (over, wal, dir) = (AtomicU64::new(0), bench.stage.wal.clone(), bench.stage.relay.wal_dir());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while over.load(Ordering::Relaxed) == 0 {
                drop_cache(&dir);
                let mut reader = consumer(address);
                reader.start(wal.start).expect("the relay has it");
                let mut at = wal.start;
                while at < wal.end && over.load(Ordering::Relaxed) == 0 {
                    at = reader.next_wal().expect("the relay sends it");
                }
            }
        });
        added(bench, "live", who, address, 1);
        over.store(1, Ordering::Relaxed);
    });
}

/// Has the kernel forget the files in a directory, as far as they are written.
fn drop_cache(dir: &std::path::Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if let Ok(file) = File::open(entry.path()) {
            let _ = rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed);
        }
    }
}

/// Latency while there is much WAL, without and with an archive and retention.
fn loaded(bench: &mut Bench) {
    bench.stage.bring(Middle::Neither);
    for who in [LOADED, BUSY] {
        let archive = Scratch::new("archive");
        let dir = archive.dir("wal");
        let mut builder = bench.stage.new_relay(if who == BUSY { "64MB" } else { ALL }).name("loaded");
        if who == BUSY {
            builder = builder.arg("--archive").arg(&format!("file://{}", dir.display()));
        }
        let mut relay = builder.start();
        relay.wait_for_flush(bench.stage.primary.settled_lsn());
        let (over, mut writer) = (AtomicU64::new(0), bench.stage.client());
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while over.load(Ordering::Relaxed) == 0 {
                    writer
                        .run("select pg_logical_emit_message(true, 'load', repeat('x', 100000))")
                        .expect("it writes");
                    park_timeout(Duration::from_millis(5));
                }
            });
            added(bench, "live", who, local(relay.port()), 1);
            over.store(1, Ordering::Relaxed);
        });
        relay.terminate();
        bench.stage.primary.sql("select pg_drop_replication_slot('loaded')");
    }
}

/// Measures once, for the time that one measurement takes.
fn added(bench: &mut Bench, row: &'static str, who: &'static str, address: SocketAddr, consumers: usize) {
    let at_primary = bench.stage.primary_address();
    let (client, span) = (bench.stage.client(), bench.settings.span);
    let times = watch(client, at_primary, address, consumers, span);
    note(&mut bench.figures, row, who, &times);
}

fn note(figures: &mut Figures, row: &'static str, who: &'static str, times: &[f64]) {
    figures.add(row, P50, who, at(times, 0.5).unwrap_or(f64::NAN));
    figures.add(row, P99, who, at(times, 0.99).unwrap_or(f64::NAN));
}

/// Commits, and how much later each came to each of the consumers at `address` than to one at the primary, µs.
fn watch(
    mut client: Client,
    primary: SocketAddr,
    address: SocketAddr,
    consumers: usize,
    span: Duration,
) -> Vec<f64> {
    let start = position(&mut client);
    let connect = |address| {
        let mut consumer = consumer(address);
        consumer.start(start).expect("it is there");
        consumer
    };
    let reference = connect(primary);
    let others: Vec<Consumer> = (0..consumers).map(|_| connect(address)).collect();
    // Where they are to stop, once that is known.
    let last = AtomicU64::new(u64::MAX);
    let logs = Mutex::new(Vec::new());
    let (ends, reference) = std::thread::scope(|scope| {
        let reference = scope.spawn(|| log_until(reference, &last));
        for other in others {
            let (last, logs) = (&last, &logs);
            scope.spawn(move || {
                let log = log_until(other, last);
                logs.lock().expect("nobody panics while holding it").push(log);
            });
        }
        let ends = commit_for(&mut client, span, PAUSE);
        last.store(ends.last().map_or(0, |end| end.as_u64()), Ordering::Relaxed);
        // Wakes those who have had all already.
        client.run(COMMIT).expect("the primary commits");
        (ends, reference.join().expect("the primary sends it"))
    });
    let logs = logs.into_inner().expect("nobody has panicked");
    logs.iter().flat_map(|log| later(&ends, &reference, log)).collect()
}

/// When everything up to a position had come.
pub(crate) type Log = Vec<(Lsn, Instant)>;

/// By how much one was later than the other with each of the positions, µs; negative if it was earlier.
pub(crate) fn later(ends: &[Lsn], reference: &[(Lsn, Instant)], log: &[(Lsn, Instant)]) -> Vec<f64> {
    let came = |log: &[(Lsn, Instant)], end: Lsn| Some(log.get(log.partition_point(|(at, _)| *at < end))?.1);
    let difference = |end: &Lsn| {
        let (first, second) = (came(reference, *end)?, came(log, *end)?);
        Some(
            micros(second.saturating_duration_since(first)) - micros(first.saturating_duration_since(second)),
        )
    };
    ends.iter().filter_map(difference).collect()
}

pub(crate) fn log_until(mut consumer: Consumer, last: &AtomicU64) -> Log {
    let mut log = Vec::with_capacity(1 << 14);
    loop {
        let at = consumer.next_wal().expect("it comes");
        log.push((at, Instant::now()));
        if at.as_u64() > last.load(Ordering::Relaxed) {
            return log;
        }
    }
}

/// Small commits for a time; the end of each.
pub(crate) fn commit_for(client: &mut Client, span: Duration, pause: Duration) -> Vec<Lsn> {
    let until = Instant::now() + span;
    let mut ends = Vec::new();
    while Instant::now() < until {
        client.run(COMMIT).expect("the primary commits");
        ends.push(position(client));
        park_timeout(pause);
    }
    ends
}

/// The end of the primary's WAL.
pub(crate) fn position(client: &mut Client) -> Lsn {
    let text = client.run("select pg_current_wal_flush_lsn()").expect("the primary answers");
    text.and_then(|text| text.parse().ok()).expect("it is a position")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added() {
        let began = Instant::now();
        let log = |times: &[(u64, u64)]| -> Log {
            times.iter().map(|(at, after)| (Lsn::new(*at), began + Duration::from_micros(*after))).collect()
        };
        // Two commits in one message, one that came earlier, and one that never came.
        let (reference, other) =
            (log(&[(100, 10), (200, 20), (300, 30), (400, 50)]), log(&[(200, 60), (300, 25)]));
        let ends = [100, 200, 250, 400].map(Lsn::new);
        assert_eq!(later(&ends, &reference, &other), [50.0, 40.0, -5.0]);
    }
}
