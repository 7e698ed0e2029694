//! Patroni decides.

use rustix::process::Signal;

use super::{Manager, NAMES, Strike, Tap, to_primary};
use crate::drill::Orders;
use crate::patroni::{self, Patroni};
use crate::wait::wait_until;

/// As docs/FAILOVER.md has it; the times are the shortest that Patroni takes.
const SETTINGS: &str = "ttl: 20
loop_wait: 1
retry_timeout: 3
maximum_lag_on_failover: 1073741824
ignore_slots:
- name: walrelay
  type: physical
postgresql:
  use_pg_rewind: true
  parameters:
    wal_log_hints: 'on'
    wal_keep_size: 4GB
    fsync: 'off'
    wal_retrieve_retry_interval: 200ms
    synchronous_standby_names: walrelay";

pub(super) struct ByPatroni {
    cluster: Patroni,
}

impl ByPatroni {
    /// The cluster, with the relay below it, and how to connect to its primary.
    pub(super) fn set(orders: Orders<'_>, tap: &mut Tap) -> (ByPatroni, String) {
        assert!(patroni::is_here(), "there is no Patroni, see `make setup`");
        let mut cluster = Patroni::start(orders.server, SETTINGS);
        let command = tap.restore_command.replace('\'', "''");
        let fence = tap.fence.display();
        for name in NAMES {
            cluster
                .add(name, &format!("pre_promote: {fence}\nrecovery_conf:\n  restore_command: '{command}'"));
        }
        cluster.run(0);
        let ports: Vec<u16> = (0..NAMES.len()).map(|number| cluster.port(number)).collect();
        tap.follow(&ports, orders.seed);
        for number in 1..NAMES.len() {
            cluster.run(number);
        }
        let sync = "select count(*) from pg_stat_replication where sync_state = 'sync' and application_name = 'walrelay'";
        wait_until("the relay to be waited for", || cluster.sql(0, sync).as_deref() == Ok("1"));
        (ByPatroni { cluster }, to_primary(&ports))
    }
}

impl Manager for ByPatroni {
    fn strikes(&self) -> &'static [Strike] {
        &[Strike::Killed, Strike::Stopped, Strike::CutOff]
    }

    fn conninfo(&self, number: usize) -> String {
        self.cluster.conninfo(number)
    }

    fn starve(&self, primary: usize, standby: usize) {
        self.cluster.freeze_walsender(primary, standby);
    }

    fn strike(&mut self, primary: usize, how: Strike) {
        match how {
            Strike::Killed => self.cluster.kill9(primary),
            Strike::Stopped => self.cluster.signal(primary, Signal::STOP),
            Strike::CutOff => self.cluster.cut_off(primary),
        }
    }

    fn bring_back(&mut self, lost: usize, how: Strike, _primary: usize) {
        match how {
            Strike::Killed => self.cluster.run(lost),
            Strike::Stopped => self.cluster.signal(lost, Signal::CONT),
            Strike::CutOff => self.cluster.connect_again(lost),
        }
        wait_until("Patroni to take the old primary back", || {
            self.cluster.sql(lost, "select pg_is_in_recovery()").as_deref() == Ok("t")
        });
    }

    fn tail(&self, number: usize) -> String {
        self.cluster.log(number).tail()
    }
}
