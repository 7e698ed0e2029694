//! A plan is carried out: nested loops over rows in memory, as the relay's views have a few hundred rows.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use crate::wire::{PgError, sqlstate};

use super::Result;
use super::aggregate::Running;
use super::ast::{JoinKind, SetOperator};
use super::context::Context;
use super::node::{Node, Rows};
use super::plan::{BodyPlan, DistinctPlan, Group, QueryPlan, Row, SelectPlan, SidePlan, SortKey, Source};
use super::value::{self, Value};

/// What is done with each row.
type Sink<'a> = dyn FnMut(&mut Context<'_>, &[Value]) -> Result<()> + 'a;

/// The rows of a query.
pub(super) fn query(plan: &QueryPlan, cx: &mut Context<'_>, around: Option<&Rows<'_>>) -> Result<Vec<Row>> {
    for (number, cte) in &plan.ctes {
        let rows = query(cte, cx, around)?;
        cx.ctes.insert(*number, Rc::new(rows));
    }
    let (mut rows, distinct) = match &plan.body {
        BodyPlan::Select(select_plan) => (select(select_plan, cx, around)?, select_plan.distinct.clone()),
        BodyPlan::Values(rows) => (values(rows, cx, around)?, DistinctPlan::No),
        BodyPlan::Nested(nested) => (query(nested, cx, around)?, DistinctPlan::No),
        BodyPlan::Set { operator, all, left, right } => (
            combined(*operator, *all, side(left, cx, around)?, side(right, cx, around)?, cx)?,
            DistinctPlan::No,
        ),
    };
    if let DistinctPlan::First(width) = distinct {
        rows = distinct_by(rows, |row| row[..width].to_vec(), cx)?;
    }
    sort(&mut rows, &plan.sort, cx)?;
    if let DistinctPlan::On(keys) = distinct {
        rows = distinct_by(rows, |row| keys.iter().map(|at| row[*at].clone()).collect(), cx)?;
    }
    limit(plan, &mut rows, cx, around)?;
    let width = plan.outputs.len();
    rows.iter_mut().for_each(|row| row.truncate(width));
    Ok(rows)
}

fn limit(
    plan: &QueryPlan,
    rows: &mut Vec<Row>,
    cx: &mut Context<'_>,
    around: Option<&Rows<'_>>,
) -> Result<()> {
    let mut count = |node: &Option<Node>, what: &str, code| -> Result<Option<usize>> {
        let Some(node) = node else { return Ok(None) };
        match node.value(cx, &Rows::new(&[], around))? {
            Value::Int(number) if number < 0 => {
                Err(PgError::error(code, format!("{what} must not be negative")))
            }
            Value::Int(number) => Ok(Some(usize::try_from(number).unwrap_or(usize::MAX))),
            _ => Ok(None),
        }
    };
    let most = count(&plan.limit, "LIMIT", sqlstate::INVALID_ROW_COUNT_IN_LIMIT_CLAUSE)?;
    let skipped = count(&plan.offset, "OFFSET", sqlstate::INVALID_ROW_COUNT_IN_RESULT_OFFSET_CLAUSE)?;
    rows.drain(..skipped.unwrap_or(0).min(rows.len()));
    rows.truncate(most.unwrap_or(usize::MAX));
    Ok(())
}

/// The first row of each key.
fn distinct_by(rows: Vec<Row>, key: impl Fn(&Row) -> Row, cx: &mut Context<'_>) -> Result<Vec<Row>> {
    let (mut seen, mut kept) = (BTreeSet::new(), Vec::new());
    for row in rows {
        let key = key(&row);
        cx.sorting(1, seen.len(), bytes_of(&key))?;
        if !seen.contains(&key) {
            cx.keep_shared(&key)?;
            seen.insert(key);
            kept.push(row);
        }
    }
    Ok(kept)
}

/// Of what is compared one by one.
pub(super) fn bytes_of(values: &[Value]) -> usize {
    values.iter().map(Value::size).sum()
}

fn sort(rows: &mut [Row], keys: &[SortKey], cx: &mut Context<'_>) -> Result<()> {
    if keys.is_empty() {
        return Ok(());
    }
    let bytes = rows.iter().flat_map(|row| keys.iter().map(|key| row[key.at].size())).sum();
    cx.sorting(rows.len(), rows.len(), bytes)?;
    rows.sort_by(|a, b| {
        let mut orders =
            keys.iter().map(|key| compare(&a[key.at], &b[key.at], key.descending, key.nulls_first));
        orders.find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
    });
    Ok(())
}

fn compare(a: &Value, b: &Value, descending: bool, nulls_first: bool) -> Ordering {
    match (a.is_null(), b.is_null()) {
        (false, false) if descending => b.cmp(a),
        (false, false) => a.cmp(b),
        (a, b) if nulls_first => b.cmp(&a),
        (a, b) => a.cmp(&b),
    }
}

/// For each value whether it descends, and whether NULLs come first.
pub(super) fn compare_keys(a: &[Value], b: &[Value], keys: &[(bool, bool)]) -> Ordering {
    let mut orders = a.iter().zip(b).zip(keys).map(|((a, b), (desc, first))| compare(a, b, *desc, *first));
    orders.find(|order| order.is_ne()).unwrap_or(Ordering::Equal)
}

fn values(rows: &[Vec<Node>], cx: &mut Context<'_>, around: Option<&Rows<'_>>) -> Result<Vec<Row>> {
    let mut made = Vec::with_capacity(rows.len());
    for row in rows {
        let row = row.iter().map(|node| node.value(cx, &Rows::new(&[], around))).collect::<Result<Row>>()?;
        cx.keep(&row)?;
        made.push(row);
    }
    Ok(made)
}

fn side(side: &SidePlan, cx: &mut Context<'_>, around: Option<&Rows<'_>>) -> Result<Vec<Row>> {
    let mut rows = query(&side.plan, cx, around)?;
    for row in &mut rows {
        cx.step(1)?;
        for (value, (from, to)) in row.iter_mut().zip(&side.casts) {
            if from != to {
                *value = value::cast(value, *from, *to, cx.major)?;
            }
        }
    }
    Ok(rows)
}

/// UNION, INTERSECT and EXCEPT; without ALL each row comes once.
fn combined(
    operator: SetOperator,
    all: bool,
    left: Vec<Row>,
    right: Vec<Row>,
    cx: &mut Context<'_>,
) -> Result<Vec<Row>> {
    let bytes = left.iter().chain(&right).map(|row| bytes_of(row)).sum();
    cx.sorting(left.len() + right.len(), left.len() + right.len(), bytes)?;
    // Each row is there twice for a while, its texts once.
    left.iter().chain(&right).try_for_each(|row| cx.keep_shared(row))?;
    let mut counts: BTreeMap<Row, usize> = BTreeMap::new();
    if operator != SetOperator::Union {
        for row in right.iter().cloned() {
            *counts.entry(row).or_default() += 1;
        }
    }
    let mut seen = BTreeSet::new();
    let mut keep = |row: &Row| {
        let is_there = match (counts.get_mut(row), all) {
            (Some(count), true) if *count > 0 => {
                *count -= 1;
                true
            }
            (Some(_), all) => !all,
            (None, _) => false,
        };
        let is_kept = match operator {
            SetOperator::Union => true,
            SetOperator::Intersect => is_there,
            SetOperator::Except => !is_there,
        };
        is_kept && (all || seen.insert(row.clone()))
    };
    let right = if operator == SetOperator::Union { right } else { Vec::new() };
    Ok(left.into_iter().chain(right).filter(|row| keep(row)).collect())
}

fn select(plan: &SelectPlan, cx: &mut Context<'_>, around: Option<&Rows<'_>>) -> Result<Vec<Row>> {
    let mut made = Vec::new();
    let mut output = |cx: &mut Context<'_>, row: &[Value]| {
        let rows = Rows::new(row, around);
        let row = plan.values.iter().map(|node| node.value(cx, &rows)).collect::<Result<Row>>()?;
        cx.keep(&row)?;
        made.push(row);
        Ok(())
    };
    match &plan.group {
        None => scan(plan, cx, around, &mut output)?,
        Some(group) => {
            for row in grouped(plan, group, cx, around)? {
                let holds = match &group.having {
                    Some(having) => having.is_true(cx, &Rows::new(&row, around))?,
                    None => true,
                };
                if holds {
                    output(cx, &row)?;
                }
            }
        }
    }
    Ok(made)
}

/// In the order in which their keys came.
fn grouped(
    plan: &SelectPlan,
    group: &Group,
    cx: &mut Context<'_>,
    around: Option<&Rows<'_>>,
) -> Result<Vec<Row>> {
    let mut places: BTreeMap<Row, usize> = BTreeMap::new();
    let mut groups: Vec<(Row, Vec<Running<'_>>)> = Vec::new();
    let begun = |key: Row| (key, group.aggregates.iter().map(Running::new).collect());
    if group.is_whole {
        places.insert(Row::new(), 0);
        groups.push(begun(Row::new()));
    }
    scan(plan, cx, around, &mut |cx, row| {
        let rows = Rows::new(row, around);
        let key = group.keys.iter().map(|node| node.value(cx, &rows)).collect::<Result<Row>>()?;
        cx.sorting(1, groups.len(), bytes_of(&key))?;
        cx.step(group.aggregates.len() as u64)?;
        let at = match places.get(&key) {
            Some(at) => *at,
            None => {
                cx.keep(&key)?;
                cx.keep_shared(&key)?;
                cx.keep_bytes(group.aggregates.len() * size_of::<Running<'_>>())?;
                places.insert(key.clone(), groups.len());
                groups.push(begun(key));
                groups.len() - 1
            }
        };
        groups[at].1.iter_mut().try_for_each(|running| running.take(cx, &rows))
    })?;
    let mut rows = Vec::with_capacity(groups.len());
    for (mut row, running) in groups {
        for one in running {
            row.push(one.finish(cx)?);
        }
        rows.push(row);
    }
    Ok(rows)
}

/// Gives each row of the sources' product that the filters leave to `sink`.
fn scan(
    plan: &SelectPlan,
    cx: &mut Context<'_>,
    around: Option<&Rows<'_>>,
    sink: &mut Sink<'_>,
) -> Result<()> {
    let mut row = Row::new();
    if !holds(&plan.filters[0], &row, cx, around)? {
        return Ok(());
    }
    let mut sources = Vec::with_capacity(plan.from.len());
    for (source, _) in &plan.from {
        sources.push(rows_of(source, cx, around)?);
    }
    product(&sources, &plan.filters[1..], &mut row, cx, around, sink)
}

/// As deep as there are sources, which the parser has counted.
fn product(
    sources: &[Rc<Vec<Row>>],
    filters: &[Vec<Node>],
    row: &mut Row,
    cx: &mut Context<'_>,
    around: Option<&Rows<'_>>,
    sink: &mut Sink<'_>,
) -> Result<()> {
    let (Some((first, sources)), Some((filter, filters))) = (sources.split_first(), filters.split_first())
    else {
        return sink(cx, row);
    };
    let width = row.len();
    for next in first.iter() {
        cx.step(1 + next.len() as u64 / 8)?;
        row.extend_from_slice(next);
        if holds(filter, row, cx, around)? {
            product(sources, filters, row, cx, around, sink)?;
        }
        row.truncate(width);
    }
    Ok(())
}

fn holds(
    conditions: &[Node],
    row: &[Value],
    cx: &mut Context<'_>,
    around: Option<&Rows<'_>>,
) -> Result<bool> {
    for condition in conditions {
        if !condition.is_true(cx, &Rows::new(row, around))? {
            return Ok(false);
        }
    }
    Ok(true)
}

fn rows_of(source: &Source, cx: &mut Context<'_>, around: Option<&Rows<'_>>) -> Result<Rc<Vec<Row>>> {
    Ok(match source {
        Source::View(number) => cx.views.get(*number).cloned().unwrap_or_default(),
        Source::Cte(number) => cx.ctes.get(number).cloned().unwrap_or_default(),
        Source::Query(plan) => Rc::new(query(plan, cx, around)?),
        Source::Row(nodes) => Rc::new(values(std::slice::from_ref(nodes), cx, around)?),
        Source::Join { kind, left, left_width, right, right_width, on } => {
            let (left, right) = (rows_of(left, cx, around)?, rows_of(right, cx, around)?);
            let sides =
                Sides { left: &left, left_width: *left_width, right: &right, right_width: *right_width };
            Rc::new(sides.joined(*kind, on.as_ref(), cx, around)?)
        }
    })
}

struct Sides<'a> {
    left: &'a [Row],
    left_width: usize,
    right: &'a [Row],
    right_width: usize,
}

impl Sides<'_> {
    fn joined(
        &self,
        kind: JoinKind,
        on: Option<&Node>,
        cx: &mut Context<'_>,
        around: Option<&Rows<'_>>,
    ) -> Result<Vec<Row>> {
        let (mut made, mut is_met) = (Vec::new(), vec![false; self.right.len()]);
        let mut row = Row::new();
        for left in self.left {
            let mut is_alone = true;
            for (right, is_met) in self.right.iter().zip(&mut is_met) {
                row.clear();
                row.extend_from_slice(left);
                row.extend_from_slice(right);
                cx.step(1 + row.len() as u64 / 8)?;
                let fits = match on {
                    Some(on) => on.is_true(cx, &Rows::new(&row, around))?,
                    None => true,
                };
                if fits {
                    (is_alone, *is_met) = (false, true);
                    cx.keep(&row)?;
                    made.push(row.clone());
                }
            }
            if is_alone && matches!(kind, JoinKind::Left | JoinKind::Full) {
                let mut row = left.clone();
                row.resize(self.left_width + self.right_width, Value::Null);
                cx.keep(&row)?;
                made.push(row);
            }
        }
        if matches!(kind, JoinKind::Right | JoinKind::Full) {
            for (right, _) in self.right.iter().zip(is_met).filter(|(_, is_met)| !is_met) {
                let mut row = vec![Value::Null; self.left_width];
                row.extend_from_slice(right);
                cx.keep(&row)?;
                made.push(row);
            }
        }
        Ok(made)
    }
}
