//! SIGHUP changes limits, how much WAL is kept and the log's level, and a file with a mistake changes nothing.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;

use clap::CommandFactory;
use walrelay_testkit::{
    Cluster, Consumer, Mark, Port, Process, Relay, Scratch, Server, Signal, on_one_version, tied_command,
    wait_until,
};

use crate::{relay_below, walrelay};

on_one_version!(
    limits_retention_and_the_level_change_without_a_restart,
    what_the_log_tells_of_clients_changes_without_a_restart,
    what_a_slot_may_keep_and_how_long_a_consumer_may_be_silent_change_without_a_restart,
);

fn limits_retention_and_the_level_change_without_a_restart(server: &Server) {
    let primary = Cluster::builder(server).seg_mb(1).start();
    let scratch = Scratch::new("reload");
    let file = scratch.join("walrelay.toml");
    let write = |text: &str| fs::write(&file, text).expect("the directory is ours");
    write("max-wal-senders = 1\n");
    let mut relay = relay_below(&primary).arg("--config").arg(&file.display().to_string()).start();
    let reload = |relay: &mut Relay, said: &[&str]| {
        let mark = relay.log().mark();
        relay.reload();
        said.iter().for_each(|line| relay.log().wait_for_after(mark, line));
    };
    let connect = |relay: &Relay| {
        let address = SocketAddr::from(([127, 0, 0, 1], relay.port()));
        Consumer::connect(address, "consumer").map_err(|error| error.to_string())
    };
    // Whoever asked last may still be leaving.
    let mut first = None;
    wait_until("a place", || {
        first = connect(&relay).ok();
        first.is_some()
    });
    assert!(connect(&relay).expect_err("there is one place").contains("max_wal_senders"));
    for _ in 0..4 {
        primary.sql("create table if not exists t (); drop table t");
        primary.switch_wal();
    }
    relay.log().wait_for("started streaming");
    wait_until("segments", || segments(&relay) > 4);

    // A mistake anywhere: nothing of it is in effect.
    write("max_wal_senders = 3\nwal_keep_size = \"much\"\n");
    reload(&mut relay, &["configuration not reloaded, the old one stays: "]);
    assert!(connect(&relay).expect_err("there is one place").contains("max_wal_senders"));

    write("max_wal_senders = 3\nwal_keep_size = 0\nslot = \"other\"\n");
    let said = [
        "max-wal-senders changed, in effect for new connections",
        "wal-keep-size changed, in effect",
        "configuration reloaded",
    ];
    reload(&mut relay, &said);
    let _second = connect(&relay).expect("there are three places");
    wait_until("old WAL to be gone", || segments(&relay) < 4);
    let shown = relay.psql("dbname=walrelay", &["show wal_keep_size", "show max_wal_senders"]);
    assert_eq!(shown.as_deref(), Ok("0\n3"));

    // What holds from then on, and for whoever comes then.
    write("max_wal_senders = 3\n");
    relay.reload();
    relay.create_slot("one");
    write(
        "max_wal_senders = 3\nmax_replication_slots = 1\nsql_overlay = \"off\"\nrecall_size = \"1GB\"\nbase_backup_max_rate = \"10MB\"\nwal_receiver_timeout = \"7s\"\nshutdown_timeout = \"3s\"\n",
    );
    let said = [
        "max-replication-slots changed, in effect",
        "sql-overlay changed, in effect for new connections",
        "recall-size changed, in effect",
        "base-backup-max-rate changed, in effect",
        "wal-receiver-timeout changed, in effect for new connections",
        "shutdown-timeout changed, in effect",
        "configuration reloaded",
    ];
    reload(&mut relay, &said);
    let refused = relay.try_command("CREATE_REPLICATION_SLOT two PHYSICAL").expect_err("there is one place");
    assert!(refused.to_string().contains("all replication slots are in use"), "{refused}");
    assert_eq!(relay.sql("select count(*) from pg_replication_slots where slot_name = 'one'"), "0");
    write("max_wal_senders = 3\nmax_replication_slots = 2\n");
    reload(&mut relay, &["sql-overlay changed, in effect for new connections", "configuration reloaded"]);
    relay.create_slot("two");
    assert_eq!(relay.sql("select count(*) from pg_replication_slots where slot_name = 'one'"), "1");

    // A level that hides the report hides no report of its own.
    write("log-level = \"error\"\n");
    let said =
        ["max-wal-senders changed, in effect", "log-level changed, in effect", "configuration reloaded"];
    reload(&mut relay, &said);
    // Sessions that ended just now may have been told of before.
    let quiet = relay.log().mark();
    drop(first);
    primary.sql("create table u ()");
    relay.wait_for_flush(primary.flush_lsn());
    assert_eq!(relay.log().lines_with("INFO", quiet), [""; 0]);
    assert_eq!(relay.log().lines_with("panicked", Mark::default()), [""; 0]);
}

fn what_the_log_tells_of_clients_changes_without_a_restart(server: &Server) {
    let primary = Cluster::builder(server).seg_mb(1).start();
    let scratch = Scratch::new("logged");
    let file = scratch.join("walrelay.toml");
    let write = |text: &str| fs::write(&file, text).expect("the directory is ours");
    write("log_connections = \"off\"\nlog_disconnections = \"off\"\nlog_replication_commands = \"on\"\n");
    let mut relay = relay_below(&primary).arg("--config").arg(&file.display().to_string()).start();
    relay.log().wait_for("received replication command: IDENTIFY_SYSTEM");
    let come_and_go = |relay: &Relay, name: &str| {
        relay
            .psql(&format!("replication=true application_name={name}"), &["SHOW wal_segment_size"])
            .expect("it is told");
    };
    come_and_go(&relay, "quiet");
    // It has left before somebody wants to know of that.
    let there = "select count(*) from pg_stat_activity where application_name = 'quiet'";
    wait_until("its end", || relay.psql("dbname=walrelay", &[there]).as_deref() == Ok("0"));
    write("log_connections = \"on\"\n");
    let mark = relay.log().mark();
    relay.reload();
    for said in
        ["log-connections changed, in effect", "log-replication-commands changed, in effect", "reloaded"]
    {
        relay.log().wait_for_after(mark, said);
    }
    come_and_go(&relay, "told");
    relay.log().wait_for("disconnection: client has left");
    let of = |name: &str| -> Vec<String> {
        let lines = relay.log().lines_with(&format!("application_name=\"{name}\""), Mark::default());
        let words = ["authorized", "received replication command", "disconnection"];
        let word =
            |line: String| words.iter().find(|word| line.contains(**word)).map(|word| (*word).to_owned());
        lines.into_iter().filter_map(word).collect()
    };
    assert_eq!(of("quiet"), ["received replication command"]);
    assert_eq!(of("told"), ["authorized", "disconnection"]);

    // Whoever knocks all the time is told once, with a count.
    let mark = relay.log().mark();
    for _ in 0..50 {
        knock(&relay);
    }
    come_and_go(&relay, "last");
    relay.log().wait_for_after(mark, "application_name=\"last\"");
    let told = relay.log().lines_with("connection refused", mark);
    assert!(told.len() == 1 && told[0].contains("count=1"), "{told:#?}");
}

fn what_a_slot_may_keep_and_how_long_a_consumer_may_be_silent_change_without_a_restart(server: &Server) {
    let primary = Cluster::builder(server).seg_mb(1).start();
    let scratch = Scratch::new("limits");
    let file = scratch.join("walrelay.toml");
    let write = |text: &str| fs::write(&file, text).expect("the directory is ours");
    write("wal-keep-size = 0\nmax-slot-wal-keep-size = \"1GB\"\n");
    let mut relay = relay_below(&primary).arg("--config").arg(&file.display().to_string()).start();
    relay.create_slot("absent");
    for _ in 0..6 {
        primary.sql("create table if not exists t (); drop table t");
        relay.wait_for_segment(&primary.switch_wal());
    }
    let status = "select wal_status from pg_replication_slots";
    let shown = || relay.psql("dbname=walrelay", &[status]).map_err(|error| error.0);
    assert!(shown().is_ok_and(|status| status != "lost"), "{:?}", shown());
    let address = SocketAddr::from(([127, 0, 0, 1], relay.port()));
    let mut old = Consumer::connect(address, "old").expect("it answers");
    old.start(relay.flush_lsn()).expect("it streams");

    write("wal-keep-size = 0\nmax-slot-wal-keep-size = \"2MB\"\nwal-sender-timeout = \"1s\"\n");
    let mark = relay.log().mark();
    relay.reload();
    relay.log().wait_for_after(mark, "wal-sender-timeout changed, in effect for new connections");
    relay.log().wait_for_after(mark, "max-slot-wal-keep-size changed, in effect");
    relay.log().wait_for_after(mark, "invalidating slot \"absent\"");
    assert_eq!(
        relay.psql("dbname=walrelay", &[status]).map_err(|error| error.0),
        Ok("lost".to_owned()),
        "what was enough a moment ago"
    );
    let mut new = Consumer::connect(address, "new").expect("it answers");
    new.start(relay.flush_lsn()).expect("it streams");
    relay
        .log()
        .wait_for_after(mark, "disconnection: terminating walsender process due to replication timeout");
    let ended = relay.log().lines_with("disconnection: terminating walsender", mark);
    assert!(ended.len() == 1 && ended[0].contains("application_name=\"new\""), "{ended:?}");
}

/// Is turned away.
fn knock(relay: &Relay) {
    let mut client = TcpStream::connect(("127.0.0.1", relay.port())).expect("it listens");
    let packet = b"\0\x03\0\0user\0postgres\0replication\0perhaps\0\0";
    client.write_all(&(packet.len() as u32 + 4).to_be_bytes()).expect("a new socket takes it");
    client.write_all(packet).expect("a new socket takes it");
    // Closed, or reset.
    let _ = client.read_to_end(&mut Vec::new());
}

/// For each setting lines of a file with which no relay can be started. A new setting has to be named here.
fn bad_values(scratch: &Scratch) -> Vec<(&'static str, String)> {
    let file = |name: &str, text: &str| {
        fs::write(scratch.join(name), text).expect("the directory is ours");
        scratch.join(name).display().to_string()
    };
    let hba = file("hba.conf", "host all all 10.0.0.0/8 scram\n");
    let other = scratch.join("other").display().to_string();
    let plain = [
        ("upstream", "\"host=h nosuch=1\""),
        ("data-dir", "3"),
        ("listen", "\"nowhere\""),
        ("http-listen", "\"nowhere\""),
        ("http-ssl", "\"maybe\""),
        // There is no certificate.
        ("http-ssl", "\"on\""),
        ("http-auth", "\"maybe\""),
        ("slot", "\"Bad\""),
        ("auth-file", "\"/nonexistent/auth\""),
        ("ident-file", "\"/nonexistent/ident\""),
        ("admin-role", "3"),
        ("monitor-role", "3"),
        ("ssl-cert-file", "\"/nonexistent/cert\""),
        ("ssl-key-file", "\"/nonexistent/key\""),
        ("ssl-ca-file", "\"/nonexistent/ca\""),
        ("ssl-crl-file", "\"/nonexistent/crl\""),
        ("ssl-min-protocol-version", "\"TLSv1\""),
        ("ssl-max-protocol-version", "\"TLSv1\""),
        ("max-connections", "0"),
        ("max-user-connections", "-1"),
        ("max-failed-logins", "-1"),
        ("auth-query", "3"),
        ("auth-dbname", "3"),
        ("sql-overlay", "\"maybe\""),
        ("base-backup-max-rate", "\"fast\""),
        ("archive", "\"nowhere://bucket\""),
        ("recall-size", "\"much\""),
        ("log-format", "\"loud\""),
        ("log-level", "\"loud\""),
        ("log-connections", "\"maybe\""),
        ("log-disconnections", "\"maybe\""),
        ("log-replication-commands", "\"maybe\""),
        ("wal-write", "\"twice\""),
        ("wal-keep-size", "\"much\""),
        ("max-slot-wal-keep-size", "\"much\""),
        ("max-wal-senders", "0"),
        ("max-replication-slots", "-1"),
        ("wal-sender-timeout", "\"soon\""),
        ("wal-receiver-timeout", "\"soon\""),
        ("authentication-timeout", "\"11min\""),
        ("shutdown-timeout", "\"soon\""),
    ];
    let of_ack = [
        ("ack-write", "write = \"ANY 2 (a)\""),
        ("ack-flush", "flush = \"ANY 2 (a)\""),
        ("ack-apply", "apply = \"ANY 2 (a)\""),
        ("ack-timeout", "timeout = \"1s\""),
        ("ack-degrade", "degrade = \"local\""),
        ("ack-budget", "budget = \"1s per 1d\""),
    ];
    let plain = plain.map(|(name, value)| (name, format!("{name} = {value}")));
    let of_ack = of_ack.map(|(name, line)| (name, format!("[ack]\n{line}")));
    let of_files = [
        ("hba-file", format!("hba-file = {hba:?}")),
        // Files whose names are right, and what they hold is not.
        (
            "ssl-cert-file",
            format!("ssl-cert-file = {:?}\nssl-key-file = {hba:?}", file("no.crt", "no certificate\n")),
        ),
        ("archive", format!("[archive.a]\nurl = \"file:///x\"\nencryption-key-file = {hba:?}")),
        // It takes a restart, at which the target would lie in it.
        ("data-dir", format!("data-dir = {other:?}\n[archive.a]\nurl = \"file://{other}/wal\"")),
    ];
    plain.into_iter().chain(of_ack).chain(of_files).collect()
}

/// What a start would refuse is refused by a reload, and by `check-config`, with the same words, and nothing of the file is in effect.
#[test]
fn a_start_a_reload_and_check_config_refuse_the_same() {
    let (scratch, port) = (Scratch::new("alike"), Port::take());
    let (file, data) = (scratch.join("walrelay.toml"), scratch.join("data"));
    let elsewhere = scratch.join("elsewhere").display().to_string();
    let listen = format!("127.0.0.1:{}", port.number());
    let good = [
        ("upstream", "upstream = \"host=127.0.0.1 port=1 user=u\"".to_owned()),
        ("data-dir", format!("data-dir = {:?}", data.display().to_string())),
        ("listen", format!("listen = {listen:?}")),
    ];
    let write = |name: &str, lines: &str| {
        let kept = good.iter().filter(|(key, _)| *key != name).map(|(_, line)| line.as_str());
        // What would be in effect at once, were the rest good.
        let changed = if name == "max-replication-slots" {
            "max-user-connections = 3"
        } else {
            "max-replication-slots = 3"
        };
        let lines: Vec<_> = kept.chain([changed, lines]).collect();
        fs::write(&file, lines.join("\n") + "\n").expect("the directory is ours");
    };
    let refusal = |arguments: &[&str]| {
        let said = Command::new(walrelay()).args(arguments).arg("--config").arg(&file).output();
        let said = said.expect("walrelay can be run");
        let text = String::from_utf8_lossy(&said.stderr).into_owned();
        assert_eq!(said.status.code(), Some(2), "{arguments:?}: {text}");
        let reason = text.lines().find_map(|line| line.strip_prefix("walrelay: error: "));
        reason.unwrap_or_else(|| panic!("{arguments:?}: {text}")).to_owned()
    };
    fs::write(&file, good.each_ref().map(|(_, line)| line.as_str()).join("\n") + "\n").expect("it is ours");
    let mut command = tied_command(walrelay());
    command.arg("--config").arg(&file);
    let mut relay = Process::spawn("walrelay", command, &scratch.join("log"));
    relay.log().wait_for(concat!("walrelay ", env!("CARGO_PKG_VERSION"), " started"));

    let bad = bad_values(&scratch);
    let command = walrelay::config::Cli::command();
    let settings = command.get_arguments().filter_map(|arg| arg.get_long());
    let settings: BTreeSet<&str> =
        settings.filter(|name| !["config", "help", "version"].contains(name)).collect();
    let named: BTreeSet<&str> = bad.iter().map(|(name, _)| *name).collect();
    assert_eq!(named, settings);
    for (name, lines) in &bad {
        write(name, lines);
        // A start looks at the archive when it has its directory, and the one of the file is in use.
        let reason = match *name {
            "archive" => refusal(&["--data-dir", &elsewhere]),
            _ => refusal(&[]),
        };
        assert_eq!(refusal(&["check-config"]), reason, "{lines}");
        let mark = relay.log().mark();
        relay.signal(Signal::HUP);
        relay.log().wait_for_after(mark, &format!("configuration not reloaded, the old one stays: {reason}"));
        assert_eq!(relay.log().lines_with("changed", mark), [""; 0], "{lines}");
    }
    let mark = relay.log().mark();
    write("", "");
    relay.signal(Signal::HUP);
    relay.log().wait_for_after(mark, "max-replication-slots changed, in effect");
    relay.log().wait_for_after(mark, "configuration reloaded");
    assert_eq!(relay.end_with(Signal::TERM), 0);
}

fn segments(relay: &Relay) -> usize {
    let names = fs::read_dir(relay.wal_dir()).expect("it is there").flatten();
    names.filter(|entry| entry.file_name().len() == 24).count()
}
