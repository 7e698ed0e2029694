//! What a server sends, as pgwire's message types.

use bytes::{BufMut, BytesMut};
use pgwire::messages::data::{DataRow, FieldDescription, RowDescription};
use pgwire::messages::response::{CommandComplete, ReadyForQuery};
use pgwire::messages::startup::{BackendKeyData, NegotiateProtocolVersion, ParameterStatus, SecretKey};

pub use pgwire::messages::Message;
pub use pgwire::messages::copy::CopyDone;
pub use pgwire::messages::data::{NoData, ParameterDescription};
pub use pgwire::messages::extendedquery::{BindComplete, CloseComplete, ParseComplete, PortalSuspended};
pub use pgwire::messages::response::{EmptyQueryResponse, TransactionStatus};
pub use pgwire::messages::startup::Authentication;

/// A result column; never of a table.
#[derive(Clone, Copy, Debug)]
pub struct Column<'a> {
    name: &'a str,
    column_type: ColumnType,
    is_binary: bool,
}

/// Types of result columns (PostgreSQL: `pg_type.dat`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ColumnType {
    /// `bool`
    Bool,
    /// `name`
    Name,
    /// `int8`
    Int8,
    /// `int4`
    Int4,
    /// `int2`
    Int2,
    /// `text`
    Text,
    /// `oid`
    Oid,
    /// `xid`
    Xid,
    /// `inet`
    Inet,
    /// `timestamptz`
    Timestamptz,
    /// `interval`
    Interval,
    /// `pg_lsn`
    PgLsn,
    /// `float8`
    Float8,
    /// `numeric`
    Numeric,
    /// `text[]`
    TextArray,
    /// `void`
    Void,
}

impl ColumnType {
    /// Its number in `pg_type`.
    pub const fn oid(self) -> u32 {
        match self {
            ColumnType::Bool => 16,
            ColumnType::Name => 19,
            ColumnType::Int8 => 20,
            ColumnType::Int2 => 21,
            ColumnType::Int4 => 23,
            ColumnType::Text => 25,
            ColumnType::Oid => 26,
            ColumnType::Xid => 28,
            ColumnType::Inet => 869,
            ColumnType::Timestamptz => 1184,
            ColumnType::Interval => 1186,
            ColumnType::PgLsn => 3220,
            ColumnType::Float8 => 701,
            ColumnType::Numeric => 1700,
            ColumnType::TextArray => 1009,
            ColumnType::Void => 2278,
        }
    }

    /// `pg_type.typlen`: bytes of a value; -1 where they vary.
    const fn len(self) -> i16 {
        match self {
            ColumnType::Bool => 1,
            ColumnType::Int2 => 2,
            ColumnType::Int4 | ColumnType::Oid | ColumnType::Xid | ColumnType::Void => 4,
            ColumnType::Int8 | ColumnType::Timestamptz | ColumnType::PgLsn | ColumnType::Float8 => 8,
            ColumnType::Interval => 16,
            ColumnType::Name => 64,
            ColumnType::Text | ColumnType::Inet | ColumnType::Numeric | ColumnType::TextArray => -1,
        }
    }
}

impl<'a> Column<'a> {
    /// A column of any of the types, in text format.
    pub const fn new(name: &'a str, column_type: ColumnType) -> Column<'a> {
        Column { name, column_type, is_binary: false }
    }

    /// The same with its values in binary format.
    #[must_use]
    pub const fn in_binary(self, is_binary: bool) -> Column<'a> {
        Column { is_binary, ..self }
    }

    /// A `text` column.
    pub const fn text(name: &'a str) -> Column<'a> {
        Column::new(name, ColumnType::Text)
    }

    /// An `int8` column.
    pub const fn int8(name: &'a str) -> Column<'a> {
        Column::new(name, ColumnType::Int8)
    }

    /// An `int4` column.
    pub const fn int4(name: &'a str) -> Column<'a> {
        Column::new(name, ColumnType::Int4)
    }
}

/// `RowDescription`
pub fn row_description(columns: &[Column<'_>]) -> RowDescription {
    let field = |c: &Column<'_>| {
        let (oid, len) = (c.column_type.oid(), c.column_type.len());
        FieldDescription::new(c.name.to_owned(), 0, 0, oid, len, -1, i16::from(c.is_binary))
    };
    RowDescription::new(columns.iter().map(field).collect())
}

/// `DataRow`; `None` is NULL. At most 32767 values of less than 1 GB.
pub fn data_row(values: &[Option<&[u8]>]) -> DataRow {
    let mut data = BytesMut::new();
    for value in values {
        match value {
            None => data.put_i32(-1),
            Some(bytes) => {
                data.put_i32(
                    i32::try_from(bytes.len()).expect("values are files of less than 1 GB or names"),
                );
                data.put_slice(bytes);
            }
        }
    }
    DataRow::new(data, i16::try_from(values.len()).expect("rows have a handful of columns"))
}

/// `CommandComplete`
pub fn command_complete(tag: &str) -> CommandComplete {
    CommandComplete::new(tag.to_owned())
}

/// `ReadyForQuery`, outside of any transaction.
pub fn ready_for_query() -> ReadyForQuery {
    ready_for_query_in(TransactionStatus::Idle)
}

/// `ReadyForQuery` in a transaction of that state.
pub fn ready_for_query_in(status: TransactionStatus) -> ReadyForQuery {
    ReadyForQuery::new(status)
}

/// `ParameterStatus`
pub fn parameter_status(name: &str, value: &str) -> ParameterStatus {
    ParameterStatus::new(name.to_owned(), value.to_owned())
}

/// `BackendKeyData` of protocol 3.0.
pub fn backend_key_data(pid: u32, key: [u8; 4]) -> BackendKeyData {
    BackendKeyData::new(pid.cast_signed(), SecretKey::I32(i32::from_be_bytes(key)))
}

/// `NegotiateProtocolVersion`: the session speaks 3.0, and these `_pq_.` options are not known.
pub fn negotiate_protocol_version(unknown: Vec<String>) -> NegotiateProtocolVersion {
    NegotiateProtocolVersion::new(3 << 16, unknown)
}
