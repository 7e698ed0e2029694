//! A fuzz target for what servers answer: nothing they say may panic or hang, or be taken for a login that was not.

use std::panic::AssertUnwindSafe;

use bolero::check;
use tokio::runtime::Runtime;

use super::*;

/// A server's messages, one after the other: `kind` chooses one that belongs somewhere, or is the type of one with this body.
fn messages(steps: &[(u8, Vec<u8>)]) -> Vec<u8> {
    let message = |(kind, body): &(u8, Vec<u8>)| match kind {
        0 => request(0, body),
        1 => request(3, body),
        2 => request(5, body),
        3 => request(10, &[&b"SCRAM-SHA-256\0\0"[..], body].concat()),
        4 => request(11, body),
        5 => request(12, body),
        6 => welcome(),
        7 => frame(b'Z', b"I"),
        8 => frame(b'S', &[body, &b"\0value\0"[..]].concat()),
        9 => {
            frame(b'T', &[&[0, 1], &body[..], &b"\0\0\0\0\0\0\0\0\0\0\x19\xff\xff\0\0\0\0\0\0"[..]].concat())
        }
        10 => frame(b'D', &[&[0, 1, 0, 0, 0, 1], &body[..]].concat()),
        11 => frame(b'C', &[body, &b"\0"[..]].concat()),
        12 => error("ERROR", "42601", &String::from_utf8_lossy(body).replace('\0', "")),
        13 => frame(b'W', &[0, 0, 0]),
        14 => body.clone(),
        kind => frame(*kind, body),
    };
    steps.iter().flat_map(message).collect()
}

/// A login, a query and a stream with a server that says just this and hangs up. Whether the login succeeded.
async fn converse(said: Vec<u8>) -> bool {
    let (port, server) = serve(|mut stream: TcpStream| async move {
        let _ = stream.write_all(&said).await;
        let _ = stream.shutdown().await;
        // What the client says is read, so that what it was told arrives.
        let _ = tokio::io::copy(&mut stream, &mut tokio::io::sink()).await;
    })
    .await;
    let connected = try_connect(port, "sslmode=disable gssencmode=disable").await;
    let logged_in = connected.is_ok();
    if let Ok(mut connection) = connected
        && connection.query("IDENTIFY_SYSTEM").await.is_ok()
    {
        while connection.next_message().await.is_ok() {}
    }
    server.await.expect("it only reads and writes");
    logged_in
}

#[test]
fn fuzz_answers_of_a_server() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let runtime = AssertUnwindSafe(&runtime);
    check!().with_type::<Vec<(u8, Vec<u8>)>>().with_iterations(2_000).for_each(|steps| {
        let AssertUnwindSafe(runtime): &AssertUnwindSafe<&Runtime> = &runtime;
        let said = messages(&steps[..steps.len().min(16)]);
        // AuthenticationOk has its code, and nothing else does for it.
        let may_log_in = said.windows(8).any(|bytes| bytes == [0, 0, 0, 8, 0, 0, 0, 0]);
        let done =
            runtime.block_on(async { tokio::time::timeout(Duration::from_secs(30), converse(said)).await });
        let logged_in = done.expect("whoever hangs up is not waited for");
        assert!(!logged_in || may_log_in, "logged in without AuthenticationOk");
    });
}
