//! Slots on disks that hang or are full, and without descriptors: nobody is held up, and making room needs no room.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use walrelay_testkit::{
    Cluster, Consumer, Disk, Port, Receivewal, Relay, Scratch, Server, on_one_version, wait_until,
};

use crate::relay_below;
use crate::status::{get, metric, status};

on_one_version!(
    a_sync_that_hangs_holds_up_no_consumer,
    a_full_disk_heals_when_a_slot_is_dropped,
    a_full_disk_heals_by_a_restart_with_a_limit,
    slots_can_be_changed_without_descriptors,
);

fn a_sync_that_hangs_holds_up_no_consumer(server: &Server) {
    let primary = Cluster::builder(server).seg_mb(1).start();
    let port = Port::take();
    let relay = relay_below(&primary).arg("--http-listen").arg(&port.number().to_string()).start();
    relay.create_slots(&["used", "old"]);
    let address = SocketAddr::from(([127, 0, 0, 1], relay.port()));
    let mut plain = Consumer::connect(address, "plain").expect("the relay takes consumers");
    let start = relay.flush_lsn();
    plain.start(start).expect("the relay has the WAL");
    let mut maker = relay.session("replication=1");
    let mut dropper = relay.session("dbname=postgres");

    let hang = ["trace=fsync,fdatasync", "inject=fsync,fdatasync:delay_enter=600000000"];
    let hung = relay.trace(&hang);
    maker.send("CREATE_REPLICATION_SLOT made PHYSICAL").expect("it is there");
    dropper.send("select pg_drop_replication_slot('old')").expect("it is there");
    let active = "select count(*) from pg_replication_slots where slot_name in ('made', 'old') and active";
    relay.wait_for_sql(active, "2");

    // With a slot and without, connected before and after.
    let receivewal = Receivewal::start(server, &relay.conninfo(), "used");
    let mut late = Consumer::connect(address, "late").expect("the relay takes consumers");
    late.start(start).expect("the relay has the WAL");
    primary.sql("create table t as select generate_series(1, 10000)");
    let segment = primary.switch_wal();
    primary.sql("insert into t values (0)");
    let end = primary.flush_lsn();
    plain.drain(end).expect("WAL comes");
    late.drain(end).expect("WAL comes");
    receivewal.wait_for_segment(&segment);
    assert_eq!(relay.sql(active), "2", "it still hangs");

    // Commits that wait for the relay hang, and whoever looks is told.
    let hangs = "a sync of the data directory does not return";
    relay.log().wait_for(hangs);
    let (code, text) = status(&[&relay.conninfo()]);
    assert!(code == Some(1) && text.starts_with("! ") && text.contains(hangs), "{text}");
    assert!(get(&port, "/healthz").contains(hangs), "{}", get(&port, "/healthz"));
    assert_eq!(metric(&port, "walrelay_trouble{kind=\"not_flushing\"}"), Some(1.0));
    assert!(metric(&port, "walrelay_unflushed_age_seconds").is_some_and(|seconds| seconds > 5.0));
    let row = relay.psql("dbname=walrelay", &["show troubles"]).expect("it is answered");
    assert!(row.starts_with("not_flushing||20") && row.ends_with("|WalrelayNotFlushing"), "{row}");

    drop(hung);
    maker.answer().expect("it is made");
    dropper.answer().expect("it is dropped");
    relay.wait_for_sql(
        "select string_agg(slot_name, ',' order by slot_name) from pg_replication_slots",
        "made,used",
    );
    relay.log().wait_for("received WAL is durable again, after");
    wait_until("all to be well", || metric(&port, "walrelay_trouble{kind=\"not_flushing\"}") == Some(0.0));
    relay.assert_calm_but(&[hangs]);
}

/// Takes what is left, to the last byte.
fn fill_up(disk: &Disk) {
    let mut file = fs::File::create(disk.join("rest")).expect("a full disk still has a directory entry");
    let mut size = 64 << 10;
    while size > 0 {
        if file.write_all(&vec![1; size]).and_then(|()| file.sync_data()).is_err() {
            size /= 2;
        }
    }
}

/// A relay whose slot has filled its disk.
fn fill_by_slot(primary: &Cluster, disk: &Disk, config: &Path) -> Relay {
    let relay = relay_below(primary).data_dir(disk.join("data")).arg("--wal-keep-size").arg("0");
    let relay = relay.arg("--config").arg(&config.display().to_string()).start();
    relay.create_slot("absent");
    relay.wait_for_flush(primary.settled_lsn());
    disk.fill_but(4 << 20);
    primary.pgbench_init(1);
    relay.log().wait_for("could not allocate WAL segment");
    fill_up(disk);
    assert!(relay.flush_lsn() < primary.flush_lsn());
    relay
}

fn a_full_disk_heals_when_a_slot_is_dropped(server: &Server) {
    let (primary, disk) = (Cluster::builder(server).seg_mb(1).start(), Disk::ext4(48));
    let scratch = Scratch::new("config");
    let config = scratch.join("walrelay.toml");
    fs::write(&config, "").expect("the directory is ours");
    let relay = fill_by_slot(&primary, &disk, &config);
    relay.command("DROP_REPLICATION_SLOT absent");
    relay.wait_for_flush(primary.settled_lsn());
}

fn a_full_disk_heals_by_a_restart_with_a_limit(server: &Server) {
    let (primary, disk) = (Cluster::builder(server).seg_mb(1).start(), Disk::ext4(48));
    let scratch = Scratch::new("config");
    let config = scratch.join("walrelay.toml");
    fs::write(&config, "").expect("the directory is ours");
    let mut relay = fill_by_slot(&primary, &disk, &config);
    fs::write(&config, "max-slot-wal-keep-size = \"1MB\"\n").expect("the directory is ours");
    relay.restart();
    relay.log().wait_for("invalidating slot \"absent\"");
    relay.wait_for_flush(primary.settled_lsn());
    // It stays lost.
    relay.restart();
    let status = "select wal_status from pg_replication_slots where slot_name = 'absent'";
    assert_eq!(relay.sql(status), "lost");
}

fn slots_can_be_changed_without_descriptors(server: &Server) {
    let primary = Cluster::builder(server).start();
    let relay = relay_below(&primary).start();
    relay.create_slot("old");
    relay.wait_for_flush(primary.settled_lsn());
    let mut session = relay.session("replication=1");
    session.run("IDENTIFY_SYSTEM").expect("it answers");
    let process = Pid::from_raw(relay.pid().cast_signed());
    let before = getrlimit(Resource::Nofile);
    let limit = |current| {
        let limit = Rlimit { current: Some(current), maximum: before.maximum };
        prlimit(process, Resource::Nofile, limit).expect("the process is ours");
    };
    limit(3);
    session.run("DROP_REPLICATION_SLOT old").expect("the slot is dropped");
    session.run("CREATE_REPLICATION_SLOT new PHYSICAL").expect("the slot is made");
    relay.log().wait_for("raise the limit of open files");
    limit(before.current.unwrap_or(1024));
    relay.log().wait_for("old WAL can be removed again");
    wait_until("the slots to be in the file", || {
        let text = fs::read_to_string(relay.data_dir().join("slots.toml")).unwrap_or_default();
        text.contains("\"new\"") && !text.contains("\"old\"")
    });
}
