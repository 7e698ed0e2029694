//! Who takes part: a primary, and below it a cascading standby and a relay with the same WAL.

use std::net::SocketAddr;
use std::ops::Range;
use std::path::Path;

use walrelay_proto::Lsn;
use walrelay_testkit::{Cluster, Relay, Server};

const GIB: f64 = (1_u64 << 30) as f64;

/// A server to be measured.
pub(crate) struct Target {
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    /// Its one process; `None` if there is one for each consumer.
    pub(crate) pid: Option<u32>,
}

pub(crate) struct Stage {
    pub(crate) cascade: Target,
    pub(crate) relay: Target,
    /// From a segment's start to another's; both hold it and nobody writes meanwhile.
    pub(crate) wal: Range<Lsn>,
    // Ended in this order.
    _relay: Relay,
    _standby: Cluster,
    primary: Cluster,
}

impl Stage {
    pub(crate) fn set(server: &Server, binary: &Path, gib: f64) -> Stage {
        let keep = format!("{}GB", gib.ceil() as u64 + 4);
        let primary = Cluster::builder(server)
            .conf(&format!("wal_keep_size = {keep}\nmax_wal_size = {keep}"))
            .conf("autovacuum = off\ncheckpoint_timeout = 1h\nmax_wal_senders = 60")
            .start();
        let standby = primary.standby().name("cascade").conf("fsync = on").start();
        let relay = Relay::builder(binary, &primary).arg("--wal-keep-size").arg(&keep).start();
        let wal = write(&primary, gib);
        standby.wait_for_replay(wal.end);
        relay.wait_for_flush(wal.end);
        // A restartpoint now, rather than while something is measured.
        standby.sql("checkpoint");
        let target = |name, port: u16, pid| Target { name, address: ([127, 0, 0, 1], port).into(), pid };
        Stage {
            cascade: target("cascading standby", standby.port(), None),
            relay: target("walrelay", relay.port(), Some(relay.pid())),
            wal,
            _relay: relay,
            _standby: standby,
            primary,
        }
    }

    pub(crate) fn gib(&self) -> f64 {
        self.wal.end.since(self.wal.start) as f64 / GIB
    }

    /// A megabyte of WAL; returns its end.
    pub(crate) fn write_a_little(&self) -> Lsn {
        self.primary.sql("select pg_logical_emit_message(false, 'bench', repeat('x', 1000000))");
        self.primary.settled_lsn()
    }
}

/// Bulk loads, index builds and small transactions, as long as it takes.
fn write(primary: &Cluster, gib: f64) -> Range<Lsn> {
    let segment = || {
        primary.switch_wal();
        primary.settled_lsn().seg_start(primary.seg_size())
    };
    let start = segment();
    while (primary.flush_lsn().since(start) as f64) < gib * GIB {
        primary.pgbench_init(20);
        primary.pgbench(4, 2000);
    }
    start..segment()
}
