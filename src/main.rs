//! The `walrelay` command.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use tokio::runtime::Runtime;
use tracing_subscriber::EnvFilter;
use walrelay::archive::restore::BROKEN;
use walrelay::config::{Cli, Command, Config, LogFormat};
use walrelay::conninfo::Environment;
use walrelay::error::RelayError;
use walrelay::{relay, tools};

fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(mut cli) => match cli.command.take() {
            None => relay(cli),
            // Not even a fault of ours may look like a file that is missing.
            Some(command) => std::panic::catch_unwind(|| tool(command)).unwrap_or(BROKEN.into()),
        },
        Err(error) => {
            let _ = error.print();
            ExitCode::from(usage_exit_code(error.exit_code()))
        }
    }
}

/// PostgreSQL takes small exit codes of a `restore_command` for "no such file", and goes on without it.
fn usage_exit_code(code: i32) -> u8 {
    let is_restore = std::env::args().nth(1).is_some_and(|first| first == "restore");
    if code != 0 && is_restore { BROKEN } else { u8::try_from(code).unwrap_or(2) }
}

fn relay(cli: Cli) -> ExitCode {
    let mut format = LogFormat::Text;
    match run(cli, &mut format) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error, format);
            ExitCode::from(error.exit_code())
        }
    }
}

fn tool(command: Command) -> ExitCode {
    let code = run_tool(&command).unwrap_or_else(|error| {
        report(&error, LogFormat::Text);
        tools::exit_code(&command, &error)
    });
    ExitCode::from(code)
}

fn run_tool(command: &Command) -> Result<u8, RelayError> {
    let log = tracing_subscriber::fmt().with_env_filter(EnvFilter::new("walrelay=warn"));
    log.with_writer(std::io::stderr).with_ansi(false).with_target(false).without_time().init();
    let runtime = start_runtime()?;
    let result = runtime.block_on(tools::run(command, &Environment::of_process()));
    runtime.shutdown_background();
    result
}

/// The last words: a line for people, or for the log's reader if that is a program.
fn report(error: &RelayError, format: LogFormat) {
    match format {
        LogFormat::Text => {
            let hint = error.hint().map(|hint| format!("\nHINT:  {hint}")).unwrap_or_default();
            eprintln!("walrelay: error: {error}{hint}");
        }
        LogFormat::Json => {
            tracing::error!(exit_code = error.exit_code(), hint = error.hint(), "{error}");
        }
    }
}

/// `format` is set as soon as the log has begun.
fn run(cli: Cli, format: &mut LogFormat) -> Result<(), RelayError> {
    let config = Config::resolve(cli, &Environment::of_process())?;
    start_log(&config)?;
    *format = config.log_format;
    let runtime = start_runtime()?;
    let result = runtime.block_on(relay::run(config));
    // A blocking read of a dead disk must not hold up the end.
    runtime.shutdown_background();
    result
}

fn start_runtime() -> Result<Runtime, RelayError> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| RelayError::System { action: "could not start the runtime", source })
}

fn start_log(config: &Config) -> Result<(), RelayError> {
    let filter = EnvFilter::new(config.log_level.to_string());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.log_format {
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).with_target(false).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    Ok(())
}
