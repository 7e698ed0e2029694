//! `walrelay promotable`: who may be promoted, and what would be lost by it.
//!
//! Asks everybody at once (`ask`), weighs what they say ([`mod@decide`]), and shows it. Whether a `restore_command` would get the
//! rest from the relays is read from its text ([`mod@drain`]).

mod ask;
pub mod decide;
pub mod drain;

use std::fmt::Write as _;
use std::time::Duration;

use futures_util::future::join_all;
use serde::Serialize;

use crate::archive::{Reach, Server};
use crate::config::PromotableArgs;
use crate::conninfo::{ConnInfo, Environment};
use crate::error::RelayError;
use crate::out::{self, say};
use crate::progress::while_waiting;
use ask::{Commits, Told};
use decide::{Decision, End, Loss, Standing, decide};
use drain::{Drain, drain, hosts};

/// What it is called where it asks: a relay's name may be one that commits wait for.
const OUR_NAME: &str = "walrelay_promotable";
/// Clears a terminal.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Asks and shows, once or again and again. 0 if the best candidate loses nothing, 1 if it would, 2 if nobody can know.
pub(crate) async fn run(args: &PromotableArgs, environment: &Environment) -> Result<u8, RelayError> {
    let (relays, candidates) = (args.relays(environment)?, args.candidates(environment)?);
    loop {
        let look = look(&relays, &candidates, environment);
        let (shown, code) = while_waiting("asking relays and candidates", look).await;
        if args.json {
            let failed = |error: serde_json::Error| RelayError::System {
                action: "could not write JSON",
                source: error.into(),
            };
            say!("{}", serde_json::to_string_pretty(&shown).map_err(failed)?);
        } else {
            out::write(format_args!("{}{}", if args.watch.is_some() { CLEAR } else { "" }, table(&shown)));
        }
        let Some(pause) = args.watch else { return Ok(code) };
        tokio::time::sleep(Duration::from_secs_f64(pause.max(0.1))).await;
    }
}

/// What is shown. Sizes are bytes, times seconds; what is not known is absent.
#[derive(Debug, Serialize)]
struct Shown {
    /// `nothing`, `something` or `unknown`: what the best candidate would lose.
    loses: &'static str,
    /// Who it is.
    best: Option<String>,
    /// The relays that were asked.
    relays: Vec<ShownRelay>,
    /// The best first.
    candidates: Vec<ShownCandidate>,
}

#[derive(Debug, Serialize)]
struct ShownRelay {
    /// How it was named.
    name: String,
    /// The timeline that it follows.
    timeline: Option<u32>,
    /// End of what it holds durably.
    flush_lsn: Option<String>,
    /// End of what it has received, durable or not: all that a drain gets.
    write_lsn: Option<String>,
    /// Why that is not known.
    error: Option<String>,
}

#[derive(Debug, Serialize)]
struct ShownCandidate {
    /// How it was named.
    name: String,
    /// The timeline that it is on.
    timeline: Option<u32>,
    /// End of what it has received or replayed, whichever is more.
    end_lsn: Option<String>,
    /// End of what it has received.
    receive_lsn: Option<String>,
    /// End of what it has replayed.
    replay_lsn: Option<String>,
    /// Whether its replay is paused.
    replay_paused: Option<bool>,
    /// `nothing`, `something` or `unknown`.
    loses: &'static str,
    /// What it lacks of the relay that has most.
    lost: Option<ShownLack>,
    /// `yes`, `no` or `unknown`.
    restore_command_drains: &'static str,
    /// Whether its `restore_command` waits for all of the relays.
    restore_command_waits: bool,
    /// For how many of them it waits at least.
    restore_command_waits_for: usize,
    /// Why it drains nothing, or why that is not known.
    restore_command_reason: Option<String>,
    /// Why something is not known.
    error: Option<String>,
}

#[derive(Debug, Serialize)]
struct ShownLack {
    /// The relay that has it.
    relay: String,
    /// Where it begins.
    from_lsn: String,
    /// Where it ends.
    to_lsn: String,
    /// Whether the candidate has WAL there that the relay has not: another history.
    has_parted: bool,
    /// How much WAL that is.
    bytes: u64,
    /// Commits in it; null if they could not be counted.
    commits: Option<u64>,
    /// From the first of these commits to the last.
    seconds: Option<f64>,
    /// When the first of them was made.
    first_commit: Option<String>,
    /// When the last of them was made.
    last_commit: Option<String>,
}

/// A candidate's answers.
struct Asked {
    reach: Result<Reach, String>,
    told: Result<Told, String>,
}

async fn look(relays: &[ConnInfo], candidates: &[ConnInfo], environment: &Environment) -> (Shown, u8) {
    let server = |info: &ConnInfo| Server::new(info.clone().as_command(OUR_NAME));
    let servers: Vec<Server> = relays.iter().map(server).collect();
    let asked = candidates.iter().map(async |info| {
        let server = server(info);
        let (reach, told) = tokio::join!(ask::reach(&server), ask::tell(info));
        Asked { reach, told }
    });
    // What a candidate gets while the relays are asked is not missing: so they are asked first.
    let ends = join_all(servers.iter().map(ask::reach)).await;
    let asked = join_all(asked).await;
    let known: Vec<_> =
        ends.iter().map(|reach| reach.as_ref().map(End::from).map_err(Clone::clone)).collect();
    let decision = decide(&known, &asked.iter().map(standing).collect::<Vec<_>>());
    let counted = decision.losses.iter().map(async |loss| match loss {
        Loss::Some(lack) => ask::commits(&servers[lack.relay], ends[lack.relay].as_ref().ok()?, lack).await,
        _ => None,
    });
    let counted = join_all(counted).await;
    let show = |number: usize| {
        let (asked, info) = (&asked[number], &candidates[number]);
        let drain = match &asked.told {
            Ok(told) => match &told.restore_command {
                Some(command) => drain(command, relays, environment),
                None => Drain::Unknown("it is not told".to_owned()),
            },
            Err(reason) => Drain::Unknown(reason.clone()),
        };
        show_candidate(info, asked, &decision.losses[number], counted[number], drain, relays)
    };
    let others = (0..candidates.len()).filter(|number| !decision.order.contains(number));
    let candidates_shown = decision.order.iter().copied().chain(others).map(show).collect();
    let shown = Shown {
        loses: decision.best().map_or("unknown", |best| word(&decision.losses[best])),
        best: decision.best().map(|best| hosts(&candidates[best])),
        relays: relays.iter().zip(&ends).map(|(info, end)| show_relay(info, end)).collect(),
        candidates: candidates_shown,
    };
    (shown, Decision::exit_code(&decision))
}

fn standing(asked: &Asked) -> Result<Standing, String> {
    let reach = asked.reach.as_ref().map_err(Clone::clone)?;
    Ok(Standing { end: reach.into(), is_standby: reach.is_standby })
}

fn word(loss: &Loss) -> &'static str {
    match loss {
        Loss::Nothing => "nothing",
        Loss::Some(_) => "something",
        Loss::Unknown(_) => "unknown",
    }
}

fn show_relay(info: &ConnInfo, end: &Result<Reach, String>) -> ShownRelay {
    let reach = end.as_ref().ok();
    ShownRelay {
        name: hosts(info),
        timeline: reach.map(|reach| reach.history.tli().as_u32()),
        flush_lsn: reach.map(|reach| reach.flush_lsn.to_string()),
        write_lsn: reach.map(|reach| reach.write_lsn.to_string()),
        error: end.as_ref().err().cloned(),
    }
}

fn show_candidate(
    info: &ConnInfo,
    asked: &Asked,
    loss: &Loss,
    commits: Option<Commits>,
    drain: Drain,
    relays: &[ConnInfo],
) -> ShownCandidate {
    let (reach, told) = (asked.reach.as_ref().ok(), asked.told.as_ref().ok());
    let (drains, waits_for, reason) = match drain {
        Drain::Yes { waits_for } => ("yes", waits_for, None),
        Drain::No(reason) => ("no", 0, Some(reason)),
        Drain::Unknown(reason) => ("unknown", 0, Some(reason)),
    };
    let is_primary = reach.is_some_and(|reach| !reach.is_standby);
    let lost = match loss {
        Loss::Some(lack) => {
            let span = commits.and_then(|commits| commits.span);
            let seconds =
                span.map(|(first, last)| last.as_micros().saturating_sub(first.as_micros()) as f64 / 1e6);
            Some(ShownLack {
                relay: hosts(&relays[lack.relay]),
                from_lsn: lack.from.to_string(),
                to_lsn: lack.to.to_string(),
                has_parted: lack.has_parted,
                bytes: lack.bytes(),
                commits: commits.map(|commits| commits.count),
                seconds: seconds.or(commits.filter(|commits| commits.count == 0).map(|_| 0.0)),
                first_commit: span.map(|(first, _)| first.to_text()),
                last_commit: span.map(|(_, last)| last.to_text()),
            })
        }
        _ => None,
    };
    let error = match loss {
        _ if is_primary => Some("it is no standby".to_owned()),
        Loss::Unknown(reason) => Some(reason.clone()),
        _ => None,
    };
    ShownCandidate {
        name: hosts(info),
        timeline: reach.map(|reach| reach.history.tli().as_u32()),
        end_lsn: reach.map(|reach| reach.flush_lsn.to_string()),
        receive_lsn: told.and_then(|told| told.received).map(|lsn| lsn.to_string()),
        replay_lsn: told.and_then(|told| told.replayed).map(|lsn| lsn.to_string()),
        replay_paused: told.and_then(|told| told.pause_state.as_ref()).map(|state| state != "not paused"),
        loses: word(loss),
        lost,
        restore_command_drains: drains,
        restore_command_waits: waits_for >= relays.len(),
        restore_command_waits_for: waits_for,
        restore_command_reason: reason,
        error,
    }
}

/// For people.
fn table(shown: &Shown) -> String {
    let mut out = String::new();
    // A String takes everything.
    let _ = write_all(&mut out, shown);
    out
}

fn write_all(out: &mut String, shown: &Shown) -> std::fmt::Result {
    for relay in &shown.relays {
        match (&relay.error, relay.timeline, &relay.flush_lsn) {
            (None, Some(tli), Some(lsn)) => {
                let more = relay.write_lsn.as_ref().filter(|more| *more != lsn);
                let more = more.map_or_else(String::new, |more| format!(", received up to {more}"));
                writeln!(out, "relay {}: timeline {tli}, durable up to {lsn}{more}", relay.name)?;
            }
            (error, ..) => {
                writeln!(out, "relay {}: unknown: {}", relay.name, error.as_deref().unwrap_or_default())?;
            }
        }
    }
    for it in &shown.candidates {
        let lsn = |lsn: &Option<String>| lsn.clone().unwrap_or_else(|| "unknown".to_owned());
        let tli = it.timeline.map_or("unknown".to_owned(), |tli| tli.to_string());
        let paused = if it.replay_paused == Some(true) { " (paused)" } else { "" };
        writeln!(
            out,
            "candidate {}: timeline {tli}, has up to {}, received up to {}, replayed up to {}{paused}",
            it.name,
            lsn(&it.end_lsn),
            lsn(&it.receive_lsn),
            lsn(&it.replay_lsn)
        )?;
        match (&it.lost, &it.error) {
            (Some(lost), _) => writeln!(out, "  would lose {}", in_words(lost))?,
            (None, Some(error)) => writeln!(out, "  {error}")?,
            (None, None) => writeln!(out, "  would lose nothing")?,
        }
        let reason = it.restore_command_reason.as_ref().map(|reason| format!(": {reason}"));
        let waits = match (it.restore_command_drains, it.restore_command_waits_for) {
            ("yes", _) if it.restore_command_waits => ", and waits for them".to_owned(),
            ("yes", 0) => ", and waits for none of them".to_owned(),
            ("yes", some) => format!(", and waits for {some} of {}", shown.relays.len()),
            _ => String::new(),
        };
        let does = match it.restore_command_drains {
            "yes" => "asks the relays",
            "no" => "does not drain the relays",
            _ => "may drain the relays or not",
        };
        writeln!(out, "  restore_command {does}{waits}{}", reason.unwrap_or_default())?;
    }
    match (&shown.best, shown.loses) {
        (Some(best), "nothing") => writeln!(out, "{best} can be promoted, and loses nothing"),
        (Some(best), "something") => {
            writeln!(out, "{best} has most; promoted now without a drain it would lose something")
        }
        (Some(best), _) => writeln!(out, "{best} has most; what it would lose cannot be known"),
        (None, _) => writeln!(out, "no candidate has answered that is a standby"),
    }
}

fn in_words(lost: &ShownLack) -> String {
    let commits = match (&lost.commits, &lost.first_commit, &lost.last_commit, lost.seconds) {
        (Some(commits), Some(first), Some(last), Some(seconds)) => {
            format!("{commits} commits, made from {first} to {last} ({seconds:.3} s)")
        }
        (Some(commits), ..) => format!("{commits} commits"),
        (None, ..) => "an unknown number of commits".to_owned(),
    };
    let parted = if lost.has_parted { "; it has gone another way there" } else { "" };
    format!(
        "{} bytes from {} to {}, which relay {} has: {commits}{parted}",
        lost.bytes, lost.from_lsn, lost.to_lsn, lost.relay
    )
}
