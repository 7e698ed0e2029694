//! `walrelay restore`, `archive` and `archive-cleanup`: short runs beside the relay.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};
use std::sync::Arc;

use crate::archive::fetch::Fetcher;
use crate::archive::restore::{BROKEN, MISSING, Restore, Restored, system_id_here};
use crate::archive::spool::{self, Spool};
use crate::archive::{ArchiveError, RelayDirectory, Server, Source, TargetSource};
use crate::config::{Command, Origin, PlacesArgs, RestoreArgs};
use crate::conninfo::Environment;
use crate::error::RelayError;

/// Runs a command; its exit code, if nothing else went wrong. Needs a runtime.
pub async fn run(command: Command, environment: &Environment) -> Result<u8, RelayError> {
    match command {
        Command::Restore(args) => restore(args, environment).await,
    }
}

/// The exit code for an error of a command: PostgreSQL must never take one of `restore` for "no such file".
pub fn exit_code(command: &Command, error: &RelayError) -> u8 {
    match command {
        Command::Restore(_) => BROKEN,
        _ => error.exit_code(),
    }
}

async fn restore(args: RestoreArgs, environment: &Environment) -> Result<u8, RelayError> {
    let sources = sources(&args.places, environment)?;
    let spool_dir = args.spool_dir.clone().unwrap_or_else(|| beside(&args.target));
    if args.spool_worker {
        let fetcher = Fetcher::new(sources, system_id_here());
        let worked = spool::work(&spool_dir, fetcher, args.prefetch).await;
        let action = "could not fetch segments ahead";
        return worked.map(|()| 0).map_err(|source| RelayError::System { action, source });
    }
    let spool = (args.prefetch > 0).then(|| Spool::new(spool_dir.clone(), worker(spool_dir)));
    let restore = Restore { sources, file: args.file, target: args.target, spool };
    match restore.run().await? {
        Restored::Done => Ok(0),
        Restored::Missing => Ok(MISSING),
    }
}

fn beside(target: &Path) -> PathBuf {
    target.with_file_name("walrelay-spool")
}

/// Starts this very command as a worker, which outlives us: in a process group of its own, with nothing open that
/// anybody could wait for.
fn worker(spool_dir: PathBuf) -> spool::StartWorker {
    Arc::new(move || {
        let mut process = Process::new(std::env::current_exe()?);
        process.args(std::env::args_os().skip(1)).arg("--spool-worker");
        process.arg("--spool-dir").arg(&spool_dir);
        process.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        process.spawn().map(drop)
    })
}

fn sources(places: &PlacesArgs, environment: &Environment) -> Result<Vec<Arc<dyn Source>>, RelayError> {
    let open = |origin| Ok(source(origin)?);
    places.origins(environment)?.into_iter().map(open).collect()
}

fn source(origin: Origin) -> Result<Arc<dyn Source>, ArchiveError> {
    Ok(match origin {
        Origin::Directory(dir) => Arc::new(RelayDirectory::new(&dir)),
        Origin::Server(info) => Arc::new(Server::new(*info)),
        Origin::Target(target) => Arc::new(TargetSource::open(&target)?),
    })
}
