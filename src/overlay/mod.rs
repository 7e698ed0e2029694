//! The relay's slots and consumers inside of SQL that the upstream runs.
//!
//! A client's SQL is forwarded as it is; only the texts of Query and Parse messages are looked at, by
//! [`rewrite`]. A statement that reads `pg_replication_slots` or `pg_stat_replication` gets common table
//! expressions of these names in front, which carry the relay's rows: the upstream then does the joins, casts,
//! parameters and result formats, the columns are those of its version, and rights and names are its judgement, because
//! the expressions read the real views. The rows of a prepared statement are a parameter, so that each execution sees
//! its own.
//!
//! A call of a function on physical slots is executed on the relay's slots if there can be no doubt about what the text
//! means and the upstream has nothing against it ([`SlotCall`]); else it is refused, or it passes in a form that can
//! meet nothing but logical slots.
//!
//! This is text in, text out; the effects are behind [`Relay`].
//!
//! **A text whose meaning is not certain is not touched** ([`SqlContext`]); the notice says so. A wrong effect or a
//! wrong row is worse than none.
//!
//! **Limits.** What is behind views and functions, and in SQL's own PREPARE, is not seen. Positions in the upstream's error
//! messages count the inserted text.

mod lex;
mod literal;
mod notices;
mod rewrite;
mod rows;
mod signals;
mod slot_functions;
#[cfg(test)]
mod tests;
mod views;

pub use lex::{
    Kind, Lexer, Statement, Statements, StringKind, Token, identifier, is_identifier, is_word, lex, split,
    statements, string_value,
};
pub use literal::raise;
pub use rewrite::{may_concern_us, rewrite};
pub use rows::{Holdings, Row, SENDER_COLUMNS, SLOT_COLUMNS, sender_row, sender_rows, slot_row, slot_rows};
pub use signals::{LAST_PROCESS, Signal, SignalCall};
pub use slot_functions::SlotCall;
pub use views::RowsParameter;

use walrelay_proto::Lsn;

use crate::wire::PgError;

/// What a text is to be read with; [`Default`] is a session as it begins, and a Query message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SqlContext {
    /// The session's setting of that name at the moment when the server will read the text; `None` if something on its
    /// way there may change it. Texts without backslashes mean the same with both.
    pub standard_conforming_strings: Option<bool>,
    /// Whether the client's encoding will then be one without ASCII inside of other characters. Texts in ASCII mean
    /// the same in all.
    pub ascii_safe: bool,
    /// Whether the upstream's database is in UTF-8; else non-ASCII characters in the relay's rows become `?`.
    pub server_encoding_utf8: bool,
    /// The message it comes in.
    pub message: Message,
    /// Whether the relay shows its own slots and consumers; without, slot functions are refused.
    pub overlay: bool,
    /// Whether everything in front has been answered and has not failed: only then may the text have effects.
    pub settled: bool,
    /// Whether the statement prepared from a Parse may have a further parameter.
    pub takes_rows: bool,
}

/// The message of a text.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Message {
    /// Query
    Simple,
    /// Parse, which gives types for this many parameters.
    Parse {
        /// The number.
        types: u16,
    },
}

impl Default for SqlContext {
    fn default() -> SqlContext {
        SqlContext {
            standard_conforming_strings: Some(true),
            ascii_safe: true,
            server_encoding_utf8: true,
            message: Message::Simple,
            overlay: true,
            settled: true,
            takes_rows: true,
        }
    }
}

/// What becomes of a text.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Rewritten {
    /// To be forwarded instead; `None` is the text as it came. It may be one that only raises an error.
    pub text: Option<Vec<u8>>,
    /// What to put into each Bind of the statement prepared from the text.
    pub rows: Option<RowsParameter>,
    /// The text is this call and nothing else: ask its question, then forward what it says.
    pub call: Option<SlotCall>,
    /// The same of a call that signals a consumer.
    pub signal: Option<SignalCall>,
    /// For the client: something is not as it would expect.
    pub notice: Option<PgError>,
}

/// The relay as SQL sees it. Asked only when a statement needs it. Changing a slot may wait for the disk; whether the
/// session may is asked of the upstream before.
pub trait Relay {
    /// Rows of `pg_replication_slots`.
    fn slots(&mut self) -> Vec<Row>;

    /// Rows of `pg_stat_replication`, of everybody; the statement itself hides what the role must not see.
    fn senders(&mut self) -> Vec<Row>;

    /// Whether the relay has a slot of that name.
    fn has_slot(&mut self, name: &str) -> bool;

    /// The role of the consumer with this PID; `None` if the relay has no such consumer.
    fn consumer(&mut self, _pid: u32) -> Option<String> {
        None
    }

    /// Signals a consumer of that role; whether it is there.
    fn signal(&mut self, _pid: u32, _user: &str, _signal: Signal) -> bool {
        false
    }

    /// Makes a physical slot and returns the position from which it keeps WAL, if it reserves any
    /// (PostgreSQL: `pg_create_physical_replication_slot`).
    fn create_slot(&mut self, name: &str, reserve: bool, temporary: bool) -> Result<Option<Lsn>, PgError>;

    /// PostgreSQL: `pg_drop_replication_slot`
    fn drop_slot(&mut self, name: &str) -> Result<(), PgError>;

    /// Makes a slot that keeps WAL from where another does; it is as temporary as the other one unless said
    /// (PostgreSQL: `pg_copy_physical_replication_slot`).
    fn copy_slot(&mut self, from: &str, to: &str, temporary: Option<bool>) -> Result<(), PgError>;

    /// Moves a slot forward, no further than there is WAL, and returns where it is then
    /// (PostgreSQL: `pg_replication_slot_advance`).
    fn advance_slot(&mut self, name: &str, upto: Lsn) -> Result<Lsn, PgError>;
}
