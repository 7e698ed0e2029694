//! A new binary takes over: by exec, and under systemd, which keeps the listening sockets. Commits that wait for the relay hardly
//! notice, clients wait and are not refused, and consumers go on where they were.
//!
//! How long commits have waited is printed (`cargo test --test pg -- --nocapture restarts`), and judged by the best restart of a few:
//! whatever else the machine does can make one slow, and a relay that takes too long makes all of them so.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use walrelay_proto::Lsn;
use walrelay_testkit::{
    Cluster, Consumer, Mark, Port, Relay, RelayBuilder, Scratch, Server, Signal, Systemd, compare,
    on_one_version, wait_for, wait_until,
};

use crate::{relay_below, walrelay};

on_one_version!(
    a_new_binary_takes_over_by_exec,
    a_new_process_takes_over_what_systemd_has_kept,
    a_binary_that_will_not_do_is_refused,
    an_order_between_two_programs_is_obeyed,
    a_program_that_cannot_be_run_after_all_is_done_without,
    a_long_farewell_is_a_sign_of_life_and_may_be_the_last,
    sockets_of_a_unit_are_used_or_refused,
);

/// What each process of the relay says first.
const STARTED: &str = concat!("walrelay ", env!("CARGO_PKG_VERSION"), " started");

/// Restarts of each kind.
const ROUNDS: usize = 3;
/// What a commit waits at most, at most of them.
const PROMISED: Duration = Duration::from_secs(1);

fn a_new_binary_takes_over_by_exec(server: &Server) {
    let http = Port::take();
    let scene = Scene::start(server, |builder| builder.arg("--http-listen").arg(&http.number().to_string()));
    let Scene { primary, mut relay, socket, .. } = scene;
    let (commits, consumer) = (Commits::start(&primary), Stream::start(&relay, &primary));
    let (inode, pid) = (inode(&socket), relay.pid());
    let (clients, watchers) = (Clients::start(&relay), Watchers::start(&http));
    let mut consumer = Some(consumer);
    let mut worst = Vec::new();
    for round in 0..ROUNDS {
        commits.wait_for_more(20);
        commits.take_worst();
        let mark = relay.log().mark();
        if round == 0 {
            let said = relay.psql("dbname=walrelay", &["restart"]);
            assert!(said.is_ok(), "{said:?}");
        } else {
            relay.signal(Signal::USR2);
        }
        relay.log().wait_for_after(mark, STARTED);
        // It resumes exactly where it was: what follows on that, and nothing else.
        consumer = consumer.map(|stream| stream.resume(&relay));
        commits.wait_for_more(20);
        worst.push(commits.take_worst());
    }
    let clients = clients.stop();
    assert!(clients.served > ROUNDS, "{clients:?}");
    assert_eq!(clients.lost, [""; 0], "refused, or cut off");
    let watchers = watchers.stop();
    assert!(watchers.served > ROUNDS, "{watchers:?}");
    assert_eq!(watchers.lost, [""; 0], "not answered over HTTP");
    commits.stop();
    judge("restarts by exec", &worst);
    assert!(relay.pid() == pid && relay.is_running());
    assert_eq!(self::inode(&socket), inode, "the socket is the same");
    relay
        .psql(&format!("host={}", socket.parent().expect("a directory").display()), &["select 1"])
        .expect("it answers");
    consumer.expect("it is there").finish(&primary);
    assert_complete(&primary, &relay);
    relay.terminate();
    assert!(!socket.exists(), "a stop for good leaves nothing");
    // The order is a WARN.
    assert_eq!(relay.log().lines_with("ERROR", Mark::default()), [""; 0]);
}

fn a_new_process_takes_over_what_systemd_has_kept(server: &Server) {
    let mut systemd = Systemd::start();
    let notify = systemd.notify_socket().display().to_string();
    let scene = Scene::start(server, |builder| builder.env("NOTIFY_SOCKET", &notify).env("FDSTORE", "16"));
    let Scene { primary, mut relay, socket, .. } = scene;
    let (commits, mut consumer) = (Commits::start(&primary), Stream::start(&relay, &primary));
    let inode = inode(&socket);
    let mut worst = Vec::new();
    for round in 0..ROUNDS {
        systemd.wait_for("READY=1");
        assert_eq!(systemd.names().len(), 2, "{:?}", systemd.names());
        commits.wait_for_more(20);
        commits.take_worst();
        relay.terminate();
        // There is no relay now, and a client waits; once, for that is found out while commits wait, too.
        let early = (round == 0).then(|| {
            let address = SocketAddr::from(([127, 0, 0, 1], relay.port()));
            let early = std::thread::spawn(move || Consumer::connect(address, "early"));
            wait_until("a client that waits", || waits_at(&relay));
            early
        });
        relay.pass(systemd.pass());
        relay.start();
        early
            .into_iter()
            .for_each(|early| drop(early.join().expect("it does not panic").expect("it gets in")));
        consumer = consumer.resume(&relay);
        commits.wait_for_more(20);
        worst.push(commits.take_worst());
    }
    commits.stop();
    judge("stops and starts with sockets kept", &worst);
    assert_eq!(self::inode(&socket), inode, "the socket is the same");
    consumer.finish(&primary);
    assert_complete(&primary, &relay);
    relay.assert_calm();
    // A socket that is not configured any more is closed, and systemd lets go of it.
    systemd.wait_for("READY=1");
    relay.terminate();
    let mut kept = systemd.pass();
    let other = std::net::TcpListener::bind("127.0.0.1:0").expect("there are ports");
    kept.push(("kept-listen-127.0.0.1_1".to_owned(), other.into()));
    relay.pass(kept);
    relay.start();
    systemd.wait_for("FDSTOREREMOVE=1\nFDNAME=kept-listen-127.0.0.1_1");
    relay.log().wait_for("closed a socket that is not configured any more");
}

fn a_binary_that_will_not_do_is_refused(server: &Server) {
    let primary = Cluster::builder(server).seg_mb(1).start();
    let scratch = Scratch::new("binary");
    let program = scratch.join("walrelay");
    symlink(walrelay(), &program).expect("the directory is ours");
    let mut relay = Relay::builder(&program, &primary).start();
    let (pid, calls) = (relay.pid(), scratch.join("calls"));
    let bad = [
        ("exit 1", "does not answer as walrelay does"),
        (
            "echo walrelay 7; test $1 = --version && exit; echo 'walrelay: error: no such setting' >&2; exit 2",
            "no such setting",
        ),
    ];
    for (script, reason) in bad {
        replace(&program, script);
        let mark = relay.log().mark();
        let refused = relay.psql("dbname=walrelay", &["restart"]).expect_err("it will not do");
        assert!(refused.0.contains(reason), "{refused}");
        relay.signal(Signal::USR2);
        relay.log().wait_for_after(mark, "not restarted, this process goes on: ");
    }
    fs::remove_file(&program).expect("it is there");
    let gone = relay.psql("dbname=walrelay", &["restart"]).expect_err("there is none");
    assert!(gone.0.contains("could not run"), "{gone}");
    primary.sql("create table t as select 1");
    relay.wait_for_flush(primary.flush_lsn());
    // One that will do is the one that runs then, with the same arguments.
    let real = walrelay();
    replace(&program, &format!("echo \"$1\" >> {}; exec {} \"$@\"", calls.display(), real.display()));
    let mark = relay.log().mark();
    relay.signal(Signal::USR2);
    relay.log().wait_for_after(mark, STARTED);
    let called = fs::read_to_string(&calls).expect("it was called");
    assert_eq!(called.lines().collect::<Vec<_>>(), ["--version", "check-config", "--upstream"]);
    assert!(relay.pid() == pid && relay.is_running());
    primary.sql("create table u as select 1");
    relay.wait_for_flush(primary.flush_lsn());
}

/// The time between the old program's last look and the new one's first is made long.
fn an_order_between_two_programs_is_obeyed(server: &Server) {
    let scene = Scene::start(server, |builder| builder);
    let Scene { mut relay, socket, .. } = scene;
    let mark = relay.log().mark();
    let trace = relay.trace(&["trace=execve", "inject=execve:delay_enter=700000"]);
    relay.signal(Signal::USR2);
    relay.log().wait_for_after(mark, "stopped");
    relay.signal(Signal::TERM);
    assert_eq!(relay.wait_exit(), Some(0), "{}", relay.log().tail());
    drop(trace);
    relay.log().wait_for_after(mark, "stopped before the start was over");
    assert!(!socket.exists(), "a stop for good leaves nothing");
    // Where the new program does not listen yet.
    relay.start();
    let mark = relay.log().mark();
    let trace = relay.trace(&["trace=execve", "inject=execve:delay_exit=700000"]);
    relay.signal(Signal::USR2);
    wait_until("the new program", || threads(&relay) == 1);
    relay.signal(Signal::HUP);
    relay.signal(Signal::USR2);
    relay.log().wait_for_after(mark, "configuration reloaded");
    // The second restart.
    relay.log().wait_for_after(mark, "restarting: ");
    let mark = relay.log().mark();
    relay.log().wait_for_after(mark, "stopped");
    wait_until("the program after that", || threads(&relay) == 1);
    relay.signal(Signal::TERM);
    assert_eq!(relay.wait_exit(), Some(0), "{}", relay.log().tail());
    drop(trace);
    relay.log().wait_for_after(mark, "stopped before the start was over");
    assert!(!socket.exists(), "a stop for good leaves nothing");
}

/// It was good when it was checked.
fn a_program_that_cannot_be_run_after_all_is_done_without(server: &Server) {
    let primary = Cluster::builder(server).seg_mb(1).start();
    let scratch = Scratch::new("binary");
    let program = scratch.join("walrelay");
    symlink(walrelay(), &program).expect("the directory is ours");
    let dir = scratch.join("sockets");
    fs::create_dir(&dir).expect("the directory is ours");
    fs::set_permissions(&dir, PermissionsExt::from_mode(0o755)).expect("it is ours");
    let builder = Relay::builder(&program, &primary).arg("--shutdown-timeout").arg("5s");
    let builder =
        builder.hba("local all,replication all trust\nhost all,replication all 127.0.0.1/32 trust\n");
    let mut relay = builder.arg("--listen").arg(&dir.display().to_string()).start();
    let (pid, mark) = (relay.pid(), relay.log().mark());
    let consumer = unheard(&relay, &primary);
    relay.signal(Signal::USR2);
    relay.log().wait_for_after(mark, "restarting: ");
    fs::remove_file(&program).expect("it is there");
    drop(consumer);
    let told = format!("could not run \"{}\": ", program.display());
    relay.log().wait_for_after(mark, &told);
    relay.log().wait_for_after(mark, "the program that has run until now goes on");
    relay.log().wait_for_after(mark, STARTED);
    assert!(relay.pid() == pid && relay.is_running());
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).expect("the kernel tells");
    assert_eq!(comm.trim_end(), "walrelay", "as before, and not what /proc/self/exe would be");
    primary.sql("create table t as select 1");
    relay.wait_for_flush(primary.flush_lsn());
    // Nor can the one that runs.
    symlink(walrelay(), &program).expect("the directory is ours");
    let mark = relay.log().mark();
    let consumer = unheard(&relay, &primary);
    relay.signal(Signal::USR2);
    relay.log().wait_for_after(mark, "restarting: ");
    let trace = relay.trace(&["trace=execve", "inject=execve:error=ENOMEM"]);
    drop(consumer);
    assert!(relay.wait_exit().is_some_and(|code| code > 0));
    drop(trace);
    relay.log().wait_for_after(mark, "could not run the new binary nor this one again, nothing runs now");
    let left = fs::read_dir(&dir).expect("it is ours").flatten().map(|entry| entry.path());
    assert_eq!(left.collect::<Vec<_>>(), Vec::<PathBuf>::new(), "nobody is left who would listen there");
    relay.start();
    primary.sql("create table u as select 1");
    relay.wait_for_flush(primary.flush_lsn());
}

fn a_long_farewell_is_a_sign_of_life_and_may_be_the_last(server: &Server) {
    let mut systemd = Systemd::start();
    let notify = systemd.notify_socket().display().to_string();
    let watched =
        |builder: RelayBuilder| builder.env("NOTIFY_SOCKET", &notify).env("WATCHDOG_USEC", "300000");
    let scene = Scene::start(server, |builder| watched(builder).arg("--shutdown-timeout").arg("3s"));
    let Scene { primary, mut relay, socket, .. } = scene;
    systemd.wait_for("READY=1");
    let consumer = unheard(&relay, &primary);
    relay.signal(Signal::USR2);
    systemd.wait_for("RELOADING=1");
    let mut signs = 0;
    while systemd.hear() == "WATCHDOG=1" {
        signs += 1;
    }
    assert!(signs >= 10, "{signs}: in three seconds, ten each second are due");
    relay.log().wait_for("consumer did not confirm the last WAL in time");
    drop(consumer);
    // The next one is told to stop meanwhile.
    wait_until("the socket", || relay.psql("dbname=walrelay", &["show version"]).is_ok());
    let (_consumer, mark) = (unheard(&relay, &primary), relay.log().mark());
    relay.signal(Signal::USR2);
    systemd.wait_for("RELOADING=1");
    relay.signal(Signal::TERM);
    systemd.wait_for("STOPPING=1");
    assert_eq!(relay.wait_exit(), Some(0), "{}", relay.log().tail());
    relay.log().wait_for_after(mark, "told to stop: not restarted");
    assert!(!socket.exists(), "a stop for good leaves nothing");
}

/// A consumer that confirms nothing: a stop waits for it.
fn unheard(relay: &Relay, primary: &Cluster) -> Consumer {
    primary.sql("set synchronous_commit = local; select pg_switch_wal()");
    let address = SocketAddr::from(([127, 0, 0, 1], relay.port()));
    let mut consumer = Consumer::connect(address, "unheard").expect("it gets in");
    consumer.start(primary.flush_lsn().seg_start(primary.seg_size())).expect("there is such WAL");
    primary.sql("set synchronous_commit = local; create table if not exists unheard as select 1");
    relay.wait_for_flush(primary.flush_lsn());
    consumer
}

fn threads(relay: &Relay) -> usize {
    fs::read_dir(format!("/proc/{}/task", relay.pid())).map_or(0, Iterator::count)
}

/// Sockets that somebody else has made.
fn sockets_of_a_unit_are_used_or_refused(server: &Server) {
    let primary = Cluster::builder(server).seg_mb(1).start();
    let mut relay = relay_below(&primary).arg("--http-listen").arg("0").prepare();
    let bind = |address: &str| std::net::TcpListener::bind(address).expect("nobody else has it");
    let named = |name: &str, socket: &std::net::TcpListener| {
        (name.to_owned(), socket.try_clone().expect("there are descriptors").into())
    };
    let (consumers, http) = (bind(&format!("127.0.0.1:{}", relay.port())), bind("127.0.0.1:0"));
    // They connect before there is a relay, which has no WAL yet either and says so.
    let early = {
        let address = consumers.local_addr().expect("it has one");
        std::thread::spawn(move || Consumer::connect(address, "early"))
    };
    relay.pass(vec![named("walrelay.socket", &consumers), named("http", &http)]);
    relay.start();
    let early = early.join().expect("it does not panic");
    assert!(early.as_ref().map_or_else(is_told, |_| true), "{early:?}");
    let at = http.local_addr().expect("it has one");
    relay.log().wait_for(&format!("listening on {at} for HTTP"));
    relay.terminate();
    // Still there: it is not the relay's.
    TcpStream::connect(at).expect("it listens");
    // One that fits nothing is a mistake.
    // (With port 0, --http-listen would take any of its address.)
    let stray = bind("127.0.0.2:0");
    relay.pass(vec![named("walrelay.socket", &stray)]);
    drop(consumers);
    relay.spawn();
    assert_eq!(relay.wait_exit(), Some(2));
    let at = stray.local_addr().expect("it has one");
    relay.log().wait_for(&format!("socket {at} of LISTEN_FDS (\"walrelay.socket\") fits no --listen"));
    let file = fs::File::open("/dev/null").expect("it is there");
    relay.pass(vec![("walrelay.socket".to_owned(), file.into())]);
    relay.spawn();
    assert_eq!(relay.wait_exit(), Some(2));
    relay.log().wait_for("of LISTEN_FDS (\"walrelay.socket\") is not a listening stream socket");
}

/// A primary that waits for the relay with each commit.
struct Scene {
    primary: Cluster,
    relay: Relay,
    /// A Unix socket of the relay's.
    socket: PathBuf,
    _scratch: Scratch,
}

impl Scene {
    fn start(server: &Server, with: impl FnOnce(RelayBuilder) -> RelayBuilder) -> Scene {
        let primary = Cluster::builder(server).seg_mb(1).start();
        let scratch = Scratch::new("restarts");
        // Ours, and not the servers'.
        let dir = scratch.join("sockets");
        fs::create_dir(&dir).expect("the directory is ours");
        fs::set_permissions(&dir, PermissionsExt::from_mode(0o755)).expect("it is ours");
        let builder = relay_below(&primary)
            .hba("local all,replication all trust\nhost all,replication all 127.0.0.1/32 trust\n");
        let relay = with(builder.arg("--listen").arg(&dir.display().to_string())).start();
        primary.make_synchronous("walrelay");
        let socket = dir.join(format!(".s.PGSQL.{}", relay.port()));
        Scene { primary, relay, socket, _scratch: scratch }
    }
}

/// Commits one after the other, each of which waits for the relay.
struct Commits {
    stop: Arc<AtomicBool>,
    done: Arc<std::sync::atomic::AtomicUsize>,
    /// How long the longest took.
    worst: Arc<Mutex<Duration>>,
    thread: JoinHandle<()>,
}

/// The worst commit of each restart: less than what is promised, at more than half of them. At one of them the machine may have had
/// something else to do, which is no restart's doing.
#[track_caller]
fn judge(kind: &str, worst: &[Duration]) {
    println!("worst commit at each of {ROUNDS} {kind}: {worst:?}");
    let mut sorted = worst.to_vec();
    sorted.sort_unstable();
    let median = sorted[sorted.len() / 2];
    assert!(median < PROMISED, "{kind}: a commit waited for {PROMISED:?} or longer mostly: {worst:?}");
}

impl Commits {
    fn start(primary: &Cluster) -> Commits {
        primary.sql("set synchronous_commit = local; create table committed (i bigint)");
        let (stop, done) = (Arc::<AtomicBool>::default(), Arc::<std::sync::atomic::AtomicUsize>::default());
        let worst = Arc::<Mutex<Duration>>::default();
        let mut session = primary.session();
        let thread = std::thread::spawn({
            let (stop, done, worst) = (stop.clone(), done.clone(), worst.clone());
            move || {
                while !stop.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    session.run("insert into committed values (1)").expect("it is committed");
                    let took = begun.elapsed();
                    let mut worst = worst.lock().expect("nobody panics");
                    *worst = worst.max(took);
                    drop(worst);
                    done.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Commits { stop, done, worst, thread }
    }

    /// How long the longest took since this was asked last.
    fn take_worst(&self) -> Duration {
        std::mem::take(&mut *self.worst.lock().expect("nobody panics"))
    }

    #[track_caller]
    fn wait_for_more(&self, more: usize) {
        let wanted = self.done.load(Ordering::Relaxed) + more;
        wait_until("more commits", || self.done.load(Ordering::Relaxed) >= wanted);
    }

    fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("all were committed");
    }
}

/// A consumer that receives and confirms until its stream is ended.
struct Stream(JoinHandle<Lsn>);

impl Stream {
    fn start(relay: &Relay, primary: &Cluster) -> Stream {
        Stream::at(relay, primary.flush_lsn().seg_start(primary.seg_size()))
    }

    fn at(relay: &Relay, from: Lsn) -> Stream {
        let address = SocketAddr::from(([127, 0, 0, 1], relay.port()));
        Stream(std::thread::spawn(move || {
            let mut consumer = Consumer::connect(address, "stream").expect("it gets in");
            consumer.start(from).expect("there is such WAL");
            let mut received = from;
            loop {
                match consumer.next_wal() {
                    Ok(end) => received = end,
                    // The end is shorter than the shortest message with WAL.
                    Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return received,
                    Err(error) => panic!("{error}"),
                }
                consumer.report().expect("the relay hears it");
            }
        }))
    }

    /// Goes on where it was ended.
    fn resume(self, relay: &Relay) -> Stream {
        Stream::at(relay, self.0.join().expect("nothing was missing or wrong"))
    }

    /// It lives.
    fn finish(self, primary: &Cluster) {
        primary.sql("create table more as select 1");
        assert!(!self.0.is_finished());
    }
}

/// Clients that come and go all the time.
struct Clients {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Served>,
}

#[derive(Debug, Default)]
struct Served {
    served: usize,
    /// Those who came when the relay knew already that it was going: it says so.
    told: usize,
    lost: Vec<String>,
}

impl Clients {
    fn start(relay: &Relay) -> Clients {
        let stop = Arc::<AtomicBool>::default();
        let address = SocketAddr::from(([127, 0, 0, 1], relay.port()));
        let until = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut served = Served::default();
            while !until.load(Ordering::Relaxed) {
                match Consumer::connect(address, "client") {
                    Ok(_) => served.served += 1,
                    Err(error) if is_told(&error) => served.told += 1,
                    Err(error) => served.lost.push(error.to_string()),
                }
            }
            served
        });
        Clients { stop, thread }
    }

    fn stop(self) -> Served {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("it does not panic")
    }
}

/// Those who ask all the time whether it lives.
struct Watchers {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Served>,
}

impl Watchers {
    fn start(port: &Port) -> Watchers {
        let stop = Arc::<AtomicBool>::default();
        let (until, port) = (stop.clone(), port.number());
        let ask = move || -> io::Result<String> {
            let mut socket = TcpStream::connect(("127.0.0.1", port))?;
            socket.set_read_timeout(Some(Duration::from_secs(20)))?;
            socket.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
            let mut answer = String::new();
            socket.read_to_string(&mut answer).map(|_| answer)
        };
        let thread = std::thread::spawn(move || {
            let mut served = Served::default();
            while !until.load(Ordering::Relaxed) {
                match ask() {
                    Ok(answer) if answer.starts_with("HTTP/1.1 200") => served.served += 1,
                    // Accepted before the stop and asked behind it: whoever watches asks again.
                    first => match ask() {
                        Ok(answer) if answer.starts_with("HTTP/1.1 200") => served.told += 1,
                        again => served.lost.push(format!("{first:?}, {again:?}")),
                    },
                }
            }
            served
        });
        Watchers { stop, thread }
    }

    fn stop(self) -> Served {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().expect("it does not panic")
    }
}

/// Who was let in a moment before is told that the relay goes.
fn is_told(error: &io::Error) -> bool {
    let text = error.to_string();
    text.contains("C57P01") || text.contains("C57P03")
}

/// Whether a connection waits in the queue of the relay's port (`ss`: the listening socket's Recv-Q).
fn waits_at(relay: &Relay) -> bool {
    let port = format!(":{:04X}", relay.port());
    let sockets = fs::read_to_string("/proc/net/tcp").expect("the kernel tells");
    sockets.lines().any(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        // sl local remote state tx:rx
        words.len() > 4 && words[1].ends_with(&port) && words[3] == "0A" && !words[4].ends_with(":00000000")
    })
}

/// A script in the place of the program.
fn replace(program: &Path, script: &str) {
    let new = program.with_extension("new");
    // By a child: a file that we write is open in whatever another thread of ours forks meanwhile, and cannot be run.
    let write = "printf '#!/bin/sh\\n%s\\n' \"$2\" > \"$1\" && chmod 755 \"$1\"";
    let written = Command::new("sh").args(["-c", write, "sh"]).arg(&new).arg(script).status();
    assert!(written.expect("there is a shell").success());
    fs::rename(&new, program).expect("it is ours");
}

fn inode(path: &Path) -> u64 {
    fs::symlink_metadata(path).expect("it is there").ino()
}

#[track_caller]
fn assert_complete(primary: &Cluster, relay: &Relay) {
    let last = primary.switch_wal();
    relay.wait_for_segment(&last);
    compare::assert_segments(primary, &relay.wal_dir(), 1);
    let count = primary.sql("select count(*) from committed");
    wait_for("commits", || count.parse::<u64>().ok().filter(|count| *count >= 120));
}
