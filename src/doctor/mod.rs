//! `walrelay doctor`: what goes wrong in practice, before and while a relay runs, with the cause and what to type.
//!
//! Everybody is asked side by side (`ask`, and the first half of each part); what they say is judged by functions without I/O, a
//! part each: `upstream`, `relay`, `host`, `archive`, `consumer` with its `restore` command and the relay's `hba` for it.

mod archive;
mod ask;
mod certificates;
mod consumer;
mod finding;
mod hba;
mod host;
mod kept;
mod relay;
mod restore;
#[cfg(test)]
mod tests;
mod upstream;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use futures_util::future::join_all;
use serde::Serialize;
use tokio::time::timeout;

use crate::config::{Config, DoctorArgs};
use crate::conninfo::{ConnInfo, Environment, HostAddress, HostSpec};
use crate::error::RelayError;
use crate::out::{self, say};
use crate::progress::while_waiting;
use crate::show::{self, ShowError};
use crate::status::{FenceStatus, SlotStatus, Status};

pub use finding::{Finding, Severity};

/// The database that consumers are asked in.
const DATABASE: &str = "postgres";
/// How long a disk may take with what is read and tried on it.
const DISK: Duration = Duration::from_secs(10);

/// What was found, as JSON.
#[derive(Debug, Serialize)]
struct Report {
    /// The worst of all.
    severity: Severity,
    /// All of them, what is well too.
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
    let mut findings = while_waiting("reading what is configured", configuration(&config)).await;
    let examine = examine(args, &config, &relay, &consumers);
    findings.extend(while_waiting("asking everybody", examine).await);
    Ok(findings)
}

/// What a start would refuse.
async fn configuration(config: &Config) -> Vec<Finding> {
    let mut found = finding::Findings::about("host");
    let checked = config.clone();
    match answered(move || crate::relay::check(&checked)).await {
        None => {
            let text = format!(
                "the files that the configuration names have not been read within {} s",
                DISK.as_secs()
            );
            let look = "one of them is on a disk that does not answer: --hba-file, --auth-file, --ident-file, --ssl-*, an archive's directory";
            found.error("configuration", text, finding::remedy([look]));
        }
        Some(Ok(())) => {
            found.ok("configuration", "the configuration is good, and so are the files that it names")
        }
        Some(Err(error)) => {
            found.error(
                "configuration",
                error.to_string(),
                finding::remedy(["walrelay check-config says the same, with file and line"]),
            );
        }
    }
    if let Some(exposed) = config.exposed_http() {
        let remedy = match exposed.passwords {
            true => finding::remedy(["--http-ssl on, with --ssl-cert-file and --ssl-key-file"]),
            false => finding::remedy([
                "--http-auth on and --http-ssl on, or --http-listen with a port alone, which is one of the loopback interface",
            ]),
        };
        found.warning("http_exposed", exposed.to_string(), remedy);
    }
    found.into_inner()
}

/// What has come of work with a disk; `None` if that does not answer. It goes on without anybody waiting.
async fn answered<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    timeout(DISK, tokio::task::spawn_blocking(work)).await.ok()?.ok()
}

async fn examine(
    args: &DoctorArgs,
    config: &Config,
    relay: &ConnInfo,
    consumers: &[ConnInfo],
) -> Vec<Finding> {
    let dir = &config.store.data_dir;
    let files = certificates::named(config);
    let (of_disk, of_kept) = (dir.clone(), dir.clone());
    let host = answered(move || host::look(&of_disk));
    let kept = answered(move || kept::look(&of_kept));
    let papers = answered(move || certificates::read(files));
    let upstream = upstream::ask(&config.upstream, &config.auth_dbname);
    let told = join_all(consumers.iter().map(|info| consumer::ask(info, DATABASE)));
    let (host, kept, papers, upstream, status, told) =
        tokio::join!(host, kept, papers, upstream, show::status_of(relay), told);
    let seen = seen(kept.as_ref(), status);
    let kept = kept.unwrap_or_default();
    let archives = archive::look(config, &kept).await;
    let wanted = wanted(config, &seen, &kept);
    let newest = upstream.identity.as_ref().ok().map(|identity| identity.timeline);
    let expected = expected(config, &seen, &kept, upstream.identity.as_ref().ok());
    let mut findings = upstream::diagnose(&upstream, &wanted);
    findings.extend(relay::diagnose(&seen, newest));
    findings.extend(host::diagnose(dir, host.as_ref()));
    findings.extend(certificates::diagnose(papers.as_deref(), certificates::now()));
    for (target, probed) in config.archive.iter().zip(&archives) {
        let expected = archive::expected(target, &kept, seen.status());
        findings.extend(archive::diagnose(&target.name, probed, &expected));
    }
    for (info, mut told) in consumers.iter().zip(told) {
        if let (true, Ok(told)) = (args.try_restore, &mut told) {
            told.tried = attempt(told, &seen).await;
        }
        findings.extend(consumer::diagnose(&name(info), &told, &expected));
        if let Some(told) = told.ok().filter(|told| told.is_standby) {
            findings.extend(hba::look(config, &name(info), &told).await);
        }
    }
    findings
}

/// `kept` is what its data directory says, if that answers.
fn seen(kept: Option<&kept::Kept>, status: Result<Status, ShowError>) -> relay::Seen {
    match status {
        Ok(status) => relay::Seen::Running(Box::new(status)),
        Err(error) if error.is_an_answer() => relay::Seen::Refusing(error.to_string()),
        Err(_) if kept.is_some_and(|kept| !kept.has_run) => relay::Seen::New,
        Err(error) => relay::Seen::Silent(error.to_string()),
    }
}

fn wanted(config: &Config, seen: &relay::Seen, kept: &kept::Kept) -> upstream::Wanted {
    let saved = || kept.state.identity.map(|identity| identity.system_id.to_string());
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
        seg_size: kept.seg_size(),
        has_run: kept.has_run,
        held: kept.held().filter(|_| matches!(seen, relay::Seen::Silent(_))),
        is_fenced: status.and_then(|it| it.fence.as_ref()).is_some_and(FenceStatus::is_in_force),
        somebody_applies: status
            .is_some_and(|status| status.consumers.iter().any(|consumer| consumer.replay.is_some())),
    }
}

fn expected(
    config: &Config,
    seen: &relay::Seen,
    kept: &kept::Kept,
    upstream: Option<&upstream::Identity>,
) -> consumer::Expected {
    let status = seen.status();
    let lost = |slot: &SlotStatus| slot.wal_status.as_deref() == Some("lost");
    let slots = |status: &Status| -> BTreeMap<String, bool> {
        status.slots.iter().map(|slot| (slot.name.clone(), lost(slot))).collect()
    };
    let theirs = upstream.map(|identity| identity.timeline);
    consumer::Expected {
        system_id: upstream.map(|identity| identity.system_id.clone()),
        seg_size: kept.seg_size(),
        timeline: status.and_then(|status| status.relay.timeline).max(theirs),
        ports: config.listen.iter().filter_map(|listen| listen.port()).collect(),
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

/// For people: what is bad first; what is good only where it was asked for, or nothing is bad.
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
