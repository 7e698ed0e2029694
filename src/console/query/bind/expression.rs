//! Expressions: what each part is, and of what type.

use super::*;
use crate::console::query::ast::TypeName;
use crate::console::query::functions::{self, Function};
use crate::console::query::node::{Comparison, Side, Subquery, SubqueryKind};
use crate::console::query::unsupported;

impl Binder<'_> {
    /// As deep as the expression, which the parser has measured.
    pub(super) fn expr(&mut self, expr: &Expr, place: Place<'_>) -> Result<Typed> {
        self.count_one()?;
        match expr {
            Expr::Null => Ok(Typed { node: Node::null(), kind: Type::Unknown }),
            Expr::Bool(value) => Ok(constant(Value::Bool(*value), Type::Bool)),
            Expr::Number(digits) => number(digits),
            Expr::String(text) => Ok(constant(Value::text(text.as_str()), Type::Unknown)),
            Expr::Parameter(number) => self.parameter(*number),
            Expr::Column(parts) => self.column(parts, place),
            Expr::Cast(value, to) => self.cast(value, to, place),
            Expr::Unary(operator, value) => self.unary(operator, value, place),
            Expr::Binary(operator, left, right) => self.binary(operator, left, right, place),
            Expr::And(parts) => Ok(truth(Node::And(self.conditions(parts, "AND", place)?))),
            Expr::Or(parts) => Ok(truth(Node::Or(self.conditions(parts, "OR", place)?))),
            Expr::Not(value) => {
                let value = self.expr(value, place)?;
                Ok(truth(Node::Not(Box::new(self.boolean(value, "NOT")?))))
            }
            Expr::IsNull { value, negated } => {
                let value = self.expr(value, place)?;
                let value = Box::new(self.settled(value)?.node);
                Ok(truth(Node::IsNull { value, negated: *negated }))
            }
            Expr::Call(call) => self.call(call, place),
            Expr::Word(word) => {
                let function = functions::find(word, &[], false);
                let function = function.ok_or_else(|| unsupported(&word.to_ascii_uppercase()))?;
                Ok(called(function, Vec::new()))
            }
            Expr::Scalar(query) => self.scalar(query, place),
            Expr::Exists(query) => {
                let (plan, is_correlated) = self.subquery(query, place)?;
                Ok(truth(self.made_subquery(plan, SubqueryKind::Exists, is_correlated)))
            }
            _ => self.rarer(expr, place),
        }
    }

    /// Apart, so that what is frequent takes little of the stack.
    #[inline(never)]
    fn rarer(&mut self, expr: &Expr, place: Place<'_>) -> Result<Typed> {
        match expr {
            Expr::IsBool { value, wanted, negated } => {
                let value = self.expr(value, place)?;
                let what = match wanted {
                    Some(true) => "IS TRUE",
                    Some(false) => "IS FALSE",
                    None => "IS UNKNOWN",
                };
                let value = Box::new(self.boolean(value, what)?);
                Ok(truth(Node::IsBool { value, wanted: *wanted, negated: *negated }))
            }
            Expr::IsDistinct { left, right, negated } => {
                let (left, right) = (self.expr(left, place)?, self.expr(right, place)?);
                let kind = compared("=", left.kind, right.kind)?;
                let (left, right) = (self.coerce(left, kind)?, self.coerce(right, kind)?);
                Ok(truth(Node::IsDistinct {
                    left: Box::new(left),
                    right: Box::new(right),
                    negated: *negated,
                }))
            }
            Expr::Like { value, pattern, escape, any_case, negated } => {
                let operator = if *any_case { "~~*" } else { "~~" };
                let (value, pattern) = (self.expr(value, place)?, self.expr(pattern, place)?);
                if !value.kind.is_text() || !pattern.kind.is_text() {
                    return Err(no_operator(operator, Some(value.kind), pattern.kind));
                }
                let value = Box::new(self.coerce(value, Type::Text)?);
                let pattern = Box::new(self.coerce(pattern, Type::Text)?);
                let escape = match escape {
                    Some(escape) => {
                        let escape = self.expr(escape, place)?;
                        Some(Box::new(self.coerce(escape, Type::Text)?))
                    }
                    None => None,
                };
                Ok(truth(Node::Like { value, pattern, escape, any_case: *any_case, negated: *negated }))
            }
            Expr::Between { value, low, high, symmetric, negated } => {
                let (value, low) = self.known(value, low, place)?;
                let high = self.expr(high, place)?;
                let (low, high) = (self.side(">=", &value, low)?, self.side("<=", &value, high)?);
                let (symmetric, negated, from) = (*symmetric, *negated, value.kind);
                Ok(truth(Node::Between { value: Box::new(value.node), from, low, high, symmetric, negated }))
            }
            Expr::InList { value, list, negated } => {
                let operator = if *negated { "<>" } else { "=" };
                self.among(operator, value, list, *negated, place)
            }
            Expr::AnyInList { operator, value, list, all } => self.among(operator, value, list, *all, place),
            Expr::AnyOf { operator, value, query, all } => self.any_of(operator, value, query, *all, place),
            Expr::Case { operand: None, branches, otherwise } => {
                self.case(branches, otherwise.as_deref(), place)
            }
            Expr::Case { operand: Some(operand), branches, otherwise } => {
                self.case_of(operand, branches, otherwise.as_deref(), place)
            }
            // All others are above.
            _ => Err(unsupported("this expression")),
        }
    }

    fn parameter(&self, number: usize) -> Result<Typed> {
        let oid = self.parameters.declared(number)?;
        let kind = match oid {
            0 => Type::Unknown,
            oid => Type::of_oid(oid).ok_or_else(|| unsupported(&format!("the type with number {oid}")))?,
        };
        Ok(Typed { node: Node::Parameter { number, kind }, kind })
    }

    fn column(&mut self, parts: &[String], place: Place<'_>) -> Result<Typed> {
        let (typed, up) = place.scope.column(parts)?;
        for level in self.correlated.iter_mut().rev().take(up) {
            *level = true;
        }
        Ok(typed)
    }

    fn conditions(&mut self, parts: &[Expr], what: &str, place: Place<'_>) -> Result<Vec<Node>> {
        let mut nodes = Vec::with_capacity(parts.len());
        for part in parts {
            let part = self.expr(part, place)?;
            nodes.push(self.boolean(part, what)?);
        }
        Ok(nodes)
    }

    fn boolean(&self, typed: Typed, what: &str) -> Result<Node> {
        if !matches!(typed.kind, Type::Bool | Type::Unknown) {
            let text = format!("argument of {what} must be type boolean, not type {}", typed.kind.shown());
            return Err(PgError::error(sqlstate::DATATYPE_MISMATCH, text));
        }
        self.coerce(typed, Type::Bool)
    }

    /// What WHERE and its kin take.
    pub(super) fn condition(&mut self, expr: &Expr, place: Place<'_>) -> Result<Node> {
        let typed = self.expr(expr, place)?;
        let what = if place.clause == "JOIN conditions" { "JOIN/ON" } else { place.clause };
        self.boolean(typed, what)
    }

    pub(super) fn cast(&mut self, value: &Expr, to: &TypeName, place: Place<'_>) -> Result<Typed> {
        let kind = Type::named(to).ok_or_else(|| no_type(to))?;
        let value = self.expr(value, place)?;
        self.cast_to(value, kind, &to.modifiers)
    }

    pub(super) fn cast_to(&self, value: Typed, kind: Type, modifiers: &[i64]) -> Result<Typed> {
        if !value::can_cast(value.kind, kind) {
            let text = format!("cannot cast type {} to {}", value.kind.shown(), kind.shown());
            return Err(PgError::error(sqlstate::CANNOT_COERCE, text));
        }
        let node = self.coerce(value, kind)?;
        let node = match (kind, modifiers) {
            (_, []) => node,
            (Type::Numeric, [all] | [all, _]) => {
                let scale = modifiers.get(1).copied().unwrap_or(0);
                let (Ok(all @ 1..=1000), Ok(scale)) = (u32::try_from(*all), i32::try_from(scale)) else {
                    return Err(unsupported("such a precision"));
                };
                Node::Digits { value: Box::new(node), all, scale }
            }
            (Type::Text, [most]) => {
                Node::Length { value: Box::new(node), most: usize::try_from(*most).unwrap_or(usize::MAX) }
            }
            _ => return Err(unsupported(&format!("a precision of type {}", kind.shown()))),
        };
        Ok(Typed { node, kind })
    }

    fn unary(&mut self, operator: &str, value: &Expr, place: Place<'_>) -> Result<Typed> {
        let value = self.expr(value, place)?;
        let kind = if value.kind == Type::Unknown { Type::Float8 } else { value.kind };
        let function = functions::find(operator, &[kind], true);
        let function = function.filter(|_| value.kind != Type::Unknown || operator == "-" || operator == "+");
        let function = function.ok_or_else(|| no_operator(operator, None, value.kind))?;
        self.applied(function, vec![value])
    }

    pub(super) fn binary(
        &mut self,
        operator: &str,
        left: &Expr,
        right: &Expr,
        place: Place<'_>,
    ) -> Result<Typed> {
        let (left, right) = (self.expr(left, place)?, self.expr(right, place)?);
        self.binary_of(operator, left, right)
    }

    #[inline(never)]
    fn binary_of(&mut self, operator: &str, left: Typed, right: Typed) -> Result<Typed> {
        if let Some(comparison) = Comparison::of(operator) {
            return Ok(truth(self.compare(operator, comparison, left, right)?));
        }
        if operator == "||" {
            if !left.kind.is_text() && !right.kind.is_text() || [left.kind, right.kind].contains(&Type::Void)
            {
                return Err(no_operator(operator, Some(left.kind), right.kind));
            }
            let parts = vec![self.coerce(left, Type::Text)?, self.coerce(right, Type::Text)?];
            return self.joined(parts);
        }
        let function = functions::find(operator, &[left.kind, right.kind], true);
        let function = function.ok_or_else(|| no_operator(operator, Some(left.kind), right.kind))?;
        self.applied(function, vec![left, right])
    }

    /// NULL if one of them is; else both in a row.
    fn joined(&self, parts: Vec<Node>) -> Result<Typed> {
        let function = functions::find("||", &[Type::Text, Type::Text], true);
        let function = function.ok_or_else(|| no_operator("||", Some(Type::Text), Type::Text))?;
        Ok(called(function, parts))
    }

    pub(super) fn applied(&self, function: &'static Function, values: Vec<Typed>) -> Result<Typed> {
        let arguments =
            values.into_iter().zip(function.arguments).map(|(value, kind)| self.coerce(value, *kind));
        Ok(called(function, arguments.collect::<Result<_>>()?))
    }

    pub(super) fn compare(
        &self,
        operator: &str,
        comparison: Comparison,
        left: Typed,
        right: Typed,
    ) -> Result<Node> {
        let kind = compared(operator, left.kind, right.kind)?;
        let (left, right) = (Box::new(self.coerce(left, kind)?), Box::new(self.coerce(right, kind)?));
        Ok(Node::Compare { comparison, left, right })
    }

    /// A value that others are compared with: if it has no type of its own, that of the first of them. That one, too, since
    /// nothing is bound twice: levels of it would double the work each.
    fn known(&mut self, value: &Expr, first: &Expr, place: Place<'_>) -> Result<(Typed, Typed)> {
        let (value, first) = (self.expr(value, place)?, self.expr(first, place)?);
        if value.kind != Type::Unknown {
            return Ok((value, first));
        }
        let kind = if first.kind == Type::Unknown { Type::Text } else { first.kind };
        Ok((Typed { node: self.coerce(value, kind)?, kind }, first))
    }

    fn side(&self, operator: &str, value: &Typed, other: Typed) -> Result<Side> {
        let kind = compared(operator, value.kind, other.kind)?;
        Ok(Side { kind, node: Box::new(self.coerce(other, kind)?) })
    }

    fn among(
        &mut self,
        operator: &str,
        value: &Expr,
        list: &[Expr],
        all: bool,
        place: Place<'_>,
    ) -> Result<Typed> {
        let Some(comparison) = Comparison::of(operator) else {
            return self.among_with(operator, value, list, all, place);
        };
        let (first, others) = list.split_first().ok_or_else(|| unsupported("an empty list"))?;
        let (value, first) = self.known(value, first, place)?;
        let mut sides = Vec::with_capacity(list.len());
        sides.push(self.side(operator, &value, first)?);
        for other in others {
            let other = self.expr(other, place)?;
            sides.push(self.side(operator, &value, other)?);
        }
        let (value, from) = (Box::new(value.node), value.kind);
        Ok(truth(Node::Among { value, from, comparison, list: sides, all }))
    }

    /// `LIKE ANY (ARRAY[…])`
    fn among_with(
        &mut self,
        operator: &str,
        value: &Expr,
        list: &[Expr],
        all: bool,
        place: Place<'_>,
    ) -> Result<Typed> {
        if !matches!(value, Expr::Column(_)) {
            return Err(unsupported("an operator like this with ANY or ALL of anything but a column"));
        }
        let mut parts = Vec::with_capacity(list.len());
        for other in list {
            let part = self.binary(operator, value, other, place)?;
            parts.push(self.boolean(part, "ANY")?);
        }
        Ok(truth(if all { Node::And(parts) } else { Node::Or(parts) }))
    }

    fn subquery(&mut self, query: &Query, place: Place<'_>) -> Result<(QueryPlan, bool)> {
        self.correlated.push(false);
        let plan = self.query(query, Some(place.scope));
        let is_correlated = self.correlated.pop().unwrap_or_default();
        Ok((plan?, is_correlated))
    }

    fn made_subquery(&mut self, plan: QueryPlan, kind: SubqueryKind, is_correlated: bool) -> Node {
        self.next_subquery += 1;
        Node::Subquery(Box::new(Subquery { id: self.next_subquery, plan, kind, is_correlated }))
    }

    fn scalar(&mut self, query: &Query, place: Place<'_>) -> Result<Typed> {
        let (plan, is_correlated) = self.subquery(query, place)?;
        let kind = only_column(&plan)?;
        Ok(Typed { node: self.made_subquery(plan, SubqueryKind::Scalar, is_correlated), kind })
    }

    fn any_of(
        &mut self,
        operator: &str,
        value: &Expr,
        query: &Query,
        all: bool,
        place: Place<'_>,
    ) -> Result<Typed> {
        let comparison = Comparison::of(operator)
            .ok_or_else(|| unsupported("an operator like this with ANY or ALL of a query"))?;
        let value = self.expr(value, place)?;
        let (plan, is_correlated) = self.subquery(query, place)?;
        let column = only_column(&plan)?;
        let kind = compared(operator, value.kind, column)?;
        let from = if value.kind == Type::Unknown { kind } else { value.kind };
        let value = self.coerce(value, from)?;
        let kind = SubqueryKind::Any { value, from, column, kind, comparison, all };
        Ok(truth(self.made_subquery(plan, kind, is_correlated)))
    }

    /// Values that become one of the same type.
    pub(super) fn alike(&mut self, what: &str, values: Vec<Typed>) -> Result<(Vec<Node>, Type)> {
        let kinds: Vec<_> = values.iter().map(|value| value.kind).collect();
        let kind = common(what, &kinds)?;
        let nodes = values.into_iter().map(|value| self.coerce(value, kind)).collect::<Result<_>>()?;
        Ok((nodes, kind))
    }

    fn results(
        &mut self,
        branches: &[(Expr, Expr)],
        otherwise: Option<&Expr>,
        place: Place<'_>,
    ) -> Result<(Vec<Node>, Option<Box<Node>>, Type)> {
        let mut values = Vec::with_capacity(branches.len() + 1);
        for value in branches.iter().map(|(_, value)| value).chain(otherwise) {
            values.push(self.expr(value, place)?);
        }
        let (mut nodes, kind) = self.alike("CASE", values)?;
        let otherwise = otherwise.and_then(|_| nodes.pop()).map(Box::new);
        Ok((nodes, otherwise, kind))
    }

    fn case(
        &mut self,
        branches: &[(Expr, Expr)],
        otherwise: Option<&Expr>,
        place: Place<'_>,
    ) -> Result<Typed> {
        let mut conditions = Vec::with_capacity(branches.len());
        for (condition, _) in branches {
            let condition = self.expr(condition, place)?;
            conditions.push(self.boolean(condition, "CASE/WHEN")?);
        }
        let (values, otherwise, kind) = self.results(branches, otherwise, place)?;
        Ok(Typed {
            node: Node::Case { branches: conditions.into_iter().zip(values).collect(), otherwise },
            kind,
        })
    }

    fn case_of(
        &mut self,
        operand: &Expr,
        branches: &[(Expr, Expr)],
        otherwise: Option<&Expr>,
        place: Place<'_>,
    ) -> Result<Typed> {
        let ((first, _), others) =
            branches.split_first().ok_or_else(|| unsupported("CASE without a WHEN"))?;
        let (operand, first) = self.known(operand, first, place)?;
        let mut sides = Vec::with_capacity(branches.len());
        sides.push(self.side("=", &operand, first)?);
        for (value, _) in others {
            let value = self.expr(value, place)?;
            sides.push(self.side("=", &operand, value)?);
        }
        let (values, otherwise, kind) = self.results(branches, otherwise, place)?;
        let branches = sides.into_iter().zip(values).collect();
        let node = Node::CaseOf { value: Box::new(operand.node), from: operand.kind, branches, otherwise };
        Ok(Typed { node, kind })
    }
}

pub(super) fn called(function: &'static Function, arguments: Vec<Node>) -> Typed {
    Typed { node: Node::Call { function, arguments }, kind: function.returns }
}

fn constant(value: Value, kind: Type) -> Typed {
    Typed { node: Node::Constant(value), kind }
}

pub(super) fn truth(node: Node) -> Typed {
    Typed { node, kind: Type::Bool }
}

/// PG: `make_const`
fn number(digits: &str) -> Result<Typed> {
    if let Ok(number) = digits.parse::<i64>() {
        let kind = if i32::try_from(number).is_ok() { Type::Int4 } else { Type::Int8 };
        return Ok(constant(Value::Int(number), kind));
    }
    value::read(digits, Type::Numeric).map(|value| constant(value, Type::Numeric))
}

fn compared(operator: &str, left: Type, right: Type) -> Result<Type> {
    let is_equality = matches!(operator, "=" | "<>");
    left.compared(right, is_equality).ok_or_else(|| no_operator(operator, Some(left), right))
}

fn no_operator(operator: &str, left: Option<Type>, right: Type) -> PgError {
    let left = left.map(|left| format!("{} ", left.shown())).unwrap_or_default();
    let text = format!("operator does not exist: {left}{operator} {}", right.shown());
    PgError::error(sqlstate::UNDEFINED_FUNCTION, text).with_hint(
        "No operator matches the given name and argument types. You might need to add explicit type casts.",
    )
}

fn only_column(plan: &QueryPlan) -> Result<Type> {
    match plan.outputs.as_slice() {
        [only] => Ok(if only.kind == Type::Unknown { Type::Text } else { only.kind }),
        _ => Err(PgError::error(sqlstate::SYNTAX_ERROR, "subquery must return only one column")),
    }
}

/// Whether PostgreSQL has it does not matter much: it is not to be had here.
pub(super) fn no_type(name: &TypeName) -> PgError {
    const THEIRS: [&str; 23] = [
        "float4",
        "bpchar",
        "timestamp",
        "date",
        "time",
        "timetz",
        "json",
        "jsonb",
        "xml",
        "bytea",
        "uuid",
        "regclass",
        "regtype",
        "regproc",
        "regnamespace",
        "regrole",
        "xid8",
        "cidr",
        "macaddr",
        "bit",
        "money",
        "char",
        "cstring",
    ];
    let own = name.own_name();
    if name.is_array || THEIRS.contains(&own) {
        let array = if name.is_array { "[]" } else { "" };
        return unsupported(&format!("type {own}{array}"));
    }
    PgError::error(sqlstate::UNDEFINED_OBJECT, format!("type \"{}\" does not exist", name.name))
}
