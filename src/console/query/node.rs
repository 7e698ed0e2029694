//! Expressions whose columns and types are known, and what comes of them for a row.

use std::cmp::Ordering;

use crate::wire::{PgError, sqlstate};

use super::context::Context;
use super::functions::Function;
use super::pattern;
use super::plan::{QueryPlan, Row};
use super::value::{self, Type, Value};
use super::{Result, run};

#[derive(Clone, PartialEq, Debug)]
pub(super) enum Node {
    Constant(Value),
    /// Of the row of the query that is so many around this one.
    Column {
        up: usize,
        at: usize,
    },
    /// A parameter's value as that type.
    Parameter {
        number: usize,
        kind: Type,
    },
    Cast {
        value: Box<Node>,
        from: Type,
        to: Type,
    },
    /// `numeric(p, s)`: so many digits, so many of them behind the point.
    Digits {
        value: Box<Node>,
        all: u32,
        scale: i32,
    },
    /// `varchar(n)`
    Length {
        value: Box<Node>,
        most: usize,
    },
    Call {
        function: &'static Function,
        arguments: Vec<Node>,
    },
    /// Texts in a row, NULL being nothing; the separator, if there is one, comes first.
    Concat {
        separator: Option<Box<Node>>,
        parts: Vec<Node>,
    },
    And(Vec<Node>),
    Or(Vec<Node>),
    Not(Box<Node>),
    IsNull {
        value: Box<Node>,
        negated: bool,
    },
    IsBool {
        value: Box<Node>,
        wanted: Option<bool>,
        negated: bool,
    },
    IsDistinct {
        left: Box<Node>,
        right: Box<Node>,
        negated: bool,
    },
    Compare {
        comparison: Comparison,
        left: Box<Node>,
        right: Box<Node>,
    },
    Like {
        value: Box<Node>,
        pattern: Box<Node>,
        escape: Option<Box<Node>>,
        any_case: bool,
        negated: bool,
    },
    Between {
        value: Box<Node>,
        from: Type,
        low: Side,
        high: Side,
        symmetric: bool,
        negated: bool,
    },
    /// Whether one of them, or each, compares like that.
    Among {
        value: Box<Node>,
        from: Type,
        comparison: Comparison,
        list: Vec<Side>,
        all: bool,
    },
    Case {
        branches: Vec<(Node, Node)>,
        otherwise: Option<Box<Node>>,
    },
    CaseOf {
        value: Box<Node>,
        from: Type,
        branches: Vec<(Side, Node)>,
        otherwise: Option<Box<Node>>,
    },
    Coalesce(Vec<Node>),
    /// The greatest or the least that is not NULL.
    Extreme {
        wanted: Ordering,
        values: Vec<Node>,
    },
    /// NULL if both are equal.
    NullIf {
        value: Box<Node>,
        from: Type,
        other: Side,
    },
    /// An aggregate of the group, by its number.
    Aggregate(usize),
    Subquery(Box<Subquery>),
}

/// What a value that is evaluated once is compared with: both as values of that type.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Side {
    pub(super) kind: Type,
    pub(super) node: Box<Node>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

impl Comparison {
    pub(super) fn of(operator: &str) -> Option<Comparison> {
        Some(match operator {
            "=" => Comparison::Equal,
            "<>" => Comparison::NotEqual,
            "<" => Comparison::Less,
            "<=" => Comparison::LessOrEqual,
            ">" => Comparison::Greater,
            ">=" => Comparison::GreaterOrEqual,
            _ => return None,
        })
    }

    /// Of two values that are not NULL.
    pub(super) fn holds(self, a: &Value, b: &Value) -> bool {
        let order = a.cmp(b);
        match self {
            Comparison::Equal => order.is_eq(),
            Comparison::NotEqual => order.is_ne(),
            Comparison::Less => order.is_lt(),
            Comparison::LessOrEqual => order.is_le(),
            Comparison::Greater => order.is_gt(),
            Comparison::GreaterOrEqual => order.is_ge(),
        }
    }

    fn of_values(self, a: &Value, b: &Value, cx: &mut Context<'_>) -> Result<Value> {
        cx.comparing(a, b)?;
        Ok(if a.is_null() || b.is_null() { Value::Null } else { Value::Bool(self.holds(a, b)) })
    }
}

/// A query within an expression.
#[derive(Clone, Debug)]
pub(super) struct Subquery {
    /// Its number in the statement.
    pub(super) id: usize,
    pub(super) plan: QueryPlan,
    pub(super) kind: SubqueryKind,
    /// Whether it reads rows of the queries around it; else its result is made once.
    pub(super) is_correlated: bool,
}

impl PartialEq for Subquery {
    fn eq(&self, other: &Subquery) -> bool {
        self.id == other.id
    }
}

#[derive(Clone, PartialEq, Debug)]
pub(super) enum SubqueryKind {
    Scalar,
    Exists,
    /// Its rows and the value are compared as that type.
    Any {
        value: Node,
        from: Type,
        column: Type,
        kind: Type,
        comparison: Comparison,
        all: bool,
    },
}

/// The rows that a node is evaluated for, the innermost query's first.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a> {
    pub(super) row: &'a [Value],
    pub(super) around: Option<&'a Rows<'a>>,
}

impl<'a> Rows<'a> {
    pub(super) fn new(row: &'a [Value], around: Option<&'a Rows<'a>>) -> Rows<'a> {
        Rows { row, around }
    }

    fn get(&self, up: usize, at: usize) -> Option<&Value> {
        let mut rows = self;
        for _ in 0..up {
            rows = rows.around?;
        }
        rows.row.get(at)
    }
}

impl Node {
    pub(super) fn null() -> Node {
        Node::Constant(Value::Null)
    }

    /// Whether it is true; NULL is not.
    pub(super) fn is_true(&self, cx: &mut Context<'_>, rows: &Rows<'_>) -> Result<bool> {
        Ok(matches!(self.value(cx, rows)?, Value::Bool(true)))
    }

    pub(super) fn value(&self, cx: &mut Context<'_>, rows: &Rows<'_>) -> Result<Value> {
        cx.step(1)?;
        Ok(match self {
            Node::Constant(value) => value.clone(),
            Node::Column { up, at } => rows.get(*up, *at).cloned().unwrap_or(Value::Null),
            Node::Parameter { number, kind } => cx.parameter(*number, *kind)?,
            Node::Cast { value, from, to } => {
                let value = value.value(cx, rows)?;
                value::cast(&value, *from, *to, cx.major)?
            }
            Node::IsNull { value, negated } => Value::Bool(value.value(cx, rows)?.is_null() != *negated),
            Node::Compare { comparison, left, right } => {
                let left = left.value(cx, rows)?;
                let right = right.value(cx, rows)?;
                comparison.of_values(&left, &right, cx)?
            }
            Node::Not(value) => negation(value.value(cx, rows)?),
            Node::And(parts) => unless(parts, false, cx, rows)?,
            Node::Or(parts) => unless(parts, true, cx, rows)?,
            Node::Call { function, arguments } => call(function, arguments, cx, rows)?,
            Node::Subquery(subquery) => subquery.value(cx, rows)?,
            _ => self.rarer(cx, rows)?,
        })
    }

    /// Apart, so that what is frequent takes little of the stack.
    #[inline(never)]
    fn rarer(&self, cx: &mut Context<'_>, rows: &Rows<'_>) -> Result<Value> {
        Ok(match self {
            Node::Digits { value, all, scale } => rounded(&value.value(cx, rows)?, *all, *scale)?,
            Node::Length { value, most } => match value.value(cx, rows)? {
                Value::Text(text) => match text.char_indices().nth(*most) {
                    Some((end, _)) => Value::text(&text[..end]),
                    None => Value::Text(text),
                },
                other => other,
            },
            Node::Concat { separator, parts } => concat(separator.as_deref(), parts, cx, rows)?,
            Node::IsBool { value, wanted, negated } => {
                let is = match value.value(cx, rows)? {
                    Value::Bool(value) => Some(value),
                    _ => None,
                };
                Value::Bool((is == *wanted) != *negated)
            }
            Node::IsDistinct { left, right, negated } => {
                let left = left.value(cx, rows)?;
                let right = right.value(cx, rows)?;
                cx.comparing(&left, &right)?;
                Value::Bool((left != right) != *negated)
            }
            Node::Like { value, pattern, escape, any_case, negated } => {
                let (value, pattern) = (value.value(cx, rows)?, pattern.value(cx, rows)?);
                let escape = escape.as_ref().map(|it| it.value(cx, rows)).transpose()?;
                match (value, pattern, escape) {
                    (Value::Text(value), Value::Text(pattern), None) => {
                        Value::Bool(pattern::like(&value, &pattern, "\\", *any_case, cx)? != *negated)
                    }
                    (Value::Text(value), Value::Text(pattern), Some(Value::Text(escape))) => {
                        Value::Bool(pattern::like(&value, &pattern, &escape, *any_case, cx)? != *negated)
                    }
                    _ => Value::Null,
                }
            }
            Node::Between { value, from, low, high, symmetric, negated } => {
                let value = value.value(cx, rows)?;
                let (above, low) = low.against(&value, *from, cx, rows)?;
                let (below, high) = high.against(&value, *from, cx, rows)?;
                let least = Comparison::GreaterOrEqual;
                let most = Comparison::LessOrEqual;
                let mut within = both(least.of_values(&above, &low, cx)?, most.of_values(&below, &high, cx)?);
                if *symmetric {
                    let turned = both(least.of_values(&below, &high, cx)?, most.of_values(&above, &low, cx)?);
                    within = negation(both(negation(within), negation(turned)));
                }
                if *negated { negation(within) } else { within }
            }
            Node::Among { value, from, comparison, list, all } => {
                let value = value.value(cx, rows)?;
                let mut among = Among::new(*all);
                for side in list {
                    let (value, other) = side.against(&value, *from, cx, rows)?;
                    if among.is_decided_by(comparison.of_values(&value, &other, cx)?) {
                        break;
                    }
                }
                among.verdict
            }
            Node::Case { branches, otherwise } => {
                for (condition, value) in branches {
                    if condition.is_true(cx, rows)? {
                        return value.value(cx, rows);
                    }
                }
                otherwise.as_ref().map_or(Ok(Value::Null), |value| value.value(cx, rows))?
            }
            Node::CaseOf { value, from, branches, otherwise } => {
                let value = value.value(cx, rows)?;
                for (side, result) in branches {
                    let (value, other) = side.against(&value, *from, cx, rows)?;
                    if Comparison::Equal.of_values(&value, &other, cx)? == Value::Bool(true) {
                        return result.value(cx, rows);
                    }
                }
                otherwise.as_ref().map_or(Ok(Value::Null), |value| value.value(cx, rows))?
            }
            Node::Coalesce(values) => {
                for value in values {
                    let value = value.value(cx, rows)?;
                    if !value.is_null() {
                        return Ok(value);
                    }
                }
                Value::Null
            }
            Node::Extreme { wanted, values } => {
                let mut found = Value::Null;
                for value in values {
                    let value = value.value(cx, rows)?;
                    cx.comparing(&value, &found)?;
                    if !value.is_null() && (found.is_null() || value.cmp(&found) == *wanted) {
                        found = value;
                    }
                }
                found
            }
            Node::NullIf { value, from, other } => {
                let value = value.value(cx, rows)?;
                let (compared, other) = other.against(&value, *from, cx, rows)?;
                match Comparison::Equal.of_values(&compared, &other, cx)? {
                    Value::Bool(true) => Value::Null,
                    _ => value,
                }
            }
            // The binder has put columns in their place.
            _ => Value::Null,
        })
    }

    /// Calls `visit` with each node in it, itself first; not with those of subqueries' plans.
    pub(super) fn visit(&self, visit: &mut impl FnMut(&Node)) {
        visit(self);
        self.for_each(&mut |node| node.visit(visit));
    }

    fn for_each(&self, each: &mut dyn FnMut(&Node)) {
        match self {
            Node::Constant(_) | Node::Column { .. } | Node::Parameter { .. } | Node::Aggregate(_) => {}
            Node::Cast { value, .. }
            | Node::Digits { value, .. }
            | Node::Length { value, .. }
            | Node::Not(value)
            | Node::IsNull { value, .. }
            | Node::IsBool { value, .. } => each(value),
            Node::Call { arguments: all, .. } | Node::And(all) | Node::Or(all) | Node::Coalesce(all) => {
                all.iter().for_each(each);
            }
            Node::Extreme { values, .. } => values.iter().for_each(each),
            Node::Concat { separator, parts } => {
                separator.iter().for_each(|it| each(it));
                parts.iter().for_each(each);
            }
            Node::IsDistinct { left, right, .. } | Node::Compare { left, right, .. } => {
                each(left);
                each(right);
            }
            Node::Like { value, pattern, escape, .. } => {
                each(value);
                each(pattern);
                escape.iter().for_each(|it| each(it));
            }
            Node::Between { value, low, high, .. } => {
                each(value);
                each(&low.node);
                each(&high.node);
            }
            Node::Among { value, list, .. } => {
                each(value);
                list.iter().for_each(|side| each(&side.node));
            }
            Node::Case { branches, otherwise } => {
                for (condition, value) in branches {
                    each(condition);
                    each(value);
                }
                otherwise.iter().for_each(|it| each(it));
            }
            Node::CaseOf { value, branches, otherwise, .. } => {
                each(value);
                for (side, value) in branches {
                    each(&side.node);
                    each(value);
                }
                otherwise.iter().for_each(|it| each(it));
            }
            Node::NullIf { value, other, .. } => {
                each(value);
                each(&other.node);
            }
            Node::Subquery(subquery) => {
                if let SubqueryKind::Any { value, .. } = &subquery.kind {
                    each(value);
                }
            }
        }
    }

    /// The same with each node in it replaced by what `change` makes of it, from the outside: what it has replaced it does not
    /// look into.
    pub(super) fn replace(self, change: &mut impl FnMut(&Node) -> Result<Option<Node>>) -> Result<Node> {
        if let Some(new) = change(&self)? {
            return Ok(new);
        }
        let mut one = |node: Box<Node>| -> Result<Box<Node>> { Ok(Box::new(node.replace(change)?)) };
        Ok(match self {
            Node::Constant(_) | Node::Column { .. } | Node::Parameter { .. } | Node::Aggregate(_) => self,
            Node::Cast { value, from, to } => Node::Cast { value: one(value)?, from, to },
            Node::Digits { value, all, scale } => Node::Digits { value: one(value)?, all, scale },
            Node::Length { value, most } => Node::Length { value: one(value)?, most },
            Node::Not(value) => Node::Not(one(value)?),
            Node::IsNull { value, negated } => Node::IsNull { value: one(value)?, negated },
            Node::IsBool { value, wanted, negated } => Node::IsBool { value: one(value)?, wanted, negated },
            Node::Call { function, arguments } => Node::Call { function, arguments: all(arguments, change)? },
            Node::And(parts) => Node::And(all(parts, change)?),
            Node::Or(parts) => Node::Or(all(parts, change)?),
            Node::Coalesce(parts) => Node::Coalesce(all(parts, change)?),
            Node::Extreme { wanted, values } => Node::Extreme { wanted, values: all(values, change)? },
            Node::Concat { separator, parts } => {
                Node::Concat { separator: separator.map(one).transpose()?, parts: all(parts, change)? }
            }
            Node::IsDistinct { left, right, negated } => {
                Node::IsDistinct { left: one(left)?, right: one(right)?, negated }
            }
            Node::Compare { comparison, left, right } => {
                Node::Compare { comparison, left: one(left)?, right: one(right)? }
            }
            Node::Like { value, pattern, escape, any_case, negated } => Node::Like {
                value: one(value)?,
                pattern: one(pattern)?,
                escape: escape.map(one).transpose()?,
                any_case,
                negated,
            },
            Node::Between { value, from, low, high, symmetric, negated } => Node::Between {
                value: one(value)?,
                from,
                low: low.replace(change)?,
                high: high.replace(change)?,
                symmetric,
                negated,
            },
            Node::Among { value, from, comparison, list, all } => {
                let value = one(value)?;
                let list = list.into_iter().map(|side| side.replace(change)).collect::<Result<_>>()?;
                Node::Among { value, from, comparison, list, all }
            }
            Node::Case { branches, otherwise } => {
                let otherwise = otherwise.map(one).transpose()?;
                let branch = |(condition, value): (Node, Node)| {
                    Ok((condition.replace(change)?, value.replace(change)?))
                };
                Node::Case { branches: branches.into_iter().map(branch).collect::<Result<_>>()?, otherwise }
            }
            Node::CaseOf { value, from, branches, otherwise } => {
                let (value, otherwise) = (one(value)?, otherwise.map(one).transpose()?);
                let branch =
                    |(side, value): (Side, Node)| Ok((side.replace(change)?, value.replace(change)?));
                let branches = branches.into_iter().map(branch).collect::<Result<_>>()?;
                Node::CaseOf { value, from, branches, otherwise }
            }
            Node::NullIf { value, from, other } => {
                Node::NullIf { value: one(value)?, from, other: other.replace(change)? }
            }
            Node::Subquery(mut subquery) => {
                if let SubqueryKind::Any { value, .. } = &mut subquery.kind {
                    let inner = std::mem::replace(value, Node::null());
                    *value = inner.replace(change)?;
                }
                Node::Subquery(subquery)
            }
        })
    }
}

fn all(nodes: Vec<Node>, change: &mut impl FnMut(&Node) -> Result<Option<Node>>) -> Result<Vec<Node>> {
    nodes.into_iter().map(|node| node.replace(change)).collect()
}

impl Side {
    fn replace(self, change: &mut impl FnMut(&Node) -> Result<Option<Node>>) -> Result<Side> {
        Ok(Side { kind: self.kind, node: Box::new(self.node.replace(change)?) })
    }

    /// Both, as values of the same type.
    fn against(
        &self,
        value: &Value,
        from: Type,
        cx: &mut Context<'_>,
        rows: &Rows<'_>,
    ) -> Result<(Value, Value)> {
        Ok((value::cast(value, from, self.kind, cx.major)?, self.node.value(cx, rows)?))
    }
}

fn negation(value: Value) -> Value {
    match value {
        Value::Bool(value) => Value::Bool(!value),
        _ => Value::Null,
    }
}

fn both(a: Value, b: Value) -> Value {
    match (a, b) {
        (Value::Bool(false), _) | (_, Value::Bool(false)) => Value::Bool(false),
        (Value::Bool(true), Value::Bool(true)) => Value::Bool(true),
        _ => Value::Null,
    }
}

/// What comes of many comparisons.
struct Among {
    all: bool,
    verdict: Value,
}

impl Among {
    fn new(all: bool) -> Among {
        Among { all, verdict: Value::Bool(all) }
    }

    /// Whether no other comparison would change anything.
    fn is_decided_by(&mut self, compared: Value) -> bool {
        match compared {
            Value::Bool(holds) if holds != self.all => {
                self.verdict = Value::Bool(holds);
                true
            }
            Value::Null => {
                self.verdict = Value::Null;
                false
            }
            _ => false,
        }
    }
}

/// AND and OR: the first value that decides, else NULL if there is one.
fn unless(parts: &[Node], decides: bool, cx: &mut Context<'_>, rows: &Rows<'_>) -> Result<Value> {
    let mut came = Value::Bool(!decides);
    for part in parts {
        match part.value(cx, rows)? {
            Value::Bool(value) if value == decides => return Ok(Value::Bool(decides)),
            Value::Null => came = Value::Null,
            _ => {}
        }
    }
    Ok(came)
}

#[inline(never)]
fn call(
    function: &'static Function,
    arguments: &[Node],
    cx: &mut Context<'_>,
    rows: &Rows<'_>,
) -> Result<Value> {
    let mut values = Vec::with_capacity(arguments.len());
    for argument in arguments {
        let value = argument.value(cx, rows)?;
        if value.is_null() && function.is_strict {
            return Ok(Value::Null);
        }
        values.push(value);
    }
    // It may read all of them and make little.
    for value in &values {
        cx.made(value)?;
    }
    let value = (function.run)(cx, &values)?;
    cx.made(&value)?;
    Ok(value)
}

fn concat(separator: Option<&Node>, parts: &[Node], cx: &mut Context<'_>, rows: &Rows<'_>) -> Result<Value> {
    let separator = match separator {
        Some(node) => match node.value(cx, rows)? {
            Value::Text(text) => Some(text),
            _ => return Ok(Value::Null),
        },
        None => None,
    };
    let mut whole = String::new();
    let mut is_first = true;
    for part in parts {
        if let Value::Text(text) = part.value(cx, rows)? {
            if !is_first {
                whole.push_str(separator.as_deref().unwrap_or_default());
            }
            is_first = false;
            cx.check_length(whole.len() + text.len())?;
            whole.push_str(&text);
        }
    }
    let value = Value::text(whole);
    cx.made(&value)?;
    Ok(value)
}

fn rounded(value: &Value, all: u32, scale: i32) -> Result<Value> {
    let Value::Numeric(number) = value else { return Ok(Value::Null) };
    let overflow = || PgError::error(sqlstate::NUMERIC_VALUE_OUT_OF_RANGE, "numeric field overflow");
    let number = number.round(scale).ok_or_else(overflow)?;
    let most = 10_i128.checked_pow(all).unwrap_or(i128::MAX);
    if number.digits().unsigned_abs() >= most.unsigned_abs() {
        Err(overflow())
    } else {
        Ok(Value::Numeric(number))
    }
}

impl Subquery {
    #[inline(never)]
    fn value(&self, cx: &mut Context<'_>, rows: &Rows<'_>) -> Result<Value> {
        let found = self.rows(cx, rows)?;
        match &self.kind {
            SubqueryKind::Exists => Ok(Value::Bool(!found.is_empty())),
            SubqueryKind::Scalar => match found.as_slice() {
                [] => Ok(Value::Null),
                [row] => Ok(row.first().cloned().unwrap_or(Value::Null)),
                _ => {
                    let text = "more than one row returned by a subquery used as an expression";
                    Err(PgError::error(sqlstate::CARDINALITY_VIOLATION, text))
                }
            },
            SubqueryKind::Any { value, from, column, kind, comparison, all } => {
                let value = value::cast(&value.value(cx, rows)?, *from, *kind, cx.major)?;
                let mut among = Among::new(*all);
                for row in found.iter() {
                    cx.step(1)?;
                    let other = value::cast(row.first().unwrap_or(&Value::Null), *column, *kind, cx.major)?;
                    if among.is_decided_by(comparison.of_values(&value, &other, cx)?) {
                        break;
                    }
                }
                Ok(among.verdict)
            }
        }
    }

    fn rows(&self, cx: &mut Context<'_>, rows: &Rows<'_>) -> Result<std::rc::Rc<Vec<Row>>> {
        if let Some(known) = cx.subqueries.get(&self.id) {
            return Ok(known.clone());
        }
        let made = std::rc::Rc::new(run::query(&self.plan, cx, Some(rows))?);
        if !self.is_correlated {
            cx.subqueries.insert(self.id, made.clone());
        }
        Ok(made)
    }
}
