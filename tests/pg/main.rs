//! Stories told with real PostgreSQL servers around a real relay, on every supported version.
//!
//! Each file tells a story or two; `versions` runs on 14 to 19, the others on some of them. They wait for positions, log
//! lines and files, never for time.

mod acknowledgements;
mod archive;
mod bad_disk;
mod bad_sectors;
mod barman;
mod basebackup;
mod cascade;
mod certainty;
mod comeback;
mod commands;
mod console;
mod descriptors;
mod doctor;
mod drain;
mod drills;
mod drivers;
mod examples;
mod failing_disk;
mod failover;
mod fanout;
mod faults;
mod feedback;
mod fence;
mod foreign_directory;
mod fork;
mod frozen;
mod full_disk;
mod holes;
mod http;
mod idle;
mod init;
mod journal;
mod language;
mod latency;
mod levels;
mod login;
mod managers;
mod memory;
mod network;
mod no_lost_commit;
mod orders;
mod output;
mod overlay;
mod packaging;
mod page;
mod pages;
mod pitr;
mod places;
mod power_cuts;
mod process;
mod promotable;
mod promotion;
mod promotions;
mod recall;
mod receivewal;
mod reference;
mod refusals;
mod relay_restart;
mod reload;
mod restarts;
mod restore;
mod retention;
mod rewind;
mod segment_size;
mod select;
mod siblings;
mod slot_position;
mod slotsync;
mod slow_line;
mod sql;
mod standby;
mod status;
mod switchover;
mod synchronous;
mod systemd;
mod targets;
mod tls;
mod trouble_in_promotions;
mod truncated;
mod unusable_upstream;
mod upstream_restart;
mod verdict;
mod verify;
mod versions;
mod wal_write;
mod zombie;

use std::path::PathBuf;

use walrelay_testkit::{Cluster, Relay, RelayBuilder};

/// A relay below `primary`, from [`walrelay`].
fn relay_below(primary: &Cluster) -> RelayBuilder {
    Relay::builder(walrelay(), primary)
}

/// The program under test: the one built for these tests, unless `WALRELAY_BIN` names another, such as an older build
/// that a story about a bug has to fail on.
fn walrelay() -> PathBuf {
    std::env::var_os("WALRELAY_BIN").map_or_else(|| env!("CARGO_BIN_EXE_walrelay").into(), PathBuf::from)
}
