use super::*;

/// A connection whose server sends `answer` after the first query, and the rest of what the client sends.
async fn connected(answer: Vec<u8>) -> (UpstreamConnection, JoinHandle<(Vec<u8>, Vec<u8>)>) {
    let (port, server) = serve(|mut stream| async move {
        read_startup(&mut stream).await;
        stream.write_all(&welcome()).await.unwrap();
        let (kind, query) = read_frame(&mut stream).await;
        assert_eq!(kind, b'Q');
        stream.write_all(&answer).await.unwrap();
        (query, read_rest(&mut stream).await)
    })
    .await;
    (try_connect(port, "sslmode=disable").await.unwrap(), server)
}

fn columns(names: &[&str]) -> Vec<u8> {
    let mut body = u16::try_from(names.len()).unwrap().to_be_bytes().to_vec();
    for name in names {
        body.extend_from_slice(name.as_bytes());
        body.extend_from_slice(&[0; 19]);
    }
    frame(b'T', &body)
}

fn row(values: &[Option<&str>]) -> Vec<u8> {
    let mut body = u16::try_from(values.len()).unwrap().to_be_bytes().to_vec();
    for value in values {
        let len = value.map_or(u32::MAX, |value| u32::try_from(value.len()).unwrap());
        body.extend_from_slice(&len.to_be_bytes());
        body.extend_from_slice(value.unwrap_or_default().as_bytes());
    }
    frame(b'D', &body)
}

fn ready() -> Vec<u8> {
    frame(b'Z', b"I")
}

#[tokio::test]
async fn rows_tags_and_notices_are_collected() {
    let answer = [
        frame(b'N', b"SNOTICE\0VNOTICE\0C00000\0Mhello\0\0"),
        columns(&["a", "b"]),
        row(&[Some("1"), None]),
        frame(b'S', b"in_hot_standby\0on\0"),
        frame(b'S', b"TimeZone\0UTC\0"),
        row(&[Some(""), Some("x")]),
        frame(b'C', b"SELECT\0"),
        frame(b'C', b"START_STREAMING\0"),
        ready(),
    ];
    let (mut connection, server) = connected(answer.concat()).await;
    let result = connection.query("IDENTIFY_SYSTEM").await.unwrap();
    assert_eq!(result.columns, ["a", "b"]);
    let text = |text: &'static str| Some(Bytes::from_static(text.as_bytes()));
    assert_eq!(result.rows, [vec![text("1"), None], vec![text(""), text("x")]]);
    assert_eq!(result.tag, "START_STREAMING");
    assert_eq!(connection.parameter("in_hot_standby"), Some("on"));
    assert_eq!(connection.parameters().len(), 3);
    assert_eq!(connection.take_notices()[0].message, "hello");
    connection.close().await;
    assert_eq!(server.await.unwrap(), (b"IDENTIFY_SYSTEM\0".to_vec(), frame(b'X', b"")));
}

#[tokio::test]
async fn an_error_leaves_the_connection_usable() {
    let answer = [error("ERROR", "42704", "no slot"), ready()].concat();
    let (port, server) = serve(|mut stream| async move {
        read_startup(&mut stream).await;
        stream.write_all(&welcome()).await.unwrap();
        read_frame(&mut stream).await;
        stream.write_all(&answer).await.unwrap();
        read_frame(&mut stream).await;
        stream.write_all(&[frame(b'I', b""), ready()].concat()).await.unwrap();
    })
    .await;
    let mut connection = try_connect(port, "sslmode=disable").await.unwrap();
    let error = connection.query("a").await.unwrap_err();
    assert!(error.is_recoverable());
    assert_eq!(error.to_string(), "ERROR: no slot (SQLSTATE 42704)");
    assert_eq!(connection.query("").await.unwrap(), QueryResult::default());
    server.await.unwrap();
}

#[tokio::test]
async fn the_reason_for_hanging_up_is_told() {
    let (port, _server) = serve(|mut stream| async move {
        read_startup(&mut stream).await;
        stream.write_all(&welcome()).await.unwrap();
        read_frame(&mut stream).await;
        stream.write_all(&error("FATAL", "57P01", "terminating")).await.unwrap();
    })
    .await;
    let mut connection = try_connect(port, "sslmode=disable").await.unwrap();
    let error = connection.query("a").await.unwrap_err();
    assert!(matches!(&error, QueryError::Server(error) if error.is_transient()), "{error}");
    assert!(!error.is_recoverable());
    assert!(matches!(connection.query("b").await, Err(QueryError::Busy)));
}

#[tokio::test]
async fn broken_answers_are_protocol_errors() {
    for answer in [
        frame(b'T', b"\0\x01a"),
        frame(b'T', b"\0\x01a\0short"),
        [columns(&["a"]), row(&[None, None])].concat(),
        [columns(&["a"]), frame(b'D', b"\0\x01\0\0\0\x05abcd")].concat(),
        [columns(&["a"]), frame(b'D', b"\0\x01\0\0\0\x01ab")].concat(),
        frame(b'C', b"no zero"),
        frame(b'W', b"\0\0\0"),
        frame(b'E', b"M"),
        b"D\0\0\0\x03".to_vec(),
        b"D\xff\xff\xff\xff".to_vec(),
    ] {
        let shown = answer.escape_ascii().to_string();
        let (mut connection, _server) = connected(answer).await;
        let error = connection.query("a").await.unwrap_err();
        assert!(matches!(error, QueryError::Protocol { .. }), "{shown}: {error}");
    }
}

#[tokio::test]
async fn messages_are_read_one_by_one_and_the_rest_is_handed_over() {
    let answer = [frame(b'W', b"\0\0\0"), frame(b'd', b"wal"), b"d\0\0".to_vec()].concat();
    let (mut connection, _server) = connected(answer).await;
    connection.send_query("START_REPLICATION 0/0").await.unwrap();
    assert!(matches!(connection.send_query("x").await, Err(QueryError::Busy)));
    assert_eq!(connection.next_message().await.unwrap(), (b'W', Bytes::from_static(b"\0\0\0")));
    let mut parts = connection.into_parts();
    let expected = [frame(b'd', b"wal"), b"d\0\0".to_vec()].concat();
    while parts.buffered.len() < expected.len() {
        parts.stream.read_buf(&mut parts.buffered).await.unwrap();
    }
    assert_eq!(parts.buffered, BytesMut::from(&expected[..]));
    assert_eq!(parts.parameters.len(), 2);
}

#[tokio::test]
async fn dropping_a_read_loses_nothing() {
    let (port, server) = serve(|mut stream| async move {
        read_startup(&mut stream).await;
        stream.write_all(&[&welcome()[..], b"d\0\0\0\x07w"].concat()).await.unwrap();
        // The second half follows when the first read was dropped.
        assert_eq!(read_frame(&mut stream).await.0, b'Q');
        stream.write_all(b"al").await.unwrap();
    })
    .await;
    let mut connection = try_connect(port, "sslmode=disable").await.unwrap();
    tokio::select! {
        biased;
        message = connection.next_message() => panic!("half a message was delivered: {message:?}"),
        () = tokio::task::yield_now() => {}
    }
    connection.send_query("go on").await.unwrap();
    assert_eq!(connection.next_message().await.unwrap(), (b'd', Bytes::from_static(b"wal")));
    server.await.unwrap();
}

#[tokio::test]
async fn what_a_server_makes_us_keep_has_a_limit() {
    let big = "x".repeat(100_000);
    let notice = frame(b'N', format!("SNOTICE\0VNOTICE\0C00000\0M{big}\0\0").as_bytes());
    let answer = [notice.repeat(100), columns(&["a"]), row(&[Some("1")]), frame(b'C', b"SHOW\0"), ready()];
    let (mut connection, _server) = connected(answer.concat()).await;
    assert_eq!(connection.query("SHOW a").await.unwrap().rows.len(), 1);
    let notices = connection.take_notices();
    let kept: usize = notices.iter().map(|notice| notice.message.len()).sum();
    assert!(!notices.is_empty() && kept < 200_000, "{} notices of {kept} bytes", notices.len());

    // Empty rows cost memory too.
    let empty = row(&[Some("")]);
    for rows in [row(&[Some(&big)]).repeat(50), empty.repeat(100_000)] {
        let (mut connection, _server) = connected([columns(&["a"]), rows].concat()).await;
        let error = connection.query("SHOW a").await.unwrap_err();
        assert!(error.to_string().contains("a result larger than any"), "{error}");
    }

    let parameters: Vec<u8> = (0..5000)
        .flat_map(|number| frame(b'S', format!("p{number}\0{}\0", "x".repeat(100)).as_bytes()))
        .collect();
    let (mut connection, _server) = connected(parameters).await;
    let error = connection.query("SHOW a").await.unwrap_err();
    assert!(error.to_string().contains("parameters with"), "{error}");
}

#[tokio::test]
async fn commands_sent_together_have_an_answer_each() {
    let one = |value| [columns(&["a"]), row(&[Some(value)]), frame(b'C', b"SHOW\0"), ready()].concat();
    let none = [error("ERROR", "42704", "unrecognized"), ready()].concat();
    let (mut connection, server) = connected([one("1"), none, one("3")].concat()).await;
    let commands = ["SHOW a", "SHOW b", "SHOW c"].map(str::to_owned);
    let answers = connection.query_each(&commands, 10_000).await.unwrap();
    assert_eq!(answers.len(), 3);
    assert!(answers[0].is_ok() && answers[1].as_ref().unwrap_err().sqlstate == "42704" && answers[2].is_ok());
    connection.close().await;
    assert!(server.await.unwrap().1.windows(6).any(|part| part == b"SHOW c"));
}
