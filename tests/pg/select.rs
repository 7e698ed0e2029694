//! SELECT in the relay's own database: what exporters and backup tools send, and the same answers as a server gives.

use std::fmt::Write as _;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use tokio_postgres::{Client, NoTls, SimpleQueryMessage};
use walrelay_testkit::{
    Cluster, Port, Process, Receivewal, Relay, Scratch, Server, on_all_versions, on_one_version, on_versions,
    tied_command, tools, wait_for,
};

use crate::relay_below;

on_one_version!(
    a_query_has_the_same_answer_as_on_a_server,
    exporters_find_what_they_ask_for,
    others_are_seen_as_far_as_the_role_may,
);
on_all_versions!(views_have_the_columns_of_the_servers);
// The exporter of Debian knows the versions up to 16.
on_versions!([pg15 = 15] an_exporter_has_no_error);

/// Rows like the relay's, as both sides read them: beside numbers of all kinds, NULLs and texts that sort alike everywhere.
const ROWS: &str = "with s(slot_name, active, pid, restart_lsn, size, since, note) as (values \
    ('archive'::name, true, 4194310, '0/3000028'::pg_lsn, 16777216::int8, timestamptz '2026-12-01 10:00:00+00', 'first'), \
    ('barman', false, null, '1/A0000000', null, '2026-11-30 23:59:59.5+00', null), \
    ('standby_1', true, 4194311, '0/3000060', -1, null, 'it''s'), \
    ('standby_2', true, 4194312, null, 9000000000, '2024-02-29 12:34:56.789+00', 'first')), \
    r(pid, name, state, sent_lsn, lag, addr) as (values \
    (4194310, 'pg_receivewal', 'streaming', '0/3000060'::pg_lsn, interval '00:00:00.25', '10.0.0.1'::inet), \
    (4194311, 'standby', 'catchup', '0/2000000', '1 day 02:00:00', '10.0.0.2'), \
    (4194399, 'stray', 'startup', null, null, null)) ";

const VALUES: [&str; 34] = [
    "slot_name",
    "active::text",
    "pid + 1",
    "pid / 7.0",
    "pid % 5",
    "-pid",
    "size / 1024",
    "size::numeric / 3",
    "size::float8 / 7",
    "round(size / 1000.0, 1)",
    "pg_size_pretty(size)",
    "restart_lsn - '0/0'",
    "pg_wal_lsn_diff(restart_lsn, '0/3000000')",
    "restart_lsn + 16",
    "since + interval '1 month 1 day'",
    "timestamptz '2027-01-01 00:00:00+00' - since",
    "extract(epoch from since)",
    "extract(epoch from timestamptz '2027-01-01 00:00:00+00' - since)",
    "date_part('minute', since)",
    "date_trunc('hour', since)",
    "upper(note) || '/' || slot_name",
    "substring(slot_name from '_([0-9]+)')",
    "split_part(slot_name, '_', 2)",
    "coalesce(note, slot_name::text, 'none')",
    "coalesce(size, 0)",
    "nullif(note, 'first')",
    "greatest(pid, 4194311, size)",
    "case when active then 'on' when pid is null then 'off' end",
    "case note when 'first' then 1 else 2.5 end",
    "concat(slot_name, '-', pid, active)",
    "left(slot_name, 3) = 'sta'",
    "length(note) between 3 and 4",
    "replace(slot_name, 'stand', 'St')",
    "lpad(pid::text, 10, '*')",
];

const CONDITIONS: [&str; 24] = [
    "true",
    "active",
    "not active",
    "pid is null or size > 0",
    "slot_name like 'standby%'",
    "slot_name not like '%\\_1'",
    "note ilike 'FIRST'",
    "slot_name ~ '_[12]$'",
    "pid in (4194310, 4194312, 7)",
    "pid not in (4194310, null)",
    "restart_lsn < '0/3000060'",
    "restart_lsn between '0/0' and '0/FFFFFFFF'",
    "since > '2026-01-01' and since <= '2026-12-01 10:00:00+00'",
    "size is distinct from -1",
    "note is not distinct from null",
    "(note = 'first') is not true",
    "exists (select from r where r.pid = s.pid)",
    "pid in (select pid from r)",
    "pid > all (select r.pid - 1 from r where state = 'streaming')",
    "size = (select max(size) from s)",
    "length(slot_name) % 2 = 0 and coalesce(size, 1) <> 0",
    "slot_name = any (array['barman', 'archive'])",
    "-size < 10 and size::text <> ''",
    "slot_name::text > 'b' or false",
];

/// Whole queries behind the rows.
const QUERIES: [&str; 71] = [
    "select * from s order by slot_name",
    "select s.*, r.state from s left join r on r.pid = s.pid order by slot_name",
    "select slot_name, r.* from s right join r using (pid) order by r.name",
    "select * from s full join r using (pid) order by 1, 2, name",
    "select pid, slot_name, state from s natural join r order by pid desc",
    "select s.slot_name, r.name from s, r where s.pid < r.pid order by 1, 2",
    "select s.slot_name, r.name from s cross join r order by 2, 1 limit 5 offset 3",
    "select a.slot_name, b.slot_name from s a join s b on a.size < b.size left join r on r.pid = b.pid order by 1, 2",
    "select count(*), count(pid), count(distinct note), sum(pid), sum(size), avg(pid), avg(size) from s",
    "select min(slot_name), max(since), min(restart_lsn), max(lag), min(addr) from s, r",
    "select note, count(*) n, sum(size) from s group by note order by n desc, note nulls first",
    "select active, note is null, count(*) filter (where size > 0) from s group by active, note is null order by 1, 2",
    "select string_agg(slot_name, ', ' order by slot_name desc) from s",
    "select string_agg(distinct note, ',') from s",
    "select bool_and(active), bool_or(active), every(pid is null) from s",
    "select sum(lag), avg(lag), max(lag) - min(lag) from r",
    "select size % 2 as odd, count(*) from s group by odd having count(*) > 0 order by odd",
    "select upper(note), max(size) from s group by upper(note) having max(size) > 0 order by 1",
    "select distinct note from s order by note",
    "select distinct on (note) note, slot_name from s order by note nulls first, slot_name desc",
    "select distinct active, pid is null from s order by 1, 2",
    "select pid from s union select pid from r order by pid",
    "select pid from s union all select pid from r order by pid nulls first",
    "select pid from s intersect select pid from r order by 1",
    "select pid from s except select pid from r order by 1",
    "select 1 as n union select 2.5 union select 3 order by n",
    "(select slot_name from s order by slot_name limit 1) union all (select name from r order by name desc limit 1)",
    "select d.n, d.c from (select note as n, count(*) as c from s group by 1) as d where c > 1",
    "select x.a, x.b from (select slot_name, size from s) as x(a, b) order by a",
    "select slot_name, (select state from r where r.pid = s.pid) from s order by 1",
    "select slot_name, (select count(*) from r where r.pid >= s.pid) as later from s order by later, slot_name",
    "select name from r where not exists (select 1 from s where s.pid = r.pid)",
    "select name from r where pid <> all (select pid from s where pid is not null)",
    "select * from (values (1, 'a'), (2, null)) as v(n, t) where t is null or n = 1 order by n desc",
    "select tmp.state, coalesce(c.n, 0) from (values ('streaming'), ('idle')) as tmp(state) left join (select state, count(*) as n from r group by state) c on c.state = tmp.state order by 1",
    "select state, max(extract(epoch from lag))::float as seconds from r group by state order by 1",
    "select slot_name from s order by size desc nulls last, slot_name",
    "select slot_name from s order by active, pid desc nulls first, 1",
    "select slot_name as size from s order by size",
    "select -size as x from s order by abs(size)",
    "select addr, host(addr), addr::text, addr < '10.0.0.2' from r order by name",
    "select lag * 2, lag / 2, -lag, lag + interval '1 hour', extract(day from lag) from r order by pid",
    "select 7 / 2, -7 / 2, 7 % -3, 7.0 / 2, 2 ^ 10, 1e3, .5, 5 - -3, 10 / 3.0, 1 / 3::float8",
    "select '12'::int + 1, '1.50'::numeric * 2, 2.5::int, 3.5::int, -2.5::numeric::int, 2.5::float8::int",
    "select true and null, false and null, true or null, not null::bool, null = 1, null is null",
    "select 'a' || 1, 1 || 'a', 'x' || true::text, concat_ws('-', 1, null, 'b')",
    "select round(2.5), round(-2.5), round(1234.567, -2), trunc(1.99, 1), ceil(-1.5), floor(-1.5), sign(-3.2), abs(-4)",
    "select 1 as one, 'x', null, lower('A'), coalesce(1, 2), case when true then 1 end, cast('1' as int), -1",
    "select greatest('2026-01-01'::timestamptz, '2026-06-01'), least(1, 2.5), nullif(1, 1.0)",
    "select interval '1 year 2 mons 3 days 04:05:06.7', interval '-1 day 02:00', interval '90 minutes', interval '1.5 days'",
    "select timestamptz '2026-12-01 10:20:30.5+02', timestamptz '2026-12-01' + interval '1 day', '2026-12-01 10:00'::timestamptz - interval '25:00'",
    "select extract(dow from t), extract(doy from t), extract(week from t), extract(isodow from t), extract(quarter from t), extract(year from t) from (values (timestamptz '2024-02-29 12:00+00'), ('2024-12-30'), ('2021-01-03'), ('2020-12-31')) as x(t)",
    "select trim('  a '), ltrim('xxa', 'x'), trim(trailing 'b' from 'abb'), position('c' in 'abc'), strpos('abc', 'z'), initcap('ab cd'), reverse('abc')",
    "select substring('abcdef', 2, 3), substring('abc', -1, 3), substr('abc', 2), left('abc', -1), right('abc', -1), right('abc', 2), repeat('ab', 2)",
    "select regexp_replace('a1b22', '[0-9]+', '#', 'g'), 'abc' ~* 'B', 'abc' !~ 'd', substring('host=h1 x' from 'host=([^ ]*)')",
    "select pg_size_pretty(10239::int8), pg_size_pretty(10240::int8), pg_size_pretty(-20971520::int8), pg_size_pretty(1e15)",
    "select pg_size_pretty(-170141183460469231731687303715884105727::numeric - 1)",
    "select split_part('a,b,,c', ',', n), split_part('a,b,,c', ',', -n), split_part('aaa', 'aa', n), split_part('aaa', 'aa', -n), split_part('ab', '', n), split_part('', ',', -n) from (values (1), (2), (3), (4), (5), (2147483647)) v(n)",
    "select slot_name, (with c as (select s.pid p) select (select max(p) from c)) from s order by 1",
    "select slot_name, (with c as (select s.pid p), d as (select p + 1 q from c) select (select min(q) from d where q > (select min(r.pid) from r)) from r limit 1) from s order by 1",
    "select slot_name, exists (with c as (select r.pid from r where r.pid = s.pid) select from s t where t.pid in (select pid from c)) from s order by 1",
    "select slot_name, (with c as (select max(pid) m from r) select (select m from c) - s.pid) from s order by 1",
    "select 1 between symmetric 3 and 0, 1 not between 2 and 3, 'b' in ('a', 'b'), 1 in (null, 2), 1 = any (array[1, 2])",
    "select 1.0::float8, 1e15::float8, 1e-5::float8, 123456789012345678::float8, 0.1::float8 + 0.2::float8, 'Infinity'::float8",
    "select 100::numeric(5, 2), 12.345::numeric(4, 1), ('abcdef'::varchar(3))::text, 12345::text, 'x'::name, 5::oid",
    "select count(*) from s where slot_name in (select slot_name from s where pid in (select pid from r where state like 's%'))",
    "select sum(n) from (select 1 as n union all select 2 union all select 3) t where n > (select 1)",
    "select 7::int2 + 2::smallint, 7::int2 + 2, 7::int2 / 2::int2, -7::int2 % 2::int2, abs((-3)::int2), +1::int2, 2::int2 * 1.5, 5::int2::oid",
    "select 2::int2 = 2, 2::int2 < 3.5, 2.5::int2, '12'::int2::text, 3::int2::float8, coalesce(1::int2, 2), greatest(1::int2, 2::int8), null::int2",
    "select sum(n), avg(n), min(n), max(n), count(distinct n) from (select 3::int2 as n union all select 4::int2 union all select null) t limit 1::int2",
    "select case 1 when 2 then 'a' when 1 then 'b' end, case when null then 1 else 0 end, case when 1 = 1 then null else 5 end",
];

/// What both refuse, with the same SQLSTATE.
const MISTAKES: [&str; 41] = [
    "select nope from s",
    "select s.nope from s",
    "select x.pid from s",
    "select pid from s, r",
    "select * from nowhere",
    "select * from s, s",
    "select 1 / 0",
    "select pid / 0 from s",
    "select 2147483647 + 1",
    "select 32767::int2 + 1::int2",
    "select 40000::int2",
    "select true::int2",
    "select 'x'::int",
    "select 'x'::pg_lsn",
    "select pid = note from s",
    "select pid || size from s",
    "select note + 1 from s",
    "select -note from s",
    "select nofunction(1)",
    "select lower(1, 2)",
    "select length(pid) from s",
    "select slot_name, count(*) from s",
    "select count(*) from s where count(*) > 1",
    "select sum(count(*)) from s",
    "select sum(note) from s",
    "select slot_name from s group by pid",
    "select slot_name from s order by 7",
    "select slot_name from s limit -1",
    "select slot_name from s where pid",
    "select case when true then 1 else note end from s",
    "select 1 union select note from s",
    "select 1 union select 1, 2",
    "select (select pid, size from s)",
    "select (select slot_name from s)",
    "select pid::inet from s",
    "select now() + now()",
    "select distinct slot_name from s order by pid",
    "select 1 from",
    "select ) from s",
    "select * from s join r using (nope)",
    "select '2026-13-01'::timestamptz",
];

async fn connect(conninfo: &str) -> Client {
    let (client, connection) = tokio_postgres::connect(conninfo, NoTls).await.expect("it may log in");
    tokio::spawn(connection);
    client
}

/// Names and types of the columns, then the rows; or the SQLSTATE.
async fn asked(client: &Client, query: &str) -> String {
    let prepared = match client.prepare(query).await {
        Ok(prepared) => prepared,
        Err(error) => return state(&error),
    };
    let mut text = String::new();
    for column in prepared.columns() {
        // What is of a type that the relay has not got is another matter.
        let _ = write!(text, "{}:{} ", column.name(), column.type_().name());
    }
    match client.simple_query(query).await {
        Err(error) => state(&error),
        Ok(messages) => {
            for message in messages {
                if let SimpleQueryMessage::Row(row) = message {
                    let value = |at| row.get(at).unwrap_or("NULL");
                    let values: Vec<_> = (0..row.len()).map(value).collect();
                    let _ = write!(text, "\n{}", values.join("|"));
                }
            }
            text
        }
    }
}

fn state(error: &tokio_postgres::Error) -> String {
    error.code().map_or_else(|| error.to_string(), |code| format!("SQLSTATE {}", code.code()))
}

/// Several hundred of them, each value and condition with others.
fn queries() -> Vec<String> {
    let mut all: Vec<String> = QUERIES.iter().map(|query| format!("{ROWS}{query}")).collect();
    for (at, value) in VALUES.iter().enumerate() {
        for step in [1, 5, 11] {
            let (other, condition) =
                (VALUES[(at * step + step) % VALUES.len()], CONDITIONS[(at * step) % CONDITIONS.len()]);
            all.push(format!(
                "{ROWS}select {value}, {other} as b from s where {condition} order by slot_name"
            ));
        }
        let condition = CONDITIONS[at % CONDITIONS.len()];
        all.push(format!(
            "{ROWS}select {value} as v, count(*), max(size) from s where {condition} group by 1 order by 2, 3, min(slot_name)"
        ));
        all.push(format!(
            "{ROWS}select count({value}), count(distinct {value}) from s left join r using (pid)"
        ));
    }
    for (at, condition) in CONDITIONS.iter().enumerate() {
        let other = CONDITIONS[(at * 7 + 3) % CONDITIONS.len()];
        all.push(format!("{ROWS}select slot_name from s where ({condition}) and not ({other}) order by 1"));
        all.push(format!("{ROWS}select slot_name, ({condition}) = ({other}) as same from s order by 1"));
    }
    all
}

fn a_query_has_the_same_answer_as_on_a_server(server: &Server) {
    let primary = Cluster::builder(server).start();
    let relay = relay_below(&primary).start();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("threads can be had").block_on(async {
        let on_relay = format!("host=127.0.0.1 port={} user=postgres dbname=walrelay", relay.port());
        let (own, theirs) = (connect(&on_relay).await, connect(&primary.local_conninfo()).await);
        theirs.batch_execute("set timezone = 'UTC'").await.expect("everybody may");
        let (mut differences, queries) = (String::new(), queries());
        for query in &queries {
            let (own, theirs) = (asked(&own, query).await, asked(&theirs, query).await);
            if own != theirs || theirs.starts_with("SQLSTATE 42") {
                let _ = write!(differences, "\n{query}\nrelay:  {own}\nserver: {theirs}\n");
            }
        }
        for mistake in MISTAKES {
            let query = format!("{ROWS}{mistake}");
            let (own, theirs) = (asked(&own, &query).await, asked(&theirs, &query).await);
            assert!(theirs.starts_with("SQLSTATE"), "{mistake}: {theirs}");
            if own != theirs {
                let _ = write!(differences, "\n{mistake}\nrelay:  {own}\nserver: {theirs}\n");
            }
        }
        assert!(queries.len() > 250 && differences.is_empty(), "{differences}");
    });
}

/// What the relay's views differ in from a server's, by versions, and why.
const KNOWN_DIFFERENCES: [(std::ops::RangeInclusive<u32>, &str); 2] = [
    // There is no such type here, of one byte, and no locale either.
    (15..=99, "pg_database has no datlocprovider (char)"),
    // Rights are the upstream's: nobody has any here.
    (14..=99, "pg_database has no datacl (_aclitem)"),
];

/// All there are in the relay's own database, and those of the upstream in which the relay puts rows of its own.
fn views_have_the_columns_of_the_servers(server: &Server) {
    let primary = Cluster::builder(server).start();
    let relay = relay_below(&primary).start();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("threads can be had").block_on(async {
        let through =
            |database: &str| format!("host=127.0.0.1 port={} user=postgres dbname={database}", relay.port());
        let own = connect(&through("walrelay")).await;
        let (overlay, upstream) =
            (connect(&through("postgres")).await, connect(&primary.local_conninfo()).await);
        let names = "select distinct table_name from information_schema.columns order by 1";
        let names = own.query(names, &[]).await.expect("it is right");
        let mut differences = Vec::new();
        for name in names.iter().map(|row| row.get::<_, String>(0)) {
            compare(
                &name,
                &described(&own, &name).await,
                &attributes(&upstream, &name).await,
                &mut differences,
            );
        }
        assert!(names.len() >= 13, "{names:?}");
        for function in ["pg_control_system()", "pg_show_all_settings()"] {
            let (own, theirs) = (described(&own, function).await, described(&upstream, function).await);
            compare(function, &own, &theirs, &mut differences);
        }
        // Of many columns those that are asked for.
        let (view, own) = ("information_schema.columns", described(&own, "information_schema.columns").await);
        let theirs = attributes(&upstream, view).await.into_iter();
        let theirs: Vec<_> = theirs.filter(|(name, _)| own.iter().any(|(own, _)| own == name)).collect();
        compare(view, &own, &theirs, &mut differences);
        for view in ["pg_replication_slots", "pg_stat_replication", "pg_stat_wal_receiver"] {
            assert_eq!(described(&overlay, view).await, attributes(&upstream, view).await);
        }
        let known = KNOWN_DIFFERENCES.into_iter().filter(|(versions, _)| versions.contains(&server.major()));
        let known: Vec<_> = known.map(|(_, difference)| difference.to_owned()).collect();
        assert_eq!(differences, known);
    });
}

/// The columns as a client is told of them: names and types.
async fn described(client: &Client, relation: &str) -> Vec<(String, String)> {
    let prepared = client.prepare(&format!("select * from {relation}")).await;
    let prepared = prepared.unwrap_or_else(|error| panic!("{relation}: {error}"));
    let columns = prepared.columns().iter();
    columns.map(|column| (column.name().to_owned(), column.type_().name().to_owned())).collect()
}

/// The same as the server's catalog has them; of a domain the type below it, as clients are told.
async fn attributes(client: &Client, view: &str) -> Vec<(String, String)> {
    let attributes = "select a.attname, b.typname from pg_attribute a join pg_type t on t.oid = a.atttypid \
                      join pg_type b on b.oid = case t.typtype when 'd' then t.typbasetype else t.oid end \
                      where a.attrelid = $1::text::regclass and a.attnum > 0 and not a.attisdropped order by a.attnum";
    let rows = client.query(attributes, &[&view]).await;
    rows.unwrap_or_else(|error| panic!("{view}: {error}"))
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect()
}

/// Notes what is missing, what is too many, what has another type, and whether the rest is in another order.
fn compare(view: &str, own: &[(String, String)], theirs: &[(String, String)], differences: &mut Vec<String>) {
    let names = |columns: &[(String, String)], others: &[(String, String)]| -> Vec<String> {
        let shared = columns.iter().filter(|(name, _)| others.iter().any(|(other, _)| name == other));
        shared.map(|(name, _)| name.clone()).collect()
    };
    for (name, kind) in theirs {
        match own.iter().find(|(own, _)| own == name) {
            None => differences.push(format!("{view} has no {name} ({kind})")),
            Some((_, own)) if own != kind => {
                differences.push(format!("{view}.{name} is {own}, and there {kind}"))
            }
            Some(_) => {}
        }
    }
    let more = own.iter().filter(|(name, _)| theirs.iter().all(|(other, _)| other != name));
    differences.extend(more.map(|(name, kind)| format!("{view} has {name} ({kind}) beside the server's")));
    if names(own, theirs) != names(theirs, own) {
        differences.push(format!("{view} has another order"));
    }
}

/// The texts of postgres_exporter's collectors and of its older queries, without their comments.
const EXPORTER: [&str; 21] = [
    "SELECT CASE WHEN NOT pg_is_in_recovery() THEN 0 WHEN pg_last_wal_receive_lsn () = pg_last_wal_replay_lsn () THEN 0 \
     ELSE GREATEST (0, EXTRACT(EPOCH FROM now() - pg_last_xact_replay_timestamp())) END AS lag, \
     CASE WHEN pg_is_in_recovery() THEN 1 ELSE 0 END as is_replica, \
     GREATEST (0, EXTRACT(EPOCH FROM now() - pg_last_xact_replay_timestamp())) as last_replay",
    "SELECT slot_name, slot_type, CASE WHEN pg_is_in_recovery() THEN pg_last_wal_receive_lsn() - '0/0' \
     ELSE pg_current_wal_lsn() - '0/0' END AS current_wal_lsn, \
     COALESCE(confirmed_flush_lsn, '0/0') - '0/0' AS confirmed_flush_lsn, active, safe_wal_size, wal_status \
     FROM pg_replication_slots;",
    "SELECT trim(both '''' from substring(conninfo from 'host=([^ ]*)')) as upstream_host, slot_name, status, \
     (receive_start_lsn- '0/0') % (2^52)::bigint as receive_start_lsn, receive_start_tli, \
     (flushed_lsn- '0/0') % (2^52)::bigint as flushed_lsn, received_tli, \
     extract(epoch from last_msg_send_time) as last_msg_send_time, \
     extract(epoch from last_msg_receipt_time) as last_msg_receipt_time, \
     (latest_end_lsn - '0/0') % (2^52)::bigint as latest_end_lsn, \
     extract(epoch from latest_end_time) as latest_end_time, \
     substring(slot_name from 'repmgr_slot_([0-9]*)') as upstream_node FROM pg_catalog.pg_stat_wal_receiver",
    "SELECT pg_database.datname, pg_database.datconnlimit FROM pg_database;",
    "SELECT extract(epoch from pg_postmaster_start_time) as start_time_seconds from pg_postmaster_start_time();",
    "SELECT COUNT(*) as transactions, \
     EXTRACT(EPOCH FROM MAX(clock_timestamp() - pg_stat_activity.xact_start)) AS oldest_timestamp_seconds \
     FROM pg_catalog.pg_stat_activity WHERE state IS DISTINCT FROM 'idle' AND query NOT LIKE 'autovacuum:%' \
     AND pg_stat_activity.xact_start IS NOT NULL;",
    "SELECT archived_count, failed_count, extract(epoch from now() - last_archived_time) AS last_archive_age FROM pg_stat_archiver",
    "SELECT *, (case pg_is_in_recovery() when 't' then pg_last_wal_receive_lsn() else pg_current_wal_lsn() end) AS pg_current_wal_lsn, \
     (case pg_is_in_recovery() when 't' then pg_wal_lsn_diff(pg_last_wal_receive_lsn(), pg_lsn('0/0'))::float \
     else pg_wal_lsn_diff(pg_current_wal_lsn(), pg_lsn('0/0'))::float end) AS pg_current_wal_lsn_bytes, \
     (case pg_is_in_recovery() when 't' then pg_wal_lsn_diff(pg_last_wal_receive_lsn(), replay_lsn)::float \
     else pg_wal_lsn_diff(pg_current_wal_lsn(), replay_lsn)::float end) AS pg_wal_lsn_diff FROM pg_stat_replication",
    "SELECT slot_name, database, active, (case pg_is_in_recovery() when 't' then \
     pg_wal_lsn_diff(pg_last_wal_receive_lsn(), restart_lsn) else pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn) end) \
     as pg_wal_lsn_diff FROM pg_replication_slots",
    "SELECT *, extract(epoch from now() - last_archived_time) AS last_archive_age FROM pg_stat_archiver",
    "SELECT pg_database.datname, tmp.state, tmp2.usename, tmp2.application_name, tmp2.backend_type, tmp2.wait_event_type, \
     tmp2.wait_event, COALESCE(count,0) as count, COALESCE(max_tx_duration,0) as max_tx_duration FROM \
     ( VALUES ('active'), ('idle'), ('idle in transaction'), ('idle in transaction (aborted)'), \
     ('fastpath function call'), ('disabled') ) AS tmp(state) CROSS JOIN pg_database LEFT JOIN \
     ( SELECT datname, state, usename, application_name, backend_type, wait_event_type, wait_event, count(*) AS count, \
     MAX(EXTRACT(EPOCH FROM now() - xact_start))::float AS max_tx_duration FROM pg_stat_activity WHERE pid <> pg_backend_pid() \
     GROUP BY datname,state,usename,application_name,backend_type,wait_event_type,wait_event) AS tmp2 \
     ON tmp.state = tmp2.state AND pg_database.datname = tmp2.datname",
    "SELECT name, setting, COALESCE(unit, ''), short_desc, vartype FROM pg_settings \
     WHERE vartype IN ('bool', 'integer', 'real') AND name != 'sync_commit_cancel_wait';",
    "SELECT version();",
    "SELECT column_name FROM information_schema.columns WHERE table_name = 'pg_stat_wal_receiver' and \
     column_name = 'flushed_lsn'",
    "SELECT slot_name, database, active, pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn) FROM pg_replication_slots",
    "SELECT * FROM pg_stat_database;",
    "SELECT * FROM pg_stat_database_conflicts;",
    "SELECT pg_database.datname ,pg_database_size(pg_database.datname) FROM pg_database;",
    "SELECT buffers_clean, maxwritten_clean, buffers_alloc, stats_reset FROM pg_stat_bgwriter;",
    "SELECT num_timed, num_requested, restartpoints_timed, restartpoints_req, restartpoints_done, write_time, sync_time, \
     buffers_written, stats_reset FROM pg_stat_checkpointer;",
    "SELECT pg_database.datname,tmp.mode,COALESCE(count,0) as count FROM ( VALUES ('accesssharelock'), ('rowsharelock'), \
     ('rowexclusivelock'), ('shareupdateexclusivelock'), ('sharelock'), ('sharerowexclusivelock'), ('exclusivelock'), \
     ('accessexclusivelock'), ('sireadlock') ) AS tmp(mode) CROSS JOIN pg_database LEFT JOIN \
     (SELECT database, lower(mode) AS mode,count(*) AS count FROM pg_locks WHERE database IS NOT NULL \
     GROUP BY database, lower(mode) ) AS tmp2 ON tmp.mode=tmp2.mode and pg_database.oid = tmp2.database ORDER BY 1",
];

fn exporters_find_what_they_ask_for(server: &Server) {
    let primary = Cluster::builder(server).start();
    let relay = relay_below(&primary).start();
    relay.create_slot("archive");
    let archive = Receivewal::start(server, &relay.conninfo(), "archive");
    relay.wait_for_sql("select state from pg_stat_replication", "streaming");
    let ask =
        |sql: &str| relay.psql("dbname=walrelay", &[sql]).unwrap_or_else(|error| panic!("{sql}: {error}"));
    for query in EXPORTER {
        let rows = ask(query);
        assert!(!rows.is_empty(), "{query}");
    }
    let (slots, activity, settings) = (ask(EXPORTER[1]), ask(EXPORTER[10]), ask(EXPORTER[11]));
    assert!(slots.starts_with("archive|physical|") && slots.ends_with("|0|t||reserved"), "{slots}");
    // This session is left out, and so is who streams: a walsender is in no database.
    assert!(activity.lines().count() == 6 && activity.contains("walrelay|active|||||"), "{activity}");
    for line in settings.lines() {
        let fields: Vec<_> = line.split('|').collect();
        let is_number = fields[4] != "integer" || fields[1].parse::<i64>().is_ok();
        assert!(fields.len() == 5 && is_number && !fields[3].is_empty(), "{line}");
    }
    assert!(settings.contains("wal_sender_timeout|60000|ms|"), "{settings}");
    consistent(&relay, &ask);
    archive.stop();
}

/// As it is installed, without any setting but where the relay is.
fn an_exporter_has_no_error(server: &Server) {
    let primary = Cluster::builder(server).start();
    let relay = relay_below(&primary).start();
    relay.create_slot("archive");
    let archive = Receivewal::start(server, &relay.conninfo(), "archive");
    relay.wait_for_sql("select state from pg_stat_replication", "streaming");
    let Some(exporter) = tools::postgres_exporter() else {
        eprintln!("NOT CHECKED: prometheus-postgres-exporter is not installed");
        return;
    };
    let (scratch, port) = (Scratch::new("exporter"), Port::take());
    let mut command = tied_command(exporter);
    command.arg(format!("--web.listen-address=127.0.0.1:{}", port.number()));
    command.env(
        "DATA_SOURCE_NAME",
        format!("host=127.0.0.1 port={} user=postgres dbname=walrelay sslmode=disable", relay.port()),
    );
    let _exporter = Process::spawn("exporter", command, &scratch.join("log"));
    let metrics = wait_for("the exporter", || scraped(&port).filter(|text| text.contains("pg_up 1")));
    let has = |sample: &str| metrics.lines().any(|line| line.starts_with(sample));
    let told = std::fs::read_to_string(scratch.join("log")).unwrap_or_default();
    assert!(has("pg_exporter_last_scrape_error 0"), "{told}");
    for sample in [
        "pg_replication_slots_active{",
        "pg_replication_slots_pg_wal_lsn_diff{",
        "pg_stat_replication_pg_wal_lsn_diff{",
        "pg_stat_archiver_archived_count",
        "pg_stat_activity_count{datname=\"walrelay\"",
        "pg_stat_database_numbackends{datid=\"16384\",datname=\"walrelay\"",
        "pg_locks_count{datname=\"walrelay\"",
        "pg_stat_bgwriter_buffers_alloc",
        "pg_database_size_bytes{datname=\"walrelay\"",
        "pg_settings_wal_sender_timeout_seconds",
    ] {
        assert!(has(sample), "{sample}: {metrics}");
    }
    archive.stop();
}

/// `None` before it listens.
fn scraped(port: &Port) -> Option<String> {
    let mut socket = TcpStream::connect(("127.0.0.1", port.number())).ok()?;
    write!(socket, "GET /metrics HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer).ok().map(|_| answer)
}

/// One process has one number, in whatever view.
fn consistent(relay: &Relay, ask: &dyn Fn(&str) -> String) {
    let joined = "select r.application_name, s.slot_name, a.backend_type, l.ssl, a.backend_start = r.backend_start \
                  from pg_stat_replication r join pg_replication_slots s on s.active_pid = r.pid \
                  join pg_stat_activity a on a.pid = r.pid join pg_stat_ssl l on l.pid = r.pid";
    assert_eq!(ask(joined), "pg_receivewal|archive|walsender|f|t");
    let own = "select state, backend_type, datname, query like 'select state%' from pg_stat_activity where pid = pg_backend_pid()";
    assert_eq!(ask(own), "active|client backend|walrelay|t");
    let receiver =
        "select w.status, a.backend_type from pg_stat_wal_receiver w join pg_stat_activity a using (pid)";
    assert_eq!(ask(receiver), "streaming|walreceiver");
    let databases = "select d.datname, count(*) from pg_database d join pg_stat_activity a on a.datid = d.oid group by d.datname";
    assert_eq!(ask(databases), "walrelay|1");
    let refused = relay.psql("dbname=walrelay", &["\\d"]);
    assert!(refused.expect_err("there is no catalog").0.contains("pg_class"), "it is named");
}

fn others_are_seen_as_far_as_the_role_may(server: &Server) {
    let primary = Cluster::builder(server).start();
    primary.sql("create role plain login");
    let relay = relay_below(&primary).hba("host all,replication all 127.0.0.1/32 trust\n").start();
    let mut other = relay.session("user=postgres dbname=walrelay");
    other.run("begin").expect("none is open");
    other.run("select 'secret'").expect("it is right");
    let ask = |user: &str, sql: &str| {
        let answer = relay.psql(&format!("user={user} dbname=walrelay"), &[sql]);
        answer.unwrap_or_else(|error| panic!("{sql}: {error}"))
    };
    let seen = "select state, query like 'select ''secret''%', xact_start <= state_change, client_port > 0 \
                from pg_stat_activity where usename = 'postgres' and pid <> pg_backend_pid()";
    assert_eq!(ask("postgres", seen), "idle in transaction|t|t|t");
    let hidden =
        "select state, query, client_addr, backend_type from pg_stat_activity where usename = 'postgres'";
    assert_eq!(ask("plain", hidden), "|<insufficient privilege>||");
    let own = "select state, backend_type from pg_stat_activity where pid = pg_backend_pid()";
    assert_eq!(ask("plain", own), "active|client backend");
    assert_eq!(ask("plain", "select count(*) from pg_stat_ssl"), "1");
    let settings = "select count(*) from pg_settings where category = 'walrelay'";
    assert_eq!(ask("plain", settings), "0");
    assert_ne!(ask("postgres", settings), "0");
    drop(other);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("threads can be had").block_on(a_driver_is_seen(&relay));
}

/// Values in binary, as the driver has them, and a transaction that has failed.
async fn a_driver_is_seen(relay: &Relay) {
    let client =
        connect(&format!("host=127.0.0.1 port={} user=postgres dbname=walrelay", relay.port())).await;
    let query = "select $1::float8 * 2, count(*), max(backend_start), min(pid) = $2 \
                 from pg_stat_activity where pid = $2 and backend_start < $3";
    let pid: i32 = client.query_one("select pg_backend_pid()", &[]).await.expect("it is right").get(0);
    let values: [&(dyn tokio_postgres::types::ToSql + Sync); 3] =
        [&1.25_f64, &pid, &std::time::SystemTime::now()];
    let row = client.query_one(query, &values).await.expect("it is right");
    assert_eq!((row.get::<_, f64>(0), row.get::<_, i64>(1), row.get::<_, bool>(3)), (2.5, 1, true));
    assert!(row.get::<_, std::time::SystemTime>(2) <= std::time::SystemTime::now());
    client.batch_execute("begin").await.expect("none is open");
    client.query("select 1 / 0", &[]).await.expect_err("that cannot be");
    let state = format!("select state from pg_stat_activity where pid = {pid}");
    let state = tokio::task::block_in_place(|| relay.psql("user=postgres dbname=walrelay", &[&state]));
    assert_eq!(state.as_deref(), Ok("idle in transaction (aborted)"));
}
