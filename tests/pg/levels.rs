//! Each level of `synchronous_commit` has its place, two relays deep: what was acknowledged at it is there, in the files of those
//! who were to have it, whoever was killed, stopped or frozen meanwhile; and what the relay reports never falls.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use walrelay_proto::Lsn;
use walrelay_testkit::{Cluster, Relay, Server, Session, Signal, on_versions, wait_until, waldump};

use crate::relay_below;

// What a member has is read by pg_waldump, which is not there for 16.
on_versions!([pg18 = 18; pg15 = 15, pg17 = 17, pg19 = 19] each_level_is_kept_where_it_was_promised);

/// How often a member goes, and how often all go then, and their files are looked at before it has come back.
const FAULTS: usize = 12;
const LOOK_EVERY: usize = 3;
/// Commits that have to be acknowledged at a level that is not held up, before things change.
const SOME: usize = 5;

/// What `synchronous_commit` says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Level {
    /// At the first relay.
    RemoteWrite,
    /// At both relays, and on one of the standbys.
    On,
    /// At both relays and on both standbys.
    RemoteApply,
}

const LEVELS: [Level; 3] = [Level::RemoteWrite, Level::On, Level::RemoteApply];

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Level::RemoteWrite => "remote_write",
            Level::On => "on",
            Level::RemoteApply => "remote_apply",
        })
    }
}

/// Commits at one level, one after the other, and remembers which were acknowledged.
struct Client {
    level: Level,
    acked: Arc<Mutex<Vec<u32>>>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Client {
    fn start(primary: &Cluster, level: Level) -> Client {
        let (acked, stop) = (Arc::<Mutex<Vec<u32>>>::default(), Arc::<AtomicBool>::default());
        let mut session = primary.session();
        session.run(&format!("set synchronous_commit = {level}")).expect("it is a setting");
        let thread = std::thread::spawn({
            let (acked, stop) = (acked.clone(), stop.clone());
            move || {
                while !stop.load(Ordering::Relaxed) {
                    let commit =
                        format!("with row as (insert into t values ('{level}')) select pg_current_xact_id()");
                    let xid = session.run(&commit).expect("the primary lives");
                    acked.lock().unwrap().push(xid.parse().expect("a number of the first epoch"));
                }
            }
        });
        Client { level, acked, stop, thread }
    }

    fn acked(&self) -> Vec<u32> {
        self.acked.lock().unwrap().clone()
    }

    #[track_caller]
    fn wait_for_more(&self) {
        let wanted = self.acked.lock().unwrap().len() + SOME;
        wait_until(format_args!("acknowledgements at {}", self.level), || {
            self.acked.lock().unwrap().len() >= wanted
        });
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("it does not panic");
    }
}

/// Looks at what the first relay reports, and notes what has fallen.
struct Watch {
    fallen: Arc<Mutex<Vec<String>>>,
    looks: Arc<Mutex<usize>>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Watch {
    fn start(primary: &Cluster) -> Watch {
        let (fallen, looks) = (Arc::<Mutex<Vec<String>>>::default(), Arc::<Mutex<usize>>::default());
        let stop = Arc::<AtomicBool>::default();
        let session = primary.session();
        let thread = std::thread::spawn({
            let (fallen, looks, stop) = (fallen.clone(), looks.clone(), stop.clone());
            move || watch(session, &fallen, &looks, &stop)
        });
        Watch { fallen, looks, stop, thread }
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("it does not panic");
        let fallen = self.fallen.lock().unwrap();
        assert!(fallen.is_empty(), "{fallen:?}");
        assert!(*self.looks.lock().unwrap() > 20 * FAULTS, "it has seen too little");
    }
}

fn watch(mut session: Session, fallen: &Mutex<Vec<String>>, looks: &Mutex<usize>, stop: &AtomicBool) {
    let columns = ["write_lsn", "flush_lsn", "replay_lsn"];
    let shown = format!(
        "select {} from pg_stat_replication where application_name = 'walrelay'",
        columns.map(|it| format!("coalesce({it}::text, '')")).join(", ")
    );
    let mut highest: [Option<Lsn>; 3] = [None; 3];
    while !stop.load(Ordering::Relaxed) {
        let row = session.run(&shown).expect("the primary lives");
        // Nobody is connected, or nothing is reported yet: that is no position.
        let values: Vec<Option<Lsn>> = row.split('|').map(|value| value.parse().ok()).collect();
        for (column, value) in values.iter().enumerate().take(3) {
            let before = highest[column];
            if value.is_some() && *value < before {
                fallen.lock().unwrap().push(format!("{} from {before:?} to {value:?}", columns[column]));
            }
            highest[column] = before.max(*value);
        }
        *looks.lock().unwrap() += 1;
    }
}

/// Whoever may be away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Member {
    R1,
    R2,
    S1,
    S2,
}

const MEMBERS: [Member; 4] = [Member::R1, Member::R2, Member::S1, Member::S2];

impl Member {
    /// Whether commits at this level go on without it.
    fn can_be_missed_at(self, level: Level) -> bool {
        match (self, level) {
            (Member::R1, _) => false,
            (Member::R2, level) => level == Level::RemoteWrite,
            (Member::S1 | Member::S2, level) => level != Level::RemoteApply,
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Fault {
    Kill,
    Stop,
    Freeze,
}

const FAULTS_THERE_ARE: [Fault; 3] = [Fault::Kill, Fault::Stop, Fault::Freeze];

struct Scene {
    relays: [Relay; 2],
    standbys: [Cluster; 2],
}

impl Scene {
    fn strike(&mut self, member: Member, fault: Fault) {
        let number = usize::from(matches!(member, Member::R2 | Member::S2));
        let (relay, standby) = (&mut self.relays[number], &mut self.standbys[number]);
        match (member, fault) {
            (Member::R1 | Member::R2, Fault::Kill) => relay.kill9(),
            (Member::R1 | Member::R2, Fault::Stop) => relay.terminate(),
            (Member::R1 | Member::R2, Fault::Freeze) => relay.signal(Signal::STOP),
            (_, Fault::Kill) => standby.kill9(),
            (_, Fault::Stop) => standby.stop(),
            (_, Fault::Freeze) => standby.signal_all(Signal::STOP),
        }
    }

    fn mend(&mut self, member: Member, fault: Fault) {
        let number = usize::from(matches!(member, Member::R2 | Member::S2));
        let (relay, standby) = (&mut self.relays[number], &mut self.standbys[number]);
        match (member, fault) {
            (Member::R1 | Member::R2, Fault::Freeze) => relay.signal(Signal::CONT),
            (Member::R1 | Member::R2, _) => relay.start(),
            (_, Fault::Freeze) => standby.signal_all(Signal::CONT),
            (_, _) => standby.start(),
        }
    }

    /// Kills all of them: one is away already, or frozen. They come back when `look` has seen what they have.
    fn with_all_down(&mut self, away: Member, fault: Fault, look: impl FnOnce(&Scene)) {
        let is_gone = |member: Member| member == away && !matches!(fault, Fault::Freeze);
        for member in MEMBERS.into_iter().filter(|member| !is_gone(*member)) {
            self.strike(member, Fault::Kill);
        }
        look(self);
        MEMBERS.iter().for_each(|member| self.mend(*member, Fault::Kill));
    }

    /// Where each level has promised to be.
    fn assert_kept(&self, acked: &[(Level, Vec<u32>)], from: &str) {
        let [r1, r2] = self
            .relays
            .each_ref()
            .map(|it| waldump::committed(self.standbys[0].server(), &it.wal_dir(), from));
        let [s1, s2] =
            self.standbys.each_ref().map(|it| waldump::committed(it.server(), &it.wal_dir(), from));
        for (level, xids) in acked {
            let lacks = |place: &str, has: &dyn Fn(&u32) -> bool| {
                let lost: Vec<&u32> = xids.iter().filter(|xid| !has(xid)).collect();
                assert!(lost.is_empty(), "{level}: {place} lacks {lost:?} of {}", xids.len());
            };
            lacks("r1", &|xid| r1.contains(xid));
            if *level != Level::RemoteWrite {
                lacks("r2", &|xid| r2.contains(xid));
                lacks("each of s1 and s2", &|xid| s1.contains(xid) || s2.contains(xid));
            }
            if *level == Level::RemoteApply {
                lacks("s1 or s2", &|xid| s1.contains(xid) && s2.contains(xid));
            }
        }
    }
}

fn each_level_is_kept_where_it_was_promised(server: &Server) {
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let primary = Cluster::builder(server).name("p").seg_mb(1).conf("wal_keep_size = '1GB'").start();
    primary.sql("create table t (level text)");
    let keep = ["--wal-keep-size", "1GB"];
    let relay = |builder: walrelay_testkit::RelayBuilder, rules: &[&str]| {
        keep.iter().chain(rules).fold(builder, |builder, word| builder.arg(word)).start()
    };
    let r1 = relay(relay_below(&primary), &["--ack-flush", "ALL (r2)", "--ack-apply", "connected"]);
    let below = r1.builder_below().name("r2");
    let r2 = relay(below, &["--ack-flush", "ANY 1 (s1, s2)", "--ack-apply", "ALL (s1, s2)"]);
    let standbys = ["s1", "s2"].map(|name| {
        r2.create_slot(name);
        primary.standby().name(name).follow(&r2.conninfo()).slot(name).conf("wal_keep_size = '1GB'").start()
    });
    primary.make_synchronous("walrelay");
    let mut scene = Scene { relays: [r1, r2], standbys };
    let from = primary.sql("select pg_walfile_name(pg_current_wal_lsn())");
    let watch = Watch::start(&primary);
    let clients = LEVELS.map(|level| Client::start(&primary, level));
    for number in 1..=FAULTS {
        clients.iter().for_each(Client::wait_for_more);
        let member = MEMBERS[random.usize(..MEMBERS.len())];
        let fault = FAULTS_THERE_ARE[random.usize(..FAULTS_THERE_ARE.len())];
        println!("{number}: {fault:?} {member:?}");
        scene.strike(member, fault);
        clients.iter().filter(|it| member.can_be_missed_at(it.level)).for_each(Client::wait_for_more);
        if number % LOOK_EVERY != 0 {
            scene.mend(member, fault);
            continue;
        }
        scene.with_all_down(member, fault, |scene| {
            // None of them can acknowledge anything any more: it is there, or it was not to be acknowledged.
            let acked: Vec<_> = clients.iter().map(|client| (client.level, client.acked())).collect();
            println!(
                "{number}: {:?} acknowledged",
                acked.iter().map(|(_, xids)| xids.len()).collect::<Vec<_>>()
            );
            scene.assert_kept(&acked, &from);
        });
    }
    clients.iter().for_each(Client::wait_for_more);
    clients.into_iter().for_each(Client::end);
    watch.end();
}
