//! Clients that do not read, and a relay that does not run for a while.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use walrelay_testkit::{Cluster, Receivewal, Server, Signal, on_one_version, wait_until};

use crate::relay_below;

on_one_version!(
    a_relay_that_was_held_up_keeps_its_consumers,
    who_does_not_read_holds_up_neither_others_nor_the_stop,
);

const CONSUMERS: usize = 12;

/// Their reports lie unread in its sockets when it goes on, and it is later than they are allowed to be silent.
fn a_relay_that_was_held_up_keeps_its_consumers(server: &Server) {
    let primary = Cluster::builder(server).seg_mb(1).start();
    let mut relay = relay_below(&primary).arg("--wal-sender-timeout").arg("2s").start();
    let names: Vec<String> = (0..CONSUMERS).map(|n| format!("c{n}")).collect();
    names.iter().for_each(|name| relay.create_slot(name));
    let consumers: Vec<_> =
        names.iter().map(|name| Receivewal::start(server, &relay.conninfo(), name)).collect();
    let first = primary.switch_wal();
    consumers.iter().for_each(|consumer| consumer.wait_for_segment(&first));
    for _ in 0..2 {
        let since = Instant::now();
        relay.signal(Signal::STOP);
        wait_until("the time a consumer may be silent to be over", || {
            since.elapsed() > Duration::from_secs(3)
        });
        relay.signal(Signal::CONT);
        primary.sql("create table if not exists t (); drop table t");
        let next = primary.switch_wal();
        consumers.iter().for_each(|consumer| consumer.wait_for_segment(&next));
    }
    assert_eq!(relay.log().text().matches("replication timeout").count(), 0, "{}", relay.log().tail());
    for consumer in consumers {
        assert!(!consumer.log().text().contains("disconnected"), "{}", consumer.log().tail());
        consumer.stop();
    }
}

/// A client of SQL that asks for much and takes none of it.
fn greedy(port: u16) -> TcpStream {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).expect("the relay listens");
    let startup = b"\0\x03\0\0user\0postgres\0database\0postgres\0\0";
    let query = b"COPY (select repeat('x', 1000) from generate_series(1, 100000)) TO STDOUT\0";
    let length = |len: usize| u32::try_from(len + 4).expect("short messages").to_be_bytes();
    socket.write_all(&[&length(startup.len()), &startup[..]].concat()).expect("the relay reads");
    socket.read_exact(&mut [0]).expect("the relay answers");
    socket.write_all(&[b"Q", &length(query.len())[..], query].concat()).expect("the relay reads");
    socket
}

fn who_does_not_read_holds_up_neither_others_nor_the_stop(server: &Server) {
    let primary = Cluster::builder(server).seg_mb(1).start();
    let relay = relay_below(&primary).arg("--shutdown-timeout").arg("1s");
    let mut relay =
        relay.arg("--max-slot-wal-keep-size").arg("24MB").arg("--wal-keep-size").arg("16MB").start();
    relay.create_slots(&["frozen0", "frozen1", "frozen2", "frozen3", "good"]);
    let mut frozen: Vec<_> =
        (0..4).map(|n| Receivewal::start(server, &relay.conninfo(), &format!("frozen{n}"))).collect();
    let mut good = Receivewal::start(server, &relay.conninfo(), "good");
    let _greedy = [(); 2].map(|()| greedy(relay.port()));
    primary.wait_for_sql("select count(*) from pg_stat_activity where wait_event = 'ClientWrite'", "2");
    frozen.iter_mut().for_each(Receivewal::hold);
    // Their sockets are full before their slots are lost.
    let lost = || relay.log().lines_with("invalidating slot", Default::default()).len();
    while lost() < frozen.len() {
        primary.sql("create table t as select generate_series(1, 50000) i; drop table t");
        good.wait_for_segment(&primary.switch_wal());
    }
    let streaming = "select count(*) from pg_stat_replication where state = 'streaming'";
    wait_until("the frozen ones to be cut", || relay.sql(streaming) == "1");

    // The last one is frozen when the relay is told to stop, as are the clients of SQL.
    good.hold();
    let since = Instant::now();
    relay.terminate();
    assert!(since.elapsed() < Duration::from_secs(15), "it was waited for those who do not read");
    good.go_on();
}
