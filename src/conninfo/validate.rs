//! From texts by keyword to checked values (PG: `pqConnectOptions2` and the checks made while connecting).

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;

use super::ConnInfoError as Error;
use super::options::{Keyword, Settings};
use super::{
    ChannelBinding, ConnInfo, DEFAULT_APPLICATION_NAME, Environment, HostAddress, HostSpec, OwnAddresses,
    Purpose, RequireAuth, RootCert, Secret, SslCertMode, SslMode, SslNegotiation, TargetSessionAttrs,
    TcpOptions, TlsOptions, TlsVersion, is_space,
};
use crate::auth::scram::{Key, Keys};

/// Where packaged and self-built servers put their sockets; the first that exists is the default host.
const SOCKET_DIRECTORIES: [&str; 2] = ["/var/run/postgresql", "/tmp"];
const DEFAULT_PORT: u16 = 5432;

pub(super) fn validate(settings: &Settings, environment: &Environment) -> Result<ConnInfo, Error> {
    check_unsupported(settings)?;
    check_protocol_versions(settings)?;
    let text = |keyword| settings.non_empty(keyword).map(str::to_owned);
    let user = text(Keyword::User).or_else(|| environment.user().map(str::to_owned));
    let passfile = text(Keyword::Passfile).map(PathBuf::from);
    let application_name = text(Keyword::ApplicationName).or_else(|| text(Keyword::FallbackApplicationName));
    let timeout = integer(settings, Keyword::ConnectTimeout)?.filter(|seconds| *seconds > 0);
    Ok(ConnInfo {
        hosts: hosts(settings)?,
        user: user.ok_or(Error::NoUser)?,
        purpose: Purpose::Replication,
        dbname: text(Keyword::Dbname),
        password: settings.non_empty(Keyword::Password).map(Secret::new),
        passfile: passfile.or_else(|| environment.home().map(|home| home.join(".pgpass"))),
        require_auth: RequireAuth::parse(settings.get(Keyword::RequireAuth).unwrap_or_default())?,
        channel_binding: choose(settings, Keyword::ChannelBinding, &CHANNEL_BINDINGS)?,
        tls: tls(settings, environment)?,
        target_session_attrs: choose(settings, Keyword::TargetSessionAttrs, &SESSION_ATTRS)?,
        scram_keys: scram_keys(settings)?,
        stored_md5: None,
        load_balance_hosts: choose(settings, Keyword::LoadBalanceHosts, &LOAD_BALANCE)?,
        application_name: application_name.unwrap_or_else(|| DEFAULT_APPLICATION_NAME.to_owned()),
        options: text(Keyword::Options),
        client_encoding: text(Keyword::ClientEncoding).map(client_encoding),
        connect_timeout: timeout.map(|seconds| Duration::from_secs(seconds.into())),
        tcp: tcp(settings)?,
        require_peer: text(Keyword::Requirepeer),
        own: OwnAddresses::default(),
    })
}

const CHANNEL_BINDINGS: [(&str, ChannelBinding); 3] = [
    ("disable", ChannelBinding::Disable),
    ("prefer", ChannelBinding::Prefer),
    ("require", ChannelBinding::Require),
];
const SSL_MODES: [(&str, SslMode); 6] = [
    ("disable", SslMode::Disable),
    ("allow", SslMode::Allow),
    ("prefer", SslMode::Prefer),
    ("require", SslMode::Require),
    ("verify-ca", SslMode::VerifyCa),
    ("verify-full", SslMode::VerifyFull),
];
const SSL_NEGOTIATIONS: [(&str, SslNegotiation); 2] =
    [("postgres", SslNegotiation::Postgres), ("direct", SslNegotiation::Direct)];
const SSL_CERT_MODES: [(&str, SslCertMode); 3] =
    [("disable", SslCertMode::Disable), ("allow", SslCertMode::Allow), ("require", SslCertMode::Require)];
const SESSION_ATTRS: [(&str, TargetSessionAttrs); 6] = [
    ("any", TargetSessionAttrs::Any),
    ("read-write", TargetSessionAttrs::ReadWrite),
    ("read-only", TargetSessionAttrs::ReadOnly),
    ("primary", TargetSessionAttrs::Primary),
    ("standby", TargetSessionAttrs::Standby),
    ("prefer-standby", TargetSessionAttrs::PreferStandby),
];
const LOAD_BALANCE: [(&str, bool); 2] = [("disable", false), ("random", true)];
/// Whether the mode needs GSSAPI encryption, which we do not have.
const GSS_MODES: [(&str, bool); 3] = [("disable", false), ("prefer", false), ("require", true)];

fn choose<T: Copy>(settings: &Settings, keyword: Keyword, choices: &[(&str, T)]) -> Result<T, Error> {
    let value = settings.get(keyword).unwrap_or_default();
    let found = choices.iter().find(|(name, _)| *name == value).map(|(_, choice)| *choice);
    found.ok_or_else(|| Error::InvalidValue { keyword, value: value.to_owned() })
}

/// What libpq would act upon and we cannot.
fn check_unsupported(settings: &Settings) -> Result<(), Error> {
    if choose(settings, Keyword::Gssencmode, &GSS_MODES)? {
        return unsupported(settings, Keyword::Gssencmode);
    }
    if settings.non_empty(Keyword::Sslkeylogfile).is_some() {
        return unsupported(settings, Keyword::Sslkeylogfile);
    }
    Ok(())
}

fn unsupported<T>(settings: &Settings, keyword: Keyword) -> Result<T, Error> {
    Err(Error::Unsupported { keyword, value: settings.get(keyword).unwrap_or_default().to_owned() })
}

/// We speak 3.0 only, which any maximum allows.
fn check_protocol_versions(settings: &Settings) -> Result<(), Error> {
    let version = |keyword| match settings.get(keyword) {
        None => Ok(None),
        Some("3.0") => Ok(Some(0)),
        Some("3.2" | "latest") => Ok(Some(2)),
        Some(value) => Err(Error::InvalidValue { keyword, value: value.to_owned() }),
    };
    match (version(Keyword::MinProtocolVersion)?, version(Keyword::MaxProtocolVersion)?) {
        (Some(min), Some(max)) if min > max => Err(Error::ProtocolRange),
        (Some(1..), _) => unsupported(settings, Keyword::MinProtocolVersion),
        _ => Ok(()),
    }
}

fn hosts(settings: &Settings) -> Result<Vec<HostSpec>, Error> {
    let list = |keyword| settings.non_empty(keyword).map(|text| text.split(',').collect::<Vec<_>>());
    let (names, addresses) = (list(Keyword::Host), list(Keyword::Hostaddr));
    let count = addresses.as_ref().or(names.as_ref()).map_or(1, Vec::len);
    if let (Some(names), Some(addresses)) = (&names, &addresses)
        && names.len() != addresses.len()
    {
        return Err(Error::HostCount { names: names.len(), addresses: addresses.len() });
    }
    let ports = list(Keyword::Port).unwrap_or_else(|| vec![""]);
    if ports.len() != 1 && ports.len() != count {
        return Err(Error::PortCount { ports: ports.len(), hosts: count });
    }
    let element = |list: &Option<Vec<&str>>, index: usize| {
        list.as_ref()
            .and_then(|list| list.get(index))
            .filter(|text| !text.is_empty())
            .map(|text| (*text).to_owned())
    };
    let host = |index: usize| {
        let port = port(ports.get(index).unwrap_or(&ports[0]))?;
        host(element(&names, index), element(&addresses, index), port)
    };
    (0..count).map(host).collect()
}

fn host(name: Option<String>, address: Option<String>, port: u16) -> Result<HostSpec, Error> {
    let address = match (&name, address) {
        (_, Some(text)) => parse_address(text)?,
        (Some(name), None) if name.starts_with('/') => HostAddress::UnixDirectory(name.into()),
        (Some(name), None) if name.starts_with('@') => {
            return Err(Error::Unsupported { keyword: Keyword::Host, value: name.clone() });
        }
        (Some(name), None) if name.contains('@') => return Err(Error::AtInHost),
        (Some(name), None) => HostAddress::Name(name.clone()),
        (None, None) => HostAddress::UnixDirectory(default_socket_dir()),
    };
    Ok(HostSpec { name, address, port })
}

fn parse_address(text: String) -> Result<HostAddress, Error> {
    match (text.parse::<IpAddr>(), text.split_once('%')) {
        (Ok(address), _) => Ok(HostAddress::Ip(address)),
        // The zone of a link-local address means something to the system's resolver only.
        (_, Some((address, _))) if address.parse::<std::net::Ipv6Addr>().is_ok() => {
            Ok(HostAddress::Name(text))
        }
        _ => Err(Error::InvalidAddress { value: text }),
    }
}

fn port(text: &str) -> Result<u16, Error> {
    if text.is_empty() {
        return Ok(DEFAULT_PORT);
    }
    let number = parse_integer(text)
        .ok_or_else(|| Error::InvalidInteger { keyword: Keyword::Port, value: text.to_owned() })?;
    let port = u16::try_from(number).ok().filter(|port| *port != 0);
    port.ok_or_else(|| Error::InvalidPort { value: text.to_owned() })
}

fn default_socket_dir() -> PathBuf {
    let [first, second] = SOCKET_DIRECTORIES;
    PathBuf::from(if Path::new(first).is_dir() { first } else { second })
}

pub(super) fn is_default_socket_dir(directory: &Path) -> bool {
    SOCKET_DIRECTORIES.iter().any(|default| Path::new(default) == directory)
}

fn client_encoding(name: String) -> String {
    // What libpq's "auto" takes from the locale; nothing that depends on it is read here.
    if name == "auto" { "UTF8".to_owned() } else { name }
}

fn tcp(settings: &Settings) -> Result<TcpOptions, Error> {
    let positive = |keyword| Ok::<_, Error>(integer(settings, keyword)?.filter(|number| *number > 0));
    let seconds =
        |keyword| Ok::<_, Error>(positive(keyword)?.map(|number| Duration::from_secs(number.into())));
    let user_timeout = positive(Keyword::TcpUserTimeout)?;
    Ok(TcpOptions {
        keepalives: integer(settings, Keyword::Keepalives)?.is_none_or(|number| number != 0),
        keepalives_idle: seconds(Keyword::KeepalivesIdle)?,
        keepalives_interval: seconds(Keyword::KeepalivesInterval)?,
        keepalives_count: positive(Keyword::KeepalivesCount)?,
        user_timeout: user_timeout.map(|number| Duration::from_millis(number.into())),
    })
}

/// The option as a number, negative ones as 0, which means the same everywhere.
fn integer(settings: &Settings, keyword: Keyword) -> Result<Option<u32>, Error> {
    let Some(text) = settings.get(keyword) else {
        return Ok(None);
    };
    let number =
        parse_integer(text).ok_or_else(|| Error::InvalidInteger { keyword, value: text.to_owned() })?;
    Ok(Some(u32::try_from(number).unwrap_or(0)))
}

/// PG: `pqParseIntParam`: a C `int` in decimal, white space around it allowed.
fn parse_integer(text: &str) -> Option<i32> {
    text.trim_matches(is_space).parse().ok()
}

fn tls(settings: &Settings, environment: &Environment) -> Result<TlsOptions, Error> {
    let in_home = |name: &str| environment.home().map(|home| home.join(".postgresql").join(name));
    let file =
        |keyword, default: &str| settings.non_empty(keyword).map(PathBuf::from).or_else(|| in_home(default));
    let mode = choose(settings, Keyword::Sslmode, &SSL_MODES)?;
    let negotiation = choose(settings, Keyword::Sslnegotiation, &SSL_NEGOTIATIONS)?;
    if negotiation == SslNegotiation::Direct && mode < SslMode::Require {
        return Err(Error::WeakForDirect { mode: mode.as_str() });
    }
    let root_cert = match settings.get(Keyword::Sslrootcert) {
        Some("system") if mode != SslMode::VerifyFull => {
            return Err(Error::WeakForSystem { mode: mode.as_str() });
        }
        Some("system") => Some(RootCert::System),
        _ => file(Keyword::Sslrootcert, "root.crt").map(RootCert::File),
    };
    let crl_dir = settings.non_empty(Keyword::Sslcrldir).map(PathBuf::from);
    let crl = match &crl_dir {
        // No default beside it.
        Some(_) => settings.non_empty(Keyword::Sslcrl).map(PathBuf::from),
        None => file(Keyword::Sslcrl, "root.crl"),
    };
    let (min_version, max_version) = tls_versions(settings)?;
    Ok(TlsOptions {
        mode,
        negotiation,
        root_cert,
        cert: file(Keyword::Sslcert, "postgresql.crt"),
        key: file(Keyword::Sslkey, "postgresql.key"),
        cert_mode: choose(settings, Keyword::Sslcertmode, &SSL_CERT_MODES)?,
        key_password: settings.get(Keyword::Sslpassword).map(Secret::new),
        crl,
        crl_dir,
        sni: settings.get(Keyword::Sslsni).is_some_and(|value| value.starts_with('1')),
        min_version,
        max_version,
    })
}

/// PG: `sslVerifyProtocolVersion`, `sslVerifyProtocolRange`. Versions before 1.2 are known but never spoken.
fn tls_versions(settings: &Settings) -> Result<(TlsVersion, TlsVersion), Error> {
    let minor = |keyword| match settings.non_empty(keyword) {
        None => Ok(None),
        Some(value) => ["TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"]
            .iter()
            .position(|name| name.eq_ignore_ascii_case(value))
            .map(Some)
            .ok_or_else(|| Error::InvalidValue { keyword, value: value.to_owned() }),
    };
    let (min, max) = (minor(Keyword::SslMinProtocolVersion)?, minor(Keyword::SslMaxProtocolVersion)?);
    if let (Some(min), Some(max)) = (min, max)
        && min > max
    {
        return Err(Error::TlsRange);
    }
    let newest = match max {
        Some(0 | 1) => return unsupported(settings, Keyword::SslMaxProtocolVersion),
        Some(2) => TlsVersion::V12,
        _ => TlsVersion::V13,
    };
    let oldest = if min == Some(3) { TlsVersion::V13 } else { TlsVersion::V12 };
    Ok((oldest, newest))
}

fn scram_keys(settings: &Settings) -> Result<Option<Keys>, Error> {
    let key = |keyword| match settings.get(keyword) {
        None => Ok(None),
        Some(text) => {
            let bytes = base64::engine::general_purpose::STANDARD.decode(text).ok();
            let bytes = bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
            bytes.map(|bytes| Some(Key::new(bytes))).ok_or(Error::InvalidSecret { keyword })
        }
    };
    match (key(Keyword::ScramClientKey)?, key(Keyword::ScramServerKey)?) {
        (Some(client_key), Some(server_key)) => Ok(Some(Keys { client_key, server_key })),
        (None, None) => Ok(None),
        // One alone cannot both prove us to the server and the server to us.
        (Some(_), None) => Err(Error::InvalidSecret { keyword: Keyword::ScramServerKey }),
        (None, Some(_)) => Err(Error::InvalidSecret { keyword: Keyword::ScramClientKey }),
    }
}
