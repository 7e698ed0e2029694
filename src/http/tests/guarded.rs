//! Logins and TLS of the listener, with a relay behind it that knows roles.

use std::net::IpAddr;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::rustls::pki_types::ServerName;

use super::*;
use crate::conninfo::TlsVersion;
use crate::downstream::Access;
use crate::downstream::tests::authority::{Authority, ClientTls};
use crate::downstream::tests::kit::{Options, Relay, access};
use crate::wire::ServerTls;

const SSL: HttpRules = HttpRules { ssl: true, auth: false };
const AUTH: HttpRules = HttpRules { ssl: false, auth: true };

/// `watcher` may see the relay, and so may "a", a role of `--admin-role` in the kit; `clerk` may not.
const ROLES: &str = "[roles.watcher.attributes]\nsuperuser = false\nreplication = false\ncan_login = true\nmonitor = true\n\
    [roles.hashed.attributes]\nsuperuser = false\nreplication = false\ncan_login = true\nmonitor = true\n\
    [roles.retired.attributes]\nsuperuser = false\nreplication = false\ncan_login = false\nmonitor = true\n\
    [roles.clerk.attributes]\nsuperuser = false\nreplication = true\ncan_login = true\nmonitor = false\n";

/// Passwords are the names backwards; `watcher` has a verifier, `hashed` an MD5 hash.
fn users() -> &'static str {
    use crate::auth::scram::Verifier;
    let iterations = std::num::NonZeroU32::new(4096).unwrap();
    let verifier = Verifier::from_password(b"rehctaw", b"salt of this one", iterations);
    let hash = crate::auth::md5::stored_hash("hashed", b"dehsah");
    let text = format!(
        "\"watcher\" \"{verifier}\"\n\"hashed\" \"{hash}\"\n\"clerk\" \"krelc\"\n\"retired\" \"deriter\"\n\"a\" \"a\"\n"
    );
    text.leak()
}

/// A listener before a relay that runs, as far as logins go.
struct Guarded {
    served: Served,
    relay: Relay,
    runtime: tokio::runtime::Runtime,
}

impl Guarded {
    fn start(rules: HttpRules, options: Options) -> Guarded {
        let guarded = Guarded::starting(rules, options);
        guarded.served.door.note_doorkeeper(guarded.relay.doorkeeper.clone());
        guarded.served.go_on();
        guarded
    }

    fn starting(rules: HttpRules, options: Options) -> Guarded {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (served, relay) = (Served::starting(), runtime.block_on(Relay::with(options)));
        served.door.set_rules(rules);
        served.door.note_access(relay.access.clone());
        Guarded { served, relay, runtime }
    }

    /// The code and the body of what somebody is answered.
    fn ask(&self, path: &str, login: &str) -> (u16, String) {
        code_and_body(&self.served.get_with(path, &format!("Host: localhost\r\n{}", basic(login))))
    }

    fn code(&self, path: &str, login: &str) -> u16 {
        self.ask(path, login).0
    }

    /// The same over TLS.
    fn ask_encrypted(&self, tls: &ClientTls<'_>, path: &str, login: &str) -> std::io::Result<(u16, String)> {
        let name = ServerName::try_from("localhost").unwrap();
        let asked = async {
            let socket = tokio::net::TcpStream::connect(self.served.address).await?;
            let mut stream = tls.connector().connect(name, socket).await?;
            let head = format!("Host: localhost\r\n{}", basic(login));
            stream.write_all(format!("GET {path} HTTP/1.1\r\n{head}\r\n\r\n").as_bytes()).await?;
            let mut answer = String::new();
            // An end without a good-bye would be an error.
            stream.read_to_string(&mut answer).await?;
            Ok(code_and_body(&answer))
        };
        self.runtime.block_on(async { tokio::time::timeout(DEADLINE, asked).await.expect("in time") })
    }
}

fn basic(login: &str) -> String {
    match login.is_empty() {
        true => "X: y".to_owned(),
        false => format!("Authorization: Basic {}", BASE64_STANDARD.encode(login)),
    }
}

fn code_and_body(answer: &str) -> (u16, String) {
    let code = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
    (code.unwrap_or_else(|| panic!("no code: {answer}")), body(answer).to_owned())
}

fn with_logins(hba: &'static str) -> Options {
    Options { hba, users: users(), roles: ROLES, ..Options::default() }
}

const PATHS: [&str; 5] = ["/metrics", "/", "/page.js", "/api/status", "/api/history"];

#[test]
fn who_may_examine_the_relay_is_let_in_with_the_right_password() {
    let guarded = Guarded::start(AUTH, with_logins("host walrelay all all md5\n"));
    for path in PATHS {
        for good in ["watcher:rehctaw", "hashed:dehsah", "a:a"] {
            assert_eq!(guarded.code(path, good), 200, "{path} {good}");
        }
        let answer = guarded.served.get(path);
        assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
        assert!(
            answer.to_ascii_lowercase().contains("www-authenticate: basic realm=\"walrelay\""),
            "{answer}"
        );
        for bad in ["watcher:", "watcher:wrong", "watcher", "hashed:rehctaw", ":", "watcher\0x:y"] {
            assert_eq!(guarded.code(path, bad), 401, "{path} {bad}");
        }
        let (code, text) = guarded.ask(path, "clerk:krelc");
        assert_eq!(code, 403);
        assert!(text.starts_with("permission denied to examine the relay\n"), "{text}");
        assert_eq!(guarded.code(path, "clerk:wrong"), 401, "who it is comes first");
    }
    let nobody = guarded.ask("/metrics", "nobody:ydobon");
    assert_eq!(nobody, (401, "password authentication failed for user \"nobody\"\n".to_owned()));
    let refused = guarded.ask("/metrics", "retired:deriter");
    assert_eq!(refused, (401, "role \"retired\" is not permitted to log in\n".to_owned()));
}

#[test]
fn the_rules_are_those_of_the_console() {
    let rules = "host walrelay watcher 127.0.0.2/32 reject\n\
                 hostssl walrelay watcher all scram-sha-256\n\
                 hostnossl walrelay hashed all scram-sha-256\n\
                 host postgres,replication all all trust\n\
                 host walrelay a all trust\n";
    let guarded = Guarded::start(AUTH, with_logins(rules));
    let (code, text) = guarded.ask("/metrics", "watcher:rehctaw");
    let told = "no pg_hba.conf entry for host \"127.0.0.1\", user \"watcher\", database \"walrelay\", no encryption\n";
    assert_eq!((code, &*text), (401, told));
    assert_eq!(
        guarded.code("/metrics", "hashed:dehsah"),
        401,
        "such a hash is not for this method, as over the wire"
    );
    assert_eq!(guarded.code("/metrics", "a:"), 200, "trusted");
    // What holds now counts, whatever was good a moment ago.
    guarded.relay.access.replace(access("host walrelay a all scram-sha-256\n", users()));
    assert_eq!(guarded.code("/metrics", "a:"), 401);
    assert_eq!(guarded.code("/metrics", "a:a"), 200);
    guarded.relay.access.replace(access("host walrelay a all scram-sha-256\n", "\"a\" \"b\"\n"));
    assert_eq!((guarded.code("/metrics", "a:a"), guarded.code("/metrics", "a:b")), (401, 200));
}

#[test]
fn probes_take_no_login_and_name_nothing_to_who_has_none() {
    let guarded = Guarded::start(AUTH, with_logins("host walrelay all all scram-sha-256\n"));
    for (path, few, all) in [
        ("/livez", "alive\n", "alive\n"),
        ("/readyz", "ready\n", "ready\n"),
        ("/healthz", "somebody should look at it\n", "no WAL comes from the upstream"),
    ] {
        for login in ["", "watcher:wrong", "clerk:krelc"] {
            assert_eq!(guarded.ask(path, login), (200, few.to_owned()), "{path} {login}");
        }
        let (code, text) = guarded.ask(path, "watcher:rehctaw");
        assert!(code == 200 && text.contains(all), "{path}: {text}");
    }
    assert_eq!(guarded.code("/nowhere", ""), 404);
}

/// Where there is nothing to tell, nobody is asked who he is: that takes time, which a probe has not.
#[test]
fn a_login_is_looked_at_only_where_there_is_something_to_tell() {
    let options = Options { max_failed_logins: 1, ..with_logins("host walrelay all all scram-sha-256\n") };
    let guarded = Guarded::start(AUTH, options);
    for _ in 0..3 {
        for path in ["/livez", "/readyz"] {
            assert_eq!(guarded.code(path, "watcher:wrong"), 200);
        }
    }
    assert_eq!(guarded.code("/metrics", "a:a"), 200, "no credit was used up");
}

#[test]
fn nobody_keeps_what_is_answered() {
    let guarded = Guarded::start(AUTH, with_logins("host walrelay all all scram-sha-256\n"));
    for path in ["/metrics", "/healthz", "/readyz", "/livez", "/api/status"] {
        let answer = guarded.served.get_with(path, &format!("Host: localhost\r\n{}", basic("a:a")));
        let (head, _) = answer.split_once("\r\n\r\n").unwrap();
        let head = head.to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 200"), "{path}: {head}");
        for line in
            ["cache-control: no-store", "x-content-type-options: nosniff", "content-security-policy: "]
        {
            assert!(head.contains(line), "{path}: {head}");
        }
    }
}

#[test]
fn guesses_use_up_the_credit_of_their_address_and_nobody_elses() {
    let options = Options { max_failed_logins: 1, ..with_logins("host walrelay all all scram-sha-256\n") };
    let guarded = Guarded::start(AUTH, options);
    assert_eq!(guarded.code("/metrics", "watcher:rehctaw"), 200);
    assert_eq!(guarded.code("/metrics", "watcher:guess"), 401);
    let answer = guarded.served.get_with("/metrics", &format!("Host: localhost\r\n{}", basic("a:a")));
    assert!(answer.starts_with("HTTP/1.1 429"), "{answer}");
    assert!(answer.to_ascii_lowercase().contains("retry-after: "), "{answer}");
    assert_eq!(body(&answer).lines().next(), Some("too many failed logins from this address"));
    // Who was known before goes on, and so do others.
    assert_eq!(guarded.code("/metrics", "watcher:rehctaw"), 200);
    let elsewhere = guarded.runtime.block_on(async {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((IpAddr::from([127, 0, 0, 2]), 0).into()).unwrap();
        let mut socket = socket.connect(guarded.served.address).await.unwrap();
        let request = format!("GET /metrics HTTP/1.1\r\nHost: localhost\r\n{}\r\n\r\n", basic("a:a"));
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.unwrap();
        answer
    });
    assert!(elsewhere.starts_with("HTTP/1.1 200"), "{elsewhere}");
}

#[test]
fn while_the_relay_starts_everybody_is_told_how_far_that_is_and_nothing_else() {
    let guarded = Guarded::starting(AUTH, with_logins("host walrelay all all scram-sha-256\n"));
    let (code, text) = guarded.ask("/metrics", "");
    assert!(code == 200 && text.contains("walrelay_ready 0\n"), "{text}");
    assert!(!text.contains("walrelay_upstream_state"), "{text}");
    let (code, text) = guarded.ask("/api/status", "");
    assert!(code == 503 && text.contains("\"starting\":"), "{text}");
    guarded.served.door.note_doorkeeper(guarded.relay.doorkeeper.clone());
    guarded.served.go_on();
    assert_eq!((guarded.code("/metrics", ""), guarded.code("/api/status", "")), (401, 401));
    // A reload may change it.
    guarded.served.door.set_rules(HttpRules::default());
    assert_eq!(guarded.code("/metrics", ""), 200);
}

#[test]
fn tls_is_spoken_with_the_relays_certificate() {
    let authority = Authority::new();
    let rules = HttpRules { ssl: true, auth: true };
    let options =
        Options { tls: Some(authority.files()), ..with_logins("hostssl walrelay all all scram-sha-256\n") };
    let guarded = Guarded::start(rules, options);
    const BROWSER: &[&[u8]] = &[b"h2", b"http/1.1"];
    for (version, alpn) in [(TlsVersion::V12, BROWSER), (TlsVersion::V13, BROWSER), (TlsVersion::V13, &[])] {
        let client = ClientTls { version, alpn, ..authority.client() };
        let (code, text) = guarded.ask_encrypted(&client, "/metrics", "watcher:rehctaw").unwrap();
        assert!(code == 200 && text.ends_with("# EOF\n"), "{text}");
        assert_eq!(guarded.ask_encrypted(&client, "/metrics", "watcher:wrong").unwrap().0, 401);
    }
    let consumer = guarded.ask_encrypted(&authority.client(), "/metrics", "watcher:rehctaw");
    assert!(consumer.is_err(), "PostgreSQL's protocol is not spoken here: {consumer:?}");
    let (code, text) = guarded.ask("/metrics", "watcher:rehctaw");
    assert_eq!((code, &*text), (400, "this port speaks TLS (--http-ssl): ask with https://\n"));

    // Another certificate, for who comes now.
    let other = Authority::new();
    let browser = |authority| ClientTls { alpn: BROWSER, ..Authority::client(authority) };
    assert!(guarded.ask_encrypted(&browser(&other), "/livez", "").is_err(), "a stranger's certificate");
    let tls = Some(ServerTls::load(&other.files()).unwrap());
    guarded.relay.access.replace(Access { tls, ..access("host all all all reject\n", "") });
    assert_eq!(guarded.ask_encrypted(&browser(&other), "/livez", "").unwrap(), (200, "alive\n".to_owned()));
    assert!(guarded.ask_encrypted(&browser(&authority), "/livez", "").is_err());
}

#[test]
fn a_certificate_does_for_a_login_where_the_rules_say_so() {
    let authority = Authority::new();
    let rules = HttpRules { ssl: true, auth: true };
    let hba = "hostssl walrelay watcher all cert\n";
    let options = Options { tls: Some(authority.files_with_ca()), ..with_logins(hba) };
    let guarded = Guarded::start(rules, options);
    let client = |identity| ClientTls { identity, alpn: &[b"http/1.1"], ..authority.client() };
    let own = client(Some(authority.issue("watcher", 2)));
    assert_eq!(guarded.ask_encrypted(&own, "/metrics", "watcher:").unwrap().0, 200);
    let (code, text) = guarded.ask_encrypted(&client(None), "/metrics", "watcher:").unwrap();
    assert_eq!((code, &*text), (401, "connection requires a valid client certificate\n"));
    let other = client(Some(authority.issue("clerk", 3)));
    let (code, text) = guarded.ask_encrypted(&other, "/metrics", "watcher:").unwrap();
    assert_eq!((code, &*text), (401, "certificate authentication failed for user \"watcher\"\n"));
}

#[test]
fn a_handshake_that_hangs_holds_up_nobody_and_is_given_up() {
    let authority = Authority::new();
    let guarded = Guarded::start(SSL, Options { tls: Some(authority.files()), ..Options::default() });
    let browser = ClientTls { alpn: &[b"http/1.1"], ..authority.client() };
    let begun = Instant::now();
    let mut hung: Vec<TcpStream> = (0..CONNECTIONS + 3).map(|_| guarded.served.connect()).collect();
    // Half of them have begun to speak.
    hung.iter_mut().step_by(2).for_each(|socket| socket.write_all(&[0x16, 3, 1]).unwrap());
    for _ in 0..5 {
        assert_eq!(guarded.ask_encrypted(&browser, "/livez", "").unwrap().0, 200);
    }
    // One after the other they would have taken minutes.
    assert!(begun.elapsed() < DEADLINE);
    for socket in &mut hung {
        let _ = socket.read_to_end(&mut Vec::new());
    }
    assert!(begun.elapsed() < DEADLINE);
    assert_eq!(guarded.ask_encrypted(&browser, "/livez", "").unwrap().0, 200);
}
