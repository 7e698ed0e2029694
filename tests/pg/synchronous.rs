//! The relay as the only synchronous standby.

use walrelay_proto::Lsn;
use walrelay_testkit::{Cluster, Server, on_every_version};

use crate::relay_below;

on_every_version!(commits_wait_for_the_relay);

const COMMIT: &str =
    "with row as (insert into waited values (1)) select pg_logical_emit_message(true, 'a', 'b')";

fn commits_wait_for_the_relay(server: &Server) {
    let primary = Cluster::builder(server).start();
    primary.sql("create table waited (i int)");
    primary.pgbench_init(1);
    let mut relay = relay_below(&primary).start();
    primary.append_conf("synchronous_standby_names = 'walrelay'");

    for level in ["remote_write", "on"] {
        primary.append_conf(&format!("synchronous_commit = {level}"));
        primary.reload();
        primary.wait_for_sql("show synchronous_commit", level);
        primary.wait_for_sql("select sync_state from pg_stat_replication", "sync");
        primary.pgbench(2, 100);
    }

    let mut session = primary.session();
    let before_commit = session.run(COMMIT).map(|row| row.parse::<Lsn>());
    let before_commit = before_commit.expect("the relay is there").expect("it returns a position");
    assert!(relay.flush_lsn() > before_commit, "an acknowledged commit is durable here");

    relay.terminate();
    session.send(COMMIT).expect("the session is open");
    primary.wait_for_sql("select count(*) from pg_stat_activity where wait_event = 'SyncRep'", "1");
    relay.start();
    session.answer().expect("the relay came back");
    relay.assert_calm();
}
