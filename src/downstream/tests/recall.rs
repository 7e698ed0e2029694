//! START_REPLICATION from before what is on the relay's disk, with copies elsewhere.

use std::sync::Arc;

use walrelay_proto::generate::WalGenerator;
use walrelay_proto::{Lsn, SegNo, SegSize, SystemId, TimelineId, WalFileName, WalIdentity};

use super::kit::*;
use crate::archive::memory::Memory;

fn name(segno: u64) -> String {
    let name = WalFileName::new(TimelineId::FIRST, SegNo::new(segno));
    name.format(SegSize::new(SEG).unwrap())
}

/// A relay that has kept the newest segments only, all its WAL, and a source with every finished segment.
async fn relay_with_archive() -> (Relay, Vec<u8>, Arc<Memory>) {
    let archive = Arc::new(Memory::new("archive"));
    let mut relay =
        Relay::with(Options { sources: vec![archive.clone()], wal_keep_size: 0, ..Options::default() }).await;
    let id = WalIdentity { system_id: SystemId(SYSTEM_ID), seg_size: SegSize::new(SEG).unwrap() };
    let mut wal = WalGenerator::new(id, TimelineId::FIRST, START, 1).with_magic(0xD116);
    for len in [50_000, 8 * SEG as usize] {
        wal.fill(len);
    }
    let wal = wal.take();
    for (segno, segment) in (3..).zip(wal.chunks_exact(SEG as usize)) {
        archive.put(&name(segno), segment.to_vec());
    }
    relay.receive(|wal| wal.fill(8 * SEG as usize));
    let kept = Lsn::new(10 * SEG);
    until("old WAL has gone", || relay.store.oldest().is_some_and(|oldest| oldest >= kept)).await;
    (relay, wal, archive)
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let begun = std::time::Instant::now();
    while !condition() {
        assert!(begun.elapsed().as_secs() < 20, "{what}");
        tokio::task::yield_now().await;
    }
}

async fn read(client: &mut Client<tokio::net::TcpStream>, from: Lsn, len: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() < len {
        let (at, wal) = client.wal().await;
        assert_eq!(at, from.advance(all.len() as u64));
        all.extend(wal);
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn wal_that_has_left_the_disk_is_streamed_as_if_it_were_there() {
    let (mut relay, wal, archive) = relay_with_archive().await;
    let mut first = relay.session().await;
    first.start(&format!("{START} TIMELINE 1")).await;
    assert!(read(&mut first, START, wal.len()).await == wal);
    // From the middle of a segment, and on into what comes live.
    let (mut second, from) = (relay.session().await, START.advance(2 * SEG + 4711));
    second.start(&format!("{from} TIMELINE 1")).await;
    let rest = &wal[from.since(START) as usize..];
    assert!(read(&mut second, from, rest.len()).await == *rest);
    let new = relay.receive(|wal| _ = wal.record(300));
    assert_eq!(second.wal().await.1, new);
    assert_eq!(archive.asked(&name(12)), 0, "what is on disk is read there");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_source_has_is_refused_as_postgresql_does() {
    let (relay, _, archive) = relay_with_archive().await;
    archive.remove(&name(5));
    let mut client = relay.session().await;
    client.start(&format!("{START} TIMELINE 1")).await;
    read(&mut client, START, 2 * SEG as usize).await;
    let error = client.until_ready().await[0].error();
    let text = format!("requested WAL segment {} has already been removed", name(5));
    assert_eq!(error, ("ERROR".to_owned(), "58P01".to_owned(), text));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_consumer_that_waits_for_a_source_is_kept_alive_and_holds_up_nobody() {
    let (mut relay, wal, archive) = relay_with_archive().await;
    archive.set_open(false);
    let mut waiting = relay.session().await;
    waiting.start(&format!("{START} TIMELINE 1")).await;
    until("asked", || archive.asked(&name(3)) > 0).await;
    let end = relay.store.tip().unwrap().write_lsn;
    let mut live = relay.session().await;
    live.start(&format!("{end} TIMELINE 1")).await;
    let new = relay.receive(|wal| _ = wal.record(300));
    assert_eq!(live.wal().await, (end, new));
    waiting.status(START.as_u64(), START.as_u64(), true).await;
    assert_eq!(waiting.keepalive().await, (START, false));
    archive.set_down(true);
    archive.set_open(true);
    until("asked again", || archive.asked(&name(3)) > 1).await;
    waiting.status(START.as_u64(), START.as_u64(), true).await;
    assert_eq!(waiting.keepalive().await, (START, false));
    archive.set_down(false);
    assert!(read(&mut waiting, START, wal.len()).await[..wal.len()] == wal);
}

#[tokio::test(flavor = "multi_thread")]
async fn history_files_come_from_a_source_too() {
    let (relay, _, archive) = relay_with_archive().await;
    let mut client = relay.session().await;
    let content = "1\t0/D00170\tno recovery target specified\n";
    archive.put("00000063.history", content);
    let row = client.row("TIMELINE_HISTORY 99").await;
    assert_eq!(row, [Some("00000063.history".to_owned()), Some(content.to_owned())]);
    let text = "could not open file \"pg_wal/00000062.history\": No such file or directory";
    let error = client.query("TIMELINE_HISTORY 98").await[1].error();
    assert_eq!((error.1.as_str(), error.2.as_str()), ("58P01", text));
    archive.set_down(true);
    let error = client.query("TIMELINE_HISTORY 98").await[1].error();
    let text = "could not fetch file \"00000062.history\": archive cannot be reached: it is down";
    assert_eq!((error.1.as_str(), error.2.as_str()), ("58030", text));
}
