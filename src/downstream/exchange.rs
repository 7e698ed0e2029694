//! Who is to answer what: the messages that a forwarded session has sent upstream, and the answers to them as they come
//! (PostgreSQL: `PostgresMain`, and "Message Flow" of its manual).
//!
//! From this is known whether everything sent has been answered, to which of its questions an answer belongs, and
//! which prepared statements have a parameter more than the client knows of.

mod deallocations;

use std::collections::{HashMap, HashSet, VecDeque};

use bytes::{Buf, BufMut, BytesMut};
use tokio::sync::oneshot;

use crate::overlay::RowsParameter;
use crate::wire::PgError;
use deallocations::Deallocations;
pub(super) use deallocations::deallocated;

/// Messages that may wait for their answers; then the client is not read from. More than a server answers in one go.
pub(super) const MOST_EXPECTED: usize = 1 << 16;
/// Prepared statements with rows of ours in a session; a text that would make one more passes as it is.
const MOST_STATEMENTS: usize = 1000;
/// What a server keeps of a name (`NAMEDATALEN`).
const NAME_LENGTH: usize = 63;
/// Longest ParameterStatus that is looked at, and longest of our own answers.
const KEPT: usize = 64 * 1024;

/// What the server will answer to, in order.
#[derive(Debug)]
enum Expected {
    /// `Parse`, with what it has changed about prepared statements if it comes to nothing.
    Parse(Option<Box<Undo>>),
    Bind,
    Close(Option<Box<Undo>>),
    Describe {
        /// The last parameter is ours.
        hide: bool,
    },
    Execute {
        /// It is nothing but the DEALLOCATE of this statement.
        deallocates: Option<Vec<u8>>,
    },
    Sync,
    /// `Query`, `FunctionCall`
    Query {
        /// It is nothing but the DEALLOCATE of this statement.
        deallocates: Option<Vec<u8>>,
    },
    /// A query of ours.
    Question(oneshot::Sender<Answer>),
    /// `CopyDone`, `CopyFail`: answered only as the end of a COPY.
    CopyEnd,
}

/// What a name was before.
#[derive(Debug)]
struct Undo {
    statement: Vec<u8>,
    before: Option<RowsParameter>,
}

/// What the server has said to a question of ours.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// Values of the first DataRow.
    pub(super) row: Option<Vec<Option<Vec<u8>>>>,
    /// The question has failed, and the client has been told.
    pub(super) failed: bool,
    /// The ErrorResponse, as a whole message.
    error: Option<BytesMut>,
}

/// What a text depends on that is sent now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Moment {
    /// Everything sent has been answered, so that the server reads what comes next with the settings reported.
    pub(super) is_quiet: bool,
    /// A transaction has failed, as far as is known.
    pub(super) has_failed: bool,
    /// The setting of that name, if it is certain.
    pub(super) standard_conforming_strings: Option<bool>,
    /// No character beyond ASCII has bytes of ASCII in it, with certainty.
    pub(super) ascii_safe: bool,
}

/// The state of a conversation.
#[derive(Debug)]
pub(super) struct Exchange {
    expected: VecDeque<Expected>,
    /// Messages of the extended protocol have been sent without a Sync behind them.
    unsynced: bool,
    /// The server has failed and skips everything up to the next Sync.
    skipping: bool,
    /// The server takes data, and nothing else counts until their end.
    copying: bool,
    /// Something came that was not expected; from then on nothing is certain.
    lost: bool,
    /// `I`, `T` or `E`, of the last `ReadyForQuery`.
    transaction: u8,
    standard_conforming_strings: bool,
    ascii_safe: bool,
    /// Prepared statements with a parameter of ours.
    statements: HashMap<Vec<u8>, RowsParameter>,
    deallocations: Deallocations,
    /// To be said when the present answer ends.
    notices: Vec<PgError>,
    /// The answer of ours that comes at the moment.
    answer: Answer,
}

impl Exchange {
    /// A session that has just logged in, with these settings.
    pub(super) fn new(standard_conforming_strings: bool, client_encoding: Option<&str>) -> Exchange {
        Exchange {
            expected: VecDeque::new(),
            unsynced: false,
            skipping: false,
            copying: false,
            lost: false,
            transaction: b'I',
            standard_conforming_strings,
            ascii_safe: client_encoding.is_some_and(is_ascii_safe),
            statements: HashMap::new(),
            deallocations: Deallocations::default(),
            notices: Vec::new(),
            answer: Answer::default(),
        }
    }

    fn is_quiet(&self) -> bool {
        let nothing = self.expected.iter().all(|expected| matches!(expected, Expected::CopyEnd));
        nothing && !self.unsynced && !self.skipping && !self.copying && !self.lost
    }

    /// What a text depends on that is sent now.
    pub(super) fn moment(&self) -> Moment {
        let is_quiet = self.is_quiet() && self.statements.len() < MOST_STATEMENTS;
        Moment {
            is_quiet,
            has_failed: self.transaction == b'E',
            standard_conforming_strings: is_quiet.then_some(self.standard_conforming_strings),
            ascii_safe: is_quiet && self.ascii_safe,
        }
    }

    /// Whether the client has to wait before it sends more.
    pub(super) fn is_full(&self) -> bool {
        self.expected.len() >= MOST_EXPECTED
    }

    /// What belongs into a Bind of the statement.
    pub(super) fn rows_of(&self, statement: &[u8]) -> Option<&RowsParameter> {
        self.statements.get(kept_of(statement))
    }

    /// Whether any Bind has to be looked at.
    pub(super) fn has_statements_with_rows(&self) -> bool {
        !self.statements.is_empty()
    }

    /// Whether any Bind and Execute has to be looked at.
    pub(super) fn has_deallocations(&self) -> bool {
        self.deallocations.any()
    }

    /// The client is told when the present answer ends.
    pub(super) fn tell(&mut self, notice: PgError) {
        // As many as a pipeline may have that nobody waits for.
        if self.notices.len() < 100 {
            self.notices.push(notice);
        }
    }

    /// A Parse of this text is sent, which needs the rows if there is something.
    pub(super) fn parse(&mut self, statement: &[u8], text: &[u8], rows: Option<RowsParameter>) {
        if !self.skipping {
            self.deallocations.parse(statement, text);
        }
        let undo = self.change(statement, rows);
        self.extended(Expected::Parse(undo));
    }

    /// A Describe of a statement is sent.
    pub(super) fn describe_statement(&mut self, statement: &[u8]) {
        let hide = self.statements.contains_key(kept_of(statement));
        self.extended(Expected::Describe { hide });
    }

    /// A Close of a statement is sent.
    pub(super) fn close_statement(&mut self, statement: &[u8]) {
        self.deallocations.close(statement);
        let undo = self.change(statement, None);
        self.extended(Expected::Close(undo));
    }

    fn change(&mut self, statement: &[u8], rows: Option<RowsParameter>) -> Option<Box<Undo>> {
        if self.skipping {
            return None;
        }
        let statement = kept_of(statement);
        let before = match rows {
            Some(rows) => self.statements.insert(statement.to_owned(), rows),
            None => Some(self.statements.remove(statement)?),
        };
        // The unnamed statement is gone as soon as the server parses another, whatever becomes of that.
        let before = before.filter(|_| !statement.is_empty());
        Some(Box::new(Undo { statement: statement.to_owned(), before }))
    }

    /// A Query is sent, which is nothing but the DEALLOCATE of a statement if one is given.
    pub(super) fn query(&mut self, deallocates: Option<Vec<u8>>) {
        if !self.skipping {
            self.expected.push_back(Expected::Query { deallocates });
        }
    }

    /// A Bind is sent.
    pub(super) fn bind(&mut self, portal: &[u8], statement: &[u8]) {
        self.deallocations.bind(portal, statement);
        self.send(b'B');
    }

    /// An Execute is sent.
    pub(super) fn execute(&mut self, portal: &[u8]) {
        let deallocates = self.deallocations.execute(portal);
        self.extended(Expected::Execute { deallocates });
    }

    /// Any other message is sent; only its type matters.
    pub(super) fn send(&mut self, kind: u8) {
        match kind {
            b'B' => self.extended(Expected::Bind),
            b'D' => self.extended(Expected::Describe { hide: false }),
            b'C' => self.extended(Expected::Close(None)),
            b'E' => self.extended(Expected::Execute { deallocates: None }),
            b'P' => self.extended(Expected::Parse(None)),
            // The server overlooks one among the data of a COPY.
            b'S' if !self.copying => {
                self.expected.push_back(Expected::Sync);
                (self.unsynced, self.skipping) = (false, false);
            }
            b'Q' | b'F' => self.query(None),
            b'c' | b'f' => {
                self.copying = false;
                // Without a COPY they are overlooked, and nothing takes them away before the next answer.
                if !matches!(self.expected.back(), None | Some(Expected::CopyEnd)) {
                    self.expected.push_back(Expected::CopyEnd);
                }
            }
            _ => {}
        }
    }

    /// A question of ours is sent.
    pub(super) fn ask(&mut self) -> oneshot::Receiver<Answer> {
        let (sender, receiver) = oneshot::channel();
        self.expected.push_back(Expected::Question(sender));
        receiver
    }

    fn extended(&mut self, expected: Expected) {
        self.unsynced = true;
        if !self.skipping {
            self.expected.push_back(expected);
        }
    }

    fn front(&mut self) -> Option<&mut Expected> {
        while matches!(self.expected.front(), Some(Expected::CopyEnd)) {
            self.expected.pop_front();
        }
        self.expected.front_mut()
    }

    fn pop(&mut self, right: impl FnOnce(&Expected) -> bool) {
        match self.front() {
            Some(front) if right(front) => drop(self.expected.pop_front()),
            _ => self.lost = true,
        }
    }

    /// The header of an answer has come; what is to be done with it.
    fn header(&mut self, kind: u8, length: usize) -> Way {
        match kind {
            b'S' if length <= KEPT => return Way::Look,
            b'S' | b'A' | b'N' => return Way::Pass,
            _ => {}
        }
        match self.front() {
            Some(Expected::Question(_)) if length <= KEPT => return Way::Keep,
            Some(Expected::Question(_)) => {
                self.lost = true;
                return Way::Keep;
            }
            Some(Expected::Describe { hide: true }) if kind == b't' && length <= KEPT * 8 => {
                return Way::Change;
            }
            _ => {}
        }
        match kind {
            b'Z' => return Way::Look,
            b'1' => self.pop(|front| matches!(front, Expected::Parse(_))),
            b'2' => self.pop(|front| matches!(front, Expected::Bind)),
            b'3' => self.pop(|front| matches!(front, Expected::Close(_))),
            b'T' | b'n' => {
                if let Some(Expected::Describe { .. }) = self.front() {
                    self.expected.pop_front();
                }
            }
            b'C' | b'I' | b's' => {
                self.copying = false;
                if kind == b'C' && DEALLOCATIONS.iter().any(|tag| tag.len() == length) {
                    return Way::Look;
                }
                self.executed();
            }
            b'G' | b'W' => self.copy_in(),
            b'E' => self.failed(),
            _ => {}
        }
        Way::Pass
    }

    /// A command has come to its end, or to that of the rows that were asked for.
    fn executed(&mut self) {
        if let Some(Expected::Execute { .. }) = self.front() {
            self.expected.pop_front();
        }
    }

    /// The server reads data now: what else has been sent in front of their end does not count.
    fn copy_in(&mut self) {
        let end = self.expected.iter().position(|expected| matches!(expected, Expected::CopyEnd));
        self.copying = end.is_none();
        let end = end.unwrap_or(self.expected.len());
        let mut at = 0;
        self.expected.retain(|expected| {
            at += 1;
            at > end || !matches!(expected, Expected::Sync)
        });
    }

    fn failed(&mut self) {
        self.copying = false;
        if matches!(
            self.front(),
            None | Some(Expected::Sync | Expected::Query { .. } | Expected::Question(_))
        ) {
            return;
        }
        // Nothing of what was sent up to the next Sync happens.
        let sync = self.expected.iter().position(|expected| matches!(expected, Expected::Sync));
        self.skipping = sync.is_none();
        let skipped: Vec<_> = self.expected.drain(..sync.unwrap_or(self.expected.len())).collect();
        for expected in skipped.into_iter().rev() {
            let (Expected::Parse(Some(undo)) | Expected::Close(Some(undo))) = expected else { continue };
            // What was sent behind the Sync has changed it since.
            let is_newer = |expected: &Expected| match expected {
                Expected::Parse(Some(later)) | Expected::Close(Some(later)) => {
                    later.statement == undo.statement
                }
                _ => false,
            };
            if self.expected.iter().any(is_newer) {
                continue;
            }
            match undo.before {
                Some(rows) => drop(self.statements.insert(undo.statement, rows)),
                None => drop(self.statements.remove(&undo.statement)),
            }
        }
    }

    fn ready(&mut self, status: u8) {
        self.transaction = status;
        self.copying = false;
        while let Some(expected) = self.expected.pop_front() {
            match expected {
                Expected::Sync | Expected::Query { .. } => return,
                Expected::CopyEnd => {}
                // An answer has not come that we have waited for.
                _ => self.lost = true,
            }
        }
        self.lost = true;
    }

    /// The end of a command that may have dropped prepared statements (PostgreSQL: `DropAllPreparedStatements`, which
    /// leaves the unnamed one).
    fn completed(&mut self, tag: &[u8]) {
        let name = match (tag, self.front()) {
            (b"DEALLOCATE ALL\0" | b"DISCARD ALL\0", _) => None,
            (b"DEALLOCATE\0", Some(Expected::Query { deallocates } | Expected::Execute { deallocates })) => {
                match deallocates.take() {
                    Some(name) => Some(name),
                    None => return self.executed(),
                }
            }
            _ => return self.executed(),
        };
        self.executed();
        let is_meant = |statement: &[u8]| match &name {
            Some(name) => kept_of(name) == statement,
            None => !statement.is_empty(),
        };
        // What is on its way is parsed later than that; should it fail, there is nothing before it any more.
        let mut later = HashSet::new();
        for expected in &mut self.expected {
            if let Expected::Parse(Some(undo)) | Expected::Close(Some(undo)) = expected
                && is_meant(&undo.statement)
                && later.insert(undo.statement.clone())
            {
                undo.before = None;
            }
        }
        self.statements.retain(|statement, _| !is_meant(statement) || later.contains(statement));
    }

    fn parameter(&mut self, body: &[u8]) {
        let mut parts = body.split(|byte| *byte == 0);
        let (Some(name), Some(value)) = (parts.next(), parts.next()) else { return };
        match name {
            b"standard_conforming_strings" => self.standard_conforming_strings = value == b"on",
            b"client_encoding" => self.ascii_safe = std::str::from_utf8(value).is_ok_and(is_ascii_safe),
            _ => {}
        }
    }

    /// A whole message of an answer to us. What the server has against the question, it has against what the client has
    /// sent.
    fn keep(&mut self, message: &BytesMut, output: &mut BytesMut) {
        match message[0] {
            b'D' if self.answer.row.is_none() => self.answer.row = values(&message[5..]),
            b'E' => self.answer.error = Some(without_position(message)),
            b'Z' => {
                self.transaction = message.get(5).copied().unwrap_or(b'I');
                let mut answer = std::mem::take(&mut self.answer);
                if let Some(error) = answer.error.take() {
                    answer.failed = true;
                    output.extend_from_slice(&error);
                    output.extend_from_slice(message);
                }
                if let Some(Expected::Question(sender)) = self.expected.pop_front() {
                    // Whoever asked may be gone.
                    let _ = sender.send(answer);
                }
            }
            _ => {}
        }
    }

    /// The error with which the server has ended the session, if it came as an answer to us.
    pub(super) fn last_words(&mut self) -> BytesMut {
        self.answer.error.take().unwrap_or_default()
    }
}

/// Tags of commands that drop prepared statements, as CommandComplete has them.
const DEALLOCATIONS: [&[u8]; 3] = [b"DEALLOCATE\0", b"DEALLOCATE ALL\0", b"DISCARD ALL\0"];

/// An ErrorResponse without the fields that tell where in the query the error is: it is not the client's.
fn without_position(message: &BytesMut) -> BytesMut {
    let fields = message[5..].split(|byte| *byte == 0);
    let kept = fields.filter(|field| !field.is_empty() && !b"Ppq".contains(&field[0]));
    let mut new = BytesMut::from(&b"E\0\0\0\0"[..]);
    for field in kept {
        new.extend_from_slice(field);
        new.put_u8(0);
    }
    new.put_u8(0);
    let length = (new.len() - 1) as u32;
    new[1..5].copy_from_slice(&length.to_be_bytes());
    new
}

/// Values of a DataRow's body.
fn values(mut body: &[u8]) -> Option<Vec<Option<Vec<u8>>>> {
    let count = body.try_get_u16().ok()?;
    let value = |_| match body.try_get_i32().ok()? {
        -1 => Some(None),
        length => {
            let (value, rest) = body.split_at_checked(usize::try_from(length).ok()?)?;
            body = rest;
            Some(Some(value.to_vec()))
        }
    };
    (0..count).map(value).collect()
}

/// Encodings in which a byte of ASCII is always that character; what is not known is not one of them
/// (PostgreSQL: `pg_wchar.h`, those that a server can have).
fn is_ascii_safe(encoding: &str) -> bool {
    let families = ["EUC_", "LATIN", "WIN", "ISO_8859_", "KOI8"];
    matches!(encoding, "UTF8" | "SQL_ASCII" | "MULE_INTERNAL")
        || families.iter().any(|family| encoding.starts_with(family))
}

/// What to do with a message of the server.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Pass,
    /// It passes as a whole, when it has been looked at.
    Look,
    /// It passes with its last parameter taken away.
    Change,
    /// It is for us.
    Keep,
}

/// Follows a server's messages, and changes the few that have to be.
#[derive(Debug, Default)]
pub(super) struct Filter {
    /// Bytes of the present body that pass as they come.
    passing: usize,
    /// The beginning of a message, up to its header or as a whole.
    held: BytesMut,
    way: Option<Way>,
}

impl Filter {
    /// Whether the output so far ends between two messages.
    pub(super) fn at_boundary(&self) -> bool {
        self.passing == 0
    }

    /// Takes the next bytes and adds what passes of them to `output`.
    pub(super) fn feed(&mut self, mut bytes: &[u8], exchange: &mut Exchange, output: &mut BytesMut) {
        loop {
            if self.passing > 0 {
                let part = bytes.len().min(self.passing);
                output.extend_from_slice(&bytes[..part]);
                self.passing -= part;
                bytes.advance(part);
            }
            let length = match self.held.get(1..5) {
                Some(word) => (u32::from_be_bytes([word[0], word[1], word[2], word[3]]) as usize).max(4) + 1,
                None => 5,
            };
            let part = bytes.len().min(length - self.held.len());
            let Some(way) = self.way else {
                if bytes.is_empty() {
                    return;
                }
                self.held.extend_from_slice(&bytes[..part.min(5)]);
                bytes.advance(part.min(5));
                self.begin(exchange, output);
                continue;
            };
            self.held.extend_from_slice(&bytes[..part]);
            bytes.advance(part);
            if self.held.len() < length {
                return;
            }
            self.way = None;
            let message = std::mem::take(&mut self.held);
            finish(way, message, exchange, output);
        }
    }

    fn begin(&mut self, exchange: &mut Exchange, output: &mut BytesMut) {
        let Some(&[kind, a, b, c, d]) = self.held.first_chunk() else { return };
        // A length below 4 is nonsense; what follows it is the client's to judge.
        let body = (u32::from_be_bytes([a, b, c, d]) as usize).saturating_sub(4);
        match exchange.header(kind, body) {
            Way::Pass => {
                output.extend_from_slice(&self.held);
                self.held.clear();
                self.passing = body;
            }
            way => self.way = Some(way),
        }
    }
}

fn finish(way: Way, message: BytesMut, exchange: &mut Exchange, output: &mut BytesMut) {
    match way {
        Way::Keep => return exchange.keep(&message, output),
        Way::Change => {
            output.extend_from_slice(&without_last_parameter(message));
            return;
        }
        Way::Look if message[0] == b'Z' => {
            exchange.ready(message.get(5).copied().unwrap_or(b'I'));
            for notice in exchange.notices.drain(..) {
                output.extend_from_slice(&notice.encoded());
            }
        }
        Way::Look if message[0] == b'C' => exchange.completed(&message[5..]),
        Way::Look | Way::Pass => exchange.parameter(&message[5..]),
    }
    output.extend_from_slice(&message);
}

/// A ParameterDescription without its last type.
fn without_last_parameter(mut message: BytesMut) -> BytesMut {
    let Some(count) = message.get(5..7).map(|word| u16::from_be_bytes([word[0], word[1]])) else {
        return message;
    };
    if count == 0 || message.len() != 7 + 4 * usize::from(count) {
        return message;
    }
    message.truncate(message.len() - 4);
    let length = (message.len() - 1) as u32;
    message[1..5].copy_from_slice(&length.to_be_bytes());
    message[5..7].copy_from_slice(&(count - 1).to_be_bytes());
    message
}

/// A Bind with one more parameter, behind all others; `None` if it is not laid out as it should be, which is the server's
/// to say.
pub(super) fn bind_with(message: &[u8], value: &[u8]) -> Option<BytesMut> {
    let body = message.get(5..)?;
    let (_, _, formats_at) = bind_names(body)?;
    let word = |at: usize| body.get(at..at + 2).map(|word| u16::from_be_bytes([word[0], word[1]]));
    let formats = word(formats_at)?;
    let count_at = formats_at + 2 + 2 * usize::from(formats);
    let count = word(count_at)?;
    let mut end = count_at + 2;
    for _ in 0..count {
        let length = body.get(end..end + 4)?;
        let length = i32::from_be_bytes([length[0], length[1], length[2], length[3]]);
        end += 4 + usize::try_from(length.max(0)).ok()?;
    }
    let rest = body.get(end..)?;
    let mut new = BytesMut::with_capacity(message.len() + value.len() + 16);
    new.put_u8(message[0]);
    new.put_u32(0);
    new.put_slice(&body[..formats_at]);
    // None is text for all, and one is for all; as text or in binary, ours is the same.
    let more = u16::from(formats > 1);
    new.put_u16(formats.checked_add(more)?);
    new.put_slice(&body[formats_at + 2..count_at]);
    if more == 1 {
        new.put_u16(0);
    }
    new.put_u16(count.checked_add(1)?);
    new.put_slice(&body[count_at + 2..end]);
    new.put_u32(u32::try_from(value.len()).ok()?);
    new.put_slice(value);
    new.put_slice(rest);
    let length = u32::try_from(new.len() - 1).ok()?;
    new[1..5].copy_from_slice(&length.to_be_bytes());
    Some(new)
}

/// What the server tells names apart by.
fn kept_of(statement: &[u8]) -> &[u8] {
    &statement[..statement.len().min(NAME_LENGTH)]
}

/// The portal and the statement that a Bind's body names, and where its formats begin.
pub(super) fn bind_names(body: &[u8]) -> Option<(&[u8], &[u8], usize)> {
    let portal = body.iter().position(|byte| *byte == 0)?;
    let statement = body[portal + 1..].iter().position(|byte| *byte == 0)?;
    Some((&body[..portal], &body[portal + 1..portal + 1 + statement], portal + statement + 2))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use walrelay_proto::Lsn;

    use super::*;
    use crate::overlay;

    fn session() -> Exchange {
        Exchange::new(true, Some("UTF8"))
    }

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        [&[kind][..], &(body.len() as u32 + 4).to_be_bytes(), body].concat()
    }

    /// What the client gets of these answers, and whether everything has been answered then.
    fn answered(exchange: &mut Exchange, kinds: &[u8]) -> (Vec<u8>, bool) {
        let bytes: Vec<_> = kinds.iter().flat_map(|kind| message(*kind, b"I")).collect();
        let mut output = BytesMut::new();
        Filter::default().feed(&bytes, exchange, &mut output);
        (output.to_vec(), exchange.is_quiet())
    }

    #[test]
    fn what_a_server_overlooks_does_not_stop_a_session() {
        let mut exchange = session();
        (0..=MOST_EXPECTED).for_each(|_| exchange.send(b'c'));
        assert!(!exchange.is_full() && exchange.is_quiet());
    }

    /// Whether a conversation is quiet behind it.
    fn is_quiet(sent: &[u8], answers: &[u8]) -> bool {
        let mut exchange = session();
        sent.iter().for_each(|kind| exchange.send(*kind));
        answered(&mut exchange, answers).1
    }

    #[test]
    fn quiet_is_when_everything_has_been_answered() {
        for (sent, answers, quiet) in [
            (&b""[..], &b""[..], true),
            (b"Q", b"", false),
            (b"Q", b"TDDCTDC", false),
            (b"Q", b"TDDCTDCNSZ", true),
            (b"QQ", b"EZ", false),
            (b"QQ", b"EZCZ", true),
            (b"PBDES", b"12TDCZ", true),
            (b"PBDE", b"12TDC", false),
            // Skipped up to the Sync, a Query among them.
            (b"PBQDES", b"EZ", true),
            (b"PBS", b"1EZ", true),
            (b"PBSPBES", b"1EZ", false),
            // The Sync among the data is overlooked, whenever it was sent.
            (b"PBESdcS", b"12GCZ", true),
            (b"PBESdfS", b"12GEZ", true),
            (b"Qdc", b"GCZ", true),
            (b"F", b"VZ", true),
        ] {
            assert_eq!(is_quiet(sent, answers), quiet, "{} {}", sent.escape_ascii(), answers.escape_ascii());
        }
    }

    #[test]
    fn what_was_not_expected_makes_nothing_certain() {
        let mut exchange = session();
        assert!(!answered(&mut exchange, b"Z").1);
        exchange.send(b'Q');
        assert!(!answered(&mut exchange, b"Z").1);
    }

    #[test]
    fn settings_are_those_reported() {
        let mut exchange = session();
        let mut output = BytesMut::new();
        let mut report = |exchange: &mut Exchange, body: &[u8]| {
            Filter::default().feed(&message(b'S', body), exchange, &mut output);
            let moment = exchange.moment();
            (moment.standard_conforming_strings, moment.ascii_safe)
        };
        assert_eq!(report(&mut exchange, b"client_encoding\0SJIS\0"), (Some(true), false));
        assert_eq!(report(&mut exchange, b"client_encoding\0EUC_JP\0"), (Some(true), true));
        assert_eq!(report(&mut exchange, b"standard_conforming_strings\0off\0"), (Some(false), true));
        exchange.send(b'Q');
        let moment = exchange.moment();
        assert_eq!((moment.standard_conforming_strings, moment.ascii_safe), (None, false));
    }

    #[test]
    fn answers_to_questions_of_ours_are_not_passed_on() {
        let mut exchange = session();
        let mut answer = exchange.ask();
        let row = message(b'D', b"\0\x02\0\0\0\x01t\xff\xff\xff\xff");
        let bytes = [message(b'T', b""), row, message(b'N', b"notice"), message(b'Z', b"T")].concat();
        let mut output = BytesMut::new();
        Filter::default().feed(&bytes, &mut exchange, &mut output);
        assert_eq!(output, message(b'N', b"notice"));
        let answer = answer.try_recv().unwrap();
        assert_eq!((answer.row, answer.failed), (Some(vec![Some(b"t".to_vec()), None]), false));
        // But errors are, without the place in a text that is not the client's.
        let mut answer = exchange.ask();
        let bytes = [message(b'E', b"SERROR\0P7\0Mno\0\0"), message(b'Z', b"E")].concat();
        Filter::default().feed(&bytes, &mut exchange, &mut output);
        let told =
            [message(b'N', b"notice"), message(b'E', b"SERROR\0Mno\0\0"), message(b'Z', b"E")].concat();
        assert_eq!(output, told);
        assert!(answer.try_recv().unwrap().failed && exchange.moment().has_failed);
    }

    /// A parameter for the rows of a view.
    fn rows() -> RowsParameter {
        struct Nothing;
        impl overlay::Relay for Nothing {
            fn slots(&mut self) -> Vec<overlay::Row> {
                Vec::new()
            }

            fn senders(&mut self) -> Vec<overlay::Row> {
                Vec::new()
            }

            fn has_slot(&mut self, _: &str) -> bool {
                false
            }

            fn create_slot(&mut self, _: &str, _: bool, _: bool) -> Result<Option<Lsn>, PgError> {
                Ok(None)
            }

            fn drop_slot(&mut self, _: &str) -> Result<(), PgError> {
                Ok(())
            }

            fn copy_slot(&mut self, _: &str, _: &str, _: Option<bool>) -> Result<(), PgError> {
                Ok(())
            }

            fn advance_slot(&mut self, _: &str, upto: Lsn) -> Result<Lsn, PgError> {
                Ok(upto)
            }
        }
        let message = overlay::Message::Parse { types: 0 };
        let context = overlay::SqlContext { message, ..overlay::SqlContext::default() };
        let rewritten = overlay::rewrite(b"table pg_replication_slots", &context, &mut Nothing);
        rewritten.rows.expect("it is read")
    }

    fn feed(exchange: &mut Exchange, messages: &[(u8, &[u8])]) {
        let bytes: Vec<_> = messages.iter().flat_map(|(kind, body)| message(*kind, body)).collect();
        let mut output = BytesMut::new();
        Filter::default().feed(&bytes, exchange, &mut output);
        assert_eq!(&output[..], bytes, "all of it passes");
    }

    #[test]
    fn deallocated_statements_are_forgotten() {
        let with = |names: &[&str]| {
            let mut exchange = session();
            names.iter().for_each(|name| exchange.parse(name.as_bytes(), b"", Some(rows())));
            exchange.send(b'S');
            let mut answers: Vec<(u8, &[u8])> = vec![(b'1', b""); names.len()];
            answers.push((b'Z', b"I"));
            feed(&mut exchange, &answers);
            exchange
        };
        let known =
            |exchange: &Exchange| ["", "a", "b"].map(|name| exchange.rows_of(name.as_bytes()).is_some());
        for tag in [&b"DEALLOCATE ALL\0"[..], b"DISCARD ALL\0"] {
            let mut exchange = with(&["", "a", "b"]);
            exchange.send(b'Q');
            // It is parsed behind the other, and before the answer has come.
            exchange.parse(b"b", b"", Some(rows()));
            exchange.send(b'S');
            feed(&mut exchange, &[(b'C', tag), (b'Z', b"I")]);
            assert_eq!(known(&exchange), [true, false, true]);
            // It fails: there is no other any more.
            feed(&mut exchange, &[(b'E', b"\0"), (b'Z', b"I")]);
            assert_eq!(known(&exchange), [true, false, false]);
            assert!(exchange.is_quiet());
        }
        let mut exchange = with(&["a", "b"]);
        exchange.query(deallocated(b"deallocate a"));
        feed(&mut exchange, &[(b'C', b"DEALLOCATE\0"), (b'Z', b"I")]);
        assert_eq!(known(&exchange), [false, false, true]);
        // In the extended protocol, behind another command.
        let mut exchange = with(&["a", "b"]);
        exchange.parse(b"", b"deallocate a", None);
        exchange.bind(b"", b"");
        exchange.execute(b"");
        exchange.send(b'S');
        feed(&mut exchange, &[(b'1', b""), (b'2', b""), (b'C', b"DEALLOCATE\0"), (b'Z', b"I")]);
        assert_eq!(known(&exchange), [false, false, true]);
        assert!(exchange.is_quiet());
        // One that fails, and one that is not known.
        exchange.query(deallocated(b"deallocate b"));
        feed(&mut exchange, &[(b'E', b"\0"), (b'Z', b"I")]);
        exchange.send(b'Q');
        feed(&mut exchange, &[(b'C', b"DEALLOCATE\0"), (b'Z', b"I")]);
        assert_eq!(known(&exchange), [false, false, true]);
    }

    #[test]
    fn a_bind_gets_a_parameter_more() {
        let with = |body: &[u8]| bind_with(&message(b'B', body), b"rows").map(|new| new.to_vec());
        let expected = |body: &[u8]| Some(message(b'B', body));
        assert_eq!(with(b"p\0s\0\0\0\0\0\0\0"), expected(b"p\0s\0\0\0\0\x01\0\0\0\x04rows\0\0"));
        assert_eq!(
            with(b"\0\0\0\x01\0\x01\0\x01\xff\xff\xff\xff\0\0"),
            expected(b"\0\0\0\x01\0\x01\0\x02\xff\xff\xff\xff\0\0\0\x04rows\0\0")
        );
        assert_eq!(
            with(b"\0\0\0\x02\0\x01\0\0\0\x02\0\0\0\x01a\0\0\0\0\0\x01\0\x01"),
            expected(b"\0\0\0\x03\0\x01\0\0\0\0\0\x03\0\0\0\x01a\0\0\0\0\0\0\0\x04rows\0\x01\0\x01")
        );
        assert_eq!(with(b"\0\0\0\0\0\x01\0\0\0\x09a"), None);
    }

    proptest! {
        #[test]
        fn cuts_make_no_difference(bytes in proptest::collection::vec(any::<u8>(), 0..200), step in 1_usize..9) {
            let feed = |step: usize| {
                let (mut exchange, mut filter, mut output) = (session(), Filter::default(), BytesMut::new());
                b"QPBDESQ".iter().for_each(|kind| exchange.send(*kind));
                bytes.chunks(step).for_each(|part| filter.feed(part, &mut exchange, &mut output));
                (output, exchange.is_quiet())
            };
            prop_assert_eq!(feed(step), feed(200));
        }

        #[test]
        fn no_bind_is_too_strange(body in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = bind_with(&message(b'B', &body), b"rows");
        }
    }
}
