//! Which rows there are: what they are called, what is measured in them, and what is wanted of it.

use super::figures::{CASCADE, LOOP, NOTHING, RECEIVEWAL, Target, WALRELAY};
use super::levels::{APPLY, APPLY_HOPS, FLUSH, FLUSH_HOPS, WRITE, WRITE_HOP};

/// A row of the table.
pub(crate) struct Row {
    /// By which it is asked for, and its figures are kept.
    pub(crate) id: &'static str,
    pub(crate) title: &'static str,
    pub(crate) metrics: &'static [&'static str],
    /// By metric.
    pub(crate) targets: &'static [(&'static str, &'static str, Target)],
}

pub(crate) const SPEED: &str = "MB/s";
pub(crate) const CPU: &str = "CPU s/GiB";
pub(crate) const P50: &str = "p50 µs";
pub(crate) const P99: &str = "p99 µs";
pub(crate) const TPS: &str = "commits/s";
pub(crate) const COMMIT_CPU: &str = "CPU ms/1000 commits";
pub(crate) const KIB: &str = "KiB each";
pub(crate) const PERCENT: &str = "CPU %";
pub(crate) const P50_MS: &str = "p50 ms";
pub(crate) const P99_MS: &str = "p99 ms";
pub(crate) const MS: &str = "ms";
pub(crate) const SECONDS: &str = "s";
pub(crate) const WORST: &str = "worst ms";
pub(crate) const P999: &str = "p99.9 ms";

/// Who is who in the row `live`.
pub(crate) const QUIET: &str = "walrelay, nothing else";
pub(crate) const COLD: &str = "... one consumer reads cold WAL";
pub(crate) const LOADED: &str = "walrelay, 20 MB/s of WAL";
pub(crate) const BUSY: &str = "... archive, retention, segments made";

pub(crate) const ROWS: &[Row] = &[
    Row {
        id: "stored-1",
        title: "Stored WAL to 1 consumer, which drops it in the kernel",
        metrics: &[SPEED, CPU],
        targets: &[
            (WALRELAY, CPU, Target::MostTimes(1.15, LOOP)),
            (WALRELAY, SPEED, Target::LeastTimes(0.9, LOOP)),
        ],
    },
    Row {
        id: "stored-8",
        title: "Stored WAL to 8 consumers, which drop it in the kernel",
        metrics: &[SPEED, CPU],
        targets: &[
            (WALRELAY, CPU, Target::MostTimes(1.05, LOOP)),
            (WALRELAY, SPEED, Target::LeastTimes(1.3, LOOP)),
        ],
    },
    Row {
        id: "stored-8-copied",
        title: "Stored WAL to 8 consumers, which copy it",
        metrics: &[SPEED, CPU],
        targets: &[(WALRELAY, CPU, Target::MostTimes(1.15, LOOP))],
    },
    Row {
        id: "stored-32",
        title: "Stored WAL to 32 consumers, which drop it in the kernel",
        metrics: &[SPEED, CPU],
        targets: &[(WALRELAY, CPU, Target::MostTimes(1.15, LOOP))],
    },
    Row {
        id: "ingestion",
        title: "Ingestion into an empty directory, synced; the relay verifies every record",
        metrics: &[SPEED, CPU],
        targets: &[
            (WALRELAY, SPEED, Target::LeastTimes(3.0, CASCADE)),
            (WALRELAY, CPU, Target::MostTimes(1.0, RECEIVEWAL)),
        ],
    },
    Row {
        id: "latency-1",
        title: "Latency added to live WAL, 1 consumer",
        metrics: &[P50, P99],
        targets: &[(WALRELAY, P50, Target::Most(80.0)), (WALRELAY, P99, Target::Most(250.0))],
    },
    Row {
        id: "latency-32",
        title: "Latency added to live WAL, 32 consumers",
        metrics: &[P50, P99],
        targets: &[(WALRELAY, P50, Target::Most(200.0)), (WALRELAY, P99, Target::Most(600.0))],
    },
    Row {
        id: "commit-1",
        title: "Synchronous commit `on`, 1 client",
        metrics: &[TPS, P50, COMMIT_CPU],
        targets: &[
            (WALRELAY, TPS, Target::LeastTimes(1.0, RECEIVEWAL)),
            (WALRELAY, TPS, Target::LeastTimes(0.85, NOTHING)),
            (WALRELAY, COMMIT_CPU, Target::MostTimes(1.0, RECEIVEWAL)),
        ],
    },
    Row {
        id: "commit-32",
        title: "Synchronous commit `on`, 32 clients",
        metrics: &[TPS, P50, COMMIT_CPU],
        targets: &[
            (WALRELAY, TPS, Target::LeastTimes(1.0, RECEIVEWAL)),
            (WALRELAY, TPS, Target::LeastTimes(0.92, NOTHING)),
        ],
    },
    Row {
        id: "levels",
        title: "A commit at each level: primary, relay r1, relay r2, standby s1",
        metrics: &[P50, P99],
        targets: &[
            (WRITE, P50, Target::MostTimes(1.1, WRITE_HOP)),
            (FLUSH, P50, Target::MostTimes(1.1, FLUSH_HOPS)),
            (APPLY, P50, Target::MostTimes(1.1, APPLY_HOPS)),
        ],
    },
    Row {
        id: "thousand",
        title: "1,000 consumers, 10 commits a second; latency added",
        metrics: &[KIB, PERCENT, P50_MS, P99_MS],
        targets: &[
            (WALRELAY, KIB, Target::Most(20.0)),
            (WALRELAY, PERCENT, Target::Most(10.0)),
            (WALRELAY, P50_MS, Target::Most(2.5)),
            (WALRELAY, P99_MS, Target::Most(7.0)),
        ],
    },
    Row {
        id: "restore",
        title: "One segment from a directory, synced",
        metrics: &[MS],
        targets: &[(WALRELAY, MS, Target::Most(40.0))],
    },
    Row {
        id: "start",
        title: "Start with 1 TB stored (sparse), to the first byte of WAL served",
        metrics: &[SECONDS],
        targets: &[(WALRELAY, SECONDS, Target::Most(1.0))],
    },
    Row {
        id: "live",
        title: "Latency added to live WAL while there is other work",
        metrics: &[P50, P99],
        targets: &[(COLD, P99, Target::MostTimes(1.2, QUIET)), (BUSY, P99, Target::MostTimes(1.2, LOADED))],
    },
    Row {
        id: "stall",
        title: "The worst of all synchronous commits (`on`), across segment ends",
        metrics: &[WORST, P999],
        targets: &[(WALRELAY, WORST, Target::Most(10.0))],
    },
];
