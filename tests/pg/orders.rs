//! What an administrator orders in the relay's own database: RELOAD, DISCONNECT, DROP SLOT, PAUSE, RESUME, SHUTDOWN.

use std::fs;

use walrelay_testkit::{Cluster, Relay, Scratch, Server, Signal, SqlError, on_one_version, wait_until};

use crate::relay_below;

on_one_version!(
    orders_are_for_administrators,
    an_administrator_runs_the_relay_from_psql,
    listed_roles_may_look_and_nothing_else,
);

fn run(relay: &Relay, user: &str, sql: &str) -> Result<String, SqlError> {
    relay.psql(&format!("dbname=walrelay user={user}"), &[sql])
}

/// Three roles that may log in: one named as administrator, one in the group that is, and one who may only look.
fn primary(server: &Server) -> Cluster {
    let primary = Cluster::builder(server).seg_mb(1).start();
    primary.sql("create role admins");
    primary.sql("create role boss login; create role deputy login in role admins; create role watcher login in role pg_monitor");
    primary
}

fn orders_are_for_administrators(server: &Server) {
    let primary = primary(server);
    let relay = relay_below(&primary).arg("--auth-query").arg("--admin-role").arg("admins").start();
    relay.create_slot("s1");
    for order in
        ["reload", "shutdown", "shutdown now", "disconnect 1", "drop slot s1", "pause main", "resume main"]
    {
        let refused = run(&relay, "watcher", order).expect_err("it has no right");
        assert!(refused.0.contains("permission denied to run"), "{order}: {refused}");
    }
    relay.log().wait_for("role \"watcher\" may not run SHUTDOWN");
    // Through the group; what is not there is said.
    run(&relay, "deputy", "reload").expect("it may");
    let nobody = run(&relay, "deputy", "disconnect 1").expect_err("nobody has that number");
    assert!(nobody.0.contains("no consumer has PID 1"), "{nobody}");
    let missing = run(&relay, "deputy", "pause main").expect_err("there is no such target");
    assert!(missing.0.contains("archive target \"main\" does not exist"), "{missing}");
    let block =
        relay.psql("dbname=walrelay user=deputy", &["begin; drop slot s1"]).expect_err("it is a block");
    assert!(block.0.contains("DROP SLOT cannot run inside a transaction block"), "{block}");
    let wrong = run(&relay, "deputy", "shutdown tomorrow").expect_err("it is written otherwise");
    assert!(wrong.0.contains("the command is written SHUTDOWN [NOW]"), "{wrong}");
    // Elsewhere the words are the server's.
    let upstream = relay.psql("dbname=postgres user=postgres", &["reload"]).expect_err("it is no SQL");
    assert!(upstream.0.contains("syntax error"), "{upstream}");
    assert_eq!(run(&relay, "watcher", "select slot_name from pg_replication_slots"), Ok("s1".to_owned()));
}

/// Who may look is listed, by its own name and through a group, changes with SIGHUP, and may do nothing.
fn listed_roles_may_look_and_nothing_else(server: &Server) {
    let primary = Cluster::builder(server).start();
    primary.sql("create role lookers; create role eye login; create role deputy login in role lookers; create role other login");
    let scratch = Scratch::new("monitors");
    let write = |roles: &str| scratch.shared_secret("walrelay.toml", &format!("monitor-role = [{roles}]\n"));
    let config = write("\"eye\", \"lookers\"").display().to_string();
    let mut relay = relay_below(&primary).arg("--auth-query").arg("--config").arg(&config).start();
    relay.create_slot("s1");
    for role in ["eye", "deputy"] {
        let slots = run(&relay, role, "show slots").expect("it may look");
        assert!(slots.starts_with("s1|"), "{slots}");
        let refused = run(&relay, role, "drop slot s1").expect_err("it may do nothing");
        assert!(refused.0.contains("permission denied to run DROP SLOT"), "{refused}");
    }
    let refused = run(&relay, "other", "show slots").expect_err("it is not listed");
    assert!(refused.0.contains("--monitor-role"), "{refused}");
    write("\"other\"");
    relay.signal(Signal::HUP);
    relay.log().wait_for("monitor-role changed, in effect");
    run(&relay, "other", "show slots").expect("it may look now");
    run(&relay, "eye", "show slots").expect_err("it may not any more");
}

fn an_administrator_runs_the_relay_from_psql(server: &Server) {
    let primary = primary(server);
    let scratch = Scratch::new("orders");
    let wal = scratch.join("wal");
    fs::create_dir(&wal).expect("the directory is ours");
    let text = |more: &str| {
        format!("admin-role = [\"boss\"]\n[archive.off-site]\nurl = \"file://{}\"\n{more}", wal.display())
    };
    let config = scratch.shared_secret("walrelay.toml", &text(""));
    let mut relay =
        relay_below(&primary).arg("--auth-query").arg("--config").arg(&config.display().to_string()).start();
    relay.create_slot("s1");
    relay.create_slot("unused");
    let standby = primary.standby().name("s1").follow(&relay.conninfo()).slot("s1").start();
    primary.sql("create table t as select 1 as n");
    standby.wait_for_replay(primary.flush_lsn());

    let consumer = || {
        let rows = run(&relay, "boss", "show consumers").expect("it may");
        rows.split_once('|').map(|(pid, _)| pid.to_owned())
    };
    let pid = consumer().expect("it streams");
    run(&relay, "boss", &format!("disconnect {pid}")).expect("it may");
    standby.log().wait_for("terminating connection due to administrator command");
    wait_until("it to be back", || consumer().is_some_and(|now| now != pid));

    run(&relay, "boss", "drop slot unused").expect("it may");
    let slots = run(&relay, "boss", "select slot_name from pg_replication_slots");
    assert_eq!(slots, Ok("s1".to_owned()));

    run(&relay, "boss", "pause \"off-site\"").expect("there is one");
    let segment = primary.switch_wal();
    let next = primary.switch_wal();
    relay.wait_for_flush(primary.flush_lsn());
    let pending =
        || run(&relay, "boss", "show archive").expect("it may").split('|').nth(5).map(str::to_owned);
    wait_until("its files to wait", || pending().is_some_and(|files| files != "0"));
    assert!(!wal.join(&segment).exists() && !wal.join(&next).exists());
    let status = run(&relay, "boss", "show status").expect("it may");
    assert!(status.contains("\"paused_since\":\""), "{status}");
    run(&relay, "boss", "resume 'off-site'").expect("there is one");
    wait_until("it to be taken", || wal.join(&segment).exists() && wal.join(&next).exists());

    fs::write(&config, text("concurrency = 3\n")).expect("the file is ours");
    run(&relay, "boss", "reload").expect("it may");
    relay.log().wait_for("archive target \"off-site\": concurrency changed");
    fs::write(&config, text("concurency = 3\n")).expect("the file is ours");
    run(&relay, "boss", "reload").expect("it may");
    relay.log().wait_for("configuration not reloaded, the old one stays");
    fs::write(&config, text("")).expect("the file is ours");

    run(&relay, "boss", "shutdown").expect("it may");
    assert_eq!(relay.wait_exit(), Some(0));
}
