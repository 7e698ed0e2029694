//! Real PostgreSQL clusters and relays for tests, benches and the demo.
//!
//! A test asks for a [`Server`] (the binaries of one major version), starts [`Cluster`]s, [`Relay`]s and
//! [`Receivewal`]s from it and waits for conditions, never for time:
//!
//! ```no_run
//! # use walrelay_testkit::{Cluster, Relay, Server};
//! let server = Server::require(17);
//! let primary = Cluster::builder(&server).start();
//! let relay = Relay::builder("target/debug/walrelay", &primary).start();
//! relay.create_slot("standby");
//! let standby = primary.standby().follow(&relay.conninfo()).slot("standby").start();
//! primary.sql("create table t as select 1");
//! standby.wait_for_replay(primary.flush_lsn());
//! ```
//!
//! **Invariants.** Nothing outlives its value: dropping one ends its processes by their own pids, and the
//! kernel ends them when the test process itself is killed. Every wait has a deadline and fails with what it
//! waited for and the end of the log. Each value has its own directory and ports, so tests run side by side,
//! in one process or in many. As root, servers and their clients run as an unprivileged user, because
//! PostgreSQL refuses anything else.

mod account;
pub mod ansible;
mod barman;
pub mod bench;
pub mod browser;
mod certificates;
mod cluster;
pub mod compare;
mod consumer;
mod disk;
pub mod drill;
mod far;
mod footprint;
mod hung;
pub mod install;
mod leftovers;
mod line;
mod link;
mod log;
pub mod moto;
pub mod namespace;
mod packages;
pub mod patroni;
mod pgbench;
mod port;
pub mod powercut;
mod process;
mod psql;
pub mod python;
mod receivewal;
mod relay;
pub mod repmgr;
mod s3;
mod scratch;
mod scribe;
mod server;
mod standby;
mod systemd;
pub mod tools;
mod trace;
mod wait;
pub mod waldump;
mod writer;

pub use account::{command as servers_command, tied_command};
pub use barman::{Answer, Barman};
pub use browser::Browser;
pub use certificates::Certificates;
pub use cluster::{Cluster, ClusterBuilder};
pub use consumer::Consumer;
pub use disk::Disk;
pub use far::Far;
pub use footprint::{Footprint, Watch};
pub use hung::Hung;
pub use line::Line;
pub use link::{Bit, Link, Weather};
pub use log::{Log, Mark};
pub use moto::Moto;
pub use patroni::Patroni;
pub use pgbench::Pgbench;
pub use port::Port;
pub use process::Process;
pub use psql::{Session, SqlError};
pub use python::Python;
pub use receivewal::Receivewal;
pub use relay::{Relay, RelayBuilder};
pub use rustix::process::Signal;
pub use s3::{Behaviour, S3};
pub use scratch::Scratch;
pub use scribe::Scribe;
pub use server::Server;
pub use standby::StandbyBuilder;
pub use systemd::Systemd;
pub use trace::Trace;
pub use wait::{PATIENCE, wait_for, wait_until};
pub use writer::{Ack, Writer};

/// Defines tests on several PostgreSQL versions for each story, a function taking `&Server`.
///
/// `on_every_version!(story)` makes the tests `story::pg15`, `story::pg17` and `story::pg19`, the oldest and the newest
/// with all their programs and one between, and `story::more::pg18`, which only `make test-all` runs. A missing server
/// fails the test, unless it is noted that it cannot be installed here.
#[macro_export]
macro_rules! on_every_version {
    ($($story:ident),+ $(,)?) => {
        $crate::on_versions!([pg15 = 15, pg17 = 17, pg19 = 19; pg18 = 18] $($story),+);
    };
}

/// Like [`on_every_version!`] for stories that need no program that reads a data directory, which 16 comes without: with
/// `more::pg16` as well.
#[macro_export]
macro_rules! on_every_server {
    ($($story:ident),+ $(,)?) => {
        $crate::on_versions!([pg15 = 15, pg17 = 17, pg19 = 19; pg16 = 16, pg18 = 18] $($story),+);
    };
}

/// The same with `pg14` instead of `pg15`, and `more` for the others.
#[macro_export]
macro_rules! on_all_versions {
    ($($story:ident),+ $(,)?) => {
        $crate::on_versions!([pg14 = 14, pg17 = 17, pg19 = 19; pg15 = 15, pg16 = 16, pg18 = 18] $($story),+);
    };
}

/// One test for each story whose subject does not depend on the server's version: on the newest that is released.
#[macro_export]
macro_rules! on_one_version {
    ($($story:ident),+ $(,)?) => { $crate::on_versions!([pg18 = 18;] $($story),+); };
}

/// Like [`on_one_version!`], and on the others of [`on_every_version!`] where time does not count: the relay's part in them is the
/// same on each, but servers and clients take part too.
#[macro_export]
macro_rules! on_one_version_mostly {
    ($($story:ident),+ $(,)?) => {
        $crate::on_versions!([pg18 = 18; pg15 = 15, pg17 = 17, pg19 = 19] $($story),+);
    };
}

/// Like [`on_every_version!`], on some only: `on_versions!([pg17 = 17, pg18 = 18] story)`. Say why beside it.
#[macro_export]
macro_rules! on_versions {
    ($versions:tt $($story:ident),+) => { $($crate::on_versions!(@ $story $versions);)+ };
    (@ $story:ident [$($name:ident = $major:literal),+]) => {
        $crate::on_versions!(@ $story [$($name = $major),+;]);
    };
    (@ $story:ident [$($name:ident = $major:literal),+; $($more:ident = $other:literal),*]) => {
        mod $story {
            $(
                #[test]
                fn $name() {
                    $crate::Server::tell($major, super::$story);
                }
            )+
            // Filtered by this name where time counts.
            #[allow(unused)]
            mod more {
                $(
                    #[test]
                    fn $more() {
                        $crate::Server::tell($other, super::super::$story);
                    }
                )*
            }
        }
    };
}
