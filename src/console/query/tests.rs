//! Known answers, feature by feature. A server's own are compared with in `tests/pg/select.rs`.

use super::super::tests::{KNOWN, OWN, answer, shown};
use crate::wire::PgError;

/// The rows, a value beside the other, a line each; NULL is `~`.
fn rows(text: &str) -> String {
    let answers = answer(text.as_bytes(), &OWN).unwrap_or_else(|error| panic!("{text}: {error}"));
    let Some(crate::console::Answer::Rows { rows, .. }) = answers.into_iter().next_back() else {
        panic!("{text}")
    };
    let line = |row: Vec<Option<String>>| {
        row.into_iter().map(|value| value.unwrap_or_else(|| "~".to_owned())).collect::<Vec<_>>().join("|")
    };
    rows.into_iter().map(line).collect::<Vec<_>>().join(" ")
}

#[track_caller]
fn check(text: &str, expected: &str) {
    assert_eq!(rows(text), expected, "{text}");
}

fn error(text: &str) -> PgError {
    answer(text.as_bytes(), &OWN).expect_err(text)
}

#[track_caller]
fn fails(text: &str, sqlstate: &str, message: &str) {
    let error = error(text);
    assert_eq!((&*error.sqlstate, error.message.as_str()), (sqlstate, message), "{text}");
}

#[test]
fn operators_bind_as_in_postgresql() {
    check("select 1 + 2 * 3, (1 + 2) * 3, 2 - 3 - 4, -2 ^ 2, 7 / 2, -7 % 3", "7|9|-5|4|3|-1");
    check("select not true or true, true or false and false, not 1 = 2", "t|t|t");
    check("select 1 = 1 is true, 1 + 1 between 1 and 2 and true, 'a' || 'b' like 'a%'", "t|t|t");
    check("select 1=-1, 2*-3, 5 - -3, 1.5e3, .5, 1e-2, 1.", "f|-6|8|1500|0.5|0.01|1");
    check("select 1 where 1 in (1, 2) and 3 not in (1, 2) and null is null", "1");
    check("select 'a'\n'b'", "ab");
    check("select E'a\\tb', U&'\\0041', $$x$$, 'it''s'", "a\tb|A|x|it's");
}

#[test]
fn values_have_types() {
    check(
        "select 2147483647::int8 + 1, 10 / 4.0, 0.1::float8 + 0.2, 1::numeric / 3",
        "2147483648|2.5000000000000000|0.30000000000000004|0.33333333333333333333",
    );
    check(
        "select '1/0'::pg_lsn - '0/0', pg_lsn '0/A' + 6, pg_wal_lsn_diff('0/10', '0/20')",
        "4294967296|0/10|-16",
    );
    check(
        "select interval '1 day 02:00' * 2, '2026-12-01'::timestamptz + '36 hours', interval '90 min' / 2",
        "2 days 04:00:00|2026-12-02 12:00:00+00|00:45:00",
    );
    check(
        "select extract(epoch from interval '1 min 1.5 s'), date_part('hour', timestamptz '2026-12-01 10:20+00')",
        "61.500000|10",
    );
    check(
        "select cast('7' as int), '7'::text::int8, true::text, true::int, 3.7::int, text(5), 12.345::numeric(4,1)",
        "7|7|true|1|4|5|12.3",
    );
    check(
        "select '10.0.0.1'::inet, '10.0.0.1'::inet::text, host('10.0.0.1'), '10.1.2.3/8'::inet",
        "10.0.0.1|10.0.0.1/32|10.0.0.1|10.1.2.3/8",
    );
    fails("select 2147483647 + 1", "22003", "integer out of range");
    fails("select 1 / 0", "22012", "division by zero");
    fails("select 1 + 'x'", "22P02", "invalid input syntax for type integer: \"x\"");
    fails("select 1 = 'a'::text", "42883", "operator does not exist: integer = text");
    fails(
        "select now() + now()",
        "42883",
        "operator does not exist: timestamp with time zone + timestamp with time zone",
    );
    fails(
        "select case when true then 1 else 'a'::text end",
        "42804",
        "CASE types integer and text cannot be matched",
    );
    fails("select 1 where 5", "42804", "argument of WHERE must be type boolean, not type integer");
    fails("select '2026-13-01'::timestamptz", "22008", "date/time field value out of range: \"2026-13-01\"");
}

#[test]
fn null_is_not_known() {
    check(
        "select null = null, null and false, null or true, not null, null is distinct from null",
        "~|f|t|~|f",
    );
    check("select 1 in (null, 1), 1 in (null, 2), 1 not in (null, 2), null in (1)", "t|~|~|~");
    check("select coalesce(null, 2), nullif(1, 1), greatest(1, null, 3), least(null, 2.5, 7)", "2|~|3|2.5");
    check("select case null when null then 1 else 2 end, case when null then 1 end", "2|~");
    check("select concat('a', null, 1, true), 'a' || null, concat_ws('-', 'a', null, 'b')", "a1t|~|a-b");
}

#[test]
fn texts_are_handled() {
    check(
        "select lower('AbC'), upper('é'), length('äb'), substring('abcdef', 2, 3), substring('abc' from 2)",
        "abc|É|2|bcd|bc",
    );
    check(
        "select replace('aXbX', 'X', '--'), split_part('a,b,c', ',', 2), split_part('a,b,c', ',', -1), left('abc', -1), right('abc', 2)",
        "a--b--|b|c|ab|bc",
    );
    check(
        "select trim('  a '), trim(both 'x' from 'xax'), ltrim('xa', 'x'), lpad('7', 3, '0'), repeat('ab', 2), position('c' in 'abc')",
        "a|a|a|007|abab|3",
    );
    check(
        "select 'abc' like 'a_c', 'abc' like '%z', 'a%' like 'a\\%', 'ABC' ilike 'a%', 'abc' !~ '^b', 'ABC' ~* 'b'",
        "t|f|t|t|t|t",
    );
    check(
        "select substring('host=h1 port=5' from 'host=([^ ]*)'), regexp_replace('a1b2', '[0-9]', '#', 'g')",
        "h1|a#b#",
    );
    fails("select 'a' like 'a\\'", "22025", "LIKE pattern must not end with escape character");
    assert_eq!(error("select 'a' ~ '('").sqlstate, "2201B");
}

const T: &str = "(values (1, 'a', true), (2, 'b', false), (3, null, null)) as t(n, s, b)";
const U: &str = "(values (2, 'x'), (3, 'y'), (4, 'z')) as u(n, v)";

#[test]
fn tables_are_joined() {
    let join = |how: &str| format!("select t.n, u.v from {T} {how}");
    check(&join(&format!("join {U} on t.n = u.n")), "2|x 3|y");
    check(&join(&format!("left join {U} on t.n = u.n order by 1")), "1|~ 2|x 3|y");
    check(&join(&format!("right join {U} on t.n = u.n order by 2")), "2|x 3|y ~|z");
    check(&join(&format!("full join {U} on t.n = u.n order by 1, 2")), "1|~ 2|x 3|y ~|z");
    check(&join(&format!(", {U} where t.n = u.n and u.v <> 'x'")), "3|y");
    check(&join(&format!("cross join {U} where t.n + u.n = 4")), "1|y 2|x");
    check(
        &format!("select * from {T} full join {U} using (n) order by n"),
        "1|a|t|~ 2|b|f|x 3|~|~|y 4|~|~|z",
    );
    check(&format!("select n, v from {T} natural left join {U} order by n desc nulls last"), "3|y 2|x 1|~");
    fails(&format!("select n from {T} join {U} on true"), "42702", "column reference \"n\" is ambiguous");
    fails(&format!("select 1 from {T}, {T}"), "42712", "table name \"t\" specified more than once");
    fails(&format!("select x.n from {T}"), "42P01", "missing FROM-clause entry for table \"x\"");
}

#[test]
fn rows_are_grouped_sorted_and_cut() {
    check(
        &format!(
            "select count(*), count(s), sum(n), avg(n), min(s), max(n), bool_and(b), bool_or(b), string_agg(s, ',' order by s desc) from {T}"
        ),
        "3|2|6|2.0000000000000000|a|3|f|t|b,a",
    );
    check(&format!("select b, count(*) from {T} group by b order by b nulls first"), "~|1 f|1 t|1");
    check(&format!("select n % 2 as odd, sum(n) from {T} group by odd having sum(n) > 2 order by 2"), "1|4");
    check(
        &format!(
            "select n % 2, count(*) filter (where n > 1), count(distinct b) from {T} group by 1 order by 1"
        ),
        "0|1|1 1|1|1",
    );
    check(&format!("select count(*), sum(n) from {T} where false"), "0|~");
    check(&format!("select s from {T} group by s having false"), "");
    check(&format!("select n from {T} order by -n limit 2 offset 1"), "2 1");
    check(&format!("select distinct b is null from {T} order by 1"), "f t");
    check(&format!("select distinct on (b is null) n from {T} order by b is null, n desc"), "2 3");
    fails(
        &format!("select n, count(*) from {T}"),
        "42803",
        "column \"t.n\" must appear in the GROUP BY clause or be used in an aggregate function",
    );
    fails(
        &format!("select n from {T} where count(*) > 1"),
        "42803",
        "aggregate functions are not allowed in WHERE",
    );
    fails(&format!("select sum(count(*)) from {T}"), "42803", "aggregate function calls cannot be nested");
    fails(&format!("select n from {T} order by 2"), "42P10", "ORDER BY position 2 is not in select list");
    fails(&format!("select n from {T} limit -1"), "2201W", "LIMIT must not be negative");
}

#[test]
fn queries_are_in_queries() {
    // What reads rows from around it is made anew for each, however many queries lie between.
    check(
        "select (with c as (select v.x y) select (select max(y) from c)) from (values (1), (2)) v(x)",
        "1 2",
    );
    let through = "select (with c as (select v.x y), d as (select y + 1 z from c) \
                   select 10 * (select (select sum(z) from d) from (values (1)) w)) from (values (1), (2)) v(x)";
    check(through, "20 30");
    check(
        "select (with c as (select 7 y) select (select max(y) from c) + v.x) from (values (1), (2)) v(x)",
        "8 9",
    );
    check(&format!("select n, (select v from {U} where u.n = t.n) from {T} order by n"), "1|~ 2|x 3|y");
    check(&format!("select n from {T} where exists (select 1 from {U} where u.n = t.n) order by n"), "2 3");
    check(&format!("select n from {T} where n in (select n from {U}) and n > all (select 2)"), "3");
    check(&format!("select n from {T} where n not in (select u.n from {U} where u.n = t.n)"), "1");
    check(&format!("select max(m) from (select n * 2 as m from {T}) as d where m < 6"), "4");
    check(
        &format!(
            "with a as (select n from {T}), b(m) as (select n + 10 from a) select m from b join a on m = n + 10 order by m desc"
        ),
        "13 12 11",
    );
    check("select 1 union select 1 union all select 2 order by 1", "1 2");
    check("select 1 except select 2 union all select 3 intersect select 3", "1 3");
    check("(select 2 order by 1) union all (values (1), (3)) order by 1 desc", "3 2 1");
    check(
        "select 'a' = any (array['a', 'b']), 3 > all (array[1, 2]), c like any (array['x', 'a%']) from (select 'ab' as c) x",
        "t|t|t",
    );
    fails(
        "select (select 1 union all select 2)",
        "21000",
        "more than one row returned by a subquery used as an expression",
    );
    fails("select (select 1, 2)", "42601", "subquery must return only one column");
    fails("select 1 union select 1, 2", "42601", "each UNION query must have the same number of columns");
    fails("select 1 union select 'a'::text", "42804", "UNION types integer and text cannot be matched");
}

#[test]
fn columns_are_called_as_in_postgresql() {
    let names = |text: &str| shown(text, &OWN).lines().next().unwrap_or_default().to_owned();
    assert_eq!(
        names("select 1, '1'::int, lower('A'), coalesce(1), case when true then 1 end, now()"),
        "?column?|int4|lower|coalesce|case|now"
    );
    assert_eq!(
        names(
            "select exists (select 1), (select 2 as x), -1, cast(lower('a') as name), trim('a'), current_user"
        ),
        "exists|x|?column?|lower|btrim|current_user"
    );
    assert_eq!(
        names(
            "select extract(epoch from now()), substring('a' from 1), position('a' in 'b'), greatest(1, 2)"
        ),
        "extract|substring|position|greatest"
    );
    assert_eq!(names("select a.* from (values (1, 2)) a(x)"), "x|column2");
    assert_eq!(names("select * from pg_postmaster_start_time() as start"), "start");
}

#[test]
fn mistakes_are_told_with_what_was_meant() {
    let error_of = |text: &str| {
        let error = error(text);
        (error.message, error.hint.unwrap_or_default())
    };
    let (message, hint) = error_of("select slot_nam from pg_replication_slots");
    assert_eq!(message, "column \"slot_nam\" does not exist");
    assert_eq!(hint, "Perhaps you meant to reference the column \"pg_replication_slots.slot_name\".");
    let (message, _) = error_of("select * from pg_class");
    assert_eq!(message, "relation \"pg_class\" does not exist");
    let (message, hint) = error_of("select lower(1)");
    assert!(
        message == "function lower(integer) does not exist" && hint.contains("explicit type casts"),
        "{hint}"
    );
    for (text, near) in [
        ("select 1 from", "at end of input"),
        ("select 1 ) x", "at or near \")\""),
        ("select a b c", "at or near \"c\""),
    ] {
        assert_eq!(error(text).message, format!("syntax error {near}"));
    }
}

#[test]
fn the_views_know_the_same_numbers() {
    check(
        "select a.pid, a.backend_type, r.usename, s.slot_name, l.ssl from pg_stat_activity a left join pg_stat_replication r using (pid) left join pg_replication_slots s on s.active_pid = a.pid join pg_stat_ssl l on l.pid = a.pid order by 1",
        "9|walsender|barman|barman|t 4194310|client backend|~|~|f",
    );
    check(
        "select count(*) from pg_stat_activity a join pg_stat_wal_receiver w on w.pid = a.pid where a.backend_type = 'walreceiver'",
        "1",
    );
    check(
        "select d.datname, count(a.pid) from pg_database d left join pg_stat_activity a on a.datid = d.oid group by 1",
        "postgres|1",
    );
    check(
        "select name, setting, vartype, context from pg_settings where name in ('slot', 'wal_keep_size', 'wal_segment_size') order by 1",
        "slot|walrelay|string|postmaster wal_keep_size|64|integer|internal wal_segment_size|16777216|integer|internal",
    );
    check(
        "select pg_is_in_recovery(), pg_last_wal_receive_lsn() - '0/0', pg_last_wal_replay_lsn(), pg_postmaster_start_time()",
        "f|4294967312|~|2026-12-01 10:00:00+00",
    );
    check("select pg_conf_load_time() - pg_postmaster_start_time()", "00:30:00");
    fails("select pg_current_wal_insert_lsn()", "55000", "recovery is in progress");
    check(
        "select pg_current_wal_flush_lsn() = pg_last_wal_receive_lsn(), pg_current_wal_lsn() > pg_current_wal_flush_lsn(), pg_database_size(current_database())",
        "t|t|0",
    );
    fails("select pg_database_size('other')", "3D000", "database \"other\" does not exist");
    let replaced = answer(b"select pg_current_wal_lsn()", &KNOWN).expect_err("it is no primary");
    assert_eq!(replaced.message, "recovery is in progress");
    check(
        "select datid, datname, numbackends, deadlocks, checksum_failures from pg_stat_database order by 1",
        "0|~|0|0|~ 16384|postgres|1|0|~",
    );
    check("select count(*), sum(confl_lock) from pg_stat_database_conflicts", "1|0");
    check("select buffers_clean, stats_reset = pg_postmaster_start_time() from pg_stat_bgwriter", "0|t");
    check("select count(*) from pg_locks where database is not null", "0");
    assert!(shown("select pid, now() - backend_start from pg_stat_replication", &KNOWN).contains('9'));
}

#[test]
fn nothing_takes_for_ever() {
    let many = "select 1 from pg_settings a, pg_settings b, pg_settings c, pg_settings d, pg_settings e, pg_settings f, pg_settings g, pg_settings h, pg_settings i where a.name || i.name = 'x'";
    assert_eq!(error(many).sqlstate, "54000");
    assert_eq!(error("select repeat('x', 100000000)").sqlstate, "54000");
    // Each level would bind the one below twice if it were asked for its type alone.
    let levels = |open: &str, close: &str| format!("select {}'t'{}", open.repeat(25), close.repeat(25));
    check(&levels("'t' in (", ")"), "t");
    check(&levels("case 't' when ", " then 't' end"), "t");
    // A text for each of many groups.
    let groups = "with c as (select repeat('x', 1000000) t) select a.name, b.name, string_agg(c.t, '') \
                  from c, pg_settings a, pg_settings b group by 1, 2";
    assert_eq!(error(groups).message, "the query takes more than 64 MB of memory");
    // What is kept for each of many groups.
    let sums = (0..1000).map(|n| format!("sum({n})")).collect::<Vec<_>>().join(",");
    let groups = format!(
        "select {sums} from pg_settings a, pg_settings b, pg_settings c, pg_settings d group by a.name, b.name, c.name, d.name"
    );
    assert_eq!(error(&groups).message, "the query takes more than 64 MB of memory");
    // Long texts that differ at their end, compared in pairs, sorted, and told apart.
    let long = "with c as (select repeat('x', 900000) || a.name || b.name as t from pg_settings a, pg_settings b limit 60) ";
    for rest in [
        "select count(*) from c a, c b where a.t < b.t",
        "select count(*) from c a, c b where a.t is distinct from b.t",
        "select count(distinct a.t) from c a, c b",
        "select max(a.t) from c a, c b",
        "select count(*) from c a, c b group by b.t",
    ] {
        assert_eq!(error(&format!("{long}{rest}")).sqlstate, "54000", "{rest}");
    }
    for clause in ["group by", "order by"] {
        let keys = (0..1700).map(|n| format!("length(name) + {n}")).collect::<Vec<_>>().join(",");
        let list = if clause == "group by" { "1" } else { "name" };
        let error = error(&format!("select {list} from pg_settings {clause} {keys}"));
        assert_eq!(error.message, "target lists can have at most 1664 entries", "{clause}");
    }
    let pattern = format!("select 'a' ~ repeat('a?', {})", 1 << 14);
    assert_eq!(error(&pattern).message, "a regular expression has more than 10000 bytes");
    assert_eq!(error("select lpad('x', 2000000000, 'yz')").sqlstate, "54000");
    let crossed = format!(
        "with a as (select * from pg_settings cross join (values {}) v(x)) select * from a x full join a y on true",
        vec!["(repeat('x', 500))"; 500].join(",")
    );
    assert_eq!(error(&crossed).sqlstate, "54000");
    let like = format!("select '{}' like '{}'", "a".repeat(200_000), "%a".repeat(20_000) + "b");
    assert!(
        ["54000", "54001"].contains(
            &&*answer(like.as_bytes(), &OWN)
                .map_or_else(|error| error.sqlstate.into_owned(), |_| "54000".to_owned())
        )
    );
    assert_eq!(error(&format!("select {}", vec!["1"; 60_000].join("+"))).sqlstate, "54001");
    assert_eq!(error(&format!("select 1 where {}", vec!["true"; 60_000].join(" and "))).sqlstate, "54001");
    assert_eq!(error(&format!("select {}", vec!["1"; 140].join("||'x'||"))).sqlstate, "54001");
    check(&format!("select length({})", vec!["'x'"; 100].join("||")), "100");
    assert_eq!(
        error(&format!(
            "select 1 from {}",
            (0..60).map(|n| format!("pg_user u{n}")).collect::<Vec<_>>().join(" cross join ")
        ))
        .sqlstate,
        "54001"
    );
    let nested = |times: usize| format!("select {}1{}", "(select ".repeat(times), ")".repeat(times));
    check(&nested(20), "1");
    assert_eq!(error(&nested(40)).sqlstate, "54001");
}
