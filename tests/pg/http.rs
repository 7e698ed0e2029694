//! Who watches a relay over the network: TLS, and the logins of the console.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::Command;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use walrelay_testkit::{
    Certificates, Cluster, PATIENCE, Port, Relay, Scratch, Server, Signal, on_every_version, on_one_version,
    tied_command, tools, wait_until,
};

use crate::{relay_below, walrelay};

on_every_version!(watchers_log_in_as_on_the_console);
on_one_version!(a_file_of_users_does_and_a_reload_changes_all_of_it, what_is_open_to_others_is_said);

const HBA: &str = "hostssl walrelay all 127.0.0.1/32 scram-sha-256\n\
                   host all,replication postgres 127.0.0.1/32 trust\n";

/// Asks over TLS, and verifies who answers.
struct Watcher {
    port: u16,
    config: Arc<ClientConfig>,
}

impl Watcher {
    fn new(port: &Port, certificates: &Certificates) -> Watcher {
        let mut roots = RootCertStore::empty();
        let root = CertificateDer::from_pem_file(certificates.file("root.crt")).expect("it is a certificate");
        roots.add(root).expect("it is an authority's");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.expect("they are known").with_root_certificates(roots).with_no_client_auth();
        Watcher { port: port.number(), config: Arc::new(config) }
    }

    fn stream(&self) -> StreamOwned<ClientConnection, TcpStream> {
        let socket = TcpStream::connect(("127.0.0.1", self.port)).expect("it listens");
        socket.set_read_timeout(Some(PATIENCE)).expect("a time that is not zero");
        let name = ServerName::try_from("localhost").expect("a name");
        let connection = ClientConnection::new(self.config.clone(), name).expect("the settings are good");
        StreamOwned::new(connection, socket)
    }

    /// The certificate that it shows now.
    fn certificate(&self) -> Vec<u8> {
        let mut stream = self.stream();
        stream.conn.complete_io(&mut stream.sock).expect("it shakes hands");
        stream.conn.peer_certificates().expect("it shows one")[0].to_vec()
    }

    /// What is answered at this path to this login: the code and the body.
    fn ask(&self, path: &str, login: &str) -> (u16, String) {
        let mut stream = self.stream();
        let login = BASE64_STANDARD.encode(login);
        let login =
            if login.is_empty() { String::new() } else { format!("Authorization: Basic {login}\r\n") };
        let host = format!("localhost:{}", self.port);
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\n{login}Connection: close\r\n\r\n")
            .expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer, and TLS's good-bye");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
        let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a code");
        (code, body.to_owned())
    }

    fn code(&self, path: &str, login: &str) -> u16 {
        self.ask(path, login).0
    }
}

fn relay(
    primary: &Cluster,
    certificates: &Certificates,
    port: &Port,
    hba: &str,
) -> walrelay_testkit::RelayBuilder {
    let relay = relay_below(primary).hba(hba).tls(certificates);
    let relay = relay.arg("--http-listen").arg(&port.number().to_string());
    relay.arg("--http-ssl").arg("on").arg("--http-auth").arg("on")
}

fn watchers_log_in_as_on_the_console(server: &Server) {
    let mut primary = Cluster::builder(server).start();
    primary.sql(
        "set password_encryption = 'scram-sha-256'; create role watcher login password 'swordfish' in role pg_monitor; \
         create role clerk login password 'ink'",
    );
    let (certificates, port) = (Certificates::new(), Port::take());
    let relay = relay(&primary, &certificates, &port, HBA).arg("--auth-query").start();
    relay.create_slot("s1");
    let watcher = Watcher::new(&port, &certificates);
    // Each login is good here if it is at the console, which has the secrets of the upstream.
    let console = |user: &str, password: &str| {
        let options = format!("dbname=walrelay sslmode=require user={user} password={password}");
        relay.psql(&options, &["show slots"]).map_err(|error| error.0)
    };
    for path in ["/metrics", "/api/status", "/"] {
        for (user, password, expected) in [
            ("watcher", "swordfish", 200),
            ("watcher", "trout", 401),
            ("clerk", "ink", 403),
            ("nobody", "x", 401),
        ] {
            let (code, text) = watcher.ask(path, &format!("{user}:{password}"));
            assert_eq!(code, expected, "{path} {user}: {text}");
            let there = console(user, password);
            assert_eq!(there.is_ok(), code == 200, "{path} {user}: {there:?}");
            if let Err(error) = there {
                let first = text.lines().next().expect("a reason");
                assert!(error.contains(first), "the same words: {first} {error}");
            }
        }
        assert_eq!(watcher.code(path, ""), 401, "{path}");
    }
    let (_, metrics) = watcher.ask("/metrics", "watcher:swordfish");
    assert!(metrics.contains("walrelay_slot_active{slot_name=\"s1\"} 0\n"), "{metrics}");
    assert!(metrics.contains("walrelay_connections_refused_total{cause=\"authentication\"}"), "{metrics}");
    // Probes take none, and show nothing.
    wait_until("it to be ready", || watcher.ask("/readyz", "") == (200, "ready\n".to_owned()));
    assert_eq!(watcher.ask("/livez", ""), (200, "alive\n".to_owned()));
    // Who does not speak TLS is told so.
    let mut plain = TcpStream::connect(("127.0.0.1", port.number())).expect("it listens");
    write!(plain, "GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n").expect("it reads");
    let mut answer = String::new();
    plain.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 400") && answer.ends_with("ask with https://\n"), "{answer}");

    // While the upstream is away what it said last counts; when it is back, what it says.
    primary.stop();
    assert_eq!(watcher.code("/metrics", "watcher:swordfish"), 200);
    assert_eq!(watcher.code("/metrics", "watcher:trout"), 401);
    primary.start();
    primary.sql("alter role watcher password 'salmon'");
    wait_until("the new password to be good", || watcher.code("/metrics", "watcher:salmon") == 200);
    assert_eq!(watcher.code("/metrics", "watcher:swordfish"), 401, "and the old one is not remembered");
    primary.sql("revoke pg_monitor from watcher");
    // The relay hears of it when it asks: each minute, and at a login that it does not remember.
    wait_until("the right to be gone", || {
        let _ = console("watcher", "salmon");
        watcher.code("/metrics", "watcher:salmon") == 403
    });

    // Whoever guesses all the time is told with a count.
    let mark = relay.log().mark();
    for _ in 0..50 {
        assert_ne!(watcher.code("/metrics", "guesser:x"), 200);
    }
    let told = relay.log().lines_with("HTTP request refused", mark);
    assert!(!told.is_empty() && told.len() < 10 && told[0].contains("count=1"), "{told:#?}");
}

fn a_file_of_users_does_and_a_reload_changes_all_of_it(server: &Server) {
    let primary = Cluster::builder(server).start();
    primary.sql(
        "set password_encryption = 'md5'; create role hashed login password 'hash' in role pg_monitor; \
         set password_encryption = 'scram-sha-256'; create role salted login password 'salt' in role pg_monitor; \
         create role plain login in role pg_monitor",
    );
    let secret =
        |role: &str| primary.sql(&format!("select rolpassword from pg_authid where rolname = '{role}'"));
    let users = format!(
        "\"hashed\" \"{}\"\n\"salted\" \"{}\"\n\"plain\" \"word\"\n",
        secret("hashed"),
        secret("salted")
    );
    let scratch = Scratch::new("http");
    let users = scratch.secret("userlist.txt", &users).display().to_string();
    let (certificates, port) = (Certificates::new(), Port::take());
    let rules = HBA.replace("scram-sha-256", "md5");
    let mut relay = relay(&primary, &certificates, &port, &rules).arg("--auth-file").arg(&users).start();
    let watcher = Watcher::new(&port, &certificates);
    for login in ["hashed:hash", "salted:salt", "plain:word"] {
        assert_eq!(watcher.code("/metrics", login), 200, "{login}");
        assert_eq!(watcher.code("/metrics", &format!("{login}x")), 401, "{login}");
    }
    let reload = |relay: &mut Relay| {
        let mark = relay.log().mark();
        relay.reload();
        relay.log().wait_for_after(mark, "configuration reloaded");
    };
    // The rules, although these logins were good a moment ago.
    relay.set_hba(&HBA.replace("all 127", "plain 127"));
    reload(&mut relay);
    assert_eq!((watcher.code("/metrics", "salted:salt"), watcher.code("/metrics", "plain:word")), (401, 200));
    // The certificate, while somebody has begun to shake hands and goes no further.
    let before = watcher.certificate();
    let mut hung = TcpStream::connect(("127.0.0.1", port.number())).expect("it listens");
    hung.write_all(&[0x16, 3, 1]).expect("it reads");
    certificates.renew();
    reload(&mut relay);
    assert_ne!(watcher.certificate(), before);
    assert_eq!(watcher.code("/metrics", "plain:word"), 200);
    hung.set_read_timeout(Some(PATIENCE)).expect("a time that is not zero");
    let end = hung.read(&mut [0; 16]);
    assert!(
        end.is_ok() || end.as_ref().is_err_and(|error| error.kind() == ErrorKind::ConnectionReset),
        "it is given up: {end:?}"
    );
    relay.signal(Signal::TERM);
    assert_eq!(relay.wait_exit(), Some(0), "{}", relay.log().tail());
}

fn what_is_open_to_others_is_said(server: &Server) {
    let primary = Cluster::builder(server).start();
    let (certificates, port) = (Certificates::new(), Port::take());
    let check = |more: &[&str]| {
        let mut command = tied_command(walrelay());
        command.args(["check-config", "--upstream", &primary.conninfo()]).args(more);
        let said = command.output().expect("it can be run");
        (said.status.code(), String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned())
    };
    let address = format!("0.0.0.0:{}", port.number());
    let (code, text) = check(&["--http-listen", &address]);
    assert!(code == Some(0) && text.contains(&format!("whoever can reach {address} sees names")), "{text}");
    let (_, text) = check(&["--http-listen", &address, "--http-auth", "on"]);
    assert!(text.contains(&format!("passwords come to {address} in clear text")), "{text}");
    let (code, text) = check(&["--http-listen", &address, "--http-ssl", "on"]);
    assert!(
        code != Some(0) && text.contains("invalid value for --http-ssl: needs --ssl-cert-file"),
        "{text}"
    );
    let (certificate, key) = (certificates.file("server.crt"), certificates.file("server.key"));
    let tls = ["--http-ssl", "on", "--ssl-cert-file", &certificate, "--ssl-key-file", &key];
    let (code, text) = check(&[&["--http-listen", &address, "--http-auth", "on"], &tls[..]].concat());
    assert!(code == Some(0) && !text.contains(&address), "{text}");

    let relay = relay_below(&primary).arg("--http-listen").arg(&address).start();
    relay.log().wait_for(&format!("whoever can reach {address} sees names"));
}

/// What the manual has people write into Prometheus's configuration, by Prometheus's own tool, where it is installed.
#[test]
fn prometheus_takes_the_configuration_of_the_manual() {
    let manual = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/MONITORING.md"));
    let manual = manual.expect("it is there");
    let shown: Vec<&str> = manual
        .split("```yaml\n")
        .skip(1)
        .filter_map(|part| part.split("```").next())
        .filter(|text| text.contains("scrape_configs:"))
        .collect();
    assert!(
        shown.iter().any(|text| text.contains("basic_auth:") && text.contains("tls_config:")),
        "{shown:?}"
    );
    let Some(promtool) = tools::promtool() else {
        eprintln!("not checked: promtool is not installed (Debian's package prometheus)");
        return;
    };
    let scratch = Scratch::new("prometheus");
    for text in shown {
        let path = scratch.join("prometheus.yml");
        std::fs::write(&path, text).expect("the directory is ours");
        let told = Command::new(&promtool).args(["check", "config", "--syntax-only"]).arg(&path).output();
        let told = told.expect("it can be run");
        let said = [told.stdout, told.stderr].concat();
        assert!(told.status.success(), "{}", String::from_utf8_lossy(&said));
    }
}
