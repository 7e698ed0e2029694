//! A relay in this process, a primary above it and a consumer below it.

use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use walrelay::conninfo::{ConnInfo, Environment};
use walrelay::relay::drive::Driver;
use walrelay::store::{Background, Writer};
use walrelay::upstream::{Following, UpstreamConfig, follow};
use walrelay_proto::generate::WalGenerator;
use walrelay_proto::{Lsn, SegSize, SystemId, TimelineId, WalIdentity};
use walrelay_testkit::Consumer;

use crate::common;
use crate::primary::Primary;

/// WAL of a large message.
pub(crate) const MESSAGE: usize = 128 << 10;
const SYSTEM: u64 = 9;
const SEG: u64 = 16 << 20;
const START: Lsn = Lsn::new(SEG);
/// The record of a small commit, bytes.
const COMMIT: usize = 400;

pub(crate) struct Stage {
    primary: Primary,
    consumer: Consumer,
    /// A second one, for WAL that is stored.
    late: Consumer,
    wal: WalGenerator,
    _receiver: Receiver,
    // Ended in this order: connections, then the store.
    _runtime: Runtime,
    _background: Background,
    _dir: tempfile::TempDir,
}

impl Stage {
    pub(crate) fn set() -> Stage {
        let dir = in_memory().expect("a temporary directory");
        let seg_size = SegSize::new(SEG).expect("a power of two");
        let id = WalIdentity { system_id: SystemId(SYSTEM), seg_size };
        let (store, writer, background) = common::new_store(&dir.path().join("data"), id, START, 1 << 40);
        let runtime = Runtime::new().expect("threads can be started");
        let address = common::serve(&runtime, store, None);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("it is bound").port();
        let receiver = Receiver::start(port, writer);
        let mut primary = Primary::accept(&listener, &SYSTEM.to_string(), START);
        let mut wal = WalGenerator::new(id, TimelineId::FIRST, START, 1);
        // Nobody is let in before there is something to serve.
        let first = wal.record(COMMIT);
        primary.send(START, &wal.take());
        primary.wait_for_flush(first);
        let connect = || Consumer::connect(address, "counted").expect("everybody is trusted");
        let mut consumer = connect();
        consumer.start(first).expect("it has come so far");
        Stage {
            primary,
            consumer,
            late: connect(),
            wal,
            _receiver: receiver,
            _runtime: runtime,
            _background: background,
            _dir: dir,
        }
    }

    /// WAL of commits that come next, with the end of each.
    pub(crate) fn generate_commits(&mut self, count: usize) -> (Vec<u8>, Vec<Lsn>) {
        let ends = (0..count).map(|_| self.wal.record(COMMIT)).collect();
        (self.wal.take(), ends)
    }

    /// One commit after the other: each goes down to the consumer, and its sync and the consumer's answer come back.
    pub(crate) fn commit(&mut self, (wal, ends): &(Vec<u8>, Vec<Lsn>)) {
        let mut at = ends.last().expect("there is one").rewind(wal.len() as u64);
        let mut rest = &wal[..];
        for &end in ends {
            let (commit, others) = rest.split_at(end.since(at) as usize);
            self.primary.send(at, commit);
            self.consumer.drain(end).expect("the relay sends it");
            self.consumer.report().expect("the relay listens");
            self.primary.wait_for_flush(end);
            (at, rest) = (end, others);
        }
    }

    /// WAL that comes next, and where it begins.
    pub(crate) fn generate(&mut self, len: usize) -> (Lsn, Vec<u8>) {
        let at = self.wal.position();
        self.wal.fill(len);
        (at, self.wal.take())
    }

    /// The relay receives all of it in large messages, and syncs it.
    pub(crate) fn receive(&mut self, (at, wal): &(Lsn, Vec<u8>)) {
        for (offset, piece) in (0..).step_by(MESSAGE).zip(wal.chunks(MESSAGE)) {
            self.primary.send(at.advance(offset), piece);
        }
        // It is published, and synced, up to the last record's end.
        let end = *self.wal.record_ends().last().expect("there is one");
        self.primary.wait_for_flush(end);
    }

    /// A consumer receives all that was stored.
    pub(crate) fn send(&mut self) {
        let end = *self.wal.record_ends().last().expect("there is one");
        self.late.start(START).expect("it is stored");
        self.late.drain(end).expect("it is stored");
    }
}

/// Where a sync takes no time, whatever the disk: that decides who makes it.
fn in_memory() -> std::io::Result<tempfile::TempDir> {
    let shared = Path::new("/dev/shm");
    if shared.is_dir() { tempfile::tempdir_in(shared) } else { tempfile::tempdir() }
}

/// The thread that receives and syncs, and its deputy, as a relay has them.
struct Receiver {
    stop: CancellationToken,
    threads: Vec<JoinHandle<()>>,
}

impl Receiver {
    fn start(port: u16, writer: Writer) -> Receiver {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = Arc::new(runtime.expect("it is a few descriptors"));
        let driver = Arc::new(Driver::new(writer.store().clone()));
        let stop = CancellationToken::new();
        let work = follow(upstream(port), writer, stop.clone());
        let stand_by = std::thread::spawn({
            let (driver, runtime) = (driver.clone(), runtime.clone());
            move || driver.stand_by(&runtime)
        });
        let run = std::thread::spawn(move || drop(driver.run(&runtime, work)));
        Receiver { stop, threads: vec![run, stand_by] }
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.stop.cancel();
        self.threads.drain(..).for_each(|thread| drop(thread.join()));
    }
}

fn upstream(port: u16) -> UpstreamConfig {
    let text = format!("host=127.0.0.1 port={port} user=rep sslmode=disable");
    let conninfo = ConnInfo::parse(&text, &Environment::of_user("rep").with("HOME", "/nonexistent"));
    UpstreamConfig {
        conninfo: conninfo.expect("the connection string is well-formed"),
        slot: "counted".parse().expect("a good name"),
        dbname: "postgres".to_owned(),
        wal_receiver_timeout: None.into(),
        shutdown_timeout: Duration::ZERO.into(),
        followed: Following::channel().0,
    }
}
