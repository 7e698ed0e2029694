use proptest::prelude::*;

use super::*;

fn upstream(version: &str) -> UpstreamParameters {
    UpstreamParameters { status: vec![("server_version".into(), version.into())], ..Default::default() }
}

fn set(name: &str, value: &[u8]) -> Result<Settings, PgError> {
    let mut settings = Settings::default();
    settings.set(name, value, &upstream("17.10"))?;
    Ok(settings)
}

#[track_caller]
fn shown(name: &str, value: &str) -> String {
    set(name, value.as_bytes()).unwrap().get(canonical_name(name).unwrap()).unwrap().to_owned()
}

#[track_caller]
fn refused(name: &str, value: &str, sqlstate: &str, message: &str) {
    let error = set(name, value.as_bytes()).unwrap_err();
    assert_eq!((&*error.sqlstate, error.message.as_str(), error.is_fatal()), (sqlstate, message, true));
}

#[test]
fn names_are_postgresqls() {
    assert_eq!(canonical_name("timezone"), Some("TimeZone"));
    assert_eq!(canonical_name("WAL_SEGMENT_SIZE"), Some("wal_segment_size"));
    assert_eq!(canonical_name("nosuch"), None);
    refused("nosuch", "1", "42704", "unrecognized configuration parameter \"nosuch\"");
    refused(
        "wal_level",
        "minimal",
        "55P02",
        "parameter \"wal_level\" cannot be changed without restarting the server",
    );
    refused("wal_keep_size", "1", "55P02", "parameter \"wal_keep_size\" cannot be changed now");
    refused("wal_segment_size", "1", "55P02", "parameter \"wal_segment_size\" cannot be changed");
    assert!(set("statement_timeout", b"2000").is_ok());
    assert!(set("search_path", b"").is_ok());
    assert!(set("my.own", b"1").is_ok());
    assert!(set("my.", b"1").is_err());
}

#[test]
fn application_names_are_printable_and_short() {
    assert_eq!(shown("application_name", "standby 1"), "standby 1");
    assert_eq!(shown("application_name", "é"), "\\xc3\\xa9");
    assert_eq!(shown("application_name", &"x".repeat(70)), "x".repeat(63));
    assert_eq!(clean_name("é".as_bytes(), &upstream("15.18")), "??");
}

#[test]
fn encodings_are_recognised_as_postgresql_does() {
    for (typed, name) in [("UTF8", "UTF8"), ("utf-8", "UTF8"), ("unicode", "UTF8"), ("latin1", "LATIN1")] {
        assert_eq!(shown("client_encoding", typed), name);
    }
    assert_eq!(shown("client_encoding", "ISO-8859-1"), "LATIN1");
    assert_eq!(shown("client_encoding", "sql_ascii"), "SQL_ASCII");
    refused(
        "client_encoding",
        "klingon",
        "22023",
        "invalid value for parameter \"client_encoding\": \"klingon\"",
    );
}

#[test]
fn date_styles_are_completed() {
    for (typed, full) in
        [("iso", "ISO, MDY"), ("ISO, DMY", "ISO, DMY"), ("german", "German, DMY"), ("ymd", "ISO, YMD")]
    {
        assert_eq!(shown("datestyle", typed), full);
    }
    refused("datestyle", "martian", "22023", "invalid value for parameter \"DateStyle\": \"martian\"");
}

#[test]
fn timeouts_have_units() {
    let check = |typed: &str, millis: u64, text: &str| {
        let settings = set("wal_sender_timeout", typed.as_bytes()).unwrap();
        let timeout = settings.wal_sender_timeout().unwrap();
        assert_eq!(timeout, (millis > 0).then(|| Duration::from_millis(millis)), "{typed}");
        assert_eq!(settings.get("wal_sender_timeout"), Some(text), "{typed}");
    };
    check("5s", 5000, "5s");
    check("0s", 0, "0");
    check("0", 0, "0");
    check("60000", 60_000, "1min");
    check("1.5 s", 1500, "1500ms");
    check("1500us", 2, "2ms");
    check("1d", 86_400_000, "1d");
    for bad in ["", "s", "-1", "5 parsecs", "5S", "99999999d", "1.2.3"] {
        refused(
            "wal_sender_timeout",
            bad,
            "22023",
            &format!("invalid value for parameter \"wal_sender_timeout\": \"{bad}\""),
        );
    }
}

#[test]
fn settings_of_newer_versions_are_taken_from_their_servers_clients() {
    let mut settings = Settings::default();
    settings.set("wal_sender_shutdown_timeout", b"5s", &upstream("19rc1")).unwrap();
    assert_eq!(settings.wal_sender_shutdown_timeout(), Some(Duration::from_secs(5)));
    assert_eq!(settings.get("wal_sender_shutdown_timeout"), Some("5s"));
    settings.set("wal_sender_shutdown_timeout", b"0", &upstream("19rc1")).unwrap();
    assert_eq!(settings.wal_sender_shutdown_timeout(), Some(Duration::ZERO));
    settings.set("wal_sender_shutdown_timeout", b"-1", &upstream("19rc1")).unwrap();
    assert_eq!(settings.wal_sender_shutdown_timeout(), None);
    settings.set("invented_in_20", b"5", &upstream("20.1")).unwrap();
    assert_eq!(settings.get("invented_in_20"), Some("5"));
    settings.set("invented_in_20", b"5", &upstream("19.1")).unwrap_err();
    settings.set("no name", b"5", &upstream("20.1")).unwrap_err();
}

#[test]
fn megabytes_are_shown_in_the_largest_unit() {
    for (bytes, text) in [
        (None, "-1"),
        (Some(0), "0"),
        (Some(512 << 20), "512MB"),
        (Some(1 << 30), "1GB"),
        (Some(1 << 40), "1TB"),
    ] {
        assert_eq!(show_megabytes(bytes), text);
    }
}

#[test]
fn options_are_switches() {
    let check = |typed: &str, expected: &[(&str, &str)]| {
        let parsed = options(typed.as_bytes()).unwrap();
        let parsed: Vec<_> =
            parsed.iter().map(|(n, v)| (n.as_str(), std::str::from_utf8(v).unwrap())).collect();
        assert_eq!(parsed, expected, "{typed}");
    };
    check("", &[]);
    check("-c wal_sender_timeout=5s", &[("wal_sender_timeout", "5s")]);
    check("-cdatestyle=iso", &[("datestyle", "iso")]);
    check("  -c a=b\\ c\\\\d  -csearch_path= ", &[("a", "b c\\d"), ("search_path", "")]);
    check("--statement-timeout=1=2", &[("statement_timeout", "1=2")]);
    for (bad, message) in [
        ("-c", "invalid command-line argument for server process: -c"),
        ("-x", "invalid command-line argument for server process: -x"),
        ("a=b", "invalid command-line argument for server process: a=b"),
        ("-c a", "-c a requires a value"),
        ("--a", "--a requires a value"),
    ] {
        let error = options(bad.as_bytes()).unwrap_err();
        assert_eq!((&*error.sqlstate, error.message.as_str()), ("42601", message));
    }
}

#[test]
fn booleans_are_prefixes() {
    for yes in ["true", "TRUE", "tru", "t", "yes", "y", "on", "ON", "1"] {
        assert_eq!(parse_bool(yes.as_bytes()), Some(true), "{yes}");
    }
    for no in ["false", "f", "no", "n", "off", "of", "0"] {
        assert_eq!(parse_bool(no.as_bytes()), Some(false), "{no}");
    }
    for bad in ["", "o", "truee", "2", "database", " t"] {
        assert_eq!(parse_bool(bad.as_bytes()), None, "{bad}");
    }
}

#[test]
fn versions_are_read_from_their_beginning() {
    for (text, number) in
        [("17.10", 170_010), ("14.2 (walrelay 0.1)", 140_002), ("18beta1", 180_000), ("", 0)]
    {
        assert_eq!(server_version_num(&upstream(text)), number, "{text}");
    }
}

proptest! {
    #[test]
    fn no_bytes_panic(name in "[a-zA-Z_.]{0,20}", value in proptest::collection::vec(any::<u8>(), 0..80)) {
        let _ = set(&name, &value);
        let _ = options(&value);
        for name in ["application_name", "client_encoding", "datestyle", "wal_sender_timeout"] {
            let _ = set(name, &value);
        }
    }

    #[test]
    fn any_value_can_be_escaped(value in "[^\0]{0,30}") {
        let escaped: String = value.chars().flat_map(|c| ['\\', c]).collect();
        prop_assert_eq!(options(format!("-c a={escaped}").as_bytes()).unwrap(), [("a".to_owned(), value.into_bytes())]);
    }
}
