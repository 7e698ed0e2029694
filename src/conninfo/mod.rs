//! libpq connection strings: what the operator typed becomes a checked [`ConnInfo`].
//!
//! Accepts what libpq 18 accepts, so that a `primary_conninfo` can be pasted: keywords and values, URIs, service
//! files, password files, `PG...` variables. Besides, the short form `host[:port][,...]`. What libpq would honour
//! and walrelay cannot is an error that names the keyword; it is never silently ignored.
//!
//! `replication` is read and has no effect, as for PostgreSQL's walreceiver: connections for WAL are physical
//! replication connections, whose passwords are looked up under the database name `replication`. `dbname` is the
//! database for the relay's own SQL.
//!
//! PG: `fe-connect.c`.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::auth::scram::Keys;
use crate::redact::redact;

mod environment;
mod keyword_value;
mod options;
mod passfile;
mod require_auth;
mod service;
#[cfg(test)]
mod tests;
mod uri;
mod validate;

pub use environment::Environment;
pub use options::Keyword;
pub use passfile::PassfileError;
pub use require_auth::{AuthMethod, RequireAuth};

/// `application_name` when nobody gave one.
pub const DEFAULT_APPLICATION_NAME: &str = "walrelay";
/// Name under which password files hold replication passwords, and the `database` of the start-up packet.
pub const REPLICATION_DATABASE: &str = "replication";

/// Everything needed to connect upstream. Neither `Debug` nor `Display` shows secrets.
#[derive(Clone, Debug)]
pub struct ConnInfo {
    /// Hosts in the order given; at least one.
    pub hosts: Vec<HostSpec>,
    /// Role to log in as.
    pub user: String,
    /// What the connection is for.
    pub purpose: Purpose,
    /// `dbname`, for SQL of our own.
    pub dbname: Option<String>,
    /// Password given in the string, the service file or `PGPASSWORD`. See [`ConnInfo::password_for`].
    pub password: Option<Secret>,
    /// Password file to look in otherwise.
    pub passfile: Option<PathBuf>,
    /// Keys to log in with instead of a password (`scram_client_key`, `scram_server_key`).
    pub scram_keys: Option<Keys>,
    /// What `pg_authid` holds instead of the password, to answer an MD5 challenge with.
    pub stored_md5: Option<Secret>,
    /// `application_name`, then `fallback_application_name`, then [`DEFAULT_APPLICATION_NAME`].
    pub application_name: String,
    /// Switches for the server process, `-c name=value ...`.
    pub options: Option<String>,
    /// Encoding to ask the server for.
    pub client_encoding: Option<String>,
    /// Limit for each address tried; `None` for no limit.
    pub connect_timeout: Option<Duration>,
    /// Socket options, for TCP only.
    pub tcp: TcpOptions,
    /// Whether and how to encrypt; has no meaning for Unix sockets.
    pub tls: TlsOptions,
    /// Whether SCRAM must be bound to the TLS channel.
    pub channel_binding: ChannelBinding,
    /// Authentication methods the server may ask for.
    pub require_auth: RequireAuth,
    /// Operating system user the server must run as, for Unix sockets only.
    pub require_peer: Option<String>,
    /// Which kind of server to accept.
    pub target_session_attrs: TargetSessionAttrs,
    /// Whether to try hosts and addresses in random order.
    pub load_balance_hosts: bool,
    /// Where this process listens itself, and must not connect to.
    pub own: OwnAddresses,
}

/// Where a process listens.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct OwnAddresses {
    /// Addresses and ports; an unspecified address stands for all of this machine's.
    pub tcp: Vec<SocketAddr>,
    /// Socket files.
    pub unix: Vec<PathBuf>,
}

impl OwnAddresses {
    /// Whether a connection from `local` to `peer` is one to ourselves: who connects to an address of his own machine does it
    /// from that address.
    pub fn is_own(&self, local: SocketAddr, peer: SocketAddr) -> bool {
        let is_here =
            |own: &SocketAddr| own.ip() == peer.ip() || own.ip().is_unspecified() && local.ip() == peer.ip();
        self.tcp.iter().any(|own| own.port() == peer.port() && is_here(own))
    }
}

/// What a connection is for, as its start-up message says it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Purpose {
    /// Receiving WAL: database `replication`, `replication=true`.
    Replication,
    /// A session with these start-up parameters, `user` not among them; `database` decides which line of the
    /// password file counts.
    Session(Vec<(String, Vec<u8>)>),
}

/// What proves to the server that we may log in as somebody else: what that somebody has proved, or told, to us.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Credentials {
    /// Nothing.
    None,
    /// The password: good for every method.
    Password(Secret),
    /// The stored MD5 hash: good for MD5 challenges.
    Md5(Secret),
    /// The keys of a SCRAM exchange: good where the same verifier is stored.
    Scram(Keys),
}

/// One of the hosts to try.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HostSpec {
    /// The name as typed; certificates are checked against it. `None` if only `hostaddr` was given.
    pub name: Option<String>,
    /// Where to connect to.
    pub address: HostAddress,
    /// 1 to 65535; for Unix sockets the number in the file's name.
    pub port: u16,
}

/// Where a host is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HostAddress {
    /// To be resolved; also an address in text form.
    Name(String),
    /// Given by `hostaddr`: no name is resolved.
    Ip(IpAddr),
    /// Directory of the socket file `.s.PGSQL.<port>`.
    UnixDirectory(PathBuf),
}

/// As libpq names it in messages: host and port, or the socket file.
impl fmt::Display for HostSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.address, &self.name) {
            (HostAddress::UnixDirectory(directory), _) => {
                write!(f, "{}/.s.PGSQL.{}", directory.display(), self.port)
            }
            (HostAddress::Ip(address), Some(name)) if *name != address.to_string() => {
                write!(f, "\"{name}\" ({address}), port {}", self.port)
            }
            (HostAddress::Ip(address), _) => write!(f, "\"{address}\", port {}", self.port),
            (HostAddress::Name(name), _) => write!(f, "\"{name}\", port {}", self.port),
        }
    }
}

/// Bytes that `Debug` does not show.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Wraps a password.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Secret {
        Secret(bytes.into())
    }

    /// The password.
    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// Socket options.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TcpOptions {
    /// Whether the kernel probes an idle connection.
    pub keepalives: bool,
    /// Idle time before the first probe; `None` for the system's.
    pub keepalives_idle: Option<Duration>,
    /// Time between probes; `None` for the system's.
    pub keepalives_interval: Option<Duration>,
    /// Lost probes before the connection is given up; `None` for the system's.
    pub keepalives_count: Option<u32>,
    /// How long sent data may stay unacknowledged; `None` for the system's.
    pub user_timeout: Option<Duration>,
}

/// Encryption.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TlsOptions {
    /// Whether to encrypt and what to check.
    pub mode: SslMode,
    /// How TLS starts.
    pub negotiation: SslNegotiation,
    /// Where trusted certificates come from; `None` if no file was named and there is no home directory.
    pub root_cert: Option<RootCert>,
    /// Our certificate; used if the file exists.
    pub cert: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
    /// Whether to send our certificate.
    pub cert_mode: SslCertMode,
    /// Passphrase of the key, `sslpassword`.
    pub key_password: Option<Secret>,
    /// Revoked certificates; used if the file exists.
    pub crl: Option<PathBuf>,
    /// A directory of such lists, named by the hashes of their issuers.
    pub crl_dir: Option<PathBuf>,
    /// Whether to tell the server which host name was wanted.
    pub sni: bool,
    /// Oldest version to speak.
    pub min_version: TlsVersion,
    /// Newest version to speak.
    pub max_version: TlsVersion,
}

/// `sslmode`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum SslMode {
    /// Never encrypt.
    Disable,
    /// Encrypt only if the server insists.
    Allow,
    /// Encrypt if the server can.
    Prefer,
    /// Encrypt; check the certificate only if trusted ones are at hand.
    Require,
    /// Encrypt; the certificate must be signed by a trusted one.
    VerifyCa,
    /// Encrypt; the certificate must be signed by a trusted one and name the host.
    VerifyFull,
}

impl SslMode {
    /// As typed.
    pub const fn as_str(self) -> &'static str {
        match self {
            SslMode::Disable => "disable",
            SslMode::Allow => "allow",
            SslMode::Prefer => "prefer",
            SslMode::Require => "require",
            SslMode::VerifyCa => "verify-ca",
            SslMode::VerifyFull => "verify-full",
        }
    }
}

/// `sslnegotiation`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SslNegotiation {
    /// SSLRequest first.
    Postgres,
    /// TLS from the first byte, with ALPN; servers from 17 on.
    Direct,
}

/// `sslrootcert`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RootCert {
    /// PEM file; without it nothing is checked, or the connection fails if `sslmode` asks for a check.
    File(PathBuf),
    /// The operating system's.
    System,
}

/// `sslcertmode`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SslCertMode {
    /// Send no certificate.
    Disable,
    /// Send ours if the server asks and we have one.
    Allow,
    /// The server must ask for ours.
    Require,
}

/// TLS versions that can be spoken.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum TlsVersion {
    /// 1.2
    V12,
    /// 1.3
    V13,
}

/// `channel_binding`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ChannelBinding {
    /// Never.
    Disable,
    /// If the server offers it.
    Prefer,
    /// Always, which also rules out all methods but SCRAM.
    Require,
}

/// `target_session_attrs`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TargetSessionAttrs {
    /// Any server.
    Any,
    /// Sessions can write.
    ReadWrite,
    /// Sessions cannot write.
    ReadOnly,
    /// Not in recovery.
    Primary,
    /// In recovery.
    Standby,
    /// In recovery if there is one, else any.
    PreferStandby,
}

impl ConnInfo {
    /// Reads a connection string, with service file, environment and defaults behind it in this order.
    ///
    /// # Errors
    /// The string is malformed, names an unknown option, or has a value that is wrong or not supported. Secrets
    /// do not appear in errors.
    pub fn parse(text: &str, environment: &Environment) -> Result<ConnInfo, ConnInfoError> {
        let mut settings = read(text)?;
        add_defaults(&mut settings, environment)?;
        validate::validate(&settings, environment).map_err(|error| match error {
            ConnInfoError::InvalidInteger { keyword: Keyword::Port, .. }
            | ConnInfoError::InvalidPort { .. }
                if uri::has_stray_at(text) =>
            {
                ConnInfoError::UriStrayAt
            }
            error => error,
        })
    }

    /// The same servers, as another role with other start-up parameters. The password file and the certificate are the
    /// relay's own: they are not used.
    pub fn in_the_name_of(
        &self,
        user: &str,
        credentials: &Credentials,
        parameters: Vec<(String, Vec<u8>)>,
    ) -> ConnInfo {
        let mut info = self.clone();
        info.user = user.to_owned();
        info.purpose = Purpose::Session(parameters);
        info.target_session_attrs = TargetSessionAttrs::Any;
        // It is the relay's: a client who has none must not satisfy with it who wants one of clients.
        info.tls.cert_mode = SslCertMode::Disable;
        (info.password, info.passfile, info.scram_keys, info.stored_md5) = (None, None, None, None);
        match credentials.clone() {
            Credentials::None => {}
            Credentials::Password(password) => info.password = Some(password),
            Credentials::Md5(hash) => info.stored_md5 = Some(hash),
            Credentials::Scram(keys) => info.scram_keys = Some(keys),
        }
        info
    }

    /// For a command, which calls itself so unless somebody has chosen another name than a relay's
    /// [default](DEFAULT_APPLICATION_NAME): commits may wait for whoever has that one.
    pub fn as_command(self, name: &str) -> ConnInfo {
        match self.application_name == DEFAULT_APPLICATION_NAME {
            true => ConnInfo { application_name: name.to_owned(), ..self },
            false => self,
        }
    }

    /// The same servers and role, for SQL in a database.
    pub fn for_sql(&self, database: &str) -> ConnInfo {
        let parameter = |name: &str, value: &str| (name.to_owned(), value.as_bytes().to_vec());
        let parameters = vec![
            parameter("database", database),
            parameter("application_name", &self.application_name),
            parameter("client_encoding", "UTF8"),
        ];
        ConnInfo {
            purpose: Purpose::Session(parameters),
            target_session_attrs: TargetSessionAttrs::Any,
            ..self.clone()
        }
    }

    /// The database's name in password files.
    fn passfile_database(&self) -> String {
        match &self.purpose {
            Purpose::Replication => REPLICATION_DATABASE.to_owned(),
            Purpose::Session(parameters) => {
                let database = parameters.iter().find(|(name, _)| name == "database");
                database.map_or(self.user.clone(), |(_, value)| String::from_utf8_lossy(value).into_owned())
            }
        }
    }

    /// The password for one of the hosts: the one given, else what the password file says now.
    ///
    /// # Errors
    /// The password file exists but must not be used. libpq warns and goes on without a password.
    pub fn password_for(&self, host: &HostSpec) -> Result<Option<Secret>, PassfileError> {
        let (None, Some(passfile)) = (&self.password, &self.passfile) else {
            return Ok(self.password.clone());
        };
        let (host_name, database) = (host.passfile_name(), self.passfile_database());
        let key = passfile::Key { host: &host_name, port: host.port, database: &database, user: &self.user };
        passfile::look_up(passfile, &key)
    }
}

impl HostSpec {
    /// PG: `passwordFromFile`, where the default socket directory goes by the name of `localhost`.
    fn passfile_name(&self) -> String {
        match (&self.name, &self.address) {
            (_, HostAddress::UnixDirectory(directory)) if validate::is_default_socket_dir(directory) => {
                "localhost".to_owned()
            }
            (Some(name), _) | (None, HostAddress::Name(name)) => name.clone(),
            (None, HostAddress::Ip(address)) => address.to_string(),
            (None, HostAddress::UnixDirectory(directory)) => directory.display().to_string(),
        }
    }
}

/// One line for logs: who connects where, in the words of a connection string.
impl fmt::Display for ConnInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |part: fn(&HostSpec) -> String| self.hosts.iter().map(part).collect::<Vec<_>>().join(",");
        let host = list(|host| match (&host.name, &host.address) {
            (Some(name), _) | (None, HostAddress::Name(name)) => name.clone(),
            (None, HostAddress::Ip(address)) => address.to_string(),
            (None, HostAddress::UnixDirectory(directory)) => directory.display().to_string(),
        });
        let port = list(|host| host.port.to_string());
        write!(f, "host={host} port={port} user={}", self.user)?;
        write!(f, " application_name={} sslmode={}", self.application_name, self.tls.mode.as_str())
    }
}

/// What is wrong with a connection string. Values of secret options never appear.
#[derive(Debug, thiserror::Error)]
pub enum ConnInfoError {
    /// A word without `=`.
    #[error("missing \"=\" after \"{}\" in connection info string", redact(name))]
    MissingEquals {
        /// The word.
        name: String,
    },
    /// A word without `=` after a secret, most likely part of it.
    #[error(
        "missing \"=\" after the value of \"{keyword}\" in connection info string; put a value with spaces in single quotes"
    )]
    SecretWithSpaces {
        /// The option before the word.
        keyword: Keyword,
    },
    /// A quote without its end.
    #[error("unterminated quoted string in connection info string")]
    UnterminatedQuote,
    /// A zero byte, which no option can hold.
    #[error("zero byte in connection info string")]
    ZeroByte,
    /// No such option.
    #[error("invalid connection option \"{}\"", redact(name))]
    UnknownOption {
        /// As typed.
        name: String,
    },
    /// No such option, in a URI.
    #[error("invalid URI query parameter: \"{}\"", redact(name))]
    UriParameter {
        /// As typed.
        name: String,
    },
    /// A query parameter without `=`.
    #[error("missing key/value separator \"=\" in URI query parameter")]
    UriMissingEquals,
    /// A query parameter with two `=`.
    #[error("extra key/value separator \"=\" in URI query parameter: \"{}\"", redact(name))]
    UriExtraEquals {
        /// The option.
        name: String,
    },
    /// What is no credentials for libpq, and meant to be.
    #[error(
        "\"@\" behind the host part of the URI: if it ends a password, percent-encode the password's special characters \
         (%40 for \"@\", %2F for \"/\", %3A for \":\"), else write %40"
    )]
    UriStrayAt,
    /// A host name with `@`, most likely the end of a password. Not shown.
    #[error(
        "a host name contains \"@\": if it ends a password, percent-encode the password's special characters (%40 for \"@\"), or \
         give the password by password=... or a password file"
    )]
    AtInHost,
    /// `[` without `]`.
    #[error("end of string reached when looking for matching \"]\" in IPv6 host address in URI")]
    UriBracket,
    /// `[]`.
    #[error("IPv6 host address may not be empty in URI")]
    UriEmptyAddress,
    /// Something odd after `]`.
    #[error("unexpected character \"{character}\" after \"]\" in URI (expected \":\" or \"/\")")]
    UriAfterBracket {
        /// What was found.
        character: char,
    },
    /// `%` without two hexadecimal digits.
    #[error("invalid percent-encoded token in {part} of URI")]
    UriEncoding {
        /// Which part.
        part: &'static str,
    },
    /// `%00`.
    #[error("forbidden value %00 in {part} of URI")]
    UriZero {
        /// Which part.
        part: &'static str,
    },
    /// A blank within.
    #[error("unexpected spaces found in {part} of URI, use percent-encoded spaces (%20) instead")]
    UriSpaces {
        /// Which part.
        part: &'static str,
    },
    /// Encoded bytes that are no UTF-8.
    #[error("{part} of URI is not UTF-8")]
    UriNotUtf8 {
        /// Which part.
        part: &'static str,
    },
    /// The named service is in no file.
    #[error("definition of service \"{service}\" not found")]
    ServiceNotFound {
        /// Its name.
        service: String,
    },
    /// A service file cannot be read.
    #[error("could not read service file \"{}\": {source}", path.display())]
    ServiceFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A service file is malformed.
    #[error("syntax error in service file \"{}\", line {line}: {problem}", path.display())]
    ServiceLine {
        /// The file.
        path: PathBuf,
        /// Line number, from 1.
        line: usize,
        /// What is wrong.
        problem: &'static str,
    },
    /// A value that libpq would refuse too.
    #[error("invalid {keyword} value: \"{}\"", redact(value))]
    InvalidValue {
        /// The option.
        keyword: Keyword,
        /// Its value.
        value: String,
    },
    /// A key that is not 32 bytes in base64.
    #[error("invalid {keyword} value")]
    InvalidSecret {
        /// The option.
        keyword: Keyword,
    },
    /// A value that libpq would honour and walrelay cannot.
    #[error("{keyword} value \"{}\" is not supported by walrelay", redact(value))]
    Unsupported {
        /// The option.
        keyword: Keyword,
        /// Its value.
        value: String,
    },
    /// Not a number.
    #[error("invalid integer value \"{}\" for connection option \"{keyword}\"", redact(value))]
    InvalidInteger {
        /// The option.
        keyword: Keyword,
        /// Its value.
        value: String,
    },
    /// Not a number from 1 to 65535.
    #[error("invalid port number: \"{value}\"")]
    InvalidPort {
        /// As typed.
        value: String,
    },
    /// Not an address.
    #[error("could not parse network address \"{}\"", redact(value))]
    InvalidAddress {
        /// As typed.
        value: String,
    },
    /// Lists of different length.
    #[error("could not match {names} host names to {addresses} hostaddr values")]
    HostCount {
        /// Elements of `host`.
        names: usize,
        /// Elements of `hostaddr`.
        addresses: usize,
    },
    /// Lists of different length.
    #[error("could not match {ports} port numbers to {hosts} hosts")]
    PortCount {
        /// Elements of `port`.
        ports: usize,
        /// Elements of `host` or `hostaddr`.
        hosts: usize,
    },
    /// A combination that promises more than it keeps.
    #[error(
        "weak sslmode \"{mode}\" may not be used with sslnegotiation=direct (use \"require\", \"verify-ca\", or \"verify-full\")"
    )]
    WeakForDirect {
        /// `sslmode`.
        mode: &'static str,
    },
    /// A combination that promises more than it keeps.
    #[error("weak sslmode \"{mode}\" may not be used with sslrootcert=system (use \"verify-full\")")]
    WeakForSystem {
        /// `sslmode`.
        mode: &'static str,
    },
    /// Oldest newer than newest.
    #[error("invalid SSL protocol version range")]
    TlsRange,
    /// Oldest newer than newest.
    #[error("\"min_protocol_version\" is greater than \"max_protocol_version\"")]
    ProtocolRange,
    /// `!method` after `method`.
    #[error("negative require_auth method \"{method}\" cannot be mixed with non-negative methods")]
    RequireAuthNegative {
        /// As typed.
        method: String,
    },
    /// `method` after `!method`.
    #[error("require_auth method \"{method}\" cannot be mixed with negative methods")]
    RequireAuthPositive {
        /// As typed.
        method: String,
    },
    /// Twice the same.
    #[error("require_auth method \"{method}\" is specified more than once")]
    RequireAuthTwice {
        /// As typed.
        method: String,
    },
    /// No user given, and the operating system knows none.
    #[error("no user name given, and the local user has none; add user=... to the connection string")]
    NoUser,
}

/// The settings of the string alone.
fn read(text: &str) -> Result<options::Settings, ConnInfoError> {
    if text.contains('\0') {
        return Err(ConnInfoError::ZeroByte);
    }
    let mut settings = options::Settings::default();
    if let Some(rest) = uri::strip_scheme(text) {
        uri::parse(rest, &mut settings)?;
    } else if uri::parse_bare(text, &mut settings).is_none() {
        keyword_value::parse(text, &mut settings)?;
    }
    Ok(settings)
}

/// PG: `conninfo_add_defaults`.
fn add_defaults(settings: &mut options::Settings, environment: &Environment) -> Result<(), ConnInfoError> {
    service::apply(settings, environment)?;
    for keyword in Keyword::ALL.iter().copied() {
        if let Some(value) = keyword.variable().and_then(|name| environment.variable(name)) {
            settings.set_if_missing(keyword, value.to_owned());
        }
    }
    if environment.variable("PGREQUIRESSL").is_some_and(|value| value.starts_with('1')) {
        settings.set_if_missing(Keyword::Sslmode, "require".to_owned());
    }
    if settings.get(Keyword::Sslrootcert) == Some("system") {
        settings.set_if_missing(Keyword::Sslmode, "verify-full".to_owned());
    }
    for keyword in Keyword::ALL.iter().copied() {
        if let Some(value) = keyword.default() {
            settings.set_if_missing(keyword, value.to_owned());
        }
    }
    Ok(())
}

/// C's `isspace` in the C locale.
fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t'..='\r')
}
