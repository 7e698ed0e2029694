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
        "select 1, PG_catalog.pg_create_physical_replication_slot('a'::text, 'on', temporary => TRUE) as x;",
        "select 1, (SELECT ROW(E'a'::pg_catalog.name, '0/3000000'::pg_catalog.pg_lsn) AS \
         pg_create_physical_replication_slot) as x;",
        &["create a true true"],
    );
    check(
        "SELECT pg_drop_replication_slot(name 'mine')",
        "SELECT (SELECT ''::pg_catalog.void AS pg_drop_replication_slot)",
        &["drop mine"],
    );
    check(
        "SELECT pg_copy_physical_replication_slot('mine', dst_slot_name := E'b'::pg_catalog.name, temporary => 'f')::text",
        "SELECT (SELECT ROW(E'b'::pg_catalog.name, NULL::pg_catalog.pg_lsn) AS pg_copy_physical_replication_slot)::text",
        &["copy mine b Some(false)"],
    );
    check(
        "SELECT pg_replication_slot_advance('mine', '0/30000d8'), 2",
        "SELECT (SELECT ROW(E'mine'::pg_catalog.name, '0/30000D8'::pg_catalog.pg_lsn) AS pg_replication_slot_advance), 2",
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
        &format!("SELECT * FROM {call} ORDER BY 1"),
        &format!("SELECT * FROM {table} AS pg_create_physical_replication_slot ORDER BY 1"),
        &asked,
    );
    check(&format!("SELECT * FROM {call} AS t"), &format!("SELECT * FROM {table} AS t"), &asked);
    check(&format!("SELECT x FROM {call} t (x, y)"), &format!("SELECT x FROM {table} t (x, y)"), &asked);
    check(
        "SELECT * FROM pg_drop_replication_slot('mine') AS t",
        "SELECT * FROM (SELECT ''::pg_catalog.void AS t) AS t",
        &["drop mine"],
    );
    check(
        "SELECT * FROM pg_drop_replication_slot('mine'), pg_drop_replication_slot('mine') t(x)",
        "SELECT * FROM (SELECT ''::pg_catalog.void AS pg_drop_replication_slot) AS pg_drop_replication_slot, \
         (SELECT ''::pg_catalog.void AS pg_drop_replication_slot) t(x)",
        &["drop mine", "drop mine"],
    );
}

#[test]
fn a_failure_is_raised_upstream_behind_what_came_before() {
    check(
        "select 1; select pg_create_physical_replication_slot('mine'); select 2",
        "select 1; DO $raise$ BEGIN RAISE EXCEPTION USING \
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

#[track_caller]
fn refused_in(text: &str, why: &str, session: &SqlContext) {
    let (forwarded, asked) = rewritten_in(text, session);
    assert!(
        forwarded.starts_with("DO $raise$") && forwarded.contains("ERRCODE = '0A000'"),
        "{text}: {forwarded}"
    );
    assert!(
        forwarded.contains(why) && forwarded.contains("HINT = E'Send it as a simple query"),
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
    refused("select pg_create_physical_replication_slot(U&'a')");
    refused("select pg_create_physical_replication_slot('a', 1)");
    refused("select pg_create_physical_replication_slot('a', 'o')");
    refused("select pg_create_physical_replication_slot('a', true, true, true)");
    refused("select pg_create_physical_replication_slot('a', slot_name => 'b')");
    refused("select pg_create_physical_replication_slot('a', other => 'b')");
    refused("select pg_create_physical_replication_slot('a'::regclass)");
    refused("select pg_create_physical_replication_slot('a',)");
    refused("select pg_create_physical_replication_slot()");
    refused("select pg_create_physical_replication_slot('a'");
    refused("select pg_copy_physical_replication_slot('mine')");
    refused("select pg_drop_replication_slot(slot_name) from pg_replication_slots");
    refused("select pg_replication_slot_advance('mine', pg_current_wal_lsn())");
    refused("select pg_replication_slot_advance('mine', true)");
}

#[test]
fn what_could_skip_or_repeat_a_call_is_refused() {
    let refused = |text| {
        refused_in(text, "except as an item of a plain SELECT list or FROM list", &SqlContext::default())
    };
    refused("select pg_drop_replication_slot('mine') where false");
    refused("select pg_drop_replication_slot('mine') from generate_series(1, 2)");
    refused("select * from generate_series(1, 2), pg_drop_replication_slot('mine')");
    refused("select * from pg_drop_replication_slot('mine') limit 0");
    refused("select * from pg_drop_replication_slot('mine') t where false");
    refused("select * from pg_drop_replication_slot('mine') with ordinality");
    refused("select * from pg_drop_replication_slot('mine') order by 1 limit 0");
    refused("select case when false then pg_drop_replication_slot('mine') end");
    refused("select coalesce(null, pg_drop_replication_slot('mine')::text)");
    refused("select * from (select pg_drop_replication_slot('mine')) t");
    refused("with t as (select pg_drop_replication_slot('mine')) select 1");
    refused("select 1 union select pg_create_physical_replication_slot('a')::text");
    refused("select pg_create_physical_replication_slot('a') is null or true");
    refused("select pg_create_physical_replication_slot('a') order by 1");
    refused("select (pg_create_physical_replication_slot('a')).other");
    refused("select (pg_drop_replication_slot('mine')).*");
    refused("explain select pg_drop_replication_slot('mine')");
    refused("create table t as select pg_create_physical_replication_slot('a')");
    refused(
        "create function f() returns void begin atomic select 1; select pg_drop_replication_slot('mine'); end",
    );
    refused("insert into t select pg_create_physical_replication_slot('a')");
    refused("select 1 where exists (select pg_create_physical_replication_slot('a'))");
}

#[test]
fn sessions_where_nothing_is_executed() {
    let create = "select pg_create_physical_replication_slot('a')";
    let simple = SqlContext::default();
    refused_in(create, "in a statement that is prepared", &SqlContext { simple_query: false, ..simple });
    refused_in(
        create,
        "in a transaction that has failed",
        &SqlContext { transaction_failed: true, ..simple },
    );
    let hidden = SqlContext { overlay: false, ..simple };
    refused_in(create, "because its slots are not shown here", &hidden);
    refused_in("select pg_drop_replication_slot('theirs')", "because", &hidden);
}

#[test]
fn what_has_parameters_fails_when_it_is_parsed() {
    let parse = SqlContext { simple_query: false, ..SqlContext::default() };
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
        "select pg_create_logical_replication_slot('mine', 'pgoutput')",
        "select pg_copy_logical_replication_slot('mine', 'b')",
        "select pg_sync_replication_slots()",
        "grant execute on function pg_drop_replication_slot(name) to somebody",
    ] {
        check(text, text, &[]);
    }
}

#[test]
fn reading_and_calling_in_one_text() {
    let text =
        "select pg_create_physical_replication_slot('a'); select 1 from pg_catalog.pg_replication_slots";
    let (forwarded, asked) = rewritten_in(text, &SqlContext::default());
    assert!(
        forwarded.starts_with(&format!("select {CREATED}; WITH pg_replication_slots AS (")),
        "{forwarded}"
    );
    assert_eq!(asked, ["create a false false", "slots"]);
}
