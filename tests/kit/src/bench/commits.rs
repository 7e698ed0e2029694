//! Rows `commit-*` and `stall`: commits that wait for a standby's disk.

use std::time::{Duration, Instant};

use super::Bench;
use super::client::Client;
use super::figures::{CASCADE, NOTHING, RECEIVEWAL, STORING, WALRELAY};
use super::numbers::{at, micros};
use super::programs::{Answerer, Receivewal, Storer};
use super::stage::{CASCADE_NAME, Middle, RELAY_NAME};
use super::table::{COMMIT_CPU, P50, P999, TPS, WORST};
use super::usage::cpu_of_tree;
use crate::{Cluster, Scratch};

/// Clients at once while the worst commit is looked for.
const WRITERS: usize = 4;
/// 8 kB of WAL each, so that segments end often.
const LARGE: &str = "select pg_logical_emit_message(true, 'stall', repeat('x', 8000))";
/// A small commit that changes something.
pub(crate) const SMALL: &str = "insert into commits values (1)";
const ALONE: &str = "answerer";
const RECEIVER: &str = "receiver";
const STORER: &str = "storer";
/// In which one stores that does nothing else, bytes.
const ZEROS: u64 = 64 << 20;

pub(crate) fn measure(bench: &mut Bench, row: &'static str, clients: usize) {
    let zeros = Scratch::new("zeros");
    for _ in 0..bench.settings.rounds {
        bench.stage.bring(Middle::Relay);
        let pid = bench.stage.relay.pid();
        count(bench, row, WALRELAY, RELAY_NAME, pid, clients);
        if !bench.settings.quick {
            bench.stage.bring(Middle::Cascade);
            let pid = bench.stage.standby.as_ref().map_or(0, Cluster::pid);
            count(bench, row, CASCADE, CASCADE_NAME, pid, clients);
        }
        bench.stage.bring(Middle::Neither);
        with_receivewal(bench, row, clients);
        let answerer = Answerer::start(&bench.stage.primary, ALONE);
        count(bench, row, NOTHING, ALONE, answerer.pid(), clients);
        drop(answerer);
        let start = bench.stage.primary.settled_lsn();
        let storer = Storer::start("store", &zeros.join("zeros"), ZEROS, &bench.stage.primary, STORER, start);
        count(bench, row, STORING, STORER, storer.pid(), clients);
    }
    bench.figures.remark(
        row,
        "The primary syncs first, then whom it waits for. pg_receivewal: with `--synchronous` and a slot. Bare loop: one \
         thread that receives, writes to a file full of zeros, syncs and reports.",
    );
}

fn with_receivewal(bench: &mut Bench, row: &'static str, clients: usize) {
    let primary = &bench.stage.primary;
    // Without WAL of before: it would have to fetch that first.
    primary.sql(&format!("select pg_create_physical_replication_slot('{RECEIVER}')"));
    let receiver = Receivewal::start(primary, &["-n", "--synchronous", "-s", "1", "-S", RECEIVER], RECEIVER);
    count(bench, row, RECEIVEWAL, RECEIVER, receiver.pid(), clients);
    drop(receiver);
    let drop_slot = format!("select pg_drop_replication_slot('{RECEIVER}')");
    crate::wait_until("the slot to be free", || bench.stage.primary.try_sql(&drop_slot).is_ok());
}

/// Commits by so many clients that wait for the standby of this name, whose processes are below `pid`.
fn count(bench: &mut Bench, row: &'static str, who: &'static str, name: &str, pid: u32, clients: usize) {
    bench.stage.wait_for_commits_of(name);
    let before = cpu_of_tree(pid);
    let began = Instant::now();
    let times = commit(bench, SMALL, clients, bench.settings.span);
    let (took, cpu) = (began.elapsed(), cpu_of_tree(pid).saturating_sub(before));
    bench.stage.wait_for_nobody();
    let commits = times.len() as f64;
    bench.figures.add(row, TPS, who, commits / took.as_secs_f64());
    bench.figures.add(row, P50, who, at(&times, 0.5).unwrap_or(f64::NAN));
    bench.figures.add(row, COMMIT_CPU, who, cpu.as_secs_f64() * 1e6 / commits);
}

/// How long each commit took, µs.
fn commit(bench: &Bench, sql: &'static str, clients: usize, span: Duration) -> Vec<f64> {
    let clients: Vec<Client> = (0..clients).map(|_| bench.stage.client()).collect();
    let until = Instant::now() + span;
    let work = |mut client: Client| {
        let mut times = Vec::with_capacity(1 << 14);
        while Instant::now() < until {
            let began = Instant::now();
            client.run(sql).expect("the primary commits");
            times.push(micros(began.elapsed()));
        }
        times
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = clients.into_iter().map(|client| scope.spawn(move || work(client))).collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("commits succeed")).collect()
    })
}

/// Looks for the worst commit so often with each, in turns.
const STALL_TURNS: u32 = 3;

/// The worst of many commits, with the relay, and with a standby that stores nothing: what the primary itself does to them. It
/// writes no zeros for its next segments meanwhile, which alone would take longer than what is looked for.
pub(crate) fn measure_stall(bench: &mut Bench) {
    set_zeros(bench, "off");
    let mut watched = [Watched::default(), Watched::default()];
    for _ in 0..STALL_TURNS {
        bench.stage.bring(Middle::Relay);
        watch(bench, RELAY_NAME, &mut watched[0]);
        bench.stage.bring(Middle::Neither);
        let _answerer = Answerer::start(&bench.stage.primary, ALONE);
        watch(bench, ALONE, &mut watched[1]);
    }
    set_zeros(bench, "on");
    for (who, watched) in [WALRELAY, NOTHING].into_iter().zip(watched) {
        watched.note(bench, who);
    }
    bench.figures.remark(
        "stall",
        "The primary has `wal_init_zero = off`: else it writes 16 MB at each segment's end.",
    );
}

fn set_zeros(bench: &Bench, value: &str) {
    bench.stage.primary.append_conf(&format!("wal_init_zero = {value}"));
    bench.stage.primary.reload();
    bench.stage.primary.wait_for_sql("show wal_init_zero", value);
}

/// All commits with somebody.
#[derive(Debug, Default)]
struct Watched {
    /// µs each.
    times: Vec<f64>,
    segments: u64,
}

impl Watched {
    fn note(self, bench: &mut Bench, who: &'static str) {
        let millis = |part| at(&self.times, part).unwrap_or(f64::NAN) / 1000.0;
        bench.figures.add("stall", WORST, who, millis(1.0));
        bench.figures.add("stall", P999, who, millis(0.999));
        let text = format!(
            "{who}: {} commits of 8 kB by {WRITERS} clients in {} s, in {STALL_TURNS} turns, {} segment ends.",
            self.times.len(),
            bench.settings.stall.as_secs(),
            self.segments
        );
        bench.figures.remark("stall", text);
    }
}

fn watch(bench: &mut Bench, name: &str, watched: &mut Watched) {
    bench.stage.wait_for_commits_of(name);
    let begin = bench.stage.primary.flush_lsn();
    watched.times.extend(commit(bench, LARGE, WRITERS, bench.settings.stall / STALL_TURNS));
    let end = bench.stage.primary.flush_lsn();
    bench.stage.wait_for_nobody();
    watched.segments += end.since(begin) >> 24;
}
