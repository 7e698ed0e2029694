//! A connection to a server that has said who it is, and what a course has done with it.
//!
//! No decision is made here: each method performs one step and says what came of it.

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;
use walrelay_proto::course::{
    Compared, Identified, Introduced as Facts, Reserved, Seam, Slot, Standing, Stream, StreamEnd, Streamed,
};
use walrelay_proto::{Lsn, TimelineHistory, TimelineId, TimelinePosition};

use super::failure::UpstreamError;
use super::follow::UpstreamConfig;
use super::histories::{HistoryFiles, UpstreamHistory, read_history};
use super::introduce::{Introduced, answer, identify, major_version, read_slot, slot_in_sql};
use super::left::Left;
use super::made::Making;
use super::receive::{self, ReceiveContext, ReceiveError};
use super::seam::{CompareError, Entry, Held};
use crate::conninfo::HostSpec;
use crate::pg::{QueryError, ServerError, UpstreamConnection, message};
use crate::store::{AppendError, HeldTimeline, ReadError, Store, StoreError, Writer};

/// A connection to a server.
pub(super) struct Link {
    pub(super) conn: UpstreamConnection,
    host: HostSpec,
    introduced: Introduced,
    /// Where it stands, as far as is known.
    identified: Identified,
    /// The history of its timeline, once it was asked for.
    theirs: Option<UpstreamHistory>,
    /// Files that were fetched and are not stored yet.
    files: HistoryFiles,
    /// Another timeline that was looked for.
    found: Option<HeldTimeline>,
    /// What was read at the seam.
    held: Option<Held>,
}

impl Link {
    pub(super) fn new(
        conn: UpstreamConnection,
        host: HostSpec,
        identified: Identified,
        introduced: Introduced,
    ) -> Link {
        let files = HistoryFiles::default();
        Link { conn, host, introduced, identified, theirs: None, files, found: None, held: None }
    }

    /// Who the server is.
    pub(super) fn facts(&self) -> Facts {
        let Introduced { identity, slot, .. } = &self.introduced;
        Facts { identified: self.identified, seg_size: identity.seg_size, slot: *slot }
    }

    /// The server's timeline, as far as is known.
    pub(super) fn timeline(&self) -> TimelineId {
        self.identified.tli
    }

    pub(super) async fn identify(&mut self) -> Result<Identified, UpstreamError> {
        self.identified = identify(&mut self.conn).await?;
        Ok(self.identified)
    }

    pub(super) async fn fetch_history(&mut self, tli: TimelineId) -> Result<TimelineHistory, UpstreamError> {
        let theirs = UpstreamHistory::fetch(&mut self.conn, tli).await?;
        let history = theirs.history.clone();
        self.theirs = Some(theirs);
        Ok(history)
    }

    pub(super) async fn fetch_histories(&mut self, writer: &Writer) -> Result<(), UpstreamError> {
        let Some(theirs) = &self.theirs else { return Err(answer("TIMELINE_HISTORY", "not asked yet")) };
        self.files = theirs.fetch_all(&mut self.conn, writer.store()).await?;
        Ok(())
    }

    /// What is held; what was looked at before is let go.
    pub(super) fn look(&mut self, writer: &mut Writer) -> Result<Option<Standing>, UpstreamError> {
        (self.found, self.held) = (None, None);
        writer.rewind();
        let Some(position) = writer.position() else { return Ok(None) };
        let store = writer.store();
        let ours = store.history();
        let newest = writer.newest().filter(|newest| *newest > ours.tli());
        // Without its history it leads nowhere.
        let newest = newest.and_then(|newest| read_history(store, newest).ok());
        let here = store.held_timelines().map_err(|source| StoreError::Io {
            action: "could not list WAL in",
            path: store.data_dir().to_owned(),
            source,
        })?;
        let is_bare = writer.is_bare();
        Ok(Some(Standing { ours: (*ours).clone(), held: position.lsn, is_bare, newest, here }))
    }

    /// Makes our slot; whether there was none.
    pub(super) async fn create_slot(
        &mut self,
        config: &UpstreamConfig,
        store: &Store,
    ) -> Result<bool, UpstreamError> {
        let slot = &config.slot;
        // Before that version nobody asks a slot what was reported.
        let is_read = major_version(&self.conn) >= 15;
        let option = if is_read { "PHYSICAL (RESERVE_WAL)" } else { "PHYSICAL RESERVE_WAL" };
        let command = format!("CREATE_REPLICATION_SLOT \"{slot}\" {option}");
        let noted = |source| UpstreamError::NotNoted { slot: slot.to_string(), source };
        let host = self.host.to_string();
        let making = is_read.then(|| Making::begin(store, &host)).transpose().map_err(noted)?;
        match self.conn.query(&command).await {
            Ok(_) => tracing::info!("created replication slot \"{slot}\" on the upstream"),
            Err(QueryError::Server(error)) if error.is_duplicate_object() => {
                making.map_or(Ok(()), Making::was_there).map_err(noted)?;
                return Ok(false);
            }
            Err(source) => return Err(UpstreamError::Command { command, source }),
        }
        if let Some(making) = making
            && let Slot::There { reserved: Some(Reserved { lsn, .. }) } = self.read_slot(config).await?
        {
            making.made(lsn).map_err(noted)?;
        }
        Ok(true)
    }

    pub(super) async fn read_slot(&mut self, config: &UpstreamConfig) -> Result<Slot, UpstreamError> {
        read_slot(&mut self.conn, &config.slot).await
    }

    /// Where our slot's WAL begins on a server before 15, made if there is none. If it cannot be asked and the slot was there before, WAL may be passed over, and
    /// somebody has to know.
    pub(super) async fn read_slot_in_sql(
        &mut self,
        config: &UpstreamConfig,
        store: &Store,
    ) -> Result<Slot, UpstreamError> {
        let UpstreamConfig { conninfo, dbname, slot, .. } = config;
        let host = self.host.clone();
        let there = |lsn: Option<Lsn>| Slot::There { reserved: lsn.map(|lsn| Reserved { lsn, tli: None }) };
        let asked = match slot_in_sql(conninfo, dbname, &host, slot).await {
            Ok(None) => {
                self.create_slot(config, store).await?;
                slot_in_sql(conninfo, dbname, &host, slot).await
            }
            asked => asked,
        };
        let error = match asked {
            Ok(restart) => return Ok(there(restart.flatten())),
            Err(error) => error,
        };
        if !self.create_slot(config, store).await? {
            tracing::warn!(
                "slot \"{slot}\" on {host} was there before, and from where on it keeps WAL cannot be found out ({error}): WAL \
                 from its restart_lsn up to {} is not fetched; if it is needed, stop the relay, let role \"{}\" log in to \
                 database \"{dbname}\" there, and start again with an empty data directory before the slot has moved",
                self.identified.xlogpos,
                conninfo.user
            );
        }
        Ok(there(None))
    }

    /// Begins an empty data directory.
    pub(super) fn begin(
        &mut self,
        writer: &mut Writer,
        at: Lsn,
        tli: TimelineId,
    ) -> Result<(), UpstreamError> {
        let Introduced { identity, parameters, .. } = &self.introduced;
        writer.store().attach(*identity, parameters.clone())?;
        std::mem::take(&mut self.files).save(writer.store())?;
        writer.begin(*identity, read_history(writer.store(), tli)?, at);
        tracing::info!(
            "the data directory holds no WAL, starting at {} on timeline {tli}",
            at.seg_start(identity.seg_size)
        );
        Ok(())
    }

    /// The end of what is held of another timeline.
    pub(super) fn find(
        &mut self,
        writer: &Writer,
        history: TimelineHistory,
    ) -> Result<Option<Lsn>, UpstreamError> {
        self.found = writer.find(history)?;
        Ok(self.found.as_ref().map(|found| found.end().lsn))
    }

    /// What is held right before `at`, of the timeline that was `found` last or of the present one.
    /// Why there is nothing is told; that it cannot be read is a failure, for it is there and has to be the same.
    pub(super) fn read_seam(
        &mut self,
        writer: &Writer,
        at: Lsn,
        found: bool,
    ) -> Result<Result<Seam, String>, UpstreamError> {
        let held = match self.found.as_ref().filter(|_| found) {
            Some(timeline) => Held::before_on(writer.store(), timeline, at),
            None => Held::before(writer.store(), at),
        };
        match held {
            Ok(held) => Ok(Ok(self.held.insert(held).seam())),
            Err(error @ ReadError::Io { .. }) => Err(UpstreamError::Unreadable(error)),
            Err(error) => Ok(Err(error.to_string())),
        }
    }

    pub(super) async fn compare(&mut self, tli: TimelineId) -> Result<Compared, UpstreamError> {
        let Some(held) = self.held.take() else { return Ok(Compared::Idle) };
        held.compare(&mut self.conn, tli).await.map_err(|error| match error {
            CompareError::Command { command, source } => UpstreamError::Command { command, source },
            CompareError::Diverged(error) => UpstreamError::Append(error),
        })
    }

    /// It is a server that is followed: it may leave, and get, something.
    pub(super) fn accept(
        &mut self,
        config: &UpstreamConfig,
        writer: &mut Writer,
    ) -> Result<(), UpstreamError> {
        let store = writer.store().clone();
        store.attach(self.introduced.identity, self.introduced.parameters.clone())?;
        std::mem::take(&mut self.files).save(&store)?;
        writer.head_for(self.identified.tli)?;
        config.followed.show(Some(self.host.clone()));
        self.introduced.tell_acknowledgements(
            &store,
            &config.conninfo.application_name,
            &self.host,
            self.identified.tli,
        );
        Ok(())
    }

    /// Goes on with the timeline that was found; the present one is left.
    pub(super) fn take_up(&mut self, writer: &mut Writer, newest: TimelineId) -> Result<(), UpstreamError> {
        let Some(held) = self.found.take() else { return Err(AppendError::Failed.into()) };
        let (left, end) = (Left::of(writer, held.history(), newest), held.end());
        writer.take_up(held, newest)?;
        tracing::info!(
            "went back to timeline {}, held up to {}, to follow timeline {newest}",
            end.tli,
            end.lsn
        );
        left.tell(writer);
        Ok(())
    }

    /// From START_REPLICATION to the end of the stream; how it went, and how long WAL could come.
    pub(super) async fn stream(
        &mut self,
        config: &UpstreamConfig,
        stop: &CancellationToken,
        writer: &mut Writer,
        stream: Stream,
    ) -> Result<(Streamed<UpstreamError>, Duration), UpstreamError> {
        let Stream { tli, from, .. } = stream;
        let command = format!("START_REPLICATION SLOT \"{}\" {from} TIMELINE {tli}", config.slot);
        let failed = |source| UpstreamError::Command { command: command.clone(), source };
        let (held, mut lasted) = (writer.verified(), Duration::ZERO);
        let end = match start(&mut self.conn, &command).await.map_err(failed)? {
            Started::Streaming => {
                let began = Instant::now();
                let result = self.receive(config, stop, writer, stream).await;
                lasted = began.elapsed();
                self.end_of(stream, result)
            }
            Started::Ended { next } => timeline_ended(tli, next),
            Started::NoSlot(error) => StreamEnd::NoSlot(failed(QueryError::Server(error))),
        };
        let verified = writer.verified();
        let streamed = Streamed { came: verified != held, verified: verified.map(|end| end.lsn), end };
        Ok((streamed, lasted))
    }

    async fn receive(
        &mut self,
        config: &UpstreamConfig,
        stop: &CancellationToken,
        writer: &mut Writer,
        Stream { tli, from, until, compares }: Stream,
    ) -> Result<receive::StreamEnd, ReceiveError> {
        let Link { conn, host, introduced, identified, files, held, .. } = self;
        let its = identified.tli;
        let announcement = format!("started streaming WAL from {host} at {from} on timeline {tli}");
        let wal_receiver_timeout = config.wal_receiver_timeout.current();
        let server = host.to_string();
        let board = config.followed.board();
        board.streaming(TimelinePosition { tli, lsn: from });
        let announcement = &announcement;
        let cx = ReceiveContext { wal_receiver_timeout, stop, server: &server, board, announcement };
        let (store, files, followed) =
            (writer.store().clone(), std::mem::take(files), config.followed.shower());
        let accept = move |writer: &mut Writer| {
            store.attach(introduced.identity, introduced.parameters.clone())?;
            files.save(&store)?;
            writer.head_for(its)?;
            followed.send_replace(Some(host.clone()));
            introduced.tell_acknowledgements(&store, &config.conninfo.application_name, host, its);
            Ok(())
        };
        let held = held.take().filter(|_| compares);
        let entry = held.map(|held| Entry { held, until, accept: Box::new(accept) });
        receive::receive(conn, writer, &cx, entry).await
    }

    fn end_of(
        &self,
        stream: Stream,
        result: Result<receive::StreamEnd, ReceiveError>,
    ) -> StreamEnd<UpstreamError> {
        let error = match result {
            Ok(receive::StreamEnd::Timeline { next }) => return timeline_ended(stream.tli, next),
            Ok(receive::StreamEnd::ServerStopped) => return StreamEnd::ServerStopped,
            Ok(receive::StreamEnd::Stopped) => return StreamEnd::Stopped,
            Err(error) => error,
        };
        match error {
            ReceiveError::Server(error) if error.is_wal_removed() => {
                tracing::debug!("the upstream has no WAL at {} any more: {error}", stream.from);
                let (host, at) = (self.host.to_string(), stream.until.page_start());
                StreamEnd::Removed(UpstreamError::WalRemoved { host, at, message: error.message })
            }
            ReceiveError::Append(AppendError::Bad(source)) => StreamEnd::Bad(source),
            ReceiveError::Append(error) => StreamEnd::Failed(UpstreamError::Append(error)),
            ReceiveError::Accept(error) => StreamEnd::Failed(*error),
            other => StreamEnd::Failed(UpstreamError::Stream(other.to_string())),
        }
    }
}

/// What a server says to START_REPLICATION.
enum Started {
    Streaming,
    /// The timeline ends just where we are: its successor comes without a stream.
    Ended {
        next: Option<(TimelineId, Lsn)>,
    },
    NoSlot(ServerError),
}

async fn start(conn: &mut UpstreamConnection, command: &str) -> Result<Started, QueryError> {
    conn.send_query(command).await?;
    let (mut next, mut failure) = (None, None);
    loop {
        match conn.next_message().await? {
            (b'W', _) => return Ok(Started::Streaming),
            (b'D', body) => next = receive::next_timeline(&body),
            (b'E', body) => failure = Some(message::server_error(body).unwrap_or_default()),
            (b'Z', _) => break,
            _ => {}
        }
    }
    match failure {
        Some(error) if error.is_no_such_object() => Ok(Started::NoSlot(error)),
        Some(error) => Err(QueryError::Server(error)),
        None => Ok(Started::Ended { next }),
    }
}

fn timeline_ended(tli: TimelineId, next: Option<(TimelineId, Lsn)>) -> StreamEnd<UpstreamError> {
    let shown = next.map_or("unknown".to_owned(), |(tli, at)| format!("{tli} from {at}"));
    tracing::info!("upstream has ended timeline {tli}, next is {shown}");
    StreamEnd::Timeline
}

/// Goes on along the timeline `to`.
pub(super) fn switch(writer: &mut Writer, to: TimelineId) -> Result<(), UpstreamError> {
    let history = read_history(writer.store(), to)?;
    let (at, left) = (history.begin(), Left::of(writer, &history, to));
    writer.switch_timeline(history)?;
    tracing::info!("switched to timeline {to} at {at}");
    left.tell(writer);
    Ok(())
}

/// Publishes what is complete and waits until it is durable.
pub(super) async fn wait_until_durable(writer: &mut Writer) -> Result<(), UpstreamError> {
    writer.commit();
    let written = *writer.store().written().borrow();
    let mut flushed = writer.store().flushed();
    tokio::select! {
        _ = flushed.wait_for(|flushed| *flushed == written) => Ok(()),
        _ = writer.store().failed() => Err(AppendError::Failed.into()),
    }
}
