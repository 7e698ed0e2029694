//! Servers, relays, and the lines between them.
//!
//! ```text
//! primary ──> r1 ──> a, b   (each standby has both relays as its hosts, and drains both)
//!        ├──> r2
//!        └──> c             (which may be ahead of the relays)
//! ```
//!
//! Each arrow from a server to a relay and from a relay to a standby is a [`Link`]. Whoever is the primary is at its top.

use std::path::PathBuf;

use rustix::process::Signal;
use walrelay_proto::Lsn;

use crate::cluster::Cluster;
use crate::drill::Orders;
use crate::link::{Link, Weather};
use crate::namespace::Firewall;
use crate::relay::Relay;
use crate::scratch::Scratch;

/// The three servers.
const NAMES: [&str; 3] = ["a", "b", "c"];
/// This one streams from the primary.
const DIRECT: usize = 2;
/// Those of the relays.
const RELAYS: [&str; 2] = ["r1", "r2"];

/// Everything that runs, in the order in which it is ended.
pub(super) struct Site {
    pub(super) nodes: Vec<Node>,
    pub(super) taps: Vec<Tap>,
    /// The number of the primary.
    pub(super) primary: usize,
    /// Whether it is cut off from all others.
    is_primary_cut: bool,
    /// The relay's program where the servers' account can run it; as a control nobody drains anything.
    drains_with: Option<PathBuf>,
    /// In a network namespace a line that is cut drops packets; elsewhere it is silent.
    firewall: Option<Firewall>,
    _scratch: Scratch,
}

/// A server, and its lines to the relays.
pub(super) struct Node {
    pub(super) server: Cluster,
    links: Vec<Link>,
    frozen: Option<i32>,
}

/// A relay, and its lines to the servers.
pub(super) struct Tap {
    pub(super) relay: Relay,
    links: Vec<Link>,
}

/// What happens to somebody.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Trouble {
    pub(super) who: Who,
    pub(super) how: How,
}

/// By number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Who {
    Relay(usize),
    Standby(usize),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum How {
    Killed,
    Stopped,
    /// From its upstream; a standby also from what it drains.
    Cut,
}

impl How {
    pub(super) const ALL: [How; 3] = [How::Killed, How::Stopped, How::Cut];

    pub(super) fn name(self) -> &'static str {
        match self {
            How::Killed => "killed",
            How::Stopped => "stopped",
            How::Cut => "cut off",
        }
    }
}

impl Site {
    /// A primary that waits for any of so many relays, and two standbys.
    pub(super) fn set(orders: Orders<'_>, relays: usize) -> Site {
        let scratch = Scratch::new("failover");
        let primary =
            Cluster::builder(orders.server).name(NAMES[0]).seg_mb(1).conf("wal_log_hints = on").start();
        let standbys: Vec<Cluster> =
            NAMES[1..].iter().map(|name| primary.standby().name(name).start()).collect();
        let servers: Vec<Cluster> = std::iter::once(primary).chain(standbys).collect();
        // Relays know from the first moment on that they are waited for, so what is left behind is an ERROR.
        servers[0].append_conf(&format!("synchronous_standby_names = '{}'", rule(relays)));
        servers[0].reload();
        let taps = RELAYS[..relays].iter().map(|name| {
            let links: Vec<Link> =
                servers.iter().map(|server| Link::to(server.port(), orders.seed)).collect();
            let upstream = format!("{} connect_timeout=2 target_session_attrs=primary", hosts(&links));
            let relay = Relay::builder(orders.binary, &servers[0]).name(name).upstream(&upstream);
            Tap { relay: relay.arg("--wal-keep-size").arg("1GB").start(), links }
        });
        let taps: Vec<Tap> = taps.collect();
        let nodes = servers.into_iter().map(|server| {
            let links = taps.iter().map(|tap| Link::to(tap.relay.port(), orders.seed)).collect();
            Node { server, links, frozen: None }
        });
        let drains_with = (!orders.control).then(|| readable(&orders, &scratch));
        let firewall = Firewall::raise();
        let nodes = nodes.collect();
        let (primary, is_primary_cut) = (0, false);
        let site = Site { nodes, taps, primary, is_primary_cut, drains_with, firewall, _scratch: scratch };
        for number in 1..site.nodes.len() {
            site.configure(number);
            site.nodes[number].server.reload();
        }
        site.server().wait_until_commits_wait();
        site
    }

    /// The primary.
    pub(super) fn server(&self) -> &Cluster {
        &self.nodes[self.primary].server
    }

    /// The numbers of the others.
    pub(super) fn standbys(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|number| *number != self.primary).collect()
    }

    pub(super) fn name(&self, number: usize) -> &'static str {
        NAMES[number]
    }

    /// Whether it may have what no relay has.
    pub(super) fn may_be_ahead(&self, number: usize) -> bool {
        number == DIRECT
    }

    /// `synchronous_standby_names`.
    pub(super) fn rule(&self) -> String {
        rule(self.taps.len())
    }

    /// The furthest that a relay has, of those that can be asked.
    pub(super) fn furthest(&self, troubles: &[Trouble]) -> Option<Lsn> {
        let is_well = |number: &usize| troubles.iter().all(|it| it.who != Who::Relay(*number));
        let well = (0..self.taps.len()).filter(is_well);
        well.map(|number| self.taps[number].relay.flush_lsn()).max()
    }

    /// Whom it follows, whom it drains, and whom it waits for when it is the primary.
    fn configure(&self, number: usize) {
        let node = &self.nodes[number];
        let upstream = match number {
            DIRECT => {
                let all: Vec<&Cluster> = self.nodes.iter().map(|node| &node.server).collect();
                Relay::hosts(&all) + " target_session_attrs=primary"
            }
            _ => hosts(&node.links) + " connect_timeout=2",
        };
        let name = NAMES[number];
        node.server.append_conf(&format!("primary_conninfo = '{upstream} application_name={name}'"));
        node.server.append_conf(&format!("synchronous_standby_names = '{}'", self.rule()));
        if let Some(program) = &self.drains_with {
            let from: Vec<String> =
                node.links.iter().map(|link| format!("--from \"{}\"", link.conninfo())).collect();
            // As operators have it, too: relays are away for less than that, before a promotion and in it.
            let timeout = if number % 2 == 1 { "30s" } else { "0" };
            // With ANY 1 each of them may be the only one that has a commit.
            node.server.append_conf(&format!(
                "restore_command = '\"{}\" restore --require-relays {} --require-timeout {timeout} {} %f %p'",
                program.display(),
                from.len(),
                from.join(" ")
            ));
        }
    }

    /// Makes a server that is down a standby of the primary.
    pub(super) fn rewind(&mut self, number: usize) {
        self.nodes[number].server.rewind_to(&self.nodes[self.primary].server);
        // The configuration is that of the primary.
        self.nodes[number].server.become_standby(NAMES[number], "", None);
        self.configure(number);
        self.nodes[number].server.start();
    }

    pub(super) fn begin(&mut self, trouble: Trouble) {
        match (trouble.who, trouble.how) {
            (Who::Relay(number), How::Killed) => self.taps[number].relay.kill9(),
            (Who::Relay(number), How::Stopped) => self.taps[number].relay.signal(Signal::STOP),
            (Who::Relay(number), How::Cut) => self.cut(&self.taps[number].links),
            (Who::Standby(number), How::Killed) => self.nodes[number].server.kill9(),
            (Who::Standby(number), How::Stopped) => self.nodes[number].server.signal_all(Signal::STOP),
            (Who::Standby(number), How::Cut) => {
                if number == DIRECT {
                    // While it can ask the relays: before it streams it does.
                    let pid = self.server().freeze_walsender(NAMES[number]);
                    self.nodes[number].frozen = Some(pid);
                }
                self.cut(&self.nodes[number].links);
            }
        }
    }

    /// Where the primary is lost, what is left of its last words on a line is lost, too.
    pub(super) fn heal(&mut self, trouble: Trouble, is_lost: bool) {
        match (trouble.who, trouble.how) {
            (Who::Relay(number), How::Killed) => self.taps[number].relay.start(),
            (Who::Relay(number), How::Stopped) => self.taps[number].relay.signal(Signal::CONT),
            (Who::Relay(number), How::Cut) => self.mend(&self.taps[number].links, is_lost),
            (Who::Standby(number), How::Killed) => self.nodes[number].server.start(),
            (Who::Standby(number), How::Stopped) => self.nodes[number].server.signal_all(Signal::CONT),
            (Who::Standby(number), How::Cut) => {
                self.mend(&self.nodes[number].links, false);
                if let Some(pid) = self.nodes[number].frozen.take()
                    && !is_lost
                {
                    self.server().thaw(pid);
                }
            }
        }
    }

    fn cut(&self, links: &[Link]) {
        cut(self.firewall.as_ref(), links);
    }

    fn mend(&self, links: &[Link], with_loss: bool) {
        mend(self.firewall.as_ref(), links.iter().filter(|link| !self.is_dark(link)), with_loss);
    }

    /// Whether it leads to a primary that is cut off.
    fn is_dark(&self, link: &Link) -> bool {
        self.is_primary_cut && self.taps.iter().any(|tap| tap.links[self.primary].port() == link.port())
    }

    /// The primary is there, and nobody else gets a word to it or from it: where nothing drops packets, none but the relays, for
    /// which it waits.
    pub(super) fn cut_primary(&mut self) {
        self.is_primary_cut = true;
        for tap in &self.taps {
            cut(self.firewall.as_ref(), &tap.links[self.primary..=self.primary]);
        }
        if let Some(firewall) = &self.firewall {
            firewall.drop_all(self.server().port());
        }
    }

    /// What becomes of such a primary's lines; with a loss nothing that was on its way comes.
    pub(super) fn mend_primary(&mut self, with_loss: bool) {
        if !std::mem::take(&mut self.is_primary_cut) {
            return;
        }
        if let Some(firewall) = &self.firewall {
            firewall.pass(self.server().port());
        }
        for tap in &self.taps {
            self.mend(&tap.links[self.primary..=self.primary], with_loss);
        }
    }
}

/// `synchronous_standby_names` for so many relays.
fn rule(relays: usize) -> String {
    format!("ANY 1 ({})", RELAYS[..relays].join(", "))
}

/// Nothing passes any more, and nobody gets a connection.
pub(in crate::drill) fn cut(firewall: Option<&Firewall>, links: &[Link]) {
    for link in links {
        link.set(Weather::Hole);
        if let Some(firewall) = firewall {
            firewall.drop_all(link.port());
        }
    }
}

/// It does again; with a loss what was on its way is lost, and connections with it.
pub(in crate::drill) fn mend<'a>(
    firewall: Option<&Firewall>,
    links: impl IntoIterator<Item = &'a Link>,
    with_loss: bool,
) {
    for link in links {
        if with_loss {
            link.reset();
        }
        link.set(Weather::Fair);
        if let Some(firewall) = firewall {
            firewall.pass(link.port());
        }
    }
}

/// All of them, as hosts of one connection string.
fn hosts(links: &[Link]) -> String {
    let ports: Vec<String> = links.iter().map(|link| link.port().to_string()).collect();
    let host = vec!["127.0.0.1"; links.len()].join(",");
    format!("host={host} port={} user=postgres sslmode=disable gssencmode=disable", ports.join(","))
}

/// The relay's program where the servers' account can run it.
pub(in crate::drill) fn readable(orders: &Orders<'_>, scratch: &Scratch) -> PathBuf {
    let ours = scratch.join("walrelay");
    std::fs::hard_link(orders.binary, &ours)
        .or_else(|_| std::fs::copy(orders.binary, &ours).map(drop))
        .expect("there is room for it");
    ours
}
