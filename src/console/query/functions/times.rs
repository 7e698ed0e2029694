//! Points in time and intervals.

use super::*;
use crate::console::query::numeric::Numeric;
use crate::console::query::time::{Interval as Span, SECOND, Timestamp};
use crate::console::query::value::cut;
use Type::{Float8, Interval, Text, Timestamptz};

const NUMERIC: Type = Type::Numeric;

fn time(value: Option<Timestamp>) -> Result<Value> {
    value.map(Value::Time).ok_or_else(|| out_of_range(Timestamptz))
}

fn span(value: Option<Span>) -> Result<Value> {
    value.map(Value::Interval).ok_or_else(|| out_of_range(Interval))
}

fn later(at: &Value, by: &Value) -> Result<Value> {
    let (Value::Time(at), Value::Interval(by)) = (at, by) else { return nothing() };
    time(at.add(*by))
}

fn sooner(arguments: &[Value]) -> Result<Value> {
    let [Value::Time(at), Value::Interval(by)] = arguments else { return nothing() };
    time(by.neg().and_then(|by| at.add(by)))
}

fn sum(arguments: &[Value]) -> Result<Value> {
    let [Value::Interval(a), Value::Interval(b)] = arguments else { return nothing() };
    span(a.add(*b))
}

fn difference(arguments: &[Value]) -> Result<Value> {
    let [Value::Interval(a), Value::Interval(b)] = arguments else { return nothing() };
    span(b.neg().and_then(|b| a.add(b)))
}

fn times(interval: &Value, by: &Value) -> Result<Value> {
    let (Value::Interval(interval), Value::Float(by)) = (interval, by) else { return nothing() };
    span(interval.mul(*by))
}

fn part(arguments: &[Value]) -> Result<Option<Numeric>> {
    let (field, part, kind) = match arguments {
        [Value::Text(field), Value::Time(at)] => (field, at.field(&field.to_ascii_lowercase()), Timestamptz),
        [Value::Text(field), Value::Interval(it)] => (field, it.field(&field.to_ascii_lowercase()), Interval),
        _ => return Ok(None),
    };
    let (digits, scale) = part.ok_or_else(|| no_unit(field, kind))?;
    Ok(Some(Numeric::new(digits, scale)))
}

fn no_unit(unit: &str, kind: Type) -> PgError {
    let text = format!("unit \"{}\" not supported for type {}", cut(unit, 63), kind.shown());
    PgError::error(sqlstate::FEATURE_NOT_SUPPORTED, text)
}

fn extract(arguments: &[Value]) -> Result<Value> {
    Ok(part(arguments)?.map_or(Value::Null, Value::Numeric))
}

fn date_part(arguments: &[Value]) -> Result<Value> {
    Ok(part(arguments)?.map_or(Value::Null, |part| Value::Float(part.to_f64())))
}

fn date_trunc(arguments: &[Value]) -> Result<Value> {
    let [Value::Text(field), Value::Time(at)] = arguments else { return nothing() };
    let start = at.trunc(&field.to_ascii_lowercase()).ok_or_else(|| no_unit(field, Timestamptz))?;
    Ok(Value::Time(start))
}

fn to_timestamp(arguments: &[Value]) -> Result<Value> {
    let [Value::Float(seconds)] = arguments else { return nothing() };
    let micros = (seconds * SECOND as f64).round_ties_even();
    if micros.is_nan() || micros.abs() >= 9.2e18 {
        return Err(out_of_range(Timestamptz));
    }
    time(Timestamp(0).add(Span::of_micros(micros as i64)))
}

pub(super) const FUNCTIONS: &[Function] = &[
    function("-", &[Timestamptz, Timestamptz], Interval, |_, a| match a {
        [Value::Time(a), Value::Time(b)] => Ok(Value::Interval(a.since(*b))),
        _ => nothing(),
    }),
    function("+", &[Timestamptz, Interval], Timestamptz, |_, a| later(&a[0], &a[1])),
    function("+", &[Interval, Timestamptz], Timestamptz, |_, a| later(&a[1], &a[0])),
    function("-", &[Timestamptz, Interval], Timestamptz, |_, a| sooner(a)),
    function("+", &[Interval, Interval], Interval, |_, a| sum(a)),
    function("-", &[Interval, Interval], Interval, |_, a| difference(a)),
    function("*", &[Interval, Float8], Interval, |_, a| times(&a[0], &a[1])),
    function("*", &[Float8, Interval], Interval, |_, a| times(&a[1], &a[0])),
    function("/", &[Interval, Float8], Interval, |_, a| match a {
        [_, Value::Float(by)] if *by == 0.0 => Err(division_by_zero()),
        [Value::Interval(interval), Value::Float(by)] => span(interval.mul(1.0 / by)),
        _ => nothing(),
    }),
    function("-", &[Interval], Interval, |_, a| match a {
        [Value::Interval(interval)] => span(interval.neg()),
        _ => nothing(),
    }),
    function("now", &[], Timestamptz, |cx, _| Ok(Value::Time(cx.now))),
    function("transaction_timestamp", &[], Timestamptz, |cx, _| Ok(Value::Time(cx.now))),
    function("statement_timestamp", &[], Timestamptz, |cx, _| Ok(Value::Time(cx.now))),
    function("current_timestamp", &[], Timestamptz, |cx, _| Ok(Value::Time(cx.now))),
    function("clock_timestamp", &[], Timestamptz, |_, _| Ok(Value::Time(Timestamp::now()))),
    function("to_timestamp", &[Float8], Timestamptz, |_, a| to_timestamp(a)),
    function("date_trunc", &[Text, Timestamptz], Timestamptz, |_, a| date_trunc(a)),
    function("extract", &[Text, Timestamptz], NUMERIC, |_, a| extract(a)),
    function("extract", &[Text, Interval], NUMERIC, |_, a| extract(a)),
    function("date_part", &[Text, Timestamptz], Float8, |_, a| date_part(a)),
    function("date_part", &[Text, Interval], Float8, |_, a| date_part(a)),
];
