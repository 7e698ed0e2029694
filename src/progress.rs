//! How far a command is, for whoever sits at a terminal: a bar on standard error while work is done, or a sign of life while
//! others are waited for. Where standard error is no terminal nothing is shown, and nothing of it is left behind.

use std::io::{self, IsTerminal, Write};
use std::pin::pin;
use std::sync::LazyLock;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Waits that are shorter show nothing.
const SHORT: Duration = Duration::from_millis(300);
/// How often a bar moves by itself.
const TICK: Duration = Duration::from_millis(120);

/// All that are shown now: what is written to the terminal besides goes above them.
static SHOWN: LazyLock<MultiProgress> =
    LazyLock::new(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10)));

/// What is counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    /// Files, objects.
    Files,
    /// Bytes.
    Bytes,
}

/// A bar; clones are the same, and with the last of them it goes. By default there is none.
#[derive(Clone, Debug)]
pub struct Progress(ProgressBar);

impl Default for Progress {
    fn default() -> Progress {
        Progress(ProgressBar::hidden())
    }
}

impl Progress {
    /// Begins to show what is done, and how much of it; how much there is to do may be [said](Progress::expect) later.
    pub fn start(what: impl Into<String>, unit: Unit) -> Progress {
        Progress(show(style(unit, false), what.into()))
    }

    /// So much there is to do in all.
    pub fn expect(&self, unit: Unit, all: u64) {
        self.0.set_style(style(unit, true));
        self.0.set_length(all);
    }

    /// So much more is done.
    pub fn did(&self, more: u64) {
        self.0.inc(more);
    }
}

fn show(style: ProgressStyle, what: String) -> ProgressBar {
    if !io::stderr().is_terminal() || std::env::var_os("TERM").is_some_and(|term| term == "dumb") {
        return ProgressBar::hidden();
    }
    let bar = SHOWN.add(ProgressBar::no_length());
    bar.set_style(style);
    bar.set_message(what);
    // What is quick is seen, too.
    bar.tick();
    bar.enable_steady_tick(TICK);
    bar
}

fn style(unit: Unit, has_end: bool) -> ProgressStyle {
    let template = match (unit, has_end) {
        (Unit::Files, true) => "{msg}: [{bar:30}] {pos} of {len} files, {eta} to go",
        (Unit::Bytes, true) => {
            "{msg}: [{bar:30}] {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} to go"
        }
        (Unit::Files, false) => "{spinner} {msg}: {pos} files, {elapsed}",
        (Unit::Bytes, false) => "{spinner} {msg}: {binary_bytes}, {elapsed}",
    };
    ProgressStyle::with_template(template).expect("the template is well-formed").progress_chars("=> ")
}

/// Does that, and shows that it is waited for when that takes longer than a moment. As cancel-safe as what is waited for.
pub async fn while_waiting<T>(what: &str, work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    if let Ok(done) = tokio::time::timeout(SHORT, &mut work).await {
        return done;
    }
    let style = ProgressStyle::with_template("{spinner} {msg}, {elapsed}").expect("it is well-formed");
    let _sign = show(style, what.to_owned());
    work.await
}

/// Writes to the terminal, or wherever it is, what is to be seen beside the bars.
pub fn beside<T>(write: impl FnOnce() -> T) -> T {
    SHOWN.suspend(write)
}

/// Standard error for lines that come while a bar is shown.
#[derive(Debug, Default)]
pub struct Stderr;

impl Write for Stderr {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        beside(|| io::stderr().write(text))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_waited_for_is_what_comes() {
        assert_eq!(while_waiting("asking", async { 1 }).await, 1);
        let late = async {
            tokio::time::sleep(SHORT * 3).await;
            2
        };
        assert_eq!(while_waiting("asking", late).await, 2);
    }
}
