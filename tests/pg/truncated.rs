//! Somebody truncates a file that the relay has mapped: never a death without a word.

use std::fs::File;
use std::path::Path;

use walrelay_testkit::{
    Cluster, Receivewal, Relay, S3, Scratch, Server, Signal, compare, on_one_version, wait_until,
};

use crate::relay_below;

on_one_version!(
    what_is_stored_through_a_map_and_gone_is_told,
    who_streams_from_it_is_cut_and_the_others_go_on,
    what_is_gone_while_it_is_archived_is_told_and_the_next_one_is_archived,
    what_is_gone_while_a_stores_client_sends_it_ends_the_relay_with_words
);

fn truncate(file: &Path, len: u64) {
    let file = File::options().write(true).open(file).expect("the relay has it");
    file.set_len(len).expect("files can be made shorter");
}

/// The store into the map cannot fail otherwise than by SIGBUS.
fn what_is_stored_through_a_map_and_gone_is_told(server: &Server) {
    let primary = Cluster::builder(server).seg_mb(1).start();
    let mut relay = relay_below(&primary).arg("--wal-write").arg("mmap").start();
    primary.switch_wal();
    relay.wait_for_flush(primary.settled_lsn());
    let mut partial =
        std::fs::read_dir(relay.wal_dir()).expect("it is there").flatten().map(|entry| entry.path());
    let partial = partial.find(|path| path.extension().is_some_and(|end| end == "partial"));
    let partial = partial.expect("a segment is being received");
    truncate(&partial, 0);
    primary.sql("create table t as select generate_series(1, 1000)");
    assert_eq!(relay.wait_exit(), Some(74), "{}", relay.log().tail());
    let said = format!("of mapped file \"{}\" (SIGBUS): it was truncated", partial.display());
    assert!(relay.log().text().contains(&said), "{}", relay.log().tail());
}

fn who_streams_from_it_is_cut_and_the_others_go_on(server: &Server) {
    let primary = Cluster::builder(server).seg_mb(1).start();
    let mut relay = relay_below(&primary).start();
    relay.create_slots(&["late", "good"]);
    let mut late = Receivewal::start(server, &relay.conninfo(), "late");
    let good = Receivewal::start(server, &relay.conninfo(), "good");
    let first = primary.switch_wal();
    late.wait_for_segment(&first);
    late.hold();
    // More than the sockets of one that does not read take.
    for _ in 0..24 {
        primary.sql("create table t as select generate_series(1, 40000) i; drop table t");
    }
    let last = primary.switch_wal();
    good.wait_for_segment(&last);
    let names = primary.finished_segments();
    let held = names.iter().filter(|name| **name > first);
    held.for_each(|name| truncate(&relay.wal_dir().join(name), 0));
    late.go_on();
    wait_until("the relay to say that it cannot read them", || {
        !relay.log().lines_with("could not read WAL segment", Default::default()).is_empty()
    });
    // What comes is nobody's loss.
    let next = primary.switch_wal();
    good.wait_for_segment(&next);
    compare::assert_segments(&primary, &good.wal_dir(), 10);
    relay.signal(Signal::TERM);
    assert_eq!(relay.wait_exit(), Some(0), "{}", relay.log().tail());
}

/// A relay that archives to a store which has been asked about a segment and does not answer, and the segment's name.
fn asked_about_a_segment(primary: &Cluster, s3: &S3, scratch: &Scratch, settings: &str) -> (Relay, String) {
    s3.behave(|it| it.hold = true);
    let config = format!(
        "[archive.main]\nurl = \"s3://bucket\"\nendpoint = \"{}\"\nregion = \"x\"\nconcurrency = 1\n{settings}",
        s3.endpoint()
    );
    let config = scratch.secret("walrelay.toml", &config);
    let relay = relay_below(primary).env("AWS_ACCESS_KEY_ID", "k").env("AWS_SECRET_ACCESS_KEY", "s");
    let relay = relay.arg("--config").arg(&config.display().to_string()).start();
    let name = primary.switch_wal();
    let mut asked = Vec::new();
    wait_until("the store to be asked about it", || {
        asked.extend(s3.take_requests());
        asked.iter().any(|request| request.contains(&name))
    });
    (relay, name)
}

/// It has been brought into memory, and its pages are gone when it is compressed.
fn what_is_gone_while_it_is_archived_is_told_and_the_next_one_is_archived(server: &Server) {
    let primary = Cluster::builder(server).seg_mb(1).start();
    let (s3, scratch) = (S3::start(), Scratch::new("gone"));
    let (mut relay, name) = asked_about_a_segment(&primary, &s3, &scratch, "compression = \"zstd\"\n");
    let before = std::fs::read(relay.wal_dir().join(&name)).expect("it is there");
    truncate(&relay.wal_dir().join(&name), 0);
    s3.behave(|it| it.hold = false);
    let told = format!("could not read \"{name}\" for archive target \"main\"");
    wait_until("the relay to say that it cannot read it", || {
        !relay.log().lines_with(&told, Default::default()).is_empty()
    });
    let next = primary.switch_wal();
    wait_until("the next one to be archived", || {
        s3.objects().keys().any(|key| key.contains(&format!("{next}.zst")))
    });
    assert!(!s3.objects().keys().any(|key| key.contains(&name)), "nothing of it was archived");
    // Somebody puts it back as it was.
    std::fs::write(relay.wal_dir().join(&name), before).expect("there is room");
    wait_until("it to be archived, too", || {
        s3.objects().keys().any(|key| key.contains(&format!("{name}.zst")))
    });
    relay.signal(Signal::TERM);
    assert_eq!(relay.wait_exit(), Some(0), "{}", relay.log().tail());
}

/// It is sent as it lies there, by somebody else's code: there is no going on.
fn what_is_gone_while_a_stores_client_sends_it_ends_the_relay_with_words(server: &Server) {
    let primary = Cluster::builder(server).seg_mb(1).start();
    let (s3, scratch) = (S3::start(), Scratch::new("gone"));
    let (mut relay, name) = asked_about_a_segment(&primary, &s3, &scratch, "");
    let path = relay.wal_dir().join(&name);
    truncate(&path, 0);
    s3.behave(|it| it.hold = false);
    assert_eq!(relay.wait_exit(), Some(74), "{}", relay.log().tail());
    let said = format!("of mapped file \"{}\" (SIGBUS): it was truncated", path.display());
    assert!(relay.log().text().contains(&said), "{}", relay.log().tail());
    assert!(!s3.objects().keys().any(|key| key.contains(&name)), "nothing of it was archived");
}
