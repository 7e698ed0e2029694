//! A relay with few file descriptors.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

use walrelay_testkit::{Cluster, PATIENCE, Receivewal, Server, compare, on_one_version, wait_until};

use crate::relay_below;

on_one_version!(idle_connections_do_not_take_the_relays_own_descriptors);

/// Connections that never log in; the relay may close some of them.
fn idle(port: u16, count: usize) -> Vec<TcpStream> {
    (0..count).filter_map(|_| TcpStream::connect(("127.0.0.1", port)).ok()).collect()
}

/// SQL sessions that stay open, as many as the relay lets in.
fn sessions(port: u16, count: usize) -> Vec<TcpStream> {
    let open = || {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).ok()?;
        let startup = b"\0\0\0\x29\0\x03\0\0user\0postgres\0database\0walrelay\0\0";
        socket.write_all(&startup[..]).ok()?;
        socket.set_read_timeout(Some(PATIENCE)).expect("sockets have timeouts");
        let mut kind = [0];
        match socket.read_exact(&mut kind) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => panic!("neither let in nor refused"),
            answer => answer.ok().filter(|()| kind == *b"R").map(|()| socket),
        }
    };
    (0..count).filter_map(|_| open()).collect()
}

fn idle_connections_do_not_take_the_relays_own_descriptors(server: &Server) {
    let primary = Cluster::builder(server).seg_mb(1).start();
    let relay = relay_below(&primary).limit("--nofile=128").start();
    relay.create_slot("archive");
    let archive = Receivewal::start(server, &relay.conninfo(), "archive");
    let first = primary.switch_wal();
    archive.wait_for_segment(&first);

    let sessions = sessions(relay.port(), 200);
    assert!(sessions.len() > 15, "only {} sessions were let in", sessions.len());
    let mut held = Vec::new();
    let mut last = String::new();
    for _ in 0..4 {
        held.extend(idle(relay.port(), 100));
        primary.sql("create table t as select generate_series(1, 50000) i; drop table t");
        last = primary.switch_wal();
        archive.wait_for_segment(&last);
        // The upstream's connection is made anew while everybody else wants one.
        primary.sql("select pg_terminate_backend(pid) from pg_stat_replication");
    }
    relay.wait_for_segment(&last);
    compare::assert_segments(&primary, &relay.wal_dir(), 5);
    for bad in ["Too many open files", "may not be durable", "panicked"] {
        assert!(!relay.log().text().contains(bad), "{}", relay.log().tail());
    }
    relay.log().wait_for("open files are limited to 128, but --max-connections 1000");
    relay.log().wait_for("out of file descriptors for clients");
    // Who comes when others have left is let in, whatever the idle ones hold.
    drop(sessions);
    wait_until("a place for somebody who logs in", || relay.try_command("IDENTIFY_SYSTEM").is_ok());
    archive.stop();
    drop(held);
}
