//! An upstream that speaks another language: what it says is told by SQLSTATE, not by words.

use walrelay_testkit::{Cluster, Server, on_versions, wait_until};

use crate::relay_below;

// Those of the distribution come with translations.
on_versions!([pg15 = 15] a_german_upstream_is_understood);

fn a_german_upstream_is_understood(server: &Server) {
    let primary = Cluster::builder(server).seg_mb(1).password("richtig");
    let primary =
        primary.conf("wal_keep_size = 0").conf("max_wal_size = 2MB").conf("lc_messages = 'C.UTF-8'");
    // As good as a locale, and there on every machine.
    let primary = primary.env("LANGUAGE", "de").start();
    let said = primary.try_sql("select 1/0").expect_err("nobody can");
    assert!(said.0.contains("Division durch Null"), "{said}");

    primary.sql("create role plain login password 'richtig'");
    let upstream = |rest: &str| format!("host=127.0.0.1 port={} {rest}", primary.port());
    for (rest, words) in [
        ("user=postgres password=falsch", "(SQLSTATE 28P01)"),
        ("user=plain password=richtig", "ALTER ROLE ... REPLICATION"),
    ] {
        let mut relay = relay_below(&primary).upstream(&upstream(rest)).prepare();
        relay.spawn();
        let (code, said) = (relay.wait_exit(), relay.log().text());
        assert_eq!((code, said.contains(words)), (Some(7), true), "{rest}: {said}");
    }

    let mut relay = relay_below(&primary).start();
    let first = primary.switch_wal();
    relay.wait_for_segment(&first);
    relay.terminate();
    primary.sql("select pg_drop_replication_slot('walrelay')");
    let next = primary.wal_dir().join(primary.switch_wal());
    wait_until("the next segment is removed upstream", || {
        primary.switch_wal();
        primary.sql("checkpoint");
        !next.exists()
    });
    relay.spawn();
    relay.log().wait_for("no longer has the WAL from");
}
