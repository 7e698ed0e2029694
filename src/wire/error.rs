//! Errors and notices as they go over the wire.

use std::borrow::Cow;

use bytes::BytesMut;
use pgwire::messages::Message;
use pgwire::messages::response::{ErrorResponse, NoticeResponse};

/// SQLSTATE codes in use, by PostgreSQL's names (`errcodes.txt`).
pub mod sqlstate {
    /// `successful_completion`, as NOTICEs have it
    pub const SUCCESSFUL_COMPLETION: &str = "00000";
    /// `08006`
    pub const CONNECTION_FAILURE: &str = "08006";
    /// `08P01`
    pub const PROTOCOL_VIOLATION: &str = "08P01";
    /// `cardinality_violation`
    pub const CARDINALITY_VIOLATION: &str = "21000";
    /// `0A000`
    pub const FEATURE_NOT_SUPPORTED: &str = "0A000";
    /// `numeric_value_out_of_range`
    pub const NUMERIC_VALUE_OUT_OF_RANGE: &str = "22003";
    /// `invalid_datetime_format`
    pub const INVALID_DATETIME_FORMAT: &str = "22007";
    /// `datetime_field_overflow`
    pub const DATETIME_FIELD_OVERFLOW: &str = "22008";
    /// `substring_error`
    pub const SUBSTRING_ERROR: &str = "22011";
    /// `division_by_zero`
    pub const DIVISION_BY_ZERO: &str = "22012";
    /// `invalid_regular_expression`
    pub const INVALID_REGULAR_EXPRESSION: &str = "2201B";
    /// `invalid_argument_for_power_function`
    pub const INVALID_ARGUMENT_FOR_POWER_FUNCTION: &str = "2201F";
    /// `invalid_row_count_in_limit_clause`
    pub const INVALID_ROW_COUNT_IN_LIMIT_CLAUSE: &str = "2201W";
    /// `invalid_row_count_in_result_offset_clause`
    pub const INVALID_ROW_COUNT_IN_RESULT_OFFSET_CLAUSE: &str = "2201X";
    /// `invalid_escape_sequence`
    pub const INVALID_ESCAPE_SEQUENCE: &str = "22025";
    /// `22023`
    pub const INVALID_PARAMETER_VALUE: &str = "22023";
    /// `22P02`
    pub const INVALID_TEXT_REPRESENTATION: &str = "22P02";
    /// `invalid_binary_representation`
    pub const INVALID_BINARY_REPRESENTATION: &str = "22P03";
    /// `active_sql_transaction`
    pub const ACTIVE_SQL_TRANSACTION: &str = "25001";
    /// `no_active_sql_transaction`
    pub const NO_ACTIVE_SQL_TRANSACTION: &str = "25P01";
    /// `in_failed_sql_transaction`
    pub const IN_FAILED_SQL_TRANSACTION: &str = "25P02";
    /// `invalid_sql_statement_name`
    pub const INVALID_SQL_STATEMENT_NAME: &str = "26000";
    /// `28000`
    pub const INVALID_AUTHORIZATION_SPECIFICATION: &str = "28000";
    /// `28P01`
    pub const INVALID_PASSWORD: &str = "28P01";
    /// `invalid_cursor_name`
    pub const INVALID_CURSOR_NAME: &str = "34000";
    /// `invalid_savepoint_specification`
    pub const INVALID_SAVEPOINT_SPECIFICATION: &str = "3B001";
    /// `invalid_catalog_name`
    pub const INVALID_CATALOG_NAME: &str = "3D000";
    /// `invalid_schema_name`
    pub const INVALID_SCHEMA_NAME: &str = "3F000";
    /// `42501`
    pub const INSUFFICIENT_PRIVILEGE: &str = "42501";
    /// `42601`
    pub const SYNTAX_ERROR: &str = "42601";
    /// `ambiguous_column`
    pub const AMBIGUOUS_COLUMN: &str = "42702";
    /// `42703`
    pub const UNDEFINED_COLUMN: &str = "42703";
    /// `42704`
    pub const UNDEFINED_OBJECT: &str = "42704";
    /// `42710`
    pub const DUPLICATE_OBJECT: &str = "42710";
    /// `duplicate_alias`
    pub const DUPLICATE_ALIAS: &str = "42712";
    /// `42803`
    pub const GROUPING_ERROR: &str = "42803";
    /// `datatype_mismatch`
    pub const DATATYPE_MISMATCH: &str = "42804";
    /// `wrong_object_type`
    pub const WRONG_OBJECT_TYPE: &str = "42809";
    /// `cannot_coerce`
    pub const CANNOT_COERCE: &str = "42846";
    /// `undefined_function`
    pub const UNDEFINED_FUNCTION: &str = "42883";
    /// `undefined_table`
    pub const UNDEFINED_TABLE: &str = "42P01";
    /// `invalid_column_reference`
    pub const INVALID_COLUMN_REFERENCE: &str = "42P10";
    /// `duplicate_cursor`
    pub const DUPLICATE_CURSOR: &str = "42P03";
    /// `duplicate_prepared_statement`
    pub const DUPLICATE_PREPARED_STATEMENT: &str = "42P05";
    /// `undefined_parameter`
    pub const UNDEFINED_PARAMETER: &str = "42P02";
    /// `indeterminate_datatype`
    pub const INDETERMINATE_DATATYPE: &str = "42P18";
    /// `53000`
    pub const INSUFFICIENT_RESOURCES: &str = "53000";
    /// `53300`
    pub const TOO_MANY_CONNECTIONS: &str = "53300";
    /// `53400`
    pub const CONFIGURATION_LIMIT_EXCEEDED: &str = "53400";
    /// `54000`
    pub const PROGRAM_LIMIT_EXCEEDED: &str = "54000";
    /// `54001`
    pub const STATEMENT_TOO_COMPLEX: &str = "54001";
    /// `54011`
    pub const TOO_MANY_COLUMNS: &str = "54011";
    /// `55000`
    pub const OBJECT_NOT_IN_PREREQUISITE_STATE: &str = "55000";
    /// `55006`
    pub const OBJECT_IN_USE: &str = "55006";
    /// `57014`
    pub const QUERY_CANCELED: &str = "57014";
    /// `57P01`
    pub const ADMIN_SHUTDOWN: &str = "57P01";
    /// `57P03`
    pub const CANNOT_CONNECT_NOW: &str = "57P03";
    /// `58030`
    pub const IO_ERROR: &str = "58030";
    /// `58P01`
    pub const UNDEFINED_FILE: &str = "58P01";
    /// `XX000`
    pub const INTERNAL_ERROR: &str = "XX000";
}

/// How bad it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Severity {
    /// Worth knowing; the command goes on.
    Notice,
    /// Worth worrying about; the command goes on.
    Warning,
    /// The command has failed, the session goes on.
    Error,
    /// The session ends.
    Fatal,
}

impl Severity {
    /// The word in the message, the same in every language.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Notice => "NOTICE",
            Severity::Warning => "WARNING",
            Severity::Error => "ERROR",
            Severity::Fatal => "FATAL",
        }
    }
}

/// An error or notice for a client, with the fields PostgreSQL fills.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{}: {message}", severity.as_str())]
pub struct PgError {
    /// How bad it is.
    pub severity: Severity,
    /// Five characters.
    pub sqlstate: Cow<'static, str>,
    /// One line, lower case, no full stop.
    pub message: String,
    /// Facts, as sentences.
    pub detail: Option<String>,
    /// What to do, as sentences.
    pub hint: Option<String>,
}

impl PgError {
    /// Ends the command.
    pub fn error(sqlstate: impl Into<Cow<'static, str>>, message: impl Into<String>) -> PgError {
        PgError::new(Severity::Error, sqlstate.into(), message.into())
    }

    /// Ends the session.
    pub fn fatal(sqlstate: impl Into<Cow<'static, str>>, message: impl Into<String>) -> PgError {
        PgError::new(Severity::Fatal, sqlstate.into(), message.into())
    }

    /// What another server has told with this severity, and ends nothing.
    pub fn relayed_notice(severity: &str, sqlstate: String, message: String) -> PgError {
        let severity = if severity == "WARNING" { Severity::Warning } else { Severity::Notice };
        PgError::new(severity, sqlstate.into(), message)
    }

    /// Ends nothing, but is not what was meant.
    pub fn warning(sqlstate: impl Into<Cow<'static, str>>, message: impl Into<String>) -> PgError {
        PgError::new(Severity::Warning, sqlstate.into(), message.into())
    }

    /// Ends nothing.
    pub fn notice(sqlstate: impl Into<Cow<'static, str>>, message: impl Into<String>) -> PgError {
        PgError::new(Severity::Notice, sqlstate.into(), message.into())
    }

    fn new(severity: Severity, sqlstate: Cow<'static, str>, message: String) -> PgError {
        PgError { severity, sqlstate, message, detail: None, hint: None }
    }

    /// The same with DETAIL.
    #[must_use]
    pub fn with_detail(mut self, detail: impl Into<String>) -> PgError {
        self.detail = Some(detail.into());
        self
    }

    /// The same with HINT.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> PgError {
        self.hint = Some(hint.into());
        self
    }

    /// Whether the session ends.
    pub fn is_fatal(&self) -> bool {
        self.severity == Severity::Fatal
    }

    fn fields(&self) -> Vec<(u8, String)> {
        let always = [
            (b'S', Some(self.severity.as_str())),
            (b'V', Some(self.severity.as_str())),
            (b'C', Some(&self.sqlstate)),
            (b'M', Some(self.message.as_str())),
        ];
        let optional = [(b'D', self.detail.as_deref()), (b'H', self.hint.as_deref())];
        let present =
            always.into_iter().chain(optional).filter_map(|(code, text)| Some((code, text?.to_owned())));
        present.collect()
    }

    pub(super) fn error_response(&self) -> ErrorResponse {
        ErrorResponse::new(self.fields())
    }

    /// The whole ErrorResponse or NoticeResponse, for where there is no [`Connection`](super::Connection).
    pub fn encoded(&self) -> BytesMut {
        let mut bytes = BytesMut::new();
        let encoded = match self.severity {
            Severity::Notice | Severity::Warning => self.notice_response().encode(&mut bytes),
            Severity::Error | Severity::Fatal => self.error_response().encode(&mut bytes),
        };
        encoded.expect("a message with an error may have any length");
        bytes
    }

    pub(super) fn notice_response(&self) -> NoticeResponse {
        NoticeResponse::new(self.fields())
    }
}
