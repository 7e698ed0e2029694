//! The replication grammar: what a client may send as a simple query on a replication connection
//! (PostgreSQL: `repl_gram.y`, versions 15 and later; older clients' words are understood too).

mod lexer;
mod parser;

use std::fmt;

use crate::lsn::Lsn;
use crate::timeline::TimelineId;

/// A replication command. [`fmt::Display`] writes it for servers of versions 15 and later; without options
/// in parentheses 13 and 14 read it too.
///
/// Names of slots are what the client typed (folded, cut to 63 bytes), not checked: PostgreSQL checks
/// them only where a slot is created. See [`crate::SlotName`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Command {
    /// `IDENTIFY_SYSTEM`
    IdentifySystem,
    /// `SHOW name`, the name folded to lower case unless it was quoted.
    Show {
        /// A setting.
        name: String,
    },
    /// `TIMELINE_HISTORY n`
    TimelineHistory(TimelineId),
    /// `CREATE_REPLICATION_SLOT`
    CreateReplicationSlot(CreateSlot),
    /// `READ_REPLICATION_SLOT name`
    ReadReplicationSlot {
        /// The slot, which may be none.
        slot: String,
    },
    /// `DROP_REPLICATION_SLOT name [WAIT]`
    DropReplicationSlot {
        /// The slot.
        slot: String,
        /// Wait until nobody uses it.
        wait: bool,
    },
    /// `ALTER_REPLICATION_SLOT name (option, …)`, since 17.
    AlterReplicationSlot {
        /// The slot.
        slot: String,
        /// `failover`, `two_phase`; not checked.
        options: Vec<CommandOption>,
    },
    /// `START_REPLICATION` of WAL.
    StartReplication(StartReplication),
    /// `START_REPLICATION` of a logical slot's changes.
    StartLogicalReplication {
        /// The slot.
        slot: String,
        /// Where to start.
        lsn: Lsn,
        /// The output plugin's options.
        options: Vec<CommandOption>,
    },
    /// `BASE_BACKUP [(option, …)]`
    BaseBackup {
        /// Not checked.
        options: Vec<CommandOption>,
    },
    /// `UPLOAD_MANIFEST`, since 17.
    UploadManifest,
    /// `FENCE [EPOCH n] [REASON 'text']`, which only walrelay has: it confirms nothing upstream any more, and follows only a
    /// newer timeline.
    Fence(FenceOrder),
    /// `UNFENCE [EPOCH n]`, which only walrelay has.
    Unfence {
        /// Only if this fence is in force; whichever it is if `None`.
        epoch: Option<u64>,
    },
    /// `FENCE_STATUS`, which only walrelay has.
    FenceStatus,
    /// `BRANCH_WAL X/X TIMELINE n`, which only walrelay has: WAL as it is held of a timeline that was left, also behind the
    /// place where that was.
    BranchWal {
        /// The first byte wanted.
        lsn: Lsn,
        /// The timeline.
        tli: TimelineId,
    },
}

/// What a fence is to be.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FenceOrder {
    /// Its number, at least 1, at most what a signed one of 64 bits can be; the next one if `None`.
    pub epoch: Option<u64>,
    /// Why, for people.
    pub reason: Option<String>,
}

/// What a new slot shall be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CreateSlot {
    /// Its name, not checked.
    pub name: String,
    /// It goes away with the connection, or at the connection's first error.
    pub temporary: bool,
    /// What it is for.
    pub kind: SlotKind,
}

/// Physical or logical.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SlotKind {
    /// Keeps WAL.
    Physical {
        /// From now on, not from the first position reported.
        reserve_wal: bool,
    },
    /// Decodes WAL.
    Logical {
        /// The output plugin.
        plugin: String,
        /// `snapshot`, `two_phase`, `failover`; checked.
        options: Vec<CommandOption>,
    },
}

/// From where WAL is asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StartReplication {
    /// Slot to stream with.
    pub slot: Option<String>,
    /// First byte wanted.
    pub lsn: Lsn,
    /// Timeline wanted, the server's own if `None`.
    pub tli: Option<TimelineId>,
}

/// One `name [value]` in parentheses.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CommandOption {
    /// Lower case, unless it was quoted.
    pub name: String,
    /// Absent, a word or string, or a number.
    pub value: Option<OptionValue>,
}

/// Value of a [`CommandOption`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OptionValue {
    /// A word or a quoted string.
    Text(String),
    /// An unsigned number.
    Number(u32),
}

impl CommandOption {
    /// The option as a switch: without a value it is on (`defGetBoolean`).
    pub fn as_bool(&self) -> Result<bool, CommandError> {
        let is = |text: &str, words: [&str; 2]| words.iter().any(|word| text.eq_ignore_ascii_case(word));
        match &self.value {
            None | Some(OptionValue::Number(1)) => Ok(true),
            Some(OptionValue::Number(0)) => Ok(false),
            Some(OptionValue::Text(text)) if is(text, ["true", "on"]) => Ok(true),
            Some(OptionValue::Text(text)) if is(text, ["false", "off"]) => Ok(false),
            Some(_) => Err(CommandError::NotBoolean(self.name.clone())),
        }
    }
}

/// What a simple query on a replication connection turned out to be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Parsed {
    /// Names that were cut, to be told before any answer.
    pub notices: Vec<Truncated>,
    /// The statement.
    pub statement: Result<Statement, CommandError>,
}

/// The first word decides between the two grammars.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Statement {
    /// A replication command.
    Command(Command),
    /// Anything else, the empty query included.
    Sql,
}

/// A name that was too long, NOTICE `42622`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Truncated {
    /// As it was typed, folded unless it was quoted.
    pub from: String,
    /// Its first 63 bytes.
    pub to: String,
}

impl Truncated {
    /// PostgreSQL's SQLSTATE for the notice.
    pub const SQLSTATE: &'static str = "42622";
}

impl fmt::Display for Truncated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "identifier \"{}\" will be truncated to \"{}\"", self.from, self.to)
    }
}

/// A replication command that cannot be understood; the texts are PostgreSQL's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    /// PostgreSQL says no more either.
    #[error("syntax error")]
    Syntax,
    /// The text ends inside quotes.
    #[error("unterminated quoted string")]
    UnterminatedString,
    /// Timeline 0, or a multiple of 2^32.
    #[error("invalid timeline 0")]
    InvalidTimeline,
    /// A fence's number that is 0, or too large.
    #[error("invalid epoch")]
    InvalidEpoch,
    /// An option twice, or one of the other kind of slot.
    #[error("conflicting or redundant options")]
    ConflictingOptions,
    /// An option that does not exist.
    #[error("unrecognized option: {0}")]
    UnrecognizedOption(String),
    /// The value of a switch.
    #[error("{0} requires a Boolean value")]
    NotBoolean(String),
    /// A `snapshot` option that is not `export`, `use` or `nothing`.
    #[error("unrecognized value for CREATE_REPLICATION_SLOT option \"snapshot\": \"{0}\"")]
    UnrecognizedSnapshot(String),
    /// A `snapshot` option without a value.
    #[error("snapshot requires a parameter")]
    SnapshotWithoutValue,
}

impl CommandError {
    /// PostgreSQL's SQLSTATE for this error.
    pub fn sqlstate(&self) -> &'static str {
        match self {
            CommandError::UnrecognizedOption(_) => "XX000",
            CommandError::UnrecognizedSnapshot(_) => "22023",
            _ => "42601",
        }
    }
}

impl Parsed {
    /// Reads the text of a simple query, without the NUL that ends it.
    pub fn parse(text: &[u8]) -> Parsed {
        parser::parse(text)
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Command::IdentifySystem => f.write_str("IDENTIFY_SYSTEM"),
            Command::Show { name } => write!(f, "SHOW {}", Quoted(name)),
            Command::TimelineHistory(tli) => write!(f, "TIMELINE_HISTORY {tli}"),
            Command::CreateReplicationSlot(slot) => slot.fmt(f),
            Command::ReadReplicationSlot { slot } => write!(f, "READ_REPLICATION_SLOT {}", Quoted(slot)),
            Command::DropReplicationSlot { slot, wait } => {
                write!(f, "DROP_REPLICATION_SLOT {}{}", Quoted(slot), if *wait { " WAIT" } else { "" })
            }
            Command::AlterReplicationSlot { slot, options } => {
                write!(f, "ALTER_REPLICATION_SLOT {}{}", Quoted(slot), Options(options))
            }
            Command::StartReplication(start) => start.fmt(f),
            Command::StartLogicalReplication { slot, lsn, options } => {
                write!(f, "START_REPLICATION SLOT {} LOGICAL {lsn}{}", Quoted(slot), Options(options))
            }
            Command::BaseBackup { options } => write!(f, "BASE_BACKUP{}", Options(options)),
            Command::UploadManifest => f.write_str("UPLOAD_MANIFEST"),
            Command::Fence(order) => order.fmt(f),
            Command::Unfence { epoch } => {
                f.write_str("UNFENCE")?;
                epoch.map_or(Ok(()), |epoch| write!(f, " EPOCH {epoch}"))
            }
            Command::FenceStatus => f.write_str("FENCE_STATUS"),
            Command::BranchWal { lsn, tli } => write!(f, "BRANCH_WAL {lsn} TIMELINE {tli}"),
        }
    }
}

impl fmt::Display for FenceOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FENCE")?;
        if let Some(epoch) = self.epoch {
            write!(f, " EPOCH {epoch}")?;
        }
        self.reason.as_ref().map_or(Ok(()), |reason| write!(f, " REASON '{}'", reason.replace('\'', "''")))
    }
}

impl fmt::Display for CreateSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let temporary = if self.temporary { " TEMPORARY" } else { "" };
        write!(f, "CREATE_REPLICATION_SLOT {}{temporary}", Quoted(&self.name))?;
        match &self.kind {
            SlotKind::Physical { reserve_wal: false } => f.write_str(" PHYSICAL"),
            SlotKind::Physical { reserve_wal: true } => f.write_str(" PHYSICAL RESERVE_WAL"),
            SlotKind::Logical { plugin, options } => {
                write!(f, " LOGICAL {}{}", Quoted(plugin), Options(options))
            }
        }
    }
}

impl fmt::Display for StartReplication {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("START_REPLICATION")?;
        if let Some(slot) = &self.slot {
            write!(f, " SLOT {}", Quoted(slot))?;
        }
        write!(f, " {}", self.lsn)?;
        self.tli.map_or(Ok(()), |tli| write!(f, " TIMELINE {tli}"))
    }
}

/// A name as a quoted identifier.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.replace('"', "\"\""))
    }
}

/// A list in parentheses, nothing if it is empty.
struct Options<'a>(&'a [CommandOption]);

impl fmt::Display for Options<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, option) in self.0.iter().enumerate() {
            f.write_str(if n == 0 { " (" } else { ", " })?;
            write!(f, "{}", Quoted(&option.name))?;
            match &option.value {
                None => {}
                Some(OptionValue::Text(text)) => write!(f, " '{}'", text.replace('\'', "''"))?,
                Some(OptionValue::Number(number)) => write!(f, " {number}")?,
            }
        }
        f.write_str(if self.0.is_empty() { "" } else { ")" })
    }
}

#[cfg(test)]
mod tests;
