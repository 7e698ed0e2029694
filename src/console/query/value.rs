//! Values and their types: reading, writing, comparing (PostgreSQL: the input and output functions of `utils/adt`).

use std::cmp::Ordering;
use std::net::IpAddr;
use std::sync::Arc;

use walrelay_proto::Lsn;

use crate::wire::messages::ColumnType;
use crate::wire::{PgError, sqlstate};

use super::Result;
use super::ast::TypeName;
use super::numeric::Numeric;
use super::time::{Interval, Timestamp};

/// Types of the engine.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Type {
    /// Of a literal in quotes, NULL, and a parameter before it is clear what they are to be.
    Unknown,
    Bool,
    Int2,
    Int4,
    Int8,
    Numeric,
    Float8,
    Text,
    Name,
    Oid,
    Xid,
    Timestamptz,
    Interval,
    PgLsn,
    Inet,
    TextArray,
    Void,
}

impl Type {
    /// As error messages have it (PostgreSQL: `format_type_be`).
    pub(super) fn shown(self) -> &'static str {
        match self {
            Type::Unknown => "unknown",
            Type::Bool => "boolean",
            Type::Int2 => "smallint",
            Type::Int4 => "integer",
            Type::Int8 => "bigint",
            Type::Numeric => "numeric",
            Type::Float8 => "double precision",
            Type::Text => "text",
            Type::Name => "name",
            Type::Oid => "oid",
            Type::Xid => "xid",
            Type::Timestamptz => "timestamp with time zone",
            Type::Interval => "interval",
            Type::PgLsn => "pg_lsn",
            Type::Inet => "inet",
            Type::TextArray => "text[]",
            Type::Void => "void",
        }
    }

    /// The type of that name; `None` if it is not one of these.
    pub(super) fn named(name: &TypeName) -> Option<Type> {
        let own = name.own_name();
        if name.is_array {
            return matches!(own, "text" | "varchar").then_some(Type::TextArray);
        }
        Some(match own {
            "bool" => Type::Bool,
            "int2" => Type::Int2,
            "int4" => Type::Int4,
            "int8" => Type::Int8,
            "numeric" => Type::Numeric,
            "float8" => Type::Float8,
            "text" | "varchar" => Type::Text,
            "name" => Type::Name,
            "oid" => Type::Oid,
            "xid" => Type::Xid,
            "timestamptz" => Type::Timestamptz,
            "interval" => Type::Interval,
            "pg_lsn" => Type::PgLsn,
            "inet" => Type::Inet,
            _ => return None,
        })
    }

    /// The type that has this number in `pg_type`.
    pub(super) fn of_oid(oid: u32) -> Option<Type> {
        Some(match oid {
            16 => Type::Bool,
            19 => Type::Name,
            20 => Type::Int8,
            21 => Type::Int2,
            23 => Type::Int4,
            25 | 1042 | 1043 => Type::Text,
            26 => Type::Oid,
            28 => Type::Xid,
            700 | 701 => Type::Float8,
            705 => Type::Unknown,
            869 => Type::Inet,
            1009 => Type::TextArray,
            1184 => Type::Timestamptz,
            1186 => Type::Interval,
            1700 => Type::Numeric,
            3220 => Type::PgLsn,
            _ => return None,
        })
    }

    pub(super) fn column(self) -> ColumnType {
        match self {
            Type::Unknown | Type::Text => ColumnType::Text,
            Type::Bool => ColumnType::Bool,
            Type::Int2 => ColumnType::Int2,
            Type::Int4 => ColumnType::Int4,
            Type::Int8 => ColumnType::Int8,
            Type::Numeric => ColumnType::Numeric,
            Type::Float8 => ColumnType::Float8,
            Type::Name => ColumnType::Name,
            Type::Oid => ColumnType::Oid,
            Type::Xid => ColumnType::Xid,
            Type::Timestamptz => ColumnType::Timestamptz,
            Type::Interval => ColumnType::Interval,
            Type::PgLsn => ColumnType::PgLsn,
            Type::Inet => ColumnType::Inet,
            Type::TextArray => ColumnType::TextArray,
            Type::Void => ColumnType::Void,
        }
    }

    pub(super) fn is_text(self) -> bool {
        matches!(self, Type::Text | Type::Name | Type::Unknown)
    }

    /// How far up a number's type is; calculations go to the higher one.
    fn rank(self) -> Option<u8> {
        Some(match self {
            Type::Int2 => 1,
            Type::Int4 => 2,
            Type::Int8 => 3,
            Type::Numeric => 4,
            Type::Float8 => 5,
            _ => return None,
        })
    }

    /// Whether a value is taken for one of the other type without being asked for it.
    pub(super) fn becomes(self, other: Type) -> bool {
        match (self, other) {
            _ if self == other => true,
            (Type::Unknown, _) | (Type::Name, Type::Text) | (Type::Oid, Type::Int8) => true,
            (Type::Int2 | Type::Int4 | Type::Int8, Type::Oid) => true,
            _ => matches!((self.rank(), other.rank()), (Some(from), Some(to)) if from < to),
        }
    }

    /// What values of both types are compared as; `None` if they are not.
    pub(super) fn compared(self, other: Type, is_equality: bool) -> Option<Type> {
        let common = match (self, other) {
            (Type::Unknown, Type::Unknown) => Type::Text,
            (Type::Unknown, known) | (known, Type::Unknown) => known,
            (Type::Text | Type::Name, Type::Text | Type::Name) => Type::Text,
            (Type::Xid, Type::Xid | Type::Int4 | Type::Int2) | (Type::Int4 | Type::Int2, Type::Xid) => {
                Type::Xid
            }
            (Type::Oid, Type::Int2 | Type::Int4 | Type::Int8)
            | (Type::Int2 | Type::Int4 | Type::Int8, Type::Oid) => Type::Int8,
            _ => self.common(other)?,
        };
        let can = match common {
            Type::TextArray | Type::Void => false,
            Type::Xid => is_equality,
            _ => true,
        };
        can.then_some(common)
    }

    /// What the branches of a CASE or the sides of a UNION become; `None` if they do not match.
    pub(super) fn common(self, other: Type) -> Option<Type> {
        if (self, other) == (Type::Name, Type::Text) {
            // Each is taken for the other, so the first one stays.
            Some(self)
        } else if self.becomes(other) {
            Some(other)
        } else if other.becomes(self) {
            Some(self)
        } else {
            None
        }
    }
}

/// What is in a column of a row. NULL is of every type.
#[derive(Clone, Debug)]
pub(super) enum Value {
    Null,
    Bool(bool),
    /// `int2`, `int4`, `int8`, `oid` and `xid`
    Int(i64),
    Numeric(Numeric),
    Float(f64),
    Text(Arc<str>),
    Time(Timestamp),
    Interval(Interval),
    Lsn(Lsn),
    Inet(IpAddr, u8),
}

impl Value {
    pub(super) fn text(text: impl Into<Arc<str>>) -> Value {
        Value::Text(text.into())
    }

    pub(super) fn is_null(&self) -> bool {
        matches!(self, Value::Null)
    }

    /// Bytes that it takes, about.
    pub(super) fn size(&self) -> usize {
        let text = if let Value::Text(text) = self { text.len() } else { 0 };
        size_of::<Value>() + text
    }

    /// What an output function writes; `major` is the version whose way of writing positions it is.
    pub(super) fn written(&self, major: u32) -> Option<String> {
        Some(match self {
            Value::Null => return None,
            Value::Bool(value) => if *value { "t" } else { "f" }.to_owned(),
            Value::Int(value) => value.to_string(),
            Value::Numeric(value) => value.to_string(),
            Value::Float(value) => float_text(*value),
            Value::Text(text) => text.to_string(),
            Value::Time(time) => time.text(),
            Value::Interval(interval) => interval.text(),
            Value::Lsn(lsn) => lsn.text(major),
            Value::Inet(address, bits) => inet_text(*address, *bits, false),
        })
    }
}

/// NULLs are equal to each other and come last; other values are of one type.
impl Ord for Value {
    fn cmp(&self, other: &Value) -> Ordering {
        match (self, other) {
            (Value::Bool(a), Value::Bool(b)) => a.cmp(b),
            (Value::Int(a), Value::Int(b)) => a.cmp(b),
            (Value::Numeric(a), Value::Numeric(b)) => a.cmp(b),
            // Nothing is greater than what is no number, and zero has no sign.
            (Value::Float(a), Value::Float(b)) => {
                a.partial_cmp(b).unwrap_or_else(|| a.is_nan().cmp(&b.is_nan()))
            }
            (Value::Text(a), Value::Text(b)) => a.cmp(b),
            (Value::Time(a), Value::Time(b)) => a.cmp(b),
            (Value::Interval(a), Value::Interval(b)) => a.cmp(b),
            (Value::Lsn(a), Value::Lsn(b)) => a.cmp(b),
            (Value::Inet(a, bits), Value::Inet(b, other_bits)) => compare_inet(*a, *bits, *b, *other_bits),
            _ => self.is_null().cmp(&other.is_null()),
        }
    }
}

impl PartialOrd for Value {
    fn partial_cmp(&self, other: &Value) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Value {
    fn eq(&self, other: &Value) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Value {}

/// PG: `network_cmp_internal`: the network's bits, then how many they are, then the rest.
fn compare_inet(a: IpAddr, a_bits: u8, b: IpAddr, b_bits: u8) -> Ordering {
    let bits = |address: IpAddr| match address {
        IpAddr::V4(address) => (4, u128::from(address.to_bits()) << 96),
        IpAddr::V6(address) => (6, address.to_bits()),
    };
    let ((a_family, a), (b_family, b)) = (bits(a), bits(b));
    let least = u32::from(a_bits.min(b_bits));
    let network = |address: u128| address.checked_shr(128 - least).unwrap_or(0);
    a_family
        .cmp(&b_family)
        .then_with(|| network(a).cmp(&network(b)))
        .then(a_bits.cmp(&b_bits))
        .then(a.cmp(&b))
}

pub(super) fn inet_text(address: IpAddr, bits: u8, always: bool) -> String {
    let all = if address.is_ipv4() { 32 } else { 128 };
    if bits == all && !always { address.to_string() } else { format!("{address}/{bits}") }
}

fn parse_inet(text: &str) -> Option<Value> {
    let (address, bits) = match text.split_once('/') {
        Some((address, bits)) => (address, Some(bits.parse::<u8>().ok()?)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let all = if address.is_ipv4() { 32 } else { 128 };
    Some(Value::Inet(address, bits.unwrap_or(all))).filter(|_| bits.is_none_or(|bits| bits <= all))
}

/// The shortest text that is read as the same number (PostgreSQL: `float8out`).
pub(super) fn float_text(value: f64) -> String {
    if value.is_nan() {
        return "NaN".to_owned();
    }
    if value.is_infinite() {
        return if value > 0.0 { "Infinity" } else { "-Infinity" }.to_owned();
    }
    let scientific = format!("{value:e}");
    let (digits, power) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match power.parse::<i32>() {
        Ok(power) if !(-4..15).contains(&power) => {
            format!("{digits}e{}{:02}", if power < 0 { '-' } else { '+' }, power.abs())
        }
        _ => value.to_string(),
    }
}

pub(super) fn parse_float(text: &str) -> Option<f64> {
    let text = text.trim_ascii();
    let is_number = text.bytes().all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte));
    match text.to_ascii_lowercase().as_str() {
        "nan" => Some(f64::NAN),
        "infinity" | "inf" | "+infinity" | "+inf" => Some(f64::INFINITY),
        "-infinity" | "-inf" => Some(f64::NEG_INFINITY),
        _ if is_number => text.parse().ok().filter(|value: &f64| value.is_finite()),
        _ => None,
    }
}

/// Reads a text as a value of the type.
pub(super) fn read(text: &str, to: Type) -> Result<Value> {
    let number = |min: i64, max: i64| -> Result<Option<Value>> {
        let digits = text.trim_ascii();
        match digits.parse::<i128>() {
            Ok(number) if (i128::from(min)..=i128::from(max)).contains(&number) => {
                Ok(i64::try_from(number).ok().map(Value::Int))
            }
            Ok(_) => {
                let message = format!("value \"{text}\" is out of range for type {}", to.shown());
                Err(PgError::error(sqlstate::NUMERIC_VALUE_OUT_OF_RANGE, message))
            }
            Err(_) => Ok(None),
        }
    };
    let value = match to {
        Type::Unknown | Type::Text => Some(Value::text(text)),
        Type::Name => Some(Value::text(cut(text, 63))),
        Type::Bool => crate::console::boolean(text).map(Value::Bool),
        Type::Int2 => number(i16::MIN.into(), i16::MAX.into())?,
        Type::Int4 => number(i32::MIN.into(), i32::MAX.into())?,
        Type::Int8 => number(i64::MIN, i64::MAX)?,
        Type::Oid | Type::Xid => number(0, u32::MAX.into())?,
        Type::Numeric => Numeric::parse(text).map(Value::Numeric),
        Type::Float8 => parse_float(text).map(Value::Float),
        Type::Timestamptz => match text.trim_ascii() {
            "now" => Some(Timestamp::now()),
            text => Timestamp::parse(text),
        }
        .map(Value::Time),
        Type::Interval => Interval::parse(text).map(Value::Interval),
        Type::PgLsn => text.parse().ok().map(Value::Lsn),
        Type::Inet => parse_inet(text.trim_ascii()),
        Type::TextArray => (text.starts_with('{') && text.ends_with('}')).then(|| Value::text(text)),
        Type::Void => None,
    };
    value.ok_or_else(|| {
        let code = match to {
            Type::Timestamptz | Type::Interval => sqlstate::INVALID_DATETIME_FORMAT,
            _ => sqlstate::INVALID_TEXT_REPRESENTATION,
        };
        let text = cut(text, 200);
        if to == Type::Timestamptz && is_like_a_date(text) {
            let message = format!("date/time field value out of range: \"{text}\"");
            return PgError::error(sqlstate::DATETIME_FIELD_OVERFLOW, message);
        }
        PgError::error(code, format!("invalid input syntax for type {}: \"{text}\"", to.shown()))
    })
}

fn is_like_a_date(text: &str) -> bool {
    let bytes = text.trim_ascii().as_bytes();
    let is_right =
        |(at, byte): (usize, &u8)| if matches!(at, 4 | 7) { *byte == b'-' } else { byte.is_ascii_digit() };
    bytes.len() >= 10 && bytes[..10].iter().enumerate().all(is_right)
}

/// The beginning, of so many bytes at most.
pub(super) fn cut(text: &str, most: usize) -> &str {
    let end = (0..=most.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or_default()]
}

/// Whether a value can be made one of the other type at all, when asked for.
pub(super) fn can_cast(from: Type, to: Type) -> bool {
    let is_number = |it: Type| it.rank().is_some();
    match (from, to) {
        _ if from == to || from.is_text() || from.becomes(to) => to != Type::Void,
        (Type::Void, _) | (_, Type::Void) => false,
        (_, Type::Text | Type::Name) => true,
        (Type::Bool, Type::Int4) | (Type::Int4, Type::Bool) => true,
        (Type::Oid, Type::Int4) => true,
        _ => is_number(from) && is_number(to),
    }
}

/// Makes it a value of the other type, which [`can_cast`] has allowed.
pub(super) fn cast(value: &Value, from: Type, to: Type, major: u32) -> Result<Value> {
    let out_of_range = || {
        let text = format!("{} out of range", to.shown());
        PgError::error(sqlstate::NUMERIC_VALUE_OUT_OF_RANGE, text)
    };
    let in_range = |value: i64| {
        let range = match to {
            Type::Int2 => i64::from(i16::MIN)..=i64::from(i16::MAX),
            Type::Int4 => i64::from(i32::MIN)..=i64::from(i32::MAX),
            Type::Oid | Type::Xid => 0..=i64::from(u32::MAX),
            _ => i64::MIN..=i64::MAX,
        };
        if range.contains(&value) { Ok(Value::Int(value)) } else { Err(out_of_range()) }
    };
    Ok(match (value, to) {
        (Value::Null, _) => Value::Null,
        _ if from == to => value.clone(),
        (Value::Text(text), _) if from.is_text() => {
            if to.is_text() && to != Type::Name {
                value.clone()
            } else {
                read(text, to)?
            }
        }
        // Its text tells all bits, and a truth is told in full.
        (Value::Inet(address, bits), Type::Text) => Value::text(inet_text(*address, *bits, true)),
        (Value::Bool(value), Type::Text) => Value::text(if *value { "true" } else { "false" }),
        (_, Type::Text | Type::Name) => {
            let text = value.written(major).unwrap_or_default();
            Value::text(if to == Type::Name { cut(&text, 63) } else { &text })
        }
        (Value::Bool(value), _) => Value::Int((*value).into()),
        (Value::Int(value), Type::Bool) => Value::Bool(*value != 0),
        // PG: int4 and oid have the same bits.
        (Value::Int(value), Type::Oid) if matches!(from, Type::Int2 | Type::Int4) => {
            Value::Int((*value as u32).into())
        }
        (Value::Int(value), Type::Int4) if from == Type::Oid => {
            Value::Int((*value as u32).cast_signed().into())
        }
        (Value::Int(value), Type::Numeric) => Value::Numeric((*value).into()),
        (Value::Int(value), Type::Float8) => Value::Float(*value as f64),
        (Value::Int(value), _) => in_range(*value)?,
        (Value::Numeric(value), Type::Float8) => Value::Float(value.to_f64()),
        (Value::Numeric(value), _) => in_range(value.to_i64().ok_or_else(out_of_range)?)?,
        (Value::Float(value), Type::Numeric) => {
            Value::Numeric(Numeric::from_f64(*value).ok_or_else(out_of_range)?)
        }
        (Value::Float(value), _) => {
            let rounded = value.round_ties_even();
            if rounded.is_nan() || rounded.abs() > 9.2e18 {
                return Err(out_of_range());
            }
            in_range(rounded as i64)?
        }
        _ => value.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As a server of version 17 has them.
    #[test]
    fn floats_are_written_as_postgresql_does() {
        for (value, text) in [
            (0.1, "0.1"),
            (1.0, "1"),
            (-0.0, "-0"),
            (1e15, "1e+15"),
            (123_456_789_012_345.0, "123456789012345"),
            (1e-4, "0.0001"),
            (1e-5, "1e-05"),
            (1.5e300, "1.5e+300"),
            (f64::INFINITY, "Infinity"),
        ] {
            assert_eq!(float_text(value), text);
            assert_eq!(parse_float(text), Some(value));
        }
    }

    #[test]
    fn addresses_have_an_order() {
        let addresses = ["10.0.0.0/8", "10.0.0.1", "10.0.0.2", "192.168.0.1", "::1"];
        let values: Vec<_> = addresses.iter().map(|text| read(text, Type::Inet).unwrap()).collect();
        assert!(values.is_sorted());
        assert!(read("10.0.0.1/33", Type::Inet).is_err());
    }
}
