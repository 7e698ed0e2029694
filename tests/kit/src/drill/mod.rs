//! Drills that run as long as somebody wants them to, and what they share.

mod clients;
mod crash;
mod network;
mod soak;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGINT, SIGTERM};

pub use clients::Clients;
pub use crash::{CrashDrill, CrashTally};
pub use network::{NetworkDrill, NetworkTally, Resumed, Usage};
pub use soak::{Soak, SoakTally};

/// Runs a program's `play`, which says whether all held. Whatever it has started is ended, also on Ctrl-C and when it
/// panics, as the kit does when a wait is in vain.
pub fn main(name: &str, play: impl FnOnce(&AtomicBool) -> Result<bool, String>) -> ExitCode {
    let interrupted = match watch_for_interrupts() {
        Ok(flag) => flag,
        Err(error) => return failed(name, &format!("could not watch for signals: {error}")),
    };
    std::panic::set_hook(Box::new(|panic| eprintln!("✗ {panic}")));
    let held = catch_unwind(AssertUnwindSafe(|| play(&interrupted)));
    match held {
        Ok(Ok(_)) if interrupted.load(Ordering::Relaxed) => failed(name, "interrupted"),
        Ok(Ok(true)) => ExitCode::SUCCESS,
        Ok(Ok(false)) => failed(name, "not everything held, see above"),
        Ok(Err(error)) => failed(name, &error),
        Err(_) => failed(name, "failed; directories named above hold the logs"),
    }
}

fn failed(name: &str, why: &str) -> ExitCode {
    eprintln!("✗ {name}: {why}");
    ExitCode::FAILURE
}

/// The first Ctrl-C asks for an orderly end; the second one ends us at once, and the kernel ends our children.
fn watch_for_interrupts() -> std::io::Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 1, Arc::clone(&flag))?;
        signal_hook::flag::register(signal, Arc::clone(&flag))?;
    }
    Ok(flag)
}

/// What was typed: options, each with a value or without one.
#[derive(Debug)]
pub struct Args(Vec<String>);

impl Args {
    /// Those of this process.
    pub fn of_this_process() -> Args {
        Args(std::env::args().skip(1).collect())
    }

    /// Whether this option is there.
    pub fn flag(&mut self, name: &str) -> bool {
        let at = self.0.iter().position(|arg| arg == name);
        at.map(|at| self.0.remove(at)).is_some()
    }

    /// The word behind this option.
    pub fn value(&mut self, name: &str) -> Option<String> {
        let at = self.0.iter().position(|arg| arg == name)?;
        (at + 1 < self.0.len()).then(|| self.0.drain(at..at + 2).nth(1)).flatten()
    }

    /// The number behind this option.
    ///
    /// # Errors
    /// When it is none.
    pub fn number<T: FromStr>(&mut self, name: &str, default: T) -> Result<T, String> {
        let parsed =
            self.value(name).map(|text| text.parse().map_err(|_| format!("{name} {text:?} is not a number")));
        parsed.unwrap_or(Ok(default))
    }

    /// Everything has been asked for.
    ///
    /// # Errors
    /// When something is left.
    pub fn finish(self) -> Result<(), String> {
        if self.0.is_empty() { Ok(()) } else { Err(format!("what is meant by {:?}?", self.0.join(" "))) }
    }
}
