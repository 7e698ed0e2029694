//! Who is to answer what: the messages that a forwarded session has sent upstream, and the answers to them as they come
//! (PostgreSQL: `PostgresMain`, and "Message Flow" of its manual).
//!
//! From this is known whether everything sent has been answered, to which of its questions an answer belongs, and
//! which prepared statements have a parameter more than the client knows of.

mod deallocations;
mod statements;

use std::collections::{HashMap, VecDeque};

use bytes::{Buf, BufMut, BytesMut};
use tokio::sync::oneshot;

use crate::overlay::RowsParameter;
use crate::wire::PgError;
pub(super) use deallocations::deallocated;
pub(super) use statements::Name;
use statements::{Kept, Statements, cut};

/// Messages that may wait for their answers; then the client is not read from. More than a server answers in one go.
pub(super) const MOST_EXPECTED: usize = 1 << 16;
/// Portals of a session that run a DEALLOCATE; what more of them drop is taken to be there.
const MOST_PORTALS: usize = 64;
/// Longest ParameterStatus that is looked at, and longest of our own answers.
const KEPT: usize = 64 * 1024;

/// What the server will answer to, in order.
#[derive(Debug)]
enum Expected {
    /// `Parse`, of this statement if what becomes of it is of interest.
    Parse(Option<Name>),
    Bind(Option<Box<Bound>>),
    /// As with `Parse`.
    Close(Option<Name>),
    Describe {
        /// The statement, if its last parameter may be ours.
        statement: Option<Name>,
    },
    Execute {
        /// If it may run a DEALLOCATE.
        portal: Option<Name>,
    },
    Sync,
    /// `Query`, `FunctionCall`
    Query {
        /// It is nothing but the DEALLOCATE of this statement.
        deallocates: Option<Name>,
    },
    /// A query of ours.
    Question(oneshot::Sender<Answer>),
    /// `CopyDone`, `CopyFail`: answered only as the end of a COPY.
    CopyEnd,
}

/// A portal that a Bind makes.
#[derive(Debug)]
struct Bound {
    portal: Name,
    /// What it runs, if something is known of it.
    statement: Option<Name>,
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
    /// The statement prepared from the text may have a parameter of ours.
    pub(super) takes_rows: bool,
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
    statements: Statements,
    /// Those that run a DEALLOCATE, as of the last answer, and of which statement.
    portals: HashMap<Name, Name>,
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
            statements: Statements::default(),
            portals: HashMap::new(),
            notices: Vec::new(),
            answer: Answer::default(),
        }
    }

    fn is_quiet(&self) -> bool {
        let nothing = self.expected.iter().all(|expected| matches!(expected, Expected::CopyEnd));
        nothing && !self.unsynced && !self.skipping && !self.copying && !self.lost
    }

    /// What a text depends on that is sent now, to prepare the statement of this name if it is in a Parse.
    pub(super) fn moment(&self, statement: Option<&[u8]>) -> Moment {
        let is_quiet = self.is_quiet();
        Moment {
            is_quiet,
            has_failed: self.transaction == b'E',
            standard_conforming_strings: is_quiet.then_some(self.standard_conforming_strings),
            ascii_safe: is_quiet && self.ascii_safe,
            takes_rows: statement.is_some_and(|name| self.statements.has_room_for(name)),
        }
    }

    /// Whether the client has to wait before it sends more.
    pub(super) fn is_full(&self) -> bool {
        self.expected.len() >= MOST_EXPECTED
    }

    /// What belongs into a Bind of the statement that is sent now.
    pub(super) fn rows_of(&self, statement: &[u8]) -> Option<&RowsParameter> {
        match self.statements.expected(statement)? {
            Kept::Rows(rows) => Some(rows),
            Kept::Deallocates(_) => None,
        }
    }

    /// Whether any Bind, and Parse, has to be looked at.
    pub(super) fn has_statements(&self) -> bool {
        !self.statements.is_empty() || !self.portals.is_empty()
    }

    /// Whether any Execute has to be looked at.
    pub(super) fn has_deallocations(&self) -> bool {
        self.statements.deallocate() || !self.portals.is_empty()
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
        let deallocated = || {
            let name = deallocated(text).filter(|_| self.statements.has_room_for(statement))?;
            Some(Kept::Deallocates(name))
        };
        let kept = rows.map(Kept::Rows).or_else(deallocated);
        let name = self.change(statement, kept);
        self.extended(Expected::Parse(name));
    }

    /// A Describe of a statement is sent.
    pub(super) fn describe_statement(&mut self, statement: &[u8]) {
        self.extended(Expected::Describe { statement: self.statements.known(statement) });
    }

    /// A Close of a statement is sent.
    pub(super) fn close_statement(&mut self, statement: &[u8]) {
        let name = self.change(statement, None);
        self.extended(Expected::Close(name));
    }

    fn change(&mut self, statement: &[u8], kept: Option<Kept>) -> Option<Name> {
        if self.skipping { None } else { self.statements.send(statement, kept) }
    }

    /// A Query is sent, which is nothing but the DEALLOCATE of a statement if one is given.
    pub(super) fn query(&mut self, deallocates: Option<Name>) {
        if !self.skipping {
            self.expected.push_back(Expected::Query { deallocates });
        }
    }

    /// A Bind is sent.
    pub(super) fn bind(&mut self, portal: &[u8], statement: &[u8]) {
        let bound = self.has_deallocations().then(|| {
            Box::new(Bound { portal: self.portal(portal), statement: self.statements.known(statement) })
        });
        self.extended(Expected::Bind(bound));
    }

    /// An Execute is sent.
    pub(super) fn execute(&mut self, portal: &[u8]) {
        let portal = self.has_deallocations().then(|| self.portal(portal));
        self.extended(Expected::Execute { portal });
    }

    /// A portal's name, which is kept once if it is known.
    fn portal(&self, name: &[u8]) -> Name {
        let name = cut(name);
        self.portals.get_key_value(name).map_or_else(|| name.into(), |(name, _)| name.clone())
    }

    /// Any other message is sent; only its type matters.
    pub(super) fn send(&mut self, kind: u8) {
        match kind {
            b'B' => self.extended(Expected::Bind(None)),
            b'D' => self.extended(Expected::Describe { statement: None }),
            b'C' => self.extended(Expected::Close(None)),
            b'E' => self.extended(Expected::Execute { portal: None }),
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

    /// A message of the extended protocol has succeeded; what it was.
    fn succeeded(&mut self, right: impl FnOnce(&Expected) -> bool) -> Option<Expected> {
        match self.front() {
            Some(front) if right(front) => self.expected.pop_front(),
            _ => {
                self.lost = true;
                None
            }
        }
    }

    fn parsed(&mut self) {
        if let Some(Expected::Parse(Some(name))) = self.succeeded(|front| matches!(front, Expected::Parse(_)))
        {
            self.statements.confirm(&name);
        }
    }

    fn closed(&mut self) {
        if let Some(Expected::Close(Some(name))) = self.succeeded(|front| matches!(front, Expected::Close(_)))
        {
            self.statements.confirm(&name);
        }
    }

    /// A portal runs what its statement is at that moment.
    fn bound(&mut self) {
        let Some(Expected::Bind(Some(bound))) = self.succeeded(|front| matches!(front, Expected::Bind(_)))
        else {
            return;
        };
        self.portals.remove(&bound.portal);
        let statement = bound.statement.and_then(|name| self.statements.settled(&name).cloned());
        if let Some(Kept::Deallocates(name)) = statement
            && self.portals.len() < MOST_PORTALS
        {
            self.portals.insert(bound.portal, name);
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
            Some(Expected::Describe { statement: Some(name) }) if kind == b't' && length <= KEPT * 8 => {
                let name = name.clone();
                if matches!(self.statements.settled(&name), Some(Kept::Rows(_))) {
                    return Way::Change;
                }
            }
            _ => {}
        }
        match kind {
            b'Z' => return Way::Look,
            b'1' => self.parsed(),
            b'2' => self.bound(),
            b'3' => self.closed(),
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
        // No further than that: many may be on their way, each with its end.
        let before: Vec<_> = self.expected.drain(..end.unwrap_or(self.expected.len())).collect();
        for expected in before.into_iter().rev().filter(|expected| !matches!(expected, Expected::Sync)) {
            self.expected.push_front(expected);
        }
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
        let unnamed = matches!(self.front(), Some(Expected::Parse(Some(name))) if name.is_empty());
        for expected in self.expected.drain(..sync.unwrap_or(self.expected.len())) {
            if let Expected::Parse(Some(name)) | Expected::Close(Some(name)) = expected {
                self.statements.withdraw(&name);
            }
        }
        // It is gone as soon as the server begins with another, whatever becomes of that (PG: `drop_unnamed_stmt`).
        if unnamed {
            self.statements.forget(b"");
        }
    }

    fn ready(&mut self, status: u8) {
        self.transaction = status;
        self.copying = false;
        if status == b'I' {
            // None outlives its transaction.
            self.portals.clear();
        }
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

    /// The end of a command that may have dropped prepared statements.
    fn completed(&mut self, tag: &[u8]) {
        match (tag, self.expected.front_mut()) {
            (b"DEALLOCATE ALL\0" | b"DISCARD ALL\0", _) => self.statements.forget_named(),
            (b"DEALLOCATE\0", Some(Expected::Query { deallocates })) => {
                if let Some(name) = deallocates.take() {
                    self.statements.forget(&name);
                }
            }
            (b"DEALLOCATE\0", Some(Expected::Execute { portal: Some(portal) })) => {
                if let Some(name) = self.portals.get(portal) {
                    self.statements.forget(name);
                }
            }
            _ => {}
        }
        self.executed();
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

/// The portal and the statement that a Bind's body names, and where its formats begin.
pub(super) fn bind_names(body: &[u8]) -> Option<(&[u8], &[u8], usize)> {
    let portal = body.iter().position(|byte| *byte == 0)?;
    let statement = body[portal + 1..].iter().position(|byte| *byte == 0)?;
    Some((&body[..portal], &body[portal + 1..portal + 1 + statement], portal + statement + 2))
}

#[cfg(test)]
mod tests;
