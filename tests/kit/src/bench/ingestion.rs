//! Row `ingestion`: everything that the primary has, into an empty directory, synced.

use std::path::Path;
use std::time::{Duration, Instant};

use walrelay_proto::{TimelineId, WalFileName};

use super::Bench;
use super::figures::{CASCADE, RECEIVEWAL, STORING, WALRELAY};
use super::poll;
use super::programs::{self, Receivewal, Storer, crc_of_segments};
use super::stage::{ALL, Middle};
use super::table::{CPU, SPEED};
use super::usage::cpu_of_tree;
use crate::Scratch;
use crate::wait::wait_for;

const GIB: f64 = (1_u64 << 30) as f64;
const ROW: &str = "ingestion";

/// Whoever takes part, once.
type Receiver<'a> = Box<dyn Fn(&mut Bench) + 'a>;

pub(crate) fn measure(bench: &mut Bench) {
    bench.stage.bring(Middle::Neither);
    let expected = crc_of_segments(&bench.stage.primary.wal_dir(), &bench.stage.wal);
    let zeros = Scratch::new("zeros");
    let mut receivers: Vec<Receiver<'_>> = vec![
        Box::new(|bench| with_relay(bench, expected)),
        Box::new(|bench| with_receivewal(bench, expected)),
        Box::new(|bench| with_storer(bench, &zeros.join("zeros"))),
    ];
    if !bench.settings.quick {
        receivers.push(Box::new(with_standby));
    }
    for _ in 0..bench.settings.rounds {
        receivers.iter().for_each(|receive| receive(bench));
        // Who was first is last in the next round.
        receivers.rotate_left(1);
    }
    bench.figures.remark(
        ROW,
        "From the start of the primary's walsender until all is reported flushed (pg_receivewal: until the last segment has its \
         name). The standby's figures include its replay, as far as it comes in that time. Bare loop: one thread receives and writes \
         to a file of that length full of zeros, another one syncs.",
    );
    let text = format!(
        "CRC-32C of the segments in the primary's directory, the relay's and pg_receivewal's: {expected:08x}, all the same."
    );
    bench.figures.remark(ROW, text);
}

fn with_relay(bench: &mut Bench, expected: u32) {
    let slot = "ingest";
    let mut relay = bench.stage.new_relay(ALL).name(slot).prepare();
    // A new slot on the primary would keep no WAL of before; this one is moved back to where the WAL begins.
    keep_from_the_start(bench, slot);
    relay.spawn();
    let pid = relay.pid();
    until_flushed(bench, WALRELAY, slot, pid);
    relay.terminate();
    assert_eq!(crc_of_segments(&relay.wal_dir(), &bench.stage.wal), expected, "what the relay has stored");
    drop_slot(bench, slot);
}

/// PostgreSQL makes physical slots that reserve WAL only from the last checkpoint on: which is where ours begins, because there
/// was none since.
fn keep_from_the_start(bench: &Bench, slot: &str) {
    bench.stage.primary.sql(&format!("select pg_create_physical_replication_slot('{slot}', true)"));
}

fn drop_slot(bench: &Bench, slot: &str) {
    let dropped = || bench.stage.primary.try_sql(&format!("select pg_drop_replication_slot('{slot}')")).ok();
    wait_for("the slot to be free", dropped);
}

fn with_standby(bench: &mut Bench) {
    let name = "ingest_standby";
    let standby = bench.stage.spawn_standby(name);
    let pid = standby.pid();
    until_flushed(bench, CASCADE, name, pid);
}

/// Waits until somebody has reported all of it as flushed.
fn until_flushed(bench: &mut Bench, who: &'static str, name: &str, pid: u32) {
    let (mut client, end) = (bench.stage.client(), bench.stage.wal.end);
    let mut ask = |what: &str| {
        let sql = format!("select {what} from pg_stat_replication where application_name = '{name}'");
        client.run(&sql).expect("the primary answers")
    };
    poll(&format!("{name} to stream"), || ask("sent_lsn"));
    let (began, before) = (Instant::now(), cpu_of_tree(pid));
    let age = ask("extract(epoch from clock_timestamp() - backend_start)");
    let age: f64 = age.and_then(|text| text.parse().ok()).unwrap_or_default();
    poll(&format!("{name} to have all"), || {
        let flushed = ask("flush_lsn").and_then(|text| text.parse().ok());
        flushed.filter(|lsn: &walrelay_proto::Lsn| *lsn >= end)
    });
    let took = began.elapsed() + Duration::from_secs_f64(age);
    note(bench, who, took, cpu_of_tree(pid).saturating_sub(before));
}

fn with_storer(bench: &mut Bench, file: &Path) {
    let (name, wal) = ("ingest_storer", bench.stage.wal.clone());
    let storer =
        Storer::start("store-bulk", file, wal.end.since(wal.start), &bench.stage.primary, name, wal.start);
    until_flushed(bench, STORING, name, storer.pid());
}

fn with_receivewal(bench: &mut Bench, expected: u32) {
    let (seg_size, wal) = (programs::seg_size(), bench.stage.wal.clone());
    let slot = "ingest_receivewal";
    keep_from_the_start(bench, slot);
    let began = Instant::now();
    let receiver = Receivewal::start(&bench.stage.primary, &["-n", "-S", slot], slot);
    let name = WalFileName { tli: TimelineId::FIRST, segno: wal.end.seg_before(seg_size) }.format(seg_size);
    poll("pg_receivewal to have all", || receiver.has(&name).then_some(()));
    let (took, cpu) = (began.elapsed(), cpu_of_tree(receiver.pid()));
    let stored = receiver.wal_dir();
    assert_eq!(crc_of_segments(&stored, &bench.stage.wal), expected, "what pg_receivewal has stored");
    drop(receiver);
    drop_slot(bench, slot);
    note(bench, RECEIVEWAL, took, cpu);
}

fn note(bench: &mut Bench, who: &'static str, took: Duration, cpu: Duration) {
    let gib = bench.stage.gib();
    bench.figures.add(ROW, SPEED, who, gib * GIB / took.as_secs_f64() / 1e6);
    bench.figures.add(ROW, CPU, who, cpu.as_secs_f64() / gib);
}
