//! `walrelay init`: a first configuration, and what the primary has to be told for it.
//!
//! ```text
//! flags, or questions where somebody sits there ──> Plan ──┬──> walrelay.toml, hba.conf (checked before they get their names)
//!                                                          └──> SQL for the primary, on standard output
//! ```
//!
//! Standard output is a script for psql, comments included; everything else is said on standard error. Questions are lines on
//! standard input: there are five, and a library for them would bring more than they need.

mod ask;
mod file;
mod text;

use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::{Config, InitArgs};
use crate::conninfo::{ConnInfo, Environment, HostAddress};
use crate::error::RelayError;
use crate::progress::while_waiting;
use crate::{doctor, out, relay};

/// How long a name server may take to say where the primary is.
const LOOK_UP: Duration = Duration::from_secs(3);

/// Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// What is there is left alone.
    #[error("\"{}\" exists; edit it, choose another place with --config, or replace it with --force", .0.display())]
    Exists(PathBuf),
    /// Nobody answers.
    #[error(
        "standard input has ended before all was answered; nothing was written (give flags instead, and --yes)"
    )]
    Unanswered,
    /// They said no.
    #[error("nothing was written")]
    Declined,
    /// The disk or the system refuses.
    #[error("could not write \"{}\": {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// What was decided.
#[derive(Debug)]
struct Plan {
    args: InitArgs,
    /// As it is written.
    upstream: String,
    info: ConnInfo,
    /// Rules for those who connect, if consumers were named.
    hba_file: Option<PathBuf>,
    /// Where the primary sees the relay, as far as that can be told from here.
    own_address: Option<String>,
}

/// Asks, writes, checks, and says what is next. 0 where the files are written.
pub(crate) async fn run(args: &InitArgs, environment: &Environment) -> Result<u8, RelayError> {
    let asks = io::stdin().is_terminal() && !args.yes;
    let mut args = args.clone();
    may_write(&args, &args.config)?;
    if asks {
        ask::complete(&mut args, environment, &mut io::stdin().lock(), &mut io::stderr())?;
    }
    let (upstream, info) = args.upstream(environment)?;
    let hba_file = (!args.consumer_role.is_empty()).then(|| args.config.with_file_name("hba.conf"));
    let own_address = while_waiting("looking for our own address", own_address(&info)).await;
    let plan = Plan { args, upstream, info, hba_file, own_address };
    write_files(&plan, environment)?;
    if !plan.args.no_check {
        let diagnosis = plan.args.to_diagnose(&plan.args.config);
        let findings = doctor::findings(&diagnosis, environment).await?;
        out::tell(format_args!("\nwalrelay doctor says, before any of the SQL has been run:\n"));
        out::tell(format_args!("{}\n", doctor::table(&findings, false)));
    }
    out::write(format_args!("{}", text::sql(&plan)));
    Ok(0)
}

fn may_write(args: &InitArgs, path: &Path) -> Result<(), InitError> {
    match args.force || path.symlink_metadata().is_err() {
        true => Ok(()),
        false => Err(InitError::Exists(path.to_owned())),
    }
}

/// The rules first, because the configuration names them. Both get their names when a start would take them.
fn write_files(plan: &Plan, environment: &Environment) -> Result<(), RelayError> {
    let Plan { args, hba_file, .. } = plan;
    if let Some(path) = hba_file {
        may_write(args, path)?;
    }
    let config = file::Prepared::write(&args.config, &text::config(plan))?;
    let hba = hba_file.as_ref().map(|path| file::Prepared::write(path, &text::hba(&args.consumer_role)));
    let hba = hba.transpose()?;
    let mut to_check = Config::to_check(&args.to_check(config.place()), environment)?;
    if let Some(hba) = &hba {
        to_check.hba_file = Some(hba.place().to_owned());
    }
    relay::check(&to_check)?;
    let hba = hba.map(|hba| hba.publish(args.force)).transpose()?;
    let path = match config.publish(args.force) {
        Ok(path) => path,
        Err(error) => {
            // As if nothing had been done, unless it has replaced something.
            hba.filter(|_| !args.force).into_iter().for_each(file::remove);
            return Err(error.into());
        }
    };
    let written = [Some(path), hba];
    written.iter().flatten().for_each(|path| out::tell(format_args!("wrote \"{}\"\n", path.display())));
    Ok(())
}

/// The address of this machine that leads to the first host. Nothing is sent there.
async fn own_address(info: &ConnInfo) -> Option<String> {
    let host = info.hosts.first()?;
    let name = match &host.address {
        HostAddress::Name(name) => name.clone(),
        HostAddress::Ip(address) => address.to_string(),
        HostAddress::UnixDirectory(_) => return None,
    };
    let look = async {
        let there = tokio::net::lookup_host((name, host.port)).await.ok()?.next()?;
        let any = if there.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = tokio::net::UdpSocket::bind(any).await.ok()?;
        socket.connect(there).await.ok()?;
        let ip = socket.local_addr().ok()?.ip();
        Some(format!("{ip}/{}", if ip.is_ipv4() { 32 } else { 128 }))
    };
    tokio::time::timeout(LOOK_UP, look).await.ok()?
}
