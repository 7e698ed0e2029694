//! Drills that run as long as somebody wants them to, and what they share.

mod clients;
mod crash;
mod failover;
mod managed;
mod network;
mod soak;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::park_timeout;
use std::time::{Duration, Instant};

use fastrand::Rng;
use signal_hook::consts::{SIGINT, SIGTERM};

pub use clients::Clients;
pub use crash::{CrashDrill, CrashTally};
pub use failover::{FailoverDrill, FailoverTally};
pub use managed::{ManagedDrill, Tool};
pub use network::{NetworkDrill, NetworkTally, Resumed};
pub use soak::{Soak, SoakTally};

use crate::install;
use crate::leftovers;
use crate::server::Server;

/// What every drill is told.
#[derive(Debug, Clone, Copy)]
pub struct Orders<'a> {
    /// The relay's program.
    pub binary: &'a Path,
    /// Of all clusters.
    pub server: &'a Server,
    /// Decides all that is random here; when exactly processes do what is not in our hands.
    pub seed: u64,
    /// A promise is broken on purpose: then the drill has to find that out, or it proves nothing.
    pub control: bool,
    /// Ends it early.
    pub interrupted: &'a AtomicBool,
}

impl Orders<'_> {
    pub(crate) fn random(&self) -> Rng {
        Rng::with_seed(self.seed)
    }

    /// Whether there is to be an end.
    pub(crate) fn is_over(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }
}

/// What a drill's program runs with.
#[derive(Debug)]
pub struct Gear {
    binary: PathBuf,
    server: Server,
    seed: u64,
    control: bool,
}

impl Gear {
    /// Takes what is left of the command line: `--seed S` and `--control`; finds relay and server, and says what it is.
    ///
    /// # Errors
    /// When something else was typed, or there is no server.
    pub fn of(args: Args) -> Result<Gear, String> {
        Gear::with(args, || install::ensure_any().map_err(|error| error.to_string()))
    }

    /// The same with a server that is not the best there is.
    ///
    /// # Errors
    /// As with [`Gear::of`].
    pub fn on_version(args: Args, major: u32) -> Result<Gear, String> {
        Gear::with(args, || install::ensure(major).map_err(|error| error.to_string()))
    }

    fn with(mut args: Args, server: impl FnOnce() -> Result<Server, String>) -> Result<Gear, String> {
        let seed = args.number("--seed", fastrand::u64(..))?;
        let control = args.flag("--control");
        args.finish()?;
        let server = server()?;
        println!("PostgreSQL {}, seed {seed}{}", server.version(), if control { ", control" } else { "" });
        Ok(Gear { binary: built_relay(), server, seed, control })
    }

    /// As a drill is told.
    pub fn orders<'a>(&'a self, interrupted: &'a AtomicBool) -> Orders<'a> {
        let Gear { binary, server, seed, control } = self;
        Orders { binary, server, seed: *seed, control: *control, interrupted }
    }
}

/// Where `cargo build` has put the relay.
pub fn built_relay() -> PathBuf {
    install::target_dir().join("debug/walrelay")
}

/// Lets so much time pass, which is the subject of who calls this: nothing is waited for.
pub(crate) fn park(time: Duration) {
    let end = Instant::now() + time;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        park_timeout(left);
    }
}

/// The same for a random moment of at most so many milliseconds.
pub(crate) fn park_at_most(random: &mut Rng, milliseconds: u64) {
    park(Duration::from_micros(random.u64(..milliseconds * 1000)));
}

/// Plays a drill. Where somebody does not come back a wait of the kit is in vain, which is a panic: what was counted until then
/// is told first. What runs is still there when the panic goes on, so that its logs are kept.
#[track_caller]
pub(crate) fn play<S>(scene: &mut S, drill: impl FnOnce(&mut S), told: impl FnOnce(&mut S) -> String) {
    let Err(panic) = catch_unwind(AssertUnwindSafe(|| drill(scene))) else { return };
    println!("{}", told(scene));
    resume_unwind(panic)
}

/// Runs a program's `play`, which says whether all held. Whatever it has started is ended, also on Ctrl-C and when it
/// panics, as the kit does when a wait is in vain. What an earlier one that was killed has left goes first.
pub fn main(name: &str, play: impl FnOnce(&AtomicBool) -> Result<bool, String>) -> ExitCode {
    leftovers::sweep();
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_counted_is_told_before_a_panic_goes_on() {
        let (mut count, mut told) = (0, None);
        play(&mut count, |count| *count += 1, |_| unreachable!("it has come to its end"));
        let fails = |count: &mut i32| {
            *count += 1;
            assert!(*count < 2, "nobody has come back");
        };
        let all = || {
            play(&mut count, fails, |count| {
                told = Some(*count);
                String::new()
            });
        };
        let panic = catch_unwind(AssertUnwindSafe(all)).unwrap_err();
        assert_eq!(panic.downcast_ref::<&str>(), Some(&"nobody has come back"));
        assert_eq!(told, Some(2));
    }
}
