//! An old primary that has removed its own WAL comes back as a standby: what was left of its timeline comes from the relay.

use std::fs;
use std::path::Path;

use walrelay_proto::{TimelineId, WalFileName};
use walrelay_testkit::{Cluster, Relay, Scratch, Server, on_every_version, tied_command, wait_until};

use crate::restore::readable_binary;
use crate::{relay_below, walrelay};

on_every_version!(an_old_primary_without_its_wal_is_rewound_with_the_relays);

fn an_old_primary_without_its_wal_is_rewound_with_the_relays(server: &Server) {
    let scratch = Scratch::new("rewind");
    let builder = Cluster::builder(server).name("a").seg_mb(1).conf("wal_log_hints = on");
    let mut a = builder.conf("autovacuum = off").start();
    a.sql("create table t (i int)");
    let mut b = a.standby().name("b").start();
    let mut relay = relay_below(&a).arg("--wal-keep-size").arg("1GB").start();
    relay.set_upstream(&Relay::hosts(&[&a, &b]));
    relay.restart();
    let from = relay.conninfo();
    let restore = format!("\"{}\" restore --from \"{from}\"", readable_binary(&scratch).display());
    a.append_conf(&format!("restore_command = '{restore} %f %p'"));
    a.append_conf("wal_keep_size = 0\nmin_wal_size = 2MB\nmax_wal_size = 2MB");
    a.reload();
    a.sql("insert into t values (1)");
    b.wait_for_replay(a.settled_lsn());
    a.freeze_walsender("b");
    // On the branch: more than the primary keeps.
    let left = a.sql("select pg_walfile_name(pg_current_wal_lsn())");
    let second = a.switch_wal();
    wait_until("the primary to remove WAL", || {
        a.sql("insert into t select generate_series(1, 1000)");
        a.switch_wal();
        a.sql("checkpoint");
        !a.wal_dir().join(&left).exists() && !a.wal_dir().join(&second).exists()
    });
    relay.wait_for_flush(a.settled_lsn());
    a.kill9();
    b.promote();
    relay.wait_for_timeline(2);

    let run = |options: &[&str], file: &str| {
        let to = scratch.join("RECOVERYXLOG");
        let _ = fs::remove_file(&to);
        let mut command = tied_command(walrelay());
        command.args(["restore", "--strict", "--from", &from]).args(options).arg(file).arg(&to);
        let code = command.output().expect("the program is there").status.code();
        (code, fs::read(&to).unwrap_or_default())
    };
    let next = after(&left, &b);
    let (code, found) = run(&[], &next);
    assert!(
        code != Some(0) && found.is_empty(),
        "{code:?}: what was left is given to nobody who does not ask"
    );
    let (code, found) = run(&["--branch", "1"], &next);
    assert_eq!(code, Some(0));
    assert!(found == held(&relay.wal_dir(), &next));

    // Without a checkpoint pg_rewind 15 finds no new timeline, and nothing to do.
    b.sql("checkpoint");
    let without = a.rewind_from(&b.local_conninfo()).expect_err("its WAL is gone");
    assert!(without.contains(&left) || without.contains("could not"), "{without}");
    // The configuration that all servers have, and the rewound one gets with the files.
    b.append_conf(&format!("restore_command = '{restore} %f %p'"));
    b.reload();
    a.rejoin(&b).unwrap_or_else(|error| panic!("{error}"));
    a.start();
    assert_eq!(a.sql("select pg_is_in_recovery()"), "t");
    b.sql("insert into t values (2)");
    a.wait_for_replay(b.settled_lsn());
    assert_eq!(a.sql("select count(*) from t"), "2");
    b.stop();
}

/// The segment behind this one.
fn after(file: &str, cluster: &Cluster) -> String {
    let size = cluster.seg_size();
    let name = WalFileName::parse(file, size).expect("PostgreSQL has named it");
    WalFileName::new(TimelineId::FIRST, name.segno.next()).format(size)
}

fn held(dir: &Path, file: &str) -> Vec<u8> {
    let finished = fs::read(dir.join(file));
    finished.or_else(|_| fs::read(dir.join(format!("{file}.partial")))).expect("the relay has it")
}
