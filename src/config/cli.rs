//! What can be typed: flags, environment variables and the configuration file, under the same names.

use std::path::PathBuf;

use clap::Parser;
use serde::Deserialize;

use super::ack::AckSettings;
use super::archive::ArchiveSetting;
use super::commands::Command;
use crate::store::WalWrite;

/// A cascading WAL relay for PostgreSQL: one connection and one slot on the primary, any number of standbys,
/// pg_receivewal, Barman and further relays below.
#[derive(Parser, Debug, Default)]
#[command(name = "walrelay", version, max_term_width = 100, args_conflicts_with_subcommands = true)]
pub struct Cli {
    /// TOML file with the same names as these flags; a flag or an environment variable wins over it
    #[arg(long, env = "WALRELAY_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    #[command(flatten)]
    pub(super) settings: Settings,

    /// What to do instead of running a relay.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// Every setting, as text where a unit or a syntax of its own has to be understood first.
#[derive(clap::Args, Deserialize, Debug, Default, Clone)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub(super) struct Settings {
    /// Server to receive WAL from: host, host:port, a libpq connection string or a postgresql:// URI
    #[arg(long, env = "WALRELAY_UPSTREAM", value_name = "CONNINFO", hide_env_values = true)]
    pub(super) upstream: Option<String>,

    /// Directory that keeps the WAL and the relay's state [default: $STATE_DIRECTORY, else
    /// /var/lib/walrelay for root, ~/.local/state/walrelay for others]
    #[arg(long, short = 'D', env = "WALRELAY_DATA_DIR", value_name = "DIR")]
    pub(super) data_dir: Option<PathBuf>,

    /// Where to serve consumers: ADDR:PORT, or a directory for a Unix socket; repeatable
    /// [default: 127.0.0.1:5432]
    #[arg(long, env = "WALRELAY_LISTEN", value_name = "ADDR:PORT", value_delimiter = ',')]
    #[serde(default, deserialize_with = "one_or_many")]
    pub(super) listen: Vec<String>,

    /// Where to serve a page, metrics and health in HTTP: a port of the loopback interface, or ADDR:PORT [default: nowhere]
    #[arg(long, env = "WALRELAY_HTTP_LISTEN", value_name = "ADDR:PORT")]
    #[serde(default, deserialize_with = "text")]
    pub(super) http_listen: Option<String>,

    /// Whether TLS is spoken at --http-listen, with the certificate of --ssl-cert-file [default: off]
    #[arg(long, env = "WALRELAY_HTTP_SSL", value_name = "on|off", value_enum)]
    #[serde(default, deserialize_with = "value_enum")]
    pub(super) http_ssl: Option<Switch>,

    /// Whether the page, /api and /metrics at --http-listen take the login of a role that may examine the relay, by the rules
    /// of --hba-file for the database walrelay [default: off]
    #[arg(long, env = "WALRELAY_HTTP_AUTH", value_name = "on|off", value_enum)]
    #[serde(default, deserialize_with = "value_enum")]
    pub(super) http_auth: Option<Switch>,

    /// Replication slot on the upstream, created if missing [default: walrelay]
    #[arg(long, env = "WALRELAY_SLOT", value_name = "NAME")]
    pub(super) slot: Option<String>,

    /// Who may connect, in pg_hba.conf's syntax [default: loopback with a password, peer on Unix sockets]
    #[arg(long, env = "WALRELAY_HBA_FILE", value_name = "FILE")]
    pub(super) hba_file: Option<PathBuf>,

    /// Users and their secrets, in the format of PgBouncer's userlist.txt
    #[arg(long, env = "WALRELAY_AUTH_FILE", value_name = "FILE")]
    pub(super) auth_file: Option<PathBuf>,

    /// Maps of system users and certificates to roles, in pg_ident.conf's syntax [default: none]
    #[arg(long, env = "WALRELAY_IDENT_FILE", value_name = "FILE")]
    pub(super) ident_file: Option<PathBuf>,

    /// Role that may fence the relay, besides superusers, or a role that its members belong to; repeatable
    #[arg(long, env = "WALRELAY_ADMIN_ROLE", value_name = "NAME", value_delimiter = ',')]
    #[serde(default, deserialize_with = "names")]
    pub(super) admin_role: Vec<String>,

    /// Role that may see everything in the relay's own database, besides members of pg_monitor upstream, or a role that its
    /// members belong to; repeatable
    #[arg(long, env = "WALRELAY_MONITOR_ROLE", value_name = "NAME", value_delimiter = ',')]
    #[serde(default, deserialize_with = "names")]
    pub(super) monitor_role: Vec<String>,

    /// Certificate to show to clients, in PEM, with those between it and the root; turns TLS on
    #[arg(long, env = "WALRELAY_SSL_CERT_FILE", value_name = "FILE")]
    pub(super) ssl_cert_file: Option<PathBuf>,

    /// Private key of --ssl-cert-file, without a passphrase
    #[arg(long, env = "WALRELAY_SSL_KEY_FILE", value_name = "FILE")]
    pub(super) ssl_key_file: Option<PathBuf>,

    /// Authorities whose certificates clients may show, in PEM [default: clients are not asked for one]
    #[arg(long, env = "WALRELAY_SSL_CA_FILE", value_name = "FILE")]
    pub(super) ssl_ca_file: Option<PathBuf>,

    /// Revocation lists for clients' certificates, in PEM
    #[arg(long, env = "WALRELAY_SSL_CRL_FILE", value_name = "FILE")]
    pub(super) ssl_crl_file: Option<PathBuf>,

    /// Oldest TLS that clients may speak: TLSv1.2 or TLSv1.3 [default: TLSv1.2]
    #[arg(long, env = "WALRELAY_SSL_MIN_PROTOCOL_VERSION", value_name = "VERSION")]
    pub(super) ssl_min_protocol_version: Option<String>,

    /// Newest TLS that clients may speak: TLSv1.2 or TLSv1.3 [default: TLSv1.3]
    #[arg(long, env = "WALRELAY_SSL_MAX_PROTOCOL_VERSION", value_name = "VERSION")]
    pub(super) ssl_max_protocol_version: Option<String>,

    /// Most SQL sessions at a time [default: 1000]
    #[arg(long, env = "WALRELAY_MAX_CONNECTIONS", value_name = "N")]
    pub(super) max_connections: Option<usize>,

    /// Most sessions of one role at a time; 0 for no limit [default: 0]
    #[arg(long, env = "WALRELAY_MAX_USER_CONNECTIONS", value_name = "N")]
    pub(super) max_user_connections: Option<usize>,

    /// Failed logins that an address may have at once, and again each 10 seconds; 0 for no limit [default: 100]
    #[arg(long, env = "WALRELAY_MAX_FAILED_LOGINS", value_name = "N")]
    pub(super) max_failed_logins: Option<u32>,

    /// Ask the upstream for the secrets of roles, so that they log in here with the same password; the query may be
    /// given, with $1 for the role's name and two result columns, name and secret
    #[arg(long, env = "WALRELAY_AUTH_QUERY", value_name = "QUERY", num_args = 0..=1, require_equals = true,
          default_missing_value = "")]
    pub(super) auth_query: Option<String>,

    /// Database on the upstream for the relay's own questions about roles [default: dbname of --upstream, else
    /// postgres]
    #[arg(long, env = "WALRELAY_AUTH_DBNAME", value_name = "DBNAME")]
    pub(super) auth_dbname: Option<String>,

    /// Whether SQL clients see the relay's slots and consumers in pg_replication_slots and pg_stat_replication
    /// [default: on]
    #[arg(long, env = "WALRELAY_SQL_OVERLAY", value_name = "on|off", value_enum)]
    #[serde(default, deserialize_with = "value_enum")]
    pub(super) sql_overlay: Option<Switch>,

    /// Most bytes per second of all base backups together, e.g. 100MB; a bare number is kilobytes [default: no limit]
    #[arg(long, env = "WALRELAY_BASE_BACKUP_MAX_RATE", value_name = "RATE")]
    #[serde(default, deserialize_with = "text")]
    pub(super) base_backup_max_rate: Option<String>,

    #[command(flatten)]
    #[serde(default)]
    pub(super) ack: AckSettings,

    /// Where to archive WAL: file:///directory, s3://bucket/prefix, gs:// or az://; repeatable; options of each
    /// in [archive.NAME] of the --config file
    #[arg(long, env = "WALRELAY_ARCHIVE", value_name = "URL", value_delimiter = ' ', hide_env_values = true)]
    #[serde(default, deserialize_with = "super::archive::settings")]
    pub(super) archive: Vec<ArchiveSetting>,

    /// Most archived WAL fetched back ahead of consumers that is kept on disk, e.g. 1GB; a bare number is megabytes;
    /// at least five segments [default: 256MB]
    #[arg(long, env = "WALRELAY_RECALL_SIZE", value_name = "SIZE")]
    #[serde(default, deserialize_with = "text")]
    pub(super) recall_size: Option<String>,

    /// How log lines look; auto is text, and fields of systemd's journal where standard error leads to one [default: auto]
    #[arg(long, env = "WALRELAY_LOG_FORMAT", value_name = "FORMAT", value_enum)]
    pub(super) log_format: Option<LogFormat>,

    /// Least severe log level: error, warn, info, debug, trace [default: info]
    #[arg(long, env = "WALRELAY_LOG_LEVEL", value_name = "LEVEL")]
    pub(super) log_level: Option<String>,

    /// Whether the log tells who has logged in [default: on]
    #[arg(long, env = "WALRELAY_LOG_CONNECTIONS", value_name = "on|off", value_enum)]
    #[serde(default, deserialize_with = "value_enum")]
    pub(super) log_connections: Option<Switch>,

    /// Whether the log tells who has left; who was cut off or has failed is told in any case [default: on]
    #[arg(long, env = "WALRELAY_LOG_DISCONNECTIONS", value_name = "on|off", value_enum)]
    #[serde(default, deserialize_with = "value_enum")]
    pub(super) log_disconnections: Option<Switch>,

    /// Whether the log tells each replication command; otherwise it does at level debug [default: off]
    #[arg(long, env = "WALRELAY_LOG_REPLICATION_COMMANDS", value_name = "on|off", value_enum)]
    #[serde(default, deserialize_with = "value_enum")]
    pub(super) log_replication_commands: Option<Switch>,

    /// How WAL is stored into its segment [default: pwrite]
    #[arg(long, env = "WALRELAY_WAL_WRITE", value_name = "HOW", value_enum)]
    #[serde(default, deserialize_with = "value_enum")]
    pub(super) wal_write: Option<WalWrite>,

    /// WAL kept for consumers without a slot, e.g. 512MB; a bare number is megabytes [default: 1GB]
    #[arg(long, env = "WALRELAY_WAL_KEEP_SIZE", value_name = "SIZE")]
    #[serde(default, deserialize_with = "text")]
    pub(super) wal_keep_size: Option<String>,

    /// Most WAL that slots may keep; a slot that needs more is lost; -1 for no limit [default: -1]
    #[arg(long, env = "WALRELAY_MAX_SLOT_WAL_KEEP_SIZE", value_name = "SIZE", allow_hyphen_values = true)]
    #[serde(default, deserialize_with = "text")]
    pub(super) max_slot_wal_keep_size: Option<String>,

    /// Most consumers at a time, beside the SQL sessions [default: 1000]
    #[arg(long, env = "WALRELAY_MAX_WAL_SENDERS", value_name = "N")]
    pub(super) max_wal_senders: Option<usize>,

    /// Most replication slots of the relay's own [default: 1000]
    #[arg(long, env = "WALRELAY_MAX_REPLICATION_SLOTS", value_name = "N")]
    pub(super) max_replication_slots: Option<usize>,

    /// Silence after which a consumer is given up, e.g. 60s; 0 for never [default: 60s]
    #[arg(long, env = "WALRELAY_WAL_SENDER_TIMEOUT", value_name = "TIME")]
    #[serde(default, deserialize_with = "text")]
    pub(super) wal_sender_timeout: Option<String>,

    /// Silence after which the upstream is given up, e.g. 60s; 0 for never [default: 60s]
    #[arg(long, env = "WALRELAY_WAL_RECEIVER_TIMEOUT", value_name = "TIME")]
    #[serde(default, deserialize_with = "text")]
    pub(super) wal_receiver_timeout: Option<String>,

    /// Time a client has to authenticate [default: 1min]
    #[arg(long, env = "WALRELAY_AUTHENTICATION_TIMEOUT", value_name = "TIME")]
    #[serde(default, deserialize_with = "text")]
    pub(super) authentication_timeout: Option<String>,

    /// Longest wait for consumers to confirm the last WAL when the relay stops [default: 10s]
    #[arg(long, env = "WALRELAY_SHUTDOWN_TIMEOUT", value_name = "TIME")]
    #[serde(default, deserialize_with = "text")]
    pub(super) shutdown_timeout: Option<String>,
}

/// A setting that is on or off.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Switch {
    /// Yes.
    On,
    /// No.
    Off,
}

/// `--log-format`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// Fields, if standard error leads to systemd's journal; else text.
    #[default]
    Auto,
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Settings {
    /// What is set here, else what is set in `other`.
    pub(super) fn or(self, other: Settings) -> Settings {
        Settings {
            upstream: self.upstream.or(other.upstream),
            data_dir: self.data_dir.or(other.data_dir),
            listen: if self.listen.is_empty() { other.listen } else { self.listen },
            http_listen: self.http_listen.or(other.http_listen),
            http_ssl: self.http_ssl.or(other.http_ssl),
            http_auth: self.http_auth.or(other.http_auth),
            slot: self.slot.or(other.slot),
            hba_file: self.hba_file.or(other.hba_file),
            auth_file: self.auth_file.or(other.auth_file),
            ident_file: self.ident_file.or(other.ident_file),
            admin_role: if self.admin_role.is_empty() { other.admin_role } else { self.admin_role },
            monitor_role: if self.monitor_role.is_empty() { other.monitor_role } else { self.monitor_role },
            ssl_cert_file: self.ssl_cert_file.or(other.ssl_cert_file),
            ssl_key_file: self.ssl_key_file.or(other.ssl_key_file),
            ssl_ca_file: self.ssl_ca_file.or(other.ssl_ca_file),
            ssl_crl_file: self.ssl_crl_file.or(other.ssl_crl_file),
            ssl_min_protocol_version: self.ssl_min_protocol_version.or(other.ssl_min_protocol_version),
            ssl_max_protocol_version: self.ssl_max_protocol_version.or(other.ssl_max_protocol_version),
            max_connections: self.max_connections.or(other.max_connections),
            max_user_connections: self.max_user_connections.or(other.max_user_connections),
            max_failed_logins: self.max_failed_logins.or(other.max_failed_logins),
            auth_query: self.auth_query.or(other.auth_query),
            auth_dbname: self.auth_dbname.or(other.auth_dbname),
            sql_overlay: self.sql_overlay.or(other.sql_overlay),
            base_backup_max_rate: self.base_backup_max_rate.or(other.base_backup_max_rate),
            ack: self.ack.or(other.ack),
            archive: if self.archive.is_empty() { other.archive } else { self.archive },
            recall_size: self.recall_size.or(other.recall_size),
            log_format: self.log_format.or(other.log_format),
            log_level: self.log_level.or(other.log_level),
            log_connections: self.log_connections.or(other.log_connections),
            log_disconnections: self.log_disconnections.or(other.log_disconnections),
            log_replication_commands: self.log_replication_commands.or(other.log_replication_commands),
            wal_write: self.wal_write.or(other.wal_write),
            wal_keep_size: self.wal_keep_size.or(other.wal_keep_size),
            max_slot_wal_keep_size: self.max_slot_wal_keep_size.or(other.max_slot_wal_keep_size),
            max_wal_senders: self.max_wal_senders.or(other.max_wal_senders),
            max_replication_slots: self.max_replication_slots.or(other.max_replication_slots),
            wal_sender_timeout: self.wal_sender_timeout.or(other.wal_sender_timeout),
            wal_receiver_timeout: self.wal_receiver_timeout.or(other.wal_receiver_timeout),
            authentication_timeout: self.authentication_timeout.or(other.authentication_timeout),
            shutdown_timeout: self.shutdown_timeout.or(other.shutdown_timeout),
        }
    }

    /// Names of those that are not the same in `other`; archive targets are compared elsewhere.
    pub(super) fn differences(&self, other: &Settings) -> Vec<String> {
        macro_rules! compare {
            ($($name:ident)*) => {{
                // A new setting that is not named here does not compile.
                let Settings { archive: _, $($name: _),* } = self;
                let compared = [$((stringify!($name), self.$name == other.$name)),*];
                compared.into_iter().filter(|(_, same)| !same).map(|(name, _)| name.replace('_', "-")).collect()
            }};
        }
        compare! {
            upstream data_dir listen http_listen http_ssl http_auth slot hba_file auth_file ident_file admin_role monitor_role ssl_cert_file ssl_key_file
            ssl_ca_file ssl_crl_file ssl_min_protocol_version ssl_max_protocol_version max_connections
            max_user_connections max_failed_logins auth_query auth_dbname sql_overlay base_backup_max_rate
            ack recall_size log_format log_level log_connections log_disconnections log_replication_commands wal_write wal_keep_size max_slot_wal_keep_size max_wal_senders
            max_replication_slots wal_sender_timeout wal_receiver_timeout authentication_timeout
            shutdown_timeout
        }
    }
}

/// A TOML string or number, as text.
pub(super) fn text<'de, D: serde::Deserializer<'de>>(input: D) -> Result<Option<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Value {
        Number(i64),
        Text(String),
    }
    Ok(Some(match Value::deserialize(input)? {
        Value::Number(number) => number.to_string(),
        Value::Text(text) => text,
    }))
}

/// A name, or a list of them.
fn names<'de, D: serde::Deserializer<'de>>(input: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Value {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Value::deserialize(input)? {
        Value::One(one) => vec![one],
        Value::Many(many) => many,
    })
}

/// Whoever writes an empty list does not mean the default.
fn one_or_many<'de, D: serde::Deserializer<'de>>(input: D) -> Result<Vec<String>, D::Error> {
    let many = names(input)?;
    match many.is_empty() {
        true => Err(serde::de::Error::custom("an empty list: nobody could connect")),
        false => Ok(many),
    }
}

fn value_enum<'de, D, T>(input: D) -> Result<Option<T>, D::Error>
where
    D: serde::Deserializer<'de>,
    T: clap::ValueEnum,
{
    let text = String::deserialize(input)?;
    let names =
        || T::value_variants().iter().filter_map(|it| Some(it.to_possible_value()?.get_name().to_owned()));
    // What was given is not repeated: it may be a secret in the wrong place.
    let expected =
        |_| serde::de::Error::custom(format!("expected one of {}", names().collect::<Vec<_>>().join(", ")));
    T::from_str(&text, false).map(Some).map_err(expected)
}
