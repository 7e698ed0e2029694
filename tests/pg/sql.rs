//! SQL through the relay: forwarded as the same role, and right about the relay where it asks about replication.

use walrelay_testkit::{Cluster, Receivewal, Relay, Server, on_every_version};

use crate::relay_below;

on_every_version!(
    statements_go_through,
    slots_and_consumers_are_the_relays,
    roles_are_the_upstreams,
    the_relay_tells_of_itself,
    through_a_chain_of_relays,
);

fn statements_go_through(server: &Server) {
    let primary = Cluster::builder(server).start();
    let relay = relay_below(&primary).start();
    assert_eq!(relay.sql("select pg_is_in_recovery()"), "f");
    relay.sql("create table t as select i, repeat('x', 100) as filler from generate_series(1, 100000) i");
    assert_eq!(relay.sql("select * from t order by i"), primary.sql("select * from t order by i"));
    let error = relay.psql("dbname=postgres", &["select 1/0"]).expect_err("that cannot be");
    assert!(error.0.contains("division by zero"), "{error}");
    let error = relay.psql("dbname=nosuch", &["select 1"]).expect_err("there is none");
    assert!(error.0.contains("database \"nosuch\" does not exist"), "{error}");

    let mut session = relay.session("dbname=postgres application_name=seen options=-cwork_mem=7MB");
    let mut run = |sql: &str| session.run(sql).unwrap_or_else(|error| panic!("{sql}: {error}"));
    assert_eq!(run("show work_mem"), "7MB");
    assert_eq!(run("select current_setting('application_name')"), "seen");
    run("begin");
    run("insert into t values (0, 'mine')");
    assert_eq!(primary.sql("select count(*) from t where i = 0"), "0");
    let backend = run("select pg_backend_pid()");
    let seen = format!("select application_name from pg_stat_activity where pid = {backend}");
    assert_eq!(primary.sql(&seen), "seen");
    run("commit");
    assert_eq!(primary.sql("select count(*) from t where i = 0"), "1");
    drop(session);
    primary.wait_for_sql(&format!("select count(*) from pg_stat_activity where pid = {backend}"), "0");
    // A command that makes a session for logical replication.
    let logical = relay.psql("dbname=postgres replication=database", &["IDENTIFY_SYSTEM"]);
    assert!(logical.expect("it is forwarded").ends_with("|postgres"));
}

fn slots_and_consumers_are_the_relays(server: &Server) {
    let primary = Cluster::builder(server).conf("wal_level = logical").start();
    let relay = relay_below(&primary).start();
    relay.create_slot("archive");
    primary.sql("select pg_create_logical_replication_slot('l', 'pgoutput')");
    let slots = "select slot_name, slot_type, active from pg_replication_slots order by 1";
    assert_eq!(relay.sql(slots), "archive|physical|f\nl|logical|f");

    let archive = Receivewal::start(server, &relay.conninfo(), "archive");
    let joined = "select r.application_name, r.state, r.sync_state, s.slot_name, s.active \
                  from pg_stat_replication r join pg_catalog.pg_replication_slots s on s.active_pid = r.pid";
    relay.wait_for_sql(joined, "pg_receivewal|streaming|async|archive|t");
    archive.stop();
    relay.wait_for_sql(
        "select active, active_pid is null from pg_replication_slots where slot_name = 'archive'",
        "f|t",
    );

    slot_functions_act_on_the_relay(&primary, &relay);
    let off = relay_below(&primary).name("plain").arg("--sql-overlay").arg("off").start();
    assert_eq!(off.sql("select count(*) from pg_replication_slots where slot_name = 'walrelay'"), "1");
    let error = off.psql("dbname=postgres", &["select pg_create_physical_replication_slot('x')"]);
    assert!(error.expect_err("it is refused").0.contains("pg_create_physical_replication_slot"));
    assert_eq!(primary.sql("select count(*) from pg_replication_slots where slot_name = 'x'"), "0");
}

fn slot_functions_act_on_the_relay(primary: &Cluster, relay: &Relay) {
    let made =
        relay.sql("SELECT * FROM pg_catalog.pg_create_physical_replication_slot('repmgr_slot_2', TRUE)");
    assert!(made.starts_with("repmgr_slot_2|") && made.len() > "repmgr_slot_2|".len(), "{made}");
    assert!(relay.slot_lsn("repmgr_slot_2").is_some());
    assert_eq!(primary.sql("select count(*) from pg_replication_slots where slot_name like 'repmgr%'"), "0");
    let again =
        relay.psql("dbname=postgres", &["select pg_create_physical_replication_slot('repmgr_slot_2')"]);
    assert!(again.expect_err("it exists").0.contains("replication slot \"repmgr_slot_2\" already exists"));
    assert_eq!(relay.sql("select pg_drop_replication_slot('repmgr_slot_2')"), "");
    assert_eq!(relay.command("READ_REPLICATION_SLOT repmgr_slot_2"), "||");
    // The relay's own slot up there is out of reach; a logical one is not.
    let own = relay.psql("dbname=postgres", &["select pg_drop_replication_slot('walrelay')"]);
    assert!(own.expect_err("it is physical").0.contains("does not exist"));
    relay.sql("select pg_drop_replication_slot('l')");
    assert_eq!(primary.sql("select slot_name from pg_replication_slots"), "walrelay");
}

fn roles_are_the_upstreams(server: &Server) {
    let primary = Cluster::builder(server).password("s3cret").start();
    primary.sql(
        "create role rep login replication password 'r'; create role plain login password 'p'; \
         create role old login password 'o' valid until '2001-01-01'; create role nologin password 'n'",
    );
    let hba = "host all,replication all 127.0.0.1/32 scram-sha-256\n";
    let mut relay = relay_below(&primary).hba(hba).arg("--auth-query").prepare();
    relay.spawn();
    let attempt = |options: &str| relay.psql(options, &["IDENTIFY_SYSTEM"]);
    walrelay_testkit::wait_until("the relay to know the role", || {
        attempt("user=rep password=r replication=1").is_ok()
    });

    let as_plain = relay.psql("user=plain password=p dbname=postgres", &["select current_user"]);
    assert_eq!(as_plain.as_deref(), Ok("plain"));
    for (who, text) in [
        ("user=rep password=x replication=1", "password authentication failed for user \"rep\""),
        ("user=nobody password=x dbname=postgres", "password authentication failed for user \"nobody\""),
        ("user=old password=o dbname=postgres", "password authentication failed for user \"old\""),
        ("user=nologin password=n dbname=postgres", "role \"nologin\" is not permitted to log in"),
        ("user=plain password=p replication=1", "start"),
    ] {
        let error = attempt(who).expect_err(who);
        assert!(error.0.contains(text), "{who}: {error}");
    }
    // A changed password counts at once; what is known outlives the upstream, and the relay's restart.
    primary.sql("alter role rep password 'new'");
    walrelay_testkit::wait_until("the new password", || {
        attempt("user=rep password=new replication=1").is_ok()
    });
    assert!(attempt("user=rep password=r replication=1").is_err());
    let mut primary = primary;
    primary.stop();
    assert!(attempt("user=rep password=new replication=1").is_ok());
    relay.kill9();
    relay.spawn();
    let attempt = |options: &str| relay.psql(options, &["IDENTIFY_SYSTEM"]);
    walrelay_testkit::wait_until("the relay without upstream", || {
        attempt("user=rep password=new replication=1").is_ok()
    });
    let error = relay.psql("user=plain password=p dbname=postgres", &["create table t ()"]);
    assert!(error.expect_err("there is no server").0.contains("the upstream server cannot be reached"));
}

fn the_relay_tells_of_itself(server: &Server) {
    let mut primary = Cluster::builder(server).start();
    let system = primary.sql("select system_identifier from pg_control_system()");
    let relay = relay_below(&primary).start();
    relay.create_slot("archive");
    let archive = Receivewal::start(server, &relay.conninfo(), "archive");
    let ask = |database: &str, sql: &str| {
        relay.psql(&format!("dbname={database}"), &[sql]).unwrap_or_else(|error| panic!("{sql}: {error}"))
    };
    let slots = "select slot_name, active from pg_replication_slots";
    let senders = "select application_name, state from pg_stat_replication";
    relay.wait_for_sql(senders, "pg_receivewal|streaming");
    assert_eq!(ask("walrelay", slots), "archive|t");
    assert_eq!(ask("walrelay", senders), "pg_receivewal|streaming");
    assert_eq!(ask("walrelay", "show wal_segment_size"), "16MB");
    let refused = relay.psql("dbname=walrelay", &["create table t ()"]);
    assert!(refused.expect_err("it is no database").0.contains("walrelay"));

    primary.stop();
    relay.wait_for_sql(senders, "pg_receivewal|streaming");
    assert_eq!(ask("postgres", slots), "archive|t");
    // Nobody takes it for a primary.
    assert_eq!(ask("postgres", "select pg_is_in_recovery()"), "t");
    assert_eq!(ask("walrelay", "show transaction_read_only"), "on");
    let writable = relay.psql("dbname=postgres target_session_attrs=read-write", &["select 1"]);
    assert!(writable.expect_err("it is not").0.contains("read-only"));
    let standby = relay.psql("dbname=postgres target_session_attrs=standby", &["select 1"]);
    assert_eq!(standby.as_deref(), Ok("1"));
    assert_eq!(ask("postgres", "select system_identifier::text from pg_control_system()"), system);
    assert_eq!(ask("postgres", "select setting from pg_settings where name='wal_segment_size'"), "16777216");
    archive.stop();
}

fn through_a_chain_of_relays(server: &Server) {
    let hba = "local all all trust\nhost all,replication postgres 127.0.0.1/32 trust\n\
               host all app 127.0.0.1/32 scram-sha-256\n";
    let primary = Cluster::builder(server).hba(hba).conf("password_encryption = 'scram-sha-256'").start();
    primary.sql("create role app login password 'let me in'; grant pg_monitor to app");
    primary.sql("select pg_create_physical_replication_slot('at_the_primary')");
    let upper = relay_below(&primary).name("upper").hba(hba).arg("--auth-query").start();
    let lower = upper.builder_below().name("lower").hba(hba).arg("--auth-query").start();
    upper.create_slot("at_upper");
    lower.create_slot("at_lower");
    let app = |relay: &Relay, sql: &str| {
        let conninfo =
            format!("host=127.0.0.1 port={} user=app password='let me in' dbname=postgres", relay.port());
        relay.psql(&conninfo, &[sql]).unwrap_or_else(|error| panic!("{sql}: {error}"))
    };
    assert_eq!(app(&lower, "select current_user"), "app");
    // Each relay tells of itself, in the statements of others too.
    let slots = "select string_agg(slot_name, ',' order by slot_name) from pg_replication_slots";
    assert_eq!(app(&lower, slots), "at_lower");
    assert_eq!(app(&upper, slots), "at_upper,lower");
    let consumers = "select string_agg(application_name, ',') from pg_stat_replication";
    assert_eq!(app(&lower, consumers), "");
    assert_eq!(app(&upper, consumers), "lower");
    assert_eq!(lower.sql("select pg_drop_replication_slot('at_lower')"), "");
    assert_eq!((app(&lower, slots), app(&upper, slots)), ("".to_owned(), "at_upper,lower".to_owned()));
}
