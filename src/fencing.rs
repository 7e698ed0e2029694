//! `walrelay fence` and `unfence`: asks running relays side by side, tells what each has answered, and whether that is enough.

use std::time::Duration;

use futures_util::future::join_all;
use serde::Serialize;
use tokio::time::{Instant, timeout_at};
use walrelay_proto::ack::SynchronousStandbys;
use walrelay_proto::{FenceOrder, Lsn};

use crate::config::{FenceArgs, RelaysArgs, UnfenceArgs};
use crate::conninfo::{ConnInfo, Environment};
use crate::error::RelayError;
use crate::out::say;
use crate::pg::{ConnectError, QueryError, QueryResult, ServerError, connect_any};
use crate::progress::while_waiting;

/// A relay's fence, as it has told.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Told {
    /// `in force`, `being passed`, `lifted`, `passed` or `none`.
    pub state: String,
    /// Its number.
    pub epoch: Option<u64>,
    /// The timeline that a server has to be newer than.
    pub timeline: Option<u32>,
    /// Where WAL ends there.
    pub lsn: Option<String>,
    /// Why it was ordered.
    pub reason: Option<String>,
    /// When.
    pub since: Option<String>,
    /// By whom.
    pub role: Option<String>,
    /// From where.
    pub address: Option<String>,
    /// Whether a crash would change nothing of it.
    pub durable: bool,
    /// What the relay is called upstream.
    pub application_name: String,
}

impl Told {
    /// Whether nothing is confirmed by this relay any more, come what may.
    pub fn is_fenced(&self) -> bool {
        self.state == "in force" && self.durable && self.lsn.is_some()
    }

    fn line(&self) -> String {
        let number = |number: Option<u64>| number.map_or("?".to_owned(), |number| number.to_string());
        let (epoch, timeline) = (number(self.epoch), number(self.timeline.map(u64::from)));
        let position = self.lsn.as_ref().map_or("being closed".to_owned(), |lsn| format!("at {lsn}"));
        let by = match (&self.role, &self.address, &self.since) {
            (Some(role), Some(address), Some(since)) => format!(", by {role} from {address} at {since}"),
            _ => String::new(),
        };
        let reason = self.reason.as_ref().filter(|reason| !reason.is_empty());
        let reason = reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
        match self.state.as_str() {
            "none" => "never fenced".to_owned(),
            "in force" if self.is_fenced() => {
                format!("fenced {position} on timeline {timeline}, epoch {epoch}{by}{reason}")
            }
            "in force" => {
                format!(
                    "not fenced for certain yet, timeline {timeline} {position}, epoch {epoch}{by}{reason}"
                )
            }
            "being passed" => format!(
                "not fenced: epoch {epoch} is being passed, a server on a newer timeline than {timeline} is followed"
            ),
            state => format!("not fenced: epoch {epoch} was {state}"),
        }
    }
}

/// What came of asking a relay.
#[derive(Debug, Serialize)]
struct Answer {
    /// How it was named.
    relay: String,
    /// What it has told; null if it did not.
    fence: Option<Told>,
    /// Why it did not.
    error: Option<String>,
}

impl Answer {
    fn line(&self) -> String {
        let said = match (&self.fence, &self.error) {
            (Some(fence), _) => fence.line(),
            (None, error) => error.clone().unwrap_or_default(),
        };
        match &self.fence {
            Some(fence) => format!("{} ({}): {said}", self.relay, fence.application_name),
            None => format!("{}: {said}", self.relay),
        }
    }
}

/// All of it, for programs.
#[derive(Serialize)]
struct Report<'a> {
    /// What each has answered.
    relays: &'a [Answer],
    /// Whether that is enough for what was asked of them.
    enough: bool,
    /// The same in words.
    summary: String,
}

/// Whether enough relays are fenced.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Enough {
    /// They are.
    Yes,
    /// All that were asked should be, and so many are not.
    NotAll(usize),
    /// The primary may wait for anybody.
    Anybody,
    /// These can still confirm a commit, of which so many have to.
    Left {
        /// Their names.
        names: Vec<String>,
        /// How many the primary waits for.
        count: usize,
    },
}

/// Whether a commit can still be confirmed: by what each relay that was asked has told, `None` for one that has not answered.
/// A name counts as fenced when all relays that carry it, as far as they were asked, are.
pub fn enough(standbys: Option<&SynchronousStandbys>, relays: &[Option<(&str, bool)>]) -> Enough {
    let Some(standbys) = standbys else {
        return match relays.iter().filter(|relay| !relay.is_some_and(|(_, is_fenced)| is_fenced)).count() {
            0 => Enough::Yes,
            missing => Enough::NotAll(missing),
        };
    };
    let told = || relays.iter().flatten();
    let is_fenced = |name: &str| {
        told().filter(|(other, _)| other.eq_ignore_ascii_case(name)).all(|(_, is_fenced)| *is_fenced)
    };
    let fenced: Vec<&str> = told().map(|(name, _)| *name).filter(|name| is_fenced(name)).collect();
    match standbys.is_stopped_by(&fenced) {
        true => Enough::Yes,
        false if standbys.is_any => Enough::Anybody,
        false => {
            let names = standbys.left(&fenced).into_iter().map(str::to_owned).collect();
            Enough::Left { names, count: standbys.count }
        }
    }
}

impl Enough {
    fn line(&self, what: &str) -> String {
        match self {
            Enough::Yes => format!("enough are {what}"),
            Enough::NotAll(1) => format!("one relay is not {what}"),
            Enough::NotAll(missing) => format!("{missing} relays are not {what}"),
            Enough::Anybody => {
                "the primary waits for whoever is connected (*): nobody can know that no commit is confirmed"
                    .to_owned()
            }
            Enough::Left { names, count } => format!(
                "not enough are {what}: {} can confirm a commit, for which {count} {} enough",
                names.join(", "),
                if *count == 1 { "is" } else { "are" }
            ),
        }
    }
}

/// Fences relays, or tells how they are. Exit code 0 if enough are fenced, 1 if not.
pub(crate) async fn fence(args: &FenceArgs, environment: &Environment) -> Result<u8, RelayError> {
    let standbys = args.standbys()?;
    let command = match args.status {
        true => "FENCE_STATUS".to_owned(),
        false => FenceOrder { epoch: args.epoch, reason: args.reason.clone() }.to_string(),
    };
    let answers = while_waiting("asking the relays", ask_all(&args.relays, environment, &command)).await?;
    let told: Vec<_> = answers.iter().map(|answer| answer.fence.as_ref()).collect();
    let names: Vec<_> =
        told.iter().map(|told| told.map(|it| (it.application_name.as_str(), it.is_fenced()))).collect();
    let enough = enough(standbys.as_ref(), &names);
    let mut summary = enough.line("fenced");
    if let Some((timeline, lsn)) = furthest(&told) {
        summary = format!("{summary}; the furthest is at {lsn} on timeline {timeline}");
    }
    show(args.relays.json, &answers, enough == Enough::Yes, summary)
}

/// Lifts fences. Exit code 0 if no relay is fenced any more, 1 if one is or may be.
pub(crate) async fn unfence(args: &UnfenceArgs, environment: &Environment) -> Result<u8, RelayError> {
    let command = walrelay_proto::Command::Unfence { epoch: args.epoch }.to_string();
    let answers = while_waiting("asking the relays", ask_all(&args.relays, environment, &command)).await?;
    let is_free = |answer: &Answer| answer.fence.as_ref().is_some_and(|fence| fence.state != "in force");
    let missing = answers.iter().filter(|answer| !is_free(answer)).count();
    let summary = match missing {
        0 => "no relay is fenced".to_owned(),
        _ => Enough::NotAll(missing).line("unfenced"),
    };
    show(args.relays.json, &answers, missing == 0, summary)
}

/// The furthest of what the relays hold: by timeline first, then by position.
fn furthest(told: &[Option<&Told>]) -> Option<(u32, Lsn)> {
    let place = |told: &Told| Some((told.timeline?, told.lsn.as_ref()?.parse().ok()?));
    told.iter().flatten().filter(|told| told.is_fenced()).filter_map(|told| place(told)).max()
}

fn show(json: bool, answers: &[Answer], enough: bool, summary: String) -> Result<u8, RelayError> {
    let code = u8::from(!enough);
    if !json {
        answers.iter().for_each(|answer| say!("{}", answer.line()));
        say!("{summary}");
        return Ok(code);
    }
    let report = Report { relays: answers, enough, summary };
    let text = serde_json::to_string_pretty(&report);
    let action = "could not write JSON";
    say!("{}", text.map_err(|error| RelayError::System { action, source: error.into() })?);
    Ok(code)
}

async fn ask_all(
    args: &RelaysArgs,
    environment: &Environment,
    command: &str,
) -> Result<Vec<Answer>, RelayError> {
    let (relays, limit) = (args.relays(environment)?, args.limit()?);
    let ask = async |info: ConnInfo| {
        let relay = info.hosts.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        match ask(&info, command, limit).await {
            Ok(fence) => Answer { relay, fence: Some(fence), error: None },
            Err(error) => Answer { relay, fence: None, error: Some(error.to_string()) },
        }
    };
    Ok(join_all(relays.into_iter().map(ask)).await)
}

/// A relay does not answer as it should.
#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("could not connect: {0}")]
    Connect(#[from] ConnectError),
    #[error("refused: {}{}", _0.message, detail(_0))]
    Refused(Box<ServerError>),
    #[error("this server knows no fences; it is no walrelay, or one of an earlier version")]
    Unknown,
    #[error("{0}")]
    Query(QueryError),
    #[error("no answer within {} s; it may be fenced all the same", .0.as_secs_f32())]
    Silent(Duration),
    #[error("the answer is not understood ({0}); the relay may be of another version")]
    Answer(String),
}

fn detail(error: &ServerError) -> String {
    error.detail.as_ref().map(|detail| format!(" ({detail})")).unwrap_or_default()
}

async fn ask(info: &ConnInfo, command: &str, limit: Duration) -> Result<Told, AskError> {
    let deadline = Instant::now() + limit;
    let asked = async {
        let mut conn = connect_any(info, deadline).await?;
        let answer = conn.query(command).await;
        conn.close().await;
        match answer {
            Ok(result) => parse(result),
            Err(QueryError::Server(error)) if error.is_unknown_command() => Err(AskError::Unknown),
            Err(QueryError::Server(error)) => Err(AskError::Refused(Box::new(error))),
            Err(error) => Err(AskError::Query(error)),
        }
    };
    timeout_at(deadline, asked).await.unwrap_or(Err(AskError::Silent(limit)))
}

/// By names: a later version may tell more.
fn parse(result: QueryResult) -> Result<Told, AskError> {
    let QueryResult { columns, rows, .. } = result;
    let row = rows.into_iter().next().ok_or_else(|| AskError::Answer("it is empty".to_owned()))?;
    let value = |name: &str| {
        let at = columns.iter().position(|column| column == name)?;
        row.get(at)?.as_ref().map(|value| String::from_utf8_lossy(value).into_owned())
    };
    let needed = |name: &str| value(name).ok_or_else(|| AskError::Answer(format!("it has no {name}")));
    Ok(Told {
        state: needed("state")?,
        epoch: value("epoch").and_then(|epoch| epoch.parse().ok()),
        timeline: value("timeline").and_then(|timeline| timeline.parse().ok()),
        lsn: value("lsn"),
        reason: value("reason"),
        since: value("since"),
        role: value("role"),
        address: value("address"),
        durable: needed("durable")? == "t",
        application_name: needed("application_name")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(state: &str, lsn: Option<&str>, durable: bool) -> Told {
        Told {
            state: state.to_owned(),
            epoch: Some(3),
            timeline: Some(1),
            lsn: lsn.map(str::to_owned),
            reason: Some("test".to_owned()),
            since: None,
            role: None,
            address: None,
            durable,
            application_name: "r1".to_owned(),
        }
    }

    #[test]
    fn all_are_needed_unless_the_primary_needs_fewer() {
        let check = |standbys: Option<&str>, relays: &[Option<(&str, bool)>], expected: Enough| {
            let parsed = standbys.map(|text| text.parse::<SynchronousStandbys>().unwrap());
            assert_eq!(enough(parsed.as_ref(), relays), expected, "{standbys:?} {relays:?}");
        };
        let left = |names: &[&str], count| Enough::Left {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            count,
        };
        let (fenced, not) = (|name| Some((name, true)), |name| Some((name, false)));
        check(None, &[fenced("r1"), fenced("r2")], Enough::Yes);
        check(None, &[fenced("r1"), not("r2"), None], Enough::NotAll(2));
        let any = Some("ANY 1 (r1, r2)");
        check(any, &[fenced("r1"), fenced("R2"), None], Enough::Yes);
        check(any, &[fenced("r1"), None], left(&["r2"], 1));
        check(any, &[fenced("r1"), not("r2")], left(&["r2"], 1));
        let two = Some("ANY 2 (r1, r2, r3)");
        check(two, &[fenced("r1"), fenced("r3"), not("r2")], Enough::Yes);
        check(two, &[fenced("r1"), not("r2"), None], left(&["r2", "r3"], 2));
        // One of two relays that carry the same name is not fenced.
        check(Some("r1"), &[fenced("r1"), not("r1")], left(&["r1"], 1));
        check(Some("r1"), &[fenced("r1"), fenced("r1")], Enough::Yes);
        check(Some("r1"), &[fenced("other")], left(&["r1"], 1));
        check(Some("FIRST 1 (r1, *)"), &[fenced("r1")], Enough::Anybody);
    }

    #[test]
    fn only_what_is_closed_and_durable_counts() {
        let is_fenced = |state, lsn, durable| told(state, lsn, durable).is_fenced();
        assert!(is_fenced("in force", Some("0/3000060"), true));
        assert!(!is_fenced("in force", Some("0/3000060"), false));
        assert!(!is_fenced("in force", None, true));
        assert!(!is_fenced("lifted", Some("0/3000060"), true));
        let line = told("in force", Some("0/3000060"), true).line();
        assert_eq!(line, "fenced at 0/3000060 on timeline 1, epoch 3 (test)");
        assert_eq!(told("passed", None, true).line(), "not fenced: epoch 3 was passed");
        assert!(!is_fenced("being passed", Some("0/3000060"), true));
        let line = told("being passed", Some("0/3000060"), true).line();
        let expected = "not fenced: epoch 3 is being passed, a server on a newer timeline than 1 is followed";
        assert_eq!(line, expected);
    }

    #[test]
    fn the_furthest_is_by_timeline_first() {
        let (near, far) =
            (told("in force", Some("0/1000000"), true), told("in force", Some("0/2000000"), true));
        let newer = Told { timeline: Some(2), ..near.clone() };
        assert_eq!(furthest(&[Some(&near), Some(&far), None]), Some((1, Lsn::new(0x200_0000))));
        assert_eq!(furthest(&[Some(&newer), Some(&far)]), Some((2, Lsn::new(0x100_0000))));
        assert_eq!(furthest(&[Some(&told("lifted", Some("0/1"), true))]), None);
    }

    #[test]
    fn what_is_left_is_named() {
        let line = Enough::Left { names: vec!["a".to_owned(), "b".to_owned()], count: 1 }.line("fenced");
        assert_eq!(line, "not enough are fenced: a, b can confirm a commit, for which 1 is enough");
    }
}
