//! Who takes part: a primary with WAL, and below it a cascading standby and a relay with the same.

use std::net::SocketAddr;
use std::ops::Range;
use std::path::PathBuf;

use walrelay_proto::Lsn;

use super::client::Client;
use super::settings::Settings;
use crate::cluster::copy_dir;
use crate::{Cluster, Consumer, Relay, RelayBuilder, Scratch, Server, StandbyBuilder};

/// More WAL than there ever is.
pub(crate) const ALL: &str = "4TB";
const GIB: f64 = (1_u64 << 30) as f64;
/// Names in `pg_stat_replication`.
pub(crate) const RELAY_NAME: &str = "walrelay";
pub(crate) const CASCADE_NAME: &str = "cascade";

/// Settings of standbys.
pub(crate) const SERIOUS: &str =
    "fsync = on\nmax_wal_senders = 1100\nmax_connections = 150\nwal_receiver_status_interval = 1s";

/// The primary, the two of which one is compared with the other, and what they hold.
pub(crate) struct Stage {
    pub(crate) relay: Relay,
    /// Whether it runs.
    relay_up: bool,
    /// Not made for a quick run.
    pub(crate) standby: Option<Cluster>,
    standby_up: bool,
    pub(crate) primary: Cluster,
    /// From a segment's start to another's; both hold it and nobody writes meanwhile.
    pub(crate) wal: Range<Lsn>,
    /// A base backup from before that WAL.
    backup: PathBuf,
    settings: Settings,
    scratch: Scratch,
}

/// Who serves live consumers, or has commits wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Middle {
    Relay,
    Cascade,
    /// Neither of them runs.
    Neither,
}

impl Stage {
    pub(crate) fn set(server: &Server, settings: &Settings) -> Stage {
        let keep = format!("{}GB", settings.gib.ceil() as u64 + 6);
        let primary = Cluster::builder(server)
            .conf(&format!("wal_keep_size = {keep}\nmax_wal_size = {}GB", settings.gib.ceil() as u64 + 20))
            .conf("autovacuum = off\ncheckpoint_timeout = 1d\nmax_wal_senders = 100\nmax_connections = 150")
            .start();
        let scratch = Scratch::new("bench");
        let backup = scratch.join("backup");
        primary.base_backup_to(&backup);
        let mut stage = Stage {
            relay: relay(settings, &primary, ALL).start(),
            relay_up: true,
            standby: None,
            standby_up: false,
            wal: Lsn::INVALID..Lsn::INVALID,
            backup,
            settings: settings.clone(),
            scratch,
            primary,
        };
        if !settings.quick {
            stage.standby = Some(stage.new_standby(CASCADE_NAME));
            stage.standby_up = true;
        }
        stage.wal = write(&stage.primary, settings.gib);
        // A real primary from here on; before, it would only have taken longer.
        stage.primary.append_conf("fsync = on");
        stage.primary.reload();
        stage.relay.wait_for_flush(stage.wal.end);
        if let Some(standby) = &stage.standby {
            standby.wait_for_replay(stage.wal.end);
            // A restartpoint now, rather than while something is measured.
            standby.sql("checkpoint");
        }
        stage
    }

    /// A standby that begins where the WAL does.
    fn new_standby(&self, name: &str) -> Cluster {
        self.standby_builder(name, |builder| builder.start())
    }

    fn standby_builder(&self, name: &str, begin: fn(StandbyBuilder<'_>) -> Cluster) -> Cluster {
        let copy = self.scratch.join(&format!("{name}-backup"));
        copy_dir(&self.backup, &copy);
        begin(self.primary.standby().name(name).conf(SERIOUS).from_backup(copy))
    }

    /// A relay of the same program that keeps so much WAL.
    pub(crate) fn new_relay(&self, keep: &str) -> RelayBuilder {
        relay(&self.settings, &self.primary, keep)
    }

    pub(crate) fn gib(&self) -> f64 {
        self.wal.end.since(self.wal.start) as f64 / GIB
    }

    /// Has only this one run, with everything that the primary has.
    pub(crate) fn bring(&mut self, middle: Middle) {
        if (middle == Middle::Relay) != self.relay_up {
            self.relay_up = !self.relay_up;
            if self.relay_up { self.relay.start() } else { self.relay.terminate() }
        }
        if let Some(standby) = &mut self.standby
            && (middle == Middle::Cascade) != self.standby_up
        {
            self.standby_up = !self.standby_up;
            if self.standby_up { standby.start() } else { standby.stop() }
        }
        self.catch_up();
    }

    /// Has both run.
    pub(crate) fn bring_all(&mut self) {
        if !self.relay_up {
            self.relay.start();
            self.relay_up = true;
        }
        if let Some(standby) = &mut self.standby
            && !self.standby_up
        {
            standby.start();
            self.standby_up = true;
        }
        self.catch_up();
    }

    fn catch_up(&self) {
        let end = self.primary.settled_lsn();
        if self.relay_up {
            self.relay.wait_for_flush(end);
        }
        if let Some(standby) = self.standby.as_ref().filter(|_| self.standby_up) {
            standby.wait_for_replay(end);
        }
    }

    pub(crate) fn relay_address(&self) -> SocketAddr {
        local(self.relay.port())
    }

    pub(crate) fn primary_address(&self) -> SocketAddr {
        local(self.primary.port())
    }

    /// Of the standby, where there is one.
    pub(crate) fn standby_address(&self) -> Option<SocketAddr> {
        self.standby.as_ref().map(|standby| local(standby.port()))
    }

    /// Has commits wait for the standby of this name, once it is connected and has everything.
    pub(crate) fn wait_for_commits_of(&self, name: &str) {
        let there = format!(
            "select count(*) from pg_stat_replication where application_name = '{name}' and state = 'streaming'"
        );
        self.primary.wait_for_sql(&there, "1");
        self.set_synchronous(name);
        let chosen = format!(
            "select count(*) from pg_stat_replication where application_name = '{name}' and sync_state = 'sync'"
        );
        self.primary.wait_for_sql(&chosen, "1");
        // Backends wait once the checkpointer, too, has read the file.
        self.primary.sql("checkpoint");
    }

    /// Has commits wait for nobody.
    pub(crate) fn wait_for_nobody(&self) {
        self.set_synchronous("");
        self.primary.wait_for_sql("show synchronous_standby_names", "");
        self.primary.sql("set synchronous_commit = local; checkpoint");
    }

    fn set_synchronous(&self, names: &str) {
        self.primary.append_conf(&format!("synchronous_standby_names = '{names}'"));
        self.primary.reload();
    }

    /// A standby that begins where the WAL does; not waited for.
    pub(crate) fn spawn_standby(&self, name: &str) -> Cluster {
        self.standby_builder(name, |builder| builder.spawn())
    }

    pub(crate) fn client(&self) -> Client {
        Client::connect(self.primary.port()).expect("the primary trusts us")
    }
}

/// On this machine.
pub(crate) fn local(port: u16) -> SocketAddr {
    ([127, 0, 0, 1], port).into()
}

/// A consumer of a server that trusts everybody.
pub(crate) fn consumer(address: SocketAddr) -> Consumer {
    Consumer::connect(address, "bench").expect("everybody is trusted")
}

/// A relay below a primary that keeps so much WAL.
pub(crate) fn relay(settings: &Settings, primary: &Cluster, keep: &str) -> RelayBuilder {
    let builder = Relay::builder(&settings.binary, primary).arg("--wal-keep-size").arg(keep);
    builder.arg("--max-wal-senders").arg("1100").arg("--max-connections").arg("1200")
}

/// Bulk loads, index builds and small transactions, as long as it takes.
fn write(primary: &Cluster, gib: f64) -> Range<Lsn> {
    let segment = || {
        primary.switch_wal();
        primary.settled_lsn().seg_start(primary.seg_size())
    };
    let start = segment();
    while (primary.flush_lsn().since(start) as f64) < gib * GIB {
        primary.pgbench_init(20);
        primary.pgbench(4, 1000);
    }
    let end = segment();
    primary.sql("create table commits (id int)");
    start..end
}
