//! Row `thousand`: many consumers and few commits.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::Bench;
use super::figures::{CASCADE, FAN, WALRELAY};
use super::herd::Herd;
use super::latency::{COMMIT, FAN_IS, commit_for, later, log_until, position};
use super::numbers::at;
use super::programs::Fan;
use super::stage::{Middle, consumer};
use super::table::{KIB, P50_MS, P99_MS, PERCENT};
use super::usage::{anonymous_of_tree, cpu_of_tree};
use crate::Cluster;

const ROW: &str = "thousand";
const CONSUMERS: usize = 1000;
/// Between two commits.
const PAUSE: Duration = Duration::from_millis(100);

pub(crate) fn measure(bench: &mut Bench) {
    for _ in 0..bench.settings.rounds {
        bench.stage.bring(Middle::Relay);
        let (address, pid) = (bench.stage.relay_address(), bench.stage.relay.pid());
        with(bench, WALRELAY, address, pid);
        if let Some(address) = bench.stage.standby_address() {
            bench.stage.bring(Middle::Cascade);
            let pid = bench.stage.standby.as_ref().map_or(0, Cluster::pid);
            with(bench, CASCADE, address, pid);
        }
        bench.stage.bring(Middle::Neither);
        let fan = Fan::start(&bench.stage.primary);
        with(bench, FAN, fan.address(), fan.pid());
    }
    bench.figures.remark(ROW, FAN_IS);
    bench.figures.remark(
        ROW,
        "Memory: anonymous (`Pss_Anon`), what a thousand have added, for each of them. CPU: of one processor. All consumers are on one thread of one \
         process, which takes its share of the latency.",
    );
}

fn with(bench: &mut Bench, who: &'static str, address: SocketAddr, pid: u32) {
    let mut client = bench.stage.client();
    let start = position(&mut client);
    let mut reference = consumer(bench.stage.primary_address());
    reference.start(start).expect("it is there");
    let before = anonymous_of_tree(pid);
    let herd = Herd::connect(address, CONSUMERS, start);
    let last = AtomicU64::new(u64::MAX);
    let span = bench.settings.span * 2;
    let times = std::thread::scope(|scope| {
        let reference = scope.spawn(|| log_until(reference, &last));
        let herd = scope.spawn(|| herd.log_until(&last).expect("it comes"));
        // The first commit finds everybody in the midst of their beginning.
        commit_for(&mut client, Duration::from_secs(1), PAUSE);
        let (began, worked) = (Instant::now(), cpu_of_tree(pid));
        let ends = commit_for(&mut client, span, PAUSE);
        let (took, cpu) = (began.elapsed(), cpu_of_tree(pid).saturating_sub(worked));
        let each = anonymous_of_tree(pid).saturating_sub(before) as f64 / 1024.0 / CONSUMERS as f64;
        bench.figures.add(ROW, KIB, who, each);
        bench.figures.add(ROW, PERCENT, who, 100.0 * cpu.as_secs_f64() / took.as_secs_f64());
        last.store(ends.last().map_or(0, |end| end.as_u64()), Ordering::Relaxed);
        client.run(COMMIT).expect("the primary commits");
        let reference = reference.join().expect("the primary sends it");
        let logs = herd.join().expect("it comes");
        logs.iter().flat_map(|log| later(&ends, &reference, log)).collect::<Vec<f64>>()
    });
    let millis = |part| at(&times, part).unwrap_or(f64::NAN) / 1000.0;
    bench.figures.add(ROW, P50_MS, who, millis(0.5));
    bench.figures.add(ROW, P99_MS, who, millis(0.99));
}
