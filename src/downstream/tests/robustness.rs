use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::kit::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_startup_packet_may_come_byte_by_byte() {
    let relay = Relay::start().await;
    let mut client = relay.connect().await;
    for byte in startup_packet(3 << 16, &[("user", "rep"), ("replication", "true")]) {
        client.send(&[byte]).await;
    }
    client.until_ready().await;
    for byte in *b"Q\0\0\0\x14IDENTIFY_SYSTEM\0" {
        client.send(&[byte]).await;
    }
    assert_eq!(kinds(&client.until_ready().await), "TDCZ");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_connections_leave_nothing_behind() {
    let relay = Relay::start().await;
    for n in 0..100 {
        let mut client = relay.connect().await;
        if n % 2 == 0 {
            client.start_up(&[("user", "rep"), ("replication", "true")]).await;
            client.until_ready().await;
            client.message(b'X', b"").await;
            assert_eq!(client.until_closed().await, []);
        }
    }
    assert_eq!(relay.registry.len(), 0);
    assert_eq!(relay.store.consumers().list().len(), 0);
}

/// Whatever a client sends before it closes its side: the relay closes the connection, and is there for the next.
#[test]
fn no_bytes_hang_or_kill_a_connection() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let relay = runtime.block_on(Relay::start());
    let frame = (
        proptest::sample::select(&b"QPBDECHSFXdcfpz"[..]),
        proptest::collection::vec(any::<u8>(), 0..30),
        any::<bool>(),
    )
        .prop_map(|(kind, body, honest)| {
            let len = if honest {
                body.len() as u32 + 4
            } else {
                u32::from_be_bytes([0, 0, body.len() as u8, kind])
            };
            [&[kind][..], &len.to_be_bytes(), &body].concat()
        });
    let text = "(IDENTIFY_SYSTEM|SHOW [a-z_]{1,9}|START_REPLICATION( SLOT \"?[a-z]\"?)? [0-9]/[0-9A-F]{1,8}( TIMELINE [0-9])?|[ -~]{0,30})";
    let query = text.prop_map(|text: String| {
        [b"Q", &(text.len() as u32 + 5).to_be_bytes()[..], text.as_bytes(), b"\0"].concat()
    });
    let input = (
        any::<bool>(),
        proptest::collection::vec(
            prop_oneof![frame, query, proptest::collection::vec(any::<u8>(), 0..40)],
            0..6,
        ),
    );
    let mut runner = TestRunner::new(Config { cases: 200, failure_persistence: None, ..Config::default() });
    let relay = &relay;
    let send = |logged_in: bool, parts: Vec<Vec<u8>>| async move {
        let mut client = relay.connect().await;
        if logged_in {
            client.start_up(&[("user", "rep"), ("replication", "true")]).await;
            client.until_ready().await;
        }
        for part in parts {
            // The relay may have closed the connection already.
            let _ = tokio::io::AsyncWriteExt::write_all(&mut client.socket, &part).await;
        }
        let _ = tokio::io::AsyncWriteExt::shutdown(&mut client.socket).await;
        while !client.read_once().await.is_empty() {}
    };
    runner
        .run(&input, |(logged_in, parts)| {
            let done = runtime.block_on(async {
                tokio::time::timeout(Duration::from_secs(30), send(logged_in, parts)).await
            });
            prop_assert!(done.is_ok(), "the connection hangs");
            prop_assert!(!relay.running.is_finished(), "the relay has ended");
            Ok(())
        })
        .unwrap();
    let mut client = runtime.block_on(relay.session());
    assert_eq!(runtime.block_on(client.row("SHOW server_version")), [Some("17.10".into())]);
}
