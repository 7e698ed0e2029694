//! Row `start`: a relay with very much WAL on its disk.

use std::fs::File;
use std::path::Path;
use std::time::Instant;

use walrelay_proto::{Lsn, SegNo, TimelineId, WalFileName};

use super::Bench;
use super::figures::WALRELAY;
use super::poll;
use super::programs::seg_size;
use super::stage::{ALL, local, relay};
use super::table::SECONDS;
use crate::{Cluster, Consumer, Relay, Server};

const ROW: &str = "start";
/// Segments of 16 MB that make a terabyte.
const SEGMENTS: usize = 1 << 16;
/// Behind them, with WAL.
const REAL: usize = 4;

pub(crate) fn measure(bench: &mut Bench, server: &Server) {
    let mut primary = Cluster::builder(server).start();
    move_on(&mut primary);
    let mut relay = relay(&bench.settings, &primary, ALL).start();
    let from = primary.settled_lsn().seg_start(seg_size());
    let segments: Vec<String> = (0..REAL).map(|_| primary.switch_wal()).collect();
    segments.iter().for_each(|segment| relay.wait_for_segment(segment));
    relay.terminate();
    fill(&relay.wal_dir(), from.seg_at(seg_size()));
    // Files that have appeared since are all synced first.
    let first = start(&mut relay, from);
    for _ in 0..bench.settings.rounds {
        let took = start(&mut relay, from);
        bench.figures.add(ROW, SECONDS, WALRELAY, took);
    }
    let text = format!(
        "{SEGMENTS} segment files of 16 MB, sparse, and {REAL} real ones behind them. The relay had been stopped in order; \
         when that is not so every file is synced first: {first:.1} s."
    );
    bench.figures.remark(ROW, text);
}

/// Starts the relay until it serves WAL, and stops it; seconds.
fn start(relay: &mut Relay, from: Lsn) -> f64 {
    let began = Instant::now();
    relay.spawn();
    let served = poll("the relay to serve WAL", || first_byte(relay.port(), from).ok());
    let took = began.elapsed().as_secs_f64();
    drop(served);
    relay.terminate();
    took
}

/// Has the primary's WAL begin beyond a terabyte.
fn move_on(primary: &mut Cluster) {
    primary.stop();
    let first =
        WalFileName { tli: TimelineId::FIRST, segno: segno(SEGMENTS as u64 + 256) }.format(seg_size());
    let dir = primary.data_dir().display().to_string();
    let moved = primary.server().run("pg_resetwal", &["-l", &first, "-D", &dir]);
    moved.unwrap_or_else(|error| panic!("{error}"));
    primary.start();
}

fn segno(number: u64) -> SegNo {
    Lsn::new(number << 24).seg_at(seg_size())
}

/// A terabyte of segments before this one, which take no room.
fn fill(dir: &Path, first: SegNo) {
    for segno in std::iter::successors(first.prev(), |segno| segno.prev()).take(SEGMENTS) {
        let name = WalFileName { tli: TimelineId::FIRST, segno }.format(seg_size());
        let made = File::create(dir.join(name)).and_then(|file| file.set_len(16 << 20));
        made.expect("there is room for a name");
    }
}

fn first_byte(port: u16, from: Lsn) -> std::io::Result<Consumer> {
    let mut consumer = Consumer::connect(local(port), "first")?;
    consumer.start(from)?;
    consumer.next_wal()?;
    Ok(consumer)
}
