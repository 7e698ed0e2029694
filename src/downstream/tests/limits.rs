use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream, UnixStream};

use super::authority::Authority;
use super::kit::*;
use crate::descriptors::Descriptors;

const SSL: [u8; 8] = [0, 0, 0, 8, 0x04, 0xD2, 0x16, 0x2F];
const REPLICATION: &[(&str, &str)] = &[("user", "rep"), ("replication", "true")];

/// A connection from another address of this machine's.
async fn connect_from(relay: &Relay, source: [u8; 4]) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((source, 0)))?;
    socket.connect(relay.address).await
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_limited_in_all_and_for_each_role() {
    let options = Options { max_wal_senders: 3, max_user_connections: 2, ..Options::default() };
    let relay = Relay::with(options).await;
    let _both = (relay.session().await, relay.session().await);
    let refused = async |user: &str| {
        let mut client = relay.connect().await;
        client.start_up(&[("user", user), ("replication", "true")]).await;
        client.fatal().await
    };
    assert_eq!(refused("rep").await, pair("53300", "too many connections for role \"rep\""));
    let (mut other, _) = relay.log_in(&[("user", "other"), ("replication", "true")]).await;
    let text = "number of requested standby connections exceeds \"max_wal_senders\" (currently 3)";
    assert_eq!(refused("third").await, pair("53300", text));
    other.message(b'X', b"").await;
    assert_eq!(other.until_closed().await, []);
    relay.log_in(&[("user", "third"), ("replication", "true")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_sessions_lock_out_no_standby_and_not_the_console() {
    let relay = Relay::with(Options { max_connections: 10, ..Options::default() }).await;
    let sql = |database| [("user", "app"), ("database", database)];
    let mut held = Vec::new();
    for _ in 0..20 {
        let mut client = relay.connect().await;
        client.start_up(&sql("postgres")).await;
        let mut answer = client.next().await;
        while answer.as_ref().is_some_and(|message| !matches!(message.kind, b'E' | b'Z')) {
            answer = client.next().await;
        }
        if answer.expect("an answer").kind == b'E' {
            break;
        }
        held.push(client);
    }
    // As many as want to come, and whoever needs WAL is let in.
    relay.session().await.row("IDENTIFY_SYSTEM").await;
    assert_eq!(held.len(), 8);
    let refused = async |database| {
        let mut client = relay.connect().await;
        client.start_up(&sql(database)).await;
        client.fatal().await
    };
    let reserved = "remaining connection slots are reserved for roles with the SUPERUSER attribute";
    assert_eq!(refused("postgres").await, pair("53300", reserved));
    let (mut console, _) = relay.log_in(&sql("walrelay")).await;
    console.query("select count(*) from pg_stat_replication").await;
    assert_eq!(refused("walrelay").await, pair("53300", reserved));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_descriptors_are_not_given_to_clients() {
    let relay = Relay::with(Options { descriptors: Descriptors::new(4, 0), ..Options::default() }).await;
    for _ in 0..3 {
        let mut client = relay.connect().await;
        client.start_up(REPLICATION).await;
        assert_eq!(client.fatal().await, pair("53300", "sorry, too many clients already"));
    }
    let mut local = Client::new(UnixStream::connect(&relay.socket_path).await.unwrap());
    assert_eq!(local.fatal().await.0, "53300");
    assert!(!relay.running.is_finished());
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords_cannot_be_guessed_in_bulk() {
    let options = Options {
        hba: "host replication all all password\nlocal replication all password",
        users: "\"rep\" \"secret\"\n",
        max_failed_logins: 3,
        ..Options::default()
    };
    let relay = Relay::with(options).await;
    async fn attempt<S>(mut client: Client<S>, password: &str) -> Result<(), (String, String)>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    {
        client.start_up(REPLICATION).await;
        client.message(b'p', &[password.as_bytes(), b"\0"].concat()).await;
        client.until_closed_or_ready().await
    }
    let wrong = Err(pair("28P01", "password authentication failed for user \"rep\""));
    for _ in 0..3 {
        assert_eq!(attempt(relay.connect().await, "secret").await, Ok(()), "success costs nothing");
        assert_eq!(attempt(relay.connect().await, "guess").await, wrong);
    }
    let refused = Err(pair("53300", "too many failed logins from this address"));
    assert_eq!(attempt(relay.connect().await, "secret").await, refused);
    let elsewhere = connect_from(&relay, [127, 0, 0, 2]).await.unwrap();
    assert_eq!(attempt(Client::new(elsewhere), "secret").await, Ok(()));
    for _ in 0..5 {
        let local = UnixStream::connect(&relay.socket_path).await.unwrap();
        assert_eq!(attempt(Client::new(local), "guess").await, wrong);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_is_given_up_has_failed() {
    for method in ["scram-sha-256", "password"] {
        let options = Options {
            hba: if method == "password" {
                "host all all all password"
            } else {
                "host all all all scram-sha-256"
            },
            max_failed_logins: 2,
            ..Options::default()
        };
        let relay = Relay::with(options).await;
        let begin = async || {
            let mut client = relay.connect().await;
            client.start_up(&[("user", "madeup"), ("database", "db")]).await;
            client
        };
        for _ in 0..2 {
            let mut client = begin().await;
            assert_eq!(client.next().await.unwrap().kind, b'R', "a challenge");
            client.socket.shutdown().await.unwrap();
            assert_eq!(client.until_closed().await, []);
        }
        assert_eq!(begin().await.fatal().await, pair("53300", "too many failed logins from this address"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_that_takes_too_long_has_failed() {
    let options = Options {
        hba: "host all all all scram-sha-256",
        authentication_timeout: Duration::from_millis(50),
        max_failed_logins: 1,
        ..Options::default()
    };
    let relay = Relay::with(options).await;
    for expected in ["canceling authentication due to timeout", "too many failed logins from this address"] {
        let mut client = relay.connect().await;
        client.start_up(&[("user", "madeup"), ("database", "db")]).await;
        assert_eq!(client.fatal().await.1, expected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_text_of_many_statements_holds_up_nobody_on_the_same_thread() {
    let relay = Relay::start().await;
    let session = [("user", "rep"), ("database", "walrelay")];
    let (mut long, _) = relay.log_in(&session).await;
    let (mut other, _) = relay.log_in(&session).await;
    let text = "set a=1;".repeat(75_000);
    long.message(b'Q', &[text.as_bytes(), b"\0"].concat()).await;
    let mut answer = long.read_once().await;
    other.row("select 1").await;
    let mut bytes = vec![0; 4 << 20];
    while let Ok(read @ 1..) = long.socket.try_read(&mut bytes) {
        answer.extend(&bytes[..read]);
    }
    assert!(!answer.ends_with(b"Z\0\0\0\x05I"), "all of {} bytes was sent before", answer.len());
    long.buffer = answer;
    assert_eq!(long.until_ready().await.len(), 75_001);
}

/// One of the ways to bother a server without logging in.
async fn bother(relay: &Relay, n: usize) -> std::io::Result<TcpStream> {
    let mut socket = connect_from(relay, [127, 0, 0, 66]).await?;
    let bytes = match n % 6 {
        0 => Vec::new(),
        1 => vec![0x16, 3, 1, 2, 0, 1, 0],
        2 => SSL.to_vec(),
        3 => [&[0x7f, 0xff, 0xff, 0xff][..], &[b'x'; 100]].concat(),
        4 => [startup_packet(3 << 16, REPLICATION), b"p\x7f\xff\xff\xff".to_vec()].concat(),
        _ => startup_packet(3 << 16, REPLICATION)[..20].to_vec(),
    };
    socket.write_all(&bytes).await?;
    Ok(socket)
}

/// Whether the test of this name, in this module's folder, is the only one in its process, for one that measures what the process
/// takes. If not, it has been run in a process of its own when this returns.
pub(super) fn is_alone(test: &str) -> bool {
    const ALONE: &str = "WALRELAY_TEST_ALONE";
    let is_nextest = std::env::var("NEXTEST_EXECUTION_MODE").is_ok_and(|mode| mode == "process-per-test");
    if is_nextest || std::env::var_os(ALONE).is_some() {
        return true;
    }
    let module = module_path!().split("::").skip(1).take(2).collect::<Vec<_>>().join("::");
    let name = format!("{module}::{test}");
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    let output = command.args(["--exact", &name, "--nocapture"]).env(ALONE, "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let failed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("1 passed"), "{name}: {said}{failed}");
    false
}

/// Bytes of this process's memory that are not in files.
pub(super) fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_hostile_connections_lock_nobody_out() {
    if !is_alone("limits::ten_thousand_hostile_connections_lock_nobody_out") {
        return;
    }
    const ALL: usize = 10_000;
    /// Open on the hostile side at a time: more than the relay has room for.
    const HELD: usize = 1_000;
    let authority = Authority::new();
    let options = Options {
        tls: Some(authority.files()),
        hba: "host replication all all scram-sha-256\nlocal replication all trust",
        max_failed_logins: 0,
        ..Options::default()
    };
    let mut relay = Relay::with(options).await;
    let mut streaming = Client::new(UnixStream::connect(&relay.socket_path).await.unwrap());
    // It answers nothing, however long all this takes.
    streaming.start_up(&[REPLICATION, &[("options", "-c wal_sender_timeout=0")]].concat()).await;
    streaming.until_ready().await;
    let end = relay.store.tip().unwrap().write_lsn;
    streaming.start(&format!("{end} TIMELINE 1")).await;

    let mut held = VecDeque::new();
    let mut before = 0;
    for n in 0..ALL {
        // The relay may well have closed it again before everything was sent.
        if let Ok(socket) = bother(&relay, n).await {
            held.push_back(socket);
        }
        if held.len() > HELD {
            held.pop_front();
        }
        if n == 2 * HELD {
            before = resident();
        }
        if n % 1000 == 999 {
            // Who streams goes on, and a newcomer gets in, from the same kind of address too.
            let wal = relay.receive(|wal| _ = wal.record(100));
            assert_eq!(streaming.wal().await.1, wal);
            let mut newcomer = Client::new(connect_from(&relay, [127, 0, 0, 1]).await.unwrap());
            newcomer.start_up(REPLICATION).await;
            assert_eq!(newcomer.next().await.expect("an answer").kind, b'R');
        }
    }
    let grown = resident().saturating_sub(before);
    // 10,000 times a read buffer would be more.
    assert!(grown < 256 << 20, "{grown} bytes more");
    assert!(!relay.running.is_finished());
    assert_eq!(relay.registry.len(), 1);
    let open = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    assert!(open < 1_000, "{open} tasks for connections that do not log in");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_connection_makes_room() {
    let relay = Relay::with(Options { hba: "host all all all trust", ..Options::default() }).await;
    let mut oldest = Client::new(connect_from(&relay, [127, 0, 0, 66]).await.unwrap());
    let mut held = Vec::new();
    while held.len() < 300 {
        held.push(connect_from(&relay, [127, 0, 0, 66]).await.unwrap());
    }
    let closed = tokio::time::timeout(Duration::from_secs(20), oldest.until_closed()).await;
    assert_eq!(closed.expect("it had to make room"), []);
    let mut newest = Client::new(held.pop().unwrap());
    newest.start_up(REPLICATION).await;
    assert_eq!(newest.fatal().await.0, "28000");
}
