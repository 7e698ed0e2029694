//! Other people's `restore_command`s, with the same WAL behind them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use walrelay_proto::SystemId;
use walrelay_testkit::{Barman, Cluster, Moto, Python, Scratch, Server, install, tied_command};

use crate::run;
use crate::wal::Wal;

/// Where barman-cloud looks for the server `main`.
pub(crate) const BUCKET_URL: &str = "s3://wal/backups/main";
const BUCKET: &str = "s3://wal/backups";

/// A Barman server `acc` on this machine.
pub(crate) struct BarmanServer {
    barman: Barman,
    python: Python,
    scratch: Scratch,
}

impl BarmanServer {
    pub(crate) fn new() -> BarmanServer {
        let server = install::ensure_any().unwrap_or_else(|error| panic!("{error}"));
        let settings = "conninfo = host=127.0.0.1\nbackup_method = postgres\narchiver = on\n";
        let barman = Barman::new(&server, settings, "");
        fs::create_dir(barman.home().join("acc")).expect("Barman's home is ours");
        let scratch = Scratch::new("barman");
        scratch.dir("spool");
        let it = BarmanServer { barman, python: Python::require(), scratch };
        // The other machine is this one.
        it.script("ssh", "shift 3; exec sh -c \"$*\"");
        it.script("barman", "exec \"$BARMAN_PYTHON\" \"$BARMAN_PROGRAM\" \"$@\"");
        it
    }

    fn script(&self, name: &str, text: &str) {
        let path = self.scratch.join(name);
        fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("the directory is ours");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("it is ours");
    }

    /// The URL's directory for its layout.
    pub(crate) fn wals_parent(&self) -> PathBuf {
        self.barman.home().join("acc")
    }

    /// What we have stored there becomes Barman's: it runs under another account.
    pub(crate) fn take(&self) {
        let mut command = tied_command("chmod");
        command.args(["-R", "a+rwX"]).arg(self.wals_parent());
        run(command);
    }

    /// A directory for segments fetched ahead.
    pub(crate) fn spool_dir(&self) -> String {
        self.scratch.join("spool").display().to_string()
    }

    pub(crate) fn wal_restore(&self, options: &[&str], name: &str, to: &Path) -> Command {
        let (conf, to) = (self.barman.conf().display().to_string(), to.display().to_string());
        let args = [options, &["--config", &conf, "localhost", "acc", name, &to]].concat();
        let program = "import os, sys\nos.environ['BARMAN_PYTHON'] = sys.executable\n\
                       from barman.clients.walrestore import main\nmain()";
        let mut command = self.python.lasting(program, &args);
        let path = std::env::var("PATH").unwrap_or_default();
        command.env("PATH", format!("{}:{path}", self.scratch.path().display()));
        command.env("BARMAN_PROGRAM", self.python.packages().join("bin/barman"));
        command
    }

    pub(crate) fn cloud_wal_restore(&self, moto: &Moto, name: &str, to: &Path) -> Command {
        let (endpoint, to) = (moto.endpoint(), to.display().to_string());
        let args =
            ["--cloud-provider", "aws-s3", "--endpoint-url", &endpoint, BUCKET, "main", name, to.as_str()];
        let mut command =
            self.python.lasting("from barman.clients.cloud_walrestore import main\nmain()", &args);
        let packages = format!("{}:{}", self.python.packages().display(), moto.packages().display());
        command.env("PYTHONPATH", packages).env("AWS_DEFAULT_REGION", "us-east-1");
        command.env("AWS_ACCESS_KEY_ID", "test").env("AWS_SECRET_ACCESS_KEY", "test");
        command
    }
}

/// pgBackRest with a repository in a directory, and a stopped server for it to look at.
pub(crate) struct PgBackRest {
    cluster: Cluster,
    system_id: SystemId,
    scratch: Scratch,
}

impl PgBackRest {
    /// `None` if something is missing.
    pub(crate) fn find() -> Option<PgBackRest> {
        Command::new("pgbackrest").arg("version").output().ok().filter(|output| output.status.success())?;
        let server: Server = install::find(15)?;
        let mut cluster = Cluster::builder(&server).start();
        let system_id = cluster.sql("select system_identifier from pg_control_system()");
        let system_id = SystemId(system_id.parse().expect("a number"));
        cluster.stop();
        let scratch = Scratch::new("pgbackrest");
        for name in ["repo", "log", "lock", "spool"] {
            scratch.dir(name);
        }
        Some(PgBackRest { cluster, system_id, scratch })
    }

    pub(crate) fn system_id(&self) -> SystemId {
        self.system_id
    }

    fn command(&self) -> Command {
        let mut command = Command::new("pgbackrest");
        let option = |name: &str, path: &Path| format!("--{name}={}", path.display());
        command.args(["--config=/dev/null", "--stanza=bench", "--log-level-file=off"]);
        command.arg(option("pg1-path", &self.cluster.data_dir()));
        for (name, dir) in [("repo1-path", "repo"), ("log-path", "log"), ("lock-path", "lock")] {
            command.arg(option(name, &self.scratch.join(dir)));
        }
        command
    }

    /// Archives all of it, uncompressed like everywhere else.
    pub(crate) fn fill(&self, wal: &Wal) {
        let mut create = self.command();
        create.args(["--no-online", "stanza-create"]);
        run(create);
        for path in wal.paths() {
            let mut push = self.command();
            push.args(["--compress-type=none", "archive-push"]).arg(path);
            run(push);
        }
    }

    /// Options for fetching ahead.
    pub(crate) fn asynchronous(&self) -> [String; 3] {
        let spool = format!("--spool-path={}", self.scratch.join("spool").display());
        [spool, "--archive-async".to_owned(), "--process-max=4".to_owned()]
    }

    pub(crate) fn archive_get(&self, options: &[&str], name: &str, to: &Path) -> Command {
        let mut command = self.command();
        command.args(options).arg("archive-get").arg(name).arg(to);
        command
    }
}
