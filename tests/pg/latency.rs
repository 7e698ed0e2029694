//! How long a commit takes at each level, where the relay and the standby below it are far away: as long as the way there and
//! back, and no longer.

use std::time::{Duration, Instant};

use walrelay_testkit::{Cluster, Far, Server, on_one_version};

use crate::relay_below;

on_one_version!(a_commit_waits_for_the_way_of_its_level);

/// One way from the primary to the relay, and from there to the standby.
const NEAR: Duration = Duration::from_millis(20);
const FAR: Duration = Duration::from_millis(30);
const COMMITS: usize = 30;

fn a_commit_waits_for_the_way_of_its_level(server: &Server) {
    let primary = Cluster::builder(server).start();
    primary.sql("create table t (i int)");
    let near = Far::to(primary.port(), NEAR);
    let relay = relay_below(&primary).upstream(&near.conninfo()).start();
    let far = Far::to(relay.port(), FAR);
    relay.create_slot("standby");
    let _standby = primary.standby().follow(&far.conninfo()).slot("standby").start();
    relay.wait_for_sql("select count(*) from pg_stat_replication where replay_lsn is not null", "1");
    primary.make_synchronous("walrelay");
    let (one, both) = (NEAR * 2, (NEAR + FAR) * 2);
    for (level, way) in
        [("local", Duration::ZERO), ("remote_write", one), ("on", one), ("remote_apply", both)]
    {
        let mut session = primary.session();
        session.run(&format!("set synchronous_commit = {level}")).expect("it is a setting");
        let mut commit = || {
            let begun = Instant::now();
            session.run("insert into t values (1)").expect("it is acknowledged");
            begun.elapsed()
        };
        let mut times: Vec<Duration> = (0..COMMITS).map(|_| commit()).collect();
        times.sort();
        let (least, median) = (times[0], times[COMMITS / 2]);
        println!("{level}: {way:?} of way, least {least:?}, median {median:?}");
        // A machine that does much else makes some of them late, and none early.
        assert!(least >= way, "{level}: nobody can have had it after {least:?}");
        assert!(
            least < way + NEAR * 2,
            "{level}: {least:?} is more than the way of {way:?} and one more to the relay"
        );
    }
}
