//! What a relay tells of itself: metrics, health, the console, `walrelay status`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Output, Stdio};

use regex::Regex;
use walrelay::status::Status;
use walrelay_testkit::{
    Certificates, Cluster, Consumer, Hung, Link, PATIENCE, Port, Process, Relay, Scratch, Server, Signal,
    SqlError, Systemd, Weather, on_every_version, on_one_version, tied_command, tools, wait_until,
};

use crate::{relay_below, walrelay};

on_every_version!(lag_is_nothing_when_idle_and_grows_while_a_line_is_cut);
on_one_version!(
    who_may_monitor_sees_everything_and_others_nothing,
    an_upstream_that_is_away_is_told_everywhere,
    an_archive_that_takes_nothing_is_told,
    a_relay_is_watched_from_before_its_recovery,
    what_keeps_wal_is_told_as_the_directory_has_it,
    a_status_that_is_watched_goes_on_over_a_restart,
    what_is_wrong_is_counted_whatever_the_log_shows,
    prometheus_understands_all_of_it,
    labels_that_alerts_and_dashboard_select_by_are_shown,
);

/// What is answered at this path: the status line, the head and the body.
pub(crate) fn get(port: &Port, path: &str) -> String {
    let mut socket = TcpStream::connect(("127.0.0.1", port.number())).expect("it listens");
    socket.set_read_timeout(Some(PATIENCE)).expect("a time that is not zero");
    write!(socket, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").expect("it reads");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("an answer");
    answer
}

/// The value of a sample, named with its labels as the exposition has them.
pub(crate) fn metric(port: &Port, sample: &str) -> Option<f64> {
    let answer = get(port, "/metrics");
    let line = answer.lines().find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '));
    line.map(|value| value.parse().expect("a number"))
}

fn lag_is_nothing_when_idle_and_grows_while_a_line_is_cut(server: &Server) {
    let primary = Cluster::builder(server).start();
    let port = Port::take();
    let relay = relay_below(&primary).arg("--http-listen").arg(&port.number().to_string()).start();
    relay.create_slot("s1");
    let link = Link::to(relay.port(), 1);
    let standby = primary.standby().name("s1").follow(&link.conninfo()).slot("s1").start();
    primary.sql("create table t as select 1 as n");
    standby.wait_for_replay(primary.flush_lsn());
    let name = relay.psql("dbname=walrelay", &["select application_name from pg_stat_replication"]);
    let name = name.expect("it streams");
    let lag = |unit: &str| {
        metric(
            &port,
            &format!("walrelay_consumer_lag_{unit}{{application_name=\"{name}\",position=\"flush\"}}"),
        )
    };
    // However long ago the last commit was.
    wait_until("an idle standby to have no lag", || lag("seconds") == Some(0.0) && lag("bytes") == Some(0.0));

    link.set(Weather::Hole);
    primary.sql("insert into t select generate_series(1, 1000)");
    relay.wait_for_flush(primary.flush_lsn());
    wait_until("its lag to grow", || lag("seconds").is_some_and(|seconds| seconds > 2.0));
    assert!(lag("bytes").is_some_and(|bytes| bytes > 10_000.0), "{:?}", lag("bytes"));
    let slot = metric(&port, "walrelay_slot_lag_seconds{slot_name=\"s1\"}");
    assert!(slot.is_some_and(|seconds| seconds > 2.0), "{slot:?}");
    let report = relay.psql("dbname=walrelay", &["show consumers"]).expect("it is answered");
    let seconds = report.split('|').nth(11).and_then(|lag| lag.rsplit(':').next()).map(str::to_owned);
    assert!(seconds.is_some_and(|seconds| seconds.parse::<f64>().is_ok_and(|lag| lag > 2.0)), "{report}");

    link.set(Weather::Fair);
    standby.wait_for_replay(primary.flush_lsn());
    wait_until("it to have none again", || lag("seconds") == Some(0.0));
    wait_until("nothing to be at risk", || metric(&port, "walrelay_unflushed_bytes") == Some(0.0));
    assert_eq!(metric(&port, "walrelay_upstream_state{state=\"streaming\"}"), Some(1.0));
    assert!(metric(&port, "walrelay_received_bytes_total").is_some_and(|bytes| bytes > 100_000.0));
    assert!(metric(&port, "walrelay_sent_bytes_total").is_some_and(|bytes| bytes > 100_000.0));
    assert_eq!(metric(&port, "walrelay_sessions_open{kind=\"replication\"}"), Some(1.0));
}

fn ask(relay: &Relay, user: &str, sql: &str) -> Result<String, SqlError> {
    relay.psql(&format!("dbname=walrelay user={user}"), &[sql])
}

fn who_may_monitor_sees_everything_and_others_nothing(server: &Server) {
    let primary = Cluster::builder(server).start();
    primary.sql("create role watcher login in role pg_monitor");
    primary.sql("create role stranger login");
    let relay = relay_below(&primary).arg("--auth-query").start();
    relay.create_slot("s1");
    let reports = [
        "troubles",
        "ack",
        "consumers",
        "slots",
        "upstream",
        "failovers",
        "timelines",
        "segments",
        "disk",
        "holders",
        "archive",
        "recalls",
        "config",
        "stats",
        "events",
        "status",
    ];
    for report in reports {
        let show = format!("show {report}");
        ask(&relay, "watcher", &show).unwrap_or_else(|error| panic!("{show}: {error}"));
        let refused = ask(&relay, "stranger", &show).expect_err("it has no right");
        assert!(refused.0.contains("permission denied to examine the relay"), "{refused}");
    }
    assert!(ask(&relay, "stranger", "show help").expect("for everybody").contains("SHOW CONSUMERS|"));
    assert!(ask(&relay, "watcher", "show slots").expect("it may").starts_with("s1|f||"));
    let upstream = ask(&relay, "watcher", "show upstream").expect("it may");
    assert!(upstream.starts_with("streaming|") && !upstream.contains("password"), "{upstream}");
    let receiver = "select status, slot_name, sender_host, sender_port from pg_stat_wal_receiver";
    let row = format!("streaming|walrelay|127.0.0.1|{}", primary.port());
    assert_eq!(ask(&relay, "watcher", receiver), Ok(row));
    assert_eq!(ask(&relay, "stranger", receiver), Ok("|||".to_owned()));
    let json = ask(&relay, "watcher", "show status").expect("it may");
    let status: Status = serde_json::from_str(&json).expect("the value");
    assert_eq!(status.slots[0].name, "s1");
    assert_eq!(status.timelines.len(), 1);
    assert_eq!(
        status.relay.system_identifier,
        Some(primary.sql("select system_identifier from pg_control_system()"))
    );
    relay.assert_calm();
}

/// `walrelay status`: its exit code and what it wrote.
pub(crate) fn status(args: &[&str]) -> (Option<i32>, String) {
    let mut command = tied_command(walrelay());
    command.arg("status").args(args);
    let Output { status, stdout, stderr } = command.output().expect("it can be run");
    (status.code(), String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr))
}

fn an_upstream_that_is_away_is_told_everywhere(server: &Server) {
    let mut primary = Cluster::builder(server).start();
    let port = Port::take();
    let mut relay = relay_below(&primary).arg("--http-listen").arg(&port.number().to_string()).start();
    let conninfo = relay.conninfo();
    wait_until("all to be well", || status(&[&conninfo]).0 == Some(0));
    let (_, text) = status(&[&conninfo]);
    assert!(text.contains("\nupstream   streaming for "), "{text}");
    primary.sql("create table t as select 1");
    let now: f64 = primary.sql("select extract(epoch from now())").parse().expect("a number");
    let commit = || metric(&port, "walrelay_last_commit_time_seconds");
    wait_until("the time of that commit", || commit().is_some_and(|at| (at - now).abs() < 60.0));
    assert!(get(&port, "/healthz").ends_with("\r\n\r\nok\n"), "{}", get(&port, "/healthz"));

    primary.stop();
    wait_until("it to be noticed", || status(&[&conninfo]).0 == Some(1));
    wait_until("a reason to be there", || status(&[&conninfo]).1.contains("since"));
    let (_, text) = status(&[&conninfo]);
    assert!(text.starts_with("! no WAL comes from the upstream since "), "{text}");
    let (code, json) = status(&[&conninfo, "--json"]);
    let value: Status = serde_json::from_str(&json).expect("the value");
    assert_eq!((code, value.upstream.state == "streaming"), (Some(1), false));
    assert!(value.upstream.last_error.is_some(), "{json}");
    assert!(metric(&port, "walrelay_upstream_failing_seconds").is_some_and(|seconds| seconds > 0.0));
    let lag = || metric(&port, "walrelay_upstream_lag_seconds").expect("it is always told");
    let first = lag();
    wait_until("the lag of the hop to grow", || lag() > first + 0.2);
    // What is held can be served.
    assert!(get(&port, "/readyz").starts_with("HTTP/1.1 200"));
    let health = get(&port, "/healthz");
    assert!(
        health.starts_with("HTTP/1.1 200") && health.contains("no WAL comes from the upstream"),
        "{health}"
    );
    let events = relay.psql("dbname=walrelay", &["show events"]).expect("it is answered");
    assert!(events.contains("|WARN|"), "{events}");

    primary.start();
    wait_until("all to be well again", || status(&[&conninfo]).0 == Some(0));
    wait_until("it to have all there is", || lag() == 0.0);
    assert_eq!(metric(&port, "walrelay_upstream_failing_seconds"), Some(0.0));
    relay.kill9();
    let (code, text) = status(&[&conninfo]);
    assert_eq!(code, Some(8), "{text}");
    assert!(text.contains("could not connect to the relay"), "{text}");
}

fn an_archive_that_takes_nothing_is_told(server: &Server) {
    let primary = Cluster::builder(server).seg_mb(1).start();
    let (port, scratch) = (Port::take(), Scratch::new("status"));
    let wal = scratch.join("wal");
    let config = format!("[archive.main]\ncommand = \"test -d {0} && cp %p {0}/%f\"\n", wal.display());
    let config = scratch.shared_secret("walrelay.toml", &config).display().to_string();
    let relay = relay_below(&primary).arg("--config").arg(&config);
    let relay = relay.arg("--http-listen").arg(&port.number().to_string()).start();
    primary.switch_wal();
    let failing = || metric(&port, "walrelay_archive_failing_seconds{target=\"main\"}");
    wait_until("a failure", || failing().is_some_and(|seconds| seconds > 0.0));
    let at_risk = metric(&port, "walrelay_archive_at_risk_seconds{target=\"main\"}");
    assert!(at_risk.is_some_and(|seconds| seconds > 0.0), "{at_risk:?}");
    let row = relay.psql("dbname=walrelay", &["select archived_count, failed_count from pg_stat_archiver"]);
    assert!(row.as_ref().is_ok_and(|row| row.starts_with("0|") && row != "0|0"), "{row:?}");
    let (code, text) = status(&[&relay.conninfo()]);
    assert!(code == Some(1) && text.contains("archive target \"main\" takes nothing since"), "{text}");

    std::fs::create_dir(&wal).expect("the directory is ours");
    wait_until("it to be taken", || failing() == Some(0.0));
    assert!(metric(&port, "walrelay_archived_files_total{target=\"main\"}").is_some_and(|files| files > 0.0));
    wait_until("all to be well", || status(&[&relay.conninfo()]).0 == Some(0));
}

/// The rows of a report, each in its fields.
fn rows(relay: &Relay, report: &str) -> Vec<Vec<String>> {
    let text = relay.psql("dbname=walrelay", &[&format!("show {report}")]).expect("it is answered");
    text.lines().map(|line| line.split('|').map(str::to_owned).collect()).collect()
}

fn what_keeps_wal_is_told_as_the_directory_has_it(server: &Server) {
    let primary = Cluster::builder(server).seg_mb(1).start();
    let scratch = Scratch::new("kept");
    let config = scratch.shared_secret("walrelay.toml", "[archive.main]\ncommand = \"exit 1\"\n");
    let relay = relay_below(&primary).arg("--config").arg(&config.display().to_string());
    let relay = relay.arg("--wal-keep-size").arg("2MB").start();
    relay.create_slot("absent");
    for _ in 0..3 {
        primary.sql("create table if not exists t (); drop table t");
        relay.wait_for_segment(&primary.switch_wal());
    }
    assert_eq!(rows(&relay, "timelines"), [["1", "", ""]]);

    let files = || {
        let files = std::fs::read_dir(relay.wal_dir()).expect("it is there").filter_map(Result::ok);
        let mut files: Vec<String> =
            files.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        files.sort();
        files
    };
    let segments = || {
        let wal = |name: &String| name.len() >= 24 && name.starts_with("00000001");
        let files: Vec<String> = files().into_iter().filter(wal).collect();
        let name = |file: &String| file.trim_end_matches(".partial").to_owned();
        let unfinished = files.iter().filter(|file| file.ends_with(".partial")).count();
        let (first, last) = (files.first().map(name), files.last().map(name));
        let complete = (files.len() - unfinished).to_string();
        [
            "1".to_owned(),
            first.unwrap_or_default(),
            last.unwrap_or_default(),
            complete,
            unfinished.to_string(),
        ]
    };
    wait_until("the segments to be told as they are", || {
        rows(&relay, "segments").first().is_some_and(|row| row[..5] == segments())
    });
    let disk = || rows(&relay, "disk").remove(0);
    wait_until("the files to be counted", || disk()[4] == files().len().to_string());
    let disk = disk();
    let number = |text: &str| text.parse::<u64>().unwrap_or_else(|_| panic!("no number: {text}"));
    assert!(disk[0].starts_with("20") && number(&disk[1]) > number(&disk[2]), "{disk:?}");
    assert!(number(&disk[2]) > 0 && number(&disk[3]) >= 3 << 20, "{disk:?}");
    // Too early to tell when it is full; nothing is missing, nothing is wrong.
    assert_eq!(disk[5..], ["", &disk[6], "0", "", ""], "{disk:?}");

    let holders = rows(&relay, "holders");
    let of = |kind: &str, name: &str| {
        let row = holders.iter().find(|row| row[0] == kind && row[1] == name);
        row.unwrap_or_else(|| panic!("no {kind} {name}: {holders:?}")).clone()
    };
    let end = primary.flush_lsn();
    let slot = of("slot", "absent");
    let from = relay.slot_lsn("absent").expect("WAL is reserved");
    assert_eq!(slot[2], from.to_string());
    assert!(number(&slot[3]) >= 2 << 20 && number(&slot[3]) <= end.since(from), "{slot:?}");
    // All that there is: nothing was taken.
    let target = of("archive_target", "main");
    assert!(number(&target[3]) >= number(&slot[3]), "{holders:?}");
    let kept = of("wal_keep_size", "--wal-keep-size");
    assert!((1..=3 << 20).contains(&number(&kept[3])), "{holders:?}");

    let stats: BTreeMap<String, u64> =
        rows(&relay, "stats").iter().map(|row| (row[0].clone(), number(&row[1]))).collect();
    assert!(stats["received_bytes"] >= 2 << 20, "{stats:?}");
    assert!(stats["segments_made"] >= 4 && stats["upstream_streams"] >= 1, "{stats:?}");
    assert!(stats["connections"] >= stats["replication_sessions"], "{stats:?}");
    assert_eq!((stats["segments_removed"], stats["slots_lost"]), (0, 0), "{stats:?}");
}

fn a_status_that_is_watched_goes_on_over_a_restart(server: &Server) {
    let primary = Cluster::builder(server).start();
    let mut relay = relay_below(&primary).start();
    let scratch = Scratch::new("watched");
    let mut command = tied_command(walrelay());
    command.args(["status", &relay.conninfo(), "--watch=0.2"]);
    let mut watching = Process::spawn("status", command, &scratch.join("shown"));
    let log = watching.log().clone();
    let pictures = || log.text().matches("\x1b[H\x1b[2J").count();
    wait_until("two pictures", || pictures() >= 2);
    assert!(log.text().contains("relay      walrelay "), "{}", log.text());
    relay.terminate();
    log.wait_for("walrelay: could not connect to the relay: ");
    relay.start();
    let before = pictures();
    wait_until("it to go on", || pictures() > before + 1);
    assert!(watching.is_running());
    assert_eq!(watching.end_with(Signal::TERM), 128 + 15);
}

/// Who turns the log off is to be alerted all the same.
fn what_is_wrong_is_counted_whatever_the_log_shows(server: &Server) {
    let mut primary = Cluster::builder(server).start();
    let (port, scratch) = (Port::take(), Scratch::new("quiet"));
    let config = scratch.shared_secret("walrelay.toml", "");
    let relay = relay_below(&primary).arg("--config").arg(&config.display().to_string());
    let mut relay = relay.arg("--http-listen").arg(&port.number().to_string()).start();
    relay.wait_for_flush(primary.flush_lsn());
    std::fs::write(&config, "log-level = \"off\"\n").expect("the file is ours");
    relay.signal(Signal::HUP);
    wait_until("the log to be off", || {
        relay.psql("dbname=walrelay", &["show config"]).is_ok_and(|rows| rows.contains("log-level|off|"))
    });
    let warnings = || metric(&port, "walrelay_log_events_total{level=\"warning\"}");
    let before = (warnings(), relay.log().text());
    primary.stop();
    wait_until("a warning", || warnings() > before.0);
    let events = relay.psql("dbname=walrelay", &["show events"]).expect("it is answered");
    assert!(events.contains("|WARN|"), "{events}");
    assert_eq!(relay.log().text(), before.1, "and nothing is written");
}

fn a_relay_is_watched_from_before_its_recovery(server: &Server) {
    let primary = Cluster::builder(server).start();
    let port = Port::take();
    let mut systemd = Systemd::start();
    let notify = systemd.notify_socket().display().to_string();
    let relay = relay_below(&primary).arg("--http-listen").arg(&port.number().to_string());
    let mut relay = relay.env("NOTIFY_SOCKET", &notify).env("WATCHDOG_USEC", "300000").start();
    relay.wait_for_flush(primary.flush_lsn());
    relay.kill9();
    systemd.forget();
    let hung = Hung::over(&relay.wal_dir());
    relay.spawn();
    wait_until("somebody to listen", || TcpStream::connect(("127.0.0.1", port.number())).is_ok());
    let starts = "\r\n\r\nthe relay starts: opening the data directory\n";
    wait_until("it to open its data directory", || get(&port, "/readyz").ends_with(starts));
    assert!(get(&port, "/readyz").starts_with("HTTP/1.1 503"));
    let life = get(&port, "/livez");
    assert!(life.starts_with("HTTP/1.1 200") && life.ends_with(starts), "{life}");
    assert_eq!(metric(&port, "walrelay_ready"), Some(0.0));
    assert_eq!(metric(&port, "walrelay_write_position_bytes"), None);
    assert!(get(&port, "/api/status").contains("\"starting\":\"opening the data directory\""));
    // Behind a restart in its place systemd's watchdog counts already.
    let heard: Vec<String> = (0..5).map(|_| systemd.hear()).collect();
    assert_eq!(heard, ["WATCHDOG=1"; 5]);
    // What hung fails now, and with it this start; the next one is like any.
    drop(hung);
    relay.kill9();
    relay.start();
    wait_until("it to be ready", || get(&port, "/readyz").starts_with("HTTP/1.1 200"));
    assert_eq!(metric(&port, "walrelay_ready"), Some(1.0));

    // To the end of a stop, which waits here for a consumer that confirms nothing.
    let address = ([127, 0, 0, 1], relay.port()).into();
    let mut silent = Consumer::connect(address, "silent").expect("it answers");
    silent.start(primary.flush_lsn().seg_start(primary.seg_size())).expect("it streams");
    primary.sql("create table t as select 1");
    relay.wait_for_flush(primary.flush_lsn());
    relay.signal(Signal::TERM);
    wait_until("it to stop", || get(&port, "/readyz").ends_with("\r\n\r\nthe relay stops\n"));
    assert!(get(&port, "/livez").starts_with("HTTP/1.1 200"));
    drop(silent);
    assert_eq!(relay.wait_exit(), Some(0), "{}", relay.log().tail());
}

/// With Prometheus's own tool, where it is installed.
fn prometheus_understands_all_of_it(server: &Server) {
    let primary = Cluster::builder(server).start();
    let port = Port::take();
    let relay = relay_below(&primary).arg("--http-listen").arg(&port.number().to_string()).start();
    relay.create_slot("s1");
    let Some(promtool) = tools::promtool() else {
        eprintln!("not checked: promtool is not installed (Debian's package prometheus)");
        return;
    };
    let answer = get(&port, "/metrics");
    let (_, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    read_as_open_metrics(&promtool, body);
    let body = in_the_older_format(body);
    let mut check = Command::new(&promtool);
    check.args(["check", "metrics"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut check = check.spawn().expect("it can be run");
    check.stdin.take().expect("a pipe").write_all(body.as_bytes()).expect("it reads");
    let told = check.wait_with_output().expect("an end");
    assert!(told.status.success(), "{}", String::from_utf8_lossy(&told.stderr));
    for (verb, file) in [("check", "alerts.yml"), ("test", "alerts_test.yml")] {
        let rules = format!("{}/monitoring/{file}", env!("CARGO_MANIFEST_DIR"));
        let told = Command::new(&promtool).args([verb, "rules", &rules]).output().expect("it can be run");
        let said = [told.stdout, told.stderr].concat();
        assert!(told.status.success(), "{}", String::from_utf8_lossy(&said));
    }
}

/// With Prometheus's own parser of OpenMetrics, whose tool wants a time behind each number.
fn read_as_open_metrics(promtool: &std::path::Path, text: &str) {
    let scratch = Scratch::new("openmetrics");
    let (file, out) = (scratch.join("metrics"), scratch.join("blocks"));
    let timed = text.lines().map(|line| match line.starts_with('#') {
        true => format!("{line}\n"),
        false => format!("{line} 1700000000\n"),
    });
    std::fs::write(&file, timed.collect::<String>()).expect("the directory is ours");
    let mut read = Command::new(promtool);
    let read = read.args(["tsdb", "create-blocks-from", "openmetrics"]).arg(&file).arg(&out).output();
    let Output { status, stdout, stderr } = read.expect("it can be run");
    let (said, why) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{why}\n{text}");
    let samples = text.lines().filter(|line| !line.starts_with('#')).count();
    let read = said.lines().nth(1).and_then(|line| line.split_whitespace().nth(4)?.parse().ok());
    assert_eq!(read, Some(samples), "{said}");
}

/// The tool reads Prometheus's own format, which knows neither an end nor units nor infos, and has a counter's whole name
/// everywhere.
fn in_the_older_format(text: &str) -> String {
    let family = |line: &str, kind: &str| {
        line.strip_prefix("# TYPE ")?.strip_suffix(kind).map(|name| name.trim_end().to_owned())
    };
    let ends = [(" counter", "_total"), (" info", "_info")];
    let renamed = |line: &str| {
        let (word, name) = (line.split(' ').nth(1)?, line.split(' ').nth(2)?);
        let of = |(kind, end): (&str, &'static str)| {
            text.lines().any(|line| family(line, kind).as_deref() == Some(name)).then_some(end)
        };
        let end = ends.into_iter().find_map(of)?;
        let rest = line.splitn(4, ' ').nth(3)?.replace("info", "gauge");
        Some(format!("# {word} {name}{end} {rest}\n"))
    };
    let lines = text.lines().filter(|line| !line.starts_with("# EOF") && !line.starts_with("# UNIT"));
    lines
        .map(|line| renamed(line).filter(|_| line.starts_with('#')).unwrap_or_else(|| format!("{line}\n")))
        .collect()
}

/// What a rule or a panel selects by has to be something that a relay shows.
fn labels_that_alerts_and_dashboard_select_by_are_shown(server: &Server) {
    let primary = Cluster::builder(server).seg_mb(1).start();
    let (port, scratch) = (Port::take(), Scratch::new("labels"));
    let wal = scratch.join("wal");
    std::fs::create_dir(&wal).expect("the directory is ours");
    // What a command has taken cannot be read back, so slots have a limit.
    let config = format!("[archive.main]\ncommand = \"cp %p {}/%f\"\nquota = \"1GB\"\n", wal.display());
    let config = config
        + "[ack]\nflush = \"ANY 1 (s1)\"\ntimeout = \"5s\"\ndegrade = \"local\"\nbudget = \"10s per 1h\"\n";
    let config = scratch.shared_secret("walrelay.toml", &config).display().to_string();
    let certificates = Certificates::new();
    let relay = relay_below(&primary).tls(&certificates).arg("--config").arg(&config);
    let relay = relay.arg("--max-slot-wal-keep-size").arg("1GB");
    let relay = relay.arg("--http-listen").arg(&port.number().to_string()).start();
    relay.create_slot("s1");
    let standby = primary.standby().name("s1").follow(&relay.conninfo()).slot("s1").start();
    primary.switch_wal();
    primary.sql("create table t as select 1");
    standby.wait_for_replay(primary.flush_lsn());
    let answer = || get(&port, "/metrics");
    wait_until("the disk to be looked at", || answer().contains("walrelay_disk_free_bytes "));
    wait_until("the standby to report", || answer().contains("position=\"replay\""));
    wait_until("a slot with a limit", || answer().contains("walrelay_slot_safe_bytes{"));
    wait_until("the target to be known", || answer().contains("walrelay_archive_at_risk_seconds{"));
    let answer = answer();
    let (_, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    let mut known = labels_of(body);
    // Prometheus's own.
    known
        .entry("up".to_owned())
        .or_default()
        .insert("job".to_owned(), BTreeSet::from(["walrelay".to_owned()]));
    let mut seen = 0;
    for path in ["monitoring/alerts.yml", "monitoring/grafana.json"] {
        let text = source(path).replace("\\\"", "\"");
        for (metric, label, operator, value) in selectors(&text) {
            if label == "instance" || label == "job" || label == "le" {
                continue;
            }
            let labels = known.get(&metric).unwrap_or_else(|| panic!("{path}: {metric} is not shown"));
            let values = labels.get(&label).unwrap_or_else(|| panic!("{path}: {metric} has no {label}"));
            seen += 1;
            if value.starts_with('$') {
                continue;
            }
            for word in value.split('|').filter(|_| operator == "=" || operator == "=~") {
                assert!(
                    values.contains(word),
                    "{path}: {metric}{{{label}=\"{word}\"}} is not among {values:?}"
                );
            }
        }
        for (label, metric) in matched(&text) {
            let labels = known.get(&metric).unwrap_or_else(|| panic!("{path}: {metric} is not shown"));
            assert!(labels.contains_key(&label), "{path}: {metric} is matched by {label}, which it has not");
        }
    }
    assert!(seen > 5, "{seen}");
    let shown: Vec<_> = in_alerts().into_iter().chain(in_legends()).collect();
    assert!(shown.len() > 10, "{shown:?}");
    for (label, metric) in shown {
        // What may be absent is named for the relay alone.
        let labels = known.get(&metric).unwrap_or_else(|| panic!("{metric} is not shown"));
        assert!(labels.contains_key(&label), "{metric} is shown with {label}, which it has not");
    }
}

/// Labels that an alert's summary has, with the metric that its rule begins with.
fn in_alerts() -> Vec<(String, String)> {
    let (metric, label) =
        (Regex::new(r"walrelay_\w+").expect("it is one"), Regex::new(r"labels\.(\w+)").expect("it is one"));
    let text = source("monitoring/alerts.yml");
    let rules = text.split("- alert: ").skip(1).flat_map(|rule| {
        let (expression, rest) = rule.split_once("labels: {").expect("it has a severity");
        let first = metric.find(expression).map(|found| found.as_str().to_owned());
        let used = label.captures_iter(rest).map(|it| it[1].to_owned()).filter(|label| label != "instance");
        used.filter_map(|label| Some((label, first.clone()?))).collect::<Vec<_>>()
    });
    rules.collect()
}

/// The same of a panel's legend.
fn in_legends() -> Vec<(String, String)> {
    let (metric, label) = (
        Regex::new(r"walrelay_\w+").expect("it is one"),
        Regex::new(r"\{\{\s*(\w+)\s*\}\}").expect("it is one"),
    );
    let text = source("monitoring/grafana.json");
    let mut left = vec![serde_json::from_str(&text).expect("JSON")];
    let mut found = Vec::new();
    while let Some(value) = left.pop() {
        match value {
            serde_json::Value::Object(fields) => {
                let text = |name: &str| fields.get(name).and_then(|value| value.as_str());
                if let (Some(expression), Some(legend)) = (text("expr"), text("legendFormat")) {
                    let first = metric.find(expression).expect("a panel shows something of ours").as_str();
                    let used = label.captures_iter(legend).map(|it| it[1].to_owned());
                    found.extend(
                        used.filter(|label| label != "instance").map(|label| (label, first.to_owned())),
                    );
                }
                left.extend(fields.into_iter().map(|(_, value)| value));
            }
            serde_json::Value::Array(values) => left.extend(values),
            _ => {}
        }
    }
    found
}

/// The values of each label of each metric.
type LabelsOf = BTreeMap<String, BTreeMap<String, BTreeSet<String>>>;

/// The labels of each sample of an exposition, and their values.
fn labels_of(text: &str) -> LabelsOf {
    let mut known = LabelsOf::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, rest) = line.split_at(line.find(['{', ' ']).expect("a value"));
        let labels = known.entry(name.to_owned()).or_default();
        let inside = rest.strip_prefix('{').and_then(|rest| rest.split('}').next()).unwrap_or_default();
        for (label, value) in inside.split(',').filter_map(|pair| pair.split_once('=')) {
            labels.entry(label.to_owned()).or_default().insert(value.trim_matches('"').to_owned());
        }
    }
    known
}

/// What expressions select by: metric, label, operator, value.
fn selectors(text: &str) -> Vec<(String, String, String, String)> {
    let whole = Regex::new(r#"(walrelay_\w+|\bup)\{([^}]*)\}"#).expect("it is one");
    let one = Regex::new(r#"(\w+)\s*(=~|!=|!~|=)\s*"([^"]*)""#).expect("it is one");
    let found = whole.captures_iter(text).flat_map(|it| {
        let metric = it[1].to_owned();
        let pairs = one.captures_iter(it.get(2).expect("the second group").as_str());
        let text = |pair: &regex::Captures<'_>, at: usize| pair[at].to_owned();
        pairs.map(|it| (metric.clone(), text(&it, 1), text(&it, 2), text(&it, 3))).collect::<Vec<_>>()
    });
    found.collect()
}

/// Labels that series are matched by, with the metric behind.
fn matched(text: &str) -> Vec<(String, String)> {
    let on = Regex::new(r"on \(([^)]*)\) \(?(?:0\.\d \* )?\(?(walrelay_\w+)").expect("it is one");
    let labels = |it: regex::Captures<'_>| {
        let metric = it[2].to_owned();
        let labels =
            it[1].split(',').map(|label| label.trim().to_owned()).filter(|label| label != "instance");
        labels.map(|label| (label, metric.clone())).collect::<Vec<_>>()
    };
    on.captures_iter(text).flat_map(labels).collect()
}

fn source(path: &str) -> String {
    let path = format!("{}/{path}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"))
}
