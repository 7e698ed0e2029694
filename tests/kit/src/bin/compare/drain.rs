//! Consumers at work, and what that takes of the server.

use std::ops::{Add, Range};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use walrelay_proto::Lsn;
use walrelay_testkit::Consumer;

use crate::stage::Target;
use crate::usage::{Memory, cpu_time};

/// What all consumers together receive at most in one go, and at least in one measurement, bytes.
const MOST: u64 = 16 << 30;
const LEAST: u64 = 4 << 30;
/// Between two looks at a server's memory.
const LOOK: Duration = Duration::from_millis(20);

/// Work done.
#[derive(Clone, Copy, Default)]
pub(crate) struct Work {
    pub(crate) bytes: u64,
    pub(crate) took: Duration,
    pub(crate) cpu: Duration,
}

/// Has consumers receive WAL, again and again until it is enough to measure.
pub(crate) fn drain(target: &Target, consumers: usize, wal: Range<Lsn>) -> Work {
    let mut sum = Work::default();
    while sum.bytes < LEAST {
        let (mut group, pids) = connect(target, consumers);
        let before = cpu_of(&pids);
        let (bytes, took) = run(&mut group, part(&wal, consumers), || {});
        // The consumers are still connected, so that their walsenders still exist.
        let cpu = cpu_of(&pids) - before;
        sum = Work { bytes: sum.bytes + bytes, took: sum.took + took, cpu: sum.cpu + cpu };
    }
    sum
}

/// The most memory a server takes while consumers receive.
pub(crate) fn memory(target: &Target, consumers: usize, wal: Range<Lsn>) -> Memory {
    let (mut group, pids) = connect(target, consumers);
    let mut most = Memory::default();
    run(&mut group, part(&wal, consumers), || most = most.max(memory_of(&pids)));
    most
}

/// The memory a server takes while consumers that have everything wait for more.
pub(crate) fn memory_of_idle(
    target: &Target,
    consumers: usize,
    at: Lsn,
    write: impl FnOnce() -> Lsn,
) -> Memory {
    let (mut group, pids) = connect(target, consumers);
    group.iter_mut().for_each(|consumer| consumer.start(at).expect("the server has it"));
    let end = write();
    for consumer in &mut group {
        consumer.drain(end).expect("the server sends it");
    }
    memory_of(&pids)
}

/// The last part of the WAL, so much that all consumers together do not take too long.
fn part(wal: &Range<Lsn>, consumers: usize) -> Range<Lsn> {
    let each = wal.end.since(wal.start).min(MOST / consumers as u64);
    wal.end.rewind(each)..wal.end
}

fn connect(target: &Target, consumers: usize) -> (Vec<Consumer>, Vec<u32>) {
    let connect = |_| {
        let consumer = Consumer::connect(target.address, "bench").expect("everybody is trusted");
        if copying() { consumer.copying() } else { consumer }
    };
    let group: Vec<Consumer> = (0..consumers).map(connect).collect();
    let backends = || group.iter().map(Consumer::backend_pid).collect();
    let pids = target.pid.map_or_else(backends, |pid| vec![pid]);
    (group, pids)
}

/// Whether consumers copy the WAL into their memory.
pub(crate) fn copying() -> bool {
    std::env::var_os("BENCH_COPY").is_some_and(|value| value == "1")
}

fn cpu_of(pids: &[u32]) -> Duration {
    pids.iter().map(|&pid| cpu_time(pid)).sum()
}

fn memory_of(pids: &[u32]) -> Memory {
    pids.iter().map(|&pid| Memory::of(pid)).fold(Memory::default(), Memory::add)
}

/// Bytes received by all, and the time until the last one has them. `look` is called now and then.
fn run(group: &mut [Consumer], wal: Range<Lsn>, mut look: impl FnMut()) -> (u64, Duration) {
    let (done, all_done) = channel();
    let began = Instant::now();
    std::thread::scope(|scope| {
        for consumer in group {
            let (wal, done) = (wal.clone(), done.clone());
            scope.spawn(move || receive(consumer, wal, &done));
        }
        drop(done);
        let mut bytes = 0;
        loop {
            match all_done.recv_timeout(LOOK) {
                Ok(received) => bytes += received,
                Err(RecvTimeoutError::Timeout) => look(),
                Err(RecvTimeoutError::Disconnected) => return (bytes, began.elapsed()),
            }
        }
    })
}

fn receive(consumer: &mut Consumer, wal: Range<Lsn>, done: &Sender<u64>) {
    consumer.start(wal.start).expect("the server has it");
    let bytes = consumer.drain(wal.end).expect("the server sends it");
    done.send(bytes).expect("they are counted until the last one is done");
}
