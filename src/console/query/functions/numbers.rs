//! Numbers, and positions, which are numbers too.

use walrelay_proto::Lsn;

use super::*;
use crate::console::query::numeric::Numeric;
use Type::{Float8, Int2, Int4, Int8, PgLsn, Text};

const NUMERIC: Type = Type::Numeric;

type Whole = fn(i64, i64) -> Option<i64>;

fn whole(kind: Type, arguments: &[Value], calculate: Whole) -> Result<Value> {
    let [Value::Int(a), Value::Int(b)] = arguments else { return nothing() };
    let result = calculate(*a, *b).ok_or_else(|| out_of_range(kind))?;
    in_range(kind, result)
}

fn in_range(kind: Type, value: i64) -> Result<Value> {
    let fits = match kind {
        Int2 => i16::try_from(value).is_ok(),
        Int4 => i32::try_from(value).is_ok(),
        _ => true,
    };
    if fits { Ok(Value::Int(value)) } else { Err(out_of_range(kind)) }
}

fn divided(kind: Type, arguments: &[Value], calculate: Whole) -> Result<Value> {
    if let [_, Value::Int(0)] = arguments {
        return Err(division_by_zero());
    }
    whole(kind, arguments, calculate)
}

fn exact(arguments: &[Value], calculate: fn(Numeric, Numeric) -> Option<Numeric>) -> Result<Value> {
    let [Value::Numeric(a), Value::Numeric(b)] = arguments else { return nothing() };
    number(calculate(*a, *b))
}

fn exact_divided(arguments: &[Value], calculate: fn(Numeric, Numeric) -> Option<Numeric>) -> Result<Value> {
    match arguments {
        [_, Value::Numeric(by)] if by.is_zero() => Err(division_by_zero()),
        _ => exact(arguments, calculate),
    }
}

fn number(value: Option<Numeric>) -> Result<Value> {
    value.map(Value::Numeric).ok_or_else(|| out_of_range(NUMERIC))
}

fn one(arguments: &[Value], calculate: fn(Numeric) -> Option<Numeric>) -> Result<Value> {
    let [Value::Numeric(value)] = arguments else { return nothing() };
    number(calculate(*value))
}

fn to_scale(arguments: &[Value], calculate: fn(Numeric, i32) -> Option<Numeric>) -> Result<Value> {
    let [Value::Numeric(value), Value::Int(scale)] = arguments else { return nothing() };
    number(calculate(*value, i32::try_from(*scale).unwrap_or_default().clamp(-2000, 2000)))
}

fn float(value: f64) -> Result<Value> {
    if value.is_infinite() { Err(out_of_range(Float8)) } else { Ok(Value::Float(value)) }
}

fn floats(arguments: &[Value], calculate: fn(f64, f64) -> f64) -> Result<Value> {
    let [Value::Float(a), Value::Float(b)] = arguments else { return nothing() };
    let result = calculate(*a, *b);
    if a.is_finite() && b.is_finite() { float(result) } else { Ok(Value::Float(result)) }
}

fn float_divided(arguments: &[Value]) -> Result<Value> {
    match arguments {
        [_, Value::Float(by)] if *by == 0.0 => Err(division_by_zero()),
        _ => floats(arguments, |a, b| a / b),
    }
}

fn of_float(arguments: &[Value], calculate: fn(f64) -> f64) -> Result<Value> {
    let [Value::Float(value)] = arguments else { return nothing() };
    Ok(Value::Float(calculate(*value)))
}

fn of_whole(kind: Type, arguments: &[Value], calculate: fn(i64) -> Option<i64>) -> Result<Value> {
    let [Value::Int(value)] = arguments else { return nothing() };
    in_range(kind, calculate(*value).ok_or_else(|| out_of_range(kind))?)
}

fn power(arguments: &[Value]) -> Result<Value> {
    let [Value::Float(base), Value::Float(exponent)] = arguments else { return nothing() };
    let wrong = |text: &str| Err(PgError::error(sqlstate::INVALID_ARGUMENT_FOR_POWER_FUNCTION, text));
    if *base == 0.0 && *exponent < 0.0 {
        return wrong("zero raised to a negative power is undefined");
    }
    if *base < 0.0 && exponent.fract() != 0.0 {
        return wrong("a negative number raised to a non-integer power yields a complex result");
    }
    floats(arguments, f64::powf)
}

fn root(arguments: &[Value]) -> Result<Value> {
    match arguments {
        [Value::Float(value)] if *value < 0.0 => {
            let text = "cannot take square root of a negative number";
            Err(PgError::error(sqlstate::INVALID_ARGUMENT_FOR_POWER_FUNCTION, text))
        }
        _ => of_float(arguments, f64::sqrt),
    }
}

/// Bytes from one position to another.
fn distance(arguments: &[Value]) -> Result<Value> {
    let [Value::Lsn(a), Value::Lsn(b)] = arguments else { return nothing() };
    Ok(Value::Numeric(Numeric::new(i128::from(a.as_u64()) - i128::from(b.as_u64()), 0)))
}

fn moved(lsn: &Value, bytes: &Value, is_back: bool) -> Result<Value> {
    let (Value::Lsn(lsn), Value::Numeric(bytes)) = (lsn, bytes) else { return nothing() };
    let bytes = bytes.round(0).map_or(i128::MAX, Numeric::digits);
    let bytes = if is_back { bytes.saturating_neg() } else { bytes };
    let moved = i128::from(lsn.as_u64()).checked_add(bytes).and_then(|lsn| u64::try_from(lsn).ok());
    moved
        .map(|lsn| Value::Lsn(Lsn::new(lsn)))
        .ok_or_else(|| PgError::error(sqlstate::NUMERIC_VALUE_OUT_OF_RANGE, "pg_lsn out of range"))
}

/// PG: `size_pretty_units`: the unit, from what number on the next one is taken, and whether it is rounded.
const UNITS: [(&str, u128, bool, u32); 6] = [
    ("bytes", 10 * 1024, false, 0),
    ("kB", 20 * 1024 - 1, true, 9),
    ("MB", 20 * 1024 - 1, true, 10),
    ("GB", 20 * 1024 - 1, true, 10),
    ("TB", 20 * 1024 - 1, true, 10),
    ("PB", 20 * 1024 - 1, true, 10),
];

fn pretty(bytes: i128) -> Value {
    let mut value = bytes;
    for (at, (unit, limit, is_half, _)) in UNITS.into_iter().enumerate() {
        let next = UNITS.get(at + 1);
        if value.unsigned_abs() < limit || next.is_none() {
            // Halves are away from zero.
            let shown = if is_half { (value + value.signum()) / 2 } else { value };
            return Value::text(format!("{shown} {unit}"));
        }
        value /= 1 << next.map_or(0, |next| next.3);
    }
    Value::Null
}

pub(super) const FUNCTIONS: &[Function] = &[
    function("+", &[Int4, Int4], Int4, |_, a| whole(Int4, a, i64::checked_add)),
    function("+", &[Int2, Int2], Int2, |_, a| whole(Int2, a, i64::checked_add)),
    function("+", &[Int8, Int8], Int8, |_, a| whole(Int8, a, i64::checked_add)),
    function("+", &[NUMERIC, NUMERIC], NUMERIC, |_, a| exact(a, Numeric::add)),
    function("+", &[Float8, Float8], Float8, |_, a| floats(a, |a, b| a + b)),
    function("-", &[Int4, Int4], Int4, |_, a| whole(Int4, a, i64::checked_sub)),
    function("-", &[Int2, Int2], Int2, |_, a| whole(Int2, a, i64::checked_sub)),
    function("-", &[Int8, Int8], Int8, |_, a| whole(Int8, a, i64::checked_sub)),
    function("-", &[NUMERIC, NUMERIC], NUMERIC, |_, a| exact(a, Numeric::sub)),
    function("-", &[Float8, Float8], Float8, |_, a| floats(a, |a, b| a - b)),
    function("*", &[Int4, Int4], Int4, |_, a| whole(Int4, a, i64::checked_mul)),
    function("*", &[Int2, Int2], Int2, |_, a| whole(Int2, a, i64::checked_mul)),
    function("*", &[Int8, Int8], Int8, |_, a| whole(Int8, a, i64::checked_mul)),
    function("*", &[NUMERIC, NUMERIC], NUMERIC, |_, a| exact(a, Numeric::mul)),
    function("*", &[Float8, Float8], Float8, |_, a| floats(a, |a, b| a * b)),
    function("/", &[Int4, Int4], Int4, |_, a| divided(Int4, a, i64::checked_div)),
    function("/", &[Int2, Int2], Int2, |_, a| divided(Int2, a, i64::checked_div)),
    function("/", &[Int8, Int8], Int8, |_, a| divided(Int8, a, i64::checked_div)),
    function("/", &[NUMERIC, NUMERIC], NUMERIC, |_, a| exact_divided(a, Numeric::div)),
    function("/", &[Float8, Float8], Float8, |_, a| float_divided(a)),
    function("%", &[Int4, Int4], Int4, |_, a| divided(Int4, a, |a, b| Some(a.wrapping_rem(b)))),
    function("%", &[Int2, Int2], Int2, |_, a| divided(Int2, a, |a, b| Some(a.wrapping_rem(b)))),
    function("%", &[Int8, Int8], Int8, |_, a| divided(Int8, a, |a, b| Some(a.wrapping_rem(b)))),
    function("%", &[NUMERIC, NUMERIC], NUMERIC, |_, a| exact_divided(a, Numeric::rem)),
    function("mod", &[Int4, Int4], Int4, |_, a| divided(Int4, a, |a, b| Some(a.wrapping_rem(b)))),
    function("mod", &[Int2, Int2], Int2, |_, a| divided(Int2, a, |a, b| Some(a.wrapping_rem(b)))),
    function("mod", &[Int8, Int8], Int8, |_, a| divided(Int8, a, |a, b| Some(a.wrapping_rem(b)))),
    function("mod", &[NUMERIC, NUMERIC], NUMERIC, |_, a| exact_divided(a, Numeric::rem)),
    function("^", &[Float8, Float8], Float8, |_, a| power(a)),
    function("power", &[Float8, Float8], Float8, |_, a| power(a)),
    function("pow", &[Float8, Float8], Float8, |_, a| power(a)),
    function("sqrt", &[Float8], Float8, |_, a| root(a)),
    function("-", &[Int4], Int4, |_, a| of_whole(Int4, a, i64::checked_neg)),
    function("-", &[Int2], Int2, |_, a| of_whole(Int2, a, i64::checked_neg)),
    function("-", &[Int8], Int8, |_, a| of_whole(Int8, a, i64::checked_neg)),
    function("-", &[NUMERIC], NUMERIC, |_, a| one(a, Numeric::neg)),
    function("-", &[Float8], Float8, |_, a| of_float(a, |value| -value)),
    function("+", &[Int4], Int4, |_, a| Ok(a[0].clone())),
    function("+", &[Int2], Int2, |_, a| Ok(a[0].clone())),
    function("+", &[Int8], Int8, |_, a| Ok(a[0].clone())),
    function("+", &[NUMERIC], NUMERIC, |_, a| Ok(a[0].clone())),
    function("+", &[Float8], Float8, |_, a| Ok(a[0].clone())),
    function("abs", &[Int4], Int4, |_, a| of_whole(Int4, a, i64::checked_abs)),
    function("abs", &[Int2], Int2, |_, a| of_whole(Int2, a, i64::checked_abs)),
    function("abs", &[Int8], Int8, |_, a| of_whole(Int8, a, i64::checked_abs)),
    function("abs", &[NUMERIC], NUMERIC, |_, a| one(a, Numeric::abs)),
    function("abs", &[Float8], Float8, |_, a| of_float(a, f64::abs)),
    function("round", &[NUMERIC], NUMERIC, |_, a| one(a, |value| value.round(0))),
    function("round", &[NUMERIC, Int4], NUMERIC, |_, a| to_scale(a, Numeric::round)),
    function("round", &[Float8], Float8, |_, a| of_float(a, f64::round_ties_even)),
    function("trunc", &[NUMERIC], NUMERIC, |_, a| one(a, |value| value.trunc(0))),
    function("trunc", &[NUMERIC, Int4], NUMERIC, |_, a| to_scale(a, Numeric::trunc)),
    function("trunc", &[Float8], Float8, |_, a| of_float(a, f64::trunc)),
    function("ceil", &[NUMERIC], NUMERIC, |_, a| one(a, Numeric::ceil)),
    function("ceil", &[Float8], Float8, |_, a| of_float(a, f64::ceil)),
    function("ceiling", &[NUMERIC], NUMERIC, |_, a| one(a, Numeric::ceil)),
    function("ceiling", &[Float8], Float8, |_, a| of_float(a, f64::ceil)),
    function("floor", &[NUMERIC], NUMERIC, |_, a| one(a, Numeric::floor)),
    function("floor", &[Float8], Float8, |_, a| of_float(a, f64::floor)),
    function("sign", &[NUMERIC], NUMERIC, |_, a| {
        one(a, |value| Some(Numeric::new(value.digits().signum(), 0)))
    }),
    function("sign", &[Float8], Float8, |_, a| {
        of_float(a, |value| if value == 0.0 || value.is_nan() { value.abs() } else { value.signum() })
    }),
    function("-", &[PgLsn, PgLsn], NUMERIC, |_, a| distance(a)),
    function("-", &[PgLsn, NUMERIC], PgLsn, |_, a| moved(&a[0], &a[1], true)),
    function("+", &[PgLsn, NUMERIC], PgLsn, |_, a| moved(&a[0], &a[1], false)),
    function("+", &[NUMERIC, PgLsn], PgLsn, |_, a| moved(&a[1], &a[0], false)),
    function("pg_wal_lsn_diff", &[PgLsn, PgLsn], NUMERIC, |_, a| distance(a)),
    function("pg_size_pretty", &[Int8], Text, |_, a| match a {
        [Value::Int(bytes)] => Ok(pretty((*bytes).into())),
        _ => nothing(),
    }),
    function("pg_size_pretty", &[NUMERIC], Text, |_, a| match a {
        [Value::Numeric(bytes)] => Ok(bytes.trunc(0).map_or(Value::Null, |whole| pretty(whole.digits()))),
        _ => nothing(),
    }),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// As a server of version 17 has them.
    #[test]
    fn sizes_are_as_pretty_as_postgresql_has_them() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (10_239, "10239 bytes"),
            (10_240, "10 kB"),
            (-10_240, "-10 kB"),
            (16 << 20, "16 MB"),
            (10_485_248, "10 MB"),
            (1_500_000, "1465 kB"),
            (20_971_520, "20 MB"),
            (1_i128 << 40, "1024 GB"),
            (i128::MIN, "-151115727451828646838272 PB"),
        ] {
            assert_eq!(pretty(bytes), Value::text(text), "{bytes}");
        }
    }
}
