//! The extended protocol of sessions that the relay serves itself: prepared statements and portals by name
//! (PostgreSQL: `exec_parse_message` and its like in `postgres.c`).

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Buf;

use crate::console::{Facts, Prepared, Transaction};
use crate::wire::{PgError, sqlstate};

/// Bytes of prepared statements, and of values in portals, that a session may keep.
const MOST_KEPT: usize = 4 << 20;
/// Prepared statements of a session, and portals: a portal may keep a result that was taken in part.
const MOST_STATEMENTS: usize = 1000;
const MOST_PORTALS: usize = 64;

/// Bytes of a name that count; the rest is overlooked (PostgreSQL: `NAMEDATALEN`, by which both tables cut their keys).
const MOST_OF_NAME: usize = 63;

type Result<T> = std::result::Result<T, PgError>;

/// What a session has prepared. The unnamed ones have an empty name.
#[derive(Debug, Default)]
pub(super) struct Extended {
    statements: HashMap<Vec<u8>, Arc<Prepared>>,
    portals: HashMap<Vec<u8>, Portal>,
}

/// A statement with its values.
#[derive(Debug)]
pub(super) struct Portal {
    pub(super) prepared: Arc<Prepared>,
    pub(super) values: Vec<Option<String>>,
    /// For each column whether it is sent in binary.
    pub(super) formats: Vec<bool>,
    pub(super) progress: Progress,
    size: usize,
}

impl Portal {
    /// Bytes that it takes, about: of the message that made it, and of the rows that are left.
    fn kept(&self) -> usize {
        let Progress::Rows { rest, .. } = &self.progress else { return self.size };
        let value = |value: &Option<String>| size_of_val(value) + value.as_ref().map_or(0, String::len);
        self.size + rest.as_slice().iter().flatten().map(value).sum::<usize>()
    }
}

/// How far a portal has been executed.
#[derive(Debug)]
pub(super) enum Progress {
    New,
    /// Rows are left, or there may have been none: the tag is to come.
    Rows {
        rest: std::vec::IntoIter<Vec<Option<String>>>,
        tag: String,
    },
    /// It had no result, and is not run twice.
    Done,
}

/// What a message is about.
pub(super) enum Target<'a> {
    Statement(&'a [u8]),
    Portal(&'a [u8]),
}

impl Extended {
    pub(super) fn parse(&mut self, body: &[u8], facts: &dyn Facts, transaction: &Transaction) -> Result<()> {
        let mut reader = Reader(body);
        let (name, text) = (key(reader.string()?), reader.string()?);
        let types = (0..reader.count()?).map(|_| reader.int4()).collect::<Result<Vec<_>>>()?;
        reader.end()?;
        if name.is_empty() {
            self.statements.remove(name);
        } else if self.statements.contains_key(name) {
            let text = format!("prepared statement \"{}\" already exists", shown(name));
            return Err(PgError::error(sqlstate::DUPLICATE_PREPARED_STATEMENT, text));
        }
        let prepared = Prepared::new(text, &types, facts, transaction)?;
        let kept: usize = self.statements.values().map(|statement| statement.size()).sum();
        if self.statements.len() >= MOST_STATEMENTS || kept + prepared.size() > MOST_KEPT {
            return Err(too_many("prepared statements"));
        }
        self.statements.insert(name.to_owned(), Arc::new(prepared));
        Ok(())
    }

    pub(super) fn bind(&mut self, body: &[u8], transaction: &Transaction) -> Result<()> {
        let mut reader = Reader(body);
        let (name, statement) = (reader.string()?, reader.string()?);
        let prepared = self.statement(statement)?.clone();
        prepared.check(transaction)?;
        let formats = reader.formats()?;
        let count = reader.count()?;
        if formats.len() > 1 && formats.len() != count {
            let text = format!("bind message has {} parameter formats but {count} parameters", formats.len());
            return Err(PgError::error(sqlstate::PROTOCOL_VIOLATION, text));
        }
        if count != prepared.types().len() {
            let text = format!(
                "bind message supplies {count} parameters, but prepared statement \"{}\" requires {}",
                shown(statement),
                prepared.types().len()
            );
            return Err(PgError::error(sqlstate::PROTOCOL_VIOLATION, text));
        }
        let mut values = Vec::with_capacity(count);
        for number in 1..=count {
            let format = of(&formats, number - 1);
            let value = reader.value()?.map(|bytes| prepared.read(number, format, bytes));
            values.push(value.transpose()?);
        }
        let results = reader.formats()?;
        reader.end()?;
        let columns = prepared.columns().map_or(0, <[_]>::len);
        if results.len() > 1 && results.len() != columns {
            let text =
                format!("bind message has {} result formats but query has {columns} columns", results.len());
            return Err(PgError::error(sqlstate::PROTOCOL_VIOLATION, text));
        }
        let formats = (0..columns).map(|at| is_binary(of(&results, at))).collect::<Result<_>>()?;
        self.keep(name, Portal { prepared, values, formats, progress: Progress::New, size: body.len() })
    }

    fn keep(&mut self, name: &[u8], portal: Portal) -> Result<()> {
        if name.is_empty() {
            self.portals.remove(key(name));
        } else if self.portals.contains_key(key(name)) {
            let text = format!("cursor \"{}\" already exists", shown(name));
            return Err(PgError::error(sqlstate::DUPLICATE_CURSOR, text));
        }
        if self.portals.len() >= MOST_PORTALS {
            return Err(too_many("portals"));
        }
        self.has_room(&portal)?;
        self.portals.insert(key(name).to_owned(), portal);
        Ok(())
    }

    pub(super) fn statement(&self, name: &[u8]) -> Result<&Arc<Prepared>> {
        self.statements.get(key(name)).ok_or_else(|| {
            let text = match name {
                b"" => "unnamed prepared statement does not exist".to_owned(),
                _ => format!("prepared statement \"{}\" does not exist", shown(name)),
            };
            PgError::error(sqlstate::INVALID_SQL_STATEMENT_NAME, text)
        })
    }

    pub(super) fn portal(&self, name: &[u8]) -> Result<&Portal> {
        self.portals.get(key(name)).ok_or_else(|| no_portal(name))
    }

    /// A portal that is to be executed; [`Extended::put_back`] returns it.
    pub(super) fn take(&mut self, name: &[u8]) -> Result<Portal> {
        self.portals.remove(key(name)).ok_or_else(|| no_portal(name))
    }

    /// Whether a portal can be kept beside the others.
    fn has_room(&self, portal: &Portal) -> Result<()> {
        let kept: usize = self.portals.values().map(Portal::kept).sum();
        if kept + portal.kept() > MOST_KEPT { Err(too_many("portals")) } else { Ok(()) }
    }

    /// Fails if its rows are more than a session may keep; it is closed then.
    pub(super) fn put_back(&mut self, name: &[u8], portal: Portal) -> Result<()> {
        self.has_room(&portal)?;
        self.portals.insert(key(name).to_owned(), portal);
        Ok(())
    }

    /// What is not there is closed already.
    pub(super) fn close(&mut self, target: &Target<'_>) {
        match target {
            Target::Statement(name) => drop(self.statements.remove(key(name))),
            Target::Portal(name) => drop(self.portals.remove(key(name))),
        }
    }

    /// DEALLOCATE
    pub(super) fn deallocate(&mut self, name: Option<&str>) -> Result<()> {
        match name {
            Some(name) => {
                self.statement(name.as_bytes())?;
                self.statements.remove(key(name.as_bytes()));
            }
            None => self.statements.clear(),
        }
        Ok(())
    }

    /// A Query message takes the place of the unnamed ones.
    pub(super) fn forget_unnamed(&mut self) {
        self.statements.remove(&b""[..]);
        self.portals.remove(&b""[..]);
    }

    /// Portals end with their transaction.
    pub(super) fn close_portals(&mut self) {
        self.portals.clear();
    }
}

/// Reads a Describe or Close.
pub(super) fn target<'a>(body: &'a [u8], message: &str) -> Result<Target<'a>> {
    let mut reader = Reader(body);
    let kind = reader.byte()?;
    let name = reader.string()?;
    reader.end()?;
    match kind {
        b'S' => Ok(Target::Statement(name)),
        b'P' => Ok(Target::Portal(name)),
        _ => {
            let text = format!("invalid {message} message subtype {kind}");
            Err(PgError::error(sqlstate::PROTOCOL_VIOLATION, text))
        }
    }
}

/// Reads an Execute: the portal, and how many rows are wanted at most, 0 for all.
pub(super) fn execution(body: &[u8]) -> Result<(&[u8], usize)> {
    let mut reader = Reader(body);
    let (name, most) = (reader.string()?, reader.int4()?.cast_signed());
    reader.end()?;
    // PG: a negative number is all, too.
    Ok((name, usize::try_from(most).unwrap_or(0)))
}

/// One code is for all.
fn of(formats: &[i16], at: usize) -> i16 {
    match formats {
        [] => 0,
        [all] => *all,
        each => each.get(at).copied().unwrap_or_default(),
    }
}

fn is_binary(format: i16) -> Result<bool> {
    match format {
        0 => Ok(false),
        1 => Ok(true),
        _ => {
            let text = format!("unsupported format code: {format}");
            Err(PgError::error(sqlstate::INVALID_PARAMETER_VALUE, text))
        }
    }
}

fn key(name: &[u8]) -> &[u8] {
    &name[..name.len().min(MOST_OF_NAME)]
}

fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

fn no_portal(name: &[u8]) -> PgError {
    PgError::error(sqlstate::INVALID_CURSOR_NAME, format!("portal \"{}\" does not exist", shown(name)))
}

fn too_many(what: &str) -> PgError {
    PgError::error(sqlstate::PROGRAM_LIMIT_EXCEEDED, format!("too many {what} for walrelay"))
        .with_hint("Close those that are not needed any more.")
}

/// Takes a message's body apart.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, bytes: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes).ok_or_else(insufficient)?;
        self.0 = rest;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8> {
        self.0.try_get_u8().map_err(|_| insufficient())
    }

    fn int4(&mut self) -> Result<u32> {
        self.0.try_get_u32().map_err(|_| insufficient())
    }

    fn count(&mut self) -> Result<usize> {
        self.0.try_get_u16().map(usize::from).map_err(|_| insufficient())
    }

    fn string(&mut self) -> Result<&'a [u8]> {
        let text = "invalid string in message";
        let missing = || PgError::error(sqlstate::PROTOCOL_VIOLATION, text);
        let end = self.0.iter().position(|byte| *byte == 0).ok_or_else(missing)?;
        let string = self.take(end)?;
        self.take(1)?;
        Ok(string)
    }

    fn formats(&mut self) -> Result<Vec<i16>> {
        (0..self.count()?).map(|_| self.0.try_get_i16().map_err(|_| insufficient())).collect()
    }

    /// A value with its length; -1 is NULL.
    fn value(&mut self) -> Result<Option<&'a [u8]>> {
        match self.int4()? {
            u32::MAX => Ok(None),
            length => self.take(usize::try_from(length).map_err(|_| insufficient())?).map(Some),
        }
    }

    fn end(&self) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        Err(PgError::error(sqlstate::PROTOCOL_VIOLATION, "invalid message format"))
    }
}

fn insufficient() -> PgError {
    PgError::error(sqlstate::PROTOCOL_VIOLATION, "insufficient data left in message")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::console::Instead;
    use crate::overlay::Row;
    use crate::status::Status;

    struct Nothing;

    impl Facts for Nothing {
        fn instead(&self) -> Instead {
            Instead::OwnDatabase
        }

        fn setting(&self, _: &str) -> Option<String> {
            None
        }

        fn settings(&self) -> Vec<(String, String)> {
            Vec::new()
        }

        fn system_identifier(&self) -> Option<String> {
            None
        }

        fn is_in_recovery(&self) -> Option<bool> {
            Some(true)
        }

        fn user(&self) -> String {
            String::new()
        }

        fn database(&self) -> String {
            String::new()
        }

        fn pid(&self) -> u32 {
            0
        }

        fn is_superuser(&self) -> Option<bool> {
            None
        }

        fn may_monitor(&self) -> Option<bool> {
            None
        }

        fn slots(&self) -> Vec<Row> {
            Vec::new()
        }

        fn sees_all(&self) -> bool {
            false
        }

        fn sessions(&self) -> Vec<Row> {
            Vec::new()
        }

        fn write_lsn(&self) -> Option<String> {
            None
        }
        fn flush_lsn(&self) -> Option<String> {
            None
        }

        fn started_at(&self) -> Option<String> {
            None
        }

        fn configured_at(&self) -> Option<String> {
            None
        }

        fn status(&self) -> Option<Status> {
            None
        }

        fn senders(&self) -> Vec<Row> {
            Vec::new()
        }
    }

    /// SQLSTATE, or "ok".
    fn said<T>(result: Result<T>) -> String {
        result.map_or_else(|error| error.sqlstate.into_owned(), |_| "ok".to_owned())
    }

    fn parse(extended: &mut Extended, body: &[u8]) -> String {
        said(extended.parse(body, &Nothing, &Transaction::default()))
    }

    fn bind(extended: &mut Extended, body: &[u8]) -> String {
        said(extended.bind(body, &Transaction::default()))
    }

    #[test]
    fn names_are_taken_once_and_the_unnamed_is_replaced() {
        let mut extended = Extended::default();
        assert_eq!(parse(&mut extended, b"s\0select $1::int4\0\0\0"), "ok");
        assert_eq!(parse(&mut extended, b"s\0select 1\0\0\0"), "42P05");
        assert_eq!(parse(&mut extended, b"\0select 1\0\0\0"), "ok");
        assert_eq!(parse(&mut extended, b"\0nonsense\0\0\0"), "0A000");
        // Gone with the attempt, as in PostgreSQL.
        assert_eq!(bind(&mut extended, b"\0\0\0\0\0\0\0\0"), "26000");
        assert_eq!(bind(&mut extended, b"p\0s\0\0\x01\0\x01\0\x01\0\0\0\x04\0\0\0\x07\0\x01\0\x01"), "ok");
        let portal = extended.portal(b"p").unwrap();
        assert_eq!(
            (portal.values.as_slice(), portal.formats.as_slice()),
            (&[Some("7".to_owned())][..], &[true][..])
        );
        assert_eq!(bind(&mut extended, b"p\0s\0\0\0\0\x01\xff\xff\xff\xff\0\0"), "42P03");
        assert_eq!(bind(&mut extended, b"\0s\0\0\0\0\0\0\0"), "08P01", "too few values");
        assert_eq!(bind(&mut extended, b"\0s\0\0\x01\0\x01\0\x01\0\0\0\x01x\0\0"), "22P03");
        assert_eq!(bind(&mut extended, b"\0s\0\0\0\0\x01\xff\xff\xff\xff\0\x02\0\0\0\0"), "08P01", "formats");
        extended.close_portals();
        assert_eq!(said(extended.portal(b"p").map(drop)), "34000");
        assert_eq!(said(extended.deallocate(Some("t"))), "26000");
        assert_eq!(said(extended.deallocate(Some("s"))), "ok");
        assert_eq!(bind(&mut extended, b"\0s\0\0\0\0\0\0\0"), "26000");
    }

    #[test]
    fn of_a_name_only_its_beginning_counts() {
        let mut extended = Extended::default();
        let (long, same, other) = ("n".repeat(1 << 20), "n".repeat(63), "n".repeat(62));
        let prepare = |name: &str| format!("{name}\0select 1\0\0\0");
        assert_eq!(parse(&mut extended, prepare(&long).as_bytes()), "ok");
        assert_eq!(parse(&mut extended, prepare(&same).as_bytes()), "42P05");
        assert_eq!(parse(&mut extended, prepare(&other).as_bytes()), "ok");
        let bound = |name: &str| format!("{name}\0{long}\0\0\0\0\0\0\0");
        assert_eq!(bind(&mut extended, bound(&long).as_bytes()), "ok");
        assert_eq!(bind(&mut extended, bound(&same).as_bytes()), "42P03");
        let kept = extended.statements.keys().chain(extended.portals.keys()).map(Vec::len).max();
        assert_eq!(kept, Some(63));
        let portal = extended.take(long.as_bytes()).unwrap();
        assert_eq!(said(extended.put_back(long.as_bytes(), portal)), "ok");
        assert_eq!(said(extended.portal(same.as_bytes()).map(drop)), "ok");
        extended.close(&Target::Portal(long.as_bytes()));
        assert_eq!(said(extended.portal(same.as_bytes()).map(drop)), "34000");
        assert_eq!(said(extended.deallocate(Some(&long))), "ok");
        assert_eq!(said(extended.statement(same.as_bytes()).map(drop)), "26000");
        assert_eq!(said(extended.statement(other.as_bytes()).map(drop)), "ok");
    }

    #[test]
    fn a_session_keeps_only_so_much() {
        let mut extended = Extended::default();
        let long = [b"\0select '".as_slice(), &vec![b'x'; 1 << 20], b"'\0\0\0"].concat();
        let outcomes: Vec<_> =
            (0..5).map(|n| parse(&mut extended, &[&[b'a' + n][..], &long].concat())).collect();
        assert_eq!(outcomes, ["ok", "ok", "ok", "54000", "54000"]);
        let mut extended = Extended::default();
        assert_eq!(parse(&mut extended, b"s\0select 1\0\0\0"), "ok");
        let portal = |n: usize| format!("p{n}\0s\0\0\0\0\0\0\0");
        let outcomes = (0..=MOST_PORTALS).map(|n| bind(&mut extended, portal(n).as_bytes()));
        assert_eq!(outcomes.filter(|outcome| outcome == "ok").count(), MOST_PORTALS);
    }

    #[test]
    fn rows_that_are_left_and_columns_are_kept_too() {
        let mut extended = Extended::default();
        let columns = format!("s\0select {}\0\0\0", vec!["1"; 1000].join(","));
        assert_eq!(parse(&mut extended, columns.as_bytes()), "ok");
        assert!(extended.statement(b"s").unwrap().size() > 1000 * size_of::<crate::console::Field>());
        assert_eq!(parse(&mut extended, b"s1\0select 1\0\0\0"), "ok");
        assert_eq!(bind(&mut extended, b"p\0s1\0\0\0\0\0\0\0"), "ok");
        assert_eq!(bind(&mut extended, b"q\0s1\0\0\0\0\0\0\0"), "ok");
        let with_rows = |extended: &mut Extended, name, count| {
            let mut portal = extended.take(name).unwrap();
            let rest = vec![vec![Some("x".repeat(1 << 20)), None]; count].into_iter();
            portal.progress = Progress::Rows { rest, tag: "SELECT".to_owned() };
            said(extended.put_back(name, portal))
        };
        assert_eq!(with_rows(&mut extended, b"p", 3), "ok");
        assert_eq!(with_rows(&mut extended, b"q", 1), "54000");
        assert_eq!(said(extended.portal(b"q").map(drop)), "34000", "it is gone");
        assert_eq!(with_rows(&mut extended, b"p", 0), "ok");
        assert_eq!(bind(&mut extended, b"q\0s1\0\0\0\0\0\0\0"), "ok");
        assert_eq!(with_rows(&mut extended, b"q", 3), "ok");
    }

    #[test]
    fn fuzz_messages() {
        bolero::check!().with_type::<Vec<u8>>().for_each(|body| {
            let mut extended = Extended::default();
            let _ = (parse(&mut extended, body), bind(&mut extended, body));
            let _ = (said(target(body, "CLOSE").map(drop)), said(execution(body).map(drop)));
            assert_eq!(parse(&mut extended, b"s\0select $1\0\0\0"), "ok");
            let values = [&b"q\0s\0\0\x01"[..], body].concat();
            assert_ne!(bind(&mut extended, &values), "XX000");
        });
    }
}
