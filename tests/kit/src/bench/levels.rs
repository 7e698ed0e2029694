//! Row `levels`: what a commit takes at each level of `synchronous_commit`, each of which names somebody further away, beside the sum
//! of the hops there, each measured by itself.

use std::time::Instant;

use super::Bench;
use super::numbers::{at, micros};
use super::stage::{ALL, CASCADE_NAME, Middle, RELAY_NAME, SERIOUS};
use super::table::{P50, P99};
use crate::{Cluster, Relay};

const ROW: &str = "levels";
const R1: &str = "levels_r1";
const R2: &str = "levels_r2";
const S1: &str = "levels_s1";

pub(crate) const LOCAL: &str = "`local`: the primary";
pub(crate) const WRITE: &str = "`remote_write`: r1 has it";
pub(crate) const WRITE_HOP: &str = "the hop of `remote_write`";
pub(crate) const FLUSH: &str = "`on`: r1 and r2 have synced it";
pub(crate) const FLUSH_HOPS: &str = "the hops of `on`";
pub(crate) const APPLY: &str = "`remote_apply`: s1 shows it";
pub(crate) const APPLY_HOPS: &str = "the hops of `remote_apply`";

/// The median and the 99th percentile, µs.
type Times = [f64; 2];

pub(crate) fn measure(bench: &mut Bench) {
    bench.stage.bring(Middle::Neither);
    let mut chain = Chain::set(bench);
    for _ in 0..bench.settings.rounds {
        chain.stop();
        hops(bench);
        chain.start();
        bench.stage.wait_for_commits_of(R1);
        for (who, level) in [(WRITE, "remote_write"), (FLUSH, "on"), (APPLY, "remote_apply")] {
            let times = commit(bench, level);
            note(bench, who, times);
        }
        bench.stage.wait_for_nobody();
    }
    drop(chain);
    bench.stage.primary.wait_for_sql(
        &format!("select count(*) from pg_replication_slots where slot_name = '{R1}' and active"),
        "0",
    );
    bench.stage.primary.sql(&format!("select pg_drop_replication_slot('{R1}')"));
    bench.figures.remark(
        ROW,
        "One client. Primary, relay r1 (`--ack-flush \"ALL (r2)\"`), relay r2 below it, standby s1 below that. A hop: what a commit with one \
         relay right below the primary (`remote_write`, `on`), or with the standby there (`remote_apply`), takes more than one with nobody; \
         the hops of `on` are the primary's own commit and two relays, those of `remote_apply` a standby more. Percentiles are added up \
         like that, too.",
    );
}

/// Each by itself, right below the primary.
fn hops(bench: &mut Bench) {
    bench.stage.bring(Middle::Relay);
    bench.stage.wait_for_commits_of(RELAY_NAME);
    let [local, write, flush] = ["local", "remote_write", "on"].map(|level| commit(bench, level));
    bench.stage.wait_for_nobody();
    note(bench, LOCAL, local);
    note(bench, WRITE_HOP, write);
    let relays = sum(&[local, more(flush, local), more(flush, local)]);
    note(bench, FLUSH_HOPS, relays);
    bench.stage.bring(Middle::Cascade);
    bench.stage.wait_for_commits_of(CASCADE_NAME);
    let apply = commit(bench, "remote_apply");
    bench.stage.wait_for_nobody();
    note(bench, APPLY_HOPS, sum(&[relays, more(apply, local)]));
    bench.stage.bring(Middle::Neither);
}

fn more(with: Times, without: Times) -> Times {
    [with[0] - without[0], with[1] - without[1]]
}

fn sum(parts: &[Times]) -> Times {
    parts.iter().fold([0.0; 2], |sum, part| [sum[0] + part[0], sum[1] + part[1]])
}

fn note(bench: &mut Bench, who: &'static str, [median, most]: Times) {
    bench.figures.add(ROW, P50, who, median);
    bench.figures.add(ROW, P99, who, most);
}

/// Commits by one client at a level.
fn commit(bench: &Bench, level: &str) -> Times {
    let mut client = bench.stage.client();
    client.run(&format!("set synchronous_commit = {level}")).expect("it is a setting");
    let (until, mut times) = (Instant::now() + bench.settings.span, Vec::with_capacity(1 << 14));
    while Instant::now() < until {
        let began = Instant::now();
        client.run(super::commits::SMALL).expect("the primary commits");
        times.push(micros(began.elapsed()));
    }
    [0.5, 0.99].map(|part| at(&times, part).unwrap_or(f64::NAN))
}

/// Two relays, and a standby below.
struct Chain {
    standby: Cluster,
    r2: Relay,
    r1: Relay,
}

impl Chain {
    fn set(bench: &Bench) -> Chain {
        let flush = format!("ALL ({R2})");
        let r1 = bench.stage.new_relay(ALL).name(R1).arg("--ack-flush").arg(&flush).start();
        let r2 = r1.builder_below().name(R2).arg("--wal-keep-size").arg(ALL).start();
        r2.create_slot(S1);
        let standby = bench.stage.primary.standby().name(S1).follow(&r2.conninfo()).slot(S1).conf(SERIOUS);
        Chain { standby: standby.start(), r2, r1 }
    }

    fn stop(&mut self) {
        self.standby.stop();
        self.r2.terminate();
        self.r1.terminate();
    }

    fn start(&mut self) {
        self.r1.start();
        self.r2.start();
        self.standby.start();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hops_add_up() {
        let (local, relay) = ([200.0, 300.0], [350.0, 500.0]);
        assert_eq!(sum(&[local, more(relay, local), more(relay, local)]), [500.0, 700.0]);
    }
}
