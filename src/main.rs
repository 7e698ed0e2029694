//! The `walrelay` command.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;
use walrelay::config::{Cli, Config, LogFormat};
use walrelay::conninfo::Environment;
use walrelay::error::RelayError;
use walrelay::relay;

fn main() -> ExitCode {
    let mut format = LogFormat::Text;
    match run(Cli::parse(), &mut format) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error, format);
            ExitCode::from(error.exit_code())
        }
    }
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
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| RelayError::System { action: "could not start the runtime", source })?;
    let result = runtime.block_on(relay::run(config));
    // A blocking read of a dead disk must not hold up the end.
    runtime.shutdown_background();
    result
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
