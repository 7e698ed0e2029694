//! `walrelay restore`, `archive`, `verify` and the other commands: short runs beside the relay.

use std::num::NonZero;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};
use std::sync::Arc;
use std::time::SystemTime;

use serde::Serialize;
use sha2::{Digest, Sha256};
use walrelay_proto::SystemId;

use crate::archive::cleanup::{self, Limit};
use crate::archive::fetch::{Fetcher, Own};
use crate::archive::list::{self, Listing};
use crate::archive::restore::{
    BROKEN, MISSING, PATIENCE, Restore, Restored, Role, data_dir, seg_size_of, system_id_of,
};
use crate::archive::spool::{self, Spool};
use crate::archive::verify::{self, Report};
use crate::archive::{ArchiveError, RelayDirectory, Repository, Server, Source, Target, TargetSource};
use crate::branch::{Branch, Held};
use crate::config::{
    ArchiveCommand, BranchCommand, CheckConfigArgs, CleanupArgs, Command, Config, ExportArgs, FailoversArgs,
    ListArgs, Origin, RestoreArgs, VerifyArgs, VerifyPlaceArgs,
};
use crate::conninfo::{ConnInfo, Environment};
use crate::error::RelayError;
use crate::fencing;
use crate::out::{self, say};
use crate::progress::{Progress, Unit, while_waiting};
use crate::show;
use crate::store::failovers::{self, Failover, Verdict};
use crate::verify as offline;
use crate::{doctor, init, papers, promotable, relay};

/// Runs a command; its exit code, if nothing else went wrong. Needs a runtime.
pub async fn run(command: &Command, environment: &Environment) -> Result<u8, RelayError> {
    match command {
        Command::Restore(args) => restore(args, environment).await,
        Command::Archive(ArchiveCommand::Verify(args)) => verify(args, environment).await,
        Command::Archive(ArchiveCommand::List(args)) => list(args, environment).await,
        Command::Verify(args) => verify_place(args, environment).await,
        Command::ArchiveCleanup(args) => cleanup(args, environment).await,
        Command::Failovers(args) => failovers(args),
        Command::Branch(BranchCommand::List(args)) => list_branches(args),
        Command::Branch(BranchCommand::Export(args)) => export_branch(args),
        Command::Fence(args) => fencing::fence(args, environment).await,
        Command::Unfence(args) => fencing::unfence(args, environment).await,
        Command::CheckConfig(args) => check_config(args, environment),
        Command::Completions(args) => {
            let mut script = Vec::new();
            papers::completions(args.shell, &mut script);
            out::write(format_args!("{}", String::from_utf8_lossy(&script)));
            Ok(0)
        }
        Command::Man(args) => {
            let action = "could not write the manual pages";
            let written = papers::man_pages(&args.dir);
            written.map(|()| 0).map_err(|source| RelayError::System { action, source })
        }
        Command::Status(args) => show::run(args, environment).await,
        Command::Promotable(args) => promotable::run(args, environment).await,
        Command::Init(args) => init::run(args, environment).await,
        Command::Doctor(args) => doctor::run(args, environment).await,
    }
}

/// What is doubtful is in the log by then.
fn check_config(args: &CheckConfigArgs, environment: &Environment) -> Result<u8, RelayError> {
    let config = Config::to_check(args, environment)?;
    relay::check(&config)?;
    match config.file() {
        Some(path) => {
            say!("configuration file \"{}\" is good, and so are the files that it names", path.display())
        }
        None => say!("the configuration is good"),
    }
    Ok(0)
}

/// The exit code for an error of a command: a recovery must never take one of `restore` for "no such file", and a
/// standby must not be ended by it, unless it was told rather to end than to go on without somebody.
pub fn exit_code(command: &Command, error: &RelayError) -> u8 {
    match (command, error) {
        // What was asked and has answered is judged by what it said.
        (Command::Restore(args), RelayError::Restore(_)) => Role::of(&data_dir(&args.target)).broken(),
        (Command::Restore(args), _) if args.stops_rather() => BROKEN,
        (Command::Restore(args), _) => Role::of(&data_dir(&args.target)).broken(),
        _ => error.exit_code(),
    }
}

async fn restore(args: &RestoreArgs, environment: &Environment) -> Result<u8, RelayError> {
    // Before the file is read for good: what changes in between makes the worker one of whom nobody wants anything.
    let key = key_of(args);
    let origins = args.places.origins(environment)?;
    let strict = args.required(&origins, environment)?;
    let data_dir = data_dir(&args.target);
    // Whom a standby waits for has to know what it says.
    let is_strict = strict.is_some() && !args.spool_worker && Role::of(&data_dir) == Role::Standby;
    let sources = match is_strict {
        true => vouching_sources(origins, system_id_of(&data_dir))?,
        false => sources(origins)?,
    };
    let spool_dir = args.spool_dir.clone().unwrap_or_else(|| beside(&args.target));
    if args.spool_worker {
        let fetcher = Fetcher::new(sources, system_id_of(&data_dir)).with_seg_size(seg_size_of(&data_dir));
        // Who has left one to it will want the next one.
        // Whoever takes a segment from the spool does not ask again whose it is.
        let own = Own { wal_dir: args.target.parent().map(Path::to_owned), ..Own::default() };
        let (fetcher, ahead) = (fetcher.with_silence(PATIENCE).with_own(own), args.prefetch.max(1));
        let worked = spool::work(&spool_dir, &key, fetcher, ahead, spool::LINGER).await;
        let action = "could not fetch segments ahead";
        return worked.map(|()| 0).map_err(|source| RelayError::System { action, source });
    }
    let named = args.spool_dir.is_some();
    let background = Spool::new(&spool_dir, &key, worker(spool_dir.clone(), key.clone(), named));
    let spool = (args.prefetch > 0).then(|| background.clone());
    let background = Some(background);
    let wait = args.wait()?;
    let (file, target) = (args.file.clone(), args.target.clone());
    let branch = args.branch;
    let restore =
        Restore { sources, file, target, spool, background, patience: PATIENCE, wait, strict, branch };
    match while_waiting(&format!("fetching {}", args.file), restore.run()).await? {
        Restored::Done => Ok(0),
        Restored::Missing => Ok(MISSING),
        Restored::Stop => Ok(BROKEN),
    }
}

/// Exit code 1 if something is wrong and stays so.
async fn verify(args: &VerifyArgs, environment: &Environment) -> Result<u8, RelayError> {
    let origins = args.places.origins(environment)?;
    let mut id = None;
    for dir in origins.iter().filter_map(relay_directory) {
        id = id.or(RelayDirectory::new(dir).identity().await);
    }
    let mut reports = Vec::new();
    for (number, target) in targets(&origins) {
        let repository = Repository::open(target)?;
        let checking = checking(&repository);
        let mut report = verify::verify(&repository, id, &checking).await?;
        drop(checking);
        if args.heal && !report.is_good() {
            let others = origins.iter().enumerate().filter(|(other, _)| *other != number);
            let others = others.map(|(_, origin)| Ok(source(origin.clone())?));
            let others = others.collect::<Result<Vec<_>, RelayError>>()?;
            let mending = Progress::start("mending", Unit::Files);
            verify::heal(&repository, &mut report, &others, &mending).await?;
        }
        reports.push(report);
    }
    show(args.json, &reports, show_report)?;
    Ok(u8::from(!reports.iter().all(Report::is_good)))
}

fn checking(repository: &Repository) -> Progress {
    Progress::start(format!("verifying {}", repository.name()), Unit::Files)
}

fn show_report(report: &Report) {
    for it in &report.findings {
        let wal = it.from.as_ref().zip(it.to.as_ref()).map(|(from, to)| format!(" (WAL {from} to {to})"));
        let wal = wal.or_else(|| it.lsn.as_ref().map(|lsn| format!(" (WAL from {lsn} on)")));
        let healed = it.healed_from.as_ref().map(|place| format!("; replaced by the copy in {place}"));
        let (wal, healed) = (wal.unwrap_or_default(), healed.unwrap_or_default());
        say!("{}: {}: {}{wal}: {}{healed}", report.target, it.problem, it.file, it.reason);
    }
    let bad = report.findings.iter().filter(|it| it.healed_from.is_none()).count();
    let healed = report.findings.len() - bad;
    say!("{}: {} segments checked, {bad} problems, {healed} healed", report.target, report.segments);
}

/// Exit code 1 if something is wrong and stays so.
async fn verify_place(args: &VerifyPlaceArgs, environment: &Environment) -> Result<u8, RelayError> {
    let sources = args.sources(environment)?.into_iter().map(|origin| Ok(source(origin)?));
    let sources = sources.collect::<Result<Vec<_>, RelayError>>()?;
    let target = match args.origin(environment)? {
        Origin::Directory(dir) if !is_archive(&dir)? => {
            return verify_directory(&dir, args.json, &sources).await;
        }
        Origin::Directory(dir) | Origin::OwnDirectory(dir) => VerifyPlaceArgs::archive_in(&dir)?,
        Origin::Target(target) => *target,
        Origin::Server(_) => unreachable!("a server is no place to verify"),
    };
    let repository = Repository::open(&target)?;
    let checking = checking(&repository);
    let mut report = verify::verify(&repository, None, &checking).await?;
    drop(checking);
    if !report.is_good() && !sources.is_empty() {
        let mending = Progress::start("mending", Unit::Files);
        verify::heal(&repository, &mut report, &sources, &mending).await?;
    }
    let good = report.is_good();
    show(args.json, &[report], show_report)?;
    Ok(u8::from(!good))
}

fn is_archive(dir: &Path) -> Result<bool, RelayError> {
    let failed = |source| offline::VerifyError::Io { path: dir.to_owned(), source };
    Ok(offline::is_archive(dir).map_err(failed)?)
}

async fn verify_directory(dir: &Path, json: bool, sources: &[Arc<dyn Source>]) -> Result<u8, RelayError> {
    let mut report = scan(dir).await?;
    if !sources.is_empty() && !report.is_good() {
        let mending = Progress::start("mending", Unit::Files);
        offline::repair(dir, &mut report, sources, &mending).await?;
        drop(mending);
        report = report.after_repair(scan(dir).await?);
    }
    let good = report.is_good();
    show(json, &[report], show_directory)?;
    Ok(u8::from(!good))
}

async fn scan(dir: &Path) -> Result<offline::Report, RelayError> {
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    let (path, progress) = (dir.to_owned(), Progress::start("verifying", Unit::Bytes));
    let read = tokio::task::spawn_blocking(move || offline::verify(&path, threads, &progress)).await;
    Ok(read.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?)
}

fn show_directory(report: &offline::Report) {
    let place = &report.place;
    say!("{place}: {}, cluster {}", report.kind, report.system_identifier);
    for it in &report.stretches {
        say!("  timeline {}: {} to {}, {} segments", it.timeline, it.from, it.to, it.segments);
    }
    report.notes.iter().for_each(|note| say!("  note: {note}"));
    for it in &report.findings {
        let at = it.lsn.as_ref().map(|lsn| format!(" from {lsn} on")).unwrap_or_default();
        let repaired = it.repaired_from.as_ref().map(|place| format!("; replaced by the copy in {place}"));
        say!("{place}: {}: {}{at}: {}{}", it.problem, it.file, it.reason, repaired.unwrap_or_default());
    }
    let bad = report.findings.iter().filter(|it| it.repaired_from.is_none()).count();
    let (repaired, mb) = (report.findings.len() - bad, report.bytes >> 20);
    let segments: usize = report.stretches.iter().map(|stretch| stretch.segments).sum();
    let first = report.first_fault().and_then(|it| it.lsn.as_ref());
    let first = first.map(|lsn| format!(", the first at {lsn}")).unwrap_or_default();
    say!("{place}: {segments} segments checked ({mb} MB), {bad} problems{first}, {repaired} repaired");
}

async fn list(args: &ListArgs, environment: &Environment) -> Result<u8, RelayError> {
    let origins = args.places.origins(environment)?;
    let mut listings = Vec::new();
    for (_, target) in targets(&origins) {
        let progress = Progress::start(format!("reading {}", target.name), Unit::Files);
        listings.push(list::list(&Repository::open(target)?, &progress).await?);
    }
    show(args.json, &listings, show_listing)?;
    Ok(0)
}

fn show_listing(listing: &Listing) {
    let system = listing.system_identifier.as_deref().unwrap_or("unknown");
    say!("{}: cluster {system}", listing.target);
    for it in &listing.stretches {
        let commit = |time: &Option<String>| time.clone().unwrap_or_else(|| "?".to_owned());
        let history = if it.history { "" } else { ", history file missing" };
        say!(
            "  timeline {}: {} to {}, {} segments, {} bytes, commits {} to {}{history}",
            it.timeline,
            it.from,
            it.to,
            it.segments,
            it.stored_bytes,
            commit(&it.first_commit),
            commit(&it.last_commit)
        );
    }
    listing.backups.iter().for_each(|label| say!("  base backup {label}"));
}

/// Exit code 1 if something that was acknowledged was left behind, or may have been.
fn failovers(args: &FailoversArgs) -> Result<u8, RelayError> {
    let data_dir = args.data_dir()?;
    let action = "could not read what is known of promotions";
    let all = failovers::read(&data_dir).map_err(|source| RelayError::System { action, source })?;
    let Some(all) = all else {
        let source = std::io::Error::other(format!(
            "\"{}\" is no data directory of a relay; name it with --data-dir",
            data_dir.display()
        ));
        return Err(RelayError::System { action, source });
    };
    let shown: Vec<ShownFailover> = all.iter().map(ShownFailover::of).collect();
    show(args.json, &shown, |it| show_failover(it, &data_dir))?;
    Ok(u8::from(all.iter().any(|it| it.verdict() != Verdict::Kept)))
}

/// A promotion, as it is shown.
#[derive(Serialize)]
struct ShownFailover {
    /// When the relay saw it.
    seen: String,
    /// The timeline that was left.
    from_timeline: u32,
    /// The one that was begun, or is followed instead.
    to_timeline: u32,
    /// Where their ways part.
    switch_point: String,
    /// What the upstream was told of the one that was left, at most.
    acknowledged: String,
    /// End of what is held of it.
    held: String,
    /// `kept`, `left` or `doubtful`.
    verdict: &'static str,
    /// Whether the upstream waited for this relay at any time that it was asked.
    upstream_waited: bool,
    /// When it was asked last.
    upstream_asked: Option<String>,
    /// Commits that were acknowledged and are not on the new timeline; null if they could not be counted.
    commits_left: Option<u64>,
    /// When the first of them was made.
    first_commit: Option<String>,
    /// When the last of them was made.
    last_commit: Option<String>,
}

impl ShownFailover {
    fn of(failover: &Failover) -> ShownFailover {
        ShownFailover {
            seen: failover.seen.to_text(),
            from_timeline: failover.from.as_u32(),
            to_timeline: failover.to.as_u32(),
            switch_point: failover.switch_point.to_string(),
            acknowledged: failover.acknowledged.to_string(),
            held: failover.held.to_string(),
            verdict: failover.verdict().as_str(),
            upstream_waited: failover.was_awaited,
            upstream_asked: failover.asked.map(|asked| asked.to_text()),
            commits_left: failover.commits,
            first_commit: failover.span.map(|span| span.0.to_text()),
            last_commit: failover.span.map(|span| span.1.to_text()),
        }
    }
}

fn show_failover(it: &ShownFailover, data_dir: &Path) {
    let waited = match &it.upstream_asked {
        _ if it.upstream_waited => String::new(),
        Some(asked) => {
            format!(", the upstream did not wait for this relay when it was asked last, at {asked}")
        }
        None => ", the upstream is not known to have waited for this relay".to_owned(),
    };
    let is_kept = it.verdict == Verdict::Kept.as_str();
    let left = match (&it.commits_left, &it.first_commit, &it.last_commit) {
        _ if is_kept => String::new(),
        (Some(commits), Some(first), Some(last)) => {
            format!(": {commits} commits, made from {first} to {last}")
        }
        (Some(commits), ..) => format!(": {commits} commits"),
        (None, ..) => ": an unknown number of commits".to_owned(),
    };
    let read = match is_kept {
        true => String::new(),
        false => format!(
            "; to read them: walrelay branch export {} --to DIR -D \"{}\"",
            it.from_timeline,
            data_dir.display()
        ),
    };
    say!(
        "{}  timeline {} to {} at {}  {}, acknowledged up to {}, held up to {}{waited}{left}{read}",
        it.seen,
        it.from_timeline,
        it.to_timeline,
        it.switch_point,
        it.verdict,
        it.acknowledged,
        it.held
    );
}

fn list_branches(args: &FailoversArgs) -> Result<u8, RelayError> {
    let progress = Progress::start("reading branches", Unit::Files);
    let branches = Held::read(&args.data_dir()?)?.branches(&progress)?;
    drop(progress);
    let shown: Vec<ShownBranch> = branches.iter().map(ShownBranch::of).collect();
    show(args.json, &shown, show_branch)?;
    Ok(0)
}

fn export_branch(args: &ExportArgs) -> Result<u8, RelayError> {
    let held = Held::read(&args.held.data_dir()?)?;
    let progress = Progress::start("reading the branch", Unit::Files);
    let branch = held.branch_of(args.tli, &progress)?;
    drop(progress);
    let progress = Progress::start("copying", Unit::Files);
    let names = held.export(&branch, &args.to, &progress)?;
    drop(progress);
    let shown = ShownBranch::of(&branch);
    if args.held.json {
        show(true, &[shown], show_branch)?;
    } else {
        show_branch(&shown);
        say!(
            "copied {} files; to read them: pg_waldump -p {} -t {} -s {}",
            names.len(),
            args.to.display(),
            branch.tli,
            branch.from
        );
    }
    Ok(0)
}

/// A branch, as it is shown.
#[derive(Serialize)]
struct ShownBranch {
    /// The timeline that it is of.
    timeline: u32,
    /// Where it begins.
    from: String,
    /// Where it ends.
    end: String,
    /// How much WAL that is.
    bytes: u64,
    /// The files that it lies in.
    files: Vec<String>,
    /// Commits in it; null if its beginning is not held any more.
    commits: Option<u64>,
    /// When the first of them was made.
    first_commit: Option<String>,
    /// When the last of them was made.
    last_commit: Option<String>,
}

impl ShownBranch {
    fn of(branch: &Branch) -> ShownBranch {
        ShownBranch {
            timeline: branch.tli.as_u32(),
            from: branch.from.to_string(),
            end: branch.end.to_string(),
            bytes: branch.end.since(branch.from),
            files: branch.files.clone(),
            commits: branch.commits,
            first_commit: branch.span.map(|span| span.0.to_text()),
            last_commit: branch.span.map(|span| span.1.to_text()),
        }
    }
}

fn show_branch(it: &ShownBranch) {
    let commits = match (&it.commits, &it.first_commit, &it.last_commit) {
        (Some(commits), Some(first), Some(last)) => format!("{commits} commits, made from {first} to {last}"),
        (Some(commits), ..) => format!("{commits} commits"),
        (None, ..) => "its beginning is not held any more".to_owned(),
    };
    say!(
        "timeline {}: {} to {}, {} bytes in {} files, {commits}",
        it.timeline,
        it.from,
        it.end,
        it.bytes,
        it.files.len()
    );
}

fn show<T: Serialize>(json: bool, all: &[T], line: impl Fn(&T)) -> Result<(), RelayError> {
    if !json {
        all.iter().for_each(line);
        return Ok(());
    }
    let failed = |error: serde_json::Error| RelayError::System {
        action: "could not write JSON",
        source: error.into(),
    };
    say!("{}", serde_json::to_string_pretty(all).map_err(failed)?);
    Ok(())
}

async fn cleanup(args: &CleanupArgs, environment: &Environment) -> Result<u8, RelayError> {
    let origins = args.places.origins(environment)?;
    let limit = Limit::before(&args.oldest)?;
    for (_, target) in targets(&origins) {
        let repository = Repository::open(target)?;
        cleanup::allowed(&repository).await?;
        let plan = cleanup::plan(&repository, &limit, args.clean_backup_history, SystemTime::now());
        let plan = while_waiting(&format!("listing {}", target.name), plan).await?;
        if let Some(label) = &plan.kept_for {
            out::tell(format_args!("{}: WAL from {label} on is kept for that base backup\n", target.name));
        }
        if args.dry_run {
            plan.remove.iter().for_each(|entry| say!("{}", entry.path));
        } else {
            let progress = Progress::start(format!("removing from {}", target.name), Unit::Files);
            cleanup::remove(&repository, &plan, &progress).await?;
        }
    }
    Ok(0)
}

/// Those of the places that are archives, with their number among all.
fn targets(origins: &[Origin]) -> impl Iterator<Item = (usize, &Target)> {
    origins.iter().enumerate().filter_map(|(number, origin)| match origin {
        Origin::Target(target) => Some((number, &**target)),
        _ => None,
    })
}

fn relay_directory(origin: &Origin) -> Option<&Path> {
    match origin {
        Origin::Directory(dir) | Origin::OwnDirectory(dir) => Some(dir),
        _ => None,
    }
}

fn beside(target: &Path) -> PathBuf {
    target.with_file_name("walrelay-spool")
}

/// A word that stands for the places that a command asks, and how: its arguments, the content of the configuration file,
/// the program's version.
fn key_of(args: &RestoreArgs) -> String {
    let config = args.places.config.as_ref().and_then(|path| std::fs::read(path).ok());
    let what = format!("{} {:?} {}", env!("CARGO_PKG_VERSION"), args.places, args.prefetch);
    let digest = Sha256::new().chain_update(what).chain_update([0]).chain_update(config.unwrap_or_default());
    digest.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// Starts this very command as a worker, which outlives us: in a process group of its own, with nothing open that
/// anybody could wait for. `named`: the command says already where the spool is, and must not say it twice.
fn worker(spool_dir: PathBuf, key: String, named: bool) -> spool::StartWorker {
    Arc::new(move || {
        let mut process = Process::new(std::env::current_exe()?);
        process.args(std::env::args_os().skip(1)).arg("--spool-worker");
        if !named {
            process.arg("--spool-dir").arg(&spool_dir);
        }
        let log = spool::worker_log(&spool_dir, &key)?;
        process.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0);
        process.spawn().map(drop)
    })
}

fn sources(origins: Vec<Origin>) -> Result<Vec<Arc<dyn Source>>, RelayError> {
    origins.into_iter().map(|origin| Ok(source(origin)?)).collect()
}

/// Relays that say "it is not there" only of what they would know, for a server of this cluster.
fn vouching_sources(
    origins: Vec<Origin>,
    system_id: Option<SystemId>,
) -> Result<Vec<Arc<dyn Source>>, RelayError> {
    let vouching = |origin: Origin| -> Result<Arc<dyn Source>, RelayError> {
        Ok(match origin {
            Origin::Directory(dir) => Arc::new(RelayDirectory::new(&dir).vouching(system_id)),
            Origin::OwnDirectory(dir) => Arc::new(RelayDirectory::if_here(&dir).vouching(system_id)),
            Origin::Server(info) => Arc::new(server(*info).vouching(system_id)),
            other => source(other)?,
        })
    };
    origins.into_iter().map(vouching).collect()
}

/// It reads as itself: a relay's name may be one that commits wait for.
fn server(info: ConnInfo) -> Server {
    Server::new(info.as_command("walrelay_restore"))
}

fn source(origin: Origin) -> Result<Arc<dyn Source>, ArchiveError> {
    Ok(match origin {
        Origin::Directory(dir) => Arc::new(RelayDirectory::new(&dir)),
        Origin::OwnDirectory(dir) => Arc::new(RelayDirectory::if_here(&dir)),
        Origin::Server(info) => Arc::new(server(*info)),
        Origin::Target(target) => Arc::new(TargetSource::open(&target)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        restore: RestoreArgs,
    }

    #[test]
    fn the_key_stands_for_arguments_and_configuration_and_for_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("walrelay.toml");
        std::fs::write(&config, "data-dir = \"/one\"\n").unwrap();
        let key = |more: &[&str], file: &str| {
            let config = ["restore", "--config", config.to_str().unwrap()];
            let words = config.iter().chain(more).chain([&file, &"pg_wal/RECOVERYXLOG"]);
            key_of(&Line::try_parse_from(words).unwrap().restore)
        };
        let first = key(&[], "000000010000000000000003");
        assert_eq!(first.len(), 32);
        // The next segment, and the worker's own arguments.
        assert_eq!(key(&[], "000000010000000000000004"), first);
        assert_eq!(key(&["--spool-worker", "--spool-dir", "/x"], "000000010000000000000003"), first);
        assert_ne!(key(&["--from", "/two"], "000000010000000000000003"), first);
        assert_ne!(key(&["--prefetch", "9"], "000000010000000000000003"), first);
        std::fs::write(&config, "data-dir = \"/two\"\n").unwrap();
        assert_ne!(key(&[], "000000010000000000000003"), first);
    }
}
