//! The relay as a process: signals, a log that nobody reads, and a stop that has a limit whatever hangs.

use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Read, Write};
use std::net::TcpStream;
use std::sync::mpsc::channel;

use rustix::fs::{Mode, OFlags};
use walrelay_testkit::{Cluster, Consumer, PATIENCE, Relay, Scratch, Server, Signal, on_one_version};

use crate::relay_below;

on_one_version!(
    a_log_that_nobody_reads_holds_up_nothing,
    signals_that_mean_nothing_are_told_and_ignored,
    sigquit_stops_without_waiting_for_consumers,
    a_sync_that_hangs_does_not_hold_up_the_stop_for_ever,
    a_start_that_hangs_can_be_stopped,
);

fn a_log_that_nobody_reads_holds_up_nothing(server: &Server) {
    let primary = Cluster::builder(server).start();
    // What is repeated is told at that level only.
    let mut relay =
        relay_below(&primary).arg("--max-failed-logins").arg("0").arg("--log-level").arg("debug").prepare();
    let (full, reader) = full_pipe();
    relay.spawn_saying(full);
    // It starts, lets people in, and WAL flows.
    relay.wait_until_it_answers();
    for _ in 0..200 {
        knock(&relay);
    }
    primary.sql("create table t as select 1");
    relay.wait_for_flush(primary.flush_lsn());
    // Read again, it says how much was lost, and goes on.
    let (found, lost) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(reader).lines().map_while(Result::ok) {
            if line.contains("log lines were lost") {
                let _ = found.send(line);
            }
        }
    });
    let line = lost.recv_timeout(PATIENCE).expect("it is told how many lines were lost");
    assert!(line.contains("ERROR"), "{line}");
    relay.terminate();
    // And a stop is no different from the rest.
    let (full, _reader) = full_pipe();
    relay.spawn_saying(full);
    relay.wait_until_it_answers();
    assert_eq!(relay.end_with(Signal::TERM), 0);
}

/// A pipe that takes no more.
fn full_pipe() -> (PipeWriter, PipeReader) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&writer, true).unwrap();
    let filled = loop {
        // To the last byte: a line may be shorter than what a page has left.
        if let Err(error) = writer.write(b"#") {
            break error;
        }
    };
    assert_eq!(filled.kind(), std::io::ErrorKind::WouldBlock);
    rustix::io::ioctl_fionbio(&writer, false).unwrap();
    (writer, reader)
}

/// Is turned away with some kilobytes of log.
fn knock(relay: &Relay) {
    let mut packet = Vec::from(196_608_u32.to_be_bytes());
    packet.extend_from_slice(b"user\0postgres\0replication\0");
    packet.extend(std::iter::repeat_n(b'x', 8000));
    packet.extend_from_slice(b"\0\0");
    let mut client = TcpStream::connect(("127.0.0.1", relay.port())).unwrap();
    client.write_all(&(packet.len() as u32 + 4).to_be_bytes()).unwrap();
    client.write_all(&packet).unwrap();
    let _ = client.read_to_end(&mut Vec::new());
}

fn signals_that_mean_nothing_are_told_and_ignored(server: &Server) {
    let primary = Cluster::builder(server).start();
    let mut relay = relay_below(&primary).start();
    for (signal, name) in
        [(Signal::USR1, "SIGUSR1"), (Signal::ALARM, "SIGALRM"), (Signal::PIPE, ""), (Signal::XFSZ, "SIGXFSZ")]
    {
        let mark = relay.log().mark();
        relay.signal(signal);
        if !name.is_empty() {
            relay.log().wait_for_after(mark, &format!("received {name}, which means nothing"));
        }
    }
    primary.sql("create table t as select 1");
    relay.wait_for_flush(primary.flush_lsn());
    relay.terminate();
}

fn sigquit_stops_without_waiting_for_consumers(server: &Server) {
    let primary = Cluster::builder(server).start();
    let mut relay = relay_below(&primary).arg("--shutdown-timeout").arg("1h").start();
    // A consumer that confirms nothing.
    let address = ([127, 0, 0, 1], relay.port()).into();
    let mut consumer = Consumer::connect(address, "silent").unwrap();
    consumer.start(primary.flush_lsn().seg_start(primary.seg_size())).unwrap();
    primary.sql("create table t as select 1");
    relay.wait_for_flush(primary.flush_lsn());
    assert_eq!(relay.end_with(Signal::QUIT), 0);
    relay.log().wait_for("received SIGQUIT");
}

fn a_sync_that_hangs_does_not_hold_up_the_stop_for_ever(server: &Server) {
    let primary = Cluster::builder(server).start();
    let mut relay = relay_below(&primary).arg("--shutdown-timeout").arg("100ms").start();
    relay.wait_for_flush(primary.flush_lsn());
    let hanging = relay.trace(&["inject=fdatasync,fsync:delay_enter=60s"]);
    primary.sql("create table t as select 1");
    // Until the sync has begun; nothing says so, but what is written is told to the primary.
    let end = primary.flush_lsn();
    primary.wait_for_sql(&format!("select write_lsn >= '{end}' from pg_stat_replication"), "t");
    relay.signal(Signal::TERM);
    relay.log().wait_for("these did not end within --shutdown-timeout");
    relay.log().wait_for("the last WAL was not synced and confirmed to");
    // A traced process is only gone when its tracer lets go of the thread that hangs.
    hanging.cut();
    assert_eq!(relay.wait_exit(), Some(75), "{}", relay.log().tail());
    // Nothing that was confirmed is missing.
    relay.start();
    relay.wait_for_flush(end);
}

fn a_start_that_hangs_can_be_stopped(server: &Server) {
    let primary = Cluster::builder(server).start();
    let scratch = Scratch::new("fifo");
    // A file whose reading never ends.
    let fifo = scratch.join("users");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, Mode::RUSR | Mode::WUSR).unwrap();
    let mut relay = relay_below(&primary).arg("--auth-file").arg(&fifo.display().to_string()).prepare();
    relay.spawn();
    // Opening it for writing waits until somebody reads.
    let held = rustix::fs::open(&fifo, OFlags::WRONLY, Mode::empty()).unwrap();
    assert_eq!(relay.end_with(Signal::TERM), 0);
    relay.log().wait_for("stopped before the start was over");
    drop(held);
}
