//! SQL through the relay beside PostgreSQL's own answers, message by message: nothing happens that would not happen
//! there, and whatever can be read in two ways passes as it is.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant, SystemTime};

use walrelay_testkit::{
    Cluster, PATIENCE, Process, Receivewal, Relay, Scratch, Server, on_every_version, on_one_version,
    wait_until,
};

use crate::relay_below;

on_every_version!(slots_change_only_where_postgresql_would_change_them, tools_get_what_postgresql_says);

on_one_version!(dropped_roles_are_out);
on_one_version!(texts_are_read_as_the_server_reads_them);
on_one_version!(prepared_statements_see_each_moment);
on_one_version!(physical_slots_upstream_are_out_of_reach);
on_one_version!(random_texts_do_what_they_do_upstream);
on_one_version!(the_relays_own_database_speaks_as_postgresql_does);
on_one_version!(consumers_are_ended_by_who_may);
on_one_version!(a_session_begun_in_an_outage_ends_with_it);

/// A client that sends whatever bytes it is given.
struct Raw(TcpStream);

type Message = (char, Vec<u8>);

impl Raw {
    fn connect(port: u16, settings: &[(&str, &str)]) -> Raw {
        Raw::connect_to("postgres", port, settings)
    }

    fn connect_to(database: &str, port: u16, settings: &[(&str, &str)]) -> Raw {
        let mut socket = TcpStream::connect(("127.0.0.1", port)).expect("it listens");
        socket.set_read_timeout(Some(PATIENCE)).expect("sockets have timeouts");
        let mut body = (3_u32 << 16).to_be_bytes().to_vec();
        let is_user = |(name, _): &&(&str, &str)| *name == "user";
        let user = settings.iter().find(is_user).map_or("postgres", |(_, user)| user);
        let others = settings.iter().filter(|setting| !is_user(setting));
        for (name, value) in [("user", user), ("database", database)].iter().chain(others) {
            body.extend([name.as_bytes(), b"\0", value.as_bytes(), b"\0"].concat());
        }
        body.push(0);
        let length = (body.len() as u32 + 4).to_be_bytes();
        socket.write_all(&[&length[..], &body].concat()).expect("it reads");
        let mut raw = Raw(socket);
        raw.until_ready(1);
        raw
    }

    /// All messages up to so many ReadyForQuery.
    fn until_ready(&mut self, mut times: u32) -> Vec<Message> {
        let mut messages = Vec::new();
        while times > 0 {
            let mut header = [0; 5];
            self.0.read_exact(&mut header).unwrap_or_else(|error| panic!("{error} after {messages:?}"));
            let length = u32::from_be_bytes(header[1..].try_into().expect("four bytes"));
            let mut body = vec![0; length as usize - 4];
            self.0.read_exact(&mut body).expect("the rest comes");
            times -= u32::from(header[0] == b'Z');
            messages.push((header[0].into(), body));
        }
        messages
    }

    /// What comes of these bytes, which end with so many Sync or Query.
    fn ask(&mut self, bytes: &[u8], times: u32) -> Vec<Message> {
        self.0.write_all(bytes).expect("it reads");
        self.until_ready(times)
    }
}

fn message(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    [&[kind][..], &(body.len() as u32 + 4).to_be_bytes(), &body].concat()
}

fn query(text: &[u8]) -> Vec<u8> {
    message(b'Q', &[text, b"\0"])
}

/// Parse, Bind, Describe of both, Execute, Sync.
fn extended(text: impl AsRef<[u8]>) -> Vec<u8> {
    [
        message(b'P', &[b"\0", text.as_ref(), b"\0\0\0"]),
        message(b'B', &[b"\0\0\0\0\0\0\0\0"]),
        message(b'D', &[b"S\0"]),
        message(b'D', &[b"P\0"]),
        message(b'E', &[b"\0\0\0\0\0"]),
        message(b'S', &[]),
    ]
    .concat()
}

fn kinds(messages: &[Message]) -> String {
    messages.iter().map(|(kind, _)| kind).collect()
}

/// SQLSTATE and text of the errors.
fn errors(messages: &[Message]) -> Vec<String> {
    let field = |body: &[u8], code: u8| {
        let mut fields = body.split(|byte| *byte == 0);
        let field = fields.find(|field| field.first() == Some(&code)).unwrap_or_default();
        String::from_utf8_lossy(field.get(1..).unwrap_or_default()).into_owned()
    };
    let errors = messages.iter().filter(|(kind, _)| *kind == 'E');
    errors.map(|(_, body)| format!("{} {}", field(body, b'C'), field(body, b'M'))).collect()
}

/// Names and types of a RowDescription: where columns come from is not told alike.
fn columns(body: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    let (mut rest, mut columns) = (&body[2..], Vec::new());
    while let Some(end) = rest.iter().position(|byte| *byte == 0) {
        columns.push((rest[..end].to_vec(), rest[end + 7..end + 19].to_vec()));
        rest = &rest[end + 19..];
    }
    columns
}

/// What two servers should say alike. Of an error, its code and text; of a row, what is in it if it is the same data.
fn comparable(messages: &[Message], with_rows: bool) -> Vec<String> {
    let shown = |(kind, body): &Message| match kind {
        'T' => format!("{:?}", columns(body)),
        'E' => errors(&[('E', body.clone())]).concat(),
        'D' | 'C' if !with_rows => String::new(),
        'N' => String::new(),
        _ => format!("{kind} {}", body.escape_ascii()),
    };
    let mut shown: Vec<_> = messages.iter().map(shown).collect();
    shown.retain(|text| !text.is_empty());
    shown
}

fn has_slot(relay: &Relay, name: &str) -> bool {
    relay.command(&format!("READ_REPLICATION_SLOT {name}")).starts_with("physical")
}

fn slots_change_only_where_postgresql_would_change_them(server: &Server) {
    let primary = Cluster::builder(server).start();
    primary.sql("create role plain login; create role rep login replication");
    let relay = relay_below(&primary).start();
    relay.create_slot("one");
    let drop = "select pg_drop_replication_slot('one')";
    let refused = |options: &str, text: &str| {
        let error = relay.psql(options, &[text]).expect_err(text).0;
        assert!(has_slot(&relay, "one"), "{text}: {error}");
        error
    };
    let postgres = "dbname=postgres";
    assert!(refused(postgres, &format!("select 1/0; {drop}")).contains("division by zero"));
    assert!(refused(postgres, &format!("begin; select 1/0; {drop}; commit")).contains("division by zero"));
    for text in [
        "select pg_drop_replication_slot('one'), 1/0",
        "select pg_drop_replication_slot('one') where exists (select 1)",
        "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = 'one'",
        "do $$ begin perform pg_drop_replication_slot('one'); end $$",
        // However the code is written, and where it puts a text together.
        r"do E'begin perform pg_drop_\162eplication_slot(\'one\'); end'",
        r"do U&'begin perform pg_drop_\0072eplication_slot(''one''); end'",
        "do 'begin perform pg_drop_repl'\n'ication_slot(''one''); end'",
        "do $$ begin execute format('select pg_drop_replication_slot(%L)', 'one'); end $$",
        "select pg_create_physical_replication_slot('o'), pg_drop_replication_slot(E'one')",
    ] {
        let error = refused(postgres, text);
        assert!(error.contains("cannot be executed by walrelay") && error.contains("HINT"), "{error}");
    }
    assert!(!has_slot(&relay, "o"));
    let idiom = "select pg_create_physical_replication_slot('new') where not exists \
                 (select 1 from pg_replication_slots where slot_name = 'new')";
    assert!(refused(postgres, idiom).contains("CREATE_REPLICATION_SLOT"));
    // What is wrong is said by the server, before anything happens.
    let wrong = refused(postgres, "select nosuch from pg_drop_replication_slot('one')");
    assert!(wrong.contains("cannot be executed"), "{wrong}");
    assert!(refused(postgres, "select pg_drop_replication_slot('one') as").contains("syntax error"));

    // Rights are those of the moment.
    let denied = ["permission denied to use replication slots", "must be superuser or replication role"];
    let is_denied = |error: &str| denied.iter().any(|text| error.contains(text));
    assert!(is_denied(&refused("dbname=postgres user=plain", drop)));
    for before in [&["set role plain"][..], &["begin", "set local role plain"]] {
        let commands = [before, &[drop]].concat();
        let error = relay.psql(postgres, &commands).expect_err("the right was given up").0;
        assert!(is_denied(&error) && has_slot(&relay, "one"), "{error}");
    }
    primary.sql("revoke execute on function pg_drop_replication_slot from public");
    let error = refused("dbname=postgres user=rep", drop);
    assert!(error.contains("permission denied for function"), "{error}");
    primary.sql("grant execute on function pg_drop_replication_slot to public");
    primary.sql("revoke select on pg_stat_replication from public");
    let error = refused("dbname=postgres user=plain", "select count(*) from pg_stat_replication");
    assert!(error.contains("permission denied for view pg_stat_replication"), "{error}");
    primary.sql("grant select on pg_stat_replication to public");
    // Nor is it the view that a temporary table hides.
    let read = ["create temp table pg_stat_replication (pid int)", "select pid from pg_stat_replication"];
    let error = relay.psql(postgres, &read).expect_err("it is another").0;
    assert!(error.contains("write pg_catalog.pg_stat_replication"), "{error}");

    primary
        .sql("create function public.pg_drop_replication_slot(text) returns int language sql as 'select 7'");
    assert!(refused("dbname=postgres user=rep", drop).contains("Write pg_catalog.pg_drop_replication_slot"));
    let qualified = "select pg_catalog.pg_drop_replication_slot('one')";
    assert_eq!(relay.psql("dbname=postgres user=rep", &[qualified]).as_deref(), Ok(""));
    assert!(!has_slot(&relay, "one"));
    // In a transaction it happens at once, as in PostgreSQL.
    let create = "select * from pg_create_physical_replication_slot('two')";
    relay.psql(postgres, &["begin", create, "rollback"]).expect("it may");
    assert!(has_slot(&relay, "two"));
    assert_eq!(primary.sql("select slot_name from pg_replication_slots"), "walrelay");
    relay.assert_calm();
}

fn dropped_roles_are_out(server: &Server) {
    let mut primary = Cluster::builder(server).start();
    primary.sql("create role rep login replication");
    let relay = relay_below(&primary).hba("host all,replication all 127.0.0.1/32 trust\n").start();
    let identify = || relay.psql("user=rep replication=1", &["IDENTIFY_SYSTEM"]);
    identify().expect("it exists");
    primary.sql("drop role rep");
    let is_out = || identify().is_err_and(|error| error.0.contains("role \"rep\" does not exist"));
    wait_until("the relay to know that it is gone", is_out);
    // Nor is anybody in of whom nobody can be asked.
    primary.stop();
    let unknown = relay.psql("user=unknown replication=1", &["CREATE_REPLICATION_SLOT s PHYSICAL"]);
    assert!(unknown.expect_err("who is it?").0.contains("cannot be asked for role \"unknown\""));
    assert!(is_out());
}

fn texts_are_read_as_the_server_reads_them(server: &Server) {
    let primary = Cluster::builder(server).start();
    let relay = relay_below(&primary).start();
    relay.create_slot("one");
    let drop = query(b"select pg_drop_replication_slot('one')");
    let both = |settings: &[(&str, &str)], bytes: &[u8], times: u32| {
        let through = Raw::connect(relay.port(), settings).ask(bytes, times);
        let direct = Raw::connect(primary.port(), settings).ask(bytes, times);
        assert_eq!(comparable(&through, true), comparable(&direct, true), "{}", bytes.escape_ascii());
        assert!(has_slot(&relay, "one"), "{}", bytes.escape_ascii());
        through
    };
    // The second byte of a character is a backslash.
    let hidden = b"select E'\x95\x5c'; select '; select pg_drop_replication_slot(''one''); --'";
    for encoding in ["SJIS", "SHIFT_JIS_2004", "BIG5", "GBK", "GB18030"] {
        both(&[("client_encoding", encoding)], &query(hidden), 1);
        let set = [query(format!("set client_encoding = {encoding}").as_bytes()), query(hidden)].concat();
        both(&[], &set, 2);
    }
    for encoding in ["UTF8", "EUC_JP", "LATIN1", "WIN1252"] {
        both(
            &[("client_encoding", encoding)],
            &query("select 'é', $$pg_drop_replication_slot('one')$$".as_bytes()),
            1,
        );
    }
    // What a backslash means is changed in front of it.
    let hidden = br"select '\'; select pg_drop_replication_slot(\'one\'); --'";
    both(&[], &[query(b"set standard_conforming_strings = off"), query(hidden)].concat(), 2);
    both(&[("options", "-c standard_conforming_strings=off")], &query(hidden), 1);
    let set = query(b"select set_config('standard_conforming_strings', 'off', false)");
    both(&[], &[set, query(hidden)].concat(), 2);

    // Nothing has an effect before everything in front of it has been answered.
    let mut raw = Raw::connect(relay.port(), &[]);
    let answers = raw.ask(&[query(b"select pg_sleep(0.2), 1/0"), drop.clone()].concat(), 2);
    assert!(errors(&answers)[1].contains("have not been answered") && has_slot(&relay, "one"), "{answers:?}");
    let failing = message(b'P', &[b"\0select nosuch\0\0\0"]);
    let answers = raw.ask(&[failing, drop.clone(), message(b'S', &[])].concat(), 1);
    assert_eq!((kinds(&answers).as_str(), has_slot(&relay, "one")), ("EZ", true));
    // The session goes on, and knows that it does.
    let copied = raw.ask(&query(b"create temp table t (i int)"), 1);
    assert_eq!(kinds(&copied), "CZ");
    let copy = [
        message(b'P', &[b"\0copy t from stdin\0\0\0"]),
        message(b'B', &[b"\0\0\0\0\0\0\0\0"]),
        message(b'E', &[b"\0\0\0\0\0"]),
        message(b'S', &[]),
        message(b'd', &[b"1\n"]),
        message(b'c', &[]),
        message(b'S', &[]),
    ];
    assert_eq!(kinds(&raw.ask(&copy.concat(), 1)), "12GCZ");
    assert_eq!(kinds(&raw.ask(&drop, 1)), "TDCZ");
    assert!(!has_slot(&relay, "one"));
    relay.assert_calm();
}

fn prepared_statements_see_each_moment(server: &Server) {
    let primary = Cluster::builder(server).start();
    let relay = relay_below(&primary).start();
    let mut raw = Raw::connect(relay.port(), &[]);
    let text = "select string_agg(slot_name || coalesce($1, ''), ',' order by slot_name) from pg_catalog.pg_replication_slots, \
                (select count(*) from pg_stat_replication) c";
    let prepare = [
        message(b'P', &[b"s\0", text.as_bytes(), b"\0\0\x01\0\0\0\x19"]),
        message(b'D', &[b"Ss\0"]),
        message(b'S', &[]),
    ];
    let answers = raw.ask(&prepare.concat(), 1);
    assert_eq!(kinds(&answers), "1tTZ");
    assert_eq!(answers[1].1, b"\0\x01\0\0\0\x19", "the client knows of its own parameter only");
    // Formats for none, for all and for each.
    let executions = [&b"\0\0"[..], b"\0\x01\0\x01", b"\0\x01\0\0"];
    for (number, formats) in executions.iter().cycle().take(9).enumerate() {
        relay.create_slot(&format!("s{number}"));
        let execute = [
            message(b'B', &[b"\0s\0", formats, b"\0\x01\0\0\0\x01!\0\0"]),
            message(b'E', &[b"\0\0\0\0\0"]),
            message(b'S', &[]),
        ];
        let answers = raw.ask(&execute.concat(), 1);
        assert_eq!(kinds(&answers), "2DCZ", "{:?}", errors(&answers));
        let seen = String::from_utf8_lossy(&answers[1].1[6..]).into_owned();
        let expected: Vec<_> = (0..=number).map(|number| format!("s{number}!")).collect();
        assert_eq!(seen, expected.join(","));
    }
    // Names come and go.
    let again = [
        message(b'P', &[b"s\0select 1\0\0\0"]),
        message(b'S', &[]),
        message(b'C', &[b"Ss\0"]),
        message(b'P', &[b"s\0select 1\0\0\0"]),
        message(b'D', &[b"Ss\0"]),
        message(b'B', &[b"\0s\0\0\0\0\0\0\0"]),
        message(b'E', &[b"\0\0\0\0\0"]),
        message(b'S', &[]),
    ];
    let answers = raw.ask(&again.concat(), 2);
    assert_eq!(kinds(&answers), "EZ31tT2DCZ", "{:?}", errors(&answers));
    names_stand_for_what_they_do_upstream(&mut raw);
    relay.assert_calm();
}

/// What a message was to do that the server has skipped, or refused, has not happened.
fn names_stand_for_what_they_do_upstream(raw: &mut Raw) {
    let parse = |name: &str, text: &str| message(b'P', &[name.as_bytes(), b"\0", text.as_bytes(), b"\0\0\0"]);
    let bind = |portal: &str, name: &str| {
        message(b'B', &[portal.as_bytes(), b"\0", name.as_bytes(), b"\0\0\0\0\0\0\0"])
    };
    let execute = |portal: &str| message(b'E', &[portal.as_bytes(), b"\0\0\0\0\0"]);
    let close = |name: &str| message(b'C', &[b"S", name.as_bytes(), b"\0"]);
    let describe = |name: &str| message(b'D', &[b"S", name.as_bytes(), b"\0"]);
    let sync = message(b'S', &[]);
    let rows = "select count(*) from pg_replication_slots";
    let mut asks = |messages: &[Vec<u8>], times: u32, expected: &str| {
        let answers = raw.ask(&messages.concat(), times);
        assert_eq!(kinds(&answers), expected, "{:?}", errors(&answers));
        answers
    };
    asks(&[parse("a", rows), parse("b", rows), sync.clone()], 1, "11Z");
    let works = |name: &str| [bind("", name), execute(""), sync.clone()].concat();
    let described = |name: &str| [describe(name), sync.clone()].concat();
    // Nothing behind the failure happens: neither the Close, nor the Parse of another without a name.
    let failing = [execute("none"), close("a"), parse("", "deallocate a"), sync.clone()];
    let answers = asks(&[failing.concat(), described("a")], 2, "EZtTZ");
    assert_eq!(answers[2].1, b"\0\0", "the client knows of no parameter");
    asks(&[works("a")], 1, "2DCZ");
    // A statement of a name is not replaced by another, which would deallocate another.
    asks(&[parse("d", "deallocate a"), sync.clone(), parse("d", "deallocate b"), sync.clone()], 2, "1ZEZ");
    asks(&[works("d"), works("b"), works("a")], 3, "2CZ2DCZEZ");
    // A portal runs what its statement was when it was bound.
    asks(
        &[
            parse("a", rows),
            parse("", "deallocate b"),
            bind("p", ""),
            parse("", rows),
            execute("p"),
            sync.clone(),
        ],
        1,
        "1121CZ",
    );
    asks(&[works(""), works("a"), works("b")], 3, "2DCZ2DCZEZ");
    // One that has failed to parse has taken the one before it away.
    asks(&[parse("", "select nosuch"), sync.clone(), works("")], 2, "EZEZ");
    asks(&[parse("", "select 1"), sync.clone(), works("")], 2, "1Z2DCZ");
}

fn physical_slots_upstream_are_out_of_reach(server: &Server) {
    let primary = Cluster::builder(server).conf("wal_level = logical").start();
    let relay = relay_below(&primary).start();
    let logical = "dbname=postgres replication=database";
    let refused = |command: &str, why: &str| {
        let error = relay.psql(logical, &[command]).expect_err(command).0;
        assert!(error.contains(why) && error.contains("replication=true"), "{command}: {error}");
    };
    refused("CREATE_REPLICATION_SLOT p PHYSICAL", "does not execute");
    refused("CREATE_REPLICATION_SLOT p TEMPORARY PHYSICAL RESERVE_WAL", "does not execute");
    refused("START_REPLICATION SLOT walrelay PHYSICAL 0/1", "does not execute");
    refused("DROP_REPLICATION_SLOT walrelay", "does not exist");
    let made = relay.psql(logical, &["CREATE_REPLICATION_SLOT l LOGICAL pgoutput"]);
    assert!(made.expect("it is passed on").starts_with("l|"));
    let slots = "select string_agg(slot_name, ',' order by slot_name) from pg_replication_slots";
    assert_eq!(primary.sql(slots), "l,walrelay");
    // One name is one slot.
    let taken = relay.psql("dbname=postgres", &["select pg_create_physical_replication_slot('l')"]);
    assert!(taken.expect_err("there is a logical one").0.contains("replication slot \"l\" already exists"));
    let taken = |options: &str, command: &str| {
        let error = relay.psql(options, &[command]).expect_err(command).0;
        assert!(error.contains("already exists") && error.contains("replication slot"), "{command}: {error}");
    };
    taken("replication=true", "CREATE_REPLICATION_SLOT l PHYSICAL");
    let read = relay.psql("replication=true", &["READ_REPLICATION_SLOT l"]).expect_err("it is logical").0;
    assert!(read.contains("cannot use READ_REPLICATION_SLOT with a logical replication slot"), "{read}");
    relay.create_slot("p");
    taken(logical, "CREATE_REPLICATION_SLOT p LOGICAL pgoutput");
    taken("dbname=postgres", "select pg_create_logical_replication_slot('p', 'pgoutput')");
    taken("dbname=postgres", "select * from pg_copy_logical_replication_slot('l', 'p')");
    assert_eq!(primary.sql(slots), "l,walrelay");
    assert!(has_slot(&relay, "p"));
    // Dropping by the command takes the one that is meant.
    relay.psql("replication=true", &["DROP_REPLICATION_SLOT l"]).expect_err("it is logical, and not here");
    relay.command("DROP_REPLICATION_SLOT p");
    assert_eq!(primary.sql(slots), "l,walrelay");
    // Below another relay, too.
    let lower = relay.builder_below().name("lower").start();
    assert_eq!(lower.sql("select pg_create_physical_replication_slot('deep')"), "(deep,)");
    assert!(has_slot(&lower, "deep") && !has_slot(&relay, "deep"));
    let advance = "select slot_name from pg_replication_slot_advance('l', pg_current_wal_lsn())";
    assert_eq!(lower.sql(advance), "l");
    // Who decodes through both is seen at each, as a sender and by its slot.
    let scratch = Scratch::new("recvlogical");
    let mut command = server.lasting("pg_recvlogical");
    let conninfo = format!("{} dbname=postgres", lower.conninfo());
    command.args(["--start", "-S", "l", "-f", "-", "-o", "proto_version=1", "-o", "publication_names=p"]);
    command.args(["-d", &conninfo]);
    let decoder = Process::spawn("pg_recvlogical", command, &scratch.join("log"));
    let decoding = "select string_agg(s.slot_name || ' ' || r.state, ',') from pg_replication_slots s \
                    join pg_stat_replication r on r.pid = s.active_pid where s.slot_type = 'logical'";
    for below in [&relay, &lower] {
        below.wait_for_sql(decoding, "l streaming");
    }
    drop(decoder);
    primary.wait_for_sql("select count(*) from pg_replication_slots where slot_name = 'l' and active", "0");
    assert_eq!(lower.sql("select pg_drop_replication_slot('l')"), "");
    relay.psql(logical, &["CREATE_REPLICATION_SLOT l LOGICAL pgoutput"]).expect("there is none any more");
    relay.psql(logical, &["DROP_REPLICATION_SLOT l"]).expect("it is logical");
    assert_eq!(primary.sql(slots), "walrelay");
}

fn tools_get_what_postgresql_says(server: &Server) {
    let primary = Cluster::builder(server).start();
    let relay = relay_below(&primary).start();
    relay.create_slot("archive");
    let _archive = Receivewal::start(server, &relay.conninfo(), "archive");
    relay.wait_for_sql("select count(*) from pg_stat_replication where reply_time is not null", "1");
    let mut through = Raw::connect(relay.port(), &[]);
    let mut direct = Raw::connect(primary.port(), &[]);
    let mut same = |bytes: &[u8], times: u32, with_rows: bool| {
        let [through, direct] = [&mut through, &mut direct].map(|raw| raw.ask(bytes, times));
        assert_eq!(
            comparable(&through, with_rows),
            comparable(&direct, with_rows),
            "{}",
            bytes.escape_ascii()
        );
        through
    };
    for text in OF_TOOLS {
        same(&query(text.as_bytes()), 1, false);
        same(&extended(text), 1, false);
    }
    for text in OF_ANYBODY {
        same(&query(text.as_bytes()), 1, true);
        same(&extended(text), 1, true);
    }
    // Everything at once.
    let all: Vec<_> = OF_ANYBODY.iter().flat_map(|text| [query(text.as_bytes()), extended(text)]).collect();
    same(&all.concat(), 2 * OF_ANYBODY.len() as u32, true);
    // Nobody else's row for a consumer's number.
    let joined =
        "select count(*), count(a.pid) from pg_stat_replication r left join pg_stat_activity a using (pid)";
    assert_eq!(relay.sql(joined), "1|0");
    let ended =
        "select pg_terminate_backend(active_pid) from pg_replication_slots where slot_name = 'archive'";
    assert_eq!(relay.sql(ended), "f");
    for (text, rows) in [
        ("copy (select slot_name from pg_replication_slots) to stdout", "archive"),
        ("begin; declare c cursor for select slot_name from pg_replication_slots; fetch all c", "archive"),
        ("create temp table t as select slot_name from pg_replication_slots; table t", "archive"),
        ("(with w as (select slot_name from pg_replication_slots) select * from w)", "archive"),
        (r#"select slot_name from U&"pg_!0072eplication_slots" uescape '!'"#, "archive"),
    ] {
        assert_eq!(relay.sql(text).lines().last(), Some(rows), "{text}");
    }
}

/// Statements of exporters, check_postgres, repmgr, Patroni, Barman, pgAdmin and people; their rows are the relay's.
const OF_TOOLS: &[&str] = &[
    "select * from pg_replication_slots",
    "table pg_stat_replication",
    "SELECT slot_name, slot_type, active, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn) FROM pg_replication_slots",
    "SELECT application_name, state, sync_state, reply_time FROM pg_catalog.pg_stat_replication WHERE usename = 'x'",
    "SELECT client_addr, coalesce(client_hostname, ''), replay_lag FROM pg_stat_replication ORDER BY 1",
    "SELECT slot_name, database, active, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn) FROM pg_replication_slots",
    "SELECT pid, usename, pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), sent_lsn)::bigint FROM pg_stat_replication",
    "WITH s AS (SELECT slot_name, restart_lsn FROM pg_replication_slots) SELECT count(*) FROM s",
    "SELECT s.slot_name, r.state FROM pg_replication_slots s LEFT JOIN pg_stat_replication r ON s.active_pid = r.pid",
    "SELECT r.pid, a.backend_type FROM pg_stat_replication r JOIN pg_stat_activity a ON a.pid = r.pid",
    "SELECT nosuch FROM pg_stat_replication",
    "SELECT * FROM pg_stat_replication WHERE",
    "SELECT (SELECT count(*) FROM pg_replication_slots) + 1",
    "copy (select 1 from pg_stat_replication where false) to stdout",
    "explain (costs off) select 1",
];

/// Statements that have nothing to do with the relay, or only seem to.
const OF_ANYBODY: &[&str] = &[
    "select 1",
    "",
    "select 1/0",
    "select 'pg_stat_replication', $$pg_drop_replication_slot('x')$$",
    "show standard_conforming_strings",
    "begin",
    "savepoint a",
    "rollback",
    "set extra_float_digits = 3",
    "select pg_drop_replication_slot('nosuch') where false",
    "select slot_name from pg_replication_slots where false",
    "create temp table if not exists mine (pg_stat_replication int)",
    "insert into mine select count(*) from pg_stat_replication where false returning 1",
    "select pg_stat_replication from mine limit 1",
    "select a.pg_replication_slots from (select 1 as pg_replication_slots) a",
    "drop table mine",
    "prepare p as select 1",
    "execute p",
    "deallocate all",
    "discard all",
    "select * from nosuch.pg_stat_replication",
    "select slot_name from pg_catalog.pg_catalog.pg_replication_slots where false",
    "select postgres.pg_catalog.pg_stat_replication.pid from postgres.pg_catalog.pg_stat_replication where false",
    "syntax error from pg_stat_replication",
];

/// Random texts, and how long: `WALRELAY_FUZZ_ROUNDS` of them, and as many more as fit into `WALRELAY_FUZZ_MINUTES`.
struct Fuzz {
    state: u64,
    rounds: u64,
    until: Instant,
}

impl Fuzz {
    fn new() -> Fuzz {
        let variable = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
        let minutes = variable("WALRELAY_FUZZ_MINUTES").unwrap_or(0);
        let fixed = 0x9e37_79b9_7f4a_7c15;
        // A long run is there to see what has not been seen before.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let fresh = if minutes == 0 { fixed } else { now.expect("it is after 1970").as_nanos() as u64 | 1 };
        let state = variable("WALRELAY_FUZZ_SEED").unwrap_or(fresh);
        println!("WALRELAY_FUZZ_SEED={state}");
        let rounds = variable("WALRELAY_FUZZ_ROUNDS").unwrap_or(500);
        Fuzz { state, rounds, until: Instant::now() + Duration::from_secs(60 * minutes) }
    }

    fn goes_on(&self, round: u64) -> bool {
        round < self.rounds || Instant::now() < self.until
    }

    fn below(&mut self, limit: usize) -> usize {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state >> 33) as usize % limit
    }

    /// A statement with a character of the encoding in it here and there.
    fn text(&mut self, character: &[u8]) -> Vec<u8> {
        let mut text = b"select ".to_vec();
        for _ in 0..2 + self.below(9) {
            match self.below(PIECES.len() + 1) {
                0 => text.extend(character),
                piece => text.extend(PIECES[piece - 1].as_bytes()),
            }
        }
        text
    }
}

/// Encodings with a character; the second byte of those of the last three is a backslash.
const CHARACTERS: &[(&str, &[u8])] =
    &[("UTF8", "é".as_bytes()), ("SJIS", b"\x95\x5c"), ("GBK", b"\x95\x5c"), ("BIG5", b"\xa5\x5c")];

/// Rounds in one session.
const SESSION: u64 = 125;

/// The same random texts to both, for a while; the slots of both stay what they are.
fn random_texts_do_what_they_do_upstream(server: &Server) {
    let primary = Cluster::builder(server).start();
    let relay = relay_below(&primary).start();
    relay.create_slot("one");
    // Both views have one row on either side, so that what is done for each row is done as often.
    let archive = Receivewal::start(server, &relay.conninfo(), "one");
    relay.wait_for_sql("select state from pg_stat_replication", "streaming");
    let mut judge = Raw::connect_to("walrelay", relay.port(), &[]);
    let mut slots = move || judge.ask(&query(b"select slot_name from pg_replication_slots"), 1);
    let untouched = slots();
    assert_eq!(kinds(&untouched), "TDCZ");
    let (mut fuzz, mut round) = (Fuzz::new(), 0);
    while fuzz.goes_on(round) {
        let (encoding, character) = CHARACTERS[(round / SESSION) as usize % CHARACTERS.len()];
        let settings = [("client_encoding", encoding)];
        let mut both = [relay.port(), primary.port()].map(|port| Raw::connect(port, &settings));
        for _ in 0..SESSION {
            let text = fuzz.text(character);
            let bytes = if fuzz.below(3) == 0 { extended(&text) } else { query(&text) };
            let shown = format!("{encoding} {}", text.escape_ascii());
            let answers = both.each_mut().map(|raw| raw.ask(&bytes, 1));
            let [ours, theirs] = answers.each_ref().map(|answer| comparable(answer, false));
            // Calls of slot functions may be refused; whatever else fails there, fails here.
            let refused = |answer: &[String]| answer.iter().any(|line| line.contains("walrelay"));
            if !refused(&ours) {
                let fails = |answer: &[Message]| kinds(answer).contains('E');
                assert_eq!(fails(&answers[0]), fails(&answers[1]), "{shown}: {ours:?} {theirs:?}");
            }
            assert_eq!(slots(), untouched, "{shown}");
            round += 1;
        }
    }
    println!("{round} rounds");
    archive.stop();
    assert_eq!(primary.sql("select string_agg(slot_name, ',') from pg_replication_slots"), "walrelay");
    relay.assert_calm();
}

fn consumers_are_ended_by_who_may(server: &Server) {
    let primary = Cluster::builder(server).start();
    primary.sql(
        "create role rep login replication; create role plain login; create role boss login; \
                 grant pg_signal_backend to boss; create role peer login; grant rep to peer",
    );
    let relay = relay_below(&primary).hba("host all,replication all 127.0.0.1/32 trust\n").start();
    let start = || {
        let mut consumer = Raw::connect(relay.port(), &[("user", "rep"), ("replication", "true")]);
        let stream = format!("START_REPLICATION PHYSICAL {}", relay.flush_lsn());
        consumer.0.write_all(&query(stream.as_bytes())).expect("it reads");
        relay.wait_for_sql("select state from pg_stat_replication where usename = 'rep'", "streaming");
        // As in PostgreSQL from the start, and whatever comes: nothing does.
        let row =
            relay.sql("select pid, sent_lsn is not null from pg_stat_replication where usename = 'rep'");
        let (pid, is_sent) = row.split_once('|').expect("two columns");
        assert_eq!(is_sent, "t");
        // No process of a server can have it.
        assert!(pid.parse::<u32>().expect("a number") > 1 << 22, "{pid}");
        (consumer, pid.to_owned())
    };
    let (mut consumer, pid) = start();
    let terminate = format!("select pg_terminate_backend({pid})");
    let by = |user: &str, text: &str| relay.psql(&format!("dbname=postgres user={user}"), &[text]);
    let is_there = || relay.sql("select count(*) from pg_stat_replication where usename = 'rep'") == "1";
    assert!(by("plain", &terminate).expect_err("it may not").0.contains("permission denied to terminate"));
    // Not alone, and not by a name that may be another's.
    let all = "select pg_terminate_backend(pid) from pg_stat_replication";
    assert_eq!(by("postgres", all).as_deref(), Ok("f"));
    assert!(is_there());
    assert_eq!(by("boss", &format!("{terminate} as done")).as_deref(), Ok("t"));
    let mut said = Vec::new();
    consumer.0.read_to_end(&mut said).expect("it ends in order");
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(said.contains("57P01") && said.contains("administrator command"), "{said}");
    relay.wait_for_sql("select count(*) from pg_stat_replication where usename = 'rep'", "0");
    // It is nobody's number now, here or there.
    assert_eq!(by("postgres", &terminate).as_deref(), Ok("f"));
    let (_consumer, pid) = start();
    assert_eq!(by("peer", &format!("SELECT pg_catalog.pg_terminate_backend({pid}, 0)")).as_deref(), Ok("t"));
    relay.wait_for_sql("select count(*) from pg_stat_replication where usename = 'rep'", "0");
    // A consumer of a superuser's is a superuser's.
    relay.create_slot("archive");
    let slot = Receivewal::start(server, &relay.conninfo(), "archive");
    let mine = "select pid from pg_stat_replication where usename = 'postgres'";
    wait_until("the receiver", || !relay.sql(mine).is_empty());
    let refused = by("boss", &format!("select pg_terminate_backend({})", relay.sql(mine)));
    assert!(refused.expect_err("it may not").0.contains("SUPERUSER"));
    slot.stop();
}

/// Where nothing is lost by it: outside of a transaction block.
fn a_session_begun_in_an_outage_ends_with_it(server: &Server) {
    let mut primary = Cluster::builder(server).start();
    let relay = relay_below(&primary).start();
    primary.stop();
    let [mut idle, mut in_block] = [(); 2].map(|()| Raw::connect(relay.port(), &[]));
    let mut own = Raw::connect_to("walrelay", relay.port(), &[]);
    assert_eq!(kinds(&in_block.ask(&query(b"begin"), 1)), "CZ");
    primary.start();
    let ends = |raw: &mut Raw| {
        let mut said = Vec::new();
        raw.0.read_to_end(&mut said).expect("it ends in order");
        let said = String::from_utf8_lossy(&said).into_owned();
        assert!(said.contains("57P01") && said.contains("connect again"), "{said}");
    };
    ends(&mut idle);
    assert_eq!(relay.sql("select 40 + 2"), "42");
    assert_eq!(kinds(&in_block.ask(&query(b"show wal_level"), 1)), "TDCZ");
    assert_eq!(kinds(&in_block.ask(&query(b"commit"), 1)), "CZ");
    ends(&mut in_block);
    assert_eq!(kinds(&own.ask(&query(b"show wal_level"), 1)), "TDCZ");
}

/// What both know is said alike, and so is what is wrong; message by message.
fn the_relays_own_database_speaks_as_postgresql_does(server: &Server) {
    let primary = Cluster::builder(server).start();
    let relay = relay_below(&primary).start();
    let mut through = Raw::connect_to("walrelay", relay.port(), &[]);
    let mut direct = Raw::connect(primary.port(), &[]);
    let mut both = |what: &str, bytes: &[u8], times: u32| {
        let [ours, theirs] = [&mut through, &mut direct].map(|raw| raw.ask(bytes, times));
        assert_eq!(comparable(&ours, true), comparable(&theirs, true), "{what}");
    };
    for text in OF_BOTH {
        both(text, &query(text.as_bytes()), 1);
        both(text, &extended(text), 1);
    }
    let (sync, execute) = (message(b'S', &[]), |most: u8| message(b'E', &[b"p\0\0\0\0", &[most]]));
    let parse = |name: &[u8], text: &[u8]| message(b'P', &[name, b"\0", text, b"\0\0\0"]);
    let bind = message(b'B', &[b"p\0s\0\0\0\0\x01\0\0\0\x017\0\x01\0\x01"]);
    let describe = |what: &[u8]| message(b'D', &[what, b"\0"]);
    let close = |what: &[u8]| message(b'C', &[what, b"\0"]);
    let empty = parse(b"", b"");
    let number = parse(b"s", b"select $1::int4 as n");
    let bound =
        |messages: &[&[u8]]| [&[&number[..], &bind], messages, &[&close(b"Ss"), &sync]].concat().concat();
    both("one row, one asked for", &bound(&[&describe(b"Pp"), &execute(1), &execute(1)]), 1);
    both("one row, two asked for", &bound(&[&describe(b"Ss"), &execute(2), &execute(0)]), 1);
    both("twice", &bound(&[&number]), 1);
    both("the statement stays", &[&close(b"Ss")[..], &sync].concat(), 1);
    both("no portal", &[&execute(0)[..], &number, &sync].concat(), 1);
    both("no statement", &[&bind[..], &number, &sync].concat(), 1);
    both("nothing to describe", &[&describe(b"Pq")[..], &sync].concat(), 1);
    both("unknown kind", &[&describe(b"Xq")[..], &sync].concat(), 1);
    both("closing what is not there", &[&close(b"Sq")[..], &close(b"Pq"), &sync].concat(), 1);
    both(
        "too many values",
        &[&empty[..], &message(b'B', &[b"\0\0\0\0\0\x01\xff\xff\xff\xff\0\0"]), &sync].concat(),
        1,
    );
    both("too short", &[&message(b'B', &[b"\0\0\0\x01"])[..], &sync].concat(), 1);
    both("two at once", &[&parse(b"", b"select 1; select 2")[..], &sync].concat(), 1);
    // Portals live as long as their transaction.
    let begin = query(b"begin");
    both(
        "in a block",
        &[&begin[..], &number, &bind, &sync, &execute(0), &sync, &query(b"commit"), &execute(0), &sync]
            .concat(),
        5,
    );
    both("the rest", &[&query(b"deallocate s")[..], &query(b"deallocate s")].concat(), 2);
    both(
        "an error in a block",
        &[
            &begin[..],
            &execute(0),
            &sync,
            &parse(b"", b"select 1"),
            &sync,
            &parse(b"", b"rollback"),
            &sync,
            &query(b"rollback"),
        ]
        .concat(),
        5,
    );
    let commit =
        [parse(b"", b"commit"), message(b'B', &[b"c\0\0\0\0\0\0\0\0"]), message(b'E', &[b"c\0\0\0\0\0"])]
            .concat();
    both(
        "the end of a block ends its portal",
        &[&begin[..], &commit, &message(b'E', &[b"c\0\0\0\0\0"]), &sync].concat(),
        2,
    );
    relay.assert_calm();
}

/// Statements that need no data, and mistakes.
const OF_BOTH: &[&str] = &[
    "",
    " -- ping",
    "select 1",
    "select 1; select 'x' as y",
    "select 1::text, cast('7' as int4), true::text as b, null::bool",
    "select true, 'a'::name, 1::int8, '0/10'::pg_lsn::text",
    "select current_user, session_user, user",
    "select pg_advisory_unlock_all()",
    "select set_config('application_name', 'new', false)",
    "show application_name",
    "select current_setting('application_name')",
    "set extra_float_digits = 3",
    "set application_name to 'other'",
    "reset application_name",
    "begin",
    "begin",
    "savepoint a",
    "release b",
    "select 1",
    "rollback to a",
    "release savepoint a",
    "discard all",
    "commit",
    "commit",
    "savepoint a",
    "rollback and chain",
    "begin isolation level repeatable read, read only",
    "select nosuch",
    "deallocate all",
    "end",
    "deallocate nosuch",
    "deallocate all",
    "close all",
    "unlisten *",
    "discard plans",
    "discard temp",
    "discard all",
    "select 'x'::int4",
    "select 'x'::bool",
];

const PIECES: &[&str] = &[
    "'",
    "''",
    "\"",
    "$$",
    "$a$",
    "--",
    "/*",
    "*/",
    "\n",
    " ",
    ";",
    "(",
    ")",
    ",",
    ".",
    "\\",
    "E'",
    "U&'",
    "1",
    "1/0",
    " from ",
    " as ",
    " where false ",
    " union all select ",
    "(select ",
    " with a as (select 1) ",
    "pg_catalog.",
    "pg_stat_replication",
    "pg_replication_slots",
    " * ",
    "slot_name",
    "'one'",
    "pg_drop_replication_slot('none')",
    "pg_drop_replication_slot('none', ",
    "select ",
    " limit 1",
    "::text",
    "a",
    "count(*)",
    " b ",
    "(array[1])[1]",
    "]",
    "U&\"pg_stat!005freplication\" uescape '!' ",
    "U&\"slot\\005fname\"",
];
