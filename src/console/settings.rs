//! SHOW, SET, and single rows of `pg_settings`.

use crate::overlay::{self, Kind, Token};
use crate::wire::PgError;
use crate::wire::messages::ColumnType;

use super::{Answer, Change, Field, Statements, report};

impl Statements<'_> {
    pub(super) fn show(self, name: &[Token]) -> Result<Answer, PgError> {
        let words: Option<Vec<_>> = name.iter().map(|token| overlay::identifier(self.text, token)).collect();
        let name = match words.as_deref() {
            Some([name]) if name == "all" => return Ok(self.show_all()),
            Some([name]) => match report::answer(name, self.facts) {
                Some(answer) => return answer,
                None => name.as_str(),
            },
            Some([time, zone]) if time == "time" && zone == "zone" => "TimeZone",
            Some([transaction, isolation, level])
                if [transaction, isolation, level] == ["transaction", "isolation", "level"] =>
            {
                "transaction_isolation"
            }
            _ => return Err(super::cannot(self.facts)),
        };
        let value = self.facts.setting(name).ok_or_else(|| super::unknown_setting(name, self.facts))?;
        let columns = vec![Field::new(name, ColumnType::Text)];
        Ok(Answer::Rows {
            columns,
            rows: vec![vec![Some(value)]],
            tag: "SHOW".to_owned(),
            changes: Vec::new(),
        })
    }

    fn show_all(self) -> Answer {
        let columns = ["name", "setting", "description"].map(|name| Field::new(name, ColumnType::Text));
        let row = |(name, value)| vec![Some(name), Some(value), Some(String::new())];
        let rows = self.facts.settings().into_iter().map(row).collect();
        Answer::Rows { columns: columns.into(), rows, tag: "SHOW".to_owned(), changes: Vec::new() }
    }

    /// `SET [SESSION] application_name TO value`; anything else that is set changes nothing.
    pub(super) fn set(self, tokens: &[Token]) -> Option<Change> {
        let tokens = match tokens {
            [session, rest @ ..] if self.is(session, "session") => rest,
            _ => tokens,
        };
        let [name, to, value] = tokens else { return None };
        let assigns = self.is(to, "to") || &self.text[to.span.clone()] == b"=";
        if !assigns || !overlay::is_identifier(self.text, name, "application_name") {
            return None;
        }
        if value.kind == Kind::Word && self.is(value, "default") {
            return Some(Change::ResetApplicationName);
        }
        let value = overlay::string_value(self.text, value).or_else(|| overlay::identifier(self.text, value));
        value.map(Change::ApplicationName)
    }
}

/// A setting's value as `pg_settings` has it, in the setting's own unit, from what SHOW shows. `None` for a value
/// with a unit when that of the setting is not known here.
pub(super) fn in_own_unit(name: &str, shown: &str) -> Option<String> {
    let digits = shown.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = shown.split_at(digits);
    let own = match name {
        "wal_segment_size" => 1,
        "archive_timeout" | "checkpoint_timeout" => 1_000_000,
        _ if digits > 0 && factor(unit).is_some() => return None,
        _ => return Some(shown.to_owned()),
    };
    if unit.is_empty() {
        return Some(shown.to_owned());
    }
    let value = number.parse::<u64>().ok()?.checked_mul(factor(unit)?)?;
    Some((value / own).to_string())
}

/// Bytes or microseconds in a unit.
fn factor(unit: &str) -> Option<u64> {
    Some(match unit {
        "B" | "us" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        "TB" => 1 << 40,
        "ms" => 1_000,
        "s" => 1_000_000,
        "min" => 60_000_000,
        "h" => 3_600_000_000,
        "d" => 86_400_000_000,
        _ => return None,
    })
}
