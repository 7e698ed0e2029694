//! Statements that read the views.

use super::*;

/// The two expressions are long: here they are `SLOTS` and `SENDERS`.
fn abbreviated(text: &str) -> String {
    let mut text = rewritten(text);
    for (start, short) in [
        ("pg_replication_slots AS (SELECT * FROM", "SLOTS"),
        ("pg_stat_replication AS (SELECT r.*", "SENDERS"),
    ] {
        let Some(at) = text.find(start) else { continue };
        let mut depth = 0;
        let end = text[at..].bytes().position(|byte| {
            depth += i32::from(byte == b'(') - i32::from(byte == b')');
            byte == b')' && depth == 0
        });
        text.replace_range(at..=at + end.unwrap(), short);
    }
    text
}

#[track_caller]
fn check(text: &str, expected: &str) {
    assert_eq!(abbreviated(text), expected, "{text}");
}

#[track_caller]
fn untouched(text: &str) {
    check(text, text);
    assert_eq!(rewritten_in(text, &SqlContext::default()).1, [""; 0], "{text}: rows are made when needed");
}

#[test]
fn expressions_come_first() {
    check("select * from pg_replication_slots", "WITH SLOTS select * from pg_replication_slots");
    check("TABLE pg_stat_replication;", "WITH SENDERS TABLE pg_stat_replication;");
    check(
        "values ((select 1 from pg_stat_replication))",
        "WITH SENDERS values ((select 1 from pg_stat_replication))",
    );
    check(
        "(select 1 from pg_stat_replication) union (table x)",
        "WITH SENDERS (select 1 from pg_stat_replication) union (table x)",
    );
    check(
        " /* a */ select 1 from pg_stat_replication r, pg_replication_slots",
        " /* a */ WITH SLOTS, SENDERS select 1 from pg_stat_replication r, pg_replication_slots",
    );
}

#[test]
fn qualifiers_go() {
    check(
        r#"select pg_catalog.pg_stat_replication.pid from "pg_catalog" . /* c */ PG_Stat_Replication"#,
        "WITH SENDERS select pg_stat_replication.pid from PG_Stat_Replication",
    );
    check(
        r#"table postgres.pg_catalog."pg_replication_slots""#,
        r#"WITH SLOTS table "pg_replication_slots""#,
    );
    untouched("select 1 from mine.pg_stat_replication");
    untouched("select 1 from a.b.pg_stat_replication");
    untouched("select 1 from a.b.pg_catalog.pg_stat_replication");
    untouched(r#"select 1 from "Pg_catalog".pg_stat_replication"#);
    untouched("select (x).pg_stat_replication from x");
}

#[test]
fn other_names_are_no_business_of_ours() {
    untouched("select 1 from pg_stat_replication_slots");
    untouched("select 1 from my_pg_stat_replication");
    untouched(r#"select 1 from "PG_STAT_REPLICATION""#);
    untouched("select 'pg_stat_replication'::regclass, $$pg_replication_slots$$");
    untouched("select 1 /* pg_stat_replication */ -- pg_replication_slots");
    untouched("select replication from pg_stat");
}

#[test]
fn other_statements_are_not_touched() {
    untouched("explain select 1 from pg_stat_replication");
    untouched("create view v as select 1 from pg_stat_replication");
    untouched("insert into t select 1 from pg_replication_slots");
    untouched("create function f() begin atomic select 1; select 2 from pg_replication_slots; end");
    untouched("create rule r as on insert to t do also (select 1; select 2 from pg_stat_replication)");
}

#[test]
fn expressions_are_merged_into_those_that_are_there() {
    check(
        "WITH slots AS (SELECT * FROM pg_replication_slots) SELECT 1 FROM slots",
        "WITH SLOTS, slots AS (SELECT * FROM pg_replication_slots) SELECT 1 FROM slots",
    );
    check(
        "with recursive a as (select 1) select 1 from pg_catalog.pg_stat_replication",
        "with recursive SENDERS, a as (select 1) select 1 from pg_stat_replication",
    );
    check(
        "with recursive as (select 1) table pg_stat_replication",
        "with SENDERS, recursive as (select 1) table pg_stat_replication",
    );
    check(
        "with recursive(a) as (select 1) table pg_stat_replication",
        "with SENDERS, recursive(a) as (select 1) table pg_stat_replication",
    );
}

#[test]
fn a_statements_own_expression_of_that_name_counts() {
    untouched("with pg_stat_replication as (select 1) table pg_stat_replication");
    untouched(
        "select 1 from (with a as (table b), pg_stat_replication (x, y) as not materialized (select 1) table a) c",
    );
    check(
        "with pg_stat_replication as (select 1) select 1 from pg_stat_replication, pg_catalog.pg_replication_slots",
        "with SLOTS, pg_stat_replication as (select 1) select 1 from pg_stat_replication, pg_replication_slots",
    );
}

#[test]
fn each_statement_is_treated_on_its_own() {
    check(
        "begin ;select 1 from pg_stat_replication ; -- c\n; table pg_catalog.pg_replication_slots; commit",
        "begin ;WITH SENDERS select 1 from pg_stat_replication ; -- c\n; WITH SLOTS table pg_replication_slots; commit",
    );
}

#[test]
fn rows_are_safe_in_every_text() {
    let text = rewritten("table pg_stat_replication");
    assert!(text.is_ascii());
    let json =
        r#"$j$[{"application_name":"o'\u0024j\u0024\u00e4\\\"\ud83d\ude00","pid":"7"}]$j$::pg_catalog.jsonb"#;
    assert!(text.contains(json), "{text}");
    let latin = SqlContext { server_encoding_utf8: false, ..SqlContext::default() };
    let text = rewritten_in("table pg_stat_replication", &latin).0;
    assert!(text.contains(r#""o'\u0024j\u0024?\\\"?""#), "{text}");
}

#[test]
fn settings_decide_what_a_string_is() {
    let text = r"select '\' from pg_stat_replication --'";
    let conforming = SqlContext::default();
    let escaping = SqlContext { standard_conforming_strings: false, ..conforming };
    assert_ne!(rewritten_in(text, &conforming).0, text);
    assert_eq!(rewritten_in(text, &escaping).0, text);
    let hidden = SqlContext { overlay: false, ..conforming };
    assert_eq!(rewritten_in(text, &hidden).0, text);
}

#[test]
fn prepared_statements_are_rewritten_too() {
    let parse = SqlContext { simple_query: false, ..SqlContext::default() };
    let text = "select active from pg_catalog.pg_replication_slots where slot_name OPERATOR(pg_catalog.=) $1";
    let (text, asked) = rewritten_in(text, &parse);
    assert!(
        text.ends_with(" select active from pg_replication_slots where slot_name OPERATOR(pg_catalog.=) $1")
    );
    assert_eq!(asked, ["slots"]);
}
