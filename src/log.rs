//! The log's way to standard error, or to systemd's journal: through a queue and a thread of its own, so that a reader who does not read (a
//! full pipe, a stopped terminal) holds up nobody.
//!
//! The queue is bounded in bytes. Lines that find no room are counted, and the count is a line of its own as soon as
//! one could be written again. A line is written with one call, so that lines of other processes on the same file
//! stay apart.

mod journal;

use std::backtrace::BacktraceStatus;
use std::collections::VecDeque;
use std::fmt::{self, Write as _};
use std::fs::File;
use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::field::Field;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::{FormatFields, MakeWriter, format};

use crate::parts;

pub use journal::{Entries, Journal, ToJournal};

/// Most bytes that wait to be written; some thousand lines.
const CAPACITY: usize = 1 << 20;

/// Changes how severe a line has to be to be logged. Clones are the same.
#[derive(Clone)]
pub struct LevelSwitch(Arc<dyn Fn(LevelFilter) + Send + Sync>);

impl LevelSwitch {
    /// `set` changes it.
    pub fn new(set: impl Fn(LevelFilter) + Send + Sync + 'static) -> LevelSwitch {
        LevelSwitch(Arc::new(set))
    }

    /// The least severe lines are those of this level from now on.
    pub fn set(&self, level: LevelFilter) {
        (self.0)(level);
    }
}

impl std::fmt::Debug for LevelSwitch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LevelSwitch").finish_non_exhaustive()
    }
}

/// Takes lines and never waits. Clones write to the same file.
#[derive(Clone, Debug)]
pub struct Log {
    queue: Arc<Queue>,
}

#[derive(Debug)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    capacity: usize,
}

#[derive(Debug, Default)]
struct State {
    lines: VecDeque<Waiting>,
    /// What they take, that being written included.
    bytes: usize,
    /// Lines that were lost since the last time that was told.
    dropped: u64,
}

/// A line, or an entry of a journal.
#[derive(Debug)]
struct Waiting {
    text: Vec<u8>,
    journal: Option<Arc<Journal>>,
}

impl Waiting {
    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let Some(journal) = &self.journal else { return write_line(out, &self.text) };
        journal.send(&self.text).or_else(|_| write_line(out, &journal::as_line(&self.text)))
    }
}

fn write_line(out: &mut impl Write, line: &[u8]) -> io::Result<()> {
    out.write_all(line).and_then(|()| out.flush())
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes what comes, for ever. A line that cannot be written is lost; it is counted.
    fn write_all(&self, out: &mut impl Write, tell: &impl Fn(u64)) {
        loop {
            let line = self.next();
            let written = line.write(out);
            let mut state = self.lock();
            state.bytes = state.bytes.saturating_sub(line.text.len());
            let dropped = match written {
                Ok(()) => std::mem::take(&mut state.dropped),
                Err(_) => {
                    state.dropped += 1;
                    0
                }
            };
            drop(state);
            self.changed.notify_all();
            if dropped > 0 {
                tell(dropped);
            }
        }
    }

    fn next(&self) -> Waiting {
        let mut state = self.lock();
        loop {
            if let Some(line) = state.lines.pop_front() {
                return line;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Log {
    /// Begins to write to standard error.
    ///
    /// # Errors
    /// The system gives no descriptor or thread.
    pub fn to_stderr() -> io::Result<Log> {
        // Our own descriptor: nobody who uses `std::io::stderr` may wait for the lock of a writer that hangs.
        let out = File::from(rustix::io::dup(io::stderr())?);
        Log::start(out, CAPACITY, |dropped| {
            // An error, so that it is told at every level.
            tracing::error!(
                "{dropped} log lines were lost, because they came faster than they were read, or could not be written"
            );
        })
    }

    fn start(
        mut out: impl Write + Send + 'static,
        capacity: usize,
        tell: impl Fn(u64) + Send + 'static,
    ) -> io::Result<Log> {
        let queue = Arc::new(Queue { state: Mutex::default(), changed: Condvar::new(), capacity });
        let from = queue.clone();
        let write = move || {
            // Nobody could be told of its end.
            while catch_unwind(AssertUnwindSafe(|| from.write_all(&mut out, &tell))).is_err() {}
        };
        std::thread::Builder::new().name("log".to_owned()).spawn(write)?;
        Ok(Log { queue })
    }

    /// Leaves a line, its newline included, to be written.
    pub fn put(&self, line: &[u8]) {
        self.queue_up(Waiting { text: line.to_vec(), journal: None });
    }

    /// The same for entries of a journal.
    pub fn to_journal(&self, journal: Journal) -> ToJournal {
        ToJournal { log: self.clone(), journal: Arc::new(journal) }
    }

    fn queue_up(&self, line: Waiting) {
        let mut state = self.queue.lock();
        if state.bytes + line.text.len() > self.queue.capacity {
            state.dropped += 1;
            return;
        }
        state.bytes += line.text.len();
        state.lines.push_back(line);
        drop(state);
        self.queue.changed.notify_all();
    }

    /// Waits until all is written, but not longer than `limit`.
    pub fn drain(&self, limit: Duration) {
        let pending = |state: &mut State| state.bytes > 0;
        let waited = self.queue.changed.wait_timeout_while(self.queue.lock(), limit, pending);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// Has panics told in the log, where they cannot hold up anybody either.
    pub fn take_panics(&self) {
        std::panic::set_hook(Box::new(tell_panic));
    }
}

/// As the standard library tells it, on one line; the backtrace, if RUST_BACKTRACE asks for one, on lines behind it.
fn tell_panic(info: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("<unnamed>");
    let words = parts::words(info.payload()).replace('\n', " ");
    let place = info.location().map(|place| format!(" at {place}")).unwrap_or_default();
    let backtrace = std::backtrace::Backtrace::capture();
    tracing::error!("thread '{name}' panicked{place}: {words}");
    if backtrace.status() == BacktraceStatus::Captured {
        backtrace.to_string().lines().for_each(|line| tracing::error!("{line}"));
    }
}

/// How a line of text shows a message and its fields: as tracing's own format does, but nobody's words can end the line, or
/// speak to a terminal. JSON has its own way.
pub fn text_fields() -> impl for<'writer> FormatFields<'writer> + Clone + Send + Sync + 'static {
    format::debug_fn(|writer: &mut format::Writer<'_>, field: &Field, value: &dyn fmt::Debug| {
        match field.name() {
            "message" => write!(Escaping(writer), "{value:?}"),
            // Of events that came by way of the `log` crate.
            name if name.starts_with("log.") => Ok(()),
            name => {
                write!(writer, "{}=", name.strip_prefix("r#").unwrap_or(name))?;
                write!(Escaping(writer), "{value:?}")
            }
        }
    })
    .delimited(" ")
}

/// The text on one line: what controls a terminal or the order of characters is written as in a string of Rust.
pub fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    // A String takes everything.
    let _ = Escaping(&mut line).write_str(text);
    line
}

struct Escaping<W>(W);

impl<W: fmt::Write> fmt::Write for Escaping<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text;
        while let Some((at, c)) = rest.char_indices().find(|(_, c)| is_control(*c)) {
            write!(self.0, "{}{}", &rest[..at], c.escape_default())?;
            rest = &rest[at + c.len_utf8()..];
        }
        self.0.write_str(rest)
    }
}

/// Controls, line and paragraph separators, and marks that turn the direction of text.
fn is_control(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// One event's line, on its way.
#[derive(Debug)]
pub struct Line<'a> {
    log: &'a Log,
    text: Vec<u8>,
    /// It is an entry of this one.
    journal: Option<&'a Arc<Journal>>,
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        if !self.text.is_empty() {
            let text = std::mem::take(&mut self.text);
            self.log.queue_up(Waiting { text, journal: self.journal.cloned() });
        }
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { log: self, text: Vec::new(), journal: None }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// A file whose every write waits for a permit, and can be made to fail.
    struct Gate {
        permits: Receiver<io::Result<()>>,
        written: Sender<Vec<u8>>,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.permits.recv().unwrap()?;
            self.written.send(bytes.to_vec()).unwrap();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Rig {
        log: Log,
        permits: Sender<io::Result<()>>,
        written: Receiver<Vec<u8>>,
        told: Receiver<u64>,
    }

    fn rig(capacity: usize) -> Rig {
        let (permits, gate) = channel();
        let (written_to, written) = channel();
        let (tell, told) = channel();
        let out = Gate { permits: gate, written: written_to };
        let log = Log::start(out, capacity, move |dropped| tell.send(dropped).unwrap()).unwrap();
        Rig { log, permits, written, told }
    }

    #[test]
    fn what_a_peer_says_cannot_write_a_line_of_its_own() {
        let rig = rig(10_000);
        let lines =
            tracing_subscriber::fmt().with_writer(rig.log.clone()).with_ansi(false).with_target(false);
        let name = "joe\n2026-01-01T00:00:00Z ERROR forged\r\x1b[2J\u{9b}1m\u{202e}\u{2028}é";
        let escaped = r"joe\n2026-01-01T00:00:00Z ERROR forged\r\u{1b}[2J\u{9b}1m\u{202e}\u{2028}é";
        let refusal = crate::wire::PgError::fatal("28000", format!("role \"{name}\" does not exist"));
        tracing::subscriber::with_default(lines.fmt_fields(text_fields()).finish(), || {
            tracing::info!("no role \"{name}\"");
            tracing::info!(user = name, application_name = %name, error = ?refusal.to_string(), "refused");
            tracing::warn!("{refusal}");
        });
        let mut written = Vec::new();
        for _ in 0..3 {
            rig.permits.send(Ok(())).unwrap();
            written
                .push(String::from_utf8(rig.written.recv_timeout(Duration::from_secs(10)).unwrap()).unwrap());
        }
        for line in &written {
            assert!(line.ends_with('\n') && !line.trim_end().contains(is_control), "{line:?}");
        }
        assert!(written[0].ends_with(&format!(" INFO no role \"{escaped}\"\n")), "{}", written[0]);
        // Quoted once: Debug has done it for those that it quotes.
        assert!(written[1].contains(" INFO refused user=\"joe\\n2026"), "{}", written[1]);
        assert!(written[1].contains(&format!("application_name={escaped} error=")), "{}", written[1]);
        assert!(written[2].contains(escaped), "{}", written[2]);
    }

    #[test]
    fn lines_come_out_in_order() {
        let rig = rig(100);
        for line in ["one\n", "two\n"] {
            rig.log.put(line.as_bytes());
            rig.permits.send(Ok(())).unwrap();
        }
        rig.log.drain(Duration::from_secs(10));
        assert_eq!(rig.written.recv().unwrap(), b"one\n");
        assert_eq!(rig.written.recv().unwrap(), b"two\n");
    }

    #[test]
    fn a_reader_who_does_not_read_costs_lines_and_no_time_and_is_told_how_many() {
        let rig = rig(100);
        for _ in 0..30 {
            rig.log.put(b"0123456789");
        }
        rig.log.drain(Duration::from_millis(1));
        for _ in 0..10 {
            rig.permits.send(Ok(())).unwrap();
        }
        assert_eq!(rig.told.recv().unwrap(), 20, "all beyond the capacity");
        rig.log.drain(Duration::from_secs(10));
        assert_eq!(rig.written.try_iter().count(), 10);
        assert!(rig.told.try_recv().is_err(), "told once");
    }

    #[test]
    fn lines_that_cannot_be_written_are_counted_like_those_without_room() {
        let rig = rig(100);
        rig.log.put(b"lost\n");
        rig.permits.send(Err(io::ErrorKind::BrokenPipe.into())).unwrap();
        rig.log.drain(Duration::from_secs(10));
        rig.log.put(b"seen\n");
        rig.permits.send(Ok(())).unwrap();
        assert_eq!(rig.told.recv().unwrap(), 1);
        assert_eq!(rig.written.recv().unwrap(), b"seen\n");
    }
}
