//! Words of the replication grammar (PostgreSQL: `repl_scanner.l`).

use super::{CommandError, Truncated};
use crate::lsn::Lsn;
use crate::slot_name::SlotName;

/// Keywords are upper case only: `show` is an identifier, and in front of a statement it means SQL.
macro_rules! keywords {
    ($($name:ident $text:literal,)*) => {
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub(super) enum Keyword { $($name,)* }

        impl Keyword {
            fn of(word: &[u8]) -> Option<Keyword> {
                $(if word == $text.as_bytes() { return Some(Keyword::$name); })*
                None
            }

            pub(super) fn as_str(self) -> &'static str {
                match self { $(Keyword::$name => $text,)* }
            }
        }

        #[cfg(test)]
        pub(super) const KEYWORDS: &[&str] = &[$($text,)*];
    };
}

keywords! {
    BaseBackup "BASE_BACKUP",
    IdentifySystem "IDENTIFY_SYSTEM",
    ReadReplicationSlot "READ_REPLICATION_SLOT",
    Show "SHOW",
    Timeline "TIMELINE",
    StartReplication "START_REPLICATION",
    CreateReplicationSlot "CREATE_REPLICATION_SLOT",
    DropReplicationSlot "DROP_REPLICATION_SLOT",
    AlterReplicationSlot "ALTER_REPLICATION_SLOT",
    TimelineHistory "TIMELINE_HISTORY",
    Physical "PHYSICAL",
    ReserveWal "RESERVE_WAL",
    Logical "LOGICAL",
    Slot "SLOT",
    Temporary "TEMPORARY",
    TwoPhase "TWO_PHASE",
    ExportSnapshot "EXPORT_SNAPSHOT",
    NoexportSnapshot "NOEXPORT_SNAPSHOT",
    UseSnapshot "USE_SNAPSHOT",
    Wait "WAIT",
    UploadManifest "UPLOAD_MANIFEST",
    Fence "FENCE",
    Unfence "UNFENCE",
    FenceStatus "FENCE_STATUS",
    BranchWal "BRANCH_WAL",
    Epoch "EPOCH",
    Reason "REASON",
}

impl Keyword {
    /// Whether PostgreSQL does not have it: to its commands it is a name.
    pub(super) fn is_ours(self) -> bool {
        use Keyword::{BranchWal, Epoch, Fence, FenceStatus, Reason, Unfence};
        matches!(self, BranchWal | Fence | Unfence | FenceStatus | Epoch | Reason)
    }
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Token {
    Keyword(Keyword),
    /// Folded to lower case unless quoted, at most 63 bytes.
    Ident(String),
    Str(String),
    Number(Number),
    Position(Lsn),
    Other(u8),
    End,
}

/// Digits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Number {
    /// What PostgreSQL takes them for.
    pub(super) low: u32,
    /// What they say; `None` if that is too much.
    pub(super) whole: Option<u64>,
}

impl Number {
    fn of(digits: &[u8]) -> Number {
        let whole = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok());
        Number { low: low_half(digits, 10), whole }
    }
}

/// The unread rest of a statement.
pub(super) struct Lexer<'a> {
    rest: &'a [u8],
    pub(super) notices: Vec<Truncated>,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a [u8]) -> Lexer<'a> {
        Lexer { rest: text, notices: Vec::new() }
    }

    /// The next word; at each place the longest one, as flex chooses.
    pub(super) fn next(&mut self) -> Result<Token, CommandError> {
        self.take_while(is_space);
        let Some((&first, after)) = self.rest.split_first() else {
            return Ok(Token::End);
        };
        if let Some(position) = self.position() {
            return Ok(Token::Position(position));
        }
        match first {
            b'0'..=b'9' => Ok(Token::Number(Number::of(self.take_while(|b| b.is_ascii_digit())))),
            b'\'' => self.quoted(b'\'').map(|text| Token::Str(lossy(&text))),
            b'"' => self.quoted(b'"').map(|name| Token::Ident(self.truncate(name))),
            _ if is_ident_start(first) => Ok(self.word()),
            other => {
                self.rest = after;
                Ok(Token::Other(other))
            }
        }
    }

    fn take_while(&mut self, accept: impl Fn(u8) -> bool) -> &'a [u8] {
        let len = self.rest.iter().position(|&b| !accept(b)).unwrap_or(self.rest.len());
        let (head, rest) = self.rest.split_at_checked(len).unwrap_or((self.rest, &[]));
        self.rest = rest;
        head
    }

    /// `hex/hex` without blanks; takes nothing if something else stands here.
    fn position(&mut self) -> Option<Lsn> {
        let is_hex = |b: u8| b.is_ascii_hexdigit();
        let mut ahead = Lexer::new(self.rest);
        let high = ahead.take_while(is_hex);
        ahead.rest = ahead.rest.strip_prefix(b"/")?;
        let low = ahead.take_while(is_hex);
        if high.is_empty() || low.is_empty() {
            return None;
        }
        self.rest = ahead.rest;
        Some(Lsn::new(u64::from(low_half(high, 16)) << 32 | u64::from(low_half(low, 16))))
    }

    /// A quoted text; a doubled quote inside stands for one. In identifiers PostgreSQL's newest minor
    /// releases read it so, older ones end the identifier there.
    fn quoted(&mut self, quote: u8) -> Result<Vec<u8>, CommandError> {
        self.rest = self.rest.get(1..).unwrap_or_default();
        let mut text = Vec::new();
        loop {
            text.extend_from_slice(self.take_while(|b| b != quote));
            self.rest = self.rest.get(1..).ok_or(CommandError::UnterminatedString)?;
            match self.rest.strip_prefix(&[quote]) {
                Some(rest) => self.rest = rest,
                None => return Ok(text),
            }
            text.push(quote);
        }
    }

    fn word(&mut self) -> Token {
        let word = self.take_while(|b| is_ident_start(b) || b.is_ascii_digit() || b == b'$');
        match Keyword::of(word) {
            Some(keyword) => Token::Keyword(keyword),
            None => Token::Ident(self.truncate(word.to_ascii_lowercase())),
        }
    }

    /// Cuts a name that is too long, and says so (`truncate_identifier`).
    fn truncate(&mut self, name: Vec<u8>) -> String {
        let Some(head) = name.get(..SlotName::MAX_LEN).filter(|head| head.len() < name.len()) else {
            return lossy(&name);
        };
        self.notices.push(Truncated { from: lossy(&name), to: lossy(head) });
        lossy(head)
    }
}

fn is_space(b: u8) -> bool {
    matches!(b, b' ' | b'\t' | b'\n' | b'\r' | 0x0B | 0x0C)
}

fn is_ident_start(b: u8) -> bool {
    b.is_ascii_alphabetic() || b == b'_' || b >= 0x80
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What C's `strtoul` makes of the digits, cut to 32 bits: modulo 2^32 until 64 bits overflow, which
/// stops at the largest number.
fn low_half(digits: &[u8], radix: u32) -> u32 {
    let value = digits.iter().try_fold(0_u64, |value, &digit| {
        let digit = char::from(digit).to_digit(radix)?;
        value.checked_mul(radix.into())?.checked_add(digit.into())
    });
    let [.., a, b, c, d] = value.unwrap_or(u64::MAX).to_be_bytes();
    u32::from_be_bytes([a, b, c, d])
}
