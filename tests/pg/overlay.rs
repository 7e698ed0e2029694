//! SQL texts with the relay's slots and consumers in them, as the upstream takes them. The texts are those of the
//! clients; there is no relay behind, only rows made up like its own.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use walrelay::consumers::{ConsumerIdentity, ConsumerState, ConsumerStatus};
use walrelay::overlay::{
    Holdings, Message, Relay, Rewritten, Row, SqlContext, rewrite, sender_row, slot_row,
};
use walrelay::store::{FeedbackHorizon, SlotInfo};
use walrelay::wire::{PgError, sqlstate};
use walrelay_proto::ack::Standing;
use walrelay_proto::{FullXid, Lsn, SegSize};
use walrelay_testkit::{Cluster, Receivewal, Server, on_every_version, on_versions};

on_every_version!(
    clients_find_their_slots_and_senders,
    columns_are_those_of_the_views,
    roles_see_what_they_may,
    slot_functions_act_on_the_relay,
    slot_functions_fail_as_postgresql_does,
    slots_of_the_upstream_are_safe,
    rights_and_names_are_the_upstreams,
);

// 19 has no standard_conforming_strings = off any more.
on_versions!([pg15 = 15, pg17 = 17, pg18 = 18] settings_and_encodings_change_nothing);

/// A relay whose slots are in memory. `barman` is used by the one consumer.
struct Made {
    slots: BTreeMap<String, SlotInfo>,
    /// The consumer's `application_name`.
    application: &'static str,
}

const NOW: Lsn = Lsn::new(0x500_0000);
const STREAMER: u32 = 4711;

fn slot(name: &str, restart_lsn: Option<Lsn>, active_pid: Option<u32>) -> SlotInfo {
    let feedback = FeedbackHorizon { xmin: FullXid::new(1, 700), catalog_xmin: None };
    let inactive_since =
        active_pid.is_none().then(|| (SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)).into());
    SlotInfo {
        name: name.to_owned(),
        restart_lsn,
        active_pid,
        temporary: false,
        invalidated: false,
        feedback,
        inactive_since,
        begun_at: None,
        is_awaited: false,
    }
}

impl Made {
    fn new() -> Made {
        let start = Lsn::new(0x300_0000);
        let mut lost = slot("lost", None, None);
        lost.invalidated = true;
        let slots = [slot("barman", Some(start), Some(STREAMER)), slot("walg", Some(start), None), lost];
        let slots = slots.into_iter().map(|slot| (slot.name.clone(), slot)).collect();
        Made { slots, application: "o'$j$ \\ \"" }
    }

    fn get(&self, name: &str) -> Result<&SlotInfo, PgError> {
        let text = format!("replication slot \"{name}\" does not exist");
        self.slots.get(name).ok_or_else(|| PgError::error(sqlstate::UNDEFINED_OBJECT, text))
    }

    /// What is forwarded instead of a text; the upstream is asked where it has to be.
    fn rewritten(&mut self, upstream: &Cluster, text: &str, session: &SqlContext) -> String {
        let Rewritten { text: instead, call, .. } = rewrite(text.as_bytes(), session, self);
        let instead = match call {
            Some(call) => {
                let question = String::from_utf8(call.question()).expect("it is ASCII");
                match upstream.try_sql(&question) {
                    Ok(rows) => {
                        let row = rows.lines().next().unwrap_or_default();
                        let row: Vec<_> = row.split('|').map(|value| Some(value.into())).collect();
                        Some(call.act(&row, self))
                    }
                    // The text fails in the same way.
                    Err(_) => None,
                }
            }
            None => instead,
        };
        let bytes = instead.unwrap_or_else(|| text.into());
        String::from_utf8(bytes).expect("the text was, and ASCII was inserted")
    }

    /// The result of a text sent through the overlay.
    #[track_caller]
    fn sql(&mut self, upstream: &Cluster, text: &str) -> String {
        let text = self.rewritten(upstream, text, &SqlContext::default());
        upstream.sql(&text)
    }

    /// SQLSTATE and message of what goes wrong.
    #[track_caller]
    fn error(&mut self, upstream: &Cluster, text: &str) -> String {
        let text = self.rewritten(upstream, text, &SqlContext::default());
        upstream.sql(&format!("select error_of($text${text}$text$)"))
    }
}

impl Relay for Made {
    fn slots(&mut self) -> Vec<Row> {
        let holdings = Holdings {
            write_lsn: NOW,
            oldest: Lsn::new(0x100_0000),
            seg_size: SegSize::new(16 << 20).expect("the default"),
            wal_keep_size: 64 << 20,
            max_slot_wal_keep_size: Some(1 << 30),
            archived: None,
        };
        self.slots.values().map(|slot| slot_row(slot, Some(&holdings))).collect()
    }

    fn senders(&mut self) -> Vec<Row> {
        let identity = ConsumerIdentity {
            pid: STREAMER,
            user: "streamer".to_owned(),
            application_name: self.application.to_owned(),
            client_addr: Some("[::1]:5000".parse().expect("an address")),
            backend_start: SystemTime::now().into(),
        };
        vec![sender_row(&ConsumerStatus {
            identity,
            state: ConsumerState::Streaming,
            sent_lsn: Some(NOW),
            sent_bytes: 0,
            write_lsn: Some(NOW),
            flush_lsn: Some(NOW),
            replay_lsn: None,
            write_lag: Some(Duration::from_micros(1_234)),
            flush_lag: Some(Duration::from_secs(100_000)),
            replay_lag: None,
            reply_time: Some((SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_250)).into()),
            feedback: FeedbackHorizon { xmin: FullXid::new(0, 800), catalog_xmin: None },
            standing: Standing::Async,
        })]
    }

    fn has_slot(&mut self, name: &str) -> bool {
        self.slots.contains_key(name)
    }

    fn create_slot(&mut self, name: &str, reserve: bool, _: bool) -> Result<Option<Lsn>, PgError> {
        if self.has_slot(name) {
            let text = format!("replication slot \"{name}\" already exists");
            return Err(PgError::error(sqlstate::DUPLICATE_OBJECT, text).with_hint("It's $taken$."));
        }
        let restart = reserve.then_some(Lsn::new(0x200_0028));
        self.slots.insert(name.to_owned(), slot(name, restart, None));
        Ok(restart)
    }

    fn drop_slot(&mut self, name: &str) -> Result<(), PgError> {
        self.get(name)?;
        self.slots.remove(name);
        Ok(())
    }

    fn copy_slot(&mut self, from: &str, to: &str, _: Option<bool>) -> Result<(), PgError> {
        let restart = self.get(from)?.restart_lsn;
        self.slots.insert(to.to_owned(), slot(to, restart, None));
        Ok(())
    }

    fn advance_slot(&mut self, name: &str, upto: Lsn) -> Result<Lsn, PgError> {
        self.get(name)?;
        let upto = upto.min(NOW);
        self.slots.insert(name.to_owned(), slot(name, Some(upto), None));
        Ok(upto)
    }
}

/// An upstream with slots of its own and a database in UTF-8, to which everything goes.
fn upstream(server: &Server) -> Cluster {
    let upstream = Cluster::builder(server).conf("wal_level = logical").start();
    upstream.sql("select pg_create_physical_replication_slot('walrelay', true)");
    upstream.sql("select pg_create_logical_replication_slot('decoded', 'pgoutput')");
    upstream.sql(
        "create function error_of(text) returns text language plpgsql as $$ begin execute $1; return 'none'; \
         exception when others then return sqlstate || ' ' || sqlerrm; end $$",
    );
    upstream
}

fn clients_find_their_slots_and_senders(server: &Server) {
    let upstream = upstream(server);
    let mut made = Made::new();
    barman_finds_its_slot_and_its_receiver(&upstream, &mut made);
    the_slot_sync_worker_finds_both_kinds(&upstream, &mut made);
    others_find_their_slots(&upstream, &mut made);
    monitoring_joins_both(&upstream, &mut made);
}

fn barman_finds_its_slot_and_its_receiver(upstream: &Cluster, made: &mut Made) {
    let slot = "SELECT slot_name, active, restart_lsn FROM pg_replication_slots WHERE slot_type = 'physical' \
                AND slot_name = 'barman'";
    assert_eq!(made.sql(upstream, slot), format!("barman|t|{}", upstream.sql("select '0/3000000'::pg_lsn")));
    let status = |and: &str| {
        format!(
            "SELECT r.*, rs.slot_name, pg_is_in_recovery() AS is_in_recovery, CASE WHEN pg_is_in_recovery() \
             THEN pg_last_wal_receive_lsn() ELSE pg_current_wal_lsn() END AS current_lsn FROM pg_stat_replication r \
             LEFT JOIN pg_replication_slots rs ON (r.pid = rs.active_pid) \
             WHERE (rs.slot_type IS NULL OR rs.slot_type = 'physical') {and} ORDER BY sync_state DESC, sync_priority"
        )
    };
    let row = made.sql(upstream, &status("AND replay_lsn IS NULL"));
    let parts = [
        "4711||streamer|o'$j$ \\ \"|::1||5000|",
        &format!(
            "|800|streaming|{at}|{at}|{at}||00:00:00.001234|27:46:40||0|async|2023-11-14 22:13:20.25+00|",
            at = upstream.sql("select '0/5000000'::pg_lsn")
        ),
        "|barman|f|0/",
    ];
    assert!(parts.iter().all(|part| row.contains(part)), "{row}");
    assert_eq!(made.sql(upstream, &status("AND replay_lsn IS NOT NULL")), "");
}

fn the_slot_sync_worker_finds_both_kinds(upstream: &Cluster, made: &mut Made) {
    let mut ask = |statement: &str| {
        let text = format!("SELECT pg_catalog.set_config('search_path', '', false); {statement}");
        made.sql(upstream, &text).lines().last().unwrap_or_default().to_owned()
    };
    let exists = "SELECT pg_is_in_recovery(), count(*) = 1 FROM pg_catalog.pg_replication_slots \
                  WHERE slot_type='physical' AND slot_name='walg'";
    assert_eq!(ask(exists), "f|t");
    let version = upstream.server().major();
    if version >= 17 {
        upstream.sql("select pg_create_logical_replication_slot('lf', 'pgoutput', false, false, true)");
        let at = if version >= 18 { "two_phase_at, " } else { "" };
        let failover = format!(
            "SELECT slot_name, plugin, confirmed_flush_lsn, restart_lsn, catalog_xmin, two_phase, {at}failover, \
             database, invalidation_reason FROM pg_catalog.pg_replication_slots WHERE failover and NOT temporary"
        );
        assert!(ask(&failover).starts_with("lf|pgoutput|0/"), "{}", ask(&failover));
        upstream.sql("select pg_drop_replication_slot('lf')");
    }
}

fn others_find_their_slots(upstream: &Cluster, made: &mut Made) {
    // WAL-G, which prepares its statements
    let slot = "select active, restart_lsn from pg_catalog.pg_replication_slots \
                where slot_name OPERATOR(pg_catalog.=) $1";
    let parse = SqlContext { message: Message::Parse { types: 0 }, ..SqlContext::default() };
    let prepared = rewrite(slot.as_bytes(), &parse, made);
    let [text, rows] = [prepared.text, prepared.rows.map(|rows| rows.value(made))]
        .map(|bytes| String::from_utf8(bytes.expect("it reads a view")).expect("it is ASCII"));
    assert_eq!(
        upstream.sql(&format!("PREPARE p AS {text}; EXECUTE p ('walg', $r${rows}$r$)")),
        format!("f|{}", upstream.sql("select '0/3000000'::pg_lsn"))
    );
    // pgmoneta
    let slot = "SELECT slot_name, slot_type FROM pg_replication_slots WHERE slot_name = 'walg';";
    assert_eq!(made.sql(upstream, slot), "walg|physical");
    // repmgr
    let slot = "SELECT slot_name, slot_type, active FROM pg_catalog.pg_replication_slots WHERE slot_name = 'walrelay'";
    assert_eq!(made.sql(upstream, slot), "", "the relay's own slot is the upstream's business");
    assert_eq!(made.sql(upstream, "SELECT count(*) FROM pg_stat_replication"), "1");
}

fn monitoring_joins_both(upstream: &Cluster, made: &mut Made) {
    // check_postgres
    let slots = "WITH slots AS (SELECT slot_name, slot_type, coalesce(restart_lsn, '0/0'::pg_lsn) AS slot_lsn, \
                 coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0) AS delta, active \
                 FROM pg_replication_slots) SELECT slot_name, active FROM slots WHERE slot_type = 'physical' ORDER BY 1";
    assert_eq!(made.sql(upstream, slots), "barman|t\nlost|f\nwalg|f");
    // postgres_exporter
    let joined = "SELECT application_name, slot_name, (case pg_is_in_recovery() when 't' then \
                  pg_wal_lsn_diff(pg_last_wal_receive_lsn(), pg_stat_replication.sent_lsn) else 0 end)::float \
                  FROM pg_stat_replication LEFT JOIN pg_replication_slots s ON s.active_pid = pg_stat_replication.pid";
    assert_eq!(made.sql(upstream, joined), "o'$j$ \\ \"|barman|0");
    let status = "SELECT slot_name, safe_wal_size, wal_status FROM pg_replication_slots ORDER BY slot_name";
    let rows = "barman|1056964608|reserved\ndecoded||reserved\nlost||lost\nwalg|1056964608|reserved";
    assert_eq!(made.sql(upstream, status), rows);
    // people
    let xmins = "(TABLE pg_replication_slots) ORDER BY slot_name LIMIT 1";
    let expected =
        format!("barman||physical|||f|t|4711|700||{}||reserved|", upstream.sql("select '0/3000000'::pg_lsn"));
    assert!(made.sql(upstream, xmins).starts_with(&expected), "{expected}");
    if upstream.server().major() >= 17 {
        let since = "select slot_name, inactive_since at time zone 'UTC', invalidation_reason from pg_replication_slots \
                     where plugin is null order by 1";
        let rows = "barman||\nlost|2023-11-14 22:13:20|wal_removed\nwalg|2023-11-14 22:13:20|";
        assert_eq!(made.sql(upstream, since), rows);
    }
}

fn columns_are_those_of_the_views(server: &Server) {
    let upstream = upstream(server);
    let mut made = Made::new();
    let columns = |name: &str| {
        upstream.sql(&format!(
            "select attnum, attname, atttypid::regtype, atttypmod, attcollation::regcollation from pg_attribute \
             where attrelid = '{name}'::regclass order by attnum"
        ))
    };
    let mut same = |name: &str, query: &str, real: &str| {
        upstream.sql(&format!("create view {name}_real as {query}"));
        upstream.sql(&format!(
            "create view {name} as {}",
            made.rewritten(&upstream, query, &SqlContext::default())
        ));
        assert_eq!(columns(name), columns(&format!("{name}_real")), "{query}");
        assert_eq!(columns(name), columns(if real.is_empty() { name } else { real }));
    };
    same("slots", "select * from pg_catalog.pg_replication_slots", "pg_replication_slots");
    same("senders", "table pg_stat_replication", "pg_stat_replication");
    same("creates", "select * from pg_create_physical_replication_slot('made', true)", "");
    same("creates_as", "select lsn, slot_name from pg_create_physical_replication_slot('made2') as t", "");
    same("copies", "select * from pg_copy_physical_replication_slot('walg', 'copied') as t", "");
    same("advances", "select * from pg_replication_slot_advance('walg', '0/4000000')", "");
    same("picks", "select (pg_create_physical_replication_slot('made3')).*", "");
}

fn settings_and_encodings_change_nothing(server: &Server) {
    let upstream = upstream(server);
    for (name, encoding) in [("utf8", "UTF8"), ("latin1", "LATIN1"), ("ascii", "SQL_ASCII")] {
        upstream.sql(&format!(
            "create database {name} encoding '{encoding}' template template0 lc_collate 'C' lc_ctype 'C'"
        ));
    }
    upstream.sql("create role streamer");
    for settings in [
        "standard_conforming_strings = off",
        "backslash_quote = off",
        "datestyle = 'German, DMY'",
        "intervalstyle = sql_standard",
        "timezone = 'Asia/Kolkata'",
        "client_encoding = UTF8",
        "search_path = ''",
    ] {
        upstream.sql(&format!("alter role postgres set {settings}"));
    }
    let mut session = upstream.session();
    let question = "select application_name, usesysid = 'streamer'::regrole, extract(epoch from reply_time), \
                    extract(epoch from flush_lag), length('\\\\') from pg_catalog.pg_stat_replication";
    for (database, utf8, shown) in [
        ("utf8", true, "ärger '$j$ \\ \""),
        ("latin1", false, "?rger '$j$ \\ \""),
        ("ascii", false, "?rger '$j$ \\ \""),
    ] {
        let context = SqlContext {
            standard_conforming_strings: Some(false),
            server_encoding_utf8: utf8,
            ..SqlContext::default()
        };
        let mut made = Made { application: "ärger '$j$ \\ \"", ..Made::new() };
        session.run(&format!("\\c {database}")).expect("it has been made");
        let row = session.run(&made.rewritten(&upstream, question, &context)).expect("the text is right");
        assert_eq!(row, format!("{shown}|t|1700000000.250000|100000.000000|1"), "{database}");
        let text = "select pg_copy_physical_replication_slot('ä\\\\$\\'', 'b')";
        let failing = made.rewritten(&upstream, text, &context);
        assert!(failing.is_ascii() && failing.contains("cannot be executed"), "{failing}");
    }
}

fn roles_see_what_they_may(server: &Server) {
    let upstream = upstream(server);
    upstream.sql("create role streamer login replication");
    upstream.sql("create role anybody");
    upstream.sql("create role colleague in role streamer");
    upstream.sql("create role monitor in role pg_read_all_stats");
    let conninfo = format!("host=127.0.0.1 port={} user=streamer", upstream.port());
    let _streaming = Receivewal::start(server, &conninfo, "walrelay");
    upstream.wait_for_sql("select count(*) from pg_stat_replication where reply_time is not null", "1");
    let mut made = Made::new();
    for role in ["anybody", "colleague", "monitor", "postgres"] {
        let question = format!(
            "set role {role}; select string_agg(k, ' ' order by k) from pg_stat_replication r, \
             jsonb_each(to_jsonb(r)) as e (k, v) where v <> 'null' and k !~ 'lag|xmin'"
        );
        assert_eq!(made.sql(&upstream, &question), upstream.sql(&question), "{role}");
    }
}

fn slot_functions_act_on_the_relay(server: &Server) {
    let upstream = upstream(server);
    let mut made = Made::new();
    let mut ask = |text: &str| made.sql(&upstream, text);
    // repmgr
    let create = "SELECT * FROM pg_catalog.pg_create_physical_replication_slot('repmgr_slot_2', TRUE)";
    // 19 prints eight digits.
    let shown = |lsn: &str| upstream.sql(&format!("select '{lsn}'::pg_lsn"));
    assert_eq!(ask(create), format!("repmgr_slot_2|{}", shown("0/2000028")));
    let found = "SELECT slot_name, slot_type, active FROM pg_catalog.pg_replication_slots \
                 WHERE slot_name = 'repmgr_slot_2'";
    assert_eq!(ask(found), "repmgr_slot_2|physical|f");
    // runbooks
    assert_eq!(ask("select pg_create_physical_replication_slot('plain')"), "(plain,)");
    assert_eq!(ask("select (pg_create_physical_replication_slot('picked', true)).lsn"), shown("0/2000028"));
    assert_eq!(ask("select pg_copy_physical_replication_slot('walg', 'copied')"), "(copied,)");
    assert_eq!(
        ask("select pg_replication_slot_advance('copied', '0/4000000')"),
        format!("(copied,{})", shown("0/4000000"))
    );
    let restart = "select restart_lsn from pg_replication_slots where slot_name = 'copied'";
    assert_eq!(ask(restart), shown("0/4000000"));
    assert_eq!(ask("select pg_drop_replication_slot('copied')"), "");
    assert_eq!(ask(restart), "");
    let types = "select pg_typeof(pg_create_physical_replication_slot) from (select 1) as one, ";
    let item = |text: &str, made: &mut Made| made.rewritten(&upstream, text, &SqlContext::default());
    let create = item("select pg_create_physical_replication_slot('typed')", &mut made);
    assert_eq!(upstream.sql(&format!("{types}({create}) as t")), "record");
    let physical = "select string_agg(slot_name, ' ') from pg_replication_slots where slot_type = 'physical'";
    assert_eq!(upstream.sql(physical), "walrelay", "nothing has reached the upstream");
}

fn slot_functions_fail_as_postgresql_does(server: &Server) {
    let upstream = upstream(server);
    let mut made = Made::new();
    let taken = "select pg_create_physical_replication_slot('walg')";
    assert_eq!(made.error(&upstream, taken), "42710 replication slot \"walg\" already exists");
    let text = made.rewritten(&upstream, taken, &SqlContext::default());
    let error = upstream.try_sql(&text).expect_err("the slot is there").0;
    assert!(error.contains("HINT:  It's $taken$."), "{error}");

    // What stands before goes with it, what follows does not come to be.
    let text = format!("create table before (); {taken}; create table behind ()");
    let text = made.rewritten(&upstream, &text, &SqlContext::default());
    upstream.try_sql(&text).expect_err("the slot is there");
    assert_eq!(upstream.sql("select to_regclass('before') is null, to_regclass('behind') is null"), "t|t");

    let conditional = "select pg_drop_replication_slot('walg') where true";
    assert!(
        made.error(&upstream, conditional).starts_with("0A000 pg_drop_replication_slot() cannot be executed")
    );
    let parse = SqlContext { message: Message::Parse { types: 0 }, ..SqlContext::default() };
    let prepared = made.rewritten(&upstream, "select pg_drop_replication_slot($1)", &parse);
    let error =
        upstream.try_sql(&format!("prepare p (name) as {prepared}")).expect_err("refused when parsed").0;
    assert!(
        error.contains("cannot be executed by walrelay in a statement that is prepared; Send it"),
        "{error}"
    );
    assert!(made.slots.contains_key("walg"));
}

fn slots_of_the_upstream_are_safe(server: &Server) {
    let upstream = upstream(server);
    let mut made = Made::new();
    let gone = "42704 replication slot \"walrelay (logical, of the upstream)\" does not exist";
    assert_eq!(made.error(&upstream, "select pg_drop_replication_slot('walrelay')"), gone);
    let advance =
        "select end_lsn >= '0/1' from pg_replication_slot_advance('walrelay', pg_current_wal_lsn())";
    assert_eq!(made.error(&upstream, advance), gone);
    let advance = advance.replace("walrelay", "decoded");
    assert_eq!(made.sql(&upstream, &advance), "t");
    let drop = "select pg_drop_replication_slot(slot_name) from pg_replication_slots";
    assert!(made.error(&upstream, drop).starts_with("0A000"));
    assert_eq!(made.sql(&upstream, "select pg_drop_replication_slot('decoded') where true"), "");
    assert_eq!(upstream.sql("select slot_name from pg_replication_slots"), "walrelay");
}

fn rights_and_names_are_the_upstreams(server: &Server) {
    let upstream = upstream(server);
    let mut made = Made::new();
    upstream.sql("create role plain; create role rep replication");
    let view = "select count(*) from pg_stat_replication";
    let slots = "select count(*) from pg_catalog.pg_replication_slots";
    upstream.sql("revoke select on pg_stat_replication, pg_replication_slots from public");
    for question in [view, slots] {
        let text = made.rewritten(&upstream, question, &SqlContext::default());
        let error = upstream.try_sql(&format!("set role plain; {text}")).expect_err("it was revoked").0;
        assert!(error.contains("permission denied for view"), "{error}");
    }
    upstream.sql("grant select on pg_stat_replication, pg_replication_slots to public");
    // A name without a schema may be that of something else.
    let text = made.rewritten(&upstream, view, &SqlContext::default());
    let hidden = upstream.try_sql(&format!("create temp table pg_stat_replication (); {text}"));
    let error = hidden.expect_err("which is meant is not known").0;
    assert!(
        error.contains("pg_stat_replication is pg_temp") || error.contains("write pg_catalog.pg_stat"),
        "{error}"
    );
    let text = made.rewritten(&upstream, slots, &SqlContext::default());
    assert_eq!(
        upstream.sql(&format!("create temp table pg_replication_slots (); {text}")).lines().last(),
        Some("4")
    );

    let drop = "select pg_drop_replication_slot('walg')";
    let question = match rewrite(drop.as_bytes(), &SqlContext::default(), &mut made).call {
        Some(call) => String::from_utf8(call.question()).expect("it is ASCII"),
        None => panic!("it is one"),
    };
    let judged = |before: &str| {
        let rows = upstream.sql(&format!("{before}; {question}"));
        rows.lines().find(|line| line.contains('|')).map(str::to_owned).unwrap_or_default()
    };
    assert_eq!(judged("set role rep"), "f|t|t|f");
    assert_eq!(judged("set role plain"), "f|t|f|f");
    upstream.sql("revoke execute on function pg_drop_replication_slot from public");
    assert!(
        upstream
            .try_sql(&format!("set role rep; {question}"))
            .expect_err("revoked")
            .0
            .contains("permission denied")
    );
    upstream.sql("grant execute on function pg_drop_replication_slot to public");
    upstream
        .sql("create function public.pg_drop_replication_slot(text) returns int language sql as 'select 1'");
    assert_eq!(judged("set role rep"), "t|t|t|f");
    assert!(made.slots.contains_key("walg"));
}
