//! repmgr's daemons decide.

use rustix::process::Signal;

use super::{Manager, NAMES, Strike, Tap, to_primary};
use crate::cluster::Cluster;
use crate::drill::{Orders, park};
use crate::log::Mark;
use crate::repmgr::{self, Repmgr};
use crate::wait::wait_until;

/// How long a primary that nobody follows any more goes on.
const ZOMBIE: std::time::Duration = std::time::Duration::from_millis(300);

pub(super) struct ByRepmgr {
    nodes: Vec<Node>,
}

struct Node {
    tool: Repmgr,
    server: Cluster,
    /// In its daemon's log, from when it had to look after its server anew.
    since: Mark,
}

impl ByRepmgr {
    /// The cluster, with the relay below it, and how to connect to its primary.
    pub(super) fn set(orders: Orders<'_>, tap: &mut Tap) -> (ByRepmgr, String) {
        assert!(repmgr::is_here(), "there is no repmgr, see `make setup`");
        let builder = Cluster::builder(orders.server).name(NAMES[0]).seg_mb(1);
        let primary = builder.conf("wal_log_hints = on").conf("shared_preload_libraries = 'repmgr'").start();
        primary.sql("create database repmgr");
        let standbys: Vec<Cluster> =
            NAMES[1..].iter().map(|name| primary.standby().name(name).start()).collect();
        let servers: Vec<Cluster> = std::iter::once(primary).chain(standbys).collect();
        let ports: Vec<u16> = servers.iter().map(Cluster::port).collect();
        tap.follow(&ports, orders.seed);
        for server in &servers {
            server.append_conf(&format!("restore_command = '{}'", tap.restore_command));
            server.append_conf("synchronous_standby_names = 'walrelay'");
            server.reload();
        }
        servers[0].wait_until_commits_wait();
        // It is started as every server here is.
        let more = format!(
            "failover=automatic\npromote_command='{} {{bin}}/repmgr standby promote -f {{conf}}'\n\
             follow_command='{{bin}}/repmgr standby follow -f {{conf}} --upstream-node-id=%n'\n\
             reconnect_attempts=2\nreconnect_interval=1\nmonitor_interval_secs=1\nservice_start_command='true'",
            tap.fence.display()
        );
        let nodes = servers.into_iter().zip(1..).map(|(server, number)| {
            let tool = Repmgr::new(&server, number, NAMES[number as usize - 1], &more);
            Node { tool, server, since: Mark::default() }
        });
        let mut all = ByRepmgr { nodes: nodes.collect() };
        all.register();
        (all, to_primary(&ports))
    }

    fn register(&mut self) {
        let (primary, standbys) = self.nodes.split_first_mut().expect("there are three");
        primary.tool.run(&["primary", "register"]);
        for standby in standbys {
            standby.server.wait_for_replay(primary.server.settled_lsn());
            standby.tool.run(&["standby", "register", "--force"]);
        }
        for node in &mut self.nodes {
            node.tool.watch();
        }
        self.wait_for_daemons(0);
    }

    /// They look after this primary.
    fn wait_for_daemons(&self, primary: usize) {
        for (number, node) in self.nodes.iter().enumerate() {
            if number != primary {
                // It says the one when it begins, the other one when it was told of another primary.
                let looks = ["monitoring connection to upstream node", "following new primary"];
                wait_until(format_args!("the daemon of {} to look after it", NAMES[number]), || {
                    looks.iter().any(|part| !node.tool.log().lines_with(part, node.since).is_empty())
                });
            }
        }
    }
}

impl Manager for ByRepmgr {
    fn strikes(&self) -> &'static [Strike] {
        &[Strike::Killed, Strike::Stopped]
    }

    fn conninfo(&self, number: usize) -> String {
        self.nodes[number].server.conninfo() + " dbname=postgres"
    }

    fn starve(&self, primary: usize, standby: usize) {
        self.nodes[primary].server.freeze_walsender(NAMES[standby]);
    }

    fn strike(&mut self, primary: usize, how: Strike) {
        for node in &mut self.nodes {
            node.since = node.tool.log().mark();
        }
        let node = &mut self.nodes[primary];
        node.tool.forget();
        match how {
            Strike::Killed => node.server.kill9(),
            Strike::Stopped | Strike::CutOff => node.server.signal_all(Signal::STOP),
        }
    }

    /// Nobody takes a primary down that comes back, and its clients get no answers from it: a human powers it off.
    fn bring_back(&mut self, lost: usize, how: Strike, primary: usize) {
        if how != Strike::Killed {
            // Before the other one follows, a daemon that sees the old primary again makes its node go on with that one.
            let other = (0..NAMES.len()).find(|number| ![lost, primary].contains(number)).expect("of three");
            let follows =
                "select count(*) from pg_stat_wal_receiver where status = 'streaming' and sender_port = ";
            let follows = format!("{follows}{}", self.nodes[primary].server.port());
            self.nodes[other].server.wait_for_sql(&follows, "1");
            self.nodes[lost].server.signal_all(Signal::CONT);
            park(ZOMBIE);
            self.nodes[lost].server.kill9();
        }
        let new = &self.nodes[primary].server;
        Repmgr::wait_for_primary(new, NAMES[primary]);
        new.sql("set synchronous_commit = local; checkpoint");
        let to = Repmgr::conninfo(new);
        let node = &mut self.nodes[lost];
        node.tool.run(&["node", "rejoin", "-d", &to, "--force-rewind", "--no-wait"]);
        node.server.start();
        wait_until("the old primary to be a standby", || {
            node.server.try_sql("select pg_is_in_recovery()").as_deref() == Ok("t")
        });
        node.tool.watch();
        self.wait_for_daemons(primary);
    }

    fn tail(&self, number: usize) -> String {
        self.nodes[number].tool.log().tail()
    }
}
