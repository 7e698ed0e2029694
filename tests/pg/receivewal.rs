//! `pg_receivewal` with all its options.

use std::cell::Cell;
use std::path::{Path, PathBuf};

use walrelay_testkit::{Cluster, Process, Receivewal, Relay, Scratch, Server, compare, on_every_version};

use crate::relay_below;

on_every_version!(it_archives_up_to_a_position, a_slot_serves_one);

fn it_archives_up_to_a_position(server: &Server) {
    let primary = Cluster::builder(server).start();
    let relay = relay_below(&primary).start();
    let run = Runner::new(&relay, server);
    assert_eq!(run.receivewal(&["-S", "acc_rw", "--create-slot"]).0, Some(0));
    let (again, said) = run.receivewal(&["-S", "acc_rw", "--create-slot"]);
    assert_eq!((again, said.contains("already exists")), (Some(1), true), "{said}");
    assert_eq!(run.receivewal(&["-S", "acc_rw", "--create-slot", "--if-not-exists"]).0, Some(0));

    // Its own slots keep nothing before their first use.
    relay.create_slots(&["plain", "zipped"]);
    primary.switch_wal();
    primary.sql("create table acc as select generate_series(1, 100000) as i");
    let last = primary.switch_wal();
    let end = primary.settled_lsn().to_string();
    // pg_receivewal ends when it sees WAL beyond the end it was given.
    primary.sql("insert into acc values (0)");
    let (plain, zipped) = (run.dir("plain"), run.dir("zipped"));
    let until = ["--no-loop", "-v", "--endpos", &end];
    let (code, said) = run.receivewal_into(&plain, &[&until[..], &["-S", "plain", "--synchronous"]].concat());
    assert_eq!((code, said.contains("stopped log streaming")), (Some(0), true), "{said}");
    compare::assert_segments(&primary, &plain, 2);
    let (code, said) = run.receivewal_into(&zipped, &[&until[..], &["-S", "zipped", "-Z", "1"]].concat());
    assert_eq!(code, Some(0), "{said}");
    assert!(zipped.join(format!("{last}.gz")).exists());

    assert_eq!(run.receivewal(&["-S", "acc_rw", "--drop-slot"]).0, Some(0));
    let (gone, said) = run.receivewal(&["-S", "acc_rw", "--drop-slot"]);
    assert_eq!((gone, said.contains("does not exist")), (Some(1), true), "{said}");
}

fn a_slot_serves_one(server: &Server) {
    let primary = Cluster::builder(server).start();
    let relay = relay_below(&primary).start();
    relay.create_slot("single");
    let first = Receivewal::start(server, &relay.conninfo(), "single");
    first.wait_for_segment(&primary.switch_wal());

    let run = Runner::new(&relay, server);
    let (code, said) = run.receivewal_into(&run.dir("second"), &["-S", "single", "--no-loop"]);
    assert_eq!((code, said.contains("is active for PID")), (Some(1), true), "{said}");
    let error = relay.try_command("DROP_REPLICATION_SLOT single").expect_err("it is in use");
    assert!(error.0.contains("is active for PID"), "{error}");

    // Free again as soon as its user has left.
    first.stop();
    walrelay_testkit::wait_until("the slot to be free", || {
        relay.try_command("DROP_REPLICATION_SLOT single").is_ok()
    });
}

/// Runs pg_receivewal against a relay, to its end.
struct Runner<'a> {
    server: &'a Server,
    conninfo: String,
    scratch: Scratch,
    runs: Cell<u32>,
}

impl<'a> Runner<'a> {
    fn new(relay: &Relay, server: &'a Server) -> Self {
        Runner { server, conninfo: relay.conninfo(), scratch: Scratch::new("runs"), runs: Cell::new(0) }
    }

    fn dir(&self, name: &str) -> PathBuf {
        self.scratch.dir(name)
    }

    fn receivewal_into(&self, dir: &Path, args: &[&str]) -> (Option<i32>, String) {
        self.receivewal(&[args, &["-D", &dir.display().to_string()]].concat())
    }

    /// The exit code and what it said.
    fn receivewal(&self, args: &[&str]) -> (Option<i32>, String) {
        let mut command = self.server.lasting("pg_receivewal");
        command.args(["-d", &self.conninfo]).args(args);
        self.runs.set(self.runs.get() + 1);
        let log = self.scratch.join(&format!("log-{}", self.runs.get()));
        let mut process = Process::spawn("pg_receivewal", command, &log);
        let code = process.wait().code();
        (code, process.log().text())
    }
}
