//! SIGHUP changes limits, how much WAL is kept and the log's level, and a file with a mistake changes nothing.

use std::fs;
use std::net::SocketAddr;

use walrelay_testkit::{Cluster, Consumer, Mark, Relay, Scratch, Server, on_one_version, wait_until};

use crate::relay_below;

on_one_version!(limits_retention_and_the_level_change_without_a_restart);

fn limits_retention_and_the_level_change_without_a_restart(server: &Server) {
    let primary = Cluster::builder(server).seg_mb(1).start();
    let scratch = Scratch::new("reload");
    let file = scratch.join("walrelay.toml");
    let write = |text: &str| fs::write(&file, text).expect("the directory is ours");
    write("max-wal-senders = 1\n");
    let mut relay = relay_below(&primary).arg("--config").arg(&file.display().to_string()).start();
    let reload = |relay: &mut Relay, said: &[&str]| {
        let mark = relay.log().mark();
        relay.reload();
        said.iter().for_each(|line| relay.log().wait_for_after(mark, line));
    };
    let connect = |relay: &Relay| {
        let address = SocketAddr::from(([127, 0, 0, 1], relay.port()));
        Consumer::connect(address, "consumer").map_err(|error| error.to_string())
    };
    // Whoever asked last may still be leaving.
    let mut first = None;
    wait_until("a place", || {
        first = connect(&relay).ok();
        first.is_some()
    });
    assert!(connect(&relay).expect_err("there is one place").contains("max_wal_senders"));
    for _ in 0..4 {
        primary.sql("create table if not exists t (); drop table t");
        primary.switch_wal();
    }
    relay.log().wait_for("started streaming");
    wait_until("segments", || segments(&relay) > 4);

    // A mistake anywhere: nothing of it is in effect.
    write("max_wal_senders = 3\nwal_keep_size = \"much\"\n");
    reload(&mut relay, &["configuration not reloaded, the old one stays: "]);
    assert!(connect(&relay).expect_err("there is one place").contains("max_wal_senders"));

    write("max_wal_senders = 3\nwal_keep_size = 0\nslot = \"other\"\n");
    let said = [
        "max-wal-senders changed, in effect for new connections",
        "wal-keep-size changed, in effect",
        "configuration reloaded",
    ];
    reload(&mut relay, &said);
    let _second = connect(&relay).expect("there are three places");
    wait_until("old WAL to be gone", || segments(&relay) < 4);
    let shown = relay.psql("dbname=walrelay", &["show wal_keep_size", "show max_wal_senders"]);
    assert_eq!(shown.as_deref(), Ok("0\n3"));

    // What holds from then on, and for whoever comes then.
    write("max_wal_senders = 3\n");
    relay.reload();
    relay.create_slot("one");
    write(
        "max_wal_senders = 3\nmax_replication_slots = 1\nsql_overlay = \"off\"\nrecall_size = \"1GB\"\nbase_backup_max_rate = \"10MB\"\nwal_receiver_timeout = \"7s\"\nshutdown_timeout = \"3s\"\n",
    );
    let said = [
        "max-replication-slots changed, in effect",
        "sql-overlay changed, in effect for new connections",
        "recall-size changed, in effect",
        "base-backup-max-rate changed, in effect",
        "wal-receiver-timeout changed, in effect for new connections",
        "shutdown-timeout changed, in effect",
        "configuration reloaded",
    ];
    reload(&mut relay, &said);
    let refused = relay.try_command("CREATE_REPLICATION_SLOT two PHYSICAL").expect_err("there is one place");
    assert!(refused.to_string().contains("all replication slots are in use"), "{refused}");
    assert_eq!(relay.sql("select count(*) from pg_replication_slots where slot_name = 'one'"), "0");
    write("max_wal_senders = 3\nmax_replication_slots = 2\n");
    reload(&mut relay, &["sql-overlay changed, in effect for new connections", "configuration reloaded"]);
    relay.create_slot("two");
    assert_eq!(relay.sql("select count(*) from pg_replication_slots where slot_name = 'one'"), "1");

    write("log-level = \"error\"\n");
    relay.reload();
    wait_until("the defaults", || {
        relay.psql("dbname=walrelay", &["show max_wal_senders"]).as_deref() == Ok("1000")
    });
    // Sessions that ended just now may have been told of before.
    let quiet = relay.log().mark();
    drop(first);
    primary.sql("create table u ()");
    relay.wait_for_flush(primary.flush_lsn());
    assert_eq!(relay.log().lines_with("INFO", quiet), [""; 0]);
    assert_eq!(relay.log().lines_with("panicked", Mark::default()), [""; 0]);
}

fn segments(relay: &Relay) -> usize {
    let names = fs::read_dir(relay.wal_dir()).expect("it is there").flatten();
    names.filter(|entry| entry.file_name().len() == 24).count()
}
