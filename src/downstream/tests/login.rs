use std::collections::HashMap;
use std::time::Duration;

use tokio::net::UnixStream;
use walrelay_proto::{PgTimestamp, StandbyStatusUpdate};

use super::kit::*;
use crate::auth::md5;

const SSL: [u8; 8] = [0, 0, 0, 8, 0x04, 0xD2, 0x16, 0x2F];
const GSS: [u8; 8] = [0, 0, 0, 8, 0x04, 0xD2, 0x16, 0x30];
const REPLICATION: &[(&str, &str)] = &[("user", "rep"), ("replication", "true")];

fn statuses(messages: &[Message]) -> HashMap<String, String> {
    let pairs = messages.iter().filter(|message| message.kind == b'S').map(|message| {
        let text = message.text();
        let (name, value) = text.split_once('\0').unwrap();
        (name.to_owned(), value.to_owned())
    });
    pairs.collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_is_answered_in_one_write() {
    let relay = Relay::start().await;
    let mut client = relay.connect().await;
    client.start_up(REPLICATION).await;
    let bytes = client.read_once().await;
    assert_eq!(bytes[..9], [b'R', 0, 0, 0, 8, 0, 0, 0, 0]);
    assert_eq!(bytes[bytes.len() - 6..], [b'Z', 0, 0, 0, 5, b'I']);
    client.buffer = bytes;
    let messages = client.until_ready().await;
    assert_eq!(kinds(&messages).trim_matches('S'), "R".to_owned() + &"S".repeat(messages.len() - 3) + "KZ");
    let statuses = statuses(&messages);
    let status = |name: &str| statuses.get(name).map(String::as_str);
    assert_eq!(status("server_version"), Some("17.10"));
    assert_eq!(status("integer_datetimes"), Some("on"));
    assert_eq!(status("in_hot_standby"), Some("off"));
    assert_eq!(status("client_encoding"), Some("SQL_ASCII"));
    assert_eq!(status("standard_conforming_strings"), Some("on"));
    assert_eq!(status("session_authorization"), Some("rep"));
    assert_eq!(status("application_name"), Some(""));
    assert_eq!((status("DateStyle"), status("TimeZone")), (Some("ISO, DMY"), Some("Europe/Berlin")));
}

#[tokio::test(flavor = "multi_thread")]
async fn encryption_is_refused_in_any_order_and_once_each() {
    let relay = Relay::start().await;
    for requests in [&[SSL][..], &[GSS], &[SSL, GSS], &[GSS, SSL]] {
        let mut client = relay.connect().await;
        for request in requests {
            client.send(request).await;
            assert_eq!(client.read_once().await, b"N");
        }
        client.start_up(REPLICATION).await;
        assert_eq!(client.until_ready().await.last().unwrap().body, b"I");
    }
    let mut client = relay.connect().await;
    client.send(&SSL).await;
    assert_eq!(client.read_once().await, b"N");
    client.send(&SSL).await;
    let expected = "unsupported frontend protocol 1234.5679: server supports 3.0 to 3.0";
    assert_eq!(client.fatal().await, pair("0A000", expected));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_startup_packet_is_closed_in_silence() {
    let relay = Relay::start().await;
    let tls = [0x16, 3, 1, 2, 0, 1, 0, 1, 0xFC, 3, 3];
    for noise in [&[0, 0, 0, 7][..], &[0, 0, 0x27, 0x15], b"GET / HTTP/1.1\r\n\r\n", &tls] {
        let mut client = relay.connect().await;
        client.send(noise).await;
        assert_eq!(client.until_closed().await, [], "{noise:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn startup_errors_are_postgresqls() {
    let relay = Relay::start().await;
    let check = async |packet: Vec<u8>, sqlstate, text| {
        let mut client = relay.connect().await;
        client.send(&packet).await;
        assert_eq!(client.fatal().await, pair(sqlstate, text));
    };
    let layout = "invalid startup packet layout: expected terminator as last byte";
    check(b"\0\0\0\x13\0\x03\0\0user\0rep\0xy".to_vec(), "08P01", layout).await;
    check(b"\0\0\0\x08\0\x03\0\0".to_vec(), "08P01", layout).await;
    let no_user = "no PostgreSQL user name specified in startup packet";
    check(startup_packet(3 << 16, &[("replication", "true")]), "28000", no_user).await;
    let replication = "invalid value for parameter \"replication\": \"Database\"";
    check(startup_packet(3 << 16, &[("user", "a"), ("replication", "Database")]), "22023", replication).await;
    let protocol = "unsupported frontend protocol 4.0: server supports 3.0 to 3.0";
    check(startup_packet(4 << 16, REPLICATION), "0A000", protocol).await;
    let zero = "unsupported frontend protocol 0.0: server supports 3.0 to 3.0";
    check(startup_packet(0, REPLICATION), "0A000", zero).await;
    let unknown = [("user", "a"), ("replication", "1"), ("nosuch", "1")];
    check(startup_packet(3 << 16, &unknown), "42704", "unrecognized configuration parameter \"nosuch\"")
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn version_two_gets_an_error_it_can_read() {
    let relay = Relay::start().await;
    let mut client = relay.connect().await;
    client.send(&startup_packet(2 << 16, REPLICATION)).await;
    let expected = b"EFATAL:  unsupported frontend protocol 2.0: server supports 3.0 to 3.0\n\0";
    assert_eq!(client.read_once().await, expected);
    assert_eq!(client.read_once().await, b"");
}

#[tokio::test(flavor = "multi_thread")]
async fn newer_protocols_are_negotiated_down() {
    let relay = Relay::start().await;
    let check = async |version: u32, more: &[(&str, &str)], expected: &[u8]| {
        let mut client = relay.connect().await;
        client.send(&startup_packet(version, &[REPLICATION, more].concat())).await;
        let messages = client.until_ready().await;
        assert_eq!((messages[0].kind, &messages[0].body[..]), (b'v', expected));
        assert_eq!(messages[1].kind, b'R');
        let key = messages.iter().find(|message| message.kind == b'K').unwrap();
        assert_eq!(key.body.len(), 8, "a 4-byte key, as in 3.0");
        assert_eq!(client.row("SHOW server_version").await, [Some("17.10".into())]);
    };
    check(3 << 16 | 2, &[], &[0, 3, 0, 0, 0, 0, 0, 0]).await;
    check(3 << 16 | 9999, &[], &[0, 3, 0, 0, 0, 0, 0, 0]).await;
    check(3 << 16, &[("_pq_.foo", "1")], b"\0\x03\0\0\0\0\0\x01_pq_.foo\0").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn replication_may_be_spelled_in_many_ways_and_the_database_does_not_matter() {
    let relay = Relay::start().await;
    for yes in ["true", "TRUE", "on", "1", "yes", "t"] {
        let parameters = [("user", "rep"), ("replication", yes), ("database", "nonexistent")];
        let (mut client, _) = relay.log_in(&parameters).await;
        assert_eq!(client.row("IDENTIFY_SYSTEM").await[3], None);
    }
    // SQL without an upstream: only what the relay knows.
    let (mut client, _) = relay.log_in(&[("user", "rep"), ("replication", "false")]).await;
    assert_eq!(client.row("SHOW wal_segment_size").await, [Some("1MB".into())]);
    assert_eq!(client.error("VACUUM").await.0, "57P03");
    let mut client = relay.connect().await;
    client.start_up(&[("user", "rep"), ("replication", "database")]).await;
    assert_eq!(client.fatal().await, pair("57P03", "the upstream server cannot be reached"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_keeps_what_the_client_has_set() {
    let relay = Relay::start().await;
    let long = "é".repeat(40);
    let parameters = [
        ("user", "rep"),
        ("replication", "true"),
        ("options", "-c wal_sender_timeout=5s -cdatestyle=iso,ymd -csearch_path= -c statement_timeout=2000"),
        ("application_name", long.as_str()),
        ("client_encoding", "utf-8"),
        ("TimeZone", "UTC"),
    ];
    let (mut client, messages) = relay.log_in(&parameters).await;
    let statuses = statuses(&messages);
    assert_eq!(statuses["application_name"], "\\xc3\\xa9".repeat(31) + "\\xc3");
    assert_eq!(statuses["client_encoding"], "UTF8");
    assert_eq!((&statuses["DateStyle"][..], &statuses["TimeZone"][..]), ("ISO, YMD", "UTC"));
    assert_eq!(client.row("SHOW wal_sender_timeout").await, [Some("5s".into())]);
    assert_eq!(client.row("SHOW statement_timeout").await, [Some("2000".into())]);
    let (mut other, _) = relay.log_in(REPLICATION).await;
    assert_eq!(other.row("SHOW wal_sender_timeout").await, [Some("1min".into())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn pids_differ_and_are_positive() {
    let relay = Relay::start().await;
    let pid = |messages: &[Message]| {
        let key = messages.iter().find(|message| message.kind == b'K').unwrap();
        i32::from_be_bytes(key.body[..4].try_into().unwrap())
    };
    let (_one, first) = relay.log_in(REPLICATION).await;
    let (_two, second) = relay.log_in(REPLICATION).await;
    assert!(pid(&first) > 0 && pid(&second) > 0 && pid(&first) != pid(&second));
    let senders: Vec<_> = relay.store.consumers().list().iter().map(|s| s.identity.pid as i32).collect();
    assert!(senders.contains(&pid(&first)) && senders.contains(&pid(&second)));
}

#[tokio::test(flavor = "multi_thread")]
async fn places_are_limited_and_come_free() {
    let relay = Relay::with(Options { max_wal_senders: 1, ..Options::default() }).await;
    let (mut first, _) = relay.log_in(REPLICATION).await;
    let mut second = relay.connect().await;
    second.start_up(REPLICATION).await;
    let text = "number of requested standby connections exceeds \"max_wal_senders\" (currently 1)";
    assert_eq!(second.fatal().await, pair("53300", text));
    first.message(b'X', b"").await;
    assert_eq!(first.until_closed().await, []);
    relay.log_in(REPLICATION).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_in_before_there_is_wal() {
    let empty = Relay::with(Options { with_wal: false, ..Options::default() }).await;
    let mut client = empty.connect().await;
    client.start_up(REPLICATION).await;
    assert_eq!(client.fatal().await, pair("57P03", "the database system is starting up"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_relay_ends_idle_sessions_refuses_new_ones_and_waits_for_streams() {
    let relay = Relay::start().await;
    let (mut idle, mut streaming) = (relay.session().await, relay.session().await);
    streaming.message(b'Q', b"START_REPLICATION 0/300000 TIMELINE 1\0").await;
    assert_eq!(streaming.next().await.unwrap().kind, b'W');
    relay.shutdown.cancel();
    assert_eq!(idle.fatal().await, pair("57P01", "terminating connection due to administrator command"));
    let mut late = relay.connect().await;
    late.start_up(REPLICATION).await;
    assert_eq!(late.fatal().await, pair("57P03", "the database system is shutting down"));
    assert!(!relay.running.is_finished(), "the stream has not been confirmed");

    let end = relay.store.tip().unwrap().write_lsn;
    let all = StandbyStatusUpdate {
        write: Some(end),
        flush: Some(end),
        apply: None,
        send_time: PgTimestamp::default(),
        reply_requested: false,
    };
    streaming.send(&all.frame()).await;
    let messages = streaming.until_closed().await;
    let last = messages.last().unwrap();
    assert_eq!((last.kind, last.text()), (b'C', "COPY 0".to_owned()));
    tokio::time::timeout(Duration::from_secs(20), relay.running).await.unwrap().unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_no_line_is_told_so() {
    let relay = Relay::with(Options {
        hba: "host replication other all trust\nhost replication bad all reject",
        ..Options::default()
    })
    .await;
    let refused = async |parameters: &[(&str, &str)]| {
        let mut client = relay.connect().await;
        client.start_up(parameters).await;
        client.fatal().await
    };
    let text = "no pg_hba.conf entry for replication connection from host \"127.0.0.1\", user \"rep\", no encryption";
    assert_eq!(refused(REPLICATION).await, pair("28000", text));
    let text =
        "pg_hba.conf rejects replication connection for host \"127.0.0.1\", user \"bad\", no encryption";
    assert_eq!(refused(&[("user", "bad"), ("replication", "true")]).await, pair("28000", text));
    let text = "no pg_hba.conf entry for host \"127.0.0.1\", user \"rep\", database \"d\", no encryption";
    assert_eq!(refused(&[("user", "rep"), ("database", "d")]).await, pair("28000", text));
    relay.access.replace(access("host replication all all trust", ""));
    relay.log_in(REPLICATION).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clear_text_and_md5_passwords() {
    let hba = "host replication plain,hash all password\nhost replication all all md5";
    let users = "\"plain\" \"secret\"\n\"hash\" \"md5870427799418ccdf7ef8876ebfb98cf7\"\n\"m\" \"secret\"\n";
    assert_eq!(md5::stored_hash("hash", b"secret"), "md5870427799418ccdf7ef8876ebfb98cf7");
    let relay = Relay::with(Options { hba, users, ..Options::default() }).await;
    let attempt = async |user: &str, password: &str| {
        let mut client = relay.connect().await;
        client.start_up(&[("user", user), ("replication", "true")]).await;
        let challenge = client.next().await.unwrap();
        let answer = match &challenge.body[..] {
            [0, 0, 0, 3] => password.to_owned(),
            [0, 0, 0, 5, a, b, c, d] => {
                md5::response_from_password(user, password.as_bytes(), [*a, *b, *c, *d])
            }
            other => panic!("{other:?}"),
        };
        client.message(b'p', &[answer.as_bytes(), b"\0"].concat()).await;
        client
    };
    for user in ["plain", "hash", "m"] {
        attempt(user, "secret").await.until_ready().await;
        let expected = pair("28P01", &format!("password authentication failed for user \"{user}\""));
        assert_eq!(attempt(user, "wrong").await.fatal().await, expected);
    }
    let empty = attempt("plain", "").await.fatal().await;
    assert_eq!(empty, pair("28P01", "empty password returned by client"));
}

/// The first answer to somebody who begins with SCRAM: salt and iterations.
async fn challenge(relay: &Relay, user: &str) -> (String, String) {
    let mut client = relay.connect().await;
    client.start_up(&[("user", user), ("replication", "true")]).await;
    assert_eq!(client.next().await.unwrap().body[..4], [0, 0, 0, 10], "SASL");
    let first = b"SCRAM-SHA-256\0\0\0\0\x09n,,n=,r=x";
    client.message(b'p', first).await;
    let message = client.next().await.unwrap();
    let text = String::from_utf8(message.body[4..].to_vec()).unwrap();
    let (salt, iterations) = text.split_once(",s=").unwrap().1.split_once(",i=").unwrap();
    (salt.to_owned(), iterations.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_look_like_users() {
    use std::num::NonZeroU32;

    use crate::auth::scram::Verifier;
    let verifier = |iterations| {
        Verifier::from_password(b"secret", b"0123456789abcdef", NonZeroU32::new(iterations).unwrap())
    };
    let line = |name: &str, iterations| format!("\"{name}\" \"{}\"\n", verifier(iterations));
    let hba = "host replication all all scram-sha-256";
    let relay = Relay::with(Options { hba, ..Options::default() }).await;
    // Nobody is known, and the upstream says nothing.
    let (salt, iterations) = challenge(&relay, "stranger").await;
    assert_eq!(iterations, "4096");
    relay.access.replace(access(hba, &[line("a", 9000), line("b", 9000), line("c", 4096)].concat()));
    assert_eq!(challenge(&relay, "a").await.1, "9000");
    assert_eq!(challenge(&relay, "stranger").await, (salt.clone(), "9000".to_owned()));
    assert_ne!(challenge(&relay, "another").await.0, salt);

    let md5 = "host replication all all md5";
    let user = format!("\"m\" \"{}\"\n", md5::stored_hash("m", b"secret"));
    for (users, expected) in [(user, 5), (line("a", 9000), 10)] {
        relay.access.replace(access(md5, &users));
        let mut client = relay.connect().await;
        client.start_up(&[("user", "stranger"), ("replication", "true")]).await;
        let message = client.next().await.unwrap();
        assert_eq!(message.body[..4], [0, 0, 0, expected]);
        if expected == 5 {
            let salt = message.body[4..].try_into().unwrap();
            let answer = md5::response_from_password("stranger", b"secret", salt);
            client.message(b'p', &[answer.as_bytes(), b"\0"].concat()).await;
            let text = "password authentication failed for user \"stranger\"";
            assert_eq!(client.fatal().await, pair("28P01", text));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn scram_with_passwords_verifiers_and_strangers() {
    use crate::auth::scram::Verifier;
    let verifier = Verifier::generate(b"secret").unwrap();
    let users: &'static str = Box::leak(format!("\"v\" \"{verifier}\"\n\"p\" \"secret\"\n").into_boxed_str());
    let hba = "host replication v all scram-sha-256\nhost replication all all md5";
    let relay = Relay::with(Options { hba, users, ..Options::default() }).await;
    for user in ["v", "stranger"] {
        assert_eq!(
            scram(&relay, user, "wrong").await,
            Err(pair("28P01", &format!("password authentication failed for user \"{user}\"")))
        );
    }
    assert_eq!(scram(&relay, "v", "secret").await, Ok("RSZ".to_owned()));
    relay.access.replace(access("host replication all all scram-sha-256", users));
    assert_eq!(scram(&relay, "p", "secret").await, Ok("RSZ".to_owned()));
    assert_eq!(scram(&relay, "stranger", "secret").await.unwrap_err().0, "28P01");
}

/// Logs in with an independent client implementation; on success the kinds of the messages that came with the
/// server's proof, in one read.
async fn scram(relay: &Relay, user: &str, password: &str) -> Result<String, (String, String)> {
    use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
    let mut client = relay.connect().await;
    client.start_up(&[("user", user), ("replication", "true")]).await;
    assert_eq!(client.next().await.unwrap().body, b"\0\0\0\x0aSCRAM-SHA-256\0\0");
    let mut scram = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
    let first = scram.message().to_vec();
    let len = (first.len() as u32).to_be_bytes();
    client.message(b'p', &[b"SCRAM-SHA-256\0", &len[..], &first].concat()).await;
    let challenge = client.next().await.unwrap();
    assert_eq!(challenge.body[..4], [0, 0, 0, 11]);
    scram.update(&challenge.body[4..]).unwrap();
    client.message(b'p', scram.message()).await;
    client.buffer = client.read_once().await;
    if client.buffer.first() == Some(&b'E') {
        return Err(client.fatal().await);
    }
    let together = client.buffer.ends_with(&[b'Z', 0, 0, 0, 5, b'I']);
    assert!(together, "proof and ReadyForQuery come in one write");
    let messages = client.until_ready().await;
    assert_eq!(messages[0].body[..4], [0, 0, 0, 12]);
    scram.finish(&messages[0].body[4..]).unwrap();
    let mut kinds = kinds(&messages[1..]);
    kinds.retain(|kind| kind != 'K');
    Ok(kinds.replace('S', "").replacen('Z', "SZ", 1))
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_password_messages_end_the_login() {
    let relay =
        Relay::with(Options { hba: "host replication all all scram-sha-256", ..Options::default() }).await;
    let attempt = async |kind: u8, body: &[u8]| {
        let mut client = relay.connect().await;
        client.start_up(REPLICATION).await;
        client.next().await.unwrap();
        client.message(kind, body).await;
        client.fatal().await
    };
    assert_eq!(attempt(b'p', b"").await.0, "08P01");
    assert_eq!(attempt(b'p', b"SCRAM-SHA-256\0\0\0\0\x09short").await.0, "08P01");
    let text = "client selected an invalid SASL authentication mechanism";
    assert_eq!(attempt(b'p', b"PLAIN\0\xff\xff\xff\xff").await, pair("08P01", text));
    assert_eq!(
        attempt(b'p', b"SCRAM-SHA-256\0\0\0\0\x03xyz").await,
        pair("08P01", "malformed SCRAM message")
    );
    assert_eq!(
        attempt(b'Q', b"SELECT 1\0").await,
        pair("08P01", "expected password response, got message type 81")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn peers_are_known_by_their_system_user() {
    let relay = Relay::with(Options { hba: "local replication all peer", ..Options::default() }).await;
    let me = nix::unistd::User::from_uid(nix::unistd::geteuid()).unwrap().unwrap().name;
    let connect = async |user: &str| {
        let mut client = Client::new(UnixStream::connect(&relay.socket_path).await.unwrap());
        client.start_up(&[("user", user), ("replication", "true")]).await;
        client
    };
    connect(&me).await.until_ready().await;
    let expected = pair("28000", "Peer authentication failed for user \"somebody_else\"");
    assert_eq!(connect("somebody_else").await.fatal().await, expected);
    assert!(relay.socket_path.ends_with(format!(".s.PGSQL.{}", relay.address.port())));
}

/// What a login comes to.
async fn log_in_as(relay: &Relay, user: &str, more: &[(&str, &str)]) -> Result<(), (String, String)> {
    let mut client = relay.connect().await;
    client.start_up(&[&[("user", user)], more].concat()).await;
    client.until_closed_or_ready().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_nobody_has_ever_known_receives_wal_only_by_a_line_of_the_auth_file() {
    let hba = "host all,replication all all trust\nlocal all,replication all trust";
    let relay = Relay::with(Options { hba, users: "\"explicit\" \"\"\n", ..Options::default() }).await;
    let physical = [("replication", "true")];
    assert_eq!(log_in_as(&relay, "explicit", &physical).await, Ok(()));
    let refused = Err(pair("57P03", "the upstream server cannot be asked for role \"stranger\""));
    assert_eq!(log_in_as(&relay, "stranger", &physical).await, refused);
    let logical = [("replication", "database"), ("database", "x")];
    assert_eq!(log_in_as(&relay, "stranger", &logical).await, refused);
    // It may look at the relay, without any right.
    assert_eq!(log_in_as(&relay, "stranger", &[("database", "walrelay")]).await, Ok(()));
    // What was last known of a role counts.
    let known = "[roles.standby.attributes]\nsuperuser = false\nreplication = true\ncan_login = true\nmonitor = false\n\
                 [roles.plain.attributes]\nsuperuser = false\nreplication = false\ncan_login = true\nmonitor = false\n\
                 [roles.group.attributes]\nsuperuser = false\nreplication = true\ncan_login = false\nmonitor = false\n";
    let relay = Relay::with(Options { hba, roles: known, ..Options::default() }).await;
    let log_in = async |user: &str| log_in_as(&relay, user, &[("replication", "true")]).await;
    assert_eq!(log_in("standby").await, Ok(()));
    assert_eq!(log_in("plain").await, Err(pair("42501", "permission denied to start WAL sender")));
    assert_eq!(log_in("group").await, Err(pair("28000", "role \"group\" is not permitted to log in")));
}

#[tokio::test(flavor = "multi_thread")]
async fn lines_of_roles_and_host_names_decide_with_what_is_known() {
    let hba = "host replication +staff all trust\nhost replication other localhost reject\n";
    let known = "[roles.standby]\nmember_of = [\"standby\", \"staff\"]\n\
                 [roles.standby.attributes]\nsuperuser = false\nreplication = true\ncan_login = true\nmonitor = false\n\
                 [roles.other]\nmember_of = [\"other\"]\n\
                 [roles.other.attributes]\nsuperuser = false\nreplication = true\ncan_login = true\nmonitor = false\n";
    let relay = Relay::with(Options { hba, roles: known, ..Options::default() }).await;
    let log_in = async |user: &str| log_in_as(&relay, user, &[("replication", "true")]).await;
    assert_eq!(log_in("standby").await, Ok(()));
    let text =
        "pg_hba.conf rejects replication connection for host \"127.0.0.1\", user \"other\", no encryption";
    assert_eq!(log_in("other").await, Err(pair("28000", text)));
    // Of whom nobody knows what it belongs to, no line is for certain.
    let text = "the upstream server cannot be asked which roles \"stranger\" belongs to";
    assert_eq!(log_in("stranger").await, Err(pair("57P03", text)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_login_is_ended() {
    let hba = "host replication all all scram-sha-256";
    let timeout = Duration::from_millis(50);
    let relay = Relay::with(Options { hba, authentication_timeout: timeout, ..Options::default() }).await;
    let mut client = relay.connect().await;
    client.start_up(REPLICATION).await;
    assert_eq!(client.fatal().await, pair("57014", "canceling authentication due to timeout"));
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_known_sees_of_others_only_that_they_are_there() {
    let roles = "[roles.watcher.attributes]\nsuperuser = false\nreplication = false\ncan_login = true\nmonitor = true\n";
    let relay = Relay::with(Options { roles, ..Options::default() }).await;
    let mut consumer = relay.session().await;
    consumer.start("0/300000").await;
    for (user, address) in [("watcher", Some("127.0.0.1")), ("stranger", None)] {
        let (mut console, _) = relay.log_in(&[("user", user), ("database", "walrelay")]).await;
        let row = console.row("select usename, client_addr from pg_stat_replication").await;
        assert_eq!(row, [Some("rep".to_owned()), address.map(str::to_owned)], "{user}");
    }
}
