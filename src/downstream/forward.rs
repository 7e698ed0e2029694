//! Bytes between a client and its session upstream, both ways, unchanged but for the texts of statements.
//!
//! Each direction is a loop that reads, looks, and writes before it reads again: who does not read is not read
//! from, and no message is ever held but those whose text is looked at. As on a PostgreSQL server, nothing but the end
//! of either side or of the relay ends a session whose client does not read.

use std::io;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::exchange::{Exchange, Filter, Moment, bind_names, bind_with, deallocated};
use super::parting::{ENDED_UPSTREAM, LEFT, STOPPING};
use super::patience::GRACE;
use super::session::shutting_down;
use crate::overlay::{self, RowsParameter, SignalCall, SlotCall};
use crate::wire::PgError;

/// Longest message whose text is looked at. Nobody asks for a list of slots in a longer one.
const TEXT_LIMIT: usize = 1 << 20;
/// Read at a time.
const CLIENT_BUFFER: usize = 8 * 1024;
const SERVER_BUFFER: usize = 32 * 1024;

/// What is looked at of the name of a statement in a message which is longer than that; more than a server keeps.
const NAME_LIMIT: usize = 64;

/// The conversation of a session, for both of its directions.
#[derive(Debug)]
pub(super) struct Talk {
    exchange: Mutex<Exchange>,
    /// Answers have come.
    answered: Notify,
}

impl Talk {
    pub(super) fn new(exchange: Exchange) -> Talk {
        Talk { exchange: Mutex::new(exchange), answered: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, Exchange> {
        self.exchange.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What becomes of a message with a text.
#[derive(Default)]
pub(super) struct Fate {
    /// To be forwarded instead.
    pub(super) text: Option<Vec<u8>>,
    /// For each Bind of the statement.
    pub(super) rows: Option<RowsParameter>,
    /// To be asked first.
    pub(super) question: Option<Question>,
    /// For the client.
    pub(super) notice: Option<PgError>,
}

/// Asked of the server in the session, before it gets the text.
pub(super) struct Question {
    /// A query.
    pub(super) text: Vec<u8>,
    /// What it is about.
    pub(super) about: About,
}

/// What a question is about.
pub(super) enum About {
    /// Whether the call may be executed.
    Call(SlotCall),
    /// Whether the consumer may be signalled.
    Signal(SignalCall),
    /// Whether a command may reach the slot that it names.
    Slot(String),
}

/// Decides what becomes of texts.
pub(super) trait Texts {
    /// What becomes of a text that is sent now.
    fn rewrite(&mut self, message: overlay::Message, text: &[u8], moment: Moment) -> Fate;

    /// What the client's text is replaced by, now that the question has been answered with this row; `None` leaves it.
    /// Not cancel-safe: the session has to end.
    async fn act(&mut self, about: About, row: Vec<Option<Vec<u8>>>) -> Option<Vec<u8>>;

    /// What a Bind brings.
    fn rows(&mut self, rows: &RowsParameter) -> Vec<u8>;
}

/// One side: its socket's halves, and what was read from it already.
pub(super) struct Side<R, W> {
    pub(super) reader: R,
    pub(super) writer: W,
    pub(super) read_already: BytesMut,
}

/// Passes bytes on until one side has gone or the relay stops; says why, for the log.
pub(super) async fn forward<CR, CW, SR, SW>(
    client: Side<CR, CW>,
    server: Side<SR, SW>,
    texts: &mut impl Texts,
    talk: &Talk,
    shutdown: &CancellationToken,
) -> String
where
    CR: AsyncRead + Unpin,
    CW: AsyncWrite + Unpin,
    SR: AsyncRead + Unpin,
    SW: AsyncWrite + Unpin,
{
    let to_client = Mutex::new(ToClient::default());
    let mut client_writer = client.writer;
    let reason = {
        let up = requests(client.reader, client.read_already, server.writer, texts, talk);
        let down = answers(server.reader, server.read_already, &mut client_writer, &to_client, talk);
        let both = async {
            tokio::pin!(up, down);
            tokio::select! {
                end = &mut up => match end {
                    UpEnd::Client(reason) => Err(reason),
                    // The server has closed; what it said last is still on its way.
                    UpEnd::Server => Ok(down.await),
                },
                reason = &mut down => Ok(reason),
            }
        };
        tokio::select! {
            end = both => match end {
                Err(client_gone) => return client_gone,
                Ok(reason) => Some(reason),
            },
            () = shutdown.cancelled() => None,
        }
    };
    let at_boundary = lock(&to_client).at_boundary();
    let farewell = async {
        if reason.is_none() && at_boundary {
            client_writer.write_all(&shutting_down().encoded()).await?;
        }
        client_writer.shutdown().await
    };
    // A client that does not read is not waited for.
    let _ = tokio::time::timeout(GRACE, farewell).await;
    reason.unwrap_or_else(|| STOPPING.to_owned())
}

/// How far the client's side of the conversation has come.
#[derive(Default)]
struct ToClient {
    filter: Filter,
    /// Something that the filter has let through is being written; a part of it may have gone.
    writing: bool,
}

impl ToClient {
    /// Whether a message may be put in here.
    fn at_boundary(&self) -> bool {
        !self.writing && self.filter.at_boundary()
    }
}

fn lock(to_client: &Mutex<ToClient>) -> MutexGuard<'_, ToClient> {
    to_client.lock().unwrap_or_else(PoisonError::into_inner)
}

enum UpEnd {
    /// The client has gone.
    Client(String),
    /// The server takes nothing any more.
    Server,
}

/// Client to server.
async fn requests(
    mut client: impl AsyncRead + Unpin,
    mut input: BytesMut,
    mut server: impl AsyncWrite + Unpin,
    texts: &mut impl Texts,
    talk: &Talk,
) -> UpEnd {
    let mut cutter = Cutter::default();
    let mut output = BytesMut::new();
    loop {
        loop {
            let piece = cutter.next(&mut input, &mut talk.lock());
            let sent = match piece {
                Some(Piece::Pass(bytes)) => {
                    output.unsplit(bytes);
                    Ok(())
                }
                Some(Piece::Message(message)) => pass(message, &mut output, &mut server, texts, talk).await,
                None => break,
            };
            if sent.is_err() || output.len() > SERVER_BUFFER && send(&mut output, &mut server).await.is_err()
            {
                return UpEnd::Server;
            }
        }
        if send(&mut output, &mut server).await.is_err() {
            return UpEnd::Server;
        }
        while talk.lock().is_full() {
            talk.answered.notified().await;
        }
        if input.is_empty() && input.capacity() > CLIENT_BUFFER {
            input = BytesMut::new();
        }
        input.reserve(CLIENT_BUFFER);
        match client.read_buf(&mut input).await {
            Ok(0) => return UpEnd::Client(LEFT.to_owned()),
            Ok(_) => {}
            Err(error) => return UpEnd::Client(format!("could not receive data from client: {error}")),
        }
    }
}

async fn send(output: &mut BytesMut, server: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    server.write_all(output).await?;
    *output = BytesMut::new();
    server.flush().await
}

/// Passes on a message that is looked at.
async fn pass(
    message: BytesMut,
    output: &mut BytesMut,
    server: &mut (impl AsyncWrite + Unpin),
    texts: &mut impl Texts,
    talk: &Talk,
) -> io::Result<()> {
    let body = &message[5..];
    let kind = message[0];
    match kind {
        b'Q' | b'P' => return pass_text(message, output, server, texts, talk).await,
        b'B' => {
            let mut exchange = talk.lock();
            let rows = match bind_names(body) {
                Some((portal, statement, _)) => {
                    exchange.bind(portal, statement);
                    exchange.rows_of(statement).cloned()
                }
                None => {
                    exchange.send(kind);
                    None
                }
            };
            drop(exchange);
            let with_rows = rows.and_then(|rows| bind_with(&message, &texts.rows(&rows)));
            output.unsplit(with_rows.unwrap_or(message));
        }
        _ => {
            match (kind, body) {
                (b'D', [b'S', name @ .., 0]) => talk.lock().describe_statement(name),
                (b'C', [b'S', name @ .., 0]) => talk.lock().close_statement(name),
                (b'E', [name @ .., 0, _, _, _, _]) => talk.lock().execute(name),
                _ => talk.lock().send(kind),
            }
            output.unsplit(message);
        }
    }
    Ok(())
}

async fn pass_text(
    message: BytesMut,
    output: &mut BytesMut,
    server: &mut (impl AsyncWrite + Unpin),
    texts: &mut impl Texts,
    talk: &Talk,
) -> io::Result<()> {
    let kind = message[0];
    let Some(Text { name, span, sent_as }) = Text::of(&message) else {
        talk.lock().send(kind);
        output.unsplit(message);
        return Ok(());
    };
    let statement = matches!(sent_as, overlay::Message::Parse { .. }).then(|| &message[name.clone()]);
    let moment = talk.lock().moment(statement);
    let mut fate = texts.rewrite(sent_as, &message[span.clone()], moment);
    if let Some(notice) = fate.notice {
        talk.lock().tell(notice);
    }
    if let Some(question) = fate.question {
        let answer = {
            output.extend_from_slice(&query(&question.text));
            talk.lock().ask()
        };
        send(output, server).await?;
        let answer = answer.await.map_err(|_| io::Error::from(io::ErrorKind::ConnectionAborted))?;
        // The client has it already.
        if answer.failed {
            return Ok(());
        }
        fate.text = texts.act(question.about, answer.row.unwrap_or_default()).await;
    }
    match sent_as {
        overlay::Message::Simple => talk.lock().query(deallocated(&message[span.clone()])),
        overlay::Message::Parse { .. } => {
            talk.lock().parse(&message[name], &message[span.clone()], fate.rows);
        }
    }
    match fate.text {
        Some(text) => output.unsplit(replaced(&message, span, &text)),
        None => output.unsplit(message),
    }
    Ok(())
}

/// Where in a Query or Parse the text is.
struct Text {
    /// The statement's name.
    name: Range<usize>,
    span: Range<usize>,
    sent_as: overlay::Message,
}

impl Text {
    /// `None` for a message that is not laid out as it should be.
    fn of(message: &BytesMut) -> Option<Text> {
        let zero = |from: usize| Some(from + message.get(from..)?.iter().position(|byte| *byte == 0)?);
        if message[0] == b'Q' {
            return Some(Text { name: 5..5, span: 5..zero(5)?, sent_as: overlay::Message::Simple });
        }
        // The statement's name comes first.
        let name = zero(5)?;
        let end = zero(name + 1)?;
        let types = message.get(end + 1..end + 3)?;
        let types = u16::from_be_bytes([types[0], types[1]]);
        Some(Text { name: 5..name, span: name + 1..end, sent_as: overlay::Message::Parse { types } })
    }
}

/// Server to client.
async fn answers(
    mut server: impl AsyncRead + Unpin,
    mut input: BytesMut,
    client: &mut (impl AsyncWrite + Unpin),
    to_client: &Mutex<ToClient>,
    talk: &Talk,
) -> String {
    let mut output = BytesMut::new();
    loop {
        if !input.is_empty() {
            let mut to_client = lock(to_client);
            to_client.filter.feed(&input, &mut talk.lock(), &mut output);
            to_client.writing = true;
            talk.answered.notify_one();
        }
        let sent = async {
            client.write_all(&output).await?;
            client.flush().await
        };
        if let Err(error) = sent.await {
            return format!("could not send data to client: {error}");
        }
        lock(to_client).writing = false;
        output.clear();
        input.clear();
        input.reserve(SERVER_BUFFER);
        match server.read_buf(&mut input).await {
            Ok(0) => {
                // What it said last may have been the answer to a question of ours.
                let last = talk.lock().last_words();
                let _ = client.write_all(&last).await;
                return ENDED_UPSTREAM.to_owned();
            }
            Ok(_) => {}
            Err(error) => return gone(&error),
        }
    }
}

fn gone(error: &io::Error) -> String {
    format!("the connection to the upstream server was lost: {error}")
}

/// Where in the client's messages the input stands.
#[derive(Default)]
struct Cutter {
    /// Bytes still to come of a message that is passed on as it comes.
    passing: u64,
}

enum Piece {
    /// Bytes to pass on; the exchange knows of them.
    Pass(BytesMut),
    /// A whole message that is looked at; the exchange does not know of it yet.
    Message(BytesMut),
}

impl Cutter {
    /// The next piece of the input; `None` if more has to be read first.
    fn next(&mut self, input: &mut BytesMut, exchange: &mut Exchange) -> Option<Piece> {
        let mut pass = 0;
        loop {
            let rest = &input[pass..];
            if self.passing > 0 {
                let part = rest.len().min(usize::try_from(self.passing).unwrap_or(usize::MAX));
                self.passing -= part as u64;
                pass += part;
                if self.passing > 0 {
                    break;
                }
                continue;
            }
            let Some(&[kind, a, b, c, d]) = rest.first_chunk() else { break };
            let len = u32::from_be_bytes([a, b, c, d]) as usize;
            let is_short = (5..=TEXT_LIMIT).contains(&len);
            let is_looked_at = match kind {
                b'Q' | b'P' | b'D' | b'C' => is_short,
                b'B' => is_short && exchange.has_statements(),
                b'E' => is_short && exchange.has_deallocations(),
                _ => false,
            };
            if !is_looked_at {
                if kind == b'P' && exchange.has_statements() {
                    // Its text is too long to be of interest, but the name may be one that is known.
                    let start = &rest[5..rest.len().min(1 + len.max(4)).min(5 + NAME_LIMIT)];
                    match start.iter().position(|byte| *byte == 0) {
                        Some(end) => exchange.parse(&start[..end], b"", None),
                        None if rest.len() <= len && start.len() < NAME_LIMIT => break,
                        None => exchange.parse(start, b"", None),
                    }
                } else {
                    exchange.send(kind);
                }
                // A length that makes no sense is the server's to judge; the header goes there in any case.
                self.passing = 1 + (len as u64).max(4);
            } else if pass > 0 || rest.len() < 1 + len {
                break;
            } else {
                return Some(Piece::Message(input.split_to(1 + len)));
            }
        }
        (pass > 0).then(|| Piece::Pass(input.split_to(pass)))
    }
}

/// The message with another text.
fn replaced(message: &BytesMut, span: Range<usize>, text: &[u8]) -> BytesMut {
    let mut new = BytesMut::with_capacity(message.len() + text.len());
    new.put_slice(&message[..span.start]);
    new.put_slice(text);
    new.put_slice(&message[span.end..]);
    let length = u32::try_from(new.len() - 1).expect("both are short");
    new[1..5].copy_from_slice(&length.to_be_bytes());
    new
}

/// A Query message.
fn query(text: &[u8]) -> BytesMut {
    let mut message = BytesMut::with_capacity(text.len() + 6);
    message.put_u8(b'Q');
    message.put_u32(u32::try_from(text.len() + 5).expect("it is short"));
    message.put_slice(text);
    message.put_u8(0);
    message
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Shout;

    impl Texts for Shout {
        fn rewrite(&mut self, _: overlay::Message, text: &[u8], _: Moment) -> Fate {
            let text = text.starts_with(b"a").then(|| [&text.to_ascii_uppercase()[..], b"!"].concat());
            Fate { text, ..Fate::default() }
        }

        async fn act(&mut self, _: About, _: Vec<Option<Vec<u8>>>) -> Option<Vec<u8>> {
            None
        }

        fn rows(&mut self, _: &RowsParameter) -> Vec<u8> {
            Vec::new()
        }
    }

    /// What reaches the server of these bytes, read in pieces.
    fn pass(parts: &[&[u8]]) -> Vec<u8> {
        let (mut cutter, mut input, mut out) = (Cutter::default(), BytesMut::new(), BytesMut::new());
        let talk = Talk::new(Exchange::new(true, Some("UTF8")));
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for part in parts {
            input.extend_from_slice(part);
            loop {
                let piece = cutter.next(&mut input, &mut talk.lock());
                match piece {
                    Some(Piece::Pass(bytes)) => out.unsplit(bytes),
                    Some(Piece::Message(message)) => {
                        let (mut nobody, mut shout) = (tokio::io::sink(), Shout);
                        let passed = super::pass(message, &mut out, &mut nobody, &mut shout, &talk);
                        runtime.block_on(passed).unwrap();
                    }
                    None => break,
                }
            }
        }
        out.to_vec()
    }

    #[test]
    fn texts_are_replaced_and_everything_else_passes() {
        let sent = b"Q\0\0\0\x07ab\0B\0\0\0\x06xyP\0\0\0\x0en\0abc\0\0\x01\0\0S\0\0\0\x04Q\0\0\0\x06b\0";
        let expected =
            b"Q\0\0\0\x08AB!\0B\0\0\0\x06xyP\0\0\0\x0fn\0ABC!\0\0\x01\0\0S\0\0\0\x04Q\0\0\0\x06b\0";
        assert_eq!(pass(&[sent]), expected);
        assert_eq!(pass(&sent.chunks(1).collect::<Vec<_>>()), expected);
    }

    #[test]
    fn what_makes_no_sense_reaches_the_server() {
        for bytes in
            [&b"Q\0\0\0\x04"[..], b"Q\0\0\0\x06ab", b"P\0\0\0\x06n\0", b"X\0\0\0\0", b"Q\xff\xff\xff\xff"]
        {
            assert_eq!(pass(&[bytes]), bytes);
        }
    }

    #[test]
    fn a_long_message_is_not_held() {
        let mut bytes = b"Q\0\x20\0\0a".to_vec();
        bytes.resize(5000, b'x');
        assert_eq!(pass(&[&bytes]), bytes);
    }

    /// The relay stops while a message is half-way to a client that does not read.
    async fn stopped_half_way(reads: bool) -> Vec<u8> {
        let (mut client, client_side) = tokio::io::duplex(64);
        let (mut server, server_side) = tokio::io::duplex(4096);
        let message = [&b"D\0\0\x03\xec"[..], &[b'x'; 1000]].concat();
        server.write_all(&message).await.unwrap();
        let side = |stream| {
            let (reader, writer) = tokio::io::split(stream);
            Side { reader, writer, read_already: BytesMut::new() }
        };
        let stop = CancellationToken::new();
        let stopped = stop.clone();
        let forwarding = tokio::spawn(async move {
            let talk = Talk::new(Exchange::new(true, None));
            forward(side(client_side), side(server_side), &mut Shout, &talk, &stopped).await
        });
        let mut got = vec![0; 10];
        client.read_exact(&mut got).await.unwrap();
        if reads {
            got.resize(message.len(), 0);
            client.read_exact(&mut got[10..]).await.unwrap();
        }
        stop.cancel();
        let reason = match reads {
            true => tokio::join!(forwarding, client.read_to_end(&mut got)).0,
            false => forwarding.await,
        };
        assert_eq!(reason.unwrap(), "the relay is stopping");
        client.read_to_end(&mut got).await.unwrap();
        got.starts_with(b"D").then(|| got[message.len().min(got.len())..].to_vec()).unwrap()
    }

    #[tokio::test]
    async fn a_stop_is_told_between_two_messages_only() {
        assert_eq!(stopped_half_way(false).await, b"");
        assert_eq!(stopped_half_way(true).await, &shutting_down().encoded()[..]);
    }

    proptest! {
        #[test]
        fn cuts_make_no_difference(bytes in proptest::collection::vec(any::<u8>(), 0..200), step in 1_usize..9) {
            prop_assert_eq!(pass(&bytes.chunks(step).collect::<Vec<_>>()), pass(&[&bytes]));
        }
    }
}
