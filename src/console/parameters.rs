//! Parameters of a statement: their types, as far as the client has given them or the statement tells, and their values.

use std::cell::RefCell;

use crate::wire::messages::ColumnType;
use crate::wire::{PgError, binary, sqlstate};

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
    /// The value of a parameter that is a text.
    pub(super) fn of_text(&self, number: usize) -> Result<Option<&str>, PgError> {
        self.declared(number)?;
        self.settle(number, ColumnType::Text.oid());
        Ok(self.text(number))
    }

    /// The value, as a text; `None` for NULL, and while the statement is being prepared.
    pub(super) fn text(&self, number: usize) -> Option<&str> {
        match self {
            Parameters::Given { values, .. } => values.get(number.checked_sub(1)?)?.as_deref(),
            Parameters::None | Parameters::Wanted(_) => None,
        }
    }

    /// A parameter has this type, unless it has one.
    pub(super) fn settle(&self, number: usize, oid: u32) {
        if let Parameters::Wanted(types) = self
            && let Some(of_it @ 0) = types.borrow_mut().get_mut(number.wrapping_sub(1))
        {
            *of_it = oid;
        }
    }

    /// Its type, 0 if that is not known yet. A parameter not heard of before is one more.
    pub(super) fn declared(&self, number: usize) -> Result<u32, PgError> {
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
