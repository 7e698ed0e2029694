//! PostgreSQL clusters: primaries, and standbys once they are made (see `standby.rs`).

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use walrelay_proto::{Lsn, SegSize, TimelineHistory, TimelineId, WalFileName};

use crate::account;
use crate::install::cache_dir;
use crate::log::Log;
use crate::pgbench::Pgbench;
use crate::port::Port;
use crate::process::{Process, output};
use crate::psql::{self, Session, SqlError};
use crate::scratch::Scratch;
use crate::server::Server;
use crate::standby::StandbyBuilder;
use crate::wait::{wait_for, wait_until, within};

/// What every cluster of ours is configured with. Small, quick to notice things, and keeping its WAL, so that
/// files can be compared in the end.
const COMMON_CONF: &str = "
listen_addresses = '127.0.0.1'
shared_buffers = 32MB
max_connections = 60
max_wal_senders = 20
max_replication_slots = 20
wal_keep_size = 4GB
max_wal_size = 4GB
wal_receiver_status_interval = 1s
wal_retrieve_retry_interval = 200ms
log_replication_commands = on
log_line_prefix = '%m [%p] %b %a '
";

const TRUST_HBA: &str = "
local all,replication all trust
host all,replication all 127.0.0.1/32 trust
";

/// How to make a cluster.
#[derive(Debug, Clone)]
pub struct ClusterBuilder {
    server: Server,
    name: String,
    seg_mb: u32,
    conf: Vec<String>,
    hba: String,
    password: Option<String>,
    fsync: bool,
    fresh: bool,
    environment: Vec<(String, String)>,
}

impl ClusterBuilder {
    /// Name of its directory, for people; `primary` unless set.
    pub fn name(mut self, name: &str) -> Self {
        self.name = name.to_owned();
        self
    }

    /// WAL segment size in MB; 16 unless set.
    pub fn seg_mb(mut self, megabytes: u32) -> Self {
        self.seg_mb = megabytes;
        self
    }

    /// One more line for `postgresql.conf`.
    pub fn conf(mut self, line: &str) -> Self {
        self.conf.push(line.to_owned());
        self
    }

    /// A variable of the server's environment.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Contents of `pg_hba.conf`; without it, everybody on this machine is trusted.
    pub fn hba(mut self, lines: &str) -> Self {
        self.hba = lines.to_owned();
        self
    }

    /// Password of user `postgres`, stored for SCRAM, and asked for on TCP.
    pub fn password(mut self, password: &str) -> Self {
        self.hba = TRUST_HBA.replace("127.0.0.1/32 trust", "127.0.0.1/32 scram-sha-256");
        self.password = Some(password.to_owned());
        self
    }

    /// Really sync to disk. Off unless asked for: a process that is killed loses nothing the kernel has.
    pub fn fsync(mut self) -> Self {
        self.fsync = true;
        self
    }

    /// Run initdb, for a system identifier of its own. Otherwise the cluster is a copy of a cached one of the
    /// same version and segment size, and shares its identifier.
    pub fn fresh_initdb(mut self) -> Self {
        self.fresh = true;
        self
    }

    /// Makes the cluster and starts it.
    #[track_caller]
    pub fn start(self) -> Cluster {
        let mut cluster = Cluster::prepare(&self.server, &self.name);
        cluster.environment = self.environment;
        if self.fresh {
            initdb(&self.server, self.seg_mb, &cluster.data_dir());
        } else {
            copy_dir(&template(&self.server, self.seg_mb), &cluster.data_dir());
        }
        cluster.append_conf(COMMON_CONF);
        cluster.append_conf(if self.fsync { "fsync = on" } else { "fsync = off" });
        cluster.append_conf(&self.conf.join("\n"));
        cluster.set_hba(&self.hba);
        cluster.start();
        if let Some(password) = self.password {
            cluster.sql(&format!("alter role postgres password '{password}'"));
            cluster.password = Some(password);
        }
        cluster
    }
}

/// A PostgreSQL server with its data directory, port and log. Stopped, and its directory removed, when dropped.
#[derive(Debug)]
pub struct Cluster {
    // Dropped in this order: the process before the files it uses.
    process: Option<Process>,
    server: Server,
    port: Port,
    password: Option<String>,
    environment: Vec<(String, String)>,
    scratch: Scratch,
}

impl Cluster {
    /// Starts describing a cluster of this version.
    pub fn builder(server: &Server) -> ClusterBuilder {
        ClusterBuilder {
            server: server.clone(),
            name: "primary".to_owned(),
            seg_mb: 16,
            conf: Vec::new(),
            hba: TRUST_HBA.to_owned(),
            password: None,
            fsync: false,
            fresh: false,
            environment: Vec::new(),
        }
    }

    /// A cluster without a data directory yet.
    pub(crate) fn prepare(server: &Server, name: &str) -> Cluster {
        let scratch = Scratch::new(name);
        let (server, port, environment) = (server.clone(), Port::take(), Vec::new());
        Cluster { process: None, server, port, password: None, environment, scratch }
    }

    /// Its programs.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// The TCP port it listens on, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port.number()
    }

    /// The process id of the running server.
    pub fn pid(&self) -> u32 {
        self.process.as_ref().expect("the server was started").pid()
    }

    /// Directory of its Unix socket.
    pub fn socket_dir(&self) -> &Path {
        self.scratch.path()
    }

    /// The data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.scratch.join("data")
    }

    /// The directory of its WAL segments.
    pub fn wal_dir(&self) -> PathBuf {
        self.data_dir().join("pg_wal")
    }

    /// The server's log.
    pub fn log(&self) -> Log {
        Log::at(self.scratch.join("log"))
    }

    /// How to connect over TCP as `postgres`; with the password, if one was set.
    pub fn conninfo(&self) -> String {
        let password = self.password.as_ref().map(|text| format!(" password={text}")).unwrap_or_default();
        format!("host=127.0.0.1 port={} user=postgres{password}", self.port())
    }

    /// Adds lines to `postgresql.conf`; the last one about a setting counts.
    pub fn append_conf(&self, lines: &str) {
        let path = self.data_dir().join("postgresql.conf");
        let old = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        fs::write(&path, format!("{old}\n{lines}\n")).expect("it was readable");
    }

    /// Replaces `pg_hba.conf`; a running server needs a [`Cluster::reload`].
    pub fn set_hba(&self, lines: &str) {
        fs::write(self.data_dir().join("pg_hba.conf"), lines).expect("the data directory is there");
    }

    /// Starts the server and waits until it accepts connections.
    #[track_caller]
    pub fn start(&mut self) {
        // Children of a killed postmaster may hold its shared memory a moment longer.
        let started = within(crate::PATIENCE, || self.try_start().then_some(()));
        assert!(started.is_some(), "{} does not start\n{}", self.server.version(), self.log().tail());
    }

    /// Starts the server and does not wait.
    pub fn spawn(&mut self) {
        let log = self.log();
        let mut command = account::lasting(&self.server.program("postgres"), "QUIT");
        command.arg("-D").arg(self.data_dir()).arg("-k").arg(self.socket_dir());
        command.args(["-p", &self.port().to_string()]);
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        self.process = Some(Process::spawn("postgres", command, log.path()));
    }

    /// False when something of a former life of this cluster is still in the way.
    fn try_start(&mut self) -> bool {
        let log = self.log();
        let mark = log.mark();
        self.spawn();
        let process = self.process.as_mut().expect("just started");
        let mut isready = self.server.command("pg_isready");
        isready.args(["-q", "-U", "postgres", "-h", "127.0.0.1", "-p", &self.port.number().to_string()]);
        let ready = within(crate::PATIENCE, || {
            let running = process.is_running();
            (!running || output(&mut isready).is_ok()).then_some(running)
        });
        let ready = ready.unwrap_or_else(|| panic!("PostgreSQL does not accept connections\n{}", log.tail()));
        if !ready {
            let in_the_way = ["is still in use", "lock file \"postmaster.pid\" already exists"];
            let passing = in_the_way.iter().any(|part| !log.lines_with(part, mark).is_empty());
            assert!(passing, "PostgreSQL did not start\n{}", log.tail());
        }
        ready
    }

    /// Fast shutdown: sessions end, walsenders send everything first.
    #[track_caller]
    pub fn stop(&mut self) {
        self.stop_with(Signal::INT);
    }

    /// Immediate shutdown, as after a crash of the server.
    #[track_caller]
    pub fn stop_immediately(&mut self) {
        self.stop_with(Signal::QUIT);
    }

    #[track_caller]
    fn stop_with(&mut self, signal: Signal) {
        let mut process = self.process.take().expect("stopping a server that was started");
        process.signal(signal);
        process.wait();
    }

    /// Kills the server and all its processes with SIGKILL.
    pub fn kill9(&mut self) {
        let mut process = self.process.take().expect("killing a server that was started");
        let children = children_of(process.pid());
        process.kill9();
        for pid in &children {
            if let Some(pid) = rustix::process::Pid::from_raw(*pid) {
                // It may be gone already, at its postmaster's death.
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
        }
        let gone = |pid: &i32| !Path::new(&format!("/proc/{pid}")).exists();
        wait_until("the end of a killed server's processes", || children.iter().all(gone));
    }

    /// Sends a signal to the server and all its processes: SIGSTOP holds all of it, SIGCONT lets it go on.
    pub fn signal_all(&self, signal: Signal) {
        let Some(process) = &self.process else { return };
        let pid = process.pid();
        for pid in children_of(pid).into_iter().chain([pid as i32]) {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                // It may be gone already.
                let _ = rustix::process::kill_process(pid, signal);
            }
        }
    }

    /// Fast shutdown and start.
    #[track_caller]
    pub fn restart(&mut self) {
        self.stop();
        self.start();
    }

    /// Has the server read its configuration files again.
    pub fn reload(&self) {
        self.sql("select pg_reload_conf()");
    }

    /// Commits wait for these standbys, of whom some are connected, once this returns (`synchronous_standby_names`).
    #[track_caller]
    pub fn make_synchronous(&self, names: &str) {
        self.append_conf(&format!("synchronous_standby_names = '{names}'"));
        self.reload();
        self.wait_until_commits_wait();
    }

    /// Waits until commits wait for whom the configuration names.
    #[track_caller]
    pub fn wait_until_commits_wait(&self) {
        let waited_for =
            "select count(*) > 0 from pg_stat_replication where sync_state in ('sync', 'quorum')";
        self.wait_for_sql(waited_for, "t");
        // Backends wait once the checkpointer has read the file (`SyncRepUpdateSyncStandbysDefined`), which it does before it
        // makes a checkpoint.
        self.sql("checkpoint");
    }

    /// Makes a standby a primary and waits until it is.
    #[track_caller]
    pub fn promote(&self) {
        // Without waiting: a query that waits can hold up the replay it waits for, until it is cancelled.
        self.sql("select pg_promote(false)");
        let promoted = || self.try_sql("select pg_is_in_recovery()").is_ok_and(|answer| answer == "f");
        wait_until("the end of recovery", promoted);
    }

    /// Makes a stopped server start as a standby that streams from `upstream`.
    #[track_caller]
    pub fn become_standby(&self, name: &str, upstream: &str, slot: Option<&str>) {
        let conninfo = format!("{upstream} application_name={name}").replace('\'', "''");
        let slot = slot.unwrap_or_default();
        self.append_conf(&format!("primary_conninfo = '{conninfo}'\nprimary_slot_name = '{slot}'"));
        self.append_conf("synchronous_standby_names = ''");
        let signal = self.data_dir().join("standby.signal");
        fs::write(&signal, "").expect("the data directory is there");
        // Tools write it again, as the servers' account.
        account::give(&signal).expect("it is ours");
    }

    /// Runs `pg_rewind` on this stopped server, with a running primary as the source. The configuration files
    /// are the source's afterwards. Needs `wal_log_hints` or checksums.
    ///
    /// # Panics
    /// With pg_rewind's message when it fails.
    #[track_caller]
    pub fn rewind_to(&self, source: &Cluster) {
        // Until the checkpoint that follows a promotion, pg_rewind 15 takes the source for what it was before.
        source.sql("checkpoint");
        self.rewind(&source.local_conninfo(), &[]).unwrap_or_else(|error| panic!("{error}"));
    }

    /// The same with `-c` and `-R`: WAL that this server has removed comes by its `restore_command`, and from its next start on it
    /// is a standby of the source.
    ///
    /// # Errors
    /// With pg_rewind's message.
    pub fn rejoin(&self, source: &Cluster) -> Result<(), String> {
        source.sql("checkpoint");
        self.rewind(&source.local_conninfo(), &["-c", "-R"])
    }

    /// Runs `pg_rewind` with any server as the source, see [`Cluster::rewind_to`].
    ///
    /// # Errors
    /// With pg_rewind's message.
    pub fn rewind_from(&self, conninfo: &str) -> Result<(), String> {
        self.rewind(conninfo, &[])
    }

    fn rewind(&self, conninfo: &str, options: &[&str]) -> Result<(), String> {
        let mut command = self.server.command("pg_rewind");
        command.arg("--no-sync").arg("--target-pgdata").arg(self.data_dir());
        command.arg("--source-server").arg(conninfo).args(options);
        output(&mut command).map(drop)
    }

    /// A server of its own on a data directory that somebody made, a backup for example; used up. Starts it.
    #[track_caller]
    pub fn from_data_dir(server: &Server, name: &str, dir: &Path) -> Cluster {
        let mut cluster = Cluster::prepare(server, name);
        fs::rename(dir, cluster.data_dir()).expect("both are in the temporary directory");
        cluster.start();
        cluster
    }

    /// Starts a server on a data directory that somebody made, and waits until it has ended by itself; what it
    /// logged.
    #[track_caller]
    pub fn fails_to_start(server: &Server, name: &str, dir: &Path) -> String {
        let cluster = Cluster::prepare(server, name);
        fs::rename(dir, cluster.data_dir()).expect("both are in the temporary directory");
        let mut command = account::lasting(&server.program("postgres"), "QUIT");
        command.arg("-D").arg(cluster.data_dir()).arg("-k").arg(cluster.socket_dir());
        command.args(["-p", &cluster.port().to_string()]);
        let mut process = Process::spawn("postgres", command, cluster.log().path());
        assert_ne!(process.wait().code(), Some(0), "it ended well\n{}", cluster.log().tail());
        cluster.log().text()
    }

    /// Copies the data directory of this stopped server, as an administrator would with `cp`.
    #[track_caller]
    pub fn copy_data_to(&self, dir: &Path) {
        copy_dir(&self.data_dir(), dir);
    }

    /// Replaces the data directory of this stopped server, but not its WAL archive or its place, by a copy of
    /// `backup`. The WAL it had is moved to `archive`.
    #[track_caller]
    pub fn restore(&self, backup: &Path, archive: &Path) {
        fs::rename(self.wal_dir(), archive).expect("both are in the temporary directory");
        fs::remove_dir_all(self.data_dir()).expect("the server is stopped");
        copy_dir(backup, &self.data_dir());
    }

    /// Stops the walsender that serves `application_name` in its tracks with SIGSTOP, so that its consumer gets
    /// nothing more until this server is killed or [`Cluster::thaw`] is called. Its pid.
    #[track_caller]
    pub fn freeze_walsender(&self, application_name: &str) -> i32 {
        let query =
            format!("select pid from pg_stat_replication where application_name = '{application_name}'");
        let pid = wait_for(format_args!("a walsender for {application_name}"), || {
            self.sql(&query).parse::<i32>().ok()
        });
        signal_pid(pid, Signal::STOP);
        pid
    }

    /// Lets a frozen walsender go on.
    pub fn thaw(&self, pid: i32) {
        signal_pid(pid, Signal::CONT);
    }

    /// Runs SQL as the superuser and returns the rows as lines, fields separated by `|`.
    ///
    /// # Panics
    /// With psql's message when it fails.
    #[track_caller]
    pub fn sql(&self, sql: &str) -> String {
        self.try_sql(sql).unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// Runs SQL as the superuser.
    ///
    /// # Errors
    /// With psql's message.
    pub fn try_sql(&self, sql: &str) -> Result<String, SqlError> {
        psql::run(&self.server, &self.local_conninfo(), &[sql])
    }

    /// A connection that stays.
    pub fn session(&self) -> Session {
        Session::open(&self.server, &self.local_conninfo())
    }

    /// How to connect over the Unix socket, where everybody is trusted, whatever a test does to TCP.
    pub fn local_conninfo(&self) -> String {
        format!("host={} port={} user=postgres dbname=postgres", self.socket_dir().display(), self.port())
    }

    #[track_caller]
    fn lsn(&self, sql: &str) -> Lsn {
        let text = self.sql(sql);
        text.parse().unwrap_or_else(|error| panic!("{sql}: {error}"))
    }

    /// The primary's flush position.
    #[track_caller]
    pub fn flush_lsn(&self) -> Lsn {
        self.lsn("select pg_current_wal_flush_lsn()")
    }

    /// The primary's insert position, flushed: everything done so far lies before it.
    #[track_caller]
    pub fn settled_lsn(&self) -> Lsn {
        // A commit that is waited for flushes what came before, also of transactions that changed nothing.
        self.lsn(
            "set synchronous_commit = local; select pg_logical_emit_message(true, 'walrelay', 'settled')",
        );
        self.flush_lsn()
    }

    /// The standby's replay position; `0/0` before any replay.
    #[track_caller]
    pub fn replay_lsn(&self) -> Lsn {
        self.lsn("select coalesce(pg_last_wal_replay_lsn(), '0/0')")
    }

    /// The end of what the standby has received and flushed; `0/0` before it streamed anything.
    #[track_caller]
    pub fn receive_lsn(&self) -> Lsn {
        self.lsn("select coalesce(pg_last_wal_receive_lsn(), '0/0')")
    }

    /// Waits until the standby has received everything up to `lsn`.
    #[track_caller]
    pub fn wait_for_receive(&self, lsn: Lsn) {
        wait_until(format_args!("the standby to receive {lsn}"), || self.receive_lsn() >= lsn);
    }

    /// Waits until the standby has replayed up to `lsn`.
    #[track_caller]
    pub fn wait_for_replay(&self, lsn: Lsn) {
        let reached = within(crate::PATIENCE, || (self.replay_lsn() >= lsn).then_some(()));
        assert!(
            reached.is_some(),
            "replay stays at {}, before {lsn}\n{}",
            self.replay_lsn(),
            self.log().tail()
        );
    }

    /// Waits until a query returns `expected`.
    #[track_caller]
    pub fn wait_for_sql(&self, sql: &str, expected: &str) {
        let mut last = String::new();
        let reached = within(crate::PATIENCE, || {
            last = self.try_sql(sql).unwrap_or_else(|error| error.0);
            (last == expected).then_some(())
        });
        assert!(reached.is_some(), "expected {expected:?}, still {last:?}: {sql}");
    }

    /// Ends the present WAL segment; returns the name of its file. Something is written first, because a switch
    /// right at a segment's start does nothing.
    #[track_caller]
    pub fn switch_wal(&self) -> String {
        self.settled_lsn();
        self.sql("select pg_walfile_name(pg_switch_wal())")
    }

    /// Segment size.
    pub fn seg_size(&self) -> SegSize {
        SegSize::from_show(&self.sql("show wal_segment_size")).expect("PostgreSQL shows it in its own form")
    }

    /// The primary's timeline.
    #[track_caller]
    pub fn timeline(&self) -> TimelineId {
        let name = self.sql("select pg_walfile_name(pg_current_wal_lsn() + 1)");
        WalFileName::parse(&name, self.seg_size()).expect("PostgreSQL names files in its own form").tli
    }

    /// The history of the primary's timeline.
    #[track_caller]
    pub fn history(&self) -> TimelineHistory {
        let tli = self.timeline();
        if tli == TimelineId::FIRST {
            return TimelineHistory::first();
        }
        let content = fs::read(self.wal_dir().join(tli.history_file_name())).expect("written at promotion");
        TimelineHistory::parse(tli, &content).expect("PostgreSQL wrote it")
    }

    /// Names of the segment files that are complete on the primary's timeline and on those it descends from, in
    /// order. The segment in which a timeline was left is complete on the next one only.
    pub fn finished_segments(&self) -> Vec<String> {
        let (size, end, history) = (self.seg_size(), self.flush_lsn(), self.history());
        let end_of = |tli: TimelineId| match history.switch_point(tli) {
            Some((left_at, _)) => Some(left_at),
            None => (tli == history.tli()).then_some(end),
        };
        let names: BTreeSet<String> = fs::read_dir(self.wal_dir())
            .expect("a cluster has a pg_wal")
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| {
                // Files made in advance lie beyond the end.
                WalFileName::parse(name, size)
                    .is_some_and(|file| end_of(file.tli).is_some_and(|end| file.segno.end(size) <= end))
            })
            .collect();
        names.into_iter().collect()
    }

    /// A plain dump of database `postgres`, without what differs from call to call.
    #[track_caller]
    pub fn dump(&self) -> String {
        let mut command = self.server.command("pg_dump");
        let dump =
            output(command.args(["-d", &self.local_conninfo()])).unwrap_or_else(|error| panic!("{error}"));
        let random = |line: &&str| line.starts_with("\\restrict ") || line.starts_with("\\unrestrict ");
        dump.lines().filter(|line| !random(line)).fold(String::new(), |text, line| text + line + "\n")
    }

    /// Creates pgbench's tables, 100 000 rows for each unit of `scale`.
    #[track_caller]
    pub fn pgbench_init(&self, scale: u32) {
        let mut command = self.server.command("pgbench");
        let args = ["-i", "-q", "-s", &scale.to_string(), &self.local_conninfo()];
        output(command.args(args)).unwrap_or_else(|error| panic!("{error}"));
    }

    /// Runs pgbench to its end: `clients` connections doing `transactions` each.
    #[track_caller]
    pub fn pgbench(&self, clients: u32, transactions: u32) {
        let args = ["-c", &clients.to_string(), "-t", &transactions.to_string()];
        Pgbench::spawn(&self.server, &self.local_conninfo(), &args).finish();
    }

    /// Starts a pgbench that writes until it is stopped, or dropped.
    pub fn spawn_pgbench(&self, clients: u32) -> Pgbench {
        let args = ["-c", &clients.to_string(), "-T", "3600"];
        Pgbench::spawn(&self.server, &self.local_conninfo(), &args)
    }

    /// Starts describing a hot standby made from a base backup of this cluster.
    pub fn standby(&self) -> StandbyBuilder<'_> {
        StandbyBuilder::new(self)
    }

    /// Takes a base backup into `dir`, which must not exist, without any WAL: whoever starts from it must get
    /// that from elsewhere.
    #[track_caller]
    pub fn base_backup_to(&self, dir: &Path) {
        let mut command = self.server.command("pg_basebackup");
        command.args(["-c", "fast", "-X", "none", "--no-sync", "-d", &self.local_conninfo(), "-D"]).arg(dir);
        output(&mut command).unwrap_or_else(|error| panic!("{error}"));
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.signal(Signal::QUIT);
            // Past that, dropping it kills it.
            process.wait_at_most(Duration::from_secs(10));
        }
        if std::thread::panicking() {
            eprintln!("{}", self.log().tail());
        }
    }
}

pub(crate) fn signal_pid(pid: i32, signal: Signal) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        rustix::process::kill_process(pid, signal).unwrap_or_else(|error| panic!("signal: {error}"));
    }
}

pub(crate) fn children_of(pid: u32) -> Vec<i32> {
    let listed = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    listed.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

#[track_caller]
fn initdb(server: &Server, seg_mb: u32, dir: &Path) {
    let mut command = server.command("initdb");
    command.args(["--no-sync", "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C"]);
    command.arg(format!("--wal-segsize={seg_mb}")).arg("-D").arg(dir);
    output(&mut command).unwrap_or_else(|error| panic!("{error}"));
}

/// A cluster fresh from initdb that others are copies of, made by whoever needs it first.
fn template(server: &Server, seg_mb: u32) -> PathBuf {
    let cache = cache_dir().join("templates");
    let made = cache.join(format!("{}-{seg_mb}MB", server.version()));
    let lock = open_lock(&cache).unwrap_or_else(|error| panic!("{}: {error}", cache.display()));
    lock.lock().expect("the file is open and ours");
    if !made.exists() {
        let aside = made.with_extension("new");
        let _ = fs::remove_dir_all(&aside);
        initdb(server, seg_mb, &aside);
        fs::rename(&aside, &made).expect("both are in a directory of ours");
    }
    made
}

fn open_lock(cache: &Path) -> io::Result<File> {
    fs::create_dir_all(cache)?;
    account::give(cache)?;
    File::create(cache.join("lock"))
}

pub(crate) fn copy_dir(from: &Path, to: &Path) {
    let mut command = account::command("cp");
    output(command.arg("-R").arg("-p").arg(from).arg(to)).unwrap_or_else(|error| panic!("{error}"));
}
