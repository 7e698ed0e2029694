//! The relay's slots and consumers inside of SQL that the upstream runs.
//!
//! A client's SQL is forwarded as it is; only the texts of Query and Parse messages are looked at, by
//! [`rewrite`]. A statement that reads `pg_replication_slots` or `pg_stat_replication` gets common table
//! expressions of these names in front, which carry the relay's rows: the upstream then does the joins, casts,
//! parameters and result formats, and the columns are those of its version. Functions on physical slots are
//! executed on the relay's slots, and their calls replaced by what they returned; they never reach the upstream.
//!
//! This is text in, text out; the effects are behind [`Relay`].
//!
//! **Limits.** Seen are statements that begin with SELECT, WITH, TABLE, VALUES or a parenthesis. Views,
//! functions, cursors and `U&"…"` identifiers that hide the names are not seen. The text of a prepared statement
//! is frozen at its Parse, and the rows in it are. Positions in the upstream's error messages count the inserted
//! text. A slot function takes effect before the upstream has seen the text it stands in.

mod lex;
mod literal;
mod rewrite;
mod rows;
mod slot_functions;
#[cfg(test)]
mod tests;
mod views;

pub use lex::{
    Kind, Lexer, Statement, StringKind, Token, identifier, is_identifier, is_word, lex, split, string_value,
};
pub use rewrite::{may_change_slots, rewrite};
pub use rows::{Holdings, Row, SENDER_COLUMNS, SLOT_COLUMNS, sender_row, sender_rows, slot_row, slot_rows};

use walrelay_proto::Lsn;

use crate::wire::PgError;

/// What a text is to be read with; [`Default`] is a session as it begins, and a Query message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SqlContext {
    /// The session's setting of that name, as the upstream has last reported it.
    pub standard_conforming_strings: bool,
    /// Whether the upstream's database is in UTF-8; else non-ASCII characters in the relay's rows become `?`.
    pub server_encoding_utf8: bool,
    /// Query message, not Parse.
    pub simple_query: bool,
    /// Whether the relay shows its own slots and consumers; without, slot functions are refused.
    pub overlay: bool,
    /// The last ReadyForQuery said `E`: slot functions must not have effects, as the upstream would refuse them.
    pub transaction_failed: bool,
}

impl Default for SqlContext {
    fn default() -> SqlContext {
        SqlContext {
            standard_conforming_strings: true,
            server_encoding_utf8: true,
            simple_query: true,
            overlay: true,
            transaction_failed: false,
        }
    }
}

/// What to forward.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Rewritten {
    /// The text as it came.
    Unchanged,
    /// This instead. It may be a text that only raises an error.
    Text(Vec<u8>),
}

/// The relay as SQL sees it. Asked only when a statement needs it.
///
/// Changing a slot may wait for the disk. Whether the session's role may change slots (in PostgreSQL: superusers
/// and roles with REPLICATION, else 42501 `permission denied to use replication slots`) is for the implementation
/// to decide: the upstream never sees the call.
pub trait Relay {
    /// Rows of `pg_replication_slots`.
    fn slots(&mut self) -> Vec<Row>;

    /// Rows of `pg_stat_replication`, of everybody; the statement itself hides what the role must not see.
    fn senders(&mut self) -> Vec<Row>;

    /// Whether the relay has a slot of that name.
    fn has_slot(&mut self, name: &str) -> bool;

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
