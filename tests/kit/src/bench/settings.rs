//! What to measure, and for how long, from arguments and environment.

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::install;

/// What a run is told.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// Only what tells two versions of the relay apart, in two minutes.
    pub(crate) quick: bool,
    /// WAL to make, GiB.
    pub(crate) gib: f64,
    /// How often throughput, CPU and latency are measured; medians are shown.
    pub(crate) rounds: usize,
    /// How long one latency or commit rate is measured.
    pub(crate) span: Duration,
    /// How long commits are watched for the worst.
    pub(crate) stall: Duration,
    /// The relay's program.
    pub(crate) binary: PathBuf,
    /// Where the report goes.
    pub(crate) out: PathBuf,
    /// Names of the rows wanted; all if there are none.
    pub(crate) only: Vec<String>,
}

impl Settings {
    /// # Errors
    /// When the relay's program is not there.
    pub(crate) fn of_environment(quick: bool) -> Result<Settings, String> {
        let out = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/benchmarks");
        let built = || install::target_dir().join("release/walrelay");
        let path = |name: &str| std::env::var_os(name).map(PathBuf::from);
        let only = std::env::var("BENCH_ONLY").unwrap_or_default();
        let binary = path("WALRELAY_BIN").unwrap_or_else(built);
        if !binary.exists() {
            return Err(format!("{} is missing: cargo build --release", binary.display()));
        }
        Ok(Settings {
            quick,
            gib: number("BENCH_GIB", if quick { 0.5 } else { 1.0 }),
            rounds: number("BENCH_ROUNDS", 3.0) as usize,
            span: Duration::from_secs_f64(number("BENCH_SECONDS", if quick { 2.0 } else { 3.0 })),
            stall: Duration::from_secs_f64(60.0 * number("BENCH_STALL_MINUTES", 0.5)),
            binary,
            out: path("BENCH_OUT").unwrap_or_else(out),
            only: only.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect(),
        })
    }

    /// Whether this row is to be measured.
    pub(crate) fn wants(&self, row: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| name == row)
    }
}

fn number(name: &str, default: f64) -> f64 {
    let text = std::env::var(name).unwrap_or_default();
    text.parse().ok().filter(|&value| value > 0.0).unwrap_or(default)
}
