//! Configuration: what was typed becomes values that everything after can rely on.
//!
//! Precedence: flag, then environment variable `WALRELAY_*`, then configuration file, then default.

mod ack;
mod archive;
mod cli;
mod commands;
mod keys;
mod shown;
mod tls;
mod units;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tracing::level_filters::LevelFilter;
use walrelay_proto::SlotName;
use walrelay_proto::ack::Rules;

use crate::archive::Target;
use crate::conninfo::{ConnInfo, Environment};
use crate::downstream::{Limits, ListenAddr, Logged};
use crate::gateway::DEFAULT_AUTH_QUERY;
use crate::http::{HttpAddr, HttpRules};
use crate::permissions::{Distrust, check_shared_secret, read_rules};
use crate::redact::{holds_secret, redact};
use crate::store::{StoreConfig, WalWrite};
use crate::wire::TlsFiles;

pub use ack::ack_warnings;
pub use archive::archive_targets;
use cli::Settings;
pub use cli::{Cli, LogFormat, Switch};
pub use commands::{
    ArchiveCommand, BranchCommand, CheckConfigArgs, CleanupArgs, Command, CompletionsArgs, DoctorArgs,
    ExportArgs, FailoversArgs, FenceArgs, InitArgs, ListArgs, ManArgs, Origin, PlacesArgs, PromotableArgs,
    RelaysArgs, RestoreArgs, StatusArgs, UnfenceArgs, VerifyArgs, VerifyPlaceArgs, each_asked,
};
pub(crate) use units::timeout as timeout_as_shown;

/// For applications on the same machine.
const DEFAULT_LISTEN: &str = "127.0.0.1:5432";

/// A checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// `--upstream`.
    pub upstream: ConnInfo,
    /// `--listen`; at least one.
    pub listen: Vec<ListenAddr>,
    /// `--http-listen`; `None` for nowhere.
    pub http_listen: Option<HttpAddr>,
    /// `--http-ssl` and `--http-auth`.
    pub http: HttpRules,
    /// `--slot`.
    pub slot: SlotName,
    /// `--hba-file`.
    pub hba_file: Option<PathBuf>,
    /// `--auth-file`.
    pub auth_file: Option<PathBuf>,
    /// `--ident-file`.
    pub ident_file: Option<PathBuf>,
    /// `--admin-role`.
    pub admin_roles: Vec<String>,
    /// `--monitor-role`.
    pub monitor_roles: Vec<String>,
    /// `--ssl-cert-file` and its kin; `None` if TLS is off.
    pub tls: Option<TlsFiles>,
    /// `--max-connections`, `--max-user-connections`, `--max-wal-senders`.
    pub limits: Limits,
    /// `--max-failed-logins`.
    pub max_failed_logins: u32,
    /// `--auth-query`, the default query filled in; `None` if it was not given.
    pub auth_query: Option<String>,
    /// `--auth-dbname`.
    pub auth_dbname: String,
    /// `--sql-overlay`.
    pub sql_overlay: bool,
    /// `--base-backup-max-rate`, bytes per second.
    pub base_backup_max_rate: Option<u64>,
    /// `--ack-write` and its kin, `[ack]`.
    pub ack: Rules,
    /// `--archive` and `[archive.NAME]`.
    pub archive: Vec<Target>,
    /// `--recall-size`, bytes.
    pub recall_size: u64,
    /// `--log-format`.
    pub log_format: LogFormat,
    /// `--log-level`.
    pub log_level: LevelFilter,
    /// `--log-connections`, `--log-disconnections`, `--log-replication-commands`.
    pub logged: Logged,
    /// The store's part: data directory, how WAL is written and kept.
    pub store: StoreConfig,
    /// `--wal-sender-timeout`; `None` for never.
    pub wal_sender_timeout: Option<Duration>,
    /// `--wal-receiver-timeout`; `None` for never.
    pub wal_receiver_timeout: Option<Duration>,
    /// `--authentication-timeout`.
    pub authentication_timeout: Duration,
    /// `--shutdown-timeout`.
    pub shutdown_timeout: Duration,
    typed: Typed,
}

/// What was typed, to read the file again.
#[derive(Clone)]
struct Typed {
    file: Option<PathBuf>,
    settings: Settings,
    environment: Environment,
    /// The settings with those of the file.
    all: Settings,
}

/// Without what was typed: there are passwords in it.
impl std::fmt::Debug for Typed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Typed").field("file", &self.file).finish_non_exhaustive()
    }
}

/// The configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The configuration file cannot be read, or others could have changed it or read the secrets in it.
    #[error("configuration file \"{}\" {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: Distrust,
    },
    /// The configuration file is not what it should be.
    #[error("configuration file \"{}\": {reason}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Where and what.
        reason: String,
    },
    /// A setting's value is wrong.
    #[error("invalid value for --{name}: {reason}")]
    Value {
        /// The flag.
        name: &'static str,
        /// What is wrong and what was expected.
        reason: String,
    },
    /// An archive target is wrong.
    #[error("{place}archive target \"{}\": {reason}", redact(target))]
    Archive {
        /// File and line, for what stands in a file, with a colon behind.
        place: String,
        /// Its name or URL.
        target: String,
        /// What is wrong and what was expected.
        reason: String,
    },
    /// A setting that has no default is missing.
    #[error(
        "no upstream given: use --upstream HOST, WALRELAY_UPSTREAM, or upstream = \"...\" in the --config file"
    )]
    NoUpstream,
}

/// HTTP in clear text, where it comes over a network.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ExposedHttp {
    /// `--http-listen`.
    pub address: HttpAddr,
    /// Passwords come over it, too. Else everybody who can reach it is shown everything.
    pub passwords: bool,
}

impl std::fmt::Display for ExposedHttp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let address = &self.address;
        match self.passwords {
            true => write!(
                f,
                "passwords come to {address} in clear text (--http-auth without --http-ssl): whoever can read the line can log in"
            ),
            false => write!(
                f,
                "whoever can reach {address} sees names, addresses, positions, settings and the log's messages: there is neither --http-auth nor --http-ssl"
            ),
        }
    }
}

/// What each setting that is shown is for, in a line, by its name.
pub fn descriptions() -> HashMap<String, String> {
    let command = <Cli as clap::CommandFactory>::command();
    let about = |argument: &clap::Arg| {
        let help = argument.get_help()?.to_string();
        Some((argument.get_long()?.to_owned(), help))
    };
    let ssl = ("ssl".to_owned(), "Whether clients are offered TLS".to_owned());
    command.get_arguments().filter_map(about).chain([ssl]).collect()
}

impl Config {
    /// Brings together flags (with environment variables), file and defaults.
    pub fn resolve(cli: Cli, environment: &Environment) -> Result<Config, ConfigError> {
        Config::of(cli.config, cli.settings, environment)
    }

    /// What a relay would be started with that got these flags.
    pub fn to_check(args: &CheckConfigArgs, environment: &Environment) -> Result<Config, ConfigError> {
        Config::of(args.config.clone(), args.settings.clone(), environment)
    }

    /// Reads the file again; flags and environment variables are those of the start.
    pub fn read_again(&self) -> Result<Config, ConfigError> {
        let Typed { file, settings, environment, .. } = self.typed.clone();
        Config::of(file, settings, &environment)
    }

    /// The file that they were read from.
    pub fn file(&self) -> Option<&Path> {
        self.typed.file.as_deref()
    }

    /// What is doubtful about who can read what goes over `--http-listen`.
    pub fn exposed_http(&self) -> Option<ExposedHttp> {
        self.exposed_http_of(self)
    }

    /// The same of a relay that listens where `started` says, which a reload does not change.
    pub fn exposed_http_of(&self, started: &Config) -> Option<ExposedHttp> {
        let address = started.http_listen.as_ref()?;
        let exposed = !address.is_loopback() && !self.http.ssl;
        exposed.then(|| ExposedHttp { address: address.clone(), passwords: self.http.auth })
    }

    /// Names of the settings, archive targets left out, that are not the same in `other`.
    pub fn differences(&self, other: &Config) -> Vec<String> {
        self.typed.all.differences(&other.typed.all)
    }

    /// Where a setting comes from, by its name among those that are shown: `command line` (or its environment variable),
    /// `configuration file`, with the file, or `default`.
    pub fn source_of(&self, name: &str) -> (&'static str, Option<&Path>) {
        let Typed { file, settings, all, .. } = &self.typed;
        let is_in = |settings: &Settings| {
            let given = settings.differences(&Settings::default());
            let is_part = |given: &String| {
                given == name
                    || given == "ack" && name.starts_with("ack-")
                    || given == "ssl-cert-file" && name == "ssl"
            };
            given.iter().any(is_part) || name == "archive" && !settings.archive.is_empty()
        };
        match () {
            () if name == "config" && file.is_some() || is_in(settings) => ("command line", None),
            () if is_in(all) => ("configuration file", file.as_deref()),
            () => ("default", None),
        }
    }

    fn of(path: Option<PathBuf>, typed: Settings, environment: &Environment) -> Result<Config, ConfigError> {
        let file = path.as_deref().map(read_file).transpose()?.unwrap_or_default();
        let settings = typed.clone().or(file);
        let typed =
            Typed { file: path, settings: typed, environment: environment.clone(), all: settings.clone() };
        let given = settings.upstream.as_deref().filter(|text| !text.trim().is_empty());
        let upstream = given.ok_or(ConfigError::NoUpstream)?;
        let upstream = ConnInfo::parse(upstream, environment).map_err(|error| value("upstream", &error))?;
        let slot = settings.slot.as_deref().unwrap_or("walrelay");
        let auth_dbname = settings.auth_dbname.clone().or_else(|| upstream.dbname.clone());
        let rate = settings.base_backup_max_rate.as_deref().map(units::rate).transpose();
        Ok(Config {
            upstream,
            auth_query: settings.auth_query.clone().map(auth_query),
            auth_dbname: auth_dbname.unwrap_or_else(|| "postgres".to_owned()),
            sql_overlay: settings.sql_overlay != Some(Switch::Off),
            base_backup_max_rate: rate.map_err(|error| value("base-backup-max-rate", &error))?,
            ack: settings.ack.rules()?,
            archive: archive::targets(&settings.archive)?,
            recall_size: units::size(settings.recall_size.as_deref().unwrap_or("256MB"))
                .map_err(|error| value("recall-size", &error))?,
            http_listen: settings
                .http_listen
                .as_deref()
                .map(|text| text.parse().map_err(|error| value("http-listen", &error)))
                .transpose()?,
            http: HttpRules {
                ssl: settings.http_ssl == Some(Switch::On),
                auth: settings.http_auth == Some(Switch::On),
            },
            slot: slot.parse().map_err(|error| value("slot", &error))?,
            store: store_config(&settings)?,
            tls: tls::files(&settings)?,
            listen: listen(&settings.listen)?,
            hba_file: settings.hba_file,
            auth_file: settings.auth_file,
            log_format: settings.log_format.unwrap_or_default(),
            log_level: log_level(settings.log_level.as_deref().unwrap_or("info"))?,
            logged: Logged {
                connections: settings.log_connections != Some(Switch::Off),
                disconnections: settings.log_disconnections != Some(Switch::Off),
                replication_commands: settings.log_replication_commands == Some(Switch::On),
            },
            ident_file: settings.ident_file,
            admin_roles: settings.admin_role,
            monitor_roles: settings.monitor_role,
            limits: Limits {
                connections: at_least_one("max-connections", settings.max_connections)?,
                user_connections: settings.max_user_connections.unwrap_or(0),
                wal_senders: at_least_one("max-wal-senders", settings.max_wal_senders)?,
            },
            max_failed_logins: settings.max_failed_logins.unwrap_or(100),
            wal_sender_timeout: timeout("wal-sender-timeout", settings.wal_sender_timeout, "60s")?,
            wal_receiver_timeout: timeout("wal-receiver-timeout", settings.wal_receiver_timeout, "60s")?,
            authentication_timeout: login_time(settings.authentication_timeout)?,
            shutdown_timeout: time("shutdown-timeout", settings.shutdown_timeout, "10s")?,
            typed,
        })
    }
}

fn listen(given: &[String]) -> Result<Vec<ListenAddr>, ConfigError> {
    let default = [DEFAULT_LISTEN.to_owned()];
    let texts = if given.is_empty() { &default } else { given };
    texts.iter().map(|text| text.parse().map_err(|error| value("listen", &error))).collect()
}

/// With none, nobody would get in.
fn at_least_one(name: &'static str, given: Option<usize>) -> Result<usize, ConfigError> {
    match given {
        Some(0) => Err(value(name, &"0 lets nobody in; the least is 1")),
        given => Ok(given.unwrap_or(1000)),
    }
}

/// PG: from 1 s to 10 min; there is no "never".
fn login_time(given: Option<String>) -> Result<Duration, ConfigError> {
    let (name, limits) = ("authentication-timeout", Duration::from_secs(1)..=Duration::from_secs(600));
    match time(name, given, "1min")? {
        time if limits.contains(&time) => Ok(time),
        time => Err(value(
            name,
            &format!("{time:?} is not in 1s to 10min; nobody could log in, or hold a place for ever"),
        )),
    }
}

/// Without a text it is PgBouncer's.
fn auth_query(given: String) -> String {
    if given.trim().is_empty() { DEFAULT_AUTH_QUERY.to_owned() } else { given }
}

fn log_level(text: &str) -> Result<LevelFilter, ConfigError> {
    let expected = || format!("\"{text}\" is not one of off, error, warn, info, debug, trace");
    text.parse().map_err(|_| value("log-level", &expected()))
}

fn store_config(settings: &Settings) -> Result<StoreConfig, ConfigError> {
    let keep = settings.wal_keep_size.as_deref().unwrap_or("1GB");
    let slots = settings.max_slot_wal_keep_size.as_deref().unwrap_or("-1");
    Ok(StoreConfig {
        data_dir: settings.data_dir.clone().map_or_else(default_data_dir, Ok)?,
        wal_write: settings.wal_write.unwrap_or(WalWrite::Pwrite),
        wal_keep_size: units::size(keep).map_err(|error| value("wal-keep-size", &error))?,
        max_slot_wal_keep_size: units::size_or_unlimited(slots)
            .map_err(|error| value("max-slot-wal-keep-size", &error))?,
        max_replication_slots: settings.max_replication_slots.unwrap_or(1000),
    })
}

/// systemd's `StateDirectory=`, else where state of a service or of a user lives.
fn default_data_dir() -> Result<PathBuf, ConfigError> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(dir) = variable("STATE_DIRECTORY") {
        return Ok(dir);
    }
    if rustix::process::geteuid().is_root() {
        return Ok(PathBuf::from("/var/lib/walrelay"));
    }
    variable("XDG_STATE_HOME")
        .or_else(|| variable("HOME").map(|home| home.join(".local/state")))
        .map(|state| state.join("walrelay"))
        .ok_or_else(|| value("data-dir", &"none given, and there is no home directory for a default"))
}

fn read_file(path: &Path) -> Result<Settings, ConfigError> {
    let fail = |source| ConfigError::File { path: path.to_owned(), source };
    let text = read_rules(path).map_err(fail)?;
    let mut lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    if lines.any(holds_secret) {
        check_shared_secret(path).map_err(fail)?;
    }
    let line = |span: std::ops::Range<usize>| text[..span.start].matches('\n').count() + 1;
    let mut settings: Settings = keys::parse(&text).map_err(|fault| {
        let place = fault.span.map(|span| place(&text, span.start)).unwrap_or_default();
        let reason = format!("{place}{}", fault.reason);
        ConfigError::Syntax { path: path.to_owned(), reason }
    })?;
    settings.archive.iter_mut().for_each(|setting| setting.note_place(path, line));
    Ok(settings)
}

/// `line 3, key "slot": `
fn place(text: &str, at: usize) -> String {
    let before = &text[..at];
    let line = &text[before.rfind('\n').map_or(0, |newline| newline + 1)..];
    let key = line.lines().next().and_then(|line| line.split_once('=')).map(|(key, _)| key.trim());
    let is_key =
        |key: &&str| !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    let key = key.filter(is_key).map(|key| format!(", key \"{key}\"")).unwrap_or_default();
    format!("line {}{key}: ", before.matches('\n').count() + 1)
}

fn time(name: &'static str, given: Option<String>, default: &str) -> Result<Duration, ConfigError> {
    units::time(given.as_deref().unwrap_or(default)).map_err(|error| value(name, &error))
}

fn timeout(
    name: &'static str,
    given: Option<String>,
    default: &str,
) -> Result<Option<Duration>, ConfigError> {
    units::timeout(given.as_deref().unwrap_or(default)).map_err(|error| value(name, &error))
}

fn value(name: &'static str, reason: &dyn std::fmt::Display) -> ConfigError {
    ConfigError::Value { name, reason: reason.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn resolve(args: &[&str]) -> Result<Config, ConfigError> {
        let cli = Cli::try_parse_from(std::iter::once("walrelay").chain(args.iter().copied())).unwrap();
        Config::resolve(cli, &Environment::of_user("tester"))
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("walrelay.toml");
        let text = "upstream = \"host=a user=u\"\nslot = \"from_file\"\nlisten = \"127.0.0.1:6000\"\n\
                    wal-keep-size = 64\nwal-sender-timeout = \"5s\"\nwal-write = \"mmap\"\nadmin-role = [\"op\", \"ha\"]\nmonitor_role = [\"mon\"]\n";
        std::fs::write(&path, text).unwrap();
        let file = path.to_str().unwrap();
        let config = resolve(&["--config", file, "--slot", "typed", "-D", "/tmp/x"]).unwrap();
        assert_eq!(config.slot.as_str(), "typed");
        assert_eq!(config.listen, ["127.0.0.1:6000".parse().unwrap()]);
        assert_eq!(config.admin_roles, ["op", "ha"]);
        assert_eq!(config.monitor_roles, ["mon"]);
        assert_eq!(config.store.wal_keep_size, 64 << 20);
        assert_eq!(config.store.wal_write, WalWrite::Mmap);
        assert_eq!(config.wal_sender_timeout, Some(Duration::from_secs(5)));
        assert_eq!(config.wal_receiver_timeout, Some(Duration::from_secs(60)));
    }

    /// An address in the file takes a restart, what is spoken there does not.
    #[test]
    fn a_reload_doubts_the_address_that_is_listened_on() {
        let at = |address: &str, more: &[&str]| {
            let fixed = ["--upstream", "host=a user=u", "-D", "/tmp/x", "--http-listen", address];
            resolve(&[&fixed[..], more].concat()).unwrap()
        };
        let (open, local) = (at("0.0.0.0:9187", &[]), at("9187", &[]));
        assert_eq!(open.exposed_http_of(&local), None);
        let exposed = local.exposed_http_of(&open).expect("it is open still");
        assert_eq!((exposed.address.to_string().as_str(), exposed.passwords), ("0.0.0.0:9187", false));
        let asks = at("9187", &["--http-auth", "on"]);
        assert!(asks.exposed_http_of(&open).is_some_and(|exposed| exposed.passwords));
    }

    #[test]
    fn what_the_http_port_shows_to_others_is_doubted() {
        let exposed = |args: &[&str]| {
            let fixed = [
                "--upstream",
                "host=a user=u",
                "-D",
                "/tmp/x",
                "--ssl-cert-file",
                "c",
                "--ssl-key-file",
                "k",
            ];
            resolve(&[&fixed[..], args].concat()).unwrap().exposed_http()
        };
        assert_eq!(exposed(&[]), None);
        let on = |address: &str, more: &[&str]| exposed(&[&["--http-listen", address], more].concat());
        let (ssl, auth) = (["--http-ssl", "on"], ["--http-auth", "on"]);
        for local in ["9187", "127.0.0.2:9187", "[::1]:9187", "localhost:9187"] {
            assert_eq!(on(local, &[]), None, "{local}");
            assert_eq!(on(local, &auth), None, "{local}");
        }
        for address in ["0.0.0.0:9187", "192.0.2.7:9187", "[::]:9187", "relay.example:9187"] {
            let open = on(address, &[]).expect(address);
            assert_eq!((open.address.to_string().as_str(), open.passwords), (address, false));
            assert!(open.to_string().contains("--http-auth"), "{open}");
            let clear = on(address, &auth).expect(address);
            assert!(clear.passwords && clear.to_string().contains("passwords"), "{clear}");
            assert_eq!(on(address, &[ssl, auth].concat()), None);
            assert_eq!(on(address, &ssl), None);
        }
    }

    #[test]
    fn mistakes_are_named() {
        let check = |args: &[&str], expected: &str| {
            let text = resolve(args).unwrap_err().to_string();
            assert!(text.contains(expected), "{text}");
        };
        check(&[], "no upstream given");
        let upstream = "host=a user=u";
        check(&["--upstream", "host=a nosuch=1"], "nosuch");
        check(&["--upstream", upstream, "--slot", "Bad"], "invalid value for --slot");
        check(&["--upstream", upstream, "--wal-keep-size", "1gb"], "--wal-keep-size");
        check(&["--upstream", upstream, "--log-level", "verbose"], "invalid value for --log-level");
        check(&["--upstream", ""], "no upstream given");
        check(
            &["--upstream", upstream, "--listen", "nowhere"],
            "invalid value for --listen: \"nowhere\": expected",
        );
        check(&["--upstream", upstream, "--max-connections", "0"], "--max-connections: 0 lets nobody in");
        check(&["--upstream", upstream, "--max-wal-senders", "0"], "--max-wal-senders: 0 lets nobody in");
        for time in ["0", "10", "11min"] {
            check(&["--upstream", upstream, "--authentication-timeout", time], "is not in 1s to 10min");
        }
        let tls =
            |args: &[&str], expected: &str| check(&[&["--upstream", upstream], args].concat(), expected);
        tls(&["--ssl-cert-file", "c"], "invalid value for --ssl-cert-file: needs --ssl-key-file");
        tls(&["--ssl-key-file", "k"], "invalid value for --ssl-key-file: needs --ssl-cert-file");
        tls(&["--ssl-ca-file", "a"], "invalid value for --ssl-ca-file: needs --ssl-cert-file");
        tls(&["--http-ssl", "on"], "invalid value for --http-ssl: needs --ssl-cert-file");
        let on = ["--ssl-cert-file", "c", "--ssl-key-file", "k"];
        let tls = |args: &[&str], expected: &str| tls(&[&on[..], args].concat(), expected);
        tls(&["--ssl-crl-file", "a"], "invalid value for --ssl-crl-file: needs --ssl-ca-file");
        tls(&["--ssl-min-protocol-version", "TLSv1"], "expected TLSv1.2 or TLSv1.3");
        let range = ["--ssl-min-protocol-version", "TLSv1.3", "--ssl-max-protocol-version", "TLSv1.2"];
        tls(&range, "older than --ssl-min-protocol-version");
        check(
            &["--config", "/nonexistent/walrelay.toml"],
            "configuration file \"/nonexistent/walrelay.toml\" cannot be read",
        );
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bad.toml");
        std::fs::write(&path, "slot = \"a\"\nno-such = 1\n").unwrap();
        check(&["--config", path.to_str().unwrap()], "line 2, key \"no-such\": unknown field `no-such`");
        std::fs::write(&path, "slot = \"a\"\nlisten = []\n").unwrap();
        check(
            &["--config", path.to_str().unwrap()],
            "line 2, key \"listen\": an empty list: nobody could connect",
        );
        let text = "slot = \"a\"\n\n[archive.one]\nurl = \"file:///a\"\n[archive.two]\nurl = \"file:///b\"\nrate = \"fast\"\n";
        std::fs::write(&path, text).unwrap();
        let args = ["--upstream", "host=a user=u", "--config", path.to_str().unwrap()];
        check(&args, &format!("\"{}\", line 5: archive target \"two\": rate: ", path.display()));
    }

    #[test]
    fn the_file_is_read_again_and_what_differs_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("walrelay.toml");
        let write = |text: &str| std::fs::write(&path, text).unwrap();
        write("upstream = \"host=a user=u\"\nslot = \"one\"\n");
        let file = path.to_str().unwrap();
        let before = resolve(&["--config", file, "--wal-keep-size", "64", "-D", "/tmp/x"]).unwrap();
        write(
            "upstream = \"host=b user=u\"\nslot = \"one\"\nwal_keep_size = 65\nhba-file = \"h\"\n\
             archive = \"file:///a\"\n",
        );
        let after = before.read_again().unwrap();
        // A flag wins as it did at the start, and archive targets are compared elsewhere.
        assert_eq!(before.differences(&after), ["upstream", "hba-file"]);
        assert_eq!(after.archive.len(), 1);
        assert_eq!(after.differences(&after.read_again().unwrap()), [""; 0]);
        write("slot = \n");
        assert!(before.read_again().unwrap_err().to_string().contains("line 1"));
    }

    #[test]
    fn no_error_shows_a_secret() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("walrelay.toml");
        let in_file = |text: &str| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
            resolve(&["--config", path.to_str().unwrap()]).unwrap_err().to_string()
        };
        let place = |line: usize| format!("configuration file \"{}\": line {line}, key ", path.display());
        for (text, line) in [
            ("slot = \"a\"\nmax-connections = \"hunter2\"\n", 2),
            ("upstream = host=a password=hunter2\n", 1),
            ("upstream = \"host=a password=hunter2\n", 1),
            ("[archive.a]\nurl = \"s3://b\"\noptions = \"secret_access_key=hunter2\"\n", 3),
            ("log-format = \"hunter2\"\n", 1),
            ("sql-overlay = 'hunter2'\n", 1),
        ] {
            let error = in_file(text);
            assert!(!error.contains("hunter2") && error.starts_with(&place(line)), "{text}: {error}");
        }
        for (text, named) in [
            ("upstream = \"host=a\"\narchive = \"s3://k:hunter2@b\"\n", "s3://k:***@b"),
            ("upstream = \"u:hunter2@host\"\n", "u:***@host"),
            ("upstream = \"postgresql://u:hun@ter2@host\"\n", "a host name contains"),
            ("upstream = \"postgresql://u:hun/ter2@host\"\n", "percent-encode"),
            ("upstream = \"pg://u:hunter2@host\"\n", "pg://u:***@host"),
            ("upstream = \"host=a sslmode='x password=hunter2'\"\n", "invalid sslmode value"),
            ("upstream = \"host=a hostaddr=u:hunter2@1.2.3.4\"\n", "u:***@1.2.3.4"),
        ] {
            let error = in_file(text);
            assert!(!error.contains("ter2") && error.contains(named), "{text}: {error}");
        }
    }

    #[test]
    fn a_file_with_secrets_is_not_everybodys_to_read_and_no_file_everybodys_to_write() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("walrelay.toml");
        let with_mode = |text: &str, mode: u32| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
            resolve(&["--config", path.to_str().unwrap(), "-D", "/x"]).map_err(|error| error.to_string())
        };
        let (open, secret) = ("upstream = \"host=a user=u\"\n", "upstream = \"host=a user=u password=x\"\n");
        assert!(with_mode(open, 0o644).is_ok() && with_mode(secret, 0o640).is_ok());
        assert!(with_mode(&format!("# password=x\n{open}"), 0o644).is_ok(), "an example is no secret");
        assert!(with_mode(open, 0o646).unwrap_err().contains("can be written by everybody"));
        for text in [
            secret,
            "upstream = \"postgresql://u:x@h\"\n",
            "upstream = \"host=a user=u\"\n[archive.a]\nurl = \"s3://b\"\noptions = { secret-access-key = \"x\" }\n",
        ] {
            assert!(
                with_mode(text, 0o644).unwrap_err().contains("holds secrets and is open to others (0644)"),
                "{text}"
            );
        }
    }
}
