//! Statements of the replication grammar (PostgreSQL: `repl_gram.y`, and the options' rules in
//! `walsender.c`, `parseCreateReplSlotOptions`).

use super::lexer::{Keyword, Lexer, Number, Token};
use super::{
    Command, CommandError, CommandOption, CreateSlot, FenceOrder, OptionValue, Parsed, SlotKind,
    StartReplication, Statement,
};
use crate::lsn::Lsn;
use crate::timeline::TimelineId;

type Result<T> = std::result::Result<T, CommandError>;

pub(super) fn parse(text: &[u8]) -> Parsed {
    let mut lexer = Lexer::new(text);
    let statement = statement(&mut lexer);
    Parsed { notices: lexer.notices, statement }
}

/// Looks at the first word only, as the server does: SQL has words this lexer does not know.
fn statement(lexer: &mut Lexer<'_>) -> Result<Statement> {
    match lexer.next()? {
        Token::Keyword(first) if starts_command(first) => command(first, lexer).map(Statement::Command),
        _ => Ok(Statement::Sql),
    }
}

fn starts_command(word: Keyword) -> bool {
    matches!(
        word,
        Keyword::IdentifySystem
            | Keyword::BaseBackup
            | Keyword::StartReplication
            | Keyword::CreateReplicationSlot
            | Keyword::DropReplicationSlot
            | Keyword::AlterReplicationSlot
            | Keyword::ReadReplicationSlot
            | Keyword::TimelineHistory
            | Keyword::UploadManifest
            | Keyword::Show
            | Keyword::Fence
            | Keyword::Unfence
            | Keyword::FenceStatus
            | Keyword::BranchWal
    )
}

fn command(first: Keyword, lexer: &mut Lexer<'_>) -> Result<Command> {
    let mut words = Words::behind(first, lexer)?;
    let command = match first {
        Keyword::IdentifySystem => Command::IdentifySystem,
        Keyword::UploadManifest => Command::UploadManifest,
        Keyword::Show => Command::Show { name: words.dotted_name()? },
        Keyword::TimelineHistory => Command::TimelineHistory(words.timeline()?),
        Keyword::ReadReplicationSlot => Command::ReadReplicationSlot { slot: words.dotted_name()? },
        Keyword::DropReplicationSlot => {
            Command::DropReplicationSlot { slot: words.name()?, wait: words.accept(Keyword::Wait)? }
        }
        Keyword::AlterReplicationSlot => {
            Command::AlterReplicationSlot { slot: words.name()?, options: words.options()? }
        }
        Keyword::BaseBackup => Command::BaseBackup { options: words.opt_options()? },
        Keyword::CreateReplicationSlot => Command::CreateReplicationSlot(create_slot(&mut words)?),
        Keyword::Fence => Command::Fence(FenceOrder { epoch: words.epoch()?, reason: words.reason()? }),
        Keyword::Unfence => Command::Unfence { epoch: words.epoch()? },
        Keyword::FenceStatus => Command::FenceStatus,
        Keyword::BranchWal => {
            let lsn = words.position()?;
            words.expect(Keyword::Timeline)?;
            Command::BranchWal { lsn, tli: words.timeline()? }
        }
        _ => start_replication(&mut words)?,
    };
    words.finish()?;
    Ok(command)
}

fn create_slot(words: &mut Words<'_, '_>) -> Result<CreateSlot> {
    let name = words.name()?;
    let temporary = words.accept(Keyword::Temporary)?;
    let plugin = if words.accept(Keyword::Physical)? {
        None
    } else {
        words.expect(Keyword::Logical)?;
        Some(words.name()?)
    };
    let options = if words.at(b'(') { words.options()? } else { words.bare_options()? };
    // A syntax error further on outranks what is wrong with an option.
    words.finish()?;
    let kind = match plugin {
        None => SlotKind::Physical { reserve_wal: physical_options(&options)? },
        Some(plugin) => {
            logical_options(&options)?;
            SlotKind::Logical { plugin, options }
        }
    };
    Ok(CreateSlot { name, temporary, kind })
}

/// The only option is `reserve_wal`.
fn physical_options(options: &[CommandOption]) -> Result<bool> {
    let mut reserve_wal = None;
    for option in options {
        match option.name.as_str() {
            "reserve_wal" if reserve_wal.is_none() => reserve_wal = Some(option.as_bool()?),
            "reserve_wal" | "snapshot" | "two_phase" | "failover" => {
                return Err(CommandError::ConflictingOptions);
            }
            _ => return Err(CommandError::UnrecognizedOption(option.name.clone())),
        }
    }
    Ok(reserve_wal.unwrap_or(false))
}

fn logical_options(options: &[CommandOption]) -> Result<()> {
    for (n, option) in options.iter().enumerate() {
        let again = options.iter().take(n).any(|earlier| earlier.name == option.name);
        match option.name.as_str() {
            "reserve_wal" => return Err(CommandError::ConflictingOptions),
            "snapshot" | "two_phase" | "failover" if again => return Err(CommandError::ConflictingOptions),
            "snapshot" => snapshot_action(option)?,
            "two_phase" | "failover" => drop(option.as_bool()?),
            _ => return Err(CommandError::UnrecognizedOption(option.name.clone())),
        }
    }
    Ok(())
}

fn snapshot_action(option: &CommandOption) -> Result<()> {
    match &option.value {
        Some(OptionValue::Text(action)) if matches!(action.as_str(), "export" | "nothing" | "use") => Ok(()),
        Some(OptionValue::Text(other)) => Err(CommandError::UnrecognizedSnapshot(other.clone())),
        Some(OptionValue::Number(other)) => Err(CommandError::UnrecognizedSnapshot(other.to_string())),
        None => Err(CommandError::SnapshotWithoutValue),
    }
}

fn start_replication(words: &mut Words<'_, '_>) -> Result<Command> {
    let slot = if words.accept(Keyword::Slot)? { Some(words.name()?) } else { None };
    match slot {
        Some(slot) if words.accept(Keyword::Logical)? => {
            let lsn = words.position()?;
            Ok(Command::StartLogicalReplication { slot, lsn, options: words.plugin_options()? })
        }
        slot => {
            words.accept(Keyword::Physical)?;
            let lsn = words.position()?;
            let tli = if words.accept(Keyword::Timeline)? { Some(words.timeline()?) } else { None };
            Ok(Command::StartReplication(StartReplication { slot, lsn, tli }))
        }
    }
}

/// A lexer with one word in hand.
struct Words<'a, 'b> {
    next: Token,
    lexer: &'a mut Lexer<'b>,
    /// Whether the command is PostgreSQL's: then words of ours are names.
    is_postgres: bool,
}

impl<'a, 'b> Words<'a, 'b> {
    /// What comes behind the first word of a command.
    fn behind(first: Keyword, lexer: &'a mut Lexer<'b>) -> Result<Words<'a, 'b>> {
        let mut words = Words { next: Token::End, lexer, is_postgres: !first.is_ours() };
        words.take()?;
        Ok(words)
    }

    fn take(&mut self) -> Result<Token> {
        let next = match self.lexer.next()? {
            Token::Keyword(word) if self.is_postgres && word.is_ours() => {
                Token::Ident(word.as_str().to_ascii_lowercase())
            }
            next => next,
        };
        Ok(std::mem::replace(&mut self.next, next))
    }

    /// `[EPOCH n]`
    fn epoch(&mut self) -> Result<Option<u64>> {
        if !self.accept(Keyword::Epoch)? {
            return Ok(None);
        }
        match self.next {
            Token::Number(number) => {
                let epoch = number.whole.filter(|epoch| *epoch > 0 && i64::try_from(*epoch).is_ok());
                let epoch = epoch.ok_or(CommandError::InvalidEpoch)?;
                self.take()?;
                Ok(Some(epoch))
            }
            _ => Err(CommandError::Syntax),
        }
    }

    /// `[REASON 'text']`
    fn reason(&mut self) -> Result<Option<String>> {
        if !self.accept(Keyword::Reason)? {
            return Ok(None);
        }
        match self.next {
            Token::Str(_) => {}
            _ => return Err(CommandError::Syntax),
        }
        match self.take()? {
            Token::Str(text) => Ok(Some(text)),
            _ => Err(CommandError::Syntax),
        }
    }

    fn at(&self, other: u8) -> bool {
        self.next == Token::Other(other)
    }

    fn accept(&mut self, keyword: Keyword) -> Result<bool> {
        let found = self.next == Token::Keyword(keyword);
        if found {
            self.take()?;
        }
        Ok(found)
    }

    fn accept_char(&mut self, other: u8) -> Result<bool> {
        let found = self.at(other);
        if found {
            self.take()?;
        }
        Ok(found)
    }

    fn expect(&mut self, keyword: Keyword) -> Result<()> {
        if self.accept(keyword)? { Ok(()) } else { Err(CommandError::Syntax) }
    }

    fn expect_char(&mut self, other: u8) -> Result<()> {
        if self.accept_char(other)? { Ok(()) } else { Err(CommandError::Syntax) }
    }

    fn name(&mut self) -> Result<String> {
        match self.next {
            Token::Ident(_) => {}
            _ => return Err(CommandError::Syntax),
        }
        match self.take()? {
            Token::Ident(name) => Ok(name),
            _ => Err(CommandError::Syntax),
        }
    }

    /// `name.name…`, one text with the dots.
    fn dotted_name(&mut self) -> Result<String> {
        let mut name = self.name()?;
        while self.accept_char(b'.')? {
            name.push('.');
            name.push_str(&self.name()?);
        }
        Ok(name)
    }

    /// Decided before the next word is looked at, as by the server's parser.
    fn timeline(&mut self) -> Result<TimelineId> {
        match self.next {
            Token::Number(Number { low, .. }) => {
                let tli = TimelineId::new(low).ok_or(CommandError::InvalidTimeline)?;
                self.take()?;
                Ok(tli)
            }
            _ => Err(CommandError::Syntax),
        }
    }

    fn position(&mut self) -> Result<Lsn> {
        match self.next {
            Token::Position(lsn) => {
                self.take()?;
                Ok(lsn)
            }
            _ => Err(CommandError::Syntax),
        }
    }

    /// `(option [value], …)` with at least one option.
    fn options(&mut self) -> Result<Vec<CommandOption>> {
        self.list(Words::option)
    }

    fn opt_options(&mut self) -> Result<Vec<CommandOption>> {
        if self.at(b'(') { self.options() } else { Ok(Vec::new()) }
    }

    /// `(name ['value'], …)` for an output plugin, or nothing.
    fn plugin_options(&mut self) -> Result<Vec<CommandOption>> {
        if self.at(b'(') { self.list(Words::plugin_option) } else { Ok(Vec::new()) }
    }

    fn list(&mut self, item: impl Fn(&mut Self) -> Result<CommandOption>) -> Result<Vec<CommandOption>> {
        self.expect_char(b'(')?;
        let mut options = vec![item(self)?];
        while self.accept_char(b',')? {
            options.push(item(self)?);
        }
        self.expect_char(b')')?;
        Ok(options)
    }

    fn option(&mut self) -> Result<CommandOption> {
        let name = match self.next {
            // The one keyword that the grammar's `ident_or_keyword` leaves out.
            Token::Keyword(Keyword::ReadReplicationSlot) => return Err(CommandError::Syntax),
            Token::Keyword(keyword) => keyword.as_str().to_ascii_lowercase(),
            Token::Ident(_) => return self.named_option(),
            _ => return Err(CommandError::Syntax),
        };
        self.take()?;
        Ok(CommandOption { name, value: self.value()? })
    }

    fn named_option(&mut self) -> Result<CommandOption> {
        Ok(CommandOption { name: self.name()?, value: self.value()? })
    }

    fn plugin_option(&mut self) -> Result<CommandOption> {
        let name = self.name()?;
        let value = if matches!(self.next, Token::Str(_)) { self.value()? } else { None };
        Ok(CommandOption { name, value })
    }

    fn value(&mut self) -> Result<Option<OptionValue>> {
        match self.next {
            Token::Ident(_) | Token::Str(_) | Token::Number(_) => {}
            _ => return Ok(None),
        }
        Ok(match self.take()? {
            Token::Ident(text) | Token::Str(text) => Some(OptionValue::Text(text)),
            Token::Number(Number { low, .. }) => Some(OptionValue::Number(low)),
            _ => None,
        })
    }

    /// The words that stood for options before version 15, still understood.
    fn bare_options(&mut self) -> Result<Vec<CommandOption>> {
        let mut options = Vec::new();
        loop {
            let (name, value) = match self.next {
                Token::Keyword(Keyword::ExportSnapshot) => ("snapshot", Some("export")),
                Token::Keyword(Keyword::NoexportSnapshot) => ("snapshot", Some("nothing")),
                Token::Keyword(Keyword::UseSnapshot) => ("snapshot", Some("use")),
                Token::Keyword(Keyword::ReserveWal) => ("reserve_wal", None),
                Token::Keyword(Keyword::TwoPhase) => ("two_phase", None),
                _ => return Ok(options),
            };
            self.take()?;
            let value = value.map(|text| OptionValue::Text(text.to_owned()));
            options.push(CommandOption { name: name.to_owned(), value });
        }
    }

    /// The end, with or without one semicolon.
    fn finish(&mut self) -> Result<()> {
        self.accept_char(b';')?;
        if self.next == Token::End { Ok(()) } else { Err(CommandError::Syntax) }
    }
}
