//! Functions on slots.

use super::*;

#[track_caller]
fn check(text: &str, expected: &str, asked: &[&str]) {
    let (text_of_upstream, requests) = rewritten_in(text, &SqlContext::default());
    assert_eq!(
        (text_of_upstream.as_str(), requests),
        (expected, asked.iter().map(|&a| a.to_owned()).collect())
    );
}

const CREATED: &str = "(SELECT ROW(E'a'::pg_catalog.name, NULL::pg_catalog.pg_lsn) AS \
                       pg_create_physical_replication_slot)";

#[test]
fn in_a_select_list_the_result_is_a_subquery() {
    let created = "select pg_create_physical_replication_slot('a')";
    check(created, &format!("select {CREATED}"), &["create a false false"]);
    check(
        "select PG_catalog.pg_create_physical_replication_slot('a'::text, 'on', temporary => TRUE) as x;",
        "select (SELECT ROW(E'a'::pg_catalog.name, '0/3000000'::pg_catalog.pg_lsn) AS \
         pg_create_physical_replication_slot) as x;",
        &["create a true true"],
    );
    check(
        "SELECT pg_drop_replication_slot('mine')",
        "SELECT (SELECT ''::pg_catalog.void AS pg_drop_replication_slot)",
        &["drop mine"],
    );
    check(
        "SELECT pg_copy_physical_replication_slot('mine', dst_slot_name := E'b'::pg_catalog.name, temporary => 'f')",
        "SELECT (SELECT ROW(E'b'::pg_catalog.name, NULL::pg_catalog.pg_lsn) AS pg_copy_physical_replication_slot)",
        &["copy mine b Some(false)"],
    );
    check(
        "SELECT pg_replication_slot_advance('mine', '0/30000d8')",
        "SELECT (SELECT ROW(E'mine'::pg_catalog.name, '0/30000D8'::pg_catalog.pg_lsn) AS pg_replication_slot_advance)",
        &["advance mine 0/30000D8"],
    );
}

#[test]
fn columns_can_be_picked() {
    check(
        "select (pg_create_physical_replication_slot('a', true)).lsn l",
        "select (SELECT '0/3000000'::pg_catalog.pg_lsn AS lsn) l",
        &["create a true false"],
    );
    check(
        "select (pg_copy_physical_replication_slot('mine', 'a')).*",
        "select (SELECT E'a'::pg_catalog.name AS slot_name), (SELECT NULL::pg_catalog.pg_lsn AS lsn)",
        &["copy mine a None"],
    );
}

#[test]
fn in_from_the_result_is_a_table() {
    let table = "(SELECT E'a'::pg_catalog.name AS slot_name, NULL::pg_catalog.pg_lsn AS lsn)";
    let asked = ["create a false false"];
    let call = "pg_catalog.pg_create_physical_replication_slot($$a$$, FALSE)";
    check(
        &format!("SELECT * FROM {call};"),
        &format!("SELECT * FROM {table} AS pg_create_physical_replication_slot;"),
        &asked,
    );
    check(
        &format!("SELECT lsn, slot_name FROM {call} AS t"),
        &format!("SELECT lsn, slot_name FROM {table} AS t"),
        &asked,
    );
    check(
        "SELECT * FROM pg_drop_replication_slot('mine')",
        "SELECT * FROM (SELECT ''::pg_catalog.void AS pg_drop_replication_slot) AS pg_drop_replication_slot",
        &["drop mine"],
    );
}

#[test]
fn a_failure_is_raised_upstream() {
    check(
        "select pg_create_physical_replication_slot('mine')",
        "DO $raise$ BEGIN RAISE EXCEPTION USING \
         MESSAGE = E'replication slot \"mine\" already exists', ERRCODE = '42710', \
         HINT = E'It''s \\x24there\\x24.'; END $raise$",
        &[],
    );
    let text = rewritten("select pg_replication_slot_advance('mine', 'no''where')");
    assert!(
        text.contains("E'invalid input syntax for type pg_lsn: \"no''where\"', ERRCODE = '22P02'"),
        "{text}"
    );
}

#[test]
fn the_upstream_is_asked_first() {
    let mut relay = Fake::default();
    let text = "select pg_drop_replication_slot('mine')";
    let call = rewrite(text.as_bytes(), &SqlContext::default(), &mut relay).call.unwrap();
    let question = String::from_utf8(call.question()).unwrap();
    assert!(question.ends_with(&format!(";\nEXPLAIN\n{text}")), "{question}");
    assert_eq!(relay.asked, [""; 0]);
    let none = [""; 0];
    let act = |row| {
        let (text, _, relay) = judged(text, &SqlContext::default(), row);
        (text, relay.asked)
    };
    // Another function may be meant.
    let (text, asked) = act(["t", "t", "t", "f"]);
    assert!(text.starts_with("DO ") && text.contains("Write pg_catalog.pg_drop_replication_slot"), "{text}");
    assert_eq!(asked, none);
    for row in [["f", "f", "t", "f"], ["f", "t", "f", "f"], ["f", "", "", "f"]] {
        let expected = "select pg_drop_replication_slot(E'no slot, but may this be called?')".to_owned();
        assert_eq!(act(row), (expected, vec![]), "the upstream says why not");
    }
    let (text, asked) = act(["f", "t", "t", "t"]);
    assert!(text.contains("exists here and, as a logical one, upstream"), "{text}");
    assert_eq!(asked, none);
    let create = judged(
        "select pg_create_physical_replication_slot('new')",
        &SqlContext::default(),
        ["f", "t", "t", "t"],
    );
    assert!(create.0.contains("replication slot \"new\" already exists") && create.2.asked.is_empty());
}

#[track_caller]
fn refused_in(text: &str, why: &str, session: &SqlContext) {
    let (forwarded, asked) = rewritten_in(text, session);
    assert!(
        forwarded.starts_with("DO $raise$") && forwarded.contains("ERRCODE = '0A000'"),
        "{text}: {forwarded}"
    );
    assert!(
        forwarded.contains(why) && forwarded.contains("HINT = E'Send it alone as a simple query"),
        "{forwarded}"
    );
    assert_eq!(asked, [""; 0], "{text}");
}

#[test]
fn arguments_have_to_be_constants() {
    let refused = |text| refused_in(text, "unless its arguments are constants", &SqlContext::default());
    refused("select pg_create_physical_replication_slot(lower('A'))");
    refused("select pg_create_physical_replication_slot('a' || 'b')");
    refused("select pg_create_physical_replication_slot(null)");
    refused(r"select pg_create_physical_replication_slot(U&'a\00')");
    refused("select pg_create_physical_replication_slot('a', 1)");
    refused("select pg_create_physical_replication_slot('a', 'o')");
    refused("select pg_create_physical_replication_slot('a', true, true, true)");
    refused("select pg_create_physical_replication_slot('a', slot_name => 'b')");
    refused("select pg_create_physical_replication_slot('a', other => 'b')");
    refused("select pg_create_physical_replication_slot('a'::regclass)");
    refused("select pg_create_physical_replication_slot('a',)");
    refused("select pg_create_physical_replication_slot()");
    refused("select pg_create_physical_replication_slot('a'");
    refused(r#"select U&"pg_create_physical_replication_slot"(null)"#);
    refused(r#"select U&"pg_create_physical_repl!0069cation_slot" uescape '!' (null)"#);
    refused("select pg_copy_physical_replication_slot('mine')");
    refused("select pg_drop_replication_slot(slot_name) from pg_replication_slots");
    refused("select pg_replication_slot_advance('mine', pg_current_wal_lsn())");
    refused("select pg_replication_slot_advance('mine', true)");
}

#[test]
fn what_could_skip_or_repeat_a_call_is_refused() {
    let refused = |text| {
        refused_in(
            text,
            "except as the only item of a plain SELECT list or FROM list",
            &SqlContext::default(),
        )
    };
    refused("select pg_drop_replication_slot('mine') where false");
    refused("select pg_drop_replication_slot('mine') from generate_series(1, 2)");
    refused("select pg_drop_replication_slot('mine'), 1/0");
    refused("select pg_drop_replication_slot('mine')::text");
    refused("select * from generate_series(1, 2), pg_drop_replication_slot('mine')");
    refused("select * from pg_drop_replication_slot('mine') limit 0");
    refused("select * from pg_drop_replication_slot('mine') t where false");
    refused("select * from pg_drop_replication_slot('mine') with ordinality");
    refused("select 1/0 from pg_drop_replication_slot('mine')");
    refused("select case when false then pg_drop_replication_slot('mine') end");
    refused("select coalesce(null, pg_drop_replication_slot('mine')::text)");
    refused("select * from (select pg_drop_replication_slot('mine')) t");
    refused("with t as (select pg_drop_replication_slot('mine')) select 1");
    refused("select 1 union select pg_create_physical_replication_slot('a')::text");
    refused("select pg_create_physical_replication_slot('a') is null or true");
    refused("select pg_create_physical_replication_slot('a') order by 1");
    refused("select (pg_create_physical_replication_slot('a')).other");
    refused("select (pg_drop_replication_slot('mine')).*");
    refused("explain analyze select pg_drop_replication_slot('mine')");
    refused("create table t as select pg_create_physical_replication_slot('a')");
    refused(
        "create function f() returns void begin atomic select 1; select pg_drop_replication_slot('mine'); end",
    );
    refused("insert into t select pg_create_physical_replication_slot('a')");
    refused("select 1 where exists (select pg_create_physical_replication_slot('a'))");
}

#[test]
fn what_is_not_alone_is_refused_and_has_no_effect() {
    let many = "together with other statements or calls";
    let (text, asked) =
        rewritten_in("select 1/0; select pg_drop_replication_slot('mine'); select 2", &SqlContext::default());
    assert!(
        text.starts_with("select 1/0; DO $raise$") && text.contains(many) && text.ends_with("$raise$"),
        "{text}"
    );
    assert_eq!(asked, [""; 0]);
    let simple = SqlContext::default();
    refused_in("select pg_create_physical_replication_slot('a'); select 1", many, &simple);
    refused_in(
        "select pg_create_physical_replication_slot('a'), pg_drop_replication_slot(lower('x'))",
        many,
        &simple,
    );
    refused_in(
        "do $$ begin perform pg_drop_replication_slot('mine'); end $$",
        "inside of a DO block",
        &simple,
    );
    refused_in(
        "do language plpgsql 'begin perform pg_drop_replication_slot(''x''); end'",
        "inside of a DO",
        &simple,
    );
    let (text, notice, _) = judged(
        "create function f() returns void language sql as 'select pg_drop_replication_slot(''mine'')'",
        &simple,
        PERMITTED,
    );
    assert!(text.starts_with("create function") && notice.unwrap().message.contains("will act on"));
}

/// However the code of a DO is written.
#[test]
fn code_in_any_string_is_read() {
    let conforming = SqlContext::default();
    let escaping = SqlContext { standard_conforming_strings: Some(false), ..conforming };
    let uncertain = SqlContext { standard_conforming_strings: None, settled: false, ..conforming };
    for (text, session) in [
        (r"do E'begin perform pg_drop_\162eplication_slot(\'mine\'); end'", &conforming),
        (r"do E'begin\n perform pg_drop\x5freplication_slot(\047mine\047);\nend'", &conforming),
        (r"do 'begin perform pg_drop_\u0072eplication_slot(\'mine\'); end'", &escaping),
        (r"do U&'begin perform pg_drop_\0072eplication_slot(''mine''); end'", &conforming),
        (r"do u&'begin perform pg_drop!005freplication_slot(''mine''); end' uescape '!'", &conforming),
        ("do 'begin perform pg_drop_replication' -- in two lines\n '_slot(''mine''); end'", &conforming),
        (
            r#"do $$ begin perform U&"pg_drop_!0072eplication_slot" uescape E'\041' ('mine'); end $$"#,
            &conforming,
        ),
        ("do 'begin raise notice ''\\''; perform pg_drop_replication_slot(''mine''); end'", &conforming),
        // The code has a backslash, and the text has none.
        (
            "do u&'begin raise notice ''!005c''; perform pg_drop_replication_slot(''x''); end' uescape '!'",
            &uncertain,
        ),
        // What is not ASCII need not be UTF-8.
        (r"do E'begin /* \344 */ perform pg_drop_replication_slot(\'mine\'); end'", &conforming),
        // It is put together.
        ("do $$ begin execute 'select pg_drop_replication_slot(''mine'')'; end $$", &conforming),
        ("do $$ begin execute format('select pg_drop_replication_slot(%L)', 'mine'); end $$", &conforming),
        (
            "do $$ begin execute 'select pg_drop_replication_slot(' || quote_literal(x) || ')'; end $$",
            &conforming,
        ),
        (r"do $$ begin execute e'select pg_drop\x5freplication_slot(\'mine\')'; end $$", &conforming),
    ] {
        let (forwarded, asked) = rewritten_in(text, session);
        assert!(
            forwarded.starts_with("DO $raise$") && forwarded.contains("inside of a DO block"),
            "{text}: {forwarded}"
        );
        assert_eq!(asked, [""; 0], "{text}");
    }
    for text in [
        "do $$ begin raise notice 'pg_drop_replication_slot(%)', 'mine'; end $$",
        r"do E'begin perform \'pg_drop_\162eplication_slot(1)\'; end'",
        "do $$ begin execute 'select 1' /* pg_drop_replication_slot('mine') */; end $$",
    ] {
        let (forwarded, asked) = rewritten_in(text, &conforming);
        assert_eq!((forwarded.as_str(), asked.len()), (text, 0));
    }
    let hidden =
        r"create procedure p() language plpgsql as E'begin\n perform pg_drop_replication_slot(\'x\'); end'";
    assert!(
        judged(hidden, &conforming, PERMITTED).1.is_some_and(|notice| notice.message.contains("will act on"))
    );
}

/// The name is what the server will see.
#[test]
fn names_in_any_string_are_read() {
    for name in [r"E'min\145'", r"U&'min\0065'", "U&'min!0065' uescape '!'", "'mi'\n'ne'", r"E'mine\0'"] {
        let (text, asked) = rewritten_in(
            &format!("select pg_create_logical_replication_slot({name}, 'x')"),
            &SqlContext::default(),
        );
        // The server refuses the last.
        assert_eq!(text.contains("42710"), name != r"E'mine\0'", "{text}");
        assert_eq!(asked, [""; 0]);
    }
    check(
        "SELECT pg_drop_replication_slot('mi'\n'ne')",
        "SELECT (SELECT ''::pg_catalog.void AS pg_drop_replication_slot)",
        &["drop mine"],
    );
    let text = rewritten(r"select pg_drop_replication_slot(U&'l\0066')");
    assert!(text.contains("OPERATOR(pg_catalog.=) E'lf'::pg_catalog.name") && !text.contains("U&"), "{text}");
}

#[test]
fn a_text_that_could_mean_something_else_is_not_executed() {
    let simple = SqlContext::default();
    let why = "in a text with characters beyond ASCII or with backslashes";
    refused_in("select pg_drop_replication_slot('mine') as \"ä\"", why, &simple);
    refused_in("select pg_drop_replication_slot('mine') /* \\ */", why, &simple);
    // Not certain: it passes.
    for (text, session) in [
        ("select 'ä', pg_drop_replication_slot('mine')", SqlContext { ascii_safe: false, ..simple }),
        (
            "select '\\', pg_drop_replication_slot('mine')",
            SqlContext { standard_conforming_strings: None, ..simple },
        ),
    ] {
        let (forwarded, notice, relay) = judged(text, &session, PERMITTED);
        assert_eq!((forwarded.as_str(), relay.asked.len()), (text, 0));
        assert!(notice.is_some());
    }
}

#[test]
fn sessions_where_nothing_is_executed() {
    let create = "select pg_create_physical_replication_slot('a')";
    let simple = SqlContext::default();
    let parse = SqlContext { message: Message::Parse { types: 0 }, ..simple };
    refused_in(create, "in a statement that is prepared", &parse);
    refused_in(
        create,
        "behind statements that have failed or have not been answered",
        &SqlContext { settled: false, ..simple },
    );
    let hidden = SqlContext { overlay: false, ..simple };
    refused_in(create, "because its slots are not shown here", &hidden);
    refused_in("select pg_drop_replication_slot('theirs')", "because", &hidden);
}

#[test]
fn what_has_parameters_fails_when_it_is_parsed() {
    let parse = SqlContext { message: Message::Parse { types: 0 }, ..SqlContext::default() };
    let (text, asked) = rewritten_in("select pg_drop_replication_slot($1)", &parse);
    assert!(text.starts_with("SELECT E'pg_drop_replication_slot() cannot be executed"), "{text}");
    assert!(text.ends_with("'::pg_catalog.pg_lsn"), "{text}");
    assert_eq!(asked, [""; 0]);
}

#[test]
fn names_of_others_pass_with_a_guard() {
    let guard = "(SELECT CASE WHEN EXISTS (SELECT 1 FROM pg_catalog.pg_replication_slots AS s \
                 WHERE s.slot_name OPERATOR(pg_catalog.=) E'lf'::pg_catalog.name \
                 AND s.slot_type OPERATOR(pg_catalog.<>) 'physical') \
                 THEN E'lf' ELSE E'lf (logical, of the upstream)' END::pg_catalog.name)";
    check(
        "select pg_drop_replication_slot('lf'::name)",
        &format!("select pg_drop_replication_slot({guard})"),
        &[],
    );
    check(
        "select pg_replication_slot_advance(upto_lsn => pg_current_wal_lsn(), slot_name => 'lf') where true",
        &format!(
            "select pg_replication_slot_advance(upto_lsn => pg_current_wal_lsn(), slot_name => {guard}) where true"
        ),
        &[],
    );
    // A relay below has put it there.
    let below = format!("select pg_drop_replication_slot({guard})");
    let (text, _, _) = judged(&below, &SqlContext::default(), PERMITTED);
    assert!(
        text.ends_with(&below.replace("pg_catalog.pg_replication_slots", "pg_replication_slots")),
        "{text}"
    );
    let long = "x".repeat(70);
    let text = rewritten(&format!("select pg_drop_replication_slot('{long}')"));
    let nobody = text.split("ELSE E'").nth(1).and_then(|rest| rest.split('\'').next()).unwrap();
    assert!(nobody.len() == 63 && nobody.ends_with("upstream)"), "{nobody}: fits into a name");
    assert!(text.contains(&format!("THEN E'{}'", "x".repeat(63))));
}

#[test]
fn what_calls_none_of_them_is_not_touched() {
    for text in [
        "select 'pg_drop_replication_slot(''mine'')'",
        "select mine.pg_drop_replication_slot('mine')",
        "select 1 as pg_drop_replication_slot",
        "select \"PG_DROP_replication_slot\"('mine')",
        "select pg_create_logical_replication_slot('new', 'pgoutput')",
        "select pg_copy_logical_replication_slot('mine', 'b')",
        "select pg_sync_replication_slots()",
        "grant execute on function pg_drop_replication_slot(name) to somebody",
        "explain select pg_drop_replication_slot('mine')",
        "create function pg_drop_replication_slot(text) returns int language sql as 'select 1'",
        "drop function pg_drop_replication_slot(text)",
    ] {
        check(text, text, &[]);
    }
}

/// What makes a logical slot of the name of a physical one fails as on one server.
#[test]
fn logical_slots_get_no_name_that_is_taken() {
    for text in [
        "select pg_create_logical_replication_slot('mine', 'pgoutput')",
        "SELECT * FROM pg_catalog.pg_create_logical_replication_slot(plugin => 'x', slot_name => 'mine'::name)",
        "select 1; select pg_copy_logical_replication_slot('l', 'mine')",
        "insert into t select pg_copy_logical_replication_slot('l', dst_slot_name := 'mine')",
    ] {
        let (passed, asked) = rewritten_in(text, &SqlContext::default());
        assert!(passed.contains("42710") && passed.contains("already exists"), "{text}: {passed}");
        assert!(!passed.contains("_logical_") && asked.is_empty(), "{text}: {passed} {asked:?}");
    }
    for text in [
        "select pg_create_logical_replication_slot('other', 'mine')",
        "select pg_copy_logical_replication_slot('mine', 'l')",
        "select other.pg_create_logical_replication_slot('mine', 'pgoutput')",
        "explain select pg_create_logical_replication_slot('mine', 'pgoutput')",
        "grant execute on function pg_create_logical_replication_slot(name) to x",
        "select pg_create_logical_replication_slot($1, 'pgoutput'), pg_create_logical_replication_slot('mine'",
    ] {
        let (passed, asked) = rewritten_in(text, &SqlContext::default());
        assert!(passed == text && asked.is_empty(), "{text}: {passed} {asked:?}");
    }
}
