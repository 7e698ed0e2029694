//! Sessions that the relay answers itself, as drivers ask them: without an upstream, and in the relay's own database.

use std::net::IpAddr;
use std::time::SystemTime;

use tokio_postgres::error::SqlState;
use tokio_postgres::types::PgLsn;
use tokio_postgres::{Client, NoTls};
use walrelay_testkit::{
    Cluster, Process, Python, Receivewal, Relay, Scratch, Server, on_every_version, on_one_version,
};

use crate::relay_below;

on_every_version!(drivers_find_their_way_without_an_upstream);
on_one_version!(psycopg_finds_its_way_without_an_upstream);

/// A relay with a consumer, whose primary has gone.
fn stage(server: &Server) -> (Cluster, Relay, Receivewal) {
    let mut primary = Cluster::builder(server).start();
    let relay = relay_below(&primary).start();
    relay.create_slot("archive");
    relay.create_slot("spare");
    let archive = Receivewal::start(server, &relay.conninfo(), "archive");
    relay.wait_for_sql("select state from pg_stat_replication", "streaming");
    primary.stop();
    let recovery = "select pg_is_in_recovery()";
    relay.wait_for_sql(recovery, "t");
    (primary, relay, archive)
}

async fn connect(relay: &Relay, database: &str) -> Client {
    let conninfo = format!("host=127.0.0.1 port={} user=postgres dbname={database}", relay.port());
    let (client, connection) = tokio_postgres::connect(&conninfo, NoTls).await.expect("it may log in");
    tokio::spawn(connection);
    client
}

fn drivers_find_their_way_without_an_upstream(server: &Server) {
    let (_primary, relay, archive) = stage(server);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("threads can be had").block_on(async {
        for database in ["postgres", "walrelay"] {
            let mut client = connect(&relay, database).await;
            views(&client, &relay).await;
            blocks(&mut client).await;
            let row = client.query_one("select pg_is_in_recovery(), current_database()", &[]).await;
            let row = row.expect("it is answered");
            assert_eq!((row.get::<_, bool>(0), row.get::<_, &str>(1)), (true, database));
        }
    });
    archive.stop();
}

/// In binary, as the driver has it.
async fn views(client: &Client, relay: &Relay) {
    let slot = "select slot_name, active, active_pid, restart_lsn, safe_wal_size from pg_replication_slots \
                where slot_name = $1";
    let slot = client.prepare(slot).await.expect("it is answered");
    for (name, is_active) in [("archive", true), ("spare", false), ("archive", true)] {
        let row = client.query_one(&slot, &[&name]).await.expect("it is there");
        assert_eq!((row.get::<_, &str>(0), row.get::<_, bool>(1)), (name, is_active));
        assert_eq!(row.get::<_, Option<i32>>(2).is_some_and(|pid| pid > 1 << 22), is_active);
        let restart = relay.slot_lsn(name).map(|lsn| lsn.as_u64());
        assert_eq!(row.get::<_, Option<PgLsn>>(3).map(u64::from), restart);
        assert_eq!(row.get::<_, Option<i64>>(4), None);
    }
    assert!(client.query(&slot, &[&"none"]).await.expect("it is answered").is_empty());
    let senders = "select pid, usename, client_addr, backend_start, flush_lsn::text from pg_stat_replication \
                   where application_name = $1 and state = 'streaming'";
    let row = client.query_one(senders, &[&"pg_receivewal"]).await.expect("it streams");
    assert_eq!(row.get::<_, &str>(1), "postgres");
    assert_eq!(row.get::<_, Option<IpAddr>>(2), Some(IpAddr::from([127, 0, 0, 1])));
    assert!(row.get::<_, SystemTime>(3) <= SystemTime::now());
    let count = client.query_one("select count(*) from pg_stat_replication", &[]).await.expect("one row");
    assert_eq!(count.get::<_, i64>(0), 1);
}

async fn blocks(client: &mut Client) {
    let slots = "select slot_name from pg_replication_slots order by slot_name";
    let slots = client.prepare(slots).await.expect("it is answered");
    let block = client.transaction().await.expect("none is open");
    let portal = block.bind(&slots, &[]).await.expect("it has no values");
    let name = |rows: Vec<tokio_postgres::Row>| rows.iter().map(|row| row.get(0)).collect::<Vec<String>>();
    assert_eq!(name(block.query_portal(&portal, 1).await.expect("one of two")), ["archive"]);
    assert_eq!(name(block.query_portal(&portal, 0).await.expect("the rest")), ["spare"]);
    assert!(block.query_portal(&portal, 5).await.expect("nothing is left").is_empty());
    block.query("select * from pg_class", &[]).await.expect_err("it cannot be read here");
    let error = block.query("select 1", &[]).await.expect_err("the transaction has failed");
    assert_eq!(error.code(), Some(&SqlState::IN_FAILED_SQL_TRANSACTION));
    block.rollback().await.expect("it is open");
    client.batch_execute("set extra_float_digits = 3; discard all").await.expect("drivers send it");
    let error = client.query(&slots, &[]).await.expect_err("it is forgotten");
    assert_eq!(error.code(), Some(&SqlState::INVALID_SQL_STATEMENT_NAME));
    client.query_one("select 1", &[]).await.expect("the session goes on");
}

fn psycopg_finds_its_way_without_an_upstream(server: &Server) {
    let (_primary, relay, archive) = stage(server);
    let scratch = Scratch::new("psycopg-alone");
    for database in ["postgres", "walrelay"] {
        let conninfo = format!("host=127.0.0.1 port={} user=postgres dbname={database}", relay.port());
        let command = Python::require().lasting(include_str!("console.py"), &[&conninfo]);
        let mut process = Process::spawn("psycopg", command, &scratch.join("log"));
        process.wait_success();
        assert!(process.log().text().contains("all is answered"), "{}", process.log().tail());
    }
    archive.stop();
}
