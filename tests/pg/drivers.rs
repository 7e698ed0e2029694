//! Drivers' whole repertoire over connections that the relay forwards.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::mpsc::{Receiver, channel};

use bytes::Bytes;
use futures_util::future::join_all;
use futures_util::{SinkExt, TryStreamExt};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::PgLsn;
use tokio_postgres::{AsyncMessage, CancelToken, Client, NoTls, SimpleQueryMessage};
use walrelay_testkit::{
    Cluster, PATIENCE, Process, Python, Relay, Scratch, Server, on_every_version, wait_until,
};

use crate::relay_below;

on_every_version!(tokio_postgres_does_everything, psycopg_does_everything, pgbench_in_every_mode);

const HBA: &str = "host replication postgres 127.0.0.1/32 trust\n\
                   host all app 127.0.0.1/32 scram-sha-256\n";

/// A megabyte in kB, as `/proc` counts.
const MB: u64 = 1024;

/// A primary that wants passwords, and a relay that gets them from there.
fn stage(server: &Server) -> (Cluster, Relay) {
    let primary = Cluster::builder(server).password("s3cret").start();
    primary.sql("create role app login password 'let me in'; grant all on schema public to app");
    let relay = relay_below(&primary).hba(HBA).arg("--auth-query").start();
    relay.create_slot("seen");
    (primary, relay)
}

/// As `app`.
fn conninfo(relay: &Relay) -> String {
    format!("host=127.0.0.1 port={} user=app password='let me in' dbname=postgres", relay.port())
}

struct Driver {
    client: Client,
    messages: Receiver<AsyncMessage>,
}

async fn connect(relay: &Relay) -> Driver {
    let (client, mut connection) =
        tokio_postgres::connect(&conninfo(relay), NoTls).await.expect("it may log in");
    let (sender, messages) = channel();
    tokio::spawn(async move {
        while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await {
            let _ = sender.send(message);
        }
    });
    Driver { client, messages }
}

impl Driver {
    fn message(&self) -> AsyncMessage {
        self.messages.recv_timeout(PATIENCE).expect("a message comes")
    }
}

fn tokio_postgres_does_everything(server: &Server) {
    let (primary, relay) = stage(server);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("threads can be had").block_on(async {
        let mut driver = connect(&relay).await;
        statements(&driver.client, &relay).await;
        transactions(&mut driver.client).await;
        messages(&driver, &primary).await;
        large_messages(&driver.client).await;
        copies(&driver.client, &relay).await;
        large_results(&driver.client, &relay, &primary).await;
        cancellation(&driver.client, &primary).await;
    });
    primary.wait_for_sql("select count(*) from pg_stat_activity where usename = 'app'", "0");
    relay.assert_calm();
}

async fn statements(client: &Client, relay: &Relay) {
    let sum = client.prepare("select $1::int4 + $2::int4").await.expect("it is right");
    for number in 0..3 {
        let row = client.query_one(&sum, &[&number, &1]).await.expect("it is prepared");
        assert_eq!(row.get::<_, i32>(0), number + 1);
    }
    // All on their way before the first answer.
    let many = join_all((0..500).map(async |number| client.query_one(&sum, &[&number, &number]).await)).await;
    let many: Vec<i32> = many.into_iter().map(|row| row.expect("it is prepared").get(0)).collect();
    assert_eq!(many, (0..500).map(|number| number * 2).collect::<Vec<_>>());

    let several = client.simple_query("select 1; select 2").await.expect("both are right");
    let values = several.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0),
        _ => None,
    });
    assert_eq!(values.collect::<Vec<_>>(), ["1", "2"]);
    let error = client.query_one("select 1 / $1::int4", &[&0]).await.expect_err("that cannot be");
    assert_eq!(error.code(), Some(&SqlState::DIVISION_BY_ZERO));

    // WAL-G's question, with its boolean in binary.
    let slot = "select active, restart_lsn from pg_catalog.pg_replication_slots \
                where slot_name OPERATOR(pg_catalog.=) $1";
    assert!(client.query(slot, &[&"walg"]).await.expect("it is right").is_empty());
    relay.create_slot("walg");
    let row = client.query_one(slot, &[&"walg"]).await.expect("it is there now");
    let restart = relay.slot_lsn("walg").expect("it keeps WAL").as_u64();
    assert_eq!((row.get::<_, bool>(0), u64::from(row.get::<_, PgLsn>(1))), (false, restart));
}

async fn transactions(client: &mut Client) {
    client.batch_execute("create table rs (i int8, t text)").await.expect("app may");
    let mut outer = client.transaction().await.expect("none is open");
    outer.execute("insert into rs values ($1, 'stays')", &[&1_i64]).await.expect("the table is there");
    let inner = outer.savepoint("within").await.expect("it is new");
    inner.execute("insert into rs values (2, 'goes')", &[]).await.expect("the table is there");
    inner.query("select 1/0", &[]).await.expect_err("that cannot be");
    let error = inner.query("select 1", &[]).await.expect_err("it has failed");
    assert_eq!(error.code(), Some(&SqlState::IN_FAILED_SQL_TRANSACTION));
    inner.rollback().await.expect("it is open");
    outer.commit().await.expect("it is fine");
    let rows = client.query("select i from rs", &[]).await.expect("it is right");
    assert_eq!(rows.iter().map(|row| row.get(0)).collect::<Vec<i64>>(), [1]);
}

async fn messages(driver: &Driver, primary: &Cluster) {
    driver.client.batch_execute("do $$ begin raise notice 'from afar'; end $$").await.expect("it is right");
    let AsyncMessage::Notice(notice) = driver.message() else { panic!("no notice") };
    assert_eq!((notice.severity(), notice.message()), ("NOTICE", "from afar"));
    driver.client.batch_execute("listen rs").await.expect("anybody may");
    // It comes to an idle session.
    primary.sql("notify rs, 'hello'");
    let AsyncMessage::Notification(received) = driver.message() else { panic!("no notification") };
    assert_eq!((received.channel(), received.payload()), ("rs", "hello"));
}

/// A statement and a value too long to be looked at as a whole.
async fn large_messages(client: &Client) {
    let text = format!("select length('{}')", "x".repeat(3 << 20));
    let row = client.query_one(&text, &[]).await.expect("it is right");
    assert_eq!(row.get::<_, i32>(0), 3 << 20);
    let value = vec![b'v'; 20 << 20];
    let row = client.query_one("select $1::bytea", &[&value]).await.expect("it is right");
    assert!(row.get::<_, &[u8]>(0) == value);
}

async fn copies(client: &Client, relay: &Relay) {
    let bounded = Bounded::new(relay);
    let sink = client.copy_in("copy rs (t) from stdin").await.expect("app owns it");
    let mut sink = pin!(sink);
    let line = Bytes::from("y".repeat(999) + "\n");
    for _ in 0..50_000 {
        sink.send(line.clone()).await.expect("it is taken");
    }
    assert_eq!(sink.finish().await.expect("all is well"), 50_000);
    let copied = client.copy_out("copy (select t from rs where i is null) to stdout").await.expect("app may");
    let bytes = copied.try_fold(0, |sum, part| async move { Ok(sum + part.len()) }).await;
    assert_eq!(bytes.expect("all of it comes"), 50_000_000);

    let sink = client.copy_in::<_, Bytes>("copy rs from stdin").await.expect("app owns it");
    let mut sink = pin!(sink);
    sink.send(Bytes::from("no number\t\n")).await.expect("it is taken");
    let error = sink.finish().await.expect_err("it is none");
    assert_eq!(error.code(), Some(&SqlState::INVALID_TEXT_REPRESENTATION));
    bounded.check("COPY of 50 MB both ways");
}

/// Who does not read is not read from: not even then does the relay hold much.
async fn large_results(client: &Client, relay: &Relay, primary: &Cluster) {
    let bounded = Bounded::new(relay);
    let query = "select i, repeat('z', 1000) from generate_series(1, $1::int4) i";
    let rows = client.query_raw(query, [&100_000]).await.expect("it is right");
    let mut rows = pin!(rows);
    assert_eq!(rows.try_next().await.expect("it is right").expect("the first").get::<_, i32>(0), 1);
    primary.wait_for_sql("select wait_event from pg_stat_activity where usename = 'app'", "ClientWrite");
    let mut expected = 1;
    while let Some(row) = rows.try_next().await.expect("all of them come") {
        expected += 1;
        assert_eq!((row.get::<_, i32>(0), row.get::<_, &str>(1).len()), (expected, 1000));
    }
    assert_eq!(expected, 100_000);
    bounded.check("a result of 100 MB");
}

async fn cancellation(client: &Client, primary: &Cluster) {
    let token: CancelToken = client.cancel_token();
    let sleep = client.prepare("select pg_sleep(600)").await.expect("it is right");
    // On its way at the first poll.
    let sleep = client.query(&sleep, &[]);
    let cancel = async {
        let asleep = "select count(*) from pg_stat_activity where usename = 'app' and wait_event = 'PgSleep'";
        tokio::task::block_in_place(|| wait_until("the sleep", || primary.sql(asleep) == "1"));
        token.cancel_query(NoTls).await.expect("the relay takes it");
    };
    let (slept, ()) = futures_util::join!(sleep, cancel);
    assert_eq!(slept.expect_err("it is cancelled").code(), Some(&SqlState::QUERY_CANCELED));
    client.query_one("select 1", &[]).await.expect("the session goes on");
}

/// The relay's memory from here on.
struct Bounded {
    status: String,
    before: u64,
}

impl Bounded {
    fn new(relay: &Relay) -> Bounded {
        let status = format!("/proc/{}/status", relay.pid());
        Bounded { before: memory(&status, "VmRSS:"), status }
    }

    #[track_caller]
    fn check(&self, what: &str) {
        let peak = memory(&self.status, "VmHWM:");
        assert!(peak < self.before + 24 * MB, "{what}: {} kB before, up to {peak} kB", self.before);
    }
}

/// In kB.
fn memory(status: &str, field: &str) -> u64 {
    let text = std::fs::read_to_string(status).expect("the relay runs");
    let line = text.lines().find(|line| line.starts_with(field)).expect("Linux tells");
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).expect("a number")
}

fn psycopg_does_everything(server: &Server) {
    let (primary, relay) = stage(server);
    let scratch = Scratch::new("psycopg");
    let command = Python::require().lasting(include_str!("drivers.py"), &[&conninfo(&relay)]);
    let mut process = Process::spawn("psycopg", command, &scratch.join("log"));
    process.wait_success();
    assert!(process.log().text().contains("older driver done"), "{}", process.log().tail());
    primary.wait_for_sql("select count(*) from pg_stat_activity where usename = 'app'", "0");
    relay.assert_calm();
}

fn pgbench_in_every_mode(server: &Server) {
    let (primary, relay) = stage(server);
    let (conninfo, scratch) = (conninfo(&relay), Scratch::new("pgbench"));
    let pgbench = |args: &[&str]| {
        let mut command = server.lasting("pgbench");
        command.args(args).arg(&conninfo);
        let mut process = Process::spawn("pgbench", command, &scratch.join("log"));
        process.wait_success();
        process.log().text()
    };
    pgbench(&["-i", "-q"]);
    for mode in ["simple", "extended", "prepared"] {
        pgbench(&["-n", "-S", "-M", mode, "-c", "4", "-t", "500"]);
        pgbench(&["-n", "-M", mode, "-c", "4", "-t", "50"]);
    }
    let said = pgbench(&["-n", "-S", "-C", "-c", "2", "-t", "10"]);
    assert_eq!(said.matches("number of failed transactions: 0 (").count(), 7, "{said}");
    assert_eq!(primary.sql("select count(*) from pgbench_history"), "600");
    relay.assert_calm();
}
