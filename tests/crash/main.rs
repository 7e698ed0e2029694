//! Power cuts and failing disks at every single operation of a relay's store: what was promised before is there after it.
//!
//! A workload ([`workload`]) runs on a simulated disk, once to count its operations, and then again for each of them, with
//! the power cut or an error just there. What is found is recovered, compared with what had been promised
//! ([`promised`]), and the workload goes on from there to its end.
//!
//! A failure prints how to repeat it: `WALRELAY_CRASH=cut:17:3 cargo test --test crash`.

mod archive;
mod begun;
mod lost_record;
mod mutations;
mod promised;
mod stories;
mod workload;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use walrelay::disk::sim::{OperationKind, SimDisk};
use workload::{Ended, Workload};

/// Ways to go through the workload: with more or less between two syncs.
const SCHEDULES: u64 = 3;

/// Something that happens to the disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Mishap {
    /// The power goes at an operation.
    Cut,
    /// An operation fails with EIO, and the process ends if the store says so.
    Error,
    /// An operation finds the disk full.
    Full,
}

/// One case: what happens at which operation; the seed says what a crash leaves, and how the workload goes.
#[derive(Clone, Copy, Debug)]
struct Case {
    mishap: Mishap,
    operation: u64,
    seed: u64,
}

#[test]
fn what_was_promised_survives_a_power_cut_at_every_operation() {
    try_all(Mishap::Cut, 6, |_| true);
}

#[test]
fn what_was_promised_survives_a_failure_of_every_sync() {
    try_all(Mishap::Error, 6, |kind| kind == OperationKind::Sync);
}

#[test]
fn what_was_promised_survives_an_error_of_every_other_operation() {
    try_all(Mishap::Error, 2, |kind| kind != OperationKind::Sync);
}

#[test]
fn what_was_promised_survives_a_disk_that_is_full_for_one_operation() {
    let takes_room =
        |kind| matches!(kind, OperationKind::Allocate | OperationKind::Create | OperationKind::Write);
    try_all(Mishap::Full, 2, takes_room);
}

/// Tries each operation of these kinds, so many seeds each, or as many as `WALRELAY_CRASH_SEEDS` says.
fn try_all(mishap: Mishap, seeds: u64, kinds: impl Fn(OperationKind) -> bool) {
    if let Ok(text) = std::env::var("WALRELAY_CRASH") {
        let case = Case::parse(&text);
        let case = case
            .unwrap_or_else(|| panic!("WALRELAY_CRASH={text:?} is no case: cut:17:3, error:17:3, full:17:3"));
        return if case.mishap == mishap {
            run(case)
        };
    }
    let wanted = std::env::var("WALRELAY_CRASH_SEEDS").map(|seeds| seeds.parse().expect("it is a number"));
    let started = Instant::now();
    let mut cases = Vec::new();
    for seed in 0..wanted.unwrap_or(seeds) {
        let operations = Workload::new(seed % SCHEDULES).operations();
        let number = |(at, operation): (usize, &OperationKind)| kinds(*operation).then_some(at as u64 + 1);
        let chosen = operations.iter().enumerate().filter_map(number);
        cases.extend(chosen.map(|operation| Case { mishap, operation, seed }));
    }
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
                    run(*case);
                }
            });
        }
    });
    println!("{} cases of {mishap:?} in {:.1} s", cases.len(), started.elapsed().as_secs_f64());
}

/// One case, to the end of the workload.
fn run(case: Case) {
    let mut workload = Workload::new(case.seed % SCHEDULES);
    let mut disk = SimDisk::new();
    disk.start_trace();
    let _told = Told { case, disk: disk.clone() };
    match case.mishap {
        Mishap::Cut => disk.die_at(case.operation),
        Mishap::Error => disk.fail_at(case.operation, libc::EIO),
        Mishap::Full => disk.fail_at(case.operation, libc::ENOSPC),
    }
    let mut seed = case.seed << 32 | case.operation;
    // In some cases the power goes again while the first cut is recovered from.
    let mut again = (case.seed / SCHEDULES % 2 == 1).then(|| 1 + case.operation * 7 % 60);
    let first = disk.clone();
    let mut processes = 1;
    while workload.run(&disk) == Ended::Early {
        processes += 1;
        // A process that ends because of a failed sync finds the memory of before, or the power goes, too.
        let is_restart = !disk.is_dead() && case.seed.is_multiple_of(2);
        disk = if is_restart { disk.restart(seed) } else { disk.crash(seed) };
        seed += 1 << 16;
        if let Some(operation) = again.take() {
            disk.die_at(operation);
        }
    }
    let hit = first.trace().get(case.operation as usize - 1).cloned();
    let hit = hit.unwrap_or_else(|| panic!("{case:?} was not met"));
    if case.mishap == Mishap::Error && hit.kind == OperationKind::Sync && hit.file == "pg_wal" {
        assert!(processes > 1, "nobody knows which names are durable, and it goes on");
    }
}

/// Says how to repeat a case that has failed, and what it was.
struct Told {
    case: Case,
    disk: SimDisk,
}

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let Case { mishap, operation, seed } = self.case;
            let mishap = format!("{mishap:?}").to_lowercase();
            let trace = self.disk.trace();
            let there = trace.iter().enumerate().skip((operation as usize).saturating_sub(6)).take(8);
            let text: Vec<_> =
                there.map(|(at, op)| format!("{} {:?} {}", at + 1, op.kind, op.file)).collect();
            eprintln!(
                "repeat with WALRELAY_CRASH={mishap}:{operation}:{seed}; operations: {}",
                text.join(", ")
            );
        }
    }
}

impl Case {
    fn parse(text: &str) -> Option<Case> {
        let parts: Vec<&str> = text.split(':').collect();
        let [mishap, operation, seed] = parts[..] else { return None };
        let mishap = match mishap {
            "cut" => Mishap::Cut,
            "error" => Mishap::Error,
            "full" => Mishap::Full,
            _ => return None,
        };
        // The first one is 1.
        let operation = operation.parse().ok().filter(|operation| *operation > 0)?;
        Some(Case { mishap, operation, seed: seed.parse().ok()? })
    }
}
