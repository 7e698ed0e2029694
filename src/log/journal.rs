//! systemd's journal, in its own words (<https://systemd.io/JOURNAL_NATIVE_PROTOCOL/>): each line of the log is a datagram with a
//! level and fields, where a line of text has neither.
//!
//! It is chosen by standard error leading there (sd-daemon(3)). What the journal's socket does not take goes to standard error all the
//! same, with its level in front, as systemd reads it: that is the journal too, by another way.

use std::fmt::{self, Write as _};
use std::io;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

use super::{Escaping, Line, Log};

/// Where journald listens.
const SOCKET: &str = "/run/systemd/journal/socket";

/// A journal that takes entries.
#[derive(Debug)]
pub struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Journal {
    /// The one that standard error leads to, if it leads to one.
    pub fn behind_stderr() -> Option<Journal> {
        let stream = std::env::var("JOURNAL_STREAM").ok()?;
        let file = rustix::fs::fstat(io::stderr()).ok()?;
        is_stream(&stream, file.st_dev, file.st_ino).then(|| Journal::at(Path::new(SOCKET)).ok())?
    }

    /// The one that listens there.
    ///
    /// # Errors
    /// The system gives no socket.
    pub fn at(path: &Path) -> io::Result<Journal> {
        Ok(Journal { socket: UnixDatagram::unbound()?, path: path.to_owned() })
    }

    /// Sent by name each time, so that a journal that was begun anew is found. Blocks while the journal is full.
    pub(super) fn send(&self, entry: &[u8]) -> io::Result<()> {
        self.socket.send_to(entry, &self.path).map(drop)
    }
}

/// Whether `JOURNAL_STREAM` names this file: device and inode, in decimal.
fn is_stream(stream: &str, device: u64, inode: u64) -> bool {
    stream.split_once(':').is_some_and(|(left, right)| {
        left.parse::<u64>().ok() == Some(device) && right.parse::<u64>().ok() == Some(inode)
    })
}

/// Takes entries of a journal and never waits.
#[derive(Clone, Debug)]
pub struct ToJournal {
    pub(super) log: Log,
    pub(super) journal: Arc<Journal>,
}

impl<'a> MakeWriter<'a> for ToJournal {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line { log: &self.log, text: Vec::new(), journal: Some(&self.journal) }
    }
}

/// An entry's line of text for standard error, its level in front.
pub(super) fn as_line(entry: &[u8]) -> Vec<u8> {
    let mut fields = entry.split(|byte| *byte == b'\n');
    let mut value =
        |name: &[u8]| fields.next().and_then(|field| field.strip_prefix(name)).unwrap_or_default();
    let (priority, message) = (value(b"PRIORITY="), value(b"MESSAGE="));
    [b"<", priority, b">", message, b"\n"].concat()
}

/// Writes events as entries. No value has a line's end in it: all of them are escaped like a line of text.
#[derive(Clone, Copy, Debug)]
pub struct Entries;

impl<S, N> FormatEvent<S, N> for Entries
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let about = event.metadata();
        // These two first: `as_line` looks for them.
        write!(writer, "PRIORITY={}\nMESSAGE=", priority(*about.level()))?;
        context.format_fields(writer.by_ref(), event)?;
        write!(writer, "\nSYSLOG_IDENTIFIER=walrelay\nTARGET={}\n", about.target())?;
        if let (Some(file), Some(line)) = (about.file(), about.line()) {
            write!(writer, "CODE_FILE={file}\nCODE_LINE={line}\n")?;
        }
        let mut fields = Fields { writer, written: Ok(()) };
        event.record(&mut fields);
        fields.written
    }
}

/// As syslog(3) counts them.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        Level::DEBUG | Level::TRACE => 7,
    }
}

/// `WALRELAY_NAME=value` for each field of an event.
struct Fields<'a> {
    writer: Writer<'a>,
    written: fmt::Result,
}

impl Fields<'_> {
    fn write(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        let name = field.name().strip_prefix("r#").unwrap_or(field.name());
        // The message is there, and what came by way of the `log` crate has it in words.
        if name == "message" || name.starts_with("log.") || self.written.is_err() {
            return;
        }
        let legal = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
        let name: String = name.chars().map(legal).collect();
        self.written = write!(self.writer, "WALRELAY_{name}=")
            .and_then(|()| Escaping(&mut self.writer).write_fmt(value))
            .and_then(|()| self.writer.write_char('\n'));
    }
}

impl Visit for Fields<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.write(field, format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.write(field, format_args!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::time::Duration;

    use super::super::{CAPACITY, text_fields};
    use super::*;

    /// A journal that can go away, and what goes to standard error.
    struct Rig {
        dir: tempfile::TempDir,
        journal: Option<UnixDatagram>,
        stderr: std::io::PipeReader,
        to: ToJournal,
    }

    fn rig() -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listening = UnixDatagram::bind(&path).unwrap();
        listening.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let (stderr, out) = std::io::pipe().unwrap();
        let log = Log::start(out, CAPACITY, |_| {}).unwrap();
        let to = log.to_journal(Journal::at(&path).unwrap());
        Rig { dir, journal: Some(listening), stderr, to }
    }

    impl Rig {
        fn logging(&self, events: impl FnOnce()) {
            let lines = tracing_subscriber::fmt().with_writer(self.to.clone()).fmt_fields(text_fields());
            let lines = lines.with_max_level(Level::TRACE).event_format(Entries);
            tracing::subscriber::with_default(lines.finish(), events);
        }

        fn entry(&self) -> Vec<String> {
            let mut entry = vec![0; 65536];
            let len = self.journal.as_ref().unwrap().recv(&mut entry).unwrap();
            let text = String::from_utf8(entry[..len].to_vec()).unwrap();
            assert!(text.ends_with('\n'), "{text:?}");
            text.lines().map(str::to_owned).collect()
        }

        fn stderr(&mut self, len: usize) -> String {
            let mut bytes = vec![0; len];
            self.stderr.read_exact(&mut bytes).unwrap();
            String::from_utf8(bytes).unwrap()
        }
    }

    #[test]
    fn a_line_is_an_entry_with_its_level_its_place_and_its_fields() {
        let rig = rig();
        rig.logging(|| {
            tracing::warn!(pid = 7, user = "joe\nPRIORITY=0", lsn = %"0/3000148", "slot \"{}\" is\nlost", "s");
        });
        let entry = rig.entry();
        let fields = [
            "PRIORITY=4",
            r#"MESSAGE=slot "s" is\nlost pid=7 user="joe\nPRIORITY=0" lsn=0/3000148"#,
            "SYSLOG_IDENTIFIER=walrelay",
            concat!("TARGET=", module_path!()),
            concat!("CODE_FILE=", file!()),
        ];
        assert_eq!(entry[..5], fields);
        assert!(entry[5].strip_prefix("CODE_LINE=").unwrap().parse::<u32>().is_ok(), "{entry:?}");
        assert_eq!(
            entry[6..],
            ["WALRELAY_PID=7", r"WALRELAY_USER=joe\nPRIORITY=0", "WALRELAY_LSN=0/3000148"]
        );
    }

    #[test]
    fn levels_are_those_of_syslog() {
        let rig = rig();
        rig.logging(|| {
            tracing::error!("x");
            tracing::info!("x");
            tracing::debug!("x");
            tracing::trace!("x");
        });
        for priority in ["3", "6", "7", "7"] {
            assert_eq!(rig.entry()[0], format!("PRIORITY={priority}"));
        }
    }

    #[test]
    fn without_the_journal_lines_go_to_standard_error_until_it_is_back() {
        let mut rig = rig();
        let path = rig.dir.path().join("socket");
        rig.journal = None;
        std::fs::remove_file(&path).unwrap();
        rig.logging(|| tracing::error!(code = 2, "it is away"));
        assert_eq!(rig.stderr(20), "<3>it is away code=2");
        assert_eq!(rig.stderr(1), "\n");
        rig.journal = Some(UnixDatagram::bind(&path).unwrap());
        rig.logging(|| tracing::info!("it is back"));
        assert_eq!(rig.entry()[1], "MESSAGE=it is back");
    }

    #[test]
    fn what_is_too_long_for_a_datagram_is_not_lost() {
        let mut rig = rig();
        let long = "x".repeat(900_000);
        rig.logging(|| tracing::info!("{long}"));
        assert_eq!(rig.stderr(3 + long.len()), format!("<6>{long}"));
    }

    #[test]
    fn the_journal_is_known_by_device_and_inode() {
        assert!(is_stream("9:123", 9, 123));
        for other in ["", "9", "9:", "9:124", "8:123", "9:123:1", "nine:123"] {
            assert!(!is_stream(other, 9, 123), "{other}");
        }
    }
}
