use std::sync::Arc;
use std::time::Duration;

use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::ServerName;

use super::authority::{Authority, ClientTls};
use super::kit::*;
use super::streaming::truncated_segment_ends_stream;
use crate::auth::certificate::end_point_hash;
use crate::auth::hba::Idents;
use crate::conninfo::TlsVersion;
use crate::downstream::Access;
use crate::wire::{ServerTls, TlsFiles};

const SSL: [u8; 8] = [0, 0, 0, 8, 0x04, 0xD2, 0x16, 0x2F];
const GSS: [u8; 8] = [0, 0, 0, 8, 0x04, 0xD2, 0x16, 0x30];
const REPLICATION: &[(&str, &str)] = &[("user", "rep"), ("replication", "true")];

type TlsClient = Client<TlsStream<TcpStream>>;

async fn relay(tls: TlsFiles, hba: &'static str) -> Relay {
    Relay::with(Options { tls: Some(tls), hba, ..Options::default() }).await
}

/// The handshake, on a connection that is ready for it.
async fn shake(socket: TcpStream, tls: &ClientTls<'_>) -> std::io::Result<TlsClient> {
    let name = ServerName::try_from("localhost").unwrap();
    tls.connector().connect(name, socket).await.map(Client::new)
}

async fn try_encrypted(relay: &Relay, tls: &ClientTls<'_>) -> std::io::Result<TlsClient> {
    let mut client = relay.connect().await;
    client.send(&SSL).await;
    assert_eq!(client.read_once().await, b"S");
    shake(client.socket, tls).await
}

async fn encrypted(relay: &Relay, tls: &ClientTls<'_>) -> TlsClient {
    try_encrypted(relay, tls).await.unwrap()
}

/// With TLS 1.3 a client learns only when it reads that its certificate was refused.
async fn gets_in(relay: &Relay, tls: &ClientTls<'_>) -> bool {
    let Ok(mut client) = try_encrypted(relay, tls).await else { return false };
    let _ = client.socket.write_all(&startup_packet(3 << 16, REPLICATION)).await;
    client.next().await.is_some_and(|message| message.kind == b'R')
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_runs_over_tls_of_both_versions() {
    let authority = Authority::new();
    let relay = relay(authority.files(), "hostssl replication all all trust").await;
    const NAMED: &[&[u8]] = &[b"postgresql"];
    for version in [TlsVersion::V12, TlsVersion::V13] {
        for alpn in [NAMED, &[]] {
            let mut client = encrypted(&relay, &ClientTls { version, alpn, ..authority.client() }).await;
            client.start_up(REPLICATION).await;
            client.until_ready().await;
            assert_eq!(client.row("SHOW server_version").await, [Some("17.10".into())]);
            client.message(b'X', b"").await;
            let mut end = [0; 1];
            let read = tokio::io::AsyncReadExt::read(&mut client.socket, &mut end).await;
            assert_eq!(read.unwrap(), 0, "TLS has said good-bye");
        }
    }
}

/// What is encrypted has to be loaded, which a page that is not there would make SIGBUS.
#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_segment_ends_an_encrypted_stream_too() {
    let authority = Authority::new();
    let mut relay = relay(authority.files(), "hostssl replication all all trust").await;
    let mut client = encrypted(&relay, &authority.client()).await;
    client.start_up(REPLICATION).await;
    client.until_ready().await;
    truncated_segment_ends_stream(&mut relay, client).await;
    encrypted(&relay, &authority.client()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn encryption_requests_may_come_in_libpqs_orders() {
    let authority = Authority::new();
    let relay = relay(authority.files(), "host replication all all trust").await;
    // GSSAPI first, then TLS.
    let mut client = relay.connect().await;
    client.send(&GSS).await;
    assert_eq!(client.read_once().await, b"N");
    client.send(&SSL).await;
    assert_eq!(client.read_once().await, b"S");
    let mut client = shake(client.socket, &authority.client()).await.unwrap();
    client.start_up(REPLICATION).await;
    client.until_ready().await;
    // None at all.
    relay.log_in(REPLICATION).await;
    // TLS within TLS is nonsense.
    let mut twice = encrypted(&relay, &authority.client()).await;
    twice.send(&SSL).await;
    let text = "unsupported frontend protocol 1234.5679: server supports 3.0 to 3.0";
    assert_eq!(twice.fatal().await, pair("0A000", text));
    // There is none on Unix-domain sockets.
    let mut local = Client::new(tokio::net::UnixStream::connect(&relay.socket_path).await.unwrap());
    local.send(&SSL).await;
    assert_eq!(local.read_once().await, b"N");
}

#[tokio::test(flavor = "multi_thread")]
async fn direct_tls_needs_the_protocols_name() {
    let authority = Authority::new();
    let relay = relay(authority.files(), "hostssl replication all all trust").await;
    let direct = async |alpn| {
        let socket = relay.connect().await.socket;
        shake(socket, &ClientTls { alpn, ..authority.client() }).await
    };
    let mut client = direct(&[b"postgresql"]).await.unwrap();
    client.start_up(REPLICATION).await;
    client.until_ready().await;
    let mut nameless = direct(&[]).await.unwrap();
    let _ = nameless.socket.write_all(&startup_packet(3 << 16, REPLICATION)).await;
    assert_eq!(nameless.until_closed().await, []);
    assert!(direct(&[b"h2"]).await.is_err());
    assert!(try_encrypted(&relay, &ClientTls { alpn: &[b"h2"], ..authority.client() }).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_before_the_handshake_is_not_taken_for_encrypted() {
    let authority = Authority::new();
    let relay = relay(authority.files(), "host replication all all trust").await;
    let mut client = relay.connect().await;
    client.send(&[&SSL[..], &startup_packet(3 << 16, REPLICATION)].concat()).await;
    let text = "received unencrypted data after SSL request";
    assert_eq!(client.fatal().await, pair("08P01", text));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_version_can_be_set() {
    let authority = Authority::new();
    let files = TlsFiles { min_version: TlsVersion::V13, ..authority.files() };
    let relay = relay(files, "hostssl replication all all trust").await;
    assert!(!gets_in(&relay, &ClientTls { version: TlsVersion::V12, ..authority.client() }).await);
    assert!(gets_in(&relay, &authority.client()).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_see_encryption() {
    let authority = Authority::new();
    let hba = "hostnossl replication all all reject\nhostssl replication other all trust";
    let relay = relay(authority.files(), hba).await;
    let mut plain = relay.connect().await;
    plain.start_up(REPLICATION).await;
    let text =
        "pg_hba.conf rejects replication connection for host \"127.0.0.1\", user \"rep\", no encryption";
    assert_eq!(plain.fatal().await, pair("28000", text));
    let mut client = encrypted(&relay, &authority.client()).await;
    client.start_up(REPLICATION).await;
    let text = "no pg_hba.conf entry for replication connection from host \"127.0.0.1\", user \"rep\", SSL encryption";
    assert_eq!(client.fatal().await, pair("28000", text));
    let mut client = encrypted(&relay, &authority.client()).await;
    client.start_up(&[("user", "rep"), ("database", "d")]).await;
    let text = "no pg_hba.conf entry for host \"127.0.0.1\", user \"rep\", database \"d\", SSL encryption";
    assert_eq!(client.fatal().await, pair("28000", text));
}

#[tokio::test(flavor = "multi_thread")]
async fn wal_reaches_a_slow_reader_whole() {
    let authority = Authority::new();
    let mut relay = relay(authority.files(), "hostssl replication all all trust").await;
    for version in [TlsVersion::V12, TlsVersion::V13] {
        let wal = relay.receive(|wal| wal.fill(6_000_000));
        let start = relay.store.tip().unwrap().write_lsn.rewind(wal.len() as u64);
        // A window that the WAL does not fit in by far.
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(8 * 1024).unwrap();
        let socket = socket.connect(relay.address).await.unwrap();
        let mut client = Client::new(socket);
        client.send(&SSL).await;
        assert_eq!(client.read_once().await, b"S");
        let mut client = shake(client.socket, &ClientTls { version, ..authority.client() }).await.unwrap();
        client.start_up(REPLICATION).await;
        client.until_ready().await;
        client.start(&format!("{start} TIMELINE 1")).await;
        // Heard while the relay cannot send: the answer comes behind what was begun.
        client.status(1, 0, true).await;
        client.socket.flush().await.unwrap();
        let mut received = Vec::new();
        let mut answered = false;
        while received.len() < wal.len() {
            let message = client.next().await.unwrap();
            match message.body[0] {
                b'k' => answered = true,
                _ => received.extend_from_slice(&message.body[25..]),
            }
        }
        assert!(received == wal, "the same bytes");
        assert!(answered || !client.keepalive().await.1);
        // At the end nothing is left in the relay: what it says now comes at once.
        let more = relay.receive(|wal| _ = wal.record(100));
        assert_eq!(client.wal().await.1, more);
        client.message(b'c', b"").await;
        client.socket.flush().await.unwrap();
        assert_eq!(kinds(&client.until_ready().await), "cCCZ");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_log_in_under_their_name() {
    let authority = Authority::new();
    let hba = "hostssl replication mapped all cert map=m clientname=DN\n\
               hostssl replication all all cert\n\
               hostnossl replication all all trust";
    let relay = relay(authority.files_with_ca(), hba).await;
    let idents = "m \"CN=standby 7,O=Example\" mapped\nm \"/^CN=is (.*),O=Example$\" \\1\n";
    relay.access.replace(Access {
        idents: Idents::parse(std::path::Path::new("ident"), idents).unwrap(),
        tls: Some(ServerTls::load(&authority.files_with_ca()).unwrap()),
        ..access(hba, "")
    });
    let log_in = async |certificate: Option<&str>, user: &str| {
        let identity = certificate.map(|name| authority.issue(name, 7));
        let mut client = encrypted(&relay, &ClientTls { identity, ..authority.client() }).await;
        client.start_up(&[("user", user), ("replication", "true")]).await;
        client.until_closed_or_ready().await
    };
    assert_eq!(log_in(Some("rep"), "rep").await, Ok(()));
    assert_eq!(log_in(Some("standby 7"), "mapped").await, Ok(()));
    let failed =
        |user: &str| Err(pair("28000", &format!("certificate authentication failed for user \"{user}\"")));
    assert_eq!(log_in(Some("other"), "rep").await, failed("rep"));
    assert_eq!(log_in(Some(""), "rep").await, failed("rep"));
    assert_eq!(log_in(Some("mapped"), "mapped").await, failed("mapped"));
    let none = Err(pair("28000", "connection requires a valid client certificate"));
    assert_eq!(log_in(None, "rep").await, none);
    relay.log_in(REPLICATION).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_may_be_wanted_besides_another_method() {
    let authority = Authority::new();
    let hba = "hostssl replication ca all trust clientcert=verify-ca\n\
               hostssl replication trusted all trust clientcert=verify-full\n\
               hostssl replication all all password clientcert=verify-full";
    let options = Options {
        tls: Some(authority.files_with_ca()),
        hba,
        users: "\"rep\" \"secret\"\n",
        ..Options::default()
    };
    let relay = Relay::with(options).await;
    let log_in = async |certificate: Option<&str>, user: &str, password: &str| {
        let identity = certificate.map(|name| authority.issue(name, 7));
        let mut client = encrypted(&relay, &ClientTls { identity, ..authority.client() }).await;
        client.start_up(&[("user", user), ("replication", "true")]).await;
        if user == "rep" && certificate.is_some() {
            assert_eq!(client.next().await.unwrap().body, [0, 0, 0, 3]);
            client.message(b'p', &[password.as_bytes(), b"\0"].concat()).await;
        }
        client.until_closed_or_ready().await
    };
    assert_eq!(log_in(Some("anybody"), "ca", "").await, Ok(()));
    assert_eq!(
        log_in(None, "ca", "").await,
        Err(pair("28000", "connection requires a valid client certificate"))
    );
    assert_eq!(
        log_in(None, "rep", "").await,
        Err(pair("28000", "connection requires a valid client certificate"))
    );
    assert_eq!(log_in(Some("rep"), "rep", "secret").await, Ok(()));
    let wrong = Err(pair("28P01", "password authentication failed for user \"rep\""));
    assert_eq!(log_in(Some("rep"), "rep", "wrong").await, wrong);
    assert_eq!(log_in(Some("other"), "rep", "secret").await, wrong);
    let distrusted = Err(pair("28000", "\"trust\" authentication failed for user \"trusted\""));
    assert_eq!(log_in(Some("other"), "trusted", "").await, distrusted);
}

#[tokio::test(flavor = "multi_thread")]
async fn strange_and_revoked_certificates_end_the_handshake() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    authority.revoke(&[9]);
    let files = TlsFiles { crl: Some(authority.path("root.crl")), ..authority.files_with_ca() };
    let relay = relay(files, "hostssl replication all all trust").await;
    for version in [TlsVersion::V12, TlsVersion::V13] {
        let with = |identity| ClientTls { identity, version, ..authority.client() };
        assert!(gets_in(&relay, &with(None)).await, "the rule asks for none");
        assert!(gets_in(&relay, &with(Some(authority.issue("rep", 8)))).await);
        assert!(!gets_in(&relay, &with(Some(authority.issue("rep", 9)))).await, "revoked");
        assert!(!gets_in(&relay, &with(Some(stranger.issue("rep", 8)))).await, "somebody else's");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_for_new_connections() {
    let authority = Authority::new();
    let hba = "hostssl replication all all trust";
    let relay = relay(authority.files(), hba).await;
    let shown = |client: &TlsClient| client.socket.get_ref().1.peer_certificates().unwrap()[0].clone();
    let mut old = encrypted(&relay, &authority.client()).await;
    let renewed = authority.issue("server", 2);
    authority.install(&renewed);
    relay
        .access
        .replace(Access { tls: Some(ServerTls::load(&authority.files()).unwrap()), ..access(hba, "") });
    let new = encrypted(&relay, &authority.client()).await;
    assert_eq!(shown(&new), renewed.der);
    assert_ne!(shown(&old), renewed.der);
    old.start_up(REPLICATION).await;
    old.until_ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn passwords_are_bound_to_the_channel() {
    let authority = Authority::new();
    let options = Options {
        tls: Some(authority.files()),
        hba: "host replication all all scram-sha-256",
        users: "\"rep\" \"secret\"\n",
        ..Options::default()
    };
    let relay = Relay::with(options).await;
    let shown = async || {
        let client = encrypted(&relay, &authority.client()).await;
        let der = client.socket.get_ref().1.peer_certificates().unwrap()[0].clone();
        (client, end_point_hash(&der).unwrap())
    };
    let log_in = async |mechanism: &str, binding: ChannelBinding, mut client: TlsClient| {
        client.start_up(REPLICATION).await;
        let offered = client.next().await.unwrap().body;
        assert_eq!(offered, b"\0\0\0\x0aSCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0");
        let mut scram = ScramSha256::new(b"secret", binding);
        let first = scram.message().to_vec();
        let len = (first.len() as u32).to_be_bytes();
        client.message(b'p', &[mechanism.as_bytes(), b"\0", &len[..], &first].concat()).await;
        let challenge = client.next().await.unwrap();
        if challenge.kind == b'E' {
            return Err(pair(&challenge.field('C'), &challenge.field('M')));
        }
        scram.update(&challenge.body[4..]).unwrap();
        client.message(b'p', scram.message()).await;
        client.until_closed_or_ready().await
    };
    let plus = "SCRAM-SHA-256-PLUS";
    let (client, hash) = shown().await;
    assert_eq!(log_in(plus, ChannelBinding::tls_server_end_point(hash), client).await, Ok(()));
    let (client, mut hash) = shown().await;
    hash[0] ^= 1;
    let error = log_in(plus, ChannelBinding::tls_server_end_point(hash), client).await;
    assert_eq!(error, Err(pair("28000", "SCRAM channel binding check failed")));
    // Somebody has taken our offer away.
    let (client, _) = shown().await;
    let error = log_in("SCRAM-SHA-256", ChannelBinding::unrequested(), client).await;
    assert_eq!(error, Err(pair("28000", "SCRAM channel binding negotiation error")));
    let (client, _) = shown().await;
    assert_eq!(log_in("SCRAM-SHA-256", ChannelBinding::unsupported(), client).await, Ok(()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_held_open_ends_with_the_login_time() {
    let authority = Authority::new();
    let options = Options {
        tls: Some(authority.files()),
        authentication_timeout: Duration::from_millis(50),
        ..Options::default()
    };
    let relay = Relay::with(options).await;
    let mut client = relay.connect().await;
    client.send(&SSL).await;
    assert_eq!(client.read_once().await, b"S");
    client.send(&[0x16, 3, 1, 2, 0, 1]).await;
    assert_eq!(client.fatal().await.0, "57014");
}

/// Whatever comes where a handshake should: the connection ends, and the next one works.
#[tokio::test(flavor = "multi_thread")]
async fn noise_instead_of_a_handshake_is_survived() {
    let authority = Arc::new(Authority::new());
    let relay = relay(authority.files(), "hostssl replication all all trust").await;
    for noise in [
        &[0x16; 400][..],
        &[0x17, 3, 3, 0xff, 0xff],
        &[0x16, 3, 1, 0, 0],
        &[0; 64],
        b"GET / HTTP/1.1\r\n\r\n",
    ] {
        for direct in [false, true] {
            let mut client = relay.connect().await;
            if !direct {
                client.send(&SSL).await;
                assert_eq!(client.read_once().await, b"S");
            }
            let _ = client.socket.write_all(noise).await;
            let _ = client.socket.shutdown().await;
            while !client.read_once().await.is_empty() {}
        }
    }
    assert!(gets_in(&relay, &authority.client()).await);
}

/// Made as PostgreSQL's manual has it, without extensions. Our own client side takes what libpq takes.
#[tokio::test(flavor = "multi_thread")]
async fn certificates_of_version_1_are_shown_and_taken() {
    use crate::conninfo::{ConnInfo, Environment};

    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, pem: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, pem).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        path
    };
    let root = file("root.crt", include_str!("../../../tests/kit/version-1/root.crt"));
    let files = TlsFiles {
        cert: file("server.crt", include_str!("../../../tests/kit/version-1/server.crt")),
        key: file("server.key", include_str!("../../../tests/kit/version-1/server.key")),
        ca: Some(root.clone()),
        crl: None,
        min_version: TlsVersion::V12,
        max_version: TlsVersion::V13,
    };
    let cert = file("client.crt", include_str!("../../../tests/kit/version-1/client.crt"));
    let key = file("client.key", include_str!("../../../tests/kit/version-1/client.key"));
    let relay = relay(files, "hostssl replication all all cert").await;
    let log_in = async |user: &str, more: &str| {
        let text = format!(
            "host=localhost hostaddr=127.0.0.1 port={} user={user} sslmode=verify-full sslrootcert={} {more}",
            relay.address.port(),
            root.display()
        );
        let info = ConnInfo::parse(&text, &Environment::of_user("tester")).unwrap();
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        crate::pg::connect(&info, &info.hosts[0], deadline).await.map(drop).map_err(|error| error.to_string())
    };
    let own = format!("sslcert={} sslkey={}", cert.display(), key.display());
    log_in("rep", &own).await.unwrap();
    let refused = async |user: &str, more: &str, text: &str| {
        let error = log_in(user, more).await.unwrap_err();
        assert!(error.contains(text), "{error}");
    };
    refused("other", &own, "certificate authentication failed for user").await;
    refused("rep", "sslcertmode=disable", "connection requires a valid client certificate").await;
    refused("rep", &own.replace("client.crt", "server.crt"), "keys may not be consistent").await;
}
