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
    check("((table pg_stat_replication) limit 1);", "((WITH SENDERS table pg_stat_replication) limit 1);");
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
    check(
        r#"select 1 from U&"pg_catalog".U&"pg_replication_slots""#,
        r#"WITH SLOTS select 1 from U&"pg_replication_slots""#,
    );
    untouched(r#"select 1 from U&"PG_replication_slots""#);
    check(
        r#"select 1 from U&"pg\005fcatalog".U&"pg\005freplic\+000061tion_slots""#,
        r#"WITH SLOTS select 1 from U&"pg\005freplic\+000061tion_slots""#,
    );
    check(
        r#"table U&"pg_!0072eplication_slots" /* c */ UESCAPE '!'"#,
        r#"WITH SLOTS table U&"pg_!0072eplication_slots" /* c */ UESCAPE '!'"#,
    );
    for no in [
        r"pg\\005freplication_slots",
        r"pg\05freplication_slots",
        r"pg_replication_slots\",
        r"pg_replication_slots\0061",
    ] {
        untouched(&format!(r#"select 1 from U&"{no}""#));
    }
    // Told where it cannot be read with certainty, and nothing of what is none of ours.
    let uncertain = SqlContext { standard_conforming_strings: None, ..SqlContext::default() };
    let notice = |text: &str| judged(text, &uncertain, PERMITTED).1.is_some();
    assert!(notice(r#"table U&"pg\005freplic\0061tion_slots""#));
    assert!(!notice(r#"table U&"d\0061ta""#));
    untouched(r#"table U&"pg_!0072eplication_slots""#);
    untouched(r#"table U&"pg_!0072eplication_slots" uescape 'a'"#);
    let text = rewritten(r#"table "a b" /* c */ .pg_catalog.pg_stat_replication"#);
    let judged = r#"EXISTS (SELECT 1 FROM "a b" /* c */ .pg_catalog.pg_stat_replication)"#;
    assert!(text.contains(judged), "the server says whether that is the current database: {text}");
    assert_eq!(rewritten("table pg_catalog.pg_stat_replication").matches("EXISTS").count(), 0);
    // Labels have no schema: what is one is left to the server, which says so.
    for value in [
        "1", "'x'", "$1", "a.b", "\"a\"", "U&\"a\"", "(a)", "a[1]", "1 as a", "1 as", "null", "true", "zone",
        "a.key", "a.from", "value", "rows",
    ] {
        untouched(&format!("select {value} pg_catalog.pg_stat_replication from a"));
    }
    for before in [
        "select a,",
        "select not",
        "select a <>",
        "select a and",
        "select distinct on (a)",
        "select a from a order by",
    ] {
        let text = rewritten(&format!(
            "{before} pg_catalog.pg_stat_replication.pid from pg_catalog.pg_stat_replication"
        ));
        assert!(
            text.ends_with(&format!("{before} pg_stat_replication.pid from pg_stat_replication")),
            "{text}"
        );
    }
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
    untouched("create materialized view v as select 1 from pg_stat_replication");
    untouched("prepare p as select 1 from pg_stat_replication");
    untouched("copy pg_stat_replication to stdout");
    untouched("create function f() begin atomic select 1; select 2 from pg_replication_slots; end");
    untouched("create rule r as on insert to t do also (select 1; select 2 from pg_stat_replication)");
}

#[test]
fn queries_inside_of_other_statements_are_found() {
    check(
        "insert into t select 1 from pg_replication_slots",
        "WITH SLOTS insert into t select 1 from pg_replication_slots",
    );
    check(
        "create temp table t (a, b) with (fillfactor = 10) as with w as (table x) table pg_replication_slots",
        "create temp table t (a, b) with (fillfactor = 10) as with SLOTS, w as (table x) table pg_replication_slots",
    );
    check(
        "declare c no scroll cursor with hold for select 1 from pg_stat_replication",
        "declare c no scroll cursor with hold for WITH SENDERS select 1 from pg_stat_replication",
    );
    check(
        "copy (select 1 from pg_stat_replication) to stdout with csv",
        "copy (WITH SENDERS select 1 from pg_stat_replication) to stdout with csv",
    );
    check(
        "(with w as (table pg_replication_slots) table w) order by 1",
        "(with SLOTS, w as (table pg_replication_slots) table w) order by 1",
    );
}

#[test]
fn the_client_is_told_when_the_rows_are_not_the_relays() {
    let told = |text: &str| judged(text, &SqlContext::default(), PERMITTED).1.map(|notice| notice.message);
    for text in [
        "explain table pg_stat_replication",
        "prepare p as table pg_replication_slots",
        "do $$ begin perform 1 from pg_replication_slots; end $$",
        "create or replace function f() returns bigint language sql as 'select count(*) from pg_stat_replication'",
    ] {
        assert!(told(text).is_some_and(|notice| notice.contains("are the upstream server's")), "{text}");
    }
    for text in [
        "grant select on pg_stat_replication to a",
        "select 'pg_stat_replication'",
        "create temp table pg_stat_replication (i int)",
        "create unlogged table if not exists pg_replication_slots as select 1 i",
        "table pg_replication_slots",
        "do $$ begin raise notice 'pg_replication_slots'; end $$",
    ] {
        assert_eq!(told(text), None, "{text}");
    }
    let pipelined =
        SqlContext { standard_conforming_strings: None, ascii_safe: false, ..SqlContext::default() };
    for (text, is_certain) in [
        ("select 'a' from pg_stat_replication", true),
        ("select '\\' from pg_stat_replication", false),
        ("select 'ä' from pg_stat_replication", false),
    ] {
        let (forwarded, notice, _) = judged(text, &pipelined, PERMITTED);
        assert_eq!((forwarded != text, notice.is_none()), (is_certain, is_certain), "{text}");
    }
}

#[test]
fn names_without_a_schema_are_guarded() {
    assert!(rewritten("table pg_stat_replication").contains("to_regclass('pg_stat_replication')"));
    assert!(!rewritten("table pg_catalog.pg_stat_replication").contains("to_regclass"));
}

#[test]
fn long_texts_take_their_time_and_no_more() {
    // Quadratic, each of these took seconds.
    for piece in
        ["pg_replication_slots(", "pg_drop_replication_slot(", "$a$", "'a' -- \n", "/*", "(", "E'\\'"]
    {
        let text = format!("select pg_replication_slots {}", piece.repeat((1 << 20) / piece.len()));
        let session = SqlContext { standard_conforming_strings: None, ..SqlContext::default() };
        rewritten_in(&text, &session);
    }
    // Each statement gets the rows, up to a limit.
    let (text, asked) = rewritten_in(&"table pg_replication_slots;".repeat(30_000), &SqlContext::default());
    assert!(text.len() < 34 << 20, "{}", text.len());
    assert_eq!(asked, ["slots"]);
    let many = "table pg_replication_slots;".repeat(1 << 20);
    assert!(rewritten_in(&many, &SqlContext::default()).0.contains("ERRCODE = '54000'"));
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
    let escaping = SqlContext { standard_conforming_strings: Some(false), ..conforming };
    assert_ne!(rewritten_in(text, &conforming).0, text);
    assert_eq!(rewritten_in(text, &escaping).0, text);
    let hidden = SqlContext { overlay: false, ..conforming };
    assert_eq!(rewritten_in(text, &hidden).0, text);
}

#[test]
fn prepared_statements_get_their_rows_as_a_parameter() {
    let parse = |types| SqlContext { message: Message::Parse { types }, ..SqlContext::default() };
    let mut relay = Fake::default();
    let mut rewritten = |text: &str, types| rewrite(text.as_bytes(), &parse(types), &mut relay);
    let question =
        "select active from pg_catalog.pg_replication_slots where slot_name OPERATOR(pg_catalog.=) $1";
    let result = rewritten(question, 0);
    let text = String::from_utf8(result.text.unwrap()).unwrap();
    assert!(
        text.contains(
            "($2::pg_catalog.text::pg_catalog.jsonb OPERATOR(pg_catalog.->) 'pg_replication_slots')"
        ),
        "{text}"
    );
    assert!(
        text.ends_with(" select active from pg_replication_slots where slot_name OPERATOR(pg_catalog.=) $1")
    );
    let declared = String::from_utf8(rewritten(question, 7).text.unwrap()).unwrap();
    assert!(declared.contains("($8::"), "{declared}");
    let copied = rewritten("copy (table pg_replication_slots) to stdout", 0);
    assert!(copied.text.is_none() && copied.notice.is_some());
    let both = rewritten("select 1 from pg_replication_slots, pg_stat_replication where $65534", 0);
    assert_eq!(relay.asked, [""; 0], "rows are those of the execution");
    let value = both.rows.unwrap().value(&mut relay);
    let value: serde_json::Value = serde_json::from_slice(&value).unwrap();
    assert_eq!(value["pg_stat_replication"][0]["pid"], "7");
    assert_eq!(value["pg_replication_slots"][0]["slot_name"], "mine");
}

/// A label has no schema; without it, what is wrong would become right.
#[test]
fn a_label_with_a_schema_is_left_to_the_server() {
    for text in [
        "select $a$;$a$pg_catalog.pg_stat_replication",
        "select 1 pg_catalog.pg_replication_slots",
        "select $1 pg_catalog.pg_replication_slots",
        "select count(*)pg_catalog.pg_replication_slots",
    ] {
        assert_eq!(rewritten(text), text);
    }
    let column =
        "select distinct on (pid) pg_catalog.pg_stat_replication.pid from pg_catalog.pg_stat_replication";
    assert!(
        rewritten(column)
            .ends_with("select distinct on (pid) pg_stat_replication.pid from pg_stat_replication")
    );
}
