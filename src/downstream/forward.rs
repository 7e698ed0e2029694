//! Bytes between a client and its session upstream, both ways, unchanged but for the texts of statements.
//!
//! Each direction is a loop that reads, looks, and writes before it reads again: who does not read is not read
//! from, and no message is ever held but those whose text is looked at. As on a PostgreSQL server, nothing but the end
//! of either side or of the relay ends a session whose client does not read.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::{Buf, BufMut, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use super::patience::GRACE;
use super::session::shutting_down;
use crate::gateway::{Scan, Scanner};

/// Longest message whose text is looked at. Nobody asks for a list of slots in a longer one.
const TEXT_LIMIT: usize = 1 << 20;
/// Read at a time.
const CLIENT_BUFFER: usize = 8 * 1024;
const SERVER_BUFFER: usize = 32 * 1024;

/// What a session's statements depend on, as the server reports it.
#[derive(Debug)]
pub(super) struct SessionState {
    /// `I`, `T` or `E`, of the last `ReadyForQuery`.
    transaction: AtomicU8,
    standard_conforming_strings: AtomicBool,
}

impl SessionState {
    /// A session that has just logged in.
    pub(super) fn new(standard_conforming_strings: bool) -> SessionState {
        SessionState {
            transaction: AtomicU8::new(b'I'),
            standard_conforming_strings: AtomicBool::new(standard_conforming_strings),
        }
    }

    /// Whether the transaction is aborted, so that nothing is run any more.
    pub(super) fn has_failed(&self) -> bool {
        self.transaction.load(Ordering::Relaxed) == b'E'
    }

    /// Whether a backslash in a plain literal is just that.
    pub(super) fn standard_conforming_strings(&self) -> bool {
        self.standard_conforming_strings.load(Ordering::Relaxed)
    }

    fn note(&self, seen: &Scan) {
        match seen {
            Scan::Ready(status) => self.transaction.store(*status, Ordering::Relaxed),
            Scan::Parameter(pair) => {
                if let Some(value) = pair.strip_prefix(b"standard_conforming_strings\0") {
                    self.standard_conforming_strings.store(value == b"on\0", Ordering::Relaxed);
                }
            }
            Scan::Header { .. } => {}
        }
    }
}

/// A message with a statement's text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Statement {
    /// `Query`
    Simple,
    /// `Parse`
    Prepared,
}

/// Decides what becomes of a statement's text; `None` leaves it. Not cancel-safe: the session has to end.
pub(super) trait Texts {
    async fn rewrite(&mut self, kind: Statement, text: &[u8], state: &SessionState) -> Option<Vec<u8>>;
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
    state: &SessionState,
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
        let up = requests(client.reader, client.read_already, server.writer, texts, state);
        let down = answers(server.reader, server.read_already, &mut client_writer, &to_client, state);
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
    reason.unwrap_or_else(|| "the relay is stopping".to_owned())
}

/// How far the client's side of the conversation has come.
#[derive(Default)]
struct ToClient {
    scanner: Scanner,
    /// Something that the scanner has seen is being written; a part of it may have gone.
    writing: bool,
}

impl ToClient {
    /// Whether a message may be put in here.
    fn at_boundary(&self) -> bool {
        !self.writing && self.scanner.at_boundary()
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
    state: &SessionState,
) -> UpEnd {
    let mut cutter = Cutter::default();
    loop {
        while let Some(piece) = cutter.next(&mut input) {
            let bytes = match piece {
                Piece::Pass(bytes) => bytes,
                Piece::Text(message) => rewritten(message, texts, state).await,
            };
            if server.write_all(&bytes).await.is_err() {
                return UpEnd::Server;
            }
        }
        if server.flush().await.is_err() {
            return UpEnd::Server;
        }
        if input.is_empty() && input.capacity() > CLIENT_BUFFER {
            input = BytesMut::new();
        }
        input.reserve(CLIENT_BUFFER);
        match client.read_buf(&mut input).await {
            Ok(0) => return UpEnd::Client("client has left".to_owned()),
            Ok(_) => {}
            Err(error) => return UpEnd::Client(format!("could not receive data from client: {error}")),
        }
    }
}

/// Server to client.
async fn answers(
    mut server: impl AsyncRead + Unpin,
    mut input: BytesMut,
    client: &mut (impl AsyncWrite + Unpin),
    to_client: &Mutex<ToClient>,
    state: &SessionState,
) -> String {
    loop {
        if !input.is_empty() {
            let mut to_client = lock(to_client);
            to_client.scanner.feed(&input, |seen| state.note(&seen));
            to_client.writing = true;
        }
        let sent = async {
            client.write_all(&input).await?;
            client.flush().await
        };
        if let Err(error) = sent.await {
            return format!("could not send data to client: {error}");
        }
        lock(to_client).writing = false;
        input.clear();
        input.reserve(SERVER_BUFFER);
        match server.read_buf(&mut input).await {
            Ok(0) => return "the upstream server has ended the session".to_owned(),
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
    /// Bytes to pass on.
    Pass(BytesMut),
    /// A whole `Query` or `Parse`.
    Text(BytesMut),
}

impl Cutter {
    /// The next piece of the input; `None` if more has to be read first.
    fn next(&mut self, input: &mut BytesMut) -> Option<Piece> {
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
            let is_text = matches!(kind, b'Q' | b'P') && (5..=TEXT_LIMIT).contains(&len);
            if !is_text {
                // A length that makes no sense is the server's to judge; the header goes there in any case.
                self.passing = 1 + (len as u64).max(4);
            } else if pass > 0 || rest.len() < 1 + len {
                break;
            } else {
                return Some(Piece::Text(input.split_to(1 + len)));
            }
        }
        (pass > 0).then(|| Piece::Pass(input.split_to(pass)))
    }
}

/// The message with its text as it shall reach the server.
async fn rewritten(message: BytesMut, texts: &mut impl Texts, state: &SessionState) -> BytesMut {
    let body = &message[5..];
    let text_at = match message[0] {
        b'Q' => Some((Statement::Simple, 0)),
        // The statement's name comes first.
        _ => body.iter().position(|b| *b == 0).map(|end| (Statement::Prepared, end + 1)),
    };
    let Some((kind, start)) = text_at else { return message };
    let Some(len) = body[start..].iter().position(|b| *b == 0) else { return message };
    let Some(text) = texts.rewrite(kind, &body[start..start + len], state).await else { return message };
    let rest = &body[start + len..];
    let mut new = BytesMut::with_capacity(5 + start + text.len() + rest.len());
    new.put_u8(message[0]);
    let Ok(length) = u32::try_from(4 + start + text.len() + rest.len()) else { return message };
    new.put_u32(length);
    new.put_slice(&body[..start]);
    new.put_slice(&text);
    new.put_slice(rest);
    debug_assert_eq!(new.remaining(), length as usize + 1);
    new
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    struct Shout;

    impl Texts for Shout {
        async fn rewrite(&mut self, _: Statement, text: &[u8], _: &SessionState) -> Option<Vec<u8>> {
            text.starts_with(b"a").then(|| [&text.to_ascii_uppercase()[..], b"!"].concat())
        }
    }

    /// What reaches the server of these bytes, read in pieces.
    fn pass(parts: &[&[u8]]) -> Vec<u8> {
        let (mut cutter, mut input, mut out) = (Cutter::default(), BytesMut::new(), Vec::new());
        let state = SessionState::new(true);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        for part in parts {
            input.extend_from_slice(part);
            while let Some(piece) = cutter.next(&mut input) {
                match piece {
                    Piece::Pass(bytes) => out.extend(bytes),
                    Piece::Text(message) => {
                        out.extend(runtime.block_on(rewritten(message, &mut Shout, &state)));
                    }
                }
            }
        }
        out
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
            let state = SessionState::new(true);
            forward(side(client_side), side(server_side), &mut Shout, &state, &stopped).await
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
