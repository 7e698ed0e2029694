//! Parameters of a statement: their types, as far as the client has given them or the statement tells, and their values.

use std::cell::RefCell;

use crate::wire::messages::ColumnType;
use crate::wire::{PgError, binary, sqlstate};

use super::Facts;

/// What `$1` and its like stand for.
#[derive(Debug)]
pub(super) enum Parameters<'a> {
    /// A Query message, which has none.
    None,
    /// The statement is being prepared: each is NULL, and its type, 0 for unknown, is found out.
    Wanted(RefCell<Vec<u32>>),
    /// It is executed.
    Given { types: &'a [u32], values: &'a [Option<String>] },
}

impl Parameters<'_> {
    /// The value of a parameter that stands where this type is wanted.
    pub(super) fn value(
        &self,
        number: usize,
        wanted: ColumnType,
        facts: &dyn Facts,
    ) -> Result<Option<String>, PgError> {
        let given = self.type_of(number)?;
        if given != 0 && !fits(given, wanted) {
            return Err(super::cannot(facts));
        }
        match self {
            Parameters::Given { values, .. } => {
                let value = values.get(number - 1).and_then(Option::as_deref);
                value.map(|value| written(value, wanted, facts)).transpose()
            }
            Parameters::Wanted(types) if given == 0 => {
                types.borrow_mut()[number - 1] = wanted.oid();
                Ok(None)
            }
            _ => Ok(None),
        }
    }

    /// The type that a parameter has by itself.
    pub(super) fn own_type(&self, number: usize) -> Result<ColumnType, PgError> {
        Ok(match self.type_of(number)? {
            16 => ColumnType::Bool,
            19 => ColumnType::Name,
            20 => ColumnType::Int8,
            21 | 23 => ColumnType::Int4,
            26 => ColumnType::Oid,
            28 => ColumnType::Xid,
            3220 => ColumnType::PgLsn,
            _ => ColumnType::Text,
        })
    }

    /// Its type, 0 if that is not known yet. A parameter not heard of before is one more.
    fn type_of(&self, number: usize) -> Result<u32, PgError> {
        let missing = || {
            let text = format!("there is no parameter ${number}");
            PgError::error(sqlstate::UNDEFINED_PARAMETER, text)
        };
        let at = number.checked_sub(1).filter(|_| number <= usize::from(u16::MAX)).ok_or_else(missing)?;
        match self {
            Parameters::None => Err(missing()),
            Parameters::Given { types, .. } => types.get(at).copied().ok_or_else(missing),
            Parameters::Wanted(types) => {
                let mut types = types.borrow_mut();
                let count = types.len().max(number);
                types.resize(count, 0);
                Ok(types[at])
            }
        }
    }
}

/// Whether a parameter of the type can be compared with a value of the other.
fn fits(given: u32, wanted: ColumnType) -> bool {
    let numbers = [20, 21, 23, 26, 28];
    match wanted {
        ColumnType::Name | ColumnType::Text => [19, 25, 705, 1042, 1043].contains(&given),
        ColumnType::Int4 | ColumnType::Int8 | ColumnType::Oid | ColumnType::Xid => numbers.contains(&given),
        _ => given == wanted.oid(),
    }
}

/// A value that came as text, as rows have values of that type.
pub(super) fn written(value: &str, column_type: ColumnType, facts: &dyn Facts) -> Result<String, PgError> {
    let number = |min: i64, max: i64| {
        let number = value.trim_ascii().parse::<i64>().ok();
        number.filter(|number| (min..=max).contains(number)).map(|number| number.to_string())
    };
    let (name, text) = match column_type {
        ColumnType::Name | ColumnType::Text => return Ok(value.to_owned()),
        ColumnType::Bool => ("boolean", super::boolean(value).map(super::flag)),
        ColumnType::Int4 => ("integer", number(i32::MIN.into(), i32::MAX.into())),
        ColumnType::Int8 => ("bigint", number(i64::MIN, i64::MAX)),
        ColumnType::Oid => ("oid", number(0, u32::MAX.into())),
        ColumnType::Xid => ("xid", number(0, u32::MAX.into())),
        ColumnType::PgLsn => {
            let lsn = value.parse::<walrelay_proto::Lsn>().ok();
            ("pg_lsn", lsn.map(|lsn| lsn.text(super::views::major(facts))))
        }
        // Not worth comparing as what they are.
        ColumnType::Timestamptz | ColumnType::Interval | ColumnType::Inet | ColumnType::Void => {
            return Err(super::cannot(facts));
        }
    };
    text.ok_or_else(|| {
        let message = format!("invalid input syntax for type {name}: \"{value}\"");
        PgError::error(sqlstate::INVALID_TEXT_REPRESENTATION, message)
    })
}

/// A parameter's value, as it comes in a Bind.
///
/// # Errors
/// It is none of its type, or of a type that is not known here.
pub(super) fn read(number: usize, type_oid: u32, format: i16, bytes: &[u8]) -> Result<String, PgError> {
    match format {
        0 => String::from_utf8(bytes.to_vec()).map_err(|_| {
            let text = format!("parameter ${number} is not in UTF-8");
            PgError::error(sqlstate::FEATURE_NOT_SUPPORTED, text)
        }),
        1 => binary::decode(type_oid, bytes).ok_or_else(|| {
            let text = format!("incorrect binary data format in bind parameter {number}");
            PgError::error(sqlstate::INVALID_BINARY_REPRESENTATION, text)
        }),
        _ => {
            let text = format!("unsupported format code: {format}");
            Err(PgError::error(sqlstate::INVALID_PARAMETER_VALUE, text))
        }
    }
}
