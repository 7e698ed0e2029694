//! `pg_settings`: what SHOW ALL shows, and the relay's own settings by names in PostgreSQL's manner.

use super::{Bool, ColumnType, Facts, Int4, Row, Text, TextArray, flag, report};
use crate::status::Setting;

pub(super) const COLUMNS: [(&str, ColumnType); 17] = [
    ("name", Text),
    ("setting", Text),
    ("unit", Text),
    ("category", Text),
    ("short_desc", Text),
    ("extra_desc", Text),
    ("context", Text),
    ("vartype", Text),
    ("source", Text),
    ("min_val", Text),
    ("max_val", Text),
    ("enumvals", TextArray),
    ("boot_val", Text),
    ("reset_val", Text),
    ("sourcefile", Text),
    ("sourceline", Int4),
    ("pending_restart", Bool),
];

/// What a setting's value is.
#[derive(Clone, Copy)]
enum Kind {
    Bool,
    /// A number without a unit.
    Number,
    /// Bytes, in that unit unless it takes a smaller one.
    Size(&'static str),
    /// A time, in that unit unless it takes a smaller one.
    Time(&'static str),
    /// One of these words, as an array is written.
    Word(&'static str),
    Text,
}

/// Settings that are not texts: the relay's, and those that PostgreSQL shows to everybody.
const KINDS: [(&str, Kind); 38] = [
    ("ack_timeout", Kind::Time("ms")),
    ("archive_timeout", Kind::Time("s")),
    ("authentication_timeout", Kind::Time("s")),
    ("base_backup_max_rate", Kind::Size("kB")),
    ("checkpoint_timeout", Kind::Time("s")),
    ("data_checksums", Kind::Bool),
    ("default_transaction_read_only", Kind::Bool),
    ("hot_standby", Kind::Bool),
    ("in_hot_standby", Kind::Bool),
    ("integer_datetimes", Kind::Bool),
    ("is_superuser", Kind::Bool),
    ("log_connections", Kind::Bool),
    ("log_disconnections", Kind::Bool),
    ("log_format", Kind::Word("{auto,text,json}")),
    ("log_level", Kind::Word("{off,error,warn,info,debug,trace}")),
    ("log_replication_commands", Kind::Bool),
    ("max_connections", Kind::Number),
    ("max_failed_logins", Kind::Number),
    ("max_replication_slots", Kind::Number),
    ("max_slot_wal_keep_size", Kind::Size("MB")),
    ("max_user_connections", Kind::Number),
    ("max_wal_senders", Kind::Number),
    ("recall_size", Kind::Size("MB")),
    ("server_version_num", Kind::Number),
    ("shutdown_timeout", Kind::Time("ms")),
    ("sql_overlay", Kind::Bool),
    ("ssl", Kind::Bool),
    ("standard_conforming_strings", Kind::Bool),
    ("transaction_read_only", Kind::Bool),
    ("wal_keep_size", Kind::Size("MB")),
    ("wal_level", Kind::Word("{minimal,replica,logical}")),
    ("wal_log_hints", Kind::Bool),
    ("wal_receiver_timeout", Kind::Time("ms")),
    ("wal_segment_size", Kind::Size("B")),
    ("wal_sender_shutdown_timeout", Kind::Time("ms")),
    ("wal_sender_timeout", Kind::Time("ms")),
    ("wal_write", Kind::Word("{mmap,pwrite}")),
    ("transaction_deferrable", Kind::Bool),
];

const SIZES: [(&str, u64); 5] =
    [("B", 1), ("kB", 1 << 10), ("MB", 1 << 20), ("GB", 1 << 30), ("TB", 1 << 40)];
const TIMES: [(&str, u64); 6] = [
    ("us", 1),
    ("ms", 1000),
    ("s", 1_000_000),
    ("min", 60_000_000),
    ("h", 3_600_000_000),
    ("d", 86_400_000_000),
];

pub(super) fn rows(facts: &dyn Facts) -> Vec<Row> {
    let status = report::visible(facts);
    let own: Vec<_> =
        status.iter().flat_map(|status| &status.settings).map(|it| (own_name(it), it)).collect();
    let of_session = facts.settings().into_iter().filter(|(name, _)| own.iter().all(|(own, _)| own != name));
    let mut rows: Vec<_> = of_session.map(|(name, value)| session_row(name, &value)).collect();
    rows.extend(own.iter().map(|(name, setting)| own_row(name.clone(), setting)));
    rows.sort_by_key(|row| row.get("name").map(str::to_ascii_lowercase));
    rows
}

fn own_name(setting: &Setting) -> String {
    setting.name.replace('-', "_")
}

/// Clients take it for granted that there is a description.
fn session_row(name: String, value: &str) -> Row {
    row(name, value)
        .with("category", "PostgreSQL".to_owned())
        .with("short_desc", "PostgreSQL's setting of that name".to_owned())
        .with("context", "internal".to_owned())
        .with("source", "default".to_owned())
        .with("pending_restart", flag(false))
}

fn own_row(name: String, setting: &Setting) -> Row {
    row(name, &setting.value)
        .with("category", "walrelay".to_owned())
        .with("short_desc", setting.description.clone())
        .with("context", setting.context.clone())
        .with("source", setting.source.clone())
        .with("sourcefile", setting.source_file.clone())
        .with("pending_restart", flag(setting.pending_restart))
}

fn row(name: String, shown: &str) -> Row {
    let kind = KINDS.iter().find(|(known, _)| *known == name).map_or(Kind::Text, |(_, kind)| *kind);
    let (value, unit, kind, words) = match kind {
        Kind::Bool => (shown.to_owned(), None, "bool", None),
        Kind::Number => (shown.to_owned(), None, "integer", None),
        Kind::Size(unit) => measured(shown, unit, &SIZES),
        Kind::Time(unit) => measured(shown, unit, &TIMES),
        Kind::Word(words) => (shown.to_owned(), None, "enum", Some(words)),
        Kind::Text => (shown.to_owned(), None, "string", None),
    };
    Row::default()
        .with("name", name)
        .with("reset_val", value.clone())
        .with("setting", value)
        .with("unit", unit.map(str::to_owned))
        .with("vartype", kind.to_owned())
        .with("enumvals", words.map(str::to_owned))
}

type Measured = (String, Option<&'static str>, &'static str, Option<&'static str>);

/// A number in the unit; in the largest smaller one if it is no whole number of those. No text is none: no limit.
fn measured(shown: &str, unit: &'static str, units: &'static [(&'static str, u64)]) -> Measured {
    let digits = shown.trim_start_matches('-');
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    let (number, of) = digits.split_at(end);
    let factor = |name: &str| units.iter().find(|(known, _)| *known == name).map(|(_, factor)| *factor);
    let all = match (shown, of) {
        ("", _) => return ("0".to_owned(), Some(unit), "integer", None),
        (_, "") => return (shown.to_owned(), Some(unit), "integer", None),
        _ => number.parse::<u64>().ok().zip(factor(of)).and_then(|(number, of)| number.checked_mul(of)),
    };
    let Some(all) = all else { return (shown.to_owned(), None, "string", None) };
    let most = factor(unit).unwrap_or(1);
    let fits = units.iter().rev().find(|(_, factor)| *factor <= most && all.is_multiple_of(*factor));
    let (unit, factor) = fits.copied().unwrap_or((unit, most));
    ((all / factor).to_string(), Some(unit), "integer", None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_in_the_units_of_postgresql() {
        let check = |name: &str, shown: &str, expected: [Option<&str>; 3]| {
            let row = row(name.to_owned(), shown);
            assert_eq!(
                ["setting", "unit", "vartype"].map(|column| row.get(column)),
                expected,
                "{name} {shown}"
            );
        };
        let integer = Some("integer");
        check("wal_keep_size", "3GB", [Some("3072"), Some("MB"), integer]);
        check("wal_keep_size", "1536kB", [Some("1536"), Some("kB"), integer]);
        check("max_slot_wal_keep_size", "-1", [Some("-1"), Some("MB"), integer]);
        check("base_backup_max_rate", "", [Some("0"), Some("kB"), integer]);
        check("wal_sender_timeout", "1min", [Some("60000"), Some("ms"), integer]);
        check("authentication_timeout", "1500ms", [Some("1500"), Some("ms"), integer]);
        check("wal_segment_size", "16MB", [Some("16777216"), Some("B"), integer]);
        check("ssl", "on", [Some("on"), None, Some("bool")]);
        check("wal_write", "mmap", [Some("mmap"), None, Some("enum")]);
        check("slot", "5", [Some("5"), None, Some("string")]);
    }
}
