//! `make demo`: a primary, a relay, a standby and an archive on this machine, first at work and then compared.
//!
//! `demo [PATH OF walrelay]`. Exit code 0 when every proof holds. What it starts ends with it, also on Ctrl-C;
//! when something fails, directories and logs stay and their paths are printed.

mod table;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::park_timeout;
use std::time::{Duration, Instant};

use walrelay_testkit::{Cluster, Receivewal, Relay, Server, compare, drill, install};

use table::{Positions, Table};

const WRITING: Duration = Duration::from_secs(10);
const TICK: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    drill::main("demo", |interrupted| {
        let server = install::ensure_any().map_err(|error| error.to_string())?;
        play(&server, interrupted);
        Ok(true)
    })
}

/// Everything that runs, in the order in which it is ended.
struct Scene {
    archive: Receivewal,
    standby: Cluster,
    relay: Relay,
    primary: Cluster,
}

/// Ends early when interrupted.
fn play(server: &Server, interrupted: &AtomicBool) {
    let Some(scene) = Scene::set(server, interrupted) else { return };
    if scene.write(interrupted) {
        scene.prove();
        println!("\nThe primary fed one walsender; everything else hung on the relay.");
    }
}

impl Scene {
    fn set(server: &Server, interrupted: &AtomicBool) -> Option<Scene> {
        let go_on = || (!interrupted.load(Ordering::Relaxed)).then_some(());
        println!("\nwalrelay demo, with PostgreSQL {} from {}\n", server.version(), server.bin().display());
        let primary = Cluster::builder(server).start();
        primary.pgbench_init(5);
        done("primary", &format!("127.0.0.1:{}, with pgbench's tables", primary.port()));
        go_on()?;

        let relay = Relay::builder(binary(), &primary).start();
        relay.create_slots(&["standby", "archive"]);
        done("relay", &shown(&relay));
        go_on()?;

        let standby = primary.standby().follow(&relay.conninfo()).slot("standby").start();
        let sources = "pg_basebackup without WAL, primary_conninfo and primary_slot_name on the relay";
        done("standby", &format!("127.0.0.1:{}, {sources}", standby.port()));
        go_on()?;

        let archive = Receivewal::start(server, &relay.conninfo(), "archive");
        done("archive", "pg_receivewal --synchronous, from the relay");
        go_on().map(|()| Scene { archive, standby, relay, primary })
    }

    /// False when interrupted.
    fn write(&self, interrupted: &AtomicBool) -> bool {
        println!("\npgbench writes for {} seconds.\n", WRITING.as_secs());
        let pgbench = self.primary.spawn_pgbench(2);
        let start = Instant::now();
        let mut table = Table::new(self.positions());
        while start.elapsed() < WRITING && !interrupted.load(Ordering::Relaxed) {
            pause(TICK, interrupted);
            table.show(start.elapsed(), &self.positions());
        }
        pgbench.stop();
        !interrupted.load(Ordering::Relaxed)
    }

    /// Asks everybody at once: one after the other would show lag that is only the time between questions.
    fn positions(&self) -> Positions {
        std::thread::scope(|scope| {
            let standby = scope.spawn(|| self.standby.replay_lsn());
            let archive = scope.spawn(|| self.relay.slot_lsn("archive"));
            let relay = scope.spawn(|| self.relay.flush_lsn());
            let primary = self.primary.flush_lsn();
            let asked = "a thread of the demo panicked";
            Positions {
                primary,
                relay: Some(relay.join().expect(asked)),
                standby: Some(standby.join().expect(asked)),
                archive: archive.join().expect(asked),
            }
        })
    }

    /// Compares everything with the primary.
    ///
    /// # Panics
    /// At the first difference.
    fn prove(&self) {
        println!("\nComparing with the primary.\n");
        let last = self.primary.switch_wal();
        self.relay.wait_for_segment(&last);
        self.archive.wait_for_segment(&last);
        self.standby.wait_for_replay(self.primary.settled_lsn());

        let bytes =
            compare::dumps(&self.primary, &self.standby).unwrap_or_else(|why| panic!("standby: {why}"));
        done("standby", &format!("pg_dump of it and of the primary are the same {} MB", bytes >> 20));
        for (name, dir) in [("relay", self.relay.wal_dir()), ("archive", self.archive.wal_dir())] {
            let files = compare::segments(&self.primary, &dir).unwrap_or_else(|why| panic!("{name}: {why}"));
            done(name, &format!("{files} finished WAL files are the primary's, byte for byte"));
        }
        assert_eq!(
            self.primary.sql("select count(*) from pg_stat_replication"),
            "1",
            "walsenders on the primary"
        );
    }
}

/// In a loop, because joining threads may leave a wake-up behind.
fn pause(time: Duration, interrupted: &AtomicBool) {
    let end = Instant::now() + time;
    while Instant::now() < end && !interrupted.load(Ordering::Relaxed) {
        park_timeout(end.saturating_duration_since(Instant::now()));
    }
}

fn done(who: &str, what: &str) {
    println!("✓ {who:<8} {what}");
}

fn binary() -> PathBuf {
    std::env::args_os().nth(1).map_or_else(drill::built_relay, PathBuf::from)
}

/// The command line, one option a line.
fn shown(relay: &Relay) -> String {
    let quoted = |arg: &String| if arg.contains(' ') { format!("\"{arg}\"") } else { arg.clone() };
    let words: Vec<String> = relay.command_line().iter().map(quoted).collect();
    let options: Vec<String> = words.chunks(2).map(|pair| pair.join(" ")).collect();
    format!("walrelay {}", options.join(" \\\n                    "))
}
