//! The primary is lost, and whoever is promoted, however far behind, gets what was acknowledged from the relay: with
//! nothing but a `restore_command`.

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use walrelay_testkit::{
    Ack, Cluster, Mark, Relay, Scratch, Server, Signal, Writer, on_every_server, on_one_version, wait_until,
};

use crate::restore::readable_binary;
use crate::{relay_below, walrelay};

on_every_server!(
    a_standby_that_is_promoted_drains_the_relay,
    a_standby_that_still_streams_drains_it_too,
    without_the_drain_commits_are_lost,
    fenced_weighed_promoted_and_judged,
    the_longest_answer_counts_whoever_is_away,
    a_strict_standby_waits_for_the_relay,
    a_strict_standby_is_released_or_gives_up,
    a_strict_standby_can_be_told_to_end_instead,
    a_strict_standby_starts_and_stops_while_the_relay_is_away,
);

on_one_version!(a_frozen_relay_holds_up_a_promotion_no_longer_than_it_may);

/// A primary that waits for the relay alone, and a standby of its own that gets nothing from a moment on.
pub(crate) struct Scene {
    pub(crate) primary: Cluster,
    pub(crate) candidate: Cluster,
    pub(crate) relay: Relay,
    pub(crate) writer: Writer,
    _scratch: Scratch,
}

impl Scene {
    /// `restore` are the options of the candidate's `restore_command`; `None` for none.
    pub(crate) fn set(server: &Server, restore: Option<&str>) -> Scene {
        let scratch = Scratch::new("drain");
        let primary = Cluster::builder(server).name("a").seg_mb(1).start();
        // Who follows is known before the ports are: the candidate is the second host.
        let relay = relay_below(&primary).start();
        let mut candidate = primary.standby().name("b");
        if let Some(options) = restore {
            let command = format!(
                "\"{}\" restore {options} --from \"{}\" %f %p",
                readable_binary(&scratch).display(),
                relay.conninfo()
            );
            candidate = candidate.conf(&format!("restore_command = '{command}'"));
        }
        let candidate = candidate.start();
        let writer = Writer::start(&primary);
        primary.append_conf("synchronous_standby_names = 'walrelay'");
        primary.reload();
        let relay = followed_by(relay, &[&primary, &candidate]);
        wait_for_sync(&primary, "walrelay");
        Scene { primary, candidate, relay, writer, _scratch: scratch }
    }

    /// Commits of which the candidate hears nothing, over several segments.
    pub(crate) fn commit_without_candidate(&self) {
        self.writer.wait_for_more(3);
        self.primary.freeze_walsender("b");
        self.writer.wait_for_more(10);
        self.primary.switch_wal();
        self.writer.wait_for_more(10);
    }

    /// What was acknowledged by the primary's end.
    pub(crate) fn lose_primary(&mut self) -> Vec<Ack> {
        self.primary.kill9();
        let acks = self.writer.acks();
        assert!(acks.len() >= 23, "{}", acks.len());
        acks
    }

    /// Acknowledged commits that the candidate does not have.
    pub(crate) fn missing(&self, acks: &[Ack]) -> usize {
        let last = acks.last().expect("there are some").id;
        let there = self.candidate.sql(&format!("select count(*) from acked where id <= {last}"));
        acks.len() - there.parse::<usize>().expect("a number")
    }

    #[track_caller]
    pub(crate) fn assert_kept(&self, acks: &[Ack]) {
        assert_eq!(self.missing(acks), 0);
        self.relay.wait_for_timeline(2);
        self.relay.log().wait_for("promotion to timeline 2 at ");
        let kept = self.relay.log().lines_with("kept everything acknowledged (up to ", Mark::default());
        assert_eq!(kept.len(), 1, "{kept:?}\n{}", self.relay.log().tail());
        let (listed, code) = failovers(&self.relay);
        assert!(listed.contains("timeline 1 to 2 at ") && listed.contains("  kept, "), "{listed}");
        assert_eq!(code, Some(0));
    }

    pub(crate) fn in_recovery(&self) -> bool {
        self.candidate.sql("select pg_is_in_recovery()") == "t"
    }

    pub(crate) fn wait_for_promotion(&self) {
        self.candidate.wait_for_sql("select pg_is_in_recovery()", "f");
    }
}

/// A relay that goes to the next of these when one is gone.
fn followed_by(mut relay: Relay, servers: &[&Cluster]) -> Relay {
    relay.set_upstream(&Relay::hosts(servers));
    relay.restart();
    relay
}

fn wait_for_sync(primary: &Cluster, name: &str) {
    let state = format!("select sync_state from pg_stat_replication where application_name = '{name}'");
    primary.wait_for_sql(&state, "sync");
    primary.wait_until_commits_wait();
}

fn failovers(relay: &Relay) -> (String, Option<i32>) {
    let output = Command::new(walrelay()).arg("failovers").arg("-D").arg(relay.data_dir()).output();
    let output = output.expect("the program is there");
    (String::from_utf8(output.stdout).expect("text"), output.status.code())
}

fn a_standby_that_is_promoted_drains_the_relay(server: &Server) {
    let mut it = Scene::set(server, Some(""));
    it.commit_without_candidate();
    let acks = it.lose_primary();
    it.candidate.promote();
    it.assert_kept(&acks);
}

/// Its stream has not broken when it is promoted: the primary hangs, and so does the line to it.
fn a_standby_that_still_streams_drains_it_too(server: &Server) {
    let mut it = Scene::set(server, Some("--require-relays 1"));
    it.commit_without_candidate();
    it.primary.signal_all(Signal::STOP);
    it.candidate.promote();
    let acks = it.lose_primary();
    it.assert_kept(&acks);
}

fn without_the_drain_commits_are_lost(server: &Server) {
    let mut it = Scene::set(server, None);
    it.commit_without_candidate();
    let acks = it.lose_primary();
    it.candidate.promote();
    let missing = it.missing(&acks);
    assert!(missing >= 20, "{missing}");
    it.relay.log().wait_for("promotion to timeline 2 at ");
    let part = "left WAL of timeline 1 behind that was acknowledged, up to ";
    let said = it.relay.log().lines_with(part, Mark::default());
    assert!(said.len() == 1 && said[0].contains("ERROR"), "{said:?}");
    let (listed, code) = failovers(&it.relay);
    assert!(listed.contains("  left, "), "{listed}");
    assert_eq!(code, Some(1));
}

/// The primary lives on, and thinks nothing of it: but nothing that it does is acknowledged any more.
fn fenced_weighed_promoted_and_judged(server: &Server) {
    let it = Scene::set(server, Some("--require-relays 1"));
    it.commit_without_candidate();
    let (relay, candidate) = (it.relay.conninfo(), it.candidate.conninfo());
    let run = |args: &[&str]| {
        let output = Command::new(walrelay()).args(args).output().expect("the program is there");
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        (output.status.code(), said)
    };
    let (code, said) = run(&["fence", "--relay", &relay, "--reason", "drill"]);
    assert_eq!(code, Some(0), "{said}");
    let (code, said) = run(&["promotable", "--relay", &relay, "--candidate", &candidate]);
    assert!(code == Some(1) && said.contains("asks the relays, and waits for them"), "{said}");
    it.candidate.promote();
    // With the last ones, whose confirmation was on its way.
    let acks = it.writer.acks();
    it.assert_kept(&acks);
    assert_eq!(it.primary.sql("select pg_is_in_recovery()"), "f");
    assert_eq!(it.writer.acks().len(), acks.len());
}

/// Two relays, of which the first to be asked has less, and then is gone altogether.
fn the_longest_answer_counts_whoever_is_away(server: &Server) {
    for is_gone in [false, true] {
        let scratch = Scratch::new("drain");
        let mut primary = Cluster::builder(server).name("a").seg_mb(1).start();
        let mut short = relay_below(&primary).name("short").start();
        let long = relay_below(&primary).name("long").start();
        let command = format!(
            "\"{}\" restore --from \"{}\" --from \"{}\" --require \"{}\" %f %p",
            readable_binary(&scratch).display(),
            short.conninfo(),
            long.conninfo(),
            long.conninfo(),
        );
        let candidate = primary.standby().name("b").conf(&format!("restore_command = '{command}'")).start();
        let writer = Writer::start(&primary);
        primary.append_conf("synchronous_standby_names = 'long'");
        primary.reload();
        wait_for_sync(&primary, "long");
        writer.wait_for_more(3);
        primary.freeze_walsender("b");
        writer.wait_for_more(5);
        primary.freeze_walsender("short");
        writer.wait_for_more(10);
        primary.kill9();
        if is_gone {
            short.kill9();
        } else {
            assert!(short.flush_lsn() < long.flush_lsn());
        }
        let acks = writer.acks();
        candidate.promote();
        let kept = candidate.sql(&format!("select count(*) from acked where id <= {}", acks.len()));
        assert_eq!(kept, acks.len().to_string());
        let said = candidate.log().lines_with("is taken from the others: ", Mark::default());
        assert_eq!(!said.is_empty(), is_gone, "{said:?}");
    }
}

fn a_strict_standby_waits_for_the_relay(server: &Server) {
    let mut it = Scene::set(server, Some("--require-relays 1 --require-timeout 0"));
    it.commit_without_candidate();
    // The machine room is gone, with both of them; the relay first, or the standby asks it in between.
    it.relay.kill9();
    let acks = it.lose_primary();
    let log = it.candidate.log();
    // Its stream is broken: that is when it asks for the first time.
    log.wait_for("waits for who is required: ");
    let said = &log.lines_with("waits for who is required: ", Mark::default())[0];
    assert!(said.contains("cannot be reached") && said.contains("walrelay-restore.release"), "{said}");
    assert_eq!(it.candidate.sql("select pg_promote(false)"), "t");
    // It still answers, from what it has, and does not become a primary with that.
    assert!(it.missing(&acks) > 0 && it.in_recovery());
    it.relay.start();
    it.wait_for_promotion();
    log.wait_for("all that are required have answered about ");
    it.assert_kept(&acks);
}

fn a_strict_standby_is_released_or_gives_up(server: &Server) {
    for (timeout, is_released) in [("0", true), ("1s", false)] {
        let options = format!("--require-relays 1 --require-timeout {timeout}");
        let mut it = Scene::set(server, Some(&options));
        it.commit_without_candidate();
        it.relay.kill9();
        let acks = it.lose_primary();
        let log = it.candidate.log();
        log.wait_for("waits for who is required: ");
        it.candidate.sql("select pg_promote(false)");
        let file = if is_released { "walrelay-restore.release" } else { "walrelay-restore.given-up" };
        let release = it.candidate.wal_dir().join(file);
        if is_released {
            assert!(it.in_recovery());
            fs::write(&release, "").expect("the directory is there");
        }
        it.wait_for_promotion();
        let why = if is_released { "release\" is there" } else { "--require-timeout is over" };
        log.wait_for(why);
        assert!(release.exists() && it.missing(&acks) > 0);
    }
}

/// It takes connections, and says nothing, whatever it is asked for: and a promotion asks for several files.
fn a_frozen_relay_holds_up_a_promotion_no_longer_than_it_may(server: &Server) {
    let mut it = Scene::set(server, Some("--require-relays 1 --require-timeout 3s"));
    it.commit_without_candidate();
    it.relay.signal(Signal::STOP);
    let acks = it.lose_primary();
    let begun = Instant::now();
    it.candidate.sql("select pg_promote(false)");
    let log = it.candidate.log();
    log.wait_for(" has not answered for ");
    it.wait_for_promotion();
    log.wait_for("--require-timeout is over");
    // With ten seconds for each file it was more than half a minute.
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    assert!(it.missing(&acks) > 0);
}

fn a_strict_standby_can_be_told_to_end_instead(server: &Server) {
    let mut it = Scene::set(server, Some("--require-relays 1 --require-timeout 1s --on-timeout stop"));
    it.commit_without_candidate();
    it.relay.kill9();
    let acks = it.lose_primary();
    let log = it.candidate.log();
    log.wait_for("not waited for any longer: the server ends");
    log.wait_for("exit code 200");
    wait_until("the end of the standby", || it.candidate.try_sql("select 1").is_err());
    // Nothing is lost by that: it comes back, asks again, and gets everything.
    it.relay.start();
    it.candidate.start();
    it.candidate.promote();
    it.assert_kept(&acks);
}

/// A standby in archive recovery asks before it streams: it comes up nevertheless, and streams. One that waits can be
/// stopped.
fn a_strict_standby_starts_and_stops_while_the_relay_is_away(server: &Server) {
    let mut it = Scene::set(server, Some("--require-relays 1 --require-timeout 1s"));
    it.relay.kill9();
    it.primary.append_conf("synchronous_standby_names = ''");
    it.primary.reload();
    it.writer.wait_for_more(3);
    it.candidate.restart();
    it.candidate.wait_for_replay(it.primary.settled_lsn());
    it.candidate.log().wait_for("--require-timeout is over");
    let command = it.candidate.sql("show restore_command").replace("1s", "0").replace('\'', "''");
    it.candidate.append_conf(&format!("restore_command = '{command}'"));
    fs::remove_file(it.candidate.wal_dir().join("walrelay-restore.given-up")).expect("it has given up");
    it.candidate.reload();
    it.candidate.wait_for_sql("show restore_command", &command.replace("''", "'"));
    let mark = it.candidate.log().mark();
    it.primary.kill9();
    it.candidate.log().wait_for_after(mark, "waits for who is required: ");
    it.candidate.stop();
}
