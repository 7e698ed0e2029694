//! Aggregates: many rows, one value.

use std::collections::BTreeSet;

use super::Result;
use super::context::Context;
use super::node::{Node, Rows};
use super::numeric::Numeric;
use super::plan::Row;
use super::run;
use super::time::Interval;
use super::value::{Type, Value};
use crate::wire::{PgError, sqlstate};

#[derive(Clone, PartialEq, Debug)]
pub(super) struct Aggregate {
    pub(super) kind: AggregateKind,
    pub(super) arguments: Vec<Node>,
    pub(super) distinct: bool,
    pub(super) filter: Option<Node>,
    /// What its rows are sorted by: the value, whether it descends, and whether NULLs come first.
    pub(super) order: Vec<(Node, bool, bool)>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum AggregateKind {
    /// `count(*)`
    Rows,
    /// `count(value)`
    Count,
    /// Of whole numbers, in a type that holds it.
    SumInt,
    SumNumeric,
    SumFloat,
    SumInterval,
    AverageNumeric,
    AverageFloat,
    AverageInterval,
    Least,
    Greatest,
    Every,
    Any,
    StringAgg,
}

impl AggregateKind {
    /// The aggregate of that name for an argument of that type, the type its argument is taken as, and what it returns.
    pub(super) fn named(name: &str, given: Type) -> Option<(AggregateKind, Type, Type)> {
        use AggregateKind::{
            Any, AverageFloat, AverageInterval, AverageNumeric, Count, Every, Greatest, Least, StringAgg,
            SumFloat, SumInt, SumInterval, SumNumeric,
        };
        let given = if given == Type::Unknown && name != "count" { Type::Text } else { given };
        Some(match (name, given) {
            ("count", _) => (Count, given, Type::Int8),
            ("sum", Type::Int2 | Type::Int4) => (SumInt, given, Type::Int8),
            ("sum", Type::Int8 | Type::Numeric) => (SumNumeric, Type::Numeric, Type::Numeric),
            ("sum", Type::Float8) => (SumFloat, given, given),
            ("sum", Type::Interval) => (SumInterval, given, given),
            ("avg", Type::Int2 | Type::Int4 | Type::Int8 | Type::Numeric) => {
                (AverageNumeric, Type::Numeric, Type::Numeric)
            }
            ("avg", Type::Float8) => (AverageFloat, given, given),
            ("avg", Type::Interval) => (AverageInterval, given, given),
            ("min" | "max", Type::Bool | Type::Xid | Type::Void | Type::TextArray) => return None,
            ("min", _) => (Least, text(given), text(given)),
            ("max", _) => (Greatest, text(given), text(given)),
            ("bool_and" | "every", Type::Bool) => (Every, given, given),
            ("bool_or", Type::Bool) => (Any, given, given),
            ("string_agg", Type::Text | Type::Name) => (StringAgg, Type::Text, Type::Text),
            _ => return None,
        })
    }
}

fn text(kind: Type) -> Type {
    if kind == Type::Name { Type::Text } else { kind }
}

/// Whether a function of that name is an aggregate of PostgreSQL's; not all of them are had here.
pub(super) fn is_aggregate(name: &str) -> bool {
    const OTHERS: [&str; 16] = [
        "array_agg",
        "json_agg",
        "jsonb_agg",
        "json_object_agg",
        "jsonb_object_agg",
        "stddev",
        "stddev_pop",
        "stddev_samp",
        "variance",
        "var_pop",
        "var_samp",
        "bit_and",
        "bit_or",
        "any_value",
        "corr",
        "xmlagg",
    ];
    is_known(name) || OTHERS.contains(&name)
}

pub(super) fn is_known(name: &str) -> bool {
    ["count", "sum", "avg", "min", "max", "bool_and", "bool_or", "every", "string_agg"].contains(&name)
}

/// An aggregate on its way through the rows of a group.
pub(super) struct Running<'a> {
    aggregate: &'a Aggregate,
    state: State,
    /// Arguments seen, where each counts once.
    seen: BTreeSet<Row>,
    /// Arguments behind what they are sorted by, where the order counts.
    sorted: Vec<Row>,
}

enum State {
    Count(i64),
    Value(Value),
    /// The sum, and of how many.
    Sum(Value, i64),
    Text(Option<String>),
}

impl<'a> Running<'a> {
    pub(super) fn new(aggregate: &'a Aggregate) -> Running<'a> {
        use AggregateKind::{AverageFloat, AverageInterval, AverageNumeric, Count, Rows, StringAgg};
        let state = match aggregate.kind {
            Rows | Count => State::Count(0),
            AverageNumeric | AverageFloat | AverageInterval => State::Sum(Value::Null, 0),
            StringAgg => State::Text(None),
            _ => State::Value(Value::Null),
        };
        Running { aggregate, state, seen: BTreeSet::new(), sorted: Vec::new() }
    }

    pub(super) fn take(&mut self, cx: &mut Context<'_>, rows: &Rows<'_>) -> Result<()> {
        let aggregate = self.aggregate;
        if let Some(filter) = &aggregate.filter
            && !filter.is_true(cx, rows)?
        {
            return Ok(());
        }
        let arguments: Row =
            aggregate.arguments.iter().map(|it| it.value(cx, rows)).collect::<Result<_>>()?;
        if arguments.first().is_some_and(Value::is_null) {
            return Ok(());
        }
        if aggregate.distinct {
            cx.sorting(1, self.seen.len(), run::bytes_of(&arguments))?;
            if self.seen.contains(&arguments) {
                return Ok(());
            }
            cx.keep(&arguments)?;
            self.seen.insert(arguments.clone());
        }
        if aggregate.order.is_empty() {
            return self.add(cx, &arguments);
        }
        let mut row: Row =
            aggregate.order.iter().map(|(key, ..)| key.value(cx, rows)).collect::<Result<_>>()?;
        row.extend(arguments);
        cx.keep(&row)?;
        self.sorted.push(row);
        Ok(())
    }

    fn add(&mut self, cx: &mut Context<'_>, arguments: &[Value]) -> Result<()> {
        let value = arguments.first().cloned().unwrap_or(Value::Null);
        match &mut self.state {
            State::Count(count) => *count += 1,
            State::Sum(sum, count) => {
                *sum = added(sum, &value)?;
                *count += 1;
            }
            State::Text(text) => {
                let (Value::Text(value), separator) = (&value, arguments.get(1)) else { return Ok(()) };
                let separator = match (&text, separator) {
                    (Some(_), Some(Value::Text(separator))) => separator,
                    _ => "",
                };
                let text = text.get_or_insert_default();
                cx.check_length(text.len() + separator.len() + value.len())?;
                // Each group has one until all of them are shown.
                cx.keep_bytes(separator.len() + value.len())?;
                text.push_str(separator);
                text.push_str(value);
            }
            State::Value(so_far) => {
                cx.comparing(&value, so_far)?;
                let replaces = match self.aggregate.kind {
                    _ if so_far.is_null() => true,
                    AggregateKind::Least => value < *so_far,
                    AggregateKind::Greatest => value > *so_far,
                    AggregateKind::Every => value == Value::Bool(false),
                    AggregateKind::Any => value == Value::Bool(true),
                    _ => {
                        *so_far = added(so_far, &value)?;
                        false
                    }
                };
                if replaces {
                    *so_far = value;
                }
            }
        }
        Ok(())
    }

    pub(super) fn finish(mut self, cx: &mut Context<'_>) -> Result<Value> {
        if !self.sorted.is_empty() {
            let mut rows = std::mem::take(&mut self.sorted);
            let keys = self.aggregate.order.len();
            let order: Vec<_> = self.aggregate.order.iter().map(|(_, desc, first)| (*desc, *first)).collect();
            let bytes = rows.iter().map(|row| run::bytes_of(&row[..keys])).sum();
            cx.sorting(rows.len(), rows.len(), bytes)?;
            rows.sort_by(|a, b| run::compare_keys(&a[..keys], &b[..keys], &order));
            for row in rows {
                self.add(cx, &row[keys..])?;
            }
        }
        Ok(match self.state {
            State::Count(count) => Value::Int(count),
            State::Value(value) => value,
            State::Text(text) => text.map_or(Value::Null, Value::text),
            State::Sum(sum, count) => match sum {
                Value::Numeric(sum) => {
                    sum.div(Numeric::from(count)).map(Value::Numeric).ok_or_else(overflow)?
                }
                Value::Float(sum) => Value::Float(sum / count as f64),
                Value::Interval(sum) => sum
                    .mul(1.0 / count as f64)
                    .map(Value::Interval)
                    .ok_or_else(|| out_of_range("interval"))?,
                _ => Value::Null,
            },
        })
    }
}

fn added(sum: &Value, value: &Value) -> Result<Value> {
    Ok(match (sum, value) {
        (Value::Null, value) => value.clone(),
        (Value::Int(a), Value::Int(b)) => {
            Value::Int(a.checked_add(*b).ok_or_else(|| out_of_range("bigint"))?)
        }
        (Value::Numeric(a), Value::Numeric(b)) => Value::Numeric(a.add(*b).ok_or_else(overflow)?),
        (Value::Float(a), Value::Float(b)) => Value::Float(a + b),
        (Value::Interval(a), Value::Interval(b)) => {
            Value::Interval(Interval::add(*a, *b).ok_or_else(|| out_of_range("interval"))?)
        }
        (sum, _) => sum.clone(),
    })
}

fn overflow() -> PgError {
    PgError::error(sqlstate::NUMERIC_VALUE_OUT_OF_RANGE, "value overflows numeric format")
}

fn out_of_range(what: &str) -> PgError {
    PgError::error(sqlstate::NUMERIC_VALUE_OUT_OF_RANGE, format!("{what} out of range"))
}
