//! The `walrelay` command.

use std::io::IsTerminal;
use std::panic::AssertUnwindSafe;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use tokio::runtime::Runtime;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::reload::{self, Handle};
use tracing_subscriber::util::SubscriberInitExt;
use walrelay::archive::restore::broken_here;
use walrelay::config::{Cli, Command, Config, LogFormat};
use walrelay::conninfo::Environment;
use walrelay::error::{RelayError, UNREADABLE};
use walrelay::events::Events;
use walrelay::log::{Entries, Journal, LevelSwitch, Log, one_line, text_fields};
use walrelay::parts::{HowEnded, PartEnded};
use walrelay::progress::Stderr;
use walrelay::redact::{holds_secret, redact};
use walrelay::relay::signals::{Inherited, hold_for_exec};
use walrelay::relay::{Handover, Next, slow};
use walrelay::restart::Successor;
use walrelay::sockets::{Passed, Sockets};
use walrelay::store::{explain_bus_errors, map_large_blocks};
use walrelay::{out, relay, tools};

/// How long the end waits for the log's reader.
const LAST_WORDS: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(mut cli) => match cli.command.take() {
            None => relay(cli),
            // Not even a fault of ours may look like a file that is missing.
            Some(command) => {
                std::panic::catch_unwind(|| tool(command)).unwrap_or_else(|_| broken_here().into())
            }
        },
        Err(error) => {
            refuse(&error);
            ExitCode::from(usage_exit_code(error.exit_code()))
        }
    }
}

/// Says what is wrong with the arguments. A connection string in the wrong place is among them with its password.
fn refuse(error: &clap::Error) {
    let text = error.render().to_string();
    if holds_secret(&text) {
        out::tell(format_args!("{}", redact(&text)));
    } else {
        let _ = error.print();
    }
}

/// PostgreSQL takes small exit codes of a `restore_command` for "no such file", and goes on without it.
fn usage_exit_code(code: i32) -> u8 {
    // Options in front of it are a wrong call, and still one of a `restore_command`.
    let is_restore = std::env::args_os().skip(1).any(|argument| argument == "restore");
    if code != 0 && is_restore { broken_here() } else { u8::try_from(code).unwrap_or(2) }
}

fn relay(cli: Cli) -> ExitCode {
    // Before anything is opened, and before somebody replaces the file.
    let (sockets, successor) = (Sockets::of_process(), Arc::new(Successor::of_process()));
    successor.name_process();
    // Before there are other threads.
    let begun = Inherited::and_hold_orders().map_err(|source| ("could not hold back signals", source));
    let begun = begun.and_then(|signals| {
        Log::to_stderr().map(|log| (signals, log)).map_err(|source| ("could not start the log", source))
    });
    let (signals, log) = match begun {
        Ok(begun) => begun,
        Err((action, source)) => {
            let error = RelayError::System { action, source };
            out::tell(format_args!("walrelay: error: {error}\n"));
            return ExitCode::from(error.exit_code());
        }
    };
    log.take_panics();
    let mut words = Words::of_text(None);
    let passed = sockets.map_err(RelayError::from);
    let passed = passed.map(|sockets| (Arc::new(sockets), successor));
    let listening = passed.as_ref().ok().map(|(sockets, _)| sockets.clone());
    let run = || run(cli, &log, &signals, &mut words, passed);
    let ended = std::panic::catch_unwind(AssertUnwindSafe(run));
    let ended = ended.unwrap_or_else(|payload| {
        Err(PartEnded { part: "relay".to_owned(), how: HowEnded::panicked(&*payload) }.into())
    });
    let error = match ended {
        Ok(None) => None,
        Ok(Some(Handover { sockets, successor, .. })) => {
            let source = hand_over(&sockets, &successor, &log);
            let action = "could not run the new binary nor this one again, nothing runs now";
            Some(RelayError::System { action, source })
        }
        Err(error) => {
            // Nobody comes for what was to stay, should it have ended on the way to the next program.
            listening.iter().for_each(|sockets| sockets.stay_no_longer());
            Some(error)
        }
    };
    if let Some(error) = &error {
        words.report(error, &log);
    }
    log.drain(LAST_WORDS);
    ExitCode::from(error.map_or(0, |error| error.exit_code()))
}

/// Becomes the next program. Returns only if there is none; then nothing is left for it.
fn hand_over(sockets: &Sockets, successor: &Successor, log: &Log) -> std::io::Error {
    let passed = match sockets.into_next() {
        Ok(passed) => passed,
        Err(error) => {
            sockets.stay_no_longer();
            return error;
        }
    };
    let error = become_next(successor, &passed, log);
    // They are open until then: nobody else has taken their names.
    sockets.stay_no_longer();
    error
}

/// Becomes the new program, or else once more the one that runs, for consumers and commits wait. Returns only if neither can be.
fn become_next(successor: &Successor, passed: &Passed, log: &Log) -> std::io::Error {
    log.drain(LAST_WORDS);
    if let Err(error) = hold_for_exec() {
        tracing::warn!("could not hold back signals, one that comes now may be lost: {error}");
    }
    let error = successor.exec(passed);
    tracing::error!(
        "could not run \"{}\": {error}; the program that has run until now goes on",
        successor.path().display()
    );
    log.drain(LAST_WORDS);
    successor.exec_same(passed)
}

fn tool(command: Command) -> ExitCode {
    let code = run_tool(&command).unwrap_or_else(|error| {
        out::tell(format_args!("{}\n", last_words(&error)));
        tools::exit_code(&command, &error)
    });
    ExitCode::from(code)
}

fn run_tool(command: &Command) -> Result<u8, RelayError> {
    let log = tracing_subscriber::fmt().with_env_filter(EnvFilter::new("walrelay=warn"));
    let log = log.fmt_fields(text_fields()).with_writer(Stderr::default);
    // Nobody may read it: that is no reason to do otherwise.
    let log = log.log_internal_errors(false);
    log.with_ansi(false).with_target(false).without_time().init();
    let runtime = start_runtime()?;
    let result = runtime.block_on(tools::run(command, &Environment::of_process()));
    runtime.shutdown_background();
    result
}

/// How the last words are said: by lines for people, or to the log's reader if that is a program.
enum Words {
    Lines {
        /// In front of each.
        level: &'static str,
    },
    Event {
        /// What holds lines back.
        level: LevelSwitch,
    },
}

impl Words {
    /// Standard error may be the journal's; without a level in front it would take errors for information.
    fn of_text(journal: Option<&Journal>) -> Words {
        Words::Lines { level: journal.map_or("", |_| "<3>") }
    }

    fn report(&self, error: &RelayError, log: &Log) {
        match self {
            Words::Lines { level } => {
                let lines = last_words(error).replace('\n', &format!("\n{level}"));
                log.put(format!("{level}{lines}\n").as_bytes());
            }
            Words::Event { level } => {
                // Whatever --log-level holds back: nobody else says why the relay has ended.
                level.set(LevelFilter::ERROR);
                tracing::error!(exit_code = error.exit_code(), hint = error.hint(), "{error}");
            }
        }
    }
}

fn last_words(error: &RelayError) -> String {
    let hint = error.hint().map(|hint| format!("\nHINT:  {hint}")).unwrap_or_default();
    format!("walrelay: error: {}{hint}", one_line(&error.to_string()))
}

/// `words` are set as soon as the log has begun. What the next process gets, if one is to go on.
fn run(
    cli: Cli,
    log: &Log,
    signals: &Inherited,
    words: &mut Words,
    passed: Result<(Arc<Sockets>, Arc<Successor>), RelayError>,
) -> Result<Option<Handover>, RelayError> {
    let events = Events::default();
    let journal = Journal::behind_stderr();
    *words = Words::of_text(journal.as_ref());
    let file = cli.config.clone().unwrap_or_default();
    let tell = |line: &str| log.put(format!("walrelay: warning: {line}\n").as_bytes());
    let config = slow::told_of(
        slow::SLOW,
        || format!("configuration file \"{}\"", file.display()),
        tell,
        || signals.work_as_called(|| Config::resolve(cli, &Environment::of_process())),
    )?;
    let is_json = config.log_format == LogFormat::Json;
    let journal = journal.filter(|_| config.log_format == LogFormat::Auto);
    let is_event = is_json || journal.is_some();
    let log_level = start_log(&config, log, journal, events.clone());
    let level = log_level.clone();
    *words = if is_event { Words::Event { level } } else { Words::of_text(None) };
    let (sockets, successor) = passed?;
    let handover = Handover { sockets, successor, log_level };
    let action = "could not install signal handler";
    explain_bus_errors(UNREADABLE, is_json).map_err(|source| RelayError::System { action, source })?;
    // Where the allocator does not know that, it keeps more.
    map_large_blocks();
    let runtime = start_runtime()?;
    let result = runtime.block_on(relay::run(config, events, handover.clone()));
    // A blocking read of a dead disk must not hold up the end.
    runtime.shutdown_background();
    Ok((result? == Next::Successor).then_some(handover))
}

fn start_runtime() -> Result<Runtime, RelayError> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| RelayError::System { action: "could not start the runtime", source })
}

fn start_log(config: &Config, log: &Log, journal: Option<Journal>, events: Events) -> LevelSwitch {
    // The level is for lines. What is alerted on is counted whatever is shown.
    let (filter, handle) = reload::Layer::new(EnvFilter::new(config.log_level.to_string()));
    let registry = tracing_subscriber::registry().with(events.with_filter(LevelFilter::WARN));
    let switch = LevelSwitch::new(move |level| set_level(&handle, level));
    if let Some(journal) = journal {
        let lines = tracing_subscriber::fmt::layer().with_writer(log.to_journal(journal));
        let lines = lines.fmt_fields(text_fields()).event_format(Entries);
        registry.with(lines.with_filter(filter)).init();
        return switch;
    }
    let lines = tracing_subscriber::fmt::layer().with_writer(log.clone());
    match config.log_format {
        LogFormat::Auto | LogFormat::Text => {
            let ansi = std::io::stderr().is_terminal();
            let lines = lines.fmt_fields(text_fields()).with_ansi(ansi).with_target(false);
            registry.with(lines.with_filter(filter)).init();
        }
        LogFormat::Json => registry.with(lines.json().flatten_event(true).with_filter(filter)).init(),
    }
    switch
}

fn set_level<S>(handle: &Handle<EnvFilter, S>, level: LevelFilter) {
    // It fails only once the subscriber is gone, and that is there to the end.
    let _ = handle.reload(EnvFilter::new(level.to_string()));
}
