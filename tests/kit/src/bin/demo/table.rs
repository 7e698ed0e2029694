//! The live table of positions.

use std::io::{IsTerminal, Write, stdout};
use std::time::Duration;

use walrelay_proto::Lsn;

/// Where everybody is at one moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Positions {
    /// Flushed by the primary.
    pub(crate) primary: Lsn,
    /// Durable on the relay, as its `IDENTIFY_SYSTEM` tells.
    pub(crate) relay: Option<Lsn>,
    /// Replayed by the standby.
    pub(crate) standby: Option<Lsn>,
    /// Flushed by pg_receivewal, as its slot on the relay tells.
    pub(crate) archive: Option<Lsn>,
}

/// Drawn in place on a terminal, a line each time elsewhere.
#[derive(Debug)]
pub(crate) struct Table {
    start: Lsn,
    in_place: bool,
    drawn: bool,
}

/// Lines of the table in place.
const HEIGHT: usize = 5;

impl Table {
    pub(crate) fn new(start: Positions) -> Table {
        Table { start: start.primary, in_place: stdout().is_terminal(), drawn: false }
    }

    pub(crate) fn show(&mut self, elapsed: Duration, now: &Positions) {
        let text = if self.in_place { self.block(elapsed, now) } else { self.line(elapsed, now) };
        self.drawn = true;
        // A closed pipe is the reader's choice, not a failure.
        let _ = stdout().lock().write_all(text.as_bytes());
        let _ = stdout().flush();
    }

    fn block(&self, elapsed: Duration, now: &Positions) -> String {
        let written = now.primary.since(self.start);
        let mut text = if self.drawn { format!("\x1b[{HEIGHT}A") } else { String::new() };
        text += &format!("\x1b[2K  {:4.1} s, {} of WAL\n", elapsed.as_secs_f64(), size(written));
        text += &format!("\x1b[2K  {:<18} {:>14}\n", "primary, flushed", now.primary);
        for (who, lsn) in rows(now) {
            text += &format!("\x1b[2K  {who:<18} {:>14}   {}\n", shown(lsn), lag(now.primary, lsn));
        }
        text
    }

    fn line(&self, elapsed: Duration, now: &Positions) -> String {
        let mut text = if self.drawn { String::new() } else { heading() };
        text += &format!("  {:4.1} s {:>13}", elapsed.as_secs_f64(), now.primary);
        for (_, lsn) in rows(now) {
            text +=
                &format!("   {:>13} {:>10}", shown(lsn), lag(now.primary, lsn).trim_end_matches(" behind"));
        }
        text + "\n"
    }
}

fn heading() -> String {
    let columns =
        ["relay, durable", "standby, replayed", "archive, flushed"].map(|name| format!("   {name:>24}"));
    format!("  {:6} {:>13}{}\n", "", "primary", columns.concat())
}

fn rows(now: &Positions) -> [(&'static str, Option<Lsn>); HEIGHT - 2] {
    [("relay, durable", now.relay), ("standby, replayed", now.standby), ("archive, flushed", now.archive)]
}

fn shown(lsn: Option<Lsn>) -> String {
    lsn.map_or_else(|| "-".to_owned(), |lsn| lsn.to_string())
}

fn lag(primary: Lsn, lsn: Option<Lsn>) -> String {
    match lsn.map(|lsn| primary.since(lsn)) {
        None => String::new(),
        Some(0) => "level".to_owned(),
        Some(bytes) => format!("{} behind", size(bytes)),
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        0..10_000 => format!("{bytes} B"),
        10_000..10_000_000 => format!("{} kB", bytes / 1000),
        _ => format!("{} MB", bytes / 1_000_000),
    }
}
