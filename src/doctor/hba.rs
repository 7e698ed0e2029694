//! The relay's own rules for who connects: whether they let a standby in, as it would come.

use std::net::IpAddr;
use std::time::Duration;

use super::answered;
use super::consumer::Told;
use super::finding::{Finding, Findings, remedy};
use crate::auth::hba::{Fact, Facts, Found, Hba, Method, Place, Request, Target};
use crate::config::Config;
use crate::conninfo::{ConnInfo, Environment, HostAddress, HostSpec, SslMode};

/// How long a name service may take.
const LIMIT: Duration = Duration::from_secs(5);

/// Who a server runs as, and so logs in as, when its primary_conninfo does not say.
pub(super) const SERVERS_USER: &str = "postgres";

/// How a standby comes to the relay.
#[derive(Clone, Debug)]
pub(super) struct Coming {
    pub(super) user: String,
    /// `None` through a Unix socket.
    pub(super) ip: Option<IpAddr>,
    pub(super) mode: SslMode,
    pub(super) facts: Facts,
    /// Whether it streams already, from wherever.
    pub(super) streams: bool,
}

/// What one of its attempts meets.
enum Answer<'a> {
    In(&'a Place),
    Rejected(&'a Place),
    NoLine,
    /// It depends on what cannot be found out here.
    Unknown,
}

/// Looks whether it would be let in. Nothing is found where the standby does not tell how it comes, or the rules cannot be read, which
/// is [said](super::configuration) otherwise.
pub(super) async fn look(config: &Config, name: &str, told: &Told) -> Vec<Finding> {
    let hba = match config.hba_file.clone() {
        Some(path) => answered(move || Hba::load(&path).ok()).await.flatten(),
        None => Some(Hba::builtin()),
    };
    match (hba, coming(told).await) {
        (Some(hba), Some(coming)) => diagnose(name, &hba, config, &coming),
        _ => Vec::new(),
    }
}

fn diagnose(name: &str, hba: &Hba, config: &Config, coming: &Coming) -> Vec<Finding> {
    let file = config.hba_file.as_ref().map(|path| path.display().to_string());
    judge(name, hba, file.as_deref(), config.tls.is_some(), coming)
}

async fn coming(told: &Told) -> Option<Coming> {
    let conninfo = told.setting("primary_conninfo");
    if conninfo.is_empty() {
        return None;
    }
    let info = ConnInfo::parse(conninfo, &Environment::of_user(SERVERS_USER)).ok()?;
    let ip = source(info.hosts.first()?, told.server_addr).await?;
    let host_name = match ip {
        Some(ip) => tokio::time::timeout(LIMIT, host_name(ip)).await.ok(),
        None => Some(None),
    };
    let facts = Facts { host_name, member_of: Some(told.member_of.clone()) };
    let streams = told.receiver.as_ref().is_some_and(|receiver| receiver.status == "streaming");
    Some(Coming { user: info.user, ip, mode: info.tls.mode, facts, streams })
}

/// The address that it has for the relay: `Some(None)` for none, `None` if it cannot be told. Who goes to an address of its own
/// machine comes from that one.
async fn source(relay: &HostSpec, own: Option<IpAddr>) -> Option<Option<IpAddr>> {
    let (relay, is_here) = match &relay.address {
        HostAddress::UnixDirectory(_) => return Some(None),
        HostAddress::Ip(ip) => (Some(*ip), ip.is_loopback()),
        HostAddress::Name(name) => {
            let ip = match name.parse() {
                Ok(ip) => Some(ip),
                Err(_) => resolved(name).await,
            };
            // A machine's own name leads to its loopback interface here, and not from elsewhere.
            let is_here = ip.is_some_and(|ip| ip.is_loopback())
                && (name.parse::<IpAddr>().is_ok() || name == "localhost");
            (ip, is_here)
        }
    };
    match own.filter(|own| !own.is_loopback() && !is_here) {
        Some(own) => Some(Some(own))
            .filter(|_| relay.is_none_or(|relay| relay.is_ipv4() == own.is_ipv4() || relay.is_loopback())),
        None => relay.map(Some),
    }
}

async fn resolved(name: &str) -> Option<IpAddr> {
    let found = tokio::time::timeout(LIMIT, tokio::net::lookup_host((name, 0))).await.ok()?.ok()?;
    found.map(|address| address.ip()).next()
}

/// The name that leads back to it.
async fn host_name(ip: IpAddr) -> Option<String> {
    let name = tokio::task::spawn_blocking(move || dns_lookup::lookup_addr(&ip)).await.ok()?.ok()?;
    // Where there is no name, it is the address.
    let is_name = name.parse::<IpAddr>().is_err();
    let leads_back = tokio::net::lookup_host((name.as_str(), 0)).await.ok()?.any(|back| back.ip() == ip);
    (is_name && leads_back).then_some(name)
}

/// What of that somebody should know. `file` has the rules, if one has; `tls` is what the relay offers.
pub(super) fn judge(name: &str, hba: &Hba, file: Option<&str>, tls: bool, coming: &Coming) -> Vec<Finding> {
    let mut found = Findings::about(format!("consumer {name}"));
    let attempts = attempts(coming, tls);
    if attempts.is_empty() {
        let text =
            format!("its sslmode is {}, and the relay has no TLS: it does not get in", coming.mode.as_str());
        let how = "give the relay --ssl-cert-file and --ssl-key-file; or, if the line is safe, sslmode=prefer in its primary_conninfo";
        found.error("consumer_tls", text, remedy([how]));
        return found.into_inner();
    }
    let answers: Vec<_> = attempts.iter().map(|&ssl| answer(hba, coming, ssl)).collect();
    let who = format!(
        "role \"{}\" {}{}",
        coming.user,
        coming.ip.map_or_else(|| "over its Unix socket".to_owned(), |ip| format!("from {ip}")),
        if attempts == [true] { " with TLS" } else { "" },
    );
    let shown = file.map_or_else(|| "the built-in rules".to_owned(), |file| format!("\"{file}\""));
    if let Some(place) =
        answers.iter().find_map(|it| if let Answer::In(place) = it { Some(place) } else { None })
    {
        found.ok("consumer_hba", format!("{place} lets {who} in for replication"));
        return found.into_inner();
    }
    if answers.iter().any(|it| matches!(it, Answer::Unknown)) {
        let text = format!("whether {shown} lets {who} in depends on a host name that was not found out");
        found.ok("consumer_hba", text);
        return found.into_inner();
    }
    let rejected =
        answers.iter().find_map(|it| if let Answer::Rejected(place) = it { Some(*place) } else { None });
    let line = line(coming, &attempts);
    let (text, add) = match (rejected, file) {
        (Some(place), _) => (
            format!("{place} rejects {who} for replication, and no line before it lets it in"),
            format!("put before line {} of \"{}\": {line}", place.line(), place.path().display()),
        ),
        (None, Some(file)) => (
            format!("no line of {shown} lets {who} in for replication"),
            format!("add to \"{file}\": {line}"),
        ),
        (None, None) => (
            format!("{shown} let {who} not in for replication: without --hba-file only this machine gets in"),
            format!(
                "write a file, with the lines of all others who connect, and give it to the relay as --hba-file: {line}"
            ),
        ),
    };
    let reload = "RELOAD;   -- in the database walrelay of the relay, or: systemctl reload walrelay";
    let nat = "if the relay sees it come from another address (NAT, several interfaces), that one goes into the line";
    let remedy = remedy([add.as_str(), reload, nat]);
    // It may have been let in by what the file was, or come from another address than it seems.
    match coming.streams {
        true => found.warning("consumer_hba", text, remedy),
        false => found.error("consumer_hba", text, remedy),
    }
    found.into_inner()
}

/// Whether each of its attempts is with TLS (libpq: `sslmode`).
fn attempts(coming: &Coming, tls: bool) -> Vec<bool> {
    let both: &[bool] = match coming.mode {
        _ if coming.ip.is_none() => &[false],
        SslMode::Disable => &[false],
        SslMode::Allow => &[false, true],
        SslMode::Prefer => &[true, false],
        SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull => &[true],
    };
    both.iter().copied().filter(|with| tls || !with).collect()
}

fn answer<'a>(hba: &'a Hba, coming: &Coming, ssl: bool) -> Answer<'a> {
    let request = Request { ip: coming.ip, ssl, target: Target::Replication, user: &coming.user };
    match hba.find(&request, &coming.facts) {
        Found::Rule(rule) if rule.method() == Method::Reject => Answer::Rejected(rule.place()),
        Found::Rule(rule) => Answer::In(rule.place()),
        Found::Nothing => Answer::NoLine,
        Found::Unknown(Fact::HostName | Fact::Membership) => Answer::Unknown,
    }
}

/// The line that lets it in, and nobody else.
fn line(coming: &Coming, attempts: &[bool]) -> String {
    let user = word(&coming.user);
    let Some(ip) = coming.ip else { return format!("local  replication  {user}  scram-sha-256") };
    let transport = if attempts == [true] { "hostssl" } else { "host" };
    let bits = if ip.is_ipv4() { 32 } else { 128 };
    format!("{transport}  replication  {user}  {ip}/{bits}  scram-sha-256")
}

/// As the file wants a name: in quotes where it could be something else.
fn word(name: &str) -> String {
    let is_plain =
        name != "all" && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte));
    if is_plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}
