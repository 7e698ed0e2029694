//! Stories told with real PostgreSQL servers around a real relay, on every supported version.
//!
//! Each file tells a story or two; `versions` runs on 14 to 19, the others on some of them. They wait for positions, log
//! lines and files, never for time.

mod archive;
mod bad_disk;
mod barman;
mod basebackup;
mod cascade;
mod certainty;
mod comeback;
mod commands;
mod descriptors;
mod drivers;
mod failing_disk;
mod failover;
mod fanout;
mod faults;
mod feedback;
mod foreign_directory;
mod fork;
mod frozen;
mod full_disk;
mod holes;
mod idle;
mod login;
mod no_lost_commit;
mod overlay;
mod pitr;
mod process;
mod promotion;
mod promotions;
mod recall;
mod receivewal;
mod refusals;
mod relay_restart;
mod restore;
mod retention;
mod segment_size;
mod siblings;
mod slot_position;
mod slotsync;
mod slow_line;
mod sql;
mod standby;
mod switchover;
mod synchronous;
mod targets;
mod tls;
mod unusable_upstream;
mod upstream_restart;
mod verify;
mod versions;
mod wal_write;
mod zombie;

use walrelay_testkit::{Cluster, Relay, RelayBuilder};

/// A relay below `primary`, from the binary built for these tests.
fn relay_below(primary: &Cluster) -> RelayBuilder {
    Relay::builder(env!("CARGO_BIN_EXE_walrelay"), primary)
}
