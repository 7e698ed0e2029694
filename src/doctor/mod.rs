//! `walrelay doctor`: what goes wrong in practice, before and while a relay runs, with the cause and what to type.
//!
//! Everybody is asked side by side (`ask`, and the first half of each part); what they say is judged by functions without I/O, a
//! part each: `upstream`, `relay`, `host`, `consumer` with its `restore` command.

mod ask;
mod consumer;
mod finding;
mod host;
mod relay;
mod restore;
#[cfg(test)]
mod tests;
mod upstream;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use futures_util::future::join_all;
use serde::Serialize;

use crate::config::{Config, DoctorArgs};
use crate::conninfo::{ConnInfo, Environment, HostAddress, HostSpec};
use crate::error::RelayError;
use crate::out::{self, say};
use crate::show::{self, ShowError};
use crate::status::{FenceStatus, SlotStatus, Status};
use crate::store::offline;

pub use finding::{Finding, Severity};

/// The database that consumers are asked in.
const DATABASE: &str = "postgres";

/// What was found, as JSON.
#[derive(Debug, Serialize)]
struct Report {
    /// The worst of all.
    severity: Severity,
    findings: Vec<Finding>,
}

/// Asks, judges and shows. 0 if all is well, 1 if somebody should do something.
pub(crate) async fn run(args: &DoctorArgs, environment: &Environment) -> Result<u8, RelayError> {
    let findings = findings(args, environment).await?;
    let severity = findings.iter().map(|it| it.severity).max().unwrap_or(Severity::Ok);
    if args.json {
        let report = Report { severity, findings };
        let failed = |error: serde_json::Error| RelayError::System {
            action: "could not write JSON",
            source: error.into(),
        };
        say!("{}", serde_json::to_string_pretty(&report).map_err(failed)?);
    } else {
        out::write(format_args!("{}", table(&findings, args.verbose)));
    }
    Ok(u8::from(severity != Severity::Ok))
}

/// Asks and judges.
pub(crate) async fn findings(
    args: &DoctorArgs,
    environment: &Environment,
) -> Result<Vec<Finding>, RelayError> {
    let config = Config::to_check(&args.check, environment)?;
    if args.try_restore && rustix::process::geteuid().is_root() {
        // Whoever may change a standby's settings could do anything here.
        let text =
            "--try-restore runs commands out of standbys' settings: not as root; run it as the servers' user";
        return Err(RelayError::System {
            action: "could not try a restore_command",
            source: std::io::Error::other(text),
        });
    }
    let consumers = args.consumers(environment)?;
    let relay = args.relay(&config, environment)?;
    let mut findings = configuration(&config);
    findings.extend(examine(args, &config, &relay, &consumers).await);
    Ok(findings)
}

/// What a start would refuse.
fn configuration(config: &Config) -> Vec<Finding> {
    let mut found = finding::Findings::about("host");
    match crate::relay::check(config) {
        Ok(()) => found.ok("configuration", "the configuration is good, and so are the files that it names"),
        Err(error) => {
            found.error(
                "configuration",
                error.to_string(),
                finding::remedy(["walrelay check-config says the same, with file and line"]),
            );
        }
    }
    found.into_inner()
}

async fn examine(
    args: &DoctorArgs,
    config: &Config,
    relay: &ConnInfo,
    consumers: &[ConnInfo],
) -> Vec<Finding> {
    let dir = config.store.data_dir.clone();
    let certificates: Vec<PathBuf> = config.tls.iter().map(|tls| tls.cert.clone()).collect();
    let host = tokio::task::spawn_blocking(move || host::look(&dir, &certificates));
    let upstream = upstream::ask(&config.upstream, &config.auth_dbname);
    let told = join_all(consumers.iter().map(|info| consumer::ask(info, DATABASE)));
    let (host, upstream, status, told) = tokio::join!(host, upstream, show::status_of(relay), told);
    let seen = seen(config, status);
    let wanted = wanted(config, &seen);
    let newest = upstream.identity.as_ref().ok().map(|identity| identity.timeline);
    let expected = expected(config, &seen, upstream.identity.as_ref().ok());
    let mut findings = upstream::diagnose(&upstream, &wanted);
    findings.extend(relay::diagnose(&seen, newest));
    findings.extend(host.map(|facts| host::diagnose(&facts)).unwrap_or_default());
    for (info, mut told) in consumers.iter().zip(told) {
        if let (true, Ok(told)) = (args.try_restore, &mut told) {
            told.tried = attempt(told, &seen).await;
        }
        findings.extend(consumer::diagnose(&name(info), &told, &expected));
    }
    findings
}

fn seen(config: &Config, status: Result<Status, ShowError>) -> relay::Seen {
    match status {
        Ok(status) => relay::Seen::Running(Box::new(status)),
        Err(error) if error.is_an_answer() => relay::Seen::Refusing(error.to_string()),
        // One that may not be looked into is there, too.
        Err(error) => match std::fs::metadata(config.store.data_dir.join("pg_wal")) {
            Err(missing) if missing.kind() == std::io::ErrorKind::NotFound => relay::Seen::New,
            _ => relay::Seen::Silent(error.to_string()),
        },
    }
}

fn wanted(config: &Config, seen: &relay::Seen) -> upstream::Wanted {
    let saved =
        || offline::read(&config.store.data_dir).0.identity.map(|identity| identity.system_id.to_string());
    let status = seen.status();
    let streams = match seen {
        // One that compares, or looks for the right timeline, has its connection, too.
        relay::Seen::Running(status) if status.upstream.state == "streaming" => Some(true),
        relay::Seen::Running(_) | relay::Seen::Refusing(_) => None,
        relay::Seen::Silent(_) | relay::Seen::New => Some(false),
    };
    upstream::Wanted {
        user: config.upstream.user.clone(),
        slot: config.slot.to_string(),
        application_name: config.upstream.application_name.clone(),
        streams,
        system_id: status.map_or_else(saved, |status| status.relay.system_identifier.clone()),
        is_fenced: status.and_then(|it| it.fence.as_ref()).is_some_and(FenceStatus::is_in_force),
        somebody_applies: status
            .is_some_and(|status| status.consumers.iter().any(|consumer| consumer.replay.is_some())),
    }
}

fn expected(
    config: &Config,
    seen: &relay::Seen,
    upstream: Option<&upstream::Identity>,
) -> consumer::Expected {
    let status = seen.status();
    let lost = |slot: &SlotStatus| slot.wal_status.as_deref() == Some("lost");
    let slots = |status: &Status| -> BTreeMap<String, bool> {
        status.slots.iter().map(|slot| (slot.name.clone(), lost(slot))).collect()
    };
    let port = |listen: &String| listen.rsplit_once(':').and_then(|(_, port)| port.parse().ok());
    let theirs = upstream.map(|identity| identity.timeline);
    consumer::Expected {
        system_id: upstream.map(|identity| identity.system_id.clone()),
        timeline: status.and_then(|status| status.relay.timeline).max(theirs),
        ports: config.listen.iter().filter_map(port).collect(),
        slots: status.map(slots),
        consumers: status.map(|it| it.consumers.iter().map(|one| one.application_name.clone()).collect()),
    }
}

/// Tries a `restore_command` here, for the newest segment that the relay has whole.
async fn attempt(told: &consumer::Told, seen: &relay::Seen) -> Option<restore::Tried> {
    let command = told.setting("restore_command").to_owned();
    if command.is_empty() {
        return None;
    }
    let newest = seen.status().and_then(newest_segment);
    Some(restore::attempt(&command, newest).await)
}

/// What it is called here: where it is.
fn name(info: &ConnInfo) -> String {
    let host = |host: &HostSpec| match &host.address {
        HostAddress::Name(name) => format!("{name}:{}", host.port),
        HostAddress::Ip(address) => {
            format!("{}:{}", host.name.clone().unwrap_or_else(|| address.to_string()), host.port)
        }
        HostAddress::UnixDirectory(dir) => format!("{}:{}", dir.display(), host.port),
    };
    info.hosts.iter().map(host).collect::<Vec<_>>().join(",")
}

/// The newest that is complete, if the relay has told.
fn newest_segment(status: &Status) -> Option<String> {
    status.disk.segments.iter().max_by_key(|it| it.timeline)?.last_complete.clone()
}

/// For people: what is bad first; what is good only where it was asked for.
/// For people.
pub(crate) fn table(findings: &[Finding], verbose: bool) -> String {
    let mut out = String::new();
    let bad = findings.iter().filter(|it| it.severity != Severity::Ok).count();
    for severity in [Severity::Error, Severity::Warning, Severity::Ok] {
        let shown = severity != Severity::Ok || verbose || bad == 0;
        for it in findings.iter().filter(|it| shown && it.severity == severity) {
            let word = match severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
                Severity::Ok => "ok",
            };
            let _ = writeln!(out, "{word:<8} {}: {} [{}]", it.about, it.message, it.code);
            for line in &it.remedy {
                let _ = writeln!(out, "         -> {line}");
            }
        }
    }
    let good = findings.len() - bad;
    let _ = writeln!(out, "{good} checks are well, {bad} are not");
    out
}
