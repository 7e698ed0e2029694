//! The `walrelay` command.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;
use walrelay::config::{Cli, Config, ConfigError, LogFormat};
use walrelay::conninfo::Environment;
use walrelay::error::RelayError;
use walrelay::relay;

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let hint = error.hint().map(|hint| format!("\nHINT:  {hint}")).unwrap_or_default();
            eprintln!("walrelay: error: {error}{hint}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(cli: Cli) -> Result<(), RelayError> {
    let config = Config::resolve(cli, &Environment::of_process())?;
    start_log(&config)?;
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
    let filter = EnvFilter::try_new(&config.log_level)
        .map_err(|error| ConfigError::Value { name: "log-level", reason: error.to_string() })?;
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.log_format {
        LogFormat::Text => log.with_ansi(std::io::stderr().is_terminal()).with_target(false).init(),
        LogFormat::Json => log.json().flatten_event(true).init(),
    }
    Ok(())
}
