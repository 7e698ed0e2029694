//! `walrelay status`: asks a running relay how it is, and shows it.

use std::fmt::Write as _;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::StatusArgs;
use crate::conninfo::{ConnInfo, Environment};
use crate::error::RelayError;
use crate::out::{self, say};
use crate::pg::{ConnectError, QueryError, connect_any};
use crate::progress::while_waiting;
use crate::status::{Distance, Status, in_brief};

/// The relay's own database.
const DATABASE: &str = "walrelay";
const QUESTION: &str = "SHOW STATUS";
/// How long connecting and the answer may take.
const LIMIT: Duration = Duration::from_secs(10);
/// Pauses of `--watch`, whatever is asked for.
const SHORTEST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(86_400);
/// Clears a terminal.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// A relay does not say how it is.
#[derive(Debug, thiserror::Error)]
pub enum ShowError {
    /// It cannot be connected to.
    #[error("could not connect to the relay: {0}")]
    Connect(#[from] ConnectError),
    /// It refuses.
    #[error("the relay does not tell its status: {0}")]
    Query(#[from] QueryError),
    /// It does not answer.
    #[error("the relay has not answered within {} s", LIMIT.as_secs())]
    Silent,
    /// What it says is not understood.
    #[error("the answer of the relay is not understood ({0}); it may be of another version")]
    Answer(String),
}

impl ShowError {
    /// Whether somebody answers there.
    pub(crate) fn is_an_answer(&self) -> bool {
        match self {
            ShowError::Connect(error) => matches!(error, ConnectError::Server(_)),
            ShowError::Query(_) | ShowError::Answer(_) => true,
            ShowError::Silent => false,
        }
    }
}

/// Asks and shows, once or again and again. 0 if all is well, 1 if somebody should look at something.
pub(crate) async fn run(args: &StatusArgs, environment: &Environment) -> Result<u8, RelayError> {
    let info = args.relay(environment)?.for_sql(DATABASE);
    let Some(pause) = args.watch else {
        let (text, status) = while_waiting("asking the relay", ask(&info)).await?;
        out::write(format_args!("{}", if args.json { text + "\n" } else { table(&status) }));
        return Ok(u8::from(!status.troubles().is_empty()));
    };
    loop {
        match ask(&info).await {
            Ok((text, _)) if args.json => say!("{text}"),
            Ok((_, status)) => out::write(format_args!("{CLEAR}{}", table(&status))),
            // Whoever watches a restart wants to see that it is over.
            Err(error) => out::tell(format_args!("walrelay: {error}\n")),
        }
        let pause = Duration::try_from_secs_f64(pause).unwrap_or(LONGEST).clamp(SHORTEST, LONGEST);
        tokio::time::sleep(pause).await;
    }
}

/// How a relay is.
///
/// # Errors
/// Why it does not tell.
pub(crate) async fn status_of(info: &ConnInfo) -> Result<Status, ShowError> {
    ask(&info.for_sql(DATABASE)).await.map(|(_, status)| status)
}

async fn ask(info: &ConnInfo) -> Result<(String, Status), ShowError> {
    let asked = async {
        let mut conn = connect_any(info, Instant::now() + LIMIT).await?;
        let result = conn.query(QUESTION).await;
        conn.close().await;
        Ok::<_, ShowError>(result?)
    };
    let result = tokio::time::timeout(LIMIT, asked).await.map_err(|_| ShowError::Silent)??;
    let value = result.rows.into_iter().next().and_then(|row| row.into_iter().next()).flatten();
    let value = value.ok_or_else(|| ShowError::Answer("it is empty".to_owned()))?;
    let text = String::from_utf8_lossy(&value).into_owned();
    let status = serde_json::from_str(&text).map_err(|error| ShowError::Answer(error.to_string()))?;
    Ok((text, status))
}

/// All there is for people.
fn table(status: &Status) -> String {
    let mut out = String::new();
    // A String takes everything.
    let _ = write_all(&mut out, status);
    out
}

fn write_all(out: &mut String, status: &Status) -> std::fmt::Result {
    for line in in_brief(&status.find_troubles()) {
        writeln!(out, "! {line}")?;
    }
    let (relay, upstream, disk) = (&status.relay, &status.upstream, &status.disk);
    let lsn = |lsn: Option<walrelay_proto::Lsn>| lsn.map_or("-".to_owned(), |lsn| lsn.to_string());
    writeln!(
        out,
        "relay      walrelay {}, PID {}, up {}, {}",
        relay.version,
        relay.pid,
        time(relay.uptime_seconds),
        relay.data_dir
    )?;
    writeln!(
        out,
        "wal        timeline {}, written {}, flushed {}, on disk from {}",
        relay.timeline.map_or("-".to_owned(), |tli| tli.to_string()),
        lsn(relay.write_lsn),
        lsn(relay.flush_lsn),
        lsn(relay.oldest_lsn)
    )?;
    writeln!(
        out,
        "upstream   {} for {}, {}{}",
        upstream.state,
        time(status.at.since(upstream.since).as_secs_f64()),
        upstream.host.as_deref().unwrap_or(&upstream.conninfo),
        upstream.server_version.as_ref().map(|version| format!(", PostgreSQL {version}")).unwrap_or_default()
    )?;
    if let Some(fence) = status.fence.as_ref().filter(|fence| fence.is_in_force()) {
        writeln!(out, "fenced     {}", fence.line())?;
    }
    writeln!(
        out,
        "at risk    {} not flushed, {} not received",
        size(upstream.unflushed_bytes),
        upstream.unreceived_bytes.map_or("-".to_owned(), size)
    )?;
    writeln!(
        out,
        "disk       {} free of {}, pg_wal {}, {}",
        size(disk.free_bytes),
        size(disk.size_bytes),
        size(disk.wal_bytes),
        disk.full_in_seconds.map_or("not filling up".to_owned(), |left| format!("full in {}", time(left)))
    )?;
    grid(out, &consumers(status))?;
    grid(out, &slots(status))?;
    grid(out, &archive(status))
}

type Line = Vec<String>;

fn line<const N: usize>(cells: [&str; N]) -> Line {
    cells.map(str::to_owned).into()
}

fn consumers(status: &Status) -> Vec<Line> {
    let header = line(["CONSUMER", "STATE", "ADDRESS", "SLOT", "FLUSHED", "LAG", "", "REPLAY LAG"]);
    let rows = status.consumers.iter().map(|it| {
        let safe = it.safe();
        vec![
            it.application_name.clone(),
            it.state.clone(),
            it.client_addr.clone().unwrap_or_else(|| "local".to_owned()),
            it.slot.clone().unwrap_or_else(|| "-".to_owned()),
            safe.map_or("-".to_owned(), |it| it.lsn.to_string()),
            lag_bytes(safe),
            lag_time(safe),
            lag_time(it.replay),
        ]
    });
    [header].into_iter().chain(rows).collect()
}

fn slots(status: &Status) -> Vec<Line> {
    let header = line(["SLOT", "PID", "WAL", "RESTART", "KEEPS", "LAG"]);
    let rows = status.slots.iter().map(|it| {
        vec![
            it.name.clone(),
            it.active_pid.map_or("unused".to_owned(), |pid| pid.to_string()),
            it.wal_status.clone().unwrap_or_else(|| "-".to_owned()),
            it.restart.map_or("-".to_owned(), |it| it.lsn.to_string()),
            size(it.held_bytes),
            lag_time(it.restart),
        ]
    });
    [header].into_iter().chain(rows).collect()
}

fn archive(status: &Status) -> Vec<Line> {
    let header = line(["ARCHIVE", "PLACE", "LAST FILE", "PENDING", "AT RISK", "", "FAILURES"]);
    let rows = status.archive.iter().map(|it| {
        vec![
            it.name.clone(),
            it.place.clone(),
            it.last_archived_file.clone().unwrap_or_else(|| "-".to_owned()),
            it.pending_files.to_string(),
            it.at_risk_bytes.map_or("-".to_owned(), size),
            it.at_risk_seconds.map_or("-".to_owned(), time),
            it.failures.to_string(),
        ]
    });
    [header].into_iter().chain(rows).collect()
}

fn lag_bytes(distance: Option<Distance>) -> String {
    distance.map_or("-".to_owned(), |it| size(it.lag_bytes))
}

fn lag_time(distance: Option<Distance>) -> String {
    distance.map_or("-".to_owned(), |it| time(it.lag_seconds))
}

/// Lines with their cells below each other; nothing if there is only the header.
fn grid(out: &mut String, lines: &[Line]) -> std::fmt::Result {
    if lines.len() < 2 {
        return Ok(());
    }
    let columns = lines.iter().map(Vec::len).max().unwrap_or(0);
    let width =
        |column: usize| lines.iter().filter_map(|line| line.get(column)).map(|it| it.chars().count()).max();
    let widths: Vec<_> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    writeln!(out)?;
    for line in lines {
        let cells = line.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
        writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
    }
    Ok(())
}

fn size(bytes: u64) -> String {
    let units = [("TB", 1u64 << 40), ("GB", 1 << 30), ("MB", 1 << 20), ("kB", 1 << 10)];
    let unit = units.into_iter().find(|(_, size)| bytes >= *size);
    unit.map_or_else(
        || format!("{bytes} B"),
        |(name, size)| format!("{:.1} {name}", bytes as f64 / size as f64),
    )
}

fn time(seconds: f64) -> String {
    match seconds {
        s if s < 120.0 => format!("{s:.1} s"),
        s if s < 7200.0 => format!("{:.0} min", s / 60.0),
        s if s < 172_800.0 => format!("{:.0} h", s / 3600.0),
        s => format!("{:.0} days", s / 86_400.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::Scene;

    #[test]
    fn what_is_wrong_comes_first_and_columns_are_below_each_other() {
        let mut scene = Scene::new();
        let consumer = scene.consumer(7, "a-standby-with-a-long-name");
        let end = scene.more_wal(1000);
        consumer.start_at(end);
        let text = table(&scene.now());
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].starts_with("! no WAL comes from the upstream"), "{text}");
        let header = lines.iter().position(|line| line.starts_with("CONSUMER")).unwrap();
        assert_eq!(lines[header].find("STATE"), lines[header + 1].find("startup"), "{text}");
        assert!(lines[header + 1].contains(&format!("{end}  0 B  0.0 s")), "{text}");
        assert!(!text.contains("ARCHIVE"), "{text}");
    }

    #[test]
    fn figures_are_for_people() {
        assert_eq!([size(10), size(1536), size(5 << 30)], ["10 B", "1.5 kB", "5.0 GB"]);
        assert_eq!([time(0.04), time(600.0), time(200_000.0)], ["0.0 s", "10 min", "2 days"]);
    }
}
