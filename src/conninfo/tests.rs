use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use super::*;

fn environment() -> Environment {
    Environment::of_user("postgres").with("HOME", "/nonexistent")
}

fn parse(text: &str) -> ConnInfo {
    ConnInfo::parse(text, &environment()).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn error(text: &str) -> String {
    ConnInfo::parse(text, &environment()).map(|info| info.to_string()).expect_err(text).to_string()
}

/// One line of `libpq.tsv`: what real libpq made of a string, recorded by `record.py`.
struct Recorded {
    input: String,
    parses: bool,
    valid: bool,
    message: String,
    values: BTreeMap<String, String>,
}

fn recorded() -> impl Iterator<Item = Recorded> {
    include_str!("tests/libpq.tsv").lines().map(|line| {
        let mut fields = line.split('\t').map(unescape);
        let mut next = || fields.next().expect("four columns at least");
        let (input, parses, valid, message) = (next(), next() == "parses", next() == "valid", next());
        let pair = |field: String| field.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()));
        let values = fields.map(|field| pair(field).expect("keyword=value")).collect();
        Recorded { input, parses, valid, message, values }
    })
}

fn unescape(field: &str) -> String {
    let mut chars = field.chars();
    let mut text = String::new();
    while let Some(c) = chars.next() {
        text.push(match c {
            '\\' => match chars.next() {
                Some('t') => '\t',
                Some('n') => '\n',
                other => other.expect("an escape has two characters"),
            },
            c => c,
        });
    }
    text
}

/// Strings that walrelay takes as its short form and libpq refuses.
const BARE: [&str; 1] = ["host"];
/// Strings that libpq takes and walrelay cannot honour.
const UNSUPPORTED: [&str; 6] = [
    "gssencmode=require",
    "require_auth=gss",
    "require_auth=oauth",
    "min_protocol_version=3.2",
    "sslkeylogfile=/nonexistent/keys",
    "ssl_min_protocol_version=TLSv1 ssl_max_protocol_version=TLSv1",
];

/// Strings in which the end of a password counts as something else: refused without showing it, where libpq would try to connect,
/// or says it.
const SPILT: [&str; 2] = ["postgresql://u:p@w@host", "postgresql://user:pass/word@host/db"];

#[test]
fn strings_are_read_as_real_libpq_reads_them() {
    let mut count = 0;
    for case in recorded().filter(|case| !BARE.contains(&&*case.input)) {
        let ours = read(&case.input);
        assert_eq!(ours.is_ok(), case.parses, "{:?}: {:?}", case.input, ours.err());
        if let Ok(settings) = ours {
            let pair = |(keyword, value): (Keyword, &str)| (keyword.name().to_owned(), value.to_owned());
            assert_eq!(
                settings.iter().map(pair).collect::<BTreeMap<_, _>>(),
                case.values,
                "{:?}",
                case.input
            );
        }
        count += 1;
    }
    assert!(count > 150, "{count}");
}

#[test]
fn values_are_checked_as_real_libpq_checks_them() {
    let unsupported =
        |text: &str| UNSUPPORTED.iter().any(|end| text.strip_prefix("host=/nonexistent ") == Some(end));
    for case in recorded().filter(|case| !BARE.contains(&&*case.input)) {
        let ours = ConnInfo::parse(&case.input, &environment());
        match (ours, case.valid) {
            (Err(error), _) if unsupported(&case.input) => {
                assert!(error.to_string().contains("not supported by walrelay"), "{}: {error}", case.input);
            }
            (Err(error), _) if SPILT.contains(&&*case.input) => {
                assert!(error.to_string().contains("percent-encode"), "{}: {error}", case.input);
            }
            (Ok(_), valid) => assert!(valid, "{:?}: {}", case.input, case.message),
            (Err(error), true) => panic!("{:?}: {error}", case.input),
            (Err(error), false) => check_message(&case, &error.to_string()),
        }
    }
}

/// Messages are libpq's, except that we never repeat what may hold a password.
fn check_message(case: &Recorded, ours: &str) {
    let plain =
        case.message.replace("invalid \"ssl_", "invalid ssl_").replace("version\" value", "version value");
    let silent = ["percent", "separator", "spaces", "IPv6", "in URI", "SCRAM", "network address"];
    if !silent.iter().any(|word| case.message.contains(word)) {
        assert_eq!(ours, plain, "{:?}", case.input);
    }
}

#[test]
fn what_pg_basebackup_writes_takes_effect() {
    let info = parse(
        "user=scram password=secret channel_binding=prefer host=127.0.0.1 port=55417 application_name='a b' \
         sslmode=verify-full sslnegotiation=postgres sslcompression=0 sslcertmode=allow sslsni=1 \
         ssl_min_protocol_version=TLSv1.2 gssencmode=prefer krbsrvname=postgres gssdelegation=0 \
         target_session_attrs=any load_balance_hosts=disable dbname=replication",
    );
    let address = HostAddress::Name("127.0.0.1".to_owned());
    assert_eq!(info.hosts, [HostSpec { name: Some("127.0.0.1".to_owned()), address, port: 55417 }]);
    assert_eq!(info.user, "scram");
    assert_eq!(info.application_name, "a b");
    assert_eq!(info.tls.mode, SslMode::VerifyFull);
    assert_eq!(info.password.unwrap().expose(), b"secret");
}

#[test]
fn the_short_form_lists_hosts_and_ports() {
    let check = |text: &str, expected: &[(&str, u16)]| {
        let hosts = parse(text).hosts;
        let found: Vec<_> = hosts.iter().map(|host| (host.name.as_deref().unwrap(), host.port)).collect();
        assert_eq!(found, expected, "{text}");
    };
    check("db1", &[("db1", 5432)]);
    check("db1.example.com:5433", &[("db1.example.com", 5433)]);
    check("10.0.0.1:5433", &[("10.0.0.1", 5433)]);
    check("[::1]:5433", &[("::1", 5433)]);
    check("[::1]", &[("::1", 5432)]);
    check("fe80::1%eth0", &[("fe80::1%eth0", 5432)]);
    check("::1", &[("::1", 5432)]);
    check("a,b:5433", &[("a", 5432), ("b", 5433)]);
    check("/run/pg:7", &[("/run/pg", 7)]);
    assert_eq!(parse("/run/pg").hosts[0].address, HostAddress::UnixDirectory("/run/pg".into()));
    assert_eq!(error("db:x"), "invalid integer value \"x\" for connection option \"port\"");
    assert_eq!(error("http://db"), "missing \"=\" after \"http://db\" in connection info string");
    assert_eq!(error("me@db"), "missing \"=\" after \"me@db\" in connection info string");
    assert_eq!(error("[::1]x"), "missing \"=\" after \"[::1]x\" in connection info string");
}

#[test]
fn defaults_are_libpqs_but_for_the_name() {
    let info = parse("");
    assert!(matches!(
        info.hosts[..],
        [HostSpec { name: None, address: HostAddress::UnixDirectory(_), port: 5432 }]
    ));
    assert_eq!((info.user.as_str(), info.application_name.as_str()), ("postgres", "walrelay"));
    assert_eq!(info.passfile, Some("/nonexistent/.pgpass".into()));
    assert_eq!(info.tls.mode, SslMode::Prefer);
    assert_eq!(info.tls.root_cert, Some(RootCert::File("/nonexistent/.postgresql/root.crt".into())));
    assert_eq!((info.tls.min_version, info.tls.max_version), (TlsVersion::V12, TlsVersion::V13));
    assert!(info.tls.sni && info.tcp.keepalives && info.connect_timeout.is_none());
    assert_eq!(parse("fallback_application_name=f").application_name, "f");
    assert_eq!(parse("fallback_application_name=f application_name=a").application_name, "a");
    assert_eq!(parse("connect_timeout=3").connect_timeout, Some(Duration::from_secs(3)));
    assert_eq!(parse("connect_timeout=-3").connect_timeout, None);
    assert!(!parse("keepalives=0").tcp.keepalives);
    assert_eq!(parse("tcp_user_timeout=1500").tcp.user_timeout, Some(Duration::from_millis(1500)));
    assert_eq!(error("keepalives=x"), "invalid integer value \"x\" for connection option \"keepalives\"");
    let nobody = ConnInfo::parse("host=a", &Environment::default()).unwrap_err();
    assert!(matches!(nobody, ConnInfoError::NoUser));
}

#[test]
fn the_environment_stands_behind_the_string() {
    let environment = environment()
        .with("PGHOST", "envhost")
        .with("PGPORT", "7")
        .with("PGUSER", "envuser")
        .with("PGPASSWORD", "envpass")
        .with("PGAPPNAME", "envapp")
        .with("PGSSLMODE", "require")
        .with("PGCONNECT_TIMEOUT", "9")
        .with("PGOPTIONS", "-c a=b")
        .with("PGTARGETSESSIONATTRS", "primary");
    let info = ConnInfo::parse("user=me fallback_application_name=f", &environment).unwrap();
    assert_eq!(info.to_string(), "host=envhost port=7 user=me application_name=envapp sslmode=require");
    assert_eq!(info.password.as_ref().unwrap().expose(), b"envpass");
    assert_eq!(info.options.as_deref(), Some("-c a=b"));
    assert_eq!(info.target_session_attrs, TargetSessionAttrs::Primary);
    assert_eq!(info.connect_timeout, Some(Duration::from_secs(9)));
    let empty = ConnInfo::parse("host='' application_name=''", &environment).unwrap();
    assert!(matches!(empty.hosts[0].address, HostAddress::UnixDirectory(_)));
    assert_eq!(empty.application_name, "walrelay");
}

#[test]
fn old_requiressl_and_system_roots_change_the_default_mode() {
    let mode = |text, environment: &Environment| ConnInfo::parse(text, environment).unwrap().tls.mode;
    let old = environment().with("PGREQUIRESSL", "1");
    assert_eq!(mode("", &old), SslMode::Require);
    assert_eq!(mode("", &old.clone().with("PGSSLMODE", "allow")), SslMode::Allow);
    assert_eq!(mode("sslrootcert=system", &environment()), SslMode::VerifyFull);
    assert_eq!(mode("", &environment().with("PGSSLROOTCERT", "system")), SslMode::VerifyFull);
    assert_eq!(
        ConnInfo::parse("sslrootcert=system", &old).unwrap_err().to_string(),
        "weak sslmode \"require\" may not be used with sslrootcert=system (use \"verify-full\")"
    );
}

#[test]
fn secrets_show_nowhere() {
    let info = parse("host=a user=u password=hush sslpassword=hush oauth_client_secret=hush");
    assert!(!format!("{info:?} {info}").contains("hush"));
    for text in [
        "password=a hush",
        "password = x hush host=b",
        "postgresql://u:hush%zz@host",
        "postgresql://u:hush hush@host",
        "postgresql://u:hush@[::1",
        "postgresql://u:hush@[::1]x",
        "postgresql://u@h?password=hu&hush",
        "scram_client_key=hush",
    ] {
        assert!(!error(text).contains("hush"), "{}", error(text));
    }
}

#[test]
fn a_service_fills_what_the_string_leaves_open() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("services");
    let text = "# comment\n[other]\nhost=x\n\n[ main ]\nhost=wrong\n[main]\n  host=svc\nport=7\nuser=svcuser\n\
                password=a=b\n[last]\nuser=late\n";
    fs::write(&file, text).unwrap();
    let environment = environment().with("PGSERVICEFILE", file.to_str().unwrap()).with("PGPORT", "9");
    let info = ConnInfo::parse("service=main user=me", &environment).unwrap();
    assert_eq!(info.to_string(), "host=svc port=7 user=me application_name=walrelay sslmode=prefer");
    assert_eq!(info.password.unwrap().expose(), b"a=b");
    let info = ConnInfo::parse("", &environment.clone().with("PGSERVICE", "last")).unwrap();
    assert_eq!(info.user, "late");
    let missing = ConnInfo::parse("service=none", &environment.clone().with("PGSYSCONFDIR", "/nonexistent"));
    assert_eq!(missing.unwrap_err().to_string(), "definition of service \"none\" not found");
}

#[test]
fn service_files_are_searched_in_home_then_in_the_system() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().to_str().unwrap();
    fs::write(directory.path().join(".pg_service.conf"), "[mine]\nuser=home\n").unwrap();
    fs::write(directory.path().join("pg_service.conf"), "[mine]\nuser=x\n[ours]\nuser=system\n").unwrap();
    let environment = Environment::of_user("u").with("HOME", path).with("PGSYSCONFDIR", path);
    let user = |text| ConnInfo::parse(text, &environment).unwrap().user;
    assert_eq!(user("service=mine"), "home");
    assert_eq!(user("service=ours"), "system");
}

#[test]
fn broken_service_files_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("services");
    let check = |text: &str, problem: &str| {
        fs::write(&file, text).unwrap();
        let environment = environment().with("PGSERVICEFILE", file.to_str().unwrap());
        let message = ConnInfo::parse("service=s", &environment).unwrap_err().to_string();
        let expected = format!("syntax error in service file \"{}\", line 2: {problem}", file.display());
        assert_eq!(message, expected);
    };
    check("[s]\nhost\n", "no \"=\"");
    check("[s]\nfoo=1\n", "unknown connection option");
    check("[s]\nservice=t\n", "nested service specifications are not supported");
    check(&format!("[s]\nhost={}\n", "x".repeat(1100)), "too long");
    let missing = environment().with("PGSERVICEFILE", "/nonexistent/file");
    let message = ConnInfo::parse("service=s", &missing).unwrap_err().to_string();
    assert!(
        message.starts_with("could not read service file \"/nonexistent/file\": No such file"),
        "{message}"
    );
}

fn password(passfile: &std::path::Path, text: &str) -> Option<String> {
    let info = parse(&format!("passfile='{}' {text}", passfile.display()));
    let secret = info.password_for(&info.hosts[0]).unwrap();
    secret.map(|secret| String::from_utf8(secret.expose().to_vec()).unwrap())
}

#[test]
fn password_files_follow_libpqs_rules() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pgpass");
    let lines = "# comment:1:replication:u:no\n\
                 a:1:postgres:u:wrong database\n\
                 a:1:replication:other:wrong user\n\
                 a:1:replication:u:first\\:\\\\:rest\r\n\
                 a:1:replication:u:second\n\
                 a\\:b:*:*:u:escaped\n\
                 localhost:*:*:u:local\n\
                 10.0.0.1:5432:replication:u:address\n\
                 *:*:*:last:any";
    fs::write(&file, lines).unwrap();
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    let check = |text: &str, expected: Option<&str>| {
        assert_eq!(password(&file, text).as_deref(), expected, "{text}");
    };
    check("host=a port=1 user=u", Some("first:\\"));
    check("host=a port=1 user=u dbname=postgres", Some("first:\\"));
    check("host=a port=2 user=u", None);
    check("host=a:b port=2 user=u", Some("escaped"));
    check("user=u", Some("local"));
    check("host=/tmp user=u", Some("local"));
    check("host=/var/run/postgresql user=u", Some("local"));
    check("host=/elsewhere user=u", None);
    check("hostaddr=10.0.0.1 user=u", Some("address"));
    check("host=a hostaddr=10.0.0.1 port=1 user=u", Some("first:\\"));
    check("host=z user=last", Some("any"));
    check("host=z user=last password=given", Some("given"));
    check("host=z user=last password=''", Some("any"));
}

#[test]
fn unsafe_password_files_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("pgpass");
    fs::write(&file, "*:*:*:*:p\n").unwrap();
    let result = |mode| {
        fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
        let info = parse(&format!("host=a user=u passfile='{}'", file.display()));
        info.password_for(&info.hosts[0])
    };
    assert!(result(0o600).unwrap().is_some());
    assert!(result(0o400).unwrap().is_some());
    for mode in [0o640, 0o604, 0o610] {
        assert!(matches!(result(mode), Err(PassfileError::Permissions { .. })));
    }
    let info = parse(&format!("host=a user=u passfile='{}'", directory.path().display()));
    assert!(matches!(info.password_for(&info.hosts[0]), Err(PassfileError::NotPlain { .. })));
    assert_eq!(password(&directory.path().join("none"), "host=a user=u"), None);
}

#[test]
fn require_auth_allows_and_forbids() {
    let allows = |text: &str, method| parse(&format!("require_auth={text}")).require_auth.allows(method);
    assert!(allows("''", AuthMethod::None) && allows("''", AuthMethod::Password));
    assert!(allows("scram-sha-256,md5", AuthMethod::Md5) && !allows("scram-sha-256", AuthMethod::None));
    assert!(!allows("!password", AuthMethod::Password) && allows("!password", AuthMethod::None));
    assert!(!allows("!none", AuthMethod::None) && allows("!none", AuthMethod::Md5));
}

#[test]
fn addresses_and_names_go_by_pairs() {
    let info = parse("host=a,,c hostaddr=10.0.0.1,::1,fe80::1%lo port=1,,3");
    let shown: Vec<_> = info.hosts.iter().map(HostSpec::to_string).collect();
    assert_eq!(shown, ["\"a\" (10.0.0.1), port 1", "\"::1\", port 5432", "\"fe80::1%lo\", port 3"]);
    assert_eq!(parse("host=/run port=7").hosts[0].to_string(), "/run/.s.PGSQL.7");
    assert!(error("host=@abstract").contains("not supported by walrelay"));
}

proptest::proptest! {
    #[test]
    fn no_string_panics(text: String) {
        let _ = ConnInfo::parse(&text, &environment());
        let _ = ConnInfo::parse(&format!("postgresql://{text}"), &environment());
    }

    #[test]
    fn any_value_survives_quoting(value in "[^\0]*") {
        let quoted = value.replace('\\', "\\\\").replace('\'', "\\'");
        let info = parse(&format!("host=a application_name = '{quoted}x' user=u"));
        proptest::prop_assert_eq!(info.application_name, format!("{value}x"));
    }
}

#[test]
fn in_a_clients_name_nothing_of_the_relays_own_proves_anything() {
    let info = parse("host=a user=relay password=secret sslcert=/c sslkey=/k sslcertmode=require");
    assert_eq!(info.tls.cert_mode, SslCertMode::Require);
    let theirs = info.in_the_name_of("app", &Credentials::None, Vec::new());
    assert_eq!(
        theirs.tls.cert_mode,
        SslCertMode::Disable,
        "no certificate is sent, and none has to be asked for"
    );
    assert!(theirs.password.is_none() && theirs.passfile.is_none());
}

#[test]
fn a_connection_to_oneself_is_known_by_both_of_its_ends() {
    let address = |text: &str| text.parse::<std::net::SocketAddr>().unwrap();
    let own =
        OwnAddresses { tcp: vec![address("10.0.0.1:5432"), address("[::]:6432")], ..OwnAddresses::default() };
    let check = |local: &str, peer: &str, expected: bool| {
        assert_eq!(own.is_own(address(local), address(peer)), expected, "{local} {peer}");
    };
    check("10.0.0.1:40000", "10.0.0.1:5432", true);
    check("10.0.0.1:40000", "10.0.0.2:5432", false);
    check("10.0.0.1:40000", "10.0.0.1:5433", false);
    check("127.0.0.1:40000", "127.0.0.1:5432", false);
    check("127.0.0.1:40000", "127.0.0.1:6432", true);
    check("[::1]:40000", "[::1]:6432", true);
    check("10.0.0.1:40000", "10.0.0.2:6432", false);
}
