//! Rows `stored-*`: WAL that is there already, to consumers who all want it at once. And that all get the same.

use std::net::SocketAddr;
use std::ops::Range;
use std::time::{Duration, Instant};

use walrelay_proto::Lsn;

use super::Bench;
use super::figures::{CASCADE, LOOP, WALRELAY};
use super::programs::SendfileLoop;
use super::stage::consumer;
use super::table::{CPU, SPEED};
use super::usage::cpu_of_tree;
use crate::Consumer;

const GIB: f64 = (1_u64 << 30) as f64;
/// What all consumers together receive at least in one measurement, and at most in one go, bytes.
const LEAST: u64 = 4 << 30;
const MOST: u64 = 16 << 30;

struct Case {
    row: &'static str,
    consumers: usize,
    copy: bool,
}

const CASES: [Case; 4] = [
    Case { row: "stored-1", consumers: 1, copy: false },
    Case { row: "stored-8", consumers: 8, copy: false },
    Case { row: "stored-8-copied", consumers: 8, copy: true },
    Case { row: "stored-32", consumers: 32, copy: false },
];

/// Somebody who has the WAL.
struct Server {
    name: &'static str,
    address: SocketAddr,
    pid: u32,
}

pub(crate) fn measure(bench: &mut Bench) {
    bench.stage.bring_all();
    let sendfile = SendfileLoop::start(&bench.stage);
    let mut servers = vec![
        Server { name: WALRELAY, address: bench.stage.relay_address(), pid: bench.stage.relay.pid() },
        Server { name: LOOP, address: sendfile.address(), pid: sendfile.pid() },
    ];
    if let (Some(address), Some(standby)) = (bench.stage.standby_address(), &bench.stage.standby) {
        servers.insert(1, Server { name: CASCADE, address, pid: standby.pid() });
    }
    compare(bench, &servers);
    for round in 0..bench.settings.rounds {
        for case in
            CASES.iter().filter(|case| !bench.settings.quick || ["stored-1", "stored-8"].contains(&case.row))
        {
            // Nobody is always the first.
            for at in 0..servers.len() {
                let server = &servers[(at + round) % servers.len()];
                let (bytes, took, cpu) = drain(server, case, &bench.stage.wal);
                let speed = bytes as f64 / took.as_secs_f64() / 1e6;
                bench.figures.add(case.row, SPEED, server.name, speed);
                bench.figures.add(case.row, CPU, server.name, cpu.as_secs_f64() / (bytes as f64 / GIB));
            }
        }
    }
}

/// Everybody delivers the same bytes.
fn compare(bench: &mut Bench, servers: &[Server]) {
    let wal = bench.stage.wal.clone();
    let sum_of = |address| {
        let mut consumer = consumer(address).copying();
        consumer.start(wal.start).expect("the server has it");
        consumer.checksum(wal.end).expect("the server sends it")
    };
    let ours = sum_of(bench.stage.primary_address());
    for server in servers {
        let theirs = sum_of(server.address);
        assert_eq!(theirs, ours, "{} delivers other WAL than the primary", server.name);
    }
    let names: Vec<_> = servers.iter().map(|server| server.name).collect();
    let (names, gib) = (names.join(", "), bench.stage.gib());
    let text =
        format!("CRC-32C of the {gib:.2} GiB delivered by the primary, {names}: {ours:08x}, all the same.");
    bench.figures.remark("stored-1", text);
}

/// Has consumers receive WAL, again and again until it is enough to measure: bytes, time, and CPU time of the server.
fn drain(server: &Server, case: &Case, wal: &Range<Lsn>) -> (u64, Duration, Duration) {
    let (mut bytes, mut took, mut cpu) = (0, Duration::ZERO, Duration::ZERO);
    while bytes < LEAST {
        let connect = |_| {
            let consumer = consumer(server.address);
            if case.copy { consumer.copying() } else { consumer }
        };
        let mut group: Vec<Consumer> = (0..case.consumers).map(connect).collect();
        let (began, before) = (Instant::now(), cpu_of_tree(server.pid));
        bytes += run(&mut group, &part(wal, case.consumers));
        took += began.elapsed();
        // The consumers are still connected.
        cpu += cpu_of_tree(server.pid).saturating_sub(before);
    }
    (bytes, took, cpu)
}

/// The last part of the WAL, so much that all consumers together do not take too long.
fn part(wal: &Range<Lsn>, consumers: usize) -> Range<Lsn> {
    let each = wal.end.since(wal.start).min(MOST / consumers as u64);
    wal.end.rewind(each)..wal.end
}

/// Bytes received by all.
fn run(group: &mut [Consumer], wal: &Range<Lsn>) -> u64 {
    std::thread::scope(|scope| {
        let receive = |consumer: &mut Consumer| {
            consumer.start(wal.start).expect("the server has it");
            consumer.drain(wal.end).expect("the server sends it")
        };
        let threads: Vec<_> =
            group.iter_mut().map(|consumer| scope.spawn(move || receive(consumer))).collect();
        threads.into_iter().map(|thread| thread.join().expect("a consumer receives")).sum()
    })
}
