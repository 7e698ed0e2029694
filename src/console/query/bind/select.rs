//! SELECT: its list, groups and order.

use super::from::has_subquery;
use super::*;
use crate::console::query::ast::{Distinct, Item, Select};
use crate::console::query::plan::{DistinctPlan, Group, SelectPlan};
use crate::console::query::unsupported;

/// The values of a SELECT, the shown ones first.
struct Values {
    nodes: Vec<Node>,
    outputs: Vec<Output>,
}

impl Binder<'_> {
    pub(super) fn select(
        &mut self,
        select: &Select,
        order: &[Sort],
        parent: Option<&Scope<'_>>,
    ) -> Result<QueryPlan> {
        let bound = self.from(&select.from, parent)?;
        let scope = Scope::new(bound.part, parent);
        let mut conditions = bound.conditions;
        if let Some(condition) = &select.condition {
            match self.condition(condition, Place::plain(&scope, "WHERE"))? {
                Node::And(parts) => conditions.extend(parts),
                node => conditions.push(node),
            }
        }
        let aggregates = RefCell::new(Vec::new());
        let place = |clause| Place { scope: &scope, aggregates: Some(&aggregates), clause };
        let mut values = self.values_of(select, place("SELECT"))?;
        let keys = match &select.group {
            Some(keys) => Some(self.group_keys(keys, &values, &scope)?),
            None => None,
        };
        let having = match &select.having {
            Some(having) => Some(self.condition(having, place("HAVING"))?),
            None => None,
        };
        let is_distinct = select.distinct == Distinct::Yes;
        let mut sort = Vec::new();
        for key in order {
            let at = self.value_at(&key.value, &mut values, place("ORDER BY"), is_distinct)?;
            let key = SortKey { at, descending: key.descending, nulls_first: key.nulls_first };
            if !sort.iter().any(|known: &SortKey| known.at == at) {
                sort.push(key);
            }
        }
        let distinct = match &select.distinct {
            Distinct::No => DistinctPlan::No,
            Distinct::Yes => DistinctPlan::First(values.outputs.len()),
            Distinct::On(keys) => {
                let mut places = Vec::new();
                for key in keys {
                    places.push(self.value_at(key, &mut values, place("DISTINCT ON"), false)?);
                }
                on_begins_sort(&places, &sort)?;
                DistinctPlan::On(places)
            }
        };
        let aggregates = aggregates.into_inner();
        let is_grouped = keys.is_some() || having.is_some() || !aggregates.is_empty();
        let (nodes, group) = match is_grouped {
            false => (values.nodes, None),
            true => {
                let is_whole = keys.is_none();
                let keys = keys.unwrap_or_default();
                let nodes = values.nodes.into_iter().map(|node| regrouped(node, &keys, &scope));
                let nodes = nodes.collect::<Result<Vec<_>>>()?;
                let having = having.map(|node| regrouped(node, &keys, &scope)).transpose()?;
                (nodes, Some(Group { keys, aggregates, having, is_whole }))
            }
        };
        let filters = placed(conditions, &bound.sources);
        let plan = SelectPlan { from: bound.sources, filters, group, values: nodes, distinct };
        let mut plan = plain(BodyPlan::Select(Box::new(plan)), values.outputs);
        plan.sort = sort;
        Ok(plan)
    }

    fn values_of(&mut self, select: &Select, place: Place<'_>) -> Result<Values> {
        let mut values = Values { nodes: Vec::new(), outputs: Vec::new() };
        for item in &select.items {
            let columns = match item {
                Item::Star if select.from.is_empty() => {
                    let text = "SELECT * with no tables specified is not valid";
                    return Err(PgError::error(sqlstate::SYNTAX_ERROR, text));
                }
                Item::Star => &place.scope.part.visible,
                Item::StarOf(table) => &place.scope.relation(table)?.columns,
                Item::Value { value, label } => {
                    let typed = self.expr(value, place)?;
                    let name = label.clone().unwrap_or_else(|| value.label());
                    values.push(name, self.settled(typed)?);
                    parse::has_room(values.outputs.len())?;
                    continue;
                }
            };
            parse::has_room(values.outputs.len() + columns.len())?;
            for column in columns {
                values.push(column.name.clone(), Typed { node: column.node.clone(), kind: column.kind });
            }
        }
        Ok(values)
    }

    /// GROUP BY takes columns of FROM first, then names and positions of the list.
    fn group_keys(&mut self, keys: &[Expr], values: &Values, scope: &Scope<'_>) -> Result<Vec<Node>> {
        let mut nodes: Vec<Node> = Vec::new();
        for key in keys {
            let node = match key {
                Expr::Number(digits) => {
                    values.nodes[position(digits, values.outputs.len(), "GROUP BY")?].clone()
                }
                Expr::Column(parts) if parts.len() == 1 && !has_column(scope, &parts[0]) => {
                    match values.labelled(&parts[0], "GROUP BY")? {
                        Some(at) => values.nodes[at].clone(),
                        None => self.expr(key, Place::plain(scope, "GROUP BY"))?.node,
                    }
                }
                key => {
                    let typed = self.expr(key, Place::plain(scope, "GROUP BY"))?;
                    self.settled(typed)?.node
                }
            };
            let mut has_aggregate = false;
            node.visit(&mut |node| has_aggregate |= matches!(node, Node::Aggregate(_)));
            if has_aggregate {
                let text = "aggregate functions are not allowed in GROUP BY";
                return Err(PgError::error(sqlstate::GROUPING_ERROR, text));
            }
            if !nodes.contains(&node) {
                nodes.push(node);
            }
            // PG: those that are not in the list are added to it.
            parse::has_room(nodes.len())?;
        }
        Ok(nodes)
    }

    /// Where the value is that is sorted by: a column of the result by position or name, one that is there, or one more.
    fn value_at(
        &mut self,
        expr: &Expr,
        values: &mut Values,
        place: Place<'_>,
        is_distinct: bool,
    ) -> Result<usize> {
        let at = match expr {
            Expr::Number(digits) => Some(position(digits, values.outputs.len(), place.clause)?),
            Expr::Column(parts) if parts.len() == 1 => values.labelled(&parts[0], place.clause)?,
            _ => None,
        };
        if let Some(at) = at {
            sortable(values.outputs[at].kind)?;
            return Ok(at);
        }
        let typed = self.expr(expr, place)?;
        let typed = self.settled(typed)?;
        sortable(typed.kind)?;
        if let Some(at) = values.nodes.iter().position(|node| *node == typed.node) {
            return Ok(at);
        }
        if is_distinct {
            let text = "for SELECT DISTINCT, ORDER BY expressions must appear in select list";
            return Err(PgError::error(sqlstate::INVALID_COLUMN_REFERENCE, text));
        }
        values.nodes.push(typed.node);
        parse::has_room(values.nodes.len())?;
        Ok(values.nodes.len() - 1)
    }
}

impl Values {
    fn push(&mut self, name: String, typed: Typed) {
        self.nodes.push(typed.node);
        self.outputs.push(Output { name, kind: typed.kind });
    }

    /// The column of that name, of which there may be several if they are the same.
    fn labelled(&self, name: &str, clause: &str) -> Result<Option<usize>> {
        let mut found = self.outputs.iter().enumerate().filter(|(_, output)| output.name == name);
        let Some((first, _)) = found.next() else { return Ok(None) };
        if found.any(|(at, _)| self.nodes[at] != self.nodes[first]) {
            let text = format!("{clause} \"{name}\" is ambiguous");
            return Err(PgError::error(sqlstate::AMBIGUOUS_COLUMN, text));
        }
        Ok(Some(first))
    }
}

fn has_column(scope: &Scope<'_>, name: &str) -> bool {
    scope.part.visible.iter().any(|column| column.name == name)
}

fn on_begins_sort(places: &[usize], sort: &[SortKey]) -> Result<()> {
    if sort.iter().take(places.len()).all(|key| places.contains(&key.at)) {
        return Ok(());
    }
    let text = "SELECT DISTINCT ON expressions must match initial ORDER BY expressions";
    Err(PgError::error(sqlstate::INVALID_COLUMN_REFERENCE, text))
}

/// The value for a group's row: its keys, then its aggregates.
fn regrouped(node: Node, keys: &[Node], scope: &Scope<'_>) -> Result<Node> {
    node.replace(&mut |node| {
        if let Some(at) = keys.iter().position(|key| key == node) {
            return Ok(Some(Node::Column { up: 0, at }));
        }
        match node {
            Node::Aggregate(number) => Ok(Some(Node::Column { up: 0, at: keys.len() + number })),
            Node::Column { up: 0, at } => {
                let column = scope.name_of(*at);
                let text = format!(
                    "column \"{column}\" must appear in the GROUP BY clause or be used in an aggregate function"
                );
                Err(PgError::error(sqlstate::GROUPING_ERROR, text))
            }
            Node::Subquery(subquery) if subquery.is_correlated => {
                Err(unsupported("a subquery about the rows of a query with aggregates"))
            }
            _ => Ok(None),
        }
    })
}

/// Each condition at the first place where all its columns are known.
fn placed(conditions: Vec<Node>, sources: &[(crate::console::query::plan::Source, usize)]) -> Vec<Vec<Node>> {
    let mut filters = vec![Vec::new(); sources.len() + 1];
    for condition in conditions {
        let mut needs = 0;
        condition.visit(&mut |node| {
            if let Node::Column { up: 0, at } = node {
                needs = needs.max(at + 1);
            }
        });
        let place = match () {
            () if has_subquery(&condition) => sources.len(),
            () if needs == 0 => 0,
            () => sources.iter().position(|(_, end)| *end >= needs).map_or(sources.len(), |at| at + 1),
        };
        filters[place].push(condition);
    }
    filters
}
