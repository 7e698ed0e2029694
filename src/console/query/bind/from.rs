//! FROM: views, functions, queries, and joins of them.

use super::scope::{Column, Part, Relation, moved};
use super::*;
use crate::console::query::ast::{Alias, From, JoinKind, On};
use crate::console::query::node::Comparison;
use crate::console::query::plan::Source;
use crate::console::query::unsupported;
use crate::console::views;

/// Sources that a query may have side by side: its loops are as deep.
const MOST_SOURCES: usize = 50;

/// The rows that a SELECT goes through.
pub(super) struct Bound {
    /// Each with how many columns there are up to its end.
    pub(super) sources: Vec<(Source, usize)>,
    /// What ON of inner joins has said.
    pub(super) conditions: Vec<Node>,
    pub(super) part: Part,
}

impl Binder<'_> {
    pub(super) fn from(&mut self, items: &[From], parent: Option<&Scope<'_>>) -> Result<Bound> {
        let mut bound = Bound { sources: Vec::new(), conditions: Vec::new(), part: Part::default() };
        for item in items {
            let (source, part) = self.source(item, parent)?;
            let before = bound.part.width;
            flatten(source, part.width, before, &mut bound);
            bound.part = bound.part.beside(part)?;
        }
        if bound.sources.len() > MOST_SOURCES {
            return Err(parse::too_deep());
        }
        Ok(bound)
    }

    fn source(&mut self, item: &From, parent: Option<&Scope<'_>>) -> Result<(Source, Part)> {
        match item {
            From::Table { schema, name, alias } => self.table(schema.as_deref(), name, alias.as_ref()),
            From::Function { call, alias } => self.function(call, alias.as_ref(), parent),
            From::Query { query, alias } => {
                let plan = self.query(query, parent)?;
                let outputs = plan.outputs.clone();
                Ok((Source::Query(Box::new(plan)), named(&outputs, "unnamed_subquery", alias.as_ref())?))
            }
            From::Join { kind, left, right, on } => self.join(*kind, left, right, on, parent),
        }
    }

    fn table(&mut self, schema: Option<&str>, name: &str, alias: Option<&Alias>) -> Result<(Source, Part)> {
        if schema.is_none()
            && let Some(cte) = self.ctes.iter().rev().find(|cte| cte.name == name)
        {
            // Its rows differ from one row around it to the next, and so does what is made of them.
            let changes = cte.reads_around.checked_sub(1);
            self.correlated.iter_mut().skip(changes.unwrap_or(usize::MAX)).for_each(|level| *level = true);
            return Ok((Source::Cte(cte.number), named(&cte.outputs, name, alias)?));
        }
        if schema == Some("information_schema") {
            let columns = views::columns(views::INFORMATION, self.facts).filter(|_| name == "columns");
            let columns = columns.ok_or_else(|| unsupported(&format!("information_schema.{name}")))?;
            return Ok((self.view(views::INFORMATION), named(&outputs(&columns), name, alias)?));
        }
        let is_catalog = schema.is_none_or(|schema| schema == "pg_catalog");
        let columns = is_catalog.then(|| views::columns(name, self.facts)).flatten();
        let columns = columns.ok_or_else(|| {
            let shown = schema.map_or_else(|| name.to_owned(), |schema| format!("{schema}.{name}"));
            let text = format!("relation \"{shown}\" does not exist");
            PgError::error(sqlstate::UNDEFINED_TABLE, text)
                .with_hint(format!("The database \"walrelay\" has the views {}.", views::NAMES.join(", ")))
        })?;
        Ok((self.view(name), named(&outputs(&columns), name, alias)?))
    }

    fn view(&mut self, name: &str) -> Source {
        let known = self.views.iter().position(|known| known == name);
        Source::View(known.unwrap_or_else(|| {
            self.views.push(name.to_owned());
            self.views.len() - 1
        }))
    }

    /// A function that returns rows, or one that returns a value, which is a row of one column.
    fn function(
        &mut self,
        call: &Expr,
        alias: Option<&Alias>,
        parent: Option<&Scope<'_>>,
    ) -> Result<(Source, Part)> {
        if let Expr::Call(call) = call
            && call.arguments.is_empty()
            && !call.star
            && let Some((view, columns)) = views::function(&call.name, self.facts)
        {
            return Ok((self.view(view), named(&outputs(&columns), &call.name, alias)?));
        }
        let empty = Scope::empty(parent);
        let value = self.expr(call, Place::plain(&empty, "functions in FROM"))?;
        let value = self.settled(value)?;
        let own = call.label();
        let name = alias.map_or(own.as_str(), |alias| alias.name.as_str());
        let output = Output { name: name.to_owned(), kind: value.kind };
        Ok((Source::Row(vec![value.node]), named(&[output], &own, alias)?))
    }

    fn join(
        &mut self,
        kind: JoinKind,
        left: &From,
        right: &From,
        on: &On,
        parent: Option<&Scope<'_>>,
    ) -> Result<(Source, Part)> {
        let (left, left_part) = self.source(left, parent)?;
        let (right, right_part) = self.source(right, parent)?;
        let (left_width, right_width) = (left_part.width, right_part.width);
        let names = match on {
            On::Using(names) => names.clone(),
            On::Natural => shared_names(&left_part, &right_part)?,
            On::Nothing | On::Condition(_) => Vec::new(),
        };
        let mut merged = Vec::new();
        let mut conditions = Vec::new();
        for name in &names {
            let left = side_column(&left_part, name, "left")?;
            let mut right = side_column(&right_part, name, "right")?;
            right.node = moved(right.node, left_width);
            let (column, condition) = self.merge(kind, left, right)?;
            merged.push(column);
            conditions.push(condition);
        }
        let mut part = left_part.beside(right_part)?;
        part.visible.retain(|column| !names.contains(&column.name));
        part.visible.splice(0..0, merged);
        let on = match on {
            On::Condition(condition) => {
                let scope = Scope::new(part, parent);
                let condition = self.condition(condition, Place::plain(&scope, "JOIN conditions"))?;
                part = scope.part;
                Some(condition)
            }
            _ if conditions.is_empty() => None,
            _ => Some(Node::And(conditions)),
        };
        let (left, right) = (Box::new(left), Box::new(right));
        Ok((Source::Join { kind, left, left_width, right, right_width, on }, part))
    }

    /// A column of both sides that stands for both, and when it does.
    fn merge(&self, kind: JoinKind, left: Column, right: Column) -> Result<(Column, Node)> {
        let name = left.name.clone();
        let left_value = Typed { node: left.node, kind: left.kind };
        let right_value = Typed { node: right.node, kind: right.kind };
        let condition = self.compare("=", Comparison::Equal, left_value.clone(), right_value.clone())?;
        let common = common("JOIN/USING", &[left.kind, right.kind])?;
        let (left, right) = (self.coerce(left_value, common)?, self.coerce(right_value, common)?);
        let node = match kind {
            JoinKind::Inner | JoinKind::Left => left,
            JoinKind::Right => right,
            JoinKind::Full => Node::Coalesce(vec![left, right]),
        };
        Ok((Column { name, kind: common, node }, condition))
    }
}

fn outputs(columns: &[(&'static str, crate::wire::messages::ColumnType)]) -> Vec<Output> {
    let output = |(name, kind): &(&'static str, crate::wire::messages::ColumnType)| Output {
        name: (*name).to_owned(),
        kind: Type::of_oid(kind.oid()).unwrap_or(Type::Text),
    };
    columns.iter().map(output).collect()
}

/// Columns by the names that an alias gives them.
fn named(outputs: &[Output], own: &str, alias: Option<&Alias>) -> Result<Part> {
    let (name, names) = alias.map_or((own, &[][..]), |alias| (alias.name.as_str(), alias.columns.as_slice()));
    let outputs = renamed(outputs, names, name)?;
    let column = |(at, output): (usize, Output)| Column {
        name: output.name,
        kind: output.kind,
        node: Node::Column { up: 0, at },
    };
    let columns: Vec<_> = outputs.into_iter().enumerate().map(column).collect();
    let width = columns.len();
    let relations = vec![Relation { name: name.to_owned(), columns: columns.clone() }];
    Ok(Part { relations, visible: columns, width })
}

/// Inner joins become sources side by side, so that a condition is looked at as soon as its columns are there.
fn flatten(source: Source, width: usize, before: usize, bound: &mut Bound) {
    match source {
        Source::Join { kind: JoinKind::Inner, left, left_width, right, right_width, on }
            if on.as_ref().is_none_or(|on| !has_subquery(on)) =>
        {
            flatten(*left, left_width, before, bound);
            flatten(*right, right_width, before + left_width, bound);
            bound.conditions.extend(on.map(|on| moved(on, before)));
        }
        source => bound.sources.push((source, before + width)),
    }
}

pub(super) fn has_subquery(node: &Node) -> bool {
    let mut found = false;
    node.visit(&mut |node| found |= matches!(node, Node::Subquery(_)));
    found
}

/// What both sides of a NATURAL join have.
fn shared_names(left: &Part, right: &Part) -> Result<Vec<String>> {
    let is_there = |column: &&Column| right.visible.iter().any(|other| other.name == column.name);
    Ok(left.visible.iter().filter(is_there).map(|column| column.name.clone()).collect())
}

fn side_column(part: &Part, name: &str, side: &str) -> Result<Column> {
    let mut found = part.visible.iter().filter(|column| column.name == name);
    let Some(first) = found.next() else {
        let text = format!("column \"{name}\" specified in USING clause does not exist in {side} table");
        return Err(PgError::error(sqlstate::UNDEFINED_COLUMN, text));
    };
    if found.next().is_some() {
        let text = format!("common column name \"{name}\" appears more than once in {side} table");
        return Err(PgError::error(sqlstate::AMBIGUOUS_COLUMN, text));
    }
    Ok(first.clone())
}
