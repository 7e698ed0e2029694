//! The commands besides running a relay, and the places they look for WAL in.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use clap_complete::Shell;
use url::Url;
use walrelay_proto::TimelineId;
use walrelay_proto::ack::SynchronousStandbys;

use super::cli::Settings;
use super::{ConfigError, archive_targets, default_data_dir, read_file, units, value};
use crate::archive::restore::{OnTimeout, PATIENCE, REQUIRE_TIMEOUT, Required, Strict};
use crate::archive::{Place, Target};
use crate::conninfo::{ConnInfo, Environment, HostAddress, HostSpec, TargetSessionAttrs};
use crate::downstream::ListenAddr;
use crate::redact::{holds_secret, redact};

/// What to do instead of running a relay.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Fetch a WAL file, for PostgreSQL's restore_command: restore_command = 'walrelay restore --config FILE %f %p'
    Restore(RestoreArgs),
    /// Check what the archive holds, or list it
    #[command(subcommand)]
    Archive(ArchiveCommand),
    /// Check a data directory, a directory of WAL or an archive, record by record; exit code 1 if anything is wrong
    Verify(VerifyPlaceArgs),
    /// Remove archived WAL before a file, as pg_archivecleanup does
    ArchiveCleanup(CleanupArgs),
    /// Show a running relay: how far everybody is, and what somebody should look at; exit code 1 if there is anything
    Status(StatusArgs),
    /// List the promotions that a relay has followed, and whether each kept everything that was acknowledged; exit code
    /// 1 if one has not, or may not have
    Failovers(FailoversArgs),
    /// Who may be promoted, and what would be lost by it now; exit code 0 if that is nothing, 1 if it is something, 2 if it
    /// cannot be known
    Promotable(PromotableArgs),
    /// WAL that is held and does not lead to the timeline that is followed
    #[command(subcommand)]
    Branch(BranchCommand),
    /// Have relays leave their upstream and follow only a newer timeline, so that no commit is confirmed behind a
    /// promotion; exit code 1 unless enough of them are fenced
    Fence(FenceArgs),
    /// Have relays follow their upstream again; exit code 1 unless all of them do
    Unfence(UnfenceArgs),
    /// Find what is wrong, or soon will be, with the upstream, the relay, this machine and consumers, and say what to type; exit
    /// code 1 if there is anything
    Doctor(Box<DoctorArgs>),
    /// Check the configuration and all files that it names, as a start and a reload do; exit code 2 if anything is wrong
    CheckConfig(Box<CheckConfigArgs>),
    /// Write a first configuration, after asking for what no flag says, and print the SQL that the primary has to be told
    Init(Box<InitArgs>),
    /// Write the completions of a shell to standard output
    Completions(CompletionsArgs),
    /// Write the manual pages, a file each
    Man(ManArgs),
}

/// Relays that are asked side by side.
#[derive(Args, Debug)]
pub struct RelaysArgs {
    /// How to connect to a relay, with one host; repeatable. The role must be one of its --admin-role, or a superuser
    #[arg(long, value_name = "CONNINFO", required = true, num_args = 1..)]
    pub relay: Vec<String>,

    /// How long a relay may take to answer, e.g. 5s
    #[arg(long, value_name = "TIME", default_value = "15s")]
    pub timeout: String,

    /// Write the answers as JSON
    #[arg(long)]
    pub json: bool,
}

impl RelaysArgs {
    /// The relays.
    pub fn relays(&self, environment: &Environment) -> Result<Vec<ConnInfo>, ConfigError> {
        servers("relay", &self.relay, environment)
    }

    /// How long each may take.
    pub fn limit(&self) -> Result<Duration, ConfigError> {
        units::time(&self.timeout).map_err(|error| value("timeout", &error))
    }
}

/// `walrelay fence`.
#[derive(Args, Debug)]
pub struct FenceArgs {
    /// Whom to ask.
    #[command(flatten)]
    pub relays: RelaysArgs,

    /// Number of the fence: the highest wins [default: that of the fence in force, else the next one of each relay]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=i64::MAX as u64))]
    pub epoch: Option<u64>,

    /// Why, for the relays' logs
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,

    /// The primary's synchronous_standby_names: as many are enough as leave too few to confirm a commit [default: all]
    #[arg(long, value_name = "NAMES")]
    pub sync_names: Option<String>,

    /// Fence nobody, and tell how things are
    #[arg(long, conflicts_with_all = ["epoch", "reason"])]
    pub status: bool,
}

impl FenceArgs {
    /// Whom the primary waits for; `None` where all relays are to be fenced.
    pub fn standbys(&self) -> Result<Option<SynchronousStandbys>, ConfigError> {
        let parse = |text: &String| text.parse().map_err(|error| value("sync-names", &error));
        self.sync_names.as_ref().map(parse).transpose()
    }
}

/// `walrelay unfence`.
#[derive(Args, Debug)]
pub struct UnfenceArgs {
    /// Whom to ask.
    #[command(flatten)]
    pub relays: RelaysArgs,

    /// Lift the fence only if it is the one of this number
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=i64::MAX as u64))]
    pub epoch: Option<u64>,
}

/// `walrelay branch ...`.
#[derive(Subcommand, Debug)]
pub enum BranchCommand {
    /// Show each timeline of which more is held than is on the way: from where to where, with how many commits
    List(FailoversArgs),
    /// Copy such WAL into a directory, for pg_waldump, or for the restore_command of pg_rewind
    Export(ExportArgs),
}

/// `walrelay branch export`.
#[derive(Args, Debug)]
pub struct ExportArgs {
    /// Where it is held.
    #[command(flatten)]
    pub held: FailoversArgs,

    /// Its timeline
    #[arg(value_name = "TIMELINE", value_parser = timeline)]
    pub tli: TimelineId,

    /// The directory to copy it to; made if it is not there. Nothing is overwritten
    #[arg(long, value_name = "DIR")]
    pub to: PathBuf,
}

fn timeline(text: &str) -> Result<TimelineId, String> {
    let number = text.parse().ok().and_then(TimelineId::new);
    number.ok_or_else(|| "expected the number of a timeline".to_owned())
}

/// `walrelay check-config`: what a relay would be started with.
#[derive(Args, Debug)]
pub struct CheckConfigArgs {
    /// TOML file with the same names as these flags; a flag or an environment variable wins over it
    #[arg(long, env = "WALRELAY_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    #[command(flatten)]
    pub(super) settings: Settings,
}

/// `walrelay doctor`.
#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// What the relay runs with, or would.
    #[command(flatten)]
    pub check: CheckConfigArgs,

    /// How to connect to a standby below the relay, as for SQL; repeatable
    #[arg(long, value_name = "CONNINFO", num_args = 1..)]
    pub consumer: Vec<String>,

    /// How to connect to the relay, if it runs [default: where it listens]
    #[arg(long, value_name = "CONNINFO")]
    pub relay: Option<String>,

    /// Run each consumer's restore_command here, as this user, for a segment that there is and for one that there is not
    #[arg(long)]
    pub try_restore: bool,

    /// Show what is well, too
    #[arg(long, short)]
    pub verbose: bool,

    /// Write what was found as JSON
    #[arg(long)]
    pub json: bool,
}

impl DoctorArgs {
    /// The standbys.
    pub fn consumers(&self, environment: &Environment) -> Result<Vec<ConnInfo>, ConfigError> {
        let parse =
            |text: &String| ConnInfo::parse(text, environment).map_err(|error| value("consumer", &error));
        self.consumer.iter().map(parse).collect()
    }

    /// The relay: over its Unix socket where it listens on one.
    pub fn relay(&self, config: &super::Config, environment: &Environment) -> Result<ConnInfo, ConfigError> {
        let text = match &self.relay {
            Some(text) => text.clone(),
            None => reach(&config.listen),
        };
        ConnInfo::parse(&text, environment).map_err(|error| value("relay", &error))
    }
}

/// `walrelay init`.
#[derive(Args, Debug, Default, Clone)]
pub struct InitArgs {
    /// Server to receive WAL from: host, host:port, a libpq connection string or a postgresql:// URI, without a password
    #[arg(long, env = "WALRELAY_UPSTREAM", value_name = "CONNINFO", hide_env_values = true)]
    pub upstream: Option<String>,

    /// The file to write
    #[arg(long, env = "WALRELAY_CONFIG", value_name = "FILE", default_value = "/etc/walrelay/walrelay.toml")]
    pub config: PathBuf,

    /// Directory that keeps the WAL [default: as the relay's]
    #[arg(long, short = 'D', env = "WALRELAY_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// Where to serve consumers: ADDR:PORT, or a directory for a Unix socket; repeatable [default: 127.0.0.1:5432]
    #[arg(long, env = "WALRELAY_LISTEN", value_name = "ADDR:PORT", value_delimiter = ',')]
    pub listen: Vec<String>,

    /// Where to serve a page, metrics and health in HTTP: a port of the loopback interface, or ADDR:PORT [default: nowhere]
    #[arg(long, env = "WALRELAY_HTTP_LISTEN", value_name = "ADDR:PORT")]
    pub http_listen: Option<String>,

    /// Replication slot on the upstream [default: walrelay]
    #[arg(long, env = "WALRELAY_SLOT", value_name = "NAME")]
    pub slot: Option<String>,

    /// Where to archive WAL; repeatable
    #[arg(long, env = "WALRELAY_ARCHIVE", value_name = "URL", value_delimiter = ' ', hide_env_values = true)]
    pub archive: Vec<String>,

    /// Role of a consumer: SQL that makes it, --auth-query, and an hba.conf beside the file that lets it in from this machine's
    /// networks; repeatable
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub consumer_role: Vec<String>,

    /// Have roles log in with the passwords that they have on the upstream
    #[arg(long)]
    pub auth_query: bool,

    /// Replace the files if they exist
    #[arg(long)]
    pub force: bool,

    /// Do not ask the upstream and this machine whether all is well (walrelay doctor)
    #[arg(long)]
    pub no_check: bool,

    /// Ask nothing: what no flag says is the default
    #[arg(long, short)]
    pub yes: bool,
}

impl InitArgs {
    /// The server, as typed and as understood.
    pub fn upstream(&self, environment: &Environment) -> Result<(String, ConnInfo), ConfigError> {
        let text = self.upstream.as_deref().map(str::trim).filter(|text| !text.is_empty());
        let text = text.ok_or(ConfigError::NoUpstream)?;
        if holds_secret(text) {
            let reason = "it holds a password, which does not belong into a file that others may read; leave it out, and put it \
                          into a password file (~/.pgpass) as host:port:*:role:password";
            return Err(value("upstream", &reason));
        }
        let info = ConnInfo::parse(text, environment).map_err(|error| value("upstream", &error))?;
        Ok((text.to_owned(), info))
    }

    /// Where WAL is kept if nobody says.
    pub fn default_data_dir(&self) -> Result<PathBuf, ConfigError> {
        default_data_dir()
    }

    /// A relay with nothing but this file.
    pub fn to_check(&self, file: &Path) -> CheckConfigArgs {
        CheckConfigArgs { config: Some(file.to_owned()), settings: Settings::default() }
    }

    /// The same for `walrelay doctor`.
    pub fn to_diagnose(&self, file: &Path) -> DoctorArgs {
        DoctorArgs {
            check: self.to_check(file),
            consumer: Vec::new(),
            relay: None,
            try_restore: false,
            verbose: false,
            json: false,
        }
    }
}

/// `walrelay completions`.
#[derive(Args, Debug)]
pub struct CompletionsArgs {
    /// The shell
    pub shell: Shell,
}

/// `walrelay man`.
#[derive(Args, Debug)]
pub struct ManArgs {
    /// Directory to write them to, which must exist
    pub dir: PathBuf,
}

/// `walrelay archive ...`.
#[derive(Subcommand, Debug)]
pub enum ArchiveCommand {
    /// Check every file, every record and the chain of segments over all timelines; exit code 1 if anything is wrong
    Verify(VerifyArgs),
    /// Show what can be restored: from where to where, on which timelines, with commit times
    List(ListArgs),
}

/// Where to look for WAL.
#[derive(Args, Debug, Default, Clone)]
pub struct PlacesArgs {
    /// Where to look, in this order: URL of an archive, name of one in the --config file, connection string of a
    /// running relay (of several with several hosts), or a relay's data directory; repeatable [default: all that the
    /// --config file names]
    #[arg(long, value_name = "PLACE")]
    pub from: Vec<String>,

    /// The relay's configuration file: its data directory and its archives
    #[arg(long, env = "WALRELAY_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// A relay's data directory to look in first; it may be running
    #[arg(long, short = 'D', env = "WALRELAY_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
}

/// `walrelay restore`.
#[derive(Args, Debug)]
pub struct RestoreArgs {
    /// Where from.
    #[command(flatten)]
    pub places: PlacesArgs,

    /// Segments to fetch ahead of the one asked for; 0 for none
    #[arg(long, env = "WALRELAY_PREFETCH", value_name = "N", default_value_t = 0)]
    pub prefetch: usize,

    /// Directory for segments fetched ahead, for one cluster only [default: walrelay-spool beside the target]
    #[arg(long, value_name = "DIR")]
    pub spool_dir: Option<PathBuf>,

    /// How long a recovery waits for a place that cannot be reached before it stops, e.g. 10min; 0 for ever
    #[arg(long, env = "WALRELAY_RESTORE_TIMEOUT", value_name = "TIME", default_value = "0")]
    pub timeout: String,

    /// Stop recovery when a place cannot be reached for ten seconds, instead of waiting for it
    #[arg(long)]
    pub strict: bool,

    /// Do not tell a standby that there is no such file before this place has answered; one of the places to look in, by the
    /// same text, or by the name of an archive or the host of a relay; repeatable
    #[arg(long, value_name = "PLACE")]
    pub require: Vec<String>,

    /// Do not tell a standby that there is no such file before so many of the relays to look in have answered
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(1..))]
    pub require_relays: Option<u8>,

    /// How long a standby waits for those that are required; 0 for ever
    #[arg(long, value_name = "TIME", default_value = REQUIRE_TIMEOUT)]
    pub require_timeout: String,

    /// What then: go on without their answers, or end the server
    #[arg(long, value_enum, default_value_t = OnTimeout::Continue)]
    pub on_timeout: OnTimeout,

    /// Give all there is of this timeline, also what was written on it behind the place where it was left: for a recovery along
    /// it (recovery_target_timeline); pg_rewind -c gets that without being told
    #[arg(long, value_name = "TIMELINE", value_parser = timeline)]
    pub branch: Option<TimelineId>,

    /// Fetch ahead until nobody asks any more.
    #[arg(long, hide = true)]
    pub spool_worker: bool,

    /// Name of the WAL file (%f)
    pub file: String,

    /// Path to put it at (%p)
    pub target: PathBuf,
}

impl RestoreArgs {
    /// How long a recovery waits for a place that cannot be reached; `None` for ever.
    pub fn wait(&self) -> Result<Option<Duration>, ConfigError> {
        match self.strict {
            true => Ok(Some(PATIENCE)),
            false => units::timeout(&self.timeout).map_err(|error| value("timeout", &error)),
        }
    }

    /// Whether a server is to end rather than to go on without those that are required.
    pub fn stops_rather(&self) -> bool {
        (!self.require.is_empty() || self.require_relays.is_some()) && self.on_timeout == OnTimeout::Stop
    }

    /// Whom of these places a standby waits for.
    pub fn required(
        &self,
        origins: &[Origin],
        environment: &Environment,
    ) -> Result<Option<Strict>, ConfigError> {
        let is_relay = |number: usize| origins[number].is_relay();
        // One that is given twice is one, and its answer is one.
        let is_again = |number: usize| origins[..number].iter().any(|it| it.is_the_same(&origins[number]));
        let (again, relays): (Vec<usize>, Vec<usize>) =
            (0..origins.len()).filter(|number| is_relay(*number)).partition(|number| is_again(*number));
        let of_relays = usize::from(self.require_relays.unwrap_or(0));
        if of_relays > relays.len() {
            let twice = if again.is_empty() { "" } else { "; one that is given more than once counts once" };
            let text = format!("there are {} relays among the places to look in{twice}", relays.len());
            return Err(value("require-relays", &text));
        }
        let targets = self.places.config.as_deref().map(archive_targets).transpose()?.unwrap_or_default();
        let mut named = Vec::new();
        for text in &self.require {
            let is_meant = |origin: &Origin| origin.is_called(text, &targets, environment);
            let found = origins.iter().enumerate().filter(|(_, origin)| is_meant(origin));
            let before = named.len();
            named.extend(found.map(|(number, _)| number));
            if named.len() == before {
                let text = format!("\"{}\" is none of the places to look in", redact(text));
                return Err(value("require", &text));
            }
        }
        let timeout =
            units::timeout(&self.require_timeout).map_err(|error| value("require-timeout", &error))?;
        let (on_timeout, required) = (self.on_timeout, Required { named, relays, of_relays });
        let is_strict = !required.named.is_empty() || of_relays > 0;
        Ok(is_strict.then_some(Strict { required, timeout, on_timeout }))
    }
}

/// `walrelay archive verify`.
#[derive(Args, Debug)]
pub struct VerifyArgs {
    /// Where from.
    #[command(flatten)]
    pub places: PlacesArgs,

    /// Fill holes and replace what is damaged from the other places; what is replaced is kept aside
    #[arg(long)]
    pub heal: bool,

    /// Write the findings as JSON
    #[arg(long)]
    pub json: bool,
}

/// `walrelay verify`.
#[derive(Args, Debug)]
pub struct VerifyPlaceArgs {
    /// A relay's data directory, a PostgreSQL data directory, a directory of WAL segments, the URL of an archive, or
    /// the name of one in the --config file. A relay or server may be running on it
    #[arg(value_name = "DIR|URL")]
    pub place: String,

    /// Fetch what is missing or damaged from here, an archive, a data directory or a running relay, in this order;
    /// repeatable. What is replaced is kept. Nothing may be running on the directory
    #[arg(long, value_name = "PLACE")]
    pub repair_from: Vec<String>,

    /// The relay's configuration file: its archives
    #[arg(long, env = "WALRELAY_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Write the findings as JSON
    #[arg(long)]
    pub json: bool,
}

impl VerifyPlaceArgs {
    /// What to verify. A name without a slash that is no archive's is a directory's.
    pub fn origin(&self, environment: &Environment) -> Result<Origin, ConfigError> {
        let targets = self.config.as_deref().map(archive_targets).transpose()?.unwrap_or_default();
        let is_target = self.place.contains("://") || targets.iter().any(|target| target.name == self.place);
        if !is_target {
            return Ok(Origin::Directory(PathBuf::from(&self.place)));
        }
        let found = origins("DIR|URL", &self.place, &targets, environment)?;
        let is_server = |origin: &Origin| matches!(origin, Origin::Server(_));
        found
            .into_iter()
            .find(|origin| !is_server(origin))
            .ok_or_else(|| value("DIR|URL", &"a running server cannot be verified; give its data directory"))
    }

    /// A directory that turned out to be an archive.
    pub fn archive_in(dir: &Path) -> Result<Target, ConfigError> {
        let path = std::fs::canonicalize(dir).map_err(|error| value("DIR", &error))?;
        let url = Url::from_file_path(&path).map_err(|()| value("DIR", &"not a path"))?;
        Target::from_url(url.as_str()).map_err(|error| value("DIR", &error))
    }

    /// Where to fetch from.
    pub fn sources(&self, environment: &Environment) -> Result<Vec<Origin>, ConfigError> {
        let targets = self.config.as_deref().map(archive_targets).transpose()?.unwrap_or_default();
        let mut sources = Vec::new();
        for text in &self.repair_from {
            sources.extend(origins("repair-from", text, &targets, environment)?);
        }
        Ok(sources)
    }
}

/// `walrelay status`.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// How to connect to the relay [default: where the --config file has it listen, else as libpq would]
    #[arg(value_name = "CONNINFO")]
    pub conninfo: Option<String>,

    /// The relay's configuration file
    #[arg(long, env = "WALRELAY_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Write all there is as JSON
    #[arg(long)]
    pub json: bool,

    /// Show it again, every two seconds unless told otherwise
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "2")]
    pub watch: Option<f64>,
}

impl StatusArgs {
    /// The relay to ask: over its Unix socket where it listens on one.
    pub fn relay(&self, environment: &Environment) -> Result<ConnInfo, ConfigError> {
        let listens = || self.config.as_deref().map(read_file).transpose();
        let text = match &self.conninfo {
            Some(text) => text.clone(),
            None => match listens()? {
                Some(settings) => reach(&super::listen(&settings.listen)?),
                None => String::new(),
            },
        };
        ConnInfo::parse(&text, environment).map_err(|error| value("CONNINFO", &error))
    }
}

/// `walrelay promotable`.
#[derive(Args, Debug)]
pub struct PromotableArgs {
    /// How to connect to a relay, as for replication, with one host; all that may have something; repeatable
    #[arg(long, value_name = "CONNINFO", required = true, num_args = 1..)]
    pub relay: Vec<String>,

    /// How to connect to a server that may be promoted, as for replication, with one host; repeatable
    #[arg(long, value_name = "CONNINFO", required = true, num_args = 1..)]
    pub candidate: Vec<String>,

    /// Write all there is as JSON
    #[arg(long)]
    pub json: bool,

    /// Show it again, every two seconds unless told otherwise
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, require_equals = true, default_missing_value = "2")]
    pub watch: Option<f64>,
}

impl PromotableArgs {
    /// The relays to ask.
    pub fn relays(&self, environment: &Environment) -> Result<Vec<ConnInfo>, ConfigError> {
        servers("relay", &self.relay, environment)
    }

    /// The servers to weigh.
    pub fn candidates(&self, environment: &Environment) -> Result<Vec<ConnInfo>, ConfigError> {
        servers("candidate", &self.candidate, environment)
    }
}

/// Each of these servers. One is asked for each text: with several hosts that would be the first that answers, and nobody would
/// know of the others.
fn servers(
    name: &'static str,
    texts: &[String],
    environment: &Environment,
) -> Result<Vec<ConnInfo>, ConfigError> {
    let parse = |text: &String| {
        let info = ConnInfo::parse(text, environment).map_err(|error| value(name, &error))?;
        match info.hosts.len() {
            1 => Ok(info),
            count => {
                let each = info.hosts.iter().map(|host| format!("--{name} '{} ...'", one_host(host)));
                let each = each.collect::<Vec<_>>().join(" ");
                let reason =
                    format!("it names {count} servers, of which only one would be asked; use {each}");
                Err(value(name, &reason))
            }
        }
    };
    texts.iter().map(parse).collect()
}

/// A connection string's part that leads to this host.
fn one_host(host: &HostSpec) -> String {
    let name = match (&host.name, &host.address) {
        (Some(name), _) | (None, HostAddress::Name(name)) => name.clone(),
        (None, HostAddress::Ip(address)) => address.to_string(),
        (None, HostAddress::UnixDirectory(directory)) => directory.display().to_string(),
    };
    format!("host={name} port={}", host.port)
}

/// The servers that are asked where this one is a place to look in: each of its hosts, unless it says which kind of server is
/// meant, which is one of them then.
pub fn each_asked(info: &ConnInfo) -> Vec<ConnInfo> {
    match info.target_session_attrs {
        TargetSessionAttrs::Any => {
            let alone = |host: &HostSpec| ConnInfo { hosts: vec![host.clone()], ..info.clone() };
            info.hosts.iter().map(alone).collect()
        }
        _ => vec![info.clone()],
    }
}

/// A connection string for a relay that listens there.
fn reach(addresses: &[ListenAddr]) -> String {
    let tcp = addresses.iter().find_map(|address| match address {
        ListenAddr::Tcp { host, port } => Some((host.as_str(), *port)),
        ListenAddr::Unix { .. } => None,
    });
    let unix = addresses.iter().find_map(|address| match address {
        ListenAddr::Unix { dir, port } => Some((dir, port.or(tcp.map(|(_, port)| port)).unwrap_or(5432))),
        ListenAddr::Tcp { .. } => None,
    });
    let (host, port) = match (unix, tcp) {
        (Some((dir, port)), _) => (dir.display().to_string(), port),
        (None, Some(("*" | "0.0.0.0" | "::", port))) => ("127.0.0.1".to_owned(), port),
        (None, Some((host, port))) => (host.to_owned(), port),
        (None, None) => ("127.0.0.1".to_owned(), 5432),
    };
    format!("host='{}' port={port}", host.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// `walrelay archive list`.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// Where from.
    #[command(flatten)]
    pub places: PlacesArgs,

    /// Write JSON
    #[arg(long)]
    pub json: bool,
}

/// `walrelay failovers` and `branch list`.
#[derive(Args, Debug)]
pub struct FailoversArgs {
    /// The relay's data directory; it may be running [default: that of the --config file, else as for the relay]
    #[arg(long, short = 'D', env = "WALRELAY_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,

    /// The relay's configuration file
    #[arg(long, env = "WALRELAY_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Write JSON
    #[arg(long)]
    pub json: bool,
}

impl FailoversArgs {
    /// Whose they are.
    pub fn data_dir(&self) -> Result<PathBuf, ConfigError> {
        if let Some(dir) = &self.data_dir {
            return Ok(dir.clone());
        }
        let file = self.config.as_deref().map(read_file).transpose()?.unwrap_or_default();
        file.data_dir.map_or_else(default_data_dir, Ok)
    }
}

/// `walrelay archive-cleanup`.
#[derive(Args, Debug)]
pub struct CleanupArgs {
    /// Where from.
    #[command(flatten)]
    pub places: PlacesArgs,

    /// Say what would be removed, and remove nothing
    #[arg(long, short = 'n')]
    pub dry_run: bool,

    /// Remove the labels of older base backups too; else the WAL that they need is kept
    #[arg(long, short = 'b')]
    pub clean_backup_history: bool,

    /// Oldest WAL file to keep: a segment, a .partial segment or a .backup label (%r in archive_cleanup_command)
    pub oldest: String,
}

/// A place to look for WAL in.
#[derive(Clone, Debug)]
pub enum Origin {
    /// A relay's data directory.
    Directory(PathBuf),
    /// The data directory of the configuration file's relay, which may be on another machine.
    OwnDirectory(PathBuf),
    /// A running relay, or another server.
    Server(Box<ConnInfo>),
    /// An archive.
    Target(Box<Target>),
}

impl Origin {
    /// Whether it is a relay, running or not, and not an archive.
    fn is_relay(&self) -> bool {
        !matches!(self, Origin::Target(_))
    }

    /// Whether both are one place for certain. Two names of one host are not known to be.
    fn is_the_same(&self, other: &Origin) -> bool {
        match (self, other) {
            (
                Origin::Directory(one) | Origin::OwnDirectory(one),
                Origin::Directory(other) | Origin::OwnDirectory(other),
            ) => one == other,
            (Origin::Server(one), Origin::Server(other)) => {
                one.hosts.iter().any(|host| other.hosts.contains(host))
            }
            (Origin::Target(one), Origin::Target(other)) => one.name == other.name,
            _ => false,
        }
    }

    /// Whether this is what somebody means who names a place like that.
    fn is_called(&self, text: &str, known: &[Target], environment: &Environment) -> bool {
        let host = |info: &ConnInfo| info.hosts.iter().any(|host| host.name.as_deref() == Some(text));
        let same = |other: &Origin| match (self, other) {
            (Origin::Directory(one) | Origin::OwnDirectory(one), Origin::Directory(other)) => one == other,
            (Origin::Server(one), Origin::Server(other)) => one.hosts == other.hosts,
            (Origin::Target(one), Origin::Target(other)) => one.name == other.name,
            _ => false,
        };
        match self {
            Origin::Server(info) if host(info) => true,
            _ => origins("require", text, known, environment).is_ok_and(|others| others.iter().any(same)),
        }
    }
}

impl PlacesArgs {
    /// The places in the order in which to look: the data directory if one is given, then those typed, or those of
    /// the configuration file. Targets that are commands cannot be read and are left out. Looks into none of them: one
    /// may hang.
    pub fn origins(&self, environment: &Environment) -> Result<Vec<Origin>, ConfigError> {
        let targets = self.config.as_deref().map(archive_targets).transpose()?.unwrap_or_default();
        let file = self.config.as_deref().map(read_file).transpose()?.unwrap_or_default();
        let mut origins: Vec<_> = self.data_dir.iter().cloned().map(Origin::Directory).collect();
        for text in &self.from {
            origins.extend(self::origins("from", text, &targets, environment)?);
        }
        if self.from.is_empty() {
            let readable = targets.into_iter().filter(|target| matches!(target.place, Place::Objects(_)));
            let readable: Vec<_> = readable.map(|target| Origin::Target(Box::new(target))).collect();
            let dir = file.data_dir.filter(|_| self.data_dir.is_none());
            // Where there is nothing else to ask, it is meant to be here.
            let may_be_away = !readable.is_empty();
            let origin = if may_be_away { Origin::OwnDirectory } else { Origin::Directory };
            origins.extend(dir.map(origin));
            origins.extend(readable);
        }
        match origins.is_empty() {
            true => Err(value("from", &"no place given; use --from PLACE, --data-dir DIR or --config FILE")),
            false => Ok(origins),
        }
    }
}

/// What a text stands for: of servers each host is a place of its own, since each may be the only one that has something.
/// `name` is the flag that it was given by.
fn origins(
    name: &'static str,
    text: &str,
    known: &[Target],
    environment: &Environment,
) -> Result<Vec<Origin>, ConfigError> {
    let is_uri = ["postgresql://", "postgres://"].iter().any(|scheme| text.starts_with(scheme));
    if is_uri || (text.contains('=') && !text.contains("://")) {
        let info = ConnInfo::parse(text, environment).map_err(|error| value(name, &error))?;
        return Ok(each_asked(&info).into_iter().map(|info| Origin::Server(Box::new(info))).collect());
    }
    origin(name, text, known).map(|origin| vec![origin])
}

/// One that is no server.
fn origin(name: &'static str, text: &str, known: &[Target]) -> Result<Origin, ConfigError> {
    if let Some(target) = known.iter().find(|target| target.name == text) {
        return Ok(Origin::Target(Box::new(target.clone())));
    }
    if text.contains("://") {
        let target = known.iter().find(|target| has_url(target, text)).cloned();
        let target = target.map_or_else(|| Target::from_url(text), Ok);
        return target.map(Box::new).map(Origin::Target).map_err(|error| value(name, &error));
    }
    if text.contains('/') {
        return Ok(Origin::Directory(text.into()));
    }
    let expected =
        "expected a URL, the name of an archive in the --config file, a connection string or a directory";
    Err(value(name, &format!("\"{}\" is no place to look in: {expected}", redact(text))))
}

/// The configuration knows more of an archive than its URL.
fn has_url(target: &Target, text: &str) -> bool {
    matches!(&target.place, Place::Objects(place) if place.url.as_str().trim_end_matches('/') == text.trim_end_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origins(from: &[&str], config: Option<&str>) -> Result<Vec<Origin>, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("walrelay.toml");
        std::fs::write(&path, config.unwrap_or_default()).unwrap();
        let places = PlacesArgs {
            from: from.iter().map(|text| text.to_string()).collect(),
            config: config.map(|_| path),
            data_dir: None,
        };
        places.origins(&Environment::of_user("tester"))
    }

    fn kinds(origins: &[Origin]) -> String {
        let kind = |origin: &Origin| match origin {
            Origin::Directory(dir) => format!("directory {}", dir.display()),
            Origin::OwnDirectory(dir) => format!("own directory {}", dir.display()),
            Origin::Server(info) => format!("server {}", info.hosts[0]),
            Origin::Target(target) => format!("target {}", target.name),
        };
        origins.iter().map(kind).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn a_relay_is_asked_over_its_socket_where_it_has_one() {
        let check = |listen: &[&str], expected: &str| {
            let listen: Vec<_> = listen.iter().map(|text| text.parse().unwrap()).collect();
            assert_eq!(reach(&listen), expected);
        };
        check(&[], "host='127.0.0.1' port=5432");
        check(&["*:5433"], "host='127.0.0.1' port=5433");
        check(&["10.0.0.1:5433", "/run/walrelay"], "host='/run/walrelay' port=5433");
        check(&["/run/it's:5434"], "host='/run/it\\'s' port=5434");
        let args = StatusArgs { conninfo: None, config: None, json: false, watch: None };
        assert!(args.relay(&Environment::of_user("tester")).is_ok());
    }

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        restore: RestoreArgs,
    }

    #[test]
    fn who_is_required_is_one_of_the_places() {
        let environment = Environment::of_user("tester");
        let required = |words: &[&str]| {
            let places = ["restore", "--from", "file:///a", "--from", "host=r1 user=u", "--from", "/r2/data"];
            let file = ["000000010000000000000003", "pg_wal/RECOVERYXLOG"];
            let line = <Line as clap::Parser>::try_parse_from([&places, words, &file].concat()).unwrap();
            let origins = line.restore.places.origins(&environment)?;
            line.restore.required(&origins, &environment)
        };
        assert_eq!(required(&[]).unwrap(), None);
        assert_eq!(required(&["--require-timeout", "5s", "--on-timeout", "stop"]).unwrap(), None);
        for (words, named, of_relays) in [
            (&["--require", "r1"][..], &[1][..], 0),
            (&["--require", "host=r1 user=u"], &[1], 0),
            (&["--require", "file:///a", "--require", "/r2/data"], &[0, 2], 0),
            (&["--require-relays", "2"], &[], 2),
        ] {
            let strict = required(words).unwrap().unwrap();
            let expected = Required { named: named.to_vec(), relays: vec![1, 2], of_relays };
            assert_eq!(strict.required, expected, "{words:?}");
            assert_eq!(
                (strict.timeout, strict.on_timeout),
                (Some(Duration::from_secs(30)), OnTimeout::Continue)
            );
        }
        // Given twice it is one relay, and one answer.
        let twice = ["--from", "host=r1 user=v"];
        let strict = required(&[&twice[..], &["--require-relays", "2"]].concat()).unwrap().unwrap();
        assert_eq!(strict.required.relays, [1, 2]);
        let error = required(&[&twice[..], &["--require-relays", "3"]].concat()).unwrap_err().to_string();
        assert!(error.contains("there are 2 relays") && error.contains("counts once"), "{error}");
        for (words, part) in [
            (&["--require", "r3"][..], "--require: \"r3\" is none of the places"),
            (&["--require-relays", "3"], "there are 2 relays"),
            (&["--require", "r1", "--require-timeout", "1y"], "--require-timeout"),
        ] {
            let error = required(words).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
        assert_eq!(required(&["--require", "r1", "--require-timeout", "0"]).unwrap().unwrap().timeout, None);
    }

    #[test]
    fn each_host_is_a_place_of_its_own() {
        let environment = Environment::of_user("tester");
        let required = |from: &str, words: &[&str]| {
            let words =
                [&["restore", "--from", from][..], words, &["000000010000000000000003", "p"]].concat();
            let line = <Line as clap::Parser>::try_parse_from(words).unwrap();
            let origins = line.restore.places.origins(&environment)?;
            Ok((origins.len(), line.restore.required(&origins, &environment)?.map(|strict| strict.required)))
        };
        let relays = "host=r1,r2 port=5432,5433 user=u";
        for (from, words, count, named, of_relays) in [
            (relays, &["--require-relays", "2"][..], 2, &[][..], 2),
            (relays, &["--require", "r2"], 2, &[1], 0),
            // By the same text it is all of them.
            (relays, &["--require", relays], 2, &[0, 1], 0),
            ("postgres://u@r1,r2:5433/", &["--require-relays", "1"], 2, &[], 1),
            // This says that one is meant, whichever it is.
            ("host=r1,r2 target_session_attrs=primary", &["--require-relays", "1"], 1, &[], 1),
        ] {
            let (found, required) = required(from, words).unwrap();
            let required = required.unwrap();
            assert_eq!((found, &required.named[..], required.of_relays), (count, named, of_relays), "{from}");
            assert_eq!(required.relays.len(), count, "{from}");
        }
        let error: ConfigError = required(relays, &["--require-relays", "3"]).unwrap_err();
        assert!(error.to_string().contains("there are 2 relays"), "{error}");
    }

    #[test]
    fn a_relay_that_is_asked_has_one_host() {
        let environment = Environment::of_user("tester");
        let relays = |texts: &[&str]| {
            let relay = texts.iter().map(|text| (*text).to_owned()).collect();
            RelaysArgs { relay, timeout: "1s".to_owned(), json: false }.relays(&environment)
        };
        assert_eq!(relays(&["host=r1 user=u", "host=r2 user=u"]).unwrap().len(), 2);
        let error = relays(&["host=r1,r2 port=5432,5433 user=u password=hunter2"]).unwrap_err().to_string();
        let expected = "invalid value for --relay: it names 2 servers, of which only one would be asked; use \
                        --relay 'host=r1 port=5432 ...' --relay 'host=r2 port=5433 ...'";
        assert_eq!(error, expected);
        let [relay, candidate] = ["host=r1", "postgres://u@db1,db2/"].map(|text| vec![text.to_owned()]);
        let args = PromotableArgs { relay, candidate, json: false, watch: None };
        assert!(args.relays(&environment).is_ok());
        let error = args.candidates(&environment).unwrap_err().to_string();
        assert!(error.contains("--candidate 'host=db1 port=5432 ...' --candidate 'host=db2"), "{error}");
    }

    #[test]
    fn a_wrong_place_is_told_with_its_flag() {
        let args = VerifyPlaceArgs {
            place: "/x".to_owned(),
            repair_from: vec!["mian".to_owned()],
            config: None,
            json: false,
        };
        let error = args.sources(&Environment::of_user("tester")).unwrap_err().to_string();
        assert!(error.starts_with("invalid value for --repair-from: \"mian\" is no place"), "{error}");
    }

    #[test]
    fn places_are_told_apart() {
        let config = "[archive.main]\nurl = \"s3://wal/main\"\n[archive.own]\ncommand = \"cp %p /x/%f\"\n";
        let typed =
            ["postgresql://u@relay:5433", "host=other user=u", "main", "s3://wal/main", "/var/lib/walrelay"];
        let found = origins(&typed, Some(config)).unwrap();
        let hosts = "server relay:5433, server other:5432";
        let text = kinds(&found);
        assert!(text.ends_with("target main, target main, directory /var/lib/walrelay"), "{text}");
        assert_eq!(text.matches("server").count(), hosts.matches("server").count());
        assert_eq!(kinds(&origins(&[], Some(config)).unwrap()), "target main");
        for bad in ["mian", "ftp://x/y"] {
            assert!(origins(&[bad], Some(config)).unwrap_err().to_string().contains("--from"), "{bad}");
        }
        let error = origins(&["joe:hunter2@relay"], Some(config)).unwrap_err().to_string();
        assert!(error.contains("\"joe:***@relay\" is no place"), "{error}");
        // Whether it is here, and can be read, is for whoever asks it: looking may hang.
        let with_dir = format!("data-dir = \"/nonexistent\"\n{config}");
        assert_eq!(kinds(&origins(&[], Some(&with_dir)).unwrap()), "own directory /nonexistent, target main");
        let only = origins(&[], Some("data-dir = \"/nonexistent\"\n")).unwrap();
        assert_eq!(kinds(&only), "directory /nonexistent");
        assert!(origins(&[], None).unwrap_err().to_string().contains("no place given"));
    }
}
