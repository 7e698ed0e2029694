//! The relay's own memory does not grow with the backlog, nor much with those who have one.

use std::net::SocketAddr;

use walrelay_proto::Lsn;
use walrelay_testkit::{Cluster, Consumer, Scratch, Server, Watch, on_one_version};

use crate::relay_below;

on_one_version!(memory_is_bounded_whatever_the_backlog);

const CONSUMERS: usize = 200;
/// Behind which each of them stays, spread over it.
const BACKLOG: u64 = 1280 << 20;
/// What a consumer reads at its turn, bytes.
const SIP: u64 = 300_000;

fn memory_is_bounded_whatever_the_backlog(server: &Server) {
    let scratch = Scratch::new("archive");
    let dir = scratch.dir("wal");
    let target = format!("[archive.main]\nurl = \"file://{}\"\ncompression = \"zstd\"\n", dir.display());
    let config = scratch.secret("walrelay.toml", &target);
    let primary = Cluster::builder(server).start();
    let relay = relay_below(&primary).arg("--wal-keep-size").arg("0").arg("--recall-size").arg("64MB");
    // Their turns may be long in coming where the machine is busy.
    let relay = relay.arg("--wal-sender-timeout").arg("10min");
    let relay = relay.arg("--config").arg(&config.display().to_string()).start();
    let watch = Watch::start(relay.pid());

    let begin = primary.settled_lsn().seg_start(primary.seg_size());
    let mut last = String::new();
    while primary.flush_lsn().since(begin) < BACKLOG {
        // 32 kB that repeat: not nothing to a compressor.
        let text = "(select repeat(string_agg(md5(i::text), ''), 2000) from generate_series(1, 1000) i)";
        primary.sql(&format!("select pg_logical_emit_message(false, 'x', {text})"));
        last = primary.switch_wal();
    }
    relay.wait_for_segment(&last);
    walrelay_testkit::wait_until("the oldest WAL to be in the archive only", || {
        let kept = std::fs::read_dir(relay.wal_dir()).expect("it is there").count();
        kept < 10 && dir.join(format!("{last}.zst")).exists()
    });

    let end = relay.flush_lsn();
    let pgbench = {
        primary.pgbench_init(1);
        primary.spawn_pgbench(2)
    };
    let address = SocketAddr::from(([127, 0, 0, 1], relay.port()));
    let mut consumers: Vec<(Consumer, Lsn)> = (0..CONSUMERS)
        .map(|number| {
            let behind = end.since(begin) / CONSUMERS as u64 * number as u64;
            let start = begin.advance(behind).seg_start(primary.seg_size());
            let mut consumer =
                Consumer::connect(address, &format!("slow{number}")).expect("it takes consumers");
            consumer.start(start).expect("the archive has the WAL");
            (consumer, start)
        })
        .collect();
    for _ in 0..8 {
        for (consumer, read) in &mut consumers {
            *read = read.advance(SIP).min(end);
            consumer.drain(*read).expect("WAL comes");
            consumer.report().expect("it is still wanted");
        }
    }
    pgbench.stop();

    // What is promised (docs/RELIABILITY.md).
    let bound = (64 << 20) + CONSUMERS as u64 * (64 << 10);
    let most = watch.most();
    println!("{} MB of private memory, {} descriptors at most", most.private >> 20, most.descriptors);
    assert!(most.private <= bound, "{} bytes of private memory, more than {bound}", most.private);
    relay.assert_calm();
}
