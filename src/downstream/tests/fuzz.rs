//! The whole login, with whatever bytes a client may send. `cargo bolero test fuzz_login` looks for input that
//! reaches new code.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use bolero::check;
use tokio::io::AsyncWriteExt;

use super::authority::Authority;
use super::kit::*;

/// Each user logs in by another method.
const USERS: [&str; 6] = ["trust", "clear", "md5", "scram", "nobody", "cert"];

/// One thing a client sends: a start-up packet, a message, a SASL message, or noise.
fn step(kind: u8, body: &[u8]) -> Vec<u8> {
    let message = |content: &[u8]| [b"p", &(content.len() as u32 + 4).to_be_bytes()[..], content].concat();
    let user = USERS[usize::from(kind >> 4) % USERS.len()];
    match kind % 8 {
        0 => startup_packet(3 << 16, &[("user", user), ("replication", "true")]),
        1 => startup_packet(3 << 16, &[("user", user), (&String::from_utf8_lossy(body), "x")]),
        2 => [&(body.len() as u32 + 4).to_be_bytes(), body].concat(),
        3 => message(&[body, b"\0"].concat()),
        4 => {
            let first = [b"n,,n=,r=", body].concat();
            message(&[b"SCRAM-SHA-256\0", &(first.len() as u32).to_be_bytes()[..], &first].concat())
        }
        5 => message(&[b"c=biws,r=", body].concat()),
        6 => [0, 0, 0, 8, 4, 0xD2, 0x16, 0x2E + kind / 8 % 3].to_vec(),
        _ => body.to_vec(),
    }
}

async fn converse(relay: &Relay, steps: &[(u8, Vec<u8>)]) {
    let mut client = relay.connect().await;
    for (kind, body) in steps {
        // The relay may have closed the connection already.
        let _ = client.socket.write_all(&step(*kind, body)).await;
    }
    let _ = client.socket.shutdown().await;
    while !client.read_once().await.is_empty() {}
}

#[test]
fn fuzz_login() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let authority = Authority::new();
    let options = Options {
        tls: Some(authority.files_with_ca()),
        hba: "host replication trust all trust\n\
              host replication clear all password\n\
              host replication md5 all md5\n\
              hostssl replication cert all cert\n\
              host replication all all scram-sha-256",
        users: "\"clear\" \"secret\"\n\"md5\" \"md5870427799418ccdf7ef8876ebfb98cf7\"\n\"scram\" \"secret\"\n",
        max_failed_logins: 0,
        ..Options::default()
    };
    let relay = runtime.block_on(Relay::with(options));
    let shared = AssertUnwindSafe((&runtime, &relay));
    check!().with_type::<Vec<(u8, Vec<u8>)>>().with_iterations(3_000).for_each(|steps| {
        let AssertUnwindSafe((runtime, relay)) = &shared;
        let done = runtime.block_on(async {
            let steps = &steps[..steps.len().min(8)];
            tokio::time::timeout(Duration::from_secs(30), converse(relay, steps)).await
        });
        assert!(done.is_ok(), "the connection hangs");
        assert!(!relay.running.is_finished(), "the relay has ended");
    });
    let _last = runtime.block_on(relay.log_in(&[("user", "trust"), ("replication", "true")]));
    assert_eq!(relay.registry.len(), 1, "nobody else is logged in");
}
