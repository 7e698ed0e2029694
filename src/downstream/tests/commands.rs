use std::fs;

use super::kit::*;

#[tokio::test(flavor = "multi_thread")]
async fn identify_system_byte_for_byte() {
    let relay = Relay::start().await;
    let mut client = relay.session().await;
    client.message(b'Q', b" \n\tIDENTIFY_SYSTEM ; \0").await;
    let tip = relay.store.tip().unwrap();
    let position = tip.flush_lsn.to_string();
    let column = |name: &str, oid: u8, len: &[u8; 2]| {
        [name.as_bytes(), &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, oid], len, &[255, 255, 255, 255, 0, 0]].concat()
    };
    let text = [255, 255];
    let description = [
        &[0, 4][..],
        &column("systemid", 25, &text),
        &column("timeline", 20, &[0, 8]),
        &column("xlogpos", 25, &text),
        &column("dbname", 25, &text),
    ]
    .concat();
    let value = |text: &str| [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat();
    let row =
        [&[0, 4][..], &value(&SYSTEM_ID.to_string()), &value("1"), &value(&position), &[255; 4]].concat();
    let message =
        |kind: u8, body: &[u8]| [&[kind][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat();
    let expected = [
        message(b'T', &description),
        message(b'D', &row),
        message(b'C', b"IDENTIFY_SYSTEM\0"),
        message(b'Z', b"I"),
    ]
    .concat();
    assert_eq!(client.read_once().await, expected, "and all of it in one write");
}

#[tokio::test(flavor = "multi_thread")]
async fn types_follow_the_upstreams_version() {
    for (version, timeline) in [("15.18", (23, 4)), ("16.4", (20, 8)), ("18.6", (20, 8))] {
        let relay = Relay::with(Options { version, ..Options::default() }).await;
        let mut client = relay.session().await;
        let columns = client.query("IDENTIFY_SYSTEM").await[0].columns();
        assert_eq!(columns[1], ("timeline".to_owned(), timeline.0, timeline.1), "{version}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_command_is_sql() {
    let relay = Relay::start().await;
    let mut client = relay.session().await;
    let sql = pair("0A000", "cannot execute SQL commands in WAL sender for physical replication");
    for text in
        ["identify_system", "", ";", "-- x\nIDENTIFY_SYSTEM", "SELECT 1", "show wal_segment_size", "1"]
    {
        assert_eq!(client.error(text).await, sql, "{text}");
    }
    for text in ["IDENTIFY_SYSTEM;;", "IDENTIFY_SYSTEM x", "SHOW a; SHOW b", "START_REPLICATION 0 / 100000"] {
        assert_eq!(client.error(text).await, pair("42601", "syntax error"), "{text}");
    }
    assert_eq!(client.row("SHOW server_version").await, [Some("17.10".into())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn other_messages_of_an_idle_session() {
    let relay = Relay::start().await;
    let mut client = relay.session().await;
    let extended = pair("08P01", "extended query protocol not supported in a replication connection");
    for kind in *b"PBDEC" {
        client.message(kind, b"\0\0\0\0\0\0").await;
        client.message(b'Q', b"IDENTIFY_SYSTEM\0").await;
        client.message(b'H', b"").await;
        client.message(b'S', b"").await;
        let answer = client.until_ready().await;
        assert_eq!(kinds(&answer), "EZ", "skipped up to Sync");
        let (_, sqlstate, text) = answer[0].error();
        assert_eq!((sqlstate, text), extended);
    }
    client.message(b'F', b"\0\0\0\0").await;
    let answer = client.until_ready().await;
    let text = "fastpath function calls not supported in a replication connection";
    assert_eq!(answer[0].error(), ("ERROR".into(), "08P01".into(), text.into()));
    for (kind, body) in [(b'd', &b"x"[..]), (b'c', b""), (b'f', b"x\0"), (b'H', b"")] {
        client.message(kind, body).await;
    }
    client.message(b'S', b"").await;
    assert_eq!(kinds(&client.until_ready().await), "Z", "nothing else was answered");
    client.message(b'Q', b"IDENTIFY_SYSTEM").await;
    let answer = client.until_ready().await;
    assert_eq!(answer[0].error(), ("ERROR".into(), "08P01".into(), "invalid message format".into()));
    client.message(b'z', b"").await;
    assert_eq!(client.fatal().await, pair("08P01", "invalid frontend message type 122"));
}

#[tokio::test(flavor = "multi_thread")]
async fn show() {
    let relay = Relay::start().await;
    let mut client = relay.session().await;
    let mut check = async |query: &str, name: &str, value: &str| {
        let answer = client.query(query).await;
        assert_eq!(kinds(&answer), "TDCZ", "{query}");
        assert_eq!(answer[0].columns(), [(name.to_owned(), 25, -1)]);
        assert_eq!(answer[1].row(), [Some(value.to_owned())]);
        assert_eq!(answer[2].text(), "SHOW");
    };
    for query in ["SHOW wal_segment_size", "SHOW WAL_SEGMENT_SIZE", "SHOW \"wal_segment_size\";"] {
        check(query, "wal_segment_size", "1MB").await;
    }
    check("SHOW data_directory_mode", "data_directory_mode", "0700").await;
    check("SHOW server_version_num", "server_version_num", "170010").await;
    check("SHOW timezone", "TimeZone", "Europe/Berlin").await;
    check("SHOW wal_level", "wal_level", "logical").await;
    check("SHOW in_hot_standby", "in_hot_standby", "off").await;
    check("SHOW transaction_read_only", "transaction_read_only", "off").await;
    check("SHOW max_wal_senders", "max_wal_senders", "10").await;
    check("SHOW max_replication_slots", "max_replication_slots", "4").await;
    check("SHOW wal_keep_size", "wal_keep_size", "1GB").await;
    check("SHOW max_slot_wal_keep_size", "max_slot_wal_keep_size", "-1").await;
    assert_eq!(
        client.error("SHOW nosuch").await,
        pair("42704", "unrecognized configuration parameter \"nosuch\"")
    );
    assert_eq!(client.error("SHOW shared_buffers").await.0, "0A000");
    let all = client.query("SHOW ALL").await;
    assert_eq!(all[0].columns().len(), 3);
    assert!(all.iter().any(|m| m.kind == b'D' && m.row()[0].as_deref() == Some("wal_segment_size")));
}

#[tokio::test(flavor = "multi_thread")]
async fn timeline_history() {
    let relay = Relay::start().await;
    let mut client = relay.session().await;
    let answer = client.query("TIMELINE_HISTORY 1").await;
    assert_eq!(kinds(&answer), "TEZ", "the description comes before the error");
    let text = "could not open file \"pg_wal/00000001.history\": No such file or directory";
    assert_eq!(answer[1].error(), ("ERROR".into(), "58P01".into(), text.into()));
    for zero in ["TIMELINE_HISTORY 0", "TIMELINE_HISTORY 4294967296"] {
        assert_eq!(client.error(zero).await, pair("42601", "invalid timeline 0"));
    }
    let content = "1\t0/D00170\tno recovery target specified\n";
    fs::write(relay.dir.path().join("data/pg_wal/00000063.history"), content).unwrap();
    let answer = client.query("TIMELINE_HISTORY 99").await;
    assert_eq!(answer[0].columns(), [("filename".to_owned(), 25, -1), ("content".to_owned(), 25, -1)]);
    assert_eq!(answer[1].row(), [Some("00000063.history".to_owned()), Some(content.to_owned())]);
    assert_eq!(answer[2].text(), "TIMELINE_HISTORY");
}

#[tokio::test(flavor = "multi_thread")]
async fn slots_are_made_read_and_dropped() {
    let relay = Relay::start().await;
    let mut client = relay.session().await;
    let answer = client.query("CREATE_REPLICATION_SLOT \"s1\" PHYSICAL").await;
    let names: Vec<_> = answer[0].columns().into_iter().map(|(name, oid, _)| (name, oid)).collect();
    let expected = ["slot_name", "consistent_point", "snapshot_name", "output_plugin"];
    assert_eq!(names, expected.map(|name| (name.to_owned(), 25)));
    assert_eq!(answer[1].row(), [Some("s1".to_owned()), Some("0/0".to_owned()), None, None]);
    assert_eq!(answer[2].text(), "CREATE_REPLICATION_SLOT");
    let columns = client.query("READ_REPLICATION_SLOT s1").await[0].columns();
    let expected = [("slot_type", 25, -1), ("restart_lsn", 25, -1), ("restart_tli", 20, 8)];
    assert_eq!(columns, expected.map(|(name, oid, len)| (name.to_owned(), oid, len)));
    assert_eq!(client.row("READ_REPLICATION_SLOT s1").await, [Some("physical".to_owned()), None, None]);
    assert_eq!(client.row("READ_REPLICATION_SLOT nosuch").await, [None, None, None]);
    assert_eq!(client.row("READ_REPLICATION_SLOT \"No-Such\"").await, [None, None, None]);
    for (n, syntax) in ["RESERVE_WAL", "( RESERVE_WAL)"].into_iter().enumerate() {
        client.row(&format!("CREATE_REPLICATION_SLOT r{n} PHYSICAL {syntax}")).await;
        let oldest = relay.store.oldest().unwrap().to_string();
        let expected = [Some("physical".to_owned()), Some(oldest), Some("1".to_owned())];
        assert_eq!(client.row(&format!("READ_REPLICATION_SLOT r{n}")).await, expected);
    }
    let answer = client.query("DROP_REPLICATION_SLOT s1").await;
    assert_eq!((kinds(&answer), answer[0].text()), ("CZ".to_owned(), "DROP_REPLICATION_SLOT".to_owned()));
    let missing = pair("42704", "replication slot \"s1\" does not exist");
    assert_eq!(client.error("DROP_REPLICATION_SLOT s1").await, missing);
}

#[tokio::test(flavor = "multi_thread")]
async fn slot_errors_are_postgresqls() {
    let relay = Relay::start().await;
    let mut client = relay.session().await;
    client.row("CREATE_REPLICATION_SLOT s PHYSICAL").await;
    let mut check = async |query: &str, sqlstate, text| {
        assert_eq!(client.error(query).await, pair(sqlstate, text), "{query}");
    };
    check("CREATE_REPLICATION_SLOT s PHYSICAL", "42710", "replication slot \"s\" already exists").await;
    let invalid = "replication slot name \"S3\" contains invalid character";
    check("CREATE_REPLICATION_SLOT \"S3\" PHYSICAL", "42602", invalid).await;
    check("CREATE_REPLICATION_SLOT \"\" PHYSICAL", "42602", "replication slot name \"\" is too short").await;
    check("CREATE_REPLICATION_SLOT x PHYSICAL ()", "42601", "syntax error").await;
    check("CREATE_REPLICATION_SLOT x PHYSICAL (foo)", "XX000", "unrecognized option: foo").await;
    let boolean = "reserve_wal requires a Boolean value";
    check("CREATE_REPLICATION_SLOT x PHYSICAL (RESERVE_WAL 2)", "42601", boolean).await;
    check("CREATE_REPLICATION_SLOT x PHYSICAL TWO_PHASE", "42601", "conflicting or redundant options").await;
    assert_eq!(client.error("CREATE_REPLICATION_SLOT x LOGICAL pgoutput").await.0, "55000");
    for n in 1..4 {
        client.row(&format!("CREATE_REPLICATION_SLOT s{n} PHYSICAL")).await;
    }
    let answer = client.query("CREATE_REPLICATION_SLOT s4 PHYSICAL").await;
    let full = ("ERROR".to_owned(), "53400".to_owned(), "all replication slots are in use".to_owned());
    assert_eq!(answer[0].error(), full);
    assert_eq!(answer[0].field('H'), "Free one or increase \"max_replication_slots\".");
    assert_eq!(
        client.query("CREATE_REPLICATION_SLOT \"S3\" PHYSICAL").await[0].field('H'),
        "Replication slot names may only contain lower case letters, numbers, and the underscore character."
    );
    let alter = "cannot use ALTER_REPLICATION_SLOT with a physical replication slot";
    assert_eq!(client.error("ALTER_REPLICATION_SLOT s (FAILOVER true)").await, pair("0A000", alter));
    assert_eq!(client.error("ALTER_REPLICATION_SLOT nosuch (FAILOVER)").await.0, "42704");
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_the_upstream_does_not_have_are_sql() {
    let relay = Relay::with(Options { version: "15.18", ..Options::default() }).await;
    let mut client = relay.session().await;
    let sql = pair("0A000", "cannot execute SQL commands in WAL sender for physical replication");
    assert_eq!(client.error("ALTER_REPLICATION_SLOT s (FAILOVER)").await, sql);
}

#[tokio::test(flavor = "multi_thread")]
async fn backups_need_the_upstream_and_the_session_does_not() {
    let relay = Relay::start().await;
    let mut client = relay.session().await;
    for text in ["BASE_BACKUP ( LABEL 'x',  PROGRESS)", "BASE_BACKUP LABEL 'x' FAST", "UPLOAD_MANIFEST"] {
        assert_eq!(
            client.error(text).await,
            pair("57P03", "the upstream server cannot be reached"),
            "{text}"
        );
    }
    assert_eq!(client.row("SHOW server_version").await, [Some("17.10".into())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_name_is_cut_with_a_notice() {
    let relay = Relay::start().await;
    let mut client = relay.session().await;
    let long = "a".repeat(64);
    let answer = client.query(&format!("CREATE_REPLICATION_SLOT {long} PHYSICAL")).await;
    assert_eq!(kinds(&answer), "NTDCZ");
    let text = format!("identifier \"{long}\" will be truncated to \"{}\"", &long[..63]);
    assert_eq!(answer[0].error(), ("NOTICE".into(), "42622".into(), text));
    assert!(relay.store.slots().get(&long[..63]).is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_temporary_slot_is_its_owners_until_the_first_error() {
    let relay = Relay::start().await;
    let (mut owner, mut other) = (relay.session().await, relay.session().await);
    owner.row("CREATE_REPLICATION_SLOT t TEMPORARY PHYSICAL (RESERVE_WAL)").await;
    let pid = relay.store.slots().get("t").unwrap().active_pid.unwrap();
    let active = pair("55006", &format!("replication slot \"t\" is active for PID {pid}"));
    assert_eq!(other.error("DROP_REPLICATION_SLOT t").await, active);
    assert_eq!(other.error("START_REPLICATION SLOT t 0/300000").await, active);
    assert!(relay.store.slots().get("t").is_some());
    owner.error("SELECT 1").await;
    assert!(relay.store.slots().get("t").is_none(), "any error takes it");
    owner.row("CREATE_REPLICATION_SLOT t TEMPORARY PHYSICAL").await;
    owner.message(b'X', b"").await;
    assert_eq!(owner.until_closed().await, []);
    assert!(relay.store.slots().get("t").is_none(), "gone before the client sees the end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drop_can_wait_for_the_slot() {
    let relay = Relay::start().await;
    let (mut user, mut dropper) = (relay.session().await, relay.session().await);
    user.row("CREATE_REPLICATION_SLOT s PHYSICAL").await;
    user.message(b'Q', b"START_REPLICATION SLOT s 0/300000 TIMELINE 1\0").await;
    assert_eq!(user.next().await.unwrap(), Message { kind: b'W', body: vec![0, 0, 0] });
    assert_eq!(dropper.error("DROP_REPLICATION_SLOT s").await.0, "55006");
    dropper.message(b'Q', b"DROP_REPLICATION_SLOT s WAIT\0").await;
    user.message(b'c', b"").await;
    let answer = dropper.until_ready().await;
    assert_eq!((kinds(&answer), answer[0].text()), ("CZ".to_owned(), "DROP_REPLICATION_SLOT".to_owned()));
    assert!(relay.store.slots().get("s").is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_cancelled_with_the_right_key_only() {
    let relay = Relay::start().await;
    let (mut client, messages) = relay.log_in(&[("user", "rep"), ("replication", "true")]).await;
    let key = messages.iter().find(|message| message.kind == b'K').unwrap().body.clone();
    let cancel = async |key: &[u8]| {
        let mut canceller = relay.connect().await;
        let packet = [&(8 + key.len() as u32).to_be_bytes()[..], &[0x04, 0xD2, 0x16, 0x2E], key].concat();
        canceller.send(&packet).await;
        assert_eq!(canceller.until_closed().await, [], "never answered");
    };
    // Idle: no effect, now or later.
    cancel(&key).await;
    client.message(b'Q', b"START_REPLICATION 0/300000 TIMELINE 1\0").await;
    assert_eq!(client.next().await.unwrap().kind, b'W');
    let wrong = [&key[..4], &[!key[4], key[5], key[6], key[7]]].concat();
    for bad in [&wrong[..], &key[..7], &key[..4], &key[..2], &[]] {
        cancel(bad).await;
    }
    cancel(&key).await;
    let error = loop {
        let message = client.next().await.unwrap();
        if message.kind == b'E' {
            break message.error();
        }
    };
    let text = "canceling statement due to user request";
    assert_eq!(error, ("ERROR".into(), "57014".into(), text.into()));
    assert_eq!(kinds(&client.until_ready().await), "Z");
    assert_eq!(client.row("SHOW server_version").await, [Some("17.10".into())]);
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_may_be_pipelined_behind_a_stream() {
    let relay = Relay::start().await;
    let mut client = relay.session().await;
    let start = b"Q\0\0\0\x2aSTART_REPLICATION 0/300000 TIMELINE 1\0";
    client.send(&[&start[..], b"c\0\0\0\x04Q\0\0\0\x18SHOW server_version\0"].concat()).await;
    let stream = client.until_ready().await;
    let tags: Vec<_> = stream.iter().filter(|m| m.kind == b'C').map(Message::text).collect();
    assert_eq!(tags, ["START_STREAMING", "START_REPLICATION"]);
    assert_eq!(client.until_ready().await[1].row(), [Some("17.10".to_owned())]);
}
