use super::*;

#[tokio::test]
async fn the_start_up_packet_asks_for_physical_replication() {
    let (port, server) = serve(|mut stream| async move {
        let parameters = read_startup(&mut stream).await;
        stream.write_all(&welcome()).await.unwrap();
        parameters
    })
    .await;
    let more = "sslmode=disable options='-c a=b' client_encoding=UTF8 dbname=ignored replication=database";
    let connection = try_connect(port, more).await.unwrap();
    let expected = "user rep database replication replication true options|-c|a=b application_name walrelay \
                    client_encoding UTF8";
    let expected: Vec<_> = expected.split_whitespace().map(|word| word.replace('|', " ")).collect();
    let found = server.await.unwrap().join("\u{1f}").replace("options\u{1f}", "options ");
    assert_eq!(found.split('\u{1f}').collect::<Vec<_>>(), expected);
    assert_eq!(connection.parameter("server_version"), Some("18.1"));
    let names: Vec<_> = connection.parameters().iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["server_version", "in_hot_standby"]);
    assert_eq!(connection.backend_pid(), Some(42));
    assert_eq!(connection.cancel_key(), [1, 2, 3, 4]);
    assert!(!connection.is_encrypted());
}

#[tokio::test]
async fn passwords_go_out_as_the_server_asks() {
    for (ask, expected) in [
        (request(3, b""), "secret\0".to_owned()),
        (
            request(5, &[1, 2, 3, 4]),
            crate::auth::md5::response_from_password("rep", b"secret", [1, 2, 3, 4]) + "\0",
        ),
    ] {
        let (port, server) = serve(|mut stream| async move {
            read_startup(&mut stream).await;
            stream.write_all(&ask).await.unwrap();
            let answer = read_frame(&mut stream).await;
            stream.write_all(&welcome()).await.unwrap();
            answer
        })
        .await;
        try_connect(port, "sslmode=disable").await.unwrap();
        assert_eq!(server.await.unwrap(), (b'p', expected.into_bytes()));
    }
}

#[tokio::test]
async fn scram_proves_both_sides() {
    let (port, server) = serve(|mut stream| async move {
        read_startup(&mut stream).await;
        let (mechanism, verdict) = serve_scram(&mut stream, b"secret", None).await;
        stream.write_all(&request(12, &verdict.unwrap())).await.unwrap();
        stream.write_all(&welcome()).await.unwrap();
        mechanism
    })
    .await;
    try_connect(port, "sslmode=disable require_auth=scram-sha-256").await.unwrap();
    assert_eq!(server.await.unwrap(), SCRAM_SHA_256);
}

#[tokio::test]
async fn a_wrong_password_is_permanent() {
    let (port, server) = serve(|mut stream| async move {
        read_startup(&mut stream).await;
        let (_, verdict) = serve_scram(&mut stream, b"other", None).await;
        let refusal = error("FATAL", "28P01", "password authentication failed for user \"rep\"");
        stream.write_all(&refusal).await.unwrap();
        verdict
    })
    .await;
    let error = try_connect(port, "sslmode=disable").await.unwrap_err();
    assert!(matches!(&error, ConnectError::Server(error) if error.sqlstate == "28P01"));
    assert!(!error.is_transient());
    let text = "FATAL: password authentication failed for user \"rep\" (SQLSTATE 28P01)";
    assert_eq!(error.to_string(), text);
    assert_eq!(server.await.unwrap(), Err("password authentication failed".to_owned()));
}

#[tokio::test]
async fn a_server_that_does_not_know_the_password_is_refused() {
    let forged = b"v=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    for (last, expected) in [
        ([request(12, forged), welcome()].concat(), "incorrect server signature"),
        (welcome(), "server did not complete SCRAM authentication"),
    ] {
        let (port, _server) = serve(move |mut stream| async move {
            read_startup(&mut stream).await;
            serve_scram(&mut stream, b"unknown", None).await.1.unwrap_err();
            stream.write_all(&last).await.unwrap();
            read_rest(&mut stream).await
        })
        .await;
        let error = try_connect(port, "sslmode=disable").await.unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert!(!error.is_transient());
    }
}

/// What the client does about the first answer to its StartupMessage, and what it sends on.
async fn answer(first: Vec<u8>, more: &str) -> (String, Vec<u8>) {
    let (port, server) = serve(|mut stream| async move {
        read_startup(&mut stream).await;
        stream.write_all(&first).await.unwrap();
        read_rest(&mut stream).await
    })
    .await;
    let error = try_connect(port, &format!("sslmode=disable {more}")).await.unwrap_err();
    (error.to_string(), server.await.unwrap())
}

#[tokio::test]
async fn requirements_are_checked_before_anything_secret_is_sent() {
    let scram = request(10, b"SCRAM-SHA-256\0\0");
    let plus = request(10, b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0");
    let md5 = "authentication method requirement \"md5\" failed: ";
    let binding = "channel binding required, but ";
    for (first, more, expected) in [
        (request(3, b""), "require_auth=md5", format!("{md5}server requested a cleartext password")),
        (scram.clone(), "require_auth=md5", format!("{md5}server requested SCRAM-SHA-256 authentication")),
        (welcome(), "require_auth=md5", format!("{md5}server did not complete authentication")),
        (
            request(5, b"salt"),
            "require_auth=!md5",
            "authentication method requirement \"!md5\" failed: server requested a hashed password"
                .to_owned(),
        ),
        (
            request(3, b""),
            "channel_binding=require",
            format!("{binding}not supported by server's authentication request"),
        ),
        (scram, "channel_binding=require", format!("{binding}SSL not in use")),
        (
            welcome(),
            "channel_binding=require",
            format!("{binding}server authenticated client without channel binding"),
        ),
        (plus, "", "server offered SCRAM-SHA-256-PLUS authentication over a non-SSL connection".to_owned()),
        (request(7, b""), "", "server requested GSSAPI authentication, which is not supported".to_owned()),
        (
            request(10, b"OAUTHBEARER\0\0"),
            "",
            "none of the server's SASL authentication mechanisms are supported".to_owned(),
        ),
        (request(3, b""), "password=''", "no password supplied".to_owned()),
    ] {
        assert_eq!(answer(first, more).await, (expected, Vec::new()), "{more}");
    }
}

#[tokio::test]
async fn an_unusable_password_file_is_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let more = format!("password='' passfile='{}'", file.path().display());
    let (error, sent) = answer(request(3, b""), &more).await;
    assert!(error.starts_with("no password supplied: password file \""), "{error}");
    assert_eq!(sent, b"");
}

#[tokio::test]
async fn garbage_is_no_postgresql() {
    let lengths = [0, 1, 2, 3, 30_005, 0x4854_5450, u32::MAX];
    let frames = lengths.map(|len: u32| [&b"R"[..], &len.to_be_bytes(), b"xxxx"].concat());
    let bodies = [
        request(5, b"sal"),
        request(5, b"saltx"),
        request(0, b"x"),
        request(10, b"SCRAM"),
        request(11, b"out of order"),
        request(12, b""),
        frame(b'R', b"\0\0"),
        frame(b'E', b"Sx"),
        frame(b'E', b""),
        frame(b'v', &[0, 3, 0, 2, 0, 0, 0, 0]),
        frame(b'v', &[0, 3, 0, 0, 255, 255, 255, 255]),
        frame(b'D', b""),
        frame(b'Z', b"I"),
        [request(0, b""), frame(b'S', b"a\0b")].concat(),
        [request(0, b""), frame(b'K', b"\0")].concat(),
        [request(0, b""), request(0, b"")].concat(),
    ];
    for first in frames.into_iter().chain(bodies) {
        let shown = first.escape_ascii().to_string();
        let (error, sent) = answer(first, "").await;
        assert!(error.starts_with("unexpected answer during login: "), "{shown}: {error}");
        assert_eq!(sent, b"", "{shown}");
    }
}

#[tokio::test]
async fn a_second_question_for_the_password_is_not_answered() {
    let (port, server) = serve(|mut stream| async move {
        read_startup(&mut stream).await;
        stream.write_all(&request(5, b"salt")).await.unwrap();
        read_frame(&mut stream).await;
        stream.write_all(&request(3, b"")).await.unwrap();
        read_rest(&mut stream).await
    })
    .await;
    let error = try_connect(port, "sslmode=disable").await.unwrap_err();
    assert!(error.to_string().contains("out of order"), "{error}");
    assert_eq!(server.await.unwrap(), b"");
}

#[tokio::test]
async fn the_end_of_the_stream_is_transient_wherever_it_comes() {
    let whole = [frame(b'N', b"SNOTICE\0VNOTICE\0C00000\0Mhi\0\0"), welcome()].concat();
    for len in 0..whole.len() {
        let part = whole[..len].to_vec();
        let (port, _server) = serve(move |mut stream| async move {
            read_startup(&mut stream).await;
            stream.write_all(&part).await.unwrap();
        })
        .await;
        let error = try_connect(port, "sslmode=disable").await.unwrap_err();
        assert!(matches!(error, ConnectError::Closed), "{len}: {error}");
        assert!(error.is_transient());
    }
}

#[tokio::test]
async fn frames_may_come_in_any_pieces() {
    let (port, server) = serve(|mut stream| async move {
        stream.set_nodelay(true).unwrap();
        read_startup(&mut stream).await;
        for byte in welcome() {
            stream.write_all(&[byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
    })
    .await;
    try_connect(port, "sslmode=disable").await.unwrap();
    server.await.unwrap();
}

#[tokio::test]
async fn refusals_are_sorted_by_whether_they_pass() {
    for (sqlstate, transient) in [
        ("57P03", true),
        ("53300", true),
        ("57P01", true),
        ("55006", true),
        ("28000", false),
        ("28P01", false),
        ("42501", false),
        ("42704", false),
        ("22023", false),
        ("0A000", false),
    ] {
        for before in [Vec::new(), request(0, b"")] {
            let refusal = [before, error("FATAL", sqlstate, "no")].concat();
            let (port, _server) = serve(|mut stream| async move {
                read_startup(&mut stream).await;
                stream.write_all(&refusal).await.unwrap();
            })
            .await;
            let error = try_connect(port, "sslmode=disable").await.unwrap_err();
            assert_eq!(error.is_transient(), transient, "{sqlstate}");
        }
    }
}

#[tokio::test]
async fn texts_in_other_encodings_are_shown_as_well_as_possible() {
    let mut body = b"SFATAL\0VFATAL\0C28000\0Mcaf\xe9\0Dd\0Hh\0Fauth.c\0\0".to_vec();
    body = frame(b'E', &body);
    let (error, _) = answer(body, "").await;
    assert_eq!(error, "FATAL: caf\u{fffd} (SQLSTATE 28000); DETAIL: d; HINT: h");
}

#[tokio::test]
async fn nobody_there_is_transient() {
    let (listener, port) = listen().await;
    drop(listener);
    let error = try_connect(port, "sslmode=disable").await.unwrap_err();
    assert!(matches!(error, ConnectError::Socket { .. }) && error.is_transient(), "{error}");
    let text = format!("connection to server at \"127.0.0.1\", port {port} failed: Connection refused");
    assert!(error.to_string().starts_with(&text), "{error}");
    let info = ConnInfo::parse("host=no-such-name.invalid user=u", &Environment::default()).unwrap();
    let error = connect(&info, &info.hosts[0], deadline()).await.unwrap_err();
    assert!(matches!(error, ConnectError::Resolve { .. }) && error.is_transient(), "{error}");
}

#[tokio::test]
async fn silence_ends_with_the_timeout() {
    let (listener, port) = listen().await;
    for (more, limit) in
        [("connect_timeout=1", deadline()), ("", Instant::now() + Duration::from_millis(200))]
    {
        let info = info(port, &format!("sslmode=disable {more}"));
        let error = connect(&info, &info.hosts[0], limit).await.unwrap_err();
        assert!(matches!(error, ConnectError::Timeout { .. }) && error.is_transient(), "{error}");
    }
    drop(listener);
}

#[tokio::test]
async fn hosts_are_tried_until_one_is_as_wanted() {
    let (standby, first) = serve(|mut stream| async move {
        read_startup(&mut stream).await;
        let welcome = String::from_utf8(welcome()).unwrap().replace("standby\0off", "standby\0on");
        // The value is one byte shorter, and so is its frame.
        let welcome = welcome.replace("\u{17}in_hot", "\u{16}in_hot");
        stream.write_all(welcome.as_bytes()).await.unwrap();
    })
    .await;
    let (primary, second) = serve(|mut stream| async move {
        read_startup(&mut stream).await;
        stream.write_all(&welcome()).await.unwrap();
    })
    .await;
    let text = format!(
        "host=127.0.0.1,127.0.0.1,127.0.0.1 port=1,{standby},{primary} user=u sslmode=disable \
         target_session_attrs=primary"
    );
    let info = ConnInfo::parse(&text, &Environment::default()).unwrap();
    let connection = connect_any(&info, deadline()).await.unwrap();
    assert_eq!(connection.parameter("in_hot_standby"), Some("off"));
    first.await.unwrap();
    second.await.unwrap();
}

#[tokio::test]
async fn unix_sockets_are_found_by_port_and_owner() {
    let directory = crate::permissions::private_tempdir();
    let listener = tokio::net::UnixListener::bind(directory.path().join(".s.PGSQL.77")).unwrap();
    let server = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        read_startup(&mut stream).await;
        stream.write_all(&welcome()).await.unwrap();
        let (mut stream, _) = listener.accept().await.unwrap();
        read_rest(&mut stream).await
    });
    let path = directory.path().display();
    let parse = |more: &str| {
        let text = format!("host={path} port=77 user=u sslmode=require {more}");
        ConnInfo::parse(&text, &Environment::default()).unwrap()
    };
    let plain = parse("");
    let connection = connect(&plain, &plain.hosts[0], deadline()).await.unwrap();
    assert!(matches!(connection.into_parts().stream, Stream::Unix(_)));
    let owned = parse("requirepeer=somebody-else");
    let error = connect(&owned, &owned.hosts[0], deadline()).await.unwrap_err();
    assert!(error.to_string().starts_with("requirepeer specifies \"somebody-else\", but actual"), "{error}");
    assert_eq!(server.await.unwrap(), b"");
    let none = parse("port=78");
    let error = connect(&none, &none.hosts[0], deadline()).await.unwrap_err();
    assert!(error.to_string().contains(".s.PGSQL.78") && error.is_transient(), "{error}");
}
