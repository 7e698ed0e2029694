//! A log that systemd's journal reads: known by standard error's file, as sd-daemon(3) says. What an entry is, unit tests know.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use walrelay_testkit::{Port, Process, Scratch, Signal, tied_command};

use crate::walrelay;

/// The journal of this machine, where entries go then.
const JOURNAL: &str = "/run/systemd/journal/socket";
const STARTED: &str = concat!("walrelay ", env!("CARGO_PKG_VERSION"), " started");

/// A relay whose standard error is a file, and the journal's according to `JOURNAL_STREAM` if `is_stream`.
fn relay(log: &Path, is_stream: bool, arguments: &[&str]) -> Process {
    let file = File::create(log).and_then(|file| file.metadata()).expect("the directory is ours");
    let other = file.ino() + u64::from(!is_stream);
    let mut command = tied_command(walrelay());
    command.env("JOURNAL_STREAM", format!("{}:{other}", file.dev()));
    command.args(["--upstream", "host=127.0.0.1 port=1 user=u"]).args(arguments);
    Process::spawn("walrelay", command, log)
}

#[test]
fn lines_have_a_level_where_the_journal_reads_them_and_only_there() {
    let (scratch, port) = (Scratch::new("journal"), Port::take());
    let path = |name: &str| scratch.join(name).display().to_string();
    let (data, listen, log) =
        (path("data"), format!("127.0.0.1:{}", port.number()), PathBuf::from(path("log")));
    let settings = ["--data-dir", &data, "--listen", &listen];
    let said = |is_stream: bool, more: &[&str]| {
        let mut relay = relay(&log, is_stream, &[&settings[..], more].concat());
        relay.log().wait_for(STARTED);
        assert_eq!(relay.end_with(Signal::TERM), 0);
        relay.log().lines_with(STARTED, Default::default()).remove(0)
    };
    for line in [said(false, &[]), said(true, &["--log-format", "text"])] {
        assert!(line.contains(&format!(" INFO {STARTED}")), "{line}");
    }
    // Before the configuration is known, the level is in front.
    let mut refused = relay(&log, true, &[&settings[..], &["--slot", "Bad"]].concat());
    assert_eq!(refused.wait().code(), Some(2));
    assert!(
        refused.log().text().starts_with("<3>walrelay: error: invalid value for --slot"),
        "{}",
        refused.log().text()
    );
    if Path::new(JOURNAL).exists() {
        // They are entries there, and nothing is here.
        let mut relay = relay(&log, true, &settings);
        assert_eq!(relay.end_with(Signal::TERM), 0);
        assert_eq!(fs::read_to_string(&log).expect("it is ours"), "");
        return;
    }
    assert!(said(true, &[]).starts_with(&format!("<6>{STARTED}, upstream is ")));
}

/// Each line is a document of its own, from the first to the last, whatever the level is.
#[test]
fn lines_in_json_can_be_read_by_programs() {
    let (scratch, port) = (Scratch::new("json"), Port::take());
    let path = |name: &str| scratch.join(name).display().to_string();
    let (data, listen) = (path("data"), format!("127.0.0.1:{}", port.number()));
    let settings = ["--data-dir", &data, "--listen", &listen, "--log-format", "json"];
    let log = |name: &str| PathBuf::from(path(name));
    let read = |log: &Path| {
        let text = fs::read_to_string(log).expect("it is ours");
        let line = |line: &str| {
            let value: serde_json::Value =
                serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
            let of = |key: &str| value[key].as_str().unwrap_or_else(|| panic!("no {key}: {line}")).to_owned();
            let timestamp = of("timestamp");
            assert!(timestamp.starts_with("20") && timestamp.ends_with('Z'), "{line}");
            (of("level"), of("message"))
        };
        text.lines().map(line).collect::<Vec<_>>()
    };
    let mut first = relay(&log("first"), false, &settings);
    first.log().wait_for(STARTED);
    // Another one finds the directory in use: its last words are the log's, whatever that shows.
    let mut second = relay(&log("second"), false, &[&settings[..], &["--log-level", "off"]].concat());
    assert_ne!(second.wait().code(), Some(0));
    let last_words = read(&log("second"));
    assert!(last_words.len() == 1 && last_words[0].0 == "ERROR", "{last_words:?}");
    assert!(last_words[0].1.contains("in use"), "{last_words:?}");
    assert_eq!(first.end_with(Signal::TERM), 0);
    let lines = read(&log("first"));
    assert!(
        lines.iter().any(|(level, message)| level == "INFO" && message.starts_with(STARTED)),
        "{lines:?}"
    );
    assert_eq!(lines.last().map(|(_, message)| message.as_str()), Some("stopped"), "{lines:?}");
}
