//! Hot standbys.

use std::path::PathBuf;

use crate::cluster::Cluster;

/// How to make a hot standby.
#[derive(Debug)]
pub struct StandbyBuilder<'a> {
    primary: &'a Cluster,
    name: String,
    upstream: String,
    slot: Option<String>,
    conf: Vec<String>,
    backup: Option<PathBuf>,
}

impl<'a> StandbyBuilder<'a> {
    pub(crate) fn new(primary: &'a Cluster) -> Self {
        let (name, upstream) = ("standby".to_owned(), primary.conninfo());
        StandbyBuilder { primary, name, upstream, slot: None, conf: Vec::new(), backup: None }
    }

    /// Name of its directory and its `application_name`; `standby` unless set.
    pub fn name(mut self, name: &str) -> Self {
        self.name = name.to_owned();
        self
    }

    /// Whom to stream from; the primary unless set.
    pub fn follow(mut self, conninfo: &str) -> Self {
        self.upstream = conninfo.to_owned();
        self
    }

    /// Its `primary_slot_name`, a slot that exists on the server it follows.
    pub fn slot(mut self, name: &str) -> Self {
        self.slot = Some(name.to_owned());
        self
    }

    /// One more line for `postgresql.conf`.
    pub fn conf(mut self, line: &str) -> Self {
        self.conf.push(line.to_owned());
        self
    }

    /// Start from this backup, taken earlier with [`Cluster::base_backup_to`] and used up, instead of a new one.
    pub fn from_backup(mut self, dir: PathBuf) -> Self {
        self.backup = Some(dir);
        self
    }

    /// Makes the standby, without any WAL of its own, and starts it. Returns when it accepts connections, which
    /// is when it has streamed enough to be consistent.
    #[track_caller]
    pub fn start(self) -> Cluster {
        let mut standby = self.prepare();
        standby.start();
        standby
    }

    /// The same without waiting.
    #[track_caller]
    pub fn spawn(self) -> Cluster {
        let mut standby = self.prepare();
        standby.spawn();
        standby
    }

    fn prepare(self) -> Cluster {
        let standby = Cluster::prepare(self.primary.server(), &self.name);
        match &self.backup {
            Some(dir) => {
                std::fs::rename(dir, standby.data_dir()).expect("both are in the temporary directory")
            }
            None => self.primary.base_backup_to(&standby.data_dir()),
        }
        standby.become_standby(&self.name, &self.upstream, self.slot.as_deref());
        standby.append_conf(&self.conf.join("\n"));
        standby
    }
}
