use proptest::prelude::*;

use super::*;

/// A relay that knows what a relay of PostgreSQL 17 knows.
pub(super) struct Known {
    instead: Instead,
    superuser: Option<bool>,
    contact: bool,
}

pub(super) const KNOWN: Known = Known { instead: Instead::Upstream, superuser: Some(true), contact: true };
pub(super) const OWN: Known = Known { instead: Instead::OwnDatabase, ..KNOWN };

/// All answers of a text, or the first error.
pub(super) fn answer(text: &[u8], facts: &dyn Facts) -> Result<Vec<Answer>, PgError> {
    answer_in(&mut Transaction::default(), text, facts)
}

fn answer_in(transaction: &mut Transaction, text: &[u8], facts: &dyn Facts) -> Result<Vec<Answer>, PgError> {
    let mut script = Script::new(text);
    std::iter::from_fn(|| script.answer_next(facts, transaction)).collect()
}

impl Facts for Known {
    fn instead(&self) -> Instead {
        self.instead
    }

    fn setting(&self, name: &str) -> Option<String> {
        self.settings().into_iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    fn settings(&self) -> Vec<(String, String)> {
        let all = [
            ("TimeZone", "UTC"),
            ("archive_timeout", "1min"),
            ("checkpoint_timeout", "5min"),
            ("server_version", "17.10"),
            ("wal_keep_size", "64MB"),
            ("wal_level", "replica"),
            ("wal_segment_size", "16MB"),
        ];
        let known = all.into_iter().filter(|_| self.contact);
        known.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    fn system_identifier(&self) -> Option<String> {
        self.contact.then(|| "7012345678901234567".to_owned())
    }

    fn is_in_recovery(&self) -> Option<bool> {
        self.contact.then_some(false)
    }

    fn user(&self) -> String {
        "barman".to_owned()
    }

    fn database(&self) -> String {
        "postgres".to_owned()
    }

    fn pid(&self) -> u32 {
        4_194_310
    }

    fn is_superuser(&self) -> Option<bool> {
        self.superuser
    }

    fn may_monitor(&self) -> Option<bool> {
        self.superuser.map(|_| true)
    }

    fn slots(&self) -> Vec<Row> {
        let slot = |name: &str, restart: Option<&str>, pid: Option<u32>| {
            Row::default()
                .with("slot_name", name.to_owned())
                .with("slot_type", "physical".to_owned())
                .with("temporary", flag(false))
                .with("active", flag(pid.is_some()))
                .with("active_pid", pid.map(|pid| pid.to_string()))
                .with("restart_lsn", restart.map(str::to_owned))
        };
        vec![
            slot("a", None, Some(10)),
            slot("barman", Some("0/A000000"), Some(9)),
            slot("c", Some("1/0"), None),
        ]
    }

    fn sessions(&self) -> Vec<Row> {
        let session = |pid: u32, name: &str, kind: &str, state: Option<&str>| {
            Row::default()
                .with("pid", pid.to_string())
                .with("datname", (kind == "client backend").then(|| "postgres".to_owned()))
                .with("usename", "barman".to_owned())
                .with("application_name", name.to_owned())
                .with("backend_type", kind.to_owned())
                .with("state", state.map(str::to_owned))
                .with("ssl", flag(pid == 9))
                .with("version", (pid == 9).then(|| "TLSv1.3".to_owned()))
        };
        vec![
            session(9, "receiver", "walsender", None),
            session(4_194_310, "psql", "client backend", Some("active")),
        ]
    }

    fn write_lsn(&self) -> Option<String> {
        self.contact.then(|| "1/20".to_owned())
    }

    fn flush_lsn(&self) -> Option<String> {
        self.contact.then(|| "1/10".to_owned())
    }

    fn started_at(&self) -> Option<String> {
        Some("2026-12-01 10:00:00+00".to_owned())
    }

    fn configured_at(&self) -> Option<String> {
        Some("2026-12-01 10:30:00+00".to_owned())
    }

    fn sees_all(&self) -> bool {
        self.superuser == Some(true)
    }

    fn status(&self) -> Option<Status> {
        let scene = crate::status::tests::Scene::new();
        let consumer = scene.consumer(9, "barman");
        consumer.start_at(walrelay_proto::Lsn::new(3 << 20));
        Some(scene.now())
    }

    fn senders(&self) -> Vec<Row> {
        vec![Row::default().with("pid", "9".to_owned()).with("usename", "barman".to_owned())]
    }
}

/// The last answer as psql would show it: the columns, then each row; or its tag.
#[track_caller]
pub(super) fn shown(text: &str, facts: &Known) -> String {
    let answers = answer(text.as_bytes(), facts).unwrap_or_else(|error| panic!("{text}: {error}"));
    match answers.into_iter().next_back() {
        Some(Answer::Rows { columns, rows, tag, .. }) => {
            let line = |values: Vec<String>| values.join("|");
            let header = line(columns.iter().map(|field| field.name.clone()).collect());
            assert!(tag == "SHOW" || tag == format!("SELECT {}", rows.len()), "{tag}");
            assert!(rows.iter().all(|row| row.len() == columns.len()));
            let rows =
                rows.into_iter().map(|row| line(row.into_iter().map(Option::unwrap_or_default).collect()));
            [header].into_iter().chain(rows).collect::<Vec<_>>().join("\n")
        }
        Some(Answer::Done { tag, changes, .. }) => {
            let changes = changes.iter().map(|change| format!(" {change:?}")).collect::<String>();
            format!("{tag}{changes}")
        }
        Some(Answer::Empty) => "empty".to_owned(),
        Some(Answer::Order(order)) => order.tag().to_owned(),
        None => panic!("{text} has no answer"),
    }
}

#[track_caller]
fn check(text: &str, expected: &str) {
    for facts in [&KNOWN, &OWN] {
        assert_eq!(shown(text, facts), expected, "{text}");
    }
}

#[track_caller]
fn fails(text: &str, facts: &Known, sqlstate: &str) {
    let error = answer(text.as_bytes(), facts).expect_err(text);
    assert_eq!(error.sqlstate, sqlstate, "{text}: {error}");
}

#[test]
fn all_that_barman_needs_to_start_receiving() {
    check("SET application_name TO barman_receive_wal", "SET ApplicationName(\"barman_receive_wal\")");
    check("SELECT 1", "?column?\n1");
    check("SELECT usesuper FROM pg_user WHERE usename = CURRENT_USER", "usesuper\nt");
    check("SELECT pg_is_in_recovery()", "pg_is_in_recovery\nf");
    let version = format!("version\nPostgreSQL 17.10 (through walrelay {})", env!("CARGO_PKG_VERSION"));
    check("SELECT version()", &version);
    check("SELECT setting FROM pg_settings WHERE name='archive_timeout'", "setting\n60");
    check("SELECT setting FROM pg_settings WHERE name='checkpoint_timeout'", "setting\n300");
    check("SELECT setting FROM pg_settings WHERE name='wal_segment_size'", "setting\n16777216");
    check(
        "SELECT slot_name, active, restart_lsn FROM pg_replication_slots WHERE slot_type = 'physical' \
         AND slot_name = 'barman'",
        "slot_name|active|restart_lsn\nbarman|t|0/A000000",
    );
    check(
        "SELECT system_identifier::text FROM pg_control_system()",
        "system_identifier\n7012345678901234567",
    );
    check(r#"SHOW "wal_level""#, "wal_level\nreplica");
    let monitor = "SELECT\n(\n pg_has_role(CURRENT_USER, 'pg_monitor', 'USAGE')\n OR\n (\n \
                   pg_has_role(CURRENT_USER, 'pg_read_all_settings', 'USAGE')\n AND \
                   pg_has_role(CURRENT_USER, 'pg_read_all_stats', 'USAGE')\n )\n)\n";
    let plain = Known { superuser: Some(false), ..KNOWN };
    assert_eq!(shown("SELECT usesuper FROM pg_user WHERE usename = CURRENT_USER", &plain), "usesuper\nf");
    assert_eq!(shown(monitor, &plain), "?column?\nt");
}

#[test]
fn writing_does_not_count() {
    check(
        "select\tSETTING from pg_catalog.pg_settings -- c\nwhere \"name\" = 'wal_level' ;",
        "setting\nreplica",
    );
    check(
        "select setting from pg_settings where name OPERATOR(pg_catalog.=) 'wal_level'",
        "setting\nreplica",
    );
    check("Select Pg_Catalog.Pg_Is_In_Recovery() as R", "r\nf");
    check(
        "table PG_CATALOG.\"pg_stat_replication\" ;",
        &shown("select * from pg_stat_replication r", &KNOWN),
    );
}

#[test]
fn several_statements_have_several_answers() {
    let answers = answer(b"set a = 1; ; show wal_level; select 1;", &KNOWN).unwrap();
    assert_eq!(answers.len(), 3);
    check("", "empty");
    check(" ; -- nothing", "empty");
    fails("select 1; nonsense", &KNOWN, sqlstate::CANNOT_CONNECT_NOW);
}

#[test]
fn views_are_filtered_and_ordered() {
    let check = |rest: &str, expected: &str| {
        let text = format!("select slot_name from pg_replication_slots {rest}");
        let rows = shown(&text, &KNOWN).lines().skip(1).collect::<Vec<_>>().join(" ");
        assert_eq!(rows, expected, "{rest}");
    };
    check("", "a barman c");
    check("s where s.restart_lsn is null", "a");
    check("where restart_lsn is not null and active", "barman");
    check("where not active", "c");
    check("where active = false", "c");
    check("where active = 'on' and temporary != true", "a barman");
    check("where active_pid = 9", "barman");
    check("where active_pid <> 9", "a");
    check("where restart_lsn = '0/0A000000'", "barman");
    check("where slot_name = 'it''s'", "");
    check("order by active_pid", "barman a c");
    check("order by active_pid desc", "c a barman");
    check("as s order by active asc, restart_lsn desc", "c a barman");
}

#[test]
fn columns_are_picked_named_and_counted() {
    check("select count(*) from pg_stat_replication", "count\n1");
    check("select count(*) as n, 'x' from pg_replication_slots where active", "n|?column?\n2|x");
    check("select pid AS p, usename u, state from pg_stat_replication", "p|u|state\n9|barman|");
    check("select current_user, 7 as seven", "current_user|seven\nbarman|7");
    let all = shown("select * from pg_replication_slots", &KNOWN);
    let header = "slot_name|plugin|slot_type|datoid|database|temporary|active|active_pid|xmin|catalog_xmin|\
                  restart_lsn|confirmed_flush_lsn|wal_status|safe_wal_size|two_phase|inactive_since|conflicting|\
                  invalidation_reason|failover|synced";
    assert_eq!(all.lines().next(), Some(header), "as in version 17");
}

#[test]
fn settings_are_shown_and_set() {
    check("show TIME zone", "TimeZone\nUTC");
    assert!(shown("show all", &KNOWN).starts_with("name|setting|description\nTimeZone|UTC|\n"));
    check("set session application_name = 'a b'", "SET ApplicationName(\"a b\")");
    check("SET application_name TO DEFAULT", "SET ResetApplicationName");
    check("set local application_name to x", "SET");
    check("set datestyle to iso, mdy", "SET");
    check("reset application_name", "RESET ResetApplicationName");
    check("reset all", "RESET ResetApplicationName");
    check("reset statement_timeout", "RESET");
}

#[test]
fn transactions_are_pretended() {
    check("begin isolation level serializable, read only", "BEGIN");
    check("START TRANSACTION", "START TRANSACTION");
    check("commit", "COMMIT");
    check("end", "COMMIT");
    check("rollback", "ROLLBACK");
    check("discard all", "DISCARD ALL ResetApplicationName Deallocate(None) ClosePortals");
    check("discard temp", "DISCARD TEMP");
}

/// As a server says it, statement by statement: the tag or SQLSTATE, and the state.
#[test]
fn transactions_have_their_states() {
    let mut transaction = Transaction::default();
    for (text, expected) in [
        ("commit", "COMMIT 25P01 Idle"),
        ("savepoint a", "25P01 Idle"),
        ("begin", "BEGIN Transaction"),
        ("begin", "BEGIN 25001 Transaction"),
        ("discard all", "25001 Error"),
        ("select 1", "25P02 Error"),
        ("begin", "25P02 Error"),
        ("commit", "ROLLBACK Idle"),
        ("start transaction read only", "START TRANSACTION Transaction"),
        ("savepoint a; savepoint b", "SAVEPOINT Transaction"),
        ("select nope", "42703 Error"),
        ("release a", "25P02 Error"),
        ("rollback to savepoint a", "ROLLBACK Transaction"),
        ("rollback to b", "3B001 Error"),
        ("rollback to a", "ROLLBACK Transaction"),
        ("release savepoint a", "RELEASE Transaction"),
        ("release a", "3B001 Error"),
        ("rollback and chain", "ROLLBACK Transaction"),
        ("commit and no chain", "COMMIT Idle"),
        ("rollback and chain", "25P01 Idle"),
        ("begin isolation level read committed, read write", "0A000 Idle"),
        ("begin; set transaction read write", "0A000 Error"),
        ("abort; select 1; begin", "BEGIN Transaction"),
        ("rollback work", "ROLLBACK Idle"),
    ] {
        let said = match answer_in(&mut transaction, text.as_bytes(), &KNOWN) {
            Ok(answers) => match answers.into_iter().next_back() {
                Some(Answer::Done { tag, notice, .. }) => {
                    let notice = notice.map(|notice| format!(" {}", notice.sqlstate)).unwrap_or_default();
                    format!("{tag}{notice}")
                }
                other => format!("{other:?}"),
            },
            Err(error) => error.sqlstate.into_owned(),
        };
        assert_eq!(format!("{said} {:?}", transaction.status()), expected, "{text}");
    }
}

#[test]
fn what_drivers_send_by_themselves_is_answered() {
    check("SET extra_float_digits = 3", "SET");
    check("select pg_advisory_unlock_all()", "pg_advisory_unlock_all\n");
    check("close all", "CLOSE CURSOR ALL ClosePortals");
    check("unlisten *", "UNLISTEN");
    check("deallocate all", "DEALLOCATE ALL Deallocate(None)");
    check("deallocate prepare \"A\"", "DEALLOCATE Deallocate(Some(\"A\"))");
    check("select pg_catalog.set_config('search_path', '', false)", "set_config\n");
    check("select current_setting('wal_level')", "current_setting\nreplica");
    check("select current_database(), pg_backend_pid()", "current_database|pg_backend_pid\npostgres|4194310");
    check("select current_schema()", "current_schema\n");
    check("select not pg_is_in_recovery()", "?column?\nt");
    check("select 1::text, cast('7' as int), true::text as b", "text|int4|b\n1|7|true");
    check(
        "select active::text, restart_lsn::text from pg_replication_slots where slot_name = 'c'::name",
        "active|restart_lsn\nfalse|1/0",
    );
    assert_eq!(shown("select current_setting('no_such', true)", &OWN), "current_setting\n");
    fails("select current_setting('no_such', true)", &KNOWN, sqlstate::CANNOT_CONNECT_NOW);
    fails("select 'x'::int", &KNOWN, sqlstate::INVALID_TEXT_REPRESENTATION);
    fails("select $1", &KNOWN, sqlstate::UNDEFINED_PARAMETER);
    let Ok(answers) = answer(b"select set_config('application_name', 'new', false)", &KNOWN) else {
        panic!()
    };
    let [Answer::Rows { changes, .. }] = answers.as_slice() else { panic!("{answers:?}") };
    assert_eq!(changes.as_slice(), [Change::ApplicationName("new".to_owned())]);
}

/// Types and columns of a prepared statement, then the rows it gives for the values.
fn prepared(text: &str, types: &[u32], values: &[Option<&str>]) -> Result<String, PgError> {
    let mut transaction = Transaction::default();
    let prepared = Prepared::new(text.as_bytes(), types, &OWN, &transaction)?;
    let values: Vec<_> = values.iter().map(|value| value.map(str::to_owned)).collect();
    let columns = prepared.columns().map(|columns| {
        columns.iter().map(|field| format!("{}:{}", field.name, field.column_type.oid())).collect::<Vec<_>>()
    });
    let answer = match prepared.run(&values, &OWN, &mut transaction)? {
        Answer::Rows { rows, .. } => {
            let row = |row: Vec<Option<String>>| {
                row.into_iter()
                    .map(|value| value.unwrap_or_else(|| "NULL".to_owned()))
                    .collect::<Vec<_>>()
                    .join("|")
            };
            rows.into_iter().map(row).collect::<Vec<_>>().join(" ")
        }
        Answer::Done { tag, .. } => tag.to_owned(),
        Answer::Order(order) => order.tag().to_owned(),
        Answer::Empty => "empty".to_owned(),
    };
    Ok(format!("{:?} {:?} {answer}", prepared.types(), columns.unwrap_or_default()))
}

#[test]
fn prepared_statements_have_types_columns_and_values() {
    let slot = "select slot_name, active from pg_replication_slots where slot_name = $1";
    let columns = r#"["slot_name:19", "active:16"]"#;
    let check = |text: &str, types: &[u32], values: &[Option<&str>], expected: &str| {
        assert_eq!(prepared(text, types, values).as_deref(), Ok(expected), "{text}");
    };
    check(slot, &[], &[Some("barman")], &format!("[19] {columns} barman|t"));
    check(slot, &[1043], &[Some("c")], &format!("[1043] {columns} c|f"));
    check(slot, &[], &[None], &format!("[19] {columns} "));
    check(&format!("{slot}::text"), &[], &[Some("a")], &format!("[25] {columns} a|t"));
    let by_pid = "select slot_name from pg_replication_slots where active_pid = $2 and active = $1";
    check(by_pid, &[], &[Some("true"), Some("9")], r#"[16, 23] ["slot_name:19"] barman"#);
    check(
        "select $1::int4 as n, $2",
        &[0, 20],
        &[Some("7"), Some("8")],
        r#"[23, 20] ["n:23", "?column?:20"] 7|8"#,
    );
    check("select $1", &[], &[Some("x")], r#"[25] ["?column?:25"] x"#);
    check("show wal_level", &[], &[], r#"[] ["wal_level:25"] replica"#);
    check(
        "select setting from pg_settings where name = $1",
        &[],
        &[Some("wal_level")],
        r#"[25] ["setting:25"] replica"#,
    );
    check("select current_setting($1)", &[], &[Some("wal_level")], r#"[25] ["current_setting:25"] replica"#);
    check("begin", &[], &[], "[] [] BEGIN");
    check(" -- ping", &[], &[], "[] [] empty");
    let fails = |text: &str, types: &[u32], values: &[Option<&str>], sqlstate: &str| {
        let error = prepared(text, types, values).expect_err(text);
        assert_eq!(error.sqlstate, sqlstate, "{text}: {error}");
    };
    fails("select 1; select 2", &[], &[], sqlstate::SYNTAX_ERROR);
    fails("select $2", &[], &[], sqlstate::INDETERMINATE_DATATYPE);
    fails("select $0", &[], &[], sqlstate::UNDEFINED_PARAMETER);
    fails("select $99999999999999999999", &[], &[], sqlstate::UNDEFINED_PARAMETER);
    fails(by_pid, &[], &[Some("true"), Some("nine")], sqlstate::INVALID_TEXT_REPRESENTATION);
    fails(slot, &[23], &[Some("1")], sqlstate::UNDEFINED_FUNCTION);
    fails("select pid::inet from pg_stat_replication", &[], &[], sqlstate::CANNOT_COERCE);
    fails("select $1::int4", &[600], &[Some("x")], sqlstate::FEATURE_NOT_SUPPORTED);
    fails("create table t ()", &[], &[], sqlstate::FEATURE_NOT_SUPPORTED);
}

#[test]
fn what_is_not_known_is_the_upstreams() {
    for text in [
        "insert into t values (1)",
        "checkpoint",
        "show",
        "show a b",
        "U&\"x\"",
        "(",
        "select lead(pid) over () from pg_stat_replication",
        "select array_agg(pid) from pg_stat_replication",
        "select now() at time zone 'UTC'",
        "with recursive r as (select 1) select * from r",
        "select * from information_schema.tables",
        "select '1'::json",
    ] {
        fails(text, &KNOWN, sqlstate::CANNOT_CONNECT_NOW);
        fails(text, &OWN, sqlstate::FEATURE_NOT_SUPPORTED);
    }
    for (text, sqlstate) in [
        ("select * from pg_class", sqlstate::UNDEFINED_TABLE),
        ("select slot_name from other.pg_replication_slots", sqlstate::UNDEFINED_TABLE),
        ("select pg_ls_waldir()", sqlstate::UNDEFINED_FUNCTION),
        ("select other.lower('A')", sqlstate::INVALID_SCHEMA_NAME),
        ("select 1 from", sqlstate::SYNTAX_ERROR),
        ("select 1 +", sqlstate::SYNTAX_ERROR),
    ] {
        fails(text, &KNOWN, sqlstate::CANNOT_CONNECT_NOW);
        fails(text, &OWN, sqlstate);
    }
    fails("select * from pg_settings", &KNOWN, sqlstate::CANNOT_CONNECT_NOW);
    fails("select * from pg_stat_activity", &KNOWN, sqlstate::CANNOT_CONNECT_NOW);
    fails("show no_such", &KNOWN, sqlstate::CANNOT_CONNECT_NOW);
    fails("show no_such", &OWN, sqlstate::UNDEFINED_OBJECT);
    fails("select setting from pg_settings where name = 'no_such'", &KNOWN, sqlstate::CANNOT_CONNECT_NOW);
    fails(
        "select setting from pg_settings where name = 'wal_keep_size'",
        &KNOWN,
        sqlstate::CANNOT_CONNECT_NOW,
    );
    assert_eq!(shown("select setting from pg_settings where name = 'no_such'", &OWN), "setting");
    let strange = Known { superuser: None, contact: false, ..OWN };
    for text in [
        "select version()",
        "select pg_is_in_recovery()",
        "select system_identifier from pg_control_system()",
        "select usesuper from pg_user where usename = current_user",
    ] {
        fails(text, &strange, sqlstate::CANNOT_CONNECT_NOW);
    }
    assert_eq!(shown("select count(*) from pg_replication_slots", &strange), "count\n3");
}

#[test]
fn mistakes_are_told_as_postgresql_tells_them() {
    fails("select nope from pg_replication_slots", &KNOWN, sqlstate::UNDEFINED_COLUMN);
    fails("select 1 from pg_replication_slots where nope is null", &KNOWN, sqlstate::UNDEFINED_COLUMN);
    fails("select nope", &KNOWN, sqlstate::UNDEFINED_COLUMN);
    fails("select *", &KNOWN, sqlstate::SYNTAX_ERROR);
    fails("select slot_name, count(*) from pg_replication_slots", &KNOWN, sqlstate::GROUPING_ERROR);
}

#[test]
fn values_have_the_types_of_the_views() {
    let answers =
        answer(b"select active, restart_lsn, slot_name, 1 from pg_replication_slots", &KNOWN).unwrap();
    let [Answer::Rows { columns, .. }] = answers.as_slice() else { panic!("one result") };
    let oids: Vec<_> = columns.iter().map(|field| field.column_type.oid()).collect();
    assert_eq!(oids, [16, 3220, 19, 23]);
}

proptest! {
    #[test]
    fn no_text_is_too_strange(text in prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..60),
        "(select|table|show|set|from|where|order by|pg_replication_slots|as|=|'a'|\\*|,|\\.|count\\(|\\)|is|not|null|active| )*"
            .prop_map(String::into_bytes),
    ]) {
        for facts in [&KNOWN, &OWN] {
            if let Ok(answers) = answer(&text, facts) {
                prop_assert!(!answers.is_empty());
            }
        }
    }
}

/// A text of SQL's words, a byte each; the rest stands for itself.
fn words(bytes: &[u8]) -> Vec<u8> {
    const WORDS: [&str; 96] = [
        "select ",
        "from ",
        "where ",
        "group by ",
        "order by ",
        "having ",
        "limit ",
        "offset ",
        "with a as (",
        "union ",
        "all ",
        "except ",
        "values ",
        "(",
        ")",
        ",",
        "*",
        ".",
        "=",
        "<",
        "||",
        "+",
        "-",
        "/",
        "%",
        "^",
        "::",
        "and ",
        "or ",
        "not ",
        "is ",
        "null ",
        "true ",
        "in ",
        "between ",
        "like ",
        "~",
        "case ",
        "when ",
        "then ",
        "else ",
        "end ",
        "exists ",
        "any ",
        "array[",
        "]",
        "distinct ",
        "on ",
        "join ",
        "left ",
        "full ",
        "using ",
        "natural ",
        "cross ",
        "as ",
        "a",
        "b",
        "pg_replication_slots ",
        "pg_stat_replication ",
        "pg_stat_activity ",
        "pg_settings ",
        "slot_name ",
        "active ",
        "pid ",
        "restart_lsn ",
        "backend_start ",
        "count(",
        "sum(",
        "max(",
        "string_agg(",
        "coalesce(",
        "substring(",
        "trim(",
        "extract(",
        "epoch ",
        "now()",
        "interval ",
        "int4 ",
        "numeric",
        "timestamptz ",
        "pg_lsn ",
        "inet ",
        "text ",
        "'1'",
        "'0/10'",
        "'2026-12-01'",
        "'1 day'",
        "'%a_'",
        "1",
        "0",
        "2.5",
        "1e9",
        "9223372036854775807",
        "$1",
        "filter (where ",
        "cast(",
    ];
    let word = |byte: &u8| match WORDS.get(usize::from(*byte)) {
        Some(word) => word.as_bytes().to_vec(),
        None => vec![*byte],
    };
    bytes.iter().flat_map(word).collect()
}

#[test]
fn fuzz_console() {
    bolero::check!().with_type::<Vec<u8>>().for_each(|text| {
        let select = [b"select slot_name from pg_replication_slots where ".as_slice(), text].concat();
        let of_words = [b"select ".as_slice(), &words(text)].concat();
        for text in [text, &select, &words(text), &of_words] {
            // Whatever it is, it is an answer or an error.
            let answered = answer(text, &OWN);
            assert!(answered.map_or_else(|error| !error.message.is_empty(), |all| !all.is_empty()));
            let prepared = Prepared::new(text, &[], &OWN, &Transaction::default());
            assert!(prepared.map_or_else(|error| error.sqlstate != "XX000", |_| true));
        }
    });
}

/// A text of so many bytes, as many times `piece` as fit, between two others.
fn long(before: &str, piece: &str, after: &str) -> String {
    format!("{before}{}{after}", piece.repeat((1 << 20) / piece.len()))
}

/// What comes of a text as a simple query and prepared: "ok", or the SQLSTATE.
fn both_ways(text: &str) -> [String; 2] {
    let said = |error: PgError| error.sqlstate.into_owned();
    let simple = answer(text.as_bytes(), &OWN).map_or_else(said, |_| "ok".to_owned());
    let prepared = Prepared::new(text.as_bytes(), &[], &OWN, &Transaction::default());
    [simple, prepared.map_or_else(said, |_| "ok".to_owned())]
}

#[test]
fn nothing_is_too_deep() {
    check(&format!("select {} true", "not ".repeat(MOST_NOTS)), "?column?\nt");
    for text in [
        long("select ", "not ", "true"),
        long("select ", "NOT ", ""),
        long("select ", "cast(", "1"),
        long("select ", "CAST(NOT ", ""),
        long("select not not ", "cast ( ", ""),
        format!("select {}true{}", "cast(".repeat(60_000), " as bool)".repeat(60_000)),
    ] {
        assert_eq!(both_ways(&text), ["54001", "54001"], "{}", &text[..40]);
    }
    for text in [
        long("select ", "(", "1"),
        long("select ", "1 + (", ""),
        long("select * from pg_replication_slots where ", "not ", "active"),
        long("select * from pg_replication_slots where ", "(", "active"),
        long("select current_setting(", "current_setting(", ""),
        long("select 1 ", "/*", ""),
        long("", "((", ""),
        long("show ", "show ", ""),
        long("set x = ", "(", ""),
    ] {
        let came = both_ways(&text);
        assert!(came.iter().all(|came| came != "XX000"), "{}: {came:?}", &text[..40]);
    }
    assert_eq!(both_ways(&long("select true", "::bool", "")), ["ok", "ok"]);
    assert_eq!(both_ways(&long("select 1 ", "/* */", "")), ["ok", "ok"]);
}

/// Fifty levels, of which the constant is one.
const MOST_NOTS: usize = 50;

#[test]
fn a_list_has_as_many_entries_as_in_postgresql() {
    let columns = |count: usize| format!("select {}", vec!["1"; count].join(","));
    assert_eq!(both_ways(&columns(1664)), ["ok", "ok"]);
    let too_many = ["54011", "54011"];
    assert_eq!(both_ways(&columns(1665)), too_many);
    assert_eq!(both_ways(&long("select 1", ",1", "")), too_many);
    assert_eq!(both_ways(&long("select *", ",*", " from pg_stat_replication")), too_many);
    // Fewer items than that, but more columns.
    let stars = format!("select {} from pg_stat_replication", vec!["*"; 200].join(","));
    assert_eq!(both_ways(&stars), too_many);
    let error = answer(stars.as_bytes(), &OWN).unwrap_err();
    assert_eq!(error.message, "target lists can have at most 1664 entries");
}

#[test]
fn a_column_sorts_once() {
    let text = "select slot_name from pg_replication_slots order by slot_type, slot_name desc, slot_name";
    check(text, "slot_name\nc\nbarman\na");
    let text = long("select 1 as n from pg_replication_slots order by slot_name", ", slot_name", "");
    assert_eq!(both_ways(&text), ["ok", "ok"]);
}

#[test]
fn names_of_savepoints_are_cut() {
    let mut transaction = Transaction::default();
    let long = "é".repeat(1000);
    let tag = |transaction: &mut Transaction, text: &str| {
        answer_in(transaction, text.as_bytes(), &OWN).map(drop).map_err(|error| error.sqlstate.into_owned())
    };
    assert_eq!(tag(&mut transaction, &format!("begin; savepoint {long}")), Ok(()));
    assert_eq!(tag(&mut transaction, &format!("rollback to {}", "é".repeat(31))), Ok(()));
    assert_eq!(tag(&mut transaction, &format!("release {long}")), Ok(()));
    assert_eq!(tag(&mut transaction, &format!("release {long}")), Err("3B001".to_owned()));
}

/// What stands once in the text comes with every row.
#[test]
fn a_result_has_its_limit() {
    let text =
        |megabytes: usize| format!("select '{}' from pg_replication_slots", "x".repeat(megabytes << 20));
    assert!(answer(text(5).as_bytes(), &KNOWN).is_ok());
    let error = answer(text(6).as_bytes(), &KNOWN).expect_err("there are three rows");
    assert_eq!((&*error.sqlstate, error.message.as_str()), ("54000", "the result has more than 16 MB"));
}

#[test]
fn reports_are_shown_to_whoever_may_monitor() {
    assert_eq!(shown("SHOW VERSION", &OWN), format!("version\nwalrelay {}", env!("CARGO_PKG_VERSION")));
    let help = shown("SHOW HELP", &OWN);
    for report in report::REPORTS {
        let name = report.name;
        assert!(help.contains(&format!("SHOW {}", name.to_ascii_uppercase())), "{name}");
        shown(&format!("show {name}"), &OWN);
        let refused =
            answer(format!("show {name}").as_bytes(), &Known { superuser: None, ..OWN }).unwrap_err();
        assert_eq!(&*refused.sqlstate, sqlstate::INSUFFICIENT_PRIVILEGE, "{name}");
        // There it is a setting of the upstream's, which has none of that name.
        let unknown = answer(format!("show {name}").as_bytes(), &KNOWN).unwrap_err();
        assert_eq!(&*unknown.sqlstate, sqlstate::CANNOT_CONNECT_NOW, "{name}");
    }
    let consumers = shown("SHOW CONSUMERS", &OWN);
    assert!(consumers.contains("\n9|standby|barman|10.0.0.1|startup||0/300000|"), "{consumers}");
    let status = shown("SHOW STATUS", &OWN);
    let json = status.strip_prefix("status\n").unwrap();
    assert_eq!(serde_json::from_str::<Status>(json).unwrap().consumers[0].pid, 9);
}

#[test]
fn orders_are_the_own_databases() {
    assert!(shown("SHOW HELP", &OWN).contains("\nDROP SLOT name|"));
    let mut transaction = Transaction::default();
    let order = answer_in(&mut transaction, b"drop slot a", &OWN).unwrap();
    assert_eq!(order, [Answer::Order(Order::DropSlot("a".to_owned()))]);
    let error = answer_in(&mut transaction, b"begin; shutdown", &OWN).unwrap_err();
    assert_eq!(&*error.sqlstate, sqlstate::ACTIVE_SQL_TRANSACTION);
    let failed = answer_in(&mut transaction, b"reload", &OWN).unwrap_err();
    assert_eq!(&*failed.sqlstate, sqlstate::IN_FAILED_SQL_TRANSACTION);
    // In the place of an upstream they are nothing, as there.
    let unknown = answer(b"shutdown", &KNOWN).unwrap_err();
    assert_eq!(&*unknown.sqlstate, sqlstate::CANNOT_CONNECT_NOW);
}

#[test]
fn the_receiver_and_the_archiver_have_views() {
    let receiver = shown("select status, slot_name, conninfo from pg_stat_wal_receiver", &OWN);
    assert_eq!(receiver, "status|slot_name|conninfo\nconnecting|walrelay|host=primary");
    let stranger = Known { superuser: None, ..OWN };
    let hidden = shown("select status, conninfo from pg_stat_wal_receiver", &stranger);
    assert_eq!(hidden, "status|conninfo\n|");
    let archiver = shown("select archived_count, last_archived_wal from pg_stat_archiver", &OWN);
    assert_eq!(archiver, "archived_count|last_archived_wal\n0|");
    answer(b"select * from pg_stat_archiver", &KNOWN).expect_err("it is the upstream's");
}
