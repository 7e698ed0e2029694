//! What an operator can get wrong: each mistake ends the relay with its own exit code and a line that says what
//! to do, except those that may pass, which the relay waits out.

use walrelay_testkit::{Cluster, Port, Process, Relay, Scratch, Server, on_every_version, tied_command};

use crate::{relay_below, walrelay};

on_every_version!(mistakes_are_named, the_upstream_may_come_later);

fn mistakes_are_named(server: &Server) {
    let primary = Cluster::builder(server).password("right").start();
    primary.sql("create role plain login password 'right'");
    let upstream = |rest: &str| format!("host=127.0.0.1 port={} {rest}", primary.port());

    ends(&primary, &upstream("user=postgres password=wrong"), 7, "password authentication failed");
    ends(&primary, &upstream("user=postgres"), 7, "no password supplied");
    ends(&primary, &upstream("user=plain password=right"), 7, "ALTER ROLE ... REPLICATION");
    ends(&primary, &upstream("user=postgres password=right nosuch=1"), 2, "nosuch");
    ends(&primary, &upstream("user=postgres password=right sslmode=require"), 8, "SSL");

    let mut relay = relay_below(&primary).upstream(&upstream("user=postgres password=right")).start();
    let data_dir = relay.data_dir().display().to_string();
    let (code, said) = run(&["--upstream", &upstream("user=postgres password=right"), "-D", &data_dir]);
    assert_eq!((code, said.contains("is in use by another walrelay (PID ")), (3, true), "{said}");

    let scratch = Scratch::new("second");
    let second = scratch.join("data").display().to_string();
    let taken = format!("127.0.0.1:{}", relay.port());
    let (code, said) =
        run(&["--upstream", &upstream("user=postgres password=right"), "-D", &second, "--listen", &taken]);
    assert_eq!((code, said.contains("could not listen on")), (5, true), "{said}");

    let own = Port::take();
    let (upstream_of_itself, there) =
        (format!("host=localhost port={} user=postgres", own.number()), format!("0.0.0.0:{}", own.number()));
    let third = scratch.join("itself").display().to_string();
    let (code, said) = run(&["--upstream", &upstream_of_itself, "-D", &third, "--listen", &there]);
    assert_eq!((code, said.contains("leads back to this relay itself")), (8, true), "{said}");

    relay.terminate();
    let other = Cluster::builder(server).name("other").fresh_initdb().start();
    // A relay that holds WAL goes on serving it; this one has none to lose.
    for file in std::fs::read_dir(relay.wal_dir()).expect("the relay has made it") {
        std::fs::remove_file(file.expect("it can be read").path()).expect("it is a file");
    }
    let port = Port::take();
    let listen = format!("127.0.0.1:{}", port.number());
    let (code, said) = run(&["--upstream", &other.conninfo(), "-D", &data_dir, "--listen", &listen]);
    assert_eq!((code, said.contains("belongs to another cluster")), (4, true), "{said}");

    let mut other = other;
    other.append_conf("wal_level = minimal\nmax_wal_senders = 0");
    if server.major() >= 17 {
        other.append_conf("summarize_wal = off");
    }
    other.restart();
    let third = scratch.join("third").display().to_string();
    let (code, said) = run(&["--upstream", &other.conninfo(), "-D", &third, "--listen", &listen]);
    assert_eq!((code, said.contains("set wal_level = replica")), (8, true), "{said}");
}

fn the_upstream_may_come_later(server: &Server) {
    let mut primary = Cluster::builder(server).start();
    primary.stop();
    let mut relay = relay_below(&primary).prepare();
    relay.spawn();
    relay.log().wait_for("trying again in");
    // It listens already, and says what it waits for.
    let error = relay.try_command("IDENTIFY_SYSTEM").expect_err("there is nothing to tell yet");
    assert!(error.0.contains("starting up"), "{error}");
    primary.start();
    primary.pgbench_init(1);
    relay.wait_until_it_answers();
    relay.wait_for_flush(primary.settled_lsn());
}

/// A relay with this upstream ends by itself, with this code and these words.
#[track_caller]
fn ends(primary: &Cluster, upstream: &str, code: i32, words: &str) {
    let mut relay: Relay = relay_below(primary).upstream(upstream).prepare();
    relay.spawn();
    let found = relay.wait_exit();
    let said = relay.log().text();
    assert_eq!((found, said.contains(words)), (Some(code), true), "{upstream}: {said}");
}

/// Runs the relay with these arguments to its end; exit code and what it said.
fn run(args: &[&str]) -> (i32, String) {
    let scratch = Scratch::new("refused");
    let log = scratch.join("log");
    let mut command = tied_command(walrelay());
    command.args(args);
    let code = Process::spawn("walrelay", command, &log).wait().code();
    (code.expect("it ends by itself"), std::fs::read_to_string(log).expect("it was written"))
}
