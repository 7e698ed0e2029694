//! Twenty promotions in a row, while the relay is stopped and killed at any moment.

use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use walrelay_testkit::{
    Cluster, Receivewal, Relay, Server, compare, on_every_version, on_one_version_mostly,
};

use crate::relay_below;

on_every_version!(the_relay_sleeps_through_three);
on_one_version_mostly!(twenty_promotions);

const PROMOTIONS: u32 = 20;

fn twenty_promotions(server: &Server) {
    let mut primary = Cluster::builder(server).name("a").seg_mb(1).start();
    let mut standby = primary.standby().name("b").start();
    let relay = relay_below(&primary).upstream(&Relay::hosts(&[&primary, &standby])).start();
    relay.create_slots(&["c", "archive"]);
    let mut archive = Receivewal::start(server, &relay.conninfo(), "archive");
    let c = primary.standby().name("c").follow(&relay.conninfo()).slot("c").start();
    primary.pgbench_init(1);

    let chaos = Chaos::start(relay);
    for round in 1..=PROMOTIONS {
        primary.pgbench(2, 20);
        primary.switch_wal();
        primary.pgbench(1, 20);
        let here = format!("standby{round}");
        change_roles(&mut primary, &mut standby, &here);
    }
    let relay = chaos.stop();
    // It ends when a server does in the midst of its first questions; whoever runs it has it started again.
    archive.revive();

    primary.pgbench(2, 50);
    let last = primary.switch_wal();
    let newest = PROMOTIONS + 1;
    relay.wait_for_timeline(newest);
    relay.wait_for_segment(&last);
    archive.wait_for_segment(&last);
    compare::assert_timelines(&primary, &relay.wal_dir(), newest);
    compare::assert_timelines(&primary, &archive.wal_dir(), newest);
    c.wait_for_replay(primary.settled_lsn());
    compare::assert_dumps(&primary, &c);
    archive.stop();
}

/// The standby, named `here` from now on, and the primary change places.
fn change_roles(primary: &mut Cluster, standby: &mut Cluster, here: &str) {
    standby.wait_for_replay(primary.settled_lsn());
    // A clean stop: the standby gets the last record, so the old primary can follow without a rewind.
    primary.stop();
    standby.promote();
    primary.become_standby(here, &standby.conninfo(), None);
    primary.start();
    primary.wait_for_sql("select status from pg_stat_wal_receiver", "streaming");
    std::mem::swap(primary, standby);
}

fn the_relay_sleeps_through_three(server: &Server) {
    let mut primary = Cluster::builder(server).name("a").seg_mb(1).start();
    let mut standby = primary.standby().name("b").start();
    let mut relay = relay_below(&primary).upstream(&Relay::hosts(&[&primary, &standby])).start();
    relay.create_slot("c");
    let c = primary.standby().name("c").follow(&relay.conninfo()).slot("c").start();
    primary.pgbench_init(1);
    relay.terminate();
    for round in 1..=3 {
        primary.pgbench(1, 20);
        primary.switch_wal();
        primary.pgbench(1, 20);
        change_roles(&mut primary, &mut standby, &format!("standby{round}"));
    }
    // One of the generations in between has lost its history file on the way.
    std::fs::remove_file(primary.wal_dir().join("00000003.history")).expect("PostgreSQL keeps them");
    std::fs::remove_file(standby.wal_dir().join("00000003.history")).expect("PostgreSQL keeps them");
    relay.start();
    relay.wait_for_timeline(4);
    let last = primary.switch_wal();
    relay.wait_for_segment(&last);
    compare::assert_segments(&primary, &relay.wal_dir(), 4);
    c.wait_for_replay(primary.settled_lsn());
    compare::assert_dumps(&primary, &c);
    c.wait_for_sql("select received_tli from pg_stat_wal_receiver", "4");
}

/// Stops and kills the relay in turn, at random moments, and starts it again at once.
struct Chaos {
    enough: Sender<()>,
    thread: JoinHandle<Relay>,
}

impl Chaos {
    fn start(mut relay: Relay) -> Chaos {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later than 1970");
        let mut random = since.as_nanos() as u64;
        println!("seed {random}");
        let (enough, told) = channel();
        let thread = spawn(move || {
            for turn in 0.. {
                random =
                    random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let peace = Duration::from_millis(20 + (random >> 33) % 900);
                if told.recv_timeout(peace) != Err(RecvTimeoutError::Timeout) {
                    break;
                }
                if turn % 3 == 0 {
                    relay.terminate()
                } else {
                    relay.kill9()
                }
                relay.start();
            }
            relay
        });
        Chaos { enough, thread }
    }

    #[track_caller]
    fn stop(self) -> Relay {
        // If the thread has ended early, joining it tells why.
        let _ = self.enough.send(());
        self.thread.join().expect("the relay always comes back")
    }
}
