//! Names are looked up and types found out: from a [`Query`] to a [`QueryPlan`] (PostgreSQL: `parse_analyze`).
//!
//! Whatever may be wrong with a statement apart from its values is found here, so that a client that has prepared it knows its
//! columns before it runs.

mod call;
mod expression;
mod from;
mod scope;
mod select;

use std::cell::RefCell;

use crate::console::Facts;
use crate::console::parameters::Parameters;
use crate::wire::{PgError, sqlstate};

use super::aggregate::Aggregate;
use super::ast::{Body, Expr, Query, SetOperator, Sort};
use super::node::Node;
use super::plan::{BodyPlan, Output, QueryPlan, SidePlan, SortKey};
use super::value::{self, Type, Value};
use super::{Result, parse};
use scope::Scope;

/// A node and its type.
#[derive(Clone, Debug)]
pub(super) struct Typed {
    pub(super) node: Node,
    pub(super) kind: Type,
}

/// Where an expression stands.
#[derive(Clone, Copy)]
struct Place<'a> {
    scope: &'a Scope<'a>,
    /// Aggregates of the query that were found so far; `None` where none may be.
    aggregates: Option<&'a RefCell<Vec<Aggregate>>>,
    clause: &'static str,
}

impl<'a> Place<'a> {
    fn plain(scope: &'a Scope<'a>, clause: &'static str) -> Place<'a> {
        Place { scope, aggregates: None, clause }
    }
}

/// A common table expression that can be read.
struct KnownCte {
    name: String,
    number: usize,
    outputs: Vec<Output>,
    /// How many subqueries there are around it, where it reads rows of the query that is around the innermost: 0 where it reads none.
    reads_around: usize,
}

pub(super) struct Binder<'a> {
    facts: &'a dyn Facts,
    parameters: &'a Parameters<'a>,
    /// Names of the views that are read.
    pub(super) views: Vec<String>,
    ctes: Vec<KnownCte>,
    next_cte: usize,
    next_subquery: usize,
    /// For each subquery that is being bound, the innermost last: whether it reads rows from around it.
    correlated: Vec<bool>,
    /// Expressions that were bound so far.
    bound: usize,
}

/// Expressions of a statement, those of a common table expression each time that it is bound.
const MOST_BOUND: usize = 100_000;

impl<'a> Binder<'a> {
    pub(super) fn new(facts: &'a dyn Facts, parameters: &'a Parameters<'a>) -> Binder<'a> {
        Binder {
            facts,
            parameters,
            views: Vec::new(),
            ctes: Vec::new(),
            next_cte: 0,
            next_subquery: 0,
            correlated: Vec::new(),
            bound: 0,
        }
    }

    /// Another expression is bound. Binding happens on threads that serve WAL, so there is an end to it whatever is bound how often.
    fn count_one(&mut self) -> Result<()> {
        self.bound += 1;
        if self.bound <= MOST_BOUND { Ok(()) } else { Err(parse::too_deep()) }
    }

    /// The plan of a statement.
    pub(super) fn statement(&mut self, query: &Query) -> Result<QueryPlan> {
        self.query(query, None)
    }

    fn query(&mut self, query: &Query, parent: Option<&Scope<'_>>) -> Result<QueryPlan> {
        let known = self.ctes.len();
        let mut ctes = Vec::new();
        for cte in &query.with {
            let (plan, reads_around) = self.cte(&cte.query, parent)?;
            let outputs = renamed(&plan.outputs, &cte.alias.columns, &cte.alias.name)?;
            if self.ctes[known..].iter().any(|other| other.name == cte.alias.name) {
                let text = format!("WITH query name \"{}\" specified more than once", cte.alias.name);
                return Err(PgError::error(sqlstate::DUPLICATE_ALIAS, text));
            }
            let name = cte.alias.name.clone();
            self.ctes.push(KnownCte { name, number: self.next_cte, outputs, reads_around });
            ctes.push((self.next_cte, plan));
            self.next_cte += 1;
        }
        let mut plan = match &query.body {
            Body::Select(select) => self.select(select, &query.order, parent)?,
            body => {
                let mut plan = self.body(body, parent)?;
                plan.sort = sort_by_outputs(&query.order, &plan.outputs)?;
                plan
            }
        };
        let empty = Scope::empty(parent);
        let mut count = |expr: &Option<Expr>, what| -> Result<Option<Node>> {
            let Some(expr) = expr else { return Ok(None) };
            let typed = self.expr(expr, Place::plain(&empty, what))?;
            let is_number = [Type::Unknown, Type::Int2, Type::Int4, Type::Int8, Type::Numeric, Type::Float8]
                .contains(&typed.kind);
            if !is_number {
                let text = format!("argument of {what} must be type bigint, not type {}", typed.kind.shown());
                return Err(PgError::error(sqlstate::DATATYPE_MISMATCH, text));
            }
            self.coerce(typed, Type::Int8).map(Some)
        };
        (plan.limit, plan.offset) = (count(&query.limit, "LIMIT")?, count(&query.offset, "OFFSET")?);
        plan.ctes = ctes;
        self.ctes.truncate(known);
        Ok(plan)
    }

    /// Its plan, and its [`KnownCte::reads_around`].
    fn cte(&mut self, query: &Query, parent: Option<&Scope<'_>>) -> Result<(QueryPlan, usize)> {
        let around = vec![false; self.correlated.len()];
        let before = std::mem::replace(&mut self.correlated, around);
        let plan = self.query(query, parent);
        let reads_around = if self.correlated.contains(&true) { self.correlated.len() } else { 0 };
        self.correlated.iter_mut().zip(before).for_each(|(now, before)| *now |= before);
        Ok((plan?, reads_around))
    }

    fn body(&mut self, body: &Body, parent: Option<&Scope<'_>>) -> Result<QueryPlan> {
        match body {
            Body::Select(select) => self.select(select, &[], parent),
            Body::Values(rows) => self.values(rows, parent),
            Body::Nested(query) => {
                let plan = self.query(query, parent)?;
                let outputs = plan.outputs.clone();
                Ok(plain(BodyPlan::Nested(Box::new(plan)), outputs))
            }
            Body::Set { operator, all, left, right } => {
                let (left, right) = (self.body(left, parent)?, self.body(right, parent)?);
                set(*operator, *all, left, right)
            }
        }
    }

    fn values(&mut self, rows: &[Vec<Expr>], parent: Option<&Scope<'_>>) -> Result<QueryPlan> {
        let width = rows.first().map_or(0, Vec::len);
        if rows.iter().any(|row| row.len() != width) {
            let text = "VALUES lists must all be the same length";
            return Err(PgError::error(sqlstate::SYNTAX_ERROR, text));
        }
        parse::has_room(width)?;
        let empty = Scope::empty(parent);
        let place = Place::plain(&empty, "VALUES");
        let mut bound = Vec::new();
        for row in rows {
            bound.push(row.iter().map(|expr| self.expr(expr, place)).collect::<Result<Vec<_>>>()?);
        }
        let mut outputs = Vec::new();
        for at in 0..width {
            let kinds: Vec<_> = bound.iter().map(|row| row[at].kind).collect();
            let kind = common("VALUES", &kinds)?;
            outputs.push(Output { name: format!("column{}", at + 1), kind });
        }
        let mut nodes = Vec::new();
        for row in bound {
            let row = row.into_iter().zip(&outputs).map(|(value, output)| self.coerce(value, output.kind));
            nodes.push(row.collect::<Result<Vec<_>>>()?);
        }
        Ok(plain(BodyPlan::Values(nodes), outputs))
    }

    /// A value as one of the type, which [`value::can_cast`] allows.
    fn coerce(&self, typed: Typed, to: Type) -> Result<Node> {
        let Typed { node, kind } = typed;
        Ok(match node {
            node if kind == to => node,
            Node::Parameter { number, kind: Type::Unknown } => {
                self.parameters.settle(number, to.column().oid());
                Node::Parameter { number, kind: to }
            }
            Node::Constant(Value::Null) => Node::null(),
            Node::Constant(Value::Text(text)) if kind == Type::Unknown => {
                Node::Constant(value::read(&text, to)?)
            }
            node => Node::Cast { value: Box::new(node), from: kind, to },
        })
    }

    /// What is still not known is text.
    fn settled(&self, typed: Typed) -> Result<Typed> {
        match typed.node {
            Node::Parameter { kind: Type::Unknown, .. } => {
                Ok(Typed { node: self.coerce(typed, Type::Text)?, kind: Type::Text })
            }
            _ => Ok(typed),
        }
    }
}

fn plain(body: BodyPlan, outputs: Vec<Output>) -> QueryPlan {
    QueryPlan { ctes: Vec::new(), body, sort: Vec::new(), limit: None, offset: None, outputs }
}

/// What all of them become.
fn common(what: &str, kinds: &[Type]) -> Result<Type> {
    let mut common = Type::Unknown;
    for kind in kinds {
        common = match common.common(*kind) {
            Some(both) => both,
            None => {
                let text = format!("{what} types {} and {} cannot be matched", common.shown(), kind.shown());
                return Err(PgError::error(sqlstate::DATATYPE_MISMATCH, text));
            }
        };
    }
    Ok(if common == Type::Unknown { Type::Text } else { common })
}

fn set(operator: SetOperator, all: bool, left: QueryPlan, right: QueryPlan) -> Result<QueryPlan> {
    let word = operator.as_str();
    if left.outputs.len() != right.outputs.len() {
        let text = format!("each {word} query must have the same number of columns");
        return Err(PgError::error(sqlstate::SYNTAX_ERROR, text));
    }
    let mut outputs = Vec::new();
    let (mut left_casts, mut right_casts) = (Vec::new(), Vec::new());
    for (left, right) in left.outputs.iter().zip(&right.outputs) {
        let kind = common(word, &[left.kind, right.kind])?;
        outputs.push(Output { name: left.name.clone(), kind });
        left_casts.push((left.kind, kind));
        right_casts.push((right.kind, kind));
    }
    let left = SidePlan { plan: Box::new(left), casts: left_casts };
    let right = SidePlan { plan: Box::new(right), casts: right_casts };
    Ok(plain(BodyPlan::Set { operator, all, left, right }, outputs))
}

/// ORDER BY of what is no SELECT: columns of the result, by name or position.
fn sort_by_outputs(sorts: &[Sort], outputs: &[Output]) -> Result<Vec<SortKey>> {
    let key = |sort: &Sort| {
        let at = match &sort.value {
            Expr::Number(digits) => position(digits, outputs.len(), "ORDER BY")?,
            Expr::Column(parts) if parts.len() == 1 => outputs
                .iter()
                .position(|output| output.name == parts[0])
                .ok_or_else(|| scope::no_column(&parts[0], None))?,
            _ => {
                let text = "invalid UNION/INTERSECT/EXCEPT ORDER BY clause";
                return Err(PgError::error(sqlstate::FEATURE_NOT_SUPPORTED, text)
                    .with_detail("Only result column names can be used, not expressions or functions."));
            }
        };
        sortable(outputs[at].kind)?;
        Ok(SortKey { at, descending: sort.descending, nulls_first: sort.nulls_first })
    };
    sorts.iter().map(key).collect()
}

fn sortable(kind: Type) -> Result<()> {
    if !matches!(kind, Type::Xid | Type::Void | Type::TextArray) {
        return Ok(());
    }
    let text = format!("could not identify an ordering operator for type {}", kind.shown());
    Err(PgError::error(sqlstate::UNDEFINED_FUNCTION, text))
}

/// Of a column that is named by a number.
fn position(digits: &str, columns: usize, clause: &str) -> Result<usize> {
    let Ok(number) = digits.parse::<i32>() else {
        let text = format!("non-integer constant in {clause}");
        return Err(PgError::error(sqlstate::SYNTAX_ERROR, text));
    };
    let at = usize::try_from(number).ok().and_then(|number| number.checked_sub(1));
    at.filter(|at| *at < columns).ok_or_else(|| {
        let text = format!("{clause} position {number} is not in select list");
        PgError::error(sqlstate::INVALID_COLUMN_REFERENCE, text)
    })
}

/// Columns with the names that an alias gives to the first of them; what has no type is text.
fn renamed(outputs: &[Output], names: &[String], table: &str) -> Result<Vec<Output>> {
    if names.len() > outputs.len() {
        let (has, given) = (outputs.len(), names.len());
        let text = format!("table \"{table}\" has {has} columns available but {given} columns specified");
        return Err(PgError::error(sqlstate::INVALID_COLUMN_REFERENCE, text));
    }
    let mut outputs = outputs.to_vec();
    for (output, name) in outputs.iter_mut().zip(names) {
        output.name.clone_from(name);
    }
    for output in &mut outputs {
        if output.kind == Type::Unknown {
            output.kind = Type::Text;
        }
    }
    Ok(outputs)
}
